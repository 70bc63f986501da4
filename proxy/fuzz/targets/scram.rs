//! SASL messages, to both sides of the exchange.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| godwit_fuzz::protocol::fuzz::scram(data));
