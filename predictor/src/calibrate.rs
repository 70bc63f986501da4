//! Moves the quantiles until they cover as often as they promise.
//!
//! Quantile tracking (Angelopoulos, Candès & Tibshirani 2023, "Conformal PID control"; adaptive conformal inference:
//! Gibbs & Candès 2021): every scored forecast moves each quantile a little up when the value lay above it and down
//! when below, in the proportion of its level, so that in the long run the share below is the level, whatever the
//! series does. Offsets are in units of the recent miss, so they fit whether it is calm or not.

use crate::forecast::{LEVELS, Quantiles};

/// How fast offsets and unit follow.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// The step of an offset, in units.
    pub offset: f64,
    /// The weight of the newest miss in the unit.
    pub unit: f64,
}

impl Default for Pace {
    fn default() -> Self {
        Self { offset: 0.02, unit: 0.03 }
    }
}

/// Where [`LEVELS`] has one half.
const MEDIAN: usize = LEVELS.len() / 2;
/// Offsets stay within this many units: a long storm of misses must not leave a band that takes hours to come back.
const FURTHEST: f64 = 10.0;
/// One miss counts for at most this many units.
const WILDEST: f64 = 10.0;

/// The offsets of one horizon.
#[derive(Clone, Debug)]
pub struct Calibrator {
    pace: Pace,
    offsets: Quantiles,
    unit: Option<f64>,
}

impl Calibrator {
    /// No offsets yet.
    ///
    /// `lag` is how many steps later a forecast is scored. Misses of one cause then come up to `lag` at a time, and
    /// are learned from more slowly (by the fifth root of `lag`, found by backtest): fast control on late feedback swings.
    pub fn new(mut pace: Pace, lag: usize) -> Self {
        pace.offset /= (lag.max(1) as f64).powf(0.2);
        Self { pace, offsets: [0.0; LEVELS.len()], unit: None }
    }

    /// The offsets, in the unit of the series.
    pub fn shift(&self) -> Quantiles {
        let unit = self.unit.unwrap_or(0.0);
        self.offsets.map(|offset| offset * unit)
    }

    /// `quantiles` with their offsets, in order. The median stays where it is.
    pub fn adjust(&self, quantiles: &Quantiles) -> Quantiles {
        adjust(quantiles, &self.shift())
    }

    /// Learns that `value` came where `issued` (as adjusted then) had been forecast.
    pub fn learn(&mut self, issued: &Quantiles, value: f64) {
        for (place, level) in LEVELS.into_iter().enumerate() {
            // A value right on the quantile (a series that stands still) says neither up nor down.
            if place == MEDIAN || value.total_cmp(&issued[place]).is_eq() {
                continue;
            }
            let below = if value < issued[place] { 1.0 } else { 0.0 };
            self.offsets[place] =
                (self.offsets[place] + self.pace.offset * (level - below)).clamp(-FURTHEST, FURTHEST);
        }
        let miss = (value - issued[MEDIAN]).abs();
        self.unit = Some(match self.unit {
            None => miss,
            Some(unit) if unit > 0.0 => unit + self.pace.unit * (miss.min(unit * WILDEST) - unit),
            Some(_) => miss * self.pace.unit,
        });
    }
}

/// `quantiles` moved by `shift`, in order. The median stays where it is.
pub(crate) fn adjust(quantiles: &Quantiles, shift: &Quantiles) -> Quantiles {
    let mut adjusted = *quantiles;
    for (value, shift) in adjusted.iter_mut().zip(shift) {
        *value += shift;
    }
    // Sorting alone would let a tail take the median's place, and its miss would then feed the unit.
    let median = quantiles[MEDIAN];
    for value in &mut adjusted[..MEDIAN] {
        *value = value.min(median);
    }
    for value in &mut adjusted[MEDIAN + 1..] {
        *value = value.max(median);
    }
    adjusted.sort_unstable_by(f64::total_cmp);
    adjusted
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A small linear congruence: numbers between 0 and 1 that look uniform.
    fn uniform(count: usize) -> impl Iterator<Item = f64> {
        let mut state = 12345_u64;
        (0..count).map(move |_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 11) as f64 / (1_u64 << 53) as f64
        })
    }

    #[test]
    fn a_band_that_is_far_too_narrow_comes_to_cover() {
        let narrow = [49.0, 49.5, 50.0, 50.5, 51.0];
        let mut calibrator = Calibrator::new(Pace::default(), 1);
        let mut inside = 0;
        for (count, value) in uniform(3000).enumerate() {
            let value = value * 100.0;
            let issued = calibrator.adjust(&narrow);
            if count >= 1000 {
                inside += usize::from(issued[0] <= value && value <= issued[4]);
            }
            calibrator.learn(&issued, value);
        }
        let coverage = inside as f64 / 2000.0;
        assert!((coverage - 0.90).abs() < 0.02, "{coverage}");
    }
}
