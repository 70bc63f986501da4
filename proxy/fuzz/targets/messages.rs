//! Messages of clients and databases, as the relay cuts and reads them.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| godwit_fuzz::protocol::fuzz::messages(data));
