//! The NBD protocol: a codec without I/O, a server and a client.
//!
//! * [`proto`]: bytes to values and back; no I/O, no clock.
//! * [`server`]: serves any [`backstay_blockdev::BlockDevice`], over TCP and Unix sockets.
//! * [`client`]: another server's export as a [`backstay_blockdev::BlockDevice`].
//!
//! What is supported and what is declined, and why, is in mountd/docs/PROTOCOLS.md. Clauses cited
//! as "proto.md" are headings of the protocol's own text, doc/proto.md of the NBD project.

#![forbid(unsafe_code)]

pub mod client;
mod error;
#[cfg(feature = "testkit")]
pub mod fuzz;
pub mod proto;
pub mod server;

pub use error::{Error, ErrorKind};
