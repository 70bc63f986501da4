//! Judges the forecaster on a folder of series: rolling origin over the last three tenths of each, horizons 12 and 48.
//!
//! `cargo run --release -p predictor --example bench_forecast -- <folder> [--only SET] [--weights FILE|none] [--tuning] [--fleet N]`
//!
//! `--fleet` is how many series are forecast together for what they cost of a core (10,000).
//!
//! `--tuning` judges rows 0.4 to 0.7 of each series and never looks at what comes after: the part to choose settings on.

#[path = "../common/data.rs"]
mod data;
mod events;
mod fleet;
#[path = "../common/known.rs"]
mod known;
mod score;
mod table;
mod walk;

use std::path::PathBuf;
use std::sync::Arc;

use predictor::network::trainer::Step;
use predictor::shift::Sensitivity;
use predictor::{Trainer, TrainerSettings, Weights};

use data::Set;
use events::Shifts;
use walk::{Clock, Outcome, Plan, walk};

struct Options {
    folder: PathBuf,
    only: Option<String>,
    weights: Option<PathBuf>,
    tuning: bool,
    fleet: usize,
}

fn options() -> Result<Options, String> {
    let mut arguments = std::env::args().skip(1);
    let mut options =
        Options { folder: PathBuf::new(), only: None, weights: None, tuning: false, fleet: 10_000 };
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--only" => options.only = Some(arguments.next().ok_or("--only needs a set's name")?),
            "--weights" => options.weights = Some(arguments.next().ok_or("--weights needs a file")?.into()),
            "--tuning" => options.tuning = true,
            "--fleet" => {
                let count = arguments.next().and_then(|count| count.parse().ok()).filter(|count| *count > 0);
                options.fleet = count.ok_or("--fleet needs a number of series")?;
            }
            folder => options.folder = PathBuf::from(folder),
        }
    }
    if options.folder.as_os_str().is_empty() {
        return Err("name the folder with the *.csv.gz sets: make bench-forecast DATA=<folder>".into());
    }
    Ok(options)
}

fn outcomes(sets: &[Set], plan: &Plan, clock: &mut Clock) -> Vec<(String, Vec<Outcome>)> {
    sets.iter()
        .map(|set| {
            let walked = set.series.iter().map(|series| walk(set, series, plan, clock));
            (set.name.clone(), walked.collect())
        })
        .collect()
}

fn shifts(sets: &[Set], plan: &Plan) {
    for set in sets {
        let mut shifts = Shifts::default();
        for series in &set.series {
            let judged = plan.judged(series);
            shifts.judge(series, judged.start, judged.end, Sensitivity::default());
        }
        if shifts.found + shifts.missed > 0 {
            let delay = predictor::sample::median(&mut shifts.delays).unwrap_or(f64::NAN);
            println!(
                "shifts of {}: {} labels, precision {:.3}, recall {:.3}, F1 {:.3}, median delay {delay:.0} samples (at most {})",
                set.name,
                shifts.found + shifts.missed,
                shifts.precision(),
                shifts.recall(),
                shifts.f1(),
                events::AFTER,
            );
        }
    }
}

/// What a step of online training costs, on examples of this folder.
fn training(sets: &[Set], plan: &Plan) -> Result<(), Box<dyn std::error::Error>> {
    let Some(network) = &plan.network else { return Ok(()) };
    let mut trainer = Trainer::new(network.as_ref().clone(), TrainerSettings::default())?;
    for set in sets {
        for series in set.series.iter().take(3) {
            for example in walk::examples(set, series) {
                trainer.keep(example);
            }
        }
    }
    let started = walk::now();
    let mut steps = 0;
    while steps < 200 {
        match trainer.step()? {
            Step::Waiting { .. } => return Ok(()),
            Step::Learned { .. } | Step::RolledBack => steps += 1,
        }
    }
    let each = started.elapsed().as_secs_f64() * 1e3 / f64::from(steps);
    println!("{each:.2} ms a training step of {} examples", TrainerSettings::default().batch);
    Ok(())
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let options = options()?;
    let mut sets: Vec<Set> = data::read_folder(&options.folder)?;
    if let Some(only) = &options.only {
        sets.retain(|set| set.name == *only);
    }
    let network = match &options.weights {
        Some(path) if path.as_os_str() == "none" => None,
        Some(path) => Some(Arc::new(Weights::read(&std::fs::read(path)?)?)),
        None => predictor::model::shipped(),
    };
    let plan = Plan { network, weather: true, cold: false, tuning: options.tuning };
    let mut clock = Clock::default();
    let walked = outcomes(&sets, &plan, &mut clock);
    let part = if plan.tuning { "rows 0.4 to 0.7" } else { "the last three tenths" };
    println!("rolling origin over {part} of each series\n");
    table::losses(&walked);
    table::events(&sets, &walked);
    shifts(&sets, &plan);

    println!("\ncold start: 240 samples seen, the next 120 origins forecast\n");
    let cold = Plan { cold: true, ..plan.clone() };
    table::losses(&outcomes(&sets, &cold, &mut Clock::default()));

    sets.retain(|set| set.inputs.iter().any(|input| input == "x_wind_speed"));
    let blind = Plan { weather: false, ..plan.clone() };
    table::weather(&walked, &outcomes(&sets, &blind, &mut Clock::default()));
    println!("{clock}");
    let all = data::read_folder(&options.folder)?;
    match fleet::fleet(&all, &plan, options.fleet) {
        Some(cost) => println!("{cost}"),
        None => println!("no series is long enough to forecast many together"),
    }
    training(&all, &plan)
}
