//! PostgreSQL's own regression database, with what two decades of tests have left in it, is copied and compared: `make test-regression-copy`.

use anyhow::{Context, Result, bail, ensure};
use godwit_tests::postgres::{SUPERUSER, TestCluster, other_major, wal_position};
use replicator::copy::CopyOptions;
use replicator::drift::{self, Mend};
use replicator::link::memory::Options;
use replicator::pump::{LocalEnd, LocalPeer};
use replicator::spill::Spill;
use tokio_postgres::Client;

use crate::postgres_front::suite::{Suite, cluster, regression_database};
use crate::stream::{Running, spec};
use crate::verification::{quick, verify};

/// The tables that are copied, for those who ask in this session.
const OURS: &str = "CREATE TEMPORARY VIEW ours AS SELECT c.oid FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace
    WHERE relkind = 'r' AND relpersistence = 'p' AND nspname NOT IN ('pg_catalog', 'information_schema', 'godwit')";

/// Of each table its rows' number and sum of hashes, column by column in the order of names: a dump may order those of an inherited
/// table anew.
async fn contents(client: &Client) -> Result<Vec<String>> {
    let settings = "SET search_path = pg_catalog; SET extra_float_digits = 3; SET timezone = 'UTC'; SET datestyle = 'ISO'";
    client.batch_execute(settings).await?;
    let tables = "SELECT c.oid::regclass::text, \
             coalesce((SELECT string_agg(quote_ident(attname), ',' ORDER BY attname) FROM pg_attribute \
                 WHERE attrelid = c.oid AND attnum > 0 AND NOT attisdropped), '') \
         FROM ours c ORDER BY 1";
    let mut found = Vec::new();
    for row in client.query(tables, &[]).await? {
        let (table, columns): (String, String) = (row.get(0), row.get(1));
        let sql = format!(
            "SELECT count(*) || ' ' || coalesce(sum(hashtextextended(ROW({columns})::text, 0)), 0) FROM ONLY {table}"
        );
        let rows: String = client.query_one(&sql, &[]).await.with_context(|| sql.clone())?.get(0);
        found.push(format!("{table}: {rows}"));
    }
    Ok(found)
}

/// The schema as the newer `pg_dump` says it, without what is Godwit's own.
fn schema(cluster: &TestCluster, newer: &TestCluster) -> Result<Vec<String>> {
    let dsn = format!(
        "host={} port={} user={SUPERUSER} dbname={}",
        cluster.cluster.host,
        cluster.cluster.port,
        Suite::Regression.database()
    );
    let mut command = std::process::Command::new(newer.cluster.bin.join("pg_dump"));
    command.args([
        "--schema-only",
        "--exclude-schema=godwit",
        "--no-publications",
        "--no-subscriptions",
        "--dbname",
        &dsn,
    ]);
    let output = command.output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout)?;
    // Comments, a password that each dump has of its own, and the fence's triggers.
    let says =
        |line: &&str| !line.starts_with("--") && !line.starts_with('\\') && !line.contains("godwit_fence");
    let lines = text.lines().map(|line| line.trim_end_matches(','));
    let mut lines: Vec<_> = lines.filter(|line| !line.is_empty()).filter(says).map(str::to_owned).collect();
    // Columns of inherited tables, see above.
    lines.sort();
    Ok(lines)
}

/// Lines that only one of the two has.
fn differences(left: &[String], right: &[String]) -> String {
    let only = |mark: &str, of: &[String], other: &[String]| -> Vec<String> {
        of.iter().filter(|line| !other.contains(line)).map(|line| format!("{mark} {line}")).collect()
    };
    [only("<", left, right), only(">", right, left)].concat().join("\n")
}

/// What a newer server of another build cannot have: functions in C that were compiled for 15, collations by ICU, compression by LZ4, XML,
/// generated columns of tables whose parents' are not.
const ONLY_HERE: &str = "DO $$ DECLARE it oid; compressed record; BEGIN
    DROP TABLE IF EXISTS gtest_normal_child, gtest_normal_child2;
    FOR it IN SELECT oid FROM pg_class c WHERE relkind IN ('r', 'p', 'v') AND (relname LIKE 'xml%view%' OR EXISTS
        (SELECT FROM pg_attribute WHERE attrelid = c.oid AND atttypid = 'xml'::regtype AND NOT attisdropped)) LOOP
        CONTINUE WHEN NOT EXISTS (SELECT FROM pg_class WHERE oid = it);
        EXECUTE format('DROP %s %s CASCADE', (SELECT CASE relkind WHEN 'v' THEN 'VIEW' ELSE 'TABLE' END FROM pg_class WHERE oid = it),
            it::regclass);
    END LOOP;
    FOR compressed IN SELECT attrelid::regclass AS relation, attname
        FROM pg_attribute JOIN pg_class c ON c.oid = attrelid
        WHERE attcompression = 'l' AND NOT attisdropped AND relkind IN ('r', 'p', 'm') LOOP
        EXECUTE format('ALTER TABLE %s ALTER %I SET COMPRESSION default', compressed.relation, compressed.attname);
    END LOOP;
    FOR it IN SELECT p.oid FROM pg_proc p JOIN pg_language l ON l.oid = prolang
        WHERE lanname = 'c' AND probin NOT LIKE '$libdir%' LOOP
        -- It may have gone with another.
        CONTINUE WHEN NOT EXISTS (SELECT FROM pg_proc WHERE oid = it);
        EXECUTE format('DROP ROUTINE %s CASCADE', it::regprocedure);
    END LOOP;
    FOR it IN SELECT c.oid FROM pg_collation c JOIN pg_namespace n ON n.oid = collnamespace
        WHERE collprovider = 'i' AND nspname <> 'pg_catalog' LOOP
        EXECUTE format('DROP COLLATION %s CASCADE', it::regcollation);
    END LOOP;
END $$";

/// Every table can say which row it means, if only by all of it.
const IDENTIFIED: &str = "DO $$ DECLARE it oid; BEGIN
    FOR it IN SELECT c.oid FROM ours c WHERE NOT EXISTS (SELECT FROM pg_index WHERE indrelid = c.oid AND indisprimary AND NOT EXISTS
            (SELECT FROM pg_attribute WHERE attrelid = c.oid AND attnum = ANY (indkey) AND attgenerated <> '')) LOOP
        EXECUTE format('ALTER TABLE %s REPLICA IDENTITY FULL', it::regclass);
    END LOOP;
END $$";

/// Writes every row of every table again, and takes one in three away. What a table refuses is left as it is.
const CHANGED: &str = "DO $$ DECLARE it record; BEGIN
    FOR it IN SELECT c.oid::regclass AS name, (SELECT min(attname) FROM pg_attribute WHERE attrelid = c.oid AND attnum > 0
            AND NOT attisdropped AND attgenerated = '' AND attidentity = '') AS field
        FROM ours c LOOP
        BEGIN
            EXECUTE format('UPDATE ONLY %s SET %I = %2$I', it.name, it.field);
            EXECUTE format('DELETE FROM ONLY %s WHERE (ctid::text::point)[1]::int %% 3 = 0', it.name);
        EXCEPTION WHEN OTHERS THEN
            RAISE WARNING '%: %', it.name, SQLERRM;
        END;
    END LOOP;
END $$";

async fn copied(major: u32) -> Result<()> {
    let source = regression_database().await?;
    let target = cluster(Suite::Regression, major).await?;
    let database = Suite::Regression.database();
    let (from, to) = (source.connect(database).await?, target.connect(database).await?);
    for client in [&from, &to] {
        client.batch_execute(OURS).await?;
    }
    if major != 15 {
        from.batch_execute(ONLY_HERE).await?;
    }
    from.batch_execute(IDENTIFIED).await?;
    for client in [&from, &to] {
        replicator::fence::install(client, "shop", 1).await?;
    }
    let newer = if major > 15 { &target } else { &source };
    let peer =
        LocalPeer::new(LocalEnd::Target { dsn: target.config_as(SUPERUSER, database) }, Options::default());
    let source_end = LocalEnd::Source {
        dsn: source.config_as(SUPERUSER, database),
        bin: Some(newer.cluster.bin.clone()),
        spill: Spill::default(),
        copy: CopyOptions::default(),
    };
    let stream = Running::start(peer, spec(1), source_end);
    let now = wal_position(&from).await?;
    stream.wait(|status| status.applied_lsn >= now).await?;
    let drifted = async || {
        let sides = (drift::fingerprint(&from).await?, drift::fingerprint(&to).await?);
        anyhow::Ok(drift::compare(&sides.0, &sides.1, ["source", "target"]))
    };
    // What others read changes by follows a copy.
    let published = drifted().await?;
    ensure!(published.len() >= 5, "{published:#?}");
    for difference in published {
        let Mend::Add(sql) = &difference.mend else { bail!("{difference:?}") };
        ensure!(difference.what == "publication added on source", "{difference:?}");
        to.batch_execute(sql).await.with_context(|| sql.clone())?;
    }
    let drifted = drifted().await?;
    ensure!(drifted.is_empty(), "{} differences: {drifted:#?}", drifted.len());
    let (copied, right) = (contents(&from).await?, contents(&to).await?);
    ensure!(copied.len() > 500 && copied == right, "rows differ:\n{}", differences(&copied, &right));
    from.batch_execute("SET session_replication_role = replica").await?;
    from.batch_execute(CHANGED).await?;
    let now = wal_position(&from).await?;
    stream.wait(|status| status.applied_lsn >= now).await?;
    let (progress, told) = verify(&from, &to, &stream.status, &quick()).await?;
    println!("{} rows verified; {:#?}", progress.rows, told.notes);
    ensure!(told.differences.is_empty(), "verified as different: {:#?}", told.lines());
    stream.stop().await?;
    let (left, right) = (contents(&from).await?, contents(&to).await?);
    let changed = left.iter().filter(|table| !copied.contains(table)).count();
    println!("PostgreSQL 15 to {major}: {} tables copied, {changed} of them changed", left.len());
    ensure!(changed > 300 && left == right, "rows differ after changes:\n{}", differences(&left, &right));
    let (mut left, mut right) = (schema(&source, newer)?, schema(&target, newer)?);
    if major != 15 {
        // Queries read otherwise from one major to the next.
        for lines in [&mut left, &mut right] {
            lines.retain(|line| ["CREATE ", "ALTER ", "    ADD "].iter().any(|word| line.starts_with(word)));
        }
    }
    ensure!(left == right, "the schema differs:\n{}", differences(&left, &right));
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "minutes: make test-regression-copy"]
async fn the_regression_database_is_copied_whole() -> Result<()> {
    for major in [15, other_major()] {
        copied(major).await.with_context(|| format!("to PostgreSQL {major}"))?;
    }
    Ok(())
}
