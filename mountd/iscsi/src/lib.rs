//! iSCSI and SCSI: codecs without I/O, login, a SCSI device over any block device, and a target server.
//!
//! * [`proto`]: PDUs, text, negotiation, login, CHAP: bytes to values and back; no I/O, no clock.
//! * [`scsi`]: a SCSI device whose logical units are [`backstay_blockdev::BlockDevice`]s: commands,
//!   sense, reservations, task sets. It knows nothing of how commands arrive.
//! * [`server`]: a target over TCP.
//!
//! What is supported and what is declined, and why, is in mountd/docs/PROTOCOLS.md. Clauses cited as
//! "RFC 7143" are those of the iSCSI protocol; "SPC-4", "SBC-3" and "SAM-5" are T10's.

#![forbid(unsafe_code)]

mod error;
#[cfg(feature = "testkit")]
pub mod fuzz;
pub mod proto;
pub mod scsi;
pub mod server;

pub use error::{Error, ErrorKind};
