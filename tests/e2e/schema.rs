//! DDL is not replicated: a schema that drifted is named and stops a migration, until it is brought up on the shadow.

use anyhow::{Context, Result, ensure};
use godwit::controller::drift::{DifferenceView, SchemaView};
use godwit::controller::view::ResourceView;
use godwit::demo::zone::{OWNER_ROLE, Playground, RESOURCE, SUPERUSER, Zone};
use godwit_tests::waiting::until;
use replicator::fence;
use replicator::preflight::{Side, check};
use serde_json::json;
use tokio_postgres::Client;

use crate::fence::{Setup, spec};
use crate::leader::{Leader, PATIENCE, connect, load, options};
use crate::slots::metrics;

async fn digest(client: &Client) -> Result<Vec<String>> {
    let mut all = Vec::new();
    for table in ["orders", "extras", "labels", "by_hand", "quiet"] {
        // By name: the order of columns may differ.
        let sql = format!(
            "SELECT count(*) || '/' || coalesce(sum(hashtextextended(to_jsonb(t)::text, 0)), 0)::text FROM {table} t"
        );
        all.push(client.query_one(&sql, &[]).await?.get(0));
    }
    Ok(all)
}

pub(crate) async fn sync(leader: &Leader<'_>, dry_run: bool) -> Result<SchemaView> {
    let path = format!("/api/v1/resources/{RESOURCE}/schema/sync");
    Ok(serde_json::from_slice(&leader.client.send(&path, &json!({ "dry_run": dry_run })).await?)?)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_schema_that_drifted_is_named_brought_up_and_moves() -> Result<()> {
    let playground = Playground::start(&options(false)?).await?;
    let [near, far] = &playground.zones;
    connect(near)
        .await?
        .batch_execute("CREATE TABLE quiet (id int PRIMARY KEY); INSERT INTO quiet VALUES (1)")
        .await?;
    let mut leader = Leader::start(&playground, &[])?;
    leader.ready().await?;
    let (primary, shadow) = (connect(near).await?, connect(far).await?);
    let running = load(&playground, 40.0, "schema");
    leader.until("traffic", |_| running.snapshot().acknowledged > 20).await?;

    primary
        .batch_execute(
            "CREATE TABLE labels (id int PRIMARY KEY, word text UNIQUE);
             CREATE TABLE extras (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, label int REFERENCES labels, n int CHECK (n > 0));
             INSERT INTO labels VALUES (1, 'one'), (2, 'two'); INSERT INTO extras (label, n) VALUES (1, 7), (2, 8)",
        )
        .await?;
    primary.batch_execute("ALTER TABLE orders ADD COLUMN note text DEFAULT 'early'").await?;
    primary.batch_execute("ALTER TABLE orders ALTER COLUMN note SET DEFAULT 'late'; ALTER TABLE quiet ADD COLUMN gone uuid DEFAULT gen_random_uuid()").await?;
    primary.batch_execute("CREATE INDEX orders_note ON orders (note)").await?;
    let named = format!("not migratable: public.orders: column note added on {}", near.name);
    leader.until("the drift is named", |view| view.problems.contains(&named)).await?;
    ensure!(leader.ask_to_migrate(&far.name).await.is_err(), "a drifted shadow must not take over");

    let view: SchemaView = leader.client.fetch(&format!("/api/v1/resources/{RESOURCE}/schema")).await?;
    let find =
        |view: &SchemaView, what: &str| view.differences.iter().find(|d| d.what.starts_with(what)).cloned();
    let note = find(&view, "column note").context("note")?;
    ensure!(
        note.additive && note.sql.as_deref().is_some_and(|sql| sql.contains("DEFAULT 'early'")),
        "{note:?}"
    );
    // Its values were drawn row by row, and nothing in the WAL tells them.
    ensure!(find(&view, "column gone").is_some_and(|gone| !gone.additive), "{view:#?}");
    ensure!(sync(&leader, true).await?.differences == view.differences, "a dry run changes nothing");
    let columns = "SELECT count(*) FROM information_schema.columns WHERE table_name = 'orders'";
    ensure!(shadow.query_one(columns, &[]).await?.get::<_, i64>(0) == 5, "a dry run changes nothing");
    primary.batch_execute("ALTER TABLE quiet DROP COLUMN gone").await?;

    // Made by hand on both sides: whole only when its rows are copied and its changes published.
    for side in [&primary, &shadow] {
        side.batch_execute("CREATE TABLE by_hand (id int PRIMARY KEY)").await?;
    }
    primary.batch_execute("INSERT INTO by_hand VALUES (1), (2)").await?;
    let after = sync(&leader, false).await?;
    ensure!(after.differences.is_empty() && after.done.len() >= 4, "{after:#?}");
    primary
        .batch_execute(
            "INSERT INTO extras (label, n) VALUES (1, 9); UPDATE orders SET note = 'told' WHERE id % 7 = 0",
        )
        .await?;
    leader.ready().await?;
    ensure!(shadow.execute("DELETE FROM extras", &[]).await.is_err(), "a new table has the fence, too");
    leader.migrate(&far.name).await?;
    leader.until("moved", |view| view.primary == far.name && view.phase == "shadowing").await?;
    let outcome = running.stop().await;
    ensure!(outcome.totals.failed == 0, "{:#?}", outcome.failures);

    shadow.batch_execute("INSERT INTO extras (label, n) VALUES (2, 10)").await?;
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        let (one, other) = (digest(&primary).await?, digest(&shadow).await?);
        if one == other {
            break;
        }
        ensure!(tokio::time::Instant::now() < deadline, "{one:?} {other:?}\n{}", leader.node.tail(30));
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    let notes: i64 = shadow.query_one("SELECT count(DISTINCT note) FROM orders", &[]).await?.get(0);
    ensure!(notes == 3, "early, late and told: {notes}");
    leader.ready().await?;
    Ok(())
}

pub(crate) async fn differences(leader: &Leader<'_>) -> Result<Vec<DifferenceView>> {
    Ok(compared(leader).await?.differences)
}

async fn compared(leader: &Leader<'_>) -> Result<SchemaView> {
    leader.client.fetch(&format!("/api/v1/resources/{RESOURCE}/schema")).await
}

/// Views, functions, triggers and what a role may do: a service misses them as it would a column.
#[tokio::test(flavor = "multi_thread")]
async fn what_stands_around_the_tables_is_brought_up_as_well() -> Result<()> {
    let playground = Playground::start(&options(false)?).await?;
    let [near, far] = &playground.zones;
    let owner = |client: Client| async move {
        client.batch_execute(&format!("SET ROLE {OWNER_ROLE}")).await.map(|()| client)
    };
    let primary = owner(connect(near).await?).await?;
    primary
        .batch_execute(
            "CREATE FUNCTION tax(price int) RETURNS int LANGUAGE sql AS 'SELECT price / 5';
             CREATE VIEW dear AS SELECT id FROM orders WHERE id > 1; CREATE MATERIALIZED VIEW sums AS SELECT 1 AS one;
             CREATE SEQUENCE numbers; CREATE SEQUENCE far_on; CREATE TABLE secrets (id int PRIMARY KEY, word text)",
        )
        .await?;
    let mut leader = Leader::start(&playground, &[])?;
    leader.ready().await?;
    let shadow = connect(far).await?;
    ensure!(
        differences(&leader).await?.is_empty(),
        "a fresh copy has everything: {:#?}",
        differences(&leader).await?
    );

    let changes = "
        CREATE OR REPLACE FUNCTION tax(price int) RETURNS int LANGUAGE sql AS 'SELECT price / 4';
        CREATE FUNCTION stamp() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN NEW.word = upper(NEW.word); RETURN NEW; END';
        CREATE TYPE mood AS ENUM ('glad', 'sad'); CREATE DOMAIN positive AS int CHECK (VALUE > 0);
        CREATE FUNCTION feels(m mood, n positive) RETURNS mood LANGUAGE sql BEGIN ATOMIC SELECT m; END;
        CREATE OR REPLACE VIEW dear AS SELECT id, id * 2 AS twice FROM orders WHERE id > 2;
        CREATE VIEW a_first AS SELECT twice FROM dear; CREATE SCHEMA reports; CREATE VIEW reports.daily AS SELECT tax(1);
        ALTER SEQUENCE numbers INCREMENT BY 10; ALTER SEQUENCE far_on MINVALUE 500 START 500 RESTART; CREATE SEQUENCE reports.other CYCLE;
        CREATE TRIGGER stamps BEFORE INSERT ON secrets FOR EACH ROW EXECUTE FUNCTION stamp();
        ALTER TABLE secrets ENABLE ROW LEVEL SECURITY; CREATE POLICY mine ON secrets USING (word <> 'other');
        CREATE STATISTICS secrets_both ON id, word FROM secrets;
        GRANT USAGE ON SCHEMA reports TO orders_app; GRANT SELECT ON reports.daily TO orders_app;
        GRANT SELECT (id), UPDATE (word) ON secrets TO orders_app; REVOKE EXECUTE ON FUNCTION stamp() FROM PUBLIC";
    primary.batch_execute(changes).await?;
    let found = differences(&leader).await?;
    for what in
        ["function added on", "function is not the same on", "view added on", "trigger stamps added on"]
    {
        ensure!(found.iter().any(|difference| difference.what.starts_with(what)), "no {what:?}: {found:#?}");
    }
    ensure!(found.iter().all(|difference| difference.additive), "{found:#?}");
    leader
        .until("the drift is named", |view| {
            view.problems.iter().any(|line| line.contains("the schemas differ in"))
        })
        .await?;
    ensure!(leader.ask_to_migrate(&far.name).await.is_err(), "a service would miss it over there");
    // What only the shadow has and nobody meets stops nothing.
    shadow
        .batch_execute(
            "CREATE FUNCTION of_a_monitor() RETURNS int LANGUAGE sql AS 'SELECT 1'; CREATE STATISTICS of_a_person ON word, id FROM secrets",
        )
        .await?;
    let after = sync(&leader, false).await?;
    ensure!(after.differences.is_empty(), "{after:#?}");
    let row = shadow.query_one("SELECT tax(8), (SELECT count(*) FROM reports.daily)", &[]).await?;
    ensure!((row.get::<_, i32>(0), row.get::<_, i64>(1)) == (2, 1));

    // Gone again on the primary: what would still act over there stops a move, with the SQL for a person.
    primary.batch_execute("DROP TRIGGER stamps ON secrets; REVOKE SELECT ON reports.daily FROM orders_app; DROP VIEW a_first; DROP STATISTICS secrets_both").await?;
    let left = sync(&leader, false).await?.differences;
    let drop_trigger = "DROP TRIGGER \"stamps\" ON public.secrets";
    let told: Vec<_> = left.iter().map(|left| (left.sql.as_deref(), left.additive, left.stops)).collect();
    let view = (Some("DROP VIEW public.a_first"), false, false);
    let statistics = (Some("DROP STATISTICS public.\"secrets_both\""), false, false);
    ensure!(told == [view, statistics, (Some(drop_trigger), false, true)], "{left:#?}");
    owner(shadow).await?.batch_execute(drop_trigger).await?;
    leader.ready().await?;

    // A role that was made since: who logs in by it could not over there.
    let role = "CREATE ROLE late LOGIN IN ROLE orders_app";
    let administrators = [near, far].map(|zone| zone.dsn(SUPERUSER));
    replicator::postgres::connect(&administrators[0], "godwit-test").await?.batch_execute(role).await?;
    let id = leader.migrate(&far.name).await?;
    leader.until("it is given up", |view| view.migration.is_none() && view.phase == "shadowing").await?;
    let run = leader.migration(&id).await?;
    let reason = run.reason.clone().unwrap_or_default();
    ensure!(run.state == "aborted" && reason.contains("CREATE ROLE late"), "{run:#?}");
    replicator::postgres::connect(&administrators[1], "godwit-test").await?.batch_execute(role).await?;
    leader.ready().await?;

    let id = leader.migrate(&far.name).await?;
    leader.until("it has moved", |view| view.primary == far.name && view.phase == "shadowing").await?;
    ensure!(leader.migration(&id).await?.state == "retired");
    Ok(())
}

/// A session of the role that the service's migrations run as.
pub(crate) async fn owner(zone: &Zone) -> Result<Client> {
    let client = connect(zone).await?;
    client.batch_execute(&format!("SET ROLE {OWNER_ROLE}")).await?;
    Ok(client)
}

/// Zones where the shadow's schema follows in everything.
async fn following() -> Result<Playground> {
    replicated("mode: async, schema: all").await
}

/// Zones whose policy says this of the replication.
pub(crate) async fn replicated(how: &str) -> Result<Playground> {
    let mut options = options(false)?;
    options.policy = options.policy.replace("replication: {mode: async}", &format!("replication: {{{how}}}"));
    Ok(Playground::start(&options).await?)
}

/// Until the shadow has followed, and the stream is up.
pub(crate) async fn followed(leader: &mut Leader<'_>) -> Result<()> {
    // None is told while a table is being filled.
    let followed = async || {
        let view = compared(leader).await?;
        Ok(view.differences.is_empty() && view.filling.is_none())
    };
    if let Err(error) = until("the schema was followed", followed).await {
        let view: ResourceView = leader.client.fetch(&format!("/api/v1/resources/{RESOURCE}")).await?;
        let said = leader.node.tail(20);
        return Err(error.context(format!(
            "{:#?}\n{:#?}\n{said}",
            view.problems,
            differences(leader).await?
        )));
    }
    leader.until("the stream is up", |view| view.replication.state == "streaming").await?;
    leader.ready().await.map(drop)
}

/// A table of events by day, as services keep them: with days to come, days that were, and what nobody made a day for.
const EVENTS: &str = "
    CREATE TABLE kinds (name text PRIMARY KEY); INSERT INTO kinds VALUES ('click'), ('view');
    CREATE TABLE events (id bigint GENERATED BY DEFAULT AS IDENTITY, day date NOT NULL, kind text REFERENCES kinds, n int DEFAULT 7,
        old text, PRIMARY KEY (id, day)) PARTITION BY RANGE (day);
    CREATE INDEX events_kind ON events (kind);
    CREATE FUNCTION doubled() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN NEW.n = 2 * NEW.n; RETURN NEW; END';
    CREATE TRIGGER doubles BEFORE INSERT ON events FOR EACH ROW EXECUTE FUNCTION doubled();
    CREATE TABLE events_0 PARTITION OF events FOR VALUES FROM ('2026-01-01') TO ('2026-01-02');
    CREATE TABLE events_1 PARTITION OF events FOR VALUES FROM ('2026-01-02') TO ('2026-01-03');
    CREATE TABLE events_rest PARTITION OF events DEFAULT;
    CREATE TABLE events_old (LIKE events INCLUDING ALL);
    ALTER TABLE events ATTACH PARTITION events_old FOR VALUES FROM ('2025-01-01') TO ('2025-01-02');
    INSERT INTO events (day, kind) SELECT date '2026-01-01' + n % 4, 'view' FROM generate_series(1, 1000) n";

async fn events(client: &Client) -> Result<String> {
    let sql = "SELECT coalesce(string_agg(line, ' '), '') FROM (
        SELECT concat_ws('/', tableoid::regclass, count(*), sum(hashtextextended(to_jsonb(e)::text, 0))) AS line
        FROM events e GROUP BY tableoid ORDER BY 1) lines";
    Ok(client.query_one(sql, &[]).await?.get(0))
}

/// What pg_partman and the like do each day, while the service writes: the shadow's schema follows by itself.
#[tokio::test(flavor = "multi_thread")]
async fn partitions_that_come_and_go_are_followed() -> Result<()> {
    let playground = following().await?;
    let [near, far] = &playground.zones;
    let primary = owner(near).await?;
    primary.batch_execute(EVENTS).await?;
    let mut leader = Leader::start(&playground, &[])?;
    leader.ready().await?;
    let shadow = owner(far).await?;

    // One who writes all days all the time, as the service does.
    let writes = async |zone: &Zone| {
        let insert = "INSERT INTO events (day, kind) SELECT date '2026-01-02' + n, 'click' FROM generate_series(0, 8) n";
        anyhow::Ok(Writing::start(owner(zone).await?, |_| insert.to_owned()))
    };
    let equal = async || {
        let equal = async || Ok(events(&primary).await? == events(&shadow).await?);
        until("both have the same rows in the same partitions", equal).await
    };

    let writing = writes(near).await?;
    // A day is made out of what had none, one is made ready and then attached, one is kept apart, one is thrown away.
    primary
        .batch_execute(
            "BEGIN; LOCK events; CREATE TABLE events_2 (LIKE events INCLUDING ALL);
             WITH gone AS (DELETE FROM events_rest WHERE day = '2026-01-03' RETURNING *) INSERT INTO events_2 SELECT * FROM gone;
             ALTER TABLE events ATTACH PARTITION events_2 FOR VALUES FROM ('2026-01-03') TO ('2026-01-04'); COMMIT",
        )
        .await?;
    primary.batch_execute("CREATE TABLE events_8 PARTITION OF events FOR VALUES FROM ('2026-01-20') TO ('2026-01-21') PARTITION BY RANGE (id)").await?;
    primary
        .batch_execute(
            "CREATE TABLE events_8_all PARTITION OF events_8 FOR VALUES FROM (MINVALUE) TO (MAXVALUE); CREATE INDEX events_n ON events (n); INSERT INTO events (day, kind) VALUES ('2026-01-20', 'click')",
        )
        .await?;
    primary.batch_execute("CREATE TABLE events_9 (LIKE events INCLUDING DEFAULTS); ALTER TABLE events_9 ADD CONSTRAINT own PRIMARY KEY (id, day)").await?;
    followed(&mut leader).await?;
    primary
        .batch_execute("INSERT INTO events_9 (id, day, kind) VALUES (1000000, '2026-01-21', 'view')")
        .await?;
    primary
        .batch_execute(
            "ALTER TABLE events ATTACH PARTITION events_9 FOR VALUES FROM ('2026-01-21') TO ('2026-01-22')",
        )
        .await?;
    primary.batch_execute("ALTER TABLE events DETACH PARTITION events_1; DROP TABLE events_0; ALTER TABLE events DROP COLUMN old; DROP INDEX events_kind").await?;
    followed(&mut leader).await?;
    writing.stop().await?;
    // What does not fit into the shadow's waits until it does.
    primary.batch_execute("ALTER TABLE events ALTER n TYPE bigint, ALTER n SET DEFAULT 8; INSERT INTO events (day, kind, n) VALUES ('2026-01-03', 'view', 3000000000)").await?;
    followed(&mut leader).await?;
    equal().await?;
    let apart =
        shadow.query_one("SELECT count(*) > 250, to_regclass('events_0') IS NULL FROM events_1", &[]).await?;
    ensure!((apart.get(0), apart.get(1)) == (true, true), "what is kept apart is kept, what is gone is gone");
    let told = leader.audit().await?.into_iter().filter(|record| record["kind"] == "schema").count();
    ensure!(told > 1, "{told} records tell what was done");

    // And the other way, once it has moved.
    leader.migrate(&far.name).await?;
    leader.until("moved", |view| view.primary == far.name && view.phase == "shadowing").await?;
    let writing = writes(far).await?;
    shadow
        .batch_execute("CREATE TABLE events_10 PARTITION OF events FOR VALUES FROM ('2026-01-22') TO ('2026-01-23'); INSERT INTO events (day, kind) VALUES ('2026-01-22', 'click')")
        .await?;
    shadow.batch_execute("DROP TABLE events_8").await?;
    followed(&mut leader).await?;
    writing.stop().await?;
    equal().await
}

/// Every row of the tables that the test makes.
async fn people(client: &Client) -> Result<String> {
    let tables =
        "SELECT string_agg(c.oid::regclass::text, ' ' ORDER BY c.oid::regclass::text) FROM pg_class c
        WHERE c.relkind = 'r' AND c.relname ~ '^pe(ople|rsons)'";
    let tables: String = client.query_one(tables, &[]).await?.get(0);
    let mut all = String::new();
    for table in tables.split(' ') {
        let sql =
            format!("SELECT coalesce(string_agg(to_jsonb(t)::text, E'\\n' ORDER BY id), '') FROM {table} t");
        all.push_str(&format!("{table}: {}\n", client.query_one(&sql, &[]).await?.get::<_, String>(0)));
    }
    Ok(all)
}

async fn same(leader: &mut Leader<'_>, [one, other]: [&Client; 2]) -> Result<()> {
    let equal = async || Ok(people(one).await? == people(other).await?);
    if let Err(error) = until("both have the same rows", equal).await {
        let (one, other) = (people(one).await?, people(other).await?);
        let differs = one.lines().zip(other.lines()).find(|(one, other)| one != other);
        return Err(error.context(format!("{differs:#?}\n{}", leader.node.tail(20))));
    }
    Ok(())
}

/// A name that changed is not a thing that was added, and a thing made anew is not the old one: a service would read nothing, or what is gone.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_renamed_keeps_its_rows() -> Result<()> {
    let playground = following().await?;
    let [near, far] = &playground.zones;
    let primary = owner(near).await?;
    primary
        .batch_execute(
            "CREATE TYPE mood AS ENUM ('glad', 'sad'); CREATE TABLE people (id int PRIMARY KEY, name text, note text, rest int CHECK (rest > 0));
             INSERT INTO people SELECT n, 'name ' || n, 'note ' || n, n FROM generate_series(1, 200) n;
             CREATE TABLE ages (id int PRIMARY KEY, age int, more int); CREATE INDEX ages_by ON ages (age); CREATE VIEW adults AS SELECT id FROM ages WHERE age > 17;
             CREATE FUNCTION limit_of() RETURNS int LANGUAGE sql BEGIN ATOMIC SELECT 17; END;
             CREATE INDEX ages_more ON ages ((more + 1)); ALTER TABLE ages ADD CONSTRAINT born CHECK (age > 0);
             ALTER TABLE ages ADD CONSTRAINT plenty CHECK (more > 0); CREATE UNIQUE INDEX ages_few ON ages ((more + 2)) WHERE more < 10",
        )
        .await?;
    let mut leader = Leader::start(&playground, &[])?;
    leader.ready().await?;
    let shadow = owner(far).await?;
    let known = connect(far).await?;
    let remembered = async || {
        let sql = "SELECT count(*) > 4 AND (SELECT count(*) > 4 FROM godwit.worded WHERE owner ~ 'a(ges|dults)') \
            FROM godwit.identities WHERE target_table = 'people'::regclass";
        Ok(known.query_one(sql, &[]).await?.get(0))
    };
    until("it is known which table is which", remembered).await?;
    let file = "SELECT relfilenode FROM pg_class WHERE relname = 'ages_more'";
    let file = async || anyhow::Ok(shadow.query_one(file, &[]).await?.get::<_, u32>(0));
    let before = file().await?;
    for change in [
        // What the two versions word otherwise all the time.
        "CREATE OR REPLACE VIEW adults AS SELECT id FROM ages WHERE age > 20; DROP INDEX ages_by; CREATE INDEX ages_by ON ages (age, id);
         CREATE OR REPLACE FUNCTION limit_of() RETURNS int LANGUAGE sql BEGIN ATOMIC SELECT 20; END; ALTER TABLE ages RENAME more TO rest;
         ALTER TABLE ages DROP CONSTRAINT born; ALTER TABLE ages ADD CONSTRAINT born CHECK (age >= 0);
         ALTER TABLE ages DROP CONSTRAINT plenty; ALTER TABLE ages ADD CONSTRAINT plenty CHECK (rest > 10);
         DROP INDEX ages_few; CREATE UNIQUE INDEX ages_few ON ages ((rest + 2)) WHERE rest < 20",
        "ALTER TABLE people RENAME name TO called; INSERT INTO people VALUES (300, 'renamed'); UPDATE people SET called = 'new' WHERE id = 3",
        "INSERT INTO people (id) VALUES (301); ALTER TABLE people RENAME TO persons; INSERT INTO persons (id) VALUES (302)",
        // As tools do that change a table beside its writers.
        "CREATE TABLE persons_new (LIKE persons INCLUDING ALL); ALTER TABLE persons_new ADD more int DEFAULT 1",
        "INSERT INTO persons_new SELECT *, 2 FROM persons; UPDATE persons_new SET called = upper(called)",
        "INSERT INTO persons (id) VALUES (303); ALTER TABLE persons RENAME TO persons_old; ALTER TABLE persons_new RENAME TO persons;
         INSERT INTO persons VALUES (304, 'to the new one', 'x', 1, 3); UPDATE persons SET called = 'late' WHERE id = 7; DELETE FROM persons_old WHERE id = 8",
        "ALTER TABLE persons ADD mood mood DEFAULT 'glad'; UPDATE persons SET mood = 'sad' WHERE id = 11",
        "ALTER TYPE mood RENAME VALUE 'sad' TO 'blue'",
        "UPDATE persons SET mood = 'blue' WHERE id = 12",
        "ALTER TABLE persons RENAME called TO title; DELETE FROM persons WHERE id = 9",
        "CREATE SCHEMA archive; ALTER TABLE persons_old SET SCHEMA archive; DELETE FROM archive.persons_old WHERE id = 10",
        "DROP TABLE archive.persons_old; CREATE TABLE archive.persons_old (id int PRIMARY KEY, called text); INSERT INTO archive.persons_old VALUES (1, 'made anew')",
    ] {
        primary.batch_execute(change).await.context(change)?;
        followed(&mut leader).await.context(change)?;
        same(&mut leader, [&primary, &shadow]).await.context(change)?;
    }
    ensure!(file().await? == before, "an index of a renamed column is the same");
    let made = "SELECT concat_ws(' ', pg_get_viewdef('adults'::regclass) ~ '20', pg_get_indexdef('ages_by'::regclass) ~ 'age, id', limit_of(), \
        (SELECT pg_get_constraintdef(oid) ~ '>= 0' FROM pg_constraint WHERE conname = 'born'), \
        (SELECT pg_get_constraintdef(oid) ~ 'rest > 10' FROM pg_constraint WHERE conname = 'plenty'), pg_get_indexdef('ages_few'::regclass) ~ 'rest < 20')";
    let made: String = shadow.query_one(made, &[]).await?.get(0);
    ensure!(made == "t t 20 t t t", "{made}");
    leader.migrate(&far.name).await?;
    leader.until("moved", |view| view.primary == far.name && view.phase == "shadowing").await?;
    // The way back knows the wordings, too.
    shadow.batch_execute("CREATE OR REPLACE VIEW adults AS SELECT id FROM ages WHERE age > 21").await?;
    let followed_back = async || {
        let there = "SELECT pg_get_viewdef('adults'::regclass) ~ '21'";
        Ok(primary.query_one(there, &[]).await?.get::<_, bool>(0))
    };
    until("the view is followed on the way back", followed_back).await?;
    shadow
        .batch_execute(
            "ALTER TABLE persons RENAME rest TO remaining; UPDATE persons SET remaining = 1000 WHERE id < 50",
        )
        .await?;
    followed(&mut leader).await?;
    same(&mut leader, [&primary, &shadow]).await?;

    // Nothing in the stream tells the one from the other.
    shadow.batch_execute("ALTER TABLE persons DROP note; ALTER TABLE persons ADD note text").await?;
    let told = "column note was dropped and made anew";
    leader.until("it is told", |view| view.problems.iter().any(|line| line.contains(told))).await?;
    ensure!(leader.ask_to_migrate(&near.name).await.is_err(), "old values would come back");
    Ok(())
}

/// One who writes all the time.
pub(crate) struct Writing {
    stop: tokio_util::sync::CancellationToken,
    task: tokio::task::JoinHandle<Option<Result<()>>>,
}

impl Writing {
    /// What `of` says of each number.
    pub(crate) fn start(writer: Client, of: impl Fn(i64) -> String + Send + 'static) -> Self {
        let stop = tokio_util::sync::CancellationToken::new();
        let task = tokio::spawn(stop.clone().run_until_cancelled_owned(async move {
            for n in 0.. {
                writer.batch_execute(&of(n)).await?;
            }
            Ok(())
        }));
        Self { stop, task }
    }

    /// None may have failed.
    pub(crate) async fn stop(self) -> Result<()> {
        self.stop.cancel();
        self.task.await?.unwrap_or(Ok(())).context("a write failed")
    }
}

/// A table that came with many rows at once is filled while it is written, again where that broke, and then moves with the others.
#[tokio::test(flavor = "multi_thread")]
async fn a_table_of_many_rows_is_filled_beside_the_stream() -> Result<()> {
    let playground = replicated("mode: async, schema: additions, copy: {rate: 4MiB}").await?;
    let [near, far] = &playground.zones;
    let mut leader = Leader::start(&playground, &[])?;
    leader.ready().await?;
    let (primary, shadow) = (owner(near).await?, owner(far).await?);
    let running = load(&playground, 40.0, "filled");
    primary
        .batch_execute(
            "CREATE TABLE heavy (id int PRIMARY KEY, n int NOT NULL, filler text, twice int GENERATED ALWAYS AS (n * 2) STORED);
             INSERT INTO heavy SELECT i, 0, repeat(md5(i::text), 8) FROM generate_series(1, 80000) i",
        )
        .await?;
    let writer = owner(near).await?;
    let writing = Writing::start(writer, |n| {
        let id = 1_000_000 + n;
        format!(
            "UPDATE heavy SET n = n + 1 WHERE id = 1 + {id} % 80000; INSERT INTO heavy VALUES ({id}, 1, ''); DELETE FROM heavy WHERE id = {id} - 1 AND id % 2 = 0"
        )
    });
    let far_along = |view: &ResourceView| {
        view.problems.iter().any(|problem| {
            problem.starts_with("table public.heavy is being copied to the shadow: ")
                && !problem.contains(" 0 %")
        })
    };
    leader.until("it is being filled", far_along).await?;
    let superuser = replicator::postgres::connect(&near.dsn(SUPERUSER), "godwit-test").await?;
    let end = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name = 'godwit-fill'";
    ensure!(superuser.query_one(end, &[]).await?.get::<_, i64>(0) == 1, "somebody reads it");
    let published = format!(
        "not migratable: public.heavy: table is published on {} without being on {}",
        near.name, far.name
    );
    leader.until("what broke is told", |view| view.problems.contains(&published)).await?;
    leader.until("it is being filled again", far_along).await?;
    ensure!(leader.ask_to_migrate(&far.name).await.is_err(), "the shadow lacks a table");
    followed(&mut leader).await?;
    writing.stop().await?;
    leader.migrate(&far.name).await?;
    leader.until("moved", |view| view.primary == far.name && view.phase == "shadowing").await?;
    let outcome = running.stop().await;
    ensure!(outcome.totals.failed == 0, "{:#?}", outcome.failures);
    let rows = "SELECT concat_ws(' ', count(*), sum(n), sum(hashtextextended(h::text, 0))) FROM heavy h";
    let all = async |client: &Client| anyhow::Ok(client.query_one(rows, &[]).await?.get::<_, String>(0));
    let (one, other) = (all(&primary).await?, all(&shadow).await?);
    ensure!(one == other, "{one}\n{other}");
    let left = "SELECT count(*) FROM godwit.copied_parts";
    let left: i64 = connect(far).await?.query_one(left, &[]).await?.get(0);
    ensure!(left == 0, "{left} records of what was filled are left");
    Ok(())
}

/// A value that has another name, and is written at once: the stream stands still at it, with all from before, and goes on.
#[tokio::test(flavor = "multi_thread")]
async fn a_value_is_written_by_its_new_name_at_once() -> Result<()> {
    let playground = following().await?;
    let [near, far] = &playground.zones;
    let primary = owner(near).await?;
    let moods =
        "CREATE TYPE mood AS ENUM ('glad', 'sad'); CREATE TABLE moods (id int PRIMARY KEY, feels mood)";
    primary.batch_execute(moods).await?;
    let mut leader = Leader::start(&playground, &[])?;
    leader.ready().await?;
    // It is known which value is which.
    followed(&mut leader).await?;
    let shadow = owner(far).await?;
    // Those from before and after may come as one group.
    let mut all = String::new();
    for id in 0..200 {
        let (feels, rename) = match id {
            100 => ("merry", "ALTER TYPE mood RENAME VALUE 'glad' TO 'merry';"),
            101.. => ("merry", ""),
            _ => ("glad", ""),
        };
        all.push_str(&format!("{rename} BEGIN; INSERT INTO moods VALUES ({id}, '{feels}'); COMMIT;"));
    }
    primary.batch_execute(&all).await?;
    followed(&mut leader).await?;
    let merry = "SELECT count(*) FROM moods WHERE feels = 'merry'";
    let there = async || Ok(shadow.query_one(merry, &[]).await?.get::<_, i64>(0) == 200);
    until("all are there by the new name", there).await
}

/// Rows of such a table are deleted and inserted again with all columns that the shadow has.
#[tokio::test(flavor = "multi_thread")]
async fn a_column_that_is_dropped_later_on_the_shadow_stops_no_stream() -> Result<()> {
    let playground = Playground::start(&options(false)?).await?;
    let [near, far] = &playground.zones;
    let primary = owner(near).await?;
    let table = "CREATE TABLE numbered (id int PRIMARY KEY, n bigint GENERATED ALWAYS AS IDENTITY, gone int); \
        INSERT INTO numbered (id) VALUES (1)";
    primary.batch_execute(table).await?;
    let mut leader = Leader::start(&playground, &[])?;
    leader.ready().await?;
    let shadow = owner(far).await?;
    let count = "UPDATE numbered SET n = DEFAULT RETURNING n";
    for drops in [false, true] {
        if drops {
            let path = format!("/api/v1/resources/{RESOURCE}/schema/sync");
            leader.client.send(&path, &json!({ "dry_run": false, "drop": true })).await?;
            ensure!(differences(&leader).await?.is_empty(), "the column is gone");
        } else {
            primary.batch_execute("ALTER TABLE numbered DROP COLUMN gone").await?;
        }
        let n: i64 = primary.query_one(count, &[]).await?.get(0);
        let there = async || Ok(shadow.query_one("SELECT n FROM numbered", &[]).await?.get::<_, i64>(0) == n);
        until("it came", there).await?;
    }
    let all = metrics(&playground).await?;
    let broken =
        |line: &&str| line.starts_with("godwit_replication_failures_total{") && line.contains("\"schema\"");
    ensure!(all.lines().find(broken).context("a count")?.ends_with(" 0"), "the stream stood still");
    Ok(())
}

/// What somebody broke in some tables of the shadow's is mended by copying those again, while they are written; the others stay.
#[tokio::test(flavor = "multi_thread")]
async fn some_tables_are_seeded_anew_beside_the_stream() -> Result<()> {
    let playground = Playground::start(&options(false)?).await?;
    let [near, far] = &playground.zones;
    let (primary, shadow) = (owner(near).await?, owner(far).await?);
    primary.batch_execute(EVENTS).await?;
    primary.batch_execute("CREATE TABLE drawn (id int PRIMARY KEY, word uuid)").await?;
    let mut leader = Leader::start(&playground, &[])?;
    leader.ready().await?;
    let writer = owner(near).await?;
    let writing = Writing::start(writer, |n| {
        format!(
            "INSERT INTO events (day, kind) SELECT date '2026-01-01' + n, 'click' FROM generate_series(0, 8) n; \
             DELETE FROM events WHERE id % 100 = 7; UPDATE kinds SET name = name; INSERT INTO kinds VALUES ('kind {n}')"
        )
    });
    // A row that nobody sent stops the stream; of the other tables nobody has seen yet that rows are gone.
    let somebody = connect(far).await?;
    somebody
        .batch_execute(
            "SET session_replication_role = replica; DELETE FROM events WHERE kind = 'view'; \
             INSERT INTO kinds SELECT 'kind ' || n FROM generate_series(1, 100000) n ON CONFLICT DO NOTHING",
        )
        .await?;
    leader.until("the stream stands still", |view| view.replication.state == "failed").await?;
    let file = file_of_orders(&somebody).await?;
    let refused = seed_anew(&leader, &["public.kinds", "public.nothing"])
        .await
        .err()
        .context("there is no such table")?;
    ensure!(format!("{refused:#}").contains("no table public.nothing"), "{refused:#}");
    let view = seed_anew(&leader, &["public.kinds", "public.events"]).await?;
    ensure!(view.differences.is_empty() && view.done.len() == 5, "{view:#?}");
    leader.ready().await?;
    writing.stop().await?;
    let rows = "SELECT concat_ws(' ', count(*), sum(hashtextextended(k::text, 0))) FROM kinds k";
    let equal = async || {
        let all = async |client: &Client| {
            anyhow::Ok((events(client).await?, client.query_one(rows, &[]).await?.get::<_, String>(0)))
        };
        Ok(all(&primary).await? == all(&shadow).await?)
    };
    until("both have the same rows", equal).await?;
    ensure!(file_of_orders(&somebody).await? == file, "the other tables are left alone");

    // What was drawn for each row by itself is not in the stream.
    primary.batch_execute("INSERT INTO drawn SELECT n FROM generate_series(1, 100) n").await?;
    primary.batch_execute("ALTER TABLE drawn DROP COLUMN word; ALTER TABLE drawn ADD COLUMN word uuid DEFAULT gen_random_uuid()").await?;
    let anew = format!(
        "not migratable: public.drawn: column word was dropped and made anew on {}: seed the table anew (mend: godwit reseed orders --table 'public.drawn')",
        near.name
    );
    leader.until("it is told", |view| view.problems.contains(&anew)).await?;
    seed_anew(&leader, &["public.drawn"]).await?;
    leader.until("it is told no more", |view| !view.problems.contains(&anew)).await?;
    let words = "SELECT coalesce(string_agg(word::text, '' ORDER BY id), '') FROM drawn";
    let (one, other): (String, String) =
        (primary.query_one(words, &[]).await?.get(0), shadow.query_one(words, &[]).await?.get(0));
    ensure!(one == other && one.len() == 3600, "{} {}", one.len(), other.len());
    Ok(())
}

pub(crate) async fn seed_anew(leader: &Leader<'_>, tables: &[&str]) -> Result<SchemaView> {
    let path = format!("/api/v1/resources/{RESOURCE}/reseed/tables");
    Ok(serde_json::from_slice(&leader.client.send(&path, &json!({ "tables": tables })).await?)?)
}

/// Another one once the table was emptied.
async fn file_of_orders(client: &Client) -> Result<u32> {
    Ok(client.query_one("SELECT relfilenode FROM pg_class WHERE relname = 'orders'", &[]).await?.get(0))
}

/// Both versions word it otherwise: nothing but what the primary said when it was dumped tells that it has changed since.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_changed_while_it_is_copied_is_followed() -> Result<()> {
    let playground = replicated("mode: async, schema: all, copy: {rate: 2MiB}").await?;
    let [near, far] = &playground.zones;
    let primary = owner(near).await?;
    primary
        .batch_execute(
            "CREATE TABLE ages (id int PRIMARY KEY, age int, filler text); CREATE VIEW adults AS SELECT id FROM ages WHERE age > 17;
             INSERT INTO ages SELECT n, n % 90, repeat(md5(n::text), 10) FROM generate_series(1, 60000) n",
        )
        .await?;
    let mut leader = Leader::start(&playground, &[])?;
    let copied = |view: &ResourceView| view.replication.copy.as_ref().is_some_and(|copy| copy.bytes > 0);
    leader.until("it is being copied", copied).await?;
    primary.batch_execute("CREATE OR REPLACE VIEW adults AS SELECT id FROM ages WHERE age > 20").await?;
    let shadow = connect(far).await?;
    let defined = async || {
        let view = "SELECT coalesce(pg_get_viewdef(to_regclass('adults')), '')";
        Ok(shadow.query_one(view, &[]).await?.get::<_, String>(0).contains("20"))
    };
    ensure!(!defined().await?, "it was changed before it was dumped");
    // Keys are made after the rows: that they are not there yet is nothing to be mended.
    let found = check(&connect(far).await?, Side::Source).await?;
    ensure!(found.iter().all(|finding| !finding.problem.contains("primary key")), "{found:#?}");
    until("the view is followed", defined).await?;
    leader.ready().await.map(drop)
}

/// What is compared before a hold must be found changed under it, if it is; and nothing else, or no cutover would come to its end.
#[tokio::test(flavor = "multi_thread")]
async fn a_stamp_changes_with_the_schema_and_with_nothing_else() -> Result<()> {
    let setup = Setup::new(15).await?;
    let client = &setup.admin;
    client
        .batch_execute(
            "CREATE MATERIALIZED VIEW sums AS SELECT 1; CREATE FUNCTION f() RETURNS int LANGUAGE sql AS 'SELECT 1';
             CREATE TYPE mood AS ENUM ('glad', 'sad'); CREATE TYPE pair AS (a int, b int)",
        )
        .await?;
    let mut last = fence::schema_stamp(client).await?;
    for (sql, changes) in [
        ("CREATE OR REPLACE FUNCTION f() RETURNS int LANGUAGE sql AS 'SELECT 2'", true),
        ("CREATE VIEW v AS SELECT id FROM orders", true),
        ("CREATE OR REPLACE VIEW v AS SELECT id FROM orders WHERE id > 1", true),
        ("CREATE POLICY p ON orders USING (true)", true),
        ("ALTER POLICY p ON orders USING (false)", true),
        ("ALTER TABLE orders ENABLE ROW LEVEL SECURITY", true),
        ("ALTER TABLE orders FORCE ROW LEVEL SECURITY", true),
        ("ALTER TABLE orders DISABLE ROW LEVEL SECURITY", true),
        ("GRANT SELECT ON orders TO other", true),
        ("REVOKE SELECT ON orders FROM other", true),
        ("GRANT USAGE ON SEQUENCE orders_id_seq TO other", true),
        ("ALTER TABLE orders OWNER TO other", true),
        ("ALTER TABLE orders REPLICA IDENTITY FULL", true),
        ("ALTER VIEW v SET (security_invoker = true)", true),
        ("ALTER TYPE mood OWNER TO other", true),
        ("REVOKE USAGE ON TYPE pair FROM PUBLIC", true),
        ("GRANT CREATE ON SCHEMA public TO other", true),
        ("ALTER DEFAULT PRIVILEGES GRANT SELECT ON TABLES TO other", true),
        ("CREATE FUNCTION t() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END'", true),
        ("CREATE TRIGGER t BEFORE INSERT ON orders FOR EACH ROW EXECUTE FUNCTION t()", true),
        ("ALTER TABLE orders DISABLE TRIGGER t", true),
        ("DROP VIEW v", true),
        ("CREATE PUBLICATION feed FOR TABLE orders", true),
        ("ALTER PUBLICATION feed SET TABLE orders (id)", true),
        ("CREATE PUBLICATION godwit_orders FOR TABLE orders", true),
        ("ALTER PUBLICATION godwit_orders DROP TABLE orders", true),
        ("ALTER PUBLICATION godwit_orders ADD TABLE orders", true),
        ("CREATE FOREIGN DATA WRAPPER idle; CREATE SERVER afar FOREIGN DATA WRAPPER idle", true),
        ("ALTER SERVER afar OPTIONS (ADD host 'near')", true),
        ("CREATE FOREIGN TABLE away (id int) SERVER afar", true),
        ("ALTER FOREIGN TABLE away ADD COLUMN n int", true),
        ("ALTER FOREIGN TABLE away ADD CHECK (n > 0)", true),
        ("CREATE TRIGGER t BEFORE INSERT ON away FOR EACH ROW EXECUTE FUNCTION t()", true),
        ("ALTER FOREIGN TABLE away OPTIONS (ADD name 'orders')", true),
        ("DROP SERVER afar CASCADE", true),
        ("REFRESH MATERIALIZED VIEW sums", false),
        ("CREATE TEMP TABLE basket (id int); CREATE TEMP VIEW own AS SELECT 1", false),
        ("CREATE FUNCTION pg_temp.own() RETURNS int LANGUAGE sql AS 'SELECT 1'", false),
        ("INSERT INTO orders (note) VALUES ('new'); ANALYZE", false),
        ("VACUUM", false),
        ("VACUUM FULL orders", false),
        ("REINDEX TABLE orders", false),
    ] {
        client.batch_execute(sql).await?;
        let now = fence::schema_stamp(client).await?;
        assert_eq!(now != last, changes, "{sql}");
        last = now;
    }
    // A fence has triggers of its own.
    fence::close(client, &spec(2)).await?;
    assert_eq!(fence::schema_stamp(client).await?, last);
    Ok(())
}
