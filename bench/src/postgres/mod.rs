//! Godwit's PostgreSQL front beside `PgBouncer` and the server itself: transactions a second, latency, CPU, memory of idle sessions.
//!
//! Both proxies have one thread and give each client a connection of its own to the same server (session pooling), or with `--pool`
//! one of a few for each transaction (transaction pooling). They get the same load,
//! pgbench's single-row reads, in turns that change every round, so that whatever else the machine does falls on all alike. What a
//! transaction costs is the CPU time that the kernel charged the proxy's process, divided by the transactions; what it adds to the
//! 99th percentile is the difference from the same round's direct one.

mod changes;
mod load;
pub(crate) mod peers;

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Args;

use load::Outcome;
use peers::Peer;

use crate::front::median;
use crate::replication::Server;

pub(crate) const DATABASE: &str = "bench";
/// Nobody waits for the disk in single-row reads.
const SETTINGS: &str = "fsync = off\nmax_connections = 1000\nmax_replication_slots = 50\n";

/// How much of what.
#[derive(Args)]
pub(crate) struct Plan {
    /// Seconds of load for each cell of the table.
    #[arg(long, default_value_t = 5)]
    seconds: u64,
    /// Rounds; one more, first, warms up and does not count.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Clients.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 16, 64])]
    clients: Vec<usize>,
    /// How pgbench asks.
    #[arg(long, value_delimiter = ',', value_enum, default_values_t = [Protocol::Simple, Protocol::Prepared])]
    protocols: Vec<Protocol>,
    /// 100,000 rows each.
    #[arg(long, default_value_t = 10)]
    scale: usize,
    /// Clients of both proxies share so many connections (transaction pooling); left out: each has its own. With prepared statements
    /// PgBouncer does that from 1.21 on: an older one is left out there.
    #[arg(long)]
    pool: Option<usize>,
    /// Idle sessions whose memory is measured; 0: it is not.
    #[arg(long, default_value_t = 200)]
    idle: usize,
    /// Changes that a reader receives through the front and from the server itself; 0: none. Not with --pool.
    #[arg(long, default_value_t = 500_000)]
    changes: usize,
}

/// How pgbench asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub(crate) enum Protocol {
    /// One Query message a transaction.
    Simple,
    /// A prepared statement.
    Prepared,
}

impl Protocol {
    fn name(self) -> &'static str {
        match self {
            Self::Simple => "simple",
            Self::Prepared => "prepared",
        }
    }
}

/// One cell: protocol, clients, which proxy.
type Cell = (Protocol, usize, &'static str);

/// Runs all of it and prints tables.
pub(crate) fn run(plan: &Plan) -> Result<()> {
    if cfg!(debug_assertions) {
        println!("built without optimisation: the figures of godwit say little; use --release");
    }
    let folder = tempfile::tempdir()?;
    let server = Server::start_with(15, SETTINGS)?;
    tokio::runtime::Runtime::new()?.block_on(async {
        let create = format!("CREATE DATABASE {DATABASE}");
        server.connect("postgres").await?.batch_execute(&create).await.context("create the database")
    })?;
    server.pgbench(DATABASE, &["-i", "-q", "-s", &plan.scale.to_string()])?;
    let peers = peers::start(folder.path(), &server, plan.pool)?;
    let mut results: BTreeMap<Cell, Vec<Outcome>> = BTreeMap::new();
    for round in 0..=plan.rounds {
        for protocol in &plan.protocols {
            for clients in &plan.clients {
                for turn in 0..peers.len() {
                    let peer = &peers[(round + turn) % peers.len()];
                    if plan.pool.is_some() && *protocol == Protocol::Prepared && !peer.prepares {
                        continue;
                    }
                    let outcome =
                        measure(&server, peer, *protocol, *clients, Duration::from_secs(plan.seconds))
                            .with_context(|| format!("{} with {clients} clients", peer.name))?;
                    if round > 0 {
                        results.entry((*protocol, *clients, peer.name)).or_default().push(outcome);
                    }
                }
            }
        }
    }
    print(&results);
    if plan.idle > 0 {
        tokio::runtime::Runtime::new()?.block_on(idle(&peers, plan.idle))?;
    }
    if plan.changes > 0 && plan.pool.is_none() {
        changes::run(&server, &peers, plan.changes, plan.rounds)?;
    }
    Ok(())
}

fn measure(
    server: &Server,
    peer: &Peer,
    protocol: Protocol,
    clients: usize,
    span: Duration,
) -> Result<Outcome> {
    let before = peer.cpu()?;
    let mut outcome = load::run(server, peer.address, protocol, clients, span)?;
    let spent = peer.cpu()?.saturating_sub(before);
    outcome.cpu_us = spent.as_secs_f64() * 1e6 / outcome.done.max(1) as f64;
    Ok(outcome)
}

fn print(results: &BTreeMap<Cell, Vec<Outcome>>) {
    println!(
        "medians of the rounds; added p99 and the ratio of CPU to PgBouncer's: medians of each round's difference and ratio"
    );
    println!(
        "| protocol | clients | by | transactions/s | p50 us | p99 us | added p99 us | CPU us | ÷ pgbouncer | failed |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|");
    for ((protocol, clients, name), outcomes) in results {
        let of = |field: fn(&Outcome) -> f64| median(&mut outcomes.iter().map(field).collect::<Vec<_>>());
        let against = |other: &'static str, compare: fn(&Outcome, &Outcome) -> f64| {
            let others = results.get(&(*protocol, *clients, other)).map_or(&[][..], Vec::as_slice);
            median(
                &mut outcomes.iter().zip(others).map(|(own, other)| compare(own, other)).collect::<Vec<_>>(),
            )
        };
        let proxy = *name != "direct";
        let or_none = |text: String| if proxy { text } else { "-".to_owned() };
        println!(
            "| {} | {clients} | {name} | {:.0} | {:.0} | {:.0} | {} | {} | {} | {} |",
            protocol.name(),
            of(|outcome| outcome.per_second),
            of(|outcome| outcome.p50_us),
            of(|outcome| outcome.p99_us),
            or_none(format!("{:.0}", against("direct", |own, direct| own.p99_us - direct.p99_us))),
            or_none(format!("{:.2}", of(|outcome| outcome.cpu_us))),
            if results.contains_key(&(*protocol, *clients, "pgbouncer")) {
                or_none(format!("{:.3}", against("pgbouncer", |own, other| own.cpu_us / other.cpu_us)))
            } else {
                "-".to_owned()
            },
            outcomes.iter().map(|outcome| outcome.failed).sum::<u64>(),
        );
    }
}

/// What a session costs that has asked something once: of so many more, so that what the first ones cost does not count.
async fn idle(peers: &[Peer], count: usize) -> Result<()> {
    println!("| by | idle sessions | resident KiB of each, from {count} to {} |", 2 * count);
    println!("|---|---|---|");
    for peer in peers.iter().filter(|peer| peer.is_proxy()) {
        let mut clients = Vec::new();
        let mut resident = Vec::new();
        for _ in 0..2 {
            for _ in 0..count {
                let mut config = tokio_postgres::Config::new();
                config.host(peer.address.ip().to_string()).port(peer.address.port());
                let (client, connection) =
                    config.user("postgres").dbname(DATABASE).connect(tokio_postgres::NoTls).await?;
                tokio::spawn(connection);
                client.query_one("SELECT count(*) FROM pgbench_branches", &[]).await?;
                clients.push(client);
            }
            resident.push(peer.memory_mib()? * 1024.0);
        }
        println!("| {} | {} | {:.1} |", peer.name, clients.len(), (resident[1] - resident[0]) / count as f64);
    }
    Ok(())
}
