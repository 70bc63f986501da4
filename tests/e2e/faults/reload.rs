//! The configuration is read anew while a migration stands still: a wrong file changes nothing, what can be applied is in force at once, what
//! cannot is refused with the migration's id and applied by the reading after it.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use godwit::leading::changes::Reloaded;
use godwit::leading::comparison::ConfigView;
use rustix::process::Signal;
use serde_json::json;
use tokio::time::{Instant, sleep};

use super::world::{Scene, World};
use crate::leader::PATIENCE;

const RELOAD: &str = "/api/v1/config/reload";
/// Changes at once.
const MOVES: &str = "max_moves_per_day: ";
/// Changes only while no migration runs: it is a number of workers.
const CAPACITY: &str = "shadow: {enabled: true, capacity: ";

fn file(world: &World<'_>) -> PathBuf {
    world.playground.config.with_file_name("policies").join("playground.yaml")
}

/// `text` with another value after `key`.
fn with(text: &str, key: &str, value: impl FnOnce(&str) -> String) -> Result<String> {
    let (before, rest) = text.split_once(key).with_context(|| format!("no {key:?} in {text}"))?;
    let end = rest.find([',', '}']).context("the value's end")?;
    Ok(format!("{before}{key}{}{}", value(&rest[..end]), &rest[end..]))
}

/// While it stands still: a file that is wrong. It is refused by the file alone.
pub(super) async fn broken(world: &World<'_>) -> Result<()> {
    let file = file(world);
    let text = std::fs::read_to_string(&file)?;
    std::fs::write(&file, with(&text, MOVES, |_| "often".into())?)?;
    let refused = world.leader.client.send(RELOAD, &json!({})).await;
    std::fs::write(&file, &text)?;
    let error = format!("{:#}", refused.err().context("a wrong file was taken")?);
    ensure!(error.contains("playground.yaml:"), "{error}");
    Ok(())
}

/// Another limit, by SIGHUP: the controller takes it as soon as it goes on, whatever the migration is doing.
pub(super) async fn of_a_limit(world: &World<'_>) -> Result<()> {
    let file = file(world);
    let text = std::fs::read_to_string(&file)?;
    let fewer =
        |moves: &str| moves.parse::<u32>().map_or_else(|_| "?".into(), |moves| (moves - 1).to_string());
    std::fs::write(&file, with(&text, MOVES, fewer)?)?;
    world.signal_leader(Signal::HUP)?;
    world.release()?;
    in_force(world).await
}

/// Another number of workers, asked for by the API. Whether it was refused: it is unless the migration was over before.
pub(super) async fn of_the_capacity(world: &World<'_>, scene: &Scene) -> Result<bool> {
    let file = file(world);
    let text = std::fs::read_to_string(&file)?;
    let other = |capacity: &str| if capacity == "100%" { "50%".into() } else { "100%".into() };
    std::fs::write(&file, with(&text, CAPACITY, other)?)?;
    let empty = json!({});
    let goes_on = async {
        sleep(Duration::from_millis(50)).await;
        world.release()
    };
    let (answer, released) = tokio::join!(world.leader.client.send(RELOAD, &empty), goes_on);
    released?;
    let done: Reloaded = serde_json::from_slice(&answer?)?;
    match done.refused.as_slice() {
        [] => ensure!(!done.applied.is_empty(), "{done:?}"),
        [why] => ensure!(why.contains(&scene.id) && done.applied.is_empty(), "{done:?}"),
        _ => bail!("one resource, and {done:?}"),
    }
    Ok(!done.refused.is_empty())
}

/// After the migration: the reading that was refused is repeated, and the workers are as many as it says.
pub(super) async fn again(world: &mut World<'_>) -> Result<()> {
    world.leader.ready().await?;
    world.signal_leader(Signal::HUP)?;
    in_force(world).await?;
    let as_many = |view: &godwit::controller::view::ResourceView| {
        let shadow = view.placements.iter().find(|placement| placement.role == "shadow");
        shadow.is_some_and(|shadow| shadow.ready == Some(shadow.capacity_shadow))
    };
    world.leader.until("as many workers as the file says", as_many).await.map(drop)
}

/// What runs is what the files say.
async fn in_force(world: &World<'_>) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let config: ConfigView = world.leader.client.fetch("/api/v1/config").await?;
        if config.differences.is_empty() {
            return Ok(());
        }
        ensure!(
            Instant::now() < deadline,
            "not in force: {:?}\n{}",
            config.differences,
            world.leader.node.tail(30)
        );
        sleep(Duration::from_millis(10)).await;
    }
}
