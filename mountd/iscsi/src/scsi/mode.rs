//! MODE SENSE and MODE SELECT (SPC-4, 6.11 to 6.14, 7.5; SBC-3, 6.5).

use std::sync::atomic::Ordering;

use super::attention::MODE_CHANGED;
use super::sense::Sense;
use super::table::{Answer, Call};
use super::unit::Unit;
use super::{BLOCK_BYTES, Fault, cut, get16};

const CACHING: u8 = 0x08;
const CONTROL: u8 = 0x0a;
/// The pages there are, in the order they are told.
const PAGES: &[u8] = &[0x02, CACHING, CONTROL, 0x1c];
/// The bits of the control page that may be changed: D_SENSE and SWP.
const D_SENSE: u8 = 0x04;
const SWP: u8 = 0x08;

/// Which values are asked for (PC).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Values {
    Current,
    Changeable,
    Default,
}

/// A page, with its code and length.
fn page(unit: &Unit, code: u8, values: Values) -> Vec<u8> {
    let mut page = match code {
        CONTROL | 0x1c => vec![0; 12],
        CACHING => vec![0; 20],
        _ => vec![0; 16],
    };
    page[0] = code;
    page[1] = (page.len() - 2) as u8;
    let flag = |flag: &std::sync::atomic::AtomicBool, bit| match values {
        Values::Current if flag.load(Ordering::Relaxed) => bit,
        Values::Changeable => bit,
        _ => 0,
    };
    if code == CONTROL {
        page[2] = flag(&unit.descriptors, D_SENSE);
        page[4] = flag(&unit.protected, SWP);
    }
    if values == Values::Changeable {
        return page;
    }
    match code {
        // WCE: what is written is durable after SYNCHRONIZE CACHE.
        CACHING if unit.caps.writable => page[2] = 0x04,
        // Unrestricted reordering.
        CONTROL => page[3] = 0x10,
        _ => {}
    }
    page
}

/// The pages that a MODE SENSE asks for.
fn pages(unit: &Unit, cdb: &[u8; 16]) -> Result<Vec<u8>, Fault> {
    let values = match cdb[2] >> 6 {
        0 => Values::Current,
        1 => Values::Changeable,
        2 => Values::Default,
        // SAVING PARAMETERS NOT SUPPORTED.
        _ => return Err(Sense::illegal((0x39, 0x00)).into()),
    };
    let (code, subpage) = (cdb[2] & 0x3f, cdb[3]);
    match (code, subpage) {
        (0x3f, 0x00 | 0xff) => {
            Ok(PAGES.iter().flat_map(|code| page(unit, *code, values)).collect())
        }
        (code, 0x00 | 0xff) if PAGES.contains(&code) => Ok(page(unit, code, values)),
        (code, _) if PAGES.contains(&code) || code == 0x3f => Err(Sense::cdb(3).into()),
        _ => Err(Sense::cdb_bit(2, 5).into()),
    }
}

/// A short block descriptor.
fn block_descriptor(unit: &Unit) -> [u8; 8] {
    let blocks = u32::try_from(unit.blocks).unwrap_or(u32::MAX);
    let mut descriptor = [0; 8];
    descriptor[..4].copy_from_slice(&blocks.to_be_bytes());
    descriptor[4..].copy_from_slice(&BLOCK_BYTES.to_be_bytes());
    descriptor
}

fn long_block_descriptor(unit: &Unit) -> [u8; 16] {
    let mut descriptor = [0; 16];
    descriptor[..8].copy_from_slice(&unit.blocks.to_be_bytes());
    descriptor[12..].copy_from_slice(&BLOCK_BYTES.to_be_bytes());
    descriptor
}

/// WP, and DPOFUA where writes can be forced.
fn specific(call: &Call<'_>) -> u8 {
    let protected = if call.is_protected() { 0x80 } else { 0 };
    let fua = if call.unit.caps.fua || !call.unit.caps.writable { 0x10 } else { 0 };
    protected | fua
}

/// DBD: no block descriptors.
fn without_descriptors(call: &Call<'_>) -> bool {
    call.cdb[1] & 0x08 != 0
}

pub(super) fn sense6(call: &Call<'_>) -> Answer {
    let pages = pages(call.unit, call.cdb)?;
    let mut data = vec![0, 0, specific(call), 0];
    if !without_descriptors(call) {
        data[3] = 8;
        data.extend(block_descriptor(call.unit));
    }
    data.extend(pages);
    data[0] = (data.len() - 1) as u8;
    Ok(cut(data, call.cdb[4].into()))
}

pub(super) fn sense10(call: &Call<'_>) -> Answer {
    let pages = pages(call.unit, call.cdb)?;
    let mut data = vec![0, 0, 0, specific(call), 0, 0, 0, 0];
    match (without_descriptors(call), call.cdb[1] & 0x10 != 0) {
        (true, _) => {}
        (false, true) => {
            (data[4], data[7]) = (1, 16);
            data.extend(long_block_descriptor(call.unit));
        }
        (false, false) => {
            data[7] = 8;
            data.extend(block_descriptor(call.unit));
        }
    }
    data.extend(pages);
    let len = (data.len() - 2) as u16;
    data[..2].copy_from_slice(&len.to_be_bytes());
    Ok(cut(data, call.get16(7).into()))
}

pub(super) fn select6(call: &Call<'_>) -> Answer {
    select(call, 4, call.cdb[4].into())
}

pub(super) fn select10(call: &Call<'_>) -> Answer {
    select(call, 8, call.get16(7))
}

/// MODE SELECT, with a list whose header has `header` bytes.
fn select(call: &Call<'_>, header: usize, len: u16) -> Answer {
    if call.cdb[1] & 0x10 == 0 {
        // PF: other pages than the standard's mean nothing here.
        return Err(Sense::cdb_bit(1, 4).into());
    }
    if call.cdb[1] & 0x01 != 0 {
        // SP: nothing is saved.
        return Err(Sense::cdb_bit(1, 0).into());
    }
    if len == 0 {
        return Call::good();
    }
    let (unit, id) = (call.unit.clone(), call.nexus.id());
    Ok(call.work(len.into(), move |data| {
        let (descriptors, protected) = selected(&unit, header, data)?;
        let mut changed = false;
        for (flag, new) in [(&unit.descriptors, descriptors), (&unit.protected, protected)] {
            changed |= new.is_some_and(|new| flag.swap(new, Ordering::Relaxed) != new);
        }
        if changed {
            unit.raise(MODE_CHANGED, |other, _| other != id);
        }
        Ok(Vec::new())
    }))
}

/// What a list sets D_SENSE and SWP to. All of it is checked before anything is set.
fn selected(
    unit: &Unit,
    header: usize,
    data: &[u8],
) -> Result<(Option<bool>, Option<bool>), Fault> {
    if data.len() < header {
        return Err(Sense::list_length().into());
    }
    let descriptors = match header {
        4 => usize::from(data[3]),
        _ => usize::from(get16(data, 6)),
    };
    let mut at = header + descriptors;
    if at > data.len() {
        return Err(Sense::list_length().into());
    }
    // The size of blocks, if it is told, has to stay.
    let told = &data[header..at];
    let block_bytes = match told.len() {
        0 => BLOCK_BYTES,
        8 => u32::from_be_bytes([0, told[5], told[6], told[7]]),
        16 => super::get32(told, 12),
        _ => return Err(Sense::parameter(header as u16 - 1).into()),
    };
    if block_bytes != BLOCK_BYTES {
        return Err(Sense::parameter(header as u16).into());
    }
    let mut set = (None, None);
    while at < data.len() {
        let rest = &data[at..];
        if rest.len() < 2 {
            return Err(Sense::list_length().into());
        }
        let code = rest[0] & 0x3f;
        if rest[0] & 0x40 != 0 || !PAGES.contains(&code) {
            return Err(Sense::parameter(at as u16).into());
        }
        let (now, mask) = (page(unit, code, Values::Current), page(unit, code, Values::Changeable));
        if usize::from(rest[1]) != now.len() - 2 {
            return Err(Sense::parameter(at as u16 + 1).into());
        }
        let Some(new) = rest.get(..now.len()) else { return Err(Sense::list_length().into()) };
        for i in 2..now.len() {
            if (new[i] ^ now[i]) & !mask[i] != 0 {
                return Err(Sense::parameter((at + i) as u16).into());
            }
        }
        if code == CONTROL {
            set = (Some(new[2] & D_SENSE != 0), Some(new[4] & SWP != 0));
        }
        at += now.len();
    }
    Ok(set)
}
