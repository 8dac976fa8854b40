//! The comparison that all readers are held to, held to something itself: it must find planted mistakes.

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::support::compare::{Compare, compare};
use crate::support::memory_fs::DirFs;

fn planted(change: impl FnOnce(&mut DirFs)) -> bool {
    let dir = tempfile::tempdir().expect("a directory");
    fs::create_dir(dir.path().join("sub")).expect("a directory");
    fs::write(dir.path().join("sub/file"), vec![7; 3 << 20]).expect("a file");
    fs::write(dir.path().join("other"), "x").expect("a file");
    std::os::unix::fs::symlink("sub", dir.path().join("link")).expect("a link");
    let mut ours = DirFs::new(dir.path().to_owned());
    change(&mut ours);
    // Nothing is mounted read-only here: times of reading move.
    let how = Compare { accessed: false, ..Compare::ALL };
    catch_unwind(AssertUnwindSafe(|| compare(&ours, dir.path(), &how))).is_err()
}

#[test]
fn what_is_the_same_passes_and_planted_mistakes_are_found() {
    assert!(!planted(|_| {}));
    assert!(planted(|fs| fs.twist = |s| s.mode ^= 0o4000));
    assert!(planted(|fs| fs.twist = |s| s.gid += 1));
    assert!(planted(|fs| fs.twist = |s| s.modified.nanos ^= 1));
    assert!(planted(|fs| fs.twist = |s| s.size_bytes += u64::from(s.size_bytes == 1)));
    assert!(planted(|fs| fs.bytes = |b| if b.len() > 100 {
        b[99] ^= 1
    }));
    assert!(planted(|fs| fs.names = |n| n.retain(|e| e.name != b"other")));
    assert!(planted(|fs| fs.names = |n| n.iter_mut().for_each(|e| e.name.push(b'x'))));
}
