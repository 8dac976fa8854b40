//! ext2 to ext4 and XFS with damage: real file systems cut off, and with bits turned over. An answer or an error, never a panic or a
//! promise broken, in bounded time; with checksums never a wrong answer.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{FileExt, symlink};
use std::path::Path;
use std::sync::Arc;

use backstay_blockdev::MemDevice;
use backstay_guestfs::fs::{self as guest, DirCookie, FileSystem, FsKind, NodeId};

use crate::dos_damage::damaged;
use crate::support::image::{Image, run};
use crate::support::{Random, seed};

/// What every kind of structure needs, and little content.
fn fill(root: &Path) {
    fs::create_dir_all(root.join("deep/er/still")).expect("directories");
    fs::write(root.join("deep/er/file"), vec![7; 20_000]).expect("a file");
    fs::create_dir(root.join("many")).expect("a directory");
    for i in 0..120 {
        fs::write(root.join(format!("many/a-name-long-enough-for-several-blocks-{i}")), b"x")
            .expect("a file");
    }
    symlink("t".repeat(50), root.join("short-link")).expect("a link");
    symlink(["t"; 200].join("/"), root.join("long-link")).expect("a link");
    let holes = fs::File::create(root.join("holes")).expect("a file");
    for i in 0..60 {
        holes.write_all_at(&[i; 600], u64::from(i) * 9000).expect("a block");
    }
    let set = |key: &str, value: &[u8]| {
        let path = root.join("holes");
        rustix::fs::setxattr(&path, key, value, rustix::fs::XattrFlags::empty()).expect("a value");
    };
    set("user.small", b"value");
    set("user.large", &[9; 700]);
}

fn made(kind: FsKind, image: &Image) {
    let name = if kind == FsKind::Xfs { "xfs" } else { "ext4" };
    let mounted = image.mount(name, "noatime");
    fill(mounted.path());
}

#[test]
fn ext_with_bits_turned_over() {
    if crate::ext::no_oracle("ext_with_bits_turned_over") {
        return;
    }
    for mkfs in [
        &["-t", "ext2", "-b", "1024"][..],
        &["-t", "ext4", "-b", "1024", "-O", "^metadata_csum,^has_journal"],
        &["-t", "ext4", "-O", "inline_data,^has_journal"],
    ] {
        let image = Image::new(4 << 20);
        let image = image.with("mke2fs", &[&["-q", "-F", "-N", "256"], mkfs].concat());
        made(FsKind::Ext4, &image);
        damaged(FsKind::Ext4, &image, Random(seed()));
    }
    // A journal that has to be replayed.
    let image = Image::new(8 << 20);
    let image = image.with("mke2fs", &["-q", "-F", "-b", "1024", "-t", "ext4", "-N", "256"]);
    let mounted = image.mount("ext4", "noatime");
    fill(mounted.path());
    run("sync", &["-f", mounted.path().to_str().expect("plain")]);
    let torn = image.copy();
    drop(mounted);
    damaged(FsKind::Ext4, &torn, Random(seed()));
}

/// A file system smaller than mkfs makes one for others than its own tests.
fn small_xfs(args: &[&str]) -> Image {
    let image = Image::new(24 << 20);
    let path = image.path().to_str().expect("plain").to_owned();
    let line = ["mkfs.xfs", "-q", "-f", "--unsupported"].iter().chain(args);
    let line: Vec<&str> = line.copied().chain([path.as_str()]).collect();
    run("env", &[&["TEST_DIR=x", "TEST_DEV=x", "QA_CHECK_FS=x"], &line[..]].concat());
    image
}

#[test]
fn xfs_with_bits_turned_over() {
    let test = "xfs_with_bits_turned_over";
    if crate::xfs::no_oracle(test) {
        return;
    }
    let image = small_xfs(&["-b", "size=1024"]);
    made(FsKind::Xfs, &image);
    damaged(FsKind::Xfs, &image, Random(seed()));
    // Without checksums damage gets further. Kernels have stopped to mount this version.
    let source = tempfile::tempdir().expect("a directory");
    fill(source.path());
    let mut text = "nothing\n0 0\nd--755 0 0\n".to_owned();
    crate::xfs::prototype(source.path(), &mut text);
    text.push_str("$\n");
    let proto = source.path().join("proto");
    fs::write(&proto, text).expect("a file");
    let proto = proto.to_str().expect("plain");
    let image = small_xfs(&["-m", "crc=0", "-b", "size=1024", "-p", proto]);
    damaged(FsKind::Xfs, &image, Random(seed()));
}

/// What a file system shows, by path; errors as such.
fn shown(fs: &dyn FileSystem) -> BTreeMap<Vec<u8>, Result<String, ()>> {
    let mut all = BTreeMap::new();
    let mut waiting: Vec<(Vec<u8>, NodeId)> = vec![(Vec::new(), fs.root())];
    while let Some((path, node)) = waiting.pop() {
        let told = (|| {
            let stat = fs.stat(node)?;
            let mut text = format!("{stat:?} {:?}", fs.xattrs(node)?);
            match stat.kind {
                guest::NodeKind::Directory => {
                    let mut from = DirCookie::START;
                    loop {
                        let part = fs.read_dir(node, from, 50)?;
                        let Some(last) = part.last() else { break };
                        from = last.next;
                        for entry in part {
                            waiting.push(([&path[..], b"/", &entry.name].concat(), entry.node));
                        }
                    }
                }
                // Content has no checksums, and with ext4 that is what long targets are; where it lies has.
                guest::NodeKind::Symlink
                    if stat.size_bytes < 60 || fs.info().kind == FsKind::Xfs =>
                {
                    text += &format!("{:?}", fs.read_link(node)?);
                }
                guest::NodeKind::File => {
                    text += &format!("{:?}", fs.extents(node, 0, u64::MAX, 1000)?);
                }
                _ => {}
            }
            Ok::<_, backstay_guestfs::Error>(text)
        })();
        all.insert(path, told.map_err(|_| ()));
    }
    all
}

#[test]
fn with_checksums_nothing_wrong_is_shown() {
    let test = "with_checksums_nothing_wrong_is_shown";
    if crate::ext::no_oracle(test) || crate::xfs::no_oracle(test) {
        return;
    }
    let ext = Image::new(4 << 20).with(
        "mke2fs",
        &["-q", "-F", "-b", "1024", "-t", "ext4", "-O", "^has_journal", "-N", "256"],
    );
    for (kind, image) in [(FsKind::Ext4, ext), (FsKind::Xfs, small_xfs(&["-b", "size=1024"]))] {
        made(kind, &image);
        let disk = fs::read(image.path()).expect("an image");
        let open =
            |disk: &[u8]| guest::open(kind, vec![Arc::new(MemDevice::read_only(disk.to_vec()))]);
        let right = shown(&*open(&disk).expect("it opens"));
        assert!(right.len() > 120 && right.values().all(Result::is_ok));
        let used: Vec<usize> = (0..disk.len() / 512)
            .map(|i| i * 512)
            .filter(|at| disk[*at..at + 512].iter().any(|b| *b != 0))
            .collect();
        let mut random = Random(seed());
        let (mut errors, mut other) = (0, disk.clone());
        for _ in 0..1000 {
            let at = used[random.below(used.len() as u64) as usize] + random.below(512) as usize;
            other[at] ^= 1 << random.below(8);
            match open(&other) {
                Err(_) => errors += 1,
                Ok(fs) => {
                    for (path, told) in shown(&*fs) {
                        match told {
                            Err(()) => errors += 1,
                            Ok(told) => assert_eq!(
                                right.get(&path).and_then(|r| r.as_ref().ok()),
                                Some(&told),
                                "{kind}: byte {at}, {}",
                                path.escape_ascii()
                            ),
                        }
                    }
                }
            }
            other[at] = disk[at];
        }
        eprintln!("{kind}: {errors} errors from 1000 damaged bytes");
        assert!(errors > 10);
    }
}
