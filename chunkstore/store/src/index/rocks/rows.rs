//! The rows of the index's database. It is derived and private to this program, so its layout may
//! change with the name of its directory.

use backstay_format::pack::{Encoding, PackEntry, PackKind};
use backstay_format::{ChunkId, IndexId, PackId, PointId};

use super::super::{ChunkLocation, PackInfo};

/// A pack's number in one database. Given once: a pack that is forgotten and comes back gets a new
/// one, so that rows left over from before never speak for it.
pub(super) type PackNumber = u32;

const NUMBER_LEN: usize = size_of::<PackNumber>();
/// Bytes of the key of a copy.
pub(super) const COPY_KEY_LEN: usize = ChunkId::LEN + NUMBER_LEN;

/// The key of one copy of a chunk: the id, then the pack's number, complemented so that the newest
/// copy comes first.
///
/// One row a copy: adding is a blind write, in any order, and a copy goes without reading the
/// others.
pub(super) type CopyKey = [u8; COPY_KEY_LEN];

pub(super) fn copy_key(id: &ChunkId, pack: PackNumber) -> CopyKey {
    let mut key = [0u8; COPY_KEY_LEN];
    key[..ChunkId::LEN].copy_from_slice(id.as_bytes());
    key[ChunkId::LEN..].copy_from_slice(&(!pack).to_be_bytes());
    key
}

/// The pack in the key of a copy; nothing if it is no such key.
pub(super) fn pack_of(key: &[u8]) -> Option<PackNumber> {
    let (_, number) = key.split_at_checked(ChunkId::LEN)?;
    Some(!u32::from_be_bytes(number.try_into().ok()?))
}

/// Where a chunk stands in a pack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) number: u32,
    pub(super) offset: u32,
    pub(super) stored_len: u32,
    pub(super) raw_len: u32,
    pub(super) encoding: Encoding,
}

impl Place {
    pub(super) fn new(number: usize, e: &PackEntry) -> Self {
        Self {
            number: number as u32,
            offset: e.offset,
            stored_len: e.stored_len,
            raw_len: e.raw_len,
            encoding: e.encoding,
        }
    }

    pub(super) fn in_pack(self, pack: PackId, kind: PackKind) -> ChunkLocation {
        ChunkLocation {
            pack,
            kind,
            number: self.number,
            offset: self.offset,
            stored_len: self.stored_len,
            raw_len: self.raw_len,
            encoding: self.encoding,
        }
    }

    /// Appends the value of a copy: about 10 bytes. Bit 0 of the first byte is the encoding; the
    /// others tell the decoded length where it is a power of two, as nearly all are.
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        let power = self.raw_len.is_power_of_two();
        let len = if power { self.raw_len.trailing_zeros() as u8 } else { LEN_FOLLOWS };
        out.push(self.encoding.code() | len << 1);
        if !power {
            put_varint(out, self.raw_len);
        }
        put_varint(out, self.offset);
        put_varint(out, self.stored_len);
        put_varint(out, self.number);
    }

    /// Reads a value; nothing if it is none.
    pub(super) fn decode(value: &[u8]) -> Option<Self> {
        let (&first, mut rest) = value.split_first()?;
        let encoding = Encoding::from_code(first & 1).ok()?;
        let raw_len = match first >> 1 {
            LEN_FOLLOWS => take_varint(&mut rest)?,
            power => 1u32.checked_shl(power.into())?,
        };
        let place = Self {
            encoding,
            raw_len,
            offset: take_varint(&mut rest)?,
            stored_len: take_varint(&mut rest)?,
            number: take_varint(&mut rest)?,
        };
        rest.is_empty().then_some(place)
    }
}

/// Stands for a decoded length that follows.
const LEN_FOLLOWS: u8 = 63;

fn put_varint(out: &mut Vec<u8>, mut n: u32) {
    while n >= 0x80 {
        out.push(n as u8 | 0x80);
        n >>= 7;
    }
    out.push(n as u8);
}

fn take_varint(bytes: &mut &[u8]) -> Option<u32> {
    let mut n = 0u32;
    for shift in (0..35).step_by(7) {
        let (&byte, rest) = bytes.split_first()?;
        *bytes = rest;
        n |= u32::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Some(n);
        }
    }
    None
}

/// The key of the one row of [`Counters`].
pub(super) const COUNTERS_KEY: [u8; 1] = [b'n'];
/// Rows of packs: this, and the number.
pub(super) const PREFIX_PACK: u8 = b'p';
/// Marks of complete points: this, and the point.
pub(super) const PREFIX_COMPLETE: u8 = b'd';
/// Marks of index objects that were taken in: this, and the object.
pub(super) const PREFIX_OBJECT: u8 = b'i';

pub(super) fn pack_key(number: PackNumber) -> [u8; 1 + NUMBER_LEN] {
    prefixed(PREFIX_PACK, &number.to_be_bytes())
}

pub(super) fn complete_key(id: PointId) -> [u8; 1 + PointId::LEN] {
    prefixed(PREFIX_COMPLETE, id.as_bytes())
}

pub(super) fn object_key(id: IndexId) -> [u8; 1 + IndexId::LEN] {
    prefixed(PREFIX_OBJECT, id.as_bytes())
}

fn prefixed<const N: usize, const M: usize>(prefix: u8, rest: &[u8; N]) -> [u8; M] {
    const { assert!(M == N + 1) };
    let mut key = [prefix; M];
    key[1..].copy_from_slice(rest);
    key
}

/// What the database counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counters {
    /// The number of the next pack.
    pub(super) next: PackNumber,
    /// Times that packs were forgotten, or added out of the order of their numbers: others then
    /// load all packs anew.
    pub(super) removals: u32,
    /// Times that all marks of complete points were cleared.
    pub(super) clearings: u32,
    /// Where the sweep for rows of forgotten packs goes on; zero: none is under way.
    pub(super) sweep_at: u32,
    /// Rows of forgotten packs, at most.
    pub(super) stale: u64,
    /// The same when the sweep began.
    pub(super) sweeping: u64,
}

impl Counters {
    const LEN: usize = 32;

    pub(super) fn encode(&self) -> [u8; Self::LEN] {
        let mut out = [0u8; Self::LEN];
        let small = [self.next, self.removals, self.clearings, self.sweep_at];
        for (to, n) in out.chunks_exact_mut(4).zip(small) {
            to.copy_from_slice(&n.to_le_bytes());
        }
        out[16..24].copy_from_slice(&self.stale.to_le_bytes());
        out[24..].copy_from_slice(&self.sweeping.to_le_bytes());
        out
    }

    pub(super) fn decode(v: &[u8]) -> Option<Self> {
        let v: &[u8; Self::LEN] = v.try_into().ok()?;
        let small = |i: usize| Some(u32::from_le_bytes(*v[i..].first_chunk()?));
        Some(Self {
            next: small(0)?,
            removals: small(4)?,
            clearings: small(8)?,
            sweep_at: small(12)?,
            stale: u64::from_le_bytes(*v[16..].first_chunk()?),
            sweeping: u64::from_le_bytes(*v[24..].first_chunk()?),
        })
    }
}

const INFO_LEN: usize = 45;

pub(super) fn encode_pack(id: &PackId, i: &PackInfo) -> [u8; INFO_LEN] {
    let mut out = [0u8; INFO_LEN];
    out[..4].copy_from_slice(&i.chunks.to_le_bytes());
    out[4..12].copy_from_slice(&i.len.to_le_bytes());
    out[12] = i.kind.code();
    out[13..29].copy_from_slice(i.session.as_bytes());
    out[29..].copy_from_slice(id.as_bytes());
    out
}

pub(super) fn decode_pack(v: &[u8]) -> Option<(PackId, PackInfo)> {
    let v: &[u8; INFO_LEN] = v.try_into().ok()?;
    let info = PackInfo {
        chunks: u32::from_le_bytes(*v.first_chunk()?),
        len: u64::from_le_bytes(*v[4..].first_chunk()?),
        kind: if v[12] == PackKind::Tree.code() { PackKind::Tree } else { PackKind::Data },
        session: PointId::from_bytes(*v[13..].first_chunk()?),
    };
    Some((PackId::from_bytes(*v.last_chunk()?), info))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn places_there_and_back(
            (number, offset) in any::<(u32, u32)>(),
            stored_len in any::<u32>(),
            raw_len in prop_oneof![any::<u32>(), (0u32..32).prop_map(|p| 1 << p)],
            zstd in any::<bool>(),
        ) {
            let encoding = if zstd { Encoding::Zstd } else { Encoding::Raw };
            let place = Place { number, offset, stored_len, raw_len, encoding };
            let mut value = Vec::new();
            place.encode(&mut value);
            prop_assert_eq!(Place::decode(&value), Some(place));
            prop_assert_eq!(Place::decode(&value[..value.len() - 1]), None);
        }

        #[test]
        fn any_value_is_nothing_or_a_place(value in proptest::collection::vec(any::<u8>(), 0..30)) {
            let _ = (Place::decode(&value), Counters::decode(&value), decode_pack(&value));
        }

        #[test]
        fn newer_packs_come_first(a in any::<u32>(), b in any::<u32>()) {
            let key = |n| copy_key(&ChunkId::from_bytes([7; 32]), n);
            prop_assert_eq!(key(a) < key(b), a > b);
            prop_assert_eq!(pack_of(&key(a)), Some(a));
        }
    }

    #[test]
    fn a_usual_place_is_small() {
        let mut value = Vec::new();
        let encoding = Encoding::Zstd;
        Place { number: 500, offset: 31 << 20, stored_len: 30_000, raw_len: 65_536, encoding }
            .encode(&mut value);
        assert_eq!(value.len(), 1 + 4 + 3 + 2);
    }
}
