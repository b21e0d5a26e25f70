//! TLS: the certificates that the machine trusts, and those of a setting.

use std::path::Path;
use std::sync::{Arc, OnceLock};

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};

use crate::{Error, ErrorKind, Result};

/// The machine's own, read once: there are more than a hundred. A machine without any can still use registries on
/// loopback.
fn machines() -> &'static RootCertStore {
    static ROOTS: OnceLock<RootCertStore> = OnceLock::new();
    ROOTS.get_or_init(|| {
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        roots
    })
}

/// A client that believes the machine's authorities, and those in `extra`, a PEM file.
pub(crate) fn client(extra: Option<&Path>) -> Result<ClientConfig> {
    let mut roots = machines().clone();
    if let Some(path) = extra {
        let invalid = |e: Box<dyn std::error::Error + Send + Sync>| {
            Error::caused(ErrorKind::Invalid, format!("cannot use the certificates in {}", path.display()), e)
        };
        let found = CertificateDer::pem_file_iter(path).map_err(|e| invalid(e.into()))?;
        let mut count = 0;
        for certificate in found {
            roots.add(certificate.map_err(|e| invalid(e.into()))?).map_err(|e| invalid(e.into()))?;
            count += 1;
        }
        if count == 0 {
            let message = format!("{} has no certificate in PEM", path.display());
            return Err(Error::new(ErrorKind::Invalid, message));
        }
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| Error::caused(ErrorKind::Invalid, "cannot set up TLS", e))?;
    Ok(builder.with_root_certificates(roots).with_no_client_auth())
}
