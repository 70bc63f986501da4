//! Digests of equal and unequal databases on two major versions.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

use anyhow::Result;
use godwit::controller::compare;
use godwit_tests::postgres::{TestCluster, other_major};
use godwit_tests::waiting::until;
use replicator::verify::{TableBuckets, begin_snapshot, buckets, differences, digest, digest_snapshot};

const SCHEMA: &str = r#"
    CREATE TYPE mood AS ENUM ('sad', 'ok');
    CREATE TYPE pair AS (x int, y text);
    CREATE TABLE kinds (id int PRIMARY KEY, f4 real, f8 double precision, n numeric, t timestamptz, d date, i interval,
      b bytea, j jsonb, a text[], m mood, p pair, r int4range, money money, u uuid, c char(4), v varchar(9), bo boolean);
    INSERT INTO kinds VALUES
      (1, 0.1, 1e-300, 'NaN', '2024-02-29 23:59:59.999999+05:30', '0044-03-15 BC', '1 mon -2 days 03:04:05.6',
       '\x00ff5c', '{"b": 1, "a": [1.10, null], "é": "\u00e9"}', '{"a,b",NULL,"\"q\""}', 'ok', '(1,"x,y")', '[1,5)', 12.34,
       'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11', 'ab', 'it''s', true),
      (2, 'Infinity', '-Infinity', -0.0000000000000000000001, '-infinity', 'infinity', '-1 year', '', 'null', '{}', NULL,
       NULL, 'empty', -1, NULL, '', '', false),
      (3, 'NaN', 3.141592653589793, 123456789012345678901234567890.5, 'infinity', '1999-01-08', '0', NULL, NULL, NULL, 'sad',
       '(,)', NULL, NULL, NULL, NULL, NULL, NULL);
    CREATE TABLE wide (region text, id bigint, at timestamptz, payload text, PRIMARY KEY (region, id, at));
    CREATE TABLE parts (id int, day int) PARTITION BY RANGE (day);
    CREATE TABLE parts_1 PARTITION OF parts FOR VALUES FROM (0) TO (10);
    CREATE TABLE parts_2 PARTITION OF parts FOR VALUES FROM (10) TO (20);
    INSERT INTO parts SELECT g, g % 20 FROM generate_series(1, 1000) g;
    CREATE TABLE heap (id int, note text);
    CREATE TABLE "Empty ""One" ();
    CREATE TABLE dropped (a int, z int, b text PRIMARY KEY); ALTER TABLE dropped DROP COLUMN z;
    INSERT INTO dropped VALUES (1, 'x');
"#;

fn fill(order: &str) -> String {
    format!(
        "INSERT INTO wide SELECT 'r' || g % 3, g, timestamptz '2024-01-01 00:00:00Z' + g * interval '1 second',
           repeat('x', g % 50) FROM (SELECT g FROM generate_series(1, 120000) g ORDER BY g {order}) s;
         INSERT INTO heap SELECT g, 'n' || g FROM (SELECT g FROM generate_series(1, 3000) g ORDER BY g {order}) s;"
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn equal_across_versions_and_every_difference_is_named() -> Result<()> {
    let (old, new) = (TestCluster::start(15)?, TestCluster::start(other_major())?);
    let a = old.create_database("shop", &format!("{SCHEMA}{}", fill("ASC"))).await?;
    let b = new.create_database("shop", &format!("{SCHEMA}{}", fill("DESC"))).await?;
    // Session settings that change text output must not matter.
    b.batch_execute(
        "SET \"TimeZone\" = 'Asia/Kolkata'; SET \"DateStyle\" = 'SQL, DMY'; SET extra_float_digits = -5;
         SET \"IntervalStyle\" = 'iso_8601'; SET bytea_output = 'escape'",
    )
    .await?;
    let started = Instant::now();
    let source = digest(&a).await?;
    eprintln!("{} rows digested in {:?}", source.iter().map(|t| t.rows).sum::<u64>(), started.elapsed());
    let target = digest(&b).await?;
    assert_eq!(differences(&source, &target), Vec::<String>::new());
    let rows = |name: &str| source.iter().find(|t| t.table == name).map(|t| t.rows);
    assert_eq!(rows("public.wide"), Some(120_000));
    assert_eq!(rows("public.parts_1"), Some(500));
    assert_eq!(rows("public.parts"), None, "a parent holds no rows");
    assert_eq!(rows(r#"public."Empty ""One""#), Some(0));
    let zone: String = b.query_one("SHOW \"TimeZone\"", &[]).await?.get(0);
    assert_eq!(zone, "Asia/Kolkata", "the session is as it was");

    b.batch_execute(
        "UPDATE wide SET payload = payload || 'y' WHERE id = 77777; DELETE FROM heap WHERE id = 5;
         UPDATE kinds SET f8 = 3.1415926535897936 WHERE id = 3; DROP TABLE parts_2; CREATE TABLE extra (id int);
         UPDATE heap SET note = NULL WHERE id = 6",
    )
    .await?;
    let found = differences(&source, &digest(&b).await?);
    assert_eq!(
        found,
        [
            "public.extra: only on the target (0 rows)",
            "public.heap: 3000 rows on the source, 2999 on the target",
            "public.kinds: 3 rows on both, but their content differs",
            "public.parts_2: missing on the target (500 rows on the source)",
            "public.wide: 120000 rows on both, but their content differs",
        ]
    );
    Ok(())
}

/// The target's schema is the source's.
async fn alike() -> Result<BTreeMap<String, String>, String> {
    Ok(BTreeMap::new())
}

/// Between any two reads every table changes: a new row, a hot row, and a bulk of others.
#[tokio::test(flavor = "multi_thread")]
async fn live_data_is_compared_while_every_table_changes() -> Result<()> {
    let (old, new) = (TestCluster::start(15)?, TestCluster::start(other_major())?);
    let schema = "CREATE TABLE keyed (id bigint PRIMARY KEY GENERATED ALWAYS AS IDENTITY, n int);
        CREATE TABLE heap (id int, n int); INSERT INTO keyed (n) SELECT g FROM generate_series(1, 3000) g;
        INSERT INTO heap SELECT g, g FROM generate_series(1, 3000) g;";
    let a = old.create_database("shop", schema).await?;
    let b = new.create_database("shop", schema).await?;
    let (reader, look) = (old.connect("shop").await?, AtomicU32::new(0));
    let change = || {
        let look = look.fetch_add(1, Ordering::Relaxed);
        let sql = format!(
            "INSERT INTO keyed (n) VALUES ({look}); UPDATE keyed SET n = n + 1 WHERE id = 1 OR id % 50 = {look};
             INSERT INTO heap VALUES (-1, {look}); UPDATE heap SET n = n + 1 WHERE id = 2 OR id % 50 = {look}"
        );
        let (a, b) = (&a, &b);
        async move {
            a.batch_execute(&sql).await.map_err(|error| error.to_string())?;
            b.batch_execute(&sql).await.map_err(|error| error.to_string())
        }
    };
    let same = compare::live([&reader, &a], None, change, alike).await.map_err(anyhow::Error::msg)?;
    assert!(same.equal(), "{same}");
    assert_eq!(same.tables, 2);

    let both = compare::live([&reader, &b], None, change, alike).await.map_err(anyhow::Error::msg)?;
    assert!(both.equal(), "{both}");
    b.batch_execute(
        "DELETE FROM heap WHERE id = 2999; UPDATE keyed SET n = -n WHERE id = 2999; CREATE TABLE more ()",
    )
    .await?;
    let found = compare::live([&reader, &b], None, change, alike).await.map_err(anyhow::Error::msg)?;
    assert_eq!(
        found.differences,
        [
            "public.heap: 1 of 4096 buckets of rows were equal in none of 10 looks",
            "public.keyed: 2 of 4096 buckets of rows were equal in none of 10 looks",
            "public.more: only on the target",
        ]
    );
    Ok(())
}

/// A value that was renamed is another in every row that has it, until the other side follows.
#[tokio::test(flavor = "multi_thread")]
async fn rows_of_a_type_that_is_to_follow_are_no_difference() -> Result<()> {
    let (old, new) = (TestCluster::start(15)?, TestCluster::start(other_major())?);
    let schema = "CREATE TYPE mood AS ENUM ('good', 'bad'); CREATE DOMAIN kind AS mood; CREATE TYPE pair AS (a int, b kind[]);
        CREATE TABLE plain (id int PRIMARY KEY, m mood); INSERT INTO plain VALUES (1, 'bad');
        CREATE TABLE nested (id int PRIMARY KEY, p pair); INSERT INTO nested VALUES (1, ROW(1, '{bad}'));
        CREATE TABLE other (id int PRIMARY KEY, n text); INSERT INTO other VALUES (1, 'bad')";
    let a = old.create_database("shop", schema).await?;
    let b = new.create_database("shop", schema).await?;
    a.batch_execute("ALTER TYPE mood RENAME VALUE 'bad' TO 'worse'").await?;
    let at_once = async || Ok(());
    let follows = async || {
        let why = |what: &str| ("public.".to_owned() + what, "it was changed".to_owned());
        Ok(["mood", "what(integer)"].map(why).into())
    };
    let live = async || compare::live([&a, &b], None, at_once, follows).await.map_err(anyhow::Error::msg);
    let found = live().await?;
    assert!(found.differences.is_empty(), "{found}");
    assert_eq!(found.undecided.len(), 2, "{found}");
    assert!(found.to_string().contains("is to follow: public.mood: it was changed"), "{found}");
    a.batch_execute("UPDATE other SET n = 'worse'").await?;
    let found = live().await?;
    assert_eq!((found.differences.len(), found.undecided.len()), (1, 2), "{found}");
    Ok(())
}

/// A service goes on while both sides are compared as they were at the marker: what it dropped, emptied or renamed since is looked at as it is now,
/// and where the other side has not followed yet nothing is said of it.
#[tokio::test(flavor = "multi_thread")]
async fn tables_that_go_during_the_comparison_are_no_difference() -> Result<()> {
    let (old, new) = (TestCluster::start(15)?, TestCluster::start(other_major())?);
    let mut schema: String =
        ["dropped", "emptied", "rotated", "swapped", "other"].map(|name| format!(
            "CREATE TABLE {name} (id int PRIMARY KEY, of text); INSERT INTO {name} SELECT g, '{name}' FROM generate_series(1, 100) g;"
        )).concat();
    // More than are asked for ahead, and one that is read in several steps meanwhile.
    for at in 0..40 {
        let rows = if at == 3 { 120_000 } else { 10 };
        schema += &format!(
            "CREATE TABLE kept_{at} (id int PRIMARY KEY); INSERT INTO kept_{at} SELECT generate_series(1, {rows});"
        );
    }
    let (a, b) = (old.create_database("shop", &schema).await?, new.create_database("shop", &schema).await?);
    let (here, there) = (old.connect("shop").await?, new.connect("shop").await?);
    begin_snapshot(&here).await?;
    begin_snapshot(&there).await?;
    let changes = "DROP TABLE dropped; TRUNCATE emptied; INSERT INTO emptied VALUES (7, 'x');
        ALTER TABLE swapped RENAME TO third; ALTER TABLE other RENAME TO swapped; ALTER TABLE third RENAME TO other;
        ALTER TABLE rotated RENAME TO rotated_1; CREATE TABLE rotated (id int PRIMARY KEY, more int)";
    a.batch_execute(changes).await?;
    // The other side follows in some of it.
    b.batch_execute("TRUNCATE emptied; INSERT INTO emptied VALUES (7, 'x')").await?;
    let (found, lost) = compare::snapshots(&here, &there).await.map_err(anyhow::Error::msg)?;
    assert!(found.equal(), "{found}");
    assert_eq!((found.tables, found.rows), (40, 120_390));
    let names = |names: &[&str]| names.iter().map(|name| format!("public.{name}")).collect::<BTreeSet<_>>();
    assert_eq!(lost, names(&["dropped", "emptied", "other", "rotated", "rotated_1", "swapped"]));

    let at_once = async || Ok(());
    let follows =
        async || Ok(lost.iter().map(|table| (table.clone(), "it was changed".to_owned())).collect());
    let live = async |sides| {
        let found = compare::live(sides, Some(&lost), at_once, follows).await.map_err(anyhow::Error::msg)?;
        anyhow::Ok((found.equal(), found))
    };
    let (equal, found) = live([&here, &there]).await?;
    assert!(!equal && found.differences.is_empty(), "what is to follow is neither: {found}");
    assert_eq!(found.gone, names(&["dropped"]));
    let tables: Vec<_> = found.undecided.iter().filter_map(|line| line.split(':').next()).collect();
    assert_eq!(tables, ["public.other", "public.rotated", "public.rotated_1", "public.swapped"]);
    b.batch_execute(&changes.replace("TRUNCATE emptied; INSERT INTO emptied VALUES (7, 'x');", "")).await?;
    let (equal, found) = live([&here, &there]).await?;
    assert!(equal, "{found}");
    assert_eq!(found.gone, names(&["dropped"]), "{found}");
    // What is not followed any more is a difference.
    b.batch_execute("DELETE FROM other WHERE id = 5; DROP TABLE rotated").await?;
    let found =
        compare::live([&here, &there], Some(&lost), at_once, alike).await.map_err(anyhow::Error::msg)?;
    assert_eq!(
        found.differences,
        [
            "public.other: 1 of 4096 buckets of rows were equal in none of 10 looks",
            "public.rotated: missing on the target",
        ]
    );
    Ok(())
}

/// It takes as long as it takes, also where the database ends long transactions (PostgreSQL 17 and newer).
#[tokio::test(flavor = "multi_thread")]
async fn nothing_ends_a_digest_for_its_length() -> Result<()> {
    let cluster = TestCluster::start(other_major())?;
    let client = cluster.create_database("shop", "CREATE TABLE heap (id int, note text)").await?;
    client.batch_execute("SET transaction_timeout = '1h'").await?;
    let limit = async || -> Result<String> {
        Ok(client.query_one("SELECT current_setting('transaction_timeout')", &[]).await?.get(0))
    };
    begin_snapshot(&client).await?;
    assert_eq!(limit().await?, "0");
    digest_snapshot(&client).await?;
    assert_eq!(limit().await?, "1h", "it is the session's again");
    Ok(())
}

/// What is being read is locked for one query of its rows, not until all is read.
#[tokio::test(flavor = "multi_thread")]
async fn a_table_is_altered_while_others_are_still_read() -> Result<()> {
    let cluster = TestCluster::start(other_major())?;
    let service = cluster
        .create_database(
            "shop",
            "CREATE TABLE keyed (id int PRIMARY KEY); INSERT INTO keyed SELECT generate_series(1, 120000);
             CREATE TABLE heap (id int); INSERT INTO heap SELECT generate_series(1, 1000);
             CREATE TABLE less (id int PRIMARY KEY, n int); INSERT INTO less VALUES (1, 1);
             CREATE TABLE locked (id int PRIMARY KEY); INSERT INTO locked VALUES (1)",
        )
        .await?;
    let (reader, holder) = (cluster.connect("shop").await?, cluster.connect("shop").await?);
    let pid: i32 = reader.query_one("SELECT pg_backend_pid()", &[]).await?.get(0);
    let waits = async || -> Result<bool> {
        let sql = "SELECT cardinality(pg_blocking_pids($1)) > 0";
        Ok(service.query_one(sql, &[&pid]).await?.get(0))
    };
    let alter = async |sql: &str| -> Result<()> {
        until("the digest has come to the locked table", waits).await?;
        service.batch_execute(&format!("SET lock_timeout = '20s'; {sql}")).await?;
        holder.batch_execute("COMMIT").await?;
        Ok(())
    };
    let lock = "BEGIN; LOCK TABLE locked IN ACCESS EXCLUSIVE MODE";

    holder.batch_execute(lock).await?;
    begin_snapshot(&reader).await?;
    let sql = "ALTER TABLE keyed ADD COLUMN n int; ALTER TABLE heap ADD COLUMN n int; ALTER TABLE less DROP COLUMN n";
    let (read, altered) = tokio::join!(digest_snapshot(&reader), alter(sql));
    altered?;
    let read = read?;
    let rows: Vec<_> = read.tables.iter().map(|table| (table.table.as_str(), table.rows)).collect();
    assert_eq!(rows, [("public.heap", 1_000), ("public.keyed", 120_000), ("public.locked", 1)]);
    assert_eq!(read.lost, BTreeSet::from(["public.less".to_owned()]), "nothing has its column any more");

    holder.batch_execute(lock).await?;
    let sql = "ALTER TABLE keyed ADD COLUMN more int; ALTER TABLE heap RENAME TO pile";
    let (read, altered) = tokio::join!(buckets(&reader, None), alter(sql));
    altered?;
    let mut rows: Vec<_> = read?.iter().map(|table| (table.table.clone(), table.rows())).collect();
    rows.sort();
    let expected = [("keyed", 120_000), ("less", 1), ("locked", 1), ("pile", 1_000)];
    assert_eq!(rows, expected.map(|(table, rows)| (format!("public.{table}"), rows)));
    Ok(())
}

/// Between two queries of one table's rows it may be emptied: then what was read of it counts for nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_is_emptied_when_half_of_it_is_read_is_lost() -> Result<()> {
    let cluster = TestCluster::start(15)?;
    let fill = "INSERT INTO half SELECT generate_series(1, 600000); INSERT INTO heap SELECT generate_series(1, 1200000)";
    let schema = format!("CREATE TABLE half (id int PRIMARY KEY); CREATE TABLE heap (id int); {fill}");
    let service = cluster.create_database("shop", &schema).await?;
    let reader = cluster.connect("shop").await?;
    let pid: i32 = reader.query_one("SELECT pg_backend_pid()", &[]).await?.get(0);
    for table in ["half", "heap"] {
        let other = BTreeSet::from([format!("public.{}", if table == "half" { "heap" } else { "half" })]);
        let empty = async || -> Result<()> {
            let reads = async || -> Result<bool> {
                let sql = "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE pid = $1 AND query ~ $2)";
                Ok(service
                    .query_one(sql, &[&pid, &format!("FROM ONLY public.{table} WHERE .* <= ")])
                    .await?
                    .get(0))
            };
            until("its rows are being read", reads).await?;
            service.batch_execute(&format!("TRUNCATE {table}; INSERT INTO {table} VALUES (7)")).await?;
            Ok(())
        };
        begin_snapshot(&reader).await?;
        let (read, emptied) = tokio::join!(digest_snapshot(&reader), empty());
        emptied?;
        let read = read?;
        assert_eq!(read.lost, BTreeSet::from([format!("public.{table}")]));
        assert!(read.tables.iter().map(|table| &table.table).eq(&other), "{read:?}");

        service.batch_execute(&format!("TRUNCATE half, heap; {fill}")).await?;
        let (read, emptied) = tokio::join!(buckets(&reader, None), empty());
        emptied?;
        let rows =
            read?.iter().filter(|read| !other.contains(&read.table)).map(TableBuckets::rows).sum::<u64>();
        assert_eq!(rows, 1, "it is read as it became");
        service.batch_execute(&format!("TRUNCATE half, heap; {fill}")).await?;
    }
    Ok(())
}

/// What is altered without being rewritten reads otherwise in the same snapshot: the text of its values, or the order in which it is walked.
#[tokio::test(flavor = "multi_thread")]
async fn a_table_whose_types_change_when_half_of_it_is_read_is_lost() -> Result<()> {
    let cluster = TestCluster::start(15)?;
    let schema = "CREATE TABLE moments (id int PRIMARY KEY, at timestamp); CREATE TABLE words (word text COLLATE \"C\" PRIMARY KEY);
        INSERT INTO moments SELECT n, '2020-01-01'::timestamp FROM generate_series(1, 400000) n;
        INSERT INTO words SELECT translate(n::text, '02468', 'abCDE') FROM generate_series(1, 400000) n";
    let service = cluster.create_database("shop", schema).await?;
    service.batch_execute("SET timezone = 'UTC'").await?;
    let reader = cluster.connect("shop").await?;
    let pid: i32 = reader.query_one("SELECT pg_backend_pid()", &[]).await?.get(0);
    for (table, column, there, back) in [
        ("moments", "at", "timestamptz", "timestamp"),
        ("words", "word", "text COLLATE \"en-x-icu\"", "text COLLATE \"C\""),
    ] {
        let alter = async |kind: &str| -> Result<()> {
            let reads = async || -> Result<bool> {
                let sql = "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE pid = $1 AND query ~ $2)";
                let query = format!("FROM ONLY public.{table} WHERE .* <= ");
                Ok(service.query_one(sql, &[&pid, &query]).await?.get(0))
            };
            until("its rows are being read", reads).await?;
            service.batch_execute(&format!("ALTER TABLE {table} ALTER {column} TYPE {kind}")).await?;
            Ok(())
        };
        begin_snapshot(&reader).await?;
        let (read, altered) = tokio::join!(digest_snapshot(&reader), alter(there));
        altered?;
        let read = read?;
        assert_eq!(read.lost, BTreeSet::from([format!("public.{table}")]));
        assert_eq!(read.tables.len(), 1, "{read:?}");

        let (read, altered) = tokio::join!(buckets(&reader, None), alter(back));
        altered?;
        let rows = read?.iter().map(TableBuckets::rows).sum::<u64>();
        assert_eq!(rows, 800_000, "both are read whole");
    }
    Ok(())
}
