//! How long does one HTTP endpoint take to answer?
//!
//! Every probe opens a new connection, with the protocol and TLS of the placement's requests, so that it pays what a new client
//! pays, and reads the answer to its end. Anything but a 2xx answer within the time limit is a failure. Redirects are not followed.

use std::io::ErrorKind;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt;
use rustls::{CertificateError, Error as Tls};
use tokio::net::TcpStream;

use super::probe::{Course, Failure, Phase, Probe};
use crate::causes::chain;
use crate::fronts::pools::{Reach, asking};

/// An answer longer than this is a failure: a probe must not become a load.
const LONGEST_BODY: usize = 1 << 20;

/// What to ask, and for how long to wait.
#[derive(Clone)]
pub struct HttpProbe {
    /// `host:port`; the host may be a name.
    pub endpoint: String,
    /// Path and query, from the slash.
    pub path: String,
    /// Protocol and TLS.
    pub reach: Arc<Reach>,
    /// For the whole probe.
    pub timeout: Duration,
}

impl HttpProbe {
    /// Probes once. The latency is [`Phase::Total`]. Cancel-safe: dropping the future closes the connection.
    pub async fn run(&self) -> Probe {
        let mut course = Course::begin(Phase::Dns);
        let latency = match tokio::time::timeout(self.timeout, self.ask(&mut course)).await {
            Ok(asked) => asked.map_err(|why| course.failed(why)),
            Err(_) => Err(course.too_late(self.timeout)),
        };
        let latency = latency
            .map_err(|failure| Failure { why: format!("{}: {}", self.endpoint, failure.why), ..failure });
        course.found(latency)
    }

    async fn ask(&self, course: &mut Course) -> Result<Duration, String> {
        let addresses: Vec<_> =
            tokio::net::lookup_host(&self.endpoint).await.map_err(|error| chain(&error))?.collect();
        course.then(Phase::Connect);
        let stream = TcpStream::connect(addresses.as_slice()).await.map_err(|error| chain(&error))?;
        stream.set_nodelay(true).map_err(|error| chain(&error))?;
        let greeted = match &self.reach.server_name {
            Some(name) => {
                course.then(Phase::Tls);
                self.reach.look();
                let refused = |error: asking::Failure| {
                    format!("the TLS handshake failed: {}", handshake(&*error, name))
                };
                self.reach.greet(stream).await.map_err(refused)?
            }
            None => self.reach.greet(stream).await.map_err(|error| chain(&*error))?,
        };
        course.then(Phase::FirstByte);
        let answered = greeted.get(&self.path, &self.endpoint, "godwit-probe").await;
        let mut answer = answered.map_err(|error| chain(&*error))?;
        let status = answer.response.status();
        if !status.is_success() {
            return Err(course.declined(status.as_u16()));
        }
        course.then(Phase::Body);
        let body = answer.response.body_mut();
        let mut length = 0_usize;
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| chain(&error))?;
            length += frame.data_ref().map_or(0, Bytes::len);
            if length > LONGEST_BODY {
                return Err(format!("the answer is longer than {LONGEST_BODY} bytes"));
            }
        }
        Ok(course.whole())
    }
}

/// Why there is no TLS with an endpoint whose certificate should be for `name`, in words that say what to mend.
fn handshake(error: &(dyn std::error::Error + Send + Sync + 'static), name: &str) -> String {
    let io = error.downcast_ref::<std::io::Error>();
    let Some(tls) = io.and_then(std::io::Error::get_ref).and_then(|inner| inner.downcast_ref::<Tls>()) else {
        return match io.map(std::io::Error::kind) {
            Some(ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset | ErrorKind::BrokenPipe) => {
                format!("it hung up ({})", chain(error))
            }
            _ => chain(error),
        };
    };
    match tls {
        Tls::InvalidCertificate(
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
        ) => {
            format!("its certificate is not for {name} ({tls})")
        }
        Tls::InvalidCertificate(CertificateError::UnknownIssuer | CertificateError::BadSignature) => {
            format!("nobody whom requests trust vouches for its certificate ({tls})")
        }
        Tls::InvalidCertificate(_) => format!("its certificate does not count ({tls})"),
        Tls::InvalidMessage(_) => format!("it does not speak TLS ({tls})"),
        Tls::AlertReceived(_) => format!("it refused ({tls})"),
        _ => tls.to_string(),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::net::SocketAddr;
    use std::path::Path;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;
    use tokio::task::JoinSet;

    use super::*;
    use crate::clock;
    use crate::fronts::http::settings::{Upstream, UpstreamTls};

    /// A real server on loopback that answers every connection with these bytes after `delay`; `None`: never.
    pub(crate) async fn server(answer: Option<&'static str>, delay: Duration) -> (SocketAddr, JoinSet<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut open = JoinSet::new();
            while let Ok((mut stream, _)) = listener.accept().await {
                open.spawn(async move {
                    let mut request = [0; 1024];
                    let _ = stream.read(&mut request).await;
                    match answer {
                        Some(answer) => {
                            tokio::time::sleep(delay).await;
                            let _ = stream.write_all(answer.as_bytes()).await;
                        }
                        None => std::future::pending().await,
                    }
                });
            }
        });
        (address, tasks)
    }

    pub(crate) const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

    fn probe(address: SocketAddr) -> HttpProbe {
        HttpProbe {
            endpoint: address.to_string(),
            path: "/healthz".into(),
            reach: Arc::default(),
            timeout: Duration::from_millis(400),
        }
    }

    #[tokio::test]
    async fn an_answer_is_timed_in_phases() {
        let delay = Duration::from_millis(30);
        let (address, _server) = server(Some(OK), delay).await;
        let found = probe(address).run().await;
        let latency = found.latency.clone().unwrap();
        assert!(latency >= delay, "{latency:?}");
        let order: Vec<Phase> = found.phases.iter().map(|(phase, _)| *phase).collect();
        assert_eq!(order, [Phase::Dns, Phase::Connect, Phase::FirstByte, Phase::Body, Phase::Total]);
        assert!(found.phase(Phase::FirstByte).unwrap() >= delay);
        assert!(found.phase(Phase::Connect).unwrap() < latency);
        assert_eq!(found.phase(Phase::Query), None);
    }

    #[tokio::test]
    async fn chunked_answers_and_names_work() {
        let chunked = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n";
        let (address, _server) = server(Some(chunked), Duration::ZERO).await;
        let named = HttpProbe { endpoint: format!("localhost:{}", address.port()), ..probe(address) };
        assert!(named.run().await.latency.is_ok());
    }

    #[tokio::test]
    async fn a_refused_connection_is_a_failure() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        drop(listener);
        let found = probe(address).run().await;
        let Failure { phase, why } = found.latency.unwrap_err();
        assert!(why.starts_with(&format!("{address}: ")) && why.contains("refused"), "{why}");
        assert_eq!((phase, found.phases.len()), (Phase::Connect, 1));
    }

    #[tokio::test]
    async fn a_black_hole_is_a_failure_after_the_timeout() {
        let (address, _server) = server(None, Duration::ZERO).await;
        let begin = clock::monotonic();
        let found = probe(address).run().await;
        let why = format!("{address}: no answer within 400 ms");
        assert_eq!(found.latency.unwrap_err(), Failure { phase: Phase::FirstByte, why });
        assert!(begin.elapsed() < Duration::from_secs(3));
        assert!(found.phases.iter().any(|(phase, _)| *phase == Phase::Connect));
    }

    #[tokio::test]
    async fn half_an_answer_is_a_failure() {
        let (address, _server) =
            server(Some("HTTP/1.1 200 OK\r\ncontent-length: 20\r\n\r\nok"), Duration::ZERO).await;
        assert_eq!(probe(address).run().await.latency.unwrap_err().phase, Phase::Body);
    }

    #[tokio::test]
    async fn a_status_that_is_not_success_is_a_failure() {
        let (address, _server) =
            server(Some("HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n"), Duration::ZERO)
                .await;
        let found = probe(address).run().await;
        assert_eq!(found.latency.unwrap_err().why, format!("{address}: answered 503"));
        assert_eq!(found.status, Some(503));
    }

    #[tokio::test]
    async fn a_path_that_is_none_is_a_failure() {
        let (address, _server) = server(Some(OK), Duration::ZERO).await;
        let bad = HttpProbe { path: "not a path".into(), ..probe(address) };
        assert!(bad.run().await.latency.is_err());
    }

    /// Whoever is to be asked over TLS: certificates of an authority of their own.
    pub(crate) struct Secure {
        folder: tempfile::TempDir,
        pub(crate) address: SocketAddr,
        _serving: JoinSet<()>,
    }

    /// Answers over TLS as `orders.internal`, in HTTP/2 or 1.1; `delay` after each connection came.
    pub(crate) async fn secure(http2: bool, delay: Duration) -> Secure {
        let folder = tempfile::tempdir().unwrap();
        crate::pki::make(folder.path(), &["orders.internal"]).unwrap();
        let at = |name: &str| folder.path().join(name);
        let pair = (at("orders.internal.pem"), at("orders.internal.key"));
        let resolver = crate::tls::ByName::read(&[pair], "a test's certificate").unwrap();
        let mut config = rustls::ServerConfig::builder_with_provider(crate::tls::provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(resolver));
        config.alpn_protocols = vec![if http2 { b"h2".to_vec() } else { b"http/1.1".to_vec() }];
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut serving = JoinSet::new();
        serving.spawn(async move {
            let mut open = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let acceptor = acceptor.clone();
                open.spawn(async move {
                    tokio::time::sleep(delay).await;
                    let Ok(stream) = acceptor.accept(stream).await else { return };
                    let answer = hyper::service::service_fn(async |request: http::Request<_>| {
                        let _: hyper::body::Incoming = request.into_body();
                        Ok::<_, std::convert::Infallible>(http::Response::new(String::from("ok")))
                    });
                    let stream = hyper_util::rt::TokioIo::new(stream);
                    if http2 {
                        let executor = hyper_util::rt::TokioExecutor::new();
                        let server = hyper::server::conn::http2::Builder::new(executor);
                        let _ = server.serve_connection(stream, answer).await;
                    } else {
                        let server = hyper::server::conn::http1::Builder::new();
                        let _ = server.serve_connection(stream, answer).await;
                    }
                });
            }
        });
        Secure { folder, address, _serving: serving }
    }

    /// To an endpoint that has a certificate for `name`.
    pub(crate) fn reach(name: &str, ca: Option<&Path>, http2: bool) -> Reach {
        let tls = UpstreamTls { ca: ca.map(|folder| folder.join("ca.pem")), name: name.into() };
        Reach::new(&Upstream { http2, tls: Some(tls), ..Upstream::default() }, &[], &[]).unwrap()
    }

    impl Secure {
        /// A probe that expects `name` there, vouched for by the authority in `ca`; none: by this machine's.
        fn probe(&self, name: &str, ca: Option<&Path>, http2: bool) -> HttpProbe {
            HttpProbe {
                reach: Arc::new(reach(name, ca, http2)),
                timeout: Duration::from_secs(30),
                ..probe(self.address)
            }
        }

        pub(crate) fn own(&self) -> &Path {
            self.folder.path()
        }
    }

    async fn refusal(probe: HttpProbe) -> String {
        let found = probe.run().await;
        assert_eq!(found.phase(Phase::Tls), None, "{found:?}");
        let Failure { phase, why } = found.latency.unwrap_err();
        assert_eq!(phase, Phase::Tls, "{why}");
        let (endpoint, why) = why.split_once(": ").unwrap();
        assert_eq!(endpoint, probe.endpoint);
        why.to_owned()
    }

    #[tokio::test]
    async fn a_handshake_is_a_phase_of_its_own() {
        let delay = Duration::from_millis(30);
        for http2 in [false, true] {
            let server = secure(http2, delay).await;
            let found = server.probe("orders.internal", Some(server.own()), http2).run().await;
            assert!(found.latency.is_ok(), "{:?}", found.latency);
            let order: Vec<&str> = found.phases.iter().map(|(phase, _)| phase.as_str()).collect();
            assert_eq!(order, ["dns", "connect", "tls", "first_byte", "body", "total"]);
            // The connection stood long before the server said anything of TLS.
            let took = |phase| found.phase(phase).unwrap();
            assert!(took(Phase::Tls) >= delay && took(Phase::Connect) < took(Phase::Tls), "{found:?}");
            let clear = HttpProbe { timeout: Duration::from_secs(30), ..probe(server.address) };
            assert!(clear.run().await.latency.is_err(), "HTTP/1.1 in the clear is not what it speaks");
        }
    }

    #[tokio::test]
    async fn a_certificate_that_does_not_count_is_named() {
        let server = secure(true, Duration::ZERO).await;
        let why = refusal(server.probe("other.internal", Some(server.own()), true)).await;
        assert!(
            why.starts_with("the TLS handshake failed: its certificate is not for other.internal ("),
            "{why}"
        );
        let stranger = tempfile::tempdir().unwrap();
        crate::pki::make(stranger.path(), &["orders.internal"]).unwrap();
        for ca in [Some(stranger.path()), None] {
            let why = refusal(server.probe("orders.internal", ca, true)).await;
            let expected =
                "the TLS handshake failed: nobody whom requests trust vouches for its certificate (";
            assert!(why.starts_with(expected), "{why}");
        }
    }

    #[tokio::test]
    async fn an_authority_that_is_replaced_counts_from_the_next_connection_on() {
        let (old, new) = (secure(false, Duration::ZERO).await, secure(false, Duration::ZERO).await);
        let folder = tempfile::tempdir().unwrap();
        let ca = folder.path().join("ca.pem");
        std::fs::copy(old.own().join("ca.pem"), &ca).unwrap();
        let before = old.probe("orders.internal", Some(folder.path()), false);
        assert!(before.run().await.latency.is_ok());
        let after = HttpProbe { endpoint: new.address.to_string(), ..before.clone() };
        assert!(after.run().await.latency.is_err());
        let known = before.reach.authorities().unwrap();
        std::fs::copy(new.own().join("ca.pem"), &ca).unwrap();
        let later = std::time::SystemTime::UNIX_EPOCH + Duration::from_secs(10);
        std::fs::File::options().write(true).open(&ca).unwrap().set_modified(later).unwrap();
        assert!(after.run().await.latency.is_ok());
        assert!(!Arc::ptr_eq(&known, &before.reach.authorities().unwrap()), "requests go by it, too");
        assert!(before.run().await.latency.is_err(), "nobody vouches for the old one any more");
    }

    #[tokio::test]
    async fn who_does_not_shake_hands_is_told_apart() {
        let folder = tempfile::tempdir().unwrap();
        crate::pki::make(folder.path(), &["orders.internal"]).unwrap();
        let at = async |server: (SocketAddr, JoinSet<()>), timeout| {
            let secure =
                Secure { folder: tempfile::tempdir().unwrap(), address: server.0, _serving: server.1 };
            let asked = secure.probe("orders.internal", Some(folder.path()), false);
            refusal(HttpProbe { timeout, ..asked }).await
        };
        let patient = Duration::from_secs(30);
        let clear = at(server(Some(OK), Duration::ZERO).await, patient).await;
        assert!(clear.starts_with("the TLS handshake failed: it does not speak TLS ("), "{clear}");
        let silent = at(server(None, Duration::ZERO).await, Duration::from_millis(200)).await;
        assert_eq!(silent, "the TLS handshake was not done within 200 ms");
        let gone = at(server(Some(""), Duration::ZERO).await, patient).await;
        assert!(gone.starts_with("the TLS handshake failed: it hung up ("), "{gone}");
    }
}
