//! One message at a time over a socket, for the parts of a session that are not relayed: start-up, login, asking, replaying.

use std::io;

use replicator::postgres::Socket;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::protocol::frame::{Framer, HEADER, Piece};

/// How much is read at once.
const READ: usize = 4 << 10;
/// The longest message that is taken whole.
pub(super) const LONGEST: usize = 1 << 20;

/// A message: its type byte, and its body.
pub(super) type Message = (u8, Vec<u8>);

/// A socket, and what was read from it and not taken.
pub(super) struct Talk<'s> {
    pub(super) socket: &'s mut dyn Socket,
    pub(super) received: &'s mut Vec<u8>,
}

impl Talk<'_> {
    /// Sends.
    pub(super) async fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.socket.write_all(bytes).await?;
        self.socket.flush().await
    }

    /// The next message of at most `longest` bytes.
    pub(super) async fn message(&mut self, longest: usize) -> io::Result<Message> {
        loop {
            match Framer::default().next(self.received, longest).map_err(invalid)? {
                Piece::Whole(tag, length) => {
                    let body = self.received[HEADER..length].to_vec();
                    self.received.drain(..length);
                    if self.received.is_empty() {
                        *self.received = Vec::new();
                    }
                    return Ok((tag, body));
                }
                Piece::Begun(tag, _) => {
                    return Err(invalid(format!("a message {:?} that is too long", char::from(tag))));
                }
                Piece::Short | Piece::Rest(_) => self.fill().await?,
            }
        }
    }

    /// So many bytes at least are there.
    pub(super) async fn at_least(&mut self, count: usize) -> io::Result<()> {
        while self.received.len() < count {
            self.fill().await?;
        }
        Ok(())
    }

    async fn fill(&mut self) -> io::Result<()> {
        self.received.reserve(READ);
        match self.socket.read_buf(self.received).await? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(()),
        }
    }
}

fn invalid(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}
