//! Real PostgreSQL, real sockets, for tests.

pub mod network;
pub mod postgres;
