//! Real nodes: clients of the database stay connected while the service is moved to and fro.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use godwit::controller::view::{MigrationView, ResourceView};
use godwit::demo::zone::{DATABASE, OWNER_ROLE, Options, Playground, SERVICE_ROLE, SUPERUSER};
use godwit_tests::waiting::until;
use tokio_postgres::Config;

use super::Session;
use super::bench::{self, Bench};
use super::rounds::{self, Rounds};
use crate::leader::{Leader, connect, load, options};

/// Of each of two pgbench.
const CLIENTS: usize = 8;
const SCALE: usize = 4;
const CUTOVERS: usize = 5;
/// Transactions a second of each: more would only keep a small machine from its other tests.
const PACE: u32 = 40;
const TABLE: &str = "played";

/// Two zones with a PostgreSQL front, and these tables besides the service's.
pub(super) async fn playground(wan: Duration, tables: &str) -> Result<(Playground, SocketAddr)> {
    let playground = Playground::start(&Options { wan, postgres_front: true, ..options(false)? }).await?;
    let front = playground.postgres_front.context("a front")?;
    let owner = connect(&playground.zones[0]).await?;
    owner.batch_execute(&format!("SET ROLE {OWNER_ROLE}; {tables}")).await?;
    Ok((playground, front))
}

/// Moves the service so many times, to and fro, each time after `works` became true; all are compared where they are.
pub(super) async fn moves<F>(
    leader: &mut Leader<'_>,
    count: usize,
    works: impl Fn() -> F,
) -> Result<Vec<MigrationView>>
where
    F: Fn() -> bool,
{
    let mut moves = Vec::with_capacity(count);
    for round in 0..count {
        let view = leader.ready().await?;
        let works = works();
        leader.until("clients work", |_| works()).await?;
        let id = leader.migrate(&view.shadow).await?;
        leader
            .until(&format!("cutover {round}"), |now| now.primary == view.shadow && now.phase == "shadowing")
            .await?;
        let run = leader.migration(&id).await?;
        ensure!(run.state == "retired" && run.verified == Some(true), "{run:#?}");
        moves.push(run);
    }
    Ok(moves)
}

/// Its clients share so many connections.
pub(super) fn share(playground: &Playground, size: usize) -> Result<()> {
    let config = std::fs::read_to_string(&playground.config)?;
    let shared = config.replace("\", auth: trust", &format!("\", auth: trust, pool: {{size: {size}}}"));
    ensure!(shared != config, "no place for a pool:\n{config}");
    Ok(std::fs::write(&playground.config, shared)?)
}

#[tokio::test(flavor = "multi_thread")]
async fn pgbench_and_tokio_postgres_do_not_notice_cutovers() -> Result<()> {
    do_not_notice_cutovers(CUTOVERS, None).await
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_that_share_connections_do_not_notice_cutovers() -> Result<()> {
    do_not_notice_cutovers(2, Some(6)).await
}

async fn do_not_notice_cutovers(cutovers: usize, shared: Option<usize>) -> Result<()> {
    let (playground, front) = playground(Duration::from_millis(2), &rounds::table(TABLE)).await?;
    if let Some(size) = shared {
        share(&playground, size)?;
    }
    bench::make(&playground, SCALE).await?;
    let mut leader = Leader::start(&playground, &[])?;
    leader.ready().await?;
    let load = load(&playground, 50.0, "beside");
    // Half of it with prepared statements.
    let benches = ["simple", "prepared"]
        .map(|protocol| Bench::start(&playground, front, protocol, CLIENTS, Some(PACE)));
    let mut config = Config::new();
    config.host(front.ip().to_string()).port(front.port()).user(SERVICE_ROLE).dbname(DATABASE);
    let playing = Rounds::start(&config, TABLE).await?;
    let (played, ended) = (AtomicU64::new(0), AtomicBool::new(false));
    let moving = async {
        let more = || {
            let enough = played.load(SeqCst) + 10;
            let played = &played;
            move || played.load(SeqCst) > enough
        };
        let moved = moves(&mut leader, cutovers, more).await;
        ended.store(true, SeqCst);
        moved
    };
    let (playing, moved) = tokio::join!(playing.play(&played, &ended), moving);
    playing?;
    moved?;
    let mut took = Vec::new();
    for bench in benches {
        took.extend(bench?.finish()?);
    }
    let outcome = load.stop().await;
    ensure!(outcome.totals.failed == 0, "{:#?}", outcome.failures);
    let view = leader.ready().await?;
    bench::balances(&connect(leader.zone(&view.primary)).await?, took.len()).await?;
    // They keep their pace, however long a cutover takes.
    ensure!(took.len() > 200 * cutovers, "only {} transactions", took.len());
    Ok(())
}

/// The value at a share of all.
fn quantile(values: &mut [u64], share: f64) -> u64 {
    values.sort_unstable();
    let at = (values.len().saturating_sub(1) as f64 * share).round() as usize;
    values.get(at).copied().unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "minutes: make test-postgres-front"]
async fn pgbench_over_thirty_cutovers() -> Result<()> {
    let (playground, front) = playground(Duration::from_millis(20), "").await?;
    bench::make(&playground, SCALE).await?;
    let mut leader = Leader::start(&playground, &[])?;
    leader.ready().await?;
    let benches =
        ["simple", "prepared"].map(|protocol| Bench::start(&playground, front, protocol, CLIENTS, None));
    let count = std::env::var("CUTOVERS").ok().and_then(|count| count.parse().ok()).unwrap_or(30);
    let moved = moves(&mut leader, count, || || true).await?;
    let mut took = Vec::new();
    for bench in benches {
        took.extend(bench?.finish()?);
    }
    let view = leader.ready().await?;
    bench::balances(&connect(leader.zone(&view.primary)).await?, took.len()).await?;
    ensure!(took.len() > 1_000, "only {} transactions", took.len());
    let mut held: Vec<u64> = moved.iter().filter_map(|run| run.held_ms).collect();
    ensure!(held.len() == count, "{held:?}");
    println!(
        "pgbench TPC-B, {} clients, {count} cutovers, 20 ms each way: {} transactions, 0 failed, balances agree",
        2 * CLIENTS,
        took.len()
    );
    // The part of it in which transactions that were open went on.
    let drain = |run: &MigrationView| {
        let step = run.steps.iter().find(|step| step.phase == "held")?;
        Some(step.ended_ms?.saturating_sub(step.started_ms))
    };
    let mut drained: Vec<u64> = moved.iter().filter_map(drain).collect();
    // A client at the near zone pays the way for each statement of a transaction at the far one.
    let far = &playground.zones[1].name;
    let held_from = |at_far: bool| {
        let moves = moved.iter().filter(move |run| (run.from == *far) == at_far);
        moves.filter_map(|run| run.held_ms).collect::<Vec<_>>()
    };
    let [mut from_near, mut from_far] = [false, true].map(held_from);
    let shown = [
        ("held", &mut held, "ms"),
        ("held, out of the near zone", &mut from_near, "ms"),
        ("held, out of the far zone", &mut from_far, "ms"),
        ("of it, for open transactions", &mut drained, "ms"),
        ("transactions", &mut took, "us"),
    ];
    for (what, values, unit) in shown {
        let [p50, p99, most] = [0.5, 0.99, 1.0].map(|share| quantile(values, share));
        println!("  {what}: p50 {p50} {unit}, p99 {p99} {unit}, longest {most} {unit}");
    }
    Ok(())
}

/// What a role logs in with here is tried over there first: nobody finds the door shut after a move.
#[tokio::test(flavor = "multi_thread")]
async fn who_could_not_log_in_over_there_is_not_moved() -> Result<()> {
    let (playground, front) = playground(Duration::ZERO, "SELECT 1").await?;
    let mut leader = Leader::start(&playground, &[])?;
    leader.ready().await?;
    let mut config = Config::new();
    config.host(front.ip().to_string()).port(front.port()).user(SERVICE_ROLE).dbname(DATABASE);
    let (client, connection) = config.connect(tokio_postgres::NoTls).await?;
    tokio::spawn(connection);
    client.batch_execute("SET application_name = 'kept'").await?;
    let [near, far] = &playground.zones;
    let administrator = replicator::postgres::connect(&far.dsn(SUPERUSER), "godwit-test").await?;
    administrator.batch_execute(&format!("ALTER ROLE {SERVICE_ROLE} NOLOGIN")).await?;
    let id = leader.migrate(&far.name).await?;
    leader.until("it is given up", |view| view.migration.is_none() && view.phase == "shadowing").await?;
    let run = leader.migration(&id).await?;
    let reason = run.reason.clone().unwrap_or_default();
    let expected = format!("role {SERVICE_ROLE} cannot log in at {} as it does at {}", far.name, near.name);
    ensure!(run.state == "aborted" && reason.contains(&expected), "{run:#?}");
    ensure!(reason.contains("is not permitted to log in"), "{reason}");
    let kept = client.query_one("SHOW application_name", &[]).await?;
    ensure!(kept.get::<_, &str>(0) == "kept");

    administrator.batch_execute(&format!("ALTER ROLE {SERVICE_ROLE} LOGIN")).await?;
    // There and back, where a fence has taken its right to connect meanwhile.
    for zone in [far, near] {
        // What was found while it could not log in may be told of a moment later.
        let moved = async || {
            leader.ready().await?;
            leader.migrate(&zone.name).await?;
            let ended = |view: &ResourceView| view.migration.is_none() && view.phase == "shadowing";
            Ok(leader.until("it ends", ended).await?.primary == zone.name)
        };
        until("it has moved", moved).await?;
    }
    let kept = client.query_one("SHOW application_name", &[]).await?;
    ensure!(kept.get::<_, &str>(0) == "kept");
    // A role that is gone here as well keeps nobody.
    let here = replicator::postgres::connect(&near.dsn(SUPERUSER), "godwit-test").await?;
    for client in [&here, &administrator] {
        client.batch_execute("CREATE ROLE guest LOGIN IN ROLE orders_app").await?;
    }
    leader.ready().await?;
    config.user("guest");
    let (guest, connection) = config.connect(tokio_postgres::NoTls).await?;
    tokio::spawn(connection);
    guest.batch_execute("SELECT 1").await?;
    drop(guest);
    for client in [&here, &administrator] {
        client.batch_execute("ALTER ROLE guest NOLOGIN").await?;
    }
    leader.ready().await?;
    leader.migrate(&far.name).await?;
    leader.until("it has moved", |view| view.primary == far.name && view.phase == "shadowing").await?;
    Ok(())
}

/// A client whose open transaction waits for another connection of its own cannot come to its end under a hold. The move is undone and says
/// who it was; the client goes on.
#[tokio::test(flavor = "multi_thread")]
async fn who_waits_for_a_connection_that_is_held_is_named() -> Result<()> {
    let (playground, front) = playground(Duration::from_millis(2), &rounds::table(TABLE)).await?;
    let mut leader = Leader::start(&playground, &[])?;
    let view = leader.ready().await?;
    let config: Config = format!(
        "host={} port={} user={SERVICE_ROLE} dbname={DATABASE} application_name=entangled",
        front.ip(),
        front.port()
    )
    .parse()?;
    let (one, other) = (Session::start(&config).await.client, Session::start(&config).await.client);
    let (ended, rounds) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let (told, played) = (Arc::clone(&ended), Arc::clone(&rounds));
    let client = tokio::spawn(async move {
        while !told.load(SeqCst) {
            one.batch_execute(&format!(
                "BEGIN; INSERT INTO {TABLE} SELECT coalesce(max(id), 0) + 1 FROM {TABLE}"
            ))
            .await?;
            for _ in 0..20 {
                other.batch_execute("SELECT pg_sleep(0.002)").await?;
            }
            one.batch_execute("COMMIT").await?;
            played.fetch_add(1, SeqCst);
        }
        anyhow::Ok(())
    });
    let mut primary = view.primary;
    let id = loop {
        let to = leader.ready().await?.shadow;
        let id = leader.migrate(&to).await?;
        let over = |now: &ResourceView| now.migration.is_none() && now.phase == "shadowing";
        let stays = leader.until("the move is over", over).await?.primary;
        if stays == primary {
            break id;
        }
        // It was held between two of its transactions.
        primary = stays;
    };
    let run = leader.migration(&id).await?;
    let reason = run.reason.clone().unwrap_or_default();
    let named = format!("application 'entangled') has table public.{TABLE} locked");
    ensure!(reason.starts_with("phase held was not over") && reason.contains(&named), "{run:#?}");
    let so_far = rounds.load(SeqCst);
    leader.until("the client goes on", |_| rounds.load(SeqCst) > so_far).await?;
    ended.store(true, SeqCst);
    client.await?
}
