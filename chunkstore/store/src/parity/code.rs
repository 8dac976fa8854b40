//! From a pack to its parity, and back.

use backstay_format::parity::{Geometry, ParityHead, ShardHash, shard_hash};
use backstay_format::{FormatError, PackId, RepoId};
use reed_solomon_simd::{ReedSolomonDecoder, ReedSolomonEncoder};

use crate::error::{Error, ErrorKind, Result};

fn code_error(e: reed_solomon_simd::Error) -> Error {
    Error::because(ErrorKind::Invalid, "the parity code does not take these shards", e)
}

/// The parity object of a pack that is the concatenation of `parts`.
pub(crate) fn encode(repo_id: RepoId, pack_id: PackId, parts: &[&[u8]]) -> Result<Vec<u8>> {
    let pack_len = parts.iter().map(|p| p.len() as u64).sum();
    let geometry = Geometry::of(pack_len);
    let (data, parity) = (geometry.data_shards as usize, geometry.parity_shards as usize);
    let mut encoder =
        ReedSolomonEncoder::new(data, parity, geometry.shard_len as usize).map_err(code_error)?;
    let mut hashes = Vec::with_capacity(geometry.shards());
    let mut pack_hash = blake3::Hasher::new();
    let mut shard = Vec::with_capacity(geometry.shard_len as usize);
    let mut take = |shard: &mut Vec<u8>| -> Result<()> {
        pack_hash.update(shard);
        shard.resize(geometry.shard_len as usize, 0);
        hashes.push(shard_hash(shard));
        encoder.add_original_shard(&*shard).map_err(code_error)?;
        shard.clear();
        Ok(())
    };
    for part in parts {
        let mut rest = *part;
        while !rest.is_empty() {
            let room = geometry.shard_len as usize - shard.len();
            let (now, later) = rest.split_at(room.min(rest.len()));
            shard.extend_from_slice(now);
            rest = later;
            if shard.len() == geometry.shard_len as usize {
                take(&mut shard)?;
            }
        }
    }
    if !shard.is_empty() {
        take(&mut shard)?;
    }
    let pack_hash = *pack_hash.finalize().as_bytes();
    let made = encoder.encode().map_err(code_error)?;
    hashes.extend(made.recovery_iter().map(shard_hash));
    let head = ParityHead { repo_id, pack_id, pack_len, geometry, pack_hash, hashes };
    let mut out = head.encode();
    for shard in made.recovery_iter() {
        out.extend_from_slice(shard);
    }
    Ok(out)
}

fn open(object: &[u8], repo: RepoId, pack: PackId) -> Result<(ParityHead, &[u8])> {
    let damaged = |e| Error::format(format!("the parity of pack {pack} is damaged"), e);
    let (head, shards) = ParityHead::decode(object).map_err(damaged)?;
    if head.repo_id != repo || head.pack_id != pack {
        return Err(damaged(FormatError::damaged("pack_id", "it is of another pack")));
    }
    Ok((head, shards))
}

/// Checks a parity object: that all of it is as it was written, and with the bytes of its pack,
/// if they are whole, that it is of this pack.
pub(crate) fn check(object: &[u8], repo: RepoId, pack: PackId, bytes: Option<&[u8]>) -> Result<()> {
    let (head, shards) = open(object, repo, pack)?;
    let damaged = |place, text| {
        let e = FormatError::damaged(place, text);
        Err(Error::format(format!("the parity of pack {pack} is damaged"), e))
    };
    let geometry = head.geometry;
    if shards.len() != geometry.parity_shards as usize * geometry.shard_len as usize {
        return damaged("shards", "the object is cut short, or too long");
    }
    let expected = &head.hashes[geometry.data_shards as usize..];
    let found = shards.chunks(geometry.shard_len as usize).map(shard_hash);
    if !found.eq(expected.iter().copied()) {
        return damaged("shards", "the checksum of a shard does not match");
    }
    if bytes.is_some_and(|b| *blake3::hash(b).as_bytes() != head.pack_hash) {
        return damaged("pack_hash", "it does not fit the pack, which is whole");
    }
    Ok(())
}

/// Rebuilds a pack from what is left of it: `left` may be short, too long, or wrong anywhere.
/// Returns exactly the pack that was written, or an error.
pub(crate) fn rebuild(repo: RepoId, pack: PackId, object: &[u8], left: &[u8]) -> Result<Vec<u8>> {
    let (head, parity) = open(object, repo, pack)?;
    let geometry = head.geometry;
    let len = geometry.shard_len as usize;
    let (data, extra) = (geometry.data_shards as usize, geometry.parity_shards as usize);
    let mut decoder = ReedSolomonDecoder::new(data, extra, len).map_err(code_error)?;
    let mut bytes = left.to_vec();
    bytes.resize(data * len, 0);
    // Beyond the pack's end there are zeros, whatever was read there.
    let end = usize::try_from(head.pack_len).unwrap_or(usize::MAX).min(bytes.len());
    bytes[end..].fill(0);
    let is_good = |i: usize, shard: &[u8]| -> bool {
        let expected: Option<&ShardHash> = head.hashes.get(i);
        expected == Some(&shard_hash(shard))
    };
    let mut bad = 0usize;
    for (i, shard) in bytes.chunks(len).enumerate() {
        if is_good(i, shard) {
            decoder.add_original_shard(i, shard).map_err(code_error)?;
        } else {
            bad += 1;
        }
    }
    let mut good_parity = 0usize;
    for (i, shard) in parity.chunks_exact(len).take(extra).enumerate() {
        if is_good(data + i, shard) {
            decoder.add_recovery_shard(i, shard).map_err(code_error)?;
            good_parity += 1;
        }
    }
    if bad > good_parity {
        let text = format!(
            "too much of pack {pack} is damaged for its parity: {bad} of {data} shards, and \
             {good_parity} can be rebuilt"
        );
        return Err(Error::new(ErrorKind::Damaged, text));
    }
    if bad > 0 {
        let rebuilt = decoder.decode().map_err(code_error)?;
        for (i, shard) in rebuilt.restored_original_iter() {
            bytes[i * len..(i + 1) * len].copy_from_slice(shard);
        }
    }
    bytes.truncate(end);
    if *blake3::hash(&bytes).as_bytes() != head.pack_hash {
        let text = format!("pack {pack} as rebuilt from its parity is not what was written");
        return Err(Error::new(ErrorKind::Damaged, text));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ids() -> (RepoId, PackId) {
        (RepoId::from_bytes([1; 16]), PackId::from_bytes([2; 16]))
    }

    fn noise(seed: u64, len: usize) -> Vec<u8> {
        let mut out = vec![0; len];
        blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut out);
        out
    }

    #[test]
    fn parts_do_not_matter_and_a_whole_pack_needs_nothing() {
        let (repo, pack) = ids();
        let bytes = noise(1, 100_000);
        let object = encode(repo, pack, &[&bytes]).unwrap();
        let parts: Vec<&[u8]> = bytes.chunks(777).collect();
        assert_eq!(encode(repo, pack, &parts).unwrap(), object);
        check(&object, repo, pack, Some(&bytes)).unwrap();
        assert_eq!(rebuild(repo, pack, &object, &bytes).unwrap(), bytes);
        let other = PackId::from_bytes([3; 16]);
        assert!(rebuild(repo, other, &object, &bytes).is_err());
        assert!(check(&object, repo, pack, Some(&bytes[1..])).is_err());
    }

    #[test]
    fn one_percent_of_the_blocks_of_a_full_pack() {
        let (repo, pack) = ids();
        let bytes = noise(2, 4 << 20);
        let object = encode(repo, pack, &[&bytes]).unwrap();
        assert!(object.len() * 100 < bytes.len() * 4, "less than 4 % more: {}", object.len());
        let mut left = bytes.clone();
        for block in (0..1024).step_by(97) {
            left[block * 4096 + block] ^= 0x40;
        }
        assert_eq!(rebuild(repo, pack, &object, &left).unwrap(), bytes);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(60))]

        /// Any damage to pack and parity together: the right bytes, or an error; the right bytes
        /// always where no more shards are bad than there are good parity shards.
        #[test]
        fn right_or_an_error(
            len in 1usize..300_000,
            hits in prop::collection::vec((any::<u32>(), 1u8..), 0..12),
            parity_hits in prop::collection::vec((any::<u32>(), 1u8..), 0..4),
            cut in 0usize..20_000,
        ) {
            let (repo, pack) = ids();
            let bytes = noise(len as u64, len);
            let object = encode(repo, pack, &[&bytes]).unwrap();
            let g = Geometry::of(len as u64);
            let shard = g.shard_len as usize;
            let mut left = bytes.clone();
            for (at, flip) in hits {
                let at = at as usize % left.len();
                left[at] ^= flip;
            }
            left.truncate(len.saturating_sub(cut));
            let shards_start = object.len() - g.parity_shards as usize * shard;
            let mut bad_object = object.clone();
            for (at, flip) in parity_hits {
                let at = shards_start + at as usize % (object.len() - shards_start);
                bad_object[at] ^= flip;
            }
            let bad = |a: &[u8], b: &[u8], n: usize| (0..n).filter(|i| {
                let range = |x: &[u8]| {
                    let end = ((i + 1) * shard).min(x.len());
                    x[(i * shard).min(end)..end].to_vec()
                };
                range(a) != range(b)
            }).count();
            let bad_data = bad(&bytes, &left, g.data_shards as usize);
            let tail = |o: &[u8]| o[shards_start..].to_vec();
            let bad_parity = bad(&tail(&object), &tail(&bad_object), g.parity_shards as usize);
            match rebuild(repo, pack, &bad_object, &left) {
                Ok(found) => prop_assert_eq!(found, bytes),
                Err(_) => prop_assert!(bad_data + bad_parity > g.parity_shards as usize),
            }
            prop_assert_eq!(check(&bad_object, repo, pack, None).is_ok(), bad_parity == 0);
        }
    }
}
