//! A directory only we may enter, for sockets. It is removed with its owner; one whose owner was
//! killed is removed by the next that makes one.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rustix::fs::{FlockOperation, flock};

use crate::error::{Error, ErrorKind, Result};

const PREFIX: &str = "backstay-sock-";
/// Socket addresses hold 108 bytes; a longer directory falls back to /tmp.
const PATH_MAX_BYTES: usize = 80;
/// A directory this young may belong to somebody who has not locked it yet.
const SWEEP_AGE: Duration = Duration::from_secs(60);
/// Entries of the temporary directory that are looked at when sweeping.
const SWEEP_ENTRIES_MAX: usize = 4096;

/// A private directory (mode 0700), locked while it lives.
#[derive(Debug)]
pub(crate) struct PrivateDir {
    dir: tempfile::TempDir,
    // Held, not used: a sweeper that can take this lock knows the owner is gone.
    _lock: File,
}

impl PrivateDir {
    pub(crate) fn new() -> Result<PrivateDir> {
        let temp = std::env::temp_dir();
        let root =
            if temp.as_os_str().len() > PATH_MAX_BYTES { PathBuf::from("/tmp") } else { temp };
        sweep(&root);
        let failed = |e: std::io::Error| {
            Error::new(ErrorKind::Io, format!("cannot make a directory in {}", root.display()))
                .caused_by(e)
        };
        let dir = tempfile::Builder::new().prefix(PREFIX).tempdir_in(&root).map_err(failed)?;
        let lock = File::open(dir.path()).map_err(failed)?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive).map_err(|e| failed(e.into()))?;
        Ok(PrivateDir { dir, _lock: lock })
    }

    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }
}

/// Removes directories of killed owners. What cannot be looked at or removed is left alone.
fn sweep(root: &Path) {
    let Ok(entries) = std::fs::read_dir(root) else { return };
    let me = rustix::process::geteuid().as_raw();
    for entry in entries.take(SWEEP_ENTRIES_MAX).flatten() {
        if !entry.file_name().to_string_lossy().starts_with(PREFIX) {
            continue;
        }
        let Ok(meta) = entry.metadata() else { continue };
        let old = meta.modified().ok().and_then(|m| SystemTime::now().duration_since(m).ok());
        if !meta.is_dir() || meta.uid() != me || old.is_none_or(|age| age < SWEEP_AGE) {
            continue;
        }
        let Ok(lock) = File::open(entry.path()) else { continue };
        if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_ok() {
            let removed = std::fs::remove_dir_all(entry.path());
            tracing::debug!(path = %entry.path().display(), ok = removed.is_ok(), "left-over removed");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn left_overs_go_and_live_ones_stay() {
        let root = tempfile::tempdir().unwrap();
        let make = |name: &str| {
            let path = root.path().join(format!("{PREFIX}{name}"));
            std::fs::create_dir(&path).unwrap();
            std::fs::write(path.join("s"), b"").unwrap();
            let file = File::open(&path).unwrap();
            file.set_modified(SystemTime::now() - 2 * SWEEP_AGE).unwrap();
            (path, file)
        };
        let (dead, _) = make("dead");
        let (live, lock) = make("live");
        flock(&lock, FlockOperation::NonBlockingLockExclusive).unwrap();
        let (young, file) = make("young");
        file.set_modified(SystemTime::now()).unwrap();
        let other = root.path().join("other");
        std::fs::create_dir(&other).unwrap();
        sweep(root.path());
        assert_eq!([dead, live, young, other].map(|p| p.exists()), [false, true, true, true]);
    }
}
