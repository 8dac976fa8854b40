//! iSCSI's bytes: PDUs, text, negotiation, login. No I/O, no clock, no randomness of its own.

pub mod chap;
pub mod digest;
pub mod login;
mod name;
pub mod params;
pub mod pdu;
mod serial;
pub mod text;

pub use name::{InitiatorName, is_name};
pub use pdu::BHS_BYTES;
pub use serial::Serial;

/// Most bytes of data in a PDU that we take in the full feature phase.
pub const MAX_RECV_DATA_SEGMENT_BYTES: u32 = 256 << 10;

use std::fmt;

/// Bytes that do not follow the protocol: what is wrong, with the offending value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct Malformed {
    what: &'static str,
    value: u64,
}

impl Malformed {
    pub(crate) fn new(what: &'static str, value: impl Into<u64>) -> Self {
        Self { what, value: value.into() }
    }
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({:#x})", self.what, self.value)
    }
}
