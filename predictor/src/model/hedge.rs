//! Weighs experts by how well they did, and calibrates what comes out.
//!
//! Hedge (Freund & Schapire 1997) with fixed share (Herbster & Warmuth 1998), so that no expert is ever forgotten,
//! and sleeping experts (Freund, Schapire, Singer & Warmuth 1997), which may abstain without being punished. The
//! loss is the mean pinball loss over the levels (Koenker & Bassett 1978), and it is *delayed* (Joulani, György &
//! Szepesvári 2013): what was forecast at step t for t + h is put away as it was, and scored when t + h comes. Each
//! bucket of horizons has weights of its own. Quantiles are averaged level by level (Vincent 1912), which keeps
//! them in order.
//!
//! When an expert detects a shift, forecasts put away before it say nothing about the new level: they move no
//! weights. Each expert is judged instead by how far its present forecast is from the new level, and a fixed part of
//! the weight goes to the expert that saw the shift.

use std::collections::VecDeque;

use super::{ENOUGH, Forecaster, enough};
use crate::calibrate::{Calibrator, Pace};
use crate::forecast::{Abstained, Forecast, LEVELS, Outlook, Quantiles, check_horizon};
use crate::sample;
use crate::shift::Shift;
use crate::window::{Window, usable};

/// How the weights move.
#[derive(Clone, Copy, Debug)]
pub struct Tuning {
    /// Learning rate, for a loss in units of the recent mean loss.
    pub rate: f64,
    /// Share of the weight that is given back to the prior at every scored step.
    pub share: f64,
    /// Part of the weight that goes to the expert that saw a shift.
    pub on_shift: f64,
    /// Learning rate when a shift was seen, for a loss in units of the jump.
    pub shift_rate: f64,
    /// How fast the bands are calibrated.
    pub pace: Pace,
}

impl Default for Tuning {
    fn default() -> Self {
        Self { rate: 0.5, share: 0.01, on_shift: 0.5, shift_rate: 12.0, pace: Pace::default() }
    }
}

/// The step ahead at which each bucket of horizons is scored.
const LAGS: [usize; 4] = [1, 4, 16, 48];
/// The furthest step ahead that each bucket but the last answers for.
const UNTIL: [usize; 3] = [2, 8, 31];
/// The weight of the newest mean loss in the unit of loss.
const UNIT_PACE: f64 = 0.05;
/// One loss counts for at most this many units.
const WORST: f64 = 8.0;

/// A weighted, calibrated mixture of experts.
pub struct Hedge {
    experts: Vec<Box<dyn Forecaster>>,
    tuning: Tuning,
    window: Window,
    buckets: Vec<Bucket>,
    pending: VecDeque<Issued>,
    never_negative: bool,
    seen_shift: Option<Shift>,
}

struct Bucket {
    weights: Vec<f64>,
    unit: Option<f64>,
    calibrator: Calibrator,
}

/// What was forecast at one step, as it was then.
struct Issued {
    step: u64,
    /// For each expert that was awake, its quantiles at each of [`LAGS`].
    experts: Vec<Option<[Quantiles; LAGS.len()]>>,
    /// The calibrated mixture at each of [`LAGS`].
    mixed: [Option<Quantiles>; LAGS.len()],
}

impl Hedge {
    /// Over `experts`, equally weighted at first.
    pub fn new(experts: Vec<Box<dyn Forecaster>>, tuning: Tuning) -> Self {
        let even = 1.0 / experts.len().max(1) as f64;
        let bucket = |lag: &usize| Bucket {
            weights: vec![even; experts.len()],
            unit: None,
            calibrator: Calibrator::new(tuning.pace, *lag),
        };
        Self {
            buckets: LAGS.iter().map(bucket).collect(),
            experts,
            tuning,
            window: Window::new(240),
            pending: VecDeque::new(),
            never_negative: true,
            seen_shift: None,
        }
    }

    /// Each expert's name and weight for the step `ahead` (1 is the next).
    pub fn weights(&self, ahead: usize) -> Vec<(&'static str, f64)> {
        let bucket = &self.buckets[bucket_of(ahead)];
        self.experts.iter().zip(&bucket.weights).map(|(expert, weight)| (expert.name(), *weight)).collect()
    }

    /// Scores what was forecast for `step`, now that its value is here.
    fn score(&mut self, step: u64, value: f64) {
        let level_from = self.seen_shift.map_or(0, |shift| shift.onset);
        for (place, bucket) in self.buckets.iter_mut().enumerate() {
            let Some(issued_at) = step.checked_sub(LAGS[place] as u64) else { continue };
            let Ok(found) = self.pending.binary_search_by_key(&issued_at, |issued| issued.step) else {
                continue;
            };
            let issued = &self.pending[found];
            if let Some(mixed) = &issued.mixed[place] {
                bucket.calibrator.learn(mixed, value);
            }
            if issued.step >= level_from {
                let losses: Vec<Option<f64>> = issued
                    .experts
                    .iter()
                    .map(|quantiles| quantiles.as_ref().map(|at| sample::loss(&at[place], value)))
                    .collect();
                bucket.learn(&losses, &self.tuning);
            }
        }
    }

    /// Moves the weights to the experts that are at the new level already, and to those that saw the shift.
    fn follow_shift(&mut self) {
        let newest =
            self.experts.iter().filter_map(|expert| expert.shift()).max_by_key(|shift| shift.detected);
        let Some(shift) = newest.filter(|_| newest != self.seen_shift) else { return };
        self.seen_shift = newest;
        let seers: Vec<bool> = self.experts.iter().map(|expert| expert.shift() == newest).collect();
        let each = self.tuning.on_shift / seers.iter().filter(|saw| **saw).count().max(1) as f64;
        let outlooks = self.outlooks(LAGS[LAGS.len() - 1]);
        let jump = (shift.to - shift.from).abs().max(f64::MIN_POSITIVE);
        for (bucket, lag) in self.buckets.iter_mut().zip(LAGS) {
            for (weight, outlook) in bucket.weights.iter_mut().zip(&outlooks) {
                let off =
                    outlook.as_ref().map_or(1.0, |at| sample::loss(&at.steps[lag - 1], shift.to) / jump);
                *weight *= (-self.tuning.shift_rate * off.min(1.0)).exp();
            }
            let total: f64 = bucket.weights.iter().sum();
            for (weight, saw) in bucket.weights.iter_mut().zip(&seers) {
                let kept = if total > 0.0 { *weight / total } else { 0.0 };
                *weight = kept * (1.0 - self.tuning.on_shift) + if *saw { each } else { 0.0 };
            }
        }
    }

    /// Puts away what is forecast now, to be scored later.
    fn issue(&mut self, step: u64) {
        let furthest = LAGS[LAGS.len() - 1];
        let outlooks = self.outlooks(furthest);
        let experts: Vec<Option<[Quantiles; LAGS.len()]>> = outlooks
            .iter()
            .map(|forecast| forecast.as_ref().map(|forecast| LAGS.map(|lag| forecast.steps[lag - 1])))
            .collect();
        let mixed = std::array::from_fn(|place| self.mix(&outlooks, LAGS[place]));
        let oldest = step.saturating_sub(furthest as u64);
        while self.pending.front().is_some_and(|issued| issued.step <= oldest) {
            self.pending.pop_front();
        }
        self.pending.push_back(Issued { step, experts, mixed });
    }

    fn outlooks(&self, horizon: usize) -> Vec<Option<Forecast>> {
        self.experts
            .iter()
            .map(|expert| match expert.forecast(horizon) {
                Outlook::Forecast(forecast) if forecast.steps.len() == horizon => Some(forecast),
                _ => None,
            })
            .collect()
    }

    /// The calibrated mixture for the step `ahead`; `None` when every expert abstains.
    fn mix(&self, outlooks: &[Option<Forecast>], ahead: usize) -> Option<Quantiles> {
        let bucket = &self.buckets[bucket_of(ahead)];
        let mut sum = [0.0; LEVELS.len()];
        let mut total = 0.0;
        for (outlook, weight) in outlooks.iter().zip(&bucket.weights) {
            if let Some(forecast) = outlook {
                total += weight;
                for (into, value) in sum.iter_mut().zip(forecast.steps[ahead - 1]) {
                    *into += weight * value;
                }
            }
        }
        if total <= 0.0 {
            return None;
        }
        let mut quantiles = bucket.calibrator.adjust(&sum.map(|value| value / total));
        if self.never_negative {
            quantiles = quantiles.map(|value| value.max(0.0));
        }
        Some(quantiles)
    }

    fn answer(&self, horizon: usize) -> Result<Forecast, Abstained> {
        check_horizon(horizon)?;
        enough(&self.window, ENOUGH)?;
        let outlooks = self.outlooks(horizon);
        let steps: Option<Vec<Quantiles>> = (1..=horizon).map(|ahead| self.mix(&outlooks, ahead)).collect();
        let steps = steps.ok_or_else(|| Abstained::because("every expert abstains"))?;
        Forecast::new(steps, self.window.observed())
    }
}

impl Bucket {
    /// Moves the weights by `losses`; an expert that slept moves like the mixture of the others.
    fn learn(&mut self, losses: &[Option<f64>], tuning: &Tuning) {
        let awake: Vec<f64> = losses.iter().filter_map(|loss| *loss).collect();
        let (best, worst) =
            awake.iter().fold((f64::MAX, 0.0_f64), |(low, high), loss| (low.min(*loss), high.max(*loss)));
        if awake.is_empty() || worst - best <= worst * 1e-9 {
            // None awake, or all alike (a series that stands still): no evidence, and nothing that should be forgotten for it.
            return;
        }
        let mean = awake.iter().sum::<f64>() / awake.len() as f64;
        let unit = self.unit.map_or(mean, |unit| unit + UNIT_PACE * (mean.min(unit * WORST) - unit));
        // A unit that has been exactly zero cannot grow by its own multiples.
        let unit = if unit > 0.0 { unit } else { mean };
        self.unit = Some(unit);
        if unit <= 0.0 {
            return;
        }
        let before: f64 =
            losses.iter().zip(&self.weights).filter(|(loss, _)| loss.is_some()).map(|(_, w)| w).sum();
        let mut after = 0.0;
        for (weight, loss) in self.weights.iter_mut().zip(losses) {
            if let Some(loss) = loss {
                *weight *= (-tuning.rate * (loss / unit).min(WORST)).exp();
                after += *weight;
            }
        }
        let scale = if after > 0.0 { before / after } else { 0.0 };
        for (weight, loss) in self.weights.iter_mut().zip(losses) {
            if loss.is_some() {
                *weight *= scale;
            }
        }
        let total: f64 = self.weights.iter().sum();
        let even = 1.0 / self.weights.len() as f64;
        for weight in &mut self.weights {
            let own = if total > 0.0 { *weight / total } else { even };
            *weight = own * (1.0 - tuning.share) + even * tuning.share;
        }
    }
}

/// Which bucket answers for the step `ahead` (1 is the next).
fn bucket_of(ahead: usize) -> usize {
    UNTIL.iter().position(|until| ahead <= *until).unwrap_or(UNTIL.len())
}

impl Forecaster for Hedge {
    fn observe(&mut self, step: u64, value: Option<f64>) {
        let value = usable(value);
        if !self.window.push(step, value) {
            return;
        }
        if let Some(value) = value {
            self.never_negative &= value >= 0.0;
            self.score(step, value);
        }
        for expert in &mut self.experts {
            expert.observe(step, value);
        }
        self.follow_shift();
        self.issue(step);
    }

    fn forecast(&self, horizon: usize) -> Outlook {
        self.answer(horizon).into()
    }

    fn name(&self) -> &'static str {
        "hedge"
    }

    fn shift(&self) -> Option<Shift> {
        self.seen_shift
    }
}

#[cfg(test)]
mod tests {
    use super::super::{LevelShift, WindowQuantile};
    use super::*;

    fn small() -> Hedge {
        Hedge::new(
            vec![
                Box::new(LevelShift::new()),
                Box::new(WindowQuantile::new(6)),
                Box::new(WindowQuantile::new(240)),
            ],
            Tuning::default(),
        )
    }

    fn ripple(step: u64) -> f64 {
        (step * 7919 % 13) as f64
    }

    #[test]
    fn abstains_with_a_reason_on_five_values_and_answers_on_six() {
        let mut hedge = small();
        for step in 0..5 {
            hedge.observe(step, Some(10.0));
        }
        let Outlook::Abstained(abstained) = hedge.forecast(3) else { panic!("answered") };
        assert_eq!(abstained.why, "5 values observed, 6 are needed");
        hedge.observe(5, Some(10.0));
        assert!(hedge.forecast(3).forecast().is_some());
    }

    #[test]
    fn abstains_when_the_newest_value_is_old() {
        let mut hedge = small();
        for step in 0..20 {
            hedge.observe(step, Some(10.0));
        }
        hedge.observe(100, None);
        let Outlook::Abstained(abstained) = hedge.forecast(3) else { panic!("answered") };
        assert_eq!(abstained.why, "the newest value is 81 steps old, 60 are allowed");
    }

    #[test]
    fn a_steady_series_moves_weight_off_the_shortest_window() {
        let mut hedge = small();
        for step in 0..400 {
            hedge.observe(step, Some(100.0 + ripple(step)));
        }
        let weights = hedge.weights(1);
        assert!(weights[1].1 < weights[2].1, "{weights:?}");
        assert!((weights.iter().map(|(_, weight)| weight).sum::<f64>() - 1.0).abs() < 1e-9);
    }

    #[test]
    fn a_jump_puts_the_weight_on_the_expert_that_saw_it() {
        let mut hedge = small();
        for step in 0..104 {
            hedge.observe(step, Some(if step < 100 { 10.0 } else { 80.0 } + ripple(step)));
        }
        for ahead in [1, 4, 20, 60] {
            let weights = hedge.weights(ahead);
            assert!(weights[0].1 > 0.5 && weights[2].1 < 0.05, "{weights:?}");
        }
    }
}
