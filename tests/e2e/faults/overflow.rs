//! A hold that takes more than the gate may hold is undone, before anybody held is turned away.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use godwit::demo::relay::Way;
use godwit::demo::zone::Playground;
use tokio::io::AsyncReadExt;

use super::clients::send_order;
use super::fault::Fault;
use super::world::{World, options};
use crate::leader::connect;

/// No connection breaks by it: what is sent is not answered.
const STRUCK: Fault = Fault::BlackHole(Way::Forth);

#[tokio::test(flavor = "multi_thread")]
async fn a_hold_that_overflows_is_undone() -> Result<()> {
    let mut options = options(false)?;
    // The gate must end the hold long before its time is over.
    options.policy = options.policy.replace("max_hold: 2s", "max_hold: 9s");
    let playground = Playground::start(&options).await?;
    let text = std::fs::read_to_string(&playground.config)?;
    ensure!(text.contains("hold: {requests: 10000"), "{text}");
    std::fs::write(&playground.config, text.replace("hold: {requests: 10000", "hold: {requests: 50"))?;
    let mut world = World::start(&playground, 5.0, 1).await?;
    let scene = world.stand_in("fenced").await?;
    // The sequences can never be set, and nobody says so: the run would wait for as long as it may.
    let struck = STRUCK.strike(&mut world, &scene).await?;
    let mut waiting = Vec::new();
    for number in 0..40 {
        let key = format!("held-{number}");
        waiting.push((send_order(playground.front, &key).await?, key));
    }
    let run = world.ended(&scene).await?;
    let reason = run.reason.clone().unwrap_or_default();
    ensure!(run.state == "aborted" && reason.contains("the gate nearly holds all it may"), "{run:#?}");
    STRUCK.heal(&mut world, &scene, &struck).await?;
    STRUCK.clean(&mut world, &scene, struck).await?;
    let client = connect(world.zone(&scene.from)).await?;
    for (mut stream, key) in waiting {
        let mut answer = [0; 12];
        stream.read_exact(&mut answer).await.with_context(|| format!("the answer to {key}"))?;
        let answer = String::from_utf8_lossy(&answer).into_owned();
        ensure!(answer == "HTTP/1.1 201", "{key} was answered {answer:?}");
        let row = client.query_one("SELECT count(*) FROM orders WHERE key = $1", &[&key]).await?;
        ensure!(row.get::<_, i64>(0) == 1, "{key} is not there once");
    }
    world.recovered(&scene, &run, Duration::ZERO).await?;
    let failures = world.failures()?;
    ensure!(failures.is_empty(), "{failures:#?}");
    println!("{}", world.settle().await?);
    Ok(())
}
