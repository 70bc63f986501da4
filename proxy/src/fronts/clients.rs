//! The connections of clients: how many there are, and whether their clients are to connect anew (`upgrade`).
//!
//! A connection counts from the moment when it is accepted: one that no thread has looked at yet is there, too.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};

use async_trait::async_trait;
use pingora::listeners::ConnectionFilter;

/// Those of one service.
#[derive(Debug, Default)]
pub struct Clients {
    connected: AtomicUsize,
    leaving: AtomicBool,
}

/// A connection that was accepted, while it lasts.
pub struct Connected<'a>(&'a Clients);

impl Clients {
    /// The place of a connection that was accepted.
    pub fn connection(&self) -> Connected<'_> {
        Connected(self)
    }

    /// How many are connected.
    pub fn connected(&self) -> usize {
        self.connected.load(SeqCst)
    }

    /// From now on answers tell HTTP/1.1 clients that their connection closes, or do so no more.
    pub fn leave(&self, leave: bool) {
        self.leaving.store(leave, SeqCst);
    }

    /// Whether answers are to say that the connection closes.
    pub fn leaving(&self) -> bool {
        self.leaving.load(SeqCst)
    }
}

impl Drop for Connected<'_> {
    fn drop(&mut self) {
        self.0.connected.fetch_sub(1, SeqCst);
    }
}

/// The proxy library asks between accepting a connection and handing it to a task: where it counts. All are let in.
#[async_trait]
impl ConnectionFilter for Clients {
    async fn should_accept(&self, _: Option<&SocketAddr>) -> bool {
        self.connected.fetch_add(1, SeqCst);
        true
    }
}
