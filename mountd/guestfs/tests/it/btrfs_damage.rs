//! btrfs that is damaged: an error or the right answer, in bounded time, never other content.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use backstay_blockdev::{BlockDevice, MemDevice};
use backstay_guestfs::fs::btrfs::Btrfs;
use backstay_guestfs::fs::{DirCookie, FileSystem, NodeKind, Stat};
use backstay_guestfs::{Error, ErrorKind};

use crate::btrfs::no_oracle;
use crate::support::image::Image;
use crate::support::tree::{Contents, fill};
use crate::support::{Random, seed};

const SUPERBLOCK: u64 = 64 << 10;

/// Everything of a file system by its path, as far as it can be read: metadata, names of attributes, a hash of the content.
type Walk = BTreeMap<Vec<u8>, Result<(Stat, u64), ErrorKind>>;

fn walk(fs: &dyn FileSystem) -> Walk {
    let mut all = Walk::new();
    let mut waiting = vec![(Vec::new(), fs.root())];
    while let Some((path, node)) = waiting.pop() {
        let seen = look(fs, node);
        if let Ok((stat, _)) = &seen
            && stat.kind == NodeKind::Directory
        {
            let mut from = DirCookie::START;
            loop {
                match fs.read_dir(node, from, 1000) {
                    Ok(list) if list.is_empty() => break,
                    Ok(list) => {
                        from = list.last().expect("one").next;
                        for e in list {
                            waiting.push(([&path[..], b"/", &e.name].concat(), e.node));
                        }
                    }
                    Err(e) => {
                        all.insert([&path[..], b"/"].concat(), Err(e.kind()));
                        break;
                    }
                }
            }
        }
        all.insert(path, seen.map_err(|e| e.kind()));
    }
    all
}

fn look(fs: &dyn FileSystem, node: backstay_guestfs::fs::NodeId) -> Result<(Stat, u64), Error> {
    let stat = fs.stat(node)?;
    let mut sum = 0u64;
    let mut add = |bytes: &[u8]| {
        for b in bytes {
            sum = (sum ^ u64::from(*b)).wrapping_mul(0x0100_0000_01b3);
        }
    };
    for xattr in fs.xattrs(node)? {
        add(&xattr.name);
        add(&xattr.value);
    }
    match stat.kind {
        NodeKind::Symlink => add(&fs.read_link(node)?),
        NodeKind::File if stat.size_bytes < 4 << 20 => {
            let mut bytes = vec![0; stat.size_bytes as usize];
            assert_eq!(fs.read(node, 0, &mut bytes)?, bytes.len());
            add(&bytes);
        }
        _ => {}
    }
    Ok((stat, sum))
}

/// Everything `found` tells is what is `expected`, or an error.
fn no_other(found: &Walk, expected: &Walk, what: &str) {
    for (path, seen) in found {
        match seen {
            Err(ErrorKind::Damaged) => {}
            Err(kind) => panic!("{what}: {} is {kind:?}", String::from_utf8_lossy(path)),
            Ok(seen) => {
                let same = expected.get(path).is_some_and(|e| e.as_ref() == Ok(seen));
                assert!(same, "{what}: {}: {seen:?}", String::from_utf8_lossy(path));
            }
        }
    }
    let errors = found.values().any(Result::is_err);
    assert!(errors || found.len() == expected.len(), "{what}: nodes are missing without an error");
}

/// A small image with one copy of everything.
fn small(options: &str) -> Image {
    let image = Image::new(128 << 20).with(
        "mkfs.btrfs",
        &["-q", "-m", "single", "-d", "single", "--nodesize", "4096", "--mixed"],
    );
    {
        let mounted = image.mount("btrfs", options);
        let what = Contents { many: 200, depth: 5, sparse_bytes: 1 << 30, ..Contents::ALL };
        fill(mounted.path(), seed(), &what);
    }
    image
}

fn open(image: &Image) -> Result<Btrfs, Error> {
    Btrfs::open(vec![image.device()])
}

#[test]
fn a_bit_of_every_byte_of_the_superblock() {
    if no_oracle("btrfs with a damaged superblock") {
        return;
    }
    let image = small("");
    let expected = open(&image).expect("it opens").info().clone();
    let file = File::options().read(true).write(true).open(image.path()).expect("it opens");
    // The copy at 64 MiB is taken away for the first half: then nothing may help.
    let mut copy = vec![0; 4096];
    file.read_exact_at(&mut copy, 64 << 20).expect("the copy");
    for has_copy in [false, true] {
        file.write_all_at(if has_copy { &copy } else { &[0; 4096] }, 64 << 20).expect("written");
        for at in 0..4096 {
            let mut byte = [0];
            file.read_exact_at(&mut byte, SUPERBLOCK + at).expect("a byte");
            file.write_all_at(&[byte[0] ^ 1 << (at % 8)], SUPERBLOCK + at).expect("written");
            match open(&image) {
                Ok(fs) if has_copy && !(4..32).contains(&at) => {
                    assert_eq!(fs.info().uuid, expected.uuid);
                    assert!(fs.info().notes[0].contains("copy 1"), "{:?}", fs.info().notes);
                }
                // Behind a checksum of four bytes its field is not used.
                Ok(fs) if (4..32).contains(&at) => assert_eq!(fs.info(), &expected),
                // The type of the checksum itself may be one that is not known.
                Err(e) if matches!(at, 0xc4 | 0xc5) => {
                    assert!(matches!(e.kind(), ErrorKind::Unsupported | ErrorKind::Damaged));
                }
                Err(e) => assert!(!has_copy && e.kind() == ErrorKind::Damaged, "byte {at}: {e}"),
                Ok(_) => panic!("byte {at} is changed, and it opens"),
            }
            file.write_all_at(&byte, SUPERBLOCK + at).expect("written");
        }
    }
}

#[test]
fn features_that_are_not_known() {
    if no_oracle("btrfs with unknown features") {
        return;
    }
    let image = small("");
    let file = File::options().read(true).write(true).open(image.path()).expect("it opens");
    let mut good = vec![0; 4096];
    file.read_exact_at(&mut good, SUPERBLOCK).expect("the superblock");
    for (bit, name) in [
        (12, "zoned"),
        (13, "extent-tree-v2"),
        (14, "raid-stripe-tree"),
        (15, "0x8000"),
        (63, "0x8000000000000000"),
    ] {
        let mut changed = good.clone();
        changed[0xbc + bit / 8] |= 1 << (bit % 8);
        let sum = crc_fast::crc32_iscsi(&changed[32..]);
        changed[..4].copy_from_slice(&sum.to_le_bytes());
        file.write_all_at(&changed, SUPERBLOCK).expect("written");
        let e = open(&image).expect_err("refused");
        assert!(e.kind() == ErrorKind::Unsupported && e.to_string().contains(name), "{e}");
    }
}

#[test]
fn flipped_bits_anywhere() {
    if no_oracle("btrfs with flipped bits") {
        return;
    }
    let mut random = Random(seed());
    for options in ["", "compress-force=zstd"] {
        let image = small(options);
        let expected = walk(&open(&image).expect("it opens"));
        assert!(expected.values().all(Result::is_ok));
        let used = used_sectors(&image);
        let file = File::options().read(true).write(true).open(image.path()).expect("it opens");
        let start = Instant::now();
        let (mut rounds, mut found) = (0, 0);
        while rounds < 60 && start.elapsed() < Duration::from_secs(6) {
            // Ten sectors at once, each with a bit.
            let changes: Vec<(u64, u8)> = (0..10)
                .map(|_| {
                    let sector = used[random.below(used.len() as u64) as usize];
                    (sector + random.below(4096), 1 << random.below(8))
                })
                .collect();
            flip(&file, &changes);
            match open(&image) {
                Ok(fs) => {
                    let walked = walk(&fs);
                    found += u32::from(walked.values().any(Result::is_err));
                    no_other(&walked, &expected, &format!("{options} {changes:?}"));
                }
                Err(e) => {
                    assert_eq!(e.kind(), ErrorKind::Damaged, "{e}");
                    found += 1;
                }
            }
            flip(&file, &changes);
            rounds += 1;
        }
        eprintln!("{found} of {rounds} rounds of damage met");
        assert!(found > 0);
        no_other(&walk(&open(&image).expect("it opens")), &expected, "repaired");
    }
}

fn flip(file: &File, changes: &[(u64, u8)]) {
    for (at, bit) in changes {
        let mut byte = [0];
        file.read_exact_at(&mut byte, *at).expect("a byte");
        file.write_all_at(&[byte[0] ^ bit], *at).expect("written");
    }
}

/// Sectors of an image that hold something, but for superblocks.
fn used_sectors(image: &Image) -> Vec<u64> {
    let bytes = fs::read(image.path()).expect("the image");
    let used = bytes.chunks(4096).enumerate().filter(|(_, s)| s.iter().any(|b| *b != 0));
    used.map(|(i, _)| i as u64 * 4096).filter(|at| *at > 1 << 20 && *at != 64 << 20).collect()
}

#[test]
fn cut_off() {
    if no_oracle("btrfs that is cut off") {
        return;
    }
    let image = small("");
    let expected = walk(&open(&image).expect("it opens"));
    let bytes = fs::read(image.path()).expect("the image");
    for len in [0, 1, 65_535, 65_536, 65_600, 69_632, 1 << 20, 5 << 20, 9 << 20, 14 << 20, 20 << 20]
    {
        let device = Arc::new(MemDevice::new(bytes[..len].to_vec()));
        match Btrfs::open(vec![device]) {
            Ok(fs) => no_other(&walk(&fs), &expected, &format!("{len} bytes")),
            Err(e) => assert_eq!(e.kind(), ErrorKind::Damaged, "{len} bytes: {e}"),
        }
    }
}

#[test]
fn a_log_that_was_not_replayed() {
    if no_oracle("btrfs with a log") {
        return;
    }
    let image = Image::new(128 << 20).with("mkfs.btrfs", &["-q"]);
    let mounted = image.mount("btrfs", "commit=300");
    fs::write(mounted.path().join("before"), "before").expect("a file");
    File::open(mounted.path()).and_then(|d| d.sync_all()).expect("synced");
    crate::support::image::run("sync", &["-f", mounted.path().to_str().expect("plain")]);
    let file = File::options().write(true).open(mounted.path().join("before")).expect("it opens");
    file.write_all_at(b"AFTER!", 0).expect("written");
    file.sync_all().expect("synced");
    // What a snapshot of the disk would have now.
    let snapshot = image.copy();
    drop(file);
    drop(mounted);
    let fs = open(&snapshot).expect("it opens");
    assert!(fs.info().notes.iter().any(|n| n.contains("fsync")), "{:?}", fs.info().notes);
    let node = fs.lookup(fs.root(), b"before").expect("it is there");
    let mut bytes = [0; 6];
    assert_eq!(fs.read(node, 0, &mut bytes).expect("it reads"), 6);
    assert_eq!(&bytes, b"before");
    let replayed = Btrfs::open(vec![image.device()]).expect("it opens");
    assert!(replayed.info().notes.is_empty(), "{:?}", replayed.info().notes);
}

#[test]
fn a_device_that_is_no_btrfs() {
    let empty: Arc<dyn BlockDevice> = Arc::new(MemDevice::new(vec![0; 1 << 20]));
    assert_eq!(Btrfs::open(vec![empty]).expect_err("nothing").kind(), ErrorKind::Damaged);
    assert_eq!(Btrfs::open(Vec::new()).expect_err("none").kind(), ErrorKind::Unsupported);
}
