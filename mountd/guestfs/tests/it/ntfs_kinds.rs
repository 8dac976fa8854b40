//! NTFS: what only it has: compressed files, streams, reparse points, short names, files in many records.

use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::Path;

use backstay_guestfs::ErrorKind;
use backstay_guestfs::fs::{FileSystem, NodeKind, Place};
use rustix::fs::{CWD, FileType, Mode, XattrFlags};

use crate::ntfs::{compared, made, mount, open};
use crate::support::compare::list;
use crate::support::image::{Image, no_fuse, skipped};
use crate::support::{Random, seed};

const PROGRAMS: &[&str] = &["mkntfs", "ntfs-3g"];
const DIRECTORY: bool = true;

fn set(path: &Path, name: &str, value: &[u8]) {
    rustix::fs::lsetxattr(path, name, value, XattrFlags::empty())
        .unwrap_or_else(|e| panic!("{name} of {path:?}: {e}"));
}

/// Files that shrink well, not at all, in parts, and with holes; rewritten in the middle.
fn compressed_files(root: &Path, random: &mut Random) {
    fs::create_dir(root).expect("a directory");
    set(root, "system.ntfs_attrib_be", &0x0800u32.to_be_bytes());
    let text = "what is said again and again takes little space\n".repeat(30_000);
    fs::write(root.join("text"), &text).expect("a file");
    fs::write(root.join("noise"), random.bytes(300_001)).expect("a file");
    fs::write(root.join("short"), "too short for a unit").expect("a file");
    fs::write(root.join("zeros"), vec![0; 1 << 20]).expect("a file");
    let mixed = File::create(root.join("mixed")).expect("a file");
    for i in 0..24u64 {
        let piece = if i % 3 == 0 { random.bytes(40_000) } else { vec![i as u8; 40_000] };
        mixed.write_all_at(&piece, i * 50_000).expect("data");
    }
    drop(mixed);
    let file = File::options().write(true).open(root.join("text")).expect("a file");
    file.write_all_at(&random.bytes(70_000), 200_000).expect("data");
}

#[test]
fn compressed_files_as_ntfs_3g_reads_them() {
    let test = "compressed_files_as_ntfs_3g_reads_them";
    if skipped(test, PROGRAMS) || no_fuse(test) {
        return;
    }
    let mut random = Random(seed());
    for args in [&[][..], &["-c", "512"], &["-c", "1024"]] {
        let image = made(64 << 20, args);
        {
            let mounted = mount(&image, "compression");
            compressed_files(&mounted.path().join("dir"), &mut random);
        }
        let seen = compared(&image);
        assert!(seen.content_bytes > 3_000_000, "{seen:?}");
        let fs = open(&image);
        let dir = fs.lookup(fs.root(), b"dir").expect("a directory");
        let node = fs.lookup(dir, b"text").expect("a file");
        let stat = fs.stat(node).expect("metadata");
        assert!(stat.attributes.compressed && stat.allocated_bytes < stat.size_bytes, "{stat:?}");
        let extents = fs.extents(node, 0, u64::MAX, 1000).expect("extents");
        assert!(extents.iter().any(|extent| extent.place == Place::Inside));
    }
}

#[test]
fn files_in_many_records_and_large_directories() {
    let test = "files_in_many_records_and_large_directories";
    if skipped(test, PROGRAMS) || no_fuse(test) {
        return;
    }
    let mut random = Random(seed());
    let image = made(400 << 20, &["-c", "1024"]);
    {
        let mounted = mount(&image, "noatime");
        let file = File::create(mounted.path().join("in pieces")).expect("a file");
        // Each piece for itself, from the end to the start: one run each, some thousand together.
        for i in (0..3000u64).rev() {
            file.write_all_at(&random.bytes(1024), i * 2048).expect("data");
        }
        let many = mounted.path().join("many");
        fs::create_dir(&many).expect("a directory");
        for i in 0..12_000 {
            let name = format!("{:016x} with a long name {i}", random.next());
            File::create(many.join(name)).expect("a file");
        }
    }
    let fs = open(&image);
    let node = fs.lookup(fs.root(), b"in pieces").expect("a file");
    let (mut at, mut data) = (0, 0);
    while at < fs.stat(node).expect("metadata").size_bytes {
        let extents = fs.extents(node, at, u64::MAX, 100).expect("extents");
        at = extents.last().map(|e| e.offset_bytes + e.len_bytes).expect("they go on");
        data += extents.iter().filter(|e| matches!(e.place, Place::Device { .. })).count();
    }
    assert!(data > 2500, "{data}");
    let started = std::time::Instant::now();
    let dir = fs.lookup(fs.root(), b"many").expect("a directory");
    let names = list(&fs, dir);
    for (name, node, _) in &names {
        fs.stat(*node).expect("metadata");
        assert_eq!(fs.lookup(dir, &name.to_ascii_uppercase()).expect("any case"), *node);
    }
    eprintln!("{} names listed and found in {:?}", names.len(), started.elapsed());
    let mut names: Vec<_> = names.into_iter().map(|(name, ..)| name).collect();
    names.sort();
    names.dedup();
    assert_eq!(names.len(), 12_000);
    compared(&image);
}

/// A reparse point of Microsoft's.
fn reparse(tag: u32, data: &[u8]) -> Vec<u8> {
    let mut bytes = tag.to_le_bytes().to_vec();
    bytes.extend((data.len() as u16).to_le_bytes());
    bytes.extend([0, 0]);
    bytes.extend(data);
    bytes
}

/// The data of a junction, or with `flags` of a symbolic link.
fn names(target: &str, flags: Option<u32>) -> Vec<u8> {
    let text: Vec<u8> = target.encode_utf16().flat_map(u16::to_le_bytes).collect();
    let len = text.len() as u16;
    let mut data = Vec::new();
    for number in [0, len, len + 2, len] {
        data.extend(number.to_le_bytes());
    }
    data.extend(flags.map(u32::to_le_bytes).into_iter().flatten());
    data.extend(text.iter().chain(&[0, 0]).chain(&text).chain(&[0, 0]));
    data
}

const JUNCTION: u32 = 0xa000_0003;
const SYMLINK: u32 = 0xa000_000c;

fn reparse_points(image: &Image) {
    let mounted = mount(image, "noatime");
    let root = mounted.path();
    fs::create_dir_all(root.join("Users/Public")).expect("a directory");
    fs::write(root.join("Users/Public/file.txt"), "x").expect("a file");
    let make = |name: &str, directory: bool, value: &[u8]| {
        let path = root.join(name);
        if directory {
            fs::create_dir(&path).expect("a directory");
        } else {
            fs::write(&path, "").expect("a file");
        }
        set(&path, "system.ntfs_reparse_data", value);
    };
    make("junction", DIRECTORY, &reparse(JUNCTION, &names(r"\??\C:\Users\Public", None)));
    make("elsewhere", DIRECTORY, &reparse(JUNCTION, &names(r"\??\d:\no\such", None)));
    make("relative", !DIRECTORY, &reparse(SYMLINK, &names(r"Users\Public\file.txt", Some(1))));
    make("full", !DIRECTORY, &reparse(SYMLINK, &names(r"\??\C:\Users\Public\file.txt", Some(0))));
    make("from-root", !DIRECTORY, &reparse(SYMLINK, &names(r"\Users\Public\file.txt", Some(1))));
    make("wof", !DIRECTORY, &reparse(0x8000_0017, &[1; 16]));
    make("dedup", !DIRECTORY, &reparse(0x8000_0013, &[1; 16]));
    make("cloud", !DIRECTORY, &reparse(0x9000_701a, &[1; 16]));
    make("lx-link", !DIRECTORY, &reparse(0xa000_001d, b"\x02\0\0\0/etc/\xc3\xa4rger"));
}

#[test]
fn reparse_points_are_links_or_told_by_name() {
    let test = "reparse_points_are_links_or_told_by_name";
    if skipped(test, PROGRAMS) || no_fuse(test) {
        return;
    }
    let image = made(32 << 20, &[]);
    reparse_points(&image);
    let fs = open(&image);
    let mounted = mount(&image, "ro");
    for name in ["junction", "elsewhere", "relative", "full", "from-root", "lx-link"] {
        let theirs = fs::read_link(mounted.path().join(name)).expect("a link");
        let theirs = theirs.strip_prefix(mounted.path()).map_or(theirs.as_path(), |rest| rest);
        let theirs = theirs.as_os_str().as_bytes();
        let node = fs.lookup(fs.root(), name.as_bytes()).expect("a name");
        let ours = fs.read_link(node).expect("a link");
        let stat = fs.stat(node).expect("metadata");
        assert_eq!((stat.kind, stat.size_bytes), (NodeKind::Symlink, ours.len() as u64));
        let from_root = ours.strip_prefix(b"/").filter(|_| name != "lx-link");
        let shown = String::from_utf8_lossy(&ours);
        assert_eq!(from_root.unwrap_or(&ours), theirs, "{name}: {shown}");
    }
    for (name, told) in [("wof", "WOF"), ("dedup", "deduplication")] {
        let node = fs.lookup(fs.root(), name.as_bytes()).expect("a name");
        assert_eq!(fs.stat(node).expect("metadata").kind, NodeKind::File);
        for e in [fs.read(node, 0, &mut [0]).unwrap_err(), fs.extents(node, 0, 1, 1).unwrap_err()] {
            assert!(e.kind() == ErrorKind::Unsupported && e.to_string().contains(told), "{e}");
        }
    }
    let cloud = fs.lookup(fs.root(), b"cloud").expect("a name");
    assert_eq!(fs.read(cloud, 0, &mut [0]).expect("it is all here"), 0);
}

#[test]
fn devices_of_interix_and_of_wsl() {
    let test = "devices_of_interix_and_of_wsl";
    if skipped(test, PROGRAMS) || no_fuse(test) {
        return;
    }
    for options in ["special_files=interix", "special_files=wsl"] {
        let image = made(32 << 20, &[]);
        {
            let mounted = mount(&image, options);
            for (name, kind, major, minor) in [
                ("char", FileType::CharacterDevice, 1, 3),
                ("block", FileType::BlockDevice, 259, 70_000),
                ("pipe", FileType::Fifo, 0, 0),
                ("socket", FileType::Socket, 0, 0),
            ] {
                let dev = rustix::fs::makedev(major, minor);
                let path = mounted.path().join(name);
                rustix::fs::mknodat(CWD, path, kind, Mode::from_raw_mode(0o640), dev)
                    .unwrap_or_else(|e| panic!("{options} {name}: {e}"));
            }
            std::os::unix::fs::symlink("pi/pe", mounted.path().join("link")).expect("a link");
        }
        let fs = open(&image);
        let stat = |name: &str| {
            let node = fs.lookup(fs.root(), name.as_bytes()).expect("a name");
            let stat = fs.stat(node).expect("metadata");
            (stat.kind, stat.device)
        };
        assert_eq!(stat("char"), (NodeKind::CharDevice, Some((1, 3))), "{options}");
        assert_eq!(stat("block"), (NodeKind::BlockDevice, Some((259, 70_000))), "{options}");
        assert_eq!(stat("pipe"), (NodeKind::Fifo, None), "{options}");
        assert_eq!(stat("socket"), (NodeKind::Socket, None), "{options}");
        let link = fs.lookup(fs.root(), b"link").expect("a name");
        assert_eq!(fs.read_link(link).expect("a target"), b"pi/pe");
        let wrong = fs.lookup(fs.root(), b"pipe").expect("a name");
        assert_eq!(fs.read(wrong, 0, &mut [0]).unwrap_err().kind(), ErrorKind::Invalid);
    }
}

#[test]
fn short_names_streams_and_early_times() {
    let test = "short_names_streams_and_early_times";
    if skipped(test, PROGRAMS) || no_fuse(test) {
        return;
    }
    let image = made(32 << 20, &["-L", "Bänder 🙂"]);
    {
        let mounted = mount(&image, "noatime");
        let path = mounted.path().join("A long name.text");
        fs::write(&path, "content").expect("a file");
        set(&path, "system.ntfs_dos_name", b"ALONGN~1.TEX");
        set(&path, "user.Zone", b"the zone");
        set(&path, "user.large", &[7; 60_000]);
        // 1601-01-02, and three times more: making, change, reading, change of metadata.
        let early = [864_000_000_007u64, 864_000_000_001, 1, 0].map(u64::to_be_bytes).concat();
        set(&path, "system.ntfs_times_be", &early);
        fs::write(mounted.path().join("with:colon"), "y").expect("a file");
    }
    let fs = open(&image);
    assert_eq!(fs.info().label, "Bänder 🙂");
    assert!(fs.info().notes.is_empty(), "{:?}", fs.info());
    assert!(fs.info().used_bytes.is_some_and(|used| used > 1 << 20 && used < 32 << 20));
    let names: Vec<_> = list(&fs, fs.root()).into_iter().map(|(name, ..)| name).collect();
    assert_eq!(names, [&b"A long name.text"[..], b"with:colon"]);
    let node = fs.lookup(fs.root(), b"A long name.text").expect("its name");
    for name in ["a LONG name.TEXT", "ALONGN~1.TEX", "alongn~1.tex"] {
        assert_eq!(fs.lookup(fs.root(), name.as_bytes()).expect("a spelling"), node);
    }
    let stat = fs.stat(node).expect("metadata");
    assert_eq!(stat.links, 1);
    let made = stat.created.expect("a time");
    assert_eq!((made.seconds, made.nanos), (-11_644_473_600 + 86_400, 700));
    assert_eq!((stat.modified.seconds, stat.modified.nanos), (-11_644_473_600 + 86_400, 100));
    for name in ["A long name.text:Zone", "a long name.text:zone"] {
        let stream = fs.lookup(fs.root(), name.as_bytes()).expect("a stream");
        assert_eq!(stream.inode, node.inode);
        let mut text = [0; 20];
        assert_eq!(fs.read(stream, 4, &mut text).expect("it reads"), 4);
        assert_eq!(&text[..4], b"zone");
        assert_eq!(fs.stat(stream).expect("metadata").size_bytes, 8);
    }
    assert!(fs.lookup(fs.root(), b"A long name.text:none").is_err());
    assert!(fs.lookup(fs.root(), b"with:colon").is_ok());
    assert_eq!(fs.xattrs(node).expect("streams").len(), 2);
    // The format's own files have names, and are not listed.
    assert!(fs.lookup(fs.root(), b"$MFT").is_ok());
}
