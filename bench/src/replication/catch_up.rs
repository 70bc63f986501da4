//! Catching up with a backlog: Godwit's stream against native logical replication.
//!
//! In each round both have a slot of their own that was made before the work, so both find the same backlog; they take
//! turns in who comes first. The clock runs from the start of the stream (native: `ALTER SUBSCRIPTION … ENABLE`) until the
//! source is told that everything is applied; Godwit's report is later than that, because it commits with a flush and
//! native logical replication does not wait for its own. Both clusters have fsync on. Afterwards both targets must hold
//! the same rows as the source.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::{Args, ValueEnum};
use godwit::clock;
use godwit::demo::zone::free_ports;
use godwit::drivers::process::cluster::{Cluster, installed};
use replicator::link::memory::Options as LinkOptions;
use replicator::lsn::Lsn;
use replicator::postgres::slot;
use replicator::pump::{LocalEnd, LocalPeer, StreamSpec, maintain};
use replicator::spill::Spill;
use replicator::status::{Phase, StreamStatus};
use tokio::sync::watch;
use tokio_postgres::{Client, NoTls};
use tokio_util::sync::CancellationToken;

/// How long one side may take.
const PATIENCE: Duration = Duration::from_mins(15);
/// How often native replication is asked where it is.
const ASK: Duration = Duration::from_millis(10);
/// The last line spares native replication a wait of up to 5 s before its worker starts.
const SETTINGS: &str = "fsync = on\nshared_buffers = 512MB\nmax_wal_size = 16GB\ncheckpoint_timeout = 1h\n\
    autovacuum = off\nwal_level = logical\nmax_worker_processes = 16\n\
    wal_retrieve_retry_interval = 50ms\n";

/// What is caught up with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Work {
    /// pgbench's TPC-B transactions.
    Tpcb,
    /// Transactions of one inserted row.
    Insert,
    /// One transaction that updates every row.
    Update,
    /// One transaction that deletes every row.
    Delete,
}

/// How much of what.
#[derive(Args, Clone, Debug)]
pub(crate) struct Plan {
    /// Which work; all when left out.
    #[arg(long)]
    work: Option<Work>,
    /// Rounds; medians are over these.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// A tenth of the work.
    #[arg(long)]
    small: bool,
    /// Only Godwit, for a profiler.
    #[arg(long)]
    alone: bool,
    /// PostgreSQL's major version.
    #[arg(long, default_value_t = 15)]
    major: u32,
}

impl Work {
    fn size(self, small: bool) -> u32 {
        let whole = if self == Self::Tpcb { 100_000 } else { 1_000_000 };
        if small { whole / 10 } else { whole }
    }

    fn describe(self, size: u32) -> String {
        match self {
            Self::Tpcb => format!("{size} TPC-B transactions"),
            Self::Insert => format!("{size} single-row INSERTs"),
            Self::Update => format!("one UPDATE of {size} rows"),
            Self::Delete => format!("one DELETE of {size} rows"),
        }
    }

    fn tables(self) -> &'static [&'static str] {
        match self {
            Self::Tpcb => &["pgbench_accounts", "pgbench_branches", "pgbench_tellers", "pgbench_history"],
            _ => &["items"],
        }
    }
}

struct Server {
    cluster: Cluster,
    directory: PathBuf,
}

impl Server {
    fn start(major: u32) -> Result<Self> {
        let bin =
            installed(major).with_context(|| format!("PostgreSQL {major} is not here: run make setup"))?;
        let directory = tempfile::Builder::new().prefix("godwit-bench-").tempdir()?.keep();
        std::fs::set_permissions(&directory, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
        let port = free_ports(1)?.pop().context("no free port")?;
        let cluster = Cluster { bin, data: directory.join("data"), host: "127.0.0.1".into(), port };
        let this = Self { cluster, directory };
        this.cluster.init(SETTINGS)?;
        this.cluster.start()?;
        Ok(this)
    }

    fn config(&self, database: &str) -> tokio_postgres::Config {
        let mut config = tokio_postgres::Config::new();
        config.host(&self.cluster.host).port(self.cluster.port).user("postgres").dbname(database);
        config
    }

    async fn connect(&self, database: &str) -> Result<Client> {
        let (client, connection) = self.config(database).connect(NoTls).await?;
        tokio::spawn(connection);
        Ok(client)
    }

    fn pgbench(&self, database: &str, arguments: &[&str]) -> Result<()> {
        let out = Command::new(self.cluster.bin.join("pgbench"))
            .args(["-h", &self.cluster.host, "-p", &self.cluster.port.to_string(), "-U", "postgres"])
            .args(arguments)
            .arg(database)
            .env("PGOPTIONS", "-c synchronous_commit=off")
            .output()?;
        ensure!(out.status.success(), "pgbench failed: {}", String::from_utf8_lossy(&out.stderr));
        Ok(())
    }

    /// A database as it is before the work.
    async fn database(&self, name: &str, work: Work, size: u32) -> Result<Client> {
        self.connect("postgres").await?.batch_execute(&format!("CREATE DATABASE {name}")).await?;
        let client = self.connect(name).await?;
        let fill = |rows| {
            format!(
                "INSERT INTO items SELECT g, 'item ' || g, g * 3, md5(g::text) FROM generate_series(1, {rows}) g"
            )
        };
        match work {
            Work::Tpcb => {
                self.pgbench(name, &["-i", "-q", "-s", "10"])?;
                client.batch_execute("ALTER TABLE pgbench_history ADD id bigint GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY").await?;
            }
            _ => {
                client
                    .batch_execute(
                        "CREATE TABLE items (id bigint PRIMARY KEY, name text, amount int, note text)",
                    )
                    .await?;
                if work != Work::Insert {
                    client.batch_execute(&fill(size)).await?;
                }
            }
        }
        client.batch_execute("VACUUM ANALYZE").await?;
        Ok(client)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.cluster.stop("immediate");
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

async fn perform(source: &Server, client: &Client, database: &str, work: Work, size: u32) -> Result<Lsn> {
    match work {
        Work::Tpcb => {
            let each = (size / 4).to_string();
            source.pgbench(database, &["-n", "-c", "4", "-j", "1", "-t", &each])?;
        }
        Work::Insert => {
            client
                .batch_execute(&format!(
                    "SET synchronous_commit = off; \
                     CREATE PROCEDURE fill() LANGUAGE plpgsql AS $$ BEGIN FOR g IN 1..{size} LOOP \
                       INSERT INTO items VALUES (g, 'item ' || g, g * 3, md5(g::text)); COMMIT; END LOOP; END $$"
                ))
                .await?;
            client.batch_execute("CALL fill()").await?;
        }
        Work::Update => {
            client.batch_execute("UPDATE items SET amount = amount + 1, note = 'changed ' || id").await?;
        }
        Work::Delete => client.batch_execute("DELETE FROM items").await?,
    }
    let at: String = client.query_one("SELECT pg_current_wal_insert_lsn()::text", &[]).await?.get(0);
    client.batch_execute("CHECKPOINT").await?;
    at.parse().map_err(|error| anyhow::anyhow!("{error}"))
}

async fn native(source: &Server, target: &Server, round: &Round, goal: Lsn) -> Result<Duration> {
    let (to, from) = (target.connect(&round.native).await?, source.connect(&round.source).await?);
    to.batch_execute(&format!(
        "CREATE SUBSCRIPTION {0} CONNECTION 'host={1} port={2} user=postgres dbname={3}' PUBLICATION work \
         WITH (enabled = false, create_slot = false, copy_data = false, slot_name = '{0}')",
        round.native, source.cluster.host, source.cluster.port, round.source
    ))
    .await?;
    let began = clock::monotonic();
    to.batch_execute(&format!("ALTER SUBSCRIPTION {} ENABLE", round.native)).await?;
    let sql = format!(
        "SELECT coalesce(max(replay_lsn), '0/0') >= '{goal}' FROM pg_stat_replication WHERE application_name = '{}'",
        round.native
    );
    while !from.query_one(&sql, &[]).await?.get::<_, bool>(0) {
        ensure!(began.elapsed() < PATIENCE, "native replication did not catch up");
        tokio::time::sleep(ASK).await;
    }
    let took = began.elapsed();
    to.batch_execute(&format!("DROP SUBSCRIPTION {}", round.native)).await?;
    Ok(took)
}

async fn own(source: &Server, target: &Server, round: &Round, goal: Lsn) -> Result<Duration> {
    let to = target.connect(&round.own).await?;
    replicator::fence::install(&to, "bench", 1).await?;
    let spec = round.spec();
    replicator::apply::seed_progress(&to, &spec.slot, round.from, 1).await?;
    let peer =
        LocalPeer::new(LocalEnd::Target { dsn: target.config(&round.own).into() }, LinkOptions::default());
    let end =
        LocalEnd::Source { dsn: source.config(&round.source).into(), bin: None, spill: Spill::default() };
    let (sender, status) = watch::channel(StreamStatus::default());
    let cancel = CancellationToken::new();
    let began = clock::monotonic();
    let stop = cancel.clone();
    let task = tokio::spawn(async move { maintain(&*peer, &spec, &end, &sender, &stop).await });
    // Looked at as often as native replication is asked: a waiter that is woken by each report would cost more.
    let last = loop {
        let now = status.borrow().clone();
        if now.applied_lsn >= goal || matches!(now.phase, Phase::Failed { .. }) {
            break now;
        }
        ensure!(began.elapsed() < PATIENCE, "did not catch up; last: {now:?}");
        tokio::time::sleep(ASK).await;
    };
    let took = began.elapsed();
    if let Phase::Failed { error, .. } = last.phase {
        bail!("the stream failed: {error}");
    }
    cancel.cancel();
    task.await??;
    Ok(took)
}

struct Round {
    source: String,
    native: String,
    own: String,
    from: Lsn,
}

impl Round {
    fn spec(&self) -> StreamSpec {
        StreamSpec {
            resource: self.own.clone(),
            generation: 1,
            slot: slot::slot_name(&self.own, 1),
            publication: slot::publication_name(&self.own),
            origin: slot::origin_name(&self.own),
            source_zone: "a".into(),
            target_zone: "b".into(),
            synchronous: false,
        }
    }
}

async fn rows(client: &Client, work: Work) -> Result<Vec<(i64, i64)>> {
    let mut all = Vec::new();
    for table in work.tables() {
        let sql =
            format!("SELECT count(*), coalesce(sum(hashtext(t::text)::bigint), 0)::bigint FROM {table} t");
        let row = client.query_one(&sql, &[]).await?;
        all.push((row.get(0), row.get(1)));
    }
    Ok(all)
}

/// Native's time and ours.
async fn round(
    servers: (&Server, &Server),
    plan: &Plan,
    work: Work,
    at: usize,
) -> Result<(Option<Duration>, Duration)> {
    let (source, target) = servers;
    let name = format!("{work:?}{at}").to_lowercase();
    let size = work.size(plan.small);
    let mut round = Round {
        source: format!("source_{name}"),
        native: format!("native_{name}"),
        own: format!("own_{name}"),
        from: Lsn::ZERO,
    };
    let client = source.database(&round.source, work, size).await?;
    client.batch_execute("CREATE PUBLICATION work FOR ALL TABLES").await?;
    slot::create_slot(&client, &round.native).await?;
    let spec = round.spec();
    slot::ensure_publication(&client, &spec.publication).await?;
    round.from = slot::create_slot(&client, &spec.slot).await?;
    let own_rows = target.database(&round.own, work, size).await?;
    let native_rows = target.database(&round.native, work, size).await?;
    let goal = perform(source, &client, &round.source, work, size).await?;
    own_rows.batch_execute("CHECKPOINT").await?;
    let (mut theirs, mut ours) = (None, None);
    for turn in 0..2 {
        if (turn + at).is_multiple_of(2) {
            ours = Some(own(source, target, &round, goal).await?);
        } else if !plan.alone {
            theirs = Some(native(source, target, &round, goal).await?);
        }
        own_rows.batch_execute("CHECKPOINT").await?;
    }
    let there = rows(&client, work).await?;
    ensure!(there == rows(&own_rows, work).await?, "Godwit's target differs from the source");
    if !plan.alone {
        ensure!(there == rows(&native_rows, work).await?, "the native target differs from the source");
        slot::drop_slot(&client, &round.native).await.ok();
    }
    slot::drop_slot(&client, &spec.slot).await?;
    drop((client, own_rows, native_rows));
    for (server, database) in [(source, &round.source), (target, &round.own), (target, &round.native)] {
        let admin = server.connect("postgres").await?;
        admin.batch_execute(&format!("DROP DATABASE {database} WITH (FORCE)")).await?;
    }
    Ok((theirs, ours.context("no turn of ours")?))
}

fn median(mut all: Vec<Duration>) -> f64 {
    all.sort();
    all.get(all.len() / 2).map_or(f64::NAN, Duration::as_secs_f64)
}

/// Runs it and prints seconds and ratios.
pub(crate) fn run(plan: &Plan) -> Result<()> {
    if cfg!(debug_assertions) {
        println!("built without optimisation: the ratio says little; use --release");
    }
    tokio::runtime::Runtime::new()?.block_on(measure(plan))
}

async fn measure(plan: &Plan) -> Result<()> {
    let (source, target) = (Server::start(plan.major)?, Server::start(plan.major)?);
    let all = [Work::Tpcb, Work::Insert, Work::Update, Work::Delete];
    let began = clock::monotonic();
    for work in all.into_iter().filter(|work| plan.work.is_none_or(|only| only == *work)) {
        let (mut theirs, mut ours) = (Vec::new(), Vec::new());
        for at in 0..plan.rounds {
            let (native, own) = round((&source, &target), plan, work, at).await?;
            println!(
                "  round {}: native {:.2} s, godwit {:.2} s",
                at + 1,
                native.map_or(f64::NAN, |took| took.as_secs_f64()),
                own.as_secs_f64()
            );
            theirs.extend(native);
            ours.push(own);
        }
        let (theirs, ours) = (median(theirs), median(ours));
        println!(
            "{}: native {theirs:.2} s, godwit {ours:.2} s: {:.2}x (medians of {})",
            work.describe(work.size(plan.small)),
            theirs / ours,
            plan.rounds
        );
    }
    println!("took {:.0} s in all", began.elapsed().as_secs_f64());
    Ok(())
}
