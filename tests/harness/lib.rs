//! Real PostgreSQL, real sockets, for tests.

pub mod postgres;
