//! SCSI commands: from their PDU to an answer, or to whoever will give it.

use std::sync::atomic::Ordering;

use super::data_out::Collecting;
use super::input::Incoming;
use super::numbers::{Arrival, Stat};
use super::{Expected, MAX_TASKS, Pending, Reading, Session, Stage};
use crate::error::Error;
use crate::proto::pdu::{DataIn, RejectReason, Residual, ScsiCommand, ScsiResponse};
use crate::scsi::{Length, Outcome, Plan, Status, Task};

impl Session {
    /// Whether a PDU with a command number is to be handled.
    pub(super) fn is_due(
        &mut self,
        immediate: bool,
        cmd_sn: crate::proto::Serial,
    ) -> Result<bool, Error> {
        match self.numbers.arrive(immediate, cmd_sn) {
            Arrival::InTurn => Ok(true),
            Arrival::Outside => Ok(false),
            Arrival::Gap => Err(Error::protocol("a command number was left out")),
        }
    }

    pub(super) fn command(
        &mut self,
        command: &ScsiCommand,
        incoming: &mut Incoming,
    ) -> Result<(), Error> {
        if !self.is_due(command.immediate, command.cmd_sn)? {
            return Ok(());
        }
        let (Some(nexus), Some(held)) = (&self.nexus, &self.held) else {
            self.reject(&incoming.header, RejectReason::ProtocolError);
            return Ok(());
        };
        let tag = command.initiator_task_tag;
        if self.tasks.contains_key(&tag) {
            self.reject(&incoming.header, RejectReason::TaskInProgress);
            return Ok(());
        }
        if self.tasks.len() >= MAX_TASKS {
            self.reject(&incoming.header, RejectReason::ImmediateCommandReject);
            return Ok(());
        }
        held.usage().requests.fetch_add(1, Ordering::Relaxed);
        let expected = Expected {
            bytes: command.expected_data_transfer_length,
            read: command.read,
            write: command.write,
        };
        // Longer CDBs and data both ways need additional headers; no command we have does.
        let plan = match incoming.header[4] == 0 && !(command.read && command.write) {
            true => nexus.start(command.lun, &command.cdb),
            false => Plan::Done(Outcome::invalid_opcode()),
        };
        match plan {
            Plan::Done(outcome) => self.respond(tag, expected, 0, outcome),
            Plan::Read { device, offset_bytes, len_bytes } => {
                let reading = Reading { device, offset_bytes, len_bytes };
                self.read(command, expected, reading);
            }
            Plan::Work { data_out_bytes: 0, work } if work.length() != Length::Exact => {
                if self.begin(command, expected, 0, Stage::Away) {
                    self.send_away(tag, work, Vec::new(), 0);
                }
            }
            Plan::Work { data_out_bytes, work } => {
                let burst = self.params.first_burst_length;
                let collecting =
                    Collecting::new(work, data_out_bytes, expected, command, incoming, burst);
                let stage = Stage::Collecting(Box::new(collecting));
                if self.begin(command, expected, data_out_bytes, stage) {
                    self.advance(tag);
                }
            }
        }
        Ok(())
    }

    /// Puts a command on the list, and among the tasks of its unit.
    pub(super) fn begin(
        &mut self,
        command: &ScsiCommand,
        expected: Expected,
        wanted: u32,
        stage: Stage,
    ) -> bool {
        let tag = command.initiator_task_tag;
        let Some(nexus) = &self.nexus else { return false };
        let Some(set) = nexus.tasks(command.lun).cloned() else {
            self.respond(tag, expected, 0, Outcome::internal_failure());
            return false;
        };
        let task = Task::new();
        set.add(nexus.id(), tag, task.clone());
        let charged = match &stage {
            Stage::Collecting(collecting) => collecting.memory() as u64,
            _ => 0,
        };
        match expected.write {
            true => self.write_bytes += charged,
            false => self.read_bytes += charged,
        }
        self.tasks.insert(tag, Pending { task, set, expected, wanted, stage, charged });
        self.numbers.set_under_way(self.tasks.len());
        true
    }

    /// Answers a command that moved no data by Data-Out, or all of it. `wanted`: bytes it wanted from the initiator.
    pub(super) fn respond(&mut self, tag: u32, expected: Expected, wanted: u32, outcome: Outcome) {
        let Outcome { status, sense, data } = outcome;
        let room = if expected.read { expected.bytes as usize } else { 0 };
        let moved = data.len().min(room);
        let full = if data.is_empty() { wanted as usize } else { data.len() };
        let residual = Residual::of(full as u64, expected.bytes.into());
        let count = if moved > 0 {
            let status = if sense.is_none() { Some((status, residual)) } else { None };
            let count = self.send_data(tag, &data[..moved], status);
            if status.is_some() {
                return;
            }
            count
        } else {
            0
        };
        self.send_response(tag, status, residual, sense.as_deref(), count);
    }

    /// A SCSI Response PDU (RFC 7143, 11.4).
    pub(super) fn send_response(
        &mut self,
        tag: u32,
        status: Status,
        residual: Residual,
        sense: Option<&[u8]>,
        exp_data_sn: u32,
    ) {
        let response = ScsiResponse {
            initiator_task_tag: tag,
            status: status as u8,
            response: 0,
            residual,
            exp_data_sn,
        };
        let mut data = Vec::new();
        if let Some(sense) = sense {
            data.extend((sense.len() as u16).to_be_bytes());
            data.extend(sense);
        }
        self.send(response.encode(), &data, Stat::Used);
    }

    /// Queues a PDU.
    pub(super) fn send(&mut self, mut header: [u8; 48], data: &[u8], stat: Stat) {
        self.numbers.stamp(&mut header, stat);
        self.digests.push(&mut self.out, &header, data);
    }

    /// The header of a Data-In PDU.
    pub(super) fn data_in_header(
        &mut self,
        tag: u32,
        piece: super::frame::Piece,
        data_sn: u32,
        status: Option<(Status, Residual)>,
    ) -> [u8; 48] {
        let data_in = DataIn {
            initiator_task_tag: tag,
            final_pdu: piece.ends,
            status: status.map(|(status, residual)| (status as u8, residual)),
            data_sn,
            buffer_offset: piece.offset as u32,
        };
        let mut header = data_in.encode();
        self.numbers.stamp(&mut header, if status.is_some() { Stat::Used } else { Stat::Absent });
        header
    }
}
