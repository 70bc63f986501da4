//! Throw-away certificates for the playground's link: one authority, one certificate per node, its name as DNS name.

use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};

/// Certificates could not be made or written.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// A certificate could not be made.
    #[error("cannot make a certificate")]
    Make(#[from] rcgen::Error),
    /// A file could not be written.
    #[error("cannot write {path}")]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

/// Writes `ca.pem`, and `NAME.pem` and `NAME.key` for each node, into `directory`. The authority's key is not kept.
pub fn make(directory: &Path, nodes: &[&str]) -> Result<(), CertificateError> {
    std::fs::create_dir_all(directory)
        .map_err(|source| CertificateError::Write { path: directory.to_owned(), source })?;
    let mut authority = CertificateParams::new(Vec::new())?;
    authority.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    authority.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    authority.distinguished_name.push(DnType::CommonName, "godwit playground");
    let authority_key = KeyPair::generate()?;
    write(&directory.join("ca.pem"), &authority.self_signed(&authority_key)?.pem())?;
    let issuer = Issuer::new(authority, authority_key);
    for node in nodes {
        let mut params = CertificateParams::new(vec![(*node).to_owned()])?;
        params.distinguished_name.push(DnType::CommonName, *node);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &issuer)?;
        write(&directory.join(format!("{node}.pem")), &certificate.pem())?;
        write(&directory.join(format!("{node}.key")), &key.serialize_pem())?;
    }
    Ok(())
}

fn write(path: &Path, text: &str) -> Result<(), CertificateError> {
    use std::io::Write;
    std::fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)
        .and_then(|mut file| file.write_all(text.as_bytes()))
        .map_err(|source| CertificateError::Write { path: path.to_owned(), source })
}
