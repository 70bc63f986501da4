//! The half at the source.

use std::path::PathBuf;
use std::pin::pin;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{mpsc, watch};
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use super::transport::{Joined, closed, write};
use super::{OPENING, TICK, copying};
use crate::error::Error;
use crate::link::LinkRecv;
use crate::lsn::Lsn;
use crate::postgres::stream::{Feedback, ReplicationStream, StreamEvent};
use crate::postgres::{connect, slot};
use crate::session::Sender;
use crate::status::{Phase, StreamStatus};
use crate::wire::{Frame, Resume, StreamSpec};

/// How often the source is asked where it is, and told that we live.
const REPORT: Duration = Duration::from_millis(500);

pub(super) async fn run(
    dsn: &tokio_postgres::Config,
    bin: Option<PathBuf>,
    spec: &StreamSpec,
    mut joined: Joined,
    status: &watch::Sender<StreamStatus>,
    cancel: &CancellationToken,
) -> Result<(), Error> {
    status.send_modify(|status| status.phase = Phase::Connecting);
    let resume = match joined.hear(OPENING).await? {
        Frame::Resume(resume) => resume,
        other => return Err(Error::Protocol(format!("frame kind {} for a resume", other.kind()))),
    };
    let (outgoing, queue) = mpsc::unbounded_channel();
    let mut pump =
        Pump { machine: Sender::new(joined.framing, resume), incoming: joined.receiver, outgoing, status };
    let mut writer = pin!(write(joined.sender, queue));
    let result = tokio::select! {
        biased;
        () = cancel.cancelled() => Ok(()),
        result = pump.run(dsn, bin, spec, resume) => result,
        result = &mut writer => result.and_then(|()| Err(closed())),
    };
    let stopped = Error::Link("stopped".into());
    pump.machine.handle_failure(result.as_ref().err().unwrap_or(&stopped), crate::clock::now());
    pump.flush();
    // The receiving half stays until the reason is out: dropping it would reset the link.
    let Pump { outgoing, incoming: _incoming, .. } = pump;
    drop(outgoing);
    // Best effort: the reason should reach the other side.
    let _ = tokio::time::timeout(Duration::from_secs(1), writer).await;
    result
}

struct Pump<'a> {
    machine: Sender,
    incoming: Box<dyn LinkRecv>,
    outgoing: mpsc::UnboundedSender<Bytes>,
    status: &'a watch::Sender<StreamStatus>,
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
        self.status.send_modify(|status| self.machine.describe(status, now));
    }

    fn message(&mut self, message: Option<Bytes>) -> Result<(), Error> {
        self.machine.handle_message(message.ok_or_else(closed)?, crate::clock::now())
    }

    async fn run(
        &mut self,
        dsn: &tokio_postgres::Config,
        bin: Option<PathBuf>,
        spec: &StreamSpec,
        resume: Resume,
    ) -> Result<(), Error> {
        let from = if resume.copied {
            ready(dsn, spec, resume).await?;
            resume.applied
        } else {
            self.copy(dsn, bin, spec).await?
        };
        self.stream(dsn, spec, from).await
    }

    async fn copy(
        &mut self,
        dsn: &tokio_postgres::Config,
        bin: Option<PathBuf>,
        spec: &StreamSpec,
    ) -> Result<Lsn, Error> {
        let (sender, mut frames) = mpsc::channel(2);
        let mut producer = pin!(copying::produce(dsn, bin, spec, sender));
        let mut consistent_point = None;
        let mut tick = ticker(TICK);
        let mut progress = CopyProgress::default();
        loop {
            if let Some(point) = consistent_point.filter(|_| self.machine.copied()) {
                return Ok(point);
            }
            tokio::select! {
                done = &mut producer, if consistent_point.is_none() => consistent_point = Some(done?),
                Some(frame) = frames.recv(), if self.machine.wants_more() => {
                    progress.note(&frame);
                    self.machine.handle_copy(frame, crate::clock::now());
                    self.flush();
                }
                message = self.incoming.recv() => self.message(message?)?,
                _ = tick.tick() => {
                    self.machine.handle_tick(crate::clock::now())?;
                    self.status.send_modify(|status| status.phase = progress.phase());
                }
            }
            self.flush();
        }
    }

    async fn stream(
        &mut self,
        dsn: &tokio_postgres::Config,
        spec: &StreamSpec,
        from: Lsn,
    ) -> Result<(), Error> {
        let mut stream = {
            // Starting may wait for an older walsender; heartbeats go on.
            let mut starting = pin!(ReplicationStream::start(dsn, &spec.slot, &spec.publication, from));
            let mut tick = ticker(TICK);
            loop {
                tokio::select! {
                    started = &mut starting => break started?,
                    message = self.incoming.recv() => self.message(message?)?,
                    _ = tick.tick() => self.machine.handle_tick(crate::clock::now())?,
                }
                self.flush();
            }
        };
        self.status.send_modify(|status| status.phase = Phase::Streaming);
        let (mut tick, mut report) = (ticker(TICK), ticker(REPORT));
        let mut reported = Lsn::ZERO;
        loop {
            let mut ask = false;
            let mut reply = false;
            tokio::select! {
                event = stream.next(), if self.machine.wants_more() => match event? {
                    StreamEvent::Transaction(transaction) => {
                        self.status.borrow().recorder.note(&transaction.changes);
                        self.machine.handle_transaction(&transaction, crate::clock::now())?;
                    }
                    StreamEvent::Keepalive { wal_end, reply_requested } => {
                        self.machine.handle_position(wal_end, crate::clock::now());
                        reply = reply_requested;
                    }
                },
                message = self.incoming.recv() => self.message(message?)?,
                _ = tick.tick() => self.machine.handle_tick(crate::clock::now())?,
                _ = report.tick() => ask = true,
            }
            self.machine.handle_source(stream.wal_end());
            self.tell();
            let progress = self.machine.progress();
            if ask || reply || progress.durable > reported {
                reported = progress.durable;
                // Only what the target has on its disk; the source forgets what is reported.
                let feedback = Feedback {
                    write: progress.durable,
                    flush: progress.durable,
                    apply: progress.durable,
                    reply_requested: ask,
                };
                stream.report(feedback).await?;
            }
        }
    }
}

/// Can the slot still serve a target that stands there?
async fn ready(dsn: &tokio_postgres::Config, spec: &StreamSpec, resume: Resume) -> Result<(), Error> {
    let client = connect(dsn, &format!("godwit check {}", spec.slot)).await?;
    let Some(slot) = slot::slot_info(&client, &spec.slot).await? else {
        return Err(Error::Unready(format!(
            "slot {} is gone from the source: the target needs a new copy",
            spec.slot
        )));
    };
    if slot.wal_status == "lost" {
        return Err(Error::Unready(format!("slot {} has lost WAL: the target needs a new copy", spec.slot)));
    }
    if let Some(confirmed) = slot.confirmed_flush.filter(|confirmed| *confirmed > resume.applied) {
        return Err(Error::Unready(format!(
            "slot {} is at {confirmed}, beyond the target's {}: changes are missing, the target needs a new copy",
            spec.slot, resume.applied
        )));
    }
    slot::ensure_publication(&client, &spec.publication).await?;
    Ok(())
}

fn ticker(every: Duration) -> tokio::time::Interval {
    let mut ticker = interval(every);
    ticker.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticker
}

/// What of the copy has passed, for the status.
#[derive(Debug, Default)]
pub(super) struct CopyProgress {
    tables: u32,
    tables_done: u32,
    rows: u64,
    bytes: u64,
    rows_estimate: u64,
}

impl CopyProgress {
    pub(super) fn note(&mut self, frame: &Frame) {
        match frame {
            Frame::CopyBegin { tables, rows_estimate, .. } => {
                (self.tables, self.rows_estimate) = (*tables, *rows_estimate);
            }
            Frame::CopyRows { data } => {
                self.bytes += data.len() as u64;
                self.rows += data.iter().filter(|byte| **byte == b'\n').count() as u64;
            }
            Frame::CopyTableEnd => self.tables_done += 1,
            _ => {}
        }
    }

    pub(super) fn phase(&self) -> Phase {
        Phase::Copying {
            tables_done: self.tables_done,
            tables: self.tables,
            rows: self.rows,
            bytes: self.bytes,
            rows_estimate: self.rows_estimate,
        }
    }
}
