//! Tables that are altered, written and dropped before the shadow has followed, those that changed while it was behind, and a shadow that is emptied while it follows.

use std::time::Duration;

use anyhow::{Result, ensure};
use godwit::demo::zone::{Playground, RESOURCE};
use godwit_tests::waiting::until;
use serde_json::json;
use tokio_postgres::Client;

use crate::leader::{Leader, connect, options};
use crate::schema::{followed, owner, replicated, sync};

/// What is left of them in the stream fits nowhere, and the shadow's are only dropped once the stream has brought it.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_left_of_a_table_that_is_gone_keeps_no_stream() -> Result<()> {
    let playground = replicated("mode: async, schema: all").await?;
    let [near, far] = &playground.zones;
    let (primary, shadow) = (owner(near).await?, owner(far).await?);
    let tables = "CREATE TABLE wider (id int PRIMARY KEY); CREATE TABLE worded (id int PRIMARY KEY, n int); \
        CREATE TABLE heavy (id int PRIMARY KEY, n int); CREATE TABLE doubled (id int PRIMARY KEY, n text); CREATE UNIQUE INDEX once ON doubled (n); \
        CREATE TABLE anew (id int PRIMARY KEY); CREATE TABLE stays (id int PRIMARY KEY); \
        CREATE TABLE trimmed (id int PRIMARY KEY, t text); CREATE TABLE parted (id int PRIMARY KEY) PARTITION BY LIST (id); \
        CREATE TABLE part PARTITION OF parted DEFAULT";
    primary.batch_execute(tables).await?;
    let mut leader = Leader::start(&playground, &[])?;
    leader.ready().await?;
    followed(&mut leader).await?;

    // Each in a transaction of its own.
    let releases = [
        "ALTER TABLE wider ADD COLUMN c int",
        "ALTER TABLE worded ALTER COLUMN n TYPE text",
        "ALTER TABLE heavy ALTER COLUMN n TYPE text",
        "DROP INDEX once",
        "ALTER TABLE anew ADD COLUMN c int",
        "ALTER TABLE stays ADD COLUMN c int",
        "ALTER TABLE trimmed ADD COLUMN \"C\" int[] DEFAULT '{1,2}'",
        "ALTER TABLE parted ADD COLUMN c int",
        "INSERT INTO wider VALUES (1, 1)",
        "INSERT INTO worded VALUES (1, 'one')",
        // So much travels in pieces; what does not fit is seen before it is sent, or by the server.
        "INSERT INTO heavy SELECT n, repeat('one', 1000) FROM generate_series(1, 3000) n",
        "INSERT INTO doubled SELECT n, repeat('one', 500) FROM generate_series(1, 6000) n",
        "INSERT INTO anew VALUES (1, 1), (2, 2)",
        "INSERT INTO stays VALUES (1, 1)",
        "INSERT INTO trimmed VALUES (1, 'one')",
        "ALTER TABLE trimmed DROP COLUMN \"C\"",
        "INSERT INTO trimmed VALUES (2, 'two')",
        "INSERT INTO parted VALUES (1, 1)",
        "ALTER TABLE parted DROP COLUMN c",
        "INSERT INTO parted VALUES (2)",
        "DROP TABLE wider",
        "DROP TABLE worded",
        "DROP TABLE heavy",
        "DROP TABLE doubled",
        "DROP TABLE anew",
        "CREATE TABLE anew (id int PRIMARY KEY)",
        "INSERT INTO anew VALUES (7)",
        "INSERT INTO stays VALUES (2, 2)",
    ];
    for release in releases {
        primary.batch_execute(release).await?;
    }
    followed(&mut leader).await?;
    primary.batch_execute("INSERT INTO anew VALUES (8); INSERT INTO stays VALUES (3, 3)").await?;
    let rows = "SELECT (SELECT string_agg(a::text, ' ' ORDER BY id) FROM anew a) || (SELECT string_agg(s::text, ' ' ORDER BY id) FROM stays s) \
        || concat(to_regclass('wider'), to_regclass('worded'), to_regclass('heavy'), to_regclass('doubled'))";
    let there =
        async || Ok(shadow.query_one(rows, &[]).await?.get::<_, String>(0) == "(7) (8)(1,1) (2,2) (3,3)");
    godwit_tests::waiting::until("the shadow has the rows of what lives", there).await?;
    let told = leader.audit().await?;
    for gone in ["wider: it is gone on", "trimmed.C: it is gone on", "part.c: it is gone on"] {
        ensure!(told.iter().any(|record| record.to_string().contains(gone)), "{gone}: {told:#?}");
    }
    let lent = "SELECT (SELECT string_agg(trimmed::text, ' ' ORDER BY id) FROM trimmed) || (SELECT string_agg(parted::text, ' ' ORDER BY id) FROM parted)";
    let lent =
        async || Ok(shadow.query_one(lent, &[]).await?.get::<_, String>(0) == "(1,one) (2,two)(1) (2)");
    godwit_tests::waiting::until("what it had for the stream is dropped", lent).await?;
    // One of that name that comes later is told from it.
    let known = "SELECT count(*) FROM godwit.identities WHERE (name, source_column) = ('C', 3)";
    let known: i64 = connect(far).await?.query_one(known, &[]).await?.get(0);
    ensure!(known == 1, "it is not known which one it was");
    leader.migrate(&far.name).await?;
    leader.until("moved", |view| view.primary == far.name && view.phase == "shadowing").await?;
    Ok(())
}

/// Whatever is being made there: it is empty when the copy begins.
#[tokio::test(flavor = "multi_thread")]
async fn a_shadow_is_emptied_while_its_schema_is_brought_up() -> Result<()> {
    let playground = replicated("mode: async, schema: all").await?;
    let [near, far] = &playground.zones;
    let (primary, shadow) = (owner(near).await?, owner(far).await?);
    let mut leader = Leader::start(&playground, &[])?;
    leader.ready().await?;
    for round in 0..3u32 {
        let things = format!(
            "DO $$ BEGIN FOR n IN 1..150 LOOP \
               EXECUTE format('CREATE TYPE kind_{round}_%s AS ENUM (''a'')', n); \
               EXECUTE format('CREATE TABLE t_{round}_%s (id int PRIMARY KEY, kind kind_{round}_%s); CREATE INDEX ON t_{round}_%s (kind)', n, n, n); \
             END LOOP; END $$"
        );
        primary.batch_execute(&things).await?;
        // When the sync is at work.
        let begun = format!("SELECT to_regtype('kind_{round}_1') IS NOT NULL");
        let begun = async || Ok(shadow.query_one(&begun, &[]).await?.get::<_, bool>(0));
        godwit_tests::waiting::until("the sync has begun", begun).await?;
        tokio::time::sleep(Duration::from_millis(u64::from(150 * round))).await;
        leader.client.send(&format!("/api/v1/resources/{RESOURCE}/reseed"), &json!({})).await?;
        let seeded = |view: &godwit::controller::view::ResourceView| {
            view.replication.state == "streaming"
                && !view.problems.iter().any(|line| line.contains("seeded anew"))
        };
        leader.until("it is seeded anew", seeded).await?;
        followed(&mut leader).await?;
        let last = format!("SELECT to_regclass('t_{round}_150') IS NOT NULL");
        ensure!(shadow.query_one(&last, &[]).await?.get::<_, bool>(0), "round {round}");
    }
    Ok(())
}

/// What the applier goes on with is older than the column: rows that it deletes and inserts again keep that as well.
#[tokio::test(flavor = "multi_thread")]
async fn a_column_that_comes_before_older_changes_is_kept_by_them() -> Result<()> {
    let playground = Playground::start(&options(false)?).await?;
    let [near, far] = &playground.zones;
    let primary = connect(near).await?;
    primary
        .batch_execute(
            "CREATE TABLE marks (id int PRIMARY KEY, place int GENERATED ALWAYS AS IDENTITY, n int DEFAULT 0);
             INSERT INTO marks (id) SELECT generate_series(1, 9)",
        )
        .await?;
    let mut leader = Leader::start(&playground, &[])?;
    leader.ready().await?;
    let (shadow, somebody) = (connect(far).await?, connect(far).await?);
    let equal = async || {
        let rows = "SELECT string_agg(m::text, ' ' ORDER BY id) FROM marks m";
        let all = async |client: &Client| anyhow::Ok(client.query_one(rows, &[]).await?.get::<_, String>(0));
        Ok(all(&primary).await? == all(&shadow).await?)
    };
    primary.batch_execute("UPDATE marks SET n = 1").await?;
    until("the applier has met the table", equal).await?;
    // It can begin nothing.
    somebody.batch_execute("BEGIN; SELECT FROM godwit.progress FOR UPDATE").await?;
    for sql in [
        "UPDATE marks SET place = DEFAULT; INSERT INTO marks VALUES (10)",
        "ALTER TABLE marks ADD COLUMN note text NOT NULL DEFAULT 'a', ADD COLUMN later int, ADD COLUMN other text DEFAULT 'c'",
        "ALTER TABLE marks ALTER COLUMN note DROP DEFAULT, ALTER COLUMN later SET DEFAULT 1, ALTER COLUMN other SET DEFAULT 'd'",
        "INSERT INTO marks (id, note) VALUES (11, 'b')",
    ] {
        primary.batch_execute(sql).await?;
    }
    let after = sync(&leader, false).await?;
    ensure!(after.done.iter().any(|done| done.contains(" ADD COLUMN ")), "{after:#?}");
    somebody.batch_execute("COMMIT").await?;
    until("both have the same rows", equal).await?;
    let after = sync(&leader, false).await?;
    ensure!(after.differences.is_empty(), "new rows get the same as well: {after:#?}");
    leader.ready().await.map(drop)
}
