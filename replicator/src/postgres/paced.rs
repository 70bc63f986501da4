//! A TCP socket that is not woken for every message of a burst.
//!
//! A walsender sends each message by itself. A socket that somebody waits on makes each of them wake a thread, which costs
//! the server more than the message does (measured: 15 µs for a transaction of one row, against 6 µs). So while much comes in
//! small bits nobody waits on the socket: it is looked at about each half millisecond. What comes at a lower rate, where that half
//! millisecond would be felt and the cost is not, is read at once.

use std::io::{self, Read, Write};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

use super::connection::{Peek, holds_input};

/// So many reads within [`SPAN`] are a burst: two in the time of a [`REST`].
const BURST: u32 = 32;
const SPAN: Duration = Duration::from_millis(8);
/// Longer, and the server waits for room in the socket. Finer than tokio's timer, so a thread of its pool keeps it.
const REST: Duration = Duration::from_micros(400);
/// A burst is over when so many more looks found nothing than found something.
const VAIN: u32 = 8;
/// Most that is read at once.
const READ: usize = 256 << 10;

/// What is left of a rest; `None`: it is over.
type Rest = Option<JoinHandle<()>>;

fn rest() -> JoinHandle<()> {
    tokio::task::spawn_blocking(|| std::thread::sleep(REST))
}

fn poll_rest(rest: &mut Rest, cx: &mut Context<'_>) -> Poll<()> {
    if let Some(running) = rest {
        // It cannot fail in a way that matters: a rest cut short is over.
        let _ = ready!(Pin::new(running).poll(cx));
        *rest = None;
    }
    Poll::Ready(())
}

/// The socket; see the module.
#[derive(Debug)]
pub(crate) struct Paced {
    state: State,
    /// When these reads began.
    since: Instant,
    reads: u32,
    /// Looks that found nothing, less those that found something.
    vain: u32,
}

#[derive(Debug)]
enum State {
    /// Somebody may wait on it.
    Awake(TcpStream),
    /// Nobody does, until the timer.
    Resting(std::net::TcpStream, Rest),
    /// Between the two, or lost there.
    Gone,
}

impl Paced {
    pub(crate) fn new(socket: TcpStream) -> Self {
        Self { state: State::Awake(socket), since: crate::clock::now(), reads: 0, vain: 0 }
    }

    /// Counts a read; true when it is one of a burst. There may be more where `room` is filled.
    fn burst(&mut self, bytes: usize, room: usize) -> bool {
        self.reads += 1;
        if self.reads < BURST || bytes >= room {
            return false;
        }
        let now = crate::clock::now();
        let quick = now.duration_since(self.since) <= SPAN;
        (self.since, self.reads, self.vain) = (now, 0, 0);
        quick
    }
}

fn gone() -> io::Error {
    io::Error::new(io::ErrorKind::NotConnected, "the socket is gone")
}

impl Peek for Paced {
    fn holds_input(&self) -> bool {
        match &self.state {
            State::Awake(socket) => holds_input(SockRef::from(socket)),
            State::Resting(socket, _) => holds_input(SockRef::from(socket)),
            State::Gone => false,
        }
    }
}

impl AsyncRead for Paced {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            match std::mem::replace(&mut self.state, State::Gone) {
                State::Awake(mut socket) => {
                    let (before, room) = (buf.filled().len(), buf.remaining());
                    let read = Pin::new(&mut socket).poll_read(cx, buf);
                    let bytes = buf.filled().len() - before;
                    self.state =
                        if matches!(read, Poll::Ready(Ok(()))) && bytes > 0 && self.burst(bytes, room) {
                            State::Resting(socket.into_std()?, Some(rest()))
                        } else {
                            State::Awake(socket)
                        };
                    return read;
                }
                State::Resting(socket, mut resting) => {
                    if poll_rest(&mut resting, cx).is_pending() {
                        self.state = State::Resting(socket, resting);
                        return Poll::Pending;
                    }
                    let room = buf.remaining().min(READ);
                    let read = (&socket).read(buf.initialize_unfilled_to(room));
                    match read {
                        Ok(bytes) => {
                            buf.advance(bytes);
                            self.vain = self.vain.saturating_sub(1);
                            self.state = State::Resting(socket, (bytes < room).then(rest));
                            return Poll::Ready(Ok(()));
                        }
                        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                            self.vain += 1;
                            self.state = if self.vain < VAIN {
                                State::Resting(socket, Some(rest()))
                            } else {
                                (self.since, self.reads) = (crate::clock::now(), 0);
                                State::Awake(TcpStream::from_std(socket)?)
                            };
                        }
                        Err(error) => return Poll::Ready(Err(error)),
                    }
                }
                State::Gone => return Poll::Ready(Err(gone())),
            }
        }
    }
}

impl AsyncWrite for Paced {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.state {
            State::Awake(socket) => Pin::new(socket).poll_write(cx, bytes),
            State::Resting(socket, resting) => loop {
                match (&*socket).write(bytes) {
                    // Tried again after each rest.
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                        if resting.is_none() {
                            *resting = Some(rest());
                        }
                        ready!(poll_rest(resting, cx));
                    }
                    written => return Poll::Ready(written),
                }
            },
            State::Gone => Poll::Ready(Err(gone())),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.state {
            State::Awake(socket) => Pin::new(socket).poll_shutdown(cx),
            State::Resting(socket, _) => Poll::Ready(socket.shutdown(std::net::Shutdown::Write)),
            State::Gone => Poll::Ready(Ok(())),
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_burst_comes_whole_and_in_order_and_so_does_what_follows_a_pause() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("bound");
        let server = tokio::spawn(async move {
            let (mut socket, _) = listener.accept().await.expect("a client");
            socket.set_nodelay(true).expect("set");
            for round in 0..3u32 {
                for n in 0..20_000u32 {
                    socket.write_u32(round * 20_000 + n).await.expect("sent");
                }
                // The client answers each round; nothing comes meanwhile.
                assert_eq!(socket.read_u32().await.expect("an answer"), round);
            }
        });
        let socket = TcpStream::connect(address).await.expect("connected");
        let mut client = tokio::io::BufReader::with_capacity(READ, Paced::new(socket));
        let mut rested = false;
        for n in 0..60_000u32 {
            assert_eq!(client.read_u32().await.expect("a number"), n);
            rested |= matches!(client.get_ref().state, State::Resting(..));
            if n % 20_000 == 19_999 {
                client.write_u32(n / 20_000).await.expect("sent");
            }
        }
        assert!(rested, "a burst was not noticed");
        server.await.expect("the server is content");
        assert_eq!(client.read(&mut [0; 8]).await.expect("the end"), 0);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn two_thousand_messages_a_second_are_no_burst() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("bound");
        let server = tokio::task::spawn_blocking(move || {
            let (mut socket, _) = listener.accept().expect("a client");
            for n in 0..400u32 {
                // At least: what comes late comes together, and is fewer reads.
                std::thread::sleep(Duration::from_micros(500));
                socket.write_all(&n.to_be_bytes()).expect("sent");
            }
        });
        let socket = TcpStream::connect(address).await.expect("connected");
        let mut client = tokio::io::BufReader::with_capacity(READ, Paced::new(socket));
        for n in 0..400u32 {
            assert_eq!(client.read_u32().await.expect("a number"), n);
            assert!(matches!(client.get_ref().state, State::Awake(_)), "rests after {n}");
        }
        server.await.expect("the server is content");
    }
}
