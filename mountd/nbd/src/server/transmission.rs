//! The transmission phase of one connection.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use backstay_blockdev::{Caps, Geometry, Readahead};
use backstay_serve::{
    Filled, Out, Pool, SMALL_BYTES, Segment, Stream as _, Wire, retry, stop_asked,
};
use tokio::io::Interest;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use super::Shared;
use super::handshake::Negotiated;
use super::job::{Change, Done, Outcome, Ticket, Voice, device_error};
use super::negotiation::{ALLOCATION_ID, Agreed, Contexts, PRESENCE_ID};
use super::opened::{Ended, Opened};
use super::stream::Stream;
use crate::error::{Error, ErrorKind};
use crate::proto::extended::{
    ExtendedRequest, MAX_STATUS_PAYLOAD_BYTES, ReplyTo, decode_request, decode_status_payload,
};
use crate::proto::transmission::{command, command_flag};
use crate::proto::{MAX_EXTENTS, MAX_PAYLOAD_BYTES, errno};

/// Requests of one connection in the pool at once.
const MAX_QUEUED: usize = 256;
/// Reads up to this size are tried on the spot; longer ones go to the pool. Waking a thread costs some
/// 10 us, copying 128 KiB about as much; beyond it, copying one reply while another is sent doubled the
/// rate of a single connection, and a long copy does not hold up the connections of the same thread.
const MAX_INLINE_BYTES: u64 = 128 << 10;
/// Replies gathered before they are handed to the kernel.
const BATCH_BYTES: usize = 256 << 10;

/// A client that has asked for so much at once looks ahead by itself: fetching more would only take the
/// processor from what it waits for.
const DEEP_BYTES: u64 = 1 << 20;
/// After how long a write that the device put off is tried again.
const PAUSE: Duration = Duration::from_millis(250);
/// Batches after which a busy connection lets others of its thread go first.
const TURN: usize = 16;

/// A payload on its way in.
struct Payload {
    request: ExtendedRequest,
    /// Where it goes; the error number when the request is already known to fail.
    into: Result<Vec<u8>, u32>,
    filled: usize,
}

struct Session {
    wire: Wire<Stream>,
    opened: Opened,
    agreed: Agreed,
    geometry: Geometry,
    caps: Caps,
    readahead: Readahead,
    out: Out,
    pool: Arc<Pool>,
    sender: mpsc::UnboundedSender<Done>,
    queued: usize,
    queued_bytes: u64,
    /// How much the client has had under way at once, lately.
    depth_bytes: u64,
    max_bytes: u64,
    payload: Option<Payload>,
    /// Changes that the device put off; still counted as queued.
    parked: Vec<(Change, u64)>,
    retry_at: Instant,
    /// The export has ended: requests are answered, with `ESHUTDOWN`.
    ended: bool,
    /// No more requests are read: the client left or the server stops.
    closing: bool,
}

/// Serves one client until it leaves, its export ends or the server stops.
pub(super) async fn run(
    wire: Wire<Stream>,
    negotiated: Negotiated,
    shared: &Shared,
    mut shutdown: watch::Receiver<bool>,
) -> Result<(), Error> {
    // Unbounded by type; MAX_QUEUED bounds what can be in it.
    let (sender, replies) = mpsc::unbounded_channel();
    let Negotiated { opened, agreed } = negotiated;
    let (geometry, caps) = (opened.device.geometry(), opened.device.caps());
    let session = Session {
        wire,
        opened,
        agreed,
        geometry,
        caps,
        readahead: Readahead::new(geometry.size_bytes),
        out: Out::default(),
        pool: shared.pool.clone(),
        sender,
        queued: 0,
        queued_bytes: 0,
        depth_bytes: 0,
        max_bytes: shared.config.max_inflight_bytes_per_connection,
        payload: None,
        parked: Vec::new(),
        retry_at: Instant::now(),
        ended: false,
        closing: false,
    };
    let times = Times {
        stop_grace: shared.config.stop_grace,
        end_grace: shared.config.end_grace,
        idle: shared.config.idle_timeout,
        stopped: Ended::of(shutdown.clone()),
    };
    session.serve(replies, stop_asked(&mut shutdown), times).await
}

/// When a session ends.
struct Times {
    stop_grace: Duration,
    end_grace: Duration,
    idle: Option<Duration>,
    stopped: Ended,
}

impl Session {
    async fn serve(
        mut self,
        mut replies: mpsc::UnboundedReceiver<Done>,
        stopped: impl Future<Output = ()>,
        times: Times,
    ) -> Result<(), Error> {
        let mut stopped = pin!(stopped);
        let mut life = self.opened.ended.clone();
        let mut deadline: Option<Instant> = None;
        let mut close_at: Option<Instant> = None;
        let mut turns = 0;
        loop {
            while let Ok(done) = replies.try_recv() {
                self.take_reply(done);
            }
            // A client that keeps us busy must not keep us from hearing this.
            self.closing |= times.stopped.is_ended();
            if !self.ended && life.is_ended() {
                self.ended = true;
                close_at = Some(Instant::now() + times.end_grace);
            }
            self.closing |= close_at.is_some_and(|at| at <= Instant::now());
            self.retry_parked();
            let progress = self.take_requests()?;
            let lost = |e| Error::io("the client left", e);
            let sent = self.out.write(&mut self.wire.stream).map_err(lost)?;
            if self.closing && self.queued == 0 && sent {
                self.wire.stream.close();
                return Ok(());
            }
            if progress && sent {
                turns += 1;
                if turns % TURN == 0 {
                    tokio::task::yield_now().await;
                }
                continue;
            }
            if self.closing {
                deadline.get_or_insert_with(|| Instant::now() + times.stop_grace);
            } else {
                let idle = times.idle.filter(|_| self.queued == 0 && sent);
                deadline = idle.map(|d| Instant::now() + d);
            }
            let wake = close_at
                .filter(|_| !self.closing)
                .into_iter()
                .chain((!self.parked.is_empty()).then_some(self.retry_at))
                .min();
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
                () = life.ended(), if !self.ended => {}
                () = sleep_until(wake), if wake.is_some() => {}
                () = sleep_until(deadline), if deadline.is_some() => {
                    return Err(Error::new(ErrorKind::Timeout, "the client was quiet for too long"));
                }
            }
        }
    }

    fn take_reply(&mut self, done: Done) {
        match done.outcome {
            Outcome::Reply(segment) => {
                self.queued -= 1;
                self.queued_bytes -= done.charged;
                self.out.push(segment);
            }
            Outcome::Paused(change) => {
                if self.parked.is_empty() {
                    self.retry_at = Instant::now() + PAUSE;
                }
                self.parked.push((change, done.charged));
            }
        }
    }

    /// Tries again what the device put off, when it is time, or gives it up when there is no use.
    fn retry_parked(&mut self) {
        let over = self.ended || self.closing;
        if self.parked.is_empty() || (!over && Instant::now() < self.retry_at) {
            return;
        }
        for (change, charged) in std::mem::take(&mut self.parked) {
            self.queued -= 1;
            self.queued_bytes -= charged;
            if !over {
                self.change(change);
                continue;
            }
            let (errno, why) = match self.ended {
                true => (errno::ENOSPC, "no space left"),
                false => (errno::ESHUTDOWN, "the server is stopping"),
            };
            self.out.push(Segment::whole(change.voice.error(errno, why)));
        }
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
                continue;
            }
            let next = decode_request(self.wire.buffered(), self.agreed.extended)
                .map_err(|e| Error::codec("bad request", e))?;
            if let Some((request, header_bytes)) = next {
                self.wire.consume(header_bytes);
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

    fn voice(&self, request: &ExtendedRequest) -> Voice {
        let Agreed { extended, structured, .. } = self.agreed;
        // proto.md, "Structured replies": required for READ and BLOCK_STATUS, a choice elsewhere.
        let content = matches!(request.command, command::READ | command::BLOCK_STATUS);
        let to = ReplyTo { extended, cookie: request.cookie, offset: request.offset };
        Voice { to, chunks: extended || (structured && content) }
    }

    fn error(&mut self, request: &ExtendedRequest, errno: u32, message: &str) {
        self.out.push(Segment::whole(self.voice(request).error(errno, message)));
    }

    fn success(&mut self, request: &ExtendedRequest) {
        self.out.push(Segment::whole(self.voice(request).success()));
    }

    fn handle(&mut self, request: ExtendedRequest) -> Result<(), Error> {
        if request.command == command::DISC {
            self.closing = true;
            return Ok(());
        }
        self.opened.usage.add_request();
        let told = self.agreed.extended && request.flags & command_flag::PAYLOAD_LEN != 0;
        if told || request.command == command::WRITE {
            return self.expect_payload(request);
        }
        if let Err((errno, message)) = self.check(&request) {
            self.error(&request, errno, message);
            return Ok(());
        }
        match request.command {
            command::READ => self.read(request),
            command::CACHE => {
                self.opened.device.prefetch(request.offset, request.len);
                self.success(&request);
            }
            command::FLUSH if !self.caps.writable => self.success(&request),
            command::BLOCK_STATUS => self.block_status(request, self.agreed.contexts),
            _ => {
                let voice = self.voice(&request);
                self.change(Change { request, voice, payload: Vec::new() });
            }
        }
        Ok(())
    }

    /// A payload follows, whatever becomes of the request.
    fn expect_payload(&mut self, request: ExtendedRequest) -> Result<(), Error> {
        let len = request.len;
        if len > MAX_PAYLOAD_BYTES.into() {
            return Err(Error::protocol(format!("a payload of {len} bytes")));
        }
        let into = match request.command {
            // proto.md wants PAYLOAD_LEN here with extended headers; QEMU 10.0 leaves it out.
            command::WRITE => self
                .check(&request)
                .map(|()| self.out.buffer(len as usize))
                .map_err(|(errno, _)| errno),
            command::BLOCK_STATUS if (8..=MAX_STATUS_PAYLOAD_BYTES).contains(&len) => {
                Ok(vec![0; len as usize])
            }
            _ => Err(errno::EINVAL),
        };
        self.payload = Some(Payload { request, into, filled: 0 });
        Ok(())
    }

    /// Whether a request can be done at all; the error number and the reason if not.
    fn check(&self, request: &ExtendedRequest) -> Result<(), (u32, &'static str)> {
        use command_flag::{DF, FAST_ZERO, FUA, NO_HOLE, PAYLOAD_LEN, REQ_ONE};
        if self.ended {
            return Err((errno::ESHUTDOWN, "the export has ended"));
        }
        let caps = self.caps;
        let payload = if self.agreed.extended { PAYLOAD_LEN } else { 0 };
        // FUA means nothing where nothing is written, and is allowed everywhere.
        let (flags, offered, writes) = match request.command {
            command::READ => (if self.agreed.structured { FUA | DF } else { FUA }, true, false),
            command::WRITE => (FUA | payload, true, true),
            command::FLUSH => (FUA, true, false),
            command::TRIM => (FUA, caps.trim, true),
            command::CACHE => (FUA, true, false),
            command::WRITE_ZEROES => (FUA | NO_HOLE | FAST_ZERO, caps.write_zeroes, true),
            command::BLOCK_STATUS => (FUA | REQ_ONE, self.agreed.contexts.any(), false),
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
        self.check_range(request)
    }

    fn check_range(&self, request: &ExtendedRequest) -> Result<(), (u32, &'static str)> {
        if self.geometry.check(request.offset, request.len).is_err() {
            let fills = matches!(request.command, command::WRITE | command::WRITE_ZEROES);
            let errno = if fills { errno::ENOSPC } else { errno::EINVAL };
            return Err((errno, "beyond the end of the export"));
        }
        let block = u64::from(self.geometry.min_block_bytes.max(1));
        let end = request.offset + request.len;
        let aligned = end.is_multiple_of(block) || end == self.geometry.size_bytes;
        if !request.offset.is_multiple_of(block) || !aligned {
            return Err((errno::EINVAL, "not aligned to the smallest block"));
        }
        if request.command == command::READ && request.len > MAX_PAYLOAD_BYTES.into() {
            return Err((errno::EINVAL, "longer than the largest payload"));
        }
        if request.command == command::BLOCK_STATUS && request.len == 0 {
            return Err((errno::EINVAL, "a block status of nothing"));
        }
        Ok(())
    }

    fn read(&mut self, request: ExtendedRequest) {
        self.opened.usage.add_read(request.len);
        let ahead = self.readahead.on_read(request.offset, request.len);
        let under_way = self.queued_bytes + self.out.bytes() as u64;
        self.depth_bytes = under_way.max(self.depth_bytes - self.depth_bytes / 16);
        if let Some((offset, len)) = ahead.filter(|_| self.depth_bytes < DEEP_BYTES) {
            self.opened.device.prefetch(offset, len);
        }
        let voice = self.voice(&request);
        let head = voice.data_head_bytes();
        let space = head + request.len as usize;
        if space <= SMALL_BYTES {
            let device = &self.opened.device;
            let mut tried = Ok(false);
            self.out.small(space, |buf| {
                tried = device.try_read_at(request.offset, &mut buf[head..]);
                if let Ok(true) = tried { voice.read_in_place(buf, request.flags) } else { 0 }
            });
            match tried {
                Ok(true) => {}
                Ok(false) => self.read_in_pool(request, vec![0; space]),
                Err(error) => self.device_error(&request, &error),
            }
            return;
        }
        let mut buf = self.out.buffer(space);
        if request.len > MAX_INLINE_BYTES {
            return self.read_in_pool(request, buf);
        }
        match self.opened.device.try_read_at(request.offset, &mut buf[head..space]) {
            Ok(true) => {
                let end = voice.read_in_place(&mut buf[..space], request.flags);
                self.out.push(Segment { buf, start: 0, end });
            }
            Ok(false) => self.read_in_pool(request, buf),
            Err(error) => {
                self.out.recycle(buf);
                self.device_error(&request, &error);
            }
        }
    }

    fn device_error(&mut self, request: &ExtendedRequest, error: &backstay_blockdev::Error) {
        let (errno, message) = device_error(request, error);
        self.error(request, errno, message);
    }

    fn ticket(&mut self, voice: Voice, charged: u64) -> Ticket {
        self.queued += 1;
        self.queued_bytes += charged;
        Ticket { replies: self.sender.clone(), voice, charged, answered: false }
    }

    fn read_in_pool(&mut self, request: ExtendedRequest, buf: Vec<u8>) {
        let ticket = self.ticket(self.voice(&request), buf.len() as u64);
        let device = self.opened.device.clone();
        self.pool.spawn(move || ticket.read(&*device, &request, buf));
    }

    fn block_status(&mut self, request: ExtendedRequest, contexts: Contexts) {
        let one = request.flags & command_flag::REQ_ONE != 0;
        let max = if one { 1 } else { MAX_EXTENTS };
        let lists = u64::from(contexts.allocation) + u64::from(contexts.presence);
        let ticket = self.ticket(self.voice(&request), 16 * lists * max as u64);
        let device = self.opened.device.clone();
        self.pool.spawn(move || ticket.block_status(&*device, &request, contexts, max));
    }

    /// WRITE, FLUSH, TRIM and WRITE_ZEROES.
    fn change(&mut self, change: Change) {
        let ticket = self.ticket(change.voice, change.payload.len() as u64);
        let device = self.opened.device.clone();
        self.pool.spawn(move || ticket.change(&*device, change));
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
            Ok(_) if self.ended => self.error(&request, errno::ESHUTDOWN, "the export has ended"),
            Ok(buf) if request.command == command::WRITE => {
                self.opened.usage.add_written(request.len);
                let voice = self.voice(&request);
                self.change(Change { request, voice, payload: buf });
            }
            Ok(filter) => self.filtered_status(request, &filter),
            Err(errno) => self.error(&request, errno, "the payload is not wanted"),
        }
        Ok(true)
    }

    /// BLOCK_STATUS with a payload that says which contexts are wanted, and for how much.
    fn filtered_status(&mut self, mut request: ExtendedRequest, filter: &[u8]) {
        let Ok((len, ids)) = decode_status_payload(filter) else {
            return self.error(&request, errno::EINVAL, "the payload cannot be understood");
        };
        let all = self.agreed.contexts;
        let contexts = Contexts {
            allocation: all.allocation && ids.contains(&ALLOCATION_ID),
            presence: all.presence && ids.contains(&PRESENCE_ID),
        };
        let found = usize::from(contexts.allocation) + usize::from(contexts.presence);
        if ids.is_empty() || found != ids.len() {
            return self.error(&request, errno::EINVAL, "a context that was not chosen");
        }
        request.len = len;
        request.flags &= !command_flag::PAYLOAD_LEN;
        match self.check(&request) {
            Ok(()) => self.block_status(request, contexts),
            Err((errno, why)) => self.error(&request, errno, why),
        }
    }
}

async fn sleep_until(at: Option<Instant>) {
    tokio::time::sleep_until(at.unwrap_or_else(Instant::now)).await;
}
