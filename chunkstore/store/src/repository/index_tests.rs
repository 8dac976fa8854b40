//! Index objects that are wrong, lost, or merged, and what becomes of those who read them.

use std::sync::Arc;

use backstay_format::config::Encryption;
use backstay_format::index_object::PackTable;
use backstay_format::pack::PackKind;
use backstay_format::point::{Consistency, Origin, RecoveryPoint};
use backstay_format::{ChunkIndex as Index, ChunkSize, magic};

use super::consolidate::{Consolidated, consolidate};
use super::exchange::put_object;
use super::*;
use crate::check::DamageKind;
use crate::entropy::Entropy as _;
use crate::progress::NoProgress;
use crate::secret::Secret;
use crate::session::{NewPoint, WriteScratch};
use crate::storage::{FaultPlan, FaultStorage, MemoryStorage};
use crate::testkit::SeededEntropy;

const CHUNK: usize = 4096;

struct Rig {
    storage: Arc<MemoryStorage>,
    counted: Arc<FaultStorage>,
    entropy: Arc<SeededEntropy>,
    points: Vec<(RecoveryPoint, Vec<u8>)>,
}

fn key() -> Unlock {
    Unlock::KeyFile(Secret::new(vec![7; 64]))
}

fn noise(seed: u64, chunks: usize) -> Vec<u8> {
    let mut disk = vec![0; chunks * CHUNK];
    SeededEntropy::new(seed).fill(&mut disk);
    disk
}

impl Rig {
    fn new() -> Self {
        let storage = Arc::new(MemoryStorage::default());
        let entropy = Arc::new(SeededEntropy::new(1));
        let options = InitOptions {
            chunk_size: ChunkSize::new(CHUNK as u32).unwrap(),
            encryption: Encryption::Aes256Gcm,
            time: "2026-11-22T03:00:00Z".parse().unwrap(),
        };
        Repository::init_on(&*storage, &options, &key(), &*entropy).unwrap();
        let counted = Arc::new(FaultStorage::new(storage.clone(), FaultPlan::default()));
        Self { storage, counted, entropy, points: Vec::new() }
    }

    /// Some points, each with packs and an index object of its own.
    fn with_points(count: u64) -> Self {
        let mut rig = Self::new();
        let repo = rig.open();
        for n in 0..count {
            rig.back_up(&repo, n);
        }
        rig
    }

    fn open(&self) -> Repository {
        let location = Location::parse("/test").unwrap();
        let options = OpenOptions { cache_bytes: 1 << 20, ..OpenOptions::new("/nonexistent") };
        let (storage, entropy) = (self.counted.clone(), self.entropy.clone());
        Repository::open_on(storage, location, &key(), &options, IndexChoice::Memory, entropy)
            .unwrap()
    }

    fn back_up(&mut self, repo: &Repository, n: u64) {
        let disk = noise(n, 20);
        let point = store(repo, &disk);
        self.points.push((point, disk));
    }

    fn objects(&self) -> Vec<ObjectKey> {
        self.storage.list(Folder::Index).unwrap()
    }

    /// How many points read whole; what does not is an error and never wrong bytes.
    fn whole(&self, repo: &Repository) -> usize {
        let whole = self.points.iter().filter(|(point, disk)| {
            let mut out = vec![0; disk.len()];
            let read = repo.image(&point.disks[0]).and_then(|i| i.read_at(0, &mut out));
            match read {
                Ok(()) => assert!(out == *disk, "wrong bytes were served"),
                Err(ref e) => assert_eq!(e.kind(), ErrorKind::Damaged, "{}", e.whole_story()),
            }
            read.is_ok()
        });
        whole.count()
    }

    /// Storage calls of reading every point with an empty index.
    fn calls_of_reading(&self) -> u64 {
        let repo = self.open();
        repo.refresh().unwrap();
        let before = self.counted.calls();
        drop(repo);
        let repo = self.open();
        repo.refresh().unwrap();
        self.counted.calls() - before
    }
}

fn store(repo: &Repository, disk: &[u8]) -> RecoveryPoint {
    let session = repo.begin(None).unwrap();
    let writer = session.image("disk0", "image.raw", disk.len() as u64);
    writer.write_chunks(Index(0), disk, &mut WriteScratch::new().unwrap()).unwrap();
    let record = writer.finish().unwrap();
    let new = NewPoint {
        machine: "web01".into(),
        time: "2026-11-22T03:00:00Z".parse().unwrap(),
        consistency: Consistency::Offline,
        origin: Origin { host: "test".into(), tool: "test".into() },
        note: None,
        parent: None,
        read_bytes: 0,
        hole_bytes: 0,
        copied_from: None,
    };
    session.commit(new, vec![record]).unwrap()
}

#[test]
fn whoever_comes_new_reads_objects_and_no_footer() {
    let rig = Rig::with_points(10);
    let (objects, packs) = (rig.objects().len() as u64, 20);
    assert_eq!(rig.storage.list(Folder::Packs).unwrap().len(), packs);
    assert_eq!(objects, 10, "one object a session");
    // Opening, two listings, and two calls an object.
    let with = rig.calls_of_reading();
    for object in rig.objects() {
        rig.storage.delete(object).unwrap();
    }
    let without = rig.calls_of_reading();
    assert!(with + 2 * packs as u64 <= without, "{with} calls with objects, {without} without");
    assert_eq!(rig.whole(&rig.open()), 10, "footers serve as well");
}

#[test]
fn damaged_cut_swapped_and_forged_objects_cost_footers_only() {
    let chance = SeededEntropy::new(3);
    let other = Rig::with_points(1);
    for round in 0..40 {
        let rig = Rig::with_points(3);
        let objects = rig.objects();
        let object = objects[chance.below(3) as usize];
        let forged = other.storage.get(other.objects()[0], u64::MAX).unwrap();
        let swapped = rig.storage.get(objects[chance.below(3) as usize], u64::MAX).unwrap();
        rig.storage.tamper(object, |bytes| match round % 5 {
            0 => bytes.truncate(chance.below(bytes.len() as u64) as usize),
            1 => *bytes = forged,
            2 => bytes.extend([0; 100]),
            3 => *bytes = swapped,
            _ => {
                let bit = chance.below(bytes.len() as u64 * 8) as usize;
                bytes[bit / 8] ^= 1 << (bit % 8);
            }
        });
        let repo = rig.open();
        assert_eq!(rig.whole(&repo), 3, "round {round}");
        let again = store(&repo, &rig.points[0].1);
        assert_eq!(again.stats.new_chunks, 0, "round {round}: everything is recognised");
    }
}

/// An object sealed with the right key that says the wrong thing, as a fault of ours would make it.
fn wrong_object(rig: &Rig, repo: &Repository, change: impl Fn(&mut PackTable)) {
    let inner = &repo.inner;
    for object in rig.objects() {
        let ObjectKey::Index(id) = object else { panic!("{object}") };
        let mut payload = Vec::new();
        inner
            .each_table(id, &mut |mut table| {
                change(&mut table);
                table.encode(&mut payload);
                Ok(())
            })
            .unwrap();
        put_object(inner, PackKind::Data, 1, payload).unwrap();
        rig.storage.delete(object).unwrap();
    }
}

#[test]
fn a_wrong_object_never_means_wrong_bytes_and_the_check_puts_the_index_right() {
    type Change = fn(&mut PackTable);
    let changes: [(&str, Change); 4] = [
        ("ids in each other's place", |t| {
            let (first, last) = (t.entries[0].id, t.entries.len() - 1);
            t.entries[0].id = t.entries[last].id;
            t.entries[last].id = first;
        }),
        ("a chunk left out", |t| {
            t.entries.pop();
        }),
        ("another offset", |t| t.entries[0].offset += 1),
        ("another length", |t| {
            t.entries[0].raw_len -= 1;
            t.entries[0].stored_len -= 1;
        }),
    ];
    for (name, change) in changes {
        let rig = Rig::with_points(2);
        let repo = rig.open();
        repo.refresh().unwrap();
        wrong_object(&rig, &repo, |table| {
            if table.kind == PackKind::Data {
                change(table);
            }
        });
        let repo = rig.open();
        assert_eq!(rig.whole(&repo), 0, "{name}");
        let report = repo.check(&CheckOptions::default(), &NoProgress).unwrap();
        assert_eq!(report.index_corrected, 2, "{name}");
        let wrong = report.damage.iter().filter(|d| matches!(d.kind, DamageKind::Index(_)));
        assert_eq!(wrong.count(), 2, "{name}: {:?}", report.damage);
        assert_eq!(report.damage.len(), 2, "{name}: no data is lost");
        assert_eq!(rig.whole(&repo), 2, "{name}: put right");
        let report = repo.check(&CheckOptions::default(), &NoProgress).unwrap();
        assert_eq!(report.index_corrected, 0, "{name}");
    }
}

#[test]
fn packs_that_are_not_listed_count_for_nothing() {
    let rig = Rig::with_points(2);
    let before = rig.storage.list(Folder::Packs).unwrap();
    for pack in before {
        rig.storage.delete(pack).unwrap();
    }
    let repo = rig.open();
    assert_eq!(rig.whole(&repo), 0);
    let again = store(&repo, &rig.points[0].1);
    assert_eq!(again.stats.new_chunks, 20 + 1, "chunks and a leaf are stored again");
    assert_eq!(rig.whole(&rig.open()), 1);
}

#[test]
fn objects_are_merged_and_nothing_is_lost_with_them() {
    let mut rig = Rig::with_points(12);
    let repo = rig.open();
    repo.refresh().unwrap();
    let gone = rig.points.remove(0).0;
    // A collection took the packs of one point.
    for (id, info) in repo.inner.index().unwrap().packs() {
        if info.session == gone.id {
            rig.storage.delete(ObjectKey::Pack(id)).unwrap();
        }
    }
    // A session that died has left packs in no object.
    let lost = rig.objects()[5];
    rig.storage.delete(lost).unwrap();
    let done = consolidate(&repo.inner).unwrap();
    assert_eq!(done, Consolidated { written: 2, deleted: 11, packs_added: 2 });
    assert_eq!(rig.objects().len(), 2, "one of trees, one of data");
    assert_eq!(rig.whole(&rig.open()), 11);
    let mut tables = 0;
    for object in rig.objects() {
        let ObjectKey::Index(id) = object else { panic!("{object}") };
        let mut count = |_| {
            tables += 1;
            Ok(())
        };
        repo.inner.each_table(id, &mut count).unwrap();
    }
    assert_eq!(tables, 22, "each pack once, and none that is gone");
    // Nothing to do any more: the two are of two sorts.
    let done = consolidate(&repo.inner).unwrap();
    assert_eq!((done.written, done.deleted, done.packs_added), (0, 0, 0));
}

#[test]
fn merging_at_the_same_time_and_dying_at_any_call_is_harmless() {
    let rig = Rig::with_points(6);
    std::thread::scope(|s| {
        for _ in 0..3 {
            let repo = rig.open();
            s.spawn(move || consolidate(&repo.inner).unwrap());
        }
        let repo = rig.open();
        for _ in 0..5 {
            assert_eq!(rig.whole(&repo), 6);
            assert_eq!(rig.whole(&rig.open()), 6);
        }
    });
    assert_eq!(rig.whole(&rig.open()), 6);
    let mut at = 0;
    loop {
        let rig = Rig::with_points(4);
        let repo = rig.open();
        repo.refresh().unwrap();
        rig.counted.set_plan(FaultPlan { fail_at: Some(at), sticky: true, ..FaultPlan::default() });
        let done = consolidate(&repo.inner);
        rig.counted.set_plan(FaultPlan::default());
        assert_eq!(rig.whole(&rig.open()), 4, "killed at call {at}");
        consolidate(&rig.open().inner).unwrap();
        assert!(rig.objects().len() <= 2, "killed at call {at}: {} left", rig.objects().len());
        assert_eq!(rig.whole(&rig.open()), 4);
        if done.is_ok() {
            break;
        }
        at += 1;
    }
    assert!(at > 10, "{at} calls");
}

#[test]
fn an_object_that_cannot_be_written_fails_no_session() {
    let mut rig = Rig::new();
    let repo = rig.open();
    repo.refresh().unwrap();
    let refused = Arc::new(Refusing(rig.storage.clone()));
    let location = Location::parse("/test").unwrap();
    let options = OpenOptions { background: false, ..OpenOptions::new("/nonexistent") };
    let entropy = rig.entropy.clone();
    let choice = IndexChoice::Memory;
    let repo = Repository::open_on(refused, location, &key(), &options, choice, entropy).unwrap();
    rig.back_up(&repo, 1);
    assert!(rig.objects().is_empty());
    assert_eq!(rig.whole(&rig.open()), 1);
}

/// Takes no index objects.
#[derive(Debug)]
struct Refusing(Arc<MemoryStorage>);

impl Storage for Refusing {
    fn put(&self, key: ObjectKey, parts: &[&[u8]]) -> Result<()> {
        if key.folder() == Some(Folder::Index) {
            return Err(Error::new(ErrorKind::Denied, "no index objects here"));
        }
        self.0.put(key, parts)
    }

    fn get(&self, key: ObjectKey, max: u64) -> Result<Vec<u8>> {
        self.0.get(key, max)
    }

    fn read_at(&self, key: ObjectKey, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.0.read_at(key, offset, buf)
    }

    fn size(&self, key: ObjectKey) -> Result<u64> {
        self.0.size(key)
    }

    fn list(&self, folder: Folder) -> Result<Vec<ObjectKey>> {
        self.0.list(folder)
    }

    fn delete(&self, key: ObjectKey) -> Result<()> {
        self.0.delete(key)
    }
}

#[test]
fn what_is_excluded_is_not_adopted_and_the_next_backup_heals_it() {
    use super::adopt::Excluded;
    let rig = Rig::with_points(2);
    let first = rig.open();
    first.refresh().unwrap();
    let packs = first.inner.index().unwrap().packs();
    let data = packs.iter().find(|(_, i)| i.kind == PackKind::Data).unwrap().0;
    let ids: Vec<_> = rig.points.iter().flat_map(|(_, disk)| disk.chunks(CHUNK)).collect();
    let id = |raw| first.inner.keys().chunk_id(PackKind::Data, raw);
    let bad: Vec<_> = ids.iter().map(|raw| id(raw)).step_by(7).collect();
    for excluded in [Excluded::Whole, Excluded::Chunks(bad.iter().copied().collect())] {
        let whole = excluded == Excluded::Whole;
        let repo = rig.open();
        repo.inner.exclude([(data, excluded)].into());
        repo.refresh().unwrap();
        let index = repo.inner.index().unwrap();
        assert!(index.has_pack(&data), "it is known, and not read again");
        let of_pack = |id| first.inner.index().unwrap().copies(id).unwrap()[0];
        let in_pack = ids.iter().map(|raw| id(raw)).filter(|id| of_pack(*id).pack == data);
        for id in in_pack {
            let copies = index.copies(id).unwrap();
            let shut_out = whole || bad.contains(&id);
            assert_eq!(copies.first().copied(), (!shut_out).then(|| of_pack(id)));
        }
        assert_eq!(rig.whole(&repo), 1);
        let report = repo.check(&CheckOptions::default(), &NoProgress).unwrap();
        assert_eq!(report.index_corrected, 0, "what is excluded is no mistake");
    }
    let repo = rig.open();
    repo.inner.exclude([(data, Excluded::Whole)].into());
    for (_, disk) in &rig.points {
        store(&repo, disk);
    }
    assert_eq!(rig.whole(&repo), 2, "stored again");
}

#[test]
fn magics_of_objects_are_bound() {
    let rig = Rig::with_points(1);
    let object = rig.objects()[0];
    let bytes = rig.storage.get(object, u64::MAX).unwrap();
    assert_eq!(bytes[..8], magic::INDEX);
}
