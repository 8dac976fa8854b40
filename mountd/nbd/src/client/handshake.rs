//! The handshake of the client (proto.md, "Fixed newstyle negotiation").

use super::connection::Setup;
use super::tls::Tls;
use crate::error::{Error, ErrorKind};
use crate::proto::handshake::{
    CLIENT_FIXED_NEWSTYLE, CLIENT_NO_ZEROES, EXPORT_NAME_ZEROES, FLAG_NO_ZEROES, GREETING_BYTES,
    Info, InfoRequest, MetaContextRequest, OPTION_REPLY_HEADER_BYTES, OptionReplyHeader,
    decode_export_name_reply, decode_greeting, decode_meta_context, encode_option, info, option,
    reply,
};
use crate::proto::{BASE_ALLOCATION, MAX_PAYLOAD_BYTES, Reader, text};

/// The longest payload of an option reply taken: descriptions and messages are at most 4096 bytes.
const MAX_REPLY_BYTES: u32 = 16 << 10;
/// Replies to one option; GO has a handful, lists have one for each of what they list.
const MAX_REPLIES: usize = 64;
/// Replies to one option that lists.
const MAX_LISTED: usize = 10_000;

/// What the server has said of an export.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Agreed {
    pub(super) size_bytes: u64,
    /// proto.md, "Transmission flags".
    pub(super) flags: u16,
    pub(super) structured: bool,
    /// The metadata contexts chosen, in the order of the wishes: name and id.
    pub(super) contexts: Vec<(String, u32)>,
    pub(super) min_block: u32,
    pub(super) preferred_block: u32,
    pub(super) max_payload: u32,
}

impl Agreed {
    /// The id of a context.
    pub(super) fn context(&self, name: &str) -> Option<u32> {
        self.contexts.iter().find(|(known, _)| known == name).map(|(_, id)| *id)
    }

    /// Whether this is still the same export, though ids may differ.
    pub(super) fn is_like(&self, other: &Self) -> bool {
        let names = |agreed: &Self| -> Vec<String> {
            agreed.contexts.iter().map(|(name, _)| name.clone()).collect()
        };
        names(self) == names(other)
            && Self { contexts: Vec::new(), ..self.clone() }
                == Self { contexts: Vec::new(), ..other.clone() }
    }
}

/// The answers to one option: the information before the last reply, and that reply.
struct Answers {
    items: Vec<(u32, Vec<u8>)>,
    /// `Err` holds the server's error number and its text.
    result: Result<(), (u32, String)>,
}

/// Exchanges greetings, and goes over to TLS if that is wanted; then nothing but TLS will do. Answers
/// whether the zeros behind EXPORT_NAME are left out.
fn greet(setup: &mut Setup, tls: Option<&Tls>) -> Result<bool, Error> {
    let mut greeting = [0; GREETING_BYTES];
    setup.read(&mut greeting)?;
    let flags =
        decode_greeting(&greeting).map_err(|e| Error::codec(setup.context("greeting"), e))?;
    let no_zeroes = flags & FLAG_NO_ZEROES != 0;
    let own = CLIENT_FIXED_NEWSTYLE | if no_zeroes { CLIENT_NO_ZEROES } else { 0 };
    setup.write(&own.to_be_bytes())?;
    if let Some(tls) = tls {
        // Before anything else: what was said without TLS would have to be forgotten.
        if let Err((code, text)) = ask(setup, option::STARTTLS, &[])?.result {
            let what = format!("the server does not offer TLS (error {code:#x})");
            return Err(Error::new(ErrorKind::Refused, setup.context(&with_words(what, &text))));
        }
        setup.start_tls(tls)?;
    }
    Ok(no_zeroes)
}

/// Chooses an export, with base:allocation and other metadata contexts as far as it has them.
pub(super) fn negotiate(
    setup: &mut Setup,
    export: &str,
    contexts: &[String],
    tls: Option<&Tls>,
) -> Result<Agreed, Error> {
    let no_zeroes = greet(setup, tls)?;
    let structured = ask(setup, option::STRUCTURED_REPLY, &[])?.result.is_ok();
    let contexts = if structured { choose(setup, export, contexts)? } else { Vec::new() };
    let request = InfoRequest { export: export.to_owned(), wants: vec![info::BLOCK_SIZE] };
    let answers = ask(setup, option::GO, &request.encode())?;
    let (size_bytes, flags, blocks) = match answers.result {
        Ok(()) => read_infos(setup, &answers.items)?,
        Err((reply::ERR_UNSUP, _)) => {
            let (size, flags) = export_name(setup, export, no_zeroes)?;
            (size, flags, None)
        }
        Err((code, text)) => return Err(refused(setup, export, code, &text)),
    };
    if i64::try_from(size_bytes).is_err() {
        return Err(Error::protocol(setup.context(&format!("a size of {size_bytes} bytes"))));
    }
    let (min_block, preferred_block, max_payload) = blocks.unwrap_or((1, 4096, MAX_PAYLOAD_BYTES));
    Ok(Agreed { size_bytes, flags, structured, contexts, min_block, preferred_block, max_payload })
}

fn refused(setup: &Setup, export: &str, code: u32, text: &str) -> Error {
    let what = match code {
        reply::ERR_UNKNOWN => format!("there is no export {export:?}"),
        reply::ERR_TLS_REQD => {
            "the server demands TLS (nbds:// and nbds+unix:// have it)".to_owned()
        }
        reply::ERR_POLICY => format!("the server's policy forbids export {export:?}"),
        reply::ERR_SHUTDOWN => "the server is stopping".to_owned(),
        _ => format!("the server refuses export {export:?} (error {:#x})", code),
    };
    Error::new(ErrorKind::Refused, setup.context(&with_words(what, text)))
}

/// Adds the server's own words, which may hold anything.
fn with_words(what: String, text: &str) -> String {
    if text.is_empty() { what } else { format!("{what}: {}", text.escape_debug()) }
}

/// The names and descriptions of the server's exports.
pub(super) fn list(setup: &mut Setup, tls: Option<&Tls>) -> Result<Vec<(String, String)>, Error> {
    greet(setup, tls)?;
    let answers = ask_list(setup, option::LIST, &[])?;
    if let Err((code, text)) = answers.result {
        let what = format!("the server does not list its exports (error {code:#x})");
        return Err(Error::new(ErrorKind::Refused, setup.context(&with_words(what, &text))));
    }
    let mut list = Vec::new();
    for (_, payload) in answers.items.iter().filter(|(kind, _)| *kind == reply::SERVER) {
        let bad = |e| Error::codec(setup.context("a listed export"), e);
        let mut reader = Reader::new(payload);
        let name = reader.string().map_err(bad)?.to_owned();
        let description = text(reader.rest()).map_err(bad)?.to_owned();
        list.push((name, description));
    }
    abort(setup);
    Ok(list)
}

/// The names of the metadata contexts of an export.
pub(super) fn list_contexts(
    setup: &mut Setup,
    export: &str,
    tls: Option<&Tls>,
) -> Result<Vec<String>, Error> {
    greet(setup, tls)?;
    if ask(setup, option::STRUCTURED_REPLY, &[])?.result.is_err() {
        return Ok(Vec::new());
    }
    let request = MetaContextRequest { export: export.to_owned(), queries: Vec::new() };
    let answers = ask_list(setup, option::LIST_META_CONTEXT, &request.encode())?;
    match answers.result {
        Ok(()) => {}
        Err((reply::ERR_UNSUP, _)) => return Ok(Vec::new()),
        Err((code, text)) => return Err(refused(setup, export, code, &text)),
    }
    let contexts = answers.items.iter().filter(|(kind, _)| *kind == reply::META_CONTEXT);
    let list = contexts
        .map(|(_, payload)| decode_meta_context(payload).map(|(_, name)| name.to_owned()))
        .collect::<Result<_, _>>()
        .map_err(|e| Error::codec(setup.context("metadata context"), e))?;
    abort(setup);
    Ok(list)
}

/// Says good-bye without having chosen an export.
fn abort(setup: &mut Setup) {
    // What was wanted is there; a server that does not hear it sees the connection end.
    let _ = setup.write(&encode_option(option::ABORT, &[]));
}

/// Chooses base:allocation and `wishes`; that the server lacks some is no error.
fn choose(setup: &mut Setup, export: &str, wishes: &[String]) -> Result<Vec<(String, u32)>, Error> {
    let mut queries = vec![BASE_ALLOCATION.to_owned()];
    for wish in wishes {
        if !queries.contains(wish) {
            queries.push(wish.clone());
        }
    }
    let request = MetaContextRequest { export: export.to_owned(), queries };
    let answers = ask(setup, option::SET_META_CONTEXT, &request.encode())?;
    if answers.result.is_err() {
        return Ok(Vec::new());
    }
    let mut chosen: Vec<(String, u32)> = Vec::new();
    for (_, payload) in answers.items.iter().filter(|(kind, _)| *kind == reply::META_CONTEXT) {
        let (id, name) = decode_meta_context(payload)
            .map_err(|e| Error::codec(setup.context("metadata context"), e))?;
        let asked = request.queries.iter().any(|query| query == name);
        if !asked || chosen.iter().any(|(known, other)| known == name || *other == id) {
            let what = format!("a metadata context nobody asked for: {name:?}");
            return Err(Error::protocol(setup.context(&what)));
        }
        chosen.push((name.to_owned(), id));
    }
    let rank = |name: &String| request.queries.iter().position(|query| query == name);
    chosen.sort_by_key(|(name, _)| rank(name));
    Ok(chosen)
}

type Blocks = (u32, u32, u32);

fn read_infos(
    setup: &Setup,
    items: &[(u32, Vec<u8>)],
) -> Result<(u64, u16, Option<Blocks>), Error> {
    let mut export = None;
    let mut blocks = None;
    for (kind, payload) in items {
        if *kind != reply::INFO {
            continue;
        }
        match Info::decode(payload)
            .map_err(|e| Error::codec(setup.context("export information"), e))?
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
                    return Err(Error::protocol(setup.context(&what)));
                }
                blocks = Some((min, preferred, max.min(MAX_PAYLOAD_BYTES) / min * min));
            }
            Info::Name(_) | Info::Description(_) | Info::Other(_) => {}
        }
    }
    match export {
        Some((size, flags)) => Ok((size, flags, blocks)),
        None => Err(Error::protocol(setup.context("the server did not tell the size"))),
    }
}

/// The way without GO, for servers that have only this one. It knows no error but hanging up.
fn export_name(setup: &mut Setup, export: &str, no_zeroes: bool) -> Result<(u64, u16), Error> {
    setup.write(&encode_option(option::EXPORT_NAME, export.as_bytes()))?;
    let mut answer = [0; 10];
    setup.read(&mut answer).map_err(|e| match e.kind() {
        ErrorKind::Io => Error::new(
            ErrorKind::Refused,
            setup.context(&format!("the server hung up on export {export:?}")),
        ),
        _ => e,
    })?;
    let answer =
        decode_export_name_reply(&answer).map_err(|e| Error::codec(setup.context("export"), e))?;
    if !no_zeroes {
        setup.read(&mut [0; EXPORT_NAME_ZEROES])?;
    }
    Ok(answer)
}

/// Sends an option and reads its answers.
fn ask(setup: &mut Setup, option: u32, payload: &[u8]) -> Result<Answers, Error> {
    ask_for(setup, option, payload, MAX_REPLIES)
}

/// The same for an option that lists.
fn ask_list(setup: &mut Setup, option: u32, payload: &[u8]) -> Result<Answers, Error> {
    ask_for(setup, option, payload, MAX_LISTED)
}

fn ask_for(setup: &mut Setup, option: u32, payload: &[u8], most: usize) -> Result<Answers, Error> {
    setup.write(&encode_option(option, payload))?;
    let mut items = Vec::new();
    for _ in 0..most {
        let mut head = [0; OPTION_REPLY_HEADER_BYTES];
        setup.read(&mut head)?;
        let head = OptionReplyHeader::decode(&head)
            .map_err(|e| Error::codec(setup.context("reply to an option"), e))?;
        if head.option != option || head.len > MAX_REPLY_BYTES {
            let what = format!(
                "option {option} was answered with {} bytes for option {}",
                head.len, head.option
            );
            return Err(Error::protocol(setup.context(&what)));
        }
        let mut payload = vec![0; head.len as usize];
        setup.read(&mut payload)?;
        if head.reply == reply::ACK {
            return Ok(Answers { items, result: Ok(()) });
        }
        if head.reply & reply::ERROR_BIT != 0 {
            let text = String::from_utf8_lossy(&payload).into_owned();
            return Ok(Answers { items, result: Err((head.reply, text)) });
        }
        items.push((head.reply, payload));
    }
    Err(Error::protocol(setup.context(&format!("option {option} has too many replies"))))
}
