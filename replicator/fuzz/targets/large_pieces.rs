//! A large transaction in pieces.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| replicator::fuzz::large_pieces(data));
