//! The portal that targets have where nobody says which: the same one after every restart.

use std::fs;
use std::io::Write as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use super::super::ledger::sync_dir;
use crate::{Error, ErrorKind};

/// iSCSI's own port.
const PORT: u16 = 3260;
/// Where another is looked for: ports that no service has for its own, and the system gives to nobody by itself, so that
/// nobody comes upon one of them while the daemon is restarted.
const OTHERS: std::ops::Range<u16> = 13_260..14_000;
/// So many of them are tried.
const TRIES: usize = 32;

/// A loopback address, remembered in a file.
#[derive(Debug)]
pub(super) struct UsualPortal {
    file: PathBuf,
}

impl UsualPortal {
    /// Remembers in `state_dir`.
    pub(super) fn new(state_dir: &Path) -> Self {
        Self { file: state_dir.join("iscsi-portal") }
    }

    /// Starts a server where it was the last time; the first time at 127.0.0.1:3260. If that is taken, at a free port.
    ///
    /// # Errors
    /// What `start` says for another reason than [`ErrorKind::Busy`].
    pub(super) fn open<S>(
        &self,
        start: impl Fn(SocketAddr) -> Result<S, Error>,
    ) -> Result<S, Error> {
        let remembered = self.remembered();
        let first = remembered.unwrap_or(at(PORT));
        let mut busy = match start(first) {
            Err(error) if error.kind() == ErrorKind::Busy => error,
            Err(error) => return Err(error),
            Ok(server) => {
                self.remember(first);
                return Ok(server);
            }
        };
        if remembered.is_some() {
            tracing::warn!(%first, "somebody else has the iSCSI portal of before; another is taken");
        }
        for _ in 0..TRIES {
            let address = at(any_port()?);
            match start(address) {
                Err(error) if error.kind() == ErrorKind::Busy => busy = error,
                Err(error) => return Err(error),
                Ok(server) => {
                    self.remember(address);
                    return Ok(server);
                }
            }
        }
        Err(busy)
    }

    /// Nothing that is not on this host: whoever changes the file must not open the mounts to others.
    fn remembered(&self) -> Option<SocketAddr> {
        let text = fs::read_to_string(&self.file).ok()?;
        let address: SocketAddr = text.trim().parse().ok()?;
        (address.ip().is_loopback() && address.port() != 0).then_some(address)
    }

    /// What cannot be remembered is another portal the next time: bad for initiators, and no reason not to serve now.
    fn remember(&self, address: SocketAddr) {
        if self.remembered() == Some(address) {
            return;
        }
        let new = self.file.with_extension("new");
        let save = || -> std::io::Result<()> {
            let mut options = fs::OpenOptions::new();
            let mut file =
                options.create(true).truncate(true).write(true).mode(0o600).open(&new)?;
            file.write_all(format!("{address}\n").as_bytes())?;
            file.sync_all()?;
            rustix::fs::rename(&new, &self.file)?;
            self.file.parent().map_or(Ok(()), sync_dir)
        };
        if let Err(error) = save() {
            tracing::warn!(%error, file = %self.file.display(), "cannot remember the iSCSI portal");
        }
    }
}

fn at(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}

fn any_port() -> Result<u16, Error> {
    let mut bytes = [0; 2];
    getrandom::fill(&mut bytes)
        .map_err(|e| Error::with_source(ErrorKind::Io, "the system gives no random numbers", e))?;
    Ok(OTHERS.start + u16::from_le_bytes(bytes) % (OTHERS.end - OTHERS.start))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// Serves where `taken` does not have the port.
    fn start(taken: &BTreeSet<u16>) -> impl Fn(SocketAddr) -> Result<SocketAddr, Error> {
        move |address| match taken.contains(&address.port()) {
            true => Err(Error::new(ErrorKind::Busy, "taken")),
            false => Ok(address),
        }
    }

    #[test]
    fn the_portal_is_the_same_after_a_restart() {
        let place = tempfile::tempdir().expect("a directory");
        let portal = || UsualPortal::new(place.path());
        let free = BTreeSet::new();
        assert_eq!(portal().open(start(&free)).expect("free").to_string(), "127.0.0.1:3260");
        let taken = BTreeSet::from([PORT]);
        let other = portal().open(start(&taken)).expect("another");
        assert!(OTHERS.contains(&other.port()), "{other}");
        // Though the usual one is free again: initiators look where they found it.
        assert_eq!(portal().open(start(&free)).expect("free"), other);
        let all: BTreeSet<u16> = (0..=u16::MAX).collect();
        assert_eq!(portal().open(start(&all)).expect_err("none").kind(), ErrorKind::Busy);
        let denied = |_| Err::<(), _>(Error::new(ErrorKind::Denied, "no"));
        assert_eq!(portal().open(denied).expect_err("denied").kind(), ErrorKind::Denied);
    }

    #[test]
    fn a_file_that_was_changed_opens_nothing_to_others() {
        let place = tempfile::tempdir().expect("a directory");
        let portal = UsualPortal::new(place.path());
        for text in ["0.0.0.0:3260", "10.0.0.1:3260", "127.0.0.1:0", "nonsense", ""] {
            fs::write(&portal.file, text).expect("written");
            let open = portal.open(start(&BTreeSet::new())).expect("free");
            assert_eq!(open.to_string(), "127.0.0.1:3260", "{text}");
        }
    }
}
