//! A raw image file or a block device of this machine.

use std::fs::{File, OpenOptions};
use std::io::{self, IoSliceMut, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, FileTypeExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{FallocateFlags, SeekFrom as RawSeek};
use rustix::io::{Errno, ReadWriteFlags};

use crate::device::{BlockDevice, Caps, Extent, ExtentKind, Geometry, WriteFlags, push_extent};
use crate::error::{Error, ErrorKind};

/// Zeros are written in pieces of this many bytes where the file system cannot make them itself.
const ZERO_PIECE_BYTES: usize = 64 << 10;

/// A regular file (its holes are extents) or a block device (all data), as a disk of the size it
/// had when it was opened. A file that has become shorter since fails where it is missing.
#[derive(Debug)]
pub struct FileDevice {
    file: File,
    path: PathBuf,
    size_bytes: u64,
    regular: bool,
    writable: bool,
    // After a failed flush the kernel may have dropped the dirty pages and report success next time.
    flush_failed: AtomicBool,
}

impl FileDevice {
    /// Opens an image. Only regular files and block devices are taken.
    pub fn open(path: impl AsRef<Path>, read_only: bool) -> Result<Self, Error> {
        let path = path.as_ref();
        let place = |what: &str| format!("{}: cannot {what}", path.display());
        // Looked at before it is opened, because opening a FIFO would wait for its other end.
        let meta = std::fs::metadata(path).map_err(|e| Error::os(place("open"), e))?;
        if !meta.is_file() && !meta.file_type().is_block_device() {
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!("{}: neither a regular file nor a block device", path.display()),
            ));
        }
        let mut file = OpenOptions::new()
            .read(true)
            .write(!read_only)
            .open(path)
            .map_err(|e| Error::os(place("open"), e))?;
        let meta = file.metadata().map_err(|e| Error::os(place("read the attributes"), e))?;
        let size_bytes =
            file.seek(SeekFrom::End(0)).map_err(|e| Error::os(place("find the size"), e))?;
        Ok(Self {
            file,
            path: path.to_owned(),
            size_bytes,
            regular: meta.is_file(),
            writable: !read_only,
            flush_failed: AtomicBool::new(false),
        })
    }

    fn failed(&self, what: &str, offset_bytes: u64, len_bytes: u64, e: io::Error) -> Error {
        Error::os(
            format!(
                "{}: {what} of {len_bytes} bytes at offset {offset_bytes} failed",
                self.path.display()
            ),
            e,
        )
    }

    /// The error of a file that ends before byte `at`, though the disk does not.
    fn ended(&self, at: u64) -> Error {
        let end = self.file.metadata().map_or(at, |meta| meta.len().min(at));
        Error::new(
            ErrorKind::Io,
            format!(
                "{}: the file ends at byte {end}; it had {} bytes when it was opened",
                self.path.display(),
                self.size_bytes
            ),
        )
    }

    fn check_writable(&self, what: &str) -> Result<(), Error> {
        if self.writable {
            return Ok(());
        }
        Err(Error::new(
            ErrorKind::ReadOnly,
            format!("{}: cannot {what}: opened read-only", self.path.display()),
        ))
    }

    /// The next position of data (`true`) or of a hole from `at` on; `None` when there is none
    /// before the end of the disk.
    fn seek(&self, at: u64, data: bool) -> Result<Option<u64>, Error> {
        let seek = if data { RawSeek::Data(at) } else { RawSeek::Hole(at) };
        // The position of the file is shared and moved here; nothing else uses it.
        match rustix::fs::seek(&self.file, seek) {
            Ok(found) => Ok(Some(found).filter(|found| *found < self.size_bytes)),
            Err(Errno::NXIO) => {
                // No data up to the end; but a file cut short must not pass for a hole.
                let now = self
                    .file
                    .metadata()
                    .map_err(|e| self.failed("seek", at, self.size_bytes - at, e))?
                    .len();
                if now < self.size_bytes { Err(self.ended(now)) } else { Ok(None) }
            }
            Err(e) => Err(self.failed("seek", at, self.size_bytes - at, e.into())),
        }
    }

    fn fallocate(&self, flags: FallocateFlags, offset: u64, len: u64) -> Result<bool, Error> {
        match rustix::fs::fallocate(&self.file, flags | FallocateFlags::KEEP_SIZE, offset, len) {
            Ok(()) => Ok(true),
            Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => Ok(false),
            Err(e) => Err(self.failed("deallocation", offset, len, e.into())),
        }
    }

    fn finish_write(&self, flags: WriteFlags) -> Result<(), Error> {
        if flags.fua { self.flush() } else { Ok(()) }
    }
}

impl BlockDevice for FileDevice {
    fn geometry(&self) -> Geometry {
        Geometry {
            size_bytes: self.size_bytes,
            min_block_bytes: 1,
            preferred_block_bytes: 4096,
            max_request_bytes: 32 << 20,
        }
    }

    fn caps(&self) -> Caps {
        let w = self.writable;
        Caps {
            writable: w,
            flush: w,
            trim: w,
            write_zeroes: w,
            // What the file system cannot zero at once is refused then.
            fast_zero: w,
            fua: w,
            multi_conn: true,
            rotational: false,
            presence: false,
        }
    }

    fn read_at(&self, offset_bytes: u64, buf: &mut [u8]) -> Result<(), Error> {
        let len = buf.len() as u64;
        self.geometry().check(offset_bytes, len)?;
        let mut done = 0;
        while done < buf.len() {
            let at = offset_bytes + done as u64;
            match self.file.read_at(&mut buf[done..], at) {
                Ok(0) => return Err(self.ended(at)),
                Ok(n) => done += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(self.failed("read", offset_bytes, len, e)),
            }
        }
        Ok(())
    }

    /// Answers what the page cache holds (`preadv2` with `RWF_NOWAIT`).
    fn try_read_at(&self, offset_bytes: u64, buf: &mut [u8]) -> Result<bool, Error> {
        self.geometry().check(offset_bytes, buf.len() as u64)?;
        let len = buf.len();
        let mut slices = [IoSliceMut::new(buf)];
        // Every failure here is left to `read_at`, which tells it with its place.
        match rustix::io::preadv2(&self.file, &mut slices, offset_bytes, ReadWriteFlags::NOWAIT) {
            Ok(n) => Ok(n == len),
            Err(_) => Ok(false),
        }
    }

    fn extents(&self, offset_bytes: u64, len_bytes: u64, max: usize) -> Result<Vec<Extent>, Error> {
        self.geometry().check(offset_bytes, len_bytes)?;
        let end = offset_bytes + len_bytes;
        let mut list = Vec::new();
        if !self.regular {
            let kind = ExtentKind::Data;
            push_extent(&mut list, Extent { offset_bytes, len_bytes, kind });
            return Ok(list);
        }
        let mut at = offset_bytes;
        while at < end && list.len() < max.max(1) {
            let data = self.seek(at, true)?.unwrap_or(end).min(end);
            let (stop, kind) = if data > at {
                (data, ExtentKind::Hole)
            } else {
                (self.seek(at, false)?.unwrap_or(end).min(end), ExtentKind::Data)
            };
            if stop <= at {
                // The file changed between the two questions; data is always a true answer.
                let kind = ExtentKind::Data;
                push_extent(&mut list, Extent { offset_bytes: at, len_bytes: end - at, kind });
                break;
            }
            push_extent(&mut list, Extent { offset_bytes: at, len_bytes: stop - at, kind });
            at = stop;
        }
        Ok(list)
    }

    fn prefetch(&self, offset_bytes: u64, len_bytes: u64) {
        let Some(len) = std::num::NonZeroU64::new(len_bytes) else { return };
        // A hint: that it could not be given changes nothing.
        let _ =
            rustix::fs::fadvise(&self.file, offset_bytes, Some(len), rustix::fs::Advice::WillNeed);
    }

    fn write_at(&self, offset_bytes: u64, data: &[u8], flags: WriteFlags) -> Result<(), Error> {
        self.geometry().check(offset_bytes, data.len() as u64)?;
        self.check_writable("write")?;
        self.file
            .write_all_at(data, offset_bytes)
            .map_err(|e| self.failed("write", offset_bytes, data.len() as u64, e))?;
        self.finish_write(flags)
    }

    fn flush(&self) -> Result<(), Error> {
        if !self.writable {
            return Ok(());
        }
        if self.flush_failed.load(Ordering::Acquire) {
            return Err(Error::new(
                ErrorKind::Io,
                format!(
                    "{}: an earlier flush failed; what was written before is not safe",
                    self.path.display()
                ),
            ));
        }
        self.file.sync_data().map_err(|e| {
            self.flush_failed.store(true, Ordering::Release);
            Error::os(format!("{}: flush failed", self.path.display()), e)
        })
    }

    fn trim(&self, offset_bytes: u64, len_bytes: u64, flags: WriteFlags) -> Result<(), Error> {
        self.geometry().check(offset_bytes, len_bytes)?;
        self.check_writable("trim")?;
        if len_bytes > 0 {
            // A file system that cannot free space keeps it: a trim is a hint.
            self.fallocate(FallocateFlags::PUNCH_HOLE, offset_bytes, len_bytes)?;
        }
        self.finish_write(flags)
    }

    fn write_zeroes(
        &self,
        offset_bytes: u64,
        len_bytes: u64,
        flags: WriteFlags,
    ) -> Result<(), Error> {
        self.geometry().check(offset_bytes, len_bytes)?;
        self.check_writable("write zeroes")?;
        if len_bytes == 0 {
            return self.finish_write(flags);
        }
        let how =
            if flags.no_hole { FallocateFlags::ZERO_RANGE } else { FallocateFlags::PUNCH_HOLE };
        if !self.fallocate(how, offset_bytes, len_bytes)? {
            if flags.fast_zero {
                return Err(Error::new(
                    ErrorKind::Unsupported,
                    format!("{}: zeros would have to be written", self.path.display()),
                ));
            }
            let zeros = vec![0; ZERO_PIECE_BYTES];
            let mut at = offset_bytes;
            let end = offset_bytes + len_bytes;
            while at < end {
                let n = (end - at).min(ZERO_PIECE_BYTES as u64) as usize;
                self.write_at(at, &zeros[..n], WriteFlags::default())?;
                at += n as u64;
            }
        }
        self.finish_write(flags)
    }
}
