//! A tree with everything a file system of Unix can hold, made through a mount.

use std::fs::{self, File, Permissions};
use std::io::Write as _;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::path::Path;

use rustix::fs::{
    AtFlags, CWD, Dev, FallocateFlags, FileType, Gid, Mode, Timespec, Timestamps, Uid, XattrFlags,
};

use super::Random;

/// What a tree has; what a file system cannot hold is left out by its test, with the reason.
#[derive(Debug, Clone)]
pub(crate) struct Contents {
    /// Entries of the directory `many`.
    pub(crate) many: u32,
    /// Levels of the directory `deep`.
    pub(crate) depth: u32,
    /// Length of the sparse file in bytes.
    pub(crate) sparse_bytes: u64,
    /// The earliest and the latest second a time may be at.
    pub(crate) times: (i64, i64),
    pub(crate) xattrs: bool,
    pub(crate) acls: bool,
    /// Names that are not UTF-8.
    pub(crate) raw_names: bool,
    pub(crate) preallocated: bool,
    pub(crate) devices: bool,
}

impl Contents {
    pub(crate) const ALL: Self = Self {
        many: 2000,
        depth: 40,
        sparse_bytes: 10 << 30,
        times: (-(1 << 31), 1 << 33),
        xattrs: true,
        acls: true,
        raw_names: true,
        preallocated: true,
        devices: true,
    };
}

/// Fills `root`, the same way for the same seed.
pub(crate) fn fill(root: &Path, seed: u64, what: &Contents) {
    let mut random = Random(seed);
    files(root, &mut random);
    names(root, what);
    links(root);
    if what.devices {
        nodes(root);
    }
    directories(root, what);
    sparse(root, &mut random, what);
    fragmented(root, &mut random);
    if what.xattrs {
        xattrs(root, &mut random);
    }
    if what.acls {
        acls(root);
    }
    owners_and_modes(root);
    deleted(root);
    // Last, because everything else changes times.
    times(root, what.times);
}

fn files(root: &Path, random: &mut Random) {
    let dir = root.join("sizes");
    fs::create_dir(&dir).expect("a directory");
    for size in
        [0, 1, 59, 60, 61, 100, 511, 512, 513, 1023, 4095, 4096, 4097, 65_535, 65_536, 1_000_000]
    {
        fs::write(dir.join(format!("of-{size}")), random.bytes(size)).expect("a file");
    }
    fs::write(dir.join("text"), "the same line again and again\n".repeat(20_000)).expect("a file");
}

fn names(root: &Path, what: &Contents) {
    let dir = root.join("names");
    fs::create_dir(&dir).expect("a directory");
    let long = "l".repeat(255);
    for name in [
        "ärger",
        "日本語",
        "🙂",
        "with space",
        "-dash",
        "new\nline",
        "*?[",
        "a'b\"c",
        ".hidden",
        &long,
    ] {
        fs::write(dir.join(name), name).expect("a file");
    }
    if what.raw_names {
        for name in [&b"latin-\xe4"[..], b"\xff\xfe", b"\x01\x7f", b"cut-\xe2\x82"] {
            fs::write(dir.join(std::ffi::OsStr::from_bytes(name)), name).expect("a file");
        }
    }
}

fn links(root: &Path) {
    let dir = root.join("links");
    fs::create_dir(&dir).expect("a directory");
    fs::write(dir.join("first"), "one inode").expect("a file");
    for i in 0..20 {
        fs::hard_link(dir.join("first"), dir.join(format!("hard-{i}"))).expect("a link");
    }
    for (name, target) in [
        ("short", "first".to_owned()),
        ("absolute", "/etc/passwd".to_owned()),
        ("up", "../../../../../etc".to_owned()),
        ("dangling", "no/such/thing".to_owned()),
        ("of-59", "s".repeat(59)),
        ("of-60", "s".repeat(60)),
        ("long", "t".repeat(900)),
        ("longest", "u".repeat(1000)),
    ] {
        symlink(target, dir.join(name)).expect("a symbolic link");
    }
}

fn nodes(root: &Path) {
    let dir = root.join("nodes");
    fs::create_dir(&dir).expect("a directory");
    let make = |name: &str, kind, major, minor| {
        let dev: Dev = rustix::fs::makedev(major, minor);
        rustix::fs::mknodat(CWD, dir.join(name), kind, Mode::from_raw_mode(0o640), dev)
            .expect("a node");
    };
    make("null", FileType::CharacterDevice, 1, 3);
    make("wide", FileType::CharacterDevice, 300, 70_000);
    make("disk", FileType::BlockDevice, 259, 12);
    make("pipe", FileType::Fifo, 0, 0);
    make("socket", FileType::Socket, 0, 0);
}

fn directories(root: &Path, what: &Contents) {
    let many = root.join("many");
    fs::create_dir(&many).expect("a directory");
    for i in 0..what.many {
        File::create(many.join(format!("entry number {i} of the many"))).expect("a file");
    }
    let mut deep = root.join("deep");
    for level in 0..what.depth {
        fs::create_dir(&deep).expect("a directory");
        fs::write(deep.join("here"), level.to_string()).expect("a file");
        deep.push(format!("level-{level}"));
    }
    fs::create_dir(root.join("empty")).expect("a directory");
}

fn sparse(root: &Path, random: &mut Random, what: &Contents) {
    let file = File::create(root.join("sparse")).expect("a file");
    file.set_len(what.sparse_bytes).expect("a length");
    for at in [0, 1 << 20, what.sparse_bytes / 2 + 777, what.sparse_bytes - 5000] {
        file.write_all_at(&random.bytes(5000), at).expect("some data");
    }
    let file = File::create(root.join("all-hole")).expect("a file");
    file.set_len(what.sparse_bytes / 3).expect("a length");
    if what.preallocated {
        let file = File::create(root.join("preallocated")).expect("a file");
        rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, 3 << 20).expect("space");
        file.write_all_at(b"in the midst", 1 << 20).expect("some data");
        let file = File::create(root.join("beyond-its-end")).expect("a file");
        rustix::fs::fallocate(&file, FallocateFlags::KEEP_SIZE, 0, 1 << 20).expect("space");
        file.write_all_at(b"short", 0).expect("some data");
    }
}

/// Two files that grow in turns, with gaps: many extents each.
fn fragmented(root: &Path, random: &mut Random) {
    let one = File::create(root.join("fragmented-one")).expect("a file");
    let two = File::create(root.join("fragmented-two")).expect("a file");
    for i in 0..400u64 {
        one.write_all_at(&random.bytes(4096), i * 12_288).expect("data");
        two.write_all_at(&random.bytes(1500), i * 8192).expect("data");
        if i % 50 == 0 {
            one.sync_data().expect("on the disk");
            two.sync_data().expect("on the disk");
        }
    }
}

fn xattrs(root: &Path, random: &mut Random) {
    let set = |path: &Path, name: &str, value: &[u8]| {
        rustix::fs::lsetxattr(path, name, value, XattrFlags::empty())
            .unwrap_or_else(|e| panic!("{name} of {path:?}: {e}"));
    };
    let dir = root.join("xattrs");
    fs::create_dir(&dir).expect("a directory");
    set(&dir, "user.of-a-directory", b"yes");
    let file = |name: &str| {
        let path = dir.join(name);
        fs::write(&path, name).expect("a file");
        path
    };
    let few = file("few");
    set(&few, "user.small", b"value");
    set(&few, "user.empty", b"");
    set(&few, "trusted.binary", b"\x00\x01\xff");
    set(&few, "security.backstay", b"label");
    let many = file("many");
    for i in 0..40 {
        set(&many, &format!("user.number-{i}"), &random.bytes(i));
    }
    set(&file("large"), "user.large", &random.bytes(1900));
    let link = dir.join("a-link");
    symlink("few", &link).expect("a symbolic link");
    set(&link, "trusted.of-a-link", b"x");
}

/// ACLs in the form of `setxattr(2)`: version 2, then tag, permissions and id of each entry.
pub(crate) fn acl(entries: &[(u16, u16, u32)]) -> Vec<u8> {
    let mut bytes = 2u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in entries {
        bytes.extend(tag.to_le_bytes());
        bytes.extend(permissions.to_le_bytes());
        bytes.extend(id.to_le_bytes());
    }
    bytes
}

fn acls(root: &Path) {
    const NOBODY: u32 = u32::MAX;
    let acl = acl(&[
        (1, 6, NOBODY),
        (2, 4, 1234),
        (4, 5, NOBODY),
        (8, 7, 77),
        (0x10, 7, NOBODY),
        (0x20, 0, NOBODY),
    ]);
    let dir = root.join("acls");
    fs::create_dir(&dir).expect("a directory");
    fs::write(dir.join("file"), "x").expect("a file");
    let set = |path: &Path, name: &str| {
        rustix::fs::lsetxattr(path, name, &acl, XattrFlags::empty()).expect("an ACL");
    };
    set(&dir.join("file"), "system.posix_acl_access");
    set(&dir, "system.posix_acl_access");
    set(&dir, "system.posix_acl_default");
}

fn owners_and_modes(root: &Path) {
    let dir = root.join("owners");
    fs::create_dir(&dir).expect("a directory");
    for (name, uid, gid, mode) in [
        ("plain", 1000, 1000, 0o644),
        ("large-ids", 4_000_000_000, 70_000, 0o600),
        ("setuid", 0, 0, 0o4755),
        ("setgid", 1, 2, 0o2711),
        ("sticky", 3, 4, 0o1777),
        ("nothing", 5, 6, 0),
    ] {
        let path = dir.join(name);
        let mut file = File::create(&path).expect("a file");
        file.write_all(name.as_bytes()).expect("data");
        let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
        rustix::fs::chown(&path, Some(uid), Some(gid)).expect("an owner");
        fs::set_permissions(&path, Permissions::from_mode(mode)).expect("a mode");
    }
}

/// Entries that are gone again leave their traces in directories.
fn deleted(root: &Path) {
    let dir = root.join("deleted");
    fs::create_dir(&dir).expect("a directory");
    for i in 0..300 {
        fs::write(dir.join(format!("gone-{i}")), "x").expect("a file");
    }
    for i in (0..300).filter(|i| i % 3 != 0) {
        fs::remove_file(dir.join(format!("gone-{i}"))).expect("it goes");
    }
}

fn times(root: &Path, (first, last): (i64, i64)) {
    let dir = root.join("times");
    fs::create_dir(&dir).expect("a directory");
    for seconds in
        [first, -1, 0, 1, 951_782_400, i64::from(i32::MAX), i64::from(i32::MAX) + 1, last]
    {
        if seconds < first || seconds > last {
            continue;
        }
        let path = dir.join(format!("at{seconds}"));
        File::create(&path).expect("a file");
        let at = |tv_nsec| Timespec { tv_sec: seconds, tv_nsec };
        let times = Timestamps { last_access: at(123_456_789), last_modification: at(999_999_999) };
        rustix::fs::utimensat(CWD, &path, &times, AtFlags::empty()).expect("times");
    }
}
