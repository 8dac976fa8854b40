//! The reader of XFS beside the kernel's: images made by mkfs with its variants, filled by the kernel, compared file by file.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::time::Instant;

use backstay_guestfs::ErrorKind;
use backstay_guestfs::fs::xfs::{Xfs, is_here};
use backstay_guestfs::fs::{DirCookie, FileSystem, FsKind, NodeId};

use crate::support::compare::{Compare, compare, find, list};
use crate::support::image::{Image, no_kernel_mount, run, skipped};
use crate::support::tree::{Contents, fill};
use crate::support::{Random, seed};

/// Whether the oracle is missing: the programs, the kernel's driver, or the right to mount.
pub(crate) fn no_oracle(test: &str) -> bool {
    skipped(test, &["mkfs.xfs", "xfs_io", "xfs_db"]) || no_kernel_mount(test, "xfs")
}

pub(crate) fn open(image: &Image) -> Xfs {
    Xfs::open(image.device()).expect("it opens")
}

/// Times from 1901 to 2486.
const ALL: Contents = Contents { times: (-(1 << 31), 16_299_260_424), ..Contents::ALL };
pub(crate) const FEW: Contents = Contents { many: 300, depth: 10, ..ALL };
/// Times in 32 bits.
const SHORT: Contents = Contents { times: (-(1 << 31), (1 << 31) - 1), ..FEW };
/// The kernel shows an access control list a second time, in the form of the disk.
pub(crate) const HOW: Compare = Compare {
    xattrs_passed_over: &["trusted.SGI_ACL_FILE", "trusted.SGI_ACL_DEFAULT"],
    ..Compare::ALL
};

/// Makes a file system, fills it, and compares.
fn zoo(test: &str, mkfs: &[&str], contents: &Contents, how: &Compare) {
    if no_oracle(test) {
        return;
    }
    eprintln!("{test}: {mkfs:?}");
    let image = Image::new(1 << 30).with("mkfs.xfs", &[&["-q", "-f"], mkfs].concat());
    {
        let mounted = image.mount("xfs", "");
        fill(mounted.path(), seed(), contents);
    }
    assert!(is_here(&image.media()));
    let fs = open(&image);
    assert_eq!(fs.info().kind, FsKind::Xfs);
    let mounted = image.mount("xfs", "ro,norecovery");
    let seen = compare(&fs, mounted.path(), how);
    assert!(seen.files > u64::from(contents.many), "{seen:?}");
    assert!(fs.info().notes.is_empty(), "{:?}", fs.info().notes);
}

#[test]
fn xfs_as_mkfs_makes_it() {
    zoo("xfs as mkfs makes it", &["-L", "a label"], &ALL, &HOW);
}

#[test]
fn sizes_of_blocks_inodes_and_directories() {
    for args in [
        &["-b", "size=1024"][..],
        &["-b", "size=2048", "-i", "size=1024"],
        &["-i", "size=2048"],
        &["-n", "size=65536"],
        &["-b", "size=1024", "-n", "size=8192"],
    ] {
        zoo("xfs with other sizes", args, &FEW, &HOW);
    }
}

#[test]
fn features_of_newer_and_older_kernels() {
    for args in [
        &["-m", "bigtime=0"][..],
        &["-m", "reflink=0,rmapbt=0,finobt=0", "-i", "sparse=0"],
        &["-m", "rmapbt=1"],
        &["-i", "nrext64=1"],
    ] {
        let contents = if args[1].contains("bigtime") { &SHORT } else { &FEW };
        zoo("xfs with other features", args, contents, &HOW);
    }
}

/// What mkfs.xfs fills a file system with, without a kernel: a line for each entry of a directory, with what it is of.
pub(crate) fn prototype(dir: &Path, out: &mut String) {
    let mut entries: Vec<_> = fs::read_dir(dir).expect("a directory").flatten().collect();
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        let (path, meta) = (entry.path(), fs::symlink_metadata(entry.path()).expect("metadata"));
        let name = entry.file_name().into_string().expect("text");
        let (mode, owner) = (meta.mode() & 0o777, format!("{} {}", meta.uid(), meta.gid()));
        if meta.is_dir() {
            out.push_str(&format!("{name} d--{mode:03o} {owner}\n"));
            prototype(&path, out);
            out.push_str("$\n");
        } else if meta.is_symlink() {
            let target = fs::read_link(&path).expect("a target");
            out.push_str(&format!("{name} l--{mode:03o} {owner} {}\n", target.display()));
        } else if meta.rdev() != 0 {
            out.push_str(&format!("{name} c--{mode:03o} {owner} 1 3\n"));
        } else {
            out.push_str(&format!("{name} ---{mode:03o} {owner} {}\n", path.display()));
        }
    }
}

/// Directories, files and links in each form that an inode can have.
fn in_every_form(source: &Path) {
    let at = |name: &str| source.join(name);
    // A directory in each form: in its inode, in one block, with an index, with an index of several levels.
    for (name, entries) in [("short", 3), ("block", 30), ("leaf", 200), ("node", 6000)] {
        fs::create_dir(at(name)).expect("a directory");
        for i in 0..entries {
            fs::write(at(name).join(format!("a-name-with-the-number-{i}")), "x").expect("a file");
        }
    }
    for (i, size) in [0, 1, 511, 4096, 70_000, 3_000_000].into_iter().enumerate() {
        fs::write(at(&format!("file-{i}")), Random(seed()).bytes(size)).expect("a file");
    }
    rustix::fs::chown(at("file-1"), Some(rustix::fs::Uid::from_raw(70_000)), None).expect("root");
    std::os::unix::fs::symlink("short/target", at("link")).expect("a link");
    std::os::unix::fs::symlink(["t"; 150].join("/"), at("long-link")).expect("a link");
    let device = rustix::fs::makedev(1, 3);
    let mode = rustix::fs::Mode::from_raw_mode(0o600);
    rustix::fs::mknodat(
        rustix::fs::CWD,
        at("null"),
        rustix::fs::FileType::CharacterDevice,
        mode,
        device,
    )
    .expect("a device");
}

/// Kernels have stopped to mount it; mkfs.xfs and xfs_db still write it.
#[test]
fn version_4() {
    if no_oracle("version_4") {
        return;
    }
    let source = tempfile::tempdir().expect("a directory");
    in_every_form(source.path());
    let mut text = "nothing\n0 0\nd--755 0 0\n".to_owned();
    prototype(source.path(), &mut text);
    text.push_str("$\n");
    let how = Compare {
        accessed: false,
        modified: false,
        changed: false,
        created: false,
        inode_numbers: false,
        allocated: false,
        directory_sizes: false,
        ..HOW
    };
    for args in [&["-n", "ftype=0"][..], &["-n", "ftype=1"], &["-b", "size=512", "-i", "size=256"]]
    {
        let image = Image::new(400 << 20);
        let proto = image.dir().join("proto");
        fs::write(&proto, &text).expect("a file");
        let proto = proto.to_str().expect("plain").to_owned();
        let image =
            image.with("mkfs.xfs", &[&["-q", "-f", "-m", "crc=0", "-p", &proto], args].concat());
        let path = image.path().to_str().expect("plain").to_owned();
        let fs = open(&image);
        let seen = compare(&fs, source.path(), &how);
        assert!(seen.files > 6200, "{seen:?}");
        // Attributes in the inode, in a block, in several, and values of their own.
        let inode = format!("inode {}", fs.lookup(fs.root(), b"file-2").expect("a file").inode);
        let mut line = vec!["-x", "-c", &inode];
        let sets: Vec<String> = [(1, 9), (2, 900), (3, 60_000), (4, 1)]
            .into_iter()
            .chain((5..90).map(|i| (i, 40)))
            .map(|(i, len)| format!("attr_set -u -v {len} name-{i}"))
            .collect();
        for set in &sets {
            line.extend(["-c", set.as_str()]);
        }
        line.push(&path);
        run("xfs_db", &line);
        let fs = open(&image);
        let all = fs.xattrs(find(&fs, "file-2")).expect("attributes");
        assert_eq!(all.len(), sets.len());
        let len = |name: &str| {
            let found = all.iter().find(|x| x.name == name.as_bytes()).expect("it is there");
            assert!(found.value.iter().all(|byte| *byte == b'v'));
            found.value.len()
        };
        assert_eq!([len("user.name-1"), len("user.name-2"), len("user.name-3")], [9, 900, 60_000]);
        assert!(fs.info().notes.is_empty(), "{:?}", fs.info().notes);
    }
}

#[test]
fn long_attributes_and_many() {
    let test = "long_attributes_and_many";
    if no_oracle(test) {
        return;
    }
    for args in [&["-b", "size=1024"][..], &[]] {
        let image = Image::new(512 << 20).with("mkfs.xfs", &[&["-q", "-f"], args].concat());
        {
            let mounted = image.mount("xfs", "");
            let mut random = Random(seed());
            let set = |name: &str, key: &str, value: &[u8]| {
                let path = mounted.path().join(name);
                File::options().create(true).append(true).open(&path).expect("a file");
                rustix::fs::setxattr(&path, key, value, rustix::fs::XattrFlags::empty())
                    .expect("a value");
            };
            for len in [1, 500, 1000, 4000, 4096, 5000, 20_000, 65_536] {
                set("long", &format!("user.of-{len}"), &random.bytes(len));
            }
            for i in 0..800 {
                let len = (i % 90) as usize;
                set("many", &format!("user.attribute-number-{i}"), &random.bytes(len));
            }
            for len in [58, 300, 900, 1000, 1023] {
                let target = "t/".repeat(len / 2) + if len % 2 == 1 { "u" } else { "" };
                std::os::unix::fs::symlink(target, mounted.path().join(format!("link-{len}")))
                    .expect("a link");
            }
        }
        let fs = open(&image);
        let mounted = image.mount("xfs", "ro,norecovery");
        compare(&fs, mounted.path(), &HOW);
        assert_eq!(fs.xattrs(find(&fs, "many")).expect("attributes").len(), 800);
    }
}

#[test]
fn a_directory_of_a_hundred_thousand() {
    let test = "a_directory_of_a_hundred_thousand";
    if no_oracle(test) {
        return;
    }
    let image = Image::new(2 << 30).with("mkfs.xfs", &["-q", "-f"]);
    {
        let mounted = image.mount("xfs", "");
        let dir = mounted.path().join("many");
        fs::create_dir(&dir).expect("a directory");
        for i in 0..100_000 {
            File::create(dir.join(format!("entry number {i}"))).expect("a file");
        }
        // Some are gone: their places in the index are empty.
        for i in (0..100_000).step_by(3) {
            fs::remove_file(dir.join(format!("entry number {i}"))).expect("it goes");
        }
    }
    let fs = open(&image);
    let dir = find(&fs, "many");
    let start = Instant::now();
    let (mut from, mut count) = (DirCookie::START, 0);
    loop {
        let part = fs.read_dir(dir, from, 1000).expect("a part");
        let Some(last) = part.last() else { break };
        from = last.next;
        for entry in &part {
            assert_eq!(fs.stat(entry.node).expect("metadata").kind, entry.kind.expect("a kind"));
        }
        count += part.len();
    }
    eprintln!("{count} entries with metadata in {:?}", start.elapsed());
    assert_eq!(count, 66_666);
    for i in (0..100_000).step_by(97) {
        let found = fs.lookup(dir, format!("entry number {i}").as_bytes());
        assert_eq!(found.is_ok(), i % 3 != 0, "{i}: {found:?}");
    }
}

#[test]
fn large_and_fragmented_files() {
    let test = "large_and_fragmented_files";
    if no_oracle(test) {
        return;
    }
    let image = Image::new(1 << 30).with("mkfs.xfs", &["-q", "-f", "-b", "size=1024"]);
    {
        let mounted = image.mount("xfs", "");
        // Every second block: a tree of extents.
        let file = File::create(mounted.path().join("holes")).expect("a file");
        for i in 0..60_000u64 {
            file.write_all_at(&[i as u8 | 1; 700], i * 2048).expect("a block");
        }
        file.write_all_at(b"far", 5 << 40).expect("a block");
        // Blocks that two files share.
        let (from, to) = (mounted.path().join("holes"), mounted.path().join("shared"));
        run(
            "cp",
            &["--reflink=always", from.to_str().expect("plain"), to.to_str().expect("plain")],
        );
        let shared = File::options().write(true).open(&to).expect("it opens");
        shared.write_all_at(b"changed", 4096).expect("a block of its own");
    }
    let fs = open(&image);
    let mounted = image.mount("xfs", "ro,norecovery");
    compare(&fs, mounted.path(), &HOW);
}

#[test]
fn a_log_that_was_not_written_back_is_told() {
    let test = "a_log_that_was_not_written_back_is_told";
    if no_oracle(test) {
        return;
    }
    for args in [&["-l", "size=64m"][..], &["-l", "su=256k"]] {
        let image = Image::new(1 << 30).with("mkfs.xfs", &[&["-q", "-f"], args].concat());
        assert!(open(&image).info().notes.is_empty(), "new");
        // The log goes round several times.
        for round in 0..3 {
            let mounted = image.mount("xfs", "");
            for i in 0..2000 {
                let path = mounted.path().join(format!("file-{}", (i + round) % 700));
                fs::write(&path, format!("{i}")).expect("a file");
                if i % 5 == 0 {
                    File::open(&path).and_then(|f| f.sync_all()).expect("durable");
                }
            }
            let torn = image.copy();
            let notes = open(&torn).info().notes.clone();
            assert!(notes.iter().any(|note| note.contains("not replayed")), "{notes:?}");
            drop(mounted);
            let notes = open(&image).info().notes.clone();
            assert!(notes.is_empty(), "round {round}: {notes:?}");
        }
    }
}

#[test]
fn what_is_not_there_and_damaged_superblocks() {
    let test = "what_is_not_there_and_damaged_superblocks";
    if no_oracle(test) {
        return;
    }
    let image = Image::new(512 << 20).with("mkfs.xfs", &["-q", "-f"]);
    let fs = open(&image);
    for node in [NodeId::inode(0), NodeId::inode(u64::MAX), NodeId { inode: 128, part: 1 }] {
        assert_eq!(fs.stat(node).expect_err("none").kind(), ErrorKind::NotFound, "{node}");
    }
    let root = fs.root();
    assert_eq!(fs.read(root, 0, &mut [0; 9]).expect_err("no file").kind(), ErrorKind::IsADirectory);
    assert_eq!(fs.read_link(root).expect_err("no link").kind(), ErrorKind::Invalid);
    assert!(list(&fs, root).is_empty());
    let file = File::options().write(true).open(image.path()).expect("it opens");
    file.write_all_at(b"another name", 108).expect("damage");
    let fs = open(&image);
    assert!(fs.info().notes[0].contains("copy in group 1"), "{:?}", fs.info().notes);
    assert_eq!(fs.info().label, "");
    file.write_all_at(&[0xff], 217).expect("damage");
    file.write_all_at(&[0; 4], 224).expect("damage");
    open(&image);
}
