//! Requests that go to the pool, and the duty to answer them.

use backstay_blockdev::{BlockDevice, ErrorKind, ExtentKind, WriteFlags};
use backstay_serve::Segment;
use tokio::sync::mpsc;

use super::negotiation::{ALLOCATION_ID, Contexts, PRESENCE_ID};
use crate::proto::errno;
use crate::proto::extended::{ExtendedRequest, ReplyTo};
use crate::proto::transmission::{
    SIMPLE_REPLY_BYTES, command, command_flag, encode_read_in_place, encode_simple_reply, presence,
    state,
};

/// How to answer one request.
#[derive(Debug, Clone, Copy)]
pub(super) struct Voice {
    pub(super) to: ReplyTo,
    /// In chunks; else by a simple reply.
    pub(super) chunks: bool,
}

impl Voice {
    pub(super) fn success(&self) -> Vec<u8> {
        match self.chunks {
            true => self.to.success(),
            false => encode_simple_reply(self.to.cookie, 0).to_vec(),
        }
    }

    pub(super) fn error(&self, errno: u32, message: &str) -> Vec<u8> {
        match self.chunks {
            true => self.to.error(errno, message),
            false => encode_simple_reply(self.to.cookie, errno).to_vec(),
        }
    }

    /// Bytes before the data of a READ.
    pub(super) fn data_head_bytes(&self) -> usize {
        if self.chunks { self.to.data_head_bytes() } else { SIMPLE_REPLY_BYTES }
    }

    /// Turns a buffer with the data of a READ behind its head into the reply; answers its length.
    pub(super) fn read_in_place(&self, buf: &mut [u8], flags: u16) -> usize {
        if self.chunks {
            return encode_read_in_place(buf, &self.to, flags & command_flag::DF != 0);
        }
        buf[..SIMPLE_REPLY_BYTES].copy_from_slice(&encode_simple_reply(self.to.cookie, 0));
        buf.len()
    }
}

/// A change that the device will take later, with what is needed to try again.
#[derive(Debug)]
pub(super) struct Change {
    pub(super) request: ExtendedRequest,
    pub(super) voice: Voice,
    /// The payload of a WRITE, in a buffer that may be longer.
    pub(super) payload: Vec<u8>,
}

/// What comes back from the pool.
pub(super) struct Done {
    pub(super) outcome: Outcome,
    pub(super) charged: u64,
}

pub(super) enum Outcome {
    Reply(Segment),
    /// [`ErrorKind::Paused`]: nothing was done, and it is to be tried again.
    Paused(Change),
}

/// The duty to answer one request from the pool: dropped unanswered (a panic, a stopped pool), it
/// answers `EIO`, so that no client waits for ever.
pub(super) struct Ticket {
    pub(super) replies: mpsc::UnboundedSender<Done>,
    pub(super) voice: Voice,
    pub(super) charged: u64,
    pub(super) answered: bool,
}

impl Ticket {
    fn done(&mut self, outcome: Outcome) {
        self.answered = true;
        // The receiver is gone when the connection is; then nobody waits for the reply.
        let _ = self.replies.send(Done { outcome, charged: self.charged });
    }

    fn send(&mut self, segment: Segment) {
        self.done(Outcome::Reply(segment));
    }

    fn fail(&mut self, errno: u32, message: &str) {
        self.send(Segment::whole(self.voice.error(errno, message)));
    }

    fn fail_as(&mut self, request: &ExtendedRequest, error: &backstay_blockdev::Error) {
        let (errno, message) = device_error(request, error);
        self.fail(errno, message);
    }

    /// READ, into a buffer with room for the head.
    pub(super) fn read(
        mut self,
        device: &dyn BlockDevice,
        request: &ExtendedRequest,
        mut buf: Vec<u8>,
    ) {
        let head = self.voice.data_head_bytes();
        let space = head + request.len as usize;
        match device.read_at(request.offset, &mut buf[head..space]) {
            Ok(()) => {
                let end = self.voice.read_in_place(&mut buf[..space], request.flags);
                self.send(Segment { buf, start: 0, end });
            }
            Err(error) => self.fail_as(request, &error),
        }
    }

    /// BLOCK_STATUS: one chunk for each context.
    pub(super) fn block_status(
        mut self,
        device: &dyn BlockDevice,
        request: &ExtendedRequest,
        contexts: Contexts,
        max: usize,
    ) {
        match statuses(device, request, contexts, max) {
            Ok(lists) => {
                let mut reply = Vec::new();
                for (i, (id, list)) in lists.iter().enumerate() {
                    let last = i + 1 == lists.len();
                    reply.extend(self.voice.to.block_status(*id, list, last));
                }
                self.send(Segment::whole(reply));
            }
            Err(error) => self.fail_as(request, &error),
        }
    }

    /// WRITE, FLUSH, TRIM and WRITE_ZEROES.
    pub(super) fn change(mut self, device: &dyn BlockDevice, change: Change) {
        let request = change.request;
        let (offset, len) = (request.offset, request.len);
        let flags = write_flags(request.flags);
        let result = match request.command {
            command::WRITE => device.write_at(offset, &change.payload[..len as usize], flags),
            command::TRIM => device.trim(offset, len, flags),
            command::WRITE_ZEROES => device.write_zeroes(offset, len, flags),
            _ => device.flush(),
        };
        match result {
            Ok(()) => self.send(Segment::whole(self.voice.success())),
            Err(error)
                if error.kind() == ErrorKind::Paused && request.command != command::FLUSH =>
            {
                self.done(Outcome::Paused(change));
            }
            Err(error) => self.fail_as(&request, &error),
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if !self.answered {
            self.fail(errno::EIO, "the request was given up");
        }
    }
}

type Status = (u32, Vec<(u64, u32)>);

fn statuses(
    device: &dyn BlockDevice,
    request: &ExtendedRequest,
    contexts: Contexts,
    max: usize,
) -> Result<Vec<Status>, backstay_blockdev::Error> {
    let mut lists = Vec::new();
    let (offset, len) = (request.offset, request.len);
    if contexts.allocation {
        let extents = device.extents(offset, len, max)?;
        let status = |kind| match kind {
            ExtentKind::Data => 0,
            ExtentKind::Hole => state::HOLE | state::ZERO,
            ExtentKind::Zero => state::ZERO,
        };
        let list = extents.iter().take(max).map(|e| (e.len_bytes.min(len), status(e.kind)));
        lists.push((ALLOCATION_ID, list.collect()));
    }
    if contexts.presence {
        let extents = device.presence(offset, len, max)?;
        let bits = |p: &backstay_blockdev::Presence| {
            [
                (p.stored, presence::STORED),
                (p.at_hand, presence::AT_HAND),
                (p.overlaid, presence::OVERLAID),
            ]
            .iter()
            .filter(|(on, _)| *on)
            .fold(0, |all, (_, bit)| all | bit)
        };
        let list = extents.iter().take(max).map(|e| (e.len_bytes.min(len), bits(&e.presence)));
        lists.push((PRESENCE_ID, list.collect()));
    }
    Ok(lists)
}

fn write_flags(flags: u16) -> WriteFlags {
    WriteFlags {
        fua: flags & command_flag::FUA != 0,
        no_hole: flags & command_flag::NO_HOLE != 0,
        fast_zero: flags & command_flag::FAST_ZERO != 0,
    }
}

/// The wire's error for a device error. The client is told what it can use; paths and causes are for
/// the log.
pub(super) fn device_error(
    request: &ExtendedRequest,
    error: &backstay_blockdev::Error,
) -> (u32, &'static str) {
    tracing::warn!(
        command = request.command,
        offset = request.offset,
        len = request.len,
        %error,
        "a request failed"
    );
    let message = match error.kind() {
        ErrorKind::OutOfRange => "beyond the end of the export",
        ErrorKind::ReadOnly => "the export is read-only",
        ErrorKind::Unsupported => "not supported by the export",
        ErrorKind::NoSpace => "no space left",
        ErrorKind::Damaged => "the stored data is damaged",
        _ => "input/output error",
    };
    (errno::from_device(error.kind()), message)
}
