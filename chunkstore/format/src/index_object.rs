//! Index objects: the tables of several packs in one object, so that whoever comes new need not
//! read the footer of every pack.
//!
//! They are derived: what they say is what the packs' footers say, and they may vanish. An object's
//! payload is a run of tables; each is a head and its entries, packed.

use crate::limits::{INDEX_PAYLOAD_MAX, PACK_ENTRIES_MAX, PACK_MAX, SEAL_OVERHEAD};
use crate::pack::{self, Encoding, PackEntry, PackKind};
use crate::{ChunkId, FormatError, IndexId, PackId, PointId};

/// The head of a pack's table.
pub mod head {
    use crate::{Field, PackId, PointId};

    /// The pack.
    pub const PACK_ID: Field = Field::new("pack_id", 0, PackId::LEN);
    /// As in the pack's header.
    pub const SESSION: Field = PACK_ID.then("session", PointId::LEN);
    /// As in the pack's header.
    pub const KIND: Field = SESSION.then("kind", 1);
    /// Zero.
    pub const RESERVED: Field = KIND.then("reserved", 3);
    /// Bytes of the pack.
    pub const PACK_LEN: Field = RESERVED.then("pack_len", 4);
    /// Entries that follow.
    pub const ENTRY_COUNT: Field = PACK_LEN.then("entry_count", 4);
    /// Bytes of the entries that follow.
    pub const ENTRIES_LEN: Field = ENTRY_COUNT.then("entries_len", 4);
    /// As in the pack's trailer.
    pub const TABLE_HASH: Field = ENTRIES_LEN.then("table_hash", 32);
    /// The fields, in order.
    pub const FIELDS: [Field; 8] =
        [PACK_ID, SESSION, KIND, RESERVED, PACK_LEN, ENTRY_COUNT, ENTRIES_LEN, TABLE_HASH];
    /// Bytes of a head.
    pub const LEN: usize = TABLE_HASH.end();
}

const _: () = assert!(head::LEN == 80 && PACK_MAX <= u32::MAX as u64);

/// Shape of an entry: it is one zstd frame.
const ZSTD: u8 = 1;
/// Shape of an entry: it starts where the one before ends, or after the pack's header.
const FOLLOWS: u8 = 2;
/// Shape of an entry: its decoded length is that of the one before.
const SAME_RAW_LEN: u8 = 4;
/// Fewest bytes of an entry: id, shape, stored length.
const ENTRY_MIN: usize = ChunkId::LEN + 2;
/// Most bytes of an entry: id, shape, three numbers.
const ENTRY_MAX: usize = ChunkId::LEN + 1 + 3 * 5;

// Any one pack fits an object.
const _: () =
    assert!(head::LEN + PACK_ENTRIES_MAX as usize * ENTRY_MAX <= INDEX_PAYLOAD_MAX as usize);

/// The table of one pack.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PackTable {
    /// The pack.
    pub pack: PackId,
    /// The session that wrote it; [`PointId::NONE`] when it is not known.
    pub session: PointId,
    /// What its chunks are.
    pub kind: PackKind,
    /// Its length in bytes.
    pub len: u64,
    /// BLAKE3 of its table as stored.
    pub table_hash: [u8; 32],
    /// The entries, sorted by offset.
    pub entries: Vec<PackEntry>,
}

impl PackTable {
    /// Appends the table to a payload.
    pub fn encode(&self, payload: &mut Vec<u8>) {
        let start = payload.len();
        payload.resize(start + head::LEN, 0);
        let mut end = pack::header::LEN as u32;
        let mut raw_len = 0;
        for e in &self.entries {
            let mut shape = if e.encoding == Encoding::Zstd { ZSTD } else { 0 };
            shape |= if e.offset == end { FOLLOWS } else { 0 };
            shape |= if e.raw_len == raw_len { SAME_RAW_LEN } else { 0 };
            payload.extend_from_slice(e.id.as_bytes());
            payload.push(shape);
            if shape & FOLLOWS == 0 {
                put_number(payload, e.offset);
            }
            if shape & SAME_RAW_LEN == 0 {
                put_number(payload, e.raw_len);
            }
            put_number(payload, e.stored_len);
            end = e.offset.saturating_add(e.stored_len);
            raw_len = e.raw_len;
        }
        let entries_len = (payload.len() - start - head::LEN) as u32;
        let out = &mut payload[start..start + head::LEN];
        head::PACK_ID.put(out, self.pack.as_bytes());
        head::SESSION.put(out, self.session.as_bytes());
        head::KIND.put(out, &[self.kind.code()]);
        head::PACK_LEN.put(out, &(self.len as u32).to_le_bytes());
        head::ENTRY_COUNT.put(out, &(self.entries.len() as u32).to_le_bytes());
        head::ENTRIES_LEN.put(out, &entries_len.to_le_bytes());
        head::TABLE_HASH.put(out, &self.table_hash);
    }

    /// Most bytes that [`PackTable::encode`] appends for so many entries.
    pub const fn encoded_max(entries: usize) -> usize {
        head::LEN + entries * ENTRY_MAX
    }

    /// Takes the first table off a payload. `sealed`: whether the repository's packs are.
    fn take(payload: &mut &[u8], sealed: bool) -> Result<Self, FormatError> {
        let record = *payload;
        head::RESERVED.expect_zero(record)?;
        let [kind] = head::KIND.array(record)?;
        let count = head::ENTRY_COUNT.u32(record)?;
        let entries_len = head::ENTRIES_LEN.u32(record)? as usize;
        let len = u64::from(head::PACK_LEN.u32(record)?);
        let end = head::LEN.saturating_add(entries_len);
        let entries = record.get(head::LEN..end).filter(|_| count <= PACK_ENTRIES_MAX);
        let entries = entries
            .filter(|bytes| bytes.len() >= (count as usize).saturating_mul(ENTRY_MIN))
            .ok_or_else(|| FormatError::damaged("entries_len", "the entries do not fit"))?;
        let body_end = pack_body_end(len, count, sealed)?;
        let table = Self {
            pack: PackId::from_bytes(head::PACK_ID.array(record)?),
            session: PointId::from_bytes(head::SESSION.array(record)?),
            kind: PackKind::from_code(kind)?,
            len,
            table_hash: head::TABLE_HASH.array(record)?,
            entries: decode_entries(entries, count, sealed, body_end)?,
        };
        *payload = &record[end..];
        Ok(table)
    }
}

/// Where the chunks of a pack of this length end and its table starts.
fn pack_body_end(len: u64, count: u32, sealed: bool) -> Result<u64, FormatError> {
    let overhead = if sealed { u64::from(SEAL_OVERHEAD) } else { 0 };
    let tail = u64::from(count) * pack::entry::LEN as u64 + overhead + pack::trailer::LEN as u64;
    len.checked_sub(tail)
        .filter(|end| len <= PACK_MAX && *end >= pack::header::LEN as u64)
        .ok_or_else(|| FormatError::damaged("pack_len", format!("{len} bytes is no such pack")))
}

fn decode_entries(
    mut bytes: &[u8],
    count: u32,
    sealed: bool,
    body_end: u64,
) -> Result<Vec<PackEntry>, FormatError> {
    let damaged = || FormatError::damaged("entry", "an index object's entry ends early");
    let mut entries = Vec::with_capacity(count as usize);
    let mut end = pack::header::LEN as u32;
    let mut raw_len = 0;
    for _ in 0..count {
        let (id, rest) = bytes.split_first_chunk().ok_or_else(damaged)?;
        let (&shape, rest) = rest.split_first().ok_or_else(damaged)?;
        bytes = rest;
        if shape & !(ZSTD | FOLLOWS | SAME_RAW_LEN) != 0 {
            return Err(FormatError::unsupported("shape", format!("entry of shape {shape}")));
        }
        let mut number = || take_number(&mut bytes).ok_or_else(damaged);
        let offset = if shape & FOLLOWS == 0 { number()? } else { end };
        raw_len = if shape & SAME_RAW_LEN == 0 { number()? } else { raw_len };
        let encoding = if shape & ZSTD == 0 { Encoding::Raw } else { Encoding::Zstd };
        let id = ChunkId::from_bytes(*id);
        let e = PackEntry { id, offset, stored_len: number()?, raw_len, encoding };
        e.check(sealed, body_end)?;
        end = e.offset.saturating_add(e.stored_len);
        entries.push(e);
    }
    if bytes.is_empty() {
        Ok(entries)
    } else {
        Err(FormatError::damaged("entries_len", "bytes are left over"))
    }
}

/// Reads the tables of a payload one by one, so that only one is in memory. Ends after the first
/// error.
#[derive(Debug)]
pub struct Tables<'a> {
    rest: &'a [u8],
    sealed: bool,
}

/// The tables of a payload. `sealed`: whether the repository's packs are.
pub fn tables(payload: &[u8], sealed: bool) -> Tables<'_> {
    Tables { rest: payload, sealed }
}

impl Iterator for Tables<'_> {
    type Item = Result<PackTable, FormatError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let table = PackTable::take(&mut self.rest, self.sealed);
        if table.is_err() {
            self.rest = &[];
        }
        Some(table)
    }
}

/// The name of an index object: first those with tree nodes, without which nothing else can be
/// read, and of each sort the newest first. `millis`: the time, since 1970; nothing depends on it
/// but the order in which objects are read.
pub fn object_id(kind: PackKind, millis: u64, random: [u8; 8]) -> IndexId {
    let mut bytes = [0u8; IndexId::LEN];
    bytes[..8].copy_from_slice(&(!millis).to_be_bytes());
    bytes[0] = if kind == PackKind::Tree { 0 } else { 1 };
    bytes[8..].copy_from_slice(&random);
    IndexId::from_bytes(bytes)
}

/// The time in the name of an index object: since 1970, in milliseconds.
pub fn object_millis(id: IndexId) -> u64 {
    let mut time = [0xff; 8];
    time[1..].copy_from_slice(&id.as_bytes()[1..8]);
    !u64::from_be_bytes(time)
}

/// Seven bits a byte, lowest first; the highest bit says that more follow.
fn put_number(out: &mut Vec<u8>, mut n: u32) {
    while n >= 0x80 {
        out.push(n as u8 | 0x80);
        n >>= 7;
    }
    out.push(n as u8);
}

fn take_number(bytes: &mut &[u8]) -> Option<u32> {
    let mut n = 0u64;
    for shift in (0..35).step_by(7) {
        let (&byte, rest) = bytes.split_first()?;
        *bytes = rest;
        n |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return u32::try_from(n).ok();
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn table(n: u8, lens: &[(u32, bool, u32)]) -> PackTable {
        let mut offset = pack::header::LEN as u32;
        let mut entries = Vec::new();
        for &(raw_len, zstd, gap) in lens {
            let raw_len = raw_len.clamp(1, crate::limits::CHUNK_RAW_MAX);
            let encoding = if zstd { Encoding::Zstd } else { Encoding::Raw };
            let stored_len = if zstd { raw_len / 2 + 17 } else { raw_len + 16 };
            offset += gap;
            let mut id = [n; 32];
            id[..4].copy_from_slice(&offset.to_le_bytes());
            let id = ChunkId::from_bytes(id);
            entries.push(PackEntry { id, offset, stored_len, raw_len, encoding });
            offset += stored_len;
        }
        let tail = entries.len() * pack::entry::LEN + 16 + pack::trailer::LEN;
        PackTable {
            pack: PackId::from_bytes([n; 16]),
            session: PointId::from_bytes([n ^ 1; 16]),
            kind: if n.is_multiple_of(2) { PackKind::Data } else { PackKind::Tree },
            len: u64::from(offset) + tail as u64,
            table_hash: [n ^ 2; 32],
            entries,
        }
    }

    fn lens() -> impl Strategy<Value = Vec<(u32, bool, u32)>> {
        let len = prop_oneof![Just(65_536u32), 1u32..70_000];
        let gap = prop_oneof![3 => Just(0u32), 1 => 0u32..300];
        prop::collection::vec((len, any::<bool>(), gap), 0..60)
    }

    proptest! {
        #[test]
        fn there_and_back(all in prop::collection::vec(lens(), 0..5)) {
            let tables_in: Vec<PackTable> =
                (0u8..).zip(&all).map(|(n, lens)| table(n, lens)).collect();
            let mut payload = Vec::new();
            for t in &tables_in {
                let before = payload.len();
                t.encode(&mut payload);
                prop_assert!(payload.len() - before <= PackTable::encoded_max(t.entries.len()));
            }
            let out: Result<Vec<PackTable>, FormatError> = tables(&payload, true).collect();
            prop_assert_eq!(out.unwrap(), tables_in);
            for cut in 1..payload.len().min(200) {
                let out: Result<Vec<_>, _> = tables(&payload[..payload.len() - cut], true).collect();
                prop_assert!(out.is_err() || out.unwrap().len() < all.len());
            }
        }

        #[test]
        fn any_bytes_are_an_error_or_fit(
            mut bytes in prop::collection::vec(any::<u8>(), 0..400),
            len in 0u32..2000,
            count in 0u32..8,
        ) {
            if let Some(out) = bytes.get_mut(..head::LEN) {
                // So that not every case ends at the head.
                head::KIND.put(out, &[0]);
                head::RESERVED.put(out, &[0; 3]);
                head::PACK_LEN.put(out, &len.to_le_bytes());
                head::ENTRY_COUNT.put(out, &count.to_le_bytes());
                head::ENTRIES_LEN.put(out, &(count * 40).to_le_bytes());
            }
            for t in tables(&bytes, false).flatten() {
                prop_assert!(t.entries.len() <= bytes.len() / ENTRY_MIN);
                prop_assert!(t.entries.iter().all(|e| u64::from(e.offset) < t.len));
            }
        }
    }

    #[test]
    fn entries_outside_of_their_pack_are_refused() {
        let mut t = table(2, &[(65_536, true, 0); 3]);
        t.len -= 1;
        let mut payload = Vec::new();
        t.encode(&mut payload);
        assert!(tables(&payload, true).next().unwrap().is_err());
    }

    #[test]
    fn a_usual_entry_takes_36_bytes() {
        let mut payload = Vec::new();
        table(2, &[(65_536, true, 0); 500]).encode(&mut payload);
        assert_eq!(payload.len(), head::LEN + 500 * 36 + 3);
    }

    #[test]
    fn trees_come_first_then_the_newest() {
        let id = |kind, millis| object_id(kind, millis, [9; 8]);
        let sorted = [
            id(PackKind::Tree, 1_800_000_000_000),
            id(PackKind::Tree, 1_700_000_000_000),
            id(PackKind::Data, 1_800_000_000_001),
            id(PackKind::Data, 1_800_000_000_000),
        ];
        assert!(sorted.is_sorted());
        assert_eq!(object_millis(sorted[2]), 1_800_000_000_001);
    }
}
