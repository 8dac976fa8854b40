//! Trees that want to write elsewhere, and a target that is changed meanwhile.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use backstay_core::files::What;
use backstay_guestfs::fs::{Attributes, NodeKind, Xattr};
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags};

use super::memory::{MemoryFs, ROOT};
use super::snapshot::{canary, snapshot};
use super::{names, restore, root, seed};

/// Restores beside a canary with and without replacing, and sees that the canary is as it was.
fn attack(fs: &MemoryFs, check: impl Fn(&Path, &backstay_core::files::Report)) {
    for overwrite in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let canary = canary(dir.path());
        let before = snapshot(&canary);
        let target = dir.path().join("target");
        let report = restore(fs, &target, |options| {
            options.overwrite = overwrite;
            options.privileged_metadata = overwrite;
        });
        assert_eq!(snapshot(&canary), before, "the canary was changed");
        assert_eq!(names(dir.path()), ["canary", "target"]);
        check(&target, &report);
    }
}

#[test]
fn a_link_planted_by_one_entry_is_not_used_by_the_next() {
    let mut fs = MemoryFs::new();
    fs.symlink(ROOT, "way", b"../canary");
    let dir = fs.dir(ROOT, "way");
    fs.file(dir, "passwd", b"evil");
    fs.symlink(ROOT, "file", b"../canary/passwd");
    fs.file(ROOT, "file", b"evil");
    attack(&fs, |target, report| {
        assert_eq!(report.count(What::DuplicateName), 2);
        assert!(std::fs::symlink_metadata(target.join("way")).unwrap().is_symlink());
    });
}

#[test]
fn links_that_stand_in_the_target_are_not_followed() {
    let mut fs = MemoryFs::new();
    let way = fs.dir(ROOT, "way");
    fs.file(way, "passwd", b"evil");
    fs.file(ROOT, "file", b"evil");
    fs.get(way).stat.mode = 0o777;
    for overwrite in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let canary = canary(dir.path());
        let target = dir.path().join("target");
        std::fs::create_dir(&target).unwrap();
        std::os::unix::fs::symlink("../canary", target.join("way")).unwrap();
        std::os::unix::fs::symlink("../canary/passwd", target.join("file")).unwrap();
        let before = snapshot(&canary);
        let report = restore(&fs, &target, |options| options.overwrite = overwrite);
        assert_eq!(snapshot(&canary), before);
        assert_eq!(report.count(What::Exists), if overwrite { 1 } else { 2 });
    }
}

#[test]
fn names_that_lead_elsewhere_are_refused() {
    let mut fs = MemoryFs::new();
    let bad: [&[u8]; 9] = [
        b"..",
        b".",
        b"",
        b"../canary/passwd",
        b"/etc/evil",
        b"a/b",
        b"nul\0",
        b"/",
        b"canary/../..",
    ];
    for name in bad {
        fs.file(ROOT, name, b"evil");
    }
    let up = fs.dir(ROOT, "..");
    fs.file(up, "evil", b"evil");
    fs.file(ROOT, "good", b"good");
    attack(&fs, |target, report| {
        assert_eq!(report.count(What::BadName), 10);
        assert_eq!(names(target), ["good"]);
    });
}

#[test]
fn the_second_of_two_entries_of_a_name_is_refused() {
    let mut fs = MemoryFs::new();
    fs.file(ROOT, "a", b"first");
    fs.file(ROOT, "a", b"second");
    let dir = fs.dir(ROOT, "b");
    fs.file(dir, "x", b"x");
    fs.file(ROOT, "b", b"no");
    attack(&fs, |target, report| {
        assert_eq!(report.count(What::DuplicateName), 2);
        assert_eq!(std::fs::read(target.join("a")).unwrap(), b"first");
        assert!(target.join("b/x").exists());
    });
}

#[test]
fn a_further_name_leads_only_to_what_we_wrote() {
    // The first name is taken by a link of the target to a file outside: with and without replacing,
    // the second name must not lead there.
    let mut fs = MemoryFs::new();
    let file = fs.file(ROOT, "one", b"mine");
    fs.get(file).stat.links = 2;
    fs.name(ROOT, "two", file);
    for overwrite in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let canary = canary(dir.path());
        let target = dir.path().join("target");
        std::fs::create_dir(&target).unwrap();
        std::fs::hard_link(canary.join("passwd"), target.join("one")).unwrap();
        let ino = std::fs::metadata(canary.join("passwd")).unwrap().ino();
        restore(&fs, &target, |options| options.overwrite = overwrite);
        assert_eq!(std::fs::read(canary.join("passwd")).unwrap(), b"root:x:0:0");
        assert_ne!(std::fs::metadata(target.join("two")).unwrap().ino(), ino);
        assert_eq!(std::fs::read(target.join("two")).unwrap(), b"mine");
    }
}

#[test]
fn a_mode_does_not_go_through_a_link() {
    let mut fs = MemoryFs::new();
    for name in ["passwd", "deep"] {
        let link = fs.symlink(ROOT, name, format!("../canary/{name}").as_bytes());
        let node = fs.get(link);
        node.stat.mode = 0o777;
        (node.stat.uid, node.stat.gid) = (4242, 4242);
        node.stat.attributes.immutable = true;
        node.xattrs.push(Xattr { name: b"trusted.x".to_vec(), value: vec![1] });
    }
    attack(&fs, |_, report| assert_eq!(report.symlinks, 2));
}

#[test]
fn rights_are_given_only_on_request() {
    let mut fs = MemoryFs::new();
    let file = fs.file(ROOT, "su", b"#!");
    fs.get(file).stat.mode = 0o6755;
    let capability = [&[1, 0, 0, 2, 0, 4, 0, 0][..], &[0; 12]].concat();
    fs.get(file).xattrs = vec![
        Xattr { name: b"security.capability".to_vec(), value: capability },
        Xattr { name: b"trusted.x".to_vec(), value: b"1".to_vec() },
    ];
    fs.special(ROOT, "null", NodeKind::CharDevice);
    fs.special(ROOT, "disk", NodeKind::BlockDevice);
    fs.special(ROOT, "socket", NodeKind::Socket);
    let fixed = fs.file(ROOT, "fixed", b"x");
    fs.get(fixed).stat.attributes = Attributes { append_only: true, ..Attributes::default() };
    let dir = tempfile::tempdir().unwrap();
    let report = restore(&fs, dir.path(), |_| ());
    assert_eq!(names(dir.path()), ["fixed", "su"]);
    assert_eq!(std::fs::metadata(dir.path().join("su")).unwrap().mode() & 0o7777, 0o755);
    let counts = [What::Mode, What::Xattr, What::Device, What::Socket, What::Flags];
    assert_eq!(counts.map(|what| report.count(what)), [1, 2, 2, 1, 1], "{:?}", report.notes);
    if !root() {
        println!("SKIPPED rights on request: needs root");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    fs.get(fixed).stat.attributes.append_only = false;
    let report = restore(&fs, dir.path(), |options| options.privileged_metadata = true);
    assert_eq!(names(dir.path()), ["disk", "fixed", "null", "su"], "{:?}", report.notes);
    assert_eq!(std::fs::metadata(dir.path().join("su")).unwrap().mode() & 0o7777, 0o6755);
    assert_eq!(std::fs::metadata(dir.path().join("null")).unwrap().rdev(), 0x103);
}

#[test]
fn long_names_deep_trees_and_enormous_files_are_told() {
    let mut fs = MemoryFs::new();
    fs.file(ROOT, vec![b'n'; 255], b"fits");
    fs.file(ROOT, vec![b'n'; 256], b"does not");
    let mut at = ROOT;
    for _ in 0..100 {
        at = fs.dir(at, "d");
    }
    fs.file(at, "bottom", b"100 down");
    let huge = fs.file(ROOT, "huge", b"");
    fs.get(huge).stat.size_bytes = u64::MAX;
    let liar = fs.file(ROOT, "liar", b"");
    fs.get(liar).stat.size_bytes = 1 << 50;
    attack(&fs, |target, report| {
        assert!(target.join("d/".repeat(100)).join("bottom").exists());
        assert!(report.count(What::NotWritten) >= 2, "{:?}", report.notes);
        assert!(!target.join("huge").exists());
    });
    let dir = tempfile::tempdir().unwrap();
    let report = restore(&fs, dir.path(), |options| options.limits.depth = 50);
    assert_eq!(report.count(What::TooDeep), 1);
    assert!(dir.path().join("d/".repeat(50)).exists());
}

#[test]
fn a_directory_below_itself_ends() {
    let mut fs = MemoryFs::new();
    let a = fs.dir(ROOT, "a");
    let b = fs.dir(a, "b");
    fs.name(b, "up", a);
    fs.name(b, "top", ROOT);
    fs.name(ROOT, "again", b);
    attack(&fs, |target, report| {
        assert_eq!(report.count(What::Loop), 3);
        assert_eq!(names(&target.join("a/b")), [""; 0]);
    });
}

#[test]
fn more_bytes_than_the_metadata_says_are_bounded() {
    let mut fs = MemoryFs::new();
    let file = fs.file(ROOT, "f", &vec![1; 4 << 20]);
    fs.get(file).stat.allocated_bytes = 0;
    let dir = tempfile::tempdir().unwrap();
    let options =
        backstay_core::files::directory::Options { max_bytes: Some(2 << 20), ..Default::default() };
    let silent = backstay_core::monitor::Silent;
    let tree = super::whole(&fs);
    let error = backstay_core::files::directory::write(tree, dir.path(), &options, &silent);
    assert_eq!(error.unwrap_err().kind(), backstay_core::ErrorKind::NoSpace);
    assert_eq!(names(dir.path()), [""; 0]);
}

/// Numbers by chance, the same for a seed.
struct Chance(u64);

impl Chance {
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % end
    }
}

/// A directory of the target, never reached through a link: the one who renames must not be the one who
/// changes the canary.
fn inside(target: &Path, chance: &mut Chance) -> Option<std::os::fd::OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut dir = rustix::fs::open(target, flags, Mode::empty()).ok()?;
    for _ in 0..chance.below(3) {
        let name = format!("d{}", chance.below(4));
        dir = rustix::fs::openat(&dir, name, flags, Mode::empty()).ok()?;
    }
    Some(dir)
}

/// Puts links to the canary, and back again, in the place of whatever appears in the target.
fn rename_about(target: &Path, canary: &Path, chance: &mut Chance, stop: &AtomicBool) -> u64 {
    let mut swapped = 0;
    let away = target.with_file_name("away");
    std::fs::create_dir_all(&away).unwrap();
    while !stop.load(Ordering::Relaxed) {
        let Some(dir) = inside(target, chance) else { continue };
        // What is there at this moment: directories, files, and names that are not final.
        let Ok(list) = rustix::fs::Dir::read_from(&dir) else { continue };
        let list = list.flatten().map(|entry| entry.file_name().to_owned());
        let list: Vec<_> = list
            .filter(|name| {
                !name.to_bytes().starts_with(b".") || name.to_bytes().starts_with(b".backstay")
            })
            .collect();
        if list.is_empty() {
            continue;
        }
        let victim = &list[chance.below(list.len() as u64) as usize];
        let Ok(stat) = rustix::fs::statat(&dir, victim, AtFlags::SYMLINK_NOFOLLOW) else {
            continue;
        };
        let is_dir = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
        let hidden = away.join(swapped.to_string());
        if rustix::fs::renameat(&dir, victim, CWD, &hidden).is_err() {
            continue;
        }
        swapped += 1;
        let lure = if is_dir { canary.to_path_buf() } else { canary.join("passwd") };
        let _ = rustix::fs::symlinkat(lure, &dir, victim);
        if chance.below(2) == 0 {
            let _ = rustix::fs::unlinkat(&dir, victim, AtFlags::empty());
            let _ = rustix::fs::renameat(CWD, &hidden, &dir, victim);
        }
    }
    swapped
}

#[test]
fn one_who_renames_meanwhile_leads_nothing_elsewhere() {
    let mut fs = MemoryFs::new();
    for a in 0..4 {
        let outer = fs.dir(ROOT, format!("d{a}"));
        for b in 0..4 {
            let inner = fs.dir(outer, format!("d{b}"));
            fs.get(inner).stat.mode = 0o700;
            for name in ["passwd", "link", "deep", "key"] {
                let file = fs.file(inner, name, b"evil");
                fs.get(file).stat.links = 2;
                fs.name(outer, format!("{name}{b}"), file);
            }
            fs.symlink(inner, "ln", b"passwd");
            fs.special(inner, "pipe", NodeKind::Fifo);
        }
    }
    let seed = seed();
    let dir = tempfile::tempdir().unwrap();
    let canary = canary(dir.path());
    let before = snapshot(&canary);
    let target = dir.path().join("target");
    std::fs::create_dir(&target).unwrap();
    let stop = AtomicBool::new(false);
    let (runs, swaps) = std::thread::scope(|scope| {
        let mut chance = Chance(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        let (target, canary, stop) = (&target, &canary, &stop);
        let renamer = scope.spawn(move || rename_about(target, canary, &mut chance, stop));
        let until = Instant::now() + Duration::from_secs(3);
        let mut runs = 0u32;
        while Instant::now() < until {
            restore(&fs, target, |options| options.overwrite = runs.is_multiple_of(2));
            runs += 1;
        }
        stop.store(true, Ordering::Relaxed);
        (runs, renamer.join().unwrap())
    });
    println!("{runs} restores, {swaps} renames");
    assert!(swaps > 10 && runs > 1);
    assert_eq!(snapshot(&canary), before, "the canary was changed");
}
