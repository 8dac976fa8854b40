//! Requests and their replies (proto.md, "Transmission"), one at a time on a connection.

use super::connection::Connection;
use crate::error::Error;
use crate::proto::errno;
use crate::proto::transmission::{
    ErrorChunk, ReplyStart, Request, SIMPLE_REPLY_BYTES, chunk, decode_block_status,
};

/// Content chunks in the reply to one read. 32 MiB in sectors of 512 bytes are as many.
const MAX_CHUNKS: usize = 64 << 10;
/// The longest block status taken.
const MAX_STATUS_BYTES: u32 = 1 << 20;
/// The longest error chunk taken: a message of 64 KiB and its numbers.
const MAX_ERROR_BYTES: u32 = (64 << 10) + 16;

/// Why a request brought no answer.
#[derive(Debug)]
pub(super) enum Failure {
    /// The server said so: its error number and text. The connection is fine.
    Server(u32, String),
    /// The connection is not to be used again.
    Broken(Error),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Broken(error)
    }
}

/// A reply's next part, with its payload still to be read.
enum Part {
    /// A simple reply without error: READ's data follows.
    Simple,
    /// A chunk with `len` bytes of payload; `done` if it is the last.
    Chunk { kind: u16, len: u32, done: bool },
}

impl Connection {
    fn broken(&self, what: &str) -> Failure {
        Failure::Broken(Error::protocol(self.context(what)))
    }

    /// Sends a request with its payload.
    pub(super) fn send(&mut self, mut request: Request, data: &[u8]) -> Result<Request, Failure> {
        request.cookie = self.cookie;
        self.cookie += 1;
        self.write(&request.encode())?;
        if !data.is_empty() {
            self.write(data)?;
        }
        Ok(request)
    }

    /// Reads the start of the next part of the reply to `request`.
    fn part(&mut self, request: &Request, structured: bool) -> Result<Part, Failure> {
        let mut start = [0; SIMPLE_REPLY_BYTES];
        self.read(&mut start)?;
        let start = ReplyStart::decode(&start)
            .map_err(|e| Failure::Broken(Error::codec(self.context("reply"), e)))?;
        let (ReplyStart::Simple { cookie, .. } | ReplyStart::Chunk { cookie, .. }) = start;
        if cookie != request.cookie {
            return Err(self.broken(&format!("a reply to request {cookie}, which is not ours")));
        }
        match start {
            ReplyStart::Simple { errno: 0, .. } => Ok(Part::Simple),
            ReplyStart::Simple { errno, .. } => Err(Failure::Server(errno, String::new())),
            ReplyStart::Chunk { .. } if !structured => {
                Err(self.broken("a structured reply, which was not agreed on"))
            }
            ReplyStart::Chunk { flags, kind, .. } => {
                let mut len = [0; 4];
                self.read(&mut len)?;
                let len = u32::from_be_bytes(len);
                if flags & !chunk::FLAG_DONE != 0 {
                    return Err(self.broken(&format!("unknown chunk flags {flags:#x}")));
                }
                Ok(Part::Chunk { kind, len, done: flags & chunk::FLAG_DONE != 0 })
            }
        }
    }

    /// Reads an error chunk.
    fn error_chunk(&mut self, len: u32) -> Result<(u32, String), Failure> {
        if len > MAX_ERROR_BYTES {
            return Err(self.broken(&format!("an error message of {len} bytes")));
        }
        let mut payload = vec![0; len as usize];
        self.read(&mut payload)?;
        let error = ErrorChunk::decode(&payload)
            .map_err(|e| Failure::Broken(Error::codec(self.context("error chunk"), e)))?;
        Ok((error.errno, error.message))
    }

    /// Reads the reply to a READ into `buf`. Every byte of it must have been covered, by data or by
    /// a hole, exactly once.
    pub(super) fn read_reply(
        &mut self,
        request: &Request,
        structured: bool,
        buf: &mut [u8],
    ) -> Result<(), Failure> {
        let mut covered: Vec<(usize, usize)> = Vec::new();
        let mut failed = None;
        loop {
            let (kind, len, done) = match self.part(request, structured)? {
                Part::Simple if structured => {
                    return Err(
                        self.broken("a simple reply to a read, though structured is agreed on")
                    );
                }
                Part::Simple => return Ok(self.read(buf)?),
                Part::Chunk { kind, len, done } => (kind, len, done),
            };
            match kind {
                chunk::NONE if done && len == 0 => {}
                chunk::OFFSET_DATA if len > 8 => {
                    let range = self.place(request, u64::from(len) - 8, buf.len())?;
                    self.read(&mut buf[range.0..range.1])?;
                    covered.push(range);
                }
                chunk::OFFSET_HOLE if len == 12 => {
                    let mut payload = [0; 12];
                    self.read(&mut payload)?;
                    let (offset, hole) = payload.split_at(8);
                    let hole = u32::from_be_bytes([hole[0], hole[1], hole[2], hole[3]]);
                    let mut place = [0; 8];
                    place.copy_from_slice(offset);
                    let range = self.within(
                        request,
                        u64::from_be_bytes(place),
                        u64::from(hole),
                        buf.len(),
                    )?;
                    buf[range.0..range.1].fill(0);
                    covered.push(range);
                }
                kind if kind & chunk::ERROR_BIT != 0 => {
                    // The first error tells; the chunks behind it are read to stay in step.
                    let error = self.error_chunk(len)?;
                    failed.get_or_insert(error);
                }
                _ => return Err(self.broken(&format!("chunk type {kind} of {len} bytes"))),
            }
            if covered.len() > MAX_CHUNKS {
                return Err(self.broken("a read in too many pieces"));
            }
            if done {
                break;
            }
        }
        if let Some((errno, message)) = failed {
            return Err(Failure::Server(errno, message));
        }
        self.check_covered(covered, buf.len())
    }

    /// The ranges must make up the whole buffer, each byte once.
    fn check_covered(&self, mut covered: Vec<(usize, usize)>, asked: usize) -> Result<(), Failure> {
        covered.sort_unstable();
        let mut end = 0;
        for (from, to) in covered {
            if from != end {
                return Err(
                    self.broken(&format!("the reply to a read misses or repeats byte {end}"))
                );
            }
            end = to;
        }
        if end != asked {
            return Err(self.broken(&format!("a read of {asked} bytes brought {end}")));
        }
        Ok(())
    }

    /// Reads the offset of a data chunk and checks its place.
    fn place(
        &mut self,
        request: &Request,
        len: u64,
        asked: usize,
    ) -> Result<(usize, usize), Failure> {
        let mut offset = [0; 8];
        self.read(&mut offset)?;
        self.within(request, u64::from_be_bytes(offset), len, asked)
    }

    /// A content chunk's range within the buffer of the request.
    fn within(
        &self,
        request: &Request,
        offset: u64,
        len: u64,
        asked: usize,
    ) -> Result<(usize, usize), Failure> {
        let from = offset.checked_sub(request.offset);
        let to = from.and_then(|from| from.checked_add(len));
        match (from, to) {
            (Some(from), Some(to)) if len > 0 && to <= asked as u64 => {
                Ok((from as usize, to as usize))
            }
            _ => {
                Err(self
                    .broken(&format!("{len} bytes at offset {offset}, which were not asked for")))
            }
        }
    }

    /// Reads the reply to a request that brings nothing but success or failure.
    pub(super) fn plain_reply(
        &mut self,
        request: &Request,
        structured: bool,
    ) -> Result<(), Failure> {
        match self.part(request, structured)? {
            Part::Simple => Ok(()),
            Part::Chunk { kind: chunk::NONE, len: 0, done: true } => Ok(()),
            Part::Chunk { kind, len, done: true } if kind & chunk::ERROR_BIT != 0 => {
                let (errno, message) = self.error_chunk(len)?;
                Err(Failure::Server(errno, message))
            }
            Part::Chunk { kind, len, .. } => {
                Err(self.broken(&format!("chunk type {kind} of {len} bytes")))
            }
        }
    }

    /// Reads the reply to a BLOCK_STATUS: lengths and states, from the request's offset on.
    pub(super) fn status_reply(
        &mut self,
        request: &Request,
        context: u32,
    ) -> Result<Vec<(u32, u32)>, Failure> {
        let mut list = None;
        let mut failed = None;
        loop {
            let Part::Chunk { kind, len, done } = self.part(request, true)? else {
                return Err(self.broken("a simple reply to a block status"));
            };
            match kind {
                chunk::NONE if done && len == 0 => {}
                chunk::BLOCK_STATUS if len <= MAX_STATUS_BYTES && list.is_none() => {
                    let mut payload = vec![0; len as usize];
                    self.read(&mut payload)?;
                    let (id, extents) = decode_block_status(&payload)
                        .map_err(|e| Failure::Broken(Error::codec(self.context("status"), e)))?;
                    if id != context {
                        return Err(self.broken(&format!("status of context {id}, not asked for")));
                    }
                    list = Some(extents);
                }
                kind if kind & chunk::ERROR_BIT != 0 => {
                    let error = self.error_chunk(len)?;
                    failed.get_or_insert(error);
                }
                _ => return Err(self.broken(&format!("chunk type {kind} of {len} bytes"))),
            }
            if done {
                break;
            }
        }
        match (failed, list) {
            (Some((errno, message)), _) => Err(Failure::Server(errno, message)),
            (None, Some(list)) => Ok(list),
            (None, None) => Err(self.broken("a block status without an answer")),
        }
    }
}

/// An error of the server, as text.
pub(super) fn describe(code: u32, message: &str) -> String {
    let name = errno::name(code);
    if message.is_empty() {
        format!("the server answered {name} ({code})")
    } else {
        // The server's words are shown, not obeyed: no control characters reach a terminal.
        format!("the server answered {name} ({code}): {}", message.escape_debug())
    }
}
