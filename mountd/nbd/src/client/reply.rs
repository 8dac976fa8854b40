//! Replies (proto.md, "Transmission"), put together part by part: parts of several replies may come
//! mixed.

use super::connection::Reading;
use crate::error::Error;
use crate::proto::errno;
use crate::proto::transmission::{
    ErrorChunk, ReplyStart, Request, chunk, command, decode_block_status,
};

/// Parts of the reply to one request. 32 MiB in sectors of 512 bytes are as many.
const MAX_CHUNKS: usize = 64 << 10;
/// The longest block status taken.
const MAX_STATUS_BYTES: u32 = 1 << 20;
/// The longest error chunk taken: a message of 64 KiB and its numbers.
const MAX_ERROR_BYTES: u32 = (64 << 10) + 16;

/// How far a reply is.
pub(super) enum Progress {
    More,
    Whole,
    /// The server's error number and text.
    Failed(u32, String),
}

/// What a block status says of one context: lengths and flags, from the request's offset on.
pub(super) type Status = Vec<(u32, u32)>;

/// The reply to one request, as far as it has come.
#[derive(Debug)]
pub(super) struct Reply {
    request: Request,
    /// The ranges of the data that are there; each byte must be, exactly once.
    covered: Vec<(usize, usize)>,
    chunks: usize,
    failed: Option<(u32, String)>,
    /// By the context's id.
    pub(super) statuses: Vec<(u32, Status)>,
    /// The data of a READ, if another thread than its own has read of it.
    data: Option<Vec<u8>>,
}

impl Reply {
    pub(super) fn new(request: Request) -> Self {
        let (covered, statuses) = (Vec::new(), Vec::new());
        Self { request, covered, chunks: 0, failed: None, statuses, data: None }
    }

    /// Moves the data that others have read to its place.
    pub(super) fn into_buffer(mut self, buf: &mut [u8]) -> Self {
        if let Some(data) = self.data.take() {
            buf.copy_from_slice(&data);
        }
        self
    }

    /// Room for the data of the request. Its length is our own, not the server's word.
    pub(super) fn take_data(&mut self) -> Vec<u8> {
        let len = if self.request.command == command::READ { self.request.len } else { 0 };
        self.data.take().unwrap_or_else(|| vec![0; len as usize])
    }

    pub(super) fn put_data(&mut self, data: Vec<u8>) {
        self.data = Some(data).filter(|data| !data.is_empty());
    }

    /// Reads what follows `start`.
    pub(super) fn read_part(
        &mut self,
        from: &mut Reading<'_>,
        start: ReplyStart,
        buf: &mut [u8],
    ) -> Result<Progress, Error> {
        let structured = from.agreed().structured;
        match start {
            ReplyStart::Simple { errno: 0, .. } => match self.request.command {
                command::READ if structured => {
                    Err(broken(from, "a simple reply to a read, though structured is agreed on"))
                }
                command::BLOCK_STATUS => Err(broken(from, "a simple reply to a block status")),
                _ => from.read(buf).map(|()| Progress::Whole),
            },
            ReplyStart::Simple { errno, .. } => Ok(Progress::Failed(errno, String::new())),
            ReplyStart::Chunk { .. } if !structured => {
                Err(broken(from, "a structured reply, which was not agreed on"))
            }
            ReplyStart::Chunk { flags, kind, .. } => {
                let mut len = [0; 4];
                from.read(&mut len)?;
                if flags & !chunk::FLAG_DONE != 0 {
                    return Err(broken(from, &format!("unknown chunk flags {flags:#x}")));
                }
                let done = flags & chunk::FLAG_DONE != 0;
                self.read_chunk(from, kind, u32::from_be_bytes(len), done, buf)?;
                if done { self.finish(from, buf.len()) } else { Ok(Progress::More) }
            }
        }
    }

    fn read_chunk(
        &mut self,
        from: &mut Reading<'_>,
        kind: u16,
        len: u32,
        done: bool,
        buf: &mut [u8],
    ) -> Result<(), Error> {
        self.chunks += 1;
        if self.chunks > MAX_CHUNKS {
            return Err(broken(from, "a reply in too many pieces"));
        }
        let of = self.request.command;
        match kind {
            chunk::NONE if done && len == 0 => {}
            chunk::OFFSET_DATA if of == command::READ && len > 8 => {
                let mut offset = [0; 8];
                from.read(&mut offset)?;
                let range = self.within(from, offset, u64::from(len) - 8, buf.len())?;
                from.read(&mut buf[range.0..range.1])?;
                self.covered.push(range);
            }
            chunk::OFFSET_HOLE if of == command::READ && len == 12 => {
                let (mut offset, mut hole) = ([0; 8], [0; 4]);
                from.read(&mut offset)?;
                from.read(&mut hole)?;
                let hole = u32::from_be_bytes(hole).into();
                let range = self.within(from, offset, hole, buf.len())?;
                buf[range.0..range.1].fill(0);
                self.covered.push(range);
            }
            chunk::BLOCK_STATUS if of == command::BLOCK_STATUS && len <= MAX_STATUS_BYTES => {
                let mut payload = vec![0; len as usize];
                from.read(&mut payload)?;
                let (id, extents) = decode_block_status(&payload)
                    .map_err(|e| Error::codec(from.context("status"), e))?;
                let known = from.agreed().contexts.iter().any(|(_, known)| *known == id);
                if !known || self.statuses.iter().any(|(seen, _)| *seen == id) {
                    return Err(broken(from, &format!("status of context {id}, not asked for")));
                }
                self.statuses.push((id, extents));
            }
            kind if kind & chunk::ERROR_BIT != 0 => {
                // The first error tells; the chunks behind it are read to stay in step.
                let error = read_error(from, len)?;
                self.failed.get_or_insert(error);
            }
            _ => return Err(broken(from, &format!("chunk type {kind} of {len} bytes"))),
        }
        Ok(())
    }

    /// Judges a reply whose last chunk has come.
    fn finish(&mut self, from: &Reading<'_>, asked: usize) -> Result<Progress, Error> {
        if let Some((errno, message)) = self.failed.take() {
            return Ok(Progress::Failed(errno, message));
        }
        match self.request.command {
            command::READ => self.check_covered(from, asked)?,
            command::BLOCK_STATUS if self.statuses.is_empty() => {
                return Err(broken(from, "a block status without an answer"));
            }
            _ => {}
        }
        Ok(Progress::Whole)
    }

    /// The ranges must make up the whole buffer, each byte once.
    fn check_covered(&mut self, from: &Reading<'_>, asked: usize) -> Result<(), Error> {
        self.covered.sort_unstable();
        let mut end = 0;
        for (start, to) in &self.covered {
            if *start != end {
                let what = format!("the reply to a read misses or repeats byte {end}");
                return Err(broken(from, &what));
            }
            end = *to;
        }
        if end != asked {
            return Err(broken(from, &format!("a read of {asked} bytes brought {end}")));
        }
        Ok(())
    }

    /// A content chunk's range within the buffer of the request.
    fn within(
        &self,
        from: &Reading<'_>,
        offset: [u8; 8],
        len: u64,
        asked: usize,
    ) -> Result<(usize, usize), Error> {
        let offset = u64::from_be_bytes(offset);
        let start = offset.checked_sub(self.request.offset);
        let to = start.and_then(|start| start.checked_add(len));
        match (start, to) {
            (Some(start), Some(to)) if len > 0 && to <= asked as u64 => {
                Ok((start as usize, to as usize))
            }
            _ => {
                let what = format!("{len} bytes at offset {offset}, which were not asked for");
                Err(broken(from, &what))
            }
        }
    }
}

fn broken(from: &Reading<'_>, what: &str) -> Error {
    Error::protocol(from.context(what))
}

fn read_error(from: &mut Reading<'_>, len: u32) -> Result<(u32, String), Error> {
    if len > MAX_ERROR_BYTES {
        return Err(broken(from, &format!("an error message of {len} bytes")));
    }
    let mut payload = vec![0; len as usize];
    from.read(&mut payload)?;
    let error =
        ErrorChunk::decode(&payload).map_err(|e| Error::codec(from.context("error chunk"), e))?;
    Ok((error.errno, error.message))
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
