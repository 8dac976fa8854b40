//! The mount daemon: mounts that outlive the command that made them, and the daemon itself.
//!
//! [`Mountd`] holds the mounts of one state directory. It is asked through [`Mountd::handle`]; [`control`] brings
//! requests from a socket. Every mount is in the ledger before anything of it exists outside, and leaves the ledger when
//! nothing is left of it; so whatever ends the daemon, the next one either serves a mount again under the same name or
//! finishes ending it.
//!
//! Order of a new mount: record *starting*, pin, overlays one after the other, export or target, record *serve*, answer. Of an end:
//! record *discard*, export or target away, overlays removed, reservations removed, pin removed, record removed. What is found
//! half done is undone or done, as the record says. A mount of several disks has one record and one pin, so it is never there in
//! part: killed between two overlays, it is undone when it was being made and removed when it was being thrown away. If one of
//! its overlays cannot be opened none of its disks is served, and all overlays stay.

pub mod control;
mod door;
mod doors;
mod end;
mod files;
mod iscsi;
mod keep;
mod ledger;
mod live;
mod record;
mod repos;
mod start;
mod view;

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Instant;

use backstay_api::mountd::{Answer, MountState, Request, StatusView, VERSION};
use backstay_api::{Refusal, RefusalKind};
use backstay_nbd::server::{Listen, ServerConfig};
use jiff::Timestamp;
use parking_lot::{Condvar, Mutex, MutexGuard};

use crate::{Error, ErrorKind};
use door::Door;
use doors::Doors;
use files::Files;
pub use files::Helpers;
use iscsi::Targets;
use ledger::{Ended, Ledger};
use live::Live;
pub use live::overlay_identity;
use record::Record;
use repos::Repositories;

/// Mounts that ended and are remembered by name, so that ending them again is no error.
const MAX_REMEMBERED: usize = 1000;

/// How a daemon is set up.
#[derive(Debug)]
pub struct MountdOptions {
    /// Where the ledger and the overlays are kept.
    pub state_dir: PathBuf,
    /// Where derived data goes (see [`backstay_store::OpenOptions`]).
    pub cache_dir: PathBuf,
    /// Most bytes of packs kept in the cache directory; `None` for the store's default.
    pub disk_cache_bytes: Option<u64>,
    /// The socket over which all mounts are served to this host.
    pub nbd_socket: PathBuf,
    /// Where all mounts are served besides.
    pub listen: Vec<Listen>,
    /// The bounds of the NBD servers. Its `tls` is for what goes over TCP: nobody reads a Unix socket's
    /// data on its way.
    pub nbd: ServerConfig,
    /// The iSCSI portals that all mounts share. Empty: one on this host alone, at 127.0.0.1:3260 or a free port, from
    /// the first iSCSI mount on.
    pub iscsi_listen: Vec<SocketAddr>,
    /// How the processes beside mounts of files are started; without it there are no such mounts.
    pub helpers: Option<Helpers>,
}

/// Who asks, by the kernel's word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Asker {
    /// The user.
    pub uid: u32,
}

/// The mounts of one state directory.
#[derive(Debug)]
pub struct Mountd {
    ledger: Ledger,
    repositories: Repositories,
    doors: Doors,
    mounts: Mutex<BTreeMap<String, Mount>>,
    ended: Mutex<VecDeque<Ended>>,
    /// Names of files in the state directory that are not ours.
    strange: Mutex<Vec<String>>,
    /// Marks our pins, so that those of a mount that was never finished are found again.
    pin_owner: String,
    keeper: Keeper,
}

/// The thread that looks after the mounts.
#[derive(Debug, Default)]
struct Keeper {
    thread: Mutex<Option<JoinHandle<()>>>,
    stop: Mutex<bool>,
    changed: Condvar,
}

/// A mount, as this daemon has it.
#[derive(Debug)]
struct Mount {
    record: Record,
    live: Option<Live>,
    /// Why it is not served though it should be.
    trouble: Option<(MountState, Refusal)>,
    /// Somebody is making or ending it; nobody else touches it meanwhile.
    busy: bool,
    /// Since when nobody is attached.
    alone_since: Instant,
    /// Its time is over, and clients may finish.
    ending: bool,
    /// The end was announced in the log.
    warned: bool,
}

impl Mount {
    fn new(record: Record) -> Self {
        Self {
            record,
            live: None,
            trouble: None,
            busy: false,
            alone_since: Instant::now(),
            ending: false,
            warned: false,
        }
    }
}

impl Mountd {
    /// Opens the state directory, serves again what was served, finishes what was half done, and looks after it
    /// all from now on.
    ///
    /// A mount that cannot be served is kept and says why; it is no error here.
    ///
    /// # Errors
    /// [`ErrorKind::Busy`] if another daemon uses the directory or an address; [`ErrorKind::Io`].
    pub fn start(options: MountdOptions) -> Result<Arc<Self>, Error> {
        let ledger = Ledger::open(&options.state_dir)?;
        let mut salt = [0; 32];
        getrandom::fill(&mut salt).map_err(|e| {
            Error::with_source(ErrorKind::Io, "the system gives no random numbers", e)
        })?;
        let found = ledger.read()?;
        for name in &found.strange {
            tracing::warn!(
                name,
                "a file in the ledger is no mount of this version; it is left alone"
            );
        }
        let mounts = found.records.into_iter().map(|r| (r.id.clone(), Mount::new(r))).collect();
        let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
        let daemon = Arc::new(Self {
            ended: Mutex::new(ledger.history().into()),
            pin_owner: format!("mount daemon of {host}:{}", ledger.state_dir().display()),
            repositories: Repositories::new(options.cache_dir, options.disk_cache_bytes, salt),
            doors: Doors {
                iscsi: Targets::open(ledger.state_dir(), &options.iscsi_listen)?,
                nbd: Door::open(options.nbd_socket, options.listen, options.nbd)?,
                files: Files(options.helpers),
            },
            ledger,
            mounts: Mutex::new(mounts),
            strange: Mutex::new(found.strange),
            keeper: Keeper::default(),
        });
        daemon.hold_portal();
        daemon.take_up();
        daemon.keep()?;
        Ok(daemon)
    }

    /// Opens the usual iSCSI portal if there is a target, also one that cannot be served yet: else somebody else could
    /// take the port, and its initiators would find a stranger there.
    fn hold_portal(&self) {
        let is_target = |mount: &Mount| {
            mount.record.target().is_some() && mount.record.intent == record::Intent::Serve
        };
        if self.lock().values().any(is_target)
            && let Err(error) = self.doors.iscsi.share()
        {
            tracing::warn!(%error, "the iSCSI portal cannot be opened");
        }
    }

    /// Does what is asked.
    pub fn handle(&self, request: Request, asker: Asker) -> Answer {
        let done = match request {
            Request::Status {} => Ok(Answer::Status(self.status())),
            Request::Mount(request) => self.mount(&request, asker).map(Answer::mount),
            Request::Kick { id, session } => self.kick(&id, session).map(Answer::mount),
            Request::List {} => Ok(self.list()),
            Request::Show { id, secrets } => self.show_with(&id, secrets).map(Answer::mount),
            Request::Extend { id, for_seconds, limit_bytes } => {
                self.extend(&id, for_seconds, limit_bytes).map(Answer::mount)
            }
            Request::End { id, overlay, force } => self.end(&id, overlay, force).map(Answer::mount),
            Request::Resume { id, key } => self.resume(&id, key.as_ref()).map(Answer::mount),
            Request::Prune { dry_run, kept_older_than_seconds } => {
                self.prune(dry_run, kept_older_than_seconds)
            }
        };
        done.unwrap_or_else(Answer::Refused)
    }

    /// Stops serving, in good order: what was written is made durable, and the next daemon serves it all again.
    pub fn stop(&self) {
        *self.keeper.stop.lock() = true;
        self.keeper.changed.notify_all();
        if let Some(thread) = self.keeper.thread.lock().take()
            && thread.join().is_err()
        {
            tracing::error!("the thread that looks after mounts panicked");
        }
        let lives: Vec<(String, Live)> = {
            let mut mounts = self.lock();
            mounts
                .values_mut()
                .filter_map(|m| Some((m.record.id.clone(), m.live.take()?)))
                .collect()
        };
        for (id, live) in lives {
            self.take_down(&id, live);
        }
        self.doors.close();
    }

    /// The iSCSI portals that all mounts share; none before the first target, unless some were asked for.
    pub fn iscsi_portals(&self) -> Vec<SocketAddr> {
        self.doors.iscsi.portals()
    }

    /// How many mounts are served.
    pub fn active(&self) -> usize {
        self.lock().values().filter(|mount| mount.live.is_some() || mount.busy).count()
    }

    fn status(&self) -> StatusView {
        StatusView {
            api_version: VERSION,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            state_dir: self.ledger.state_dir().display().to_string(),
            nbd: self.doors.nbd.addresses(),
            iscsi: self.doors.iscsi.portals().iter().map(ToString::to_string).collect(),
            active: self.active() as u64,
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Mount>> {
        self.mounts.lock()
    }

    /// Takes a mount for a change that takes time; nobody else gets it until [`Mountd::release`].
    fn take(&self, id: &str) -> Result<Record, Refusal> {
        let mut mounts = self.lock();
        let mount = mounts.get_mut(id).ok_or_else(|| no_such(id))?;
        if std::mem::replace(&mut mount.busy, true) {
            return Err(Refusal::new(RefusalKind::InUse, "it is being opened or ended just now")
                .what(id)
                .hint(format!("backstay mount show {id}")));
        }
        Ok(mount.record.clone())
    }

    /// Puts a mount back.
    fn release(&self, id: &str, change: impl FnOnce(&mut Mount)) {
        if let Some(mount) = self.lock().get_mut(id) {
            mount.busy = false;
            change(mount);
        }
    }

    fn note_end(&self, record: &Record, why: &str) {
        let (id, what) = (record.id.clone(), record.what());
        let ended = Ended { id, time: Timestamp::now(), what, why: why.to_owned() };
        self.ledger.note_end(&ended);
        let mut list = self.ended.lock();
        list.push_back(ended);
        if list.len() > MAX_REMEMBERED {
            list.pop_front();
        }
    }

    fn has_ended(&self, id: &str) -> bool {
        self.ended.lock().iter().any(|ended| ended.id == id)
    }
}

fn no_such(id: &str) -> Refusal {
    Refusal::new(RefusalKind::NotFound, "there is no such mount")
        .what(id)
        .hint("backstay mount list")
}

/// A daemon error as the control API tells it. The one place of this mapping.
fn refusal(error: &Error) -> Refusal {
    use std::io::ErrorKind as Io;
    let os = std::error::Error::source(error).and_then(|e| e.downcast_ref::<std::io::Error>());
    let kind = match error.kind() {
        _ if os.is_some_and(|e| matches!(e.kind(), Io::StorageFull | Io::QuotaExceeded)) => {
            RefusalKind::Refused
        }
        ErrorKind::Busy => RefusalKind::InUse,
        ErrorKind::Denied => RefusalKind::Denied,
        ErrorKind::NotFound | ErrorKind::Mountpoint => RefusalKind::NotFound,
        ErrorKind::Unsupported => RefusalKind::Refused,
        ErrorKind::Repository | ErrorKind::Io => RefusalKind::Failed,
    };
    Refusal::new(kind, error.to_string()).because(error)
}

/// An overlay's error as the control API tells it. The one place of this mapping.
fn overlay_refusal(error: &backstay_blockdev::Error) -> Refusal {
    use backstay_blockdev::ErrorKind as Kind;
    let kind = match error.kind() {
        Kind::NoSpace | Kind::Paused | Kind::Unsupported | Kind::ReadOnly => RefusalKind::Refused,
        Kind::Damaged => RefusalKind::Damaged,
        _ => RefusalKind::Failed,
    };
    Refusal::new(kind, error.to_string()).because(error)
}
