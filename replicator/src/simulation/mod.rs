//! Seeded simulation of a stream: the shipped session, wire format and applier over a link and a target that break in
//! every way between any two steps. Nothing is lost, nothing is repeated, the order is kept, credit is never exceeded, what
//! waits at the target is bounded, and what the source was told is durable.
//!
//! `SIM_SEEDS` is the number of seeds (200), `SIM_FIRST` the first one; a failure names its seed with the command that
//! repeats it, and adds it to `seeds.txt` beside this file, whose seeds are always run. `SIM_SEED=n` replays one.

mod history;
mod process;
mod target;
mod wan;
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind};

use world::{Sabotage, Tally, World};

/// Seeds that failed once.
const KEPT: &str = include_str!("seeds.txt");

/// What repeats a seed.
const REPEAT: &str = "cargo test -p replicator --lib simulation::every_seed_ends_exact";

/// What a run of 200 seeds must have met.
const EXPECTED: &[&str] = &[
    "cut, seen by both",
    "source process killed, unseen",
    "source process killed",
    "target process killed with work in hand",
    "black hole to the target",
    "black hole to the source",
    "source database crashed",
    "target database crashed",
    "target database crashed, without its last commits",
    "message lost",
    "message repeated",
    "messages swapped",
    "message damaged",
    "apply: not done",
    "apply: reply lost",
    "checkpoint: reply lost",
    "resume: reply lost",
    "copy_rows: not done",
    "write of an older session refused",
    "copies begun",
    "copies gone on under their snapshot",
    "copies gone on under a later snapshot",
    "tables of a later snapshot settled",
    "transactions begun in pieces",
    "apply_part: not done",
    "end_large: not done",
];

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

async fn run(seed: u64, sabotage: Sabotage) -> Result<(Tally, usize), String> {
    let mut world = World::new(seed, sabotage);
    for _ in 0..1_500 {
        world.step().await?;
    }
    world.settle().await?;
    Ok((std::mem::take(&mut world.tally), world.transactions()))
}

fn keep(seed: u64) {
    use std::io::Write;
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/src/simulation/seeds.txt");
    let known = KEPT.lines().any(|line| line.trim() == seed.to_string());
    if let (false, Ok(mut file)) = (known, std::fs::OpenOptions::new().append(true).open(path)) {
        let _ = writeln!(file, "{seed}");
    }
}

/// Runs seeds one after the other until one fails.
fn run_all(seeds: &[u64]) -> Result<(Tally, usize), (u64, String)> {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.enable_time().start_paused(true).build().expect("a runtime");
    let (mut tally, mut transactions) = (Tally::new(), 0);
    for seed in seeds {
        let one = || runtime.block_on(run(*seed, Sabotage::None));
        // A panic has printed its place; only the seed is missing.
        let result = catch_unwind(AssertUnwindSafe(one)).unwrap_or_else(|_| Err("panicked".into()));
        let (happened, committed) = result.map_err(|why| (*seed, why))?;
        transactions += committed;
        add(&mut tally, happened);
    }
    Ok((tally, transactions))
}

fn add(tally: &mut Tally, happened: Tally) {
    for (what, often) in happened {
        *tally.entry(what).or_default() += often;
    }
}

#[test]
fn every_seed_ends_exact() {
    let kept = KEPT.lines().filter_map(|line| line.trim().parse().ok());
    let first = number("SIM_FIRST").unwrap_or(1);
    let seeds: Vec<u64> = match number("SIM_SEED") {
        Some(seed) => vec![seed],
        None => kept.chain(first..first + number("SIM_SEEDS").unwrap_or(200)).collect(),
    };
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let results: Vec<_> = std::thread::scope(|scope| {
        let parts = seeds.chunks(seeds.len().div_ceil(threads).max(1));
        let running: Vec<_> = parts.map(|part| scope.spawn(|| run_all(part))).collect();
        running.into_iter().map(|thread| thread.join().expect("no panic")).collect()
    });
    let (mut tally, mut transactions) = (Tally::new(), 0);
    for result in results {
        match result {
            Ok((happened, committed)) => {
                transactions += committed;
                add(&mut tally, happened);
            }
            Err((seed, why)) => {
                keep(seed);
                panic!("seed {seed}: {why}; repeat it with: SIM_SEED={seed} {REPEAT}");
            }
        }
    }
    println!("{} seeds, {transactions} transactions; {tally:#?}", seeds.len());
    if seeds.len() >= 200 {
        for what in EXPECTED {
            assert!(tally.contains_key(what), "{what}: never happened");
        }
    }
    if seeds.len() >= 2_000 {
        for what in ["end_copy: reply lost", "end_part: reply lost"] {
            assert!(tally.contains_key(what), "{what}: never happened");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn deliberate_mistakes_are_found() {
    for sabotage in [
        Sabotage::ReportReceived,
        Sabotage::ForgetCheckpoint,
        Sabotage::NoFence,
        Sabotage::NoWindow,
        Sabotage::AnySnapshot,
        Sabotage::NoFlush,
    ] {
        let mut found = None;
        for seed in 1..=200 {
            if let Err(why) = run(seed, sabotage).await {
                found = Some((seed, why));
                break;
            }
        }
        let (seed, why) = found.unwrap_or_else(|| panic!("{sabotage:?} was not found"));
        println!("{sabotage:?} found with seed {seed}: {why}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_seed_replays() {
    for seed in [3, 4] {
        let (first, second) = (run(seed, Sabotage::None).await, run(seed, Sabotage::None).await);
        assert_eq!(first, second);
    }
}
