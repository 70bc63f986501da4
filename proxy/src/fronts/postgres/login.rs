//! From an accepted connection to a client that has said who it is and proven it.
//!
//! Everything here happens within the front's time for start-up, and in messages of at most a few kilobytes.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use replicator::postgres::{Socket, certificate_hash};
use rustls::ServerConfig;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio_rustls::TlsAcceptor;

use super::protocol::message::{self, Fault};
use super::protocol::scram::{self, Failed, Keys, Verifier};
use super::protocol::startup::{self, MINOR, Opening, Startup};
use super::talk::Talk;
use crate::config::model::FrontTls;

/// The longest message of a login, as PostgreSQL has it.
const LOGIN_MESSAGE: usize = 65_535;
/// First byte of a TLS record that begins a handshake.
const HANDSHAKE: u8 = 0x16;
/// What PostgreSQL's protocol is called where TLS comes first.
const ALPN: &[u8] = b"postgresql";

/// TLS towards clients.
pub(super) struct Tls {
    acceptor: TlsAcceptor,
    end_point: Option<Arc<[u8]>>,
    required: bool,
}

/// Certificates that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read as PEM.
    #[error("cannot read {0}")]
    Pem(String, #[source] rustls_pki_types::pem::Error),
    /// Certificate and key do not fit together, or are of an unknown kind.
    #[error("the certificate cannot be used")]
    Unfit(#[from] rustls::Error),
}

impl Tls {
    /// Reads the files.
    pub(super) fn new(settings: &FrontTls) -> Result<Self, TlsError> {
        let named = |path: &std::path::Path| {
            let name = path.display().to_string();
            move |error| TlsError::Pem(name, error)
        };
        let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_file_iter(&settings.cert)
            .and_then(Iterator::collect)
            .map_err(named(&settings.cert))?;
        let key = PrivateKeyDer::from_pem_file(&settings.key).map_err(named(&settings.key))?;
        let end_point = chain.first().and_then(|certificate| certificate_hash(certificate)).map(Arc::from);
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(chain, key)?;
        config.alpn_protocols = vec![ALPN.to_vec()];
        Ok(Self { acceptor: TlsAcceptor::from(Arc::new(config)), end_point, required: settings.required })
    }
}

/// A client before it has proven anything.
pub(super) struct Client {
    pub(super) socket: Box<dyn Socket>,
    /// Read and not looked at.
    pub(super) received: Vec<u8>,
    end_point: Option<Arc<[u8]>>,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").finish_non_exhaustive()
    }
}

/// What a connection turned out to be.
pub(super) enum Greeted {
    /// A session that wants in.
    Session(Client, Startup),
    /// A request to cancel; the connection ends.
    Cancel(u32, Vec<u8>),
}

/// Why nobody is let in.
#[derive(Debug, thiserror::Error)]
pub(super) enum NoClient {
    /// To be told, if the client still listens.
    #[error("{0}")]
    Fault(Fault, Option<Box<Client>>),
    #[error("the connection ended during start-up")]
    Gone(#[from] io::Error),
}

impl Client {
    /// Takes the packets that come before a session's first message.
    pub(super) async fn greet(socket: Box<dyn Socket>, tls: Option<&Tls>) -> Result<Greeted, NoClient> {
        let mut this = Self { socket, received: Vec::new(), end_point: None };
        let mut secure = false;
        this.talk().at_least(1).await?;
        if this.received.first() == Some(&HANDSHAKE) {
            let Some(tls) = tls else {
                return Err(io::Error::from(io::ErrorKind::InvalidData).into());
            };
            this = this.secure(tls, true).await?;
            secure = true;
        }
        // As in PostgreSQL: each request once, in either order.
        let (mut asked_ssl, mut asked_gss) = (secure, secure);
        loop {
            let packet = match this.packet().await? {
                Ok(packet) => packet,
                Err(refused) => return Err(this.fault(Fault::fatal("08P01", refused.to_string()))),
            };
            match packet {
                Opening::Ssl if !asked_ssl => {
                    asked_ssl = true;
                    if !this.received.is_empty() {
                        // It would be taken for what came encrypted.
                        let fault = Fault::fatal("08P01", "received unencrypted data after SSL request");
                        return Err(this.fault(fault));
                    }
                    match tls {
                        Some(tls) => {
                            this.talk().send(b"S").await?;
                            this = this.secure(tls, false).await?;
                            (secure, asked_gss) = (true, true);
                        }
                        None => this.talk().send(b"N").await?,
                    }
                }
                Opening::Gss if !asked_gss => {
                    asked_gss = true;
                    this.talk().send(b"N").await?;
                }
                Opening::Ssl | Opening::Gss => {
                    let fault = Fault::fatal("08P01", "encryption was negotiated already");
                    return Err(this.fault(fault));
                }
                Opening::Cancel { pid, secret } => return Ok(Greeted::Cancel(pid, secret)),
                Opening::Startup(_) if !secure && tls.is_some_and(|tls| tls.required) => {
                    let fault = Fault::fatal("28000", "connections without TLS are refused")
                        .hint("Connect with sslmode=require or better.");
                    return Err(this.fault(fault));
                }
                Opening::Startup(startup) => {
                    if startup.negotiates() {
                        let mut out = Vec::new();
                        message::negotiate(&mut out, MINOR.min(startup.minor), &startup.unknown);
                        this.talk().send(&out).await?;
                    }
                    return Ok(Greeted::Session(this, startup));
                }
            }
        }
    }

    async fn packet(&mut self) -> io::Result<Result<Opening, startup::Refused>> {
        let mut talk = self.talk();
        talk.at_least(4).await?;
        let length = match startup::length(talk.received) {
            Ok(length) => length.unwrap_or_default(),
            Err(refused) => return Ok(Err(refused)),
        };
        talk.at_least(length).await?;
        let packet: Vec<u8> = self.received.drain(..length).collect();
        Ok(startup::read(&packet))
    }

    async fn secure(self, tls: &Tls, direct: bool) -> Result<Self, NoClient> {
        let ahead = Ahead { bytes: self.received, socket: self.socket };
        let stream = tls.acceptor.accept(ahead).await?;
        if direct && stream.get_ref().1.alpn_protocol() != Some(ALPN) {
            return Err(io::Error::from(io::ErrorKind::InvalidData).into());
        }
        Ok(Self { socket: Box::new(stream), received: Vec::new(), end_point: tls.end_point.clone() })
    }

    /// Makes it prove that it knows what `verifier` is of. `doomed`: the verifier is made up.
    pub(super) async fn prove(mut self, verifier: &Verifier, doomed: bool) -> Result<(Self, Keys), NoClient> {
        let mut offer = Vec::new();
        if self.end_point.is_some() {
            message::text(&mut offer, scram::PLUS);
        }
        message::text(&mut offer, scram::PLAIN);
        offer.push(0);
        let mut out = Vec::new();
        message::authentication(&mut out, 10, &offer);
        self.talk().send(&out).await?;

        let body = self.password().await?;
        let chosen = message::read_text(&body).and_then(|(mechanism, rest)| {
            let (length, data) = rest.split_first_chunk()?;
            (u32::from_be_bytes(*length) as usize == data.len()).then_some((mechanism, data))
        });
        let plus = match &chosen {
            Some((mechanism, _)) if *mechanism == scram::PLAIN.as_bytes() => false,
            Some((mechanism, _)) if *mechanism == scram::PLUS.as_bytes() && self.end_point.is_some() => true,
            _ => return Err(self.fault(Fault::fatal("08P01", "malformed or unknown SASL mechanism"))),
        };
        let first = chosen.map(|(_, data)| data).unwrap_or_default();
        let (end_point, nonce) = (self.end_point.clone(), crate::rng::secret());
        let begun = scram::Server::begin(verifier, doomed, first, plus, end_point.as_deref(), &nonce);
        let exchange = match begun {
            Ok(exchange) => exchange,
            Err(failed) => return Err(self.failed(&failed)),
        };
        let mut out = Vec::new();
        message::authentication(&mut out, 11, exchange.answer().as_bytes());
        self.talk().send(&out).await?;

        let last = self.password().await?;
        let (answer, keys) = match exchange.finish(&last) {
            Ok(finished) => finished,
            Err(failed) => return Err(self.failed(&failed)),
        };
        let mut out = Vec::new();
        message::authentication(&mut out, 12, answer.as_bytes());
        self.talk().send(&out).await?;
        Ok((self, keys))
    }

    async fn password(&mut self) -> io::Result<Vec<u8>> {
        match self.talk().message(LOGIN_MESSAGE).await? {
            (b'p', body) => Ok(body),
            _ => Err(io::ErrorKind::InvalidData.into()),
        }
    }

    fn failed(self, failed: &Failed) -> NoClient {
        let sqlstate = if matches!(failed, Failed::Malformed(_)) { "08P01" } else { "28P01" };
        self.fault(Fault::fatal(sqlstate, failed.to_string()))
    }

    /// Refuses it.
    pub(super) fn fault(self, fault: Fault) -> NoClient {
        NoClient::Fault(fault, Some(Box::new(self)))
    }

    /// Tells it why, and ends.
    pub(super) async fn refuse(mut self, error: &[u8]) {
        // A client that does not listen any more need not know.
        if self.talk().send(error).await.is_ok() {
            let _ = self.socket.shutdown().await;
        }
    }

    pub(super) fn talk(&mut self) -> Talk<'_> {
        Talk { socket: &mut *self.socket, received: &mut self.received }
    }
}

/// A socket of which the first bytes were read already.
struct Ahead {
    bytes: Vec<u8>,
    socket: Box<dyn Socket>,
}

impl AsyncRead for Ahead {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.bytes.is_empty() {
            return Pin::new(&mut self.socket).poll_read(cx, out);
        }
        let count = self.bytes.len().min(out.remaining());
        out.put_slice(&self.bytes[..count]);
        self.bytes.drain(..count);
        if self.bytes.is_empty() {
            self.bytes = Vec::new();
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Ahead {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }
}
