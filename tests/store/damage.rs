//! Damage: whatever was done to the stored bytes, a read gives the right bytes or an error, the
//! check names exactly what is lost, and everything else still reads.

use std::sync::Arc;

use backstay_store::testkit::SeededEntropy;
use backstay_store::{
    CheckOptions, DamageKind, ErrorKind, Folder, MemoryStorage, NoProgress, ObjectKey,
    RecoveryPoint, Repository, Storage,
};

use crate::support::{CHUNK, back_up, image, init, open, seed};

struct Rig {
    storage: Arc<MemoryStorage>,
    entropy: Arc<SeededEntropy>,
    points: Vec<(RecoveryPoint, Vec<u8>)>,
}

/// Two machines, three points, several packs.
fn rig() -> Rig {
    let storage = Arc::new(MemoryStorage::default());
    let entropy = Arc::new(SeededEntropy::new(1));
    init(&*storage, &entropy).unwrap();
    let repo = open(storage.clone(), &entropy).unwrap();
    let mut points = Vec::new();
    for (machine, seed) in [("web01", 1), ("web01", 2), ("db01", 3)] {
        let disk = image(seed, 150 * CHUNK + 300);
        points.push((back_up(&repo, machine, &disk).unwrap(), disk));
    }
    Rig { storage, entropy, points }
}

impl Rig {
    fn reopen(&self) -> Repository {
        open(self.storage.clone(), &self.entropy).unwrap()
    }

    /// Reads every chunk of every point by itself; returns what fails as (point, first chunk).
    fn unreadable(&self, repo: &Repository) -> Vec<(usize, usize)> {
        let mut lost = Vec::new();
        for (p, (point, disk)) in self.points.iter().enumerate() {
            let reader = repo.image(&point.disks[0]).unwrap();
            for (i, expected) in disk.chunks(CHUNK).enumerate() {
                let mut buf = vec![0xee; expected.len()];
                match reader.read_at((i * CHUNK) as u64, &mut buf) {
                    Ok(()) => assert!(buf == expected, "wrong bytes were served"),
                    Err(e) => {
                        assert_eq!(e.kind(), ErrorKind::Damaged, "{e}");
                        lost.push((p, i));
                    }
                }
            }
        }
        lost
    }

    /// What the full check lists, as (point, chunk).
    fn listed(&self, repo: &Repository) -> (Vec<(usize, usize)>, usize) {
        let report = repo.check(&CheckOptions { read_data: true }, &NoProgress).unwrap();
        let mut lost = Vec::new();
        for damage in &report.damage {
            if let DamageKind::Disk { point, offset_bytes, len_bytes, .. } = &damage.kind {
                let p = self.points.iter().position(|(x, _)| x.id == *point).unwrap();
                let first = *offset_bytes as usize / CHUNK;
                lost.extend((first..first + (*len_bytes as usize).div_ceil(CHUNK)).map(|i| (p, i)));
            }
        }
        lost.sort_unstable();
        (lost, report.damage.len())
    }
}

/// The chunks a hole covers count as lost with a lost node, though they read as zeros or not.
fn data_only(rig: &Rig, lost: Vec<(usize, usize)>) -> Vec<(usize, usize)> {
    let is_data = |(p, i): &(usize, usize)| {
        let chunk = rig.points[*p].1.chunks(CHUNK).nth(*i).unwrap_or_default();
        chunk.iter().any(|&b| b != 0)
    };
    lost.into_iter().filter(is_data).collect()
}

#[test]
fn flipped_bits_are_found_named_and_contained() {
    let seed = seed();
    let chance = SeededEntropy::new(seed);
    for round in 0..60 {
        let rig = rig();
        let packs = rig.storage.list(Folder::Packs).unwrap();
        let pack = packs[chance.below(packs.len() as u64) as usize];
        let bit = chance.below(rig.storage.size(pack).unwrap() * 8);
        rig.storage.tamper(pack, |bytes| bytes[bit as usize / 8] ^= 1 << (bit % 8));
        let repo = rig.reopen();
        let lost = data_only(&rig, rig.unreadable(&repo));
        let (listed, findings) = rig.listed(&rig.reopen());
        assert!(findings > 0, "round {round}: bit {bit} of {pack} went unnoticed");
        assert_eq!(data_only(&rig, listed), lost, "round {round}: bit {bit} of {pack}");
    }
}

/// Every bit of a pack's fixed parts: none of them makes the repository unusable, whatever it says.
#[test]
fn no_bit_of_a_header_or_trailer_stops_the_rest() {
    let packs = rig().storage.list(Folder::Packs).unwrap();
    let pack = packs[0];
    let size = rig().storage.size(pack).unwrap();
    for bit in (0..64 * 8).chain((size - 128) * 8..size * 8).step_by(3) {
        let rig = rig();
        rig.storage.tamper(pack, |bytes| bytes[bit as usize / 8] ^= 1 << (bit % 8));
        let repo = rig.reopen();
        let (point, disk) = &rig.points[1];
        let again = back_up(&repo, &point.machine, disk).unwrap();
        let bytes = crate::support::read(&rig.reopen(), &again.disks[0]).unwrap();
        assert!(bytes == *disk, "bit {bit}");
    }
}

#[test]
pub(crate) fn lost_cut_zeroed_and_swapped_packs() {
    type Change = fn(&Rig, ObjectKey, ObjectKey);
    let changes: [(&str, Change); 5] = [
        ("lost", |r, a, _| r.storage.delete(a).unwrap()),
        ("cut short", |r, a, _| r.storage.tamper(a, |b| b.truncate(b.len() / 2))),
        ("empty", |r, a, _| r.storage.tamper(a, Vec::clear)),
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
    for (name, change) in changes {
        let packs = rig().storage.list(Folder::Packs).unwrap();
        for (i, &pack) in packs.iter().enumerate() {
            let rig = rig();
            change(&rig, pack, packs[(i + 1) % packs.len()]);
            let lost = data_only(&rig, rig.unreadable(&rig.reopen()));
            assert!(!lost.is_empty(), "{name}: pack {i}");
            let (listed, findings) = rig.listed(&rig.reopen());
            assert!(findings > 0, "{name}: pack {i} went unnoticed");
            assert_eq!(data_only(&rig, listed), lost, "{name}: pack {i}");
        }
    }
}

#[test]
fn a_damaged_point_is_named_and_hides_no_other() {
    let rig = rig();
    let id = rig.points[1].0.id;
    rig.storage.tamper(ObjectKey::Point(id), |b| b[40] ^= 1);
    let repo = rig.reopen();
    let list = repo.points().unwrap();
    assert_eq!(list.points.len(), 2);
    assert_eq!(list.damaged.len(), 1);
    assert_eq!(list.damaged[0].0, id);
    let report = repo.check(&CheckOptions::default(), &NoProgress).unwrap();
    assert!(report.damage.iter().any(|d| d.kind == DamageKind::Point(id)));
}

#[test]
fn points_swapped_or_forged_are_refused() {
    let rig = rig();
    let (a, b) = (ObjectKey::Point(rig.points[0].0.id), ObjectKey::Point(rig.points[1].0.id));
    let other = rig.storage.get(b, u64::MAX).unwrap();
    rig.storage.tamper(a, |bytes| *bytes = other);
    let list = rig.reopen().points().unwrap();
    assert_eq!((list.points.len(), list.damaged.len()), (2, 1));
}

#[test]
fn the_next_backup_heals_what_a_lost_pack_took() {
    let rig = rig();
    for pack in rig.storage.list(Folder::Packs).unwrap() {
        let saved = rig.storage.get(pack, u64::MAX).unwrap();
        rig.storage.delete(pack).unwrap();
        let repo = rig.reopen();
        let (point, disk) = &rig.points[1];
        let again = back_up(&repo, &point.machine, disk).unwrap();
        let bytes = crate::support::read(&rig.reopen(), &again.disks[0]).unwrap();
        assert!(bytes == *disk, "a backup after the loss of {pack} is whole");
        drop(saved);
    }
    let (_, findings) = rig.listed(&rig.reopen());
    let report_of = |n: usize| rig.points[n].0.machine.clone();
    assert!(findings > 0, "db01 ({}) is still damaged", report_of(2));
}
