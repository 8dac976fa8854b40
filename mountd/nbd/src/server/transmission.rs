//! The transmission phase of one connection.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use backstay_blockdev::{BlockDevice, Caps, ExtentKind, Geometry, Readahead, WriteFlags};
use tokio::io::Interest;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use super::Shared;
use super::handshake::{ALLOCATION_ID, Negotiated};
use super::out::{Out, SMALL_BYTES, Segment};
use super::pool::Pool;
use super::wire::{Filled, Wire, retry};
use crate::error::{Error, ErrorKind};
use crate::proto::transmission::{
    DATA_CHUNK_HEAD_BYTES, REQUEST_BYTES, Request, SIMPLE_REPLY_BYTES, command, command_flag,
    encode_block_status, encode_error_chunk, encode_read_in_place, encode_simple_reply, state,
};
use crate::proto::{MAX_EXTENTS, MAX_PAYLOAD_BYTES, errno};

/// Requests of one connection in the pool at once.
const MAX_QUEUED: usize = 256;
/// Reads up to this size are tried on the spot; longer ones go to the pool. Waking a thread costs some
/// 10 us, copying 128 KiB about as much; beyond it, copying one reply while another is sent doubled the
/// rate of a single connection, and a long copy does not hold up the connections of the same thread.
const MAX_INLINE_BYTES: u32 = 128 << 10;
/// Replies gathered before they are handed to the kernel.
const BATCH_BYTES: usize = 256 << 10;

/// The payload of a WRITE on its way in.
struct Payload {
    request: Request,
    /// Where it goes; `None` when the request is already known to fail.
    into: Result<Vec<u8>, u32>,
    filled: usize,
}

/// A reply from the pool.
struct Done {
    segment: Segment,
    charged: u64,
}

/// The duty to answer one request from the pool: dropped unanswered (a panic, a stopped pool), it
/// answers `EIO`, so that no client waits for ever.
struct Ticket {
    replies: mpsc::UnboundedSender<Done>,
    cookie: u64,
    structured: bool,
    charged: u64,
    answered: bool,
}

impl Ticket {
    fn send(&mut self, segment: Segment) {
        self.answered = true;
        // The receiver is gone when the connection is; then nobody waits for the reply.
        let _ = self.replies.send(Done { segment, charged: self.charged });
    }

    fn fail(&mut self, errno: u32, message: &str) {
        let reply = error_reply(self.cookie, errno, message, self.structured);
        self.send(Segment::whole(reply));
    }

    fn finish(&mut self, request: &Request, result: Result<(), backstay_blockdev::Error>) {
        match result {
            Ok(()) => self.send(Segment::whole(encode_simple_reply(self.cookie, 0).to_vec())),
            Err(error) => {
                let (errno, message) = device_error(request, &error);
                self.fail(errno, message);
            }
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

fn error_reply(cookie: u64, errno: u32, message: &str, structured: bool) -> Vec<u8> {
    if structured {
        encode_error_chunk(cookie, errno, message)
    } else {
        encode_simple_reply(cookie, errno).to_vec()
    }
}

/// The wire's error for a device error. The client is told what it can use; paths and causes are for
/// the log.
fn device_error(request: &Request, error: &backstay_blockdev::Error) -> (u32, &'static str) {
    use backstay_blockdev::ErrorKind as Kind;
    tracing::warn!(
        command = request.command,
        offset = request.offset,
        len = request.len,
        %error,
        "a request failed"
    );
    let message = match error.kind() {
        Kind::OutOfRange => "beyond the end of the export",
        Kind::ReadOnly => "the export is read-only",
        Kind::Unsupported => "not supported by the export",
        Kind::NoSpace => "no space left",
        Kind::Damaged => "the stored data is damaged",
        _ => "input/output error",
    };
    (errno::from_device(error.kind()), message)
}

struct Session {
    wire: Wire,
    device: Arc<dyn BlockDevice>,
    geometry: Geometry,
    caps: Caps,
    structured: bool,
    allocation: bool,
    readahead: Readahead,
    out: Out,
    pool: Arc<Pool>,
    sender: mpsc::UnboundedSender<Done>,
    queued: usize,
    queued_bytes: u64,
    max_bytes: u64,
    payload: Option<Payload>,
    /// No more requests are read: the client left or the server stops.
    closing: bool,
}

/// Serves one client until it leaves or the server stops.
pub(super) async fn run(
    wire: Wire,
    negotiated: Negotiated,
    shared: &Shared,
    mut shutdown: watch::Receiver<bool>,
) -> Result<(), Error> {
    // Unbounded by type; MAX_QUEUED bounds what can be in it.
    let (sender, mut replies) = mpsc::unbounded_channel();
    let geometry = negotiated.device.geometry();
    let mut session = Session {
        wire,
        geometry,
        caps: negotiated.device.caps(),
        device: negotiated.device,
        structured: negotiated.structured,
        allocation: negotiated.allocation,
        readahead: Readahead::new(geometry.size_bytes),
        out: Out::default(),
        pool: shared.pool.clone(),
        sender,
        queued: 0,
        queued_bytes: 0,
        max_bytes: shared.config.max_inflight_bytes_per_connection,
        payload: None,
        closing: false,
    };
    let grace = shared.config.stop_grace;
    let idle = shared.config.idle_timeout;
    session.serve(&mut replies, super::stop_asked(&mut shutdown), grace, idle).await
}

impl Session {
    async fn serve(
        &mut self,
        replies: &mut mpsc::UnboundedReceiver<Done>,
        stopped: impl Future<Output = ()>,
        grace: Duration,
        idle: Option<Duration>,
    ) -> Result<(), Error> {
        let mut stopped = pin!(stopped);
        let mut deadline: Option<Instant> = None;
        loop {
            while let Ok(done) = replies.try_recv() {
                self.take_reply(done);
            }
            let progress = self.take_requests()?;
            let lost = |e| Error::io("the client left", e);
            let sent = self.out.write(&self.wire.stream).map_err(lost)?;
            if self.closing && self.queued == 0 && sent {
                return Ok(());
            }
            if progress && sent {
                continue;
            }
            if self.closing {
                deadline.get_or_insert_with(|| Instant::now() + grace);
            } else {
                deadline = idle.filter(|_| self.queued == 0 && sent).map(|d| Instant::now() + d);
            }
            // Both at once: a client may send more before it takes what it asked for.
            let interest = match (self.may_read(), sent) {
                (true, true) => Some(Interest::READABLE),
                (true, false) => Some(Interest::READABLE | Interest::WRITABLE),
                (false, false) => Some(Interest::WRITABLE),
                (false, true) => None,
            };
            tokio::select! {
                biased;
                Some(done) = replies.recv() => self.take_reply(done),
                ready = self.wire.stream.ready(interest.unwrap_or(Interest::READABLE)),
                    if interest.is_some() => ready.map_err(lost)?,
                () = &mut stopped, if !self.closing => self.closing = true,
                () = tokio::time::sleep_until(deadline.unwrap_or_else(Instant::now)),
                    if deadline.is_some() => {
                    return Err(Error::new(ErrorKind::Timeout, "the client was quiet for too long"));
                }
            }
        }
    }

    fn take_reply(&mut self, done: Done) {
        self.queued -= 1;
        self.queued_bytes -= done.charged;
        self.out.push(done.segment);
    }

    /// Whether there is room for another request.
    fn may_read(&self) -> bool {
        !self.closing
            && self.queued < MAX_QUEUED
            && self.queued_bytes + (self.out.bytes() as u64) < self.max_bytes
    }

    /// Reads and handles requests until there are no more, or no room, or a batch of replies is
    /// ready to be sent. `Ok(true)`: there may be more at once.
    fn take_requests(&mut self) -> Result<bool, Error> {
        let before = self.out.bytes();
        while self.may_read() {
            if self.out.bytes() >= before + BATCH_BYTES {
                return Ok(true);
            }
            if self.payload.is_some() {
                if !self.take_payload()? {
                    return Ok(false);
                }
            } else if let Some(head) = self.wire.peek::<REQUEST_BYTES>() {
                let request = Request::decode(head).map_err(|e| Error::codec("bad request", e))?;
                self.wire.consume(REQUEST_BYTES);
                self.handle(request)?;
            } else if !self.fill()? {
                return Ok(false);
            }
        }
        Ok(false)
    }

    /// Reads more; `false` if there is none now. The end of the stream is the client's good-bye.
    fn fill(&mut self) -> Result<bool, Error> {
        match self.wire.try_fill().map_err(|e| Error::io("the client left", e))? {
            Filled::Some => Ok(true),
            Filled::Nothing => Ok(false),
            Filled::End => {
                self.closing = true;
                Ok(false)
            }
        }
    }

    fn error(&mut self, request: &Request, errno: u32, message: &str) {
        // proto.md, "Structured replies": required for READ and BLOCK_STATUS, a choice elsewhere.
        let structured =
            self.structured && matches!(request.command, command::READ | command::BLOCK_STATUS);
        let reply = error_reply(request.cookie, errno, message, structured);
        self.out.push(Segment::whole(reply));
    }

    fn success(&mut self, request: &Request) {
        self.out.push(Segment::whole(encode_simple_reply(request.cookie, 0).to_vec()));
    }

    fn handle(&mut self, request: Request) -> Result<(), Error> {
        match request.command {
            command::DISC => {
                self.closing = true;
                return Ok(());
            }
            command::WRITE if request.len > MAX_PAYLOAD_BYTES => {
                return Err(Error::protocol(format!("a write of {} bytes", request.len)));
            }
            _ => {}
        }
        let checked = self.check(&request);
        if request.command == command::WRITE {
            let into =
                checked.map(|()| self.out.buffer(request.len as usize)).map_err(|(errno, _)| errno);
            self.payload = Some(Payload { request, into, filled: 0 });
            return Ok(());
        }
        if let Err((errno, message)) = checked {
            self.error(&request, errno, message);
            return Ok(());
        }
        match request.command {
            command::READ => self.read(request),
            command::CACHE => {
                self.device.prefetch(request.offset, request.len.into());
                self.success(&request);
            }
            command::FLUSH if !self.caps.writable => self.success(&request),
            command::BLOCK_STATUS => self.block_status(request),
            _ => self.change(request),
        }
        Ok(())
    }

    /// Whether a request can be done at all; the error number and the reason if not.
    fn check(&self, request: &Request) -> Result<(), (u32, &'static str)> {
        use command_flag::{DF, FAST_ZERO, FUA, NO_HOLE, REQ_ONE};
        let caps = self.caps;
        // FUA means nothing where nothing is written, and is allowed everywhere.
        let (flags, offered, writes) = match request.command {
            command::READ => (if self.structured { FUA | DF } else { FUA }, true, false),
            command::WRITE => (FUA, true, true),
            command::FLUSH => (FUA, true, false),
            command::TRIM => (FUA, caps.trim, true),
            command::CACHE => (FUA, true, false),
            command::WRITE_ZEROES => (FUA | NO_HOLE | FAST_ZERO, caps.write_zeroes, true),
            command::BLOCK_STATUS => (FUA | REQ_ONE, self.allocation, false),
            _ => return Err((errno::EINVAL, "unknown command")),
        };
        if writes && !caps.writable {
            return Err((errno::EPERM, "the export is read-only"));
        }
        if !offered {
            return Err((errno::EINVAL, "the command was not offered"));
        }
        if request.flags & !flags != 0 {
            return Err((errno::EINVAL, "unknown flags"));
        }
        if request.command == command::FLUSH {
            // proto.md: offset and length are reserved and zero; nothing depends on them.
            return Ok(());
        }
        let len = u64::from(request.len);
        if self.geometry.check(request.offset, len).is_err() {
            let fills = matches!(request.command, command::WRITE | command::WRITE_ZEROES);
            let errno = if fills { errno::ENOSPC } else { errno::EINVAL };
            return Err((errno, "beyond the end of the export"));
        }
        let block = u64::from(self.geometry.min_block_bytes.max(1));
        let end = request.offset + len;
        let aligned = end.is_multiple_of(block) || end == self.geometry.size_bytes;
        if !request.offset.is_multiple_of(block) || !aligned {
            return Err((errno::EINVAL, "not aligned to the smallest block"));
        }
        if request.command == command::READ && request.len > MAX_PAYLOAD_BYTES {
            return Err((errno::EINVAL, "longer than the largest payload"));
        }
        if request.command == command::BLOCK_STATUS && request.len == 0 {
            return Err((errno::EINVAL, "a block status of nothing"));
        }
        Ok(())
    }

    fn read(&mut self, request: Request) {
        if let Some((offset, len)) = self.readahead.on_read(request.offset, request.len.into()) {
            self.device.prefetch(offset, len);
        }
        let head = if self.structured { DATA_CHUNK_HEAD_BYTES } else { SIMPLE_REPLY_BYTES };
        let space = head + request.len as usize;
        let structured = self.structured;
        if space <= SMALL_BYTES {
            let device = &self.device;
            let mut tried = Ok(false);
            self.out.small(space, |buf| {
                tried = device.try_read_at(request.offset, &mut buf[head..]);
                if let Ok(true) = tried { encode_read(buf, &request, structured) } else { 0 }
            });
            match tried {
                Ok(true) => {}
                Ok(false) => self.read_in_pool(request, head, vec![0; space]),
                Err(error) => self.device_error(&request, &error),
            }
            return;
        }
        let mut buf = self.out.buffer(space);
        if request.len > MAX_INLINE_BYTES {
            return self.read_in_pool(request, head, buf);
        }
        match self.device.try_read_at(request.offset, &mut buf[head..space]) {
            Ok(true) => {
                let end = encode_read(&mut buf[..space], &request, structured);
                self.out.push(Segment { buf, start: 0, end });
            }
            Ok(false) => self.read_in_pool(request, head, buf),
            Err(error) => {
                self.out.recycle(buf);
                self.device_error(&request, &error);
            }
        }
    }

    fn device_error(&mut self, request: &Request, error: &backstay_blockdev::Error) {
        let (errno, message) = device_error(request, error);
        self.error(request, errno, message);
    }

    fn ticket(&mut self, request: &Request, charged: u64) -> Ticket {
        self.queued += 1;
        self.queued_bytes += charged;
        Ticket {
            replies: self.sender.clone(),
            cookie: request.cookie,
            structured: self.structured
                && matches!(request.command, command::READ | command::BLOCK_STATUS),
            charged,
            answered: false,
        }
    }

    fn read_in_pool(&mut self, request: Request, head: usize, mut buf: Vec<u8>) {
        let mut ticket = self.ticket(&request, buf.len() as u64);
        let device = self.device.clone();
        let structured = self.structured;
        self.pool.spawn(move || {
            let space = head + request.len as usize;
            match device.read_at(request.offset, &mut buf[head..space]) {
                Ok(()) => {
                    let end = encode_read(&mut buf[..space], &request, structured);
                    ticket.send(Segment { buf, start: 0, end });
                }
                Err(error) => {
                    let (errno, message) = device_error(&request, &error);
                    ticket.fail(errno, message);
                }
            }
        });
    }

    fn block_status(&mut self, request: Request) {
        let one = request.flags & command_flag::REQ_ONE != 0;
        let max = if one { 1 } else { MAX_EXTENTS };
        let mut ticket = self.ticket(&request, 8 * max as u64);
        let device = self.device.clone();
        self.pool.spawn(move || {
            match device.extents(request.offset, request.len.into(), max) {
                Ok(extents) => {
                    // Extents lie within the request, so their lengths fit its 32 bits.
                    let list = extents.iter().take(max).map(|extent| {
                        let state = match extent.kind {
                            ExtentKind::Data => 0,
                            ExtentKind::Hole => state::HOLE | state::ZERO,
                            ExtentKind::Zero => state::ZERO,
                        };
                        (extent.len_bytes.min(request.len.into()) as u32, state)
                    });
                    let reply = encode_block_status(request.cookie, ALLOCATION_ID, list);
                    ticket.send(Segment::whole(reply));
                }
                Err(error) => {
                    let (errno, message) = device_error(&request, &error);
                    ticket.fail(errno, message);
                }
            }
        });
    }

    /// FLUSH, TRIM and WRITE_ZEROES.
    fn change(&mut self, request: Request) {
        let mut ticket = self.ticket(&request, 0);
        let device = self.device.clone();
        let flags = write_flags(&request);
        self.pool.spawn(move || {
            let (offset, len) = (request.offset, u64::from(request.len));
            let result = match request.command {
                command::TRIM => device.trim(offset, len, flags),
                command::WRITE_ZEROES => device.write_zeroes(offset, len, flags),
                _ => device.flush(),
            };
            ticket.finish(&request, result);
        });
    }

    /// Takes what has come of a payload; `false` if the rest has yet to come.
    fn take_payload(&mut self) -> Result<bool, Error> {
        let Some(mut payload) = self.payload.take() else { return Ok(true) };
        let len = payload.request.len as usize;
        let here = self.wire.buffered().len().min(len - payload.filled);
        if let Ok(buf) = &mut payload.into {
            buf[payload.filled..payload.filled + here]
                .copy_from_slice(&self.wire.buffered()[..here]);
        }
        self.wire.consume(here);
        payload.filled += here;
        if payload.filled < len {
            let more = match &mut payload.into {
                // Nothing is buffered any more, so the rest can go where it belongs.
                Ok(buf) => match self.wire.stream.try_read(&mut buf[payload.filled..len]) {
                    Ok(0) => {
                        self.closing = true;
                        false
                    }
                    Ok(n) => {
                        payload.filled += n;
                        true
                    }
                    Err(e) if retry(&e) => false,
                    Err(e) => return Err(Error::io("the client left", e)),
                },
                Err(_) => self.fill()?,
            };
            self.payload = Some(payload);
            return Ok(more);
        }
        let request = payload.request;
        match payload.into {
            Ok(buf) => {
                let mut ticket = self.ticket(&request, buf.len() as u64);
                let device = self.device.clone();
                let flags = write_flags(&request);
                self.pool.spawn(move || {
                    ticket.finish(&request, device.write_at(request.offset, &buf[..len], flags));
                });
            }
            Err(errno) => self.error(&request, errno, ""),
        }
        Ok(true)
    }
}

/// Turns a buffer with the data of a READ behind its head into the reply; answers its length.
fn encode_read(buf: &mut [u8], request: &Request, structured: bool) -> usize {
    if structured {
        let one = request.flags & command_flag::DF != 0;
        return encode_read_in_place(buf, request.cookie, request.offset, one);
    }
    buf[..SIMPLE_REPLY_BYTES].copy_from_slice(&encode_simple_reply(request.cookie, 0));
    buf.len()
}

fn write_flags(request: &Request) -> WriteFlags {
    WriteFlags {
        fua: request.flags & command_flag::FUA != 0,
        no_hole: request.flags & command_flag::NO_HOLE != 0,
        fast_zero: request.flags & command_flag::FAST_ZERO != 0,
    }
}
