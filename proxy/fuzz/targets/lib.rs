//! The PostgreSQL front's protocol, as the proxy has it and without the rest.

#[path = "../../src/fronts/postgres/protocol/mod.rs"]
pub mod protocol;

#[path = "../../../replicator/src/lsn.rs"]
pub mod lsn;

#[path = "../../src/lock.rs"]
mod lock;
