//! The daemon's socket.

use std::io::{self, BufReader};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use backstay_api::mountd::{Answer, Request};
use backstay_api::{Refusal, RefusalKind, frame};

use super::{Asker, Mountd};
use crate::{Error, ErrorKind};

/// Connections at once.
const MAX_CONNECTIONS: usize = 32;
/// How long a connection may be quiet.
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);
/// The longest request: a mount with hundreds of rules is far shorter.
const MAX_REQUEST_BYTES: usize = 1 << 20;
/// How often the listener looks whether it is to stop.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// Takes requests from a socket until it is dropped.
#[derive(Debug)]
pub struct Control {
    path: Option<PathBuf>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Control {
    /// Listens on a new socket at `path`, for its owner alone. One that a dead daemon left is replaced.
    ///
    /// # Errors
    /// [`ErrorKind::Busy`] if somebody listens there, [`ErrorKind::Io`].
    pub fn listen(daemon: Arc<Mountd>, path: &Path) -> Result<Self, Error> {
        let failed = |e| Error::os(format!("{}: cannot listen", path.display()), e);
        if UnixStream::connect(path).is_ok() {
            let what = format!("{}: a mount daemon listens here already", path.display());
            return Err(Error::new(ErrorKind::Busy, what));
        }
        match std::fs::remove_file(path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(failed(e)),
            _ => {}
        }
        let listener = UnixListener::bind(path).map_err(failed)?;
        // Nobody else could get in between: the directory is the owner's.
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).map_err(failed)?;
        Self::start(daemon, listener, Some(path.to_owned()))
    }

    /// Takes over a socket that listens already, as systemd hands it over.
    ///
    /// # Errors
    /// [`ErrorKind::Io`].
    pub fn inherit(daemon: Arc<Mountd>, socket: OwnedFd) -> Result<Self, Error> {
        Self::start(daemon, UnixListener::from(socket), None)
    }

    fn start(
        daemon: Arc<Mountd>,
        listener: UnixListener,
        path: Option<PathBuf>,
    ) -> Result<Self, Error> {
        let failed = |e| Error::os("the control socket cannot be served", e);
        listener.set_nonblocking(true).map_err(failed)?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = std::thread::Builder::new()
            .name("control".to_owned())
            .spawn(move || accept(&daemon, &listener, &stopped))
            .map_err(failed)?;
        Ok(Self { path, stop, thread: Some(thread) })
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the control thread panicked");
        }
        if let Some(path) = &self.path {
            // Gone already is gone.
            let _ = std::fs::remove_file(path);
        }
    }
}

fn accept(daemon: &Arc<Mountd>, listener: &UnixListener, stop: &AtomicBool) {
    let open = Arc::new(AtomicUsize::new(0));
    while !stop.load(Ordering::Acquire) {
        let stream = match listener.accept() {
            Ok((stream, _)) => stream,
            Err(e) => {
                if e.kind() != io::ErrorKind::WouldBlock {
                    tracing::warn!(error = %e, "cannot accept a control connection");
                }
                std::thread::sleep(LOOK_EVERY);
                continue;
            }
        };
        if open.fetch_add(1, Ordering::AcqRel) >= MAX_CONNECTIONS {
            open.fetch_sub(1, Ordering::AcqRel);
            continue;
        }
        let (daemon, count) = (daemon.clone(), open.clone());
        let run = move || {
            if let Err(error) = converse(&daemon, &stream) {
                tracing::debug!(%error, "a control connection ended");
            }
            count.fetch_sub(1, Ordering::AcqRel);
        };
        if let Err(error) = std::thread::Builder::new().name("asked".to_owned()).spawn(run) {
            open.fetch_sub(1, Ordering::AcqRel);
            tracing::warn!(%error, "cannot start a thread");
        }
    }
}

/// Answers one connection until it ends.
fn converse(daemon: &Mountd, stream: &UnixStream) -> io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(IDLE_TIMEOUT))?;
    stream.set_write_timeout(Some(IDLE_TIMEOUT))?;
    let peer = rustix::net::sockopt::socket_peercred(stream)?;
    let asker = Asker { uid: peer.uid.as_raw() };
    let own = rustix::process::geteuid();
    let mut from = BufReader::new(stream);
    if peer.uid != own && !peer.uid.is_root() {
        let why = "only its owner may ask the mount daemon";
        let answer = Answer::Refused(Refusal::new(RefusalKind::Denied, why));
        return frame::write(&mut &*stream, &answer);
    }
    loop {
        let answer = match frame::read::<Request>(&mut from, MAX_REQUEST_BYTES) {
            Ok(None) => return Ok(()),
            Ok(Some(request)) => daemon.handle(request, asker),
            Err(e) if e.kind() == io::ErrorKind::InvalidData => {
                let refusal = Refusal::new(RefusalKind::Usage, "this is no request").because(&e);
                frame::write(&mut &*stream, &Answer::Refused(refusal))?;
                return Err(e);
            }
            Err(e) => return Err(e),
        };
        frame::write(&mut &*stream, &answer)?;
    }
}
