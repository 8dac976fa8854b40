//! How large the unit is, and what of it is there (SBC-3, 5.10, 5.11, 5.12 of its kind).

use super::sense::Sense;
use super::table::{Answer, Call};
use super::unit::Unit;
use super::{BLOCK_BYTES, Fault, cut};

/// Descriptors in one GET LBA STATUS.
const MAX_DESCRIPTORS: usize = 4096;

pub(super) fn read10(call: &Call<'_>) -> Answer {
    // PMI is obsolete, and without it there is no block to speak of.
    if call.cdb[8] & 0x01 == 0 && call.get32(2) != 0 {
        return Err(Sense::cdb(2).into());
    }
    let last = u32::try_from(call.unit.blocks - 1).unwrap_or(u32::MAX);
    let mut data = last.to_be_bytes().to_vec();
    data.extend(BLOCK_BYTES.to_be_bytes());
    Ok(cut(data, 8))
}

pub(super) fn read16(call: &Call<'_>) -> Answer {
    let mut data = vec![0; 32];
    data[..8].copy_from_slice(&(call.unit.blocks - 1).to_be_bytes());
    data[8..12].copy_from_slice(&BLOCK_BYTES.to_be_bytes());
    data[13] = call.unit.physical_exponent;
    // LBPME: it says what is there; LBPRZ: what is not reads as zeros.
    data[14] = 0x80 | if call.unit.zeroes() { 0x40 } else { 0 };
    Ok(cut(data, call.get32(10) as usize))
}

/// GET LBA STATUS. The device may have to look, so it is work.
pub(super) fn lba_status(call: &Call<'_>) -> Answer {
    let (lba, allocation) = (call.get64(2), call.get32(10) as usize);
    if lba >= call.unit.blocks {
        return Err(Sense::range().into());
    }
    let unit = call.unit.clone();
    let max = (allocation.saturating_sub(8) / 16).clamp(1, MAX_DESCRIPTORS);
    Ok(call.work(0, move |_| {
        let mut data = statuses(&unit, lba, max)?;
        data.truncate(allocation);
        Ok(data)
    }))
}

fn statuses(unit: &Unit, lba: u64, max: usize) -> Result<Vec<u8>, Fault> {
    let block = u64::from(BLOCK_BYTES);
    let (from, size) = (lba * block, unit.blocks * block);
    let extents = unit.device.extents(from, size - from, max)?;
    let mut data = vec![0; 8];
    let (mut at, mut list) = (lba, Vec::<(u64, u64, bool)>::new());
    for extent in &extents {
        let (start, end) = (extent.offset_bytes, extent.offset_bytes + extent.len_bytes);
        // Only blocks that are wholly zeros are not there.
        let (first, last) = match extent.kind.is_zero() {
            true => (start.div_ceil(block), end / block),
            false => (start / block, end.div_ceil(block)),
        };
        let first = first.max(at);
        if extent.kind.is_zero() {
            push(&mut list, at, first.min(last.max(at)), true);
            push(&mut list, first, last, false);
        } else {
            push(&mut list, at, last, true);
        }
        at = at.max(last);
    }
    for (first, end, mapped) in list.iter().take(max) {
        data.extend(first.to_be_bytes());
        data.extend(u32::try_from(end - first).unwrap_or(u32::MAX).to_be_bytes());
        // 0: mapped; 1: deallocated.
        data.extend([u8::from(!mapped), 0, 0, 0]);
        if end - first > u64::from(u32::MAX) {
            // The rest is asked for from there on.
            break;
        }
    }
    let len = (data.len() - 4) as u32;
    data[..4].copy_from_slice(&len.to_be_bytes());
    Ok(data)
}

/// Adds a range, to the last one if that is of its kind.
fn push(list: &mut Vec<(u64, u64, bool)>, first: u64, end: u64, mapped: bool) {
    if first >= end {
        return;
    }
    match list.last_mut() {
        Some(last) if last.2 == mapped && last.1 == first => last.1 = end,
        _ => list.push((first, end, mapped)),
    }
}
