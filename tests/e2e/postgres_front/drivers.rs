//! The drivers of other languages (`tests/drivers`), on the same connections over five cutovers: `make test-postgres-front`.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Result, ensure};
use godwit::demo::zone::{DATABASE, Playground, SERVICE_ROLE, SUPERUSER};

use super::{PASSWORD, cutover, rounds};
use crate::leader::Leader;
use crate::programs::Program;

const CUTOVERS: usize = 5;
/// Rounds of each driver before each cutover.
const ROUNDS: u64 = 5;
const NAMES: [&str; 4] = ["psycopg", "asyncpg", "node_postgres", "jdbc"];

fn command(name: &str, fetched: &Path) -> Command {
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("drivers");
    let (program, file) = match name {
        "psycopg" => (fetched.join("venv/bin/python3"), "psycopg_client.py"),
        "asyncpg" => (fetched.join("venv/bin/python3"), "asyncpg_client.py"),
        "node_postgres" => (PathBuf::from("node"), "node-postgres.mjs"),
        _ => (PathBuf::from("java"), "Jdbc.java"),
    };
    let mut command = Command::new(program);
    if name == "jdbc" {
        command.arg("-cp").arg(fetched.join("jdbc/postgresql.jar"));
    }
    command.arg(own.join(file));
    command
}

fn start(name: &'static str, fetched: &Path, front: SocketAddr) -> Result<Program> {
    let arguments = [&front.ip().to_string(), &front.port().to_string(), SERVICE_ROLE, DATABASE, name];
    Program::start(name, command(name, fetched).args(arguments).env("PGPASSWORD", PASSWORD))
}

/// The role of the service gets a password; both databases know the same verifier, which is given.
pub(super) async fn same_verifier(playground: &Playground) -> Result<String> {
    let mut verifier = format!("'{PASSWORD}'");
    for zone in &playground.zones {
        let administrator = replicator::postgres::connect(&zone.dsn(SUPERUSER), "godwit-test").await?;
        administrator.batch_execute(&format!("ALTER ROLE {SERVICE_ROLE} PASSWORD {verifier}")).await?;
        let sql = "SELECT rolpassword FROM pg_authid WHERE rolname = $1";
        let kept: String = administrator.query_one(sql, &[&SERVICE_ROLE]).await?.get(0);
        verifier = format!("'{kept}'");
    }
    Ok(verifier.trim_matches('\'').to_owned())
}

/// Clients have to prove who they are.
async fn with_passwords(playground: &Playground) -> Result<()> {
    let verifier = same_verifier(playground).await?;
    let file = playground.directory.join("verifiers");
    std::fs::write(&file, format!("\"{SERVICE_ROLE}\" \"{verifier}\"\n"))?;
    let config = std::fs::read_to_string(&playground.config)?;
    let asked = config.replace("\", auth: trust", &format!("\", auth: {{file: {}}}", file.display()));
    ensure!(asked != config, "the front asks for no password:\n{config}");
    Ok(std::fs::write(&playground.config, asked)?)
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "fetches drivers: make test-postgres-front"]
async fn drivers_do_not_notice_five_cutovers() -> Result<()> {
    do_not_notice_five_cutovers(None).await
}

/// Each driver keeps one, on which it listens; two are left to the others.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "fetches drivers: make test-postgres-front"]
async fn drivers_that_share_connections_do_not_notice_five_cutovers() -> Result<()> {
    do_not_notice_five_cutovers(Some(NAMES.len() + 2)).await
}

async fn do_not_notice_five_cutovers(shared: Option<usize>) -> Result<()> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/postgres-drivers.sh");
    let fetched = Command::new(script).stderr(Stdio::inherit()).output()?;
    ensure!(fetched.status.success(), "the drivers cannot be had");
    let fetched = PathBuf::from(String::from_utf8(fetched.stdout)?.trim());

    let tables: String = NAMES.into_iter().map(rounds::table).collect();
    let (playground, front) = cutover::playground(Duration::from_millis(2), &tables).await?;
    if let Some(size) = shared {
        cutover::share(&playground, size)?;
    }
    with_passwords(&playground).await?;
    let mut leader = Leader::start(&playground, &[])?;
    leader.ready().await?;
    let drivers: Vec<Program> =
        NAMES.into_iter().map(|name| start(name, &fetched, front)).collect::<Result<_>>()?;
    let more = || {
        let enough: Vec<u64> = drivers.iter().map(|driver| driver.rounds() + ROUNDS).collect();
        let drivers = &drivers;
        move || drivers.iter().zip(&enough).all(|(driver, enough)| driver.rounds() >= *enough)
    };
    let moved = cutover::moves(&mut leader, CUTOVERS, more).await;
    let said: Vec<_> = drivers.into_iter().map(|driver| (driver.name, driver.finish())).collect();
    for (name, rounds) in said {
        println!("{name:<14} {:>6} rounds, 0 errors, {CUTOVERS} cutovers", rounds?);
    }
    moved.map(drop)
}
