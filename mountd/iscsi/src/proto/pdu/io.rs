//! SCSI commands, their data, their responses (RFC 7143, 11.3, 11.4, 11.7, 11.8).

use super::{BHS_BYTES, FINAL, IMMEDIATE, expect, get32, get64, header, opcode, put32, put64};
use crate::proto::{Malformed, Serial};

/// SCSI Command (RFC 7143, 11.3).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScsiCommand {
    /// It is to be handled at once, and uses up no number.
    pub immediate: bool,
    /// No unsolicited Data-Out follows.
    pub final_pdu: bool,
    /// Data is expected from the target.
    pub read: bool,
    /// Data is expected from the initiator.
    pub write: bool,
    /// The task attribute, three bits (11.3.1).
    pub attribute: u8,
    /// The logical unit.
    pub lun: u64,
    /// The initiator's name for the task.
    pub initiator_task_tag: u32,
    /// Bytes the initiator expects to move.
    pub expected_data_transfer_length: u32,
    /// Its number.
    pub cmd_sn: Serial,
    /// The status number the initiator expects next.
    pub exp_stat_sn: Serial,
    /// The CDB, or its first 16 bytes.
    pub cdb: [u8; 16],
}

impl ScsiCommand {
    /// From a header.
    pub fn decode(from: &[u8; BHS_BYTES]) -> Result<Self, Malformed> {
        expect(from, opcode::SCSI_COMMAND)?;
        let mut cdb = [0; 16];
        cdb.copy_from_slice(&from[32..48]);
        Ok(Self {
            immediate: from[0] & IMMEDIATE != 0,
            final_pdu: from[1] & FINAL != 0,
            read: from[1] & 0x40 != 0,
            write: from[1] & 0x20 != 0,
            attribute: from[1] & 0x07,
            lun: get64(from, 8),
            initiator_task_tag: get32(from, 16),
            expected_data_transfer_length: get32(from, 20),
            cmd_sn: Serial::new(get32(from, 24)),
            exp_stat_sn: Serial::new(get32(from, 28)),
            cdb,
        })
    }

    /// To a header.
    pub fn encode(&self) -> [u8; BHS_BYTES] {
        let bit = |on: bool, bit: u8| if on { bit } else { 0 };
        let flags = bit(self.final_pdu, FINAL) | bit(self.read, 0x40) | bit(self.write, 0x20);
        let first = opcode::SCSI_COMMAND | bit(self.immediate, IMMEDIATE);
        let mut to = header(first, flags | self.attribute & 0x07);
        put64(&mut to, 8, self.lun);
        put32(&mut to, 16, self.initiator_task_tag);
        put32(&mut to, 20, self.expected_data_transfer_length);
        put32(&mut to, 24, self.cmd_sn.get());
        put32(&mut to, 28, self.exp_stat_sn.get());
        to[32..48].copy_from_slice(&self.cdb);
        to
    }
}

/// How much less or more a command had to move than the initiator expected (RFC 7143, 11.4.5).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Residual {
    /// As much.
    #[default]
    None,
    /// Less, by so many bytes.
    Underflow(u32),
    /// More, by so many bytes.
    Overflow(u32),
}

impl Residual {
    /// Of a command that had `wanted` bytes to move where `expected` were expected.
    pub fn of(wanted: u64, expected: u64) -> Self {
        let short = |bytes: u64| u32::try_from(bytes).unwrap_or(u32::MAX);
        match wanted.cmp(&expected) {
            std::cmp::Ordering::Less => Self::Underflow(short(expected - wanted)),
            std::cmp::Ordering::Equal => Self::None,
            std::cmp::Ordering::Greater => Self::Overflow(short(wanted - expected)),
        }
    }

    /// The flags and the count.
    fn encode(self) -> (u8, u32) {
        match self {
            Self::None => (0, 0),
            Self::Underflow(count) => (0x02, count),
            Self::Overflow(count) => (0x04, count),
        }
    }

    fn decode(flags: u8, count: u32) -> Result<Self, Malformed> {
        match flags & 0x06 {
            0x00 => Ok(Self::None),
            0x02 => Ok(Self::Underflow(count)),
            0x04 => Ok(Self::Overflow(count)),
            both => Err(Malformed::new("a residual that is both ways", both)),
        }
    }
}

/// SCSI Response (RFC 7143, 11.4). Sense goes in its data segment, behind two bytes of its length.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScsiResponse {
    /// The task it ends.
    pub initiator_task_tag: u32,
    /// 0: the target has handled the command; 1: it failed below SCSI (11.4.3).
    pub response: u8,
    /// The SCSI status.
    pub status: u8,
    /// How much less or more was to be moved.
    pub residual: Residual,
    /// How many Data-In PDUs came before.
    pub exp_data_sn: u32,
}

impl ScsiResponse {
    /// To a header.
    pub fn encode(&self) -> [u8; BHS_BYTES] {
        let (flags, count) = self.residual.encode();
        let mut to = header(opcode::SCSI_RESPONSE, FINAL | flags);
        to[2] = self.response;
        to[3] = self.status;
        put32(&mut to, 16, self.initiator_task_tag);
        put32(&mut to, 36, self.exp_data_sn);
        put32(&mut to, 44, count);
        to
    }

    /// From a header.
    pub fn decode(from: &[u8; BHS_BYTES]) -> Result<Self, Malformed> {
        expect(from, opcode::SCSI_RESPONSE)?;
        Ok(Self {
            initiator_task_tag: get32(from, 16),
            response: from[2],
            status: from[3],
            residual: Residual::decode(from[1], get32(from, 44))?,
            exp_data_sn: get32(from, 36),
        })
    }
}

/// SCSI Data-Out (RFC 7143, 11.7).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DataOut {
    /// The last of its sequence.
    pub final_pdu: bool,
    /// The logical unit.
    pub lun: u64,
    /// The task it belongs to.
    pub initiator_task_tag: u32,
    /// The R2T it answers; [`super::NO_TAG`] for none.
    pub target_transfer_tag: u32,
    /// The status number the initiator expects next.
    pub exp_stat_sn: Serial,
    /// Its number in its sequence.
    pub data_sn: u32,
    /// Where its data belongs.
    pub buffer_offset: u32,
}

impl DataOut {
    /// From a header.
    pub fn decode(from: &[u8; BHS_BYTES]) -> Result<Self, Malformed> {
        expect(from, opcode::DATA_OUT)?;
        Ok(Self {
            final_pdu: from[1] & FINAL != 0,
            lun: get64(from, 8),
            initiator_task_tag: get32(from, 16),
            target_transfer_tag: get32(from, 20),
            exp_stat_sn: Serial::new(get32(from, 28)),
            data_sn: get32(from, 36),
            buffer_offset: get32(from, 40),
        })
    }

    /// To a header.
    pub fn encode(&self) -> [u8; BHS_BYTES] {
        let mut to = header(opcode::DATA_OUT, if self.final_pdu { FINAL } else { 0 });
        put64(&mut to, 8, self.lun);
        put32(&mut to, 16, self.initiator_task_tag);
        put32(&mut to, 20, self.target_transfer_tag);
        put32(&mut to, 28, self.exp_stat_sn.get());
        put32(&mut to, 36, self.data_sn);
        put32(&mut to, 40, self.buffer_offset);
        to
    }
}

/// SCSI Data-In (RFC 7143, 11.7).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DataIn {
    /// The last of its sequence.
    pub final_pdu: bool,
    /// The task it belongs to.
    pub initiator_task_tag: u32,
    /// The status goes along (the S bit): it is the command's last.
    pub status: Option<(u8, Residual)>,
    /// Its number among the command's.
    pub data_sn: u32,
    /// Where its data belongs.
    pub buffer_offset: u32,
}

impl DataIn {
    /// To a header.
    pub fn encode(&self) -> [u8; BHS_BYTES] {
        let mut to = header(opcode::DATA_IN, if self.final_pdu { FINAL } else { 0 });
        if let Some((status, residual)) = self.status {
            let (flags, count) = residual.encode();
            to[1] |= 0x01 | flags;
            to[3] = status;
            put32(&mut to, 44, count);
        }
        put32(&mut to, 16, self.initiator_task_tag);
        put32(&mut to, 20, super::NO_TAG);
        put32(&mut to, 36, self.data_sn);
        put32(&mut to, 40, self.buffer_offset);
        to
    }

    /// From a header.
    pub fn decode(from: &[u8; BHS_BYTES]) -> Result<Self, Malformed> {
        expect(from, opcode::DATA_IN)?;
        let status = match from[1] & 0x01 != 0 {
            true => Some((from[3], Residual::decode(from[1], get32(from, 44))?)),
            false => None,
        };
        Ok(Self {
            final_pdu: from[1] & FINAL != 0,
            initiator_task_tag: get32(from, 16),
            status,
            data_sn: get32(from, 36),
            buffer_offset: get32(from, 40),
        })
    }
}

/// Ready To Transfer (RFC 7143, 11.8).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct R2t {
    /// The logical unit.
    pub lun: u64,
    /// The task whose data is asked for.
    pub initiator_task_tag: u32,
    /// The tag that the data has to bear.
    pub target_transfer_tag: u32,
    /// Its number among the command's.
    pub r2t_sn: u32,
    /// From where.
    pub buffer_offset: u32,
    /// How much.
    pub desired_data_length: u32,
}

impl R2t {
    /// To a header.
    pub fn encode(&self) -> [u8; BHS_BYTES] {
        let mut to = header(opcode::R2T, FINAL);
        put64(&mut to, 8, self.lun);
        put32(&mut to, 16, self.initiator_task_tag);
        put32(&mut to, 20, self.target_transfer_tag);
        put32(&mut to, 36, self.r2t_sn);
        put32(&mut to, 40, self.buffer_offset);
        put32(&mut to, 44, self.desired_data_length);
        to
    }

    /// From a header.
    pub fn decode(from: &[u8; BHS_BYTES]) -> Result<Self, Malformed> {
        expect(from, opcode::R2T)?;
        Ok(Self {
            lun: get64(from, 8),
            initiator_task_tag: get32(from, 16),
            target_transfer_tag: get32(from, 20),
            r2t_sn: get32(from, 36),
            buffer_offset: get32(from, 40),
            desired_data_length: get32(from, 44),
        })
    }
}
