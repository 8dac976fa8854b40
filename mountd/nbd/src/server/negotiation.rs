//! What the server answers in the handshake (proto.md, "Fixed newstyle negotiation"), without I/O:
//! bytes in, answers and questions out. Whoever drives it reads, writes, and asks the exports.

use backstay_blockdev::{Caps, Geometry};

use super::ExportInfo;
use crate::error::{Error, ErrorKind};
use crate::proto::handshake::{
    CLIENT_FIXED_NEWSTYLE, CLIENT_NO_ZEROES, EXPORT_NAME_ZEROES, FLAG_FIXED_NEWSTYLE,
    FLAG_NO_ZEROES, GREETING_BYTES, Info, InfoRequest, MetaContextRequest, OPTION_HEADER_BYTES,
    OptionHeader, decode_export_name, encode_greeting, encode_meta_context, encode_option_reply,
    encode_server, info, option, reply,
};
use crate::proto::transmission::flag;
use crate::proto::{
    BACKSTAY_PRESENCE, BASE_ALLOCATION, MAX_OPTION_BYTES, MAX_OPTIONS, MAX_PAYLOAD_BYTES,
    MAX_STRING_BYTES,
};

/// An option too long for us is skipped up to this length, so that its sender can be told; beyond it
/// the connection ends.
const MAX_SKIPPED_BYTES: u32 = 64 << 10;
/// The id of base:allocation.
pub(super) const ALLOCATION_ID: u32 = 1;
/// The id of backstay:presence.
pub(super) const PRESENCE_ID: u32 = 2;
/// Exports named in one LIST; a server with more needs another way to browse them.
const MAX_LISTED: usize = 10_000;

/// When a connection must be encrypted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TlsPolicy {
    /// It cannot be.
    Off,
    /// It may be.
    Allowed,
    /// Nothing is told before it is.
    Required,
}

/// What both sides have agreed on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Agreed {
    /// As the client called it.
    pub(crate) export: String,
    pub(crate) structured: bool,
    /// Extended headers, which imply structured replies.
    pub(crate) extended: bool,
    pub(crate) contexts: Contexts,
}

/// Metadata contexts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Contexts {
    pub(crate) allocation: bool,
    pub(crate) presence: bool,
}

impl Contexts {
    pub(crate) fn any(self) -> bool {
        self.allocation || self.presence
    }
}

/// What the negotiation must know to go on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Question {
    /// All exports; answer with [`Negotiation::listed`].
    List,
    /// Whether there is an export of this name, without opening it; [`Negotiation::known`].
    Known(String),
    /// Open an export; [`Negotiation::opened`].
    Open {
        /// Its name.
        export: String,
        /// Its entry in the list is wanted too.
        described: bool,
    },
}

/// What an export that was opened is like.
#[derive(Debug, Clone)]
pub(crate) struct Facts {
    pub(crate) geometry: Geometry,
    pub(crate) caps: Caps,
    /// Its entry in the list, if it was asked for and is there.
    pub(crate) own: Option<ExportInfo>,
}

/// What to do next, after the replies are sent.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Give it more: at least this many bytes in all.
    More(usize),
    /// Call it again with what is left.
    Again,
    /// Answer a question.
    Ask(Question),
    /// Start TLS: nothing unencrypted may be behind what was consumed.
    StartTls,
    /// The transmission phase, with the device opened last.
    Transmission(Agreed),
    /// The end, in good order.
    End,
}

/// What the client has asked for so far.
#[derive(Debug, Default)]
struct Wishes {
    structured: bool,
    extended: bool,
    /// The contexts chosen, and the export they were chosen for.
    contexts: Option<(String, Contexts)>,
}

#[derive(Debug)]
enum Phase {
    Flags,
    Option,
    /// The payload of an option that is too long.
    Skip {
        option: u32,
        left: usize,
    },
    /// Waiting for the list.
    List,
    /// Waiting to hear whether an export is known.
    Known {
        option: u32,
        request: MetaContextRequest,
    },
    /// Waiting for an export.
    Open {
        option: u32,
        request: InfoRequest,
    },
    Over,
}

/// The server's side of one handshake.
#[derive(Debug)]
pub(crate) struct Negotiation {
    tls: TlsPolicy,
    /// TLS is there.
    secure: bool,
    fixed: bool,
    no_zeroes: bool,
    options: usize,
    wishes: Wishes,
    phase: Phase,
    out: Vec<u8>,
}

impl Negotiation {
    pub(crate) fn new(tls: TlsPolicy) -> Self {
        let wishes = Wishes::default();
        let (secure, fixed, no_zeroes, options) = (false, false, false, 0);
        let (phase, out) = (Phase::Flags, Vec::new());
        Self { tls, secure, fixed, no_zeroes, options, wishes, phase, out }
    }

    /// The server's first words.
    pub(crate) fn greeting() -> [u8; GREETING_BYTES] {
        encode_greeting(FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES)
    }

    /// What is to be sent, before anything else is done.
    pub(crate) fn take_replies(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.out)
    }

    /// Takes what the client has sent; answers how much of it is used up, and what to do next. Must
    /// not be called while a question is open. An error ends the connection.
    pub(crate) fn input(&mut self, bytes: &[u8]) -> Result<(usize, Step), Error> {
        match &mut self.phase {
            Phase::Flags => {
                let Some(flags) = bytes.first_chunk() else { return Ok((0, Step::More(4))) };
                self.client_flags(u32::from_be_bytes(*flags))?;
                Ok((4, Step::Again))
            }
            Phase::Skip { option, left } => {
                let n = bytes.len().min(*left);
                *left -= n;
                if *left > 0 {
                    return Ok((n, Step::More(1)));
                }
                let option = *option;
                self.phase = Phase::Option;
                self.refuse(option, reply::ERR_TOO_BIG, "the option is too long");
                Ok((n, Step::Again))
            }
            Phase::Option => self.option(bytes),
            _ => Ok((0, Step::End)),
        }
    }

    fn client_flags(&mut self, flags: u32) -> Result<(), Error> {
        if flags & !(CLIENT_FIXED_NEWSTYLE | CLIENT_NO_ZEROES) != 0 {
            return Err(Error::protocol(format!("unknown client flags {flags:#x}")));
        }
        self.no_zeroes = flags & CLIENT_NO_ZEROES != 0;
        self.fixed = flags & CLIENT_FIXED_NEWSTYLE != 0;
        self.phase = Phase::Option;
        Ok(())
    }

    fn option(&mut self, bytes: &[u8]) -> Result<(usize, Step), Error> {
        if self.options == MAX_OPTIONS {
            return Err(Error::protocol(format!("more than {MAX_OPTIONS} options")));
        }
        let Some(head) = bytes.first_chunk() else {
            return Ok((0, Step::More(OPTION_HEADER_BYTES)));
        };
        let OptionHeader { option, len } =
            OptionHeader::decode(head).map_err(|e| Error::codec("bad option", e))?;
        let whole = OPTION_HEADER_BYTES + len as usize;
        let too_long = len as usize > MAX_OPTION_BYTES;
        if !too_long && bytes.len() < whole {
            return Ok((0, Step::More(whole)));
        }
        self.options += 1;
        if !self.fixed && option != option::EXPORT_NAME {
            let why = "an option of a client that does not speak fixed newstyle";
            return Err(Error::protocol(why));
        }
        if too_long {
            if len > MAX_SKIPPED_BYTES || option == option::EXPORT_NAME {
                return Err(Error::protocol(format!(
                    "option {option} of {len} bytes: longer than anything we take"
                )));
            }
            self.phase = Phase::Skip { option, left: len as usize };
            return Ok((OPTION_HEADER_BYTES, Step::Again));
        }
        let step = self.answer(option, &bytes[OPTION_HEADER_BYTES..whole])?;
        Ok((whole, step))
    }

    fn answer(&mut self, option: u32, payload: &[u8]) -> Result<Step, Error> {
        if option == option::ABORT {
            encode_option_reply(&mut self.out, option, reply::ACK, &[]);
            self.phase = Phase::Over;
            return Ok(Step::End);
        }
        if self.tls == TlsPolicy::Required && !self.secure && option != option::STARTTLS {
            // proto.md, "FORCEDTLS mode": EXPORT_NAME has no error reply.
            if option == option::EXPORT_NAME {
                return Err(Error::protocol("a client that does not start TLS"));
            }
            self.refuse(option, reply::ERR_TLS_REQD, "this server wants TLS");
            return Ok(Step::Again);
        }
        match option {
            option::EXPORT_NAME => return self.export_name(payload),
            option::INFO | option::GO => match InfoRequest::decode(payload) {
                Ok(request) => {
                    let wants = |what| request.wants.contains(&what);
                    let described = wants(info::NAME) || wants(info::DESCRIPTION);
                    let export = request.export.clone();
                    self.phase = Phase::Open { option, request };
                    return Ok(Step::Ask(Question::Open { export, described }));
                }
                Err(error) => self.refuse(option, reply::ERR_INVALID, &error.to_string()),
            },
            option::STARTTLS if self.tls == TlsPolicy::Off => {
                self.refuse(option, reply::ERR_UNSUP, "this server has no TLS");
            }
            option::LIST_META_CONTEXT | option::SET_META_CONTEXT => {
                return Ok(self.meta_context(option, payload));
            }
            option::LIST
            | option::STARTTLS
            | option::STRUCTURED_REPLY
            | option::EXTENDED_HEADERS
                if !payload.is_empty() =>
            {
                self.refuse(option, reply::ERR_INVALID, "this option has no payload");
            }
            option::LIST => {
                self.phase = Phase::List;
                return Ok(Step::Ask(Question::List));
            }
            option::STARTTLS if self.secure => {
                self.refuse(option, reply::ERR_INVALID, "there is TLS already");
            }
            option::STARTTLS => {
                encode_option_reply(&mut self.out, option, reply::ACK, &[]);
                return Ok(Step::StartTls);
            }
            option::STRUCTURED_REPLY | option::EXTENDED_HEADERS => self.headers(option),
            // Whatever will come.
            _ => self.refuse(option, reply::ERR_UNSUP, "the option is not supported"),
        }
        Ok(Step::Again)
    }

    /// TLS is there: everything that was agreed on without it counts for nothing (CVE-2021-3716).
    pub(crate) fn secured(&mut self) {
        self.secure = true;
        self.wishes = Wishes::default();
    }

    fn refuse(&mut self, option: u32, error: u32, why: &str) {
        encode_option_reply(&mut self.out, option, error, why.as_bytes());
    }

    fn headers(&mut self, option: u32) {
        if option == option::STRUCTURED_REPLY {
            if self.wishes.extended {
                let why = "extended headers have been chosen";
                return self.refuse(option, reply::ERR_EXT_HEADER_REQD, why);
            }
            self.wishes.structured = true;
        } else {
            if self.wishes.extended {
                let why = "extended headers have been chosen already";
                return self.refuse(option, reply::ERR_INVALID, why);
            }
            self.wishes.extended = true;
            self.wishes.structured = true;
        }
        encode_option_reply(&mut self.out, option, reply::ACK, &[]);
    }

    fn export_name(&mut self, payload: &[u8]) -> Result<Step, Error> {
        // There is no error reply to this option: to refuse is to hang up.
        let name = decode_export_name(payload).map_err(|e| Error::codec("bad export name", e))?;
        if self.wishes.extended {
            let why = "EXPORT_NAME of a client that has chosen extended headers";
            return Err(Error::protocol(why));
        }
        let request = InfoRequest { export: name.to_owned(), wants: Vec::new() };
        self.phase = Phase::Open { option: option::EXPORT_NAME, request };
        Ok(Step::Ask(Question::Open { export: name.to_owned(), described: false }))
    }

    fn meta_context(&mut self, option: u32, payload: &[u8]) -> Step {
        if option == option::SET_META_CONTEXT {
            // Each SET replaces what the one before had chosen, also when it fails.
            self.wishes.contexts = None;
        }
        if !self.wishes.structured {
            self.refuse(option, reply::ERR_INVALID, "structured replies must be chosen first");
            return Step::Again;
        }
        match MetaContextRequest::decode(payload) {
            Ok(request) => {
                let export = request.export.clone();
                self.phase = Phase::Known { option, request };
                Step::Ask(Question::Known(export))
            }
            Err(error) => {
                self.refuse(option, reply::ERR_INVALID, &error.to_string());
                Step::Again
            }
        }
    }

    /// The answer to [`Question::List`].
    pub(crate) fn listed(&mut self, exports: Vec<ExportInfo>) -> Step {
        let Phase::List = std::mem::replace(&mut self.phase, Phase::Option) else {
            return self.out_of_step();
        };
        for export in exports.into_iter().take(MAX_LISTED) {
            if export.name.len() <= MAX_STRING_BYTES {
                let payload = encode_server(&export.name, cut(&export.description));
                encode_option_reply(&mut self.out, option::LIST, reply::SERVER, &payload);
            }
        }
        encode_option_reply(&mut self.out, option::LIST, reply::ACK, &[]);
        Step::Again
    }

    /// The answer to [`Question::Known`]: `None` if there is none of that name, else whether it will
    /// tell its presence.
    pub(crate) fn known(&mut self, presence: Option<bool>) -> Step {
        let phase = std::mem::replace(&mut self.phase, Phase::Option);
        let Phase::Known { option, request } = phase else {
            return self.out_of_step();
        };
        let Some(presence) = presence else {
            self.refuse(option, reply::ERR_UNKNOWN, "there is no such export");
            return Step::Again;
        };
        let set = option == option::SET_META_CONTEXT;
        let asked = |namespace: &str, name: &str| {
            let asked = |query: &String| query == name || (!set && query == namespace);
            request.queries.iter().any(asked) || (!set && request.queries.is_empty())
        };
        let contexts = Contexts {
            allocation: asked("base:", BASE_ALLOCATION),
            presence: presence && asked("backstay:", BACKSTAY_PRESENCE),
        };
        for (on, id, name) in [
            (contexts.allocation, ALLOCATION_ID, BASE_ALLOCATION),
            (contexts.presence, PRESENCE_ID, BACKSTAY_PRESENCE),
        ] {
            if on {
                let payload = encode_meta_context(if set { id } else { 0 }, name);
                encode_option_reply(&mut self.out, option, reply::META_CONTEXT, &payload);
            }
        }
        if set {
            self.wishes.contexts = Some((request.export, contexts));
        }
        encode_option_reply(&mut self.out, option, reply::ACK, &[]);
        Step::Again
    }

    /// The answer to [`Question::Open`]; the error is text for the client.
    pub(crate) fn opened(&mut self, facts: Result<Facts, &'static str>) -> Result<Step, Error> {
        let phase = std::mem::replace(&mut self.phase, Phase::Option);
        let Phase::Open { option, request } = phase else { return Ok(self.out_of_step()) };
        let facts = match facts {
            Ok(facts) => facts,
            Err(why) if option == option::EXPORT_NAME => {
                let context = format!("export {:?}: {why}", request.export);
                return Err(Error::new(ErrorKind::Refused, context));
            }
            Err(why) => {
                self.refuse(option, reply::ERR_UNKNOWN, why);
                return Ok(Step::Again);
            }
        };
        let agreed = self.agreed(&request.export);
        let size_bytes = facts.geometry.size_bytes;
        let flags = transmission_flags(&facts.caps, &agreed);
        if option == option::EXPORT_NAME {
            self.out.extend_from_slice(&size_bytes.to_be_bytes());
            self.out.extend_from_slice(&flags.to_be_bytes());
            if !self.no_zeroes {
                self.out.resize(self.out.len() + EXPORT_NAME_ZEROES, 0);
            }
        } else {
            let export = Info::Export { size_bytes, flags };
            for item in std::iter::once(export).chain(wanted(&request, &facts)) {
                encode_option_reply(&mut self.out, option, reply::INFO, &item.encode());
            }
            encode_option_reply(&mut self.out, option, reply::ACK, &[]);
        }
        if option == option::INFO {
            return Ok(Step::Again);
        }
        self.phase = Phase::Over;
        Ok(Step::Transmission(agreed))
    }

    fn agreed(&self, export: &str) -> Agreed {
        // proto.md, "NBD_OPT_SET_META_CONTEXT": contexts of another export count for nothing.
        let contexts = match &self.wishes.contexts {
            Some((own, contexts)) if own == export => *contexts,
            _ => Contexts::default(),
        };
        Agreed {
            export: export.to_owned(),
            structured: self.wishes.structured,
            extended: self.wishes.extended,
            contexts,
        }
    }

    /// An answer that nobody asked for: a mistake of the driver, which ends the connection.
    fn out_of_step(&mut self) -> Step {
        self.phase = Phase::Over;
        Step::End
    }
}

/// The items of information a client wants besides the one it always gets.
fn wanted(request: &InfoRequest, facts: &Facts) -> Vec<Info> {
    let mut items = Vec::new();
    if request.wants.contains(&info::BLOCK_SIZE) {
        items.push(Info::BlockSize {
            min: facts.geometry.min_block_bytes,
            preferred: facts.geometry.preferred_block_bytes,
            max: facts.geometry.max_request_bytes.min(MAX_PAYLOAD_BYTES),
        });
    }
    if request.wants.contains(&info::NAME) {
        let name = facts.own.as_ref().map_or(&request.export, |export| &export.name);
        items.push(Info::Name(cut(name).to_owned()));
    }
    if let Some(export) = facts.own.as_ref().filter(|_| request.wants.contains(&info::DESCRIPTION))
    {
        items.push(Info::Description(cut(&export.description).to_owned()));
    }
    items
}

/// A text within the protocol's limit.
fn cut(text: &str) -> &str {
    let mut end = text.len().min(MAX_STRING_BYTES);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

/// proto.md, "Transmission flags", for a device.
fn transmission_flags(caps: &Caps, agreed: &Agreed) -> u16 {
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
        (agreed.structured, flag::SEND_DF),
        (caps.multi_conn, flag::CAN_MULTI_CONN),
        (true, flag::SEND_CACHE),
        (writable && caps.write_zeroes && caps.fast_zero, flag::SEND_FAST_ZERO),
        (agreed.extended && agreed.contexts.any(), flag::BLOCK_STATUS_PAYLOAD),
    ];
    flags.into_iter().filter(|(on, _)| *on).fold(0, |all, (_, flag)| all | flag)
}
