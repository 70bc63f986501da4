//! The next steps will be spread like the last `span` steps.
//!
//! Empirical quantiles of a sliding window (historical simulation; Hyndman & Fan 1996 for the interpolation).

use super::{Forecaster, enough};
use crate::forecast::{Abstained, Forecast, Outlook};
use crate::sample;
use crate::window::Window;

/// Quantiles of the values among the last `span` steps.
#[derive(Clone, Debug)]
pub struct WindowQuantile {
    name: &'static str,
    window: Window,
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
        Self { name, window: Window::new(span) }
    }

    fn quantiles(&self, horizon: usize) -> Result<Forecast, Abstained> {
        enough(&self.window, NEEDED)?;
        let mut values: Vec<f64> = self.window.last(usize::MAX).collect();
        let quantiles =
            sample::quantiles(&mut values).ok_or_else(|| Abstained::because("no values observed"))?;
        Forecast::flat(quantiles, horizon, values.len())
    }
}

impl Forecaster for WindowQuantile {
    fn observe(&mut self, step: u64, value: Option<f64>) {
        self.window.push(step, value);
    }

    fn forecast(&self, horizon: usize) -> Outlook {
        self.quantiles(horizon).into()
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
