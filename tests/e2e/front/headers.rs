//! What the endpoint is told, what is refused, and what passes untouched.

use godwit::fronts::http::settings::{AccessLog, Limits};
use godwit_tests::postgres::free_port;
use tokio::process::Command;

use super::raw::Raw;
use super::streams::header;
use super::tls::network;
use super::*;

async fn front(raw: &Raw, change: impl FnOnce(&mut HttpFront)) -> Front {
    let mut plain = HttpFront::plain(SocketAddr::from(([127, 0, 0, 1], free_port().unwrap())), &[]);
    change(&mut plain);
    Front::of(plain, WIDE, Pool::new(0, "a", &[raw.address()])).await
}

/// Sends these bytes, which ask for the connection to be closed, and reads the answer.
async fn ask(front: &Front, request: &str) -> String {
    let mut stream = TcpStream::connect(front.address).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    let read = tokio::time::timeout(DEADLINE, stream.read_to_end(&mut answer)).await;
    assert!(read.is_ok(), "no end of the answer to {request}: {}", answer.escape_ascii());
    String::from_utf8_lossy(&answer).into_owned()
}

const OF_OTHERS: &str = "x-forwarded-for: 192.0.2.9\r\nx-forwarded-proto: https\r\nforwarded: for=192.0.2.9\r\n\
    x-real-ip: 192.0.2.9\r\nx-request-id: mine\r\n";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_trusted_peers_speak_for_others() {
    let raw = Raw::start().await;
    let request = format!("GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n{OF_OTHERS}\r\n");
    let strict = front(&raw, |front| front.settings.identify = true).await;
    assert!(ask(&strict, &request).await.starts_with("HTTP/1.1 200"));
    let seen = raw.take().pop().unwrap();
    assert_eq!(seen.one("x-forwarded-for"), "127.0.0.1");
    assert_eq!(seen.one("x-forwarded-proto"), "http");
    assert!(seen.all("forwarded").is_empty() && seen.all("x-real-ip").is_empty());
    let id = seen.one("x-request-id");
    assert_eq!(id.len(), 32);
    assert!(seen.one("traceparent").starts_with(&format!("00-{id}-")));

    let trusting = front(&raw, |front| front.settings.trusted = vec![network("127.0.0.0/8")]).await;
    assert!(ask(&trusting, &request).await.starts_with("HTTP/1.1 200"));
    let seen = raw.take().pop().unwrap();
    assert_eq!(seen.one("x-forwarded-for"), "192.0.2.9, 127.0.0.1");
    assert_eq!(seen.one("x-forwarded-proto"), "https");
    assert_eq!(seen.one("forwarded"), "for=192.0.2.9, for=127.0.0.1;proto=http");
    assert_eq!(seen.one("x-request-id"), "mine");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hop_by_hop_headers_stay_here() {
    let raw = Raw::start().await;
    let front = front(&raw, |_| {}).await;
    for told in ["x-forwarded-client-cert", "X-Request-Id", "traceparent"] {
        let request = format!("GET / HTTP/1.1\r\nhost: a\r\nconnection: close , {told}\r\n\r\n");
        assert!(ask(&front, &request).await.starts_with("HTTP/1.1 400"), "{told}");
    }
    let request = "GET / HTTP/1.1\r\nhost: a\r\nconnection: close, x-mine\r\nx-mine: 1\r\nx-yours: 2\r\nkeep-alive: timeout=5\r\n\
         proxy-connection: keep-alive\r\nte: trailers\r\ntrailer: x\r\nupgrade: h2c\r\n\r\n";
    assert!(ask(&front, request).await.starts_with("HTTP/1.1 200"));
    let seen = raw.take().pop().unwrap();
    for name in ["x-mine", "keep-alive", "proxy-connection", "te", "trailer", "upgrade", "transfer-encoding"]
    {
        assert!(seen.all(name).is_empty(), "{name} in {}", seen.head);
    }
    assert_eq!(seen.one("x-yours"), "2");
}

/// HTTP/2 lets a client send a line for each, HTTP/1.1 has one for all.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cookies_of_http2_arrive_in_one_line() {
    let raw = Raw::start().await;
    let front = front(&raw, |front| front.listener.h2c = true).await;
    let client = hyper_util::client::legacy::Client::builder(hyper_util::rt::TokioExecutor::new())
        .http2_only(true)
        .build_http::<http_body_util::Empty<bytes::Bytes>>();
    let request = http::Request::get(format!("http://{}/", front.address))
        .header("cookie", "a=1")
        .header("cookie", "sid=2")
        .body(http_body_util::Empty::new())
        .unwrap();
    let answer = tokio::time::timeout(DEADLINE, client.request(request)).await.expect("an end").unwrap();
    assert_eq!(answer.status(), 200);
    assert_eq!(raw.take().pop().unwrap().one("cookie"), "a=1; sid=2");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_larger_than_it_may_be_is_refused() {
    let raw = Raw::start().await;
    let limits = Limits { headers: 10, header_bytes: 4096, uri_bytes: 300, body_bytes: Some(1000) };
    let front = front(&raw, |front| front.settings.limits = limits).await;
    let of = |line: &str, headers: &str, body: &str| {
        format!("{line} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n{headers}\r\n{body}")
    };
    let many = "x: 1\r\n".repeat(9);
    let large = format!("x: {}\r\n", "y".repeat(4096));
    let body = "z".repeat(1001);
    let chunks = format!("3e9\r\n{body}\r\n0\r\n\r\n");
    for (status, request) in [
        (200, of("GET /", "", "")),
        (431, of("GET /", &many, "")),
        (431, of("GET /", &large, "")),
        (414, of(&format!("GET /{}", "a".repeat(300)), "", "")),
        (200, of("POST /", "content-length: 1000\r\n", &body[1..])),
        (413, of("POST /", "content-length: 1001\r\n", &body)),
        (413, of("POST /", "transfer-encoding: chunked\r\n", &chunks)),
    ] {
        let answer = ask(&front, &request).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{status}: {answer}");
        assert!(status == 200 || answer.contains("application/problem+json"), "{answer}");
    }
    assert_eq!(raw.take().len(), 2, "only what is answered with 200 is seen whole");
    until("everybody left", async || front.gate().stats().in_flight == 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn paths_are_normalized_where_that_is_wished() {
    let raw = Raw::start().await;
    for (wished, begin, seen) in [
        (false, "", "GET /a/..//%62?c=%64"),
        (true, "", "GET /b?c=%64"),
        (false, "http://a", "GET http://a/a/..//%62?c=%64"),
        (true, "http://a", "GET http://a/b?c=%64"),
    ] {
        let front = front(&raw, |front| front.settings.normalize_paths = wished).await;
        ask(&front, &format!("GET {begin}/a/..//%62?c=%64 HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n"))
            .await;
        assert_eq!(raw.take().pop().unwrap().what(), seen);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn head_and_continue_and_large_bodies_pass() {
    let raw = Raw::start().await;
    let front = front(&raw, |_| {}).await;
    let answer = ask(&front, "HEAD /head HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await;
    assert!(answer.contains("ontent-length: 10") || answer.contains("ontent-Length: 10"), "{answer}");
    assert!(answer.ends_with("\r\n\r\n"), "{answer}");
    // curl waits for 100 before it sends, and sends anyway after a second.
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("large");
    std::fs::write(&file, vec![b'x'; 32 << 20]).unwrap();
    let url = format!("http://{}/large", front.address);
    let body = format!("@{}", file.display());
    for more in [&[][..], &["--header", "transfer-encoding: chunked"], &["--header", "expect: 100-continue"]]
    {
        let output = Command::new("curl")
            .args(["--silent", "--show-error", "--max-time", "60", "--data-binary", &body])
            .args(more)
            .arg(&url)
            .output()
            .await
            .unwrap();
        assert_eq!(
            String::from_utf8_lossy(&output.stdout),
            "POST /large",
            "{:?}",
            output.stderr.escape_ascii()
        );
        assert_eq!(raw.take().pop().unwrap().body.len(), 32 << 20);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_compressed_passes_as_it_is() {
    const ZIPPED: &[u8] = b"\x1f\x8b\x08\0\0\0\0\0\0\x03 not to be looked into \0\xff";
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let front = Front::start(&[], WIDE, Pool::new(0, "a", &[listener.local_addr().unwrap()])).await;
    let mut client = TcpStream::connect(front.address).await.unwrap();
    let request = "GET / HTTP/1.1\r\nhost: a\r\naccept-encoding: gzip, br;q=0.5\r\nconnection: close\r\n\r\n";
    client.write_all(request.as_bytes()).await.unwrap();
    let (mut endpoint, _) = listener.accept().await.unwrap();
    let seen = header(&mut endpoint).await.to_ascii_lowercase();
    assert!(seen.contains("accept-encoding: gzip, br;q=0.5\r\n"), "{seen}");
    let head = format!(
        "HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\nvary: accept-encoding\r\netag: \"a\"\r\ncontent-length: {}\r\n\r\n",
        ZIPPED.len()
    );
    endpoint.write_all(&[head.as_bytes(), ZIPPED].concat()).await.unwrap();
    let mut answer = Vec::new();
    tokio::time::timeout(DEADLINE, client.read_to_end(&mut answer)).await.unwrap().unwrap();
    let end = answer.windows(4).position(|four| four == b"\r\n\r\n").unwrap() + 4;
    let head = String::from_utf8_lossy(&answer[..end]).to_ascii_lowercase();
    for line in ["content-encoding: gzip\r\n", "vary: accept-encoding\r\n", "etag: \"a\"\r\n"] {
        assert!(head.contains(line), "{line} in {head}");
    }
    assert_eq!(&answer[end..], ZIPPED);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_dashboards_session_is_not_passed_on() {
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let front = Front::start(&[], WIDE, Pool::new(0, "a", &[listener.local_addr().unwrap()])).await;
    let mut client = TcpStream::connect(front.address).await.unwrap();
    let request =
        "GET / HTTP/1.1\r\nhost: a\r\ncookie: mine=1; godwit_session=secret\r\nconnection: close\r\n\r\n";
    client.write_all(request.as_bytes()).await.unwrap();
    let (mut endpoint, _) = listener.accept().await.unwrap();
    let seen = header(&mut endpoint).await.to_ascii_lowercase();
    assert!(seen.contains("cookie: mine=1\r\n") && !seen.contains("secret"), "{seen}");
    let answer = "HTTP/1.1 200 OK\r\nset-cookie: godwit_session=; max-age=0\r\nset-cookie: mine=2\r\ncontent-length: 0\r\n\r\n";
    endpoint.write_all(answer.as_bytes()).await.unwrap();
    let mut answer = String::new();
    tokio::time::timeout(DEADLINE, client.read_to_string(&mut answer)).await.unwrap().unwrap();
    let answer = answer.to_ascii_lowercase();
    assert!(answer.contains("set-cookie: mine=2\r\n") && !answer.contains("godwit_session"), "{answer}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_access_log_has_a_line_for_each_request() {
    let raw = Raw::start().await;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("access.log");
    let log = AccessLog { file: Some(path.clone()), sample: migration::units::Ratio::new(1.0).unwrap() };
    let front = front(&raw, |front| {
        front.settings.access_log = Some(log);
        front.settings.identify = true;
    })
    .await;
    ask(
        &front,
        "POST /a?b HTTP/1.1\r\nhost: orders.example\r\nconnection: close\r\ncontent-length: 4\r\n\r\nbody",
    )
    .await;
    let id = raw.take().pop().unwrap().one("x-request-id").to_owned();
    front.resource.pool.set_upstreams(0, &[]).unwrap();
    ask(&front, "GET /b HTTP/1.1\r\nhost: orders.example\r\nconnection: close\r\n\r\n").await;
    let read = || std::fs::read_to_string(&path).unwrap();
    until("both lines are written", async || read().lines().count() == 2).await;
    let lines: Vec<serde_json::Value> =
        read().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    for (key, one, two) in [
        ("resource", "orders".into(), "orders".into()),
        // Where it would have gone.
        ("zone", "a".into(), "a".into()),
        ("upstream", raw.address().to_string().into(), serde_json::Value::Null),
        ("client", "127.0.0.1".into(), "127.0.0.1".into()),
        ("method", "POST".into(), "GET".into()),
        ("host", "orders.example".into(), "orders.example".into()),
        ("target", "/a?b".into(), "/b".into()),
        ("protocol", "HTTP/1.1".into(), "HTTP/1.1".into()),
        ("status", 200.into(), 503.into()),
        ("fault", serde_json::Value::Null, "no_upstream".into()),
        ("request_bytes", 4.into(), 0.into()),
        ("response_bytes", 9.into(), lines[1]["response_bytes"].clone()),
        ("id", id.into(), lines[1]["id"].clone()),
        ("attempts", 1.into(), 1.into()),
    ] {
        assert_eq!((&lines[0][key], &lines[1][key]), (&one, &two), "{key}");
    }
    assert!(lines[0]["first_byte_ms"].is_f64() && lines[1]["first_byte_ms"].is_null());
}
