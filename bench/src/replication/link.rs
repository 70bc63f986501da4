//! The target's half of a stream behind the QUIC link, as a node would serve it.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Context, Result};
use replicator::link::Peer;
use replicator::link::quic::{Connector, Identity, Listener};
use replicator::pump::{Answer, LocalEnd, serve_link};
use replicator::status::StreamStatus;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::Server;

/// A listener with certificates of its own; ends when dropped.
pub(crate) struct Served {
    listener: Listener,
    source: Identity,
    _serving: AbortOnDropHandle<()>,
}

impl Served {
    /// Applies to `database` what is pushed here.
    pub(crate) fn start(target: &Server, database: &str) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        godwit::pki::make(directory.path(), &["source", "target"])?;
        let identity = |name: &str| -> Result<Identity> {
            let read = |file: String| std::fs::read(directory.path().join(file));
            Ok(Identity {
                certificate: read(format!("{name}.pem"))?,
                key: read(format!("{name}.key"))?,
                authority: read("ca.pem".into())?,
                scoped: false,
            })
        };
        let anywhere: SocketAddr = ([127, 0, 0, 1], 0).into();
        let listener = Listener::bind(&identity("target")?, anywhere, &["source".into()])?;
        let end = LocalEnd::Target { dsn: target.config(database).into() };
        let accepting = listener.clone();
        let serving = tokio::spawn(async move {
            while let Some(incoming) = accepting.accept().await {
                let Ok(Some(link)) = incoming.finish().await else { continue };
                let end = end.clone();
                let answer = move |_: &_, _: Option<&Peer>| {
                    Ok(Answer {
                        end: end.clone(),
                        status: watch::Sender::new(StreamStatus::default()),
                        cancel: CancellationToken::new(),
                    })
                };
                // What goes wrong, the source's half tells too.
                let _ = serve_link(Box::new(link), answer).await;
            }
        });
        Ok(Self { listener, source: identity("source")?, _serving: AbortOnDropHandle::new(serving) })
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> Result<SocketAddr> {
        self.listener.local_address().context("the link's address")
    }

    /// The way to it, by this address: its own, or a relay's.
    pub(crate) fn connector(&self, address: SocketAddr) -> Result<Arc<Connector>> {
        Ok(Arc::new(Connector::new(&self.source, &address.to_string(), "target")?))
    }
}
