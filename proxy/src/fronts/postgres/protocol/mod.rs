//! PostgreSQL's protocol without any I/O: bytes in, facts and bytes out.
//!
//! Sources: PostgreSQL documentation, chapter "Frontend/Backend Protocol" (message flow, message formats, SASL); RFC 5802 and
//! RFC 7677 (SCRAM-SHA-256); RFC 5929 (`tls-server-end-point`). Nothing here trusts a length, allocates by one, or panics on
//! bytes from outside.

pub mod base64;
pub mod frame;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
pub mod message;
pub mod names;
pub mod oids;
pub mod scram;
pub mod startup;
pub mod state;
pub mod statements;
pub mod streaming;
pub mod traces;
pub mod tracker;
