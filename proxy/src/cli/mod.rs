//! The command line.

pub mod check;

use std::net::SocketAddr;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::demo::orders;

#[derive(Parser)]
#[command(name = "godwit", version, about)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// The playground's order service
    DemoOrders {
        /// Address to listen on
        #[arg(long)]
        listen: SocketAddr,
        /// PostgreSQL connection string
        #[arg(long)]
        dsn: tokio_postgres::Config,
        /// Most connections to the database
        #[arg(long, default_value_t = 8)]
        connections: usize,
    },
}

/// Runs the program with the process's arguments.
pub fn main() -> ExitCode {
    let Command::DemoOrders { listen, dsn, connections } = Arguments::parse().command;
    tracing_subscriber::fmt().with_writer(std::io::stderr).with_ansi(false).init();
    let ran = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .and_then(|runtime| runtime.block_on(orders::run(orders::Options { listen, dsn, connections })));
    match ran {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(%error, %listen, "order service failed");
            ExitCode::FAILURE
        }
    }
}
