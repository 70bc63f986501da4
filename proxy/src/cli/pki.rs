//! `godwit pki init`: the certificates of the link.

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};

/// Makes `ca.pem` with its key and `<node>.pem`, `<node>.key` for each node. Files that exist are kept: with the
/// authority's key still there, further nodes can be added later.
pub(super) fn init(directory: &Path, nodes: &[String]) -> Result<ExitCode> {
    for path in make(directory, nodes)? {
        println!("{}", path.display());
    }
    Ok(ExitCode::SUCCESS)
}

/// The same as a function: returns the files that were made.
pub fn make(directory: &Path, nodes: &[String]) -> Result<Vec<PathBuf>> {
    std::fs::create_dir_all(directory).with_context(|| format!("cannot make {}", directory.display()))?;
    let mut made = Vec::new();
    let (ca_path, ca_key_path) = (directory.join("ca.pem"), directory.join("ca.key"));
    let issuer = if ca_path.exists() {
        let read = |path: &Path| {
            std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
        };
        let key = KeyPair::from_pem(&read(&ca_key_path)?).context("the authority's key is not a key")?;
        Issuer::from_ca_cert_pem(&read(&ca_path)?, key).context("ca.pem is not a certificate authority")?
    } else {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "godwit link authority");
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate = params.self_signed(&key)?;
        write_new(&ca_key_path, &key.serialize_pem(), 0o600)?;
        write_new(&ca_path, &certificate.pem(), 0o644)?;
        made.extend([ca_path.clone(), ca_key_path]);
        Issuer::new(params, key)
    };
    for node in nodes {
        let (path, key_path) = (directory.join(format!("{node}.pem")), directory.join(format!("{node}.key")));
        if path.exists() {
            continue;
        }
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(vec![node.clone()])
            .with_context(|| format!("{node:?} cannot be a certificate's name"))?;
        params.distinguished_name.push(DnType::CommonName, node);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let certificate = params.signed_by(&key, &issuer)?;
        write_new(&key_path, &key.serialize_pem(), 0o600)?;
        write_new(&path, &certificate.pem(), 0o644)?;
        made.extend([path, key_path]);
    }
    Ok(made)
}

fn write_new(path: &Path, text: &str, mode: u32) -> Result<()> {
    let mut file: File = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(path)
        .with_context(|| format!("cannot make {}", path.display()))?;
    file.write_all(text.as_bytes()).with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn makes_an_authority_once_and_adds_nodes_later() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let made = make(directory.path(), &["a".into()]).expect("first call");
        assert_eq!(made.len(), 4);
        let authority = std::fs::read(directory.path().join("ca.pem")).expect("ca.pem");
        let made = make(directory.path(), &["a".into(), "b".into()]).expect("second call");
        assert_eq!(made.len(), 2, "only node b is new");
        assert_eq!(std::fs::read(directory.path().join("ca.pem")).expect("ca.pem"), authority);
    }
}
