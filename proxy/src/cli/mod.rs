//! The command line. Exit codes: 0 ok, 1 error, 2 usage, 3 configuration invalid, 4 refused (by a guard, or by what is under way), 5 rolled back,
//! 6 the shadow differs from its primary.

#![warn(clippy::print_stdout, reason = "it panics where the reader has gone: out() does not")]

mod audit;
mod backtest;
pub mod check;
pub mod client;
mod config;
mod feeds;
mod grants;
mod history;
mod pki;
mod render;
mod reserve;
mod shell;
mod token;
mod verbs;
mod verify;

use std::io::{ErrorKind, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Parser, Subcommand};

use check::Format as Output;

use crate::admin::Problem;
use crate::controller::drift::SyncRequest;
use crate::demo::{driver, orders, run};

/// Moves a live service and its PostgreSQL between zones without stopping it.
#[derive(Debug, Parser)]
#[command(name = "godwit", version, about, max_term_width = 110)]
struct Arguments {
    /// How results are printed.
    #[arg(short, long, global = true, value_enum, default_value = "table")]
    output: Output,
    /// Address of a running godwit's admin listener; https://HOST:PORT where it has TLS.
    #[arg(
        long,
        global = true,
        env = "GODWIT_ADMIN",
        default_value = "127.0.0.1:9900",
        value_name = "HOST:PORT"
    )]
    admin: String,
    /// PEM file of the authority that signed the admin listener's certificate; default: the system's authorities.
    #[arg(long, global = true, env = "GODWIT_CA", value_name = "FILE")]
    ca: Option<PathBuf>,
    /// File with the token to show; or the token itself in the variable GODWIT_TOKEN.
    #[arg(long, global = true, env = "GODWIT_TOKEN_FILE", value_name = "FILE")]
    token_file: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
#[allow(clippy::large_enum_variant, reason = "there is one, at the start")]
enum Command {
    /// Run a node: fronts, controller, link, admin listener.
    Run {
        /// The configuration; policies/*.yaml beside it are read too.
        #[arg(short, long, value_name = "FILE", default_value = "/etc/godwit/godwit.yaml")]
        config: PathBuf,
    },
    /// Check a configuration and report every problem in it; with what the API changed, where its state directory has that.
    Check {
        /// The configuration.
        #[arg(value_name = "FILE", default_value = "/etc/godwit/godwit.yaml")]
        file: PathBuf,
        /// The same, as other commands have it.
        #[arg(short, long, value_name = "FILE", conflicts_with = "file")]
        config: Option<PathBuf>,
    },
    /// Ask whether a node takes requests, for health checks: exit code 0 if so, 1 if it holds them or does not answer.
    Ready {
        /// Ask whether it runs, no more.
        #[arg(long)]
        live: bool,
        /// Ask whether it leads: also while it holds requests.
        #[arg(long, conflicts_with = "live")]
        leads: bool,
    },
    /// Show every resource: who serves, the shadow, the stream, problems.
    Status {
        /// Only this one.
        resource: Option<String>,
        /// Print again every second until interrupted.
        #[arg(short, long)]
        watch: bool,
    },
    /// Show the score: each term, every guard, and why not now.
    Explain {
        /// The resource.
        resource: String,
    },
    /// Show the exact steps and guards of a migration, without starting it.
    Plan {
        /// The resource.
        resource: String,
        /// Target zone; default: the shadow's.
        #[arg(long, value_name = "ZONE")]
        to: Option<String>,
    },
    /// Show the zones; with a resource: which one its shadow should live in, and why no other.
    Zones {
        /// Judge every zone for this one's shadow.
        resource: Option<String>,
        /// The built-in catalogue of clouds' regions instead; asks no node.
        #[arg(long, conflicts_with = "resource")]
        catalogue: bool,
    },
    /// Examine the databases of the resources: GO or NO-GO, every finding, and what mends it.
    Doctor {
        /// Only this one.
        resource: Option<String>,
    },
    /// Print what Godwit's role needs in a database: SQL for a superuser, each line with its reason. Asks no node.
    Grants(grants::Arguments),
    /// What other services say of zones: cost, utilisation, weather, events, maintenance.
    #[command(subcommand)]
    Feeds(feeds::Feeds),
    /// Start a migration.
    Migrate {
        /// The resource.
        resource: String,
        /// Target zone.
        #[arg(long, value_name = "ZONE")]
        to: String,
        /// Only say what would happen.
        #[arg(long)]
        dry_run: bool,
        /// Wait until clients are served by the new primary, or the migration is rolled back.
        #[arg(long)]
        wait: bool,
    },
    /// The primary is lost: let its shadow take over with what it has. What had not reached it is lost.
    Takeover {
        /// The resource.
        resource: String,
        /// What the primary committed and the shadow has not may be lost.
        #[arg(long)]
        accept_loss: bool,
        /// Although the primary's database answers; otherwise `migrate` moves without loss.
        #[arg(long)]
        primary_answers: bool,
        /// Although tables of the shadow are still being filled, and lack rows.
        #[arg(long)]
        incomplete: bool,
        /// Only say what would happen, and what would be lost.
        #[arg(long)]
        dry_run: bool,
        /// Wait until clients are served by the new primary.
        #[arg(long)]
        wait: bool,
    },
    /// Undo the migration under way; possible until it is committed.
    Abort {
        /// The resource.
        resource: String,
    },
    /// Retire the old primary of the last migration now, as soon as both sides have compared equal; otherwise when the policy says
    /// (`retire.after`).
    Retire {
        /// The resource.
        resource: String,
    },
    /// Compare the shadow's schema with its primary's, or bring it up to that.
    #[command(subcommand)]
    Schema(Schema),
    /// Empty the shadow and seed it anew, where its stream can never go on; or only some of its tables, beside the stream.
    Reseed {
        /// The resource.
        resource: String,
        /// Only this table (`schema.table`; a partitioned one: its partitions); may be given again.
        #[arg(long = "table", value_name = "TABLE")]
        tables: Vec<String>,
    },
    /// Start the migration that the score proposed (mode advise).
    Approve {
        /// The resource.
        resource: String,
        /// The proposal; default: the open one.
        proposal: Option<String>,
    },
    /// Reserve a resource on a running node: Godwit chooses its shadow's zone and provisions it.
    Reserve(reserve::Reserve),
    /// Drop a resource that was reserved: its shadow is deprovisioned. Of one that was taken out of the files: nothing is left of it.
    Release {
        /// The resource.
        resource: String,
    },
    /// Keep a shadow of a resource, or none.
    #[command(subcommand)]
    Shadow(reserve::Shadow),
    /// The configuration of a running node: show it with its origin, compare it with the files, read them anew.
    #[command(subcommand)]
    Config(config::Config),
    /// Let nothing move, until it is lifted or over; also stops moves that operators start.
    Freeze {
        /// Only this one; default: every resource of the node.
        resource: Option<String>,
        /// Why: everybody who asks will read it.
        #[arg(long, value_name = "TEXT", value_parser = said)]
        why: String,
        /// For how long, such as 2h.
        #[arg(long = "for", value_name = "DURATION", value_parser = some_time)]
        lasting: Option<std::time::Duration>,
    },
    /// List the freezes that operators ordered and that are in effect.
    Freezes,
    /// Lift the freezes that were ordered, whoever did; it says which.
    Unfreeze {
        /// Those of this one; default: those of every resource as a whole.
        resource: Option<String>,
    },
    /// Show what the node logs, or change that while it runs.
    Log {
        /// Directives `target=level`, or `level` for the rest, with commas between: info,godwit::controller=debug.
        filter: Option<String>,
        /// As it was started again (GODWIT_LOG).
        #[arg(long, conflicts_with = "filter")]
        reset: bool,
    },
    /// Say whether this node leads its resources, where several may; or have one that stands by lead.
    Lead {
        /// Lead although no database answers that clients could write to, unless another node does: for a takeover.
        #[arg(long)]
        without_primary: bool,
    },
    /// Replay a policy on recorded history: moves, regret, flaps; asks no node.
    Backtest(backtest::Arguments),
    /// Compare the shadow with its primary, row by row, while both are in use.
    Verify(verify::Arguments),
    /// List past migrations; or export what was measured.
    History(history::Arguments),
    /// Two zones on this machine, a real service under load, a storm: watch it move and come back.
    Demo(run::Options),
    /// The small order service of the demo.
    #[command(hide = true)]
    DemoOrders {
        /// Address to listen on.
        #[arg(long)]
        listen: SocketAddr,
        /// PostgreSQL connection string.
        #[arg(long)]
        dsn: replicator::postgres::Dsn,
        /// Most connections to the database.
        #[arg(long, default_value_t = 8)]
        connections: usize,
    },
    /// An exec driver for playgrounds: a cluster and order services on this machine (docs/drivers.md).
    #[command(hide = true)]
    DemoDriver(driver::Options),
    /// Certificates of the link between nodes.
    #[command(subcommand)]
    Pki(Pki),
    /// Print the completions for a shell: godwit completions bash > /etc/bash_completion.d/godwit
    Completions {
        /// Which shell.
        shell: clap_complete::Shell,
    },
    /// Print the manual page, or write one for each command.
    Man {
        /// Write godwit.1, godwit-migrate.1 and so on into this directory.
        #[arg(long, value_name = "DIRECTORY")]
        directory: Option<PathBuf>,
    },
    /// Tokens of the API: who may do what.
    #[command(subcommand)]
    Token(token::Command),
    /// Who did what: list it, check that it is whole.
    #[command(subcommand)]
    Audit(audit::Command),
}

#[derive(Debug, Subcommand)]
enum Schema {
    /// Show every difference, and the SQL that mends it.
    Diff {
        /// The resource.
        resource: String,
    },
    /// Make on the shadow what only the primary has; what could lose a row is only shown.
    Sync {
        /// The resource.
        resource: String,
        /// Only say what would be done.
        #[arg(long)]
        dry_run: bool,
        /// Drop what only the shadow has: tables, partitions, columns, indexes, constraints, triggers, rules and policies.
        #[arg(long)]
        drop: bool,
    },
}

#[derive(Debug, Subcommand)]
enum Pki {
    /// Make a certificate authority and a certificate for each node.
    Init {
        /// Where the PEM files go; existing ones are kept, never overwritten.
        #[arg(long, value_name = "DIRECTORY", default_value = "pki")]
        directory: PathBuf,
        /// Names of the nodes, as in `node.name`, each with its zone: the certificate is for streams of that zone only. A node that is named several
        /// times gets one certificate, for all of these zones.
        #[arg(required = true, value_name = "NODE[@ZONE]")]
        nodes: Vec<String>,
        /// The certificates are for streams of this resource only; may be repeated. Left out: of any.
        #[arg(long = "resource", value_name = "NAME")]
        resources: Vec<String>,
    },
}

/// Parses the process' arguments and runs the command.
pub fn main() -> ExitCode {
    // pingora hard-wires ring; a process has one provider.
    if rustls::crypto::ring::default_provider().install_default().is_err() {
        tracing::debug!("a TLS provider was installed before");
    }
    let arguments = Arguments::parse();
    let output = arguments.output;
    let client = client(&arguments);
    let result = match arguments.command {
        Command::Run { config } => return run_node(&config, output),
        Command::Check { file, config } => return check::run(&config.unwrap_or(file), output),
        Command::Ready { live, leads } => verbs::ready(&client, live, leads, output),
        Command::Status { resource, watch } => verbs::status(&client, resource.as_deref(), watch, output),
        Command::Explain { resource } => verbs::explain(&client, &resource, output),
        Command::Plan { resource, to } => verbs::plan(&client, &resource, to.as_deref(), output),
        Command::Zones { catalogue: true, .. } => verbs::catalogue(output),
        Command::Zones { resource, .. } => verbs::zones(&client, resource.as_deref(), output),
        Command::Doctor { resource } => verbs::doctor(&client, resource.as_deref(), output),
        Command::Migrate { resource, to, dry_run: true, .. } => {
            verbs::plan(&client, &resource, Some(&to), output)
        }
        Command::Migrate { resource, to, wait, .. } => verbs::migrate(&client, &resource, &to, wait, output),
        Command::Takeover { resource, accept_loss, primary_answers, incomplete, dry_run, wait } => {
            let body = serde_json::json!({
                "accept_loss": accept_loss, "primary_answers": primary_answers, "incomplete": incomplete, "dry_run": dry_run
            });
            verbs::take_over(&client, &resource, &body, wait, output)
        }
        Command::Abort { resource } => verbs::abort(&client, &resource, output),
        Command::Retire { resource } => verbs::retire(&client, &resource, output),
        Command::Schema(Schema::Diff { resource }) => verbs::schema(&client, &resource, output),
        Command::Schema(Schema::Sync { resource, dry_run, drop }) => {
            verbs::sync_schema(&client, &resource, SyncRequest { dry_run, drop }, output)
        }
        Command::Reseed { resource, tables } if tables.is_empty() => {
            verbs::reseed(&client, &resource, output)
        }
        Command::Reseed { resource, tables } => verbs::reseed_tables(&client, &resource, tables, output),
        Command::Approve { resource, proposal } => {
            verbs::approve(&client, &resource, proposal.as_deref(), output)
        }
        Command::Reserve(arguments) => reserve::reserve(&client, &arguments, output),
        Command::Release { resource } => reserve::release(&client, &resource, output),
        Command::Shadow(command) => reserve::shadow(&client, &command, output),
        Command::Config(command) => config::run(&client, &command, output),
        Command::Freeze { resource, why, lasting } => {
            verbs::freeze(&client, resource.as_deref(), &why, lasting, output)
        }
        Command::Freezes => verbs::freezes(&client, output),
        Command::Unfreeze { resource } => verbs::unfreeze(&client, resource.as_deref(), output),
        Command::Log { filter, reset } => verbs::log(&client, filter.as_deref(), reset, output),
        Command::Lead { without_primary } => verbs::lead(&client, without_primary, output),
        Command::Backtest(arguments) => backtest::run(&arguments, output),
        Command::Grants(arguments) => grants::run(&arguments, output),
        Command::Feeds(command) => feeds::run(&client, &command, output),
        Command::Verify(arguments) => verify::run(&client, &arguments, output),
        Command::History(arguments) => history::run(&client, &arguments, output),
        Command::Demo(options) => run::run(&options),
        Command::DemoOrders { listen, dsn, connections } => {
            demo_orders(orders::Options { listen, dsn, connections })
        }
        Command::DemoDriver(options) => demo_driver(options),
        Command::Pki(Pki::Init { directory, nodes, resources }) => {
            pki::init(&directory, &nodes, &resources, output)
        }
        Command::Completions { shell } => shell::completions(shell),
        Command::Man { directory } => shell::man(directory.as_deref()),
        Command::Audit(command) => audit::run(&client, command, output),
        Command::Token(command) => token::run(&client, command, output),
    };
    result.unwrap_or_else(|error| {
        tell(&error, output);
        let refused = problem(&error).is_some_and(|problem| problem.status == http::StatusCode::CONFLICT);
        ExitCode::from(if refused { verbs::REFUSED } else { 1 })
    })
}

/// What the API said, when it did not do what was asked.
fn problem(error: &anyhow::Error) -> Option<&Problem> {
    error.downcast_ref::<client::Refusal>().map(|client::Refusal(problem)| problem)
}

/// Writes an answer to standard output; whether anybody reads on. One who has enough (`| head`) changes nothing about the answer.
fn out(text: impl AsRef<[u8]>) -> anyhow::Result<bool> {
    write(&mut std::io::stdout().lock(), text.as_ref())
}

fn write(to: &mut impl Write, text: &[u8]) -> anyhow::Result<bool> {
    match to.write_all(text).and_then(|()| to.flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(false),
        written => written.map(|()| true).context("cannot write the answer"),
    }
}

/// Says on standard error what went wrong, and for programs on standard output.
fn tell(error: &anyhow::Error, output: Output) {
    let problem = problem(error);
    match problem {
        Some(problem) if problem.status == http::StatusCode::CONFLICT => {
            eprintln!("godwit: refused: {}", problem.detail);
        }
        _ => eprintln!("godwit: {error:#}"),
    }
    if output == Output::Json {
        let value = match problem {
            Some(problem) => serde_json::json!(problem),
            None => {
                serde_json::json!({ "type": "about:blank#command", "title": "the command failed", "detail": format!("{error:#}") })
            }
        };
        // There is nobody left to tell.
        let _ = out(format!("{value:#}\n"));
    }
}

fn client(arguments: &Arguments) -> client::Client {
    let client = client::Client::new(&arguments.admin).with_ca(arguments.ca.clone());
    if let Some(path) = &arguments.token_file {
        return client.with_token_file(path.clone());
    }
    client.with_token(std::env::var("GODWIT_TOKEN").ok())
}

fn duration(text: &str) -> Result<std::time::Duration, String> {
    crate::config::units::duration(text).map_err(|wrong| format!("{}: {}", wrong.what, wrong.right))
}

/// A time that does not end when it begins.
fn some_time(text: &str) -> Result<std::time::Duration, String> {
    let time = duration(text)?;
    if time.is_zero() { Err("longer than nothing, such as 2h".into()) } else { Ok(time) }
}

/// A text that says something.
fn said(text: &str) -> Result<String, String> {
    if text.trim().is_empty() { Err("a reason in words".into()) } else { Ok(text.to_owned()) }
}

fn demo_orders(options: orders::Options) -> anyhow::Result<ExitCode> {
    crate::telemetry::logging::start();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(orders::run(options))?;
    Ok(ExitCode::SUCCESS)
}

/// Whether this can be typed.
#[cfg(test)]
pub(crate) fn parses(command: &str) -> bool {
    Arguments::try_parse_from(command.split_whitespace()).is_ok()
}

fn demo_driver(options: driver::Options) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(driver::run(options))?;
    Ok(ExitCode::SUCCESS)
}

fn run_node(path: &std::path::Path, output: Output) -> ExitCode {
    // Check says what is wrong with it.
    let config = match crate::leading::changes::load(path) {
        Ok(config) => config,
        Err(errors) => return check::invalid(path, &errors, output),
    };
    crate::telemetry::logging::start();
    match crate::app::run(config, path) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tell(&error, output);
            ExitCode::from(1)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Gone(ErrorKind);

    impl Write for Gone {
        fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
            Err(self.0.into())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_reader_who_has_enough_is_no_error_and_a_full_disk_is() {
        assert!(write(&mut Vec::new(), b"one").unwrap());
        assert!(!write(&mut Gone(ErrorKind::BrokenPipe), b"one").unwrap());
        assert!(write(&mut Gone(ErrorKind::StorageFull), b"one").is_err());
    }
}
