use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::vfs::{Space, Vfs};

/// The file's name below the repository.
const NAME: &str = "reserve";
/// The least and the most that is kept back, as far as they do not contradict: a hundredth of the
/// file system or this much, and never more than a twentieth of it.
const LEAST_BYTES: u64 = 256 << 20;
const LEAST_PART: u64 = 100;
const MOST_PART: u64 = 20;

/// Space that is kept back for what a full disk needs most: recording removals, collecting,
/// repairing. A file of no meaning holds it, so that nobody else can have it either; when the disk
/// is full the file is given up, and packs then leave the same room until it is made again.
#[derive(Debug)]
pub(super) struct Reserve {
    fs: Arc<dyn Vfs>,
    root: PathBuf,
}

impl Reserve {
    pub(super) fn new(fs: Arc<dyn Vfs>, root: &Path) -> Self {
        Self { fs, root: root.to_path_buf() }
    }

    fn path(&self) -> PathBuf {
        self.root.join(NAME)
    }

    fn is_there(&self) -> bool {
        self.fs.open(&self.path()).is_ok()
    }

    /// Makes the file by way of `temp`, if it is missing and there is room for it and as much
    /// again. `Unsupported` on a file system that cannot set space aside.
    pub(super) fn refill(&self, temp: &Path) -> io::Result<()> {
        if self.is_there() {
            return Ok(());
        }
        let space = self.fs.space(&self.root)?;
        let bytes = size(space);
        if bytes == 0 || space.free / 2 < bytes {
            return Ok(());
        }
        let made = self.make(temp, bytes);
        match made {
            // Another process was as quick.
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => self.fs.remove(temp),
            Err(e) => {
                let _ = self.fs.remove(temp);
                Err(e)
            }
            Ok(()) => Ok(()),
        }
    }

    fn make(&self, temp: &Path, bytes: u64) -> io::Result<()> {
        let mut file = self.fs.create_new(temp)?;
        file.allocate(bytes)?;
        file.sync()?;
        self.fs.rename_new(temp, &self.path())?;
        self.fs.sync_dir(&self.root)
    }

    /// Runs what may use the reserve: on a full disk once more, after giving it up. `run` must not
    /// go on with a file of the first time (FORMAT.md, rule O6).
    pub(super) fn vital<T>(&self, run: impl Fn() -> io::Result<T>) -> io::Result<T> {
        match run() {
            Err(e) if is_full(&e) => {
                // Where it is gone already somebody may have given it up just now.
                if self.fs.remove(&self.path()).is_ok() {
                    tracing::warn!("the disk is full: the reserve is used");
                    let _ = self.fs.sync_dir(&self.root);
                }
                run()
            }
            other => other,
        }
    }

    /// Refuses what may not use the reserve: where the file is gone its room must be left free.
    pub(super) fn leave(&self, bytes: u64) -> io::Result<()> {
        if self.is_there() {
            return Ok(());
        }
        // Without figures the file system itself says when it is full.
        let Ok(space) = self.fs.space(&self.root) else { return Ok(()) };
        if space.free.saturating_sub(bytes) >= size(space) {
            return Ok(());
        }
        Err(io::Error::new(
            io::ErrorKind::StorageFull,
            "what is left is reserved for removing and repairing",
        ))
    }
}

fn is_full(e: &io::Error) -> bool {
    matches!(e.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

fn size(space: Space) -> u64 {
    (space.total / LEAST_PART).max(LEAST_BYTES).min(space.total / MOST_PART)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        const GIB: u64 = 1 << 30;
        let of = |total| size(Space { total, free: 0 });
        assert_eq!(of(0), 0);
        assert_eq!(of(GIB), GIB / 20, "a twentieth of a small one");
        assert_eq!(of(10 * GIB), 256 << 20);
        assert_eq!(of(1000 * GIB), 10 * GIB, "a hundredth of a large one");
        assert_eq!(of(u64::MAX), u64::MAX / 100);
    }
}
