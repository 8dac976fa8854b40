//! Notices that an image file was written to between the first and the last read.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// A regular file and what its attributes were before it was read.
///
/// The kernel stamps `mtime` and `ctime` from a clock of a few milliseconds; a write within that
/// time of the first look, and before the first read, is not a change of what is read.
#[derive(Debug)]
pub(crate) struct Watched {
    path: PathBuf,
    file: File,
    before: Stamp,
}

#[derive(Debug, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    fn of(meta: &std::fs::Metadata) -> Stamp {
        Stamp {
            device: meta.dev(),
            inode: meta.ino(),
            size: meta.size(),
            modified: (meta.mtime(), meta.mtime_nsec()),
            changed: (meta.ctime(), meta.ctime_nsec()),
        }
    }
}

impl Watched {
    /// Notes what `file`, opened from `path`, is now.
    pub(crate) fn new(path: &Path, file: File) -> Result<Watched> {
        let before = Stamp::of(&file.metadata().map_err(|e| Error::io("look at", path, e))?);
        Ok(Watched { path: path.to_owned(), file, before })
    }

    /// What differs now, in words; `None` when nothing does.
    pub(crate) fn change(&self) -> Result<Option<String>> {
        let shown = self.path.display();
        let now =
            Stamp::of(&self.file.metadata().map_err(|e| Error::io("look at", &self.path, e))?);
        if now.size != self.before.size {
            return Ok(Some(format!(
                "{shown} had {} bytes and has {} now",
                self.before.size, now.size
            )));
        }
        if now != self.before {
            return Ok(Some(format!("{shown} was written to")));
        }
        // Whoever opened the path later (a tool) may have got another file than the one held here.
        match std::fs::metadata(&self.path) {
            Ok(meta) if Stamp::of(&meta) == self.before => Ok(None),
            Ok(_) => Ok(Some(format!("{shown} was replaced by another file"))),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                Ok(Some(format!("{shown} was removed")))
            }
            Err(e) => Err(Error::io("look at", &self.path, e)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::time::{Duration, SystemTime};

    fn watched() -> (tempfile::TempDir, PathBuf, Watched) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        std::fs::write(&path, b"12345").unwrap();
        let watched = Watched::new(&path, File::open(&path).unwrap()).unwrap();
        (dir, path, watched)
    }

    #[test]
    fn reading_is_no_change() {
        let (_dir, path, watched) = watched();
        std::fs::read(&path).unwrap();
        assert_eq!(watched.change().unwrap(), None);
    }

    #[test]
    fn every_way_of_changing_is_seen() {
        let (_dir, path, watched) = watched();
        let mut file = std::fs::OpenOptions::new().append(true).open(&path).unwrap();
        file.write_all(b"6").unwrap();
        assert!(watched.change().unwrap().unwrap().contains("6 now"));
        file.set_len(5).unwrap();
        file.set_modified(SystemTime::now() + Duration::from_secs(5)).unwrap();
        assert!(watched.change().unwrap().unwrap().contains("written to"));
    }

    #[test]
    fn a_file_put_in_its_place_or_removed_is_seen() {
        let (dir, path, watched) = watched();
        std::fs::write(dir.path().join("b"), b"54321").unwrap();
        rustix::fs::rename(dir.path().join("b"), &path).unwrap();
        // The old file's own change time moves when its name goes.
        assert!(watched.change().unwrap().is_some());
        std::fs::remove_file(&path).unwrap();
        assert!(watched.change().unwrap().is_some());
    }
}
