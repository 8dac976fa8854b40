//! The handshake phase (proto.md, "Handshake"): fixed newstyle only.

use super::{
    MAX_QUERIES, Malformed, NBD_MAGIC, OLDSTYLE_MAGIC, OPTION_MAGIC, OPTION_REPLY_MAGIC, Reader,
    text,
};

/// proto.md, "Handshake flags": the server speaks fixed newstyle.
pub const FLAG_FIXED_NEWSTYLE: u16 = 1 << 0;
/// proto.md, "Handshake flags": the 124 zeros after EXPORT_NAME can be left out.
pub const FLAG_NO_ZEROES: u16 = 1 << 1;
/// proto.md, "Client flags".
pub const CLIENT_FIXED_NEWSTYLE: u32 = 1 << 0;
/// proto.md, "Client flags".
pub const CLIENT_NO_ZEROES: u32 = 1 << 1;

/// Bytes of the greeting.
pub const GREETING_BYTES: usize = 18;
/// Bytes of an option's header.
pub const OPTION_HEADER_BYTES: usize = 16;
/// Bytes of an option reply's header.
pub const OPTION_REPLY_HEADER_BYTES: usize = 20;
/// Zeros after the answer to EXPORT_NAME, unless both sides agreed to leave them out.
pub const EXPORT_NAME_ZEROES: usize = 124;

/// proto.md, "Option types".
#[allow(missing_docs, reason = "the names are those of proto.md")]
pub mod option {
    pub const EXPORT_NAME: u32 = 1;
    pub const ABORT: u32 = 2;
    pub const LIST: u32 = 3;
    pub const STARTTLS: u32 = 5;
    pub const INFO: u32 = 6;
    pub const GO: u32 = 7;
    pub const STRUCTURED_REPLY: u32 = 8;
    pub const LIST_META_CONTEXT: u32 = 9;
    pub const SET_META_CONTEXT: u32 = 10;
    pub const EXTENDED_HEADERS: u32 = 11;
}

/// proto.md, "Option reply types".
#[allow(missing_docs, reason = "the names are those of proto.md")]
pub mod reply {
    pub const ACK: u32 = 1;
    pub const SERVER: u32 = 2;
    pub const INFO: u32 = 3;
    pub const META_CONTEXT: u32 = 4;
    /// Set in the type of every reply that is an error.
    pub const ERROR_BIT: u32 = 1 << 31;
    pub const ERR_UNSUP: u32 = ERROR_BIT | 1;
    pub const ERR_POLICY: u32 = ERROR_BIT | 2;
    pub const ERR_INVALID: u32 = ERROR_BIT | 3;
    pub const ERR_PLATFORM: u32 = ERROR_BIT | 4;
    pub const ERR_TLS_REQD: u32 = ERROR_BIT | 5;
    pub const ERR_UNKNOWN: u32 = ERROR_BIT | 6;
    pub const ERR_SHUTDOWN: u32 = ERROR_BIT | 7;
    pub const ERR_BLOCK_SIZE_REQD: u32 = ERROR_BIT | 8;
    pub const ERR_TOO_BIG: u32 = ERROR_BIT | 9;
    pub const ERR_EXT_HEADER_REQD: u32 = ERROR_BIT | 10;
}

/// proto.md, "NBD_REP_INFO", information types.
#[allow(missing_docs, reason = "the names are those of proto.md")]
pub mod info {
    pub const EXPORT: u16 = 0;
    pub const NAME: u16 = 1;
    pub const DESCRIPTION: u16 = 2;
    pub const BLOCK_SIZE: u16 = 3;
}

/// The server's first words.
pub fn encode_greeting(flags: u16) -> [u8; GREETING_BYTES] {
    let mut out = [0; GREETING_BYTES];
    out[..8].copy_from_slice(&NBD_MAGIC.to_be_bytes());
    out[8..16].copy_from_slice(&OPTION_MAGIC.to_be_bytes());
    out[16..].copy_from_slice(&flags.to_be_bytes());
    out
}

/// Reads the greeting; answers the handshake flags. Servers that are not fixed newstyle are an error.
pub fn decode_greeting(bytes: &[u8; GREETING_BYTES]) -> Result<u16, Malformed> {
    let mut reader = Reader::new(bytes);
    let magic = reader.u64()?;
    if magic != NBD_MAGIC {
        return Err(Malformed::new("this is no NBD server", magic));
    }
    match reader.u64()? {
        OPTION_MAGIC => {}
        // CVE-2019-14842 and its kin: there is no way down to the old style.
        OLDSTYLE_MAGIC => return Err(Malformed::new("an old-style server", OLDSTYLE_MAGIC)),
        other => return Err(Malformed::new("this is no NBD server", other)),
    }
    let flags = reader.u16()?;
    if flags & FLAG_FIXED_NEWSTYLE == 0 {
        return Err(Malformed::new("the server does not speak fixed newstyle", flags));
    }
    Ok(flags)
}

/// An option of the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OptionHeader {
    /// Its number (proto.md, "Option types").
    pub option: u32,
    /// Bytes of payload that follow.
    pub len: u32,
}

impl OptionHeader {
    /// Reads a header.
    pub fn decode(bytes: &[u8; OPTION_HEADER_BYTES]) -> Result<Self, Malformed> {
        let mut reader = Reader::new(bytes);
        let magic = reader.u64()?;
        if magic != OPTION_MAGIC {
            return Err(Malformed::new("this is no option", magic));
        }
        Ok(Self { option: reader.u32()?, len: reader.u32()? })
    }
}

/// An option with its payload. The payload is at most [`super::MAX_OPTION_BYTES`] long.
pub fn encode_option(option: u32, payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(OPTION_HEADER_BYTES + payload.len());
    out.extend_from_slice(&OPTION_MAGIC.to_be_bytes());
    out.extend_from_slice(&option.to_be_bytes());
    out.extend_from_slice(&(payload.len() as u32).to_be_bytes());
    out.extend_from_slice(payload);
    out
}

/// A reply of the server to an option.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OptionReplyHeader {
    /// The option it answers.
    pub option: u32,
    /// What it is (proto.md, "Option reply types").
    pub reply: u32,
    /// Bytes of payload that follow.
    pub len: u32,
}

impl OptionReplyHeader {
    /// Reads a header.
    pub fn decode(bytes: &[u8; OPTION_REPLY_HEADER_BYTES]) -> Result<Self, Malformed> {
        let mut reader = Reader::new(bytes);
        let magic = reader.u64()?;
        if magic != OPTION_REPLY_MAGIC {
            return Err(Malformed::new("this is no reply to an option", magic));
        }
        Ok(Self { option: reader.u32()?, reply: reader.u32()?, len: reader.u32()? })
    }
}

/// Appends a reply with its payload.
pub fn encode_option_reply(out: &mut Vec<u8>, option: u32, reply: u32, payload: &[u8]) {
    out.extend_from_slice(&OPTION_REPLY_MAGIC.to_be_bytes());
    out.extend_from_slice(&option.to_be_bytes());
    out.extend_from_slice(&reply.to_be_bytes());
    out.extend_from_slice(&(payload.len() as u32).to_be_bytes());
    out.extend_from_slice(payload);
}

/// Reads the payload of EXPORT_NAME: the name is all of it.
pub fn decode_export_name(payload: &[u8]) -> Result<&str, Malformed> {
    text(payload)
}

/// The payload of INFO and GO.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InfoRequest {
    /// The export asked for; empty is the default one.
    pub export: String,
    /// What the client wants to know (proto.md, "NBD_REP_INFO"); numbers nobody knows are fine.
    pub wants: Vec<u16>,
}

impl InfoRequest {
    /// Reads the payload. The list can be no longer than the payload, which is bounded.
    pub fn decode(payload: &[u8]) -> Result<Self, Malformed> {
        let mut reader = Reader::new(payload);
        let export = reader.string()?.to_owned();
        let n = reader.u16()?;
        let wants = (0..n).map(|_| reader.u16()).collect::<Result<_, _>>()?;
        reader.end()?;
        Ok(Self { export, wants })
    }

    /// The payload.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        put_string(&mut out, &self.export);
        out.extend_from_slice(&(self.wants.len() as u16).to_be_bytes());
        for want in &self.wants {
            out.extend_from_slice(&want.to_be_bytes());
        }
        out
    }
}

/// The payload of LIST_META_CONTEXT and SET_META_CONTEXT.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MetaContextRequest {
    /// The export asked about.
    pub export: String,
    /// The contexts asked for.
    pub queries: Vec<String>,
}

impl MetaContextRequest {
    /// Reads the payload. The list can be no longer than the payload, which is bounded.
    pub fn decode(payload: &[u8]) -> Result<Self, Malformed> {
        let mut reader = Reader::new(payload);
        let export = reader.string()?.to_owned();
        let n = reader.u32()?;
        if n as usize > MAX_QUERIES {
            return Err(Malformed::new("too many queries", n));
        }
        let queries =
            (0..n).map(|_| reader.string().map(str::to_owned)).collect::<Result<_, _>>()?;
        reader.end()?;
        Ok(Self { export, queries })
    }

    /// The payload.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        put_string(&mut out, &self.export);
        out.extend_from_slice(&(self.queries.len() as u32).to_be_bytes());
        for query in &self.queries {
            put_string(&mut out, query);
        }
        out
    }
}

fn put_string(out: &mut Vec<u8>, string: &str) {
    out.extend_from_slice(&(string.len() as u32).to_be_bytes());
    out.extend_from_slice(string.as_bytes());
}

/// The payload of a LIST reply (proto.md, "NBD_REP_SERVER"): the name, then text for people.
pub fn encode_server(name: &str, description: &str) -> Vec<u8> {
    let mut out = Vec::new();
    put_string(&mut out, name);
    out.extend_from_slice(description.as_bytes());
    out
}

/// The payload of a meta context reply (proto.md, "NBD_REP_META_CONTEXT").
pub fn encode_meta_context(id: u32, name: &str) -> Vec<u8> {
    let mut out = id.to_be_bytes().to_vec();
    out.extend_from_slice(name.as_bytes());
    out
}

/// Reads the payload of a meta context reply: its id and its name.
pub fn decode_meta_context(payload: &[u8]) -> Result<(u32, &str), Malformed> {
    let mut reader = Reader::new(payload);
    let id = reader.u32()?;
    Ok((id, text(reader.rest())?))
}

/// One item of information about an export (proto.md, "NBD_REP_INFO").
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Info {
    /// Its size in bytes and its transmission flags.
    Export {
        /// Size in bytes.
        size_bytes: u64,
        /// proto.md, "Transmission flags".
        flags: u16,
    },
    /// Its canonical name.
    Name(String),
    /// Text for people.
    Description(String),
    /// Its request sizes in bytes.
    BlockSize {
        /// The least.
        min: u32,
        /// The best.
        preferred: u32,
        /// The largest payload.
        max: u32,
    },
    /// Something this codec does not know.
    Other(u16),
}

impl Info {
    /// The payload.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        match self {
            Self::Export { size_bytes, flags } => {
                out.extend_from_slice(&info::EXPORT.to_be_bytes());
                out.extend_from_slice(&size_bytes.to_be_bytes());
                out.extend_from_slice(&flags.to_be_bytes());
            }
            Self::Name(name) => {
                out.extend_from_slice(&info::NAME.to_be_bytes());
                out.extend_from_slice(name.as_bytes());
            }
            Self::Description(text) => {
                out.extend_from_slice(&info::DESCRIPTION.to_be_bytes());
                out.extend_from_slice(text.as_bytes());
            }
            Self::BlockSize { min, preferred, max } => {
                out.extend_from_slice(&info::BLOCK_SIZE.to_be_bytes());
                for value in [min, preferred, max] {
                    out.extend_from_slice(&value.to_be_bytes());
                }
            }
            Self::Other(kind) => out.extend_from_slice(&kind.to_be_bytes()),
        }
        out
    }

    /// Reads the payload.
    pub fn decode(payload: &[u8]) -> Result<Self, Malformed> {
        let mut reader = Reader::new(payload);
        let item = match reader.u16()? {
            info::EXPORT => Self::Export { size_bytes: reader.u64()?, flags: reader.u16()? },
            info::NAME => return Ok(Self::Name(text(reader.rest())?.to_owned())),
            info::DESCRIPTION => return Ok(Self::Description(text(reader.rest())?.to_owned())),
            info::BLOCK_SIZE => {
                let (min, preferred, max) = (reader.u32()?, reader.u32()?, reader.u32()?);
                Self::BlockSize { min, preferred, max }
            }
            other => return Ok(Self::Other(other)),
        };
        reader.end()?;
        Ok(item)
    }
}

/// Reads the answer to EXPORT_NAME: size in bytes and transmission flags.
pub fn decode_export_name_reply(bytes: &[u8; 10]) -> Result<(u64, u16), Malformed> {
    let mut reader = Reader::new(bytes);
    Ok((reader.u64()?, reader.u16()?))
}

#[cfg(test)]
mod tests {
    use super::super::{MAX_OPTION_BYTES, MAX_STRING_BYTES};
    use super::*;

    #[test]
    fn greetings_and_servers_of_other_sorts() {
        let greeting = encode_greeting(FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES);
        assert_eq!(decode_greeting(&greeting).unwrap(), 3);
        assert!(decode_greeting(&encode_greeting(0)).is_err(), "newstyle that is not fixed");
        assert!(decode_greeting(b"SSH-2.0-OpenSSH_9.").is_err());
        let mut old = greeting;
        old[8..16].copy_from_slice(&OLDSTYLE_MAGIC.to_be_bytes());
        let error = decode_greeting(&old).unwrap_err();
        assert!(error.to_string().contains("old-style"), "{error}");
    }

    #[test]
    fn payloads_round_trip() {
        let request = InfoRequest { export: "disk/0 ä".to_owned(), wants: vec![3, 1, 77] };
        assert_eq!(InfoRequest::decode(&request.encode()).unwrap(), request);
        let queries = vec![String::new(), "base:".to_owned()];
        let request = MetaContextRequest { export: String::new(), queries };
        assert_eq!(MetaContextRequest::decode(&request.encode()).unwrap(), request);
        for info in [
            Info::Export { size_bytes: u64::MAX, flags: 0xffff },
            Info::Name("x".to_owned()),
            Info::Description(String::new()),
            Info::BlockSize { min: 1, preferred: 4096, max: 1 << 25 },
            Info::Other(9),
        ] {
            assert_eq!(Info::decode(&info.encode()).unwrap(), info);
        }
        let context = encode_meta_context(7, "base:allocation");
        assert_eq!(decode_meta_context(&context).unwrap(), (7, "base:allocation"));
        let mut out = Vec::new();
        encode_option_reply(&mut out, option::GO, reply::ERR_UNKNOWN, b"no");
        let head = OptionReplyHeader::decode(out.first_chunk().unwrap()).unwrap();
        assert_eq!(head, OptionReplyHeader { option: 7, reply: reply::ERR_UNKNOWN, len: 2 });
        let option = encode_option(option::LIST, b"abc");
        let head = OptionHeader::decode(option.first_chunk().unwrap()).unwrap();
        assert_eq!(head, OptionHeader { option: option::LIST, len: 3 });
    }

    #[test]
    fn every_cut_and_every_bit_of_a_payload_is_an_error_or_a_value() {
        let good = InfoRequest { export: "disk".to_owned(), wants: vec![3, 1] }.encode();
        let queries = vec!["base:allocation".to_owned(); 3];
        let meta = MetaContextRequest { export: "disk".to_owned(), queries }.encode();
        for cut in 0..good.len() {
            assert!(InfoRequest::decode(&good[..cut]).is_err(), "cut at {cut}");
        }
        for cut in 0..meta.len() {
            assert!(MetaContextRequest::decode(&meta[..cut]).is_err(), "cut at {cut}");
        }
        for bit in 0..good.len() * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            // Any value is fine; what counts is that it is one, and that it is small.
            if let Ok(request) = InfoRequest::decode(&bad) {
                assert!(request.export.len() <= MAX_STRING_BYTES);
                assert!(request.wants.len() <= MAX_OPTION_BYTES);
            }
        }
        for bit in 0..meta.len() * 8 {
            let mut bad = meta.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            if let Ok(request) = MetaContextRequest::decode(&bad) {
                assert!(request.queries.len() <= MAX_QUERIES);
            }
        }
        assert!(text(&[b'x'; MAX_STRING_BYTES + 1]).is_err());
        assert!(text(b"a\0b").is_err());
        assert!(text(b"\xff").is_err());
    }
}
