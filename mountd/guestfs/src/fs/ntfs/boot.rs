//! The boot sector: where everything starts, and in which units.

use crate::fields::Fields;
use crate::{Error, Media};

/// "NTFS    " at byte 3.
const MAGIC: &[u8; 8] = b"NTFS    ";
const SECTOR_BYTES: usize = 512;
/// The largest cluster Windows makes.
const CLUSTER_MAX: u64 = 2 << 20;
const RECORD_MIN: u64 = 512;
const RECORD_MAX: u64 = 64 << 10;
/// Cluster numbers are 63 bits signed, and offsets in bytes must be too.
const VOLUME_MAX: u64 = 1 << 62;

/// What the boot sector says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Boot {
    pub(super) cluster_bytes: u64,
    pub(super) clusters: u64,
    pub(super) size_bytes: u64,
    pub(super) record_bytes: u64,
    pub(super) mft_at: u64,
    pub(super) mirror_at: u64,
    pub(super) serial: u64,
}

/// Whether a boot sector of NTFS is at the start.
pub(super) fn is_here(media: &Media) -> bool {
    let mut magic = [0; 8];
    media.read(3, &mut magic, "the boot sector").is_ok() && &magic == MAGIC
}

impl Boot {
    /// The first sector, or its copy behind the volume; and whether it was the copy.
    pub(super) fn read(media: &Media) -> Result<(Self, bool), Error> {
        let first = Self::at(media, 0);
        let Err(e) = first else { return first.map(|boot| (boot, false)) };
        let last = media.size_bytes().saturating_sub(SECTOR_BYTES as u64);
        match Self::at(media, last) {
            Ok(boot) => Ok((boot, true)),
            Err(_) => Err(e),
        }
    }

    fn at(media: &Media, at: u64) -> Result<Self, Error> {
        let what = format!("the NTFS boot sector at byte {at}");
        let bytes = media.bytes(at, SECTOR_BYTES, &what)?;
        Self::parse(&bytes, &what)
    }

    fn parse(bytes: &[u8], what: &str) -> Result<Self, Error> {
        let bad = |text: String| Error::damaged(format!("{what}: {text}"));
        let fields = Fields::new(bytes, what);
        if &fields.array::<8>(3)? != MAGIC {
            return Err(bad("it is not one of NTFS".into()));
        }
        let sector_bytes = u64::from(fields.le16(11)?);
        if !sector_bytes.is_power_of_two() || !(256..=4096).contains(&sector_bytes) {
            return Err(bad(format!("sectors of {sector_bytes} bytes")));
        }
        // Up to 128 a number of sectors, above it the negative of a power of two of them.
        let sectors = match fields.u8(13)? {
            n @ 1..=0x80 if n.is_power_of_two() => u64::from(n),
            n @ 0xe0.. => 1 << (256 - u32::from(n)),
            n => return Err(bad(format!("{n} sectors in a cluster"))),
        };
        let cluster_bytes = sector_bytes * sectors;
        if cluster_bytes > CLUSTER_MAX {
            return Err(bad(format!("clusters of {cluster_bytes} bytes")));
        }
        let size_bytes = fields.le64(0x28)?.saturating_mul(sector_bytes);
        if size_bytes == 0 || size_bytes > VOLUME_MAX {
            return Err(bad(format!("a volume of {size_bytes} bytes")));
        }
        let clusters = size_bytes / cluster_bytes;
        let place = |at: usize, name: &str| {
            let cluster = fields.le64(at)?;
            if cluster >= clusters {
                return Err(bad(format!("{name} begins in cluster {cluster} of {clusters}")));
            }
            Ok(cluster * cluster_bytes)
        };
        let (mft_at, mirror_at) = (place(0x30, "the MFT")?, place(0x38, "the MFT's copy")?);
        let record_bytes = match fields.u8(0x40)? {
            n @ 1..=0x7f => u64::from(n) * cluster_bytes,
            n @ 0xe0.. => 1 << (256 - u32::from(n)),
            n => return Err(bad(format!("MFT records have size code {n}"))),
        };
        if !record_bytes.is_power_of_two() || !(RECORD_MIN..=RECORD_MAX).contains(&record_bytes) {
            return Err(bad(format!("MFT records of {record_bytes} bytes")));
        }
        let serial = fields.le64(0x48)?;
        Ok(Self { cluster_bytes, clusters, size_bytes, record_bytes, mft_at, mirror_at, serial })
    }
}
