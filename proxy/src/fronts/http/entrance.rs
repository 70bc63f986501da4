//! What happens to a connection before its first request: the PROXY header, TLS, and which HTTP it speaks.
//!
//! The proxy library builds TLS once, when it starts to listen. Here every handshake takes the configuration of its moment,
//! so that certificates are replaced without a restart, and one listener has certificates for many names.

use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use anyhow::Context as _;
use async_trait::async_trait;
use pingora::apps::{HttpServerApp, ServerApp};
use pingora::listeners::tls::Acceptor;
use pingora::protocols::l4::socket::SocketAddr as Address;
use pingora::protocols::l4::stream::Stream as Raw;
use pingora::protocols::raw_connect::ProxyDigest;
use pingora::protocols::tls::{SslDigest, TlsRef};
use pingora::protocols::{
    ALPN, GetProxyDigest, GetSocketDigest, GetTimingDigest, Peek, Shutdown, SocketDigest, Ssl, Stream,
    TimingDigest, UniqueID, UniqueIDType,
};
use pingora::proxy::HttpProxy;
use pingora::server::ShutdownWatch;
use rustls::ServerConfig;
use rustls::server::WebPkiClientVerifier;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, ReadBuf};

use super::proxy_protocol::{self, Header};
use super::settings::{ListenerSettings, ListenerTls};
use super::{HttpFront, inet};
use crate::feeds::external::egress::Network;
use crate::fronts::routes::Routes;
use crate::tls::{self, ByName, Watched};

/// How long a client may take until it speaks HTTP.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long a client that was accepted may take until it asks, when the program is replaced.
const LAST: Duration = Duration::from_secs(1);
/// How often it is looked whether all have.
const LOOK: Duration = Duration::from_millis(5);
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

    /// Looks whether certificates have changed.
    pub fn look(&self) {
        if let Some(tls) = &self.tls {
            tls.look();
        }
    }

    fn is_plain(&self) -> bool {
        self.tls.is_none() && !self.h2c && self.balancers.is_empty()
    }

    /// The connection as the proxy library takes it; none: it is not wanted.
    async fn admit(&self, stream: Stream) -> Option<Stream> {
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
            return match handshake.0.tls_handshake(*raw).await {
                Ok(stream) => Some(Box::new(stream)),
                Err(error) => {
                    tracing::debug!(%error, %peer, "TLS handshake failed");
                    None
                }
            };
        }
        if self.h2c && speaks_http2(&mut raw).await.ok()? {
            return Some(Box::new(PriorKnowledge(*raw)));
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

/// The application behind all listeners: brings a connection in, then leaves it to the proxy library.
pub struct Doors {
    routes: Arc<Routes>,
    proxy: Arc<HttpProxy<HttpFront>>,
}

impl Doors {
    pub(super) fn new(routes: Arc<Routes>, proxy: HttpProxy<HttpFront>) -> Self {
        Self { routes, proxy: Arc::new(proxy) }
    }
}

#[async_trait]
impl ServerApp for Doors {
    async fn process_new(self: &Arc<Self>, stream: Stream, shutdown: &ShutdownWatch) -> Option<Stream> {
        let _connected = self.routes.clients().connection();
        let digest = stream.get_socket_digest();
        let entrance = self.routes.entrance(|| inet(digest.as_ref()?.local_addr()));
        let stream = match entrance {
            Some(entrance) if !entrance.is_plain() => {
                tokio::time::timeout(PATIENCE, entrance.admit(stream)).await.ok()??
            }
            _ => stream,
        };
        self.proxy.process_new(stream, shutdown).await
    }

    /// Nobody is accepted any more.
    async fn cleanup(&self) {
        // Whoever was accepted a moment ago is about to ask: the library would close what has not asked yet.
        if self.routes.clients().leaving() {
            let answered = async {
                while self.routes.busy() > 0 {
                    tokio::time::sleep(LOOK).await;
                }
            };
            let _ = tokio::time::timeout(LAST, answered).await;
        }
        self.proxy.http_cleanup().await;
    }
}

/// A connection in the clear whose client speaks HTTP/2 without having asked.
#[derive(Debug)]
struct PriorKnowledge(Raw);

impl AsyncRead for PriorKnowledge {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buffer)
    }
}

impl AsyncWrite for PriorKnowledge {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[std::io::IoSlice<'_>],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.0).poll_write_vectored(cx, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.0.is_write_vectored()
    }
}

#[async_trait]
impl Shutdown for PriorKnowledge {
    async fn shutdown(&mut self) {
        Shutdown::shutdown(&mut self.0).await;
    }
}

impl UniqueID for PriorKnowledge {
    fn id(&self) -> UniqueIDType {
        self.0.id()
    }
}

impl Ssl for PriorKnowledge {
    fn get_ssl(&self) -> Option<&TlsRef> {
        None
    }

    fn get_ssl_digest(&self) -> Option<Arc<SslDigest>> {
        None
    }

    fn selected_alpn_proto(&self) -> Option<ALPN> {
        Some(ALPN::H2)
    }
}

impl GetTimingDigest for PriorKnowledge {
    fn get_timing_digest(&self) -> Vec<Option<TimingDigest>> {
        self.0.get_timing_digest()
    }
}

impl GetProxyDigest for PriorKnowledge {
    fn get_proxy_digest(&self) -> Option<Arc<ProxyDigest>> {
        self.0.get_proxy_digest()
    }
}

impl GetSocketDigest for PriorKnowledge {
    fn get_socket_digest(&self) -> Option<Arc<SocketDigest>> {
        self.0.get_socket_digest()
    }
}

#[async_trait]
impl Peek for PriorKnowledge {}

impl std::fmt::Debug for Handshake {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Handshake").finish_non_exhaustive()
    }
}

/// The address without a port, for those who compare networks.
pub(super) fn ip(address: Option<SocketAddr>) -> Option<IpAddr> {
    address.map(|address| address.ip().to_canonical())
}
