//! The source side of replication against real servers: slots, the stream, the snapshot, the schema.

use std::collections::HashSet;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use bytes::BytesMut;
use godwit_tests::postgres::{SUPERUSER, TestCluster, bin_directory, other_major};
use replicator::change::{Cell, Change, OldRow, Transaction};
use replicator::copy::{self, TableToCopy};
use replicator::error::Cause;
use replicator::lanes::{self, Handover};
use replicator::postgres::slot::{create_slot, drop_slot, ensure_publication, slot_info};
use replicator::postgres::stream::{ExportedSlot, Feedback, ReplicationStream, StreamEvent};
use replicator::spill::{Committed, OpenTransactions, Spill};
use replicator::{Error, ErrorKind, Lsn, postgres, schema};
use tokio::time::timeout;
use tokio_postgres::Client;

const PATIENCE: Duration = Duration::from_secs(30);

/// The versions to try: 15, and the newest that this machine has.
fn majors() -> Vec<u32> {
    let mut majors = vec![15, other_major()];
    majors.dedup();
    majors
}

async fn source(cluster: &TestCluster, sql: &str) -> Result<Client> {
    let client = cluster.create_database_of_superuser("app", sql).await?;
    ensure_publication(&client, "godwit_orders").await?;
    Ok(client)
}

async fn next_transaction(stream: &mut ReplicationStream) -> Result<Transaction> {
    next_of(stream, &mut OpenTransactions::new(Spill::default())).await
}

/// The same where transactions come in blocks, some of which have come already.
pub(crate) async fn next_of(
    stream: &mut ReplicationStream,
    open: &mut OpenTransactions,
) -> Result<Transaction> {
    let next = async {
        loop {
            if let StreamEvent::Transaction(event) = stream.next().await? {
                match open.handle(event).await? {
                    None => {}
                    Some(Committed::Whole(transaction)) => return Ok::<_, Error>(transaction),
                    Some(Committed::Large(transaction)) => return transaction.whole().await,
                }
            }
        }
    };
    Ok(timeout(PATIENCE, next).await.context("no transaction came")??)
}

/// A transaction as text, one line per change: what a reader can compare at a glance.
fn lines(transaction: &Transaction) -> Vec<String> {
    let row = |cells: &[Cell]| -> String {
        let cells: Vec<String> = cells
            .iter()
            .map(|cell| match cell {
                Cell::Null => "null".into(),
                Cell::Unchanged => "unchanged".into(),
                Cell::Text(text) if text.len() > 40 => format!("{} bytes", text.len()),
                Cell::Text(text) => String::from_utf8_lossy(text).into_owned(),
            })
            .collect();
        cells.join("|")
    };
    let change = |change: &Change| match change {
        Change::Insert { relation, new } => format!("insert {} {}", relation.name, row(new)),
        Change::Update { relation, old, new } => {
            let old = match old {
                None => String::new(),
                Some(OldRow::Key(old)) => format!("key {} -> ", row(old)),
                Some(OldRow::Full(old)) => format!("full {} -> ", row(old)),
            };
            format!("update {} {old}{}", relation.name, row(new))
        }
        Change::Delete { relation, old: OldRow::Key(old) } => {
            format!("delete {} key {}", relation.name, row(old))
        }
        Change::Delete { relation, old: OldRow::Full(old) } => {
            format!("delete {} full {}", relation.name, row(old))
        }
        Change::Truncate { relations, cascade, restart_identity } => {
            let mut names: Vec<&str> = relations.iter().map(|relation| relation.name.as_str()).collect();
            names.sort_unstable();
            format!("truncate {} cascade={cascade} restart={restart_identity}", names.join(","))
        }
        Change::Message { prefix, content } => {
            format!("message {prefix} {}", String::from_utf8_lossy(content))
        }
    };
    transaction.changes.iter().map(change).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_is_made_once_and_dropped_even_in_use() -> Result<()> {
    for major in majors() {
        let cluster = TestCluster::start(major)?;
        let client = source(&cluster, "CREATE TABLE t (id int PRIMARY KEY)").await?;
        let name = "godwit_orders_g1";
        assert_eq!(slot_info(&client, name).await?, None);
        let made = create_slot(&client, name).await?;
        assert_eq!(create_slot(&client, name).await?, made, "the second call finds the slot");
        let info = slot_info(&client, name).await?.context("there")?;
        assert_eq!((info.active, info.confirmed_flush), (false, Some(made)));
        assert_eq!(info.wal_status, "reserved");
        assert!(info.restart.is_some_and(|restart| restart <= made));

        let config = cluster.config_as(SUPERUSER, "app");
        let mut stream = ReplicationStream::start(&config, name, "godwit_orders", Lsn::ZERO).await?;
        assert!(slot_info(&client, name).await?.context("there")?.active);
        let Err(busy) = ReplicationStream::start(&config, name, "godwit_orders", Lsn::ZERO).await else {
            bail!("two streams from one slot");
        };
        assert!(matches!(&busy, Error::Server { sqlstate, .. } if sqlstate == "55006"), "{busy}");
        assert_eq!(busy.kind(), ErrorKind::Retry);

        drop_slot(&client, name).await?;
        assert_eq!(slot_info(&client, name).await?, None);
        drop_slot(&client, name).await?;
        let error = loop {
            if let Err(error) = timeout(PATIENCE, stream.next()).await? {
                break error;
            }
        };
        assert_eq!(error.kind(), ErrorKind::Retry, "{error}");

        // Another plugin's slot of that name is not ours to use.
        client
            .query_one("SELECT pg_create_logical_replication_slot($1, 'test_decoding')", &[&name])
            .await
            .map(drop)
            .or_else(
                |error| if error.code().is_some_and(|c| c.code() == "58P01") { Ok(()) } else { Err(error) },
            )?;
        if slot_info(&client, name).await?.is_some() {
            let error = create_slot(&client, name).await.expect_err("another plugin");
            assert!(matches!(error, Error::Unready(_)), "{error}");
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_publication_follows_the_tables() -> Result<()> {
    for major in majors() {
        let cluster = TestCluster::start(major)?;
        let client = cluster
            .create_database_of_superuser(
                "app",
                "CREATE SCHEMA godwit; CREATE TABLE godwit.epoch (x int); CREATE SCHEMA \"Odd \"\"one\";
                 CREATE UNLOGGED TABLE cache (x int); CREATE TABLE keyless (x int);
                 CREATE TABLE parted (x int PRIMARY KEY) PARTITION BY LIST (x); CREATE TABLE parted_1 PARTITION OF parted FOR VALUES IN (1);",
            )
            .await?;
        let listed = async || -> Result<Vec<String>> {
            let rows = client
                .query(
                    "SELECT schemaname || '.' || tablename FROM pg_publication_tables WHERE pubname = 'godwit_orders' ORDER BY 1",
                    &[],
                )
                .await?;
            Ok(rows.iter().map(|row| row.get(0)).collect())
        };
        assert_eq!(ensure_publication(&client, "godwit_orders").await?, 1);
        assert_eq!(listed().await?, ["public.parted_1"]);
        client.batch_execute("CREATE TABLE \"Odd \"\"one\".\"T 1\" (x int PRIMARY KEY)").await?;
        assert_eq!(ensure_publication(&client, "godwit_orders").await?, 2);
        assert_eq!(listed().await?, ["Odd \"one.T 1", "public.parted_1"]);
        client
            .batch_execute(
                "ALTER PUBLICATION godwit_orders SET (publish = 'insert'); ALTER PUBLICATION godwit_orders ADD TABLE godwit.epoch",
            )
            .await?;
        assert_eq!(ensure_publication(&client, "godwit_orders").await?, 2);
        assert_eq!(listed().await?, ["Odd \"one.T 1", "public.parted_1"]);
        let row = client.query_one("SELECT pubdelete AND pubtruncate FROM pg_publication", &[]).await?;
        assert!(row.get::<_, bool>(0));
        client.batch_execute("DROP TABLE parted, \"Odd \"\"one\".\"T 1\"; ALTER PUBLICATION godwit_orders ADD TABLE godwit.epoch").await?;
        assert_eq!(ensure_publication(&client, "godwit_orders").await?, 0);
        assert!(listed().await?.is_empty());
        client.batch_execute("CREATE PUBLICATION everything FOR ALL TABLES").await?;
        assert!(matches!(ensure_publication(&client, "everything").await, Err(Error::Unready(_))));
    }
    Ok(())
}

/// The database's limit (PostgreSQL 17 and newer) is for the application's transactions.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_session_of_ours_is_ended_for_the_length_of_a_transaction() -> Result<()> {
    for major in majors() {
        let cluster = TestCluster::start(major)?;
        let client = cluster.create_database_of_superuser("app", "").await?;
        let limit = async |client: &Client| -> Result<String> {
            let sql = "SELECT coalesce(current_setting('transaction_timeout', true), 'unknown')";
            Ok(client.query_one(sql, &[]).await?.get(0))
        };
        let (none, theirs) = if major < 17 { ("unknown", "unknown") } else { ("0", "5min") };
        if major >= 17 {
            client.batch_execute("ALTER DATABASE app SET transaction_timeout = '5min'").await?;
        }
        let dsn = cluster.config_as(SUPERUSER, "app");
        assert_eq!(limit(&postgres::connect(&dsn, "a").await?).await?, none);
        assert_eq!(limit(&postgres::connect_unseen(&dsn, "b").await?).await?, none);
        assert_eq!(limit(&postgres::connect_unhurried(&dsn, "c").await?).await?, none);
        assert_eq!(limit(&postgres::connect_untouched(&dsn, "d").await?).await?, theirs);
    }
    Ok(())
}

/// Its rows from before would be missing on the shadow, and nothing would tell.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_that_gets_a_key_is_published_by_no_handover() -> Result<()> {
    let cluster = TestCluster::start(15)?;
    let tables =
        "CREATE TABLE log (at int); CREATE TABLE audit (at int); CREATE TABLE payments (id int PRIMARY KEY)";
    let client = cluster.create_database_of_superuser("app", tables).await?;
    replicator::fence::install(&client, "orders", 1).await?;
    lanes::publish(&client, "orders", &[]).await?;
    client
        .batch_execute(
            "INSERT INTO log VALUES (1); ALTER TABLE log ADD PRIMARY KEY (at); ALTER TABLE audit ADD PRIMARY KEY (at)",
        )
        .await?;
    let critical = ["public.payments".to_owned(), "public.audit".to_owned()];
    let handover = Handover::begin(&client, "orders", &critical, PATIENCE).await?;
    handover.context("payments change lanes")?.finish().await?;
    let published = "SELECT pubname || ': ' || tablename FROM pg_publication_tables ORDER BY 1";
    let published: Vec<String> = client.query(published, &[]).await?.iter().map(|row| row.get(0)).collect();
    assert_eq!(published, ["godwit_orders.critical: payments"]);
    assert!(
        Handover::begin(&client, "orders", &critical, PATIENCE).await?.is_none(),
        "nothing is left to do"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mix_of_changes_comes_out_as_it_went_in() -> Result<()> {
    for major in majors() {
        let cluster = TestCluster::start(major)?;
        let client = source(
            &cluster,
            "CREATE TABLE t (id int PRIMARY KEY, body text, at timestamptz, gone int, twice int GENERATED ALWAYS AS (id * 2) STORED);
             ALTER TABLE t ALTER body SET STORAGE EXTERNAL; ALTER TABLE t DROP gone;
             CREATE TABLE f (a int, b bytea); ALTER TABLE f REPLICA IDENTITY FULL;
             ALTER DATABASE app SET datestyle = 'SQL, DMY'; ALTER DATABASE app SET timezone = 'UTC'; ALTER DATABASE app SET bytea_output = 'escape';
             SELECT pg_replication_origin_create('godwit_orders')",
        )
        .await?;
        create_slot(&client, "s").await?;
        let mut stream =
            ReplicationStream::start(&cluster.config_as(SUPERUSER, "app"), "s", "godwit_orders", Lsn::ZERO)
                .await?;
        client
            .batch_execute(
                "BEGIN;
                 INSERT INTO t VALUES (1, repeat('x', 9000), '2026-02-03 04:05:06+00'), (2, NULL, NULL);
                 UPDATE t SET at = '2026-02-03 04:05:07+00' WHERE id = 1;
                 UPDATE t SET id = 3 WHERE id = 2;
                 INSERT INTO f VALUES (7, '\\x00ff');
                 UPDATE f SET b = NULL;
                 DELETE FROM f; DELETE FROM t WHERE id = 3;
                 SAVEPOINT s; INSERT INTO t VALUES (99); ROLLBACK TO s;
                 SELECT pg_logical_emit_message(true, 'godwit.fence', '8');
                 TRUNCATE t, f RESTART IDENTITY CASCADE;
                 COMMIT;
                 BEGIN; INSERT INTO t VALUES (50); ROLLBACK;
                 SELECT pg_logical_emit_message(false, 'elsewhere', 'x')",
            )
            .await?;
        // Values come in the stream's own formats, whatever the database's defaults.
        let first = next_transaction(&mut stream).await?;
        let found = lines(&first);
        let expected = [
            "insert t 1|9000 bytes|2026-02-03 04:05:06+00",
            "insert t 2|null|null",
            "update t 1|unchanged|2026-02-03 04:05:07+00",
            "update t key 2|null|null -> 3|null|null",
            "insert f 7|\\x00ff",
            "update f full 7|\\x00ff -> 7|null",
            "delete f full 7|null",
            "delete t key 3|null|null",
            "message godwit.fence 8",
            "truncate f,t cascade=true restart=true",
        ];
        assert_eq!(found, expected, "PostgreSQL {major}");
        assert_eq!((first.marker(), first.origin.as_deref()), (Some(8), None));
        assert!(first.commit_lsn < first.end_lsn && first.commit_time.0 > 0);

        client
            .batch_execute(
                "SELECT pg_replication_origin_session_setup('godwit_orders');
                 BEGIN; SELECT pg_replication_origin_xact_setup('0/AB', now()); INSERT INTO t VALUES (4); COMMIT;
                 SELECT pg_replication_origin_session_reset();
                 SELECT pg_replication_origin_create('theirs'); SELECT pg_replication_origin_session_setup('theirs');
                 BEGIN; SELECT pg_replication_origin_xact_setup('0/AC', now()); INSERT INTO t VALUES (5); COMMIT;
                 SELECT pg_replication_origin_session_reset(); DELETE FROM t WHERE id = 5; ALTER TABLE t ADD extra text DEFAULT 'new'; UPDATE t SET extra = 'own'",
            )
            .await?;
        let second = next_transaction(&mut stream).await?;
        assert_eq!(second.origin.as_deref(), Some("godwit_orders"));
        assert!(
            second.changes.is_empty(),
            "what Godwit wrote goes nowhere and is not kept: {:?}",
            lines(&second)
        );
        assert!(second.commit_lsn >= first.end_lsn);
        // Another's is a change like any other.
        let others = next_transaction(&mut stream).await?;
        assert_eq!(others.origin.as_deref(), Some("theirs"));
        assert_eq!(lines(&others), ["insert t 5|null|null"]);
        let third = next_transaction(&mut stream).await?;
        assert_eq!(lines(&third), ["delete t key 5|null|null", "update t 4|null|null|own"]);
        assert_eq!(third.origin, None);
        assert!(stream.wal_end() >= third.end_lsn);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_resumes_after_what_was_confirmed_or_asked_for() -> Result<()> {
    for major in majors() {
        let cluster = TestCluster::start(major)?;
        let client = source(&cluster, "CREATE TABLE t (id int PRIMARY KEY)").await?;
        create_slot(&client, "s").await?;
        let config = cluster.config_as(SUPERUSER, "app");
        let insert = async |id: i32| client.execute("INSERT INTO t VALUES ($1)", &[&id]).await;
        for id in 1..=4 {
            insert(id).await?;
        }
        // The walsender of a dropped stream takes a moment to let go of the slot.
        let start = async |from: Lsn| -> Result<ReplicationStream> {
            let attempt = async {
                loop {
                    match ReplicationStream::start(&config, "s", "godwit_orders", from).await {
                        Err(error) if error.kind() == ErrorKind::Retry => tokio::task::yield_now().await,
                        other => return other,
                    }
                }
            };
            Ok(timeout(PATIENCE, attempt).await??)
        };
        let mut stream = start(Lsn::ZERO).await?;
        let first = next_transaction(&mut stream).await?;
        let second = next_transaction(&mut stream).await?;
        assert_eq!(lines(&first), ["insert t 1"]);
        // Received is not durable: only the flushed position moves the slot.
        stream
            .report(Feedback {
                write: second.end_lsn,
                flush: first.end_lsn,
                apply: first.end_lsn,
                reply_requested: true,
            })
            .await?;
        let keepalive = async {
            loop {
                if let StreamEvent::Keepalive { wal_end, .. } = stream.next().await? {
                    return Ok::<_, Error>(wal_end);
                }
            }
        };
        let wal_end = timeout(PATIENCE, keepalive).await??;
        assert!(wal_end >= second.end_lsn);
        // That keepalive may have been on its way before the report came.
        let confirmed = async {
            loop {
                let confirmed = slot_info(&client, "s").await?.and_then(|slot| slot.confirmed_flush);
                assert!(confirmed <= Some(first.end_lsn), "more than was flushed: {confirmed:?}");
                if confirmed == Some(first.end_lsn) {
                    return Ok::<_, Error>(());
                }
            }
        };
        timeout(PATIENCE, confirmed).await??;
        drop(stream);

        let mut stream = start(Lsn::ZERO).await?;
        assert_eq!(lines(&next_transaction(&mut stream).await?), ["insert t 2"]);
        drop(stream);
        let mut stream = start(second.end_lsn).await?;
        assert_eq!(lines(&next_transaction(&mut stream).await?), ["insert t 3"]);
        assert_eq!(lines(&next_transaction(&mut stream).await?), ["insert t 4"]);
        insert(5).await?;
        assert_eq!(lines(&next_transaction(&mut stream).await?), ["insert t 5"]);

        // A server that shuts down is a passing error once it knows that all has arrived.
        let end = stream.wal_end();
        stream.report(Feedback { write: end, flush: end, apply: end, reply_requested: false }).await?;
        cluster.cluster.stop("immediate")?;
        let error = loop {
            if let Err(error) = timeout(PATIENCE, stream.next()).await? {
                break error;
            }
        };
        assert_eq!(error.kind(), ErrorKind::Retry, "{error}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn next_may_be_cancelled_at_any_point() -> Result<()> {
    let cluster = TestCluster::start(other_major())?;
    let client = source(&cluster, "CREATE TABLE t (id int PRIMARY KEY, body text)").await?;
    create_slot(&client, "s").await?;
    let mut stream =
        ReplicationStream::start(&cluster.config_as(SUPERUSER, "app"), "s", "godwit_orders", Lsn::ZERO)
            .await?;
    let writer = tokio::spawn(async move {
        for from in [0, 20_000, 40_000] {
            client
                .execute(
                    "INSERT INTO t SELECT i, repeat(md5(i::text), 10) FROM generate_series($1::int, $1 + 19999) i",
                    &[&from],
                )
                .await?;
        }
        Ok::<_, tokio_postgres::Error>(client)
    });
    let mut rows = Vec::new();
    let mut cancelled = 0;
    let mut open = OpenTransactions::new(Spill::default());
    let collect = async {
        while rows.len() < 60_000 {
            match timeout(Duration::from_micros(300), stream.next()).await {
                Err(_) => {
                    cancelled += 1;
                    stream.report(Feedback::default()).await?;
                }
                Ok(event) => {
                    if let StreamEvent::Transaction(event) = event?
                        && let Some(committed) = open.handle(event).await?
                    {
                        let transaction = match committed {
                            Committed::Whole(transaction) => transaction,
                            Committed::Large(transaction) => transaction.whole().await?,
                        };
                        rows.extend(transaction.changes.into_iter().map(|change| match change {
                            Change::Insert { new, .. } => new[0].clone(),
                            other => panic!("{other:?}"),
                        }));
                    }
                }
            }
        }
        Ok::<_, Error>(())
    };
    timeout(Duration::from_mins(2), collect).await??;
    writer.await??;
    assert!(cancelled > 3, "only {cancelled} calls were cancelled");
    for (at, cell) in rows.iter().enumerate() {
        assert_eq!(*cell, Cell::Text(at.to_string().into()));
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_copy_and_the_stream_meet_without_gap_or_overlap() -> Result<()> {
    for major in majors() {
        let cluster = TestCluster::start(major)?;
        let client = source(
            &cluster,
            "CREATE TABLE t (id int PRIMARY KEY, \"odd \"\"col\" text, g int GENERATED ALWAYS AS (id) STORED);
             INSERT INTO t SELECT i, 'first' FROM generate_series(1, 5000) i; ANALYZE t; CREATE TABLE u (id int PRIMARY KEY, i interval[])",
        )
        .await?;
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let writer = tokio::spawn(async move {
            let mut id = 5000;
            while !stop.is_closed() {
                id += 1;
                client.execute("INSERT INTO t VALUES ($1, 'later')", &[&id]).await?;
            }
            Ok::<_, tokio_postgres::Error>((client, id))
        });
        let config = cluster.config_as(SUPERUSER, "app");
        let slot = timeout(PATIENCE, ExportedSlot::create(&config, "s")).await??;
        let duplicate = ExportedSlot::create(&config, "s").await.err().context("made twice")?;
        assert!(matches!(&duplicate, Error::Server { sqlstate, .. } if sqlstate == "42710"), "{duplicate}");
        let tables = copy::tables(&postgres::connect(&config, "test copy").await?).await?;
        let expected = TableToCopy {
            schema: "public".into(),
            name: "t".into(),
            columns: vec!["id".into(), "odd \"col".into()],
            rows_estimate: 5000,
            binary: true,
            blocks: tables[0].blocks,
            bytes: tables[0].bytes,
        };
        assert_eq!(tables[0], expected);
        assert!(
            tables.len() == 2 && !tables[1].binary,
            "infinite intervals are not the same on every server"
        );
        // As text, to be read here.
        let parts = copy::cut(vec![TableToCopy { binary: false, ..tables[0].clone() }]);
        let mut reader = copy::Reader::open(&config, "test copy", &slot.snapshot).await?;
        reader.begin(&parts[0]).await?;
        let mut text = BytesMut::new();
        while reader.read(&mut text, usize::MAX).await?.1 {}
        let mut seen = HashSet::new();
        for line in std::str::from_utf8(&text)?.lines() {
            let (id, body) = line.split_once('\t').context("two columns")?;
            assert!(body == "first" || body == "later", "{line}");
            assert!(seen.insert(id.parse::<i32>()?), "copied twice: {line}");
        }
        let copied = seen.len();
        drop(slot);
        drop(stopped);
        let (client, last) = writer.await??;

        let mut stream = ReplicationStream::start(&config, "s", "godwit_orders", Lsn::ZERO).await?;
        while seen.len() < usize::try_from(last)? {
            for change in next_transaction(&mut stream).await?.changes {
                let Change::Insert { new, .. } = change else { bail!("only inserts were made") };
                let Cell::Text(id) = &new[0] else { bail!("no id") };
                let id: i32 = std::str::from_utf8(id)?.parse()?;
                assert!(seen.insert(id), "row {id} was both copied and streamed");
            }
        }
        assert!(copied >= 5000 && copied < seen.len(), "{copied} of {}", seen.len());
        assert!((1..=last).all(|id| seen.contains(&id)));
        drop(stream);
        drop_slot(&client, "s").await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn every_password_method_is_spoken() -> Result<()> {
    for major in majors() {
        let cluster = TestCluster::start(major)?;
        let client = source(
            &cluster,
            "SET password_encryption = 'scram-sha-256'; CREATE ROLE scram LOGIN REPLICATION PASSWORD 's€cret';
             CREATE ROLE clear LOGIN REPLICATION PASSWORD 'secret';
             SET password_encryption = 'md5'; CREATE ROLE hashed LOGIN REPLICATION PASSWORD 'secret'",
        )
        .await?;
        create_slot(&client, "s").await?;
        let hba = cluster.cluster.data.join("pg_hba.conf");
        let rules = "host all scram 127.0.0.1/32 scram-sha-256\nhost all clear 127.0.0.1/32 password\n\
                     host all hashed 127.0.0.1/32 md5\nhost all all 127.0.0.1/32 trust\n";
        std::fs::write(&hba, rules)?;
        // A new connection is judged by the new rules as soon as the postmaster has read them.
        client.batch_execute("SELECT pg_reload_conf()").await?;
        let reloaded =
            async { while cluster.config_as("scram", "app").connect(tokio_postgres::NoTls).await.is_ok() {} };
        timeout(PATIENCE, reloaded).await?;
        for (user, password) in [("scram", "s€cret"), ("clear", "secret"), ("hashed", "secret")] {
            let mut config = cluster.config_as(user, "app");
            let missing = ReplicationStream::start(&config, "s", "godwit_orders", Lsn::ZERO).await.err();
            assert!(matches!(missing, Some(Error::Unready(_))), "{user}: {missing:?}");
            let missing = postgres::connect(&config, "test").await.expect_err("no password");
            assert_eq!(missing.cause(), Cause::Credentials, "{user}: {missing:?}");
            config.password("wrong");
            let wrong = ReplicationStream::start(&config, "s", "godwit_orders", Lsn::ZERO).await.err();
            assert!(
                matches!(&wrong, Some(Error::Server { sqlstate, .. }) if sqlstate == "28P01"),
                "{user}: {wrong:?}"
            );
            config.password(password);
            let slot = format!("for_{user}");
            let made = ExportedSlot::create(&config, &slot).await?;
            assert!(made.consistent_point > Lsn::ZERO);
            drop(made);
            drop_slot(&client, &slot).await?;
        }
    }
    Ok(())
}

const SHOP: &str = r#"
CREATE ROLE app LOGIN;
CREATE SCHEMA shop;
CREATE TYPE shop.mood AS ENUM ('calm', 'cross');
CREATE DOMAIN shop.email AS text CHECK (VALUE LIKE '%@%');
CREATE SEQUENCE shop.ticket START 100 INCREMENT 5;
CREATE TABLE shop.customer (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, mail shop.email UNIQUE, mood shop.mood NOT NULL DEFAULT 'calm',
    "Odd ""name" text, "system_user" text, shout text GENERATED ALWAYS AS (upper("Odd ""name")) STORED);
CREATE TABLE shop.purchase (
    id serial PRIMARY KEY, customer bigint NOT NULL REFERENCES shop.customer ON DELETE CASCADE,
    ticket bigint DEFAULT nextval('shop.ticket'), placed date NOT NULL) ;
CREATE INDEX purchase_by_day ON shop.purchase (placed DESC) WHERE ticket IS NOT NULL;
CREATE TABLE shop.log (at date NOT NULL, what text) PARTITION BY RANGE (at);
CREATE TABLE shop.log_2026 PARTITION OF shop.log FOR VALUES FROM ('2026-01-01') TO ('2027-01-01');
CREATE VIEW shop.busy AS SELECT c.id, count(*) AS purchases FROM shop.customer c JOIN shop.purchase p ON p.customer = c.id GROUP BY c.id;
CREATE MATERIALIZED VIEW shop.moods AS SELECT mood, count(*) FROM shop.customer GROUP BY mood;
CREATE FUNCTION shop.note() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO shop.log VALUES (current_date, 'SET transaction_timeout = 0; \restrict');
    RETURN NEW;
END $$;
CREATE TRIGGER noted AFTER INSERT ON shop.purchase FOR EACH ROW EXECUTE FUNCTION shop.note();
CREATE TABLE note (body text);
ALTER TABLE note ENABLE ROW LEVEL SECURITY; CREATE POLICY mine ON note USING (body <> 'secret');
CREATE PUBLICATION other FOR ALL TABLES;
GRANT ALL ON ALL TABLES IN SCHEMA shop TO app; GRANT SELECT ON note TO app; GRANT USAGE ON SCHEMA shop TO app;
ALTER TABLE note OWNER TO app;
COMMENT ON TABLE note IS 'it''s';
CREATE SCHEMA godwit; CREATE TABLE godwit.epoch (x int);
CREATE FUNCTION godwit.refuse_write() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'fenced'; END $$;
CREATE TRIGGER godwit_fence BEFORE INSERT OR UPDATE OR DELETE OR TRUNCATE ON note FOR EACH STATEMENT EXECUTE FUNCTION godwit.refuse_write();
"#;

/// What the catalogue says of everything in `shop` and `public`, in words that do not depend on the version.
const DESCRIBE: &str = r"
SELECT 'relation ' || n.nspname || '.' || c.relname || ' ' || c.relkind::text || ' ' || pg_get_userbyid(c.relowner)
  FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname IN ('shop', 'public', 'godwit')
UNION ALL SELECT 'column ' || attrelid::regclass || '.' || attname || ' ' || format_type(atttypid, atttypmod) || ' ' || attnotnull
       || ' ' || attidentity::text || attgenerated::text || ' ' || coalesce(pg_get_expr(d.adbin, d.adrelid), '-')
  FROM pg_attribute a JOIN pg_class c ON c.oid = attrelid LEFT JOIN pg_attrdef d ON d.adrelid = attrelid AND d.adnum = attnum
  WHERE relnamespace IN ('shop'::regnamespace, 'public'::regnamespace) AND attnum > 0 AND relkind IN ('r', 'p', 'v', 'm')
UNION ALL SELECT 'constraint ' || conrelid::regclass || ' ' || conname || ' ' || pg_get_constraintdef(oid)
  FROM pg_constraint WHERE connamespace IN ('shop'::regnamespace, 'public'::regnamespace) AND contype <> 'n'
UNION ALL SELECT 'index ' || indexdef FROM pg_indexes WHERE schemaname = 'shop'
UNION ALL SELECT 'trigger ' || pg_get_triggerdef(oid) FROM pg_trigger WHERE NOT tgisinternal AND tgname <> 'godwit_fence'
UNION ALL SELECT 'function ' || prosrc FROM pg_proc WHERE pronamespace = 'shop'::regnamespace
UNION ALL SELECT 'enum ' || enumlabel FROM pg_enum
UNION ALL SELECT 'policy ' || polname || ' ' || pg_get_expr(polqual, polrelid) FROM pg_policy
UNION ALL SELECT 'may ' || c.relname || ' ' || has_table_privilege('app', c.oid, 'SELECT, INSERT') || has_schema_privilege('app', 'shop', 'USAGE')
  FROM pg_class c WHERE relnamespace = 'shop'::regnamespace AND relkind IN ('r', 'v')
UNION ALL SELECT 'sequence ' || sequencename || ' ' || start_value || ' ' || increment_by FROM pg_sequences WHERE schemaname = 'shop'
UNION ALL SELECT 'publication ' || pubname FROM pg_publication
ORDER BY 1";

async fn describe(client: &Client) -> Result<Vec<String>> {
    Ok(client.query(DESCRIBE, &[]).await?.iter().map(|row| row.get(0)).collect())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_schema_loads_across_major_versions_both_ways() -> Result<()> {
    let newest = other_major();
    for (from, to) in [(newest, 15), (15, newest)] {
        let (source, target) = (TestCluster::start(from)?, TestCluster::start(to)?);
        let origin = source.create_database_of_superuser("shop", SHOP).await?;
        let copy = target.create_database_of_superuser("shop", "CREATE ROLE app LOGIN").await?;
        let mut config = source.config_as(SUPERUSER, "shop");
        config.password("not in any argument list");
        let dump = schema::dump(&config, bin_directory(from).as_deref()).await?;

        copy.batch_execute("SET search_path = shop, public; SET statement_timeout = '1h'").await?;
        copy.batch_execute("BEGIN").await?;
        schema::load(&copy, &dump.pre_data).await.context("before the rows")?;
        copy.batch_execute(
            "INSERT INTO shop.customer (mail, \"Odd \"\"name\") VALUES ('a@b', 'quiet');
             INSERT INTO shop.purchase (customer, placed) VALUES (1, '2026-03-04')",
        )
        .await?;
        schema::load(&copy, &dump.post_data.text().await?).await.context("after the rows")?;
        copy.batch_execute("COMMIT").await?;

        let settings = copy
            .query_one("SELECT current_setting('search_path'), current_setting('statement_timeout'), current_setting('check_function_bodies')", &[])
            .await?;
        let settings: [&str; 3] = [settings.get(0), settings.get(1), settings.get(2)];
        assert_eq!(settings, ["shop, public", "1h", "on"]);
        copy.batch_execute("RESET search_path").await?;
        let not_ours = |line: &String| !line.contains("godwit") && !line.starts_with("publication");
        let expected: Vec<String> = describe(&origin).await?.into_iter().filter(not_ours).collect();
        assert_eq!(describe(&copy).await?, expected, "from {from} to {to}");
        let row = copy.query_one("SELECT shout, (SELECT ticket FROM shop.purchase), (SELECT count FROM shop.moods) FROM shop.customer", &[]).await?;
        assert_eq!((row.get::<_, &str>(0), row.get::<_, i64>(1), row.get::<_, i64>(2)), ("QUIET", 100, 1));
        copy.batch_execute("INSERT INTO shop.purchase (customer, placed) VALUES (1, '2026-03-05')").await?;
        assert!(
            copy.batch_execute("INSERT INTO shop.purchase (customer, placed) VALUES (7, now())")
                .await
                .is_err()
        );

        // An error says where.
        let broken = schema::load(&copy, "SELECT 1;\nCREATE TABLE shop.oops (x no_such_type);\n").await;
        let broken = broken.expect_err("no such type").to_string();
        assert!(broken.contains("CREATE TABLE shop.oops"), "{broken}");
    }
    if newest > 15 {
        let server = TestCluster::start(newest)?;
        let error =
            schema::dump(&server.config_as(SUPERUSER, "postgres"), bin_directory(15).as_deref()).await;
        let error = error.expect_err("too old");
        assert!(matches!(error, Error::Unready(_)), "{error}");
        assert!(
            error.to_string().contains(&format!("is version 15 and cannot dump the PostgreSQL {newest}")),
            "{error}"
        );
    }
    Ok(())
}

/// What a stream ends with, whatever else comes before.
async fn end_of(stream: &mut ReplicationStream) -> Result<Error> {
    let end = async {
        loop {
            if let Err(error) = stream.next().await {
                break error;
            }
        }
    };
    timeout(PATIENCE, end).await.context("the stream goes on")
}

#[tokio::test(flavor = "multi_thread")]
async fn what_ends_a_stream_is_known_for_what_it_is() -> Result<()> {
    for major in majors() {
        let settings = "max_slot_wal_keep_size = '1MB'\nmax_wal_size = '32MB'\nmin_wal_size = '32MB'\n";
        let cluster = TestCluster::start_with(major, settings)?;
        let client = source(&cluster, "CREATE TABLE t (id bigserial PRIMARY KEY, body text)").await?;
        let config = cluster.config_as(SUPERUSER, "app");
        let start = || ReplicationStream::start(&config, "s", "godwit_orders", Lsn::ZERO);

        let gone = start().await.err().context("no slot")?;
        assert_eq!((gone.cause(), gone.kind()), (Cause::SlotGone, ErrorKind::Operator), "{gone}");

        create_slot(&client, "s").await?;
        let mut stream = start().await?;
        client
            .execute(
                "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = 's'",
                &[],
            )
            .await?;
        let ended = end_of(&mut stream).await?;
        assert_eq!((ended.cause(), ended.kind()), (Cause::Shutdown, ErrorKind::Retry), "{ended}");

        // The old walsender may hold the slot for a moment.
        let mut stream = loop {
            match start().await {
                Ok(stream) => break stream,
                Err(error) => assert_eq!(error.cause(), Cause::InUse, "{error}"),
            }
        };
        client.batch_execute("DROP PUBLICATION godwit_orders").await?;
        client.batch_execute("INSERT INTO t DEFAULT VALUES").await?;
        let ended = end_of(&mut stream).await?;
        assert_eq!((ended.cause(), ended.kind()), (Cause::PublicationGone, ErrorKind::Operator), "{ended}");
        drop(stream);
        // One that is there again by then does not bring back what was written meanwhile.
        client.batch_execute("CREATE PUBLICATION godwit_orders FOR TABLE t").await?;
        let mut stream = loop {
            match start().await {
                Ok(stream) => break stream,
                Err(error) => assert_eq!(error.cause(), Cause::InUse, "{error}"),
            }
        };
        let ended = end_of(&mut stream).await?;
        assert_eq!(ended.cause(), Cause::PublicationGone, "{ended}");
        drop(stream);

        // WAL that the slot is not allowed to keep.
        let info = loop {
            client
                .batch_execute("INSERT INTO t (body) SELECT repeat('x', 2000) FROM generate_series(1, 20000)")
                .await?;
            client.batch_execute("CHECKPOINT").await?;
            let info = slot_info(&client, "s").await?.context("there")?;
            if info.wal_status == "lost" {
                break info;
            }
        };
        assert!(!info.active);
        let lost = start().await.err().context("WAL is gone")?;
        assert_eq!((lost.cause(), lost.kind()), (Cause::WalRemoved, ErrorKind::Operator), "{lost}");
    }
    Ok(())
}
