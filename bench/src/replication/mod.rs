//! What replication costs and how fast it is, beside PostgreSQL's own.

pub(crate) mod catch_up;
