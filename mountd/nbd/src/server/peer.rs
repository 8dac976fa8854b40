//! Who a client is, as far as the server can tell.

use backstay_serve::Peer;

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
