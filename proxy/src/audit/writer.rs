//! The thread that writes: takes what there is, writes it with one sync, and answers those who wait.

use std::collections::VecDeque;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use crossbeam::channel::{Receiver, RecvTimeoutError, Sender, TrySendError, bounded};
use migration::units::Timestamp;
use tokio::sync::oneshot;

use super::chain::{self, Tip};
use super::checkpoint::Signer;
use super::entry::Entry;
use super::folder::{LONGEST, Open};
use crate::clock;
use crate::telemetry::names;

/// Records on their way to the disk, at most.
pub(super) const QUEUE: usize = 4096;
/// Records that one sync takes, at most.
const BATCH: usize = 256;
/// Records that are kept while the disk takes none.
const KEPT: usize = 10_000;
/// A checkpoint comes after so many records, or after this time if there was one at all.
const CHECKPOINT_RECORDS: u64 = 1000;
const CHECKPOINT_TIME: Duration = Duration::from_secs(60);
/// How often a disk that failed is tried again.
const RETRY: Duration = Duration::from_secs(1);
/// How long a record is waited for; a disk that takes longer does not answer.
const PATIENCE: Duration = Duration::from_secs(5);
const SILENT: &str = "the disk does not answer";
/// How often a full queue is tried again by who waits for its end.
const FULL: Duration = Duration::from_millis(5);

/// Where and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The folder.
    pub directory: PathBuf,
    /// This node, in each record.
    pub node: String,
    /// A file is followed by the next once it is longer, bytes.
    pub rotate: u64,
}

/// A record could not be written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AuditError {
    /// And never will be.
    #[error("the audit cannot be written, so nothing is changed: {0}")]
    Refused(String),
    /// Not in time: it may be there later.
    #[error("the audit cannot be written, so nothing is changed: {SILENT}")]
    Late,
}

/// The way to the writer; cheap to clone.
#[derive(Clone)]
pub struct Audit {
    sender: Sender<Message>,
    failing: Arc<ArcSwapOption<String>>,
    /// Since when the writer is at the disk.
    busy: Arc<ArcSwapOption<Instant>>,
    /// Records that found the queue full, and of which there is no record.
    overflowed: Arc<AtomicU64>,
    directory: PathBuf,
}

pub(super) struct Message {
    /// None: whoever waits for the answer waits for what came before, and for its checkpoint.
    entry: Option<Entry>,
    at: Timestamp,
    answer: Option<oneshot::Sender<Result<(), AuditError>>>,
}

impl Audit {
    /// Opens the folder and starts the thread. A folder that cannot be used does not stop a node: its audit is then failing, and
    /// says why.
    pub fn start(settings: Settings) -> io::Result<Self> {
        let (audit, mut writer, messages) = Self::with_writer(settings);
        // Its error is in the state.
        let _ = writer.catch_up();
        std::thread::Builder::new().name("audit".into()).spawn(move || writer.run(&messages))?;
        Ok(audit)
    }

    /// With its writer, which has not begun, and what waits for that.
    pub(super) fn with_writer(settings: Settings) -> (Self, Writer, Receiver<Message>) {
        let (sender, messages) = bounded(QUEUE);
        let writer = Writer::new(settings);
        let audit = Self {
            sender,
            failing: writer.failing.clone(),
            busy: writer.busy.clone(),
            overflowed: writer.overflowed.clone(),
            directory: writer.settings.directory.clone(),
        };
        (audit, writer, messages)
    }

    /// Leaves a record without waiting for the disk; while that takes none, it is kept for later.
    pub fn note(&self, entry: Entry) {
        let message = Message { entry: Some(entry), at: clock::now(), answer: None };
        if let Err(TrySendError::Full(_)) = self.sender.try_send(message) {
            self.overflowed.fetch_add(1, Ordering::Relaxed);
            metrics::counter!(names::AUDIT_LOST).increment(1);
            tracing::error!("a record of the audit was lost: its writer does not keep up");
        }
    }

    /// Writes a record and returns when it is on disk, or is not in time. Safe to cancel: the record may then be written or not.
    pub async fn write(&self, entry: Entry) -> Result<(), AuditError> {
        let refused = |why: &str| Err(AuditError::Refused(why.to_owned()));
        if self.is_silent(clock::monotonic()) {
            return refused(SILENT);
        }
        let (answer, written) = oneshot::channel();
        let message = Message { entry: Some(entry), at: clock::now(), answer: Some(answer) };
        if self.sender.try_send(message).is_err() {
            return refused("its writer does not keep up");
        }
        match tokio::time::timeout(PATIENCE, written).await {
            Ok(Ok(written)) => written,
            Ok(Err(_)) => refused("its writer has ended"),
            Err(_) => Err(AuditError::Late),
        }
    }

    /// Waits until what was noted before is on disk, with a checkpoint; false where it is not after `patience`.
    pub async fn flush(&self, patience: Duration) -> bool {
        let (answer, written) = oneshot::channel();
        let mut message = Message { entry: None, at: clock::now(), answer: Some(answer) };
        let flushed = async {
            while let Err(refused) = self.sender.try_send(message) {
                let TrySendError::Full(back) = refused else { return false };
                message = back;
                tokio::time::sleep(FULL).await;
            }
            matches!(written.await, Ok(Ok(())))
        };
        tokio::time::timeout(patience, flushed).await.unwrap_or(false)
    }

    /// Why it cannot be written now; none: it can.
    pub fn failing(&self) -> Option<Arc<String>> {
        self.failing_at(clock::monotonic())
    }

    pub(super) fn failing_at(&self, now: Instant) -> Option<Arc<String>> {
        self.failing.load_full().or_else(|| self.is_silent(now).then(|| Arc::new(SILENT.to_owned())))
    }

    /// Whether the writer has been at the disk for longer than anybody waits.
    fn is_silent(&self, now: Instant) -> bool {
        self.busy.load().as_deref().is_some_and(|since| now.duration_since(*since) >= PATIENCE)
    }

    /// Whether it can be written now, for who collects metrics: a writer whose disk hangs cannot say so.
    pub fn measure(&self) {
        metrics::gauge!(names::AUDIT_FAILING).set(if self.failing().is_some() { 1.0 } else { 0.0 });
    }

    /// Where its files are.
    pub fn directory(&self) -> &std::path::Path {
        &self.directory
    }
}

pub(super) struct Writer {
    settings: Settings,
    open: Option<Open>,
    /// The last record, while the folder is not open.
    known: Option<Tip>,
    signer: Option<Signer>,
    pub(super) failing: Arc<ArcSwapOption<String>>,
    busy: Arc<ArcSwapOption<Instant>>,
    /// There is a record of that the audit begins.
    begun: bool,
    /// Bytes of unfinished records that were cut off, and of which there is no record.
    cut: u64,
    /// What the disk did not take.
    kept: VecDeque<(Entry, Timestamp)>,
    lost: u64,
    overflowed: Arc<AtomicU64>,
    since_checkpoint: u64,
    last_checkpoint: Instant,
}

impl Writer {
    /// That has not tried the disk yet.
    pub(super) fn new(settings: Settings) -> Self {
        Self {
            settings,
            open: None,
            known: None,
            signer: None,
            failing: Arc::default(),
            busy: Arc::default(),
            begun: false,
            cut: 0,
            kept: VecDeque::new(),
            lost: 0,
            overflowed: Arc::default(),
            since_checkpoint: 0,
            last_checkpoint: clock::monotonic(),
        }
    }

    pub(super) fn run(mut self, messages: &Receiver<Message>) {
        loop {
            let received = messages.recv_timeout(RETRY);
            self.busy.store(Some(Arc::new(clock::monotonic())));
            match received {
                Ok(first) => {
                    let mut batch = vec![first];
                    batch.extend(messages.try_iter().take(BATCH - 1));
                    self.take(batch);
                }
                Err(RecvTimeoutError::Timeout) => self.take(Vec::new()),
                Err(RecvTimeoutError::Disconnected) => {
                    self.checkpoint();
                    return;
                }
            }
            let due = self.since_checkpoint >= CHECKPOINT_RECORDS
                || (self.since_checkpoint > 0 && self.last_checkpoint.elapsed() >= CHECKPOINT_TIME);
            if due && self.failing.load().is_none() {
                self.checkpoint();
            }
            self.busy.store(None);
        }
    }

    fn take(&mut self, batch: Vec<Message>) {
        self.lost += self.overflowed.swap(0, Ordering::Relaxed);
        // What could not be written before comes before.
        let ready = if self.failing.load().is_some() { self.catch_up() } else { Ok(()) };
        let written = ready.and_then(|()| {
            let lost = Entry::Lost { records: self.lost };
            let lost = (self.lost > 0).then(|| (&lost, clock::now()));
            let records = batch.iter().filter_map(|message| Some((message.entry.as_ref()?, message.at)));
            let entries: Vec<_> = lost.into_iter().chain(records).collect();
            if entries.is_empty() { Ok(()) } else { self.append(&entries) }
        });
        if written.is_ok() {
            self.lost = 0;
            if batch.iter().any(|message| message.entry.is_none()) {
                self.checkpoint();
            }
        }
        for message in batch {
            match (message.answer, message.entry, &written) {
                (Some(answer), _, written) => {
                    // Whoever waited may have gone.
                    let _ = answer.send(written.clone().map_err(AuditError::Refused));
                }
                (None, Some(entry), Err(_)) => self.keep(entry, message.at),
                (None, ..) => {}
            }
        }
    }

    fn keep(&mut self, entry: Entry, at: Timestamp) {
        if self.kept.len() == KEPT {
            self.kept.pop_front();
            self.lost += 1;
            metrics::counter!(names::AUDIT_LOST).increment(1);
        }
        self.kept.push_back((entry, at));
    }

    /// Tries the disk, at the start and again, with what it did not take.
    pub(super) fn catch_up(&mut self) -> Result<(), String> {
        self.reopen().inspect_err(|why| self.state(Some(why.clone())))?;
        let opened = Entry::Opened { cut_bytes: self.cut };
        let lost = Entry::Lost { records: self.lost };
        let mut kept = std::mem::take(&mut self.kept);
        let mut entries: Vec<_> = kept.iter().map(|(entry, at)| (entry, *at)).collect();
        if self.lost > 0 {
            entries.insert(0, (&lost, clock::now()));
        }
        // That a disk takes records again is known once it has taken one.
        if !self.begun || entries.is_empty() {
            entries.insert(0, (&opened, clock::now()));
        }
        let written = self.append(&entries);
        drop(entries);
        match &written {
            Ok(()) => (self.begun, self.cut, self.lost) = (true, 0, 0),
            Err(_) => self.kept.append(&mut kept),
        }
        written
    }

    pub(super) fn append(&mut self, entries: &[(&Entry, Timestamp)]) -> Result<(), String> {
        let result = self.try_append(entries);
        match &result {
            Ok(()) => {
                self.since_checkpoint += entries.len() as u64;
                for (entry, _) in entries {
                    metrics::counter!(names::AUDIT_RECORDS, names::KIND => entry.kind()).increment(1);
                }
                self.state(None);
            }
            Err(why) => self.state(Some(why.clone())),
        }
        result
    }

    fn try_append(&mut self, entries: &[(&Entry, Timestamp)]) -> Result<(), String> {
        let Some(open) = &mut self.open else { return Err("its folder is not open".to_owned()) };
        let (mut tip, mut lines) = (open.tip.clone(), String::new());
        for (entry, at) in entries {
            let before = tip.clone();
            let mut line = chain::append(&mut tip, &self.settings.node, *at, entry);
            if line.as_ref().is_ok_and(|line| line.len() as u64 > LONGEST) {
                tip = before;
                let short = entry.shortened();
                line = short.and_then(|entry| chain::append(&mut tip, &self.settings.node, *at, &entry));
            }
            lines.push_str(&line.map_err(|error| error.to_string())?);
        }
        if open.length() > 0 && open.length() + lines.len() as u64 > self.settings.rotate {
            open.rotate().map_err(|error| error.to_string())?;
        }
        open.append(&lines, tip).map_err(|error| error.to_string())
    }

    fn reopen(&mut self) -> Result<(), String> {
        let directory = &self.settings.directory;
        self.known = self.open.take().map(|open| open.tip).or_else(|| self.known.take());
        let opened = Open::newest(directory, self.known.clone()).and_then(|open| {
            let signer = Signer::open(&directory.join("checkpoint.key"), &self.settings.node)?;
            Ok((open, signer))
        });
        match opened {
            Ok((open, signer)) => {
                self.cut += open.cut;
                (self.open, self.signer) = (Some(open), Some(signer));
                Ok(())
            }
            Err(error) => Err(error.to_string()),
        }
    }

    fn state(&mut self, failing: Option<String>) {
        let before = self.failing.load_full();
        match &failing {
            Some(why) if before.as_deref() != Some(why) => {
                tracing::error!(%why, "the audit cannot be written: changes are refused");
            }
            None if before.is_some() => tracing::info!("the audit can be written again"),
            _ => {}
        }
        self.failing.store(failing.map(Arc::new));
    }

    fn checkpoint(&mut self) {
        let (Some(open), Some(signer)) = (&self.open, &self.signer) else { return };
        if self.since_checkpoint == 0 {
            return;
        }
        let checkpoint = signer.sign(&open.tip, clock::now());
        let Ok(mut line) = serde_json::to_string(&checkpoint) else { return };
        tracing::info!(checkpoint = %line, "audit");
        line.push('\n');
        if let Err(error) = open.add_checkpoint(&line) {
            tracing::warn!(%error, "the audit's checkpoint is only in the log");
        }
        metrics::gauge!(names::AUDIT_CHECKPOINT).set(checkpoint.seq as f64);
        // A double has 53 bits: 48 of the hash fit exactly.
        let bits = checkpoint.hash.get(..12).and_then(|digits| u64::from_str_radix(digits, 16).ok());
        metrics::gauge!(names::AUDIT_CHECKPOINT_HASH).set(bits.unwrap_or_default() as f64);
        (self.since_checkpoint, self.last_checkpoint) = (0, clock::monotonic());
    }
}
