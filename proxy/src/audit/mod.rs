//! What was done, by whom, and what became of it: JSON lines that cannot be changed unnoticed.
//!
//! Each record carries the hash of the one before it ([`chain`]), so that a changed, removed or inserted record is found; signed
//! [`checkpoint`]s, which leave the machine in the log and the metrics, show a tail that was cut off. Calls that change something are
//! written, and on disk, *before* they are carried out: where the audit cannot be written ([`Audit::failing`]), nothing is
//! changed. The request path does not know of the audit.
//!
//! | module | |
//! |---|---|
//! | [`entry`] | what a record says |
//! | [`chain`] | hashes: making and checking lines; no I/O |
//! | [`checkpoint`] | signed statements of where the chain was |
//! | [`folder`] | the files: rotation, what a crash left |
//! | [`read`] | the newest records, for people |
//! | [`verify`] | reading it all again |

pub mod chain;
pub mod checkpoint;
pub mod entry;
pub mod folder;
pub mod read;
pub mod verify;
mod writer;

pub use entry::{Entry, Who};
pub use writer::{Audit, AuditError, Settings};

#[cfg(test)]
mod tests;
