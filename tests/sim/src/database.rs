//! A database: a log of transactions, rows, one sequence, and what `install.sql` keeps and checks.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use rand::Rng;
use rand::rngs::SmallRng;
use replicator::Lsn;
use replicator::change::{
    Cell, Change, Column, MARKER_PREFIX, PgTimestamp, Relation, ReplicaIdentity, Transaction,
};
use replicator::wire::Resume;

/// Who may write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fence {
    /// Clients.
    Open,
    /// Only the applier: a shadow.
    Guarded,
    /// Nobody but the applier of the way back: fenced by this run, with this end marker.
    Closed {
        /// The migration.
        run: String,
        /// Position of the end marker.
        marker: Lsn,
    },
}

/// Why something was refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refused {
    /// It does not answer.
    Down,
    /// An older generation or an undone run asks.
    Stale,
    /// There is no such slot.
    NoSlot,
    /// A newer session has taken the stream over.
    NotMine,
}

/// Where a stream reads from.
#[derive(Clone, Copy, Debug)]
pub struct Slot {
    /// Reported as durable by the target.
    pub confirmed: Lsn,
    /// What a crash goes back to.
    persisted: Lsn,
}

/// How far a stream is applied here.
#[derive(Clone, Copy, Debug)]
pub struct Progress {
    /// Everything up to here.
    pub applied: Lsn,
    marker: Option<u64>,
    session: u64,
}

/// What a group of an applier that is not flushed would be taken back to.
#[derive(Debug)]
struct Unflushed {
    log: usize,
    end: Lsn,
    generation: u64,
    before: Progress,
}

/// One database.
#[derive(Debug)]
pub struct Database {
    name: &'static str,
    /// It answers.
    pub up: bool,
    /// Newest generation it heard of.
    pub epoch: u64,
    /// See [`Fence`].
    pub fence: Fence,
    undone: BTreeSet<String>,
    /// The run that the slots of the way back belong to, and when it began.
    way_back: Option<(String, u64)>,
    /// By generation.
    pub slots: BTreeMap<u64, Slot>,
    /// By generation.
    pub progress: BTreeMap<u64, Progress>,
    /// Everything committed, in order.
    pub log: Vec<Transaction>,
    /// End of the log; other databases of the cluster write as well.
    pub end: Lsn,
    /// Every row.
    pub rows: BTreeSet<u64>,
    /// A row that was written again: something came twice.
    pub doubled: Option<u64>,
    /// Last number given.
    pub sequence: u64,
    /// Of appliers; what a client or an effect writes is durable, with all before it.
    unflushed: Vec<Unflushed>,
}

fn table() -> Arc<Relation> {
    Arc::new(Relation {
        id: 1,
        schema: "public".into(),
        name: "writes".into(),
        identity: ReplicaIdentity::Default,
        columns: vec![Column { name: "id".into(), key: true, type_oid: 20, type_modifier: -1 }],
    })
}

/// The row of an insert.
fn number(change: &Change) -> Option<u64> {
    let Change::Insert { new, .. } = change else { return None };
    let Some(Cell::Text(text)) = new.first() else { return None };
    std::str::from_utf8(text).ok()?.parse().ok()
}

impl Database {
    /// An empty one.
    pub fn new(name: &'static str, fence: Fence) -> Self {
        Self {
            name,
            up: true,
            epoch: 1,
            fence,
            undone: BTreeSet::new(),
            way_back: None,
            slots: BTreeMap::new(),
            progress: BTreeMap::new(),
            log: Vec::new(),
            end: Lsn(100),
            rows: BTreeSet::new(),
            doubled: None,
            sequence: 0,
            unflushed: Vec::new(),
        }
    }

    /// What a decoding session may read: what no crash takes back, and how far that is.
    pub fn flushed(&self) -> (&[Transaction], Lsn) {
        let (log, end) =
            self.unflushed.first().map_or((self.log.len(), self.end), |first| (first.log, first.end));
        (&self.log[..log], end)
    }

    /// The checkpoint of a stream that no crash takes back.
    pub fn durable(&self, generation: u64) -> Lsn {
        let first = self.unflushed.iter().find(|group| group.generation == generation);
        let there = first.map(|group| group.before).or_else(|| self.progress.get(&generation).copied());
        there.map_or(Lsn::ZERO, |progress| progress.applied)
    }

    /// Everything is durable; the server's own writer does it now and then.
    pub fn flush(&mut self) {
        self.unflushed.clear();
    }

    /// Clients may write.
    pub fn is_open(&self) -> bool {
        self.fence == Fence::Open
    }

    fn alive(&self) -> Result<(), Refused> {
        if self.up { Ok(()) } else { Err(Refused::Down) }
    }

    fn commit(&mut self, changes: Vec<Change>, origin: Option<String>, rng: &mut SmallRng) {
        let commit_lsn = Lsn(self.end.0 + rng.random_range(16..400));
        let end_lsn = Lsn(commit_lsn.0 + 8);
        let xid = u32::try_from(self.log.len() + 1).expect("a short run");
        let commit_time = PgTimestamp(i64::from(xid));
        for change in &changes {
            if let Some(number) = number(change)
                && !self.rows.insert(number)
            {
                self.doubled = Some(number);
            }
        }
        self.log.push(Transaction { xid, commit_lsn, end_lsn, commit_time, origin, changes });
        self.end = end_lsn;
    }

    /// A client's write, with the number that the sequence gave it.
    ///
    /// # Errors
    /// It is down or fenced: nothing was done.
    pub fn write(&mut self, id: u64, rng: &mut SmallRng) -> Result<u64, Refused> {
        self.alive()?;
        if !self.is_open() {
            return Err(Refused::Stale);
        }
        let change = Change::Insert { relation: table(), new: vec![Cell::Text(Bytes::from(id.to_string()))] };
        self.commit(vec![change], None, rng);
        self.flush();
        self.sequence += 1;
        Ok(self.sequence)
    }

    /// `setval`.
    ///
    /// # Errors
    /// Down.
    pub fn set_sequence(&mut self, to: u64) -> Result<(), Refused> {
        self.alive()?;
        self.flush();
        self.sequence = to;
        Ok(())
    }

    /// `godwit.close_fence`: triggers, epoch and marker in one transaction.
    ///
    /// # Errors
    /// Down, or not this run's to close.
    pub fn close(&mut self, generation: u64, run: &str, rng: &mut SmallRng) -> Result<Lsn, Refused> {
        self.alive()?;
        if let Fence::Closed { run: closer, marker } = &self.fence
            && self.epoch == generation
            && closer == run
        {
            return Ok(*marker);
        }
        let over = self.epoch > generation || (self.epoch == generation && !self.is_open());
        if over || self.undone.contains(run) {
            return Err(Refused::Stale);
        }
        // The message's own position lies before its commit record.
        let marker = Lsn(self.end.0 + 8);
        let content = Bytes::from(generation.to_string());
        self.commit(vec![Change::Message { prefix: MARKER_PREFIX.into(), content }], None, rng);
        self.flush();
        self.epoch = generation;
        self.fence = Fence::Closed { run: run.to_owned(), marker };
        Ok(marker)
    }

    /// `godwit.guard_fence`.
    ///
    /// # Errors
    /// Down, or an older generation.
    pub fn guard(&mut self, generation: u64) -> Result<(), Refused> {
        self.alive()?;
        if self.epoch > generation {
            return Err(Refused::Stale);
        }
        self.flush();
        self.epoch = generation;
        self.fence = Fence::Guarded;
        Ok(())
    }

    /// `godwit.open_fence`: after a commit, or to undo what `undo` closed.
    ///
    /// # Errors
    /// Down, or an older generation that is not the one to undo.
    pub fn open(&mut self, generation: u64, undo: Option<&str>) -> Result<(), Refused> {
        self.alive()?;
        let undoes = matches!(&self.fence, Fence::Closed { run, .. } if Some(run.as_str()) == undo)
            && self.epoch == generation + 1;
        if self.epoch > generation && !undoes {
            return Err(Refused::Stale);
        }
        self.flush();
        self.undone.extend(undo.map(str::to_owned));
        self.epoch = generation;
        self.fence = Fence::Open;
        Ok(())
    }

    /// `godwit.claim_way_back`, then the slot where there is none.
    ///
    /// # Errors
    /// Down.
    pub fn make_slot(&mut self, generation: u64, run: &str, begun: u64) -> Result<(), Refused> {
        self.alive()?;
        if self.way_back.as_ref().is_none_or(|(_, since)| *since <= begun) {
            self.way_back = Some((run.to_owned(), begun));
        }
        self.flush();
        let here = self.end;
        self.slots.entry(generation).or_insert(Slot { confirmed: here, persisted: here });
        Ok(())
    }

    /// `godwit.drop_way_back`.
    ///
    /// # Errors
    /// Down.
    pub fn drop_way_back(&mut self, generation: u64, run: &str) -> Result<(), Refused> {
        self.alive()?;
        if self.way_back.as_ref().is_some_and(|(of, _)| of == run) {
            self.slots.remove(&generation);
        }
        Ok(())
    }

    /// A session takes a stream's checkpoint over.
    ///
    /// # Errors
    /// Down, or it knows nothing of the stream.
    pub fn resume(&mut self, generation: u64) -> Result<(u64, Resume), Refused> {
        self.alive()?;
        let progress = self.progress.get_mut(&generation).ok_or(Refused::NoSlot)?;
        progress.session += 1;
        let (session, applied, marker) = (progress.session, progress.applied, progress.marker);
        self.flush();
        Ok((session, Resume { applied, copied: true, marker, ..Resume::default() }))
    }

    /// Applies one transaction of a stream together with its checkpoint; durable only with `flush`.
    ///
    /// # Errors
    /// Down, or a newer session has it.
    pub fn apply(
        &mut self,
        generation: u64,
        session: u64,
        transaction: &Transaction,
        flush: bool,
        rng: &mut SmallRng,
    ) -> Result<(), Refused> {
        let (log, end) = (self.log.len(), self.end);
        let before = self.progress.get(&generation).copied().ok_or(Refused::NoSlot)?;
        self.checkpoint(generation, session, transaction.end_lsn)?;
        if flush {
            self.flush();
        } else {
            self.unflushed.push(Unflushed { log, end, generation, before });
        }
        if let Some(progress) = self.progress.get_mut(&generation) {
            progress.marker = transaction.marker().or(progress.marker);
        }
        let rows: Vec<Change> =
            transaction.changes.iter().filter(|change| number(change).is_some()).cloned().collect();
        self.commit(rows, Some(format!("godwit_{}", self.name)), rng);
        Ok(())
    }

    /// Moves the checkpoint alone.
    ///
    /// # Errors
    /// Down, or a newer session has it.
    pub fn move_to(&mut self, generation: u64, session: u64, to: Lsn) -> Result<(), Refused> {
        self.checkpoint(generation, session, to)?;
        self.flush();
        Ok(())
    }

    fn checkpoint(&mut self, generation: u64, session: u64, to: Lsn) -> Result<(), Refused> {
        self.alive()?;
        let progress = self.progress.get_mut(&generation).ok_or(Refused::NoSlot)?;
        if progress.session != session {
            return Err(Refused::NotMine);
        }
        progress.applied = progress.applied.max(to);
        Ok(())
    }

    /// The checkpoint that a way back starts from, where there is none yet.
    pub fn seed_progress(&mut self, generation: u64, start: Lsn) {
        self.progress.entry(generation).or_insert(Progress { applied: start, marker: None, session: 0 });
    }

    /// How many groups a crash may take back.
    pub fn unflushed(&self) -> usize {
        self.unflushed.len()
    }

    /// What a target reported as durable; it is on the disk now or later.
    pub fn confirm(&mut self, generation: u64, durable: Lsn, persist: bool) {
        if let Some(slot) = self.slots.get_mut(&generation).filter(|_| self.up) {
            slot.confirmed = slot.confirmed.max(durable);
            if persist {
                slot.persisted = slot.confirmed;
            }
        }
    }

    /// Commits stay, but for the last `lost` of those that are not flushed; what slots remember in memory only is forgotten.
    pub fn crash(&mut self, lost: usize) {
        self.up = false;
        self.progress.values_mut().for_each(|progress| progress.session += 1);
        let kept = self.unflushed.len().saturating_sub(lost);
        for group in self.unflushed.drain(..).skip(kept).rev() {
            for change in self.log.drain(group.log..).flat_map(|transaction| transaction.changes) {
                if let Some(number) = number(&change) {
                    self.rows.remove(&number);
                }
            }
            self.end = group.end;
            if let Some(progress) = self.progress.get_mut(&group.generation) {
                (progress.applied, progress.marker) = (group.before.applied, group.before.marker);
            }
        }
        for slot in self.slots.values_mut() {
            slot.confirmed = slot.persisted;
        }
    }
}
