//! Transactions larger than the memory they may take: in blocks while they run, on the disk, in pieces over the link, and in one
//! transaction at the target.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use godwit_tests::postgres::{TestCluster, other_major, wal_position};
use replicator::Lsn;
use replicator::change::{Change, Transaction};
use replicator::copy::CopyOptions;
use replicator::error::Cause;
use replicator::link::memory::Options;
use replicator::postgres::slot;
use replicator::postgres::stream::{ReplicationStream, StreamEvent};
use replicator::pump::{LocalEnd, LocalPeer, StreamSpec, maintain};
use replicator::spill::{Committed, OpenTransactions, Spill};
use replicator::status::{Phase, StreamStatus};
use tokio::sync::watch;
use tokio_postgres::Client;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

const DATABASE: &str = "bulk";
const PATIENCE: Duration = Duration::from_mins(2);
/// For gigabytes.
const LONG: Duration = Duration::from_mins(10);

/// Blocks begin at once, and the server gives up a client that says nothing for a second.
const SETTINGS: &str =
    "logical_decoding_work_mem = '64kB'\nwal_sender_timeout = '1s'\nmax_wal_size = '4GB'\n";

const SCHEMA: &str = "CREATE TABLE t (id bigint PRIMARY KEY, body text, u int UNIQUE); ALTER TABLE t ALTER body SET STORAGE EXTERNAL; \
                      CREATE TABLE small (id bigint PRIMARY KEY, n int)";

fn spec() -> StreamSpec {
    StreamSpec {
        resource: "bulk".into(),
        generation: 1,
        slot: slot::slot_name("bulk", 1),
        publication: slot::publication_name("bulk"),
        origin: slot::origin_name("bulk"),
        source_zone: "a".into(),
        target_zone: "b".into(),
        synchronous: false,
    }
}

struct Pair {
    source: TestCluster,
    target: TestCluster,
    from: Client,
    to: Client,
}

impl Pair {
    async fn start(source: u32, target: u32) -> Result<Self> {
        let (source, target) =
            (TestCluster::start_with(source, SETTINGS)?, TestCluster::start_with(target, SETTINGS)?);
        let from = source.create_database(DATABASE, SCHEMA).await?;
        let to = target.create_database(DATABASE, SCHEMA).await?;
        for client in [&from, &to] {
            replicator::fence::install(client, "bulk", 1).await?;
        }
        // Both sides are equal at the start: no copy is needed.
        slot::ensure_publication(&from, &spec().publication).await?;
        let start = slot::create_slot(&from, &spec().slot).await?;
        replicator::apply::seed_progress(&to, &spec().slot, start, 1, None).await?;
        Ok(Self { source, target, from, to })
    }

    fn stream(&self, spill: Spill) -> (Arc<LocalPeer>, Running) {
        let peer = LocalPeer::new(
            LocalEnd::Target { dsn: self.target.config(DATABASE) },
            Options { delay: Duration::from_millis(2) },
        );
        let end = LocalEnd::Source {
            dsn: self.source.config(DATABASE),
            bin: None,
            spill,
            copy: CopyOptions::default(),
        };
        let running = Running::start(peer.clone(), end);
        (peer, running)
    }

    /// The source gives up a stream that says nothing for so long.
    async fn sender_timeout(&self, limit: &str) -> Result<()> {
        let administrator = self.source.connect(DATABASE).await?;
        administrator.batch_execute(&format!("ALTER SYSTEM SET wal_sender_timeout = '{limit}'")).await?;
        Ok(administrator.batch_execute("SELECT pg_reload_conf()").await?)
    }

    async fn equal(&self) -> Result<()> {
        for table in ["t", "small"] {
            let (left, right) = (digest(&self.from, table).await?, digest(&self.to, table).await?);
            ensure!(left == right, "{table} differs: {left:?} against {right:?}");
        }
        Ok(())
    }
}

async fn digest(client: &Client, table: &str) -> Result<(i64, String)> {
    let sql = format!("SELECT count(*), coalesce(sum(hashtextextended(x::text, 0)), 0)::text FROM {table} x");
    let row = client.query_one(&sql, &[]).await?;
    Ok((row.get(0), row.get(1)))
}

/// Who streams, and what it has reported.
async fn walsender(client: &Client) -> Result<(i32, Lsn, Lsn)> {
    let row = client
        .query_one("SELECT pid, coalesce(write_lsn, '0/0')::text, coalesce(flush_lsn, '0/0')::text FROM pg_stat_replication", &[])
        .await
        .context("one walsender")?;
    Ok((row.get(0), row.get::<_, &str>(1).parse()?, row.get::<_, &str>(2).parse()?))
}

/// The most memory that this process ever had, bytes.
fn peak_memory() -> Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).context("VmHWM")?;
    let kilobytes: u64 = line.split_whitespace().nth(1).context("a number")?.parse()?;
    Ok(kilobytes << 10)
}

struct Running {
    status: watch::Receiver<StreamStatus>,
    cancel: CancellationToken,
    task: AbortOnDropHandle<Result<(), replicator::Error>>,
    patience: Duration,
}

impl Running {
    fn start(peer: Arc<LocalPeer>, end: LocalEnd) -> Self {
        let (sender, status) = watch::channel(StreamStatus::default());
        let cancel = CancellationToken::new();
        let stop = cancel.clone();
        let task = tokio::spawn(async move { maintain(&*peer, &spec(), &end, &sender, &stop).await });
        Self { status, cancel, task: AbortOnDropHandle::new(task), patience: PATIENCE }
    }

    async fn wait(&self, what: &str, mut holds: impl FnMut(&StreamStatus) -> bool) -> Result<StreamStatus> {
        let mut status = self.status.clone();
        let found = tokio::time::timeout(self.patience, status.wait_for(|status| holds(status))).await;
        let found = found.ok().and_then(Result::ok).map(|status| status.clone());
        found.with_context(|| format!("{what}: never; last {:?}", *self.status.borrow()))
    }

    async fn stop(self) -> Result<()> {
        self.cancel.cancel();
        Ok(self.task.await??)
    }
}

/// What one client does in a transaction of its own, a step at a time.
async fn rows(client: &Client, from: i64, to: i64) -> Result<()> {
    let sql = "INSERT INTO t SELECT g, repeat(md5(g::text), 30), g FROM generate_series($1::bigint, $2) g";
    client.execute(sql, &[&from, &to]).await?;
    Ok(())
}

/// Reads until the transactions of `commits` have ended; counts how often the stream changed from one open transaction to
/// another, and how many savepoints were taken back.
async fn follow(
    stream: &mut ReplicationStream,
    spill: Spill,
    commits: usize,
) -> Result<(Vec<Transaction>, u32, u32)> {
    use replicator::pgoutput::Event;
    let mut open = OpenTransactions::new(spill);
    let (mut found, mut switches, mut savepoints, mut last) = (Vec::new(), 0, 0, 0);
    while found.len() < commits {
        let next = tokio::time::timeout(PATIENCE, stream.next()).await.context("no event")??;
        let StreamEvent::Transaction(event) = next else { continue };
        match &event {
            Event::Change { xid, .. } => {
                switches += u32::from(*xid != last && last != 0);
                last = *xid;
            }
            Event::Abort { xid, sub } => savepoints += u32::from(xid != sub),
            _ => {}
        }
        match open.handle(event).await? {
            None => {}
            Some(Committed::Whole(transaction)) if transaction.changes.is_empty() => {}
            Some(Committed::Whole(transaction)) => found.push(transaction),
            Some(Committed::Large(transaction)) => found.push(transaction.whole().await?),
        }
    }
    ensure!(open.work() == replicator::status::OpenWork::default(), "left: {:?}", open.work());
    Ok((found, switches, savepoints))
}

fn ids(transaction: &Transaction) -> Vec<i64> {
    let id = |change: &Change| match change {
        Change::Insert { new, .. } => match &new[0] {
            replicator::change::Cell::Text(text) => std::str::from_utf8(text).ok()?.parse().ok(),
            _ => None,
        },
        _ => None,
    };
    transaction.changes.iter().filter_map(id).collect()
}

async fn interleaved(major: u32) -> Result<()> {
    let cluster = TestCluster::start_with(major, SETTINGS)?;
    let first = cluster.create_database(DATABASE, SCHEMA).await?;
    slot::ensure_publication(&first, &spec().publication).await?;
    slot::create_slot(&first, &spec().slot).await?;
    let (second, third, fourth) = (
        cluster.connect(DATABASE).await?,
        cluster.connect(DATABASE).await?,
        cluster.connect(DATABASE).await?,
    );
    let mut stream =
        ReplicationStream::start(&cluster.config(DATABASE), &spec().slot, &spec().publication, Lsn::ZERO)
            .await?;
    let writers = async {
        first.batch_execute("BEGIN").await?;
        second.batch_execute("BEGIN").await?;
        fourth.batch_execute("BEGIN").await?;
        for round in 0..4i64 {
            rows(&first, round * 1_000, round * 1_000 + 499).await?;
            rows(&second, 100_000 + round * 1_000, 100_000 + round * 1_000 + 499).await?;
            // Taken back: a savepoint, with one inside it that was kept.
            first.batch_execute("SAVEPOINT a; SAVEPOINT b").await?;
            rows(&first, 50_000, 50_300).await?;
            first.batch_execute("RELEASE b").await?;
            rows(&first, 51_000, 51_300).await?;
            first.batch_execute("ROLLBACK TO a; RELEASE a; SAVEPOINT c").await?;
            rows(&first, 60_000 + round * 1_000, 60_000 + round * 1_000 + 200).await?;
            first.batch_execute("RELEASE c").await?;
            rows(&fourth, 200_000 + round * 1_000, 200_000 + round * 1_000 + 499).await?;
            third.execute("INSERT INTO small VALUES ($1, 1)", &[&round]).await?;
        }
        // A table changes shape inside a transaction that never happens, after the stream has told the new shape.
        fourth.batch_execute("ALTER TABLE small ADD COLUMN more text").await?;
        fourth
            .batch_execute(
                "INSERT INTO small SELECT g, 1, repeat('x', 900) FROM generate_series(1000, 1999) g",
            )
            .await?;
        fourth.batch_execute("ROLLBACK").await?;
        third.batch_execute("INSERT INTO small VALUES (100, 1)").await?;
        second.batch_execute("COMMIT").await?;
        first.batch_execute("COMMIT").await?;
        third.batch_execute("INSERT INTO small VALUES (101, 1)").await?;
        Ok::<_, anyhow::Error>(())
    };
    let directory = tempfile::tempdir()?;
    let spill = Spill { directory: directory.path().into(), memory: 256 << 10 };
    let (written, followed) = tokio::join!(writers, follow(&mut stream, spill, 8));
    written?;
    let (found, switches, savepoints) = followed?;
    ensure!(switches > 8, "{switches} switches: the server did not stream what was unfinished");
    ensure!(savepoints >= 4, "{savepoints} savepoints came back");
    let sizes: Vec<usize> = found.iter().map(|transaction| transaction.changes.len()).collect();
    ensure!(sizes == [1, 1, 1, 1, 1, 2_000, 2_000 + 4 * 201, 1], "{sizes:?}");
    for (transaction, owned) in [(&found[5], "id BETWEEN 100000 AND 199999"), (&found[6], "id < 100000")] {
        let wanted = first.query(&format!("SELECT id FROM t WHERE {owned} ORDER BY id"), &[]).await?;
        let wanted: Vec<i64> = wanted.iter().map(|row| row.get(0)).collect();
        let mut came = ids(transaction);
        came.sort_unstable();
        ensure!(
            came == wanted,
            "transaction {}: {} rows against {}",
            transaction.xid,
            came.len(),
            wanted.len()
        );
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unfinished_transactions_interleave_and_savepoints_go_back_15() -> Result<()> {
    interleaved(15).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unfinished_transactions_interleave_and_savepoints_go_back_18() -> Result<()> {
    interleaved(other_major()).await
}

/// Rows of about 1 kB each in one transaction, under a bound, with small ones beside it and a link that breaks in between.
async fn bulk(pair: &Pair, rows_in_all: i64, memory: u64, limit: u64) -> Result<()> {
    let directory = tempfile::tempdir()?;
    let (peer, mut stream) = pair.stream(Spill { directory: directory.path().into(), memory });
    stream.patience = if rows_in_all > 1_000_000 { LONG } else { PATIENCE };
    stream.wait("streaming", |status| status.phase == Phase::Streaming).await?;
    let (big, small) = (pair.source.connect(DATABASE).await?, pair.source.connect(DATABASE).await?);
    big.batch_execute("BEGIN").await?;
    let mut seen = replicator::status::OpenWork::default();
    for part in 0..10 {
        let (from, to) = (part * rows_in_all / 10, (part + 1) * rows_in_all / 10 - 1);
        rows(&big, from, to).await?;
        small.execute("INSERT INTO small VALUES ($1, 0)", &[&part]).await?;
        // What commits in between does not wait for it.
        let now = wal_position(&small).await?;
        let status = stream.wait("a small one passes", |status| status.applied_lsn >= now).await?;
        ensure!(status.open.memory_bytes <= memory, "over the bound: {:?}", status.open);
        seen.disk_bytes = seen.disk_bytes.max(status.open.disk_bytes);
    }
    big.batch_execute(
        "SAVEPOINT s; DELETE FROM t WHERE id % 7 = 0; ROLLBACK TO s; UPDATE t SET u = -1 WHERE id = 1; \
         UPDATE t SET u = 1 WHERE id = 2; UPDATE t SET u = 2 WHERE id = 1; DELETE FROM t WHERE id = 3; COMMIT",
    )
    .await?;
    let committed = Instant::now();
    ensure!(seen.disk_bytes > rows_in_all as u64 * 900 / 2, "spilled only {} bytes", seen.disk_bytes);
    let (names, now) = (std::fs::read_dir(directory.path())?.count(), wal_position(&small).await?);
    ensure!(names == 0, "{names} spill files have names");
    // In the middle of its way to the target.
    tokio::time::sleep(Duration::from_millis(300)).await;
    ensure!(digest(&pair.to, "t").await?.0 == 0, "half of a transaction is visible");
    peer.cut();
    stream.wait("the cut is noticed", |status| status.phase != Phase::Streaming).await?;
    stream.wait("caught up", |status| status.applied_lsn >= now).await?;
    println!(
        "{rows_in_all} rows, {} MB on the disk, applied {:?} after the commit, one cut included; peak of both halves {} MiB",
        seen.disk_bytes >> 20,
        committed.elapsed(),
        peak_memory()? >> 20
    );
    pair.equal().await?;
    let failures = stream.status.borrow().failures.clone();
    ensure!(failures.len() == 1 && failures.get(&Cause::Link) == Some(&1), "more than the cut: {failures:?}");
    ensure!(peak_memory()? < limit, "{} bytes of memory", peak_memory()?);
    stream.stop().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hundred_megabytes_under_sixteen() -> Result<()> {
    let pair = Pair::start(15, other_major()).await?;
    bulk(&pair, 200_000, 16 << 20, 192 << 20).await
}

/// `make test-large`
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes minutes and 10 GB of disk"]
async fn two_gigabytes_under_the_usual_bound() -> Result<()> {
    let pair = Pair::start(15, other_major()).await?;
    // A disk that two servers and the spill write to at once may stand still for more than a second.
    pair.sender_timeout("10s").await?;
    bulk(&pair, 2_000_000, Spill::MEMORY, 256 << 20).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_conflict_or_a_failing_disk_in_the_middle_leaves_nothing_and_loses_nothing() -> Result<()> {
    let pair = Pair::start(other_major(), 15).await?;
    let directory = tempfile::tempdir()?;
    let spill = Spill { directory: directory.path().join("spill"), memory: 1 << 20 };
    // Where the directory should be there is a file.
    std::fs::write(&spill.directory, "in the way")?;
    pair.to.batch_execute("INSERT INTO t VALUES (7000, 'not from the source', 7000)").await?;
    let (_peer, stream) = pair.stream(spill.clone());
    stream.wait("streaming", |status| status.phase == Phase::Streaming).await?;
    rows(&pair.from, 0, 7_999).await?;
    rows(&pair.from, 8_000, 8_010).await?;
    let now = wal_position(&pair.from).await?;

    let named = spill.directory.display().to_string();
    stream.wait("the disk fails", |status| failed(status, &[&named, "(os error"])).await?;
    std::fs::remove_file(&spill.directory)?;

    stream.wait("the conflict", |status| failed(status, &["conflict on public.t", "(id)=(7000)"])).await?;
    ensure!(digest(&pair.to, "t").await?.0 == 1, "a part of the transaction is visible");
    pair.to.batch_execute("DELETE FROM t").await?;
    stream.wait("caught up", |status| status.applied_lsn >= now).await?;
    pair.equal().await?;
    let failures = stream.status.borrow().failures.clone();
    // The conflict is the other half's; here it is what that half says.
    let causes: Vec<&Cause> = failures.keys().collect();
    ensure!(causes == [&Cause::Disk, &Cause::Unready], "{failures:?}");
    stream.stop().await
}

fn failed(status: &StreamStatus, words: &[&str]) -> bool {
    matches!(&status.phase, Phase::Failed { error, retrying: true } if words.iter().all(|word| error.contains(word)))
}

/// A release that alters one table again and again, and writes it in each shape, in one transaction.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transaction_shows_a_table_in_any_number_of_shapes() -> Result<()> {
    let pair = Pair::start(15, other_major()).await?;
    let column = |number: i64| format!("ALTER TABLE small ADD COLUMN c{number} int DEFAULT 0; ");
    let directory = tempfile::tempdir()?;
    let (_peer, stream) = pair.stream(Spill { directory: directory.path().into(), memory: 64 << 10 });
    stream.wait("streaming", |status| status.phase == Phase::Streaming).await?;
    // The other one comes while it runs, and is too large to be kept in memory.
    for (shapes, before) in [(0..20, 1), (20..40, 5_000)] {
        let first = shapes.start * 10_000;
        pair.to.batch_execute(&shapes.clone().map(column).collect::<String>()).await?;
        let mut sql = format!(
            "BEGIN; INSERT INTO small SELECT n, 1 FROM generate_series({first}, {first} + {before}) n; "
        );
        for number in shapes {
            let id = first + 8_000 + number;
            sql += &format!("{} INSERT INTO small (id, n, c{number}) VALUES ({id}, 2, 3); ", column(number));
        }
        pair.from.batch_execute(&(sql + "COMMIT")).await?;
        let now = wal_position(&pair.from).await?;
        stream.wait("it is applied", |status| status.applied_lsn >= now).await?;
        pair.equal().await?;
    }
    ensure!(stream.status.borrow().failures.is_empty(), "{:?}", stream.status.borrow().failures);
    stream.stop().await
}

/// The target's table is locked for much longer than `wal_sender_timeout`, while the source writes far more than fits on the
/// way.
async fn blocked(source: &str, held: Duration) -> Result<()> {
    let pair = Pair::start(15, other_major()).await?;
    pair.sender_timeout(source).await?;
    let (_peer, stream) = pair.stream(Spill::default());
    stream.wait("streaming", |status| status.phase == Phase::Streaming).await?;
    let (sender, ..) = walsender(&pair.from).await?;
    let lock = pair.target.connect(DATABASE).await?;
    lock.batch_execute("BEGIN; LOCK TABLE t").await?;
    let began = Instant::now();
    let (mut written, mut apart) = (0, false);
    while began.elapsed() < held {
        if written < 60 {
            rows(&pair.from, written * 1_000, written * 1_000 + 999).await?;
            written += 1;
        } else {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let (pid, write, flush) = walsender(&pair.from).await?;
        ensure!(pid == sender, "the server gave the stream up after {:?}", began.elapsed());
        apart |= write > flush;
    }
    ensure!(apart, "what was received was never told apart from what is durable");
    let checkpoint: String =
        pair.to.query_one("SELECT applied_lsn::text FROM godwit.progress", &[]).await?.get(0);
    let (_, write, flush) = walsender(&pair.from).await?;
    ensure!(flush <= checkpoint.parse()?, "more than what is durable was reported");
    let end = wal_position(&pair.from).await?;
    ensure!(end.bytes_since(write) > 10 << 20, "nothing held the source back: {write} of {end}");
    lock.batch_execute("COMMIT").await?;
    stream.wait("caught up", |status| status.applied_lsn >= end).await?;
    ensure!(walsender(&pair.from).await?.0 == sender, "the stream broke");
    pair.equal().await?;
    stream.stop().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_applier_that_is_stuck_does_not_break_the_stream() -> Result<()> {
    blocked("1s", Duration::from_secs(6)).await
}

/// `make test-large`
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes half a minute of waiting"]
async fn an_applier_that_is_stuck_for_half_a_minute_does_not_break_the_stream() -> Result<()> {
    blocked("5s", Duration::from_secs(30)).await
}
