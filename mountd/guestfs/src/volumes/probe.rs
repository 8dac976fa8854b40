//! What begins here? Known by magics, as util-linux' libblkid documents them (offsets and bytes, in `libblkid/src/superblocks`).
//!
//! It only names. What a name stands for is the business of the readers, which check all of it.

use super::Content;
use crate::fs::FsKind;
use crate::{Error, Media};

/// What was found: what it is, its label and its UUID.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) content: Content,
    pub(super) label: String,
    pub(super) uuid: Option<String>,
}

impl Found {
    fn plain(content: Content) -> Self {
        Self { content, label: String::new(), uuid: None }
    }
}

/// Where a magic is, counted in bytes.
#[derive(Debug, Clone, Copy)]
enum At {
    Start(u64),
    /// From the end of the device back.
    End(u64),
}

/// What is read together with the start of a device.
const NEAR_BYTES: u64 = 64 << 10;

impl At {
    fn is_near(&self) -> bool {
        matches!(self, Self::Start(offset) if *offset < NEAR_BYTES - 64)
    }
}

/// A name, and one of the places and values that give it away.
struct Magic(&'static str, At, &'static [u8]);

/// In the order they are tried: what lies around others comes before what it holds.
const MAGICS: &[Magic] = &[
    Magic("BitLocker", At::Start(3), b"-FVE-FS-"),
    Magic("ReFS", At::Start(0), b"\0\0\0ReFS\0"),
    Magic("drbd", At::End(4096 - 60), b"\x83\x74\x02\x67"),
    Magic("drbd", At::End(4096 - 60), b"\x83\x74\x02\x6b"),
    Magic("drbd", At::End(4096 - 60), b"\x83\x74\x02\x6d"),
    Magic("isw_raid_member", At::End(1024), b"Intel Raid ISM Cfg Sig. "),
    Magic("ddf_raid_member", At::End(512), b"\xde\x11\xde\x11"),
    Magic(
        "bcache",
        At::Start(4120),
        b"\xc6\x85\x73\xf6\x4e\x1a\x45\xca\x82\x65\xf5\x7f\x48\xba\x6d\x81",
    ),
    Magic(
        "bcachefs",
        At::Start(4120),
        b"\xc6\x85\x73\xf6\x66\xce\x90\xa9\xd9\x6a\x60\xcf\x80\x3d\xf7\xef",
    ),
    Magic("stratis", At::Start(0x204), b"!Stra0tis\x86\xff\x02^\x41rh"),
    Magic("stratis", At::Start(0x1204), b"!Stra0tis\x86\xff\x02^\x41rh"),
    Magic("vdo", At::Start(0), b"dmvdo001"),
    Magic("ceph_bluestore", At::Start(0), b"bluestore block device"),
    Magic("DM_snapshot_cow", At::Start(0), b"SnAp"),
    Magic("DM_integrity", At::Start(0), b"integrt\0"),
    Magic("DM_verity_hash", At::Start(0), b"verity\0\0"),
    Magic("oracleasm", At::Start(32), b"ORCLDISK"),
    Magic("VMFS_volume_member", At::Start(1 << 20), b"\x0d\xd0\x01\xc0"),
    Magic("VMFS", At::Start(2 << 20), b"\x5e\xf1\xab\x2f"),
    Magic("apfs", At::Start(32), b"NXSB"),
    Magic("squashfs", At::Start(0), b"hsqs"),
    Magic("squashfs3", At::Start(0), b"sqsh"),
    Magic("erofs", At::Start(1024), b"\xe2\xe1\xf5\xe0"),
    Magic("f2fs", At::Start(1024), b"\x10\x20\xf5\xf2"),
    Magic("jfs", At::Start(32768), b"JFS1"),
    Magic("reiserfs", At::Start(65588), b"ReIsErFs"),
    Magic("reiserfs", At::Start(65588), b"ReIsEr2Fs"),
    Magic("reiserfs", At::Start(65588), b"ReIsEr3Fs"),
    Magic("reiserfs", At::Start(8244), b"ReIsErFs"),
    Magic("reiser4", At::Start(65536), b"ReIsEr4"),
    Magic("gfs2", At::Start(65536), b"\x01\x16\x19\x70"),
    Magic("ocfs2", At::Start(1024), b"OCFSV2"),
    Magic("ocfs2", At::Start(2048), b"OCFSV2"),
    Magic("ocfs2", At::Start(4096), b"OCFSV2"),
    Magic("nss", At::Start(4096), b"SPB5"),
    Magic("vxfs", At::Start(1024), b"\xf5\xfc\x01\xa5"),
    Magic("cramfs", At::Start(0), b"\x45\x3d\xcd\x28"),
    Magic("romfs", At::Start(0), b"-rom1fs-"),
    Magic("ubi", At::Start(0), b"UBI#"),
    Magic("xfs_external_log", At::Start(0), b"\xfe\xed\xba\xbe"),
    Magic("zonefs", At::Start(0), b"SFOZ"),
    // UFS1 and UFS2 in both byte orders, at the four places a superblock can be.
    Magic("ufs", At::Start(8192 + 1372), b"\x54\x19\x01\x00"),
    Magic("ufs", At::Start(8192 + 1372), b"\x00\x01\x19\x54"),
    Magic("ufs", At::Start(8192 + 1372), b"\x19\x01\x54\x19"),
    Magic("ufs", At::Start(65536 + 1372), b"\x19\x01\x54\x19"),
    Magic("ufs", At::Start(65536 + 1372), b"\x19\x54\x01\x19"),
    Magic("ufs", At::Start(1372), b"\x19\x01\x54\x19"),
    Magic("ufs", At::Start(262_144 + 1372), b"\x19\x01\x54\x19"),
    Magic("swsuspend", At::Start(4086), b"S1SUSPEND"),
    Magic("swsuspend", At::Start(4086), b"S2SUSPEND"),
    Magic("swsuspend", At::Start(4086), b"ULSUSPEND"),
];

/// Magics of two bytes: tried last, for chance makes them too.
const WEAK_MAGICS: &[Magic] = &[
    Magic("hfsplus", At::Start(1024), b"H+\0\x04"),
    Magic("hfsplus", At::Start(1024), b"HX\0\x05"),
    Magic("hfs", At::Start(1024), b"BD"),
];

/// Where pages, and so the signature of swap space, can end.
const SWAP_PAGES: [u64; 5] = [4096, 8192, 16384, 32768, 65536];
/// The uberblocks of the first label of a ZFS device, and how they lie.
const ZFS_RING_AT: u64 = 128 << 10;
const ZFS_UBERBLOCK_BYTES: usize = 1024;
const ZFS_RING_BYTES: usize = 128 << 10;

/// File systems whose first sector ends like a master boot record: they must be asked for before it.
pub(super) fn boot_sector(media: &Media) -> Result<Option<Found>, Error> {
    let Some(sector) = bytes(media, 0, 512)? else { return Ok(None) };
    let at3 = &sector[3..11];
    if at3 == b"NTFS    " {
        let serial = u64_at(&sector, 0x48);
        return Ok(Some(Found {
            content: Content::FileSystem(FsKind::Ntfs),
            label: String::new(),
            uuid: Some(format!("{serial:016X}")),
        }));
    }
    if at3 == b"EXFAT   " {
        return Ok(Some(Found {
            content: Content::FileSystem(FsKind::ExFat),
            label: String::new(),
            uuid: Some(serial(u32_at(&sector, 100))),
        }));
    }
    if at3 == b"-FVE-FS-" {
        return Ok(Some(Found::plain(Content::Other("BitLocker".into()))));
    }
    Ok(fat(&sector))
}

/// FAT by its parameter block (Microsoft, "FAT32 File System Specification", section 3): each value by itself says little,
/// all together say it.
fn fat(sector: &[u8]) -> Option<Found> {
    let jumps = matches!(sector[0], 0xeb | 0xe9);
    let sector_bytes = u16_at(sector, 11);
    let cluster = sector[13];
    let (reserved, tables, media) = (u16_at(sector, 14), sector[16], sector[21]);
    let all = if u16_at(sector, 19) != 0 { u16_at(sector, 19).into() } else { u32_at(sector, 32) };
    let good = jumps
        && sector_bytes.is_power_of_two()
        && (512..=4096).contains(&sector_bytes)
        && cluster.is_power_of_two()
        && reserved != 0
        && matches!(tables, 1 | 2)
        && (media == 0xf0 || media >= 0xf8)
        && all != 0;
    if !good {
        return None;
    }
    let wide = u16_at(sector, 22) == 0;
    if wide && u32_at(sector, 36) == 0 {
        return None;
    }
    let at = if wide { 67 } else { 39 };
    let label = text(&sector[at + 4..at + 15]);
    let label = if label == "NO NAME" { String::new() } else { label };
    // The signature in front says that there are a serial number and a label at all.
    let signed = matches!(sector[at - 1], 0x28 | 0x29);
    Some(Found {
        content: Content::FileSystem(FsKind::Fat),
        label: if signed { label } else { String::new() },
        uuid: signed.then(|| serial(u32_at(sector, at))),
    })
}

/// Everything else.
///
/// What lies at the start comes first: most volumes are known by their first 64 KiB, and each further place may have to be
/// fetched from a store. ZFS leaves the place of an ext superblock as it was, so it is asked for before.
pub(super) fn anything(media: &Media) -> Result<Option<Found>, Error> {
    type Ask = fn(&Media) -> Result<Option<Found>, Error>;
    const ASKED: [Ask; 9] = [xfs, swap, near, btrfs, zfs, ext, optical, far, weak];
    let mut failed = None;
    for ask in ASKED {
        match ask(media) {
            Ok(Some(found)) => return Ok(Some(found)),
            Ok(None) => {}
            // One place that cannot be read hides only what would be there.
            Err(e) => failed = failed.or(Some(e)),
        }
    }
    failed.map_or(Ok(None), Err)
}

fn near(media: &Media) -> Result<Option<Found>, Error> {
    table(media, MAGICS, At::is_near)
}

fn far(media: &Media) -> Result<Option<Found>, Error> {
    table(media, MAGICS, |at| !at.is_near())
}

fn weak(media: &Media) -> Result<Option<Found>, Error> {
    table(media, WEAK_MAGICS, |_| true)
}

fn table(
    media: &Media,
    magics: &[Magic],
    asked: impl Fn(&At) -> bool,
) -> Result<Option<Found>, Error> {
    let mut failed = None;
    for Magic(name, at, magic) in magics.iter().filter(|Magic(_, at, _)| asked(at)) {
        let offset = match at {
            At::Start(offset) => Some(*offset),
            At::End(back) => media.size_bytes().checked_sub(*back),
        };
        let Some(offset) = offset else { continue };
        match bytes(media, offset, magic.len()) {
            Ok(Some(found)) if found == *magic => {
                return Ok(Some(Found::plain(Content::Other((*name).into()))));
            }
            Ok(_) => {}
            // The end of a volume on a disk that was cut off.
            Err(_) if matches!(at, At::End(_)) => {}
            Err(e) => failed = failed.or(Some(e)),
        }
    }
    failed.map_or(Ok(None), Err)
}

fn ext(media: &Media) -> Result<Option<Found>, Error> {
    const COMPAT_JOURNAL: u32 = 0x4;
    /// What ext2 and ext3 know of the features one must know to read, and to write.
    const OLD_INCOMPAT: u32 = 0x2 | 0x4 | 0x10;
    const OLD_RO_COMPAT: u32 = 0x1 | 0x2 | 0x4;
    const INCOMPAT_JOURNAL_DEVICE: u32 = 0x8;
    let Some(sb) = bytes(media, 1024, 264)? else { return Ok(None) };
    if u16_at(&sb, 56) != 0xef53 {
        return Ok(None);
    }
    let (compat, incompat, ro) = (u32_at(&sb, 92), u32_at(&sb, 96), u32_at(&sb, 100));
    let kind = if incompat & !OLD_INCOMPAT != 0 || ro & !OLD_RO_COMPAT != 0 {
        FsKind::Ext4
    } else if compat & COMPAT_JOURNAL != 0 {
        FsKind::Ext3
    } else {
        FsKind::Ext2
    };
    let content = if incompat & INCOMPAT_JOURNAL_DEVICE != 0 {
        Content::Other("jbd".into())
    } else {
        Content::FileSystem(kind)
    };
    Ok(Some(Found { content, label: text(&sb[120..136]), uuid: Some(uuid(&sb[104..120])) }))
}

fn xfs(media: &Media) -> Result<Option<Found>, Error> {
    let Some(sb) = bytes(media, 0, 120)? else { return Ok(None) };
    Ok((&sb[..4] == b"XFSB").then(|| Found {
        content: Content::FileSystem(FsKind::Xfs),
        label: text(&sb[108..120]),
        uuid: Some(uuid(&sb[32..48])),
    }))
}

fn btrfs(media: &Media) -> Result<Option<Found>, Error> {
    let Some(sb) = bytes(media, 65536, 0x22b)? else { return Ok(None) };
    Ok((&sb[0x40..0x48] == b"_BHRfS_M").then(|| Found {
        content: Content::FileSystem(FsKind::Btrfs),
        label: text(&sb[0x12b..0x22b]),
        uuid: Some(uuid(&sb[0x20..0x30])),
    }))
}

/// A btrfs may lie on several devices: how many, and which of them this is.
pub(super) fn btrfs_device(media: &Media) -> Result<(u64, u64), Error> {
    let sb = bytes(media, 65536, 0x22b)?;
    Ok(sb.map_or((1, 1), |sb| (u64_at(&sb, 0x88), u64_at(&sb, 0xc9))))
}

fn swap(media: &Media) -> Result<Option<Found>, Error> {
    for page in SWAP_PAGES {
        let Some(magic) = bytes(media, page - 10, 10)? else { break };
        if magic != b"SWAPSPACE2" && magic != b"SWAP-SPACE" {
            continue;
        }
        let header = bytes(media, 1024, 44)?.unwrap_or_else(|| vec![0; 44]);
        let id = &header[12..28];
        return Ok(Some(Found {
            content: Content::Swap,
            label: text(&header[28..44]),
            uuid: id.iter().any(|b| *b != 0).then(|| uuid(id)),
        }));
    }
    Ok(None)
}

fn zfs(media: &Media) -> Result<Option<Found>, Error> {
    let Some(ring) = bytes(media, ZFS_RING_AT, ZFS_RING_BYTES)? else { return Ok(None) };
    let found = ring.chunks_exact(ZFS_UBERBLOCK_BYTES).any(|block| {
        let magic = &block[..8];
        magic == 0x00ba_b10c_u64.to_le_bytes() || magic == 0x00ba_b10c_u64.to_be_bytes()
    });
    Ok(found.then(|| Found::plain(Content::Other("zfs_member".into()))))
}

/// ISO 9660 and UDF, whose descriptors start at byte 32,768 (ECMA-119 section 8, ECMA-167 part 2).
fn optical(media: &Media) -> Result<Option<Found>, Error> {
    let Some(volume) = bytes(media, 32768, 2048)? else { return Ok(None) };
    for at in (32768..32768 + 16 * 2048).step_by(2048) {
        let Some(id) = bytes(media, at + 1, 5)? else { break };
        match id.as_slice() {
            b"NSR02" | b"NSR03" => return Ok(Some(Found::plain(Content::Other("udf".into())))),
            b"CD001" | b"BEA01" | b"BOOT2" | b"TEA01" => {}
            _ => break,
        }
    }
    if &volume[1..6] != b"CD001" {
        return Ok(None);
    }
    // The date of the last change, or of making: what blkid calls the UUID.
    let date = [830, 813].map(|at| &volume[at..at + 16]);
    let date =
        date.into_iter().find(|d| d.iter().all(u8::is_ascii_digit) && !d.starts_with(b"0000"));
    let parts = [0..4, 4..6, 6..8, 8..10, 10..12, 12..14, 14..16];
    let uuid = date.map(|date| parts.map(|part| text(&date[part])).join("-"));
    let content = Content::FileSystem(FsKind::Iso9660);
    Ok(Some(Found { content, label: text(&volume[40..72]), uuid }))
}

/// Bytes of a device, if it is that long.
pub(super) fn bytes(media: &Media, offset: u64, len: usize) -> Result<Option<Vec<u8>>, Error> {
    let there = offset.checked_add(len as u64).is_some_and(|end| end <= media.size_bytes());
    if there { media.bytes(offset, len, "the start of a volume").map(Some) } else { Ok(None) }
}

/// Text that ends with a NUL or with spaces; bytes that are no text come as U+FFFD, and so do control characters.
pub(super) fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len());
    let text = String::from_utf8_lossy(&bytes[..end]);
    let clean = |c: char| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c };
    text.trim_end().chars().map(clean).collect()
}

/// Sixteen bytes as a UUID is written.
pub(super) fn uuid(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(36);
    for (n, byte) in bytes.iter().enumerate() {
        if matches!(n, 4 | 6 | 8 | 10) {
            text.push('-');
        }
        text.push_str(&format!("{byte:02x}"));
    }
    text
}

/// A serial number of FAT: `1A2B-3C4D`.
fn serial(number: u32) -> String {
    format!("{:04X}-{:04X}", number >> 16, number & 0xffff)
}

// The three below are asked only for what the callers' buffers hold; a place behind it reads as 0.
fn number<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    bytes.get(at..).and_then(|b| b.first_chunk()).copied().unwrap_or([0; N])
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(number(bytes, at))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(number(bytes, at))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(number(bytes, at))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use backstay_blockdev::MemDevice;

    use super::*;

    const SIZE_BYTES: usize = 4 << 20;

    #[test]
    fn every_magic_is_found_where_it_is() {
        for Magic(name, at, magic) in MAGICS.iter().chain(WEAK_MAGICS) {
            let mut bytes = vec![0; SIZE_BYTES];
            let at = match at {
                At::Start(offset) => *offset as usize,
                At::End(back) => SIZE_BYTES - *back as usize,
            };
            bytes[at..at + magic.len()].copy_from_slice(magic);
            let media = Media::new(Arc::new(MemDevice::read_only(bytes))).expect("media");
            let found = match boot_sector(&media).expect("read") {
                None => anything(&media).expect("read"),
                found => found,
            };
            let content = found.map(|found| found.content);
            assert_eq!(content, Some(Content::Other((*name).into())));
        }
    }

    #[test]
    fn zfs_over_what_was_an_ext() {
        let mut bytes = vec![0; SIZE_BYTES];
        bytes[1024 + 56..1024 + 58].copy_from_slice(&[0x53, 0xef]);
        let ext = Media::new(Arc::new(MemDevice::read_only(bytes.clone()))).expect("media");
        let found = anything(&ext).expect("read").expect("it is found");
        assert_eq!(found.content, Content::FileSystem(FsKind::Ext2));
        bytes[(128 << 10) + 5 * 1024..][..8].copy_from_slice(&0x00ba_b10c_u64.to_be_bytes());
        let zfs = Media::new(Arc::new(MemDevice::read_only(bytes))).expect("media");
        let found = anything(&zfs).expect("read").expect("it is found");
        assert_eq!(found.content, Content::Other("zfs_member".into()));
    }
}
