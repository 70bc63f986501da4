//! Links over QUIC (quinn) with mutual TLS: both sides show a certificate of the same private CA, and each checks the
//! other's name. One connection and one bidirectional stream per link; messages are length-prefixed.
//!
//! It never accepts a side whose name is not asked for, and has no switch to turn verification off. Certificates and authority
//! may be renewed at any time: open links go on, new ones use what is there then.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::{Buf, BufMut, Bytes, BytesMut};
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use rustls::RootCertStore;
use rustls::server::WebPkiClientVerifier;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};

use super::peer::{Names, Peer};
use super::{Dial, Link, LinkRecv, LinkSend, Meter, Transport};
use crate::error::Error;
use crate::wire::MAX_FRAME;

/// How often an idle connection shows that it lives.
pub const KEEP_ALIVE: Duration = Duration::from_secs(1);

/// A connection that is silent for so long is dead.
pub const IDLE_TIMEOUT: Duration = Duration::from_secs(6);

const ALPN: &[u8] = b"godwit/1";
const OPEN_TIMEOUT: Duration = Duration::from_secs(10);
const STREAM_WINDOW: u32 = 32 << 20;

/// Why a connection is closed: it was only for [`Connector::measure`].
const MEASURED: quinn::VarInt = quinn::VarInt::from_u32(2);

/// One side's certificate, its key, and the CA that both sides must come from, as PEM text.
#[derive(Clone)]
pub struct Identity {
    /// Certificate chain, own certificate first.
    pub certificate: Vec<u8>,
    /// Private key.
    pub key: Vec<u8>,
    /// CA certificates.
    pub authority: Vec<u8>,
    /// The other side's certificate must say for which zones and resources it is.
    pub scoped: bool,
}

impl Identity {
    /// What the other side will see of this one.
    ///
    /// # Errors
    /// [`Error::Unready`] when certificate, key and authority cannot be used together.
    pub fn shown_as(&self, name: &str) -> Result<Peer, Error> {
        self.client()?;
        self.server()?;
        let chain = self.chain()?;
        let names = chain.first().map(Names::read).transpose()?.unwrap_or_default();
        if !names.dns.iter().any(|known| known.eq_ignore_ascii_case(name)) {
            return Err(Error::Unready(format!(
                "link: the certificate is for {:?}, not for {name}",
                names.dns
            )));
        }
        Ok(names.into_peer(name.to_owned()))
    }

    fn chain(&self) -> Result<Vec<CertificateDer<'static>>, Error> {
        certificates(&self.certificate, "certificate")
    }

    fn private_key(&self) -> Result<PrivateKeyDer<'static>, Error> {
        PrivateKeyDer::from_pem_slice(&self.key)
            .map_err(|error| Error::Unready(format!("link: private key: {error}")))
    }

    fn roots(&self) -> Result<Arc<RootCertStore>, Error> {
        let mut roots = RootCertStore::empty();
        for certificate in certificates(&self.authority, "CA")? {
            roots
                .add(certificate)
                .map_err(|error| Error::Unready(format!("link: CA certificate: {error}")))?;
        }
        Ok(Arc::new(roots))
    }

    fn client(&self) -> Result<quinn::ClientConfig, Error> {
        let mut tls = rustls::ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(tls_error)?
            .with_root_certificates(self.roots()?)
            .with_client_auth_cert(self.chain()?, self.private_key()?)
            .map_err(tls_error)?;
        tls.alpn_protocols = vec![ALPN.to_vec()];
        let crypto =
            QuicClientConfig::try_from(tls).map_err(|error| Error::Unready(format!("link: {error}")))?;
        let mut config = quinn::ClientConfig::new(Arc::new(crypto));
        config.transport_config(transport()?);
        Ok(config)
    }

    fn server(&self) -> Result<quinn::ServerConfig, Error> {
        let verifier = WebPkiClientVerifier::builder_with_provider(self.roots()?, provider())
            .build()
            .map_err(|error| Error::Unready(format!("link: {error}")))?;
        let mut tls = rustls::ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(tls_error)?
            .with_client_cert_verifier(verifier)
            .with_single_cert(self.chain()?, self.private_key()?)
            .map_err(tls_error)?;
        tls.alpn_protocols = vec![ALPN.to_vec()];
        let crypto =
            QuicServerConfig::try_from(tls).map_err(|error| Error::Unready(format!("link: {error}")))?;
        let mut config = quinn::ServerConfig::with_crypto(Arc::new(crypto));
        config.transport_config(transport()?);
        Ok(config)
    }
}

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn tls_error(error: rustls::Error) -> Error {
    Error::Unready(format!("link: {error}"))
}

fn certificates(pem: &[u8], what: &str) -> Result<Vec<CertificateDer<'static>>, Error> {
    let all: Vec<_> = CertificateDer::pem_slice_iter(pem)
        .collect::<Result<_, _>>()
        .map_err(|error| Error::Unready(format!("link: {what}: {error}")))?;
    if all.is_empty() {
        return Err(Error::Unready(format!("link: no {what} in the PEM text")));
    }
    Ok(all)
}

fn transport() -> Result<Arc<quinn::TransportConfig>, Error> {
    let idle = IDLE_TIMEOUT.try_into().map_err(|_| Error::Unready("link: idle timeout".into()))?;
    let mut transport = quinn::TransportConfig::default();
    transport
        .keep_alive_interval(Some(KEEP_ALIVE))
        .max_idle_timeout(Some(idle))
        .stream_receive_window(STREAM_WINDOW.into())
        .receive_window((2 * STREAM_WINDOW).into())
        .send_window(u64::from(2 * STREAM_WINDOW))
        // Loss says nothing of congestion on a long way: what halves its window for each lost datagram crawls there.
        .congestion_controller_factory(Arc::new(quinn::congestion::BbrConfig::default()))
        .max_concurrent_uni_streams(0u8.into())
        .max_concurrent_bidi_streams(1u8.into());
    Ok(Arc::new(transport))
}

/// Opens links to one address and accepts only one name there.
pub struct Connector {
    endpoint: quinn::Endpoint,
    /// For IPv6, where this machine has it.
    six: Option<quinn::Endpoint>,
    current: Mutex<Current>,
    address: String,
    name: String,
    /// Of the links that were opened here, numbered in their order; those that are gone go with the next.
    meters: Mutex<Opened>,
}

#[derive(Default)]
struct Opened {
    count: u64,
    meters: Vec<(u64, Meter)>,
}

/// What new links are opened with.
#[derive(Clone)]
struct Current {
    config: quinn::ClientConfig,
    scoped: bool,
}

impl Connector {
    /// `address` is `host:port`, resolved at each dial; `name` is the DNS name that the other side's certificate must
    /// carry. Needs a Tokio runtime.
    pub fn new(identity: &Identity, address: &str, name: &str) -> Result<Self, Error> {
        if ServerName::try_from(name).is_err() {
            return Err(Error::Unready(format!("link: {name:?} cannot be a certificate name")));
        }
        let any = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0));
        let endpoint = quinn::Endpoint::client(any).map_err(Error::io("open a UDP socket"))?;
        let six = quinn::Endpoint::client(SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0))).ok();
        let current = Current { config: identity.client()?, scoped: identity.scoped }.into();
        Ok(Self {
            endpoint,
            six,
            current,
            address: address.into(),
            name: name.into(),
            meters: Mutex::default(),
        })
    }

    /// Opens links with this identity from now on; open ones go on with what they have.
    pub fn renew(&self, identity: &Identity) -> Result<(), Error> {
        let renewed = Current { config: identity.client()?, scoped: identity.scoped };
        *self.current.lock().unwrap_or_else(PoisonError::into_inner) = renewed;
        Ok(())
    }

    /// Opens a link. A side that refuses our certificate is noticed at the first receive.
    pub async fn connect(&self) -> Result<QuicLink, Error> {
        let scoped = self.current.lock().unwrap_or_else(PoisonError::into_inner).scoped;
        let open = async {
            let connection = self.handshake().await?;
            let peer = peer_names(&connection)?.into_peer(self.name.clone());
            let (send, recv) = connection.open_bi().await.map_err(|error| self.failed(&error.to_string()))?;
            Ok(QuicLink::new(connection, send, recv, peer, scoped))
        };
        let link = tokio::time::timeout(OPEN_TIMEOUT, open)
            .await
            .map_err(|_| self.failed("no answer"))
            .and_then(|opened| opened)?;
        let mut opened = self.meters.lock().unwrap_or_else(PoisonError::into_inner);
        let number = opened.count;
        opened.count += 1;
        opened.meters.retain(|(_, meter)| meter.read().is_some());
        opened.meters.push((number, link.meter()));
        Ok(link)
    }

    async fn handshake(&self) -> Result<quinn::Connection, Error> {
        let found = tokio::net::lookup_host(&self.address)
            .await
            .map_err(Error::io(format!("resolve {}", self.address)))?;
        let found: Vec<SocketAddr> = found.collect();
        let mut failure = self.failed("the name has no address");
        // One that is dead leaves time for the others.
        let each = OPEN_TIMEOUT / u32::try_from(found.len().max(1)).unwrap_or(u32::MAX);
        for address in found {
            match tokio::time::timeout(each, self.shake_hands(address)).await {
                Ok(Ok(connection)) => return Ok(connection),
                Ok(Err(error)) => failure = error,
                Err(_) => failure = self.failed(&format!("no answer from {address}")),
            }
        }
        Err(failure)
    }

    async fn shake_hands(&self, address: SocketAddr) -> Result<quinn::Connection, Error> {
        let endpoint = if address.is_ipv4() { Some(&self.endpoint) } else { self.six.as_ref() };
        let endpoint = endpoint.ok_or_else(|| self.failed(&format!("no IPv6 here, for {address}")))?;
        let config = self.current.lock().unwrap_or_else(PoisonError::into_inner).config.clone();
        let connecting = endpoint
            .connect_with(config, address, &self.name)
            .map_err(|error| self.failed(&error.to_string()))?;
        connecting.await.map_err(|error| self.failed(&error.to_string()))
    }

    fn failed(&self, why: &str) -> Error {
        Error::Link(format!("{} ({}): {why}", self.address, self.name))
    }

    /// How the way is on each open link, by the link's number: the later opened has the higher one.
    pub fn transports(&self) -> Vec<(u64, Transport)> {
        let opened = self.meters.lock().unwrap_or_else(PoisonError::into_inner);
        opened.meters.iter().filter_map(|(number, meter)| Some((*number, meter.read()?))).collect()
    }

    /// Shakes hands, says how the way is, and hangs up: where no link is open.
    pub async fn measure(&self) -> Result<Transport, Error> {
        let connection = tokio::time::timeout(OPEN_TIMEOUT, self.handshake())
            .await
            .map_err(|_| self.failed("no answer"))
            .and_then(|opened| opened)?;
        let transport = transport_of(&connection);
        connection.close(MEASURED, b"only measured the way");
        Ok(transport)
    }
}

fn transport_of(connection: &quinn::Connection) -> Transport {
    let stats = connection.stats();
    Transport {
        round_trip: stats.path.rtt,
        sent_packets: stats.path.sent_packets,
        lost_packets: stats.path.lost_packets,
        received_datagrams: stats.udp_rx.datagrams,
    }
}

#[async_trait]
impl Dial for Connector {
    async fn dial(&self) -> Result<Box<dyn Link>, Error> {
        self.connect().await.map(|link| Box::new(link) as Box<dyn Link>)
    }
}

/// Accepts links from named sides.
#[derive(Clone)]
pub struct Listener {
    endpoint: quinn::Endpoint,
    names: Arc<[String]>,
    scoped: Arc<AtomicBool>,
}

impl Listener {
    /// Binds `address`; only certificates with one of `names` are let in (DNS names, compared without case).
    pub fn bind(identity: &Identity, address: SocketAddr, names: &[String]) -> Result<Self, Error> {
        let endpoint = quinn::Endpoint::server(identity.server()?, address)
            .map_err(Error::io(format!("listen on {address}/udp")))?;
        Ok(Self { endpoint, names: names.into(), scoped: Arc::new(identity.scoped.into()) })
    }

    /// Accepts links with this identity from now on; open ones go on with what they have.
    pub fn renew(&self, identity: &Identity) -> Result<(), Error> {
        self.endpoint.set_server_config(Some(identity.server()?));
        self.scoped.store(identity.scoped, Ordering::Relaxed);
        Ok(())
    }

    /// Where it listens.
    pub fn local_address(&self) -> Result<SocketAddr, Error> {
        self.endpoint.local_addr().map_err(Error::io("read the UDP socket's address"))
    }

    /// The next attempt to connect; `None` once closed. Returns before the handshake, so that a slow side does not hold
    /// up the others: finish each in its own task. Cancel-safe.
    pub async fn accept(&self) -> Option<Incoming> {
        let handshake = self.endpoint.accept().await?;
        let scoped = self.scoped.load(Ordering::Relaxed);
        Some(Incoming { handshake, names: Arc::clone(&self.names), scoped })
    }

    /// Stops accepting and drops every link.
    pub fn close(&self) {
        self.endpoint.close(0u8.into(), b"closed");
    }
}

/// A connection that is not checked yet.
pub struct Incoming {
    handshake: quinn::Incoming,
    names: Arc<[String]>,
    scoped: bool,
}

impl Incoming {
    /// Handshake, name check, and the other side's stream; `None` from one that only measured the way.
    pub async fn finish(self) -> Result<Option<QuicLink>, Error> {
        let from = self.handshake.remote_address();
        let failed = |why: String| Error::Link(format!("from {from}: {why}"));
        let open = async {
            let connection = self.handshake.await.map_err(|error| failed(error.to_string()))?;
            let names = peer_names(&connection)?;
            let known =
                self.names.iter().find(|known| names.dns.iter().any(|name| name.eq_ignore_ascii_case(known)));
            let Some(name) = known.cloned() else {
                connection.close(1u8.into(), b"certificate name not known here");
                return Err(failed(format!("certificate names {:?} are not known here", names.dns)));
            };
            match connection.accept_bi().await {
                Ok((send, recv)) => {
                    Ok(Some(QuicLink::new(connection, send, recv, names.into_peer(name), self.scoped)))
                }
                Err(quinn::ConnectionError::ApplicationClosed(why)) if why.error_code == MEASURED => Ok(None),
                Err(error) => Err(failed(error.to_string())),
            }
        };
        tokio::time::timeout(OPEN_TIMEOUT, open)
            .await
            .map_err(|_| failed("handshake not finished in time".into()))?
    }
}

fn peer_names(connection: &quinn::Connection) -> Result<Names, Error> {
    let chain = connection
        .peer_identity()
        .and_then(|identity| identity.downcast::<Vec<CertificateDer<'static>>>().ok())
        .ok_or_else(|| Error::Link("no certificate".into()))?;
    Names::read(chain.first().ok_or_else(|| Error::Link("no certificate".into()))?)
}

/// An open link.
pub struct QuicLink {
    connection: Arc<quinn::Connection>,
    sender: Sender,
    receiver: Receiver,
    peer: Peer,
    scoped: bool,
}

impl QuicLink {
    fn new(
        connection: quinn::Connection,
        stream: quinn::SendStream,
        recv: quinn::RecvStream,
        peer: Peer,
        scoped: bool,
    ) -> Self {
        let connection = Arc::new(connection);
        Self {
            sender: Sender { stream, connection: Arc::clone(&connection) },
            receiver: Receiver {
                stream: recv,
                buffer: BytesMut::new(),
                _connection: Arc::clone(&connection),
            },
            connection,
            peer,
            scoped,
        }
    }
}

impl Link for QuicLink {
    fn split(self: Box<Self>) -> (Box<dyn LinkSend>, Box<dyn LinkRecv>) {
        (Box::new(self.sender), Box::new(self.receiver))
    }

    fn peer(&self) -> Option<&Peer> {
        Some(&self.peer)
    }

    fn scoped(&self) -> bool {
        self.scoped
    }

    fn meter(&self) -> Meter {
        // Asking must not keep the connection open.
        let connection = Arc::downgrade(&self.connection);
        Meter::new(move || {
            let connection = connection.upgrade()?;
            connection.close_reason().is_none().then(|| transport_of(&connection))
        })
    }
}

struct Sender {
    stream: quinn::SendStream,
    connection: Arc<quinn::Connection>,
}

#[async_trait]
impl LinkSend for Sender {
    async fn send(&mut self, message: Bytes) -> Result<(), Error> {
        let mut prefix = BytesMut::with_capacity(4);
        prefix.put_u32(message.len() as u32);
        self.stream
            .write_all_chunks(&mut [prefix.freeze(), message])
            .await
            .map_err(|error| Error::Link(error.to_string()))
    }

    async fn close(&mut self) {
        if self.stream.finish().is_ok() {
            let _ = tokio::time::timeout(Duration::from_secs(1), self.stream.stopped()).await;
        }
        self.connection.close(0u8.into(), b"done");
    }
}

struct Receiver {
    stream: quinn::RecvStream,
    buffer: BytesMut,
    _connection: Arc<quinn::Connection>,
}

impl Receiver {
    fn buffered(&mut self) -> Result<Option<Bytes>, Error> {
        let Some(prefix) = self.buffer.first_chunk::<4>() else { return Ok(None) };
        let length = u32::from_be_bytes(*prefix) as usize;
        if length > MAX_FRAME {
            return Err(Error::Protocol(format!("a message of {length} bytes")));
        }
        if self.buffer.len() < 4 + length {
            return Ok(None);
        }
        self.buffer.advance(4);
        Ok(Some(self.buffer.split_to(length).freeze()))
    }
}

#[async_trait]
impl LinkRecv for Receiver {
    async fn recv(&mut self) -> Result<Option<Bytes>, Error> {
        loop {
            if let Some(message) = self.buffered()? {
                return Ok(Some(message));
            }
            // Cancel-safe: a chunk is taken and buffered in one step.
            let chunk = self.stream.read_chunk(MAX_FRAME, true).await;
            match chunk.map_err(|error| Error::Link(error.to_string()))? {
                Some(chunk) => self.buffer.extend_from_slice(&chunk.bytes),
                None if self.buffer.is_empty() => return Ok(None),
                None => return Err(Error::Link("closed inside a message".into())),
            }
        }
    }
}
