//! From commit to visible on the target, at a steady rate: Godwit over QUIC against native logical replication.
//!
//! Transaction k of one row is due at k / rate, whatever became of those before it; its clock runs from the answer to its COMMIT
//! until a session of the target that looks every half millisecond sees the row. Both sides get the same load, one after the other, in
//! turns, and are looked at in the same way; what is visible before the answer counts as zero.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Args;
use godwit::clock;
use replicator::copy::CopyOptions;
use replicator::postgres::slot;
use replicator::pump::{LocalEnd, StreamSpec, maintain};
use replicator::spill::Spill;
use replicator::status::{Phase, StreamStatus};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::link::Served;
use super::{PATIENCE, Server};

/// Sessions that commit.
const CLIENTS: u64 = 8;
/// Between two looks.
const LOOK: Duration = Duration::from_micros(500);
const TABLE: &str = "CREATE TABLE ticks (id bigint PRIMARY KEY, note text)";

/// How fast, how long, how often.
#[derive(Args, Clone, Debug)]
pub(crate) struct Plan {
    /// Transactions per second.
    #[arg(long, default_value_t = 1_000)]
    rate: u64,
    /// Seconds of load for each side and round.
    #[arg(long, default_value_t = 20)]
    seconds: u64,
    /// Rounds; medians are over these.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// A fifth of the time.
    #[arg(long)]
    small: bool,
    /// PostgreSQL's major version.
    #[arg(long, default_value_t = 15)]
    major: u32,
}

/// What one side did in one round, milliseconds.
#[derive(Clone, Copy, Debug)]
struct Lag {
    p50: f64,
    p99: f64,
    max: f64,
}

impl Lag {
    fn of(mut all: Vec<Duration>) -> Option<Self> {
        all.sort_unstable();
        let at = |share: f64| {
            let place = ((all.len() as f64 * share) as usize).min(all.len().saturating_sub(1));
            all.get(place).map(|lag| lag.as_secs_f64() * 1e3)
        };
        Some(Self { p50: at(0.5)?, p99: at(0.99)?, max: at(1.0)? })
    }
}

impl std::fmt::Display for Lag {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "p50 {:.1} ms, p99 {:.1} ms, max {:.1} ms", self.p50, self.p99, self.max)
    }
}

/// Transactions at a steady rate.
struct Load<'a> {
    servers: (&'a Server, &'a Server),
    name: &'a str,
    rate: u64,
    count: u64,
}

impl Load<'_> {
    /// The lags of transactions into the first server, seen on the second. Who commits and who looks have a thread each, where no
    /// task of Godwit stands between an answer and the clock.
    fn run(&self) -> Result<Vec<Duration>> {
        let start = clock::monotonic() + Duration::from_millis(200);
        let (committed, seen) = std::thread::scope(|scope| {
            let writers = scope.spawn(|| runtime()?.block_on(self.commit(start)));
            let viewer = scope.spawn(|| runtime()?.block_on(self.look(start)));
            (outcome(writers.join()), outcome(viewer.join()))
        });
        let pairs = seen?.into_iter().zip(committed?);
        Ok(pairs.map(|(seen, committed)| seen.saturating_duration_since(committed)).collect())
    }

    /// When each COMMIT was answered.
    async fn commit(&self, start: Instant) -> Result<Vec<Instant>> {
        let mut writers = Vec::new();
        for client in 0..CLIENTS {
            let session = self.servers.0.connect(self.name).await?;
            session.batch_execute("SET synchronous_commit = local").await?;
            let insert = session.prepare("INSERT INTO ticks VALUES ($1, 'a note of some length')").await?;
            let (count, rate) = (self.count, self.rate);
            writers.push(tokio::spawn(async move {
                let mut committed = Vec::new();
                for number in (client..count).step_by(CLIENTS as usize) {
                    let due = start + Duration::from_nanos(1_000_000_000 / rate * number);
                    tokio::time::sleep_until(due.into()).await;
                    session.execute(&insert, &[&i64::try_from(number)?]).await?;
                    committed.push((number, clock::monotonic()));
                }
                anyhow::Ok(committed)
            }));
        }
        let mut committed = Vec::new();
        for writer in writers {
            committed.extend(writer.await??);
        }
        committed.sort_unstable();
        Ok(committed.into_iter().map(|(_, at)| at).collect())
    }

    /// When each row was seen.
    async fn look(&self, start: Instant) -> Result<Vec<Instant>> {
        let target = self.servers.1.connect(self.name).await?;
        let look = target.prepare("SELECT id FROM ticks WHERE id >= $1").await?;
        let count = self.count as usize;
        let mut seen: Vec<Option<Instant>> = vec![None; count];
        // All before this one were seen.
        let mut low = 0;
        while low < count {
            ensure!(start.elapsed() < PATIENCE, "only {low} of {count} transactions became visible");
            // Of the thread: the runtime's timer is as coarse as what is measured, and in step with the commits.
            std::thread::sleep(LOOK);
            let rows = target.query(&look, &[&i64::try_from(low)?]).await?;
            let now = clock::monotonic();
            for row in &rows {
                let id = usize::try_from(row.get::<_, i64>(0))?;
                seen[id].get_or_insert(now);
            }
            while seen.get(low).is_some_and(Option::is_some) {
                low += 1;
            }
        }
        seen.into_iter().collect::<Option<_>>().context("a row that was not seen")
    }
}

fn runtime() -> Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?)
}

fn outcome<T>(joined: std::thread::Result<Result<T>>) -> Result<T> {
    joined.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

async fn native(servers: (&Server, &Server), name: &str, rate: u64, count: u64) -> Result<Lag> {
    let (near, far) = servers;
    let from = near.connect(name).await?;
    from.batch_execute("CREATE PUBLICATION work FOR TABLE ticks").await?;
    slot::create_slot(&from, name).await?;
    let to = far.connect(name).await?;
    to.batch_execute(&format!(
        "CREATE SUBSCRIPTION {name} CONNECTION 'host={} port={} user=postgres dbname={name}' PUBLICATION work \
         WITH (create_slot = false, copy_data = false, slot_name = '{name}')",
        near.cluster.host, near.cluster.port
    ))
    .await?;
    let sql = format!(
        "SELECT EXISTS (SELECT FROM pg_stat_replication WHERE application_name = '{name}' AND state = 'streaming')"
    );
    let began = clock::monotonic();
    while !from.query_one(&sql, &[]).await?.get::<_, bool>(0) {
        ensure!(began.elapsed() < PATIENCE, "native replication did not start");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let lags = Load { servers, name, rate, count }.run()?;
    to.batch_execute(&format!("DROP SUBSCRIPTION {name}")).await?;
    Lag::of(lags).context("no transactions")
}

async fn own(servers: (&Server, &Server), name: &str, rate: u64, count: u64) -> Result<Lag> {
    let (near, far) = servers;
    let from = near.connect(name).await?;
    let spec = StreamSpec {
        resource: name.to_owned(),
        generation: 1,
        slot: slot::slot_name(name, 1),
        publication: slot::publication_name(name),
        origin: slot::origin_name(name),
        source_zone: "a".into(),
        target_zone: "b".into(),
        synchronous: false,
    };
    slot::ensure_publication(&from, &spec.publication).await?;
    let start = slot::create_slot(&from, &spec.slot).await?;
    let to = far.connect(name).await?;
    replicator::fence::install(&to, "bench", 1).await?;
    replicator::apply::seed_progress(&to, &spec.slot, start, 1, None).await?;
    let served = Served::start(far, name)?;
    let connector = served.connector(served.address()?)?;
    let end = LocalEnd::Source {
        dsn: near.config(name).into(),
        bin: None,
        spill: Spill::default(),
        copy: CopyOptions::default(),
    };
    let (sender, mut status) = watch::channel(StreamStatus::default());
    let cancel = CancellationToken::new();
    let (stop, of) = (cancel.clone(), spec.clone());
    let task = tokio::spawn(async move { maintain(&*connector, &of, &end, &sender, &stop).await });
    let streaming = status.wait_for(|status| status.phase == Phase::Streaming);
    tokio::time::timeout(PATIENCE, streaming).await.context("godwit did not start")??;
    let lags = Load { servers, name, rate, count }.run()?;
    cancel.cancel();
    task.await??;
    slot::drop_slot(&from, &spec.slot).await?;
    Lag::of(lags).context("no transactions")
}

/// Runs it and prints lags and the ratio.
pub(crate) fn run(plan: &Plan) -> Result<()> {
    super::run(measure(plan))
}

async fn measure(plan: &Plan) -> Result<()> {
    ensure!((1..=1_000_000).contains(&plan.rate), "the rate must be between 1 and a million");
    let (near, far) = (Server::start(plan.major)?, Server::start(plan.major)?);
    let count = plan.rate * if plan.small { plan.seconds.div_ceil(5) } else { plan.seconds };
    let (mut theirs, mut ours) = (Vec::new(), Vec::new());
    for at in 0..plan.rounds {
        for turn in 0..2 {
            let mine = (turn + at).is_multiple_of(2);
            let name = format!("{}_{at}", if mine { "own" } else { "native" });
            for server in [&near, &far] {
                server.connect("postgres").await?.batch_execute(&format!("CREATE DATABASE {name}")).await?;
                server.connect(&name).await?.batch_execute(TABLE).await?;
            }
            let servers = (&near, &far);
            let lag = if mine {
                own(servers, &name, plan.rate, count).await?
            } else {
                native(servers, &name, plan.rate, count).await?
            };
            println!("  round {}: {} {lag}", at + 1, if mine { "godwit" } else { "native" });
            if mine { ours.push(lag) } else { theirs.push(lag) }
        }
    }
    let median = |all: &[Lag], of: fn(&Lag) -> f64| {
        let mut all: Vec<f64> = all.iter().map(of).collect();
        all.sort_by(f64::total_cmp);
        all.get(all.len() / 2).copied().unwrap_or(f64::NAN)
    };
    let (native, own) = (median(&theirs, |lag| lag.p99), median(&ours, |lag| lag.p99));
    println!(
        "commit to visible at {} tx/s: p99 native {native:.1} ms, godwit {own:.1} ms: {:.2} of native's; p50 {:.1} and {:.1} ms \
         (medians of {})",
        plan.rate,
        own / native,
        median(&theirs, |lag| lag.p50),
        median(&ours, |lag| lag.p50),
        plan.rounds
    );
    Ok(())
}
