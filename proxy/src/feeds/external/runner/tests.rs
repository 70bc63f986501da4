use std::net::SocketAddr;
use std::sync::Mutex;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use url::Url;

use super::super::board::FeedState;
use super::super::egress::{Egress, Network};
use super::super::fetch::http::Request;
use super::super::finding::Finding;
use super::super::map::Program;
use super::super::tests::feed;
use super::super::{Secret, Use, webhook};
use super::*;

type Answer = Box<dyn Fn(usize, &str) -> String + Send + Sync>;

/// A real server on loopback; every connection is one request. Keeps what was asked.
struct Server {
    address: SocketAddr,
    asked: Arc<Mutex<Vec<String>>>,
    _tasks: JoinSet<()>,
}

impl Server {
    async fn start(answer: impl Fn(usize, &str) -> String + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let asked: Arc<Mutex<Vec<String>>> = Arc::default();
        let (answer, seen): (Arc<Answer>, _) = (Arc::new(Box::new(answer)), asked.clone());
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut open = JoinSet::new();
            while let Ok((mut stream, _)) = listener.accept().await {
                let (answer, seen) = (answer.clone(), seen.clone());
                open.spawn(async move {
                    let mut request = Vec::new();
                    while !request.ends_with(b"\r\n\r\n") {
                        let mut byte = [0];
                        if stream.read(&mut byte).await.unwrap_or(0) == 0 {
                            return;
                        }
                        request.push(byte[0]);
                    }
                    let request = String::from_utf8(request).unwrap();
                    let number = {
                        let mut seen = seen.lock().unwrap();
                        seen.push(request.clone());
                        seen.len()
                    };
                    let text = answer(number, &request);
                    let _ = stream.write_all(text.as_bytes()).await;
                    if text.ends_with(STALL) {
                        std::future::pending::<()>().await;
                    }
                });
            }
        });
        Self { address, asked, _tasks: tasks }
    }

    fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }

    fn feed(&self) -> Feed {
        http_feed(&format!("http://{}/prices", self.address))
    }
}

/// An answer that ends so is followed by nothing, for ever.
const STALL: &str = "…";

fn answer(status: &str, headers: &str, body: &str) -> String {
    format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n{headers}\r\n{body}", body.len())
}

fn http_feed(url: &str) -> Feed {
    let request = Request { url: Url::parse(url).unwrap(), headers: vec![], authority: None };
    Feed {
        source: Source::Http(request),
        map: Program::new("{value: .price, zone: \"west\"}").unwrap(),
        every: Duration::from_millis(30),
        timeout: Duration::from_secs(5),
        ..feed("prices")
    }
}

fn loopback() -> Arc<Reach> {
    let networks = vec![Network::parse("127.0.0.0/8").unwrap()];
    Arc::new(Egress { hosts: vec![], networks }.into())
}

/// Runs the feed until `fact` is true of its state.
async fn until(
    feed: Feed,
    reach: &Arc<Reach>,
    fact: impl Fn(&FeedState) -> bool,
) -> (FeedBoard, Arc<FeedState>) {
    let name = feed.name.clone();
    let board = FeedBoard::new([feed]);
    let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
    start(&board, reach, &stop, &tasks);
    let state =
        tokio::time::timeout(Duration::from_secs(20), board.until(&name, fact)).await.expect("in time");
    stop.cancel();
    (board, state)
}

async fn failure(feed: Feed, reach: &Arc<Reach>) -> Failure {
    let (_, state) = until(feed, reach, |state| state.failure.is_some()).await;
    state.failure.clone().unwrap().0
}

#[tokio::test]
async fn what_has_not_changed_stays_fresh() {
    let server = Server::start(|_, request| {
        if request.contains("if-none-match: \"v1\"\r\n")
            && request.contains("if-modified-since: yesterday\r\n")
        {
            answer("304 Not Modified", "", "")
        } else {
            answer("200 OK", "etag: \"v1\"\r\nlast-modified: yesterday\r\n", r#"{"price": 0.5}"#)
        }
    })
    .await;
    let (board, first) = until(server.feed(), &loopback(), |state| state.at.is_some()).await;
    let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
    start(&board, &loopback(), &stop, &tasks);
    let begin = first.at.unwrap();
    let later = |state: &FeedState| state.at.unwrap() > begin.after(Duration::from_millis(100));
    let state = tokio::time::timeout(Duration::from_secs(20), board.until("prices", later)).await.unwrap();
    stop.cancel();
    assert!(
        matches!(&state.understood.findings[..], [Finding::Value(value)] if (value.value - 0.5).abs() < 1e-9)
    );
    let asked = server.asked();
    assert!(asked[0].starts_with("GET /prices HTTP/1.1\r\n") && !asked[0].contains("if-none-match"));
    assert!(asked.last().unwrap().contains("if-none-match: \"v1\""), "{asked:?}");
}

#[tokio::test]
async fn what_has_not_changed_is_understood_anew() {
    let server = Server::start(|_, request| {
        if request.contains("if-none-match: \"v1\"\r\n") {
            answer("304 Not Modified", "", "")
        } else {
            answer("200 OK", "etag: \"v1\"\r\n", r#"{"price": 0.5}"#)
        }
    })
    .await;
    let board = FeedBoard::new([Feed {
        map: Program::new("{value: (.price + $now), zone: \"west\"}").unwrap(),
        ..server.feed()
    }]);
    let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
    start(&board, &loopback(), &stop, &tasks);
    let said = |state: &FeedState| match state.understood.findings[..] {
        [Finding::Value(ref value)] => Some(value.value),
        _ => None,
    };
    let until = |fact: Box<dyn Fn(&FeedState) -> bool>| {
        tokio::time::timeout(Duration::from_secs(20), board.until("prices", fact))
    };
    let first = said(until(Box::new(move |state| said(state).is_some())).await.unwrap().as_ref()).unwrap();
    until(Box::new(move |state| said(state) > Some(first))).await.expect("it is of another moment");
    stop.cancel();
    assert!(server.asked()[1..].iter().all(|request| request.contains("if-none-match: \"v1\"")));
}

#[tokio::test]
async fn failures_are_kept_apart_and_back_off() {
    let server = Server::start(|number, _| match number {
        1 => answer("200 OK", "", r#"{"price": 0.5}"#),
        _ => answer("500 Internal Server Error", "", "oops"),
    })
    .await;
    let (_, state) =
        until(server.feed(), &loopback(), |state| state.failures == 3 && state.next.is_some()).await;
    // What was said before still stands.
    assert_eq!(state.understood.findings.len(), 1);
    assert_eq!(state.failure.as_ref().unwrap().0.to_string(), "source: answered 500");
    assert_eq!(state.failure.as_ref().unwrap().0.reason, Reason::Status);
    assert_eq!(server.asked().len(), 4);

    let busy = Server::start(|_, _| answer("503 Service Unavailable", "retry-after: 1000\r\n", "")).await;
    let (_, state) = until(busy.feed(), &loopback(), |state| state.next.is_some()).await;
    let (_, failed) = state.failure.clone().unwrap();
    assert!(state.next.unwrap().since(failed) >= Duration::from_secs(1000));
    assert_eq!(busy.asked().len(), 1);
}

#[tokio::test]
async fn too_much_too_slow_and_too_odd() {
    let endless = Server::start(|_, _| {
        let chunk = format!("1000\r\n{}\r\n", "x".repeat(0x1000));
        format!("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n{}{STALL}", chunk.repeat(20))
    })
    .await;
    let small = Feed { max_bytes: 64 << 10, ..endless.feed() };
    assert_eq!(
        failure(small, &loopback()).await.to_string(),
        "source: more than 64KiB; raise max_bytes if that is right"
    );

    let slow = Server::start(|_, _| format!("HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{{{STALL}")).await;
    let hasty = Feed { timeout: Duration::from_millis(200), ..slow.feed() };
    let late = failure(hasty, &loopback()).await;
    assert_eq!((late.reason, late.what.as_str()), (Reason::Timeout, "no answer within 0.2 s"));

    let compressed = Server::start(|_, _| answer("200 OK", "content-encoding: gzip\r\n", "x")).await;
    assert!(failure(compressed.feed(), &loopback()).await.what.contains("compressed (gzip)"));

    let html = Server::start(|_, _| answer("200 OK", "", "<html>")).await;
    let odd = failure(html.feed(), &loopback()).await;
    assert_eq!((odd.stage, odd.reason), (Stage::Decode, Reason::Decode));

    let unasked = Server::start(|_, _| answer("304 Not Modified", "", "")).await;
    assert_eq!(failure(unasked.feed(), &loopback()).await.what, "answered 304");

    let secret = Server::start(|_, _| answer("403 Forbidden", "", "")).await;
    assert_eq!(
        failure(secret.feed(), &loopback()).await.what,
        "answered 403; give a right `bearer` or `headers`"
    );
}

#[tokio::test]
async fn redirects_stay_where_the_feed_may_ask() {
    let foreign = Server::start(|_, _| answer("200 OK", "", r#"{"price": 1}"#)).await;
    let port = foreign.address.port();
    let leading = move |to: &str| {
        let to = to.to_owned();
        Server::start(move |_, _| answer("302 Found", &format!("location: {to}\r\n"), ""))
    };
    let away = leading(&format!("http://localhost:{port}/")).await;
    let refused = failure(away.feed(), &loopback()).await;
    assert_eq!(refused.reason, Reason::Redirect);
    assert!(refused.what.starts_with("a redirect is not followed: localhost is not the host"), "{refused}");

    let metadata = leading("http://169.254.169.254/latest/").await;
    let refused = failure(metadata.feed(), &loopback()).await;
    assert_eq!(refused.reason, Reason::Redirect);
    assert!(refused.what.contains("metadata"), "{refused}");
    assert!(foreign.asked().is_empty());

    let file = leading("file:///etc/passwd").await;
    assert!(failure(file.feed(), &loopback()).await.what.contains("to file is not followed"));
    let around = leading("/prices").await;
    assert_eq!(failure(around.feed(), &loopback()).await.what, "more than 3 redirects");

    // To another port of the same host it is followed, without the feed's secrets.
    let moved = leading(&format!("http://127.0.0.1:{port}/moved")).await;
    let mut own = moved.feed();
    let Source::Http(request) = &mut own.source else { panic!("http") };
    request.headers = vec![(http::header::AUTHORIZATION, Secret("Bearer s3cret".into()))];
    until(own, &loopback(), |state| state.at.is_some()).await;
    assert!(moved.asked()[0].contains("authorization: Bearer s3cret"));
    let asked = foreign.asked();
    assert!(asked[0].starts_with("GET /moved ") && !asked[0].contains("s3cret"), "{asked:?}");
}

#[tokio::test]
async fn addresses_are_checked_after_the_look_up() {
    let server = Server::start(|_, _| answer("200 OK", "", r#"{"price": 1}"#)).await;
    let named = http_feed(&format!("http://localhost:{}/", server.address.port()));
    let refused = failure(named.clone(), &Arc::default()).await;
    assert_eq!(refused.reason, Reason::Egress);
    assert!(refused.what.contains("is this machine; put"), "{refused}");
    assert!(failure(server.feed(), &Arc::default()).await.what.contains("is this machine"));
    assert!(server.asked().is_empty());
    let allowed = Egress {
        hosts: vec!["localhost".into()],
        networks: vec![Network::parse("127.0.0.1").unwrap(), Network::parse("::1").unwrap()],
    };
    until(named, &Arc::new(allowed.clone().into()), |state| state.at.is_some()).await;
    let other = Arc::new(Egress { hosts: vec!["*.example".into()], ..Egress::default() }.into());
    assert_eq!(
        failure(http_feed("http://localhost:1/"), &other).await.what,
        "localhost is not in node.egress.allow"
    );
}

#[tokio::test]
async fn tls_needs_a_certificate_of_the_right_authority() {
    use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
    let folder = tempfile::tempdir().unwrap();
    let authority = |name: &str| {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let path = folder.path().join(name);
        std::fs::write(&path, issuer.pem()).unwrap();
        (issuer, path)
    };
    let (right, right_path) = authority("right.pem");
    let (_, wrong_path) = authority("wrong.pem");
    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
    let certificate = params.signed_by(&key, &right).unwrap();
    let config =
        rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(
                vec![certificate.der().clone()],
                rustls_pki_types::PrivateKeyDer::Pkcs8(key.serialize_der().into()),
            )
            .unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
        while let Ok((stream, _)) = listener.accept().await {
            let Ok(mut stream) = acceptor.accept(stream).await else { continue };
            let mut request = [0; 2048];
            let _ = stream.read(&mut request).await;
            let _ = stream
                .write_all(answer("200 OK", "connection: close\r\n", r#"{"price": 2}"#).as_bytes())
                .await;
            let _ = stream.shutdown().await;
        }
    });
    let trusting = |path: &std::path::Path| {
        let mut feed = http_feed(&format!("https://{address}/"));
        let Source::Http(request) = &mut feed.source else { panic!("http") };
        request.authority = Some(path.to_owned());
        feed
    };
    let (_, state) = until(trusting(&right_path), &loopback(), |state| state.at.is_some()).await;
    assert_eq!(state.understood.findings.len(), 1);
    let refused = failure(trusting(&wrong_path), &loopback()).await;
    assert_eq!(refused.reason, Reason::Tls);
    let missing = failure(trusting(&folder.path().join("none.pem")), &loopback()).await;
    assert!(missing.what.contains("none.pem (ca) cannot be read"), "{missing}");
}

fn command(script: &str) -> Feed {
    let argv = ["/bin/sh", "-c", script].map(str::to_owned).to_vec();
    Feed { source: Source::Exec(argv), ..http_feed("http://unused.example/") }
}

#[tokio::test]
async fn commands_are_bounded_and_get_no_secrets() {
    let (_, state) =
        until(command("echo '{\"price\": 3}'; echo chatter >&2"), &loopback(), |state| state.at.is_some())
            .await;
    assert_eq!(state.bytes, 13);
    let failed = failure(command("echo first >&2; echo 'no such host' >&2; exit 3"), &loopback()).await;
    assert_eq!(failed.what, "/bin/sh ended with exit status: 3: no such host");
    let much = Feed { max_bytes: 1024, ..command("cat /dev/zero") };
    assert_eq!(failure(much, &loopback()).await.reason, Reason::TooLarge);
    let noisy = command("head -c 1000000 /dev/zero >&2; echo '{\"price\": 3}'");
    until(noisy, &loopback(), |state| state.at.is_some()).await;
    let bare = command(
        "env | grep -v -E '^(PATH|HOME|LANG|TZ|PWD|SHLVL|_|OLDPWD)=' >&2 && exit 1; echo '{\"price\": 3}'",
    );
    until(bare, &loopback(), |state| state.at.is_some()).await;
    let missing = Feed { source: Source::Exec(vec!["/nonexistent/tool".into()]), ..command("") };
    assert!(failure(missing, &loopback()).await.what.starts_with("/nonexistent/tool cannot be started"));

    // What a slow command has started ends with it.
    let folder = tempfile::tempdir().unwrap();
    let pid = folder.path().join("pid");
    let slow = Feed {
        timeout: Duration::from_millis(300),
        every: Duration::from_secs(3600),
        ..command(&format!("sleep 1000 & echo $! > {}; wait", pid.display()))
    };
    assert_eq!(failure(slow, &loopback()).await.reason, Reason::Timeout);
    let pid = std::fs::read_to_string(&pid).unwrap();
    let alive = || {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.trim())).unwrap_or_default();
        stat.contains("(sleep)") && !stat.contains(") Z")
    };
    let deadline = clock::monotonic() + Duration::from_secs(10);
    while alive() {
        assert!(clock::monotonic() < deadline, "the command's child lives on");
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_file_is_as_old_as_its_last_change() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("prices.json");
    std::fs::write(&path, r#"{"price": 4}"#).unwrap();
    let long_ago = std::time::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
    std::fs::File::options().append(true).open(&path).unwrap().set_modified(long_ago).unwrap();
    let feed = Feed { source: Source::File(path.clone()), ..http_feed("http://unused.example/") };
    let (board, state) = until(feed.clone(), &loopback(), |state| state.at.is_some()).await;
    assert_eq!(state.at, Some(Timestamp(1_700_000_000_000)));
    let fact = board.cost("orders", "west", clock::now()).unwrap();
    assert!(fact.why_unknown().is_some_and(|why| why.contains("are allowed")), "{fact:?}");
    std::fs::remove_file(&path).unwrap();
    assert_eq!(failure(feed, &loopback()).await.reason, Reason::File);
}

#[tokio::test]
async fn a_program_that_takes_too_long_holds_up_only_its_feed() {
    let server = Server::start(|_, _| answer("200 OK", "", r#"{"price": 1}"#)).await;
    let program =
        Program::new("reduce range(300000) as $i (0; . + $i) | {value: ., zone: \"west\"}").unwrap();
    let slow = Feed { map: program, timeout: Duration::from_millis(50), ..server.feed() };
    let late = failure(slow, &loopback()).await;
    assert_eq!((late.stage, late.reason), (Stage::Map, Reason::Timeout));
    assert_eq!(late.what, "the program takes longer than 0.05 s");
}

#[tokio::test]
async fn posts_need_a_signature_and_count_once() {
    let secret = Secret("0123456789abcdef".into());
    let hook = Feed {
        source: Source::Webhook(secret.clone()),
        max_bytes: 100,
        ..http_feed("http://unused.example/")
    };
    let board = FeedBoard::new([hook.clone(), server_less("other")]);
    let folder = tempfile::tempdir().unwrap();
    let journal = Journal::open(folder.path()).unwrap();
    let now = Timestamp(1_795_650_000_000);
    let body = br#"{"price": 0.7}"#;
    let sign = |at: Timestamp| webhook::sign(&secret, body, at);

    let unsigned = receive(&board, &journal, "prices", None, body, now).await;
    assert!(matches!(unsigned, Err(PostRefused::Signature(_))));
    assert!(board.get("prices").unwrap().1.failure.is_none(), "strangers leave no trace");

    assert_eq!(receive(&board, &journal, "prices", Some(&sign(now)), body, now).await, Ok(1));
    let state = board.get("prices").unwrap().1;
    assert_eq!((state.at, state.bytes), (Some(now), 14));
    let later = now.after(Duration::from_secs(60));
    let again = receive(&board, &journal, "prices", Some(&sign(now)), body, later).await;
    assert!(matches!(again, Err(PostRefused::Signature(why)) if why.contains("no later than")));
    assert_eq!(board.get("prices").unwrap().1.at, Some(now));
    assert_eq!(receive(&board, &journal, "prices", Some(&sign(later)), body, later).await, Ok(1));

    let latest = later.after(Duration::from_secs(60));
    let odd = b"nonsense";
    let refused =
        receive(&board, &journal, "prices", Some(&webhook::sign(&secret, odd, latest)), odd, latest).await;
    assert!(matches!(refused, Err(PostRefused::NotUnderstood(failure)) if failure.stage == Stage::Decode));
    let state = board.get("prices").unwrap().1;
    assert_eq!((state.at, state.failures), (Some(later), 1), "what was said before stands");

    // After a restart it still does, and none of the posts can be sent again.
    let anew = FeedBoard::new([hook]);
    recall(&anew, &journal, latest).await.unwrap();
    let known = anew.get("prices").unwrap().1;
    assert_eq!((known.at, known.bytes, known.understood.findings.len()), (Some(later), 14, 1));
    for at in [now, later, latest] {
        let again = receive(&anew, &journal, "prices", Some(&sign(at)), body, latest).await;
        assert!(matches!(again, Err(PostRefused::Signature(why)) if why.contains("no later than")));
    }

    assert_eq!(
        receive(&board, &journal, "prices", None, &[0; 101], now).await,
        Err(PostRefused::TooLarge(100))
    );
    assert_eq!(
        receive(&board, &journal, "other", None, body, now).await,
        Err(PostRefused::NoWebhook("other".into()))
    );
    assert_eq!(
        receive(&board, &journal, "none", None, body, now).await,
        Err(PostRefused::NoWebhook("none".into()))
    );
}

#[tokio::test]
async fn a_window_that_was_posted_outlives_the_program() {
    let secret = Secret("0123456789abcdef".into());
    let hook = Feed {
        source: Source::Webhook(secret.clone()),
        serves: Use::Maintenance,
        map: Program::new(".").unwrap(),
        stale_after: Duration::from_secs(600),
        ..http_feed("http://unused.example/")
    };
    let folder = tempfile::tempdir().unwrap();
    let now = clock::now();
    let (starts, ends) = (now.0 / 1000 + 600, now.0 / 1000 + 7200);
    let body = format!(
        r#"{{"event": "maintenance", "title": "Works", "zone": "west", "starts": {starts}, "ends": {ends}}}"#
    );
    {
        let (board, journal) = (FeedBoard::new([hook.clone()]), Journal::open(folder.path()).unwrap());
        let signature = webhook::sign(&secret, body.as_bytes(), now);
        let taken = receive(&board, &journal, "prices", Some(&signature), body.as_bytes(), now).await;
        assert_eq!(taken, Ok(1));
    }
    let (board, journal) = (FeedBoard::new([hook]), Journal::open(folder.path()).unwrap());
    let later = now.after(Duration::from_secs(1200));
    recall(&board, &journal, later).await.unwrap();
    let (windows, unknown) = board.maintenance("orders", &["west"], later);
    let titles: Vec<&str> = windows.iter().map(|window| window.title.as_str()).collect();
    assert_eq!(titles, ["Works"]);
    let unknown = unknown.unwrap();
    assert!(unknown.contains("the newest of feed prices is 20 min old"), "it has its age: {unknown}");
}

fn server_less(name: &str) -> Feed {
    Feed { name: name.into(), ..http_feed("http://unused.example/") }
}
