//! Godwit's HTTP front beside nginx, haproxy and a bare pingora proxy: requests a second, latency, CPU and memory.
//!
//! Each has one worker, the same upstream (an nginx of our own that answers from memory) and the same load, in turns that change
//! every round, so that whatever else the machine does falls on all alike. What a request costs is the CPU time that the kernel
//! charged the proxy's processes, divided by the requests that were answered; requests a second say as much of the load
//! generator and the upstream, which share the machine.

mod idle;
mod load;
pub(crate) mod peers;

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::Args;

use load::Outcome;
use peers::{Peer, Upstream};

use crate::front::median;

/// How much of what.
#[derive(Args)]
pub(crate) struct Plan {
    /// Seconds of load for each cell of the table.
    #[arg(long, default_value_t = 5)]
    seconds: u64,
    /// Rounds; one more, first, warms up and does not count.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Connections.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 32, 256])]
    connections: Vec<usize>,
    /// What the clients speak.
    #[arg(long, value_delimiter = ',', value_enum, default_values_t = [Speaks::Http1, Speaks::Http2, Speaks::Tls])]
    speaks: Vec<Speaks>,
    /// Only these proxies, by name, separated by commas.
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Instead of load: what so many idle connections cost; over TLS with `--speaks tls`.
    #[arg(long, value_name = "CONNECTIONS")]
    idle: Option<usize>,
    /// With `--idle`: no request is made on them.
    #[arg(long, requires = "idle")]
    silent: bool,
}

/// What the clients speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub(crate) enum Speaks {
    /// HTTP/1.1 in the clear (wrk).
    Http1,
    /// HTTP/2 over TLS, ten requests at a time on each connection (h2load).
    Http2,
    /// HTTP/1.1 over TLS (wrk).
    Tls,
}

impl Speaks {
    fn name(self) -> &'static str {
        match self {
            Self::Http1 => "http/1.1",
            Self::Http2 => "h2 (tls)",
            Self::Tls => "http/1.1 (tls)",
        }
    }
}

/// One cell: what is spoken, connections, which proxy.
type Cell = (Speaks, usize, &'static str);

/// Runs all of it and prints a table.
pub(crate) fn run(plan: &Plan) -> Result<()> {
    if cfg!(debug_assertions) {
        println!("built without optimisation: the figures of godwit and pingora say little; use --release");
    }
    if let Some(connections) = plan.idle {
        idle::allow(connections)?;
    }
    let folder = tempfile::tempdir()?;
    godwit::pki::make(folder.path(), &["bench.example"])?;
    let upstream = Upstream::start(folder.path())?;
    let peers = peers::start(folder.path(), upstream.address, &plan.only)?;
    ensure!(!peers.is_empty(), "no proxy is left to measure");
    if let Some(connections) = plan.idle {
        let tls = plan.speaks == [Speaks::Tls];
        return idle::run(&peers, connections, &idle::Clients::new(folder.path(), tls, plan.silent)?);
    }
    let mut results: BTreeMap<Cell, Vec<Outcome>> = BTreeMap::new();
    for round in 0..=plan.rounds {
        for speaks in &plan.speaks {
            for connections in &plan.connections {
                for turn in 0..peers.len() {
                    let peer = &peers[(round + turn) % peers.len()];
                    let outcome = measure(peer, *speaks, *connections, Duration::from_secs(plan.seconds))
                        .with_context(|| format!("{} with {connections} of {}", peer.name, speaks.name()))?;
                    if round > 0 {
                        results.entry((*speaks, *connections, peer.name)).or_default().push(outcome);
                    }
                }
            }
        }
    }
    print(&results);
    Ok(())
}

fn measure(peer: &Peer, speaks: Speaks, connections: usize, span: Duration) -> Result<Outcome> {
    let before = peer.cpu()?;
    let mut outcome = load::run(peer, speaks, connections, span)?;
    let spent = peer.cpu()?.saturating_sub(before);
    outcome.cpu_us = spent.as_secs_f64() * 1e6 / outcome.answered.max(1) as f64;
    outcome.memory_mib = peer.memory_mib()?;
    Ok(outcome)
}

fn print(results: &BTreeMap<Cell, Vec<Outcome>>) {
    println!(
        "medians of the rounds; CPU of the proxy's processes per answered request; ratio to bare pingora and to nginx: medians of each round's"
    );
    println!(
        "| speaks | connections | proxy | requests/s | p50 ms | p99 ms | CPU us | ÷ pingora | ÷ nginx | RSS MiB | failed |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|---|");
    for ((speaks, connections, name), outcomes) in results {
        let of = |field: fn(&Outcome) -> f64| median(&mut outcomes.iter().map(field).collect::<Vec<_>>());
        let against = |other: &'static str| {
            let Some(others) = results.get(&(*speaks, *connections, other)) else { return "-".to_owned() };
            let mut ratios: Vec<_> =
                outcomes.iter().zip(others).map(|(own, other)| own.cpu_us / other.cpu_us).collect();
            format!("{:.3}", median(&mut ratios))
        };
        println!(
            "| {} | {connections} | {name} | {:.0} | {:.3} | {:.3} | {:.2} | {} | {} | {:.0} | {} |",
            speaks.name(),
            of(|outcome| outcome.per_second),
            of(|outcome| outcome.p50_ms),
            of(|outcome| outcome.p99_ms),
            of(|outcome| outcome.cpu_us),
            against("pingora"),
            against("nginx"),
            of(|outcome| outcome.memory_mib),
            outcomes.iter().map(|outcome| outcome.failed).sum::<u64>(),
        );
    }
}
