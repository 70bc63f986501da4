//! The PostgreSQL front's protocol, as the proxy has it and without the rest.

#[path = "../../src/fronts/postgres/protocol/mod.rs"]
pub mod protocol;

#[path = "../../src/lock.rs"]
mod lock;
