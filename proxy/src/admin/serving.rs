//! Connections of the admin listener from their first request to their last: who is slow keeps neither a seat nor the node from its end.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::io;
use std::pin::{Pin, pin};
use std::sync::{Arc, Weak};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody};
use axum::extract::{ConnectInfo, Request};
use axum::response::Response;
use axum::serve::Listener as _;
use axum::{BoxError, Router};
use hyper::body::{Frame, Incoming, SizeHint};
use hyper::server::conn::http1;
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::oneshot;
use tokio::time::{Sleep, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::listener::{Listener, Peer, Stream};

/// Connections at a time; one more ends the oldest that has no request under way.
const CONNECTIONS: usize = 512;
/// How long a connection may be silent before a request, and how long its header may take.
const HEADER: Duration = Duration::from_secs(20);
/// How long the rest of a request's body may take once it is waited for.
const BODY: Duration = Duration::from_secs(20);
/// How long a client may take none of an answer that is ready.
const UNREAD: Duration = Duration::from_secs(30);
/// How long answers under way have when the node stops.
const LAST: Duration = Duration::from_secs(3);

/// Serves until cancelled, and a moment longer what was begun.
pub(super) async fn serve(mut listener: Listener, router: Router, stop: CancellationToken) {
    let (mut seats, connections) = (Seats::of(CONNECTIONS), TaskTracker::new());
    while let Some((stream, peer)) = stop.run_until_cancelled(listener.accept()).await {
        let (address, seat) = (peer.address, seats.take());
        let (router, stop) = (router.clone(), stop.clone());
        connections.spawn(async move {
            tokio::select! {
                () = connection(stream, peer, router, seat.requests, stop) => {}
                Ok(()) = seat.wanted => {
                    tracing::debug!(%address, "too many connections of the admin listener: the oldest was ended");
                }
            }
        });
    }
    drop(listener);
    connections.close();
    connections.wait().await;
}

/// Who is connected, the oldest first.
pub(super) struct Seats {
    most: usize,
    taken: VecDeque<(oneshot::Sender<()>, Weak<()>)>,
}

/// What a connection holds while it is there.
pub(super) struct Seat {
    /// Resolves when another one is to have it.
    pub(super) wanted: oneshot::Receiver<()>,
    /// Held by each request that is under way, too.
    requests: Arc<()>,
}

impl Seats {
    pub(super) fn of(most: usize) -> Self {
        Self { most, taken: VecDeque::new() }
    }

    pub(super) fn take(&mut self) -> Seat {
        self.taken.retain(|(wanted, _)| !wanted.is_closed());
        if self.taken.len() >= self.most {
            let idle = self.taken.iter().position(|(_, requests)| requests.strong_count() <= 1);
            if let Some((wanted, _)) = self.taken.remove(idle.unwrap_or(0)) {
                // It may have gone by itself.
                let _ = wanted.send(());
            }
        }
        let (sender, wanted) = oneshot::channel();
        let requests = Arc::new(());
        self.taken.push_back((sender, Arc::downgrade(&requests)));
        Seat { wanted, requests }
    }
}

async fn connection(stream: Stream, peer: Peer, router: Router, requests: Arc<()>, stop: CancellationToken) {
    let address = peer.address;
    let service = service_fn(move |request: Request<Incoming>| {
        let mut request = request.map(|body| Hurried { body, end: None });
        request.extensions_mut().insert(ConnectInfo(peer.clone()));
        let answer = TowerToHyperService::new(router.clone()).call(request);
        let request = Arc::clone(&requests);
        async {
            let answer: Result<Response, Infallible> = answer.await;
            answer.map(|answer| answer.map(|body| Answer { body, _request: request }))
        }
    });
    let stream = TokioIo::new(Impatient { stream, end: None });
    let mut http = http1::Builder::new();
    let mut connection =
        pin!(http.timer(TokioTimer::new()).header_read_timeout(HEADER).serve_connection(stream, service));
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            timeout(LAST, connection).await.unwrap_or(Ok(()))
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, %address, "a connection of the admin listener broke");
    }
}

/// A request's body, which has its time.
struct Hurried {
    body: Incoming,
    /// Since it was first waited for.
    end: Option<Pin<Box<Sleep>>>,
}

impl HttpBody for Hurried {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        if let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(cx) {
            return Poll::Ready(frame.map(|frame| frame.map_err(BoxError::from)));
        }
        let end = self.end.get_or_insert_with(|| Box::pin(sleep(BODY)));
        end.as_mut().poll(cx).map(|()| Some(Err("it took too long".into())))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// The body of an answer, until whose end its request is under way.
struct Answer {
    body: Body,
    _request: Arc<()>,
}

impl HttpBody for Answer {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A connection that ends where its client takes nothing.
struct Impatient {
    stream: Stream,
    /// Since something waits to be taken.
    end: Option<Pin<Box<Sleep>>>,
}

impl Impatient {
    fn in_time<T>(&mut self, written: Poll<io::Result<T>>, cx: &mut Context<'_>) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.end = None;
            return written;
        }
        let end = self.end.get_or_insert_with(|| Box::pin(sleep(UNREAD)));
        end.as_mut().poll(cx).map(|()| Err(io::ErrorKind::TimedOut.into()))
    }
}

impl AsyncRead for Impatient {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Impatient {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.in_time(written, cx)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(cx);
        self.in_time(flushed, cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let shut = Pin::new(&mut self.stream).poll_shutdown(cx);
        self.in_time(shut, cx)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use anyhow::{Context as _, Result};
    use axum::body::to_bytes;
    use axum::routing::{get, post};
    use futures_util::stream;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::{TcpListener, TcpStream};
    use tokio::task::JoinHandle;

    use super::*;
    use crate::lock::lock;

    async fn served(router: Router) -> Result<(std::net::SocketAddr, CancellationToken, JoinHandle<()>)> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let (address, stop) = (listener.local_addr()?, CancellationToken::new());
        let served = tokio::spawn(serve(Listener::Plain(listener), router, stop.clone()));
        Ok((address, stop, served))
    }

    async fn sent(address: std::net::SocketAddr, request: &str) -> Result<TcpStream> {
        let mut stream = TcpStream::connect(address).await?;
        stream.write_all(request.as_bytes()).await?;
        Ok(stream)
    }

    /// Whoever can connect could keep all others, probes among them, from an answer.
    #[test]
    fn who_asks_nothing_makes_room() {
        let is_wanted = |seat: &mut Seat| seat.wanted.try_recv().is_ok();
        let mut seats = Seats::of(3);
        let [mut busy, mut idle, mut later] = [(); 3].map(|()| seats.take());
        let request = Arc::clone(&busy.requests);
        let mut new = seats.take();
        assert_eq!([&mut busy, &mut idle, &mut later, &mut new].map(is_wanted), [false, true, false, false]);
        // Who has gone has left a place.
        drop(later);
        let mut newer = seats.take();
        assert_eq!([&mut busy, &mut new, &mut newer].map(is_wanted), [false; 3]);
        // All are at work: the oldest.
        let _requests = [&new, &newer].map(|seat| Arc::clone(&seat.requests));
        let _newest = seats.take();
        assert_eq!([&mut busy, &mut new, &mut newer].map(is_wanted), [true, false, false]);
        drop(request);
    }

    #[tokio::test(start_paused = true)]
    async fn half_a_header_does_not_keep_the_node_from_its_end() -> Result<()> {
        let (address, stop, served) = served(Router::new().route("/livez", get(|| async {}))).await?;
        let _half = sent(address, "GET /livez HTTP/1.1\r\nHo").await?;
        // Who comes later is answered: the first has been read.
        let mut answered = sent(address, "GET /livez HTTP/1.1\r\nhost: a\r\n\r\n").await?;
        anyhow::ensure!(answered.read(&mut [0; 512]).await? > 0);
        stop.cancel();
        timeout(HEADER / 2, served).await.context("it waits for the rest of a header")??;
        Ok(())
    }

    #[tokio::test(start_paused = true)]
    async fn who_stands_still_in_a_request_is_not_waited_for() -> Result<()> {
        let read = async |body: Body| {
            to_bytes(body, 9).await.map_or_else(|error| error.to_string(), |_| "read".into())
        };
        let (address, ..) = served(Router::new().route("/", post(read))).await?;
        let ends = async |request: &str| {
            let mut answer = String::new();
            sent(address, request).await?.read_to_string(&mut answer).await?;
            anyhow::Ok(answer)
        };
        assert_eq!(ends("POST / HTTP/1.1\r\nho").await?, "");
        let answer = ends("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\n\r\n{").await?;
        assert!(answer.ends_with("it took too long"), "{answer}");
        Ok(())
    }

    /// One that listens to events, say, and has stopped to read.
    #[tokio::test(start_paused = true)]
    async fn who_reads_nothing_loses_its_seat() -> Result<()> {
        let (seat, left) = oneshot::channel::<()>();
        let endless = stream::unfold(seat, async |seat| {
            Some((Ok::<_, Infallible>(Bytes::from(vec![b'x'; 1 << 16])), seat))
        });
        let body = Arc::new(Mutex::new(Some(Body::from_stream(endless))));
        let events = async move || lock(&body).take().unwrap_or_default();
        let (address, ..) = served(Router::new().route("/", get(events))).await?;
        let _reader = sent(address, "GET / HTTP/1.1\r\nhost: a\r\n\r\n").await?;
        let ended = timeout(UNREAD * 2, left).await.context("it keeps its seat")?;
        assert!(ended.is_err());
        Ok(())
    }
}
