//! Walk-forward evaluation: at every step forecast, then look; never the other way round.
//!
//! Judged by the mean pinball loss over the levels (a quarter of it is, in the limit, the CRPS's; Gneiting & Raftery
//! 2007) and by how often the 5/95 band covered, and compared with persistence on exactly the same steps.

use crate::forecast::{LEVELS, Outlook, Quantiles};
use crate::model::{Forecaster, Persistence};
use crate::sample;
use crate::window::usable;

/// What a walk over a series showed. Sums over all walks can be added up with [`Report::merge`].
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Report {
    /// Forecasts that could be scored (one for each step and distance with a value).
    pub scored: usize,
    /// Times the forecaster abstained where persistence answered.
    pub abstained: usize,
    /// Sum of the forecaster's mean pinball losses, in the unit of the series.
    pub loss: f64,
    /// The same of persistence with bands from its past errors.
    pub persistence: f64,
    /// The same of persistence without bands: the last value at every level.
    pub naive: f64,
    /// Times the value lay within the 5/95 band.
    pub covered: usize,
    /// Times the value lay above the upper quantile.
    pub above: usize,
}

impl Report {
    /// Share of the scored values within the 5/95 band; 0.9 is promised.
    pub fn coverage(&self) -> f64 {
        self.covered as f64 / self.scored.max(1) as f64
    }

    /// How much of persistence's loss (with bands) is saved; negative where persistence is better.
    pub fn skill(&self) -> f64 {
        if self.persistence > 0.0 { 1.0 - self.loss / self.persistence } else { 0.0 }
    }

    /// Adds another walk's sums.
    pub fn merge(&mut self, other: &Self) {
        self.scored += other.scored;
        self.abstained += other.abstained;
        self.loss += other.loss;
        self.persistence += other.persistence;
        self.naive += other.naive;
        self.covered += other.covered;
        self.above += other.above;
    }
}

/// Walks `forecaster` over `values`, scoring its forecasts at each of `distances` steps ahead (1 is the next), from
/// step `warmup` on. One report for each distance.
pub fn walk_forward(
    forecaster: &mut dyn Forecaster,
    values: &[Option<f64>],
    distances: &[usize],
    warmup: usize,
) -> Vec<Report> {
    let mut reports = vec![Report::default(); distances.len()];
    let furthest = distances.iter().copied().max().unwrap_or(0);
    let mut baseline = Persistence::new();
    let mut last = None;
    for (step, value) in values.iter().enumerate() {
        forecaster.observe(step as u64, *value);
        baseline.observe(step as u64, *value);
        last = usable(*value).or(last);
        if step < warmup {
            continue;
        }
        let (Outlook::Forecast(reference), Some(last)) = (baseline.forecast(furthest), last) else {
            continue;
        };
        let outlook = forecaster.forecast(furthest);
        for (report, distance) in reports.iter_mut().zip(distances) {
            let ahead = distance.saturating_sub(1);
            let Some(came) = values.get(step + ahead + 1).copied().and_then(usable) else { continue };
            match &outlook {
                Outlook::Forecast(forecast) => {
                    score(report, &forecast.steps[ahead], &reference.steps[ahead], last, came);
                }
                Outlook::Abstained(_) => report.abstained += 1,
            }
        }
    }
    reports
}

fn score(report: &mut Report, quantiles: &Quantiles, reference: &Quantiles, last: f64, came: f64) {
    report.scored += 1;
    report.loss += sample::loss(quantiles, came);
    report.persistence += sample::loss(reference, came);
    report.naive += sample::loss(&[last; LEVELS.len()], came);
    report.covered += usize::from(quantiles[0] <= came && came <= quantiles[LEVELS.len() - 1]);
    report.above += usize::from(came > quantiles[LEVELS.len() - 1]);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::forecast::Forecast;

    /// Knows only what it was told; would be caught if it were shown the future.
    struct Last(Option<(u64, f64)>);

    impl Forecaster for Last {
        fn observe(&mut self, step: u64, value: Option<f64>) {
            self.0 = value.map(|value| (step, value));
        }

        fn forecast(&self, horizon: usize) -> Outlook {
            Forecast::flat([self.0.map_or(0.0, |(_, value)| value); LEVELS.len()], horizon, 1).into()
        }

        fn name(&self) -> &'static str {
            "last"
        }
    }

    #[test]
    fn the_naive_column_is_what_a_model_that_repeats_the_last_value_scores() {
        let values: Vec<Option<f64>> = (0..100).map(|step| Some(f64::from(step * step % 17))).collect();
        let reports = walk_forward(&mut Last(None), &values, &[1, 5], 20);
        for (report, distance) in reports.iter().zip([1, 5]) {
            assert_eq!(report.scored, 100 - 20 - distance);
            assert!((report.loss - report.naive).abs() < 1e-9 && report.loss > 0.0);
        }
    }
}
