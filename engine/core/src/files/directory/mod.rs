//! Writing a tree into a directory of this machine.
//!
//! Every node is reached from the descriptor of the directory it lies in, one component at a time, and
//! no link is followed; so neither the tree nor somebody who renames in the target meanwhile makes us
//! write outside it. A file gets its name when its content and metadata are complete: whoever is killed
//! leaves whole files and names that begin with `.backstay-`.

mod at;
mod metadata;
mod write;

use std::collections::HashSet;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use backstay_guestfs::fs::Stat;
use rustix::fs::{Mode, OFlags};

pub use metadata::{IdRange, Ownership};

use super::walk::{Limits, is_name, measure};
use super::{Report, Tree, What, stopped};
use crate::error::{Error, ErrorKind, Result};
use crate::monitor::Monitor;

/// How a tree is written.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// The name the start gets in the target. Without one the start has to be a directory, and what is in
    /// it comes into the target.
    pub name: Option<Vec<u8>>,
    /// Replaces files that are there. Otherwise they stay and are told ([`What::Exists`]), and directories
    /// that are there keep their metadata. A directory is never replaced by a file or the other way.
    pub overwrite: bool,
    /// Who owns what is written.
    pub ownership: Ownership,
    /// Takes what gives rights: setuid and setgid bits, device nodes, attributes of `security.` and
    /// `trusted.`, marks such as "immutable".
    pub privileged_metadata: bool,
    /// Most bytes of content that are written; the run ends with [`ErrorKind::NoSpace`] before or as they
    /// are passed.
    pub max_bytes: Option<u64>,
    /// Bounds of the walk.
    pub limits: Limits,
    /// Does not compare the size of the tree with the free space first, which costs a walk of its own.
    pub skip_space_check: bool,
    /// Brings everything to stable storage before the run ends well.
    pub sync: bool,
}

/// A directory of the target that is being filled.
#[derive(Debug)]
struct Folder {
    fd: OwnedFd,
    parent: Option<Arc<Folder>>,
    path: Vec<u8>,
    /// Metadata it gets when all in it is done; none if it was there and stays as it is.
    stat: Option<Stat>,
    /// What is being written in it, and one for the walk as long as it is in there.
    pending: AtomicUsize,
    /// Inode numbers of what we put here: a name that leads to one of them is not another's.
    ours: Mutex<HashSet<u64>>,
}

/// What all threads of a run share.
struct Run<'a> {
    tree: Tree<'a>,
    options: &'a Options,
    policy: metadata::Policy,
    monitor: &'a dyn Monitor,
    report: Mutex<Report>,
    written: AtomicU64,
}

impl Run<'_> {
    fn report<T>(&self, change: impl FnOnce(&mut Report) -> T) -> T {
        change(&mut self.report.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn note(&self, path: &[u8], what: What, text: impl std::fmt::Display) {
        self.report(|report| report.note(path, what, text));
    }

    /// Counts bytes before they are written.
    fn take(&self, bytes: u64) -> Result<()> {
        stopped(self.monitor)?;
        let all = self.written.fetch_add(bytes, Ordering::Relaxed).saturating_add(bytes);
        match self.options.max_bytes {
            Some(max) if all > max => Err(Error::new(
                ErrorKind::NoSpace,
                format!("the tree has more than the {max} bytes it may have"),
            )),
            _ => Ok(()),
        }
    }
}

/// Writes `tree` into the directory `target`, which is made if it is not there (its parent is not).
///
/// What is missing or not as it was is in the report; a node that cannot be read or written does not end
/// the run. Ends it: a full target or a passed bound ([`ErrorKind::NoSpace`], before anything is
/// written where that can be told), a target that cannot be written at all, an unreadable start, and the
/// monitor ([`ErrorKind::Cancelled`]). What was finished until then stays.
pub fn write(
    tree: Tree<'_>,
    target: &Path,
    options: &Options,
    monitor: &dyn Monitor,
) -> Result<Report> {
    if let Some(name) = options.name.as_deref().filter(|name| !is_name(name)) {
        let text = format!("{:?} cannot be the name of a file", super::shown(name));
        return Err(Error::new(ErrorKind::Invalid, text));
    }
    let fd = open_target(target)?;
    monitor.phase("measure");
    if !options.skip_space_check || options.max_bytes.is_some() {
        let size = measure(tree, options.limits, &|| stopped(monitor))?;
        monitor.total_bytes(size.data_bytes);
        check_space(&fd, target, size, options)?;
    }
    monitor.phase("write");
    let run = Run {
        tree,
        options,
        policy: metadata::Policy::new(&options.ownership, options.privileged_metadata),
        monitor,
        report: Mutex::default(),
        written: AtomicU64::new(0),
    };
    let root = Arc::new(Folder {
        fd,
        parent: None,
        path: Vec::new(),
        stat: None,
        pending: AtomicUsize::new(1),
        ours: Mutex::default(),
    });
    write::all(&run, &root)?;
    if options.sync {
        monitor.phase("sync");
        rustix::fs::syncfs(&root.fd).map_err(|error| Error::io("sync", target, error.into()))?;
    }
    Ok(run.report.into_inner().unwrap_or_else(PoisonError::into_inner))
}

/// The target's own path is the user's: links in it are followed.
fn open_target(target: &Path) -> Result<OwnedFd> {
    let failed = |what: &str, error: rustix::io::Errno| Error::io(what, target, error.into());
    match rustix::fs::mkdir(target, Mode::from_raw_mode(0o777)) {
        Ok(()) | Err(rustix::io::Errno::EXIST) => {}
        Err(error) => return Err(failed("make", error)),
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(target, flags, Mode::empty()).map_err(|error| failed("open", error))
}

fn check_space(
    fd: &OwnedFd,
    target: &Path,
    size: super::walk::Size,
    options: &Options,
) -> Result<()> {
    let no = |text: String| Err(Error::new(ErrorKind::NoSpace, text));
    let bytes = size.data_bytes;
    if let Some(max) = options.max_bytes.filter(|max| bytes > *max) {
        return no(format!("the tree has {bytes} bytes, more than the {max} it may have"));
    }
    if options.skip_space_check {
        return Ok(());
    }
    let free = rustix::fs::fstatvfs(fd).map_err(|e| Error::io("stat", target, e.into()))?;
    let room = free.f_bavail.saturating_mul(free.f_frsize);
    let shown = PathBuf::from(target);
    if bytes > room {
        let text = format!("{} has {room} bytes free, {bytes} are needed", shown.display());
        return no(text);
    }
    // File systems that make inodes as they go say they have none.
    if free.f_files > 0 && size.nodes > free.f_favail {
        let (nodes, left) = (size.nodes, free.f_favail);
        let text = format!("{} has room for {left} files, {nodes} are needed", shown.display());
        return no(text);
    }
    Ok(())
}
