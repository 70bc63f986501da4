//! The next steps will be like those of the same time of day, moved by how today differs.
//!
//! A profile of one period in at most 48 parts, each an exponentially weighted mean of past periods' medians (a seasonal
//! naive forecast, smoothed: Hyndman & Athanasopoulos 2021, ch. 5.2 and 8). What is left after taking the profile away
//! is forecast like a level: by the quantiles of its last steps. Says nothing before one and a half periods.

use super::{Forecaster, Freshness};
use crate::forecast::{Abstained, Forecast, Outlook, Quantiles, check_horizon};
use crate::sample;
use crate::sorted::SortedWindow;
use crate::window::usable;

/// Parts of a profile, at most.
const PARTS: usize = 48;
/// The weight of the newest period.
const NEWEST: f64 = 0.35;
/// Values left after taking the profile away, before the model answers.
const NEEDED: usize = 12;

/// A profile of one period and the recent differences from it.
#[derive(Clone, Debug)]
pub struct Season {
    period: u64,
    parts: Vec<Option<f64>>,
    /// Values of the part that is now.
    present: Vec<f64>,
    present_part: usize,
    first: Option<u64>,
    newest: u64,
    differences: SortedWindow,
    freshness: Freshness,
    name: &'static str,
}

impl Season {
    /// Of `period` steps; differences over the last `span` steps.
    pub fn new(period: usize, span: usize) -> Self {
        let period = period.max(2);
        Self {
            period: period as u64,
            parts: vec![None; period.min(PARTS)],
            present: Vec::new(),
            present_part: 0,
            first: None,
            newest: 0,
            differences: SortedWindow::new(span),
            freshness: Freshness::default(),
            name: if span <= 60 { "season-short" } else { "season-long" },
        }
    }

    fn part_of(&self, step: u64) -> usize {
        let phase = u128::from(step % self.period);
        (phase * self.parts.len() as u128 / u128::from(self.period)) as usize
    }

    /// The profile at `step`, interpolated between the middles of its parts.
    fn profile(&self, step: u64) -> Option<f64> {
        let count = self.parts.len();
        let place = (step % self.period) as f64 + 0.5;
        let place = place * count as f64 / self.period as f64 - 0.5;
        let below = place.floor();
        let share = place - below;
        let below = if below < 0.0 { count - 1 } else { (below as usize).min(count - 1) };
        let (left, right) = (self.parts[below], self.parts[(below + 1) % count]);
        match (left, right) {
            (Some(left), Some(right)) => Some(left + (right - left) * share),
            (one, other) => one.or(other),
        }
    }

    fn close_part(&mut self) {
        if let Some(median) = sample::median(&mut self.present) {
            let part = &mut self.parts[self.present_part];
            *part = Some(part.map_or(median, |old| old + NEWEST * (median - old)));
        }
        self.present.clear();
    }

    /// Whether one and a half periods have been seen, nearly without gaps.
    fn awake(&self) -> bool {
        let seen = self.first.map_or(0, |first| self.newest - first);
        seen.saturating_mul(2) >= self.period.saturating_mul(3)
            && self.differences.len() >= NEEDED
            && self.parts.iter().filter(|part| part.is_some()).count() * 10 >= self.parts.len() * 9
    }

    /// Quantiles `ahead` steps after the newest; `None` while asleep.
    pub fn quantiles(&self, ahead: usize) -> Option<Quantiles> {
        if !self.awake() {
            return None;
        }
        let profile = self.profile(self.newest.checked_add(ahead as u64)?)?;
        Some(self.differences.quantiles()?.map(|difference| profile + difference))
    }

    fn answer(&self, horizon: usize) -> Result<Forecast, Abstained> {
        check_horizon(horizon)?;
        self.freshness.check(self.differences.len(), NEEDED)?;
        let steps: Option<Vec<Quantiles>> = (1..=horizon).map(|ahead| self.quantiles(ahead)).collect();
        let steps = steps.ok_or_else(|| {
            Abstained::because(format!("one and a half periods of {} steps have not been seen", self.period))
        })?;
        Forecast::new(steps, self.differences.len())
    }
}

impl Forecaster for Season {
    fn observe(&mut self, step: u64, value: Option<f64>) {
        let value = usable(value);
        let Some(skipped) = self.freshness.advance(step, value.is_some()) else { return };
        let part = self.part_of(step);
        if part != self.present_part || skipped >= self.period {
            self.close_part();
            self.present_part = part;
        }
        self.newest = step;
        self.differences.skip(skipped);
        // The profile is that of the periods before: it has not seen this value.
        let difference = value.zip(self.profile(step)).map(|(value, profile)| value - profile);
        self.differences.push(difference);
        if let Some(value) = value {
            self.first.get_or_insert(step);
            self.present.push(value);
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

    fn wave(step: u64) -> f64 {
        100.0 + 50.0 * ((step % 96) as f64 / 96.0 * std::f64::consts::TAU).sin()
    }

    #[test]
    fn sleeps_for_one_and_a_half_periods_and_then_knows_the_curve() {
        let mut model = Season::new(96, 24);
        for step in 0..143 {
            model.observe(step, Some(wave(step)));
        }
        let Outlook::Abstained(abstained) = model.forecast(3) else { panic!("answered") };
        assert_eq!(abstained.why, "one and a half periods of 96 steps have not been seen");
        for step in 143..400 {
            model.observe(step, Some(wave(step)));
        }
        let outlook = model.forecast(60);
        for (ahead, quantiles) in outlook.forecast().unwrap().steps.iter().enumerate() {
            let truth = wave(400 + ahead as u64);
            assert!((quantiles[2] - truth).abs() < 6.0, "{ahead}: {quantiles:?} {truth}");
        }
    }

    #[test]
    fn a_day_on_a_higher_level_lifts_the_curve() {
        let mut model = Season::new(96, 24);
        for step in 0..400 {
            model.observe(step, Some(wave(step) + if step >= 370 { 200.0 } else { 0.0 }));
        }
        let middle = model.quantiles(10).unwrap()[2];
        assert!((middle - wave(409) - 200.0).abs() < 10.0, "{middle}");
    }
}
