//! Who reads a service's changes, through the PostgreSQL front: it reads all of them, once, whichever database is the primary.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use anyhow::{Context, Result, ensure};
use godwit::demo::zone::{DATABASE, Playground, SERVICE_ROLE, Zone};
use godwit_tests::postgres::{TestCluster, other_major};
use godwit_tests::waiting::{PAUSE, until};
use replicator::Lsn;
use replicator::postgres::Dsn;
use rustix::process::Signal;
use serde_json::json;
use tokio::process::Command;
use tokio::task::JoinHandle;
use tokio_postgres::Client;

use crate::cutover::died_or_finished;
use crate::faults::fault::{freeze, signal_all};
use crate::large_objects::moved;
use crate::leader::{Leader, options, superuser};
use crate::schema::owner;
use crate::takeover::take_over;

/// Who reads changes.
const READER: &str = "cdc";
const EVENTS: &str = "CREATE TABLE events (id bigserial PRIMARY KEY, note text NOT NULL);";

/// A service whose events are published, and a database elsewhere that is to have them.
struct Setup {
    playground: Playground,
    subscriber: TestCluster,
}

impl Setup {
    async fn start() -> Result<Self> {
        let mut options = options(false)?;
        options.postgres_front = true;
        // Transactions of a few hundred rows are streamed before they commit.
        options.settings = ["logical_decoding_work_mem = 64kB"; 2].map(str::to_owned);
        options.policy = options
            .policy
            .replace("replication: {mode: async}", "replication: {mode: async, schema: all}")
            .replace("cooldown: 12s", "cooldown: 1s");
        let playground = Playground::start(&options).await?;
        for zone in &playground.zones {
            superuser(zone).await?.batch_execute(&format!("CREATE ROLE {READER} LOGIN REPLICATION")).await?;
        }
        let made = format!(
            "{EVENTS} GRANT SELECT, INSERT ON events TO {SERVICE_ROLE}; GRANT USAGE ON SEQUENCE events_id_seq TO {SERVICE_ROLE};
             GRANT SELECT ON events TO {READER}; INSERT INTO events (note) SELECT 'old' FROM generate_series(1, 1000)"
        );
        owner(&playground.zones[0]).await?.batch_execute(&made).await?;
        let subscriber = TestCluster::start(other_major())?;
        Ok(Self { playground, subscriber })
    }

    fn subscription(&self) -> Result<String> {
        let front = self.playground.postgres_front.context("a PostgreSQL front")?;
        Ok(format!(
            "CREATE SUBSCRIPTION warehouse CONNECTION 'host={} port={} user={READER} dbname={DATABASE}' PUBLICATION outbox",
            front.ip(),
            front.port()
        ))
    }

    /// Publishes the events in both zones, and subscribes to them through the front.
    async fn subscribe(&self) -> Result<Client> {
        for zone in &self.playground.zones {
            superuser(zone).await?.batch_execute("CREATE PUBLICATION outbox FOR TABLE events").await?;
        }
        let there = self.subscriber.create_database_of_superuser("copy", EVENTS).await?;
        there.batch_execute(&self.subscription()?).await?;
        let rest = "SELECT count(*) FROM pg_subscription_rel WHERE srsubstate <> 'r'";
        let copied = async || Ok(there.query_one(rest, &[]).await?.get::<_, i64>(0) == 0);
        until("what was there before is copied", copied).await?;
        Ok(there)
    }

    /// Writes events through the front until it is told to stop; how many were acknowledged. Where the front may go away it comes again.
    fn write(&self, again: bool) -> Result<Writer> {
        let front = self.playground.postgres_front.context("a PostgreSQL front")?;
        let dsn: Dsn = format!("postgres://{SERVICE_ROLE}@{front}/{DATABASE}").parse()?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let writing = tokio::spawn(async move {
            let (mut written, mut round) = (0, 0);
            while !stopped.load(SeqCst) {
                let session = async {
                    let client = replicator::postgres::connect_untouched(&dsn, "events").await?;
                    while !stopped.load(SeqCst) {
                        // Now and then one that is streamed before it commits.
                        round += 1;
                        let rows = if round % 50 == 0 { 500 } else { 2 };
                        let sql = "INSERT INTO events (note) SELECT 'new' FROM generate_series(1, $1)";
                        client.execute(sql, &[&rows]).await?;
                        written += i64::from(rows);
                        tokio::time::sleep(PAUSE).await;
                    }
                    anyhow::Ok(())
                };
                match session.await {
                    Err(_) if again => tokio::time::sleep(PAUSE).await,
                    ended => ended?,
                }
            }
            Ok(written)
        });
        Ok(Writer { stop, writing })
    }
}

struct Writer {
    stop: Arc<AtomicBool>,
    writing: JoinHandle<Result<i64>>,
}

impl Writer {
    async fn stop(self) -> Result<i64> {
        self.stop.store(true, SeqCst);
        let written = self.writing.await??;
        ensure!(written > 100, "{written} rows were written");
        Ok(written)
    }
}

/// How many events there are, and a sum over them.
async fn events(client: &Client) -> Result<(i64, String)> {
    let sql = "SELECT count(*), coalesce(sum(hashtextextended(e::text, 0)), 0)::text FROM events e";
    let row = client.query_one(sql, &[]).await?;
    Ok((row.get(0), row.get(1)))
}

async fn same(there: &Client, primary: &Zone) -> Result<()> {
    let wanted = events(&superuser(primary).await?).await?;
    let mut has = (0, String::new());
    let equal = until("the subscriber has every event", async || {
        has = events(there).await?;
        Ok(has == wanted)
    });
    equal.await.with_context(|| format!("it has {has:?}, the primary {wanted:?}"))
}

async fn slots(zone: &Zone) -> Result<Vec<String>> {
    let sql = "SELECT slot_name::text FROM pg_replication_slots WHERE slot_name !~ '^godwit_' ORDER BY 1";
    Ok(superuser(zone).await?.query(sql, &[]).await?.iter().map(|row| row.get(0)).collect())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_subscription_goes_with_the_primary() -> Result<()> {
    let setup = Setup::start().await?;
    let [near, far] = &setup.playground.zones;
    let mut leader = Leader::start(&setup.playground, &[])?;
    leader.ready().await?;
    let there = setup.subscribe().await?;
    let writer = setup.write(false)?;
    for to in [far, near, far] {
        moved(&mut leader, to).await?;
        let old = if to.name == near.name { far } else { near };
        until("the old primary keeps nothing for the subscriber", async || Ok(slots(old).await?.is_empty()))
            .await?;
        ensure!(slots(to).await? == ["warehouse"], "{:?}", slots(to).await?);
    }
    let written = writer.stop().await?;
    same(&there, far).await?;
    ensure!(events(&there).await?.0 == 1000 + written, "{written} were written");
    let applied = "SELECT apply_error_count FROM pg_stat_subscription_stats";
    let errors: i64 = there.query_one(applied, &[]).await?.get(0);
    ensure!(errors == 0, "{errors} errors");
    Ok(())
}

/// Who was away for a whole move is given the rest of the old primary's first; another move waits for it.
#[tokio::test(flavor = "multi_thread")]
async fn who_was_away_misses_nothing() -> Result<()> {
    let setup = Setup::start().await?;
    let [near, far] = &setup.playground.zones;
    let mut leader = Leader::start(&setup.playground, &[])?;
    leader.ready().await?;
    let there = setup.subscribe().await?;
    same(&there, near).await?;
    let app = superuser(near).await?;
    there.batch_execute("ALTER SUBSCRIPTION warehouse DISABLE").await?;
    there.batch_execute("ALTER SUBSCRIPTION warehouse SET (streaming = on)").await?;
    app.batch_execute("INSERT INTO events (note) SELECT 'before' FROM generate_series(1, 20000)").await?;
    moved(&mut leader, far).await?;
    superuser(far)
        .await?
        .batch_execute("INSERT INTO events (note) SELECT 'after' FROM generate_series(1, 20000)")
        .await?;
    ensure!(slots(near).await? == ["warehouse"], "{:?}", slots(near).await?);

    leader.ready().await?;
    let id = leader.migrate(&near.name).await?;
    let unread = "replication slot warehouse is not read up to the last move";
    let waits = |run: &serde_json::Value| run.to_string().contains(unread);
    leader.until_answer(&format!("migrations/{id}"), "the move back waits", waits).await?;
    ensure!(slots(near).await? == ["warehouse"], "{:?}", slots(near).await?);

    there.batch_execute("ALTER SUBSCRIPTION warehouse ENABLE").await?;
    same(&there, far).await?;
    until("the old primary keeps nothing for the subscriber", async || Ok(slots(near).await?.is_empty()))
        .await?;
    Ok(())
}

/// Wherever a move is when its node is killed.
#[tokio::test(flavor = "multi_thread")]
async fn a_kill_loses_no_change_and_repeats_none() -> Result<()> {
    let setup = Setup::start().await?;
    let mut leader = Leader::start(&setup.playground, &[])?;
    leader.ready().await?;
    let there = setup.subscribe().await?;
    same(&there, &setup.playground.zones[0]).await?;
    drop(leader);
    let writer = setup.write(true)?;
    for record in (2_u32..).step_by(3) {
        let mut leader =
            Leader::start(&setup.playground, &[("GODWIT_TEST_KILL_AFTER", &record.to_string())])?;
        let view = leader.ready().await?;
        let (from, to) = (leader.zone(&view.primary), leader.zone(&view.shadow));
        // What the last round left is read.
        until("the shadow keeps nothing for the subscriber", async || Ok(slots(to).await?.is_empty()))
            .await
            .with_context(|| format!("before record {record}"))?;
        leader.migrate_or_die(&to.name).await?;
        let died = died_or_finished(&mut leader, &to.name).await?;
        if died {
            drop(leader);
            leader = Leader::start(&setup.playground, &[])?;
        }
        let primary = leader.ready().await?.primary;
        let (primary, shadow) = if primary == to.name { (to, from) } else { (from, to) };
        until("the shadow keeps nothing for the subscriber", async || Ok(slots(shadow).await?.is_empty()))
            .await
            .with_context(|| format!("killed after record {record}"))?;
        ensure!(slots(primary).await? == ["warehouse"], "after record {record}");
        drop(leader);
        if !died {
            ensure!(record > 8, "it was killed {record} times only");
            break;
        }
    }
    let mut leader = Leader::start(&setup.playground, &[])?;
    let primary = leader.ready().await?.primary;
    let written = writer.stop().await?;
    same(&there, leader.zone(&primary)).await?;
    ensure!(events(&there).await?.0 >= 1000 + written, "{written} were written");
    Ok(())
}

/// Another output plugin, read by PostgreSQL's own tool.
#[tokio::test(flavor = "multi_thread")]
async fn what_another_plugin_writes_comes_once() -> Result<()> {
    let setup = Setup::start().await?;
    let [near, far] = &setup.playground.zones;
    let mut leader = Leader::start(&setup.playground, &[])?;
    leader.ready().await?;
    let front = setup.playground.postgres_front.context("a PostgreSQL front")?;
    let directory = tempfile::tempdir()?;
    let out = directory.path().join("changes");
    let bin = godwit_tests::postgres::bin_directory(15).context("PostgreSQL 15")?;
    let mut reader = Command::new(bin.join("pg_recvlogical"))
        .args(["--create-slot", "--start", "--plugin", "test_decoding", "--slot", "audit", "--no-loop"])
        .args(["--user", READER, "--dbname", DATABASE, "--host", &front.ip().to_string()])
        .args(["--port", &front.port().to_string(), "--file", &out.display().to_string()])
        .kill_on_drop(true)
        .spawn()?;
    until("it reads", async || {
        let sql = "SELECT count(*) FROM pg_replication_slots WHERE slot_name = 'audit' AND active";
        Ok(superuser(near).await?.query_one(sql, &[]).await?.get::<_, i64>(0) == 1)
    })
    .await?;
    let writer = setup.write(false)?;
    for to in [far, near] {
        moved(&mut leader, to).await?;
    }
    let written = writer.stop().await?;
    let came = || -> Result<Vec<String>> {
        let text = std::fs::read_to_string(&out)?;
        let ids = text.lines().filter(|line| line.starts_with("table public.events: INSERT"));
        Ok(ids.map(str::to_owned).collect())
    };
    until("every change has come", async || Ok(came()?.len() >= usize::try_from(written)?)).await?;
    reader.kill().await?;
    let mut came = came()?;
    ensure!(i64::try_from(came.len())? == written, "{} came, {written} were written", came.len());
    came.sort();
    came.dedup();
    ensure!(i64::try_from(came.len())? == written, "some came twice");
    Ok(())
}

/// What a reader of the lost primary has read nobody knows: it is told, and whoever begins anew passes over nothing.
#[tokio::test(flavor = "multi_thread")]
async fn after_a_takeover_readers_begin_anew() -> Result<()> {
    let setup = Setup::start().await?;
    let [near, far] = &setup.playground.zones;
    let mut leader = Leader::start(&setup.playground, &[])?;
    leader.ready().await?;
    let there = setup.subscribe().await?;
    same(&there, near).await?;
    let frozen = freeze(near)?;
    take_over(&leader, &json!({"accept_loss": true})).await?;
    let view = leader
        .until("it has taken over", |view| view.primary == far.name && view.phase == "shadowing")
        .await?;
    ensure!(slots(far).await?.is_empty(), "{:?}", slots(far).await?);
    let front = setup.playground.postgres_front.context("a PostgreSQL front")?;
    let dsn = format!(
        "host={} port={} user={READER} dbname={DATABASE} replication=database",
        front.ip(),
        front.port()
    );
    let bin = godwit_tests::postgres::bin_directory(15).context("PostgreSQL 15")?;
    let said = Command::new(bin.join("psql")).args([&dsn, "-XAtc", "IDENTIFY_SYSTEM"]).output().await?;
    let said = String::from_utf8(said.stdout)?;
    let position = said.split('|').nth(2).and_then(|position| position.parse::<Lsn>().ok());
    let position = position.with_context(|| format!("a position in {said:?}"))?;
    ensure!(position.0 >> 48 == view.generation, "{position} in generation {}", view.generation);
    signal_all(&frozen, Signal::CONT)?;
    there
        .batch_execute(
            "ALTER SUBSCRIPTION warehouse DISABLE; ALTER SUBSCRIPTION warehouse SET (slot_name = NONE)",
        )
        .await?;
    there.batch_execute("DROP SUBSCRIPTION warehouse; TRUNCATE events").await?;
    there.batch_execute(&setup.subscription()?).await?;
    let rows = "INSERT INTO events (note) SELECT 'after' FROM generate_series(1, 100)";
    superuser(far).await?.batch_execute(rows).await?;
    same(&there, far).await
}
