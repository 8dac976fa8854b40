//! Writing around the page cache: a restore writes every byte once and syncs at the end, and going
//! through the cache costs more than unpacking the data.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use rustix::fs::OFlags;
use rustix::io::Errno;

/// Alignment of place, length and memory that every block device accepts.
const ALIGN: usize = 4096;

/// A file that takes writes at any place, from several threads.
#[derive(Debug)]
pub(super) struct Writer<'a> {
    file: &'a File,
    /// The same file opened for direct writes; nothing where its file system has none.
    direct: Option<File>,
    /// Set when direct writes turn out not to work after all.
    refused: AtomicBool,
    /// One write through the cache at a time: the kernel allows one per file anyway, and lets the
    /// others spin for it instead of unpacking.
    turn: Mutex<()>,
}

impl<'a> Writer<'a> {
    pub(super) fn new(file: &'a File) -> Writer<'a> {
        let flags = i32::try_from(OFlags::DIRECT.bits()).unwrap_or(0);
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        let direct = File::options().write(true).custom_flags(flags).open(path).ok();
        Writer { file, direct, refused: AtomicBool::new(false), turn: Mutex::default() }
    }

    /// Writes all of `bytes` at `offset`: what is aligned directly, the rest through the cache.
    pub(super) fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let aligned = offset.is_multiple_of(ALIGN as u64)
            && bytes.as_ptr().align_offset(ALIGN) == 0
            && !self.refused.load(Ordering::Relaxed);
        let whole = if aligned { bytes.len() - bytes.len() % ALIGN } else { 0 };
        let Some(direct) = self.direct.as_ref().filter(|_| whole > 0) else {
            return self.cached(bytes, offset);
        };
        let (now, rest) = bytes.split_at(whole);
        match direct.write_all_at(now, offset) {
            Ok(()) if rest.is_empty() => Ok(()),
            Ok(()) => self.cached(rest, offset + now.len() as u64),
            // The flag was accepted and the write is not: some file systems tell only now.
            Err(e) if e.raw_os_error() == Some(Errno::INVAL.raw_os_error()) => {
                self.refused.store(true, Ordering::Relaxed);
                self.cached(bytes, offset)
            }
            Err(e) => Err(e),
        }
    }

    fn cached(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        self.file.write_all_at(bytes, offset)
    }
}

/// A growing buffer whose bytes start where direct writes want them.
#[derive(Debug, Default)]
pub(super) struct Buffer(Vec<u8>);

impl Buffer {
    /// The first `len` bytes, whatever they hold.
    pub(super) fn bytes(&mut self, len: usize) -> &mut [u8] {
        if self.0.len() < len + ALIGN {
            self.0.resize(len + ALIGN, 0);
        }
        let start = self.0.as_ptr().align_offset(ALIGN).min(ALIGN);
        self.0.get_mut(start..start + len).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn aligned_and_not_everything_arrives() {
        for dir in [tempfile::tempdir().unwrap(), tempfile::tempdir_in("/dev/shm").unwrap()] {
            let path = dir.path().join("f");
            let file = File::create_new(&path).unwrap();
            let writer = Writer::new(&file);
            let mut buffer = Buffer::default();
            let data: Vec<u8> = (0..50_000u32).map(|i| (i * 7 / 3) as u8).collect();
            for (offset, len) in [(0, 8192), (8192, 4096 + 100), (12_388, 1000), (13_388, 36_612)] {
                let bytes = buffer.bytes(len);
                bytes.copy_from_slice(&data[offset..offset + len]);
                writer.write_all_at(bytes, offset as u64).unwrap();
            }
            assert!(std::fs::read(&path).unwrap() == data);
        }
    }
}
