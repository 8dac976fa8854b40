//! Who a client is, as far as the server can tell.

use std::net::SocketAddr;

/// Where a client comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Peer {
    /// An IP address and port. An IPv4 client of a dual-stack socket is told by its IPv4 address.
    Tcp(SocketAddr),
    /// A process of this machine, by the kernel's word (`SO_PEERCRED`), as it was when it connected.
    Unix {
        /// Its user.
        uid: u32,
        /// Its group.
        gid: u32,
        /// Its process, where the kernel tells; it may be gone, and the number in use by another.
        pid: Option<i32>,
    },
}

/// A client's certificate, verified against the server's authorities.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ClientCertificate {
    /// SHA-256 of the leaf certificate's DER bytes.
    pub sha256: [u8; 32],
    /// The common name of its subject, if it has one that is text.
    pub common_name: Option<String>,
    /// The DNS names it is for.
    pub dns_names: Vec<String>,
}

/// Who asks.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ClientInfo {
    /// Where the client comes from.
    pub peer: Peer,
    /// The certificate it has proved to own; `None` without TLS, or where none was shown.
    pub certificate: Option<ClientCertificate>,
}
