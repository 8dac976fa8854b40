//! Trees written into directories, as they should be.

use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::sync::atomic::{AtomicU64, Ordering};

use backstay_core::ErrorKind;
use backstay_core::files::What;
use backstay_core::files::directory::{IdRange, Options, Ownership, write};
use backstay_core::monitor::{Monitor, Silent};
use backstay_guestfs::fs::{NodeKind, Time, Xattr};

use super::memory::{MemoryFs, ROOT, WHEN};
use super::{names, restore, root, whole};

/// All kinds, two directories deep.
pub(crate) fn sample() -> MemoryFs {
    let mut fs = MemoryFs::new();
    let etc = fs.dir(ROOT, "etc");
    fs.file(etc, "passwd", b"root:x:0:0:root:/root:/bin/sh\n");
    let big: Vec<u8> =
        (0..5_000_000u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    fs.file(ROOT, "big", &big);
    fs.file(ROOT, "empty", b"");
    fs.file(ROOT, b"not \xff text", b"x");
    let sparse = fs.file(ROOT, "sparse", b"");
    let node = fs.get(sparse);
    node.stat.size_bytes = 10 << 30;
    node.data = vec![(1 << 20, vec![7; 8192]), (9 << 30, vec![8; 100])];
    fs.symlink(etc, "link", b"../../../etc/shadow");
    fs.special(ROOT, "pipe", NodeKind::Fifo);
    let twice = fs.file(ROOT, "one", b"two names");
    fs.get(twice).stat.links = 2;
    fs.name(etc, "two", twice);
    let old = fs.file(etc, "old", b"before 1970");
    fs.get(old).stat.modified = Time { seconds: -86_400, nanos: 5 };
    fs.get(etc).stat.mode = 0o750;
    let noted = fs.file(etc, "noted", b"n");
    fs.get(noted).xattrs.push(Xattr { name: b"user.note".to_vec(), value: b"v\0w".to_vec() });
    fs
}

#[test]
fn a_tree_comes_out_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let target = dir.path().join("out");
    let report = restore(&sample(), &target, |options| options.sync = true);
    assert_eq!(report.notes, [], "nothing is lost");
    assert!(report.is_complete());
    assert_eq!((report.files, report.directories), (8, 2));
    assert_eq!((report.symlinks, report.hard_links, report.others), (1, 1, 1));
    assert_eq!(
        names(&target),
        ["big", "empty", "etc", "not \u{fffd} text", "one", "pipe", "sparse"]
    );
    let big = std::fs::read(target.join("big")).unwrap();
    assert!((0..5_000_000u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).eq(big));
    let etc = std::fs::metadata(target.join("etc")).unwrap();
    assert_eq!(etc.mode() & 0o7777, 0o750);
    assert_eq!((etc.mtime(), etc.mtime_nsec()), (WHEN.seconds, i64::from(WHEN.nanos)));
    let old = std::fs::metadata(target.join("etc/old")).unwrap();
    assert_eq!((old.mtime(), old.mtime_nsec()), (-86_400, 5));
    let link = std::fs::read_link(target.join("etc/link")).unwrap();
    assert_eq!(link.to_str(), Some("../../../etc/shadow"));
    let link = std::fs::symlink_metadata(target.join("etc/link")).unwrap();
    assert_eq!(link.mtime_nsec(), 123_456_789);
    assert!(std::fs::metadata(target.join("pipe")).unwrap().file_type().is_fifo());
    let (one, two) = (target.join("one"), target.join("etc/two"));
    let ino = |path| std::fs::metadata(path).unwrap().ino();
    assert_eq!(ino(one), ino(two));
    let mut value = [0; 16];
    let len = rustix::fs::getxattr(target.join("etc/noted"), "user.note", &mut value).unwrap();
    assert_eq!(&value[..len], b"v\0w");
}

#[test]
fn holes_stay_holes() {
    let dir = tempfile::tempdir().unwrap();
    let report = restore(&sample(), dir.path(), |_| ());
    let meta = std::fs::metadata(dir.path().join("sparse")).unwrap();
    assert_eq!(meta.len(), 10 << 30);
    assert!(meta.blocks() * 512 < 1 << 20, "{} blocks", meta.blocks());
    assert!(report.data_bytes < 6_000_000);
    let file = std::fs::File::open(dir.path().join("sparse")).unwrap();
    let mut byte = [0; 3];
    std::os::unix::fs::FileExt::read_exact_at(&file, &mut byte, (9 << 30) - 1).unwrap();
    assert_eq!(byte, [0, 8, 8]);
}

#[test]
fn what_is_there_stays_unless_it_may_be_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let etc = dir.path().join("etc");
    std::fs::create_dir(&etc).unwrap();
    std::fs::set_permissions(&etc, std::fs::Permissions::from_mode(0o711)).unwrap();
    std::fs::write(etc.join("passwd"), "mine").unwrap();
    std::fs::create_dir(dir.path().join("big")).unwrap();
    let report = restore(&sample(), dir.path(), |_| ());
    assert_eq!(report.count(What::Exists), 2, "{:?}", report.notes);
    assert!(!report.is_complete());
    assert_eq!(std::fs::read(etc.join("passwd")).unwrap(), b"mine");
    assert_eq!(std::fs::metadata(&etc).unwrap().mode() & 0o777, 0o711);
    assert!(etc.join("old").exists(), "the rest comes in beside it");

    let report = restore(&sample(), dir.path(), |options| options.overwrite = true);
    assert_eq!(report.count(What::Exists), 1, "a directory stays: {:?}", report.notes);
    assert!(std::fs::read(etc.join("passwd")).unwrap().starts_with(b"root:"));
    assert_eq!(std::fs::metadata(&etc).unwrap().mode() & 0o777, 0o750);
    assert!(dir.path().join("big").is_dir());
}

#[test]
fn an_unreadable_file_does_not_stop_the_rest() {
    let mut fs = sample();
    let bad = fs.file(ROOT, "bad", &vec![1; 3 << 20]);
    fs.get(bad).broken_from = Some(2 << 20);
    let half = fs.dir(ROOT, "half");
    for n in 0..20 {
        fs.file(half, format!("f{n:02}"), b"here");
    }
    fs.get(half).broken_from = Some(14);
    fs.name(ROOT, "dangling", 999);
    let dir = tempfile::tempdir().unwrap();
    let report = restore(&fs, dir.path(), |_| ());
    assert_eq!(report.count(What::Unreadable), 3, "{:?}", report.notes);
    assert!(!report.is_complete());
    assert_eq!(names(&dir.path().join("half")).len(), 14);
    assert!(!names(dir.path()).iter().any(|name| name == "bad" || name.contains("backstay")));
    assert!(dir.path().join("etc/two").exists());
}

#[test]
fn one_file_gets_the_name_it_is_given() {
    let fs = sample();
    let node = backstay_guestfs::fs::FileSystem::lookup(&fs, whole(&fs).node, b"one").unwrap();
    let tree = backstay_core::files::Tree { fs: &fs, node };
    let dir = tempfile::tempdir().unwrap();
    let options = Options { name: Some(b"mine".to_vec()), ..Options::default() };
    write(tree, dir.path(), &options, &Silent).unwrap();
    assert_eq!(names(dir.path()), ["mine"]);
    for name in ["", ".", "..", "a/b"] {
        let options = Options { name: Some(name.into()), ..Options::default() };
        let error = write(tree, dir.path(), &options, &Silent).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid);
    }
    let error = write(tree, dir.path(), &Options::default(), &Silent).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid);
}

#[test]
fn owners_are_kept_moved_or_told() {
    if !root() {
        println!("SKIPPED owners: needs root");
        return;
    }
    let mut fs = MemoryFs::new();
    let file = fs.file(ROOT, "f", b"x");
    (fs.get(file).stat.uid, fs.get(file).stat.gid) = (1000, 1001);
    let owner = |ownership: Ownership| {
        let dir = tempfile::tempdir().unwrap();
        let report = restore(&fs, dir.path(), |options| options.ownership = ownership);
        let meta = std::fs::metadata(dir.path().join("f")).unwrap();
        (meta.uid(), meta.gid(), report.count(What::Owner))
    };
    let range = |host| vec![IdRange { guest: 1000, host, len: 10 }];
    assert_eq!(owner(Ownership::Auto), (1000, 1001, 0));
    assert_eq!(owner(Ownership::As { uid: 7, gid: 8 }), (7, 8, 0));
    let map = Ownership::Map { users: range(5000), groups: range(6000) };
    assert_eq!(owner(map), (5000, 6001, 0));
    let map = Ownership::Map { users: range(5000), groups: vec![] };
    assert_eq!(owner(map), (0, 0, 1));
}

#[test]
fn bounds_end_a_run_before_it_writes() {
    let fs = sample();
    let dir = tempfile::tempdir().unwrap();
    let options = Options { max_bytes: Some(1000), ..Options::default() };
    let error = write(whole(&fs), dir.path(), &options, &Silent).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoSpace, "{error}");
    let mut options = Options::default();
    options.limits.entries = 5;
    let error = write(whole(&fs), dir.path(), &options, &Silent).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
    assert_eq!(names(dir.path()), [""; 0]);
}

/// Asks for the end after so many bytes.
#[derive(Debug)]
struct EndAfter(u64, AtomicU64);

impl Monitor for EndAfter {
    fn add_bytes(&self, bytes: u64) {
        self.1.fetch_add(bytes, Ordering::Relaxed);
    }
    fn cancelled(&self) -> bool {
        self.1.load(Ordering::Relaxed) > self.0
    }
}

#[test]
fn what_has_its_name_is_whole_wherever_a_run_ends() {
    let mut fs = MemoryFs::new();
    for n in 0..40u8 {
        fs.file(ROOT, format!("f{n}"), &vec![n; 300_000]);
    }
    for after in [0, 1_000_000, 5_000_000] {
        let dir = tempfile::tempdir().unwrap();
        let monitor = EndAfter(after, AtomicU64::new(0));
        let error = write(whole(&fs), dir.path(), &Options::default(), &monitor).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Cancelled);
        let left = names(dir.path());
        assert!(left.len() < 40);
        for name in left {
            assert!(name.starts_with('f'), "{name} is left");
            let n: u8 = name[1..].parse().unwrap();
            assert_eq!(std::fs::read(dir.path().join(name)).unwrap(), vec![n; 300_000]);
        }
    }
}

/// A small file system of memory, unmounted whatever happens.
struct Tmpfs(tempfile::TempDir);

impl Tmpfs {
    fn new(options: &str) -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let mut mount = std::process::Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", options, "tmpfs"]).arg(dir.path());
        let made = root() && mount.output().is_ok_and(|output| output.status.success());
        made.then(|| Tmpfs(dir))
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg(self.0.path()).status();
    }
}

#[test]
fn a_full_target_is_told_and_cleaned_up() {
    let Some(tmpfs) = Tmpfs::new("size=2m") else {
        println!("SKIPPED a full target: needs root and tmpfs");
        return;
    };
    let mut fs = MemoryFs::new();
    fs.file(ROOT, "small", &vec![1; 4096]);
    fs.file(ROOT, "large", &vec![2; 8 << 20]);
    let error = write(whole(&fs), tmpfs.0.path(), &Options::default(), &Silent).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoSpace, "{error}");
    assert_eq!(names(tmpfs.0.path()), [""; 0], "seen before anything is written");
    let options = Options { skip_space_check: true, ..Options::default() };
    let error = write(whole(&fs), tmpfs.0.path(), &options, &Silent).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoSpace, "{error}");
    assert!(!names(tmpfs.0.path()).iter().any(|name| name != "small"));
}

#[test]
fn names_that_are_one_to_the_target_are_told() {
    let Some(tmpfs) = Tmpfs::new("size=2m,casefold") else {
        println!("SKIPPED folded names: needs root and a tmpfs that folds case");
        return;
    };
    let folded = tmpfs.0.path().join("d");
    std::fs::create_dir(&folded).unwrap();
    let marked = std::process::Command::new("chattr").arg("+F").arg(&folded).status();
    if !marked.is_ok_and(|status| status.success()) {
        println!("SKIPPED folded names: chattr +F is refused");
        return;
    }
    let mut fs = MemoryFs::new();
    for (name, bytes) in [("Read.me", "first"), ("README.ME", "second"), ("caf\u{e9}", "third")] {
        fs.file(ROOT, name, bytes.as_bytes());
    }
    fs.file(ROOT, "cafe\u{301}", b"fourth");
    for overwrite in [false, true] {
        let report = restore(&fs, &folded, |options| options.overwrite = overwrite);
        assert_eq!(report.count(What::Collides), 2, "{:?}", report.notes);
        assert_eq!(report.count(What::Exists), 0, "{:?}", report.notes);
        assert_eq!(names(&folded).len(), 2);
        for name in names(&folded) {
            std::fs::write(folded.join(name), "another's").unwrap();
        }
        if !overwrite {
            let report = restore(&fs, &folded, |_| ());
            assert_eq!(report.count(What::Exists), 4, "{:?}", report.notes);
        }
    }
}
