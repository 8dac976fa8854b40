//! Task management (RFC 7143, 11.5 and 11.6).

use super::{BHS_BYTES, FINAL, IMMEDIATE, expect, get32, get64, header, opcode, put32, put64};
use crate::proto::{Malformed, Serial};

/// Task Management Function Request (RFC 7143, 11.5).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaskManagementRequest {
    /// It is to be handled at once, and uses up no number.
    pub immediate: bool,
    /// The function's code (11.5.1), seven bits.
    pub function: u8,
    /// The logical unit.
    pub lun: u64,
    /// The request's own tag.
    pub initiator_task_tag: u32,
    /// The task meant, for functions that mean one.
    pub referenced_task_tag: u32,
    /// Its number.
    pub cmd_sn: Serial,
    /// The status number the initiator expects next.
    pub exp_stat_sn: Serial,
    /// The number of the command meant.
    pub ref_cmd_sn: Serial,
}

impl TaskManagementRequest {
    /// From a header.
    pub fn decode(from: &[u8; BHS_BYTES]) -> Result<Self, Malformed> {
        expect(from, opcode::TASK_MANAGEMENT)?;
        Ok(Self {
            immediate: from[0] & IMMEDIATE != 0,
            function: from[1] & 0x7f,
            lun: get64(from, 8),
            initiator_task_tag: get32(from, 16),
            referenced_task_tag: get32(from, 20),
            cmd_sn: Serial::new(get32(from, 24)),
            exp_stat_sn: Serial::new(get32(from, 28)),
            ref_cmd_sn: Serial::new(get32(from, 32)),
        })
    }

    /// To a header.
    pub fn encode(&self) -> [u8; BHS_BYTES] {
        let first = opcode::TASK_MANAGEMENT | if self.immediate { IMMEDIATE } else { 0 };
        let mut to = header(first, FINAL | self.function & 0x7f);
        put64(&mut to, 8, self.lun);
        put32(&mut to, 16, self.initiator_task_tag);
        put32(&mut to, 20, self.referenced_task_tag);
        put32(&mut to, 24, self.cmd_sn.get());
        put32(&mut to, 28, self.exp_stat_sn.get());
        put32(&mut to, 32, self.ref_cmd_sn.get());
        to
    }
}

/// What became of a function (RFC 7143, 11.6.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum FunctionResponse {
    /// It was done.
    Complete = 0,
    /// There is no such task.
    NoTask = 1,
    /// There is no such logical unit.
    NoLun = 2,
    /// The task goes on elsewhere.
    TaskAllegiant = 3,
    /// Reassignment is not supported.
    NoReassignment = 4,
    /// The function is not supported.
    Unsupported = 5,
    /// Who asked may not.
    NotAuthorised = 6,
    /// It was not done.
    Rejected = 255,
}

impl FunctionResponse {
    fn from_code(code: u8) -> Result<Self, Malformed> {
        Ok(match code {
            0 => Self::Complete,
            1 => Self::NoTask,
            2 => Self::NoLun,
            3 => Self::TaskAllegiant,
            4 => Self::NoReassignment,
            5 => Self::Unsupported,
            6 => Self::NotAuthorised,
            255 => Self::Rejected,
            code => return Err(Malformed::new("no response to task management", code)),
        })
    }
}

/// Task Management Function Response (RFC 7143, 11.6).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaskManagementResponse {
    /// The request it answers.
    pub initiator_task_tag: u32,
    /// What became of it.
    pub response: FunctionResponse,
}

impl TaskManagementResponse {
    /// To a header.
    pub fn encode(&self) -> [u8; BHS_BYTES] {
        let mut to = header(opcode::TASK_MANAGEMENT_RESPONSE, FINAL);
        to[2] = self.response as u8;
        put32(&mut to, 16, self.initiator_task_tag);
        to
    }

    /// From a header.
    pub fn decode(from: &[u8; BHS_BYTES]) -> Result<Self, Malformed> {
        expect(from, opcode::TASK_MANAGEMENT_RESPONSE)?;
        let response = FunctionResponse::from_code(from[2])?;
        Ok(Self { initiator_task_tag: get32(from, 16), response })
    }
}
