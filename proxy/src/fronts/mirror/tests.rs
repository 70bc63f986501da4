use axum::Router;
use axum::extract::State;
use migration::units::Ratio;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio_util::sync::CancellationToken;

use super::*;
use crate::feeds::http_probe::tests::{reach, secure};
use crate::fronts::http::settings::Upstream;

fn rules(share: f64, credentials: Credentials) -> MirrorRules {
    MirrorRules { share: Ratio::new(share).unwrap(), paths: vec!["/shop".into()], credentials }
}

fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
    pairs.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect()
}

#[test]
fn only_safe_reads_of_nobody_in_particular_are_mirrored() {
    let skip = rules(1.0, Credentials::Skip);
    let uri = |text: &str| text.parse::<Uri>().unwrap();
    let is = |rules: &MirrorRules, method: Method, path: &str, pairs: &[(&'static str, &'static str)]| {
        mirrored(rules, &method, &uri(path), &headers(pairs))
    };
    assert!(is(&skip, Method::GET, "/shop/1?a=b", &[("accept", "*/*")]));
    assert!(is(&skip, Method::HEAD, "/shop", &[("content-length", "0")]));
    for (method, path, pairs) in [
        (Method::POST, "/shop/1", &[][..]),
        (Method::GET, "/admin", &[]),
        (Method::GET, "/shop", &[("content-length", "5")]),
        (Method::GET, "/shop", &[("transfer-encoding", "chunked")]),
        (Method::GET, "/shop", &[("upgrade", "websocket")]),
        (Method::GET, "/shop", &[("cookie", "session=1")]),
        (Method::GET, "/shop", &[("authorization", "Bearer x")]),
    ] {
        assert!(!is(&skip, method.clone(), path, pairs), "{method} {path} {pairs:?}");
    }
    assert!(is(&rules(1.0, Credentials::Strip), Method::GET, "/shop", &[("cookie", "session=1")]));
}

#[test]
fn a_share_is_a_share_and_a_full_queue_drops() {
    let mirror = Mirror::new("orders".into());
    assert!(!mirror.is_on());
    let turns = (0..1_000).filter(|_| mirror.its_turn(250_000)).count();
    assert_eq!(turns, 250);
    mirror.aim("b", &rules(1.0, Credentials::Skip), vec![([127, 0, 0, 1], 1).into()], Arc::default());
    assert!(mirror.is_on());
    for _ in 0..QUEUE + 44 {
        mirror.offer(&Method::GET, &"/shop".parse().unwrap(), &HeaderMap::new(), 200, Duration::ZERO);
    }
    assert_eq!(mirror.view().dropped_total, 44);
    mirror.aim("b", &rules(1.0, Credentials::Skip), Vec::new(), Arc::default());
    assert!(!mirror.is_on());
}

#[test]
fn the_score_is_told_of_enough_reads_once_and_of_no_other_zone() {
    let mirror = Mirror::new("orders".into());
    let one = [([127, 0, 0, 1], 1).into()];
    mirror.aim("b", &rules(1.0, Credentials::Skip), one.to_vec(), Arc::default());
    let ms = Duration::from_millis;
    let answered = |primary, shadow, same| mirror.keep("b", ms(primary), Some((ms(shadow), same)));
    for read in 1..ENOUGH as u64 {
        answered(read, 100 + read, true);
    }
    assert_eq!((mirror.tell(), mirror.different()), (None, None), "too few");
    // Other statuses and silence say nothing of how long it takes, but of how well it goes.
    answered(5_000, 1, false);
    mirror.keep("b", ms(5_000), None);
    assert_eq!(mirror.tell(), None);
    assert_eq!(mirror.different(), Some(2.0 / 21.0));
    answered(20, 120, true);
    let told = Told { zone: "b".into(), primary: ms(19), shadow: ms(119) };
    assert_eq!((mirror.tell(), mirror.tell()), (Some(told), None), "once");
    // They count on in the view and in the share.
    assert_eq!((mirror.view().compared, mirror.view().different), (21, 1));
    mirror.aim("c", &rules(1.0, Credentials::Skip), one.to_vec(), Arc::default());
    answered(1, 1, true);
    assert_eq!((mirror.view().compared, mirror.different()), (0, None), "another zone");
}

#[tokio::test]
async fn the_shadow_is_asked_and_compared() {
    type Seen = Arc<Mutex<Vec<(String, HeaderMap)>>>;
    let seen = Seen::default();
    let answer = |State(seen): State<Seen>, uri: Uri, headers: HeaderMap| async move {
        seen.lock().unwrap().push((uri.path().to_owned(), headers));
        if uri.path().ends_with("gone") { http::StatusCode::NOT_FOUND } else { http::StatusCode::OK }
    };
    let local = tokio::net::lookup_host("localhost:0").await.unwrap().next().unwrap();
    let listener = tokio::net::TcpListener::bind(local).await.unwrap();
    let at = listener.local_addr().unwrap().to_string();
    let name = format!("localhost:{}", listener.local_addr().unwrap().port());
    // Where the shadow was found first.
    let before = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    before.set_nonblocking(true).unwrap();
    let old = before.local_addr().unwrap();
    let reach = Arc::new(Reach::new(&Upstream::default(), &[name], &[old]).unwrap());
    reach.resolve().await.unwrap();
    let router = Router::new().fallback(answer).with_state(seen.clone());
    tokio::spawn(async move { axum::serve(listener, router).await });
    let (mirror, stop) = (Mirror::new("orders".into()), CancellationToken::new());
    let task = tokio::spawn(mirror.clone().serve(stop.clone()));
    mirror.aim("b", &rules(1.0, Credentials::Strip), vec![old], reach);
    let pairs = headers(&[
        ("cookie", "session=1"),
        ("accept", "text/html"),
        ("connection", "close, X-Hop"),
        ("keep-alive", "timeout=5"),
        ("x-hop", "1"),
    ]);
    // A client of HTTP/1.1 that says no host, and one of HTTP/2.
    for path in ["/shop/1", "https://shop.example/shop/gone"] {
        mirror.offer(&Method::GET, &path.parse().unwrap(), &pairs, 200, Duration::from_millis(3));
    }
    let deadline = crate::clock::monotonic() + Duration::from_secs(20);
    while mirror.view().compared < 2 {
        assert!(crate::clock::monotonic() < deadline, "never asked: {:?}", mirror.view());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let view = mirror.view();
    assert!(
        view.different == 1 && view.primary_p95_ms == Some(3.0) && view.shadow_p95_ms.is_some(),
        "{view:?}"
    );
    for (path, headers) in seen.lock().unwrap().iter() {
        let host = if path == "/shop/gone" { "shop.example" } else { &at };
        assert_eq!(headers["host"], host);
        assert!(
            ["connection", "keep-alive", "x-hop"].iter().all(|name| !headers.contains_key(*name)),
            "{headers:?}"
        );
        assert!(!headers.contains_key("cookie") && headers["godwit-mirror"] == "1", "{headers:?}");
        assert_eq!(headers["accept"], "text/html");
    }
    assert_eq!(before.accept().unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
    // Nobody answers there: counted, and nothing else.
    mirror.aim("b", &rules(1.0, Credentials::Skip), vec![([127, 0, 0, 1], 1).into()], Arc::default());
    mirror.offer(&Method::GET, &"/shop".parse().unwrap(), &HeaderMap::new(), 200, Duration::ZERO);
    while mirror.view().failed_total == 0 {
        assert!(crate::clock::monotonic() < deadline, "{:?}", mirror.view());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    stop.cancel();
    task.await.unwrap();
}

/// How long the rest takes is the client's matter at the primary, and would be Godwit's own at the shadow.
#[tokio::test]
async fn the_shadows_time_ends_with_the_header_of_its_answer() {
    const REST: Duration = Duration::from_secs(1);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut request = Vec::new();
        while stream.read_buf(&mut request).await.unwrap() > 0 {
            if request.ends_with(b"\r\n\r\n") {
                request.clear();
                stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\n").await.unwrap();
                tokio::time::sleep(REST).await;
                stream.write_all(b"rest").await.unwrap();
            }
        }
    });
    let (mirror, stop) = (Mirror::new("orders".into()), CancellationToken::new());
    let task = tokio::spawn(mirror.clone().serve(stop.clone()));
    mirror.aim("b", &rules(1.0, Credentials::Skip), vec![address], Arc::default());
    let deadline = crate::clock::monotonic() + Duration::from_secs(20);
    // On a connection of its own, and on that once more: the body is read to its end.
    for reads in 1..=2 {
        mirror.offer(&Method::GET, &"/shop".parse().unwrap(), &HeaderMap::new(), 200, Duration::ZERO);
        while mirror.view().compared < reads {
            assert!(crate::clock::monotonic() < deadline, "never asked: {:?}", mirror.view());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
    let view = mirror.view();
    assert!(view.shadow_p95_ms < Some(REST.as_secs_f64() * 1000.0) && view.failed_total == 0, "{view:?}");
    stop.cancel();
    task.await.unwrap();
}

#[tokio::test]
async fn the_shadow_is_asked_with_its_placements_tls_and_protocol() {
    for http2 in [false, true] {
        let server = secure(http2, Duration::ZERO).await;
        let reach = Arc::new(reach("orders.internal", Some(server.own()), http2));
        let (mirror, stop) = (Mirror::new("orders".into()), CancellationToken::new());
        let task = tokio::spawn(mirror.clone().serve(stop.clone()));
        mirror.aim("b", &rules(1.0, Credentials::Send), vec![server.address], reach);
        let deadline = crate::clock::monotonic() + Duration::from_secs(20);
        for reads in 1..4 {
            let cookie = headers(&[("cookie", "session=1"), ("host", "shop.example")]);
            mirror.offer(&Method::GET, &"/shop".parse().unwrap(), &cookie, 200, Duration::ZERO);
            while mirror.view().compared < reads {
                assert!(crate::clock::monotonic() < deadline, "never asked: {:?}", mirror.view());
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
        assert_eq!((mirror.view().different, mirror.view().failed_total), (0, 0));
        assert_eq!(mirror.aim.load().idle.lock().unwrap().len(), 1, "a connection is kept for the next");
        stop.cancel();
        task.await.unwrap();
    }
}
