//! What two points differ in.

use std::fs::File;
use std::os::unix::fs::FileExt;

use backstay_core::ErrorKind;
use backstay_core::compare::{self, PointChange};
use backstay_core::source::SourceSpec;
use backstay_store::{DiffExtent, DiffKind, RecoveryPoint};

use crate::bench::{Bench, MIB, Watch, error_of, random};

fn diff(bench: &Bench, a: &RecoveryPoint, b: &RecoveryPoint) -> PointChange {
    compare::points(&bench.repo, a, b, None, &Watch::default()).unwrap()
}

#[test]
fn kinds_places_and_sums() {
    let bench = Bench::new();
    let image = bench.image("a.img", 32 * MIB, &[(0, 8 * MIB)]);
    let first = bench.backup(&[&image]).unwrap().point;
    let same = bench.backup(&[&image]).unwrap().point;
    assert!(diff(&bench, &first, &same).is_empty());

    let file = File::options().write(true).open(&image).unwrap();
    file.write_all_at(&random(3, 3 * 65_536), MIB).unwrap();
    file.write_all_at(&[0; 65_536], 4 * MIB).unwrap();
    file.write_all_at(&random(4, 10), 20 * MIB).unwrap();
    file.set_len(33 * MIB).unwrap();
    let last = bench.backup(&[&image]).unwrap().point;
    let change = diff(&bench, &first, &last);
    let disk = &change.disks[0];
    let extent = |offset_bytes, chunks: u64, kind| DiffExtent {
        offset_bytes,
        len_bytes: chunks << 16,
        kind,
    };
    assert_eq!(
        disk.extents,
        [
            extent(MIB, 3, DiffKind::Changed),
            extent(4 * MIB, 1, DiffKind::Removed),
            extent(20 * MIB, 1, DiffKind::Added),
        ]
    );
    assert_eq!(disk.size_bytes, (32 * MIB, 33 * MIB));
    let sums = (disk.changed_bytes, disk.added_bytes, disk.removed_bytes);
    assert_eq!(sums, (3 << 16, 1 << 16, 1 << 16));
    assert!(!change.is_empty() && !disk.is_empty());
    // The other way round what was added was removed.
    let back = diff(&bench, &last, &first);
    assert_eq!((back.disks[0].added_bytes, back.disks[0].removed_bytes), (1 << 16, 1 << 16));
}

#[test]
fn disks_that_come_and_go() {
    let bench = Bench::new();
    let image = bench.image("a.img", MIB, &[(0, MIB)]);
    let named = |name: &str| SourceSpec { name: Some(name.into()), ..SourceSpec::new(&image) };
    let first = bench.backup_specs(vec![named("root"), named("old")]).unwrap().point;
    let second = bench.backup_specs(vec![named("new"), named("root")]).unwrap().point;
    let change = diff(&bench, &first, &second);
    assert_eq!(change.disks.len(), 1);
    assert!(change.disks[0].is_empty() && change.disks[0].name == "root");
    assert_eq!(
        (change.only_in_first.as_slice(), change.only_in_second.as_slice()),
        (["old".to_owned()].as_slice(), ["new".to_owned()].as_slice())
    );
    assert!(!change.is_empty());
    let only = |name| compare::points(&bench.repo, &first, &second, Some(name), &Watch::default());
    assert!(only("root").unwrap().is_empty());
    assert_eq!(error_of(only("old")).kind(), ErrorKind::NotFound);
}
