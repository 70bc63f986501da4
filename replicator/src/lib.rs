//! Godwit's PostgreSQL logical replicator.
//!
//! One row change travels: WAL → [`postgres`] (stream) → [`pgoutput`] (bytes to changes) → [`spill`] (changes to
//! transactions, memory bounded) → [`session`] sender → [`wire`] → [`link`] ⇢ other zone ⇢ [`session`] receiver → [`apply`]
//! (rows and checkpoint commit together) → acknowledgement → feedback to the source (the durable position, never the
//! received one). Delivery is at least once; applying is exactly once by checkpoint.
//!
//! Around the stream: [`grants`] and [`preflight`] (what the role may do, is this database ready), [`identity`] (is it the right one), [`schema`] and [`copy`] (the
//! start), [`reseed`] (the start again), [`fence`] and
//! [`sequences`] (the cutover), [`views`] (materialized views are filled before it), [`caches`] (and what is in memory), [`large_objects`] (which no stream carries), [`heartbeat`] (what a write takes on the primary), [`verify`] (are both sides equal), [`synchronous`] (commits
//! that wait for the shadow), [`lanes`] (critical tables apart).
//!
//! `pgoutput`, `wire` and `session` do no I/O; `spill` writes files, and only files.

pub mod apply;
pub mod beside;
pub mod caches;
pub mod change;
pub mod changes;
mod clock;
pub mod copy;
pub mod drift;
pub mod error;
pub mod extensions;
pub mod fence;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
pub mod grants;
mod hash;
pub mod heartbeat;
pub mod identity;
pub mod lanes;
pub mod large_objects;
pub mod lead;
pub mod link;
pub mod lsn;
pub mod pgoutput;
pub mod postgres;
pub mod preflight;
pub mod pump;
pub mod reseed;
pub mod schema;
pub mod sequences;
pub mod session;
#[cfg(test)]
mod simulation;
pub mod spill;
pub mod statistics;
pub mod status;
pub mod synchronous;
pub mod takeover;
pub mod unlogged;
pub mod verify;
pub mod views;
pub mod wire;

pub use error::{Error, ErrorKind};
pub use lsn::Lsn;
