//! The half at the source.

use std::future::ready;
use std::path::PathBuf;
use std::pin::pin;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::FusedFuture;
use tokio::sync::{mpsc, watch};
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_postgres::Client;
use tokio_util::sync::CancellationToken;

use super::changes::{Changes, Forward, Found};
use super::copying::Produced;
use super::progress::CopyProgress;
use super::transport::{Joined, closed, write};
use super::{OPENING, TICK, copying};
use crate::copy::{CopyOptions, Lease};
use crate::error::Error;
use crate::identity::{self, SourceId, identify};
use crate::link::LinkRecv;
use crate::lsn::Lsn;
use crate::pgoutput::Event;
use crate::postgres::backlog::{Backlog, Retained};
use crate::postgres::stream::{Feedback, ReplicationStream, StreamEvent};
use crate::postgres::{Dsn, connect, slot};
use crate::session::Sender;
use crate::spill::{Committed, LargeTransaction, OpenTransactions, Spill};
use crate::status::{CopyStage, Phase, StreamStatus};
use crate::wire::{Frame, KeptTable, Progress, Resume, StreamSpec, Version};

/// How often the source is asked where it is, and told that we live.
const REPORT: Duration = Duration::from_millis(500);

/// What the half at the source works with.
pub(super) struct Source<'a> {
    pub(super) dsn: &'a Dsn,
    pub(super) bin: Option<PathBuf>,
    pub(super) spill: &'a Spill,
    pub(super) copy: &'a CopyOptions,
}

pub(super) async fn run(
    source: Source<'_>,
    spec: &StreamSpec,
    mut joined: Joined,
    status: &watch::Sender<StreamStatus>,
    cancel: &CancellationToken,
) -> Result<(), Error> {
    status.send_modify(|status| status.phase = Phase::Connecting);
    let (resume, kept) = tokio::select! {
        () = cancel.cancelled() => return Ok(()),
        resume = resume(&mut joined, status) => resume?,
    };
    let (outgoing, queue) = mpsc::unbounded_channel();
    let mut pump = Pump {
        machine: Sender::new(joined.framing, resume),
        synchronous: spec.synchronous,
        incoming: joined.receiver,
        outgoing,
        status,
        settled: resume.settled,
        copy: CopyProgress::default(),
    };
    let mut writer = pin!(write(joined.sender, queue).fuse());
    let result = tokio::select! {
        biased;
        () = cancel.cancelled() => Ok(()),
        result = pump.run(&source, spec, resume, &kept) => result,
        result = &mut writer => result.and_then(|()| Err(closed())),
    };
    let stopped = Error::Link("stopped".into());
    pump.machine.handle_failure(result.as_ref().err().unwrap_or(&stopped), crate::clock::now());
    pump.flush();
    // The receiving half stays until the reason is out: dropping it would reset the link.
    let Pump { outgoing, incoming: _incoming, .. } = pump;
    drop(outgoing);
    // Best effort: the reason should reach the other side.
    if !writer.is_terminated() {
        let _ = tokio::time::timeout(Duration::from_secs(1), writer).await;
    }
    result
}

/// Where the target stands.
pub(super) async fn resume(
    joined: &mut Joined,
    status: &watch::Sender<StreamStatus>,
) -> Result<(Resume, Vec<KeptTable>), Error> {
    let first = {
        let mut hearing = pin!(joined.hear(OPENING));
        if let Ok(heard) = timeout(OPENING, &mut hearing).await {
            heard?
        } else {
            // It lives, and would have given up by now if it did not know where it stands.
            status.send_modify(|status| status.phase = CopyProgress::finishing(crate::clock::now()));
            hearing.await?
        }
    };
    let resume = match first {
        Frame::Resume(resume) => resume,
        other => return Err(Error::Protocol(format!("frame kind {} for a resume", other.kind()))),
    };
    let mut kept = Vec::new();
    for _ in 0..resume.kept {
        match joined.hear(OPENING).await? {
            Frame::Kept(table) => kept.push(table),
            other => return Err(Error::Protocol(format!("frame kind {} for a kept table", other.kind()))),
        }
    }
    Ok((resume, kept))
}

struct Pump<'a> {
    machine: Sender,
    /// Commits at the source wait for what we report.
    synchronous: bool,
    incoming: Box<dyn LinkRecv>,
    outgoing: mpsc::UnboundedSender<Bytes>,
    status: &'a watch::Sender<StreamStatus>,
    /// The target is at one point once it has applied everything up to here.
    settled: Lsn,
    copy: CopyProgress,
}

impl Pump<'_> {
    fn flush(&mut self) {
        while let Some(message) = self.machine.poll_message() {
            // A writer that is gone ends the session by itself.
            let _ = self.outgoing.send(message);
        }
    }

    fn tell(&mut self) {
        self.flush();
        let now = crate::clock::now();
        let settling = self.machine.progress().applied < self.settled;
        if settling {
            self.copy.stage = CopyStage::Settling;
        }
        self.status.send_modify(|status| {
            self.machine.describe(status, now);
            status.phase = if settling { self.copy.phase(now) } else { Phase::Streaming };
        });
    }

    fn message(&mut self, message: Option<Bytes>) -> Result<(), Error> {
        self.machine.handle_message(message.ok_or_else(closed)?, crate::clock::now())
    }

    fn position(&mut self, lsn: Lsn) -> Result<(), Error> {
        let now = crate::clock::now();
        if self.synchronous {
            return self.machine.handle_awaited_position(lsn, now);
        }
        self.machine.handle_position(lsn, now);
        Ok(())
    }

    async fn run(
        &mut self,
        source: &Source<'_>,
        spec: &StreamSpec,
        resume: Resume,
        kept: &[KeptTable],
    ) -> Result<(), Error> {
        let stands = async {
            let client = connect(source.dsn, &format!("godwit check {}", spec.slot)).await?;
            let found = identify(&client).await?;
            if resume.copied {
                // Before anything is asked of its slots: another cluster's may have the same names.
                identity::check_history(&client, &found, resume.source, resume.applied, &spec.slot).await?;
            }
            Ok((client, found))
        };
        let (client, found) = self.meanwhile(in_time(stands)).await?;
        self.machine.handle_identity(found.id, crate::clock::now());
        let from = if resume.copied {
            self.meanwhile(in_time(examine(&client, spec, resume))).await?;
            resume.applied
        } else {
            self.meanwhile(in_time(identity::forgive(&client, &spec.slot))).await?;
            self.copy(source, spec, kept).await?
        };
        drop(client);
        self.stream(source, spec, from, found.id).await
    }

    async fn copy(
        &mut self,
        source: &Source<'_>,
        spec: &StreamSpec,
        kept: &[KeptTable],
    ) -> Result<Lsn, Error> {
        let mut lease = self.meanwhile(source.copy.snapshots.lease(&spec.slot)).await?;
        let copied = self.produce(source, spec, kept, &mut lease).await?;
        lease.set(None);
        self.settled = copied.settled;
        Ok(copied.consistent_point)
    }

    /// Until the target has committed the copy.
    async fn produce(
        &mut self,
        source: &Source<'_>,
        spec: &StreamSpec,
        kept: &[KeptTable],
        lease: &mut Lease,
    ) -> Result<Produced, Error> {
        let (sender, mut frames) = mpsc::channel(8);
        let resumable = self.machine.version() >= Version::V3;
        let mut producer = Box::pin(copying::produce(source, spec, kept, resumable, lease, sender));
        let mut produced = None;
        let mut tick = ticker(TICK);
        loop {
            if let Some(produced) = produced.filter(|_| self.machine.copied()) {
                return Ok(produced);
            }
            tokio::select! {
                done = &mut producer, if produced.is_none() => produced = Some(done?),
                Some(frame) = frames.recv(), if self.machine.wants_more() => {
                    self.copy.note(&frame, crate::clock::now());
                    self.machine.handle_copy(frame, crate::clock::now());
                    self.flush();
                }
                message = self.incoming.recv() => self.message(message?)?,
                _ = tick.tick() => {
                    self.machine.handle_tick(crate::clock::now())?;
                    self.status.send_modify(|status| status.phase = self.copy.phase(crate::clock::now()));
                }
            }
            self.flush();
        }
    }

    async fn stream(
        &mut self,
        source: &Source<'_>,
        spec: &StreamSpec,
        from: Lsn,
        id: SourceId,
    ) -> Result<(), Error> {
        let (slot, publication) = (&spec.slot, &spec.publication);
        let backlog = self.meanwhile(Backlog::open(source.dsn, slot, publication, from, id)).await?;
        let mut from = from;
        if let Some(backlog) = backlog {
            tracing::info!(stream = slot, at = %from, newest = %backlog.newest(), "reading the backlog");
            self.tell();
            let changes = Changes::Retained(Box::new(backlog), Forward::default());
            from = self.follow(changes, OpenTransactions::new(source.spill.clone())).await?;
        }
        // Starting may wait for an older walsender.
        let start = ReplicationStream::start_at(source.dsn, slot, publication, from, Some(id));
        let stream = self.meanwhile(start).await?;
        self.tell();
        self.follow(Changes::Live(stream), OpenTransactions::new(source.spill.clone())).await?;
        Ok(())
    }

    /// Waits for `work`; heartbeats go on.
    async fn meanwhile<T>(&mut self, work: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
        let mut work = pin!(work);
        let mut tick = ticker(TICK);
        loop {
            tokio::select! {
                done = &mut work => return done,
                message = self.incoming.recv() => self.message(message?)?,
                _ = tick.tick() => self.machine.handle_tick(crate::clock::now())?,
            }
            self.flush();
        }
    }

    /// Hands on what comes, as fast as it is taken. While nothing is taken nothing is read either, and the server waits; the
    /// reports that keep it from giving us up go out by the clock, whatever else is stuck. Ends at a backlog's end, with the
    /// position to go on from.
    async fn follow(&mut self, mut changes: Changes, mut open: OpenTransactions) -> Result<Lsn, Error> {
        let (mut tick, mut report) = (ticker(TICK), ticker(REPORT));
        let mut reported = Feedback::default();
        // Committed, and on its way over the link.
        let mut large: Option<Box<LargeTransaction>> = None;
        let mut end = None;
        loop {
            let mut ask = false;
            let mut reply = false;
            let wanted = self.machine.wants_more();
            let read = wanted && large.is_none();
            tokio::select! {
                // Again and again with the others in turn: pieces follow each other without a wait.
                () = ready(()), if wanted && large.is_some() => large = self.piece(large.take()).await?,
                found = changes.next_or_hold(read) => {
                    let mut found = Some(found?);
                    while let Some(next) = found {
                        match next {
                            Found::Live(StreamEvent::Transaction(event)) => {
                                if let Some(committed) = open.handle(event).await? {
                                    large = self.committed(committed)?;
                                }
                            }
                            Found::Live(StreamEvent::Keepalive { wal_end, reply_requested }) => {
                                if reply_requested {
                                    self.machine.handle_demanded_position(wal_end, crate::clock::now())?;
                                } else {
                                    self.position(wal_end)?;
                                }
                                reply |= reply_requested;
                            }
                            Found::Retained(Retained::Event(event)) => self.forward(event, &mut changes)?,
                            Found::Retained(Retained::Position(lsn)) => self.position(lsn)?,
                            Found::Retained(Retained::End(lsn)) => end = Some(lsn),
                        }
                        // What came with it; the buffer bounds how much that is.
                        let more = end.is_none() && large.is_none() && self.machine.wants_more() && !reply;
                        found = if more { changes.try_next()? } else { None };
                    }
                }
                message = self.incoming.recv() => self.message(message?)?,
                _ = tick.tick() => {
                    self.machine.handle_tick(crate::clock::now())?;
                    self.status.send_modify(|status| status.open = open.work());
                }
                // Asking for a position makes sense only if the answer is read.
                _ = report.tick() => (ask, reply) = (read, true),
            }
            self.machine.handle_source(changes.newest());
            self.tell();
            if let Some(end) = end {
                return Ok(end);
            }
            let feedback = feedback(&self.machine.progress());
            // What nobody waits for can be told by the clock, but for what lets the server forget.
            let news = if self.synchronous { feedback != reported } else { feedback.flush != reported.flush };
            if ask || reply || news {
                reported = feedback;
                changes.report(Feedback { reply_requested: ask, ..feedback })?;
            }
        }
    }

    fn forward(&mut self, event: Event, changes: &mut Changes) -> Result<(), Error> {
        if let Changes::Retained(backlog, forward) = changes {
            forward.handle(event, backlog.header(), &mut self.machine)?;
        }
        Ok(())
    }

    /// Hands on a transaction; gives it back if it goes in pieces.
    fn committed(&mut self, committed: Committed) -> Result<Option<Box<LargeTransaction>>, Error> {
        let now = crate::clock::now();
        match committed {
            Committed::Whole(transaction) => {
                self.machine.handle_transaction(&transaction, now)?;
                Ok(None)
            }
            Committed::Large(large) => Ok(self.machine.handle_large(large.header(), now).then_some(large)),
        }
    }

    /// Hands on the next piece; gives back what has more of them.
    async fn piece(
        &mut self,
        large: Option<Box<LargeTransaction>>,
    ) -> Result<Option<Box<LargeTransaction>>, Error> {
        let Some(mut large) = large else { return Ok(None) };
        let piece = large.next_piece().await?;
        let now = crate::clock::now();
        match piece {
            Some(piece) => {
                self.machine.handle_large_piece(piece, now);
                Ok(Some(large))
            }
            None => {
                self.machine.handle_large_end(now);
                Ok(None)
            }
        }
    }
}

/// What the source may know: received by the target, durable there, visible there. Only what is durable lets the source
/// forget; it is the target's checkpoint, never less and never more.
fn feedback(progress: &Progress) -> Feedback {
    Feedback {
        write: progress.received.max(progress.applied),
        flush: progress.durable,
        apply: progress.applied.max(progress.durable),
        reply_requested: false,
    }
}

/// What is asked of the source before the stream begins: the other side waits for as long as it hears from us.
async fn in_time<T>(asking: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    let late = |_| Error::io("ask the source where it stands")(std::io::ErrorKind::TimedOut.into());
    timeout(OPENING, asking).await.map_err(late)?
}

/// Can the slot still serve a target that stands there?
async fn examine(client: &Client, spec: &StreamSpec, resume: Resume) -> Result<(), Error> {
    let Some(slot) = slot::slot_info(client, &spec.slot).await? else {
        return Err(Error::Server {
            context: "resume".into(),
            sqlstate: "42704".into(),
            message: format!("replication slot \"{}\" does not exist", spec.slot),
        });
    };
    if let Some(why) = slot.lost() {
        return Err(Error::Server {
            context: "resume".into(),
            sqlstate: "55000".into(),
            message: format!("can no longer get changes from replication slot \"{}\": {why}", spec.slot),
        });
    }
    if let Some(confirmed) = slot.confirmed_flush.filter(|confirmed| *confirmed > resume.applied) {
        return Err(Error::Unready(format!(
            "slot {} is at {confirmed}, beyond the target's {}: changes are missing, the target needs a new copy",
            spec.slot, resume.applied
        )));
    }
    // A new one would not bring back what was written while there was none.
    if !slot::has_publication(client, &spec.publication).await? {
        return Err(Error::Server {
            context: format!("resume from slot {}", spec.slot),
            sqlstate: "42704".into(),
            message: format!("publication \"{}\" does not exist", spec.publication),
        });
    }
    // A table that is new here is not added: its rows from before would be missing. See `crate::drift`.
    Ok(())
}

fn ticker(every: Duration) -> tokio::time::Interval {
    let mut ticker = interval(every);
    ticker.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticker
}
