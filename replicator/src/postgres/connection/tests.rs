use super::*;

#[test]
fn one_port_counts_for_every_host() {
    let dsn: Dsn = "host=a,b port=6000".parse().expect("valid");
    let found: Vec<String> = addresses(&dsn).iter().map(ToString::to_string).collect();
    assert_eq!(found, ["a:6000", "b:6000"]);
    let dsn: Dsn = "host=/run/postgresql".parse().expect("valid");
    assert_eq!(addresses(&dsn), [Address::Unix("/run/postgresql/.s.PGSQL.5432".into())]);
}

#[test]
fn a_server_error_keeps_state_message_and_detail() {
    let body = Bytes::from_static(b"SERROR\0C55006\0Mslot is active\0Dby process 1\0\0");
    let Error::Server { sqlstate, message, .. } = server_error("start", body) else { panic!() };
    assert_eq!((sqlstate.as_str(), message.as_str()), ("55006", "slot is active: by process 1"));
    // Nonsense is still an error with a context, not a panic.
    assert!(matches!(server_error("start", Bytes::from_static(b"Cxx")), Error::Server { .. }));
}

#[test]
fn a_warning_that_changes_are_left_out_is_an_error() {
    let words = "Laden der Publikation \u{bb}p\u{ab} ausgelassen";
    let body = |routine: &str| format!("SWARNUNG\0VWARNING\0C55000\0M{words}\0Fpgoutput.c\0R{routine}\0\0");
    let error = notice("stream", body("LoadPublications").into()).expect_err("a gap");
    assert_eq!(error.cause(), crate::error::Cause::PublicationGone, "{error}");
    assert!(error.to_string().contains(words), "{error}");
    assert!(notice("stream", body("pgoutput_startup").into()).is_ok());
    assert!(notice("stream", Bytes::from_static(b"Rxx")).is_ok());
}

#[tokio::test]
async fn a_silent_server_is_noticed_on_a_dialed_socket() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let socket = reach(&[listener.local_addr().expect("bound")]).await.expect("connected");
    let seconds = Duration::from_secs;
    let prepared = |parameters: &str| {
        let dsn: Dsn = format!("postgres://u@h/d{parameters}").parse().expect("a dsn");
        prepare(&socket, &dsn).expect("prepared");
        let socket = SockRef::from(&socket);
        let on = socket.keepalive().expect("read");
        let times = (socket.tcp_keepalive_time(), socket.tcp_keepalive_interval());
        let times = (times.0.expect("read"), times.1.expect("read"));
        let retries = socket.tcp_keepalive_retries().expect("read");
        (on, times, retries, socket.tcp_user_timeout().expect("read"))
    };
    assert!(!prepared("?keepalives=0").0);
    assert_eq!(prepared(""), (true, (seconds(30), seconds(10)), 3, None));
    let said = "?keepalives_idle=7&keepalives_interval=2&keepalives_retries=4&tcp_user_timeout=5";
    assert_eq!(prepared(said), (true, (seconds(7), seconds(2)), 4, Some(seconds(5))));
    assert!(socket.nodelay().expect("read"));
}

#[tokio::test]
async fn an_address_that_does_not_answer_keeps_no_other_from_being_tried() {
    let full = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("a socket");
    full.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).expect("a port");
    full.listen(0).expect("listening");
    let silent = full.local_addr().expect("bound").as_socket().expect("of a port");
    let _waits = TcpStream::connect(silent).await.expect("room for one");
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let live = listener.local_addr().expect("bound");
    let connected = tokio::time::timeout(Duration::from_secs(5), reach(&[silent, live])).await;
    let socket = connected.expect("in time").expect("connected");
    assert_eq!(socket.peer_addr().expect("connected"), live);
    drop(listener);
    let refused = reach(&[live, live]).await.expect_err("nobody listens");
    assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
    assert_eq!(reach(&[]).await.expect_err("none").kind(), io::ErrorKind::NotFound);
}

/// What authenticating against these messages of a server ends with.
async fn log_in(
    messages: &[&[u8]],
    binding: ChannelBinding,
    end_point: Option<Vec<u8>>,
) -> Result<(), Error> {
    let (mut server, client) = tokio::io::duplex(4096);
    for message in messages {
        server.write_all(message).await.expect("room");
    }
    let mut connection = Connection::over(Box::new(client));
    let login = Login { user: "u", password: Some(b"secret"), binding, end_point };
    tokio::time::timeout(Duration::from_secs(5), connection.authenticate(&login, "log in"))
        .await
        .expect("an answer")
}

const OK: &[u8] = b"R\0\0\0\x08\0\0\0\0";
const READY: &[u8] = b"Z\0\0\0\x05I";
const CLEAR: &[u8] = b"R\0\0\0\x08\0\0\0\x03";
const MD5: &[u8] = b"R\0\0\0\x0c\0\0\0\x05salt";
const SCRAM: &[u8] = b"R\0\0\0\x17\0\0\0\x0aSCRAM-SHA-256\0\0";
const BOTH: &[u8] = b"R\0\0\0\x2a\0\0\0\x0aSCRAM-SHA-256-PLUS\0SCRAM-SHA-256\0\0";

#[tokio::test]
async fn a_server_must_prove_that_it_knows_the_password() {
    let prefer = ChannelBinding::Prefer;
    log_in(&[OK, READY], prefer, None).await.expect("trust");
    log_in(&[CLEAR, OK, READY], prefer, None).await.expect("a password in the clear");
    for way_out in [OK, CLEAR, MD5, SCRAM] {
        let error = log_in(&[SCRAM, way_out, OK, READY], prefer, None).await.expect_err("unproven");
        assert!(error.to_string().contains("leaves the exchange"), "{error}");
    }
    let forged = b"R\0\0\0\x1e\0\0\0\x0br=mine,s=c2FsdA==,i=4096";
    let error = log_in(&[SCRAM, forged], prefer, None).await.expect_err("another nonce");
    assert!(error.to_string().contains("did not prove"), "{error}");
}

#[tokio::test]
async fn a_demand_for_channel_binding_takes_nothing_else() {
    let (require, hash) = (ChannelBinding::Require, || Some(vec![1; 32]));
    for (messages, end_point) in [
        (vec![OK, READY], hash()),
        (vec![CLEAR, OK, READY], hash()),
        (vec![MD5, OK, READY], hash()),
        (vec![SCRAM], hash()),
        (vec![BOTH], None),
    ] {
        let error = log_in(&messages, require, end_point).await.expect_err("not bound");
        assert!(error.to_string().contains("channel_binding=require"), "{error}");
    }
    let error = log_in(&[BOTH, OK, READY], require, hash()).await.expect_err("not finished");
    assert!(error.to_string().contains("leaves the exchange"), "{error}");
}

#[tokio::test]
async fn impossible_lengths_are_refused_and_partial_messages_awaited() {
    let (_server, client) = tokio::io::duplex(64);
    let mut connection = Connection::over(Box::new(client));
    connection.received.extend_from_slice(b"d\0\0\0\x06ab");
    let frame = connection.buffered().expect("valid").expect("whole");
    assert_eq!((frame.tag, &frame.body[..]), (b'd', &b"ab"[..]));
    connection.received.extend_from_slice(b"d\0\0\0\x06a");
    assert!(connection.buffered().expect("valid").is_none());
    connection.received.clear();
    connection.received.extend_from_slice(b"d\xff\xff\xff\xff");
    assert!(matches!(connection.buffered(), Err(Error::Protocol(_))));
}

#[tokio::test]
async fn a_large_message_leaves_no_room_behind() {
    let (mut server, client) = tokio::io::duplex(64 << 10);
    let mut connection = Connection::over(Box::new(client));
    let length = 8 << 20;
    let sending = tokio::spawn(async move {
        let large = [b"d", &(length as u32 + 4).to_be_bytes()[..], &vec![b'x'; length]].concat();
        for bytes in [&large[..], b"d\0\0\0\x06ab"] {
            server.write_all(bytes).await.expect("sent");
        }
    });
    assert_eq!(connection.frame("receive").await.expect("large").body.len(), length);
    assert_eq!(connection.frame("receive").await.expect("small").body, "ab");
    sending.await.expect("all was sent");
    connection.received.reserve(1);
    assert!(connection.received.capacity() <= 2 * READ_SIZE, "{}", connection.received.capacity());
}
