//! How long does one HTTP endpoint take to answer?
//!
//! Every probe opens a new connection (plain HTTP/1.1, GET), so that it pays what a new client pays, and reads the
//! answer to its end. Anything but a 2xx answer within the time limit is a failure. Redirects are not followed.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use super::{Phase, Probe, chain};
use crate::clock;

/// An answer longer than this is a failure: a probe must not become a load.
const LONGEST_BODY: usize = 1 << 20;

/// What to ask, and for how long to wait.
#[derive(Clone, Debug)]
pub struct HttpProbe {
    /// `host:port`; the host may be a name.
    pub endpoint: String,
    /// Path and query, from the slash.
    pub path: String,
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
        phases.push((Phase::Connect, connecting.elapsed()));

        let asking = clock::monotonic();
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| chain(&error))?;
        // Ends with this probe: a set aborts what it holds when it is dropped.
        let mut connections = JoinSet::new();
        connections.spawn(connection);
        let request = http::Request::get(&self.path)
            .header(http::header::HOST, &self.endpoint)
            .header(http::header::USER_AGENT, "godwit-probe")
            .header(http::header::CONNECTION, "close")
            .body(Empty::<Bytes>::new())
            .map_err(|error| chain(&error))?;
        let response = sender.send_request(request).await.map_err(|error| chain(&error))?;
        phases.push((Phase::FirstByte, asking.elapsed()));
        let status = response.status();
        if !status.is_success() {
            return Err(format!("answered {}", status.as_u16()));
        }
        let mut body = response.into_body();
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
    async fn a_path_that_is_none_is_a_failure() {
        let (address, _server) = server(Some(OK), Duration::ZERO).await;
        let bad = HttpProbe { path: "not a path".into(), ..probe(address) };
        assert!(bad.run().await.latency.is_err());
    }
}
