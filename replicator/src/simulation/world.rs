//! One seeded run: a source that commits, sessions that break in every way, a target that must end up exact.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::history::{self, TABLES, copy_frames, copy_rows, parts};
use super::process::{SourceProcess, TargetProcess};
use super::target::{Gate, GatedTarget, Permit};
use super::wan::{Fault, Way};
use crate::apply::memory::{MemoryTarget, Store};
use crate::change::{Change, Transaction};
use crate::error::Error;
use crate::identity::SourceId;
use crate::lsn::Lsn;
use crate::pump::copying::{GoOn, go_on, missing};
use crate::session::{Framing, OWN_ORIGIN_PREFIX, Sender};
use crate::wire::{Agreed, CopyStart, Frame, KeptTable, PIECE, Resume, Version};

/// The simulated cluster.
const SOURCE: SourceId = SourceId { system: 7, timeline: 1 };

/// Deliberate mistakes: each must be found, or the invariants prove nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sabotage {
    None,
    /// Tells the source what was received, not what is durable.
    ReportReceived,
    /// Commits rows without their checkpoint.
    ForgetCheckpoint,
    /// Older sessions may go on writing, and nobody compares the checkpoint.
    NoFence,
    /// Applies what a table had already when it was copied.
    NoWindow,
    /// Goes on with a snapshot that is gone as if it were the same as a later one.
    AnySnapshot,
    /// Never waits for the target's disk.
    NoFlush,
}

/// How often what happened; shows that a run was not idle.
pub(super) type Tally = BTreeMap<&'static str, u64>;

struct Slot {
    created: Lsn,
    confirmed: Lsn,
    /// What a crash of the source goes back to.
    persisted: Lsn,
}

struct Session {
    source: Option<SourceProcess>,
    target: Option<TargetProcess>,
    to_target: Way,
    to_source: Way,
}

pub(super) struct World {
    rng: SmallRng,
    sabotage: Sabotage,
    pub(super) tally: Tally,
    history: Vec<Transaction>,
    end: Lsn,
    largest: u64,
    slot: Option<Slot>,
    /// The position of the snapshot that the source's node holds.
    held: Option<Lsn>,
    store: Arc<Mutex<Store>>,
    /// The last is the newest; of the older ones only the target's process is left.
    sessions: Vec<Session>,
    window: u64,
    /// Chances in a thousand.
    trouble: u32,
    commits_left: u32,
    /// Commits wait for the target: what nobody wrote here for us is told as a transaction.
    synchronous: bool,
}

/// Virtual time.
fn now() -> Instant {
    crate::clock::now()
}

impl World {
    pub(super) fn new(seed: u64, sabotage: Sabotage) -> Self {
        let mut rng = SmallRng::seed_from_u64(seed);
        let copied = rng.random_bool(0.6);
        let slot = copied.then_some(Slot { created: Lsn::ZERO, confirmed: Lsn::ZERO, persisted: Lsn::ZERO });
        let store = Store { copied, ..Store::default() };
        let mut this = Self {
            sabotage,
            tally: Tally::new(),
            history: Vec::new(),
            end: Lsn(1),
            largest: 0,
            slot,
            held: None,
            store: Arc::new(Mutex::new(store)),
            sessions: Vec::new(),
            window: rng.random_range(2..8) * PIECE as u64,
            trouble: rng.random_range(1..40),
            commits_left: rng.random_range(5..80),
            synchronous: rng.random_bool(0.3),
            rng,
        };
        if !copied {
            // There is something to copy.
            let before = this.rng.random_range(0..25);
            this.commits_left += before;
            (0..before).for_each(|_| this.commit());
        }
        this
    }

    fn store(&self) -> MutexGuard<'_, Store> {
        self.store.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn count(&mut self, what: &'static str) {
        *self.tally.entry(what).or_default() += 1;
    }

    /// One thing happens. The error is a broken promise.
    pub(super) async fn step(&mut self) -> Result<(), String> {
        if self.rng.random_range(0..1000) < self.trouble {
            self.trouble_happens();
        }
        match self.rng.random_range(0..100) {
            0..12 => self.commit(),
            12..15 => {
                let pause = self.rng.random_range(1..600);
                tokio::time::advance(Duration::from_millis(pause)).await;
                self.tick();
            }
            15..30 => self.read_source()?,
            30..36 => self.feedback()?,
            36..40 => {
                if self.sessions.last().is_none_or(|session| session.source.is_none()) {
                    self.connect();
                }
            }
            _ => {
                let at = self.any_session();
                if let Some(at) = at {
                    self.advance_session(at)?;
                }
            }
        }
        self.check()
    }

    fn any_session(&mut self) -> Option<usize> {
        let last = self.sessions.len().checked_sub(1)?;
        // Mostly the newest.
        Some(if self.rng.random_bool(0.8) { last } else { self.rng.random_range(0..=last) })
    }

    fn commit(&mut self) {
        if self.rng.random_bool(0.3) {
            // What other databases write.
            self.end = Lsn(self.end.0 + self.rng.random_range(1..200_000));
        }
        if self.commits_left == 0 {
            return;
        }
        self.commits_left -= 1;
        let number = self.history.len() as u32 + 1;
        let transaction = history::transaction(&mut self.rng, number, self.end);
        self.end = transaction.end_lsn;
        let size = crate::wire::transaction::Encoder::default().encode(&transaction).expect("small").len();
        self.largest = self.largest.max(size as u64);
        self.history.push(transaction);
    }

    /// A new session, as [`crate::pump::maintain`] opens one. The old target process lives on where nobody told it.
    fn connect(&mut self) {
        if let Some(old) = self.sessions.last_mut() {
            old.source = None;
        }
        self.sessions.retain(|session| session.target.is_some());
        while self.sessions.len() > 2 {
            self.sessions.remove(0);
        }
        let target = GatedTarget {
            inner: MemoryTarget::new(Arc::clone(&self.store)),
            gate: Gate::default(),
            sabotage: self.sabotage,
        };
        let zstd = self.rng.random_bool(0.5);
        let framing = || {
            let mut framing = Framing::new(now());
            framing.agree(Agreed { version: Version::NEWEST, zstd }).expect("zstd");
            framing
        };
        self.sessions.push(Session {
            source: Some(SourceProcess::Opening { framing: framing(), resume: None, kept: Vec::new() }),
            target: Some(TargetProcess::start(target, framing(), self.window, self.synchronous)),
            to_target: Way::new(zstd),
            to_source: Way::new(zstd),
        });
        self.count("sessions");
    }

    fn trouble_happens(&mut self) {
        let Some(at) = self.any_session() else { return };
        let last = self.sessions.len() - 1;
        let kind = self.rng.random_range(0..14);
        let session = &mut self.sessions[at];
        let what = match kind {
            0 => {
                // Both notice at once.
                (session.source, session.target) = (None, None);
                "cut, seen by both"
            }
            1 => {
                session.source = None;
                session.to_target.black_hole = true;
                self.held = None;
                "source process killed, unseen"
            }
            2 => {
                session.source = None;
                session.to_target.closed = true;
                self.held = None;
                "source process killed"
            }
            3 => {
                let busy = session.target.as_ref().is_some_and(|target| target.held > 0);
                session.target = None;
                session.to_source.black_hole = true;
                if busy { "target process killed with work in hand" } else { "target process killed" }
            }
            4 => {
                session.to_target.black_hole = true;
                "black hole to the target"
            }
            5 => {
                session.to_source.black_hole = true;
                "black hole to the source"
            }
            6 => {
                self.held = None;
                if let Some(slot) = &mut self.slot {
                    slot.confirmed = slot.persisted;
                    self.sessions[last].source = None;
                }
                "source database crashed"
            }
            7 => {
                let mut store = self.store.lock().unwrap_or_else(PoisonError::into_inner);
                let lost = self.rng.random_range(0..=store.unflushed.len());
                store.crash(lost);
                if lost > 0 {
                    "target database crashed, without its last commits"
                } else {
                    "target database crashed"
                }
            }
            _ => {
                let fault =
                    [Fault::Lose, Fault::Duplicate, Fault::Swap, Fault::Damage][self.rng.random_range(0..4)];
                let way = if kind % 2 == 0 { &mut session.to_target } else { &mut session.to_source };
                if !way.fault(fault, &mut self.rng) {
                    return;
                }
                match fault {
                    Fault::Lose => "message lost",
                    Fault::Duplicate => "message repeated",
                    Fault::Swap => "messages swapped",
                    Fault::Damage => "message damaged",
                }
            }
        };
        self.count(what);
    }

    fn tick(&mut self) {
        for session in &mut self.sessions {
            if let Some(Err(error)) = session
                .source
                .as_mut()
                .and_then(SourceProcess::sender)
                .map(|sender| sender.handle_tick(now()))
                && let Some(process) = session.source.take()
            {
                process.end(&error, &mut session.to_target, now());
            }
            if let Some(Err(error)) = session.target.as_mut().map(|target| target.tick(now()))
                && let Some(process) = session.target.take()
            {
                process.end(&error, &mut session.to_source, now());
            }
        }
    }

    /// The source's process of the newest session reads on, whole transactions or pieces of them.
    fn read_source(&mut self) -> Result<(), String> {
        let Some(session) = self.sessions.last_mut() else { return Ok(()) };
        match &mut session.source {
            Some(SourceProcess::Copying { sender, frames, .. }) if sender.wants_more() => {
                if let Some(frame) = frames.pop_front() {
                    sender.handle_copy(frame, now());
                }
            }
            Some(SourceProcess::Streaming { sender, next, pieces }) if sender.wants_more() => {
                if let Some(rest) = pieces {
                    if let Some(piece) = rest.pop_front() {
                        sender.handle_large_piece(piece, now());
                    } else {
                        sender.handle_large_end(now());
                        *pieces = None;
                    }
                } else if let Some(transaction) = self.history.get(*next) {
                    *next += 1;
                    if self.rng.random_bool(0.2) {
                        if sender.handle_large(&history::header(transaction), now()) {
                            *pieces = Some(history::pieces(&mut self.rng, transaction));
                            self.count("transactions begun in pieces");
                        }
                    } else {
                        sender.handle_transaction(transaction, now()).map_err(|error| error.to_string())?;
                    }
                } else if self.rng.random_bool(0.2) {
                    sender.handle_demanded_position(self.end, now()).map_err(|error| error.to_string())?;
                } else if self.synchronous {
                    sender.handle_awaited_position(self.end, now()).map_err(|error| error.to_string())?;
                } else {
                    sender.handle_position(self.end, now());
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// The source hears how far the target is, and forgets what lies before.
    fn feedback(&mut self) -> Result<(), String> {
        let Some(SourceProcess::Streaming { sender, .. }) =
            self.sessions.last_mut().and_then(|session| session.source.as_mut())
        else {
            return Ok(());
        };
        let progress = sender.progress();
        let durable =
            if self.sabotage == Sabotage::ReportReceived { progress.received } else { progress.durable };
        let there = self.store().durable();
        if durable > there {
            return Err(format!("{durable} was reported as durable; the target is so at {there}"));
        }
        let persist = self.rng.random_bool(0.3);
        if let Some(slot) = &mut self.slot {
            slot.confirmed = slot.confirmed.max(durable);
            if persist {
                slot.persisted = slot.confirmed;
            }
        }
        Ok(())
    }

    /// A few messages move, the target works on.
    fn advance_session(&mut self, at: usize) -> Result<(), String> {
        let (action, fails, many) =
            (self.rng.random_range(0..5), self.rng.random_bool(0.03), self.rng.random_range(1..6));
        let session = &mut self.sessions[at];
        match action {
            0 => {
                if let Some(source) = &mut session.source {
                    source.flush(&mut session.to_target, many);
                }
            }
            1 => {
                if let Some(target) = &mut session.target {
                    target.flush(&mut session.to_source, many);
                }
            }
            2 => return self.deliver_to_source(at),
            3 => {
                for _ in 0..many {
                    self.deliver_to_target(at);
                }
            }
            _ => {
                if let Some(target) = &mut session.target {
                    let permit = if fails { Permit::Fail } else { Permit::Go };
                    target.gate.give(permit);
                    self.work_on(at)?;
                }
            }
        }
        Ok(())
    }

    fn work_on(&mut self, at: usize) -> Result<(), String> {
        let session = &mut self.sessions[at];
        if let Some(Err(error)) = session.target.as_mut().map(|target| target.advance(now()))
            && let Some(process) = session.target.take()
        {
            // Whatever the way does to a message is seen before: the applier itself asks for what is not to be had.
            if let Error::Protocol(why) = &error {
                return Err(format!("the target's process broke by itself: {why}"));
            }
            let broke = process.gate.broke();
            process.end(&error, &mut session.to_source, now());
            if let Some(broke) = broke {
                self.count(broke);
            } else if error.to_string().contains("a newer session") {
                self.count("write of an older session refused");
            }
        }
        Ok(())
    }

    fn deliver_to_target(&mut self, at: usize) {
        let session = &mut self.sessions[at];
        let Some(target) = session.target.as_mut().filter(|target| target.running()) else { return };
        let result = match session.to_target.leave() {
            Some(message) => target.handle_message(message, now()),
            None if session.to_target.closed => Err(Error::Link("the other side closed".into())),
            None => Ok(()),
        };
        if let Err(error) = result
            && let Some(process) = session.target.take()
        {
            process.end(&error, &mut session.to_source, now());
        }
    }

    fn deliver_to_source(&mut self, at: usize) -> Result<(), String> {
        let session = &mut self.sessions[at];
        let Some(source) = &mut session.source else { return Ok(()) };
        let mut broken = None;
        let result = match (session.to_source.leave(), source) {
            (None, _) if session.to_source.closed => Err(Error::Link("the other side closed".into())),
            (None, _) => Ok(()),
            (Some(message), SourceProcess::Opening { framing, resume, kept }) => {
                match (framing.open(message, now()), &resume) {
                    (Ok(Frame::Resume(told)), None) => *resume = Some(told),
                    (Ok(Frame::Kept(table)), Some(_)) => kept.push(table),
                    (Ok(_), _) => {}
                    (Err(error), _) => broken = Some(error),
                }
                if broken.is_none()
                    && let Some(resume) = resume.filter(|resume| resume.kept as usize == kept.len())
                {
                    let framing = std::mem::replace(framing, Framing::new(now()));
                    let kept = std::mem::take(kept);
                    return self.open_source(at, framing, resume, &kept);
                }
                broken.map_or(Ok(()), Err)
            }
            (
                Some(message),
                SourceProcess::Copying { sender, .. } | SourceProcess::Streaming { sender, .. },
            ) => sender.handle_message(message, now()),
        };
        if let Err(error) = result
            && let Some(process) = session.source.take()
        {
            process.end(&error, &mut session.to_target, now());
        }
        self.stream_after_copy(at);
        Ok(())
    }

    /// The resume has come: what the source's shell does before it streams.
    fn open_source(
        &mut self,
        at: usize,
        framing: Framing,
        resume: Resume,
        kept: &[KeptTable],
    ) -> Result<(), String> {
        let mut sender = Sender::new(framing, resume);
        sender.handle_identity(SOURCE, now());
        let process = if resume.copied {
            let Some(slot) = &self.slot else { return Err("copied, and no slot".into()) };
            if slot.confirmed > resume.applied {
                return Err(format!(
                    "the slot is at {}, the target at {}: changes are lost",
                    slot.confirmed, resume.applied
                ));
            }
            let next = self.first_after(resume.applied.max(slot.confirmed));
            // A slot may send again what was confirmed.
            let back = if self.rng.random_bool(0.2) { self.rng.random_range(0..4) } else { 0 };
            SourceProcess::Streaming { sender, next: next.saturating_sub(back), pieces: None }
        } else {
            let (point, frames) = self.begin_copy(kept);
            SourceProcess::Copying { sender, frames, point }
        };
        self.sessions[at].source = Some(process);
        Ok(())
    }

    /// Slot and snapshot, those that are there or new ones, and what goes out under them.
    fn begin_copy(&mut self, kept: &[KeptTable]) -> (Lsn, VecDeque<Frame>) {
        let there = self.slot.as_ref().map(|slot| slot.confirmed);
        let (point, what) = match go_on(kept, there, self.held) {
            GoOn::Same(point) => (point, "copies gone on under their snapshot"),
            GoOn::Later(point, _) => (point, "copies gone on under a later snapshot"),
            GoOn::Anew => {
                let point = self.end;
                self.slot = Some(Slot { created: point, confirmed: point, persisted: point });
                self.held = Some(point);
                (point, "copies begun")
            }
        };
        let snapshot = *self.held.get_or_insert(self.end);
        self.count(what);
        let stays: Vec<&KeptTable> = if self.sabotage == Sabotage::AnySnapshot {
            kept.iter().filter(|table| table.position >= point).collect()
        } else {
            kept.iter().filter(|table| table.stays(point, snapshot)).collect()
        };
        let parts = parts();
        let missing = missing(parts.iter().map(|((name, _), _)| ("public", *name)), &stays);
        let start = CopyStart {
            consistent_point: point,
            snapshot,
            tables: TABLES.len() as u32,
            sessions: 2,
            ..CopyStart::default()
        };
        (point, copy_frames(&mut self.rng, &self.history, start, &missing))
    }

    fn first_after(&self, lsn: Lsn) -> usize {
        self.history.partition_point(|transaction| transaction.end_lsn <= lsn)
    }

    fn stream_after_copy(&mut self, at: usize) {
        let process = self.sessions[at].source.take();
        self.sessions[at].source = match process {
            Some(SourceProcess::Copying { sender, frames, point })
                if frames.is_empty() && sender.copied() =>
            {
                Some(SourceProcess::Streaming { sender, next: self.first_after(point), pieces: None })
            }
            other => other,
        };
    }

    /// What must hold at every moment.
    fn check(&self) -> Result<(), String> {
        for session in &self.sessions {
            if session.to_target.bulk > session.to_source.granted {
                return Err(format!(
                    "{} bulk bytes sent with credit for {}",
                    session.to_target.bulk, session.to_source.granted
                ));
            }
            let held = session.target.as_ref().map_or(0, |target| target.held);
            let waiting = held + session.to_target.in_flight;
            // A transaction larger than the window still passes, and a repeated message counts twice here.
            let bound = self.window + self.largest + 2 * PIECE as u64;
            if waiting > bound {
                return Err(format!("{waiting} bytes wait at the target, bound {bound}"));
            }
        }
        let store = self.store();
        if let Some(slot) = self.slot.as_ref().filter(|slot| store.copied && slot.confirmed > store.durable())
        {
            return Err(format!("the slot is at {}, the target at {}", slot.confirmed, store.durable()));
        }
        Ok(())
    }

    /// No trouble any more: everything must arrive, in bounded time.
    pub(super) async fn settle(&mut self) -> Result<(), String> {
        self.commits_left = 0;
        for round in 0..20_000 {
            let session = self.sessions.last_mut();
            let alive = session.as_ref().is_some_and(|session| session.source.is_some());
            let whole = session.is_some_and(|session| {
                !session.to_target.black_hole && !session.to_source.black_hole && session.target.is_some()
            });
            if !alive || !whole {
                self.connect();
            }
            let at = self.sessions.len() - 1;
            self.read_source()?;
            self.flush(at);
            self.deliver_to_target(at);
            self.work_on(at)?;
            self.deliver_to_source(at)?;
            self.feedback()?;
            self.check()?;
            if round % 50 == 49 {
                tokio::time::advance(Duration::from_millis(400)).await;
                self.tick();
            }
            let end = self.end;
            let done =
                self.sessions.last_mut().and_then(|session| session.source.as_mut()).is_some_and(|source| {
                    source.sender().is_some_and(|sender| sender.progress().applied >= end)
                });
            if done {
                return self.verify();
            }
        }
        Err(format!(
            "it does not arrive: the target is at {}, the source at {}",
            self.store().checkpoint,
            self.end
        ))
    }

    fn flush(&mut self, at: usize) {
        let session = &mut self.sessions[at];
        if let Some(source) = &mut session.source {
            source.flush(&mut session.to_target, usize::MAX);
        }
        if let Some(target) = &mut session.target {
            target.gate.give(Permit::Go);
            target.flush(&mut session.to_source, usize::MAX);
        }
    }

    /// Exactly what was committed, once, in order: what a table's copy did not show came by the stream.
    fn verify(&mut self) -> Result<(), String> {
        let later = self.verify_copy()?;
        if later {
            self.count("tables of a later snapshot settled");
        }
        let store = self.store();
        let point = self.slot.as_ref().map(|slot| slot.created).ok_or("no slot")?;
        let own = |transaction: &&Transaction| {
            !transaction.origin.as_deref().is_some_and(|origin| origin.starts_with(OWN_ORIGIN_PREFIX))
        };
        let sent = || self.history.iter().filter(|transaction| transaction.end_lsn > point).filter(own);
        let shown = |change: &Change, transaction: &Transaction| {
            change.relations().iter().any(|relation| {
                let key = (relation.schema.clone(), relation.name.clone());
                store.tables.get(&key).is_some_and(|table| transaction.commit_lsn < table.position)
            })
        };
        let mut wanted: Vec<Transaction> = sent().cloned().collect();
        for transaction in &mut wanted {
            let mut changes = std::mem::take(&mut transaction.changes);
            changes.retain(|change| !shown(change, transaction));
            transaction.changes = changes;
        }
        wanted.retain(|transaction| !transaction.changes.is_empty());
        // An awaited position is a transaction without changes, and one that the copy shows is left with none.
        let applied = || store.applied.iter().filter(|transaction| !transaction.changes.is_empty());
        if !applied().eq(&wanted) {
            let xids = |all: &mut dyn Iterator<Item = u32>| format!("{:?}", all.collect::<Vec<_>>());
            return Err(format!(
                "the target has {} and should have {}",
                xids(&mut applied().map(|transaction| transaction.xid)),
                xids(&mut wanted.iter().map(|transaction| transaction.xid)),
            ));
        }
        let marker = sent().filter_map(Transaction::marker).next_back();
        if store.marker != marker {
            return Err(format!("marker {:?} instead of {marker:?}", store.marker));
        }
        Ok(())
    }

    /// Each table holds what one snapshot showed. True if they were not all the same.
    fn verify_copy(&self) -> Result<bool, String> {
        let store = self.store();
        let Some(first) = store.tables.values().next().map(|table| table.position) else {
            return Ok(false);
        };
        if !store.late.is_empty() {
            return Err(format!("tables that never settled: {:?}", store.late));
        }
        for (number, (table, nth)) in (0u32..).zip(parts()) {
            let there = store.tables.get(&("public".to_owned(), table.0.to_owned()));
            let Some(there) = there else { return Err(format!("{} was not copied", table.0)) };
            let wanted = copy_rows(&self.history, there.position, table, nth);
            if there.parts.get(&number) != Some(&wanted) {
                return Err(format!(
                    "part {nth} of {} differs from the snapshot at {}",
                    table.0, there.position
                ));
            }
        }
        Ok(store.tables.values().any(|table| table.position != first))
    }

    pub(super) fn transactions(&self) -> usize {
        self.history.len()
    }
}
