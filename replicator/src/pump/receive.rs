//! The half at the target.

use std::pin::pin;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::{mpsc, watch};
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use super::TICK;
use super::send::CopyProgress;
use super::transport::{Joined, closed, write};
use crate::apply::{GROUP_BYTES, GROUP_CHANGES, Target};
use crate::change::{Change, MARKER_PREFIX, Transaction};
use crate::error::Error;
use crate::link::LinkRecv;
use crate::lsn::Lsn;
use crate::session::{Receiver, Work};
use crate::status::{Phase, StreamStatus};
use crate::wire::{Frame, Progress, Resume};

/// The checkpoint follows an idle source no more often than this …
const CHECKPOINT_EVERY: Duration = Duration::from_secs(1);
/// … unless it moved less than [`SMALL_STEP`] bytes: then only so often. (Two streams in opposite directions would
/// otherwise keep each other busy with their checkpoints.)
const CHECKPOINT_SMALL: Duration = Duration::from_secs(10);
const SMALL_STEP: u64 = 64 << 10;

pub(super) async fn run(
    mut target: Box<dyn Target>,
    joined: Joined,
    status: &watch::Sender<StreamStatus>,
    cancel: &CancellationToken,
) -> Result<(), Error> {
    status.send_modify(|status| status.phase = Phase::Connecting);
    let Joined { mut framing, mut sender, receiver } = joined;
    let resume = tokio::select! {
        () = cancel.cancelled() => return Ok(()),
        resume = target.resume() => resume,
    };
    let resume = match resume {
        Ok(resume) => resume,
        Err(error) => {
            let failed = Frame::Failed { kind: error.kind(), reason: crate::session::chain(&error) };
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
        machine: Receiver::new(framing, resume, crate::clock::now()),
        incoming: receiver,
        outgoing,
        work,
        copy: CopyProgress::default(),
        status,
    };
    pump.flush();
    status.send_modify(|status| {
        status.phase = if resume.copied { Phase::Streaming } else { pump.copy.phase() };
    });
    let mut writer = pin!(write(sender, queue));
    let mut applier = pin!(Applier::new(target, resume, done).run(todo));
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
    let _ = tokio::time::timeout(Duration::from_secs(1), writer).await;
    result
}

struct Pump<'a> {
    machine: Receiver,
    incoming: Box<dyn LinkRecv>,
    outgoing: mpsc::UnboundedSender<Bytes>,
    /// Bounded by the credit that the machine gives.
    work: mpsc::UnboundedSender<Work>,
    copy: CopyProgress,
    status: &'a watch::Sender<StreamStatus>,
}

/// What the applier tells.
enum Done {
    Held(u64),
    Copied(Lsn),
    Applied(Progress),
}

impl Pump<'_> {
    fn flush(&mut self) {
        while let Some(message) = self.machine.poll_message() {
            // A writer that is gone ends the session by itself.
            let _ = self.outgoing.send(message);
        }
    }

    async fn run(&mut self, mut finished: mpsc::UnboundedReceiver<Done>) -> Result<(), Error> {
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut copying = false;
        loop {
            tokio::select! {
                Some(done) = finished.recv() => {
                    let now = crate::clock::now();
                    match done {
                        Done::Held(bytes) => self.machine.handle_done(bytes, now),
                        Done::Applied(progress) => self.machine.handle_applied(progress, now),
                        Done::Copied(lsn) => {
                            self.machine.handle_copied(lsn, now);
                            copying = false;
                            self.status.send_modify(|status| status.phase = Phase::Streaming);
                        }
                    }
                }
                message = self.incoming.recv() => {
                    self.machine.handle_message(message?.ok_or_else(closed)?, crate::clock::now())?;
                    while let Some(work) = self.machine.poll_work() {
                        if let Work::Copy(frame) = &work {
                            self.copy.note(frame);
                            copying = true;
                        }
                        if let Work::Transaction { transaction, .. } = &work {
                            self.status.borrow().recorder.note(&transaction.changes);
                        }
                        let _ = self.work.send(work);
                    }
                }
                _ = tick.tick() => self.machine.handle_tick(crate::clock::now())?,
            }
            self.flush();
            let now = crate::clock::now();
            self.status.send_modify(|status| {
                self.machine.describe(status, now);
                if copying {
                    status.phase = self.copy.phase();
                }
            });
        }
    }
}

struct Applier {
    target: Box<dyn Target>,
    done: mpsc::UnboundedSender<Done>,
    progress: Progress,
    checkpointed: Instant,
    consistent_point: Option<Lsn>,
    schema: Vec<u8>,
}

impl Applier {
    fn new(target: Box<dyn Target>, resume: Resume, done: mpsc::UnboundedSender<Done>) -> Self {
        let progress = Progress {
            applied: resume.applied,
            durable: resume.applied,
            marker: resume.marker,
            ..Progress::default()
        };
        Self {
            target,
            done,
            progress,
            checkpointed: crate::clock::now(),
            consistent_point: None,
            schema: Vec::new(),
        }
    }

    fn tell(&self, done: Done) {
        let _ = self.done.send(done);
    }

    async fn run(mut self, mut todo: mpsc::UnboundedReceiver<Work>) -> Result<(), Error> {
        while let Some(first) = todo.recv().await {
            let mut group = Group::default();
            let mut next = Some(first);
            // Whatever is there already, up to the bounds; never waits for more.
            while let Some(work) = next.take() {
                match work {
                    Work::Copy(frame) => {
                        let held = frame.payload_len() as u64;
                        self.copy(frame).await?;
                        self.tell(Done::Held(held));
                    }
                    Work::Position(lsn) => group.position = Some(lsn),
                    Work::Transaction { transaction, bytes } => group.add(transaction, bytes),
                }
                if group.changes < GROUP_CHANGES && group.bytes < GROUP_BYTES {
                    next = todo.try_recv().ok();
                }
            }
            self.apply(group).await?;
        }
        Ok(())
    }

    async fn apply(&mut self, group: Group) -> Result<(), Error> {
        let Group { transactions, bytes, position, .. } = group;
        if let Some(last) = transactions.last() {
            self.target.apply(&transactions).await?;
            self.progress.durable = last.end_lsn;
            self.progress.applied = last.end_lsn;
            self.checkpointed = crate::clock::now();
            for transaction in &transactions {
                self.count(transaction);
            }
            self.tell(Done::Held(bytes));
        }
        if let Some(lsn) = position.filter(|lsn| *lsn > self.progress.applied) {
            self.progress.applied = lsn;
            let step = lsn.bytes_since(self.progress.durable);
            let pause = if step < SMALL_STEP { CHECKPOINT_SMALL } else { CHECKPOINT_EVERY };
            if self.checkpointed.elapsed() >= pause {
                self.target.checkpoint(lsn).await?;
                self.progress.durable = lsn;
                self.checkpointed = crate::clock::now();
            }
        } else if transactions.is_empty() {
            return Ok(());
        }
        self.tell(Done::Applied(self.progress));
        Ok(())
    }

    fn count(&mut self, transaction: &Transaction) {
        self.progress.transactions += 1;
        for change in &transaction.changes {
            match change {
                Change::Message { prefix, content } => {
                    if prefix == MARKER_PREFIX
                        && let Some(generation) =
                            std::str::from_utf8(content).ok().and_then(|text| text.parse().ok())
                    {
                        self.progress.marker = Some(generation);
                        self.progress.rows_after_marker = 0;
                    }
                }
                _ => {
                    self.progress.changes += 1;
                    self.progress.rows_after_marker += u64::from(self.progress.marker.is_some());
                }
            }
        }
    }

    async fn copy(&mut self, frame: Frame) -> Result<(), Error> {
        match frame {
            Frame::CopyBegin { consistent_point, .. } => {
                self.target.begin_copy().await?;
                self.consistent_point = Some(consistent_point);
            }
            Frame::CopySchema { post, last, piece } => {
                self.schema.extend_from_slice(&piece);
                if last {
                    let sql = String::from_utf8(std::mem::take(&mut self.schema))
                        .map_err(|_| Error::Protocol("the schema is not UTF-8".into()))?;
                    self.target.load_schema(&sql, post).await?;
                }
            }
            Frame::CopyTable(table) => self.target.begin_table(&table).await?,
            Frame::CopyRows { data } => self.target.copy_rows(data).await?,
            Frame::CopyTableEnd => {
                self.target.end_table().await?;
            }
            Frame::CopyEnd => {
                let lsn = self
                    .consistent_point
                    .take()
                    .ok_or_else(|| Error::Protocol("a copy ends that did not begin".into()))?;
                self.target.end_copy(lsn).await?;
                self.progress.applied = lsn;
                self.progress.durable = lsn;
                self.checkpointed = crate::clock::now();
                self.tell(Done::Copied(lsn));
            }
            other => return Err(Error::Protocol(format!("frame kind {} in a copy", other.kind()))),
        }
        Ok(())
    }
}

#[derive(Default)]
struct Group {
    transactions: Vec<Transaction>,
    changes: usize,
    bytes: u64,
    position: Option<Lsn>,
}

impl Group {
    fn add(&mut self, transaction: Transaction, bytes: u64) {
        self.changes += transaction.changes.len().max(1);
        self.bytes += bytes;
        self.transactions.push(transaction);
    }
}
