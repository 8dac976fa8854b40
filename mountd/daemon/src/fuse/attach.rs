//! Getting a FUSE connection mounted: checking the mountpoint, mount(2), or `fusermount3` for users
//! without the right to mount.
//!
//! fuser could mount too, but it cannot tell a busy unmount from a done one and unmounts by path
//! alone when it ends; we mount ourselves, hand it the descriptor, and unmount only what is ours.

use std::fs::File;
use std::io::{IoSliceMut, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use rustix::io::Errno;
use rustix::mount::MountFlags;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};

use super::table::{self, FS_TYPE, Pulse, Unmount};
use crate::{Error, ErrorKind};

/// Dead mounts of ours that may lie on top of each other before we stop digging.
const STALE_LAYERS_MAX: usize = 16;
/// What `fusermount3` may say on its error output.
const SAID_MAX: u64 = 4096;

/// The mountpoint's real path, ready to be mounted on.
///
/// A mount of ours whose process has died is detached first. Anything else mounted there is
/// [`ErrorKind::Busy`]; something that is no directory is [`ErrorKind::Mountpoint`].
pub(super) fn prepare_mountpoint(wanted: &Path) -> Result<PathBuf, Error> {
    for _ in 0..STALE_LAYERS_MAX {
        let path = real_path(wanted)?;
        let Some(mounted) = table::mounted_at(&path)? else {
            return match std::fs::metadata(&path) {
                Ok(m) if m.is_dir() => Ok(path),
                Ok(_) => Err(no_directory(wanted)),
                Err(e) => Err(Error::os(format!("cannot look at {}", wanted.display()), e)),
            };
        };
        if mounted.fs_type != FS_TYPE {
            let (fs, source) = (mounted.fs_type, mounted.source);
            return Err(Error::new(
                ErrorKind::Busy,
                format!("{} is in use: {source} ({fs}) is mounted there", wanted.display()),
            ));
        }
        if table::pulse(&path) == Pulse::Alive {
            return Err(Error::new(
                ErrorKind::Busy,
                format!("{} is in use: a Backstay mount is live there", wanted.display()),
            ));
        }
        table::unmount(&path, mounted.identity, Unmount::Detach)?;
        tracing::info!(mountpoint = %path.display(), "detached a mount whose process had died");
    }
    let why = format!("{} is in use: too many dead mounts lie on it", wanted.display());
    Err(Error::new(ErrorKind::Busy, why))
}

fn no_directory(path: &Path) -> Error {
    let why = format!("{} cannot be a mountpoint: it is not a directory", path.display());
    Error::new(ErrorKind::Mountpoint, why)
}

/// Like `canonicalize`, but also for a path whose last component is a dead mount.
fn real_path(path: &Path) -> Result<PathBuf, Error> {
    let error = match std::fs::canonicalize(path) {
        Ok(real) => return Ok(real),
        Err(e) => e,
    };
    if error.raw_os_error() == Some(Errno::NOTCONN.raw_os_error())
        && let Some(name) = path.file_name()
    {
        let parent = match path.parent() {
            Some(p) if !p.as_os_str().is_empty() => p,
            _ => Path::new("."),
        };
        if let Ok(parent) = std::fs::canonicalize(parent) {
            return Ok(parent.join(name));
        }
    }
    match error.kind() {
        std::io::ErrorKind::NotFound => Err(Error::new(
            ErrorKind::Mountpoint,
            format!("the mountpoint {} does not exist: create the directory first", path.display()),
        )),
        std::io::ErrorKind::NotADirectory => Err(no_directory(path)),
        _ => Err(Error::os(format!("cannot look at {}", path.display()), error)),
    }
}

/// Mounts a new FUSE connection at `path` and returns its device.
///
/// Always read-only, nosuid, nodev, noexec and with `default_permissions`: without the last, a
/// kernel that caches a permission answer for one user may give it to another.
pub(super) fn attach(path: &Path, allow_other: bool) -> Result<OwnedFd, Error> {
    let device = match open_device() {
        Ok(device) => device,
        // Only root may open the device here; the setuid helper opens it itself.
        Err(e) if e.kind() == ErrorKind::Denied => return fusermount(path, allow_other),
        Err(e) => return Err(e),
    };
    let data = format!(
        "fd={},rootmode=40000,user_id={},group_id={},subtype=backstay,default_permissions{}",
        device.as_raw_fd(),
        rustix::process::getuid().as_raw(),
        rustix::process::getgid().as_raw(),
        if allow_other { ",allow_other" } else { "" },
    );
    let data = std::ffi::CString::new(data)
        .map_err(|e| Error::with_source(ErrorKind::Io, "cannot build mount options", e))?;
    let flags = MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    match rustix::mount::mount("backstay", path, "fuse", flags, Some(data.as_c_str())) {
        Ok(()) => Ok(device),
        Err(Errno::PERM) => fusermount(path, allow_other),
        Err(Errno::NODEV) => {
            let why = "this kernel has no FUSE file system: load the module 'fuse'";
            Err(Error::new(ErrorKind::Unsupported, why))
        }
        Err(e) => Err(Error::os(format!("cannot mount at {}", path.display()), e)),
    }
}

fn open_device() -> Result<OwnedFd, Error> {
    match File::options().read(true).write(true).open("/dev/fuse") {
        Ok(file) => Ok(file.into()),
        Err(e) if e.kind() == std::io::ErrorKind::PermissionDenied => {
            Err(Error::os("cannot open /dev/fuse", e))
        }
        Err(e) => Err(Error::with_source(
            ErrorKind::Unsupported,
            "this machine has no FUSE: /dev/fuse cannot be opened",
            e,
        )),
    }
}

/// The setuid helper mounts and sends the device over a socket it finds as the descriptor named in
/// `_FUSE_COMMFD` (libfuse, doc/kernel.txt and util/fusermount.c). Ours is its standard input, so
/// that no descriptor has to be made inheritable.
fn fusermount(path: &Path, allow_other: bool) -> Result<OwnedFd, Error> {
    let (ours, theirs) =
        UnixStream::pair().map_err(|e| Error::os("cannot make a socket pair", e))?;
    let mut options =
        String::from("ro,nosuid,nodev,noexec,default_permissions,fsname=backstay,subtype=backstay");
    if allow_other {
        options.push_str(",allow_other");
    }
    let mut child = Command::new("fusermount3")
        .arg("-o")
        .arg(options)
        .arg("--")
        .arg(path)
        .env("_FUSE_COMMFD", "0")
        .stdin(Stdio::from(OwnedFd::from(theirs)))
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|e| {
            let why = "mounting needs root or the program fusermount3 (Debian package fuse3)";
            Error::with_source(ErrorKind::Denied, why, e)
        })?;
    let device = receive_device(&ours);
    let said = reap(&mut child);
    device.ok_or_else(|| {
        let why = format!("fusermount3 refuses to mount at {}: {said}", path.display());
        Error::new(ErrorKind::Denied, why)
    })
}

/// The descriptor the helper sends, or none when it closes the socket without.
fn receive_device(socket: &UnixStream) -> Option<OwnedFd> {
    let mut byte = [0u8; 1];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut data = [IoSliceMut::new(&mut byte)];
    loop {
        match rustix::net::recvmsg(socket, &mut data, &mut control, RecvFlags::CMSG_CLOEXEC) {
            Ok(_) => break,
            Err(Errno::INTR) => {}
            Err(_) => return None,
        }
    }
    control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    })
}

fn reap(child: &mut Child) -> String {
    let mut said = Vec::new();
    if let Some(stderr) = child.stderr.take() {
        let _ = stderr.take(SAID_MAX).read_to_end(&mut said);
    }
    let _ = child.wait();
    String::from_utf8_lossy(&said).trim().to_owned()
}
