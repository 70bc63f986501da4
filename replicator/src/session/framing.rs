//! Numbered frames in and out, and whether the other side is alive.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::error::{Error, ErrorKind};
use crate::lsn::Lsn;
use crate::wire::{self, Frame};

/// Longest pause between two frames of a live side.
pub const HEARTBEAT: Duration = Duration::from_millis(500);

/// A side that said nothing for so long is gone.
pub const SILENCE: Duration = Duration::from_secs(6);

/// Both directions of one session.
#[derive(Debug)]
pub struct Framing {
    outgoing: VecDeque<Bytes>,
    sent: u64,
    received: u64,
    said: Instant,
    heard: Instant,
}

impl Framing {
    /// A session that starts now.
    pub fn new(now: Instant) -> Self {
        Self { outgoing: VecDeque::new(), sent: 0, received: 0, said: now, heard: now }
    }

    /// Queues a frame.
    pub fn push(&mut self, frame: &Frame, now: Instant) {
        self.outgoing.push_back(wire::encode(self.sent, frame));
        self.sent += 1;
        self.said = now;
    }

    /// The next message for the link.
    pub fn poll_message(&mut self) -> Option<Bytes> {
        self.outgoing.pop_front()
    }

    /// Reads a message. The other side's failure comes as an error.
    pub fn open(&mut self, message: Bytes, now: Instant) -> Result<Frame, Error> {
        let (sequence, frame) = wire::decode(message)?;
        if sequence != self.received {
            return Err(Error::Protocol(format!("frame {sequence} where {} was due", self.received)));
        }
        self.received += 1;
        self.heard = now;
        match frame {
            Frame::Failed { kind, reason } => Err(match kind {
                ErrorKind::Retry => Error::Link(format!("the other side ended: {reason}")),
                ErrorKind::Operator => Error::Unready(format!("the other side stopped: {reason}")),
                ErrorKind::Never => Error::Fenced(format!("the other side: {reason}")),
            }),
            frame => Ok(frame),
        }
    }

    /// Queues a heartbeat when one is due; an error when the other side has been silent for too long.
    pub fn handle_tick(&mut self, source: Lsn, now: Instant) -> Result<(), Error> {
        if now.duration_since(self.heard) > SILENCE {
            return Err(Error::Link(format!("the other side was silent for {} s", SILENCE.as_secs())));
        }
        if now.duration_since(self.said) >= HEARTBEAT {
            self.push(&Frame::Heartbeat { source }, now);
        }
        Ok(())
    }
}
