//! Names in directories, through descriptors: nothing here follows a link that stands in the target,
//! whoever put it there and whenever.

use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, RenameFlags, ResolveFlags, Stat};
use rustix::io::{Errno, Result};

/// Times a race with the kernel's own renames is tried again.
const TRIES: usize = 64;

/// Opens one component below `dir`. Links are refused (`ELOOP`), also those of `/proc`.
pub(super) fn open(dir: impl AsFd, name: &[u8], flags: OFlags, mode: Mode) -> Result<OwnedFd> {
    let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let how = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    for _ in 0..TRIES {
        match rustix::fs::openat2(dir.as_fd(), name, flags, mode, how) {
            Err(Errno::AGAIN | Errno::INTR) => {}
            // Kernels before 5.6, and sandboxes: a single component needs no more than O_NOFOLLOW.
            Err(Errno::NOSYS | Errno::PERM) => {
                return rustix::fs::openat(dir.as_fd(), name, flags, mode);
            }
            other => return other,
        }
    }
    Err(Errno::AGAIN)
}

/// A directory below `dir`.
pub(super) fn open_dir(dir: impl AsFd, name: &[u8]) -> Result<OwnedFd> {
    open(dir, name, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty())
}

/// What stands at a name, without opening it: links, devices and pipes too.
pub(super) fn open_path(dir: impl AsFd, name: &[u8]) -> Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(dir.as_fd(), name, flags, Mode::empty())
}

/// What stands at a name; a link itself.
pub(super) fn stat(dir: impl AsFd, name: &[u8]) -> Result<Stat> {
    rustix::fs::statat(dir.as_fd(), name, AtFlags::SYMLINK_NOFOLLOW)
}

/// The way to an open node that calls without a descriptor of their own take.
pub(super) fn proc_path(fd: impl AsFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd()))
}

/// A name nobody has, in the directory where it gets another. Removed again when dropped.
#[derive(Debug)]
pub(super) struct Temporary<'a> {
    dir: &'a OwnedFd,
    name: Vec<u8>,
    armed: bool,
}

impl<'a> Temporary<'a> {
    /// A name by chance; nothing is there yet.
    pub(super) fn new(dir: &'a OwnedFd) -> Result<Self> {
        let mut random = [0; 12];
        getrandom::fill(&mut random).map_err(|_| Errno::IO)?;
        let hex: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
        Ok(Temporary { dir, name: format!(".backstay-{hex}.part").into_bytes(), armed: false })
    }

    /// An empty file of our own.
    pub(super) fn file(&mut self) -> Result<File> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL;
        let fd = open(self.dir, &self.name, flags, Mode::RUSR | Mode::WUSR)?;
        self.armed = true;
        Ok(File::from(fd))
    }

    /// A symbolic link; its node, sure to be the one that was made.
    pub(super) fn symlink(&mut self, target: &[u8]) -> Result<OwnedFd> {
        rustix::fs::symlinkat(target, self.dir, self.name.as_slice())?;
        self.made(FileType::Symlink, 0)
    }

    /// A pipe or a device; its node, sure to be the one that was made.
    pub(super) fn special(&mut self, kind: FileType, device: u64) -> Result<OwnedFd> {
        let mode = Mode::RUSR | Mode::WUSR;
        rustix::fs::mknodat(self.dir, self.name.as_slice(), kind, mode, device)?;
        self.made(kind, device)
    }

    fn made(&mut self, kind: FileType, device: u64) -> Result<OwnedFd> {
        self.armed = true;
        let fd = open_path(self.dir, &self.name)?;
        let stat = rustix::fs::fstat(&fd)?;
        // One who renames meanwhile may have put another's node here; what we made has one name.
        let same = FileType::from_raw_mode(stat.st_mode) == kind && stat.st_nlink == 1;
        match same && (device == 0 || stat.st_rdev == device) {
            true => Ok(fd),
            false => Err(Errno::STALE),
        }
    }

    /// A further name of an open node.
    pub(super) fn link(&mut self, node: &OwnedFd) -> Result<()> {
        let from = proc_path(node);
        rustix::fs::linkat(CWD, &from, self.dir, self.name.as_slice(), AtFlags::SYMLINK_FOLLOW)?;
        self.armed = true;
        Ok(())
    }

    /// Gives it its name. Without `replace`, `EEXIST` if the name is taken.
    pub(super) fn publish(mut self, name: &[u8], replace: bool) -> Result<()> {
        let from = self.name.as_slice();
        if replace {
            rustix::fs::renameat(self.dir, from, self.dir, name)?;
            // Two names of one node: the call does nothing and says it went well.
            let _ = rustix::fs::unlinkat(self.dir, from, AtFlags::empty());
            self.armed = false;
            return Ok(());
        }
        match rustix::fs::renameat_with(self.dir, from, self.dir, name, RenameFlags::NOREPLACE) {
            // File systems without this flag: a second name, and the first one goes as it is dropped.
            Err(Errno::INVAL | Errno::NOSYS) => {
                rustix::fs::linkat(self.dir, from, self.dir, name, AtFlags::empty())
            }
            Ok(()) => {
                self.armed = false;
                Ok(())
            }
            Err(error) => Err(error),
        }
    }
}

impl Drop for Temporary<'_> {
    fn drop(&mut self) {
        if self.armed {
            // The name is ours by chance; a failure leaves a file that its name explains.
            let _ = rustix::fs::unlinkat(self.dir, self.name.as_slice(), AtFlags::empty());
        }
    }
}

/// The bytes of a name as the standard library takes them.
pub(super) fn os(name: &[u8]) -> &OsStr {
    OsStr::from_bytes(name)
}
