use std::fs::File;
use std::io;
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{
    CWD, FallocateFlags, FlockOperation, OFlags, RenameFlags, fallocate, fcntl_getfl, fcntl_setfl,
    flock, renameat_with, statvfs,
};
use rustix::io::Errno;

use super::{Space, Vfs, VfsRead, VfsWrite};

/// The operating system's file system.
#[derive(Clone, Copy, Debug, Default)]
pub struct RealFs;

/// Repositories are for their owner: backups hold everything a machine knows.
const FILE_MODE: u32 = 0o600;
const DIR_MODE: u32 = 0o700;

/// How often a new file may be taken away by another process's clean-up before it is locked.
const CREATE_TRIES: u32 = 16;

impl Vfs for RealFs {
    fn create_new(&self, path: &Path) -> io::Result<Box<dyn VfsWrite>> {
        for _ in 0..CREATE_TRIES {
            let file = File::options().write(true).create_new(true).mode(FILE_MODE).open(path)?;
            // The lock says that the writer lives. A clean-up that came in between has unlinked
            // the file; then it is made again.
            flock(&file, FlockOperation::LockExclusive)?;
            if file.metadata()?.nlink() > 0 {
                return Ok(Box::new(RealWrite::new(file)));
            }
        }
        Err(io::Error::other("another process keeps removing the temporary file"))
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn VfsRead>> {
        Ok(Arc::new(RealRead { file: File::open(path)? }))
    }

    fn rename_new(&self, from: &Path, to: &Path) -> io::Result<()> {
        match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
            Ok(()) => Ok(()),
            // File systems without this flag: a hard link also fails when the name is taken.
            Err(Errno::INVAL | Errno::NOSYS) => {
                std::fs::hard_link(from, to)?;
                std::fs::remove_file(from)
            }
            Err(e) => Err(e.into()),
        }
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        File::open(path)?.sync_all()
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        std::fs::remove_file(path)
    }

    fn remove_if_unowned(&self, path: &Path) -> io::Result<bool> {
        let file = File::open(path)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            // Gone already: by now the name may be that of another's file.
            Ok(()) if file.metadata()?.nlink() == 0 => Ok(false),
            Ok(()) => std::fs::remove_file(path).map(|()| true),
            Err(Errno::WOULDBLOCK) => Ok(false),
            Err(e) => Err(e.into()),
        }
    }

    fn create_dir(&self, path: &Path) -> io::Result<()> {
        use std::os::unix::fs::DirBuilderExt;
        std::fs::DirBuilder::new().mode(DIR_MODE).create(path)
    }

    fn space(&self, path: &Path) -> io::Result<Space> {
        let stat = statvfs(path)?;
        Ok(Space {
            total: stat.f_blocks.saturating_mul(stat.f_frsize),
            free: stat.f_bavail.saturating_mul(stat.f_frsize),
        })
    }

    fn list(&self, path: &Path) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in std::fs::read_dir(path)? {
            // Names that are not UTF-8 are none of ours.
            if let Ok(name) = entry?.file_name().into_string() {
                names.push(name);
            }
        }
        Ok(names)
    }
}

/// Bytes written at once, and the least for which going around the page cache pays.
const DIRECT_BYTES: usize = 4 << 20;
/// Alignment that every block device accepts for direct writes.
const DIRECT_ALIGN: usize = 4096;

/// A file being written. Large files go around the page cache: a pack is written once and synced
/// at once, and copying it through the cache costs more than anything else in a backup.
#[derive(Debug)]
struct RealWrite {
    file: File,
    /// Room for [`DIRECT_BYTES`] from `start` on; allocated when the first byte comes.
    buf: Vec<u8>,
    start: usize,
    filled: usize,
    direct: Direct,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Direct {
    Untried,
    On,
    /// The file system cannot, or what is left does not fill a block.
    Off,
}

impl RealWrite {
    fn new(file: File) -> Self {
        Self { file, buf: Vec::new(), start: 0, filled: 0, direct: Direct::Untried }
    }

    fn set_direct(&mut self, on: bool) -> io::Result<()> {
        let mut flags = fcntl_getfl(&self.file)?;
        flags.set(OFlags::DIRECT, on);
        fcntl_setfl(&self.file, flags)?;
        self.direct = if on { Direct::On } else { Direct::Off };
        Ok(())
    }

    /// Writes the full buffer.
    fn write_full(&mut self) -> io::Result<()> {
        if self.direct == Direct::Untried && self.set_direct(true).is_err() {
            self.direct = Direct::Off;
        }
        let bytes = &self.buf[self.start..self.start + self.filled];
        let written = match self.file.write(bytes) {
            // Accepted as a flag, refused as a write: some file systems tell only now.
            Err(e) if e.raw_os_error() == Some(Errno::INVAL.raw_os_error()) => 0,
            other => other?,
        };
        if written < self.filled {
            // A short direct write may end anywhere; the rest goes the usual way.
            if self.direct == Direct::On {
                self.set_direct(false)?;
            }
            self.file.write_all(&self.buf[self.start + written..self.start + self.filled])?;
        }
        self.filled = 0;
        Ok(())
    }

    /// Writes what does not fill the buffer.
    fn write_rest(&mut self) -> io::Result<()> {
        if self.direct == Direct::On {
            let whole = self.filled - self.filled % DIRECT_ALIGN;
            let rest = self.filled - whole;
            self.filled = whole;
            if whole > 0 {
                self.write_full()?;
            }
            self.buf.copy_within(self.start + whole..self.start + whole + rest, self.start);
            self.filled = rest;
            if self.direct == Direct::On {
                self.set_direct(false)?;
            }
        }
        self.file.write_all(&self.buf[self.start..self.start + self.filled])?;
        self.filled = 0;
        Ok(())
    }
}

impl VfsWrite for RealWrite {
    fn write_all(&mut self, data: &[u8]) -> io::Result<()> {
        if self.buf.is_empty() {
            self.buf = vec![0; DIRECT_BYTES + DIRECT_ALIGN];
            self.start = self.buf.as_ptr().align_offset(DIRECT_ALIGN);
        }
        let mut rest = data;
        while !rest.is_empty() {
            let n = rest.len().min(DIRECT_BYTES - self.filled);
            let at = self.start + self.filled;
            self.buf[at..at + n].copy_from_slice(&rest[..n]);
            self.filled += n;
            rest = &rest[n..];
            if self.filled == DIRECT_BYTES {
                self.write_full()?;
            }
        }
        Ok(())
    }

    fn sync(&mut self) -> io::Result<()> {
        self.write_rest()?;
        self.file.sync_all()
    }

    fn allocate(&mut self, bytes: u64) -> io::Result<()> {
        Ok(fallocate(&self.file, FallocateFlags::empty(), 0, bytes)?)
    }
}

#[derive(Debug)]
struct RealRead {
    file: File,
}

impl VfsRead for RealRead {
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read_exact_at(buf, offset)
    }

    fn size(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn allocated_space_is_really_set_aside() {
        const BYTES: u64 = 8 << 20;
        for dir in [tempfile::tempdir().unwrap(), tempfile::tempdir_in("/dev/shm").unwrap()] {
            let path = dir.path().join("f");
            let mut file = RealFs.create_new(&path).unwrap();
            file.allocate(BYTES).unwrap();
            file.sync().unwrap();
            let meta = std::fs::metadata(&path).unwrap();
            assert_eq!(meta.len(), BYTES);
            assert!(meta.blocks() * 512 >= BYTES, "{} blocks", meta.blocks());
            let space = RealFs.space(dir.path()).unwrap();
            assert!(space.free > 0 && space.free < space.total, "{space:?}");
        }
        assert!(RealFs.space(Path::new("/nonexistent")).is_err());
    }

    /// Sizes around the buffer's and the block's borders, in pieces that do not fit them.
    #[test]
    fn what_is_written_is_there() {
        let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir_in("/dev/shm").unwrap()];
        for dir in &dirs {
            for len in [
                0,
                1,
                4095,
                4096,
                DIRECT_BYTES - 1,
                DIRECT_BYTES,
                DIRECT_BYTES + 1,
                2 * DIRECT_BYTES + 12_345,
            ] {
                let mut data = vec![0; len];
                blake3::Hasher::new().finalize_xof().fill(&mut data);
                let path = dir.path().join(format!("f{len}"));
                let mut file = RealFs.create_new(&path).unwrap();
                for piece in data.chunks(1_000_003) {
                    file.write_all(piece).unwrap();
                }
                file.sync().unwrap();
                assert!(std::fs::read(&path).unwrap() == data, "{len} bytes");
            }
        }
    }
}
