//! btrfs over several devices: every profile beside the kernel's reading, devices that are missing, behind, or damaged.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use backstay_blockdev::BlockDevice;
use backstay_guestfs::ErrorKind;
use backstay_guestfs::fs::btrfs::Btrfs;
use backstay_guestfs::fs::{FileSystem, Place};

use crate::btrfs::{FEW, no_oracle};
use crate::support::compare::{Compare, compare, content, find};
use crate::support::image::{Image, Mounted, run};
use crate::support::tree::fill;
use crate::support::{Random, seed};

/// Mounts the file system on several images: `OPTIONS OTHER... FIRST DIR`. The loop devices go with the mount.
const MOUNT: &str = r#"
options=$1; shift; loops=
while [ $# -gt 1 ]; do
    if ! l=$(losetup --find --show "$1"); then break; fi
    loops="$loops $l"; options="$options,device=$l"; shift
done
mount -t btrfs -o "$options" "${loops##* }" "$1"; result=$?
for l in $loops; do losetup -d "$l"; done
exit $result
"#;

fn path(image: &Image) -> &str {
    image.path().to_str().expect("a plain path")
}

fn make(count: usize, mkfs: &[&str]) -> Vec<Image> {
    let images: Vec<Image> = (0..count).map(|_| Image::new(1 << 30)).collect();
    let paths: Vec<_> = images.iter().map(path).collect();
    run("mkfs.btrfs", &[&["-q"], mkfs, &paths].concat());
    images
}

fn mount(images: &[Image], options: &str) -> Mounted {
    let others: Vec<_> = images[1..].iter().map(path).collect();
    images[0].mount_with("sh", &[&["-c", MOUNT, "sh", options], &others[..]].concat())
}

fn devices(images: &[Image]) -> Vec<Arc<dyn BlockDevice>> {
    images.iter().map(Image::device).collect()
}

/// Makes, fills and compares a file system over several devices, given in any order.
fn several(count: usize, data: &str, metadata: &str) -> Vec<Image> {
    eprintln!("{count} devices, content {data}, metadata {metadata}");
    let mut images = make(count, &["-d", data, "-m", metadata]);
    {
        let mounted = mount(&images, "rw");
        fill(mounted.path(), seed(), &FEW);
        fs::write(mounted.path().join("large"), Random(seed()).bytes(9 << 20)).expect("a file");
    }
    let mounted = mount(&images, "ro");
    images.reverse();
    let fs = Btrfs::open(devices(&images)).expect("it opens");
    assert!(fs.info().notes.is_empty(), "{:?}", fs.info().notes);
    compare(&fs, mounted.path(), &Compare::ALL);
    drop(mounted);
    images.reverse();
    images
}

#[test]
fn profiles() {
    if no_oracle("btrfs over several devices") {
        return;
    }
    several(3, "raid0", "raid1c3");
    several(4, "raid10", "raid1c4");
    several(4, "raid10", "raid10");
    several(2, "single", "raid0");
    several(1, "dup", "dup");
}

#[test]
fn a_mirror_that_is_missing() {
    if no_oracle("btrfs with a missing mirror") {
        return;
    }
    let images = several(2, "raid1", "raid1");
    let all = Btrfs::open(devices(&images)).expect("it opens");
    let expected = content(&all, find(&all, "large"));
    for (left, gone) in [(0, 2), (1, 1)] {
        let fs = Btrfs::open(vec![images[left].device()]).expect("a mirror is enough");
        assert!(content(&fs, find(&fs, "large")) == expected);
        let note = format!("not there: number {gone}");
        assert!(fs.info().notes.iter().any(|n| n.contains(&note)), "{:?}", fs.info().notes);
        let mounted = mount(&images, "ro");
        compare(&fs, mounted.path(), &Compare::ALL);
    }
}

#[test]
fn without_a_mirror_missing_is_told() {
    if no_oracle("btrfs with a missing device") {
        return;
    }
    let images = several(2, "raid0", "raid1");
    let fs = Btrfs::open(vec![images[1].device()]).expect("the metadata is there");
    let large = find(&fs, "large");
    let e = fs.read(large, 0, &mut vec![0; 1 << 20]).expect_err("half of it is gone");
    assert!(e.kind() == ErrorKind::Io && e.to_string().contains("number 1"), "{e}");
    let inside = fs.extents(large, 0, 1 << 20, 10).expect("extents");
    assert!(inside.iter().all(|e| e.place == Place::Inside), "{inside:?}");
    assert_eq!(fs.stat(find(&fs, "links/first")).expect("metadata").links, 21);
}

#[test]
fn parity_is_refused_by_name() {
    if no_oracle("btrfs with parity") {
        return;
    }
    let images = make(3, &["-d", "raid5", "-m", "raid1"]);
    {
        let mounted = mount(&images, "rw");
        fs::write(mounted.path().join("large"), vec![7; 1 << 20]).expect("a file");
    }
    let fs = Btrfs::open(devices(&images)).expect("it opens");
    assert!(fs.info().notes.iter().any(|n| n.contains("raid5")), "{:?}", fs.info().notes);
    let e = fs.read(find(&fs, "large"), 0, &mut [0; 4096]).expect_err("not read");
    assert!(e.kind() == ErrorKind::Unsupported && e.to_string().contains("raid5"), "{e}");
}

#[test]
fn bad_copies_are_passed_over() {
    if no_oracle("btrfs with bad copies") {
        return;
    }
    let mut images = several(2, "raid1", "raid1");
    let expected = {
        let all = Btrfs::open(devices(&images)).expect("it opens");
        content(&all, find(&all, "large"))
    };
    // Every second megabyte of one device, the others of the other; what lies around the superblocks stays.
    let noise = Random(seed()).bytes(1 << 20);
    for (i, image) in images.iter().enumerate() {
        let file = File::options().write(true).open(image.path()).expect("it opens");
        for megabyte in (2..1024).filter(|m| m % 2 == i as u64 && *m != 64) {
            file.write_all_at(&noise, megabyte << 20).expect("it is overwritten");
        }
    }
    // Mirrors lie at other places on each device, so that some copies are bad on both: a right answer or an error.
    let fs = Btrfs::open(devices(&images));
    if let Ok(fs) = fs
        && let Ok(node) = fs.lookup(fs.root(), b"large")
    {
        let mut buf = vec![0; 4096];
        for at in (0..expected.len() as u64).step_by(4096) {
            match fs.read(node, at, &mut buf) {
                Ok(n) => assert!(buf[..n] == expected[at as usize..at as usize + n], "at {at}"),
                Err(e) => assert_eq!(e.kind(), ErrorKind::Damaged, "{e}"),
            }
        }
    }
    // One device is all bad but for its superblock: nothing is lost.
    images = several(2, "raid1", "raid1");
    let file = File::options().write(true).open(images[0].path()).expect("it opens");
    for megabyte in (1..1024).filter(|m| *m != 64) {
        file.write_all_at(&noise, megabyte << 20).expect("it is overwritten");
    }
    let fs = Btrfs::open(devices(&images)).expect("it opens");
    assert!(content(&fs, find(&fs, "large")) == expected);
    let good = Btrfs::open(vec![images[1].device()]).expect("it opens");
    assert_eq!(good.xattrs(find(&good, "xattrs/many")).expect("xattrs").len(), 40);
    assert_eq!(fs.xattrs(find(&fs, "xattrs/many")).expect("xattrs").len(), 40);
}

#[test]
fn a_mirror_that_is_behind() {
    if no_oracle("btrfs with a mirror that is behind") {
        return;
    }
    let images = make(2, &["-d", "raid1", "-m", "raid1"]);
    {
        let mounted = mount(&images, "rw");
        fs::write(mounted.path().join("file"), vec![1; 300_000]).expect("a file");
    }
    let stale = [images[0].copy(), images[1].copy()];
    {
        let mounted = mount(&images, "nodatasum");
        // A new file: one that has checksums keeps having them.
        fs::remove_file(mounted.path().join("file")).expect("it goes");
        for round in 0..5 {
            fs::write(mounted.path().join("file"), vec![2 + round; 300_000]).expect("a file");
            File::open(mounted.path().join("file")).and_then(|f| f.sync_all()).expect("synced");
            run("sync", &["-f", path_of(&mounted)]);
        }
    }
    // Without checksums only the generation tells which copy is right.
    for behind in [0, 1] {
        let (old, new) = (stale[behind].device(), images[1 - behind].device());
        for order in [[Arc::clone(&old), Arc::clone(&new)], [new, old]] {
            let fs = Btrfs::open(order.to_vec()).expect("it opens");
            let notes = &fs.info().notes;
            assert!(notes.iter().any(|n| n.contains("is behind")), "{notes:?}");
            assert!(content(&fs, find(&fs, "file")) == vec![6; 300_000]);
        }
    }
}

fn path_of(mounted: &Mounted) -> &str {
    mounted.path().to_str().expect("a plain path")
}

#[test]
fn a_file_system_grown_from_a_seed() {
    if no_oracle("btrfs with a seed") {
        return;
    }
    let images = make(1, &[]);
    {
        let mounted = mount(&images, "rw");
        fs::write(mounted.path().join("old"), Random(1).bytes(3 << 20)).expect("a file");
    }
    run("btrfstune", &["-S", "1", path(&images[0])]);
    let seed_only = Btrfs::open(devices(&images)).expect("it opens");
    assert!(content(&seed_only, find(&seed_only, "old")) == Random(1).bytes(3 << 20));
    let sprout = Image::new(1 << 30);
    {
        let mounted = mount(&images, "ro");
        let add = r#"l=$(losetup --find --show "$1"); btrfs device add -f "$l" "$2"; r=$?;
            mount -o remount,rw "$2" && echo new > "$2/new"; losetup -d "$l"; exit $r"#;
        run("sh", &["-c", add, "sh", path(&sprout), path_of(&mounted)]);
    }
    for order in [[images[0].device(), sprout.device()], [sprout.device(), images[0].device()]] {
        let fs = Btrfs::open(order.to_vec()).expect("it opens");
        assert_eq!(content(&fs, find(&fs, "new")), b"new\n");
        assert!(content(&fs, find(&fs, "old")) == Random(1).bytes(3 << 20));
    }
}

#[test]
fn another_uuid() {
    if no_oracle("btrfs with another UUID") {
        return;
    }
    let images = make(1, &[]);
    {
        let mounted = mount(&images, "rw");
        fs::write(mounted.path().join("file"), "content").expect("a file");
    }
    let uuid = "01234567-89ab-cdef-0123-456789abcdef";
    run("btrfstune", &["-f", "-M", uuid, path(&images[0])]);
    let fs = Btrfs::open(devices(&images)).expect("it opens");
    assert_eq!(fs.info().uuid.as_deref(), Some(uuid));
    assert_eq!(content(&fs, find(&fs, "file")), b"content");
}
