//! Judges the forecaster on a folder of series: rolling origin over the last three tenths of each, horizons 12 and 48.
//!
//! `cargo run --release -p predictor --example bench_forecast -- <folder> [--stride N] [--only SET]`

#[path = "../common/data.rs"]
mod data;
mod score;

use std::path::PathBuf;
use std::time::Duration;

use predictor::model::{Forecaster, LevelShift, Persistence, SPANS, WindowQuantile, default_forecaster};

use data::{Series, Set};
use score::{HORIZONS, Tally};

/// Forecasts of one series that are scored, at most.
const ORIGINS: usize = 400;

struct Options {
    folder: PathBuf,
    only: Option<String>,
}

fn options() -> Result<Options, String> {
    let mut arguments = std::env::args().skip(1);
    let mut options = Options { folder: PathBuf::new(), only: None };
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--only" => options.only = Some(arguments.next().ok_or("--only needs a set's name")?),
            folder => options.folder = PathBuf::from(folder),
        }
    }
    if options.folder.as_os_str().is_empty() {
        return Err("name the folder with the *.csv.gz sets: make bench-forecast DATA=<folder>".into());
    }
    Ok(options)
}

/// What one series showed.
struct Outcome {
    own: Tally,
    naive: Tally,
    baselines: Vec<Tally>,
}

fn baselines() -> Vec<Box<dyn Forecaster>> {
    let mut all: Vec<Box<dyn Forecaster>> = Vec::new();
    for span in SPANS {
        all.push(Box::new(WindowQuantile::new(span)));
    }
    all.push(Box::new(LevelShift::new()));
    all.push(Box::new(Persistence::new()));
    all
}

fn walk(series: &Series, clock: &mut Clock) -> Outcome {
    let furthest = HORIZONS[HORIZONS.len() - 1];
    let mut own = default_forecaster(1);
    let mut others = baselines();
    let mut outcome =
        Outcome { own: Tally::default(), naive: Tally::default(), baselines: vec![Tally::default(); others.len()] };
    let from = series.test_from();
    let stride = (series.values.len() - from).div_ceil(ORIGINS).max(1);
    let mut last = None;
    for (row, value) in series.values.iter().enumerate() {
        let started = now();
        own.observe(row as u64, *value);
        clock.observing += started.elapsed();
        clock.observed += 1;
        for other in &mut others {
            other.observe(row as u64, *value);
        }
        last = value.or(last);
        if row < from || (row - from) % stride != 0 {
            continue;
        }
        let (Some(last), true) = (last, row + furthest < series.values.len()) else { continue };
        let came = &series.values[row + 1..=row + furthest];
        let started = now();
        let outlook = own.forecast(furthest);
        clock.forecasting += started.elapsed();
        clock.forecasts += 1;
        outcome.own.add(&outlook, came);
        outcome.naive.add_flat([last; 5], came);
        for (tally, other) in outcome.baselines.iter_mut().zip(&others) {
            tally.add(&other.forecast(furthest), came);
        }
    }
    outcome
}

/// Time spent in the forecaster.
#[derive(Default)]
struct Clock {
    observing: Duration,
    observed: u32,
    forecasting: Duration,
    forecasts: u32,
}

#[allow(clippy::disallowed_methods, reason = "a benchmark measures time")]
fn now() -> std::time::Instant {
    std::time::Instant::now()
}

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
    coverage: f64,
    near: f64,
}

fn line(outcomes: &[Outcome], horizon: usize, names: &[&'static str]) -> Line {
    let of = |pick: &dyn Fn(&Outcome) -> f64| {
        geometric(outcomes.iter().map(|outcome| outcome.own.loss(horizon) / pick(outcome)))
    };
    let of_naive = of(&|outcome| outcome.naive.loss(horizon));
    let each: Vec<f64> =
        (0..names.len()).map(|place| of(&|outcome| outcome.baselines[place].loss(horizon))).collect();
    let (best, of_best) = each
        .iter()
        .enumerate()
        .fold((0, f64::MIN), |(best, high), (place, ratio)| if *ratio > high { (place, *ratio) } else { (best, high) });
    let of_window = each[..SPANS.len()].iter().copied().fold(f64::MIN, f64::max);
    let of_best_each = of(&|outcome| {
        outcome.baselines.iter().map(|tally| tally.loss(horizon)).fold(f64::MAX, f64::min)
    });
    let scored: Vec<&Outcome> = outcomes.iter().filter(|outcome| outcome.own.scored(horizon) > 0).collect();
    let total: f64 = scored.iter().map(|outcome| outcome.own.scored(horizon) as f64).sum();
    let covered: f64 = scored.iter().map(|outcome| outcome.own.covered(horizon)).sum();
    let near = scored
        .iter()
        .filter(|outcome| (0.88..=0.92).contains(&(outcome.own.covered(horizon) / outcome.own.scored(horizon) as f64)))
        .count();
    Line {
        of_naive,
        of_window,
        of_best,
        best: names[best],
        of_best_each,
        coverage: covered / total,
        near: near as f64 / scored.len().max(1) as f64,
    }
}

fn report(sets: &[(String, Vec<Outcome>)], names: &[&'static str]) {
    for (place, horizon) in HORIZONS.into_iter().enumerate() {
        println!("horizon {horizon}: quantile loss as a ratio (geometric mean over series), coverage of the 90 % band");
        println!("{:<18} {:>6} {:>8} {:>8} {:>8} {:<12} {:>10} {:>9} {:>7}", "set", "series", "/naive", "/window", "/best", "(best)", "/best-each", "coverage", "88-92");
        let mut lines = Vec::new();
        for (name, outcomes) in sets {
            let line = line(outcomes, place, names);
            println!(
                "{name:<18} {:>6} {:>8.3} {:>8.3} {:>8.3} {:<12} {:>10.3} {:>9.3} {:>7.2}",
                outcomes.len(), line.of_naive, line.of_window, line.of_best, line.best, line.of_best_each, line.coverage, line.near
            );
            lines.push(line);
        }
        let mean = |pick: &dyn Fn(&Line) -> f64| geometric(lines.iter().map(pick));
        let mut pooled = (0.0, 0.0, 0, 0);
        for (_, outcomes) in sets {
            for outcome in outcomes {
                let scored = outcome.own.scored(place) as f64;
                let share = outcome.own.covered(place) / scored;
                pooled.0 += outcome.own.covered(place);
                pooled.1 += scored;
                pooled.2 += usize::from((0.88..=0.92).contains(&share));
                pooled.3 += usize::from(scored > 0.0);
            }
        }
        println!(
            "{:<18} {:>6} {:>8.3} {:>8.3} {:>8.3} {:<12} {:>10.3} {:>9.3} {:>7.2}\n",
            "all sets", pooled.3, mean(&|line| line.of_naive), mean(&|line| line.of_window), mean(&|line| line.of_best), "", mean(&|line| line.of_best_each),
            pooled.0 / pooled.1, pooled.2 as f64 / pooled.3 as f64
        );
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let options = options()?;
    let mut sets: Vec<Set> = data::read_folder(&options.folder)?;
    if let Some(only) = &options.only {
        sets.retain(|set| set.name == *only);
    }
    let mut clock = Clock::default();
    let outcomes: Vec<(String, Vec<Outcome>)> = sets
        .iter()
        .map(|set| (set.name.clone(), set.series.iter().map(|series| walk(series, &mut clock)).collect()))
        .collect();
    let names: Vec<&'static str> = baselines().iter().map(|baseline| baseline.name()).collect();
    report(&outcomes, &names);
    println!(
        "{:.1} us to take a value, {:.1} us a forecast of {} steps",
        clock.observing.as_secs_f64() * 1e6 / f64::from(clock.observed.max(1)),
        clock.forecasting.as_secs_f64() * 1e6 / f64::from(clock.forecasts.max(1)),
        HORIZONS[HORIZONS.len() - 1],
    );
    Ok(())
}
