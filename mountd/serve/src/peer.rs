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
