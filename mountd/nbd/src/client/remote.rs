//! An export of another server, as a block device.

use std::time::{Duration, Instant};

use backstay_blockdev::{
    BlockDevice, Caps, Error as DeviceError, ErrorKind as DeviceErrorKind, Extent, ExtentKind,
    Geometry, WriteFlags, push_extent,
};

use super::Client;
use super::connection::Failure;
use super::pool::{Lease, Pool};
use super::reply::{Reply, describe};
use super::uri::NbdUri;
use crate::error::{Error, ErrorKind};
use crate::proto::transmission::{Request, command, command_flag, flag, state};
use crate::proto::{BASE_ALLOCATION, errno};

/// One request asks for at most this much, so that several connections share a long read and replies
/// read for others stay small.
const PIECE_BYTES: u32 = 4 << 20;
/// The longest range of one block status, trim or zeroing; lengths have 32 bits.
const STATUS_BYTES: u64 = 1 << 30;
/// The pause before a connection is made anew for the second time; it doubles up to the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// An export of another server. Many threads use it at once: over several connections, if the server
/// allows that, with many requests on each. A connection that failed is replaced; what becomes of its
/// requests, and what a flush may say then, is told at [`Client::reconnect_timeout`] and
/// [`Client::server_keeps_writes`].
#[derive(Debug)]
pub struct Remote {
    uri: NbdUri,
    reconnect_timeout: Duration,
    pool: Pool,
}

impl Remote {
    pub(super) fn open(uri: NbdUri, client: Client) -> Result<Self, Error> {
        let reconnect_timeout = client.reconnect_timeout;
        Ok(Self { pool: Pool::open(uri.clone(), client)?, uri, reconnect_timeout })
    }

    /// The server and export it reads.
    pub fn uri(&self) -> &NbdUri {
        &self.uri
    }

    /// Whether the server tells which ranges are holes (base:allocation).
    pub fn knows_holes(&self) -> bool {
        self.has_context(BASE_ALLOCATION)
    }

    /// Whether the server has this metadata context of those asked for ([`Client::contexts`]).
    pub fn has_context(&self, name: &str) -> bool {
        self.pool.agreed.context(name).is_some()
    }

    /// What the metadata context `name` says from `offset_bytes` on: lengths in bytes, none 0, and
    /// flags, whose meaning is the context's (for `qemu:dirty-bitmap:` contexts, 1 is dirty). It is cut
    /// to the range, and may stop early: then ask again from where it ends. Empty only for an empty
    /// range. Fails with [`DeviceErrorKind::Unsupported`] if the context was not asked for, or the
    /// server does not have it.
    pub fn status(
        &self,
        name: &str,
        offset_bytes: u64,
        len_bytes: u64,
    ) -> Result<Vec<(u64, u32)>, DeviceError> {
        self.geometry().check(offset_bytes, len_bytes)?;
        if !self.has_context(name) {
            let text = format!("{}: there is no metadata context {name:?}", self.uri);
            return Err(DeviceError::new(DeviceErrorKind::Unsupported, text));
        }
        if len_bytes == 0 {
            return Ok(Vec::new());
        }
        self.ask_status(name, offset_bytes, len_bytes, false)
    }

    /// The same for a context that there is and a range that is not empty.
    fn ask_status(
        &self,
        name: &str,
        offset_bytes: u64,
        len_bytes: u64,
        one: bool,
    ) -> Result<Vec<(u64, u32)>, DeviceError> {
        let block = self.block();
        let from = offset_bytes / block * block;
        let end = offset_bytes + len_bytes;
        let size = self.pool.agreed.size_bytes;
        let to = end.next_multiple_of(block).min(size).min(from + STATUS_BYTES);
        let flags = if one { command_flag::REQ_ONE } else { 0 };
        let ask = request(command::BLOCK_STATUS, flags, from, (to - from) as u32);
        let (reply, id) = self.perform("block status", ask, &[], &mut [], |lease, reply| {
            // Ids are those of the connection that answered.
            (reply, lease.connection.agreed.context(name))
        })?;
        let answer = reply.statuses.into_iter().find(|(of, _)| Some(*of) == id);
        let Some((_, answer)) = answer else {
            let text = format!("{}: block status without an answer for {name:?}", self.uri);
            return Err(DeviceError::new(DeviceErrorKind::Io, text));
        };
        let mut list = Vec::with_capacity(answer.len());
        let mut at = from;
        for (len, flags) in answer {
            let next = at.saturating_add(len.into()).min(end);
            let start = at.max(offset_bytes);
            if next > start {
                list.push((next - start, flags));
            }
            at = next;
        }
        if list.is_empty() {
            let text = format!("{}: block status ends before the range asked for", self.uri);
            return Err(DeviceError::new(DeviceErrorKind::Io, text));
        }
        Ok(list)
    }

    /// Does one request, on new connections too where that may be (see the rule in `durability.rs`),
    /// and maps its failure to the device's. `finish` is called while the connection is still held.
    fn perform<T>(
        &self,
        what: &str,
        request: Request,
        payload: &[u8],
        buf: &mut [u8],
        finish: impl FnOnce(&Lease<'_>, Reply) -> T,
    ) -> Result<T, DeviceError> {
        let mut give_up = None;
        let mut pause = Duration::ZERO;
        let error = loop {
            let error = match self.pool.take() {
                Ok(lease) => match lease.connection.call(request, payload, buf) {
                    Ok(reply) => return Ok(finish(&lease, reply)),
                    Err(failure @ Failure::Server(..)) => {
                        return Err(self.failed(what, &request, failure));
                    }
                    Err(Failure::Broken(error)) => (error.kind() == ErrorKind::Io, error),
                },
                // A server that is being started may not answer yet.
                Err(e) => (matches!(e.kind(), ErrorKind::Io | ErrorKind::Timeout), e),
            };
            let (repeatable, error) = error;
            let until = *give_up.get_or_insert_with(|| Instant::now() + self.reconnect_timeout);
            if !repeatable || Instant::now() + pause >= until {
                break error;
            }
            tracing::debug!(uri = %self.uri, %error, ?pause, "connecting again");
            std::thread::sleep(pause);
            pause = (pause * 2).clamp(FIRST_PAUSE, LONGEST_PAUSE);
        };
        Err(self.failed(what, &request, Failure::Broken(error)))
    }

    fn failed(&self, what: &str, request: &Request, failure: Failure) -> DeviceError {
        let Request { offset, len, .. } = request;
        let context = format!("{}: {what} of {len} bytes at offset {offset} failed", self.uri);
        match failure {
            Failure::Server(code, message) => {
                let kind = errno::to_device(code);
                DeviceError::new(kind, format!("{context}: {}", describe(code, &message)))
            }
            Failure::Broken(error) => {
                DeviceError::new(DeviceErrorKind::Io, context).with_source(error)
            }
        }
    }

    /// A request that changes something.
    fn change(&self, what: &str, request: Request, payload: &[u8]) -> Result<(), DeviceError> {
        let durable = request.flags & command_flag::FUA != 0;
        self.perform(what, request, payload, &mut [], |lease, _| {
            if !durable {
                self.pool.durability.acknowledged(lease.id);
            }
        })
    }

    fn lost(&self, why: &str) -> DeviceError {
        DeviceError::new(DeviceErrorKind::Io, format!("{}: flush failed: {why}", self.uri))
    }

    /// A flush on one connection.
    fn flush_one(&self, lease: &Lease<'_>, covered: u64) -> Result<(), DeviceError> {
        let ask = request(command::FLUSH, 0, 0, 0);
        match lease.connection.call(ask, &[], &mut []) {
            Ok(_) => {
                self.pool.durability.flushed(lease.id, covered);
                Ok(())
            }
            Err(failure) => {
                if let Failure::Server(..) = failure {
                    self.pool.durability.flush_failed();
                }
                Err(self.failed("flush", &ask, failure))
            }
        }
    }

    fn has(&self, flag: u16) -> bool {
        self.pool.agreed.flags & flag != 0
    }

    /// A read that is aligned and within one payload.
    fn read_piece(&self, offset_bytes: u64, buf: &mut [u8]) -> Result<(), DeviceError> {
        let request = request(command::READ, 0, offset_bytes, buf.len() as u32);
        self.perform("read", request, &[], buf, |_, _| ())
    }

    fn block(&self) -> u64 {
        self.pool.agreed.min_block.max(1).into()
    }

    /// Fails unless the export takes writes, and has what the flags and the operation need.
    fn check_can(&self, offered: bool, flags: WriteFlags) -> Result<(), DeviceError> {
        let caps = self.caps();
        if !caps.writable {
            let text = format!("{}: the export is read-only", self.uri);
            return Err(DeviceError::new(DeviceErrorKind::ReadOnly, text));
        }
        if !offered || (flags.fua && !caps.fua) {
            let text = format!("{}: the server does not offer this", self.uri);
            return Err(DeviceError::new(DeviceErrorKind::Unsupported, text));
        }
        Ok(())
    }

    /// TRIM and WRITE_ZEROES, in pieces of 32-bit length.
    fn change_range(
        &self,
        command: u16,
        what: &str,
        (offset_bytes, len_bytes): (u64, u64),
        flags: u16,
    ) -> Result<(), DeviceError> {
        let mut at = offset_bytes;
        let end = offset_bytes + len_bytes;
        while at < end {
            let len = (end - at).min(STATUS_BYTES) as u32;
            self.change(what, request(command, flags, at, len), &[])?;
            at += u64::from(len);
        }
        Ok(())
    }

    /// What is left of a write: to make it durable where the server cannot do that with the write.
    fn finish(&self, flags: WriteFlags) -> Result<(), DeviceError> {
        if flags.fua && !self.has(flag::SEND_FUA) { self.flush() } else { Ok(()) }
    }

    fn fua(&self, flags: WriteFlags) -> u16 {
        if flags.fua && self.has(flag::SEND_FUA) { command_flag::FUA } else { 0 }
    }
}

fn request(command: u16, flags: u16, offset: u64, len: u32) -> Request {
    Request { flags, command, cookie: 0, offset, len }
}

impl BlockDevice for Remote {
    fn geometry(&self) -> Geometry {
        Geometry {
            size_bytes: self.pool.agreed.size_bytes,
            min_block_bytes: 1,
            preferred_block_bytes: self.pool.agreed.preferred_block,
            max_request_bytes: self.pool.agreed.max_payload.max(self.pool.agreed.preferred_block),
        }
    }

    fn caps(&self) -> Caps {
        // Without HAS_FLAGS the server has told nothing; then only reading is safe.
        let writable = self.has(flag::HAS_FLAGS) && !self.has(flag::READ_ONLY);
        // Writes that are not whole blocks would need a read before them, which is not done.
        let writable = writable && self.pool.agreed.min_block == 1;
        Caps {
            writable,
            flush: writable && self.has(flag::SEND_FLUSH),
            trim: writable && self.has(flag::SEND_TRIM),
            write_zeroes: writable && self.has(flag::SEND_WRITE_ZEROES),
            fast_zero: writable && self.has(flag::SEND_FAST_ZERO),
            fua: writable && (self.has(flag::SEND_FUA) || self.has(flag::SEND_FLUSH)),
            multi_conn: self.has(flag::CAN_MULTI_CONN),
            rotational: self.has(flag::ROTATIONAL),
            presence: false,
        }
    }

    fn read_at(&self, offset_bytes: u64, buf: &mut [u8]) -> Result<(), DeviceError> {
        self.geometry().check(offset_bytes, buf.len() as u64)?;
        if buf.is_empty() {
            return Ok(());
        }
        let block = self.block();
        let end = offset_bytes + buf.len() as u64;
        let from = offset_bytes / block * block;
        let to = end.next_multiple_of(block).min(self.pool.agreed.size_bytes);
        if (from, to) != (offset_bytes, end) {
            // A server of larger blocks gets whole ones.
            let mut whole = vec![0; (to - from) as usize];
            self.read_at(from, &mut whole)?;
            let skip = (offset_bytes - from) as usize;
            buf.copy_from_slice(&whole[skip..skip + buf.len()]);
            return Ok(());
        }
        let piece = self.pool.agreed.max_payload.min(PIECE_BYTES) as usize;
        let mut at = offset_bytes;
        for part in buf.chunks_mut(piece) {
            self.read_piece(at, part)?;
            at += part.len() as u64;
        }
        Ok(())
    }

    fn extents(
        &self,
        offset_bytes: u64,
        len_bytes: u64,
        max: usize,
    ) -> Result<Vec<Extent>, DeviceError> {
        self.geometry().check(offset_bytes, len_bytes)?;
        let mut list = Vec::new();
        if len_bytes == 0 {
            return Ok(list);
        }
        if !self.knows_holes() {
            push_extent(&mut list, Extent { offset_bytes, len_bytes, kind: ExtentKind::Data });
            return Ok(list);
        }
        let mut at = offset_bytes;
        for (len_bytes, status) in
            self.ask_status(BASE_ALLOCATION, offset_bytes, len_bytes, max <= 1)?
        {
            // Only ZERO promises zeros; a HOLE without it may read as anything.
            let kind = match (status & state::ZERO != 0, status & state::HOLE != 0) {
                (true, true) => ExtentKind::Hole,
                (true, false) => ExtentKind::Zero,
                (false, _) => ExtentKind::Data,
            };
            if list.len() >= max.max(1) && list.last().is_some_and(|e: &Extent| e.kind != kind) {
                break;
            }
            push_extent(&mut list, Extent { offset_bytes: at, len_bytes, kind });
            at += len_bytes;
        }
        Ok(list)
    }

    fn write_at(
        &self,
        offset_bytes: u64,
        data: &[u8],
        flags: WriteFlags,
    ) -> Result<(), DeviceError> {
        self.geometry().check(offset_bytes, data.len() as u64)?;
        self.check_can(true, flags)?;
        let mut at = offset_bytes;
        for part in data.chunks(self.pool.agreed.max_payload.min(PIECE_BYTES) as usize) {
            let ask = request(command::WRITE, self.fua(flags), at, part.len() as u32);
            self.change("write", ask, part)?;
            at += part.len() as u64;
        }
        self.finish(flags)
    }

    fn flush(&self) -> Result<(), DeviceError> {
        if !self.caps().writable {
            return Ok(());
        }
        self.check_can(self.has(flag::SEND_FLUSH), WriteFlags::default())?;
        let durability = &self.pool.durability;
        let mut done = false;
        for (id, covered) in durability.owing().map_err(|why| self.lost(why))? {
            // One that is gone has been accounted for; `check` tells.
            let Some(lease) = self.pool.take_this(id) else { continue };
            let result = self.flush_one(&lease, covered);
            let broken = lease.connection.is_broken();
            drop(lease);
            match result {
                Ok(()) => done = true,
                Err(error) => {
                    durability.check().map_err(|_| error)?;
                    debug_assert!(broken, "an error of the server fails every flush");
                }
            }
        }
        if !done {
            let ask = request(command::FLUSH, 0, 0, 0);
            let result = self.perform("flush", ask, &[], &mut [], |_, _| ());
            if let Err(error) = result {
                durability.flush_failed();
                return Err(error);
            }
        }
        durability.check().map_err(|why| self.lost(why))
    }

    fn trim(
        &self,
        offset_bytes: u64,
        len_bytes: u64,
        flags: WriteFlags,
    ) -> Result<(), DeviceError> {
        self.geometry().check(offset_bytes, len_bytes)?;
        self.check_can(self.caps().trim, flags)?;
        let range = (offset_bytes, len_bytes);
        self.change_range(command::TRIM, "trim", range, self.fua(flags))?;
        self.finish(flags)
    }

    fn write_zeroes(
        &self,
        offset_bytes: u64,
        len_bytes: u64,
        flags: WriteFlags,
    ) -> Result<(), DeviceError> {
        self.geometry().check(offset_bytes, len_bytes)?;
        let caps = self.caps();
        // A server that cannot tell whether it would be slow might be.
        self.check_can(caps.write_zeroes && (!flags.fast_zero || caps.fast_zero), flags)?;
        let mut bits = self.fua(flags);
        if flags.no_hole {
            bits |= command_flag::NO_HOLE;
        }
        if flags.fast_zero {
            bits |= command_flag::FAST_ZERO;
        }
        let range = (offset_bytes, len_bytes);
        self.change_range(command::WRITE_ZEROES, "write zeroes", range, bits)?;
        self.finish(flags)
    }
}

impl Drop for Remote {
    fn drop(&mut self) {
        for connection in self.pool.all() {
            connection.leave(request(command::DISC, 0, 0, 0));
        }
    }
}
