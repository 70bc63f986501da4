//! What many series cost together: each has a forecaster of its own, as in a node, and in every period all of them take a value and
//! forecast. Measured over whole rounds, because ten thousand forecasters do not stay in a cache as one does.

use std::fmt;
use std::hint::black_box;
use std::time::Duration;

use predictor::model::{Ensemble, Forecaster, Settings};
use predictor::{Inputs, Outlook};

use crate::data::Set;
use crate::known;
use crate::score::HORIZONS;
use crate::walk::{Plan, now, worse};

/// How often each series is forecast.
const PERIOD: Duration = Duration::from_secs(10);
/// Values that each has seen before.
const SEEN: usize = 240;
/// Rounds that are measured.
const ROUNDS: usize = 5;
/// A node's forecasters make an example to learn from at every so many values.
const EXAMPLES_EVERY: usize = 8;

/// What the rounds took, each.
pub(crate) struct Cost {
    series: usize,
    rounds: Vec<Duration>,
    forecasts: usize,
}

/// One forecaster, and the row that it is at.
struct Member<'s> {
    ensemble: Ensemble,
    values: &'s [Option<f64>],
    known: &'s [Inputs],
    row: usize,
}

impl Member<'_> {
    fn observe(&mut self) {
        let furthest = HORIZONS[HORIZONS.len() - 1];
        let ahead = &self.known[self.row..self.known.len().min(self.row + furthest + 1)];
        self.ensemble.observe_knowing(self.row as u64, self.values[self.row], ahead);
        self.row += 1;
    }
}

/// Runs `count` forecasters over the sets' series, each from a place of its own; `None` where no series is long enough.
pub(crate) fn fleet(sets: &[Set], plan: &Plan, count: usize) -> Option<Cost> {
    let long = |values: usize| values > SEEN + ROUNDS;
    let series: Vec<_> = sets
        .iter()
        .flat_map(|set| set.series.iter().map(move |series| (set, series)))
        .filter(|(_, series)| long(series.values.len()))
        .map(|(set, series)| (set, series, known::known(set, series, plan.weather)))
        .collect();
    if series.is_empty() {
        return None;
    }
    let mut members: Vec<Member<'_>> = (0..count)
        .map(|place| {
            let (set, series, known) = &series[place % series.len()];
            let settings = Settings {
                network: plan.network.clone(),
                period: series.day(),
                worse: worse(set),
                examples_every: EXAMPLES_EVERY,
                ..Settings::default()
            };
            // Those on the same series are apart.
            let room = series.values.len() - SEEN - ROUNDS;
            let row = place.wrapping_mul(97) % room;
            Member { ensemble: Ensemble::new(settings), values: &series.values, known, row }
        })
        .collect();
    for member in &mut members {
        for _ in 0..SEEN {
            member.observe();
        }
        member.ensemble.take_examples();
    }
    let furthest = HORIZONS[HORIZONS.len() - 1];
    let (mut rounds, mut forecasts) = (Vec::with_capacity(ROUNDS), 0);
    for _ in 0..ROUNDS {
        let started = now();
        for member in &mut members {
            member.observe();
            let outlook = black_box(member.ensemble.forecast(furthest));
            forecasts += usize::from(matches!(outlook, Outlook::Forecast(_)));
            drop(black_box(member.ensemble.take_examples()));
        }
        rounds.push(started.elapsed());
    }
    Some(Cost { series: count, rounds, forecasts })
}

impl fmt::Display for Cost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rounds = self.rounds.clone();
        rounds.sort();
        let share = |round: Duration| round.as_secs_f64() / PERIOD.as_secs_f64() * 100.0;
        let (median, slowest) = (rounds[rounds.len() / 2], rounds[rounds.len() - 1]);
        write!(
            f,
            "{} series, a value and a forecast of {} steps each, every {} s: {:.1} ms a round (median of {}), {:.2} % of a core, at most {:.2} %; \
             {:.1} us for each; {} of {} were forecasts",
            self.series,
            HORIZONS[HORIZONS.len() - 1],
            PERIOD.as_secs(),
            median.as_secs_f64() * 1e3,
            rounds.len(),
            share(median),
            share(slowest),
            median.as_secs_f64() * 1e6 / self.series.max(1) as f64,
            self.forecasts,
            self.series * rounds.len(),
        )
    }
}
