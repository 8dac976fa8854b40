//! Recovery points as files: a FUSE mount in a directory of this host.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use backstay_api::mountd::{ClientView, FilesOwners, FilesRequest, MountRequest};
use backstay_api::{Refusal, RefusalKind};
use backstay_guestfs::apart::ReaderCommand;
use jiff::Timestamp;

use super::live::Base;
use super::{Asker, refusal};
use crate::fuse::{GuardianCommand, IdRange, ImageMount, ImageMountOptions, Only, Owners, Unmount};

/// Ranges of numbers in one map, as the kernel has it for user namespaces.
const RANGES_MAX: usize = 340;

/// How the processes beside a mount are started.
#[derive(Clone, Debug)]
pub struct Helpers {
    /// A reader of guests' file systems.
    pub reader: ReaderCommand,
    /// What takes the mount away if the daemon is killed.
    pub guardian: GuardianCommand,
}

/// Makes mounts of files. `None`: this daemon does not.
#[derive(Debug)]
pub(super) struct Files(pub(super) Option<Helpers>);

/// A directory in which a point is shown.
#[derive(Debug)]
pub(super) struct Served {
    mount: Arc<ImageMount>,
    since: Timestamp,
}

/// Refuses what could not be shown.
pub(super) fn check(
    files: &FilesRequest,
    request: &MountRequest,
    asker: Asker,
) -> Result<(), Refusal> {
    let usage = |why: &str| Err(Refusal::new(RefusalKind::Usage, why).what(&files.directory));
    if request.writable || request.limit_bytes.is_some() || request.pause_when_full {
        return usage("files are shown read-only; mount nbd and mount iscsi can be written to");
    }
    if !request.listen.is_empty() || !request.allow.is_empty() {
        return usage("a directory has no address, and the modes of files say who may read them");
    }
    if !Path::new(&files.directory).is_absolute() {
        return usage("the directory must be named by its whole path");
    }
    if let FilesOwners::Map { users, groups } = &files.owners
        && users.len().max(groups.len()) > RANGES_MAX
    {
        return usage("the map has too many ranges");
    }
    // Who mounts over a directory takes away what others see there.
    let daemon = rustix::process::geteuid().as_raw();
    if asker.uid != daemon {
        let why = "only the daemon's own user can have it mount on directories";
        return Err(Refusal::new(RefusalKind::Denied, why)
            .what(&files.directory)
            .hint("backstay mount files ... --foreground"));
    }
    Ok(())
}

impl Files {
    /// Shows a point.
    pub(super) fn serve(&self, files: &FilesRequest, base: Base) -> Result<Served, Refusal> {
        let Some(helpers) = &self.0 else {
            let why = "this daemon does not mount on directories";
            return Err(Refusal::new(RefusalKind::Refused, why).what(&files.directory));
        };
        let options = ImageMountOptions {
            allow_other: files.allow_other,
            only: Only::Point(base.point.id),
            reader: Some(helpers.reader.clone()),
            owners: owners(&files.owners),
            guardian: Some(helpers.guardian.clone()),
            ..ImageMountOptions::new(PathBuf::from(&files.directory))
        };
        let mount = ImageMount::start(base.opened, options)
            .map_err(|e| refusal(&e).what(&files.directory))?;
        Ok(Served { mount: Arc::new(mount), since: Timestamp::now() })
    }
}

impl Served {
    /// Who has something open in it, together.
    pub(super) fn users(&self) -> Vec<ClientView> {
        let open = self.mount.open_files();
        let user = || ClientView {
            peer: format!("{open} open files"),
            initiator: None,
            session: None,
            since: self.since,
            writable: false,
            requests: 0,
            read_bytes: 0,
            written_bytes: 0,
        };
        if open == 0 { Vec::new() } else { vec![user()] }
    }

    /// The mount itself.
    pub(super) fn mount(&self) -> Arc<ImageMount> {
        Arc::clone(&self.mount)
    }

    /// Whether it was unmounted.
    pub(super) fn is_gone(&self) -> bool {
        self.mount.has_ended()
    }

    /// Takes it out of the tree; what is open stays readable until it is closed.
    pub(super) fn stop(self) {
        if let Err(error) = self.mount.end(Unmount::Detach) {
            let directory = self.mount.mountpoint().display();
            tracing::error!(%directory, %error, "cannot unmount");
        }
    }
}

fn owners(asked: &FilesOwners) -> Owners {
    let ranges = |list: &[(u32, u32, u32)]| -> Vec<IdRange> {
        list.iter().map(|&(from, to, count)| IdRange { from, to, count }).collect()
    };
    match asked {
        FilesOwners::Guest => Owners::Guest,
        FilesOwners::As { uid, gid } => Owners::As { uid: *uid, gid: *gid },
        FilesOwners::Map { users, groups } => {
            Owners::Map { users: ranges(users), groups: ranges(groups) }
        }
    }
}
