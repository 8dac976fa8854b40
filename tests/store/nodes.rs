//! Several nodes on one storage, without threads: each call does all of its work itself.

use std::fmt;
use std::sync::Arc;

use backstay_store::testkit::SeededEntropy;
use backstay_store::{
    Cause, CheckOptions, ChunkIndex, CollectOptions, CollectReport, Entropy, Error, Folder,
    IndexChoice, Location, MemoryStorage, NoProgress, ObjectKey, OpenOptions, Owner, PackId,
    PointId, RecoveryPoint, Repository, Storage, WriteScratch, WriteSession,
};
use jiff::{SignedDuration, Timestamp};
use parking_lot::Mutex;

use crate::interrupt::Interrupt;
use crate::support::{CHUNK, init, key, new_point, read};

/// Random bytes from a seed, and a clock that a test moves.
pub(crate) struct TestEntropy {
    bytes: SeededEntropy,
    ahead: Mutex<SignedDuration>,
}

impl TestEntropy {
    pub(crate) fn new(seed: u64) -> Arc<Self> {
        Arc::new(Self { bytes: SeededEntropy::new(seed), ahead: Mutex::default() })
    }
}

impl fmt::Debug for TestEntropy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TestEntropy")
    }
}

impl Entropy for TestEntropy {
    fn fill(&self, buf: &mut [u8]) {
        self.bytes.fill(buf);
    }

    fn now(&self) -> Timestamp {
        let start: Timestamp = "2026-11-22T03:00:00Z".parse().unwrap();
        start + *self.ahead.lock()
    }
}

/// Opens a repository as a node of which nobody knows whether it lives.
pub(crate) fn open_node(
    storage: Arc<dyn Storage>,
    entropy: Arc<dyn Entropy>,
    host: &str,
) -> Result<Repository, Error> {
    let owner = Owner {
        host: host.into(),
        boot: String::new(),
        pid: 1,
        namespace: String::new(),
        started: 0,
    };
    let options = OpenOptions {
        cache_bytes: 1 << 20,
        fetch_threads: 0,
        background: false,
        owner: Some(owner),
        ..OpenOptions::new("/nonexistent")
    };
    let location = Location::parse("/nodes").unwrap();
    Repository::open_on(storage, location, &key(), &options, IndexChoice::Memory, entropy)
}

/// One storage in memory and its nodes.
#[derive(Clone)]
pub(crate) struct Nodes {
    pub(crate) storage: Arc<MemoryStorage>,
    entropy: Arc<TestEntropy>,
}

impl Nodes {
    pub(crate) fn new() -> Self {
        Self::of(1)
    }

    /// A repository with keys of its own, made from `seed`.
    pub(crate) fn of(seed: u64) -> Self {
        let storage: Arc<MemoryStorage> = Arc::default();
        init(&*storage, &SeededEntropy::new(seed)).unwrap();
        Self { storage, entropy: TestEntropy::new(2) }
    }

    pub(crate) fn node(&self) -> Repository {
        open_node(self.storage.clone(), self.entropy.clone(), "node").unwrap()
    }

    /// A node that reaches the storage through another layer.
    pub(crate) fn node_on(&self, storage: Arc<dyn Storage>) -> Repository {
        open_node(storage, self.entropy.clone(), "node").unwrap()
    }

    /// A node before whose calls a test may do something else.
    pub(crate) fn interrupted(&self) -> (Repository, Arc<Interrupt>) {
        let storage = Interrupt::new(self.storage.clone());
        (open_node(storage.clone(), self.entropy.clone(), "interrupted").unwrap(), storage)
    }

    /// All clocks move.
    pub(crate) fn pass(&self, time: SignedDuration) {
        let mut ahead = self.entropy.ahead.lock();
        *ahead += time;
    }

    pub(crate) fn packs(&self) -> Vec<PackId> {
        let pack = |k| if let ObjectKey::Pack(id) = k { Some(id) } else { None };
        self.storage.list(Folder::Packs).unwrap().into_iter().filter_map(pack).collect()
    }

    /// A node that was never there before reads the point, and a check finds nothing.
    pub(crate) fn assert_whole(&self, point: &RecoveryPoint, bytes: &[u8]) {
        let node = self.node();
        let found = node.point(point.id).unwrap();
        assert!(read(&node, &found.disks[0]).unwrap() == bytes, "{} reads otherwise", point.id);
        let report = node.check(&CheckOptions { read_data: true }, &NoProgress).unwrap();
        assert!(report.damage.is_empty(), "{:?}", report.damage);
    }
}

pub(crate) fn cause() -> Cause {
    Cause { by: "a test".into(), reason: "to see what happens".into() }
}

/// Options of a collection that repacks nothing.
pub(crate) fn plain() -> CollectOptions {
    CollectOptions { repack: false, by: "a test".into(), ..CollectOptions::default() }
}

pub(crate) fn collect(node: &Repository) -> CollectReport {
    node.collect(&plain(), &NoProgress).unwrap()
}

pub(crate) fn remove(node: &Repository, point: PointId) -> bool {
    node.remove_points(&[point], &cause()).unwrap().removed.contains(&point)
}

/// Data that does not compress.
pub(crate) fn noise(seed: u64, chunks: usize) -> Vec<u8> {
    let mut out = vec![0u8; chunks * CHUNK];
    SeededEntropy::new(seed).fill(&mut out);
    out
}

/// Writes a disk into an open session and commits; tells how many chunks were new.
pub(crate) fn write(session: WriteSession, bytes: &[u8]) -> Result<(RecoveryPoint, u64), Error> {
    let writer = session.image("disk0", "test", bytes.len() as u64);
    let stats = writer.write_chunks(ChunkIndex(0), bytes, &mut WriteScratch::new()?)?;
    let disk = writer.finish()?;
    let point = session.commit(new_point("m", None), vec![disk])?;
    Ok((point, stats.new_chunks))
}

/// A backup without a base.
pub(crate) fn back_up(node: &Repository, bytes: &[u8]) -> RecoveryPoint {
    write(node.begin(None).unwrap(), bytes).unwrap().0
}
