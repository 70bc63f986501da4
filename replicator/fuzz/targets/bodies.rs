//! Bodies of the link's frames, past the checksum.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| replicator::fuzz::bodies(data));
