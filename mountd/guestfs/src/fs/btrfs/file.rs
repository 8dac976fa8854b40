//! Where the bytes of a file are. Source: btrfs documentation, "On-disk format", `EXTENT_DATA`.

use super::inode::Inode;
use super::tree::{Cursor, Item, Key, key_type};
use super::volume::Volume;
use crate::Error;

/// The fixed part of an extent item before inline content, and all of one that refers to an extent.
const INLINE_AT: usize = 21;
const INLINE: u8 = 0;
const REGULAR: u8 = 1;
const PREALLOCATED: u8 = 2;
/// The longest compressed extent: 128 KiB is what kernels write, before and after; this is what is read here.
pub(super) const COMPRESSED_MAX: u64 = 1 << 20;

/// How an extent is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Compression {
    /// A stream of zlib.
    Zlib,
    /// LZO1X in pieces of a sector each.
    Lzo,
    /// A frame of Zstandard.
    Zstd,
}

/// What a compressed extent is: where, how long on the disk, how long decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Packed {
    pub(super) address: u64,
    pub(super) disk_bytes: u64,
    pub(super) decoded_bytes: u64,
    pub(super) compression: Compression,
}

/// Where a range of a file is.
#[derive(Debug, Clone)]
pub(super) enum Source {
    Hole,
    Preallocated,
    /// In the item itself.
    Inline {
        item: Item,
        decoded_bytes: u64,
        compression: Option<Compression>,
    },
    /// As it is, from this logical address on.
    Plain {
        address: u64,
    },
    /// In a compressed extent, from `skip` of what it decodes to on.
    Packed {
        packed: Packed,
        skip: u64,
    },
}

/// A range of a file.
#[derive(Debug, Clone)]
pub(super) struct Segment {
    pub(super) start: u64,
    pub(super) end: u64,
    pub(super) source: Source,
}

/// The segments of a file from an offset on: in order, without gaps, the first one around the offset, to the file's size.
pub(super) struct Segments<'a> {
    cursor: Cursor<'a>,
    inode: u64,
    size: u64,
    sector: u64,
    /// Where the next segment starts.
    at: u64,
    /// A segment that comes behind a hole.
    waiting: Option<Segment>,
}

impl<'a> Segments<'a> {
    pub(super) fn new(volume: &'a Volume, inode: &Inode, offset: u64) -> Result<Self, Error> {
        let number = inode.stat.node.inode;
        let key = Key::new(number, key_type::EXTENT_DATA, offset);
        let mut cursor = Cursor::at_or_before(volume, inode.root, key)?;
        if cursor.item()?.is_some_and(|item| item.key < Key { offset: 0, ..key }) {
            cursor.advance()?;
        }
        let sector = u64::from(volume.superblock.sector_bytes);
        let size = inode.stat.size_bytes;
        let mut segments = Self { cursor, inode: number, size, sector, at: 0, waiting: None };
        // The item before may end before the offset: then a hole starts where it ends.
        segments.waiting = segments.take()?;
        segments.at = match &segments.waiting {
            Some(first) if first.start <= offset && first.end > offset => first.start,
            Some(first) if first.end <= offset => {
                let end = first.end;
                segments.waiting = None;
                end
            }
            _ => offset.min(size),
        };
        Ok(segments)
    }

    /// The next one; none at the end of the file.
    pub(super) fn next(&mut self) -> Result<Option<Segment>, Error> {
        if self.at >= self.size {
            return Ok(None);
        }
        if self.waiting.is_none() {
            self.waiting = self.take()?;
        }
        let mut segment = match self.waiting.take() {
            Some(next) if next.start > self.at => {
                let hole = Segment { start: self.at, end: next.start, source: Source::Hole };
                self.waiting = Some(next);
                hole
            }
            Some(next) if next.start < self.at => {
                return Err(Error::damaged(format!(
                    "the extents of inode {} lie over each other at byte {}",
                    self.inode, next.start
                )));
            }
            Some(next) => next,
            None => Segment { start: self.at, end: self.size, source: Source::Hole },
        };
        segment.end = segment.end.min(self.size);
        self.at = segment.end;
        Ok(Some(segment))
    }

    /// Reads the item the cursor is at, if it is one of the file.
    fn take(&mut self) -> Result<Option<Segment>, Error> {
        let Some(item) = self.cursor.item()? else { return Ok(None) };
        if !item.key.is_of(self.inode, key_type::EXTENT_DATA) {
            return Ok(None);
        }
        self.cursor.advance()?;
        parse(item, self.sector).map(Some)
    }
}

fn parse(item: Item, sector: u64) -> Result<Segment, Error> {
    let f = item.fields();
    let start = item.key.offset;
    let (ram_bytes, encryption, encoding) = (f.le64(8)?, f.u8(17)?, f.le16(18)?);
    if encryption != 0 || encoding != 0 {
        let text = format!("content with encryption {encryption} and encoding {encoding}");
        return Err(Error::unsupported(text));
    }
    let compression = match f.u8(16)? {
        0 => None,
        1 => Some(Compression::Zlib),
        2 => Some(Compression::Lzo),
        3 => Some(Compression::Zstd),
        other => return Err(Error::unsupported(format!("content with compression {other}"))),
    };
    match f.u8(20)? {
        INLINE => inline(item, ram_bytes, compression),
        kind @ (REGULAR | PREALLOCATED) => {
            let (address, disk_bytes) = (f.le64(21)?, f.le64(29)?);
            let (skip, len) = (f.le64(37)?, f.le64(45)?);
            let ends = start.checked_add(len).zip(skip.checked_add(len));
            let Some((end, skip_end)) = ends.filter(|_| len > 0) else {
                return Err(item.damaged(format!("covers {len} bytes from {skip} on")));
            };
            let aligned = [start, len, skip, address, disk_bytes];
            if !aligned.iter().all(|n| n.is_multiple_of(sector)) {
                return Err(item.damaged("is not aligned to sectors"));
            }
            let source = match (address, compression) {
                (0, _) => Source::Hole,
                _ if kind == PREALLOCATED => Source::Preallocated,
                (_, None) => {
                    if skip_end > disk_bytes || address.checked_add(disk_bytes).is_none() {
                        return Err(item.damaged("goes beyond its extent"));
                    }
                    Source::Plain { address: address + skip }
                }
                (_, Some(compression)) => {
                    if skip_end > ram_bytes || ram_bytes.max(disk_bytes) > COMPRESSED_MAX {
                        return Err(item.damaged("goes beyond its compressed extent"));
                    }
                    let packed =
                        Packed { address, disk_bytes, decoded_bytes: ram_bytes, compression };
                    Source::Packed { packed, skip }
                }
            };
            Ok(Segment { start, end, source })
        }
        other => Err(item.damaged(format!("is an extent of type {other}"))),
    }
}

fn inline(
    item: Item,
    decoded_bytes: u64,
    compression: Option<Compression>,
) -> Result<Segment, Error> {
    let stored = item.data().len().saturating_sub(INLINE_AT) as u64;
    // An inline extent is shorter than a tree block, decoded or not: it is at most a sector.
    let fits = match compression {
        None => decoded_bytes <= stored,
        Some(_) => decoded_bytes <= COMPRESSED_MAX,
    };
    if item.key.offset != 0 || decoded_bytes == 0 || !fits {
        let text = format!("holds {stored} bytes of content for {decoded_bytes}");
        return Err(item.damaged(text));
    }
    Ok(Segment {
        start: 0,
        end: decoded_bytes,
        source: Source::Inline { item, decoded_bytes, compression },
    })
}

/// The stored bytes of an inline extent.
pub(super) fn inline_bytes(item: &Item) -> &[u8] {
    item.data().get(INLINE_AT..).unwrap_or_default()
}
