//! Sessions through a cutover: what goes with them, what ends them, what they are told.

use rustix::process::{Pid, Signal, kill_process};

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_prepared_statement_that_is_too_long_keeps_its_session_where_it_is() {
    let setup = Setup::start().await;
    let session = setup.session().await;
    let text = |count: usize| format!("SELECT 7 -- {}", "x".repeat(count));
    let carried = setup.connect().await;
    let short = carried.prepare(&text(1 << 19)).await.unwrap();
    let long = session.client.prepare(&text(1 << 20)).await.unwrap();
    // A move that is undone.
    setup.hold().await;
    setup.front.turnstile.open();
    assert_eq!(session.client.query_one(&long, &[]).await.unwrap().get::<_, i32>(0), 7);
    setup.cutover().await;
    assert_eq!(carried.query_one(&short, &[]).await.unwrap().get::<_, i32>(0), 7);
    let (state, detail) = session.error().await;
    assert_eq!(state, "57P01");
    assert!(detail.contains("a prepared statement of more than 1 MiB (s"), "{detail}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_keeps_all_it_has() {
    let setup = Setup::with(HOLD, |settings| settings.settings = vec!["hidden.value".into()], "").await;
    let mut session = setup.session().await;
    let client = &session.client;
    let own_pid: i32 = client.query_one("SELECT pg_backend_pid()", &[]).await.unwrap().get(0);
    client
        .batch_execute(
            "SET work_mem = '7MB'; SET search_path = pg_catalog, public; SET TimeZone = 'Asia/Tokyo';
             SET app.tenant = 'it''s \"7\"'; SET ROLE clerk; LISTEN news; LISTEN \"Odd \"\"One\";
             SET application_name = 'mover';
             DO $$ BEGIN PERFORM set_config('hidden' || '.value', 'x', false); END $$",
        )
        .await
        .unwrap();
    client.batch_execute("PREPARE twice (int) AS SELECT $1 * 2").await.unwrap();
    let prepared = client.prepare("SELECT $1::int + 1, $2::mood::text").await.unwrap();
    for round in 1..=4 {
        setup.cutover().await;
        assert_eq!(port(client).await, i32::from(setup.here().cluster.port));
        let mood = client.query_one(&prepared, &[&round, &Mood]).await.unwrap();
        assert_eq!((mood.get::<_, i32>(0), mood.get::<_, String>(1)), (round + 1, "glad".into()));
        let row = client
            .query_one(
                "SELECT current_setting('work_mem'), current_setting('search_path'), current_setting('TimeZone'),
                        current_setting('app.tenant'), current_user::text, current_setting('application_name'),
                        current_setting('hidden.value'), session_user::text",
                &[],
            )
            .await
            .unwrap();
        let values: Vec<String> = (0..8).map(|at| row.get(at)).collect();
        let expected =
            ["7MB", "pg_catalog, public", "Asia/Tokyo", "it's \"7\"", "clerk", "mover", "x", "app"];
        assert_eq!(values, expected);
        let twice = client.query_one("EXECUTE twice (21)", &[]).await.unwrap();
        assert_eq!(twice.get::<_, i32>(0), 42);
        let other = setup.here().connect(DATABASE).await.unwrap();
        other.batch_execute("NOTIFY news, 'from outside'; NOTIFY \"Odd \"\"One\"").await.unwrap();
        client.batch_execute("NOTIFY news, 'mine'").await.unwrap();
    }
    for _ in 1..=4 {
        let mut told = Vec::new();
        for _ in 0..3 {
            let (channel, payload, pid) = session.notification().await;
            told.push((channel, payload.clone()));
            assert_eq!(pid == own_pid, payload == "mine", "it knows itself by its first number");
        }
        told.sort();
        let expected = [("Odd \"One", ""), ("news", "from outside"), ("news", "mine")];
        assert_eq!(told, expected.map(|(channel, payload)| (channel.to_owned(), payload.to_owned())));
    }
    assert_eq!(setup.front.turnstile.stats().running, 1);
}

/// `'glad'::mood`, whatever number the type has.
#[derive(Debug)]
struct Mood;

impl tokio_postgres::types::ToSql for Mood {
    fn to_sql(
        &self,
        _: &tokio_postgres::types::Type,
        out: &mut bytes::BytesMut,
    ) -> Result<tokio_postgres::types::IsNull, Box<dyn std::error::Error + Sync + Send>> {
        out.extend_from_slice(b"glad");
        Ok(tokio_postgres::types::IsNull::No)
    }

    fn accepts(_: &tokio_postgres::types::Type) -> bool {
        true
    }

    tokio_postgres::types::to_sql_checked!();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_go_ends_the_session_and_says_so() {
    let setup = Setup::start().await;
    for (sql, what) in [
        ("CREATE TEMP TABLE basket (id int)", "a temporary object (basket)"),
        ("BEGIN; DECLARE kept CURSOR WITH HOLD FOR SELECT 1; COMMIT", "a cursor WITH HOLD (kept)"),
        ("CREATE FUNCTION pg_temp.f() RETURNS int LANGUAGE sql RETURN 1", "a temporary object (f)"),
    ] {
        let (stays, ends) = (setup.connect().await, setup.session().await);
        ends.client.batch_execute(sql).await.unwrap();
        setup.hold().await;
        setup.fence().await;
        setup.swap().await;
        assert_eq!(port(&stays).await, i32::from(setup.here().cluster.port));
        let (state, detail) = ends.error().await;
        assert_eq!(state, "57P01", "{sql}");
        assert_eq!(detail, format!("What it has and cannot be carried: {what}."), "{sql}");
    }
    // Something that the other side does not take: named too.
    let ends = setup.session().await;
    let only_here = setup.here().connect(DATABASE).await.unwrap();
    only_here.batch_execute("CREATE TABLE only_here (id int); GRANT ALL ON only_here TO app").await.unwrap();
    let _statement = ends.client.prepare("SELECT id FROM only_here").await.unwrap();
    setup.cutover().await;
    let (state, detail) = ends.error().await;
    assert_eq!(state, "57P01");
    assert!(detail.contains("the prepared statement \"s"), "{detail}");
    assert!(detail.contains("relation \"only_here\" does not exist"), "{detail}");
    // A PREPARE among other statements: its text is theirs, which are not done twice.
    let ends = setup.session().await;
    ends.client.batch_execute("INSERT INTO item VALUES (1, 'once'); PREPARE p AS SELECT 1").await.unwrap();
    setup.cutover().await;
    let (state, detail) = ends.error().await;
    assert_eq!(state, "57P01");
    assert!(detail.contains("the prepared statement \"p\": cannot insert multiple commands"), "{detail}");
    let there = setup.here().connect(DATABASE).await.unwrap();
    assert_eq!(there.query("SELECT FROM item", &[]).await.unwrap().len(), 0);
}

/// Advisory locks as their holder knows them: each is taken as often as it was, here and there, and nobody else gets one meanwhile.
/// Of a move that is undone after its fence: before anybody else runs, locks are held and channels listened to again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_others_might_get_is_a_sessions_own_again_when_a_move_is_undone() {
    for pool in [None, Some(super::pooled::POOL_OF_FIVE)] {
        let setup = Setup::with(HOLD, |settings| settings.pool = pool, "").await;
        let mut holds = setup.session().await;
        let (other, silent) = (setup.connect().await, setup.connect().await);
        holds.client.batch_execute("SELECT pg_advisory_lock(7); LISTEN news").await.unwrap();
        for client in [&other, &silent] {
            client.batch_execute("SELECT 1").await.unwrap();
        }
        for round in 0..3 {
            setup.hold().await;
            setup.fence().await;
            let turnstile = &setup.front.turnstile;
            turnstile.go_back(setup.front.active().zone.clone());
            tokio::time::timeout(DEADLINE, turnstile.prepared()).await.expect("prepared");
            // What is said there now, it hears: it is not yet let in itself.
            let here = setup.here().connect(DATABASE).await.unwrap();
            let taken = here.query_one("SELECT pg_try_advisory_lock(7)", &[]).await.unwrap();
            assert!(!taken.get::<_, bool>(0), "round {round}, {pool:?}");
            here.batch_execute(&format!("NOTIFY news, '{round}'")).await.unwrap();
            turnstile.open();
            let told = tokio::time::timeout(DEADLINE, holds.notification()).await.expect("it hears");
            assert_eq!((told.0, told.1), ("news".to_owned(), round.to_string()), "{pool:?}");
            other.batch_execute("SELECT 1").await.unwrap();
        }
        let unlocked = holds.client.query_one("SELECT pg_advisory_unlock(7)", &[]).await.unwrap();
        assert!(unlocked.get::<_, bool>(0));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn advisory_locks_of_a_session_go_with_it() {
    for pool in [None, Some(super::pooled::POOL_OF_FIVE)] {
        let setup = Setup::with(HOLD, |settings| settings.pool = pool, "").await;
        let (holds, other) = (setup.connect().await, setup.connect().await);
        holds
            .batch_execute(
                "SELECT pg_advisory_lock(7), pg_advisory_lock(-9000000000000000000), pg_advisory_lock(-1, 2147483647);
                 SELECT pg_advisory_lock(7), pg_advisory_lock_shared(7), pg_advisory_lock(7);
                 SELECT pg_advisory_lock_shared(5)",
            )
            .await
            .unwrap();
        other.batch_execute("SELECT pg_advisory_lock_shared(5)").await.unwrap();
        let asked = async |client: &tokio_postgres::Client, sql: &str| -> bool {
            client.query_one(&format!("SELECT {sql}"), &[]).await.unwrap().get(0)
        };
        // Undone before the fence, undone after it, moved, and moved back.
        for round in 0..4 {
            match round {
                0 => {
                    setup.hold().await;
                    setup.front.turnstile.open();
                }
                1 => {
                    setup.hold().await;
                    setup.fence().await;
                    setup.front.turnstile.open();
                }
                _ => setup.cutover().await,
            }
            assert_eq!(port(&holds).await, i32::from(setup.here().cluster.port));
            for (lock, free) in
                [("7", false), ("-9000000000000000000", false), ("-1, 2147483647", false), ("8", true)]
            {
                assert_eq!(
                    asked(&other, &format!("pg_try_advisory_lock({lock})")).await,
                    free,
                    "{lock}, round {round}"
                );
            }
            asked(&other, "pg_advisory_unlock(8)").await;
            assert!(!asked(&holds, "pg_try_advisory_lock(5)").await, "the other shares it");
        }
        for left in [true, true, true, false] {
            assert_eq!(asked(&holds, "pg_advisory_unlock(7)").await, left);
        }
        assert!(asked(&other, "pg_try_advisory_lock_shared(7)").await, "it is shared from here on");
        assert!(!asked(&other, "pg_try_advisory_lock(7)").await);
        for (unlock, left) in [
            ("pg_advisory_unlock_shared(7)", true),
            ("pg_advisory_unlock_shared(7)", false),
            ("pg_advisory_unlock(-9000000000000000000)", true),
            ("pg_advisory_unlock(-1, 2147483647)", true),
            ("pg_advisory_unlock_shared(5)", true),
            ("pg_advisory_unlock_shared(5)", false),
        ] {
            assert_eq!(asked(&holds, unlock).await, left, "{unlock}");
        }
        assert!(asked(&other, "pg_try_advisory_lock(7)").await);
    }
}

/// Where somebody has it there, the session ends as it does with whatever cannot go.
/// Its own limit on statements is not for what the front asks, and goes with it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_goes_on_however_short_its_statements_may_be() {
    const TIMES: i64 = 20_000;
    let setup = Setup::start().await;
    let session = setup.session().await;
    let client = &session.client;
    let take = format!("SELECT count(pg_advisory_lock(7)) FROM generate_series(1, {TIMES})");
    client.query_one(&take, &[]).await.unwrap();
    client.batch_execute("PREPARE p AS SELECT 1").await.unwrap();
    client.batch_execute("SET statement_timeout = '1ms'").await.unwrap();
    setup.cutover().await;
    // That this takes less may need some tries.
    until("it has its limit", async || {
        let told = client.simple_query("SHOW statement_timeout").await;
        assert!(!client.is_closed(), "{told:?}");
        told.is_ok_and(|told| {
            told.iter().any(|message| matches!(message, tokio_postgres::SimpleQueryMessage::Row(row) if row.get(0) == Some("1ms")))
        })
    })
    .await;
    until("it has none", async || client.batch_execute("SET statement_timeout = 0").await.is_ok()).await;
    assert_eq!(port(client).await, i32::from(setup.clusters[1].cluster.port));
    let held = "WITH RECURSIVE freed(n, one) AS (SELECT 0::bigint, true UNION ALL SELECT n + 1, pg_advisory_unlock(7) FROM freed WHERE one)
        SELECT max(n) FILTER (WHERE one) FROM freed";
    assert_eq!(client.query_one(held, &[]).await.unwrap().get::<_, i64>(0), TIMES);
    client.batch_execute("EXECUTE p").await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_advisory_lock_that_is_taken_there_ends_its_session() {
    let setup = Setup::start().await;
    let ends = setup.session().await;
    ends.client.batch_execute("SELECT pg_advisory_lock(7)").await.unwrap();
    let there = setup.clusters[1].connect(DATABASE).await.unwrap();
    there.batch_execute("SELECT pg_advisory_lock(7)").await.unwrap();
    setup.cutover().await;
    let (state, detail) = ends.error().await;
    assert_eq!(state, "57P01");
    assert_eq!(detail, "What it has and cannot be carried: the advisory lock 7: another session has it.");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_aborted_move_is_not_noticed() {
    let setup = Setup::start().await;
    let session = setup.session().await;
    let client = &session.client;
    client.batch_execute("CREATE TEMP TABLE basket AS SELECT 1 AS id; SET work_mem = '7MB'").await.unwrap();
    let pid = async || -> i32 { client.query_one("SELECT pg_backend_pid()", &[]).await.unwrap().get(0) };
    let before = pid().await;
    // Before the fence: the same session of the server.
    setup.hold().await;
    setup.front.turnstile.open();
    assert_eq!(pid().await, before);
    assert_eq!(client.query("SELECT * FROM basket", &[]).await.unwrap().len(), 1);
    // After it: another, on the same side.
    client.batch_execute("DROP TABLE basket").await.unwrap();
    setup.hold().await;
    setup.fence().await;
    setup.front.turnstile.open();
    assert_ne!(pid().await, before);
    let row = client.query_one("SELECT current_setting('work_mem'), inet_server_port()", &[]).await.unwrap();
    assert_eq!(
        (row.get::<_, String>(0), row.get::<_, i32>(1)),
        ("7MB".into(), i32::from(setup.clusters[0].cluster.port))
    );
    // What the fence took and cannot be made again ends it.
    client.batch_execute("CREATE TEMP TABLE basket (id int)").await.unwrap();
    setup.hold().await;
    setup.fence().await;
    setup.front.turnstile.open();
    assert_eq!(session.error().await.0, "57P01");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn open_transactions_are_awaited_and_new_ones_wait() {
    let setup = Setup::start().await;
    let (mut open, waits) = (setup.connect().await, setup.connect().await);
    let transaction = open.transaction().await.unwrap();
    transaction.execute("INSERT INTO item VALUES (1, 'open')", &[]).await.unwrap();
    setup.front.turnstile.arm();
    assert!(setup.front.turnstile.close_if_armed(Some("b".into()), false));
    until("the idle session has parked", async || setup.front.turnstile.stats().parked == 1).await;
    let held = tokio::spawn(async move {
        let port = port(&waits).await;
        (waits, port)
    });
    until("its client waits", async || setup.front.turnstile.stats().held == 1).await;
    let late = tokio::spawn({
        let config = setup.config();
        async move { Session::start(&config).await }
    });
    until("a new client waits too", async || setup.front.turnstile.stats().held == 2).await;
    // Statement by statement, several sent at once, up to its end.
    let (one, two) = tokio::join!(
        transaction.execute("INSERT INTO item VALUES (2, 'open')", &[]),
        transaction.execute("INSERT INTO item VALUES (3, 'open')", &[])
    );
    assert_eq!((one.unwrap(), two.unwrap()), (1, 1));
    assert_eq!(setup.front.turnstile.stats().running, 1);
    transaction.commit().await.unwrap();
    tokio::time::timeout(DEADLINE, setup.front.turnstile.drained()).await.expect("drained");
    let old = setup.clusters[0].connect(DATABASE).await.unwrap();
    assert_eq!(old.query("SELECT FROM item", &[]).await.unwrap().len(), 3);
    setup.fence().await;
    setup.swap().await;
    let new = i32::from(setup.clusters[1].cluster.port);
    assert_eq!(held.await.unwrap().1, new);
    assert_eq!(port(&late.await.unwrap().client).await, new);
    assert_eq!(port(&open).await, new);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_only_reads_goes_on_while_open_transactions_are_awaited() {
    for pool in [None, Some(super::pooled::POOL_OF_FIVE)] {
        let setup = Setup::with(HOLD, |settings| settings.pool = pool, "").await;
        let mut reads = setup.config();
        reads.options("-c default_transaction_read_only=on");
        let reads = Session::start(&reads).await.client;
        let (mut open, waits) = (setup.connect().await, setup.connect().await);
        let (old, new) = (&setup.clusters[0], &setup.clusters[1]);
        assert_eq!(port(&reads).await, i32::from(old.cluster.port));
        let transaction = open.transaction().await.unwrap();
        transaction.execute("INSERT INTO item VALUES (1, 'open')", &[]).await.unwrap();
        let turnstile = &setup.front.turnstile;
        turnstile.arm();
        assert!(turnstile.close_if_armed(Some("b".into()), true));
        let held = tokio::spawn(async move { port(&waits).await });
        until("another's transaction waits", async || turnstile.stats().held == 1).await;
        for _ in 0..3 {
            assert_eq!(port(&reads).await, i32::from(old.cluster.port), "it goes on where it is");
        }
        // One that it has said may write is awaited like any other.
        reads.batch_execute("BEGIN READ WRITE; INSERT INTO item VALUES (2, 'written')").await.unwrap();
        assert_eq!(turnstile.stats().held, 1);
        transaction.commit().await.unwrap();
        tokio::time::timeout(DEADLINE, turnstile.only_reads()).await.expect("only reads are left");
        turnstile.close_reads();
        assert_eq!(turnstile.stats().running, 1);
        reads.batch_execute("COMMIT").await.unwrap();
        tokio::time::timeout(DEADLINE, turnstile.drained()).await.expect("drained");
        let asked = async { port(&reads).await };
        let moved = async {
            until("it waits too", async || turnstile.stats().held == 2).await;
            setup.fence().await;
            setup.swap().await;
        };
        let (there, ()) = tokio::join!(asked, moved);
        assert_eq!(there, i32::from(new.cluster.port));
        assert_eq!(held.await.unwrap(), i32::from(new.cluster.port));
        let kept = old.connect(DATABASE).await.unwrap();
        assert_eq!(kept.query("SELECT FROM item", &[]).await.unwrap().len(), 2);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transaction_that_does_not_end_is_ended() {
    let setup = Setup::start().await;
    let (ends, repeats, stays) = (setup.session().await, setup.session().await, setup.connect().await);
    ends.client.batch_execute("BEGIN; INSERT INTO item VALUES (1, 'open')").await.unwrap();
    let serializable = "BEGIN ISOLATION LEVEL SERIALIZABLE; INSERT INTO item VALUES (2, 'open')";
    repeats.client.batch_execute(serializable).await.unwrap();
    setup.front.turnstile.arm();
    assert!(setup.front.turnstile.close_if_armed(Some("b".into()), false));
    until("the idle session has parked", async || setup.front.turnstile.stats().parked == 1).await;
    setup.front.turnstile.end_transactions();
    tokio::time::timeout(DEADLINE, setup.front.turnstile.drained()).await.expect("drained");
    let (state, detail) = ends.error().await;
    assert_eq!(state, "57P01");
    assert!(detail.contains("it was not committed"), "{detail}");
    assert_eq!(repeats.error().await.0, "40001");
    setup.fence().await;
    setup.swap().await;
    assert_eq!(port(&stays).await, i32::from(setup.clusters[1].cluster.port));
    let old = setup.clusters[0].connect(DATABASE).await.unwrap();
    assert_eq!(old.query("SELECT FROM item", &[]).await.unwrap().len(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_open_transactions_are_ended() {
    let setup = Setup::start().await;
    let turnstile = &setup.front.turnstile;
    // One message: nothing of it is under way afterwards.
    let says = async |client: &tokio_postgres::Client, sql: &str| -> i32 {
        let told = client.simple_query(sql).await.unwrap();
        let value = told.iter().find_map(|message| match message {
            tokio_postgres::SimpleQueryMessage::Row(row) => row.get(0),
            _ => None,
        });
        value.unwrap().parse().unwrap()
    };
    let port = async |client: &tokio_postgres::Client| says(client, "SHOW port").await;
    let mut reads = setup.config();
    reads.options("-c default_transaction_read_only=on");
    let (idle, reading) = (Session::start(&reads).await, Session::start(&reads).await);
    let (writes, other) = (setup.session().await, setup.connect().await);
    writes.client.batch_execute("BEGIN; INSERT INTO item VALUES (1, 'open')").await.unwrap();
    reading.client.batch_execute("BEGIN; SELECT FROM item").await.unwrap();
    turnstile.arm();
    assert!(turnstile.close_if_armed(Some("b".into()), true));
    until("who may write has parked", async || turnstile.stats().parked == 1).await;
    turnstile.end_transactions();
    tokio::time::timeout(DEADLINE, turnstile.drained()).await.expect("drained");
    assert_eq!(writes.error().await.0, "57P01");
    assert_eq!(reading.error().await.0, "57P01");
    setup.fence().await;
    setup.swap().await;
    for client in [&idle.client, &other] {
        assert_eq!(port(client).await, i32::from(setup.clusters[1].cluster.port));
    }
    // At once, as where a shadow takes over.
    for _ in 0..5 {
        turnstile.close();
        turnstile.end_transactions();
        tokio::time::timeout(DEADLINE, turnstile.drained()).await.expect("drained");
        setup.swap().await;
        let here = i32::from(setup.here().cluster.port);
        assert_eq!((port(&idle.client).await, port(&other).await), (here, here));
    }
    // Whose lost server does not answer has to come again, no later than the others go on.
    let pid = Pid::from_raw(says(&idle.client, "SELECT pg_backend_pid()").await).unwrap();
    kill_process(pid, Signal::STOP).unwrap();
    turnstile.close();
    turnstile.end_transactions();
    until("the other has parked", async || turnstile.stats().running == 1).await;
    setup.swap().await;
    let ended = tokio::time::timeout(Duration::from_secs(5), idle.error()).await;
    kill_process(pid, Signal::CONT).unwrap();
    assert_eq!(ended.expect("its end").0, "08006");
    assert_eq!(port(&other).await, i32::from(setup.here().cluster.port));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_is_held_no_longer_than_it_may_be() {
    let hold = HoldLimits { time: Duration::from_millis(200), requests: 1, ..HOLD };
    let setup = Setup::with(hold, |_| {}, "").await;
    let (one, two, idle) = (setup.session().await, setup.session().await, setup.connect().await);
    setup.hold().await;
    let waits = tokio::spawn(async move {
        let failed = one.client.batch_execute("SELECT 1").await.unwrap_err();
        sqlstate(&failed).to_owned()
    });
    until("a client waits", async || setup.front.turnstile.stats().held == 1).await;
    let one_too_many = two.client.batch_execute("SELECT 1").await.unwrap_err();
    assert_eq!(sqlstate(&one_too_many), "57P03");
    assert_eq!(waits.await.unwrap(), "57P03");
    setup.swap().await;
    assert_eq!(port(&idle).await, i32::from(setup.clusters[1].cluster.port));
    assert_eq!(setup.front.turnstile.stats().refused_total, 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn psql_stays_connected() {
    let setup = Setup::start().await;
    let mut psql = Psql::start(&setup);
    psql.say(
        "PREPARE square (int) AS SELECT 'square ' || $1 * $1; SET statement_timeout = '17s';\n\\echo begun",
    );
    psql.until("begun").await;
    for round in 1..=5_u16 {
        setup.cutover().await;
        psql.say(&format!(
            "EXECUTE square ({round}); SELECT 'round {round} ' || current_setting('statement_timeout') || ' ' || inet_server_port();"
        ));
        psql.until(&format!("square {}\n", round * round)).await;
        psql.until(&format!("round {round} 17s {}\n", setup.here().cluster.port)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_without_an_answer_is_reported_not_repeated() {
    // Commits wait for a standby that is not there, so the kill meets one on its way.
    let extra = "synchronous_standby_names = 'nobody'\n";
    let setup = Setup::with(HOLD, |_| {}, &format!("{extra}synchronous_commit = local\n")).await;
    let (commits, open, idle) = (setup.session().await, setup.session().await, setup.session().await);
    commits
        .client
        .batch_execute("SET synchronous_commit = on; BEGIN; INSERT INTO item VALUES (1, 'x')")
        .await
        .unwrap();
    open.client.batch_execute("BEGIN; INSERT INTO item VALUES (2, 'x')").await.unwrap();
    let client = commits.client;
    let committing = tokio::spawn(async move { client.batch_execute("COMMIT").await });
    let watch = setup.here().connect(DATABASE).await.unwrap();
    until("the commit waits", async || {
        let sql = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'";
        watch.query_one(sql, &[]).await.unwrap().get::<_, i64>(0) == 1
    })
    .await;
    kill_all(&setup.clusters[0]);
    let told = async |session: tokio::task::JoinHandle<Option<tokio_postgres::Error>>| {
        let error =
            tokio::time::timeout(DEADLINE, session).await.expect("the end").unwrap().expect("an error");
        let error = error.as_db_error().expect("told by the front").clone();
        (error.code().code().to_owned(), error.detail().unwrap_or_default().to_owned())
    };
    let committed = committing.await.unwrap().unwrap_err();
    assert_eq!(sqlstate(&committed), "08007");
    let detail = committed.as_db_error().unwrap().detail().unwrap_or_default();
    assert!(detail.contains("may have been committed or not"), "{detail}");
    let (state, detail) = told(open.ended).await;
    assert_eq!((state.as_str(), detail.as_str()), ("08006", "The transaction was not committed."));
    assert_eq!(told(idle.ended).await.0, "08006");
}

/// kill -9 of every process of the cluster. Its postmaster is stopped first: it starts no further child and tells none of another's
/// death; a child that sees it die would end by itself, before the kill reaches it.
fn kill_all(cluster: &TestCluster) {
    use rustix::process::{Pid, Signal, kill_process};
    let pid = std::fs::read_to_string(cluster.cluster.data.join("postmaster.pid")).unwrap();
    let postmaster = pid.lines().next().unwrap().to_owned();
    let process = |pid: &str| Pid::from_raw(pid.trim().parse().unwrap()).unwrap();
    kill_process(process(&postmaster), Signal::STOP).unwrap();
    let children = Command::new("ps").args(["-o", "pid=", "--ppid", &postmaster]).output().unwrap();
    let children = String::from_utf8(children.stdout).unwrap();
    for child in children.split_whitespace() {
        // One that has ended meanwhile is as dead as the others.
        let killed = kill_process(process(child), Signal::KILL);
        assert!(matches!(killed, Ok(()) | Err(rustix::io::Errno::SRCH)), "{killed:?}");
    }
    kill_process(process(&postmaster), Signal::KILL).unwrap();
}

/// It has a value in every session, which only a superuser may set.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_extension_is_set_to_is_no_setting_of_a_session() {
    let setup = Setup::with(HOLD, |_| {}, "shared_preload_libraries = 'auto_explain'\n").await;
    let (first, second) = (setup.connect().await, setup.connect().await);
    first.batch_execute("SET auto_explain.log_min_duration = 0").await.unwrap_err();
    second.batch_execute("SET app.tenant = '7'").await.unwrap();
    setup.cutover().await;
    first.batch_execute("SELECT 1").await.unwrap();
    let row = second.query_one("SELECT current_setting('app.tenant')", &[]).await.unwrap();
    assert_eq!(row.get::<_, String>(0), "7");
}
