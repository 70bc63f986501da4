//! Open transactions of the source, within a bound of memory: what does not fit waits on the disk.
//!
//! [`OpenTransactions`] takes the stream's [`Event`](crate::pgoutput::Event)s and gives transactions as they commit: a small one
//! as a value, a large one as a [`LargeTransaction`] that is read piece by piece and never whole in memory. What is kept here is a
//! copy of what the source still has: a session that ends forgets it, and the next one gets it again.
//!
//! Spill files have no name (they are unlinked when they are made), so none outlives the process; each block of them carries a
//! checksum.

mod file;
mod log;
mod open;

use std::path::PathBuf;

pub use log::LargeTransaction;
pub use open::{Committed, OpenTransactions};
pub(crate) use open::{LARGE_FROM, weight};

/// How much stays in memory, and where the rest goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spill {
    /// Directory of the spill files; made when it is needed.
    pub directory: PathBuf,
    /// Bytes in memory, of all open transactions of a stream together.
    pub memory: u64,
}

impl Spill {
    /// Memory that a stream's open transactions may take unless told otherwise.
    pub const MEMORY: u64 = 64 << 20;

    /// Into this directory, with the usual bound.
    pub fn new(directory: impl Into<PathBuf>) -> Self {
        Self { directory: directory.into(), memory: Self::MEMORY }
    }
}

impl Default for Spill {
    /// Into the system's directory for temporary files.
    fn default() -> Self {
        Self::new(std::env::temp_dir())
    }
}

#[cfg(test)]
mod tests;
