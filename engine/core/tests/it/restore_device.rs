//! Restoring onto block devices, and backing them up: loop devices, where they can be made.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::Command;

use backstay_core::ErrorKind;
use backstay_core::backup::{self, BackupPlan};
use backstay_core::restore::Target;
use backstay_core::source::SourceSpec;
use backstay_store::Consistency;
use rustix::fs::{Mode, OFlags};

use crate::bench::{Bench, MIB, Watch, assert_same, error_of};

/// A loop device, detached at the end.
struct Loop(PathBuf);

impl Loop {
    fn over(file: &std::path::Path) -> Option<Loop> {
        let output = Command::new("losetup").args(["--find", "--show"]).arg(file).output();
        match output {
            Ok(output) if output.status.success() => {
                let name = String::from_utf8(output.stdout).unwrap();
                Some(Loop(name.trim().into()))
            }
            other => {
                eprintln!("SKIPPED: no loop devices here (root and losetup are needed): {other:?}");
                None
            }
        }
    }

    fn bytes(&self, len: u64) -> Vec<u8> {
        let mut bytes = vec![0u8; usize::try_from(len).unwrap()];
        File::open(&self.0).unwrap().read_exact_at(&mut bytes, 0).unwrap();
        bytes
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        crate::bench::run("losetup", ["--detach".as_ref(), self.0.as_os_str()]);
    }
}

#[test]
fn a_dirty_device_becomes_the_disk() {
    let bench = Bench::new();
    let size = 24 * MIB;
    let image = bench.image("a.img", size, &[(MIB + 5, 3 * MIB), (size - 10, 10)]);
    let point = bench.backup(&[&image]).unwrap().point;
    // Larger than the disk and full of something else.
    let backing = bench.image("backing", 32 * MIB, &[(0, 32 * MIB)]);
    let before = fs::read(&backing).unwrap();
    let Some(device) = Loop::over(&backing) else { return };
    bench.restore(&point, 0, Target::BlockDevice(device.0.clone())).unwrap();
    let got = device.bytes(32 * MIB);
    let end = usize::try_from(size).unwrap();
    assert_same("disk", &got[..end], &fs::read(&image).unwrap());
    assert_same("rest", &got[end..], &before[end..]);
}

#[test]
fn a_device_that_is_too_small_or_used_is_left_alone() {
    let bench = Bench::new();
    let image = bench.image("a.img", 16 * MIB, &[(0, 16 * MIB)]);
    let point = bench.backup(&[&image]).unwrap().point;
    let backing = bench.image("backing", 8 * MIB, &[(0, 8 * MIB)]);
    let before = fs::read(&backing).unwrap();
    let Some(small) = Loop::over(&backing) else { return };
    let target = || Target::BlockDevice(small.0.clone());
    let error = error_of(bench.restore(&point, 0, target()));
    assert_eq!(error.kind(), ErrorKind::NoSpace, "{error}");
    // The claim that a mount makes.
    let flags = OFlags::RDONLY | OFlags::EXCL | OFlags::CLOEXEC;
    let held = rustix::fs::open(&small.0, flags, Mode::empty()).unwrap();
    let error = error_of(bench.restore(&point, 0, target()));
    assert_eq!(error.kind(), ErrorKind::InUse, "{error}");
    drop(held);
    assert_same("untouched", &small.bytes(8 * MIB), &before);
}

#[test]
fn a_mounted_device_is_refused() {
    let bench = Bench::new();
    let backing = bench.image("fs.img", 16 * MIB, &[]);
    crate::bench::run("mkfs.ext4", ["-q".as_ref(), backing.as_os_str()]);
    let Some(device) = Loop::over(&backing) else { return };
    let point = bench.backup(&[&backing]).unwrap().point;
    let place = bench.at("mnt");
    fs::create_dir(&place).unwrap();
    crate::bench::run("mount", [&device.0, &place]);
    let mounted = Mounted(place);
    let error = error_of(bench.restore(&point, 0, Target::BlockDevice(device.0.clone())));
    let backup = error_of(bench.backup(&[&device.0]));
    drop(mounted);
    assert_eq!(error.kind(), ErrorKind::InUse, "{error}");
    assert_eq!(backup.kind(), ErrorKind::InUse, "{backup}");
    bench.restore(&point, 0, Target::BlockDevice(device.0.clone())).unwrap();
}

struct Mounted(PathBuf);

impl Drop for Mounted {
    fn drop(&mut self) {
        crate::bench::run("umount", [&self.0]);
    }
}

#[test]
fn a_device_is_a_source() {
    let bench = Bench::new();
    let image = bench.image("a.img", 4 * MIB, &[(0, MIB), (3 * MIB, MIB)]);
    let Some(device) = Loop::over(&image) else { return };
    let point = bench.backup(&[&device.0]).unwrap().point;
    assert_eq!(point.consistency, Consistency::Offline);
    assert_same("device", &bench.bytes(&point, 0), &fs::read(&image).unwrap());
    // Held by somebody it is taken only where changes are allowed, and marked.
    let flags = OFlags::RDONLY | OFlags::EXCL | OFlags::CLOEXEC;
    let _held = rustix::fs::open(&device.0, flags, Mode::empty()).unwrap();
    let plan = bench.plan(vec![SourceSpec::new(&device.0)]);
    let error = error_of(backup::run(&bench.repo, &plan, &Watch::default()));
    assert_eq!(error.kind(), ErrorKind::InUse, "{error}");
    let plan = BackupPlan { allow_changed: true, ..plan };
    let point = backup::run(&bench.repo, &plan, &Watch::default()).unwrap().point;
    assert_eq!(point.consistency, Consistency::Changing);
}

#[test]
fn a_file_is_no_device() {
    let bench = Bench::new();
    let image = bench.image("a.img", MIB, &[(0, MIB)]);
    let point = bench.backup(&[&image]).unwrap().point;
    let error = error_of(bench.restore(&point, 0, Target::BlockDevice(image.clone())));
    assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
    let error = error_of(bench.restore(&point, 0, Target::BlockDevice(bench.at("none"))));
    assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
}
