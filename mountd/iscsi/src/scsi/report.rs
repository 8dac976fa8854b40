//! What the device says of itself: units, commands, port groups, sense (SPC-4, 6.27, 6.33 to 6.39).

use super::device::{Device, NO_UNIT, address_of};
use super::inquiry::{PORT, PORT_GROUP, of_nothing};
use super::sense::{Key, Sense};
use super::table::{Answer, COMMANDS, Call, Command, find, has_opcode};
use super::{cut, get16, get32};

/// A command for a unit that is not there (SPC-4, 6.6 and SAM-5, 5.11): most are refused.
pub(super) fn start_without_unit(device: &Device, cdb: &[u8; 16]) -> Answer {
    match cdb[0] {
        0x12 if cdb[1] & 0x01 == 0 => Ok(cut(of_nothing(), get16(cdb, 3).into())),
        0x03 => Ok(cut(NO_UNIT.encode(cdb[1] & 0x01 != 0), cdb[4].into())),
        0xa0 => luns(device, cdb),
        _ => Err(NO_UNIT.into()),
    }
}

pub(super) fn luns(device: &Device, cdb: &[u8; 16]) -> Answer {
    let units = match cdb[2] {
        0x00 | 0x02 => &device.units[..],
        // Well known units: there are none.
        0x01 => &[],
        _ => return Err(Sense::cdb(2).into()),
    };
    let mut data = ((units.len() * 8) as u32).to_be_bytes().to_vec();
    data.extend([0; 4]);
    data.extend(units.iter().flat_map(|unit| address_of(unit.lun)));
    Ok(cut(data, get32(cdb, 6) as usize))
}

pub(super) fn request_sense(call: &Call<'_>) -> Answer {
    let descriptors = call.cdb[1] & 0x01 != 0;
    let sense = call.link.attention.take().unwrap_or(Sense::new(Key::None, (0, 0)));
    Ok(cut(sense.encode(descriptors), call.cdb[4].into()))
}

/// READ DEFECT DATA: there are none, in either list (SBC-3, 5.17 and 5.18).
pub(super) fn defects10(call: &Call<'_>) -> Answer {
    let data = vec![0, call.cdb[2] & 0x1f, 0, 0];
    Ok(cut(data, call.get16(7).into()))
}

pub(super) fn defects12(call: &Call<'_>) -> Answer {
    let data = vec![0, call.cdb[1] & 0x1f, 0, 0, 0, 0, 0, 0];
    Ok(cut(data, call.get32(6) as usize))
}

/// START STOP UNIT: there is nothing to start, and the medium stays in.
pub(super) fn start_stop(call: &Call<'_>) -> Answer {
    let (power, eject) = (call.cdb[4] >> 4, call.cdb[4] & 0x02 != 0);
    if power == 0 && eject {
        return Err(Sense::cdb_bit(4, 1).into());
    }
    Call::good()
}

pub(super) fn target_port_groups(call: &Call<'_>) -> Answer {
    let extended = match call.cdb[1] >> 5 {
        0 => false,
        1 => true,
        _ => return Err(Sense::cdb_bit(1, 7).into()),
    };
    let mut body = Vec::new();
    if extended {
        body.extend([0x10, 0, 0, 0]);
    }
    // Active and optimised, which is all it can be.
    body.extend([0x00, 0x01]);
    body.extend(PORT_GROUP.to_be_bytes());
    // Nothing changes the state but the target itself; one port.
    body.extend([0, 0x02, 0, 1, 0, 0]);
    body.extend(PORT.to_be_bytes());
    let mut data = (body.len() as u32).to_be_bytes().to_vec();
    data.extend(body);
    Ok(cut(data, call.get32(6) as usize))
}

pub(super) fn supported_functions(call: &Call<'_>) -> Answer {
    if call.get32(6) < 4 {
        return Err(Sense::cdb(6).into());
    }
    // ABORT TASK, ABORT TASK SET, CLEAR TASK SET, LOGICAL UNIT RESET, QUERY TASK.
    let mut data = vec![0x80 | 0x40 | 0x10 | 0x08 | 0x04, 0, 0, 0];
    if call.cdb[2] & 0x80 != 0 {
        data[3] = 12;
        data.resize(16, 0);
    }
    Ok(cut(data, call.get32(6) as usize))
}

/// REPORT SUPPORTED OPERATION CODES (SPC-4, 6.35).
pub(super) fn supported_opcodes(call: &Call<'_>) -> Answer {
    let (with_times, option) = (call.cdb[2] & 0x80 != 0, call.cdb[2] & 0x07);
    let (opcode, action) = (call.cdb[3], call.get16(4));
    let data = match option {
        0 => all(with_times),
        1 if has_actions(opcode) => return Err(Sense::cdb_bit(2, 2).into()),
        2 if has_opcode(opcode) && !has_actions(opcode) => {
            return Err(Sense::cdb_bit(2, 2).into());
        }
        1..=3 => one(opcode, action, with_times),
        _ => return Err(Sense::cdb_bit(2, 2).into()),
    };
    Ok(cut(data, call.get32(6) as usize))
}

fn has_actions(opcode: u8) -> bool {
    COMMANDS.iter().any(|command| command.opcode == opcode && command.action.is_some())
}

/// A command timeouts descriptor that says nothing.
fn times() -> [u8; 12] {
    let mut times = [0; 12];
    times[1] = 0x0a;
    times
}

fn all(with_times: bool) -> Vec<u8> {
    let mut data = vec![0; 4];
    for command in COMMANDS {
        data.extend([command.opcode, 0]);
        data.extend(u16::from(command.action.unwrap_or(0)).to_be_bytes());
        let flags = u8::from(with_times) << 1 | u8::from(command.action.is_some());
        data.extend([0, flags]);
        data.extend((command.usage.len() as u16 + 1).to_be_bytes());
        if with_times {
            data.extend(times());
        }
    }
    let len = (data.len() - 4) as u32;
    data[..4].copy_from_slice(&len.to_be_bytes());
    data
}

fn one(opcode: u8, action: u16, with_times: bool) -> Vec<u8> {
    let action = u8::try_from(action).unwrap_or(u8::MAX);
    let Some(command) = find(opcode, action) else { return vec![0, 0x01, 0, 0] };
    // Supported, as the standard says.
    let mut data = vec![0, if with_times { 0x80 } else { 0 } | 0x03];
    data.extend((command.usage.len() as u16 + 1).to_be_bytes());
    data.extend(usage(command));
    if with_times {
        data.extend(times());
    }
    data
}

/// The CDB usage data: the operation code and service action themselves, and a bit for every bit that means something.
fn usage(command: &Command) -> Vec<u8> {
    let mut usage = vec![command.opcode];
    usage.extend(command.usage);
    if let Some(action) = command.action {
        usage[1] = usage[1] & !0x1f | action;
    }
    usage
}
