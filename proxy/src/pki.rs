//! Certificates of the link between nodes: one authority, one certificate per node with its name as DNS name, and the zones
//! and resources that it is for as URIs ([`replicator::link::Peer`]).

use std::fs::OpenOptions;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use replicator::link::{resource_uri, zone_uri};

/// Certificates could not be made.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// A name, key or certificate does not work.
    #[error("cannot make a certificate for {what}")]
    Make {
        /// Whose.
        what: String,
        /// Why.
        source: rcgen::Error,
    },
    /// No node is called so.
    #[error("{0:?} is no name of a node: letters, digits, - . _ as in node.name")]
    Name(String),
    /// A file could not be read or written.
    #[error("cannot {doing} {path}")]
    File {
        /// `read` or `write`.
        doing: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

fn cannot(what: &str) -> impl Fn(rcgen::Error) -> PkiError {
    move |source| PkiError::Make { what: what.to_owned(), source }
}

fn file(doing: &'static str, path: &Path) -> impl Fn(std::io::Error) -> PkiError {
    let path = path.to_owned();
    move |source| PkiError::File { doing, path: path.clone(), source }
}

/// Whom a certificate is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Holder<'a> {
    /// The node's name.
    pub node: &'a str,
    /// Zones whose halves of streams it may run; none: the certificate does not limit that.
    pub zones: &'a [&'a str],
    /// Resources whose streams it may take part in; none: the certificate does not limit that.
    pub resources: &'a [String],
}

impl<'a> From<&'a str> for Holder<'a> {
    /// By its name, with a certificate that limits nothing.
    fn from(node: &'a str) -> Self {
        Self { node, zones: &[], resources: &[] }
    }
}

/// Makes `ca.pem` with its key, and `<node>.pem`, `<node>.key` for each node; returns the files that were made. Files that
/// exist are kept: with the authority's key still there, further nodes can be added later.
pub fn make<'a, H: Into<Holder<'a>> + Copy>(
    directory: &Path,
    holders: &[H],
) -> Result<Vec<PathBuf>, PkiError> {
    std::fs::create_dir_all(directory).map_err(file("write", directory))?;
    let mut made = Vec::new();
    let issuer = authority(directory, &mut made)?;
    for holder in holders {
        let Holder { node, zones, resources } = (*holder).into();
        let named = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
        if !node.starts_with(|c: char| c.is_ascii_alphanumeric()) || !node.chars().all(named) {
            return Err(PkiError::Name(node.to_owned()));
        }
        let (path, key_path) = (directory.join(format!("{node}.pem")), directory.join(format!("{node}.key")));
        if path.exists() {
            continue;
        }
        let fails = cannot(node);
        let key = KeyPair::generate().map_err(&fails)?;
        let mut params = CertificateParams::new(vec![node.to_owned()]).map_err(&fails)?;
        let uris = zones.iter().map(|zone| zone_uri(zone));
        for uri in uris.chain(resources.iter().map(|name| resource_uri(name))) {
            params.subject_alt_names.push(SanType::URI(uri.try_into().map_err(&fails)?));
        }
        params.distinguished_name.push(DnType::CommonName, node);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        let certificate = params.signed_by(&key, &issuer).map_err(&fails)?;
        // Of a call that broke off: nobody was given a certificate for it.
        match std::fs::remove_file(&key_path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(file("write", &key_path)(error));
            }
            _ => {}
        }
        write_new(&key_path, &key.serialize_pem(), 0o600)?;
        write_new(&path, &certificate.pem(), 0o644)?;
        made.extend([path, key_path]);
    }
    Ok(made)
}

fn authority(directory: &Path, made: &mut Vec<PathBuf>) -> Result<Issuer<'static, KeyPair>, PkiError> {
    let (path, key_path) = (directory.join("ca.pem"), directory.join("ca.key"));
    let fails = cannot("the authority");
    if path.exists() {
        let read = |path: &Path| std::fs::read_to_string(path).map_err(file("read", path));
        let key = KeyPair::from_pem(&read(&key_path)?).map_err(&fails)?;
        return Issuer::from_ca_cert_pem(&read(&path)?, key).map_err(&fails);
    }
    // An earlier call may have broken off after it; it is the authority's, and never replaced.
    let kept = key_path.exists();
    let key = if kept {
        KeyPair::from_pem(&std::fs::read_to_string(&key_path).map_err(file("read", &key_path))?)
    } else {
        KeyPair::generate()
    };
    let key = key.map_err(&fails)?;
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "godwit link authority");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let certificate = params.self_signed(&key).map_err(&fails)?;
    if !kept {
        write_new(&key_path, &key.serialize_pem(), 0o600)?;
    }
    write_new(&path, &certificate.pem(), 0o644)?;
    made.push(path);
    made.extend((!kept).then_some(key_path));
    Ok(Issuer::new(params, key))
}

fn write_new(path: &Path, text: &str, mode: u32) -> Result<(), PkiError> {
    let fails = file("write", path);
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path).map_err(&fails)?;
    file.write_all(text.as_bytes()).map_err(&fails)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn makes_an_authority_once_and_adds_nodes_later() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let made = make(directory.path(), &["a"]).expect("first call");
        assert_eq!(made.len(), 4);
        let authority = std::fs::read(directory.path().join("ca.pem")).expect("ca.pem");
        let made = make(directory.path(), &["a", "b"]).expect("second call");
        assert_eq!(made.len(), 2, "only node b is new");
        // A call that broke off between a key and its certificate.
        let key = |name: &str| std::fs::read(directory.path().join(name)).expect("a key");
        let (of_node, of_authority) = (key("b.key"), key("ca.key"));
        std::fs::remove_file(directory.path().join("b.pem")).expect("b.pem");
        make(directory.path(), &["b"]).expect("it goes on");
        assert_ne!(key("b.key"), of_node);
        let another = tempfile::tempdir().expect("temporary directory");
        std::fs::write(another.path().join("ca.key"), &of_authority).expect("ca.key");
        make(another.path(), &["a"]).expect("with the key that there is");
        assert_eq!(std::fs::read(another.path().join("ca.key")).expect("ca.key"), of_authority);
        for wrong in ["bad name", "", "../b", "-b"] {
            assert!(matches!(make(directory.path(), &[wrong]), Err(PkiError::Name(_))), "{wrong:?}");
        }
        assert_eq!(std::fs::read(directory.path().join("ca.pem")).expect("ca.pem"), authority);
    }
}
