//! Endpoints that are not well, connections that die, and what a front does about both.

use std::process::Stdio;
use std::sync::atomic::AtomicU16;

use godwit::fronts::http::settings::{Ejection, HealthCheck, Upstream as Way};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::TcpListener;
use tokio::process::{Child, ChildStdout, Command};
use tokio::task::{AbortHandle, JoinSet};

use super::streams::header;
use super::*;

/// Answers health checks and requests with statuses that can be changed.
struct Moody {
    address: SocketAddr,
    health: Arc<AtomicU16>,
    answer: Arc<AtomicU16>,
    seen: Arc<AtomicU64>,
    task: AbortHandle,
}

impl Moody {
    async fn start() -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (health, answer) = (Arc::new(AtomicU16::new(200)), Arc::new(AtomicU16::new(200)));
        let seen = Arc::new(AtomicU64::new(0));
        let shared = (health.clone(), answer.clone(), seen.clone());
        let task = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let (health, answer, seen) = shared.clone();
                connections.spawn(async move {
                    let service = hyper::service::service_fn(|request: Request<hyper::body::Incoming>| {
                        let status = if request.uri().path() == "/healthz" {
                            health.load(SeqCst)
                        } else {
                            seen.fetch_add(1, SeqCst);
                            answer.load(SeqCst)
                        };
                        let response =
                            Response::builder().status(status).body(Full::new(Bytes::new())).unwrap();
                        async move { Ok::<_, std::convert::Infallible>(response) }
                    });
                    hyper::server::conn::http1::Builder::new()
                        .serve_connection(hyper_util::rt::TokioIo::new(stream), service)
                        .await
                });
            }
        });
        Self { address, health, answer, seen, task: task.abort_handle() }
    }
}

impl Drop for Moody {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endpoint_that_is_not_well_is_left_out_until_it_is() {
    let (one, two) = (Moody::start().await, Moody::start().await);
    let mut plain = HttpFront::plain(free(), &[]);
    plain.settings.health = Some(HealthCheck {
        path: Some("/healthz".into()),
        every: Duration::from_millis(100),
        timeout: Duration::from_secs(5),
        down_after: 2,
        up_after: 2,
    });
    let front = Front::of(plain, WIDE, Pool::new(0, "a", &[one.address, two.address])).await;
    let up = |at: usize| front.resource.pool.load().endpoints()[at].is_up();
    one.health.store(500, SeqCst);
    until("the first is out", async || !up(0)).await;
    let before = one.seen.load(SeqCst);
    for _ in 0..50 {
        assert_eq!(front.send(front.get("/")).await.0, StatusCode::OK);
    }
    assert_eq!((one.seen.load(SeqCst), two.seen.load(SeqCst)), (before, 50));
    // Where none is well, requests go on.
    two.health.store(500, SeqCst);
    until("both are out", async || !up(1)).await;
    assert_eq!(front.send(front.get("/")).await.0, StatusCode::OK);
    one.health.store(200, SeqCst);
    until("the first is back", async || up(0)).await;
    for _ in 0..20 {
        assert_eq!(front.send(front.get("/")).await.0, StatusCode::OK);
    }
    assert!(one.seen.load(SeqCst) >= before + 20);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endpoint_whose_requests_fail_is_left_out_for_a_while() {
    let (one, two) = (Moody::start().await, Moody::start().await);
    let mut plain = HttpFront::plain(free(), &[]);
    plain.settings.ejection = Some(Ejection {
        failures: 3,
        time: Duration::from_secs(1),
        most: migration::units::Ratio::new(0.5).unwrap(),
    });
    let front = Front::of(plain, WIDE, Pool::new(0, "a", &[one.address, two.address])).await;
    one.answer.store(503, SeqCst);
    let mut failed = 0;
    let sent = until("three have failed", async || {
        failed += u64::from(front.send(front.get("/")).await.0 == StatusCode::SERVICE_UNAVAILABLE);
        failed == 3
    });
    sent.await;
    one.answer.store(200, SeqCst);
    let before = one.seen.load(SeqCst);
    assert_eq!(before, 3);
    for _ in 0..20 {
        assert_eq!(front.send(front.get("/")).await.0, StatusCode::OK);
    }
    assert_eq!(one.seen.load(SeqCst), before, "it is out for a second");
    until("it is asked again", async || {
        front.send(front.get("/")).await;
        one.seen.load(SeqCst) > before
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_its_limit_a_placement_takes_no_more() {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let way = Way { limit: Some(2), ..Way::default() };
    let reach = Arc::new(Reach::new(&way, &[address.to_string()], &[address]).unwrap());
    let pool = Pool::new(0, "a", &[address]);
    let front =
        Front::reaching(HttpFront::plain(free(), &[]), WIDE, pool, HashMap::from([("a".into(), reach)]))
            .await;
    let front = Arc::new(front);
    let mut waiting = Vec::new();
    let mut streams = Vec::new();
    for _ in 0..2 {
        let front = Arc::clone(&front);
        waiting.push(tokio::spawn(async move { front.send(front.get("/")).await.0 }));
        streams.push(listener.accept().await.unwrap().0);
    }
    let (status, headers, text) = front.send(front.get("/")).await;
    assert_eq!(
        (status, headers["retry-after"].to_str().unwrap()),
        (StatusCode::SERVICE_UNAVAILABLE, "1"),
        "{text}"
    );
    for stream in &mut streams {
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await.unwrap();
    }
    for request in waiting {
        assert_eq!(request.await.unwrap(), StatusCode::OK);
    }
}

/// Without a path a check asks only for a connection.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endpoint_that_takes_no_connection_is_left_out_until_it_does() {
    let alive = Moody::start().await;
    let gone = free();
    let mut plain = HttpFront::plain(free(), &[]);
    let every = Duration::from_millis(50);
    plain.settings.health =
        Some(HealthCheck { path: None, every, down_after: 2, up_after: 2, ..Default::default() });
    let front = Front::of(plain, WIDE, Pool::new(0, "a", &[alive.address, gone])).await;
    let up = |at: usize| front.resource.pool.load().endpoints()[at].is_up();
    until("the second is out", async || !up(1)).await;
    assert!(up(0));
    let _back = TcpListener::bind(gone).await.unwrap();
    until("the second is back", async || up(1)).await;
}

/// An endpoint that owes an answer is given up after its time; whoever asks for a stream waits on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_endpoint_is_given_up_but_by_streams() {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let mut plain = HttpFront::plain(free(), &[]);
    plain.settings.timeouts.answer = Duration::from_millis(200);
    let front = Front::of(plain, WIDE, Pool::new(0, "a", &[listener.local_addr().unwrap()])).await;
    let front = Arc::new(front);
    let stream = tokio::spawn({
        let front = Arc::clone(&front);
        let mut request = front.get("/events");
        request.headers_mut().insert("accept", "text/event-stream".parse().unwrap());
        async move { front.send(request).await }
    });
    let (mut streaming, _) = listener.accept().await.unwrap();
    let (status, _, text) = front.send(front.request(Method::POST, "/", Bytes::from_static(b"body"))).await;
    assert_eq!(status, StatusCode::GATEWAY_TIMEOUT, "{text}");
    assert!(text.contains("did not answer in time"), "{text}");
    streaming.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nevent").await.unwrap();
    let (status, _, text) = stream.await.unwrap();
    assert_eq!((status, &*text), (StatusCode::OK, "event"));
}

/// Of a front without patience, whose only endpoint is out after one failure.
fn impatient() -> HttpFront {
    let mut plain = HttpFront::plain(free(), &[]);
    plain.listener.h2c = true;
    plain.settings.timeouts.answer = Duration::from_millis(200);
    let most = migration::units::Ratio::new(1.0).unwrap();
    plain.settings.ejection = Some(Ejection { failures: 1, time: DEADLINE * 10, most });
    plain
}

async fn strict(at: SocketAddr) -> Arc<Front> {
    Arc::new(Front::of(impatient(), WIDE, Pool::new(0, "a", &[at])).await)
}

fn is_out(front: &Front) -> bool {
    front.resource.pool.load().endpoints()[0].is_ejected(godwit::clock::monotonic())
}

/// A client that says nothing more in the middle of its body, on HTTP/2, where the proxy library has no time for that.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_stalls_is_no_failure_of_the_endpoint() {
    let raw = super::raw::Raw::start().await;
    let front = strict(raw.address()).await;
    let client = Client::builder(TokioExecutor::new()).http2_only(true).build(HttpConnector::new());
    let piece = hyper::body::Frame::data(Bytes::from_static(b"x"));
    let pieces = futures_util::stream::iter([Ok::<_, std::convert::Infallible>(piece)]);
    let body = futures_util::StreamExt::chain(pieces, futures_util::stream::pending());
    let request = Request::post(format!("http://{}/", front.address))
        .header("content-length", "10")
        .body(http_body_util::StreamBody::new(body))
        .unwrap();
    let answer = tokio::time::timeout(DEADLINE, client.request(request)).await.expect("an end").unwrap();
    let (status, headers, text) = read(answer).await;
    assert_eq!(status, StatusCode::REQUEST_TIMEOUT);
    assert_eq!(headers["content-type"], "application/problem+json");
    assert!(text.contains("did not come in time"), "{text}");
    until("a part of it has come", async || !raw.take_broken().is_empty()).await;
    until("it has ended", async || front.gate().stats().in_flight == 0).await;
    assert!(!is_out(&front));
}

/// Whether the endpoint's time ends first or the client's own.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_stalls_is_told_so() {
    let raw = super::raw::Raw::start().await;
    let mut patient = impatient();
    patient.settings.timeouts.answer = DEADLINE * 10;
    patient.settings.timeouts.client = Duration::from_secs(1);
    for settings in [impatient(), patient] {
        let front = Front::of(settings, WIDE, Pool::new(0, "a", &[raw.address()])).await;
        let mut client = TcpStream::connect(front.address).await.unwrap();
        client.write_all(b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 10\r\n\r\nhalf").await.unwrap();
        let mut answer = String::new();
        let read = client.read_to_string(&mut answer);
        tokio::time::timeout(DEADLINE, read).await.expect("an end").unwrap();
        assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
        assert!(answer.to_lowercase().contains("\r\nconnection: close\r\n"), "{answer}");
        assert!(answer.ends_with('}') && answer.contains("did not come in time"), "{answer}");
        let mut failed = 0;
        until("it has ended", async || {
            let (_, answers) = front.latencies.take_of("orders", "a", Segment::Upstream);
            failed += answers.failed;
            answers.all > 0
        })
        .await;
        assert_eq!((failed, is_out(&front)), (0, false));
    }
}

/// An endpoint of HTTP/2 that answers after 100 ms; `/never`: not at all.
async fn late() -> (SocketAddr, AbortHandle) {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let task = tokio::spawn(async move {
        let mut connections = JoinSet::new();
        while let Ok((stream, _)) = listener.accept().await {
            connections.spawn(async move {
                let service =
                    hyper::service::service_fn(|request: Request<hyper::body::Incoming>| async move {
                        if request.uri().path() == "/never" {
                            std::future::pending::<()>().await;
                        }
                        tokio::time::sleep(Duration::from_millis(100)).await;
                        Ok::<_, std::convert::Infallible>(Response::new(Full::new(Bytes::new())))
                    });
                hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                    .serve_connection(hyper_util::rt::TokioIo::new(stream), service)
                    .await
            });
        }
    });
    (address, task.abort_handle())
}

/// The proxy library passes no end of a body on to HTTP/2 where there is none.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_has_no_body_waits_for_no_client() {
    let (address, late) = late().await;
    let way = Way { http2: true, ..Way::default() };
    let reach = Arc::new(Reach::new(&way, &[address.to_string()], &[address]).unwrap());
    let pool = Pool::new(0, "a", &[address]);
    let front = Front::reaching(impatient(), WIDE, pool, HashMap::from([("a".into(), reach)])).await;
    assert_eq!(front.send(front.get("/")).await.0, StatusCode::OK);
    // HTTP/1.0 needs no host, and HTTP/1.1 may leave it empty.
    for request in ["GET / HTTP/1.0\r\n\r\n", "GET / HTTP/1.1\r\nhost:\r\nconnection: close\r\n\r\n"] {
        let mut client = TcpStream::connect(front.address).await.unwrap();
        client.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        tokio::time::timeout(DEADLINE, client.read_to_string(&mut answer)).await.unwrap().unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer} to {request}");
    }
    let mut took = 0;
    until("it is measured", async || {
        took = front.latencies.take("orders", "a", Segment::FirstByte).max();
        took > 0
    })
    .await;
    assert!(took >= 100_000, "{took} µs");
    let (status, _, text) = front.send(front.get("/never")).await;
    assert_eq!(status, StatusCode::GATEWAY_TIMEOUT, "{text}");
    until("it is out", async || is_out(&front)).await;
    late.abort();
}

/// An endpoint that reads nothing of a body, and one that does not let its client send it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endpoint_that_takes_no_body_has_failed() {
    const LENGTH: usize = 64 << 20;
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    for (expects, length) in [("", LENGTH), ("expect: 100-continue\r\n", 0)] {
        let front = strict(listener.local_addr().unwrap()).await;
        let mut client = TcpStream::connect(front.address).await.unwrap();
        let head = format!("POST / HTTP/1.1\r\nhost: a\r\n{expects}content-length: {LENGTH}\r\n\r\n");
        client.write_all(head.as_bytes()).await.unwrap();
        let sending = tokio::spawn(async move {
            let _ = client.write_all(&vec![0; length]).await;
            client
        });
        until("it is out", async || is_out(&front)).await;
        sending.abort();
    }
}

/// `dead.py`.
struct Dead {
    child: Child,
    lines: tokio::io::Lines<BufReader<ChildStdout>>,
    address: SocketAddr,
}

impl Dead {
    async fn start() -> Self {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/e2e/front/dead.py");
        let mut child = Command::new("python3")
            .arg(script)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let port: u16 = lines.next_line().await.unwrap().unwrap().parse().unwrap();
        Self { child, lines, address: SocketAddr::from(([127, 0, 0, 1], port)) }
    }

    async fn says(&mut self, what: &str) {
        let line = tokio::time::timeout(DEADLINE, self.lines.next_line()).await;
        let line = line.unwrap_or_else(|_| panic!("the endpoint does not say {what}"));
        assert_eq!(line.unwrap().as_deref(), Some(what));
    }

    /// Ends the deaf connection.
    async fn end(&mut self) {
        self.child.stdin.as_mut().unwrap().write_all(b"\n").await.unwrap();
    }

    /// Bytes that were sent to it and that it has not taken: the kernel's list of connections says so.
    fn not_taken(&self) -> u64 {
        let to = format!("0100007F:{:04X}", self.address.port());
        let list = std::fs::read_to_string("/proc/net/tcp").unwrap();
        let queued = |line: &str| {
            let words: Vec<_> = line.split_whitespace().collect();
            let queued = words.get(4)?.split(':').next()?;
            u64::from_str_radix(queued, 16).ok().filter(|_| words[2] == to)
        };
        list.lines().filter_map(queued).sum()
    }
}

/// A kept connection dies under a POST of which the endpoint took nothing: it is sent again, on a new one, once; and it is one request,
/// where the endpoint may have no more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_post_that_nobody_saw_is_sent_again() {
    let mut dead = Dead::start().await;
    let way = Way { limit: Some(1), ..Way::default() };
    let reach = Arc::new(Reach::new(&way, &[dead.address.to_string()], &[dead.address]).unwrap());
    let (plain, pool) = (HttpFront::plain(free(), &[]), Pool::new(0, "a", &[dead.address]));
    let front = Arc::new(Front::reaching(plain, WIDE, pool, HashMap::from([("a".into(), reach)])).await);
    assert_eq!(front.send(front.get("/")).await.0, StatusCode::OK);
    until("it has left", async || front.resource.pool.load().endpoints()[0].in_flight() == 0).await;
    dead.says("request").await;
    dead.says("deaf").await;
    let post = tokio::spawn({
        let front = Arc::clone(&front);
        async move { front.send(front.request(Method::POST, "/", Bytes::from_static(b"body"))).await }
    });
    until("the POST is under way", async || dead.not_taken() > 0).await;
    dead.end().await;
    let (status, _, text) = post.await.unwrap();
    assert_eq!(status, StatusCode::OK, "{text}");
    dead.says("request").await;
}

/// What it sends again counts once for the limit of its body.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_post_that_is_sent_again_is_no_larger() {
    const BODY: usize = 30 << 10;
    let mut dead = Dead::start().await;
    let mut plain = HttpFront::plain(free(), &[]);
    plain.settings.limits.body_bytes = Some(50 << 10);
    let front = Arc::new(Front::of(plain, WIDE, Pool::new(0, "a", &[dead.address])).await);
    assert_eq!(front.send(front.get("/")).await.0, StatusCode::OK);
    dead.says("request").await;
    dead.says("deaf").await;
    let post = tokio::spawn({
        let front = Arc::clone(&front);
        let body = [vec![b'x'; BODY], b"body".to_vec()].concat();
        async move { front.send(front.request(Method::POST, "/", body.into())).await }
    });
    until("all of it was sent", async || dead.not_taken() > BODY as u64).await;
    dead.end().await;
    let (status, _, text) = post.await.unwrap();
    assert_eq!(status, StatusCode::OK, "{text}");
    dead.says("request").await;
}

/// One with a body that is not kept cannot be sent again, and the client is told that nobody saw it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_post_that_nobody_saw_is_refused_as_such() {
    let mut dead = Dead::start().await;
    let front = Arc::new(Front::start(&[], WIDE, Pool::new(0, "a", &[dead.address])).await);
    assert_eq!(front.send(front.get("/")).await.0, StatusCode::OK);
    dead.says("request").await;
    dead.says("deaf").await;
    let post = tokio::spawn({
        let front = Arc::clone(&front);
        async move { front.send(front.request(Method::POST, "/", Bytes::from(vec![0; 1 << 20]))).await }
    });
    until("more of it was sent than is kept", async || dead.not_taken() > 200_000).await;
    dead.end().await;
    let (status, headers, text) = post.await.unwrap();
    assert_eq!(
        (status, headers["retry-after"].to_str().unwrap()),
        (StatusCode::SERVICE_UNAVAILABLE, "1"),
        "{text}"
    );
    assert!(text.contains("not processed"), "{text}");
}

/// Answers the first request of each connection, and resets the connection when it has read the header of the second, before its
/// kernel has acknowledged any of that. Returns how many requests it has read, and how many it reset.
fn resetting(listener: TcpListener) -> (Arc<AtomicU64>, Arc<AtomicU64>) {
    let (seen, reset) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let counted = (seen.clone(), reset.clone());
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let (seen, reset) = counted.clone();
            tokio::spawn(async move {
                for turn in 0..2 {
                    let mut request = Vec::new();
                    while !request.windows(4).any(|four| four == b"\r\n\r\n") {
                        if stream.read_buf(&mut request).await.unwrap_or(0) == 0 {
                            return;
                        }
                    }
                    seen.fetch_add(1, SeqCst);
                    if turn == 0 {
                        // The rest of it.
                        while request.starts_with(b"POST / ") && !request.ends_with(b"body") {
                            stream.read_buf(&mut request).await.unwrap();
                        }
                        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await.unwrap();
                        rustix::net::sockopt::set_tcp_quickack(&stream, false).unwrap();
                    }
                }
                reset.fetch_add(1, SeqCst);
                rustix::net::sockopt::set_socket_linger(&stream, Some(Duration::ZERO)).unwrap();
            });
        }
    });
    (seen, reset)
}

/// An endpoint that reads a POST, all of it or only its header, and resets the connection may have carried it out: it is not sent again,
/// although nothing of it was acknowledged.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_post_that_is_answered_with_a_reset_is_not_sent_again() {
    for (path, body) in [("/empty", ""), ("/", "body")] {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let pool = Pool::new(0, "a", &[listener.local_addr().unwrap()]);
        let (seen, reset) = resetting(listener);
        let front = Front::start(&[], WIDE, pool).await;
        let (mut sent, mut last) = (0, None);
        until("one was reset", async || {
            last = Some(
                front.send(front.request(Method::POST, path, Bytes::from_static(body.as_bytes()))).await,
            );
            sent += 1;
            reset.load(SeqCst) > 0
        })
        .await;
        let (status, _, text) = last.unwrap();
        assert_eq!((seen.load(SeqCst), status), (sent, StatusCode::BAD_GATEWAY), "{text}");
        assert!(text.contains("may have been processed"), "{text}");
    }
}

/// Connections of the old generation are closed by the swap, not when the keep-alive pool thinks of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_swap_closes_what_is_kept() {
    let (old, new) = (super::raw::Raw::start().await, super::raw::Raw::start().await);
    let front = Front::start(&[], WIDE, Pool::new(0, "a", &[old.address()])).await;
    for _ in 0..5 {
        assert_eq!(front.send(front.get("/")).await.0, StatusCode::OK);
    }
    // The next request may come before the connection of the last one is back.
    assert!((1..5).contains(&old.open()), "{} connections", old.open());
    front.close_and_drain().await;
    let before = front.resource.pool.swap(Pool::new(1, "b", &[new.address()])).unwrap();
    front.gate().open();
    until("the old side's connections are closed", async || old.open() == 0).await;
    until("they are forgotten", async || before.endpoints()[0].connections().count() == 0).await;
    assert_eq!(front.send(front.get("/")).await.0, StatusCode::OK);
    assert_eq!((old.open(), new.open()), (0, 1));
}

/// Two resources with an endpoint at one address, and a connection that one of them keeps there: a move of that one is nothing to
/// a POST of the other.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_move_ends_no_request_of_another_resource_at_the_same_address() {
    const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let pool = || Pool::new(0, "a", &[address]);
    let plain = HttpFront::plain(free(), &["orders"]);
    let front = Arc::new(Front::of(plain.clone(), WIDE, pool()).await);
    let other = HttpFront { hosts: vec!["billing".into()], ..plain };
    let other = ResourceFront::new("billing", &other, WIDE, pool());
    front.routes.publish(&[Arc::clone(&front.resource), other]).unwrap();
    let send = |method: Method, host: &'static str| {
        let front = Arc::clone(&front);
        tokio::spawn(async move {
            let mut request = front.request(method, "/", Bytes::new());
            request.headers_mut().insert("host", host.parse().unwrap());
            front.send(request).await
        })
    };

    let get = send(Method::GET, "orders");
    let (mut kept, _) = listener.accept().await.unwrap();
    header(&mut kept).await;
    kept.write_all(ANSWER).await.unwrap();
    assert_eq!(get.await.unwrap().0, StatusCode::OK);

    let post = send(Method::POST, "billing");
    let mut byte = [0];
    // On whichever connection it comes.
    let mut busy = tokio::select! {
        accepted = listener.accept() => accepted.unwrap().0,
        read = kept.peek(&mut byte) => {
            assert_eq!(read.unwrap(), 1);
            kept
        }
    };
    header(&mut busy).await;
    front.close_and_drain().await;
    front.resource.pool.swap(Pool::new(1, "b", &[])).unwrap();
    front.gate().open();
    busy.write_all(ANSWER).await.unwrap();
    let (status, _, text) = post.await.unwrap();
    assert_eq!(status, StatusCode::OK, "{text}");
}
