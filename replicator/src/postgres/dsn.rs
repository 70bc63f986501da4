//! How to reach a database: libpq's connection string, TLS included.
//!
//! `tokio_postgres` reads such strings but knows neither `sslmode=verify-ca` and `verify-full` nor certificates; those are
//! taken out here and kept beside its parameters as [`Tls`]. Combinations that look safer than they are, or that contradict
//! themselves, are refused; nothing is weakened in silence.

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use tokio_postgres::config::SslMode;

/// How much TLS a connection must have; libpq's `sslmode` without `allow`, which would begin in the clear.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum TlsMode {
    /// None.
    Disable,
    /// TLS if the server has it, whoever the server is.
    #[default]
    Prefer,
    /// TLS, whoever the server is. With [`Tls::ca`] the same as [`Self::VerifyCa`], as in libpq.
    Require,
    /// TLS with a server that the authority has signed, whatever its name.
    VerifyCa,
    /// TLS with a server that the authority has signed for the host's name.
    VerifyFull,
}

impl TlsMode {
    /// As it is written.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Disable => "disable",
            Self::Prefer => "prefer",
            Self::Require => "require",
            Self::VerifyCa => "verify-ca",
            Self::VerifyFull => "verify-full",
        }
    }
}

impl FromStr for TlsMode {
    type Err = DsnError;

    fn from_str(text: &str) -> Result<Self, DsnError> {
        let modes = [Self::Disable, Self::Prefer, Self::Require, Self::VerifyCa, Self::VerifyFull];
        modes.into_iter().find(|mode| mode.as_str() == text).ok_or_else(|| match text {
            "allow" => wrong("sslmode=allow begins in the clear", "sslmode=verify-full, or at least prefer"),
            _ => wrong("asks for an unknown sslmode", MODES),
        })
    }
}

/// Who may vouch for the server.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Authority {
    /// The authorities that this machine trusts.
    System,
    /// Certificates in a PEM file: of authorities, or the server's own.
    File(PathBuf),
}

/// What the client shows of itself: PEM files.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ClientCertificate {
    /// Its certificate, and those that lead to the authority.
    pub certificate: PathBuf,
    /// The private key.
    pub key: PathBuf,
}

/// TLS to a database.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Tls {
    /// How much is demanded.
    pub mode: TlsMode,
    /// Who vouches for the server.
    pub ca: Option<Authority>,
    /// What the client shows.
    pub client: Option<ClientCertificate>,
}

impl Tls {
    /// What is wrong with the combination, and what would be right.
    pub fn check(&self) -> Result<(), DsnError> {
        match (self.mode, &self.ca) {
            (TlsMode::VerifyCa | TlsMode::VerifyFull, None) => {
                return Err(wrong(
                    "is to verify the server and names no authority",
                    "sslrootcert (tls.ca): a PEM file, or system",
                ));
            }
            (TlsMode::Prefer | TlsMode::Disable, Some(_)) => {
                return Err(wrong(
                    "names an authority, but the server may go unverified",
                    "sslmode=verify-full",
                ));
            }
            (TlsMode::Require | TlsMode::VerifyCa, Some(Authority::System)) => {
                return Err(wrong(
                    "would take any server with a public certificate",
                    "sslmode=verify-full, which checks the name too",
                ));
            }
            _ => {}
        }
        if self.client.is_some() && matches!(self.mode, TlsMode::Disable | TlsMode::Prefer) {
            return Err(wrong(
                "has a client certificate, but does not demand TLS",
                "sslmode=verify-full, or at least require",
            ));
        }
        Ok(())
    }

    /// [`Self::mode`] with libpq's rule that an authority makes `require` verify.
    pub fn effective(&self) -> TlsMode {
        if self.mode == TlsMode::Require && self.ca.is_some() { TlsMode::VerifyCa } else { self.mode }
    }
}

/// Why a connection string is refused; never quotes a value, which might be a secret.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what}: {right}")]
pub struct DsnError {
    /// What is wrong.
    pub what: String,
    /// What would be right.
    pub right: &'static str,
}

fn wrong(what: impl Into<String>, right: &'static str) -> DsnError {
    DsnError { what: what.into(), right }
}

const NOT_ONE: (&str, &str) = ("is not a connection string", "postgres://USER@HOST:PORT/DATABASE");
const MODES: &str = "disable, prefer, require, verify-ca or verify-full";

/// How to reach a database. It is the parameters of `tokio_postgres` (to which it dereferences) and how TLS is done, so that
/// nobody can connect with the first and forget the second: connect with [`super::connect`].
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Dsn {
    parameters: tokio_postgres::Config,
    /// TLS. Counts for itself: the `sslmode` among the parameters is not looked at.
    pub tls: Tls,
}

impl Dsn {
    /// The same with this TLS.
    #[must_use]
    pub fn with_tls(mut self, tls: Tls) -> Self {
        self.tls = tls;
        self
    }

    /// Reads relative paths of certificates from this folder.
    #[must_use]
    pub fn relative_to(mut self, folder: &Path) -> Self {
        if let Some(Authority::File(path)) = &mut self.tls.ca {
            *path = folder.join(&*path);
        }
        if let Some(client) = &mut self.tls.client {
            client.certificate = folder.join(&client.certificate);
            client.key = folder.join(&client.key);
        }
        self
    }

    /// What `tokio_postgres` is to demand.
    pub(super) fn negotiated(&self) -> tokio_postgres::Config {
        let mut parameters = self.parameters.clone();
        parameters.ssl_mode(match self.tls.mode {
            TlsMode::Disable => SslMode::Disable,
            TlsMode::Prefer => SslMode::Prefer,
            TlsMode::Require | TlsMode::VerifyCa | TlsMode::VerifyFull => SslMode::Require,
        });
        parameters
    }
}

impl Deref for Dsn {
    type Target = tokio_postgres::Config;

    fn deref(&self) -> &tokio_postgres::Config {
        &self.parameters
    }
}

impl DerefMut for Dsn {
    fn deref_mut(&mut self) -> &mut tokio_postgres::Config {
        &mut self.parameters
    }
}

impl From<tokio_postgres::Config> for Dsn {
    fn from(parameters: tokio_postgres::Config) -> Self {
        let mode = match parameters.get_ssl_mode() {
            SslMode::Disable => TlsMode::Disable,
            SslMode::Prefer => TlsMode::Prefer,
            // What is not known yet is at least this.
            _ => TlsMode::Require,
        };
        Self { parameters, tls: Tls { mode, ..Tls::default() } }
    }
}

impl fmt::Debug for Dsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The parameters leave the password out by themselves.
        f.debug_struct("Dsn").field("parameters", &self.parameters).field("tls", &self.tls).finish()
    }
}

impl FromStr for Dsn {
    type Err = DsnError;

    /// Both of libpq's forms: `postgres://…?sslmode=verify-full&sslrootcert=ca.pem` and `host=… sslmode=…`.
    fn from_str(text: &str) -> Result<Self, DsnError> {
        let (rest, found) = if text.starts_with("postgres://") || text.starts_with("postgresql://") {
            from_url(text)?
        } else {
            from_words(text)?
        };
        let parameters = rest.parse().map_err(|_| wrong(NOT_ONE.0, NOT_ONE.1))?;
        let tls = found.tls()?;
        tls.check()?;
        Ok(Self { parameters, tls })
    }
}

/// The keys of TLS, in the order of [`Found`].
const KEYS: [&str; 4] = ["sslmode", "sslrootcert", "sslcert", "sslkey"];

/// Their values, as written.
#[derive(Default)]
struct Found([Option<String>; 4]);

impl Found {
    /// True when the key is one of TLS.
    fn take(
        &mut self,
        key: &str,
        value: impl FnOnce() -> Result<String, DsnError>,
    ) -> Result<bool, DsnError> {
        let Some(at) = KEYS.iter().position(|known| *known == key) else { return Ok(false) };
        if self.0[at].replace(value()?).is_some() {
            return Err(wrong(format!("has {key} twice"), "each key once"));
        }
        Ok(true)
    }

    fn tls(self) -> Result<Tls, DsnError> {
        let [mode, ca, certificate, key] = self.0.map(|value| value.filter(|value| !value.is_empty()));
        let client = match (certificate, key) {
            (None, None) => None,
            (Some(certificate), Some(key)) => {
                Some(ClientCertificate { certificate: certificate.into(), key: key.into() })
            }
            _ => return Err(wrong("has one of sslcert and sslkey", "both: they belong together")),
        };
        let ca = ca.map(|ca| if ca == "system" { Authority::System } else { Authority::File(ca.into()) });
        // As in libpq, the system's authorities are for verifying.
        let default = if ca == Some(Authority::System) { TlsMode::VerifyFull } else { TlsMode::default() };
        let mode = mode.map_or(Ok(default), |mode| mode.parse())?;
        Ok(Tls { mode, ca, client })
    }
}

fn from_url(text: &str) -> Result<(String, Found), DsnError> {
    let mut found = Found::default();
    let Some((base, query)) = text.split_once('?') else { return Ok((text.to_owned(), found)) };
    let mut rest = Vec::new();
    for pair in query.split('&') {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        if !found.take(key, || percent_decoded(value))? {
            rest.push(pair);
        }
    }
    let rest = if rest.is_empty() { base.to_owned() } else { format!("{base}?{}", rest.join("&")) };
    Ok((rest, found))
}

fn percent_decoded(text: &str) -> Result<String, DsnError> {
    let wrong = || wrong("has a value that is no percent-encoded text", "%25 for a percent sign");
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        rest = tail;
        if *first != b'%' {
            bytes.push(*first);
            continue;
        }
        let digits =
            rest.get(..2).filter(|digits| digits.iter().all(u8::is_ascii_hexdigit)).ok_or_else(wrong)?;
        let digits = std::str::from_utf8(digits).map_err(|_| wrong())?;
        bytes.push(u8::from_str_radix(digits, 16).map_err(|_| wrong())?);
        rest = &rest[2..];
    }
    String::from_utf8(bytes).map_err(|_| wrong())
}

/// `key = value` words; values may be quoted and escaped.
fn from_words(text: &str) -> Result<(String, Found), DsnError> {
    let wrong = || wrong(NOT_ONE.0, NOT_ONE.1);
    let mut found = Found::default();
    let (mut kept, mut rest) = (String::new(), text.trim_start());
    while !rest.is_empty() {
        let (key, after) = rest.split_once('=').ok_or_else(wrong)?;
        let after = after.trim_start();
        let (value, length) = word(after).ok_or_else(wrong)?;
        if !found.take(key.trim(), || Ok(value))? {
            kept.push_str(key);
            kept.push('=');
            kept.push_str(&after[..length]);
            kept.push(' ');
        }
        rest = after[length..].trim_start();
    }
    Ok((kept, found))
}

/// A value at the start of `text`, and how long it is as written.
fn word(text: &str) -> Option<(String, usize)> {
    let quoted = text.starts_with('\'');
    let mut value = String::new();
    let mut chars = text.char_indices().skip(usize::from(quoted));
    while let Some((at, c)) = chars.next() {
        match c {
            '\'' if quoted => return Some((value, at + 1)),
            c if c.is_whitespace() && !quoted => return Some((value, at)),
            '\\' => value.push(chars.next()?.1),
            c => value.push(c),
        }
    }
    (!quoted).then_some((value, text.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Dsn, String> {
        text.parse::<Dsn>().map_err(|error| error.to_string())
    }

    #[test]
    fn both_forms_say_the_same() {
        let url = "postgres://app:s%20%3f@db.example:6000/orders?sslmode=verify-full&connect_timeout=3\
                   &sslrootcert=%2Fetc%2Fca%20one.pem&sslcert=c.pem&sslkey=k.pem&channel_binding=require";
        let words = r"host=db.example port = 6000 user=app password='s ?' dbname=orders sslmode = verify-full
                      connect_timeout=3 sslrootcert='/etc/ca one.pem' sslcert=c.pem sslkey=k\.pem channel_binding=require";
        let (url, words) = (read(url).expect("valid"), read(words).expect("valid"));
        assert_eq!(url, words);
        assert_eq!(url.get_password(), Some(&b"s ?"[..]));
        assert_eq!(url.tls.ca, Some(Authority::File("/etc/ca one.pem".into())));
        let there = url.relative_to(Path::new("/conf"));
        assert_eq!(there.tls.ca, Some(Authority::File("/etc/ca one.pem".into())));
        assert_eq!(there.tls.client.expect("given").key, Path::new("/conf/k.pem"));
    }

    #[test]
    fn the_defaults_are_libpqs() {
        assert_eq!(read("host=a user=b").expect("valid").tls, Tls::default());
        let system = read("postgres://a/b?sslrootcert=system").expect("valid").tls;
        assert_eq!((system.mode, system.ca), (TlsMode::VerifyFull, Some(Authority::System)));
        let both = read("postgres://a/b?sslmode=require&sslrootcert=f").expect("valid").tls;
        assert_eq!((both.mode, both.effective()), (TlsMode::Require, TlsMode::VerifyCa));
    }

    #[test]
    fn what_is_unsafe_or_unknown_is_refused_without_quoting_it() {
        for (text, complaint) in [
            ("sslmode=allow", "begins in the clear"),
            ("sslmode=hunter2", "unknown sslmode"),
            ("sslmode=verify-full", "names no authority"),
            ("sslmode=verify-ca", "names no authority"),
            ("sslmode=verify-ca&sslrootcert=system", "would take any server"),
            ("sslmode=require&sslrootcert=system", "would take any server"),
            ("sslmode=prefer&sslrootcert=hunter2", "may go unverified"),
            ("sslrootcert=hunter2", "may go unverified"),
            ("sslmode=disable&sslrootcert=hunter2", "may go unverified"),
            ("sslmode=require&sslcert=hunter2", "belong together"),
            ("sslmode=prefer&sslcert=hunter2&sslkey=k", "does not demand TLS"),
            ("sslmode=require&sslmode=disable", "sslmode twice"),
            ("sslrootcert=%zz", "percent"),
            ("sslpassword=hunter2", "is not a connection string"),
            ("sslcrl=hunter2", "is not a connection string"),
        ] {
            let error = read(&format!("postgres://u:hunter2@h/d?{text}")).expect_err(text);
            assert!(error.contains(complaint) && !error.contains("hunter2"), "{text}: {error}");
            let error = read(&format!("host=h user=u password=hunter2 {}", text.replace('&', " ")));
            if !text.contains('%') {
                let error = error.expect_err(text);
                assert!(error.contains(complaint) && !error.contains("hunter2"), "{text}: {error}");
            }
        }
        for text in ["host", "host='a", "host=a \\"] {
            read(text).expect_err(text);
        }
        assert!(!format!("{:?}", read("host=h password=hunter2").expect("valid")).contains("hunter2"));
    }
}
