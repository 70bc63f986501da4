//! TLS to a database: rustls with ring, libpq's ideas of verifying, channel binding.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::server::ParsedCertificate;
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use sha2::{Digest, Sha224, Sha256, Sha384, Sha512};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_postgres::tls::{ChannelBinding, MakeTlsConnect, TlsConnect, TlsStream};
use tokio_rustls::TlsConnector;

use super::connection::Peek;
use super::dsn::{Authority, ClientCertificate, Tls, TlsMode};
use crate::error::Error;

/// Makes connections secure as one [`Tls`] says. Certificates are read when it is made: make one for each connection, and
/// renewed files count from the next one on.
#[derive(Clone)]
pub(super) struct Connector {
    config: Arc<ClientConfig>,
    /// The host's name must be right, so it must be one.
    named: bool,
}

impl Connector {
    pub(super) fn new(tls: &Tls) -> Result<Self, Error> {
        tls.check().map_err(|error| Error::Unready(error.to_string()))?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mode = tls.effective();
        let trust = match (mode, &tls.ca) {
            (TlsMode::VerifyCa | TlsMode::VerifyFull, Some(ca)) => Some(trust(ca)?),
            _ => None,
        };
        let named = mode == TlsMode::VerifyFull;
        let verifier = Arc::new(Verifier { trust, named, provider: Arc::clone(&provider) });
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| Error::Unready(format!("TLS cannot be used: {error}")))?
            .dangerous()
            .with_custom_certificate_verifier(verifier);
        let mut config = match &tls.client {
            None => builder.with_no_client_auth(),
            Some(client) => with_client(builder, client)?,
        };
        // What PostgreSQL 17 and later ask for where TLS comes first; others ignore it.
        config.alpn_protocols = vec![b"postgresql".to_vec()];
        Ok(Self { config: Arc::new(config), named })
    }

    fn name(&self, host: &str) -> io::Result<ServerName<'static>> {
        match ServerName::try_from(host.to_owned()) {
            Ok(name) => Ok(name),
            // Nobody looks at it: an address, which is not sent.
            Err(_) if !self.named => Ok(ServerName::IpAddress(IpAddr::V4(Ipv4Addr::UNSPECIFIED).into())),
            Err(_) => Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                rustls::Error::General(format!(
                    "verify-full needs a host name to verify, and {host:?} is none"
                )),
            )),
        }
    }

    /// Shakes hands over `socket` with the server that is called `host`.
    pub(super) async fn secure<S>(self, host: &str, socket: S) -> io::Result<Secured<S>>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let name = self.name(host)?;
        let stream = TlsConnector::from(self.config).connect(name, socket).await?;
        Ok(Secured(stream))
    }
}

type Builder = rustls::ConfigBuilder<ClientConfig, rustls::client::WantsClientCert>;

fn with_client(builder: Builder, client: &ClientCertificate) -> Result<ClientConfig, Error> {
    let ClientCertificate { certificate, key } = client;
    let chain = certificates(certificate, "sslcert")?;
    let pem = read(key, "sslkey")?;
    let secret = PrivateKeyDer::from_pem_slice(&pem).map_err(|_| {
        Error::Unready(format!("{} (sslkey) holds no private key in PEM without a passphrase", key.display()))
    })?;
    builder.with_client_auth_cert(chain, secret).map_err(|error| {
        Error::Unready(format!(
            "{} and {} do not fit together: {error}",
            certificate.display(),
            key.display()
        ))
    })
}

fn read(path: &Path, what: &str) -> Result<Vec<u8>, Error> {
    fs::read(path)
        .map_err(|error| Error::Unready(format!("cannot read {} ({what}): {error}", path.display())))
}

fn certificates(path: &Path, what: &str) -> Result<Vec<CertificateDer<'static>>, Error> {
    let pem = read(path, what)?;
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    all.ok()
        .filter(|all| !all.is_empty())
        .ok_or_else(|| Error::Unready(format!("{} ({what}) holds no certificate in PEM", path.display())))
}

/// Who vouches.
#[derive(Debug)]
struct Trust {
    roots: RootCertStore,
    /// The certificates of the file, byte by byte: a server may show one of them itself.
    exact: Vec<CertificateDer<'static>>,
}

fn trust(ca: &Authority) -> Result<Trust, Error> {
    let mut roots = RootCertStore::empty();
    let exact = match ca {
        Authority::System => {
            let found = rustls_native_certs::load_native_certs();
            roots.add_parsable_certificates(found.certs);
            Vec::new()
        }
        Authority::File(path) => {
            let all = certificates(path, "sslrootcert")?;
            roots.add_parsable_certificates(all.iter().cloned());
            all
        }
    };
    if roots.is_empty() {
        let place = match ca {
            Authority::System => "this machine".to_owned(),
            Authority::File(path) => path.display().to_string(),
        };
        return Err(Error::Unready(format!("{place} has no usable authority for TLS to the database")));
    }
    Ok(Trust { roots, exact })
}

#[derive(Debug)]
struct Verifier {
    /// `None`: whoever it is.
    trust: Option<Trust>,
    named: bool,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let Some(trust) = &self.trust else { return Ok(ServerCertVerified::assertion()) };
        let certificate = ParsedCertificate::try_from(end_entity)?;
        let algorithms = self.provider.signature_verification_algorithms.all;
        let signed = verify_server_cert_signed_by_trust_anchor(
            &certificate,
            &trust.roots,
            intermediates,
            now,
            algorithms,
        );
        match signed {
            // A self-signed certificate is often its own authority, and then given as such.
            Err(error) if is_authority(&error) && trust.exact.iter().any(|known| known == end_entity) => {}
            signed => signed?,
        }
        if self.named {
            verify_server_name(&certificate, server_name)?;
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// The one complaint is that an authority's certificate serves as a server's; the times have been checked by then.
fn is_authority(error: &rustls::Error) -> bool {
    let rustls::Error::InvalidCertificate(rustls::CertificateError::Other(other)) = error else {
        return false;
    };
    matches!(other.0.downcast_ref::<webpki::Error>(), Some(webpki::Error::CaUsedAsEndEntity))
}

/// A secure connection.
pub(super) struct Secured<S>(tokio_rustls::client::TlsStream<S>);

impl<S> Secured<S> {
    /// What SCRAM-SHA-256-PLUS binds the exchange to (RFC 5929, tls-server-end-point); `None` for certificates whose
    /// signature names no hash.
    pub(super) fn end_point(&self) -> Option<Vec<u8>> {
        let (_, session) = self.0.get_ref();
        certificate_hash(session.peer_certificates()?.first()?)
    }
}

impl<S: Peek> Peek for Secured<S> {
    fn holds_input(&self) -> bool {
        self.0.get_ref().0.holds_input()
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> TlsStream for Secured<S> {
    fn channel_binding(&self) -> ChannelBinding {
        self.end_point().map_or_else(ChannelBinding::none, ChannelBinding::tls_server_end_point)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Secured<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, out)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Secured<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

/// A connector that knows the server's name.
pub(super) struct Named {
    connector: Connector,
    host: String,
}

impl<S: AsyncRead + AsyncWrite + Unpin + Send + 'static> MakeTlsConnect<S> for Connector {
    type Stream = Secured<S>;
    type TlsConnect = Named;
    type Error = io::Error;

    fn make_tls_connect(&mut self, host: &str) -> io::Result<Named> {
        Ok(Named { connector: self.clone(), host: host.to_owned() })
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin + Send + 'static> TlsConnect<S> for Named {
    type Stream = Secured<S>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Secured<S>>> + Send>>;

    fn connect(self, stream: S) -> Self::Future {
        Box::pin(async move { self.connector.secure(&self.host, stream).await })
    }
}

/// What an exchange is bound to by `tls-server-end-point` (RFC 5929): the certificate's (DER) hash by the hash of its own
/// signature, with MD5 and SHA-1 replaced by SHA-256. `None` for signatures that name no hash.
pub fn certificate_hash(certificate: &[u8]) -> Option<Vec<u8>> {
    Some(match signature_hash(certificate)? {
        Hash::Sha224 => Sha224::digest(certificate).to_vec(),
        Hash::Sha256 => Sha256::digest(certificate).to_vec(),
        Hash::Sha384 => Sha384::digest(certificate).to_vec(),
        Hash::Sha512 => Sha512::digest(certificate).to_vec(),
    })
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Hash {
    Sha224,
    Sha256,
    Sha384,
    Sha512,
}

const SEQUENCE: u8 = 0x30;
const OBJECT: u8 = 0x06;
const EXPLICIT_0: u8 = 0xa0;

/// Which hash the certificate was signed with: `SEQUENCE { tbsCertificate, AlgorithmIdentifier, signature }`.
fn signature_hash(certificate: &[u8]) -> Option<Hash> {
    let (fields, _) = der(certificate, SEQUENCE)?;
    let (_, rest) = der(fields, SEQUENCE)?;
    let (algorithm, _) = der(rest, SEQUENCE)?;
    let (name, parameters) = der(algorithm, OBJECT)?;
    match name {
        // RSASSA-PSS names its hash in the parameters; SHA-1 when it does not.
        [0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x0a] => {
            let (parameters, _) = der(parameters, SEQUENCE)?;
            let Some((hash, _)) = der(parameters, EXPLICIT_0) else { return Some(Hash::Sha256) };
            let (hash, _) = der(hash, SEQUENCE)?;
            match der(hash, OBJECT)?.0 {
                [0x2b, 0x0e, 0x03, 0x02, 0x1a] => Some(Hash::Sha256),
                [0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, which] => match which {
                    1 => Some(Hash::Sha256),
                    2 => Some(Hash::Sha384),
                    3 => Some(Hash::Sha512),
                    4 => Some(Hash::Sha224),
                    _ => None,
                },
                _ => None,
            }
        }
        // PKCS #1.
        [0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, which] => match which {
            4 | 5 | 11 => Some(Hash::Sha256),
            12 => Some(Hash::Sha384),
            13 => Some(Hash::Sha512),
            14 => Some(Hash::Sha224),
            _ => None,
        },
        // ECDSA.
        [0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x01] => Some(Hash::Sha256),
        [0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, which] => match which {
            1 => Some(Hash::Sha224),
            2 => Some(Hash::Sha256),
            3 => Some(Hash::Sha384),
            4 => Some(Hash::Sha512),
            _ => None,
        },
        _ => None,
    }
}

/// Content of the element at the start of `bytes` if it has this tag, and what follows it.
fn der(bytes: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    let [found, short, rest @ ..] = bytes else { return None };
    if *found != tag {
        return None;
    }
    let (length, rest) = if *short < 0x80 {
        (usize::from(*short), rest)
    } else {
        let count = usize::from(*short & 0x7f);
        let digits = rest.get(..count).filter(|_| (1..=4).contains(&count))?;
        let length = digits.iter().fold(0, |length, digit| length << 8 | usize::from(*digit));
        (length, &rest[count..])
    };
    Some((rest.get(..length)?, &rest[length..]))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, PKCS_ED25519};

    use super::*;

    #[test]
    fn the_hash_is_the_one_of_the_signature() {
        for (algorithm, hash, length) in [
            (&PKCS_ECDSA_P256_SHA256, Some(Hash::Sha256), 32),
            (&PKCS_ECDSA_P384_SHA384, Some(Hash::Sha384), 48),
            (&PKCS_ED25519, None, 0),
        ] {
            let key = KeyPair::generate_for(algorithm).expect("a key");
            let certificate =
                CertificateParams::new(vec!["db".to_owned()]).expect("a name").self_signed(&key);
            let certificate = certificate.expect("signed");
            assert_eq!(signature_hash(certificate.der()), hash);
            assert_eq!(certificate_hash(certificate.der()).map_or(0, |hash| hash.len()), length);
        }
    }

    proptest! {
        #[test]
        fn bytes_that_are_no_certificate_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = certificate_hash(&bytes);
            let mut nested = vec![0x30, 0x82, 0xff, 0xff, 0x30, 0x84];
            nested.extend(bytes);
            let _ = certificate_hash(&nested);
        }
    }
}
