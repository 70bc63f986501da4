//! Messages of the link, header and checksum included.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| replicator::fuzz::frames(data));
