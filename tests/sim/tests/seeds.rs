//! Many seeds. `SIM_SEEDS` is their number (300), `SIM_FIRST` the first one, `SIM_SEED=n` replays one. A seed that failed is
//! added to `seeds.txt`, whose seeds are always run.

use std::panic::{AssertUnwindSafe, catch_unwind};

use godwit_sim::world::{Mistake, Tally, run};

/// Seeds that failed once.
const KEPT: &str = include_str!("seeds.txt");

/// What a run of 300 seeds must have met, or it proves little.
const EXPECTED: &[&str] = &[
    "committed",
    "aborted",
    "killed",
    "killed while the journal was written",
    "killed between journal and effects",
    "database crashed",
    "database crashed, without its last commits",
    "link cut",
    "journal full",
    "session hurt",
    "effects that failed or lost their answer",
    "late effects refused",
    "held off by a fence",
];

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

fn keep(seed: u64) {
    use std::io::Write;
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/seeds.txt");
    let known = KEPT.lines().any(|line| line.trim() == seed.to_string());
    if let (false, Ok(mut file)) = (known, std::fs::OpenOptions::new().append(true).open(path)) {
        let _ = writeln!(file, "{seed}");
    }
}

fn run_all(seeds: &[u64]) -> Result<Tally, (u64, String)> {
    let mut tally = Tally::new();
    for seed in seeds {
        let result = catch_unwind(AssertUnwindSafe(|| run(*seed, None)));
        let happened = result.unwrap_or_else(|_| Err("panicked".into())).map_err(|why| (*seed, why))?;
        for (what, often) in happened {
            *tally.entry(what).or_default() += often;
        }
    }
    Ok(tally)
}

#[test]
fn every_seed_ends_well() {
    let kept = KEPT.lines().filter_map(|line| line.trim().parse().ok());
    let first = number("SIM_FIRST").unwrap_or(1);
    let seeds: Vec<u64> = match number("SIM_SEED") {
        Some(seed) => vec![seed],
        None => kept.chain(first..first + number("SIM_SEEDS").unwrap_or(300)).collect(),
    };
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let results: Vec<_> = std::thread::scope(|scope| {
        let parts = seeds.chunks(seeds.len().div_ceil(threads).max(1));
        let running: Vec<_> = parts.map(|part| scope.spawn(|| run_all(part))).collect();
        running.into_iter().map(|thread| thread.join().expect("no panic")).collect()
    });
    let mut tally = Tally::new();
    for result in results {
        match result {
            Ok(happened) => {
                for (what, often) in happened {
                    *tally.entry(what).or_default() += often;
                }
            }
            Err((seed, why)) => {
                keep(seed);
                panic!("seed {seed}: {why}; repeat it with: SIM_SEED={seed} cargo test -p godwit-sim");
            }
        }
    }
    println!("{} seeds: {tally:#?}", seeds.len());
    if seeds.len() >= 300 {
        for what in EXPECTED {
            assert!(tally.contains_key(what), "{what}: never happened");
        }
    }
}

#[test]
fn deliberate_mistakes_are_found() {
    for mistake in [
        Mistake::NotSynced,
        Mistake::EffectsFirst,
        Mistake::EarlyMarker,
        Mistake::StartsOpen,
        Mistake::StreamsOfRuns,
        Mistake::MarkerUnflushed,
    ] {
        let kept = KEPT.lines().filter_map(|line| line.trim().parse().ok());
        let found = kept.chain(1..=400).find_map(|seed| {
            let outcome = catch_unwind(AssertUnwindSafe(|| run(seed, Some(mistake))));
            Some((seed, outcome.unwrap_or_else(|_| Err("panicked".into())).err()?))
        });
        let (seed, why) = found.unwrap_or_else(|| panic!("{mistake:?} was not found"));
        println!("{mistake:?} found with seed {seed}: {}", why.lines().next().unwrap_or_default());
    }
}

#[test]
fn a_seed_replays() {
    for seed in [3, 4] {
        assert_eq!(run(seed, None), run(seed, None));
    }
}
