//! Packs: header, chunks back to back, table of entries, trailer.
//!
//! The trailer is found without knowing anything but the pack's length; it tells where the table
//! is, and carries plain BLAKE3 sums, so a host without any key can verify a pack.

use crate::limits::{CHUNK_RAW_MAX, CHUNK_STORED_MAX, PACK_ENTRIES_MAX, PACK_MAX, SEAL_OVERHEAD};
use crate::{ChunkId, FormatError, PackId, PointId, RepoId, magic};

/// The header of a pack.
pub mod header {
    use crate::{Field, PackId, PointId, RepoId};

    /// Magic of a pack.
    pub const MAGIC: Field = Field::new("magic", 0, 8);
    /// Format version.
    pub const VERSION: Field = MAGIC.then("version", 2);
    /// Bit 0: chunks and table are sealed.
    pub const FLAGS: Field = VERSION.then("flags", 2);
    /// What the chunks are.
    pub const KIND: Field = FLAGS.then("kind", 1);
    /// Zero.
    pub const RESERVED: Field = KIND.then("reserved", 3);
    /// The repository.
    pub const REPO_ID: Field = RESERVED.then("repo_id", RepoId::LEN);
    /// The pack; must be its object name.
    pub const PACK_ID: Field = REPO_ID.then("pack_id", PackId::LEN);
    /// The session that wrote the pack; zero when it is not known.
    pub const SESSION: Field = PACK_ID.then("session", PointId::LEN);
    /// The fields, in order.
    pub const FIELDS: [Field; 8] =
        [MAGIC, VERSION, FLAGS, KIND, RESERVED, REPO_ID, PACK_ID, SESSION];
    /// Bytes of the header.
    pub const LEN: usize = SESSION.end();
}

/// One entry of the table.
pub mod entry {
    use crate::{ChunkId, Field};

    /// The chunk.
    pub const CHUNK_ID: Field = Field::new("chunk_id", 0, ChunkId::LEN);
    /// Bytes from the start of the pack.
    pub const OFFSET: Field = CHUNK_ID.then("offset", 4);
    /// Bytes as stored, with the tag.
    pub const STORED_LEN: Field = OFFSET.then("stored_len", 4);
    /// Bytes once decoded.
    pub const RAW_LEN: Field = STORED_LEN.then("raw_len", 4);
    /// 0 raw, 1 zstd.
    pub const ENCODING: Field = RAW_LEN.then("encoding", 1);
    /// Zero.
    pub const RESERVED: Field = ENCODING.then("reserved", 3);
    /// The fields, in order.
    pub const FIELDS: [Field; 6] = [CHUNK_ID, OFFSET, STORED_LEN, RAW_LEN, ENCODING, RESERVED];
    /// Bytes of an entry.
    pub const LEN: usize = RESERVED.end();
}

/// The trailer, the last bytes of a pack.
pub mod trailer {
    use crate::{Field, PackId};

    /// Magic of a trailer.
    pub const MAGIC: Field = Field::new("magic", 0, 8);
    /// Format version.
    pub const VERSION: Field = MAGIC.then("version", 2);
    /// As in the header.
    pub const FLAGS: Field = VERSION.then("flags", 2);
    /// Entries in the table.
    pub const ENTRY_COUNT: Field = FLAGS.then("entry_count", 4);
    /// Where the table starts.
    pub const TABLE_OFFSET: Field = ENTRY_COUNT.then("table_offset", 8);
    /// Bytes of the table as stored.
    pub const TABLE_LEN: Field = TABLE_OFFSET.then("table_len", 4);
    /// Zero.
    pub const RESERVED: Field = TABLE_LEN.then("reserved", 4);
    /// The pack, again.
    pub const PACK_ID: Field = RESERVED.then("pack_id", PackId::LEN);
    /// BLAKE3 of the table as stored.
    pub const TABLE_HASH: Field = PACK_ID.then("table_hash", 32);
    /// BLAKE3 of every byte before the trailer.
    pub const CONTENT_HASH: Field = TABLE_HASH.then("content_hash", 32);
    /// First 16 bytes of the BLAKE3 of the trailer's bytes before this field.
    pub const TRAILER_HASH: Field = CONTENT_HASH.then("trailer_hash", 16);
    /// The fields, in order.
    pub const FIELDS: [Field; 11] = [
        MAGIC,
        VERSION,
        FLAGS,
        ENTRY_COUNT,
        TABLE_OFFSET,
        TABLE_LEN,
        RESERVED,
        PACK_ID,
        TABLE_HASH,
        CONTENT_HASH,
        TRAILER_HASH,
    ];
    /// Bytes of the trailer.
    pub const LEN: usize = TRAILER_HASH.end();
}

const _: () = assert!(header::LEN == 64 && entry::LEN == 48 && trailer::LEN == 128);

/// Flag: chunks and table are sealed.
pub const FLAG_SEALED: u16 = 1;

/// What the chunks of a pack are. Kinds are kept apart, so that walking trees reads no data packs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum PackKind {
    /// Bytes of disks.
    Data,
    /// Nodes of image trees.
    Tree,
}

impl PackKind {
    /// The kind as stored.
    pub const fn code(self) -> u8 {
        match self {
            PackKind::Data => 0,
            PackKind::Tree => 1,
        }
    }

    pub(crate) fn from_code(code: u8) -> Result<Self, FormatError> {
        match code {
            0 => Ok(PackKind::Data),
            1 => Ok(PackKind::Tree),
            other => Err(FormatError::unsupported("kind", format!("pack kind {other}"))),
        }
    }
}

/// How a chunk's bytes are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Encoding {
    /// As they are.
    Raw,
    /// One zstd frame that names its content size.
    Zstd,
}

impl Encoding {
    /// The encoding as stored.
    pub const fn code(self) -> u8 {
        match self {
            Encoding::Raw => 0,
            Encoding::Zstd => 1,
        }
    }

    /// The encoding from its stored code.
    pub fn from_code(code: u8) -> Result<Self, FormatError> {
        match code {
            0 => Ok(Encoding::Raw),
            1 => Ok(Encoding::Zstd),
            other => Err(FormatError::unsupported("encoding", format!("encoding {other}"))),
        }
    }
}

/// A pack's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PackHeader {
    /// The repository.
    pub repo_id: RepoId,
    /// The pack.
    pub pack_id: PackId,
    /// What its chunks are.
    pub kind: PackKind,
    /// Whether chunks and table are sealed.
    pub sealed: bool,
    /// The session that wrote the pack; [`PointId::NONE`] when it is not known.
    pub session: PointId,
}

impl PackHeader {
    /// The header's bytes.
    pub fn encode(&self) -> [u8; header::LEN] {
        let mut out = [0u8; header::LEN];
        header::MAGIC.put(&mut out, &magic::PACK);
        header::VERSION.put(&mut out, &magic::VERSION.to_le_bytes());
        header::FLAGS.put(&mut out, &u16::from(self.sealed).to_le_bytes());
        header::KIND.put(&mut out, &[self.kind.code()]);
        header::REPO_ID.put(&mut out, self.repo_id.as_bytes());
        header::PACK_ID.put(&mut out, self.pack_id.as_bytes());
        header::SESSION.put(&mut out, self.session.as_bytes());
        out
    }

    /// Reads a header.
    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        if header::MAGIC.bytes(bytes)? != magic::PACK {
            return Err(FormatError::damaged("magic", "this is not a pack"));
        }
        let version = header::VERSION.u16(bytes)?;
        if version != magic::VERSION {
            return Err(FormatError::unsupported("version", format!("pack version {version}")));
        }
        header::RESERVED.expect_zero(bytes)?;
        let [kind] = header::KIND.array(bytes)?;
        Ok(Self {
            repo_id: RepoId::from_bytes(header::REPO_ID.array(bytes)?),
            pack_id: PackId::from_bytes(header::PACK_ID.array(bytes)?),
            kind: PackKind::from_code(kind)?,
            sealed: sealed_flag(header::FLAGS.u16(bytes)?)?,
            session: PointId::from_bytes(header::SESSION.array(bytes)?),
        })
    }
}

/// Where a chunk stands in its pack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PackEntry {
    /// The chunk.
    pub id: ChunkId,
    /// Bytes from the start of the pack.
    pub offset: u32,
    /// Bytes as stored.
    pub stored_len: u32,
    /// Bytes once decoded.
    pub raw_len: u32,
    /// How it is stored.
    pub encoding: Encoding,
}

impl PackEntry {
    fn encode(&self) -> [u8; entry::LEN] {
        let mut out = [0u8; entry::LEN];
        entry::CHUNK_ID.put(&mut out, self.id.as_bytes());
        entry::OFFSET.put(&mut out, &self.offset.to_le_bytes());
        entry::STORED_LEN.put(&mut out, &self.stored_len.to_le_bytes());
        entry::RAW_LEN.put(&mut out, &self.raw_len.to_le_bytes());
        entry::ENCODING.put(&mut out, &[self.encoding.code()]);
        out
    }

    fn decode(bytes: &[u8], sealed: bool, body_end: u64) -> Result<Self, FormatError> {
        entry::RESERVED.expect_zero(bytes)?;
        let [encoding] = entry::ENCODING.array(bytes)?;
        let e = Self {
            id: ChunkId::from_bytes(entry::CHUNK_ID.array(bytes)?),
            offset: entry::OFFSET.u32(bytes)?,
            stored_len: entry::STORED_LEN.u32(bytes)?,
            raw_len: entry::RAW_LEN.u32(bytes)?,
            encoding: Encoding::from_code(encoding)?,
        };
        e.check(sealed, body_end)?;
        Ok(e)
    }

    /// Whether the chunk lies in the pack's body and its lengths are possible.
    pub(crate) fn check(&self, sealed: bool, body_end: u64) -> Result<(), FormatError> {
        let overhead = if sealed { SEAL_OVERHEAD } else { 0 };
        let fits = (header::LEN as u32..).contains(&self.offset)
            && u64::from(self.offset) + u64::from(self.stored_len) <= body_end
            && (1..=CHUNK_RAW_MAX).contains(&self.raw_len)
            && (overhead + 1..=CHUNK_STORED_MAX).contains(&self.stored_len)
            && (self.encoding != Encoding::Raw || self.stored_len == self.raw_len + overhead);
        if fits {
            return Ok(());
        }
        Err(FormatError::damaged("entry", format!("chunk {} is out of bounds", self.id)))
    }

    /// What the sealing of a chunk is bound to: kind, encoding, length and id. The pack is bound
    /// by its key, the place by the nonce.
    pub fn associated_data(&self, kind: PackKind) -> [u8; 40] {
        let mut aad = [0u8; 40];
        aad[0] = kind.code();
        aad[1] = self.encoding.code();
        aad[4..8].copy_from_slice(&self.raw_len.to_le_bytes());
        aad[8..].copy_from_slice(self.id.as_bytes());
        aad
    }
}

/// The bytes of a table, before sealing.
pub fn encode_table(entries: &[PackEntry]) -> Vec<u8> {
    let mut out = Vec::with_capacity(entries.len() * entry::LEN);
    for e in entries {
        out.extend_from_slice(&e.encode());
    }
    out
}

/// Reads a table, opened already. Every entry lies within the pack's body or it is an error.
pub fn decode_table(
    bytes: &[u8],
    sealed: bool,
    trailer: &PackTrailer,
) -> Result<Vec<PackEntry>, FormatError> {
    let (records, rest) = bytes.as_chunks::<{ entry::LEN }>();
    if !rest.is_empty() || records.len() != trailer.entry_count as usize {
        return Err(FormatError::damaged("table_len", "the table does not fit its entry count"));
    }
    records.iter().map(|r| PackEntry::decode(r, sealed, trailer.table_offset)).collect()
}

/// A pack's trailer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PackTrailer {
    /// The pack.
    pub pack_id: PackId,
    /// Whether chunks and table are sealed.
    pub sealed: bool,
    /// Entries in the table.
    pub entry_count: u32,
    /// Where the table starts.
    pub table_offset: u64,
    /// Bytes of the table as stored.
    pub table_len: u32,
    /// BLAKE3 of the table as stored.
    pub table_hash: [u8; 32],
    /// BLAKE3 of every byte before the trailer.
    pub content_hash: [u8; 32],
}

impl PackTrailer {
    /// The trailer's bytes.
    pub fn encode(&self) -> [u8; trailer::LEN] {
        let mut out = [0u8; trailer::LEN];
        trailer::MAGIC.put(&mut out, &magic::TRAILER);
        trailer::VERSION.put(&mut out, &magic::VERSION.to_le_bytes());
        trailer::FLAGS.put(&mut out, &u16::from(self.sealed).to_le_bytes());
        trailer::ENTRY_COUNT.put(&mut out, &self.entry_count.to_le_bytes());
        trailer::TABLE_OFFSET.put(&mut out, &self.table_offset.to_le_bytes());
        trailer::TABLE_LEN.put(&mut out, &self.table_len.to_le_bytes());
        trailer::PACK_ID.put(&mut out, self.pack_id.as_bytes());
        trailer::TABLE_HASH.put(&mut out, &self.table_hash);
        trailer::CONTENT_HASH.put(&mut out, &self.content_hash);
        let sum = blake3::hash(&out[..trailer::TRAILER_HASH.offset]);
        trailer::TRAILER_HASH.put(&mut out, &sum.as_bytes()[..trailer::TRAILER_HASH.size]);
        out
    }

    /// Reads the last [`trailer::LEN`] bytes of a pack of `pack_len` bytes.
    pub fn decode(bytes: &[u8], pack_len: u64) -> Result<Self, FormatError> {
        if pack_len > PACK_MAX {
            return Err(FormatError::damaged("length", format!("{pack_len} bytes is no pack")));
        }
        if trailer::MAGIC.bytes(bytes)? != magic::TRAILER {
            return Err(FormatError::damaged("magic", "the pack does not end with a trailer"));
        }
        // The last field first: with it, all bytes before are there.
        let stored = trailer::TRAILER_HASH.bytes(bytes)?;
        let sum = blake3::hash(&bytes[..trailer::TRAILER_HASH.offset]);
        if stored != &sum.as_bytes()[..trailer::TRAILER_HASH.size] {
            return Err(FormatError::damaged("trailer_hash", "the checksum does not match"));
        }
        let version = trailer::VERSION.u16(bytes)?;
        if version != magic::VERSION {
            return Err(FormatError::unsupported("version", format!("pack version {version}")));
        }
        let t = Self {
            pack_id: PackId::from_bytes(trailer::PACK_ID.array(bytes)?),
            sealed: sealed_flag(trailer::FLAGS.u16(bytes)?)?,
            entry_count: trailer::ENTRY_COUNT.u32(bytes)?,
            table_offset: trailer::TABLE_OFFSET.u64(bytes)?,
            table_len: trailer::TABLE_LEN.u32(bytes)?,
            table_hash: trailer::TABLE_HASH.array(bytes)?,
            content_hash: trailer::CONTENT_HASH.array(bytes)?,
        };
        t.check_geometry(pack_len)?;
        Ok(t)
    }

    fn check_geometry(&self, pack_len: u64) -> Result<(), FormatError> {
        let overhead = if self.sealed { u64::from(SEAL_OVERHEAD) } else { 0 };
        let table = u64::from(self.entry_count) * entry::LEN as u64 + overhead;
        let end = self.table_offset.checked_add(u64::from(self.table_len));
        let fits = self.entry_count <= PACK_ENTRIES_MAX
            && u64::from(self.table_len) == table
            && self.table_offset >= header::LEN as u64
            && end.and_then(|e| e.checked_add(trailer::LEN as u64)) == Some(pack_len);
        if fits {
            Ok(())
        } else {
            Err(FormatError::damaged("trailer", "its lengths do not fit the pack's length"))
        }
    }
}

fn sealed_flag(flags: u16) -> Result<bool, FormatError> {
    if flags & !FLAG_SEALED != 0 {
        return Err(FormatError::unsupported("flags", format!("flags {flags:#x}")));
    }
    Ok(flags & FLAG_SEALED != 0)
}

/// The AES-GCM nonce of the chunk that starts at `offset` in its pack. The pack's key is used for
/// nothing else, and a chunk's place is used once, so no nonce is used twice under one key.
pub fn chunk_nonce(offset: u32) -> [u8; 12] {
    let mut nonce = [0u8; 12];
    nonce[8..].copy_from_slice(&offset.to_le_bytes());
    nonce
}

/// The offset that stands for the table in [`chunk_nonce`]; no chunk can have it.
pub const TABLE_NONCE_OFFSET: u32 = u32::MAX;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn trailer_of(table_offset: u64, entry_count: u32) -> (PackTrailer, u64) {
        let table_len = entry_count * entry::LEN as u32 + SEAL_OVERHEAD;
        let t = PackTrailer {
            pack_id: PackId::from_bytes([5; 16]),
            sealed: true,
            entry_count,
            table_offset,
            table_len,
            table_hash: [1; 32],
            content_hash: [2; 32],
        };
        (t, table_offset + u64::from(table_len) + trailer::LEN as u64)
    }

    #[test]
    fn header_there_and_back() {
        let h = PackHeader {
            repo_id: RepoId::from_bytes([1; 16]),
            pack_id: PackId::from_bytes([2; 16]),
            kind: PackKind::Tree,
            sealed: true,
            session: PointId::from_bytes([5; 16]),
        };
        assert_eq!(PackHeader::decode(&h.encode()).unwrap(), h);
        assert!(PackHeader::decode(&h.encode()[..63]).is_err());
    }

    #[test]
    fn trailer_flips_and_lengths() {
        let (t, len) = trailer_of(1000, 3);
        let good = t.encode();
        assert_eq!(PackTrailer::decode(&good, len).unwrap(), t);
        for i in 0..good.len() * 8 {
            let mut bad = good;
            bad[i / 8] ^= 1 << (i % 8);
            assert!(PackTrailer::decode(&bad, len).is_err(), "bit {i}");
        }
        for cut in 0..good.len() {
            assert!(PackTrailer::decode(&good[..cut], len).is_err(), "cut at {cut}");
        }
        for wrong in [len - 1, len + 1, 0, u64::MAX] {
            assert!(PackTrailer::decode(&good, wrong).is_err());
        }
        let (huge, len) = trailer_of(u64::MAX - 10_000, 3);
        assert!(PackTrailer::decode(&huge.encode(), len).is_err());
    }

    #[test]
    fn entries_must_lie_in_the_body() {
        let (t, _) = trailer_of(1000, 1);
        let ok = PackEntry {
            id: ChunkId::from_bytes([8; 32]),
            offset: 64,
            stored_len: 116,
            raw_len: 100,
            encoding: Encoding::Raw,
        };
        assert_eq!(decode_table(&encode_table(&[ok]), true, &t).unwrap(), vec![ok]);
        for bad in [
            PackEntry { offset: 63, ..ok },
            PackEntry { offset: 900, ..ok },
            PackEntry { offset: u32::MAX, ..ok },
            PackEntry { stored_len: 115, ..ok },
            PackEntry { raw_len: 0, ..ok },
            PackEntry { raw_len: u32::MAX, encoding: Encoding::Zstd, ..ok },
        ] {
            assert!(decode_table(&encode_table(&[bad]), true, &t).is_err(), "{bad:?}");
        }
        assert!(decode_table(&encode_table(&[ok, ok]), true, &t).is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_are_an_error_or_fit(bytes in proptest::collection::vec(any::<u8>(), 0..300), len in any::<u64>()) {
            let _ = PackHeader::decode(&bytes);
            let _ = PackTrailer::decode(&bytes, len);
            let (t, _) = trailer_of(1000, 6);
            let _ = decode_table(&bytes, true, &t);
        }
    }

    #[test]
    fn nonces_differ() {
        assert_ne!(chunk_nonce(0), chunk_nonce(1));
        assert_ne!(chunk_nonce(0), chunk_nonce(TABLE_NONCE_OFFSET));
        const { assert!(PACK_MAX < TABLE_NONCE_OFFSET as u64) };
    }
}
