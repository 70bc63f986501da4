//! A slot that keeps too much WAL is dropped before it fills the primary's disk, and the shadow is seeded anew: by order, or by
//! itself where the policy says so.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use godwit::demo::zone::{Playground, RESOURCE};
use godwit_tests::postgres::wal_position;
use godwit_tests::waiting::until;
use replicator::link::memory::Options;
use replicator::postgres::slot;
use replicator::pump::LocalPeer;
use replicator::status::Phase;
use rustix::process::Signal;
use serde_json::json;
use tokio_postgres::Client;

use crate::leader::{Leader, PATIENCE, connect, load, options, superuser};
use crate::stream::{Pair, Running, spec};

const RULES: &str = "replication: {mode: async, slot: {budget: 64MiB, alarm: 50%, reseed: manual}}";

/// Writes so many MiB of WAL that concern nobody.
async fn fill(client: &Client, mebibytes: u32) -> Result<()> {
    for _ in 0..mebibytes {
        client.execute("SELECT pg_logical_emit_message(false, 'filler', repeat('x', 1048576))", &[]).await?;
    }
    Ok(())
}

pub(crate) async fn metrics(playground: &Playground) -> Result<String> {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut socket = tokio::net::TcpStream::connect(playground.admin).await?;
    socket.write_all(b"GET /metrics HTTP/1.0\r\nhost: localhost\r\n\r\n").await?;
    let mut text = String::new();
    socket.read_to_string(&mut text).await?;
    Ok(text)
}

async fn digest(client: &Client) -> Result<String> {
    let sql = "SELECT count(*) || '/' || coalesce(sum(hashtextextended(o::text, 0)), 0)::text FROM orders o";
    Ok(client.query_one(sql, &[]).await?.get(0))
}

async fn equal(leader: &mut Leader<'_>, zones: [&Client; 2]) -> Result<()> {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        let (one, other) = (digest(zones[0]).await?, digest(zones[1]).await?);
        if one == other {
            return Ok(());
        }
        ensure!(tokio::time::Instant::now() < deadline, "{one} and {other}\n{}", leader.node.tail(30));
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn says(view: &godwit::controller::view::ResourceView, what: &str) -> bool {
    view.problems.iter().any(|problem| problem.contains(what))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_over_its_budget_is_dropped_and_the_shadow_seeded_anew() -> Result<()> {
    let mut options = options(false)?;
    options.policy = options.policy.replace("replication: {mode: async}", RULES);
    let playground = Playground::start(&options).await?;
    let [near, far] = &playground.zones;
    let mut leader = Leader::start(&playground, &[])?;
    leader.ready().await?;
    let (primary, shadow) = (connect(near).await?, connect(far).await?);
    // Something that a second copy would trip over, were it still there.
    primary
        .batch_execute(
            "CREATE SCHEMA extra; CREATE TYPE extra.mood AS ENUM ('glad'); CREATE DOMAIN short AS text;
             CREATE FUNCTION twice(short) RETURNS text LANGUAGE sql AS 'SELECT $1 || $1';
             CREATE TABLE extra.moods (id int PRIMARY KEY, mood extra.mood, note short); CREATE STATISTICS st ON id, note FROM extra.moods",
        )
        .await?;

    // The applier stands still: the shadow is out of reach.
    far.path.cut();
    far.path.reset_connections();
    fill(&primary, 40).await?;
    let view = leader.until("the alarm", |view| says(view, "over 50% of its budget of 64MiB")).await?;
    ensure!(slot::slot_info(&primary, &slot::slot_name(RESOURCE, 1)).await?.is_some(), "{view:#?}");
    let metrics = metrics(&playground).await?;
    let line = metrics.lines().find(|line| {
        line.starts_with("godwit_slot_retained_wal_bytes{")
            && line.contains(&format!("zone=\"{}\"", near.name))
    });
    let kept: f64 =
        line.and_then(|line| line.rsplit(' ').next()).and_then(|n| n.parse().ok()).unwrap_or_default();
    ensure!((32e6..64e6 * 1.05).contains(&kept), "{line:?}");
    let running = load(&playground, 30.0, "slots");
    fill(&primary, 40).await?;
    let order = format!("must be seeded anew (godwit reseed {RESOURCE})");
    leader.until("the slot is given up", |view| says(view, &order)).await?;
    ensure!(slot::slots_of(&primary, RESOURCE).await?.is_empty(), "the slot is still there");
    ensure!(leader.ask_to_migrate(&far.name).await.is_err(), "nothing to move to");

    // It stays so, also when the shadow is back, until somebody orders it.
    far.path.restore();
    tokio::time::sleep(Duration::from_secs(2)).await;
    let view = leader.view().await?;
    ensure!(says(&view, &order), "{view:#?}");
    ensure!(slot::slots_of(&primary, RESOURCE).await?.is_empty(), "nobody ordered a new copy");
    leader.client.send(&format!("/api/v1/resources/{RESOURCE}/reseed"), &json!({})).await?;
    leader.ready().await?;
    let outcome = running.stop().await;
    ensure!(outcome.totals.failed == 0, "{:#?}", outcome.failures);
    equal(&mut leader, [&primary, &shadow]).await?;
    let fenced = shadow.execute("UPDATE orders SET id = id WHERE false", &[]).await;
    ensure!(fenced.is_err(), "the shadow is not guarded");

    // As good as the first: it takes over. The stream is up a moment before the order is done with.
    leader.until("it is seeded", |view| !says(view, "seeded anew")).await?;
    leader.migrate(&far.name).await?;
    leader.until("moved", |view| view.primary == far.name && view.phase == "shadowing").await?;
    leader.ready().await?;

    // And where the policy says so, by itself; also in the second generation.
    drop(leader);
    let file = playground.directory.join("policies/playground.yaml");
    std::fs::write(&file, std::fs::read_to_string(&file)?.replace("reseed: manual", "reseed: auto"))?;
    let mut leader = Leader::start(&playground, &[])?;
    leader.ready().await?;
    slot::drop_slot(&shadow, &slot::slot_name(RESOURCE, 2)).await?;
    // What no stream will ever bring.
    shadow.batch_execute("UPDATE orders SET amount = amount + 1").await?;
    leader
        .until("it begins by itself", |view| view.replication.state == "copying" || says(view, "seeded anew"))
        .await?;
    leader.ready().await?;
    equal(&mut leader, [&primary, &shadow]).await
}

/// Killed with the record that ends an undone move: nobody else would ever drop what that has made on the shadow.
#[tokio::test(flavor = "multi_thread")]
async fn the_slot_of_an_undone_moves_way_back_goes_although_the_node_was_killed() -> Result<()> {
    let playground = Playground::start(&options(false)?).await?;
    let far = &playground.zones[1];
    let stops = playground.directory.join("stops");
    std::fs::create_dir_all(&stops)?;
    let stopping = [("GODWIT_TEST_STOPS", stops.to_str().context("a path")?)];
    let shadow = connect(far).await?;
    let name = slot::slot_name(RESOURCE, 2);
    let there = async || Ok::<_, anyhow::Error>(slot::slot_info(&shadow, &name).await?.is_some());
    let mut leader = Leader::start(&playground, &stopping)?;
    leader.ready().await?;
    for (phase, begins) in [("armed", true), ("shadowing", false)] {
        std::fs::write(stops.join(phase), "")?;
        if begins {
            leader.migrate_or_die(&far.name).await?;
        } else {
            leader = Leader::start(&playground, &stopping)?;
        }
        let reached = stops.join(format!("{phase}.reached"));
        until(phase, async || Ok(reached.exists())).await?;
        ensure!(there().await?, "the way back has no slot in {phase}");
        leader.node.signal(Signal::KILL)?;
        until("it is dead", async || Ok(leader.node.ended()?.is_some())).await?;
        std::fs::remove_file(&reached)?;
    }
    let mut leader = Leader::start(&playground, &[])?;
    until("the slot is dropped", async || Ok(!there().await?)).await?;
    leader.ready().await?;
    leader.migrate(&far.name).await?;
    leader.until("moved", |view| view.primary == far.name && view.phase == "shadowing").await?;
    Ok(())
}

/// The old zone goes away with the move: the slot of the way back must not fill the disk of the primary that is left, and the old one is seeded anew when it
/// is back.
#[tokio::test(flavor = "multi_thread")]
async fn the_way_back_fills_no_disk_while_the_old_zone_is_away() -> Result<()> {
    let mut options = options(false)?;
    options.policy = options
        .policy
        .replace("replication: {mode: async}", &RULES.replace("reseed: manual", "reseed: auto"));
    let playground = Playground::start(&options).await?;
    let [near, far] = &playground.zones;
    let (mut leader, stops) = Leader::that_stops(&playground)?;
    leader.ready().await?;
    let primary = connect(far).await?;
    let old = connect(near).await?;
    std::fs::write(stops.join("released"), "")?;
    leader.migrate_or_die(&far.name).await?;
    let reached = stops.join("released.reached");
    until("it is released", async || Ok(reached.exists())).await?;
    near.path.cut();
    near.path.reset_connections();
    std::fs::remove_file(&reached)?;
    leader.until("the way back waits", |view| view.phase == "released").await?;
    fill(&primary, 80).await?;
    let order = format!("must be seeded anew (godwit reseed {RESOURCE})");
    leader.until("the slot is given up", |view| says(view, &order)).await?;
    until("the slot is dropped", async || Ok(slot::slots_of(&primary, RESOURCE).await?.is_empty())).await?;
    near.path.restore();
    leader.until("it is seeded anew", |view| view.phase == "shadowing" && view.primary == far.name).await?;
    leader.ready().await?;
    equal(&mut leader, [&primary, &old]).await
}

/// The slot of a way back that the server has taken the WAL of is no way back: it is made anew before anybody is held.
#[tokio::test(flavor = "multi_thread")]
async fn a_lost_slot_is_no_way_back() -> Result<()> {
    let mut options = options(false)?;
    options.settings[1].push_str("max_slot_wal_keep_size = 1MB\nmin_wal_size = 32MB\nmax_wal_size = 32MB\n");
    let playground = Playground::start(&options).await?;
    let [near, far] = &playground.zones;
    let (administrator, name) = (superuser(far).await?, slot::slot_name(RESOURCE, 2));
    slot::create_slot(&administrator, &name).await?;
    let lost = async || {
        fill(&administrator, 40).await?;
        administrator.batch_execute("CHECKPOINT").await?;
        let found = slot::slot_info(&administrator, &name).await?;
        Ok(found.context("the slot")?.wal_status == "lost")
    };
    until("the slot is lost", lost).await?;
    // What is copied there must not be lost as well.
    administrator.batch_execute("ALTER SYSTEM SET max_slot_wal_keep_size = -1").await?;
    administrator.batch_execute("SELECT pg_reload_conf()").await?;
    let mut leader = Leader::start(&playground, &[])?;
    for zone in [far, near] {
        leader.ready().await?;
        leader.migrate(&zone.name).await?;
        leader.until("moved", |view| view.primary == zone.name && view.phase == "shadowing").await?;
    }
    Ok(())
}

/// The server says where it is, also when nothing of it concerns us: that position reaches the slot by way of the shadow's
/// checkpoint, and nothing has to be written on the source.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idle_database_beside_a_busy_one_keeps_no_wal() -> Result<()> {
    let pair = Pair::start(15, 18).await?;
    let peer = LocalPeer::new(pair.target_end(), Options::default());
    let stream = Running::start(peer, spec(1), pair.source_end());
    stream.wait(|status| status.phase == Phase::Streaming).await?;
    let busy = pair.source.create_database("busy", "CREATE TABLE t (id bigserial, filler text)").await?;
    let look = async || slot::slot_info(&pair.from, &spec(1).slot).await?.context("the slot");
    let (mut written, mut most, mut goal) = (0, 0, None);
    let deadline = tokio::time::Instant::now() + PATIENCE;
    let (seen, goal) = loop {
        busy.batch_execute(
            "INSERT INTO t (filler) SELECT repeat(md5(g::text), 30) FROM generate_series(1, 1000) g",
        )
        .await?;
        fill(&busy, 3).await?;
        written += 4;
        let seen = look().await?;
        most = most.max(seen.retained_bytes);
        if goal.is_none() && written >= 64 {
            goal = Some(wal_position(&pair.from).await?);
        }
        // The server moves `restart_lsn` on at its own pace: each 15 s, or at a checkpoint.
        if let Some(goal) =
            goal.filter(|goal| seen.confirmed_flush > Some(*goal) && seen.restart > Some(*goal))
        {
            break (seen, goal);
        }
        ensure!(
            tokio::time::Instant::now() < deadline,
            "not let go of: {seen:?}, most {most}, goal {goal:?}"
        );
        tokio::time::sleep(Duration::from_millis(500)).await;
    };
    println!(
        "{written} MiB written beside it; at most {} MiB kept, {} now; past {goal}",
        most >> 20,
        seen.retained_bytes >> 20
    );
    ensure!(stream.status.borrow().changes == 0 && stream.status.borrow().transactions == 0);
    stream.stop().await
}

/// The server begins a slot when every transaction that has written is over: whoever keeps one open for hours is named.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_slot_waits_for_is_told() -> Result<()> {
    let playground = Playground::start(&options(false)?).await?;
    let near = &playground.zones[0];
    let forgotten = connect(near).await?;
    forgotten.batch_execute("SET application_name = 'forgotten'; BEGIN; SELECT pg_current_xact_id()").await?;
    let pid: i32 = forgotten.query_one("SELECT pg_backend_pid()", &[]).await?.get(0);
    let mut leader = Leader::start(&playground, &[])?;
    let named = format!("it waits for the transaction of pid {pid} of ");
    let view = leader.until("it is named", |view| says(view, &named)).await?;
    let line = view.problems.iter().find(|problem| problem.contains(&named)).context("the line")?;
    let parts = [&near.name, "(forgotten)", "that began 00:00:", "and is idle in transaction"];
    ensure!(parts.iter().all(|part| line.contains(part)), "{line}");
    forgotten.batch_execute("COMMIT").await?;
    let view = leader.ready().await?;
    ensure!(!says(&view, "it waits for"), "{:#?}", view.problems);
    Ok(())
}
