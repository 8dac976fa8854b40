//! A file that gets its name when it is complete, and not before: whatever ends a run early,
//! no half file stands under the final name, and where the file system allows nothing at all.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, RenameFlags};
use rustix::io::Errno;

use crate::error::{Error, ErrorKind, Result};

/// Disks hold secrets: what is restored is for its owner alone.
const MODE: Mode = Mode::RUSR.union(Mode::WUSR);
/// Tries at finding a temporary name nobody uses.
const NAME_TRIES: u32 = 64;

/// A file in the making, in the directory of its final name.
#[derive(Debug)]
pub(crate) struct Landing {
    file: File,
    target: PathBuf,
    folder: PathBuf,
    /// The temporary name; `None` while the file has no name at all (`O_TMPFILE`).
    partial: Option<PathBuf>,
    overwrite: bool,
}

impl Landing {
    /// Makes the file. Without `overwrite` a target that exists is refused at once; with it only a
    /// regular file may be replaced.
    pub(crate) fn new(target: &Path, overwrite: bool) -> Result<Landing> {
        Landing::with(target, overwrite, true)
    }

    fn with(target: &Path, overwrite: bool, nameless: bool) -> Result<Landing> {
        if target.file_name().is_none() {
            return Err(Error::new(
                ErrorKind::Invalid,
                format!("{} cannot be a file's name", target.display()),
            ));
        }
        match std::fs::symlink_metadata(target) {
            Ok(meta) if meta.is_dir() => {
                return Err(Error::new(
                    ErrorKind::Invalid,
                    format!("{} is a directory; name the file to be made", target.display()),
                ));
            }
            Ok(meta) if overwrite && !meta.is_file() => {
                return Err(Error::new(
                    ErrorKind::Invalid,
                    format!("{} is no regular file and is not replaced", target.display()),
                ));
            }
            Ok(_) if !overwrite => return Err(exists(target)),
            Ok(_) => {}
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            Err(e) => return Err(Error::io("look at", target, e)),
        }
        let folder = match target.parent() {
            Some(parent) if parent.as_os_str().is_empty() => PathBuf::from("."),
            Some(parent) => parent.to_owned(),
            None => PathBuf::from("/"),
        };
        let nameless = if nameless { open_nameless(&folder)? } else { None };
        let (file, partial) = match nameless {
            Some(file) => (file, None),
            None => {
                let (file, path) = open_partial(&folder, target)?;
                (file, Some(path))
            }
        };
        Ok(Landing { file, target: target.to_owned(), folder, partial, overwrite })
    }

    /// The file, to write to.
    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    /// A path by which a child process opens the same file. Valid while this lives.
    pub(crate) fn path_for_child(&self) -> PathBuf {
        match &self.partial {
            Some(path) => path.clone(),
            // Not /proc/self: the child's own would be asked.
            None => format!("/proc/{}/fd/{}", std::process::id(), self.file.as_raw_fd()).into(),
        }
    }

    /// Makes the content durable, gives the file its name, and makes the name durable. On an error
    /// the final name is as it was before.
    pub(crate) fn finish(mut self) -> Result<()> {
        self.file.sync_all().map_err(|e| Error::io("write", &self.target, e))?;
        match (self.partial.take(), self.overwrite) {
            (None, false) => self.link_to(&self.target)?,
            (None, true) => {
                // A link cannot replace a file, a rename can: the file is named twice.
                let partial = self.link_to_partial()?;
                self.partial = Some(partial.clone());
                self.rename(&partial, RenameFlags::empty())?;
                self.partial = None;
            }
            (Some(partial), overwrite) => {
                self.partial = Some(partial.clone());
                let flags = if overwrite { RenameFlags::empty() } else { RenameFlags::NOREPLACE };
                self.rename(&partial, flags)?;
                self.partial = None;
            }
        }
        let folder = File::open(&self.folder).map_err(|e| Error::io("open", &self.folder, e))?;
        folder.sync_all().map_err(|e| Error::io("sync", &self.folder, e))
    }

    fn link_to(&self, path: &Path) -> Result<()> {
        let own = format!("/proc/self/fd/{}", self.file.as_raw_fd());
        match rustix::fs::linkat(CWD, own, CWD, path, AtFlags::SYMLINK_FOLLOW) {
            Ok(()) => Ok(()),
            Err(Errno::EXIST) => Err(exists(path)),
            Err(e) => Err(Error::io("create", path, e.into())),
        }
    }

    fn link_to_partial(&self) -> Result<PathBuf> {
        for _ in 0..NAME_TRIES {
            let path = partial_name(&self.folder, &self.target);
            match self.link_to(&path) {
                Err(e) if e.kind() == ErrorKind::Exists => {}
                result => return result.map(|()| path),
            }
        }
        Err(no_name(&self.folder))
    }

    fn rename(&self, partial: &Path, flags: RenameFlags) -> Result<()> {
        match rustix::fs::renameat_with(CWD, partial, CWD, &self.target, flags) {
            Ok(()) => Ok(()),
            Err(Errno::EXIST) => Err(exists(&self.target)),
            // No such flag on this file system: a link refuses an existing name just as well.
            Err(Errno::INVAL) if flags == RenameFlags::NOREPLACE => {
                rustix::fs::link(partial, &self.target).map_err(|e| match e {
                    Errno::EXIST => exists(&self.target),
                    e => Error::io("create", &self.target, e.into()),
                })?;
                std::fs::remove_file(partial).map_err(|e| Error::io("remove", partial, e))
            }
            Err(e) => Err(Error::io("create", &self.target, e.into())),
        }
    }
}

impl Drop for Landing {
    fn drop(&mut self) {
        if let Some(partial) = &self.partial
            && let Err(error) = std::fs::remove_file(partial)
        {
            tracing::warn!(path = %partial.display(), %error, "cannot remove a partial file");
        }
    }
}

fn exists(target: &Path) -> Error {
    Error::new(
        ErrorKind::Exists,
        format!("{} exists already; choose another name or allow overwriting", target.display()),
    )
}

fn no_name(folder: &Path) -> Error {
    Error::new(ErrorKind::Io, format!("no temporary name is free in {}", folder.display()))
}

/// A file without a name; `None` where the file system has none.
fn open_nameless(folder: &Path) -> Result<Option<File>> {
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    match rustix::fs::open(folder, flags, MODE) {
        Ok(fd) => Ok(Some(fd.into())),
        // File systems without it answer OPNOTSUPP; kernels without it take it for a directory.
        Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL) => Ok(None),
        Err(e) => Err(Error::io("create a file in", folder, e.into())),
    }
}

fn open_partial(folder: &Path, target: &Path) -> Result<(File, PathBuf)> {
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    for _ in 0..NAME_TRIES {
        let path = partial_name(folder, target);
        match rustix::fs::open(&path, flags, MODE) {
            Ok(fd) => return Ok((fd.into(), path)),
            Err(Errno::EXIST) => {}
            Err(e) => return Err(Error::io("create", &path, e.into())),
        }
    }
    Err(no_name(folder))
}

/// `.NAME.backstay-partial-0123abcd`. The number only has to be unlike others; `O_EXCL` does the rest.
fn partial_name(folder: &Path, target: &Path) -> PathBuf {
    use std::hash::{BuildHasher, Hasher};
    let random = std::collections::hash_map::RandomState::new().build_hasher().finish();
    let mut name = std::ffi::OsString::from(".");
    name.push(target.file_name().unwrap_or_default());
    name.push(format!(".backstay-partial-{:08x}", random & 0xffff_ffff));
    folder.join(name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::io::Write;

    fn names(dir: &Path) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(dir)
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn a_name_appears_at_the_end_only() {
        for nameless in [true, false] {
            for overwrite in [true, false] {
                let dir = tempfile::tempdir().unwrap();
                let target = dir.path().join("out");
                if overwrite {
                    fs::write(&target, b"old").unwrap();
                }
                let landing = Landing::with(&target, overwrite, nameless).unwrap();
                landing.file().write_all(b"new").unwrap();
                assert_eq!(fs::read(landing.path_for_child()).unwrap(), b"new");
                assert_eq!(fs::read(&target).ok().as_deref(), overwrite.then_some(&b"old"[..]));
                landing.finish().unwrap();
                assert_eq!(names(dir.path()), ["out"]);
                assert_eq!(fs::read(&target).unwrap(), b"new");
            }
        }
    }

    #[test]
    fn dropped_nothing_stays() {
        for nameless in [true, false] {
            let dir = tempfile::tempdir().unwrap();
            let target = dir.path().join("out");
            let landing = Landing::with(&target, false, nameless).unwrap();
            landing.file().write_all(b"new").unwrap();
            drop(landing);
            assert!(names(dir.path()).is_empty());
        }
    }

    #[test]
    fn a_target_is_never_replaced_unasked() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("out");
        for nameless in [true, false] {
            // It comes into being while the restore runs.
            let landing = Landing::with(&target, false, nameless).unwrap();
            fs::write(&target, b"other").unwrap();
            assert_eq!(landing.finish().unwrap_err().kind(), ErrorKind::Exists);
            assert_eq!(fs::read(&target).unwrap(), b"other");
            assert_eq!(names(dir.path()), ["out"]);
            let kind = Landing::with(&target, false, nameless).unwrap_err().kind();
            assert_eq!(kind, ErrorKind::Exists);
            fs::remove_file(&target).unwrap();
        }
        std::os::unix::fs::symlink("elsewhere", &target).unwrap();
        assert_eq!(Landing::new(&target, false).unwrap_err().kind(), ErrorKind::Exists);
        assert_eq!(Landing::new(&target, true).unwrap_err().kind(), ErrorKind::Invalid);
        assert_eq!(Landing::new(dir.path(), true).unwrap_err().kind(), ErrorKind::Invalid);
        let nowhere = dir.path().join("no/out");
        assert_eq!(Landing::new(&nowhere, true).unwrap_err().kind(), ErrorKind::NotFound);
    }
}
