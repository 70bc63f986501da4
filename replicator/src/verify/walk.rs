//! One table, walked in key order: chunks are summed on both sides; one that differs is cut into parts, a part that differs is
//! listed row by row, and keys that differ are [settled](super::settle). Says what to read, takes what was read; does
//! no I/O.
//!
//! ```text
//! Boundary ─► Sums(chunk) ─equal─► done
//!                 └─differs─► Split ─► Sums(parts) ─equal─► done
//!                                          └─differs─► Rows ─► Keys ─► … ─► verdicts
//! ```
//!
//! Several readings are under way at once; a chunk is done when nothing of it is open, and the walk can be taken up
//! after the last key before which every chunk is done.

use std::collections::{BTreeMap, VecDeque};

use super::range::{Key, Pair, Range, RowMark, Side, Sum};
use super::settle::{Answer, Ask, Patience, Settle, Verdict};

/// How a walk goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stride {
    /// Rows of a chunk.
    pub chunk: u64,
    /// A part with at most so many rows is listed.
    pub list: u64,
    /// Chunks summed at once.
    pub window: usize,
    /// Keys read at once.
    pub keys: usize,
    /// How keys are settled.
    pub patience: Patience,
}

impl Default for Stride {
    fn default() -> Self {
        Self { chunk: 10_000, list: 500, window: 2, keys: 200, patience: Patience::default() }
    }
}

/// Chunks that may wait for their last keys while the walk goes on.
const OPEN_CHUNKS: usize = 32;

/// After so many cuts a range is listed whatever its size. Two are enough where both sides sort alike; where they do not,
/// cutting need not make ranges smaller.
const MAX_DEPTH: u32 = 3;

/// Names a reading.
pub type ReadId = u64;

/// What to read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Read {
    /// The source's key that is `rows` further on, if there are so many.
    Boundary {
        /// Where the chunk begins.
        after: Option<Key>,
        /// Its size.
        rows: u64,
    },
    /// Sums of these ranges on both sides.
    Sums(Vec<Range>),
    /// Every `rows`-th key of a range on one side.
    Split {
        /// The range.
        range: Range,
        /// Where it has more rows.
        side: Side,
        /// Distance of the keys.
        rows: u64,
    },
    /// Every row of a range on both sides.
    Rows(Range),
    /// Single keys on both sides.
    Keys(Ask),
}

/// What was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// For [`Read::Boundary`].
    Boundary(Option<Key>),
    /// For [`Read::Sums`]: source and target of each range.
    Sums(Vec<(Sum, Sum)>),
    /// For [`Read::Split`].
    Split(Vec<Key>),
    /// For [`Read::Rows`].
    Rows {
        /// The source's.
        source: BTreeMap<Key, RowMark>,
        /// The target's.
        target: BTreeMap<Key, RowMark>,
    },
    /// For [`Read::Keys`].
    Keys(Answer),
    /// [`Read::Sums`] took longer than a statement may.
    TooSlow,
}

/// What a walk found out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// So many rows of the source were looked at.
    Rows(u64),
    /// A key is settled.
    Settled(Key, Verdict),
}

#[derive(Debug)]
struct Chunk {
    until: Option<Key>,
    open: usize,
    counted: bool,
}

#[derive(Debug)]
struct Job {
    chunk: u64,
    /// How often the range was cut.
    depth: u32,
    read: Read,
}

/// A walk through one table.
#[derive(Debug)]
pub struct Walk {
    stride: Stride,
    /// Rows of the next chunk.
    rows: u64,
    frontier: Option<Key>,
    exhausted: bool,
    seeking: bool,
    next_read: ReadId,
    next_chunk: u64,
    chunks: BTreeMap<u64, Chunk>,
    todo: VecDeque<Job>,
    reading: BTreeMap<ReadId, Job>,
    settle: Settle,
    /// Which chunk an open key belongs to.
    owners: BTreeMap<Key, u64>,
    done_until: Option<Key>,
}

impl Walk {
    /// From the first key after `after`.
    pub fn new(stride: Stride, after: Option<Key>) -> Self {
        Self {
            stride,
            rows: stride.chunk.max(1),
            frontier: after.clone(),
            exhausted: false,
            seeking: false,
            next_read: 0,
            next_chunk: 0,
            chunks: BTreeMap::new(),
            todo: VecDeque::new(),
            reading: BTreeMap::new(),
            settle: Settle::new(stride.patience),
            owners: BTreeMap::new(),
            done_until: after,
        }
    }

    /// Only these keys: those that a sweep found to differ.
    pub fn of_keys(stride: Stride, keys: impl IntoIterator<Item = Key>) -> Self {
        let mut this = Self::new(stride, None);
        this.exhausted = true;
        for key in keys {
            if this.settle.add(key.clone(), None) {
                this.owners.insert(key, 0);
            }
        }
        this.chunks.insert(0, Chunk { until: None, open: this.settle.len(), counted: true });
        this.next_chunk = 1;
        this
    }

    /// The next reading; `None`: await the ones under way, or all is [done](Self::done).
    pub fn poll(&mut self) -> Option<(ReadId, Read)> {
        if let Some(job) = self.todo.pop_front() {
            return Some(self.begin(job));
        }
        if let Some(ask) = self.settle.poll(self.stride.keys) {
            return Some(self.begin(Job { chunk: u64::MAX, depth: 0, read: Read::Keys(ask) }));
        }
        let summing = self.reading.values().filter(|job| matches!(job.read, Read::Sums(_))).count();
        if self.exhausted || self.seeking || summing >= self.stride.window || self.chunks.len() >= OPEN_CHUNKS
        {
            return None;
        }
        self.seeking = true;
        let read = Read::Boundary { after: self.frontier.clone(), rows: self.rows };
        Some(self.begin(Job { chunk: u64::MAX, depth: 0, read }))
    }

    fn begin(&mut self, job: Job) -> (ReadId, Read) {
        let id = self.next_read;
        self.next_read += 1;
        let read = job.read.clone();
        self.reading.insert(id, job);
        (id, read)
    }

    /// Nothing is left to read.
    pub fn done(&self) -> bool {
        self.exhausted && self.chunks.is_empty() && self.reading.is_empty() && self.todo.is_empty()
    }

    /// Everything up to this key is done; `None`: nothing, or (when [`Self::done`]) everything.
    pub fn done_until(&self) -> Option<&Key> {
        self.done_until.as_ref()
    }

    /// Rows of the next chunks.
    pub fn set_chunk_rows(&mut self, rows: u64) {
        self.rows = rows.max(1);
    }

    /// Rows of the next chunk.
    pub fn chunk_rows(&self) -> u64 {
        self.rows
    }

    /// Keys that are not settled yet.
    pub fn unsettled(&self) -> usize {
        self.settle.len()
    }

    /// Takes what was read; returns what is known by it.
    pub fn handle(&mut self, id: ReadId, found: Found) -> Vec<Outcome> {
        let Some(Job { chunk, depth, read }) = self.reading.remove(&id) else { return Vec::new() };
        let outcomes = match (read, found) {
            (Read::Boundary { after, .. }, Found::Boundary(until)) => {
                self.seeking = false;
                self.exhausted = until.is_none();
                self.frontier.clone_from(&until);
                let number = self.next_chunk;
                self.next_chunk += 1;
                self.chunks.insert(number, Chunk { until: until.clone(), open: 1, counted: false });
                self.todo.push_back(Job {
                    chunk: number,
                    depth: 0,
                    read: Read::Sums(vec![Range { after, until }]),
                });
                Vec::new()
            }
            (Read::Sums(ranges), Found::Sums(sums)) => self.summed(chunk, depth, ranges, &sums),
            (Read::Sums(ranges), Found::TooSlow) => {
                self.rows = (self.rows / 4).max(1);
                let rows = self.rows;
                for range in ranges {
                    self.add(chunk, depth, Read::Split { range, side: Side::Source, rows });
                }
                self.finish(chunk);
                Vec::new()
            }
            (Read::Split { range, .. }, Found::Split(keys)) => {
                let parts = range.cut(keys);
                // What cannot be cut any more (the rows went away, or sort otherwise) is listed whatever its size.
                let read = if parts.len() == 1 { Read::Rows(range) } else { Read::Sums(parts) };
                self.add(chunk, depth + 1, read);
                self.finish(chunk);
                Vec::new()
            }
            (Read::Rows(_), Found::Rows { source, target }) => {
                self.listed(chunk, source, target);
                Vec::new()
            }
            (Read::Keys(_), Found::Keys(answer)) => {
                let settled = self.settle.handle(&answer);
                for (key, _) in &settled {
                    if let Some(owner) = self.owners.remove(key) {
                        self.finish(owner);
                    }
                }
                settled.into_iter().map(|(key, verdict)| Outcome::Settled(key, verdict)).collect()
            }
            // An answer to another question: the reading is made again.
            (read, _) => {
                if matches!(read, Read::Keys(_)) {
                    self.settle.handle_failure();
                } else {
                    self.todo.push_back(Job { chunk, depth, read });
                }
                Vec::new()
            }
        };
        self.advance();
        outcomes
    }

    fn summed(&mut self, chunk: u64, depth: u32, ranges: Vec<Range>, sums: &[(Sum, Sum)]) -> Vec<Outcome> {
        let mut outcomes = Vec::new();
        if let Some(state) = self.chunks.get_mut(&chunk)
            && !std::mem::replace(&mut state.counted, true)
        {
            outcomes.push(Outcome::Rows(sums.iter().map(|(source, _)| source.rows).sum()));
        }
        for (range, (source, target)) in ranges.into_iter().zip(sums) {
            if source == target {
                continue;
            }
            let (side, rows) = if target.rows > source.rows {
                (Side::Target, target.rows)
            } else {
                (Side::Source, source.rows)
            };
            let read = if rows <= self.stride.list || depth >= MAX_DEPTH {
                Read::Rows(range)
            } else {
                // At most 32 parts, and none smaller than can be listed at once.
                Read::Split { range, side, rows: rows.div_ceil(32).max(self.stride.list) }
            };
            self.add(chunk, depth, read);
        }
        self.finish(chunk);
        outcomes
    }

    fn listed(&mut self, chunk: u64, source: BTreeMap<Key, RowMark>, mut target: BTreeMap<Key, RowMark>) {
        let mut pairs: Vec<(Key, Pair)> = Vec::new();
        for (key, row) in source {
            let pair = Pair { source: Some(row), target: target.remove(&key) };
            if !pair.equal() {
                pairs.push((key, pair));
            }
        }
        pairs.extend(target.into_iter().map(|(key, row)| (key, Pair { source: None, target: Some(row) })));
        for (key, pair) in pairs {
            // A row that a side's range does not hold may be elsewhere in that side's order: no reading of the key itself.
            let seen = Some(pair).filter(|pair| pair.source.is_some() && pair.target.is_some());
            if self.settle.add(key.clone(), seen) {
                self.owners.insert(key, chunk);
                if let Some(chunk) = self.chunks.get_mut(&chunk) {
                    chunk.open += 1;
                }
            }
        }
        self.finish(chunk);
    }

    fn add(&mut self, chunk: u64, depth: u32, read: Read) {
        if let Some(chunk) = self.chunks.get_mut(&chunk) {
            chunk.open += 1;
        }
        self.todo.push_back(Job { chunk, depth, read });
    }

    fn finish(&mut self, chunk: u64) {
        if let Some(chunk) = self.chunks.get_mut(&chunk) {
            chunk.open -= 1;
        }
    }

    /// Closes chunks from the front.
    fn advance(&mut self) {
        while let Some(first) = self.chunks.first_entry().filter(|first| first.get().open == 0) {
            if let Some(until) = first.remove().until {
                self.done_until = Some(until);
            }
        }
    }
}
