//! The boot sector (BIOS parameter block), and what follows from it.

use crate::fields::Fields;
use crate::{Error, Media};

const SECTOR_BYTES: usize = 512;
/// The copy of the boot sector FAT32 has, if the first one names no other.
const BACKUP_SECTOR: u64 = 6;
/// With this many clusters or more it is FAT16, or FAT32.
const FAT16_CLUSTERS: u64 = 4085;
const FAT32_CLUSTERS: u64 = 65_525;
/// Numbers of clusters have 28 bits, some of them with a meaning.
const CLUSTERS_MAX: u64 = 0x0fff_fff4;
const CLUSTER_MAX: u64 = 1 << 20;

/// How wide the entries of the table are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Width {
    Fat12,
    Fat16,
    Fat32,
}

/// What the boot sector says, in bytes from the start of the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Boot {
    pub(super) width: Width,
    pub(super) cluster_bytes: u64,
    /// Clusters are numbered from 2 to one more than this.
    pub(super) clusters: u64,
    pub(super) size_bytes: u64,
    /// Tables that are kept alike, the one to read first.
    pub(super) tables: [u64; 2],
    pub(super) table_bytes: u64,
    /// The root directory of FAT12 and FAT16, and its length.
    pub(super) root: (u64, u64),
    /// The first cluster of the root directory of FAT32.
    pub(super) root_cluster: u32,
    pub(super) data_at: u64,
    /// Where the sector with the number of free clusters is.
    pub(super) info_at: Option<u64>,
    pub(super) serial: u32,
    pub(super) label: [u8; 11],
    pub(super) dirty: bool,
}

/// Whether a boot sector of FAT is at the start. Reads one sector.
pub(super) fn is_here(media: &Media) -> bool {
    Boot::at(media, 0).is_ok()
}

impl Boot {
    /// The first sector, or the copy FAT32 has; and whether it was the copy.
    pub(super) fn read(media: &Media) -> Result<(Self, bool), Error> {
        let e = match Self::at(media, 0) {
            Ok(boot) => return Ok((boot, false)),
            Err(e) => e,
        };
        for sector_bytes in [512, 4096] {
            if let Ok(boot) = Self::at(media, BACKUP_SECTOR * sector_bytes)
                && boot.width == Width::Fat32
            {
                return Ok((boot, true));
            }
        }
        Err(e)
    }

    fn at(media: &Media, at: u64) -> Result<Self, Error> {
        let what = format!("the FAT boot sector at byte {at}");
        let bytes = media.bytes(at, SECTOR_BYTES, &what)?;
        Self::parse(&bytes, &what)
    }

    fn parse(bytes: &[u8], what: &str) -> Result<Self, Error> {
        let bad = |text: String| Error::damaged(format!("{what}: {text}"));
        let fields = Fields::new(bytes, what);
        // FAT of before DOS 3 has no mark; what is checked below is what the kernel checks too.
        let (sector, sectors) = (u64::from(fields.le16(11)?), u64::from(fields.u8(13)?));
        if !sector.is_power_of_two() || !(128..=4096).contains(&sector) {
            return Err(bad(format!("sectors of {sector} bytes")));
        }
        let cluster_bytes = sector * sectors;
        if !cluster_bytes.is_power_of_two() || cluster_bytes > CLUSTER_MAX {
            return Err(bad(format!("clusters of {sectors} sectors")));
        }
        let (reserved, copies) = (u64::from(fields.le16(14)?), u64::from(fields.u8(16)?));
        let media = fields.u8(21)?;
        if reserved == 0 || !(1..=8).contains(&copies) || !(media >= 0xf8 || media == 0xf0) {
            let text = format!("{reserved} reserved sectors, {copies} tables, medium {media:#x}");
            return Err(bad(text));
        }
        let short = u64::from(fields.le16(22)?);
        let long = short == 0;
        let table = if long { u64::from(fields.le32(36)?) } else { short } * sector;
        let size = match fields.le16(19)? {
            0 => u64::from(fields.le32(32)?),
            sectors => u64::from(sectors),
        } * sector;
        let root_bytes = (u64::from(fields.le16(17)?) * 32).next_multiple_of(sector);
        let root_at = reserved * sector + copies * table;
        let data_at = root_at + root_bytes;
        if table == 0 || data_at >= size || (root_bytes == 0) != long {
            return Err(bad(format!(
                "{table} bytes of table, {root_bytes} of root, {size} in all"
            )));
        }
        let clusters = (size - data_at) / cluster_bytes;
        let width = if long {
            Width::Fat32
        } else if clusters < FAT16_CLUSTERS {
            Width::Fat12
        } else if clusters < FAT32_CLUSTERS {
            Width::Fat16
        } else {
            return Err(bad(format!("{clusters} clusters, and a table for FAT16")));
        };
        let mut boot = Self {
            width,
            cluster_bytes,
            clusters,
            size_bytes: size,
            tables: [reserved * sector, (reserved * sector) + (copies - 1).min(1) * table],
            table_bytes: table,
            root: (root_at, root_bytes),
            root_cluster: 0,
            data_at,
            info_at: None,
            serial: 0,
            label: [b' '; 11],
            dirty: false,
        };
        if boot.entry_end(clusters + 1) > table || clusters > CLUSTERS_MAX {
            return Err(bad(format!("{clusters} clusters, and {table} bytes of table")));
        }
        boot.extended(&fields, if long { 28 } else { 0 })?;
        if long {
            boot.long(&fields, (sector, table, copies), what)?;
        }
        Ok(boot)
    }

    /// The part that FAT32 has alone.
    fn long(
        &mut self,
        fields: &Fields<'_>,
        (sector, table, copies): (u64, u64, u64),
        what: &str,
    ) -> Result<(), Error> {
        let (flags, version) = (fields.le16(40)?, fields.le16(42)?);
        if version != 0 {
            return Err(Error::unsupported(format!("{what}: version {version} of FAT32")));
        }
        // Without mirroring one table alone is up to date.
        if flags & 0x80 != 0 {
            let active = u64::from(flags & 15);
            if active >= copies {
                return Err(Error::damaged(format!("{what}: table {active} of {copies} is used")));
            }
            let at = self.tables[0] + active * table;
            self.tables = [at, at];
        }
        self.root_cluster = fields.le32(44)?;
        let info = u64::from(fields.le16(48)?);
        self.info_at = (info != 0 && info != 0xffff).then_some(info * sector);
        Ok(())
    }

    /// Serial number and label, which lie `shift` bytes further in FAT32.
    fn extended(&mut self, fields: &Fields<'_>, shift: usize) -> Result<(), Error> {
        self.dirty = fields.u8(37 + shift)? & 1 != 0;
        let mark = fields.u8(38 + shift)?;
        if matches!(mark, 0x28 | 0x29) {
            self.serial = fields.le32(39 + shift)?;
        }
        if mark == 0x29 {
            self.label = fields.array(43 + shift)?;
        }
        Ok(())
    }

    /// Where the entry of a cluster ends in the table.
    fn entry_end(&self, cluster: u64) -> u64 {
        match self.width {
            Width::Fat12 => cluster * 3 / 2 + 2,
            Width::Fat16 => cluster * 2 + 2,
            Width::Fat32 => cluster * 4 + 4,
        }
    }

    /// Whether this is the number of a cluster.
    pub(super) fn has(&self, cluster: u32) -> bool {
        cluster >= 2 && u64::from(cluster) < self.clusters + 2
    }

    /// Where a cluster is on the device.
    pub(super) fn place(&self, cluster: u32) -> u64 {
        self.data_at + (u64::from(cluster) - 2) * self.cluster_bytes
    }
}
