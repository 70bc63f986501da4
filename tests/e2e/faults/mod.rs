//! The failure table (docs/failures.md): each fault at each step of a migration that it can meet, on real PostgreSQL, under
//! load. Always: no acknowledged write is lost or doubled, one side takes writes at a time, the run ends, every request is
//! answered or clearly fails, and the resource can be moved again.
//!
//! `FAULTS=all` (`make test-faults`) goes through every cell, `FAULTS='slot lost'` through every cell of the rows that are called so,
//! else through the telling ones.

mod clients;
mod disk;
pub(crate) mod fault;
mod overflow;
mod page;
mod reload;
mod rows;
mod soak;
mod world;

use anyhow::{Context, Result, ensure};
use godwit::controller::view::MigrationView;
use godwit::demo::zone::Playground;

use disk::Mounts;
use fault::{A_MINUTE, Disk, Fault, Side};
use rows::{End, ROWS, Row};
use world::{Scene, World, options};

/// Requests per second of the load; the clients of the lists and those round the front come on top.
const RATE: f64 = 30.0;

fn wanted(row: &Row, phase: &str) -> bool {
    match std::env::var("FAULTS").as_deref() {
        Ok("all") => true,
        Ok(name) => {
            let one = ROWS.iter().any(|row| row.name.contains(name));
            assert!(
                one,
                "FAULTS={name}: no row of docs/failures.md is called so; FAULTS=all takes every row"
            );
            row.name.contains(name)
        }
        Err(_) => row.telling.contains(&phase),
    }
}

/// What became of a cell.
struct Cell {
    finished: bool,
    failed: usize,
}

/// One cell of the table.
async fn cell(world: &mut World<'_>, row: &Row, phase: &'static str, end: End) -> Result<Cell> {
    if matches!(row.fault, Fault::DiskFull(Disk::Journal)) {
        disk::short_journal(world).await?;
    }
    let before = world.failures()?;
    ensure!(before.is_empty(), "clients failed although nothing happened: {before:#?}");
    let scene = world.stand_in(phase).await?;
    let struck = row.fault.strike(world, &scene).await.context("strike")?;
    row.fault.heal(world, &scene, &struck).await.context("heal")?;
    let run = world.ended(&scene).await?;
    row.fault.clean(world, &scene, struck).await.context("clean up")?;
    world.recovered(&scene, &run, row.fault.asleep()).await.context("it does not recover")?;
    let aborted = run.state == "aborted";
    let end = if cut_off(row.fault, &scene, &world.playground.zones[1].name) { End::Aborts } else { end };
    let expected = match end {
        End::Aborts => aborted,
        End::Finishes => !aborted,
        End::Either => true,
    };
    ensure!(expected, "it was to end otherwise: {run:#?}\n{}", world.leader.node.tail(30));
    let failures = world.failures()?;
    let allowed = may_fail(row.fault, &scene, &run, &world.playground.zones[1].name);
    ensure!(
        failures.is_empty() || allowed,
        "clients failed: {failures:#?}\n{run:#?}\n{}",
        world.leader.node.tail(40)
    );
    Ok(Cell { finished: !aborted, failed: failures.len() })
}

/// Whether a zone was to serve that cannot be reached: that is undone in any case.
fn cut_off(fault: Fault, scene: &Scene, far: &str) -> bool {
    let cut = matches!(fault, Fault::Cut | Fault::BlackHole(_) | Fault::ClockBackAndCut);
    cut && scene.to == far && ["armed", "held", "drained", "fenced"].contains(&scene.phase)
}

/// Whether what serves was hit.
fn may_fail(fault: Fault, scene: &Scene, run: &MigrationView, far: &str) -> bool {
    let committed = run.committed_ms.is_some();
    match fault {
        Fault::KillLeader | Fault::Terminate => true,
        // Clients wait twelve seconds.
        Fault::FreezeLeader(how_long) => how_long == A_MINUTE,
        Fault::Crash(side) | Fault::FreezeDatabase(side) | Fault::DiskFull(Disk::Database(side)) => {
            if side == Side::Primary { !scene.past_commit() } else { committed }
        }
        Fault::Cut | Fault::BlackHole(_) | Fault::ClockBackAndCut => {
            (scene.from == far && !scene.past_commit()) || (scene.to == far && committed)
        }
        _ => false,
    }
}

/// All rows of a test in one world.
async fn run(test: &str, world: &mut World<'_>) -> Result<()> {
    for row in ROWS.iter().filter(|row| row.test == test) {
        for (phase, end) in row.steps {
            if wanted(row, phase) {
                let what = || format!("{} at {phase}", row.name);
                let began = tokio::time::Instant::now();
                let cell = cell(world, row, phase, *end).await.with_context(what)?;
                println!(
                    "{} at {phase}: {}, {} requests failed, {} ms",
                    row.name,
                    if cell.finished { "finished" } else { "undone" },
                    cell.failed,
                    began.elapsed().as_millis()
                );
            }
        }
    }
    Ok(())
}

async fn rows(test: &str, agent: bool) -> Result<()> {
    let playground = Playground::start(&options(agent)?).await?;
    let mut world = World::start(&playground, RATE, 1).await?;
    run(test, &mut world).await?;
    println!("{}", world.settle().await?);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn processes() -> Result<()> {
    rows("processes", false).await
}

#[tokio::test(flavor = "multi_thread")]
async fn minutes() -> Result<()> {
    rows("minutes", false).await
}

#[tokio::test(flavor = "multi_thread")]
async fn freezes() -> Result<()> {
    rows("freezes", false).await
}

#[tokio::test(flavor = "multi_thread")]
async fn clocks() -> Result<()> {
    rows("clocks", false).await
}

#[tokio::test(flavor = "multi_thread")]
async fn crashes() -> Result<()> {
    rows("crashes", false).await
}

#[tokio::test(flavor = "multi_thread")]
async fn links() -> Result<()> {
    rows("links", false).await
}

#[tokio::test(flavor = "multi_thread")]
async fn far_node() -> Result<()> {
    rows("far_node", true).await
}

#[tokio::test(flavor = "multi_thread")]
async fn slots_lost() -> Result<()> {
    rows("slots_lost", false).await
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions() -> Result<()> {
    rows("sessions", false).await
}

#[tokio::test(flavor = "multi_thread")]
async fn ddl() -> Result<()> {
    rows("ddl", false).await
}

#[tokio::test(flavor = "multi_thread")]
async fn clients() -> Result<()> {
    rows("clients", false).await
}

#[tokio::test(flavor = "multi_thread")]
async fn reloads() -> Result<()> {
    rows("reloads", false).await
}

#[tokio::test(flavor = "multi_thread")]
async fn disks() -> Result<()> {
    let playground = Playground::start(&options(false)?).await?;
    let _mounts = Mounts::under(&playground)?;
    let mut world = World::start(&playground, RATE, 1).await?;
    run("disks", &mut world).await?;
    println!("{}", world.settle().await?);
    Ok(())
}
