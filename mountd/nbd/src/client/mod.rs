//! Another server's export as a [`backstay_blockdev::BlockDevice`]; blocking, for callers on threads.
//!
//! Nothing the server says is believed unchecked: lengths before they size anything, cookies before
//! data is taken, ranges before they count as read. A reply that does not cover the whole request is
//! an error, never zeros (CVE-2022-0485), and a size that is negative as a signed number is refused
//! (CVE-2023-5215). A connection whose server broke the protocol is never used again.

mod connection;
mod durability;
mod handshake;
mod pool;
mod remote;
mod reply;
mod stream;
mod tls;
mod uri;

use std::path::PathBuf;
use std::time::Duration;

use crate::error::Error;
pub use remote::Remote;
pub(crate) use uri::percent_encode;
pub use uri::{Address, NbdUri, TlsParameters};

/// How to connect, and how patient to be.
#[derive(Debug, Clone)]
pub struct Client {
    /// From connecting until the export is chosen.
    pub handshake_timeout: Duration,
    /// How long the server may be silent while it owes an answer.
    pub reply_timeout: Duration,
    /// Connections at once, if the server allows several.
    pub connections: usize,
    /// Requests at once on each connection; more wait.
    pub in_flight: usize,
    /// How long a request goes on trying when its connection breaks or none can be made. Zero, the
    /// default: it fails at once, and the next request makes a new connection. A server that broke the
    /// protocol, or took longer than `reply_timeout`, is never asked again.
    pub reconnect_timeout: Duration,
    /// The server keeps every change it has acknowledged when it is killed and started anew, flushed or
    /// not. Without it, a flush fails when a connection has broken that had acknowledged changes which
    /// were not flushed, as do all later ones: they may be lost.
    pub server_keeps_writes: bool,
    /// Metadata contexts to ask for, besides `base:allocation`: see [`Remote::status`].
    pub contexts: Vec<String>,
    /// For TLS: a directory with `ca-cert.pem`, and with `client-cert.pem` and `client-key.pem` if the
    /// server wants to know who we are. The URI's own goes before it.
    pub tls_certificates: Option<PathBuf>,
    /// For TLS: the name in the server's certificate. Without it, and without one in the URI, it is the
    /// host that is connected to, or `localhost` for a socket in the file system.
    pub tls_hostname: Option<String>,
}

/// An export that a server lists.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// Its name; the server's word, which may hold any character but NUL.
    pub name: String,
    /// Text for people; may be empty.
    pub description: String,
}

impl Default for Client {
    fn default() -> Self {
        Self {
            handshake_timeout: Duration::from_secs(10),
            reply_timeout: Duration::from_secs(120),
            connections: 4,
            in_flight: 16,
            reconnect_timeout: Duration::ZERO,
            server_keeps_writes: false,
            contexts: Vec::new(),
            tls_certificates: None,
            tls_hostname: None,
        }
    }
}

impl Client {
    /// Attaches an export with the defaults.
    pub fn connect(uri: &NbdUri) -> Result<Remote, Error> {
        Self::default().attach(uri)
    }

    /// Attaches an export.
    pub fn attach(&self, uri: &NbdUri) -> Result<Remote, Error> {
        Remote::open(uri.clone(), self.clone())
    }

    /// The exports that a server lists; the export in `uri` does not matter.
    pub fn list_exports(&self, uri: &NbdUri) -> Result<Vec<Listed>, Error> {
        let tls = tls::Tls::new(uri, self)?;
        let mut setup = connection::Setup::connect(uri, self.handshake_timeout)?;
        let list = handshake::list(&mut setup, tls.as_ref())?;
        Ok(list.into_iter().map(|(name, description)| Listed { name, description }).collect())
    }

    /// The metadata contexts that the server has for an export; empty if it has none, or cannot tell.
    pub fn list_contexts(&self, uri: &NbdUri) -> Result<Vec<String>, Error> {
        let tls = tls::Tls::new(uri, self)?;
        let mut setup = connection::Setup::connect(uri, self.handshake_timeout)?;
        handshake::list_contexts(&mut setup, &uri.export, tls.as_ref())
    }
}
