//! The reader of btrfs beside the kernel's: images made by mkfs with its variants, filled by the kernel, compared file by file.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Instant;

use backstay_guestfs::ErrorKind;
use backstay_guestfs::fs::btrfs::{Btrfs, is_here};
use backstay_guestfs::fs::{FileSystem, FsKind, NodeId, Place};

use crate::support::compare::{Compare, compare, content, find, list};
use crate::support::image::{Image, no_kernel_mount, run, skipped};
use crate::support::tree::{Contents, fill};
use crate::support::{Random, seed};

/// Whether the oracle is missing: the programs, the kernel's driver, or the right to mount.
pub(crate) fn no_oracle(test: &str) -> bool {
    skipped(test, &["mkfs.btrfs", "btrfs"]) || no_kernel_mount(test, "btrfs")
}

fn open(image: &Image) -> Btrfs {
    Btrfs::open(vec![image.device()]).expect("it opens")
}

/// Makes a file system, fills it as mounted with `options`, and compares.
fn zoo(test: &str, mkfs: &[&str], options: &str, contents: &Contents) {
    if no_oracle(test) {
        return;
    }
    let image = Image::new(1 << 30).with("mkfs.btrfs", &[&["-q"], mkfs].concat());
    {
        let mounted = image.mount("btrfs", options);
        fill(mounted.path(), seed(), contents);
    }
    assert!(is_here(&image.media()));
    let fs = open(&image);
    assert_eq!(fs.info().kind, FsKind::Btrfs);
    let mounted = image.mount("btrfs", "ro");
    let seen = compare(&fs, mounted.path(), &Compare::ALL);
    assert!(seen.files > u64::from(contents.many), "{seen:?}");
}

#[test]
fn as_mkfs_makes_it() {
    zoo("btrfs as mkfs makes it", &[], "", &Contents::ALL);
}

/// Less of everything, for variants that change where things are and not what can be there.
pub(crate) const FEW: Contents = Contents { many: 300, depth: 10, ..Contents::ALL };

#[test]
fn small_and_large_tree_blocks() {
    zoo("btrfs of 4 KiB blocks", &["--nodesize", "4096"], "", &FEW);
    zoo("btrfs of 64 KiB blocks", &["--nodesize", "65536"], "", &FEW);
    zoo("btrfs of mixed block groups", &["--mixed"], "", &FEW);
}

#[test]
fn every_checksum() {
    for sum in ["xxhash", "sha256", "blake2"] {
        zoo("btrfs with other checksums", &["--csum", sum], "", &FEW);
    }
}

#[test]
fn older_and_newer_formats() {
    zoo("btrfs with hole extents", &["-O", "^no-holes", "-R", "^free-space-tree"], "", &FEW);
    zoo("btrfs of 2013", &["-O", "^no-holes,^skinny-metadata,^extref"], "", &FEW);
    zoo("btrfs with quotas", &["-R", "quota"], "", &FEW);
    zoo("btrfs with single metadata", &["-m", "single", "-d", "single"], "", &FEW);
}

#[test]
fn mount_options() {
    for options in [
        "compress-force=zlib",
        "compress-force=lzo",
        "compress-force=zstd:12",
        "nodatasum",
        "nodatacow",
        "max_inline=0",
        "max_inline=4095,compress=lzo",
        "flushoncommit,noatime",
    ] {
        eprintln!("mounted with {options}");
        zoo("btrfs by mount options", &[], options, &FEW);
    }
}

/// Copies a range of one file into another by reference.
fn reflink(from: &Path, at: u64, len: u64, to: &Path, to_at: u64) {
    let xfs_io = ["-c", &format!("reflink {} {at} {to_at} {len}", from.display())];
    let to = to.to_str().expect("a plain path");
    run("xfs_io", &[&["-f"], &xfs_io[..], &[to]].concat());
}

/// Extents that are shared, cut, and partly written over: all begin within another one.
fn shared(root: &Path, random: &mut Random) {
    let dir = root.join("shared");
    fs::create_dir(&dir).expect("a directory");
    let text: Vec<u8> = (0..60_000u32).flat_map(|i| format!("line {i}\n").into_bytes()).collect();
    for (name, bytes) in [("text", text), ("noise", random.bytes(600_000))] {
        let first = dir.join(name);
        fs::write(&first, &bytes).expect("a file");
        File::open(&first).and_then(|f| f.sync_all()).expect("on the disk");
        let pieces = dir.join(format!("{name}-pieces"));
        for i in 0..40 {
            reflink(&first, random.below(100) * 4096, 8192 + i % 3 * 4096, &pieces, i * 12_288);
        }
        // The same extent twice in a row.
        reflink(&first, 4096, 4096, &pieces, 40 * 12_288);
        reflink(&first, 4096, 4096, &pieces, 40 * 12_288 + 4096);
        let file = File::options().write(true).open(&first).expect("it opens");
        for _ in 0..30 {
            let at = random.below(500_000);
            file.write_all_at(&random.bytes(random.clone().below(9000) as usize), at)
                .expect("data");
            file.sync_data().expect("on the disk");
        }
        file.set_len(500_123).expect("it is cut");
        file.set_len(700_001).expect("it grows");
    }
}

#[test]
fn shared_and_overwritten_extents() {
    let test = "btrfs with shared extents";
    if no_oracle(test) || skipped(test, &["xfs_io"]) {
        return;
    }
    for options in
        ["", "compress-force=zlib", "compress-force=lzo", "compress-force=zstd", "nodatasum"]
    {
        let image = Image::new(1 << 30).with("mkfs.btrfs", &["-q"]);
        let mut random = Random(seed());
        {
            let mounted = image.mount("btrfs", options);
            shared(mounted.path(), &mut random);
        }
        let mounted = image.mount("btrfs", "ro");
        let fs = open(&image);
        compare(&fs, mounted.path(), &Compare::ALL);
        for name in ["shared/text-pieces", "shared/noise", "shared/noise-pieces"] {
            let bytes = fs::read(mounted.path().join(name)).expect("the kernel reads");
            pieces_agree(&fs, find(&fs, name), &bytes, &mut random);
        }
    }
}

/// Reads at random places, by `read` and, where it can be done, by `extents` and the device alone.
fn pieces_agree(fs: &Btrfs, node: NodeId, bytes: &[u8], random: &mut Random) {
    for _ in 0..200 {
        let at = random.below(bytes.len() as u64 + 10);
        let mut buf = vec![1; random.below(40_000) as usize];
        let read = fs.read(node, at, &mut buf).expect("it reads");
        let rest = bytes.get(at as usize..).unwrap_or_default();
        assert_eq!(buf[..read], rest[..buf.len().min(rest.len())], "at {at}");
        let extents = fs.extents(node, at, 30_000, 7).expect("extents");
        let mut offset = at;
        for extent in &extents {
            assert_eq!(extent.offset_bytes, offset);
            assert!(extent.len_bytes > 0);
            offset += extent.len_bytes;
        }
        assert!(offset <= (at + 30_000).min(bytes.len() as u64).max(at));
        assert_eq!(extents.is_empty(), rest.is_empty());
    }
}

#[test]
fn without_checksums_content_is_on_the_device() {
    if no_oracle("btrfs without checksums") {
        return;
    }
    let image = Image::new(1 << 30).with("mkfs.btrfs", &["-q"]);
    let bytes = Random(seed()).bytes(5 << 20);
    {
        let mounted = image.mount("btrfs", "nodatasum");
        fs::write(mounted.path().join("file"), &bytes).expect("a file");
    }
    let fs = open(&image);
    let extents = fs.extents(find(&fs, "file"), 0, u64::MAX, 1000).expect("extents");
    let disk = File::open(image.path()).expect("the image");
    let mut found = Vec::new();
    for extent in extents {
        let Place::Device { device: 0, offset_bytes } = extent.place else {
            panic!("{extent:?}");
        };
        let mut part = vec![0; extent.len_bytes as usize];
        disk.read_exact_at(&mut part, offset_bytes).expect("it reads");
        found.extend(part);
    }
    assert!(found == bytes);
}

#[test]
fn names_with_one_hash() {
    if no_oracle("btrfs with names of one hash") {
        return;
    }
    // Found by trying: pairs of names with the same CRC-32C.
    let mut seen = std::collections::HashMap::new();
    let mut pairs = Vec::new();
    for i in 0..400_000u64 {
        let name = format!("{:x}", Random(i).next());
        if let Some(other) = seen.insert(crc32c(name.as_bytes()), name.clone()) {
            pairs.push((other, name));
        }
    }
    assert!(pairs.len() > 3, "{} pairs", pairs.len());
    let image = Image::new(1 << 30).with("mkfs.btrfs", &["-q"]);
    {
        let mounted = image.mount("btrfs", "");
        for (one, two) in &pairs {
            for name in [one, two] {
                fs::write(mounted.path().join(name), name).expect("a file");
                let file = mounted.path().join(one);
                rustix::fs::lsetxattr(
                    file,
                    format!("user.{name}"),
                    name.as_bytes(),
                    rustix::fs::XattrFlags::empty(),
                )
                .expect("an attribute");
            }
        }
    }
    let mounted = image.mount("btrfs", "ro");
    compare(&open(&image), mounted.path(), &Compare::ALL);
}

/// Names of equal length: any CRC-32C says which of them collide.
fn crc32c(bytes: &[u8]) -> (usize, u32) {
    let mut crc = u32::MAX;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = if crc & 1 == 1 { crc >> 1 ^ 0x82f6_3b78 } else { crc >> 1 };
        }
    }
    (bytes.len(), crc)
}

#[test]
fn a_hundred_thousand_entries() {
    if no_oracle("btrfs with 100,000 entries") {
        return;
    }
    let image = Image::new(2 << 30).with("mkfs.btrfs", &["-q"]);
    {
        let mounted = image.mount("btrfs", "");
        let dir = mounted.path().join("many");
        fs::create_dir(&dir).expect("a directory");
        for i in 0..100_000 {
            File::create(dir.join(format!("a file with number {i}"))).expect("a file");
        }
    }
    let fs = open(&image);
    let start = Instant::now();
    let all = list(&fs, find(&fs, "many"));
    for (_, node, _) in &all {
        fs.stat(*node).expect("metadata");
    }
    eprintln!("100,000 entries listed with stat in {:?}", start.elapsed());
    let mounted = image.mount("btrfs", "ro");
    let start = Instant::now();
    let mut theirs = 0;
    for entry in fs::read_dir(mounted.path().join("many")).expect("the kernel lists") {
        entry.and_then(|e| e.metadata()).expect("metadata");
        theirs += 1;
    }
    eprintln!("the kernel: {:?}", start.elapsed());
    assert_eq!((all.len(), theirs), (100_000, 100_000));
    let dir = find(&fs, "many");
    for i in (0..100_000).step_by(7) {
        fs.lookup(dir, format!("a file with number {i}").as_bytes()).expect("it is found");
    }
}

#[test]
fn subvolumes_and_snapshots() {
    if no_oracle("btrfs with subvolumes") {
        return;
    }
    let image = Image::new(1 << 30).with("mkfs.btrfs", &["-q", "-L", "a label"]);
    let default = {
        let mounted = image.mount("btrfs", "");
        let path = |name: &str| mounted.path().join(name).to_str().expect("plain").to_owned();
        let subvolume = |args: &[&str], name: &str| {
            run("btrfs", &[&["subvolume"], args, &[&path(name)]].concat())
        };
        subvolume(&["create"], "one");
        subvolume(&["create"], "one/nested");
        fs::create_dir(path("one/dir")).expect("a directory");
        subvolume(&["create"], "one/dir/nested too");
        fill(Path::new(&path("one")), seed(), &FEW);
        fs::write(path("one/nested/inner"), "inner").expect("a file");
        subvolume(&["snapshot", &path("one")], "of-one");
        // Of itself in itself. (Only one snapshot has empty directories: the kernel gives those of all one number.)
        subvolume(&["snapshot", "-r", &path("one/nested")], "one/nested/read-only");
        fs::write(path("one/sizes/text"), "changed since").expect("a file");
        fs::remove_file(path("of-one/links/first")).expect("it goes");
        subvolume(&["create"], "gone");
        subvolume(&["delete"], "gone");
        run("mv", &[&path("one/nested"), &path("moved")]);
        subvolume(&["set-default"], "of-one");
        run("btrfs", &["inspect-internal", "rootid", &path("of-one")]).trim().to_owned()
    };
    let fs = open(&image);
    assert_eq!(fs.info().label, "a label");
    let note = format!("subvolume {default} by default");
    assert!(fs.info().notes.iter().any(|n| n.contains(&note)), "{:?}", fs.info().notes);
    let mounted = image.mount("btrfs", "ro,subvolid=5");
    // The kernel invents times for the empty directories where a snapshot has no copy of a subvolume: compared without.
    let how = Compare {
        accessed: false,
        modified: false,
        changed: false,
        created: false,
        ..Compare::ALL
    };
    let seen = compare(&fs, mounted.path(), &how);
    assert!(seen.files > 2 * u64::from(FEW.many), "{seen:?}");
    let empty = find(&fs, "of-one/nested");
    assert_eq!((empty.inode, list(&fs, empty)), (2, Vec::new()));
    assert_eq!(content(&fs, find(&fs, "moved/inner")), b"inner");
    for part in [0, 1, 6, 7, 12, 255, 9999, u64::MAX] {
        let e = fs.stat(NodeId { inode: 256, part }).expect_err("no subvolume");
        assert_eq!(e.kind(), ErrorKind::NotFound, "{e}");
    }
}
