//! Owners, attributes, permissions, times and marks, put on an open node.

use std::os::fd::{AsFd, OwnedFd};

use backstay_guestfs::fs::{NodeKind, Stat, Time, Xattr};
use rustix::fs::{AtFlags, CWD, Gid, IFlags, Mode, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;

use super::at;
use crate::files::What;

/// Who owns what is written.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Ownership {
    /// The guest's numbers if this process is root, otherwise whoever runs it.
    #[default]
    Auto,
    /// The guest's numbers; told where that is refused.
    Keep,
    /// Numbers moved by ranges, the first one that fits; others are not kept, and told.
    Map {
        /// For owners.
        users: Vec<IdRange>,
        /// For groups.
        groups: Vec<IdRange>,
    },
    /// One owner and group for all.
    As {
        /// The owner.
        uid: u32,
        /// The group.
        gid: u32,
    },
}

/// `len` numbers from `guest` on become those from `host` on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IdRange {
    /// First number in the guest.
    pub guest: u32,
    /// First number here.
    pub host: u32,
    /// How many.
    pub len: u32,
}

/// What is put on nodes.
#[derive(Debug, Clone)]
pub(super) struct Policy {
    /// None of them is changed if there is none.
    pub(super) ownership: Option<Ownership>,
    pub(super) privileged: bool,
}

impl Policy {
    pub(super) fn new(ownership: &Ownership, privileged: bool) -> Self {
        let root = rustix::process::geteuid().is_root();
        let ownership = match ownership {
            Ownership::Auto if root => Some(Ownership::Keep),
            Ownership::Auto => None,
            other => Some(other.clone()),
        };
        Policy { ownership, privileged }
    }

    fn owner(&self, stat: &Stat) -> Option<(u32, u32)> {
        let moved = |ranges: &[IdRange], id: u32| {
            ranges.iter().find_map(|range| {
                let offset = id.checked_sub(range.guest).filter(|offset| *offset < range.len)?;
                range.host.checked_add(offset)
            })
        };
        let (uid, gid) = match self.ownership.as_ref()? {
            Ownership::Auto | Ownership::Keep => (stat.uid, stat.gid),
            Ownership::As { uid, gid } => (*uid, *gid),
            Ownership::Map { users, groups } => (moved(users, stat.uid)?, moved(groups, stat.gid)?),
        };
        // The last number means "leave it" to the kernel.
        (uid != u32::MAX && gid != u32::MAX).then_some((uid, gid))
    }
}

/// Takes what could not be kept, and in which words.
pub(super) type Lost<'a> = &'a mut dyn FnMut(What, String);

/// Puts all but marks on a node; what is refused is told and the rest goes on. `fd` is a descriptor that
/// was opened for reading at least, or by path for what is no file and no directory.
pub(super) fn apply(fd: &OwnedFd, stat: &Stat, xattrs: &[Xattr], policy: &Policy, lost: Lost<'_>) {
    let owned = owner(fd, stat, policy, lost);
    for xattr in xattrs {
        set_xattr(fd, stat.kind, xattr, policy, lost);
    }
    // After owner and attributes, which clear bits and change the group's.
    if stat.kind != NodeKind::Symlink {
        mode(fd, stat, policy.privileged && owned, lost);
    }
    times(fd, stat, lost);
}

/// Gives it its owner; whether it has the one it should have.
fn owner(fd: &OwnedFd, stat: &Stat, policy: &Policy, lost: Lost<'_>) -> bool {
    let Some((uid, gid)) = policy.owner(stat) else {
        let here = rustix::fs::fstat(fd);
        if here.is_ok_and(|here| (here.st_uid, here.st_gid) == (stat.uid, stat.gid)) {
            return true;
        }
        lost(What::Owner, format!("owner {}:{} not kept", stat.uid, stat.gid));
        return false;
    };
    let (user, group) = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
    match rustix::fs::chownat(fd, c"", user, group, AtFlags::EMPTY_PATH) {
        Ok(()) => true,
        Err(error) => {
            lost(What::Owner, format!("owner {uid}:{gid} not kept: {error}"));
            false
        }
    }
}

fn set_xattr(fd: &OwnedFd, kind: NodeKind, xattr: &Xattr, policy: &Policy, lost: Lost<'_>) {
    let name = xattr.name.as_slice();
    let special = name.starts_with(b"security.") || name.starts_with(b"trusted.");
    let shown = crate::files::shown(name);
    if special && !policy.privileged {
        return lost(What::Xattr, format!("attribute {shown} not kept: it grants rights"));
    }
    if name.contains(&0) {
        return lost(What::Xattr, format!("attribute {shown} not kept: no name"));
    }
    let result = match kind {
        NodeKind::File | NodeKind::Directory => {
            rustix::fs::fsetxattr(fd, name, &xattr.value, XattrFlags::empty())
        }
        // By path: the descriptor is only a place, and a link would be the link itself.
        _ => rustix::fs::setxattr(at::proc_path(fd), name, &xattr.value, XattrFlags::empty()),
    };
    if let Err(error) = result {
        lost(What::Xattr, format!("attribute {shown} not kept: {error}"));
    }
}

fn mode(fd: &OwnedFd, stat: &Stat, special: bool, lost: Lost<'_>) {
    let guest = u32::from(stat.mode & 0o7777);
    let mode = if special { guest } else { guest & 0o1777 };
    if mode != guest {
        lost(What::Mode, format!("mode {guest:04o} became {mode:04o}: setuid and setgid not kept"));
    }
    let bits = Mode::from_raw_mode(mode);
    let result = match stat.kind {
        NodeKind::File | NodeKind::Directory => rustix::fs::fchmod(fd, bits),
        _ => rustix::fs::chmodat(CWD, at::proc_path(fd), bits, AtFlags::empty()),
    };
    if let Err(error) = result {
        lost(What::Mode, format!("mode {mode:04o} not kept: {error}"));
    }
}

fn times(fd: &OwnedFd, stat: &Stat, lost: Lost<'_>) {
    let spec = |time: Time| Timespec {
        tv_sec: time.seconds,
        tv_nsec: i64::from(time.nanos.min(999_999_999)),
    };
    let times =
        Timestamps { last_access: spec(stat.accessed), last_modification: spec(stat.modified) };
    let result = match rustix::fs::utimensat(fd, c"", &times, AtFlags::EMPTY_PATH) {
        // Kernels before 5.8 take no empty path; a link's times are lost there.
        Err(Errno::INVAL | Errno::NOENT) => rustix::fs::futimens(fd, &times),
        other => other,
    };
    if let Err(error) = result {
        return lost(What::Times, format!("times not kept: {error}"));
    }
    // File systems keep fewer digits or fewer years, and say nothing.
    let kept = rustix::fs::fstat(fd);
    let same = kept.is_ok_and(|kept| {
        kept.st_mtime == stat.modified.seconds
            && u64::from(stat.modified.nanos) == kept.st_mtime_nsec
    });
    if !same {
        lost(What::Times, String::from("times kept less exactly, or not"));
    }
}

/// Puts on the marks that keep a node from being changed: the very last thing.
pub(super) fn flags(fd: impl AsFd, stat: &Stat, policy: &Policy, lost: Lost<'_>) {
    let mut flags = IFlags::empty();
    flags.set(IFlags::IMMUTABLE, stat.attributes.immutable);
    flags.set(IFlags::APPEND, stat.attributes.append_only);
    if flags.is_empty() || !matches!(stat.kind, NodeKind::File | NodeKind::Directory) {
        return;
    }
    if !policy.privileged {
        return lost(What::Flags, String::from("immutable or append-only not kept"));
    }
    let set = rustix::fs::ioctl_getflags(&fd)
        .and_then(|now| rustix::fs::ioctl_setflags(&fd, now | flags));
    if let Err(error) = set {
        lost(What::Flags, format!("immutable or append-only not kept: {error}"));
    }
}
