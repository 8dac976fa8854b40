//! Removing points, and keeping them: removals, pins, and readers that hold what they read.

use std::collections::BTreeSet;
use std::sync::{Arc, Weak};

use backstay_format::removal::{Pin, Removal};
use backstay_format::session::SessionKind;
use backstay_format::{PinId, PointId};
use jiff::Timestamp;

use crate::entropy::array;
use crate::error::{Error, ErrorKind, Result};
use crate::key::{Folder, ObjectKey};
use crate::planted::{Fault, planted};
use crate::record;
use crate::session::{Lease, LeaseRequest, open_sessions};

use super::{Inner, Repository};

/// Who removes or keeps a point, and why: for people and for the record.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cause {
    /// Who.
    pub by: String,
    /// Why.
    pub reason: String,
}

/// A pin, as it was set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PinInfo {
    /// The pin.
    pub id: PinId,
    /// The point it keeps.
    pub point: PointId,
    /// Who set it, and why.
    pub cause: Cause,
    /// When, by their clock.
    pub time: Timestamp,
}

/// Why a point cannot be removed now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Keeper {
    /// Somebody pinned it.
    Pin(PinInfo),
    /// Somebody reads it, or backs up on top of it.
    Session {
        /// The session.
        id: PointId,
        /// What it does.
        purpose: String,
        /// Where it runs.
        host: String,
    },
}

/// What became of a request to remove points.
#[derive(Clone, Debug, Default)]
pub struct RemovalReport {
    /// Removed now.
    pub removed: Vec<PointId>,
    /// Left, and by whom they are kept.
    pub kept: Vec<(PointId, Keeper)>,
}

/// Keeps recovery points while they are read: they are not taken by a collection as long as this
/// lives, also if somebody removes them meanwhile.
#[derive(Debug)]
pub struct Hold {
    lease: Option<Arc<Lease>>,
}

impl Repository {
    /// Holds `points` while they are read for `purpose` (`mount of web01`).
    ///
    /// `NotFound`: one of them is removed. Where nothing can be written (a full disk, no rights)
    /// the points can still be read, and nothing holds them: [`Hold::is_held`] tells.
    pub fn hold(&self, points: &[PointId], purpose: &str) -> Result<Hold> {
        let request = LeaseRequest {
            id: PointId::from_bytes(array(self.inner.entropy())),
            kind: SessionKind::Reader,
            holds: points.to_vec(),
            purpose: purpose.to_owned(),
        };
        let lease = match Lease::register(&self.inner, request) {
            Ok((lease, _)) => Some(lease),
            // Reading needs no write.
            Err(error) => {
                tracing::warn!(%error, "the points read cannot be held; a collection may take them");
                None
            }
        };
        // After the registration: a point that is not removed now is found by any later collection.
        for &point in points.iter().filter(|_| !planted(Fault::HoldTakenBlindly)) {
            check_present(&self.inner, point)?;
        }
        Ok(Hold { lease })
    }

    /// Holds one point, sharing the hold with all others of this process that read it now.
    pub fn hold_shared(&self, point: PointId, purpose: &str) -> Result<Arc<Hold>> {
        // Held while a new one is made, so that of two readers one registers.
        let mut holds = self.inner.holds().lock();
        if let Some(hold) = holds.get(&point).and_then(Weak::upgrade) {
            return Ok(hold);
        }
        holds.retain(|_, hold| hold.strong_count() > 0);
        let hold = Arc::new(self.hold(&[point], purpose)?);
        holds.insert(point, Arc::downgrade(&hold));
        Ok(hold)
    }

    /// Removes recovery points. They are not listed any more when this returns, and the next
    /// collection takes what only they need. Points that are pinned or in use stay. One that
    /// somebody else removed meanwhile counts as removed.
    ///
    /// Whether a removal asks too much (all points of a machine) is for the caller to ask.
    pub fn remove_points(&self, points: &[PointId], cause: &Cause) -> Result<RemovalReport> {
        let inner = &self.inner;
        let pins = pins(inner)?;
        let sessions = open_sessions(inner)?;
        let mut report = RemovalReport::default();
        for &id in points {
            let pin = pins.iter().find(|p| p.point == id).cloned().map(Keeper::Pin);
            let session = sessions.iter().find(|s| s.holds.contains(&id));
            let session = session.map(|s| Keeper::Session {
                id: s.id,
                purpose: s.purpose.clone(),
                host: s.owner.host.clone(),
            });
            if let Some(keeper) = pin.or(session) {
                report.kept.push((id, keeper));
                continue;
            }
            self.remove_one(id, cause)?;
            report.removed.push(id);
        }
        Ok(report)
    }

    fn remove_one(&self, id: PointId, cause: &Cause) -> Result<()> {
        let storage = self.inner.storage();
        // Somebody else may have removed it since the caller listed it: then it is as was wished.
        match storage.size(ObjectKey::Removal(id)) {
            Err(e) if e.kind() == ErrorKind::NotFound => storage.size(ObjectKey::Point(id))?,
            other => return other.map(drop),
        };
        // A record that cannot be read can be removed all the same.
        let machine = match self.point(id) {
            Ok(point) => point.machine,
            Err(e) if e.kind() == ErrorKind::Damaged => String::new(),
            Err(e) => return Err(e),
        };
        let removal = Removal {
            point: id,
            machine,
            by: cause.by.clone(),
            reason: cause.reason.clone(),
            time: self.inner.entropy().now(),
        };
        match record::put(&self.inner, ObjectKey::Removal(id), &removal) {
            Err(e) if e.kind() != ErrorKind::Exists => return Err(e),
            _ => {}
        }
        self.inner.points().remove(&id);
        Ok(())
    }

    /// The points that are removed and whose records no collection has taken yet, sorted.
    pub fn removed_points(&self) -> Result<Vec<PointId>> {
        Ok(removals(&self.inner)?.into_iter().collect())
    }

    /// The pins there are.
    pub fn pins(&self) -> Result<Vec<PinInfo>> {
        pins(&self.inner)
    }

    /// Keeps a point until the pin is taken away. `NotFound` if it is removed.
    pub fn pin(&self, point: PointId, cause: &Cause) -> Result<PinInfo> {
        let pin = Pin {
            id: PinId::from_bytes(array(self.inner.entropy())),
            point,
            by: cause.by.clone(),
            reason: cause.reason.clone(),
            time: self.inner.entropy().now(),
        };
        let key = ObjectKey::Pin(pin.id);
        record::put(&self.inner, key, &pin)?;
        // After the pin is there: whoever removes the point later finds it.
        if let (Err(e), false) = (check_present(&self.inner, point), planted(Fault::PinSetBlindly))
        {
            let _ = self.inner.storage().delete(key);
            return Err(e);
        }
        Ok(PinInfo::from(pin))
    }

    /// Takes a pin away. `NotFound` if there is none.
    pub fn unpin(&self, id: PinId) -> Result<()> {
        self.inner.storage().delete(ObjectKey::Pin(id))
    }
}

impl Hold {
    /// Whether the points are held; not where nothing could be written.
    pub fn is_held(&self) -> bool {
        self.lease.is_some()
    }
}

impl From<Pin> for PinInfo {
    fn from(p: Pin) -> Self {
        Self { id: p.id, point: p.point, cause: Cause { by: p.by, reason: p.reason }, time: p.time }
    }
}

/// The pins there are, oldest first. One that cannot be read is an error: it is not known what it keeps.
pub(crate) fn pins(repo: &Inner) -> Result<Vec<PinInfo>> {
    let mut pins = Vec::new();
    for key in repo.storage().list(Folder::Pins)? {
        match record::get::<Pin>(repo, key) {
            Ok(pin) => pins.push(PinInfo::from(pin)),
            Err(e) if e.kind() == ErrorKind::NotFound => {}
            Err(e) => return Err(e.context(format!("{key}: it is not known what this pin keeps"))),
        }
    }
    pins.sort_by_key(|p| (p.time, p.id));
    Ok(pins)
}

/// The points that are removed, whether or not something holds them.
pub(crate) fn removals(repo: &Inner) -> Result<BTreeSet<PointId>> {
    let keys = repo.storage().list(Folder::Removals)?;
    let point = |k: ObjectKey| if let ObjectKey::Removal(id) = k { Some(id) } else { None };
    Ok(keys.into_iter().filter_map(point).collect())
}

/// `NotFound` if a point is removed, or was never there. The removal is asked first: it goes after
/// its point.
pub(crate) fn check_present(repo: &Inner, id: PointId) -> Result<()> {
    match repo.storage().size(ObjectKey::Removal(id)) {
        Ok(_) => {
            let text = format!("recovery point {} was removed", id.short());
            return Err(Error::new(ErrorKind::NotFound, text));
        }
        Err(e) if e.kind() == ErrorKind::NotFound => {}
        Err(e) => return Err(e),
    }
    repo.storage().size(ObjectKey::Point(id)).map(drop)
}
