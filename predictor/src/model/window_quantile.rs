//! The next steps will be spread like the last `span` steps.
//!
//! Empirical quantiles of a sliding window (historical simulation; Hyndman & Fan 1996 for the interpolation).

use super::{Forecaster, Freshness};
use crate::forecast::{Abstained, Forecast, Outlook, Quantiles};
use crate::sorted::SortedWindow;
use crate::window::usable;

/// Quantiles of the values among the last `span` steps.
#[derive(Clone, Debug)]
pub struct WindowQuantile {
    name: &'static str,
    window: SortedWindow,
    freshness: Freshness,
}

/// A window answers once it has this many values, or fewer if its span is shorter.
const NEEDED: usize = 3;

impl WindowQuantile {
    /// Over the last `span` steps.
    pub fn new(span: usize) -> Self {
        let name = match span {
            6 => "window-6",
            12 => "window-12",
            24 => "window-24",
            60 => "window-60",
            120 => "window-120",
            240 => "window-240",
            _ => "window",
        };
        Self { name, window: SortedWindow::new(span), freshness: Freshness::default() }
    }

    /// The quantiles; `None` while there are too few values.
    pub fn quantiles(&self) -> Option<Quantiles> {
        (self.window.len() >= NEEDED).then(|| self.window.quantiles()).flatten()
    }

    fn answer(&self, horizon: usize) -> Result<Forecast, Abstained> {
        self.freshness.check(self.window.len(), NEEDED)?;
        let quantiles = self.quantiles().ok_or_else(|| Abstained::because("no values observed"))?;
        Forecast::flat(quantiles, horizon, self.window.len())
    }
}

impl Forecaster for WindowQuantile {
    fn observe(&mut self, step: u64, value: Option<f64>) {
        let value = usable(value);
        if let Some(skipped) = self.freshness.advance(step, value.is_some()) {
            self.window.skip(skipped);
            self.window.push(value);
        }
    }

    fn forecast(&self, horizon: usize) -> Outlook {
        self.answer(horizon).into()
    }

    fn name(&self) -> &'static str {
        self.name
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_values_leave_the_window() {
        let mut model = WindowQuantile::new(6);
        for step in 0..20 {
            model.observe(step, Some(if step < 14 { 1000.0 } else { 10.0 }));
        }
        let outlook = model.forecast(3);
        assert_eq!(outlook.forecast().unwrap().steps, vec![[10.0; 5]; 3]);
    }
}
