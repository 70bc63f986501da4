//! Heartbeats on real servers: what writes one row, what refuses to, and where a node writes it.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use godwit::controller::view::{PlacementView, ResourceView};
use godwit::demo::zone::{GODWIT_ROLE, Playground};
use godwit_tests::postgres::{TestCluster, other_major};
use replicator::heartbeat::{self, Beat, Refusal};
use replicator::{fence, lanes};
use tokio_postgres::Client;

use crate::leader::{Leader, connect, options};

const TABLE: &str = "CREATE TABLE orders (id bigserial PRIMARY KEY, note text)";

struct Setup {
    cluster: TestCluster,
    admin: Client,
    /// As the probe has it.
    probe: Client,
}

impl Setup {
    /// Godwit's role has what `godwit grants` gives it, and no more.
    async fn new(major: u32, settings: &str) -> Result<Self> {
        let cluster = TestCluster::start_with(major, settings)?;
        let admin = cluster.create_database("shop", TABLE).await?;
        let probe = replicator::postgres::connect(&cluster.config("shop"), "godwit-probe").await?;
        heartbeat::prepare(&probe).await?;
        Ok(Self { cluster, admin, probe })
    }

    async fn beat(&self, generation: u64) -> Result<Beat> {
        Ok(heartbeat::beat(&self.probe, "orders", generation).await?)
    }
}

/// How many were ever written there.
async fn beats(client: &Client) -> Result<i64> {
    let row = client.query_one("SELECT coalesce(sum(beats), 0)::bigint FROM godwit.heartbeat", &[]).await?;
    Ok(row.get(0))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_heartbeat_is_one_row_where_nothing_forbids_it() -> Result<()> {
    for major in [15, other_major()] {
        alone(major).await.with_context(|| format!("PostgreSQL {major}"))?;
    }
    Ok(())
}

async fn alone(major: u32) -> Result<()> {
    let setup = Setup::new(major, "").await?;
    let admin = &setup.admin;
    let refused = async |generation, why: Refusal| -> Result<()> {
        let before = beats(admin).await?;
        let beat = setup.beat(generation).await?;
        ensure!(beat == Beat::Refused(why.clone()), "{beat:?} instead of {why:?}");
        ensure!(beats(admin).await? == before, "written, though {why}");
        Ok(())
    };
    ensure!(setup.beat(1).await? == Beat::Refused(Refusal::NotInstalled));
    fence::install(admin, "orders", 1).await?;
    lanes::publish(admin, "orders", &[]).await?;
    for times in 1..=3 {
        ensure!(setup.beat(1).await? == Beat::Written);
        ensure!(beats(admin).await? == times);
    }
    ensure!(setup.probe.query("TABLE godwit.heartbeat", &[]).await?.len() == 1);
    let published = "SELECT FROM pg_publication_tables WHERE schemaname = 'godwit'";
    ensure!(admin.query(published, &[]).await?.is_empty(), "the shadow would be sent heartbeats");

    fence::guard(admin, "orders", 1).await?;
    refused(1, Refusal::Fenced { generation: 1 }).await?;
    fence::open(admin, "orders", 2, None).await?;
    refused(1, Refusal::Older { generation: 2 }).await?;
    ensure!(setup.beat(2).await? == Beat::Written);

    // Whoever closes or opens the fence has this row: nobody waits for that.
    admin.batch_execute("BEGIN; SELECT FROM godwit.epoch FOR UPDATE").await?;
    ensure!(setup.beat(2).await? == Beat::Refused(Refusal::Busy));
    admin.batch_execute("COMMIT").await?;
    // One that has not ended, as where the disk stands still: the next one gives up, on a connection that still works.
    admin.batch_execute("BEGIN; SELECT FROM godwit.heartbeat FOR UPDATE").await?;
    ensure!(setup.beat(2).await? == Beat::Refused(Refusal::Waiting));
    admin.batch_execute("COMMIT").await?;
    ensure!(setup.beat(2).await? == Beat::Written);

    setup.probe.batch_execute("SET default_transaction_read_only = on").await?;
    refused(2, Refusal::ReadOnly).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_heartbeat_waits_for_no_standby() -> Result<()> {
    let setup = Setup::new(15, "synchronous_standby_names = 'nobody'\nsynchronous_commit = local\n").await?;
    fence::install(&setup.admin, "orders", 1).await?;
    let superuser = setup.cluster.connect("shop").await?;
    let sql = format!(
        "ALTER DATABASE shop SET synchronous_commit = on; ALTER ROLE {GODWIT_ROLE} SET synchronous_commit = remote_apply"
    );
    superuser.batch_execute(&sql).await?;
    // A client's commit waits for ever.
    let client = setup.cluster.connect("shop").await?;
    let write =
        tokio::spawn(async move { client.batch_execute("INSERT INTO orders (note) VALUES ('x')").await });
    let waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'";
    let deadline = Instant::now() + Duration::from_secs(30);
    while superuser.query_one(waiting, &[]).await?.get::<_, i64>(0) == 0 {
        ensure!(Instant::now() < deadline && !write.is_finished(), "nothing waits for the standby");
        tokio::task::yield_now().await;
    }
    let probe = replicator::postgres::connect(&setup.cluster.config("shop"), "godwit-probe").await?;
    heartbeat::prepare(&probe).await?;
    ensure!(heartbeat::beat(&probe, "orders", 1).await? == Beat::Written);
    ensure!(!write.is_finished(), "the commit beside it no longer waits: nothing was shown");
    let end = "SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE wait_event = 'SyncRep'";
    superuser.query(end, &[]).await?;
    write.await?.context("committed here, as PostgreSQL warns")
}

fn of<'v>(view: &'v ResourceView, zone: &str) -> Option<&'v PlacementView> {
    view.placements.iter().find(|placement| placement.zone == zone)
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_primary_has_heartbeats_before_and_after_a_move() -> Result<()> {
    let playground = Playground::start(&options(false)?).await?;
    let mut leader = Leader::start(&playground, &[])?;
    let mut view = leader.ready().await?;
    for _ in 0..2 {
        let (primary, shadow) = (view.primary.clone(), view.shadow.clone());
        let (there, elsewhere) =
            (connect(leader.zone(&primary)).await?, connect(leader.zone(&shadow)).await?);
        // The shadow's may be left from when it was the primary: no further one comes.
        let left = beats(&elsewhere).await?;
        let before = beats(&there).await?;
        let seen = leader
            .until("heartbeats are measured", |view| {
                of(view, &primary).is_some_and(|placement| matches!(placement.heartbeat, Some(Ok(1..))))
            })
            .await?;
        ensure!(of(&seen, &shadow).is_some_and(|placement| placement.heartbeat.is_none()), "{seen:#?}");
        let deadline = Instant::now() + Duration::from_secs(30);
        while beats(&there).await? < before + 5 {
            if Instant::now() > deadline {
                bail!("no heartbeats in {primary}: {}\n{}", beats(&there).await?, leader.node.tail(30));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        ensure!(beats(&elsewhere).await? == left, "the shadow in {shadow} was written to");
        let rows = there.query_one("SELECT generation FROM godwit.heartbeat", &[]).await?;
        ensure!(u64::try_from(rows.get::<_, i64>(0))? == view.generation, "{rows:?}");
        leader.migrate(&shadow).await?;
        view =
            leader.until("it has moved", |view| view.primary == shadow && view.phase == "shadowing").await?;
    }
    Ok(())
}
