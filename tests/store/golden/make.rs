//! Makes the golden repositories, the same at every run: chance and the time from a seed, one
//! thread, storage in memory.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use backstay_store::testkit::{SeededEntropy, layout};
use backstay_store::{
    Cause, CheckOptions, ChunkIndex, ChunkSize, CollectOptions, CollectReport, Consistency,
    CopiedFrom, Encryption, Entropy, Error, ErrorKind, Folder, IndexChoice, InitOptions, Location,
    MemoryStorage, NewPoint, NoProgress, ObjectKey, OpenOptions, Origin, Owner, PointId,
    RecoveryKey, RecoveryPoint, RepoId, Repository, Secret, Storage, Unlock, VerifyOptions,
    WriteScratch, WriteSession,
};
use jiff::{SignedDuration, Timestamp};
use parking_lot::Mutex;

use super::{Files, seen};

const PASSPHRASE: &[u8] = "größere Pferde, korrekt geheftet".as_bytes();

/// Every repository of a set, by name.
pub(super) fn all() -> BTreeMap<String, Files> {
    let made = [
        ("clear-64k", clear()),
        ("long-life-4k", long_life()),
        ("sealed-4m", large()),
        ("watched-4k", watched()),
    ];
    made.map(|(name, files)| (name.to_owned(), files)).into()
}

/// Files beside the objects, which are none.
pub(super) fn beside() -> Files {
    let files = [
        ("README.txt", &b"Backups of the second floor. Do not delete!\n"[..]),
        ("packs/0/.nfs000000000a3f", b"left by a file server"),
        ("points/notes.txt", b"no point"),
        ("gc/1.plan", b"no generation is spelt so"),
    ];
    files.map(|(name, bytes)| (name.to_owned(), bytes.to_vec())).into()
}

/// Chance from a seed, and a clock that goes on by a second whenever it is asked.
#[derive(Debug)]
struct Fate {
    random: SeededEntropy,
    seconds: AtomicI64,
}

impl Entropy for Fate {
    fn fill(&self, buf: &mut [u8]) {
        self.random.fill(buf);
    }

    fn now(&self) -> Timestamp {
        let seconds = self.seconds.fetch_add(1, Ordering::Relaxed);
        Timestamp::from_second(1_795_316_400 + seconds).unwrap()
    }
}

/// Objects in memory, some of which cannot be deleted.
#[derive(Debug, Default)]
struct Objects {
    inner: MemoryStorage,
    locked: Mutex<Vec<ObjectKey>>,
}

impl Storage for Objects {
    fn put(&self, key: ObjectKey, parts: &[&[u8]]) -> Result<(), Error> {
        self.inner.put(key, parts)
    }

    fn get(&self, key: ObjectKey, max: u64) -> Result<Vec<u8>, Error> {
        self.inner.get(key, max)
    }

    fn read_at(&self, key: ObjectKey, offset: u64, buf: &mut [u8]) -> Result<(), Error> {
        self.inner.read_at(key, offset, buf)
    }

    fn size(&self, key: ObjectKey) -> Result<u64, Error> {
        self.inner.size(key)
    }

    fn list(&self, folder: Folder) -> Result<Vec<ObjectKey>, Error> {
        self.inner.list(folder)
    }

    fn delete(&self, key: ObjectKey) -> Result<(), Error> {
        if self.locked.lock().contains(&key) {
            return Err(Error::new(ErrorKind::Locked, "under a retention lock"));
        }
        self.inner.delete(key)
    }
}

/// A repository that is being made.
struct World {
    storage: Arc<Objects>,
    fate: Arc<Fate>,
    chunk: usize,
    secrets: Files,
    key: Unlock,
}

impl World {
    fn new(seed: u64, chunk: usize, encryption: Encryption, parity: bool) -> Self {
        let fate = Fate { random: SeededEntropy::new(seed), seconds: AtomicI64::new(0) };
        let key_file: Vec<u8> = (0..64).map(|n| n * 3).collect();
        let recovery = RecoveryKey::generate(&fate);
        let sealed = encryption == Encryption::Aes256Gcm;
        let mut secrets = Files::new();
        if sealed {
            secrets.insert("key-file".into(), key_file.clone());
            let text = format!("{}\n", recovery.to_text().as_str());
            secrets.insert("recovery-key".into(), text.into_bytes());
        } else {
            secrets.insert("none".into(), Vec::new());
        }
        let key = if sealed { Unlock::KeyFile(Secret::new(key_file)) } else { Unlock::None };
        let storage = Arc::new(Objects::default());
        let options = InitOptions {
            chunk_size: ChunkSize::new(chunk as u32).unwrap(),
            encryption,
            time: fate.now(),
            parity,
        };
        let recovery = sealed.then_some(&recovery);
        Repository::init_on_with_recovery(&*storage, &options, &key, recovery, &fate).unwrap();
        Self { storage, fate: Arc::new(fate), chunk, secrets, key }
    }

    fn node(&self) -> Repository {
        let owner = Owner {
            host: "golden".into(),
            boot: "a machine of long ago/a boot of long ago".into(),
            pid: 4711,
            namespace: "pid:[1]".into(),
            started: 12_345,
        };
        let options = OpenOptions {
            cache_bytes: 1 << 24,
            fetch_threads: 0,
            background: false,
            owner: Some(owner),
            ..OpenOptions::new("/nonexistent")
        };
        let location = Location::parse("/golden").unwrap();
        let (storage, fate) = (self.storage.clone(), self.fate.clone());
        Repository::open_on(storage, location, &self.key, &options, IndexChoice::Memory, fate)
            .unwrap()
    }

    /// A disk with a chunk for each letter: `n` noise, `t` text, `m` text with a little noise, `z`
    /// zeros; and some noise at its end that fills no chunk.
    fn disk(&self, seed: u64, letters: &str, tail: usize) -> Vec<u8> {
        let random = SeededEntropy::new(seed);
        let noise = |out: &mut Vec<u8>, len: usize| {
            let start = out.len();
            out.resize(start + len, 0);
            random.fill(&mut out[start..]);
        };
        let mut out = Vec::new();
        for (n, letter) in letters.chars().enumerate() {
            let end = out.len() + self.chunk;
            match letter {
                'n' => noise(&mut out, self.chunk),
                'm' => noise(&mut out, 1024),
                _ => {}
            }
            if letter != 'z' {
                let line = format!("line {n} of log {seed}\n");
                out.extend(line.bytes().cycle().take(end - out.len()));
            }
            out.resize(end, 0);
        }
        noise(&mut out, tail);
        out
    }

    fn new_point(&self, machine: &str) -> NewPoint {
        NewPoint {
            machine: machine.into(),
            time: self.fate.now(),
            consistency: Consistency::Offline,
            origin: Origin { host: "golden".into(), tool: "golden test".into() },
            note: None,
            parent: None,
            read_bytes: 1 << 20,
            hole_bytes: 1 << 16,
            copied_from: None,
        }
    }

    fn packs(&self) -> Vec<ObjectKey> {
        self.storage.list(Folder::Packs).unwrap()
    }

    /// The folder of the repository as it stands, sessions and all.
    fn files(&self) -> Files {
        let mut files: Files =
            beside().into_iter().map(|(name, bytes)| (format!("repo/{name}"), bytes)).collect();
        let of_folder = |folder: &Folder| self.storage.list(*folder).unwrap();
        let keys = Folder::ALL.iter().flat_map(of_folder).chain([ObjectKey::Config]);
        for key in keys {
            let bytes = self.storage.get(key, u64::MAX).unwrap();
            files.insert(format!("repo/{}", key.path()), bytes);
        }
        for (name, bytes) in &self.secrets {
            files.insert(format!("secrets/{name}"), bytes.clone());
        }
        files.insert("seen.txt".into(), seen::describe(&self.node()).into_bytes());
        files
    }
}

/// Writes disks, named `disk0` and so on, and gives their records.
fn write(session: &WriteSession, disks: &[&[u8]]) -> Vec<backstay_store::DiskRecord> {
    let mut scratch = WriteScratch::new().unwrap();
    let one = |(n, bytes): (usize, &&[u8])| {
        let source = format!("/images/{n}.raw");
        let writer = session.image(&format!("disk{n}"), &source, bytes.len() as u64);
        writer.write_chunks(ChunkIndex(0), bytes, &mut scratch).unwrap();
        writer.finish().unwrap()
    };
    disks.iter().enumerate().map(one).collect()
}

fn back_up(
    repo: &Repository,
    base: Option<&RecoveryPoint>,
    new: NewPoint,
    disks: &[&[u8]],
) -> RecoveryPoint {
    let session = repo.begin(base).unwrap();
    let disks = write(&session, disks);
    session.commit(NewPoint { parent: base.map(|point| point.id), ..new }, disks).unwrap()
}

fn cause(reason: &str) -> Cause {
    Cause { by: "golden".into(), reason: reason.into() }
}

fn collect(repo: &Repository) -> CollectReport {
    let options = CollectOptions {
        stale_after: SignedDuration::MAX,
        by: "golden".into(),
        ..CollectOptions::default()
    };
    repo.collect(&options, &NoProgress).unwrap()
}

/// 64 KiB, in the clear: one machine, two points.
fn clear() -> Files {
    let world = World::new(64, 65_536, Encryption::None, false);
    let repo = world.node();
    let disk = world.disk(1, "tzznttzm", 700);
    let first = back_up(&repo, None, world.new_point("web01"), &[&disk]);
    let mut later = disk.clone();
    later[5 * world.chunk..][..4].copy_from_slice(b"note");
    let new = NewPoint { note: Some("after the change".into()), ..world.new_point("web01") };
    let second = back_up(&repo, Some(&first), new, &[&later]);
    assert!((1..=2).contains(&second.stats.new_chunks), "{:?}", second.stats);
    world.files()
}

/// 4 MiB, sealed: chunks that shrink much, and a short one that does not.
fn large() -> Files {
    let world = World::new(4096, 4 << 20, Encryption::Aes256Gcm, false);
    let repo = world.node();
    let (disk, small) = (world.disk(1, "mzt", 20_000), world.disk(2, "", 513));
    back_up(&repo, None, world.new_point("db01"), &[&disk, &small]);
    world.files()
}

/// 4 KiB, sealed, with parity: packs that were verified, and copies in quarantine.
fn watched() -> Files {
    let world = World::new(5, 4096, Encryption::Aes256Gcm, true);
    let repo = world.node();
    let before = world.packs();
    let disk = world.disk(1, "tnmnz", 30);
    back_up(&repo, None, world.new_point("mail01"), &[&disk]);
    twins(&world);
    let verified = VerifyOptions { threads: 1, ..VerifyOptions::default() };
    let report = repo.verify(&verified, &NoProgress).unwrap();
    assert!(report.packs == 6 && report.damage.is_empty() && before.is_empty(), "{report:?}");
    // Of chunks that are in two packs: as if one of their copies had been found bad.
    repo.check(&CheckOptions::default(), &NoProgress).unwrap();
    let copies = layout::doubles(&repo).unwrap();
    let pack = copies.keys().next().copied().unwrap();
    layout::quarantine(&repo, pack, Some(copies[&pack].clone())).unwrap();
    for folder in [Folder::Parity, Folder::Verified, Folder::Quarantine] {
        assert!(!world.storage.list(folder).unwrap().is_empty(), "{folder:?}");
    }
    world.files()
}

/// 4 KiB, sealed: everything that happens to a repository in time.
fn long_life() -> Files {
    let mut world = World::new(4, 4096, Encryption::Aes256Gcm, false);
    let repo = world.node();
    let passphrase = Unlock::Passphrase(Secret::new(PASSPHRASE.to_vec()));
    repo.add_key(&passphrase, "for people", world.fate.now()).unwrap();
    world.secrets.insert("passphrase".into(), PASSPHRASE.to_vec());
    let web = web_server(&world, &repo);
    let twins = twins(&world);
    ended_collection(&world, &repo);
    repo.pin(web[0].id, &cause("the auditors' copy")).unwrap();
    let given_up = repo.begin_for(None, "a backup that hangs").unwrap();
    write(&given_up, &[&world.disk(8, "ttn", 0)]);
    given_up.flush().unwrap();
    assert!(!repo.fence_session(given_up.id(), &cause("it gave no sign of life")).unwrap());
    drop(given_up);
    let _reader = repo.hold(&[web[1].id, twins[0].id], "mount of web01").unwrap();
    let writer = repo.begin_for(Some(&web[1]), "backup of web01").unwrap();
    write(&writer, &[&world.disk(9, "ttmnt", 10)]);
    writer.flush().unwrap();
    writer.beat().unwrap();
    let report = collect(&repo);
    assert!(report.later.packs > 0 && report.waiting_for.len() == 1, "it waits: {report:?}");
    // After the plan: a collection takes the records of points removed before it.
    let removed = repo.remove_points(&[twins[1].id], &cause("too many")).unwrap();
    assert_eq!(removed.removed.len(), 1);
    assert_eq!(repo.removed_points().unwrap(), [twins[1].id], "it is there still");
    for folder in [Folder::Sessions, Folder::Removals, Folder::Pins, Folder::Gc, Folder::Index] {
        assert!(!world.storage.list(folder).unwrap().is_empty(), "{folder:?}");
    }
    world.files()
}

/// Two points of a machine with four disks: one of several levels, one with a short end, one that
/// is a hole, one of a byte.
fn web_server(world: &World, repo: &Repository) -> [RecoveryPoint; 2] {
    let mut wide = world.disk(1, "tn", 0);
    wide.resize(5000 * world.chunk, 0);
    wide.extend(world.disk(2, "tm", 100));
    let mut system = world.disk(3, &"tttztm".repeat(12), 1234);
    let hole = vec![0; 300 * world.chunk];
    let first = back_up(repo, None, world.new_point("web01"), &[&system, &wide, &hole, b"x"]);
    system[40 * world.chunk..][..5].copy_from_slice(b"later");
    let new = NewPoint {
        consistency: Consistency::Changing,
        note: Some("größer\nals zuvor".into()),
        ..world.new_point("web01")
    };
    let second = back_up(repo, Some(&first), new, &[&system, &wide, &hole, b"x"]);
    assert!(second.disks[1].levels > 2 && second.disks[2].root.is_none());
    [first, second]
}

/// One disk stored twice, by writers that did not know of each other: its chunks are in two packs.
fn twins(world: &World) -> Vec<RecoveryPoint> {
    let disk = world.disk(5, "ttntmz", 50);
    let nodes = [world.node(), world.node()];
    let sessions = nodes.each_ref().map(|node| node.begin(None).unwrap());
    let mut points = Vec::new();
    for (session, machine) in sessions.into_iter().zip(["db01", "größe 2"]) {
        let before = world.packs().len();
        let disks = write(&session, &[&disk]);
        let copied_from = (machine == "db01").then_some(CopiedFrom {
            repository: RepoId::from_bytes([6; 16]),
            point: PointId::from_bytes([7; 16]),
        });
        let new = NewPoint { copied_from, ..world.new_point(machine) };
        points.push(session.commit(new, disks).unwrap());
        assert_eq!(world.packs().len(), before + 2, "chunks and nodes, each time");
    }
    points
}

/// A point that is removed and collected, but for a pack under a retention lock.
fn ended_collection(world: &World, repo: &Repository) {
    let before = world.packs();
    let disk = world.disk(6, "tnt", 0);
    let old = back_up(repo, None, world.new_point("old01"), &[&disk]);
    let pack = world.packs().into_iter().find(|pack| !before.contains(pack)).unwrap();
    world.storage.locked.lock().push(pack);
    repo.remove_points(&[old.id], &cause("retired")).unwrap();
    let report = collect(repo);
    assert_eq!((report.locked.packs, report.buried), (1, 1), "{report:?}");
    assert!(report.freed.packs > 0, "{report:?}");
}
