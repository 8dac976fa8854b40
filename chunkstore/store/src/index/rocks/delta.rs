//! What this process added and has not published yet.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use backstay_format::pack::PackEntry;
use backstay_format::{ChunkId, IndexId, PackId, PointId};

use super::super::{ChunkLocation, PackInfo};
use super::rows::{CopyKey, PackNumber, Place, copy_key, pack_of};

/// Packs and chunks added. Packs are numbered from zero here; publishing gives them the numbers
/// of the database, in the same order, so that rows stay sorted.
#[derive(Debug, Default)]
pub(super) struct Delta {
    pub(super) rows: BTreeMap<CopyKey, Place>,
    /// Nothing: the pack was forgotten since.
    pub(super) packs: Vec<Option<(PackId, PackInfo)>>,
    numbers: HashMap<PackId, PackNumber>,
    /// Complete points, each with the count of clearings that was known when it was noted.
    pub(super) complete: HashMap<PointId, u32>,
    /// Index objects that were taken in, and those that are gone.
    pub(super) objects: HashMap<IndexId, bool>,
}

impl Delta {
    pub(super) fn is_empty(&self) -> bool {
        self.numbers.is_empty() && self.complete.is_empty() && self.objects.is_empty()
    }

    pub(super) fn contains(&self, pack: &PackId) -> bool {
        self.numbers.contains_key(pack)
    }

    pub(super) fn add_pack(
        &mut self,
        pack: PackId,
        info: PackInfo,
        entries: &[PackEntry],
        bad: &HashSet<ChunkId>,
    ) {
        if self.contains(&pack) {
            return;
        }
        let number = self.packs.len() as PackNumber;
        self.packs.push(Some((pack, info)));
        self.numbers.insert(pack, number);
        for (n, e) in entries.iter().enumerate().filter(|(_, e)| !bad.contains(&e.id)) {
            self.rows.insert(copy_key(&e.id, number), Place::new(n, e));
        }
    }

    /// Present copies of a chunk, newest first.
    pub(super) fn copies(&self, id: &ChunkId) -> impl Iterator<Item = ChunkLocation> {
        let range = copy_key(id, PackNumber::MAX)..=copy_key(id, 0);
        self.rows.range(range).filter_map(|(key, place)| {
            let (pack, info) = self.packs.get(pack_of(key)? as usize)?.as_ref()?;
            Some(place.in_pack(*pack, info.kind))
        })
    }

    pub(super) fn packs(&self) -> impl Iterator<Item = (PackId, PackInfo)> {
        self.packs.iter().flatten().copied()
    }

    pub(super) fn drop_packs(&mut self, packs: &[PackId]) {
        let gone: HashSet<PackNumber> =
            packs.iter().filter_map(|p| self.numbers.remove(p)).collect();
        if gone.is_empty() {
            return;
        }
        for &number in &gone {
            self.packs[number as usize] = None;
        }
        self.rows.retain(|key, _| pack_of(key).is_some_and(|n| !gone.contains(&n)));
    }

    #[allow(dead_code, reason = "the records of damage will use it")]
    pub(super) fn drop_copies(&mut self, pack: PackId, ids: &[ChunkId]) {
        let Some(&number) = self.numbers.get(&pack) else { return };
        for id in ids {
            self.rows.remove(&copy_key(id, number));
        }
    }

    /// Puts back what could not be published: `self` is older than `newer`.
    fn append(&mut self, newer: Delta) {
        let mut numbers = Vec::with_capacity(newer.packs.len());
        for pack in newer.packs {
            numbers.push(pack.filter(|(id, _)| !self.contains(id)).map(|(id, info)| {
                let number = self.packs.len() as PackNumber;
                self.packs.push(Some((id, info)));
                self.numbers.insert(id, number);
                number
            }));
        }
        for (mut key, place) in newer.rows {
            let number = pack_of(&key).and_then(|n| numbers.get(n as usize).copied().flatten());
            if let Some(number) = number {
                key[ChunkId::LEN..].copy_from_slice(&(!number).to_be_bytes());
                self.rows.insert(key, place);
            }
        }
        self.complete.extend(newer.complete);
        self.objects.extend(newer.objects);
    }
}

/// The delta being filled, and the one being published: readers look into both, so that nobody
/// waits for a publishing and nobody finds a chunk in neither.
#[derive(Debug, Default)]
pub(super) struct Deltas {
    pub(super) open: Delta,
    pub(super) sealed: Option<Arc<Delta>>,
}

impl Deltas {
    /// Both, newest first.
    pub(super) fn each(&self) -> impl Iterator<Item = &Delta> {
        std::iter::once(&self.open).chain(self.sealed.as_deref())
    }

    /// Starts a publishing; nothing if there is nothing to publish.
    pub(super) fn seal(&mut self) -> Option<Arc<Delta>> {
        debug_assert!(self.sealed.is_none(), "one publishing at a time");
        if self.open.is_empty() {
            return None;
        }
        let sealed = Arc::new(std::mem::take(&mut self.open));
        self.sealed = Some(sealed.clone());
        Some(sealed)
    }

    /// Ends a publishing that failed: the caller has given its own reference back.
    pub(super) fn unseal(&mut self) {
        let Some(mut older) = self.sealed.take().and_then(Arc::into_inner) else { return };
        older.append(std::mem::take(&mut self.open));
        self.open = older;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use backstay_format::pack::{Encoding, PackKind};

    fn entry(n: u8) -> PackEntry {
        let id = ChunkId::from_bytes([n; 32]);
        PackEntry { id, offset: 64, stored_len: 10, raw_len: 10, encoding: Encoding::Raw }
    }

    fn info(chunks: u32) -> PackInfo {
        PackInfo { kind: PackKind::Data, chunks, len: 99, session: PointId::NONE }
    }

    #[test]
    fn a_failed_publishing_loses_nothing() {
        let pack = |n| PackId::from_bytes([n; 16]);
        let copies = |d: &Deltas, n: u8| -> Vec<PackId> {
            let id = ChunkId::from_bytes([n; 32]);
            d.each().flat_map(|d| d.copies(&id)).map(|l| l.pack).collect()
        };
        let good = HashSet::new();
        let mut deltas = Deltas::default();
        deltas.open.add_pack(pack(1), info(2), &[entry(1), entry(2)], &good);
        deltas.open.add_pack(pack(2), info(2), &[entry(2), entry(3)], &good);
        drop(deltas.seal());
        deltas.open.add_pack(pack(3), info(2), &[entry(3), entry(4)], &good);
        deltas.open.add_pack(pack(1), info(2), &[entry(1), entry(2)], &good);
        deltas.unseal();
        assert!(deltas.sealed.is_none());
        assert_eq!(deltas.open.packs().count(), 3);
        assert_eq!(copies(&deltas, 1), [pack(1)]);
        assert_eq!(copies(&deltas, 2), [pack(2), pack(1)]);
        assert_eq!(copies(&deltas, 3), [pack(3), pack(2)]);
        assert_eq!(copies(&deltas, 4), [pack(3)]);
        deltas.open.drop_packs(&[pack(2)]);
        deltas.open.drop_copies(pack(1), &[ChunkId::from_bytes([1; 32])]);
        assert_eq!(copies(&deltas, 1), []);
        assert_eq!(copies(&deltas, 2), [pack(1)]);
        assert_eq!(copies(&deltas, 3), [pack(3)]);
    }
}
