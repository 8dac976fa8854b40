use super::*;
use crate::storage::{FaultPlan, FaultStorage, MemoryStorage};

const LEN: usize = 3 * (1 << 20) + 12_345;

struct Rig {
    memory: MemoryStorage,
    counted: Arc<FaultStorage>,
    dir: tempfile::TempDir,
    pack: PackId,
    bytes: Vec<u8>,
}

fn rig() -> Rig {
    let memory = MemoryStorage::default();
    let pack = PackId::from_bytes([7; 16]);
    let bytes: Vec<u8> = (0..LEN as u32).map(|i| (i * 31 / 7) as u8).collect();
    memory.put(ObjectKey::Pack(pack), &[&bytes]).unwrap();
    let counted = Arc::new(FaultStorage::new(Arc::new(memory.clone()), FaultPlan::default()));
    Rig { memory, counted, dir: tempfile::tempdir().unwrap(), pack, bytes }
}

impl Rig {
    fn cache(&self, max: u64) -> DiskCache {
        DiskCache::new(self.counted.clone(), self.dir.path().join("cache"), max)
    }

    fn read(&self, cache: &DiskCache, offset: u64, len: usize, keep: Keep) -> Result<Vec<u8>> {
        let mut buf = vec![0xee; len];
        let key = ObjectKey::Pack(self.pack);
        cache.read_many(&mut [RangeRead { key, offset, buf: &mut buf, keep }])?;
        Ok(buf)
    }

    fn check(&self, cache: &DiskCache, offset: usize, len: usize, keep: Keep) {
        let got = self.read(cache, offset as u64, len, keep).unwrap();
        assert!(got == self.bytes[offset..offset + len], "{offset}+{len}");
    }

    fn files(&self) -> Vec<PathBuf> {
        let mut files = Vec::new();
        for folder in fs::read_dir(self.dir.path().join("cache")).into_iter().flatten().flatten() {
            files.extend(fs::read_dir(folder.path()).unwrap().map(|f| f.unwrap().path()));
        }
        files
    }

    fn bytes_on_disk(&self) -> u64 {
        self.files().iter().map(|f| f.metadata().unwrap().len()).sum()
    }
}

#[test]
fn what_was_read_is_not_asked_for_again() {
    let rig = rig();
    for keep in [Keep::Data, Keep::Tree] {
        let cache = rig.cache(1 << 30);
        for (offset, len) in [(0, 10), (262_140, 8), (1_000_000, 1_500_000), (LEN - 5, 5)] {
            rig.check(&cache, offset, len, keep);
        }
        let calls = rig.counted.calls();
        // Another process, later.
        let cache = rig.cache(1 << 30);
        for (offset, len) in [(0, 10), (262_140, 8), (1_200_000, 100_000), (LEN - 5000, 5000)] {
            rig.check(&cache, offset, len, keep);
        }
        assert_eq!(rig.counted.calls(), calls);
    }
    let cache = rig.cache(1 << 30);
    let calls = rig.counted.calls();
    rig.check(&cache, 0, 10, Keep::No);
    assert!(rig.counted.calls() > calls, "what is read once goes past the cache");
}

#[test]
fn reading_beyond_the_end_is_damage_also_from_the_cache() {
    let rig = rig();
    let cache = rig.cache(1 << 30);
    for _ in 0..2 {
        for (offset, len) in [(LEN as u64 - 5, 6), (LEN as u64, 1), (u64::MAX, 1), (1 << 40, 1)] {
            let e = rig.read(&cache, offset, len, Keep::Data).unwrap_err();
            assert_eq!(e.kind(), ErrorKind::Damaged, "{offset}+{len}: {e}");
            rig.check(&cache, LEN - 5, 5, Keep::Data);
        }
    }
}

#[test]
fn torn_and_foreign_files_are_never_served() {
    let rig = rig();
    let cache = rig.cache(1 << 30);
    rig.check(&cache, 0, LEN, Keep::Data);
    let files = rig.files();
    assert_eq!(files.len(), LEN.div_ceil(DATA_BLOCK as usize));
    for (n, file) in files.iter().enumerate() {
        let bytes = fs::read(file).unwrap();
        let changed = match n % 5 {
            0 => bytes[..bytes.len() / 2].to_vec(),
            1 => Vec::new(),
            2 => vec![0; bytes.len()],
            3 => fs::read(&files[(n + 1) % files.len()]).unwrap_or_default(),
            _ => {
                let mut changed = bytes;
                changed[HEAD + 100] ^= 1;
                changed
            }
        };
        fs::write(file, changed).unwrap();
    }
    let calls = rig.counted.calls();
    rig.check(&cache, 0, LEN, Keep::Data);
    assert!(rig.counted.calls() > calls);
    rig.check(&cache, 0, LEN, Keep::Data);
}

#[test]
fn the_directory_stays_within_its_bound_and_keeps_what_is_used() {
    let rig = rig();
    let max = 8 << 20;
    let cache = rig.cache(max);
    rig.check(&cache, 0, 10, Keep::Data);
    let first = rig.files().remove(0);
    for n in 0..60u8 {
        let pack = PackId::from_bytes([n + 100; 16]);
        rig.memory.put(ObjectKey::Pack(pack), &[&vec![n; 600_000]]).unwrap();
        let mut buf = [0; 1];
        let reads = [0, 300_000, 599_000];
        for offset in reads {
            let (key, keep) = (ObjectKey::Pack(pack), Keep::Data);
            cache.read_many(&mut [RangeRead { key, offset, buf: &mut buf, keep }]).unwrap();
            assert_eq!(buf, [n]);
        }
        // Used again and again.
        let soon = SystemTime::now() + Duration::from_secs(5);
        File::options().write(true).open(&first).unwrap().set_modified(soon).unwrap();
        let slack = max / 16 + (1 << 20);
        assert!(rig.bytes_on_disk() <= max + slack, "{}", rig.bytes_on_disk());
    }
    assert!(rig.bytes_on_disk() > max / 2);
    assert!(first.exists());
}

#[test]
fn without_a_place_everything_works() {
    let rig = rig();
    fs::write(rig.dir.path().join("cache"), "a file is in the way").unwrap();
    let cache = rig.cache(1 << 30);
    for _ in 0..3 {
        rig.check(&cache, 500_000, 1_000_000, Keep::Data);
    }
}

#[test]
fn many_threads_share_it() {
    let rig = rig();
    let cache = rig.cache(2 << 20);
    std::thread::scope(|scope| {
        for t in 0..4usize {
            let (rig, cache) = (&rig, &cache);
            scope.spawn(move || {
                for n in 0..60usize {
                    let offset = (n * 7919 * 131 + t * 65_537) % (LEN - 70_000);
                    rig.check(cache, offset, 70_000, Keep::Data);
                }
            });
        }
    });
}
