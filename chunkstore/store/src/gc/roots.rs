use std::collections::BTreeSet;
use std::sync::Arc;

use backstay_format::PointId;
use backstay_format::point::RecoveryPoint;
use backstay_format::session::SessionKind;

use jiff::SignedDuration;

use crate::error::{Error, ErrorKind, Result};
use crate::key::{Folder, ObjectKey};
use crate::planted::{Fault, planted};
use crate::repository::{Inner, PinInfo, load_point_cached, pins, removals};
use crate::session::{SessionInfo, open_sessions};

/// What must stay.
#[derive(Debug)]
pub(super) struct Roots {
    /// The points whose chunks are needed: all that are not removed.
    pub(super) points: Vec<Arc<RecoveryPoint>>,
    /// Removed points that somebody holds: what is left of their chunks is needed too.
    pub(super) held: Vec<Arc<RecoveryPoint>>,
    /// Removed points that nothing holds.
    pub(super) removed: Vec<PointId>,
    /// The open sessions.
    pub(super) sessions: Vec<SessionInfo>,
}

impl Roots {
    /// The sessions that may still commit a point.
    pub(super) fn writers(&self) -> BTreeSet<PointId> {
        let writers = self.sessions.iter().filter(|s| s.kind == SessionKind::Writer);
        writers.map(|s| s.id).collect()
    }

    /// Whether a writer has been open for long, by the clocks of its host and this one.
    pub(super) fn any_writer_older_than(&self, repo: &Inner, age: SignedDuration) -> bool {
        let now = repo.entropy().now();
        let writers = self.sessions.iter().filter(|s| s.kind == SessionKind::Writer);
        writers.into_iter().any(|s| now.duration_since(s.created) >= age)
    }
}

/// Reads what must stay. The order is what makes it safe:
///
/// - Removals before pins and sessions: whoever holds a point asks, after registering, whether it
///   is removed. So who is not seen here saw every removal that is seen here, and held nothing.
/// - Sessions before points: a writer that is not seen as open was over, and its point, if it
///   committed one, is seen.
pub(super) fn gather(repo: &Inner) -> Result<Roots> {
    let early = planted(Fault::PointsBeforeSessions).then(|| repo.storage().list(Folder::Points));
    let mut removed = removals(repo)?;
    let pins = pins(repo)?;
    let sessions = open_sessions(repo)?;
    if planted(Fault::RemovalsAfterSessions) {
        removed = removals(repo)?;
    }
    let removals = removed;
    let held = held(repo, &pins, &sessions);
    let mut points = Vec::new();
    let mut kept = Vec::new();
    for key in early.unwrap_or_else(|| repo.storage().list(Folder::Points))? {
        let ObjectKey::Point(id) = key else { continue };
        if removals.contains(&id) && !held.contains(&id) {
            continue;
        }
        match load_point_cached(repo, id) {
            Ok(Some(point)) if removals.contains(&id) => kept.push(point),
            Ok(Some(point)) => points.push(point),
            // A fence.
            Ok(None) => {}
            // Buried by another collection since the listing.
            Err(e) if e.kind() == ErrorKind::NotFound => {}
            Err(_) if planted(Fault::DamagedPointSkipped) => {}
            Err(e) if e.kind() == ErrorKind::Damaged => return Err(unknown_needs(id, e)),
            Err(e) => return Err(e),
        }
    }
    let mut removed: Vec<PointId> = removals.difference(&held).copied().collect();
    if planted(Fault::HeldPointsBuried) {
        removed = removals.into_iter().collect();
    }
    Ok(Roots { points, held: kept, removed, sessions })
}

/// The points that somebody keeps.
fn held(repo: &Inner, pins: &[PinInfo], sessions: &[SessionInfo]) -> BTreeSet<PointId> {
    let keeps = |s: &&SessionInfo| {
        let reader = s.kind == SessionKind::Reader;
        let age = repo.entropy().now().duration_since(s.created);
        let old = planted(Fault::HoldsEndByClock) && age > SignedDuration::from_hours(24);
        !(old || reader && planted(Fault::HoldsIgnored))
    };
    let sessions = sessions.iter().filter(keeps).flat_map(|s| s.holds.iter().copied());
    let pins = pins.iter().filter(|_| !planted(Fault::PinsIgnored)).map(|p| p.point);
    pins.chain(sessions).collect()
}

fn unknown_needs(id: PointId, e: Error) -> Error {
    e.context(format!(
        "recovery point {} cannot be read, so it is not known which chunks it needs and nothing \
         is deleted; repair it or remove it first",
        id.short()
    ))
}
