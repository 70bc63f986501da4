//! The HTTP front between real clients and real upstreams: holds, swaps, scales, and what it answers when things break.

#![allow(clippy::unwrap_used)]

mod headers;
mod kept;
mod mirrored;
mod raw;
mod robust;
mod smuggling;
mod streams;
mod suite;
mod tls;
mod upstream;
mod upstreams;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::time::Duration;

use bytes::Bytes;
use godwit::config::model::{HoldLimits, HttpFront};
use godwit::fronts::gate::Gate;
use godwit::fronts::health;
use godwit::fronts::http::{Background, ServerSettings, server, service};
use godwit::fronts::latencies::{Latencies, Recorder};
use godwit::fronts::pools::{Pool, Reach};
use godwit::fronts::routes::{ResourceFront, Routes, report};
use godwit::fronts::sockets::Sockets;
use godwit::fronts::stopwatch::Segment;
use godwit_tests::postgres::free_port;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use upstream::{Breaker, Upstream};

const WIDE: HoldLimits = HoldLimits { requests: 10_000, bytes: 64 << 20, time: Duration::from_secs(30) };
const DEADLINE: Duration = Duration::from_secs(30);

/// A front in a thread.
struct Front {
    resource: Arc<ResourceFront>,
    routes: Arc<Routes>,
    address: SocketAddr,
    latencies: Latencies,
    client: Client<HttpConnector, Full<Bytes>>,
    _server: Background,
    reporting: tokio::task::AbortHandle,
}

impl Drop for Front {
    fn drop(&mut self) {
        self.reporting.abort();
    }
}

/// A free address on loopback.
fn free() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], free_port().unwrap()))
}

impl Front {
    async fn start(hosts: &[&str], hold: HoldLimits, pool: Pool) -> Self {
        Self::of(HttpFront::plain(free(), hosts), hold, pool).await
    }

    /// A front as configured, whose placements are reached by default.
    async fn of(front: HttpFront, hold: HoldLimits, pool: Pool) -> Self {
        Self::reaching(front, hold, pool, HashMap::new()).await
    }

    async fn reaching(
        front: HttpFront,
        hold: HoldLimits,
        pool: Pool,
        reaches: HashMap<Arc<str>, Arc<Reach>>,
    ) -> Self {
        let resource = ResourceFront::reaching("orders", &front, hold, pool, reaches).unwrap();
        let routes = Routes::new(&[Arc::clone(&resource)]).unwrap();
        let recorder = Recorder::new();
        let latencies = recorder.reader();
        for address in routes.listeners() {
            Sockets::default().listener(address).unwrap();
        }
        let mut server = server(ServerSettings::default());
        let service = service(&server, &routes, &recorder);
        server.add_service(service);
        let server = Background::run(server).unwrap();
        let address = front.listen;
        until("the front listens", async || TcpStream::connect(address).await.is_ok()).await;
        let client =
            Client::builder(TokioExecutor::new()).retry_canceled_requests(false).build(HttpConnector::new());
        let reporting = tokio::spawn({
            let (routes, front) = (Arc::clone(&routes), Arc::clone(&resource));
            async move {
                tokio::join!(report(&routes, &recorder, Duration::from_millis(20)), health::keep(front));
            }
        });
        let reporting = reporting.abort_handle();
        Self { resource, routes, address, latencies, client, _server: server, reporting }
    }

    fn gate(&self) -> &Arc<Gate> {
        &self.resource.gate
    }

    async fn send(&self, request: Request<Full<Bytes>>) -> (StatusCode, http::HeaderMap, String) {
        let response = tokio::time::timeout(DEADLINE, self.client.request(request)).await.unwrap().unwrap();
        read(response).await
    }

    fn request(&self, method: Method, path: &str, body: Bytes) -> Request<Full<Bytes>> {
        let uri = format!("http://{}{path}", self.address);
        Request::builder().method(method).uri(uri).body(Full::new(body)).unwrap()
    }

    fn get(&self, path: &str) -> Request<Full<Bytes>> {
        self.request(Method::GET, path, Bytes::new())
    }

    async fn held(&self, requests: usize) {
        until("requests are held", async || self.gate().stats().held == requests).await;
    }

    async fn close_and_drain(&self) {
        self.gate().close();
        tokio::time::timeout(DEADLINE, self.gate().drained()).await.expect("drained");
    }
}

async fn read(response: Response<hyper::body::Incoming>) -> (StatusCode, http::HeaderMap, String) {
    let (parts, body) = response.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    (parts.status, parts.headers, String::from_utf8(body.to_vec()).unwrap())
}

async fn until(what: &str, mut fact: impl AsyncFnMut() -> bool) {
    let wait = async {
        while !fact().await {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(DEADLINE, wait).await.unwrap_or_else(|_| panic!("waited too long until {what}"));
}

async fn pair(generation: u64) -> Vec<Upstream> {
    vec![Upstream::start(generation).await, Upstream::start(generation).await]
}

fn addresses(upstreams: &[Upstream]) -> Vec<SocketAddr> {
    upstreams.iter().map(Upstream::address).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fifty_swaps_under_load_fail_nobody() {
    const CLIENTS: usize = 200;
    const ROUNDS: u64 = 50;
    let sets = [pair(0).await, pair(upstream::RETIRED).await];
    let front = Front::start(&[], WIDE, Pool::new(0, "zone-0", &addresses(&sets[0]))).await;
    let front = Arc::new(front);
    let (active, done) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let stop = Arc::new(AtomicBool::new(false));
    let mut clients = Vec::new();
    for number in 0..CLIENTS {
        let (front, active, done) = (Arc::clone(&front), Arc::clone(&active), Arc::clone(&done));
        let stop = Arc::clone(&stop);
        clients.push(tokio::spawn(async move {
            let body = Bytes::from(vec![b'x'; number * 10]);
            while !stop.load(SeqCst) {
                let before = active.load(SeqCst);
                let method = if number % 2 == 0 { Method::POST } else { Method::GET };
                let (status, headers, text) = front.send(front.request(method, "/", body.clone())).await;
                let after = active.load(SeqCst);
                assert_eq!(status, StatusCode::OK, "{text}");
                let served: u64 = headers["generation"].to_str().unwrap().parse().unwrap();
                assert!((before..=after).contains(&served), "served by {served}, active {before} to {after}");
                assert_eq!(headers["body-bytes"], body.len().to_string());
                done.fetch_add(1, SeqCst);
            }
        }));
    }
    for generation in 1..=ROUNDS {
        let enough = done.load(SeqCst) + CLIENTS as u64 / 2;
        until("requests went through", async || done.load(SeqCst) >= enough).await;
        front.close_and_drain().await;
        let (old, new) = (&sets[(generation as usize + 1) % 2], &sets[generation as usize % 2]);
        for upstream in old {
            assert_eq!(upstream.in_progress(), 0, "drained");
            upstream.serve_as(upstream::RETIRED);
        }
        for upstream in new {
            upstream.serve_as(generation);
        }
        let zone = format!("zone-{}", generation % 2);
        front.resource.pool.swap(Pool::new(generation, zone, &addresses(new))).unwrap();
        active.store(generation, SeqCst);
        front.gate().open();
    }
    stop.store(true, SeqCst);
    for client in clients {
        client.await.unwrap();
    }
    for upstream in sets.iter().flatten() {
        assert_eq!(upstream.misdirected(), 0, "requests to a pool that was not active");
    }
    let stats = front.gate().stats();
    assert_eq!((stats.held, stats.refused_total), (0, 0));
    until("everybody left", async || front.gate().stats().in_flight == 0).await;
    let taken = |zone| front.latencies.take("orders", zone, Segment::Upstream).len();
    // A request leaves the gate before its sample is there.
    let mut found = 0;
    until("every request has a sample", async || {
        found += taken("zone-0") + taken("zone-1");
        found >= done.load(SeqCst)
    })
    .await;
    assert_eq!(found, done.load(SeqCst));
    assert!(front.latencies.take("orders", "zone-0", Segment::Held).max() > 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_big_post_held_across_a_swap_arrives_whole_at_the_new_pool() {
    let (old, new) = (pair(0).await, pair(1).await);
    let front = Arc::new(Front::start(&[], WIDE, Pool::new(0, "a", &addresses(&old))).await);
    front.close_and_drain().await;
    let body: Bytes = (0..8 << 20).map(|at: u32| (at % 251) as u8).collect();
    let sum: u64 = body.iter().map(|byte| u64::from(*byte)).sum();
    let sent = tokio::spawn({
        let front = Arc::clone(&front);
        let request = front.request(Method::POST, "/", body.clone());
        async move { front.send(request).await }
    });
    front.held(1).await;
    front.resource.pool.swap(Pool::new(1, "b", &addresses(&new))).unwrap();
    front.gate().open();
    let (status, headers, _) = sent.await.unwrap();
    assert_eq!(status, StatusCode::OK);
    assert_eq!(headers["generation"], "1");
    assert_eq!(headers["body-bytes"], body.len().to_string());
    assert_eq!(headers["body-sum"], sum.to_string());
    assert_eq!(headers["forwarded-for"], "127.0.0.1");
    assert_eq!(old.iter().map(Upstream::seen).sum::<u64>(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_the_bound_only_the_newest_is_refused() {
    let upstreams = pair(0).await;
    let hold = HoldLimits { requests: 2, ..WIDE };
    let front = Arc::new(Front::start(&[], hold, Pool::new(0, "a", &addresses(&upstreams))).await);
    front.close_and_drain().await;
    let mut held = Vec::new();
    for number in 1..=2 {
        let sender = Arc::clone(&front);
        held.push(tokio::spawn(async move { sender.send(sender.get("/")).await }));
        front.held(number).await;
    }
    for body in [Bytes::new(), Bytes::from(vec![0; 300_000])] {
        let (status, headers, text) = front.send(front.request(Method::POST, "/", body)).await;
        assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(headers["retry-after"], "1");
        assert_eq!(headers["content-type"], "application/problem+json");
        assert!(text.contains("\"status\":503"), "{text}");
    }
    assert_eq!(front.gate().stats().held, 2);
    front.gate().open();
    for request in held {
        assert_eq!(request.await.unwrap().0, StatusCode::OK);
    }
    assert_eq!(upstreams.iter().map(Upstream::seen).sum::<u64>(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_held_too_long_is_refused() {
    let upstreams = pair(0).await;
    let hold = HoldLimits { time: Duration::from_millis(100), ..WIDE };
    let front = Front::start(&[], hold, Pool::new(0, "a", &addresses(&upstreams))).await;
    front.close_and_drain().await;
    let (status, headers, text) = front.send(front.get("/")).await;
    assert_eq!((status, headers["retry-after"].to_str().unwrap()), (StatusCode::SERVICE_UNAVAILABLE, "1"));
    assert!(text.contains("was not processed"), "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_held_client_that_leaves_is_not_forwarded() {
    let upstreams = pair(0).await;
    let front = Front::start(&[], WIDE, Pool::new(0, "a", &addresses(&upstreams))).await;
    front.close_and_drain().await;

    let mut without_body = TcpStream::connect(front.address).await.unwrap();
    without_body.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    front.held(1).await;
    drop(without_body);
    front.held(0).await;

    let mut with_body = TcpStream::connect(front.address).await.unwrap();
    with_body.write_all(b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 4\r\n\r\nbody").await.unwrap();
    front.held(1).await;
    drop(with_body);
    // The kernel has the close by now: a second connection made after it is held too.
    let mut after = TcpStream::connect(front.address).await.unwrap();
    after.write_all(b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 4\r\n\r\nbody").await.unwrap();
    front.held(2).await;
    front.gate().open();
    let mut answer = [0; 15];
    after.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"HTTP/1.1 200 OK");
    front.close_and_drain().await;
    assert_eq!(upstreams.iter().map(Upstream::seen).sum::<u64>(), 1, "only the one that stayed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_breaks_has_a_problem() {
    let nobody = SocketAddr::from(([127, 0, 0, 1], free_port().unwrap()));
    let front = Front::start(&["orders.example"], WIDE, Pool::new(0, "a", &[nobody])).await;
    let at = |host: &str, method: Method| {
        let mut request = front.request(method, "/", Bytes::new());
        request.headers_mut().insert("host", host.parse().unwrap());
        front.send(request)
    };
    for (host, method, status) in [
        ("orders.example", Method::GET, 502),
        ("ORDERS.example:80", Method::POST, 502),
        ("other.example", Method::GET, 404),
    ] {
        let (got, headers, text) = at(host, method).await;
        assert_eq!(got, status, "{text}");
        assert_eq!(headers["content-type"], "application/problem+json");
        assert!(text.contains(&format!("\"status\":{status}")), "{text}");
    }
    let (status, _, text) = at("orders.example", Method::HEAD).await;
    assert_eq!((status.as_u16(), &*text), (502, ""));
    front.resource.pool.set_upstreams(0, &[]).unwrap();
    let (status, headers, _) = at("orders.example", Method::GET).await;
    assert_eq!((status.as_u16(), headers["retry-after"].to_str().unwrap()), (503, "1"));
    until("everybody left", async || front.gate().stats().in_flight == 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endpoint_that_takes_no_connection_is_passed_over() {
    let alive = Upstream::start(0).await;
    let dead = SocketAddr::from(([127, 0, 0, 1], free_port().unwrap()));
    let front = Front::start(&[], WIDE, Pool::new(0, "a", &[dead, alive.address()])).await;
    for method in [Method::GET, Method::POST].into_iter().cycle().take(20) {
        let (status, _, text) = front.send(front.request(method, "/", Bytes::from_static(b"x"))).await;
        assert_eq!(status, StatusCode::OK, "{text}");
    }
    assert_eq!(alive.seen(), 20);
}

/// A kept connection that dies with the request on it: a GET is sent again, a POST never.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_post_is_never_sent_twice() {
    let (breaker, alive) = (Breaker::start().await, Upstream::start(0).await);
    let front = Front::start(&[], WIDE, Pool::new(0, "a", &[breaker.address()])).await;
    let post = || front.request(Method::POST, "/", Bytes::from_static(b"once"));
    assert_eq!(front.send(post()).await.0, StatusCode::OK);
    let (status, _, text) = front.send(post()).await;
    assert_eq!(status, StatusCode::BAD_GATEWAY);
    assert!(text.contains("may have been processed"), "{text}");
    assert_eq!(breaker.seen(), 2);
    // One good answer, a break on the kept connection, and the same request on a new one.
    assert_eq!(front.send(front.get("/")).await.0, StatusCode::OK);
    assert_eq!(front.send(front.get("/")).await.0, StatusCode::OK);
    assert_eq!(breaker.seen(), 5);
    // With another endpoint there, what broke goes there.
    front.resource.pool.set_upstreams(0, &[breaker.address(), alive.address()]).unwrap();
    for _ in 0..10 {
        assert_eq!(front.send(front.get("/")).await.0, StatusCode::OK);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_generation_makes_its_own_connections() {
    let upstream = Upstream::start(0).await;
    let front = Front::start(&[], WIDE, Pool::new(0, "a", &[upstream.address()])).await;
    for generation in 1..=3 {
        for _ in 0..5 {
            assert_eq!(front.send(front.get("/")).await.0, StatusCode::OK);
        }
        assert_eq!(upstream.connections(), generation);
        front.close_and_drain().await;
        front.resource.pool.swap(Pool::new(generation, "a", &[upstream.address()])).unwrap();
        front.gate().open();
    }
}

/// Workers go and come under load: each is stopped only once it is idle.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn scaling_down_and_up_fails_nobody() {
    let mut upstreams = pair(0).await;
    let front = Arc::new(Front::start(&[], WIDE, Pool::new(0, "a", &addresses(&upstreams))).await);
    let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let mut clients = Vec::new();
    for _ in 0..50 {
        let (front, stop, done) = (Arc::clone(&front), Arc::clone(&stop), Arc::clone(&done));
        clients.push(tokio::spawn(async move {
            while !stop.load(SeqCst) {
                let request = front.request(Method::POST, "/", Bytes::from_static(b"body"));
                let (status, _, text) = front.send(request).await;
                assert_eq!(status, StatusCode::OK, "{text}");
                done.fetch_add(1, SeqCst);
            }
        }));
    }
    for _ in 0..10 {
        let enough = done.load(SeqCst) + 50;
        until("requests went through", async || done.load(SeqCst) >= enough).await;
        let stays = addresses(&upstreams[..1]);
        for gone in front.resource.pool.set_upstreams(0, &stays).unwrap() {
            tokio::time::timeout(DEADLINE, gone.idle()).await.expect("idle");
        }
        drop(upstreams.pop());
        let enough = done.load(SeqCst) + 50;
        until("requests went through", async || done.load(SeqCst) >= enough).await;
        upstreams.push(Upstream::start(0).await);
        front.resource.pool.set_upstreams(0, &addresses(&upstreams)).unwrap();
    }
    stop.store(true, SeqCst);
    for client in clients {
        client.await.unwrap();
    }
}
