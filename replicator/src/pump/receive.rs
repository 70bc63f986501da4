//! The half at the target.

use std::pin::pin;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::FusedFuture;
use tokio::sync::{mpsc, watch};
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use super::progress::CopyProgress;
use super::transport::{Joined, closed, write};
use super::{OPENING, TICK};
use crate::apply::{GROUP_BYTES, GROUP_CHANGES, GROUP_TIME, Target};
use crate::change::{Change, LargeHeader, Transaction};
use crate::error::Error;
use crate::link::LinkRecv;
use crate::lsn::Lsn;
use crate::session::{Receiver, Work};
use crate::status::{CopyStage, Phase, StreamStatus};
use crate::wire::{Frame, KeptTable, Progress, Resume, large};

/// The checkpoint follows an idle source no more often than this …
const CHECKPOINT_EVERY: Duration = Duration::from_secs(1);
/// … unless it moved less than [`SMALL_STEP`] bytes: then only so often. (Two streams in opposite directions would
/// otherwise keep each other busy with their checkpoints.)
const CHECKPOINT_SMALL: Duration = Duration::from_secs(10);
const SMALL_STEP: u64 = 64 << 10;
/// How much of a large transaction is applied at once, bytes encoded.
const PART_BYTES: u64 = 1 << 20;

/// Messages that are taken before the other work of the loop gets its turn.
const AT_ONCE: usize = 512;

/// While changes keep coming no further apart than this …
const GAP: Duration = Duration::from_millis(3);
/// … a group of so many waits for more, at most so long: a commit costs as much as many rows. Fewer are applied at once …
const BUSY: usize = 64;
const LINGER: Duration = Duration::from_millis(50);
/// … and so is a group that comes more slowly than this, in changes per millisecond: the lag stays low.
const PACE: u128 = 20;
/// Commits that nobody waits for are not flushed one by one: all together no later than this …
const FLUSH_EVERY: Duration = Duration::from_secs(1);
/// … and as soon as nothing has come for so long.
const QUIET: Duration = Duration::from_millis(20);
/// A group of positions only waits so long for a transaction to go with: a commit of its own would hold that one up.
const ALONE: Duration = Duration::from_millis(1);

pub(super) async fn run(
    mut target: Box<dyn Target>,
    synchronous: bool,
    mut joined: Joined,
    status: &watch::Sender<StreamStatus>,
    cancel: &CancellationToken,
) -> Result<(), Error> {
    status.send_modify(|status| status.phase = Phase::Connecting);
    let resume = tokio::select! {
        () = cancel.cancelled() => return Ok(()),
        resume = joined.meanwhile(resume(&mut *target, status)) => resume?,
    };
    let Joined { mut framing, mut sender, receiver } = joined;
    let (resume, kept) = match resume {
        Ok(resume) => resume,
        Err(error) => {
            let failed = Frame::Failed { kind: error.kind(), reason: crate::error::chain(&error) };
            framing.push(&failed, crate::clock::now());
            while let Some(message) = framing.poll_message() {
                sender.send(message).await?;
            }
            sender.close().await;
            return Err(error);
        }
    };
    let (outgoing, queue) = mpsc::unbounded_channel();
    let (work, todo) = mpsc::unbounded_channel();
    let (done, finished) = mpsc::unbounded_channel();
    let mut pump = Pump {
        machine: Receiver::resuming(framing, resume, kept, crate::clock::now()),
        incoming: receiver,
        outgoing,
        work,
        copy: CopyProgress::default(),
        copying: !resume.copied,
        settled: resume.settled,
        status,
    };
    pump.flush();
    pump.tell();
    let mut writer = pin!(write(sender, queue).fuse());
    let mut applier = pin!(Applier::new(target, synchronous, resume, done).run(todo));
    let result = tokio::select! {
        biased;
        () = cancel.cancelled() => Ok(()),
        result = &mut applier => result.and_then(|()| Err(closed())),
        result = pump.run(finished) => result,
        result = &mut writer => result.and_then(|()| Err(closed())),
    };
    let stopped = Error::Link("stopped".into());
    pump.machine.handle_failure(result.as_ref().err().unwrap_or(&stopped), crate::clock::now());
    pump.flush();
    // The receiving half stays until the reason is out: dropping it would reset the link.
    let Pump { outgoing, incoming: _incoming, .. } = pump;
    drop(outgoing);
    if !writer.is_terminated() {
        let _ = tokio::time::timeout(Duration::from_secs(1), writer).await;
    }
    result
}

async fn resume(
    target: &mut dyn Target,
    status: &watch::Sender<StreamStatus>,
) -> Result<(Resume, Vec<KeptTable>), Error> {
    let stands = async {
        let resume = target.resume().await?;
        let kept = if resume.copied { Vec::new() } else { target.kept().await? };
        Ok((resume, kept))
    };
    let stands = tokio::time::timeout(OPENING, stands).await;
    let (resume, kept) = stands
        .unwrap_or_else(|_| Err(Error::Link("the target does not say in time where it stands".into())))?;
    if resume.copied {
        if resume.settled > Lsn::ZERO && resume.applied >= resume.settled {
            status.send_modify(|status| status.phase = CopyProgress::finishing(crate::clock::now()));
        }
        target.late().await?;
    }
    Ok((resume, kept))
}

struct Pump<'a> {
    machine: Receiver,
    incoming: Box<dyn LinkRecv>,
    outgoing: mpsc::UnboundedSender<Bytes>,
    /// Bounded by the credit that the machine gives; of positions, which hold none, a sender tells the next one when the last is applied.
    work: mpsc::UnboundedSender<Work>,
    copy: CopyProgress,
    /// Not committed yet.
    copying: bool,
    /// The target is at one point once it has applied everything up to here.
    settled: Lsn,
    status: &'a watch::Sender<StreamStatus>,
}

/// What the applier tells.
pub(crate) enum Done {
    Held(u64),
    /// The copy is committed; the second position is where its tables are at one point.
    Copied(Lsn, Lsn),
    Applied(Progress),
}

impl Done {
    pub(crate) fn tell(&self, machine: &mut Receiver, now: Instant) {
        match *self {
            Self::Held(bytes) => machine.handle_done(bytes, now),
            Self::Applied(progress) => machine.handle_applied(progress, now),
            Self::Copied(lsn, _) => machine.handle_copied(lsn, now),
        }
    }
}

impl Pump<'_> {
    fn flush(&mut self) {
        while let Some(message) = self.machine.poll_message() {
            // A writer that is gone ends the session by itself.
            let _ = self.outgoing.send(message);
        }
    }

    fn message(&mut self, message: Option<Bytes>) -> Result<(), Error> {
        self.machine.handle_message(message.ok_or_else(closed)?, crate::clock::now())?;
        while let Some(work) = self.machine.poll_work() {
            if let Work::Copy(frame) = &work {
                self.copy.note(frame, crate::clock::now());
            }
            let _ = self.work.send(work);
        }
        Ok(())
    }

    fn tell(&mut self) {
        let now = crate::clock::now();
        let settling = !self.copying && self.machine.progress().applied < self.settled;
        if settling {
            self.copy.stage = CopyStage::Settling;
        }
        self.status.send_modify(|status| {
            self.machine.describe(status, now);
            status.phase = if self.copying || settling { self.copy.phase(now) } else { Phase::Streaming };
        });
    }

    async fn run(&mut self, mut finished: mpsc::UnboundedReceiver<Done>) -> Result<(), Error> {
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                Some(done) = finished.recv() => {
                    done.tell(&mut self.machine, crate::clock::now());
                    if let Done::Copied(_, settled) = done {
                        (self.copying, self.settled) = (false, settled);
                    }
                }
                message = self.incoming.recv() => {
                    // And what came with it.
                    let mut next = Some(message);
                    for _ in 0..AT_ONCE {
                        let Some(message) = next.take() else { break };
                        self.message(message?)?;
                        next = self.incoming.recv().now_or_never();
                    }
                    if let Some(message) = next {
                        self.message(message?)?;
                    }
                }
                _ = tick.tick() => self.machine.handle_tick(crate::clock::now())?,
            }
            self.flush();
            self.tell();
        }
    }
}

/// Takes work to the target in groups, and tells what became of it.
pub(crate) struct Applier {
    target: Box<dyn Target>,
    done: mpsc::UnboundedSender<Done>,
    /// Commits at the source wait until theirs is durable here.
    synchronous: bool,
    progress: Progress,
    /// Where the checkpoint is, and since when.
    checkpoint: Lsn,
    checkpointed: Instant,
    /// Since when it is not durable, if it is not.
    unflushed: Option<Instant>,
    consistent_point: Option<Lsn>,
    /// The target itself must see a checkpoint that reaches this.
    settled: Lsn,
    schema: Vec<u8>,
    /// Changes in one group.
    bound: usize,
    large: Option<Large>,
}

impl Applier {
    pub(crate) fn new(
        target: Box<dyn Target>,
        synchronous: bool,
        resume: Resume,
        done: mpsc::UnboundedSender<Done>,
    ) -> Self {
        let progress = Progress {
            applied: resume.applied,
            durable: resume.applied,
            marker: resume.marker,
            ..Progress::default()
        };
        Self {
            target,
            done,
            synchronous,
            progress,
            checkpoint: resume.applied,
            checkpointed: crate::clock::now(),
            unflushed: None,
            consistent_point: None,
            settled: resume.settled,
            schema: Vec::new(),
            bound: GROUP_CHANGES.0,
            large: None,
        }
    }

    fn tell(&self, done: Done) {
        let _ = self.done.send(done);
    }

    pub(crate) async fn run(mut self, mut todo: mpsc::UnboundedReceiver<Work>) -> Result<(), Error> {
        while let Some(first) = self.next(&mut todo).await? {
            let mut group = Group::default();
            let mut next = Some(first);
            let began = crate::clock::now();
            // Whatever is there already, up to the bounds.
            while let Some(work) = next.take() {
                match work {
                    Work::Source(id) => self.target.source(id).await?,
                    Work::Copy(frame) => {
                        let held = frame.payload_len() as u64;
                        self.copy(frame).await?;
                        self.tell(Done::Held(held));
                    }
                    Work::Position(lsn) => group.stand_at(lsn),
                    Work::Transaction { transaction, bytes } => group.add(transaction, bytes),
                    Work::LargeBegin(header) => {
                        // What came before it has a transaction of its own, and is durable first: while a large one is open,
                        // which may last, the checkpoint cannot be moved.
                        self.apply(std::mem::take(&mut group)).await?;
                        self.flush().await?;
                        self.large = Some(Large::new(&header, self.progress));
                        self.target.begin_large(header).await?;
                    }
                    Work::LargePiece(piece) => self.large()?.feed(piece)?,
                    Work::LargeEnd => self.end_large().await?,
                }
                let part = self.large.as_ref().map_or(0, |large| large.bytes);
                if group.changes < self.bound && group.bytes < GROUP_BYTES && part < PART_BYTES {
                    next = todo.try_recv().ok();
                    if next.is_none()
                        && let Some(wait) = group.worth_waiting(began.elapsed())
                    {
                        next = tokio::time::timeout(wait, todo.recv()).await.ok().flatten();
                    }
                }
            }
            self.apply_part().await?;
            let (full, began) = (group.changes >= self.bound, crate::clock::now());
            self.apply(group).await?;
            self.adapt(full, began.elapsed());
        }
        Ok(())
    }

    /// The next work. Where none comes, what is not durable is made so meanwhile, and a target that is gone is not waited with: whoever ended
    /// its session has it look at tables anew, say, and the stream is to be up again before somebody needs it.
    async fn next(&mut self, todo: &mut mpsc::UnboundedReceiver<Work>) -> Result<Option<Work>, Error> {
        if self.unflushed.is_some() {
            match tokio::time::timeout(QUIET, todo.recv()).await {
                Ok(work) => return Ok(work),
                Err(_) => self.flush().await?,
            }
        }
        let ended = self.target.ended();
        tokio::select! {
            biased;
            work = todo.recv() => Ok(work),
            () = ended.cancelled() => {
                Err(Error::io("the target's session has ended")(std::io::ErrorKind::ConnectionAborted.into()))
            }
        }
    }

    /// The checkpoint is there, and if `durable` will stay there whatever becomes of the target.
    fn moved(&mut self, to: Lsn, durable: bool) {
        let now = crate::clock::now();
        (self.checkpoint, self.checkpointed) = (to, now);
        if durable {
            (self.progress.durable, self.unflushed) = (to, None);
        } else {
            self.unflushed.get_or_insert(now);
        }
    }

    async fn checkpoint(&mut self, lsn: Lsn) -> Result<(), Error> {
        self.target.checkpoint(lsn).await?;
        self.moved(lsn, true);
        Ok(())
    }

    /// Makes durable what is not.
    async fn flush(&mut self) -> Result<(), Error> {
        if self.unflushed.is_some() {
            self.checkpoint(self.progress.applied).await?;
            self.tell(Done::Applied(self.progress));
        }
        Ok(())
    }

    fn overdue(&self) -> bool {
        self.unflushed.is_some_and(|since| crate::clock::now().duration_since(since) >= FLUSH_EVERY)
    }

    /// Whether these must be durable before more is applied: somebody waits for them, the next primary has its first client right after
    /// them, or the last flush is long ago.
    fn must_flush(&self, transactions: &[Transaction]) -> bool {
        self.synchronous
            || self.overdue()
            || transactions.iter().any(|transaction| transaction.marker().is_some())
    }

    /// Groups grow while they take less than [`GROUP_TIME`], and shrink when they take longer.
    fn adapt(&mut self, full: bool, took: Duration) {
        if took > GROUP_TIME {
            self.bound = (self.bound / 2).max(GROUP_CHANGES.0);
        } else if full && took < GROUP_TIME / 2 {
            self.bound = (self.bound * 2).min(GROUP_CHANGES.1);
        }
    }

    fn large(&mut self) -> Result<&mut Large, Error> {
        self.large
            .as_mut()
            .ok_or_else(|| Error::Protocol("a part of a transaction that did not begin".into()))
    }

    /// Applies what has come of a large transaction since the last time.
    async fn apply_part(&mut self) -> Result<(), Error> {
        let Some(large) = &mut self.large else { return Ok(()) };
        let (changes, bytes) = (std::mem::take(&mut large.changes), std::mem::take(&mut large.bytes));
        if !changes.is_empty() {
            for change in &changes {
                note(&mut large.progress, change);
            }
            self.target.apply_part(changes).await?;
        }
        if bytes > 0 {
            self.tell(Done::Held(bytes));
        }
        Ok(())
    }

    async fn end_large(&mut self) -> Result<(), Error> {
        self.apply_part().await?;
        let Some(Large { end, decoder, progress, .. }) = self.large.take() else {
            return Err(Error::Protocol("a transaction ends that did not begin".into()));
        };
        decoder.finish()?;
        self.target.end_large().await?;
        self.progress = Progress { applied: end, transactions: progress.transactions + 1, ..progress };
        self.moved(end, true);
        self.tell(Done::Applied(self.progress));
        Ok(())
    }

    async fn apply(&mut self, group: Group) -> Result<(), Error> {
        let Group { transactions, bytes, position, again, .. } = group;
        if let Some(last) = transactions.last() {
            let flush = self.must_flush(&transactions);
            self.target.apply(&transactions, flush).await?;
            self.progress.applied = last.end_lsn;
            self.moved(last.end_lsn, flush);
            for transaction in &transactions {
                self.count(transaction);
            }
            self.tell(Done::Held(bytes));
        }
        if let Some(lsn) = position.filter(|lsn| *lsn >= self.progress.applied && *lsn > self.checkpoint) {
            // Told again: the source waits for it.
            let again = again || lsn == self.progress.applied;
            self.progress.applied = lsn;
            let step = lsn.bytes_since(self.checkpoint);
            let pause = if step < SMALL_STEP { CHECKPOINT_SMALL } else { CHECKPOINT_EVERY };
            let settles = self.checkpoint < self.settled && lsn >= self.settled;
            let due = crate::clock::now().duration_since(self.checkpointed) >= pause;
            if again || settles || due || self.overdue() {
                self.checkpoint(lsn).await?;
            }
        } else if transactions.is_empty() {
            return Ok(());
        }
        self.tell(Done::Applied(self.progress));
        Ok(())
    }

    fn count(&mut self, transaction: &Transaction) {
        if transaction.changes.is_empty() {
            // Only a position.
            return;
        }
        self.progress.transactions += 1;
        for change in &transaction.changes {
            note(&mut self.progress, change);
        }
    }

    async fn copy(&mut self, frame: Frame) -> Result<(), Error> {
        match frame {
            Frame::CopyBegin(start) => {
                self.target.begin_copy(&start).await?;
                self.consistent_point = Some(start.consistent_point);
            }
            Frame::CopySchema { post, last, piece } => {
                self.schema.extend_from_slice(&piece);
                if last {
                    let sql = String::from_utf8(std::mem::take(&mut self.schema))
                        .map_err(|_| Error::Protocol("the schema is not UTF-8".into()))?;
                    self.target.load_schema(&sql, post).await?;
                }
            }
            Frame::CopyTable { part, table } => self.target.begin_part(part, &table).await?,
            Frame::CopyRows { part, data, .. } => self.target.copy_rows(part, data).await?,
            Frame::CopyTableEnd { part, rows, .. } => self.target.end_part(part, rows).await?,
            Frame::CopyEnd => {
                let lsn = self
                    .consistent_point
                    .take()
                    .ok_or_else(|| Error::Protocol("a copy ends that did not begin".into()))?;
                self.settled = self.target.end_copy(lsn).await?;
                self.progress.applied = lsn;
                self.moved(lsn, true);
                self.tell(Done::Copied(lsn, self.settled));
            }
            other => return Err(Error::Protocol(format!("frame kind {} in a copy", other.kind()))),
        }
        Ok(())
    }
}

fn note(progress: &mut Progress, change: &Change) {
    if let Some(generation) = change.marker() {
        progress.marker = Some(generation);
        progress.rows_after_marker = 0;
    } else if !matches!(change, Change::Message { .. }) {
        progress.changes += 1;
        progress.rows_after_marker += u64::from(progress.marker.is_some());
    }
}

/// A transaction that comes in pieces.
struct Large {
    end: Lsn,
    decoder: large::Decoder,
    /// Not applied yet, and the credit that they hold.
    changes: Vec<Change>,
    bytes: u64,
    /// What there will be to tell when it is committed.
    progress: Progress,
}

impl Large {
    fn new(header: &LargeHeader, progress: Progress) -> Self {
        Self {
            end: header.end_lsn,
            decoder: large::Decoder::default(),
            changes: Vec::new(),
            bytes: 0,
            progress,
        }
    }

    fn feed(&mut self, piece: Bytes) -> Result<(), Error> {
        self.bytes += piece.len() as u64;
        self.decoder.feed(piece, &mut self.changes)
    }
}

#[derive(Default)]
struct Group {
    transactions: Vec<Transaction>,
    changes: usize,
    bytes: u64,
    position: Option<Lsn>,
    /// It was told twice.
    again: bool,
}

impl Group {
    fn add(&mut self, transaction: Transaction, bytes: u64) {
        self.changes += transaction.changes.len().max(1);
        self.bytes += bytes;
        self.transactions.push(transaction);
    }

    fn stand_at(&mut self, lsn: Lsn) {
        self.again |= self.position == Some(lsn);
        self.position = Some(lsn);
    }

    /// How long to wait for more, if at all, so long after it began.
    fn worth_waiting(&self, after: Duration) -> Option<Duration> {
        if self.changes >= BUSY && self.changes as u128 >= PACE * after.as_millis() {
            return (after < LINGER).then_some(GAP);
        }
        let positions = !self.transactions.is_empty()
            && self.transactions.iter().all(|transaction| transaction.changes.is_empty());
        (positions && after < ALONE).then_some(ALONE)
    }
}
