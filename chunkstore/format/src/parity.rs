//! Parity: what a damaged pack can be rebuilt from.
//!
//! A pack is cut into shards of equal length, the last padded with zeros. Head, hashes of all
//! shards, the hash of both, then the parity shards. Nothing is sealed: a pack is sealed already,
//! and whoever keeps the storage can rebuild it without any key.

use crate::limits::{PACK_MAX, PARITY_DATA_SHARDS_MAX, PARITY_SHARD_MIN};
use crate::{Field, FormatError, PackId, RepoId, magic};

/// Magic of a parity object.
pub const MAGIC: Field = Field::new("magic", 0, 8);
/// Format version.
pub const VERSION: Field = MAGIC.then("version", 2);
/// Zero.
pub const FLAGS: Field = VERSION.then("flags", 2);
/// Bytes of a shard.
pub const SHARD_LEN: Field = FLAGS.then("shard_len", 4);
/// The repository.
pub const REPO_ID: Field = SHARD_LEN.then("repo_id", RepoId::LEN);
/// The pack; must be the object's name.
pub const PACK_ID: Field = REPO_ID.then("pack_id", PackId::LEN);
/// Bytes of the pack.
pub const PACK_LEN: Field = PACK_ID.then("pack_len", 8);
/// Shards the pack is cut into.
pub const DATA_SHARDS: Field = PACK_LEN.then("data_shards", 4);
/// Parity shards.
pub const PARITY_SHARDS: Field = DATA_SHARDS.then("parity_shards", 4);
/// BLAKE3 of the whole pack: proves that it was rebuilt rightly.
pub const PACK_HASH: Field = PARITY_SHARDS.then("pack_hash", 32);
/// The fields, in order.
pub const FIELDS: [Field; 10] = [
    MAGIC,
    VERSION,
    FLAGS,
    SHARD_LEN,
    REPO_ID,
    PACK_ID,
    PACK_LEN,
    DATA_SHARDS,
    PARITY_SHARDS,
    PACK_HASH,
];
/// Bytes of the head.
pub const HEAD_LEN: usize = PACK_HASH.end();
/// Bytes of a shard's hash: the first of its BLAKE3.
pub const SHARD_HASH_LEN: usize = 16;
/// Bytes of the hash that ends head and hashes.
pub const SUM_LEN: usize = 32;

const _: () = assert!(HEAD_LEN == 96);

/// A shard's hash.
pub type ShardHash = [u8; SHARD_HASH_LEN];

/// The hash of a shard.
pub fn shard_hash(shard: &[u8]) -> ShardHash {
    let mut out = ShardHash::default();
    out.copy_from_slice(&blake3::hash(shard).as_bytes()[..SHARD_HASH_LEN]);
    out
}

/// How a pack is cut, and how much parity it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Bytes of a shard.
    pub shard_len: u32,
    /// Shards of the pack.
    pub data_shards: u32,
    /// Parity shards: as many bad shards can be rebuilt.
    pub parity_shards: u32,
}

impl Geometry {
    /// The geometry for a pack of `len` bytes, which are at least one: shards of 4 KiB, or as much
    /// larger as keeps their number bounded; one parity shard for 32, and at least four.
    pub fn of(len: u64) -> Self {
        let mut shard_len = PARITY_SHARD_MIN;
        while len.div_ceil(u64::from(shard_len)) > u64::from(PARITY_DATA_SHARDS_MAX) {
            shard_len *= 2;
        }
        let data_shards = u32::try_from(len.div_ceil(u64::from(shard_len))).unwrap_or(u32::MAX);
        Self { shard_len, data_shards, parity_shards: data_shards.div_ceil(32).max(4) }
    }

    /// Shards of both kinds.
    pub fn shards(&self) -> usize {
        self.data_shards as usize + self.parity_shards as usize
    }
}

/// A parity object without its shards.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParityHead {
    /// The repository.
    pub repo_id: RepoId,
    /// The pack.
    pub pack_id: PackId,
    /// The pack's length.
    pub pack_len: u64,
    /// How it is cut.
    pub geometry: Geometry,
    /// BLAKE3 of the whole pack.
    pub pack_hash: [u8; 32],
    /// Of the data shards, then of the parity shards.
    pub hashes: Vec<ShardHash>,
}

impl ParityHead {
    /// Head, hashes and their sum; the parity shards follow.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = vec![0u8; HEAD_LEN];
        MAGIC.put(&mut out, &magic::PARITY);
        VERSION.put(&mut out, &magic::VERSION.to_le_bytes());
        SHARD_LEN.put(&mut out, &self.geometry.shard_len.to_le_bytes());
        REPO_ID.put(&mut out, self.repo_id.as_bytes());
        PACK_ID.put(&mut out, self.pack_id.as_bytes());
        PACK_LEN.put(&mut out, &self.pack_len.to_le_bytes());
        DATA_SHARDS.put(&mut out, &self.geometry.data_shards.to_le_bytes());
        PARITY_SHARDS.put(&mut out, &self.geometry.parity_shards.to_le_bytes());
        PACK_HASH.put(&mut out, &self.pack_hash);
        for hash in &self.hashes {
            out.extend_from_slice(hash);
        }
        let sum = blake3::hash(&out);
        out.extend_from_slice(sum.as_bytes());
        out
    }

    /// Reads head and hashes of a whole parity object, and returns the bytes of its shards, which
    /// may be short or damaged: each has a hash of its own.
    pub fn decode(bytes: &[u8]) -> Result<(Self, &[u8]), FormatError> {
        if MAGIC.bytes(bytes)? != magic::PARITY {
            return Err(FormatError::damaged("magic", "this is not a parity object"));
        }
        let pack_len = PACK_LEN.u64(bytes)?;
        let found = Geometry {
            shard_len: SHARD_LEN.u32(bytes)?,
            data_shards: DATA_SHARDS.u32(bytes)?,
            parity_shards: PARITY_SHARDS.u32(bytes)?,
        };
        // One geometry a length: so no size below is taken from the bytes unchecked.
        if pack_len == 0 || pack_len > PACK_MAX || found != Geometry::of(pack_len) {
            return Err(FormatError::damaged("geometry", "the shards do not fit the pack"));
        }
        let hashes_end = HEAD_LEN + found.shards() * SHARD_HASH_LEN;
        let cut = || FormatError::damaged("hashes", "the object is cut short");
        let (head, rest) = bytes.split_at_checked(hashes_end).ok_or_else(cut)?;
        let (sum, shards) = rest.split_at_checked(SUM_LEN).ok_or_else(cut)?;
        if blake3::hash(head).as_bytes() != sum {
            return Err(FormatError::damaged("sum", "the checksum does not match"));
        }
        let version = VERSION.u16(bytes)?;
        if version != magic::VERSION {
            return Err(FormatError::unsupported("version", format!("parity version {version}")));
        }
        FLAGS.expect_zero(bytes)?;
        let (hashes, _) = head[HEAD_LEN..].as_chunks::<SHARD_HASH_LEN>();
        let head = Self {
            repo_id: RepoId::from_bytes(REPO_ID.array(bytes)?),
            pack_id: PackId::from_bytes(PACK_ID.array(bytes)?),
            pack_len,
            geometry: found,
            pack_hash: PACK_HASH.array(bytes)?,
            hashes: hashes.to_vec(),
        };
        Ok((head, shards))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(len: u64) -> ParityHead {
        let geometry = Geometry::of(len);
        ParityHead {
            repo_id: RepoId::from_bytes([1; 16]),
            pack_id: PackId::from_bytes([2; 16]),
            pack_len: len,
            geometry,
            pack_hash: [3; 32],
            hashes: vec![[4; 16]; geometry.shards()],
        }
    }

    #[test]
    fn there_and_back_and_no_flip_or_cut_goes_unnoticed() {
        let head = sample(100_000);
        let mut bytes = head.encode();
        let len = bytes.len();
        bytes.extend_from_slice(b"shards");
        assert_eq!(ParityHead::decode(&bytes).unwrap(), (head, &b"shards"[..]));
        for i in 0..len {
            let mut bad = bytes.clone();
            bad[i] ^= 1;
            assert!(ParityHead::decode(&bad).is_err(), "byte {i}");
            assert!(ParityHead::decode(&bytes[..i]).is_err(), "cut at {i}");
        }
    }

    #[test]
    fn geometry_is_bounded_at_every_size() {
        for len in [1, 4095, 4096, 4097, 1 << 20, 32 << 20, (64 << 20) + 1, PACK_MAX] {
            let g = Geometry::of(len);
            assert!(g.data_shards <= PARITY_DATA_SHARDS_MAX, "{len}");
            assert!(u64::from(g.data_shards) * u64::from(g.shard_len) >= len, "{len}");
            assert!(u64::from(g.data_shards - 1) * u64::from(g.shard_len) < len, "{len}");
        }
        let g = Geometry::of(32 << 20);
        assert_eq!((g.shard_len, g.data_shards, g.parity_shards), (4096, 8192, 256));
    }
}
