//! Exit codes, and the one error type of the command line.
//!
//! Every failure of every library is mapped here, in exhaustive matches, so that a new kind of
//! failure cannot reach a user without a decision about its exit code.

use std::error::Error as StdError;
use std::fmt::Write as _;
use std::process::ExitCode;

use serde::Serialize;

/// How a command ended. Wrappers rely on the numbers; they never change their meaning.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Exit {
    Done,
    Failed,
    Usage,
    Partial,
    Differs,
    NoRepository,
    WrongKey,
    Damaged,
    Denied,
    NotFound,
    InUse,
    Refused,
    NeedsConfirmation,
    Interrupted,
    Terminated,
}

impl Exit {
    /// Every way a command can end, in the order of the codes.
    pub(crate) const ALL: [Self; 15] = [
        Self::Done,
        Self::Failed,
        Self::Usage,
        Self::Partial,
        Self::Differs,
        Self::NoRepository,
        Self::WrongKey,
        Self::Damaged,
        Self::Denied,
        Self::NotFound,
        Self::InUse,
        Self::Refused,
        Self::NeedsConfirmation,
        Self::Interrupted,
        Self::Terminated,
    ];

    /// The number the process ends with.
    pub(crate) const fn code(self) -> u8 {
        match self {
            Self::Done => 0,
            Self::Failed => 1,
            Self::Usage => 2,
            Self::Partial => 3,
            Self::Differs => 5,
            Self::NoRepository => 10,
            Self::WrongKey => 12,
            Self::Damaged => 13,
            Self::Denied => 15,
            Self::NotFound => 16,
            Self::InUse => 17,
            Self::Refused => 18,
            Self::NeedsConfirmation => 19,
            Self::Interrupted => 130,
            Self::Terminated => 143,
        }
    }

    /// What the number means, for the help texts.
    pub(crate) const fn meaning(self) -> &'static str {
        match self {
            Self::Done => "done, all good",
            Self::Failed => "failed, for a reason not listed here",
            Self::Usage => "wrong usage or configuration",
            Self::Partial => "finished, but some items could not be read, or stay for now",
            Self::Differs => "diff --exit-code: differences exist",
            Self::NoRepository => "there is no repository",
            Self::WrongKey => "wrong key or passphrase",
            Self::Damaged => "damaged data found",
            Self::Denied => "not allowed",
            Self::NotFound => "name not found, or ambiguous",
            Self::InUse => "already exists, or in use",
            Self::Refused => "refused: no space, a missing tool, or a newer format",
            Self::NeedsConfirmation => "needs a confirmation that was not given",
            Self::Interrupted => "interrupted (Ctrl-C)",
            Self::Terminated => "terminated",
        }
    }

    /// The stable name used as `kind` in JSON errors.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Failed => "failed",
            Self::Usage => "usage",
            Self::Partial => "partial",
            Self::Differs => "differs",
            Self::NoRepository => "no_repository",
            Self::WrongKey => "wrong_key",
            Self::Damaged => "damaged",
            Self::Denied => "denied",
            Self::NotFound => "not_found",
            Self::InUse => "in_use",
            Self::Refused => "refused",
            Self::NeedsConfirmation => "needs_confirmation",
            Self::Interrupted => "interrupted",
            Self::Terminated => "terminated",
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit.code())
    }
}

/// The end of a command's help: examples, then the exit codes it can end with.
/// Done, failed and usage are possible everywhere and always listed.
pub(crate) fn help_tail(examples: &str, exits: &[Exit]) -> String {
    let mut text = format!("Examples:\n{examples}\n\nExit codes:\n");
    for exit in [Exit::Done, Exit::Failed, Exit::Usage].iter().chain(exits) {
        let _ = writeln!(text, "  {:<4} {}", exit.code(), exit.meaning());
    }
    text.truncate(text.trim_end().len());
    text
}

/// A failure as the user sees it: what happened, to which object, and what to do next.
#[derive(Debug)]
pub(crate) struct CliError {
    pub(crate) exit: Exit,
    pub(crate) message: String,
    pub(crate) what: Option<String>,
    pub(crate) tries: Vec<String>,
    pub(crate) causes: Vec<String>,
    /// The reader of our output went away: nothing is left to say to it.
    pub(crate) quiet: bool,
}

impl CliError {
    pub(crate) fn new(exit: Exit, message: impl Into<String>) -> Self {
        let message = message.into();
        Self { exit, message, what: None, tries: Vec::new(), causes: Vec::new(), quiet: false }
    }

    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self::new(Exit::Usage, message)
    }

    /// Names the object the failure is about; the first name given stays.
    pub(crate) fn what(mut self, what: impl Into<String>) -> Self {
        self.what.get_or_insert_with(|| what.into());
        self
    }

    /// Adds a next command or step, given only when it can help.
    pub(crate) fn hint(mut self, next: impl Into<String>) -> Self {
        self.tries.push(next.into());
        self
    }

    /// Adds the error's chain of causes, each text once.
    pub(crate) fn because(mut self, error: &dyn StdError) -> Self {
        let mut next = Some(error);
        while let Some(cause) = next {
            let text = cause.to_string();
            let told =
                self.message.contains(&text) || self.causes.iter().any(|c| c.contains(&text));
            if !text.is_empty() && !told {
                self.causes.push(text);
            }
            next = cause.source();
        }
        self
    }

    /// An operating system error about a named object.
    pub(crate) fn io(message: impl Into<String>, error: &std::io::Error) -> Self {
        use std::io::ErrorKind as Io;
        let exit = match error.kind() {
            Io::NotFound => Exit::NotFound,
            Io::PermissionDenied | Io::ReadOnlyFilesystem => Exit::Denied,
            Io::AlreadyExists | Io::ResourceBusy | Io::AddrInUse => Exit::InUse,
            Io::StorageFull | Io::QuotaExceeded => Exit::Refused,
            _ => Exit::Failed,
        };
        Self::new(exit, message).because(error)
    }

    /// Writing the output failed. A reader that went away has what it wanted, as with `| head`.
    pub(crate) fn output(error: &std::io::Error) -> Self {
        let gone = error.kind() == std::io::ErrorKind::BrokenPipe;
        let exit = if gone { Exit::Done } else { Exit::Failed };
        let mut made = Self::new(exit, "cannot write the output").because(error);
        made.quiet = gone;
        made
    }

    /// The text for people, without colour.
    pub(crate) fn for_people(&self) -> String {
        use crate::output::clean;
        let mut text = String::new();
        if let Some(what) = &self.what {
            let _ = writeln!(text, "  what   {}", clean(what));
        }
        for cause in &self.causes {
            let _ = writeln!(text, "  cause  {}", clean(cause));
        }
        for (nth, next) in self.tries.iter().enumerate() {
            let label = if nth == 0 { "try" } else { "" };
            let _ = writeln!(text, "  {label:<5}  {}", clean(next));
        }
        text
    }

    /// The same as a JSON object on one line; the fields are stable.
    pub(crate) fn for_programs(&self) -> String {
        serde_json::json!({
            "error": {
                "code": self.exit.code(),
                "kind": self.exit.name(),
                "message": self.message,
                "what": self.what,
                "causes": self.causes,
                "try": self.tries,
            }
        })
        .to_string()
    }
}

impl From<backstay_store::Error> for CliError {
    fn from(error: backstay_store::Error) -> Self {
        use backstay_store::ErrorKind as Store;
        let exit = match error.kind() {
            Store::NotFound => Exit::NotFound,
            Store::Exists | Store::Busy => Exit::InUse,
            Store::WrongKey => Exit::WrongKey,
            Store::NeedsKey | Store::Invalid => Exit::Usage,
            Store::Damaged => Exit::Damaged,
            Store::NoSpace | Store::Unsupported | Store::Locked => Exit::Refused,
            Store::Denied => Exit::Denied,
            Store::Io | Store::Fenced => Exit::Failed,
            Store::Aborted => Exit::Interrupted,
        };
        with_remedy(full(Self::new(exit, error.to_string()).because(&error), &error))
    }
}

impl From<backstay_core::Error> for CliError {
    fn from(error: backstay_core::Error) -> Self {
        use backstay_core::ErrorKind as Core;
        let exit = match error.kind() {
            Core::NotFound | Core::Ambiguous => Exit::NotFound,
            Core::Invalid => Exit::Usage,
            Core::Exists | Core::InUse | Core::Busy | Core::SourceChanged => Exit::InUse,
            Core::Unsupported | Core::NoSpace => Exit::Refused,
            Core::Damaged => Exit::Damaged,
            Core::WrongKey => Exit::WrongKey,
            Core::Denied => Exit::Denied,
            Core::Cancelled => Exit::Interrupted,
            // Io and Tool, and whatever a later engine adds: "unknown codes mean failure".
            _ => Exit::Failed,
        };
        with_remedy(full(Self::new(exit, error.to_string()).because(&error), &error))
    }
}

impl From<backstay_daemon::Error> for CliError {
    fn from(error: backstay_daemon::Error) -> Self {
        use backstay_daemon::ErrorKind as Daemon;
        let exit = match error.kind() {
            Daemon::Busy => Exit::InUse,
            Daemon::Mountpoint | Daemon::NotFound => Exit::NotFound,
            Daemon::Denied => Exit::Denied,
            Daemon::Unsupported => Exit::Refused,
            Daemon::Repository => below_daemon(&error),
            _ => Exit::Failed,
        };
        with_remedy(Self::new(exit, error.to_string()).because(&error))
    }
}

impl From<backstay_guestfs::Error> for CliError {
    fn from(error: backstay_guestfs::Error) -> Self {
        use backstay_guestfs::ErrorKind as Guest;
        let exit = match error.kind() {
            Guest::NotFound => Exit::NotFound,
            Guest::NotADirectory | Guest::IsADirectory | Guest::Invalid => Exit::Usage,
            Guest::Damaged | Guest::Limit => Exit::Damaged,
            Guest::Unsupported | Guest::Encrypted => Exit::Refused,
            _ => Exit::Failed,
        };
        Self::new(exit, error.to_string())
    }
}

impl From<backstay_api::Refusal> for CliError {
    fn from(refusal: backstay_api::Refusal) -> Self {
        use backstay_api::RefusalKind as Kind;
        let exit = match refusal.kind {
            Kind::Usage | Kind::NeedsKey => Exit::Usage,
            Kind::NoRepository => Exit::NoRepository,
            Kind::WrongKey => Exit::WrongKey,
            Kind::Damaged => Exit::Damaged,
            Kind::Denied => Exit::Denied,
            Kind::NotFound => Exit::NotFound,
            Kind::InUse => Exit::InUse,
            Kind::Refused => Exit::Refused,
            Kind::NeedsConfirmation => Exit::NeedsConfirmation,
            Kind::Failed => Exit::Failed,
        };
        let mut made = Self::new(exit, refusal.message);
        made.what = refusal.what;
        made.causes = refusal.causes;
        made.tries = refusal.tries;
        // The daemon tells the next step where it knows one.
        if made.tries.is_empty() { with_remedy(made) } else { made }
    }
}

impl From<backstay_api::ClientError> for CliError {
    fn from(error: backstay_api::ClientError) -> Self {
        match error {
            backstay_api::ClientError::Refused(refusal) => refusal.into(),
            other => Self::new(Exit::Failed, other.to_string()).because(&other),
        }
    }
}

/// The repository's own verdict, when a mount failed because of it.
fn below_daemon(error: &dyn StdError) -> Exit {
    match error.source().and_then(|source| source.downcast_ref::<backstay_store::Error>()) {
        Some(source) if source.kind() == backstay_store::ErrorKind::Damaged => Exit::Damaged,
        Some(source) if source.kind() == backstay_store::ErrorKind::NotFound => Exit::NotFound,
        _ => Exit::Failed,
    }
}

/// Adds what helps where the storage of the repository is full, and not another disk.
fn full(told: CliError, error: &(dyn StdError + 'static)) -> CliError {
    use backstay_store::{Error, ErrorKind};
    let mut next = Some(error);
    while let Some(cause) = next {
        if cause.downcast_ref::<Error>().is_some_and(|e| e.kind() == ErrorKind::NoSpace) {
            return told
                .hint("remove recovery points and collect what they held, or add space")
                .hint("what is there can be listed, checked, mounted and restored meanwhile");
        }
        next = cause.source();
    }
    told
}

/// Adds the usual next step of a kind of failure, where there is one.
fn with_remedy(error: CliError) -> CliError {
    match error.exit {
        Exit::WrongKey => error
            .hint("backstay repo key list      shows which keys open this repository")
            .hint(
                "check --key-file, --passphrase-file, --passphrase-command or BACKSTAY_PASSPHRASE",
            )
            .hint("--recovery-key-file FILE    opens it when every other key is lost"),
        Exit::Damaged => error
            .hint("backstay repo verify      names everything that is damaged")
            .hint("backstay repo repair      stores again what any source still has"),
        Exit::Refused => error,
        Exit::Denied => error.hint("run as a user, or with keys, that may read and write there"),
        Exit::Done
        | Exit::Failed
        | Exit::Usage
        | Exit::Partial
        | Exit::Differs
        | Exit::NoRepository
        | Exit::NotFound
        | Exit::InUse
        | Exit::NeedsConfirmation
        | Exit::Interrupted
        | Exit::Terminated => error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_distinct_and_in_order() {
        let codes: Vec<u8> = Exit::ALL.iter().map(|exit| exit.code()).collect();
        assert!(codes.windows(2).all(|pair| pair[0] < pair[1]), "{codes:?}");
    }

    #[test]
    fn each_cause_is_told_once() {
        let io = std::io::Error::other("the wire is cut");
        let below = backstay_store::Error::io("cannot read pack 7", io);
        let above = below.context("cannot restore disk0");
        let told = CliError::from(above).what("web01").hint("first").hint("second");
        assert_eq!(told.message, "cannot restore disk0");
        assert_eq!(told.causes, ["cannot read pack 7", "the wire is cut"]);
        let text = told.for_people();
        assert_eq!(
            text,
            "  what   web01\n  cause  cannot read pack 7\n  cause  the wire is cut\n\
             \x20 try    first\n         second\n"
        );
        // Libraries that put the cause into their own text are not repeated.
        let doubled = std::io::Error::other("cannot listen: in use");
        assert!(
            CliError::new(Exit::Failed, "cannot listen: in use")
                .because(&doubled)
                .causes
                .is_empty()
        );
    }

    #[test]
    fn json_errors_have_the_agreed_fields() {
        let told = CliError::usage("no").what("x").hint("yes").for_programs();
        let document: serde_json::Value = serde_json::from_str(&told).expect("JSON");
        let error = &document["error"];
        assert_eq!((&error["code"], &error["kind"]), (&2.into(), &"usage".into()));
        assert_eq!((&error["what"], &error["try"][0]), (&"x".into(), &"yes".into()));
    }
}
