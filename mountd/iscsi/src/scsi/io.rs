//! Reading, writing, verifying (SBC-3, section 5).

use std::sync::Arc;

use backstay_blockdev::WriteFlags;

use super::inquiry::MAX_TRANSFER_BLOCKS;
use super::sense::Sense;
use super::table::{Answer, Call};
use super::unit::Unit;
use super::{BLOCK_BYTES, Fault, Length, Plan};

/// What is verified without the initiator's data is read in pieces of this size.
const PIECE_BYTES: u64 = 1 << 20;

/// A range of blocks.
#[derive(Debug, Clone, Copy)]
pub(super) struct Range {
    pub(super) lba: u64,
    pub(super) count: u32,
}

impl Range {
    pub(super) fn offset(self) -> u64 {
        self.lba * u64::from(BLOCK_BYTES)
    }

    /// Its length in bytes. (Of what [`checked`] lets through it fits in 32 bits.)
    pub(super) fn bytes(self) -> u64 {
        u64::from(self.count) * u64::from(BLOCK_BYTES)
    }
}

/// The address and length of CDBs of each length.
fn six(call: &Call<'_>) -> Range {
    let lba = call.get32(0) & 0x001f_ffff;
    let count = match call.cdb[4] {
        0 => 256,
        count => count.into(),
    };
    Range { lba: lba.into(), count }
}

fn ten(call: &Call<'_>) -> Range {
    Range { lba: call.get32(2).into(), count: call.get16(7).into() }
}

fn twelve(call: &Call<'_>) -> Range {
    Range { lba: call.get32(2).into(), count: call.get32(6) }
}

fn sixteen(call: &Call<'_>) -> Range {
    Range { lba: call.get64(2), count: call.get32(10) }
}

/// A range that lies in the unit and is no longer than a transfer may be.
pub(super) fn checked(unit: &Unit, range: Range) -> Result<Range, Fault> {
    if !unit.holds(range.lba, range.count.into()) {
        return Err(Sense::range().into());
    }
    if range.count > MAX_TRANSFER_BLOCKS {
        // SBC-3, 6.6.3: beyond MAXIMUM TRANSFER LENGTH the CDB is invalid.
        return Err(Sense::cdb(match range.lba {
            lba if lba > u32::MAX.into() => 10,
            _ => 6,
        })
        .into());
    }
    Ok(range)
}

/// RDPROTECT, WRPROTECT, VRPROTECT: the unit has no protection information.
pub(super) fn unprotected(call: &Call<'_>) -> Result<(), Fault> {
    if call.cdb[1] >> 5 == 0 { Ok(()) } else { Err(Sense::cdb_bit(1, 7).into()) }
}

fn read(call: &Call<'_>, range: Range) -> Answer {
    let range = checked(call.unit, range)?;
    Ok(Plan::Read {
        device: call.unit.device.clone(),
        offset_bytes: range.offset(),
        len_bytes: range.bytes() as u32,
    })
}

pub(super) fn read6(call: &Call<'_>) -> Answer {
    read(call, six(call))
}

pub(super) fn read10(call: &Call<'_>) -> Answer {
    unprotected(call)?;
    read(call, ten(call))
}

pub(super) fn read12(call: &Call<'_>) -> Answer {
    unprotected(call)?;
    read(call, twelve(call))
}

pub(super) fn read16(call: &Call<'_>) -> Answer {
    unprotected(call)?;
    read(call, sixteen(call))
}

/// The force unit access bit.
fn fua(call: &Call<'_>) -> bool {
    call.cdb[1] & 0x08 != 0
}

fn write(call: &Call<'_>, range: Range, fua: bool) -> Answer {
    let range = checked(call.unit, range)?;
    if range.count == 0 {
        return Call::good();
    }
    let unit = call.unit.clone();
    let flags = WriteFlags { fua, ..WriteFlags::default() };
    Ok(call.work_of(Length::AtMost, range.bytes() as u32, move |data| {
        let _shared = unit.writes.read();
        unit.device.write_at(range.offset(), data, flags)?;
        Ok(Vec::new())
    }))
}

pub(super) fn write6(call: &Call<'_>) -> Answer {
    write(call, six(call), false)
}

pub(super) fn write10(call: &Call<'_>) -> Answer {
    unprotected(call)?;
    write(call, ten(call), fua(call))
}

pub(super) fn write12(call: &Call<'_>) -> Answer {
    unprotected(call)?;
    write(call, twelve(call), fua(call))
}

pub(super) fn write16(call: &Call<'_>) -> Answer {
    unprotected(call)?;
    write(call, sixteen(call), fua(call))
}

/// How a VERIFY compares (BYTCHK).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Against {
    /// With nothing: that it can be read is enough.
    Nothing,
    /// With the initiator's data.
    Data,
    /// Each block with one of the initiator's.
    OneBlock,
}

impl Against {
    fn of(call: &Call<'_>) -> Result<Self, Fault> {
        match call.cdb[1] >> 1 & 0x03 {
            0 => Ok(Self::Nothing),
            1 => Ok(Self::Data),
            3 => Ok(Self::OneBlock),
            _ => Err(Sense::cdb_bit(1, 2).into()),
        }
    }
}

fn verify(call: &Call<'_>, range: Range) -> Answer {
    unprotected(call)?;
    let against = Against::of(call)?;
    let range = match against {
        // Nothing is moved, so the length of transfers is no bound.
        Against::Nothing if call.unit.holds(range.lba, range.count.into()) => range,
        Against::Nothing => return Err(Sense::range().into()),
        _ => checked(call.unit, range)?,
    };
    if range.count == 0 {
        return Call::good();
    }
    let data_out = match against {
        Against::Nothing => 0,
        Against::Data => range.bytes() as u32,
        Against::OneBlock => BLOCK_BYTES,
    };
    let unit = call.unit.clone();
    Ok(call.work_of(Length::Exact, data_out, move |data| {
        compare(&unit, range, against, data)?;
        Ok(Vec::new())
    }))
}

/// Reads a range and compares it.
fn compare(unit: &Unit, range: Range, against: Against, data: &[u8]) -> Result<(), Fault> {
    let mut piece = vec![0; range.bytes().min(PIECE_BYTES) as usize];
    let mut done = 0;
    while done < range.bytes() {
        let len = (range.bytes() - done).min(PIECE_BYTES) as usize;
        let found = &mut piece[..len];
        unit.device.read_at(range.offset() + done, found)?;
        let differs = match against {
            Against::Nothing => None,
            Against::Data => first_difference(found, &data[done as usize..done as usize + len]),
            Against::OneBlock => {
                found.chunks(BLOCK_BYTES as usize).enumerate().find_map(|(i, block)| {
                    Some(i * BLOCK_BYTES as usize + first_difference(block, data)?)
                })
            }
        };
        if let Some(at) = differs {
            return Err(Sense::miscompare(done + at as u64).into());
        }
        done += len as u64;
    }
    Ok(())
}

/// Where two equally long pieces differ first.
pub(super) fn first_difference(one: &[u8], other: &[u8]) -> Option<usize> {
    if one == other {
        return None;
    }
    one.iter().zip(other).position(|(one, other)| one != other)
}

pub(super) fn verify10(call: &Call<'_>) -> Answer {
    verify(call, ten(call))
}

pub(super) fn verify12(call: &Call<'_>) -> Answer {
    verify(call, twelve(call))
}

pub(super) fn verify16(call: &Call<'_>) -> Answer {
    verify(call, sixteen(call))
}

fn write_verify(call: &Call<'_>, range: Range) -> Answer {
    unprotected(call)?;
    let against = match Against::of(call)? {
        Against::OneBlock => return Err(Sense::cdb_bit(1, 2).into()),
        against => against,
    };
    let range = checked(call.unit, range)?;
    if range.count == 0 {
        return Call::good();
    }
    let unit = call.unit.clone();
    Ok(call.work_of(Length::AtMost, range.bytes() as u32, move |data| {
        let _shared = unit.writes.read();
        let count = (data.len() / BLOCK_BYTES as usize) as u32;
        let range = Range { count, ..range };
        // What is verified has to be on the medium.
        let flags = WriteFlags { fua: true, ..WriteFlags::default() };
        unit.device.write_at(range.offset(), data, flags)?;
        compare(&unit, range, against, data)?;
        Ok(Vec::new())
    }))
}

pub(super) fn write_verify10(call: &Call<'_>) -> Answer {
    write_verify(call, ten(call))
}

pub(super) fn write_verify12(call: &Call<'_>) -> Answer {
    write_verify(call, twelve(call))
}

pub(super) fn write_verify16(call: &Call<'_>) -> Answer {
    write_verify(call, sixteen(call))
}

fn prefetch(call: &Call<'_>, range: Range) -> Answer {
    if !call.unit.holds(range.lba, range.count.into()) {
        return Err(Sense::range().into());
    }
    // 0 is up to the end; no more is fetched than a transfer holds, as the hint promises nothing.
    let len = match range.count {
        0 => call.unit.blocks - range.lba,
        count => count.into(),
    };
    let bytes = len.min(MAX_TRANSFER_BLOCKS.into()) * u64::from(BLOCK_BYTES);
    call.unit.device.prefetch(range.offset(), bytes);
    Call::good()
}

pub(super) fn prefetch10(call: &Call<'_>) -> Answer {
    prefetch(call, ten(call))
}

pub(super) fn prefetch16(call: &Call<'_>) -> Answer {
    prefetch(call, sixteen(call))
}

fn synchronize(call: &Call<'_>, range: Range) -> Answer {
    if !call.unit.holds(range.lba, range.count.into()) {
        return Err(Sense::range().into());
    }
    if !call.unit.caps.writable {
        return Call::good();
    }
    // IMMED would allow an answer before it is done; nobody is served by that.
    let unit: Arc<Unit> = call.unit.clone();
    Ok(call.work(0, move |_| {
        unit.device.flush()?;
        Ok(Vec::new())
    }))
}

pub(super) fn synchronize10(call: &Call<'_>) -> Answer {
    synchronize(call, ten(call))
}

pub(super) fn synchronize16(call: &Call<'_>) -> Answer {
    synchronize(call, sixteen(call))
}
