//! Every request of a backup and of a restore meets every fault in turn: success or a clean error,
//! never a wrong byte, never an acknowledged point lost.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use backstay_store::testkit::SeededEntropy;
use backstay_store::{
    Error, ErrorKind, Folder, ObjectKey, PackId, RecoveryPoint, Repository, S3Options, S3Storage,
    Storage,
};
use backstay_tests::s3_proxy::{Fault, Seen};
use backstay_tests::s3_server::{Bucket, Kind};

use crate::support::{Rig, back_up, hasty, image, init, open, read, rig};

const LEN: usize = 300 * 1024;

/// Faults that pass: trying again is enough.
const PASSING: [Fault; 7] = [
    Fault::Refuse(503, "SlowDown"),
    Fault::Refuse(500, "InternalError"),
    Fault::LoseAnswer,
    Fault::Hang,
    Fault::Reset,
    Fault::ResetAfter,
    Fault::Truncate(3),
];

/// Silence is given up soon here, or the tests would wait most of their time.
fn impatient() -> S3Options {
    S3Options {
        tries: 5,
        request: Duration::from_millis(1500),
        silence: Duration::from_millis(1000),
        ..hasty()
    }
}

struct Scene<'a> {
    rig: &'a Rig,
    prefix: String,
    entropy: Arc<SeededEntropy>,
    first: Vec<u8>,
    kept: RecoveryPoint,
}

impl Scene<'_> {
    /// A repository of its own with one point.
    fn new(rig: &Rig, n: u64) -> Scene<'_> {
        let (entropy, prefix) = (Arc::new(SeededEntropy::new(n)), format!("f{n}"));
        init(&rig.storage(&prefix), &entropy).unwrap();
        let first = image(n, LEN);
        let repo = open(Arc::new(rig.storage(&prefix)), &entropy).unwrap();
        let kept = back_up(&repo, "web01", &first).unwrap();
        Scene { rig, prefix, entropy, first, kept }
    }

    fn storage(&self) -> Arc<S3Storage> {
        let location = self.rig.location(&self.prefix);
        Arc::new(S3Storage::new(location.s3().unwrap(), impatient()).unwrap())
    }

    fn repository(&self) -> Repository {
        open(self.storage(), &self.entropy).unwrap()
    }

    /// Meets the `at`-th request from now on with `fault`, once or for ever.
    fn plan(&self, at: u64, fault: Fault, ever: bool) {
        self.rig.proxy.plan(move |seen: &Seen| {
            let hit = seen.number == at || (ever && seen.number > at);
            if hit { fault.clone() } else { Fault::None }
        });
    }

    fn no_faults(&self) {
        self.rig.proxy.plan(|_| Fault::None);
    }

    /// Backs up while the `at`-th request meets `fault`; whether it did, and what came of it.
    /// What was there before is there afterwards.
    fn back_up_with(
        &self,
        at: u64,
        fault: &Fault,
        ever: bool,
        image: &[u8],
    ) -> (bool, Result<RecoveryPoint, Error>) {
        let repo = self.repository();
        self.plan(at, fault.clone(), ever);
        let outcome = back_up(&repo, "web02", image);
        let met = self.rig.proxy.requests() > at;
        self.no_faults();
        let what = format!("{fault:?} at request {at}, for ever: {ever}");
        let fresh = self.repository();
        assert!(read(&fresh, &self.kept).unwrap() == self.first, "{what}");
        if let Ok(point) = &outcome {
            assert!(read(&fresh, point).unwrap() == image, "{what}");
        }
        let points = fresh.points().unwrap();
        assert!(points.damaged.is_empty(), "{what}");
        // A point whose acknowledgement was lost may be there; then it is whole.
        for point in points.points.iter().filter(|p| p.machine == "web02") {
            read(&fresh, point).unwrap();
        }
        (met, outcome)
    }
}

/// Every request of a backup meets the fault once: the backup succeeds all the same.
fn passes(fault: &Fault) {
    let Some(rig) = rig(Kind::Moto, Bucket::Plain) else { return };
    for at in 0.. {
        // A repository each time, so that each backup makes the same requests.
        let scene = Scene::new(&rig, at);
        let (met, outcome) = scene.back_up_with(at, fault, false, &image(1000 + at, LEN));
        outcome.unwrap_or_else(|e| panic!("{fault:?} at request {at}: {e}"));
        let points = scene.repository().points().unwrap().points.len();
        assert_eq!(points, 2, "none lost, none doubled");
        if !met {
            assert!(at > 8, "a backup makes {at} requests");
            break;
        }
    }
}

#[test]
fn every_request_of_a_backup_is_put_off_once() {
    passes(&Fault::Refuse(503, "SlowDown"));
}

#[test]
fn every_request_of_a_backup_meets_an_internal_error_once() {
    passes(&Fault::Refuse(500, "InternalError"));
}

#[test]
fn every_answer_of_a_backup_is_lost_once() {
    passes(&Fault::LoseAnswer);
}

#[test]
fn every_request_of_a_backup_is_lost_once() {
    passes(&Fault::Hang);
}

#[test]
fn every_connection_of_a_backup_is_reset_once_before_the_request() {
    passes(&Fault::Reset);
}

#[test]
fn every_connection_of_a_backup_is_reset_once_after_the_request() {
    passes(&Fault::ResetAfter);
}

#[test]
fn every_answer_of_a_backup_breaks_off_once() {
    passes(&Fault::Truncate(3));
}

/// From every request on, everything fails in this way: an error of this kind, or all was done.
fn stays(fault: &Fault, kind: ErrorKind) {
    let Some(rig) = rig(Kind::Moto, Bucket::Plain) else { return };
    for at in 0.. {
        let scene = Scene::new(&rig, at);
        let disk = image(7000 + at, LEN);
        match scene.back_up_with(at, fault, true, &disk) {
            (true, Err(e)) => assert_eq!(e.kind(), kind, "{fault:?} from request {at} on: {e}"),
            // Only the session could not be taken away, after the point was safe.
            (true, Ok(point)) => {
                scene.no_faults();
                let kept = read(&scene.repository(), &point).unwrap();
                assert!(kept == disk, "{fault:?} from request {at} on");
            }
            (false, outcome) => {
                outcome.unwrap();
                break;
            }
        }
    }
}

#[test]
fn keys_are_withdrawn_during_a_backup() {
    stays(&Fault::Refuse(403, "AccessDenied"), ErrorKind::Denied);
}

#[test]
fn the_storage_is_full_during_a_backup() {
    stays(&Fault::Refuse(507, "InsufficientStorage"), ErrorKind::NoSpace);
}

#[test]
fn the_storage_puts_off_for_good_during_a_backup() {
    stays(&Fault::Refuse(503, "SlowDown"), ErrorKind::Busy);
}

#[test]
fn the_network_fails_for_good_during_a_backup() {
    stays(&Fault::Reset, ErrorKind::Io);
}

#[test]
fn answers_are_lost_for_good_during_a_backup() {
    stays(&Fault::ResetAfter, ErrorKind::Io);
}

#[test]
fn a_fault_at_every_request_of_a_restore() {
    let Some(rig) = rig(Kind::Moto, Bucket::Plain) else { return };
    let scene = Scene::new(&rig, 0);
    let faults = PASSING.iter().cloned().chain([Fault::Flip(11), Fault::Flip(5000)]);
    for fault in faults {
        for at in 0.. {
            scene.plan(at, fault.clone(), false);
            let outcome =
                open(scene.storage(), &scene.entropy).and_then(|repo| read(&repo, &scene.kept));
            let met = scene.rig.proxy.requests() > at;
            scene.no_faults();
            let what = format!("{fault:?} at request {at}");
            match outcome {
                Ok(bytes) => assert!(bytes == scene.first, "{what}"),
                // Only changed bytes may end a restore: nobody but the sender can mend them.
                Err(e) => assert!(matches!(fault, Fault::Flip(_)), "{what}: {e}"),
            }
            if !met {
                break;
            }
        }
    }
}

/// The answer to a creation is lost: whoever tries again finds his own object and has succeeded;
/// whoever finds another's has not.
#[test]
fn a_lost_answer_is_settled_by_what_is_there() {
    let Some(rig) = rig(Kind::Moto, Bucket::Plain) else { return };
    let storage = S3Storage::new(rig.location("l").s3().unwrap(), impatient()).unwrap();
    let pack = |n: u8| ObjectKey::Pack(PackId::from_bytes([n; 16]));
    storage.put(pack(0), &[b"x"]).unwrap();
    for (n, fault) in [(1, Fault::LoseAnswer), (2, Fault::ResetAfter)] {
        let lost = fault.clone();
        rig.proxy.plan(move |s: &Seen| if s.number == 0 { lost.clone() } else { Fault::None });
        storage.put(pack(n), &[&vec![n; 100_000]]).unwrap();
        assert!(rig.proxy.requests() >= 3, "tried again, and looked");
        assert_eq!(storage.get(pack(n), 1 << 20).unwrap(), vec![n; 100_000]);
        // Our request never arrived, and meanwhile somebody else took the name.
        let theirs = S3Storage::new(rig.location("l").s3().unwrap(), hasty()).unwrap();
        let taken = Arc::new(AtomicBool::new(false));
        let key = pack(n + 10);
        rig.proxy.plan({
            let taken = taken.clone();
            let address = rig.server.address();
            move |seen: &Seen| {
                if seen.method == "PUT" && !taken.swap(true, Ordering::SeqCst) {
                    let target = format!("/backups/l/{key}");
                    backstay_tests::s3_server::ask(address, "PUT", &target, "", b"theirs").unwrap();
                    return Fault::Reset;
                }
                Fault::None
            }
        });
        let e = storage.put(key, &[&vec![n; 100_000]]).unwrap_err();
        assert_eq!(e.kind(), ErrorKind::Exists, "{fault:?}: {e}");
        assert_eq!(theirs.get(key, 100).unwrap(), b"theirs");
    }
    assert_eq!(storage.list(Folder::Packs).unwrap().len(), 5);
}

/// A server that sends a byte now and then holds nobody longer than the stated deadline.
#[test]
fn a_trickle_ends_at_the_deadline() {
    let Some(rig) = rig(Kind::Moto, Bucket::Plain) else { return };
    let options = S3Options { tries: 2, request: Duration::from_secs(1), ..impatient() };
    let storage = S3Storage::new(rig.location("t").s3().unwrap(), options).unwrap();
    let key = ObjectKey::Pack(PackId::from_bytes([1; 16]));
    storage.put(key, &[&[1; 50_000]]).unwrap();
    rig.proxy.plan(|_| Fault::Trickle(Duration::from_millis(50)));
    let start = Instant::now();
    let mut buf = vec![0; 40_000];
    let e = storage.read_at(key, 0, &mut buf).unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Io, "{e}");
    let took = start.elapsed();
    assert!(took < Duration::from_secs(15), "{took:?}");
    // One trickle is got over.
    rig.proxy.plan(|s: &Seen| match s.number {
        0 => Fault::Trickle(Duration::from_millis(50)),
        _ => Fault::None,
    });
    storage.read_at(key, 0, &mut buf).unwrap();
    assert!(buf.iter().all(|b| *b == 1));
}

/// A range that is shorter than asked for, said to be whole, is never taken for the data.
#[test]
fn an_object_that_was_cut_is_damaged_and_not_tried_again() {
    let Some(rig) = rig(Kind::Moto, Bucket::Plain) else { return };
    let storage = rig.storage("c");
    let key = ObjectKey::Pack(PackId::from_bytes([1; 16]));
    rig.server.ask("PUT", &format!("/backups/c/{key}"), "", &[7; 1000]).unwrap();
    for (offset, len) in [(0u64, 1001usize), (990, 20), (1000, 1), (5000, 10)] {
        rig.proxy.plan(|_| Fault::None);
        let e = storage.read_at(key, offset, &mut vec![0; len]).unwrap_err();
        assert_eq!(e.kind(), ErrorKind::Damaged, "{offset}+{len}: {e}");
        assert_eq!(rig.proxy.requests(), 1);
    }
}
