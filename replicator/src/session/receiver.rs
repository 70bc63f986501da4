//! The end at the target.

use std::collections::VecDeque;
use std::time::Instant;

use bytes::{Buf, Bytes, BytesMut};

use super::{Framing, WINDOW};
use crate::change::{LargeHeader, Transaction};
use crate::error::Error;
use crate::identity::SourceId;
use crate::lsn::Lsn;
use crate::status::StreamStatus;
use crate::wire::transaction::{Decoder, MAX_TRANSACTION};
use crate::wire::{Frame, KeptTable, Progress, Resume, Version};

/// What the target must do, in this order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Work {
    /// Everything after this comes from this cluster.
    Source(SourceId),
    /// A frame of the initial copy, and the credit that it holds.
    Copy(Frame),
    /// Apply it; `bytes` is the credit that it holds until then.
    Transaction {
        /// What to apply.
        transaction: Transaction,
        /// Encoded size.
        bytes: u64,
    },
    /// A transaction too large to be held begins; its pieces follow.
    LargeBegin(LargeHeader),
    /// A piece of it (see [`crate::wire::large`]), and the credit that it holds.
    LargePiece(Bytes),
    /// It is committed.
    LargeEnd,
    /// Nothing for the target up to here.
    Position(Lsn),
}

/// A large transaction under way.
#[derive(Debug)]
struct Large {
    end: Lsn,
    /// It was applied before.
    skipped: bool,
}

/// Puts transactions together, drops what was applied before, gives credit, reports progress.
#[derive(Debug)]
pub struct Receiver {
    framing: Framing,
    decoder: Decoder,
    assembling: BytesMut,
    large: Option<Large>,
    work: VecDeque<Work>,
    /// Newest position heard of at the source.
    source: Lsn,
    progress: Progress,
    /// What was last told of [`Progress::received`].
    told: Lsn,
    resume: Lsn,
    /// Positions handed on but not applied, and when they came.
    unapplied: VecDeque<(Lsn, Instant)>,
    /// Bulk bytes received, held by unfinished work, and granted in all.
    received: u64,
    held: u64,
    granted: u64,
    /// Bulk bytes that may wait here.
    window: u64,
}

impl Receiver {
    /// Starts from where the target stands; tells the other side so.
    pub fn new(framing: Framing, resume: Resume, now: Instant) -> Self {
        Self::resuming(framing, resume, Vec::new(), now)
    }

    /// The same where a copy broke, and the target holds `kept` of it. A side that cannot go on with that does not hear of it.
    pub fn resuming(framing: Framing, resume: Resume, kept: Vec<KeptTable>, now: Instant) -> Self {
        Self::with_window(framing, resume, kept, WINDOW, now)
    }

    /// The same with another window than [`WINDOW`]; below [`crate::wire::PIECE`] nothing would ever fit.
    pub fn with_window(
        mut framing: Framing,
        resume: Resume,
        kept: Vec<KeptTable>,
        window: u64,
        now: Instant,
    ) -> Self {
        let kept = if framing.version() >= Version::V3 { kept } else { Vec::new() };
        framing.push(&Frame::Resume(Resume { kept: kept.len() as u32, ..resume }), now);
        for table in kept {
            framing.push(&Frame::Kept(table), now);
        }
        framing.was_awaited(now);
        Self::after_resume(framing, resume, window, now)
    }

    fn after_resume(framing: Framing, resume: Resume, window: u64, now: Instant) -> Self {
        let mut this = Self {
            framing,
            decoder: Decoder::default(),
            assembling: BytesMut::new(),
            large: None,
            work: VecDeque::new(),
            source: resume.applied,
            progress: Progress {
                received: resume.applied,
                applied: resume.applied,
                durable: resume.applied,
                marker: resume.marker,
                ..Progress::default()
            },
            told: resume.applied,
            resume: resume.applied,
            unapplied: VecDeque::new(),
            received: 0,
            held: 0,
            granted: 0,
            window,
        };
        this.grant(now);
        this
    }

    /// A message from the link.
    pub fn handle_message(&mut self, message: Bytes, now: Instant) -> Result<(), Error> {
        let frame = self.framing.open(message, now)?;
        let bulk = frame.payload_len() as u64;
        self.received += bulk;
        if self.received > self.granted {
            return Err(Error::Protocol("the sender sends more than it was granted".into()));
        }
        match frame {
            Frame::Heartbeat { source } => self.source = self.source.max(source),
            Frame::LargePiece { piece } => self.large_piece(piece)?,
            Frame::LargeEnd => self.large_end()?,
            _ if self.large.is_some() => {
                return Err(Error::Protocol(format!("frame kind {} inside a transaction", frame.kind())));
            }
            Frame::Source(id) => self.work.push_back(Work::Source(id)),
            Frame::LargeBegin(header) => self.large_begin(header, now)?,
            Frame::Transaction { last, piece } => self.piece(last, &piece, now)?,
            Frame::Transactions { batch } => self.batch(batch, now)?,
            Frame::Position { lsn } => {
                self.moved_to(lsn, now);
                self.work.push_back(Work::Position(lsn));
            }
            Frame::CopyBegin(_)
            | Frame::CopySchema { .. }
            | Frame::CopyTable { .. }
            | Frame::CopyRows { .. }
            | Frame::CopyTableEnd { .. }
            | Frame::CopyEnd => {
                self.held += bulk;
                self.work.push_back(Work::Copy(frame));
            }
            other => return Err(Error::Protocol(format!("frame kind {} at the receiver", other.kind()))),
        }
        self.grant(now);
        Ok(())
    }

    fn piece(&mut self, last: bool, piece: &[u8], now: Instant) -> Result<(), Error> {
        if self.assembling.len() + piece.len() > MAX_TRANSACTION + (1 << 20) {
            return Err(Error::Protocol("a transaction larger than the protocol carries".into()));
        }
        self.assembling.extend_from_slice(piece);
        if !last {
            return Ok(());
        }
        let whole = std::mem::take(&mut self.assembling).freeze();
        let bytes = whole.len() as u64;
        self.transaction(whole, bytes, now)
    }

    fn batch(&mut self, mut batch: Bytes, now: Instant) -> Result<(), Error> {
        if !self.assembling.is_empty() {
            return Err(Error::Protocol("transactions come inside another".into()));
        }
        while !batch.is_empty() {
            let length = batch.try_get_u32().ok().map(|length| length as usize);
            let length = length
                .filter(|length| *length <= batch.len())
                .ok_or_else(|| Error::Protocol("a batch of transactions ends early".into()))?;
            self.transaction(batch.split_to(length), length as u64 + 4, now)?;
        }
        Ok(())
    }

    fn transaction(&mut self, whole: Bytes, bytes: u64, now: Instant) -> Result<(), Error> {
        let transaction = self.decoder.decode(whole)?;
        if self.was_applied(transaction.end_lsn)? {
            return Ok(());
        }
        self.moved_to(transaction.end_lsn, now);
        self.held += bytes;
        self.work.push_back(Work::Transaction { transaction, bytes });
        Ok(())
    }

    /// Whether the target had a transaction already when this session began; it must not come twice in one.
    fn was_applied(&self, end: Lsn) -> Result<bool, Error> {
        if end > self.resume && end <= self.progress.received {
            return Err(Error::Protocol(format!("transaction {end} after {}", self.progress.received)));
        }
        Ok(end <= self.resume)
    }

    fn large_begin(&mut self, header: LargeHeader, now: Instant) -> Result<(), Error> {
        if !self.assembling.is_empty() {
            return Err(Error::Protocol("a transaction begins inside another".into()));
        }
        let (end, skipped) = (header.end_lsn, self.was_applied(header.end_lsn)?);
        self.large = Some(Large { end, skipped });
        if !skipped {
            self.source = self.source.max(end);
            self.unapplied.push_back((end, now));
            self.work.push_back(Work::LargeBegin(header));
        }
        Ok(())
    }

    fn large_piece(&mut self, piece: Bytes) -> Result<(), Error> {
        let large = self.large.as_ref().ok_or_else(|| outside("a piece"))?;
        if !large.skipped {
            self.held += piece.len() as u64;
            self.work.push_back(Work::LargePiece(piece));
        }
        Ok(())
    }

    fn large_end(&mut self) -> Result<(), Error> {
        let Large { end, skipped } = self.large.take().ok_or_else(|| outside("an end"))?;
        if !skipped {
            self.progress.received = self.progress.received.max(end);
            self.work.push_back(Work::LargeEnd);
        }
        Ok(())
    }

    fn moved_to(&mut self, lsn: Lsn, now: Instant) {
        self.progress.received = self.progress.received.max(lsn);
        self.source = self.source.max(lsn);
        self.unapplied.push_back((lsn, now));
    }

    /// Work in hand is the target's; when it is done, [`Self::handle_done`] gives its credit back. Bytes of a transaction
    /// that is still being put together hold no credit, or one larger than the window would never complete.
    fn grant(&mut self, now: Instant) {
        let granted = (self.window + self.received).saturating_sub(self.held);
        // In steps: a credit frame for each small transaction would be waste.
        if granted > self.granted && (granted - self.granted >= self.window / 8 || self.granted == 0) {
            self.granted = granted;
            self.framing.push(&Frame::Credit { granted }, now);
        }
    }

    /// The next thing to do.
    pub fn poll_work(&mut self) -> Option<Work> {
        self.work.pop_front()
    }

    /// Work that held `bytes` of credit is done.
    pub fn handle_done(&mut self, bytes: u64, now: Instant) {
        self.held = self.held.saturating_sub(bytes);
        self.grant(now);
    }

    /// The copy is committed with its checkpoint.
    pub fn handle_copied(&mut self, consistent_point: Lsn, now: Instant) {
        self.resume = consistent_point;
        self.framing.push(&Frame::Copied, now);
        self.handle_applied(
            Progress {
                received: consistent_point,
                applied: consistent_point,
                durable: consistent_point,
                ..self.progress
            },
            now,
        );
    }

    /// The target moved; `received` is filled in here.
    pub fn handle_applied(&mut self, progress: Progress, now: Instant) {
        let received = self.progress.received.max(progress.applied);
        self.progress = Progress { received, ..progress };
        while self.unapplied.front().is_some_and(|(end, _)| *end <= progress.applied) {
            self.unapplied.pop_front();
        }
        self.tell(now);
    }

    fn tell(&mut self, now: Instant) {
        self.told = self.progress.received;
        self.framing.push(&Frame::Progress(self.progress), now);
    }

    /// Time passes; call it several times a second.
    pub fn handle_tick(&mut self, now: Instant) -> Result<(), Error> {
        // What has come is worth telling even while the target is busy.
        if self.progress.received > self.told {
            self.tell(now);
        }
        self.framing.handle_tick(Lsn::ZERO, now)
    }

    /// Tells the other side why this one ends.
    pub fn handle_failure(&mut self, error: &Error, now: Instant) {
        self.framing.push(&Frame::Failed { kind: error.kind(), reason: crate::error::chain(error) }, now);
    }

    /// The next message for the link.
    pub fn poll_message(&mut self) -> Option<Bytes> {
        self.framing.poll_message()
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

fn outside(what: &str) -> Error {
    Error::Protocol(format!("{what} of a large transaction that did not begin"))
}
