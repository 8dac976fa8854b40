//! Targets that come and go while initiators are connected.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use backstay_blockdev::BlockDevice;
use parking_lot::Mutex;
use zeroize::{Zeroize, ZeroizeOnDrop};

use super::access::Rule;
use super::sessions::{Attached, Target};
use crate::error::{Error, ErrorKind};
use crate::proto::is_name;
use crate::scsi::{Identity, Keeper};

/// A logical unit of a target.
#[derive(Debug)]
pub struct UnitSpec {
    /// Its number.
    pub lun: u16,
    /// Its device. Whether it can be written is the device's own word.
    pub device: Arc<dyn BlockDevice>,
    /// What it is called.
    pub identity: Identity,
    /// The size of blocks that are best not written in part, as initiators are told: a power of two, at least 512. 4096 where
    /// nothing else is known.
    pub physical_block_bytes: u32,
    /// Where its persistent reservations are kept; `None` forgets them with the target.
    pub keeper: Option<Arc<dyn Keeper>>,
}

/// A CHAP name and secret.
#[derive(Clone, PartialEq, Eq, Zeroize, ZeroizeOnDrop)]
pub struct ChapSide {
    /// The name, at most 255 bytes.
    pub name: String,
    /// The secret: at least 12 bytes (RFC 7143, 9.2.1).
    pub secret: String,
}

impl fmt::Debug for ChapSide {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ChapSide").field("name", &self.name).finish_non_exhaustive()
    }
}

/// How initiators of a target prove who they are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chap {
    /// What the initiator must know.
    pub initiator: ChapSide,
    /// What the target proves to initiators that ask (mutual CHAP). Another secret than the initiator's.
    pub target: Option<ChapSide>,
}

impl Chap {
    fn check(&self) -> Result<(), Error> {
        let sides = [Some(&self.initiator), self.target.as_ref()];
        for side in sides.into_iter().flatten() {
            if side.name.is_empty() || side.name.len() > 255 || side.name.contains('\0') {
                return Err(invalid("a CHAP name has 1 to 255 bytes, none of them NUL"));
            }
            if side.secret.len() < 12 || side.secret.len() > 255 {
                return Err(invalid("a CHAP secret has 12 to 255 bytes"));
            }
        }
        match &self.target {
            Some(target) if target.secret == self.initiator.secret => {
                Err(invalid("both directions have the same CHAP secret"))
            }
            _ => Ok(()),
        }
    }
}

/// A target to be added to a table.
#[derive(Debug)]
pub struct TargetSpec {
    /// Its iSCSI name (`iqn.…`), in lower case.
    pub name: String,
    /// A line for people (`TargetAlias`), at most 255 bytes.
    pub alias: String,
    /// Its units; at least one, at most 256.
    pub units: Vec<UnitSpec>,
    /// Who may use it. Empty: whoever comes from a loopback address, for all the devices can do.
    pub allow: Vec<Rule>,
    /// How initiators prove who they are; `None` lets the name alone count.
    pub chap: Option<Chap>,
}

fn invalid(why: impl Into<String>) -> Error {
    Error::new(ErrorKind::Invalid, why)
}

/// Targets by name, added and removed while initiators are connected; usable from any thread.
#[derive(Debug, Default)]
pub struct TargetTable {
    targets: Mutex<BTreeMap<String, Arc<Target>>>,
    /// The last session number given away.
    sessions: AtomicU16,
}

impl TargetTable {
    /// A table without targets.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a target; initiators see it at once.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] if the name is taken, or anything in the spec cannot be.
    pub fn add(&self, spec: TargetSpec) -> Result<(), Error> {
        if !is_name(&spec.name) {
            return Err(invalid(format!("{:?} is no iSCSI name", spec.name)));
        }
        if spec.alias.len() > 255 || spec.alias.contains('\0') {
            return Err(invalid("an alias has at most 255 bytes, none of them NUL"));
        }
        spec.chap.as_ref().map_or(Ok(()), Chap::check)?;
        let name = spec.name.clone();
        let target = Arc::new(Target::new(spec)?);
        let mut targets = self.targets.lock();
        if targets.contains_key(&name) {
            return Err(invalid(format!("there is a target '{name}' already")));
        }
        targets.insert(name, target);
        Ok(())
    }

    /// Removes a target. Its sessions are asked to log out, and ended a moment later; those of others notice nothing.
    /// Its name is free at once. `None` if there is none of that name.
    pub fn remove(&self, name: &str) -> Option<Removed> {
        let target = self.targets.lock().remove(name)?;
        target.end();
        Some(Removed { target })
    }

    /// Changes who may log in from now on. Sessions that are there stay as they are. `false` if there is no such target.
    pub fn set_allow(&self, name: &str, allow: Vec<Rule>) -> bool {
        self.get(name).map(|target| target.set_allow(allow)).is_some()
    }

    /// Whether nobody new may log in from now on. `false` if there is no such target.
    pub fn set_closed(&self, name: &str, closed: bool) -> bool {
        self.get(name).map(|target| target.set_closed(closed)).is_some()
    }

    /// The sessions of a target, oldest first.
    pub fn attached(&self, name: &str) -> Vec<Attached> {
        self.get(name).map(|target| target.attached()).unwrap_or_default()
    }

    /// Ends a session at once; `false` if there is none of that number.
    pub fn kick(&self, name: &str, session: u16) -> bool {
        self.get(name).is_some_and(|target| target.kick(session))
    }

    pub(super) fn get(&self, name: &str) -> Option<Arc<Target>> {
        self.targets.lock().get(name).cloned()
    }

    /// The targets that an initiator may know of.
    pub(super) fn visible(&self, initiator: &str, address: IpAddr) -> Vec<Arc<Target>> {
        let targets = self.targets.lock();
        targets.values().filter(|t| t.allows(initiator, address).is_some()).cloned().collect()
    }

    /// A number for a new session. Unique among as many sessions as there can be.
    pub(super) fn next_session(&self) -> u16 {
        loop {
            let next = self.sessions.fetch_add(1, Ordering::Relaxed).wrapping_add(1);
            if next != 0 {
                return next;
            }
        }
    }
}

/// A target that was removed and may still have sessions for a moment.
#[derive(Debug)]
pub struct Removed {
    target: Arc<Target>,
}

impl Removed {
    /// The sessions that it still has.
    pub fn attached(&self) -> Vec<Attached> {
        self.target.attached()
    }

    /// Waits until no session of it is left, at most for `patience`; whether it is so. Blocks.
    pub fn wait(&self, patience: Duration) -> bool {
        let start = Instant::now();
        while self.target.has_sessions() {
            if start.elapsed() >= patience {
                return false;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        true
    }
}
