//! The initial copy: Godwit over QUIC on loopback against native logical replication's and `pgcopydb clone`.
//!
//! Each side makes the tables, copies the rows, and has indexes and constraints at the end; the clock runs over all of it. Native
//! replication gets the schema from `pg_dump` as Godwit does, and as many workers as Godwit has sessions. They take turns in who comes
//! first; every target must hold the rows of the source afterwards. `pgcopydb` takes part where it is installed.

use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use godwit::clock;
use replicator::copy::CopyOptions;
use replicator::postgres::slot;
use replicator::pump::{LocalEnd, StreamSpec, maintain};
use replicator::spill::Spill;
use replicator::status::{Phase, StreamStatus};
use tokio::sync::watch;
use tokio_postgres::Client;
use tokio_util::sync::CancellationToken;

use super::link::Served;
use super::{PATIENCE, Server, median, rows};

/// How often a side is asked whether it is through.
const ASK: Duration = Duration::from_millis(20);
/// Sessions that copy at the same time, for each side.
const SESSIONS: u32 = 4;

/// How much, how often.
#[derive(Args, Clone, Debug)]
pub(crate) struct Plan {
    /// pgbench's scale: 100,000 accounts each.
    #[arg(long, default_value_t = 20)]
    scale: u32,
    /// Rounds; medians are over these.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// PostgreSQL's major version.
    #[arg(long, default_value_t = 15)]
    major: u32,
}

/// Who copies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Who {
    Godwit,
    Native,
    Pgcopydb,
}

impl Who {
    fn name(self) -> &'static str {
        match self {
            Self::Godwit => "godwit",
            Self::Native => "native",
            Self::Pgcopydb => "pgcopydb",
        }
    }
}

const SOURCE: &str = "source";
const TABLES: [&str; 4] = ["pgbench_accounts", "pgbench_branches", "pgbench_tellers", "pgbench_history"];

fn spec(name: &str) -> StreamSpec {
    StreamSpec {
        resource: name.to_owned(),
        generation: 1,
        slot: slot::slot_name(name, 1),
        publication: slot::publication_name(name),
        origin: slot::origin_name(name),
        source_zone: "a".into(),
        target_zone: "b".into(),
        synchronous: false,
    }
}

async fn godwit(source: &Server, target: &Server, database: &str) -> Result<Duration> {
    let to = target.connect(database).await?;
    replicator::fence::install(&to, "bench", 1).await?;
    let served = Served::start(target, database)?;
    let connector = served.connector(served.address()?)?;
    let spec = spec(database);
    let end = LocalEnd::Source {
        dsn: source.config(SOURCE).into(),
        bin: None,
        spill: Spill::default(),
        copy: CopyOptions::default(),
    };
    let (sender, status) = watch::channel(StreamStatus::default());
    let cancel = CancellationToken::new();
    let (stop, slot) = (cancel.clone(), spec.slot.clone());
    let began = clock::monotonic();
    let task = tokio::spawn(async move { maintain(&*connector, &spec, &end, &sender, &stop).await });
    loop {
        match status.borrow().phase.clone() {
            Phase::Streaming => break,
            Phase::Failed { error, .. } => bail!("the copy failed: {error}"),
            _ => ensure!(began.elapsed() < PATIENCE, "godwit did not copy in time"),
        }
        tokio::time::sleep(ASK).await;
    }
    let took = began.elapsed();
    cancel.cancel();
    task.await??;
    slot::drop_slot(&source.connect(SOURCE).await?, &slot).await?;
    Ok(took)
}

fn schema(source: &Server, target: &Server, database: &str) -> Result<()> {
    let at = |server: &Server| {
        [
            "-h".to_owned(),
            server.cluster.host.clone(),
            "-p".into(),
            server.cluster.port.to_string(),
            "-U".into(),
            "postgres".into(),
        ]
    };
    let dump = Command::new(source.cluster.bin.join("pg_dump"))
        .args(at(source))
        .args([
            "--schema-only",
            "--no-publications",
            "--no-subscriptions",
            "--exclude-schema=godwit",
            "-d",
            SOURCE,
        ])
        .output()?;
    ensure!(dump.status.success(), "pg_dump: {}", String::from_utf8_lossy(&dump.stderr));
    let mut psql = Command::new(target.cluster.bin.join("psql"))
        .args(at(target))
        .args(["-q", "-v", "ON_ERROR_STOP=1", "-d", database])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()?;
    std::io::Write::write_all(&mut psql.stdin.take().context("psql's input")?, &dump.stdout)?;
    ensure!(psql.wait()?.success(), "psql did not load the schema");
    Ok(())
}

async fn native(source: &Server, target: &Server, database: &str) -> Result<Duration> {
    let to = target.connect(database).await?;
    let began = clock::monotonic();
    schema(source, target, database)?;
    to.batch_execute(&format!(
        "CREATE SUBSCRIPTION {database} CONNECTION 'host={} port={} user=postgres dbname={SOURCE}' PUBLICATION work",
        source.cluster.host, source.cluster.port
    ))
    .await?;
    let through =
        "SELECT count(*) > 0 AND bool_and(srsubstate = 'r') FROM pg_subscription_rel r JOIN pg_subscription s
        ON s.oid = r.srsubid JOIN pg_database d ON d.oid = s.subdbid WHERE d.datname = current_database()";
    while !to.query_one(through, &[]).await?.get::<_, bool>(0) {
        ensure!(began.elapsed() < PATIENCE, "native replication did not copy in time");
        tokio::time::sleep(ASK).await;
    }
    let took = began.elapsed();
    to.batch_execute(&format!("DROP SUBSCRIPTION {database}")).await?;
    Ok(took)
}

fn pgcopydb(source: &Server, target: &Server, database: &str) -> Result<Duration> {
    let uri = |server: &Server, database: &str| {
        format!("postgres://postgres@{}:{}/{database}", server.cluster.host, server.cluster.port)
    };
    let directory = tempfile::tempdir()?;
    let jobs = SESSIONS.to_string();
    let began = clock::monotonic();
    let out = Command::new("pgcopydb")
        .args(["clone", "--source", &uri(source, SOURCE), "--target", &uri(target, database)])
        .args(["--table-jobs", &jobs, "--index-jobs", &jobs, "--no-acl", "--no-owner", "--dir"])
        .arg(directory.path().join("work"))
        .env(
            "PATH",
            format!("{}:{}", source.cluster.bin.display(), std::env::var("PATH").unwrap_or_default()),
        )
        .output()?;
    ensure!(out.status.success(), "pgcopydb: {}", String::from_utf8_lossy(&out.stderr));
    Ok(began.elapsed())
}

/// One copy into a new database, which is checked and dropped.
async fn one(source: &Server, target: &Server, who: Who, at: usize) -> Result<Duration> {
    let database = format!("{}_{at}", who.name());
    let admin = target.connect("postgres").await?;
    admin.batch_execute(&format!("CREATE DATABASE {database}")).await?;
    source.connect("postgres").await?.batch_execute("CHECKPOINT").await?;
    admin.batch_execute("CHECKPOINT").await?;
    let took = match who {
        Who::Godwit => godwit(source, target, &database).await?,
        Who::Native => native(source, target, &database).await?,
        Who::Pgcopydb => pgcopydb(source, target, &database)?,
    };
    let (from, to) = (source.connect(SOURCE).await?, target.connect(&database).await?);
    ensure!(
        rows(&from, &TABLES).await? == rows(&to, &TABLES).await?,
        "{}: the target differs from the source",
        who.name()
    );
    let indexes = "SELECT count(*) FROM pg_indexes WHERE schemaname = 'public'";
    let count = async |client: &Client| -> Result<i64> { Ok(client.query_one(indexes, &[]).await?.get(0)) };
    ensure!(count(&from).await? == count(&to).await?, "{}: other indexes", who.name());
    drop(to);
    admin.batch_execute(&format!("DROP DATABASE {database} WITH (FORCE)")).await?;
    Ok(took)
}

/// Runs it and prints seconds and ratios.
pub(crate) fn run(plan: &Plan) -> Result<()> {
    super::run(measure(plan))
}

async fn measure(plan: &Plan) -> Result<()> {
    let (source, target) = (Server::start(plan.major)?, Server::start(plan.major)?);
    let admin = target.connect("postgres").await?;
    admin.batch_execute(&format!("ALTER SYSTEM SET max_sync_workers_per_subscription = {SESSIONS}")).await?;
    admin.batch_execute("SELECT pg_reload_conf()").await?;
    source.connect("postgres").await?.batch_execute(&format!("CREATE DATABASE {SOURCE}")).await?;
    source.pgbench(SOURCE, &["-i", "-q", "-s", &plan.scale.to_string()])?;
    let client = source.connect(SOURCE).await?;
    client.batch_execute("CREATE PUBLICATION work FOR ALL TABLES").await?;
    let mut all = vec![Who::Godwit, Who::Native];
    if Command::new("pgcopydb").arg("--version").output().is_ok_and(|out| out.status.success()) {
        all.push(Who::Pgcopydb);
    } else {
        println!("pgcopydb is not installed: it does not take part");
    }
    let mut times = vec![Vec::new(); all.len()];
    for at in 0..plan.rounds {
        let mut said = Vec::new();
        for turn in 0..all.len() {
            let place = (turn + at) % all.len();
            let took = one(&source, &target, all[place], at).await?;
            said.push(format!("{} {:.2} s", all[place].name(), took.as_secs_f64()));
            times[place].push(took);
        }
        println!("  round {}: {}", at + 1, said.join(", "));
    }
    let medians: Vec<f64> = times.into_iter().map(median).collect();
    println!("pgbench scale {}, medians of {}:", plan.scale, plan.rounds);
    for (who, took) in all.iter().zip(&medians) {
        println!("  {} {took:.2} s: {:.2}x of godwit's time", who.name(), took / medians[0]);
    }
    Ok(())
}
