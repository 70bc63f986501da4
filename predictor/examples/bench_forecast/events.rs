//! Shifts against labels, and probabilities of becoming worse against what came.

use predictor::shift::{Sensitivity, ShiftDetector};

use crate::data::Series;

/// A detection counts for a label that lies at most this many samples before it, or two after it (labels are made by hand).
pub(crate) const AFTER: usize = 12;
const BEFORE: usize = 2;

/// Labels found, missed, and alarms without a label.
#[derive(Default)]
pub(crate) struct Shifts {
    pub(crate) found: usize,
    pub(crate) missed: usize,
    pub(crate) false_alarms: usize,
    pub(crate) delays: Vec<f64>,
}

impl Shifts {
    /// Watches the whole series and judges rows `from..until`.
    pub(crate) fn judge(&mut self, series: &Series, from: usize, until: usize, sensitivity: Sensitivity) {
        let mut detector = ShiftDetector::new(sensitivity);
        let mut alarms: Vec<usize> = Vec::new();
        for (row, value) in series.values[..until].iter().enumerate() {
            if detector.observe(row as u64, *value).is_some() && row >= from {
                alarms.push(row);
            }
        }
        let mut taken = vec![false; alarms.len()];
        for label in series.labels.iter().filter(|label| (from..until).contains(label)) {
            let hit = (0..alarms.len())
                .find(|at| !taken[*at] && alarms[*at] + BEFORE >= *label && alarms[*at] <= *label + AFTER);
            match hit {
                Some(at) => {
                    taken[at] = true;
                    self.found += 1;
                    self.delays.push(alarms[at].saturating_sub(*label) as f64);
                }
                None => self.missed += 1,
            }
        }
        self.false_alarms += taken.iter().filter(|taken| !**taken).count();
    }

    pub(crate) fn precision(&self) -> f64 {
        self.found as f64 / (self.found + self.false_alarms).max(1) as f64
    }

    pub(crate) fn recall(&self) -> f64 {
        self.found as f64 / (self.found + self.missed).max(1) as f64
    }

    pub(crate) fn f1(&self) -> f64 {
        2.0 * self.found as f64 / (2 * self.found + self.missed + self.false_alarms).max(1) as f64
    }
}

/// Probabilities and what came.
#[derive(Default)]
pub(crate) struct Ranking {
    pub(crate) pairs: Vec<(f64, bool)>,
}

impl Ranking {
    pub(crate) fn base_rate(&self) -> f64 {
        self.pairs.iter().filter(|(_, came)| *came).count() as f64 / self.pairs.len().max(1) as f64
    }

    /// Mean precision over the ranks at which an event lies.
    pub(crate) fn average_precision(&self) -> f64 {
        let mut sorted = self.pairs.clone();
        sorted.sort_by(|left, right| right.0.total_cmp(&left.0));
        let (mut hits, mut sum) = (0.0, 0.0);
        for (rank, (_, came)) in sorted.iter().enumerate() {
            if *came {
                hits += 1.0;
                sum += hits / (rank + 1) as f64;
            }
        }
        if hits > 0.0 { sum / hits } else { f64::NAN }
    }

    /// Precision and recall of calling an event from `threshold` on.
    pub(crate) fn at(&self, threshold: f64) -> (f64, f64) {
        let called = self.pairs.iter().filter(|(p, _)| *p >= threshold).count();
        let right = self.pairs.iter().filter(|(p, came)| *p >= threshold && *came).count();
        let came = self.pairs.iter().filter(|(_, came)| *came).count();
        (right as f64 / called.max(1) as f64, right as f64 / came.max(1) as f64)
    }

    /// Mean squared error, as a share of that of the base rate.
    pub(crate) fn brier_ratio(&self) -> f64 {
        let base = self.base_rate();
        let miss = |p: f64, came: bool| (p - if came { 1.0 } else { 0.0 }).powi(2);
        let own: f64 = self.pairs.iter().map(|(p, came)| miss(*p, *came)).sum();
        let flat: f64 = self.pairs.iter().map(|(_, came)| miss(base, *came)).sum();
        own / flat
    }
}
