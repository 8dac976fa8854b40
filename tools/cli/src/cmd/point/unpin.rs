//! `backstay point unpin`.

use backstay_store::{ErrorKind, PinId, Repository};
use serde::Serialize;

use crate::cmd::view;
use crate::context::Ctx;
use crate::exit::{CliError, Exit, help_tail};
use crate::output::Stream;

/// Take a pin away; its recovery point can then be removed
#[derive(Debug, clap::Args)]
#[command(after_help = help_tail(
    "  backstay point unpin 3k9d2m",
    &[Exit::NoRepository, Exit::WrongKey, Exit::Damaged, Exit::Denied, Exit::NotFound]
))]
pub(crate) struct Args {
    /// The pin's id or its beginning, six letters at least, as point pins shows it. A pin that
    /// cannot be read is named by its whole id
    pin: String,
}

#[derive(Serialize)]
struct Document {
    unpinned: String,
}

pub(crate) fn run(ctx: &Ctx, args: Args) -> Result<Exit, CliError> {
    let repository = ctx.open()?;
    let told = |error: CliError| {
        error.what(args.pin.clone()).hint("backstay point pins      shows the pins")
    };
    let id = find(&repository, &args.pin).map_err(told)?;
    repository.unpin(id).map_err(|error| told(CliError::from(error)))?;
    let document = Document { unpinned: id.to_string() };
    ctx.out.summary(Stream::Stdout, &document, |to| {
        to.push_str(&format!("took pin {} away\n", document.unpinned));
    })?;
    Ok(Exit::Done)
}

fn find(repository: &Repository, text: &str) -> Result<PinId, CliError> {
    match repository.pins() {
        Ok(pins) => view::by_prefix("pin", text, pins.iter().map(|pin| pin.id)),
        Err(error) if error.kind() == ErrorKind::Damaged => {
            text.parse().map_err(|_| CliError::from(error))
        }
        Err(error) => Err(error.into()),
    }
}
