//! What TLS needs to know: whom to trust, and who we are.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};

use super::Client;
use super::uri::{Address, NbdUri};
use crate::error::{Error, ErrorKind};

/// The names of QEMU, libnbd and nbdkit for the files in a directory of certificates.
const CA_CERT: &str = "ca-cert.pem";
const CLIENT_CERT: &str = "client-cert.pem";
const CLIENT_KEY: &str = "client-key.pem";

/// How to do TLS with one server.
#[derive(Debug, Clone)]
pub(super) struct Tls {
    pub(super) config: Arc<ClientConfig>,
    pub(super) name: ServerName<'static>,
}

impl Tls {
    /// Reads the certificates, if the URI asks for TLS.
    pub(super) fn new(uri: &NbdUri, client: &Client) -> Result<Option<Self>, Error> {
        let Some(parameters) = &uri.tls else { return Ok(None) };
        let invalid = |text: String| Error::new(ErrorKind::Invalid, format!("{uri}: {text}"));
        let dir = parameters.certificates.as_ref().or(client.tls_certificates.as_ref());
        let dir = dir.ok_or_else(|| {
            invalid(format!("TLS needs a directory with {CA_CERT} (tls-certificates)"))
        })?;
        let name = match (&parameters.hostname, &client.tls_hostname, &uri.address) {
            (Some(name), _, _) | (None, Some(name), _) => name.clone(),
            (None, None, Address::Tcp(host, _)) => host.clone(),
            (None, None, Address::Unix(_)) => "localhost".to_owned(),
        };
        let name = ServerName::try_from(name.clone())
            .map_err(|_| invalid(format!("{name:?} cannot be the name of a server")))?;
        let config = config(dir)?;
        Ok(Some(Self { config: Arc::new(config), name }))
    }
}

fn bad(path: &Path, error: &dyn std::fmt::Display) -> Error {
    Error::new(ErrorKind::Invalid, format!("{}: {error}", path.display()))
}

fn certificates(path: &PathBuf) -> Result<Vec<CertificateDer<'static>>, Error> {
    let list: Result<Vec<_>, _> =
        CertificateDer::pem_file_iter(path).map_err(|e| bad(path, &e))?.collect();
    let list = list.map_err(|e| bad(path, &e))?;
    if list.is_empty() { Err(bad(path, &"there is no certificate in it")) } else { Ok(list) }
}

fn config(dir: &Path) -> Result<ClientConfig, Error> {
    let ca = dir.join(CA_CERT);
    let mut roots = RootCertStore::empty();
    for certificate in certificates(&ca)? {
        roots.add(certificate).map_err(|e| bad(&ca, &e))?;
    }
    // Named, so that another crate's choice of a default does not matter.
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| bad(dir, &e))?
        .with_root_certificates(roots);
    let (cert, key) = (dir.join(CLIENT_CERT), dir.join(CLIENT_KEY));
    if !cert.exists() {
        return Ok(config.with_no_client_auth());
    }
    let chain = certificates(&cert)?;
    let secret = PrivateKeyDer::from_pem_file(&key).map_err(|e| bad(&key, &e))?;
    config.with_client_auth_cert(chain, secret).map_err(|e| bad(&cert, &e))
}
