//! `backstay mount extend`.

use backstay_api::mountd::Request;
use backstay_core::retention::Length;

use super::{nbd, shown};
use crate::context::Ctx;
use crate::exit::{CliError, Exit, help_tail};
use crate::mountd;

/// Give a mount more time, or more space to write to
#[derive(Debug, clap::Args)]
#[command(after_help = help_tail(
    "  backstay mount extend m-4x7kq2 --for 2h
  backstay mount extend m-4x7kq2 --limit 100G",
    &[Exit::Denied, Exit::NotFound, Exit::InUse]
))]
pub(crate) struct Args {
    /// The mount's name, as mount list shows it
    mount: String,

    /// End it this long from now
    #[arg(long = "for", value_name = "LENGTH", conflicts_with = "no_end")]
    for_length: Option<Length>,

    /// Let it have no end
    #[arg(long)]
    no_end: bool,

    /// Most that may be written in all; 0 for no limit
    #[arg(long, value_name = "SIZE", value_parser = crate::units::parse_size)]
    limit: Option<u64>,
}

pub(crate) fn run(ctx: &Ctx, args: Args) -> Result<Exit, CliError> {
    let for_seconds = match &args.for_length {
        Some(length) => Some(nbd::seconds(length, "--for")?),
        None => args.no_end.then_some(0),
    };
    if for_seconds.is_none() && args.limit.is_none() {
        return Err(CliError::usage("nothing is to be changed")
            .hint("--for 2h")
            .hint("--limit 100G"));
    }
    let request = Request::Extend { id: args.mount, for_seconds, limit_bytes: args.limit };
    let view = mountd::ask_mount(ctx, &request)?;
    shown::mounted(ctx, &view)?;
    Ok(Exit::Done)
}
