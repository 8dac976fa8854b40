//! `backstay mount kick`.

use std::str::FromStr;

use backstay_api::mountd::Request;

use super::shown;
use crate::context::Ctx;
use crate::exit::{CliError, Exit, help_tail};
use crate::mountd;

/// End sessions of an iSCSI mount
///
/// Initiators log in again by themselves, most of them within seconds: who is to stay out must be kept out by the
/// mount's rules. What is kicked loses commands that were under way, as with a cable that was pulled.
#[derive(Debug, clap::Args)]
#[command(after_help = help_tail(
    "  backstay mount kick m-4x7kq2 3
  backstay mount kick m-4x7kq2 all",
    &[Exit::Denied, Exit::NotFound]
))]
pub(crate) struct Args {
    /// The mount's name, as mount list shows it
    mount: String,

    /// The session's number, as mount show has it, or all
    session: Which,
}

/// Which sessions are meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Which(Option<u16>);

impl FromStr for Which {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "all" => Ok(Self(None)),
            number => number
                .parse()
                .map(|number| Self(Some(number)))
                .map_err(|_| "this is neither the number of a session nor all".to_owned()),
        }
    }
}

pub(crate) fn run(ctx: &Ctx, args: Args) -> Result<Exit, CliError> {
    let view = mountd::ask_mount(ctx, &Request::Kick { id: args.mount, session: args.session.0 })?;
    shown::details(ctx, &view)?;
    Ok(Exit::Done)
}
