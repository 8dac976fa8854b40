//! Trees as archives, read back by the tools people have; single files as bytes.

use std::path::Path;
use std::process::Command;

use backstay_core::ErrorKind;
use backstay_core::files::content::cat;
use backstay_core::files::tar::{Options, write};
use backstay_core::files::{Tree, What};
use backstay_core::monitor::Silent;
use backstay_guestfs::fs::{FileSystem, NodeKind, Time};

use super::directory::sample;
use super::memory::{MemoryFs, ROOT};
use super::snapshot::snapshot;
use super::{restore, root, whole};

/// A tree as a tar archive in a file.
fn tar(fs: &MemoryFs, path: &Path) -> backstay_core::files::Report {
    let mut out = std::io::BufWriter::new(std::fs::File::create(path).unwrap());
    write(whole(fs), &mut out, &Options::default(), &Silent).unwrap()
}

/// Sees that a tree that a tool extracted is the one we write ourselves.
fn compare(fs: &MemoryFs, extracted: &Path, tool: &str) {
    let dir = tempfile::tempdir().unwrap();
    restore(fs, dir.path(), |_| ());
    let cut = |top: &Path| {
        let nodes = snapshot(top).into_iter().filter(|(path, _)| path != top);
        let cut: Vec<_> = nodes
            .map(|(path, (mode, owner, links, size, mtime, _, content))| {
                // File systems count directories in their own way.
                let size = if mode & 0o170_000 == 0o040_000 { 0 } else { size };
                // bsdtar adds the fraction of a time before 1970 in the wrong direction.
                let early = tool == "bsdtar" && mtime.0 < 0;
                let mtime = if early { (0, 0) } else { mtime };
                let path = path.strip_prefix(top).unwrap().to_path_buf();
                (path, mode, owner, links, size, mtime, content)
            })
            .collect();
        cut
    };
    let (ours, theirs) = (cut(dir.path()), cut(extracted));
    assert_eq!(ours.len(), theirs.len());
    for (ours, theirs) in ours.iter().zip(&theirs) {
        assert!(ours == theirs, "{:?} {:?} differ", &ours.0, &theirs.0);
    }
}

/// The sample without what a snapshot in memory cannot hold, and with names that need records.
fn archived() -> MemoryFs {
    let mut fs = sample();
    let sparse = fs.lookup(fs.root(), b"sparse").unwrap().inode;
    let node = fs.get(sparse);
    node.stat.size_bytes = 9 << 20;
    node.data = vec![(1 << 20, vec![7; 8192]), (8 << 20, vec![8; 100])];
    let hole = fs.file(ROOT, "hole", b"");
    fs.get(hole).stat.size_bytes = 1 << 20;
    let end = fs.file(ROOT, "end", b"");
    let node = fs.get(end);
    node.stat.size_bytes = 100_001;
    node.data = vec![(100_000, vec![9])];
    let long = fs.dir(ROOT, "l".repeat(120));
    fs.file(long, "\u{e4}\u{f6}\u{fc}".repeat(30), b"long");
    fs.symlink(long, "far", &b"t/".repeat(300));
    let old = fs.file(long, "old", b"o");
    fs.get(old).stat.modified = Time { seconds: -1_000_000_000, nanos: 250_000_000 };
    let far = fs.file(long, "far future", b"o");
    fs.get(far).stat.modified = Time { seconds: 10_000_000_000, nanos: 0 };
    if root() {
        let owned = fs.file(long, "owned", b"o");
        (fs.get(owned).stat.uid, fs.get(owned).stat.gid) = (3_000_000, 100_000);
    }
    fs
}

#[test]
fn gnu_tar_and_bsdtar_extract_what_was_there() {
    let dir = tempfile::tempdir().unwrap();
    let archive = dir.path().join("a.tar");
    let mut fs = archived();
    fs.file(ROOT, b"\xff\xfe".repeat(60), b"long and no text");
    let report = tar(&fs, &archive);
    assert_eq!(report.notes, []);
    assert_eq!((report.hard_links, report.symlinks), (1, 2));
    for (at, tool) in ["tar", "bsdtar"].into_iter().enumerate() {
        let out = dir.path().join(format!("out{at}"));
        std::fs::create_dir(&out).unwrap();
        let mut run = Command::new(tool);
        run.args(["-x", "-p", "-f"]).arg(&archive).arg("-C").arg(&out);
        run.args(["--xattrs", "--numeric-owner"]).env("LC_ALL", "C.UTF-8");
        let output = match run.output() {
            Ok(output) => output,
            Err(error) => {
                println!("SKIPPED extracting with {tool}: {error}");
                continue;
            }
        };
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{tool}: {said}");
        // GNU tar finds times long ago and far ahead strange, and keeps them; it takes all names for
        // bytes, and has no use for being told so.
        let known = ["time stamp", "'hdrcharset'"];
        let complaints = said.lines().filter(|line| !known.iter().any(|word| line.contains(word)));
        assert_eq!(complaints.collect::<Vec<_>>(), [""; 0], "{tool}");
        compare(&fs, &out, tool);
        let mut value = [0; 16];
        let len = rustix::fs::getxattr(out.join("etc/noted"), "user.note", &mut value).unwrap();
        assert_eq!(&value[..len], b"v\0w");
    }
}

#[test]
fn the_same_tree_gives_the_same_archive() {
    let dir = tempfile::tempdir().unwrap();
    let made = [dir.path().join("a"), dir.path().join("b")].map(|path| {
        tar(&archived(), &path);
        std::fs::read(path).unwrap()
    });
    assert!(made[0] == made[1]);
    assert_eq!(made[0].len() % 512, 0);
}

#[test]
fn an_archive_names_what_it_does_not_hold() {
    let mut fs = MemoryFs::new();
    fs.special(ROOT, "socket", NodeKind::Socket);
    fs.special(ROOT, "null", NodeKind::CharDevice);
    fs.file(ROOT, "..", b"evil");
    fs.file(ROOT, "/etc/passwd", b"evil");
    fs.file(ROOT, "a", b"1");
    fs.file(ROOT, "a", b"2");
    let bad = fs.file(ROOT, "bad", &vec![1; 2 << 20]);
    fs.get(bad).broken_from = Some(1 << 20);
    let dir = tempfile::tempdir().unwrap();
    let archive = dir.path().join("a.tar");
    let report = tar(&fs, &archive);
    let whats = [What::Socket, What::BadName, What::DuplicateName, What::Unreadable];
    assert_eq!(whats.map(|what| report.count(what)), [1, 2, 1, 1]);
    let list = Command::new("tar").arg("-tf").arg(&archive).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&list.stdout), "null\na\n");
}

#[test]
fn a_large_unreadable_file_ends_an_archive_or_is_found_before() {
    let mut fs = MemoryFs::new();
    let bad = fs.file(ROOT, "bad", &vec![1; 12 << 20]);
    fs.get(bad).broken_from = Some(11 << 20);
    fs.file(ROOT, "good", b"good");
    let error = write(whole(&fs), &mut Vec::new(), &Options::default(), &Silent).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Damaged);
    let options = Options { check_large: true, ..Options::default() };
    let report = write(whole(&fs), &mut Vec::new(), &options, &Silent).unwrap();
    assert_eq!((report.count(What::Unreadable), report.files), (1, 1));
}

#[test]
fn a_range_of_a_file_is_what_was_asked_for() {
    let fs = archived();
    let of = |name: &[u8]| Tree { fs: &fs, node: fs.lookup(fs.root(), name).unwrap() };
    for (name, size) in [(&b"big"[..], 5_000_000u64), (b"sparse", 9 << 20), (b"empty", 0)] {
        let mut all = vec![0; size as usize];
        assert_eq!(fs.read(of(name).node, 0, &mut all).unwrap() as u64, size);
        let ranges =
            [(0, None), (1, Some(1)), (size / 2, Some(3 << 20)), (size, None), (0, Some(size))];
        for (offset, len) in ranges {
            let mut out = Vec::new();
            let got = cat(of(name), offset, len, &mut out, &Silent).unwrap();
            let end = len.map_or(size, |len| size.min(offset + len)).max(offset.min(size));
            assert!(out == all[offset.min(size) as usize..end as usize]);
            assert_eq!(got, out.len() as u64);
        }
        assert_eq!(cat(of(name), u64::MAX, Some(u64::MAX), &mut vec![], &Silent).unwrap(), 0);
    }
    let error = cat(of(b"etc"), 0, None, &mut Vec::new(), &Silent).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid);
}

#[test]
fn unzip_and_python_read_the_archive() {
    use backstay_core::files::zip;
    let mut fs = archived();
    fs.file(ROOT, "back\\slash", b"b");
    let dir = tempfile::tempdir().unwrap();
    let archive = dir.path().join("a.zip");
    let mut out = std::fs::File::create(&archive).unwrap();
    let report = zip::write(whole(&fs), &mut out, &Options::default(), &Silent).unwrap();
    let whats = [What::Name, What::Device, What::Sparse, What::HardLink, What::Xattr];
    assert_eq!(whats.map(|what| report.count(what)), [2, 1, 3, 2, 1]);
    let script = "import sys, zipfile\nz = zipfile.ZipFile(sys.argv[1])\nassert z.testzip() is None\n\
                  print(len(z.namelist()), z.read('etc/two').decode(), 'back%5Cslash' in z.namelist())";
    match Command::new("python3").args(["-c", script]).arg(&archive).output() {
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stdout);
            let count = report.files + report.directories + report.symlinks - 1;
            assert_eq!(said.trim(), format!("{count} two names True"), "{output:?}");
        }
        Err(error) => println!("SKIPPED python3: {error}"),
    }
    let out = dir.path().join("out");
    match Command::new("unzip").arg("-q").arg(&archive).arg("-d").arg(&out).output() {
        Ok(output) => {
            assert!(output.status.success(), "{output:?}");
            let link = std::fs::read_link(out.join("etc/link")).unwrap();
            assert_eq!(link.to_str(), Some("../../../etc/shadow"));
            let own = dir.path().join("own");
            restore(&fs, &own, |_| ());
            for name in ["big", "sparse", "hole", "end", "etc/two", "empty"] {
                let read = |top: &Path| std::fs::read(top.join(name)).unwrap();
                assert!(read(&out) == read(&own), "{name}");
            }
        }
        Err(error) => println!("SKIPPED unzip: {error}"),
    }
}

#[test]
fn a_zip_that_ended_early_is_no_zip() {
    use backstay_core::files::zip;
    let mut fs = MemoryFs::new();
    fs.file(ROOT, "good", b"good");
    let bad = fs.file(ROOT, "bad", &vec![1; 12 << 20]);
    fs.get(bad).broken_from = Some(11 << 20);
    let mut out = Vec::new();
    let error = zip::write(whole(&fs), &mut out, &Options::default(), &Silent).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Damaged);
    assert!(!out.is_empty());
    assert!(!out.windows(4).any(|four| four == b"PK\x05\x06"), "no list at the end");
}
