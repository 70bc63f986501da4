//! Trains the shipped network on the train parts of a folder of series. The same seed and folder give the same bytes.
//!
//! `cargo run --release -p predictor --example train -- <folder> [--out FILE] [--steps N] [--seed N] [--without SET] [--validate]`

#[path = "../common/data.rs"]
mod data;
#[path = "../common/known.rs"]
mod known;
mod simulate;

use std::path::PathBuf;

use predictor::model::{Ensemble, Settings};
use predictor::network::Example;
use predictor::network::trainer::Step;
use predictor::rng::Rng;
use predictor::{Trainer, TrainerSettings, Weights, Worse};

use data::Set;

struct Options {
    folder: PathBuf,
    out: PathBuf,
    steps: usize,
    seed: u64,
    batch: usize,
    rate: f64,
    without: Option<String>,
    validate: bool,
}

fn options() -> Result<Options, Box<dyn std::error::Error>> {
    let mut options = Options {
        folder: PathBuf::new(),
        out: PathBuf::from("predictor/weights/network.safetensors"),
        steps: 12_000,
        seed: 1,
        batch: 96,
        rate: 2e-3,
        without: None,
        validate: false,
    };
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().ok_or_else(|| format!("{argument} needs a value"));
        match argument.as_str() {
            "--out" => options.out = value()?.into(),
            "--steps" => options.steps = value()?.parse()?,
            "--seed" => options.seed = value()?.parse()?,
            "--batch" => options.batch = value()?.parse()?,
            "--rate" => options.rate = value()?.parse()?,
            "--without" => options.without = Some(value()?),
            "--validate" => options.validate = true,
            folder => options.folder = folder.into(),
        }
    }
    if options.folder.as_os_str().is_empty() {
        return Err("name the folder with the *.csv.gz sets".into());
    }
    Ok(options)
}

/// The examples of one set, and those put aside to judge by.
#[derive(Default)]
struct Examples {
    learn: Vec<Example>,
    judge: Vec<Example>,
}

fn examples(set: &Set, options: &Options) -> Examples {
    let rows: usize = set.series.iter().map(data::Series::test_from).sum();
    // Long sets are thinned: neighbouring moments say nearly the same.
    let every = (rows / 40_000).max(1);
    let worse = if set.milliseconds { Worse::default() } else { Worse { relative: 0.2, absolute: 0.0 } };
    let mut all = Examples::default();
    for (place, series) in set.series.iter().enumerate() {
        let known = known::known(set, series, true);
        let mut ensemble = Ensemble::new(Settings {
            period: series.day(),
            worse,
            examples_every: every,
            seed: options.seed + place as u64,
            ..Settings::default()
        });
        let until = series.test_from();
        let judged_from = if options.validate { until * 6 / 7 } else { until };
        for (row, value) in series.values[..until].iter().enumerate() {
            ensemble.observe_knowing(row as u64, *value, &known[row..until]);
            for mut example in ensemble.take_examples() {
                if !set.milliseconds {
                    example.worse = [None; 2];
                }
                if row < judged_from {
                    all.learn.push(example);
                } else if row >= judged_from + 48 {
                    all.judge.push(example);
                }
            }
        }
    }
    all
}

fn mean_loss(weights: &Weights, examples: &[Example]) -> f64 {
    let sum: f64 = examples.iter().map(|example| f64::from(weights.loss(example)).min(20.0)).sum();
    sum / examples.len().max(1) as f64
}

#[allow(clippy::disallowed_methods, reason = "training is timed")]
fn main() -> Result<(), Box<dyn std::error::Error>> {
    let options = options()?;
    let mut sets = data::read_folder(&options.folder)?;
    sets.retain(|set| options.without.as_ref() != Some(&set.name));
    sets.push(simulate::services(options.seed));
    let all: Vec<Examples> = sets.iter().map(|set| examples(set, &options)).collect();
    // A set counts by the root of its number of series: neither one series nor hundreds of one kind decide alone.
    // Sets with known inputs are few, and nothing else teaches what those mean.
    let least = |set: &Set| if set.inputs.iter().any(|input| input == "x_wind_speed") { 8.0 } else { 2.0 };
    let shares: Vec<f64> = sets.iter().map(|set| (set.series.len() as f64).sqrt().max(least(set))).collect();
    let total: f64 = shares.iter().sum();
    for ((set, examples), share) in sets.iter().zip(&all).zip(&shares) {
        println!(
            "{:<18} {:>7} examples, {:>4.1} % of each batch",
            set.name,
            examples.learn.len(),
            share / total * 100.0
        );
    }
    let settings = TrainerSettings { seed: options.seed, rate: options.rate, ..TrainerSettings::default() };
    let mut trainer = Trainer::new(Weights::random(options.seed), settings)?;
    let mut rng = Rng::new(options.seed);
    let started = std::time::Instant::now();
    let mut recent = 0.0;
    for step in 0..options.steps {
        let done = step as f64 / options.steps as f64;
        let warm = (step as f64 / 500.0).min(1.0);
        trainer.set_rate(options.rate * warm * 0.5 * (1.0 + (done * std::f64::consts::PI).cos()));
        let mut batch = Vec::with_capacity(options.batch);
        while batch.len() < options.batch {
            let mut drawn = rng.uniform() * total;
            let place = shares.iter().position(|share| {
                drawn -= share;
                drawn < 0.0
            });
            let learn = &all[place.unwrap_or(0)].learn;
            if !learn.is_empty() {
                batch.push(learn[rng.below(learn.len())].clone());
            }
        }
        trainer.hide_inputs(&mut batch);
        match trainer.learn(&batch)? {
            Step::Learned { loss } => recent += 0.002 * (f64::from(loss) - recent),
            other => return Err(format!("training broke off at step {step}: {other:?}").into()),
        }
        if (step + 1) % (options.steps / 8).max(1) == 0 {
            let judged: Vec<String> = all
                .iter()
                .filter(|examples| !examples.judge.is_empty())
                .map(|examples| format!("{:.4}", mean_loss(trainer.weights(), &examples.judge)))
                .collect();
            println!("step {:>6}: loss {recent:.4}  {}", step + 1, judged.join(" "));
        }
    }
    let each = started.elapsed().as_secs_f64() * 1e3 / options.steps.max(1) as f64;
    println!("{each:.2} ms a step of {} examples", options.batch);
    std::fs::write(&options.out, trainer.weights().write()?)?;
    println!("written to {}", options.out.display());
    Ok(())
}
