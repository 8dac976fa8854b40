//! The structures of a journal: its superblock, tags of descriptor blocks, revocations, checksums.

use crc_fast::{CrcAlgorithm, Digest};

use super::super::sums::crc;
use super::Sum;
use crate::Error;
use crate::fields::Fields;

/// `h_blocktype`: a descriptor block.
pub(super) const DESCRIPTOR: u32 = 1;
/// `h_blocktype`: a commit block.
pub(super) const COMMIT: u32 = 2;
/// `h_blocktype`: a block of revocations.
pub(super) const REVOKE: u32 = 5;

/// `s_feature_compat`: commit blocks have a checksum of their transaction.
const COMPAT_CHECKSUM: u32 = 1;
const INCOMPAT_REVOKE: u32 = 1;
const INCOMPAT_64BIT: u32 = 2;
const INCOMPAT_ASYNC_COMMIT: u32 = 4;
const INCOMPAT_CSUM_V2: u32 = 8;
const INCOMPAT_CSUM_V3: u32 = 0x10;
const INCOMPAT_FAST_COMMIT: u32 = 0x20;
const KNOWN: u32 = INCOMPAT_REVOKE
    | INCOMPAT_64BIT
    | INCOMPAT_ASYNC_COMMIT
    | INCOMPAT_CSUM_V2
    | INCOMPAT_CSUM_V3
    | INCOMPAT_FAST_COMMIT;

/// `t_flags`: the first four bytes of the block were the magic number.
const ESCAPED: u32 = 1;
/// `t_flags`: no UUID follows the tag.
const SAME_UUID: u32 = 2;
/// `t_flags`: the last tag of the block.
const LAST: u32 = 8;

/// Blocks for fast commits where `s_num_fc_blks` has none.
const FAST_BLOCKS: u32 = 256;

/// CRC-32 as commit blocks of version 1 have it, going on from `state`.
pub(super) fn crc_v1(state: u32, bytes: &[u8]) -> u32 {
    let mut digest = Digest::new_with_init_state(CrcAlgorithm::Crc32Mpeg2, state.into());
    digest.update(bytes);
    digest.finalize() as u32
}

/// What a journal's superblock tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Layout {
    /// The first block of the log.
    pub(super) first: u64,
    /// The first block behind the log, where it goes on at `first`.
    pub(super) end: u64,
    /// The first transaction that may not be in place, and its block; 0 is an empty journal.
    pub(super) start: u64,
    /// Its sequence number.
    pub(super) sequence: u32,
    /// What checksums go on from.
    pub(super) seed: u32,
    /// The journal has an area for fast commits behind its end.
    pub(super) fast: bool,
    /// Commit blocks have checksums of version 1.
    pub(super) sums_v1: bool,
    wide: bool,
    sums_v2: bool,
    sums_v3: bool,
}

impl Layout {
    pub(super) fn parse(bytes: &[u8], block_bytes: u32) -> Result<Self, Error> {
        let fields = Fields::new(bytes, "the journal's superblock");
        let kind = super::header(bytes).map(|(kind, _)| kind);
        let (Some(3 | 4), own) = (kind, fields.be32(0x0c)?) else {
            return Err(Error::damaged("the journal has no superblock"));
        };
        if own != block_bytes {
            let text = format!("the journal has blocks of {own} bytes, not of {block_bytes}");
            return Err(Error::damaged(text));
        }
        let extended = kind == Some(4);
        let feature = |at| if extended { fields.be32(at) } else { Ok(0) };
        let (compat, incompat) = (feature(0x24)?, feature(0x28)?);
        if incompat & !KNOWN != 0 {
            let text = format!("the journal has features that are not known ({incompat:#x})");
            return Err(Error::unsupported(text));
        }
        let sums = incompat & (INCOMPAT_CSUM_V2 | INCOMPAT_CSUM_V3);
        if sums != 0 {
            check_superblock(bytes, &fields)?;
        }
        let fast = incompat & INCOMPAT_FAST_COMMIT != 0;
        let fast_blocks = match (fast, feature(0x54)?) {
            (false, _) => 0,
            (true, 0) => FAST_BLOCKS,
            (true, blocks) => blocks,
        };
        let (first, all) = (fields.be32(0x14)?, fields.be32(0x10)?);
        let start = fields.be32(0x1c)?;
        let end = all.saturating_sub(fast_blocks);
        if first == 0 || end <= first || (start != 0 && !(first..end).contains(&start)) {
            return Err(Error::damaged(format!(
                "the journal's superblock has its log from block {first} to {end} and starts at {start}"
            )));
        }
        Ok(Self {
            first: first.into(),
            end: end.into(),
            start: start.into(),
            sequence: fields.be32(0x18)?,
            seed: crc(u32::MAX, &[fields.slice(0x30, 16)?]),
            fast,
            sums_v1: compat & COMPAT_CHECKSUM != 0 && sums == 0,
            wide: incompat & INCOMPAT_64BIT != 0,
            sums_v2: sums == INCOMPAT_CSUM_V2,
            sums_v3: sums & INCOMPAT_CSUM_V3 != 0,
        })
    }

    /// Whether blocks of the journal end with a checksum.
    fn has_tails(&self) -> bool {
        self.sums_v2 || self.sums_v3
    }

    /// Whether the checksum at the end of a descriptor or revocation block is right.
    pub(super) fn tail_is_right(&self, bytes: &[u8]) -> bool {
        if !self.has_tails() {
            return true;
        }
        let Some((body, stored)) = bytes.split_last_chunk::<4>() else { return false };
        u32::from_be_bytes(*stored) == crc(self.seed, &[body, &[0; 4]])
    }

    /// Whether a commit block's own checksum is right.
    pub(super) fn commit_is_right(&self, bytes: &[u8]) -> bool {
        if !self.has_tails() {
            return true;
        }
        let (Some((head, rest)), Some(stored)) = (bytes.split_at_checked(16), bytes.get(16..20))
        else {
            return false;
        };
        let behind = rest.get(4..).unwrap_or_default();
        stored == crc(self.seed, &[head, &[0; 4], behind]).to_be_bytes()
    }

    /// The length of a tag without its UUID.
    fn tag_bytes(&self) -> usize {
        match (self.sums_v3, self.wide) {
            (true, _) => 16,
            (false, wide) => 8 + usize::from(wide) * 4 + usize::from(self.sums_v2) * 2,
        }
    }

    /// The tags of a descriptor block.
    pub(super) fn tags(&self, bytes: &[u8]) -> Result<Vec<Tag>, Error> {
        let fields = Fields::new(bytes, "a descriptor block of the journal");
        let end = bytes.len() - usize::from(self.has_tails()) * 4;
        let (mut tags, mut at, len) = (Vec::new(), 12, self.tag_bytes());
        while at + len <= end {
            let (flags, high, sum) = match self.sums_v3 {
                true => {
                    (fields.be32(at + 4)?, fields.be32(at + 8)?, Sum::Whole(fields.be32(at + 12)?))
                }
                false => {
                    let high = if self.wide { fields.be32(at + 8)? } else { 0 };
                    (fields.be16(at + 6)?.into(), high, Sum::Low(fields.be16(at + 4)?))
                }
            };
            let high = if self.wide { high } else { 0 };
            tags.push(Tag {
                block: u64::from(high) << 32 | u64::from(fields.be32(at)?),
                escaped: flags & ESCAPED != 0,
                sum: self.has_tails().then_some(sum),
            });
            at += len + if flags & SAME_UUID == 0 { 16 } else { 0 };
            if flags & LAST != 0 {
                break;
            }
        }
        Ok(tags)
    }

    /// The blocks that a block of revocations names.
    pub(super) fn revoked(&self, bytes: &[u8]) -> Result<Vec<u64>, Error> {
        let fields = Fields::new(bytes, "a block of revocations in the journal");
        let (used, len) = (fields.be32(12)? as usize, if self.wide { 8 } else { 4 });
        let end = used.min(bytes.len() - usize::from(self.has_tails()) * 4);
        let mut blocks = Vec::new();
        let mut at = 16;
        while at + len <= end {
            blocks.push(if self.wide { fields.be64(at)? } else { fields.be32(at)?.into() });
            at += len;
        }
        Ok(blocks)
    }
}

/// What a descriptor block tells of one block that follows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Tag {
    /// Its place in the file system.
    pub(super) block: u64,
    /// See [`super::Copy`].
    pub(super) escaped: bool,
    /// Its checksum, where the journal has any.
    pub(super) sum: Option<Sum>,
}

/// The superblock's checksum, over its 1,024 bytes with the checksum itself as zeros.
fn check_superblock(bytes: &[u8], fields: &Fields<'_>) -> Result<(), Error> {
    if fields.u8(0x50)? != 4 {
        return Err(Error::unsupported("the journal has checksums other than CRC-32C"));
    }
    let stored = fields.be32(0xfc)?;
    let parts = [fields.slice(0, 0xfc)?, &[0; 4], fields.slice(0x100, 0x300)?];
    if bytes.len() < 1024 || crc(u32::MAX, &parts) != stored {
        return Err(Error::damaged("the journal's superblock has a wrong checksum"));
    }
    Ok(())
}

/// The checksum of version 1 that a commit block has, if it has one.
pub(super) fn commit_sum_v1(bytes: &[u8]) -> Option<u32> {
    let fields = Fields::new(bytes, "a commit block");
    let (kind, len) = (fields.u8(12).ok()?, fields.u8(13).ok()?);
    (kind == 1 && len == 4).then(|| fields.be32(16).ok()).flatten()
}

/// The transaction that the area of fast commits goes on from, if something is in it. Source: the page above, "Fast commits".
pub(super) fn fast_head(bytes: &[u8]) -> Option<u32> {
    let fields = Fields::new(bytes, "the first fast commit");
    (fields.le16(0).ok()? == 9).then(|| fields.le32(8).ok()).flatten()
}
