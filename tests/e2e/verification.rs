//! Verification of live data: clean under load, exact to the key where something differs.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use async_trait::async_trait;
use godwit_tests::postgres::{TestCluster, other_major, wal_position};
use replicator::copy::CopyOptions;
use replicator::link::memory::Options as LinkOptions;
use replicator::lsn::Lsn;
use replicator::pump::{LocalEnd, LocalPeer};
use replicator::spill::Spill;
use replicator::status::Phase;
use replicator::verify::{Difference, Follower, Go, Happening, Kind, Options, Pace, Patience, Progress, run};
use tokio::sync::watch;
use tokio_postgres::Client;
use tokio_util::sync::CancellationToken;

use crate::stream::{Running, spec};

/// Two databases that stand still.
struct Still;

#[async_trait]
impl Follower for Still {
    async fn applied(&self, _: Lsn) -> Result<(), replicator::Error> {
        Ok(())
    }

    fn lag(&self) -> Option<u64> {
        Some(0)
    }
}

#[derive(Debug, Default)]
pub(crate) struct Told {
    pub(crate) differences: Vec<Difference>,
    pub(crate) notes: Vec<String>,
    progress: Vec<Progress>,
}

impl Told {
    /// `table key what columns`, sorted.
    pub(crate) fn lines(&self) -> BTreeSet<String> {
        let line = |difference: &Difference| {
            let key: Vec<&str> = difference.key.iter().map(|(_, value)| value.as_str()).collect();
            let columns: Vec<&str> = difference.columns.iter().map(|column| column.name.as_str()).collect();
            format!("{} {} {:?} {}", difference.table, key.join(","), difference.kind, columns.join(","))
                .trim_end()
                .to_owned()
        };
        self.differences.iter().map(line).collect()
    }
}

pub(crate) fn quick() -> Options {
    Options { pace: Pace { duty: 1.0, ..Pace::default() }, ..Options::default() }
}

pub(crate) async fn verify(
    source: &Client,
    target: &Client,
    follower: &dyn Follower,
    options: &Options,
) -> Result<(Progress, Told)> {
    let mut told = Told::default();
    let (_keep, go) = watch::channel(Go::Run);
    let mut happening = |happening| {
        match happening {
            Happening::Difference(difference) => told.differences.push(difference),
            Happening::Note(note) => told.notes.push(note),
            Happening::Progress(progress) => told.progress.push(progress),
        }
        Ok(())
    };
    let progress = run(source, target, follower, options, Progress::default(), go, &mut happening).await?;
    Ok((progress, told))
}

fn set(lines: &[&str]) -> BTreeSet<String> {
    lines.iter().map(|line| (*line).to_owned()).collect()
}

const BENCH: &str = "
CREATE TABLE branches (bid int PRIMARY KEY, balance int, filler char(88));
CREATE TABLE tellers (tid int PRIMARY KEY, bid int, balance int, filler char(84));
CREATE TABLE accounts (aid int PRIMARY KEY, bid int, balance int, filler char(84));
CREATE TABLE history (tid int, bid int, aid int, delta int, at timestamptz); ALTER TABLE history REPLICA IDENTITY FULL;
CREATE TABLE queue (id int PRIMARY KEY, note text);
CREATE TABLE moving (id int, day int, note text, PRIMARY KEY (day, id)) PARTITION BY RANGE (day);
CREATE TABLE moving_1 PARTITION OF moving FOR VALUES FROM (0) TO (10);
CREATE TABLE moving_2 PARTITION OF moving FOR VALUES FROM (10) TO (20);
CREATE TABLE words (region text, word varchar(40), n numeric, PRIMARY KEY (region, word));
CREATE TABLE cold (id bigint PRIMARY KEY, a text, b text, c int);
INSERT INTO branches VALUES (1, 0, '');
INSERT INTO tellers SELECT g, 1, 0, '' FROM generate_series(1, 10) g;
INSERT INTO accounts SELECT g, 1, 0, '' FROM generate_series(1, 60000) g;
INSERT INTO moving SELECT g, g % 20, 'm' FROM generate_series(1, 2000) g;
INSERT INTO words SELECT 'r' || g % 3, 'w' || md5(g::text), g FROM generate_series(1, 5000) g;
INSERT INTO cold SELECT g, 'a' || g, 'b' || g, g FROM generate_series(1, 5000) g;
";

/// What pgbench does, and worse: keys that change, rows that come and go, rows that change their partition.
async fn write(dsn: replicator::postgres::Dsn, writer: u32, stop: CancellationToken) -> Result<u64> {
    let client = replicator::postgres::connect(&dsn, "writer").await?;
    let mut done = 0_u64;
    let mut luck = 0x0139_408d_cbbf_7a44_u64 ^ u64::from(writer) << 32;
    while !stop.is_cancelled() {
        luck ^= luck << 13;
        luck ^= luck >> 7;
        luck ^= luck << 17;
        let (aid, tid, delta) = (1 + luck % 60_000, 1 + luck % 10, luck % 7);
        let id = u64::from(writer) * 500 + 1 + luck % 500;
        client
            .batch_execute(&format!(
                "BEGIN;
                 UPDATE accounts SET balance = balance + {delta} - 3 WHERE aid = {aid};
                 UPDATE tellers SET balance = (balance + {delta}) % 5 WHERE tid = {tid};
                 UPDATE branches SET balance = (balance + {delta}) % 5 WHERE bid = 1;
                 INSERT INTO history VALUES ({tid}, 1, {aid}, {delta}, now());
                 INSERT INTO queue VALUES ({writer}, 'x') ON CONFLICT (id) DO UPDATE SET note = queue.note || 'x';
                 DELETE FROM queue WHERE id = {writer} AND length(note) > 2;
                 UPDATE moving SET day = (day + 7) % 20 WHERE id = {id};
                 UPDATE words SET word = 'w' || md5(word || {delta}) WHERE region = 'r{writer}' AND n = {id};
                 COMMIT"
            ))
            .await?;
        done += 1;
    }
    Ok(done)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clean_under_load_and_every_injected_difference_by_its_key() -> Result<()> {
    let (old, new) = (TestCluster::start(15)?, TestCluster::start(other_major())?);
    let from = old.create_database("shop", BENCH).await?;
    let to = new.create_database("shop", "").await?;
    replicator::fence::install(&from, "shop", 1).await?;
    replicator::fence::install(&to, "shop", 1).await?;
    let peer = LocalPeer::new(
        LocalEnd::Target { dsn: new.config("shop") },
        LinkOptions { delay: Duration::from_millis(3) },
    );
    let end = LocalEnd::Source {
        dsn: old.config("shop"),
        bin: Some(new.cluster.bin.clone()),
        spill: Spill::default(),
        copy: CopyOptions::default(),
    };
    let stream = Running::start(peer, spec(1), end);
    stream.wait(|status| status.phase == Phase::Streaming).await?;
    let stop = CancellationToken::new();
    let writers: Vec<_> = (0..2).map(|n| tokio::spawn(write(old.config("shop"), n, stop.clone()))).collect();

    let (source, target) = (old.connect("shop").await?, new.connect("shop").await?);
    for round in 0..2 {
        let began = Instant::now();
        let (progress, told) = verify(&source, &target, &stream.status, &quick()).await?;
        println!("round {round}: {} rows in {:?}, {:?}", progress.rows, began.elapsed(), told.notes);
        ensure!(told.differences.is_empty(), "a false alarm: {:?}", told.differences);
        ensure!(progress.rows > 72_000 && progress.tables == 9, "{progress:?}");
    }

    // Rows that no writer touches.
    to.batch_execute(
        "SET session_replication_role = replica;
         UPDATE cold SET c = c + 1 WHERE id = 77;
         DELETE FROM cold WHERE id = 4999;
         INSERT INTO cold VALUES (900000, 'x', 'y', 1);
         UPDATE cold SET a = b, b = a WHERE id = 2500;
         UPDATE words SET n = n + 1 WHERE region = 'r2' AND n = 2000",
    )
    .await?;
    from.batch_execute("UPDATE cold SET a = '' WHERE id = 1").await?;
    let now = wal_position(&from).await?;
    stream.wait(|status| status.applied_lsn >= now).await?;
    to.batch_execute("UPDATE cold SET a = NULL WHERE id = 1").await?;
    let word: String = from.query_one("SELECT word FROM words WHERE n = 2000", &[]).await?.get(0);
    let began = Instant::now();
    let (progress, told) = verify(&source, &target, &stream.status, &quick()).await?;
    println!("with differences: {} rows in {:?}", progress.rows, began.elapsed());
    let expected = set(&[
        "public.cold 1 Changed a",
        "public.cold 77 Changed c",
        "public.cold 2500 Changed a,b",
        "public.cold 4999 Missing",
        "public.cold 900000 Extra",
        &format!("public.words r2,{word} Changed n"),
    ]);
    assert_eq!(told.lines(), expected);
    assert!(told.differences.iter().flat_map(|d| &d.columns).all(|column| column.values.is_none()));
    let values = Options { values: true, tables: Some(vec!["cold".into()]), ..quick() };
    let (_, told) = verify(&source, &target, &stream.status, &values).await?;
    let first = told.differences.iter().find(|d| d.key[0].1 == "1").context("the first row")?;
    assert_eq!(first.columns[0].values, Some((Some(String::new()), None)));

    stop.cancel();
    let mut written = 0;
    for writer in writers {
        written += writer.await??;
    }
    println!("{written} transactions were written meanwhile");
    ensure!(written > 100, "too little was written to prove anything");
    stream.stop().await
}

/// A commit that is in the log, and so on the target, but that the source does not show yet: it waits for a standby, or its process was
/// stopped right there. It is the newest transaction of the source, and no snapshot lists it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_newest_commit_is_no_difference_before_the_source_shows_it() -> Result<()> {
    let settings = "synchronous_standby_names = 'nobody'\nsynchronous_commit = local\nautovacuum = off\n";
    let (old, new) = (TestCluster::start_with(15, settings)?, TestCluster::start(other_major())?);
    let rows =
        "CREATE TABLE t (id int PRIMARY KEY, v int); INSERT INTO t SELECT g, 1 FROM generate_series(1, 50) g";
    let source = old.create_database("shop", rows).await?;
    let target = new.create_database("shop", rows).await?;
    let (writer, watcher) = (old.connect("shop").await?, old.connect("shop").await?);
    let pid: i32 = writer.query_one("SELECT pg_backend_pid()", &[]).await?.get(0);
    let write = tokio::spawn(async move {
        writer.batch_execute("SET synchronous_commit = on; UPDATE t SET v = 2 WHERE id = 7").await
    });
    let deadline = Instant::now() + Duration::from_secs(60);
    let waits = "SELECT count(*) FROM pg_stat_activity WHERE pid = $1 AND wait_event = 'SyncRep'";
    while watcher.query_one(waits, &[&pid]).await?.get::<_, i64>(0) == 0 {
        ensure!(Instant::now() < deadline, "the commit does not wait");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    target.batch_execute("UPDATE t SET v = 2 WHERE id = 7").await?;
    let snapshot: String = watcher.query_one("SELECT pg_current_snapshot()::text", &[]).await?.get(0);
    ensure!(snapshot.ends_with(':'), "the snapshot lists it: {snapshot}");

    let options = Options {
        patience: Patience { hold_after: None, give_up_after: 2, ..Patience::default() },
        ..quick()
    };
    let (_, told) = verify(&source, &target, &Still, &options).await?;
    assert_eq!(told.lines(), set(&["public.t 7 Unsettled"]), "nothing is proven of it");
    watcher.execute("SELECT pg_cancel_backend($1)", &[&pid]).await?;
    write.await??;
    let (_, told) = verify(&source, &target, &Still, &options).await?;
    assert_eq!(told.lines(), BTreeSet::new());
    Ok(())
}

const ODD: &str = r#"
CREATE TABLE "Empty ""One" ();
CREATE TABLE nothing (id int PRIMARY KEY);
CREATE TABLE columnless ();
CREATE TABLE kinds (id int PRIMARY KEY, f8 float8, n numeric, j json, p point, c char(6), g int
    GENERATED ALWAYS AS (id * 2) STORED, t timestamptz, i interval, b bytea, d date);
CREATE TABLE doubles (f float8 PRIMARY KEY, v text);
CREATE TABLE numbers (n numeric PRIMARY KEY);
CREATE TABLE codes (c char(5), u uuid, v int, UNIQUE (c, u));
CREATE TABLE wide (a text, b int, c text, d date, e boolean, v int, PRIMARY KEY (e, d, c, b, a));
CREATE TABLE heap (a int, b text);
CREATE UNLOGGED TABLE scratch (id int PRIMARY KEY);
CREATE TABLE big (id int PRIMARY KEY, body text, raw bytea);
ALTER TABLE big ALTER body SET STORAGE EXTERNAL, ALTER raw SET STORAGE EXTERNAL;
CREATE SEQUENCE numbers_seq;
INSERT INTO kinds (id, f8, n, j, p, c, t, i, b, d) VALUES
  (1, 'NaN', 'NaN', '{"a":  1}', '(1,2)', 'ab', '2024-02-29 10:00+05:30', '1 mon -3 days', '\x00ff', 'infinity'),
  (2, '-0', 1.10, 'null', '(0,-0)', '', '-infinity', '0', '', '0044-03-15 BC'), (3, 0, 1.1, NULL, NULL, NULL, NULL, NULL, NULL, NULL);
INSERT INTO doubles VALUES ('NaN', 'n'), ('-0', 'z'), ('Infinity', 'i'), (1e-300, 's'), (0.1, 't');
INSERT INTO numbers VALUES (1.0), ('NaN'), (123456789012345678901234567890.123);
INSERT INTO codes VALUES ('a', 'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11', 1), ('a', NULL, 2), (NULL, NULL, 3);
INSERT INTO wide SELECT 'Ä' || g, g, E'tab\t''quote''\\ ' || g % 7, date '2024-01-01' + g, g % 2 = 0, g FROM generate_series(1, 3000) g;
INSERT INTO heap SELECT g % 100, 'h' || g % 100 FROM generate_series(1, 5000) g;
INSERT INTO scratch VALUES (1);
INSERT INTO columnless SELECT FROM generate_series(1, 7);
"#;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn odd_tables_and_values() -> Result<()> {
    let (old, new) = (TestCluster::start(15)?, TestCluster::start(other_major())?);
    // Other defaults, another order of text.
    let settings =
        "ALTER DATABASE odd SET \"DateStyle\" = 'SQL, DMY'; ALTER DATABASE odd SET extra_float_digits = -3;
        ALTER DATABASE odd SET bytea_output = 'escape'; ALTER DATABASE odd SET \"TimeZone\" = 'Asia/Kolkata'";
    let a = old.create_database_of_superuser("odd", "").await?;
    let admin = new.connect("postgres").await?;
    admin.batch_execute("CREATE DATABASE odd TEMPLATE template0 ENCODING 'UTF8' LOCALE 'C'").await?;
    admin.batch_execute(settings).await?;
    let b = new.connect("odd").await?;
    a.batch_execute(ODD).await?;
    b.batch_execute(ODD).await?;
    for client in [&a, &b] {
        replicator::fence::install(client, "odd", 1).await?;
        client
            .batch_execute(
                "INSERT INTO big SELECT g, repeat(md5(g::text), 3200000), convert_to(repeat('ab', 30000000), 'UTF8')
                 FROM generate_series(1, 2) g; ANALYZE",
            )
            .await?;
    }
    let began = Instant::now();
    let (source, target) = (old.connect("odd").await?, new.connect("odd").await?);
    let (progress, told) = verify(&source, &target, &Still, &quick()).await?;
    println!("{progress:?} in {:?}, {:?}", began.elapsed(), told.notes);
    assert_eq!(told.lines(), BTreeSet::new());
    ensure!(told.notes.iter().any(|note| note.contains("public.scratch is unlogged")), "{:?}", told.notes);
    ensure!(progress.rows == 3 + 5 + 3 + 3 + 3000 + 5000 + 2 + 7, "{progress:?}");

    b.batch_execute(
        "UPDATE kinds SET f8 = 0 WHERE id = 2; UPDATE kinds SET n = 1.10 WHERE id = 3; UPDATE doubles SET f = 0 WHERE v = 'z';
         UPDATE numbers SET n = 1.00 WHERE n = 1; UPDATE codes SET v = 9 WHERE v = 3;
         UPDATE wide SET a = upper(a) || '!' WHERE b = 1234; UPDATE wide SET v = -1 WHERE b = 2345;
         DELETE FROM heap WHERE ctid IN (SELECT ctid FROM heap WHERE a = 5 LIMIT 1); INSERT INTO columnless SELECT;
         UPDATE big SET raw = set_byte(raw, 59999999, 1) WHERE id = 2;
         CREATE TABLE extra (id int); ALTER TABLE nothing ADD more int; DROP SEQUENCE numbers_seq",
    )
    .await?;
    a.batch_execute("CREATE TABLE lonely (id int)").await?;
    let (_, told) = verify(&source, &target, &Still, &quick()).await?;
    let lines = told.lines();
    for line in [
        "public.big 2 Changed raw",
        "public.doubles -0 Changed f",
        "public.extra  TableExtra",
        "public.kinds 2 Changed f8",
        "public.kinds 3 Changed n",
        "public.lonely  TableMissing",
        "public.nothing  ColumnsMissing more (target only)",
        "public.numbers 1.0 Changed n",
        "public.numbers_seq  SequenceMissing",
        "public.wide false,2030-06-03,tab\t'quote'\\ 0,2345,Ä2345 Changed v",
    ] {
        ensure!(lines.contains(line), "{line:?} is not among {lines:#?}");
    }
    let of = |table: &str| -> Vec<Kind> {
        told.differences.iter().filter(|d| d.table == table).map(|d| d.kind).collect()
    };
    assert_eq!(of("public.wide").len(), 3, "{lines:#?}");
    assert_eq!(of("public.heap"), [Kind::Changed], "one of fifty equal rows is gone");
    assert_eq!(of("public.codes").len(), 2, "a row without a key: another hash on each side");
    assert_eq!(of("public.columnless"), [Kind::Changed]);
    assert_eq!(told.differences.len(), 16, "{lines:#?}");
    // One that goes on from where another ended before it stood anywhere begins as that did.
    let (progress, again) = verify(&source, &target, &Still, &quick()).await?;
    assert_eq!((again.lines(), progress.differences), (lines, 16));
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_goes_on_where_it_stood_and_many_tables_are_quick() -> Result<()> {
    let cluster = TestCluster::start(15)?;
    let schema = "CREATE TABLE large (id int PRIMARY KEY, v text);
        INSERT INTO large SELECT g, 'v' || g FROM generate_series(1, 200000) g;
        CREATE TABLE afterwards (id int PRIMARY KEY); INSERT INTO afterwards VALUES (1)";
    let a = cluster.create_database_of_superuser("one", schema).await?;
    let b = cluster.create_database_of_superuser("two", schema).await?;
    for client in [&a, &b] {
        let many = "DO $$ BEGIN FOR n IN 1..2000 LOOP EXECUTE format('CREATE TABLE t%s (id int PRIMARY KEY, v text)', n);
            EXECUTE format('INSERT INTO t%s SELECT g, g FROM generate_series(1, 3) g', n); END LOOP; END $$";
        client.batch_execute(many).await?;
        client.batch_execute("ANALYZE").await?;
    }
    b.batch_execute("UPDATE large SET v = 'damaged' WHERE id IN (3, 199990); DELETE FROM t1999 WHERE id = 2")
        .await?;
    let options = Options {
        pace: Pace { statement: Duration::from_millis(30), duty: 1.0, ..Pace::default() },
        ..quick()
    };

    // Ended midway in the large table: what the last word was is all that is kept.
    let (_keep, go) = watch::channel(Go::Run);
    let mut last = None;
    let mut first = BTreeSet::new();
    let mut happening = |happening| {
        match happening {
            Happening::Difference(difference) => drop(first.insert(format!("{:?}", difference.key))),
            Happening::Progress(progress) => {
                let midway = progress.table.as_deref() == Some("public.large") && progress.rows > 60_000;
                last = Some(progress);
                if midway {
                    return Err(replicator::Error::Link("killed".into()));
                }
            }
            Happening::Note(_) => {}
        }
        Ok(())
    };
    let killed = run(&a, &b, &Still, &options, Progress::default(), go, &mut happening).await;
    ensure!(killed.is_err(), "it was not ended");
    let last = last.context("progress")?;
    ensure!(last.after.is_some() && last.rows < 150_000, "{last:?}");

    let (keep, go) = watch::channel(Go::Pause);
    let mut rest = Told::default();
    let mut happening = |happening| {
        match happening {
            Happening::Difference(difference) => rest.differences.push(difference),
            Happening::Progress(progress) => rest.progress.push(progress),
            Happening::Note(_) => {}
        }
        Ok(())
    };
    let began = Instant::now();
    {
        let mut resumed = std::pin::pin!(run(&a, &b, &Still, &options, last.clone(), go, &mut happening));
        if tokio::time::timeout(Duration::from_millis(200), &mut resumed).await.is_ok() {
            bail!("it did not pause");
        }
        keep.send(Go::Run)?;
        resumed.await?;
    }
    println!("from {last:?} on: {:?}", began.elapsed());
    let end = rest.progress.last().context("progress")?;
    ensure!(end.rows >= 206_001 && end.rows < 206_001 + 60_000, "{end:?}");
    ensure!(end.tables_done == 2002, "{end:?}");
    for difference in &rest.differences {
        first.insert(format!("{:?}", difference.key));
    }
    let expected: BTreeSet<String> =
        ["3", "199990", "2"].map(|id| format!("{:?}", [("id".to_owned(), id.to_owned())])).into();
    assert_eq!(first, expected);

    let tables = (1..=2000).map(|n| format!("t{n}")).collect();
    let began = Instant::now();
    let (progress, told) = verify(&a, &b, &Still, &Options { tables: Some(tables), ..quick() }).await?;
    println!("2,000 tables in {:?}", began.elapsed());
    assert_eq!(told.lines(), set(&["public.t1999 2 Missing"]));
    ensure!(progress.rows >= 5_997, "{progress:?}");
    Ok(())
}

/// What keeps a table from being compared is told, not passed over.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_dropped_during_the_run_and_a_rate() -> Result<()> {
    let cluster = TestCluster::start(15)?;
    let schema = "CREATE TABLE a_first (id int PRIMARY KEY); INSERT INTO a_first SELECT generate_series(1, 4000);
        CREATE TABLE b_gone (id int PRIMARY KEY); INSERT INTO b_gone SELECT generate_series(1, 4000);
        CREATE TABLE c_half (id int PRIMARY KEY); INSERT INTO c_half SELECT generate_series(1, 4000); ANALYZE";
    let a = cluster.create_database_of_superuser("one", schema).await?;
    let b = cluster.create_database_of_superuser("two", schema).await?;
    let (one, two) = (cluster.connect("one").await?, cluster.connect("two").await?);
    let options =
        Options { pace: Pace { rows_per_second: Some(4_000), duty: 1.0, ..Pace::default() }, ..quick() };
    let dropped = Arc::new(tokio::sync::Notify::new());
    let started = dropped.clone();
    let dropper = tokio::spawn(async move {
        started.notified().await;
        one.batch_execute("DROP TABLE b_gone").await?;
        two.batch_execute("DROP TABLE b_gone, c_half").await
    });
    let mut told = Told::default();
    let (_keep, go) = watch::channel(Go::Run);
    let began = Instant::now();
    let mut happening = |happening| {
        match happening {
            Happening::Difference(difference) => told.differences.push(difference),
            Happening::Note(note) => told.notes.push(note),
            Happening::Progress(progress) => {
                if progress.rows > 0 {
                    dropped.notify_one();
                }
                told.progress.push(progress);
            }
        }
        Ok(())
    };
    run(&a, &b, &Still, &options, Progress::default(), go, &mut happening).await?;
    dropper.await??;
    let took = began.elapsed();
    assert_eq!(told.lines(), set(&["public.c_half  TableMissing"]));
    ensure!(told.notes.iter().any(|note| note == "public.b_gone was dropped"), "{:?}", told.notes);
    ensure!(
        took > Duration::from_millis(850),
        "4,000 rows at 4,000 a second took only {took:?}: {:?}",
        told.progress
    );
    Ok(())
}
