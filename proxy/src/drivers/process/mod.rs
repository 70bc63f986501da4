//! The `process` driver: PostgreSQL clusters and service workers as processes of this machine.

pub mod cluster;
