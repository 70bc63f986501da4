//! Commands of replication connections, and streams of changes.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| godwit_fuzz::protocol::fuzz::streaming(data));
