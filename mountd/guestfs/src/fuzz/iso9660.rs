//! ISO 9660 of any bytes.

use std::sync::Arc;

use backstay_blockdev::MemDevice;

use super::walk::walk;
use super::{disk, patches};
use crate::fs::iso9660::Iso9660;

/// The disk's size, and its blocks.
const DISK_BYTES: usize = 96 << 10;
const BLOCK: usize = 2048;
/// Blocks of what the seed holds.
const ROOT: u32 = 20;
const FOLDER: u32 = 21;
const FILE: u32 = 22;
const MORE: u32 = 24;
const FIELDS: u32 = 25;

pub(super) fn run(bytes: &[u8]) {
    let disk = disk(bytes, DISK_BYTES);
    let device = Arc::new(MemDevice::read_only(disk.clone()));
    if let Ok(fs) = Iso9660::open(device) {
        walk(&fs, &disk);
    }
}

fn both(number: u32) -> [u8; 8] {
    let mut bytes = [0; 8];
    bytes[..4].copy_from_slice(&number.to_le_bytes());
    bytes[4..].copy_from_slice(&number.to_be_bytes());
    bytes
}

/// A directory record with these flags, and fields behind its name.
fn record(name: &[u8], flags: u8, block: u32, len: u32, fields: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = vec![0; 33];
    bytes[2..10].copy_from_slice(&both(block));
    bytes[10..18].copy_from_slice(&both(len));
    bytes[18..25].copy_from_slice(&[126, 11, 23, 12, 0, 0, 4]);
    (bytes[25], bytes[32]) = (flags, name.len() as u8);
    bytes.extend(name);
    bytes.resize(bytes.len().next_multiple_of(2), 0);
    bytes.extend(fields.concat());
    bytes.resize(bytes.len().next_multiple_of(2), 0);
    bytes[0] = bytes.len() as u8;
    bytes
}

fn field(kind: &[u8; 2], data: &[u8]) -> Vec<u8> {
    [&kind[..], &[data.len() as u8 + 4, 1], data].concat()
}

fn posix(mode: u32) -> Vec<u8> {
    field(b"PX", &[both(mode), both(1), both(1000), both(100)].concat())
}

/// With `rock`, a disc with links and devices; without, a plain one. A file in two pieces on both.
fn image(rock: bool) -> Vec<u8> {
    let mut disk = vec![0; DISK_BYTES];
    let mut put = |at: usize, bytes: &[u8]| disk[at..at + bytes.len()].copy_from_slice(bytes);
    let descriptor = 16 * BLOCK;
    put(descriptor, b"\x01CD001\x01");
    put(descriptor + 40, b"A LABEL                         ");
    put(descriptor + 80, &both((DISK_BYTES / BLOCK) as u32));
    put(descriptor + 128, &[0, 8, 8, 0]);
    let len = BLOCK as u32;
    put(descriptor + 156, &record(&[0], 2, ROOT, len, &[]));
    put(17 * BLOCK, b"\xffCD001\x01");
    let only = |fields: Vec<Vec<u8>>| if rock { fields } else { Vec::new() };
    let name = |text: &[u8]| field(b"NM", &[&[0], text].concat());
    let shared = field(b"SP", &[0xbe, 0xef, 0]);
    let elsewhere = field(b"CE", &[both(FIELDS), both(8), both(40)].concat());
    let root = [
        record(&[0], 2, ROOT, len, &only(vec![shared, posix(0o4_0755)])),
        record(&[1], 2, ROOT, len, &[]),
        record(b"FILE.TXT;1", 0x80, FILE, len, &only(vec![posix(0o10_0640), name(b"a file")])),
        record(b"FILE.TXT;1", 0, MORE, 100, &only(vec![posix(0o10_0640), name(b"a file")])),
        record(b"FOLDER", 2, FOLDER, len, &only(vec![posix(0o4_0755)])),
        record(b"LINK.;1", 0, 0, 0, &only(vec![posix(0o12_0777), name(b"link"), elsewhere])),
    ];
    put(ROOT as usize * BLOCK, &root.concat());
    let number = field(b"PN", &[both(0), both(0x0103)].concat());
    let times =
        field(b"TF", &[0x0e, 100, 1, 1, 0, 0, 0, 0, 101, 1, 1, 0, 0, 0, 0, 102, 1, 1, 0, 0, 0, 0]);
    let folder = [
        record(&[0], 2, FOLDER, len, &[]),
        record(&[1], 2, ROOT, len, &[]),
        record(b"DEVICE.;1", 0, 0, 0, &only(vec![posix(0o2_0600), number, times])),
    ];
    put(FOLDER as usize * BLOCK, &folder.concat());
    put(FIELDS as usize * BLOCK + 8, &field(b"SL", b"\0\x04\0\0\x06folder"));
    disk[FILE as usize * BLOCK..][..BLOCK].fill(b'1');
    disk[MORE as usize * BLOCK..][..100].fill(b'2');
    disk
}

pub(super) fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    vec![("rock_ridge", patches(&image(true))), ("plain", patches(&image(false)))]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ErrorKind;
    use crate::fs::{DirCookie, FileSystem};

    /// The seeds are what they claim to be: a fuzzer that starts from a broken one finds nothing.
    #[test]
    fn the_seeds_are_whole() {
        for (rock, names) in [
            (true, [&b"a file"[..], b"folder", b"link"]),
            (false, [b"file.txt", b"folder", b"link"]),
        ] {
            let fs = Iso9660::open(Arc::new(MemDevice::read_only(image(rock)))).expect("it opens");
            assert_eq!(fs.info().label, "A LABEL");
            let found = fs.read_dir(fs.root(), DirCookie::START, 9).expect("names");
            assert_eq!(found.iter().map(|e| &e.name[..]).collect::<Vec<_>>(), names);
            // A list that stops at the first piece goes on behind the last.
            let next = fs.read_dir(fs.root(), found[0].next, 1).expect("names");
            assert_eq!(next[0].name, b"folder");
            let file = fs.lookup(fs.root(), names[0]).expect("a file");
            let mut buf = [0; 4000];
            assert_eq!(fs.read(file, 0, &mut buf).expect("content"), BLOCK + 100);
            assert_eq!((buf[BLOCK - 1], buf[BLOCK]), (b'1', b'2'));
            assert_eq!(fs.extents(file, 10, 4000, 9).expect("extents").len(), 2);
            if rock {
                let link = fs.lookup(fs.root(), b"link").expect("a link");
                assert_eq!(fs.read_link(link).expect("a target"), b"../folder");
                let folder = fs.lookup(fs.root(), b"folder").expect("a directory");
                let device = fs.lookup(folder, b"device").expect("a device");
                let stat = fs.stat(device).expect("metadata");
                assert_eq!((stat.device, stat.mode), (Some((1, 3)), 0o600));
                assert!(stat.modified < stat.accessed && stat.accessed < stat.changed);
            }
        }
    }

    #[test]
    fn fields_that_lead_to_themselves() {
        let mut disk = image(true);
        let at = FIELDS as usize * BLOCK + 8;
        let again = field(b"CE", &[both(FIELDS), both(8), both(40)].concat());
        disk[at..at + again.len()].copy_from_slice(&again);
        let fs = Iso9660::open(Arc::new(MemDevice::read_only(disk))).expect("it opens");
        let e = fs.lookup(fs.root(), b"link").expect_err("a loop");
        assert_eq!(e.kind(), ErrorKind::Limit, "{e}");
    }
}
