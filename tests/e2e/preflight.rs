//! Each finding, produced by a database that really is like that.

use anyhow::{Context, Result};
use godwit_tests::postgres::{OWNER_ROLE, SUPERUSER, TestCluster, other_major};
use replicator::fence;
use replicator::preflight::{Finding, Severity, Side, check, compare, retention};
use tokio_postgres::{Client, NoTls};

#[track_caller]
fn expect(found: &[Finding], severity: Severity, subject: &str, problem: &str, remedy: &str) {
    assert!(
        found.iter().any(|f| f.severity == severity
            && f.subject == subject
            && f.problem.contains(problem)
            && f.remedy.as_deref().unwrap_or_default().contains(remedy)),
        "no {severity:?} on {subject} with {problem:?} and {remedy:?} in {found:#?}"
    );
}

async fn connect_as(cluster: &TestCluster, role: &str, database: &str) -> Result<Client> {
    let (client, connection) = cluster.config_as(role, database).connect(NoTls).await?;
    tokio::spawn(async move {
        let _ = connection.await;
    });
    Ok(client)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_good_database_has_no_findings() -> Result<()> {
    for major in [15, other_major()] {
        let cluster = TestCluster::start(major)?;
        let client = cluster.create_database("shop", "CREATE TABLE t (id int PRIMARY KEY)").await?;
        assert_eq!(check(&client, Side::Source).await?, [], "{major} source");
        let empty = cluster.create_database("empty", "").await?;
        assert_eq!(check(&empty, Side::Target).await?, [], "{major} target");
        assert_eq!(compare(&client, &empty).await?, []);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_source_is_told_everything() -> Result<()> {
    use Severity::{Blocker, Warning};
    for major in [15, other_major()] {
        let cluster = TestCluster::start_with(
            major,
            "wal_level = replica\nmax_replication_slots = 0\nmax_wal_senders = 1\n\
             max_prepared_transactions = 3\n",
        )?;
        let client = cluster
            .create_database_of_superuser(
                "shop",
                "CREATE TABLE keyless (id int); CREATE TABLE late (id int PRIMARY KEY DEFERRABLE);
                 CREATE TABLE nothing (id int PRIMARY KEY); ALTER TABLE nothing REPLICA IDENTITY NOTHING;
                 CREATE TABLE lost (id int NOT NULL); CREATE UNIQUE INDEX lost_i ON lost (id);
                 ALTER TABLE lost REPLICA IDENTITY USING INDEX lost_i; DROP INDEX lost_i;
                 CREATE TABLE whole (id int); ALTER TABLE whole REPLICA IDENTITY FULL;
                 CREATE TABLE made (id int, twice int GENERATED ALWAYS AS (id * 2) STORED, PRIMARY KEY (id, twice));
                 CREATE TABLE spare (LIKE made INCLUDING ALL); ALTER TABLE spare REPLICA IDENTITY FULL;
                 CREATE TABLE beside (id int, twice int GENERATED ALWAYS AS (id * 2) STORED, PRIMARY KEY (id) INCLUDE (twice));
                 CREATE UNLOGGED TABLE scratch (id int PRIMARY KEY);
                 CREATE MATERIALIZED VIEW totals AS SELECT count(*) FROM whole;
                 CREATE FOREIGN DATA WRAPPER w; CREATE SERVER s FOREIGN DATA WRAPPER w;
                 CREATE FOREIGN TABLE elsewhere (id int) SERVER s;
                 SELECT lo_create(0);",
            )
            .await?;
        client.batch_execute("BEGIN; INSERT INTO whole VALUES (1); PREPARE TRANSACTION 'half'").await?;
        client
            .batch_execute(
                "CREATE SUBSCRIPTION theirs CONNECTION 'host=127.0.0.1' PUBLICATION p WITH (connect = false)",
            )
            .await?;
        client.batch_execute("UPDATE pg_subscription SET subenabled = true").await?;
        let superuser = cluster.connect("shop").await?;
        let found = check(&client, Side::Source).await?;
        expect(&found, Blocker, "wal_level", "is replica", "ALTER SYSTEM SET wal_level = logical");
        expect(&found, Blocker, "max_replication_slots", "0 of 0", "= 2");
        expect(&found, Warning, "max_wal_senders", "1 of 1", "= 3");
        expect(&found, Blocker, "public.keyless", "no usable primary key", "REPLICA IDENTITY FULL");
        expect(&found, Blocker, "public.late", "no usable primary key", "ADD PRIMARY KEY");
        expect(&found, Blocker, "public.nothing", "NOTHING", "REPLICA IDENTITY");
        expect(&found, Blocker, "public.lost", "index", "REPLICA IDENTITY");
        expect(
            &found,
            Blocker,
            "public.made",
            "twice of its replica identity is generated",
            "REPLICA IDENTITY FULL",
        );
        expect(&found, Blocker, "public.scratch", "unlogged", "SET LOGGED");
        expect(&found, Blocker, "large objects", "1 large objects", "bytea");
        expect(&found, Blocker, "half", "prepared transaction", "ROLLBACK PREPARED 'half'");
        expect(&found, Warning, "public.totals", "materialized view", "REFRESH");
        expect(&found, Warning, "public.elsewhere", "foreign table", "");
        expect(&found, Warning, "postgres", "superuser", "NOSUPERUSER");
        expect(&found, Warning, "theirs", "subscription", "DISABLE");
        for good in ["public.whole", "public.spare", "public.beside"] {
            assert!(!found.iter().any(|f| f.subject == good), "{found:#?}");
        }
        assert!(found.is_sorted_by_key(|f| f.severity), "blockers first");
        drop(superuser);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_role_without_rights_is_told_the_grants() -> Result<()> {
    use Severity::{Blocker, Warning};
    for major in [15, other_major()] {
        let cluster = TestCluster::start(major)?;
        let admin = cluster
            .create_database_of_superuser(
                "shop",
                "CREATE ROLE keeper LOGIN; CREATE ROLE owner; CREATE TABLE t (id int PRIMARY KEY); ALTER TABLE t OWNER TO owner;
                 ALTER TABLE t ENABLE ROW LEVEL SECURITY; GRANT SELECT ON pg_largeobject_metadata TO keeper",
            )
            .await?;
        let keeper = connect_as(&cluster, "keeper", "shop").await?;
        let found = check(&keeper, Side::Source).await?;
        expect(&found, Blocker, "keeper", "may not replicate", "ALTER ROLE keeper REPLICATION");
        expect(&found, Blocker, "keeper", "session_replication_role", "GRANT SET ON PARAMETER");
        expect(&found, Blocker, "keeper", "end other sessions", "GRANT pg_signal_backend TO keeper");
        expect(&found, Warning, "keeper", "who holds a lock", "GRANT pg_read_all_stats TO keeper");
        expect(&found, Blocker, "public.t", "does not own", "GRANT owner TO keeper");
        expect(&found, Blocker, "public.t", "row security", "BYPASSRLS");
        // Never membership of a superuser.
        expect(&found, Blocker, "shop", "does not own the database", "ALTER DATABASE shop OWNER TO …");
        expect(&found, Warning, "keeper", "deadlock_timeout", "GRANT SET ON PARAMETER deadlock_timeout");
        expect(&found, Blocker, "shop", "create schema godwit", "GRANT CREATE ON DATABASE shop TO keeper");
        let found = check(&keeper, Side::Target).await?;
        for function in ["create", "oid", "session_setup"] {
            let name = format!("pg_replication_origin_{function}(text)");
            expect(&found, Blocker, "keeper", &name, "GRANT EXECUTE ON FUNCTION");
        }

        // The remedies, taken at their word, leave nothing.
        admin
            .batch_execute(
                "ALTER ROLE keeper REPLICATION BYPASSRLS; GRANT pg_signal_backend, pg_read_all_stats, owner TO keeper;
                 ALTER DATABASE shop OWNER TO owner; GRANT CREATE ON DATABASE shop TO keeper;
                 GRANT SET ON PARAMETER session_replication_role TO keeper;
                 GRANT EXECUTE ON FUNCTION pg_replication_origin_create(text), pg_replication_origin_oid(text),
                   pg_replication_origin_session_setup(text) TO keeper",
            )
            .await?;
        drop(admin);
        let found = check(&keeper, Side::Source).await?;
        assert!(found.iter().all(|f| f.severity == Warning), "{found:#?}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_only_a_superuser_can_make_is_told_before_the_copy_stops_at_it() -> Result<()> {
    use Severity::Blocker;
    for major in [15, other_major()] {
        let (cluster, other) = (TestCluster::start(major)?, TestCluster::start(other_major())?);
        let client = cluster.create_database("shop", "CREATE TABLE t (id int PRIMARY KEY)").await?;
        let empty = other.create_database("shop", "").await?;
        assert_eq!((check(&client, Side::Source).await?, compare(&client, &empty).await?), (vec![], vec![]));
        let administrator = cluster.connect("shop").await?;
        administrator
            .batch_execute(
                "CREATE ROLE analyst; GRANT SELECT ON t TO analyst; ALTER SCHEMA public OWNER TO postgres;
                 CREATE VIEW seen AS SELECT 1 AS n; CREATE TYPE mood AS ENUM ('calm');
                 CREATE FUNCTION watch() RETURNS event_trigger LANGUAGE plpgsql AS 'BEGIN END';
                 CREATE EVENT TRIGGER watched ON ddl_command_start EXECUTE FUNCTION watch();
                 CREATE FUNCTION tight() RETURNS int LEAKPROOF LANGUAGE sql AS 'SELECT 1';
                 CREATE FOREIGN DATA WRAPPER w; CREATE EXTENSION hstore; CREATE EXTENSION pageinspect",
            )
            .await?;
        let found = check(&client, Side::Source).await?;
        expect(&found, Blocker, "postgres", "is no member of it", "a role that is not superuser");
        expect(&found, Blocker, "postgres", "and 4 more", "OWNER TO …");
        for made in ["event trigger watched", "function tight()", "foreign data wrapper w"] {
            expect(&found, Blocker, made, "only a superuser can make it", "DROP");
        }
        assert!(
            !found.iter().any(|f| f.problem.contains("hstore") || f.subject.contains("hstore")),
            "{found:#?}"
        );
        let found = compare(&client, &empty).await?;
        expect(&found, Blocker, "analyst", "the target does not have it", "CREATE ROLE \"analyst\"");
        expect(
            &found,
            Blocker,
            "pageinspect",
            "only a superuser can make it",
            "CREATE EXTENSION \"pageinspect\"",
        );
        assert_eq!(found.len(), 2, "a trusted extension is no finding: {found:#?}");

        // Mended as told, nothing is left.
        administrator
            .batch_execute(&format!(
                "DROP EVENT TRIGGER watched; DROP FUNCTION tight; DROP FOREIGN DATA WRAPPER w; ALTER SCHEMA public OWNER TO {OWNER_ROLE};
                 ALTER VIEW seen OWNER TO {OWNER_ROLE}; ALTER TYPE mood OWNER TO {OWNER_ROLE}; ALTER FUNCTION watch() OWNER TO {OWNER_ROLE}"
            ))
            .await?;
        other
            .connect("shop")
            .await?
            .batch_execute("CREATE ROLE analyst; CREATE EXTENSION pageinspect")
            .await?;
        let mut left = check(&client, Side::Source).await?;
        // This test's own administrator is there.
        left.retain(|finding| finding.subject != SUPERUSER);
        assert_eq!((left, compare(&client, &empty).await?), (vec![], vec![]));
        // And what is left, Godwit's role can copy.
        let dump = replicator::schema::dump(&cluster.config("shop"), Some(&newest(&cluster, &other))).await?;
        replicator::schema::load(&empty, &dump.pre_data).await?;
        replicator::schema::load(&empty, &dump.post_data.text().await?).await?;
        let owner = "SELECT relowner::regrole::text FROM pg_class WHERE relname = 't'";
        assert_eq!(empty.query_one(owner, &[]).await?.get::<_, String>(0), OWNER_ROLE);
    }
    Ok(())
}

/// Programs that read both.
fn newest(one: &TestCluster, other: &TestCluster) -> std::path::PathBuf {
    let fifteen = |cluster: &TestCluster| cluster.cluster.bin.ends_with("15/bin");
    if fifteen(one) { other.cluster.bin.clone() } else { one.cluster.bin.clone() }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_target_must_be_empty_or_our_own_copy() -> Result<()> {
    let cluster = TestCluster::start(15)?;
    let client = cluster.create_database("shop", "CREATE TABLE t (id int PRIMARY KEY)").await?;
    let found = check(&client, Side::Target).await?;
    expect(
        &found,
        Severity::Blocker,
        "user tables",
        "1 tables and no record of a copy: public.t",
        "empty database",
    );
    fence::install(&client, "orders", 1).await?;
    assert_eq!(check(&client, Side::Target).await?.len(), 1);
    client
        .batch_execute("INSERT INTO godwit.progress VALUES ('godwit_orders_g1', '0/1', NULL, true, 1)")
        .await?;
    assert_eq!(check(&client, Side::Target).await?, []);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn two_databases_that_do_not_match() -> Result<()> {
    let cluster = TestCluster::start(15)?;
    let client = cluster.create_database_of_superuser("shop", "").await?;
    let root = cluster.connect("postgres").await?;
    root.batch_execute("CREATE DATABASE ascii ENCODING 'SQL_ASCII' LOCALE 'C' TEMPLATE template0").await?;
    let ascii = cluster.connect("ascii").await?;
    let found = compare(&client, &ascii).await?;
    expect(&found, Severity::Blocker, "encoding", "UTF8", "ENCODING 'UTF8'");
    let found = check(&ascii, Side::Source).await?;
    expect(&found, Severity::Warning, "ascii", "SQL_ASCII", "same encoding");
    root.batch_execute("CREATE DATABASE plain LOCALE 'C' TEMPLATE template0").await?;
    let found = compare(&client, &cluster.connect("plain").await?).await?;
    expect(&found, Severity::Warning, "collation", "sorts differently", "LC_COLLATE");
    // An extension that no server has: only its catalogue row counts here.
    client.batch_execute("UPDATE pg_extension SET extname = 'nowhere' WHERE extname = 'plpgsql'").await?;
    let found = compare(&client, &root).await?;
    expect(&found, Severity::Blocker, "nowhere", "does not have it", "install the package");
    found.first().context("a finding")?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_slots_keep_back_is_told() -> Result<()> {
    for major in [15, other_major()] {
        let cluster = TestCluster::start_with(major, "max_wal_size = '32MB'\nmin_wal_size = '32MB'\n")?;
        let client = cluster.create_database_of_superuser("shop", "CREATE TABLE t (x text)").await?;
        let found = retention(&client).await?;
        expect(&found, Severity::Warning, "max_slot_wal_keep_size", "unlimited", "ALTER SYSTEM SET");
        assert_eq!(found.len(), 1, "{major}");

        // Three steps: one simple query is one transaction, and ALTER SYSTEM cannot be in one.
        client.batch_execute("ALTER SYSTEM SET max_slot_wal_keep_size = '1MB'").await?;
        client.batch_execute("SELECT pg_reload_conf()").await?;
        for slot in ["godwit_orders_g1", "others"] {
            client.execute("SELECT pg_create_logical_replication_slot($1, 'pgoutput')", &[&slot]).await?;
        }
        let lost = "SELECT bool_and(wal_status = 'lost') FROM pg_replication_slots";
        for _ in 0..20 {
            client
                .batch_execute("INSERT INTO t SELECT repeat('x', 500) FROM generate_series(1, 30000)")
                .await?;
            client.batch_execute("SELECT pg_switch_wal()").await?;
            client.batch_execute("CHECKPOINT").await?;
            if client.query_one(lost, &[]).await?.get::<_, bool>(0) {
                break;
            }
        }
        let found = retention(&client).await?;
        let drop = "SELECT pg_drop_replication_slot('godwit_orders_g1')";
        expect(&found, Severity::Warning, "godwit_orders_g1", "is lost", drop);
        let other = found.iter().find(|finding| finding.subject == "others").context("the other's slot")?;
        assert!(other.problem.contains("is lost") && other.remedy.is_none(), "nothing to drop: {other:?}");
        assert_eq!(found.len(), 2, "{found:#?}");
    }
    Ok(())
}
