//! Backup, restore, check and removing keys on a repository in a bucket.

use std::sync::Arc;

use backstay_store::testkit::SeededEntropy;
use backstay_store::{CheckOptions, NoProgress, S3Storage};
use backstay_tests::s3_server::{Bucket, Kind};

use crate::support::{Rig, back_up, hasty, image, init, open, read, rig};

fn cycle(rig: &Rig) {
    let entropy = Arc::new(SeededEntropy::new(7));
    let storage = S3Storage::create(rig.location("repo").s3().unwrap(), hasty()).unwrap();
    init(&storage, &entropy).unwrap();
    let again = S3Storage::create(rig.location("repo").s3().unwrap(), hasty()).unwrap_err();
    assert_eq!(again.kind(), backstay_store::ErrorKind::Exists);
    let fresh = || {
        let storage = S3Storage::new(rig.location("repo").s3().unwrap(), hasty()).unwrap();
        open(Arc::new(storage), &entropy).unwrap()
    };
    let first = image(1, 40 << 20);
    let point = back_up(&fresh(), "web01", &first).unwrap();
    let mut second = first.clone();
    second[1 << 20..(1 << 20) + 50_000].fill(7);
    let later = back_up(&fresh(), "web01", &second).unwrap();
    assert!(later.stats.stored_bytes < 1 << 20, "only what changed is stored");
    let repo = fresh();
    assert!(read(&repo, &point).unwrap() == first);
    assert!(read(&repo, &later).unwrap() == second);
    let report = repo.check(&CheckOptions { read_data: true }, &NoProgress).unwrap();
    assert!(report.damage.is_empty(), "{:?}", report.damage);
    assert_eq!(report.points, 2);
}

#[test]
fn a_whole_cycle_on_moto() {
    let Some(rig) = rig(Kind::Moto, Bucket::Plain) else { return };
    cycle(&rig);
}

#[test]
fn a_whole_cycle_on_seaweedfs() {
    let Some(rig) = rig(Kind::Seaweed, Bucket::Plain) else { return };
    cycle(&rig);
}

/// Two backups at once, from two openings of the repository: both are whole, and each sees the
/// other's afterwards.
#[test]
fn two_writers_at_once() {
    let Some(rig) = rig(Kind::Seaweed, Bucket::Plain) else { return };
    let entropy = Arc::new(SeededEntropy::new(3));
    init(&rig.storage("two"), &entropy).unwrap();
    let images = [image(10, 8 << 20), image(11, 8 << 20)];
    let points: Vec<_> = std::thread::scope(|scope| {
        let work = |n: usize| {
            let repo = open(Arc::new(rig.storage("two")), &entropy).unwrap();
            back_up(&repo, &format!("vm{n}"), &images[n]).unwrap()
        };
        let threads: Vec<_> = (0..2).map(|n| scope.spawn(move || work(n))).collect();
        threads.into_iter().map(|t| t.join().unwrap()).collect()
    });
    let repo = open(Arc::new(rig.storage("two")), &entropy).unwrap();
    assert_eq!(repo.points().unwrap().points.len(), 2);
    for (point, image) in points.iter().zip(&images) {
        assert!(read(&repo, point).unwrap() == *image);
    }
}
