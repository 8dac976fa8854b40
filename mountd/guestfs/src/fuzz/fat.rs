//! FAT and exFAT of any bytes. Checksums of exFAT are put right first: a fuzzer would never get past them.

use std::sync::Arc;

use backstay_blockdev::MemDevice;

use super::walk::walk;
use super::{disk, patches};
use crate::fs::exfat::{self, ExFat};
use crate::fs::fat::Fat;

/// The disk's size, and the sectors and clusters of the seeds.
const DISK_BYTES: usize = 128 << 10;
const SECTOR: usize = 512;

pub(super) fn run_fat(bytes: &[u8]) {
    let disk = disk(bytes, DISK_BYTES);
    let device = Arc::new(MemDevice::read_only(disk.clone()));
    if let Ok(fs) = Fat::open(device) {
        walk(&fs, &disk);
    }
}

pub(super) fn run_exfat(bytes: &[u8]) {
    let mut disk = disk(bytes, DISK_BYTES);
    exfat::seal(&mut disk);
    let device = Arc::new(MemDevice::read_only(disk.clone()));
    if let Ok(fs) = ExFat::open(device) {
        walk(&fs, &disk);
    }
}

fn put(disk: &mut [u8], at: usize, bytes: &[u8]) {
    disk[at..at + bytes.len()].copy_from_slice(bytes);
}

/// An entry of FAT.
fn entry(name: &[u8; 11], attributes: u8, cluster: u32, size: u32) -> [u8; 32] {
    let mut bytes = [0; 32];
    put(&mut bytes, 0, name);
    bytes[11] = attributes;
    put(&mut bytes, 20, &cluster.to_le_bytes()[2..]);
    put(&mut bytes, 22, &[0, 0x60, 0x21, 0x5a]);
    put(&mut bytes, 26, &cluster.to_le_bytes()[..2]);
    put(&mut bytes, 28, &size.to_le_bytes());
    bytes
}

/// The piece of a long name of 13 letters at most.
fn piece(name: &str, short: &[u8; 11]) -> [u8; 32] {
    let mut bytes = [0xff; 32];
    let sum = short.iter().fold(0u8, |sum, b| sum.rotate_right(1).wrapping_add(*b));
    let places = [1, 3, 5, 7, 9, 14, 16, 18, 20, 22, 24, 28, 30];
    for (at, unit) in places.into_iter().zip(name.encode_utf16().chain([0])) {
        put(&mut bytes, at, &unit.to_le_bytes());
    }
    (bytes[0], bytes[11], bytes[12], bytes[13]) = (0x41, 15, 0, sum);
    put(&mut bytes, 26, &[0, 0]);
    bytes
}

/// A file in two pieces, a directory of two clusters, long and short names.
fn fat(wide: bool) -> Vec<u8> {
    let mut disk = vec![0; DISK_BYTES];
    put(&mut disk, 0, b"\xeb\x3c\x90mkfs.fat");
    put(&mut disk, 11, &[0, 2, 1, if wide { 8 } else { 1 }, 0, 2]);
    let sectors = (DISK_BYTES / SECTOR) as u16;
    put(&mut disk, 19, &sectors.to_le_bytes());
    disk[21] = 0xf8;
    put(&mut disk, 510, &[0x55, 0xaa]);
    let reserved = if wide { 8 } else { 1 };
    let table = reserved * SECTOR;
    let (root, data) = if wide {
        put(&mut disk, 36, &[2]);
        put(&mut disk, 44, &[2, 0, 0, 0, 1, 0, 6, 0]);
        put(&mut disk, 66, b"\x29\x78\x56\x34\x12A LABEL    FAT32   ");
        (12 * SECTOR, 12 * SECTOR)
    } else {
        put(&mut disk, 17, &[16, 0]);
        put(&mut disk, 22, &[1, 0]);
        put(&mut disk, 38, b"\x29\x78\x56\x34\x12A LABEL    FAT12   ");
        (3 * SECTOR, 4 * SECTOR)
    };
    // Cluster 2 is the root where it has one; 3 and 5 a file; 4 and 6 a directory; 7 a file.
    let next: [u32; 8] = [0x0fff_fff8, u32::MAX, u32::MAX, 5, 6, u32::MAX, u32::MAX, u32::MAX];
    for (i, next) in next.into_iter().enumerate() {
        if wide {
            put(&mut disk, table + i * 4, &next.to_le_bytes());
        } else {
            let (at, next) = (table + i * 3 / 2, (next & 0xfff) as u16);
            let old = u16::from_le_bytes([disk[at], disk[at + 1]]);
            let new = if i % 2 == 0 { old | next } else { old | next << 4 };
            put(&mut disk, at, &new.to_le_bytes());
        }
    }
    let cluster = |number: usize| data + (number - 2) * SECTOR;
    let long = b"LONGNA~1TXT";
    put(&mut disk, root, &entry(b"A LABEL    ", 8, 0, 0));
    put(&mut disk, root + 32, &piece("long name.txt", long));
    put(&mut disk, root + 64, &entry(long, 32, 3, 1000));
    put(&mut disk, root + 96, &entry(b"FOLDER     ", 16, 4, 0));
    put(&mut disk, root + 128, &entry(b"\xe5ELETED TXT", 32, 7, 9));
    put(&mut disk, root + 160, &entry(b"EMPTY   TXT", 1, 0, 0));
    put(&mut disk, cluster(4), &entry(b".          ", 16, 4, 0));
    put(&mut disk, cluster(4) + 32, &entry(b"..         ", 16, 0, 0));
    for i in 2..16 {
        put(&mut disk, cluster(4) + i * 32, &entry(b"\xe5ELETED TXT", 32, 7, 9));
    }
    put(&mut disk, cluster(6), &entry(b"INSIDE  TXT", 32, 7, 512));
    disk[cluster(3)..cluster(4)].fill(3);
    disk[cluster(5)..cluster(6)].fill(5);
    disk[cluster(7)..cluster(8)].fill(7);
    disk
}

pub(super) fn fat_seeds() -> Vec<(&'static str, Vec<u8>)> {
    vec![("fat12", patches(&fat(false))), ("fat32", patches(&fat(true)))]
}

/// A set of exFAT: times are those of no day, its checksum is put right by the run.
fn set(name: &str, attributes: u8, flags: u8, first: u8, valid: u16, size: u16) -> Vec<[u8; 32]> {
    let units: Vec<u16> = name.encode_utf16().collect();
    let names = units.chunks(15).count() as u8;
    let (mut file, mut stream) = ([0; 32], [0; 32]);
    (file[0], file[1], file[4]) = (0x85, 1 + names, attributes);
    (stream[0], stream[1], stream[3], stream[20]) = (0xc0, flags, units.len() as u8, first);
    put(&mut stream, 8, &valid.to_le_bytes());
    put(&mut stream, 24, &size.to_le_bytes());
    let mut all = vec![file, stream];
    for chunk in units.chunks(15) {
        let mut entry = [0; 32];
        entry[0] = 0xc1;
        for (at, unit) in (2..).step_by(2).zip(chunk) {
            put(&mut entry, at, &unit.to_le_bytes());
        }
        all.push(entry);
    }
    all
}

/// A file in one piece, one in two and only partly written, a directory whose entries go over two clusters.
fn exfat_image() -> Vec<u8> {
    let mut disk = vec![0; DISK_BYTES];
    put(&mut disk, 0, b"\xeb\x76\x90EXFAT   ");
    let sectors = (DISK_BYTES / SECTOR) as u64;
    put(&mut disk, 72, &sectors.to_le_bytes());
    for (at, value) in [(80, 24u32), (84, 2), (88, 26), (92, 200), (96, 2), (100, 0x1234_5678)] {
        put(&mut disk, at, &value.to_le_bytes());
    }
    put(&mut disk, 105, &[1, 0, 0, 9, 0, 1, 0x80]);
    put(&mut disk, 510, &[0x55, 0xaa]);
    let cluster = |number: usize| (26 + number - 2) * SECTOR;
    // 2 the root, 3 the bitmap, 4 the capitals, 5 and 7 a file, 6 and 9 a directory, 8 nothing.
    let end = u32::MAX;
    for (i, next) in [end, end, end, end, end, 7, 9, end, 0, end].into_iter().enumerate() {
        put(&mut disk, 24 * SECTOR + i * 4, &next.to_le_bytes());
    }
    let mut system = |slot: usize, kind: u8, first: u8, len: u8| {
        let at = cluster(2) + slot * 32;
        (disk[at], disk[at + 20], disk[at + 24]) = (kind, first, len);
    };
    system(0, 0x81, 3, 25);
    system(1, 0x82, 4, 8);
    put(&mut disk, cluster(2) + 64, b"\x83\x02o\0k\0");
    put(&mut disk, cluster(3), &[0xff, 0]);
    put(&mut disk, cluster(4), &[0xff, 0xff, 97, 0, 65, 0, 66, 0]);
    let mut slot = cluster(2) + 96;
    for set in [
        set("in pieces", 0, 1, 5, 700, 1000),
        set("directory", 16, 1, 6, 1024, 1024),
        set("in one piece", 1, 3, 10, 900, 900),
    ] {
        put(&mut disk, slot, &set.concat());
        slot += set.len() * 32;
    }
    let inside = set(&"n".repeat(250), 0, 3, 12, 5, 5).concat();
    let (first, second) = inside.split_at(SECTOR - 64);
    let mut deleted = [0; 64];
    (deleted[0], deleted[32]) = (5, 0x40);
    put(&mut disk, cluster(6), &deleted);
    put(&mut disk, cluster(6) + 64, first);
    put(&mut disk, cluster(9), second);
    for number in [5, 7, 10, 11, 12] {
        disk[cluster(number)..cluster(number + 1)].fill(number as u8);
    }
    disk
}

pub(super) fn exfat_seeds() -> Vec<(&'static str, Vec<u8>)> {
    vec![("exfat", patches(&exfat_image()))]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fs::{DirCookie, FileSystem};

    /// The seeds are what they claim to be: a fuzzer that starts from a broken one finds nothing.
    #[test]
    fn the_seeds_are_whole() {
        for wide in [false, true] {
            let fs = Fat::open(Arc::new(MemDevice::read_only(fat(wide)))).expect("it opens");
            assert_eq!(fs.info().label, "A LABEL");
            let names = fs.read_dir(fs.root(), DirCookie::START, 9).expect("names");
            let names: Vec<_> = names.into_iter().map(|entry| entry.name).collect();
            assert_eq!(names, [&b"long name.txt"[..], b"FOLDER", b"EMPTY.TXT"]);
            let file = fs.lookup(fs.root(), b"LONG NAME.txt").expect("a file");
            let mut buf = [0; 2000];
            assert_eq!(fs.read(file, 0, &mut buf).expect("content"), 1000);
            assert_eq!((buf[511], buf[512]), (3, 5));
            let dir = fs.lookup(fs.root(), b"folder").expect("a directory");
            let inside = fs.lookup(dir, b"inside.txt").expect("a file");
            assert_eq!(fs.read(inside, 100, &mut buf).expect("content"), 412);
        }
        let mut disk = exfat_image();
        exfat::seal(&mut disk);
        let fs = ExFat::open(Arc::new(MemDevice::read_only(disk))).expect("it opens");
        assert_eq!((fs.info().label.as_str(), &fs.info().notes[..]), ("ok", &[][..]));
        assert_eq!(fs.info().used_bytes, Some(8 * 512));
        let file = fs.lookup(fs.root(), b"in pieces").expect("a file");
        let mut buf = [9; 2000];
        assert_eq!(fs.read(file, 0, &mut buf).expect("content"), 1000);
        assert_eq!([buf[511], buf[512], buf[699], buf[700]], [5, 7, 7, 0]);
        let dir = fs.lookup(fs.root(), b"directory").expect("a directory");
        let inside = fs.lookup(dir, &[b'n'; 250]).expect("a file");
        assert_eq!(inside.part, 9);
        assert_eq!(fs.stat(inside).expect("metadata").size_bytes, 5);
    }
}
