//! A target in memory, for tests: it remembers every transaction and every part of a copy, goes on with a copy that broke, and
//! can do the work and then lose the reply.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;

use super::Target;
use super::window::Window;
use crate::change::{Change, LargeHeader, Transaction};
use crate::error::Error;
use crate::identity::SourceId;
use crate::lsn::Lsn;
use crate::wire::{CopyStart, CopyTable, KeptTable, Resume};

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
    /// A copy has begun, and is or is not through.
    pub copying: bool,
    /// What was copied, by schema and name.
    pub tables: BTreeMap<(String, String), CopiedTable>,
    /// Positions of those that were copied at a later point than the checkpoint has passed.
    pub late: BTreeMap<(String, String), Lsn>,
    /// How long what a copy left for later takes.
    pub late_takes: Duration,
    /// The next so many calls of `apply` do their work and then fail.
    pub lose_replies: u32,
    /// Sessions that took it over so far; only the newest may write.
    pub session: u64,
    /// What a crash may take back, group by group.
    pub unflushed: Vec<Unflushed>,
}

/// What there was before a group that is not flushed.
#[derive(Debug)]
pub struct Unflushed {
    applied: usize,
    checkpoint: Lsn,
    marker: Option<u64>,
}

impl Store {
    /// The checkpoint that stays whatever happens.
    pub fn durable(&self) -> Lsn {
        self.unflushed.first().map_or(self.checkpoint, |point| point.checkpoint)
    }

    /// The server dies and comes back, without the last `lost` groups of those that are not flushed.
    pub fn crash(&mut self, lost: usize) {
        self.session += 1;
        let kept = self.unflushed.len().saturating_sub(lost);
        if let Some(point) = self.unflushed.drain(..).nth(kept) {
            self.applied.truncate(point.applied);
            (self.checkpoint, self.marker) = (point.checkpoint, point.marker);
        }
    }
}

/// One table as it was copied.
#[derive(Clone, Debug, Default)]
pub struct CopiedTable {
    /// Of the snapshot that its rows are of.
    pub position: Lsn,
    /// Parts that make it whole.
    pub of: u32,
    /// Rows of each part that is there, by its number, in COPY format.
    pub parts: BTreeMap<u32, Vec<u8>>,
}

impl CopiedTable {
    fn whole(&self) -> bool {
        self.parts.len() as u32 == self.of
    }

    fn kept(&self, (schema, name): &(String, String)) -> KeptTable {
        KeptTable {
            schema: schema.clone(),
            name: name.clone(),
            position: self.position,
            parts: (!self.whole()).then(|| self.parts.keys().copied().collect()),
            rows: 0,
            bytes: self.parts.values().map(|rows| rows.len() as u64).sum(),
        }
    }
}

/// A session's handle on a [`Store`].
#[derive(Clone, Debug, Default)]
pub struct MemoryTarget {
    store: Arc<Mutex<Store>>,
    session: u64,
    expected: Lsn,
    start: CopyStart,
    open: HashMap<u32, (CopyTable, Vec<u8>)>,
    large: Option<Transaction>,
    window: Window,
}

impl MemoryTarget {
    /// On this store.
    pub fn new(store: Arc<Mutex<Store>>) -> Self {
        Self { store, ..Self::default() }
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

    /// As if nobody knew that a table was copied at a later point.
    #[cfg(test)]
    pub(crate) fn forget_window(&mut self) {
        self.window = Window::default();
    }

    /// As if everything that was copied had been read under this snapshot.
    #[cfg(test)]
    pub(crate) fn claim(&self, snapshot: Lsn) {
        self.store().tables.values_mut().for_each(|table| table.position = snapshot);
    }

    /// As if rows could commit without their checkpoint.
    #[cfg(test)]
    pub(crate) fn forget_checkpoint(&self, checkpoint: Lsn) {
        self.store().checkpoint = checkpoint;
    }

    /// For a write: a database would have ended this session, and a large transaction has it for itself.
    fn mine(&self) -> Result<MutexGuard<'_, Store>, Error> {
        if self.large.is_some() {
            return Err(Error::Protocol("a large transaction is open".into()));
        }
        let store = self.store();
        if store.session != self.session {
            return Err(Error::Link("a newer session has taken the target over".into()));
        }
        Ok(store)
    }
}

impl MemoryTarget {
    /// What a checkpoint that has passed every table's position brings.
    fn settle(&mut self) {
        if self.window.is_open() && self.expected >= self.window.settled() {
            self.window = Window::default();
            let mut store = self.store();
            store.late.clear();
            store.unflushed.clear();
        }
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
        store.unflushed.clear();
        let session = store.session;
        let (applied, copied, marker) = (store.checkpoint, store.copied, store.marker);
        let source = store.source;
        let window = Window::new(store.late.clone());
        let resume =
            Resume { applied, copied, marker, source, settled: window.settled(), ..Resume::default() };
        drop(store);
        *self = Self { session, expected: applied, window, ..Self::new(Arc::clone(&self.store)) };
        Ok(resume)
    }

    async fn late(&mut self) -> Result<(), Error> {
        let takes = self.store().late_takes;
        if !takes.is_zero() {
            tokio::time::sleep(takes).await;
        }
        self.settle();
        Ok(())
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

    async fn apply(&mut self, group: &[Transaction], flush: bool) -> Result<(), Error> {
        let Some(last) = group.last() else { return Ok(()) };
        let mut store = self.mine()?;
        if store.checkpoint != self.expected {
            return Err(Error::Fenced("the checkpoint moved".into()));
        }
        if flush {
            store.unflushed.clear();
        } else {
            let (applied, checkpoint, marker) = (store.applied.len(), store.checkpoint, store.marker);
            store.unflushed.push(Unflushed { applied, checkpoint, marker });
        }
        store.applied.extend_from_slice(&self.window.filter_all(group));
        store.checkpoint = last.end_lsn;
        store.marker = group.iter().filter_map(Transaction::marker).next_back().or(store.marker);
        if store.lose_replies > 0 {
            store.lose_replies -= 1;
            return Err(Error::Link("reply lost".into()));
        }
        drop(store);
        self.expected = last.end_lsn;
        self.settle();
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
        self.apply(&[transaction], true).await
    }

    async fn checkpoint(&mut self, lsn: Lsn) -> Result<(), Error> {
        let mut store = self.mine()?;
        if store.checkpoint != self.expected {
            return Err(Error::Fenced("the checkpoint moved".into()));
        }
        store.checkpoint = lsn;
        store.unflushed.clear();
        drop(store);
        self.expected = lsn;
        self.settle();
        Ok(())
    }

    async fn kept(&mut self) -> Result<Vec<KeptTable>, Error> {
        let store = self.mine()?;
        Ok(store.tables.iter().filter(|_| store.copying).map(|(name, table)| table.kept(name)).collect())
    }

    async fn begin_copy(&mut self, start: &CopyStart) -> Result<(), Error> {
        let mut store = self.mine()?;
        store.copying = true;
        store.tables.retain(|name, table| table.kept(name).stays(start.consistent_point, start.snapshot));
        drop(store);
        (self.start, self.open) = (*start, HashMap::new());
        Ok(())
    }

    async fn load_schema(&mut self, _sql: &str, _post: bool) -> Result<(), Error> {
        Ok(())
    }

    async fn begin_part(&mut self, part: u32, table: &CopyTable) -> Result<(), Error> {
        match self.open.insert(part, (table.clone(), Vec::new())) {
            None => Ok(()),
            Some(_) => Err(Error::Protocol(format!("part {part} begins twice"))),
        }
    }

    async fn copy_rows(&mut self, part: u32, data: Bytes) -> Result<(), Error> {
        self.open.get_mut(&part).ok_or_else(not_begun)?.1.extend_from_slice(&data);
        Ok(())
    }

    async fn end_part(&mut self, part: u32, _rows: u64) -> Result<(), Error> {
        let (table, rows) = self.open.remove(&part).ok_or_else(not_begun)?;
        let mut store = self.mine()?;
        let there = store.tables.entry((table.schema, table.name)).or_default();
        (there.position, there.of) = (self.start.snapshot, table.of);
        match there.parts.insert(part, rows) {
            None => Ok(()),
            Some(_) => Err(Error::Protocol(format!("part {part} comes twice"))),
        }
    }

    async fn end_copy(&mut self, consistent_point: Lsn) -> Result<Lsn, Error> {
        let mut store = self.mine()?;
        let whole = store.tables.values().filter(|table| table.whole()).count();
        if whole != self.start.tables as usize || !self.open.is_empty() {
            return Err(Error::Protocol(format!("{whole} tables are there of {}", self.start.tables)));
        }
        (store.copying, store.copied) = (false, true);
        store.checkpoint = consistent_point;
        store.unflushed.clear();
        let later = |(name, table): (&(String, String), &CopiedTable)| {
            (table.position > consistent_point).then(|| (name.clone(), table.position))
        };
        let late: BTreeMap<_, _> = store.tables.iter().filter_map(later).collect();
        store.late.clone_from(&late);
        let settled = store.tables.values().map(|table| table.position).max().unwrap_or_default();
        drop(store);
        self.expected = consistent_point;
        self.window = Window::new(late);
        Ok(settled)
    }
}
