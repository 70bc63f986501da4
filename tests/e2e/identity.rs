//! A stream goes on from the cluster that it was seeded from, and from no other: not from a restored copy, not from one of
//! the same name, not from an older self.

use std::time::Duration;

use anyhow::{Result, bail, ensure};
use godwit_tests::postgres::{TestCluster, other_major, wal_position};
use replicator::copy::CopyOptions;
use replicator::link::memory::Options;
use replicator::postgres::slot;
use replicator::pump::{LocalEnd, LocalPeer, StreamSpec, maintain};
use replicator::spill::Spill;
use replicator::status::{Phase, StreamStatus};
use replicator::{fence, identity};
use tokio::sync::watch;
use tokio_postgres::Client;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

const DATABASE: &str = "shop";
const PATIENCE: Duration = Duration::from_secs(60);

fn spec() -> StreamSpec {
    StreamSpec {
        resource: "shop".into(),
        generation: 1,
        slot: slot::slot_name("shop", 1),
        publication: slot::publication_name("shop"),
        origin: slot::origin_name("shop"),
        source_zone: "a".into(),
        target_zone: "b".into(),
        synchronous: false,
    }
}

struct Stream {
    status: watch::Receiver<StreamStatus>,
    _task: AbortOnDropHandle<Result<(), replicator::Error>>,
}

impl Stream {
    fn start(source: &TestCluster, target: &TestCluster) -> Self {
        let peer = LocalPeer::new(LocalEnd::Target { dsn: target.config(DATABASE) }, Options::default());
        let end = LocalEnd::Source {
            dsn: source.config(DATABASE),
            bin: Some(target.cluster.bin.clone()),
            spill: Spill::default(),
            copy: CopyOptions::default(),
        };
        let (sender, status) = watch::channel(StreamStatus::default());
        let task =
            tokio::spawn(
                async move { maintain(&*peer, &spec(), &end, &sender, &CancellationToken::new()).await },
            );
        Self { status, _task: AbortOnDropHandle::new(task) }
    }

    async fn wait(&self, reached: impl Fn(&StreamStatus) -> bool) -> Result<StreamStatus> {
        let mut status = self.status.clone();
        match tokio::time::timeout(PATIENCE, status.wait_for(reached)).await {
            Ok(Ok(status)) => Ok(status.clone()),
            _ => bail!("never came to be; last {:?}", *self.status.borrow()),
        }
    }

    async fn applied(&self, source: &Client) -> Result<()> {
        let position = wal_position(source).await?;
        self.wait(|status| status.applied_lsn >= position).await.map(drop)
    }
}

async fn names(client: &Client) -> Result<Vec<String>> {
    let rows = client.query("SELECT name FROM things ORDER BY id", &[]).await?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

/// The stream refuses `source`, says why and what to do, asks nothing of its slot, and the target stays as it was.
async fn refuses(source: &TestCluster, target: &TestCluster, to: &Client, why: &str) -> Result<()> {
    let client = source.connect(DATABASE).await?;
    let position = async || -> Result<_> {
        Ok(slot::slot_info(&client, &spec().slot).await?.map(|slot| (slot.confirmed_flush, slot.active)))
    };
    let (before, had) = (position().await?, names(to).await?);
    let stream = Stream::start(source, target);
    let failed = |status: &StreamStatus| matches!(&status.phase, Phase::Failed { .. });
    let Phase::Failed { error, .. } = stream.wait(failed).await?.phase else { bail!("not failed") };
    ensure!(error.contains(why) && error.contains("re-seed"), "{error}");
    // It is tried again, in case an operator corrects the configuration: always with the same answer.
    let again = |status: &StreamStatus| status.failures.values().sum::<u64>() > 1;
    let status = stream.wait(again).await?;
    ensure!(status.transactions == 0 && status.failures.len() == 1, "{status:?}");
    ensure!(position().await? == before, "the slot was touched: {before:?}");
    ensure!(names(to).await? == had, "rows of another cluster were applied");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_never_goes_on_from_another_cluster() -> Result<()> {
    let (source, target) = (TestCluster::start(15)?, TestCluster::start(other_major())?);
    let schema = "CREATE TABLE things (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, name text)";
    let from = source.create_database(DATABASE, schema).await?;
    let to = target.create_database(DATABASE, "").await?;
    fence::install(&from, "shop", 1).await?;
    // As an older version made it: the columns are added.
    fence::install(&to, "shop", 1).await?;
    to.batch_execute("ALTER TABLE godwit.progress DROP COLUMN source_system, DROP COLUMN source_timeline")
        .await?;
    fence::install(&to, "shop", 1).await?;

    let stream = Stream::start(&source, &target);
    stream.wait(|status| status.phase == Phase::Streaming).await?;
    from.batch_execute("INSERT INTO things (name) VALUES ('first')").await?;
    stream.applied(&from).await?;
    let known = identity::of_checkpoint(&to, &spec().slot).await?;
    ensure!(known.is_some() && known == identity::of(&from).await?, "{known:?}");
    drop(stream);

    // A checkpoint of an older version knows no source: it takes the one that holds its slot.
    to.batch_execute("UPDATE godwit.progress SET source_system = NULL, source_timeline = NULL").await?;
    let stream = Stream::start(&source, &target);
    from.batch_execute("INSERT INTO things (name) VALUES ('second')").await?;
    stream.applied(&from).await?;
    ensure!(identity::of_checkpoint(&to, &spec().slot).await? == known);
    drop(stream);

    // Restored and promoted; somebody was kind enough to make the slot again.
    let restored = source.restored()?;
    let there = restored.connect(DATABASE).await?;
    let fork = identity::of(&there).await?;
    ensure!(fork.map(|id| id.system) == known.map(|id| id.system) && fork != known, "{fork:?}");
    slot::create_slot(&there, &spec().slot).await?;
    there.batch_execute("INSERT INTO things (name) VALUES ('of the fork')").await?;
    refuses(&restored, &target, &to, "restored or promoted").await?;

    // Another cluster with the same names in it.
    let stranger = TestCluster::start(15)?;
    let there = stranger.create_database(DATABASE, schema).await?;
    slot::ensure_publication(&there, &spec().publication).await?;
    slot::create_slot(&there, &spec().slot).await?;
    there.batch_execute("INSERT INTO things (name) VALUES ('of a stranger')").await?;
    refuses(&stranger, &target, &to, "another cluster").await?;

    // A snapshot of the disk: same identifier, same timeline, slot and all, but older than what the shadow has.
    drop(from);
    source.cluster.stop("fast")?;
    let older = source.snapshot()?;
    source.cluster.start()?;
    let from = source.connect(DATABASE).await?;
    let stream = Stream::start(&source, &target);
    from.batch_execute("INSERT INTO things (name) SELECT repeat('third', 20000)").await?;
    stream.applied(&from).await?;
    drop(stream);
    older.cluster.start()?;
    refuses(&older, &target, &to, "restored from an older copy").await?;
    // It serves on, and what it has where the shadow's position was is something else.
    let grown = older.connect(DATABASE).await?;
    grown.batch_execute("INSERT INTO things (name) SELECT repeat('of the older', 90000)").await?;
    while wal_position(&grown).await? <= wal_position(&from).await? {
        grown
            .batch_execute("SELECT pg_switch_wal(); INSERT INTO things (name) VALUES ('of the older')")
            .await?;
    }
    refuses(&older, &target, &to, "restored from an older copy").await?;
    drop(grown);

    // And the right one goes on as if nothing had been.
    let stream = Stream::start(&source, &target);
    from.batch_execute("INSERT INTO things (name) VALUES ('fourth')").await?;
    stream.applied(&from).await?;
    ensure!(names(&to).await? == names(&from).await?);
    Ok(())
}
