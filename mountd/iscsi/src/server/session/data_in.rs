//! Reads: their data on its way to the initiator.

use std::sync::atomic::Ordering;

use backstay_blockdev::Readahead;
use backstay_serve::{SMALL_BYTES, Segment};

use super::frame::Cut;
use super::{Expected, Pending, Reading, Session, Stage};
use crate::proto::pdu::{Residual, ScsiCommand};
use crate::scsi::{Outcome, Status};

/// Reads up to this size are tried on the spot; longer ones go to the pool. (As for NBD: waking a thread costs about as
/// much as copying so much.)
const MAX_INLINE_BYTES: usize = 128 << 10;
/// An initiator that has asked for so much at once looks ahead by itself.
const DEEP_BYTES: u64 = 1 << 20;

impl Session {
    pub(super) fn has_room_to_read(&self) -> bool {
        let most = self.shared.config.max_inflight_bytes;
        self.read_bytes == 0 || self.read_bytes + (self.out.bytes() as u64) < most
    }

    /// How `len` bytes are cut for this initiator.
    fn cut(&self, len: usize) -> Cut {
        // Whole words, so that only the last PDU needs padding.
        let segment = (self.params.max_recv_data_segment_length as usize & !3).max(512);
        let burst = (self.params.max_burst_length as usize & !3).max(512);
        Cut { len, segment: segment.min(burst), burst }
    }

    /// Answers a read on the spot, or lets a thread do it.
    pub(super) fn read(&mut self, command: &ScsiCommand, expected: Expected, reading: Reading) {
        let tag = command.initiator_task_tag;
        let room = if expected.read { expected.bytes } else { 0 };
        let len = reading.len_bytes.min(room) as usize;
        if let Some(held) = &self.held {
            held.usage().read_bytes.fetch_add(len as u64, Ordering::Relaxed);
        }
        if len == 0 {
            let residual = Residual::of(reading.len_bytes.into(), expected.bytes.into());
            return self.send_response(tag, Status::Good, residual, None, 0);
        }
        self.look_ahead(command.lun, &reading);
        if self.deferred.is_empty()
            && len <= MAX_INLINE_BYTES
            && self.read_now(tag, expected, &reading, len)
        {
            return;
        }
        if !self.begin(command, expected, 0, Stage::Deferred(reading)) {
            return;
        }
        self.deferred.push_back(tag);
        self.start_deferred();
    }

    /// Lets the device fetch what a sequential reader will ask for next.
    fn look_ahead(&mut self, lun: u64, reading: &Reading) {
        let under_way = self.read_bytes + self.out.bytes() as u64;
        self.depth_bytes = under_way.max(self.depth_bytes - self.depth_bytes / 16);
        let at = self.readahead.iter().position(|(other, _)| *other == lun).unwrap_or_else(|| {
            let size = reading.device.geometry().size_bytes;
            self.readahead.push((lun, Readahead::new(size)));
            self.readahead.len() - 1
        });
        let ahead = self.readahead[at].1.on_read(reading.offset_bytes, reading.len_bytes.into());
        if let Some((offset, len)) = ahead.filter(|_| self.depth_bytes < DEEP_BYTES) {
            reading.device.prefetch(offset, len);
        }
    }

    /// Tries to answer without blocking; `false` if that cannot be.
    fn read_now(&mut self, tag: u32, expected: Expected, reading: &Reading, len: usize) -> bool {
        let cut = self.cut(len);
        let (digests, space) = (self.digests, cut.space(self.digests));
        let head = digests.head_bytes();
        let residual = Residual::of(reading.len_bytes.into(), expected.bytes.into());
        if space <= SMALL_BYTES && len <= cut.segment {
            let Some(piece) = cut.pieces(digests).next() else { return false };
            let header = self.data_in_header(tag, piece, 0, Some((Status::Good, residual)));
            let mut tried = Ok(false);
            self.out.small(space, |pdu| {
                tried =
                    reading.device.try_read_at(reading.offset_bytes, &mut pdu[head..head + len]);
                if !matches!(tried, Ok(true)) {
                    return 0;
                }
                digests.seal_data(pdu, len);
                digests.put_header(pdu, &header, len);
                space
            });
            return match tried {
                Ok(true) => true,
                Ok(false) => {
                    self.numbers.unstamp();
                    false
                }
                Err(error) => {
                    self.numbers.unstamp();
                    self.respond(tag, expected, 0, Outcome::of_error(&error));
                    true
                }
            };
        }
        let mut pdus = self.out.buffer(space);
        for piece in cut.pieces(digests) {
            let pdu = &mut pdus[piece.at..];
            let at = reading.offset_bytes + piece.offset as u64;
            match reading.device.try_read_at(at, &mut pdu[head..head + piece.len]) {
                Ok(true) => digests.seal_data(pdu, piece.len),
                Ok(false) => {
                    self.out.recycle(pdus);
                    return false;
                }
                Err(error) => {
                    self.out.recycle(pdus);
                    self.respond(tag, expected, 0, Outcome::of_error(&error));
                    return true;
                }
            }
        }
        self.send_read(tag, residual, cut, pdus);
        true
    }

    /// Gives a read that is on the list to the pool.
    pub(super) fn read_in_pool(&mut self, tag: u32, expected: Expected, reading: Reading) {
        let cut = self.cut(reading.len_bytes.min(expected.bytes) as usize);
        let (digests, space) = (self.digests, cut.space(self.digests));
        let pdus = self.out.buffer(space);
        let residual = Residual::of(reading.len_bytes.into(), expected.bytes.into());
        let Some(ticket) = self.ticket(tag) else { return };
        if let Some(Pending { charged, .. }) = self.tasks.get_mut(&tag) {
            *charged = space as u64;
            self.read_bytes += space as u64;
        }
        let Reading { device, offset_bytes, .. } = reading;
        self.pool
            .spawn(move || ticket.read(&*device, offset_bytes, (cut, residual), digests, pdus));
    }

    /// Queues the data of a read that lies in `pdus` as `cut` says, with its status.
    pub(super) fn send_read(&mut self, tag: u32, residual: Residual, cut: Cut, mut pdus: Vec<u8>) {
        let digests = self.digests;
        for (data_sn, piece) in (0..).zip(cut.pieces(digests)) {
            let last = piece.offset + piece.len == cut.len;
            let status = last.then_some((Status::Good, residual));
            let header = self.data_in_header(tag, piece, data_sn, status);
            digests.put_header(&mut pdus[piece.at..], &header, piece.len);
        }
        let end = cut.space(digests);
        self.out.push(Segment { buf: pdus, start: 0, end });
    }

    /// Queues data that is no device's, with the status if it can go along; answers how many PDUs that took.
    pub(super) fn send_data(
        &mut self,
        tag: u32,
        data: &[u8],
        status: Option<(Status, Residual)>,
    ) -> u32 {
        let cut = self.cut(data.len());
        let mut count = 0;
        for piece in cut.pieces(self.digests) {
            let last = piece.offset + piece.len == data.len();
            let header = self.data_in_header(tag, piece, count, status.filter(|_| last));
            self.digests.push(
                &mut self.out,
                &header,
                &data[piece.offset..piece.offset + piece.len],
            );
            count += 1;
        }
        count
    }
}
