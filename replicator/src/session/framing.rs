//! Numbered frames in and out, and whether the other side is alive.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::error::{Error, ErrorKind};
use crate::lsn::Lsn;
use crate::wire::compression::{Compressor, Decompressor};
use crate::wire::{self, Agreed, Decoded, Frame, Version};

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
    version: Version,
    /// Both sides know the version; before, each takes what it can read.
    agreed: bool,
    compressor: Option<Compressor>,
    decompressor: Option<Decompressor>,
    broken: Option<Error>,
}

impl Framing {
    /// A session that starts now, in the version of hellos until [`Self::agree`].
    pub fn new(now: Instant) -> Self {
        Self {
            outgoing: VecDeque::new(),
            sent: 0,
            received: 0,
            said: now,
            heard: now,
            version: Version::HELLO,
            agreed: false,
            compressor: None,
            decompressor: None,
            broken: None,
        }
    }

    /// What is spoken.
    pub fn version(&self) -> Version {
        self.version
    }

    /// From here on both sides speak so. The answering side calls it when its welcome is queued, the opening side when it
    /// has read it.
    pub fn agree(&mut self, agreed: Agreed) -> Result<(), Error> {
        (self.version, self.agreed) = (agreed.version, true);
        if agreed.zstd {
            self.compressor = Some(Compressor::new()?);
            self.decompressor = Some(Decompressor::new()?);
        }
        Ok(())
    }

    /// The other side had nothing to say until now: it waited for us.
    pub(super) fn was_awaited(&mut self, now: Instant) {
        self.heard = now;
    }

    /// Queues a frame.
    pub fn push(&mut self, frame: &Frame, now: Instant) {
        match wire::encode_as(self.version, self.compressor.as_mut(), self.sent, frame) {
            Ok(message) => self.outgoing.push_back(message),
            // The compressor failed: what follows could not be read. The next tick or message ends the session.
            Err(error) => self.broken = Some(error),
        }
        self.sent += 1;
        self.said = now;
    }

    /// The next message for the link.
    pub fn poll_message(&mut self) -> Option<Bytes> {
        self.outgoing.pop_front()
    }

    /// Reads a message. The other side's failure comes as an error.
    pub fn open(&mut self, message: Bytes, now: Instant) -> Result<Frame, Error> {
        self.whole()?;
        let Decoded { version, sequence, frame } = wire::decode_as(self.decompressor.as_mut(), message)?;
        if self.agreed && version != self.version {
            return Err(Error::Protocol(format!(
                "a frame of version {} in a session of version {}",
                version.number(),
                self.version.number()
            )));
        }
        if sequence != self.received {
            return Err(Error::Protocol(format!("frame {sequence} where {} was due", self.received)));
        }
        self.received += 1;
        self.heard = now;
        if !self.agreed {
            // An older side must be able to read the answer.
            self.version = version;
        }
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
        self.whole()?;
        if now.duration_since(self.heard) > SILENCE {
            return Err(Error::Link(format!("the other side was silent for {} s", SILENCE.as_secs())));
        }
        if now.duration_since(self.said) >= HEARTBEAT {
            self.push(&Frame::Heartbeat { source }, now);
        }
        Ok(())
    }

    fn whole(&mut self) -> Result<(), Error> {
        self.broken.take().map_or(Ok(()), Err)
    }
}
