//! XFS of any bytes. The seed is of version 4, which has no checksums: a fuzzer would never get past them.

use std::sync::Arc;

use backstay_blockdev::MemDevice;

use super::walk::walk;
use super::{disk, patches};
use crate::fs::xfs::Xfs;

const BLOCK: usize = 512;
const DISK_BYTES: usize = 256 * BLOCK;
const INODE: usize = 256;
const FORK: usize = 100;
const ROOT: usize = 16;
/// Where the index of a directory begins: 32 GiB.
const LEAF: u64 = 1 << 26;

/// Forms of forks.
const LOCAL: u8 = 1;
const EXTENTS: u8 = 2;
const TREE: u8 = 3;

pub(super) fn run(bytes: &[u8]) {
    let disk = disk(bytes, DISK_BYTES);
    let device = Arc::new(MemDevice::read_only(disk.clone()));
    if let Ok(fs) = Xfs::open(device) {
        walk(&fs, &disk);
    }
}

struct Image(Vec<u8>);

impl Image {
    fn put(&mut self, at: usize, bytes: &[u8]) {
        self.0[at..at + bytes.len()].copy_from_slice(bytes);
    }

    /// An inode; `attributes` begin at a place in its fork, with a form and bytes.
    fn inode(
        &mut self,
        number: usize,
        (mode, size): (u16, u64),
        (form, data): (u8, &[u8]),
        attributes: Option<(u8, u8, &[u8])>,
    ) {
        let at = number * INODE;
        self.put(at, b"IN");
        self.put(at + 2, &mode.to_be_bytes());
        self.put(at + 4, &[2, form]);
        self.put(at + 16, &[0, 0, 0, 1]);
        self.put(at + 56, &size.to_be_bytes());
        let count = if form == EXTENTS { data.len() / 16 } else { 0 };
        self.put(at + 76, &(count as u32).to_be_bytes());
        self.put(at + FORK, data);
        if let Some((offset, form, bytes)) = attributes {
            let count = if form == EXTENTS { bytes.len() / 16 } else { 0 };
            self.put(at + 80, &(count as u16).to_be_bytes());
            self.put(at + 82, &[offset, form]);
            self.put(at + FORK + usize::from(offset) * 8, bytes);
        }
    }

    /// Entries of a directory in a block, then free space up to `end`.
    fn entries(&mut self, block: usize, end: usize, entries: &[(u64, &str, u8)]) {
        let (base, mut at) = (block * BLOCK, 16);
        for (inode, name, kind) in entries {
            let next = at + (12 + name.len()).next_multiple_of(8);
            self.put(base + at, &inode.to_be_bytes());
            self.put(base + at + 8, &[name.len() as u8]);
            self.put(base + at + 9, name.as_bytes());
            self.put(base + at + 9 + name.len(), &[*kind]);
            self.put(base + next - 2, &(at as u16).to_be_bytes());
            at = next;
        }
        self.put(base + at, &[0xff, 0xff]);
        self.put(base + at + 2, &((end - at) as u16).to_be_bytes());
    }

    /// The head of a block of an index.
    fn head(&mut self, block: usize, magic: u16, count: u16, more: u16) {
        self.put(block * BLOCK + 8, &magic.to_be_bytes());
        self.put(block * BLOCK + 12, &count.to_be_bytes());
        self.put(block * BLOCK + 14, &more.to_be_bytes());
    }

    fn pairs(&mut self, at: usize, pairs: &[(u32, u32)]) {
        for (i, (a, b)) in pairs.iter().enumerate() {
            self.put(at + i * 8, &a.to_be_bytes());
            self.put(at + i * 8 + 4, &b.to_be_bytes());
        }
    }
}

/// An extent: first block of the file, place, length, and whether it is unwritten.
fn extent(first: u64, block: u64, len: u64, unwritten: bool) -> [u8; 16] {
    let high = u64::from(unwritten) << 63 | first << 9 | block >> 43;
    let low = block << 21 | len;
    (u128::from(high) << 64 | u128::from(low)).to_be_bytes()
}

/// A directory in an inode: entries are name, kind, inode.
fn short(entries: &[(&str, u8, u32)]) -> Vec<u8> {
    let mut bytes = vec![entries.len() as u8, 0, 0, 0, 0, ROOT as u8];
    for (i, (name, kind, inode)) in entries.iter().enumerate() {
        bytes.extend([name.len() as u8, 0, i as u8]);
        bytes.extend(name.as_bytes());
        bytes.push(*kind);
        bytes.extend(inode.to_be_bytes());
    }
    bytes
}

fn superblock(image: &mut Image) {
    image.put(0, b"XFSB");
    for (at, value) in [(8, 256), (56, ROOT as u64), (48, 200)] {
        image.put(at, &u64::to_be_bytes(value));
    }
    for (at, value) in [(4, BLOCK as u32), (84, 256), (88, 1), (96, 16), (200, 0x200)] {
        image.put(at, &value.to_be_bytes());
    }
    image.put(32, &[7; 16]);
    image.put(100, &[0xa0, 4, 2, 0, 1, 0, 0, 2]);
    image.put(108, b"a label");
    image.put(120, &[9, 9, 8, 1, 8]);
    // The log has one record: of an unmount.
    let log = 200 * BLOCK;
    for (at, value) in [(0, 0xfeed_babe_u32), (4, 1), (8, 2), (12, 512), (40, 1), (320, 32768)] {
        image.put(log + at, &value.to_be_bytes());
    }
    image.put(log + BLOCK, &[0, 0, 0, 1, 0, 0, 0, 8, 0xaa, 0x20]);
}

/// Everything a reader has to know, in a few blocks.
fn image() -> Vec<u8> {
    let mut image = Image(vec![0; DISK_BYTES]);
    superblock(&mut image);
    let root = short(&[
        ("block", 2, 17),
        ("leaf", 2, 18),
        ("node", 2, 24),
        ("file", 1, 19),
        ("tree", 1, 20),
        ("a", 7, 21),
        ("b", 1, 22),
        ("c", 7, 23),
        ("d", 1, 25),
        ("e", 3, 26),
    ]);
    image.inode(ROOT, (0o40755, root.len() as u64), (LOCAL, &root), None);

    image.inode(17, (0o40755, 512), (EXTENTS, &extent(0, 40, 1, false)), None);
    image.entries(40, BLOCK - 8 - 24, &[(17, ".", 2), (16, "..", 2), (19, "file", 1)]);
    image.put(40 * BLOCK, b"XD2B");
    let file = crate::fs::xfs::name_hash(b"file");
    image.pairs(41 * BLOCK - 32, &[(0x2e, 2), (0x172e, 4), (file, 6), (3, 0)]);

    let names = [(18, ".", 2), (16, "..", 2), (19, "file", 1), (20, "other", 1)];
    let leaf = [(0x2e, 2), (0x172e, 4), (file, 6)];
    let places = [extent(0, 42, 1, false), extent(LEAF, 43, 1, false)].concat();
    image.inode(18, (0o40755, 512), (EXTENTS, &places), None);
    image.entries(42, BLOCK, &names);
    image.put(42 * BLOCK, b"XD2D");
    image.head(43, 0xd2f1, 3, 0);
    image.pairs(43 * BLOCK + 16, &leaf);

    let places = [extent(0, 44, 1, false), extent(LEAF, 45, 2, false)].concat();
    image.inode(24, (0o40755, 512), (EXTENTS, &places), None);
    image.entries(44, BLOCK, &names);
    image.put(44 * BLOCK, b"XD2D");
    image.head(45, 0xfebe, 1, 1);
    image.pairs(45 * BLOCK + 16, &[(u32::MAX, LEAF as u32 + 1)]);
    image.head(46, 0xd2ff, 3, 0);
    image.pairs(46 * BLOCK + 16, &leaf);

    let places = [extent(0, 50, 2, false), extent(3, 60, 2, true), extent(6, 52, 1, false)];
    image.inode(19, (0o100_644, 4000), (EXTENTS, &places.concat()), None);
    let mut tree = [0, 1, 0, 1].to_vec();
    tree.resize(4 + 9 * 8, 0);
    tree.extend(55u64.to_be_bytes());
    image.inode(20, (0o100_644, 3000), (TREE, &tree), None);
    image.put(55 * BLOCK, b"BMAP\0\0\0\x02");
    image.put(55 * BLOCK + 24, &[extent(0, 53, 1, false), extent(4, 54, 1, false)].concat());
    for block in [50, 51, 52, 53, 54] {
        image.0[block * BLOCK..(block + 1) * BLOCK].fill(block as u8);
    }

    special(&mut image);
    image.0
}

/// Links, a device, attributes in an inode and in blocks.
fn special(image: &mut Image) {
    image.inode(21, (0o120_777, 7), (LOCAL, b"../file"), None);
    image.inode(23, (0o120_777, 300), (EXTENTS, &extent(0, 56, 1, false)), None);
    image.put(56 * BLOCK, &[b't'; 300]);
    image.inode(26, (0o20600, 0), (0, &(1u32 << 18 | 3).to_be_bytes()), None);
    let mut attributes = vec![0, 0, 2, 0, 12, 28, 2];
    attributes.extend(b"SGI_ACL_FILE\0\0\0\x02");
    attributes.extend(b"\0\0\0\x01\xff\xff\xff\xff\0\x06\0\0\0\0\0\x02\0\0\x04\xd2\0\x04\0\0");
    attributes.extend(b"\x01\x05\0xvalue");
    attributes[1] = attributes.len() as u8;
    image.inode(22, (0o100_644, 0), (EXTENTS, &[]), Some((2, LOCAL, &attributes)));

    let places = extent(0, 57, 2, false);
    image.inode(25, (0o100_644, 0), (EXTENTS, &[]), Some((2, EXTENTS, &places)));
    let leaf = 57 * BLOCK;
    image.head(57, 0xfbee, 2, 0);
    image.pairs(leaf + 32, &[(1, 480 << 16 | 1 << 8), (2, 460 << 16)]);
    image.put(leaf + 480, b"\0\x05\x01xvalue");
    image.put(leaf + 460, b"\0\0\0\x01\0\0\x01\x2c\x04long");
    image.put(58 * BLOCK, &[b'v'; 300]);
}

pub(super) fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    vec![("version-4", patches(&image()))]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fs::{DirCookie, FileSystem};

    /// The seed is what it claims to be: a fuzzer that starts from a broken one finds nothing.
    #[test]
    fn the_seed_is_whole() {
        let fs = Xfs::open(Arc::new(MemDevice::read_only(image()))).expect("it opens");
        assert_eq!(fs.info().notes, [""; 0]);
        assert_eq!(fs.info().label, "a label");
        let names = fs.read_dir(fs.root(), DirCookie::START, 99).expect("names");
        assert_eq!(names.len(), 10);
        let node = |name: &str| fs.lookup(fs.root(), name.as_bytes()).expect(name);
        for (name, entries) in [("block", 1), ("leaf", 2), ("node", 2)] {
            let dir = node(name);
            let listed = fs.read_dir(dir, DirCookie::START, 99).expect("names");
            assert_eq!(listed.len(), entries, "{name}");
            assert_eq!(fs.lookup(dir, b"file").expect("by its hash"), node("file"));
        }
        let mut bytes = [1; 4000];
        assert_eq!(fs.read(node("file"), 0, &mut bytes).expect("content"), 4000);
        assert_eq!(
            [bytes[0], bytes[1000], bytes[1100], bytes[2000], bytes[3100]],
            [50, 51, 0, 0, 52]
        );
        assert_eq!(fs.read(node("tree"), 0, &mut bytes).expect("content"), 3000);
        assert_eq!([bytes[0], bytes[600], bytes[2100]], [53, 0, 54]);
        assert_eq!(fs.read_link(node("a")).expect("a target"), b"../file");
        assert_eq!(fs.read_link(node("c")).expect("a target"), [b't'; 300]);
        assert_eq!(fs.stat(node("e")).expect("metadata").device, Some((1, 3)));
        let all = fs.xattrs(node("b")).expect("attributes");
        let names: Vec<_> = all.iter().map(|x| String::from_utf8_lossy(&x.name)).collect();
        assert_eq!(names, ["system.posix_acl_access", "user.x"]);
        assert_eq!(all[0].value.len(), 4 + 16);
        let all = fs.xattrs(node("d")).expect("attributes");
        assert_eq!((all.len(), all[1].value.len()), (2, 300));
    }
}
