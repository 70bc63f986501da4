//! A link with a session's framing on it.

use std::pin::pin;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::error::Error;
use crate::link::{Link, LinkRecv, LinkSend};
use crate::lsn::Lsn;
use crate::session::{Framing, HEARTBEAT};
use crate::wire::Frame;

/// Before the halves run on their own.
pub(super) struct Joined {
    pub(super) framing: Framing,
    pub(super) sender: Box<dyn LinkSend>,
    pub(super) receiver: Box<dyn LinkRecv>,
}

impl Joined {
    pub(super) fn new(link: Box<dyn Link>) -> Self {
        let (sender, receiver) = link.split();
        Self { framing: Framing::new(crate::clock::now()), sender, receiver }
    }

    pub(super) async fn say(&mut self, frame: &Frame) -> Result<(), Error> {
        self.framing.push(frame, crate::clock::now());
        while let Some(message) = self.framing.poll_message() {
            self.sender.send(message).await?;
        }
        Ok(())
    }

    /// The next frame that is not a heartbeat; without one of those for so long, an error.
    pub(super) async fn hear(&mut self, patience: Duration) -> Result<Frame, Error> {
        loop {
            let message = timeout(patience, self.receiver.recv()).await;
            let message = message.map_err(|_| Error::Link("no answer in time".into()))??;
            match self.framing.open(message.ok_or_else(closed)?, crate::clock::now())? {
                Frame::Heartbeat { .. } => {}
                frame => return Ok(frame),
            }
        }
    }

    /// Waits for `work`; the other side, which waits for what comes of it, hears that we live.
    pub(super) async fn meanwhile<T>(&mut self, work: impl Future<Output = T>) -> Result<T, Error> {
        let mut work = pin!(work);
        loop {
            match timeout(HEARTBEAT, &mut work).await {
                Ok(done) => return Ok(done),
                Err(_) => self.say(&Frame::Heartbeat { source: Lsn::ZERO }).await?,
            }
        }
    }

    pub(super) async fn close(&mut self) {
        self.sender.close().await;
    }
}

pub(super) fn closed() -> Error {
    Error::Link("the other side closed".into())
}

/// Sends what is queued; ends when the queue's sender is gone and everything is out. The session's credit bounds the
/// queue.
pub(super) async fn write(
    mut sender: Box<dyn LinkSend>,
    mut queue: mpsc::UnboundedReceiver<Bytes>,
) -> Result<(), Error> {
    while let Some(message) = queue.recv().await {
        sender.send(message).await?;
    }
    sender.close().await;
    Ok(())
}
