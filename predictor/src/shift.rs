//! Has the level of the series jumped?
//!
//! Two tests against the level since the last shift (its median, and a robust scale):
//! a two-sided CUSUM (Page 1954) over standardised values that are clipped, so that one wild value cannot raise
//! the alarm alone (a Huber-type CUSUM); and the median of the last twelve values, which finds what creeps below
//! the CUSUM's allowance. The onset is where the CUSUM last stood at zero (Page's own estimate), so the values
//! since then already describe the new level when the alarm comes.

use crate::sample;
use crate::sorted::SortedWindow;
use crate::window::{Window, usable};

/// A detected jump of the level.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Shift {
    /// First step of the new level, as estimated.
    pub onset: u64,
    /// The step at which it was detected.
    pub detected: u64,
    /// Level before, in the unit of the series.
    pub from: f64,
    /// Level after, as far as known when detected.
    pub to: f64,
}

/// When to call a change of level a shift. In units of the robust scale where not said otherwise.
#[derive(Clone, Copy, Debug)]
pub struct Sensitivity {
    /// Standardised values are held within this.
    pub clip: f64,
    /// What a value may deviate without adding to the sum.
    pub allowance: f64,
    /// The sum that raises the alarm.
    pub alarm: f64,
    /// How far the median of twelve may stand from the level.
    pub median: f64,
    /// The scale is never below this share of the level.
    pub floor: f64,
}

impl Default for Sensitivity {
    /// A jump of three scales or more is found at its fourth value. Found on labelled round-trip times; see
    /// docs/forecasting.md.
    fn default() -> Self {
        Self { clip: 3.0, allowance: 2.0, alarm: 3.0, median: 2.5, floor: 0.003 }
    }
}

/// Values of the present level that the reference is taken from, in steps.
const REFERENCE: usize = 120;
/// The median test looks at this many values.
const MEDIAN_OF: usize = 12;
/// Values of a level before it can be left.
const WARM: usize = 6;
/// The weight, in values, of the scale carried over from the level before.
const CARRIED: f64 = 12.0;

/// The weight of the newest value in the share of repetitions.
const REPEATING_PACE: f64 = 0.02;
/// What a repetition counts at least.
const LEAST_EVIDENCE: f64 = 0.2;

/// Watches one series.
#[derive(Clone, Debug)]
pub struct ShiftDetector {
    sensitivity: Sensitivity,
    window: Window,
    /// The values of the present level.
    level: SortedWindow,
    level_from: u64,
    carried_scale: Option<f64>,
    up: Cusum,
    down: Cusum,
    shift: Option<Shift>,
    last: Option<f64>,
    /// Share of values that repeated the one before, of late.
    repeating: f64,
}

#[derive(Clone, Copy, Debug, Default)]
struct Cusum {
    sum: f64,
    onset: u64,
}

impl Cusum {
    fn add(&mut self, step: u64, amount: f64) {
        if self.sum <= 0.0 {
            self.onset = step;
        }
        self.sum = (self.sum + amount).max(0.0);
    }
}

impl Default for ShiftDetector {
    fn default() -> Self {
        Self::new(Sensitivity::default())
    }
}

impl ShiftDetector {
    /// A detector that has seen nothing.
    pub fn new(sensitivity: Sensitivity) -> Self {
        Self {
            sensitivity,
            window: Window::new(REFERENCE),
            level: SortedWindow::new(REFERENCE),
            level_from: 0,
            carried_scale: None,
            up: Cusum::default(),
            down: Cusum::default(),
            shift: None,
            last: None,
            repeating: 0.0,
        }
    }

    /// Takes the value of `step`; `Some` when this value makes it a shift. Gaps neither add nor take away.
    pub fn observe(&mut self, step: u64, value: Option<f64>) -> Option<Shift> {
        let reference = self.reference();
        let before = self.window.newest();
        if !self.window.push(step, value) {
            return None;
        }
        if before.is_none() {
            self.level_from = step;
        }
        let value = usable(value);
        self.level.skip(before.map_or(0, |before| step - before - 1));
        self.level.push(value);
        let value = value?;
        let (level, scale) = reference?;
        let z = ((value - level) / scale).clamp(-self.sensitivity.clip, self.sensitivity.clip);
        let evidence = self.evidence(value);
        self.up.add(step, evidence * (z - self.sensitivity.allowance));
        self.down.add(step, evidence * (-z - self.sensitivity.allowance));
        let onset = self.cusum_onset().or_else(|| self.median_onset(level, scale))?;
        Some(self.jump(onset, step, level, scale))
    }

    /// What a value counts. Where most values repeat the one before exactly, a repetition is an old measurement shown
    /// again rather than a new one.
    fn evidence(&mut self, value: f64) -> f64 {
        let repeats = self.last.is_some_and(|last| last.total_cmp(&value).is_eq());
        let usual = self.repeating;
        self.repeating += REPEATING_PACE * (if repeats { 1.0 } else { 0.0 } - usual);
        self.last = Some(value);
        if repeats { (1.0 - usual).max(LEAST_EVIDENCE) } else { 1.0 }
    }

    /// The last shift that was detected.
    pub fn last(&self) -> Option<Shift> {
        self.shift
    }

    /// First step of the present level.
    pub fn level_from(&self) -> u64 {
        self.level_from
    }

    /// The values of the present level, at most the last 120 steps.
    pub fn level(&self) -> &SortedWindow {
        &self.level
    }

    /// Median and robust scale of the present level; `None` while it has too few values to be left.
    fn reference(&self) -> Option<(f64, f64)> {
        let count = self.level.len();
        if count < WARM {
            return None;
        }
        let (level, mut scale) = self.level.centre_and_scale()?;
        match self.carried_scale {
            Some(carried) => scale = (scale * count as f64 + carried * CARRIED) / (count as f64 + CARRIED),
            // The deviation of a handful of values is often far too small.
            None => scale *= 1.0 + CARRIED / count as f64,
        }
        Some((level, scale.max(level.abs() * self.sensitivity.floor).max(f64::MIN_POSITIVE.sqrt())))
    }

    fn cusum_onset(&self) -> Option<u64> {
        [self.up, self.down].into_iter().find(|side| side.sum > self.sensitivity.alarm).map(|side| side.onset)
    }

    fn median_onset(&self, level: f64, scale: f64) -> Option<u64> {
        let mut newest: Vec<f64> = self.window.since(self.level_from).take(MEDIAN_OF).collect();
        let median = sample::median(&mut newest)?;
        let moved = newest.len() == MEDIAN_OF && (median - level).abs() > self.sensitivity.median * scale;
        let side = if median > level { self.up } else { self.down };
        moved.then_some(side.onset)
    }

    fn jump(&mut self, onset: u64, step: u64, from: f64, scale: f64) -> Shift {
        let mut after: Vec<f64> = self.window.since(onset).collect();
        let to = sample::median(&mut after).unwrap_or(from);
        // Noise may have lifted the sum off zero just before: the new level starts at the first value near it.
        let span = usize::try_from(step - onset).unwrap_or(usize::MAX).min(REFERENCE - 1);
        let near = |ago: &usize| {
            self.window.ago(*ago).is_some_and(|value| (value - to).abs() < (value - from).abs())
        };
        let onset = (0..=span).rev().find(near).map_or(onset, |ago| step - ago as u64);
        let shift = Shift { onset, detected: step, from, to };
        self.level_from = onset;
        self.level.clear();
        let since = usize::try_from(step - onset).unwrap_or(usize::MAX).min(REFERENCE - 1);
        for ago in (0..=since).rev() {
            self.level.push(self.window.ago(ago));
        }
        self.carried_scale = Some(scale.max(to.abs() * self.sensitivity.floor));
        self.up = Cusum::default();
        self.down = Cusum::default();
        self.shift = Some(shift);
        shift
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A fixed ripple of about ±5 around a level.
    fn ripple(step: u64) -> f64 {
        [0.0, 3.0, -2.0, 5.0, -4.0, 1.0, -5.0, 2.0, 4.0, -1.0, -3.0][(step % 11) as usize]
    }

    fn run(values: impl Iterator<Item = Option<f64>>) -> Vec<Shift> {
        let mut detector = ShiftDetector::default();
        values.enumerate().filter_map(|(step, value)| detector.observe(step as u64, value)).collect()
    }

    #[test]
    fn a_jump_is_found_within_four_values_and_dated_right() {
        let shifts = run((0..60).map(|step| Some(if step < 40 { 100.0 } else { 200.0 } + ripple(step))));
        assert_eq!(shifts.len(), 1);
        assert_eq!((shifts[0].onset, shifts[0].detected), (40, 43));
        assert!((shifts[0].from - 100.0).abs() < 5.0 && (shifts[0].to - 200.0).abs() < 5.0);
    }

    #[test]
    fn a_fall_is_found_too_and_gaps_do_not_matter() {
        let shifts = run((0..60)
            .map(|step| (step % 3 != 0).then_some(if step < 40 { 200.0 } else { 100.0 } + ripple(step))));
        assert_eq!(shifts.len(), 1);
        assert!(shifts[0].to < shifts[0].from && shifts[0].detected <= 46);
    }

    #[test]
    fn spikes_and_ripples_are_no_shift() {
        let shifts =
            run((0..400).map(|step| Some(if step % 23 == 7 { 900.0 } else { 100.0 } + ripple(step))));
        assert_eq!(shifts, []);
    }

    #[test]
    fn a_creep_is_found() {
        let shifts =
            run((0..200_u64).map(|step| Some(100.0 + step.saturating_sub(60) as f64 + ripple(step))));
        assert!(!shifts.is_empty() && shifts.iter().all(|shift| shift.to > shift.from));
    }
}
