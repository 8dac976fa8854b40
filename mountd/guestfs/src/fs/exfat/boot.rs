//! The boot region: twelve sectors with a checksum, and a copy of them (exFAT specification, section 3).

use crate::fields::Fields;
use crate::{Error, Media};

/// "EXFAT   " at byte 3.
const MAGIC: &[u8; 8] = b"EXFAT   ";
const SECTOR_BYTES: usize = 512;
/// Sectors before the checksum, and where the copy starts.
const SUMMED_SECTORS: usize = 11;
const COPY_SECTOR: u64 = 12;
/// 2 to the power of this: sectors of 512 to 4096 bytes, clusters of 32 MiB at most.
const SECTOR_SHIFTS: std::ops::RangeInclusive<u8> = 9..=12;
const CLUSTER_SHIFT_MAX: u8 = 25;
const CLUSTERS_MAX: u32 = 0xffff_fff5;

/// What the boot sector says, in bytes from the start of the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Boot {
    pub(super) cluster_bytes: u64,
    /// Clusters are numbered from 2 to one more than this.
    pub(super) clusters: u32,
    pub(super) size_bytes: u64,
    /// The table in use.
    pub(super) table: u64,
    pub(super) data_at: u64,
    pub(super) root_cluster: u32,
    pub(super) serial: u32,
    pub(super) dirty: bool,
    pub(super) failing: bool,
    /// Two tables and two bitmaps, of which the second may be in use (TexFAT).
    pub(super) transactions: bool,
    pub(super) second_active: bool,
}

/// Whether a boot sector of exFAT is at the start. Reads some bytes only.
pub(super) fn is_here(media: &Media) -> bool {
    let mut magic = [0; 8];
    media.read(3, &mut magic, "the boot sector").is_ok() && &magic == MAGIC
}

impl Boot {
    /// The boot region, or its copy; and whether it was the copy.
    pub(super) fn read(media: &Media) -> Result<(Self, bool), Error> {
        let e = match Self::at(media, 0) {
            Ok(boot) => return Ok((boot, false)),
            Err(e) => e,
        };
        for shift in SECTOR_SHIFTS {
            if let Ok(boot) = Self::at(media, COPY_SECTOR << shift) {
                return Ok((boot, true));
            }
        }
        Err(e)
    }

    fn at(media: &Media, at: u64) -> Result<Self, Error> {
        let what = format!("the exFAT boot sector at byte {at}");
        let bytes = media.bytes(at, SECTOR_BYTES, &what)?;
        let fields = Fields::new(&bytes, &what);
        if &fields.array::<8>(3)? != MAGIC {
            return Err(Error::damaged(format!("{what}: it is not one of exFAT")));
        }
        let shift = fields.u8(108)?;
        if !SECTOR_SHIFTS.contains(&shift) {
            return Err(Error::damaged(format!("{what}: sectors of 2^{shift} bytes")));
        }
        check(media, at, 1 << shift, &what)?;
        Self::parse(&fields, &what)
    }

    fn parse(fields: &Fields<'_>, what: &str) -> Result<Self, Error> {
        let bad = |text: String| Error::damaged(format!("{what}: {text}"));
        let (sector_shift, more) = (fields.u8(108)?, fields.u8(109)?);
        if more > CLUSTER_SHIFT_MAX || sector_shift + more > CLUSTER_SHIFT_MAX {
            return Err(bad(format!("clusters of 2^{more} sectors")));
        }
        let major = fields.u8(105)?;
        if major != 1 {
            return Err(Error::unsupported(format!("{what}: version {major} of exFAT")));
        }
        let sectors = fields.le64(72)?;
        if sectors >= 1 << (62 - sector_shift) {
            return Err(bad(format!("{sectors} sectors")));
        }
        let bytes = |at: usize| Ok::<_, Error>(u64::from(fields.le32(at)?) << sector_shift);
        let (table, table_bytes, data_at) = (bytes(80)?, bytes(84)?, bytes(88)?);
        let (clusters, size_bytes) = (fields.le32(92)?, sectors << sector_shift);
        let (flags, tables) = (fields.le16(106)?, fields.u8(110)?);
        let cluster_bytes = 1u64 << (sector_shift + more);
        let second_active = flags & 1 != 0;
        let needed = (u64::from(clusters) + 2) * 4;
        if !(1..=2).contains(&tables) || (second_active && tables == 1) {
            return Err(bad(format!("{tables} tables, flags {flags:#x}")));
        }
        if clusters == 0
            || clusters > CLUSTERS_MAX
            || table_bytes < needed
            || table + table_bytes * u64::from(tables) > data_at
            || data_at + u64::from(clusters) * cluster_bytes > size_bytes
        {
            return Err(bad(format!("{clusters} clusters in {size_bytes} bytes do not fit")));
        }
        Ok(Self {
            cluster_bytes,
            clusters,
            size_bytes,
            table: table + if second_active { table_bytes } else { 0 },
            data_at,
            root_cluster: fields.le32(96)?,
            serial: fields.le32(100)?,
            dirty: flags & 2 != 0,
            failing: flags & 4 != 0,
            transactions: tables == 2,
            second_active,
        })
    }

    /// Whether this is the number of a cluster.
    pub(super) fn has(&self, cluster: u32) -> bool {
        cluster >= 2 && u64::from(cluster) < u64::from(self.clusters) + 2
    }

    /// Where a cluster is on the device.
    pub(super) fn place(&self, cluster: u32) -> u64 {
        self.data_at + (u64::from(cluster) - 2) * self.cluster_bytes
    }

    /// The cluster that holds a byte of the device.
    pub(super) fn cluster_at(&self, at: u64) -> Option<u32> {
        let index = at.checked_sub(self.data_at)? / self.cluster_bytes;
        let cluster = u32::try_from(index + 2).ok()?;
        self.has(cluster).then_some(cluster)
    }
}

/// Compares the checksum of the region at `at`: the twelfth sector repeats it.
fn check(media: &Media, at: u64, sector_bytes: usize, what: &str) -> Result<(), Error> {
    let bytes = media.bytes(at, (SUMMED_SECTORS + 1) * sector_bytes, what)?;
    let (summed, kept) = bytes.split_at(SUMMED_SECTORS * sector_bytes);
    // The flags and the share in use change, and are left out.
    let counted = summed.iter().enumerate().filter(|(i, _)| !matches!(i, 106 | 107 | 112));
    let sum = counted.fold(0u32, |sum, (_, b)| sum.rotate_right(1).wrapping_add((*b).into()));
    if kept.chunks_exact(4).any(|kept| kept != sum.to_le_bytes()) {
        return Err(Error::damaged(format!("{what}: its checksum is wrong")));
    }
    Ok(())
}
