use std::fs::File;
use std::io;
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{CWD, FlockOperation, RenameFlags, flock, renameat_with};
use rustix::io::Errno;

use super::{Vfs, VfsRead, VfsWrite};

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
                return Ok(Box::new(RealWrite { file }));
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
            Ok(()) => std::fs::remove_file(path).map(|()| true),
            Err(Errno::WOULDBLOCK) => Ok(false),
            Err(e) => Err(e.into()),
        }
    }

    fn create_dir(&self, path: &Path) -> io::Result<()> {
        use std::os::unix::fs::DirBuilderExt;
        std::fs::DirBuilder::new().mode(DIR_MODE).create(path)
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

#[derive(Debug)]
struct RealWrite {
    file: File,
}

impl VfsWrite for RealWrite {
    fn write_all(&mut self, data: &[u8]) -> io::Result<()> {
        self.file.write_all(data)
    }

    fn sync(&mut self) -> io::Result<()> {
        self.file.sync_all()
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

    fn len(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }
}
