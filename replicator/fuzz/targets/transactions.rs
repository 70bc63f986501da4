//! Encoded transactions of one session.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| replicator::fuzz::transactions(data));
