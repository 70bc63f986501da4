//! What waiting for the shadow costs, and what a lane of its own is worth.
//!
//! `sync`: clients that commit one row after the other, each commit durable on both sides before it is acknowledged; Godwit's
//! stream against a native subscription (`synchronous_commit = local`, so that it reports what is flushed) on the same
//! clusters over the same path, alternating. `burst`: commits of a critical table while other clients commit a bulk of
//! transactions that wait for nobody; all in one lane (`mode: sync`) against two (`mode: hybrid`).

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use godwit::cli::client::Client as Api;
use godwit::clock;
use godwit::controller::view::ResourceView;
use godwit::demo::node::Node;
use godwit::demo::relay::Relay;
use godwit::demo::zone::{DATABASE, Options as ZoneOptions, POLICY, Playground, RESOURCE, SUPERUSER, Zone};
use godwit::drivers::process::cluster::installed;
use tokio_postgres::{Client, NoTls};

/// How long one step may take before the run gives up.
const PATIENCE: Duration = Duration::from_secs(120);
/// Between two critical commits.
const CRITICAL_PAUSE: Duration = Duration::from_millis(10);
/// Clients of the bulk.
const BULK_CLIENTS: u32 = 4;

/// How the modes are measured.
#[derive(Args, Clone, Debug)]
pub(crate) struct Options {
    /// Clients that commit.
    #[arg(long, default_value_t = 8)]
    clients: u32,
    /// Seconds of each round.
    #[arg(long, default_value_t = 5)]
    seconds: u64,
    /// Rounds of each contender.
    #[arg(long, default_value_t = 3)]
    rounds: u32,
    /// One-way delay between the zones, milliseconds.
    #[arg(long, default_value_t = 1)]
    wan_ms: u64,
    /// Transactions of the bulk.
    #[arg(long, default_value_t = 12_000)]
    bulk: u64,
    /// Rows of each.
    #[arg(long, default_value_t = 10)]
    bulk_rows: u32,
    /// The program under test; default: `godwit` beside this one.
    #[arg(long)]
    program: Option<PathBuf>,
}

impl Default for Options {
    fn default() -> Self {
        Self { clients: 8, seconds: 5, rounds: 3, wan_ms: 1, bulk: 12_000, bulk_rows: 10, program: None }
    }
}

pub(crate) fn run(options: &Options) -> Result<()> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(async {
        sync(options).await?;
        for mode in ["sync", "hybrid"] {
            burst(options, mode).await?;
        }
        Ok(())
    })
}

async fn playground(options: &Options, mode: &str) -> Result<(Playground, PathBuf)> {
    let program = crate::program_under_test(options.program.as_deref())?;
    // One version: a native subscription and Godwit meet the same servers.
    let bin = installed(15).context("PostgreSQL 15 is not on this machine: run make setup")?;
    let mut zones = ZoneOptions::new(program.clone(), [bin.clone(), bin]);
    zones.settings = [String::new(), String::new()];
    zones.agent = true;
    zones.wan = Duration::from_millis(options.wan_ms);
    let critical = if mode == "hybrid" { ", critical: [public.payments]" } else { "" };
    let policy = POLICY
        .replace("mode: auto", "mode: observe")
        .replace("{mode: async}", &format!("{{mode: {mode}{critical}, fallback: {{after: 10m}}}}"));
    ensure!(policy.contains("after: 10m"), "the playground's policy has no replication");
    zones.policy = policy;
    Ok((Playground::start(&zones).await?, program))
}

/// The nodes of a playground, replicating in this mode.
async fn nodes(playground: &Playground, program: &std::path::Path, mode: &str) -> Result<[Node; 2]> {
    let agent = playground.agent_config.as_ref().context("the agent's configuration")?;
    let mut nodes = [Node::start(program, &playground.config, &[])?, Node::start(program, agent, &[])?];
    let api = Api::new(&playground.admin.to_string());
    let deadline = clock::monotonic() + PATIENCE;
    loop {
        for node in &mut nodes {
            node.check()?;
        }
        let view = api.fetch::<ResourceView>(&format!("/api/v1/resources/{RESOURCE}")).await;
        if view.is_ok_and(|view| view.replication.mode.effective == mode) {
            return Ok(nodes);
        }
        ensure!(clock::monotonic() < deadline, "no {mode} replication:\n{}", nodes[0].tail(20));
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn connect(zone: &Zone, database: &str) -> Result<Client> {
    let mut dsn = zone.dsn(SUPERUSER);
    dsn.dbname(database).application_name("bench");
    let (client, connection) = dsn.connect(NoTls).await?;
    tokio::spawn(connection);
    Ok(client)
}

/// Commits of one row each, by several clients, until the time is over: how many, and each client's waits.
async fn commits(options: &Options, zone: &Zone, database: &str) -> Result<(f64, Vec<Duration>)> {
    let until = clock::monotonic() + Duration::from_secs(options.seconds);
    let began = clock::monotonic();
    let mut tasks = Vec::new();
    for _ in 0..options.clients {
        let client = connect(zone, database).await?;
        tasks.push(tokio::spawn(async move {
            let insert = client.prepare("INSERT INTO customers (name) VALUES ('bench')").await?;
            let mut waits = Vec::new();
            while clock::monotonic() < until {
                let asked = clock::monotonic();
                client.execute(&insert, &[]).await?;
                waits.push(asked.elapsed());
            }
            anyhow::Ok(waits)
        }));
    }
    let mut waits = Vec::new();
    for task in tasks {
        waits.extend(task.await??);
    }
    Ok((waits.len() as f64 / began.elapsed().as_secs_f64(), waits))
}

async fn sync(options: &Options) -> Result<()> {
    const NATIVE: &str = "native";
    let (playground, program) = playground(options, "sync").await?;
    let [near, far] = &playground.zones;
    println!(
        "sync: {} clients, one row a commit, durable on both sides; {} s a round, {} ms each way, PostgreSQL 15, fsync on",
        options.clients, options.seconds, options.wan_ms
    );
    // The native way back of each acknowledgement passes the same path.
    let listen = godwit::demo::zone::free_ports(1)?.pop().context("a port")?;
    let relay = Relay::tcp(([127, 0, 0, 1], listen).into(), near.database, far.path.clone()).await?;
    let table = "CREATE TABLE customers (id bigint GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY, name text NOT NULL, \
                 balance numeric(14, 2) NOT NULL DEFAULT 0, created_at timestamptz NOT NULL DEFAULT now())";
    for zone in [near, far] {
        connect(zone, DATABASE).await?.batch_execute(&format!("CREATE DATABASE {NATIVE}")).await?;
        connect(zone, NATIVE).await?.batch_execute(table).await?;
    }
    connect(near, NATIVE).await?.batch_execute("CREATE PUBLICATION p FOR TABLE customers").await?;
    let mut medians = Vec::new();
    let mut all: [Vec<f64>; 3] = Default::default();
    for _ in 0..options.rounds {
        let (alone, waits) = commits(options, near, DATABASE).await?;
        println!("  nobody waited for   {alone:>7.0} commits/s, {}", quantiles(waits));
        let (native, waits) = {
            subscribe(near, far, NATIVE, relay.listen().port()).await?;
            let measured = commits(options, near, NATIVE).await?;
            unsubscribe(near, far, NATIVE).await?;
            measured
        };
        println!("  native subscription {native:>7.0} commits/s, {}", quantiles(waits));
        let (godwit, waits) = {
            let _nodes = nodes(&playground, &program, "sync").await?;
            commits(options, near, DATABASE).await?
        };
        println!("  godwit, mode sync   {godwit:>7.0} commits/s, {}", quantiles(waits));
        for (of, value) in all.iter_mut().zip([alone, native, godwit]) {
            of.push(value);
        }
    }
    for values in &mut all {
        values.sort_by(f64::total_cmp);
        medians.push(values[values.len() / 2]);
    }
    println!(
        "  medians: alone {:.0}, native {:.0}, godwit {:.0} commits/s: {:.2} of native",
        medians[0],
        medians[1],
        medians[2],
        medians[2] / medians[1]
    );
    Ok(())
}

async fn subscribe(near: &Zone, far: &Zone, database: &str, port: u16) -> Result<()> {
    let password = near.cluster.superuser_password().context("the superuser's password")?;
    connect(far, database)
        .await?
        .batch_execute(&format!(
            "CREATE SUBSCRIPTION native_standby CONNECTION \
             'host=127.0.0.1 port={port} user={SUPERUSER} password={password} dbname={database}' \
             PUBLICATION p WITH (synchronous_commit = local, copy_data = false)"
        ))
        .await?;
    let primary = connect(near, database).await?;
    primary.batch_execute("ALTER SYSTEM SET synchronous_standby_names = 'native_standby'").await?;
    primary.batch_execute("SELECT pg_reload_conf()").await?;
    let deadline = clock::monotonic() + PATIENCE;
    let look = "SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'sync' AND state = 'streaming'";
    while primary.query_one(look, &[]).await?.get::<_, i64>(0) != 1 {
        ensure!(clock::monotonic() < deadline, "the native subscription does not become synchronous");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}

async fn unsubscribe(near: &Zone, far: &Zone, database: &str) -> Result<()> {
    let primary = connect(near, database).await?;
    primary.batch_execute("ALTER SYSTEM RESET synchronous_standby_names").await?;
    primary.batch_execute("SELECT pg_reload_conf()").await?;
    Ok(connect(far, database).await?.batch_execute("DROP SUBSCRIPTION native_standby").await?)
}

async fn burst(options: &Options, mode: &str) -> Result<()> {
    let (playground, program) = playground(options, mode).await?;
    let [near, _] = &playground.zones;
    let mut nodes = nodes(&playground, &program, mode).await?;
    let lanes = if mode == "hybrid" { "two lanes" } else { "one lane" };
    let (calm, _) = critical(near, None).await?;
    let left = Arc::new(AtomicU64::new(options.bulk));
    let over = Arc::new(AtomicBool::new(false));
    let began = clock::monotonic();
    let bulk: Vec<_> = (0..BULK_CLIENTS)
        .map(|_| {
            let left = left.clone();
            let rows = options.bulk_rows;
            let client = connect(near, DATABASE);
            async move {
                let client = client.await?;
                client.batch_execute("SET synchronous_commit = local").await?;
                let insert = client
                    .prepare("INSERT INTO customers (name) SELECT 'bulk' FROM generate_series(1, $1::int)")
                    .await?;
                let rows = i32::try_from(rows)?;
                while left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1)).is_ok() {
                    client.execute(&insert, &[&rows]).await?;
                }
                anyhow::Ok(())
            }
        })
        .collect();
    let commits = critical(near, Some(over.clone()));
    let bulk = async {
        let done = futures_util::future::try_join_all(bulk).await;
        over.store(true, Ordering::SeqCst);
        done.map(|_| began.elapsed())
    };
    let ((waits, longest), took) = tokio::try_join!(commits, bulk)?;
    for node in &mut nodes {
        node.check()?;
    }
    println!(
        "burst, {lanes} (mode {mode}): {} transactions of {} rows in {:.1} s by {BULK_CLIENTS} clients that wait for nobody",
        options.bulk,
        options.bulk_rows,
        took.as_secs_f64()
    );
    println!("  critical commits before:     {}", quantiles(calm));
    println!(
        "  critical commits meanwhile:  {} ({} of them, longest {longest:?})",
        quantiles(waits.clone()),
        waits.len()
    );
    Ok(())
}

/// Commits of the critical table by one client: a hundred of them, or until `over`, the last one after it.
async fn critical(zone: &Zone, over: Option<Arc<AtomicBool>>) -> Result<(Vec<Duration>, Duration)> {
    let client = connect(zone, DATABASE).await?;
    if client.query_one("SHOW synchronous_standby_names", &[]).await?.get::<_, &str>(0).is_empty() {
        bail!("nobody is waited for");
    }
    let insert = client.prepare("INSERT INTO payments (order_id, amount) VALUES (1, 1)").await?;
    let mut waits = Vec::new();
    loop {
        let last = over.as_ref().map_or(waits.len() == 100, |over| over.load(Ordering::SeqCst));
        let asked = clock::monotonic();
        client.execute(&insert, &[]).await?;
        waits.push(asked.elapsed());
        if last {
            let longest = waits.iter().max().copied().unwrap_or_default();
            return Ok((waits, longest));
        }
        tokio::time::sleep(CRITICAL_PAUSE).await;
    }
}

fn quantiles(mut waits: Vec<Duration>) -> String {
    waits.sort_unstable();
    let at = |q: f64| {
        let at = (waits.len().saturating_sub(1) as f64 * q).ceil() as usize;
        waits.get(at).copied().unwrap_or_default().as_secs_f64() * 1000.0
    };
    format!("p50 {:.1} ms, p99 {:.1} ms, max {:.1} ms", at(0.5), at(0.99), at(1.0))
}
