//! Prints what the walks showed. Ratios are geometric means over series, and over sets in the last line.

use predictor::model::SPANS;

use crate::data::Set;
use crate::events::Ranking;
use crate::score::{HORIZONS, Tally};
use crate::walk::Outcome;

fn geometric(values: impl Iterator<Item = f64>) -> f64 {
    let logs: Vec<f64> = values.filter(|value| *value > 0.0 && value.is_finite()).map(f64::ln).collect();
    if logs.is_empty() { f64::NAN } else { (logs.iter().sum::<f64>() / logs.len() as f64).exp() }
}

/// The columns of one set at one horizon.
struct Line {
    of_naive: f64,
    of_window: f64,
    of_best: f64,
    best: &'static str,
    of_best_each: f64,
}

fn line(outcomes: &[Outcome], horizon: usize) -> Line {
    let of = |pick: &dyn Fn(&Outcome) -> f64| {
        geometric(outcomes.iter().map(|outcome| outcome.own.loss(horizon) / pick(outcome)))
    };
    // A baseline counts where it answers for every series of the set.
    let names: Vec<&'static str> = outcomes[0].baselines.iter().map(|(name, _)| *name).collect();
    let each: Vec<f64> = names
        .iter()
        .enumerate()
        .map(|(place, _)| {
            let complete = outcomes.iter().all(|outcome| {
                outcome.baselines.get(place).is_some_and(|(_, tally)| answers(tally, &outcome.own))
            });
            if complete { of(&|outcome| outcome.baselines[place].1.loss(horizon)) } else { f64::MIN }
        })
        .collect();
    let highest = |ratios: &[f64]| {
        ratios.iter().enumerate().fold((0, f64::MIN), |(best, high), (place, ratio)| {
            if *ratio > high { (place, *ratio) } else { (best, high) }
        })
    };
    let (best, of_best) = highest(&each);
    Line {
        of_naive: of(&|outcome| outcome.naive.loss(horizon)),
        of_window: highest(&each[..SPANS.len()]).1,
        of_best,
        best: names.get(best).copied().unwrap_or_default(),
        of_best_each: of(&|outcome| {
            let complete = outcome.baselines.iter().filter(|(_, tally)| answers(tally, &outcome.own));
            complete.map(|(_, tally)| tally.loss(horizon)).fold(f64::MAX, f64::min)
        }),
    }
}

/// Whether a baseline answered (nearly) as often as the forecaster.
fn answers(baseline: &Tally, own: &Tally) -> bool {
    let last = HORIZONS.len() - 1;
    baseline.scored(last) * 100 >= own.scored(last) * 99
}

/// Pooled coverage, and the share of series that are within 88 and 92 %.
fn coverage<'a>(outcomes: impl Iterator<Item = &'a Outcome>, horizon: usize) -> (usize, f64, f64) {
    let (mut covered, mut scored, mut near, mut series) = (0.0, 0.0, 0, 0);
    for outcome in outcomes.filter(|outcome| outcome.own.scored(horizon) > 0) {
        let own = (outcome.own.covered(horizon), outcome.own.scored(horizon) as f64);
        covered += own.0;
        scored += own.1;
        near += usize::from((0.88..=0.92).contains(&(own.0 / own.1)));
        series += 1;
    }
    (series, covered / scored, near as f64 / series.max(1) as f64)
}

pub(crate) fn losses(sets: &[(String, Vec<Outcome>)]) {
    for (place, horizon) in HORIZONS.into_iter().enumerate() {
        println!(
            "{:<18} {:>6} {:>8} {:>8} {:>8} {:<12} {:>11} {:>9} {:>7}",
            format!("horizon {horizon}"),
            "series",
            "/naive",
            "/window",
            "/best",
            "(best)",
            "/best each",
            "coverage",
            "88-92"
        );
        let mut lines = Vec::new();
        let print = |name: &str, line: &Line, (series, covered, near): (usize, f64, f64)| {
            println!(
                "{name:<18} {series:>6} {:>8.3} {:>8.3} {:>8.3} {:<12} {:>11.3} {covered:>9.3} {near:>7.2}",
                line.of_naive, line.of_window, line.of_best, line.best, line.of_best_each
            );
        };
        for (name, outcomes) in sets {
            let line = line(outcomes, place);
            print(name, &line, coverage(outcomes.iter(), place));
            lines.push(line);
        }
        let mean = |pick: &dyn Fn(&Line) -> f64| geometric(lines.iter().map(pick));
        let all = Line {
            of_naive: mean(&|line| line.of_naive),
            of_window: mean(&|line| line.of_window),
            of_best: mean(&|line| line.of_best),
            best: "",
            of_best_each: mean(&|line| line.of_best_each),
        };
        print("all sets", &all, coverage(sets.iter().flat_map(|(_, outcomes)| outcomes), place));
        println!();
    }
}

pub(crate) fn events(sets: &[Set], walked: &[(String, Vec<Outcome>)]) {
    println!(
        "median of the horizon worse than now by 20 % and 5 ms (sets in ms), and the level staying within that"
    );
    println!(
        "{:<18} {:>8} {:>8} {:>7} {:>7} {:>18} {:>18} {:>7} {:>12}",
        "set", "horizon", "moments", "rate", "AP", "P / R at 0.5", "P / R at 0.25", "Brier", "stays Brier"
    );
    let pooled = |picked: &[&Outcome], place: usize| -> (Ranking, Ranking) {
        let all = |pick: &dyn Fn(&Outcome) -> &Ranking| Ranking {
            pairs: picked.iter().flat_map(|outcome| pick(outcome).pairs.clone()).collect(),
        };
        (all(&|outcome| &outcome.worse[place]), all(&|outcome| &outcome.stays[place]))
    };
    let milliseconds: Vec<&(String, Vec<Outcome>)> = walked
        .iter()
        .filter(|(name, _)| sets.iter().any(|set| set.name == *name && set.milliseconds))
        .collect();
    let mut rows: Vec<(&str, Vec<&Outcome>)> =
        milliseconds.iter().map(|(name, outcomes)| (name.as_str(), outcomes.iter().collect())).collect();
    rows.push(("all in ms", milliseconds.iter().flat_map(|(_, outcomes)| outcomes).collect()));
    for (name, picked) in rows {
        for (place, horizon) in HORIZONS.into_iter().enumerate() {
            let (worse, stays) = pooled(&picked, place);
            let show = |(precision, recall): (f64, f64)| format!("{precision:.2} / {recall:.2}");
            println!(
                "{name:<18} {horizon:>8} {:>8} {:>7.4} {:>7.3} {:>18} {:>18} {:>7.3} {:>12.3}",
                worse.pairs.len(),
                worse.base_rate(),
                worse.average_precision(),
                show(worse.at(0.5)),
                show(worse.at(0.25)),
                worse.brier_ratio(),
                stays.brier_ratio()
            );
        }
    }
    println!();
}

pub(crate) fn weather(seeing: &[(String, Vec<Outcome>)], blind: &[(String, Vec<Outcome>)]) {
    for (name, without) in blind {
        let Some((_, with)) = seeing.iter().find(|(seen, _)| seen == name) else { continue };
        for (place, horizon) in HORIZONS.into_iter().enumerate() {
            let ratio = geometric(
                with.iter()
                    .zip(without)
                    .map(|(with, without)| with.own.loss(place) / without.own.loss(place)),
            );
            println!("{name}, horizon {horizon}: loss with weather known ahead / without: {ratio:.3}");
        }
    }
}
