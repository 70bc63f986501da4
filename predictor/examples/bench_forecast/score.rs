//! What is counted of each forecast.

use predictor::{LEVELS, Outlook, Quantiles, sample};

/// Judged over the steps up to each of these.
pub(crate) const HORIZONS: [usize; 2] = [12, 48];

/// Sums of one model over one series.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Tally {
    scored: [usize; HORIZONS.len()],
    loss: [f64; HORIZONS.len()],
    covered: [f64; HORIZONS.len()],
    pub(crate) abstained: usize,
}

impl Tally {
    pub(crate) fn add(&mut self, outlook: &Outlook, came: &[Option<f64>]) {
        match outlook {
            Outlook::Forecast(forecast) => self.score(|ahead| forecast.steps[ahead], came),
            Outlook::Abstained(_) => self.abstained += 1,
        }
    }

    pub(crate) fn add_flat(&mut self, quantiles: Quantiles, came: &[Option<f64>]) {
        self.score(|_| quantiles, came);
    }

    fn score(&mut self, at: impl Fn(usize) -> Quantiles, came: &[Option<f64>]) {
        for (ahead, value) in came.iter().enumerate() {
            let Some(value) = *value else { continue };
            let quantiles = at(ahead);
            let loss = sample::loss(&quantiles, value);
            let covered = quantiles[0] <= value && value <= quantiles[LEVELS.len() - 1];
            for (place, horizon) in HORIZONS.into_iter().enumerate() {
                if ahead < horizon {
                    self.scored[place] += 1;
                    self.loss[place] += loss;
                    self.covered[place] += f64::from(u8::from(covered));
                }
            }
        }
    }

    pub(crate) fn scored(&self, horizon: usize) -> usize {
        self.scored[horizon]
    }

    /// The mean loss; infinite where nothing could be scored.
    pub(crate) fn loss(&self, horizon: usize) -> f64 {
        if self.scored[horizon] == 0 {
            f64::INFINITY
        } else {
            self.loss[horizon] / self.scored[horizon] as f64
        }
    }

    pub(crate) fn covered(&self, horizon: usize) -> f64 {
        self.covered[horizon]
    }
}
