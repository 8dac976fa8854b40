//! What must hold, kept by the actors beside the store: which points were acknowledged, removed,
//! pinned and held. Only the actor whose turn it is touches it.

use std::collections::BTreeMap;
use std::sync::Arc;

use backstay_store::{
    CheckOptions, Error, NoProgress, PinId, PointId, RecoveryPoint, Repository, Storage,
};

use super::actor::story;
use super::content::{Content, Fresh};

/// What its writer was told of a point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// Nothing yet, or an error that leaves it open.
    Unknown,
    /// It is committed.
    Acknowledged,
    /// It may never be seen.
    Fenced,
}

/// A point as the model knows it.
#[derive(Debug)]
pub(crate) struct PointTruth {
    pub(crate) content: Arc<Content>,
    pub(crate) answer: Answer,
    pub(crate) record: Option<RecoveryPoint>,
    /// Calls under way that remove it.
    asked: u32,
    /// A removal failed: it may be removed or not.
    open: bool,
    removed: bool,
}

impl PointTruth {
    /// Whether somebody asked for its removal, whatever came of it.
    pub(crate) fn may_be_gone(&self) -> bool {
        self.asked > 0 || self.open || self.removed
    }
}

/// A point that a reader holds.
#[derive(Debug)]
struct HoldTruth {
    point: PointId,
    valid: bool,
}

#[derive(Debug, Default)]
pub(crate) struct Truth {
    pub(crate) points: BTreeMap<PointId, PointTruth>,
    holds: BTreeMap<u64, HoldTruth>,
    pins: BTreeMap<PinId, PointId>,
    pub(crate) fresh: Fresh,
    next_hold: u64,
    /// Somebody fences writers, or collects with so little patience that he does.
    pub(crate) fences: bool,
    /// Somebody put whole chunks into quarantine.
    pub(crate) quarantined: bool,
}

/// What went wrong, for people.
pub(crate) type Verdict = Result<(), String>;

impl Truth {
    /// Before a commit: from now on the point may be there.
    pub(crate) fn committing(&mut self, id: PointId, content: Arc<Content>) {
        let point = PointTruth {
            content,
            answer: Answer::Unknown,
            record: None,
            asked: 0,
            open: false,
            removed: false,
        };
        self.points.insert(id, point);
    }

    pub(crate) fn committed(&mut self, record: RecoveryPoint) {
        if let Some(p) = self.points.get_mut(&record.id) {
            p.answer = Answer::Acknowledged;
            p.record = Some(record);
        }
    }

    pub(crate) fn fenced(&mut self, id: PointId) {
        if let Some(p) = self.points.get_mut(&id) {
            p.answer = Answer::Fenced;
        }
    }

    /// Before a removal. Tells whether something keeps the point.
    pub(crate) fn removing(&mut self, id: PointId) -> Vec<Keeper> {
        if let Some(p) = self.points.get_mut(&id) {
            p.asked += 1;
        }
        self.keepers(id)
    }

    /// After it: whether it was removed, if that is known.
    pub(crate) fn removal_over(&mut self, id: PointId, removed: Option<bool>) {
        let Some(p) = self.points.get_mut(&id) else { return };
        p.asked -= 1;
        match removed {
            Some(removed) => p.removed |= removed,
            None => p.open = true,
        }
    }

    /// Who keeps a point now.
    pub(crate) fn keepers(&self, id: PointId) -> Vec<Keeper> {
        let holds = self.holds.iter().filter(|(_, h)| h.valid && h.point == id);
        let pins = self.pins.iter().filter(|(_, point)| **point == id);
        let holds = holds.map(|(n, _)| Keeper::Hold(*n));
        holds.chain(pins.map(|(pin, _)| Keeper::Pin(*pin))).collect()
    }

    pub(crate) fn pinned(&mut self, pin: PinId, point: PointId) {
        self.pins.insert(pin, point);
    }

    /// Before a pin is taken away.
    pub(crate) fn unpinning(&mut self, pin: PinId) {
        self.pins.remove(&pin);
    }

    /// A number for a hold that is to be made; it stands in the purpose of its session.
    pub(crate) fn hold_number(&mut self) -> u64 {
        self.next_hold += 1;
        self.next_hold
    }

    pub(crate) fn held(&mut self, number: u64, point: PointId) {
        // A fence may have come between the registration and now.
        self.holds.entry(number).or_insert(HoldTruth { point, valid: true });
    }

    /// Before a hold ends, or is given up by a fence.
    pub(crate) fn hold_ends(&mut self, number: u64, point: PointId) {
        self.holds.insert(number, HoldTruth { point, valid: false });
    }

    pub(crate) fn is_held(&self, number: u64) -> bool {
        self.holds.get(&number).is_some_and(|h| h.valid)
    }

    /// Looks at the storage as it is now through a node that was never there before: no point that
    /// must be there is missing, and all that is there reads bit for bit.
    pub(crate) fn check(&self, node: &Repository) -> Verdict {
        let list = node.points().map_err(|e| format!("points cannot be listed: {e}"))?;
        if let Some((id, e)) = list.damaged.first() {
            return Err(format!("point {} cannot be read: {e}", id.short()));
        }
        for point in &list.points {
            let Some(p) = self.points.get(&point.id) else {
                return Err(format!("point {} was never made", point.id.short()));
            };
            if p.answer == Answer::Fenced || p.removed {
                let why = if p.removed { "removed" } else { "fenced" };
                return Err(format!("point {} shows although it was {why}", point.id.short()));
            }
            compare(node, point, &p.content)?;
        }
        for (id, p) in &self.points {
            let listed = list.points.iter().any(|l| l.id == *id);
            if p.answer == Answer::Acknowledged && !p.may_be_gone() && !listed {
                return Err(format!("point {} was acknowledged and is not there", id.short()));
            }
            let kept = !listed && !self.keepers(*id).is_empty();
            if let (Some(record), true) = (&p.record, kept) {
                compare(node, record, &p.content).map_err(|e| format!("while kept: {e}"))?;
            }
        }
        Ok(())
    }

    /// When nobody works any more: the check of the store finds nothing either.
    pub(crate) fn check_all(&self, node: &Repository) -> Verdict {
        self.check(node)?;
        let report = node.check(&CheckOptions { read_data: true }, &NoProgress);
        let report = report.map_err(|e| format!("the check fails: {e}"))?;
        match report.damage.first() {
            None => Ok(()),
            Some(d) => Err(format!("the check finds {:?}: {}", d.kind, d.reason)),
        }
    }
}

/// What keeps a point from being removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Keeper {
    Hold(u64),
    Pin(PinId),
}

/// Reads the whole disk of a point and compares.
pub(crate) fn compare(node: &Repository, point: &RecoveryPoint, content: &Content) -> Verdict {
    let id = point.id.short();
    let read = || -> Result<Vec<u8>, Error> {
        let image = node.image(&point.disks[0])?;
        let mut bytes = vec![0xee; image.size_bytes() as usize];
        image.read_at(0, &mut bytes)?;
        Ok(bytes)
    };
    let bytes = read().map_err(|e| format!("point {id} does not read: {}", story(&e)))?;
    if bytes == content.all() { Ok(()) } else { Err(format!("point {id} reads other bytes")) }
}

/// What nothing needs must be gone when all is removed and collected.
pub(crate) fn nothing_left(storage: &dyn Storage) -> Verdict {
    use Folder::{Packs, Parity, Pins, Quarantine, Removals, Sessions};
    use backstay_store::Folder;
    for folder in [Packs, Sessions, Removals, Pins, Parity, Quarantine] {
        let left = storage.list(folder).map_err(|e| e.to_string())?;
        if let Some(first) = left.first() {
            return Err(format!(
                "{} of {} are left at the end: {first}",
                left.len(),
                folder.name()
            ));
        }
    }
    let plans = storage.list(Folder::Gc).map_err(|e| e.to_string())?;
    if plans.len() > 12 {
        return Err(format!("{} objects of past collections are left", plans.len()));
    }
    Ok(())
}
