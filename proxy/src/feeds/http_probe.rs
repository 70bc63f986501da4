//! How long does one HTTP endpoint take to answer?
//!
//! Every probe opens a new connection, with the protocol and TLS of the placement's requests, so that it pays what a new client
//! pays, and reads the answer to its end. Anything but a 2xx answer within the time limit is a failure. Redirects are not followed.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt;
use tokio::net::TcpStream;

use super::{Phase, Probe, chain};
use crate::clock;
use crate::fronts::pools::Reach;

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
        let mut phases = Vec::with_capacity(4);
        let latency = match tokio::time::timeout(self.timeout, self.ask(&mut phases)).await {
            Ok(result) => result,
            Err(_) => Err(format!("no answer within {} ms", self.timeout.as_millis())),
        };
        let latency = latency.map_err(|why| format!("{}: {why}", self.endpoint));
        Probe { latency, phases, at: clock::now() }
    }

    async fn ask(&self, phases: &mut Vec<(Phase, Duration)>) -> Result<Duration, String> {
        let begin = clock::monotonic();
        let addresses: Vec<_> =
            tokio::net::lookup_host(&self.endpoint).await.map_err(|error| chain(&error))?.collect();
        phases.push((Phase::Dns, begin.elapsed()));

        let connecting = clock::monotonic();
        let stream = TcpStream::connect(addresses.as_slice()).await.map_err(|error| chain(&error))?;
        stream.set_nodelay(true).map_err(|error| chain(&error))?;
        let greeted = self.reach.greet(stream).await.map_err(|error| chain(&*error))?;
        phases.push((Phase::Connect, connecting.elapsed()));

        let asking = clock::monotonic();
        let answered = greeted.get(&self.path, &self.endpoint, "godwit-probe").await;
        let mut answer = answered.map_err(|error| chain(&*error))?;
        phases.push((Phase::FirstByte, asking.elapsed()));
        let status = answer.response.status();
        if !status.is_success() {
            return Err(format!("answered {}", status.as_u16()));
        }
        let body = answer.response.body_mut();
        let mut length = 0_usize;
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| chain(&error))?;
            length += frame.data_ref().map_or(0, Bytes::len);
            if length > LONGEST_BODY {
                return Err(format!("the answer is longer than {LONGEST_BODY} bytes"));
            }
        }
        let total = begin.elapsed();
        phases.push((Phase::Total, total));
        Ok(total)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::net::SocketAddr;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;
    use tokio::task::JoinSet;

    use super::*;

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
        assert_eq!(order, [Phase::Dns, Phase::Connect, Phase::FirstByte, Phase::Total]);
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
        let why = found.latency.unwrap_err();
        assert!(why.starts_with(&format!("{address}: ")) && why.contains("refused"), "{why}");
        assert_eq!(found.phases.len(), 1);
    }

    #[tokio::test]
    async fn a_black_hole_is_a_failure_after_the_timeout() {
        let (address, _server) = server(None, Duration::ZERO).await;
        let begin = clock::monotonic();
        let found = probe(address).run().await;
        assert_eq!(found.latency.unwrap_err(), format!("{address}: no answer within 400 ms"));
        assert!(begin.elapsed() < Duration::from_secs(3));
        assert!(found.phases.iter().any(|(phase, _)| *phase == Phase::Connect));
    }

    #[tokio::test]
    async fn half_an_answer_is_a_failure() {
        let (address, _server) =
            server(Some("HTTP/1.1 200 OK\r\ncontent-length: 20\r\n\r\nok"), Duration::ZERO).await;
        assert!(probe(address).run().await.latency.is_err());
    }

    #[tokio::test]
    async fn a_status_that_is_not_success_is_a_failure() {
        let (address, _server) =
            server(Some("HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n"), Duration::ZERO)
                .await;
        assert_eq!(probe(address).run().await.latency.unwrap_err(), format!("{address}: answered 503"));
    }

    #[tokio::test]
    async fn http2_over_tls_is_spoken_where_requests_speak_it() {
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
        config.alpn_protocols = vec![b"h2".to_vec()];
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut serving = JoinSet::new();
        serving.spawn(async move {
            let mut open = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let acceptor = acceptor.clone();
                open.spawn(async move {
                    let Ok(stream) = acceptor.accept(stream).await else { return };
                    let answer = hyper::service::service_fn(async |request: http::Request<_>| {
                        let _: hyper::body::Incoming = request.into_body();
                        Ok::<_, std::convert::Infallible>(http::Response::new(String::from("ok")))
                    });
                    let executor = hyper_util::rt::TokioExecutor::new();
                    let server = hyper::server::conn::http2::Builder::new(executor);
                    let _ = server.serve_connection(hyper_util::rt::TokioIo::new(stream), answer).await;
                });
            }
        });
        let reach = |name: &str| {
            let tls =
                crate::fronts::http::settings::UpstreamTls { ca: Some(at("ca.pem")), name: name.into() };
            let way =
                crate::fronts::http::settings::Upstream { http2: true, tls: Some(tls), ..Default::default() };
            Arc::new(Reach::new(&way, &[], &[]).unwrap())
        };
        let patient = HttpProbe { timeout: Duration::from_secs(30), ..probe(address) };
        let found = HttpProbe { reach: reach("orders.internal"), ..patient.clone() }.run().await;
        assert!(found.latency.is_ok(), "{:?}", found.latency);
        let found = HttpProbe { reach: reach("other.internal"), ..patient.clone() }.run().await;
        assert!(found.latency.unwrap_err().contains("certificate"), "another name's certificate");
        assert!(patient.run().await.latency.is_err(), "HTTP/1.1 in the clear is not what it speaks");
    }

    #[tokio::test]
    async fn a_path_that_is_none_is_a_failure() {
        let (address, _server) = server(Some(OK), Duration::ZERO).await;
        let bad = HttpProbe { path: "not a path".into(), ..probe(address) };
        assert!(bad.run().await.latency.is_err());
    }
}
