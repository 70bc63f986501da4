//! A link inside one process: both halves of a stream in one node, and tests with a delay or a cut.

use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::{Link, LinkRecv, LinkSend, Meter, Transport};
use crate::error::Error;

/// How a memory link behaves.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// One-way delay of every message.
    pub delay: Duration,
}

/// Breaks a link for both sides; messages under way are lost.
#[derive(Clone, Debug, Default)]
pub struct Cut(CancellationToken);

impl Cut {
    /// Breaks it now. Idempotent.
    pub fn cut(&self) {
        self.0.cancel();
    }
}

/// One end.
#[derive(Debug)]
pub struct MemoryLink {
    sender: Sender,
    receiver: Receiver,
}

/// Two connected ends and the scissors.
///
/// Queues are not bounded here: the session's credit bounds what is in them.
pub fn pair(options: Options) -> (MemoryLink, MemoryLink, Cut) {
    let cut = Cut::default();
    let (to_right, from_left) = mpsc::unbounded_channel();
    let (to_left, from_right) = mpsc::unbounded_channel();
    let end = |queue, messages| MemoryLink {
        sender: Sender { queue: Some(queue), delay: options.delay, cut: cut.0.clone() },
        receiver: Receiver { messages, next: None, cut: cut.0.clone() },
    };
    (end(to_right, from_right), end(to_left, from_left), cut)
}

impl Link for MemoryLink {
    fn split(self: Box<Self>) -> (Box<dyn LinkSend>, Box<dyn LinkRecv>) {
        (Box::new(self.sender), Box::new(self.receiver))
    }

    fn peer(&self) -> Option<&super::Peer> {
        None
    }

    fn meter(&self) -> Meter {
        let (delay, cut) = (self.sender.delay, self.sender.cut.clone());
        let transport = Transport { round_trip: delay * 2, ..Transport::default() };
        Meter::new(move || (!cut.is_cancelled()).then_some(transport))
    }
}

#[derive(Debug)]
struct Sender {
    queue: Option<mpsc::UnboundedSender<(Instant, Bytes)>>,
    delay: Duration,
    cut: CancellationToken,
}

#[async_trait]
impl LinkSend for Sender {
    async fn send(&mut self, message: Bytes) -> Result<(), Error> {
        let gone = || Error::Link("the other side is gone".into());
        if self.cut.is_cancelled() {
            return Err(Error::Link("cut".into()));
        }
        let queue = self.queue.as_ref().ok_or_else(gone)?;
        queue.send((crate::clock::now() + self.delay, message)).map_err(|_| gone())
    }

    async fn close(&mut self) {
        self.queue = None;
    }
}

#[derive(Debug)]
struct Receiver {
    messages: mpsc::UnboundedReceiver<(Instant, Bytes)>,
    next: Option<(Instant, Bytes)>,
    cut: CancellationToken,
}

impl Receiver {
    async fn next(&mut self) -> Option<Bytes> {
        if self.next.is_none() {
            self.next = self.messages.recv().await;
        }
        let due = self.next.as_ref()?.0;
        if due > crate::clock::now() {
            tokio::time::sleep_until(due.into()).await;
        }
        self.next.take().map(|(_, message)| message)
    }
}

#[async_trait]
impl LinkRecv for Receiver {
    async fn recv(&mut self) -> Result<Option<Bytes>, Error> {
        let cut = self.cut.clone();
        tokio::select! {
            biased;
            () = cut.cancelled() => Err(Error::Link("cut".into())),
            message = self.next() => Ok(message),
        }
    }
}
