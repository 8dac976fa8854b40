//! A full disk: nobody needs to write in order to read, what wins space back can still be
//! written, and backups end by themselves and can go on when there is space again.

use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use backstay_store::testkit::{SeededEntropy, SimFs};
use backstay_store::{
    CheckOptions, ChunkIndex, ChunkSize, Encryption, Entropy, Error, ErrorKind, Folder,
    InitOptions, LocalStorage, Location, NoProgress, ObjectKey, OpenOptions, PackId, PointId,
    RecoveryPoint, Repository, Space, Storage, Vfs, VfsRead, VfsWrite, WriteScratch,
};
use parking_lot::Mutex;

use crate::support::{back_up, image, init, key, new_point, open, read, seed};

const ROOT: &str = "/repo";

fn pack(n: u8) -> ObjectKey {
    ObjectKey::Pack(PackId::from_bytes([n; 16]))
}

fn point(n: u8) -> ObjectKey {
    ObjectKey::Point(PointId::from_bytes([n; 16]))
}

fn storage_on(fs: Arc<dyn Vfs>) -> LocalStorage {
    LocalStorage::open(Path::new(ROOT), fs, "s").unwrap()
}

/// Makes a storage on a disk of so many bytes, with its reserve.
fn small_disk(bytes: u64) -> (SimFs, LocalStorage) {
    let fs = SimFs::new();
    fs.set_capacity(Some(bytes));
    let storage = LocalStorage::create(Path::new(ROOT), Arc::new(fs.clone()), "w").unwrap();
    storage.put(ObjectKey::Config, &[b"c"]).unwrap();
    storage.refill_reserve();
    assert_eq!(reserve(&fs), Some(bytes / 20), "a twentieth of a small disk");
    (fs, storage)
}

/// The length of the reserve, if it is there.
fn reserve(fs: &SimFs) -> Option<u64> {
    fs.open(&Path::new(ROOT).join("reserve")).ok().map(|f| f.size().unwrap())
}

/// Stores packs until there is no space.
fn fill_with_packs(storage: &dyn Storage, len: usize) -> u8 {
    for n in 0..=255 {
        match storage.put(pack(n), &[&vec![n; len]]) {
            Ok(()) => {}
            Err(e) => {
                assert_eq!(e.kind(), ErrorKind::NoSpace, "{e}");
                return n;
            }
        }
    }
    panic!("256 packs fit");
}

#[test]
fn a_full_disk_takes_records_but_no_packs_of_backups() {
    let (fs, storage) = small_disk(200_000);
    let packs = fill_with_packs(&storage, 5000);
    assert!(packs > 30, "{packs} packs");
    assert_eq!(reserve(&fs), Some(10_000), "packs do not touch it");
    // Records first take what is left, then the reserve.
    let mut records = 0;
    while storage.put(point(records), &[&[1; 700]]).is_ok() {
        records += 1;
    }
    assert!(records >= 12, "{records} records");
    assert_eq!(reserve(&fs), None);
    for n in 0..records {
        storage.delete(point(n)).unwrap();
    }
    // By now a pack would fit, but not beside the reserve's room; for those who collect it does.
    assert!(fs.space(Path::new(ROOT)).unwrap().free > 10_000);
    let e = storage.put(pack(250), &[&[1; 5000]]).unwrap_err();
    assert_eq!(e.kind(), ErrorKind::NoSpace, "{e}");
    storage.put_vital(pack(250), &[&[1; 5000]]).unwrap();
    // There is no room to make it again; that is nobody's failure.
    storage.refill_reserve();
    assert_eq!(reserve(&fs), None);
    for n in 0..packs {
        storage.delete(pack(n)).unwrap();
    }
    storage.put(pack(251), &[&[1; 5000]]).unwrap();
    storage.refill_reserve();
    assert_eq!(reserve(&fs), Some(10_000));
    storage.refill_reserve();
    assert_eq!(fs.list(&Path::new(ROOT).join("tmp")).unwrap().len(), 0, "no temporary file");
}

/// Another file system, with calls that are written down and may fail.
#[derive(Debug)]
struct Watched {
    inner: SimFs,
    created: Mutex<Vec<PathBuf>>,
    /// Whether calls that change something are refused; and how many were.
    read_only: bool,
    refused: AtomicU64,
    /// Removals that fail for want of space, as file systems that copy on write know them.
    full_removals: AtomicU64,
}

impl Watched {
    fn new(inner: &SimFs, read_only: bool) -> Arc<Self> {
        Arc::new(Self {
            inner: inner.clone(),
            created: Mutex::default(),
            read_only,
            refused: AtomicU64::new(0),
            full_removals: AtomicU64::new(0),
        })
    }

    fn may_write(&self) -> io::Result<()> {
        if !self.read_only {
            return Ok(());
        }
        self.refused.fetch_add(1, Ordering::Relaxed);
        Err(io::ErrorKind::StorageFull.into())
    }
}

impl Vfs for Watched {
    fn create_new(&self, path: &Path) -> io::Result<Box<dyn VfsWrite>> {
        self.may_write()?;
        self.created.lock().push(path.to_path_buf());
        self.inner.create_new(path)
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn VfsRead>> {
        self.inner.open(path)
    }

    fn rename_new(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.may_write()?;
        self.inner.rename_new(from, to)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        self.may_write()?;
        self.inner.sync_dir(path)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.may_write()?;
        let full = &self.full_removals;
        let left = full.try_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1));
        if left.is_ok() {
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.inner.remove(path)
    }

    fn remove_if_unowned(&self, path: &Path) -> io::Result<bool> {
        self.may_write()?;
        self.inner.remove_if_unowned(path)
    }

    fn create_dir(&self, path: &Path) -> io::Result<()> {
        self.may_write()?;
        self.inner.create_dir(path)
    }

    fn list(&self, path: &Path) -> io::Result<Vec<String>> {
        self.inner.list(path)
    }

    fn space(&self, path: &Path) -> io::Result<Space> {
        self.inner.space(path)
    }
}

/// After a failed write the file is given up (FORMAT.md, rule O6): the second try has another.
#[test]
fn the_second_try_has_a_file_of_its_own() {
    let (fs, storage) = small_disk(100_000);
    fill_with_packs(&storage, 5000);
    fill_with_packs(&storage_on(Arc::new(fs.clone())), 100_000);
    let watched = Watched::new(&fs, false);
    let storage = storage_on(watched.clone());
    storage.put(point(1), &[&vec![7; 4500]]).unwrap();
    let mut created = watched.created.lock().clone();
    assert_eq!(created.len(), 2, "{created:?}");
    created.dedup();
    assert_eq!(created.len(), 2, "{created:?}");
    assert_eq!(storage.get(point(1), 5000).unwrap(), vec![7; 4500]);
    assert_eq!(fs.list(&Path::new(ROOT).join("tmp")).unwrap().len(), 0);
}

#[test]
fn removing_works_where_removing_needs_space() {
    let (fs, storage) = small_disk(100_000);
    storage.put(point(1), &[b"p"]).unwrap();
    let watched = Watched::new(&fs, false);
    let storage = storage_on(watched.clone());
    watched.full_removals.store(1, Ordering::Relaxed);
    storage.delete(point(1)).unwrap();
    assert_eq!(reserve(&fs), None, "the reserve was used");
    assert_eq!(storage.size(point(1)).unwrap_err().kind(), ErrorKind::NotFound);
}

/// The power goes at every change while the reserve is made, given up and made again: what was
/// stored is there, and the reserve is whole or missing.
#[test]
fn a_power_cut_leaves_no_half_reserve() {
    let seed = seed();
    let work = |storage: &LocalStorage, stored: &mut Vec<ObjectKey>| -> Option<()> {
        storage.refill_reserve();
        let packs = (0..=255).take_while(|&n| {
            let fits = storage.put(pack(n), &[&vec![n; 3000]]).is_ok();
            stored.extend(fits.then(|| pack(n)));
            fits
        });
        let packs = packs.count() as u8;
        for n in 0..4 {
            storage.put(point(n), &[&[n; 700]]).ok()?;
            stored.push(point(n));
        }
        for n in 0..packs / 2 {
            stored.retain(|key| *key != pack(n));
            storage.delete(pack(n)).ok()?;
        }
        storage.refill_reserve();
        Some(())
    };
    let make = |bytes| {
        let fs = SimFs::new();
        fs.set_capacity(Some(bytes));
        let storage = LocalStorage::create(Path::new(ROOT), Arc::new(fs.clone()), "w").unwrap();
        storage.put(ObjectKey::Config, &[b"c"]).unwrap();
        (fs, storage)
    };
    let (fs, storage) = make(40_000);
    let before = fs.changes();
    work(&storage, &mut Vec::new()).expect("nothing is cut");
    assert_eq!(reserve(&fs), Some(2000), "given up, and made again");
    for at in before..=fs.changes() {
        let (fs, storage) = make(40_000);
        fs.cut_power_at(at);
        let mut stored = Vec::new();
        work(&storage, &mut stored);
        for state in 0..4 {
            let chance = SeededEntropy::new(seed ^ at ^ (state << 32));
            let after = fs.after_power_cut(&chance);
            let storage = storage_on(Arc::new(after.clone()));
            for key in &stored {
                assert!(storage.size(*key).unwrap() > 0, "cut at {at}: {key}");
            }
            let whole = reserve(&after).is_none_or(|len| len == 2000);
            assert!(whole, "cut at {at}: {:?}", reserve(&after));
            storage.tidy().unwrap();
            storage.refill_reserve();
            assert_eq!(after.list(&Path::new(ROOT).join("tmp")).unwrap().len(), 0, "cut at {at}");
        }
    }
}

/// All that must work on a full disk without writing anything: list, read, check.
fn all_reads_back(repo: &Repository, expected: &[(RecoveryPoint, &[u8])], what: &str) {
    let list = repo.points().unwrap();
    assert!(list.damaged.is_empty(), "{what}");
    for (point, disk) in expected {
        assert!(list.points.iter().any(|p| p.id == point.id), "{what}");
        assert!(read(repo, &point.disks[0]).unwrap() == *disk, "{what}");
    }
    let report = repo.check(&CheckOptions { read_data: true }, &NoProgress).unwrap();
    assert!(report.damage.is_empty(), "{what}: {:?}", report.damage);
    repo.stats().unwrap();
    repo.refresh().unwrap();
}

/// One position: the disk holds `capacity` bytes, and a second backup runs into its end, or not.
fn filled_at(capacity: u64, seed: u64) -> bool {
    let what = format!("a disk of {capacity} bytes");
    let entropy = Arc::new(SeededEntropy::new(seed));
    let fs = SimFs::new();
    fs.set_capacity(Some(capacity));
    let storage = LocalStorage::create(Path::new(ROOT), Arc::new(fs.clone()), "w").unwrap();
    init(&storage, &entropy).unwrap();
    let storage: Arc<dyn Storage> = Arc::new(storage);
    let repo = open(storage.clone(), &entropy).unwrap();
    let (first, second) = (image(1, 20 * 4096), image(9, 80 * 4096));
    let made = back_up(&repo, "web01", &first);
    let made = made.unwrap_or_else(|e| panic!("{what}: {e}, {} used", fs.used()));
    let mut kept = vec![(made, &*first)];
    assert_eq!(reserve(&fs), Some(capacity / 20), "{what}");
    let outcome = back_up(&repo, "web01", &second);
    let full = outcome.is_err();
    match outcome {
        Ok(point) => kept.push((point, &*second)),
        Err(e) => assert_eq!(e.kind(), ErrorKind::NoSpace, "{what}: {e}"),
    }
    // Readers on a disk that takes no write at all, and did not even try one.
    let watched = Watched::new(&fs, true);
    let read_only = Arc::new(storage_on(watched.clone()));
    all_reads_back(&open(read_only, &entropy).unwrap(), &kept, &what);
    assert_eq!(watched.refused.load(Ordering::Relaxed), 0, "{what}: a reader wrote");
    // Records of some size go where no pack does, and so does a removal.
    let record = point(200);
    storage.put(record, &[&[3; 1000]]).unwrap_or_else(|e| panic!("{what}: {e}"));
    storage.delete(record).unwrap();
    let (gone, _) = kept.remove(0);
    storage.delete(ObjectKey::Point(gone.id)).unwrap_or_else(|e| panic!("{what}: {e}"));
    // There is space again.
    fs.set_capacity(Some(capacity + (1 << 20)));
    let fresh = open(storage, &entropy).unwrap();
    kept.push((back_up(&fresh, "web01", &second).unwrap(), &*second));
    all_reads_back(&fresh, &kept, &what);
    assert!(reserve(&fs).is_some(), "{what}: the reserve is there again");
    full
}

#[test]
fn a_disk_filled_at_200_positions_of_a_backup() {
    const POSITIONS: u64 = 200;
    let seed = seed();
    // What the two backups take, on a disk without end.
    let entropy = Arc::new(SeededEntropy::new(seed));
    let fs = SimFs::new();
    let storage = LocalStorage::create(Path::new(ROOT), Arc::new(fs.clone()), "w").unwrap();
    init(&storage, &entropy).unwrap();
    let repo = open(Arc::new(storage), &entropy).unwrap();
    back_up(&repo, "web01", &image(1, 20 * 4096)).unwrap();
    let first = fs.used();
    back_up(&repo, "web01", &image(9, 80 * 4096)).unwrap();
    let both = fs.used();
    // With the reserve beside them, and the session's record, which is there only meanwhile: the
    // first just fits, and at the end both do.
    const SESSION: u64 = 2000;
    let (least, most) = ((first + SESSION) * 20 / 19 + 200, (both + SESSION) * 20 / 19 + 2000);
    let full: u64 = (0..POSITIONS)
        .map(|n| least + (most - least) * n / (POSITIONS - 1))
        .map(|capacity| u64::from(filled_at(capacity, seed)))
        .sum();
    println!("{full} of {POSITIONS} positions were full");
    assert!((POSITIONS * 9 / 10..POSITIONS).contains(&full), "{full} of {POSITIONS} were full");
}

/// A real file system that is small; unmounted also when the test fails.
struct Tmpfs(PathBuf);

impl Tmpfs {
    /// Nothing where this may not be done.
    fn mount(path: &Path, size: &str) -> Option<Self> {
        std::fs::create_dir(path).unwrap();
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &format!("size={size}"), "backstay-test"]).arg(path);
        let mounted = mount.output().is_ok_and(|output| output.status.success());
        mounted.then(|| Self(path.to_path_buf()))
    }

    fn remount(&self, how: &str) {
        let mut mount = Command::new("mount");
        assert!(mount.args(["-o", how]).arg(&self.0).status().unwrap().success());
    }

    /// Writes a file until nothing more fits.
    fn fill(&self, name: &str) {
        let path = self.0.join(name);
        let mut file = std::fs::File::create(&path).unwrap();
        for len in [1 << 20, 4096, 1] {
            while io::Write::write(&mut file, &vec![0xaa; len]).is_ok_and(|n| n > 0) {}
        }
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

const MIB: usize = 1 << 20;

/// A repository and its index directory together on a small disk.
struct SmallDisk {
    disk: Tmpfs,
    location: Location,
    options: OpenOptions,
}

impl SmallDisk {
    fn make(disk: Tmpfs) -> Self {
        let location = Location::from_path(&disk.0.join("repo"));
        let options = OpenOptions::new(disk.0.join("cache"));
        let init = InitOptions {
            chunk_size: ChunkSize::DEFAULT,
            encryption: Encryption::Aes256Gcm,
            time: jiff::Timestamp::now(),
            parity: false,
        };
        Repository::init(&location, &init, &key()).unwrap();
        Self { disk, location, options }
    }

    fn open(&self) -> Repository {
        Repository::open(&self.location, &key(), &self.options).unwrap()
    }

    fn storage(&self) -> LocalStorage {
        LocalStorage::open_real(self.location.directory().unwrap()).unwrap()
    }

    fn reserve(&self) -> Option<u64> {
        std::fs::metadata(self.location.directory().unwrap().join("reserve"))
            .ok()
            .map(|meta| meta.len())
    }

    fn back_up(&self, bytes: &[u8]) -> Result<RecoveryPoint, Error> {
        let session = self.open().begin(None)?;
        let writer = session.image("disk0", "image.raw", bytes.len() as u64);
        writer.write_chunks(ChunkIndex(0), bytes, &mut WriteScratch::new()?)?;
        let disk = writer.finish()?;
        session.commit(new_point("web01", None), vec![disk])
    }
}

fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0u8; len];
    SeededEntropy::new(seed).fill(&mut bytes);
    bytes
}

/// Takes a point and what it alone held away, as a collection would.
fn collect(storage: &dyn Storage, point: &RecoveryPoint, keep: &[ObjectKey]) {
    storage.delete(ObjectKey::Point(point.id)).unwrap();
    let mut packs = storage.list(Folder::Packs).unwrap();
    packs.retain(|key| !keep.contains(key));
    assert!(!packs.is_empty());
    packs.into_iter().for_each(|key| storage.delete(key).unwrap());
}

/// A disk that is full to the last byte, and the index directory with it.
#[test]
fn a_real_full_disk_is_read_checked_and_cleaned_up() {
    let dir = tempfile::tempdir().unwrap();
    let Some(disk) = Tmpfs::mount(&dir.path().join("small"), "32m") else {
        println!(
            "SKIPPED a_real_full_disk_is_read_checked_and_cleaned_up: no tmpfs can be mounted"
        );
        return;
    };
    let small = SmallDisk::make(disk);
    let (disk, storage) = (&small.disk, small.storage());
    let content = noise(1, 4 * MIB);
    let mut kept = vec![(small.back_up(&content).unwrap(), &*content)];
    let keep = storage.list(Folder::Packs).unwrap();
    let collected = small.back_up(&noise(3, MIB)).unwrap();
    assert_eq!(small.reserve(), Some((32 * MIB / 20) as u64));
    let e = small.back_up(&noise(2, 48 * MIB)).unwrap_err();
    assert_eq!(e.kind(), ErrorKind::NoSpace, "{e}");
    assert!(small.reserve().is_some(), "the packs of a backup left it alone");

    disk.fill("filler0");
    all_reads_back(&small.open(), &kept, "with the index of before");
    collect(&storage, &collected, &keep);
    disk.fill("filler1");
    // What the index must forget it cannot: it is left aside.
    all_reads_back(&small.open(), &kept, "with an index that knows packs that are gone");
    std::fs::remove_dir_all(disk.0.join("cache")).unwrap();
    disk.fill("filler2");
    all_reads_back(&small.open(), &kept, "without an index");
    disk.remount("remount,ro");
    all_reads_back(&small.open(), &kept, "where nothing can be written");
    disk.remount("remount,rw");

    // Removing works, and what records it may use the reserve.
    disk.fill("filler3");
    storage.put(point(1), &[&[1; 4096]]).unwrap();
    assert_eq!(small.reserve(), None);
    storage.delete(point(1)).unwrap();
    let e = storage.put(pack(1), &[&[1; 4096]]).unwrap_err();
    assert_eq!(e.kind(), ErrorKind::NoSpace, "{e}");
    let (gone, _) = kept.remove(0);
    storage.delete(ObjectKey::Point(gone.id)).unwrap();

    for n in 0..4 {
        std::fs::remove_file(disk.0.join(format!("filler{n}"))).unwrap();
    }
    kept.push((small.back_up(&content).unwrap(), &*content));
    assert!(small.reserve().is_some(), "a backup makes it again");
    all_reads_back(&small.open(), &kept, "with space again");
}
