//! An export of another server, as a block device.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use backstay_blockdev::{
    BlockDevice, Caps, Error as DeviceError, ErrorKind as DeviceErrorKind, Extent, ExtentKind,
    Geometry, WriteFlags, push_extent,
};

use super::Client;
use super::connection::Connection;
use super::handshake::Agreed;
use super::reply::{Failure, describe};
use super::uri::NbdUri;
use crate::error::Error;
use crate::proto::errno;
use crate::proto::transmission::{Request, command, command_flag, flag, state};

/// One request asks for at most this much, so that several connections share a long read.
const PIECE_BYTES: u32 = 8 << 20;
/// The longest range of one block status; lengths have 32 bits.
const STATUS_BYTES: u64 = 1 << 30;
/// A further connection must be made within this; a server that takes no more lets it wait.
const FURTHER_TIMEOUT: Duration = Duration::from_secs(2);

/// An export of another server. Several threads read at once over as many connections, if the
/// server allows several. A connection that failed is replaced at the next request; the request
/// that failed is not repeated.
#[derive(Debug)]
pub struct Remote {
    uri: NbdUri,
    client: Client,
    agreed: Agreed,
    pool: Mutex<Connections>,
    returned: Condvar,
}

#[derive(Debug)]
struct Connections {
    idle: Vec<Connection>,
    /// Those that are idle, in use or being made.
    open: usize,
    max: usize,
}

impl Remote {
    pub(super) fn open(uri: NbdUri, client: Client) -> Result<Self, Error> {
        let (connection, agreed) =
            Connection::open(&uri, client.handshake_timeout, client.reply_timeout)?;
        let max = match agreed.flags & flag::CAN_MULTI_CONN {
            0 => 1,
            _ => client.connections.max(1),
        };
        let pool = Connections { idle: vec![connection], open: 1, max };
        Ok(Self { uri, client, agreed, pool: Mutex::new(pool), returned: Condvar::new() })
    }

    /// The server and export it reads.
    pub fn uri(&self) -> &NbdUri {
        &self.uri
    }

    /// Whether the server tells which ranges are holes (base:allocation).
    pub fn knows_holes(&self) -> bool {
        self.agreed.allocation.is_some()
    }

    fn lock(&self) -> MutexGuard<'_, Connections> {
        // A panic cannot happen between the updates of the counters.
        self.pool.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A connection nobody else uses until it is given back.
    fn take(&self) -> Result<Connection, Error> {
        let mut pool = self.lock();
        loop {
            if let Some(connection) = pool.idle.pop() {
                return Ok(connection);
            }
            if pool.open < pool.max {
                break;
            }
            pool = self.returned.wait(pool).unwrap_or_else(PoisonError::into_inner);
        }
        let others = pool.open > 0;
        pool.open += 1;
        drop(pool);
        let patience = match others {
            true => self.client.handshake_timeout.min(FURTHER_TIMEOUT),
            false => self.client.handshake_timeout,
        };
        let made = Connection::open(&self.uri, patience, self.client.reply_timeout).and_then(
            |(connection, agreed)| {
                if agreed == self.agreed {
                    return Ok(connection);
                }
                Err(Error::protocol(format!("{}: the export has changed", self.uri)))
            },
        );
        match made {
            Ok(connection) => Ok(connection),
            Err(error) => {
                let mut pool = self.lock();
                pool.open -= 1;
                if pool.open == 0 {
                    self.returned.notify_one();
                    return Err(error);
                }
                // The server takes no more: the ones there are must do.
                tracing::debug!(uri = %self.uri, %error, "no further connection");
                pool.max = pool.open;
                drop(pool);
                self.take()
            }
        }
    }

    /// Runs one request on a connection, and maps its failure to the device's.
    fn with<T>(
        &self,
        what: &str,
        offset_bytes: u64,
        len_bytes: u64,
        run: impl FnOnce(&mut Connection) -> Result<T, Failure>,
    ) -> Result<T, DeviceError> {
        let context =
            || format!("{}: {what} of {len_bytes} bytes at offset {offset_bytes} failed", self.uri);
        let mut connection = self
            .take()
            .map_err(|e| DeviceError::new(DeviceErrorKind::Io, context()).with_source(e))?;
        connection.start(self.client.reply_timeout);
        let result = run(&mut connection);
        let mut pool = self.lock();
        if matches!(result, Err(Failure::Broken(_))) {
            pool.open -= 1;
        } else {
            pool.idle.push(connection);
        }
        drop(pool);
        self.returned.notify_one();
        result.map_err(|failure| match failure {
            Failure::Server(code, message) => {
                let kind = errno::to_device(code);
                DeviceError::new(kind, format!("{}: {}", context(), describe(code, &message)))
            }
            Failure::Broken(error) => {
                DeviceError::new(DeviceErrorKind::Io, context()).with_source(error)
            }
        })
    }

    fn has(&self, flag: u16) -> bool {
        self.agreed.flags & flag != 0
    }

    /// A read that is aligned and within one payload.
    fn read_piece(&self, offset_bytes: u64, buf: &mut [u8]) -> Result<(), DeviceError> {
        let request = request(command::READ, 0, offset_bytes, buf.len() as u32);
        let structured = self.agreed.structured;
        self.with("read", offset_bytes, buf.len() as u64, |connection| {
            let request = connection.send(request, &[])?;
            connection.read_reply(&request, structured, buf)
        })
    }

    fn block(&self) -> u64 {
        self.agreed.min_block.max(1).into()
    }

    fn check_writable(&self, offered: bool) -> Result<(), DeviceError> {
        if !self.has(flag::HAS_FLAGS) || self.has(flag::READ_ONLY) {
            let text = format!("{}: the export is read-only", self.uri);
            return Err(DeviceError::new(DeviceErrorKind::ReadOnly, text));
        }
        if !offered {
            let text = format!("{}: the server does not offer this", self.uri);
            return Err(DeviceError::new(DeviceErrorKind::Unsupported, text));
        }
        Ok(())
    }

    /// TRIM and WRITE_ZEROES, in pieces of 32-bit length.
    fn change(
        &self,
        command: u16,
        what: &str,
        offset_bytes: u64,
        len_bytes: u64,
        flags: u16,
    ) -> Result<(), DeviceError> {
        let mut at = offset_bytes;
        let end = offset_bytes + len_bytes;
        while at < end {
            let len = (end - at).min(STATUS_BYTES) as u32;
            self.with(what, at, len.into(), |connection| {
                let request = connection.send(request(command, flags, at, len), &[])?;
                connection.plain_reply(&request, self.agreed.structured)
            })?;
            at += u64::from(len);
        }
        Ok(())
    }

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
            size_bytes: self.agreed.size_bytes,
            min_block_bytes: 1,
            preferred_block_bytes: self.agreed.preferred_block,
            max_request_bytes: self.agreed.max_payload.max(self.agreed.preferred_block),
        }
    }

    fn caps(&self) -> Caps {
        // Without HAS_FLAGS the server has told nothing; then only reading is safe.
        let writable = self.has(flag::HAS_FLAGS) && !self.has(flag::READ_ONLY);
        // Writes that are not whole blocks would need a read before them, which is not done.
        let writable = writable && self.agreed.min_block == 1;
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
        let to = end.next_multiple_of(block).min(self.agreed.size_bytes);
        if (from, to) != (offset_bytes, end) {
            // A server of larger blocks gets whole ones.
            let mut whole = vec![0; (to - from) as usize];
            self.read_at(from, &mut whole)?;
            let skip = (offset_bytes - from) as usize;
            buf.copy_from_slice(&whole[skip..skip + buf.len()]);
            return Ok(());
        }
        let piece = self.agreed.max_payload.min(PIECE_BYTES) as usize;
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
        let Some(context) = self.agreed.allocation else {
            push_extent(&mut list, Extent { offset_bytes, len_bytes, kind: ExtentKind::Data });
            return Ok(list);
        };
        let block = self.block();
        let from = offset_bytes / block * block;
        let end = offset_bytes + len_bytes;
        let to = end.next_multiple_of(block).min(self.agreed.size_bytes).min(from + STATUS_BYTES);
        let flags = if max <= 1 { command_flag::REQ_ONE } else { 0 };
        let ask = request(command::BLOCK_STATUS, flags, from, (to - from) as u32);
        let answer = self.with("block status", from, to - from, |connection| {
            let request = connection.send(ask, &[])?;
            connection.status_reply(&request, context)
        })?;
        let mut at = from;
        for (len, status) in answer {
            let next = at.saturating_add(len.into()).min(end);
            let start = at.max(offset_bytes);
            // Only ZERO promises zeros; a HOLE without it may read as anything.
            let kind = match (status & state::ZERO != 0, status & state::HOLE != 0) {
                (true, true) => ExtentKind::Hole,
                (true, false) => ExtentKind::Zero,
                (false, _) => ExtentKind::Data,
            };
            if next > start {
                if list.len() >= max.max(1) && list.last().is_some_and(|e: &Extent| e.kind != kind)
                {
                    break;
                }
                let len_bytes = next - start;
                push_extent(&mut list, Extent { offset_bytes: start, len_bytes, kind });
            }
            at = next;
            if at >= end {
                break;
            }
        }
        if list.is_empty() {
            // The answer ended before the range began (blocks larger than its start).
            push_extent(&mut list, Extent { offset_bytes, len_bytes, kind: ExtentKind::Data });
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
        self.check_writable(self.agreed.min_block == 1)?;
        let mut at = offset_bytes;
        for part in data.chunks(self.agreed.max_payload.min(PIECE_BYTES) as usize) {
            let ask = request(command::WRITE, self.fua(flags), at, part.len() as u32);
            self.with("write", at, part.len() as u64, |connection| {
                let request = connection.send(ask, part)?;
                connection.plain_reply(&request, self.agreed.structured)
            })?;
            at += part.len() as u64;
        }
        self.finish(flags)
    }

    fn flush(&self) -> Result<(), DeviceError> {
        if self.has(flag::READ_ONLY) || !self.has(flag::SEND_FLUSH) {
            return Ok(());
        }
        self.with("flush", 0, 0, |connection| {
            let request = connection.send(request(command::FLUSH, 0, 0, 0), &[])?;
            connection.plain_reply(&request, self.agreed.structured)
        })
    }

    fn trim(
        &self,
        offset_bytes: u64,
        len_bytes: u64,
        flags: WriteFlags,
    ) -> Result<(), DeviceError> {
        self.geometry().check(offset_bytes, len_bytes)?;
        self.check_writable(self.caps().trim)?;
        self.change(command::TRIM, "trim", offset_bytes, len_bytes, self.fua(flags))?;
        self.finish(flags)
    }

    fn write_zeroes(
        &self,
        offset_bytes: u64,
        len_bytes: u64,
        flags: WriteFlags,
    ) -> Result<(), DeviceError> {
        self.geometry().check(offset_bytes, len_bytes)?;
        self.check_writable(self.caps().write_zeroes)?;
        let mut bits = self.fua(flags);
        if flags.no_hole {
            bits |= command_flag::NO_HOLE;
        }
        if flags.fast_zero && self.has(flag::SEND_FAST_ZERO) {
            bits |= command_flag::FAST_ZERO;
        }
        self.change(command::WRITE_ZEROES, "write zeroes", offset_bytes, len_bytes, bits)?;
        self.finish(flags)
    }
}

impl Drop for Remote {
    fn drop(&mut self) {
        for connection in &mut self.lock().idle {
            // A polite good-bye; a server that is gone does not miss it.
            let _ = connection.send(request(command::DISC, 0, 0, 0), &[]);
        }
    }
}
