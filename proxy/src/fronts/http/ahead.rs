//! A client's connection that reads ahead, and has a buffer only while there is something in it.
//!
//! TLS reads in pieces of 4 KiB, so reading ahead saves it system calls; the proxy library's own buffer does that, too, but stays
//! allocated for as long as the connection lasts. Also the connection in the clear whose client speaks HTTP/2 without having asked.

use std::io::Result;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use pingora::protocols::l4::stream::Stream as Raw;
use pingora::protocols::raw_connect::ProxyDigest;
use pingora::protocols::{
    ALPN, GetProxyDigest, GetSocketDigest, GetTimingDigest, Peek, Shutdown, SocketDigest, Ssl, TimingDigest,
    UniqueID, UniqueIDType,
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// What is read at once: a record of TLS.
const LENGTH: usize = 16 << 10;

/// A connection, and what was read of it that nobody has taken yet.
#[derive(Debug)]
pub(super) struct Ahead {
    raw: Raw,
    read: Bytes,
    http2: bool,
}

impl Ahead {
    /// Below TLS.
    pub(super) fn new(raw: Raw) -> Self {
        Self { raw, read: Bytes::new(), http2: false }
    }

    /// The client has begun as HTTP/2 does.
    pub(super) fn http2(raw: Raw) -> Self {
        Self { http2: true, ..Self::new(raw) }
    }
}

impl AsyncRead for Ahead {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<Result<()>> {
        if !self.read.is_empty() {
            let length = self.read.len().min(buffer.remaining());
            buffer.put_slice(&self.read.split_to(length));
            return Poll::Ready(Ok(()));
        }
        if buffer.remaining() >= LENGTH {
            return Pin::new(&mut self.raw).poll_read(cx, buffer);
        }
        let mut space = [MaybeUninit::uninit(); LENGTH];
        let mut piece = ReadBuf::uninit(&mut space);
        ready!(Pin::new(&mut self.raw).poll_read(cx, &mut piece))?;
        let (now, later) = piece.filled().split_at(piece.filled().len().min(buffer.remaining()));
        buffer.put_slice(now);
        self.read = Bytes::copy_from_slice(later);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Ahead {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<Result<usize>> {
        Pin::new(&mut self.raw).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        Pin::new(&mut self.raw).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        Pin::new(&mut self.raw).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[std::io::IoSlice<'_>],
    ) -> Poll<Result<usize>> {
        Pin::new(&mut self.raw).poll_write_vectored(cx, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.raw.is_write_vectored()
    }
}

#[async_trait]
impl Shutdown for Ahead {
    async fn shutdown(&mut self) {
        Shutdown::shutdown(&mut self.raw).await;
    }
}

impl UniqueID for Ahead {
    fn id(&self) -> UniqueIDType {
        self.raw.id()
    }
}

impl Ssl for Ahead {
    fn selected_alpn_proto(&self) -> Option<ALPN> {
        self.http2.then_some(ALPN::H2)
    }
}

impl GetTimingDigest for Ahead {
    fn get_timing_digest(&self) -> Vec<Option<TimingDigest>> {
        self.raw.get_timing_digest()
    }

    fn get_read_pending_time(&self) -> Duration {
        self.raw.get_read_pending_time()
    }

    fn get_write_pending_time(&self) -> Duration {
        self.raw.get_write_pending_time()
    }
}

impl GetProxyDigest for Ahead {
    fn get_proxy_digest(&self) -> Option<Arc<ProxyDigest>> {
        self.raw.get_proxy_digest()
    }
}

impl GetSocketDigest for Ahead {
    fn get_socket_digest(&self) -> Option<Arc<SocketDigest>> {
        self.raw.get_socket_digest()
    }
}

#[async_trait]
impl Peek for Ahead {}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::{TcpListener, TcpStream};

    use super::*;

    #[tokio::test]
    async fn bytes_come_in_their_order_and_leave_no_buffer_behind() {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let mut ahead = Ahead::new(Raw::from(listener.accept().await.unwrap().0));
        let sent: Vec<u8> = (0..100_000_u32).map(|number| (number % 251) as u8).collect();
        let sending = sent.clone();
        let sender = tokio::spawn(async move {
            client.write_all(&sending).await.unwrap();
        });
        let (mut got, mut sizes) = (Vec::new(), [1, 100, 4096, LENGTH, LENGTH + 1].into_iter().cycle());
        loop {
            let mut piece = vec![0; sizes.next().unwrap()];
            match ahead.read(&mut piece).await.unwrap() {
                0 => break,
                length => got.extend_from_slice(&piece[..length]),
            }
        }
        sender.await.unwrap();
        assert!(got == sent, "{} bytes came", got.len());
        assert!(ahead.read.is_empty());
    }
}
