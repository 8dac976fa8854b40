//! What a fuzzer runs of the store: reading a pack's footer, and decoding a chunk.
//! See `backstay_format::fuzz`.

use std::sync::OnceLock;

use aws_lc_rs::aead::{Aad, LessSafeKey, Nonce};
use backstay_format::config::Encryption;
use backstay_format::fuzz::Target;
use backstay_format::limits::{CHUNK_RAW_MAX, SEAL_OVERHEAD};
use backstay_format::pack::{
    Encoding, PackEntry, PackKind, TABLE_NONCE_OFFSET, chunk_nonce, header, trailer,
};
use backstay_format::{ChunkId, PackId, PointId, RepoId};

use crate::key::ObjectKey;
use crate::keys::Keys;
use crate::pack::{OpenPack, read_footer, verify_pack_bytes};
use crate::seal::{Decoder, Encoder, seal};
use crate::storage::{MemoryStorage, Storage as _};

/// Every target of the store.
pub const TARGETS: &[Target] = &[
    Target { name: "footer", run: footer, seeds: footer_seeds, memory: 256 * 1024 },
    Target { name: "chunk", run: chunk, seeds: chunk_seeds, memory: 4 * CHUNK_RAW_MAX as usize },
];

const REPO: RepoId = RepoId::from_bytes([1; 16]);
const PACK: PackId = PackId::from_bytes([2; 16]);
/// First bits of an input: what it is made into before it is read.
const SEALED: u8 = 1;
const REPAIRED: u8 = 2;
const COMPRESSED: u8 = 4;

/// The keys of a repository with and without encryption; derived once, for they cost time.
fn keys(sealed: bool) -> &'static Keys {
    static KEYS: [OnceLock<Keys>; 2] = [OnceLock::new(), OnceLock::new()];
    let encryption = if sealed { Encryption::Aes256Gcm } else { Encryption::None };
    KEYS[usize::from(sealed)].get_or_init(|| Keys::new(Keys::public_master(REPO), encryption))
}

/// A whole pack. Repaired, its ids, sums and seals are made right first, as somebody could who holds
/// the key; otherwise nothing behind them would ever be reached.
fn footer(data: &[u8]) {
    let Some((mode, bytes)) = data.split_first() else { return };
    let keys = keys(mode & SEALED != 0);
    let mut pack = bytes.to_vec();
    if mode & REPAIRED != 0 {
        repair(&mut pack, keys);
    }
    let verified = verify_pack_bytes(&pack, REPO, PACK);
    let storage = MemoryStorage::default();
    storage.put(ObjectKey::Pack(PACK), &[&pack]).expect("an empty storage takes an object");
    let Ok(footer) = read_footer(&storage, REPO, keys, PACK) else { return };
    assert_eq!(footer.len, pack.len() as u64);
    assert_eq!((footer.header.repo_id, footer.header.pack_id), (REPO, PACK));
    for entry in &footer.entries {
        let end = u64::from(entry.offset) + u64::from(entry.stored_len);
        assert!(entry.offset as usize >= header::LEN && end <= footer.len, "{entry:?}");
        assert!((1..=CHUNK_RAW_MAX).contains(&entry.raw_len), "{entry:?}");
    }
    assert!(verified.is_ok() || mode & REPAIRED == 0, "a repaired pack verifies: {verified:?}");
}

/// Gives a pack our ids, seals its table, and makes every sum right, as far as it is long enough.
fn repair(pack: &mut [u8], keys: &Keys) {
    let Some(end) = pack.len().checked_sub(trailer::LEN) else { return };
    if end < header::LEN {
        return;
    }
    let put = |bytes: &mut [u8], field: backstay_format::Field, value: &[u8]| {
        bytes[field.offset..field.end()].copy_from_slice(value);
    };
    let (body, tail) = pack.split_at_mut(end);
    put(body, header::REPO_ID, REPO.as_bytes());
    put(body, header::PACK_ID, PACK.as_bytes());
    put(tail, trailer::PACK_ID, PACK.as_bytes());
    let field = |field: backstay_format::Field| &tail[field.offset..field.end()];
    let offset = field(trailer::TABLE_OFFSET).try_into().map_or(0, u64::from_le_bytes);
    let len = field(trailer::TABLE_LEN).try_into().map_or(0, u32::from_le_bytes);
    let range = usize::try_from(offset).ok().and_then(|s| Some(s..s.checked_add(len as usize)?));
    let range = range.filter(|range| range.start >= header::LEN && range.end <= end);
    if let Some(range) = range {
        let (head, table) = body.split_at_mut(range.start);
        let table = &mut table[..range.len()];
        if let (Some(key), Some(plain)) =
            (keys.pack_key(PACK), table.len().checked_sub(SEAL_OVERHEAD as usize))
        {
            seal_table(&key, &head[..header::LEN], table, plain);
        }
        put(tail, trailer::TABLE_HASH, blake3::hash(table).as_bytes());
    }
    put(tail, trailer::CONTENT_HASH, blake3::hash(body).as_bytes());
    let sum = blake3::hash(&tail[..trailer::TRAILER_HASH.offset]);
    put(tail, trailer::TRAILER_HASH, &sum.as_bytes()[..trailer::TRAILER_HASH.size]);
}

fn seal_table(key: &LessSafeKey, head: &[u8], table: &mut [u8], plain: usize) {
    let (plain, tag) = table.split_at_mut(plain);
    let nonce = Nonce::assume_unique_for_key(chunk_nonce(TABLE_NONCE_OFFSET));
    let made = key.seal_in_place_separate_tag(nonce, Aad::from(head), plain);
    tag.copy_from_slice(made.expect("a table below 2^36 bytes can be sealed").as_ref());
}

/// A pack of two chunks as the store makes it. Its table is in the clear, for sealing is a part of
/// the repair.
fn footer_seeds() -> Vec<(&'static str, Vec<u8>)> {
    let made = |sealed: bool| {
        let keys = keys(sealed);
        let mut encoder = Encoder::new().expect("zstd is there");
        let mut pack = OpenPack::new(REPO, PACK, PackKind::Data, PointId::NONE, keys);
        for raw in [&b"some text ".repeat(20)[..], b"short"] {
            let (mut entry, mut stored) = stored(&mut encoder, raw, sealed);
            let place = pack.reserve(entry.stored_len);
            entry.offset = place.offset;
            if let Some(key) = &place.key {
                seal(key, PackKind::Data, &entry, &mut stored);
            }
            pack.fill(&place, stored, &[entry]);
        }
        let closed = pack.close();
        let mut bytes = closed.slices().concat();
        if sealed {
            let table = backstay_format::pack::encode_table(&closed.entries);
            let at = bytes.len() - trailer::LEN - table.len() - SEAL_OVERHEAD as usize;
            bytes[at..at + table.len()].copy_from_slice(&table);
        }
        let mode = if sealed { SEALED | REPAIRED } else { 0 };
        [&[mode][..], &bytes].concat()
    };
    vec![("clear", made(false)), ("sealed", made(true))]
}

/// A chunk's stored bytes, not sealed yet, and its entry.
fn stored(encoder: &mut Encoder, raw: &[u8], sealed: bool) -> (PackEntry, Vec<u8>) {
    let mut stored = Vec::new();
    let encoding = encoder.encode(raw, sealed, &mut stored);
    let entry = PackEntry {
        id: ChunkId::from_bytes([3; 32]),
        offset: header::LEN as u32,
        stored_len: stored.len() as u32,
        raw_len: raw.len() as u32,
        encoding,
    };
    (entry, stored)
}

/// One byte says how, four how long the chunk says it is; the rest is what is stored. A sealed chunk
/// is sealed here first: what a writer with the key may have put in.
fn chunk(data: &[u8]) {
    let Some((mode, rest)) = data.split_first() else { return };
    let Some((len, bytes)) = rest.split_first_chunk() else { return };
    let key = if mode & SEALED != 0 { keys(true).pack_key(PACK) } else { None };
    let mut stored = bytes.to_vec();
    if key.is_some() {
        stored.extend_from_slice(&[0; SEAL_OVERHEAD as usize]);
    }
    // The bounds that a table's reader sees to.
    let raw_len = (u32::from_le_bytes(*len) % CHUNK_RAW_MAX) + 1;
    let encoding = if mode & COMPRESSED != 0 { Encoding::Zstd } else { Encoding::Raw };
    let stored_len = u32::try_from(stored.len()).expect("an input is shorter than a pack");
    let id = ChunkId::from_bytes([3; 32]);
    let entry = PackEntry { id, offset: header::LEN as u32, stored_len, raw_len, encoding };
    if let Some(key) = &key {
        seal(key, PackKind::Data, &entry, &mut stored);
    }
    let mut raw = vec![0; raw_len as usize];
    let mut decoder = Decoder::new().expect("zstd is there");
    let decoded = decoder.decode(key.as_ref(), PackKind::Data, &entry, &stored, &mut raw);
    if encoding == Encoding::Raw {
        assert_eq!(decoded.is_ok(), raw.len() == bytes.len(), "raw bytes are the chunk");
    }
    if decoded.is_err() {
        return;
    }
    if let Some(key) = &key {
        stored[bytes.len() / 2] ^= 1;
        let forged = decoder.decode(Some(key), PackKind::Data, &entry, &stored, &mut raw.clone());
        assert!(forged.is_err(), "a changed byte is seen");
    }
    there_and_back(&mut decoder, &raw);
}

/// What was decoded can be stored and decoded again.
fn there_and_back(decoder: &mut Decoder, raw: &[u8]) {
    let mut encoder = Encoder::new().expect("zstd is there");
    let (entry, stored) = stored(&mut encoder, raw, false);
    assert!(stored.len() <= raw.len(), "a chunk that does not shrink is stored raw");
    let mut again = vec![0; raw.len()];
    decoder
        .decode(None, PackKind::Data, &entry, &stored, &mut again)
        .expect("what was encoded can be decoded");
    assert!(again == raw, "the bytes came back changed");
}

fn chunk_seeds() -> Vec<(&'static str, Vec<u8>)> {
    let made = |mode: u8, raw: &[u8]| {
        let mut encoder = Encoder::new().expect("zstd is there");
        let (entry, stored) = stored(&mut encoder, raw, false);
        let compressed = if entry.encoding == Encoding::Zstd { COMPRESSED } else { 0 };
        [&[mode | compressed][..], &(entry.raw_len - 1).to_le_bytes(), &stored].concat()
    };
    vec![
        ("raw", made(0, b"short")),
        ("zstd", made(0, &b"some text ".repeat(500))),
        ("zeros", made(SEALED, &[0; 65536])),
        ("sealed", made(SEALED, &b"other text ".repeat(50))),
    ]
}
