//! Verifying without any key: what a host that only keeps the storage can do.

use std::time::{Duration, Instant};

use backstay_format::limits::PACK_MAX;
use backstay_format::{PackId, RepoId};

use crate::error::{ErrorKind, Result};
use crate::key::{Folder, ObjectKey};
use crate::pack::verify_pack_bytes;
use crate::progress::Progress;
use crate::storage::Storage;

use super::damage::{Damage, DamageKind};
use super::walk::stopped;

/// How much to verify without a key.
#[derive(Clone, Copy, Debug, Default)]
pub struct KeylessOptions {
    /// Read about this many bytes, but at least one pack.
    pub max_bytes: Option<u64>,
    /// Begin no other pack after this time.
    pub max_time: Option<Duration>,
    /// Begin after this pack, in the order of names: where the last run stopped.
    pub resume_after: Option<PackId>,
}

/// The outcome of a check without a key.
#[derive(Clone, Debug, Default)]
pub struct PackCheckReport {
    /// Packs checked.
    pub packs: u64,
    /// Bytes read.
    pub read_bytes: u64,
    /// Damaged packs.
    pub damage: Vec<Damage>,
    /// The last pack checked, if the budget was spent before the last pack there is.
    pub stopped_after: Option<PackId>,
}

/// Checks packs against their own checksums, in the order of their names.
pub(crate) fn check_packs(
    storage: &dyn Storage,
    repo: RepoId,
    options: &KeylessOptions,
    progress: &dyn Progress,
) -> Result<PackCheckReport> {
    let started = Instant::now();
    let mut report = PackCheckReport::default();
    let pack = |k: ObjectKey| if let ObjectKey::Pack(id) = k { Some(id) } else { None };
    let mut packs: Vec<PackId> =
        storage.list(Folder::Packs)?.into_iter().filter_map(pack).collect();
    packs.retain(|id| options.resume_after.is_none_or(|after| *id > after));
    progress.total("packs", packs.len() as u64);
    let mut last = None;
    for id in packs {
        stopped(progress)?;
        let spent = options.max_bytes.is_some_and(|max| report.read_bytes >= max)
            || options.max_time.is_some_and(|max| started.elapsed() >= max);
        if spent && last.is_some() {
            report.stopped_after = last;
            break;
        }
        last = Some(id);
        let checked = storage.get(ObjectKey::Pack(id), PACK_MAX).and_then(|bytes| {
            report.read_bytes += bytes.len() as u64;
            verify_pack_bytes(&bytes, repo, id)
        });
        progress.add("packs", 1);
        match checked {
            Ok(()) => {}
            // Deleted by a collection meanwhile.
            Err(e) if e.kind() == ErrorKind::NotFound => continue,
            Err(e) if e.kind() == ErrorKind::Damaged || e.is_media_error() => {
                let damage = Damage { kind: DamageKind::Pack(id), reason: e.whole_story() };
                report.damage.push(damage);
            }
            Err(e) => return Err(e),
        }
        report.packs += 1;
    }
    Ok(report)
}
