//! Change maps: what a source says changed since a point, and whether that can be relied upon.

use backstay_store::{
    Consistency, ImageWriter, PointId, Progress, RecoveryPoint, Repository, WriteSession,
};

use crate::error::{Error, ErrorKind, Result};
use crate::monitor::Monitor;
use crate::ranges::Ranges;
use crate::source::SourceSpec;

/// Which ranges of a disk may have changed since a recovery point was made of it. Every byte
/// outside of them must be as it was then: what is left out of the map is not read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChangeMap {
    /// The point that the changes are counted from.
    pub since: PointId,
    /// What may have changed.
    pub changed: Ranges,
}

/// What became of the change map of one disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MapUse {
    /// There was none: the disk was read and compared.
    NotGiven,
    /// Only what it lists was read.
    Used,
    /// It could not be relied upon, for this reason: the disk was read and compared.
    Refused(String),
}

/// The point a backup builds upon, if there is one: what the change maps speak of, else the newest.
pub(super) fn base(
    repo: &Repository,
    machine: &str,
    sources: &[SourceSpec],
    newest: Option<&RecoveryPoint>,
) -> Result<Option<RecoveryPoint>> {
    for map in sources.iter().filter_map(|s| s.changes.as_ref()) {
        match repo.point(map.since) {
            Ok(point) if unfit(&point, machine).is_none() => return Ok(Some(point)),
            Ok(_) => {}
            // A damaged or missing record is a reason to read, not to fail.
            Err(e) if is_loss(&e) => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok(newest.cloned())
}

/// Whether an error says that something in the repository is lost, and no more.
pub(crate) fn is_loss(e: &backstay_store::Error) -> bool {
    use backstay_store::ErrorKind as K;
    matches!(e.kind(), K::Damaged | K::NotFound)
}

/// Why no map can be relative to this point.
fn unfit(point: &RecoveryPoint, machine: &str) -> Option<String> {
    if point.machine != machine {
        return Some(format!("point {} is one of machine {}", point.id, point.machine));
    }
    // What was written while the point was made may be in neither.
    (point.consistency == Consistency::Changing)
        .then(|| format!("the disks were changing while point {} was made", point.id))
}

/// Makes the session trust its base if a map can be used with it; otherwise tells why not, for all.
pub(super) fn prepare(
    session: &mut WriteSession,
    base: Option<&RecoveryPoint>,
    sources: &[SourceSpec],
    monitor: &dyn Monitor,
) -> Result<Option<String>> {
    let Some(base) = base else { return Ok(None) };
    let wanted = sources.iter().any(|s| s.changes.as_ref().is_some_and(|m| m.since == base.id));
    if !wanted { Ok(None) } else { trust(session, base, monitor) }
}

/// Makes the session trust `base`; `Some`: it lost chunks, told in words.
pub(crate) fn trust(
    session: &mut WriteSession,
    base: &RecoveryPoint,
    monitor: &dyn Monitor,
) -> Result<Option<String>> {
    let chunk_bytes = session.chunk_size().bytes().into();
    match session.trust_base(base, &Looking { monitor, chunk_bytes }) {
        Ok(()) => Ok(None),
        Err(_) if monitor.cancelled() => Err(Error::new(ErrorKind::Cancelled, "stopped as asked")),
        Err(e) if is_loss(&e) => Ok(Some(Error::from(e).to_string())),
        Err(e) => Err(e.into()),
    }
}

/// Passes on how far the looking through of a base is.
struct Looking<'a> {
    monitor: &'a dyn Monitor,
    chunk_bytes: u64,
}

impl Progress for Looking<'_> {
    fn total(&self, _: &'static str, chunks: u64) {
        self.monitor.phase("base");
        self.monitor.total_bytes(chunks.saturating_mul(self.chunk_bytes));
    }
    fn add(&self, _: &'static str, chunks: u64) {
        self.monitor.add_bytes(chunks.saturating_mul(self.chunk_bytes));
    }
    fn cancelled(&self) -> bool {
        self.monitor.cancelled()
    }
}

/// Everything that decides on one disk's map.
pub(super) struct Case<'a> {
    pub(super) machine: &'a str,
    pub(super) disk: &'a str,
    pub(super) size_bytes: u64,
    pub(super) base: Option<&'a RecoveryPoint>,
    /// Why the base is not trusted.
    pub(super) distrust: Option<&'a str>,
}

impl Case<'_> {
    /// What of the disk must be read (`None`: all of it), and what became of the map.
    pub(super) fn settle(
        &self,
        map: Option<&ChangeMap>,
        writer: &ImageWriter,
    ) -> (Option<Ranges>, MapUse) {
        let Some(map) = map else { return (None, MapUse::NotGiven) };
        if let Some(why) = self.objection(map) {
            return (None, MapUse::Refused(why));
        }
        let chunk_bytes = u64::from(writer.chunk_size().bytes());
        let keepable = writer.keepable().saturating_mul(chunk_bytes).min(self.size_bytes);
        (Some(to_read(&map.changed, chunk_bytes, keepable, self.size_bytes)), MapUse::Used)
    }

    fn objection(&self, map: &ChangeMap) -> Option<String> {
        let Some(base) = self.base.filter(|b| b.id == map.since) else {
            let told = match self.base {
                Some(base) => format!("the backup builds upon point {}", base.id),
                None => "this repository has no such point that can be built upon".to_owned(),
            };
            return Some(format!("the map tells what changed since point {}; {told}", map.since));
        };
        if let Some(why) = unfit(base, self.machine) {
            return Some(why);
        }
        let Some(before) = base.disk(self.disk) else {
            return Some(format!("point {} has no disk {}", base.id, self.disk));
        };
        if before.size_bytes > self.size_bytes {
            return Some(format!(
                "the disk shrank from {} to {} bytes",
                before.size_bytes, self.size_bytes
            ));
        }
        self.distrust.map(|why| format!("the point to build upon is damaged: {why}"))
    }
}

/// What must be read of a disk of `size` bytes when only its first `keepable` bytes can be kept.
pub(crate) fn to_read(changed: &Ranges, chunk_bytes: u64, keepable: u64, size: u64) -> Ranges {
    let mut read = changed.aligned(chunk_bytes, keepable);
    read.push(keepable, size);
    read
}
