//! Many cutovers there and back, under load, with faults in a share of them by seed (`make soak N=200 SEED=1 RATE=100`).

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use godwit::controller::view::MigrationView;
use godwit::demo::zone::Playground;
use indicatif::{ProgressBar, ProgressStyle};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::time::{Instant, sleep};

use super::rows::{End, ROWS, Row};
use super::world::{Scene, World, options};
use super::{Cell, cell};
use crate::leader::PATIENCE;

fn number(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(otherwise)
}

#[derive(Default)]
struct Account {
    fault_free: u32,
    failed_in_fault_free: usize,
    rolled_back: u32,
    holds: Vec<u64>,
    /// By fault: how often, how often the run finished, requests that failed.
    faults: BTreeMap<&'static str, (u32, u32, usize)>,
}

impl Account {
    fn print(mut self, seed: u64, spent: Duration) {
        self.holds.sort_unstable();
        let at = |share: f64| {
            let rank = (self.holds.len() as f64 * share).ceil() as usize;
            self.holds.get(rank.saturating_sub(1)).copied().unwrap_or_default()
        };
        let faults: u32 = self.faults.values().map(|(times, ..)| times).sum();
        println!(
            "soak, seed {seed}: {} migrations in {} s: {} fault-free ({} of them the way back at once), {faults} with a fault",
            self.fault_free + faults,
            spent.as_secs(),
            self.fault_free,
            self.rolled_back
        );
        println!("  failed requests in fault-free cutovers: {}", self.failed_in_fault_free);
        println!(
            "  hold of fault-free cutovers: p50 {} ms, p99 {} ms, max {} ms",
            at(0.5),
            at(0.99),
            at(1.0)
        );
        for (name, (times, finished, failed)) in &self.faults {
            println!(
                "  {name}: {times} times, {finished} finished, {} undone, {failed} requests failed",
                times - finished
            );
        }
    }
}

/// A cutover with no fault; every request must be answered.
async fn fault_free(world: &mut World<'_>, account: &mut Account) -> Result<()> {
    let scene = world.begin().await?;
    let run = world.ended(&scene).await?;
    note(world, account, &run)?;
    world.recovered(&scene, &run, Duration::ZERO).await.map(drop)
}

/// There, and back as soon as that is possible at all.
async fn there_and_back(world: &mut World<'_>, account: &mut Account) -> Result<()> {
    let there = world.begin().await?;
    let deadline = Instant::now() + PATIENCE;
    let id = loop {
        if let Ok(id) = world.leader.ask_to_migrate(&there.from).await {
            break id;
        }
        ensure!(Instant::now() < deadline, "it is not let back: {:#?}", world.leader.view().await);
        sleep(Duration::from_millis(2)).await;
    };
    let back = Scene {
        id,
        from: there.to.clone(),
        to: there.from.clone(),
        generation: there.generation + 1,
        phase: "",
    };
    let (first, second) = (world.ended(&there).await?, world.ended(&back).await?);
    note(world, account, &first)?;
    note(world, account, &second)?;
    account.rolled_back += 1;
    world.recovered(&back, &second, Duration::ZERO).await.map(drop)
}

fn note(world: &mut World<'_>, account: &mut Account, run: &MigrationView) -> Result<()> {
    ensure!(
        run.committed_ms.is_some(),
        "a fault-free cutover was undone: {run:#?}\n{}",
        world.leader.node.tail(40)
    );
    let failures = world.failures()?;
    ensure!(failures.is_empty(), "requests failed in a fault-free cutover: {failures:#?}\n{run:#?}");
    account.fault_free += 1;
    account.failed_in_fault_free += failures.len();
    account.holds.push(run.held_ms.unwrap_or_default());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn soak() -> Result<()> {
    let (count, seed, rate) = (number("SOAK", 6), number("SEED", 1), number("RATE", 60));
    let mut rng = StdRng::seed_from_u64(seed);
    let playground = Playground::start(&options(true)?).await?;
    let mut world = World::start(&playground, rate as f64, seed).await?;
    let rows: Vec<&Row> = ROWS.iter().filter(|row| !["disks", "minutes"].contains(&row.test)).collect();
    // Drawn only on a terminal.
    let bar = ProgressBar::new(count);
    bar.set_style(ProgressStyle::with_template("{bar:40} {pos}/{len} {msg} {eta}")?);
    let (mut account, began) = (Account::default(), Instant::now());
    let mut done = 0;
    while done < count {
        match rng.random_range(0..10) {
            0..4 => {
                let row = rows[rng.random_range(0..rows.len())];
                let (phase, end) = row.steps[rng.random_range(0..row.steps.len())];
                bar.set_message(format!("{} at {phase}", row.name));
                let what = || format!("{} at {phase}, migration {done} of seed {seed}", row.name);
                // What makes a difference in the table makes none here: the road there was another.
                let end = if end == End::Finishes { End::Either } else { end };
                let Cell { finished, failed } = cell(&mut world, row, phase, end).await.with_context(what)?;
                let entry = account.faults.entry(row.name).or_default();
                *entry = (entry.0 + 1, entry.1 + u32::from(finished), entry.2 + failed);
                done += 1;
            }
            4..6 => {
                bar.set_message("there and back at once");
                there_and_back(&mut world, &mut account)
                    .await
                    .with_context(|| format!("migration {done}"))?;
                done += 2;
            }
            _ => {
                bar.set_message("nothing happens");
                fault_free(&mut world, &mut account).await.with_context(|| format!("migration {done}"))?;
                done += 1;
            }
        }
        bar.set_position(done);
    }
    bar.finish_and_clear();
    let verdict = world.settle().await?;
    account.print(seed, began.elapsed());
    println!("  {verdict}");
    Ok(())
}
