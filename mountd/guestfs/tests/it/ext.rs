//! The reader of ext2, ext3 and ext4 beside the kernel's: images made by mke2fs with its variants, filled by the kernel, compared
//! file by file.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Instant;

use backstay_guestfs::ErrorKind;
use backstay_guestfs::fs::ext::{Ext, is_here};
use backstay_guestfs::fs::{DirCookie, FileSystem, FsKind, NodeId, Place};

use crate::support::compare::{Compare, compare, find, list};
use crate::support::image::{Image, no_kernel_mount, run, skipped};
use crate::support::tree::{Contents, fill};
use crate::support::{Random, seed};

/// Whether the oracle is missing: the programs, the kernel's driver, or the right to mount.
pub(crate) fn no_oracle(test: &str) -> bool {
    skipped(test, &["mke2fs", "debugfs", "tune2fs"]) || no_kernel_mount(test, "ext4")
}

pub(crate) fn open(image: &Image) -> Ext {
    Ext::open(image.device()).expect("it opens")
}

/// Times from 1901 to 2446, as 34 bits hold them; attributes that fit into a block.
const ALL: Contents = Contents { times: (-(1 << 31), 15_032_385_535), ..Contents::ALL };
/// Less of everything, for variants that change where things are and not what can be there.
pub(crate) const FEW: Contents = Contents { many: 300, depth: 10, ..ALL };
/// What has room in blocks of 1 and 2 KiB, each of which has to hold all attributes of a file.
const NARROW: Contents = Contents { xattrs: false, ..FEW };
/// What files without extents can be.
const OLD: Contents = Contents { preallocated: false, ..FEW };
/// What fits into inodes of 128 bytes: whole seconds, to 2038.
const SHORT: Contents = Contents { times: (-(1 << 31), (1 << 31) - 1), ..OLD };
const SECONDS: Compare =
    Compare { time_slack_nanos: 1_000_000_000, created: false, ..Compare::ALL };

/// Makes a file system, fills it as mounted with `options`, and compares.
fn zoo(test: &str, mkfs: &[&str], options: &str, contents: &Contents, how: &Compare) {
    if no_oracle(test) {
        return;
    }
    eprintln!("{test}: {mkfs:?} {options}");
    let image = Image::new(1 << 30).with("mke2fs", &[&["-q", "-F"], mkfs].concat());
    {
        let mounted = image.mount("ext4", options);
        fill(mounted.path(), seed(), contents);
    }
    assert!(is_here(&image.media()));
    let fs = open(&image);
    let mounted = image.mount("ext4", "ro");
    let seen = compare(&fs, mounted.path(), how);
    assert!(seen.files > u64::from(contents.many), "{seen:?}");
    assert!(fs.info().notes.is_empty(), "{:?}", fs.info().notes);
}

#[test]
fn ext4_as_mke2fs_makes_it() {
    zoo("ext4 as mke2fs makes it", &["-t", "ext4", "-L", "a label"], "", &ALL, &Compare::ALL);
}

#[test]
fn ext2_and_ext3() {
    zoo("ext2", &["-t", "ext2"], "", &OLD, &Compare::ALL);
    zoo("ext3", &["-t", "ext3"], "", &OLD, &Compare::ALL);
    zoo("ext2 with inodes of 128 bytes", &["-t", "ext2", "-I", "128"], "", &SHORT, &SECONDS);
    zoo(
        "ext3 with inodes of 128 bytes",
        &["-t", "ext3", "-I", "128", "-b", "1024"],
        "",
        &Contents { xattrs: false, ..SHORT },
        &SECONDS,
    );
    let plain =
        ["-t", "ext2", "-O", "^dir_index,^filetype,^resize_inode,^sparse_super,^large_file"];
    zoo("ext2 of 1997", &plain, "", &OLD, &Compare::ALL);
}

#[test]
fn sizes_of_blocks_and_inodes() {
    for (block, inode) in [("1024", "256"), ("2048", "512"), ("4096", "1024"), ("4096", "128")] {
        let (contents, how) = match (block, inode) {
            (_, "128") => (&SHORT, &SECONDS),
            ("4096", _) => (&FEW, &Compare::ALL),
            _ => (&NARROW, &Compare::ALL),
        };
        let mkfs = ["-t", "ext4", "-b", block, "-I", inode];
        zoo("ext4 with other sizes", &mkfs, "", contents, how);
    }
}

#[test]
fn where_things_are() {
    for features in [
        "^64bit",
        "^64bit,^metadata_csum,uninit_bg",
        "^metadata_csum,uninit_bg",
        "^metadata_csum,^uninit_bg",
        "meta_bg,^resize_inode",
        "^flex_bg",
        "sparse_super2",
        "bigalloc",
        "metadata_csum_seed",
        "^has_journal",
        "orphan_file",
    ] {
        zoo("ext4 with other features", &["-t", "ext4", "-O", features], "", &FEW, &Compare::ALL);
    }
    let numbers = ["-t", "ext4", "-O", "^extents,^64bit"];
    zoo("ext4 without extents", &numbers, "", &OLD, &Compare::ALL);
    let small = ["-t", "ext4", "-b", "1024", "-O", "bigalloc", "-C", "8192"];
    zoo("ext4 with clusters of 8 KiB", &small, "", &NARROW, &Compare::ALL);
    let meta = ["-t", "ext4", "-b", "1024", "-O", "meta_bg,^resize_inode"];
    zoo("ext4 with scattered descriptors", &meta, "", &NARROW, &Compare::ALL);
}

#[test]
fn what_stands_in_inodes() {
    let inline = ["-t", "ext4", "-O", "inline_data", "-I", "512"];
    zoo("ext4 with content in inodes", &inline, "", &FEW, &Compare::ALL);
    let inline = ["-t", "ext4", "-O", "inline_data"];
    zoo("ext4 with content in inodes", &inline, "", &FEW, &Compare::ALL);
    zoo("ext4 with values in inodes", &["-t", "ext4", "-O", "ea_inode"], "", &FEW, &Compare::ALL);
    if no_oracle("long attributes") {
        return;
    }
    let image = Image::new(256 << 20).with("mke2fs", &["-q", "-F", "-t", "ext4", "-O", "ea_inode"]);
    {
        let mounted = image.mount("ext4", "");
        let path = mounted.path().join("file");
        fs::write(&path, "x").expect("a file");
        for (name, len) in [("user.a", 60_000usize), ("user.b", 3000), ("trusted.c", 20_000)] {
            let value: Vec<u8> = (0..len).map(|i| (i * 7) as u8).collect();
            rustix::fs::setxattr(&path, name, &value, rustix::fs::XattrFlags::empty())
                .expect("a value");
        }
    }
    let mounted = image.mount("ext4", "ro");
    let fs = open(&image);
    compare(&fs, mounted.path(), &Compare::ALL);
    assert_eq!(fs.xattrs(find(&fs, "file")).expect("attributes").len(), 3);
}

#[test]
fn every_hash_of_names() {
    for hash in ["half_md4", "tea", "legacy"] {
        for features in ["dir_index", "dir_index,large_dir"] {
            if no_oracle("ext4 with other hashes") {
                return;
            }
            let mkfs = ["-q", "-F", "-t", "ext4", "-b", "1024", "-O", features];
            let image = Image::new(512 << 20).with("mke2fs", &mkfs);
            let image = image.with("tune2fs", &["-E", &format!("hash_alg={hash}")]);
            for signed in [true, false] {
                // What tells them apart is a flag that mke2fs sets by the machine's own kind of bytes.
                let flags =
                    if signed { "set_super_value flags 1" } else { "set_super_value flags 2" };
                let path = image.path().to_str().expect("plain").to_owned();
                run("debugfs", &["-w", "-R", flags, &path]);
                let mounted = image.mount("ext4", "");
                let dir = mounted.path().join(if signed { "signed" } else { "unsigned" });
                fs::create_dir(&dir).expect("a directory");
                for i in 0..3000 {
                    let name = format!("{i}-gr\u{f6}\u{df}e-{}", "x".repeat(i % 190));
                    File::create(dir.join(name)).expect("a file");
                }
                drop(mounted);
                let mounted = image.mount("ext4", "ro");
                let fs = open(&image);
                // Each name is looked up by the index.
                compare_below(&fs, mounted.path(), if signed { "signed" } else { "unsigned" });
            }
        }
    }
}

fn compare_below(fs: &Ext, mounted: &Path, name: &str) {
    let dir = find(fs, name);
    let mut count = 0;
    for entry in fs::read_dir(mounted.join(name)).expect("the kernel lists") {
        let entry = entry.expect("an entry");
        let own = std::os::unix::ffi::OsStrExt::as_bytes(&*entry.file_name()).to_vec();
        let found = fs.lookup(dir, &own).unwrap_or_else(|e| panic!("{name}/{entry:?}: {e}"));
        assert_eq!(found.inode, std::os::unix::fs::DirEntryExt::ino(&entry));
        count += 1;
    }
    assert_eq!(list(fs, dir).len(), count);
    assert_eq!(fs.lookup(dir, b"not there").expect_err("no such name").kind(), ErrorKind::NotFound);
}

#[test]
fn what_kernels_cannot_mount_everywhere() {
    let test = "what_kernels_cannot_mount_everywhere";
    if no_oracle(test) {
        return;
    }
    let source = tempfile::tempdir().expect("a directory");
    fill(source.path(), seed(), &Contents { sparse_bytes: 1 << 30, ..SHORT });
    let tree = source.path().to_str().expect("plain");
    for (block, features) in [("8192", "extents"), ("65536", "extents"), ("4096", "quota,project")]
    {
        let mkfs = ["-q", "-F", "-t", "ext4", "-I", "256", "-b", block, "-O", features, "-d", tree];
        let image = Image::new(1 << 30).with("mke2fs", &mkfs);
        let fs = open(&image);
        assert_eq!(fs.info().block_bytes.to_string(), block);
        let how = Compare {
            accessed: false,
            changed: false,
            created: false,
            inode_numbers: false,
            allocated: false,
            directory_links: false,
            directory_sizes: false,
            passed_over: &["lost+found"],
            // mke2fs keeps whole seconds of them.
            time_slack_nanos: 1_000_000_000,
            ..Compare::ALL
        };
        let seen = compare(&fs, source.path(), &how);
        assert!(seen.files > 300, "{seen:?}");
    }
}

#[test]
fn a_directory_of_a_hundred_thousand() {
    let test = "a_directory_of_a_hundred_thousand";
    if no_oracle(test) {
        return;
    }
    let image = Image::new(1 << 30).with("mke2fs", &["-q", "-F", "-t", "ext4", "-N", "120000"]);
    {
        let mounted = image.mount("ext4", "");
        let dir = mounted.path().join("many");
        fs::create_dir(&dir).expect("a directory");
        for i in 0..100_000 {
            File::create(dir.join(format!("entry number {i}"))).expect("a file");
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
    assert_eq!(count, 100_000);
    let start = Instant::now();
    for i in (0..100_000).step_by(97) {
        let name = format!("entry number {i}");
        fs.lookup(dir, name.as_bytes()).expect("it is there");
    }
    eprintln!("1031 names looked up in {:?}", start.elapsed());
}

#[test]
fn large_and_fragmented_files() {
    let test = "large_and_fragmented_files";
    if no_oracle(test) {
        return;
    }
    for features in ["extents", "^extents,^64bit"] {
        let mkfs = ["-q", "-F", "-t", "ext4", "-b", "1024", "-O", features];
        let image = Image::new(512 << 20).with("mke2fs", &mkfs);
        {
            let mounted = image.mount("ext4", "");
            // Every second block: a tree of extents three levels deep, numbers in all three levels.
            let file = File::create(mounted.path().join("holes")).expect("a file");
            for i in 0..60_000u64 {
                file.write_all_at(&[i as u8 | 1; 700], i * 2048).expect("a block");
            }
            file.write_all_at(b"far", 15 << 30).expect("a block");
        }
        let fs = open(&image);
        let mounted = image.mount("ext4", "ro");
        compare(&fs, mounted.path(), &Compare::ALL);
    }
}

#[test]
fn the_journal_is_replayed() {
    let test = "the_journal_is_replayed";
    if no_oracle(test) {
        return;
    }
    for (mkfs, options) in [
        (&["-t", "ext4"][..], ""),
        (&["-t", "ext4"], "data=journal"),
        (&["-t", "ext4", "-b", "1024", "-O", "^64bit"], ""),
        (&["-t", "ext3"], "data=journal"),
        (&["-t", "ext3", "-b", "1024"], "journal_checksum"),
        (&["-t", "ext4", "-O", "^metadata_csum"], "data=writeback,journal_async_commit"),
    ] {
        let image = Image::new(256 << 20).with("mke2fs", &[&["-q", "-F"], mkfs].concat());
        let mounted = image.mount("ext4", options);
        let before = mounted.path().join("before");
        fs::create_dir(&before).expect("a directory");
        for i in 0..500 {
            fs::write(before.join(format!("{i}")), vec![i as u8; i * 13]).expect("a file");
        }
        run("sync", &["-f", mounted.path().to_str().expect("plain")]);
        // Blocks that are freed and used again for content: what revocations are for.
        for i in 0..250 {
            fs::remove_file(before.join(format!("{i}"))).expect("it goes");
        }
        fs::create_dir(mounted.path().join("gone")).expect("a directory");
        for i in 0..800 {
            File::create(mounted.path().join(format!("gone/{i}"))).expect("a file");
        }
        fs::remove_dir_all(mounted.path().join("gone")).expect("it goes");
        for i in 0..200 {
            let file = File::create(mounted.path().join(format!("after-{i}"))).expect("a file");
            // The journal's own magic number, which it has to escape in its copy.
            let magic = [0xc0, 0x3b, 0x39, 0x98].repeat(2000);
            file.write_all_at(&magic, 0).expect("content");
            file.sync_all().expect("durable");
        }
        let torn = image.copy();
        drop(mounted);
        let fs = open(&torn);
        // The kernel's view of the same bytes, after it has replayed the journal of a copy.
        let replayed = torn.copy();
        drop(replayed.mount("ext4", options));
        let theirs = replayed.mount("ext4", "ro");
        assert!(theirs.path().join("after-199").exists());
        eprintln!("{mkfs:?} {options}: {:?}", fs.info().notes);
        compare(&fs, theirs.path(), &Compare::ALL);
        assert!(fs.info().notes.is_empty(), "{:?}", fs.info().notes);
    }
}

#[test]
fn what_cannot_be_read_is_told() {
    let test = "what_cannot_be_read_is_told";
    if no_oracle(test) {
        return;
    }
    let image =
        Image::new(64 << 20).with("mke2fs", &["-q", "-F", "-t", "ext4", "-O", "encrypt,casefold"]);
    let fs = open(&image);
    assert_eq!(fs.info().kind, FsKind::Ext4);
    assert!(fs.info().notes[0].contains("encrypted"), "{:?}", fs.info().notes);
    let journal = Image::new(64 << 20).with("mke2fs", &["-q", "-F", "-O", "journal_dev"]);
    let error = Ext::open(journal.device()).expect_err("it is a journal");
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(error.to_string().contains("journal"), "{error}");
    let image = Image::new(64 << 20).with("mke2fs", &["-q", "-F", "-t", "ext4"]);
    let fs = open(&image);
    for node in [NodeId::inode(0), NodeId::inode(1 << 40), NodeId { inode: 2, part: 1 }] {
        assert_eq!(fs.stat(node).expect_err("none").kind(), ErrorKind::NotFound);
    }
    let root = fs.root();
    assert_eq!(fs.read(root, 0, &mut [0; 9]).expect_err("no file").kind(), ErrorKind::IsADirectory);
    assert_eq!(fs.read_link(root).expect_err("no link").kind(), ErrorKind::Invalid);
    // The journal itself is a file like any other.
    let extents = fs.extents(NodeId::inode(8), 0, u64::MAX, 10).expect("places");
    assert!(extents.iter().all(|e| matches!(e.place, Place::Device { device: 0, .. })));
    let mut random = Random(seed());
    for _ in 0..2000 {
        let _ = fs.stat(NodeId::inode(random.next() % 20_000));
    }
}
