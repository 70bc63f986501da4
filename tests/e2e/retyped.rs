//! Releases that give columns another type, other names to tables, and what stands in the way of that on the shadow.

use anyhow::{Context, Result, ensure};
use godwit::demo::zone::{Playground, RESOURCE};
use godwit_tests::postgres::other_major;
use godwit_tests::waiting::until;
use tokio_postgres::Client;

use crate::leader::{Leader, options};
use crate::schema::{differences, followed, owner, replicated, seed_anew};

async fn text(client: &Client, sql: &str) -> Result<String> {
    Ok(client.query_one(sql, &[]).await.context(sql.to_owned())?.get(0))
}

/// Until both answer this alike.
async fn alike(clients: [&Client; 2], sql: &str) -> Result<()> {
    let equal = async || Ok(text(clients[0], sql).await? == text(clients[1], sql).await?);
    if let Err(error) = until("both say the same", equal).await {
        let (one, other) = (text(clients[0], sql).await?, text(clients[1], sql).await?);
        return Err(error.context(format!("{sql}: {one} {other}")));
    }
    Ok(())
}

/// What a table has by its old name is another table, and nothing of either is copied again.
#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_makes_room_for_a_new_one_keeps_its_rows() -> Result<()> {
    let playground = replicated("mode: async, schema: additions").await?;
    let [near, far] = &playground.zones;
    let primary = owner(near).await?;
    primary
        .batch_execute(
            "CREATE TABLE events (id int PRIMARY KEY, word text); INSERT INTO events SELECT n, 'old' FROM generate_series(1, 1000) n;
             CREATE TABLE days (id int, day int, PRIMARY KEY (id, day)) PARTITION BY RANGE (day);
             CREATE TABLE days_0 PARTITION OF days FOR VALUES FROM (0) TO (10); CREATE TABLE days_1 PARTITION OF days DEFAULT",
        )
        .await?;
    let mut leader = Leader::start(&playground, &[])?;
    leader.ready().await?;
    followed(&mut leader).await?;
    let shadow = owner(far).await?;
    let file = "SELECT pg_relation_filenode(coalesce(to_regclass('events_2026'), 'events'))::text";
    let before = text(&shadow, file).await?;
    primary
        .batch_execute(
            "BEGIN; ALTER TABLE events RENAME TO events_2026; CREATE TABLE events (LIKE events_2026 INCLUDING ALL);
             INSERT INTO events VALUES (1, 'new'); COMMIT",
        )
        .await?;
    primary.batch_execute("INSERT INTO events_2026 VALUES (2000, 'late')").await?;
    followed(&mut leader).await?;
    let rows = "SELECT concat_ws(' ', count(*), max(id), (SELECT string_agg(word, ' ') FROM events)) FROM events_2026";
    alike([&primary, &shadow], rows).await?;
    ensure!(text(&shadow, file).await? == before, "it was copied again");
    ensure!(text(&shadow, "SELECT count(*)::text FROM events").await? == "1");

    primary.batch_execute("CREATE INDEX \"by \"\"day\"\" only\" ON days (day)").await?;
    followed(&mut leader).await?;
    let valid = "SELECT string_agg(indisvalid::text, ' ') FROM pg_index WHERE indrelid IN ('days'::regclass, 'days_0'::regclass, 'days_1'::regclass)";
    ensure!(
        text(&shadow, valid).await? == "true true true true true true",
        "{}",
        text(&shadow, valid).await?
    );
    leader.ready().await.map(drop)
}

/// The primary refuses to update and delete rows of a published table without a key, whoever can be reached.
#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_lost_its_key_is_published_no_more_without_the_shadow() -> Result<()> {
    let playground = replicated("mode: async, schema: additions").await?;
    let primary = owner(&playground.zones[0]).await?;
    primary.batch_execute("CREATE TABLE pairs (one int PRIMARY KEY); INSERT INTO pairs VALUES (1)").await?;
    {
        let mut leader = Leader::start(&playground, &[])?;
        leader.ready().await?;
    }
    playground.zones[1].cluster.stop("fast")?;
    primary.batch_execute("CREATE TABLE new (id int PRIMARY KEY)").await?;
    let mut leader = Leader::start(&playground, &[])?;
    leader
        .until("it tries", |view| view.replication.state != "streaming" && !view.problems.is_empty())
        .await?;
    primary.batch_execute("ALTER TABLE pairs DROP CONSTRAINT pairs_pkey").await?;
    let change = "UPDATE pairs SET one = -one";
    until("it is published no more", async || Ok(primary.batch_execute(change).await.is_ok())).await
}

/// What uses a column on the shadow is made again with its new type.
#[tokio::test(flavor = "multi_thread")]
async fn a_column_is_widened_whatever_uses_it() -> Result<()> {
    let playground = replicated("mode: async, schema: additions").await?;
    let [near, far] = &playground.zones;
    let primary = owner(near).await?;
    let views = "CREATE VIEW \"sold things\" AS SELECT id, amount FROM sales; CREATE VIEW dear AS SELECT amount FROM \"sold things\" WHERE amount > 5;
        CREATE MATERIALIZED VIEW sums AS SELECT max(amount) AS sum FROM sales; CREATE UNIQUE INDEX sums_sum ON sums (sum);
        GRANT SELECT ON dear TO orders_app; COMMENT ON VIEW dear IS 'dear'";
    let rest = "CREATE TRIGGER stamps BEFORE UPDATE OF amount ON sales FOR EACH ROW EXECUTE FUNCTION stamp(); ALTER TABLE sales ENABLE ALWAYS TRIGGER stamps;
        CREATE POLICY small ON sales USING (amount < 5000000000); ALTER TABLE sales ADD twice bigint GENERATED ALWAYS AS (amount::bigint * 2) STORED;
        CREATE RULE kept AS ON DELETE TO sales WHERE old.amount = 7 DO INSTEAD NOTHING;
        CREATE FUNCTION most() RETURNS bigint LANGUAGE sql BEGIN ATOMIC SELECT max(amount) FROM sales; END";
    let published = "CREATE PUBLICATION large FOR TABLE sales WHERE (amount > 15); CREATE PUBLICATION sums FOR TABLE sales (id, amount)";
    primary
        .batch_execute(&format!(
            "CREATE TABLE sales (id int PRIMARY KEY, amount int NOT NULL, left_over int); INSERT INTO sales VALUES (1, 10), (2, 20);
             CREATE FUNCTION stamp() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END'; {views}; {rest}; {published}"
        ))
        .await?;
    let mut leader = Leader::start(&playground, &[])?;
    leader.ready().await?;
    followed(&mut leader).await?;
    let shadow = owner(far).await?;
    let release = format!(
        "BEGIN; DROP MATERIALIZED VIEW sums; DROP VIEW dear; DROP VIEW \"sold things\"; DROP TRIGGER stamps ON sales; DROP POLICY small ON sales;
         DROP RULE kept ON sales; DROP FUNCTION most(); DROP PUBLICATION large; DROP PUBLICATION sums; ALTER TABLE sales DROP twice; ALTER TABLE sales ALTER amount TYPE bigint; {views}; {rest}; {published}; COMMIT;
         INSERT INTO sales VALUES (3, 4000000000)"
    );
    primary.batch_execute(&release).await?;
    followed(&mut leader).await?;
    let all = "SELECT concat_ws(' ', pg_typeof((SELECT amount FROM dear LIMIT 1)), (SELECT sum(twice) FROM sales), (SELECT max(amount) FROM dear), most(),
        has_table_privilege('orders_app', 'dear', 'SELECT'), obj_description('dear'::regclass), to_regclass('sums_sum'),
        (SELECT string_agg(tgname || tgenabled::text, ' ' ORDER BY tgname) FROM pg_trigger WHERE tgrelid = 'sales'::regclass AND tgname !~ 'godwit'),
        (SELECT string_agg(polname, ' ') FROM pg_policy), (SELECT string_agg(rulename, ' ') FROM pg_rewrite WHERE ev_class = 'sales'::regclass))";
    alike([&primary, &shadow], all).await?;
    let listed = "SELECT string_agg(concat_ws(' ', pubname, rowfilter, CASE pubname WHEN 'sums' THEN attnames::text END), ', ' ORDER BY pubname) FROM pg_publication_tables WHERE pubname !~ '^godwit_'";
    alike([&primary, &shadow], listed).await?;
    ensure!(text(&shadow, listed).await?.contains("large"), "{}", text(&shadow, listed).await?);

    // What a person alone can make again is left, and named.
    shadow.batch_execute("CREATE VIEW own AS SELECT left_over FROM sales; CREATE TABLE kept (x own)").await?;
    primary.batch_execute("ALTER TABLE sales ALTER left_over TYPE bigint").await?;
    let named = |lines: &[String]| lines.iter().any(|line| line.contains("DROP VIEW IF EXISTS public.own)"));
    leader.until("it is named", |view| named(&view.problems)).await?;
    shadow.batch_execute("DROP TABLE kept; DROP VIEW own").await?;
    let wide = "SELECT format_type(atttypid, -1) FROM pg_attribute WHERE attrelid = 'sales'::regclass AND attname = 'left_over'";
    until("it follows", async || Ok(text(&shadow, wide).await? == "bigint")).await
}

/// What a parent's column gets in a release, the rows of those that inherit it get on the source: they are copied again as well.
#[tokio::test(flavor = "multi_thread")]
async fn what_inherits_a_column_that_cannot_be_told_is_copied_again_too() -> Result<()> {
    let playground = replicated("mode: async, schema: all, slot: {reseed: auto}").await?;
    let [near, far] = &playground.zones;
    let primary = owner(near).await?;
    primary
        .batch_execute(
            "CREATE TABLE things (id int PRIMARY KEY, c int NOT NULL); CREATE TABLE cars (PRIMARY KEY (id)) INHERITS (things); CREATE TABLE vans (PRIMARY KEY (id)) INHERITS (cars);
             INSERT INTO things VALUES (1, 1); INSERT INTO cars VALUES (2, 2), (3, 3); INSERT INTO vans VALUES (4, 4)",
        )
        .await?;
    let mut leader = Leader::start(&playground, &[])?;
    leader.ready().await?;
    followed(&mut leader).await?;
    let shadow = owner(far).await?;
    let rows = "SELECT string_agg(concat_ws(' ', tableoid::regclass, t), ', ' ORDER BY id) FROM things t";
    for release in [
        "ALTER TABLE things ALTER c TYPE text USING 'number ' || c",
        "ALTER TABLE things ADD COLUMN u uuid DEFAULT gen_random_uuid()",
        "ALTER TABLE things ALTER id TYPE text USING 'thing ' || id",
    ] {
        primary.batch_execute(release).await?;
        primary.batch_execute("UPDATE vans SET c = c || '0'").await?;
        followed(&mut leader).await.context(release)?;
        alike([&primary, &shadow], rows).await.context(release)?;
    }
    Ok(())
}

/// Tables get columns of another type, whatever those are on the shadow and whoever refers to them.
#[tokio::test(flavor = "multi_thread")]
async fn tables_whose_keys_get_another_type_are_seeded_anew() -> Result<()> {
    let playground = replicated("mode: async, schema: additions").await?;
    let [near, far] = &playground.zones;
    let primary = owner(near).await?;
    primary
        .batch_execute(
            "CREATE TABLE bills (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY CHECK (id > 0), twice bigint GENERATED ALWAYS AS (id * 2) STORED);
             CREATE TABLE lines (n int PRIMARY KEY, bill bigint REFERENCES bills); INSERT INTO bills DEFAULT VALUES; INSERT INTO bills DEFAULT VALUES;
             INSERT INTO lines VALUES (1, 1), (2, 2), (3, 2); CREATE VIEW billed AS SELECT bill FROM lines",
        )
        .await?;
    let mut leader = Leader::start(&playground, &[])?;
    leader.ready().await?;
    followed(&mut leader).await?;
    let shadow = owner(far).await?;
    primary
        .batch_execute(
            "BEGIN; DROP VIEW billed; ALTER TABLE lines DROP CONSTRAINT lines_bill_fkey; ALTER TABLE bills DROP twice, DROP CONSTRAINT bills_id_check, ALTER id DROP IDENTITY;
             ALTER TABLE bills ALTER id TYPE uuid USING lpad(id::text, 32, '0')::uuid; ALTER TABLE lines ALTER bill TYPE uuid USING lpad(bill::text, 32, '0')::uuid;
             ALTER TABLE lines ADD CONSTRAINT lines_bill_fkey FOREIGN KEY (bill) REFERENCES bills; CREATE VIEW billed AS SELECT bill FROM lines; COMMIT",
        )
        .await?;
    let told = async || Ok(differences(&leader).await?.iter().filter(|left| left.reseed).count() >= 2);
    until("it is told", told).await?;
    leader.until("it streams", |view| view.replication.state == "streaming").await?;
    seed_anew(&leader, &["public.bills", "public.lines"]).await?;
    let path = format!("/api/v1/resources/{RESOURCE}/schema/sync");
    leader.client.send(&path, &serde_json::json!({ "dry_run": false, "drop": true })).await?;
    followed(&mut leader).await?;
    primary.batch_execute("INSERT INTO bills VALUES ('00000000-0000-0000-0000-000000000009'); UPDATE lines SET bill = '00000000-0000-0000-0000-000000000009' WHERE n = 3").await?;
    let all = "SELECT concat_ws(' ', (SELECT string_agg(b::text, ' ' ORDER BY id) FROM bills b), (SELECT string_agg(l::text, ' ' ORDER BY n) FROM lines l),
        (SELECT string_agg(bill::text, ' ' ORDER BY bill) FROM billed),
        (SELECT string_agg(conname, ' ' ORDER BY conname) FROM pg_constraint WHERE conrelid IN ('bills'::regclass, 'lines'::regclass) AND contype <> 'n'))";
    alike([&primary, &shadow], all).await?;
    leader.ready().await.map(drop)
}

/// From PostgreSQL 18 on `NOT NULL` may be of new rows only, and of the others later.
#[tokio::test(flavor = "multi_thread")]
async fn a_column_that_older_rows_may_leave_empty_is_followed() -> Result<()> {
    if other_major() < 18 {
        return Ok(());
    }
    let mut options = options(false)?;
    options.bins = [options.bins[1].clone(), options.bins[1].clone()];
    options.policy =
        options.policy.replace("replication: {mode: async}", "replication: {mode: async, schema: additions}");
    let playground = Playground::start(&options).await?;
    let [near, far] = &playground.zones;
    let primary = owner(near).await?;
    primary
        .batch_execute(
            "CREATE TABLE people (id int PRIMARY KEY, mail text, nick text); INSERT INTO people VALUES (1, NULL, NULL);
             CREATE UNIQUE INDEX people_mail ON people (mail)",
        )
        .await?;
    let mut leader = Leader::start(&playground, &[])?;
    leader.ready().await?;
    followed(&mut leader).await?;
    let shadow = owner(far).await?;
    let state = "SELECT string_agg(concat_ws(' ', attname, attnotnull, (SELECT convalidated FROM pg_constraint WHERE conrelid = attrelid AND contype = 'n' AND conkey[1] = attnum)),
        ', ' ORDER BY attname) FROM pg_attribute WHERE attrelid = 'people'::regclass AND attname IN ('mail', 'nick')";
    for release in [
        "ALTER TABLE people ADD CONSTRAINT mailed NOT NULL mail NOT VALID, ADD CONSTRAINT nicked NOT NULL nick NOT VALID",
        "ALTER TABLE people ALTER nick DROP NOT NULL; UPDATE people SET mail = 'a'; ALTER TABLE people VALIDATE CONSTRAINT mailed;
         INSERT INTO people VALUES (2, 'b', NULL)",
    ] {
        primary.batch_execute(release).await.context(release)?;
        followed(&mut leader).await.context(release)?;
        alike([&primary, &shadow], state).await.context(release)?;
    }
    alike([&primary, &shadow], "SELECT string_agg(p::text, ' ' ORDER BY id) FROM people p").await
}
