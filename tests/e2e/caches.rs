//! Caches: what is in memory at the primary's server is in the next one's before anybody asks it.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use godwit::demo::zone::{Playground, SUPERUSER};
use godwit_tests::postgres::{GODWIT_ROLE, TestCluster, other_major};
use godwit_tests::waiting::until;
use replicator::caches::{Filled, fill, lacking};
use tokio_postgres::Client;

use crate::leader::{Leader, options};

/// 13 MiB of which only the last rows will be read, a large value in a TOAST table, and what nobody reads.
const SCHEMA: &str = "CREATE TABLE events (id int PRIMARY KEY, at int NOT NULL, text text NOT NULL);
    INSERT INTO events SELECT i, i, repeat('x', 300) FROM generate_series(1, 40000) i;
    CREATE INDEX by_time ON events (at);
    CREATE TABLE documents (id int PRIMARY KEY, text text NOT NULL);
    ALTER TABLE documents ALTER text SET STORAGE EXTERNAL;
    INSERT INTO documents VALUES (1, repeat('x', 1000000));
    CREATE TABLE unread (id int PRIMARY KEY, text text NOT NULL);
    INSERT INTO unread SELECT i, repeat('x', 300) FROM generate_series(1, 40000) i";
const READS: &str = "SET enable_seqscan = off;
    SELECT sum(length(text)) FROM events WHERE at > 36000;
    SELECT length(text || 'x') FROM documents WHERE id = 1";
const WITHIN: Duration = Duration::from_secs(60);

/// How many blocks of a relation the server's buffers hold, beginning with this one.
async fn buffered(client: &Client, relation: &str, from: i64) -> Result<i64> {
    let sql = "SELECT count(*) FROM pg_buffercache WHERE relfilenode = pg_relation_filenode($1::text::regclass) AND relforknumber = 0 \
        AND reldatabase = (SELECT oid FROM pg_database WHERE datname = current_database()) AND relblocknumber >= $2";
    Ok(client.query_one(sql, &[&relation, &from]).await?.get(0))
}

/// How many blocks clients' reads do not find in the server's buffers.
async fn misses(client: &Client) -> Result<u64> {
    let mut misses = 0;
    client.batch_execute("SET enable_seqscan = off").await?;
    for read in READS.split(';').skip(1) {
        let plan = client.query_one(&format!("EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {read}"), &[]).await?;
        let plan: serde_json::Value = plan.get(0);
        misses += plan[0]["Plan"]["Shared Read Blocks"].as_u64().context("a number of blocks")?;
    }
    Ok(misses)
}

async fn blocks(client: &Client, relation: &str) -> Result<i64> {
    let sql = "SELECT pg_relation_size($1::text::regclass) / 8192";
    Ok(client.query_one(sql, &[&relation]).await?.get(0))
}

async fn toast(client: &Client, table: &str) -> Result<String> {
    let sql = "SELECT reltoastrelid::regclass::text FROM pg_class WHERE oid = $1::text::regclass";
    Ok(client.query_one(sql, &[&table]).await?.get(0))
}

/// A cluster whose buffers are empty, with the rights that a policy with `caches: fill` asks for, as Godwit's role and as an administrator.
async fn restarted(cluster: &TestCluster) -> Result<(Client, Client)> {
    cluster.cluster.stop("fast")?;
    cluster.cluster.start()?;
    Ok((cluster.connect_as(GODWIT_ROLE, "shop").await?, cluster.connect("shop").await?))
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_in_memory_at_the_source_is_read_into_the_target() -> Result<()> {
    for (one, other) in [(15, other_major()), (other_major(), 15)] {
        let clusters = [
            TestCluster::start_with(one, "shared_buffers = 64MB")?,
            TestCluster::start_with(other, "shared_buffers = 64MB")?,
        ];
        for cluster in &clusters {
            cluster.create_database("shop", SCHEMA).await?;
        }
        let [source, target] = &clusters;
        let (here, there) = (source.connect_as(GODWIT_ROLE, "shop").await?, target.connect("shop").await?);
        ensure!(fill(&here, &there, WITHIN).await?.is_none(), "there is no pg_prewarm");
        ensure!(lacking(&there, i64::MAX).await?.is_none(), "a small database");
        let finding = lacking(&there, 1 << 20).await?.context("it is lacking")?;
        ensure!(finding.remedy.is_some_and(|sql| sql.starts_with("CREATE EXTENSION pg_prewarm")));

        for cluster in &clusters {
            cluster.govern_with("shop", &[], true).await?;
        }
        let (here, _) = restarted(source).await?;
        here.batch_execute(READS).await?;
        let (_, seen) = restarted(target).await?;
        let cold = misses(&seen).await?;
        let (there, seen) = restarted(target).await?;
        ensure!(lacking(&there, 1 << 20).await?.is_none());
        let filled = fill(&here, &there, WITHIN).await?.context("it is there now")?;
        let (events, documents) = (blocks(&seen, "events").await?, toast(&seen, "documents").await?);
        ensure!(filled.left == 0 && filled.blocks > events / 10, "{filled:?}");
        let recent = events - events / 10 + 1;
        ensure!(buffered(&seen, "events", recent).await? == events - recent, "the rows that were read");
        ensure!(buffered(&seen, "events", 0).await? < events / 5, "and not those that were not");
        ensure!(buffered(&seen, "by_time", 0).await? > blocks(&seen, "by_time").await? / 20);
        ensure!(buffered(&seen, &documents, 0).await? == blocks(&seen, &documents).await?, "large values");
        ensure!(buffered(&seen, "unread", 0).await? == 0);
        let warm = misses(&seen).await?;
        println!(
            "the same reads: {cold} blocks from outside of the buffers, {warm} after {} blocks were filled in",
            filled.blocks
        );
        ensure!(warm == 0 && cold > 150, "{cold} and {warm}");

        // Where the role may not see what the buffers hold, whole relations, by how often they were asked for.
        source.connect("shop").await?.batch_execute("REVOKE pg_monitor FROM godwit").await?;
        let (there, seen) = restarted(target).await?;
        // Statistics are written when their session ends, or once a second at most.
        drop(here);
        let here = source.connect_as(GODWIT_ROLE, "shop").await?;
        let filled = counted(&here, &there).await?;
        ensure!(filled.left == 0, "{filled:?}");
        ensure!(buffered(&seen, "events", 0).await? == events);

        // And nothing once the time is over.
        let filled = fill(&here, &there, Duration::ZERO).await?.context("it is there")?;
        ensure!(filled.blocks == 0 && filled.left >= events, "{filled:?}");
    }
    Ok(())
}

/// Until the source has counted who asked for the rows.
async fn counted(source: &Client, target: &Client) -> Result<Filled> {
    let asked =
        "SELECT heap_blks_read + heap_blks_hit > 0 FROM pg_statio_user_tables WHERE relname = 'events'";
    until("the reads are counted", async || Ok(source.query_one(asked, &[]).await?.get(0))).await?;
    fill(source, target, WITHIN).await?.context("pg_prewarm is there")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_move_does_not_meet_a_cold_cache() -> Result<()> {
    let playground = Playground::start(&options(false)?).await?;
    let [near, far] = &playground.zones;
    let here = replicator::postgres::connect(&near.dsn(SUPERUSER), "godwit-test").await?;
    here.batch_execute(&format!("SET ROLE {}; {SCHEMA}", godwit::demo::zone::OWNER_ROLE)).await?;
    let mut leader = Leader::start(&playground, &[])?;
    leader.ready().await?;
    far.cluster.stop("fast")?;
    far.cluster.start()?;
    here.batch_execute(READS).await?;
    leader.ready().await?;
    let there = replicator::postgres::connect(&far.dsn(SUPERUSER), "godwit-test").await?;
    ensure!(buffered(&there, "by_time", 0).await? < 5, "it is cold");
    leader.migrate(&far.name).await?;
    leader.until("it has moved", |view| view.primary == far.name && view.phase == "shadowing").await?;
    // Nothing but a client's read needs more of this index than its root.
    let (warm, all) = (buffered(&there, "by_time", 0).await?, blocks(&there, "by_time").await?);
    ensure!(warm == all && all > 20, "it is warm: {warm} of {all}");
    Ok(())
}
