//! NTFS, FAT and exFAT with damage: real volumes cut off, and with bits turned over. An answer or an error, never a panic or a
//! promise broken, and in bounded time.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use backstay_blockdev::MemDevice;
use backstay_guestfs::fs::{self as guest, DirCookie, FileSystem, FsKind};
use backstay_guestfs::fuzz::walk;

use crate::fat::{mtool, tree};
use crate::support::image::{Image, no_fuse, skipped};
use crate::support::{Random, seed};

const SIZE_BYTES: u64 = 8 << 20;
/// One opening and walk may take so long, on a machine that is busy.
const WALK_MAX: Duration = Duration::from_secs(20);

fn opened(kind: FsKind, disk: &[u8]) -> Result<Box<dyn FileSystem>, backstay_guestfs::Error> {
    guest::open(kind, vec![Arc::new(MemDevice::read_only(disk.to_vec()))])
}

fn walked(kind: FsKind, disk: &[u8]) {
    let started = Instant::now();
    if let Ok(fs) = opened(kind, disk) {
        walk(&*fs, disk);
    }
    assert!(started.elapsed() < WALK_MAX, "it took {:?}", started.elapsed());
}

/// Files and directories, small enough to be read hundreds of times.
fn fill(root: &Path, random: &mut Random) {
    tree(root, random, 40);
    fs::remove_file(root.join("sizes/of-700001.bin")).expect("it goes");
}

/// Where something stands that is not content: blocks of 512 bytes that a walk of the whole volume reads.
fn metadata(disk: &[u8]) -> Vec<usize> {
    let used = disk.chunks(512).enumerate().filter(|(_, b)| b.iter().any(|byte| *byte != 0));
    used.map(|(i, _)| i * 512).collect()
}

pub(crate) fn damaged(kind: FsKind, image: &Image, mut random: Random) {
    let disk = fs::read(image.path()).expect("an image");
    let whole = opened(kind, &disk).expect("it opens");
    let names = whole.read_dir(whole.root(), DirCookie::START, 99).expect("names");
    assert!(names.len() >= 5, "{names:?}");
    walked(kind, &disk);
    for len in [0, 1, 511, 512, 4096, 65_536, 1 << 20, 4 << 20, disk.len() - 512, disk.len() - 1] {
        let len = len.min(disk.len());
        walked(kind, &disk[..len]);
    }
    let mut other = disk.clone();
    // The boot sector, or what is in its place, byte by byte.
    let start = if kind == FsKind::Iso9660 { 32 << 10 } else { 0 };
    for at in start..start + 512 {
        let bit = 1 << random.below(8);
        other[at] ^= bit;
        walked(kind, &other);
        other[at] = disk[at];
    }
    let blocks = metadata(&disk);
    for _ in 0..400 {
        let at = blocks[random.below(blocks.len() as u64) as usize];
        for _ in 0..=random.below(4) {
            other[at + random.below(512) as usize] ^= 1 << random.below(8);
        }
        walked(kind, &other);
        other[at..at + 512].copy_from_slice(&disk[at..at + 512]);
    }
}

#[test]
fn ntfs_with_bits_turned_over() {
    let test = "ntfs_with_bits_turned_over";
    if skipped(test, &["mkntfs", "ntfs-3g"]) || no_fuse(test) {
        return;
    }
    let mut random = Random(seed());
    let image = Image::new(SIZE_BYTES).with("mkntfs", &["-F", "-Q", "-q"]);
    {
        let mounted = image.mount_with("ntfs-3g", &["-o", "noatime,compression"]);
        fill(mounted.path(), &mut random);
    }
    damaged(FsKind::Ntfs, &image, random);
    // Without its boot sector, and without the first record of its MFT, the copies are read.
    let disk = fs::read(image.path()).expect("an image");
    let mft = u64::from_le_bytes(disk[0x30..0x38].try_into().expect("8 bytes")) as usize * 4096;
    for (at, note) in
        [(0, "boot sector was read from its copy"), (mft, "MFT was read from its copy")]
    {
        let mut other = disk.clone();
        other[at..at + 512].fill(0);
        let fs = opened(FsKind::Ntfs, &other).expect("it opens");
        assert!(fs.info().notes.iter().any(|n| n.contains(note)), "{:?}", fs.info());
        assert!(fs.lookup(fs.root(), b"deep").is_ok());
    }
}

#[test]
fn exfat_with_bits_turned_over() {
    let test = "exfat_with_bits_turned_over";
    let programs = ["mkfs.exfat", "mount.exfat-fuse", "/dev/loop-control"];
    if skipped(test, &programs) || no_fuse(test) {
        return;
    }
    let mut random = Random(seed());
    let image = Image::new(SIZE_BYTES).with("mkfs.exfat", &[]);
    {
        let mounted = image.mount("exfat-fuse", "noatime");
        fill(mounted.path(), &mut random);
    }
    damaged(FsKind::ExFat, &image, random);
    let mut other = fs::read(image.path()).expect("an image");
    other[..512].fill(0);
    let fs = opened(FsKind::ExFat, &other).expect("it opens");
    assert!(fs.info().notes.iter().any(|n| n.contains("copy")), "{:?}", fs.info());
}

#[test]
fn fat_with_bits_turned_over() {
    let test = "fat_with_bits_turned_over";
    if skipped(test, &["mkfs.vfat", "mcopy"]) {
        return;
    }
    let mut random = Random(seed());
    let source = tempfile::tempdir().expect("a directory");
    fill(source.path(), &mut random);
    for args in [&["-F", "12"][..], &["-F", "16", "-s", "2"]] {
        let image = Image::new(SIZE_BYTES).with("mkfs.vfat", args);
        for name in ["sizes", "names", "many", "deep", "empty"] {
            let path = source.path().join(name);
            mtool("mcopy", &image, &["-s", "-m", "-Q", path.to_str().expect("plain"), "::"]);
        }
        damaged(FsKind::Fat, &image, random.clone());
    }
}
