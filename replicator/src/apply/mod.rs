//! What a stream is applied to: [`postgres`] for real, [`memory`] for tests.
//!
//! Rows and checkpoint move in one step, so that applying is exactly once whatever breaks.

pub mod memory;
pub mod postgres;
mod window;

use async_trait::async_trait;
use bytes::Bytes;
use tokio_util::sync::CancellationToken;

use crate::change::{Change, LargeHeader, Transaction};
use crate::error::Error;
use crate::identity::SourceId;
use crate::lsn::Lsn;
use crate::wire::{CopyStart, CopyTable, KeptTable, Resume};

pub use self::postgres::seed_progress;

/// A group's bounds: how many changes of what is queued go into one target transaction, at first and at most.
pub const GROUP_CHANGES: (usize, usize) = (2_000, 100_000);

/// See [`GROUP_CHANGES`]; encoded bytes. Less than the session lets wait, so that more arrives meanwhile.
pub const GROUP_BYTES: u64 = 6 << 20;

/// How long a group may take; the number of its changes follows.
pub const GROUP_TIME: std::time::Duration = std::time::Duration::from_millis(200);

/// Where changes go.
///
/// An error leaves the target as it was before the call or (connection lost at commit) as it should be after it; the
/// session ends and the next one asks [`Target::resume`].
#[async_trait]
pub trait Target: Send {
    /// Takes the stream over from any earlier session, and tells where it stands; that is durable.
    async fn resume(&mut self) -> Result<Resume, Error>;

    /// Cancelled once the session of [`Target::resume`] has ended, which nothing else tells while nothing is applied.
    fn ended(&self) -> CancellationToken {
        CancellationToken::new()
    }

    /// Does what a copy had to leave for later, where its time has come; asked after [`Target::resume`], where that says it is copied. May take long.
    async fn late(&mut self) -> Result<(), Error> {
        Ok(())
    }

    /// Everything after this comes from cluster `id`: refuses ([`Error::AnotherSource`]) when the checkpoint belongs to another
    /// one, remembers it with the checkpoint when it belongs to none yet.
    async fn source(&mut self, id: SourceId) -> Result<(), Error>;

    /// Applies whole transactions, in order, and moves the checkpoint to the last one's end, in one step.
    ///
    /// They are visible when this returns; durable only with `flush`, or with the next call that makes what it does durable. What is lost
    /// until then, when the target's server dies, is lost in order, newest first, and the checkpoint with it. After an error that a person
    /// must mend some of the first may be there, with their checkpoint.
    async fn apply(&mut self, group: &[Transaction], flush: bool) -> Result<(), Error>;

    /// Opens one target transaction for one large source transaction, whose changes follow in parts.
    ///
    /// Until [`Target::end_large`] returns nothing of it is there; a target that is dropped before leaves nothing behind.
    async fn begin_large(&mut self, header: LargeHeader) -> Result<(), Error>;

    /// The next changes of the large transaction, in order. May return before they are written; an error of an earlier
    /// part comes out of a later call.
    async fn apply_part(&mut self, changes: Vec<Change>) -> Result<(), Error>;

    /// Commits the large transaction and moves the checkpoint to its end, in one step; durable, with all before it.
    async fn end_large(&mut self) -> Result<(), Error>;

    /// Moves the checkpoint alone; durable, with all before it.
    async fn checkpoint(&mut self, lsn: Lsn) -> Result<(), Error>;

    /// What is there of a copy that broke; asked after [`Target::resume`], where that says nothing is copied.
    async fn kept(&mut self) -> Result<Vec<KeptTable>, Error> {
        Ok(Vec::new())
    }

    /// Starts the initial copy on an empty target, or goes on with one that broke: what [`KeptTable::stays`] stays.
    async fn begin_copy(&mut self, start: &CopyStart) -> Result<(), Error>;

    /// Runs the schema's SQL: `post` is what comes after the rows.
    async fn load_schema(&mut self, sql: &str, post: bool) -> Result<(), Error>;

    /// Rows of this part of a table follow; several parts may be open at once.
    async fn begin_part(&mut self, part: u32, table: &CopyTable) -> Result<(), Error>;

    /// Rows in the part's COPY format, cut anywhere. May return before they are written; an error comes out of a later call.
    async fn copy_rows(&mut self, part: u32, data: Bytes) -> Result<(), Error>;

    /// That was the part, of so many rows.
    async fn end_part(&mut self, part: u32, rows: u64) -> Result<(), Error>;

    /// Commits the copy with its checkpoint, in one step. Gives the position from which on all tables are at one point: once
    /// changes up to there are applied (or a checkpoint there is set), the target is what the source was.
    async fn end_copy(&mut self, consistent_point: Lsn) -> Result<Lsn, Error>;
}
