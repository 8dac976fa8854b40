//! ext2 to ext4 of any bytes. The seeds have no checksums: a fuzzer would never get past them.

use std::sync::Arc;

use backstay_blockdev::MemDevice;

use super::walk::walk;
use super::{disk, patches};
use crate::fs::ext::Ext;

const BLOCK: usize = 1024;
const DISK_BYTES: usize = 128 * BLOCK;
const INODE: usize = 256;
/// The first block of the table of inodes, and of the journal.
const TABLE: usize = 5;
const JOURNAL: usize = 64;
/// `i_flags`.
const EXTENTS: u32 = 0x8_0000;
const INDEX: u32 = 0x1000;
const INLINE: u32 = 0x1000_0000;

pub(super) fn run(bytes: &[u8]) {
    let disk = disk(bytes, DISK_BYTES);
    let device = Arc::new(MemDevice::read_only(disk.clone()));
    if let Ok(fs) = Ext::open(device) {
        walk(&fs, &disk);
    }
}

struct Image(Vec<u8>);

impl Image {
    fn put(&mut self, at: usize, bytes: &[u8]) {
        self.0[at..at + bytes.len()].copy_from_slice(bytes);
    }

    fn words(&mut self, at: usize, words: &[(usize, u32)]) {
        for (offset, word) in words {
            self.put(at + offset, &word.to_le_bytes());
        }
    }

    fn inode(&mut self, number: usize, mode: u16, size: u32, flags: u32, area: &[u8]) -> usize {
        let at = TABLE * BLOCK + (number - 1) * INODE;
        self.put(at, &mode.to_le_bytes());
        let blocks = if area.len() > 60 || flags & EXTENTS != 0 { 2 } else { 0 };
        self.words(at, &[(4, size), (0x1c, blocks), (0x20, flags)]);
        self.put(at + 0x1a, &[1]);
        self.put(at + 0x28, area);
        self.put(at + 0x80, &[32]);
        at
    }

    /// Entries of a directory; the last one takes what is left of `end`.
    fn entries(&mut self, mut at: usize, end: usize, entries: &[(u32, u8, &str)]) {
        for (i, (inode, kind, name)) in entries.iter().enumerate() {
            let len = match i + 1 == entries.len() {
                true => end - at,
                false => (8 + name.len()).next_multiple_of(4),
            };
            self.words(at, &[(0, *inode)]);
            self.put(at + 4, &(len as u16).to_le_bytes());
            self.put(at + 6, &[name.len() as u8, *kind]);
            self.put(at + 8, name.as_bytes());
            at += len;
        }
    }
}

/// A node of a tree of extents: each is first block, length or nothing for an index, place.
fn extents(depth: u8, list: &[(u32, Option<u16>, u32)]) -> Vec<u8> {
    let mut bytes = vec![0x0a, 0xf3, list.len() as u8, 0, 4, 0, depth, 0, 0, 0, 0, 0];
    for (first, len, block) in list {
        bytes.extend(first.to_le_bytes());
        match len {
            Some(len) => {
                bytes.extend(len.to_le_bytes());
                bytes.extend([0, 0]);
                bytes.extend(block.to_le_bytes());
            }
            None => {
                bytes.extend(block.to_le_bytes());
                bytes.extend([0; 4]);
            }
        }
    }
    bytes
}

/// One attribute: index of its name, name, place of the value, length of it.
fn attribute(index: u8, name: &str, place: u16, len: u32) -> Vec<u8> {
    let mut bytes = vec![name.len() as u8, index];
    bytes.extend(place.to_le_bytes());
    bytes.extend([0; 4]);
    bytes.extend(len.to_le_bytes());
    bytes.extend([0; 4]);
    bytes.extend(name.as_bytes());
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

/// Everything a reader has to know, in a few blocks.
fn image(recover: bool) -> Vec<u8> {
    let mut image = Image(vec![0; DISK_BYTES]);
    let superblock = [
        (0, 32),
        (4, 128),
        (0xc, 50),
        (0x14, 1),
        (0x20, 8192),
        (0x24, 8192),
        (0x28, 32),
        (0x38, 0x1_ef53),
        (0x4c, 1),
        (0x54, 11),
        (0x58, INODE as u32),
        (0x5c, 0x2c),
        (0x60, 0x8042 | if recover { 4 } else { 0 }),
        (0x64, 3),
        (0x68, 0x1234_5678),
        (0xe0, 8),
        (0xec, 0x5eed),
        (0x160, 1),
    ];
    image.words(BLOCK, &superblock);
    image.put(BLOCK + 0x78, b"a label");
    image.words(2 * BLOCK, &[(0, 3), (4, 4), (8, TABLE as u32)]);

    image.inode(2, 0o40755, 1024, EXTENTS, &extents(0, &[(0, Some(1), 16)]));
    let root = [
        (2, 2, "."),
        (2, 2, ".."),
        (12, 2, "index"),
        (13, 1, "tree"),
        (14, 1, "numbers"),
        (15, 1, "inline"),
        (16, 7, "fast"),
        (17, 7, "slow"),
        (18, 3, "device"),
        (19, 1, "attributes"),
        (20, 2, "inside"),
    ];
    image.entries(16 * BLOCK, 17 * BLOCK, &root);
    image.inode(12, 0o40755, 3072, EXTENTS | INDEX, &extents(0, &[(0, Some(3), 17)]));
    image.entries(17 * BLOCK, 18 * BLOCK, &[(12, 2, "."), (2, 2, "..")]);
    image.put(17 * BLOCK + 24, &[0, 0, 0, 0, 1, 8, 0, 0, 124, 0, 2, 0, 1, 0, 0, 0]);
    image.words(17 * BLOCK + 40, &[(0, 0xffff_fff0), (4, 2)]);
    image.entries(18 * BLOCK, 19 * BLOCK, &[(13, 1, "first"), (14, 1, "second"), (0, 0, "")]);
    image.entries(19 * BLOCK, 20 * BLOCK, &[(15, 1, "third")]);

    files(&mut image);
    special(&mut image);
    image.inode(8, 0o100_600, 32 * 1024, EXTENTS, &extents(0, &[(0, Some(32), JOURNAL as u32)]));
    if recover {
        journal(&mut image);
    }
    image.0
}

/// Files with extents, and with numbers of blocks in three levels.
fn files(image: &mut Image) {
    image.inode(13, 0o100_644, 9000, EXTENTS, &extents(1, &[(0, None, 20)]));
    let leaf = [(0, Some(2), 21), (3, Some(32768 + 2), 40), (6, Some(1), 23)];
    image.put(20 * BLOCK, &extents(0, &leaf));
    image.inode(14, 0o100_644, 300_000, 0, &[]);
    image.words(TABLE * BLOCK + 13 * INODE + 0x28, &[(0, 24), (48, 25), (52, 30)]);
    image.words(25 * BLOCK, &[(0, 26), (4, 27), (12, 28)]);
    image.words(30 * BLOCK, &[(0, 31), (8, 31)]);
    image.words(31 * BLOCK, &[(4, 29)]);
    for block in [21, 22, 23, 24, 26, 28, 29] {
        image.0[block * BLOCK..(block + 1) * BLOCK].fill(block as u8);
    }
}

/// Content in inodes, links, a device, attributes.
fn special(image: &mut Image) {
    let inline = image.inode(15, 0o100_600, 70, INLINE, &[7; 60]);
    let data = [&0xea02_0000u32.to_le_bytes()[..], &attribute(7, "data", 72, 10)].concat();
    image.put(inline + 160, &data);
    image.put(inline + 164 + 72, &[8; 10]);
    image.inode(16, 0o120_777, 11, 0, b"../attribut");
    image.inode(17, 0o120_777, 100, EXTENTS, &extents(0, &[(0, Some(1), 32)]));
    image.put(32 * BLOCK, &[b't'; 100]);
    image.inode(18, 0o20600, 0, 0, &[3, 1, 0, 0]);
    let with = image.inode(19, 0o100_644, 0, EXTENTS, &extents(0, &[]));
    image.words(with, &[(0x68, 33)]);
    let list = [attribute(1, "x", 1000, 9), attribute(2, "", 960, 28)].concat();
    image.words(33 * BLOCK, &[(0, 0xea02_0000), (4, 1), (8, 1)]);
    image.put(33 * BLOCK + 32, &list);
    image.put(33 * BLOCK + 1000, b"its value");
    let acl =
        [1, 0, 0, 0, 1, 0, 6, 0, 2, 0, 4, 0, 210, 4, 0, 0, 4, 0, 4, 0, 16, 0, 4, 0, 32, 0, 0, 0];
    image.put(33 * BLOCK + 960, &acl);
    let inside = image.inode(20, 0o40700, 60, INLINE, &2u32.to_le_bytes());
    image.entries(inside + 0x2c, inside + 0x28 + 60, &[(13, 1, "again"), (0, 0, "")]);
}

/// A journal in which the root directory is newer, with one name less, and a block is revoked.
fn journal(image: &mut Image) {
    let mut header = |block: usize, kind: u32, sequence: u32| -> usize {
        let at = (JOURNAL + block) * BLOCK;
        for (i, word) in [0xc03b_3998, kind, sequence].into_iter().enumerate() {
            image.put(at + 4 * i, &word.to_be_bytes());
        }
        at
    };
    let superblock = header(0, 4, 0);
    let (descriptor, _) = (header(1, 1, 5), header(4, 2, 5));
    let revoke = header(5, 5, 6);
    header(6, 2, 6);
    for (at, word) in [
        (superblock + 0x0c, BLOCK as u32),
        (superblock + 0x10, 32),
        (superblock + 0x14, 1),
        (superblock + 0x18, 5),
        (superblock + 0x1c, 1),
        (superblock + 0x28, 1),
        (descriptor + 12, 16),
        (descriptor + 16, 2),
        (descriptor + 20, 21),
        (descriptor + 24, 2 | 8),
        (revoke + 12, 20),
        (revoke + 16, 21),
    ] {
        image.put(at, &word.to_be_bytes());
    }
    let newer = (JOURNAL + 2) * BLOCK;
    image.entries(newer, newer + BLOCK, &[(2, 2, "."), (2, 2, ".."), (13, 1, "newer")]);
}

pub(super) fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    vec![("whole", patches(&image(false))), ("journal", patches(&image(true)))]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fs::{DirCookie, FileSystem};

    fn opened(recover: bool) -> Ext {
        let device = Arc::new(MemDevice::read_only(image(recover)));
        let fs = Ext::open(device).expect("it opens");
        assert_eq!(fs.info().notes, [""; 0]);
        fs
    }

    /// The seeds are what they claim to be: a fuzzer that starts from a broken one finds nothing.
    #[test]
    fn the_seeds_are_whole() {
        let fs = opened(false);
        let names = fs.read_dir(fs.root(), DirCookie::START, 99).expect("names");
        assert_eq!(names.len(), 9);
        let node = |name: &str| fs.lookup(fs.root(), name.as_bytes()).expect(name);
        assert_eq!(fs.read_dir(node("index"), DirCookie::START, 99).expect("names").len(), 3);
        assert_eq!(fs.lookup(node("index"), b"second").expect("by its hash"), node("numbers"));
        let mut bytes = vec![1; 300_000];
        assert_eq!(fs.read(node("tree"), 0, &mut bytes).expect("content"), 9000);
        assert_eq!(
            [bytes[0], bytes[1500], bytes[2100], bytes[3500], bytes[6200]],
            [21, 22, 0, 0, 23]
        );
        assert_eq!(fs.read(node("numbers"), 0, &mut bytes).expect("content"), 300_000);
        assert_eq!(
            [bytes[5], bytes[12 * BLOCK], bytes[15 * BLOCK], bytes[13 * BLOCK]],
            [24, 26, 28, 0]
        );
        assert_eq!(bytes[(12 + 256 + 1) * BLOCK], 29);
        assert_eq!(fs.read(node("inline"), 0, &mut bytes).expect("content"), 70);
        assert_eq!([bytes[59], bytes[69]], [7, 8]);
        assert_eq!(fs.read_link(node("fast")).expect("a target"), b"../attribut");
        assert_eq!(fs.read_link(node("slow")).expect("a target"), [b't'; 100]);
        assert_eq!(fs.stat(node("device")).expect("metadata").device, Some((1, 3)));
        assert_eq!(fs.xattrs(node("attributes")).expect("attributes").len(), 2);
        assert_eq!(fs.lookup(node("inside"), b"again").expect("it is there"), node("tree"));

        let fs = opened(true);
        let names = fs.read_dir(fs.root(), DirCookie::START, 99).expect("names");
        assert_eq!(names.len(), 1);
        assert_eq!(fs.read(names[0].node, 0, &mut bytes[..9]).expect("content"), 9);
        assert_eq!(bytes[0], 21);
    }
}
