//! A stream that lags far behind reads what its slot retains by SQL, and goes over to streaming.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use godwit_tests::postgres::{TestCluster, other_major, wal_position};
use replicator::link::memory::Options;
use replicator::postgres::slot;
use replicator::pump::LocalPeer;
use replicator::status::Phase;
use tokio_postgres::Client;

use crate::stream::{DATABASE, PATIENCE, Pair, Running, SCHEMA, hard_changes, seed_rows, spec};

/// Copies of slots that backlogs are read from now.
async fn copies(client: &Client) -> Result<i64> {
    let sql =
        r"SELECT count(*) FROM pg_replication_slots WHERE temporary AND slot_name LIKE 'godwit\_backlog\_%'";
    Ok(client.query_one(sql, &[]).await?.get(0))
}

/// Far more than is worth reading by SQL: small transactions, a large one, what was taken back, what an applier of Godwit
/// wrote, and everything that cannot be batched.
async fn pile_up(pair: &Pair) -> Result<()> {
    let client = &pair.from;
    for sql in [
        "CREATE PROCEDURE pile_up(first int, last int) LANGUAGE plpgsql AS $$ BEGIN FOR g IN first..last LOOP \
           INSERT INTO ledger VALUES (g, -1, g); UPDATE ledger SET n = n + 1 WHERE id = g - 1; \
           DELETE FROM ledger WHERE id = g - 100; COMMIT; END LOOP; END $$",
        "CALL pile_up(1, 12000)",
        "BEGIN; INSERT INTO words SELECT 'w' || g, 1000000 + g FROM generate_series(1, 60000) g; \
         SAVEPOINT s; INSERT INTO words SELECT 'x' || g, -g FROM generate_series(1, 30000) g; ROLLBACK TO s; \
         UPDATE words SET n = n + 0.5 WHERE n % 2 = 0; COMMIT",
        "BEGIN; DELETE FROM words; ROLLBACK",
    ] {
        client.batch_execute(sql).await.with_context(|| sql.to_owned())?;
    }
    hard_changes(client).await?;
    client.batch_execute("CALL pile_up(12001, 20000)").await?;
    // What came from the other side must not go back there: these rows would violate its keys.
    let applier = pair.source.connect(DATABASE).await?;
    applier
        .batch_execute(
            "SELECT pg_replication_origin_create('godwit_shop'); SELECT pg_replication_origin_session_setup('godwit_shop'); BEGIN; \
             INSERT INTO words SELECT 'own' || g, 3000000 + g FROM generate_series(1, 60000) g; COMMIT; BEGIN; \
             DELETE FROM words WHERE word LIKE 'own%'; COMMIT",
        )
        .await?;
    client.batch_execute("CALL pile_up(20001, 24000)").await?;
    Ok(())
}

/// A transaction that is open while another database writes more than two chunks: one of them brings nothing.
async fn wide(pair: &Pair) -> Result<()> {
    let client = &pair.from;
    client
        .batch_execute(
            "BEGIN; INSERT INTO words SELECT 'wide' || g, 5000000 + g FROM generate_series(1, 20000) g",
        )
        .await?;
    let before = wal_position(client).await?;
    let elsewhere = pair.source.connect("postgres").await?;
    elsewhere
        .batch_execute(
            "CREATE TABLE filler (t text); ALTER TABLE filler ALTER t SET STORAGE PLAIN; \
             INSERT INTO filler SELECT repeat('x', 1500) FROM generate_series(1, 110000)",
        )
        .await?;
    ensure!(wal_position(client).await?.bytes_since(before) > 140 << 20, "too little for two chunks");
    client
        .batch_execute(
            "INSERT INTO words SELECT 'end' || g, 6000000 + g FROM generate_series(1, 100) g; COMMIT",
        )
        .await?;
    Ok(())
}

async fn behind(pair: &Pair) -> Result<()> {
    seed_rows(&pair.from).await?;
    let stream =
        Running::start(LocalPeer::new(pair.target_end(), Options::default()), spec(1), pair.source_end());
    stream.wait(|status| status.phase == Phase::Streaming).await?;
    pair.caught_up(&stream).await?;
    stream.stop().await?;
    let before = wal_position(&pair.from).await?;
    pile_up(pair).await?;
    ensure!(wal_position(&pair.from).await?.bytes_since(before) > 16 << 20, "too little for a backlog");
    Ok(())
}

async fn journey(source: u32, target: u32) -> Result<()> {
    let pair = Pair::start(source, target).await?;
    behind(&pair).await?;
    if source > target {
        wide(&pair).await?;
    }
    let stream = Running::start(
        LocalPeer::new(pair.target_end(), Options { delay: Duration::from_millis(2) }),
        spec(1),
        pair.source_end(),
    );
    let now = wal_position(&pair.from).await?;
    let (deadline, mut seen) = (Instant::now() + PATIENCE, false);
    while stream.status.borrow().applied_lsn < now {
        seen |= copies(&pair.from).await? > 0;
        ensure!(Instant::now() < deadline, "never caught up; last: {:?}", *stream.status.borrow());
        tokio::time::sleep(Duration::from_millis(3)).await;
    }
    ensure!(seen, "the backlog was streamed, not read");
    pair.equal().await?;

    // And then it streams: what is written now arrives, the copy of the slot is gone, the WAL is released.
    pair.from.batch_execute("INSERT INTO ranks VALUES (77777, 77777)").await?;
    pair.caught_up(&stream).await?;
    let now = wal_position(&pair.from).await?;
    stream.wait(|status| status.applied_lsn >= now).await?;
    while slot::slot_info(&pair.from, &spec(1).slot).await?.and_then(|slot| slot.confirmed_flush) < Some(now)
    {
        ensure!(Instant::now() < deadline, "the slot's WAL was not released");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    ensure!(copies(&pair.from).await? == 0, "a copy of the slot is left over");
    stream.stop().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backlog_is_read_by_sql_upwards() -> Result<()> {
    journey(15, other_major()).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backlog_is_read_by_sql_downwards() -> Result<()> {
    journey(other_major(), 15).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_while_it_reads_a_backlog_it_goes_on_exactly() -> Result<()> {
    let pair = Pair::start(15, other_major()).await?;
    behind(&pair).await?;
    let mut killed = 0;
    // Each time a little later: at the copy of the slot, in its first rows, in the large transaction.
    for round in 0..12u32 {
        let peer = LocalPeer::new(pair.target_end(), Options { delay: Duration::from_millis(1) });
        let stream = Running::start(peer.clone(), spec(1), pair.source_end());
        let deadline = Instant::now() + PATIENCE;
        let applied = stream.status.borrow().applied_lsn;
        while copies(&pair.from).await? == 0 && stream.status.borrow().applied_lsn == applied {
            ensure!(Instant::now() < deadline, "no backlog; last: {:?}", *stream.status.borrow());
        }
        tokio::time::sleep(Duration::from_millis(u64::from(20 * round))).await;
        killed += copies(&pair.from).await?;
        match round % 3 {
            0 => peer.cut(),
            1 => {
                let kill = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'godwit%'";
                pair.from.execute(kill, &[]).await?;
            }
            _ => {}
        }
        drop((stream, peer));
    }
    ensure!(killed > 0, "no kill met a backlog");
    let peer = LocalPeer::new(pair.target_end(), Options::default());
    let stream = Running::start(peer, spec(1), pair.source_end());
    pair.caught_up(&stream).await?;
    stream.stop().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_room_for_a_copy_of_the_slot_the_backlog_is_streamed() -> Result<()> {
    let source = TestCluster::start_with(15, "max_replication_slots = 1\n")?;
    let target = TestCluster::start(15)?;
    let from = source.create_database(DATABASE, SCHEMA).await?;
    let to = target.create_database(DATABASE, "").await?;
    replicator::fence::install(&from, "shop", 1).await?;
    replicator::fence::install(&to, "shop", 1).await?;
    let pair = Pair { source, target, from, to };
    behind(&pair).await?;
    let stream =
        Running::start(LocalPeer::new(pair.target_end(), Options::default()), spec(1), pair.source_end());
    pair.caught_up(&stream).await?;
    stream.stop().await
}
