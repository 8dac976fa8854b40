//! Which points are shown, under which names, and when.

use std::path::Path;

use backstay_daemon::fuse::{ImageMount, Only, Unmount};
use backstay_store::RecoveryPoint;

use crate::support::{Fixture, disk_image, eventually, have_fuse, quick};

fn names(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).unwrap();
    let mut names: Vec<String> =
        entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Takes a point's record out of the repository, as its retention would.
fn remove(fixture: &Fixture, point: &RecoveryPoint) {
    let points = fixture.repository_dir().join("points");
    let id = point.id.to_string();
    let mut removed = 0;
    let mut dirs = vec![points];
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(dir).unwrap() {
            let entry = entry.unwrap();
            if entry.file_type().unwrap().is_dir() {
                dirs.push(entry.path());
            } else if entry.file_name().to_str().unwrap().contains(&id) {
                std::fs::remove_file(entry.path()).unwrap();
                removed += 1;
            }
        }
    }
    assert_eq!(removed, 1, "the record of {id} is one file");
}

#[test]
fn points_come_and_go_under_a_live_mount() {
    if !have_fuse() {
        return;
    }
    let fixture = Fixture::new();
    let (old, new) = (disk_image(1, 10), disk_image(2, 10));
    let first = fixture.backup("web01", "2026-11-22T03:00:00Z", &[("disk0", &old)]);
    let at = fixture.mountpoint("mnt");
    let _mount = at.mount(fixture.open());
    let machine = at.path().join("web01");
    let latest = machine.join("latest/disks/disk0.raw");
    assert_eq!(names(&machine), ["2026-11-22T03-00-00Z", "latest"]);
    assert!(std::fs::read(&latest).unwrap() == old);
    assert!(!machine.join("2026-11-23T03-00-00Z").exists());

    // Written by another handle of the repository, as by another process.
    fixture.backup("web01", "2026-11-23T03:00:00Z", &[("disk0", &new)]);
    fixture.backup("db", "2026-11-23T04:00:00Z", &[("disk0", &new)]);
    eventually("the new point", || machine.join("2026-11-23T03-00-00Z").exists());
    eventually("latest moves", || {
        std::fs::read_link(machine.join("latest")).unwrap() == Path::new("2026-11-23T03-00-00Z")
    });
    assert!(std::fs::read(&latest).unwrap() == new);
    assert!(std::fs::read(machine.join("2026-11-22T03-00-00Z/disks/disk0.raw")).unwrap() == old);
    eventually("the new machine", || names(at.path()) == ["db", "web01"]);

    remove(&fixture, &first);
    eventually("the ended point goes", || {
        names(&machine) == ["2026-11-23T03-00-00Z", "latest"]
            && !machine.join("2026-11-22T03-00-00Z").exists()
    });
    assert!(std::fs::read(&latest).unwrap() == new);
}

#[test]
fn points_of_one_second_are_told_apart() {
    if !have_fuse() {
        return;
    }
    let fixture = Fixture::new();
    let images: Vec<_> = (0..3).map(|seed| disk_image(seed, 3)).collect();
    let points: Vec<_> = images
        .iter()
        .map(|image| fixture.backup("m", "2026-11-22T03:00:00.5Z", &[("disk0", image)]))
        .collect();
    let at = fixture.mountpoint("mnt");
    let _mount = at.mount(fixture.open());
    let shown = names(&at.path().join("m"));
    assert_eq!(shown.len(), 4, "{shown:?}");
    let mut plain = 0;
    for (point, image) in points.iter().zip(&images) {
        let long = format!("2026-11-22T03-00-00Z-{}", point.id.short());
        let name = if shown.contains(&long) { long } else { "2026-11-22T03-00-00Z".to_owned() };
        plain += usize::from(name.len() == 20);
        let path = at.path().join("m").join(name).join("disks/disk0.raw");
        assert!(std::fs::read(path).unwrap() == *image);
    }
    assert_eq!(plain, 1, "{shown:?}");
}

#[test]
fn one_machine_alone_and_names_with_a_percent_sign() {
    if !have_fuse() {
        return;
    }
    let fixture = Fixture::new();
    let image = disk_image(1, 2);
    fixture.backup("a%2Fb", "2026-11-22T03:00:00Z", &[("d%41", &image)]);
    fixture.backup("other", "2026-11-22T03:00:00Z", &[("disk0", &image)]);
    let at = fixture.mountpoint("mnt");
    let mut options = quick(at.path());
    options.only = Only::Machine("a%2Fb".into());
    let _mount = ImageMount::start(fixture.open(), options).unwrap();
    assert_eq!(names(at.path()), ["a%252Fb"]);
    let disk = at.path().join("a%252Fb/latest/disks/d%2541.raw");
    assert!(std::fs::read(disk).unwrap() == image);
}

#[test]
fn inode_numbers_stay() {
    use std::os::unix::fs::MetadataExt;
    if !have_fuse() {
        return;
    }
    let fixture = Fixture::new();
    fixture.backup("m", "2026-11-22T03:00:00Z", &[("disk0", &disk_image(1, 2))]);
    let at = fixture.mountpoint("mnt");
    let _mount = at.mount(fixture.open());
    let disk = at.path().join("m/2026-11-22T03-00-00Z/disks/disk0.raw");
    let ino = || std::fs::metadata(&disk).unwrap().ino();
    let before = ino();
    fixture.backup("m", "2026-11-21T03:00:00Z", &[("disk0", &disk_image(2, 2))]);
    fixture.backup("a", "2026-11-21T03:00:00Z", &[("disk0", &disk_image(2, 2))]);
    eventually("the new machine", || at.path().join("a").exists());
    assert_eq!(ino(), before);
    let other = at.path().join("m/2026-11-21T03-00-00Z/disks/disk0.raw");
    assert_ne!(std::fs::metadata(other).unwrap().ino(), before);
}

#[test]
fn two_mounts_at_once() {
    if !have_fuse() {
        return;
    }
    let fixture = Fixture::new();
    let image = disk_image(1, 50);
    fixture.backup("m", "2026-11-22T03:00:00Z", &[("disk0", &image)]);
    let repository = fixture.open();
    let (a, b) = (fixture.mountpoint("a"), fixture.mountpoint("b"));
    // One over the same handle and one over its own.
    let c = fixture.mountpoint("c");
    let mount = a.mount(repository.clone());
    let _others = (b.mount(repository), c.mount(fixture.open()));
    std::thread::scope(|scope| {
        for at in [&a, &b, &c] {
            let (at, image) = (at.path().join("m/latest/disks/disk0.raw"), &image);
            scope.spawn(move || assert!(std::fs::read(at).unwrap() == *image));
        }
    });
    mount.end(Unmount::Orderly).unwrap();
    assert!(std::fs::read(b.path().join("m/latest/disks/disk0.raw")).unwrap() == image);
}

#[test]
fn an_empty_repository_is_an_empty_directory() {
    if !have_fuse() {
        return;
    }
    let fixture = Fixture::new();
    let at = fixture.mountpoint("mnt");
    let _mount = at.mount(fixture.open());
    assert!(names(at.path()).is_empty());
    fixture.backup("m", "2026-11-22T03:00:00Z", &[("disk0", &disk_image(1, 1))]);
    eventually("the first machine", || names(at.path()) == ["m"]);
}
