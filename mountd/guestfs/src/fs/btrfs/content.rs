//! The bytes of files: read in large pieces, compared with their checksums sector by sector, from another copy where one is bad.
//! Source: btrfs documentation, "On-disk format", `EXTENT_CSUM`.

use super::file::Packed;
use super::superblock::Root;
use super::tree::{Cursor, Key, key_type};
use super::unpack::unpack;
use super::volume::Volume;
use crate::Error;

/// The object all checksums belong to.
const SUMS_OBJECT: u64 = u64::MAX - 9;
/// Most read at once where a copy is made on the way.
const PIECE_BYTES: u64 = 1 << 20;

/// Reads content by logical addresses.
#[derive(Debug, Clone, Copy)]
pub(super) struct Content<'a> {
    pub(super) volume: &'a Volume,
    /// The tree of checksums; none if the content has none.
    pub(super) sums: Option<Root>,
}

impl Content<'_> {
    /// Fills `buf` from any logical address on.
    pub(super) fn read(&self, address: u64, buf: &mut [u8]) -> Result<(), Error> {
        let sector = u64::from(self.volume.superblock.sector_bytes);
        let (mut at, mut rest) = (address, buf);
        while !rest.is_empty() {
            let skip = at % sector;
            let want = (rest.len() as u64).min(PIECE_BYTES);
            let taken = if skip == 0 && want >= sector {
                let len = want - want % sector;
                self.sectors(at, &mut rest[..len as usize])?;
                len
            } else {
                // The sectors around what is wanted of an end.
                let mut around = vec![0; sector as usize];
                self.sectors(at - skip, &mut around)?;
                let len = want.min(sector - skip);
                let part = &around[skip as usize..(skip + len) as usize];
                rest[..len as usize].copy_from_slice(part);
                len
            };
            at = at.saturating_add(taken);
            rest = &mut rest[taken as usize..];
        }
        Ok(())
    }

    /// A compressed extent, decoded.
    pub(super) fn unpacked(&self, packed: &Packed) -> Result<Vec<u8>, Error> {
        let mut stored = vec![0; packed.disk_bytes as usize];
        self.read(packed.address, &mut stored)?;
        let sector = self.volume.superblock.sector_bytes as usize;
        let len = packed.decoded_bytes as usize;
        unpack(packed.compression, &stored, len, sector, sector - 1).map_err(|e| {
            let text = format!("the extent at logical byte {}", packed.address);
            crate::Error::new(e.kind(), text).with_source(e)
        })
    }

    /// Fills `buf` with whole sectors.
    fn sectors(&self, address: u64, buf: &mut [u8]) -> Result<(), Error> {
        let (mut at, mut rest) = (address, buf);
        while !rest.is_empty() {
            let mapped = self.volume.map(at)?;
            let len = (rest.len() as u64).min(mapped.len) as usize;
            let (part, behind) = rest.split_at_mut(len);
            self.piece(at, part)?;
            rest = behind;
            at = at.saturating_add(len as u64);
        }
        Ok(())
    }

    /// Fills `part`, which is in one piece on the devices.
    fn piece(&self, at: u64, part: &mut [u8]) -> Result<(), Error> {
        let copies = self.volume.map(at)?.copies;
        let Some(root) = self.sums else {
            let mut first = None;
            for copy in copies {
                match self.volume.read_copy(copy, part) {
                    Ok(()) => return Ok(()),
                    Err(e) => first = first.or(Some(e)),
                }
            }
            return Err(first.unwrap_or_else(|| Error::damaged("content without copies")));
        };
        let sector = self.volume.superblock.sector_bytes as usize;
        if !part.len().is_multiple_of(sector) {
            let text = format!("the chunk of logical byte {at} ends within a sector");
            return Err(Error::damaged(text));
        }
        let sums = self.sums_of(root, at, part.len() / sector)?;
        let kind = self.volume.superblock.sums;
        let was_read = copies.iter().position(|copy| self.volume.read_copy(*copy, part).is_ok());
        for (i, (bytes, sum)) in
            part.chunks_exact_mut(sector).zip(sums.chunks_exact(kind.len())).enumerate()
        {
            if was_read.is_none() || !kind.fits(bytes, sum) {
                self.other_copy(at + (i * sector) as u64, bytes, sum)?;
            }
        }
        Ok(())
    }

    /// Fills `bytes`, one sector, from the first copy that fits its checksum.
    fn other_copy(&self, at: u64, bytes: &mut [u8], sum: &[u8]) -> Result<(), Error> {
        let copies = self.volume.map(at)?.copies;
        let mut not_read = None;
        for copy in &copies {
            match self.volume.read_copy(*copy, bytes) {
                Ok(()) if self.volume.superblock.sums.fits(bytes, sum) => return Ok(()),
                Ok(()) => {}
                Err(e) => not_read = Some(e),
            }
        }
        if let Some(e) = not_read {
            return Err(e);
        }
        let places: Vec<_> = copies
            .iter()
            .map(|c| {
                let device = self.volume.index_of(*c).unwrap_or_default();
                format!("byte {} of device {device}", c.offset)
            })
            .collect();
        Err(Error::damaged(format!(
            "content does not fit its checksum in any copy ({})",
            places.join(", ")
        )))
    }

    /// The checksums of `count` sectors from `address` on, one behind the other.
    fn sums_of(&self, root: Root, address: u64, count: usize) -> Result<Vec<u8>, Error> {
        let superblock = &self.volume.superblock;
        let (sector, len) = (u64::from(superblock.sector_bytes), superblock.sums.len());
        let mut sums = Vec::with_capacity(count * len);
        let key = Key::new(SUMS_OBJECT, key_type::EXTENT_SUM, address);
        let mut cursor = Cursor::at_or_before(self.volume, root, key)?;
        while sums.len() < count * len {
            let at = address + (sums.len() / len) as u64 * sector;
            let item = cursor.item()?.filter(|i| i.key.is_of(SUMS_OBJECT, key_type::EXTENT_SUM));
            let Some(item) = item.filter(|i| i.key.offset <= at) else {
                let text = format!("content at logical byte {at} has no checksum");
                return Err(Error::damaged(text));
            };
            let skip = (at - item.key.offset) / sector;
            let skip = usize::try_from(skip).ok().and_then(|n| n.checked_mul(len));
            let there = skip.and_then(|skip| item.data().get(skip..)).unwrap_or_default();
            let take = (count * len - sums.len()).min(there.len() / len * len);
            if take == 0 && !sums.is_empty() || !item.key.offset.is_multiple_of(sector) {
                let text = format!("content at logical byte {at} has no checksum");
                return Err(Error::damaged(text));
            }
            sums.extend(&there[..take]);
            cursor.advance()?;
        }
        Ok(sums)
    }
}
