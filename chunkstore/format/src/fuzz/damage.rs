//! Records of damage and of verified packs, and parity.

use crate::limits::{QUARANTINE_CHUNKS_MAX, QUARANTINE_PACKS_MAX, VERIFIED_PACKS_MAX};
use crate::parity::{self, Geometry, ParityHead};
use crate::quarantine::{BadPack, Quarantine};
use crate::record::Record;
use crate::verified::{Level, Verified, VerifiedPack};
use crate::{ChunkId, PackId, QuarantineId, RepoId, VerifiedId};

const TIME: &str = "2026-11-22T03:00:00Z";

pub(super) fn quarantine(data: &[u8]) {
    let Ok(record) = Quarantine::decode(data) else { return };
    let chunks: usize = record.packs.iter().filter_map(|p| Some(p.chunks.as_ref()?.len())).sum();
    assert!(record.packs.len() <= QUARANTINE_PACKS_MAX && chunks <= QUARANTINE_CHUNKS_MAX);
    let bytes = record.encode().expect("what was read can be written");
    assert_eq!(Quarantine::decode(&bytes).expect("and read again"), record);
}

pub(super) fn quarantine_seeds() -> Vec<(&'static str, Vec<u8>)> {
    let made = |chunks| {
        let found = TIME.parse().expect("a time");
        let pack = PackId::from_bytes([1; 16]);
        let packs = vec![BadPack { pack, chunks, reason: "it fails".into(), found }];
        let id = QuarantineId::from_bytes([2; 16]);
        Quarantine { id, packs, by: "vault".into() }.encode().expect("it is within its bounds")
    };
    let ids = [1, 2, 3].map(|n| ChunkId::from_bytes([n; 32])).to_vec();
    vec![("chunks", made(Some(ids))), ("whole", made(None))]
}

pub(super) fn verified(data: &[u8]) {
    let Ok(record) = Verified::decode(data) else { return };
    assert!(record.packs.len() <= VERIFIED_PACKS_MAX);
    let bytes = record.encode().expect("what was read can be written");
    assert_eq!(Verified::decode(&bytes).expect("and read again"), record);
}

pub(super) fn verified_seeds() -> Vec<(&'static str, Vec<u8>)> {
    let one = |level, whole| VerifiedPack {
        pack: PackId::from_bytes([1; 16]),
        time: TIME.parse().expect("a time"),
        level,
        whole,
    };
    let packs = vec![one(Level::Checksums, true), one(Level::Full, false)];
    let record = Verified { id: VerifiedId::from_bytes([2; 16]), packs };
    vec![("two", record.encode().expect("it is within its bounds"))]
}

pub(super) fn parity(data: &[u8]) {
    for bytes in [Some(data.to_vec()), with_sum(data)].into_iter().flatten() {
        let Ok((head, shards)) = ParityHead::decode(&bytes) else { continue };
        assert_eq!(head.geometry, Geometry::of(head.pack_len));
        assert_eq!(head.hashes.len(), head.geometry.shards());
        let again = [&head.encode(), shards].concat();
        assert_eq!(again, bytes, "a parity object has one form");
    }
}

/// The bytes with the right sum after head and hashes, if they are long enough.
fn with_sum(data: &[u8]) -> Option<Vec<u8>> {
    let len = parity::PACK_LEN.u64(data).ok().filter(|len| (1..=1 << 20).contains(len))?;
    let end = parity::HEAD_LEN + Geometry::of(len).shards() * parity::SHARD_HASH_LEN;
    let mut bytes = data.to_vec();
    let sum = *blake3::hash(data.get(..end)?).as_bytes();
    bytes.get_mut(end..end + parity::SUM_LEN)?.copy_from_slice(&sum);
    Some(bytes)
}

pub(super) fn parity_seeds() -> Vec<(&'static str, Vec<u8>)> {
    let made = |pack_len| {
        let geometry = Geometry::of(pack_len);
        let head = ParityHead {
            repo_id: RepoId::from_bytes([3; 16]),
            pack_id: PackId::from_bytes([1; 16]),
            pack_len,
            geometry,
            pack_hash: [5; 32],
            hashes: vec![[7; 16]; geometry.shards()],
        };
        [head.encode(), vec![9; 32]].concat()
    };
    vec![("one", made(1)), ("some", made(10_000))]
}
