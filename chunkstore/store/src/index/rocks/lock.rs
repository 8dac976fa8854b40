//! Who may touch the database when: a file lock for writing, and a directory for each reader.

use std::fs::File;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

use crate::error::{Error, Result};

/// A held file lock.
pub(super) struct Locked<'a>(&'a File);

impl<'a> Locked<'a> {
    pub(super) fn exclusive(file: &'a File) -> Result<Self> {
        Self::take(file, FlockOperation::LockExclusive)
    }

    pub(super) fn shared(file: &'a File) -> Result<Self> {
        Self::take(file, FlockOperation::LockShared)
    }

    fn take(file: &'a File, operation: FlockOperation) -> Result<Self> {
        // Held only for the moment of one write or one opening, by any process.
        flock(file, operation).map_err(|e| Error::io("cannot lock the index", e.into()))?;
        Ok(Self(file))
    }
}

impl Drop for Locked<'_> {
    fn drop(&mut self) {
        // Closing the file would release it too; nothing can be done about an error here.
        let _ = flock(self.0, FlockOperation::Unlock);
    }
}

/// A directory for a process's own files, with a lock that tells whether the process lives.
pub(super) struct Reader {
    pub(super) path: PathBuf,
    lock_path: PathBuf,
    _lock: File,
}

impl Reader {
    pub(super) fn new(dir: &Path) -> Result<Self> {
        make_dir(dir)?;
        remove_dead_readers(dir);
        let mut random = [0u8; 8];
        crate::entropy::Entropy::fill(&crate::entropy::SystemEntropy, &mut random);
        let name = format!("{:016x}", u64::from_le_bytes(random));
        let lock_path = dir.join(format!("{name}.lock"));
        let lock = open_lock(&lock_path)?;
        flock(&lock, FlockOperation::LockExclusive)
            .map_err(|e| Error::io("cannot lock the index reader", e.into()))?;
        let path = dir.join(name);
        make_dir(&path)?;
        Ok(Self { path, lock_path, _lock: lock })
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.path);
        let _ = std::fs::remove_file(&self.lock_path);
    }
}

fn remove_dead_readers(dir: &Path) {
    let Ok(entries) = std::fs::read_dir(dir) else { return };
    for path in entries.flatten().map(|e| e.path()) {
        if path.extension().is_none_or(|e| e != "lock") {
            continue;
        }
        let Ok(file) = File::open(&path) else { continue };
        if flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok() {
            let _ = std::fs::remove_dir_all(path.with_extension(""));
            let _ = std::fs::remove_file(&path);
        }
    }
}

pub(super) fn make_dir(dir: &Path) -> Result<()> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(|e| Error::io(format!("cannot create {}", dir.display()), e))
}

pub(super) fn open_lock(path: &Path) -> Result<File> {
    File::options()
        .create(true)
        .truncate(false)
        .read(true)
        .write(true)
        .open(path)
        .map_err(|e| Error::io(format!("cannot open {}", path.display()), e))
}
