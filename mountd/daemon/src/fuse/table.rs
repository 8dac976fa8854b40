//! The kernel's mount table: what is mounted where, whether it still lives, and taking it away.

use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::str::FromStr;
use std::time::Duration;

use rustix::io::Errno;
use rustix::mount::UnmountFlags;

use crate::{Error, ErrorKind};

/// The file system type our mounts carry in the table.
pub(super) const FS_TYPE: &str = "fuse.backstay";
/// How long a mount may take to say whether it lives; a slower one counts as alive.
const PROBE_PATIENCE: Duration = Duration::from_secs(2);
/// Open files named in an error; more would not help to find the first.
const HOLDERS_NAMED: usize = 5;

/// Which mount it is: as long as it exists no other mount of this host has the same identity.
///
/// Its text form, `ID-MAJOR:MINOR`, is what a guardian gets on its command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MountIdentity {
    id: u64,
    major: u32,
    minor: u32,
}

impl MountIdentity {
    /// The device number as the kernel writes it: `0:45`.
    pub(super) fn device(&self) -> String {
        format!("{}:{}", self.major, self.minor)
    }
}

impl fmt::Display for MountIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}:{}", self.id, self.major, self.minor)
    }
}

/// A text that is no mount identity.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is no mount identity (ID-MAJOR:MINOR)")]
pub struct ParseIdentityError(String);

impl FromStr for MountIdentity {
    type Err = ParseIdentityError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parse = || {
            let (id, device) = text.split_once('-')?;
            let (major, minor) = device.split_once(':')?;
            Some(MountIdentity {
                id: id.parse().ok()?,
                major: major.parse().ok()?,
                minor: minor.parse().ok()?,
            })
        };
        parse().ok_or_else(|| ParseIdentityError(text.to_owned()))
    }
}

/// A line of the mount table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Mounted {
    pub(super) identity: MountIdentity,
    parent: u64,
    path: PathBuf,
    pub(super) fs_type: String,
    pub(super) source: String,
}

/// The mount a path leads to, when it is itself a mountpoint: of several on top of each other, the
/// topmost.
pub(super) fn mounted_at(path: &Path) -> Result<Option<Mounted>, Error> {
    let table = std::fs::read("/proc/self/mountinfo")
        .map_err(|e| Error::os("cannot read the mount table /proc/self/mountinfo", e))?;
    Ok(topmost(&table, path))
}

fn topmost(table: &[u8], path: &Path) -> Option<Mounted> {
    let lines = table.split(|b| *b == b'\n').filter_map(parse_line);
    let here: Vec<Mounted> = lines.filter(|m| m.path == path).collect();
    here.iter().rev().find(|m| !here.iter().any(|o| o.parent == m.identity.id)).cloned()
}

/// proc_pid_mountinfo(5): `36 35 98:0 /root /mnt opts [tag]... - type source superopts`.
fn parse_line(line: &[u8]) -> Option<Mounted> {
    let mut fields = line.split(|b| *b == b' ');
    let number = |f: &[u8]| std::str::from_utf8(f).ok()?.parse::<u64>().ok();
    let id = number(fields.next()?)?;
    let parent = number(fields.next()?)?;
    let (major, minor) = std::str::from_utf8(fields.next()?).ok()?.split_once(':')?;
    let _root = fields.next()?;
    let path = PathBuf::from(std::ffi::OsStr::from_bytes(&unescape(fields.next()?)));
    let mut rest = fields.skip_while(|f| *f != b"-").skip(1);
    let text = |f: &[u8]| String::from_utf8_lossy(&unescape(f)).into_owned();
    Some(Mounted {
        identity: MountIdentity { id, major: major.parse().ok()?, minor: minor.parse().ok()? },
        parent,
        path,
        fs_type: text(rest.next()?),
        source: text(rest.next()?),
    })
}

/// The kernel writes space, tab, newline and backslash as `\ooo`.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(field.len());
    let mut at = 0;
    while at < field.len() {
        let code = (field[at] == b'\\')
            .then(|| field.get(at + 1..at + 4))
            .flatten()
            .and_then(|o| u8::from_str_radix(std::str::from_utf8(o).ok()?, 8).ok());
        out.push(code.unwrap_or(field[at]));
        at += if code.is_some() { 4 } else { 1 };
    }
    out
}

/// Whether a mount of ours has lost its process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pulse {
    /// It answers, refuses, or is too slow to tell.
    Alive,
    /// Nobody will ever answer: "Transport endpoint is not connected".
    Dead,
}

/// Asks the file system at `path` for its totals: unlike a `stat` the kernel never answers that from
/// its own cache. In a thread of its own, because a live but hung server would hold us for ever.
pub(super) fn pulse(path: &Path) -> Pulse {
    let (sender, receiver) = crossbeam_channel::bounded(1);
    let probed = path.to_owned();
    let probe = std::thread::Builder::new().name("mount-probe".into()).spawn(move || {
        let dead = matches!(rustix::fs::statfs(&probed), Err(Errno::NOTCONN | Errno::CONNABORTED));
        let _ = sender.send(if dead { Pulse::Dead } else { Pulse::Alive });
    });
    match probe {
        Ok(_) => receiver.recv_timeout(PROBE_PATIENCE).unwrap_or(Pulse::Alive),
        Err(_) => Pulse::Alive,
    }
}

/// How to take a mount away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unmount {
    /// Only if nobody uses it; otherwise [`ErrorKind::Busy`].
    Orderly,
    /// At once. Files that are open stay readable until they are closed or the serving process
    /// ends; the name is free for something else.
    Detach,
}

/// Takes away the mount `identity` at `path`; answers whether it was there. One that is already gone
/// is success.
pub(super) fn unmount(path: &Path, identity: MountIdentity, how: Unmount) -> Result<bool, Error> {
    match mounted_at(path)? {
        Some(mounted) if mounted.identity == identity => {}
        _ => return Ok(false),
    }
    let flags = match how {
        Unmount::Orderly => UnmountFlags::NOFOLLOW,
        Unmount::Detach => UnmountFlags::NOFOLLOW | UnmountFlags::DETACH,
    };
    match rustix::mount::unmount(path, flags) {
        Ok(()) => Ok(true),
        // Somebody was quicker.
        Err(Errno::INVAL | Errno::NOENT) => Ok(false),
        Err(Errno::BUSY) => Err(busy(path)),
        Err(Errno::PERM) => fusermount_unmount(path, how).map(|()| true),
        Err(e) => Err(Error::os(format!("cannot unmount {}", path.display()), e)),
    }
}

fn fusermount_unmount(path: &Path, how: Unmount) -> Result<(), Error> {
    let mut command = Command::new("fusermount3");
    command.arg("-u");
    if how == Unmount::Detach {
        command.arg("-z");
    }
    let done = command.arg("--").arg(path).stdin(Stdio::null()).output();
    let output = done.map_err(|e| {
        Error::with_source(
            ErrorKind::Denied,
            format!(
                "cannot unmount {}: not allowed without fusermount3, which did not start",
                path.display()
            ),
            e,
        )
    })?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    if said.to_ascii_lowercase().contains("busy") {
        return Err(busy(path));
    }
    Err(Error::new(ErrorKind::Denied, format!("cannot unmount {}: {said}", path.display())))
}

/// The error for a mount in use; it names who uses it, as far as we may see.
pub(super) fn busy(path: &Path) -> Error {
    let holders = holders(path);
    let by = if holders.is_empty() { String::new() } else { format!(" by {}", holders.join(", ")) };
    Error::new(ErrorKind::Busy, format!("{} is busy: files in it are in use{by}", path.display()))
}

/// Processes with an open file or their working directory below `path`. Only links in /proc are
/// read, so no mount can hang this.
fn holders(path: &Path) -> Vec<String> {
    let Ok(processes) = std::fs::read_dir("/proc") else { return Vec::new() };
    let pids = processes.filter_map(|e| e.ok()?.file_name().to_str()?.parse::<u32>().ok());
    let inside = |link: PathBuf| std::fs::read_link(link).is_ok_and(|t| t.starts_with(path));
    pids.filter(|pid| {
        let dir = PathBuf::from(format!("/proc/{pid}"));
        let fds = std::fs::read_dir(dir.join("fd")).into_iter().flatten().flatten();
        inside(dir.join("cwd"))
            || inside(dir.join("root"))
            || fds.into_iter().any(|fd| inside(fd.path()))
    })
    .take(HOLDERS_NAMED)
    .map(|pid| {
        let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        format!("process {pid} ({})", name.trim())
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &[u8] = b"22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda1 rw\n\
        90 22 0:50 / /mnt/a\\040b ro,nosuid shared:5 master:2 - fuse.backstay backstay ro,user_id=0\n\
        91 22 0:51 / /mnt/c ro - fuse.backstay backstay ro\n\
        92 91 0:52 / /mnt/c rw - tmpfs tmp\\134x rw\n\
        broken line\n\n";

    #[test]
    fn lines_of_the_table() {
        let m = topmost(TABLE, Path::new("/mnt/a b")).unwrap();
        assert_eq!((m.fs_type.as_str(), m.source.as_str()), (FS_TYPE, "backstay"));
        assert_eq!(m.identity.to_string(), "90-0:50");
        assert_eq!(topmost(TABLE, Path::new("/mnt")), None);
    }

    #[test]
    fn of_stacked_mounts_the_topmost_counts() {
        let m = topmost(TABLE, Path::new("/mnt/c")).unwrap();
        assert_eq!((m.fs_type.as_str(), m.source.as_str()), ("tmpfs", "tmp\\x"));
    }

    #[test]
    fn identities_come_back_and_rubbish_does_not() {
        let m = topmost(TABLE, Path::new("/mnt/c")).unwrap().identity;
        assert_eq!(m.to_string().parse::<MountIdentity>().unwrap(), m);
        for bad in ["", "1", "1-2", "1-2:x", "-1-2:3", "1-2:3 "] {
            assert!(bad.parse::<MountIdentity>().is_err(), "{bad}");
        }
    }

    #[test]
    fn the_root_is_mounted() {
        assert!(mounted_at(Path::new("/")).unwrap().is_some());
        assert!(mounted_at(Path::new("/proc/self/mountinfo")).unwrap().is_none());
    }
}
