//! What was measured, decided and forecast, kept: `history.db` under the node's state.
//!
//! ```text
//!   controllers ─► step ─┐
//!   collector ─► histograms ├─► bounded queue ─► writer's thread ─► SQLite ─► roll-up 10 s → 5 min → 1 h, retention
//!   feeds ─► value ──────┘         (full: dropped, counted)            │
//!   API, export, zone choice, forecasters after a restart ◄── readers ─┘
//! ```
//! A file of its own, apart from the journal: nothing that happens to it (full disk, damage, a foreign file) reaches the
//! data path or a decision; it is counted, said once, and shown as a problem of the node. Nobody who records ever waits.
//!
//! | module | what |
//! |---|---|
//! | [`tier`] | the three resolutions and how long each is kept |
//! | [`series`] | the names of what is kept |
//! | `store` | the file: schema, opening (a foreign or damaged one is moved aside), writing |
//! | `rollup` | from fine to coarse; histograms are merged, never averaged |
//! | `writer` | the thread |
//! | [`read`] | pages, quantiles, what a forecaster replays |
//! | [`replay`] | from stored values to steps of a forecaster; pure |
//! | [`told`] | what forecasters were told beforehand, as numbers; pure |
//! | [`spikes`] | what a latency spike is; pure |

pub mod collect;
pub mod read;
pub mod replay;
mod rollup;
pub mod series;
pub mod spikes;
mod store;
pub mod tier;
pub mod told;
mod writer;

#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{SyncSender, TrySendError, channel, sync_channel};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use hdrhistogram::Histogram;
use migration::units::Timestamp;

use crate::telemetry::metrics as telemetry;
pub use tier::{Resolution, Retention};

/// The file's name.
const FILE: &str = "history.db";
/// Entries that wait for the writer, at most.
const WAITING: usize = 4096;

/// The history cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum HistoryError {
    /// SQLite refused.
    #[error("history database {path}")]
    Database {
        /// The file.
        path: PathBuf,
        /// Why.
        source: rusqlite::Error,
    },
    /// A file that is not ours could not be moved out of the way.
    #[error("{path} is no history of this version ({why}) and cannot be moved aside: move it yourself")]
    NotAside {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
        /// Why it stays.
        source: std::io::Error,
    },
}

/// One value of a series.
#[derive(Clone, Debug, PartialEq)]
pub struct Value {
    /// The series' name; see [`series`].
    pub series: String,
    /// The zone it is about; empty: none.
    pub zone: String,
    /// In the unit that the name ends with. What is not finite is not kept.
    pub value: f64,
}

impl Value {
    /// A value of `series` about `zone`.
    pub fn new(series: impl Into<String>, zone: &str, value: f64) -> Self {
        Self { series: series.into(), zone: zone.into(), value }
    }
}

/// What one step of a resource's controller brought.
#[derive(Clone, Debug, PartialEq)]
pub struct Step {
    /// The resource.
    pub resource: String,
    /// When.
    pub at: Timestamp,
    /// The policy's step.
    pub step: Duration,
    /// The values.
    pub values: Vec<Value>,
}

/// The latencies of one 10 s bucket, resource, zone and segment.
#[derive(Clone, Debug)]
pub struct Bucket {
    /// The resource.
    pub resource: String,
    /// The zone that served.
    pub zone: String,
    /// The segment's label.
    pub segment: &'static str,
    /// When the bucket began.
    pub at: Timestamp,
    /// Microseconds.
    pub histogram: Histogram<u64>,
}

/// What the writer takes.
pub(crate) enum Entry {
    Step(Step),
    Buckets(Vec<Bucket>),
    Feed {
        name: String,
        value: f64,
        at: Timestamp,
    },
    /// Answers when everything before it has been written or dropped.
    Barrier(std::sync::mpsc::Sender<()>),
}

/// The way to the history. Cheap to clone; the writer ends with the last one.
#[derive(Clone)]
pub struct History {
    queue: SyncSender<Entry>,
    path: Arc<Path>,
    retention: Retention,
    problem: Arc<ArcSwapOption<String>>,
}

impl History {
    /// Opens `history.db` under `state` and starts the writer's thread. What cannot be opened is tried again later: a
    /// node starts without a history rather than not at all. Errors: no thread could be started.
    pub fn start(state: &Path, retention: Retention) -> std::io::Result<Self> {
        let path: Arc<Path> = state.join(FILE).into();
        let (queue, entries) = sync_channel(WAITING);
        let problem = Arc::new(ArcSwapOption::empty());
        let writer = writer::Writer::new(path.clone(), retention, problem.clone());
        std::thread::Builder::new().name("godwit-history".into()).spawn(move || writer.run(&entries))?;
        Ok(Self { queue, path, retention, problem })
    }

    /// Keeps what a step brought. Never waits; what finds the queue full is dropped and counted.
    pub fn record_step(&self, step: Step) {
        self.send(Entry::Step(step));
    }

    /// Keeps the histograms of a 10 s bucket. Never waits.
    pub fn record_buckets(&self, buckets: Vec<Bucket>) {
        self.send(Entry::Buckets(buckets));
    }

    /// Keeps a value of an outside feed, as series `feed_<name>` of the node. Never waits.
    pub fn record_feed(&self, name: &str, value: f64, at: Timestamp) {
        self.send(Entry::Feed { name: name.to_owned(), value, at });
    }

    fn send(&self, entry: Entry) {
        if let Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) = self.queue.try_send(entry) {
            telemetry::history_dropped("queue", 1);
        }
    }

    /// Waits until what was recorded before has been written or dropped; false when that takes longer than `patience`.
    pub fn flush(&self, patience: Duration) -> bool {
        let (done, written) = channel();
        let mut barrier = Entry::Barrier(done);
        let until = crate::clock::monotonic() + patience;
        while let Err(TrySendError::Full(back)) = self.queue.try_send(barrier) {
            if crate::clock::monotonic() > until {
                return false;
            }
            barrier = back;
            std::thread::sleep(Duration::from_millis(5));
        }
        written.recv_timeout(until.saturating_duration_since(crate::clock::monotonic())).is_ok()
    }

    /// Why nothing is kept now, in words for the operator; none: it is.
    pub fn problem(&self) -> Option<String> {
        self.problem.load().as_deref().cloned()
    }

    /// How long what is kept.
    pub fn retention(&self) -> Retention {
        self.retention
    }

    /// A reader. Blocks on the disk: not for the threads of a runtime.
    pub fn reader(&self) -> Result<read::Reader, HistoryError> {
        read::Reader::open(&self.path)
    }
}
