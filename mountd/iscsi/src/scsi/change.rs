//! Changes that are no plain writes: WRITE SAME, UNMAP, COMPARE AND WRITE, ORWRITE (SBC-3, section 5).

use backstay_blockdev::WriteFlags;

use super::inquiry::{MAX_COMPARE_BLOCKS, MAX_SAME_BLOCKS, MAX_UNMAP_BLOCKS, MAX_UNMAP_PIECES};
use super::io::{Range, checked, first_difference, unprotected};
use super::sense::Sense;
use super::table::{Answer, Call};
use super::unit::Unit;
use super::{BLOCK_BYTES, Fault, Length, get16, get32, get64};

/// A pattern is written in pieces of this size.
const PIECE_BYTES: usize = 1 << 20;

pub(super) fn write_same10(call: &Call<'_>) -> Answer {
    let (lba, count) = (call.get32(2).into(), call.get16(7).into());
    write_same(call, lba, count, false)
}

pub(super) fn write_same16(call: &Call<'_>) -> Answer {
    write_same(call, call.get64(2), call.get32(10).into(), call.cdb[1] & 0x01 != 0)
}

/// WRITE SAME; `no_data`: the block is one of zeros, and is not sent (NDOB).
fn write_same(call: &Call<'_>, lba: u64, count: u64, no_data: bool) -> Answer {
    unprotected(call)?;
    let (anchor, unmap) = (call.cdb[1] & 0x10 != 0, call.cdb[1] & 0x08 != 0);
    if anchor {
        // Nothing can be anchored here, and without UNMAP it means nothing anywhere.
        return Err(Sense::cdb_bit(1, 4).into());
    }
    if !call.unit.holds(lba, count) {
        return Err(Sense::range().into());
    }
    // 0 is up to the end.
    let count = if count == 0 { call.unit.blocks - lba } else { count };
    if count > MAX_SAME_BLOCKS {
        // MAXIMUM WRITE SAME LENGTH.
        return Err(Sense::cdb(if call.cdb[0] == 0x41 { 7 } else { 10 }).into());
    }
    let unit = call.unit.clone();
    let block = u64::from(BLOCK_BYTES);
    let (offset, len) = (lba * block, count * block);
    let wanted = if no_data { 0 } else { BLOCK_BYTES };
    Ok(call.work_of(Length::Exact, wanted, move |data| {
        let _shared = unit.writes.read();
        // With UNMAP the blocks are given back whatever the data is, as by LIO and tgt, and as libiscsi's suite wants it.
        if no_data || unmap || data.iter().all(|byte| *byte == 0) {
            zero(&unit, offset, len, unmap)?;
        } else {
            fill(&unit, offset, len, data)?;
        }
        Ok(Vec::new())
    }))
}

/// Makes a range read as zeros; with `unmap` its space is given back, and else it may be.
fn zero(unit: &Unit, offset: u64, len: u64, unmap: bool) -> Result<(), Fault> {
    if unit.caps.write_zeroes {
        let flags = WriteFlags { no_hole: !unmap && !unit.caps.trim, ..WriteFlags::default() };
        unit.device.write_zeroes(offset, len, flags)?;
        return Ok(());
    }
    fill(unit, offset, len, &[0; BLOCK_BYTES as usize])
}

fn fill(unit: &Unit, offset: u64, len: u64, block: &[u8]) -> Result<(), Fault> {
    let piece = block.repeat((PIECE_BYTES.min(len as usize)) / block.len());
    let mut done = 0;
    while done < len {
        let part = (len - done).min(piece.len() as u64) as usize;
        unit.device.write_at(offset + done, &piece[..part], WriteFlags::default())?;
        done += part as u64;
    }
    Ok(())
}

pub(super) fn unmap(call: &Call<'_>) -> Answer {
    if call.cdb[1] & 0x01 != 0 {
        return Err(Sense::cdb_bit(1, 0).into());
    }
    if !call.unit.caps.trim && !call.unit.caps.write_zeroes {
        return Err(Sense::opcode().into());
    }
    let len = call.get16(7);
    if len == 0 {
        return Call::good();
    }
    let unit = call.unit.clone();
    Ok(call.work(len.into(), move |data| {
        let ranges = ranges_to_unmap(&unit, data)?;
        let _shared = unit.writes.read();
        for (offset, len) in ranges {
            // What was unmapped has to read as zeros (LBPRZ), where the device can do that.
            match unit.caps.write_zeroes {
                true => unit.device.write_zeroes(offset, len, WriteFlags::default())?,
                false => unit.device.trim(offset, len, WriteFlags::default())?,
            }
        }
        Ok(Vec::new())
    }))
}

/// The parameter list of UNMAP (SBC-3, 5.28.2). Nothing is done unless all of it can be.
fn ranges_to_unmap(unit: &Unit, data: &[u8]) -> Result<Vec<(u64, u64)>, Fault> {
    if data.len() < 8 {
        return Err(Sense::list_length().into());
    }
    let told = usize::from(get16(data, 2));
    if told > data.len() - 8 {
        // Less came than is told of: the list is cut off.
        return Err(Sense::list_length().into());
    }
    let pieces = &data[8..8 + told];
    if pieces.len() / 16 > MAX_UNMAP_PIECES as usize {
        return Err(Sense::parameter(2).into());
    }
    let (mut ranges, mut sum) = (Vec::new(), 0u64);
    for (i, piece) in pieces.chunks_exact(16).enumerate() {
        let (lba, count) = (get64(piece, 0), u64::from(get32(piece, 8)));
        if count == 0 {
            continue;
        }
        if !unit.holds(lba, count) {
            return Err(Sense::range().into());
        }
        sum += count;
        if sum > MAX_UNMAP_BLOCKS.into() {
            return Err(Sense::parameter((8 + 16 * i + 8) as u16).into());
        }
        let block = u64::from(BLOCK_BYTES);
        ranges.push((lba * block, count * block));
    }
    Ok(ranges)
}

/// COMPARE AND WRITE: what hosts take locks with, so nothing may come between (SBC-3, 5.3).
pub(super) fn compare_and_write(call: &Call<'_>) -> Answer {
    unprotected(call)?;
    let range = Range { lba: call.get64(2), count: call.cdb[13].into() };
    if range.count > MAX_COMPARE_BLOCKS.into() {
        return Err(Sense::cdb(13).into());
    }
    let range = checked(call.unit, range)?;
    let unit = call.unit.clone();
    let flags = WriteFlags { fua: call.cdb[1] & 0x08 != 0, ..WriteFlags::default() };
    Ok(call.work_of(Length::Exact, 2 * range.bytes() as u32, move |data| {
        if data.is_empty() {
            return Ok(Vec::new());
        }
        let (expected, new) = data.split_at(data.len() / 2);
        let mut found = vec![0; expected.len()];
        let _alone = unit.writes.write();
        unit.device.read_at(range.offset(), &mut found)?;
        if let Some(at) = first_difference(&found, expected) {
            return Err(Sense::miscompare(at as u64).into());
        }
        unit.device.write_at(range.offset(), new, flags)?;
        Ok(Vec::new())
    }))
}

pub(super) fn or_write(call: &Call<'_>) -> Answer {
    unprotected(call)?;
    let range = checked(call.unit, Range { lba: call.get64(2), count: call.get32(10) })?;
    if range.count == 0 {
        return Call::good();
    }
    let unit = call.unit.clone();
    let flags = WriteFlags { fua: call.cdb[1] & 0x08 != 0, ..WriteFlags::default() };
    Ok(call.work_of(Length::Exact, range.bytes() as u32, move |data| {
        let mut found = vec![0; data.len()];
        let _alone = unit.writes.write();
        unit.device.read_at(range.offset(), &mut found)?;
        found.iter_mut().zip(data).for_each(|(found, new)| *found |= new);
        unit.device.write_at(range.offset(), &found, flags)?;
        Ok(Vec::new())
    }))
}
