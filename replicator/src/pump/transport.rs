//! A link with a session's framing on it.

use std::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::error::Error;
use crate::link::{Link, LinkRecv, LinkSend};
use crate::session::Framing;
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

    /// The next frame that is not a heartbeat.
    pub(super) async fn hear(&mut self, patience: Duration) -> Result<Frame, Error> {
        let next = async {
            loop {
                let message = self.receiver.recv().await?.ok_or_else(closed)?;
                match self.framing.open(message, crate::clock::now())? {
                    Frame::Heartbeat { .. } => {}
                    frame => return Ok(frame),
                }
            }
        };
        timeout(patience, next).await.map_err(|_| Error::Link("no answer in time".into()))?
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
