//! Writes: their data on its way from the initiator (RFC 7143, 11.7 and 11.8).
//!
//! Data comes with the command (immediate), behind it without being asked for (the first burst), and by R2T. One R2T is
//! outstanding for a command at a time, and only as many commands are asked for data as there is room for.

use std::sync::atomic::Ordering;

use super::input::Incoming;
use super::numbers::Stat;
use super::{Expected, Session, Stage};
use crate::proto::pdu::{DataOut, R2t, ScsiCommand};
use crate::scsi::{BLOCK_BYTES, Length, Outcome, Work};

/// The tag of data that nobody asked for.
const UNASKED: u32 = u32::MAX;

/// Data that was asked for.
#[derive(Debug)]
struct Asked {
    tag: u32,
    end: usize,
}

/// A command whose data is on the way.
#[derive(Debug)]
pub(super) struct Collecting {
    work: Option<Work>,
    lun: u64,
    data: Vec<u8>,
    /// Bytes the command wants.
    wanted: u32,
    /// Bytes it gets: what the initiator has, if that is less.
    coming: usize,
    received: usize,
    /// More comes without being asked for, at most up to here.
    unasked_end: Option<usize>,
    asked: Option<Asked>,
    next_data_sn: u32,
    r2t_sn: u32,
    /// What came was not what was agreed: the command fails when its sequence ends.
    bad: Option<Outcome>,
}

impl Collecting {
    /// Starts with the immediate data of the command.
    pub(super) fn new(
        work: Work,
        wanted: u32,
        expected: Expected,
        command: &ScsiCommand,
        incoming: &mut Incoming,
        first_burst: u32,
    ) -> Self {
        let has = if expected.write { expected.bytes } else { 0 };
        let data = incoming.into.take().unwrap_or_default();
        let bad = match work.length() {
            Length::Exact if has != wanted => Some(Outcome::wrong_length()),
            Length::AtLeast if has < wanted => Some(Outcome::wrong_amount_of_data()),
            Length::AtMost if has < wanted && !has.is_multiple_of(BLOCK_BYTES) => {
                Some(Outcome::broken_block())
            }
            _ => None,
        };
        let bound = has.min(first_burst) as usize;
        Self {
            work: Some(work),
            lun: command.lun,
            data,
            wanted,
            coming: wanted.min(has) as usize,
            received: incoming.len,
            unasked_end: (!command.final_pdu && bound > incoming.len).then_some(bound),
            asked: None,
            next_data_sn: 0,
            r2t_sn: 0,
            bad,
        }
    }

    /// Bytes of memory it takes now.
    pub(super) fn memory(&self) -> usize {
        self.data.len()
    }

    fn make_room(&mut self, end: usize) {
        if self.data.len() < end {
            self.data.resize(end, 0);
        }
    }

    /// Whether `len` bytes at `offset` are what comes next; why not, if not.
    fn check(&self, out: &DataOut, len: usize) -> Result<(), Outcome> {
        let (end, unexpected) = match (&self.asked, self.unasked_end) {
            (Some(asked), _) => (asked.end, asked.tag != out.target_transfer_tag),
            (None, Some(end)) => (end, out.target_transfer_tag != UNASKED),
            (None, None) => (0, true),
        };
        if unexpected {
            return Err(Outcome::unexpected_data());
        }
        let offset = out.buffer_offset as usize;
        // DataPDUInOrder and DataSequenceInOrder are Yes.
        if offset != self.received || len > end - offset || out.data_sn != self.next_data_sn {
            return Err(Outcome::wrong_amount_of_data());
        }
        Ok(())
    }

    /// A Data-Out PDU of `len` bytes was taken. `true` if its sequence is over.
    fn take(&mut self, out: &DataOut, len: usize) -> bool {
        self.received += len;
        self.next_data_sn = self.next_data_sn.wrapping_add(1);
        let full = match (&self.asked, self.unasked_end) {
            (Some(asked), _) => self.received == asked.end,
            (None, Some(end)) => self.received == end,
            (None, None) => true,
        };
        // The first burst may be short; an answer to an R2T must be whole, and say that it is.
        let wrong = match self.asked {
            Some(_) => full != out.final_pdu,
            None => full && !out.final_pdu,
        };
        if wrong && self.bad.is_none() {
            self.bad = Some(Outcome::wrong_amount_of_data());
        }
        out.final_pdu
    }
}

impl Session {
    fn collecting(&mut self, tag: u32) -> Option<&mut Collecting> {
        match &mut self.tasks.get_mut(&tag)?.stage {
            Stage::Collecting(collecting) => Some(collecting),
            _ => None,
        }
    }

    /// Where the data of a Data-Out PDU goes: into its command's buffer. What belongs to no command (it was aborted, or
    /// failed at once) goes nowhere.
    pub(super) fn place_for_data_out(
        &mut self,
        out: &DataOut,
        len: usize,
    ) -> (Option<Vec<u8>>, usize) {
        if let Some(held) = &self.held {
            held.usage().written_bytes.fetch_add(len as u64, Ordering::Relaxed);
        }
        let Some(collecting) = self.collecting(out.initiator_task_tag) else { return (None, 0) };
        if collecting.bad.is_some() {
            return (None, 0);
        }
        if let Err(outcome) = collecting.check(out, len) {
            collecting.bad = Some(outcome);
            return (None, 0);
        }
        let offset = out.buffer_offset as usize;
        collecting.make_room(offset + len);
        (Some(std::mem::take(&mut collecting.data)), offset)
    }

    /// A Data-Out PDU is whole.
    pub(super) fn data_out(&mut self, out: &DataOut, incoming: &mut Incoming) {
        let tag = out.initiator_task_tag;
        let Some(collecting) = self.collecting(tag) else { return };
        if let Some(data) = incoming.into.take() {
            collecting.data = data;
        }
        let over = match collecting.bad {
            // The rest of the sequence is let go by.
            Some(_) => out.final_pdu,
            None => collecting.take(out, incoming.len),
        };
        if over {
            collecting.asked = None;
            collecting.unasked_end = None;
            collecting.next_data_sn = 0;
            self.advance(tag);
        }
    }

    /// A sequence of a command's data is over, or it has not begun: asks for more, or lets a thread have the command.
    pub(super) fn advance(&mut self, tag: u32) {
        let Some(collecting) = self.collecting(tag) else { return };
        if collecting.unasked_end.is_some() {
            return;
        }
        let (wanted, coming) = (collecting.wanted, collecting.coming);
        if let Some(outcome) = collecting.bad.take() {
            return self.fail(tag, wanted, outcome);
        }
        if collecting.received < coming {
            self.unasked.push_back(tag);
            return self.ask_for_data();
        }
        collecting.make_room(coming);
        let data = std::mem::take(&mut collecting.data);
        if let Some(work) = collecting.work.take() {
            self.send_away(tag, work, data, coming);
        }
    }

    fn fail(&mut self, tag: u32, wanted: u32, outcome: Outcome) {
        if let Some(pending) = self.finish(tag)
            && !pending.task.is_aborted()
        {
            self.respond(tag, pending.expected, wanted, outcome);
        }
    }

    /// Asks for data, in turn, as far as there is room for it.
    pub(super) fn ask_for_data(&mut self) {
        while let Some(tag) = self.unasked.front().copied() {
            let (most, now) = (self.shared.config.max_inflight_bytes, self.write_bytes);
            let Some(collecting) = self.collecting(tag) else {
                self.unasked.pop_front();
                continue;
            };
            let grows = collecting.coming.saturating_sub(collecting.data.len()) as u64;
            if now > 0 && grows > 0 && now + grows > most {
                return;
            }
            collecting.make_room(collecting.coming);
            self.unasked.pop_front();
            self.write_bytes += grows;
            if let Some(pending) = self.tasks.get_mut(&tag) {
                pending.charged += grows;
            }
            self.send_r2t(tag);
        }
    }

    fn send_r2t(&mut self, tag: u32) {
        let burst = self.params.max_burst_length as usize;
        self.next_tag = (self.next_tag + 1) % UNASKED;
        let transfer = self.next_tag;
        let Some(collecting) = self.collecting(tag) else { return };
        let offset = collecting.received;
        let len = (collecting.coming - offset).min(burst);
        let r2t = R2t {
            lun: collecting.lun,
            initiator_task_tag: tag,
            target_transfer_tag: transfer,
            r2t_sn: collecting.r2t_sn,
            buffer_offset: offset as u32,
            desired_data_length: len as u32,
        };
        collecting.r2t_sn += 1;
        collecting.asked = Some(Asked { tag: transfer, end: offset + len });
        self.send(r2t.encode(), &[], Stat::Peeked);
    }
}
