//! What Godwit's own sessions begin with, what is told of those that keep them waiting, and its own extensions.

use std::time::Duration;

use anyhow::Result;
use godwit_tests::postgres::{SUPERUSER, TestCluster};
use godwit_tests::waiting::until;
use replicator::postgres;
use replicator::preflight::{Severity, compare};
use tokio_postgres::Client;

/// Where sessions begin read-only, the application writes by its own transactions; Godwit's sessions write, those that only ask need not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn our_sessions_write_where_sessions_begin_read_only() -> Result<()> {
    let cluster = TestCluster::start_with(15, "default_transaction_read_only = on\n")?;
    let dsn = cluster.config_as(SUPERUSER, "postgres");
    let makes = async |client: &Client, name: &str| -> Result<()> {
        Ok(client.batch_execute(&format!("CREATE TABLE {name} ()")).await?)
    };
    makes(&postgres::connect(&dsn, "a").await?, "a").await?;
    makes(&postgres::connect_unseen_to_write(&dsn, "b").await?, "b").await?;
    let reads = postgres::connect_unhurried(&dsn, "c").await?;
    makes(&reads, "c").await?;
    let sql = "SELECT reset_val FROM pg_settings WHERE name = 'default_transaction_read_only'";
    let begins: String = reads.query_one(sql, &[]).await?.get(0);
    assert_eq!(begins, "on", "what others begin with is seen");
    let (asks, driver) = postgres::connect_for(&dsn, "d", Duration::from_mins(1)).await?;
    let driven = tokio::spawn(driver);
    assert!(makes(&asks, "d").await.is_err());
    drop(asks);
    driven.await??;

    let target = TestCluster::start(15)?;
    let other = postgres::connect_unhurried(&target.config_as(SUPERUSER, "postgres"), "e").await?;
    let about = async |[source, target]: [&Client; 2]| -> Result<Option<Severity>> {
        let found = compare(source, target).await?;
        let found = found.iter().find(|found| found.subject == "default_transaction_read_only");
        Ok(found.map(|found| found.severity))
    };
    assert_eq!(about([&other, &reads]).await?, Some(Severity::Blocker), "the service could not write there");
    assert_eq!(about([&reads, &other]).await?, Some(Severity::Warning));
    assert_eq!(about([&reads, &reads]).await?, None);
    Ok(())
}

/// The examination says who it waits for, behind all who wait as well.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_holds_a_lock_is_named() -> Result<()> {
    let cluster = TestCluster::start(15)?;
    let holder = cluster.create_database_of_superuser("app", "CREATE TABLE t ()").await?;
    holder.batch_execute("SET application_name = 'reports'; BEGIN; SELECT FROM t").await?;
    let dsn = cluster.config_as(SUPERUSER, "app");
    let looker = postgres::connect(&dsn, "looker").await?;
    assert_eq!(postgres::blocks(&looker, "waits").await?, None);
    let (alters, waits) = (postgres::connect(&dsn, "alters").await?, postgres::connect(&dsn, "waits").await?);
    let waiting = async |count: i64| {
        until("who waits, waits", async || {
            let sql = "SELECT count(*) FROM pg_stat_activity WHERE cardinality(pg_blocking_pids(pid)) > 0";
            Ok(looker.query_one(sql, &[]).await?.get::<_, i64>(0) == count)
        })
        .await
    };
    let alter = tokio::spawn(async move { alters.batch_execute("ALTER TABLE t ADD COLUMN a int").await });
    waiting(1).await?;
    let wait = tokio::spawn(async move { waits.batch_execute("SELECT FROM t").await });
    waiting(2).await?;
    let named = postgres::blocks(&looker, "waits").await?;
    assert!(named.as_ref().is_some_and(|who| who.ends_with("(reports) idle in transaction")), "{named:?}");
    holder.batch_execute("COMMIT").await?;
    alter.await??;
    wait.await??;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn versions_of_our_own_extensions_matter_to_nobody() -> Result<()> {
    let (source, target) = (TestCluster::start(15)?, TestCluster::start(15)?);
    let make = "CREATE EXTENSION hstore; CREATE EXTENSION pg_buffercache";
    let here = source.create_database_of_superuser("app", make).await?;
    let make = "CREATE EXTENSION hstore VERSION '1.4'; CREATE EXTENSION pg_buffercache VERSION '1.2'";
    let there = target.create_database_of_superuser("app", make).await?;
    let found = compare(&here, &there).await?;
    let of = |name: &str| found.iter().any(|finding| finding.subject == format!("extension {name}"));
    assert!(of("hstore") && !of("pg_buffercache"), "{found:#?}");
    Ok(())
}
