//! How frames get to the other zone: [`quic`] between nodes, [`memory`] inside one process and in tests.
//!
//! A link carries whole messages, in order, both ways at once. It never repeats one; when it breaks, what was under way
//! is lost and the session resumes on a new link. It knows nothing of what the messages mean.

pub mod memory;
mod peer;
pub mod quic;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;

pub use peer::{Peer, resource_uri, zone_uri};

use crate::error::Error;

/// An open link to the other side.
pub trait Link: Send {
    /// The two halves; they live and die together.
    fn split(self: Box<Self>) -> (Box<dyn LinkSend>, Box<dyn LinkRecv>);

    /// The authenticated other side; `None` inside one process.
    fn peer(&self) -> Option<&Peer>;

    /// The other side's certificate must say for which zones and resources it is; see [`Peer::may`].
    fn scoped(&self) -> bool {
        false
    }

    /// A handle that tells how the way is, as long as the link lives.
    fn meter(&self) -> Meter;
}

/// The sending half.
#[async_trait]
pub trait LinkSend: Send {
    /// Hands over one message; returns when it is buffered, not when it arrived. Not cancel-safe: a cancelled send
    /// leaves the link unusable.
    async fn send(&mut self, message: Bytes) -> Result<(), Error>;

    /// Says that nothing more comes and waits, boundedly, until the other side has it all.
    async fn close(&mut self);
}

/// The receiving half.
#[async_trait]
pub trait LinkRecv: Send {
    /// The next message; `None` when the other side closed. Cancel-safe.
    async fn recv(&mut self) -> Result<Option<Bytes>, Error>;
}

/// What a link's transport knows of the way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Transport {
    /// Round trip time, smoothed.
    pub round_trip: Duration,
    /// Packets sent since the link was opened.
    pub sent_packets: u64,
    /// Of them, those that were lost.
    pub lost_packets: u64,
    /// Datagrams that came from the other side: while there are no more of them, the round trip is that of earlier.
    pub received_datagrams: u64,
}

/// Tells how the way of a link is.
#[derive(Clone)]
pub struct Meter(Arc<dyn Fn() -> Option<Transport> + Send + Sync>);

impl Meter {
    fn new(tell: impl Fn() -> Option<Transport> + Send + Sync + 'static) -> Self {
        Self(Arc::new(tell))
    }

    /// The newest; `None` once the link is gone.
    pub fn read(&self) -> Option<Transport> {
        (self.0)()
    }
}

impl std::fmt::Debug for Meter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Meter").field(&self.read()).finish()
    }
}

/// Opens links to one other side.
#[async_trait]
pub trait Dial: Send + Sync {
    /// Opens a new link.
    async fn dial(&self) -> Result<Box<dyn Link>, Error>;
}
