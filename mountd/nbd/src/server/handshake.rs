//! The handshake of the server (proto.md, "Fixed newstyle negotiation").

use std::sync::Arc;

use backstay_blockdev::BlockDevice;

use super::wire::Wire;
use super::{ExportInfo, OpenError, Shared};
use crate::error::{Error, ErrorKind};
use crate::proto::handshake::{
    CLIENT_FIXED_NEWSTYLE, CLIENT_NO_ZEROES, EXPORT_NAME_ZEROES, FLAG_FIXED_NEWSTYLE,
    FLAG_NO_ZEROES, Info, InfoRequest, MetaContextRequest, OPTION_HEADER_BYTES, OptionHeader,
    decode_export_name, encode_greeting, encode_meta_context, encode_option_reply, encode_server,
    info, option, reply,
};
use crate::proto::transmission::flag;
use crate::proto::{
    BASE_ALLOCATION, MAX_OPTION_BYTES, MAX_OPTIONS, MAX_PAYLOAD_BYTES, MAX_STRING_BYTES, Malformed,
};

/// An option too long for us is skipped up to this length, so that its sender can be told; beyond it
/// the connection ends.
const MAX_SKIPPED_BYTES: u32 = 64 << 10;
/// The id of base:allocation, the only context there is.
pub(super) const ALLOCATION_ID: u32 = 1;
/// Exports named in one LIST; a server with more needs another way to browse them.
const MAX_LISTED: usize = 10_000;

/// What both sides have agreed on.
pub(super) struct Negotiated {
    pub(super) device: Arc<dyn BlockDevice>,
    pub(super) export: String,
    /// Structured replies.
    pub(super) structured: bool,
    /// base:allocation.
    pub(super) allocation: bool,
}

/// What the client has asked for so far.
#[derive(Default)]
struct Wishes {
    no_zeroes: bool,
    fixed: bool,
    structured: bool,
    /// The export base:allocation was chosen for.
    allocation_of: Option<String>,
}

/// What an option leads to.
enum Next {
    /// The next option.
    Option,
    /// The transmission phase.
    Transmission(Negotiated),
    /// The end.
    End,
}

/// Leads a client from its first byte to an export; `None` when it left in good order.
pub(super) async fn negotiate(
    wire: &mut Wire,
    shared: &Shared,
) -> Result<Option<Negotiated>, Error> {
    let lost = |e| Error::io("the client left during the handshake", e);
    wire.send(&encode_greeting(FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES)).await.map_err(lost)?;
    wire.fill(4).await.map_err(lost)?;
    let flags = wire.peek().copied().map_or(0, u32::from_be_bytes);
    wire.consume(4);
    if flags & !(CLIENT_FIXED_NEWSTYLE | CLIENT_NO_ZEROES) != 0 {
        return Err(Error::protocol(format!("unknown client flags {flags:#x}")));
    }
    let mut wishes = Wishes {
        no_zeroes: flags & CLIENT_NO_ZEROES != 0,
        fixed: flags & CLIENT_FIXED_NEWSTYLE != 0,
        ..Wishes::default()
    };
    for _ in 0..MAX_OPTIONS {
        wire.fill(OPTION_HEADER_BYTES).await.map_err(lost)?;
        let Some(head) = wire.peek::<OPTION_HEADER_BYTES>() else { continue };
        let header = OptionHeader::decode(head).map_err(|e| Error::codec("bad option", e))?;
        wire.consume(OPTION_HEADER_BYTES);
        let mut out = Vec::new();
        let next = if header.len as usize > MAX_OPTION_BYTES {
            skip(wire, header).await?;
            refuse(&mut out, header.option, reply::ERR_TOO_BIG, "the option is too long");
            if header.option == option::EXPORT_NAME { Next::End } else { Next::Option }
        } else {
            wire.fill(header.len as usize).await.map_err(lost)?;
            let payload = wire.buffered()[..header.len as usize].to_vec();
            wire.consume(header.len as usize);
            answer(header.option, &payload, &mut wishes, shared, &mut out).await?
        };
        wire.send(&out).await.map_err(lost)?;
        match next {
            Next::Option => {}
            Next::Transmission(negotiated) => return Ok(Some(negotiated)),
            Next::End => return Ok(None),
        }
    }
    Err(Error::protocol(format!("more than {MAX_OPTIONS} options")))
}

/// Reads over the payload of an option that is too long, if it can be borne.
async fn skip(wire: &mut Wire, header: OptionHeader) -> Result<(), Error> {
    if header.len > MAX_SKIPPED_BYTES {
        return Err(Error::protocol(format!(
            "option {} of {} bytes: longer than anything we take",
            header.option, header.len
        )));
    }
    let mut left = header.len as usize;
    while left > 0 {
        wire.fill(1).await.map_err(|e| Error::io("the client left during the handshake", e))?;
        let n = wire.buffered().len().min(left);
        wire.consume(n);
        left -= n;
    }
    Ok(())
}

fn refuse(out: &mut Vec<u8>, option: u32, error: u32, why: &str) {
    encode_option_reply(out, option, error, why.as_bytes());
}

/// The answer to one option, into `out`.
async fn answer(
    option: u32,
    payload: &[u8],
    wishes: &mut Wishes,
    shared: &Shared,
    out: &mut Vec<u8>,
) -> Result<Next, Error> {
    if !wishes.fixed && option != option::EXPORT_NAME {
        return Err(Error::protocol("an option of a client that does not speak fixed newstyle"));
    }
    match option {
        option::EXPORT_NAME => return export_name(payload, wishes, shared, out).await,
        option::ABORT => {
            encode_option_reply(out, option, reply::ACK, &[]);
            return Ok(Next::End);
        }
        option::LIST => list(payload, shared, out).await,
        option::INFO | option::GO => return info_or_go(option, payload, wishes, shared, out).await,
        option::STRUCTURED_REPLY if payload.is_empty() => {
            wishes.structured = true;
            encode_option_reply(out, option, reply::ACK, &[]);
        }
        option::STRUCTURED_REPLY => {
            refuse(out, option, reply::ERR_INVALID, "this option has no payload");
        }
        option::LIST_META_CONTEXT | option::SET_META_CONTEXT => {
            meta_context(option, payload, wishes, shared, out).await;
        }
        // STARTTLS, EXTENDED_HEADERS and whatever will come.
        _ => refuse(out, option, reply::ERR_UNSUP, "the option is not supported"),
    }
    Ok(Next::Option)
}

async fn exports_list(shared: &Shared) -> Vec<ExportInfo> {
    let exports = shared.exports.clone();
    shared.pool.run(move || exports.list()).await.unwrap_or_default()
}

async fn list(payload: &[u8], shared: &Shared, out: &mut Vec<u8>) {
    if !payload.is_empty() {
        refuse(out, option::LIST, reply::ERR_INVALID, "this option has no payload");
        return;
    }
    for export in exports_list(shared).await.into_iter().take(MAX_LISTED) {
        if export.name.len() <= MAX_STRING_BYTES {
            let description = cut(&export.description);
            let payload = encode_server(&export.name, description);
            encode_option_reply(out, option::LIST, reply::SERVER, &payload);
        }
    }
    encode_option_reply(out, option::LIST, reply::ACK, &[]);
}

/// A text within the protocol's limit.
fn cut(text: &str) -> &str {
    let mut end = text.len().min(MAX_STRING_BYTES);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

/// Opens an export; the error is text for the client.
async fn open(shared: &Shared, name: &str) -> Result<Arc<dyn BlockDevice>, &'static str> {
    let (exports, own) = (shared.exports.clone(), name.to_owned());
    match shared.pool.run(move || exports.open(&own)).await {
        Some(Ok(device)) => Ok(device),
        Some(Err(OpenError::Unknown)) => Err("there is no such export"),
        Some(Err(error)) => {
            tracing::warn!(export = name, %error, "cannot open an export");
            Err("the export cannot be opened; the server's log says why")
        }
        None => Err("the server is stopping"),
    }
}

async fn export_name(
    payload: &[u8],
    wishes: &Wishes,
    shared: &Shared,
    out: &mut Vec<u8>,
) -> Result<Next, Error> {
    // There is no error reply to this option: to refuse is to hang up.
    let name = decode_export_name(payload).map_err(|e| Error::codec("bad export name", e))?;
    let device = open(shared, name)
        .await
        .map_err(|why| Error::new(ErrorKind::Refused, format!("export {name:?}: {why}")))?;
    let negotiated = agreed(device, name, wishes);
    out.extend_from_slice(&negotiated.device.geometry().size_bytes.to_be_bytes());
    out.extend_from_slice(&transmission_flags(&negotiated).to_be_bytes());
    if !wishes.no_zeroes {
        out.resize(out.len() + EXPORT_NAME_ZEROES, 0);
    }
    Ok(Next::Transmission(negotiated))
}

async fn info_or_go(
    option: u32,
    payload: &[u8],
    wishes: &Wishes,
    shared: &Shared,
    out: &mut Vec<u8>,
) -> Result<Next, Error> {
    let request = match InfoRequest::decode(payload) {
        Ok(request) => request,
        Err(error) => {
            refuse(out, option, reply::ERR_INVALID, &error.to_string());
            return Ok(Next::Option);
        }
    };
    let device = match open(shared, &request.export).await {
        Ok(device) => device,
        Err(why) => {
            refuse(out, option, reply::ERR_UNKNOWN, why);
            return Ok(Next::Option);
        }
    };
    let negotiated = agreed(device, &request.export, wishes);
    let geometry = negotiated.device.geometry();
    let mut items = vec![Info::Export {
        size_bytes: geometry.size_bytes,
        flags: transmission_flags(&negotiated),
    }];
    if request.wants.contains(&info::BLOCK_SIZE) {
        items.push(Info::BlockSize {
            min: geometry.min_block_bytes,
            preferred: geometry.preferred_block_bytes,
            max: geometry.max_request_bytes.min(MAX_PAYLOAD_BYTES),
        });
    }
    if request.wants.contains(&info::NAME) || request.wants.contains(&info::DESCRIPTION) {
        let list = exports_list(shared).await;
        let own = match list.iter().find(|export| export.name == request.export) {
            // The default export's real name is told when there can be no doubt about it.
            None if request.export.is_empty() && list.len() == 1 => list.first(),
            found => found,
        };
        if request.wants.contains(&info::NAME) {
            let name = own.map_or(request.export.as_str(), |export| export.name.as_str());
            items.push(Info::Name(cut(name).to_owned()));
        }
        if let Some(export) = own.filter(|_| request.wants.contains(&info::DESCRIPTION)) {
            items.push(Info::Description(cut(&export.description).to_owned()));
        }
    }
    for item in items {
        encode_option_reply(out, option, reply::INFO, &item.encode());
    }
    encode_option_reply(out, option, reply::ACK, &[]);
    Ok(if option == option::GO { Next::Transmission(negotiated) } else { Next::Option })
}

fn agreed(device: Arc<dyn BlockDevice>, export: &str, wishes: &Wishes) -> Negotiated {
    Negotiated {
        device,
        export: export.to_owned(),
        structured: wishes.structured,
        // proto.md, "NBD_OPT_SET_META_CONTEXT": contexts chosen for another export count for nothing.
        allocation: wishes.allocation_of.as_deref() == Some(export),
    }
}

async fn meta_context(
    option: u32,
    payload: &[u8],
    wishes: &mut Wishes,
    shared: &Shared,
    out: &mut Vec<u8>,
) {
    let set = option == option::SET_META_CONTEXT;
    if set {
        // Each SET replaces what the one before had chosen, also when it fails.
        wishes.allocation_of = None;
    }
    if !wishes.structured {
        refuse(out, option, reply::ERR_INVALID, "structured replies must be chosen first");
        return;
    }
    let request = match MetaContextRequest::decode(payload) {
        Ok(request) => request,
        Err(error) => {
            refuse(out, option, reply::ERR_INVALID, &Malformed::to_string(&error));
            return;
        }
    };
    let (exports, name) = (shared.exports.clone(), request.export.clone());
    if !shared.pool.run(move || exports.is_known(&name)).await.unwrap_or(false) {
        refuse(out, option, reply::ERR_UNKNOWN, "there is no such export");
        return;
    }
    let asked = |query: &String| query == BASE_ALLOCATION || (!set && query == "base:");
    if request.queries.iter().any(asked) || (!set && request.queries.is_empty()) {
        let payload = encode_meta_context(if set { ALLOCATION_ID } else { 0 }, BASE_ALLOCATION);
        encode_option_reply(out, option, reply::META_CONTEXT, &payload);
        if set {
            wishes.allocation_of = Some(request.export);
        }
    }
    encode_option_reply(out, option, reply::ACK, &[]);
}

/// proto.md, "Transmission flags", for a device.
fn transmission_flags(negotiated: &Negotiated) -> u16 {
    let caps = negotiated.device.caps();
    let writable = caps.writable;
    let flags = [
        (true, flag::HAS_FLAGS),
        (!writable, flag::READ_ONLY),
        // A flush of a read-only device is true at once, and some clients always send one.
        (caps.flush || !writable, flag::SEND_FLUSH),
        (writable && caps.fua, flag::SEND_FUA),
        (caps.rotational, flag::ROTATIONAL),
        (writable && caps.trim, flag::SEND_TRIM),
        (writable && caps.write_zeroes, flag::SEND_WRITE_ZEROES),
        (negotiated.structured, flag::SEND_DF),
        (caps.multi_conn, flag::CAN_MULTI_CONN),
        (true, flag::SEND_CACHE),
        (writable && caps.write_zeroes && caps.fast_zero, flag::SEND_FAST_ZERO),
    ];
    flags.into_iter().filter(|(on, _)| *on).fold(0, |all, (_, flag)| all | flag)
}
