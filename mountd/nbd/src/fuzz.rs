//! What a fuzzer runs here: the server's handshake, requests, and replies. A target is a function that
//! takes any bytes and panics when a promise is broken. `tests/corpus.rs` runs them with their seeds, cut
//! and changed.

use backstay_blockdev::{Caps, Geometry};

use crate::error::Error;
use crate::proto::extended::{
    ExtendedHeader, ReplyTo, decode_block_status_ext, decode_request, decode_status_payload,
};
use crate::proto::handshake::{
    Info, InfoRequest, MetaContextRequest, OPTION_REPLY_HEADER_BYTES, OptionReplyHeader,
    decode_export_name_reply, decode_greeting, decode_meta_context, encode_option, option, reply,
};
use crate::proto::transmission::{
    ErrorChunk, ReplyStart, Request, command, decode_block_status, encode_read_in_place,
};
use crate::proto::{MAX_OPTION_BYTES, MAX_OPTIONS};
use crate::server::ExportInfo;
use crate::server::negotiation::{Facts, Negotiation, Question, Step, TlsPolicy};

/// One parser under test.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    /// Its name.
    pub name: &'static str,
    /// Takes any bytes; panics when a promise is broken.
    pub run: fn(&[u8]),
    /// Inputs made by the real encoders, each with a name. The same at every call.
    pub seeds: fn() -> Vec<(&'static str, Vec<u8>)>,
    /// Bytes of memory a run may hold at once, beside what its input accounts for.
    pub memory: usize,
}

/// Every target of this crate.
pub const TARGETS: &[Target] = &[
    Target { name: "nbd_handshake", run: handshake, seeds: handshake_seeds, memory: 4 << 20 },
    Target { name: "nbd_requests", run: requests, seeds: request_seeds, memory: 64 << 10 },
    Target { name: "nbd_replies", run: replies, seeds: reply_seeds, memory: 1 << 20 },
];

/// How a handshake went: what the server said, and how it ended.
#[derive(Debug, PartialEq, Eq)]
struct Course {
    said: Vec<u8>,
    /// What had been said before TLS.
    plain_bytes: usize,
    end: Option<String>,
}

/// Leads a client through the handshake whose bytes come in pieces of `piece` bytes.
fn lead(policy: TlsPolicy, client: &[u8], piece: usize) -> Course {
    let mut state = Negotiation::new(policy);
    let mut course = Course { said: Vec::new(), plain_bytes: usize::MAX, end: None };
    let (mut used, mut here) = (0, 0);
    loop {
        let step = state.input(&client[used..here]).and_then(|(n, step)| {
            assert!(n <= here - used, "more is used up than was there");
            used += n;
            match step {
                Step::Ask(question) => answer(&mut state, question),
                step => Ok(step),
            }
        });
        course.said.extend(state.take_replies());
        match step {
            Ok(Step::More(n)) => {
                assert!(n > here - used && n <= 16 + MAX_OPTION_BYTES, "{n} bytes are wanted");
                if here == client.len() {
                    return course;
                }
                here = (here + piece).min(client.len());
            }
            Ok(Step::Again) => {}
            Ok(Step::StartTls) => {
                // The driver ends a connection with anything behind; here the next is encrypted.
                course.plain_bytes = course.said.len();
                state.secured();
            }
            Ok(step) => {
                course.end = Some(format!("{step:?}"));
                return course;
            }
            Err(error) => {
                course.end = Some(error.to_string());
                return course;
            }
        }
    }
}

fn answer(state: &mut Negotiation, question: Question) -> Result<Step, Error> {
    let own = ExportInfo { name: "disk".to_owned(), description: "a disk".to_owned() };
    match question {
        Question::List => Ok(state.listed(vec![own])),
        Question::Known(name) => Ok(state.known((name == "disk").then_some(true))),
        Question::Open { export, described } if export == "disk" => state.opened(Ok(Facts {
            geometry: Geometry {
                size_bytes: 1 << 40,
                min_block_bytes: 1,
                preferred_block_bytes: 4096,
                max_request_bytes: 32 << 20,
            },
            caps: Caps { writable: true, presence: true, ..Caps::default() },
            own: described.then_some(own),
        })),
        Question::Open { .. } => state.opened(Err("there is no such export")),
    }
}

/// The first byte chooses when TLS is wanted and how the bytes are cut; the rest is the client's.
fn handshake(bytes: &[u8]) {
    let Some((choice, client)) = bytes.split_first() else { return };
    let policy = [TlsPolicy::Off, TlsPolicy::Allowed, TlsPolicy::Required][usize::from(choice % 3)];
    let whole = lead(policy, client, client.len().max(1));
    let pieces = lead(policy, client, usize::from(choice / 3) + 1);
    assert_eq!(whole, pieces, "the answer depends on how the bytes come");
    // Each option has at most an answer for each context, item or export, and a last one.
    assert!(whole.said.len() <= MAX_OPTIONS * (4 << 10) + MAX_OPTIONS * MAX_OPTION_BYTES);
    if policy == TlsPolicy::Required {
        reveals_nothing(&whole.said[..whole.plain_bytes.min(whole.said.len())]);
    }
}

/// Without TLS there are only acknowledgements of ABORT and STARTTLS, and refusals.
fn reveals_nothing(mut said: &[u8]) {
    while let Some(head) = said.first_chunk::<OPTION_REPLY_HEADER_BYTES>() {
        let head = OptionReplyHeader::decode(head).expect("a reply of ours");
        let bare = matches!(head.option, option::ABORT | option::STARTTLS);
        let allowed = match head.reply {
            reply::ACK => bare,
            reply::ERR_TLS_REQD => !bare,
            reply::ERR_TOO_BIG | reply::ERR_INVALID => true,
            _ => false,
        };
        assert!(allowed, "{head:?}");
        said = &said[OPTION_REPLY_HEADER_BYTES + head.len as usize..];
    }
    assert!(said.is_empty(), "{said:?}");
}

fn handshake_seeds() -> Vec<(&'static str, Vec<u8>)> {
    let go = InfoRequest { export: "disk".to_owned(), wants: vec![0, 1, 2, 3] }.encode();
    let queries = vec!["base:allocation".to_owned(), "backstay:presence".to_owned()];
    let context = MetaContextRequest { export: "disk".to_owned(), queries }.encode();
    let stream = |choice: u8, options: &[(u32, &[u8])]| {
        let mut out = vec![choice, 0, 0, 0, 3];
        options.iter().for_each(|(option, payload)| out.extend(encode_option(*option, payload)));
        out
    };
    vec![
        (
            "usual",
            stream(
                20,
                &[
                    (option::STRUCTURED_REPLY, &[]),
                    (option::EXTENDED_HEADERS, &[]),
                    (option::LIST_META_CONTEXT, &context),
                    (option::SET_META_CONTEXT, &context),
                    (option::LIST, &[]),
                    (option::INFO, &go),
                    (option::GO, &go),
                ],
            ),
        ),
        ("name", stream(0, &[(option::EXPORT_NAME, b"disk")])),
        (
            "tls",
            stream(
                2,
                &[
                    (option::LIST, &[]),
                    (option::STARTTLS, b"x"),
                    (option::STARTTLS, &[]),
                    (option::STARTTLS, &[]),
                    (option::GO, &go),
                ],
            ),
        ),
        ("long", stream(1, &[(option::GO, &[0; 5000]), (option::ABORT, &[])])),
    ]
}

/// A stream of requests; the first byte chooses the header.
fn requests(bytes: &[u8]) {
    let Some((choice, mut rest)) = bytes.split_first() else { return };
    let extended = choice & 1 == 1;
    while let Ok(Some((request, header_bytes))) = decode_request(rest, extended) {
        if extended {
            assert_eq!(request.encode(), rest[..header_bytes]);
        } else {
            let len = u32::try_from(request.len).expect("a compact length");
            let (flags, command) = (request.flags, request.command);
            let (cookie, offset) = (request.cookie, request.offset);
            let compact = Request { flags, command, cookie, offset, len };
            assert_eq!(compact.encode(), rest[..header_bytes]);
        }
        rest = &rest[header_bytes..];
    }
    if let Ok((len, ids)) = decode_status_payload(rest) {
        let again = ids.iter().flat_map(|id| id.to_be_bytes());
        assert!(len.to_be_bytes().into_iter().chain(again).eq(rest.iter().copied()));
    }
}

fn request_seeds() -> Vec<(&'static str, Vec<u8>)> {
    let request = Request { flags: 1, command: command::READ, cookie: 7, offset: 512, len: 4096 };
    let mut filter = vec![1];
    filter.extend(4096u64.to_be_bytes());
    filter.extend([0, 0, 0, 1, 0, 0, 0, 2]);
    vec![
        ("compact", [&[0][..], &request.encode(), &request.encode()].concat()),
        (
            "extended",
            [&[1][..], &super::proto::extended::ExtendedRequest::from(request).encode()].concat(),
        ),
        ("filter", filter),
    ]
}

/// What a server may say; the first byte chooses what it is taken for.
fn replies(bytes: &[u8]) {
    let Some((choice, rest)) = bytes.split_first() else { return };
    match choice % 8 {
        0 => drop(rest.first_chunk().map(decode_greeting)),
        1 => drop(rest.first_chunk().map(OptionReplyHeader::decode)),
        2 => drop(Info::decode(rest).map(|info| {
            if !matches!(info, Info::Other(_)) {
                assert_eq!(info.encode(), rest);
            }
        })),
        3 => drop(decode_meta_context(rest)),
        4 => {
            let _ = rest.first_chunk().map(ReplyStart::decode);
            let _ = rest.first_chunk().map(decode_export_name_reply);
            if let Some(Ok(header)) = rest.first_chunk().map(ExtendedHeader::decode) {
                assert_eq!(header.encode(), rest[..32]);
            }
        }
        5 => drop(ErrorChunk::decode(rest).map(|error| assert_ne!(error.errno, 0))),
        6 => drop(decode_block_status(rest).map(|(_, list)| assert!(list.iter().all(|e| e.0 > 0)))),
        _ => {
            drop(
                decode_block_status_ext(rest)
                    .map(|(_, list)| assert_eq!(8 + 16 * list.len(), rest.len())),
            );
            read_reply(rest);
        }
    }
}

/// Whatever is read, its reply is no longer than with all data in one chunk.
fn read_reply(data: &[u8]) {
    for extended in [false, true] {
        let to = ReplyTo { extended, cookie: 1, offset: 65_000 };
        let mut buf = vec![0; to.data_head_bytes()];
        buf.extend_from_slice(data);
        let space = buf.len();
        assert!(encode_read_in_place(&mut buf, &to, false) <= space);
    }
}

fn reply_seeds() -> Vec<(&'static str, Vec<u8>)> {
    let to = ReplyTo { extended: true, cookie: 9, offset: 4096 };
    let taken_for = |choice: u8, bytes: &[u8]| [&[choice][..], bytes].concat();
    let status = to.block_status(1, &[(4096, 3), (512, 0)], true);
    let plain = ReplyTo { extended: false, ..to };
    vec![
        ("greeting", taken_for(0, &Negotiation::greeting())),
        ("export", taken_for(2, &Info::Export { size_bytes: 1 << 40, flags: 3 }.encode())),
        ("sizes", taken_for(2, &Info::BlockSize { min: 1, preferred: 4096, max: 9 }.encode())),
        ("header", taken_for(4, &status)),
        ("error", taken_for(5, &plain.error(5, "input/output error")[20..])),
        ("status", taken_for(6, &plain.block_status(1, &[(4096, 3)], true)[20..])),
        ("status_ext", taken_for(7, &status[32..])),
    ]
}
