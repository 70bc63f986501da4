//! Clients that share connections: each sees a session of its own, and a few connections serve all.

use godwit::config::model::PostgresPool;
use godwit::fronts::postgres::protocol::message;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;

const POOL: PostgresPool =
    PostgresPool { size: 1, wait: Duration::from_secs(30), idle: Duration::from_mins(10), statements: 3 };

/// Room for everybody of a small test.
pub(super) const POOL_OF_FIVE: PostgresPool = PostgresPool { size: 5, ..POOL };

async fn sharing(pool: PostgresPool) -> Setup {
    Setup::with(HOLD, |settings| settings.pool = Some(pool), "").await
}

/// Sessions of clients at the server that is primary.
async fn connections(setup: &Setup) -> i64 {
    let client = setup.here().connect("postgres").await.unwrap();
    let sql = "SELECT count(*) FROM pg_stat_activity WHERE usename = 'app'";
    client.query_one(sql, &[]).await.unwrap().get(0)
}

async fn setting(client: &Client, name: &str) -> String {
    let sql = format!("SELECT current_setting('{name}', true)");
    client.query_one(&sql, &[]).await.unwrap().get::<_, Option<String>>(0).unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_clients_share_two_connections_over_cutovers() {
    let setup = sharing(PostgresPool { size: 2, ..POOL }).await;
    for cluster in &setup.clusters {
        let client = cluster.connect(DATABASE).await.unwrap();
        client.batch_execute("CREATE TABLE moves (client int, round int)").await.unwrap();
        client.batch_execute("GRANT ALL ON moves TO app").await.unwrap();
    }
    let mut playing = Vec::new();
    let (rounds, _) = tokio::sync::watch::channel(0_u64);
    let rounds = Arc::new(rounds);
    let ended = Arc::new(std::sync::atomic::AtomicBool::new(false));
    for number in 0..20_i32 {
        let mut client = setup.connect().await;
        let (rounds, ended) = (Arc::clone(&rounds), Arc::clone(&ended));
        playing.push(tokio::spawn(async move {
            // More statements than a connection keeps, some of them everybody's.
            let mut statements = Vec::new();
            for text in ["SELECT 1", "SELECT 2", "SELECT 3", "SELECT 4"] {
                statements.push(client.prepare(text).await.unwrap());
            }
            let own = client.prepare(&format!("SELECT {number} + $1::int")).await.unwrap();
            let mut round = 0;
            while !ended.load(std::sync::atomic::Ordering::SeqCst) {
                let transaction = client.transaction().await.unwrap();
                transaction.execute("INSERT INTO moves VALUES ($1, $2)", &[&number, &round]).await.unwrap();
                for (at, statement) in statements.iter().enumerate() {
                    let found: i32 = transaction.query_one(statement, &[]).await.unwrap().get(0);
                    assert_eq!(found, i32::try_from(at).unwrap() + 1);
                }
                transaction.commit().await.unwrap();
                let found: i32 = client.query_one(&own, &[&round]).await.unwrap().get(0);
                assert_eq!(found, number + round);
                round += 1;
                rounds.send_modify(|rounds| *rounds += 1);
            }
            round
        }));
    }
    for _ in 0..4 {
        let enough = *rounds.borrow() + 100;
        rounds.subscribe().wait_for(|rounds| *rounds >= enough).await.unwrap();
        assert!(connections(&setup).await <= 2);
        setup.cutover().await;
    }
    ended.store(true, std::sync::atomic::Ordering::SeqCst);
    let mut total = 0;
    for client in playing {
        total += client.await.unwrap();
    }
    let mut rows = 0;
    for cluster in &setup.clusters {
        let client = cluster.connect(DATABASE).await.unwrap();
        rows += client.query_one("SELECT count(*) FROM moves", &[]).await.unwrap().get::<_, i64>(0);
    }
    assert_eq!(rows, i64::from(total), "each transaction was done once");
    assert_eq!(setup.front.turnstile.stats().running, 0, "nobody has a connection between transactions");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_client_sets_goes_with_it_and_not_to_others() {
    let setup = sharing(POOL).await;
    let (one, two) = (setup.connect().await, setup.connect().await);
    let mut named = setup.config();
    named.application_name("named").options("-c geqo=off");
    let named = Session::start(&named).await.client;
    one.batch_execute(
        "SET work_mem = '7MB'; SET TimeZone = 'Asia/Tokyo'; SET app.tenant = '7'; SET ROLE clerk",
    )
    .await
    .unwrap();
    two.batch_execute("SET work_mem = '9MB'; SET app.tenant = '9'").await.unwrap();
    two.execute("SELECT set_config('search_path', 'pg_catalog', false)", &[]).await.unwrap();
    for round in 0..4 {
        assert_eq!(setting(&one, "work_mem").await, "7MB");
        assert_eq!(setting(&two, "work_mem").await, "9MB");
        assert_eq!(setting(&one, "app.tenant").await, "7");
        assert_eq!(setting(&two, "app.tenant").await, "9");
        assert_eq!(setting(&one, "TimeZone").await, "Asia/Tokyo");
        assert_ne!(setting(&two, "TimeZone").await, "Asia/Tokyo");
        assert_eq!(setting(&one, "role").await, "clerk");
        assert_eq!(setting(&two, "role").await, "none");
        assert_eq!(setting(&one, "search_path").await, "\"$user\", public");
        assert_eq!(setting(&two, "search_path").await, "pg_catalog");
        assert_eq!(setting(&named, "application_name").await, "named");
        assert_eq!(setting(&named, "geqo").await, "off");
        assert_ne!(setting(&one, "application_name").await, "named");
        if round % 2 == 1 {
            setup.cutover().await;
        }
    }
    // What lasts for a transaction only is nobody's afterwards.
    one.batch_execute("BEGIN; SET LOCAL work_mem = '8MB'; COMMIT").await.unwrap();
    assert_eq!(setting(&one, "work_mem").await, "7MB");
    one.batch_execute("RESET ALL; RESET ROLE").await.unwrap();
    assert_eq!(setting(&two, "work_mem").await, "9MB");
    assert_eq!((setting(&one, "work_mem").await, setting(&one, "role").await), ("4MB".into(), "none".into()));
    named.batch_execute("DISCARD ALL").await.unwrap();
    assert_eq!(setting(&named, "application_name").await, "named", "as its startup packet said");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_prepared_text_is_read_by_its_own_clients_settings() {
    let setup = sharing(POOL).await;
    // The constant is what it is once the text is read.
    let sql = "SELECT extract(hour FROM '2026-01-01 00:00'::timestamptz AT TIME ZONE 'UTC')::int";
    let (one, two, three) = (setup.connect().await, setup.connect().await, setup.connect().await);
    for (client, zone) in [(&one, "UTC"), (&two, "Asia/Tokyo"), (&three, "UTC")] {
        client.batch_execute(&format!("SET TimeZone = '{zone}'")).await.unwrap();
    }
    let hour = async |client: &Client, statement: &tokio_postgres::Statement| -> i32 {
        client.query_one(statement, &[]).await.unwrap().get(0)
    };
    let (here, there) = (one.prepare(sql).await.unwrap(), two.prepare(sql).await.unwrap());
    for _ in 0..2 {
        assert_eq!((hour(&one, &here).await, hour(&two, &there).await), (0, 15));
        setup.cutover().await;
    }
    // For a transaction only: afterwards it is prepared anew.
    three.batch_execute("BEGIN; SET LOCAL TimeZone = 'Asia/Tokyo'").await.unwrap();
    let within = three.prepare(sql).await.unwrap();
    assert_eq!(hour(&three, &within).await, 15);
    three.batch_execute("COMMIT").await.unwrap();
    assert_eq!((hour(&one, &here).await, hour(&three, &within).await), (0, 0));
    two.batch_execute("SET TimeZone = 'UTC'").await.unwrap();
    assert_eq!(hour(&two, &there).await, 0, "by what it has set since");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_differs_in_options_counts_for_its_role_and_resets_to_them() {
    let setup = sharing(POOL).await;
    let mut tenants = Vec::new();
    for number in 0..3 {
        let mut config = setup.config();
        config.options(format!("-c search_path=tenant_{number} -c app.tenant={number}"));
        tenants.push(Session::start(&config).await.client);
    }
    let plain = setup.connect().await;
    for round in 0..2 {
        for (number, tenant) in tenants.iter().enumerate() {
            tenant.batch_execute("SET work_mem = '7MB'; RESET ALL").await.unwrap();
            assert_eq!(setting(tenant, "search_path").await, format!("tenant_{number}"));
            assert_eq!(setting(tenant, "app.tenant").await, number.to_string());
            assert_eq!(setting(&plain, "app.tenant").await, "");
            until("there is one at most", async || connections(&setup).await <= 1).await;
        }
        if round == 0 {
            setup.cutover().await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reset_goes_back_to_what_the_startup_packet_says() {
    let setup = sharing(POOL).await;
    let mut config = setup.config();
    config.application_name("named");
    let named = Session::start(&config).await.client;
    let sql = "SELECT current_setting('application_name')";
    let told = |told: Vec<tokio_postgres::SimpleQueryMessage>| {
        told.iter().find_map(|message| match message {
            tokio_postgres::SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
            _ => None,
        })
    };
    for reset in ["RESET ALL", "SET application_name TO DEFAULT", "DISCARD ALL"] {
        // In one write.
        let (reset, answer) = tokio::join!(named.batch_execute(reset), named.simple_query(sql));
        reset.unwrap();
        assert_eq!(told(answer.unwrap()).as_deref(), Some("named"));
    }
    // Who keeps its connection.
    named.batch_execute("LISTEN news").await.unwrap();
    for _ in 0..2 {
        for reset in ["RESET ALL", "RESET application_name"] {
            named.batch_execute(reset).await.unwrap();
            assert_eq!(setting(&named, "application_name").await, "named");
        }
        setup.cutover().await;
    }
}

/// The driver sends none of these in its startup packet: asyncpg's `server_settings` do.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_custom_setting_of_a_startup_packet_is_its_clients() {
    let trusts = |settings: &mut Settings| {
        (settings.pool, settings.auth) = (Some(POOL), PostgresAuth::Trust);
        settings.passwords.insert("app".into(), PASSWORD.into());
    };
    let setup = Setup::with(HOLD, trusts, "").await;
    let other = setup.connect().await;
    let mut client = TcpStream::connect(setup.front.settings.listen).await.unwrap();
    let told = async |client: &mut TcpStream, out: &[u8]| {
        client.write_all(out).await.unwrap();
        let mut seen = Vec::new();
        while !seen.ends_with(b"Z\0\0\0\x05I") {
            let reading = tokio::time::timeout(DEADLINE, client.read_buf(&mut seen));
            assert!(reading.await.expect("an answer").unwrap() > 0);
        }
        String::from_utf8_lossy(&seen).into_owned()
    };
    let mut out = Vec::new();
    let parameters =
        [("user", "app"), ("database", DATABASE), ("client_encoding", "UTF8"), ("App.Tenant", "7")];
    message::startup(&mut out, parameters.into_iter());
    told(&mut client, &out).await;
    for _ in 0..2 {
        let (mut leaves, mut asks) = (Vec::new(), Vec::new());
        // The server is asked what this left.
        message::query(&mut leaves, b"SET work_mem = '7MB'; RESET work_mem");
        message::query(&mut asks, b"SELECT 'tenant ' || current_setting('app.tenant')");
        told(&mut client, &leaves).await;
        assert_eq!(setting(&other, "app.tenant").await, "");
        let answer = told(&mut client, &asks).await;
        assert!(answer.contains("tenant 7"), "{answer}");
        setup.cutover().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_sees_what_another_has_set_however_it_is_written() {
    let setup = sharing(POOL).await;
    let (one, two) = (setup.connect().await, setup.connect().await);
    for round in 0..2 {
        for quoted in ["SET \"app.tenant\" = '7'", "SET SESSION \"app\" . tenant = '7'"] {
            one.batch_execute(quoted).await.unwrap();
            assert_eq!(setting(&two, "app.tenant").await, "", "{quoted}");
            assert_eq!(setting(&one, "app.tenant").await, "7", "{quoted}");
            one.batch_execute("RESET app.tenant").await.unwrap();
        }
        // Names that cannot be read go with nobody.
        one.execute("SELECT set_config($1, $2, false)", &[&"app.region", &"north"]).await.unwrap();
        assert_eq!(setting(&two, "app.region").await, "");
        one.batch_execute("SET /* where */ app.region = 'north'").await.unwrap();
        assert_eq!(setting(&two, "app.region").await, "");
        one.batch_execute(&format!("SELECT '{}'; SET app.region = 'north'", "x".repeat(20 << 10)))
            .await
            .unwrap();
        assert_eq!(setting(&two, "app.region").await, "");
        if round == 0 {
            setup.cutover().await;
        }
    }
    // Of more names than are kept.
    for number in 0..300 {
        one.batch_execute(&format!("SET many.name_{number} = 'one'")).await.unwrap();
    }
    for number in 0..300 {
        assert_eq!(setting(&two, &format!("many.name_{number}")).await, "", "{number}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_shared_keeps_its_client_on_a_connection() {
    let setup = sharing(PostgresPool { wait: Duration::from_millis(200), ..POOL }).await;
    for (keeps, ends) in [
        ("CREATE TEMP TABLE basket AS SELECT 1 AS id", "DROP TABLE basket"),
        ("SELECT pg_advisory_lock(7)", "SELECT pg_advisory_unlock(7)"),
        ("SELECT 1 AS id INTO TEMP basket", "DISCARD TEMP"),
        ("LISTEN news", "UNLISTEN *"),
        ("PREPARE p AS SELECT 1", "DEALLOCATE p"),
        ("BEGIN; DECLARE kept CURSOR WITH HOLD FOR SELECT 1; COMMIT", "CLOSE kept"),
    ] {
        let (one, two) = (setup.connect().await, setup.session().await);
        one.batch_execute(keeps).await.unwrap();
        one.batch_execute("SELECT 1").await.unwrap();
        let full = two.client.batch_execute("SELECT 1").await.unwrap_err();
        assert_eq!(sqlstate(&full), "53300", "{keeps}");
        one.batch_execute(ends).await.unwrap();
        setup
            .connect()
            .await
            .batch_execute("SELECT 1")
            .await
            .unwrap_or_else(|error| panic!("{ends}: {error}"));
    }
    // One that waits for something to be said hears it.
    let mut listens = setup.session().await;
    listens.client.batch_execute("LISTEN news").await.unwrap();
    let own: i32 = listens.client.query_one("SELECT pg_backend_pid()", &[]).await.unwrap().get(0);
    setup.cutover().await;
    listens.client.batch_execute("SELECT 1").await.unwrap();
    setup.here().connect(DATABASE).await.unwrap().batch_execute("NOTIFY news, 'there'").await.unwrap();
    let (channel, payload, pid) = listens.notification().await;
    assert_eq!((channel.as_str(), payload.as_str()), ("news", "there"));
    assert_ne!(pid, own);
    // One that has what cannot be carried ends at a cutover, and nobody else does.
    listens.client.batch_execute("CREATE TEMP TABLE basket ()").await.unwrap();
    let idle = {
        let config = setup.config();
        tokio::spawn(async move { Session::start(&config).await })
    };
    setup.cutover().await;
    assert_eq!(listens.error().await.0, "57P01");
    idle.await.unwrap().client.batch_execute("SELECT 1").await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_time_of_a_hold_is_not_one_of_waiting_for_a_connection() {
    let setup = sharing(PostgresPool { wait: Duration::from_secs(1), ..POOL }).await;
    let turnstile = &setup.front.turnstile;
    let (open, one, two) = (setup.connect().await, setup.connect().await, setup.connect().await);
    open.batch_execute("BEGIN; INSERT INTO item VALUES (1, 'open')").await.unwrap();
    turnstile.arm();
    assert!(turnstile.close_if_armed(Some("b".into()), false));
    let held = tokio::spawn(async move { tokio::join!(port(&one), port(&two)) });
    until("both are held", async || turnstile.stats().held == 2).await;
    open.batch_execute("SELECT pg_sleep(1.2); COMMIT").await.unwrap();
    tokio::time::timeout(DEADLINE, turnstile.drained()).await.expect("drained");
    setup.fence().await;
    setup.swap().await;
    let there = i32::from(setup.clusters[1].cluster.port);
    assert_eq!(held.await.unwrap(), (there, there));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_logs_in_and_waits_for_a_connection_keeps_nobody_from_moving() {
    let setup = sharing(POOL).await;
    let pinned = setup.connect().await;
    pinned.batch_execute("LISTEN news").await.unwrap();
    let mut unknown = setup.config();
    unknown.application_name("unknown");
    let comes = tokio::spawn(async move { Session::start(&unknown).await });
    until("it waits for a connection", async || setup.front.turnstile.stats().running == 2).await;
    setup.cutover().await;
    pinned.batch_execute("UNLISTEN news").await.unwrap();
    let there = i32::from(setup.clusters[1].cluster.port);
    assert_eq!(port(&comes.await.unwrap().client).await, there);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_prepared_statement_hides_is_hidden_after_a_move_too() {
    let setup = sharing(POOL).await;
    let (one, two) = (setup.connect().await, setup.connect().await);
    one.batch_execute("PREPARE tenant AS SELECT set_config($1, $2, false)").await.unwrap();
    setup.cutover().await;
    one.batch_execute("EXECUTE tenant('app.tenant', '7')").await.unwrap();
    assert_eq!(setting(&one, "app.tenant").await, "7");
    one.batch_execute("DEALLOCATE tenant").await.unwrap();
    assert_eq!(setting(&two, "app.tenant").await, "", "the connection was reset");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_goes_leaves_nothing_behind() {
    let setup = sharing(POOL).await;
    let (gone, stays) = (setup.session().await, setup.connect().await);
    gone.client.batch_execute("BEGIN; INSERT INTO item VALUES (1, 'open')").await.unwrap();
    let waits = tokio::spawn(async move {
        let rows = stays.query("SELECT FROM item", &[]).await.unwrap().len();
        (stays, rows)
    });
    gone.ended.abort();
    let (stays, rows) = waits.await.unwrap();
    assert_eq!(rows, 0, "its transaction was not committed");
    // Who waits and goes has no turn.
    let transaction = setup.connect().await;
    transaction.batch_execute("BEGIN").await.unwrap();
    let gone = setup.session().await;
    let asked = gone.client.simple_query("INSERT INTO item VALUES (2, 'never')");
    assert!(tokio::time::timeout(Duration::from_millis(50), asked).await.is_err(), "it waits");
    gone.ended.abort();
    until("it has left", async || setup.front.sessions() == 2).await;
    transaction.batch_execute("COMMIT").await.unwrap();
    assert_eq!(stays.query("SELECT FROM item", &[]).await.unwrap().len(), 0);
    assert_eq!(connections(&setup).await, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancel_meets_only_what_it_was_meant_for() {
    let setup = sharing(POOL).await;
    let (one, two) = (setup.connect().await, setup.connect().await);
    let cancel = one.cancel_token();
    let sleeps = tokio::spawn(async move { one.batch_execute("SELECT pg_sleep(60)").await.map(|()| one) });
    let watch = setup.here().connect("postgres").await.unwrap();
    until("it sleeps", async || {
        let sql = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'";
        watch.query_one(sql, &[]).await.unwrap().get::<_, i64>(0) == 1
    })
    .await;
    cancel.cancel_query(NoTls).await.unwrap();
    assert_eq!(sqlstate(&sleeps.await.unwrap().unwrap_err()), "57014");
    // Between its transactions it means nobody.
    let slow = tokio::spawn(async move { two.batch_execute("SELECT pg_sleep(0.3)").await });
    cancel.cancel_query(NoTls).await.unwrap();
    slow.await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_waits_for_a_connection_is_cancelled_as_well() {
    let setup = sharing(PostgresPool { size: 1, ..POOL }).await;
    let (first, waits) = (setup.connect().await, setup.connect().await);
    let cancel = waits.cancel_token();
    first.batch_execute("BEGIN").await.unwrap();
    let waiting =
        tokio::spawn(async move { waits.batch_execute("SELECT pg_sleep(60)").await.map(|()| waits) });
    until("it waits for its turn", async || setup.front.pool_waits() == 1).await;
    cancel.cancel_query(NoTls).await.unwrap();
    first.batch_execute("COMMIT").await.unwrap();
    assert_eq!(sqlstate(&waiting.await.unwrap().unwrap_err()), "57014");
    // It meant nothing that comes later.
    first.batch_execute("SELECT pg_sleep(0.2)").await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_setting_that_is_longer_than_any_is_its_clients_own() {
    let setup = sharing(PostgresPool { size: 1, ..POOL }).await;
    let (one, other) = (setup.connect().await, setup.connect().await);
    one.batch_execute("SELECT set_config('app.long', repeat('x', 900000), false)").await.unwrap();
    other.batch_execute("SELECT 1").await.unwrap();
    assert_eq!(setting(&one, "app.long").await.len(), 900_000);
    // It keeps its connection with more than that, and others wait for it.
    let two = sharing(PostgresPool { size: 2, ..POOL }).await;
    let (one, other) = (two.connect().await, two.connect().await);
    one.batch_execute("SELECT set_config('app.long', repeat('x', 5000000), false)").await.unwrap();
    for _ in 0..2 {
        other.batch_execute("SELECT 1").await.unwrap();
        assert_eq!(setting(&one, "app.long").await.len(), 5_000_000);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_ended_are_made_again() {
    let setup = sharing(POOL).await;
    let client = setup.connect().await;
    client.batch_execute("SET work_mem = '7MB'").await.unwrap();
    // What that left was asked for before.
    assert_eq!(setting(&client, "work_mem").await, "7MB");
    setup.fence().await;
    assert_eq!(setting(&client, "work_mem").await, "7MB");
    // A move that is given up, after its fence.
    setup.hold().await;
    setup.fence().await;
    setup.front.turnstile.open();
    assert_eq!(setting(&client, "work_mem").await, "7MB");
    // One that nobody takes is closed.
    let short = sharing(PostgresPool { idle: Duration::from_millis(50), ..POOL }).await;
    let client = short.connect().await;
    client.batch_execute("SELECT 1").await.unwrap();
    until("it is closed", async || connections(&short).await == 0).await;
    client.batch_execute("SELECT 1").await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pipelines_large_messages_and_copies() {
    let setup = sharing(POOL).await;
    let (one, two) = (setup.connect().await, setup.connect().await);
    let long = "x".repeat(3 << 20);
    let length = one.prepare("SELECT length($1::text)").await.unwrap();
    for client in [&one, &two, &one] {
        let (unnamed, named) =
            tokio::join!(async { client.query_one("SELECT length($1::text)", &[&long]).await }, async {
                one.query_one(&length, &[&long]).await
            });
        assert_eq!(unnamed.unwrap().get::<_, i32>(0), 3 << 20);
        assert_eq!(named.unwrap().get::<_, i32>(0), 3 << 20);
    }
    // Many at once, some of which fail, from both.
    let run = async |client: &Client| {
        let queries: Vec<_> = (0..50).map(|at| format!("SELECT 6 / {}", at % 5)).collect();
        let asked = queries.iter().map(|query| client.query(query.as_str(), &[]));
        let answers = futures_util::future::join_all(asked).await;
        answers.iter().filter(|answer| answer.is_err()).count()
    };
    let (one_failed, two_failed) = tokio::join!(run(&one), run(&two));
    assert_eq!((one_failed, two_failed), (10, 10));
    // What is prepared behind a reset, in one write, is there, and what both prepare is no matter of who was first.
    for client in [&one, &two, &one] {
        let (reset, prepared) = tokio::join!(client.batch_execute("DISCARD ALL"), client.prepare("SELECT 7"));
        reset.unwrap();
        let found = client.query_one(&prepared.unwrap(), &[]).await.unwrap();
        assert_eq!(found.get::<_, i32>(0), 7);
    }
    let mut rows = Box::pin(two.copy_in::<_, bytes::Bytes>("COPY item FROM STDIN").await.unwrap());
    for row in 0..1000 {
        futures_util::SinkExt::send(&mut rows, format!("{row}\tcopied\n").into()).await.unwrap();
    }
    assert_eq!(rows.as_mut().finish().await.unwrap(), 1000);
    assert_eq!(one.query("SELECT FROM item", &[]).await.unwrap().len(), 1000);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_extension_is_set_to_is_not_set_for_the_next() {
    let extra = "shared_preload_libraries = 'auto_explain'\n";
    let setup = Setup::with(HOLD, |settings| settings.pool = Some(POOL_OF_FIVE), extra).await;
    let (first, second) = (setup.connect().await, setup.connect().await);
    first.batch_execute("SET auto_explain.log_min_duration = 0").await.unwrap_err();
    first.batch_execute("SET work_mem = '7MB'").await.unwrap();
    // It has the one that lay there, and the first gets another.
    second.batch_execute("BEGIN").await.unwrap();
    assert_eq!(setting(&first, "work_mem").await, "7MB");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_set_by_the_catalog_goes_with_its_client() {
    let setup = sharing(POOL).await;
    let (first, second) = (setup.connect().await, setup.connect().await);
    let sql = "UPDATE pg_settings SET setting = 'off' WHERE name = 'enable_mergejoin'";
    first.batch_execute(sql).await.unwrap();
    assert_eq!(setting(&second, "enable_mergejoin").await, "on");
    assert_eq!(setting(&first, "enable_mergejoin").await, "off");
}

/// Who writes so waits for nothing, not even for the server to ask for the copy.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_ahead_of_a_copy_gets_its_own_answers() {
    let trusts = |settings: &mut Settings| {
        (settings.pool, settings.auth) = (Some(POOL), PostgresAuth::Trust);
        settings.passwords.insert("app".into(), PASSWORD.into());
    };
    let setup = Setup::with(HOLD, trusts, "").await;
    let other = setup.connect().await;
    let mut ahead = TcpStream::connect(setup.front.settings.listen).await.unwrap();
    let mut seen = Vec::new();
    let mut until = async |ahead: &mut TcpStream, text: &[u8]| {
        while !seen.windows(text.len()).any(|part| part == text) {
            let reading = tokio::time::timeout(DEADLINE, ahead.read_buf(&mut seen));
            assert!(reading.await.expect("an answer").unwrap() > 0);
        }
    };
    let mut out = Vec::new();
    message::startup(&mut out, [("user", "app"), ("database", DATABASE)].into_iter());
    ahead.write_all(&out).await.unwrap();
    until(&mut ahead, b"Z\0\0\0\x05I").await;
    out.clear();
    message::query(&mut out, b"COPY item FROM STDIN");
    message::write(&mut out, b'd', |out| out.extend(b"1\tone\n"));
    message::write(&mut out, b'c', |_| {});
    message::query(&mut out, b"SELECT pg_sleep(1), 'of another'");
    ahead.write_all(&out).await.unwrap();
    until(&mut ahead, b"COPY 1\0").await;
    let row = other.query_one("SELECT 'my own'", &[]).await.unwrap();
    assert_eq!(row.get::<_, String>(0), "my own");
    until(&mut ahead, b"of another").await;
}
