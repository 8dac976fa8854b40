use std::sync::Arc;

use aws_lc_rs::aead::LessSafeKey;
use backstay_format::index_object::PackTable;
use backstay_format::limits::{PACK_ENTRIES_MAX, PACK_TARGET};
use backstay_format::pack::{
    PackEntry, PackHeader, PackKind, PackTrailer, TABLE_NONCE_OFFSET, chunk_nonce, encode_table,
    header,
};
use backstay_format::{PackId, PointId, RepoId};

use aws_lc_rs::aead::{Aad, Nonce};

use crate::keys::Keys;

/// A pack being filled. Space is reserved first, under the session's lock; the bytes are sealed
/// outside it and handed in afterwards, in any order.
#[derive(Debug)]
pub(crate) struct OpenPack {
    header: PackHeader,
    key: Option<Arc<LessSafeKey>>,
    next_offset: u32,
    parts: Vec<Option<Vec<u8>>>,
    entries: Vec<PackEntry>,
}

/// A place in a pack for a run of chunks.
#[derive(Debug)]
pub(crate) struct Reservation {
    /// The pack's id, to hand the bytes in.
    pub(crate) pack: PackId,
    /// Where the run starts.
    pub(crate) offset: u32,
    /// The pack's key.
    pub(crate) key: Option<Arc<LessSafeKey>>,
    part: usize,
}

impl OpenPack {
    pub(crate) fn new(
        repo_id: RepoId,
        pack_id: PackId,
        kind: PackKind,
        session: PointId,
        keys: &Keys,
    ) -> Self {
        let header = PackHeader { repo_id, pack_id, kind, sealed: keys.sealed(), session };
        Self {
            header,
            key: keys.pack_key(pack_id).map(Arc::new),
            next_offset: header::LEN as u32,
            parts: Vec::new(),
            entries: Vec::new(),
        }
    }

    pub(crate) fn id(&self) -> PackId {
        self.header.pack_id
    }

    /// Whether no more chunks should go in.
    pub(crate) fn is_full(&self) -> bool {
        self.next_offset >= PACK_TARGET || self.entries.len() as u32 >= PACK_ENTRIES_MAX / 2
    }

    /// Whether all reserved bytes are there.
    pub(crate) fn is_complete(&self) -> bool {
        self.parts.iter().all(Option::is_some)
    }

    /// Reserves room for a run of `len` bytes. The caller hands the bytes in later, or drops the
    /// whole session.
    pub(crate) fn reserve(&mut self, len: u32) -> Reservation {
        let offset = self.next_offset;
        self.next_offset += len;
        self.parts.push(None);
        Reservation {
            pack: self.header.pack_id,
            offset,
            key: self.key.clone(),
            part: self.parts.len() - 1,
        }
    }

    /// Hands in the bytes of a reservation and their entries.
    pub(crate) fn fill(&mut self, place: &Reservation, bytes: Vec<u8>, entries: &[PackEntry]) {
        assert_eq!(place.pack, self.header.pack_id, "a reservation belongs to its pack");
        assert!(self.parts[place.part].is_none(), "a reservation is filled once");
        self.parts[place.part] = Some(bytes);
        self.entries.extend_from_slice(entries);
    }

    /// The finished pack. All reservations must have been filled.
    pub(crate) fn close(mut self) -> ClosedPack {
        assert!(self.is_complete(), "a pack is closed when all of its bytes are there");
        self.entries.sort_by_key(|e| e.offset);
        let header = self.header.encode();
        let mut hasher = blake3::Hasher::new();
        hasher.update(&header);
        let parts: Vec<Vec<u8>> = self.parts.into_iter().flatten().collect();
        for part in &parts {
            hasher.update(part);
        }
        let mut table = encode_table(&self.entries);
        if let Some(key) = &self.key {
            let nonce = Nonce::assume_unique_for_key(chunk_nonce(TABLE_NONCE_OFFSET));
            key.seal_in_place_append_tag(nonce, Aad::from(header), &mut table)
                .expect("a table below 2^36 bytes can be sealed");
        }
        hasher.update(&table);
        let trailer = PackTrailer {
            pack_id: self.header.pack_id,
            sealed: self.header.sealed,
            entry_count: self.entries.len() as u32,
            table_offset: u64::from(self.next_offset),
            table_len: table.len() as u32,
            table_hash: *blake3::hash(&table).as_bytes(),
            content_hash: *hasher.finalize().as_bytes(),
        };
        table.extend_from_slice(&trailer.encode());
        let table_hash = trailer.table_hash;
        let (head, entries) = (header, self.entries);
        ClosedPack { header: self.header, head, parts, tail: table, entries, table_hash }
    }
}

/// A pack ready to be stored.
#[derive(Debug)]
pub(crate) struct ClosedPack {
    pub(crate) header: PackHeader,
    head: [u8; header::LEN],
    parts: Vec<Vec<u8>>,
    tail: Vec<u8>,
    pub(crate) entries: Vec<PackEntry>,
    table_hash: [u8; 32],
}

impl ClosedPack {
    /// The pack's bytes, in order.
    pub(crate) fn slices(&self) -> Vec<&[u8]> {
        let mut out: Vec<&[u8]> = Vec::with_capacity(self.parts.len() + 2);
        out.push(&self.head);
        out.extend(self.parts.iter().map(Vec::as_slice));
        out.push(&self.tail);
        out
    }

    /// Its table, as an index object has it.
    pub(crate) fn table(&self) -> PackTable {
        PackTable {
            pack: self.header.pack_id,
            session: self.header.session,
            kind: self.header.kind,
            len: self.len(),
            table_hash: self.table_hash,
            entries: self.entries.clone(),
        }
    }

    /// The pack's length.
    pub(crate) fn len(&self) -> u64 {
        self.slices().iter().map(|s| s.len() as u64).sum()
    }
}
