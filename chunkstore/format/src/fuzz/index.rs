//! Index objects.

use crate::index_object::{PackTable, head, tables};
use crate::limits::{CHUNK_RAW_MAX, PACK_ENTRIES_MAX, PACK_MAX, SEAL_OVERHEAD};
use crate::pack::{self, Encoding, PackEntry, PackKind};
use crate::{ChunkId, PackId, PointId};

/// The first byte says whether packs are sealed, the rest is the payload.
pub(super) fn run(data: &[u8]) {
    let Some((sealed, payload)) = data.split_first() else { return };
    let sealed = sealed & 1 != 0;
    let mut reader = tables(payload, sealed);
    let mut again = Vec::new();
    let mut bytes = 0;
    let mut whole = true;
    for table in &mut reader {
        let Ok(table) = table else {
            whole = false;
            continue;
        };
        in_bounds(&table, sealed);
        let start = again.len();
        table.encode(&mut again);
        let written = &again[start..];
        assert!(written.len() <= PackTable::encoded_max(table.entries.len()));
        let mut read = tables(written, sealed);
        assert!(read.next() == Some(Ok(table)) && read.next().is_none(), "it reads otherwise");
        bytes += written.len();
    }
    assert!(reader.next().is_none(), "nothing follows the end, or an error");
    // A number has longer forms that are read, and none shorter than the one written.
    assert!(bytes <= payload.len());
    if whole && bytes == payload.len() {
        assert!(again == payload, "what is as short as it can be has one form");
    }
}

fn in_bounds(table: &PackTable, sealed: bool) {
    assert!(table.len <= PACK_MAX && table.entries.len() <= PACK_ENTRIES_MAX as usize);
    let overhead = if sealed { SEAL_OVERHEAD } else { 0 };
    let tail = table.entries.len() * pack::entry::LEN + overhead as usize + pack::trailer::LEN;
    let body_end = table.len - tail as u64;
    for e in &table.entries {
        let end = u64::from(e.offset) + u64::from(e.stored_len);
        assert!(e.offset as usize >= pack::header::LEN && end <= body_end, "{e:?}");
        assert!((1..=CHUNK_RAW_MAX).contains(&e.raw_len), "{e:?}");
        assert!(e.stored_len > overhead, "{e:?}");
    }
}

/// A pack of chunks with these decoded and stored lengths; equal ones are stored as they are.
fn table(n: u8, sealed: bool, lens: &[(u32, u32)], gap: u32) -> PackTable {
    let overhead = if sealed { SEAL_OVERHEAD } else { 0 };
    let mut offset = pack::header::LEN as u32;
    let mut entries = Vec::new();
    for (i, &(raw_len, stored)) in lens.iter().enumerate() {
        entries.push(PackEntry {
            id: ChunkId::from_bytes([n ^ i as u8; 32]),
            offset,
            stored_len: stored + overhead,
            raw_len,
            encoding: if stored == raw_len { Encoding::Raw } else { Encoding::Zstd },
        });
        offset += stored + overhead + gap;
    }
    let tail = lens.len() * pack::entry::LEN + overhead as usize + pack::trailer::LEN;
    PackTable {
        pack: PackId::from_bytes([n; 16]),
        session: PointId::from_bytes([n ^ 1; 16]),
        kind: if n.is_multiple_of(2) { PackKind::Data } else { PackKind::Tree },
        len: u64::from(offset) + tail as u64,
        table_hash: [n ^ 2; 32],
        entries,
    }
}

pub(super) fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    let made = |sealed: bool, tables: &[PackTable]| {
        let mut bytes = vec![u8::from(sealed)];
        tables.iter().for_each(|table| table.encode(&mut bytes));
        bytes
    };
    let usual = [(65_536, 20_000), (65_536, 65_536), (300, 200)];
    let several = [table(2, true, &usual, 0), table(3, true, &[(2064, 2064)], 0)];
    let bytes = made(true, &several);
    let mut unknown = bytes.clone();
    // The shape of the first entry: a bit that nobody knows.
    unknown[1 + head::LEN + ChunkId::LEN] |= 8;
    let mut swollen = bytes.clone();
    head::ENTRY_COUNT.put(&mut swollen[1..], &PACK_ENTRIES_MAX.to_le_bytes());
    vec![
        ("empty-pack", made(false, &[table(4, false, &[], 0)])),
        ("gaps", made(false, &[table(6, false, &usual, 300)])),
        ("cut", bytes[..bytes.len() - 3].to_vec()),
        ("several", bytes),
        ("unknown-shape", unknown),
        ("count", swollen),
    ]
}
