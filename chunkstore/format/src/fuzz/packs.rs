//! Packs and the nodes in them.

use crate::limits::{CHUNK_RAW_MAX, PACK_ENTRIES_MAX, PACK_MAX, SEAL_OVERHEAD};
use crate::node::Node;
use crate::pack::{
    Encoding, PackEntry, PackHeader, PackKind, PackTrailer, decode_table, encode_table, entry,
    header, trailer,
};
use crate::{ChunkId, PackId, PointId, RepoId};

/// The first byte is the level at which the rest must stand.
pub(super) fn node(data: &[u8]) {
    let Some((level, bytes)) = data.split_first() else { return };
    let Ok(node) = Node::decode(bytes, *level) else { return };
    assert_eq!(node.encode(), bytes, "a node has one form");
    assert!(!node.is_empty() && node.level() == *level);
    assert!(Node::decode(bytes, level.wrapping_add(1)).is_err(), "it stands at another level");
}

pub(super) fn node_seeds() -> Vec<(&'static str, Vec<u8>)> {
    let made = |level: u8, filled: &[usize]| {
        let mut node = Node::empty(level);
        for slot in filled {
            node.set(*slot, Some(ChunkId::from_bytes([*slot as u8; 32])));
        }
        [vec![level], node.encode()].concat()
    };
    vec![("leaf", made(0, &[0, 1, 63])), ("inner", made(2, &[5]))]
}

pub(super) fn header(data: &[u8]) {
    let Ok(header) = PackHeader::decode(data) else { return };
    assert_eq!(header.encode()[..], data[..header::LEN], "a header has one form");
}

pub(super) fn header_seeds() -> Vec<(&'static str, Vec<u8>)> {
    let made = |kind, sealed| {
        let (repo_id, pack_id) = (RepoId::from_bytes([1; 16]), PackId::from_bytes([2; 16]));
        PackHeader { repo_id, pack_id, kind, sealed, session: PointId::from_bytes([9; 16]) }
            .encode()
            .to_vec()
    };
    vec![("data", made(PackKind::Data, true)), ("tree", made(PackKind::Tree, false))]
}

fn trailer_of(sealed: bool, entry_count: u32, table_offset: u64) -> PackTrailer {
    let overhead = if sealed { SEAL_OVERHEAD } else { 0 };
    PackTrailer {
        pack_id: PackId::from_bytes([2; 16]),
        sealed,
        entry_count,
        table_offset,
        table_len: entry_count * entry::LEN as u32 + overhead,
        table_hash: [3; 32],
        content_hash: [4; 32],
    }
}

/// One byte says whether the pack is sealed, four where the table starts; the rest is the table.
pub(super) fn table(data: &[u8]) {
    let Some((sealed, rest)) = data.split_first() else { return };
    let Some((offset, bytes)) = rest.split_first_chunk() else { return };
    let (sealed, offset) = (sealed & 1 != 0, u64::from(u32::from_le_bytes(*offset)));
    let count = (bytes.len() / entry::LEN) as u32;
    let Ok(entries) = decode_table(bytes, sealed, &trailer_of(sealed, count, offset)) else {
        return;
    };
    assert_eq!(encode_table(&entries), bytes, "a table has one form");
    for e in &entries {
        let end = u64::from(e.offset) + u64::from(e.stored_len);
        assert!(e.offset as usize >= header::LEN && end <= offset, "{e:?} leaves the body");
        assert!((1..=CHUNK_RAW_MAX).contains(&e.raw_len), "{e:?}");
        assert!(e.stored_len > if sealed { SEAL_OVERHEAD } else { 0 }, "{e:?}");
    }
    let more = trailer_of(sealed, count + 1, offset);
    assert!(decode_table(bytes, sealed, &more).is_err(), "an entry is missing");
}

pub(super) fn table_seeds() -> Vec<(&'static str, Vec<u8>)> {
    let made = |sealed: bool, stored: [u32; 2]| {
        let first = PackEntry {
            id: ChunkId::from_bytes([8; 32]),
            offset: header::LEN as u32,
            stored_len: stored[0],
            raw_len: 100,
            encoding: Encoding::Raw,
        };
        let second = PackEntry {
            id: ChunkId::from_bytes([9; 32]),
            offset: first.offset + first.stored_len,
            stored_len: stored[1],
            raw_len: 65536,
            encoding: Encoding::Zstd,
        };
        let end = second.offset + second.stored_len;
        let table = encode_table(&[first, second]);
        [&[u8::from(sealed)][..], &end.to_le_bytes(), &table].concat()
    };
    vec![("clear", made(false, [100, 50])), ("sealed", made(true, [116, 66]))]
}

/// Eight bytes say how long the pack is, the rest is its end: as it is, and with the right sum.
pub(super) fn trailer(data: &[u8]) {
    let Some((pack_len, bytes)) = data.split_first_chunk() else { return };
    let pack_len = u64::from_le_bytes(*pack_len);
    let mut summed = bytes.to_vec();
    if let Some(field) = summed.get_mut(trailer::TRAILER_HASH.offset..trailer::LEN) {
        let sum = blake3::hash(&bytes[..trailer::TRAILER_HASH.offset]);
        field.copy_from_slice(&sum.as_bytes()[..trailer::TRAILER_HASH.size]);
    }
    for bytes in [bytes, &summed] {
        let Ok(found) = PackTrailer::decode(bytes, pack_len) else { continue };
        let mut wanted = bytes[..trailer::LEN].to_vec();
        trailer::RESERVED.put(&mut wanted, &[0; 4]);
        let mut again = found.encode().to_vec();
        // Reserved bytes are not read; the sum covers them.
        let sum = trailer::TRAILER_HASH.offset;
        again.truncate(sum);
        assert_eq!(again, wanted[..sum], "a trailer has one form");
        let end = found.table_offset + u64::from(found.table_len) + trailer::LEN as u64;
        assert!(end == pack_len && pack_len <= PACK_MAX && found.entry_count <= PACK_ENTRIES_MAX);
    }
}

pub(super) fn trailer_seeds() -> Vec<(&'static str, Vec<u8>)> {
    let made = |sealed, entry_count, table_offset| {
        let t = trailer_of(sealed, entry_count, table_offset);
        let pack_len = table_offset + u64::from(t.table_len) + trailer::LEN as u64;
        [&pack_len.to_le_bytes()[..], &t.encode()].concat()
    };
    vec![
        ("clear", made(false, 2, 214)),
        ("sealed", made(true, 2, 246)),
        ("full", made(true, PACK_ENTRIES_MAX, 64 << 20)),
    ]
}
