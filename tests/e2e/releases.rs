//! What releases do to a schema, step by step, while the shadow follows.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use godwit::controller::view::ResourceView;
use godwit::demo::zone::{DATABASE, Playground, SUPERUSER, Zone};
use godwit_tests::waiting::until;
use tokio_postgres::Client;

use crate::leader::{Leader, connect, options, superuser};
use crate::schema::{differences, followed, owner, replicated, seed_anew};

/// What `pg_dump` says of the service's schema.
async fn dumped(bin: &Path, zone: &Zone) -> Result<Vec<String>> {
    let (port, program) = (zone.database.port().to_string(), bin.join("pg_dump"));
    let output = tokio::process::Command::new(program)
        .args([
            "-s",
            "-N",
            "godwit",
            "--no-publications",
            "-h",
            "127.0.0.1",
            "-p",
            &port,
            "-U",
            SUPERUSER,
            DATABASE,
        ])
        .env("PGPASSWORD", zone.cluster.superuser_password().unwrap_or_default())
        .output()
        .await?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    // Its own key is another each time; the fence's triggers are on one side.
    let lines = text.lines().filter(|line| !line.starts_with("--") && !line.contains("restrict "));
    let mut statements: Vec<String> = lines
        .collect::<Vec<_>>()
        .join("\n")
        .split(";\n")
        .map(|statement| statement.trim().to_owned())
        .collect();
    statements.retain(|statement| !statement.contains("godwit"));
    // A list of `varchar` is another text once it was read back.
    for statement in statements.iter_mut().filter(|statement| statement.contains("ARRAY[")) {
        for words in ["::character varying", "::text", "[]", "(", ")"] {
            *statement = statement.replace(words, "");
        }
    }
    statements.sort();
    Ok(statements)
}

/// What releases do to a schema, step by step; nothing that `pg_dump` knows of is forgotten, and no row is another.
const RELEASES: [&str; 22] = [
    "CREATE TABLE tasks (id int PRIMARY KEY, flow int NOT NULL, parent int REFERENCES tasks, org int REFERENCES orgs);
     CREATE TABLE flows (id int PRIMARY KEY, now int UNIQUE REFERENCES tasks DEFERRABLE INITIALLY DEFERRED);
     ALTER TABLE tasks ADD FOREIGN KEY (flow) REFERENCES flows DEFERRABLE INITIALLY DEFERRED;
     BEGIN; INSERT INTO tasks VALUES (1, 1, NULL, 1), (2, 1, 1, 2); INSERT INTO flows VALUES (1, 2); COMMIT",
    "ALTER TABLE users ADD CONSTRAINT age_positive CHECK (age >= 0) NOT VALID;
     ALTER TABLE users ADD CONSTRAINT users_org FOREIGN KEY (org) REFERENCES orgs DEFERRABLE NOT VALID;
     ALTER DOMAIN email ADD CONSTRAINT longer CHECK (length(VALUE) > 2) NOT VALID; ALTER DOMAIN email SET DEFAULT 'a@b';
     CREATE TEXT SEARCH DICTIONARY plainly (TEMPLATE = simple, ACCEPT = false); CREATE TEXT SEARCH CONFIGURATION words (COPY = english);
     ALTER TEXT SEARCH CONFIGURATION words DROP MAPPING FOR url;
     CREATE COLLATION folded (provider = icu, locale = 'und-u-ks-level2', deterministic = false); ALTER TABLE orgs ADD nick text COLLATE folded;
     CREATE OPERATOR === (LEFTARG = int, RIGHTARG = int, FUNCTION = int4eq, COMMUTATOR = ===, RESTRICT = eqsel, HASHES);
     CREATE TYPE texts AS RANGE (subtype = text, collation = \"C\"); CREATE CAST (addr AS text) WITH INOUT AS ASSIGNMENT;
     CREATE AGGREGATE counted (*) (sfunc = int8inc, stype = int8, initcond = '0', parallel = safe, combinefunc = int8pl)",
    "ALTER TABLE users VALIDATE CONSTRAINT age_positive; ALTER TABLE users VALIDATE CONSTRAINT users_org;
     ALTER TABLE users ALTER CONSTRAINT users_org NOT DEFERRABLE; ALTER DOMAIN email VALIDATE CONSTRAINT longer; ALTER DOMAIN email SET NOT NULL;
     ALTER TEXT SEARCH CONFIGURATION words ALTER MAPPING FOR word WITH plainly, english_stem;
     ALTER INDEX users_age RENAME TO users_by_age; CREATE UNIQUE INDEX sums_of ON sums (c)",
    "ALTER TABLE users RENAME CONSTRAINT age_positive TO age_not_negative; ALTER DOMAIN email RENAME CONSTRAINT longer TO long;
     ALTER DOMAIN email DROP NOT NULL; ALTER TABLE users SET (autovacuum_vacuum_scale_factor = 0.02); ALTER TABLE users ALTER email SET STATISTICS 500,
       ALTER bio SET STORAGE EXTERNAL, ALTER bio SET COMPRESSION pglz, ALTER email SET (n_distinct = -0.5);
     COMMENT ON TABLE users IS 'it''s people'; COMMENT ON COLUMN users.email IS '@omit'; COMMENT ON CONSTRAINT long ON DOMAIN email IS 'long';
     COMMENT ON FUNCTION one(int) IS 'one'; COMMENT ON TRIGGER stamps ON users IS 'stamps'; COMMENT ON VIEW mails IS NULL",
    "ALTER TABLE users RESET (autovacuum_vacuum_scale_factor); ALTER TABLE users ALTER email SET STATISTICS -1, ALTER bio SET STORAGE EXTENDED;
     COMMENT ON TABLE users IS NULL; ALTER TABLE counters ALTER id TYPE bigint; ALTER TABLE counters ALTER id SET GENERATED ALWAYS, ALTER id SET INCREMENT BY 5;
     ALTER TABLE series ALTER id DROP DEFAULT; DROP SEQUENCE series_id_seq; ALTER TABLE series ALTER id ADD GENERATED BY DEFAULT AS IDENTITY (START WITH 9);
     ALTER SEQUENCE numbers CACHE 20; INSERT INTO counters (x) VALUES (3)",
    "ALTER TABLE counters ALTER more DROP EXPRESSION; INSERT INTO counters (x, more) VALUES (4, 77);
     ALTER TABLE counters ALTER id DROP IDENTITY; ALTER SEQUENCE series_id_seq RENAME TO series_numbers; ALTER TABLE loose DROP c;
     ALTER TABLE loose ADD c int GENERATED ALWAYS AS (a * 3) STORED; INSERT INTO loose VALUES (2); CREATE TYPE level AS ENUM ('debug', 'info');
     ALTER TABLE users RENAME age TO years; ALTER TABLE users DROP CONSTRAINT age_not_negative; ALTER TABLE users ADD CONSTRAINT age_not_negative CHECK (years > -2)",
    "ALTER TYPE level ADD VALUE 'trace' BEFORE 'debug'; ALTER TYPE level ADD VALUE 'finest' BEFORE 'trace'; ALTER TYPE level ADD VALUE 'finer' AFTER 'finest';
     ALTER TYPE addr ADD ATTRIBUTE city text; INSERT INTO homes VALUES (1, ('a', 'b', 'c'))",
    "ALTER TYPE addr RENAME ATTRIBUTE zip TO postcode; ALTER TYPE addr DROP ATTRIBUTE street; INSERT INTO homes VALUES (2, ('b', 'c'))",
    "DROP VIEW all_mails; DROP VIEW mails; CREATE VIEW mails AS SELECT email FROM users; CREATE VIEW all_mails AS SELECT email FROM mails;
     DROP VIEW ones; DROP FUNCTION one(int); CREATE FUNCTION one(b int) RETURNS bigint LANGUAGE sql AS 'SELECT b::bigint'; ALTER FUNCTION one(int) COST 500;
     CREATE VIEW ones AS SELECT one(1); GRANT SELECT ON ones TO orders_app; ALTER VIEW mails ALTER COLUMN email SET DEFAULT 'c@d'; ALTER TRIGGER stamps ON users RENAME TO stamped;
     DROP MATERIALIZED VIEW sums; CREATE MATERIALIZED VIEW sums AS SELECT count(*) AS c, 1 AS d FROM users; CREATE INDEX sums_d ON sums (d);
     CREATE RULE quiet AS ON DELETE TO loose DO ALSO NOTIFY quiet; ALTER TABLE loose DISABLE RULE quiet;
     CREATE OR REPLACE AGGREGATE counted (*) (sfunc = int8inc, stype = int8, initcond = '5')",
    "CREATE SCHEMA old; CREATE TYPE old.state AS ENUM ('new', 'paid'); CREATE SEQUENCE old.counts;
     CREATE TABLE old.bills (id int PRIMARY KEY, state old.state, how varchar(9) CHECK (how IN ('card', 'cash')),
       code varchar(9) GENERATED ALWAYS AS (CASE WHEN how IN ('card', 'cash') THEN 'ours' END) STORED);
     CREATE INDEX by_card ON old.bills (id) WHERE how IN ('card', 'gift'); CREATE STATISTICS old.kinds ON id, how FROM old.bills;
     CREATE VIEW cards AS SELECT id FROM old.bills WHERE how NOT IN ('cash', 'gift'); CREATE MATERIALIZED VIEW cash AS SELECT count(*) FROM cards;
     CREATE FUNCTION old.is_new(old.state) RETURNS boolean LANGUAGE sql AS 'SELECT $1 = ''new'''; INSERT INTO old.bills VALUES (1, 'new', 'card')",
    "DROP STATISTICS old.kinds; DROP TABLE old.bills CASCADE; DROP FUNCTION old.is_new(old.state); DROP TYPE old.state; DROP SEQUENCE old.counts;
     DROP SCHEMA old; DROP AGGREGATE counted (*); DROP OPERATOR === (int, int); DROP CAST (addr AS text)",
    // Off and still forced is not the same as on.
    "CREATE POLICY readers ON orgs FOR SELECT TO orders_app USING (id > 0); ALTER TABLE orgs FORCE ROW LEVEL SECURITY",
    "ALTER TABLE orgs ENABLE ROW LEVEL SECURITY",
    "ALTER TABLE orgs DISABLE ROW LEVEL SECURITY",
    "CREATE DOMAIN loud AS tone DEFAULT 'high'; ALTER DOMAIN mild SET DEFAULT 'high';
     CREATE DOMAIN nick AS varchar(9) COLLATE folded DEFAULT 'x' NOT NULL; CREATE TYPE named AS (a text COLLATE \"C\", b int);
     CREATE RULE kept AS ON DELETE TO flows DO INSTEAD NOTHING; ALTER TABLE flows DISABLE RULE kept",
    "ALTER TABLE flows ENABLE ALWAYS RULE kept; ALTER TYPE named ADD ATTRIBUTE c text COLLATE folded; ALTER DOMAIN nick DROP DEFAULT",
    "ALTER TABLE flows DISABLE RULE kept; CREATE TABLE hours (h int PRIMARY KEY) PARTITION BY RANGE (h);
     CREATE TABLE hours_0 PARTITION OF hours FOR VALUES FROM (0) TO (9); CREATE TABLE hours_1 PARTITION OF hours FOR VALUES FROM (9) TO (20);
     CREATE TRIGGER stamps BEFORE INSERT ON hours FOR EACH ROW EXECUTE FUNCTION stamp(); ALTER TABLE hours_1 DISABLE TRIGGER stamps;
     ALTER TABLE users CLUSTER ON users_by_age",
    "ALTER TABLE hours DISABLE TRIGGER stamps; ALTER TABLE hours_0 ENABLE ALWAYS TRIGGER stamps",
    "ALTER TABLE hours ENABLE TRIGGER stamps; ALTER TABLE users SET WITHOUT CLUSTER",
    // Tables of a type, domains whose older values nobody has looked at, and aggregates by the name that they are granted by.
    "ALTER TYPE pair ADD ATTRIBUTE b text CASCADE; ALTER TYPE pair ADD ATTRIBUTE d int CASCADE; INSERT INTO pairs VALUES ('a', 'b', 1);
     CREATE DOMAIN later AS text CHECK (VALUE <> ''); ALTER DOMAIN later ADD CONSTRAINT longer CHECK (length(VALUE) > 2) NOT VALID;
     CREATE AGGREGATE every_one (*) (sfunc = int8inc, stype = int8, initcond = '0'); COMMENT ON AGGREGATE every_one (*) IS 'all';
     CREATE AGGREGATE ordered (int ORDER BY int) (sfunc = int4pl, stype = int, initcond = '0', finalfunc = int4pl);
     REVOKE EXECUTE ON FUNCTION every_one() FROM PUBLIC; GRANT EXECUTE ON FUNCTION every_one(), ordered(int, int) TO orders_app WITH GRANT OPTION;
     CREATE SEQUENCE \"it's $godwit$\"; ALTER SEQUENCE \"it's $godwit$\" OWNED BY orgs.id",
    "ALTER TYPE pair RENAME ATTRIBUTE b TO c CASCADE; INSERT INTO pairs VALUES ('b', 'c', 2);
     REVOKE GRANT OPTION FOR EXECUTE ON FUNCTION every_one() FROM orders_app; REVOKE EXECUTE ON FUNCTION ordered(int, int) FROM orders_app",
    "ALTER TYPE pair DROP ATTRIBUTE d CASCADE; INSERT INTO pairs VALUES ('c', 'd'); ALTER TABLE pairs NOT OF; DROP AGGREGATE ordered (int ORDER BY int)",
];

/// The service's tables, its rows, and what hangs on them.
const SERVICE: &str = "
    CREATE TABLE orgs (id int PRIMARY KEY, name varchar(20) NOT NULL); INSERT INTO orgs SELECT n, 'org ' || n FROM generate_series(1, 10) n;
    CREATE TABLE users (id int PRIMARY KEY, email text, age int, org int, bio text, met timestamp);
    INSERT INTO users SELECT n, n || '@example', n % 90, 1 + n % 10, 'bio', '2026-01-01' FROM generate_series(1, 500) n;
    CREATE INDEX users_age ON users (age); CREATE TYPE addr AS (street text, zip text); CREATE DOMAIN email AS text CHECK (VALUE LIKE '%@%');
    CREATE TABLE homes (id int PRIMARY KEY, at addr); CREATE SEQUENCE numbers; CREATE VIEW mails AS SELECT id, email FROM users;
    CREATE VIEW all_mails AS SELECT email FROM mails; COMMENT ON VIEW mails IS 'from before';
    CREATE FUNCTION one(a int) RETURNS int LANGUAGE sql AS 'SELECT a'; CREATE VIEW ones AS SELECT one(1);
    CREATE FUNCTION stamp() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';
    CREATE TRIGGER stamps BEFORE UPDATE ON users FOR EACH ROW EXECUTE FUNCTION stamp();
    CREATE TABLE counters (id int GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY, x int, more int GENERATED ALWAYS AS (x + 1) STORED);
    INSERT INTO counters (x) VALUES (1), (2); CREATE TABLE series (id serial PRIMARY KEY);
    CREATE TABLE loose (a int PRIMARY KEY, c int GENERATED ALWAYS AS (a * 2) STORED); INSERT INTO loose VALUES (1);
    CREATE MATERIALIZED VIEW sums AS SELECT count(*) AS c FROM users;
    CREATE AGGREGATE summed (int) (sfunc = int4pl, stype = int, initcond = '0'); CREATE TYPE floats AS RANGE (subtype = float8, subtype_diff = float8mi);
    CREATE TYPE tone AS ENUM ('low', 'high'); CREATE DOMAIN mild AS tone DEFAULT 'low';
    CREATE FUNCTION first() RETURNS int LANGUAGE sql AS 'SELECT 1'; CREATE DOMAIN numbered AS int DEFAULT first();
    CREATE TYPE pair AS (a text); CREATE TABLE pairs OF pair (PRIMARY KEY (a)); INSERT INTO pairs VALUES ('0');
    CREATE TEXT SEARCH CONFIGURATION plain (COPY = simple); CREATE COLLATION in_order (provider = icu, locale = 'en-u-kn-true')";

/// The shadow follows, and `pg_dump` says the same of both.
async fn alike(leader: &mut Leader<'_>, bin: &Path) -> Result<()> {
    followed(leader).await?;
    let [near, far] = &leader.playground.zones;
    let (one, other) = (dumped(bin, near).await?, dumped(bin, far).await?);
    let only = |one: &[String], other: &[String]| -> Vec<String> {
        one.iter().filter(|statement| !other.contains(statement)).cloned().collect()
    };
    ensure!(one == other, "{:#?}\n{:#?}", only(&one, &other), only(&other, &one));
    Ok(())
}

/// Until both have the same rows.
pub(crate) async fn same_rows([one, other]: [&Client; 2], table: &str) -> Result<()> {
    let rows = format!("SELECT coalesce(string_agg(t::text, E'\\n' ORDER BY t::text), '') FROM {table} t");
    let all = async |client: &Client| anyhow::Ok(client.query_one(&rows, &[]).await?.get::<_, String>(0));
    let equal = async || Ok(all(one).await? == all(other).await?);
    if let Err(error) = until("both have the same rows", equal).await {
        let (one, other) = (all(one).await?, all(other).await?);
        let differs = one.lines().zip(other.lines()).find(|(one, other)| one != other);
        return Err(error.context(format!("{table}: {differs:?}")));
    }
    Ok(())
}

/// Both zones are of one major version, and the whole schema follows.
async fn followed_wholly() -> Result<(Playground, [PathBuf; 2])> {
    let mut options = options(false)?;
    let [one, other] = &mut options.bins;
    other.clone_from(one);
    let all = "replication: {mode: async, schema: all, unlogged: empty}";
    options.policy = options.policy.replace("replication: {mode: async}", all);
    let bins = options.bins.clone();
    Ok((Playground::start(&options).await?, bins))
}

#[tokio::test(flavor = "multi_thread")]
async fn what_releases_do_to_a_schema_is_followed() -> Result<()> {
    let (playground, bins) = followed_wholly().await?;
    let [near, far] = &playground.zones;
    for zone in [near, far] {
        superuser(zone).await?.batch_execute("ALTER ROLE godwit BYPASSRLS").await?;
    }
    let primary = owner(near).await?;
    primary.batch_execute(SERVICE).await?;
    let mut leader = Leader::start(&playground, &[])?;
    leader.ready().await?;
    let shadow = owner(far).await?;
    alike(&mut leader, &bins[0]).await.context("the copy")?;
    for release in RELEASES {
        primary.batch_execute(release).await.context(release)?;
        alike(&mut leader, &bins[0]).await.context(release)?;
    }
    // What nobody can tell of older rows is copied again, into columns like the primary's.
    primary
        .batch_execute("ALTER TABLE users ALTER met TYPE timestamptz, ADD uid uuid DEFAULT gen_random_uuid(), ADD \"it's place\" serial UNIQUE")
        .await?;
    let told = async || {
        let found = differences(&leader).await?;
        let anew = found.iter().filter(|left| left.reseed);
        Ok(anew.count() == 3 && found.iter().all(|left| left.subject == "public.users"))
    };
    until("that is told", told).await?;
    let named = |view: &ResourceView, words: &str| view.problems.iter().any(|line| line.contains(words));
    let mend = "godwit reseed orders --table 'public.users'";
    let view = leader.until("what mends it is named", |view| named(view, mend)).await?;
    ensure!(!named(&view, "cannot follow"), "{:#?}", view.problems);
    seed_anew(&leader, &["public.users"]).await?;
    alike(&mut leader, &bins[0]).await.context("a table anew")?;
    for table in ["users", "homes", "pairs", "counters", "loose", "tasks", "flows"] {
        same_rows([&primary, &shadow], table).await?;
    }
    leader.migrate(&far.name).await?;
    leader.until("moved", |view| view.primary == far.name && view.phase == "shadowing").await?;
    Ok(())
}

/// What looks like a column that was added without values has them in rows that nothing tells of.
#[tokio::test(flavor = "multi_thread")]
async fn a_column_keeps_its_values_when_its_default_is_dropped_again() -> Result<()> {
    let (playground, bins) = followed_wholly().await?;
    let [near, far] = &playground.zones;
    let primary = owner(near).await?;
    primary.batch_execute(SERVICE).await?;
    primary
        .batch_execute(
            "CREATE TABLE days (id int, day int, PRIMARY KEY (id, day)) PARTITION BY RANGE (day);
             CREATE TABLE days_0 PARTITION OF days FOR VALUES FROM (0) TO (10);
             CREATE TABLE days_1 PARTITION OF days FOR VALUES FROM (10) TO (20) PARTITION BY LIST (id);
             CREATE TABLE days_10 PARTITION OF days_1 DEFAULT; INSERT INTO days SELECT n, n % 20 FROM generate_series(1, 50) n",
        )
        .await?;
    let mut leader = Leader::start(&playground, &[])?;
    leader.ready().await?;
    let shadow = owner(far).await?;
    alike(&mut leader, &bins[0]).await.context("the copy")?;
    for release in [
        "ALTER TABLE days ADD w int DEFAULT 5; ALTER TABLE days ALTER w DROP DEFAULT; INSERT INTO days VALUES (60, 1, 6)",
        "ALTER TABLE days ADD v text DEFAULT 'it''s' NOT NULL",
        // Of whom a column has nothing needs no copy, whatever wrote it anew.
        "ALTER TABLE users ALTER age TYPE bigint, ADD nothing text",
        // A default that was given later is not what older rows have.
        "ALTER TABLE users ADD agreed boolean; ALTER TABLE users ALTER agreed SET DEFAULT false; ALTER TABLE days ADD u int; ALTER TABLE days ALTER u SET DEFAULT 3; INSERT INTO days VALUES (61, 1, 6)",
        "ALTER TABLE homes ADD drawn uuid DEFAULT gen_random_uuid()",
    ] {
        primary.batch_execute(release).await.context(release)?;
        alike(&mut leader, &bins[0]).await.context(release)?;
        same_rows([&primary, &shadow], "days").await.context(release)?;
        same_rows([&primary, &shadow], "users").await.context(release)?;
    }
    for (table, release) in [
        (
            "users",
            "ALTER TABLE users ADD token uuid DEFAULT gen_random_uuid(); ALTER TABLE users ALTER token DROP DEFAULT",
        ),
        (
            "houses",
            "INSERT INTO homes VALUES (1); ALTER TABLE homes RENAME TO houses; ALTER TABLE houses ADD k int DEFAULT 5, ALTER id TYPE bigint; ALTER TABLE houses ALTER k DROP DEFAULT",
        ),
    ] {
        primary.batch_execute(release).await.context(release)?;
        let told = async || {
            let found = differences(&leader).await?;
            Ok(matches!(&found[..], [left] if left.reseed && left.subject == format!("public.{table}")))
        };
        until("that is told", told).await.context(release)?;
        seed_anew(&leader, &[&format!("public.{table}")]).await?;
        alike(&mut leader, &bins[0]).await.context(release)?;
        same_rows([&primary, &shadow], table).await.context(release)?;
    }
    // The way back knows what was written anew, too.
    leader.ready().await?;
    leader.migrate(&far.name).await?;
    leader.until("moved", |view| view.primary == far.name && view.phase == "shadowing").await?;
    shadow
        .batch_execute("ALTER TABLE days ADD drawn uuid DEFAULT gen_random_uuid(); ALTER TABLE days ALTER drawn DROP DEFAULT")
        .await?;
    let told = |view: &ResourceView| {
        view.problems.iter().any(|line| line.contains("public.days: column drawn added on"))
    };
    leader.until("it is told", told).await?;
    ensure!(leader.ask_to_migrate(&near.name).await.is_err(), "what was drawn would be gone");
    Ok(())
}

/// What a new tenant of a service gets: its own schema of many tables, which refer to each other.
const TENANT: &str = "
    BEGIN; CREATE SCHEMA tenant;
    CREATE TABLE tenant.months (id bigint, at date NOT NULL, PRIMARY KEY (id, at)) PARTITION BY RANGE (at);
    CREATE TABLE tenant.months_0 PARTITION OF tenant.months FOR VALUES FROM ('2026-01-01') TO ('2026-02-01');
    CREATE TABLE tenant.months_1 PARTITION OF tenant.months FOR VALUES FROM ('2026-02-01') TO ('2026-03-01');
    CREATE INDEX ON tenant.months (id); CREATE UNLOGGED TABLE tenant.sessions (id uuid PRIMARY KEY);
    INSERT INTO tenant.months SELECT n, date '2026-01-01' + n % 50 FROM generate_series(1, 100) n;
    DO $$ BEGIN FOR n IN 0 .. 120 LOOP
      EXECUTE format('CREATE TABLE tenant.%I (id bigserial PRIMARY KEY, other bigint REFERENCES tenant.%I, name varchar(9) CHECK (name IN (''a'', ''b'')))',
        't' || n, 't' || greatest(n - 1, 0));
      EXECUTE format('CREATE INDEX ON tenant.%I (name); COMMENT ON TABLE tenant.%1$I IS ''no %s''', 't' || n, n);
      IF n % 3 = 0 THEN EXECUTE format('INSERT INTO tenant.%I (name) SELECT ''a'' FROM generate_series(1, %s)', 't' || n, n); END IF;
    END LOOP; END $$;
    ALTER TABLE tenant.t0 ADD FOREIGN KEY (other) REFERENCES tenant.t120; COMMIT";

#[tokio::test(flavor = "multi_thread")]
async fn a_new_tenants_tables_come_together() -> Result<()> {
    let (playground, bins) = followed_wholly().await?;
    let [near, far] = &playground.zones;
    let primary = owner(near).await?;
    let mut leader = Leader::start(&playground, &[])?;
    leader.ready().await?;
    let shadow = owner(far).await?;
    let busy = owner(near).await?;
    primary.batch_execute(TENANT).await?;
    // Nobody's writers wait for a table that somebody holds, nor do the other tables.
    busy.batch_execute("BEGIN; INSERT INTO tenant.t7 (name) VALUES ('b')").await?;
    let counted = "SELECT count(*), count(DISTINCT xmin::text) FROM pg_class \
        WHERE relnamespace = to_regnamespace('tenant') AND relkind IN ('r', 'p')";
    let (all, transactions) = {
        let rows = async || {
            let row = shadow.query_one(counted, &[]).await?;
            anyhow::Ok((row.get::<_, i64>(0), row.get::<_, i64>(1)))
        };
        until("they are there", async || Ok(rows().await?.0 == 125)).await?;
        rows().await?
    };
    ensure!(transactions <= 6, "{all} tables were made in {transactions} transactions");
    busy.batch_execute("INSERT INTO tenant.t7 (name) VALUES ('a'); COMMIT").await?;
    alike(&mut leader, &bins[0]).await?;
    primary.batch_execute("INSERT INTO tenant.t8 (name) VALUES ('b')").await?;
    let rows = "SELECT string_agg(format('%s %s', relname, (xpath('//n/text()', query_to_xml(format('SELECT count(*) AS n, \
        sum(hashtext(t::text)) FROM tenant.%I t', relname), false, true, '')))[1]), ' ' ORDER BY relname) \
        FROM pg_class WHERE relnamespace = to_regnamespace('tenant') AND relkind IN ('r', 'p') AND relpersistence = 'p'";
    let all = async |client: &Client| anyhow::Ok(client.query_one(rows, &[]).await?.get::<_, String>(0));
    until("both have the same rows", async || Ok(all(&primary).await? == all(&shadow).await?)).await?;
    Ok(())
}

/// What was changed right before a move, and while the move waited for who changes it: nobody has to ask again.
#[tokio::test(flavor = "multi_thread")]
async fn a_move_waits_for_a_shadow_that_is_just_following() -> Result<()> {
    let mut options = options(false)?;
    options.policy = options
        .policy
        .replace("replication: {mode: async}", "replication: {mode: async, schema: all}")
        .replace("drain_timeout: 5s", "drain_timeout: 3s");
    let playground = Playground::start(&options).await?;
    let [near, far] = &playground.zones;
    let primary = owner(near).await?;
    primary
        .batch_execute("CREATE TABLE gone (id int PRIMARY KEY); CREATE VIEW all_gone AS TABLE gone")
        .await?;
    let mut leader = Leader::start(&playground, &[])?;
    leader.ready().await?;
    followed(&mut leader).await?;
    primary
        .batch_execute(
            "CREATE TABLE come (id int PRIMARY KEY, word text); INSERT INTO come VALUES (1, 'one');
             ALTER TABLE orders ADD colour text DEFAULT 'red'; DROP TABLE gone CASCADE; CREATE INDEX by_colour ON orders (colour)",
        )
        .await?;
    let id = leader.migrate(&far.name).await?;
    leader.until("it moved", |view| view.phase == "shadowing").await?;
    let run = leader.migration(&id).await?;
    ensure!(run.state == "retired", "{run:#?}");
    let words = "SELECT count(*) FILTER (WHERE word = 'one') + (SELECT count(*) FROM orders WHERE colour = 'red' LIMIT 1) \
        FROM come WHERE to_regclass('gone') IS NULL AND to_regclass('by_colour') IS NOT NULL";
    let [primary, shadow] = [owner(far).await?, owner(near).await?];
    ensure!(primary.query_one(words, &[]).await?.get::<_, i64>(0) > 1, "all of it came");

    leader.ready().await?;
    let busy = owner(far).await?;
    busy.batch_execute("BEGIN; CREATE INDEX by_word ON come (word); CREATE TABLE last (id int PRIMARY KEY)")
        .await?;
    let old = "SELECT count(*) FROM pg_stat_activity WHERE clock_timestamp() - xact_start > interval '3 s' AND pid = $1";
    let pid: i32 = busy.query_one("SELECT pg_backend_pid()", &[]).await?.get(0);
    until("it is in the way", async || {
        Ok(superuser(far).await?.query_one(old, &[&pid]).await?.get::<_, i64>(0) == 1)
    })
    .await?;
    let id = leader.migrate(&near.name).await?;
    let slot = "SELECT count(*) FROM pg_replication_slots WHERE database = current_database()";
    // The schemas were compared before the way back was made.
    until("the move waits for it", async || Ok(shadow.query_one(slot, &[]).await?.get::<_, i64>(0) == 1))
        .await?;
    busy.batch_execute("COMMIT").await?;
    leader.until("it moved back", |view| view.phase == "shadowing").await?;
    let run = leader.migration(&id).await?;
    ensure!(run.state == "retired", "{run:#?}");
    let there = "SELECT to_regclass('by_word') IS NOT NULL AND to_regclass('last') IS NOT NULL";
    ensure!(shadow.query_one(there, &[]).await?.get::<_, bool>(0), "what was committed last came as well");
    Ok(())
}

/// A server that publishes a table without a key refuses to update and delete its rows: the service would notice that somebody follows.
#[tokio::test(flavor = "multi_thread")]
async fn a_new_table_without_a_key_is_left_as_it_is() -> Result<()> {
    let playground = replicated("mode: async, schema: all").await?;
    let [near, far] = &playground.zones;
    let primary = owner(near).await?;
    let mut leader = Leader::start(&playground, &[])?;
    leader.ready().await?;
    primary
        .batch_execute(
            "CREATE TABLE pairs (one int NOT NULL, other int NOT NULL); INSERT INTO pairs SELECT n, n FROM generate_series(1, 100) n;
             CREATE TABLE keyed (id int PRIMARY KEY); INSERT INTO keyed VALUES (1)",
        )
        .await?;
    let told = "not migratable: public.pairs: table added on eu-west, and its changes are not published";
    leader.until("it is told", |view| view.problems.iter().any(|line| line.starts_with(told))).await?;
    let shadow = owner(far).await?;
    let keyed = "SELECT to_regclass('keyed') IS NOT NULL";
    until("the other one follows", async || Ok(shadow.query_one(keyed, &[]).await?.get(0))).await?;
    primary.batch_execute("UPDATE pairs SET other = -other; DELETE FROM pairs WHERE one > 50").await?;
    let there = "SELECT to_regclass('pairs') IS NOT NULL";
    ensure!(!shadow.query_one(there, &[]).await?.get::<_, bool>(0), "nothing brings its rows");

    primary.batch_execute("ALTER TABLE pairs ADD PRIMARY KEY (one)").await?;
    followed(&mut leader).await?;
    primary.batch_execute("DELETE FROM pairs WHERE one > 40").await?;
    let sums = "SELECT count(*) = 40 AND sum(one) = -sum(other) FROM pairs";
    until("its rows are those of the primary", async || Ok(shadow.query_one(sums, &[]).await?.get(0)))
        .await?;

    // One that lost its key while it is published.
    primary.batch_execute("ALTER TABLE pairs DROP CONSTRAINT pairs_pkey").await?;
    let negate = "UPDATE pairs SET one = -one, other = -other";
    until("it is published no more", async || Ok(primary.batch_execute(negate).await.is_ok())).await?;
    let told =
        "not migratable: public.pairs: table is on both sides, without a key on eu-west, and its changes are";
    leader.until("it is told", |view| view.problems.iter().any(|line| line.starts_with(told))).await?;
    // Nor does the next process let the shadow fall behind for it.
    drop(leader);
    let mut leader = Leader::start(&playground, &[])?;
    leader.until("the stream is up", |view| view.replication.state == "streaming").await?;
    primary.batch_execute("ALTER TABLE pairs REPLICA IDENTITY FULL").await?;
    followed(&mut leader).await?;
    primary.batch_execute("DELETE FROM pairs WHERE one = -40").await?;
    let sums = "SELECT count(*) = 39 AND sum(one) = -sum(other) AND max(one) = -1 FROM pairs";
    until("its rows are the primary's again", async || Ok(shadow.query_one(sums, &[]).await?.get(0))).await?;
    Ok(())
}

/// With `keyless: identify` nobody has to be asked: not for those that are there before the copy, nor for those that come later.
#[tokio::test(flavor = "multi_thread")]
async fn tables_without_a_key_are_given_an_identity() -> Result<()> {
    let playground = replicated("mode: async, schema: all, keyless: identify").await?;
    let [near, far] = &playground.zones;
    let primary = owner(near).await?;
    let table = |name: &str| {
        format!(
            "CREATE TABLE {name} (one int NOT NULL, other int, word text); CREATE TABLE {name}_indexed (one int NOT NULL, other int, word text);
             CREATE UNIQUE INDEX {name}_one ON {name}_indexed (one);
             INSERT INTO {name} SELECT n % 50, n, repeat('x', n) FROM generate_series(1, 100) n;
             INSERT INTO {name}_indexed SELECT n, n, repeat('x', n) FROM generate_series(1, 100) n"
        )
    };
    primary.batch_execute(&table("early")).await?;
    let mut leader = Leader::start(&playground, &[])?;
    leader.ready().await?;
    primary.batch_execute(&table("late")).await?;
    let id = leader.migrate(&far.name).await?;
    let names = ["early", "early_indexed", "late", "late_indexed"];
    leader.until("it moved", |view| view.primary == far.name && view.phase == "shadowing").await?;
    ensure!(leader.migration(&id).await?.state == "retired", "{:#?}", leader.migration(&id).await?);
    let [primary, shadow] = [owner(far).await?, owner(near).await?];
    for client in [&primary, &shadow] {
        let given = "SELECT string_agg(relreplident::text, '' ORDER BY relname) FROM pg_class WHERE relname = ANY ($1)";
        let given: String = client.query_one(given, &[&names.as_slice()]).await?.get(0);
        ensure!(given == "fifi", "{given}");
    }
    for name in names {
        let change =
            format!("UPDATE {name} SET other = -other WHERE one > 30; DELETE FROM {name} WHERE other > 20");
        primary.batch_execute(&change).await?;
        let sums = format!("SELECT format('%s %s', count(*), sum(hashtext(t::text))) FROM {name} t");
        let sums =
            async |client: &Client| anyhow::Ok(client.query_one(&sums, &[]).await?.get::<_, String>(0));
        until("both have the same rows", async || Ok(sums(&primary).await? == sums(&shadow).await?)).await?;
    }
    Ok(())
}

/// An applier that begins while the table is copied anew looks at the columns that it still has, and waits.
#[tokio::test(flavor = "multi_thread")]
async fn a_column_of_another_type_takes_all_of_what_is_written_while_its_table_is_copied_anew() -> Result<()>
{
    let playground = replicated("mode: async, schema: all, copy: {rate: 2MiB}").await?;
    let [near, far] = &playground.zones;
    let primary = owner(near).await?;
    primary
        .batch_execute(
            "CREATE TABLE days (id int PRIMARY KEY, at date, text text);
             INSERT INTO days SELECT n, '2026-01-01', repeat(md5(n::text), 16) FROM generate_series(1, 15000) n",
        )
        .await?;
    let mut leader = Leader::start(&playground, &[])?;
    leader.ready().await?;
    let shadow = connect(far).await?;
    primary.batch_execute("ALTER TABLE days ALTER at TYPE timestamp").await?;
    let copied = "SELECT count(*) FROM pg_stat_progress_copy WHERE relid = 'days'::regclass";
    let waits = "SELECT count(*) FROM pg_locks WHERE relation = 'days'::regclass AND mode = 'RowExclusiveLock' AND NOT granted";
    let some = async |sql: &str| anyhow::Ok(shadow.query_one(sql, &[]).await?.get::<_, i64>(0) > 0);
    let meanwhile = async {
        until("it is copied anew", async || some(copied).await).await?;
        primary.batch_execute("INSERT INTO days VALUES (0, '2026-11-30 13:45', 'during')").await?;
        until("an applier waits for it", async || some(waits).await).await?;
        ensure!(some(copied).await?, "the copy was too quick to show anything");
        Ok(())
    };
    tokio::try_join!(seed_anew(&leader, &["public.days"]), meanwhile)?;
    followed(&mut leader).await?;
    primary.batch_execute("INSERT INTO days VALUES (-1, '2026-11-30 14:15', 'after')").await?;
    let here = "SELECT string_agg(at::text, ' ' ORDER BY id) FROM days WHERE id < 1";
    let all =
        async |client: &Client| anyhow::Ok(client.query_one(here, &[]).await?.get::<_, Option<String>>(0));
    if let Err(error) =
        until("both have the same", async || Ok(all(&primary).await? == all(&shadow).await?)).await
    {
        let both = [all(&primary).await?, all(&shadow).await?];
        return Err(error.context(format!("{both:?} differ\n{}", leader.node.tail(30))));
    }
    ensure!(all(&shadow).await?.is_some_and(|both| both == "2026-11-30 14:15:00 2026-11-30 13:45:00"));
    leader.ready().await.map(drop)
}
