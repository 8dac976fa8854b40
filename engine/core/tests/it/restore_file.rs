//! Restoring to raw files and pipes.

use std::fs;
use std::io::Write;
use std::num::NonZeroUsize;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use backstay_core::ErrorKind;
use backstay_core::restore::{self, RestorePlan, Target};

use crate::bench::{Bench, MIB, Watch, assert_same, error_of, is_root, names_in, run};

#[test]
fn a_raw_file_is_equal_and_sparse() {
    let bench = Bench::new();
    let image = bench.image("a.img", 64 * MIB + 7, &[(MIB, 9 * MIB), (64 * MIB, 7)]);
    let point = bench.backup(&[&image]).unwrap().point;
    for workers in [1, 3, 8] {
        let out = bench.at("out.raw");
        let plan = RestorePlan {
            workers: NonZeroUsize::new(workers),
            ..RestorePlan::new(Target::RawFile(out.clone()))
        };
        let watch = Watch::default();
        let report = restore::disk(&bench.repo, &point, &point.disks[0], &plan, &watch).unwrap();
        assert_same("disk", &fs::read(&out).unwrap(), &fs::read(&image).unwrap());
        let meta = fs::metadata(&out).unwrap();
        assert!(meta.blocks() * 512 < 11 * MIB, "holes stay holes: {} blocks", meta.blocks());
        assert_eq!(meta.mode() & 0o777, 0o600);
        assert_eq!(report.data_bytes + report.hole_bytes, 64 * MIB + 7);
        assert_eq!(watch.added.load(Ordering::Relaxed), 64 * MIB + 7);
        assert_eq!(bench.names(), ["a.img", "out.raw"]);
        fs::remove_file(out).unwrap();
    }
}

#[test]
fn what_exists_is_replaced_only_on_demand() {
    let bench = Bench::new();
    let image = bench.image("a.img", MIB, &[(0, MIB)]);
    let point = bench.backup(&[&image]).unwrap().point;
    let out = bench.at("out.raw");
    fs::write(&out, b"precious").unwrap();
    let error = error_of(bench.restore(&point, 0, Target::RawFile(out.clone())));
    assert_eq!(error.kind(), ErrorKind::Exists, "{error}");
    assert_eq!(fs::read(&out).unwrap(), b"precious");
    let plan = RestorePlan { overwrite: true, ..RestorePlan::new(Target::RawFile(out.clone())) };
    restore::disk(&bench.repo, &point, &point.disks[0], &plan, &Watch::default()).unwrap();
    assert_same("disk", &fs::read(&out).unwrap(), &fs::read(&image).unwrap());
    assert_eq!(bench.names(), ["a.img", "out.raw"]);
    let nowhere = bench.at("no/such/dir/out.raw");
    let error = error_of(bench.restore(&point, 0, Target::RawFile(nowhere)));
    assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
}

#[test]
fn damage_is_told_and_leaves_no_file() {
    let mut bench = Bench::new();
    let image = bench.image("a.img", 8 * MIB, &[(0, 8 * MIB)]);
    let point = bench.backup(&[&image]).unwrap().point;
    bench.damage();
    let old = bench.at("old.raw");
    fs::write(&old, b"precious").unwrap();
    for (target, overwrite) in [(bench.at("out.raw"), false), (old.clone(), true)] {
        let plan = RestorePlan { overwrite, ..RestorePlan::new(Target::RawFile(target)) };
        let result = restore::disk(&bench.repo, &point, &point.disks[0], &plan, &Watch::default());
        let error = error_of(result);
        assert_eq!(error.kind(), ErrorKind::Damaged, "{error}");
        let text = error.to_string();
        assert!(text.contains("disk disk0 cannot be read at byte"), "{text}");
        assert!(text.contains("pack"), "{text}");
    }
    assert_eq!(bench.names(), ["a.img", "old.raw"]);
    assert_eq!(fs::read(old).unwrap(), b"precious");
    // A pipe gets an error too, and no wrong byte before it.
    let mut out = Vec::new();
    let error = error_of(restore::to_writer(
        &bench.repo,
        &point.disks[0],
        &mut out,
        None,
        &Watch::default(),
    ));
    assert_eq!(error.kind(), ErrorKind::Damaged, "{error}");
    assert!(out.len() < 8 << 20);
    assert_same("front", &out, &fs::read(&image).unwrap()[..out.len()]);
}

#[test]
fn a_cancelled_restore_leaves_nothing() {
    let bench = Bench::new();
    let image = bench.image("a.img", 64 * MIB, &[(0, 64 * MIB)]);
    let point = bench.backup(&[&image]).unwrap().point;
    for target in [Target::RawFile(bench.at("out.raw")), Target::Qcow2File(bench.at("out.qcow2"))] {
        let watch = Arc::new(Watch::default());
        watch.cancel.store(true, Ordering::Relaxed);
        let plan = RestorePlan::new(target);
        let result = restore::disk(&bench.repo, &point, &point.disks[0], &plan, &*watch);
        assert_eq!(error_of(result).kind(), ErrorKind::Cancelled);
        assert_eq!(bench.names(), ["a.img"]);
    }
}

#[test]
fn a_pipe_gets_every_byte_in_order() {
    let bench = Bench::new();
    let image = bench.image("a.img", 40 * MIB + 3, &[(0, 9 * MIB), (30 * MIB, 10 * MIB + 3)]);
    let point = bench.backup(&[&image]).unwrap().point;
    for workers in [1, 2, 8] {
        let mut out = Vec::new();
        let workers = NonZeroUsize::new(workers);
        let disk = &point.disks[0];
        restore::to_writer(&bench.repo, disk, &mut out, workers, &Watch::default()).unwrap();
        assert_same("pipe", &out, &fs::read(&image).unwrap());
    }
}

/// A reader that goes away after some bytes.
struct Closing(usize);

impl Write for Closing {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if self.0 < bytes.len() {
            return Err(std::io::ErrorKind::BrokenPipe.into());
        }
        self.0 -= bytes.len();
        Ok(bytes.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_closed_pipe_ends_the_restore() {
    let bench = Bench::new();
    let image = bench.image("a.img", 64 * MIB, &[(0, 64 * MIB)]);
    let point = bench.backup(&[&image]).unwrap().point;
    let mut out = Closing(10 << 20);
    let workers = NonZeroUsize::new(8);
    let result =
        restore::to_writer(&bench.repo, &point.disks[0], &mut out, workers, &Watch::default());
    let error = error_of(result);
    assert_eq!(error.kind(), ErrorKind::Io);
    assert!(error.to_string().contains("cannot write to the output"), "{error}");
}

/// A small tmpfs, unmounted at the end.
struct Tmpfs(tempfile::TempDir);

impl Tmpfs {
    fn new(size: &str) -> Option<Tmpfs> {
        if !is_root() {
            eprintln!("SKIPPED: a full disk needs root to mount a small tmpfs");
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        let options = format!("size={size}");
        run(
            "mount",
            ["-t", "tmpfs", "-o", &options, "backstay-test", dir.path().to_str().unwrap()],
        );
        Some(Tmpfs(dir))
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        run("umount", [self.0.path()]);
    }
}

#[test]
fn a_full_disk_leaves_no_half_file() {
    let bench = Bench::new();
    let image = bench.image("a.img", 32 * MIB, &[(0, 32 * MIB)]);
    let point = bench.backup(&[&image]).unwrap().point;
    let Some(small) = Tmpfs::new("8m") else { return };
    let old = small.0.path().join("old");
    fs::write(&old, b"precious").unwrap();
    for (name, overwrite) in [("out.raw", false), ("old", true)] {
        let target = Target::RawFile(small.0.path().join(name));
        let plan = RestorePlan { overwrite, ..RestorePlan::new(target) };
        let result = restore::disk(&bench.repo, &point, &point.disks[0], &plan, &Watch::default());
        let error = error_of(result);
        assert_eq!(error.kind(), ErrorKind::NoSpace, "{error}");
        assert_eq!(names_in(small.0.path()), ["old"]);
    }
    let target = Target::Qcow2File(small.0.path().join("out.qcow2"));
    let error = error_of(bench.restore(&point, 0, target));
    assert_eq!(error.kind(), ErrorKind::NoSpace, "{error}");
    assert_eq!(names_in(small.0.path()), ["old"]);
    assert_eq!(fs::read(&old).unwrap(), b"precious");
}
