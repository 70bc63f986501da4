//! The PostgreSQL target by itself: what a real source says, applied in groups and parts of any size, comes to the source's
//! contents; what does not fit stops with table, key and position.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use godwit_tests::postgres::{OWNER_ROLE, TestCluster, other_major};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use replicator::apply::Target;
use replicator::apply::postgres::PostgresTarget;
use replicator::apply::seed_progress;
use replicator::change::{LargeHeader, Transaction};
use replicator::lsn::Lsn;
use replicator::postgres::slot;
use replicator::postgres::stream::ReplicationStream;
use replicator::pump::StreamSpec;
use replicator::spill::{OpenTransactions, Spill};
use replicator::{Error, ErrorKind};

use crate::source::next_of;
use tokio_postgres::Client;

const SCHEMA: &str = r#"
CREATE TABLE plain (id int PRIMARY KEY, u int UNIQUE, v text, big text);
ALTER TABLE plain ALTER big SET STORAGE EXTERNAL;
CREATE TABLE child (id int PRIMARY KEY, parent int REFERENCES plain ON DELETE CASCADE ON UPDATE CASCADE);
CREATE TABLE late (id int PRIMARY KEY, u int UNIQUE DEFERRABLE INITIALLY DEFERRED, v text);
CREATE TABLE "Odd name" ("a B" text, b numeric, "v""q" int, u text UNIQUE, PRIMARY KEY ("a B", b));
CREATE TABLE heap (a int, b text);
ALTER TABLE heap REPLICA IDENTITY FULL;
CREATE TABLE fullkey (id int PRIMARY KEY, u int UNIQUE, v text, big text);
ALTER TABLE fullkey REPLICA IDENTITY FULL;
ALTER TABLE fullkey ALTER big SET STORAGE EXTERNAL;
CREATE TABLE byindex (id int, k int NOT NULL, v text, big text);
CREATE UNIQUE INDEX byindex_k ON byindex (k);
ALTER TABLE byindex REPLICA IDENTITY USING INDEX byindex_k;
ALTER TABLE byindex ALTER big SET STORAGE EXTERNAL;
CREATE TABLE always (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, serial int GENERATED ALWAYS AS IDENTITY,
    g int GENERATED ALWAYS AS (id * 2) STORED, v text);
CREATE TABLE parts (id int, d int, v text, PRIMARY KEY (id, d)) PARTITION BY LIST (d);
CREATE TABLE parts_0 PARTITION OF parts FOR VALUES IN (0);
CREATE TABLE parts_1 (v text, d int NOT NULL, id int NOT NULL);
ALTER TABLE parts ATTACH PARTITION parts_1 FOR VALUES IN (1);
CREATE TABLE parts_2 PARTITION OF parts DEFAULT;
CREATE TABLE nothing (); ALTER TABLE nothing REPLICA IDENTITY FULL;
"#;

const TABLES: [&str; 12] = [
    "plain",
    "child",
    "late",
    "\"Odd name\"",
    "heap",
    "fullkey",
    "byindex",
    "always",
    "parts_0",
    "parts_1",
    "parts_2",
    "nothing",
];

fn spec() -> StreamSpec {
    StreamSpec {
        resource: "apply".into(),
        generation: 1,
        slot: slot::slot_name("apply", 1),
        publication: slot::publication_name("apply"),
        origin: slot::origin_name("apply"),
        source_zone: "a".into(),
        target_zone: "b".into(),
        synchronous: false,
    }
}

/// A source whose stream is read here, and a target with the same schema.
struct Pair {
    source: TestCluster,
    to_cluster: TestCluster,
    from: Client,
    to: Client,
    stream: ReplicationStream,
    open: OpenTransactions,
    target: PostgresTarget,
}

impl Pair {
    async fn start(source: u32, target: u32, schema: &str) -> Result<Self> {
        let (source, to_cluster) = (TestCluster::start(source)?, TestCluster::start(target)?);
        let from = source.create_database("apply", schema).await?;
        let to = to_cluster.create_database("apply", schema).await?;
        replicator::fence::install(&to, "apply", 1).await?;
        slot::ensure_publication(&from, &spec().publication).await?;
        let at = slot::create_slot(&from, &spec().slot).await?;
        seed_progress(&to, &spec().slot, at, 1, None).await?;
        let stream =
            ReplicationStream::start(&source.config("apply"), &spec().slot, &spec().publication, at).await?;
        let mut target = PostgresTarget::new(to_cluster.config("apply"), spec())?;
        target.resume().await?;
        let open = OpenTransactions::new(Spill::default());
        Ok(Self { source, to_cluster, from, to, stream, open, target })
    }

    /// All that was committed so far.
    async fn read(&mut self) -> Result<Vec<Transaction>> {
        let mark = "SELECT pg_logical_emit_message(true, 'test', 'here')::text";
        let at: String = self.from.query_one(mark, &[]).await?.get(0);
        let at: Lsn = at.parse()?;
        let mut all = Vec::new();
        loop {
            let transaction = next_of(&mut self.stream, &mut self.open).await?;
            let end = transaction.end_lsn;
            all.push(transaction);
            if end > at {
                return Ok(all);
            }
        }
    }

    async fn equal(&self) -> Result<()> {
        for table in TABLES {
            let (left, right) = (rows(&self.from, table).await?, rows(&self.to, table).await?);
            ensure!(left == right, "{table} differs:\n{left:?}\n{right:?}");
        }
        Ok(())
    }

    async fn applied(&self) -> Result<Lsn> {
        let text: String =
            self.to.query_one("SELECT applied_lsn::text FROM godwit.progress", &[]).await?.get(0);
        Ok(text.parse()?)
    }
}

async fn rows(client: &Client, table: &str) -> Result<Vec<String>> {
    let sql = format!("SELECT t::text FROM ONLY {table} t ORDER BY t::text COLLATE \"C\"");
    Ok(client.query(&sql, &[]).await?.iter().map(|row| row.get(0)).collect())
}

fn header(transaction: &Transaction) -> LargeHeader {
    LargeHeader {
        xid: transaction.xid,
        commit_lsn: transaction.commit_lsn,
        end_lsn: transaction.end_lsn,
        commit_time: transaction.commit_time,
        origin: transaction.origin.clone(),
    }
}

/// One change of a small world in which everything meets everything.
fn operation(rng: &mut StdRng) -> String {
    let (a, b, n) = (rng.random_range(0..12), rng.random_range(0..12), rng.random_range(0..10_000));
    let big = "repeat(md5(random()::text), 100)";
    match rng.random_range(0..34) {
        0..4 => format!("INSERT INTO plain VALUES ({a}, {b}, 'n{n}', {big})"),
        4 => format!("UPDATE plain SET v = 'u{n}' WHERE id = {a}"),
        5 => format!("UPDATE plain SET u = {b} WHERE id = {a}"),
        6 => format!("UPDATE plain SET id = {b} WHERE id = {a}"),
        7 => format!("DELETE FROM plain WHERE id = {a}"),
        8 => format!("UPDATE plain SET big = {big} WHERE id = {a}"),
        // A swap of unique values, through a free one.
        9 => format!(
            "UPDATE plain SET u = -1 WHERE id = {a}; UPDATE plain p SET u = q.u FROM \
             (SELECT {n} AS u) q WHERE p.id = {b}; UPDATE plain SET u = {b} WHERE id = {a}"
        ),
        10 => format!("INSERT INTO child VALUES ({b}, {a})"),
        11 | 12 => format!("INSERT INTO late VALUES ({a}, {b}, 'l{n}')"),
        // A swap that only a deferred constraint allows; a shift of all.
        13 => format!(
            "UPDATE late SET u = CASE id WHEN {a} THEN (SELECT u FROM late WHERE id = {b}) \
             ELSE (SELECT u FROM late WHERE id = {a}) END WHERE id IN ({a}, {b})"
        ),
        14 => "UPDATE late SET u = u + 1".into(),
        15 => format!("DELETE FROM late WHERE id = {a}"),
        16 => format!("INSERT INTO \"Odd name\" VALUES ('k{a}', {b}.0, {n}, 'u{n}')"),
        // The same number, spelled differently.
        17 => format!("UPDATE \"Odd name\" SET b = b + 0.000 WHERE b = {b}"),
        18 => format!("UPDATE \"Odd name\" SET \"v\"\"q\" = {n}, u = 'w{n}' WHERE b = {b}"),
        19 => format!("DELETE FROM \"Odd name\" WHERE \"a B\" = 'k{a}'"),
        20 | 21 => format!("INSERT INTO heap VALUES ({}, NULLIF('h{}', 'h0'))", a % 3, b % 3),
        22 => format!(
            "UPDATE heap SET a = {} WHERE ctid = (SELECT min(ctid) FROM heap WHERE a = {})",
            b % 3,
            a % 3
        ),
        23 => format!("DELETE FROM heap WHERE ctid = (SELECT max(ctid) FROM heap WHERE a = {})", a % 3),
        24 => format!("INSERT INTO fullkey VALUES ({a}, {b}, 'f{n}', {big})"),
        25 => format!("UPDATE fullkey SET id = {b}, v = 'g{n}' WHERE id = {a}"),
        26 => format!("DELETE FROM fullkey WHERE u = {a}"),
        27 => format!("INSERT INTO byindex VALUES (NULL, {a}, 'b{n}', {big})"),
        28 => {
            format!("UPDATE byindex SET k = {b} WHERE k = {a}; UPDATE byindex SET v = 'c{n}' WHERE k = {b}")
        }
        29 => format!("DELETE FROM byindex WHERE k = {a}"),
        30 => format!(
            "INSERT INTO always (v) VALUES ('a{n}'); UPDATE always SET serial = DEFAULT, v = 'b{n}' WHERE id % 7 = {}",
            a % 7
        ),
        31 => format!("DELETE FROM always WHERE id % 5 = {}; INSERT INTO nothing DEFAULT VALUES", a % 5),
        32 => format!(
            "INSERT INTO parts VALUES ({n}, {}, 'p'); UPDATE parts SET d = {}, v = v || 'm' WHERE id % 5 = {}",
            a % 4,
            b % 4,
            a % 5
        ),
        _ => match rng.random_range(0..24) {
            0 => "TRUNCATE plain, child".into(),
            1 => "TRUNCATE plain CASCADE".into(),
            2 => "TRUNCATE heap, parts, always RESTART IDENTITY".into(),
            _ => format!("DELETE FROM parts WHERE id % 3 = {}", a % 3),
        },
    }
}

/// Some transactions; what the source refuses is left out by a savepoint.
async fn perform(client: &Client, rng: &mut StdRng, transactions: u32) -> Result<()> {
    for _ in 0..transactions {
        client.batch_execute("BEGIN").await?;
        for _ in 0..rng.random_range(1..8) {
            client.batch_execute("SAVEPOINT s").await?;
            let sql = operation(rng);
            match client.batch_execute(&sql).await {
                Ok(()) => client.batch_execute("RELEASE s").await?,
                Err(error) if error.code().is_some_and(|code| code.code().starts_with("23")) => {
                    client.batch_execute("ROLLBACK TO s").await?;
                }
                Err(error) => return Err(error).context(sql),
            }
        }
        // A deferred constraint may refuse all of it.
        if let Err(error) = client.batch_execute("COMMIT").await {
            ensure!(error.code().is_some_and(|code| code.code() == "23505"), "{error}");
        }
    }
    Ok(())
}

async fn anything_goes(source: u32, target: u32, seeds: std::ops::Range<u64>) -> Result<()> {
    let mut pair = Pair::start(source, target, SCHEMA).await?;
    let seeds = match std::env::var("SEED").ok().and_then(|seed| seed.parse().ok()) {
        Some(seed) => seed..seed + 1,
        None => seeds,
    };
    let (mut changes, mut large) = (0, 0);
    for seed in seeds {
        let mut rng = StdRng::seed_from_u64(seed);
        perform(&pair.from, &mut rng, 60).await?;
        let mut rest = pair.read().await?;
        changes += rest.iter().map(|transaction| transaction.changes.len()).sum::<usize>();
        while !rest.is_empty() {
            if rng.random_bool(0.3) {
                let first = rest.remove(0);
                pair.target.begin_large(header(&first)).await?;
                let mut parts = first.changes;
                while !parts.is_empty() {
                    let after = parts.split_off(rng.random_range(1..=parts.len()));
                    pair.target.apply_part(parts).await.with_context(|| format!("SEED={seed}"))?;
                    parts = after;
                }
                pair.target.end_large().await.with_context(|| format!("SEED={seed}"))?;
                large += 1;
            } else {
                let after = rest.split_off(rng.random_range(1..=rest.len()));
                pair.target.apply(&rest, false).await.with_context(|| format!("SEED={seed}"))?;
                rest = after;
            }
        }
        pair.equal().await.with_context(|| format!("SEED={seed}"))?;
    }
    println!("{changes} changes; {large} transactions in parts");
    ensure!(changes > 1_000 && large > 10, "too little happened");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_the_source_does_comes_to_the_same() -> Result<()> {
    anything_goes(15, 15, 0..25).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_the_source_does_comes_to_the_same_across_versions() -> Result<()> {
    anything_goes(15, other_major(), 100..115).await?;
    anything_goes(other_major(), 15, 200..215).await
}

fn conflict(result: Result<(), Error>) -> Result<(String, Lsn, String)> {
    match result {
        Err(error) if error.kind() != ErrorKind::Operator => bail!("not for an operator: {error:?}"),
        Err(Error::Conflict { table, lsn, what }) => Ok((table, lsn, what)),
        other => bail!("not a conflict: {other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_conflict_names_table_key_and_position_until_it_is_mended() -> Result<()> {
    let mut pair = Pair::start(15, 15, SCHEMA).await?;
    pair.from.batch_execute("INSERT INTO plain SELECT g, g FROM generate_series(1, 500) g").await?;
    pair.from.batch_execute("INSERT INTO heap SELECT g, 'h' FROM generate_series(1, 500) g").await?;
    let all = pair.read().await?;
    pair.target.apply(&all, false).await?;
    // What breaks the target, what the source does, what is said, what mends it.
    for (harm, work, table, what, mend) in [
        (
            "DELETE FROM plain WHERE id = 77",
            "UPDATE plain SET v = 'x'",
            "plain",
            "(id)=(77) is not there",
            "INSERT INTO plain VALUES (77, 77)",
        ),
        (
            "DELETE FROM plain WHERE id = 78",
            "DELETE FROM plain WHERE id BETWEEN 50 AND 120",
            "plain",
            "(id)=(78) is not there",
            "INSERT INTO plain VALUES (78, 78)",
        ),
        (
            "INSERT INTO plain VALUES (1234)",
            "INSERT INTO plain SELECT g FROM generate_series(1000, 1300) g",
            "plain",
            "(id)=(1234) duplicate key",
            "DELETE FROM plain WHERE id = 1234",
        ),
        (
            "INSERT INTO plain VALUES (5000, 2007)",
            "INSERT INTO plain SELECT g, g FROM generate_series(2000, 2010) g",
            "plain",
            "(id)=(2007) duplicate key",
            "DELETE FROM plain WHERE id = 5000",
        ),
        (
            "DELETE FROM heap WHERE a = 9",
            "UPDATE heap SET b = 'i' WHERE a < 300",
            "heap",
            "(a, b)=(9, h) is not there",
            "INSERT INTO heap VALUES (9, 'h')",
        ),
        (
            "DELETE FROM heap WHERE a = 400",
            "DELETE FROM heap WHERE a >= 300",
            "heap",
            "(a, b)=(400, h) is not there",
            "INSERT INTO heap VALUES (400, 'h')",
        ),
    ] {
        pair.to.batch_execute(harm).await?;
        pair.from.batch_execute("INSERT INTO late SELECT coalesce(max(id), 0) + 1 FROM late").await?;
        pair.from.batch_execute(work).await?;
        let group = pair.read().await?;
        let (before, rest) = group.split_at(group.len() - 2);
        let (guilty, reached) = (rest[0].end_lsn, before.last().context("nothing stands before it")?.end_lsn);
        // In a group, again after a restart, and as a large transaction.
        for round in 0..3 {
            let result = if round < 2 {
                pair.target.apply(if round == 0 { &group } else { rest }, false).await
            } else {
                let large = &rest[0];
                pair.target.begin_large(header(large)).await?;
                let mut result = Ok(());
                for part in large.changes.chunks(100) {
                    result = result.and(pair.target.apply_part(part.to_vec()).await);
                }
                if result.is_ok() { pair.target.end_large().await } else { result }
            };
            let (found_table, lsn, found) = conflict(result).with_context(|| work.to_owned())?;
            ensure!(found_table == format!("public.{table}"), "{work}: {found_table}");
            ensure!(lsn == guilty, "{work}: at {lsn}, not {guilty}");
            ensure!(found.starts_with(what), "{work}: {found}");
            pair.target = PostgresTarget::new(pair.to_cluster.config("apply"), spec())?;
            let at = pair.target.resume().await?.applied;
            ensure!(at == reached, "{work}: what stands before it is not there, or more is");
        }
        pair.to.batch_execute(mend).await?;
        pair.target.apply(rest, false).await.with_context(|| work.to_owned())?;
        pair.equal().await.with_context(|| work.to_owned())?;
    }
    Ok(())
}

/// Logical decoding leaves generated columns out: what it says of a key with one may be true of many rows.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_with_a_generated_column_tells_no_row() -> Result<()> {
    let made = "CREATE TABLE made (id int, n int, odd int GENERATED ALWAYS AS (n % 2) STORED, PRIMARY KEY (id, odd));
        CREATE TABLE chosen (LIKE made INCLUDING ALL); ALTER TABLE chosen REPLICA IDENTITY USING INDEX chosen_pkey;
        CREATE TABLE beside (id int, n int, odd int GENERATED ALWAYS AS (n % 2) STORED, PRIMARY KEY (id) INCLUDE (odd))";
    let mut pair = Pair::start(15, other_major(), made).await?;
    // In the index, but not in its key.
    for work in [
        "INSERT INTO beside VALUES (1, 0), (2, 1)",
        "UPDATE beside SET n = 4",
        "DELETE FROM beside WHERE id = 1",
    ] {
        pair.from.batch_execute(work).await?;
    }
    let rows = pair.read().await?;
    pair.target.apply(&rows, false).await?;
    let left: Vec<i32> = pair.to.query_one("SELECT array_agg(n) FROM beside", &[]).await?.get(0);
    ensure!(left == [4], "{left:?}");
    for table in ["made", "chosen"] {
        pair.from.batch_execute(&format!("INSERT INTO {table} VALUES (1, 0), (1, 1)")).await?;
        let rows = pair.read().await?;
        pair.target.apply(&rows, false).await?;
        for work in
            [format!("UPDATE {table} SET n = 3 WHERE n = 1"), format!("DELETE FROM {table} WHERE n = 0")]
        {
            pair.from.batch_execute(&work).await?;
            let group = pair.read().await?;
            let (found, _, what) = conflict(pair.target.apply(&group, false).await).with_context(|| work)?;
            ensure!(found == format!("public.{table}") && what.contains("generated"), "{found}: {what}");
            pair.target = PostgresTarget::new(pair.to_cluster.config("apply"), spec())?;
            pair.target.resume().await?;
        }
        let sql = format!("SELECT array_agg(n ORDER BY n) FROM {table}");
        let left: Vec<i32> = pair.to.query_one(&sql, &[]).await?.get(0);
        ensure!(left == [0, 1], "{table}: {left:?}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_transaction_that_is_cut_off_leaves_nothing() -> Result<()> {
    let mut pair = Pair::start(15, other_major(), SCHEMA).await?;
    pair.from
        .batch_execute(
            "INSERT INTO plain SELECT g, g, 'v', repeat('x', 3000) FROM generate_series(1, 5000) g",
        )
        .await?;
    let all = pair.read().await?;
    let before = pair.applied().await?;
    let large = &all[0];
    ensure!(large.changes.len() == 5000);
    pair.target.begin_large(header(large)).await?;
    for part in large.changes[..4000].chunks(500) {
        pair.target.apply_part(part.to_vec()).await?;
    }
    // Dropped with a part on its way; the next session waits for the old one to be gone.
    pair.target = PostgresTarget::new(pair.to_cluster.config("apply"), spec())?;
    ensure!(pair.target.resume().await?.applied == before);
    ensure!(rows(&pair.to, "plain").await?.is_empty());
    pair.target.begin_large(header(large)).await?;
    for part in large.changes.chunks(700) {
        pair.target.apply_part(part.to_vec()).await?;
        ensure!(pair.applied().await? == before, "seen before its end");
    }
    pair.target.end_large().await?;
    ensure!(pair.applied().await? == large.end_lsn);
    pair.target.apply(&all[1..], false).await?;
    pair.equal().await?;
    // A swap of unique values over the border of two parts, and one inside a part.
    pair.from
        .batch_execute(
            "BEGIN; UPDATE plain SET u = -1 WHERE id = 1; UPDATE plain SET u = 1 WHERE id = 2; \
             UPDATE plain SET u = 2 WHERE id = 1; UPDATE plain SET id = id + 100000; COMMIT",
        )
        .await?;
    let all = pair.read().await?;
    pair.target.begin_large(header(&all[0])).await?;
    let (first, rest) = all[0].changes.split_at(2);
    pair.target.apply_part(first.to_vec()).await?;
    for part in rest.chunks(1500) {
        pair.target.apply_part(part.to_vec()).await?;
    }
    pair.target.end_large().await?;
    pair.target.apply(&all[1..], false).await?;
    pair.equal().await
}

/// A group of more changes than are planned at once, with a swap in the middle that no batch can do.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_group_goes_in_whole_or_not_at_all() -> Result<()> {
    let mut pair = Pair::start(15, 15, SCHEMA).await?;
    pair.from
        .batch_execute(
            "BEGIN; INSERT INTO plain SELECT g, g, 'v' FROM generate_series(1, 25000) g; \
             INSERT INTO heap SELECT g % 100, 'h' FROM generate_series(1, 5000) g; COMMIT; \
             UPDATE plain SET v = 'w'; DELETE FROM heap WHERE a < 50; \
             BEGIN; UPDATE plain SET u = -1 WHERE id = 1; UPDATE plain SET u = 1 WHERE id = 2; \
             UPDATE plain SET u = 2 WHERE id = 1; COMMIT; DELETE FROM plain WHERE id % 2 = 0",
        )
        .await?;
    let all = pair.read().await?;
    pair.target.apply(&all, false).await?;
    pair.equal().await?;
    pair.from.batch_execute("UPDATE plain SET v = 'x'; UPDATE heap SET b = 'i'").await?;
    pair.from.batch_execute("UPDATE plain SET u = u + 100000; UPDATE plain SET v = 'y'").await?;
    let all = pair.read().await?;
    pair.to.batch_execute("DELETE FROM plain WHERE id = 24001").await?;
    let before = pair.applied().await?;
    let (table, lsn, what) = conflict(pair.target.apply(&all, false).await)?;
    ensure!(
        table == "public.plain" && lsn == all[0].end_lsn && what == "(id)=(24001) is not there",
        "{table} {lsn} {what}"
    );
    ensure!(pair.applied().await? == before, "a part of the group stayed");
    pair.to.batch_execute("INSERT INTO plain VALUES (24001, 24001, 'w')").await?;
    pair.target.resume().await?;
    pair.target.apply(&all, false).await?;
    pair.equal().await
}

/// Triggers that are enabled for replicas see each change, in the source's order; the others sleep.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn triggers_and_rules_for_replicas_see_every_change() -> Result<()> {
    let mut pair = Pair::start(15, other_major(), SCHEMA).await?;
    // A rule acts with the rights of its table's owner.
    pair.to.batch_execute(&format!("SET ROLE {OWNER_ROLE}")).await?;
    pair.to
        .batch_execute(
            "CREATE TABLE seen (n serial, what text);
             CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
               INSERT INTO public.seen (what) VALUES (TG_NAME || ' ' || TG_OP || ' ' || coalesce(OLD.v, '-') || ' ' || coalesce(NEW.v, '-'));
               RETURN NULL; END $$;
             CREATE TRIGGER a AFTER INSERT OR UPDATE OR DELETE ON plain FOR EACH ROW EXECUTE FUNCTION note();
             CREATE TRIGGER b AFTER INSERT OR UPDATE OR DELETE ON plain FOR EACH ROW EXECUTE FUNCTION note();
             CREATE TRIGGER c AFTER INSERT OR UPDATE OR DELETE ON plain FOR EACH ROW EXECUTE FUNCTION note();
             ALTER TABLE plain ENABLE ALWAYS TRIGGER b; ALTER TABLE plain ENABLE REPLICA TRIGGER c;
             CREATE TRIGGER d AFTER INSERT OR UPDATE OR DELETE ON always FOR EACH ROW EXECUTE FUNCTION note();
             ALTER TABLE always ENABLE ALWAYS TRIGGER d;
             CREATE RULE none AS ON INSERT TO late DO INSTEAD NOTHING;
             CREATE RULE also AS ON INSERT TO heap DO ALSO INSERT INTO public.seen (what) VALUES ('heap');
             ALTER TABLE heap ENABLE ALWAYS RULE also; RESET ROLE",
        )
        .await?;
    pair.from
        .batch_execute(
            "BEGIN; INSERT INTO plain VALUES (1, 1, 'one', 'x'); UPDATE plain SET v = 'two'; UPDATE plain SET id = 2, v = 'three'; \
             INSERT INTO late VALUES (1, 1, 'kept'); DELETE FROM plain; INSERT INTO heap VALUES (1, 'h'); COMMIT; \
             INSERT INTO always (v) VALUES ('one'); UPDATE always SET v = 'two'; UPDATE always SET serial = DEFAULT",
        )
        .await?;
    let all = pair.read().await?;
    pair.target.apply(&all, false).await?;
    pair.equal().await?;
    let seen: Vec<String> =
        pair.to.query("SELECT what FROM seen ORDER BY n", &[]).await?.iter().map(|row| row.get(0)).collect();
    ensure!(
        seen == [
            "b INSERT - one",
            "c INSERT - one",
            "b UPDATE one two",
            "c UPDATE one two",
            "b UPDATE two three",
            "c UPDATE two three",
            "b DELETE three -",
            "c DELETE three -",
            "heap",
            "d INSERT - one",
            "d UPDATE one two",
            // Only a row that is made anew gets another number.
            "d DELETE two -",
            "d INSERT - two",
        ],
        "{seen:?}"
    );
    Ok(())
}

/// A server that executes takes nothing in: a client's kernel with a time-out for what it sent ends the connection, however well the server is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_statement_may_take_longer_than_a_silent_server_is_waited_for() -> Result<()> {
    let schema = "CREATE TABLE slow (id int PRIMARY KEY, seconds int); CREATE TABLE many (id int PRIMARY KEY, v text);
        CREATE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(NEW.seconds); RETURN NEW; END $$;
        CREATE TRIGGER wait BEFORE UPDATE ON slow FOR EACH ROW EXECUTE FUNCTION wait();";
    let mut pair = Pair::start(15, other_major(), schema).await?;
    let rows =
        "INSERT INTO slow VALUES (1, 0); INSERT INTO many SELECT g, '' FROM generate_series(1, 10000) g";
    pair.from.batch_execute(&format!("ALTER TABLE slow DISABLE TRIGGER wait; {rows}")).await?;
    pair.to.batch_execute("ALTER TABLE slow ENABLE ALWAYS TRIGGER wait").await?;
    let all = pair.read().await?;
    pair.target.apply(&all, false).await?;
    pair.from
        .batch_execute("BEGIN; UPDATE slow SET seconds = 70; UPDATE many SET v = repeat('x', 200); COMMIT")
        .await?;
    let all = pair.read().await?;

    // What the connection parameters say counts.
    let mut dsn = pair.to_cluster.config("apply");
    dsn.tcp_user_timeout(Duration::from_secs(1));
    let mut hasty = PostgresTarget::new(dsn, spec())?;
    hasty.resume().await?;
    let ended = hasty.apply(&all, false).await;
    ensure!(ended.as_ref().is_err_and(|error| error.kind() != ErrorKind::Operator), "{ended:?}");

    pair.target.resume().await?;
    pair.target.apply(&all, false).await?;
    let written = "SELECT count(*) FROM many WHERE length(v) = 200";
    ensure!(pair.to.query_one(written, &[]).await?.get::<_, i64>(0) == 10_000);
    Ok(())
}

/// Columns that only the target has keep their values, generated ones of either kind are made there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn columns_of_the_target_alone_are_kept() -> Result<()> {
    let mut pair = Pair::start(15, other_major(), SCHEMA).await?;
    let kind = if other_major() >= 18 { "VIRTUAL" } else { "STORED" };
    pair.to
        .batch_execute(&format!(
            "ALTER TABLE plain ADD mine text DEFAULT 'mine'; ALTER TABLE heap ADD mine text DEFAULT 'mine';
             ALTER TABLE late ADD twice int GENERATED ALWAYS AS (u * 2) {kind}"
        ))
        .await?;
    pair.from
        .batch_execute(
            "INSERT INTO plain VALUES (1, 1, 'a', repeat('x', 3000)); INSERT INTO heap VALUES (1, 'a'); INSERT INTO late VALUES (1, 4)",
        )
        .await?;
    let all = pair.read().await?;
    pair.target.apply(&all, false).await?;
    pair.to.batch_execute("UPDATE plain SET mine = 'kept'; UPDATE heap SET mine = 'kept'").await?;
    pair.from
        .batch_execute("UPDATE plain SET id = 2; UPDATE heap SET b = 'b'; UPDATE late SET id = 2, u = 5; UPDATE plain SET v = 'c'")
        .await?;
    let all = pair.read().await?;
    pair.target.apply(&all, false).await?;
    ensure!(rows(&pair.to, "heap").await? == ["(1,b,kept)"]);
    let row = pair.to.query_one("SELECT id, v, length(big), mine FROM plain", &[]).await?;
    let row: (i32, &str, i32, &str) = (row.get(0), row.get(1), row.get(2), row.get(3));
    ensure!(row == (2, "c", 3000, "kept"), "{row:?}");
    ensure!(pair.to.query_one("SELECT twice FROM late WHERE id = 2", &[]).await?.get::<_, i32>(0) == 10);
    // The source's cluster outlives its stream.
    drop(pair.stream);
    drop(pair.source);
    Ok(())
}

/// Where there are many tables, none is looked up by reading what the catalogue has of all.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_is_looked_up_without_the_others() -> Result<()> {
    const LOOKED_UP: i64 = 20;
    let schema: Vec<String> = (1..=300)
        .map(|at| format!("CREATE TABLE t{at} (id int PRIMARY KEY, a text, b text, c text);"))
        .collect();
    let schema = schema.concat();
    let read_whole = "SELECT seq_scan FROM pg_stat_sys_tables WHERE relid = 'pg_attribute'::regclass";
    for (source, target) in [(15, other_major()), (other_major(), 15)] {
        let mut pair = Pair::start(source, target, &schema).await?;
        let before: i64 = pair.to.query_one(read_whole, &[]).await?.get(0);
        let rows: Vec<String> =
            (1..=LOOKED_UP).map(|at| format!("INSERT INTO t{at} VALUES ({at});")).collect();
        let rows = rows.concat();
        pair.from.batch_execute(&rows).await?;
        let all = pair.read().await?;
        pair.target.apply(&all, false).await?;
        // A session tells what it did at its end at the latest, all of it together.
        drop(pair.target);
        let told = format!("SELECT n_tup_ins FROM pg_stat_user_tables WHERE relname = 't{LOOKED_UP}'");
        while pair.to.query_one(&told, &[]).await?.get::<_, i64>(0) == 0 {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let after: i64 = pair.to.query_one(read_whole, &[]).await?.get(0);
        ensure!(after - before < LOOKED_UP / 2, "read whole {} times", after - before);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_truncate_empties_what_it_names() -> Result<()> {
    let schema = "CREATE TABLE a (id int PRIMARY KEY); CREATE TABLE \"b'\\\" (id int PRIMARY KEY REFERENCES a);
        CREATE TABLE p (id int PRIMARY KEY REFERENCES a) PARTITION BY LIST (id); CREATE TABLE p1 PARTITION OF p FOR VALUES IN (1);
        CREATE UNLOGGED TABLE u (id int PRIMARY KEY REFERENCES a); CREATE TABLE c (id int PRIMARY KEY, a int);
        CREATE TABLE s (id serial PRIMARY KEY)";
    let rows = "INSERT INTO a VALUES (1); INSERT INTO \"b'\\\" VALUES (1); INSERT INTO p VALUES (1)";
    let left = "SELECT (SELECT count(*) FROM a), (SELECT count(*) FROM \"b'\\\"), (SELECT count(*) FROM p), (SELECT count(*) FROM c)";
    for (source, target) in [(15, other_major()), (other_major(), 15)] {
        let mut pair = Pair::start(source, target, schema).await?;
        // Only the shadow has this one: the source's is gone already, say.
        pair.from.batch_execute("INSERT INTO c VALUES (1, 1)").await?;
        // As a move sets it, which may have seen more of the source than was applied here.
        pair.to.batch_execute("SELECT setval('s_id_seq', 50)").await?;
        for (key, truncate) in [
            ("SELECT", "TRUNCATE a CASCADE"),
            ("ALTER TABLE c ADD CONSTRAINT gone FOREIGN KEY (a) REFERENCES a", "TRUNCATE a CASCADE"),
            (
                "SELECT",
                "DELETE FROM p; DELETE FROM \"b'\\\"; TRUNCATE a, \"b'\\\", p, s RESTART IDENTITY CASCADE",
            ),
        ] {
            pair.from.batch_execute(rows).await?;
            let all = pair.read().await?;
            pair.target.apply(&all, false).await?;
            pair.to.batch_execute(key).await?;
            pair.from.batch_execute(truncate).await?;
            let all = pair.read().await?;
            pair.target.apply(&all, false).await.with_context(|| format!("{truncate} after {key}"))?;
            let row = pair.to.query_one(left, &[]).await?;
            let counts: Vec<i64> = (0..4).map(|at| row.get(at)).collect();
            ensure!(counts == [0, 0, 0, 1], "{truncate} after {key} left {counts:?}");
        }
        let next: i64 = pair.to.query_one("SELECT nextval('s_id_seq')", &[]).await?.get(0);
        ensure!(next == 51, "its sequence gives {next}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn values_are_read_by_their_types_input_function() -> Result<()> {
    // What a cast from text makes of them is another thing, or an error.
    let schema = "CREATE TYPE mood AS ENUM ('good', 'bad');
        CREATE FUNCTION lenient(text) RETURNS mood LANGUAGE sql IMMUTABLE STRICT AS $$ SELECT 'good'::mood $$;
        CREATE CAST (text AS mood) WITH FUNCTION lenient(text); CREATE DOMAIN temper AS mood;
        CREATE TABLE t (id int, at regclass, m mood, d temper, l mood[], PRIMARY KEY (id, m));
        CREATE TABLE k (c bpchar, n int); ALTER TABLE k REPLICA IDENTITY FULL";
    let mut pair = Pair::start(15, other_major(), schema).await?;
    for change in [
        "INSERT INTO t VALUES (1, 0, 'bad', 'bad', '{bad}'), (2, 1234567, 'bad', NULL, NULL), (3, 'pg_class', 'good', 'bad', NULL)",
        "UPDATE t SET at = 'pg_proc' WHERE id = 1",
        "UPDATE t SET at = 0 WHERE id = 3",
        "DELETE FROM t WHERE id = 2",
        // A cast to text leaves blanks out, and these would be three times the same.
        "INSERT INTO k SELECT repeat(' ', n), 1 FROM generate_series(0, 2) n",
        "DELETE FROM k WHERE octet_length(c) = 1",
        "UPDATE k SET n = 2 WHERE octet_length(c) = 2",
    ] {
        pair.from.batch_execute(change).await?;
        let all = pair.read().await?;
        pair.target.apply(&all, false).await.with_context(|| change.to_owned())?;
        for table in ["t", "k"] {
            let (left, right) = (rows(&pair.from, table).await?, rows(&pair.to, table).await?);
            ensure!(left == right, "after {change}:\n{left:?}\n{right:?}");
        }
    }
    Ok(())
}
