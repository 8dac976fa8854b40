//! Another server's export as a [`backstay_blockdev::BlockDevice`]; blocking, for callers on threads.
//!
//! Nothing the server says is believed unchecked: lengths before they size anything, cookies before
//! data is taken, ranges before they count as read. A reply that does not cover the whole request is
//! an error, never zeros (CVE-2022-0485), and a size that is negative as a signed number is refused
//! (CVE-2023-5215). A connection whose server broke the protocol is never used again.

mod connection;
mod handshake;
mod remote;
mod reply;
mod uri;

use std::time::Duration;

use crate::error::Error;
pub use remote::Remote;
pub(crate) use uri::percent_encode;
pub use uri::{Address, NbdUri};

/// How to connect, and how patient to be.
#[derive(Debug, Clone)]
pub struct Client {
    /// From connecting until the export is chosen.
    pub handshake_timeout: Duration,
    /// How long the server may be silent while it owes an answer.
    pub reply_timeout: Duration,
    /// Connections at once, if the server allows several: as many requests run in parallel.
    pub connections: usize,
}

impl Default for Client {
    fn default() -> Self {
        Self {
            handshake_timeout: Duration::from_secs(10),
            reply_timeout: Duration::from_secs(120),
            connections: 4,
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
}
