//! What the servers of all doors share: listening sockets, who may connect, threads and event loops, buffers in
//! front of a socket and behind it. It knows no protocol.

#![forbid(unsafe_code)]

mod accept;
mod admission;
mod error;
mod listen;
mod out;
mod peer;
mod pool;
mod prefix;
mod threads;
mod wire;

pub use accept::{Connection, accept_all, stop_asked};
pub use admission::{Admission, Limits, Permit, Source};
pub use error::{Error, ErrorKind};
pub use listen::{Accepted, BoundAddress, Listen, Listener};
pub use out::{Out, SMALL_BYTES, Segment};
pub use peer::Peer;
pub use pool::Pool;
pub use prefix::IpPrefix;
pub use threads::Threads;
pub use wire::{Filled, Socket, Stream, Wire, retry};
