//! What a running stream says of itself: published on a `tokio::sync::watch`, read by the controller, metrics and the CLI.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::error::Cause;
use crate::lsn::Lsn;

/// What part of the initial copy is under way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CopyStage {
    /// Rows travel.
    #[default]
    Rows,
    /// The rows are there; the target builds indexes and constraints.
    Indexes,
    /// A copy that broke went on under a later snapshot: changes bring its tables to one point.
    Settling,
    /// They are at one point: the target makes what had to wait for that.
    Finishing,
}

impl CopyStage {
    /// `rows`, `indexes`, `settling` or `finishing`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Rows => "rows",
            Self::Indexes => "indexes",
            Self::Settling => "settling",
            Self::Finishing => "finishing",
        }
    }
}

/// What the stream is doing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Phase {
    /// Opening connections and the link.
    #[default]
    Connecting,
    /// Initial copy.
    Copying {
        /// What of it is under way.
        stage: CopyStage,
        /// Tables finished.
        tables_done: u32,
        /// Tables in all.
        tables: u32,
        /// Rows copied so far.
        rows: u64,
        /// Bytes of row data copied so far.
        bytes: u64,
        /// Estimated rows in all (planner's estimate).
        rows_estimate: u64,
        /// Size of the tables in all, on the source's disk.
        bytes_estimate: u64,
        /// How long the rows that are left will take at the speed so far; none: not known.
        remaining: Option<Duration>,
    },
    /// Following the source.
    Streaming,
    /// Stopped by an error; `retrying` says whether it will try again by itself.
    Failed {
        /// The error with its sources, and what a person can do.
        error: String,
        /// True when the pump reconnects by itself.
        retrying: bool,
    },
    /// Ended because it was told to.
    Stopped,
}

/// What transactions that have not ended yet take up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OpenWork {
    /// How many.
    pub transactions: u32,
    /// Of their changes in memory, bytes.
    pub memory_bytes: u64,
    /// Of their changes in the spill directory, bytes.
    pub disk_bytes: u64,
}

/// A snapshot of one stream.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StreamStatus {
    /// What it is doing.
    pub phase: Phase,
    /// The source's newest WAL position that we have heard of.
    pub source_lsn: Lsn,
    /// Received and decoded up to here.
    pub received_lsn: Lsn,
    /// Applied on the target up to here.
    pub applied_lsn: Lsn,
    /// The target's checkpoint: the source may forget what lies before it.
    pub durable_lsn: Lsn,
    /// Transactions of the source that are still open, as far as they have been received; all zero at the target's side.
    pub open: OpenWork,
    /// `source_lsn - applied_lsn`, bytes.
    pub lag_bytes: u64,
    /// Age of the oldest change not yet applied; zero when caught up.
    pub lag: Duration,
    /// When both were last known; none: never, or not since this process started.
    pub heard: Option<Instant>,
    /// How often the stream broke since this process started, by cause.
    pub failures: BTreeMap<Cause, u64>,
    /// Newest end marker applied: its generation.
    pub applied_marker: Option<u64>,
    /// Row changes seen after an end marker: a client went round the fence.
    pub rows_after_marker: u64,
    /// Transactions applied since this process started.
    pub transactions: u64,
    /// Row changes applied since this process started.
    pub changes: u64,
}
