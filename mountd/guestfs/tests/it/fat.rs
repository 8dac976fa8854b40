//! FAT: volumes made by mkfs.vfat in its variants and filled by mtools, compared with the tree they were filled from.

use std::fs;
use std::path::Path;

use backstay_guestfs::fs::fat::Fat;
use backstay_guestfs::fs::{FileSystem, NodeId};

use crate::support::compare::{Compare, Seen, compare, list};
use crate::support::image::{Image, run, skipped};
use crate::support::{Random, seed};

const PROGRAMS: &[&str] = &["mkfs.vfat", "mcopy", "mdel", "mattrib"];

/// FAT has no owners, modes, links, and for times of reading a day. The tree was copied: its places are its own.
const HOW: Compare = Compare {
    accessed: false,
    changed: false,
    created: false,
    owners: false,
    modes: false,
    file_links: false,
    directory_links: false,
    inode_numbers: false,
    allocated: false,
    directory_sizes: false,
    xattrs: false,
    time_slack_nanos: 2_000_000_000,
    ..Compare::ALL
};

/// A tree that fits into FAT and exFAT.
pub(crate) fn tree(root: &Path, random: &mut Random, many: u32) {
    let dir = |name: &str| {
        let path = root.join(name);
        fs::create_dir_all(&path).expect("a directory");
        path
    };
    let sizes = dir("sizes");
    for size in [0, 1, 31, 511, 512, 513, 4095, 4096, 4097, 65_535, 65_536, 700_001] {
        fs::write(sizes.join(format!("of-{size}.bin")), random.bytes(size)).expect("a file");
    }
    let names = dir("names");
    for name in [
        "UPPER.TXT",
        "lower.txt",
        "Mixed.Case",
        "second.TXT",
        "THIRD.txt",
        "ärger.txt",
        "日本語のとても長い名前のファイルです.データ",
        "Ωμέγα ж ŝ",
        "with space and (brackets).tar.gz",
        ".hidden",
        "no extension but long",
        "exactly13char",
        "a",
        &"l".repeat(255),
    ] {
        fs::write(names.join(name), name).expect("a file");
    }
    let entries = dir("many");
    for i in 0..many {
        fs::write(entries.join(format!("entry number {i} of the many")), "").expect("a file");
    }
    let mut deep = dir("deep");
    for level in 0..20 {
        fs::write(deep.join("here"), level.to_string()).expect("a file");
        deep.push(format!("level-{level}"));
        fs::create_dir(&deep).expect("a directory");
    }
    dir("empty");
}

pub(crate) fn mtool(program: &str, image: &Image, args: &[&str]) {
    let path = image.path().to_str().expect("a plain path");
    let all = ["TZ=UTC", "MTOOLS_SKIP_CHECK=1", program, "-i", path];
    run("env", &[&all, args].concat());
}

fn compared(image: &Image, tree: &Path) -> Seen {
    // The root has no entry, and so no time.
    let root = fs::File::open(tree).expect("a directory");
    root.set_modified(std::time::UNIX_EPOCH).expect("a time");
    let fs = Fat::open(image.device()).expect("the volume opens");
    compare(&fs, tree, &HOW)
}

/// Copies all of a directory into the root of an image.
fn copied(image: &Image, tree: &Path) {
    for entry in fs::read_dir(tree).expect("a directory") {
        let path = entry.expect("an entry").path();
        mtool("mcopy", image, &["-s", "-m", "-Q", path.to_str().expect("a plain path"), "::"]);
    }
}

#[test]
fn volumes_of_all_widths_as_mtools_filled_them() {
    let test = "volumes_of_all_widths_as_mtools_filled_them";
    if skipped(test, PROGRAMS) {
        return;
    }
    let mut random = Random(seed());
    for (size, many, args) in [
        (15 << 20, 300, &["-F", "12", "-s", "8"][..]),
        (60 << 20, 300, &["-F", "16", "-f", "1"]),
        (30 << 20, 500, &["-F", "16", "-s", "2"]),
        (300 << 20, 500, &["-F", "32"]),
        (300 << 20, 300, &["-F", "32", "-S", "4096", "-s", "1"]),
        (80 << 20, 300, &["-F", "32", "-s", "2", "-n", "MY LABEL"]),
        (3 << 30, 300, &["-F", "32", "-s", "64"]),
    ] {
        eprintln!("mkfs.vfat {args:?}");
        let image = Image::new(size).with("mkfs.vfat", args);
        let source = tempfile::tempdir().expect("a directory");
        tree(source.path(), &mut random, many);
        copied(&image, source.path());
        let dirs = ["many", "sizes"].map(|dir| {
            let dir = fs::File::open(source.path().join(dir)).expect("a directory");
            let time = dir.metadata().and_then(|m| m.modified()).expect("its time");
            (dir, time)
        });
        // Entries that are gone, and a file in the space of others.
        for i in (0..many).step_by(3) {
            fs::remove_file(source.path().join(format!("many/entry number {i} of the many")))
                .expect("it goes");
        }
        let gone: Vec<_> = (0..many)
            .step_by(3)
            .map(|i| format!("::/many/entry number {i} of the many"))
            .chain(["::/sizes/of-4096.bin".into(), "::/sizes/of-65535.bin".into()])
            .collect();
        mtool("mdel", &image, &gone.iter().map(String::as_str).collect::<Vec<_>>());
        for size in [4096, 65_535] {
            fs::remove_file(source.path().join(format!("sizes/of-{size}.bin"))).expect("it goes");
        }
        for (dir, time) in dirs {
            dir.set_modified(time).expect("the time it had");
        }
        let late = source.path().join("in pieces");
        fs::write(&late, random.bytes(1_000_000)).expect("a file");
        mtool("mcopy", &image, &["-m", late.to_str().expect("plain"), "::"]);
        let seen = compared(&image, source.path());
        assert!(seen.nodes > 250 && seen.content_bytes > 1_700_000, "{seen:?}");
    }
}

#[test]
fn names_in_any_spelling_labels_and_attributes() {
    let test = "names_in_any_spelling_labels_and_attributes";
    if skipped(test, PROGRAMS) {
        return;
    }
    let image =
        Image::new(64 << 20).with("mkfs.vfat", &["-F", "32", "-n", "BOOT-1", "-i", "cafe1234"]);
    let file = image.dir().join("A Long Name.text");
    fs::write(&file, "x").expect("a file");
    mtool("mcopy", &image, &[file.to_str().expect("plain"), "::"]);
    mtool("mattrib", &image, &["+r", "+h", "+s", "::/A Long Name.text"]);
    let fs = Fat::open(image.device()).expect("the volume opens");
    let info = fs.info();
    assert_eq!((info.label.as_str(), info.uuid.as_deref()), ("BOOT-1", Some("CAFE-1234")));
    assert!(info.used_bytes.is_some_and(|used| used > 0 && used < 1 << 20), "{info:?}");
    let node = fs.lookup(fs.root(), b"A Long Name.text").expect("its name");
    for name in ["a long name.TEXT", "ALONGN~1.TEX", "alongn~1.tex"] {
        assert_eq!(fs.lookup(fs.root(), name.as_bytes()).expect("a spelling"), node);
    }
    assert!(fs.lookup(fs.root(), b"another").is_err());
    assert_eq!(list(&fs, fs.root()).len(), 1);
    let stat = fs.stat(node).expect("metadata");
    assert_eq!(stat.mode, 0o444);
    assert!(stat.attributes.hidden && stat.attributes.system && stat.attributes.read_only);
    for inode in [0, 2, 77, u64::MAX, node.inode + 1] {
        assert!(fs.stat(NodeId::inode(inode)).is_err(), "{inode}");
    }
}
