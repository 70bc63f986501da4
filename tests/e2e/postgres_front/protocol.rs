//! Everything that clients do with a database, through the front.

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt, pin_mut};
use godwit::fronts::stopwatch::Segment;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_may_come_in_and_who_not() {
    let setup = Setup::with(HOLD, |settings| settings.connections = 3, "").await;
    let refused = async |change: &dyn Fn(&mut Config)| {
        let mut config = setup.config();
        change(&mut config);
        let error = config.connect(NoTls).await.err().expect("refused");
        (sqlstate(&error).to_owned(), error.as_db_error().unwrap().message().to_owned())
    };
    let wrong = refused(&|config| {
        config.password("wrong");
    })
    .await;
    assert_eq!(wrong, ("28P01".into(), "password authentication failed for user \"app\"".into()));
    let nobody = refused(&|config| {
        config.user("nobody");
    })
    .await;
    assert_eq!(nobody, ("28P01".into(), "password authentication failed for user \"nobody\"".into()));
    let (state, message) = refused(&|config| {
        config.dbname("other");
    })
    .await;
    assert_eq!((state.as_str(), message.as_str()), ("3D000", "database \"other\" does not exist"));
    let clients = [setup.connect().await, setup.connect().await, setup.connect().await];
    assert_eq!(refused(&|_| {}).await.0, "53300");
    let row = clients[0].query_one("SELECT current_user::text, $1::int + 1", &[&41]).await.unwrap();
    assert_eq!((row.get::<_, String>(0), row.get::<_, i32>(1)), ("app".into(), 42));
    drop(clients);
    until("their places are free", async || setup.front.sessions() == 0).await;
    setup.connect().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_of_verifiers_and_a_password_for_the_database() {
    let setup = Setup::with(
        HOLD,
        |settings| {
            let path = std::env::temp_dir().join(format!("godwit-test-verifiers-{}", settings.listen.port()));
            // Of the password `other`, which the databases do not know.
            let verifier =
                godwit::fronts::postgres::protocol::scram::verifier(b"other", b"salt", 4096).unwrap();
            let encode = godwit::fronts::postgres::protocol::base64::encode;
            let (salt, stored, server) =
                (encode(&verifier.salt), encode(&verifier.stored_key), encode(&verifier.server_key));
            std::fs::write(&path, format!("\"app\" \"SCRAM-SHA-256$4096:{salt}${stored}:{server}\"\n"))
                .unwrap();
            settings.auth = PostgresAuth::File(path);
            settings.passwords.insert("app".into(), PASSWORD.into());
        },
        "",
    )
    .await;
    let mut config = setup.config();
    let error = config.connect(NoTls).await.err().expect("refused");
    assert_eq!(sqlstate(&error), "28P01");
    let session = Session::start(config.password("other")).await;
    assert_eq!(port(&session.client).await, i32::from(setup.clusters[0].cluster.port));
    if let PostgresAuth::File(path) = &setup.front.settings.auth {
        std::fs::remove_file(path).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn psql_does_what_it_does_without_a_front() {
    let setup = Setup::start().await;
    let (data, large) = (file(&setup, "items.csv"), file(&setup, "large"));
    let rows: String = (0..20_000).fold(String::new(), |rows, id| rows + &format!("{id},note {id}\n"));
    std::fs::write(&data, &rows).unwrap();
    let content: Vec<u8> = (0..3_000_000_u32).map(|at| (at % 251) as u8).collect();
    std::fs::write(&large, &content).unwrap();
    let script = format!(
        "SELECT 1; SELECT 2\\; SELECT 3;\n\
         \\copy item FROM '{data}' WITH (FORMAT csv)\n\
         \\copy (SELECT * FROM item ORDER BY id) TO '{data}.out' WITH (FORMAT csv)\n\
         \\lo_import '{large}'\n\\lo_export :LASTOID '{large}.out'\n\
         LISTEN news; NOTIFY news, 'hello';\n\
         SELECT count(*) FROM item;\nSELECT repeat('x', 5000000) \\g /dev/null\n",
        data = data.display(),
        large = large.display()
    );
    std::fs::write(file(&setup, "script.sql"), script).unwrap();
    let script = file(&setup, "script.sql").display().to_string();
    let output = setup.psql(&["-f", &script]).output().unwrap();
    let (out, error) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    assert!(output.status.success(), "{out}\n{error}");
    for part in ["1\n2\n3\n", "20000\n", "Asynchronous notification \"news\" with payload \"hello\""] {
        assert!(out.contains(part), "{part:?} in {out}\n{error}");
    }
    assert_eq!(std::fs::read_to_string(format!("{}.out", data.display())).unwrap(), rows);
    assert_eq!(std::fs::read(format!("{}.out", large.display())).unwrap(), content);
    // A client that asks for protocol 3.2.
    if let Some(bin) = godwit_tests::postgres::bin_directory(18) {
        let listen = setup.front.settings.listen;
        let target = format!(
            "host={} port={} user=app dbname={DATABASE} max_protocol_version=latest",
            listen.ip(),
            listen.port()
        );
        let newest = Command::new(bin.join("psql"))
            .args(["-X", "-A", "-t", &target, "-c", "SELECT 'spoken'"])
            .env("PGPASSWORD", PASSWORD)
            .output()
            .unwrap();
        assert_eq!(String::from_utf8_lossy(&newest.stdout), "spoken\n", "{newest:?}");
    }
    let failing = setup.psql(&["-c", "SELECT 1/0"]).output().unwrap();
    assert!(String::from_utf8_lossy(&failing.stderr).contains("division by zero"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn copy_cursors_pipelines_and_measures() {
    let setup = Setup::start().await;
    let mut client = setup.connect().await;
    let sink = client.copy_in("COPY item FROM STDIN").await.unwrap();
    pin_mut!(sink);
    for batch in 0..100 {
        let rows = (0..100).fold(String::new(), |rows, row| rows + &format!("{}\tn\n", batch * 100 + row));
        sink.send(Bytes::from(rows)).await.unwrap();
    }
    assert_eq!(sink.finish().await.unwrap(), 10_000);
    let rows = client.copy_out("COPY item TO STDOUT").await.unwrap();
    let bytes: usize = rows.map(|row| row.unwrap().len()).collect::<Vec<_>>().await.iter().sum();
    assert_eq!(bytes, (10_000 * 7) - 10 * 3 - 90 * 2 - 900);
    // A copy that the server refuses in the middle.
    let sink = client.copy_in::<_, Bytes>("COPY item FROM STDIN").await.unwrap();
    pin_mut!(sink);
    let error = async {
        for _ in 0..100 {
            sink.send(Bytes::from_static(b"1\tagain\n")).await?;
        }
        sink.finish().await
    };
    assert_eq!(sqlstate(&error.await.unwrap_err()), "23505");
    // Statements sent without waiting; an error in the middle hits only itself.
    let (one, bad, two) = tokio::join!(
        client.query_one("SELECT 1", &[]),
        client.query_one("SELECT 1 / (id - 5)::int FROM item WHERE id = 5", &[]),
        client.query_one("SELECT count(*) FROM item", &[])
    );
    assert_eq!((one.unwrap().get::<_, i32>(0), two.unwrap().get::<_, i64>(0)), (1, 10_000));
    assert_eq!(sqlstate(&bad.unwrap_err()), "22012");
    let transaction = client.transaction().await.unwrap();
    let portal = transaction.bind("SELECT id FROM item ORDER BY id", &[]).await.unwrap();
    for part in 0..3_i64 {
        let rows = transaction.query_portal(&portal, 100).await.unwrap();
        assert_eq!((rows.len(), rows[0].get::<_, i64>(0)), (100, part * 100));
    }
    transaction.commit().await.unwrap();
    until("statements are measured", async || {
        !setup.latencies.take("shop", "a", Segment::Upstream).is_empty()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancel_request_reaches_its_session_before_and_after_a_move() {
    let setup = Setup::start().await;
    let client = setup.connect().await;
    for round in 0..2 {
        let watch = setup.here().connect(DATABASE).await.unwrap();
        let sleeps = async || {
            let sql = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%pg_sleep(100)%' AND pid <> pg_backend_pid()";
            watch.query_one(sql, &[]).await.unwrap().get::<_, i64>(0) == 1
        };
        let cancel = async {
            until("it sleeps", sleeps).await;
            client.cancel_token().cancel_query(NoTls).await.unwrap();
        };
        let (slept, ()) = tokio::join!(client.batch_execute("SELECT pg_sleep(100)"), cancel);
        assert_eq!(sqlstate(&slept.unwrap_err()), "57014", "round {round}");
        if round == 0 {
            setup.cutover().await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_no_protocol_or_too_slow_is_turned_away() {
    let setup = Setup::with(HOLD, |settings| settings.startup = Duration::from_millis(300), "").await;
    let address = setup.front.settings.listen;
    let answer = async |bytes: &[u8]| {
        let mut socket = TcpStream::connect(address).await.unwrap();
        socket.write_all(bytes).await.unwrap();
        let mut answer = Vec::new();
        // A reset is an end too.
        let _ = tokio::time::timeout(DEADLINE, socket.read_to_end(&mut answer)).await.expect("an end");
        String::from_utf8_lossy(&answer).into_owned()
    };
    assert!(answer(b"GET / HTTP/1.1\r\n\r\n").await.contains("C08P01"));
    assert!(answer(b"\0\0\0\x09\0\x02\0\0\0").await.contains("unsupported frontend protocol 2.0"));
    let replication = b"\0\0\0\x23\0\x03\0\0user\0app\0replication\0true\0\0";
    assert!(answer(replication).await.contains("C0A000"));
    assert!(answer(b"\0\0\0\x08\x04\xd2\x16\x2f").await.starts_with('N'), "no TLS here");
    assert!(answer(b"\0\0\0\x08\x04\xd2\x16\x30").await.starts_with('N'), "no GSSAPI");
    // Slow ones: nothing, half a packet, a login that goes no further.
    assert_eq!(answer(b"").await, "");
    assert_eq!(answer(b"\0\0\0\x20\0\x03").await, "");
    let stalls = answer(b"\0\0\0\x12\0\x03\0\0user\0app\0\0").await;
    assert!(stalls.contains("SCRAM-SHA-256"), "{stalls}");
    // A newer minor version, and an extension that is not known: it is told what is spoken.
    let newer = answer(b"\0\0\0\x1b\0\x03\0\x09user\0app\0_pq_.x\x001\0\0").await;
    assert!(newer.starts_with("v\0\0\0\x13\0\x03\0\x02\0\0\0\x01_pq_.x\0R"), "{newer:?}");
    until("all of them are gone", async || setup.front.sessions() == 0).await;
    let client = setup.connect().await;
    tokio::time::sleep(Duration::from_millis(400)).await;
    assert_eq!(port(&client).await, i32::from(setup.clusters[0].cluster.port), "who is in may be slow");
}

/// Whoever reads changes needs no shadow, and nothing that Godwit has made before.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changes_are_read_where_nothing_was_prepared() {
    let setup = Setup::with(HOLD, |_| {}, "wal_level = logical\n").await;
    let server = setup.here().connect(DATABASE).await.unwrap();
    server.batch_execute("ALTER ROLE app REPLICATION").await.unwrap();
    let slot = "SELECT pg_create_logical_replication_slot('audit', 'test_decoding')";
    server.batch_execute(slot).await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("changes");
    let listen = setup.front.settings.listen;
    let bin = godwit_tests::postgres::bin_directory(15).unwrap();
    let mut reader = Command::new(bin.join("pg_recvlogical"))
        .args(["--start", "--slot=audit", "--no-loop", "--user=app", "--dbname", DATABASE])
        .args([format!("--host={}", listen.ip()), format!("--port={}", listen.port())])
        .arg("--file")
        .arg(&out)
        .env("PGPASSWORD", PASSWORD)
        .spawn()
        .unwrap();
    server.batch_execute("INSERT INTO item VALUES (7, 'new')").await.unwrap();
    until("the change is read", async || {
        std::fs::read_to_string(&out).is_ok_and(|text| text.contains("INSERT: id[bigint]:7"))
    })
    .await;
    reader.kill().unwrap();
    reader.wait().unwrap();
    let known = server.query_one("SELECT slot::text FROM godwit.change_streams", &[]).await.unwrap();
    assert_eq!(known.get::<_, String>(0), "audit");
}
