//! `backstay mount resume`.

use backstay_api::ClientError;
use backstay_api::RefusalKind;
use backstay_api::mountd::{MountView, Request};

use super::shown;
use crate::context::Ctx;
use crate::exit::{CliError, Exit, help_tail};
use crate::mountd;

/// Serve a mount again that was ended with its overlay kept, or that waits for a key
///
/// It has the same name and addresses as before, and what was written is there.
#[derive(Debug, clap::Args)]
#[command(after_help = help_tail(
    "  backstay mount resume m-4x7kq2
  backstay mount resume m-4x7kq2 --passphrase-file FILE",
    &[Exit::NoRepository, Exit::WrongKey, Exit::Damaged, Exit::Denied, Exit::NotFound, Exit::InUse]
))]
pub(crate) struct Args {
    /// The mount's name, as mount list shows it
    mount: String,
}

pub(crate) fn run(ctx: &Ctx, args: Args) -> Result<Exit, CliError> {
    let view = resume(ctx, &args.mount)?;
    shown::mounted(ctx, &view)?;
    Ok(Exit::Done)
}

fn resume(ctx: &Ctx, id: &str) -> Result<MountView, CliError> {
    let without = Request::Resume { id: id.to_owned(), key: None };
    match mountd::try_or_start(ctx, &without)? {
        Ok(view) => Ok(view),
        Err(ClientError::Refused(refusal)) if refusal.kind == RefusalKind::NeedsKey => {
            let location = refusal.what.clone().unwrap_or_default();
            let key = ctx.key_for_daemon(&Ctx::parse_location(&location)?)?.1;
            let with = Request::Resume { id: id.to_owned(), key: Some(key) };
            mountd::ask_or_start(ctx, &with)
        }
        Err(error) => Err(error.into()),
    }
}
