//! What replication costs and how fast it is, beside PostgreSQL's own.

pub(crate) mod catch_up;
pub(crate) mod copy;
pub(crate) mod lag;
mod link;
pub(crate) mod wan;

use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use godwit::clock;
use godwit::demo::zone::free_ports;
use godwit::drivers::process::cluster::{Cluster, installed};
use replicator::link::Dial;
use replicator::lsn::Lsn;
use replicator::pump::{LocalEnd, StreamSpec, maintain};
use replicator::status::{Phase, StreamStatus};
use tokio::sync::watch;
use tokio_postgres::{Client, NoTls};
use tokio_util::sync::CancellationToken;

/// How long one side may take.
const PATIENCE: Duration = Duration::from_mins(15);
/// The last line spares native replication a wait of up to 5 s before its worker starts.
const SETTINGS: &str = "fsync = on\nshared_buffers = 512MB\nmax_wal_size = 16GB\ncheckpoint_timeout = 1h\n\
    autovacuum = off\nwal_level = logical\nmax_worker_processes = 16\n\
    wal_retrieve_retry_interval = 50ms\n";

/// A server of its own, gone with its files when it is dropped.
pub(crate) struct Server {
    pub(crate) cluster: Cluster,
    directory: PathBuf,
}

impl Server {
    pub(crate) fn start(major: u32) -> Result<Self> {
        Self::start_with(major, "")
    }

    /// The same with more lines for postgresql.conf.
    pub(crate) fn start_with(major: u32, settings: &str) -> Result<Self> {
        let bin =
            installed(major).with_context(|| format!("PostgreSQL {major} is not here: run make setup"))?;
        let directory = tempfile::Builder::new().prefix("godwit-bench-").tempdir()?.keep();
        std::fs::set_permissions(&directory, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
        let port = free_ports(1)?.pop().context("no free port")?;
        let cluster = Cluster { bin, data: directory.join("data"), host: "127.0.0.1".into(), port };
        let this = Self { cluster, directory };
        this.cluster.init(&format!("{SETTINGS}{settings}"))?;
        this.cluster.start()?;
        Ok(this)
    }

    pub(crate) fn config(&self, database: &str) -> tokio_postgres::Config {
        let mut config = tokio_postgres::Config::new();
        config.host(&self.cluster.host).port(self.cluster.port).user("postgres").dbname(database);
        config
    }

    pub(crate) async fn connect(&self, database: &str) -> Result<Client> {
        let (client, connection) = self.config(database).connect(NoTls).await?;
        tokio::spawn(connection);
        Ok(client)
    }

    pub(crate) fn pgbench(&self, database: &str, arguments: &[&str]) -> Result<()> {
        let out = Command::new(self.cluster.bin.join("pgbench"))
            .args(["-h", &self.cluster.host, "-p", &self.cluster.port.to_string(), "-U", "postgres"])
            .args(arguments)
            .arg(database)
            .env("PGOPTIONS", "-c synchronous_commit=off")
            .output()?;
        ensure!(out.status.success(), "pgbench failed: {}", String::from_utf8_lossy(&out.stderr));
        Ok(())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.cluster.stop("immediate");
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

fn median(mut all: Vec<Duration>) -> f64 {
    all.sort();
    all.get(all.len() / 2).map_or(f64::NAN, Duration::as_secs_f64)
}

/// Number and sum of hashes of each table's rows.
async fn rows(client: &Client, tables: &[&str]) -> Result<Vec<(i64, i64)>> {
    let mut all = Vec::new();
    for table in tables {
        let sql =
            format!("SELECT count(*), coalesce(sum(hashtext(t::text)::bigint), 0)::bigint FROM {table} t");
        let row = client.query_one(&sql, &[]).await?;
        all.push((row.get(0), row.get(1)));
    }
    Ok(all)
}

/// How often somebody looks where a stream is: as often for each side, since who is woken by each report costs it more.
const ASK: Duration = Duration::from_millis(10);

/// How long a stream takes from its start until the target has applied everything up to `goal`; it is ended then.
async fn caught_up(dial: Arc<dyn Dial>, spec: StreamSpec, end: LocalEnd, goal: Lsn) -> Result<Duration> {
    let (sender, status) = watch::channel(StreamStatus::default());
    let cancel = CancellationToken::new();
    let stop = cancel.clone();
    let began = clock::monotonic();
    let task = tokio::spawn(async move { maintain(&*dial, &spec, &end, &sender, &stop).await });
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

/// Runs a measurement; says so where its figures mean little.
fn run(measurement: impl Future<Output = Result<()>>) -> Result<()> {
    if cfg!(debug_assertions) {
        println!("built without optimisation: the ratio says little; use --release");
    }
    tokio::runtime::Runtime::new()?.block_on(measurement)
}
