//! The primary is lost, and its shadow takes over: what was acknowledged is there where commits wait, and what comes back is no primary.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use godwit::cli::client::Refusal;
use godwit::controller::Plan;
use godwit::controller::view::ResourceView;
use godwit::demo::load::Load;
use godwit::demo::zone::{DATABASE, GODWIT_ROLE, Playground, RESOURCE, SERVICE_ROLE, Zone};
use godwit_tests::waiting::until;
use rustix::process::Signal;
use serde_json::{Value, json};
use tokio_postgres::Client;

use crate::cutover::died_or_finished;
use crate::faults::fault::{freeze, signal_all};
use crate::leader::{Leader, PROGRAM, agent, connect, load, options};

pub(crate) async fn take_over(leader: &Leader<'_>, body: &Value) -> Result<Plan> {
    let answer = leader.client.send(&format!("/api/v1/resources/{RESOURCE}/takeover"), body).await?;
    Ok(serde_json::from_slice(&answer)?)
}

/// Why it is refused.
async fn refused(leader: &Leader<'_>, body: &Value) -> Result<String> {
    let error = take_over(leader, body).await.err().context("it was not refused")?;
    ensure!(error.downcast_ref::<Refusal>().is_some(), "{error:#}");
    Ok(format!("{error:#}"))
}

/// Until the front acknowledges writes again.
async fn writes(load: &Load) -> Result<()> {
    let before = load.snapshot().acknowledged;
    until("writes are acknowledged", async || Ok(load.snapshot().acknowledged > before + 20)).await
}

async fn as_service(zone: &Zone) -> Result<Client> {
    Ok(replicator::postgres::connect(&zone.dsn(SERVICE_ROLE), "direct").await?)
}

/// Every sequence, ahead of the column that draws from it.
async fn behind(client: &Client) -> Result<i64> {
    let sql = "SELECT count(*) FROM (SELECT (SELECT max(id) FROM orders) AS used, pg_sequence_last_value(pg_get_serial_sequence('orders', 'id')) AS drawn
        UNION ALL SELECT max(id), pg_sequence_last_value(pg_get_serial_sequence('customers', 'id')) FROM customers) s WHERE drawn < used";
    Ok(client.query_one(sql, &[]).await?.get(0))
}

async fn orders(zone: &Zone) -> Result<i64> {
    Ok(connect(zone).await?.query_one("SELECT count(*) FROM orders", &[]).await?.get(0))
}

fn told(view: &ResourceView, what: &str) -> bool {
    view.problems.iter().any(|problem| problem.contains(what))
}

/// With commits that wait for the shadow nothing that was acknowledged is lost, whatever happens to the primary. It is fenced when it
/// comes back, seeded anew when a person says so and not before, and can be moved back to.
#[tokio::test(flavor = "multi_thread")]
async fn a_shadow_takes_over_with_all_that_was_acknowledged() -> Result<()> {
    let mut options = options(true)?;
    options.postgres_front = true;
    options.policy = options
        .policy
        .replace(
            "replication: {mode: async}",
            "replication: {mode: sync, fallback: {after: 30s, back: 1s}, slot: {reseed: auto}}",
        )
        .replace("cooldown: 12s", "cooldown: 1s");
    let playground = Playground::start(&options).await?;
    let _agent = agent(&playground)?;
    let [near, far] = &playground.zones;
    // Columns with what their sequences cannot give: far above, and below where that begins.
    let beyond = "CREATE TABLE wide (id serial PRIMARY KEY); ALTER TABLE wide ALTER id TYPE bigint; INSERT INTO wide VALUES (1000000000000000);
        CREATE TABLE high (id int PRIMARY KEY); CREATE SEQUENCE high_ids MINVALUE 100000 OWNED BY high.id; INSERT INTO high VALUES (5);
        CREATE SEQUENCE invoices; SELECT setval('invoices', 5000)";
    connect(near).await?.batch_execute(beyond).await?;
    let mut leader = Leader::start(&playground, &[])?;
    leader.until("commits wait", |view| view.replication.mode.effective == "sync").await?;
    let load = load(&playground, 80.0, "lost");
    writes(&load).await?;
    let why = refused(&leader, &json!({"accept_loss": true})).await?;
    ensure!(why.contains("eu-west answers"), "{why}");

    // No column says what was drawn of it; a shadow that was emptied has it where it begins.
    let shadow = connect(far).await?;
    for _ in 0..2 {
        until("the sequence follows", async || {
            let last = shadow.query_one("SELECT last_value FROM invoices", &[]).await?;
            Ok(last.get::<_, i64>(0) == 5000)
        })
        .await?;
        shadow.batch_execute("SELECT setval('invoices', 1, false)").await?;
    }

    // A client of the front, idle and known to the lost server.
    let front = playground.postgres_front.context("a front")?;
    let dsn = format!("host={} port={} user={SERVICE_ROLE} dbname={DATABASE}", front.ip(), front.port());
    let (idle, connection) = tokio_postgres::connect(&dsn, tokio_postgres::NoTls).await?;
    let connection = tokio::spawn(connection);
    idle.batch_execute("SELECT 1").await?;

    let frozen = freeze(near)?;
    let plan = take_over(&leader, &json!({"dry_run": true})).await?;
    let failed: Vec<&str> =
        plan.guards.iter().filter(|guard| !guard.passed).map(|guard| guard.name.as_str()).collect();
    ensure!(plan.id.is_none() && failed == ["loss accepted"], "{plan:#?}");
    let asked = tokio::process::Command::new(PROGRAM)
        .args(["--admin", &playground.admin.to_string(), "takeover", RESOURCE, "--dry-run"])
        .output()
        .await?;
    let text = String::from_utf8(asked.stdout)?;
    ensure!(
        asked.status.code() == Some(4) && text.contains("it would be refused"),
        "{}: {text}",
        asked.status
    );
    let why = refused(&leader, &json!({})).await?;
    ensure!(why.contains("loss accepted: no"), "{why}");
    // As while one of its tables is filled beside the stream.
    let shadow = connect(far).await?;
    shadow.batch_execute("INSERT INTO godwit.unfilled VALUES ('orders'::regclass)").await?;
    let why = refused(&leader, &json!({"accept_loss": true})).await?;
    ensure!(why.contains("tables whole: rows are missing in public.orders"), "{why}");
    shadow.batch_execute("DELETE FROM godwit.unfilled").await?;
    ensure!(load.snapshot().in_flight > 20, "some requests should hang there");
    // As what was written beside the stream and waits for more of it.
    let waits = replicator::postgres::connect(&far.dsn(GODWIT_ROLE), "godwit-large-objects").await?;
    waits.batch_execute("BEGIN; SELECT FROM godwit.epoch FOR SHARE").await?;
    let plan = take_over(&leader, &json!({"accept_loss": true})).await?;
    let id = plan.id.context("an id")?;
    leader.until("it has taken over", |view| view.primary == far.name && view.phase == "shadowing").await?;

    let run = leader.migration(&id).await?;
    ensure!(run.state == "taken_over" && run.committed_ms.is_some() && run.held_ms.is_some(), "{run:#?}");
    let snapshots = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'godwit-snapshot' AND xact_start IS NOT NULL";
    let snapshots: i64 = shadow.query_one(snapshots, &[]).await?.get(0);
    ensure!(snapshots == 0, "a snapshot that nobody will compare keeps VACUUM from what died since");
    writes(&load).await?;
    let again = tokio_postgres::connect(&dsn, tokio_postgres::NoTls).await?;
    tokio::spawn(again.1);
    again.0.batch_execute("INSERT INTO customers (name) VALUES ('by the front')").await?;
    until("the old session has ended", async || Ok(connection.is_finished())).await?;
    ensure!(behind(&connect(far).await?).await? == 0, "numbers would be given twice");
    leader.until("it is told", |view| told(view, "eu-west was lost and eu-central took over")).await?;
    let why = refused(&leader, &json!({"accept_loss": true, "primary_answers": true})).await?;
    ensure!(why.contains("shadow whole: eu-west does not answer"), "{why}");
    ensure!(leader.ask_to_migrate(&near.name).await.is_err(), "there is nothing to move to");

    // It is back, and takes no writes; nobody empties it unasked.
    signal_all(&frozen, Signal::CONT)?;
    let fenced = async || {
        let Ok(client) = as_service(near).await else { return Ok(false) };
        let written = client.batch_execute("INSERT INTO customers (name) VALUES ('stray')").await;
        Ok(written.is_err_and(|error| error.code().is_some_and(|code| code.code() == "25006")))
    };
    until("the old primary is fenced", fenced).await?;
    let why = refused(&leader, &json!({"accept_loss": true, "primary_answers": true})).await?;
    ensure!(why.contains("shadow whole: eu-west has no whole copy"), "{why}");
    let there = orders(near).await?;
    tokio::time::sleep(Duration::from_secs(3)).await;
    ensure!(leader.view().await?.replication.state != "streaming", "nobody has asked for that");
    let left = orders(near).await?;
    ensure!(there == left && left > 0, "{there} rows, then {left}");

    // Godwit may be looking whether that is for it to do.
    let path = format!("/api/v1/resources/{RESOURCE}/reseed");
    until("a new seed is taken up", async || Ok(leader.client.send(&path, &json!({})).await.is_ok())).await?;
    leader
        .until("it follows", |view| view.replication.mode.effective == "sync" && view.problems.is_empty())
        .await?;
    let run = leader.migration(&id).await?;
    ensure!(run.reason.as_deref() == Some("the old primary was seeded anew since"), "{run:#?}");
    until("nothing keeps the WAL of the one that was lost", async || {
        let slots = replicator::postgres::slot::slots_of(&connect(near).await?, RESOURCE).await?;
        Ok(slots.is_empty())
    })
    .await?;
    let outcome = load.stop().await;
    // Those that hung in the lost zone were ended: when that was back, nobody was told that a write of theirs was done.
    let ended = outcome.failures.iter().filter(|failure| failure.status == Some(502)).count();
    ensure!(ended > 20, "{ended} were ended");
    let report = outcome.check(&connect(far).await?).await?;
    ensure!(report.clean(), "{report}: {report:?}");
    leader.ready().await?;
    leader.migrate(&near.name).await?;
    leader.until("it has moved back", |view| view.primary == near.name && view.phase == "shadowing").await?;
    let report = outcome.check(&connect(near).await?).await?;
    ensure!(report.clean(), "{report}: {report:?}");
    Ok(())
}

/// Where a move was under way, and is being undone on a primary that does not answer, too: clients wait no longer for it than until
/// a person says that it is lost. Of what was committed a beginning is there.
#[tokio::test(flavor = "multi_thread")]
async fn a_shadow_takes_over_in_the_middle_of_an_undone_move() -> Result<()> {
    let mut options = options(false)?;
    options.policy = options
        .policy
        .replace("replication: {mode: async}", "replication: {mode: async, slot: {reseed: auto}}")
        .replace("cooldown: 12s", "cooldown: 1s");
    let playground = Playground::start(&options).await?;
    let [near, far] = &playground.zones;
    let (mut leader, stops) = Leader::that_stops(&playground)?;
    leader.ready().await?;
    let load = load(&playground, 80.0, "undone");
    writes(&load).await?;
    let holder = replicator::postgres::connect(&near.dsn(SERVICE_ROLE), "holder").await?;
    holder.batch_execute("BEGIN; UPDATE customers SET name = name WHERE id = 1").await?;
    std::fs::write(stops.join("drained"), "")?;
    leader.migrate(&far.name).await?;
    let reached = stops.join("drained.reached");
    until("the fence is about to go up", async || Ok(reached.exists())).await?;
    let frozen = freeze(near)?;
    std::fs::remove_file(&reached)?;
    leader.until("it is being undone", |view| view.phase == "aborting").await?;
    take_over(&leader, &json!({"accept_loss": true})).await?;
    leader.until("it has taken over", |view| view.primary == far.name && view.phase == "shadowing").await?;
    writes(&load).await?;
    ensure!(behind(&connect(far).await?).await? == 0, "numbers would be given twice");
    // A restart finds it so.
    leader.node.signal(Signal::KILL)?;
    drop(leader);
    let mut leader = Leader::start(&playground, &[])?;
    leader.until("it knows", |view| view.primary == far.name && told(view, "eu-west was lost")).await?;
    writes(&load).await?;
    // The fence of the undone move may be up there, or go up now; what is there stays all the same.
    signal_all(&frozen, Signal::CONT)?;
    drop(holder);
    until("it has been looked at", async || {
        let epoch = replicator::fence::state(&connect(near).await?, RESOURCE).await?;
        Ok(epoch.is_some_and(|epoch| epoch.fenced && epoch.generation == 2))
    })
    .await?;
    let before = orders(near).await?;
    tokio::time::sleep(Duration::from_secs(13)).await;
    let after = orders(near).await?;
    ensure!(before == after && after > 0, "{before} orders, then {after}");
    ensure!(leader.view().await?.replication.state != "streaming", "nobody has asked for that");
    drop(load.stop().await);
    Ok(())
}

/// Killed after each record of it, it goes on where it was, and nothing is done twice that may not be.
#[tokio::test(flavor = "multi_thread")]
async fn a_takeover_that_is_killed_after_any_journal_record_goes_on() -> Result<()> {
    let playground = Playground::start(&options(false)?).await?;
    let [near, far] = &playground.zones;
    let mut leader = Leader::start(&playground, &[])?;
    leader.ready().await?;
    let before = orders(near).await?;
    leader.until("it has caught up", |view| view.replication.lag_bytes == Some(0)).await?;
    leader.node.signal(Signal::KILL)?;
    drop(leader);
    let frozen = freeze(near)?;
    let mut died = 0;
    loop {
        let mut leader = Leader::start(&playground, &[("GODWIT_TEST_KILL_AFTER", "1")])?;
        if died == 0 {
            leader.until("it serves", |view| view.phase == "shadowing").await?;
            // Killed before it could answer.
            drop(take_over(&leader, &json!({"accept_loss": true})).await);
        }
        if !died_or_finished(&mut leader, &far.name).await? {
            let load = load(&playground, 50.0, "after");
            writes(&load).await?;
            drop(load.stop().await);
            break;
        }
        died += 1;
        ensure!(died < 12, "it does not end");
    }
    ensure!(died > 3, "it was killed {died} times only");
    let client = connect(far).await?;
    ensure!(behind(&client).await? == 0, "numbers would be given twice");
    let after = orders(far).await?;
    ensure!(after >= before, "{before} orders, then {after}");
    signal_all(&frozen, Signal::CONT)
}

/// Shortly after a move, when the old primary still waits at full capacity: back to it, with all that was acknowledged since.
#[tokio::test(flavor = "multi_thread")]
async fn a_primary_that_is_lost_after_a_move_is_taken_over_by_the_one_before() -> Result<()> {
    let mut options = options(false)?;
    options.policy = options
        .policy
        .replace("replication: {mode: async}", "replication: {mode: sync, fallback: {after: 30s, back: 1s}}")
        .replace("retire: {after: 100ms", "retire: {after: 10m");
    let playground = Playground::start(&options).await?;
    let [near, far] = &playground.zones;
    let mut leader = Leader::start(&playground, &[])?;
    let waits = |view: &ResourceView| view.replication.mode.effective == "sync";
    leader.until("commits wait", waits).await?;
    let load = load(&playground, 80.0, "after a move");
    writes(&load).await?;
    let id = leader.migrate(&far.name).await?;
    leader
        .until("it soaks", |view| view.primary == far.name && view.phase == "soaking" && waits(view))
        .await?;
    writes(&load).await?;
    let frozen = freeze(far)?;
    take_over(&leader, &json!({"accept_loss": true})).await?;
    leader.until("it has taken over", |view| view.primary == near.name && view.phase == "shadowing").await?;
    ensure!(leader.migration(&id).await?.state == "superseded");
    writes(&load).await?;
    ensure!(behind(&connect(near).await?).await? == 0, "numbers would be given twice");
    signal_all(&frozen, Signal::CONT)?;
    let outcome = load.stop().await;
    let report = outcome.check(&connect(near).await?).await?;
    ensure!(report.clean(), "{report}: {report:?}");
    Ok(())
}
