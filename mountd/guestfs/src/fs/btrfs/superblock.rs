//! The superblock. Source: btrfs documentation, "On-disk format", Superblock.

use super::sums::SumKind;
use crate::fields::Fields;
use crate::{Error, Media};

/// Where the copies are.
const PLACES: [u64; 3] = [64 << 10, 64 << 20, 256 << 30];
/// The length of one.
const SUPER_BYTES: usize = 4096;
const MAGIC: &[u8; 8] = b"_BHRfS_M";
const MAGIC_AT: u64 = 0x40;
/// The checksum of superblocks and tree blocks covers what follows its own field.
pub(super) const SUMMED_FROM: usize = 32;
/// The place for chunks of system trees in the superblock.
const SYSTEM_CHUNKS_MAX: usize = 2048;

const FLAG_SEEDING: u64 = 1 << 32;
const FLAG_METADUMP: u64 = 1 << 33 | 1 << 34;
const FLAG_CHANGING: u64 = 1 << 35 | 1 << 36;
const METADATA_UUID: u64 = 1 << 10;

/// Features this reader knows: what they change is read, or does not matter to one that only reads.
const KNOWN: u64 = 0x3ff | METADATA_UUID | 1 << 11 | 1 << 16;
/// Features it can only name.
const NAMED: [(u64, &str); 3] =
    [(1 << 12, "zoned"), (1 << 13, "extent-tree-v2"), (1 << 14, "raid-stripe-tree")];

/// The root of a tree, as its owner names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Root {
    /// Logical address of the root block.
    pub(super) address: u64,
    pub(super) level: u8,
    pub(super) generation: u64,
}

/// What is kept of a superblock.
#[derive(Debug, Clone)]
pub(super) struct Superblock {
    pub(super) fsid: [u8; 16],
    /// What tree blocks bear: the fsid the file system was made with.
    pub(super) metadata_fsid: [u8; 16],
    pub(super) generation: u64,
    pub(super) root: Root,
    pub(super) chunk_root: Root,
    /// A log of fsyncs was written and not replayed.
    pub(super) has_log: bool,
    pub(super) total_bytes: u64,
    pub(super) used_bytes: u64,
    pub(super) devices: u64,
    pub(super) sector_bytes: u32,
    pub(super) node_bytes: u32,
    pub(super) sums: SumKind,
    /// It is a device others grew from, and is only read since.
    pub(super) is_seed: bool,
    pub(super) device_id: u64,
    pub(super) device_uuid: [u8; 16],
    pub(super) label: String,
    pub(super) system_chunks: Vec<u8>,
    /// Which copy it was, if not the first.
    pub(super) copy: usize,
}

/// Whether the first superblock's place bears the mark of btrfs.
pub(super) fn is_here(media: &Media) -> bool {
    let mut magic = [0; 8];
    media.size_bytes() >= PLACES[0] + SUPER_BYTES as u64
        && media.read(PLACES[0] + MAGIC_AT, &mut magic, "the mark of btrfs").is_ok()
        && &magic == MAGIC
}

/// The newest good superblock of a device: the first copy, or one of the same device that is newer; another if
/// the first is damaged.
pub(super) fn read(media: &Media) -> Result<Superblock, Error> {
    let mut best: Option<Superblock> = None;
    let mut first_error = None;
    for (copy, at) in PLACES.into_iter().enumerate() {
        if copy > 0 && at + SUPER_BYTES as u64 > media.size_bytes() {
            break;
        }
        match read_copy(media, copy, at) {
            Ok(found) => {
                // A copy of another file system is what was there before this one was made.
                let newer = best.as_ref().is_none_or(|best| {
                    best.device_uuid == found.device_uuid && best.generation < found.generation
                });
                if newer {
                    best = Some(found);
                }
            }
            // A feature that is not read is no damage that a copy would help against.
            Err(e) if copy == 0 && e.kind() != crate::ErrorKind::Damaged => return Err(e),
            Err(e) if copy == 0 => first_error = Some(e),
            Err(_) => {}
        }
    }
    match (best, first_error) {
        (Some(best), _) => Ok(best),
        (None, Some(e)) => Err(e),
        (None, None) => Err(Error::damaged("there is no superblock of btrfs")),
    }
}

fn read_copy(media: &Media, copy: usize, at: u64) -> Result<Superblock, Error> {
    let bytes = media.bytes(at, SUPER_BYTES, "the superblock")?;
    let what = format!("the superblock at byte {at}");
    let f = Fields::new(&bytes, &what);
    if &f.array::<8>(0x40)? != MAGIC {
        return Err(Error::damaged(format!("{what} does not bear the mark of btrfs")));
    }
    let sums = SumKind::new(f.le16(0xc4)?)?;
    if !sums.fits(f.slice(SUMMED_FROM, SUPER_BYTES - SUMMED_FROM)?, &bytes) {
        return Err(Error::damaged(format!("the checksum of {what} does not fit")));
    }
    if f.le64(0x30)? != at {
        return Err(Error::damaged(format!("{what} says that it lies at byte {}", f.le64(0x30)?)));
    }
    refuse(&f)?;
    let found = parse(&f, sums, copy)?;
    check(&found, &what)?;
    Ok(found)
}

/// Refuses what this reader does not know, by name.
fn refuse(f: &Fields<'_>) -> Result<(), Error> {
    let features = f.le64(0xbc)?;
    let flags = f.le64(0x38)?;
    for (bit, name) in NAMED {
        if features & bit != 0 {
            return Err(Error::unsupported(format!("btrfs with the feature {name}")));
        }
    }
    if features & !KNOWN != 0 {
        let text = format!("btrfs with unknown features (bits {:#x})", features & !KNOWN);
        return Err(Error::unsupported(text));
    }
    if flags & FLAG_METADUMP != 0 {
        return Err(Error::unsupported("a dump of the metadata of a btrfs, without content"));
    }
    if flags & FLAG_CHANGING != 0 {
        return Err(Error::unsupported("a btrfs whose UUID was being changed"));
    }
    Ok(())
}

fn parse(f: &Fields<'_>, sums: SumKind, copy: usize) -> Result<Superblock, Error> {
    let fsid = f.array::<16>(0x20)?;
    let other_fsid = f.le64(0xbc)? & METADATA_UUID != 0;
    let generation = f.le64(0x48)?;
    let system_len = f.le32(0xa0)? as usize;
    if system_len > SYSTEM_CHUNKS_MAX {
        return Err(Error::damaged(format!("the superblock has {system_len} bytes of chunks")));
    }
    let label = f.slice(0x12b, 256)?;
    let label = label.split(|b| *b == 0).next().unwrap_or_default();
    Ok(Superblock {
        fsid,
        metadata_fsid: if other_fsid { f.array(0x23b)? } else { fsid },
        generation,
        root: Root { address: f.le64(0x50)?, level: f.u8(0xc6)?, generation },
        chunk_root: Root { address: f.le64(0x58)?, level: f.u8(0xc7)?, generation: f.le64(0xa4)? },
        has_log: f.le64(0x60)? != 0,
        total_bytes: f.le64(0x70)?,
        used_bytes: f.le64(0x78)?,
        devices: f.le64(0x88)?,
        sector_bytes: f.le32(0x90)?,
        node_bytes: f.le32(0x94)?,
        sums,
        is_seed: f.le64(0x38)? & FLAG_SEEDING != 0,
        device_id: f.le64(0xc9)?,
        device_uuid: f.array(0xc9 + 66)?,
        label: String::from_utf8_lossy(label).into_owned(),
        system_chunks: f.slice(0x32b, system_len)?.to_vec(),
        copy,
    })
}

fn check(found: &Superblock, what: &str) -> Result<(), Error> {
    let size = |bytes: u32| bytes.is_power_of_two() && (4096..=65_536).contains(&bytes);
    if !size(found.sector_bytes) || !size(found.node_bytes) {
        return Err(Error::damaged(format!(
            "{what} has sectors of {} and tree blocks of {} bytes",
            found.sector_bytes, found.node_bytes
        )));
    }
    Ok(())
}
