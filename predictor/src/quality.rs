//! How good the forecasts of one series have been of late.

use crate::forecast::{LEVELS, Quantiles};
use crate::sample;

/// The weight of the newest forecast, once there are many.
const PACE: f64 = 0.005;

/// Rolling figures at one distance ahead.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Quality {
    /// Forecasts that were scored.
    pub scored: u64,
    /// Share of values within the 5/95 band; 0.9 is promised.
    pub coverage: f64,
    /// Mean pinball loss, in the unit of the series.
    pub loss: f64,
    /// The same of the last value as every quantile.
    pub last_value_loss: f64,
}

impl Quality {
    /// The loss as a share of the last value's; nothing before a forecast was scored or where the last value never missed.
    pub fn against_last_value(&self) -> Option<f64> {
        (self.scored > 0 && self.last_value_loss > 0.0).then(|| self.loss / self.last_value_loss)
    }

    pub(crate) fn learn(&mut self, issued: &Quantiles, last: f64, came: f64) {
        let pace = PACE.max(1.0 / (self.scored as f64 + 1.0));
        let inside = issued[0] <= came && came <= issued[LEVELS.len() - 1];
        self.coverage += pace * (if inside { 1.0 } else { 0.0 } - self.coverage);
        self.loss += pace * (sample::loss(issued, came) - self.loss);
        self.last_value_loss += pace * (sample::loss(&[last; LEVELS.len()], came) - self.last_value_loss);
        self.scored += 1;
    }
}
