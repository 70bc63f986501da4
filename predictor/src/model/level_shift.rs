//! The next steps will be spread like the values since the last jump.
//!
//! After a jump there are only a few values: their median is trusted at once, their spread only as they grow in
//! number; until then it is borrowed from the level before, scaled by the ratio of the two levels (latency's spread
//! grows with its level). A locally constant level with restarts: the change-point idea of Page (1954) and Chu,
//! Stinchcombe & White (1996) applied to forecasting.

use super::{Forecaster, Freshness};
use crate::forecast::{Abstained, Forecast, LEVELS, Outlook, Quantiles};
use crate::sample;
use crate::shift::{Shift, ShiftDetector};
use crate::window::Window;

/// Steps of the level before that a spread is borrowed from.
const SPAN: usize = 240;
/// The weight, in values, of the borrowed spread.
const BORROWED: f64 = 12.0;
/// How much wider or narrower a borrowed spread may become.
const STRETCH: (f64, f64) = (0.25, 8.0);
/// Values needed to answer.
const NEEDED: usize = 3;

/// Quantiles of the level since the last detected shift.
#[derive(Clone, Debug)]
pub struct LevelShift {
    detector: ShiftDetector,
    window: Window,
    /// Quantiles of the level before, less its median, scaled to the present level.
    borrowed: Option<Quantiles>,
    freshness: Freshness,
}

impl Default for LevelShift {
    fn default() -> Self {
        Self::new()
    }
}

impl LevelShift {
    /// A model that has seen nothing.
    pub fn new() -> Self {
        Self {
            detector: ShiftDetector::default(),
            window: Window::new(SPAN),
            borrowed: None,
            freshness: Freshness::default(),
        }
    }

    /// First step of the present level.
    pub fn level_from(&self) -> u64 {
        self.detector.level_from()
    }

    fn spread_before(window: &Window, from: u64, until: u64) -> Option<Quantiles> {
        let newest = window.newest()?;
        let after = usize::try_from(newest.checked_sub(until)?).ok()?.saturating_add(1);
        let span = usize::try_from(newest.checked_sub(from)?).ok()?.saturating_add(1);
        let mut values: Vec<f64> = (after..span.min(SPAN)).filter_map(|ago| window.ago(ago)).collect();
        let quantiles = sample::quantiles(&mut values)?;
        (values.len() >= NEEDED).then(|| quantiles.map(|value| value - quantiles[2]))
    }

    /// The quantiles; `None` while there are too few values.
    pub fn quantiles(&self) -> Option<Quantiles> {
        let level = self.detector.level();
        let own = level.quantiles()?;
        let mut quantiles = own;
        if let Some(borrowed) = self.borrowed {
            let count = level.len() as f64;
            let trust = count / (count + BORROWED);
            for place in 0..LEVELS.len() {
                quantiles[place] = own[2] + (own[place] - own[2]) * trust + borrowed[place] * (1.0 - trust);
            }
        } else if level.len() < NEEDED {
            return None;
        }
        Some(quantiles)
    }

    fn answer(&self, horizon: usize) -> Result<Forecast, Abstained> {
        let observed = self.detector.level().len();
        self.freshness.check(self.window.observed(), NEEDED)?;
        let quantiles = self.quantiles().ok_or_else(|| Abstained::because("no values observed"))?;
        Forecast::flat(quantiles, horizon, observed)
    }
}

impl Forecaster for LevelShift {
    fn observe(&mut self, step: u64, value: Option<f64>) {
        let level_from = self.detector.level_from();
        if !self.window.push(step, value) {
            return;
        }
        self.freshness.advance(step, self.window.ago(0).is_some());
        if let Some(shift) = self.detector.observe(step, value) {
            let ratio = if shift.from.abs() > f64::EPSILON { (shift.to / shift.from).abs() } else { 1.0 };
            let stretch = ratio.clamp(STRETCH.0, STRETCH.1);
            self.borrowed = Self::spread_before(&self.window, level_from, shift.onset)
                .or(self.borrowed)
                .map(|spread| spread.map(|value| value * stretch));
        }
    }

    fn forecast(&self, horizon: usize) -> Outlook {
        self.answer(horizon).into()
    }

    fn name(&self) -> &'static str {
        "level-shift"
    }

    fn shift(&self) -> Option<Shift> {
        self.detector.last()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn after_a_jump_only_the_new_level_counts() {
        let mut model = LevelShift::new();
        for step in 0..64_u64 {
            let level = if step < 60 { 20.0 } else { 200.0 };
            model.observe(step, Some(level + (step % 5) as f64));
        }
        assert_eq!(model.shift().map(|shift| shift.onset), Some(60));
        let outlook = model.forecast(10);
        let quantiles = outlook.forecast().unwrap().steps[0];
        assert!(quantiles[0] > 180.0 && quantiles[4] < 240.0 && quantiles[0] < quantiles[4], "{quantiles:?}");
    }
}
