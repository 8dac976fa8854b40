//! Pings, text, logouts, rejects, messages (RFC 7143, 11.9 to 11.11, 11.14, 11.15, 11.17 to 11.19).

use super::{
    BHS_BYTES, FINAL, IMMEDIATE, NO_TAG, expect, get16, get32, get64, header, opcode, put16, put32,
    put64,
};
use crate::proto::{Malformed, Serial};

/// The continue bit of texts.
const CONTINUE: u8 = 0x40;

/// NOP-Out (RFC 7143, 11.18).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NopOut {
    /// It is to be handled at once, and uses up no number.
    pub immediate: bool,
    /// The logical unit, echoed.
    pub lun: u64,
    /// Its tag; [`NO_TAG`] if no answer is wanted.
    pub initiator_task_tag: u32,
    /// The ping it answers; [`NO_TAG`] if none.
    pub target_transfer_tag: u32,
    /// Its number.
    pub cmd_sn: Serial,
    /// The status number the initiator expects next.
    pub exp_stat_sn: Serial,
}

impl NopOut {
    /// From a header.
    pub fn decode(from: &[u8; BHS_BYTES]) -> Result<Self, Malformed> {
        expect(from, opcode::NOP_OUT)?;
        Ok(Self {
            immediate: from[0] & IMMEDIATE != 0,
            lun: get64(from, 8),
            initiator_task_tag: get32(from, 16),
            target_transfer_tag: get32(from, 20),
            cmd_sn: Serial::new(get32(from, 24)),
            exp_stat_sn: Serial::new(get32(from, 28)),
        })
    }

    /// To a header.
    pub fn encode(&self) -> [u8; BHS_BYTES] {
        let mut to = header(opcode::NOP_OUT | if self.immediate { IMMEDIATE } else { 0 }, FINAL);
        put64(&mut to, 8, self.lun);
        put32(&mut to, 16, self.initiator_task_tag);
        put32(&mut to, 20, self.target_transfer_tag);
        put32(&mut to, 24, self.cmd_sn.get());
        put32(&mut to, 28, self.exp_stat_sn.get());
        to
    }
}

/// NOP-In (RFC 7143, 11.19).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NopIn {
    /// The logical unit, of an answer the one that was sent.
    pub lun: u64,
    /// The ping it answers; [`NO_TAG`] if it is one.
    pub initiator_task_tag: u32,
    /// Its own tag; [`NO_TAG`] if no answer is wanted.
    pub target_transfer_tag: u32,
}

impl NopIn {
    /// To a header.
    pub fn encode(&self) -> [u8; BHS_BYTES] {
        let mut to = header(opcode::NOP_IN, FINAL);
        put64(&mut to, 8, self.lun);
        put32(&mut to, 16, self.initiator_task_tag);
        put32(&mut to, 20, self.target_transfer_tag);
        to
    }

    /// From a header.
    pub fn decode(from: &[u8; BHS_BYTES]) -> Result<Self, Malformed> {
        expect(from, opcode::NOP_IN)?;
        Ok(Self {
            lun: get64(from, 8),
            initiator_task_tag: get32(from, 16),
            target_transfer_tag: get32(from, 20),
        })
    }
}

/// Text Request (RFC 7143, 11.10).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TextRequest {
    /// It is to be handled at once, and uses up no number.
    pub immediate: bool,
    /// The initiator has no more to say.
    pub final_pdu: bool,
    /// Its text goes on in the next PDU.
    pub continues: bool,
    /// The logical unit of the answer it goes on with.
    pub lun: u64,
    /// Its tag.
    pub initiator_task_tag: u32,
    /// The answer it goes on with; [`NO_TAG`] for a new one.
    pub target_transfer_tag: u32,
    /// Its number.
    pub cmd_sn: Serial,
    /// The status number the initiator expects next.
    pub exp_stat_sn: Serial,
}

impl TextRequest {
    /// From a header.
    pub fn decode(from: &[u8; BHS_BYTES]) -> Result<Self, Malformed> {
        expect(from, opcode::TEXT)?;
        if from[1] & FINAL != 0 && from[1] & CONTINUE != 0 {
            return Err(Malformed::new("a text that goes on and is over", from[1]));
        }
        Ok(Self {
            immediate: from[0] & IMMEDIATE != 0,
            final_pdu: from[1] & FINAL != 0,
            continues: from[1] & CONTINUE != 0,
            lun: get64(from, 8),
            initiator_task_tag: get32(from, 16),
            target_transfer_tag: get32(from, 20),
            cmd_sn: Serial::new(get32(from, 24)),
            exp_stat_sn: Serial::new(get32(from, 28)),
        })
    }

    /// To a header.
    pub fn encode(&self) -> [u8; BHS_BYTES] {
        let bit = |on: bool, bit: u8| if on { bit } else { 0 };
        let flags = bit(self.final_pdu, FINAL) | bit(self.continues, CONTINUE);
        let mut to = header(opcode::TEXT | bit(self.immediate, IMMEDIATE), flags);
        put64(&mut to, 8, self.lun);
        put32(&mut to, 16, self.initiator_task_tag);
        put32(&mut to, 20, self.target_transfer_tag);
        put32(&mut to, 24, self.cmd_sn.get());
        put32(&mut to, 28, self.exp_stat_sn.get());
        to
    }
}

/// Text Response (RFC 7143, 11.11).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TextResponse {
    /// The target has no more to say.
    pub final_pdu: bool,
    /// Its text goes on in the next PDU.
    pub continues: bool,
    /// The logical unit.
    pub lun: u64,
    /// The request it answers.
    pub initiator_task_tag: u32,
    /// The tag to go on with; [`NO_TAG`] if it is over.
    pub target_transfer_tag: u32,
}

impl TextResponse {
    /// To a header.
    pub fn encode(&self) -> [u8; BHS_BYTES] {
        let bit = |on: bool, bit: u8| if on { bit } else { 0 };
        let flags = bit(self.final_pdu, FINAL) | bit(self.continues, CONTINUE);
        let mut to = header(opcode::TEXT_RESPONSE, flags);
        put64(&mut to, 8, self.lun);
        put32(&mut to, 16, self.initiator_task_tag);
        put32(&mut to, 20, self.target_transfer_tag);
        to
    }

    /// From a header.
    pub fn decode(from: &[u8; BHS_BYTES]) -> Result<Self, Malformed> {
        expect(from, opcode::TEXT_RESPONSE)?;
        Ok(Self {
            final_pdu: from[1] & FINAL != 0,
            continues: from[1] & CONTINUE != 0,
            lun: get64(from, 8),
            initiator_task_tag: get32(from, 16),
            target_transfer_tag: get32(from, 20),
        })
    }
}

/// Why an initiator logs out (RFC 7143, 11.14.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum LogoutReason {
    /// The session is over.
    CloseSession = 0,
    /// One connection is over.
    CloseConnection = 1,
    /// A connection is to be recovered.
    RemoveForRecovery = 2,
}

/// Logout Request (RFC 7143, 11.14).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogoutRequest {
    /// It is to be handled at once, and uses up no number.
    pub immediate: bool,
    /// Why.
    pub reason: LogoutReason,
    /// Its tag.
    pub initiator_task_tag: u32,
    /// The connection meant.
    pub cid: u16,
    /// Its number.
    pub cmd_sn: Serial,
    /// The status number the initiator expects next.
    pub exp_stat_sn: Serial,
}

impl LogoutRequest {
    /// From a header.
    pub fn decode(from: &[u8; BHS_BYTES]) -> Result<Self, Malformed> {
        expect(from, opcode::LOGOUT)?;
        let reason = match from[1] & 0x7f {
            0 => LogoutReason::CloseSession,
            1 => LogoutReason::CloseConnection,
            2 => LogoutReason::RemoveForRecovery,
            code => return Err(Malformed::new("no reason of a logout", code)),
        };
        Ok(Self {
            immediate: from[0] & IMMEDIATE != 0,
            reason,
            initiator_task_tag: get32(from, 16),
            cid: get16(from, 20),
            cmd_sn: Serial::new(get32(from, 24)),
            exp_stat_sn: Serial::new(get32(from, 28)),
        })
    }

    /// To a header.
    pub fn encode(&self) -> [u8; BHS_BYTES] {
        let first = opcode::LOGOUT | if self.immediate { IMMEDIATE } else { 0 };
        let mut to = header(first, FINAL | self.reason as u8);
        put32(&mut to, 16, self.initiator_task_tag);
        put16(&mut to, 20, self.cid);
        put32(&mut to, 24, self.cmd_sn.get());
        put32(&mut to, 28, self.exp_stat_sn.get());
        to
    }
}

/// Logout Response (RFC 7143, 11.15).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogoutResponse {
    /// The request it answers.
    pub initiator_task_tag: u32,
    /// 0: done; 1: no such connection; 2: no recovery; 3: cleaning up failed.
    pub response: u8,
    /// Seconds to wait before coming again.
    pub time_to_wait: u16,
    /// Seconds that tasks are kept for.
    pub time_to_retain: u16,
}

impl LogoutResponse {
    /// To a header.
    pub fn encode(&self) -> [u8; BHS_BYTES] {
        let mut to = header(opcode::LOGOUT_RESPONSE, FINAL);
        to[2] = self.response;
        put32(&mut to, 16, self.initiator_task_tag);
        put16(&mut to, 40, self.time_to_wait);
        put16(&mut to, 42, self.time_to_retain);
        to
    }

    /// From a header.
    pub fn decode(from: &[u8; BHS_BYTES]) -> Result<Self, Malformed> {
        expect(from, opcode::LOGOUT_RESPONSE)?;
        Ok(Self {
            initiator_task_tag: get32(from, 16),
            response: from[2],
            time_to_wait: get16(from, 40),
            time_to_retain: get16(from, 42),
        })
    }
}

/// Why a PDU was not taken (RFC 7143, 11.17.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum RejectReason {
    /// Its data came damaged.
    DataDigestError = 0x02,
    /// A SNACK, which error recovery level 0 does not know.
    SnackReject = 0x03,
    /// It breaks the protocol.
    ProtocolError = 0x04,
    /// Its operation code is none.
    CommandNotSupported = 0x05,
    /// There are too many immediate commands.
    ImmediateCommandReject = 0x06,
    /// There is a task of its tag.
    TaskInProgress = 0x07,
    /// A field cannot be.
    InvalidPduField = 0x09,
}

/// Reject (RFC 7143, 11.17). The header of what was rejected goes in its data segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reject {
    /// Why.
    pub reason: RejectReason,
}

impl Reject {
    /// To a header.
    pub fn encode(&self) -> [u8; BHS_BYTES] {
        let mut to = header(opcode::REJECT, FINAL);
        to[2] = self.reason as u8;
        put32(&mut to, 16, NO_TAG);
        to
    }

    /// From a header.
    pub fn decode(from: &[u8; BHS_BYTES]) -> Result<Self, Malformed> {
        use RejectReason as Why;
        expect(from, opcode::REJECT)?;
        let reason = match from[2] {
            0x02 => Why::DataDigestError,
            0x03 => Why::SnackReject,
            0x04 => Why::ProtocolError,
            0x05 => Why::CommandNotSupported,
            0x06 => Why::ImmediateCommandReject,
            0x07 => Why::TaskInProgress,
            0x09 => Why::InvalidPduField,
            code => return Err(Malformed::new("no reason of a reject", code)),
        };
        Ok(Self { reason })
    }
}

/// What an asynchronous message tells (RFC 7143, 11.9.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum AsyncEvent {
    /// The initiator is to log out, within the time told.
    RequestLogout = 1,
    /// The connection will be dropped.
    DropConnection = 2,
    /// All connections of the session will be.
    DropSession = 3,
}

/// Asynchronous Message (RFC 7143, 11.9).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AsyncMessage {
    /// The logical unit.
    pub lun: u64,
    /// What it tells.
    pub event: AsyncEvent,
    /// The time, in seconds: for the logout, or to wait before coming again.
    pub seconds: u16,
}

impl AsyncMessage {
    /// To a header.
    pub fn encode(&self) -> [u8; BHS_BYTES] {
        let mut to = header(opcode::ASYNC_MESSAGE, FINAL);
        put64(&mut to, 8, self.lun);
        put32(&mut to, 16, NO_TAG);
        to[36] = self.event as u8;
        // For a logout the time is Parameter3, for the others Time2Wait is Parameter2.
        let at = if self.event == AsyncEvent::RequestLogout { 42 } else { 40 };
        put16(&mut to, at, self.seconds);
        to
    }

    /// From a header.
    pub fn decode(from: &[u8; BHS_BYTES]) -> Result<Self, Malformed> {
        expect(from, opcode::ASYNC_MESSAGE)?;
        let (event, at) = match from[36] {
            1 => (AsyncEvent::RequestLogout, 42),
            2 => (AsyncEvent::DropConnection, 40),
            3 => (AsyncEvent::DropSession, 40),
            code => return Err(Malformed::new("no event of a message", code)),
        };
        Ok(Self { lun: get64(from, 8), event, seconds: get16(from, at) })
    }
}
