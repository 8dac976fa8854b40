//! btrfs of any bytes. Checksums of metadata are put right first: a fuzzer would never get past them.

use std::sync::Arc;

use backstay_blockdev::MemDevice;

use super::{disk, patches};
use crate::fs::btrfs::Btrfs;
use crate::fs::{DirCookie, FileSystem, NodeId, NodeKind, Place};

/// The disk's size.
const DISK_BYTES: usize = 256 << 10;
/// Tree blocks and sectors.
const BLOCK: usize = 4096;
const SUPERBLOCK: usize = 64 << 10;
/// Where tree blocks start and end; logical addresses are the same.
const TREES: usize = SUPERBLOCK + BLOCK;
const TREES_END: usize = 128 << 10;
/// Where content is, logically, and the places of its two copies.
const CONTENT: u64 = 1 << 20;
const CONTENT_BYTES: usize = 64 << 10;
const COPIES: [usize; 2] = [TREES_END, TREES_END + CONTENT_BYTES];

const FSID: [u8; 16] = *b"a btrfs by hand.";
const DEVICE: [u8; 16] = *b"its only device.";
const GENERATION: u64 = 9;

const CHUNK_TREE: u64 = 0x11000;
const ROOT_TREE: u64 = 0x12000;
const FS_TREE: u64 = 0x13000;
const FS_LEAVES: [u64; 2] = [0x14000, 0x15000];
const SUM_TREE: u64 = 0x16000;
const SUBVOLUME: u64 = 0x17000;

/// Bounds of a walk.
const NODES_MAX: usize = 100;
const LISTS_MAX: usize = 20;
const READ_BYTES: usize = 64 << 10;

pub(super) fn run(bytes: &[u8]) {
    let mut disk = disk(bytes, DISK_BYTES);
    seal(&mut disk);
    let device = Arc::new(MemDevice::read_only(disk.clone()));
    let Ok(fs) = Btrfs::open(vec![device]) else { return };
    let mut waiting = vec![fs.root()];
    let mut nodes = 0;
    while let Some(node) = waiting.pop() {
        nodes += 1;
        if nodes > NODES_MAX {
            break;
        }
        let Ok(stat) = fs.stat(node) else { continue };
        assert_eq!(stat.node, node);
        if let Ok(all) = fs.xattrs(node) {
            let mut names: Vec<_> = all.iter().map(|x| &x.name).collect();
            names.sort();
            names.dedup();
            assert_eq!(names.len(), all.len(), "an attribute comes twice");
        }
        match stat.kind {
            NodeKind::Directory => waiting.extend(list(&fs, node)),
            NodeKind::File => {
                for offset in [0, 5000, stat.size_bytes.saturating_sub(9000)] {
                    content(&fs, &disk, node, stat.size_bytes, offset);
                }
            }
            NodeKind::Symlink => {
                if let Ok(target) = fs.read_link(node) {
                    assert_eq!(target.len() as u64, stat.size_bytes);
                }
            }
            _ => {}
        }
    }
}

/// The nodes a directory leads to.
fn list(fs: &Btrfs, dir: NodeId) -> Vec<NodeId> {
    let (mut nodes, mut from) = (Vec::new(), DirCookie::START);
    for max in 1..LISTS_MAX {
        let Ok(part) = fs.read_dir(dir, from, max) else { break };
        assert!(part.len() <= max);
        for entry in part {
            let name = &entry.name[..];
            assert!(!name.is_empty() && name.len() <= 1024 && name != b"." && name != b"..");
            assert!(!name.iter().any(|b| matches!(b, 0 | b'/')));
            assert!(entry.next > from, "the list does not go on");
            from = entry.next;
            let _ = fs.lookup(dir, name);
            nodes.push(entry.node);
        }
    }
    nodes
}

/// Extents are without gaps, and what they say is what is read.
fn content(fs: &Btrfs, disk: &[u8], node: NodeId, size: u64, offset: u64) {
    let left = usize::try_from(size.saturating_sub(offset)).unwrap_or(usize::MAX);
    let mut buf = vec![0xaa; READ_BYTES];
    let read = fs.read(node, offset, &mut buf);
    if let Ok(read) = read {
        assert_eq!(read, left.min(READ_BYTES));
    }
    let Ok(extents) = fs.extents(node, offset, READ_BYTES as u64, 8) else { return };
    assert_eq!(extents.is_empty(), left == 0);
    let mut at = 0;
    for extent in extents {
        assert_eq!(extent.offset_bytes, offset + at as u64);
        assert!(extent.len_bytes > 0);
        let len = extent.len_bytes as usize;
        assert!(len <= left.min(READ_BYTES) - at, "an extent is longer than asked for");
        if read.is_ok() {
            let bytes = &buf[at..at + len];
            match extent.place {
                Place::Hole | Place::Unwritten => assert!(bytes.iter().all(|b| *b == 0)),
                Place::Device { device, offset_bytes } => {
                    assert_eq!(device, 0);
                    let start = offset_bytes as usize;
                    assert_eq!(Some(bytes), disk.get(start..start + len));
                }
                Place::Inside => {}
            }
        }
        at += len;
    }
}

/// Puts right the checksums of the superblock and of all that looks like a tree block.
pub(crate) fn seal(disk: &mut [u8]) {
    for at in (SUPERBLOCK..TREES_END).step_by(BLOCK) {
        let block = &mut disk[at..at + BLOCK];
        if at == SUPERBLOCK || block[0x20..0x30] == FSID {
            let sum = crc_fast::crc32_iscsi(&block[32..]);
            block[..4].copy_from_slice(&sum.to_le_bytes());
        }
    }
}

pub(super) fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    vec![("everything", patches(&image()))]
}

type Items = Vec<((u64, u8, u64), Vec<u8>)>;

/// A small btrfs with one of everything.
pub(crate) fn image() -> Vec<u8> {
    let mut disk = vec![0; DISK_BYTES];
    let mut put = |at: u64, bytes: &[u8]| {
        disk[at as usize..at as usize + bytes.len()].copy_from_slice(bytes);
    };
    put(SUPERBLOCK as u64, &superblock());
    put(CHUNK_TREE, &leaf(CHUNK_TREE, 3, &chunk_items()));
    put(ROOT_TREE, &leaf(ROOT_TREE, 1, &root_items()));
    let (first, second) = (directory_items(), file_items());
    put(FS_TREE, &inner(FS_TREE, 5, &[(first[0].0, FS_LEAVES[0]), (second[0].0, FS_LEAVES[1])]));
    put(FS_LEAVES[0], &leaf(FS_LEAVES[0], 5, &first));
    put(FS_LEAVES[1], &leaf(FS_LEAVES[1], 5, &second));
    let content = content_bytes();
    let sums = content.chunks(BLOCK).flat_map(|s| crc_fast::crc32_iscsi(s).to_le_bytes()).collect();
    put(SUM_TREE, &leaf(SUM_TREE, 7, &[((u64::MAX - 9, 128, CONTENT), sums)]));
    let inside = vec![((256, 1, 0), inode(0o040_755, 0, 0, 0))];
    put(SUBVOLUME, &leaf(SUBVOLUME, 256, &inside));
    for copy in COPIES {
        put(copy as u64, &content);
    }
    seal(&mut disk);
    disk
}

/// A byte of the plain content: a few at the start of each sector, zeros behind, so that seeds are small.
pub(crate) fn plain(at: usize) -> u8 {
    if at % BLOCK < 60 { (at / 5) as u8 } else { 0 }
}

/// Three sectors as they are, then one with a compressed extent in it.
fn content_bytes() -> Vec<u8> {
    let mut bytes: Vec<u8> = (0..3 * BLOCK).map(plain).collect();
    bytes.extend(zstd::bulk::compress(&[7; 2 * BLOCK], 3).unwrap_or_default());
    bytes.resize(4 * BLOCK, 0);
    bytes
}

/// Numbers of given widths, one behind the other.
fn pack(fields: &[(u64, usize)]) -> Vec<u8> {
    fields.iter().flat_map(|(n, len)| n.to_le_bytes().into_iter().take(*len)).collect()
}

fn key((object, kind, offset): (u64, u8, u64)) -> Vec<u8> {
    pack(&[(object, 8), (kind.into(), 1), (offset, 8)])
}

fn header(at: u64, owner: u64, count: usize, level: u8) -> Vec<u8> {
    let mut bytes = vec![0; 32];
    bytes.extend(FSID);
    bytes.extend(pack(&[(at, 8), (1, 8)]));
    bytes.extend([0; 16]);
    bytes.extend(pack(&[(GENERATION, 8), (owner, 8), (count as u64, 4), (level.into(), 1)]));
    bytes
}

/// Object id, type and offset of an item.
type Key = (u64, u8, u64);

/// A leaf of these items, which must be in order.
pub(crate) fn leaf(at: u64, owner: u64, items: &[(Key, Vec<u8>)]) -> Vec<u8> {
    let mut bytes = header(at, owner, items.len(), 0);
    let start = bytes.len();
    let mut end = BLOCK - start;
    let mut data = Vec::new();
    for (item, value) in items {
        end -= value.len();
        bytes.extend(key(*item));
        bytes.extend(pack(&[(end as u64, 4), (value.len() as u64, 4)]));
        data.splice(0..0, value.iter().copied());
    }
    bytes.resize(start + end, 0);
    bytes.extend(data);
    bytes
}

/// A block of pointers to others, one level above leaves.
pub(crate) fn inner(at: u64, owner: u64, children: &[((u64, u8, u64), u64)]) -> Vec<u8> {
    let mut bytes = header(at, owner, children.len(), 1);
    for (first, child) in children {
        bytes.extend(key(*first));
        bytes.extend(pack(&[(*child, 8), (GENERATION, 8)]));
    }
    bytes.resize(BLOCK, 0);
    bytes
}

fn superblock() -> Vec<u8> {
    let mut bytes = vec![0; BLOCK];
    let mut put = |at: usize, part: &[u8]| bytes[at..at + part.len()].copy_from_slice(part);
    put(0x20, &FSID);
    put(0x30, &pack(&[(SUPERBLOCK as u64, 8), (1, 8)]));
    put(0x40, b"_BHRfS_M");
    put(0x48, &pack(&[(GENERATION, 8), (ROOT_TREE, 8), (CHUNK_TREE, 8), (0, 8), (0, 8)]));
    put(0x70, &pack(&[(DISK_BYTES as u64, 8), (BLOCK as u64, 8), (6, 8), (1, 8)]));
    let block = BLOCK as u64;
    put(0x90, &pack(&[(block, 4), (block, 4), (block, 4), (block, 4)]));
    put(0xa4, &pack(&[(GENERATION, 8)]));
    put(0xbc, &pack(&[(0x341, 8)]));
    put(0xc9, &pack(&[(1, 8)]));
    put(0xc9 + 66, &DEVICE);
    put(0x12b, b"by hand");
    let (start, chunk) = chunks().swap_remove(0);
    let system = [key((256, 228, start)), chunk].concat();
    put(0xa0, &pack(&[(system.len() as u64, 4)]));
    put(0x32b, &system);
    bytes
}

/// One chunk of tree blocks with one copy, and one of content with two.
fn chunks() -> Vec<(u64, Vec<u8>)> {
    let chunk = |len: usize, kind: u64, places: &[usize]| {
        let mut bytes = pack(&[(len as u64, 8), (2, 8), (64 << 10, 8), (kind, 8)]);
        bytes.extend(pack(&[(4096, 4), (4096, 4), (4096, 4), (places.len() as u64, 2), (1, 2)]));
        for place in places {
            bytes.extend(pack(&[(1, 8), (*place as u64, 8)]));
            bytes.extend(DEVICE);
        }
        bytes
    };
    vec![
        (TREES as u64, chunk(TREES_END - TREES, 2 | 4, &[TREES])),
        (CONTENT, chunk(CONTENT_BYTES, 1 | 1 << 5, &COPIES)),
    ]
}

fn chunk_items() -> Items {
    let mut device = vec![0; 98];
    device[..8].copy_from_slice(&1u64.to_le_bytes());
    device[66..82].copy_from_slice(&DEVICE);
    let mut items = vec![((1, 216, 1), device)];
    items.extend(chunks().into_iter().map(|(start, chunk)| ((256, 228, start), chunk)));
    items
}

/// A root item: of the tree at `address`.
fn root(address: u64, level: u8) -> Vec<u8> {
    let mut bytes = vec![0; 439];
    bytes[160..176].copy_from_slice(&pack(&[(GENERATION, 8), (256, 8)]));
    bytes[176..184].copy_from_slice(&address.to_le_bytes());
    bytes[216] = 1;
    bytes[238] = level;
    bytes
}

fn root_items() -> Items {
    let reference = [pack(&[(256, 8), (9, 8), (3, 2)]), b"sub".to_vec()].concat();
    vec![
        ((5, 132, 0), root(FS_TREE, 1)),
        ((5, 156, 256), reference),
        ((6, 84, hash(b"default")), entry((256, 132, u64::MAX), 2, b"default", b"")),
        ((7, 132, 0), root(SUM_TREE, 0)),
        ((256, 132, 0), root(SUBVOLUME, 0)),
    ]
}

fn hash(name: &[u8]) -> u64 {
    crate::fs::btrfs::name_hash(name)
}

fn entry(target: (u64, u8, u64), kind: u64, name: &[u8], value: &[u8]) -> Vec<u8> {
    let lens = [(GENERATION, 8), (value.len() as u64, 2), (name.len() as u64, 2), (kind, 1)];
    [key(target), pack(&lens), name.to_vec(), value.to_vec()].concat()
}

fn inode(mode: u64, size: u64, number: u64, flags: u64) -> Vec<u8> {
    let mut bytes = pack(&[(GENERATION, 8), (GENERATION, 8), (size, 8), (size, 8), (0, 8)]);
    bytes.extend(pack(&[(1, 4), (0, 4), (0, 4), (mode, 4), (number, 8), (flags, 8)]));
    bytes.resize(112, 0);
    for second in 1..=4 {
        bytes.extend(pack(&[(second, 8), (second, 4)]));
    }
    bytes
}

/// The root directory.
fn directory_items() -> Items {
    let names: [(&[u8], Key, u64); 7] = [
        (b"inline", (257, 1, 0), 1),
        (b"content", (258, 1, 0), 1),
        (b"link", (259, 1, 0), 7),
        (b"packed", (260, 1, 0), 1),
        (b"plain", (261, 1, 0), 1),
        (b"null", (262, 1, 0), 3),
        (b"sub", (256, 132, u64::MAX), 2),
    ];
    let mut items = vec![((256, 1, 0), inode(0o040_755, 70, 0, 0))];
    let xattr = entry((0, 0, 0), 8, b"user.x", b"value");
    items.push(((256, 24, hash(b"user.x")), xattr));
    for (i, (name, target, kind)) in names.into_iter().enumerate() {
        let entry = entry(target, kind, name, b"");
        items.push(((256, 84, hash(name)), entry.clone()));
        items.push(((256, 96, i as u64 + 2), entry));
    }
    items.sort_by_key(|(key, _)| *key);
    items
}

/// An extent item: `compression`, `kind`, then where and what of it.
fn extent(ram: u64, compression: u64, kind: u64, place: [u64; 4]) -> Vec<u8> {
    let mut bytes = pack(&[(GENERATION, 8), (ram, 8), (compression, 1), (0, 3), (kind, 1)]);
    bytes.extend(place.iter().flat_map(|n| n.to_le_bytes()));
    bytes
}

fn inline(ram: u64, compression: u64, bytes: &[u8]) -> Vec<u8> {
    let head = pack(&[(GENERATION, 8), (ram, 8), (compression, 1), (0, 3), (0, 1)]);
    [head, bytes.to_vec()].concat()
}

/// Files: inline, with a hole and preallocated space, a link, compressed, and without checksums.
fn file_items() -> Items {
    let block = BLOCK as u64;
    let lzo = [pack(&[(8 + 7, 4), (7, 4)]), vec![20, b'a', b'b', b'c', 0x11, 0, 0]].concat();
    vec![
        ((257, 1, 0), inode(0o100_644, 3, 0, 0)),
        ((257, 108, 0), inline(3, 2, &lzo)),
        ((258, 1, 0), inode(0o100_644, 5 * block - 96, 0, 0)),
        ((258, 108, 0), extent(3 * block, 0, 1, [CONTENT, 3 * block, 0, 2 * block])),
        ((258, 108, 3 * block), extent(block, 0, 2, [CONTENT + 8 * block, block, 0, block])),
        ((258, 108, 4 * block), extent(3 * block, 0, 1, [CONTENT, 3 * block, 2 * block, block])),
        ((259, 1, 0), inode(0o120_777, 6, 0, 0)),
        ((259, 108, 0), inline(6, 0, b"inline")),
        ((260, 1, 0), inode(0o100_644, block + 9, 0, 1 << 11)),
        ((260, 108, 0), extent(2 * block, 3, 1, [CONTENT + 3 * block, block, 0, 2 * block])),
        ((261, 1, 0), inode(0o100_644, block, 0, 1)),
        ((261, 108, 0), extent(block, 0, 1, [CONTENT + block, block, 0, block])),
        ((262, 1, 0), inode(0o020_666, 0, 1 << 20 | 3, 0)),
    ]
}
