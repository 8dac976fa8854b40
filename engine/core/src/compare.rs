//! What differs between two recovery points, from their image trees: no data is read.

use backstay_store::{DiffExtent, DiffKind, RecoveryPoint, Repository};

use crate::error::{Error, ErrorKind, Result};
use crate::monitor::Monitor;

/// Most extents kept for one disk; a comparison of unlike disks can have one for every chunk.
pub const EXTENTS_MAX: usize = 1 << 20;

/// How a disk of two points differs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DiskChange {
    /// The disk's name, the same in both points.
    pub name: String,
    /// Its size in the first and the second point, in bytes.
    pub size_bytes: (u64, u64),
    /// Runs of whole chunks that differ, in order, neighbours of one kind merged.
    pub extents: Vec<DiffExtent>,
    /// More than [`EXTENTS_MAX`] extents differ; the sums below count all of them.
    pub truncated: bool,
    /// Bytes of chunks that are data in both and not the same.
    pub changed_bytes: u64,
    /// Bytes of chunks that are data only in the second.
    pub added_bytes: u64,
    /// Bytes of chunks that are data only in the first.
    pub removed_bytes: u64,
}

impl DiskChange {
    /// Whether the disk reads the same in both points.
    pub fn is_empty(&self) -> bool {
        self.size_bytes.0 == self.size_bytes.1 && self.extents.is_empty()
    }
}

/// How two points differ.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PointChange {
    /// The disks both have, in the second point's order; unchanged ones too.
    pub disks: Vec<DiskChange>,
    /// Names of disks only the first has.
    pub only_in_first: Vec<String>,
    /// Names of disks only the second has.
    pub only_in_second: Vec<String>,
}

impl PointChange {
    /// Whether both points hold the same disks with the same content.
    pub fn is_empty(&self) -> bool {
        self.only_in_first.is_empty()
            && self.only_in_second.is_empty()
            && self.disks.iter().all(DiskChange::is_empty)
    }
}

/// Compares the disks of two points by name; with `only`, just that disk, which both must have.
pub fn points(
    repo: &Repository,
    first: &RecoveryPoint,
    second: &RecoveryPoint,
    only: Option<&str>,
    monitor: &dyn Monitor,
) -> Result<PointChange> {
    let _holds = [first, second].map(|p| repo.hold_shared(p.id, "comparison"));
    let mut change = PointChange::default();
    if let Some(name) = only {
        for point in [first, second] {
            if point.disk(name).is_none() {
                return Err(Error::new(
                    ErrorKind::NotFound,
                    format!("there is no disk `{name}` in @{}", point.id),
                ));
            }
        }
    }
    let wanted = |name: &str| only.is_none_or(|only| only == name);
    for disk in second.disks.iter().filter(|d| wanted(&d.name)) {
        if monitor.cancelled() {
            return Err(Error::new(ErrorKind::Cancelled, "the comparison was cancelled"));
        }
        let Some(before) = first.disk(&disk.name) else {
            change.only_in_second.push(disk.name.clone());
            continue;
        };
        let mut found = DiskChange {
            name: disk.name.clone(),
            size_bytes: (before.size_bytes, disk.size_bytes),
            ..DiskChange::default()
        };
        repo.diff_images(before, disk, &mut |extent| found.add(extent))
            .map_err(|e| Error::from(e).within(format!("cannot compare disk {}", disk.name)))?;
        change.disks.push(found);
    }
    let gone = first.disks.iter().filter(|d| wanted(&d.name) && second.disk(&d.name).is_none());
    change.only_in_first = gone.map(|d| d.name.clone()).collect();
    Ok(change)
}

impl DiskChange {
    fn add(&mut self, extent: DiffExtent) {
        let sum = match extent.kind {
            DiffKind::Changed => &mut self.changed_bytes,
            DiffKind::Added => &mut self.added_bytes,
            DiffKind::Removed => &mut self.removed_bytes,
        };
        *sum += extent.len_bytes;
        let full = self.extents.len() == EXTENTS_MAX;
        match self.extents.last_mut() {
            Some(last)
                if last.kind == extent.kind
                    && last.offset_bytes + last.len_bytes == extent.offset_bytes =>
            {
                last.len_bytes += extent.len_bytes;
            }
            _ if full => self.truncated = true,
            _ => self.extents.push(extent),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_of_one_kind_are_merged_and_all_are_counted() {
        let mut change = DiskChange::default();
        let mut add = |offset_bytes, len_bytes, kind| {
            change.add(DiffExtent { offset_bytes, len_bytes, kind });
        };
        add(0, 10, DiffKind::Changed);
        add(10, 10, DiffKind::Changed);
        add(20, 10, DiffKind::Added);
        add(40, 10, DiffKind::Added);
        add(50, 5, DiffKind::Removed);
        let places: Vec<_> = change.extents.iter().map(|e| (e.offset_bytes, e.len_bytes)).collect();
        assert_eq!(places, [(0, 20), (20, 10), (40, 10), (50, 5)]);
        assert_eq!((change.changed_bytes, change.added_bytes, change.removed_bytes), (20, 20, 5));
        assert!(!change.is_empty() && !change.truncated);
    }

    #[test]
    fn a_size_is_a_difference() {
        let grown = DiskChange { size_bytes: (1, 2), ..DiskChange::default() };
        assert!(!grown.is_empty() && DiskChange::default().is_empty());
    }
}
