//! Repair: what any source still has is stored again, nothing is ever deleted, and what is left is
//! said.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use backstay_store::testkit::SeededEntropy;
use backstay_store::{
    Cause, CheckOptions, ChunkIndex, ChunkSource, CollectOptions, DamageKind, Encryption, Error,
    ErrorKind, FaultPlan, FaultStorage, Folder, ImageBytes, ImageSource, InitOptions,
    MemoryStorage, NewPoint, NoProgress, ObjectKey, Progress, RecoveryPoint, RepairOptions,
    RepairReport, Repository, RepositorySource, Storage, VerifyOptions, WantedChunk, WriteScratch,
};

use crate::support::{CHUNK, back_up, image, init, init_options, key, new_point, open, read, seed};

struct Rig {
    storage: Arc<MemoryStorage>,
    entropy: Arc<SeededEntropy>,
    points: Vec<(RecoveryPoint, Vec<u8>)>,
}

/// Two machines, three points, trees of two levels.
fn rig() -> Rig {
    rig_with(false)
}

fn rig_with(parity: bool) -> Rig {
    let storage = Arc::new(MemoryStorage::default());
    let entropy = Arc::new(SeededEntropy::new(1));
    let options = InitOptions { parity, ..init_options(Encryption::Aes256Gcm) };
    Repository::init_on(&*storage, &options, &key(), &*entropy).unwrap();
    let repo = open(storage.clone(), &entropy).unwrap();
    let mut points = Vec::new();
    for (machine, seed) in [("web01", 1), ("web01", 2), ("db01", 3)] {
        let disk = image(seed, 150 * CHUNK + 300);
        points.push((back_up(&repo, machine, &disk).unwrap(), disk));
    }
    Rig { storage, entropy, points }
}

impl Rig {
    fn node(&self) -> Repository {
        open(self.storage.clone(), &self.entropy).unwrap()
    }

    /// Every object and its bytes.
    fn objects(&self) -> BTreeMap<ObjectKey, Vec<u8>> {
        all_objects(&*self.storage)
    }

    /// A copy of the whole repository, as a file system's copy would be.
    fn copy(&self) -> Arc<MemoryStorage> {
        let copy = Arc::new(MemoryStorage::default());
        for (key, bytes) in self.objects() {
            copy.put(key, &[&bytes]).unwrap();
        }
        copy
    }

    fn packs(&self) -> Vec<ObjectKey> {
        self.storage.list(Folder::Packs).unwrap()
    }

    fn assert_whole(&self) {
        let repo = self.node();
        for (point, disk) in &self.points {
            assert!(read(&repo, &point.disks[0]).unwrap() == *disk, "{} differs", point.id);
        }
        assert_clean(&repo);
    }
}

fn all_objects(storage: &dyn Storage) -> BTreeMap<ObjectKey, Vec<u8>> {
    let mut keys = vec![ObjectKey::Config];
    keys.extend(Folder::ALL.iter().flat_map(|f| storage.list(*f).unwrap()));
    keys.into_iter().map(|k| (k, storage.get(k, u64::MAX).unwrap())).collect()
}

fn assert_clean(repo: &Repository) {
    for read_data in [false, true] {
        let report = repo.check(&CheckOptions { read_data }, &NoProgress).unwrap();
        assert!(report.damage.is_empty(), "{:?}", report.damage);
    }
    let report = repo.verify(&VerifyOptions::default(), &NoProgress).unwrap();
    assert!(report.damage.is_empty(), "{:?}", report.damage);
}

fn from_copy(copy: Arc<MemoryStorage>) -> Vec<Box<dyn ChunkSource>> {
    let other = open(copy, &Arc::new(SeededEntropy::new(77))).unwrap();
    vec![Box::new(RepositorySource::new(other))]
}

fn repair(repo: &Repository, sources: Vec<Box<dyn ChunkSource>>) -> RepairReport {
    let mut options = RepairOptions { sources, ..RepairOptions::default() };
    repo.repair(&mut options, &NoProgress).unwrap()
}

type Damaging = fn(&Rig, ObjectKey, ObjectKey);

const WAYS: [(&str, Damaging); 6] = [
    ("lost", |r, a, _| r.storage.delete(a).unwrap()),
    ("cut short", |r, a, _| r.storage.tamper(a, |b| b.truncate(b.len() / 2))),
    ("empty", |r, a, _| r.storage.tamper(a, Vec::clear)),
    ("flipped", |r, a, _| r.storage.tamper(a, |b| b[64 + 70] ^= 4)),
    ("zeroed sector", |r, a, _| {
        r.storage.tamper(a, |b| {
            let middle = b.len() / 2;
            b[middle..middle + 512].fill(0);
        });
    }),
    ("misdirected", |r, a, b| {
        let other = r.storage.get(b, u64::MAX).unwrap();
        r.storage.tamper(a, |bytes| *bytes = other);
    }),
];

#[test]
fn a_copy_of_the_repository_heals_every_pack_and_nothing_is_deleted() {
    let packs = rig().packs();
    for (name, damage) in WAYS {
        for (i, &pack) in packs.iter().enumerate() {
            let rig = rig();
            let copy = rig.copy();
            damage(&rig, pack, packs[(i + 1) % packs.len()]);
            let before = rig.objects();
            let report = repair(&rig.node(), from_copy(copy));
            assert!(report.wanted > 0, "{name}: pack {i}");
            assert!(report.left.is_empty(), "{name}: pack {i}: {:?}", report.left);
            let after = rig.objects();
            assert!(before.iter().all(|(k, b)| after.get(k) == Some(b)), "{name}: pack {i}");
            rig.assert_whole();
            let again = repair(&rig.node(), Vec::new());
            assert_eq!((again.wanted, again.stored_bytes), (0, 0), "{name}: pack {i}");
        }
    }
}

/// All packs at once, those of trees too: nodes are healed from the top down.
#[test]
fn everything_lost_comes_back_from_a_copy() {
    let rig = rig();
    let copy = rig.copy();
    for pack in rig.packs() {
        rig.storage.delete(pack).unwrap();
    }
    let report = repair(&rig.node(), from_copy(copy));
    assert!(report.left.is_empty(), "{:?}", report.left);
    rig.assert_whole();
}

/// The same machines in a repository with other keys: chunks have other ids there, and nodes are
/// built anew from the data.
#[test]
fn a_repository_with_other_keys_heals_too() {
    let packs = rig().packs();
    for (name, damage) in WAYS {
        for (i, &pack) in packs.iter().enumerate() {
            let rig = rig();
            let other = second(&rig.points);
            damage(&rig, pack, packs[(i + 1) % packs.len()]);
            let report = repair(&rig.node(), vec![Box::new(RepositorySource::new(other))]);
            assert!(report.left.is_empty(), "{name}: pack {i}: {:?}", report.left);
            rig.assert_whole();
        }
    }
}

/// A second repository, with keys of its own, that holds the same points.
fn second(points: &[(RecoveryPoint, Vec<u8>)]) -> Repository {
    let storage = Arc::new(MemoryStorage::default());
    let entropy = Arc::new(SeededEntropy::new(99));
    init(&*storage, &entropy).unwrap();
    let repo = open(storage, &entropy).unwrap();
    for (point, disk) in points {
        let session = repo.begin(None).unwrap();
        let writer = session.image("disk0", "copied", disk.len() as u64);
        let mut scratch = WriteScratch::new().unwrap();
        writer.write_chunks(ChunkIndex(0), disk, &mut scratch).unwrap();
        let record = writer.finish().unwrap();
        let new = NewPoint { time: point.time, ..new_point(&point.machine, None) };
        session.commit(new, vec![record]).unwrap();
    }
    repo
}

#[test]
fn without_a_source_nothing_is_healed_and_the_report_says_what_is_left() {
    let rig = rig();
    let pack = rig.packs()[0];
    rig.storage.tamper(pack, |b| b[64 + 70] ^= 4);
    let before = rig.objects();
    let report = repair(&rig.node(), Vec::new());
    assert!(!report.left.is_empty());
    assert!(report.left.iter().all(|d| matches!(d.kind, DamageKind::Disk { .. })), "{report:?}");
    let after = rig.objects();
    assert!(before.iter().all(|(k, b)| after.get(k) == Some(b)));
}

#[test]
fn a_dry_run_tells_the_same_and_writes_nothing() {
    for pack in rig().packs() {
        let rig = rig();
        let copy = rig.copy();
        rig.storage.delete(pack).unwrap();
        let before = rig.objects();
        let mut options =
            RepairOptions { sources: from_copy(copy.clone()), dry_run: true, read_data: true };
        let told = rig.node().repair(&mut options, &NoProgress).unwrap();
        assert_eq!(rig.objects(), before);
        assert!(told.left.is_empty() && told.wanted > 0, "{told:?}");
        let done = repair(&rig.node(), from_copy(copy));
        assert_eq!((told.wanted, told.healed), (done.wanted, done.healed));
    }
}

#[derive(Debug)]
struct Liar;

impl ChunkSource for Liar {
    fn name(&self) -> String {
        "a liar".into()
    }

    fn offer(&mut self, wanted: &WantedChunk) -> Result<Option<Vec<u8>>, Error> {
        Ok(Some(vec![7; wanted.place.len_bytes as usize]))
    }

    fn read(
        &mut self,
        _: &backstay_store::DiskPlace,
        _: u64,
        buf: &mut [u8],
    ) -> Result<bool, Error> {
        buf.fill(7);
        Ok(true)
    }

    fn scan(&mut self, block: u32, take: &mut dyn FnMut(&[u8]) -> bool) -> Result<(), Error> {
        take(&vec![7; block as usize]);
        Ok(())
    }

    fn point_object(&mut self, _: backstay_store::PointId) -> Result<Option<Vec<u8>>, Error> {
        Ok(Some(b"BKSTPONT and rubbish".to_vec()))
    }
}

#[test]
pub(crate) fn a_source_that_lies_gets_nothing_in() {
    let rig = rig();
    for pack in rig.packs() {
        rig.storage.tamper(pack, |b| b[64 + 70] ^= 4);
    }
    rig.storage.tamper(ObjectKey::Point(rig.points[2].0.id), |b| b[40] ^= 1);
    let report = repair(&rig.node(), vec![Box::new(Liar)]);
    assert!(report.healed.is_empty() && report.stored_bytes == 0, "{report:?}");
    assert!(!report.left.is_empty());
}

#[test]
fn a_damaged_record_of_a_point_is_left_to_a_person_with_the_remedy() {
    let rig = rig();
    let copy = rig.copy();
    let id = rig.points[1].0.id;
    rig.storage.tamper(ObjectKey::Point(id), |b| b[40] ^= 1);
    let report = repair(&rig.node(), from_copy(copy.clone()));
    assert_eq!(report.left.len(), 1);
    assert_eq!(report.left[0].kind, DamageKind::Point(id));
    let remedy = format!("has it whole: put its file points/{id} in place");
    assert!(report.left[0].reason.contains(&remedy), "{}", report.left[0].reason);
    let whole = copy.get(ObjectKey::Point(id), u64::MAX).unwrap();
    rig.storage.tamper(ObjectKey::Point(id), |b| *b = whole);
    rig.assert_whole();
}

/// Killed at every call to the storage, or cut off from it: run again, it completes.
#[test]
fn killed_anywhere_it_completes_when_it_is_run_again() {
    let seed = seed();
    let damage = |rig: &Rig| {
        let packs = rig.packs();
        rig.storage.delete(packs[0]).unwrap();
        rig.storage.tamper(packs[1], |b| b[64 + 70] ^= 4);
    };
    let calls = {
        let rig = rig();
        let copy = rig.copy();
        damage(&rig);
        let storage = Arc::new(FaultStorage::new(rig.storage.clone(), FaultPlan::default()));
        let node = open(storage.clone(), &rig.entropy).unwrap();
        storage.set_plan(FaultPlan::default());
        repair(&node, from_copy(copy));
        storage.calls()
    };
    let step = 1 + SeededEntropy::new(seed).below(5);
    for at in (0..calls).step_by(step as usize) {
        let rig = rig();
        let copy = rig.copy();
        damage(&rig);
        let before = rig.objects();
        let storage = Arc::new(FaultStorage::new(rig.storage.clone(), FaultPlan::default()));
        let node = open(storage.clone(), &rig.entropy).unwrap();
        let kind = Some(ErrorKind::Io);
        let plan = FaultPlan { fail_at: Some(at), sticky: true, kind, ..FaultPlan::default() };
        storage.set_plan(plan);
        let sources = from_copy(copy.clone());
        let mut options = RepairOptions { sources, ..RepairOptions::default() };
        let outcome = node.repair(&mut options, &NoProgress);
        assert!(outcome.is_err(), "call {at} of {calls} failed, and nobody noticed");
        let after = rig.objects();
        assert!(before.iter().all(|(k, b)| after.get(k) == Some(b)), "call {at}");
        drop(node);
        let report = repair(&rig.node(), from_copy(copy));
        assert!(report.left.is_empty(), "call {at}: {:?}", report.left);
        rig.assert_whole();
    }
}

/// Runs something else, once, while packs are read.
struct Beside<F: Fn() + Send + Sync>(AtomicU64, F);

impl<F: Fn() + Send + Sync> Progress for Beside<F> {
    fn add(&self, what: &'static str, _: u64) {
        if what == "lost chunks" && self.0.fetch_add(1, Ordering::SeqCst) == 0 {
            (self.1)();
        }
    }
}

#[test]
fn a_collection_beside_a_repair_takes_nothing_that_is_needed() {
    let rig = rig();
    let copy = rig.copy();
    for pack in rig.packs() {
        rig.storage.tamper(pack, |b| b[64 + 70] ^= 4);
    }
    let other = rig.node();
    let extra = back_up(&other, "tmp01", &image(9, 40 * CHUNK)).unwrap();
    let cause = Cause { by: "a test".into(), reason: "to make room".into() };
    other.remove_points(&[extra.id], &cause).unwrap();
    let beside = Beside(AtomicU64::new(0), || {
        // With a lost node it refuses, which is as good.
        let _ = other.collect(&CollectOptions::default(), &NoProgress);
    });
    let mut options = RepairOptions { sources: from_copy(copy), ..RepairOptions::default() };
    let report = rig.node().repair(&mut options, &beside).unwrap();
    assert!(report.left.is_empty(), "{:?}", report.left);
    rig.assert_whole();
    other.collect(&CollectOptions::default(), &NoProgress).unwrap();
    other.collect(&CollectOptions::default(), &NoProgress).unwrap();
    rig.assert_whole();
}

/// Within its means parity heals every kind of damage, whichever part of a pack it hits.
#[test]
fn parity_heals_without_any_other_source() {
    let seed = seed();
    let chance = SeededEntropy::new(seed);
    let packs = rig_with(true).packs();
    assert_eq!(rig_with(true).storage.list(Folder::Parity).unwrap().len(), packs.len());
    for round in 0..40 {
        let rig = rig_with(true);
        for (i, &pack) in packs.iter().enumerate() {
            let other = rig.storage.get(packs[(i + 1) % packs.len()], u64::MAX).unwrap();
            rig.storage.tamper(pack, |b| damage_blocks(b, &other, &chance));
        }
        let before = rig.objects();
        let report = repair(&rig.node(), Vec::new());
        assert!(report.left.is_empty(), "seed {seed}, round {round}: {:?}", report.left);
        assert!(report.wanted > 0, "seed {seed}, round {round}");
        assert!(report.healed.iter().any(|h| h.by == "parity"), "{report:?}");
        let after = rig.objects();
        assert!(before.iter().all(|(k, b)| after.get(k) == Some(b)));
        rig.assert_whole();
    }
}

/// At most four blocks, which is what the parity of a small pack can make up for.
fn damage_blocks(bytes: &mut Vec<u8>, other: &[u8], chance: &SeededEntropy) {
    let blocks = bytes.len().div_ceil(4096) as u64;
    for _ in 0..3 {
        let start = chance.below(blocks) as usize * 4096;
        let end = (start + 4096).min(bytes.len());
        match chance.below(3) {
            0 => bytes[start + chance.below((end - start) as u64) as usize] ^= 8,
            1 => bytes[start..end].fill(0),
            _ => {
                let from = &other[..(end - start).min(other.len())];
                bytes[start..start + from.len()].copy_from_slice(from);
            }
        }
    }
    if chance.below(3) == 0 {
        bytes.truncate(bytes.len() - 1 - chance.below(100) as usize);
    }
}

#[test]
fn beyond_its_means_parity_gives_nothing_and_what_is_left_is_said() {
    let rig = rig_with(true);
    for pack in rig.packs() {
        rig.storage.tamper(pack, |b| b.iter_mut().step_by(4096).for_each(|byte| *byte ^= 1));
    }
    let report = repair(&rig.node(), Vec::new());
    assert!(!report.left.is_empty());
    assert!(report.left.iter().all(|d| matches!(d.kind, DamageKind::Disk { .. })), "{report:?}");
    let repo = rig.node();
    let mut failed = 0;
    for (point, disk) in &rig.points {
        let reader = repo.image(&point.disks[0]).unwrap();
        for (i, expected) in disk.chunks(CHUNK).enumerate() {
            let mut buf = vec![0xee; expected.len()];
            match reader.read_at((i * CHUNK) as u64, &mut buf) {
                Ok(()) => assert!(buf == expected, "wrong bytes were served"),
                Err(e) => failed += usize::from(e.kind() == ErrorKind::Damaged),
            }
        }
    }
    assert!(failed > 0);
}

#[test]
fn damaged_parity_is_found_and_made_anew() {
    let rig = rig_with(true);
    let parity = rig.storage.list(Folder::Parity).unwrap();
    let whole = rig.objects();
    rig.storage.tamper(parity[0], |b| b[20] ^= 1);
    rig.storage.tamper(parity[1], |b| {
        let last = b.len() - 1;
        b[last] ^= 1;
    });
    let swapped = rig.storage.get(parity[3], u64::MAX).unwrap();
    rig.storage.tamper(parity[2], |b| *b = swapped);
    rig.storage.delete(parity[4]).unwrap();
    for report in [
        rig.node().check(&CheckOptions { read_data: true }, &NoProgress).unwrap().damage,
        rig.node().verify(&VerifyOptions::default(), &NoProgress).unwrap().damage,
    ] {
        let named: Vec<DamageKind> = report.into_iter().map(|d| d.kind).collect();
        let expected: Vec<DamageKind> =
            parity[..3].iter().map(|k| DamageKind::Object(k.path())).collect();
        assert!(expected.iter().all(|k| named.contains(k)) && named.len() == 3, "{named:?}");
    }
    let report = rig.node().verify(&VerifyOptions::default(), &NoProgress).unwrap();
    assert_eq!(report.without_parity, 1);
    let report = repair(&rig.node(), Vec::new());
    assert!(report.left.is_empty(), "{:?}", report.left);
    assert_eq!(report.parity_renewed, 3);
    let added = rig.node().add_parity(&NoProgress).unwrap();
    assert_eq!((added.added, added.left_out), (1, 0));
    for key in &parity {
        assert!(rig.storage.get(*key, u64::MAX).unwrap() == whole[key], "{key}");
    }
    rig.assert_whole();
}

#[test]
fn parity_can_be_added_later_but_never_of_damaged_bytes() {
    let rig = rig();
    let packs = rig.packs();
    rig.storage.tamper(packs[0], |b| b[100] ^= 1);
    let report = rig.node().add_parity(&NoProgress).unwrap();
    assert_eq!((report.added, report.left_out), (packs.len() as u64 - 1, 1));
    rig.storage.tamper(packs[0], |b| b[100] ^= 1);
    rig.node().add_parity(&NoProgress).unwrap();
    for &pack in &packs {
        rig.storage.tamper(pack, |b| b[100] ^= 1);
    }
    let report = repair(&rig.node(), Vec::new());
    assert!(report.left.is_empty(), "{:?}", report.left);
    rig.assert_whole();
}

#[test]
fn parity_goes_with_its_pack() {
    let rig = rig_with(true);
    let cause = Cause { by: "a test".into(), reason: "to make room".into() };
    let ids: Vec<_> = rig.points.iter().map(|(p, _)| p.id).collect();
    rig.node().remove_points(&ids, &cause).unwrap();
    rig.node().collect(&CollectOptions::default(), &NoProgress).unwrap();
    assert!(rig.packs().is_empty());
    assert!(rig.storage.list(Folder::Parity).unwrap().is_empty());
}

/// The disk of a running machine: shifted in places, changed in others, short, and with a bad
/// sector.
#[derive(Debug)]
struct Bytes(Vec<u8>);

impl ImageBytes for Bytes {
    fn size_bytes(&self) -> u64 {
        self.0.len() as u64
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> std::io::Result<()> {
        let bad = 7 * CHUNK as u64;
        if offset <= bad && bad < offset + buf.len() as u64 {
            return Err(std::io::Error::other("a bad sector"));
        }
        let start = offset as usize;
        buf.copy_from_slice(&self.0[start..start + buf.len()]);
        Ok(())
    }
}

#[test]
fn the_machines_disk_as_it_is_now_heals_what_it_still_has() {
    let rig = rig();
    for pack in rig.packs() {
        rig.storage.delete(pack).unwrap();
    }
    let image = |n: usize| -> Box<dyn ChunkSource> {
        let (point, disk) = &rig.points[n];
        Box::new(ImageSource::new(&point.machine, "disk0", Box::new(Bytes(disk.clone()))))
    };
    // The second point of web01 and that of db01; their trees are built anew from the data, but
    // for the leaf with the bad sector.
    let report = repair(&rig.node(), vec![image(1), image(2)]);
    let repo = rig.node();
    let lost = |id| -> u64 {
        let of = |d: &backstay_store::Damage| match &d.kind {
            DamageKind::Disk { point, len_bytes, .. } if *point == id => Some(*len_bytes),
            _ => None,
        };
        report.left.iter().filter_map(of).sum()
    };
    // No root can be built anew without every chunk below it.
    for (point, disk) in &rig.points {
        assert_eq!(lost(point.id), disk.len() as u64);
    }
    // With the trees of a copy the chunks are found, also where they have moved.
    drop(repo);
    let rig = self::rig();
    let data: Vec<ObjectKey> = data_packs(&rig);
    for pack in &data {
        rig.storage.delete(*pack).unwrap();
    }
    let mut shifted = rig.points[2].1.clone();
    shifted.rotate_right(CHUNK * 5);
    let (name, disks) = ("db01", [rig.points[1].1.clone(), shifted]);
    let sources: Vec<Box<dyn ChunkSource>> = vec![
        Box::new(ImageSource::new("web01", "disk0", Box::new(Bytes(disks[0].clone())))),
        Box::new(ImageSource::new(name, "disk0", Box::new(Bytes(disks[1].clone())))),
    ];
    let report = repair(&rig.node(), sources);
    assert!(report.wanted > 0 && report.healed.len() == 2, "{report:?}");
    let repo = rig.node();
    let have = |chunk: &[u8]| {
        disks.iter().any(|d| d.chunks(CHUNK).enumerate().any(|(i, c)| i != 7 && c == chunk))
    };
    let mut healed = 0;
    for (point, disk) in &rig.points {
        let reader = repo.image(&point.disks[0]).unwrap();
        for (i, expected) in disk.chunks(CHUNK).enumerate() {
            let mut buf = vec![0xee; expected.len()];
            let read = reader.read_at((i * CHUNK) as u64, &mut buf);
            if have(expected) || expected.iter().all(|b| *b == 0) {
                read.unwrap();
                assert!(buf == expected);
                healed += 1;
            } else {
                assert_eq!(read.unwrap_err().kind(), ErrorKind::Damaged, "chunk {i}");
            }
        }
    }
    assert!(healed > 150, "{healed}");
}

/// The packs that no tree needs: the larger ones.
fn data_packs(rig: &Rig) -> Vec<ObjectKey> {
    let kind = |k: &ObjectKey| rig.storage.get(*k, u64::MAX).unwrap()[12];
    rig.packs().into_iter().filter(|k| kind(k) == 0).collect()
}
