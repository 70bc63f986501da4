//! What Godwit changes in a server so that commits wait for it: rights, the operator's own standbys, critical tables.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use godwit_tests::postgres::{TestCluster, other_major};
use godwit_tests::waiting;
use replicator::fence;
use replicator::lanes::{self, Handover};
use replicator::pgoutput::Event;
use replicator::postgres::Dsn;
use replicator::postgres::slot::{self, Lane};
use replicator::postgres::stream::{Feedback, ReplicationStream, StreamEvent};
use replicator::synchronous::{self, Armed};
use tokio::sync::watch;
use tokio_postgres::Client;
use tokio_util::task::AbortOnDropHandle;

const DATABASE: &str = "shop";
const PATIENCE: Duration = Duration::from_secs(60);
const AFTER: Duration = Duration::from_secs(30);

/// A consumer that acknowledges whatever it has seen, while it is told to.
struct Consumer {
    acknowledges: watch::Sender<bool>,
    _task: AbortOnDropHandle<Result<(), replicator::Error>>,
}

async fn consume(dsn: &Dsn, slot: &str, publication: &str) -> Result<Consumer> {
    let mut stream = ReplicationStream::start(dsn, slot, publication, replicator::Lsn::ZERO).await?;
    let (acknowledges, mut told) = watch::channel(true);
    let task = tokio::spawn(async move {
        let mut seen = replicator::Lsn::ZERO;
        loop {
            tokio::select! {
                event = stream.next() => match event? {
                    StreamEvent::Transaction(Event::Commit(header)) => seen = header.end_lsn,
                    StreamEvent::Transaction(_) => {}
                    StreamEvent::Keepalive { wal_end, .. } => seen = wal_end,
                },
                _ = told.changed() => {}
            }
            if *told.borrow() {
                stream
                    .report(Feedback { write: seen, flush: seen, apply: seen, reply_requested: false })
                    .await?;
            }
        }
    });
    Ok(Consumer { acknowledges, _task: AbortOnDropHandle::new(task) })
}

async fn text(client: &Client, sql: &str) -> Result<String> {
    Ok(client.query_one(sql, &[]).await?.get(0))
}

/// Waits until the server says that `condition` is true.
async fn until(what: &str, client: &Client, condition: &str) -> Result<()> {
    let sql = format!("SELECT {condition}");
    waiting::until(what, async || Ok(client.query_one(&sql, &[]).await?.get(0))).await
}

/// A role that is no superuser is told what it lacks; with exactly that it joins, waits and leaves no trace.
async fn rights(major: u32) -> Result<()> {
    let server = TestCluster::start(major)?;
    let admin = server.create_database_of_superuser(DATABASE, "CREATE ROLE godwit LOGIN REPLICATION").await?;
    admin
        .batch_execute(&format!(
            "ALTER DATABASE {DATABASE} OWNER TO godwit; SET ROLE godwit; CREATE TABLE t (id serial PRIMARY KEY); RESET ROLE"
        ))
        .await
        .or_else(|error| if major >= 15 { Err(error) } else { Ok(()) })?;
    let dsn = server.config_as("godwit", DATABASE);
    let client = replicator::postgres::connect(&dsn, "test").await?;
    fence::install(&client, "shop", 1).await?;
    let (slot, publication) = (slot::slot_name("shop", 1), slot::publication_name("shop"));
    slot::ensure_publication(&client, &publication).await?;
    slot::create_slot(&client, &slot).await?;
    let consumer = consume(&dsn, &slot, &publication).await?;

    let refused =
        Armed::join(&client, &dsn, &slot, AFTER).await.expect_err("it lacks every right").to_string();
    ensure!(refused.contains("GRANT ALTER SYSTEM ON PARAMETER"), "{refused}");
    synchronous::leave(&client, &slot).await?;
    let lacking = synchronous::findings(&client, &slot).await?;
    ensure!(lacking.len() == 4, "{lacking:#?}");
    for finding in &lacking {
        let remedy = finding.remedy.as_deref().context("a remedy")?;
        admin
            .batch_execute(remedy.split(" (15").next().unwrap_or(remedy))
            .await
            .context(remedy.to_owned())?;
    }
    ensure!(synchronous::findings(&client, &slot).await?.is_empty(), "the remedies are not enough");

    let armed = Armed::join(&client, &dsn, &slot, AFTER).await?;
    ensure!(armed.guarded());
    let seen = synchronous::observe(&client, &slot).await?;
    ensure!(seen.named && seen.state.as_deref() == Some("sync"), "{seen:?}");
    consumer.acknowledges.send_replace(false);
    let writer = server.connect(DATABASE).await?;
    let commit = tokio::spawn(async move { writer.execute("INSERT INTO t DEFAULT VALUES", &[]).await });
    until("the commit waits", &admin, "EXISTS (SELECT FROM pg_stat_activity WHERE wait_event = 'SyncRep')")
        .await?;
    // Leaving lets it go at once, acknowledged or not.
    synchronous::leave(&client, &slot).await?;
    tokio::time::timeout(PATIENCE, commit).await???;
    ensure!(text(&client, "SHOW synchronous_standby_names").await?.is_empty());
    let gone = "NOT EXISTS (SELECT FROM pg_stat_activity WHERE application_name LIKE 'godwit guard%')";
    until("the guards end", &admin, gone).await?;
    let file = std::fs::read_to_string(server.cluster.data.join("postgresql.auto.conf"))?;
    ensure!(!file.contains("synchronous_standby_names"), "{file}");
    synchronous::leave(&client, &slot).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_role_is_told_what_it_lacks_and_joins_with_exactly_that() -> Result<()> {
    rights(15).await?;
    rights(other_major()).await
}

/// A child process that is killed with the test.
pub(crate) struct Receiver(std::process::Child);

impl Receiver {
    pub(crate) fn start(server: &TestCluster, directory: &Path) -> Result<Self> {
        std::fs::create_dir_all(directory)?;
        let child = std::process::Command::new(server.cluster.bin.join("pg_receivewal"))
            .args(["--synchronous", "--no-password", "-U", "postgres", "-h", &server.cluster.host])
            .args(["-p", &server.cluster.port.to_string(), "-D"])
            .arg(directory)
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .spawn()?;
        Ok(Self(child))
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        if let Err(error) = self.0.kill().and_then(|()| self.0.wait()) {
            eprintln!("pg_receivewal was not ended: {error}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operators_own_standby_is_waited_for_before_during_and_after() -> Result<()> {
    let server = TestCluster::start(15)?;
    drop(server.create_database(DATABASE, "CREATE TABLE t (id serial PRIMARY KEY)").await?);
    let admin = server.connect(DATABASE).await?;
    let dsn = server.config(DATABASE);
    let client = replicator::postgres::connect(&dsn, "test").await?;
    fence::install(&client, "shop", 1).await?;
    let (slot, publication) = (slot::slot_name("shop", 1), slot::publication_name("shop"));
    slot::ensure_publication(&client, &publication).await?;
    slot::create_slot(&client, &slot).await?;
    let _consumer = consume(&dsn, &slot, &publication).await?;
    let directory = server.directory().join("received");
    let receiver = Receiver::start(&server, &directory)?;
    admin.batch_execute("ALTER SYSTEM SET synchronous_standby_names = '1 (pg_receivewal)'").await?;
    admin.batch_execute("SELECT pg_reload_conf()").await?;
    let counts = "EXISTS (SELECT FROM pg_stat_replication WHERE application_name = 'pg_receivewal' AND sync_state = 'sync')";
    until("the operator's standby counts", &admin, counts).await?;

    let _armed = Armed::join(&client, &dsn, &slot, AFTER).await?;
    let joined = text(&admin, "SHOW synchronous_standby_names").await?;
    ensure!(joined == format!("FIRST 2 (\"{slot}\", \"pg_receivewal\")"), "{joined}");
    until("it still counts", &admin, counts).await?;
    // Both are waited for: ours has acknowledged, the operator's is gone.
    drop(receiver);
    let writer = server.connect(DATABASE).await?;
    let commit = tokio::spawn(async move { writer.execute("INSERT INTO t DEFAULT VALUES", &[]).await });
    until("the commit waits", &admin, "EXISTS (SELECT FROM pg_stat_activity WHERE wait_event = 'SyncRep')")
        .await?;
    synchronous::leave(&client, &slot).await?;
    ensure!(
        text(&admin, "SHOW synchronous_standby_names").await? == "1 (pg_receivewal)",
        "as it was written"
    );
    ensure!(!commit.is_finished(), "the operator's standby is no longer waited for");
    let _receiver = Receiver::start(&server, &directory)?;
    tokio::time::timeout(PATIENCE, commit).await???;

    // Where another could stand in for the shadow, it does not join.
    admin
        .batch_execute("ALTER SYSTEM SET synchronous_standby_names = 'ANY 1 (pg_receivewal, other)'")
        .await?;
    admin.batch_execute("SELECT pg_reload_conf()").await?;
    until("the new setting", &client, "current_setting('synchronous_standby_names') LIKE 'ANY%'").await?;
    let refused = Armed::join(&client, &dsn, &slot, AFTER).await.expect_err("refused").to_string();
    ensure!(refused.contains("stand in for the shadow"), "{refused}");
    Ok(())
}

/// A resource with a database of its own, and whoever acknowledges its stream.
struct Resource {
    client: Client,
    dsn: Dsn,
    slot: String,
    publication: String,
}

impl Resource {
    async fn new(server: &TestCluster, name: &str) -> Result<Self> {
        drop(server.create_database(name, "CREATE TABLE t (id serial PRIMARY KEY)").await?);
        let dsn = server.config(name);
        let client = replicator::postgres::connect(&dsn, "test").await?;
        fence::install(&client, name, 1).await?;
        let (slot, publication) = (slot::slot_name(name, 1), slot::publication_name(name));
        slot::ensure_publication(&client, &publication).await?;
        slot::create_slot(&client, &slot).await?;
        Ok(Self { client, dsn, slot, publication })
    }

    async fn join(&self, after: Duration) -> Result<(Armed, Consumer)> {
        // A server notices later than its client that a stream has ended.
        let free = format!(
            "NOT EXISTS (SELECT FROM pg_replication_slots WHERE slot_name = '{}' AND active)",
            self.slot
        );
        until("nobody reads the slot", &self.client, &free).await?;
        let consumer = consume(&self.dsn, &self.slot, &self.publication).await?;
        Ok((Armed::join(&self.client, &self.dsn, &self.slot, after).await?, consumer))
    }

    async fn leave(&self) -> Result<()> {
        Ok(synchronous::leave(&self.client, &self.slot).await?)
    }
}

/// There is one setting for all resources of a server, and each takes out what it put in: by itself, by its guard, in whichever order.
#[tokio::test(flavor = "multi_thread")]
async fn resources_of_one_server_wait_together_and_none_leaves_anothers_name() -> Result<()> {
    let server = TestCluster::start(15)?;
    let (shop, books) = (Resource::new(&server, DATABASE).await?, Resource::new(&server, "books").await?);
    let admin = server.connect("postgres").await?;
    let seen = "current_setting('synchronous_standby_names') =";
    let alone = |slot: &str| format!("{seen} 'FIRST 1 (\"{slot}\")'");
    let both = format!("{seen} 'FIRST 2 (\"{}\", \"{}\")'", books.slot, shop.slot);

    for first in [&shop, &books] {
        let of_shop = shop.join(AFTER).await?;
        let of_books = books.join(AFTER).await?;
        until("both are waited for", &admin, &both).await?;
        first.leave().await?;
        let second = if first.slot == shop.slot { &books } else { &shop };
        until("the other is waited for", &admin, &alone(&second.slot)).await?;
        second.leave().await?;
        let file = std::fs::read_to_string(server.cluster.data.join("postgresql.auto.conf"))?;
        ensure!(!file.contains("synchronous_standby_names"), "{file}");
        drop((of_shop, of_books));
    }

    // Nobody streams any more: the guard of who joined first is the first to let go.
    let of_shop = shop.join(Duration::from_secs(1)).await?;
    let of_books = books.join(Duration::from_secs(2)).await?;
    until("both are waited for", &admin, &both).await?;
    drop((of_shop, of_books));
    let commit = async |writer: Client| {
        let sql = "SELECT pg_logical_emit_message(true, 'x', 'y')";
        let done = tokio::time::timeout(PATIENCE / 3, writer.query(sql, &[])).await;
        done.context("a commit of another database hangs")?.map(drop).context("a commit")
    };
    commit(server.connect("postgres").await?).await?;
    let watching = "NOT EXISTS (SELECT FROM pg_stat_activity WHERE state = 'active' \
                    AND query LIKE 'CALL godwit.guard_synchronous(%\"release\":false%')";
    until("both guards have let go", &admin, watching).await?;
    until("nobody is waited for", &admin, &format!("{seen} ''")).await?;
    commit(server.connect("postgres").await?).await?;
    tokio::try_join!(shop.leave(), books.leave())?;

    // A name that nobody guards, of one whose guard has just taken it out, say: it does not stay.
    admin.batch_execute("ALTER SYSTEM SET synchronous_standby_names = 'godwit_gone_g3'").await?;
    admin.batch_execute("SELECT pg_reload_conf()").await?;
    until("the name is there", &shop.client, &format!("{seen} 'godwit_gone_g3'")).await?;
    let _of_shop = shop.join(AFTER).await?;
    until("who is there is waited for", &admin, &alone(&shop.slot)).await?;
    let left =
        format!("ALTER SYSTEM SET synchronous_standby_names = 'FIRST 2 (\"{}\", godwit_gone_g3)'", shop.slot);
    admin.batch_execute(&left).await?;
    admin.batch_execute("SELECT pg_reload_conf()").await?;
    until("the name is there", &shop.client, "current_setting('synchronous_standby_names') LIKE '%gone%'")
        .await?;
    shop.leave().await?;
    until("nobody is waited for", &admin, &format!("{seen} ''")).await?;
    commit(server.connect("postgres").await?).await
}

/// What a resource's guards leave behind when their client is gone lets nobody go who waits for another resource's shadow.
#[tokio::test(flavor = "multi_thread")]
async fn a_guard_that_was_left_behind_lets_nobody_go_who_waits_for_another_shadow() -> Result<()> {
    let server = TestCluster::start(15)?;
    let (shop, books) = (Resource::new(&server, DATABASE).await?, Resource::new(&server, "books").await?);
    let admin = server.connect("postgres").await?;
    // Nobody calls leave for it: its second guard stays.
    drop(shop.join(Duration::from_secs(1)).await?);
    let released = format!(
        "(SELECT fell_back IS NOT NULL FROM godwit.synchronous WHERE slot = '{}') \
         AND current_setting('synchronous_standby_names') = ''",
        shop.slot
    );
    until("its guard has let go", &shop.client, &released).await?;

    let (_armed, consumer) = books.join(AFTER).await?;
    consumer.acknowledges.send_replace(false);
    let writer = server.connect("books").await?;
    let commit = tokio::spawn(async move { writer.execute("INSERT INTO t DEFAULT VALUES", &[]).await });
    let waits = "EXISTS (SELECT FROM pg_stat_activity WHERE wait_event = 'SyncRep')";
    until("the commit waits", &admin, waits).await?;
    // Two seconds after it let go a guard begins to look whether commits still wait.
    tokio::time::sleep(Duration::from_secs(3)).await;
    ensure!(!commit.is_finished(), "acknowledged without the shadow");
    books.leave().await?;
    tokio::time::timeout(PATIENCE, commit).await???;
    shop.leave().await
}

/// Nobody would let go who waits for a name that comes back after its guard.
#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_its_guard_took_out_while_it_joined_stays_out() -> Result<()> {
    let server = TestCluster::start(15)?;
    let shop = Resource::new(&server, DATABASE).await?;
    let admin = server.connect("postgres").await?;
    let consumer = consume(&shop.dsn, &shop.slot, &shop.publication).await?;
    // A standby that never said anything does not count.
    let said = "EXISTS (SELECT FROM pg_stat_replication WHERE flush_lsn IS NOT NULL)";
    until("the stream is up", &admin, said).await?;
    consumer.acknowledges.send_replace(false);
    let refused = Armed::join(&shop.client, &shop.dsn, &shop.slot, Duration::from_secs(1)).await;
    let refused = refused.expect_err("nobody acknowledges").to_string();
    ensure!(refused.contains("a commit waited"), "{refused}");
    ensure!(text(&admin, "SHOW synchronous_standby_names").await?.is_empty(), "it is there again");
    let commit = admin.query("SELECT pg_logical_emit_message(true, 'x', 'y')", &[]);
    tokio::time::timeout(PATIENCE / 6, commit).await.context("a commit of another database hangs")??;
    shop.leave().await
}

/// The transaction that writes a critical table waits, whichever way it is written, and only that one.
async fn critical(major: u32) -> Result<()> {
    let server = TestCluster::start(major)?;
    server.connect("postgres").await?.batch_execute("CREATE ROLE app LOGIN").await?;
    let client = server
        .create_database(
            DATABASE,
            "CREATE TABLE plain (id int PRIMARY KEY); CREATE TABLE \"Odd name\" (id int PRIMARY KEY);
             CREATE TABLE parts (id int PRIMARY KEY) PARTITION BY RANGE (id);
             CREATE TABLE parts_low PARTITION OF parts FOR VALUES FROM (0) TO (10);
             CREATE TABLE parts_high PARTITION OF parts FOR VALUES FROM (10) TO (20);
             CREATE TABLE refers (id int PRIMARY KEY REFERENCES \"Odd name\");
             CREATE TABLE days (id int, day int, PRIMARY KEY (id, day)) PARTITION BY RANGE (day);
             CREATE TABLE days_new PARTITION OF days FOR VALUES FROM (10) TO (20);
             CREATE TABLE days_old PARTITION OF days FOR VALUES FROM (0) TO (10) PARTITION BY RANGE (id);
             CREATE TABLE days_old_1 PARTITION OF days_old FOR VALUES FROM (0) TO (10);
             CREATE TABLE base (id int PRIMARY KEY); CREATE TABLE heir (PRIMARY KEY (id)) INHERITS (base);
             GRANT ALL ON ALL TABLES IN SCHEMA public TO app",
        )
        .await?;
    fence::install(&client, "shop", 1).await?;
    let tables = ["public.parts", "public.Odd name", "public.days_old_1", "public.heir", "public.gone"];
    let tables = tables.map(str::to_owned);
    let found = lanes::findings(&client, &tables).await?;
    let text_of = format!("{found:?}");
    ensure!(found.len() == 2 && text_of.contains("public.gone") && text_of.contains("refers"), "{found:#?}");
    for _ in 0..2 {
        lanes::publish(&client, "shop", &tables).await?;
        lanes::commit_locally(&client).await?;
    }
    let members = lanes::members(&client, "shop").await?.context("a publication")?;
    let names: Vec<&str> = members.iter().map(String::as_str).collect();
    ensure!(
        names
            == ["Odd name", "days_old_1", "heir", "parts_high", "parts_low"]
                .map(|name| format!("\"public\".\"{name}\"")),
        "{names:?}"
    );
    ensure!(
        slot::ensure_publication(&client, &Lane::Main.publication_name("shop")).await? == 4,
        "base, days_new, plain, refers"
    );

    let dsn = server.config_as("app", DATABASE);
    let app = application(&dsn).await?;
    let level = "SHOW synchronous_commit";
    ensure!(text(&app, level).await? == "local");
    for (sql, expected) in [
        ("INSERT INTO plain VALUES (1)", "local"),
        ("INSERT INTO parts VALUES (1)", "on"),
        ("UPDATE parts_low SET id = 2", "on"),
        ("DELETE FROM \"Odd name\"", "on"),
        ("TRUNCATE parts_high", "on"),
        ("SET LOCAL synchronous_commit = remote_apply; INSERT INTO parts VALUES (3)", "remote_apply"),
        ("INSERT INTO days VALUES (1, 1)", "on"),
        ("UPDATE days_old SET id = 2", "on"),
        ("INSERT INTO days_new VALUES (1, 11)", "local"),
        ("UPDATE base SET id = 2", "on"),
    ] {
        app.batch_execute(&format!("BEGIN; {sql}")).await?;
        ensure!(text(&app, level).await? == expected, "{sql}");
        app.batch_execute("COMMIT").await?;
        ensure!(text(&app, level).await? == "local", "{sql}: the level outlives its transaction");
    }

    // As a session that loads data does it, and forgets to switch them on.
    client
        .batch_execute("ALTER TABLE days DISABLE TRIGGER USER; ALTER TABLE parts DISABLE TRIGGER USER")
        .await?;
    ensure!(Handover::begin(&client, "shop", &tables, PATIENCE).await?.is_none(), "no table changes lanes");
    for sql in ["INSERT INTO days VALUES (3, 3)", "INSERT INTO parts VALUES (5)"] {
        app.batch_execute(&format!("BEGIN; {sql}")).await?;
        ensure!(text(&app, level).await? == "on", "switched off: {sql}");
        app.batch_execute("COMMIT").await?;
    }
    client
        .batch_execute("ALTER TABLE parts DISABLE TRIGGER USER; DROP TRIGGER godwit_critical ON heir")
        .await?;
    for put in [2, 0] {
        ensure!(lanes::arm(&client, &tables, PATIENCE).await? == put, "{put} triggers to be put");
    }
    app.batch_execute("BEGIN; INSERT INTO parts VALUES (6)").await?;
    ensure!(text(&app, level).await? == "on", "it waits again");
    app.batch_execute("COMMIT").await?;
    // Off the list: what it was written through waits no more.
    lanes::publish(&client, "shop", &tables[..2]).await?;
    app.batch_execute("BEGIN; INSERT INTO days VALUES (4, 4)").await?;
    ensure!(text(&app, level).await? == "local", "it is not critical any more");
    app.batch_execute("COMMIT").await?;

    lanes::publish(&client, "shop", &[]).await?;
    lanes::commit_as_before(&client).await?;
    ensure!(lanes::members(&client, "shop").await?.is_none());
    let left = "SELECT ((SELECT count(*) FROM pg_trigger WHERE tgname = 'godwit_critical') \
                + (SELECT count(*) FROM pg_db_role_setting WHERE array_to_string(setconfig, ',') ~ 'synchronous'))::text";
    ensure!(text(&client, left).await? == "0", "something is left");
    Ok(())
}

/// Its other readers would wait behind whoever takes its trigger away.
#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_is_read_leaves_its_lane_and_loses_its_trigger_later() -> Result<()> {
    let server = TestCluster::start(15)?;
    let client = server.create_database(DATABASE, "CREATE TABLE plain (id int PRIMARY KEY)").await?;
    fence::install(&client, "shop", 1).await?;
    lanes::publish(&client, "shop", &["public.plain".to_owned()]).await?;
    let carries = "SELECT EXISTS (SELECT FROM pg_trigger WHERE tgname = 'godwit_critical')::text";

    let reader = server.connect(DATABASE).await?;
    reader.batch_execute("BEGIN; SELECT FROM plain").await?;
    let moment = Duration::from_millis(20);
    let handover = Handover::begin(&client, "shop", &[], moment).await?.context("a handover")?;
    handover.finish().await?;
    ensure!(lanes::members(&client, "shop").await?.is_some_and(|members| members.is_empty()), "it has left");
    ensure!(Handover::begin(&client, "shop", &[], moment).await?.is_none(), "no table changes lanes");
    ensure!(lanes::arm(&client, &[], moment).await? == 0 && text(&client, carries).await? == "true");
    lanes::publish(&client, "shop", &[]).await?;
    ensure!(lanes::members(&client, "shop").await?.is_some(), "it is there to be closed again");

    reader.batch_execute("COMMIT").await?;
    lanes::arm(&client, &[], PATIENCE).await?;
    ensure!(text(&client, carries).await? == "false", "it was tried again");
    lanes::publish(&client, "shop", &[]).await?;
    ensure!(lanes::members(&client, "shop").await?.is_none());
    Ok(())
}

/// One table that somebody writes for long leaves no other without its trigger.
#[tokio::test(flavor = "multi_thread")]
async fn a_critical_table_that_is_locked_holds_up_no_others_trigger() -> Result<()> {
    let server = TestCluster::start(15)?;
    let tables = ["public.first".to_owned(), "public.second".to_owned()];
    let sql = "CREATE TABLE first (id int PRIMARY KEY); CREATE TABLE second (id int PRIMARY KEY)";
    let client = server.create_database(DATABASE, sql).await?;
    fence::install(&client, "shop", 1).await?;
    lanes::publish(&client, "shop", &tables).await?;
    let off = "ALTER TABLE first DISABLE TRIGGER USER; ALTER TABLE second DISABLE TRIGGER USER";
    client.batch_execute(off).await?;
    let armed = "SELECT string_agg(tgrelid::regclass::text, ' ') FROM pg_trigger \
                 WHERE tgname = 'godwit_critical' AND tgenabled = 'O'";

    let writer = server.connect(DATABASE).await?;
    writer.batch_execute("BEGIN; INSERT INTO first VALUES (1)").await?;
    let refused = lanes::arm(&client, &tables, Duration::from_millis(20)).await.expect_err("it is locked");
    ensure!(
        matches!(&refused, replicator::Error::Server { sqlstate, .. } if sqlstate == "55P03")
            && refused.to_string().contains("which 2 lacked"),
        "{refused}"
    );
    ensure!(text(&client, armed).await? == "second", "{refused}");
    writer.batch_execute("COMMIT").await?;
    ensure!(lanes::arm(&client, &tables, PATIENCE).await? == 1);
    Ok(())
}

/// It has a lock of the parent when it waits for one of the partition.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_writes_through_a_parent_waits_for_a_handover_and_not_the_other_way_round() -> Result<()> {
    let server = TestCluster::start(15)?;
    server.connect("postgres").await?.batch_execute("CREATE ROLE app LOGIN").await?;
    let tables = "CREATE TABLE parts (id int PRIMARY KEY) PARTITION BY RANGE (id);
         CREATE TABLE parts_low PARTITION OF parts FOR VALUES FROM (0) TO (10);
         GRANT ALL ON ALL TABLES IN SCHEMA public TO app";
    let client = server.create_database(DATABASE, tables).await?;
    fence::install(&client, "shop", 1).await?;
    lanes::publish(&client, "shop", &[]).await?;
    for (id, critical) in [(1, &["public.parts".to_owned()][..]), (2, &[])] {
        let app = application(&server.config_as("app", DATABASE)).await?;
        let handover = Handover::begin(&client, "shop", critical, PATIENCE).await?.context("a handover")?;
        let sql = format!("INSERT INTO parts VALUES ({id})");
        let writes = AbortOnDropHandle::new(tokio::spawn(async move { app.batch_execute(&sql).await }));
        until("a writer that waits", &client, "EXISTS (SELECT FROM pg_locks WHERE NOT granted)").await?;
        handover.finish().await?;
        tokio::time::timeout(PATIENCE, writes).await???;
        let carries = "EXISTS (SELECT FROM pg_trigger WHERE tgname = 'godwit_critical' AND tgrelid = 'parts'::regclass)";
        let carries: bool = client.query_one(&format!("SELECT {carries}"), &[]).await?.get(0);
        ensure!(carries != critical.is_empty(), "{critical:?}");
    }
    Ok(())
}

/// A session as an application has it.
async fn application(dsn: &tokio_postgres::Config) -> Result<Client> {
    let (client, connection) = dsn.connect(tokio_postgres::NoTls).await?;
    tokio::spawn(connection);
    Ok(client)
}

#[tokio::test(flavor = "multi_thread")]
async fn only_transactions_of_critical_tables_are_made_to_wait() -> Result<()> {
    critical(15).await?;
    critical(other_major()).await
}

/// It has its locks as long as a transaction that nobody ends: what it waits for is another thing to mend.
#[tokio::test(flavor = "multi_thread")]
async fn who_waits_in_commit_is_no_open_transaction() -> Result<()> {
    let settings = "synchronous_standby_names = 'nobody'\nsynchronous_commit = local\n";
    let server = TestCluster::start_with(15, settings)?;
    drop(server.create_database(DATABASE, "CREATE TABLE t (id int PRIMARY KEY)").await?);
    let client = replicator::postgres::connect(&server.config(DATABASE), "test").await?;
    fence::install(&client, "shop", 1).await?;
    let (committer, open) = (server.connect(DATABASE).await?, server.connect(DATABASE).await?);
    open.batch_execute("BEGIN; INSERT INTO t VALUES (1)").await?;
    let sql = "SET synchronous_commit = on; INSERT INTO t VALUES (2)";
    let _commit = AbortOnDropHandle::new(tokio::spawn(async move { committer.batch_execute(sql).await }));
    let waits = "EXISTS (SELECT FROM pg_stat_activity WHERE wait_event = 'SyncRep')";
    until("the commit waits", &client, waits).await?;
    let found = fence::in_the_way(&client, Duration::ZERO, &[], false).await?;
    let [first, second] = &found[..] else { anyhow::bail!("{found:?}") };
    ensure!(first.contains("has table public.t locked for") && !first.contains("COMMIT"), "{first}");
    let says = "and waits in COMMIT for a synchronous standby (synchronous_standby_names = 'nobody')";
    ensure!(second.contains("has table public.t locked for") && second.ends_with(says), "{second}");
    Ok(())
}
