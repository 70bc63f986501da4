//! What of a copy has passed, for the status. Pure.

use std::time::{Duration, Instant};

use crate::status::{CopyStage, Phase};
use crate::wire::{CopyStart, Frame};

/// Follows the copy's frames on either side.
#[derive(Debug, Default)]
pub(super) struct CopyProgress {
    pub(super) stage: CopyStage,
    began: Option<Instant>,
    start: CopyStart,
    tables_done: u32,
    rows: u64,
    bytes: u64,
}

impl CopyProgress {
    pub(super) fn note(&mut self, frame: &Frame, now: Instant) {
        match frame {
            Frame::CopyBegin(start) => {
                *self = Self {
                    stage: CopyStage::Rows,
                    began: Some(now),
                    start: *start,
                    tables_done: start.tables_kept,
                    rows: start.rows_kept,
                    bytes: start.bytes_kept,
                };
            }
            Frame::CopyRows { rows, data, .. } => {
                self.bytes += data.len() as u64;
                self.rows += u64::from(*rows);
            }
            Frame::CopyTableEnd { last, .. } => self.tables_done += u32::from(*last),
            Frame::CopySchema { post: true, .. } => self.stage = CopyStage::Indexes,
            _ => {}
        }
    }

    /// The target finishes an earlier copy before anything else.
    pub(super) fn finishing(now: Instant) -> Phase {
        Self { stage: CopyStage::Finishing, ..Self::default() }.phase(now)
    }

    pub(super) fn phase(&self, now: Instant) -> Phase {
        Phase::Copying {
            stage: self.stage,
            tables_done: self.tables_done,
            tables: self.start.tables,
            rows: self.rows,
            bytes: self.bytes,
            rows_estimate: self.start.rows_estimate,
            bytes_estimate: self.start.bytes_estimate,
            remaining: self.remaining(now),
        }
    }

    /// By the rows where the planner knows how many, by the tables' size otherwise; the speed is this session's.
    fn remaining(&self, now: Instant) -> Option<Duration> {
        if self.stage != CopyStage::Rows {
            return None;
        }
        let (done, kept, all) = if self.start.rows_estimate > 0 {
            (self.rows, self.start.rows_kept, self.start.rows_estimate)
        } else {
            (self.bytes, self.start.bytes_kept, self.start.bytes_estimate)
        };
        let here = done.saturating_sub(kept);
        // Nobody knows how many more there are than was guessed.
        if here == 0 || done > all {
            return None;
        }
        let spent = now.saturating_duration_since(self.began?);
        let factor = all.saturating_sub(done) as f64 / here as f64;
        Duration::try_from_secs_f64(spent.as_secs_f64() * factor).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_kept_counts_as_done_but_not_for_the_speed() {
        let now = crate::clock::now();
        let mut progress = CopyProgress::default();
        let start = CopyStart {
            rows_estimate: 1_000,
            rows_kept: 600,
            tables: 2,
            tables_kept: 1,
            ..CopyStart::default()
        };
        progress.note(&Frame::CopyBegin(start), now);
        let later = now + Duration::from_secs(10);
        assert_eq!(progress.remaining(later), None, "no speed yet");
        progress.note(&Frame::CopyRows { part: 0, rows: 100, data: bytes::Bytes::from_static(b"x") }, later);
        assert_eq!(progress.remaining(later), Some(Duration::from_secs(30)));
        progress.note(&Frame::CopyRows { part: 0, rows: 301, data: bytes::Bytes::from_static(b"x") }, later);
        assert_eq!(progress.remaining(later), None, "more than was guessed");
        progress.note(&Frame::CopySchema { post: true, last: true, piece: bytes::Bytes::new() }, later);
        assert_eq!(progress.remaining(later), None);
        assert!(matches!(progress.phase(later), Phase::Copying { tables_done: 1, rows: 1_001, .. }));
    }
}
