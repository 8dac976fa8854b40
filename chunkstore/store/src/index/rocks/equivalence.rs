//! The index on disk against the one in memory, under random operations of several handles, each
//! of which may die at any time.

use std::collections::BTreeMap;

use backstay_format::pack::{Encoding, PackKind};
use proptest::prelude::*;

use super::super::MemoryIndex;
use super::*;

#[derive(Clone, Debug)]
enum Op {
    /// A pack becomes durable, and a handle learns of it.
    Add {
        handle: usize,
        chunks: Vec<u8>,
        tree: bool,
    },
    /// A pack vanishes, and nobody has noticed.
    Vanish(u16),
    /// A pack that vanished is there again.
    Return(u16),
    /// A handle deletes packs, as a collection does.
    Collect {
        handle: usize,
        packs: Vec<u16>,
    },
    /// Some copies in one pack are found to be bad.
    DropCopies {
        handle: usize,
        pack: u16,
        chunks: Vec<u8>,
    },
    Publish(usize),
    CatchUp(usize),
    /// A handle dies, and what it has not published with it.
    Kill(usize),
    /// A handle lists the packs and brings itself in line with them.
    Synchronise(usize),
    Complete {
        handle: usize,
        point: u8,
    },
}

const HANDLES: usize = 3;

fn op() -> impl Strategy<Value = Op> {
    let handle = 0..HANDLES;
    let chunks = prop::collection::vec(0u8..40, 1..12);
    let h = || handle.clone();
    prop_oneof![
        6 => (h(), chunks.clone(), any::<bool>())
            .prop_map(|(handle, chunks, tree)| Op::Add { handle, chunks, tree }),
        1 => any::<u16>().prop_map(Op::Vanish),
        1 => any::<u16>().prop_map(Op::Return),
        1 => (h(), prop::collection::vec(any::<u16>(), 1..4))
            .prop_map(|(handle, packs)| Op::Collect { handle, packs }),
        1 => (h(), any::<u16>(), chunks)
            .prop_map(|(handle, pack, chunks)| Op::DropCopies { handle, pack, chunks }),
        2 => h().prop_map(Op::Publish),
        1 => h().prop_map(Op::CatchUp),
        2 => h().prop_map(Op::Kill),
        2 => h().prop_map(Op::Synchronise),
        1 => (h(), 0u8..4).prop_map(|(handle, point)| Op::Complete { handle, point }),
    ]
}

type Pack = (PackInfo, Vec<PackEntry>);

struct World {
    dir: tempfile::TempDir,
    handles: Vec<RocksIndex>,
    model: MemoryIndex,
    /// The packs there are, and those that are not there any more.
    present: BTreeMap<PackId, Pack>,
    gone: BTreeMap<PackId, Pack>,
    made: u8,
}

fn chunk(n: u8) -> ChunkId {
    ChunkId::from_bytes([n; 32])
}

fn nth(packs: &BTreeMap<PackId, Pack>, n: u16) -> Option<PackId> {
    packs.keys().nth(usize::from(n) % packs.len().max(1)).copied()
}

impl World {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let handles = (0..HANDLES).map(|_| RocksIndex::open(dir.path()).unwrap()).collect();
        let model = MemoryIndex::default();
        Self { dir, handles, model, present: BTreeMap::new(), gone: BTreeMap::new(), made: 0 }
    }

    fn run(&mut self, op: Op) {
        match op {
            Op::Add { handle, mut chunks, tree } => {
                chunks.sort_unstable();
                chunks.dedup();
                let pack = self.make(&chunks, tree);
                let (info, entries) = &self.present[&pack];
                self.handles[handle].add_pack(pack, *info, entries).unwrap();
            }
            Op::Vanish(n) => {
                if let Some(id) = nth(&self.present, n) {
                    self.gone.extend(self.present.remove_entry(&id));
                    // Marks go when somebody notices: see `synchronise`.
                    self.model.collected(&[id]).unwrap();
                }
            }
            Op::Return(n) => {
                if let Some(id) = nth(&self.gone, n) {
                    // Whoever has not noticed that it was gone may know it without copies that
                    // were dropped; so everybody notices first.
                    self.synchronise_all();
                    let (info, entries) = self.gone.remove(&id).unwrap();
                    self.model.add_pack(id, info, &entries).unwrap();
                    self.present.insert(id, (info, entries));
                }
            }
            Op::Collect { handle, packs } => {
                self.synchronise_all();
                let mut ids: Vec<PackId> =
                    packs.iter().filter_map(|&n| nth(&self.present, n)).collect();
                ids.push(PackId::from_bytes([0xee; 16]));
                self.present.retain(|id, _| !ids.contains(id));
                self.handles[handle].collected(&ids).unwrap();
                self.model.collected(&ids).unwrap();
            }
            Op::DropCopies { handle, pack, chunks } => {
                self.synchronise_all();
                let Some(pack) = nth(&self.present, pack) else { return };
                let ids: Vec<ChunkId> = chunks.into_iter().map(chunk).collect();
                self.handles[handle].drop_copies(pack, &ids).unwrap();
                self.model.drop_copies(pack, &ids).unwrap();
            }
            Op::Publish(h) => self.handles[h].publish().unwrap(),
            Op::CatchUp(h) => self.handles[h].catch_up().unwrap(),
            Op::Kill(h) => self.handles[h] = RocksIndex::open(self.dir.path()).unwrap(),
            Op::Synchronise(h) => self.synchronise(h),
            Op::Complete { handle, point } => {
                self.synchronise_all();
                let point = PointId::from_bytes([point; 16]);
                self.handles[handle].set_complete(point).unwrap();
                self.handles[handle].publish().unwrap();
                self.model.set_complete(point).unwrap();
            }
        }
    }

    fn make(&mut self, chunks: &[u8], tree: bool) -> PackId {
        self.made += 1;
        let id = PackId::from_bytes([self.made.reverse_bits(); 16]);
        let kind = if tree { PackKind::Tree } else { PackKind::Data };
        let session = PointId::from_bytes([self.made % 3; 16]);
        let info = PackInfo { kind, chunks: chunks.len() as u32, len: 1000, session };
        let entry = |(i, &n): (usize, &u8)| PackEntry {
            id: chunk(n),
            offset: 64 + i as u32 * 10,
            stored_len: 10,
            raw_len: 10 + u32::from(n),
            encoding: if n % 2 == 0 { Encoding::Raw } else { Encoding::Zstd },
        };
        let entries: Vec<PackEntry> = chunks.iter().enumerate().map(entry).collect();
        self.model.add_pack(id, info, &entries).unwrap();
        self.present.insert(id, (info, entries));
        id
    }

    /// As a repository does it.
    fn synchronise(&self, h: usize) {
        let index = &self.handles[h];
        index.catch_up().unwrap();
        let known: Vec<PackId> = index.packs().into_iter().map(|(id, _)| id).collect();
        let gone: Vec<PackId> =
            known.iter().filter(|id| !self.present.contains_key(id)).copied().collect();
        if !gone.is_empty() {
            index.drop_packs(&gone).unwrap();
            self.model.drop_packs(&gone).unwrap();
        }
        for (id, (info, entries)) in &self.present {
            if !known.contains(id) {
                index.add_pack(*id, *info, entries).unwrap();
            }
        }
        index.publish().unwrap();
    }

    fn synchronise_all(&self) {
        // Twice: what one publishes late another learns in the second round.
        for h in (0..HANDLES).chain(0..HANDLES) {
            self.synchronise(h);
        }
    }

    fn compare(&self) {
        self.synchronise_all();
        let ids: Vec<ChunkId> = (0..41).map(chunk).collect();
        let sorted = |mut copies: Vec<ChunkLocation>| {
            copies.sort_by_key(|l| l.pack);
            copies
        };
        for index in &self.handles {
            assert_eq!(index.packs(), self.model.packs());
            for &id in &ids {
                let (ours, theirs) = (index.copies(id).unwrap(), self.model.copies(id).unwrap());
                if theirs.len() < COPIES_MAX {
                    assert_eq!(sorted(ours), sorted(theirs), "{id}");
                } else {
                    assert_eq!(ours.len(), COPIES_MAX);
                }
            }
            for avoid in [PackSet::new(), self.present.keys().step_by(2).copied().collect()] {
                let (mut ours, mut theirs) = (Vec::new(), Vec::new());
                index.get_many(&ids, &avoid, &mut ours).unwrap();
                self.model.get_many(&ids, &avoid, &mut theirs).unwrap();
                for (l, m) in ours.iter().zip(&theirs) {
                    assert_eq!(l.is_some(), m.is_some());
                    assert!(l.is_none_or(|l| !avoid.contains(&l.pack)));
                }
            }
            // A mark may be lost, and then chunks are looked up one by one; none is made up.
            for point in (0..4).map(|n| PointId::from_bytes([n; 16])) {
                assert!(!index.is_complete(point) || self.model.is_complete(point));
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, max_shrink_iters: 200, ..ProptestConfig::default() })]
    #[test]
    fn the_index_on_disk_equals_the_one_in_memory(ops in prop::collection::vec(op(), 1..40)) {
        let mut world = World::new();
        for op in ops {
            world.run(op);
        }
        world.compare();
    }
}
