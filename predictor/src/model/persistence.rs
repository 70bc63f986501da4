//! The next steps will be like the last value, give or take what it used to miss by.
//!
//! The naive forecast (Hyndman & Athanasopoulos 2021, ch. 5.2) with empirical error quantiles at each distance:
//! the baseline that every other model has to beat, and an expert where the series wanders.

use super::{Forecaster, enough};
use crate::forecast::{Abstained, Forecast, LEVELS, Outlook, Quantiles};
use crate::sample;
use crate::window::Window;

/// Distances, in steps, at which past errors are measured; those between take the nearest below.
const DISTANCES: [usize; 5] = [1, 2, 4, 16, 48];
/// Past steps that errors are measured over.
const SPAN: usize = 240;
/// Values needed before errors are worth measuring.
const NEEDED: usize = 6;

/// The last value, with a band from past errors.
#[derive(Clone, Debug)]
pub struct Persistence {
    window: Window,
}

impl Default for Persistence {
    fn default() -> Self {
        Self::new()
    }
}

impl Persistence {
    /// A model that has seen nothing.
    pub fn new() -> Self {
        Self { window: Window::new(SPAN) }
    }

    /// Quantiles of the change over `distance` steps.
    fn errors(&self, distance: usize) -> Option<Quantiles> {
        let mut changes: Vec<f64> = (0..SPAN.saturating_sub(distance))
            .filter_map(|ago| Some(self.window.ago(ago)? - self.window.ago(ago + distance)?))
            .collect();
        (changes.len() >= NEEDED).then(|| sample::quantiles(&mut changes)).flatten()
    }

    fn answer(&self, horizon: usize) -> Result<Forecast, Abstained> {
        crate::forecast::check_horizon(horizon)?;
        enough(&self.window, NEEDED)?;
        let last =
            self.window.last(usize::MAX).next().ok_or_else(|| Abstained::because("no values observed"))?;
        let age = self.window.age().unwrap_or(0);
        let mut known = [0.0; LEVELS.len()];
        let bands: Vec<Quantiles> = DISTANCES
            .iter()
            .map(|distance| {
                known = self.errors(*distance).unwrap_or(known);
                // The median error is noise where nothing drifts: the centre stays the last value.
                let centre = known[2];
                known.map(|error| last + error - centre)
            })
            .collect();
        let steps = (1..=horizon)
            .map(|ahead| {
                let nearest = DISTANCES.iter().rposition(|distance| *distance <= ahead + age).unwrap_or(0);
                bands[nearest]
            })
            .collect();
        Forecast::new(steps, self.window.observed())
    }
}

impl Forecaster for Persistence {
    fn observe(&mut self, step: u64, value: Option<f64>) {
        self.window.push(step, value);
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
    }
}
