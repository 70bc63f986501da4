//! The connection of a request that asks for an upgrade (WebSocket): its answer is not read before the library has passed on that
//! the request has no body.
//!
//! The library reads the answer and passes on the request's body in one loop, whichever is ready. Where the answer is there
//! first, it takes what follows from the client for the tunnel, and the end of the request's body, which comes next, for the tunnel's
//! end: it closes a WebSocket that has just begun (pingora 0.9.1, `proxy_handle_upstream`). Here a read finds nothing until that
//! end has been passed on and the loop has had a turn to see it. Every other connection is the library's own, without a
//! layer between.

use std::io;
use std::os::fd::{AsRawFd as _, RawFd};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, AtomicU8, Ordering::SeqCst};
use std::task::{Context, Poll};

use async_trait::async_trait;
use pingora::connectors::L4Connect;
use pingora::protocols::l4::ext::{self, TcpKeepalive};
use pingora::protocols::l4::socket::SocketAddr as Address;
use pingora::protocols::l4::stream::Stream;
use pingora::protocols::l4::virt::{VirtualSockOpt, VirtualSocket, VirtualSocketStream};
use pingora::{Error, ErrorType, Result};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use super::connections::Connections;

/// Reads are as they are: before the request, and once the order of things is certain.
const FREE: u8 = 0;
/// The request is on its way, the end of its body was not passed on.
const WAITING: u8 = 1;
/// It was passed on; whoever reads has still to let go once, so that it is seen.
const PASSED: u8 = 2;

/// Opens the connection of one request, and holds its answer back.
#[derive(Debug)]
pub struct Upgrading {
    connections: Arc<Connections>,
    turn: Arc<AtomicU8>,
    descriptor: AtomicI32,
}

impl Upgrading {
    pub(super) fn new(connections: Arc<Connections>) -> Arc<Self> {
        Arc::new(Self { connections, turn: Arc::default(), descriptor: AtomicI32::new(-1) })
    }

    /// The connection's descriptor, which the library does not know; -1: it is not open.
    pub fn descriptor(&self) -> RawFd {
        self.descriptor.load(SeqCst)
    }

    /// It stands; the request, which has no body, is sent next.
    pub fn connected(&self) {
        self.turn.store(WAITING, SeqCst);
    }

    /// That the request has no body is being passed on.
    pub fn body_ended(&self) {
        // Says it once: what comes later is the tunnel's.
        let _ = self.turn.compare_exchange(WAITING, PASSED, SeqCst, SeqCst);
    }
}

#[async_trait]
impl L4Connect for Upgrading {
    async fn connect(&self, address: &Address) -> Result<Stream> {
        let Some(address) = address.as_inet() else {
            return Error::e_explain(ErrorType::InternalError, "endpoints are reached over TCP");
        };
        let stream = ext::connect(address, None).await?;
        let descriptor = stream.as_raw_fd();
        let ended = self.connections.keep(&stream)?;
        self.descriptor.store(descriptor, SeqCst);
        let paced = Paced { stream, turn: Arc::clone(&self.turn) };
        let mut stream = Stream::from(VirtualSocketStream::new(Box::new(paced)));
        stream.tracer = Some(ended);
        Ok(stream)
    }
}

/// A connection whose reads wait for their turn.
#[derive(Debug)]
struct Paced {
    stream: TcpStream,
    turn: Arc<AtomicU8>,
}

impl AsyncRead for Paced {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let turn = self.turn.load(SeqCst);
        if turn == FREE {
            return Pin::new(&mut self.stream).poll_read(cx, buffer);
        }
        if turn == PASSED {
            self.turn.store(FREE, SeqCst);
        }
        // What is waited for happens in this very task, in this turn or the next.
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

impl AsyncWrite for Paced {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

impl VirtualSocket for Paced {
    fn set_socket_option(&self, option: VirtualSockOpt) -> io::Result<()> {
        match option {
            VirtualSockOpt::NoDelay => self.stream.set_nodelay(true),
            VirtualSockOpt::KeepAlive(wanted) => keep_alive(&self.stream, &wanted),
            _ => Ok(()),
        }
    }
}

fn keep_alive(stream: &TcpStream, wanted: &TcpKeepalive) -> io::Result<()> {
    ext::set_tcp_keepalive(stream, wanted).map_err(io::Error::other)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn an_answer_waits_until_the_end_of_the_body_was_seen() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = Address::from(listener.local_addr().unwrap());
        let upgrading = Upgrading::new(Arc::default());
        assert_eq!(upgrading.descriptor(), -1);
        let mut stream = upgrading.connect(&address).await.unwrap();
        let (mut peer, _) = listener.accept().await.unwrap();
        assert!(upgrading.connections.get(upgrading.descriptor()).is_some());
        // A handshake reads as it likes.
        peer.write_all(b"hello").await.unwrap();
        let mut hello = [0; 5];
        stream.read_exact(&mut hello).await.unwrap();

        upgrading.connected();
        peer.write_all(b"there").await.unwrap();
        while stream_has(&upgrading) < 5 {
            tokio::task::yield_now().await;
        }
        let mut read = Box::pin(stream.read(&mut hello));
        assert!(futures_util::poll!(&mut read).is_pending(), "the body has not ended");
        upgrading.body_ended();
        assert!(futures_util::poll!(&mut read).is_pending(), "nobody has seen that it has");
        assert_eq!(read.await.unwrap(), 5);

        // The tunnel's own end changes nothing.
        upgrading.body_ended();
        peer.write_all(b"again").await.unwrap();
        stream.read_exact(&mut hello).await.unwrap();
        drop(stream);
        assert_eq!(upgrading.connections.count(), 0);
    }

    /// Bytes that the kernel has for the connection.
    fn stream_has(upgrading: &Upgrading) -> u64 {
        let connection = upgrading.connections.get(upgrading.descriptor()).unwrap();
        connection.unread().unwrap()
    }
}
