//! TLS at both ends, by clients that are not ours: curl and openssl.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use godwit::fronts::http::settings::{ClientCertificates, ListenerTls, Upstream as Way, UpstreamTls};
use godwit::pki;
use godwit_tests::postgres::free_port;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::process::Command;
use tokio_rustls::TlsAcceptor;

use super::raw::Raw;
use super::*;

/// An authority with a certificate for each name.
struct Authority(PathBuf);

impl Authority {
    fn new(folder: &Path, name: &str, names: &[&str]) -> Self {
        let path = folder.join(name);
        pki::make(&path, names).unwrap();
        Self(path)
    }

    fn ca(&self) -> PathBuf {
        self.0.join("ca.pem")
    }

    fn pair(&self, name: &str) -> (PathBuf, PathBuf) {
        (self.0.join(format!("{name}.pem")), self.0.join(format!("{name}.key")))
    }
}

/// What curl says of `https://NAME:PORT/PATH`: the body, and protocol and status; an error is its exit status.
async fn curl(front: &Front, ca: &Path, name: &str, more: &[&str]) -> Result<String, i32> {
    let port = front.address.port();
    let output = Command::new("curl")
        .args(["--silent", "--max-time", "20", "--write-out", " %{http_version} %{http_code}", "--cacert"])
        .arg(ca)
        .args(["--resolve", &format!("{name}:{port}:127.0.0.1")])
        .args(more)
        .arg(format!("https://{name}:{port}/tls"))
        .output()
        .await
        .unwrap();
    if output.status.success() {
        Ok(String::from_utf8(output.stdout).unwrap())
    } else {
        Err(output.status.code().unwrap_or(-1))
    }
}

async fn start(tls: ListenerTls, raw: &Raw) -> Front {
    let mut front = HttpFront::plain(free(), &[]);
    front.listener.tls = Some(tls);
    Front::of(front, WIDE, Pool::new(0, "a", &[raw.address()])).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_certificate_is_the_names_and_both_protocols_are_spoken() {
    let folder = tempfile::tempdir().unwrap();
    let one = Authority::new(folder.path(), "one", &["a.example"]);
    let two = Authority::new(folder.path(), "two", &["b.example"]);
    let raw = Raw::start().await;
    let certificates = vec![one.pair("a.example"), two.pair("b.example")];
    let front = start(ListenerTls { certificates, clients: None, http2: true }, &raw).await;
    assert_eq!(curl(&front, &one.ca(), "a.example", &["--http2"]).await.unwrap(), "GET /tls 2 200");
    assert_eq!(curl(&front, &two.ca(), "b.example", &["--http2"]).await.unwrap(), "GET /tls 2 200");
    assert_eq!(curl(&front, &two.ca(), "b.example", &["--http1.1"]).await.unwrap(), "GET /tls 1.1 200");
    assert_eq!(curl(&front, &one.ca(), "b.example", &[]).await, Err(60), "another authority's");
    let seen = raw.take();
    assert_eq!(seen.len(), 3);
    for request in &seen {
        assert_eq!(request.one("x-forwarded-proto"), "https");
        assert_eq!(request.one("x-forwarded-for"), "127.0.0.1");
        assert!(request.one("host").ends_with(&format!(".example:{}", front.address.port())));
    }
    for (name, protocol) in [("h2", "h2"), ("http/1.1", "http/1.1")] {
        let output = Command::new("openssl")
            .args([
                "s_client",
                "-connect",
                &front.address.to_string(),
                "-servername",
                "b.example",
                "-alpn",
                name,
            ])
            .stdin(Stdio::null())
            .output()
            .await
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(text.contains(&format!("ALPN protocol: {protocol}")), "{text}");
        assert!(text.contains("CN = b.example"), "{text}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_is_replaced_while_it_runs() {
    let folder = tempfile::tempdir().unwrap();
    let one = Authority::new(folder.path(), "one", &["a.example"]);
    let two = Authority::new(folder.path(), "two", &["a.example"]);
    let own = (folder.path().join("own.pem"), folder.path().join("own.key"));
    let put = |from: &Authority| {
        let (cert, key) = from.pair("a.example");
        std::fs::copy(cert, &own.0).unwrap();
        std::fs::copy(key, &own.1).unwrap();
    };
    put(&one);
    let raw = Raw::start().await;
    let front =
        start(ListenerTls { certificates: vec![own.clone()], clients: None, http2: true }, &raw).await;
    assert!(curl(&front, &one.ca(), "a.example", &[]).await.is_ok());
    std::fs::write(&own.0, "no certificate").unwrap();
    front.routes.look();
    assert!(curl(&front, &one.ca(), "a.example", &[]).await.is_ok(), "a broken file changes nothing");
    put(&two);
    until("the new certificate is shown", async || curl(&front, &two.ca(), "a.example", &[]).await.is_ok())
        .await;
    assert_eq!(curl(&front, &one.ca(), "a.example", &[]).await, Err(60));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_show_certificates_where_they_must() {
    let folder = tempfile::tempdir().unwrap();
    let own = Authority::new(folder.path(), "own", &["a.example"]);
    let clients = Authority::new(folder.path(), "clients", &["ann"]);
    let strangers = Authority::new(folder.path(), "strangers", &["eve"]);
    let raw = Raw::start().await;
    for required in [true, false] {
        let tls = ListenerTls {
            certificates: vec![own.pair("a.example")],
            clients: Some(ClientCertificates { ca: clients.ca(), required }),
            http2: true,
        };
        let front = start(tls, &raw).await;
        let show = |of: &Authority, name: &str| {
            let (cert, key) = of.pair(name);
            let text = |path: PathBuf| path.to_str().unwrap().to_owned();
            vec!["--cert".to_owned(), text(cert), "--key".into(), text(key)]
        };
        let ask = async |arguments: Vec<String>| {
            let forged = ["--header", "x-forwarded-client-cert: Hash=00"];
            let all: Vec<&str> = arguments.iter().map(String::as_str).chain(forged).collect();
            curl(&front, &own.ca(), "a.example", &all).await
        };
        assert!(ask(show(&clients, "ann")).await.is_ok());
        let shown = raw.take().pop().unwrap();
        let hash = shown.one("x-forwarded-client-cert");
        assert!(hash.starts_with("Hash=") && hash.len() == 5 + 64, "{hash}");
        assert!(ask(show(&strangers, "eve")).await.is_err());
        let without = ask(Vec::new()).await;
        assert_eq!(without.is_err(), required, "{without:?}");
        for request in raw.take() {
            assert!(request.all("x-forwarded-client-cert").is_empty(), "forged");
        }
    }
}

/// Answers over TLS with the protocol that was agreed on.
async fn secure_upstream(own: (PathBuf, PathBuf), http2: bool) -> (SocketAddr, tokio::task::AbortHandle) {
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let chain = CertificateDer::pem_file_iter(own.0).unwrap().collect::<Result<Vec<_>, _>>().unwrap();
    let mut config = rustls::ServerConfig::builder_with_provider(godwit::tls::provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, PrivateKeyDer::from_pem_file(own.1).unwrap())
        .unwrap();
    config.alpn_protocols = vec![if http2 { b"h2".to_vec() } else { b"http/1.1".to_vec() }];
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let task = tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let Ok(stream) = acceptor.accept(stream).await else { return };
                let service =
                    hyper::service::service_fn(|request: Request<hyper::body::Incoming>| async move {
                        let version = format!("{:?}", request.version());
                        Ok::<_, std::convert::Infallible>(Response::new(Full::new(Bytes::from(version))))
                    });
                let builder = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
                let _ = builder.serve_connection(hyper_util::rt::TokioIo::new(stream), service).await;
            });
        }
    });
    (address, task.abort_handle())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn endpoints_are_reached_over_tls_and_checked() {
    let folder = tempfile::tempdir().unwrap();
    let own = Authority::new(folder.path(), "own", &["orders.internal"]);
    let other = Authority::new(folder.path(), "other", &["orders.internal"]);
    for http2 in [false, true] {
        let (address, upstream) = secure_upstream(own.pair("orders.internal"), http2).await;
        let front = async |ca: PathBuf, name: &str| {
            let tls = Some(UpstreamTls { ca: Some(ca), name: name.into() });
            let way = Way { http2, tls, ..Way::default() };
            let reach = Reach::new(&way, &[address.to_string()], &[address]).unwrap();
            let mut plain = HttpFront::plain(free(), &[]);
            plain.settings.health = Some(godwit::fronts::http::settings::HealthCheck {
                path: Some("/".into()),
                ..Default::default()
            });
            Front::reaching(
                plain,
                WIDE,
                Pool::new(0, "a", &[address]),
                HashMap::from([("a".into(), Arc::new(reach))]),
            )
            .await
        };
        let right = front(own.ca(), "orders.internal").await;
        let (status, _, text) = right.send(right.get("/")).await;
        assert_eq!((status.as_u16(), &*text), (200, if http2 { "HTTP/2.0" } else { "HTTP/1.1" }));
        for (ca, name) in [(other.ca(), "orders.internal"), (own.ca(), "other.internal")] {
            let wrong = front(ca, name).await;
            let (status, _, text) = wrong.send(wrong.get("/")).await;
            assert_eq!(status, StatusCode::BAD_GATEWAY, "{text}");
            let (status, _, text) = wrong.send(wrong.request(Method::POST, "/", Bytes::new())).await;
            assert_eq!(status, StatusCode::BAD_GATEWAY);
            assert!(text.contains("could not be reached"), "{text}");
        }
        upstream.abort();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_authority_of_endpoints_is_replaced_while_a_front_runs() {
    let folder = tempfile::tempdir().unwrap();
    let [old, new] = ["old", "new"].map(|name| Authority::new(folder.path(), name, &["orders.internal"]));
    let (first, one) = secure_upstream(old.pair("orders.internal"), false).await;
    let (second, other) = secure_upstream(new.pair("orders.internal"), false).await;
    let ca = folder.path().join("ca.pem");
    std::fs::copy(old.ca(), &ca).unwrap();
    let tls = Some(UpstreamTls { ca: Some(ca.clone()), name: "orders.internal".into() });
    let reach = Reach::new(&Way { tls, ..Way::default() }, &[first.to_string()], &[first]).unwrap();
    let reaches = HashMap::from([("a".into(), Arc::new(reach))]);
    let front =
        Front::reaching(HttpFront::plain(free(), &[]), WIDE, Pool::new(0, "a", &[first]), reaches).await;
    assert_eq!(front.send(front.get("/")).await.0, StatusCode::OK);
    front.resource.pool.set_upstreams(0, &[second]).unwrap();
    assert_eq!(front.send(front.get("/")).await.0, StatusCode::BAD_GATEWAY);
    std::fs::copy(new.ca(), &ca).unwrap();
    let changed = std::time::SystemTime::UNIX_EPOCH + Duration::from_secs(10);
    std::fs::File::options().write(true).open(&ca).unwrap().set_modified(changed).unwrap();
    until("the new authority counts", async || front.send(front.get("/")).await.0 == StatusCode::OK).await;
    one.abort();
    other.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_balancer_in_front_says_who_the_client_is() {
    let raw = Raw::start().await;
    let mut front = HttpFront::plain(free(), &[]);
    front.listener.proxy_protocol = vec![network("127.0.0.1")];
    front.listener.h2c = true;
    let front = Front::of(front, WIDE, Pool::new(0, "a", &[raw.address()])).await;
    let url = format!("http://{}/", front.address);
    for (arguments, client) in [
        (&["--haproxy-protocol"][..], "127.0.0.1"),
        (&["--haproxy-protocol", "--http2-prior-knowledge"], "127.0.0.1"),
    ] {
        let output = Command::new("curl").arg("--silent").args(arguments).arg(&url).output().await.unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stdout), "GET /");
        assert_eq!(raw.take()[0].one("x-forwarded-for"), client);
    }
    let ask = async |begin: &[u8]| {
        let mut stream = TcpStream::connect(front.address).await.unwrap();
        stream.write_all(begin).await.unwrap();
        let _ = stream.write_all(b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await;
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        (answer.starts_with(b"HTTP/1.1 200"), raw.take().pop())
    };
    let (ok, seen) = ask(b"PROXY TCP4 192.0.2.7 198.51.100.1 12345 443\r\n").await;
    assert_eq!((ok, seen.unwrap().one("x-forwarded-for")), (true, "192.0.2.7"));
    let mut second = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c".to_vec();
    second.extend([192, 0, 2, 8, 198, 51, 100, 1, 1, 2, 3, 4]);
    let (ok, seen) = ask(&second).await;
    assert_eq!((ok, seen.unwrap().one("x-forwarded-for")), (true, "192.0.2.8"));
    assert_eq!(ask(b"").await, (false, None), "a connection without one");
    drop(front);
    // Somebody who is no balancer cannot say who he is.
    let mut strict = HttpFront::plain(SocketAddr::from(([127, 0, 0, 1], free_port().unwrap())), &[]);
    strict.listener.proxy_protocol = vec![network("10.0.0.0/8")];
    let front = Front::of(strict, WIDE, Pool::new(0, "a", &[raw.address()])).await;
    let mut stream = TcpStream::connect(front.address).await.unwrap();
    stream
        .write_all(b"PROXY TCP4 192.0.2.7 198.51.100.1 12345 443\r\nGET / HTTP/1.1\r\nhost: a\r\n\r\n")
        .await
        .unwrap();
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    assert!(!answer.starts_with(b"HTTP/1.1 200"), "{}", answer.escape_ascii());
    assert!(raw.take().is_empty());
}

pub(super) fn network(text: &str) -> godwit::feeds::external::egress::Network {
    godwit::feeds::external::egress::Network::parse(text).unwrap()
}
