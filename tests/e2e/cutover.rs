//! The whole road: real nodes, databases, workers and clients; twenty cutovers, and a kill -9 at every journal record.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use godwit::controller::view::{MigrationView, ResourceView};
use godwit::demo::load::Outcome;
use godwit::demo::zone::{DATABASE, GODWIT_ROLE, Options, Playground, SERVICE_ROLE, SUPERUSER, Zone};
use godwit_tests::waiting::until;
use replicator::verify;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

use crate::large_objects;
use crate::leader::{Leader, PATIENCE, agent, connect, load, options};

/// Every acknowledged write is in the primary once, whole.
async fn check_writes(primary: &Zone, outcome: &Outcome) -> Result<()> {
    let report = outcome.check(&connect(primary).await?).await?;
    ensure!(report.acknowledged > 0, "the load wrote nothing");
    ensure!(report.clean(), "{report}: {report:?}");
    Ok(())
}

/// Both databases hold the same rows once the stream has caught up.
async fn check_equal(leader: &mut Leader<'_>) -> Result<()> {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    let [one, other] = &leader.playground.zones;
    let (one, other) = (connect(one).await?, connect(other).await?);
    loop {
        let differences = verify::differences(&verify::digest(&one).await?, &verify::digest(&other).await?);
        if differences.is_empty() {
            return Ok(());
        }
        ensure!(
            tokio::time::Instant::now() < deadline,
            "both sides stay different: {differences:?}\n{}",
            leader.node.tail(30)
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn twenty_cutovers_lose_nothing() -> Result<()> {
    let playground = Playground::start(&Options { wan: Duration::from_millis(5), ..options(true)? }).await?;
    let _agent = agent(&playground)?;
    let mut leader = Leader::start(&playground, &[])?;
    leader.ready().await?;
    let load = load(&playground, 100.0, "twenty");
    for round in 0..20 {
        let view = leader.ready().await?;
        let id = leader.migrate(&view.shadow).await?;
        let (from, to) = (view.primary, view.shadow);
        leader
            .until(&format!("cutover {round} ({id})"), |view| view.primary == to && view.phase == "shadowing")
            .await?;
        let run = leader.migration(&id).await?;
        ensure!(
            run.state == "retired" && run.verified == Some(true),
            "cutover {round}, {from} → {to}: {run:#?}"
        );
        let failed = load.snapshot().failed;
        ensure!(failed == 0, "after cutover {round}: {:#?}\n{}", load.failures(), leader.node.tail(40));
    }
    let outcome = load.stop().await;
    ensure!(outcome.totals.failed == 0, "{:#?}", outcome.failures);
    ensure!(outcome.totals.sent > 1_000, "the load sent only {}", outcome.totals.sent);
    let view = leader.ready().await?;
    check_writes(leader.zone(&view.primary), &outcome).await?;
    check_equal(&mut leader).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kill_after_any_journal_record_loses_nothing() -> Result<()> {
    let playground = Playground::start(&options(false)?).await?;
    // Large objects are in no stream: what was acknowledged of them must be there as well.
    large_objects::kept(&playground).await?;
    for zone in &playground.zones {
        large_objects::member(zone).await?;
    }
    let (mut killed_in, mut written) = (Vec::new(), Vec::new());
    for record in 1_u32.. {
        ensure!(record < 40, "a cutover writes fewer records than that");
        let limit = record.to_string();
        let mut leader = Leader::start(&playground, &[("GODWIT_TEST_KILL_AFTER", &limit)])?;
        let view = leader.ready().await?;
        let load = load(&playground, 50.0, &format!("kill{record}"));
        let stop = CancellationToken::new();
        let writer = large_objects::as_role(leader.zone(&view.primary), SERVICE_ROLE).await?;
        let writer = large_objects::writing(writer, i64::from(record) * 1_000_000, stop.clone());
        leader.until("the load runs", |_| load.snapshot().acknowledged > 20).await?;
        leader.migrate_or_die(&view.shadow).await?;
        let died = died_or_finished(&mut leader, &view.shadow).await?;
        if died {
            drop(leader);
            leader = Leader::start(&playground, &[])?;
        }
        let view = leader.ready().await?;
        let served = load.snapshot().acknowledged;
        leader.until("the service recovers", |_| load.snapshot().acknowledged > served + 20).await?;
        let outcome = load.stop().await;
        check_writes(leader.zone(&view.primary), &outcome)
            .await
            .with_context(|| format!("killed after record {record}"))?;
        stop.cancel();
        written.extend(writer.await?);
        let primary = large_objects::as_role(leader.zone(&view.primary), SUPERUSER).await?;
        large_objects::there(&primary, &written)
            .await
            .with_context(|| format!("killed after record {record}"))?;
        check_equal(&mut leader).await.with_context(|| format!("killed after record {record}"))?;
        let [near, far] = &playground.zones;
        large_objects::alike(&leader, [near, far])
            .await
            .with_context(|| format!("killed after record {record}"))?;
        leader.audit().await.with_context(|| format!("killed after record {record}"))?;
        if !died {
            break;
        }
        let runs: Vec<MigrationView> = leader.client.fetch("/api/v1/history?limit=1").await?;
        let run = runs.first().context("the killed migration is in the history")?;
        ensure!(run.ended(), "{run:#?}");
        killed_in.push((record, run.state.clone(), run.steps.len()));
    }
    ensure!(killed_in.len() >= 12, "too few records: {killed_in:?}");
    ensure!(written.len() > 500, "{} documents", written.len());
    ensure!(killed_in.iter().any(|(_, state, _)| state == "aborted"), "{killed_in:?}");
    ensure!(killed_in.iter().any(|(_, state, _)| state == "retired"), "{killed_in:?}");
    Ok(())
}

/// True when the node killed itself; false when the migration ended first.
pub(crate) async fn died_or_finished(leader: &mut Leader<'_>, to: &str) -> Result<bool> {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        if leader.node.ended()?.is_some() {
            return Ok(true);
        }
        if let Ok(view) = leader.view().await
            && view.primary == to
            && view.phase == "shadowing"
        {
            return Ok(false);
        }
        ensure!(
            tokio::time::Instant::now() < deadline,
            "neither killed nor finished:\n{}",
            leader.node.tail(30)
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// What sessions begin with in a database that was set up oddly: they are cut short, and write and read values otherwise.
const ODD: [(&str, &str); 18] = [
    ("statement_timeout", "150ms"),
    ("lock_timeout", "150ms"),
    ("idle_in_transaction_session_timeout", "150ms"),
    ("idle_session_timeout", "150ms"),
    ("default_transaction_isolation", "serializable"),
    ("DateStyle", "German"),
    ("IntervalStyle", "sql_standard"),
    ("TimeZone", "Asia/Kolkata"),
    ("bytea_output", "escape"),
    ("extra_float_digits", "-10"),
    ("standard_conforming_strings", "off"),
    ("quote_all_identifiers", "on"),
    ("array_nulls", "off"),
    ("transform_null_equals", "on"),
    ("client_min_messages", "debug1"),
    ("lc_numeric", "C"),
    ("row_security", "off"),
    ("synchronous_commit", "off"),
];

#[tokio::test(flavor = "multi_thread")]
async fn what_sessions_begin_with_changes_nothing_of_ours() -> Result<()> {
    let playground = Playground::start(&options(false)?).await?;
    let [near, far] = &playground.zones;
    for zone in [near, far] {
        let administrator = replicator::postgres::connect(&zone.dsn(SUPERUSER), "godwit-test").await?;
        for (setting, value) in ODD {
            let sql = format!("ALTER ROLE {GODWIT_ROLE} IN DATABASE {DATABASE} SET {setting} = '{value}'");
            administrator.batch_execute(&sql).await?;
        }
    }
    let mut leader = Leader::start(&playground, &[])?;
    leader.ready().await?;
    let load = load(&playground, 60.0, "odd");
    for zone in [far, near] {
        leader.ready().await?;
        let id = leader.migrate(&zone.name).await?;
        leader.until("it has moved", |view| view.primary == zone.name && view.phase == "shadowing").await?;
        let run = leader.migration(&id).await?;
        ensure!(run.state == "retired" && run.verified == Some(true), "{run:#?}");
    }
    let outcome = load.stop().await;
    ensure!(outcome.totals.failed == 0, "{:#?}", outcome.failures);
    check_writes(near, &outcome).await?;
    check_equal(&mut leader).await
}

/// Whoever's transaction stays open is named, and nobody is held for a fence that would not come; who ends in time is waited for.
#[tokio::test(flavor = "multi_thread")]
async fn nobody_is_held_for_what_stays_in_the_fences_way() -> Result<()> {
    let mut options = options(false)?;
    options.postgres_front = true;
    // No hold waits longer than `max_hold`, which is 2 s.
    options.policy = options.policy.replace("retry_after: 5s", "retry_after: 10m");
    let playground = Playground::start(&options).await?;
    let [near, far] = &playground.zones;
    let mut leader = Leader::start(&playground, &[])?;
    leader.ready().await?;
    let load = load(&playground, 60.0, "way");
    let old = |client: tokio_postgres::Client| async move {
        let age = async || {
            let sql = "SELECT clock_timestamp() - now() > interval '2.5 s'";
            Ok(client.query_one(sql, &[]).await?.get(0))
        };
        until("the transaction is old", age).await?;
        Ok::<_, anyhow::Error>(client)
    };

    // As VACUUM and CREATE INDEX CONCURRENTLY have it.
    let holder = replicator::postgres::connect(&near.dsn(SUPERUSER), "maintenance").await?;
    holder.batch_execute("BEGIN; LOCK TABLE orders IN SHARE UPDATE EXCLUSIVE MODE").await?;
    let holder = old(holder).await?;
    // A client of the front that has only read.
    let front = playground.postgres_front.context("a front")?;
    let dsn = format!(
        "host={} port={} user={SERVICE_ROLE} dbname={DATABASE} application_name=report",
        front.ip(),
        front.port()
    );
    let (reader, connection) = tokio_postgres::connect(&dsn, tokio_postgres::NoTls).await?;
    tokio::spawn(connection);
    reader.batch_execute("BEGIN; SELECT count(*) FROM orders").await?;
    let reader = old(reader).await?;

    let id = leader.migrate(&far.name).await?;
    leader.until("it is undone", |view| view.phase == "shadowing" && view.migration.is_none()).await?;
    let run = leader.migration(&id).await?;
    let reason = run.reason.clone().unwrap_or_default();
    ensure!(run.state == "aborted" && run.held_ms.is_none(), "{run:#?}");
    ensure!(
        reason.contains("nobody was held") && reason.contains("has table public.orders locked for"),
        "{reason}"
    );
    ensure!(reason.contains("application 'report') has a transaction open for"), "{reason}");

    // By itself it would not be tried again at once.
    let pauses = |view: &ResourceView| {
        let guards = view.decision.as_ref().map(|decision| decision.guards.as_slice()).unwrap_or_default();
        guards
            .iter()
            .any(|guard| guard.name == "undone moves" && !guard.passed && guard.value.starts_with("1, "))
    };
    leader.until("the decision knows of it", pauses).await?;

    // One of them ends while it is waited for.
    reader.batch_execute("COMMIT").await?;
    leader.ready().await?;
    leader.migrate(&far.name).await?;
    leader.until("it waits", |view| view.phase == "warm").await?;
    holder.batch_execute("COMMIT").await?;
    leader.until("it has moved", |view| view.primary == far.name && view.phase == "shadowing").await?;
    let outcome = load.stop().await;
    ensure!(outcome.totals.failed == 0, "{:#?}", outcome.failures);
    check_writes(far, &outcome).await
}

/// A session that the server cannot end keeps clients waiting no longer than the policy lets them be held, whatever was left of that
/// when its end was awaited.
#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_does_not_end_does_not_make_the_hold_longer() -> Result<()> {
    const MOST: Duration = Duration::from_secs(3);
    let mut options = options(false)?;
    options.policy = options.policy.replace("max_hold: 2s", "max_hold: 3s");
    let playground = Playground::start(&options).await?;
    let [near, far] = &playground.zones;
    let mut leader = Leader::start(&playground, &[])?;
    leader.ready().await?;
    let stuck = replicator::postgres::connect(&near.dsn(SERVICE_ROLE), "stuck").await?;
    let pid: i32 = stuck.query_one("SELECT pg_backend_pid()", &[]).await?.get(0);
    let pid = Pid::from_raw(pid).context("a process")?;
    // Half of the hold is spent with a request that is in flight.
    let body = json!({"key": "slow", "customer": 1, "amount": "1.00"}).to_string();
    let mut slow = TcpStream::connect(playground.front).await?;
    let head = format!(
        "POST /orders HTTP/1.1\r\nhost: orders.example\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    slow.write_all(head.as_bytes()).await?;
    leader
        .until("it is in flight", |view| view.gate.as_ref().is_some_and(|gate| gate.in_flight == 1))
        .await?;
    kill_process(pid, Signal::STOP)?;
    let id = leader.migrate(&far.name).await?;
    leader.until("it holds", |view| view.phase == "held").await?;
    tokio::time::sleep(MOST / 2).await;
    slow.write_all(body.as_bytes()).await?;
    leader.until("it is undone", |view| view.phase == "shadowing" && view.migration.is_none()).await?;
    kill_process(pid, Signal::CONT)?;
    let run = leader.migration(&id).await?;
    ensure!(run.state == "aborted" && run.fence_lsn.is_some(), "{run:#?}");
    let held = Duration::from_millis(run.held_ms.context("nobody was held")?);
    ensure!(held < MOST + Duration::from_millis(500), "held for {held:?}");
    leader.ready().await?;
    leader.migrate(&far.name).await?;
    leader.until("it has moved", |view| view.primary == far.name && view.phase == "shadowing").await?;
    Ok(())
}
