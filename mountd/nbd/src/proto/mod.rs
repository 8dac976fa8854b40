//! The codec: bytes in, values and bytes out. No I/O and no clock, so both sides and the tests use
//! the same one.
//!
//! All numbers on the wire are big endian (proto.md, "Conventions").

pub mod errno;
pub mod extended;
pub mod handshake;
pub mod transmission;

use std::fmt;

/// proto.md, "Newstyle negotiation": the first eight bytes of every server.
pub const NBD_MAGIC: u64 = 0x4e42_444d_4147_4943;
/// proto.md, "Newstyle negotiation": marks newstyle, and starts every option.
pub const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
/// proto.md, "Oldstyle negotiation": marks a server of the old style, which is refused.
pub const OLDSTYLE_MAGIC: u64 = 0x0000_4202_8186_1253;
/// proto.md, "Fixed newstyle negotiation": starts every reply to an option.
pub const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
/// proto.md, "Request message".
pub const REQUEST_MAGIC: u32 = 0x2560_9513;
/// proto.md, "Simple reply message".
pub const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
/// proto.md, "Structured reply chunk message".
pub const STRUCTURED_REPLY_MAGIC: u32 = 0x668e_33ef;

/// The port of NBD registered with IANA.
pub const DEFAULT_PORT: u16 = 10809;

/// proto.md, "Values", strings: the longest string one side may send.
pub const MAX_STRING_BYTES: usize = 4096;
/// The longest option payload taken: a name of full length and some more.
pub const MAX_OPTION_BYTES: usize = MAX_STRING_BYTES + 512;
/// Options one client may send before it must have chosen an export.
pub const MAX_OPTIONS: usize = 64;
/// Metadata contexts one client may ask for at once; there are two to get.
pub const MAX_QUERIES: usize = 64;
/// proto.md, "Size constraints": the payload every server should take, and the most ours takes.
pub const MAX_PAYLOAD_BYTES: u32 = 32 << 20;
/// Extents in one block status reply; a client asks again from where it ended.
pub const MAX_EXTENTS: usize = 4096;

/// The metadata context that tells what is allocated and what reads as zeros.
pub const BASE_ALLOCATION: &str = "base:allocation";
/// The metadata context that tells where bytes are (mountd/docs/PROTOCOLS.md, "Presence").
pub const BACKSTAY_PRESENCE: &str = "backstay:presence";

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

/// Reads a payload from its front; every step is checked against what is left.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(crate) fn new(rest: &'a [u8]) -> Self {
        Self { rest }
    }

    pub(crate) fn take(&mut self, n: usize) -> Result<&'a [u8], Malformed> {
        match self.rest.split_at_checked(n) {
            Some((head, rest)) => {
                self.rest = rest;
                Ok(head)
            }
            None => Err(Malformed::new("the message is shorter than it says", n as u64)),
        }
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(N)?);
        Ok(out)
    }

    pub(crate) fn u16(&mut self) -> Result<u16, Malformed> {
        self.array().map(u16::from_be_bytes)
    }

    pub(crate) fn u32(&mut self) -> Result<u32, Malformed> {
        self.array().map(u32::from_be_bytes)
    }

    pub(crate) fn u64(&mut self) -> Result<u64, Malformed> {
        self.array().map(u64::from_be_bytes)
    }

    /// A string with its length before it, within the protocol's limit. Lengths are compared before
    /// anything is allocated (CVE-2022-26495: a length of 0xffffffff).
    pub(crate) fn string(&mut self) -> Result<&'a str, Malformed> {
        let len = self.u32()?;
        if len as usize > MAX_STRING_BYTES {
            return Err(Malformed::new("a string is too long", len));
        }
        text(self.take(len as usize)?)
    }

    pub(crate) fn rest(self) -> &'a [u8] {
        self.rest
    }

    pub(crate) fn end(self) -> Result<(), Malformed> {
        match self.rest.len() {
            0 => Ok(()),
            n => Err(Malformed::new("bytes are left over in the message", n as u64)),
        }
    }
}

/// Whether bytes may be a string: UTF-8, no NUL, not too long.
pub(crate) fn is_text(bytes: &[u8]) -> bool {
    text(bytes).is_ok()
}

/// proto.md, "Values", strings: UTF-8, no NUL.
pub(crate) fn text(bytes: &[u8]) -> Result<&str, Malformed> {
    if bytes.len() > MAX_STRING_BYTES {
        return Err(Malformed::new("a string is too long", bytes.len() as u64));
    }
    if let Some(at) = bytes.iter().position(|b| *b == 0) {
        return Err(Malformed::new("a string contains a NUL", at as u64));
    }
    std::str::from_utf8(bytes)
        .map_err(|e| Malformed::new("a string is not UTF-8", e.valid_up_to() as u64))
}
