//! Materialized views: what they hold is not replicated, and yet a move shows nothing older.

use anyhow::{Context, Result, ensure};
use godwit::demo::zone::{OWNER_ROLE, Playground, SUPERUSER, Zone};
use godwit_tests::postgres::{TestCluster, other_major};
use godwit_tests::waiting::until;
use replicator::{Error, views};
use tokio_postgres::Client;

use crate::leader::{Leader, options, superuser};

/// Each reads what its name comes after; one through a plain view.
const SCHEMA: &str = "CREATE TABLE sales (id int PRIMARY KEY, price int NOT NULL);
    CREATE MATERIALIZED VIEW \"Z base\" AS SELECT id, price FROM sales;
    CREATE UNIQUE INDEX ON \"Z base\" (id);
    CREATE VIEW plain AS SELECT price FROM \"Z base\";
    CREATE MATERIALIZED VIEW middle AS SELECT count(*) AS sold, sum(price) AS total FROM plain;
    CREATE MATERIALIZED VIEW a_top AS SELECT total + sold AS sum FROM middle;
    CREATE MATERIALIZED VIEW hollow AS SELECT 1 WITH NO DATA";

async fn sum(client: &Client) -> Result<Option<i64>> {
    Ok(client.query_one("SELECT sum::bigint FROM a_top", &[]).await?.get(0))
}

async fn refresh(source: &Client, target: &Client) -> Result<usize, Error> {
    views::refresh(target, &views::filled(source).await?).await
}

#[tokio::test(flavor = "multi_thread")]
async fn each_is_refreshed_after_those_that_it_reads() -> Result<()> {
    let (source, target) = (TestCluster::start(15)?, TestCluster::start(other_major())?);
    let source = source.create_database("shop", SCHEMA).await?;
    let target_client = target.create_database("shop", SCHEMA).await?;
    for client in [&source, &target_client] {
        client.batch_execute("INSERT INTO sales VALUES (1, 10), (2, 30)").await?;
    }
    ensure!(sum(&target_client).await?.is_none_or(|sum| sum == 0), "nothing was refreshed yet");
    ensure!(refresh(&source, &target_client).await? == 3);
    ensure!(sum(&target_client).await? == Some(42));
    ensure!(sum(&source).await?.is_none_or(|sum| sum == 0), "the source's are its own affair");
    let filled = "SELECT relispopulated FROM pg_class WHERE relname = 'hollow'";
    ensure!(
        !target_client.query_one(filled, &[]).await?.get::<_, bool>(0),
        "it holds nothing at the source either"
    );

    // Who reads one with a unique index meanwhile does not wait.
    let reader = target.connect("shop").await?;
    reader.batch_execute("BEGIN; SELECT FROM \"Z base\"").await?;
    target_client.batch_execute("SET lock_timeout = '10s'; UPDATE sales SET price = price + 1").await?;
    ensure!(refresh(&source, &target_client).await? == 3);
    ensure!(sum(&target_client).await? == Some(44));
    reader.batch_execute("COMMIT").await?;

    target_client
        .batch_execute("ALTER TABLE sales ALTER price DROP NOT NULL; UPDATE sales SET price = 0")
        .await?;
    for client in [&source, &target_client] {
        let broken = "CREATE MATERIALIZED VIEW broken AS SELECT 1 / nullif(price, 11) FROM sales";
        client.batch_execute(&format!("{broken} WITH NO DATA")).await?;
    }
    source.batch_execute("REFRESH MATERIALIZED VIEW broken").await?;
    let error = refresh(&source, &target_client).await.err().context("it was refreshed")?;
    let said = format!("{:#}", anyhow::Error::from(error));
    ensure!(said.contains("public.broken") && said.contains("division by zero"), "{said}");
    Ok(())
}

async fn owner(zone: &Zone) -> Result<Client> {
    let client = replicator::postgres::connect(&zone.dsn(SUPERUSER), "godwit-test").await?;
    client.batch_execute(&format!("SET ROLE {OWNER_ROLE}")).await?;
    Ok(client)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_move_shows_nothing_older() -> Result<()> {
    let playground = Playground::start(&options(false)?).await?;
    let [near, far] = &playground.zones;
    let made = "CREATE TABLE sales (id int PRIMARY KEY, price int);
        CREATE MATERIALIZED VIEW a_top AS SELECT sum(price) AS sum FROM sales";
    let (here, there) = (owner(near).await?, owner(far).await?);
    here.batch_execute(made).await?;
    let mut leader = Leader::start(&playground, &[])?;
    leader.ready().await?;
    here.batch_execute("INSERT INTO sales VALUES (1, 42); REFRESH MATERIALIZED VIEW a_top").await?;
    ensure!(sum(&there).await?.is_none(), "as old as the copy");
    // The shadow is behind when the move begins.
    there.batch_execute("BEGIN; LOCK TABLE sales IN SHARE MODE").await?;
    here.batch_execute("INSERT INTO sales VALUES (2, 1)").await?;
    let id = leader.migrate(&far.name).await?;
    let watched = superuser(near).await?;
    let asked = "SELECT count(*) > 0 FROM pg_stat_activity WHERE query = 'SELECT pg_current_wal_lsn()::text'";
    until("it is waited for", async || Ok(watched.query_one(asked, &[]).await?.get(0))).await?;
    there.batch_execute("COMMIT").await?;
    leader.until("it has moved", |view| view.primary == far.name && view.phase == "shadowing").await?;
    ensure!(leader.migration(&id).await?.state == "retired");
    ensure!(sum(&there).await? == Some(43));
    Ok(())
}
