//! The next steps will be like the last value, give or take what it used to miss by.
//!
//! The naive forecast (Hyndman & Athanasopoulos 2021, ch. 5.2) with empirical error quantiles at each distance:
//! the baseline that every other model has to beat, and an expert where the series wanders.

use super::{Forecaster, Freshness, LAGS};
use crate::forecast::{Abstained, Forecast, Outlook, Quantiles, check_horizon};
use crate::sorted::SortedWindow;
use crate::window::{Window, usable};

/// Past steps that errors are measured over.
const SPAN: usize = 240;
/// Values needed before errors are worth measuring.
const NEEDED: usize = 6;

/// The last value, with a band from past errors.
#[derive(Clone, Debug)]
pub struct Persistence {
    window: Window,
    last: Option<f64>,
    /// Changes over each of [`LAGS`] steps.
    changes: [SortedWindow; LAGS.len()],
    freshness: Freshness,
}

impl Default for Persistence {
    fn default() -> Self {
        Self::new()
    }
}

impl Persistence {
    /// A model that has seen nothing.
    pub fn new() -> Self {
        Self {
            window: Window::new(LAGS[LAGS.len() - 1] + 1),
            last: None,
            changes: LAGS.map(|lag| SortedWindow::new(SPAN - lag)),
            freshness: Freshness::default(),
        }
    }

    /// The band at each of [`LAGS`]; those between take the nearest below. `None` while there are too few values.
    pub fn bands(&self) -> Option<[Quantiles; LAGS.len()]> {
        let last = self.last?;
        if self.changes[0].len() < NEEDED {
            return None;
        }
        let mut known = [0.0; 5];
        Some(std::array::from_fn(|place| {
            let changes = &self.changes[place];
            known = (changes.len() >= NEEDED).then(|| changes.quantiles()).flatten().unwrap_or(known);
            // The median error is noise where nothing drifts: the centre stays the last value.
            let centre = known[2];
            known.map(|error| last + error - centre)
        }))
    }

    /// Which of [`LAGS`] answers for the step `ahead`.
    pub fn band_of(&self, ahead: usize) -> usize {
        let ahead = ahead + self.freshness.age().unwrap_or(0);
        LAGS.iter().rposition(|lag| *lag <= ahead).unwrap_or(0)
    }

    fn answer(&self, horizon: usize) -> Result<Forecast, Abstained> {
        check_horizon(horizon)?;
        self.freshness.check(self.changes[0].len(), NEEDED)?;
        let bands = self.bands().ok_or_else(|| Abstained::because("no values observed"))?;
        let steps = (1..=horizon).map(|ahead| bands[self.band_of(ahead)]).collect();
        Forecast::new(steps, self.changes[0].len() + 1)
    }
}

impl Forecaster for Persistence {
    fn observe(&mut self, step: u64, value: Option<f64>) {
        let value = usable(value);
        let Some(skipped) = self.freshness.advance(step, value.is_some()) else { return };
        self.window.push(step, value);
        self.last = value.or(self.last);
        for (changes, lag) in self.changes.iter_mut().zip(LAGS) {
            changes.skip(skipped);
            changes.push(value.zip(self.window.ago(lag)).map(|(now, then)| now - then));
        }
    }

    fn forecast(&self, horizon: usize) -> Outlook {
        self.answer(horizon).into()
    }

    fn name(&self) -> &'static str {
        "persistence"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_centre_is_the_last_value_and_the_band_widens() {
        let mut model = Persistence::new();
        for step in 0..120_u64 {
            model.observe(step, Some((step * step % 97) as f64 / 10.0 + (step / 10) as f64));
        }
        let outlook = model.forecast(60);
        let forecast = outlook.forecast().unwrap();
        let last = f64::from(119 * 119 % 97) / 10.0 + 11.0;
        assert!((forecast.steps[0][2] - last).abs() < 1e-9);
        assert!(forecast.steps[0][0] < last && forecast.steps[0][4] > last);
        let width = |step: usize| forecast.steps[step][4] - forecast.steps[step][0];
        assert!(width(59) > width(0));
    }
}
