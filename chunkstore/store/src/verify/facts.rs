//! What was verified when (FORMAT.md, Verification): written as it is found out, merged later.

use std::collections::{BTreeSet, HashMap, HashSet};

use backstay_format::limits::VERIFIED_PACKS_MAX;
use backstay_format::verified::{Level, Verified, VerifiedPack};
use backstay_format::{PackId, VerifiedId};
use jiff::Timestamp;

use crate::entropy::array;
use crate::error::{ErrorKind, Result};
use crate::key::{Folder, ObjectKey};
use crate::quarantine::lost;
use crate::record;
use crate::repository::Inner;

/// Packs verified before they are written down: a kill loses at most so many.
const CHECKPOINT: usize = 64;
/// Records beyond those needed that may be there before they are merged.
const SPARE_RECORDS: usize = 8;

/// The newest fact of each level, by pack.
#[derive(Debug, Default)]
pub(crate) struct Facts {
    by_pack: HashMap<PackId, [Option<VerifiedPack>; 2]>,
    records: BTreeSet<VerifiedId>,
    /// Records that cannot be read.
    unreadable: Vec<VerifiedId>,
    pending: Vec<VerifiedPack>,
}

impl Facts {
    /// Reads all facts. A record that cannot be read is as if it were not there: its packs count
    /// as never verified.
    pub(crate) fn load(repo: &Inner) -> Result<Self> {
        let mut facts = Self::default();
        for key in repo.storage().list(Folder::Verified)? {
            let ObjectKey::Verified(id) = key else { continue };
            match record::get::<Verified>(repo, key) {
                Ok(record) => {
                    record.packs.into_iter().for_each(|fact| facts.take(fact));
                    facts.records.insert(id);
                }
                Err(e) if lost(&e) => {
                    tracing::warn!(%id, error = %e, "a record of verified packs cannot be read");
                    facts.unreadable.push(id);
                }
                Err(e) => return Err(e),
            }
        }
        Ok(facts)
    }

    fn take(&mut self, fact: VerifiedPack) {
        let slot = &mut self.by_pack.entry(fact.pack).or_default()[fact.level as usize];
        if slot.is_none_or(|known| known.time <= fact.time) {
            *slot = Some(fact);
        }
    }

    /// The newest fact about a pack that says at least as much as `level`. One that lies after
    /// `now` says nothing: some clock was wrong.
    pub(crate) fn newest(
        &self,
        pack: PackId,
        level: Level,
        now: Timestamp,
    ) -> Option<VerifiedPack> {
        let facts = self.by_pack.get(&pack)?;
        let enough = facts.iter().flatten().filter(|f| f.level >= level && f.time <= now);
        enough.max_by_key(|f| f.time).copied()
    }

    /// Notes a fact; `true` when it is time to write.
    pub(crate) fn note(&mut self, fact: VerifiedPack) -> bool {
        self.take(fact);
        self.pending.push(fact);
        self.pending.len() >= CHECKPOINT
    }

    /// Writes what was noted; durable when this returns.
    pub(crate) fn write(&mut self, repo: &Inner) -> Result<()> {
        while !self.pending.is_empty() {
            let count = self.pending.len().min(VERIFIED_PACKS_MAX);
            let id = put(repo, self.pending[..count].to_vec())?;
            self.records.insert(id);
            self.pending.drain(..count);
        }
        Ok(())
    }

    /// The records that could not be read.
    pub(crate) fn unreadable(&self) -> &[VerifiedId] {
        &self.unreadable
    }

    /// Merges small records into few, without packs that are gone: the merged ones are written
    /// first, so that a kill loses nothing.
    pub(crate) fn merge(&mut self, repo: &Inner, present: &HashSet<PackId>) -> Result<()> {
        let needed = self.by_pack.len().div_ceil(VERIFIED_PACKS_MAX / 2);
        if self.records.len() <= needed + SPARE_RECORDS {
            return Ok(());
        }
        self.by_pack.retain(|pack, _| present.contains(pack));
        let mut all: Vec<VerifiedPack> = Vec::new();
        for [checksums, full] in self.by_pack.values() {
            // A full verification says all that an older one of the checksums does.
            let newer = |c: &VerifiedPack| full.is_none_or(|f| f.time < c.time);
            all.extend(checksums.filter(newer));
            all.extend(full);
        }
        all.sort_by_key(|f| f.pack);
        let mut merged = BTreeSet::new();
        for some in all.chunks(VERIFIED_PACKS_MAX) {
            merged.insert(put(repo, some.to_vec())?);
        }
        for id in std::mem::replace(&mut self.records, merged) {
            match repo.storage().delete(ObjectKey::Verified(id)) {
                Ok(()) => {}
                Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::Denied) => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }
}

fn put(repo: &Inner, packs: Vec<VerifiedPack>) -> Result<VerifiedId> {
    let id = VerifiedId::from_bytes(array(repo.entropy()));
    record::put(repo, ObjectKey::Verified(id), &Verified { id, packs })?;
    Ok(id)
}
