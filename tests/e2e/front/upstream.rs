//! Upstreams on loopback that say what they saw.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::{AbortHandle, JoinSet};

/// The generation of an upstream that must get no request.
pub(super) const RETIRED: u64 = u64::MAX;

/// Answers with the generation it serves as, and the length and sum of the body it got.
pub(super) struct Upstream {
    address: SocketAddr,
    state: Arc<State>,
    accepting: AbortHandle,
}

#[derive(Default)]
struct State {
    generation: AtomicU64,
    seen: AtomicU64,
    connections: AtomicU64,
    in_progress: AtomicU64,
    misdirected: AtomicU64,
}

impl Upstream {
    pub(super) async fn start(generation: u64) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(State::default());
        state.generation.store(generation, SeqCst);
        let served = Arc::clone(&state);
        let accepting = tokio::spawn(async move {
            // Ends with this task: whoever drops the upstream closes its connections.
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let state = Arc::clone(&served);
                state.connections.fetch_add(1, SeqCst);
                connections.spawn(async move {
                    let service = service_fn(move |request| answer(Arc::clone(&state), request));
                    hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service)
                        .await
                });
            }
        });
        Self { address, state, accepting: accepting.abort_handle() }
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(super) fn serve_as(&self, generation: u64) {
        self.state.generation.store(generation, SeqCst);
    }

    pub(super) fn seen(&self) -> u64 {
        self.state.seen.load(SeqCst)
    }

    pub(super) fn connections(&self) -> u64 {
        self.state.connections.load(SeqCst)
    }

    pub(super) fn in_progress(&self) -> u64 {
        self.state.in_progress.load(SeqCst)
    }

    pub(super) fn misdirected(&self) -> u64 {
        self.state.misdirected.load(SeqCst)
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn answer(state: Arc<State>, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    state.in_progress.fetch_add(1, SeqCst);
    state.seen.fetch_add(1, SeqCst);
    let generation = state.generation.load(SeqCst);
    if generation == RETIRED {
        state.misdirected.fetch_add(1, SeqCst);
    }
    let forwarded_for = request.headers().get("x-forwarded-for").cloned();
    let (mut bytes, mut sum) = (0_u64, 0_u64);
    let mut body = request.into_body();
    while let Some(Ok(frame)) = body.frame().await {
        if let Some(data) = frame.data_ref() {
            bytes += data.len() as u64;
            sum += data.iter().map(|byte| u64::from(*byte)).sum::<u64>();
        }
    }
    let response = Response::builder()
        .header("generation", generation)
        .header("body-bytes", bytes)
        .header("body-sum", sum)
        .header("forwarded-for", forwarded_for.unwrap_or_else(|| http::HeaderValue::from_static("nobody")))
        .body(Full::new(Bytes::from_static(b"answered")))
        .unwrap();
    state.in_progress.fetch_sub(1, SeqCst);
    Ok(response)
}

/// Answers the first request of a connection and closes it, unanswered, when it has read the second.
pub(super) struct Breaker {
    address: SocketAddr,
    seen: Arc<AtomicU64>,
    accepting: AbortHandle,
}

impl Breaker {
    pub(super) async fn start() -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let seen = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&seen);
        let accepting = tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let seen = Arc::clone(&counted);
                tokio::spawn(async move {
                    for turn in 0..2 {
                        let mut request = Vec::new();
                        while !whole(&request) {
                            match stream.read_buf(&mut request).await {
                                Ok(0) | Err(_) => return,
                                Ok(_) => {}
                            }
                        }
                        seen.fetch_add(1, SeqCst);
                        let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
                        if turn == 0 && stream.write_all(answer).await.is_err() {
                            return;
                        }
                    }
                });
            }
        });
        Self { address, seen, accepting: accepting.abort_handle() }
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(super) fn seen(&self) -> u64 {
        self.seen.load(SeqCst)
    }
}

impl Drop for Breaker {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// Whether the header, and the four bytes of body of a POST, are there.
fn whole(request: &[u8]) -> bool {
    let body = if request.starts_with(b"POST") { 4 } else { 0 };
    let end = request.windows(4).position(|bytes| bytes == b"\r\n\r\n");
    end.is_some_and(|end| request.len() >= end + 4 + body)
}
