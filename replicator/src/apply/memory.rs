//! A target in memory, for tests: it remembers every transaction, and can do the work and then lose the reply.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;

use super::Target;
use crate::change::{Change, LargeHeader, Transaction};
use crate::error::Error;
use crate::identity::SourceId;
use crate::lsn::Lsn;
use crate::wire::{CopyStart, CopyTable, Resume};

/// What survives a session.
#[derive(Debug, Default)]
pub struct Store {
    /// Transactions in the order in which they were applied.
    pub applied: Vec<Transaction>,
    /// The checkpoint.
    pub checkpoint: Lsn,
    /// The initial copy is there.
    pub copied: bool,
    /// Newest end marker.
    pub marker: Option<u64>,
    /// Where the checkpoint is a position.
    pub source: Option<SourceId>,
    /// Rows copied, as text.
    pub rows: Vec<u8>,
    /// The next so many calls of `apply` do their work and then fail.
    pub lose_replies: u32,
    /// Sessions that took it over so far; only the newest may write.
    pub session: u64,
}

/// A session's handle on a [`Store`].
#[derive(Clone, Debug, Default)]
pub struct MemoryTarget {
    store: Arc<Mutex<Store>>,
    session: u64,
    expected: Lsn,
    rows: Vec<u8>,
    large: Option<Transaction>,
}

impl MemoryTarget {
    /// On this store.
    pub fn new(store: Arc<Mutex<Store>>) -> Self {
        Self { store, session: 0, expected: Lsn::ZERO, rows: Vec::new(), large: None }
    }

    fn store(&self) -> MutexGuard<'_, Store> {
        self.store.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// As if nobody guarded the target: this session counts as the newest, and the checkpoint as the one it expects.
    #[cfg(test)]
    pub(crate) fn disarm(&mut self) {
        let store = self.store();
        let (session, checkpoint) = (store.session, store.checkpoint);
        drop(store);
        (self.session, self.expected) = (session, checkpoint);
    }

    /// As if rows could commit without their checkpoint.
    #[cfg(test)]
    pub(crate) fn forget_checkpoint(&self, checkpoint: Lsn) {
        self.store().checkpoint = checkpoint;
    }

    /// For a write: a database would have ended this session.
    fn mine(&self) -> Result<MutexGuard<'_, Store>, Error> {
        let store = self.store();
        if store.session != self.session {
            return Err(Error::Link("a newer session has taken the target over".into()));
        }
        Ok(store)
    }
}

fn not_begun() -> Error {
    Error::Protocol("a part of a transaction that did not begin".into())
}

#[async_trait]
impl Target for MemoryTarget {
    async fn resume(&mut self) -> Result<Resume, Error> {
        let mut store = self.store();
        store.session += 1;
        let session = store.session;
        let (applied, copied, marker) = (store.checkpoint, store.copied, store.marker);
        let source = store.source;
        let resume = Resume { applied, copied, marker, source, ..Resume::default() };
        drop(store);
        (self.session, self.expected) = (session, resume.applied);
        self.large = None;
        Ok(resume)
    }

    async fn source(&mut self, id: SourceId) -> Result<(), Error> {
        let mut store = self.mine()?;
        if store.copied
            && let Some(known) = store.source
        {
            known.expect(id, "memory")?;
        }
        store.source = Some(id);
        Ok(())
    }

    async fn apply(&mut self, group: &[Transaction]) -> Result<(), Error> {
        let Some(last) = group.last() else { return Ok(()) };
        let mut store = self.mine()?;
        if store.checkpoint != self.expected {
            return Err(Error::Fenced("the checkpoint moved".into()));
        }
        store.applied.extend_from_slice(group);
        store.checkpoint = last.end_lsn;
        store.marker = group.iter().filter_map(Transaction::marker).next_back().or(store.marker);
        if store.lose_replies > 0 {
            store.lose_replies -= 1;
            return Err(Error::Link("reply lost".into()));
        }
        drop(store);
        self.expected = last.end_lsn;
        Ok(())
    }

    async fn begin_large(&mut self, header: LargeHeader) -> Result<(), Error> {
        self.large = Some(header.with(Vec::new()));
        Ok(())
    }

    async fn apply_part(&mut self, changes: Vec<Change>) -> Result<(), Error> {
        self.large.as_mut().ok_or_else(not_begun)?.changes.extend(changes);
        Ok(())
    }

    async fn end_large(&mut self) -> Result<(), Error> {
        let transaction = self.large.take().ok_or_else(not_begun)?;
        self.apply(&[transaction]).await
    }

    async fn checkpoint(&mut self, lsn: Lsn) -> Result<(), Error> {
        let mut store = self.mine()?;
        if store.checkpoint != self.expected {
            return Err(Error::Fenced("the checkpoint moved".into()));
        }
        store.checkpoint = lsn;
        drop(store);
        self.expected = lsn;
        Ok(())
    }

    async fn begin_copy(&mut self, _start: &CopyStart) -> Result<(), Error> {
        self.rows.clear();
        Ok(())
    }

    async fn load_schema(&mut self, _sql: &str, _post: bool) -> Result<(), Error> {
        Ok(())
    }

    async fn begin_part(&mut self, _part: u32, _table: &CopyTable) -> Result<(), Error> {
        Ok(())
    }

    async fn copy_rows(&mut self, _part: u32, data: Bytes) -> Result<(), Error> {
        self.rows.extend_from_slice(&data);
        Ok(())
    }

    async fn end_part(&mut self, _part: u32, _rows: u64) -> Result<(), Error> {
        Ok(())
    }

    async fn end_copy(&mut self, consistent_point: Lsn) -> Result<Lsn, Error> {
        let rows = std::mem::take(&mut self.rows);
        let mut store = self.mine()?;
        store.rows = rows;
        store.copied = true;
        store.checkpoint = consistent_point;
        drop(store);
        self.expected = consistent_point;
        Ok(consistent_point)
    }
}
