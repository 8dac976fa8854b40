//! Recovery keys and rotations: at every moment, and after every death, a key that somebody holds
//! opens the repository.

use std::path::Path;
use std::sync::{Arc, Barrier};

use backstay_store::testkit::{SeededEntropy, SimFs};
use backstay_store::{
    Encryption, ErrorKind, FaultPlan, FaultStorage, Folder, IndexChoice, InitOptions, KeySlotInfo,
    LocalStorage, Location, MemoryStorage, ObjectKey, OpenOptions, RecoveryKey, Repository, Secret,
    SlotKind, Storage, SystemEntropy, Unlock,
};
use jiff::Timestamp;

use crate::support::{CHUNK, back_up, image, init, init_options, key, open, read, seed};

fn file_key(n: u8) -> Unlock {
    Unlock::KeyFile(Secret::new(vec![n; 32]))
}

fn open_by(storage: &Arc<dyn Storage>, unlock: &Unlock) -> Result<Repository, ErrorKind> {
    Repository::open_on(
        storage.clone(),
        Location::parse("/test").unwrap(),
        unlock,
        &OpenOptions { cache_bytes: 1 << 20, ..OpenOptions::new("/nonexistent") },
        IndexChoice::Memory,
        Arc::new(SystemEntropy),
    )
    .map_err(|e| e.kind())
}

fn slots(repo: &Repository) -> Vec<KeySlotInfo> {
    repo.keys().unwrap()
}

/// A new repository in memory, its first key being [`key`].
fn fresh() -> (Arc<dyn Storage>, Repository) {
    let entropy = Arc::new(SeededEntropy::new(1));
    let storage: Arc<dyn Storage> = Arc::new(MemoryStorage::default());
    init(&*storage, &entropy).unwrap();
    let repo = open_by(&storage, &key()).unwrap();
    (storage, repo)
}

#[test]
fn the_recovery_key_alone_opens_and_restores() {
    let entropy = Arc::new(SeededEntropy::new(3));
    let storage: Arc<dyn Storage> = Arc::new(MemoryStorage::default());
    let options: InitOptions = init_options(Encryption::Aes256Gcm);
    let recovery = RecoveryKey::generate(&*entropy);
    let sheet = recovery.to_text().to_lowercase().replace('-', " ");
    Repository::init_on_with_recovery(&*storage, &options, &key(), Some(&recovery), &*entropy)
        .unwrap();
    let repo = open(storage.clone(), &entropy).unwrap();
    let disk = image(1, 10 * CHUNK);
    let point = back_up(&repo, "web01", &disk).unwrap();
    let kinds: Vec<SlotKind> = slots(&repo).iter().map(|s| s.kind).collect();
    assert_eq!(kinds.len(), 2);
    assert!(kinds.contains(&SlotKind::Recovery) && kinds.contains(&SlotKind::KeyFile));

    let typed = Unlock::RecoveryKey(RecoveryKey::parse(&sheet).unwrap());
    let repo = open_by(&storage, &typed).unwrap();
    assert!(read(&repo, &point.disks[0]).unwrap() == disk);
    // It makes new keys, too: that is what it is for.
    repo.rotate_key("first key", &file_key(5), None, Timestamp::now()).unwrap();
    assert!(open_by(&storage, &file_key(5)).is_ok());
    assert_eq!(open_by(&storage, &key()).unwrap_err(), ErrorKind::WrongKey);
    let other = Unlock::RecoveryKey(RecoveryKey::generate(&*entropy));
    assert_eq!(open_by(&storage, &other).unwrap_err(), ErrorKind::WrongKey);
}

#[test]
fn no_secret_is_shown_by_debug() {
    let recovery = RecoveryKey::generate(&SeededEntropy::new(3));
    let text = format!("{recovery:?} {:?}", Unlock::RecoveryKey(recovery.clone()));
    assert!(recovery.to_text().split('-').all(|group| !text.contains(group)), "{text}");
    let wrong = format!("{}0", recovery.to_text().as_str());
    let e = RecoveryKey::parse(&wrong).unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Invalid);
    let story = format!("{e} {e:?}");
    assert!(recovery.to_text().split('-').all(|group| !story.contains(group)), "{story}");
}

#[test]
fn a_rotation_keeps_the_label_and_ends_with_the_new_key_alone() {
    let (storage, repo) = fresh();
    let before = slots(&repo);
    let done = repo.rotate_key("first key", &file_key(1), None, Timestamp::now()).unwrap();
    assert_eq!((done.removed, done.added.label.as_str()), (before[0].id, "first key"));
    assert_eq!(slots(&repo), [KeySlotInfo { replaces: None, ..done.added.clone() }]);
    assert!(open_by(&storage, &file_key(1)).is_ok());
    assert_eq!(open_by(&storage, &key()).unwrap_err(), ErrorKind::WrongKey);
    // By its id, with a new label.
    let id = done.added.id.to_string();
    let done = repo.rotate_key(&id, &file_key(2), Some("other"), Timestamp::now()).unwrap();
    assert_eq!(done.added.label, "other");
    let e = repo.rotate_key(&id, &file_key(3), None, Timestamp::now()).unwrap_err();
    assert_eq!(e.kind(), ErrorKind::NotFound);
    repo.add_key(&file_key(4), "other", Timestamp::now()).unwrap();
    let e = repo.rotate_key("other", &file_key(5), None, Timestamp::now()).unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Invalid);
    assert!(e.to_string().contains("by its id"), "{e}");
    assert_eq!(slots(&repo).len(), 2);
}

/// Dies at every call of a rotation: the old key opens until the new one does, and a rotation that
/// was cut off shows in the list.
#[test]
fn a_rotation_that_dies_leaves_a_key_that_opens() {
    let (mut both, mut before, mut after) = (0, 0, 0);
    for at in 0.. {
        let inner: Arc<dyn Storage> = Arc::new(MemoryStorage::default());
        init(&*inner, &SeededEntropy::new(1)).unwrap();
        let faulty = Arc::new(FaultStorage::new(inner.clone(), FaultPlan::default()));
        let storage: Arc<dyn Storage> = faulty.clone();
        let repo = open_by(&storage, &key()).unwrap();
        faulty.set_plan(FaultPlan { fail_at: Some(at), sticky: true, ..FaultPlan::default() });
        let outcome = repo.rotate_key("first key", &file_key(1), None, Timestamp::now());
        let ended = faulty.calls() <= at;
        let opens = |unlock: &Unlock| open_by(&inner, unlock).is_ok();
        let holder = if opens(&key()) { key() } else { file_key(1) };
        let left = slots(&open_by(&inner, &holder).unwrap());
        let unfinished = left.iter().filter(|s| s.replaces.is_some()).count();
        match (opens(&key()), opens(&file_key(1))) {
            (true, false) => before += 1,
            (true, true) => {
                both += 1;
                assert_eq!(unfinished, 1, "call {at}: the list tells");
                assert!(outcome.unwrap_err().to_string().contains("so does the old key"));
            }
            (false, true) => after += 1,
            (false, false) => panic!("call {at}: nobody can open the repository any more"),
        }
        if ended {
            break;
        }
    }
    assert!(before > 0 && both > 0 && after > 0, "{before} {both} {after}");
}

/// The answer to the writing of a slot is lost: no slot stays that nobody can open, or the one
/// that somebody can would not be the last and could be removed.
#[test]
fn a_slot_whose_secret_was_given_up_does_not_stay() {
    let inner: Arc<dyn Storage> = Arc::new(MemoryStorage::default());
    init(&*inner, &SeededEntropy::new(1)).unwrap();
    let faulty = Arc::new(FaultStorage::new(inner.clone(), FaultPlan::default()));
    let storage: Arc<dyn Storage> = faulty.clone();
    let repo = open_by(&storage, &key()).unwrap();
    let plan = FaultPlan { fail_at: Some(1), after_the_fact: true, ..FaultPlan::default() };
    faulty.set_plan(plan);
    assert!(repo.add_key(&file_key(1), "", Timestamp::now()).is_err());
    let left = inner.list(Folder::Slots).unwrap();
    assert_eq!(left.len(), 1);
    let ObjectKey::Slot(id) = left[0] else { panic!("a slot") };
    let e = repo.remove_key(&id.to_string()).unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Invalid, "{e}");
}

/// Two at once, on storages with claims and without: of the same slot, of two slots, and removals
/// of the last two. Afterwards a key that somebody holds opens.
#[test]
fn two_at_once_leave_a_key_that_opens() {
    let dir = tempfile::tempdir().unwrap();
    for round in 0..60u32 {
        let storage: Arc<dyn Storage> = match round % 3 {
            0 => Arc::new(MemoryStorage::default()),
            1 => {
                let fs = Arc::new(SimFs::new());
                Arc::new(LocalStorage::create(Path::new("/repo"), fs, "t").unwrap())
            }
            _ => {
                let root = dir.path().join(format!("repo{round}"));
                Arc::new(LocalStorage::create_real(&root).unwrap())
            }
        };
        let entropy = SeededEntropy::new(u64::from(round));
        init(&*storage, &entropy).unwrap();
        let repos = [open_by(&storage, &key()).unwrap(), open_by(&storage, &key()).unwrap()];
        repos[0].add_key(&file_key(1), "second", Timestamp::now()).unwrap();
        let ids: Vec<String> = slots(&repos[0]).iter().map(|s| s.id.to_string()).collect();
        let (barrier, ids) = (Barrier::new(2), &ids);
        let outcomes = std::thread::scope(|s| {
            let work = |n: usize| {
                barrier.wait();
                let new = file_key(10 + n as u8);
                match round / 3 % 3 {
                    0 => repos[n].rotate_key(&ids[0], &new, None, Timestamp::now()).map(|_| ()),
                    1 => repos[n].rotate_key(&ids[n], &new, None, Timestamp::now()).map(|_| ()),
                    _ => repos[n].remove_key(&ids[n]),
                }
            };
            let threads = [s.spawn(move || work(0)), s.spawn(move || work(1))];
            threads.map(|t| t.join().unwrap().map_err(|e| e.kind()))
        });
        let held = [key(), file_key(1), file_key(10), file_key(11)];
        let opens: Vec<usize> = (0..4).filter(|&n| open_by(&storage, &held[n]).is_ok()).collect();
        assert!(!opens.is_empty(), "round {round}: {outcomes:?}");
        for (n, outcome) in outcomes.iter().enumerate() {
            // The second to rotate one slot may find it gone already, or do the removing.
            let fine = match round / 3 % 3 {
                0 => matches!(outcome, Ok(()) | Err(ErrorKind::NotFound)),
                1 => outcome.is_ok(),
                _ => matches!(outcome, Ok(()) | Err(ErrorKind::Invalid | ErrorKind::Busy)),
            };
            assert!(fine, "round {round}, {n}: {outcome:?}");
            if round / 3 % 3 < 2 && outcome.is_ok() {
                assert!(opens.contains(&(2 + n)), "round {round}: {opens:?} {outcomes:?}");
            }
        }
    }
}

/// An initialisation that dies after its key slots and is repeated: slots of the first try are
/// neither keys nor damage.
#[test]
fn slots_of_an_interrupted_init_are_no_damage() {
    let inner: Arc<dyn Storage> = Arc::new(MemoryStorage::default());
    let faulty = FaultStorage::new(inner.clone(), FaultPlan::default());
    faulty.set_plan(FaultPlan { fail_at: Some(1), sticky: true, ..FaultPlan::default() });
    assert!(init(&faulty, &SeededEntropy::new(1)).is_err());
    assert_eq!(inner.list(Folder::Slots).unwrap().len(), 1);
    init(&*inner, &SeededEntropy::new(2)).unwrap();
    assert_eq!(inner.list(Folder::Slots).unwrap().len(), 2);
    let repo = open_by(&inner, &key()).unwrap();
    let own = slots(&repo);
    assert_eq!(own.len(), 1);
    assert_eq!(open_by(&inner, &file_key(1)).unwrap_err(), ErrorKind::WrongKey);
    let recovery = Unlock::RecoveryKey(RecoveryKey::generate(&SeededEntropy::new(3)));
    assert_eq!(open_by(&inner, &recovery).unwrap_err(), ErrorKind::WrongKey);
    // Nor do they make the last slot one of two.
    let e = repo.remove_key(&own[0].id.to_string()).unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Invalid, "{e}");
}

#[test]
fn a_claim_is_held_by_one_and_outlives_nobody() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("repo");
    let a = LocalStorage::create_real(&root).unwrap();
    a.put(ObjectKey::Config, &[b"c"]).unwrap();
    let b = LocalStorage::open_real(&root).unwrap();
    // What a dead holder left is taken over.
    std::fs::write(root.join("tmp/claim-x"), b"").unwrap();
    let held = a.claim("x").unwrap();
    a.claim("y").unwrap();
    b.tidy().unwrap();
    assert!(root.join("tmp/claim-x").exists(), "a tidying leaves it alone");
    std::thread::scope(|s| {
        let waiting = s.spawn(|| b.claim("x").map(drop));
        std::thread::sleep(std::time::Duration::from_millis(100));
        assert!(!waiting.is_finished());
        drop(held);
        waiting.join().unwrap().unwrap();
    });
    assert_eq!(std::fs::read_dir(root.join("tmp")).unwrap().count(), 0);
    // Many threads: never two at once.
    let inside = std::sync::atomic::AtomicU32::new(0);
    use std::sync::atomic::Ordering::SeqCst;
    std::thread::scope(|s| {
        for storage in [&a, &b, &a, &b] {
            let inside = &inside;
            s.spawn(move || {
                for _ in 0..20 {
                    let claim = storage.claim("z").unwrap();
                    assert_eq!(inside.fetch_add(1, SeqCst), 0);
                    inside.fetch_sub(1, SeqCst);
                    drop(claim);
                }
            });
        }
    });
}

/// Power cuts at every change of a rotation on the simulated file system.
#[test]
fn a_power_cut_in_a_rotation_leaves_a_key_that_opens() {
    let seed = seed();
    let mut ended = false;
    for at in 0.. {
        let fs = SimFs::new();
        let local = LocalStorage::create(Path::new("/repo"), Arc::new(fs.clone()), "w").unwrap();
        let storage: Arc<dyn Storage> = Arc::new(local);
        init(&*storage, &SeededEntropy::new(seed)).unwrap();
        let repo = open_by(&storage, &key()).unwrap();
        fs.cut_power_at(fs.changes() + at);
        let outcome = repo.rotate_key("first key", &file_key(1), None, Timestamp::now());
        for state in 0..8 {
            let chance = SeededEntropy::new(seed ^ at ^ (state << 32));
            let after = Arc::new(fs.after_power_cut(&chance));
            let storage: Arc<dyn Storage> =
                Arc::new(LocalStorage::open(Path::new("/repo"), after, "r").unwrap());
            let opens = [key(), file_key(1)].map(|k| open_by(&storage, &k).is_ok());
            assert!(opens[0] || opens[1], "cut at {at}, state {state}");
            if outcome.is_ok() {
                assert_eq!(opens, [false, true], "cut at {at}, state {state}");
            }
        }
        if outcome.is_ok() {
            ended = true;
            break;
        }
    }
    assert!(ended);
}
