//! A client's connection between two requests: what it may send, and when it is closed.

use std::path::Path;

use godwit::fronts::http::settings::{ListenerTls, Timeouts};
use godwit::pki;
use godwit_tests::tls::connector;
use pingora::server::{RunArgs, ShutdownSignal, ShutdownSignalWatch};
use replicator::postgres::Socket;
use rustls::pki_types::ServerName;
use tokio::sync::Notify;

use super::raw::Raw;
use super::*;

/// A client's side, in the clear or not.
type Connection = Box<dyn Socket>;

/// A listener with TLS.
fn secure(folder: &Path) -> HttpFront {
    pki::make(folder, &["a.example"]).unwrap();
    let certificates = vec![(folder.join("a.example.pem"), folder.join("a.example.key"))];
    let mut front = HttpFront::plain(free(), &[]);
    front.listener.tls = Some(ListenerTls { certificates, clients: None, http2: true });
    front
}

/// Connects to a front: over TLS where there is the folder of its authority.
async fn connect(address: SocketAddr, authority: Option<&Path>) -> Connection {
    let stream = TcpStream::connect(address).await.unwrap();
    stream.set_nodelay(true).unwrap();
    let Some(folder) = authority else { return Box::new(stream) };
    let connector = connector(&folder.join("ca.pem"), &[]).unwrap();
    Box::new(connector.connect(ServerName::try_from("a.example").unwrap(), stream).await.unwrap())
}

/// Reads as many answers of [`Raw`] as there are targets, each with what was asked for, in their order.
async fn answers(client: &mut Connection, what: &str, targets: &[&str]) {
    let mut got = Vec::new();
    let reading = async {
        for target in targets {
            let end = loop {
                let head = got.windows(4).position(|four| four == b"\r\n\r\n");
                match head.map(|head| head + 4 + target.len()).filter(|end| *end <= got.len()) {
                    Some(end) => break end,
                    None => assert!(client.read_buf(&mut got).await.unwrap() > 0, "{what}: closed"),
                }
            };
            let answer = String::from_utf8(got.drain(..end).collect()).unwrap();
            assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{what}: {answer}");
            assert!(answer.ends_with(&format!("\r\n\r\n{target}")), "{what}: {target}: {answer}");
        }
        assert!(got.is_empty(), "{what}: more than was asked for: {}", got.escape_ascii());
    };
    let read = tokio::time::timeout(DEADLINE, reading).await;
    assert!(read.is_ok(), "{what}: not all of {targets:?} were answered");
}

/// The front closes: nothing comes any more, and the connection ends.
async fn closes(client: &mut Connection, what: &str) {
    let mut rest = [0];
    let read = tokio::time::timeout(DEADLINE, client.read(&mut rest)).await;
    // Over TLS the end may come without notice.
    let read = read.unwrap_or_else(|_| panic!("{what} is not closed"));
    assert_eq!(read.unwrap_or(0), 0, "{what}");
}

/// What is sent at once, and the answers that follow; all on the same connection.
fn segments() -> Vec<(&'static str, String, Vec<&'static str>)> {
    let get = |path: &str| format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n");
    let post = |path: &str, body: &str| {
        format!("POST {path} HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n{body}", body.len())
    };
    let chunked = |path: &str, body: &str| {
        let (head, size) =
            (format!("POST {path} HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked"), body.len());
        format!("{head}\r\n\r\n{size:x}\r\n{body}\r\n0\r\n\r\n")
    };
    let cookie = "c".repeat(12_000);
    let header = format!("GET /cookie HTTP/1.1\r\nHost: a\r\nCookie: {cookie}\r\n\r\n");
    let large = "x".repeat(300_000);
    vec![
        ("one", get("/a"), vec!["GET /a"]),
        ("two", get("/a") + &get("/b"), vec!["GET /a", "GET /b"]),
        ("many", get("/m").repeat(200), vec!["GET /m"; 200]),
        ("a body and the next", post("/a", "body") + &get("/b"), vec!["POST /a", "GET /b"]),
        ("chunks and the next", chunked("/a", "body") + &get("/b"), vec!["POST /a", "GET /b"]),
        ("after chunks", get("/c"), vec!["GET /c"]),
        ("a large header and the next", header.clone() + &get("/b"), vec!["GET /cookie", "GET /b"]),
        ("the next and a large header", get("/b") + &header, vec!["GET /b", "GET /cookie"]),
        ("a large body and the next", post("/a", &large) + &get("/b"), vec!["POST /a", "GET /b"]),
        ("large chunks and the next", chunked("/a", &large) + &get("/b"), vec!["POST /a", "GET /b"]),
        ("what has to be escaped", get("/a /b") + &get("/b"), vec!["GET /a%20/b", "GET /b"]),
        ("an empty line before it", "\r\n".to_owned() + &get("/a"), vec!["GET /a"]),
    ]
}

async fn on_each_others_heels(front: &Front, raw: &Raw, authority: Option<&Path>) {
    let mut client = connect(front.address, authority).await;
    for (what, bytes, targets) in segments() {
        let sending = async {
            client.write_all(bytes.as_bytes()).await.unwrap();
            client.flush().await.unwrap();
        };
        tokio::time::timeout(DEADLINE, sending).await.unwrap_or_else(|_| panic!("{what} is not taken"));
        answers(&mut client, what, &targets).await;
        let seen: Vec<_> = raw.take().iter().map(super::raw::Seen::what).collect();
        assert_eq!(seen, targets, "{what}");
    }
    // Each byte by itself.
    for byte in b"GET /slow HTTP/1.1\r\nHost: a\r\n\r\nGET /slower HTTP/1.1\r\nHost: a\r\n\r\n" {
        client.write_all(&[*byte]).await.unwrap();
        client.flush().await.unwrap();
        tokio::task::yield_now().await;
    }
    answers(&mut client, "byte by byte", &["GET /slow", "GET /slower"]).await;
    // The next ones come while the first is on its way.
    for (what, more) in [("one more", 1), ("some more", 5)] {
        front.close_and_drain().await;
        client.write_all(b"GET /held HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
        client.flush().await.unwrap();
        front.held(1).await;
        client.write_all("GET /more HTTP/1.1\r\nHost: a\r\n\r\n".repeat(more).as_bytes()).await.unwrap();
        client.flush().await.unwrap();
        front.gate().open();
        let targets: Vec<_> = std::iter::once("GET /held").chain(vec!["GET /more"; more]).collect();
        answers(&mut client, what, &targets).await;
    }
    assert_eq!(raw.take_broken(), Vec::<String>::new());
    raw.take();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_on_each_others_heels_are_answered_in_their_order() {
    let raw = Raw::start().await;
    let front = Front::start(&[], WIDE, Pool::new(0, "a", &[raw.address()])).await;
    on_each_others_heels(&front, &raw, None).await;
    let folder = tempfile::tempdir().unwrap();
    let front = Front::of(secure(folder.path()), WIDE, Pool::new(0, "a", &[raw.address()])).await;
    on_each_others_heels(&front, &raw, Some(folder.path())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_asks_no_more_is_left() {
    let raw = Raw::start().await;
    let folder = tempfile::tempdir().unwrap();
    for (mut settings, authority) in
        [(HttpFront::plain(free(), &[]), None), (secure(folder.path()), Some(folder.path()))]
    {
        settings.settings.timeouts = Timeouts { client: Duration::from_secs(1), ..Timeouts::default() };
        let front = Front::of(settings, WIDE, Pool::new(0, "a", &[raw.address()])).await;
        let mut begun = connect(front.address, authority).await;
        let mut idle = connect(front.address, authority).await;
        for client in [&mut begun, &mut idle] {
            client.write_all(b"GET /a HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
            client.flush().await.unwrap();
            answers(client, "the first", &["GET /a"]).await;
        }
        begun.write_all(b"GET /").await.unwrap();
        begun.flush().await.unwrap();
        closes(&mut idle, "a connection without a request").await;
        closes(&mut begun, "one with a piece of a request").await;
        let mut half = connect(front.address, authority).await;
        half.write_all(b"GET /a HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
        half.flush().await.unwrap();
        answers(&mut half, "the first", &["GET /a"]).await;
        half.shutdown().await.unwrap();
        closes(&mut half, "one whose client has closed its half").await;
        until("no connection is left", async || front.routes.clients().connected() == 0).await;
    }
}

/// SIGTERM.
struct Terminate(Arc<Notify>);

#[async_trait::async_trait]
impl ShutdownSignalWatch for Terminate {
    async fn recv(&self) -> ShutdownSignal {
        self.0.notified().await;
        ShutdownSignal::GracefulTerminate
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_stops_closes_what_has_no_request() {
    let raw = Raw::start().await;
    let folder = tempfile::tempdir().unwrap();
    let fronts = [("clear", HttpFront::plain(free(), &[])), ("secure", secure(folder.path()))];
    let resources = fronts
        .each_ref()
        .map(|(name, front)| ResourceFront::new(*name, front, WIDE, Pool::new(0, "a", &[raw.address()])));
    let routes = Routes::new(&resources).unwrap();
    let recorder = Recorder::new();
    // Requests may go on for longer than this test: what is closed is not closed by the end of the server.
    let mut server = server(ServerSettings { grace: DEADLINE * 10, ..ServerSettings::default() });
    let service = service(&server, &routes, &recorder);
    server.add_service(service);
    let signal = Arc::new(Notify::new());
    let shutdown_signal = Box::new(Terminate(Arc::clone(&signal)));
    std::thread::spawn(move || server.run(RunArgs { shutdown_signal }));
    let mut clients = Vec::new();
    for ((name, front), authority) in fronts.iter().zip([None, Some(folder.path())]) {
        until("the front listens", async || TcpStream::connect(front.listen).await.is_ok()).await;
        clients.push((format!("{name}, silent"), connect(front.listen, authority).await));
        let mut kept = connect(front.listen, authority).await;
        kept.write_all(b"GET /a HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
        kept.flush().await.unwrap();
        answers(&mut kept, name, &["GET /a"]).await;
        clients.push((format!("{name}, kept"), kept));
        let mut begun = connect(front.listen, authority).await;
        begun.write_all(b"GET /a").await.unwrap();
        begun.flush().await.unwrap();
        clients.push((format!("{name}, begun"), begun));
    }
    // Both sides have the connections that are to be closed; those that only asked whether somebody listens are gone.
    until("all are connected", async || routes.clients().connected() == clients.len()).await;
    signal.notify_one();
    for (what, client) in &mut clients {
        closes(client, what).await;
    }
    until("no connection is left", async || routes.clients().connected() == 0).await;
}
