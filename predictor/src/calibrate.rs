//! Moves the quantiles until they cover as often as they promise.
//!
//! Two loops (Angelopoulos, Candès & Tibshirani 2023, "Conformal PID control"; adaptive conformal inference: Gibbs & Candès 2021):
//!
//! * **Tracking**: every scored forecast moves each quantile a little up when the value lay above it and down when below, in
//!   the proportion of its level. Slow; it finds where the quantiles of this series are.
//! * **Integration**: misses beyond what the outer band allows are a debt, fewer are a credit. The band is asked to miss
//!   less or more often until the debt is paid, so that each series covers as promised over any few hundred steps, and not only
//!   all of them together. The tracking loop learns against what was asked, so that the two do not fight.
//!
//! A forecast for a later step is scored late. What is under way then was already asked to pay: that part is counted as
//! paid (a Smith predictor: Smith 1957), or control on late feedback would swing. Old debts fade: a storm long past must not
//! be made up for. Offsets are in units of the recent miss, so they fit whether it is calm or not.

use crate::forecast::{LEVELS, Quantiles};

/// How fast offsets, unit and debt follow.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// The step of an offset, in units.
    pub offset: f64,
    /// The weight of the newest miss in the unit.
    pub unit: f64,
    /// How much a debt of one miss lowers the logarithm of how often the band is asked to miss.
    pub gain: f64,
    /// The share of the debt that fades with each scored forecast.
    pub fade: f64,
}

impl Default for Pace {
    fn default() -> Self {
        // Found on rows 0.4 to 0.7 of the public sets (`bench_forecast --tuning`).
        Self { offset: 0.01, unit: 0.03, gain: 0.6, fade: 0.01 }
    }
}

/// Where [`LEVELS`] has one half.
const MEDIAN: usize = LEVELS.len() / 2;
/// Where it has the upper end of the band.
const UPPER: usize = LEVELS.len() - 1;
/// How often a value may lie beyond one end of the band.
const ALLOWED: f64 = LEVELS[0];
/// Offsets stay within this many units: a long storm of misses must not leave a band that takes hours to come back.
const FURTHEST: f64 = 10.0;
/// One miss counts for at most this many units.
const WILDEST: f64 = 10.0;
/// The band is asked to miss at most `e` to this times as often as allowed, however much credit there is.
const NARROWEST: f64 = 1.2;
/// And at least `e` to the minus this.
const WIDEST: f64 = 1.5;
/// How far what is under way is trusted to pay.
const TRUST: f64 = 0.8;

/// How often one forecast was asked to miss at each end.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Asked(f64);

/// The offsets of one horizon.
#[derive(Clone, Debug)]
pub struct Calibrator {
    pace: Pace,
    offsets: Quantiles,
    unit: Option<f64>,
    /// The mean distance from the median, below it and above.
    sides: [f64; 2],
    /// Misses beyond those allowed.
    debt: f64,
    /// What forecasts that are not scored yet were asked to miss beyond that; negative: they pay.
    under_way: f64,
}

impl Calibrator {
    /// No offsets yet.
    ///
    /// `lag` is how many steps later a forecast is scored. Misses of one cause then come up to `lag` at a time, and
    /// are learned from more slowly (by the fifth root of `lag`, found by backtest): fast control on late feedback swings.
    pub fn new(mut pace: Pace, lag: usize) -> Self {
        pace.offset /= (lag.max(1) as f64).powf(0.2);
        pace.gain /= (lag.max(1) as f64).powf(0.2);
        Self { pace, offsets: [0.0; LEVELS.len()], unit: None, sides: [0.0; 2], debt: 0.0, under_way: 0.0 }
    }

    /// How much rarer than allowed misses should be now, as a logarithm; negative: more frequent.
    fn strictness(&self) -> f64 {
        (self.pace.gain * (self.debt + TRUST * self.under_way)).clamp(-NARROWEST, WIDEST)
    }

    /// The offsets, in the unit of the series.
    pub fn shift(&self) -> Quantiles {
        let unit = self.unit.unwrap_or(0.0);
        let mut shift = self.offsets.map(|offset| offset * unit);
        // Where distances from the median are exponential, as latencies nearly are, so much further is that much rarer.
        let strictness = self.strictness();
        shift[0] -= strictness * self.sides[0];
        shift[UPPER] += strictness * self.sides[1];
        shift
    }

    /// `quantiles` with their offsets, in order. The median stays where it is.
    pub fn adjust(&self, quantiles: &Quantiles) -> Quantiles {
        adjust(quantiles, &self.shift())
    }

    /// A forecast is issued with the present offsets. Give what this answers back, with what came or without.
    pub fn issue(&mut self) -> Asked {
        let asked = ALLOWED * (-self.strictness()).exp();
        self.under_way += 2.0 * (asked - ALLOWED);
        Asked(asked)
    }

    /// What was asked of a forecast whose value never came.
    pub fn give_up(&mut self, asked: Asked) {
        self.under_way -= 2.0 * (asked.0 - ALLOWED);
    }

    /// Learns that `value` came where `issued` (as adjusted then) had been forecast.
    pub fn learn(&mut self, issued: &Quantiles, asked: Asked, value: f64) {
        self.give_up(asked);
        let missed = value < issued[0] || value > issued[UPPER];
        self.debt += if missed { 1.0 } else { 0.0 } - 2.0 * ALLOWED;
        self.debt *= 1.0 - self.pace.fade;
        for (place, level) in LEVELS.into_iter().enumerate() {
            // A value right on the quantile (a series that stands still) says neither up nor down.
            if place == MEDIAN || value.total_cmp(&issued[place]).is_eq() {
                continue;
            }
            let level = match place {
                0 => asked.0,
                UPPER => 1.0 - asked.0,
                _ => level,
            };
            let below = if value < issued[place] { 1.0 } else { 0.0 };
            self.offsets[place] =
                (self.offsets[place] + self.pace.offset * (level - below)).clamp(-FURTHEST, FURTHEST);
        }
        let miss = (value - issued[MEDIAN]).abs();
        let pace = self.pace.unit;
        if miss > 0.0 {
            // Each side is seen about half the time.
            let side = &mut self.sides[usize::from(value > issued[MEDIAN])];
            *side = if self.unit.is_none() { miss } else { follow(*side, miss, 2.0 * pace) };
        }
        self.unit = Some(self.unit.map_or(miss, |unit| follow(unit, miss, pace)));
    }
}

/// `mean`, moved to `miss` by `pace`. One that has been exactly zero cannot grow by its own multiples.
fn follow(mean: f64, miss: f64, pace: f64) -> f64 {
    if mean > 0.0 { mean + pace * (miss.min(mean * WILDEST) - mean) } else { miss * pace }
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
            let asked = calibrator.issue();
            calibrator.learn(&issued, asked, value);
        }
        let coverage = inside as f64 / 2000.0;
        assert!((coverage - 0.90).abs() < 0.02, "{coverage}");
    }

    /// Coverage of a band that is scored `lag` steps later, over each of `stretches` equal parts.
    fn coverage(values: impl Iterator<Item = f64>, lag: usize, pace: Pace, stretch: usize) -> Vec<f64> {
        let mut calibrator = Calibrator::new(pace, lag);
        let mut under_way = std::collections::VecDeque::new();
        let inside: Vec<bool> = values
            .filter_map(|value| {
                let issued = calibrator.adjust(&[10.0, 20.0, 50.0, 80.0, 90.0]);
                under_way.push_back((issued, calibrator.issue()));
                let (issued, asked) = (under_way.len() > lag).then(|| under_way.pop_front()).flatten()?;
                calibrator.learn(&issued, asked, value);
                Some(issued[0] <= value && value <= issued[4])
            })
            .collect();
        inside
            .chunks_exact(stretch)
            .map(|part| part.iter().filter(|inside| **inside).count() as f64 / stretch as f64)
            .collect()
    }

    /// Values that stay for six steps each, as a slow probe's do: a third as many chances to be right.
    fn held() -> impl Iterator<Item = f64> {
        uniform(1000).flat_map(|value| std::iter::repeat_n(-(1.0 - value).ln() * 40.0, 6))
    }

    #[test]
    fn the_debt_is_paid_within_a_stretch_and_late_feedback_does_not_swing() {
        let without = Pace { gain: 0.0, ..Pace::default() };
        for lag in [1, 12] {
            let off = |pace| {
                let parts = coverage(held(), lag, pace, 300);
                let late = &parts[4..];
                late.iter().map(|part| (part - 0.9).abs()).sum::<f64>() / late.len() as f64
            };
            let (with, without) = (off(Pace::default()), off(without));
            println!("lag {lag}: {with:.4} off on average, {without:.4} without the integral");
            assert!(with < 0.6 * without, "lag {lag}: {with} {without}");
        }
    }

    #[test]
    fn what_never_came_is_given_up() {
        let mut calibrator = Calibrator::new(Pace::default(), 1);
        for _ in 0..3 {
            let asked = calibrator.issue();
            calibrator.learn(&[1.0, 2.0, 3.0, 4.0, 5.0], asked, 9.0);
        }
        let before = calibrator.shift();
        let all: Vec<Asked> = (0..100).map(|_| calibrator.issue()).collect();
        assert!(calibrator.shift()[UPPER] < before[UPPER], "what is under way pays");
        for asked in all {
            calibrator.give_up(asked);
        }
        assert!((calibrator.shift()[UPPER] - before[UPPER]).abs() < 1e-9);
    }
}
