//! Whether a block device is held by somebody: mounted, swapped on, part of a volume group or array.

use std::path::Path;

use rustix::fs::{Mode, OFlags, open};
use rustix::io::Errno;

use crate::error::{Error, Result};

/// True if the kernel does not grant an exclusive claim on the device, a partition of it, or the
/// disk it is a partition of. The claim is given back at once.
pub(crate) fn is_held(path: &Path) -> Result<bool> {
    match open(path, OFlags::RDONLY | OFlags::EXCL | OFlags::CLOEXEC, Mode::empty()) {
        Ok(_) => Ok(false),
        Err(Errno::BUSY) => Ok(true),
        Err(e) => Err(Error::io("open", path, e.into())),
    }
}
