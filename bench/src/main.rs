//! Godwit's benchmarks. `godwit-bench front`: what the front costs over a bare pingora proxy.

mod front;

use std::net::SocketAddr;

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
}

fn main() -> anyhow::Result<()> {
    match Arguments::parse().command {
        Command::Front(plan) => front::run(&plan),
        Command::Proxy { kind, listen, upstream } => front::proxy(kind, listen, upstream),
    }
}
