//! Who reads a service's changes, through the PostgreSQL front: it reads all of them, once, whichever database is the primary.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use anyhow::{Context, Result, bail, ensure};
use godwit::controller::view::ResourceView;
use godwit::demo::zone::{DATABASE, Playground, SERVICE_ROLE, Zone};
use godwit::fronts::postgres::protocol::message;
use godwit_tests::postgres::{TestCluster, other_major};
use godwit_tests::waiting::{PAUSE, until};
use replicator::Lsn;
use replicator::postgres::Dsn;
use rustix::process::Signal;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use tokio::task::JoinHandle;
use tokio_postgres::Client;
use tokio_postgres::config::Host;

use crate::cutover::died_or_finished;
use crate::faults::fault::{freeze, signal_all};
use crate::large_objects::moved;
use crate::leader::{Leader, options, superuser};
use crate::schema::{differences, followed, owner, replicated};
use crate::takeover::take_over;

/// Who reads changes.
pub(crate) const READER: &str = "cdc";
const EVENTS: &str = "CREATE TABLE events (id bigserial PRIMARY KEY, note text NOT NULL);";

/// A service whose events are published, and a database elsewhere that is to have them.
pub(crate) struct Setup {
    pub(crate) playground: Playground,
    subscriber: TestCluster,
}

impl Setup {
    pub(crate) async fn start() -> Result<Self> {
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

    /// Publishes the events where they are written: the shadow gets what the primary has.
    pub(crate) async fn publish(&self) -> Result<()> {
        Ok(owner(&self.playground.zones[0])
            .await?
            .batch_execute("CREATE PUBLICATION outbox FOR TABLE events")
            .await?)
    }

    /// Publishes the events, and subscribes to them through the front.
    async fn subscribe(&self) -> Result<Client> {
        self.publish().await?;
        let there = self.subscriber.create_database_of_superuser("copy", EVENTS).await?;
        there.batch_execute(&self.subscription()?).await?;
        let rest = "SELECT count(*) FROM pg_subscription_rel WHERE srsubstate <> 'r'";
        let copied = async || Ok(there.query_one(rest, &[]).await?.get::<_, i64>(0) == 0);
        until("what was there before is copied", copied).await?;
        Ok(there)
    }

    /// Writes events through the front until it is told to stop; how many were acknowledged. Where the front may go away it comes again.
    pub(crate) fn write(&self, again: bool) -> Result<Writer> {
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

pub(crate) struct Writer {
    stop: Arc<AtomicBool>,
    writing: JoinHandle<Result<i64>>,
}

impl Writer {
    pub(crate) async fn stop(self) -> Result<i64> {
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

pub(crate) async fn slots(zone: &Zone) -> Result<Vec<String>> {
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

    let unread = "not migratable: replication slot warehouse is not read up to the last move";
    let view = leader
        .until("it is told who is away", |view| {
            view.problems.iter().any(|problem| problem.starts_with(unread))
        })
        .await?;
    let [stream] = &view.change_streams[..] else { bail!("{:?}", view.change_streams) };
    ensure!(
        stream.slot == "warehouse" && stream.unread && !stream.active && stream.behind_bytes > 0,
        "{stream:?}"
    );
    ensure!(leader.ask_to_migrate(&near.name).await.is_err(), "it moved");
    ensure!(slots(near).await? == ["warehouse"], "{:?}", slots(near).await?);

    there.batch_execute("ALTER SUBSCRIPTION warehouse ENABLE").await?;
    same(&there, far).await?;
    until("the old primary keeps nothing for the subscriber", async || Ok(slots(near).await?.is_empty()))
        .await?;
    let reads =
        |view: &ResourceView| view.change_streams.iter().all(|stream| !stream.unread && stream.active);
    leader.until("it is told who reads", reads).await?;
    Ok(())
}

/// The next message of this type; what came before it goes.
async fn message_of(socket: &mut TcpStream, wanted: u8) -> Result<Vec<u8>> {
    loop {
        let tag = socket.read_u8().await?;
        let mut body = vec![0; usize::try_from(socket.read_u32().await?)?.saturating_sub(4)];
        socket.read_exact(&mut body).await?;
        if tag == wanted {
            return Ok(body);
        }
        ensure!(tag != b'E', "{}", String::from_utf8_lossy(&body));
    }
}

/// A subscriber that was away when something was written, and since before the move that followed.
async fn away(setup: &Setup, leader: &mut Leader<'_>) -> Result<Client> {
    let [near, far] = &setup.playground.zones;
    let there = setup.subscribe().await?;
    same(&there, near).await?;
    there.batch_execute("ALTER SUBSCRIPTION warehouse DISABLE").await?;
    superuser(near).await?.batch_execute("INSERT INTO events (note) VALUES ('before')").await?;
    moved(leader, far).await?;
    Ok(there)
}

/// The rest is read at the old primary by Godwit's own role; what its client asks besides is asked of the new one, as the client.
#[tokio::test(flavor = "multi_thread")]
async fn who_reads_the_rest_asks_nothing_by_godwits_role() -> Result<()> {
    let setup = Setup::start().await?;
    let [near, far] = &setup.playground.zones;
    let mut leader = Leader::start(&setup.playground, &[])?;
    leader.ready().await?;
    away(&setup, &mut leader).await?;
    ensure!(slots(near).await? == ["warehouse"], "{:?}", slots(near).await?);

    let mut socket =
        TcpStream::connect(setup.playground.postgres_front.context("a PostgreSQL front")?).await?;
    let mut out = Vec::new();
    let parameters = [("user", READER), ("database", DATABASE), ("replication", "database")];
    message::startup(&mut out, parameters.into_iter());
    socket.write_all(&out).await?;
    message_of(&mut socket, b'Z').await?;
    let begin =
        "START_REPLICATION SLOT \"warehouse\" LOGICAL 0/0 (proto_version '1', publication_names 'outbox')";
    let mut out = Vec::new();
    message::query(&mut out, begin.as_bytes());
    socket.write_all(&out).await?;
    message_of(&mut socket, b'W').await?;
    // In one write: the end of the stream is not awaited.
    let mut out = Vec::new();
    message::write(&mut out, b'c', |_| {});
    message::query(&mut out, b"SELECT session_user || ' ' || inet_server_port()");
    socket.write_all(&out).await?;
    message_of(&mut socket, b'Z').await?;
    let row = message_of(&mut socket, b'D').await?;
    let who = message::row(&row).and_then(|row| row.first().copied().flatten()).context("a value")?;
    let wanted = format!("{READER} {}", far.database.port());
    ensure!(who == wanted.as_bytes(), "{} instead of {wanted}", String::from_utf8_lossy(who));
    Ok(())
}

/// Where what it was still to read is lost, a reader begins anew, and no move waits for what nobody can read.
#[tokio::test(flavor = "multi_thread")]
async fn who_was_away_for_too_long_begins_anew() -> Result<()> {
    let setup = Setup::start().await?;
    let [near, far] = &setup.playground.zones;
    let mut leader = Leader::start(&setup.playground, &[])?;
    leader.ready().await?;
    let there = away(&setup, &mut leader).await?;
    superuser(near).await?.execute("SELECT pg_drop_replication_slot('warehouse')", &[]).await?;
    there
        .batch_execute("ALTER SUBSCRIPTION warehouse SET (slot_name = NONE); DROP SUBSCRIPTION warehouse; TRUNCATE events")
        .await?;
    // By SQL, as whoever finds it left over does.
    superuser(far).await?.execute("SELECT pg_drop_replication_slot('warehouse')", &[]).await?;
    there.batch_execute(&setup.subscription()?).await?;
    same(&there, far).await?;
    let writer = setup.write(false)?;
    moved(&mut leader, near).await?;
    writer.stop().await?;
    same(&there, near).await?;
    ensure!(slots(near).await? == ["warehouse"], "{:?}", slots(near).await?);
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
    let directory = tempfile::tempdir()?;
    let out = directory.path().join("changes");
    let front = setup.playground.postgres_front.context("a PostgreSQL front")?;
    let mut reader =
        received(&front.ip().to_string(), front.port(), "audit", &["--plugin", "test_decoding"], &out)?;
    reads(near, "audit").await?;
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

/// PostgreSQL's own tool, which writes down what comes by a slot that it makes.
fn received(host: &str, port: u16, slot: &str, plugin: &[&str], out: &Path) -> Result<Child> {
    let bin = godwit_tests::postgres::bin_directory(15).context("PostgreSQL 15")?;
    let mut command = Command::new(bin.join("pg_recvlogical"));
    command
        .args(["--create-slot", "--start", "--slot", slot, "--no-loop"])
        .args(plugin)
        .args(["--user", READER, "--dbname", DATABASE, "--host", host])
        .args(["--port", &port.to_string(), "--file", &out.display().to_string()]);
    Ok(command.kill_on_drop(true).spawn()?)
}

async fn reads(primary: &Zone, slot: &str) -> Result<()> {
    let sql = "SELECT count(*) FROM pg_replication_slots WHERE slot_name = $1 AND active";
    let primary = superuser(primary).await?;
    until("it reads", async || Ok(primary.query_one(sql, &[&slot]).await?.get::<_, i64>(0) == 1)).await
}

/// What Godwit keeps in a database is nothing that the service's readers know, and a publication of all tables has it.
#[tokio::test(flavor = "multi_thread")]
async fn readers_of_all_tables_are_not_given_godwits_own() -> Result<()> {
    let setup = Setup::start().await?;
    let [near, far] = &setup.playground.zones;
    for zone in [near, far] {
        superuser(zone).await?.batch_execute("CREATE PUBLICATION everything FOR ALL TABLES").await?;
    }
    let mut leader = Leader::start(&setup.playground, &[])?;
    leader.ready().await?;
    let front = setup.playground.postgres_front.context("a PostgreSQL front")?;
    let directory = tempfile::tempdir()?;
    let [through, beside] = ["through", "beside"].map(|name| directory.path().join(name));
    let pgoutput =
        ["--plugin=pgoutput", "-oproto_version=1", "-omessages=on", "-opublication_names=everything"];
    let server = near.dsn(READER);
    let Some(Host::Tcp(host)) = server.get_hosts().first() else { bail!("no host in {server:?}") };
    let port = *server.get_ports().first().context("a port")?;
    let _readers = [
        received(&front.ip().to_string(), front.port(), "through", &pgoutput, &through)?,
        received(host, port, "beside", &pgoutput, &beside)?,
    ];
    for slot in ["through", "beside"] {
        reads(near, slot).await?;
    }
    let writer = setup.write(false)?;
    moved(&mut leader, far).await?;
    let written = writer.stop().await?;
    let sql = "SELECT pg_logical_emit_message(true, 'last', 'word')";
    superuser(far).await?.execute(sql, &[]).await?;
    let has = |file: &Path, what: &[u8]| -> Result<bool> {
        Ok(std::fs::read(file)?.windows(what.len()).any(|bytes| bytes == what))
    };
    until("the last word has come", async || has(&through, b"last\0")).await?;
    ensure!(has(&through, b"events\0")?, "of {written} rows none came");
    for own in [&b"godwit\0"[..], b"godwit."] {
        ensure!(has(&beside, own)?, "the server itself tells nothing of Godwit");
        ensure!(!has(&through, own)?, "the front tells of Godwit");
    }
    let dsn = format!(
        "host={} port={} user={READER} dbname={DATABASE} replication=database",
        front.ip(),
        front.port()
    );
    let tables = "SELECT DISTINCT t.schemaname, t.tablename FROM pg_catalog.pg_publication_tables t WHERE t.pubname = 'everything'";
    let bin = godwit_tests::postgres::bin_directory(15).context("PostgreSQL 15")?;
    let told = Command::new(bin.join("psql")).args([&dsn, "-XAtc", tables]).output().await?;
    let told = String::from_utf8(told.stdout)?;
    ensure!(told.contains("public|events") && !told.contains("godwit"), "{told}");
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
    let published = "SELECT EXISTS (SELECT FROM pg_publication WHERE pubname = 'outbox')";
    let shadow = superuser(far).await?;
    until("the shadow has the publication", async || Ok(shadow.query_one(published, &[]).await?.get(0)))
        .await?;
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

/// What others read changes by: name, kind, what is published of which table, who may alter it. Filters each version words its own way.
async fn publications(zone: &Zone) -> Result<Vec<String>> {
    let sql = "SELECT concat_ws(' ', p.pubname, p.puballtables, p.pubinsert, p.pubupdate, p.pubdelete, p.pubtruncate, p.pubviaroot, \
                 pg_get_userbyid(p.pubowner), t.schemaname, t.tablename, t.attnames, t.rowfilter IS NOT NULL) \
               FROM pg_publication p LEFT JOIN pg_publication_tables t USING (pubname) WHERE p.pubname !~ '^godwit_' ORDER BY 1";
    Ok(superuser(zone).await?.query(sql, &[]).await?.iter().map(|row| row.get(0)).collect())
}

#[tokio::test(flavor = "multi_thread")]
async fn publications_follow() -> Result<()> {
    let playground = replicated("mode: async, schema: all").await?;
    let [near, far] = &playground.zones;
    let mut leader = Leader::start(&playground, &[])?;
    leader.ready().await?;
    let client = owner(near).await?;
    for sql in [
        "CREATE TABLE clicks (id bigint PRIMARY KEY, kind text, note text);
         CREATE TABLE \"Odd days\" (id bigint, day date, PRIMARY KEY (id, day)) PARTITION BY RANGE (day);
         CREATE TABLE day_1 PARTITION OF \"Odd days\" FOR VALUES FROM ('2026-01-01') TO ('2026-01-02');
         CREATE PUBLICATION \"Odd one\" FOR TABLE clicks (id, kind) WHERE (id > 5), \"Odd days\"
           WITH (publish = 'insert, delete', publish_via_partition_root = true);
         CREATE PUBLICATION leaves FOR TABLE \"Odd days\"; CREATE PUBLICATION nothing",
        "ALTER PUBLICATION leaves SET TABLE clicks, day_1; ALTER PUBLICATION \"Odd one\" SET (publish = 'insert')",
        "ALTER PUBLICATION \"Odd one\" SET TABLE clicks (id, note) WHERE (note = 'x')",
        "ALTER TABLE clicks RENAME TO visits",
        "ALTER PUBLICATION nothing ADD TABLE visits; ALTER PUBLICATION leaves DROP TABLE day_1",
    ] {
        client.batch_execute(sql).await?;
        followed(&mut leader).await.with_context(|| format!("after {sql}"))?;
        let [here, there] = [publications(near).await?, publications(far).await?];
        ensure!(here == there, "after {sql}: {here:#?}, {there:#?}");
    }
    // Only a superuser may make one of all tables. No move waits for it.
    superuser(near).await?.batch_execute("CREATE PUBLICATION everything FOR ALL TABLES").await?;
    let mut found = Vec::new();
    until("it is told", async || {
        found = differences(&leader).await?;
        Ok(!found.is_empty())
    })
    .await?;
    ensure!(found.len() == 1 && !found[0].stops && found[0].subject == "everything", "{found:#?}");
    moved(&mut leader, far).await
}
