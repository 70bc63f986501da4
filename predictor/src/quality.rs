//! How good the forecasts of one series have been of late: the last [`WINDOW`] that a value judged, older ones count for nothing.

use std::collections::VecDeque;

use crate::forecast::{LEVELS, Quantiles, Reason};
use crate::sample;

/// Forecasts that are looked at, and steps in which there may have been none: two hours of 10 s.
pub const WINDOW: usize = 720;

/// The figures at one distance ahead.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Quality {
    /// Forecasts that were scored, at most [`WINDOW`].
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
}

/// What became of one forecast.
#[derive(Clone, Copy, Debug)]
struct Scored {
    inside: bool,
    loss: f64,
    last_value_loss: f64,
}

/// The scored forecasts of the window, at one distance ahead.
#[derive(Clone, Debug, Default)]
pub(crate) struct Scores(VecDeque<Scored>);

impl Scores {
    pub(crate) fn learn(&mut self, issued: &Quantiles, last: f64, came: f64) {
        if self.0.len() == WINDOW {
            self.0.pop_front();
        }
        self.0.push_back(Scored {
            inside: issued[0] <= came && came <= issued[LEVELS.len() - 1],
            loss: sample::loss(issued, came),
            last_value_loss: sample::loss(&[last; LEVELS.len()], came),
        });
    }

    /// Summed anew each time: running sums would drift.
    pub(crate) fn quality(&self) -> Quality {
        let count = self.0.len() as f64;
        if self.0.is_empty() {
            return Quality::default();
        }
        let mean = |of: fn(&Scored) -> f64| self.0.iter().map(of).sum::<f64>() / count;
        Quality {
            scored: self.0.len() as u64,
            coverage: mean(|scored| if scored.inside { 1.0 } else { 0.0 }),
            loss: mean(|scored| scored.loss),
            last_value_loss: mean(|scored| scored.last_value_loss),
        }
    }
}

/// Steps without a forecast, by reason.
#[derive(Clone, Debug, Default)]
pub struct Abstentions {
    window: VecDeque<Option<Reason>>,
    ever: [u64; Reason::ALL.len()],
}

impl Abstentions {
    pub(crate) fn note(&mut self, reason: Option<Reason>) {
        if self.window.len() == WINDOW {
            self.window.pop_front();
        }
        self.window.push_back(reason);
        if let Some(reason) = reason {
            self.ever[reason as usize] += 1;
        }
    }

    /// Steps of the window, with a forecast or without; at most [`WINDOW`].
    pub fn steps(&self) -> usize {
        self.window.len()
    }

    /// Of them, those without a forecast for this reason.
    pub fn of_late(&self, reason: Reason) -> usize {
        self.window.iter().filter(|of| **of == Some(reason)).count()
    }

    /// Why the newest step has no forecast; none: it has one, or there is no step.
    pub fn newest(&self) -> Option<Reason> {
        self.window.back().copied().flatten()
    }

    /// Steps without a forecast for this reason since the beginning.
    pub fn ever(&self, reason: Reason) -> u64 {
        self.ever[reason as usize]
    }

    /// Steps without a forecast since the beginning.
    pub fn total(&self) -> u64 {
        self.ever.iter().sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_those_of_the_window_only() {
        let mut scores = Scores::default();
        assert_eq!(scores.quality(), Quality::default());
        let band = [1.0, 2.0, 3.0, 4.0, 5.0];
        for _ in 0..WINDOW {
            scores.learn(&band, 3.0, 100.0);
        }
        assert!(scores.quality().coverage.abs() < 1e-12);
        for _ in 0..WINDOW / 2 {
            scores.learn(&band, 1.0, 3.0);
        }
        let quality = scores.quality();
        assert_eq!(quality.scored, WINDOW as u64);
        assert!((quality.coverage - 0.5).abs() < 1e-12, "{quality:?}");
        for _ in 0..WINDOW / 2 {
            scores.learn(&band, 1.0, 3.0);
        }
        let quality = scores.quality();
        assert!((quality.coverage - 1.0).abs() < 1e-12);
        assert!(quality.against_last_value().is_some_and(|ratio| ratio < 1.0), "{quality:?}");
    }

    #[test]
    fn abstentions_leave_the_window_and_stay_counted() {
        let mut abstentions = Abstentions::default();
        abstentions.note(Some(Reason::TooFew));
        abstentions.note(Some(Reason::Stale));
        for _ in 2..WINDOW {
            abstentions.note(None);
        }
        assert_eq!((abstentions.of_late(Reason::TooFew), abstentions.steps()), (1, WINDOW));
        abstentions.note(None);
        assert_eq!((abstentions.of_late(Reason::TooFew), abstentions.of_late(Reason::Stale)), (0, 1));
        assert_eq!((abstentions.ever(Reason::TooFew), abstentions.total()), (1, 2));
        assert_eq!(abstentions.newest(), None);
        abstentions.note(Some(Reason::Stale));
        assert_eq!(abstentions.newest(), Some(Reason::Stale));
    }
}
