//! Clients that are slow, rude or many.

use std::process::Stdio;
use std::time::Instant;

use godwit::fronts::http::settings::AccessLog;
use godwit_tests::postgres::free_port;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;

use super::raw::Raw;
use super::*;

const GET: &[u8] = b"GET / HTTP/1.1\r\nhost: a\r\n\r\n";

async fn answered(stream: &mut TcpStream) -> bool {
    let mut answer = [0; 15];
    let read = tokio::time::timeout(DEADLINE, stream.read_exact(&mut answer)).await;
    read.is_ok_and(|read| read.is_ok()) && &answer == b"HTTP/1.1 200 OK"
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_held_requests_are_all_answered() {
    const HELD: usize = 1000;
    let (old, new) = (Raw::start().await, Raw::start().await);
    let front = Front::start(&[], WIDE, Pool::new(0, "a", &[old.address()])).await;
    front.close_and_drain().await;
    let mut clients = Vec::new();
    for _ in 0..HELD {
        let mut stream = TcpStream::connect(front.address).await.unwrap();
        stream.write_all(GET).await.unwrap();
        clients.push(stream);
    }
    front.held(HELD).await;
    front.resource.pool.swap(Pool::new(1, "b", &[new.address()])).unwrap();
    front.gate().open();
    for client in &mut clients {
        assert!(answered(client).await);
    }
    assert_eq!((old.take().len(), new.take().len()), (0, HELD));
}

/// Clients that reset their connections, before and in the middle of requests, leave nothing behind.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_storm_of_resets_leaves_nothing_behind() {
    let raw = Raw::start().await;
    let front = Front::start(&[], WIDE, Pool::new(0, "a", &[raw.address()])).await;
    for round in 0..300 {
        let mut stream = TcpStream::connect(front.address).await.unwrap();
        let part = GET.len() * (round % 4) / 3;
        stream.write_all(&GET[..part]).await.unwrap();
        rustix::net::sockopt::set_socket_linger(&stream, Some(Duration::ZERO)).unwrap();
    }
    until("everybody left", async || front.gate().stats().in_flight == 0).await;
    front.close_and_drain().await;
    front.gate().open();
    assert_eq!(front.send(front.get("/")).await.0, StatusCode::OK);
}

/// HTTP/2 streams that are opened and reset at once, by the thousand (CVE-2023-44487): others are served meanwhile.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_storm_of_resets_on_http2_harms_nobody_else() {
    let raw = Raw::start().await;
    let mut plain = HttpFront::plain(SocketAddr::from(([127, 0, 0, 1], free_port().unwrap())), &[]);
    plain.listener.h2c = true;
    let front = Front::of(plain, WIDE, Pool::new(0, "a", &[raw.address()])).await;
    let mut storm = super::smuggling::preface();
    for stream in 0..5000_u32 {
        storm.extend(super::smuggling::get(2 * stream + 1));
        storm.extend(super::smuggling::reset(2 * stream + 1));
    }
    let mut rude = TcpStream::connect(front.address).await.unwrap();
    let _ = rude.write_all(&storm).await;
    for _ in 0..20 {
        assert_eq!(front.send(front.get("/polite")).await.0, StatusCode::OK);
    }
    drop(rude);
    until("everybody left", async || front.gate().stats().in_flight == 0).await;
    let polite = raw.take().iter().filter(|seen| seen.what() == "GET /polite").count();
    assert_eq!(polite, 20);
}

/// On HTTP/2 a client leaves by a reset, or with its connection: before the answer, in the middle of it, while it is held.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_leaves_on_http2_has_left() {
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("access.log");
    let mut plain = HttpFront::plain(free(), &[]);
    plain.listener.h2c = true;
    let sample = migration::units::Ratio::new(1.0).unwrap();
    plain.settings.access_log = Some(AccessLog { file: Some(path.clone()), sample });
    let front = Front::of(plain, WIDE, Pool::new(0, "a", &[listener.local_addr().unwrap()])).await;
    let lines = || std::fs::read_to_string(&path).unwrap_or_default();
    let told = async |count| until("it is told", async || lines().lines().count() == count).await;
    let ask = async || {
        let mut client = TcpStream::connect(front.address).await.unwrap();
        let request = [super::smuggling::preface(), super::smuggling::get(1)].concat();
        client.write_all(&request).await.unwrap();
        client
    };
    let asked = async || {
        let client = ask().await;
        let (mut endpoint, _) = listener.accept().await.unwrap();
        assert!(endpoint.read(&mut [0; 1024]).await.unwrap() > 0);
        (client, endpoint)
    };
    let reset = super::smuggling::reset(1);

    let (mut client, endpoint) = asked().await;
    client.write_all(&reset).await.unwrap();
    told(1).await;
    drop(endpoint);

    let (mut client, mut endpoint) = asked().await;
    endpoint.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\npiece").await.unwrap();
    let mut got = Vec::new();
    while !got.windows(5).any(|five| five == b"piece") {
        assert!(client.read_buf(&mut got).await.unwrap() > 0, "{}", got.escape_ascii());
    }
    client.write_all(&reset).await.unwrap();
    told(2).await;
    drop(endpoint);

    let (client, endpoint) = asked().await;
    drop(client);
    told(3).await;
    drop(endpoint);

    front.close_and_drain().await;
    let mut client = ask().await;
    front.held(1).await;
    client.write_all(&reset).await.unwrap();
    front.held(0).await;
    told(4).await;

    let lines: Vec<serde_json::Value> =
        lines().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    for (line, status) in lines.iter().zip([None, Some(200), None, None]) {
        assert_eq!((&line["fault"], &line["status"]), (&"client_left".into(), &status.into()), "{line}");
    }
}

/// A client that does not read its answer, and one that does not send its body, keep nobody else waiting and are left after
/// their time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_clients_keep_nobody_waiting() {
    let raw = Raw::start().await;
    let large = large_answers().await;
    let mut plain = HttpFront::plain(SocketAddr::from(([127, 0, 0, 1], free_port().unwrap())), &[]);
    plain.settings.timeouts.client = Duration::from_secs(1);
    let front = Front::of(plain, WIDE, Pool::new(0, "a", &[large])).await;
    let mut readers = Vec::new();
    for _ in 0..20 {
        let mut stream = TcpStream::connect(front.address).await.unwrap();
        stream.write_all(GET).await.unwrap();
        readers.push(stream);
    }
    until("the slow readers are inside", async || front.gate().stats().in_flight == 20).await;
    front.resource.pool.swap(Pool::new(1, "b", &[raw.address()])).unwrap();
    let mut writers = Vec::new();
    for _ in 0..20 {
        let mut stream = TcpStream::connect(front.address).await.unwrap();
        stream.write_all(b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 100\r\n\r\nbegin").await.unwrap();
        writers.push(stream);
    }
    let begin = Instant::now();
    assert_eq!(front.send(front.get("/")).await.0, StatusCode::OK);
    assert!(begin.elapsed() < DEADLINE);
    until("the slow ones are left", async || front.gate().stats().in_flight == 0).await;
    drop((readers, writers));
}

/// An endpoint with answers that do not fit into any buffer.
async fn large_answers() -> SocketAddr {
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut request = [0; 1024];
                let _ = stream.read(&mut request).await;
                let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", 1_u64 << 40);
                let _ = stream.write_all(head.as_bytes()).await;
                let piece = vec![0; 1 << 16];
                while stream.write_all(&piece).await.is_ok() {}
            });
        }
    });
    address
}

/// Half a close by an endpoint ends its answer; half a close by a client counts as leaving.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn half_closed_peers() {
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let front = Front::start(&[], WIDE, Pool::new(0, "a", &[listener.local_addr().unwrap()])).await;
    let mut client = TcpStream::connect(front.address).await.unwrap();
    client.write_all(GET).await.unwrap();
    let (mut endpoint, _) = listener.accept().await.unwrap();
    endpoint.write_all(b"HTTP/1.1 200 OK\r\n\r\nuntil the end").await.unwrap();
    endpoint.shutdown().await.unwrap();
    let mut answer = Vec::new();
    let whole = async {
        while !answer.ends_with(b"0\r\n\r\n") {
            if client.read_buf(&mut answer).await.unwrap() == 0 {
                return;
            }
        }
    };
    tokio::time::timeout(DEADLINE, whole).await.expect("the end of the answer");
    assert!(String::from_utf8_lossy(&answer).contains("until the end"), "{}", answer.escape_ascii());

    let mut client = TcpStream::connect(front.address).await.unwrap();
    client.write_all(GET).await.unwrap();
    let (mut endpoint, _) = listener.accept().await.unwrap();
    let mut request = [0; 1024];
    assert!(endpoint.read(&mut request).await.unwrap() > 0);
    client.shutdown().await.unwrap();
    until("the client has left", async || front.gate().stats().in_flight == 0).await;
    assert_eq!(tokio::time::timeout(DEADLINE, endpoint.read(&mut request)).await.unwrap().unwrap(), 0);
}

/// What ten thousand connections without a request cost: `make test-idle`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs 12,000 file descriptors in two processes"]
async fn ten_thousand_idle_connections() {
    const IDLE: u64 = 10_000;
    let raw = Raw::start().await;
    let front = Front::start(&[], WIDE, Pool::new(0, "a", &[raw.address()])).await;
    let memory = || {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() >> 10
    };
    let before = memory();
    let mut clients = Command::new("python3")
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/e2e/front/idle.py"))
        .args([front.address.port().to_string(), IDLE.to_string()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(clients.stdout.take().unwrap()).lines();
    let ready = tokio::time::timeout(DEADLINE * 4, lines.next_line()).await.expect("all are connected");
    assert_eq!(ready.unwrap().as_deref(), Some("ready"));
    let after = memory();
    println!("{IDLE} idle connections: {before} MiB before, {after} MiB after");
    assert_eq!(front.send(front.get("/")).await.0, StatusCode::OK);
    assert!(after <= 200 + before, "{} MiB", after - before);
}
