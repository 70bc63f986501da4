//! Walks the forecaster and the baselines over a series: at every origin forecast, then look.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use predictor::model::{
    Ensemble, Forecaster, LevelShift, Persistence, SPANS, Season, Settings, WindowQuantile,
};
use predictor::network::Example;
use predictor::{Weights, Worse};

use crate::data::{Series, Set};
use crate::events::Ranking;
use crate::known;
use crate::score::{HORIZONS, Tally};

/// Forecasts of one series that are scored, at most.
const ORIGINS: usize = 400;
/// Samples seen before a cold start, and origins judged after it.
const COLD: (usize, usize) = (240, 120);
/// What counts as now, in steps.
const NOW: usize = 12;

/// How to walk.
#[derive(Clone)]
pub(crate) struct Plan {
    pub(crate) network: Option<Arc<Weights>>,
    pub(crate) weather: bool,
    pub(crate) cold: bool,
    /// Judge the part before the test part instead, which may be tuned on.
    pub(crate) tuning: bool,
}

impl Plan {
    /// The rows of `series` that are judged.
    pub(crate) fn judged(&self, series: &Series) -> std::ops::Range<usize> {
        let from = series.test_from();
        if self.tuning { from * 4 / 7..from } else { from..series.values.len() }
    }
}

/// What one series showed.
pub(crate) struct Outcome {
    pub(crate) own: Tally,
    pub(crate) naive: Tally,
    /// The windows first.
    pub(crate) baselines: Vec<(&'static str, Tally)>,
    /// Whether it became worse, by horizon.
    pub(crate) worse: [Ranking; HORIZONS.len()],
    /// Whether it did not, by horizon, with the probability that the level stays.
    pub(crate) stays: [Ranking; HORIZONS.len()],
}

fn baselines(period: Option<usize>) -> Vec<Box<dyn Forecaster>> {
    let mut all: Vec<Box<dyn Forecaster>> = Vec::new();
    for span in SPANS {
        all.push(Box::new(WindowQuantile::new(span)));
    }
    all.push(Box::new(LevelShift::new()));
    all.push(Box::new(Persistence::new()));
    if let Some(period) = period {
        all.push(Box::new(Season::new(period, 24)));
        all.push(Box::new(Season::new(period, 240)));
    }
    all
}

/// What counts as worse in a set: 5 ms where it is milliseconds.
pub(crate) fn worse(set: &Set) -> Worse {
    if set.milliseconds { Worse::default() } else { Worse { absolute: 0.0, ..Worse::default() } }
}

pub(crate) fn walk(set: &Set, series: &Series, plan: &Plan, clock: &mut Clock) -> Outcome {
    let furthest = HORIZONS[HORIZONS.len() - 1];
    let settings = Settings {
        network: plan.network.clone(),
        period: series.day(),
        worse: worse(set),
        ..Settings::default()
    };
    let mut own = Ensemble::new(settings);
    let known = known::known(set, series, plan.weather);
    let mut others = baselines(series.day());
    let mut outcome = Outcome {
        own: Tally::default(),
        naive: Tally::default(),
        baselines: others.iter().map(|other| (other.name(), Tally::default())).collect(),
        worse: Default::default(),
        stays: Default::default(),
    };
    let judged = plan.judged(series);
    let (from, rows) = (judged.start, judged.end);
    let (first, until) =
        if plan.cold { (from.saturating_sub(COLD.0), rows.min(from + COLD.1)) } else { (0, rows) };
    let stride = (until - from).div_ceil(ORIGINS).max(1);
    let mut last = None;
    for row in first..until {
        let value = series.values[row];
        let ahead = &known[row..rows.min(row + furthest + 1)];
        clock.observe(|| own.observe_knowing(row as u64, value, ahead));
        for other in &mut others {
            other.observe(row as u64, value);
        }
        last = value.or(last);
        if row < from || !(row - from).is_multiple_of(stride) {
            continue;
        }
        let (Some(last), true) = (last, row + furthest < rows) else { continue };
        let came = &series.values[row + 1..=row + furthest];
        let outlook = clock.forecast(|| own.forecast(furthest));
        outcome.own.add(&outlook, came);
        outcome.naive.add_flat([last; 5], came);
        for ((_, tally), other) in outcome.baselines.iter_mut().zip(&others) {
            tally.add(&other.forecast(furthest), came);
        }
        judge_events(&mut outcome, &own, series, row, worse(set));
    }
    outcome
}

fn judge_events(outcome: &mut Outcome, own: &Ensemble, series: &Series, row: usize, worse: Worse) {
    let Some(events) = own.events() else { return };
    let middle = |values: &[Option<f64>]| {
        let mut known: Vec<f64> = values.iter().filter_map(|value| *value).collect();
        (known.len() * 2 >= values.len()).then(|| predictor::sample::median(&mut known)).flatten()
    };
    let Some(now) = middle(&series.values[(row + 1).saturating_sub(NOW)..=row]) else { return };
    for (place, horizon) in HORIZONS.into_iter().enumerate() {
        let Some(later) = middle(&series.values[row + 1..=row + horizon]) else { continue };
        outcome.worse[place].pairs.push((events.worse[place], worse.is(now, later)));
        let stayed = !worse.is(now, later) && !worse.is(later, now);
        outcome.stays[place].pairs.push((events.stays[place], stayed));
    }
}

/// What a network could learn of a series' train part.
pub(crate) fn examples(set: &Set, series: &Series) -> Vec<Example> {
    let settings =
        Settings { period: series.day(), worse: worse(set), examples_every: 8, ..Settings::default() };
    let mut ensemble = Ensemble::new(settings);
    for (row, value) in series.values[..series.test_from()].iter().enumerate() {
        ensemble.observe(row as u64, *value);
    }
    ensemble.take_examples()
}

/// Time spent in the forecaster.
#[derive(Default)]
pub(crate) struct Clock {
    observing: Duration,
    observed: u32,
    forecasting: Duration,
    forecasts: u32,
}

impl Clock {
    fn observe(&mut self, work: impl FnOnce()) {
        let started = now();
        work();
        self.observing += started.elapsed();
        self.observed += 1;
    }

    fn forecast<T>(&mut self, work: impl FnOnce() -> T) -> T {
        let started = now();
        let done = work();
        self.forecasting += started.elapsed();
        self.forecasts += 1;
        done
    }
}

impl fmt::Display for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let each = |time: Duration, count: u32| time.as_secs_f64() * 1e6 / f64::from(count.max(1));
        let (observing, forecasting) =
            (each(self.observing, self.observed), each(self.forecasting, self.forecasts));
        let furthest = HORIZONS[HORIZONS.len() - 1];
        write!(
            f,
            "{observing:.1} us to take a value, {forecasting:.1} us a forecast of {furthest} steps, {:.1} us both",
            observing + forecasting
        )
    }
}

#[allow(clippy::disallowed_methods, reason = "a benchmark measures time")]
pub(crate) fn now() -> std::time::Instant {
    std::time::Instant::now()
}
