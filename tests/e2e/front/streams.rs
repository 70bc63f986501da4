//! Long streams across a swap: WebSocket, server-sent events, gRPC.

use godwit::fronts::http::settings::{AtCutover, Route, StreamRules, Upstream as Way};
use http_body_util::{StreamBody, combinators::BoxBody};
use hyper::body::Frame;
use tokio::net::TcpListener;
use tokio::task::{AbortHandle, JoinSet};

use super::*;

const HELLO: &[u8] = &[0x81, 5, b'h', b'e', b'l', b'l', b'o'];
const RESTART: &[u8] = &[0x88, 2, 0x03, 0xF4];

const UPGRADE: &str = "connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n\
    sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
const SWITCHING: &[u8] =
    b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n";

/// Upgrades `/ws` and says hello there; begins a stream of events elsewhere; both say more whenever they are told to.
struct Streamer {
    address: SocketAddr,
    more: tokio::sync::watch::Sender<u64>,
    open: Arc<AtomicU64>,
    task: AbortHandle,
}

impl Streamer {
    async fn start() -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (more, told) = tokio::sync::watch::channel(0);
        let open = Arc::new(AtomicU64::new(0));
        let counted = open.clone();
        let task = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let (told, open) = (told.clone(), counted.clone());
                connections.spawn(async move {
                    open.fetch_add(1, SeqCst);
                    let _ = stream_on(stream, told).await;
                    open.fetch_sub(1, SeqCst);
                });
            }
        });
        Self { address, more, open, task: task.abort_handle() }
    }

    fn say_more(&self) {
        self.more.send_modify(|times| *times += 1);
    }
}

impl Drop for Streamer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn stream_on(
    mut stream: TcpStream,
    mut told: tokio::sync::watch::Receiver<u64>,
) -> std::io::Result<()> {
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") {
        if stream.read_buf(&mut request).await? == 0 {
            return Ok(());
        }
    }
    let upgrades = request.starts_with(b"GET /ws");
    let (begin, piece): (&[u8], &[u8]) = if upgrades {
        (SWITCHING, HELLO)
    } else {
        let head =
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";
        (head, b"9\r\ndata: 1\n\n\r\n")
    };
    stream.write_all(begin).await?;
    stream.write_all(piece).await?;
    let mut left = [0; 64];
    loop {
        tokio::select! {
            changed = told.changed() => {
                if changed.is_err() {
                    return Ok(());
                }
                stream.write_all(piece).await?;
            }
            read = stream.read(&mut left) => {
                if read? == 0 {
                    return Ok(());
                }
                stream.write_all(piece).await?;
            }
        }
    }
}

async fn front(at: SocketAddr, rules: StreamRules) -> Front {
    let mut plain = HttpFront::plain(free(), &[]);
    plain.settings.streams = rules;
    Front::of(plain, WIDE, Pool::new(0, "a", &[at])).await
}

fn rules(at_cutover: AtCutover) -> StreamRules {
    StreamRules { at_cutover, deadline: DEADLINE * 100, jitter: Duration::from_millis(50) }
}

/// A client that has got the first piece of a stream.
struct Listener {
    stream: TcpStream,
    got: Vec<u8>,
}

impl Listener {
    async fn start(front: &Front, path: &str) -> Self {
        let mut stream = TcpStream::connect(front.address).await.unwrap();
        let upgrade = if path == "/ws" { UPGRADE } else { "" };
        let request = format!("GET {path} HTTP/1.1\r\nhost: a\r\n{upgrade}\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut this = Self { stream, got: Vec::new() };
        this.until(b"\r\n\r\n").await;
        this.piece(path).await;
        this
    }

    /// The next piece.
    async fn piece(&mut self, path: &str) {
        self.until(if path == "/ws" { HELLO } else { b"data: 1\n\n\r\n" }).await;
    }

    /// Reads on to this text, and forgets what came before it.
    async fn until(&mut self, end: &[u8]) {
        let read = async {
            loop {
                if let Some(at) = self.got.windows(end.len()).position(|some| some == end) {
                    self.got.drain(..at + end.len());
                    return;
                }
                let read = self.stream.read_buf(&mut self.got).await.unwrap_or(0);
                assert!(read > 0, "ended: {}", self.got.escape_ascii());
            }
        };
        tokio::time::timeout(DEADLINE, read).await.unwrap_or_else(|_| panic!("no {}", end.escape_ascii()));
    }

    /// What comes until the connection ends.
    async fn rest(mut self) -> Vec<u8> {
        let read = async { while self.stream.read_buf(&mut self.got).await.unwrap_or(0) > 0 {} };
        tokio::time::timeout(DEADLINE, read).await.expect("the stream ends");
        self.got
    }
}

async fn swap(front: &Front, generation: u64, to: SocketAddr) {
    front.close_and_drain().await;
    front.resource.pool.swap(Pool::new(generation, "b", &[to])).unwrap();
    front.gate().open();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_are_closed_after_a_swap_so_that_clients_come_again() {
    let (old, new) = (Streamer::start().await, Streamer::start().await);
    let front = front(old.address, rules(AtCutover::Close)).await;
    let socket = Listener::start(&front, "/ws").await;
    let stream = TcpStream::connect(front.address).await.unwrap();
    let mut events = Listener { stream, got: Vec::new() };
    events.stream.write_all(b"GET /events HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    // So that no next request is on its way when the connection ends with the stream.
    events.until(b"\r\nConnection: close\r\n").await;
    events.piece("/events").await;
    until("both are streams", async || front.resource.streams.count() == 2).await;
    swap(&front, 1, new.address).await;
    assert_eq!(socket.rest().await, RESTART, "code 1012");
    assert_eq!(events.rest().await, b"0\r\n\r\n", "the regular end of the body");
    until("the old side is left", async || old.open.load(SeqCst) == 0).await;
    until("streams are forgotten", async || front.resource.streams.count() == 0).await;
    let again = Listener::start(&front, "/ws").await;
    until("it is at the new side", async || new.open.load(SeqCst) == 1).await;
    drop(again);
}

/// Clients that are sending when their tunnel is ended, to an endpoint that resets it as soon as it hears: each gets the close
/// frame, whatever the front sees first.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tunnels_in_full_swing_end_with_a_close_frame() {
    const TUNNELS: usize = 50;
    const MESSAGE: &[u8] = &[0x81, 0x80, 0, 0, 0, 0];
    let (listener, new) = (TcpListener::bind(("127.0.0.1", 0)).await.unwrap(), Streamer::start().await);
    let front = front(listener.local_addr().unwrap(), rules(AtCutover::Close)).await;
    let (mut clients, mut endpoints) = (JoinSet::new(), JoinSet::new());
    for _ in 0..TUNNELS {
        let mut client = TcpStream::connect(front.address).await.unwrap();
        let request = format!("GET /ws HTTP/1.1\r\nhost: a\r\n{UPGRADE}\r\n");
        client.write_all(request.as_bytes()).await.unwrap();
        let (mut endpoint, _) = listener.accept().await.unwrap();
        endpoints.spawn(async move {
            endpoint.write_all(SWITCHING).await.unwrap();
            let mut bytes = [0; 6];
            while endpoint.read_exact(&mut bytes).await.is_ok() && endpoint.write_all(HELLO).await.is_ok() {}
            rustix::net::sockopt::set_socket_linger(&endpoint, Some(Duration::ZERO)).unwrap();
        });
        let mut listener = Listener { stream: client, got: Vec::new() };
        listener.until(b"\r\n\r\n").await;
        clients.spawn(async move {
            let Listener { stream, mut got } = listener;
            let (mut read, mut write) = stream.into_split();
            let sending = tokio::spawn(async move { while write.write_all(MESSAGE).await.is_ok() {} });
            while read.read_buf(&mut got).await.unwrap_or(0) > 0 {
                let whole = got.len() / HELLO.len() * HELLO.len();
                if got[..whole].chunks(HELLO.len()).all(|frame| frame == HELLO) {
                    got.drain(..whole);
                }
            }
            sending.abort();
            got
        });
    }
    until("all are streams", async || front.resource.streams.count() == TUNNELS).await;
    swap(&front, 1, new.address).await;
    while let Some(rest) = clients.join_next().await {
        assert_eq!(rest.unwrap(), RESTART);
    }
}

/// For longer than a client may be silent in a request.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tunnel_may_be_silent() {
    let endpoint = Streamer::start().await;
    let mut plain = HttpFront::plain(free(), &[]);
    plain.settings.timeouts.client = Duration::from_millis(200);
    let front = Front::of(plain, WIDE, Pool::new(0, "a", &[endpoint.address])).await;
    let mut tunnel = Listener::start(&front, "/ws").await;
    let silent = tokio::time::timeout(Duration::from_millis(800), tunnel.stream.read_u8()).await;
    assert!(silent.is_err(), "it ended: {silent:?}");
    endpoint.say_more();
    tunnel.piece("/ws").await;
}

/// An endpoint that answers so early that its 101, and the first message in the same segment, are there before the request is:
/// the tunnel stands all the same, each time, with what the client sends in the same segment as its request.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tunnel_stands_however_early_its_answer_is() {
    const TUNNELS: usize = 50;
    const MESSAGE: &[u8] = &[0x81, 0x80, 0, 0, 0, 0];
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let front = front(listener.local_addr().unwrap(), rules(AtCutover::Close)).await;
    for number in 0..TUNNELS {
        let mut client = TcpStream::connect(front.address).await.unwrap();
        let mut request = format!("GET /ws HTTP/1.1\r\nhost: a\r\n{UPGRADE}\r\n").into_bytes();
        request.extend_from_slice(MESSAGE);
        client.write_all(&request).await.unwrap();
        let (mut endpoint, _) = listener.accept().await.unwrap();
        endpoint.write_all(&[SWITCHING, HELLO].concat()).await.unwrap();
        let mut listener = Listener { stream: client, got: Vec::new() };
        listener.until(b"\r\n\r\n").await;
        listener.until(HELLO).await;
        let mut seen = Vec::new();
        let read = async {
            while !seen.ends_with(MESSAGE) {
                let read = endpoint.read_buf(&mut seen).await.unwrap();
                assert!(read > 0, "tunnel {number} ended: {}", seen.escape_ascii());
            }
        };
        tokio::time::timeout(DEADLINE, read).await.expect("the client's message");
        listener.stream.write_all(MESSAGE).await.unwrap();
        let mut message = [0; 6];
        tokio::time::timeout(DEADLINE, endpoint.read_exact(&mut message)).await.unwrap().unwrap();
        endpoint.write_all(HELLO).await.unwrap();
        listener.until(HELLO).await;
    }
    until("the tunnels have ended", async || front.resource.streams.count() == 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_finish_on_the_old_side_until_the_deadline() {
    let (old, new) = (Streamer::start().await, Streamer::start().await);
    let front = front(old.address, rules(AtCutover::Finish)).await;
    let mut listeners = [Listener::start(&front, "/ws").await, Listener::start(&front, "/events").await];
    until("only these two are left", async || old.open.load(SeqCst) == 2).await;
    swap(&front, 1, new.address).await;
    for _ in 0..3 {
        old.say_more();
        for (listener, path) in listeners.iter_mut().zip(["/ws", "/events"]) {
            listener.piece(path).await;
        }
    }
    assert_eq!((old.open.load(SeqCst), new.open.load(SeqCst)), (2, 0));
    drop(listeners);
    until("the old side is left", async || old.open.load(SeqCst) == 0).await;

    let deadline = StreamRules { deadline: Duration::from_millis(1), ..rules(AtCutover::Finish) };
    let old = Streamer::start().await;
    let front = self::front(old.address, deadline).await;
    let socket = Listener::start(&front, "/ws").await;
    swap(&front, 1, new.address).await;
    assert_eq!(socket.rest().await, RESTART);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_that_block_are_waited_for() {
    let old = Streamer::start().await;
    let mut plain = HttpFront::plain(free(), &[]);
    plain.settings.streams = rules(AtCutover::Close);
    plain.settings.routes = vec![Route {
        name: "chat".into(),
        path: "/ws".into(),
        at_cutover: Some(AtCutover::Block),
        stream: false,
    }];
    let front = Front::of(plain, WIDE, Pool::new(0, "a", &[old.address])).await;
    let socket = Listener::start(&front, "/ws").await;
    let events = Listener::start(&front, "/events").await;
    front.gate().close();
    until("only the one that blocks is inside", async || front.gate().stats().in_flight == 1).await;
    let mut drained = Box::pin(front.gate().drained());
    assert!(futures_util::poll!(&mut drained).is_pending());
    drop(socket);
    tokio::time::timeout(DEADLINE, drained).await.expect("drained");
    front.gate().open();
    drop(events);
}

/// Endpoints that begin their answers late: a drain does not wait for what is a stream by its route, or by what its client asks for. After
/// the swap those that may be sent again are, and of the others the client is told.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_that_have_not_begun_are_not_waited_for() {
    let (silent, new) = (TcpListener::bind(("127.0.0.1", 0)).await.unwrap(), Streamer::start().await);
    let mut plain = HttpFront::plain(free(), &[]);
    plain.settings.streams = rules(AtCutover::Close);
    // What a move ended needs none.
    plain.settings.retries.budget = migration::units::Ratio::default();
    plain.settings.routes =
        vec![Route { name: "feed".into(), path: "/feed".into(), at_cutover: None, stream: true }];
    let pool = Pool::new(0, "a", &[silent.local_addr().unwrap()]);
    let front = Arc::new(Front::of(plain, WIDE, pool).await);
    let post = tokio::spawn({
        let front = Arc::clone(&front);
        async move { front.send(front.request(Method::POST, "/feed", Bytes::from_static(b"body"))).await }
    });
    let _first = silent.accept().await.unwrap();
    let mut events = Listener { stream: TcpStream::connect(front.address).await.unwrap(), got: Vec::new() };
    let request = b"GET /events HTTP/1.1\r\nhost: a\r\naccept: text/event-stream\r\n\r\n";
    events.stream.write_all(request).await.unwrap();
    let _second = silent.accept().await.unwrap();
    swap(&front, 1, new.address).await;
    let (status, headers, text) = post.await.unwrap();
    assert_eq!((status, &headers["retry-after"]), (StatusCode::SERVICE_UNAVAILABLE, &"1".parse().unwrap()));
    assert!(text.contains("may have been processed"), "{text}");
    events.piece("/events").await;
    until("it is the only stream", async || front.resource.streams.count() == 1).await;
}

/// A front whose `/feed` has streams, which a swap ends.
async fn feed(at: SocketAddr) -> Front {
    let mut plain = HttpFront::plain(free(), &[]);
    plain.settings.streams = rules(AtCutover::Close);
    plain.settings.routes =
        vec![Route { name: "feed".into(), path: "/feed".into(), at_cutover: None, stream: true }];
    Front::of(plain, WIDE, Pool::new(0, "a", &[at])).await
}

/// The next request on a connection, up to the end of its header.
pub(super) async fn header(stream: &mut TcpStream) -> String {
    let mut request = Vec::new();
    let read = async {
        while !request.ends_with(b"\r\n\r\n") {
            assert!(stream.read_buf(&mut request).await.unwrap() > 0, "no request");
        }
    };
    tokio::time::timeout(DEADLINE, read).await.expect("a request");
    String::from_utf8(request).unwrap()
}

/// The old side may have carried out what it was slow to answer, and somebody else's request may have followed at the new one: what is not
/// safe is not sent there, on a kept connection either, whose death would mean that nobody saw it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_put_that_a_move_ended_is_not_sent_to_the_new_side() {
    let (old, new) = (TcpListener::bind(("127.0.0.1", 0)).await.unwrap(), Upstream::start(1).await);
    let front = Arc::new(feed(old.local_addr().unwrap()).await);
    let send = |method: Method, path: &'static str| {
        let front = Arc::clone(&front);
        tokio::spawn(async move { front.send(front.request(method, path, Bytes::new())).await })
    };
    let first = send(Method::GET, "/");
    let (mut kept, _) = old.accept().await.unwrap();
    header(&mut kept).await;
    kept.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await.unwrap();
    assert_eq!(first.await.unwrap().0, StatusCode::OK);
    until("it is kept", async || front.resource.pool.load().endpoints()[0].in_flight() == 0).await;
    let put = send(Method::PUT, "/feed");
    assert!(header(&mut kept).await.starts_with("PUT /feed "));
    swap(&front, 1, new.address()).await;
    let (status, headers, text) = put.await.unwrap();
    assert_eq!((status, &headers["retry-after"]), (StatusCode::SERVICE_UNAVAILABLE, &"1".parse().unwrap()));
    assert!(text.contains("may have been processed"), "{text}");
    assert_eq!(new.seen(), 0);
}

/// What the old side had to say ahead of its answer is none.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_post_that_a_move_ended_after_early_hints_is_answered() {
    let (old, new) = (TcpListener::bind(("127.0.0.1", 0)).await.unwrap(), Upstream::start(1).await);
    let front = feed(old.local_addr().unwrap()).await;
    let mut client = Listener { stream: TcpStream::connect(front.address).await.unwrap(), got: Vec::new() };
    client.stream.write_all(b"POST /feed HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\n\r\n").await.unwrap();
    let (mut endpoint, _) = old.accept().await.unwrap();
    header(&mut endpoint).await;
    endpoint.write_all(b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n").await.unwrap();
    client.until(b"\r\n\r\n").await;
    swap(&front, 1, new.address()).await;
    client.until(b"HTTP/1.1 503 Service Unavailable\r\n").await;
    client.until(b"may have been processed").await;
    assert_eq!(new.seen(), 0);
}

/// A download that a move cut does not look whole.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_no_stream_of_events_is_broken_off() {
    let (old, new) = (TcpListener::bind(("127.0.0.1", 0)).await.unwrap(), Upstream::start(1).await);
    let front = feed(old.local_addr().unwrap()).await;
    let mut client = Listener { stream: TcpStream::connect(front.address).await.unwrap(), got: Vec::new() };
    client.stream.write_all(b"GET /feed/export HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    let (mut endpoint, _) = old.accept().await.unwrap();
    header(&mut endpoint).await;
    let half = b"HTTP/1.1 200 OK\r\ncontent-type: application/x-ndjson\r\ntransfer-encoding: chunked\r\n\r\n2\r\n1\n\r\n";
    endpoint.write_all(half).await.unwrap();
    client.until(b"\r\n\r\n2\r\n1\n\r\n").await;
    swap(&front, 1, new.address()).await;
    assert_eq!(client.rest().await.escape_ascii().to_string(), "", "no last chunk");
}

/// Both zones name the service's one address: what is safe and was not answered yet goes there once more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_has_not_begun_goes_to_the_same_address_after_a_move() {
    let both = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let address = both.local_addr().unwrap();
    let front = feed(address).await;
    let mut events = Listener { stream: TcpStream::connect(front.address).await.unwrap(), got: Vec::new() };
    events.stream.write_all(b"GET /feed HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    let (mut old, _) = both.accept().await.unwrap();
    header(&mut old).await;
    swap(&front, 1, address).await;
    let (mut new, _) = tokio::time::timeout(DEADLINE, both.accept()).await.expect("once more").unwrap();
    header(&mut new).await;
    let answer = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\ndata: 1\n\n";
    new.write_all(answer).await.unwrap();
    events.piece("/feed").await;
}

/// What asks for a stream and is answered at once with something else is an ordinary request.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_ordinary_answer_to_who_asks_for_a_stream_keeps_its_connection() {
    let upstream = super::raw::Raw::start().await;
    let front = front(upstream.address(), rules(AtCutover::Close)).await;
    for _ in 0..3 {
        let mut request = front.get("/");
        request.headers_mut().insert("accept", "text/event-stream".parse().unwrap());
        let (status, headers, _) = front.send(request).await;
        assert_eq!(status, StatusCode::OK);
        assert_eq!(headers["connection"], "keep-alive");
    }
    until("none is left", async || front.resource.streams.count() == 0).await;
}

type Body = BoxBody<Bytes, std::convert::Infallible>;

/// A gRPC server: `/one` answers once, with trailers; anything else begins a stream and leaves it open.
async fn grpc() -> (SocketAddr, AbortHandle) {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let task = tokio::spawn(async move {
        let mut connections = JoinSet::new();
        while let Ok((stream, _)) = listener.accept().await {
            connections.spawn(async move {
                let service =
                    hyper::service::service_fn(|request: Request<hyper::body::Incoming>| async move {
                        let (path, te) =
                            (request.uri().path().to_owned(), request.headers().get("te").cloned());
                        let body = request.into_body().collect().await;
                        let data =
                            Frame::data(body.map(http_body_util::Collected::to_bytes).unwrap_or_default());
                        let mut trailers = http::HeaderMap::new();
                        trailers.insert("grpc-status", http::HeaderValue::from_static("0"));
                        let frames: Vec<Result<_, std::convert::Infallible>> =
                            vec![Ok(data), Ok(Frame::trailers(trailers))];
                        let body: Body = if path == "/one" {
                            StreamBody::new(futures_util::stream::iter(frames)).boxed()
                        } else {
                            let first = futures_util::stream::iter(frames.into_iter().take(1));
                            let open = futures_util::stream::pending();
                            StreamBody::new(futures_util::StreamExt::chain(first, open)).boxed()
                        };
                        let response = Response::builder().header("content-type", "application/grpc");
                        let te = te.unwrap_or(http::HeaderValue::from_static("none"));
                        Ok::<_, std::convert::Infallible>(response.header("saw-te", te).body(body).unwrap())
                    });
                let executor = TokioExecutor::new();
                hyper::server::conn::http2::Builder::new(executor)
                    .serve_connection(hyper_util::rt::TokioIo::new(stream), service)
                    .await
            });
        }
    });
    (address, task.abort_handle())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn grpc_passes_with_trailers_and_its_streams_get_a_status_after_a_swap() {
    let ((old, _old), (new, _new)) = (grpc().await, grpc().await);
    let mut plain = HttpFront::plain(free(), &[]);
    plain.listener.h2c = true;
    plain.settings.streams = rules(AtCutover::Close);
    let reach = |at: SocketAddr| {
        let way = Way { http2: true, ..Way::default() };
        Arc::new(Reach::new(&way, &[at.to_string()], &[at]).unwrap())
    };
    let reaches = HashMap::from([("a".into(), reach(old)), ("b".into(), reach(new))]);
    let front = Front::reaching(plain, WIDE, Pool::new(0, "a", &[old]), reaches).await;
    let client = Client::builder(TokioExecutor::new()).http2_only(true).build(HttpConnector::new());
    let call = async |path: &str| {
        let request = Request::post(format!("http://{}{path}", front.address))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(Full::new(Bytes::from_static(b"\0\0\0\0\x04ping")))
            .unwrap();
        tokio::time::timeout(DEADLINE, client.request(request)).await.expect("an answer").unwrap()
    };
    let whole = call("/one").await.into_body().collect().await.unwrap();
    assert_eq!(whole.trailers().unwrap()["grpc-status"], "0");
    assert_eq!(whole.to_bytes(), &b"\0\0\0\0\x04ping"[..]);

    // They share a connection, and each would end in a time of its own.
    let mut streams = Vec::new();
    for _ in 0..10 {
        let mut stream = call("/stream").await.into_body();
        assert!(stream.frame().await.unwrap().unwrap().is_data());
        streams.push(stream);
    }
    swap(&front, 1, new).await;
    for mut stream in streams {
        let end = tokio::time::timeout(DEADLINE, stream.frame()).await.expect("the stream ends");
        let trailers = end.unwrap().unwrap().into_trailers().expect("trailers");
        assert_eq!(trailers["grpc-status"], "14");
        assert!(stream.frame().await.is_none());
    }
    let whole = call("/one").await.into_body().collect().await.unwrap();
    assert_eq!(whole.trailers().unwrap()["grpc-status"], "0", "calls go to the new side");
}
