//! The handshake of the client (proto.md, "Fixed newstyle negotiation").

use super::connection::Connection;
use crate::error::{Error, ErrorKind};
use crate::proto::handshake::{
    CLIENT_FIXED_NEWSTYLE, CLIENT_NO_ZEROES, EXPORT_NAME_ZEROES, FLAG_NO_ZEROES, GREETING_BYTES,
    Info, InfoRequest, MetaContextRequest, OPTION_REPLY_HEADER_BYTES, OptionReplyHeader,
    decode_export_name_reply, decode_greeting, decode_meta_context, encode_option, info, option,
    reply,
};
use crate::proto::{BASE_ALLOCATION, MAX_PAYLOAD_BYTES};

/// The longest payload of an option reply taken: descriptions and messages are at most 4096 bytes.
const MAX_REPLY_BYTES: u32 = 16 << 10;
/// Replies to one option; GO has a handful.
const MAX_REPLIES: usize = 64;

/// What the server has said of an export.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Agreed {
    pub(super) size_bytes: u64,
    /// proto.md, "Transmission flags".
    pub(super) flags: u16,
    pub(super) structured: bool,
    /// The id of base:allocation, if the server has it.
    pub(super) allocation: Option<u32>,
    pub(super) min_block: u32,
    pub(super) preferred_block: u32,
    pub(super) max_payload: u32,
}

/// The answers to one option: the information before the last reply, and that reply.
struct Answers {
    items: Vec<(u32, Vec<u8>)>,
    /// `Err` holds the server's error number and its text.
    result: Result<(), (u32, String)>,
}

/// Chooses an export.
pub(super) fn negotiate(connection: &mut Connection, export: &str) -> Result<Agreed, Error> {
    let mut greeting = [0; GREETING_BYTES];
    connection.read(&mut greeting)?;
    let flags =
        decode_greeting(&greeting).map_err(|e| Error::codec(connection.context("greeting"), e))?;
    let no_zeroes = flags & FLAG_NO_ZEROES != 0;
    let own = CLIENT_FIXED_NEWSTYLE | if no_zeroes { CLIENT_NO_ZEROES } else { 0 };
    connection.write(&own.to_be_bytes())?;

    let structured = ask(connection, option::STRUCTURED_REPLY, &[])?.result.is_ok();
    let allocation = if structured { choose_allocation(connection, export)? } else { None };
    let request = InfoRequest { export: export.to_owned(), wants: vec![info::BLOCK_SIZE] };
    let answers = ask(connection, option::GO, &request.encode())?;
    let (size_bytes, flags, blocks) = match answers.result {
        Ok(()) => read_infos(connection, &answers.items)?,
        Err((reply::ERR_UNSUP, _)) => {
            let (size, flags) = export_name(connection, export, no_zeroes)?;
            (size, flags, None)
        }
        Err((code, text)) => return Err(refused(connection, export, code, &text)),
    };
    if i64::try_from(size_bytes).is_err() {
        return Err(Error::protocol(connection.context(&format!("a size of {size_bytes} bytes"))));
    }
    let (min_block, preferred_block, max_payload) = blocks.unwrap_or((1, 4096, MAX_PAYLOAD_BYTES));
    Ok(Agreed {
        size_bytes,
        flags,
        structured,
        allocation,
        min_block,
        preferred_block,
        max_payload,
    })
}

fn refused(connection: &Connection, export: &str, code: u32, text: &str) -> Error {
    let what = match code {
        reply::ERR_UNKNOWN => format!("there is no export {export:?}"),
        reply::ERR_TLS_REQD => "the server demands TLS, which is not supported".to_owned(),
        reply::ERR_POLICY => format!("the server's policy forbids export {export:?}"),
        reply::ERR_SHUTDOWN => "the server is stopping".to_owned(),
        _ => format!("the server refuses export {export:?} (error {:#x})", code),
    };
    let what = if text.is_empty() { what } else { format!("{what}: {}", text.escape_debug()) };
    Error::new(ErrorKind::Refused, connection.context(&what))
}

/// Chooses base:allocation; a server that lacks it is no error.
fn choose_allocation(connection: &mut Connection, export: &str) -> Result<Option<u32>, Error> {
    let request =
        MetaContextRequest { export: export.to_owned(), queries: vec![BASE_ALLOCATION.to_owned()] };
    let answers = ask(connection, option::SET_META_CONTEXT, &request.encode())?;
    if answers.result.is_err() {
        return Ok(None);
    }
    let mut chosen = None;
    for (kind, payload) in &answers.items {
        let (id, name) = match *kind {
            reply::META_CONTEXT => decode_meta_context(payload)
                .map_err(|e| Error::codec(connection.context("metadata context"), e))?,
            _ => continue,
        };
        if name != BASE_ALLOCATION || chosen.replace(id).is_some() {
            let what = format!("a metadata context nobody asked for: {name:?}");
            return Err(Error::protocol(connection.context(&what)));
        }
    }
    Ok(chosen)
}

type Blocks = (u32, u32, u32);

fn read_infos(
    connection: &Connection,
    items: &[(u32, Vec<u8>)],
) -> Result<(u64, u16, Option<Blocks>), Error> {
    let mut export = None;
    let mut blocks = None;
    for (kind, payload) in items {
        if *kind != reply::INFO {
            continue;
        }
        match Info::decode(payload)
            .map_err(|e| Error::codec(connection.context("export information"), e))?
        {
            Info::Export { size_bytes, flags } => export = Some((size_bytes, flags)),
            // proto.md, "Size constraints": min a power of two up to 64 KiB, preferred a power of
            // two from 512 bytes, max the largest payload.
            Info::BlockSize { min, preferred, max } => {
                let sane = min.is_power_of_two()
                    && min <= 64 << 10
                    && preferred.is_power_of_two()
                    && preferred >= min
                    && max >= min;
                if !sane {
                    let what = format!("block sizes {min}, {preferred}, {max}");
                    return Err(Error::protocol(connection.context(&what)));
                }
                blocks = Some((min, preferred, max.min(MAX_PAYLOAD_BYTES) / min * min));
            }
            Info::Name(_) | Info::Description(_) | Info::Other(_) => {}
        }
    }
    match export {
        Some((size, flags)) => Ok((size, flags, blocks)),
        None => Err(Error::protocol(connection.context("the server did not tell the size"))),
    }
}

/// The way without GO, for servers that have only this one. It knows no error but hanging up.
fn export_name(
    connection: &mut Connection,
    export: &str,
    no_zeroes: bool,
) -> Result<(u64, u16), Error> {
    connection.write(&encode_option(option::EXPORT_NAME, export.as_bytes()))?;
    let mut answer = [0; 10];
    connection.read(&mut answer).map_err(|e| match e.kind() {
        ErrorKind::Io => Error::new(
            ErrorKind::Refused,
            connection.context(&format!("the server hung up on export {export:?}")),
        ),
        _ => e,
    })?;
    let answer = decode_export_name_reply(&answer)
        .map_err(|e| Error::codec(connection.context("export"), e))?;
    if !no_zeroes {
        connection.read(&mut [0; EXPORT_NAME_ZEROES])?;
    }
    Ok(answer)
}

/// Sends an option and reads its answers.
fn ask(connection: &mut Connection, option: u32, payload: &[u8]) -> Result<Answers, Error> {
    connection.write(&encode_option(option, payload))?;
    let mut items = Vec::new();
    for _ in 0..MAX_REPLIES {
        let mut head = [0; OPTION_REPLY_HEADER_BYTES];
        connection.read(&mut head)?;
        let head = OptionReplyHeader::decode(&head)
            .map_err(|e| Error::codec(connection.context("reply to an option"), e))?;
        if head.option != option || head.len > MAX_REPLY_BYTES {
            let what = format!(
                "option {option} was answered with {} bytes for option {}",
                head.len, head.option
            );
            return Err(Error::protocol(connection.context(&what)));
        }
        let mut payload = vec![0; head.len as usize];
        connection.read(&mut payload)?;
        if head.reply == reply::ACK {
            return Ok(Answers { items, result: Ok(()) });
        }
        if head.reply & reply::ERROR_BIT != 0 {
            let text = String::from_utf8_lossy(&payload).into_owned();
            return Ok(Answers { items, result: Err((head.reply, text)) });
        }
        items.push((head.reply, payload));
    }
    Err(Error::protocol(connection.context(&format!("option {option} has too many replies"))))
}
