//! The initial copy between real databases: what is finished stays when the link breaks, the rate is kept, what comes after
//! the rows is there.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use godwit_tests::postgres::{GODWIT_ROLE, OWNER_ROLE, other_major};
use godwit_tests::waiting::until;
use replicator::copy::CopyOptions;
use replicator::drift::{Difference, Mend, compare as differences, fingerprint};
use replicator::link::memory::Options;
use replicator::preflight::{Finding, Severity, Side, check, compare};
use replicator::pump::{LocalEnd, LocalPeer};
use replicator::status::{Phase, StreamStatus};
use tokio_postgres::Client;

use super::stream::{DATABASE, Pair, Running, spec};

const BIG: &str = "
CREATE TABLE big (id int PRIMARY KEY, n int NOT NULL, filler text NOT NULL);
INSERT INTO big SELECT i, 0, repeat(md5(i::text), 25) FROM generate_series(1, 200000) i;
ANALYZE big;
";

fn with(end: LocalEnd, options: CopyOptions) -> LocalEnd {
    match end {
        LocalEnd::Source { dsn, bin, spill, .. } => LocalEnd::Source { dsn, bin, spill, copy: options },
        target @ LocalEnd::Target { .. } => target,
    }
}

/// A copy by so many sessions, at most so many bytes a second.
fn slowly(pair: &Pair, peer: Arc<LocalPeer>, sessions: u32, bytes_per_second: u64) -> Running {
    let options =
        CopyOptions { sessions, bytes_per_second: Some(bytes_per_second), ..CopyOptions::default() };
    Running::start(peer, spec(1), with(pair.source_end(), options))
}

/// Parts of `big` that are recorded, their rows, and the transaction counter.
async fn parts(to: &Client) -> Result<(i64, i64, i64)> {
    let sql = "SELECT count(*), coalesce(sum(rows), 0)::bigint, txid_current() FROM godwit.copied_parts WHERE table_name = 'big'";
    let row = to.query_one(sql, &[]).await?;
    Ok((row.get(0), row.get(1), row.get(2)))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn finished_parts_of_a_big_table_stay_when_the_link_breaks() -> Result<()> {
    let pair = Pair::start(15, 18).await?;
    pair.from.batch_execute(BIG).await?;
    let peer = LocalPeer::new(pair.target_end(), Options::default());
    let stream = slowly(&pair, peer.clone(), 1, 60 << 20);
    let deadline = Instant::now() + Duration::from_secs(60);
    let mut kept = Vec::new();
    for wanted in 1..=2 {
        while parts(&pair.to).await?.0 < wanted {
            ensure!(Instant::now() < deadline, "{:?}", stream.status.borrow());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        peer.cut();
        // Updated meanwhile: some moves to another part, and comes by the stream alone.
        pair.from.batch_execute("UPDATE big SET n = n + 1 WHERE id % 1000 = 0").await?;
        stream.wait(|status| !status.failures.is_empty()).await?;
        let (count, rows, counter) = parts(&pair.to).await?;
        println!("cut with {count} parts, {rows} rows finished");
        kept.push((rows, counter));
    }
    stream.wait(|status| status.phase == Phase::Streaming).await?;
    pair.caught_up(&stream).await?;
    let digest = "SELECT count(*), sum(hashtextextended(t::text, 0))::text FROM big t";
    let (from, to) = (pair.from.query_one(digest, &[]).await?, pair.to.query_one(digest, &[]).await?);
    ensure!(from.get::<_, i64>(0) == to.get::<_, i64>(0), "another number of rows");
    ensure!(from.get::<_, String>(1) == to.get::<_, String>(1), "other rows");
    for (rows, counter) in kept {
        let old = "SELECT count(*) FROM big WHERE xmin::text::bigint < $1";
        let old: i64 = pair.to.query_one(old, &[&counter]).await?.get(0);
        // What the stream has updated since is new: 200 rows each time.
        ensure!(rows - old <= 400 && old > 0, "copied again: {old} of {rows} rows are old");
    }
    stream.stop().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_keeps_its_rate() -> Result<()> {
    let pair = Pair::start(15, 15).await?;
    let rows = "CREATE TABLE bulk (id int PRIMARY KEY, filler text NOT NULL); \
                INSERT INTO bulk SELECT i, repeat('z', 1000) FROM generate_series(1, 4000) i";
    pair.from.batch_execute(rows).await?;
    let peer = LocalPeer::new(pair.target_end(), Options::default());
    let began = Instant::now();
    let stream = slowly(&pair, peer, 4, 1 << 20);
    let (mut bytes, mut estimates) = (0, 0);
    let mut status = stream.status.clone();
    loop {
        status.changed().await.context("the stream goes on")?;
        match &status.borrow_and_update().phase {
            Phase::Copying { bytes: now, remaining, .. } => {
                bytes = *now;
                estimates += u32::from(remaining.is_some());
            }
            Phase::Streaming => break,
            Phase::Failed { error, .. } => anyhow::bail!("{error}"),
            _ => {}
        }
    }
    let took = began.elapsed();
    println!("{bytes} bytes in {took:?}, {estimates} estimates of what is left");
    // 4 MB at 1 MiB a second.
    ensure!(took >= Duration::from_secs(3), "too fast: {took:?}");
    // The last numbers may be overtaken by the next phase.
    ensure!(bytes > 3_000_000 && estimates > 3, "{bytes} bytes, {estimates} estimates");
    pair.caught_up(&stream).await?;
    stream.stop().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_comes_after_the_rows_is_all_there() -> Result<()> {
    let pair = Pair::start(15, 18).await?;
    pair.from
        .batch_execute(
            "CREATE TABLE parent (id int PRIMARY KEY, code text, at date, EXCLUDE USING btree (code WITH =));
             CREATE TABLE child (id int PRIMARY KEY, parent int REFERENCES parent DEFERRABLE, self int REFERENCES child,
                 UNIQUE NULLS NOT DISTINCT (parent, self));
             CREATE INDEX ON parent ((code || 'x;')) WHERE code <> ';';
             CREATE INDEX ON child (parent) INCLUDE (self);
             CREATE TABLE cut (id int, at int, parent int REFERENCES parent, PRIMARY KEY (id, at)) PARTITION BY RANGE (at);
             CREATE TABLE cut_1 PARTITION OF cut FOR VALUES FROM (0) TO (10);
             CREATE TABLE cut_2 PARTITION OF cut FOR VALUES FROM (10) TO (20);
             CREATE INDEX ON cut (parent);
             CREATE TABLE points_at (id int);
             ALTER TABLE points_at ADD FOREIGN KEY (id) REFERENCES child NOT VALID;
             CREATE STATISTICS joint ON id, parent FROM child;
             CREATE FUNCTION touch() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NEW; END $$;
             CREATE TRIGGER touched BEFORE UPDATE ON child FOR EACH ROW EXECUTE FUNCTION touch();
             CREATE RULE quiet AS ON DELETE TO points_at DO ALSO (SELECT 1; SELECT 2);
             CREATE MATERIALIZED VIEW seen AS SELECT count(*) AS n FROM parent;
             CREATE UNIQUE INDEX ON seen (n);
             -- It needs the key of parent, and so comes after it; an index of child needs it.
             CREATE FUNCTION coded(of int) RETURNS text LANGUAGE sql IMMUTABLE
                 BEGIN ATOMIC SELECT code FROM parent WHERE id = of GROUP BY id; END;
             CREATE INDEX ON child (coded(parent));
             ALTER TABLE parent SET (autovacuum_enabled = off);
             ALTER TABLE child SET (autovacuum_enabled = off);
             ALTER TABLE cut_1 SET (autovacuum_enabled = off);
             ALTER TABLE cut_2 SET (autovacuum_enabled = off);
             CREATE FUNCTION shy(int) RETURNS int LANGUAGE plpgsql IMMUTABLE AS
                 $$ BEGIN IF current_query() LIKE 'ANALYZE%' THEN RAISE 'not now'; END IF; RETURN $1; END $$;
             CREATE TABLE shy (id int PRIMARY KEY, filler text);
             CREATE INDEX ON shy (shy(id));
             INSERT INTO shy SELECT i, repeat('x', 1000) FROM generate_series(1, 500) i;
             CREATE VIEW grouped AS SELECT id, code, count(*) FROM parent GROUP BY id;
             COMMENT ON INDEX child_pkey IS 'it''s; a
-- comment';
             INSERT INTO parent SELECT i, 'c' || i, date '2020-01-01' + i FROM generate_series(1, 500) i;
             INSERT INTO child SELECT i, i, nullif(i - 1, 0) FROM generate_series(1, 500) i;
             INSERT INTO cut SELECT i, i % 20, i FROM generate_series(1, 500) i;
             REFRESH MATERIALIZED VIEW seen",
        )
        .await?;
    let peer = LocalPeer::new(pair.target_end(), Options::default());
    let stream = Running::start(peer, spec(1), pair.source_end());
    stream.wait(|status| status.phase == Phase::Streaming).await?;
    let schema = "n.nspname = 'public'";
    for (what, sql) in [
        ("indexes", "SELECT indexdef FROM pg_indexes WHERE schemaname = 'public'".to_owned()),
        (
            "constraints",
            format!(
                "SELECT conrelid::regclass || ' ' || conname || ' ' || pg_get_constraintdef(c.oid) || convalidated::text \
                 FROM pg_constraint c JOIN pg_namespace n ON n.oid = connamespace WHERE {schema} AND contype <> 'n'"
            ),
        ),
        (
            "triggers",
            format!(
                "SELECT tgname::text || c.relname FROM pg_trigger t JOIN pg_class c ON c.oid = tgrelid \
                 JOIN pg_namespace n ON n.oid = relnamespace WHERE {schema} AND NOT tgisinternal \
                 AND tgname <> 'godwit_fence'"
            ),
        ),
        ("rules", "SELECT definition FROM pg_rules WHERE schemaname = 'public'".into()),
        ("statistics", "SELECT stxname::text FROM pg_statistic_ext".into()),
        ("views", "SELECT n::text FROM seen UNION ALL SELECT count(*)::text FROM grouped".into()),
        ("attached", "SELECT inhrelid::regclass::text || inhparent::regclass::text FROM pg_inherits".into()),
        ("comments", "SELECT description FROM pg_description d WHERE objoid = 'child_pkey'::regclass".into()),
    ] {
        let read = async |client: &Client| -> Result<Vec<String>> {
            let mut all: Vec<String> = client.query(&sql, &[]).await?.iter().map(|row| row.get(0)).collect();
            all.sort();
            Ok(all)
        };
        let (left, right) = (read(&pair.from).await?, read(&pair.to).await?);
        ensure!(!left.is_empty() && left == right, "{what}:\n{left:#?}\nagainst\n{right:#?}");
    }
    // Beside the stream, but for the biggest, which cannot be analyzed.
    let analyzed = "SELECT count(DISTINCT tablename) = 5 FROM pg_stats \
         WHERE schemaname = 'public' AND tablename IN ('parent', 'child', 'cut', 'cut_1', 'cut_2')";
    until("statistics of what was copied", async || Ok(pair.to.query_one(analyzed, &[]).await?.get(0)))
        .await?;
    let left: i64 = pair
        .to
        .query_one(
            "SELECT (SELECT count(*) FROM godwit.copying) + (SELECT count(*) FROM godwit.copied_parts) \
             + (SELECT count(*) FROM godwit.copied_statements)",
            &[],
        )
        .await?
        .get(0);
    ensure!(left == 0, "notes of the copy stayed");
    stream.stop().await
}

/// What a superuser granted, or another one than the owner.
const GRANTED: &str = "
    ALTER DEFAULT PRIVILEGES FOR ROLE keeper IN SCHEMA public GRANT SELECT ON TABLES TO reader;
    ALTER DEFAULT PRIVILEGES FOR ROLE keeper REVOKE EXECUTE ON FUNCTIONS FROM PUBLIC;
    ALTER DEFAULT PRIVILEGES FOR ROLE postgres IN SCHEMA public GRANT SELECT, UPDATE ON TABLES TO reader;
    GRANT SELECT ON pg_catalog.pg_authid TO reader;
    GRANT EXECUTE ON FUNCTION pg_catalog.pg_read_file(text) TO reader;
    REVOKE EXECUTE ON FUNCTION pg_catalog.pg_sleep(double precision) FROM PUBLIC;
    GRANT USAGE ON LANGUAGE plpgsql TO reader;
    CREATE TABLE lent (id int PRIMARY KEY, word text); ALTER TABLE lent OWNER TO keeper;
    GRANT SELECT ON lent TO lender WITH GRANT OPTION; SET ROLE lender; GRANT SELECT (word) ON lent TO reader; RESET ROLE;
    CREATE FUNCTION quotes() RETURNS text LANGUAGE sql AS $$ SELECT '
SET SESSION AUTHORIZATION nobody;
GRANT SELECT ON pg_catalog.pg_authid TO nobody;' $$; ALTER FUNCTION quotes() OWNER TO keeper;
    COMMENT ON SCHEMA public IS 'ours'; COMMENT ON DATABASE shop IS 'ours';
    ALTER SCHEMA public OWNER TO keeper; GRANT CREATE ON SCHEMA public TO reader; GRANT USAGE ON TYPE pg_catalog.int4 TO reader";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_only_a_superuser_could_grant_ends_no_copy_and_is_told() -> Result<()> {
    for (source, target) in [(15, other_major()), (other_major(), 15)] {
        let pair = Pair::start(source, target).await?;
        for cluster in [&pair.source, &pair.target] {
            let roles = "CREATE ROLE reader; CREATE ROLE lender";
            cluster.connect(DATABASE).await?.batch_execute(roles).await?;
        }
        let before = compare(&pair.from, &pair.to).await?;
        let granted = GRANTED.replace("keeper", OWNER_ROLE);
        pair.source.connect(DATABASE).await?.batch_execute(&granted).await?;
        let peer = LocalPeer::new(pair.target_end(), Options::default());
        let stream = Running::start(peer, spec(1), pair.source_end());
        stream.wait(|status| status.phase == Phase::Streaming).await?;
        stream.stop().await?;
        // A right is there whoever granted it.
        let read = "SELECT has_column_privilege('reader', 'lent', 'word', 'SELECT'), quotes()";
        let row = pair.to.query_one(read, &[]).await?;
        ensure!(row.get::<_, bool>(0), "what lender granted");
        let quoted = row.get::<_, &str>(1);
        ensure!(quoted.contains("SESSION AUTHORIZATION nobody") && quoted.contains("pg_authid"), "{quoted}");
        let (one, other) = (fingerprint(&pair.from).await?, fingerprint(&pair.to).await?);
        let differences = differences(&one, &other, ["here", "there"]);
        ensure!(differences.is_empty(), "{differences:#?}");

        // What is left to a superuser is told, with what mends it.
        let left = compare(&pair.from, &pair.to).await?;
        let told: Vec<_> = left.iter().filter(|finding| !before.contains(finding)).collect();
        let subjects: Vec<&str> = told.iter().map(|finding| finding.subject.as_str()).collect();
        ensure!(subjects == ["reader", "reader", "role postgres in schema public: new tables"], "{told:#?}");
        let administrator = pair.target.connect(DATABASE).await?;
        for finding in told {
            let remedy = finding.remedy.as_deref().and_then(|sql| sql.strip_suffix(" on the target"));
            administrator
                .batch_execute(remedy.context("a remedy")?)
                .await
                .with_context(|| format!("{finding:?}"))?;
        }
        let left = compare(&pair.from, &pair.to).await?;
        ensure!(left == before, "{left:#?}");
    }
    Ok(())
}

/// Default privileges that were changed since are brought up as other rights are.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn default_privileges_are_compared() -> Result<()> {
    let pair = Pair::start(15, 18).await?;
    let reader = "CREATE ROLE reader; CREATE ROLE \"a TO b; c\"";
    for cluster in [&pair.source, &pair.target] {
        cluster.connect(DATABASE).await?.batch_execute(reader).await?;
    }
    let keeper = pair.source.connect(DATABASE).await?;
    let sides =
        async || Ok::<_, anyhow::Error>((fingerprint(&pair.from).await?, fingerprint(&pair.to).await?));
    let mend = async || {
        let (one, other) = sides().await?;
        let mut mended = Vec::new();
        for difference in differences(&one, &other, ["here", "there"]) {
            if !difference.subject.starts_with("role ") {
                continue;
            }
            let Mend::Add(sql) = &difference.mend else { bail!("{difference:?}") };
            pair.to.batch_execute(sql).await.with_context(|| sql.clone())?;
            mended.push(format!("{} {}", difference.subject, difference.what));
        }
        Ok(mended)
    };
    for (sql, count) in [
        ("FOR ROLE keeper IN SCHEMA public GRANT SELECT, INSERT ON TABLES TO reader, \"a TO b; c\"", 1),
        ("FOR ROLE keeper IN SCHEMA public GRANT DELETE ON TABLES TO reader WITH GRANT OPTION", 1),
        ("FOR ROLE keeper REVOKE EXECUTE ON FUNCTIONS FROM PUBLIC", 1),
        ("FOR ROLE keeper GRANT USAGE ON SEQUENCES TO reader", 1),
        ("FOR ROLE keeper IN SCHEMA public REVOKE INSERT ON TABLES FROM reader", 1),
        ("FOR ROLE keeper IN SCHEMA public REVOKE GRANT OPTION FOR DELETE ON TABLES FROM reader", 1),
        ("FOR ROLE keeper IN SCHEMA public REVOKE ALL ON TABLES FROM reader, \"a TO b; c\"", 1),
        ("FOR ROLE keeper GRANT EXECUTE ON FUNCTIONS TO PUBLIC", 1),
        ("FOR ROLE keeper REVOKE ALL ON SEQUENCES FROM reader", 1),
        ("FOR ROLE postgres GRANT USAGE ON SEQUENCES TO reader", 0),
    ] {
        let sql = format!("ALTER DEFAULT PRIVILEGES {}", sql.replace("keeper", OWNER_ROLE));
        keeper.batch_execute(&sql).await?;
        let mended = mend().await?;
        ensure!(mended.len() == count, "{sql}: {mended:#?}");
        let again = mend().await?;
        ensure!(again.is_empty(), "{sql}: {again:#?}");
    }
    Ok(())
}

/// What releases do with tables of another server.
const AFAR: [&str; 5] = [
    "CREATE SERVER afar VERSION '9' FOREIGN DATA WRAPPER postgres_fdw OPTIONS (host 'it''s');
     CREATE FOREIGN TABLE afar (id int OPTIONS (column_name 'Id'), note varchar(9) COLLATE \"C\" DEFAULT 'x') SERVER afar OPTIONS (table_name 'f')",
    "ALTER FOREIGN TABLE afar ADD day date OPTIONS (column_name 'Day') NOT NULL, ADD CONSTRAINT positive CHECK (id > 0) NOT VALID;
     ALTER FOREIGN TABLE afar ALTER note DROP DEFAULT, ALTER id TYPE bigint; GRANT SELECT ON afar TO PUBLIC",
    "CREATE FOREIGN TABLE afar_1 PARTITION OF afar_parts FOR VALUES FROM (0) TO (10) SERVER afar",
    "CREATE FOREIGN TABLE afar_child () INHERITS (afar_mother) SERVER afar; ALTER TABLE afar_mother ADD more int",
    "ALTER TABLE afar_parts DETACH PARTITION afar_1; ALTER FOREIGN TABLE afar_child NO INHERIT afar_mother",
];

/// Tables of another server that were made since, or changed, would be missed after a move.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn foreign_tables_are_compared() -> Result<()> {
    let pair = Pair::start(15, other_major()).await?;
    let before = format!(
        "CREATE EXTENSION postgres_fdw; GRANT USAGE ON FOREIGN DATA WRAPPER postgres_fdw TO {OWNER_ROLE}, {GODWIT_ROLE};
         SET ROLE {OWNER_ROLE}; CREATE TABLE afar_parts (id int NOT NULL, day int CHECK (day > 0)) PARTITION BY RANGE (id);
         CREATE TABLE afar_mother (id int)"
    );
    for cluster in [&pair.source, &pair.target] {
        cluster.connect(DATABASE).await?.batch_execute(&before).await?;
    }
    let administrator = pair.source.connect(DATABASE).await?;
    administrator.batch_execute(&format!("SET ROLE {OWNER_ROLE}")).await?;
    let compared = async || {
        let (one, other) = (fingerprint(&pair.from).await?, fingerprint(&pair.to).await?);
        let found = differences(&one, &other, ["here", "there"]);
        // Nothing is published here.
        let of_it =
            |found: &Difference| found.subject.contains("afar") && !found.what.contains("not published");
        anyhow::Ok(found.into_iter().filter(of_it).collect::<Vec<_>>())
    };
    ensure!(compared().await?.is_empty(), "{:#?}", compared().await?);
    for release in AFAR {
        administrator.batch_execute(release).await.context(release)?;
        let mut found = compared().await?;
        ensure!(!found.is_empty() && found.iter().all(|found| found.stops), "{release}: {found:#?}");
        for _ in 0..4 {
            for difference in &found {
                let Mend::Add(sql) = &difference.mend else { bail!("{release}: {difference:?}") };
                pair.to.batch_execute(sql).await.with_context(|| sql.clone())?;
            }
            found = compared().await?;
        }
        ensure!(found.is_empty(), "{release}: {found:#?}");
    }
    administrator.batch_execute(&format!("CREATE USER MAPPING FOR {OWNER_ROLE} SERVER afar")).await?;
    let found = compared().await?;
    ensure!(matches!(&found[..], [one] if one.stops && one.mend == Mend::Person(None)), "{found:#?}");
    administrator.batch_execute("DROP SERVER afar CASCADE").await?;
    let found = compared().await?;
    ensure!(found.is_empty(), "nobody meets them: {found:#?}");
    Ok(())
}

/// What a copy as Godwit's role stops at, and what is named.
const STOPS: [(&str, &str); 8] = [
    (
        "CREATE FUNCTION number(bool) RETURNS smallint LANGUAGE sql IMMUTABLE AS 'SELECT 1::smallint';
         ALTER FUNCTION number(bool) OWNER TO keeper; CREATE CAST (bool AS smallint) WITH FUNCTION number(bool)",
        "cast (boolean as smallint)",
    ),
    (
        "CREATE SERVER afar FOREIGN DATA WRAPPER postgres_fdw; ALTER SERVER afar OWNER TO keeper",
        "server afar",
    ),
    (
        "CREATE FUNCTION quiet() RETURNS int LANGUAGE sql SET log_min_messages = 'error' AS 'SELECT 1'; ALTER FUNCTION quiet() OWNER TO keeper",
        "function quiet()",
    ),
    (
        "CREATE FUNCTION helper(int) RETURNS int LANGUAGE sql IMMUTABLE AS 'SELECT $1 + 1';
         CREATE FUNCTION more(int) RETURNS int LANGUAGE plpgsql IMMUTABLE AS 'BEGIN RETURN helper($1); END';
         ALTER FUNCTION helper(int) OWNER TO keeper; ALTER FUNCTION more(int) OWNER TO keeper;
         CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1); CREATE INDEX by_more ON t (more(id)); ALTER TABLE t OWNER TO keeper",
        "index by_more of public.t",
    ),
    (
        "CREATE FUNCTION told() RETURNS int LANGUAGE sql SET app.told = 'yes' SET search_path = public AS 'SELECT 1'; ALTER FUNCTION told() OWNER TO keeper",
        "function told()",
    ),
    (
        "CREATE SCHEMA lib; ALTER SCHEMA lib OWNER TO keeper; CREATE FUNCTION lib.helper(int) RETURNS int LANGUAGE sql IMMUTABLE AS 'SELECT $1 + 1';
         CREATE FUNCTION more(int) RETURNS int LANGUAGE plpgsql IMMUTABLE AS 'BEGIN RETURN helper($1); END';
         ALTER FUNCTION lib.helper(int) OWNER TO keeper; ALTER FUNCTION more(int) OWNER TO keeper;
         ALTER DATABASE shop SET search_path = public, lib; SET search_path = public, lib;
         CREATE TABLE t (id int PRIMARY KEY CHECK (more(id) > 0)); INSERT INTO t VALUES (1); ALTER TABLE t OWNER TO keeper",
        "constraint t_id_check of public.t",
    ),
    ("GRANT CREATE ON SCHEMA public TO lender; CREATE VIEW seen AS SELECT 1 AS n; ALTER VIEW seen OWNER TO lender; GRANT lender TO godwit", "lender"),
    ("CREATE VIEW apart AS SELECT 1 AS n; ALTER VIEW apart OWNER TO other", "other"),
];

/// What only a superuser makes, what of it is named, and what makes use of it.
const LEFT: [(&str, &[&str], &str); 5] = [
    (
        "CREATE OPERATOR CLASS counted FOR TYPE int USING btree AS OPERATOR 1 <, OPERATOR 3 =, FUNCTION 1 btint4cmp(int, int)",
        &["operator class counted using btree", "operator family counted using btree"],
        "CREATE TABLE t (id int PRIMARY KEY); CREATE INDEX ON t (id counted)",
    ),
    (
        "CREATE TEXT SEARCH TEMPLATE plain (INIT = dsimple_init, LEXIZE = dsimple_lexize)",
        &["text search template plain"],
        "CREATE TEXT SEARCH DICTIONARY words (TEMPLATE = plain)",
    ),
    (
        "CREATE ACCESS METHOD heap2 TYPE TABLE HANDLER heap_tableam_handler",
        &["access method heap2"],
        "CREATE TABLE t (id int PRIMARY KEY) USING heap2; INSERT INTO t VALUES (1)",
    ),
    (
        "CREATE SCHEMA shared; CREATE EXTENSION hstore SCHEMA shared; GRANT USAGE ON SCHEMA shared TO PUBLIC",
        &["schema shared"],
        "CREATE TABLE t (id int PRIMARY KEY, said shared.hstore); INSERT INTO t VALUES (1, 'a=>b')",
    ),
    (
        "CREATE FUNCTION plus(int) RETURNS int LANGUAGE internal IMMUTABLE STRICT AS 'int4inc'; CREATE CAST (bytea AS text) WITHOUT FUNCTION",
        &["cast (bytea as text)", "function plus(integer)"],
        "CREATE TABLE t (id int PRIMARY KEY CHECK (plus(id) > 0), b bytea, s text GENERATED ALWAYS AS (b::text) STORED);
         INSERT INTO t VALUES (1, 'x')",
    ),
];

async fn blockers(pair: &Pair) -> Result<Vec<Finding>> {
    let mut found = check(&pair.from, Side::Source).await?;
    found.extend(compare(&pair.from, &pair.to).await?);
    found.retain(|finding| finding.severity == Severity::Blocker);
    Ok(found)
}

/// One of them was made by somebody else meanwhile.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_copy_left_for_later_is_done_before_the_stream_goes_on() -> Result<()> {
    let pair = Pair::start(15, other_major()).await?;
    let tables = "CREATE TABLE owner (id int PRIMARY KEY); CREATE TABLE owned (id int PRIMARY KEY, \
        first int CONSTRAINT owned_first REFERENCES owner, second int CONSTRAINT owned_second REFERENCES owner)";
    pair.from.batch_execute(tables).await?;
    let stream = copy(&pair);
    stream.wait(|status| status.phase == Phase::Streaming).await?;
    stream.stop().await?;
    let administrator = pair.target.connect(DATABASE).await?;
    administrator.batch_execute("ALTER TABLE owned DROP CONSTRAINT owned_second").await?;
    let slot = spec(1).slot;
    let part = "INSERT INTO godwit.copied_parts (stream, schema_name, table_name, part, parts, position, rows, bytes) \
        VALUES ($1, 'public', 'owned', 0, 1, '0/1', 0, 0)";
    pair.to.execute(part, &[&slot]).await?;
    for (place, key) in [(1_i64, "first"), (2, "second")] {
        let late = format!(
            "ALTER TABLE public.owned ADD CONSTRAINT owned_{key} FOREIGN KEY ({key}) REFERENCES public.owner"
        );
        let note = "INSERT INTO godwit.copied_statements (stream, place, statement, done) VALUES ($1, $2, $3, false)";
        pair.to.execute(note, &[&slot, &place, &late]).await?;
    }
    let stream = copy(&pair);
    stream.wait(|status| status.phase == Phase::Streaming).await?;
    let left = "SELECT (SELECT count(*) FROM godwit.copied_statements) + (SELECT count(*) FROM godwit.copied_parts), \
        (SELECT count(*) FROM pg_constraint WHERE conname LIKE 'owned\\_%' AND contype = 'f' AND convalidated)";
    let left = pair.to.query_one(left, &[]).await?;
    ensure!((left.get::<_, i64>(0), left.get::<_, i64>(1)) == (0, 2), "{left:?}");
    stream.stop().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_that_is_rewritten_once_the_copys_locks_were_ended_is_whole() -> Result<()> {
    const SMALL: &str = "CREATE TABLE small (id int PRIMARY KEY, n int); INSERT INTO small SELECT i, i FROM generate_series(1, 9) i";
    let pair = Pair::start(15, other_major()).await?;
    pair.from.batch_execute(BIG).await?;
    pair.from.batch_execute(SMALL).await?;
    // The small one is read last.
    let peer = LocalPeer::new(pair.target_end(), Options::default());
    let stream = slowly(&pair, peer, 1, 60 << 20);
    until("a part of the big table", async || Ok(parts(&pair.to).await?.0 > 0)).await?;
    let release = pair.source.connect(DATABASE).await?;
    let rewrite = async {
        release.batch_execute("ALTER TABLE small ALTER n TYPE int USING n + 0").await.context("the release")
    };
    let end = async {
        let sql = "SELECT count(pg_terminate_backend(holder)) FROM pg_stat_activity, unnest(pg_blocking_pids(pid)) holder \
            WHERE query LIKE 'ALTER TABLE small%'";
        until("the release waits for the copy", async || {
            Ok(pair.from.query_one(sql, &[]).await?.get::<_, i64>(0) > 0)
        })
        .await
    };
    tokio::try_join!(rewrite, end)?;
    stream.wait(|status| status.phase == Phase::Streaming).await?;
    pair.caught_up(&stream).await?;
    let rows: i64 = pair.to.query_one("SELECT count(*) FROM small", &[]).await?.get(0);
    ensure!(rows == 9, "{rows} of 9 rows");
    stream.stop().await
}

/// Waits until these tables were copied, the first ones.
async fn whole(pair: &Pair, tables: [&str; 2]) -> Result<()> {
    let whole = "SELECT count(*) = 2 FROM (SELECT FROM godwit.copied_parts WHERE table_name = ANY ($1) GROUP BY table_name \
        HAVING count(*) = max(parts)) whole";
    let whole =
        async || Ok(pair.to.query_one(whole, &[&tables.as_slice()]).await.is_ok_and(|row| row.get(0)));
    until("two tables are whole", whole).await
}

/// Its snapshot is lost with its sessions.
async fn end_the_copy(pair: &Pair) -> Result<()> {
    let end = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name LIKE 'godwit copy %'";
    let ended: i64 = pair.from.query_one(end, &[]).await?.get(0);
    ensure!(ended > 1, "the copy was over already");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_comment_on_a_foreign_key_comes_with_it_where_the_snapshot_was_lost() -> Result<()> {
    // The largest are read first.
    const TABLES: &str = "CREATE TABLE owner (id int PRIMARY KEY, filler text); CREATE TABLE rest (LIKE owner INCLUDING ALL); \
        CREATE TABLE owned (LIKE owner INCLUDING ALL, CONSTRAINT owned_by FOREIGN KEY (id) REFERENCES owner); \
        COMMENT ON CONSTRAINT owned_by ON owned IS 'kept'; \
        INSERT INTO owner SELECT i, repeat(md5(i::text), 25) FROM generate_series(1, 60000) i; \
        INSERT INTO owned SELECT * FROM owner WHERE id <= 55000; INSERT INTO rest SELECT * FROM owner WHERE id <= 50000; ANALYZE";
    let pair = Pair::start(15, other_major()).await?;
    pair.from.batch_execute(TABLES).await?;
    let peer = LocalPeer::new(pair.target_end(), Options::default());
    let stream = slowly(&pair, peer, 1, 30 << 20);
    whole(&pair, ["owner", "owned"]).await?;
    pair.to.batch_execute("INSERT INTO owner VALUES (0, 'stays')").await?;
    end_the_copy(&pair).await?;
    stream.wait(|status| status.phase == Phase::Streaming).await?;
    pair.caught_up(&stream).await?;
    let comment =
        "SELECT obj_description(oid, 'pg_constraint') FROM pg_constraint WHERE conname = 'owned_by'";
    let comment: Option<String> = pair.to.query_one(comment, &[]).await?.get(0);
    ensure!(comment.as_deref() == Some("kept"), "{comment:?}");
    let stays = "SELECT EXISTS (SELECT FROM owner WHERE filler = 'stays')";
    ensure!(pair.to.query_one(stays, &[]).await?.get::<_, bool>(0), "the table was copied again");
    stream.stop().await
}

/// No change in the stream tells of either: rows of the table that was whole would stay in the one that has its name since.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tables_made_or_renamed_where_the_snapshot_was_lost_are_copied_as_they_are() -> Result<()> {
    const TABLES: &str = "CREATE TABLE one (id int PRIMARY KEY, filler text); CREATE TABLE other (LIKE one INCLUDING ALL); \
        CREATE TABLE rest (LIKE one INCLUDING ALL); \
        INSERT INTO one SELECT i, repeat(md5(i::text), 25) FROM generate_series(1, 60000) i; \
        INSERT INTO other SELECT * FROM one WHERE id <= 55000; INSERT INTO rest SELECT * FROM one WHERE id <= 50000; ANALYZE";
    const MADE: &str = "BEGIN; DROP TABLE one; CREATE TABLE one (id int PRIMARY KEY, filler text); INSERT INTO one VALUES (7, 'new'); COMMIT";
    const RENAMED: &str = "BEGIN; ALTER TABLE one RENAME TO t; ALTER TABLE other RENAME TO one; ALTER TABLE t RENAME TO other; COMMIT";
    for change in [MADE, RENAMED] {
        let pair = Pair::start(15, other_major()).await?;
        pair.from.batch_execute(TABLES).await?;
        let peer = LocalPeer::new(pair.target_end(), Options::default());
        let stream = slowly(&pair, peer, 1, 30 << 20);
        whole(&pair, ["one", "other"]).await?;
        let release = pair.source.connect_as(GODWIT_ROLE, DATABASE).await?;
        let changed = async { release.batch_execute(change).await.context("the release") };
        let waits = "SELECT EXISTS (SELECT FROM pg_locks WHERE mode = 'AccessExclusiveLock' AND NOT granted)";
        let ended = async {
            until("it waits for the copy", async || Ok(pair.from.query_one(waits, &[]).await?.get(0)))
                .await?;
            end_the_copy(&pair).await
        };
        tokio::try_join!(changed, ended)?;
        stream.wait(|status| status.phase == Phase::Streaming).await?;
        pair.caught_up(&stream).await.context(change)?;
        let rows =
            "SELECT format('one %s, other %s', (SELECT count(*) FROM one), (SELECT count(*) FROM other))";
        let [here, there] = [&pair.from, &pair.to].map(|client| client.query_one(rows, &[]));
        let (here, there) = tokio::try_join!(here, there)?;
        let [here, there]: [String; 2] = [here.get(0), there.get(0)];
        ensure!(here == there, "{there} instead of {here} after {change}");
        stream.stop().await?;
    }
    Ok(())
}

/// A release that is under way while the copy begins: it is waited for by the slot, or not seen by its snapshot and waited for by the locks.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_changes_while_a_copy_begins_is_copied_as_it_is() -> Result<()> {
    const TABLES: &str = "CREATE DOMAIN above AS int CONSTRAINT is_above CHECK (VALUE > 0); CREATE TYPE temper AS ENUM ('sad'); \
        CREATE TABLE released (id int PRIMARY KEY, x int, n above NOT NULL, temper temper); \
        INSERT INTO released SELECT i, i, i, 'sad' FROM generate_series(1, 9) i";
    const COLUMNS: &str = "ALTER TABLE released DROP COLUMN x; ALTER TABLE released ADD COLUMN c int DEFAULT 7; \
        ALTER TABLE released ALTER COLUMN c DROP DEFAULT";
    const TYPES: &str = "ALTER DOMAIN above DROP CONSTRAINT is_above; ALTER TYPE temper RENAME VALUE 'sad' TO 'blue'; \
        ALTER TABLE released ALTER n DROP NOT NULL; UPDATE released SET n = CASE WHEN id < 5 THEN -id END";
    const BEGIN: &str = "BEGIN; SELECT txid_current()";
    let columns = (COLUMNS, "SELECT count(*) FROM released WHERE c = 7");
    let types = (TYPES, "SELECT count(*) FROM released WHERE coalesce(n, -id) = -id AND temper = 'blue'");
    for (seen, (release, whole)) in [(false, columns), (true, columns), (true, types)] {
        let pair = Pair::start(15, other_major()).await?;
        pair.from.batch_execute(TABLES).await?;
        let watch = pair.source.connect(DATABASE).await?;
        let pid = async |client: &Client| -> Result<i32> {
            Ok(client.query_one("SELECT pg_backend_pid()", &[]).await?.get(0))
        };
        let [first, second, third] = [
            pair.source.connect(DATABASE).await?,
            pair.source.connect(DATABASE).await?,
            pair.source.connect(DATABASE).await?,
        ];
        let waits = async |holder: &Client, query: &str| {
            let holder = pid(holder).await?;
            let sql = "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE $1 = ANY (pg_blocking_pids(pid)) AND query LIKE $2)";
            until(query, async || Ok(watch.query_one(sql, &[&holder, &query]).await?.get(0))).await
        };
        let dumps = async || {
            let sql = "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE application_name = 'godwit schema' AND backend_xmin IS NOT NULL)";
            Ok(watch.query_one(sql, &[]).await?.get(0))
        };
        first.batch_execute(BEGIN).await?;
        let stream = copy(&pair);
        // A slot waits for those that it found, then for those that began meanwhile; its snapshot shows no later ones.
        until("the dump's snapshot", dumps).await?;
        waits(&first, "%REPLICATION_SLOT%").await?;
        second.batch_execute(BEGIN).await?;
        if seen {
            second.batch_execute(release).await?;
        }
        first.batch_execute("COMMIT").await?;
        waits(&second, "%REPLICATION_SLOT%").await?;
        if seen {
            second.batch_execute("COMMIT").await?;
        } else {
            third.batch_execute(&format!("{BEGIN}; {release}")).await?;
            second.batch_execute("COMMIT").await?;
            // What lists the tables asks how large they are, which waits for their locks as well.
            waits(&third, "SELECT n.nspname::text, c.relname::text, greatest%").await?;
            third.batch_execute("COMMIT").await?;
        }
        stream
            .wait(|status| status.phase == Phase::Streaming)
            .await
            .with_context(|| format!("seen: {seen}"))?;
        pair.caught_up(&stream).await?;
        let whole: i64 = pair.to.query_one(whole, &[]).await?.get(0);
        ensure!(whole == 9, "seen: {seen}: {whole} rows have what the source's have");
        stream.stop().await?;
    }
    Ok(())
}

fn copy(pair: &Pair) -> Running {
    Running::start(LocalPeer::new(pair.target_end(), Options::default()), spec(1), pair.source_end())
}

/// A finding means that the copy stops, and nothing is left once its remedy was executed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_copy_stops_at_is_foretold() -> Result<()> {
    let extension = "CREATE EXTENSION postgres_fdw";
    for (at, (sql, subject)) in STOPS.iter().enumerate() {
        // By turns; a server of 17 or later would not have made the index.
        let majors = if at % 2 == 1 { (15, other_major()) } else { (other_major(), 15) };
        let mut pair = Pair::start(majors.0, majors.1).await?;
        for cluster in [&pair.source, &pair.target] {
            let before = format!("CREATE ROLE lender; CREATE ROLE other; GRANT other TO godwit; {extension}");
            cluster.connect(DATABASE).await?.batch_execute(&before).await?;
        }
        let administrator = pair.source.connect(DATABASE).await?;
        administrator.batch_execute(&sql.replace("keeper", OWNER_ROLE)).await?;
        let told = blockers(&pair).await?;
        ensure!(told.len() == 1 && told[0].subject == *subject, "{subject}: {told:#?}");
        let stream = copy(&pair);
        let ended = |status: &StreamStatus| status.phase == Phase::Streaming || !status.failures.is_empty();
        let stopped = stream.wait(ended).await?.phase;
        ensure!(matches!(stopped, Phase::Failed { .. }), "{subject}: it was copied: {stopped:?}");
        stream.stop().await?;

        // What broke off in the midst of the rows does not go on with another schema.
        pair.empty_target(extension).await?;
        let remedy = told[0].remedy.as_deref().context("a remedy")?;
        match remedy.strip_suffix(" on the target") {
            Some(sql) => pair.target.connect(DATABASE).await?.batch_execute(sql).await,
            None => {
                let first = remedy.split(';').next().filter(|sql| sql.starts_with("DROP"));
                administrator.batch_execute(first.unwrap_or(remedy)).await
            }
        }
        .with_context(|| remedy.to_owned())?;
        let left = blockers(&pair).await?;
        ensure!(left.is_empty(), "{subject}: {left:#?}");
        let stream = copy(&pair);
        stream.wait(|status| status.phase == Phase::Streaming).await.context(*subject)?;
        stream.stop().await?;
    }
    Ok(())
}

/// A superuser makes it on both sides, and the copy makes what uses it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_copy_leaves_to_a_superuser_is_foretold() -> Result<()> {
    for (at, (sql, subjects, uses)) in LEFT.iter().enumerate() {
        let majors = if at % 2 == 0 { (15, other_major()) } else { (other_major(), 15) };
        let pair = Pair::start(majors.0, majors.1).await?;
        let administrator = pair.source.connect(DATABASE).await?;
        administrator.batch_execute(sql).await?;
        administrator.batch_execute(&format!("SET ROLE {OWNER_ROLE}; {uses}; RESET ROLE")).await?;
        let told = blockers(&pair).await?;
        let named: Vec<_> = told.iter().map(|finding| &*finding.subject).collect();
        ensure!(named == *subjects, "{told:#?}");
        pair.target.connect(DATABASE).await?.batch_execute(sql).await?;
        let left = blockers(&pair).await?;
        ensure!(left.is_empty(), "{left:#?}");
        let stream = copy(&pair);
        stream.wait(|status| status.phase == Phase::Streaming).await.context(*sql)?;
        stream.stop().await?;
        let (one, other) = (fingerprint(&pair.from).await?, fingerprint(&pair.to).await?);
        let differences = differences(&one, &other, ["here", "there"]);
        ensure!(differences.iter().all(|difference| !difference.stops), "{differences:#?}");
    }
    Ok(())
}

/// A newer pg_dump says of an inherited column what an older server does not understand.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn inherited_columns_are_not_null_on_an_older_server() -> Result<()> {
    let pair = Pair::start(other_major(), 15).await?;
    pair.from
        .batch_execute(
            "CREATE TABLE above (id int PRIMARY KEY, word text, n int);
             CREATE TABLE below (extra int, PRIMARY KEY (id)) INHERITS (above);
             CREATE TABLE beside () INHERITS (above);
             ALTER TABLE beside ALTER word SET NOT NULL, ADD PRIMARY KEY (id);
             INSERT INTO above VALUES (1, 'a'); INSERT INTO below VALUES (2, 'b'); INSERT INTO beside VALUES (3, 'c')",
        )
        .await?;
    let stream = copy(&pair);
    stream.wait(|status| status.phase == Phase::Streaming).await?;
    pair.from.batch_execute("UPDATE above SET n = id; DELETE FROM ONLY above").await?;
    pair.caught_up(&stream).await?;
    let (one, other) = (fingerprint(&pair.from).await?, fingerprint(&pair.to).await?);
    let differences = differences(&one, &other, ["here", "there"]);
    ensure!(differences.is_empty(), "{differences:#?}");
    let rows = "SELECT string_agg(tableoid::regclass || ' ' || t::text, ', ' ORDER BY id) FROM above t";
    let [from, to] = [&pair.from, &pair.to].map(|client| client.query_one(rows, &[]));
    let (from, to) = (from.await?.get::<_, String>(0), to.await?.get::<_, String>(0));
    ensure!(from == to && from == "below (2,b,2), beside (3,c,3)", "{from} and {to}");
    stream.stop().await
}
