//! Godwit's benchmarks: `front`, what the front costs over a bare pingora proxy; `http`, the front beside nginx and haproxy; `postgres`, the
//! PostgreSQL front beside PgBouncer; `api`, a node with a thousand resources as an operator sees it; `cutover`, what clients see of a move;
//! `modes`, what waiting for the shadow costs; `catch-up`, a backlog against native logical replication; `copy`, the initial copy
//! against native's and pgcopydb's; `wan`, a backlog over a long and lossy way against the same on loopback; `lag`, from commit to
//! visible at a steady rate against native's.

mod api;
mod cutover;
mod front;
mod http;
mod modes;
mod postgres;
mod replication;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::ensure;
use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(about = "Godwit's benchmarks, side by side with peers")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// CPU per request: Godwit's front against a bare pingora proxy, alternating in one run.
    Front(front::Plan),
    /// The front beside nginx, haproxy and a bare pingora proxy: requests a second, latency, CPU, memory.
    Http(http::Plan),
    /// The PostgreSQL front beside `PgBouncer` and the server itself: transactions a second, latency, CPU, memory.
    Postgres(postgres::Plan),
    /// The API of a node with a thousand resources; the dashboard's first paint.
    Api(api::Plan),
    /// What clients see of twenty cutovers over a WAN.
    Cutover(cutover::Options),
    /// Commits that wait for the shadow, against native replication; critical commits during a bulk burst.
    Modes(modes::Options),
    /// Catching up with a backlog: Godwit against native logical replication, alternating in one run.
    CatchUp(replication::catch_up::Plan),
    /// The initial copy: Godwit against native logical replication and pgcopydb, alternating in one run.
    Copy(replication::copy::Plan),
    /// Catching up over 80 ms of round trip and 0.5 % loss, against the same on loopback.
    Wan(replication::wan::Plan),
    /// From commit to visible on the target at a steady rate, against native logical replication.
    Lag(replication::lag::Plan),
    /// All of them but `http`, `postgres` and those that replicate: `catch-up`, `copy`, `wan`, `lag`.
    All,
    /// One of the two proxies; started by `front`.
    #[command(hide = true)]
    Proxy {
        /// Which.
        kind: front::Kind,
        /// Where it listens.
        listen: SocketAddr,
        /// Where it sends requests.
        upstream: SocketAddr,
    },
    /// The PostgreSQL front; started by `postgres`.
    #[command(hide = true)]
    PostgresFront {
        /// Where it listens.
        listen: SocketAddr,
        /// The server.
        upstream: SocketAddr,
        /// Clients share so many connections.
        #[arg(long)]
        pool: Option<usize>,
    },
    /// One of the two proxies; started by `http`.
    #[command(hide = true)]
    HttpProxy {
        /// `godwit` or `pingora`.
        name: String,
        /// Where it listens in the clear.
        clear: SocketAddr,
        /// Where it listens with TLS.
        secure: SocketAddr,
        /// Where it sends requests.
        upstream: SocketAddr,
        /// Where the certificates are.
        folder: std::path::PathBuf,
    },
}

fn main() -> anyhow::Result<()> {
    match Arguments::parse().command {
        Command::Front(plan) => front::run(&plan),
        Command::Http(plan) => http::run(&plan),
        Command::Postgres(plan) => postgres::run(&plan),
        Command::PostgresFront { listen, upstream, pool } => postgres::peers::front(listen, upstream, pool),
        Command::HttpProxy { name, clear, secure, upstream, folder } => {
            front::http_proxy(name == "godwit", clear, secure, upstream, &folder)
        }
        Command::Api(plan) => api::run(&plan),
        Command::Cutover(options) => cutover::run(&options),
        Command::CatchUp(plan) => replication::catch_up::run(&plan),
        Command::Copy(plan) => replication::copy::run(&plan),
        Command::Wan(plan) => replication::wan::run(&plan),
        Command::Lag(plan) => replication::lag::run(&plan),
        Command::All => {
            front::run(&front::Plan::default())?;
            println!();
            cutover::run(&cutover::Options::default())?;
            println!();
            modes::run(&modes::Options::default())
        }
        Command::Modes(options) => modes::run(&options),
        Command::Proxy { kind, listen, upstream } => front::proxy(kind, listen, upstream),
    }
}

/// The program that is measured: as asked for, or `godwit` beside this one.
pub(crate) fn program_under_test(asked: Option<&Path>) -> anyhow::Result<PathBuf> {
    let program = match asked {
        Some(program) => program.to_owned(),
        None => std::env::current_exe()?.with_file_name("godwit"),
    };
    ensure!(
        program.exists(),
        "{} is missing: build it with cargo build --release -p godwit",
        program.display()
    );
    Ok(program)
}
