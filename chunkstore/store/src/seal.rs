//! One chunk at a time: compress and seal, open and decompress.

use aws_lc_rs::aead::{Aad, LessSafeKey, Nonce};
use backstay_format::limits::SEAL_OVERHEAD;
use backstay_format::pack::{Encoding, PackEntry, PackKind, chunk_nonce};
use zstd::bulk::{Compressor, Decompressor};

use crate::error::{Error, ErrorKind, Result};

/// zstd level: the fastest of the numbered levels (ARCHITECTURE.md, Decisions).
const ZSTD_LEVEL: i32 = 1;

/// Compressor with its working memory; one per thread.
pub(crate) struct Encoder {
    zstd: Compressor<'static>,
    packed: Vec<u8>,
}

impl Encoder {
    pub(crate) fn new() -> Result<Self> {
        let zstd = Compressor::new(ZSTD_LEVEL).map_err(|e| Error::io("cannot set up zstd", e))?;
        Ok(Self { zstd, packed: Vec::new() })
    }

    /// Appends the chunk's stored form, not sealed yet, to `out`, with room for the tag after it
    /// when `sealed`. Raw where zstd saves nothing.
    pub(crate) fn encode(&mut self, raw: &[u8], sealed: bool, out: &mut Vec<u8>) -> Encoding {
        let encoding = match self.compress(raw) {
            Some(n) => {
                out.extend_from_slice(&self.packed[..n]);
                Encoding::Zstd
            }
            None => {
                out.extend_from_slice(raw);
                Encoding::Raw
            }
        };
        if sealed {
            out.extend_from_slice(&[0; SEAL_OVERHEAD as usize]);
        }
        encoding
    }

    /// Compresses into `packed`; the length, or nothing where it is not worth it.
    fn compress(&mut self, raw: &[u8]) -> Option<usize> {
        if looks_random(raw) {
            return None;
        }
        // One byte less than raw: what does not fit is not worth compressing.
        let room = raw.len().saturating_sub(1);
        self.packed.resize(room.max(self.packed.len()), 0);
        self.zstd.compress_to_buffer(raw, &mut self.packed[..room]).ok()
    }
}

/// Bytes looked at to recognise data that is compressed or encrypted already.
const SAMPLES: usize = 2048;

/// Whether the bytes of a chunk are spread as evenly as those of noise, by a sample over all of
/// it. Saves the attempt to compress; being wrong costs space, never correctness.
fn looks_random(raw: &[u8]) -> bool {
    if raw.len() < 8 * SAMPLES {
        return false;
    }
    let mut counts = [0u16; 256];
    // Pieces of 32 bytes: a stride of single bytes would see one column of a table.
    let step = raw.len() / (SAMPLES / 32);
    for piece in raw.chunks(step).take(SAMPLES / 32) {
        for &b in &piece[..32.min(piece.len())] {
            counts[usize::from(b)] += 1;
        }
    }
    let squares: u64 = counts.iter().map(|&c| u64::from(c) * u64::from(c)).sum();
    // Noise has n + n^2/256 on average, give or take sqrt(2) n / 16; 64 even symbols have 4 times.
    let n = SAMPLES as u64;
    let noise = n + n * n / 256;
    squares < noise + 6 * n * 14142 / 160_000
}

impl std::fmt::Debug for Encoder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Encoder")
    }
}

/// Seals a stored chunk in place; the last 16 bytes take the tag.
pub(crate) fn seal(key: &LessSafeKey, kind: PackKind, entry: &PackEntry, stored: &mut [u8]) {
    let body = stored.len() - SEAL_OVERHEAD as usize;
    let (body, tag) = stored.split_at_mut(body);
    let nonce = Nonce::assume_unique_for_key(chunk_nonce(entry.offset));
    let made = key
        .seal_in_place_separate_tag(nonce, Aad::from(entry.associated_data(kind)), body)
        .expect("a chunk below 2^36 bytes can be sealed");
    tag.copy_from_slice(made.as_ref());
}

/// Decompressor with its working memory; one per thread.
pub(crate) struct Decoder {
    zstd: Decompressor<'static>,
    opened: Vec<u8>,
}

impl std::fmt::Debug for Decoder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Decoder")
    }
}

impl Decoder {
    pub(crate) fn new() -> Result<Self> {
        let zstd = Decompressor::new().map_err(|e| Error::io("cannot set up zstd", e))?;
        Ok(Self { zstd, opened: Vec::new() })
    }

    /// Decodes a stored chunk into `raw`, which is exactly as long as the chunk. Authenticates
    /// before it decompresses, and never writes beyond `raw`. The id is the caller's to check.
    pub(crate) fn decode(
        &mut self,
        key: Option<&LessSafeKey>,
        kind: PackKind,
        entry: &PackEntry,
        stored: &[u8],
        raw: &mut [u8],
    ) -> Result<()> {
        debug_assert_eq!(raw.len(), entry.raw_len as usize);
        match (key, entry.encoding) {
            (None, Encoding::Raw) => copy_exact(stored, raw),
            (None, Encoding::Zstd) => inflate(&mut self.zstd, stored, raw),
            (Some(key), Encoding::Raw) => open(key, kind, entry, stored, raw),
            (Some(key), Encoding::Zstd) => {
                let len = stored.len().saturating_sub(SEAL_OVERHEAD as usize);
                self.opened.resize(len.max(self.opened.len()), 0);
                let opened = &mut self.opened[..len];
                open(key, kind, entry, stored, opened)?;
                inflate(&mut self.zstd, opened, raw)
            }
        }
    }
}

fn open(
    key: &LessSafeKey,
    kind: PackKind,
    entry: &PackEntry,
    stored: &[u8],
    out: &mut [u8],
) -> Result<()> {
    let bad = || Error::new(ErrorKind::Damaged, "the stored bytes fail authentication");
    let body = stored.len().checked_sub(SEAL_OVERHEAD as usize).ok_or_else(bad)?;
    let (body, tag) = stored.split_at(body);
    if body.len() != out.len() {
        return Err(bad());
    }
    let nonce = Nonce::assume_unique_for_key(chunk_nonce(entry.offset));
    let aad = Aad::from(entry.associated_data(kind));
    key.open_separate_gather(nonce, aad, body, tag, out).map_err(|_| bad())
}

fn inflate(zstd: &mut Decompressor<'static>, stored: &[u8], raw: &mut [u8]) -> Result<()> {
    let n = zstd
        .decompress_to_buffer(stored, raw)
        .map_err(|e| Error::because(ErrorKind::Damaged, "the stored bytes do not decompress", e))?;
    if n != raw.len() {
        return Err(Error::new(
            ErrorKind::Damaged,
            format!("the stored bytes decompress to {n} bytes, not {}", raw.len()),
        ));
    }
    Ok(())
}

fn copy_exact(stored: &[u8], raw: &mut [u8]) -> Result<()> {
    if stored.len() != raw.len() {
        return Err(Error::new(ErrorKind::Damaged, "the stored bytes have another length"));
    }
    raw.copy_from_slice(stored);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::Keys;
    use backstay_format::config::Encryption;
    use backstay_format::{ChunkId, PackId, RepoId};

    fn sample(sealed: bool, raw: &[u8]) -> (Option<LessSafeKey>, PackEntry, Vec<u8>) {
        let encryption = if sealed { Encryption::Aes256Gcm } else { Encryption::None };
        let keys = Keys::new(Keys::public_master(RepoId::from_bytes([1; 16])), encryption);
        let key = keys.pack_key(PackId::from_bytes([2; 16]));
        let mut stored = Vec::new();
        let encoding = Encoder::new().unwrap().encode(raw, sealed, &mut stored);
        let entry = PackEntry {
            id: ChunkId::from_bytes([3; 32]),
            offset: 64,
            stored_len: stored.len() as u32,
            raw_len: raw.len() as u32,
            encoding,
        };
        if let Some(key) = &key {
            seal(key, PackKind::Data, &entry, &mut stored);
        }
        (key, entry, stored)
    }

    fn noise(n: usize) -> Vec<u8> {
        let mut out = vec![0; n];
        blake3::Hasher::new().finalize_xof().fill(&mut out);
        out
    }

    #[test]
    fn there_and_back() {
        for sealed in [false, true] {
            for raw in [vec![1u8], b"abc".repeat(5000), noise(4096), vec![7; 65536]] {
                let (key, entry, stored) = sample(sealed, &raw);
                let mut out = vec![0; raw.len()];
                let mut decoder = Decoder::new().unwrap();
                decoder.decode(key.as_ref(), PackKind::Data, &entry, &stored, &mut out).unwrap();
                assert_eq!(out, raw);
            }
        }
    }

    #[test]
    fn noise_is_stored_raw() {
        let (_, entry, stored) = sample(false, &noise(65536));
        assert_eq!((entry.encoding, stored.len()), (Encoding::Raw, 65536));
    }

    #[test]
    fn noise_is_recognised_and_little_else() {
        assert!(looks_random(&noise(65536)));
        let hex: Vec<u8> =
            noise(65536).iter().map(|b| b"0123456789abcdef"[*b as usize % 16]).collect();
        let skewed: Vec<u8> = noise(65536).iter().map(|b| b & 0x7f).collect();
        for other in [vec![0; 65536], b"some text ".repeat(7000), hex, skewed, noise(100)] {
            assert!(!looks_random(&other));
        }
    }

    #[test]
    fn a_changed_moved_or_retyped_chunk_does_not_open() {
        let raw = b"some text ".repeat(100);
        let (key, entry, stored) = sample(true, &raw);
        let mut out = vec![0; raw.len()];
        let mut decoder = Decoder::new().unwrap();
        let mut try_open = |kind, entry: &PackEntry, stored: &[u8]| {
            decoder.decode(key.as_ref(), kind, entry, stored, &mut out).is_ok()
        };
        assert!(try_open(PackKind::Data, &entry, &stored));
        assert!(!try_open(PackKind::Tree, &entry, &stored));
        assert!(!try_open(PackKind::Data, &PackEntry { offset: 65, ..entry }, &stored));
        let other = PackEntry { id: ChunkId::from_bytes([4; 32]), ..entry };
        assert!(!try_open(PackKind::Data, &other, &stored));
        for i in 0..stored.len() {
            let mut bad = stored.clone();
            bad[i] ^= 0x10;
            assert!(!try_open(PackKind::Data, &entry, &bad), "byte {i}");
        }
        assert!(!try_open(PackKind::Data, &entry, &stored[..stored.len() - 1]));
        assert!(!try_open(PackKind::Data, &entry, &[]));
    }

    #[test]
    fn a_bomb_does_not_inflate() {
        let (_, entry, stored) = sample(false, &vec![0x55; 1 << 20]);
        let small = PackEntry { raw_len: 100, ..entry };
        let mut out = vec![0; 100];
        let mut decoder = Decoder::new().unwrap();
        assert!(decoder.decode(None, PackKind::Data, &small, &stored, &mut out).is_err());
    }
}
