//! The stream of a generation: a sender beside the source, a receiver beside the target, and what lies between.

use std::collections::VecDeque;
use std::time::Instant;

use bytes::Bytes;
use rand::Rng;
use rand::rngs::SmallRng;
use replicator::Lsn;
use replicator::session::{Framing, Receiver, Sender, Work};
use replicator::wire::{Agreed, Frame, Progress, Resume, Version};

use crate::database::{Database, Refused};

/// One direction of a link.
#[derive(Debug, Default)]
struct Way {
    messages: VecDeque<Bytes>,
    /// Everything is lost, and nobody is told.
    swallows: bool,
}

impl Way {
    fn enter(&mut self, message: Bytes) {
        if !self.swallows {
            self.messages.push_back(message);
        }
    }
}

#[derive(Debug)]
enum Source {
    /// Waits for the resume.
    Opening(Box<Framing>),
    /// Reads from this transaction on.
    Streaming(Box<Sender>, usize),
}

#[derive(Debug)]
struct Target {
    receiver: Box<Receiver>,
    session: u64,
    work: VecDeque<Work>,
}

/// Both ends of one session.
#[derive(Debug)]
struct Session {
    source: Option<Source>,
    target: Option<Target>,
    forth: Way,
    back: Way,
}

/// A stream of the leader's process; of its older sessions perhaps only the far end is left.
#[derive(Debug)]
pub struct Stream {
    /// Names slot and checkpoint.
    pub generation: u64,
    sessions: Vec<Session>,
    /// What the leader was told last.
    pub told: Progress,
}

fn framing(now: Instant, zstd: bool) -> Framing {
    let mut framing = Framing::new(now);
    framing.agree(Agreed { version: Version::NEWEST, zstd }).expect("a version that both know");
    framing
}

impl Stream {
    /// Not connected yet.
    pub fn new(generation: u64) -> Self {
        Self { generation, sessions: Vec::new(), told: Progress::default() }
    }

    /// Its source is zone `a` and its target zone `b`, or the other way round: generation g serves from `a` where g is odd.
    pub fn is_from_a(&self) -> bool {
        self.generation % 2 == 1
    }

    /// A session is open and its source reads.
    pub fn streaming(&self) -> bool {
        self.sessions.last().is_some_and(|session| matches!(session.source, Some(Source::Streaming(..))))
    }

    /// The same, and its target has not ended.
    pub fn whole(&self) -> bool {
        self.streaming() && self.sessions.last().is_some_and(|session| session.target.is_some())
    }

    /// Every session with a target that crashed ends.
    pub fn target_crashed(&mut self) {
        self.sessions.iter_mut().for_each(|session| session.target = None);
    }

    fn alive(&self) -> bool {
        self.sessions.last().is_some_and(|session| session.source.is_some())
    }

    /// The leader's end dies. The far end is told, or lives on without knowing.
    pub fn lose_source(&mut self, told: bool) {
        if let Some(session) = self.sessions.last_mut() {
            session.source = None;
            if told {
                session.target = None;
            } else {
                session.back.swallows = true;
            }
        }
    }

    /// The far end dies; the leader hears nothing more.
    pub fn lose_target(&mut self) {
        if let Some(session) = self.sessions.last_mut() {
            session.target = None;
            session.back.swallows = true;
        }
    }

    /// One direction loses everything from now on.
    pub fn swallow(&mut self, forth: bool) {
        if let Some(session) = self.sessions.last_mut() {
            let way = if forth { &mut session.forth } else { &mut session.back };
            way.swallows = true;
            way.messages.clear();
        }
    }

    /// One message is lost.
    pub fn lose_message(&mut self, forth: bool) {
        if let Some(session) = self.sessions.last_mut() {
            let way = if forth { &mut session.forth } else { &mut session.back };
            way.messages.pop_front();
        }
    }

    /// A new session where there is none; older ones whose far end lives on stay for a while.
    pub fn connect(&mut self, target: &mut Database, now: Instant, rng: &mut SmallRng) {
        if self.alive() {
            return;
        }
        let Ok((session, resume)) = target.resume(self.generation) else { return };
        self.sessions.retain(|session| session.target.is_some());
        while self.sessions.len() > 2 {
            self.sessions.remove(0);
        }
        let zstd = rng.random_bool(0.5);
        let receiver = Box::new(Receiver::new(framing(now, zstd), resume, now));
        self.sessions.push(Session {
            source: Some(Source::Opening(Box::new(framing(now, zstd)))),
            target: Some(Target { receiver, session, work: VecDeque::new() }),
            forth: Way::default(),
            back: Way::default(),
        });
    }

    /// Something moves on: messages, reading, applying. The error is a broken promise.
    ///
    /// # Errors
    /// Changes are missing between the slot and the target.
    pub fn advance(
        &mut self,
        source: &mut Database,
        target: &mut Database,
        linked: bool,
        marker_waits: bool,
        now: Instant,
        rng: &mut SmallRng,
    ) -> Result<(), String> {
        let generation = self.generation;
        let Some(last) = self.sessions.len().checked_sub(1) else { return Ok(()) };
        let at = if rng.random_bool(0.85) { last } else { rng.random_range(0..=last) };
        let many = rng.random_range(1..6);
        let session = &mut self.sessions[at];
        match rng.random_range(0..5) {
            0 => session.read(generation, source, now, many, rng),
            1 if linked => return session.reach_source(generation, source, now, many, &mut self.told),
            2 if linked => session.reach_target(now, many),
            3 => session.work(generation, target, now, many, marker_waits, rng),
            _ => session.feedback(generation, source, target, rng)?,
        }
        Ok(())
    }

    /// Silence is noticed.
    pub fn tick(&mut self, now: Instant) {
        for session in &mut self.sessions {
            let silent = match &mut session.source {
                None => false,
                Some(Source::Opening(framing)) => framing.handle_tick(Lsn::ZERO, now).is_err(),
                Some(Source::Streaming(sender, _)) => sender.handle_tick(now).is_err(),
            };
            if silent {
                session.source = None;
            }
            if session.target.as_mut().is_some_and(|target| target.receiver.handle_tick(now).is_err()) {
                session.target = None;
            }
        }
    }
}

impl Session {
    /// The source's log, from where the stream stands.
    fn read(&mut self, generation: u64, source: &Database, now: Instant, many: usize, rng: &mut SmallRng) {
        if !source.up || !source.slots.contains_key(&generation) {
            // Its walsender is gone, or so is the slot.
            self.source = None;
            return;
        }
        let Some(Source::Streaming(sender, next)) = &mut self.source else { return };
        let (log, end) = source.flushed();
        for _ in 0..many {
            let Some(transaction) = log.get(*next) else {
                // A keepalive: nothing for the target up to anywhere in what was read.
                let from = log.last().map_or(Lsn(0), |last| last.end_lsn).0;
                sender.handle_position(Lsn(rng.random_range(from..=end.0.max(from))), now);
                break;
            };
            if sender.handle_transaction(transaction, now).is_err() {
                self.source = None;
                return;
            }
            *next += 1;
        }
        while let Some(message) = sender.poll_message() {
            self.forth.enter(message);
        }
    }

    fn reach_source(
        &mut self,
        generation: u64,
        source: &Database,
        now: Instant,
        many: usize,
        told: &mut Progress,
    ) -> Result<(), String> {
        for _ in 0..many {
            let Some(message) = self.back.messages.pop_front() else { break };
            match self.source.take() {
                None => {}
                Some(Source::Opening(mut framing)) => {
                    if let Ok(Frame::Resume(resume)) = framing.open(message, now) {
                        self.source = opened(generation, source, *framing, resume)?;
                        if let Some(Source::Streaming(sender, _)) = &self.source {
                            *told = sender.progress();
                        }
                    }
                }
                Some(Source::Streaming(mut sender, next)) => {
                    if sender.handle_message(message, now).is_err() {
                        continue;
                    }
                    let progress = sender.progress();
                    if progress.applied >= told.applied {
                        *told = progress;
                    }
                    self.source = Some(Source::Streaming(sender, next));
                }
            }
        }
        Ok(())
    }

    fn reach_target(&mut self, now: Instant, many: usize) {
        for _ in 0..many {
            let Some(message) = self.forth.messages.pop_front() else { return };
            let Some(target) = &mut self.target else { return };
            if target.receiver.handle_message(message, now).is_err() {
                self.target = None;
                return;
            }
            while let Some(work) = target.receiver.poll_work() {
                target.work.push_back(work);
            }
        }
    }

    /// The applier: one transaction at a time, each with its checkpoint, now and then with a flush. A reply that is lost ends the session.
    fn work(
        &mut self,
        generation: u64,
        database: &mut Database,
        now: Instant,
        many: usize,
        marker_waits: bool,
        rng: &mut SmallRng,
    ) {
        let Some(target) = &mut self.target else { return };
        for _ in 0..many {
            let Some(work) = target.work.pop_front() else { break };
            let session = target.session;
            let flush = match &work {
                Work::Transaction { transaction, .. } => {
                    transaction.marker().is_some() && marker_waits || rng.random_bool(0.2)
                }
                _ => true,
            };
            let (done, bytes): (Result<(), Refused>, u64) = match &work {
                Work::Transaction { transaction, bytes } => {
                    (database.apply(generation, session, transaction, flush, rng), *bytes)
                }
                Work::Position(lsn) => (database.move_to(generation, session, *lsn), 0),
                Work::Source(_)
                | Work::Copy(_)
                | Work::LargeBegin(_)
                | Work::LargePiece(_)
                | Work::LargeEnd => (Ok(()), 0),
            };
            if done.is_err() || rng.random_bool(0.01) {
                self.target = None;
                return;
            }
            target.receiver.handle_done(bytes, now);
            let progress = target.receiver.progress();
            let (applied, marker) = match &work {
                Work::Transaction { transaction, .. } => {
                    (transaction.end_lsn, transaction.marker().or(progress.marker))
                }
                Work::Position(lsn) => (*lsn, progress.marker),
                _ => continue,
            };
            let durable = if flush { applied } else { progress.durable };
            target.receiver.handle_applied(Progress { applied, durable, marker, ..progress }, now);
        }
        while let Some(message) = target.receiver.poll_message() {
            self.back.enter(message);
        }
    }

    /// The slot hears what is durable; that must be true.
    fn feedback(
        &mut self,
        generation: u64,
        source: &mut Database,
        target: &Database,
        rng: &mut SmallRng,
    ) -> Result<(), String> {
        let Some(Source::Streaming(sender, _)) = &self.source else { return Ok(()) };
        let durable = sender.progress().durable;
        let there = target.durable(generation);
        if durable > there {
            return Err(format!(
                "stream {generation}: {durable} was reported as durable, the target is so at {there}"
            ));
        }
        source.confirm(generation, durable, rng.random_bool(0.3));
        Ok(())
    }
}

/// The resume has come: the sender goes on from there, if the slot still has everything.
fn opened(
    generation: u64,
    source: &Database,
    framing: Framing,
    resume: Resume,
) -> Result<Option<Source>, String> {
    let Some(slot) = source.slots.get(&generation).filter(|_| source.up) else { return Ok(None) };
    if slot.confirmed > resume.applied {
        return Err(format!(
            "stream {generation}: the slot is at {}, the target at {}: changes are lost",
            slot.confirmed, resume.applied
        ));
    }
    let next = source.flushed().0.partition_point(|transaction| transaction.end_lsn <= resume.applied);
    Ok(Some(Source::Streaming(Box::new(Sender::new(framing, resume)), next)))
}
