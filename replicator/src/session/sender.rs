//! The end at the source.

use std::collections::VecDeque;
use std::time::Instant;

use bytes::{BufMut, Bytes, BytesMut};

use super::{Framing, is_own};
use crate::change::{LargeHeader, PgTimestamp, Transaction};
use crate::error::Error;
use crate::identity::SourceId;
use crate::lsn::Lsn;
use crate::status::StreamStatus;
use crate::wire::transaction::Encoder;
use crate::wire::{Frame, PIECE, Progress, Resume, Version};

/// Encoded transactions up to so many bytes share a frame …
const BATCHED: usize = 16 << 10;
/// … which leaves when it has more than this.
const BATCH: usize = 64 << 10;

/// Turns transactions into frames within the credit, and tells how far the target is.
#[derive(Debug)]
pub struct Sender {
    framing: Framing,
    encoder: Encoder,
    /// Small transactions that leave in one frame, at the latest with the next [`Self::poll_message`].
    batch: BytesMut,
    batched: Option<Instant>,
    /// Waiting for credit.
    waiting: VecDeque<Frame>,
    spent: u64,
    granted: u64,
    /// Newest position heard of at the source.
    source: Lsn,
    /// Everything of the source up to here was handed to this machine.
    handed: Lsn,
    /// End positions not yet applied, and when they were read.
    unapplied: VecDeque<(Lsn, Instant)>,
    progress: Progress,
    copied: bool,
    /// The newest position that went out without a transaction.
    told: Lsn,
    /// A newer one, which waits until that is applied: positions hold no credit, and a server tells thousands a second of others' writes.
    next: Option<Lsn>,
    /// The end of the newest transaction that went out: the target makes it durable without being asked again.
    expected: Lsn,
    /// A newer position that somebody may wait for, and that waits itself until that is durable.
    awaited: Option<Lsn>,
    /// The newest position that was told twice.
    repeated: Lsn,
}

impl Sender {
    /// Starts from where the target stands.
    pub fn new(framing: Framing, resume: Resume) -> Self {
        Self {
            framing,
            encoder: Encoder::default(),
            batch: BytesMut::new(),
            batched: None,
            waiting: VecDeque::new(),
            spent: 0,
            granted: 0,
            source: resume.applied,
            handed: resume.applied,
            unapplied: VecDeque::new(),
            progress: Progress {
                received: resume.applied,
                applied: resume.applied,
                durable: resume.applied,
                marker: resume.marker,
                ..Progress::default()
            },
            copied: resume.copied,
            told: resume.applied,
            next: None,
            expected: resume.applied,
            awaited: None,
            repeated: resume.applied,
        }
    }

    /// Which cluster everything comes from; before anything else. Nothing for a side that does not know the frame.
    pub fn handle_identity(&mut self, id: SourceId, now: Instant) {
        if self.framing.version() >= Version::V3 {
            self.framing.push(&Frame::Source(id), now);
        }
    }

    /// A frame of the initial copy.
    pub fn handle_copy(&mut self, frame: Frame, now: Instant) {
        if let Frame::CopyBegin(start) = &frame {
            self.source = self.source.max(start.consistent_point);
            self.handed = start.consistent_point;
        }
        self.waiting.push_back(frame);
        self.spend(now);
    }

    /// A transaction from the source. What Godwit itself wrote there is dropped; its position counts.
    pub fn handle_transaction(&mut self, transaction: &Transaction, now: Instant) -> Result<(), Error> {
        let end = transaction.end_lsn;
        self.source = self.source.max(end);
        if end <= self.handed {
            return Ok(());
        }
        if is_own(transaction.origin.as_deref()) {
            self.handle_position(end, now);
            return Ok(());
        }
        let start = self.batch.len();
        self.batch.put_u32(0);
        self.encoder.append(&mut self.batch, transaction)?;
        self.handed_over(end);
        self.unapplied.push_back((end, now));
        let length = self.batch.len() - start - 4;
        if self.framing.version() >= Version::V4 && length <= BATCHED {
            self.batch[start..start + 4].copy_from_slice(&(length as u32).to_be_bytes());
            self.batched = Some(now);
            if self.batch.len() > BATCH {
                self.close_batch();
            }
            return Ok(());
        }
        let mut body = self.batch.split_off(start + 4).freeze();
        self.batch.truncate(start);
        self.close_batch();
        while !body.is_empty() {
            let piece = body.split_to(body.len().min(PIECE));
            self.waiting.push_back(Frame::Transaction { last: body.is_empty(), piece });
        }
        self.spend(now);
        Ok(())
    }

    /// A transaction with this end goes out, which says all that a position before it would.
    fn handed_over(&mut self, end: Lsn) {
        (self.handed, self.expected, self.next) = (end, end, None);
    }

    /// A transaction that does not travel whole: its pieces follow. False: it is not for the other side, drop it.
    pub fn handle_large(&mut self, header: &LargeHeader, now: Instant) -> bool {
        let end = header.end_lsn;
        self.source = self.source.max(end);
        if end <= self.handed {
            return false;
        }
        if is_own(header.origin.as_deref()) {
            self.handle_position(end, now);
            return false;
        }
        self.handed_over(end);
        self.unapplied.push_back((end, now));
        self.close_batch();
        self.waiting.push_back(Frame::LargeBegin(header.clone()));
        self.spend(now);
        true
    }

    /// A piece of it, at most [`PIECE`] bytes.
    pub fn handle_large_piece(&mut self, piece: Bytes, now: Instant) {
        self.waiting.push_back(Frame::LargePiece { piece });
        self.spend(now);
    }

    /// That was the last piece.
    pub fn handle_large_end(&mut self, now: Instant) {
        self.waiting.push_back(Frame::LargeEnd);
        self.spend(now);
    }

    /// The source says that nothing for us lies before `lsn` but what was handed over.
    pub fn handle_position(&mut self, lsn: Lsn, now: Instant) {
        self.source = self.source.max(lsn);
        if lsn <= self.handed {
            return;
        }
        (self.handed, self.next) = (lsn, Some(lsn));
        if self.told <= self.progress.applied {
            self.tell_next(now);
        }
    }

    fn tell_next(&mut self, now: Instant) {
        if let Some(lsn) = self.next.take() {
            self.told = lsn;
            self.close_batch();
            self.waiting.push_back(Frame::Position { lsn });
            self.spend(now);
        }
    }

    /// As [`Self::handle_position`], where a commit may wait for it: it travels as a transaction without changes, so that
    /// the target's checkpoint follows at once. Not while a transaction is on its way: a server tells positions all the time, each would cost the
    /// target a commit of its own, and most are overtaken by the next transaction before that is durable.
    pub fn handle_awaited_position(&mut self, lsn: Lsn, now: Instant) -> Result<(), Error> {
        self.source = self.source.max(lsn);
        self.awaited = None;
        if lsn <= self.handed {
            return Ok(());
        }
        if self.expected > self.progress.durable {
            self.awaited = Some(lsn);
            return Ok(());
        }
        let nothing = Transaction {
            xid: 0,
            commit_lsn: lsn,
            end_lsn: lsn,
            commit_time: PgTimestamp::default(),
            origin: None,
            changes: Vec::new(),
        };
        self.handle_transaction(&nothing, now)
    }

    /// As [`Self::handle_position`], where the source wants an answer: a server that shuts down asks until what it has sent is durable, and
    /// sends nothing new. Where the target has heard of it, telling it again says so; a target that does not know that ignores it.
    pub fn handle_demanded_position(&mut self, lsn: Lsn, now: Instant) -> Result<(), Error> {
        if lsn > self.handed {
            return self.handle_awaited_position(lsn, now);
        }
        let to_come = self.expected.max(self.progress.durable).max(self.repeated);
        if lsn > to_come {
            self.repeated = self.handed;
            self.tell_next(now);
            self.close_batch();
            self.waiting.push_back(Frame::Position { lsn: self.handed });
            self.spend(now);
        }
        Ok(())
    }

    /// The newest position of the source, whatever is there.
    pub fn handle_source(&mut self, lsn: Lsn) {
        self.source = self.source.max(lsn);
    }

    /// A message from the link.
    pub fn handle_message(&mut self, message: Bytes, now: Instant) -> Result<(), Error> {
        match self.framing.open(message, now)? {
            Frame::Heartbeat { .. } => {}
            Frame::Credit { granted } => {
                self.granted = self.granted.max(granted);
                self.spend(now);
            }
            Frame::Progress(progress) => {
                self.progress = progress;
                while self.unapplied.front().is_some_and(|(end, _)| *end <= progress.applied) {
                    self.unapplied.pop_front();
                }
                if self.told <= progress.applied {
                    self.tell_next(now);
                }
                if let Some(lsn) = self.awaited {
                    self.handle_awaited_position(lsn, now)?;
                }
            }
            Frame::Copied => self.copied = true,
            other => return Err(Error::Protocol(format!("frame kind {} at the sender", other.kind()))),
        }
        Ok(())
    }

    /// Time passes; call it several times a second.
    pub fn handle_tick(&mut self, now: Instant) -> Result<(), Error> {
        self.framing.handle_tick(self.source, now)
    }

    /// Tells the other side why this one ends.
    pub fn handle_failure(&mut self, error: &Error, now: Instant) {
        self.framing.push(&Frame::Failed { kind: error.kind(), reason: crate::error::chain(error) }, now);
    }

    fn close_batch(&mut self) {
        if let Some(now) = self.batched.take() {
            let batch = std::mem::take(&mut self.batch).freeze();
            self.batch.reserve(batch.len());
            self.waiting.push_back(Frame::Transactions { batch });
            self.spend(now);
        }
    }

    fn spend(&mut self, now: Instant) {
        while let Some(frame) = self.waiting.front() {
            let cost = frame.payload_len() as u64;
            if cost > 0 && self.spent + cost > self.granted {
                return;
            }
            self.spent += cost;
            self.framing.push(frame, now);
            self.waiting.pop_front();
        }
    }

    /// The next message for the link.
    pub fn poll_message(&mut self) -> Option<Bytes> {
        self.close_batch();
        self.framing.poll_message()
    }

    /// Whether to read on from the source: not while something waits for credit.
    pub fn wants_more(&self) -> bool {
        self.waiting.is_empty()
    }

    /// What is spoken.
    pub fn version(&self) -> Version {
        self.framing.version()
    }

    /// The initial copy is committed on the target (or was before).
    pub fn copied(&self) -> bool {
        self.copied
    }

    /// How far the target is.
    pub fn progress(&self) -> Progress {
        self.progress
    }

    /// Writes what it knows into `status`.
    pub fn describe(&self, status: &mut StreamStatus, now: Instant) {
        let oldest = self.unapplied.front().map(|(_, since)| *since);
        super::describe(status, self.source, &self.progress, oldest, now);
    }
}
