//! Group descriptors: where the inodes are. Source: Linux `Documentation/filesystems/ext4/group_descr.rst`.

use super::blocks::Blocks;
use super::sums::{crc, crc16};
use super::superblock::{Superblock, feature};
use crate::Error;
use crate::fields::Fields;

/// The first block of the table of inodes of a group.
pub(super) fn inode_table(blocks: &Blocks, sb: &Superblock, group: u32) -> Result<u64, Error> {
    let bytes = u32::from(sb.descriptor_bytes);
    let per_block = sb.block_bytes / bytes;
    let block = place(sb, group / per_block, per_block)?;
    let within = group % per_block * bytes;
    let what = format!("the descriptor of group {group}");
    let mut descriptor = vec![0; bytes as usize];
    blocks.read(block, within, &mut descriptor, &what)?;
    check(sb, group, &descriptor, &what)?;
    let f = Fields::new(&descriptor, &what);
    let high = if bytes >= 64 { f.le32(0x28)? } else { 0 };
    let table = u64::from(high) << 32 | u64::from(f.le32(8)?);
    let len = (u64::from(sb.inodes_per_group) * u64::from(sb.inode_bytes))
        .div_ceil(sb.block_bytes.into());
    blocks.check_run(table, len, &what)?;
    Ok(table)
}

/// Block `number` of the descriptors, of which one holds `per_block`.
fn place(sb: &Superblock, number: u32, per_block: u32) -> Result<u64, Error> {
    // The superblock's own block, which with blocks of 1 KiB is not the first one.
    let own = u64::from(sb.block_bytes == 1024);
    let in_group =
        |group: u64| group * u64::from(sb.blocks_per_group) + u64::from(sb.first_data_block);
    if sb.incompat & feature::META_BG == 0 || number < sb.first_meta_group {
        let start = if sb.group == 0 { own } else { in_group(sb.group) };
        return Ok(start + 1 + u64::from(number));
    }
    let group = u64::from(number) * u64::from(per_block);
    let mut skip = u64::from(has_superblock(sb, group));
    if group == 0 && sb.block_bytes == 1024 && sb.first_data_block == 0 {
        skip += 1;
    }
    Ok(in_group(group) + skip)
}

/// Whether a group begins with a superblock.
fn has_superblock(sb: &Superblock, group: u64) -> bool {
    if group == 0 {
        return true;
    }
    if sb.compat & feature::SPARSE_SUPER2 != 0 {
        return sb.backup_groups.iter().any(|backup| u64::from(*backup) == group);
    }
    if group == 1 || sb.ro_compat & feature::SPARSE_SUPER == 0 {
        return true;
    }
    let is_power_of = |base: u64| {
        let mut power = base;
        while power < group {
            power *= base;
        }
        power == group
    };
    [3, 5, 7].into_iter().any(is_power_of)
}

fn check(sb: &Superblock, group: u32, descriptor: &[u8], what: &str) -> Result<(), Error> {
    let f = Fields::new(descriptor, what);
    let (head, rest) = (f.slice(0, 0x1e)?, descriptor.get(0x20..).unwrap_or_default());
    let number = group.to_le_bytes();
    let found = if sb.has_checksums() {
        crc(sb.seed, &[&number, head, &[0; 2], rest]) as u16
    } else if sb.ro_compat & feature::GDT_CSUM != 0 {
        let wide = sb.incompat & feature::WIDE != 0;
        crc16(&[&sb.uuid, &number, head, if wide { rest } else { &[] }])
    } else {
        return Ok(());
    };
    match found == f.le16(0x1e)? {
        true => Ok(()),
        false => Err(Error::damaged(format!("{what} has a wrong checksum"))),
    }
}
