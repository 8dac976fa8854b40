//! From logical addresses to places on devices. Source: btrfs documentation, "On-disk format", `CHUNK_ITEM`.

use std::collections::BTreeMap;

use super::tree::{Key, key_type};
use crate::Error;
use crate::fields::Fields;

/// The only unit of striping there is.
const STRIPE_BYTES: u64 = 64 << 10;
/// Most chunks a file system may have here: 256 TiB in chunks of 1 GiB.
const CHUNKS_MAX: usize = 1 << 18;
/// Most stripes of all chunks together.
const STRIPES_MAX: usize = 1 << 20;
/// The fixed part of a chunk item, and the length of a stripe in it.
const CHUNK_BYTES: usize = 48;
const STRIPE_ITEM_BYTES: usize = 32;

const RAID0: u64 = 1 << 3;
const RAID1: u64 = 1 << 4;
const DUP: u64 = 1 << 5;
const RAID10: u64 = 1 << 6;
const RAID5: u64 = 1 << 7;
const RAID6: u64 = 1 << 8;
const RAID1C3: u64 = 1 << 9;
const RAID1C4: u64 = 1 << 10;
const PROFILES: u64 = RAID0 | RAID1 | DUP | RAID10 | RAID5 | RAID6 | RAID1C3 | RAID1C4;

/// How a chunk spreads what it holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Profile {
    /// Every stripe holds all of it.
    Mirrored,
    /// Groups of so many stripes hold the same, and pieces go around the groups.
    Striped { copies: usize },
    /// With parity: only its name is known here.
    Parity(&'static str),
}

/// A part of a chunk on a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stripe {
    device_id: u64,
    /// Index of the device in the list of those that are there.
    device: Option<u16>,
    offset: u64,
}

#[derive(Debug)]
struct Chunk {
    len: u64,
    profile: Profile,
    stripes: Box<[Stripe]>,
}

/// One copy of a range.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Copy {
    pub(super) device: u16,
    pub(super) offset: u64,
}

/// Where a range is.
#[derive(Debug, Clone)]
pub(super) struct Mapped {
    /// How much of it is in one piece from its start on.
    pub(super) len: u64,
    /// The copies on devices that are there, in the order to try them; one at least.
    pub(super) copies: Vec<Copy>,
}

/// All chunks.
#[derive(Debug, Default)]
pub(super) struct Chunks {
    by_start: BTreeMap<u64, Chunk>,
    stripes: usize,
}

impl Chunks {
    /// Takes the chunks the superblock holds, enough to read the chunk tree. `device_of` finds a device by id and UUID.
    pub(super) fn system(
        bytes: &[u8],
        device_of: impl Fn(u64, &[u8; 16]) -> Option<u16>,
    ) -> Result<Self, Error> {
        let what = "the list of chunks in the superblock";
        let f = Fields::new(bytes, what);
        let mut chunks = Self::default();
        let mut at = 0;
        while at < bytes.len() {
            let key = Key::parse(f.slice(at, Key::BYTES)?, what)?;
            at += Key::BYTES;
            if key.kind != key_type::CHUNK {
                return Err(Error::damaged(format!("{what} holds an item of type {}", key.kind)));
            }
            let rest = f.slice(at, bytes.len() - at)?;
            at += chunks.add(key.offset, rest, &device_of)?;
        }
        Ok(chunks)
    }

    /// Takes a chunk item; answers how long it is.
    pub(super) fn add(
        &mut self,
        start: u64,
        bytes: &[u8],
        device_of: impl Fn(u64, &[u8; 16]) -> Option<u16>,
    ) -> Result<usize, Error> {
        let what = format!("the chunk at logical byte {start}");
        let bad = |text: String| Err(Error::damaged(format!("{what} {text}")));
        let f = Fields::new(bytes, &what);
        let (len, stripe_len, kind) = (f.le64(0)?, f.le64(16)?, f.le64(24)?);
        let (count, group) = (usize::from(f.le16(44)?), f.le16(46)?);
        if len == 0 || start.checked_add(len).is_none() || stripe_len != STRIPE_BYTES {
            return bad(format!("has {len} bytes in stripes of {stripe_len}"));
        }
        let Some(profile) = profile(kind, count, group) else {
            return bad(format!("has {count} stripes in groups of {group} for type {kind:#x}"));
        };
        let mut stripes = Vec::with_capacity(count.min(bytes.len() / STRIPE_ITEM_BYTES));
        for i in 0..count {
            let at = CHUNK_BYTES + i * STRIPE_ITEM_BYTES;
            let (device_id, offset) = (f.le64(at)?, f.le64(at + 8)?);
            let device = device_of(device_id, &f.array(at + 16)?);
            stripes.push(Stripe { device_id, device, offset });
        }
        self.stripes += count;
        if self.by_start.len() >= CHUNKS_MAX || self.stripes > STRIPES_MAX {
            let text = format!("more than {CHUNKS_MAX} chunks or {STRIPES_MAX} stripes");
            return Err(Error::new(crate::ErrorKind::Limit, text));
        }
        self.insert(start, Chunk { len, profile, stripes: stripes.into() }, &what)?;
        Ok(CHUNK_BYTES + count * STRIPE_ITEM_BYTES)
    }

    fn insert(&mut self, start: u64, chunk: Chunk, what: &str) -> Result<(), Error> {
        let before = self.by_start.range(..start).next_back();
        let behind = self.by_start.range(start..).next();
        let overlaps = before.is_some_and(|(s, c)| s + c.len > start)
            || behind.is_some_and(|(s, _)| *s > start && *s < start + chunk.len);
        if overlaps {
            return Err(Error::damaged(format!("{what} lies over another")));
        }
        // The superblock's chunks come again in the chunk tree.
        self.by_start.insert(start, chunk);
        Ok(())
    }

    /// Where the bytes from `logical` on are.
    ///
    /// # Errors
    /// `Damaged` for what is in no chunk, or only on devices that are not there; `Unsupported` for RAID 5 and 6.
    pub(super) fn map(&self, logical: u64) -> Result<Mapped, Error> {
        let found = self.by_start.range(..=logical).next_back();
        let Some((start, chunk)) = found.filter(|(s, c)| logical - **s < c.len) else {
            return Err(Error::damaged(format!("logical byte {logical} is in no chunk")));
        };
        let within = logical - start;
        let left = chunk.len - within;
        let (stripes, offset, len) = match chunk.profile {
            Profile::Mirrored => (&chunk.stripes[..], within, left),
            Profile::Striped { copies } => {
                let groups = (chunk.stripes.len() / copies) as u64;
                let number = within / STRIPE_BYTES;
                let in_stripe = within % STRIPE_BYTES;
                let first = (number % groups) as usize * copies;
                let offset = number / groups * STRIPE_BYTES + in_stripe;
                (&chunk.stripes[first..first + copies], offset, left.min(STRIPE_BYTES - in_stripe))
            }
            Profile::Parity(name) => {
                return Err(Error::unsupported(format!(
                    "logical byte {logical} is in a chunk of profile {name}, which is not read here"
                )));
            }
        };
        let mut copies: Vec<Copy> = stripes
            .iter()
            .filter_map(|s| Some(Copy { device: s.device?, offset: s.offset.checked_add(offset)? }))
            .collect();
        if copies.is_empty() {
            let ids: Vec<_> = stripes.iter().map(|s| s.device_id.to_string()).collect();
            return Err(Error::new(
                crate::ErrorKind::Io,
                format!(
                    "logical byte {logical} is only on devices that are not there: number {}",
                    ids.join(", ")
                ),
            ));
        }
        // Devices are listed with those that missed writes last.
        copies.sort_by_key(|copy| copy.device);
        Ok(Mapped { len, copies })
    }

    /// Names of the profiles in use that are not read here.
    pub(super) fn unread(&self) -> Vec<&'static str> {
        let mut names: Vec<_> = self
            .by_start
            .values()
            .filter_map(|c| if let Profile::Parity(name) = c.profile { Some(name) } else { None })
            .collect();
        names.sort_unstable();
        names.dedup();
        names
    }
}

/// The profile of a chunk's type, if so many stripes go with it.
fn profile(kind: u64, count: usize, group: u16) -> Option<Profile> {
    let exactly = |n| (count == n).then_some(Profile::Mirrored);
    match kind & PROFILES {
        0 => exactly(1),
        DUP | RAID1 => exactly(2),
        RAID1C3 => exactly(3),
        RAID1C4 => exactly(4),
        RAID0 => (count >= 1).then_some(Profile::Striped { copies: 1 }),
        RAID10 => (count >= 2 && count.is_multiple_of(2) && group == 2)
            .then_some(Profile::Striped { copies: 2 }),
        RAID5 => (count >= 2).then_some(Profile::Parity("raid5")),
        RAID6 => (count >= 3).then_some(Profile::Parity("raid6")),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn item(len: u64, kind: u64, group: u16, stripes: &[(u64, u64)]) -> Vec<u8> {
        let mut bytes = vec![0; CHUNK_BYTES];
        bytes[0..8].copy_from_slice(&len.to_le_bytes());
        bytes[16..24].copy_from_slice(&STRIPE_BYTES.to_le_bytes());
        bytes[24..32].copy_from_slice(&kind.to_le_bytes());
        bytes[44..46].copy_from_slice(&(stripes.len() as u16).to_le_bytes());
        bytes[46..48].copy_from_slice(&group.to_le_bytes());
        for (device, offset) in stripes {
            bytes.extend(device.to_le_bytes());
            bytes.extend(offset.to_le_bytes());
            bytes.extend([0; 16]);
        }
        bytes
    }

    /// Devices 1 to 4 are there, as 0 to 3.
    fn four(id: u64, _: &[u8; 16]) -> Option<u16> {
        (1..=4).contains(&id).then(|| id as u16 - 1)
    }

    #[test]
    fn striped_and_mirrored() {
        let mut chunks = Chunks::default();
        let all = [(1, 0), (2, 1 << 20), (3, 2 << 20), (4, 3 << 20)];
        chunks.add(1 << 20, &item(1 << 20, RAID10, 2, &all), four).expect("it fits");
        let mapped = chunks.map((1 << 20) + 3 * STRIPE_BYTES + 5).expect("it is there");
        assert_eq!(mapped.len, STRIPE_BYTES - 5);
        let offset = |start| start + STRIPE_BYTES + 5;
        assert_eq!(
            mapped.copies,
            [
                Copy { device: 2, offset: offset(2 << 20) },
                Copy { device: 3, offset: offset(3 << 20) }
            ]
        );
        chunks.add(4 << 20, &item(1 << 20, RAID1, 1, &[(9, 0), (2, 7)]), four).expect("it fits");
        let mapped = chunks.map((4 << 20) + 1).expect("a mirror is there");
        assert_eq!(mapped.copies, [Copy { device: 1, offset: 8 }]);
        assert_eq!(mapped.len, (1 << 20) - 1);
        chunks.add(8 << 20, &item(1 << 20, 0, 1, &[(9, 0)]), four).expect("it fits");
        let e = chunks.map(8 << 20).expect_err("its device is gone");
        assert!(e.to_string().contains("number 9"), "{e}");
        assert!(chunks.map(0).is_err() && chunks.map(2 << 20).is_err());
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let mut chunks = Chunks::default();
        chunks.add(1 << 20, &item(1 << 20, 0, 1, &[(1, 0)]), four).expect("it fits");
        for (start, bytes) in [
            (0, item((1 << 20) + 1, 0, 1, &[(1, 0)])),
            ((1 << 20) + 4096, item(1, 0, 1, &[(1, 0)])),
            (u64::MAX, item(2, 0, 1, &[(1, 0)])),
            (8 << 20, item(0, 0, 1, &[(1, 0)])),
            (8 << 20, item(1, RAID1, 1, &[(1, 0)])),
            (8 << 20, item(1, RAID10, 0, &[(1, 0), (2, 0)])),
            (8 << 20, item(1, RAID0, 1, &[])),
            (8 << 20, item(1, RAID0 | RAID1, 1, &[(1, 0)])),
            (8 << 20, item(1, 0, 1, &[(1, 0)])[..70].to_vec()),
        ] {
            assert!(chunks.add(start, &bytes, four).is_err(), "chunk at {start}");
        }
        chunks.add(8 << 20, &item(1, RAID5, 1, &[(1, 0), (2, 0)]), four).expect("it is named");
        assert_eq!(chunks.unread(), ["raid5"]);
        let e = chunks.map(8 << 20).expect_err("not read");
        assert_eq!(e.kind(), crate::ErrorKind::Unsupported);
    }
}
