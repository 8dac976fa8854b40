//! NTFS of any bytes.

use std::sync::Arc;

use backstay_blockdev::MemDevice;

use super::walk::walk;
use super::{disk, patches};
use crate::fs::ntfs::Ntfs;

/// The disk's size; clusters and records have the same.
const DISK_BYTES: usize = 320 << 10;
const CLUSTER: usize = 1024;
const RECORDS: usize = 40;
/// Clusters of what the seed holds.
const MFT: usize = 4;
const INDEX: usize = 48;
const CONTENT: usize = 56;
const PACKED: usize = 80;
const UPCASE: usize = 128;
const UPCASE_BYTES: usize = 128 << 10;

pub(super) fn run(bytes: &[u8]) {
    let mut disk = disk(bytes, DISK_BYTES);
    capitals(&mut disk);
    let device = Arc::new(MemDevice::read_only(disk.clone()));
    if let Ok(fs) = Ntfs::open(device) {
        walk(&fs, &disk);
    }
}

/// The table of capital letters would fill an input: it is always there.
fn capitals(disk: &mut [u8]) {
    let table = &mut disk[UPCASE * CLUSTER..][..UPCASE_BYTES];
    for (unit, place) in (0..=u16::MAX).zip(table.chunks_exact_mut(2)) {
        let capital = u8::try_from(unit).map_or(unit, |b| b.to_ascii_uppercase().into());
        place.copy_from_slice(&capital.to_le_bytes());
    }
}

fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    bytes[at..at + value.len()].copy_from_slice(value);
}

fn utf16(text: &str) -> Vec<u8> {
    text.encode_utf16().flat_map(u16::to_le_bytes).collect()
}

/// An attribute in its record.
fn resident(kind: u32, name: &str, instance: u8, value: &[u8]) -> Vec<u8> {
    let name_bytes = utf16(name);
    let at = (24 + name_bytes.len()).next_multiple_of(8);
    let mut bytes = vec![0; (at + value.len()).next_multiple_of(8)];
    head(&mut bytes, kind, name, instance, 24);
    put(&mut bytes, 16, &(value.len() as u32).to_le_bytes());
    put(&mut bytes, 20, &(at as u16).to_le_bytes());
    put(&mut bytes, at, value);
    bytes
}

fn head(bytes: &mut [u8], kind: u32, name: &str, instance: u8, name_at: u8) {
    let len = bytes.len() as u32;
    put(bytes, 0, &kind.to_le_bytes());
    put(bytes, 4, &len.to_le_bytes());
    (bytes[9], bytes[10], bytes[14]) = (name.len() as u8, name_at, instance);
    put(bytes, usize::from(name_at), &utf16(name));
}

/// An attribute in clusters.
struct Mapped<'a> {
    kind: u32,
    name: &'a str,
    instance: u8,
    flags: u16,
    first: u64,
    clusters: u64,
    sizes: [u64; 3],
    pairs: &'a [u8],
}

impl Mapped<'_> {
    fn bytes(&self) -> Vec<u8> {
        let at = (72 + self.name.len() * 2).next_multiple_of(8);
        let mut bytes = vec![0; (at + self.pairs.len() + 1).next_multiple_of(8)];
        head(&mut bytes, self.kind, self.name, self.instance, 72);
        bytes[8] = 1;
        put(&mut bytes, 12, &self.flags.to_le_bytes());
        put(&mut bytes, 16, &self.first.to_le_bytes());
        put(&mut bytes, 24, &(self.first + self.clusters - 1).to_le_bytes());
        put(&mut bytes, 32, &(at as u16).to_le_bytes());
        bytes[34] = if self.flags & 1 != 0 { 4 } else { 0 };
        for (i, size) in self.sizes.into_iter().enumerate() {
            put(&mut bytes, 40 + i * 8, &size.to_le_bytes());
        }
        put(&mut bytes, 64, &self.sizes[0].to_le_bytes());
        put(&mut bytes, at, self.pairs);
        bytes
    }
}

/// Content in clusters, all of it in this record.
fn data(clusters: u64, size: u64, initialized: u64, flags: u16, pairs: &[u8]) -> Vec<u8> {
    let sizes = [clusters * CLUSTER as u64, size, initialized];
    Mapped { kind: 0x80, name: "", instance: 4, flags, first: 0, clusters, sizes, pairs }.bytes()
}

fn standard(flags: u32) -> Vec<u8> {
    let mut value = [0; 72];
    for at in [0, 8, 16, 24] {
        put(&mut value, at, &(133_000_000_000_000_000u64 + at as u64).to_le_bytes());
    }
    put(&mut value, 32, &flags.to_le_bytes());
    resident(0x10, "", 0, &value)
}

/// Record `number`; flags are 1 for "in use" and 2 for "directory".
fn record(disk: &mut [u8], number: usize, flags: u8, base: u64, attributes: &[Vec<u8>]) {
    let attributes = attributes.concat();
    let mut bytes = vec![0; CLUSTER];
    put(&mut bytes, 0, b"FILE");
    put(&mut bytes, 4, &[48, 0, 3, 0]);
    (bytes[16], bytes[20], bytes[22]) = (1, 56, flags);
    put(&mut bytes, 24, &(64 + attributes.len() as u32).to_le_bytes());
    put(&mut bytes, 32, &base.to_le_bytes());
    put(&mut bytes, 56, &attributes);
    put(&mut bytes, 56 + attributes.len(), &u32::MAX.to_le_bytes());
    put(disk, (MFT + number) * CLUSTER, &bytes);
}

/// An entry of an index. `below` is the block before it; without a name it is the last.
fn entry(number: u64, name: &str, flags: u32, below: Option<u64>) -> Vec<u8> {
    let mut key = Vec::new();
    if !name.is_empty() {
        key.resize(66, 0);
        put(&mut key, 0, &(5u64 | 1 << 48).to_le_bytes());
        put(&mut key, 56, &flags.to_le_bytes());
        (key[64], key[65]) = (name.encode_utf16().count() as u8, 1);
        key.extend(utf16(name));
    }
    let len = (16 + key.len()).next_multiple_of(8) + below.map_or(0, |_| 8);
    let mut bytes = vec![0; len];
    put(&mut bytes, 0, &(number | 1 << 48).to_le_bytes());
    (bytes[8], bytes[10]) = (len as u8, key.len() as u8);
    bytes[12] = u8::from(below.is_some()) | u8::from(name.is_empty()) << 1;
    put(&mut bytes, 16, &key);
    if let Some(below) = below {
        put(&mut bytes, len - 8, &below.to_le_bytes());
    }
    bytes
}

/// The head of a node, and its entries `first` bytes behind the head.
fn node(first: u32, entries: &[Vec<u8>], large: bool) -> Vec<u8> {
    let entries = entries.concat();
    let mut bytes = vec![0; first as usize];
    let end = first + entries.len() as u32;
    put(&mut bytes, 0, &first.to_le_bytes());
    put(&mut bytes, 4, &end.to_le_bytes());
    put(&mut bytes, 8, &end.to_le_bytes());
    bytes[12] = u8::from(large);
    bytes.extend(entries);
    bytes
}

fn index_root(entries: &[Vec<u8>], large: bool) -> Vec<u8> {
    let mut value = vec![0; 16];
    (value[0], value[4], value[12]) = (0x30, 1, 4);
    put(&mut value, 8, &4096u32.to_le_bytes());
    value.extend(node(16, entries, large));
    resident(0x90, "$I30", 1, &value)
}

fn index_block(disk: &mut [u8], vcn: u64, entries: &[Vec<u8>]) {
    let mut bytes = vec![0; 4096];
    put(&mut bytes, 0, b"INDX");
    put(&mut bytes, 4, &[40, 0, 9, 0]);
    put(&mut bytes, 16, &vcn.to_le_bytes());
    put(&mut bytes, 24, &node(40, entries, false));
    put(disk, INDEX * CLUSTER + vcn as usize * CLUSTER, &bytes);
}

const DIRECTORY: u32 = 0x1000_0000;
const REPARSE: u32 = 0x400;
const SYSTEM: u32 = 4;

/// The format's own files, as far as a reader needs them.
fn system(disk: &mut [u8]) {
    put(disk, 0, b"\xeb\x52\x90NTFS    ");
    put(disk, 11, &[0, 2, 2]);
    for (at, value) in [(0x28, DISK_BYTES as u64 / 512), (0x30, MFT as u64), (0x38, 2), (0x48, 7)] {
        put(disk, at, &value.to_le_bytes());
    }
    (disk[0x15], disk[0x40], disk[0x44]) = (0xf8, 1, 4);
    let mft = (RECORDS * CLUSTER) as u64;
    let pairs = [0x11, RECORDS as u8, MFT as u8];
    let bytes = data(RECORDS as u64, mft, mft, 0, &pairs);
    record(disk, 0, 1, 0, &[standard(6), bytes]);
    let flags = resident(0x70, "", 3, &[0, 0, 0, 0, 0, 0, 0, 0, 3, 1, 1, 0]);
    record(disk, 3, 1, 0, &[standard(6), resident(0x60, "", 2, &utf16("label")), flags]);
    let bitmap = resident(0x80, "", 1, &[0xff; DISK_BYTES / CLUSTER / 8]);
    record(disk, 6, 1, 0, &[standard(6), bitmap]);
    let size = UPCASE_BYTES as u64;
    let bytes = data(128, size, size, 0, &[0x22, 128, 0, UPCASE as u8, 0]);
    record(disk, 10, 1, 0, &[standard(6), bytes]);
}

/// A small volume with one of everything.
fn image() -> Vec<u8> {
    let mut disk = vec![0; DISK_BYTES];
    system(&mut disk);
    let blocks = Mapped {
        kind: 0xa0,
        name: "$I30",
        instance: 2,
        flags: 0,
        first: 0,
        clusters: 8,
        sizes: [8192; 3],
        pairs: &[0x11, 8, INDEX as u8],
    };
    let top = [entry(26, "m", 0, Some(0)), entry(0, "", 0, Some(4))];
    record(&mut disk, 5, 3, 0, &[standard(6), index_root(&top, true), blocks.bytes()]);
    let first = [
        entry(24, "a file", 0, None),
        entry(25, "b holes", 0, None),
        entry(27, "c link", REPARSE, None),
        entry(28, "d dir", DIRECTORY, None),
        entry(0, "", 0, None),
    ];
    index_block(&mut disk, 0, &first);
    let second = [
        entry(29, "p pieces", 0, None),
        entry(31, "q device", SYSTEM, None),
        entry(32, "r packed", 0, None),
        entry(0, "", 0, None),
    ];
    index_block(&mut disk, 4, &second);
    let name = [&[0; 64][..], &[2, 1], &utf16("af")].concat();
    let stream = resident(0x80, "stream", 5, b"a stream");
    let ea = resident(0xe0, "", 6, b"\0\0\0\0\0\x06\x04\0$LXMOD\0\xa4\x81\0\0\0");
    let content = resident(0x80, "", 4, b"content");
    record(&mut disk, 24, 1, 0, &[standard(1), resident(0x30, "", 2, &name), content, stream, ea]);
    // Two clusters, three of a hole, one more; the last is not written.
    let pairs = [0x11, 2, CONTENT as u8, 0x01, 3, 0x11, 1, 4];
    record(&mut disk, 25, 1, 0, &[standard(0), data(6, 6000, 5500, 0x8000, &pairs)]);
    record(&mut disk, 26, 1, 0, &[standard(0), data(1, 1000, 1000, 0, &[0x11, 1, 62])]);
    let link = b"\x0c\0\0\xa0\x18\0\0\0\0\0\x06\0\x06\0\x06\0\x01\0\0\0a\0\\\0b\0a\0/\0b\0";
    record(
        &mut disk,
        27,
        1,
        0,
        &[standard(REPARSE), resident(0xc0, "", 3, link), data(1, 0, 0, 0, &[0x11, 1, 63])],
    );
    let inside = [entry(24, "inside", 0, None), entry(0, "", 0, None)];
    record(&mut disk, 28, 3, 0, &[standard(0), index_root(&inside, false)]);
    pieces(&mut disk);
    let device = [&b"IntxCHR\0"[..], &1u64.to_le_bytes(), &3u64.to_le_bytes()].concat();
    record(&mut disk, 31, 1, 0, &[standard(SYSTEM), resident(0x80, "", 4, &device)]);
    // One unit stored as it is, one packed into two clusters, one of zeros.
    let pairs = [0x11, 18, PACKED as u8, 0x01, 30];
    record(&mut disk, 32, 1, 0, &[standard(0x800), data(48, 40_000, 40_000, 1, &pairs)]);
    disk[CONTENT * CLUSTER..][..8 * CLUSTER].fill(b'c');
    disk[PACKED * CLUSTER..][..16 * CLUSTER].fill(b'r');
    // A byte, and then it again, four thousand times.
    put(&mut disk, (PACKED + 16) * CLUSTER, &[3, 0xb0, 2, b'p', 0xfc, 0x0f]);
    disk
}

/// An entry of an attribute list.
fn item(kind: u32, first: u64, record: u64, instance: u8) -> Vec<u8> {
    let mut bytes = vec![0; 32];
    put(&mut bytes, 0, &kind.to_le_bytes());
    (bytes[4], bytes[7], bytes[24]) = (32, 26, instance);
    put(&mut bytes, 8, &first.to_le_bytes());
    put(&mut bytes, 16, &(record | 1 << 48).to_le_bytes());
    bytes
}

/// A file whose content is mapped by two further records.
fn pieces(disk: &mut [u8]) {
    let list = [item(0x10, 0, 29, 0), item(0x80, 0, 30, 4), item(0x80, 2, 33, 4)].concat();
    record(disk, 29, 1, 0, &[standard(0), resident(0x20, "", 1, &list)]);
    let piece = |first: u64, clusters: u64, pairs: &[u8]| {
        let sizes = [5 * CLUSTER as u64, 5000, 5000];
        Mapped { kind: 0x80, name: "", instance: 4, flags: 0, first, clusters, sizes, pairs }
            .bytes()
    };
    let base = 29 | 1 << 48;
    record(disk, 30, 1, base, &[piece(0, 2, &[0x11, 2, 64])]);
    record(disk, 33, 1, base, &[piece(2, 3, &[0x11, 3, 70])]);
    disk[64 * CLUSTER..66 * CLUSTER].fill(b'1');
    disk[70 * CLUSTER..73 * CLUSTER].fill(b'2');
}

pub(super) fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    vec![("everything", patches(&image()))]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ErrorKind;
    use crate::fs::{DirCookie, FileSystem, NodeId, NodeKind};

    fn open(mut disk: Vec<u8>) -> Ntfs {
        capitals(&mut disk);
        Ntfs::open(Arc::new(MemDevice::read_only(disk))).expect("it opens")
    }

    fn text(fs: &Ntfs, node: NodeId) -> Vec<u8> {
        let mut buf = vec![9; 50_000];
        let len = fs.read(node, 0, &mut buf).expect("content");
        buf.truncate(len);
        buf
    }

    /// The seed is what it claims to be: a fuzzer that starts from a broken one finds nothing.
    #[test]
    fn the_seed_is_whole() {
        let fs = open(image());
        assert_eq!(fs.info().label, "label");
        assert!(fs.info().notes.iter().any(|note| note.contains("dirty")), "{:?}", fs.info());
        let names = fs.read_dir(fs.root(), DirCookie::START, 99).expect("names");
        let mut names: Vec<_> = names.into_iter().map(|entry| entry.name).collect();
        names.sort();
        let expected =
            ["a file", "b holes", "c link", "d dir", "m", "p pieces", "q device", "r packed"];
        assert_eq!(names, expected.map(str::as_bytes));
        let node = |name: &str| fs.lookup(fs.root(), name.as_bytes()).expect(name);
        assert_eq!(text(&fs, node("A FILE")), b"content");
        assert_eq!(text(&fs, node("a file:STREAM")), b"a stream");
        assert_eq!(fs.stat(node("a file")).expect("metadata").mode, 0o644);
        let holes = text(&fs, node("b holes"));
        assert_eq!([holes[0], holes[2048], holes[5120], holes[5500]], [b'c', 0, b'c', 0]);
        assert_eq!(fs.read_link(node("c link")).expect("a link"), b"a/b");
        assert_eq!(fs.lookup(node("d dir"), b"INSIDE").expect("a name"), node("a file"));
        let pieces = text(&fs, node("p pieces"));
        assert_eq!((pieces.len(), pieces[2047], pieces[2048]), (5000, b'1', b'2'));
        assert_eq!(fs.stat(node("q device")).expect("metadata").kind, NodeKind::CharDevice);
        let packed = text(&fs, node("r packed"));
        assert_eq!([packed[16383], packed[16384], packed[20479]], [b'r', b'p', b'p']);
        assert_eq!((packed.len(), packed[20480], packed[39_999]), (40_000, 0, 0));
    }

    #[test]
    fn loops_end_in_errors() {
        // The second block of the index leads to itself, and to the first, which leads back.
        for below in [4, 0] {
            let mut disk = image();
            index_block(&mut disk, 4, &[entry(0, "", 0, Some(below))]);
            index_block(&mut disk, 0, &[entry(0, "", 0, Some(4))]);
            let fs = open(disk);
            let e = fs.read_dir(fs.root(), DirCookie::START, 9).expect_err("a loop");
            assert_eq!(e.kind(), ErrorKind::Damaged, "{e}");
            let e = fs.lookup(fs.root(), b"z").expect_err("a loop");
            assert_eq!(e.kind(), ErrorKind::Damaged, "{e}");
        }
    }

    /// The MFT in two pieces, of which the second is mapped by a record in the first.
    #[test]
    fn an_mft_that_needs_itself() {
        let mut disk = image();
        let (first, size) = (31, (RECORDS * CLUSTER) as u64);
        let rest = RECORDS as u64 - first;
        let moved = (MFT + first as usize) * CLUSTER;
        disk.copy_within(moved..(MFT + RECORDS) * CLUSTER, 260 * CLUSTER);
        disk[moved..(MFT + RECORDS) * CLUSTER].fill(0);
        let list = [item(0x10, 0, 0, 0), item(0x80, 0, 0, 4), item(0x80, first, 20, 4)].concat();
        let sizes = [size; 3];
        let piece = |first, clusters, pairs: &[u8]| {
            Mapped { kind: 0x80, name: "", instance: 4, flags: 0, first, clusters, sizes, pairs }
                .bytes()
        };
        let head = piece(0, first, &[0x11, first as u8, MFT as u8]);
        record(&mut disk, 0, 1, 0, &[standard(6), resident(0x20, "", 1, &list), head]);
        let tail = piece(first, rest, &[0x21, rest as u8, 4, 1]);
        record(&mut disk, 20, 1, 1 << 48, &[tail]);
        let fs = open(disk.clone());
        let node = fs.lookup(fs.root(), b"r packed").expect("a file");
        assert_eq!(text(&fs, node)[..3], *b"rrr");
        // A piece that is not where the list says: nothing is guessed.
        record(&mut disk, 20, 1, 1 << 48, &[]);
        let device = Arc::new(MemDevice::read_only(disk));
        assert_eq!(Ntfs::open(device).expect_err("it is gone").kind(), ErrorKind::Damaged);
    }

    #[test]
    fn encrypted_content_is_an_error_of_its_own() {
        let mut disk = image();
        let content = data(1, 1000, 1000, 0x4000, &[0x11, 1, 62]);
        record(&mut disk, 26, 1, 0, &[standard(0x4000), content]);
        let fs = open(disk);
        let node = fs.lookup(fs.root(), b"m").expect("a file");
        assert!(fs.stat(node).expect("metadata").attributes.encrypted);
        assert_eq!(fs.read(node, 0, &mut [0; 9]).expect_err("a key").kind(), ErrorKind::Encrypted);
        assert_eq!(fs.extents(node, 0, 9, 1).expect_err("a key").kind(), ErrorKind::Encrypted);
    }

    #[test]
    fn torn_records_are_damage_and_others_are_not_hurt() {
        let mut disk = image();
        disk[(MFT + 24) * CLUSTER + 510] ^= 1;
        let fs = open(disk);
        let node = fs.lookup(fs.root(), b"m").expect("another file");
        assert!(fs.stat(node).is_ok());
        let e = fs.stat(NodeId::inode(24)).expect_err("a torn record");
        assert!(e.kind() == ErrorKind::Damaged && e.to_string().contains("MFT record 24"), "{e}");
    }
}
