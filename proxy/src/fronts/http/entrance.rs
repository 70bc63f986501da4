//! What happens to a connection before its first request: the PROXY header, TLS, and which HTTP it speaks.
//!
//! The proxy library builds TLS once, when it starts to listen. Here every handshake takes the configuration of its moment,
//! so that certificates are replaced without a restart, and one listener has certificates for many names.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use anyhow::Context as _;
use pingora::listeners::tls::Acceptor;
use pingora::protocols::l4::socket::SocketAddr as Address;
use pingora::protocols::l4::stream::Stream as Raw;
use pingora::protocols::{GetSocketDigest as _, SocketDigest, Stream, UniqueID as _};
use rustls::ServerConfig;
use rustls::server::WebPkiClientVerifier;
use tokio::io::AsyncReadExt as _;

use super::ahead::Ahead;
use super::inet;
use super::proxy_protocol::{self, Header};
use super::settings::{ListenerSettings, ListenerTls};
use crate::feeds::external::egress::Network;
use crate::tls::{self, ByName, Watched};

/// What every HTTP/2 connection begins with (RFC 9113, section 3.4).
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// What names the PEM files.
const WHAT: &str = "fronts.http.tls";

/// The door of one listener.
#[derive(Debug, Default)]
pub struct Entrance {
    tls: Option<Watched<Handshake>>,
    h2c: bool,
    balancers: Vec<Network>,
}

/// What handshakes are done with.
struct Handshake(Acceptor);

impl Entrance {
    /// As configured. Reads the PEM files.
    pub fn new(settings: &ListenerSettings) -> anyhow::Result<Self> {
        let tls = match &settings.tls {
            Some(tls) => {
                let (files, tls) = (files(tls), tls.clone());
                Some(Watched::new(WHAT, files, move || handshake(&tls))?)
            }
            None => None,
        };
        Ok(Self { tls, h2c: settings.h2c, balancers: settings.proxy_protocol.clone() })
    }

    /// As configured, with the handshakes of `before` until the PEM files fit.
    pub fn after(settings: &ListenerSettings, before: &Self) -> anyhow::Result<Self> {
        let (Some(tls), Some(known)) = (&settings.tls, &before.tls) else { return Self::new(settings) };
        let (files, tls) = (files(tls), tls.clone());
        let tls = Some(Watched::after(WHAT, files, move || handshake(&tls), known.current()));
        Ok(Self { tls, h2c: settings.h2c, balancers: settings.proxy_protocol.clone() })
    }

    /// Looks whether certificates have changed.
    pub fn look(&self) {
        if let Some(tls) = &self.tls {
            tls.look();
        }
    }

    pub(super) fn is_plain(&self) -> bool {
        self.tls.is_none() && !self.h2c && self.balancers.is_empty()
    }

    /// The connection as the proxy library takes it; none: it is not wanted.
    pub(super) async fn admit(&self, stream: Stream) -> Option<Stream> {
        let Ok(mut raw) = stream.into_any().downcast::<Raw>() else { return None };
        let peer = peer(&raw)?;
        if self.balancers.iter().any(|network| network.holds(peer.ip().to_canonical())) {
            let client = introduced(&mut raw).await.inspect_err(|why| {
                tracing::debug!(%peer, %why, "a connection without a PROXY header");
            });
            if let Some(client) = client.ok()? {
                introduce(&mut raw, client);
            }
        }
        if let Some(tls) = &self.tls {
            let handshake = tls.current();
            return match handshake.0.tls_handshake(Ahead::new(*raw)).await {
                Ok(stream) => Some(Box::new(stream)),
                Err(error) => {
                    tracing::debug!(%error, %peer, "TLS handshake failed");
                    None
                }
            };
        }
        if self.h2c && speaks_http2(&mut raw).await.ok()? {
            return Some(Box::new(Ahead::http2(*raw)));
        }
        Some(raw)
    }
}

fn files(tls: &ListenerTls) -> Vec<std::path::PathBuf> {
    let pairs = tls.certificates.iter().flat_map(|(cert, key)| [cert, key]);
    pairs.chain(tls.clients.as_ref().map(|clients| &clients.ca)).cloned().collect()
}

fn handshake(tls: &ListenerTls) -> anyhow::Result<Handshake> {
    let builder =
        ServerConfig::builder_with_provider(tls::provider()).with_safe_default_protocol_versions()?;
    let builder = match &tls.clients {
        Some(clients) => {
            let roots = Arc::new(tls::authorities(&clients.ca, WHAT)?);
            let verifier = WebPkiClientVerifier::builder_with_provider(roots, tls::provider());
            let verifier = if clients.required { verifier } else { verifier.allow_unauthenticated() };
            builder.with_client_cert_verifier(verifier.build().context(WHAT)?)
        }
        None => builder.with_no_client_auth(),
    };
    let mut config = builder.with_cert_resolver(Arc::new(ByName::read(&tls.certificates, WHAT)?));
    config.alpn_protocols = if tls.http2 { vec![b"h2".to_vec()] } else { Vec::new() };
    config.alpn_protocols.push(b"http/1.1".to_vec());
    Ok(Handshake(Acceptor::from_server_config(Arc::new(config))))
}

fn peer(stream: &Raw) -> Option<SocketAddr> {
    inet(stream.get_socket_digest()?.peer_addr())
}

/// Reads the PROXY header, and leaves what follows it.
async fn introduced(stream: &mut Raw) -> Result<Option<SocketAddr>, &'static str> {
    let mut bytes = Vec::with_capacity(128);
    loop {
        match proxy_protocol::parse(&bytes) {
            Header::Whole(length, client) => {
                stream.rewind(&bytes[length..]);
                return Ok(client);
            }
            Header::Wrong => return Err("it begins otherwise"),
            Header::Partial => {}
        }
        match stream.read_buf(&mut bytes).await {
            Ok(0) => return Err("it ended"),
            Ok(_) => {}
            Err(_) => return Err("it broke"),
        }
    }
}

/// From now on the connection counts as the client's.
fn introduce(stream: &mut Raw, client: SocketAddr) {
    let digest = SocketDigest::from_raw_fd(stream.id());
    // Both cells are fresh.
    let _ = digest.peer_addr.set(Some(Address::Inet(client)));
    if let Some(here) = stream.get_socket_digest().and_then(|known| known.local_addr().cloned()) {
        let _ = digest.local_addr.set(Some(here));
    }
    stream.set_socket_digest(digest);
}

/// Whether it begins as HTTP/2 does; nothing is taken.
async fn speaks_http2(stream: &mut Raw) -> std::io::Result<bool> {
    let mut bytes = Vec::with_capacity(64);
    // A request that is shorter than the preface differs from it earlier.
    while bytes.len() < PREFACE.len() && PREFACE.starts_with(&bytes) {
        if stream.read_buf(&mut bytes).await? == 0 {
            break;
        }
    }
    stream.rewind(&bytes);
    Ok(bytes.starts_with(PREFACE))
}

impl std::fmt::Debug for Handshake {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Handshake").finish_non_exhaustive()
    }
}

/// The address without a port, for those who compare networks.
pub(super) fn ip(address: Option<SocketAddr>) -> Option<IpAddr> {
    address.map(|address| address.ip().to_canonical())
}
