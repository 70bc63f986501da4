//! The link's certificates: read at the start and whenever the files change. Open links go on with what they have; new ones
//! use what is there then, so that neither a certificate nor an authority that is renewed interrupts a stream.
//!
//! An authority is replaced in three steps: both in `ca` on every node, then the new certificates, then the old one out of `ca`.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result};
use replicator::link::quic::{Connector, Identity, Listener};

use crate::config::model::NodeLink;

/// How often the PEM files are looked at.
const LOOK: Duration = Duration::from_secs(2);

/// When each file was last written, where that can be known.
pub(super) type Written = [Option<SystemTime>; 3];

/// As the files are now.
pub(super) fn written(link: &NodeLink) -> Written {
    let of = |path: &Path| std::fs::metadata(path).and_then(|metadata| metadata.modified()).ok();
    [of(&link.tls.cert), of(&link.tls.key), of(&link.tls.ca)]
}

/// Reads the files.
pub(super) fn read(link: &NodeLink) -> Result<Identity> {
    let read = |path: &Path| {
        std::fs::read(path).with_context(|| format!("cannot read {} (node.link.tls)", path.display()))
    };
    let tls = &link.tls;
    Ok(Identity {
        certificate: read(&tls.cert)?,
        key: read(&tls.key)?,
        authority: read(&tls.ca)?,
        scoped: link.scoped,
    })
}

/// Gives changed files to everything that opens or takes links.
pub(super) struct Renewal {
    pub(super) link: NodeLink,
    pub(super) node: String,
    pub(super) connectors: Vec<Arc<Connector>>,
    pub(super) listener: Listener,
    /// From before any of them read the files: what is written meanwhile is read again.
    pub(super) seen: Written,
}

impl Renewal {
    /// Looks for ever. Files that do not fit together leave what was there.
    pub(super) async fn run(mut self) {
        let mut warned = None;
        loop {
            tokio::time::sleep(LOOK).await;
            let now = written(&self.link);
            if now == self.seen {
                continue;
            }
            match self.renew() {
                Ok(()) => {
                    self.seen = now;
                    tracing::info!("new links use the new certificates");
                }
                // A certificate is often there a moment before its key.
                Err(error) if warned != Some(now) => {
                    tracing::warn!(error = format!("{error:#}"), "links keep their certificates");
                    warned = Some(now);
                }
                Err(_) => {}
            }
        }
    }

    fn renew(&self) -> Result<()> {
        let identity = read(&self.link)?;
        identity.shown_as(&self.node)?;
        for connector in &self.connectors {
            connector.renew(&identity)?;
        }
        Ok(self.listener.renew(&identity)?)
    }
}
