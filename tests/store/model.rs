//! The store against a naive model: random operations, each possible at any time, power cuts
//! among them. After every operation what the model holds and what the store says must agree.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use backstay_store::testkit::{SeededEntropy, SimFs};
use backstay_store::{LocalStorage, PointId, Repository};
use proptest::prelude::*;

use crate::support::{CHUNK, back_up, image, init, open, read};

#[derive(Clone, Debug)]
enum Op {
    /// Changes some chunks of a machine's disk and backs it up.
    Backup { machine: u8, edits: Vec<(u16, Edit)> },
    /// Gives the machine a disk of another size.
    Resize { machine: u8, len: u32 },
    /// Opens the repository anew; the index in memory is read from footers again.
    Reopen,
    /// Cuts the power during a backup, so many changes from now on, and reopens.
    PowerCut { machine: u8, after: u8, seed: u64 },
    /// Reads a range of some point.
    Read { point: u16, offset: u32, len: u16 },
    /// Compares two points of the model with the store's own comparison.
    Diff { a: u16, b: u16 },
}

#[derive(Clone, Debug)]
enum Edit {
    Zero,
    Fill(u8),
    Noise(u64),
}

fn edit() -> impl Strategy<Value = Edit> {
    prop_oneof![Just(Edit::Zero), (1u8..4).prop_map(Edit::Fill), any::<u64>().prop_map(Edit::Noise)]
}

fn op() -> impl Strategy<Value = Op> {
    let machine = 0u8..2;
    prop_oneof![
        4 => (machine.clone(), prop::collection::vec((any::<u16>(), edit()), 0..6))
            .prop_map(|(machine, edits)| Op::Backup { machine, edits }),
        1 => (machine.clone(), 0u32..(80 * CHUNK as u32)).prop_map(|(machine, len)| Op::Resize { machine, len }),
        1 => Just(Op::Reopen),
        2 => (machine, 0u8..40, any::<u64>()).prop_map(|(machine, after, seed)| Op::PowerCut { machine, after, seed }),
        3 => (any::<u16>(), any::<u32>(), any::<u16>()).prop_map(|(point, offset, len)| Op::Read { point, offset, len }),
        2 => (any::<u16>(), any::<u16>()).prop_map(|(a, b)| Op::Diff { a, b }),
    ]
}

struct World {
    fs: SimFs,
    entropy: Arc<SeededEntropy>,
    repo: Repository,
    disks: [Vec<u8>; 2],
    points: BTreeMap<PointId, Vec<u8>>,
}

const ROOT: &str = "/repo";
const NAMES: [&str; 2] = ["web01", "db01"];

impl World {
    fn new() -> Self {
        let fs = SimFs::new();
        let entropy = Arc::new(SeededEntropy::new(1));
        let storage = LocalStorage::create(Path::new(ROOT), Arc::new(fs.clone()), "m").unwrap();
        init(&storage, &entropy).unwrap();
        let repo = open(Arc::new(storage), &entropy).unwrap();
        let disks = [image(1, 70 * CHUNK + 17), image(2, 5 * CHUNK)];
        Self { fs, entropy, repo, disks, points: BTreeMap::new() }
    }

    fn reopen(&mut self) {
        let fs = Arc::new(self.fs.clone());
        let storage = LocalStorage::open(Path::new(ROOT), fs, "m").unwrap();
        self.repo = open(Arc::new(storage), &self.entropy).unwrap();
    }

    fn run(&mut self, op: &Op) {
        match op {
            Op::Backup { machine, edits } => {
                let m = usize::from(*machine);
                for (at, edit) in edits {
                    self.edit(m, *at, edit);
                }
                let point = back_up(&self.repo, NAMES[m], &self.disks[m]).unwrap();
                self.points.insert(point.id, self.disks[m].clone());
            }
            Op::Resize { machine, len } => {
                self.disks[usize::from(*machine)].resize(*len as usize, 0);
            }
            Op::Reopen => self.reopen(),
            Op::PowerCut { machine, after, seed } => self.power_cut(*machine, *after, *seed),
            Op::Read { point, offset, len } => self.read(*point, *offset, *len),
            Op::Diff { a, b } => self.diff(*a, *b),
        }
    }

    fn edit(&mut self, machine: usize, at: u16, edit: &Edit) {
        let disk = &mut self.disks[machine];
        let chunks = disk.len().div_ceil(CHUNK);
        if chunks == 0 {
            return;
        }
        let start = usize::from(at) % chunks * CHUNK;
        let end = (start + CHUNK).min(disk.len());
        match edit {
            Edit::Zero => disk[start..end].fill(0),
            Edit::Fill(b) => disk[start..end].fill(*b),
            Edit::Noise(seed) => {
                let noise = image(*seed, end - start);
                disk[start..end].copy_from_slice(&noise);
            }
        }
    }

    fn power_cut(&mut self, machine: u8, after: u8, seed: u64) {
        let m = usize::from(machine);
        self.edit(m, after.into(), &Edit::Noise(seed));
        self.fs.cut_power_at(self.fs.changes() + u64::from(after));
        if let Ok(point) = back_up(&self.repo, NAMES[m], &self.disks[m]) {
            self.points.insert(point.id, self.disks[m].clone());
        }
        self.fs = self.fs.after_power_cut(&SeededEntropy::new(seed));
        self.reopen();
        // A point whose backup was cut may be there: then it must be whole, and it counts.
        for point in self.repo.points().unwrap().points {
            self.points.entry(point.id).or_insert_with(|| self.disks[m].clone());
        }
    }

    fn pick(&self, n: u16) -> Option<(PointId, &Vec<u8>)> {
        let n = usize::from(n) % self.points.len().max(1);
        self.points.iter().nth(n).map(|(id, disk)| (*id, disk))
    }

    fn read(&self, point: u16, offset: u32, len: u16) {
        let Some((id, disk)) = self.pick(point) else { return };
        let start = offset as usize % (disk.len() + 1);
        let end = (start + usize::from(len)).min(disk.len());
        let record = &self.repo.point(id).unwrap().disks[0];
        let reader = self.repo.image(record).unwrap();
        let mut buf = vec![0xee; end - start];
        reader.read_at(start as u64, &mut buf).unwrap();
        assert!(buf == disk[start..end], "point {id}, {start}..{end}");
        assert!(reader.read_at(disk.len() as u64, &mut [0]).is_err());
        let extents = reader.extents(start as u64, (end - start) as u64, usize::MAX).unwrap();
        let covered: u64 = extents.iter().map(|e| e.1).sum();
        assert_eq!(covered, (end - start) as u64);
        for (offset, len, data) in extents {
            let range = offset as usize..(offset + len) as usize;
            assert!(data || disk[range].iter().all(|&b| b == 0), "a hole over data");
        }
    }

    fn diff(&self, a: u16, b: u16) {
        let (Some((a, disk_a)), Some((b, disk_b))) = (self.pick(a), self.pick(b)) else { return };
        let (a, b) = (self.repo.point(a).unwrap(), self.repo.point(b).unwrap());
        let mut told = vec![false; disk_a.len().max(disk_b.len()).div_ceil(CHUNK)];
        self.repo
            .diff_images(&a.disks[0], &b.disks[0], &mut |e| {
                let first = e.offset_bytes as usize / CHUNK;
                let count = (e.len_bytes as usize).div_ceil(CHUNK);
                told[first..first + count].fill(true);
            })
            .unwrap();
        for (i, told) in told.into_iter().enumerate() {
            let chunk = |d: &Vec<u8>| {
                let c = d.chunks(CHUNK).nth(i).unwrap_or_default().to_vec();
                if c.iter().all(|&b| b == 0) { Vec::new() } else { c }
            };
            assert_eq!(told, chunk(disk_a) != chunk(disk_b), "chunk {i}");
        }
    }

    fn check(&self) {
        let list = self.repo.points().unwrap();
        assert!(list.damaged.is_empty());
        let ids: Vec<PointId> = list.points.iter().map(|p| p.id).collect();
        assert_eq!(ids.len(), self.points.len());
        for point in &list.points {
            assert!(read(&self.repo, &point.disks[0]).unwrap() == self.points[&point.id]);
        }
    }
}

fn cases() -> u32 {
    if std::env::var_os("BACKSTAY_RELEASE_SIZE").is_some() { 5000 } else { 60 }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), max_shrink_iters: 400, ..ProptestConfig::default() })]

    #[test]
    fn store_and_model_agree(ops in prop::collection::vec(op(), 1..14)) {
        let mut world = World::new();
        for op in &ops {
            world.run(op);
        }
        world.check();
        world.reopen();
        world.check();
    }
}
