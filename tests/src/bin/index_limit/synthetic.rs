//! A repository of any size that takes no space: packs that nobody reads, and index objects made
//! when they are asked for.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use backstay_format::envelope::Envelope;
use backstay_format::index_object::{PackTable, object_id};
use backstay_format::pack::{Encoding, PackEntry, PackKind, entry, header, trailer};
use backstay_store::{
    ChunkId, Error, ErrorKind, Folder, IndexId, MemoryStorage, ObjectKey, PackId, PointId, RepoId,
    Storage,
};

/// Chunks of a pack: 32 MiB of chunks of 64 KiB.
const CHUNKS: u64 = 512;
/// Packs of an index object: about 8 MiB.
const PACKS: u64 = 430;
/// One pack in so many holds tree nodes.
const TREE_EVERY: u64 = 64;

/// Packs by number, from 0 up to the size; besides them a real repository.
#[derive(Debug)]
pub(crate) struct Synthetic {
    real: Arc<MemoryStorage>,
    repo: RepoId,
    packs: AtomicU64,
    delay: Duration,
}

impl Synthetic {
    pub(crate) fn new(
        real: Arc<MemoryStorage>,
        repo: RepoId,
        chunks: u64,
        delay: Duration,
    ) -> Self {
        Self { real, repo, packs: AtomicU64::new(chunks.div_ceil(CHUNKS)), delay }
    }

    /// Adds an index object's worth of packs; returns how many chunks there are now.
    pub(crate) fn grow(&self) -> u64 {
        (self.packs.fetch_add(PACKS, Ordering::Relaxed) + PACKS) * CHUNKS
    }

    fn packs(&self) -> u64 {
        self.packs.load(Ordering::Relaxed)
    }

    /// The names of the objects: the higher the number, the newer. The last of a sort changes its
    /// name when packs are added.
    fn objects(&self, kind: PackKind) -> impl Iterator<Item = ObjectKey> {
        let packs = self.packs();
        let trees = packs.div_ceil(TREE_EVERY);
        let of_kind = if kind == PackKind::Tree { trees } else { packs - trees };
        (0..of_kind.div_ceil(PACKS)).map(move |n| {
            let count = (of_kind - n * PACKS).min(PACKS);
            ObjectKey::Index(object_id(kind, n, (n << 16 | count).to_be_bytes()))
        })
    }

    fn object(&self, id: IndexId) -> Vec<u8> {
        let name = u64::from_be_bytes(*id.as_bytes().last_chunk().unwrap_or(&[0; 8]));
        let first = (name >> 16) * PACKS;
        let mut payload = Vec::new();
        for n in first..first + (name & 0xffff) {
            if id.as_bytes()[0] == 0 {
                table(n * TREE_EVERY, PackKind::Tree).encode(&mut payload);
            } else {
                // Of 64 packs the first holds tree nodes.
                let number = n / (TREE_EVERY - 1) * TREE_EVERY + n % (TREE_EVERY - 1) + 1;
                table(number, PackKind::Data).encode(&mut payload);
            }
        }
        let envelope = Envelope { repo_id: self.repo, sealed: false, payload };
        envelope.encode(backstay_format::magic::INDEX).unwrap_or_default()
    }
}

fn pack_id(number: u64) -> PackId {
    let mut bytes = [0; 16];
    blake3::Hasher::new().update(&number.to_le_bytes()).finalize_xof().fill(&mut bytes);
    PackId::from_bytes(bytes)
}

/// The id of chunk `i` of all; ids beyond the size belong to nothing.
pub(crate) fn chunk_id(i: u64) -> ChunkId {
    let mut bytes = [0; 32];
    let mut ids =
        blake3::Hasher::new().update(b"chunks").update(&(i / CHUNKS).to_le_bytes()).finalize_xof();
    ids.set_position(i % CHUNKS * 32);
    ids.fill(&mut bytes);
    ChunkId::from_bytes(bytes)
}

fn table(number: u64, kind: PackKind) -> PackTable {
    let mut ids = vec![0u8; CHUNKS as usize * 32];
    blake3::Hasher::new()
        .update(b"chunks")
        .update(&number.to_le_bytes())
        .finalize_xof()
        .fill(&mut ids);
    let mut offset = header::LEN as u32;
    let entries: Vec<PackEntry> = ids
        .as_chunks::<32>()
        .0
        .iter()
        .map(|id| {
            // Lengths as compressed chunks have them, each another.
            let stored_len = 20_000 + u32::from(id[0]) * 100 + u32::from(id[1] % 100);
            let e = PackEntry {
                id: ChunkId::from_bytes(*id),
                offset,
                stored_len,
                raw_len: 65_536,
                encoding: Encoding::Zstd,
            };
            offset += stored_len;
            e
        })
        .collect();
    let tail = entries.len() * entry::LEN + trailer::LEN;
    let mut session = [1; 16];
    session[..8].copy_from_slice(&(number / 100).to_le_bytes());
    PackTable {
        pack: pack_id(number),
        session: PointId::from_bytes(session),
        kind,
        len: u64::from(offset) + tail as u64,
        table_hash: [0; 32],
        entries,
    }
}

impl Storage for Synthetic {
    fn put(&self, key: ObjectKey, parts: &[&[u8]]) -> Result<(), Error> {
        self.real.put(key, parts)
    }

    fn get(&self, key: ObjectKey, max: u64) -> Result<Vec<u8>, Error> {
        std::thread::sleep(self.delay);
        match (self.real.get(key, max), key) {
            (Err(e), ObjectKey::Index(id)) if e.kind() == ErrorKind::NotFound => {
                Ok(self.object(id))
            }
            (result, _) => result,
        }
    }

    fn read_at(&self, key: ObjectKey, offset: u64, buf: &mut [u8]) -> Result<(), Error> {
        std::thread::sleep(self.delay);
        self.real.read_at(key, offset, buf)
    }

    fn size(&self, key: ObjectKey) -> Result<u64, Error> {
        std::thread::sleep(self.delay);
        match self.real.size(key) {
            Err(e) if e.kind() == ErrorKind::NotFound && key.folder() == Some(Folder::Index) => {
                // As long as the longest: the reader bounds its memory by it.
                Ok(PACKS * PackTable::encoded_max(CHUNKS as usize) as u64)
            }
            other => other,
        }
    }

    fn list(&self, folder: Folder) -> Result<Vec<ObjectKey>, Error> {
        std::thread::sleep(self.delay);
        let mut keys = self.real.list(folder)?;
        match folder {
            Folder::Packs => keys.extend((0..self.packs()).map(|n| ObjectKey::Pack(pack_id(n)))),
            Folder::Index => {
                keys.extend(self.objects(PackKind::Tree));
                keys.extend(self.objects(PackKind::Data));
            }
            _ => {}
        }
        keys.sort();
        Ok(keys)
    }

    fn delete(&self, key: ObjectKey) -> Result<(), Error> {
        self.real.delete(key)
    }
}
