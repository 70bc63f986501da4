//! The first packet of a connection.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| godwit_fuzz::protocol::fuzz::startup(data));
