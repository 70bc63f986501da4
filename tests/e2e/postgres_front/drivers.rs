//! The drivers of other languages (`tests/drivers`), on the same connections over five cutovers: `make test-postgres-front`.

use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use godwit::demo::zone::{DATABASE, Playground, SERVICE_ROLE, SUPERUSER};

use super::{PASSWORD, cutover, rounds};
use crate::leader::Leader;

const CUTOVERS: usize = 5;
/// Rounds of each driver before each cutover.
const ROUNDS: u64 = 5;
const NAMES: [&str; 4] = ["psycopg", "asyncpg", "node_postgres", "jdbc"];

/// One of them, running.
struct Driver {
    name: &'static str,
    child: Child,
    /// It goes on until this is closed.
    input: Option<ChildStdin>,
    played: Arc<AtomicU64>,
    output: std::thread::JoinHandle<Option<String>>,
    errors: Option<std::thread::JoinHandle<String>>,
}

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

impl Driver {
    fn start(name: &'static str, fetched: &Path, front: SocketAddr) -> Result<Self> {
        let mut child = command(name, fetched)
            .args([&front.ip().to_string(), &front.port().to_string(), SERVICE_ROLE, DATABASE, name])
            .env("PGPASSWORD", PASSWORD)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("{name} cannot be started"))?;
        let (input, output, errors) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let (output, mut errors) = (output.context("its output")?, errors.context("its errors")?);
        let played = Arc::new(AtomicU64::new(0));
        let count = Arc::clone(&played);
        let output = std::thread::spawn(move || {
            let mut last = None;
            for line in BufReader::new(output).lines().map_while(std::io::Result::ok) {
                count.fetch_add(u64::from(line.starts_with("round ")), SeqCst);
                last = Some(line);
            }
            last
        });
        let errors = std::thread::spawn(move || {
            let mut text = String::new();
            let _ = errors.read_to_string(&mut text);
            text
        });
        Ok(Self { name, child, input, played, output, errors: Some(errors) })
    }

    /// Lets it end by itself; it must be content.
    fn finish(mut self) -> Result<String> {
        drop(self.input.take());
        let status = self.child.wait()?;
        let errors = self.errors.take().and_then(|reading| reading.join().ok()).unwrap_or_default();
        ensure!(status.success(), "{} failed ({status}):\n{errors}", self.name);
        let (played, last) = (self.played.load(SeqCst), self.output.join().ok().flatten());
        let expected = format!("done {played}");
        ensure!(last.as_deref() == Some(&*expected), "{} ended with {last:?}, not {expected:?}", self.name);
        Ok(format!("{:<14} {played:>6} rounds, 0 errors", self.name))
    }
}

/// Clients have to prove who they are; both databases know the same verifier.
async fn with_passwords(playground: &Playground) -> Result<()> {
    let mut verifier = format!("'{PASSWORD}'");
    for zone in &playground.zones {
        let administrator = replicator::postgres::connect(&zone.dsn(SUPERUSER), "godwit-test").await?;
        administrator.batch_execute(&format!("ALTER ROLE {SERVICE_ROLE} PASSWORD {verifier}")).await?;
        let sql = "SELECT rolpassword FROM pg_authid WHERE rolname = $1";
        let kept: String = administrator.query_one(sql, &[&SERVICE_ROLE]).await?.get(0);
        verifier = format!("'{kept}'");
    }
    let file = playground.directory.join("verifiers");
    std::fs::write(&file, format!("\"{SERVICE_ROLE}\" \"{}\"\n", verifier.trim_matches('\'')))?;
    let config = std::fs::read_to_string(&playground.config)?;
    let asked = config.replace("auth: trust", &format!("auth: {{file: {}}}", file.display()));
    ensure!(asked != config, "the front asks for no password:\n{config}");
    Ok(std::fs::write(&playground.config, asked)?)
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "fetches drivers: make test-postgres-front"]
async fn drivers_do_not_notice_five_cutovers() -> Result<()> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/postgres-drivers.sh");
    let fetched = Command::new(script).stderr(Stdio::inherit()).output()?;
    ensure!(fetched.status.success(), "the drivers cannot be had");
    let fetched = PathBuf::from(String::from_utf8(fetched.stdout)?.trim());

    let tables: String = NAMES.into_iter().map(rounds::table).collect();
    let (playground, front) = cutover::playground(Duration::from_millis(2), &tables).await?;
    with_passwords(&playground).await?;
    let mut leader = Leader::start(&playground, &[])?;
    leader.ready().await?;
    let drivers: Vec<Driver> =
        NAMES.into_iter().map(|name| Driver::start(name, &fetched, front)).collect::<Result<_>>()?;
    let more = || {
        let enough: Vec<u64> = drivers.iter().map(|driver| driver.played.load(SeqCst) + ROUNDS).collect();
        let drivers = &drivers;
        move || drivers.iter().zip(&enough).all(|(driver, enough)| driver.played.load(SeqCst) >= *enough)
    };
    let moved = cutover::moves(&mut leader, CUTOVERS, more).await;
    let said: Vec<Result<String>> = drivers.into_iter().map(Driver::finish).collect();
    for line in said {
        println!("{}, {CUTOVERS} cutovers", line?);
    }
    moved.map(drop)
}
