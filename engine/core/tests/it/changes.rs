//! Backups that are told what changed: only that is read, and nothing is believed that cannot be.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;

use backstay_core::backup::{self, BackupPlan, BackupReport, ChangeMap, MapUse};
use backstay_core::ranges::Ranges;
use backstay_core::source::SourceSpec;
use backstay_store::{PointId, RecoveryPoint};

use crate::bench::{Bench, MIB, Watch, assert_same, open_repo, random};

const TIB: u64 = 1 << 40;

fn map(since: &RecoveryPoint, changed: &[(u64, u64)]) -> Option<ChangeMap> {
    let changed = Ranges::from_any(changed.iter().copied()).unwrap();
    Some(ChangeMap { since: since.id, changed })
}

fn spec(image: &Path, changes: Option<ChangeMap>) -> SourceSpec {
    SourceSpec { changes, ..SourceSpec::new(image) }
}

fn write(image: &Path, offset: u64, bytes: &[u8]) {
    File::options().write(true).open(image).unwrap().write_all_at(bytes, offset).unwrap();
}

/// Backs up with a map, and says what became of it.
fn with_map(bench: &Bench, image: &Path, map: Option<ChangeMap>) -> (BackupReport, MapUse) {
    let report = bench.backup_specs(vec![spec(image, map)]).unwrap();
    let used = report.maps[0].clone();
    (report, used)
}

/// What the map was refused for; the disk must be right all the same.
#[track_caller]
fn refused(bench: &Bench, image: &Path, map: Option<ChangeMap>) -> String {
    let watch = Watch::default();
    let report = backup::run(&bench.repo, &bench.plan(vec![spec(image, map)]), &watch).unwrap();
    let MapUse::Refused(why) = &report.maps[0] else { panic!("{:?}", report.maps) };
    assert_eq!(report.kept_bytes, 0);
    assert_same("disk", &bench.bytes(&report.point, 0), &fs::read(image).unwrap());
    let problems = watch.problems.lock().unwrap();
    assert!(problems.iter().any(|p| p.contains(why.as_str())), "the user is told: {problems:?}");
    why.clone()
}

#[test]
fn only_what_changed_is_read_however_large_the_disk() {
    for size in [64 * MIB + 77, TIB, 10 * TIB + 513] {
        let bench = Bench::new();
        let data = [(0, 3 * MIB), (size / 2, 3 * MIB), (size - MIB, MIB)];
        let image = bench.image("a.raw", size, &data);
        let first = bench.backup(&[&image]).unwrap().point;
        // Inside data, across two chunks, in a hole, zeros over a chunk, and at the very end.
        let at = size / 2;
        let changes = [
            (5, 1u64),
            (MIB - 3, 6),
            (size / 4, 9000),
            (at - at % 65_536 + MIB, 65_536),
            (size - 9, 9),
        ];
        for (i, (offset, len)) in changes.into_iter().enumerate() {
            let bytes = if i == 3 { vec![0; 65_536] } else { random(i as u64 + 40, len) };
            write(&image, offset, &bytes);
        }
        let (report, used) = with_map(&bench, &image, map(&first, &changes));
        assert_eq!(used, MapUse::Used);
        let stats = report.point.stats;
        assert!(stats.read_bytes <= 7 * 65_536, "{stats:?}");
        assert_eq!(report.kept_bytes + stats.read_bytes + stats.hole_bytes, size);
        let plain = bench.backup(&[&image]).unwrap().point;
        assert_eq!(report.point.disks[0].root, plain.disks[0].root, "as a full read at {size}");
        // Nothing changed: nothing is read.
        let (report, used) = with_map(&bench, &image, map(&report.point, &[]));
        assert_eq!((used, report.kept_bytes), (MapUse::Used, size));
        let stats = report.point.stats;
        assert_eq!((stats.read_bytes, stats.hole_bytes, stats.stored_bytes), (0, 0, 0));
        assert_eq!(report.point.disks[0].root, plain.disks[0].root);
    }
}

#[test]
fn the_map_is_taken_at_its_word() {
    let bench = Bench::new();
    let image = bench.image("a.raw", 8 * MIB, &[(0, 8 * MIB)]);
    let first = bench.backup(&[&image]).unwrap().point;
    let before = fs::read(&image).unwrap();
    write(&image, MIB, &[0x55; 4096]);
    let (report, _) = with_map(&bench, &image, map(&first, &[(4 * MIB, 1)]));
    assert_eq!(report.point.stats.read_bytes, 65_536);
    assert_same("what it leaves out is not read", &bench.bytes(&report.point, 0), &before);
}

#[test]
fn a_disk_that_grew_is_read_from_its_old_end_on() {
    let bench = Bench::new();
    let old = 5 * MIB + 1000;
    let image = bench.image("a.raw", old, &[(0, old)]);
    let first = bench.backup(&[&image]).unwrap().point;
    File::options().write(true).open(&image).unwrap().set_len(600 * MIB).unwrap();
    write(&image, old, &random(3, 500_000));
    write(&image, 599 * MIB, &random(4, 5));
    let (report, used) = with_map(&bench, &image, map(&first, &[]));
    assert_eq!((used, report.kept_bytes), (MapUse::Used, 5 * MIB));
    assert_same("disk", &bench.bytes(&report.point, 0), &fs::read(&image).unwrap());
}

#[test]
fn maps_that_cannot_be_relied_upon_are_refused_and_the_disk_is_read() {
    let bench = Bench::new();
    let image = bench.image("a.raw", 3 * MIB, &[(0, 3 * MIB)]);
    let first = bench.backup(&[&image]).unwrap().point;
    write(&image, MIB, b"changed");

    let strange = RecoveryPoint { id: PointId::from_bytes([9; 16]), ..first.clone() };
    let why = refused(&bench, &image, map(&strange, &[]));
    assert!(why.contains(&strange.id.to_string()), "{why}");

    let other = BackupPlan { machine: "other".into(), ..bench.plan(vec![SourceSpec::new(&image)]) };
    let other = backup::run(&bench.repo, &other, &Watch::default()).unwrap().point;
    assert!(refused(&bench, &image, map(&other, &[])).contains(&other.id.to_string()));

    let spec = SourceSpec { name: Some("data".into()), ..SourceSpec::new(&image) };
    let named = bench.backup_specs(vec![spec]).unwrap().point;
    assert!(refused(&bench, &image, map(&named, &[])).contains("no disk disk0"));

    File::options().write(true).open(&image).unwrap().set_len(2 * MIB).unwrap();
    assert!(refused(&bench, &image, map(&first, &[])).contains("shrank"));
}

#[test]
fn a_point_made_of_a_changing_disk_is_no_ground_for_a_map() {
    let bench = Bench::new();
    let image = bench.image("a.raw", 3 * MIB, &[(0, 3 * MIB)]);
    let path = image.clone();
    let plan = BackupPlan { allow_changed: true, ..bench.plan(vec![SourceSpec::new(&image)]) };
    let watch = Watch::then(move || write(&path, 2 * MIB, b"meanwhile"));
    let first = backup::run(&bench.repo, &plan, &watch).unwrap().point;
    assert!(refused(&bench, &image, map(&first, &[])).contains("changing"));
}

#[test]
fn a_map_may_go_back_further_than_the_newest_point() {
    let bench = Bench::new();
    let image = bench.image("a.raw", 8 * MIB, &[(0, 8 * MIB)]);
    let first = bench.backup(&[&image]).unwrap().point;
    write(&image, MIB, &[1; 100]);
    let second = bench.backup(&[&image]).unwrap().point;
    write(&image, 3 * MIB, &[2; 100]);
    let changes = [(MIB, 100), (3 * MIB, 100)];
    let (report, used) = with_map(&bench, &image, map(&first, &changes));
    assert_eq!((used, report.point.stats.read_bytes), (MapUse::Used, 2 * 65_536));
    assert_eq!(report.point.parent, Some(second.id));
    assert_same("disk", &bench.bytes(&report.point, 0), &fs::read(&image).unwrap());
}

#[test]
fn each_disk_has_its_own_map() {
    let bench = Bench::new();
    let images: Vec<_> = ["a.raw", "b.raw", "c.raw"]
        .iter()
        .map(|name| bench.image(name, 4 * MIB, &[(0, 4 * MIB)]))
        .collect();
    let all = |maps: [Option<ChangeMap>; 3]| {
        let specs = images.iter().zip(maps).map(|(image, map)| spec(image, map)).collect();
        bench.backup_specs(specs).unwrap()
    };
    let first = all([None, None, None]).point;
    let second = all([None, None, None]).point;
    for image in &images {
        write(image, 2 * MIB, b"later");
    }
    let changed = [(2 * MIB, 5)];
    let report = all([map(&second, &changed), None, map(&first, &changed)]);
    let MapUse::Refused(why) = &report.maps[2] else { panic!("{:?}", report.maps) };
    assert!(why.contains(&second.id.to_string()), "{why}");
    assert_eq!(report.maps[..2], [MapUse::Used, MapUse::NotGiven]);
    assert_eq!(report.point.stats.read_bytes, 65_536 + 8 * MIB);
    for (i, image) in images.iter().enumerate() {
        assert_same("disk", &bench.bytes(&report.point, i), &fs::read(image).unwrap());
    }
}

#[test]
fn a_point_of_another_host_is_looked_through_before_it_is_built_upon() {
    let mut bench = Bench::new();
    let image = bench.image("a.raw", 8 * MIB, &[(0, 8 * MIB)]);
    let first = bench.backup(&[&image]).unwrap().point;
    // Without the index it is as if another host had made the point.
    fs::remove_dir_all(bench.at("cache")).unwrap();
    bench.repo = open_repo(bench.dir.path());
    write(&image, MIB, b"changed");
    let watch = Watch::default();
    let plan = bench.plan(vec![spec(&image, map(&first, &[(MIB, 7)]))]);
    let report = backup::run(&bench.repo, &plan, &watch).unwrap();
    assert_eq!((report.maps, report.kept_bytes), (vec![MapUse::Used], 8 * MIB - 65_536));
    assert_eq!(*watch.phases.lock().unwrap(), ["open", "base", "read", "commit"]);
    assert_same("disk", &bench.bytes(&report.point, 0), &fs::read(&image).unwrap());
}

#[test]
fn a_point_that_lost_a_pack_is_not_built_upon() {
    let bench = Bench::new();
    let image = bench.image("a.raw", 8 * MIB, &[(0, 8 * MIB)]);
    let first = bench.backup(&[&image]).unwrap().point;
    fs::remove_file(bench.largest_pack()).unwrap();
    let why = refused(&bench, &image, map(&first, &[]));
    assert!(why.contains("damaged"), "{why}");
}
