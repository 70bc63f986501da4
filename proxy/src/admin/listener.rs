//! Connections of the admin listener, in the clear or over TLS, and who is at their other end.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use anyhow::{Context as _, Result};
use rustls::ServerConfig;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::server::WebPkiClientVerifier;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;

use super::serving::Seats;
use crate::config::model::{Admin, AdminTls};
use crate::fronts::sockets::Sockets;
use crate::tls::{self, Watched};

/// What names the PEM files.
const WHAT: &str = "node.admin.tls";
/// How long a TLS handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Handshakes under way at a time; one more ends the oldest, so that connections that say nothing keep nobody out.
const HANDSHAKES: usize = 64;
/// How often the PEM files are looked at.
const LOOK: Duration = Duration::from_secs(2);
/// Pause after an accept that failed, such as one without file descriptors.
const PAUSE: Duration = Duration::from_millis(100);

/// The other end of a connection.
#[derive(Clone, Debug)]
pub struct Peer {
    /// Its address.
    pub address: SocketAddr,
    /// Its certificate, verified against `client_ca`; none: it showed none.
    certificate: Option<CertificateDer<'static>>,
}

impl Peer {
    /// Without a certificate.
    #[cfg(test)]
    pub(in crate::admin) fn at(address: SocketAddr) -> Self {
        Self { address, certificate: None }
    }

    /// Whether its certificate is for this DNS name.
    pub fn is(&self, name: &str) -> bool {
        let Some(certificate) = &self.certificate else { return false };
        let Ok(certificate) = webpki::EndEntityCert::try_from(certificate) else { return false };
        ServerName::try_from(name)
            .is_ok_and(|name| certificate.verify_is_valid_for_subject_name(&name).is_ok())
    }
}

/// An open connection.
pub enum Stream {
    /// In the clear.
    Plain(TcpStream),
    /// Over TLS.
    Tls(Box<TlsStream<TcpStream>>),
}

/// The listener.
pub enum Listener {
    /// In the clear; only on loopback.
    Plain(TcpListener),
    /// Over TLS: connections whose handshake is done.
    Tls {
        /// Where they come from.
        ready: mpsc::Receiver<(Stream, Peer)>,
        /// Its address.
        address: SocketAddr,
    },
}

impl Listener {
    /// Listens; with TLS it reads the PEM files now and whenever they change, until `stop`.
    pub fn bind(settings: &Admin, stop: &CancellationToken) -> Result<Self> {
        Self::kept(&Sockets::default(), settings, stop)
    }

    /// The same on a socket that is kept.
    pub fn kept(sockets: &Sockets, settings: &Admin, stop: &CancellationToken) -> Result<Self> {
        let socket = sockets.listener(settings.listen).context("node.admin.listen")?;
        let listener = TcpListener::from_std(socket)?;
        let Some(tls) = &settings.tls else { return Ok(Self::Plain(listener)) };
        let address = listener.local_addr()?;
        let current = Arc::new(watched(tls)?);
        tokio::spawn(stop.clone().run_until_cancelled_owned(reload(current.clone())));
        let (done, ready) = mpsc::channel(HANDSHAKES);
        tokio::spawn(stop.clone().run_until_cancelled_owned(accept(listener, current, done)));
        Ok(Self::Tls { ready, address })
    }
}

impl axum::serve::Listener for Listener {
    type Io = Stream;
    type Addr = Peer;

    async fn accept(&mut self) -> (Stream, Peer) {
        match self {
            Self::Plain(listener) => {
                let (stream, address) = next(listener).await;
                (Stream::Plain(stream), Peer { address, certificate: None })
            }
            Self::Tls { ready, .. } => match ready.recv().await {
                Some(connection) => connection,
                // The node is stopping: there are no more.
                None => std::future::pending().await,
            },
        }
    }

    fn local_addr(&self) -> io::Result<Peer> {
        let address = match self {
            Self::Plain(listener) => listener.local_addr()?,
            Self::Tls { address, .. } => *address,
        };
        Ok(Peer { address, certificate: None })
    }
}

async fn next(listener: &TcpListener) -> (TcpStream, SocketAddr) {
    loop {
        match listener.accept().await {
            Ok(connection) => return connection,
            Err(error) => {
                tracing::warn!(%error, "the admin listener could not take a connection");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

/// Takes connections and does their handshakes side by side: a slow one keeps nobody waiting.
async fn accept(
    listener: TcpListener,
    config: Arc<Watched<ServerConfig>>,
    done: mpsc::Sender<(Stream, Peer)>,
) {
    let mut seats = Seats::of(HANDSHAKES);
    loop {
        let (stream, address) = next(&listener).await;
        let (acceptor, done) = (TlsAcceptor::from(config.current()), done.clone());
        let seat = seats.take();
        tokio::spawn(async move {
            let handshake = tokio::select! {
                handshake = tokio::time::timeout(HANDSHAKE, acceptor.accept(stream)) => handshake,
                Ok(()) = seat.wanted => {
                    tracing::debug!(%address, "too many TLS handshakes of the admin listener: the oldest was ended");
                    return;
                }
            };
            match handshake {
                Ok(Ok(stream)) => {
                    let shown = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
                    let certificate = shown.map(|certificate| certificate.clone().into_owned());
                    // Nobody takes it any more when the node stops.
                    let _ = done.send((Stream::Tls(Box::new(stream)), Peer { address, certificate })).await;
                }
                Ok(Err(error)) => {
                    tracing::debug!(%error, %address, "TLS handshake of the admin listener failed");
                }
                Err(_) => tracing::debug!(%address, "TLS handshake of the admin listener took too long"),
            }
        });
    }
}

/// Looks at the PEM files now and then, for ever.
async fn reload(current: Arc<Watched<ServerConfig>>) {
    loop {
        tokio::time::sleep(LOOK).await;
        current.look();
    }
}

fn watched(tls: &AdminTls) -> Result<Watched<ServerConfig>> {
    let files = [Some(&tls.cert), Some(&tls.key), tls.client_ca.as_ref()];
    let tls = tls.clone();
    Watched::new(WHAT, files.into_iter().flatten().cloned().collect(), move || server_config(&tls))
}

fn server_config(tls: &AdminTls) -> Result<ServerConfig> {
    let chain = tls::certificates(&tls.cert, WHAT)?;
    let key = tls::key(&tls.key, WHAT)?;
    let builder = ServerConfig::builder();
    let builder = match &tls.client_ca {
        Some(path) => {
            let roots = Arc::new(tls::authorities(path, WHAT)?);
            // A caller without a certificate may still show a token.
            let verifier = WebPkiClientVerifier::builder(roots).allow_unauthenticated().build()?;
            builder.with_client_cert_verifier(verifier)
        }
        None => builder.with_no_client_auth(),
    };
    let mut config = builder.with_single_cert(chain, key).with_context(|| {
        format!("{} and {} do not belong together", tls.cert.display(), tls.key.display())
    })?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(cx, buffer),
            Self::Tls(stream) => Pin::new(stream).poll_read(cx, buffer),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write(cx, bytes),
            Self::Tls(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

#[cfg(test)]
mod tests;
