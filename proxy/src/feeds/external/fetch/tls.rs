//! TLS to services: rustls with ring; this machine's authorities, or those of a PEM file.

use std::path::Path;
use std::sync::Arc;

use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;

/// Reads the authorities and makes a client of them; why not, if that fails.
pub(crate) fn client(authority: Option<&Path>) -> Result<Arc<ClientConfig>, String> {
    let mut roots = RootCertStore::empty();
    match authority {
        None => {
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        }
        Some(path) => {
            let all = CertificateDer::pem_file_iter(path)
                .and_then(Iterator::collect::<Result<Vec<_>, _>>)
                .map_err(|error| format!("{} (ca) cannot be read: {error}", path.display()))?;
            roots.add_parsable_certificates(all);
        }
    }
    if roots.is_empty() {
        let place = authority.map_or_else(|| "this machine".to_owned(), |path| path.display().to_string());
        return Err(format!("{place} has no usable authority for TLS"));
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| format!("TLS cannot be used: {error}"))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(Arc::new(config))
}
