//! What PostgreSQL sends on a replication connection.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| replicator::fuzz::pgoutput(data));
