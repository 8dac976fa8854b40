//! `backstay mount show`.

use backstay_api::mountd::Request;

use super::shown;
use crate::context::Ctx;
use crate::exit::{CliError, Exit, help_tail};
use crate::mountd;

/// Show a mount: its addresses, clients, end, and what was written
#[derive(Debug, clap::Args)]
#[command(after_help = help_tail(
    "  backstay mount show m-4x7kq2
  backstay mount show m-4x7kq2 --secrets",
    &[Exit::NotFound]
))]
pub(crate) struct Args {
    /// The mount's name, as mount list shows it
    mount: String,

    /// With the CHAP secrets of an iSCSI mount, and in the commands
    #[arg(long)]
    secrets: bool,
}

pub(crate) fn run(ctx: &Ctx, args: Args) -> Result<Exit, CliError> {
    let view = mountd::ask_mount(ctx, &Request::Show { id: args.mount, secrets: args.secrets })?;
    shown::details(ctx, &view)?;
    Ok(Exit::Done)
}
