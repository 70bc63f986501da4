//! Certificates and keys of this node's own listeners: PEM files, and what is made of them again when they change.
//!
//! Who listens decides what a change becomes ([`Watched`] holds any value); nothing here opens a socket or starts a task.

use std::collections::HashMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::SystemTime;

use anyhow::{Context as _, Result};
use arc_swap::ArcSwap;
use rustls::RootCertStore;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;

use crate::lock::lock;

/// The cryptography of this process.
pub fn provider() -> Arc<CryptoProvider> {
    CryptoProvider::get_default()
        .cloned()
        .unwrap_or_else(|| Arc::new(rustls::crypto::ring::default_provider()))
}

/// The certificates of a PEM file, at least one. `what` is the key of the configuration that names it.
pub fn certificates(path: &Path, what: &str) -> Result<Vec<CertificateDer<'static>>> {
    let found = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let found = found.with_context(|| unusable(path, what))?;
    anyhow::ensure!(!found.is_empty(), "{} has no certificate ({what})", path.display());
    Ok(found)
}

/// The private key of a PEM file.
pub fn key(path: &Path, what: &str) -> Result<PrivateKeyDer<'static>> {
    PrivateKeyDer::from_pem_file(path).with_context(|| unusable(path, what))
}

/// The authorities of a PEM file.
pub fn authorities(path: &Path, what: &str) -> Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path, what)? {
        roots.add(certificate).with_context(|| unusable(path, what))?;
    }
    Ok(roots)
}

fn unusable(path: &Path, what: &str) -> String {
    format!("cannot use {} ({what})", path.display())
}

/// A value made of files, made again when one of them changed. Files that do not fit leave what was there.
pub struct Watched<T> {
    what: String,
    files: Vec<PathBuf>,
    make: Box<dyn Fn() -> Result<T> + Send + Sync>,
    current: ArcSwap<T>,
    seen: Mutex<Seen>,
}

#[derive(Default)]
struct Seen {
    made: Vec<Option<SystemTime>>,
    refused: Option<Vec<Option<SystemTime>>>,
}

impl<T> Watched<T> {
    /// Makes the first. `what` names it in the log.
    pub fn new(
        what: impl Into<String>,
        files: Vec<PathBuf>,
        make: impl Fn() -> Result<T> + Send + Sync + 'static,
    ) -> Result<Self> {
        // Looked at first: a change while it is made is then seen as one.
        let seen = Seen { made: changed(&files), refused: None };
        let current = ArcSwap::from_pointee(make()?);
        Ok(Self { what: what.into(), files, make: Box::new(make), current, seen: Mutex::new(seen) })
    }

    /// As [`Watched::new`], with `before` until the files fit.
    pub fn after(
        what: impl Into<String>,
        files: Vec<PathBuf>,
        make: impl Fn() -> Result<T> + Send + Sync + 'static,
        before: Arc<T>,
    ) -> Self {
        let watched = Self {
            what: what.into(),
            files,
            make: Box::new(make),
            current: ArcSwap::new(before),
            seen: Mutex::default(),
        };
        watched.look();
        watched
    }

    /// The value of this moment.
    pub fn current(&self) -> Arc<T> {
        self.current.load_full()
    }

    /// Looks at the files once.
    pub fn look(&self) {
        let mut seen = lock(&self.seen);
        let now = changed(&self.files);
        if now == seen.made {
            return;
        }
        match (self.make)() {
            Ok(value) => {
                self.current.store(Arc::new(value));
                *seen = Seen { made: now, refused: None };
                tracing::info!(what = self.what, "new certificates");
            }
            // A certificate is often there a moment before its key.
            Err(error) if seen.refused.as_ref() != Some(&now) => {
                tracing::warn!(
                    what = self.what,
                    error = format!("{error:#}"),
                    "certificates stay as they were"
                );
                seen.refused = Some(now);
            }
            Err(_) => {}
        }
    }
}

impl<T> fmt::Debug for Watched<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watched").field("what", &self.what).finish_non_exhaustive()
    }
}

fn changed(files: &[PathBuf]) -> Vec<Option<SystemTime>> {
    files.iter().map(|path| std::fs::metadata(path).and_then(|metadata| metadata.modified()).ok()).collect()
}

/// Certificates by the name a client asks for (SNI): an exact name, then a wildcard of one label, then the first.
#[derive(Debug)]
pub struct ByName {
    exact: HashMap<String, Arc<CertifiedKey>>,
    /// By what follows `*.`.
    wildcards: HashMap<String, Arc<CertifiedKey>>,
    first: Arc<CertifiedKey>,
}

impl ByName {
    /// Of pairs of PEM files, certificate chain and key. A name that several have belongs to the first.
    pub fn read(pairs: &[(PathBuf, PathBuf)], what: &str) -> Result<Self> {
        let provider = provider();
        let (mut exact, mut wildcards, mut first) = (HashMap::new(), HashMap::new(), None);
        for (cert, private) in pairs {
            let chain = certificates(cert, what)?;
            let own = CertifiedKey::from_der(chain, key(private, what)?, &provider).with_context(|| {
                format!("{} and {} do not belong together ({what})", cert.display(), private.display())
            })?;
            let own = Arc::new(own);
            let leaf = webpki::EndEntityCert::try_from(&own.cert[0]).with_context(|| unusable(cert, what))?;
            for name in leaf.valid_dns_names() {
                let name = name.to_ascii_lowercase();
                match name.strip_prefix("*.") {
                    Some(rest) => wildcards.entry(rest.to_owned()).or_insert_with(|| own.clone()),
                    None => exact.entry(name).or_insert_with(|| own.clone()),
                };
            }
            first.get_or_insert(own);
        }
        Ok(Self { exact, wildcards, first: first.with_context(|| format!("{what} names no certificate"))? })
    }

    fn find(&self, name: Option<&str>) -> Arc<CertifiedKey> {
        let found = name.and_then(|name| {
            let name = name.trim_end_matches('.').to_ascii_lowercase();
            let wild = || self.wildcards.get(name.split_once('.')?.1);
            self.exact.get(&name).or_else(wild)
        });
        found.unwrap_or(&self.first).clone()
    }
}

impl ResolvesServerCert for ByName {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.find(hello.server_name()))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::pki;

    fn pair(folder: &Path, name: &str) -> (PathBuf, PathBuf) {
        (folder.join(format!("{name}.pem")), folder.join(format!("{name}.key")))
    }

    #[test]
    fn by_name_then_wildcard_then_first() {
        let folder = tempfile::tempdir().unwrap();
        let (one, two) = (folder.path().join("one"), folder.path().join("two"));
        pki::make(&one, &["a.example"]).unwrap();
        pki::make(&two, &["b.example"]).unwrap();
        let pairs = [pair(&one, "a.example"), pair(&two, "b.example")];
        let names = ByName::read(&pairs, "tls").unwrap();
        let of = |name| names.find(name).cert[0].clone();
        assert_eq!(of(Some("a.example")), certificates(&pairs[0].0, "").unwrap()[0]);
        assert_eq!(of(Some("B.example.")), certificates(&pairs[1].0, "").unwrap()[0]);
        assert_eq!(of(Some("c.example")), of(None));
        assert_eq!(of(None), certificates(&pairs[0].0, "").unwrap()[0]);
        let mixed = [(pairs[0].0.clone(), pairs[1].1.clone())];
        assert!(format!("{:#}", ByName::read(&mixed, "tls").unwrap_err()).contains("do not belong together"));
    }

    #[test]
    fn a_file_that_does_not_fit_leaves_what_was_there() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("number");
        let write = |text: &str, at: u64| {
            std::fs::write(&path, text).unwrap();
            let time = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(at);
            std::fs::File::options().write(true).open(&path).unwrap().set_modified(time).unwrap();
        };
        write("1", 1);
        let read = path.clone();
        let watched =
            Watched::new(
                "n",
                vec![path.clone()],
                move || Ok(std::fs::read_to_string(&read)?.parse::<u32>()?),
            );
        let watched = watched.unwrap();
        for (text, at, value) in [("2", 1, 1), ("2", 2, 2), ("no", 3, 2), ("no", 3, 2), ("3", 4, 3)] {
            write(text, at);
            watched.look();
            assert_eq!(*watched.current(), value, "{text} at {at}");
        }
        write("no", 5);
        let read = path.clone();
        let make = move || Ok(std::fs::read_to_string(&read)?.parse::<u32>()?);
        let after = Watched::after("n", vec![path.clone()], make, watched.current());
        assert_eq!(*after.current(), 3);
        write("6", 6);
        after.look();
        assert_eq!(*after.current(), 6);
    }
}
