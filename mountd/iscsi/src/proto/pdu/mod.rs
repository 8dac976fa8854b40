//! Basic header segments (RFC 7143, section 11): what initiators send ([`Request`]) and what targets answer.
//!
//! Every struct is one PDU's fields by name. Decoding checks what the header says by itself and allocates nothing; the
//! lengths of additional headers and data are the carrier's, and encoders leave them 0.

mod io;
mod login;
mod services;
mod tasks;

pub use io::{DataIn, DataOut, R2t, Residual, ScsiCommand, ScsiResponse};
pub use login::{LoginRequest, LoginResponse, LoginStatus, Stage};
pub use services::{
    AsyncEvent, AsyncMessage, LogoutReason, LogoutRequest, LogoutResponse, NopIn, NopOut, Reject,
    RejectReason, TextRequest, TextResponse,
};
pub use tasks::{FunctionResponse, TaskManagementRequest, TaskManagementResponse};

use super::Malformed;

/// Bytes of a basic header segment.
pub const BHS_BYTES: usize = 48;

/// "No tag" (RFC 7143, 11.2.1.8 and others).
pub const NO_TAG: u32 = u32::MAX;

/// Operation codes (RFC 7143, 11.2.1.2).
pub mod opcode {
    #![allow(missing_docs, reason = "the standard's names")]
    pub const NOP_OUT: u8 = 0x00;
    pub const SCSI_COMMAND: u8 = 0x01;
    pub const TASK_MANAGEMENT: u8 = 0x02;
    pub const LOGIN: u8 = 0x03;
    pub const TEXT: u8 = 0x04;
    pub const DATA_OUT: u8 = 0x05;
    pub const LOGOUT: u8 = 0x06;
    pub const SNACK: u8 = 0x10;
    pub const NOP_IN: u8 = 0x20;
    pub const SCSI_RESPONSE: u8 = 0x21;
    pub const TASK_MANAGEMENT_RESPONSE: u8 = 0x22;
    pub const LOGIN_RESPONSE: u8 = 0x23;
    pub const TEXT_RESPONSE: u8 = 0x24;
    pub const DATA_IN: u8 = 0x25;
    pub const LOGOUT_RESPONSE: u8 = 0x26;
    pub const R2T: u8 = 0x31;
    pub const ASYNC_MESSAGE: u8 = 0x32;
    pub const REJECT: u8 = 0x3f;
}

/// The immediate bit (RFC 7143, 11.2.1.1).
const IMMEDIATE: u8 = 0x40;
/// The final bit (RFC 7143, 11.2.1.3).
const FINAL: u8 = 0x80;

/// What an initiator sends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// NOP-Out.
    NopOut(NopOut),
    /// SCSI Command.
    ScsiCommand(ScsiCommand),
    /// Task Management Function Request.
    TaskManagement(TaskManagementRequest),
    /// Login Request.
    Login(LoginRequest),
    /// Text Request.
    Text(TextRequest),
    /// SCSI Data-Out.
    DataOut(DataOut),
    /// Logout Request.
    Logout(LogoutRequest),
    /// SNACK Request.
    Snack,
    /// Anything else.
    Unknown,
}

impl Request {
    /// Understands a header. An operation code that is none is [`Request::Unknown`].
    ///
    /// # Errors
    /// [`Malformed`] for fields that no initiator may send.
    pub fn decode(header: &[u8; BHS_BYTES]) -> Result<Self, Malformed> {
        Ok(match header[0] & 0x3f {
            opcode::NOP_OUT => Self::NopOut(NopOut::decode(header)?),
            opcode::SCSI_COMMAND => Self::ScsiCommand(ScsiCommand::decode(header)?),
            opcode::TASK_MANAGEMENT => Self::TaskManagement(TaskManagementRequest::decode(header)?),
            opcode::LOGIN => Self::Login(LoginRequest::decode(header)?),
            opcode::TEXT => Self::Text(TextRequest::decode(header)?),
            opcode::DATA_OUT => Self::DataOut(DataOut::decode(header)?),
            opcode::LOGOUT => Self::Logout(LogoutRequest::decode(header)?),
            opcode::SNACK => Self::Snack,
            _ => Self::Unknown,
        })
    }
}

/// Checks that a header is that of `wanted`.
fn expect(header: &[u8; BHS_BYTES], wanted: u8) -> Result<(), Malformed> {
    match header[0] & 0x3f {
        found if found == wanted => Ok(()),
        found => Err(Malformed::new("another operation code was due", found)),
    }
}

fn header(opcode: u8, flags: u8) -> [u8; BHS_BYTES] {
    let mut header = [0; BHS_BYTES];
    header[0] = opcode;
    header[1] = flags;
    header
}

fn get16(header: &[u8; BHS_BYTES], at: usize) -> u16 {
    u16::from_be_bytes([header[at], header[at + 1]])
}

fn get32(header: &[u8; BHS_BYTES], at: usize) -> u32 {
    u32::from_be_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]])
}

fn get64(header: &[u8; BHS_BYTES], at: usize) -> u64 {
    u64::from(get32(header, at)) << 32 | u64::from(get32(header, at + 4))
}

fn put16(header: &mut [u8; BHS_BYTES], at: usize, value: u16) {
    header[at..at + 2].copy_from_slice(&value.to_be_bytes());
}

fn put32(header: &mut [u8; BHS_BYTES], at: usize, value: u32) {
    header[at..at + 4].copy_from_slice(&value.to_be_bytes());
}

fn put64(header: &mut [u8; BHS_BYTES], at: usize, value: u64) {
    header[at..at + 8].copy_from_slice(&value.to_be_bytes());
}

#[cfg(test)]
mod tests;
