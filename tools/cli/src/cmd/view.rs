//! Recovery points as commands show them, and finding the one a user named.

use backstay_core::name::Name;
use backstay_store::{DiskRecord, PointId, PointList, RecoveryPoint};
use jiff::Zoned;
use serde::Serialize;

use super::keepers::KeeperView;
use crate::exit::{CliError, Exit};
use crate::output::clean;
use crate::units;

/// A recovery point in JSON.
#[derive(Debug, Serialize)]
pub(crate) struct PointView {
    pub(crate) id: String,
    pub(crate) short_id: String,
    pub(crate) machine: String,
    pub(crate) time: String,
    pub(crate) consistency: String,
    pub(crate) parent: Option<String>,
    pub(crate) note: Option<String>,
    pub(crate) host: String,
    pub(crate) tool: String,
    pub(crate) size_bytes: u64,
    pub(crate) read_bytes: u64,
    pub(crate) hole_bytes: u64,
    pub(crate) new_chunks: u64,
    pub(crate) new_bytes: u64,
    pub(crate) stored_bytes: u64,
    pub(crate) disks: Vec<DiskView>,
    /// What it is a copy of.
    pub(crate) copied_from: Option<CopiedFromView>,
    /// What keeps it from removal; absent where that was not asked, null where it is not known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) kept_by: Option<Option<Vec<KeeperView>>>,
}

/// Where a copy was first made, in JSON.
#[derive(Debug, Serialize)]
pub(crate) struct CopiedFromView {
    pub(crate) repository: String,
    pub(crate) point: String,
}

/// A disk of a recovery point in JSON.
#[derive(Debug, Serialize)]
pub(crate) struct DiskView {
    pub(crate) name: String,
    pub(crate) source: String,
    pub(crate) size_bytes: u64,
}

impl PointView {
    /// The view of a point; `short_id` is long enough to name it among `all`.
    pub(crate) fn new(point: &RecoveryPoint, all: &[RecoveryPoint]) -> Self {
        Self {
            id: point.id.to_string(),
            short_id: short_id(point, all),
            machine: point.machine.clone(),
            time: units::utc_time(point.time),
            consistency: consistency(point).to_owned(),
            parent: point.parent.map(|id| id.to_string()),
            note: point.note.clone(),
            host: point.origin.host.clone(),
            tool: point.origin.tool.clone(),
            size_bytes: size_bytes(point),
            read_bytes: point.stats.read_bytes,
            hole_bytes: point.stats.hole_bytes,
            new_chunks: point.stats.new_chunks,
            new_bytes: point.stats.new_bytes,
            stored_bytes: point.stats.stored_bytes,
            disks: point
                .disks
                .iter()
                .map(|disk| DiskView {
                    name: disk.name.clone(),
                    source: disk.source.clone(),
                    size_bytes: disk.size_bytes,
                })
                .collect(),
            copied_from: point.copied_from.map(|from| CopiedFromView {
                repository: from.repository.to_string(),
                point: from.point.to_string(),
            }),
            kept_by: None,
        }
    }
}

/// The sum of a point's disks as the guest sees them.
pub(crate) fn size_bytes(point: &RecoveryPoint) -> u64 {
    point.disks.iter().fold(0, |sum, disk| sum.saturating_add(disk.size_bytes))
}

fn consistency(point: &RecoveryPoint) -> &'static str {
    use backstay_store::Consistency;
    match point.consistency {
        Consistency::Offline => "offline",
        Consistency::Crash => "crash",
        Consistency::Changing => "changing",
    }
}

/// Letters of an id that people are shown and may name it by, at least.
const LETTERS_MIN: usize = 6;

/// The shortest prefix of the id, of six letters or more, that names this point alone.
pub(crate) fn short_id(point: &RecoveryPoint, all: &[RecoveryPoint]) -> String {
    short_among(point.id, all.iter().map(|other| other.id))
}

/// The same for any kind of id.
pub(crate) fn short_among<I: ToString>(id: I, all: impl Iterator<Item = I>) -> String {
    let id = id.to_string();
    let shared = |other: I| {
        let other = other.to_string();
        if other == id {
            0
        } else {
            id.bytes().zip(other.bytes()).take_while(|(a, b)| a == b).count()
        }
    };
    let longest = all.map(shared).max().unwrap_or(0);
    id.chars().take(LETTERS_MIN.max(longest + 1)).collect()
}

/// The one of `all` whose id begins with `text`; `kind` is what it is called.
pub(crate) fn by_prefix<I: ToString>(
    kind: &str,
    text: &str,
    all: impl Iterator<Item = I>,
) -> Result<I, CliError> {
    let prefix = text.trim_start_matches('@').to_ascii_lowercase();
    if prefix.len() < LETTERS_MIN {
        return Err(CliError::usage(format!("a {kind} is named by six letters of its id or more")));
    }
    let mut found: Vec<I> = all.filter(|id| id.to_string().starts_with(&prefix)).collect();
    match (found.pop(), found.len()) {
        (Some(one), 0) => Ok(one),
        (None, _) => Err(CliError::new(Exit::NotFound, format!("there is no such {kind}"))),
        (Some(_), more) => {
            Err(CliError::new(Exit::NotFound, format!("{} of the {kind}s begin so", more + 1)))
        }
    }
}

/// The one point that cannot be read and whose id begins as `text` says.
pub(crate) fn find_damaged(list: &PointList, text: &str) -> Option<PointId> {
    let prefix = text.strip_prefix('@')?;
    by_prefix("point", prefix, list.damaged.iter().map(|(id, _)| *id)).ok()
}

/// A recovery point, and the disk of it if the name has one.
pub(crate) type Named = (RecoveryPoint, Option<DiskRecord>);

/// What a user named: a recovery point or one of its disks.
pub(crate) fn find_any(list: &PointList, text: &str) -> Result<Named, CliError> {
    let (name, point) = find(list, text)?;
    let disk = match name.disk {
        Some(_) => Some(name.disk_of(point).map_err(|error| told(error, text))?.clone()),
        None => None,
    };
    Ok((point.clone(), disk))
}

/// The recovery point a user named, where a disk makes no sense.
pub(crate) fn find_point(list: &PointList, text: &str) -> Result<RecoveryPoint, CliError> {
    let (name, point) = find(list, text)?;
    match &name.disk {
        None => Ok(point.clone()),
        Some(disk) => Err(CliError::usage("a recovery point is wanted here, without a disk")
            .what(text)
            .hint(format!("leave out :{}", clean(disk)))),
    }
}

/// The disk a user named; a point with a single disk needs no disk in its name.
pub(crate) fn find_disk(
    list: &PointList,
    text: &str,
) -> Result<(RecoveryPoint, DiskRecord), CliError> {
    let (name, point) = find(list, text)?;
    let disk = name.disk_of(point).map_err(|error| told(error, text))?;
    Ok((point.clone(), disk.clone()))
}

/// The disk a user named, or else all disks of the point, in its order.
pub(crate) fn find_disks(
    list: &PointList,
    text: &str,
) -> Result<(RecoveryPoint, Vec<DiskRecord>), CliError> {
    let (point, disk) = find_any(list, text)?;
    let disks = disk.map_or_else(|| point.disks.clone(), |disk| vec![disk]);
    Ok((point, disks))
}

fn find<'a>(list: &'a PointList, text: &str) -> Result<(Name, &'a RecoveryPoint), CliError> {
    let name: Name = text.parse().map_err(|error| told(error, text))?;
    let point = name.resolve(list, &Zoned::now()).map_err(|error| told(error, text))?;
    Ok((name, point))
}

fn told(error: backstay_core::Error, text: &str) -> CliError {
    let told = CliError::from(error).what(text);
    // Some messages say so themselves.
    if told.message.contains("backstay list") {
        return told;
    }
    told.hint("backstay list      shows all recovery points")
}
