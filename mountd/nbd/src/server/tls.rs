//! TLS: certificates from files, and a connection's records (proto.md, "TLS support").

use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConnection};

use super::der;
use super::negotiation::TlsPolicy;
use super::peer::ClientCertificate;
use crate::error::{Error, ErrorKind};

/// Records are read from the socket into a buffer of this size.
const INCOMING_BYTES: usize = 64 << 10;
/// Plain text that is turned into records before the socket has taken them.
const OUTGOING_BYTES: usize = 256 << 10;

/// Whether clients must show a certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClientCertificates {
    /// None is asked for.
    Ignored,
    /// One that is shown must be good, by the authorities in this PEM file.
    Optional(PathBuf),
    /// One must be shown and be good, by the authorities in this PEM file.
    Required(PathBuf),
}

/// Where the parts of a [`TlsConfig`] are, as PEM files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    /// The server's certificate, then those that lead to its authority.
    pub certificate: PathBuf,
    /// The certificate's private key: PKCS #8, PKCS #1 or SEC 1, not encrypted.
    pub key: PathBuf,
    /// What clients must show.
    pub clients: ClientCertificates,
}

/// What a server needs for TLS 1.2 and 1.3.
#[derive(Debug)]
pub struct TlsConfig {
    files: TlsFiles,
    current: RwLock<Arc<rustls::ServerConfig>>,
}

impl TlsConfig {
    /// Reads the files.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`], with the file that cannot be used and why.
    pub fn from_pem(files: TlsFiles) -> Result<Arc<Self>, Error> {
        let current = RwLock::new(load(&files)?);
        Ok(Arc::new(Self { files, current }))
    }

    /// Reads the files again. Connections that are there keep what they have; new ones get the new
    /// certificates. After an error the old ones stay in use.
    ///
    /// # Errors
    /// Those of [`TlsConfig::from_pem`].
    pub fn reload(&self) -> Result<(), Error> {
        let new = load(&self.files)?;
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = new;
        Ok(())
    }

    fn current(&self) -> Arc<rustls::ServerConfig> {
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// When connections are encrypted.
#[derive(Debug, Clone, Default)]
pub enum Tls {
    /// Never: STARTTLS is declined. For Unix sockets, the loopback, and tunnels.
    #[default]
    Off,
    /// When the client asks for it. Protects nobody from a network that takes the question away.
    Allowed(Arc<TlsConfig>),
    /// Always: a client that has not started TLS is told nothing but that it must.
    Required(Arc<TlsConfig>),
}

impl Tls {
    pub(super) fn policy(&self) -> TlsPolicy {
        match self {
            Self::Off => TlsPolicy::Off,
            Self::Allowed(_) => TlsPolicy::Allowed,
            Self::Required(_) => TlsPolicy::Required,
        }
    }

    pub(super) fn config(&self) -> Option<&TlsConfig> {
        match self {
            Self::Off => None,
            Self::Allowed(config) | Self::Required(config) => Some(config),
        }
    }
}

fn unusable(path: &Path, why: impl std::fmt::Display) -> Error {
    Error::new(ErrorKind::Invalid, format!("cannot use {}: {why}", path.display()))
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, Error> {
    let list = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|e| unusable(path, e))?;
    if list.is_empty() { Err(unusable(path, "there is no certificate in it")) } else { Ok(list) }
}

fn load(files: &TlsFiles) -> Result<Arc<rustls::ServerConfig>, Error> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = rustls::ServerConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
        .map_err(|e| Error::new(ErrorKind::Invalid, format!("cannot set up TLS: {e}")))?;
    let verifier = |path: &Path| {
        let mut roots = RootCertStore::empty();
        for certificate in certificates(path)? {
            roots.add(certificate).map_err(|e| unusable(path, e))?;
        }
        let builder = WebPkiClientVerifier::builder_with_provider(roots.into(), provider.clone());
        Ok::<_, Error>(builder)
    };
    let builder = match &files.clients {
        ClientCertificates::Ignored => builder.with_no_client_auth(),
        ClientCertificates::Optional(path) => {
            let verifier = verifier(path)?.allow_unauthenticated().build();
            builder.with_client_cert_verifier(verifier.map_err(|e| unusable(path, e))?)
        }
        ClientCertificates::Required(path) => {
            let verifier = verifier(path)?.build().map_err(|e| unusable(path, e))?;
            builder.with_client_cert_verifier(verifier)
        }
    };
    let chain = certificates(&files.certificate)?;
    let key = PrivateKeyDer::from_pem_file(&files.key).map_err(|e| unusable(&files.key, e))?;
    // A key that is not that of the certificate is told here.
    let config = builder
        .with_single_cert(chain, key)
        .map_err(|e| unusable(&files.certificate, format!("{e} (key {})", files.key.display())))?;
    Ok(Arc::new(config))
}

/// The TLS of one connection: no socket of its own.
pub(super) struct Records {
    connection: ServerConnection,
    incoming: Box<[u8]>,
    start: usize,
    end: usize,
}

impl std::fmt::Debug for Records {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Records").finish_non_exhaustive()
    }
}

impl Records {
    pub(super) fn new(config: &TlsConfig) -> io::Result<Self> {
        let mut connection = ServerConnection::new(config.current()).map_err(io::Error::other)?;
        connection.set_buffer_limit(Some(OUTGOING_BYTES));
        let incoming = vec![0; INCOMING_BYTES].into_boxed_slice();
        Ok(Self { connection, incoming, start: 0, end: 0 })
    }

    pub(super) fn is_handshaking(&self) -> bool {
        self.connection.is_handshaking()
    }

    /// The certificate the client has shown; only after the handshake.
    pub(super) fn client(&self) -> Option<ClientCertificate> {
        let leaf = self.connection.peer_certificates()?.first()?;
        Some(describe(leaf))
    }

    /// Takes records from the socket and understands them; `Ok(0)` at its end.
    pub(super) fn take(&mut self, socket: &mut impl Read) -> io::Result<usize> {
        if self.start == self.end {
            let n = socket.read(&mut self.incoming)?;
            if n == 0 {
                return Ok(0);
            }
            (self.start, self.end) = (0, n);
        }
        let mut bytes = &self.incoming[self.start..self.end];
        let n = self.connection.read_tls(&mut bytes)?;
        self.start += n;
        self.connection
            .process_new_packets()
            .map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))?;
        Ok(n)
    }

    /// Plain text; `Ok(0)` at the end, with or without a good-bye: NBD tells its own ends.
    pub(super) fn read(&mut self, socket: &mut impl Read, buf: &mut [u8]) -> io::Result<usize> {
        if buf.is_empty() {
            return Ok(0);
        }
        loop {
            match self.connection.reader().read(buf) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(0),
                result => return result,
            }
            if self.take(socket)? == 0 {
                return Ok(0);
            }
        }
    }

    /// Turns plain text into records, once the ones before are gone.
    pub(super) fn write(
        &mut self,
        socket: &mut impl Write,
        slices: &[io::IoSlice<'_>],
    ) -> io::Result<usize> {
        self.flush(socket)?;
        let n = self.connection.writer().write_vectored(slices)?;
        match self.flush(socket) {
            // They are kept; `flush` is asked before anything counts as sent.
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(n),
            result => result.map(|()| n),
        }
    }

    /// Hands all records to the socket; fails with `WouldBlock` when it does not take them all.
    pub(super) fn flush(&mut self, socket: &mut impl Write) -> io::Result<()> {
        while self.connection.wants_write() {
            if self.connection.write_tls(socket)? == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
        }
        Ok(())
    }

    /// Says good-bye, if the socket takes it at once.
    pub(super) fn close(&mut self, socket: &mut impl Write) {
        self.connection.send_close_notify();
        let _ = self.flush(socket);
    }
}

/// What a verified certificate says of its owner.
fn describe(leaf: &CertificateDer<'_>) -> ClientCertificate {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, leaf);
    let mut sha256 = [0; 32];
    sha256.copy_from_slice(digest.as_ref());
    let dns_names = webpki::EndEntityCert::try_from(leaf)
        .map(|end| end.valid_dns_names().map(str::to_owned).collect())
        .unwrap_or_default();
    ClientCertificate { sha256, common_name: der::common_name(leaf), dns_names }
}
