//! Each finding, produced by a database that really is like that.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use godwit_tests::postgres::{GODWIT_ROLE, OWNER_ROLE, SUPERUSER, TestCluster, other_major};
use godwit_tests::waiting::until;
use replicator::drift::{self, fingerprint};
use replicator::fence::{self, FenceSpec};
use replicator::preflight::{Allowed, Finding, Severity, Side, check, check_for, compare, retention};
use replicator::reseed::{self, Reseed};
use replicator::unlogged::Unlogged;

use super::standby::Receiver;

#[track_caller]
pub(crate) fn expect(found: &[Finding], severity: Severity, subject: &str, problem: &str, remedy: &str) {
    assert!(
        found.iter().any(|f| f.severity == severity
            && f.subject == subject
            && f.problem.contains(problem)
            && f.remedy.as_deref().unwrap_or_default().contains(remedy)),
        "no {severity:?} on {subject} with {problem:?} and {remedy:?} in {found:#?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_good_database_has_no_findings() -> Result<()> {
    for major in [15, other_major()] {
        let cluster = TestCluster::start(major)?;
        let client = cluster.create_database("shop", "CREATE TABLE t (id int PRIMARY KEY)").await?;
        assert_eq!(check(&client, Side::Source).await?, [], "{major} source");
        let empty = cluster.create_database("empty", "").await?;
        assert_eq!(check(&empty, Side::Target).await?, [], "{major} target");
        let found = compare(&client, &empty).await?;
        assert!(matches!(&found[..], [one] if one.subject == "server"), "{found:?}");
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
                 CREATE TABLE offered (a int NOT NULL, b int NOT NULL, c int UNIQUE, CONSTRAINT \"Both\" UNIQUE (a, b) INCLUDE (c));
                 CREATE UNIQUE INDEX ON offered (a) WHERE b > 0; CREATE UNIQUE INDEX ON offered (abs(a));
                 CREATE TABLE made (id int, twice int GENERATED ALWAYS AS (id * 2) STORED, PRIMARY KEY (id, twice));
                 CREATE TABLE spare (LIKE made INCLUDING ALL); ALTER TABLE spare REPLICA IDENTITY FULL;
                 CREATE TABLE beside (id int, twice int GENERATED ALWAYS AS (id * 2) STORED, PRIMARY KEY (id) INCLUDE (twice));
                 CREATE UNLOGGED TABLE scratch (id int PRIMARY KEY);
                 CREATE MATERIALIZED VIEW totals AS SELECT count(*) FROM whole;
                 CREATE TABLE audited (id int PRIMARY KEY, of oid, seen xid8[], at bigint DEFAULT txid_current(), name regclass);
                 CREATE FOREIGN DATA WRAPPER w; CREATE SERVER s FOREIGN DATA WRAPPER w;
                                  CREATE FOREIGN TABLE elsewhere (id int) SERVER s;",
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
        let index = "ALTER TABLE public.offered REPLICA IDENTITY USING INDEX \"Both\"; or:";
        expect(&found, Blocker, "public.offered", "no usable primary key", index);
        client.batch_execute("ALTER TABLE public.offered REPLICA IDENTITY USING INDEX \"Both\"").await?;
        expect(&found, Blocker, "public.nothing", "NOTHING", "REPLICA IDENTITY USING INDEX nothing_pkey");
        expect(&found, Blocker, "public.lost", "index", "REPLICA IDENTITY");
        expect(
            &found,
            Blocker,
            "public.made",
            "twice of its replica identity is generated",
            "REPLICA IDENTITY FULL",
        );
        expect(&found, Blocker, "public.scratch", "unlogged", "SET LOGGED");
        client.batch_execute("ALTER DATABASE shop CONNECTION LIMIT 10").await?;
        let seats = check(&client, Side::Source).await?;
        expect(
            &seats,
            Warning,
            "database shop",
            "of 10 connections free",
            "ALTER DATABASE shop CONNECTION LIMIT 1",
        );
        client.batch_execute("ALTER DATABASE shop CONNECTION LIMIT -1").await?;
        let allowed = |unlogged| Allowed { unlogged, keyless: unlogged == Unlogged::Emptied };
        let emptied = check_for(&client, Side::Source, allowed(Unlogged::Emptied)).await?;
        expect(&emptied, Warning, "public.keyless", "no usable primary key", "REPLICA IDENTITY FULL");
        expect(&emptied, Warning, "public.scratch", "after a move it is empty", "unlogged: carry");
        let carried = check_for(&client, Side::Source, allowed(Unlogged::Carried)).await?;
        ensure!(carried.iter().all(|finding| finding.subject != "public.scratch"), "{carried:#?}");

        expect(&found, Blocker, "half", "prepared transaction", "ROLLBACK PREPARED 'half'");
        expect(&found, Warning, "public.elsewhere", "foreign table", "");
        expect(&found, Warning, "public.audited.of", "those of large objects are the same", "a name");
        expect(&found, Warning, "public.audited.seen", "numbers of this server (xid8[])", "");
        expect(&found, Warning, "public.audited.at", "numbers of this server (DEFAULT txid_current())", "");
        assert!(
            !found.iter().any(|f| f.subject == "public.audited.name"),
            "it is kept by its name: {found:#?}"
        );
        expect(&found, Warning, "postgres", "superuser", "NOSUPERUSER");
        expect(&found, Warning, "theirs", "subscription", "DISABLE");
        for good in ["public.whole", "public.spare", "public.beside", "public.totals"] {
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
                 ALTER TABLE t ENABLE ROW LEVEL SECURITY; GRANT SELECT ON pg_largeobject_metadata TO keeper;
                 SELECT lo_create(7); ALTER LARGE OBJECT 7 OWNER TO owner",
            )
            .await?;
        let keeper = cluster.connect_as("keeper", "shop").await?;
        let found = check(&keeper, Side::Source).await?;
        expect(&found, Blocker, "keeper", "may not replicate", "ALTER ROLE keeper REPLICATION");
        expect(&found, Blocker, "keeper", "session_replication_role", "GRANT SET ON PARAMETER");
        expect(&found, Blocker, "keeper", "end other sessions", "GRANT pg_signal_backend TO keeper");
        expect(&found, Warning, "keeper", "who holds a lock", "GRANT pg_read_all_stats TO keeper");
        expect(&found, Blocker, "public.t", "does not own", "GRANT owner TO keeper");
        expect(&found, Blocker, "public.t", "row security", "BYPASSRLS");
        let read = "GRANT SELECT ON pg_catalog.pg_largeobject TO keeper";
        expect(&found, Blocker, "large objects", "may not read 1 large objects", read);
        expect(&found, Blocker, "owner", "owns large object 7", "GRANT owner TO keeper");
        // Never membership of a superuser.
        expect(&found, Blocker, "shop", "does not own the database", "ALTER DATABASE shop OWNER TO …");
        expect(&found, Warning, "keeper", "deadlock_timeout", "GRANT SET ON PARAMETER deadlock_timeout");
        expect(&found, Blocker, "shop", "create schema godwit", "GRANT CREATE ON DATABASE shop TO keeper");
        // Where nobody may give the attribute, a role stands for it.
        admin.batch_execute("CREATE ROLE rds_replication").await?;
        let found = check(&keeper, Side::Source).await?;
        expect(&found, Blocker, "keeper", "may not replicate", "GRANT rds_replication TO keeper");
        admin.batch_execute("GRANT rds_replication TO keeper").await?;
        let found = check(&keeper, Side::Source).await?;
        assert!(!found.iter().any(|f| f.problem == "may not replicate"), "{found:#?}");
        admin.batch_execute("DROP ROLE rds_replication").await?;
        let found = check(&keeper, Side::Target).await?;
        expect(&found, Blocker, "large objects", "they would be dropped", "lo_unlink");
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
                                      pg_replication_origin_session_setup(text) TO keeper;
                 GRANT SELECT ON pg_catalog.pg_largeobject TO keeper",
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
        // What says that it is in C without being, everybody can make.
        let sql = "CREATE TABLE t (id int PRIMARY KEY); CREATE AGGREGATE summed (int) (sfunc = int4pl, stype = int);
                   CREATE TYPE floats AS RANGE (subtype = float8)";
        let client = cluster.create_database("shop", sql).await?;
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
                 CREATE FOREIGN DATA WRAPPER w; CREATE EXTENSION hstore; CREATE SCHEMA seeing; CREATE EXTENSION pageinspect SCHEMA seeing;
                 CREATE CAST (text AS bytea) WITHOUT FUNCTION; CREATE FUNCTION strict() RETURNS int LEAKPROOF LANGUAGE sql AS 'SELECT 1';
                 ALTER FUNCTION strict() OWNER TO orders_owner; GRANT USAGE ON SCHEMA seeing TO analyst;
                 REVOKE EXECUTE ON FUNCTION seeing.page_header(bytea), seeing.tuple_data_split(oid, bytea, int, int, text) FROM PUBLIC;
                 GRANT EXECUTE ON FUNCTION seeing.page_header(bytea), seeing.tuple_data_split(oid, bytea, int, int, text) TO analyst",
            )
            .await?;
        let mut found = check(&client, Side::Source).await?;
        found.retain(|finding| finding.subject != SUPERUSER);
        expect(
            &found,
            Blocker,
            OWNER_ROLE,
            "may not create in schema public",
            "GRANT CREATE ON SCHEMA public TO",
        );
        assert_eq!(found.len(), 1, "{found:#?}");
        let found = compare(&client, &empty).await?;
        for (made, how) in [
            ("view public.seen", "make view public.seen as pg_dump of the source has it, as superuser"),
            ("type mood", "or here ALTER type mood OWNER TO …"),
            ("function watch()", "OWNER TO …"),
            ("function tight()", "or here DROP function tight()"),
            (
                "foreign data wrapper w",
                "CREATE FOREIGN DATA WRAPPER w, as superuser in the target's database; or here DROP",
            ),
            ("schema public", "ALTER SCHEMA public OWNER TO postgres, as superuser in the target's database"),
            ("cast (text as bytea)", "or here DROP cast (text as bytea)"),
        ] {
            expect(&found, Blocker, made, "the copy leaves it, and the target does not have it", how);
        }
        expect(
            &found,
            Blocker,
            "function strict()",
            "the copy would stop there",
            "or let a superuser own it",
        );
        let schema = "CREATE SCHEMA IF NOT EXISTS seeing; CREATE EXTENSION pageinspect SCHEMA seeing";
        expect(&found, Blocker, "pageinspect", "only a superuser can make it", schema);
        expect(&found, Blocker, "schema seeing", "a superuser's", "CREATE SCHEMA seeing");
        expect(&found, Blocker, "analyst", "the target does not have it", "CREATE ROLE analyst");
        expect(
            &found,
            Severity::Warning,
            "event trigger watched",
            "the target has none like the source's",
            "CREATE EVENT TRIGGER watched ON ddl_command_start EXECUTE FUNCTION public.watch() on the target, once the copy is made",
        );
        assert_eq!(found.len(), 12, "a trusted extension is no finding: {found:#?}");

        // Mended as told, what it may do there is left.
        administrator
            .batch_execute(&format!(
                "DROP EVENT TRIGGER watched; ALTER VIEW seen OWNER TO {OWNER_ROLE}; ALTER TYPE mood OWNER TO {OWNER_ROLE};
                 ALTER FUNCTION watch() OWNER TO {OWNER_ROLE}; ALTER FUNCTION strict() OWNER TO postgres;
                 GRANT CREATE ON SCHEMA public TO {OWNER_ROLE}"
            ))
            .await?;
        let superuser = other.connect("shop").await?;
        superuser
            .batch_execute(
                "CREATE ROLE analyst; CREATE SCHEMA IF NOT EXISTS seeing; CREATE EXTENSION pageinspect SCHEMA seeing; ALTER SCHEMA public OWNER TO postgres;
                 CREATE FUNCTION tight() RETURNS int LEAKPROOF LANGUAGE sql AS 'SELECT 1';
                 CREATE FUNCTION strict() RETURNS int LEAKPROOF LANGUAGE sql AS 'SELECT 1'; CREATE FOREIGN DATA WRAPPER w;
                 CREATE CAST (text AS bytea) WITHOUT FUNCTION;
                 REVOKE EXECUTE ON FUNCTION seeing.page_header(bytea), seeing.tuple_data_split(oid, bytea, int, int, text) FROM PUBLIC",
            )
            .await?;
        let found = compare(&client, &empty).await?;
        let grant = "GRANT EXECUTE ON FUNCTION seeing.page_header(bytea) TO analyst; GRANT EXECUTE ON FUNCTION seeing.tuple_data_split(";
        expect(
            &found,
            Blocker,
            "analyst",
            "has EXECUTE on FUNCTION seeing.page_header(bytea) and on 1 more on the source and not on the target",
            grant,
        );
        expect(
            &found,
            Blocker,
            "analyst",
            "has USAGE on SCHEMA seeing on the source",
            "GRANT USAGE ON SCHEMA seeing TO analyst on the target",
        );
        expect(
            &found,
            Blocker,
            OWNER_ROLE,
            "has CREATE on SCHEMA public",
            "GRANT CREATE ON SCHEMA public TO orders_owner",
        );
        assert_eq!(found.len(), 3, "{found:#?}");
        for finding in found {
            let remedy = finding.remedy.context("a remedy")?;
            superuser.batch_execute(remedy.trim_end_matches(" on the target")).await?;
        }
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
    if one.major() < other.major() { other.cluster.bin.clone() } else { one.cluster.bin.clone() }
}

/// What some server cannot make, for its version or for how it was built, and what is said of it.
const FOREIGN: [(&str, &str); 12] = [
    ("CREATE TABLE t (x text COLLATE \"de-x-icu\")", "column x of table t uses it"),
    ("CREATE COLLATION german (provider = icu, locale = 'de')", "is of ICU"),
    ("CREATE TABLE t (x text COMPRESSION lz4)", "lz4"),
    ("CREATE TABLE t (x text COLLATE pg_c_utf8)", "column x of table t uses it"),
    ("CREATE COLLATION plain (provider = builtin, locale = 'C')", "is a builtin one"),
    ("CREATE TABLE t (r int4range, EXCLUDE USING gist (r WITH =)) PARTITION BY RANGE (r)", "does not know"),
    ("CREATE TABLE t (id int, twice int GENERATED ALWAYS AS (id * 2) VIRTUAL)", "does not know"),
    ("CREATE TABLE t (id int4range, at tsrange, PRIMARY KEY (id, at WITHOUT OVERLAPS))", "does not know"),
    ("CREATE TABLE t (id int CHECK (id > 0) NOT ENFORCED)", "does not know"),
    ("CREATE TABLE t (id int NOT NULL NO INHERIT)", "does not know"),
    ("CREATE TABLE t (id int); ALTER TABLE t ADD CONSTRAINT n NOT NULL id NOT VALID", "does not know"),
    (
        "CREATE TABLE t (a int, b int, UNIQUE NULLS NOT DISTINCT (a, b));
         CREATE TABLE u (a int, b int, c int REFERENCES t2 ON DELETE SET NULL (c));
         CREATE VIEW v WITH (security_invoker) AS SELECT 1 AS n",
        "does not know",
    ),
];

/// A finding means that the schema does not load, and none that it does.
#[tokio::test(flavor = "multi_thread")]
async fn what_the_target_cannot_load_is_foretold() -> Result<()> {
    let clusters = [TestCluster::start(15)?, TestCluster::start(other_major())?];
    let bin = newest(&clusters[0], &clusters[1]);
    let mut foretold = 0;
    for (from, to) in [(0, 1), (1, 0)] {
        let (source, target) = (&clusters[from], &clusters[to]);
        for (place, (sql, problem)) in FOREIGN.into_iter().enumerate() {
            let name = format!("shop{place}");
            // What the source itself cannot do needs no foretelling.
            let made = source.create_database(&name, "CREATE TABLE t2 (id int PRIMARY KEY)").await?;
            if made.batch_execute(sql).await.is_err() {
                continue;
            }
            let empty = target.create_database(&format!("of_{name}"), "").await?;
            let mut found = compare(&made, &empty).await?;
            found.retain(|finding| finding.severity == Severity::Blocker);
            let dump = replicator::schema::dump(&source.config(&name), Some(&bin)).await?;
            let mut loaded = replicator::schema::load(&empty, &dump.pre_data).await;
            if loaded.is_ok() {
                loaded = replicator::schema::load(&empty, &dump.post_data.text().await?).await;
            }
            assert_eq!(loaded.is_err(), !found.is_empty(), "{sql}: {loaded:?}, foretold: {found:#?}");
            assert!(found.iter().all(|finding| finding.problem.contains(problem)), "{sql}: {found:#?}");
            foretold += found.len();
        }
    }
    assert!(foretold > 0, "both servers can make everything: nothing was tried");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn xml_is_foretold_where_the_target_has_none() -> Result<()> {
    let (source, target) = (TestCluster::start(15)?, TestCluster::start(other_major())?);
    let client = source
        .create_database("shop", "CREATE DOMAIN page AS xml; CREATE TABLE t (id int PRIMARY KEY, x page)")
        .await?;
    let empty = target.create_database("shop", "").await?;
    let found = compare(&client, &empty).await?;
    let knows = empty.simple_query("SELECT '<a/>'::xml").await.is_ok();
    assert_eq!(
        knows,
        !found.iter().any(|f| f.subject == "public.t.x" && f.problem.contains("XML")),
        "{found:#?}"
    );
    Ok(())
}

/// Roles and what they may and begin with: told, and gone when each remedy has been taken at its word.
#[tokio::test(flavor = "multi_thread")]
async fn what_sessions_would_miss_on_the_target_is_told() -> Result<()> {
    use Severity::{Blocker, Warning};
    for (one, other) in [(15, other_major()), (other_major(), 15)] {
        let (source, target) = (TestCluster::start(one)?, TestCluster::start(other)?);
        let client = source.create_database("shop", "CREATE TABLE t (id int PRIMARY KEY)").await?;
        let empty = target.create_database("goods", "").await?;
        assert_eq!(compare(&client, &empty).await?, []);
        let [here, there] = [source.connect("shop").await?, target.connect("goods").await?];
        for (client, database) in [(&here, "shop"), (&there, "goods")] {
            client
                .batch_execute(&format!(
                    "CREATE ROLE readers; CREATE ROLE app LOGIN; REVOKE ALL ON DATABASE {database} FROM PUBLIC"
                ))
                .await?;
        }
        here.batch_execute(
            "GRANT SELECT ON t TO readers; GRANT readers TO app; ALTER ROLE app BYPASSRLS;
             CREATE ROLE auditors; GRANT auditors TO app; CREATE ROLE clerk LOGIN IN ROLE readers;
             GRANT CONNECT, TEMPORARY ON DATABASE shop TO app; ALTER DATABASE shop SET search_path = app, public;
             ALTER DATABASE shop SET shop.tenant = 'it''s'; ALTER ROLE app IN DATABASE shop SET statement_timeout = '5s';
             ALTER ROLE app SET search_path = \"$user\", app;
             ALTER DATABASE shop SET IntervalStyle = 'iso_8601'; ALTER DATABASE shop SET synchronous_commit = local;
             CREATE PUBLICATION feed FOR ALL TABLES WITH (publish = 'insert, delete')",
        )
        .await?;
        here.batch_execute("SELECT pg_create_logical_replication_slot('cdc', 'pgoutput')").await?;
        // A session begins with what was set before it.
        let client = source.connect_as(GODWIT_ROLE, "shop").await?;
        let found = compare(&client, &empty).await?;
        expect(&found, Blocker, "app", "a member of readers", "GRANT readers TO app");
        expect(&found, Blocker, "app", "a member of auditors", "CREATE ROLE auditors; GRANT auditors TO app");
        expect(&found, Blocker, "app", "passes row security", "ALTER ROLE app BYPASSRLS");
        for right in ["CONNECT", "TEMPORARY"] {
            expect(&found, Blocker, "app", right, &format!("GRANT {right} ON DATABASE goods TO app"));
        }
        expect(&found, Blocker, "clerk", "as a member of readers", "CREATE ROLE clerk");
        let search = "ALTER DATABASE goods SET search_path TO app, public";
        expect(&found, Warning, "search_path", "'app, public' on the source by ALTER DATABASE goods", search);
        expect(&found, Warning, "shop.tenant", "'it''s'", "ALTER DATABASE goods SET shop.tenant TO 'it''s'");
        let timeout = "ALTER ROLE app IN DATABASE goods SET statement_timeout TO '5s'";
        expect(&found, Warning, "statement_timeout", "not set so on the target", timeout);
        expect(
            &found,
            Warning,
            "search_path",
            "by ALTER ROLE app",
            "ALTER ROLE app SET search_path TO \"$user\", app",
        );
        let style = "ALTER DATABASE goods SET IntervalStyle TO 'iso_8601'";
        expect(
            &found,
            Warning,
            "IntervalStyle",
            "sessions begin with 'iso_8601' on the source and with 'postgres'",
            style,
        );
        expect(&found, Warning, "cdc", "slot (pgoutput)", "PostgreSQL front");
        let feed = "CREATE PUBLICATION feed FOR ALL TABLES WITH (publish = 'insert, delete'";
        expect(&found, Warning, "feed", "publication", feed);
        assert_eq!(found.len(), 13, "{found:#?}");

        for finding in &found {
            let remedy = finding.remedy.as_deref().context("a remedy")?;
            let sql = remedy.split(" on the target").next().context("SQL")?;
            let sql = match (sql, &*finding.subject) {
                ("CREATE ROLE clerk", _) => "CREATE ROLE clerk LOGIN IN ROLE readers",
                // What a move does for a reader that comes through the front.
                (_, "cdc") => "SELECT pg_create_logical_replication_slot('cdc', 'pgoutput')",
                _ => sql,
            };
            there.batch_execute(sql).await.with_context(|| format!("take {remedy}"))?;
        }
        let empty = target.connect_as(GODWIT_ROLE, "goods").await?;
        assert_eq!(compare(&client, &empty).await?, []);
        // What a fence has taken away is not missing.
        fence::install(&empty, "orders", 1).await?;
        let fence = FenceSpec {
            resource: "orders".into(),
            generation: 2,
            run: "m1".into(),
            holder: None,
            app_roles: vec!["app".into()],
            lock_timeout: Duration::from_secs(5),
            kill_timeout: Duration::from_secs(10),
            large_objects: None,
        };
        fence::close(&empty, &fence).await?;
        let may = "SELECT has_database_privilege('app', 'goods', 'CONNECT')";
        assert!(!empty.query_one(may, &[]).await?.get::<_, bool>(0), "the fence took it");
        assert_eq!(compare(&client, &empty).await?, []);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn passwords_that_differ_are_told_to_who_may_read_them() -> Result<()> {
    let (source, target) = (TestCluster::start(15)?, TestCluster::start(other_major())?);
    let (client, empty) =
        (source.create_database("shop", "").await?, target.create_database("shop", "").await?);
    let [here, there] = [source.connect("shop").await?, target.connect("shop").await?];
    here.batch_execute("CREATE ROLE app LOGIN PASSWORD 'new'; CREATE ROLE clerk LOGIN PASSWORD 'x'").await?;
    there.batch_execute("CREATE ROLE app LOGIN PASSWORD 'old'; CREATE ROLE clerk LOGIN").await?;
    assert_eq!(compare(&client, &empty).await?, [], "Godwit's role may not read them");
    let found = compare(&here, &there).await?;
    expect(&found, Severity::Warning, "app", "another password", "ALTER ROLE \"app\" PASSWORD");
    expect(&found, Severity::Warning, "clerk", "none on the target", "ALTER ROLE \"clerk\" PASSWORD");
    assert_eq!(found.len(), 2, "{found:#?}");
    let sql = "SELECT rolpassword FROM pg_authid WHERE rolname = $1";
    for role in ["app", "clerk"] {
        let verifier: String = here.query_one(sql, &[&role]).await?.get(0);
        there.batch_execute(&format!("ALTER ROLE {role} PASSWORD '{verifier}'")).await?;
    }
    assert_eq!(compare(&here, &there).await?, []);
    Ok(())
}

/// A server with few locks.
const FEW: &str = "max_locks_per_transaction = 10\nmax_connections = 20\nmax_worker_processes = 4\n\
                   max_wal_senders = 4\nautovacuum_max_workers = 1\n";

/// A dump locks every table: where there is no room for so many locks it fails, and so may the service's own sessions.
#[tokio::test(flavor = "multi_thread")]
async fn too_many_tables_for_the_locks_are_told() -> Result<()> {
    use Severity::{Blocker, Warning};
    // Each in a transaction of its own: making one takes locks, too.
    let tables = |from: u32, to: u32| {
        format!(
            "DO $$ BEGIN FOR i IN {from}..{to} LOOP EXECUTE format('CREATE TABLE t_%s (id int PRIMARY KEY)', i); COMMIT; END LOOP; END $$"
        )
    };
    for (one, other) in [(15, other_major()), (other_major(), 15)] {
        let (source, target) = (TestCluster::start_with(one, FEW)?, TestCluster::start_with(other, FEW)?);
        let bin = newest(&source, &target);
        let client = source.create_database("shop", &tables(1, 100)).await?;
        let empty = target.create_database("shop", "").await?;
        let dump = async || {
            let dump = replicator::schema::dump(&source.config("shop"), Some(&bin)).await?;
            dump.post_data.text().await
        };
        assert_eq!((check(&client, Side::Source).await?, compare(&client, &empty).await?), (vec![], vec![]));
        client.batch_execute(&tables(101, 200)).await?;
        let found = check(&client, Side::Source).await?;
        expect(&found, Warning, "max_locks_per_transaction", "200 tables", "max_locks_per_transaction = 14");
        dump().await?;
        for from in (201..1_500).step_by(100) {
            client.batch_execute(&tables(from, from + 99)).await?;
        }
        let found = check(&client, Side::Source).await?;
        expect(
            &found,
            Blocker,
            "max_locks_per_transaction",
            "1500 tables",
            "max_locks_per_transaction = 105",
        );
        let failure = dump().await.map_or_else(|error| error.to_string(), |_| "it went".into());
        assert!(failure.contains("max_locks_per_transaction"), "{failure}");
        let found = compare(&client, &empty).await?;
        expect(&found, Blocker, "max_locks_per_transaction", "lock 1500 tables", "= 105 on the target");
    }
    Ok(())
}

/// What is dropped is locked, with its indexes, constraints and types: more than there are locks where all goes at once.
#[tokio::test(flavor = "multi_thread")]
async fn a_shadow_of_many_tables_is_emptied_in_parts() -> Result<()> {
    let tables = "DO $$ BEGIN FOR i IN 1..100 LOOP \
        EXECUTE format('CREATE TABLE tenant.t_%s (id int PRIMARY KEY REFERENCES tenant.hub, a text UNIQUE)', i); COMMIT; \
        EXECUTE format('CREATE TABLE public.t_%s (id serial PRIMARY KEY, a text UNIQUE)', i); COMMIT; END LOOP; END $$";
    for major in [15, other_major()] {
        let cluster = TestCluster::start_with(major, FEW)?;
        let source = cluster.create_database("source", "").await?;
        let hub = "CREATE SCHEMA tenant; CREATE TABLE tenant.hub (id int PRIMARY KEY)";
        let shadow = cluster.create_database("shadow", hub).await?;
        shadow.batch_execute(&format!("SET ROLE {OWNER_ROLE}")).await?;
        shadow.batch_execute(tables).await?;
        shadow.batch_execute("RESET ROLE").await?;
        fence::install(&shadow, "orders", 1).await?;
        let copied = "INSERT INTO godwit.progress (stream, applied_lsn, copied, generation) VALUES ('main', '0/1', true, 1); \
            UPDATE godwit.epoch SET fenced = true, marker_lsn = '0/1'";
        shadow.batch_execute(copied).await?;
        let what = Reseed { resource: "orders", stream: "main", critical: "critical", generation: 1 };
        let stands = "SELECT p.copied, e.fenced AND e.marker_lsn IS NULL, (SELECT count(*) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
            WHERE n.nspname IN ('public', 'tenant')) FROM godwit.progress p, godwit.epoch e";
        let mut parts = 0;
        while reseed::empty(&source, &shadow, &what).await? {
            parts += 1;
            let row = shadow.query_one(stands, &[]).await?;
            assert_eq!((row.get(0), row.get(1)), (false, true), "it waits for its copy, and nobody writes");
        }
        assert!(parts > 10, "{parts} parts");
        let row = shadow.query_one(stands, &[]).await?;
        assert_eq!((row.get(0), row.get(1), row.get(2)), (false, false, 0_i64), "{major}");
    }
    Ok(())
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
        if major >= 18 {
            client.batch_execute("ALTER SYSTEM SET idle_replication_slot_timeout = '1h'").await?;
            client.batch_execute("SELECT pg_reload_conf()").await?;
            let name = "idle_replication_slot_timeout";
            let set = "SELECT setting::int > 0 FROM pg_settings WHERE name = $1";
            while !client.query_one(set, &[&name]).await?.get::<_, bool>(0) {}
            expect(&retention(&client).await?, Severity::Warning, name, "is 3600 s", "ALTER SYSTEM SET");
            client.batch_execute("ALTER SYSTEM RESET idle_replication_slot_timeout").await?;
            client.batch_execute("SELECT pg_reload_conf()").await?;
            while client.query_one(set, &[&name]).await?.get::<_, bool>(0) {}
        }

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

#[tokio::test(flavor = "multi_thread")]
async fn libraries_and_versions_that_the_target_lacks_are_told() -> Result<()> {
    use Severity::Warning;
    let loaded = "shared_preload_libraries = 'pg_stat_statements, auto_explain'\nsession_preload_libraries = 'auto_explain'";
    let source = TestCluster::start_with(15, loaded)?;
    let target = TestCluster::start_with(15, "shared_preload_libraries = 'pg_stat_statements'")?;
    let client = source.create_database("shop", "CREATE TABLE t (id int PRIMARY KEY)").await?;
    let empty = target.create_database("shop", "").await?;
    let [here, there] = [source.connect("shop").await?, target.connect("shop").await?];
    here.batch_execute("CREATE EXTENSION pg_stat_statements; CREATE EXTENSION hstore VERSION '1.4'").await?;
    there.batch_execute("CREATE EXTENSION pg_stat_statements VERSION '1.9'").await?;
    let found = compare(&client, &empty).await?;
    let update = "ALTER EXTENSION pg_stat_statements UPDATE TO '1.10' on the target";
    expect(&found, Warning, "extension pg_stat_statements", "of version 1.10 on the source", update);
    let shared = "shared_preload_libraries = pg_stat_statements, 'auto_explain'";
    expect(&found, Warning, "library auto_explain", "by shared_preload_libraries on the source", shared);
    let session = "session_preload_libraries = 'auto_explain'";
    expect(&found, Warning, "library auto_explain", "by session_preload_libraries on the source", session);
    assert_eq!(found.len(), 3, "a newer one is none: {found:#?}");
    for finding in &found {
        let remedy = finding.remedy.as_deref().and_then(|sql| sql.split(" on the target").next());
        there.batch_execute(remedy.context("a remedy")?).await?;
    }
    drop((empty, there));
    target.cluster.stop("fast")?;
    target.cluster.start()?;
    let empty = target.connect_as(GODWIT_ROLE, "shop").await?;
    assert_eq!(compare(&client, &empty).await?, []);
    Ok(())
}

/// What is not done for the database but beside it: its WAL is kept, it is vacuumed, others follow its server.
#[tokio::test(flavor = "multi_thread")]
async fn what_only_the_sources_server_does_is_told() -> Result<()> {
    use Severity::Warning;
    for (one, other) in [(15, other_major()), (other_major(), 15)] {
        let source = TestCluster::start_with(one, "archive_mode = on\narchive_command = 'true'")?;
        let target = TestCluster::start_with(other, "autovacuum = off")?;
        let client = source.create_database("shop", "CREATE TABLE t (id int PRIMARY KEY)").await?;
        let empty = target.create_database("shop", "").await?;
        let admin = source.connect("shop").await?;
        let follows = |admin| async move {
            let follows = "SELECT EXISTS (SELECT FROM pg_stat_replication WHERE state = 'streaming')";
            let admin: &tokio_postgres::Client = admin;
            until("it is followed", async || Ok(admin.query_one(follows, &[]).await?.get(0))).await
        };
        let _here = Receiver::start(&source, &source.directory().join("received"))?;
        follows(&admin).await?;
        let found = compare(&client, &empty).await?;
        let archive = "ALTER SYSTEM SET archive_mode = 'on' on the target, with its archive_command; then restart the server";
        expect(&found, Warning, "archive_mode", "nobody keeps the WAL", archive);
        let vacuum = "ALTER SYSTEM SET autovacuum = 'on' on the target; then reload the server";
        expect(&found, Warning, "autovacuum", "nobody vacuums", vacuum);
        expect(&found, Warning, "pg_receivewal", "nobody follows the target's", "make standbys");
        assert_eq!(found.len(), 3, "{found:#?}");

        let there = target.connect("shop").await?;
        there.batch_execute("ALTER SYSTEM SET autovacuum = 'on'").await?;
        there.batch_execute("SELECT pg_reload_conf()").await?;
        let _there = Receiver::start(&target, &target.directory().join("received"))?;
        follows(&there).await?;
        let found = compare(&client, &empty).await?;
        assert_eq!(found.len(), 1, "what cannot be had without a restart: {found:#?}");
    }
    Ok(())
}

/// What `pg_repack` has in its schema while it rewrites a table, and on that: no table of the service's, no difference, and a reason to wait.
#[tokio::test(flavor = "multi_thread")]
async fn what_pg_repack_works_with_passes() -> Result<()> {
    let table = "CREATE TABLE t (id int PRIMARY KEY)";
    let (source, target) = (TestCluster::start(15)?, TestCluster::start(15)?);
    let (here, there) =
        (source.create_database("shop", table).await?, target.create_database("shop", table).await?);
    for admin in [source.connect("shop").await?, target.connect("shop").await?] {
        let extension = "CREATE SCHEMA repack; CREATE FUNCTION repack.repack_trigger() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';
            CREATE TABLE repack.log_1 (id int PRIMARY KEY)";
        admin.batch_execute(extension).await?;
    }
    let alike = async || {
        let [one, other] = [fingerprint(&here).await?, fingerprint(&there).await?];
        let found = drift::compare(&one, &other, ["here", "there"]);
        anyhow::Ok(
            found
                .into_iter()
                .map(|difference| format!("{}: {}", difference.subject, difference.what))
                .collect::<Vec<_>>(),
        )
    };
    // None of them is published.
    let mut before = alike().await?;
    let admin = source.connect("shop").await?;
    let number: u32 = admin.query_one("SELECT 't'::regclass::oid", &[]).await?.get(0);
    let work = format!(
        "CREATE TYPE repack.pk_{number} AS (id int); CREATE TABLE repack.log_{number} (id bigserial PRIMARY KEY, pk repack.pk_{number}, row t);
         CREATE TABLE repack.table_{number} (LIKE t);
         CREATE TRIGGER repack_trigger AFTER INSERT OR UPDATE OR DELETE ON t FOR EACH ROW EXECUTE FUNCTION repack.repack_trigger();
         ALTER TABLE t ENABLE ALWAYS TRIGGER repack_trigger"
    );
    admin.batch_execute(&work).await?;
    // Of a schema that is an extension's no type is compared.
    before.push(format!("repack.pk_{number}: type added on here"));
    assert_eq!(alike().await?, before);
    let found = check(&here, Side::Source).await?;
    expect(&found, Severity::Blocker, "t", "pg_repack is rewriting it", "wait for its end");
    assert!(found.iter().all(|finding| !finding.subject.contains(&number.to_string())), "{found:#?}");
    let published = replicator::copy::tables(&here).await?;
    let names: Vec<&str> = published.iter().map(|table| table.name.as_str()).collect();
    assert_eq!(names, ["t", "log_1"], "a table that is of no other is the service's");
    Ok(())
}
