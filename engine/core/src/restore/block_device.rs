//! Restoring onto a block device, which cannot be done by halves and a rename: a restore that fails
//! leaves the device partly written, and its error says so.

use std::fs::File;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use backstay_store::ImageReader;
use rustix::fs::{FallocateFlags, Mode, OFlags, SeekFrom};
use rustix::io::Errno;

use super::copy::{Copied, Sink, copy};
use super::direct::Writer;
use super::runs::Run;
use crate::error::{Error, ErrorKind, Result};
use crate::monitor::Monitor;

/// The kernel zeroes whole sectors; no device has larger ones.
const SECTOR_BYTES: u64 = 4096;
/// Zeros are written in pieces of this where the kernel does not do it.
static ZEROS: [u8; 64 * 1024] = [0; 64 * 1024];

struct Device<'a> {
    file: &'a File,
    writer: Writer<'a>,
    path: &'a Path,
}

impl Device<'_> {
    fn write(&self, at: u64, bytes: &[u8]) -> Result<()> {
        self.writer.write_all_at(bytes, at).map_err(|e| Error::io("write", self.path, e))
    }

    /// Lets the kernel make zeros, by discarding where the device promises that to read as zeros.
    fn punch(&self, at: u64, len: u64) -> Result<bool> {
        let ways = [FallocateFlags::PUNCH_HOLE, FallocateFlags::ZERO_RANGE];
        for way in ways {
            match rustix::fs::fallocate(self.file, way | FallocateFlags::KEEP_SIZE, at, len) {
                Ok(()) => return Ok(true),
                Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => {}
                Err(e) => return Err(Error::io("zero a part of", self.path, e.into())),
            }
        }
        Ok(false)
    }
}

impl Sink for Device<'_> {
    fn data(&self, run: Run, bytes: &[u8]) -> Result<()> {
        self.write(run.offset, bytes)
    }

    fn hole(&self, run: Run) -> Result<()> {
        let whole = run.len - run.len % SECTOR_BYTES;
        let mut at = run.offset;
        if whole > 0 && self.punch(run.offset, whole)? {
            at += whole;
        }
        let end = run.offset + run.len;
        while at < end {
            let len = usize::try_from(end - at).unwrap_or(usize::MAX).min(ZEROS.len());
            self.write(at, ZEROS.get(..len).unwrap_or_default())?;
            at += u64::try_from(len).unwrap_or(end - at);
        }
        Ok(())
    }
}

pub(super) fn restore(
    disk: &str,
    reader: &ImageReader,
    path: &Path,
    workers: usize,
    monitor: &dyn Monitor,
) -> Result<Copied> {
    let file = claim(path)?;
    let device = Device { file: &file, writer: Writer::new(&file), path };
    let end = rustix::fs::seek(&file, SeekFrom::End(0))
        .map_err(|e| Error::io("find the size of", path, e.into()))?;
    if end < reader.size_bytes() {
        return Err(Error::new(
            ErrorKind::NoSpace,
            format!(
                "{} has {end} bytes, the disk needs {}: nothing was written",
                path.display(),
                reader.size_bytes()
            ),
        ));
    }
    if end > reader.size_bytes() {
        monitor.problem(&format!(
            "{} is larger than the disk; its last {} bytes are left as they are",
            path.display(),
            end - reader.size_bytes()
        ));
    }
    let partly = || format!("{} is partly written and must not be used", path.display());
    let copied = copy(disk, reader, &device, workers, monitor).map_err(|e| e.within(partly()))?;
    monitor.phase("sync");
    file.sync_all().map_err(|e| Error::io("write", path, e).within(partly()))?;
    Ok(copied)
}

/// Opens the device and claims it, so that nobody mounts it or adds it to an array meanwhile.
fn claim(path: &Path) -> Result<File> {
    let meta = std::fs::metadata(path).map_err(|e| Error::io("open", path, e))?;
    if !meta.file_type().is_block_device() {
        return Err(Error::new(
            ErrorKind::Invalid,
            format!("{} is no block device", path.display()),
        ));
    }
    let flags = OFlags::RDWR | OFlags::EXCL | OFlags::CLOEXEC;
    match rustix::fs::open(path, flags, Mode::empty()) {
        Ok(fd) => Ok(fd.into()),
        Err(Errno::BUSY) => Err(Error::new(
            ErrorKind::InUse,
            format!(
                "{} is in use: it or a part of it is mounted, swapped on, or belongs to a volume \
                 group or array (lsblk {} shows which); nothing was written",
                path.display(),
                path.display()
            ),
        )),
        Err(e) => Err(Error::io("open", path, e.into())),
    }
}
