//! Chunks in several packs: any good copy serves, and what is bad about the others is remembered.

use std::sync::Arc;

use backstay_store::testkit::SeededEntropy;
use backstay_store::{
    CheckOptions, ChunkIndex, ErrorKind, Folder, IndexChoice, Location, MemoryStorage, NoProgress,
    ObjectKey, OpenOptions, RecoveryPoint, Repository, Storage, WriteScratch,
};

use crate::support::{CHUNK, image, init, key, new_point, open, read, seed};

struct Rig {
    storage: Arc<MemoryStorage>,
    entropy: Arc<SeededEntropy>,
    disk: Vec<u8>,
    points: Vec<RecoveryPoint>,
    /// The packs of each point.
    packs: Vec<Vec<ObjectKey>>,
}

/// The same disk stored twice, by sessions that did not know of each other.
fn rig() -> Rig {
    let storage = Arc::new(MemoryStorage::default());
    let entropy = Arc::new(SeededEntropy::new(1));
    init(&*storage, &entropy).unwrap();
    let disk = image(7, 150 * CHUNK + 300);
    let repos = [0, 1].map(|_| open(storage.clone(), &entropy).unwrap());
    let sessions = repos.each_ref().map(|repo| repo.begin(None).unwrap());
    let (mut points, mut packs) = (Vec::new(), Vec::new());
    for session in sessions {
        let before = storage.list(Folder::Packs).unwrap();
        let writer = session.image("disk0", "image.raw", disk.len() as u64);
        writer.write_chunks(ChunkIndex(0), &disk, &mut WriteScratch::new().unwrap()).unwrap();
        let record = writer.finish().unwrap();
        points.push(session.commit(new_point("web01", None), vec![record]).unwrap());
        let mut new = storage.list(Folder::Packs).unwrap();
        new.retain(|pack| !before.contains(pack));
        assert!(new.len() >= 2, "trees and data");
        packs.push(new);
    }
    Rig { storage, entropy, disk, points, packs }
}

impl Rig {
    fn open(&self) -> Repository {
        open(self.storage.clone(), &self.entropy).unwrap()
    }

    fn flip_body(&self, pack: ObjectKey, chance: &SeededEntropy) {
        self.storage.tamper(pack, |bytes| {
            // Header, table and trailer stay as they are: the pack is found, its chunks are bad.
            let trailer = bytes.len() - 128;
            let table = u64::from_le_bytes(*bytes[trailer + 16..].first_chunk().unwrap());
            for byte in &mut bytes[64..table as usize] {
                *byte ^= 1 + chance.below(255) as u8;
            }
        });
    }

    fn assert_whole(&self, repo: &Repository, what: &str) {
        for point in &self.points {
            assert!(read(repo, &point.disks[0]).unwrap() == self.disk, "{what}");
        }
        let report = self.open().check(&CheckOptions { read_data: true }, &NoProgress).unwrap();
        let lost =
            report.damage.iter().find(|d| !matches!(d.kind, backstay_store::DamageKind::Pack(_)));
        assert!(lost.is_none(), "{what}: {lost:?}");
    }
}

#[test]
fn a_damaged_copy_is_passed_over_and_remembered() {
    let chance = SeededEntropy::new(seed());
    for side in [0, 1] {
        for n in 0..2 {
            let rig = rig();
            rig.flip_body(rig.packs[side][n], &chance);
            let repo = rig.open();
            rig.assert_whole(&repo, &format!("pack {n} of point {side}"));
            let noted = repo.noted_damage();
            // The copy read first may have been the good one.
            assert!(noted.iter().all(|(pack, ..)| ObjectKey::Pack(*pack) == rig.packs[side][n]));
        }
    }
    // With all packs of either side bad, one of the two is the one read first.
    let rig = rig();
    rig.flip_body(rig.packs[0][0], &chance);
    rig.flip_body(rig.packs[1][1], &chance);
    let repo = rig.open();
    rig.assert_whole(&repo, "a pack of each");
}

#[test]
fn damage_is_noted_when_the_bad_copy_is_asked_first() {
    let chance = SeededEntropy::new(seed());
    let noted = [0, 1].map(|side| {
        let rig = rig();
        rig.packs[side].iter().for_each(|pack| rig.flip_body(*pack, &chance));
        // Without threads both rounds learn of the packs in the same order.
        let repo = Repository::open_on(
            rig.storage.clone(),
            Location::parse("/test").unwrap(),
            &key(),
            &OpenOptions { background: false, ..OpenOptions::new("/nonexistent") },
            IndexChoice::Memory,
            rig.entropy.clone(),
        )
        .unwrap();
        repo.refresh().unwrap();
        rig.assert_whole(&repo, "one side is bad");
        repo.noted_damage().len()
    });
    assert!(noted.iter().any(|n| *n > 10), "{noted:?}");
}

#[test]
fn a_pack_deleted_under_a_reader_is_replaced_by_another_copy() {
    for side in [0, 1] {
        let rig = rig();
        let repo = rig.open();
        repo.refresh().unwrap();
        for pack in &rig.packs[side] {
            rig.storage.delete(*pack).unwrap();
        }
        rig.assert_whole(&repo, &format!("the packs of point {side} are gone"));
        assert!(repo.noted_damage().is_empty(), "a pack that is gone is no damage");
    }
}

#[test]
fn a_pack_rewritten_elsewhere_under_a_reader_is_found() {
    // As a collection does it: the chunks are stored again, and only then the pack is deleted.
    let rig = rig();
    for pack in &rig.packs[1] {
        rig.storage.delete(*pack).unwrap();
    }
    let repo = rig.open();
    repo.refresh().unwrap();
    let saved: Vec<_> =
        rig.packs[0].iter().map(|p| rig.storage.get(*p, u64::MAX).unwrap()).collect();
    for pack in &rig.packs[0] {
        rig.storage.delete(*pack).unwrap();
    }
    let e = read(&repo, &rig.points[0].disks[0]).unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Damaged, "{e}");
    for (pack, bytes) in rig.packs[0].iter().zip(&saved) {
        rig.storage.put(*pack, &[bytes]).unwrap();
    }
    rig.assert_whole(&repo, "they are back");
}

#[test]
fn without_a_good_copy_reads_fail_closed() {
    let chance = SeededEntropy::new(seed());
    let rig = rig();
    rig.packs.iter().flatten().for_each(|pack| rig.flip_body(*pack, &chance));
    let repo = rig.open();
    let e = read(&repo, &rig.points[0].disks[0]).unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Damaged, "{e}");
    assert!(!repo.noted_damage().is_empty());
    let report = repo.check(&CheckOptions { read_data: true }, &NoProgress).unwrap();
    assert!(
        report.damage.iter().any(|d| matches!(d.kind, backstay_store::DamageKind::Disk { .. }))
    );
}
