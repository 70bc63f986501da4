//! Real PostgreSQL, real sockets, for tests.

pub mod history;
pub mod http;
pub mod network;
pub mod postgres;
pub mod programs;
pub mod tls;
pub mod waiting;
