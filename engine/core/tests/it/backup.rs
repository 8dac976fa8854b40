//! What a backup stores, again and again.

use std::fs::{self, File};
use std::num::NonZeroUsize;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use backstay_core::ErrorKind;
use backstay_core::backup::{self, BackupPlan};
use backstay_core::source::SourceSpec;
use backstay_store::{ChunkSize, Consistency};

use crate::bench::{Bench, MIB, Watch, assert_same, error_of, random};

#[test]
fn an_unchanged_disk_costs_a_few_kib() {
    let bench = Bench::new();
    let image = bench.image("a.img", 64 * MIB, &[(0, 20 * MIB), (40 * MIB, 5 * MIB)]);
    let report = bench.backup(&[&image]).unwrap();
    let first = report.point;
    assert_eq!(report.new_chunks, 25 * 16);
    // Incompressible data, and little besides: image trees, footers, padding.
    assert!((25 * MIB..26 * MIB).contains(&first.stats.stored_bytes), "{:?}", first.stats);
    assert_eq!((first.stats.read_bytes, first.stats.hole_bytes), (25 * MIB, 39 * MIB));
    assert_eq!(first.parent, None);
    let report = bench.backup(&[&image]).unwrap();
    let second = report.point;
    assert_eq!(second.parent, Some(first.id));
    assert_eq!((second.stats.new_chunks, second.stats.new_bytes), (0, 0));
    assert!(second.stats.stored_bytes < 8 * 1024, "{:?}", second.stats);
    assert_eq!(report.known_chunks, 25 * 16);
    assert_eq!(second.disks[0].root, first.disks[0].root);
}

#[test]
fn changed_chunks_only() {
    let bench = Bench::new();
    let image = bench.image("a.img", 32 * MIB, &[(0, 16 * MIB)]);
    let first = bench.backup(&[&image]).unwrap().point;
    let before = fs::read(&image).unwrap();
    let file = File::options().write(true).open(&image).unwrap();
    // One byte; two bytes across a border; a chunk where a hole was; zeros over a whole chunk.
    file.write_all_at(&[before[100] ^ 1], 100).unwrap();
    file.write_all_at(&[!before[131_071], !before[131_072]], 131_071).unwrap();
    file.write_all_at(&random(9, 65_536), 20 * MIB).unwrap();
    file.write_all_at(&[0; 65_536], 5 * MIB).unwrap();
    let report = bench.backup(&[&image]).unwrap();
    assert_eq!(report.new_chunks, 4, "{report:?}");
    assert_eq!(report.zero_chunks, 1);
    assert_same("new", &bench.bytes(&report.point, 0), &fs::read(&image).unwrap());
    assert_same("old", &bench.bytes(&first, 0), &before);
}

#[test]
fn several_disks_are_one_point() {
    let bench = Bench::new();
    let a = bench.image("a.img", 3 * MIB, &[(0, MIB)]);
    let b = bench.image("b.img", 5 * MIB + 1, &[(MIB, MIB), (5 * MIB, 1)]);
    let named = SourceSpec { name: Some("data".into()), ..SourceSpec::new(&b) };
    let report = bench.backup_specs(vec![SourceSpec::new(&a), named, SourceSpec::new(&b)]).unwrap();
    let names: Vec<_> = report.point.disks.iter().map(|d| d.name.as_str()).collect();
    assert_eq!(names, ["disk0", "data", "disk1"]);
    assert_eq!(report.point.disks[0].source, a.display().to_string());
    for (disk, path) in [&a, &b, &b].into_iter().enumerate() {
        assert_same("disk", &bench.bytes(&report.point, disk), &fs::read(path).unwrap());
    }
    assert_eq!(bench.point_count(), 1);
    // The same disk twice in one point is stored once.
    assert_eq!((report.new_chunks, report.known_chunks), (16 + 17, 17));
}

#[test]
fn every_chunk_size_and_worker_count() {
    for (chunk, workers) in [(4096, 1), (65_536, 2), (4 << 20, 8)] {
        let bench = Bench::with_chunks(ChunkSize::new(chunk).unwrap());
        let image =
            bench.image("a.img", 21 * MIB + 513, &[(5000, 3 * MIB), (9 * MIB - 1, 4 * MIB)]);
        let plan = BackupPlan {
            workers: NonZeroUsize::new(workers),
            ..bench.plan(vec![SourceSpec::new(&image)])
        };
        let watch = Watch::default();
        let report = backup::run(&bench.repo, &plan, &watch).unwrap();
        assert_same("disk", &bench.bytes(&report.point, 0), &fs::read(&image).unwrap());
        let size = 21 * MIB + 513;
        assert_eq!(watch.total.load(Ordering::Relaxed), size);
        assert_eq!(watch.added.load(Ordering::Relaxed), size);
        assert_eq!(*watch.phases.lock().unwrap(), ["open", "read", "commit"]);
        assert_eq!(report.point.consistency, Consistency::Offline);
    }
}

#[test]
fn a_huge_sparse_disk_takes_no_time() {
    let bench = Bench::new();
    const TIB: u64 = 1 << 40;
    let image = bench.image("huge.raw", TIB, &[(0, MIB), (TIB / 2, MIB), (TIB - MIB, MIB)]);
    let started = std::time::Instant::now();
    let report = bench.backup(&[&image]).unwrap();
    assert_eq!(report.point.stats.read_bytes, 3 * MIB);
    assert_eq!(report.point.stats.hole_bytes, TIB - 3 * MIB);
    let back = bench.at("back.raw");
    let target = backstay_core::restore::Target::RawFile(back.clone());
    let restored = bench.restore(&report.point, 0, target).unwrap();
    assert_eq!((restored.data_bytes, restored.hole_bytes), (3 * MIB, TIB - 3 * MIB));
    for offset in [0, TIB / 2, TIB - MIB] {
        let read = |path| {
            let mut bytes = vec![0u8; 1 << 20];
            File::open(path).unwrap().read_exact_at(&mut bytes, offset).unwrap();
            bytes
        };
        assert_same("part", &read(&back), &read(&image));
    }
    assert!(started.elapsed().as_secs() < 30, "{:?}", started.elapsed());
}

#[test]
fn a_cancelled_backup_leaves_no_point() {
    let bench = Bench::new();
    let image = bench.image("a.img", 64 * MIB, &[(0, 64 * MIB)]);
    let watch = Arc::new(Watch::default());
    let cancel = Arc::clone(&watch);
    *watch.at_first_bytes.lock().unwrap() =
        Some(Box::new(move || cancel.cancel.store(true, Ordering::Relaxed)));
    let plan = bench.plan(vec![SourceSpec::new(&image)]);
    let error = error_of(backup::run(&bench.repo, &plan, &*watch));
    assert_eq!(error.kind(), ErrorKind::Cancelled, "{error}");
    assert!(watch.added.load(Ordering::Relaxed) < 32 * MIB, "it stopped soon");
    assert_eq!(bench.point_count(), 0);
    // What was stored by then is found by the next.
    let report = bench.backup(&[&image]).unwrap();
    assert_same("disk", &bench.bytes(&report.point, 0), &fs::read(&image).unwrap());
}

#[test]
fn names_a_machine_cannot_have() {
    let bench = Bench::new();
    let image = bench.image("a.img", MIB, &[]);
    for machine in ["", "a/b", "a@b", "..", "-x"] {
        let plan =
            BackupPlan { machine: machine.into(), ..bench.plan(vec![SourceSpec::new(&image)]) };
        let error = error_of(backup::run(&bench.repo, &plan, &Watch::default()));
        assert_eq!(error.kind(), ErrorKind::Invalid, "{machine:?}");
    }
    assert_eq!(bench.point_count(), 0);
}
