//! Superblocks of md, read as the kernel checks them.

use crate::fields::Fields;
use crate::volumes::probe::{text, uuid};
use crate::{Error, Media};

const MAGIC: u32 = 0xa92b_4efc;
const SECTOR_BYTES: u64 = 512;
/// Of version 1: 256 bytes, and two for each member that can be.
const V1_BYTES: usize = 256;
const V1_ROLES_AT: usize = 256;
const MEMBERS_MAX: usize = 1920;
/// Of version 0.90: 4 KiB, in the last whole 64 KiB but one of the device.
const V0_BYTES: usize = 4096;
const V0_RESERVED_BYTES: u64 = 64 << 10;
const V0_MEMBERS_MAX: u32 = 27;

/// What a role of version 1 says when it is no place in the array.
const ROLE_SPARE: u16 = 0xffff;
const ROLE_FAULTY: u16 = 0xfffe;
const ROLE_JOURNAL: u16 = 0xfffd;

const FEATURE_RECOVERY: u32 = 1 << 1;
const FEATURE_RESHAPE: u32 = 1 << 2;
const FEATURE_REPLACEMENT: u32 = 1 << 4;
const FEATURE_JOURNAL: u32 = 1 << 9;
const FEATURE_PPL: u32 = 1 << 10 | 1 << 11;
const FEATURE_RAID0_LAYOUT: u32 = 1 << 12;
const FEATURES_KNOWN: u32 = (1 << 13) - 1;

/// What a member is in its array.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::volumes) enum Role {
    /// It has this place.
    Member(u32),
    /// It waits to take one, or is on the way to it.
    Spare,
    /// The array threw it out.
    Faulty,
    /// It holds a journal and no data.
    Journal,
}

/// What the superblock of a member says.
#[derive(Debug, Clone)]
pub(in crate::volumes) struct Superblock {
    /// "0.90", "1.0", "1.1" or "1.2".
    pub(in crate::volumes) version: &'static str,
    pub(in crate::volumes) uuid: String,
    /// The name given when it was made; of 0.90 its number as "md0".
    pub(in crate::volumes) name: String,
    pub(super) level: i32,
    pub(super) layout: u32,
    pub(super) chunk: u64,
    pub(super) disks: u32,
    /// How much of each member is used, in bytes; 0 if that may differ.
    pub(super) used: u64,
    /// How much this member has, and from where on.
    pub(super) data_start: u64,
    pub(super) data_len: u64,
    pub(super) events: u64,
    pub(super) role: Role,
    /// RAID 0 of members of several sizes: which of two ways to count.
    pub(super) raid0_layout: Option<u32>,
    /// Why it is not read, if so.
    pub(super) unsupported: Option<String>,
    pub(super) notes: Vec<&'static str>,
}

/// Looks for a superblock in all places of all versions.
///
/// One at the end of a device may be that of its last partition; version 1 says itself where it is, for 0.90
/// `in_partition` is asked.
pub(in crate::volumes) fn read(
    media: &Media,
    in_partition: impl FnOnce(u64) -> bool,
) -> Result<Option<Superblock>, Error> {
    let sectors = media.size_bytes() / SECTOR_BYTES;
    // 1.0 is 8 KiB before the end, rounded down to 4 KiB.
    let end = sectors.checked_sub(16).map(|sector| (sector & !7) * SECTOR_BYTES);
    let places = [(Some(0), "1.1"), (Some(4096), "1.2"), (end, "1.0")];
    let mut damage = None;
    for (at, version) in places {
        let Some(at) = at else { continue };
        match one(media, at, version) {
            Ok(None) => {}
            Ok(found) => return Ok(found),
            Err(e) => damage = damage.or(Some(e)),
        }
    }
    let whole = media.size_bytes() / V0_RESERVED_BYTES * V0_RESERVED_BYTES;
    if let Some(at) = whole.checked_sub(V0_RESERVED_BYTES) {
        match zero(media, at) {
            Ok(Some(found)) if !in_partition(at) => return Ok(Some(found)),
            Ok(_) => {}
            Err(e) => damage = damage.or(Some(e)),
        }
    }
    damage.map_or(Ok(None), Err)
}

fn head(media: &Media, at: u64, len: usize) -> Result<Option<Vec<u8>>, Error> {
    let there = at.checked_add(len as u64).is_some_and(|end| end <= media.size_bytes());
    if !there {
        return Ok(None);
    }
    // The end of a disk that was cut off cannot be read; nothing is known to be there then.
    match media.bytes(at, len, "the superblock of an array") {
        Ok(bytes) => Ok(Some(bytes)),
        Err(e) if e.kind() == crate::ErrorKind::Damaged => Ok(None),
        Err(e) => Err(e),
    }
}

fn one(media: &Media, at: u64, version: &'static str) -> Result<Option<Superblock>, Error> {
    let Some(first) = head(media, at, V1_BYTES)? else { return Ok(None) };
    let what = format!("the md superblock at byte {at}");
    let fields = Fields::new(&first, &what);
    if fields.le32(0)? != MAGIC || fields.le32(4)? != 1 {
        return Ok(None);
    }
    if fields.le64(144)? != at / SECTOR_BYTES {
        // That of a partition at the end of this disk, or one that was moved.
        return Ok(None);
    }
    let roles = fields.le32(220)? as usize;
    if roles > MEMBERS_MAX {
        return Err(Error::damaged(format!("{what} tells of {roles} members")));
    }
    let all = media.bytes(at, V1_BYTES + 2 * roles, &what)?;
    let fields = Fields::new(&all, &what);
    if sum_v1(&all) != fields.le32(216)? {
        return Err(Error::damaged(format!("the checksum of {what} is wrong")));
    }
    let number = fields.le32(160)? as usize;
    let role = if number < roles { fields.le16(V1_ROLES_AT + 2 * number)? } else { ROLE_SPARE };
    let features = fields.le32(8)?;
    let sectors = |n: u64| {
        n.checked_mul(SECTOR_BYTES).ok_or_else(|| Error::damaged(format!("{what} has {n} sectors")))
    };
    let (recovering, replacing) =
        (features & FEATURE_RECOVERY != 0, features & FEATURE_REPLACEMENT != 0);
    let mut notes = Vec::new();
    if features & FEATURE_PPL != 0 {
        notes.push("The array has a partial parity log, which is not replayed.");
    }
    Ok(Some(Superblock {
        version,
        uuid: uuid(fields.slice(16, 16)?),
        name: name(&text(fields.slice(32, 32)?), &uuid(fields.slice(16, 16)?)),
        level: fields.le32(72)? as i32,
        layout: fields.le32(76)?,
        chunk: sectors(fields.le32(88)?.into())?,
        disks: fields.le32(92)?,
        used: sectors(fields.le64(80)?)?,
        data_start: sectors(fields.le64(128)?)?,
        data_len: sectors(fields.le64(136)?)?,
        events: fields.le64(200)?,
        role: match role {
            ROLE_SPARE => Role::Spare,
            ROLE_FAULTY => Role::Faulty,
            ROLE_JOURNAL => Role::Journal,
            // One that is filled, or fills another's place, is not complete.
            _ if recovering || replacing => Role::Spare,
            place => Role::Member(place.into()),
        },
        raid0_layout: (features & FEATURE_RAID0_LAYOUT != 0).then_some(fields.le32(76)?),
        unsupported: unsupported(features),
        notes,
    }))
}

fn unsupported(features: u32) -> Option<String> {
    if features & FEATURE_RESHAPE != 0 {
        return Some("it is in the middle of a reshape, which is not read here".to_owned());
    }
    if features & FEATURE_JOURNAL != 0 {
        return Some("it has a journal that may hold what its members have not yet".to_owned());
    }
    let unknown = features & !FEATURES_KNOWN;
    (unknown != 0).then(|| format!("it has features that are not known here ({unknown:#x})"))
}

/// The name without the host it was made on: "web01:data" is "md/data", "web01:0" is "md0".
fn name(full: &str, uuid: &str) -> String {
    let name = full.rsplit_once(':').map_or(full, |(_, name)| name);
    let plain = |c: char| c.is_ascii_alphanumeric() || "_-.+".contains(c);
    let name: String = name.chars().map(|c| if plain(c) { c } else { '_' }).collect();
    if name.is_empty() {
        return format!("md-{}", &uuid[..8]);
    }
    let number = name.bytes().all(|b| b.is_ascii_digit());
    if number { format!("md{name}") } else { format!("md/{name}") }
}

/// The checksum of version 1: all 32-bit words with its own place as 0, added up and folded.
fn sum_v1(bytes: &[u8]) -> u32 {
    let mut sum = 0_u64;
    for (n, word) in bytes.chunks(4).enumerate() {
        // The place of the sum itself is word 54; a list of roles may end in the middle of a word.
        let mut padded = [0; 4];
        if n != 54 {
            padded[..word.len()].copy_from_slice(word);
        }
        sum += u64::from(u32::from_le_bytes(padded));
    }
    (sum as u32).wrapping_add((sum >> 32) as u32)
}

/// The words of a superblock of 0.90, in the byte order of the machine that made it.
struct Words<'a> {
    bytes: &'a [u8],
    big: bool,
}

impl Words<'_> {
    fn word(&self, n: usize) -> u32 {
        let bytes = self.bytes.get(4 * n..).and_then(|b| b.first_chunk::<4>());
        let bytes = bytes.copied().unwrap_or_default();
        if self.big { u32::from_be_bytes(bytes) } else { u32::from_le_bytes(bytes) }
    }

    /// All words with its own place (38) as 0, added up and folded.
    fn sum(&self) -> u32 {
        let words = (0..V0_BYTES / 4).filter(|n| *n != 38);
        let sum: u64 = words.map(|n| u64::from(self.word(n))).sum();
        (sum as u32).wrapping_add((sum >> 32) as u32)
    }
}

fn zero(media: &Media, at: u64) -> Result<Option<Superblock>, Error> {
    let Some(bytes) = head(media, at, V0_BYTES)? else { return Ok(None) };
    let what = format!("the md superblock at byte {at}");
    let magic: Option<&[u8; 4]> = bytes.first_chunk();
    let big = magic == Some(&MAGIC.to_be_bytes());
    if !big && magic != Some(&MAGIC.to_le_bytes()) {
        return Ok(None);
    }
    let words = Words { bytes: &bytes, big };
    if words.word(1) != 0 {
        return Ok(None);
    }
    if words.sum() != words.word(38) {
        return Err(Error::damaged(format!("the checksum of {what} is wrong")));
    }
    // The low word of the count of events is first on little-endian machines.
    let (low, high) = if big { (40, 39) } else { (39, 40) };
    let events = u64::from(words.word(high)) << 32 | u64::from(words.word(low));
    let (number, place, state) = (words.word(992), words.word(995), words.word(996));
    let active_and_in_sync = state & 0b0111 == 0b0110;
    let role = if active_and_in_sync && number < V0_MEMBERS_MAX {
        Role::Member(place)
    } else if state & 1 == 1 {
        Role::Faulty
    } else {
        Role::Spare
    };
    let id: Vec<u8> = [5, 13, 14, 15].iter().flat_map(|n| words.word(*n).to_be_bytes()).collect();
    let reshapes = words.word(2) > 90;
    Ok(Some(Superblock {
        version: "0.90",
        uuid: uuid(&id),
        name: format!("md{}", words.word(11)),
        level: words.word(7) as i32,
        layout: words.word(64),
        chunk: words.word(65).into(),
        disks: words.word(10),
        used: u64::from(words.word(8)) << 10,
        data_start: 0,
        data_len: at,
        events,
        role,
        raid0_layout: None,
        unsupported: reshapes
            .then(|| "it is in the middle of a reshape, which is not read here".to_owned()),
        notes: Vec::new(),
    }))
}

/// Makes the checksums of all superblocks on a disk right: for fuzzing.
pub(in crate::volumes) fn right(disk: &mut [u8]) {
    let end = disk.len() / 4096 * 4096;
    for at in [0, 4096, end.saturating_sub(8192)] {
        let Some(block) = disk.get_mut(at..) else { continue };
        let roles =
            block.get(220..224).and_then(|b| b.try_into().ok()).map_or(0, u32::from_le_bytes);
        let len = V1_BYTES + 2 * (roles as usize).min(MEMBERS_MAX);
        if let Some(block) = block.get_mut(..len)
            && block[..4] == MAGIC.to_le_bytes()
        {
            let sum = sum_v1(block);
            block[216..220].copy_from_slice(&sum.to_le_bytes());
        }
    }
    let at = (disk.len() / 65536 * 65536).saturating_sub(65536);
    let Some(block) = disk.get_mut(at..at + V0_BYTES) else { return };
    let big = block[..4] == MAGIC.to_be_bytes();
    if big || block[..4] == MAGIC.to_le_bytes() {
        let sum = Words { bytes: block, big }.sum();
        block[152..156].copy_from_slice(&if big { sum.to_be_bytes() } else { sum.to_le_bytes() });
    }
}
