//! Restoring to qcow2, judged by QEMU's own tools.

use std::fs;
use std::os::unix::fs::MetadataExt;

use backstay_core::ErrorKind;
use backstay_core::restore::{self, RestorePlan, Target};

use crate::bench::{Bench, MIB, Watch, error_of, qemu_img};

#[test]
fn the_file_is_good_and_equal() {
    let bench = Bench::new();
    let size = 128 * MIB;
    let image = bench.image("a.img", size, &[(0, 5 * MIB), (64 * MIB, MIB), (size - 512, 512)]);
    let point = bench.backup(&[&image]).unwrap().point;
    let out = bench.at("out.qcow2");
    let watch = Watch::default();
    let plan = RestorePlan::new(Target::Qcow2File(out.clone()));
    let report = restore::disk(&bench.repo, &point, &point.disks[0], &plan, &watch).unwrap();
    qemu_img("check -q -f qcow2", &[&out]);
    qemu_img("compare -f raw -F qcow2", &[&image, &out]);
    let meta = fs::metadata(&out).unwrap();
    assert!(meta.len() < 8 * MIB, "holes take no clusters: {} bytes", meta.len());
    assert_eq!(meta.mode() & 0o777, 0o600);
    assert_eq!(report.data_bytes + report.hole_bytes, size);
    assert_eq!(watch.added.into_inner(), size);
    assert_eq!(bench.names(), ["a.img", "out.qcow2"]);

    let error = error_of(bench.restore(&point, 0, Target::Qcow2File(out.clone())));
    assert_eq!(error.kind(), ErrorKind::Exists);
    let plan = RestorePlan { overwrite: true, ..RestorePlan::new(Target::Qcow2File(out.clone())) };
    restore::disk(&bench.repo, &point, &point.disks[0], &plan, &Watch::default()).unwrap();
    qemu_img("compare -f raw -F qcow2", &[&image, &out]);
    assert_eq!(bench.names(), ["a.img", "out.qcow2"]);
}

#[test]
fn an_odd_size_is_rounded_up_to_a_sector() {
    let bench = Bench::new();
    let image = bench.image("a.img", MIB + 100, &[(0, MIB + 100)]);
    let point = bench.backup(&[&image]).unwrap().point;
    let out = bench.at("out.qcow2");
    bench.restore(&point, 0, Target::Qcow2File(out.clone())).unwrap();
    let mut want = fs::read(&image).unwrap();
    want.resize((1 << 20) + 512, 0);
    crate::bench::assert_same("odd", &crate::bench::guest_bytes("qcow2", &out), &want);
}

#[test]
fn damage_is_told_and_leaves_no_file() {
    let mut bench = Bench::new();
    let image = bench.image("a.img", 8 * MIB, &[(0, 8 * MIB)]);
    let point = bench.backup(&[&image]).unwrap().point;
    bench.damage();
    let error = error_of(bench.restore(&point, 0, Target::Qcow2File(bench.at("out.qcow2"))));
    assert_eq!(error.kind(), ErrorKind::Damaged, "{error}");
    assert!(error.to_string().contains("pack"), "{error}");
    assert_eq!(bench.names(), ["a.img"]);
}
