//! A client's connection between two requests of HTTP/1.1, and before the first.
//!
//! The proxy library waits for a request in the future that will also carry it out, 13 KiB large, with a buffer for its header and
//! the session made. Here a connection waits in a future of a few hundred bytes, and the library gets it together with the first bytes
//! of the request. Of a request that may be there already (a client need not wait for the answer to send its next one) nothing is
//! awaited: the library has its beginning, and goes on at once.

use std::fmt::Write as _;
use std::future::poll_fn;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::BytesMut;
use pingora::apps::HttpPersistentSettings;
use pingora::protocols::Stream;
use pingora::time::timeout;
use tokio::io::{AsyncRead as _, ReadBuf};
use tokio_util::sync::CancellationToken;

/// How long a client that has connected may take until it asks: the proxy library's own default.
pub(super) const FIRST: Duration = Duration::from_mins(1);
/// What is read at once.
const LENGTH: usize = 8 << 10;
/// Room for a header, as the proxy library makes it.
const HEADER: usize = 4 << 10;

/// What is to be done with a connection whose request was answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Between {
    /// The next request may have begun.
    Begun,
    /// It has not; so long it may take, or any time.
    Idle(Option<Duration>),
}

impl Between {
    /// What the proxy library keeps of a connection says both, but only to those who debug it. Should it ever say it in another
    /// way, no request is lost or late: connections then wait in the library, at its price.
    pub(super) fn of(kept: &HttpPersistentSettings) -> Self {
        let mut said = Said::default();
        // Refused as soon as everything is known: the beginning of a request may be long.
        let _ = write!(said, "{kept:?}");
        match said {
            Said { idle: true, seconds: Some(seconds), .. } => {
                Self::Idle((seconds > 0).then(|| Duration::from_secs(seconds)))
            }
            _ => Self::Begun,
        }
    }
}

/// Listens to the names and values of fields, each of which comes as a piece of its own.
#[derive(Default)]
struct Said {
    field: Field,
    /// How long the connection is to be kept; 0: for any time.
    seconds: Option<u64>,
    /// Nothing of a next request is there.
    idle: bool,
}

#[derive(Clone, Copy, Default)]
enum Field {
    #[default]
    Another,
    Timeout,
    Begun,
}

impl std::fmt::Write for Said {
    fn write_str(&mut self, piece: &str) -> std::fmt::Result {
        match (piece, self.field) {
            ("keepalive_timeout", _) => self.field = Field::Timeout,
            ("keepalive_reuses_remaining", _) => self.field = Field::Another,
            ("pipelined_prefix", _) => self.field = Field::Begun,
            (": ", _) | (_, Field::Another) => {}
            (number, Field::Timeout) => self.seconds = number.parse().ok().or(self.seconds),
            (value, Field::Begun) => {
                self.idle = value == "None";
                return Err(std::fmt::Error);
            }
        }
        Ok(())
    }
}

/// Waits for the first bytes of a request; none: the client has left or broken off, `limit` is over, or `stopping` was said. What the
/// client has sent before that is returned.
pub(super) async fn first_bytes(
    stream: &mut Stream,
    limit: Option<Duration>,
    stopping: &CancellationToken,
) -> Option<BytesMut> {
    let read = poll_fn(|cx| read(stream, cx));
    let in_time = async {
        match limit {
            Some(limit) => timeout(limit, read).await.ok().flatten(),
            None => read.await,
        }
    };
    tokio::select! {
        biased;
        bytes = in_time => bytes,
        () = stopping.cancelled() => None,
    }
}

/// No buffer is held while there is nothing to be read.
fn read(stream: &mut Stream, cx: &mut Context<'_>) -> Poll<Option<BytesMut>> {
    let mut space = [MaybeUninit::uninit(); LENGTH];
    let mut piece = ReadBuf::uninit(&mut space);
    let read = ready!(Pin::new(stream).poll_read(cx, &mut piece));
    let bytes = piece.filled();
    if read.is_err() || bytes.is_empty() {
        return Poll::Ready(None);
    }
    let mut begun = BytesMut::with_capacity(bytes.len().max(HEADER));
    begun.extend_from_slice(bytes);
    Poll::Ready(Some(begun))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use pingora::protocols::http::ServerSession;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};

    use super::*;

    const DEADLINE: Duration = Duration::from_secs(20);

    fn connection() -> (DuplexStream, Stream) {
        let (client, own) = duplex(64 << 10);
        (client, Box::new(own))
    }

    fn kept(keepalive: Option<u64>, begun: Option<&[u8]>) -> HttpPersistentSettings {
        let mut session = ServerSession::new_http1(connection().1);
        session.set_keepalive(keepalive);
        session.set_pipelining_enabled(true);
        let mut kept = HttpPersistentSettings::for_session(&session);
        if let Some(begun) = begun {
            kept.set_pipelined_prefix(BytesMut::from(begun));
        }
        kept
    }

    /// Fails when the library says it in another way: then connections wait at its price.
    #[tokio::test]
    async fn what_the_library_keeps_is_understood() {
        assert_eq!(Between::of(&kept(Some(7), None)), Between::Idle(Some(Duration::from_secs(7))));
        assert_eq!(
            Between::of(&kept(Some(u64::MAX), None)),
            Between::Idle(Some(Duration::from_secs(u64::MAX)))
        );
        assert_eq!(Between::of(&kept(Some(0), None)), Between::Idle(None), "any time");
        assert_eq!(Between::of(&kept(None, None)), Between::Begun, "it is not to be kept");
        let large = [b'x'; 10_000];
        for begun in [b"G".as_slice(), b"None,", b" pipelined_prefix: None,", b"\xff\"", &large] {
            assert_eq!(Between::of(&kept(Some(7), Some(begun))), Between::Begun, "{}", begun.escape_ascii());
        }
    }

    async fn begun(
        stream: &mut Stream,
        limit: Option<Duration>,
        stopping: &CancellationToken,
    ) -> Option<BytesMut> {
        let waiting = first_bytes(stream, limit, stopping);
        tokio::time::timeout(DEADLINE, waiting).await.expect("it is waited for ever")
    }

    #[tokio::test]
    async fn the_first_bytes_are_waited_for() {
        let stopping = CancellationToken::new();
        let (mut client, mut stream) = connection();
        let (got, ()) = tokio::join!(begun(&mut stream, Some(FIRST), &stopping), async {
            tokio::task::yield_now().await;
            client.write_all(b"GET /").await.unwrap();
        });
        assert_eq!(got.as_deref(), Some(b"GET /".as_slice()));
        client.write_all(&vec![b'x'; 3 * LENGTH]).await.unwrap();
        let got = begun(&mut stream, None, &stopping).await.unwrap();
        assert_eq!(got.len(), LENGTH, "the rest is the library's to read");
        let mut rest = vec![0; 2 * LENGTH];
        stream.read_exact(&mut rest).await.unwrap();
        client.shutdown().await.unwrap();
        assert_eq!(begun(&mut stream, None, &stopping).await, None, "the client has left");
    }

    #[tokio::test]
    async fn they_are_not_waited_for_ever() {
        let stopping = CancellationToken::new();
        let (mut client, mut stream) = connection();
        assert_eq!(begun(&mut stream, Some(Duration::from_millis(10)), &stopping).await, None);
        stopping.cancel();
        assert_eq!(begun(&mut stream, None, &stopping).await, None);
        client.write_all(b"GET /").await.unwrap();
        let got = begun(&mut stream, None, &stopping).await;
        assert_eq!(got.as_deref(), Some(b"GET /".as_slice()), "what was sent before is answered");
    }

    /// The price of a connection that waits, without what lies behind its pointers.
    #[tokio::test]
    async fn who_waits_is_small() {
        let (stopping, (_client, mut stream)) = (CancellationToken::new(), connection());
        let waiting = first_bytes(&mut stream, Some(FIRST), &stopping);
        assert!(size_of_val(&waiting) <= 512, "{}", size_of_val(&waiting));
    }
}
