//! Every call to the storage fails once, and fails for good: no fault is turned into success, and
//! nothing that was acknowledged is lost.

use std::sync::Arc;

use backstay_store::testkit::SeededEntropy;
use backstay_store::{ErrorKind, FaultPlan, FaultStorage, MemoryStorage};

use crate::support::{back_up, image, init, open, read};

struct Rig {
    inner: Arc<MemoryStorage>,
    storage: Arc<FaultStorage>,
    entropy: Arc<SeededEntropy>,
}

fn rig() -> Rig {
    let inner = Arc::new(MemoryStorage::default());
    let entropy = Arc::new(SeededEntropy::new(1));
    init(&*inner, &entropy).unwrap();
    let storage = Arc::new(FaultStorage::new(inner.clone(), FaultPlan::default()));
    Rig { inner, storage, entropy }
}

/// Calls a first and a second backup make.
fn calls_of_a_backup() -> u64 {
    let rig = rig();
    let repo = open(rig.storage.clone(), &rig.entropy).unwrap();
    back_up(&repo, "web01", &image(1, 50 * 4096)).unwrap();
    rig.storage.set_plan(FaultPlan::default());
    back_up(&repo, "web01", &image(3, 50 * 4096)).unwrap();
    rig.storage.calls()
}

fn one_fault(at: u64, sticky: bool, after_the_fact: bool, kind: ErrorKind) {
    let rig = rig();
    let repo = open(rig.storage.clone(), &rig.entropy).unwrap();
    let first = image(1, 50 * 4096);
    let kept = back_up(&repo, "web01", &first).unwrap();
    let second = image(3, 50 * 4096);
    rig.storage.set_plan(FaultPlan {
        fail_at: Some(at),
        sticky,
        kind: Some(kind),
        after_the_fact,
        ..FaultPlan::default()
    });
    let outcome = back_up(&repo, "web01", &second);
    rig.storage.set_plan(FaultPlan::default());
    let what = format!("fault at call {at}, sticky {sticky}, after {after_the_fact}");
    if let Err(e) = &outcome {
        assert_eq!(e.kind(), kind, "{what}: {e}");
    }
    // Looked at afresh, through a storage without faults.
    let repo = open(rig.inner.clone(), &rig.entropy).unwrap();
    let list = repo.points().unwrap();
    assert!(list.damaged.is_empty(), "{what}");
    assert!(read(&repo, &kept.disks[0]).unwrap() == first, "{what}");
    match outcome {
        Ok(point) => assert!(read(&repo, &point.disks[0]).unwrap() == second, "{what}"),
        // Where only the answer was lost, the point may be there; then it is whole.
        Err(_) => {
            for point in list.points.iter().filter(|p| p.id != kept.id) {
                assert!(read(&repo, &point.disks[0]).unwrap() == second, "{what}");
            }
        }
    }
    let again = back_up(&repo, "web01", &second).unwrap();
    assert!(read(&repo, &again.disks[0]).unwrap() == second, "{what}");
}

#[test]
pub(crate) fn every_call_of_a_backup_fails_in_turn() {
    let calls = calls_of_a_backup();
    assert!(calls > 6, "a backup makes {calls} calls");
    for at in 0..calls {
        for (sticky, after_the_fact) in [(false, false), (true, false), (false, true)] {
            one_fault(at, sticky, after_the_fact, ErrorKind::NoSpace);
        }
        one_fault(at, true, false, ErrorKind::Io);
    }
}

#[test]
fn a_read_that_fails_is_an_error_and_never_zeros() {
    let rig = rig();
    let disk = image(1, 50 * 4096);
    let repo = open(rig.storage.clone(), &rig.entropy).unwrap();
    let point = back_up(&repo, "web01", &disk).unwrap();
    for at in 0..40 {
        let repo = open(rig.storage.clone(), &rig.entropy).unwrap();
        rig.storage.set_plan(FaultPlan { fail_at: Some(at), ..FaultPlan::default() });
        match read(&repo, &point.disks[0]) {
            Ok(bytes) => assert!(bytes == disk, "fault at call {at}"),
            Err(e) => assert_eq!(e.kind(), ErrorKind::Io, "fault at call {at}: {e}"),
        }
        rig.storage.set_plan(FaultPlan::default());
        // The error is not remembered: the next read succeeds.
        assert!(read(&repo, &point.disks[0]).unwrap() == disk, "after the fault at call {at}");
    }
}

/// A full disk at every byte count: the backup ends with NoSpace, what was there stays.
#[test]
fn a_full_disk_at_many_fill_levels() {
    use backstay_store::LocalStorage;
    use backstay_store::testkit::SimFs;
    use std::path::Path;
    let entropy = Arc::new(SeededEntropy::new(5));
    for space in (0..220_000).step_by(9_973) {
        let fs = SimFs::new();
        let storage = LocalStorage::create(Path::new("/repo"), Arc::new(fs.clone()), "f").unwrap();
        init(&storage, &entropy).unwrap();
        let storage = Arc::new(storage);
        let repo = open(storage.clone(), &entropy).unwrap();
        let first = image(1, 20 * 4096);
        let kept = back_up(&repo, "web01", &first).unwrap();
        fs.set_space(Some(space));
        let second = image(9, 80 * 4096);
        let outcome = back_up(&repo, "web01", &second);
        if let Err(e) = &outcome {
            assert_eq!(e.kind(), ErrorKind::NoSpace, "{space} bytes left: {e}");
        }
        let fresh = open(storage.clone(), &entropy).unwrap();
        assert!(read(&fresh, &kept.disks[0]).unwrap() == first);
        assert_eq!(fresh.points().unwrap().points.len(), 1 + usize::from(outcome.is_ok()));
        fs.set_space(None);
        let again = back_up(&fresh, "web01", &second).unwrap();
        assert!(read(&fresh, &again.disks[0]).unwrap() == second);
    }
}
