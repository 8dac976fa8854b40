//! Damage of every kind at once, against an oracle: it knows from the layout of the packs, before
//! anything is damaged, which bytes every chunk of every disk needs, and says what must be lost.
//! The store must find exactly that, serve everything else bit for bit, and no wrong byte ever.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use backstay_store::testkit::SeededEntropy;
use backstay_store::testkit::layout::{self, Needs};
use backstay_store::{
    Cause, DamageKind, ErrorKind, Folder, MemoryStorage, NoProgress, ObjectKey, PackId, PointId,
    RecoveryPoint, RepairOptions, Repository, RepositorySource, Storage, VerifyOptions,
    VerifyReport,
};

use crate::support::{CHUNK, back_up, image, init, open, seed};

/// The unit in which disks fail.
const BLOCK: usize = 4096;

struct Point {
    record: RecoveryPoint,
    disk: Vec<u8>,
    needs: Vec<Needs>,
}

struct Rig {
    storage: Arc<MemoryStorage>,
    entropy: Arc<SeededEntropy>,
    points: Vec<Point>,
    /// Every object as it was before the damage.
    whole: BTreeMap<ObjectKey, Vec<u8>>,
    /// The index objects that say what each pack holds.
    tables: BTreeMap<PackId, Vec<ObjectKey>>,
    /// The part of each pack where damage costs only the chunks it hits.
    bodies: BTreeMap<PackId, std::ops::Range<u64>>,
}

fn all_objects(storage: &MemoryStorage) -> BTreeMap<ObjectKey, Vec<u8>> {
    let keys = Folder::ALL.iter().flat_map(|f| storage.list(*f).unwrap());
    let keys = keys.chain([ObjectKey::Config]);
    keys.map(|k| (k, storage.get(k, u64::MAX).unwrap())).collect()
}

impl Rig {
    /// Two machines that change from day to day, a session, a pin, a removal, a collection.
    fn new(seed: u64) -> Self {
        let storage = Arc::new(MemoryStorage::default());
        let entropy = Arc::new(SeededEntropy::new(seed));
        init(&*storage, &entropy).unwrap();
        let repo = open(storage.clone(), &entropy).unwrap();
        let mut made = Vec::new();
        for (m, machine) in ["web01", "db01"].into_iter().enumerate() {
            let mut disk = image(seed + m as u64, 300 * CHUNK + 700);
            for day in 0..3u64 {
                let at = entropy.below(280) as usize * CHUNK;
                let change = image(seed + 10 + day, 8 * CHUNK);
                disk[at..at + change.len()].copy_from_slice(&change);
                made.push((back_up(&repo, machine, &disk).unwrap(), disk.clone()));
            }
        }
        let cause = Cause { by: "a test".into(), reason: "to have such objects".into() };
        repo.remove_points(&[made.remove(0).0.id], &cause).unwrap();
        repo.collect(&Default::default(), &NoProgress).unwrap();
        repo.pin(made[0].0.id, &cause).unwrap();
        let hidden = back_up(&repo, "tmp01", &disk_of_nothing()).unwrap();
        repo.remove_points(&[hidden.id], &cause).unwrap();
        repo.verify(&VerifyOptions::default(), &NoProgress).unwrap();
        let needs = |r: &RecoveryPoint| layout::needs(&repo, &r.disks[0]).unwrap();
        let points = made
            .into_iter()
            .map(|(record, disk)| Point { needs: needs(&record), record, disk })
            .collect();
        let whole = all_objects(&storage);
        let pack = |k: &ObjectKey| if let ObjectKey::Pack(id) = k { Some(*id) } else { None };
        let packs = whole.keys().filter_map(pack);
        let bodies = packs.map(|id| (id, layout::body(&repo, id).unwrap())).collect();
        let tables = layout::index_objects(&repo).unwrap();
        Self { storage, entropy, points, whole, tables, bodies }
    }

    fn node(&self) -> Repository {
        open(self.storage.clone(), &self.entropy).unwrap()
    }

    fn packs(&self) -> Vec<ObjectKey> {
        self.whole.keys().filter(|k| matches!(k, ObjectKey::Pack(_))).copied().collect()
    }

    /// Damages about `percent` of the blocks of all packs, each in one of the ways disks have.
    fn damage_packs(&self, chance: &SeededEntropy, percent: u64) {
        let packs = self.packs();
        for &pack in &packs {
            let blocks = (self.whole[&pack].len() as u64).div_ceil(BLOCK as u64);
            for block in 0..blocks {
                if chance.below(100) < percent {
                    self.damage_block(chance, &packs, pack, block as usize);
                }
            }
        }
        if chance.below(3) == 0 {
            let pack = packs[chance.below(packs.len() as u64) as usize];
            match chance.below(3) {
                0 => self.storage.delete(pack).unwrap_or(()),
                1 => {
                    self.storage.tamper(pack, |b| b.truncate(chance.below(b.len() as u64) as usize))
                }
                _ => self.storage.tamper(pack, |b| b.extend([0; 512])),
            }
        }
    }

    fn damage_block(
        &self,
        chance: &SeededEntropy,
        packs: &[ObjectKey],
        pack: ObjectKey,
        block: usize,
    ) {
        let other = packs[chance.below(packs.len() as u64) as usize];
        let from = &self.whole[&other];
        let source = chance.below(from.len().div_ceil(BLOCK) as u64) as usize * BLOCK;
        let way = chance.below(4);
        self.storage.tamper(pack, |bytes| {
            let start = (block * BLOCK).min(bytes.len());
            let end = (start + BLOCK).min(bytes.len());
            let part = &mut bytes[start..end];
            if part.is_empty() {
                return;
            }
            match way {
                // A bit flips.
                0 | 1 => {
                    let bit = chance.below(part.len() as u64 * 8);
                    part[bit as usize / 8] ^= 1 << (bit % 8);
                }
                // A sector reads as zeros.
                2 => {
                    let at = chance.below(part.len() as u64) as usize / 512 * 512;
                    let end = (at + 512).min(part.len());
                    part[at..end].fill(0);
                }
                // A write went astray: what belongs elsewhere stands here.
                _ => {
                    let n = part.len().min(from.len() - source);
                    part[..n].copy_from_slice(&from[source..source + n]);
                }
            }
        });
    }

    /// Flips a bit in some of the small objects; returns those that are damaged now.
    fn damage_objects(&self, chance: &SeededEntropy) -> BTreeSet<ObjectKey> {
        let small = |k: &&ObjectKey| !matches!(k, ObjectKey::Pack(_) | ObjectKey::Config);
        let mut damaged = BTreeSet::new();
        for (key, bytes) in self.whole.iter().filter(|(k, _)| small(k)) {
            // The key slot stays, or nobody could open the repository; and the record of a point
            // that is removed is nobody's loss.
            let spared = match key {
                ObjectKey::Slot(_) => true,
                // With the plan and the end of a collection gone nobody may write.
                ObjectKey::GcPlan(_) => true,
                ObjectKey::Point(id) => !self.points.iter().any(|p| p.record.id == *id),
                _ => false,
            };
            if spared || chance.below(3) > 0 {
                continue;
            }
            let bit = chance.below(bytes.len() as u64 * 8);
            self.storage.tamper(*key, |b| b[bit as usize / 8] ^= 1 << (bit % 8));
            damaged.insert(*key);
        }
        damaged
    }

    /// Whether these bytes of a pack are as they were, and the pack or an index object says that
    /// they are a chunk.
    fn usable(&self, pack: PackId, range: &std::ops::Range<u64>) -> bool {
        let key = ObjectKey::Pack(pack);
        let Ok(now) = self.storage.get(key, u64::MAX) else { return false };
        let then = &self.whole[&key];
        let same = |r: std::ops::Range<usize>| now.get(r.clone()) == then.get(r);
        let body = &self.bodies[&pack];
        let says_itself = now.len() == then.len()
            && same(0..body.start as usize)
            && same(body.end as usize..then.len());
        let as_it_was = |k: &ObjectKey| self.storage.get(*k, u64::MAX).unwrap() == self.whole[k];
        let known = says_itself || self.tables.get(&pack).into_iter().flatten().any(as_it_was);
        known && same(range.start as usize..range.end as usize)
    }

    /// What must be lost: point and chunk.
    fn oracle(&self, unreadable: &BTreeSet<ObjectKey>) -> BTreeSet<(PointId, usize)> {
        let mut lost = BTreeSet::new();
        for point in &self.points {
            if unreadable.contains(&ObjectKey::Point(point.record.id)) {
                continue;
            }
            for (i, needs) in point.needs.iter().enumerate() {
                let gone = |copies: &Vec<layout::Copy>| {
                    !copies.iter().any(|(pack, range)| self.usable(*pack, range))
                };
                if needs.iter().any(gone) {
                    lost.insert((point.record.id, i));
                }
            }
        }
        lost
    }

    /// Reads every chunk by itself: what is lost is an error, everything else is right.
    fn assert_reads(&self, repo: &Repository, lost: &BTreeSet<(PointId, usize)>, what: &str) {
        for point in &self.points {
            let reader = repo.image(&point.record.disks[0]).unwrap();
            for (i, expected) in point.disk.chunks(CHUNK).enumerate() {
                let mut buf = vec![0xee; expected.len()];
                let read = reader.read_at((i * CHUNK) as u64, &mut buf);
                match (read, lost.contains(&(point.record.id, i))) {
                    (Ok(()), false) => assert!(buf == expected, "{what}: wrong bytes were served"),
                    (Err(e), true) => assert_eq!(e.kind(), ErrorKind::Damaged, "{what}: {e}"),
                    (Ok(()), true) => panic!("{what}: chunk {i} was served, and cannot be right"),
                    (Err(e), false) => panic!("{what}: chunk {i} is whole: {e}"),
                }
            }
        }
    }

    fn changed_packs(&self) -> BTreeSet<PackId> {
        let pack = |k: &ObjectKey| if let ObjectKey::Pack(id) = k { Some(*id) } else { None };
        let changed = self
            .whole
            .iter()
            .filter(|(k, then)| self.storage.get(**k, u64::MAX).is_ok_and(|now| now != **then));
        changed.filter_map(|(k, _)| pack(k)).collect()
    }
}

fn disk_of_nothing() -> Vec<u8> {
    let mut disk = vec![0; 20 * CHUNK];
    disk[5] = 1;
    disk
}

/// The ranges that a report lists, as point and chunk. Panics if one is listed twice.
fn listed(damage: &[backstay_store::Damage], what: &str) -> BTreeSet<(PointId, usize)> {
    let mut out = BTreeSet::new();
    for d in damage {
        let DamageKind::Disk { point, offset_bytes, len_bytes, .. } = &d.kind else { continue };
        let first = *offset_bytes as usize / CHUNK;
        for i in first..first + (*len_bytes as usize).div_ceil(CHUNK) {
            assert!(out.insert((*point, i)), "{what}: chunk {i} of {point} is listed twice");
        }
    }
    out
}

fn named_packs(report: &VerifyReport) -> BTreeSet<PackId> {
    let pack = |kind: &DamageKind| if let DamageKind::Pack(id) = kind { Some(*id) } else { None };
    report.damage.iter().filter_map(|d| pack(&d.kind)).collect()
}

fn named_objects(damage: &[backstay_store::Damage]) -> BTreeSet<String> {
    let name = |kind: &DamageKind| match kind {
        DamageKind::Object(name) => Some(name.clone()),
        DamageKind::Index(id) => Some(ObjectKey::Index(*id).path()),
        DamageKind::Point(id) => Some(ObjectKey::Point(*id).path()),
        _ => None,
    };
    damage.iter().filter_map(|d| name(&d.kind)).collect()
}

fn rounds() -> u64 {
    if std::env::var_os("BACKSTAY_RELEASE_SIZE").is_some() { 2000 } else { 60 }
}

#[test]
fn the_report_is_the_oracles_list_and_a_copy_heals_it() {
    let seed = seed();
    let mut flips = 0;
    let mut lost_chunks = 0;
    for round in 0..rounds() {
        let rig = Rig::new(seed.wrapping_add(round * 1000));
        let chance = SeededEntropy::new(seed.wrapping_add(round * 1000 + 1));
        let copy = MemoryStorage::default();
        for (key, bytes) in &rig.whole {
            copy.put(*key, &[bytes]).unwrap();
        }
        rig.damage_packs(&chance, 1 + round % 2 * 4);
        let objects = if round % 3 == 0 { rig.damage_objects(&chance) } else { BTreeSet::new() };
        let what = format!("seed {seed}, round {round}");
        let lost = rig.oracle(&objects);
        let changed = rig.changed_packs();
        let paths: BTreeSet<String> = objects.iter().map(ObjectKey::path).collect();

        // A quick look and a thorough one without state, then the verification.
        let check =
            rig.node().check(&backstay_store::CheckOptions { read_data: true }, &NoProgress);
        let check = check.unwrap();
        assert_eq!(listed(&check.damage, &what), lost, "{what}: check");
        assert_eq!(named_objects(&check.damage), paths, "{what}: check");
        let report = rig.node().verify(&VerifyOptions::default(), &NoProgress).unwrap();
        assert_eq!(listed(&report.damage, &what), lost, "{what}: verify");
        assert_eq!(named_packs(&report), changed, "{what}: verify");
        assert_eq!(named_objects(&report.damage), paths, "{what}: verify");
        // A damaged point hides nothing of the others; its own disks still read.
        let damaged_points: BTreeSet<PointId> = rig
            .points
            .iter()
            .map(|p| p.record.id)
            .filter(|id| objects.contains(&ObjectKey::Point(*id)))
            .collect();
        let all_lost = rig.oracle(&BTreeSet::new());
        rig.assert_reads(&rig.node(), &all_lost, &what);
        flips += changed.len();
        lost_chunks += lost.len();

        // Repair from the copy heals all but what a person must put back.
        let other = open(Arc::new(copy), &Arc::new(SeededEntropy::new(7))).unwrap();
        let sources: Vec<Box<dyn backstay_store::ChunkSource>> =
            vec![Box::new(RepositorySource::new(other))];
        let mut options = RepairOptions { sources, ..RepairOptions::default() };
        let report = rig.node().repair(&mut options, &NoProgress).unwrap();
        assert!(listed(&report.left, &what).is_empty(), "{what}: {:?}", report.left);
        // Facts about verified packs are derived, and were made anew.
        let derived = |k: &&ObjectKey| !matches!(k, ObjectKey::Verified(_));
        let left: BTreeSet<String> = objects.iter().filter(derived).map(ObjectKey::path).collect();
        assert_eq!(named_objects(&report.left), left, "{what}: after the repair");
        // What only a point needs whose record is damaged is healed once the record is back.
        if damaged_points.is_empty() {
            rig.assert_reads(&rig.node(), &BTreeSet::new(), &what);
        }
    }
    println!("{flips} packs damaged, {lost_chunks} chunks of disks lost, all found, all healed");
    assert!(lost_chunks > 0);
}
