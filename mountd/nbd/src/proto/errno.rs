//! The error numbers of the wire, and the one place where they meet the errors of devices.
//!
//! | device error | NBD error | back again |
//! | --- | --- | --- |
//! | `OutOfRange` | `EINVAL`; `ENOSPC` for writes | `Io` / `NoSpace` |
//! | `ReadOnly` | `EPERM` | `ReadOnly` |
//! | `Unsupported` | `ENOTSUP` | `Unsupported` |
//! | `NoSpace` | `ENOSPC` | `NoSpace` |
//! | `Damaged`, `Io` | `EIO` | `Io` |

use backstay_blockdev::ErrorKind;

/// proto.md, "Error values".
pub const EPERM: u32 = 1;
/// proto.md, "Error values".
pub const EIO: u32 = 5;
/// proto.md, "Error values".
pub const ENOMEM: u32 = 12;
/// proto.md, "Error values".
pub const EINVAL: u32 = 22;
/// proto.md, "Error values".
pub const ENOSPC: u32 = 28;
/// proto.md, "Error values".
pub const EOVERFLOW: u32 = 75;
/// proto.md, "Error values".
pub const ENOTSUP: u32 = 95;
/// proto.md, "Error values".
pub const ESHUTDOWN: u32 = 108;

/// The wire's number for a device error of a command that reads.
pub fn from_device(kind: ErrorKind) -> u32 {
    match kind {
        ErrorKind::OutOfRange => EINVAL,
        ErrorKind::ReadOnly => EPERM,
        ErrorKind::Unsupported => ENOTSUP,
        ErrorKind::NoSpace => ENOSPC,
        _ => EIO,
    }
}

/// The device error for a number of the wire. Numbers that proto.md does not name are `Io`
/// ("unknown error values are to be treated as EINVAL" loses nothing by it).
pub fn to_device(errno: u32) -> ErrorKind {
    match errno {
        EPERM => ErrorKind::ReadOnly,
        ENOSPC => ErrorKind::NoSpace,
        ENOTSUP => ErrorKind::Unsupported,
        _ => ErrorKind::Io,
    }
}

/// A name for people.
pub fn name(errno: u32) -> &'static str {
    match errno {
        EPERM => "EPERM",
        EIO => "EIO",
        ENOMEM => "ENOMEM",
        EINVAL => "EINVAL",
        ENOSPC => "ENOSPC",
        EOVERFLOW => "EOVERFLOW",
        ENOTSUP => "ENOTSUP",
        ESHUTDOWN => "ESHUTDOWN",
        _ => "an unknown error",
    }
}
