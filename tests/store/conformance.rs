//! One suite over every storage.

use std::path::Path;
use std::sync::Arc;

use backstay_store::testkit::conformance::suite;
use backstay_store::testkit::{SeededEntropy, SimFs};
use backstay_store::{
    Entropy, ErrorKind, FaultPlan, FaultStorage, Folder, LocalStorage, MemoryStorage, ObjectKey,
    PackId, Storage,
};

fn pack(n: u8) -> ObjectKey {
    ObjectKey::Pack(PackId::from_bytes([n; 16]))
}

#[test]
fn memory() {
    suite(&MemoryStorage::default());
}

#[test]
fn local_directory() {
    let dir = tempfile::tempdir().unwrap();
    suite(&LocalStorage::create_real(&dir.path().join("repo")).unwrap());
    let names = std::fs::read_dir(dir.path().join("repo/tmp")).unwrap().count();
    assert_eq!(names, 0, "no temporary file is left");
}

#[test]
pub(crate) fn local_on_the_simulated_file_system() {
    let fs = Arc::new(SimFs::new());
    suite(&LocalStorage::create(Path::new("/repo"), fs, "t").unwrap());
}

#[test]
fn fault_layer_without_faults() {
    suite(&FaultStorage::new(Arc::new(MemoryStorage::default()), FaultPlan::default()));
}

#[test]
fn fault_layer_with_faults() {
    let inner = Arc::new(MemoryStorage::default());
    let plan = FaultPlan { fail_at: Some(0), ..FaultPlan::default() };
    let s = FaultStorage::new(inner.clone(), plan.clone());
    assert_eq!(s.put(pack(1), &[b"x"]).unwrap_err().kind(), ErrorKind::Io);
    assert!(inner.get(pack(1), 10).is_err());
    s.set_plan(FaultPlan { after_the_fact: true, kind: Some(ErrorKind::NoSpace), ..plan });
    assert_eq!(s.put(pack(1), &[b"x"]).unwrap_err().kind(), ErrorKind::NoSpace);
    assert_eq!(inner.get(pack(1), 10).unwrap(), b"x");
    assert_eq!(s.get(pack(1), 10).unwrap(), b"x");
    assert_eq!(s.calls(), 2);
}

#[test]
fn temporary_files_of_the_dead_are_removed_and_those_of_the_living_kept() {
    use backstay_store::{RealFs, Vfs};
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("repo");
    let storage = LocalStorage::create_real(&root).unwrap();
    std::fs::write(root.join("tmp/dead-0"), b"half a pack").unwrap();
    let living = RealFs.create_new(&root.join("tmp/living-0")).unwrap();
    storage.tidy().unwrap();
    assert!(!root.join("tmp/dead-0").exists());
    assert!(root.join("tmp/living-0").exists());
    drop(living);
    storage.tidy().unwrap();
    assert!(!root.join("tmp/living-0").exists());
}

/// Another process may tidy at any moment, also between the sync of a file and its renaming.
#[test]
fn tidying_never_takes_a_file_that_is_being_stored() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("repo");
    let writer = LocalStorage::create_real(&root).unwrap();
    let other = LocalStorage::open(&root, Arc::new(backstay_store::RealFs), "other");
    assert!(other.is_err(), "there is no configuration yet");
    writer.put(ObjectKey::Config, &[b"c"]).unwrap();
    let other = LocalStorage::open_real(&root).unwrap();
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|s| {
        s.spawn(|| {
            while !done.load(std::sync::atomic::Ordering::Relaxed) {
                other.tidy().unwrap();
            }
        });
        let stored = (0..=255u8).map(|n| writer.put(pack(n), &[&[n; 100]]));
        let failed: Vec<_> = stored.filter_map(Result::err).collect();
        done.store(true, std::sync::atomic::Ordering::Relaxed);
        assert!(failed.is_empty(), "{} of 256 failed, first: {}", failed.len(), failed[0]);
    });
}

#[test]
fn foreign_names_are_left_out_of_lists() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("repo");
    let storage = LocalStorage::create_real(&root).unwrap();
    std::fs::write(root.join("points/README"), b"x").unwrap();
    std::fs::write(root.join("packs/0/.nfs0001"), b"x").unwrap();
    assert!(storage.list(Folder::Points).unwrap().is_empty());
    assert!(storage.list(Folder::Packs).unwrap().is_empty());
    std::fs::remove_dir_all(root.join("points")).unwrap();
    assert_eq!(storage.list(Folder::Points).unwrap_err().kind(), ErrorKind::Damaged);
}

#[test]
fn seeded_randomness_repeats() {
    let draw = |seed| {
        let mut out = [0u8; 32];
        SeededEntropy::new(seed).fill(&mut out);
        out
    };
    assert_eq!(draw(1), draw(1));
    assert_ne!(draw(1), draw(2));
}
