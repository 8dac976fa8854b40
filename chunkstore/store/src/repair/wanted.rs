//! What a repair has to look for.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use backstay_format::ChunkId;
use backstay_format::point::RecoveryPoint;

use crate::error::Result;
use crate::progress::Progress;
use crate::repository::Inner;
use crate::verify::{BadCopies, Healed, Lost, Walker, stopped};

use super::source::{DiskPlace, WantedChunk};

/// Chunks looked for in one round; what is beyond is found in the next.
const WANTED_MAX: usize = 64 * 1024;
/// Places of one chunk that sources are asked for.
const PLACES_MAX: usize = 4;

/// A chunk that no copy is left of, at some of the places that need it. Never empty.
pub(super) type Places = Vec<WantedChunk>;

/// Walks all trees for chunks that no copy is left of but in quarantine, leaving out those in `tried`. What hangs
/// below a lost node is found once the node is healed.
pub(super) fn collect(
    inner: &Inner,
    points: &[Arc<RecoveryPoint>],
    bad: &BadCopies,
    healed: &Healed,
    tried: &HashSet<ChunkId>,
    progress: &dyn Progress,
) -> Result<HashMap<ChunkId, Places>> {
    let mut wanted: HashMap<ChunkId, Places> = HashMap::new();
    let mut walker = Walker::new(inner, bad, healed).without_quarantined();
    for point in points {
        for disk in &point.disks {
            stopped(progress)?;
            walker.disk(point, disk, &mut |lost| {
                if tried.contains(&lost.id) {
                    return;
                }
                let full = wanted.len() >= WANTED_MAX;
                let places = match wanted.get_mut(&lost.id) {
                    Some(places) => places,
                    None if full => return,
                    None => wanted.entry(lost.id).or_default(),
                };
                if places.len() < PLACES_MAX {
                    places.push(WantedChunk::new(inner, &lost));
                }
            })?;
        }
    }
    Ok(wanted)
}

impl WantedChunk {
    fn new(inner: &Inner, lost: &Lost<'_>) -> Self {
        Self {
            id: lost.id,
            node_level: lost.level,
            place: DiskPlace {
                repository: inner.config().id,
                machine: lost.point.machine.clone(),
                point: lost.point.id,
                copied_from: lost.point.copied_from,
                time: lost.point.time,
                disk: lost.disk.name.clone(),
                size_bytes: lost.disk.size_bytes,
                offset_bytes: lost.offset_bytes,
                len_bytes: lost.len_bytes,
            },
        }
    }
}
