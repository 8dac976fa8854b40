//! Extended headers (proto.md, "NBD_OPT_EXTENDED_HEADERS"): 64-bit lengths, and chunks of replies with
//! either sort of header.

use super::transmission::{
    CHUNK_HEADER_BYTES, ChunkHeader, MAX_MESSAGE_BYTES, REQUEST_BYTES, Request, chunk,
};
use super::{MAX_QUERIES, Malformed, Reader};

/// proto.md, "Extended request message".
pub const EXTENDED_REQUEST_MAGIC: u32 = 0x21e4_1c71;
/// proto.md, "Extended reply chunk message".
pub const EXTENDED_REPLY_MAGIC: u32 = 0x6e8a_278c;
/// Bytes of an extended request's header.
pub const EXTENDED_REQUEST_BYTES: usize = 32;
/// Bytes of an extended reply chunk's header.
pub const EXTENDED_HEADER_BYTES: usize = 32;
/// The longest payload of a BLOCK_STATUS request: its effect length and the ids.
pub const MAX_STATUS_PAYLOAD_BYTES: u64 = 8 + 4 * MAX_QUERIES as u64;

/// A request with a 64-bit length: an extended one, or a compact one widened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExtendedRequest {
    /// proto.md, "Command flags".
    pub flags: u16,
    /// proto.md, "Request types".
    pub command: u16,
    /// The client's own name for the request; comes back in the reply.
    pub cookie: u64,
    /// Offset in bytes.
    pub offset: u64,
    /// Bytes of payload behind the header, with `PAYLOAD_LEN` or in a WRITE; else the length of the
    /// range meant.
    pub len: u64,
}

impl From<Request> for ExtendedRequest {
    fn from(request: Request) -> Self {
        let Request { flags, command, cookie, offset, len } = request;
        Self { flags, command, cookie, offset, len: len.into() }
    }
}

impl ExtendedRequest {
    /// Reads a header; a wrong magic (also that of a compact request) means that the stream is out of
    /// step.
    pub fn decode(bytes: &[u8; EXTENDED_REQUEST_BYTES]) -> Result<Self, Malformed> {
        let mut reader = Reader::new(bytes);
        let magic = reader.u32()?;
        if magic != EXTENDED_REQUEST_MAGIC {
            return Err(Malformed::new("this is no extended request", magic));
        }
        Ok(Self {
            flags: reader.u16()?,
            command: reader.u16()?,
            cookie: reader.u64()?,
            offset: reader.u64()?,
            len: reader.u64()?,
        })
    }

    /// The header.
    pub fn encode(&self) -> [u8; EXTENDED_REQUEST_BYTES] {
        let mut out = [0; EXTENDED_REQUEST_BYTES];
        out[..4].copy_from_slice(&EXTENDED_REQUEST_MAGIC.to_be_bytes());
        out[4..6].copy_from_slice(&self.flags.to_be_bytes());
        out[6..8].copy_from_slice(&self.command.to_be_bytes());
        out[8..16].copy_from_slice(&self.cookie.to_be_bytes());
        out[16..24].copy_from_slice(&self.offset.to_be_bytes());
        out[24..].copy_from_slice(&self.len.to_be_bytes());
        out
    }
}

/// Reads the next request of either sort from the front of `bytes`: it, and how long its header was.
/// `Ok(None)` if the header is not all there.
pub fn decode_request(
    bytes: &[u8],
    extended: bool,
) -> Result<Option<(ExtendedRequest, usize)>, Malformed> {
    if extended {
        let Some(head) = bytes.first_chunk() else { return Ok(None) };
        return Ok(Some((ExtendedRequest::decode(head)?, EXTENDED_REQUEST_BYTES)));
    }
    let Some(head) = bytes.first_chunk() else { return Ok(None) };
    Ok(Some((Request::decode(head)?.into(), REQUEST_BYTES)))
}

/// The header of an extended reply chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExtendedHeader {
    /// [`chunk::FLAG_DONE`] or 0.
    pub flags: u16,
    /// proto.md, "Structured reply types".
    pub kind: u16,
    /// The request it answers.
    pub cookie: u64,
    /// The offset of that request.
    pub offset: u64,
    /// Bytes of payload that follow.
    pub len: u64,
}

impl ExtendedHeader {
    /// Reads a header.
    pub fn decode(bytes: &[u8; EXTENDED_HEADER_BYTES]) -> Result<Self, Malformed> {
        let mut reader = Reader::new(bytes);
        let magic = reader.u32()?;
        if magic != EXTENDED_REPLY_MAGIC {
            return Err(Malformed::new("this is no extended reply", magic));
        }
        Ok(Self {
            flags: reader.u16()?,
            kind: reader.u16()?,
            cookie: reader.u64()?,
            offset: reader.u64()?,
            len: reader.u64()?,
        })
    }

    /// The header.
    pub fn encode(&self) -> [u8; EXTENDED_HEADER_BYTES] {
        let mut out = [0; EXTENDED_HEADER_BYTES];
        out[..4].copy_from_slice(&EXTENDED_REPLY_MAGIC.to_be_bytes());
        out[4..6].copy_from_slice(&self.flags.to_be_bytes());
        out[6..8].copy_from_slice(&self.kind.to_be_bytes());
        out[8..16].copy_from_slice(&self.cookie.to_be_bytes());
        out[16..24].copy_from_slice(&self.offset.to_be_bytes());
        out[24..].copy_from_slice(&self.len.to_be_bytes());
        out
    }
}

/// What the chunks of one reply have in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReplyTo {
    /// Extended headers, not structured ones.
    pub extended: bool,
    /// The request's cookie.
    pub cookie: u64,
    /// The request's offset.
    pub offset: u64,
}

impl ReplyTo {
    /// Bytes of a chunk's header.
    pub fn header_bytes(&self) -> usize {
        if self.extended { EXTENDED_HEADER_BYTES } else { CHUNK_HEADER_BYTES }
    }

    /// Bytes before the data of an OFFSET_DATA chunk: the header and the offset.
    pub fn data_head_bytes(&self) -> usize {
        self.header_bytes() + 8
    }

    /// Bytes of a whole OFFSET_HOLE chunk.
    pub fn hole_bytes(&self) -> usize {
        self.header_bytes() + 12
    }

    /// Writes a chunk's header to the front of `out`. `len` is that of the payload.
    pub fn put_header(&self, out: &mut [u8], flags: u16, kind: u16, len: u32) {
        let Self { cookie, offset, .. } = *self;
        if self.extended {
            let header = ExtendedHeader { flags, kind, cookie, offset, len: len.into() };
            out[..EXTENDED_HEADER_BYTES].copy_from_slice(&header.encode());
        } else {
            let header = ChunkHeader { flags, kind, cookie, len };
            out[..CHUNK_HEADER_BYTES].copy_from_slice(&header.encode());
        }
    }

    /// A chunk of `len` bytes of payload, not yet filled in.
    fn chunk(&self, flags: u16, kind: u16, len: usize) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.header_bytes() + len);
        out.resize(self.header_bytes(), 0);
        self.put_header(&mut out, flags, kind, len as u32);
        out
    }

    /// The whole reply to a request that had nothing to tell but success.
    pub fn success(&self) -> Vec<u8> {
        self.chunk(chunk::FLAG_DONE, chunk::NONE, 0)
    }

    /// An error chunk (proto.md, "NBD_REPLY_TYPE_ERROR"): the last of its reply. The message is cut to
    /// [`MAX_MESSAGE_BYTES`].
    pub fn error(&self, errno: u32, message: &str) -> Vec<u8> {
        let mut cut = message.len().min(MAX_MESSAGE_BYTES);
        while !message.is_char_boundary(cut) {
            cut -= 1;
        }
        let mut out = self.chunk(chunk::FLAG_DONE, chunk::ERROR, 6 + cut);
        out.extend_from_slice(&errno.to_be_bytes());
        out.extend_from_slice(&(cut as u16).to_be_bytes());
        out.extend_from_slice(&message.as_bytes()[..cut]);
        out
    }

    /// A block status chunk of one context: a length and state for each extent. Lengths that do not
    /// fit a structured chunk are cut, and the extents behind them left out.
    pub fn block_status(&self, context: u32, extents: &[(u64, u32)], last: bool) -> Vec<u8> {
        let flags = if last { chunk::FLAG_DONE } else { 0 };
        if self.extended {
            let len = 8 + 16 * extents.len();
            let mut out = self.chunk(flags, chunk::BLOCK_STATUS_EXT, len);
            out.extend_from_slice(&context.to_be_bytes());
            out.extend_from_slice(&(extents.len() as u32).to_be_bytes());
            for (len, state) in extents {
                out.extend_from_slice(&len.to_be_bytes());
                out.extend_from_slice(&u64::from(*state).to_be_bytes());
            }
            return out;
        }
        let fit = extents.iter().position(|(len, _)| u32::try_from(*len).is_err());
        let extents = &extents[..fit.map_or(extents.len(), |at| at + 1)];
        let mut out = self.chunk(flags, chunk::BLOCK_STATUS, 4 + 8 * extents.len());
        out.extend_from_slice(&context.to_be_bytes());
        for (len, state) in extents {
            let len = u32::try_from(*len).unwrap_or(u32::MAX);
            out.extend_from_slice(&len.to_be_bytes());
            out.extend_from_slice(&state.to_be_bytes());
        }
        out
    }
}

/// Reads the payload of a BLOCK_STATUS_EXT chunk: the context's id, and length and state of each
/// extent. No extents, one without length, or a count that is not theirs is an error.
pub fn decode_block_status_ext(payload: &[u8]) -> Result<(u32, Vec<(u64, u64)>), Malformed> {
    let mut reader = Reader::new(payload);
    let (context, count) = (reader.u32()?, reader.u32()?);
    if count == 0 || (payload.len() - 8) as u64 != 16 * u64::from(count) {
        return Err(Malformed::new("a block status whose count is not that of its extents", count));
    }
    let mut list = Vec::with_capacity(count as usize);
    for _ in 0..count {
        let (len, state) = (reader.u64()?, reader.u64()?);
        if len == 0 {
            return Err(Malformed::new("an extent without length", len));
        }
        list.push((len, state));
    }
    Ok((context, list))
}

/// Reads the payload of a BLOCK_STATUS request with PAYLOAD_LEN: the length of the range, and the ids
/// of the contexts asked for. An id twice is an error.
pub fn decode_status_payload(payload: &[u8]) -> Result<(u64, Vec<u32>), Malformed> {
    let mut reader = Reader::new(payload);
    let len = reader.u64()?;
    // `len` was there, so there are at least its 8 bytes.
    let n = (payload.len() - 8) / 4;
    let mut ids = Vec::with_capacity(n);
    for _ in 0..n {
        let id = reader.u32()?;
        if ids.contains(&id) {
            return Err(Malformed::new("a context is asked for twice", id));
        }
        ids.push(id);
    }
    reader.end()?;
    Ok((len, ids))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_round_trip_and_know_their_own() {
        let request =
            ExtendedRequest { flags: 32, command: 1, cookie: 7, offset: 1 << 50, len: 1 << 40 };
        let wire = request.encode();
        assert_eq!(ExtendedRequest::decode(&wire).unwrap(), request);
        assert_eq!(decode_request(&wire, true).unwrap(), Some((request, 32)));
        assert_eq!(decode_request(&wire[..31], true).unwrap(), None);
        assert!(decode_request(&wire, false).is_err(), "a compact one is expected");
        let compact = Request { flags: 0, command: 0, cookie: 1, offset: 2, len: u32::MAX };
        let wire = compact.encode();
        assert_eq!(decode_request(&wire, false).unwrap(), Some((compact.into(), 28)));
        assert_eq!(decode_request(&wire[..27], false).unwrap(), None);
        assert!(decode_request(&[&wire[..], &[0; 4]].concat(), true).is_err());
        let header = ExtendedHeader { flags: 1, kind: 6, cookie: 3, offset: 9, len: 1 << 33 };
        assert_eq!(ExtendedHeader::decode(&header.encode()).unwrap(), header);
    }

    #[test]
    fn block_status_of_both_sorts() {
        let extents = [(1 << 35, 3), (5, 0)];
        let to = ReplyTo { extended: true, cookie: 4, offset: 0 };
        let wire = to.block_status(2, &extents, true);
        let (id, list) = decode_block_status_ext(&wire[32..]).unwrap();
        assert_eq!((id, list), (2, vec![(1 << 35, 3), (5, 0)]));
        assert!(decode_block_status_ext(&wire[32..wire.len() - 1]).is_err());
        assert!(decode_block_status_ext(&[0; 8]).is_err(), "no extents");
        let to = ReplyTo { extended: false, ..to };
        let wire = to.block_status(2, &extents, false);
        let (id, list) = super::super::transmission::decode_block_status(&wire[20..]).unwrap();
        assert_eq!((id, list), (2, vec![(u32::MAX, 3)]), "cut, and nothing behind the cut");
    }

    #[test]
    fn filters_of_block_status() {
        let mut payload = 77u64.to_be_bytes().to_vec();
        payload.extend([0, 0, 0, 2, 0, 0, 0, 1]);
        assert_eq!(decode_status_payload(&payload).unwrap(), (77, vec![2, 1]));
        payload.extend([0, 0, 0, 1]);
        assert!(decode_status_payload(&payload).is_err(), "twice");
        assert!(decode_status_payload(&payload[..15]).is_err());
        assert!(decode_status_payload(&[0; 7]).is_err());
    }
}
