//! Images that are written to while they are read.

use std::fs::File;
use std::os::unix::fs::FileExt;

use backstay_core::ErrorKind;
use backstay_core::backup::{self, BackupPlan};
use backstay_core::source::SourceSpec;
use backstay_store::Consistency;

use crate::bench::{Bench, MIB, Watch, error_of, qemu_img};

/// Backs up `name` while `change` is done to it at the first progress.
fn while_reading(
    bench: &Bench,
    name: &str,
    allow_changed: bool,
    change: impl FnOnce(File) + Send + 'static,
) -> (backstay_core::Result<backup::BackupReport>, Watch) {
    let path = bench.at(name);
    let file = path.clone();
    let watch = Watch::then(move || change(File::options().write(true).open(file).unwrap()));
    let plan = BackupPlan { allow_changed, ..bench.plan(vec![SourceSpec::new(&path)]) };
    (backup::run(&bench.repo, &plan, &watch), watch)
}

fn touch(file: File) {
    // Longer than the kernel's time stamps are coarse.
    std::thread::sleep(std::time::Duration::from_millis(30));
    file.write_all_at(b"x", 5).unwrap();
}

#[test]
fn a_change_is_an_error_and_no_point() {
    let bench = Bench::new();
    bench.image("a.img", 8 * MIB, &[(0, 8 * MIB)]);
    let (result, _) = while_reading(&bench, "a.img", false, touch);
    let error = error_of(result);
    assert_eq!(error.kind(), ErrorKind::SourceChanged, "{error}");
    assert!(error.to_string().contains("a.img was written to while it was read"), "{error}");
    assert_eq!(bench.point_count(), 0);
}

#[test]
fn allowed_it_is_recorded() {
    let bench = Bench::new();
    bench.image("a.img", 8 * MIB, &[(0, 8 * MIB)]);
    let (result, watch) = while_reading(&bench, "a.img", true, touch);
    assert_eq!(result.unwrap().point.consistency, Consistency::Changing);
    assert_eq!(watch.problems.lock().unwrap().len(), 1);
}

#[test]
fn growing_and_shrinking() {
    let bench = Bench::new();
    bench.image("a.img", 64 * MIB, &[(0, 64 * MIB)]);
    let (result, _) = while_reading(&bench, "a.img", false, |file| file.set_len(65 * MIB).unwrap());
    assert_eq!(error_of(result).kind(), ErrorKind::SourceChanged);
    // What is gone cannot be read: not even if changes are allowed.
    let (result, _) = while_reading(&bench, "a.img", true, |file| file.set_len(MIB).unwrap());
    let error = error_of(result);
    assert_eq!(error.kind(), ErrorKind::SourceChanged);
    assert!(error.to_string().contains(&format!("has {MIB} now")), "{error}");
    assert_eq!(bench.point_count(), 0);
}

#[test]
fn every_file_of_an_image_is_watched() {
    let bench = Bench::new();
    let raw = bench.image("seed.raw", 8 * MIB, &[(0, 8 * MIB)]);
    let image = bench.at("a.vmdk");
    qemu_img("convert -f raw -O vmdk -o subformat=monolithicFlat", &[&raw, &image]);
    let extent = bench.at("a-flat.vmdk");
    let watch = Watch::then(move || touch(File::options().write(true).open(extent).unwrap()));
    let plan = bench.plan(vec![SourceSpec::new(&image)]);
    let error = error_of(backup::run(&bench.repo, &plan, &watch));
    assert_eq!(error.kind(), ErrorKind::SourceChanged, "{error}");
    assert!(error.to_string().contains("a-flat.vmdk"), "{error}");
}
