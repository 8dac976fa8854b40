//! The transmission phase (proto.md, "Transmission"): requests, simple replies, structured replies.

use super::extended::ReplyTo;
use super::{Malformed, REQUEST_MAGIC, Reader, SIMPLE_REPLY_MAGIC, STRUCTURED_REPLY_MAGIC};

/// Bytes of a request's header.
pub const REQUEST_BYTES: usize = 28;
/// Bytes of a simple reply's header.
pub const SIMPLE_REPLY_BYTES: usize = 16;
/// Bytes of a structured reply chunk's header.
pub const CHUNK_HEADER_BYTES: usize = 20;
/// Bytes before the data of an OFFSET_DATA chunk: the header and the offset.
pub const DATA_CHUNK_HEAD_BYTES: usize = CHUNK_HEADER_BYTES + 8;
/// Bytes of a whole OFFSET_HOLE chunk.
pub const HOLE_CHUNK_BYTES: usize = CHUNK_HEADER_BYTES + 12;
/// The longest error message sent or shown.
pub const MAX_MESSAGE_BYTES: usize = 1024;

/// proto.md, "Transmission flags".
#[allow(missing_docs, reason = "the names are those of proto.md")]
pub mod flag {
    pub const HAS_FLAGS: u16 = 1 << 0;
    pub const READ_ONLY: u16 = 1 << 1;
    pub const SEND_FLUSH: u16 = 1 << 2;
    pub const SEND_FUA: u16 = 1 << 3;
    pub const ROTATIONAL: u16 = 1 << 4;
    pub const SEND_TRIM: u16 = 1 << 5;
    pub const SEND_WRITE_ZEROES: u16 = 1 << 6;
    pub const SEND_DF: u16 = 1 << 7;
    pub const CAN_MULTI_CONN: u16 = 1 << 8;
    pub const SEND_CACHE: u16 = 1 << 10;
    pub const SEND_FAST_ZERO: u16 = 1 << 11;
    pub const BLOCK_STATUS_PAYLOAD: u16 = 1 << 12;
}

/// proto.md, "Request types".
#[allow(missing_docs, reason = "the names are those of proto.md")]
pub mod command {
    pub const READ: u16 = 0;
    pub const WRITE: u16 = 1;
    pub const DISC: u16 = 2;
    pub const FLUSH: u16 = 3;
    pub const TRIM: u16 = 4;
    pub const CACHE: u16 = 5;
    pub const WRITE_ZEROES: u16 = 6;
    pub const BLOCK_STATUS: u16 = 7;
}

/// proto.md, "Command flags".
#[allow(missing_docs, reason = "the names are those of proto.md")]
pub mod command_flag {
    pub const FUA: u16 = 1 << 0;
    pub const NO_HOLE: u16 = 1 << 1;
    pub const DF: u16 = 1 << 2;
    pub const REQ_ONE: u16 = 1 << 3;
    pub const FAST_ZERO: u16 = 1 << 4;
    pub const PAYLOAD_LEN: u16 = 1 << 5;
}

/// proto.md, "Structured reply types".
#[allow(missing_docs, reason = "the names are those of proto.md")]
pub mod chunk {
    /// The flag of the last chunk of a reply.
    pub const FLAG_DONE: u16 = 1 << 0;
    pub const NONE: u16 = 0;
    pub const OFFSET_DATA: u16 = 1;
    pub const OFFSET_HOLE: u16 = 2;
    pub const BLOCK_STATUS: u16 = 5;
    pub const BLOCK_STATUS_EXT: u16 = 6;
    /// Set in the type of every chunk that is an error.
    pub const ERROR_BIT: u16 = 1 << 15;
    pub const ERROR: u16 = ERROR_BIT | 1;
    pub const ERROR_OFFSET: u16 = ERROR_BIT | 2;
}

/// proto.md, "The base:allocation metadata context".
#[allow(missing_docs, reason = "the names are those of proto.md")]
pub mod state {
    pub const HOLE: u32 = 1 << 0;
    pub const ZERO: u32 = 1 << 1;
}

/// The bits of backstay:presence (mountd/docs/PROTOCOLS.md, "Presence").
pub mod presence {
    /// A chunk of the store holds the bytes.
    pub const STORED: u32 = 1 << 0;
    /// The bytes can be read without fetching anything.
    pub const AT_HAND: u32 = 1 << 1;
    /// The bytes were written and lie in the overlay.
    pub const OVERLAID: u32 = 1 << 2;
}

/// A request of the client. WRITE has `len` bytes of payload behind it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    /// proto.md, "Command flags".
    pub flags: u16,
    /// proto.md, "Request types".
    pub command: u16,
    /// The client's own name for the request; comes back in the reply.
    pub cookie: u64,
    /// Offset in bytes.
    pub offset: u64,
    /// Length in bytes.
    pub len: u32,
}

impl Request {
    /// Reads a header. A wrong magic means that the stream is out of step: nothing behind it can be
    /// understood.
    pub fn decode(bytes: &[u8; REQUEST_BYTES]) -> Result<Self, Malformed> {
        let mut reader = Reader::new(bytes);
        let magic = reader.u32()?;
        if magic != REQUEST_MAGIC {
            return Err(Malformed::new("this is no request", magic));
        }
        Ok(Self {
            flags: reader.u16()?,
            command: reader.u16()?,
            cookie: reader.u64()?,
            offset: reader.u64()?,
            len: reader.u32()?,
        })
    }

    /// The header.
    pub fn encode(&self) -> [u8; REQUEST_BYTES] {
        let mut out = [0; REQUEST_BYTES];
        out[..4].copy_from_slice(&REQUEST_MAGIC.to_be_bytes());
        out[4..6].copy_from_slice(&self.flags.to_be_bytes());
        out[6..8].copy_from_slice(&self.command.to_be_bytes());
        out[8..16].copy_from_slice(&self.cookie.to_be_bytes());
        out[16..24].copy_from_slice(&self.offset.to_be_bytes());
        out[24..].copy_from_slice(&self.len.to_be_bytes());
        out
    }
}

/// The header of a simple reply; `errno` 0 is success.
pub fn encode_simple_reply(cookie: u64, errno: u32) -> [u8; SIMPLE_REPLY_BYTES] {
    let mut out = [0; SIMPLE_REPLY_BYTES];
    out[..4].copy_from_slice(&SIMPLE_REPLY_MAGIC.to_be_bytes());
    out[4..8].copy_from_slice(&errno.to_be_bytes());
    out[8..].copy_from_slice(&cookie.to_be_bytes());
    out
}

/// The header of a structured reply chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChunkHeader {
    /// [`chunk::FLAG_DONE`] or 0.
    pub flags: u16,
    /// proto.md, "Structured reply types".
    pub kind: u16,
    /// The request it answers.
    pub cookie: u64,
    /// Bytes of payload that follow.
    pub len: u32,
}

impl ChunkHeader {
    /// The header.
    pub fn encode(&self) -> [u8; CHUNK_HEADER_BYTES] {
        let mut out = [0; CHUNK_HEADER_BYTES];
        out[..4].copy_from_slice(&STRUCTURED_REPLY_MAGIC.to_be_bytes());
        out[4..6].copy_from_slice(&self.flags.to_be_bytes());
        out[6..8].copy_from_slice(&self.kind.to_be_bytes());
        out[8..16].copy_from_slice(&self.cookie.to_be_bytes());
        out[16..].copy_from_slice(&self.len.to_be_bytes());
        out
    }
}

/// The first 16 bytes of either sort of reply; a structured one has 4 more, its length.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReplyStart {
    /// A simple reply.
    Simple {
        /// 0 is success.
        errno: u32,
        /// The request it answers.
        cookie: u64,
    },
    /// A chunk of a structured reply.
    Chunk {
        /// [`chunk::FLAG_DONE`] or 0.
        flags: u16,
        /// proto.md, "Structured reply types".
        kind: u16,
        /// The request it answers.
        cookie: u64,
    },
}

impl ReplyStart {
    /// Reads the start of a reply.
    pub fn decode(bytes: &[u8; SIMPLE_REPLY_BYTES]) -> Result<Self, Malformed> {
        let mut reader = Reader::new(bytes);
        match reader.u32()? {
            SIMPLE_REPLY_MAGIC => Ok(Self::Simple { errno: reader.u32()?, cookie: reader.u64()? }),
            STRUCTURED_REPLY_MAGIC => {
                Ok(Self::Chunk { flags: reader.u16()?, kind: reader.u16()?, cookie: reader.u64()? })
            }
            other => Err(Malformed::new("this is no reply", other)),
        }
    }
}

/// An error chunk (proto.md, "NBD_REPLY_TYPE_ERROR"): the last of its reply. The message is cut to
/// [`MAX_MESSAGE_BYTES`].
pub fn encode_error_chunk(cookie: u64, errno: u32, message: &str) -> Vec<u8> {
    let mut cut = message.len().min(MAX_MESSAGE_BYTES);
    while !message.is_char_boundary(cut) {
        cut -= 1;
    }
    let header =
        ChunkHeader { flags: chunk::FLAG_DONE, kind: chunk::ERROR, cookie, len: 6 + cut as u32 };
    let mut out = header.encode().to_vec();
    out.extend_from_slice(&errno.to_be_bytes());
    out.extend_from_slice(&(cut as u16).to_be_bytes());
    out.extend_from_slice(&message.as_bytes()[..cut]);
    out
}

/// What an error chunk says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ErrorChunk {
    /// proto.md, "Error values"; never 0.
    pub errno: u32,
    /// Text for people; may be empty.
    pub message: String,
}

impl ErrorChunk {
    /// Reads the payload of any chunk whose type has the error bit: all start with the number, the
    /// length of the message and the message.
    pub fn decode(payload: &[u8]) -> Result<Self, Malformed> {
        let mut reader = Reader::new(payload);
        let errno = reader.u32()?;
        if errno == 0 {
            return Err(Malformed::new("an error chunk without an error", errno));
        }
        let len = reader.u16()?;
        let message = String::from_utf8_lossy(reader.take(len.into())?).into_owned();
        Ok(Self { errno, message })
    }
}

/// A block status chunk (proto.md, "NBD_REPLY_TYPE_BLOCK_STATUS"), the last of its reply: the
/// context's id, then a length and state flags for each extent.
pub fn encode_block_status(
    cookie: u64,
    context: u32,
    extents: impl ExactSizeIterator<Item = (u32, u32)>,
) -> Vec<u8> {
    let header = ChunkHeader {
        flags: chunk::FLAG_DONE,
        kind: chunk::BLOCK_STATUS,
        cookie,
        len: 4 + 8 * extents.len() as u32,
    };
    let mut out = Vec::with_capacity(CHUNK_HEADER_BYTES + header.len as usize);
    out.extend_from_slice(&header.encode());
    out.extend_from_slice(&context.to_be_bytes());
    for (len, state) in extents {
        out.extend_from_slice(&len.to_be_bytes());
        out.extend_from_slice(&state.to_be_bytes());
    }
    out
}

/// Reads the payload of a block status chunk: the context's id, and length and state of each extent.
/// No extents, or one without length, is an error.
pub fn decode_block_status(payload: &[u8]) -> Result<(u32, Vec<(u32, u32)>), Malformed> {
    let mut reader = Reader::new(payload);
    let context = reader.u32()?;
    let rest = reader.rest();
    if rest.is_empty() || !rest.len().is_multiple_of(8) {
        return Err(Malformed::new("a block status of odd length", rest.len() as u64));
    }
    let mut list = Vec::with_capacity(rest.len() / 8);
    for _ in 0..rest.len() / 8 {
        let (len, state) = (reader.u32()?, reader.u32()?);
        if len == 0 {
            return Err(Malformed::new("an extent without length", len));
        }
        list.push((len, state));
    }
    Ok((context, list))
}

/// Zeros are looked for in pieces of this size, aligned on the disk: QEMU's grain.
const PIECE_BYTES: u64 = 64 << 10;
/// A piece shorter than this is sent as data: a hole chunk must not be longer than what it replaces.
const MIN_HOLE_BYTES: usize = 512;

/// Turns data that was read into the chunks of the reply to a READ, in place: runs of zeros become
/// OFFSET_HOLE chunks, and what remains moves up.
///
/// `buf` holds the data of `to.offset..` behind [`ReplyTo::data_head_bytes`] of free space. Answers how
/// many bytes at the front of `buf` are the reply. With `one_chunk` (proto.md, `NBD_CMD_FLAG_DF`)
/// there is exactly one chunk.
pub fn encode_read_in_place(buf: &mut [u8], to: &ReplyTo, one_chunk: bool) -> usize {
    let (header, head) = (to.header_bytes(), to.data_head_bytes());
    let data_len = buf.len() - head;
    if data_len == 0 {
        to.put_header(buf, chunk::FLAG_DONE, chunk::NONE, 0);
        return header;
    }
    let mut written = 0;
    let mut at = 0;
    while at < data_len {
        let offset = to.offset + at as u64;
        let (run, hole) = if one_chunk {
            (data_len, is_hole(&buf[head..]))
        } else {
            next_run(&buf[head + at..], offset)
        };
        let flags = if at + run == data_len { chunk::FLAG_DONE } else { 0 };
        if hole {
            to.put_header(&mut buf[written..], flags, chunk::OFFSET_HOLE, 12);
            let payload = &mut buf[written + header..written + to.hole_bytes()];
            payload[..8].copy_from_slice(&offset.to_be_bytes());
            payload[8..].copy_from_slice(&(run as u32).to_be_bytes());
            written += to.hole_bytes();
        } else {
            // The space freed by the holes before is never less than the headers need: every run
            // but the first data run follows a hole of at least MIN_HOLE_BYTES.
            buf.copy_within(head + at..head + at + run, written + head);
            to.put_header(&mut buf[written..], flags, chunk::OFFSET_DATA, 8 + run as u32);
            buf[written + header..written + head].copy_from_slice(&offset.to_be_bytes());
            written += head + run;
        }
        at += run;
    }
    written
}

/// The length of the run of pieces of one kind at the front of `data`, and whether it is a hole.
fn next_run(data: &[u8], offset: u64) -> (usize, bool) {
    let mut end = 0;
    let mut kind = None;
    while end < data.len() {
        let at = offset + end as u64;
        let piece = ((PIECE_BYTES - at % PIECE_BYTES) as usize).min(data.len() - end);
        let hole = is_hole(&data[end..end + piece]);
        if kind.is_some_and(|kind| kind != hole) {
            break;
        }
        kind = Some(hole);
        end += piece;
    }
    (end, kind == Some(true))
}

fn is_hole(piece: &[u8]) -> bool {
    piece.len() >= MIN_HOLE_BYTES
        && piece.chunks(256).all(|part| part.iter().fold(0, |all, byte| all | byte) == 0)
}

#[cfg(test)]
mod tests;
