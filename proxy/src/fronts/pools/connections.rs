//! The connections to one endpoint: which are open, so that they can be ended at a moment of ours and not only when the
//! proxy library's keep-alive pool thinks of it, and what the kernel knows of them.
//!
//! Each connection's socket is held a second time (a duplicate of its descriptor). Ending one is a `shutdown` of the socket:
//! whoever reads it, in a request, in a stream or in the keep-alive pool, sees its end.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard};

use async_trait::async_trait;
use pingora::connectors::L4Connect;
use pingora::protocols::l4::ext;
use pingora::protocols::l4::socket::SocketAddr as Address;
use pingora::protocols::l4::stream::Stream;
use pingora::upstreams::peer::{Tracer, Tracing};
use pingora::{Error, ErrorType, OrErr as _, Result};
use tokio::net::TcpStream;

use crate::lock::lock;

/// The open connections of one endpoint.
#[derive(Debug, Default)]
pub struct Connections {
    open: Mutex<HashMap<RawFd, Arc<Connection>>>,
}

/// One of them.
#[derive(Debug)]
pub struct Connection {
    socket: OwnedFd,
    /// Long streams on it.
    pub(super) streams: AtomicUsize,
    /// It was ended from here.
    ended: AtomicBool,
}

impl Connections {
    /// The open connection that the proxy library knows by this descriptor.
    pub fn get(&self, descriptor: RawFd) -> Option<Arc<Connection>> {
        self.open().get(&descriptor).cloned()
    }

    /// How many are open.
    pub fn count(&self) -> usize {
        self.open().len()
    }

    /// Ends all that carry no long stream.
    pub fn end_unused(&self) {
        for connection in self.open().values().filter(|open| open.streams.load(SeqCst) == 0) {
            connection.end();
        }
    }

    /// Ends all, whoever uses them.
    pub fn end_all(&self) {
        for connection in self.open().values() {
            connection.end();
        }
    }

    /// Keeps a connection until what is returned is told that the library let go of it.
    pub(super) fn keep(self: &Arc<Self>, stream: &TcpStream) -> Result<Tracer> {
        let descriptor = stream.as_raw_fd();
        let socket =
            stream.as_fd().try_clone_to_owned().or_err(ErrorType::InternalError, "no descriptor is free")?;
        let connection = Connection { socket, streams: AtomicUsize::new(0), ended: AtomicBool::new(false) };
        self.open().insert(descriptor, Arc::new(connection));
        Ok(Tracer(Box::new(Ended { connections: Arc::clone(self), descriptor })))
    }

    fn open(&self) -> MutexGuard<'_, HashMap<RawFd, Arc<Connection>>> {
        lock(&self.open)
    }
}

impl Connection {
    /// Ends it for whoever uses it.
    pub fn end(&self) {
        // Said first: whoever sees the end finds whose it was.
        self.ended.store(true, SeqCst);
        self.shut();
    }

    /// Whether it was ended from here while somebody used it.
    pub fn was_ended(&self) -> bool {
        self.ended.load(SeqCst)
    }

    fn shut(&self) {
        // It may have ended by itself.
        let _ = rustix::net::shutdown(&self.socket, rustix::net::Shutdown::Both);
    }

    /// Bytes that the other end's kernel has acknowledged since the connection began; none where the kernel does not say. It may have
    /// taken more: it acknowledges a little later, or together with its end of the connection.
    pub fn taken(&self) -> Option<u64> {
        ext::get_tcp_info(self.socket.as_raw_fd()).ok().map(|info| info.tcpi_bytes_acked)
    }

    /// Bytes that have arrived and that nobody has read.
    #[cfg(test)]
    pub(super) fn unread(&self) -> std::io::Result<u64> {
        Ok(rustix::io::ioctl_fionread(&self.socket)?)
    }
}

/// Opens connections to one endpoint.
#[derive(Debug)]
pub(super) struct Dialer(pub(super) Arc<Connections>);

#[async_trait]
impl L4Connect for Dialer {
    async fn connect(&self, address: &Address) -> Result<Stream> {
        let Some(address) = address.as_inet() else {
            return Error::e_explain(ErrorType::InternalError, "endpoints are reached over TCP");
        };
        dial(address, &self.0).await
    }
}

async fn dial(address: &SocketAddr, connections: &Arc<Connections>) -> Result<Stream> {
    let stream = ext::connect(address, None).await?;
    let ended = connections.keep(&stream)?;
    let mut stream = Stream::from(stream);
    stream.tracer = Some(ended);
    Ok(stream)
}

/// Told when the proxy library lets go of a connection.
#[derive(Clone, Debug)]
struct Ended {
    connections: Arc<Connections>,
    descriptor: RawFd,
}

impl Tracing for Ended {
    fn on_connected(&self) {}

    fn on_disconnected(&self) {
        let gone = self.connections.open().remove(&self.descriptor);
        // Whoever still holds the duplicate must not keep the connection open.
        if let Some(connection) = gone
            && Arc::strong_count(&connection) > 1
        {
            connection.shut();
        }
    }

    fn boxed_clone(&self) -> Box<dyn Tracing> {
        Box::new(self.clone())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    #[tokio::test]
    async fn ends_unused_ones_and_forgets_those_let_go() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let connections = Arc::new(Connections::default());
        let mut one = dial(&address, &connections).await.unwrap();
        let (mut peer, _) = listener.accept().await.unwrap();
        let mut two = dial(&address, &connections).await.unwrap();
        let (mut other, _) = listener.accept().await.unwrap();
        assert_eq!(connections.count(), 2);

        let known = connections.get(one.as_raw_fd()).unwrap();
        let before = known.taken().unwrap();
        one.write_all(b"hello").await.unwrap();
        one.flush().await.unwrap();
        let mut hello = [0; 5];
        peer.read_exact(&mut hello).await.unwrap();
        while known.taken().unwrap() < before + 5 {
            tokio::task::yield_now().await;
        }

        known.streams.fetch_add(1, SeqCst);
        connections.end_unused();
        assert_eq!(two.read(&mut hello).await.unwrap(), 0);
        assert_eq!(other.read(&mut hello).await.unwrap(), 0);
        peer.write_all(b"still").await.unwrap();
        assert_eq!(one.read_exact(&mut hello).await.unwrap(), 5);
        drop(one);
        assert_eq!(connections.count(), 1);
        assert_eq!(peer.read(&mut hello).await.unwrap(), 0, "a duplicate keeps nothing open");
        drop((known, two));
        assert_eq!(connections.count(), 0);
    }
}
