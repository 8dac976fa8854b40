//! The file-system door: every recovery point as `MACHINE/POINT/disks/NAME.raw`, read-only.
//!
//! [`ImageMount::start`] mounts; the mount lives until [`ImageMount::end`], until somebody unmounts
//! it, or until the value is dropped. What readers may rely on stands in
//! `mountd/docs/SEMANTICS.md`.

mod attach;
mod errno;
mod fs;
mod guardian;
mod inside;
mod listing;
mod names;
mod pool;
mod reading;
mod table;
mod tree;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use backstay_guestfs::apart::ReaderCommand;
use backstay_store::Repository;
use parking_lot::{Condvar, Mutex};

pub use guardian::{GuardianCommand, guardian_main};
pub use inside::{IdRange, Owners};
pub use listing::Only;
pub use table::{MountIdentity, ParseIdentityError, Unmount};

use crate::{Error, ErrorKind};
use fs::MountFs;
use guardian::Guardian;
use inside::Inside;
use listing::Listing;

/// How long the serving thread may take to notice that its mount is gone.
const END_PATIENCE: Duration = Duration::from_secs(10);
/// The same for a mount that was taken away earlier: who still holds it holds it on purpose.
const GONE_PATIENCE: Duration = Duration::from_millis(500);
/// Threads for reads that have to fetch, decode or wait: at least enough to keep a disk busy, at
/// most what the store's own fetch threads can feed.
const WORKERS_MIN: usize = 4;
const WORKERS_MAX: usize = 16;

/// What to mount, where, and for whom.
#[derive(Clone, Debug)]
pub struct ImageMountOptions {
    /// An existing directory.
    pub mountpoint: PathBuf,
    /// Let other users in. Without root this needs `user_allow_other` in `/etc/fuse.conf`.
    pub allow_other: bool,
    /// How old the list of machines and points may be when somebody looks.
    pub point_refresh: Duration,
    /// What is shown.
    pub only: Only,
    /// How to start readers of guests' file systems. Without one, points have no `files`.
    pub reader: Option<ReaderCommand>,
    /// Whose guests' files are shown as.
    pub owners: Owners,
    /// How to start the process that takes the mount away if this one is killed. Without one, a
    /// dead mount stays until the next mount at the same place replaces it.
    pub guardian: Option<GuardianCommand>,
}

impl ImageMountOptions {
    /// All machines at `mountpoint`, for this user alone, the list at most 2 seconds old, and no
    /// guardian.
    pub fn new(mountpoint: impl Into<PathBuf>) -> Self {
        Self {
            mountpoint: mountpoint.into(),
            allow_other: false,
            point_refresh: Duration::from_secs(2),
            only: Only::All,
            reader: None,
            owners: Owners::default(),
            guardian: None,
        }
    }
}

/// A mounted file system of a repository's disks.
///
/// Dropping it detaches the mount; files still open work until this process ends.
#[derive(Debug)]
pub struct ImageMount {
    path: PathBuf,
    identity: MountIdentity,
    ended: Arc<Ended>,
    used: Arc<AtomicUsize>,
    rest: Mutex<Rest>,
}

/// What is cleaned up once the mount has ended.
#[derive(Debug)]
struct Rest {
    session: Option<JoinHandle<()>>,
    guardian: Option<Guardian>,
}

/// Set when the serving thread is done.
#[derive(Debug, Default)]
struct Ended {
    done: Mutex<bool>,
    changed: Condvar,
}

impl Ended {
    fn set(&self) {
        *self.done.lock() = true;
        self.changed.notify_all();
    }

    fn wait(&self) {
        let mut done = self.done.lock();
        while !*done {
            self.changed.wait(&mut done);
        }
    }

    fn wait_for(&self, patience: Duration) -> bool {
        let mut done = self.done.lock();
        self.changed.wait_while_for(&mut done, |done| !*done, patience);
        *done
    }
}

struct SetWhenDropped(Arc<Ended>);

impl Drop for SetWhenDropped {
    fn drop(&mut self) {
        self.0.set();
    }
}

impl ImageMount {
    /// Mounts. When it returns, the tree can be read.
    ///
    /// A mount of ours at the same place whose process has died is detached first.
    ///
    /// # Errors
    /// [`ErrorKind::Mountpoint`] if there is no such directory, [`ErrorKind::Busy`] if something
    /// live is mounted there, [`ErrorKind::Unsupported`] without FUSE, [`ErrorKind::Denied`] without
    /// the right to mount, [`ErrorKind::Repository`] if the points cannot be listed. Nothing is left
    /// mounted after an error.
    pub fn start(repository: Repository, options: ImageMountOptions) -> Result<Self, Error> {
        let path = attach::prepare_mountpoint(&options.mountpoint)?;
        let inside =
            options.reader.map(|reader| Inside::new(repository.clone(), reader, options.owners));
        let refresh = options.point_refresh;
        let listing = Listing::read(repository, options.only, refresh, inside.is_some())
            .map_err(|e| Error::repository("cannot list the recovery points", e))?;
        let used = listing.used();
        let workers = std::thread::available_parallelism().map_or(WORKERS_MIN, |n| n.get() * 2);
        let fs = MountFs::new(listing, inside, workers.clamp(WORKERS_MIN, WORKERS_MAX))
            .map_err(|e| Error::os("cannot start the mount's threads", e))?;
        let device = attach::attach(&path, options.allow_other)?;
        let identity = table::mounted_at(&path).and_then(|mounted| match mounted {
            Some(m) if m.fs_type == table::FS_TYPE => Ok(m.identity),
            _ => {
                let why = format!("the mount at {} does not appear", path.display());
                Err(Error::new(ErrorKind::Io, why))
            }
        })?;
        // From here on dropping `mount` takes the mount away again.
        let mount = Self {
            path,
            identity,
            ended: Arc::new(Ended::default()),
            used,
            rest: Mutex::new(Rest { session: None, guardian: None }),
        };
        let session = mount.serve(fs, device, options.allow_other)?;
        mount.rest.lock().session = Some(session);
        if let Some(command) = &options.guardian {
            let guardian = Guardian::spawn(command, &mount.path, mount.identity)?;
            mount.rest.lock().guardian = Some(guardian);
        }
        raise_readahead(identity);
        tracing::info!(mountpoint = %mount.path.display(), mount = %identity, "mounted");
        Ok(mount)
    }

    /// Shakes hands with the kernel and starts the thread that serves it.
    fn serve(
        &self,
        fs: MountFs,
        device: std::os::fd::OwnedFd,
        allow_other: bool,
    ) -> Result<JoinHandle<()>, Error> {
        let mut config = fuser::Config::default();
        config.n_threads = Some(1);
        let acl = if allow_other { fuser::SessionACL::All } else { fuser::SessionACL::Owner };
        let session = fuser::Session::from_fd(fs, device, acl, config)
            .map_err(|e| Error::os("the kernel refuses the FUSE connection", e))?;
        let ended = Arc::clone(&self.ended);
        let path = self.path.clone();
        std::thread::Builder::new()
            .name("mount".into())
            .spawn(move || {
                // Also if serving panics: somebody waits for the end.
                let _ended = SetWhenDropped(ended);
                if let Err(e) = session.run() {
                    tracing::error!(mountpoint = %path.display(), error = %e, "the mount broke");
                }
            })
            .map_err(|e| Error::os("cannot start the mount's thread", e))
    }

    /// Where it is mounted, as a real path.
    pub fn mountpoint(&self) -> &Path {
        &self.path
    }

    /// Which mount it is in the kernel's table.
    pub fn identity(&self) -> MountIdentity {
        self.identity
    }

    /// Ends the mount; one that has ended already is success. From any thread, also while another
    /// waits in [`wait_until_ended`](Self::wait_until_ended).
    ///
    /// [`Unmount::Orderly`] returns when everything is cleaned up. [`Unmount::Detach`] returns when
    /// the mountpoint is free; who has files open keeps reading them while this process lives.
    ///
    /// # Errors
    /// [`ErrorKind::Busy`], naming who uses it, if an orderly end finds files in use: the mount
    /// then goes on as before.
    pub fn end(&self, how: Unmount) -> Result<(), Error> {
        let was_there = table::unmount(&self.path, self.identity, how)?;
        let patience = match how {
            Unmount::Orderly if was_there => END_PATIENCE,
            Unmount::Orderly => GONE_PATIENCE,
            Unmount::Detach => Duration::ZERO,
        };
        if self.ended.wait_for(patience) {
            self.clean_up();
            return Ok(());
        }
        match how {
            Unmount::Detach => Ok(()),
            // Somebody else has detached it, or another mount namespace still holds it.
            Unmount::Orderly => Err(table::busy(&self.path)),
        }
    }

    /// Waits until the mount is gone: ended here, or unmounted by somebody else.
    pub fn wait_until_ended(&self) {
        self.ended.wait();
        self.clean_up();
    }

    /// Files and directories that somebody has open.
    pub fn open_files(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    /// Whether the mount is gone.
    pub fn has_ended(&self) -> bool {
        *self.ended.done.lock()
    }

    /// Joins what is finished and sends the guardian home.
    fn clean_up(&self) {
        let mut rest = self.rest.lock();
        if let Some(session) = rest.session.take() {
            let _ = session.join();
        }
        drop(rest.guardian.take());
    }
}

impl Drop for ImageMount {
    fn drop(&mut self) {
        if let Err(e) = table::unmount(&self.path, self.identity, Unmount::Detach) {
            tracing::error!(mountpoint = %self.path.display(), error = %e, "cannot unmount");
        }
        // A thread still serving open files ends with the process; the guardian is not needed for a
        // mount that is no longer in the table.
        drop(self.rest.lock().guardian.take());
    }
}

/// INIT offers a megabyte of readahead, but the kernel keeps to the 128 KiB of its backing-device
/// record until that is told too. Needs root; a slower sequential read is all there is to lose.
fn raise_readahead(identity: MountIdentity) {
    let path = format!("/sys/class/bdi/{}/read_ahead_kb", identity.device());
    let kib = (fs::READAHEAD_BYTES / 1024).to_string();
    if let Err(e) = std::fs::write(&path, kib) {
        tracing::debug!(%path, error = %e, "readahead stays at the kernel's default");
    }
}
