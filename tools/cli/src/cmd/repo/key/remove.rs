//! `backstay repo key remove`.

use serde::Serialize;

use crate::context::Ctx;
use crate::exit::{CliError, Exit, help_tail};
use crate::output::Stream;

/// Remove a key; the last one cannot be removed
#[derive(Debug, clap::Args)]
#[command(after_help = help_tail(
    "  backstay repo key remove 3k9d2m7p1q4xw --yes",
    &[
        Exit::NoRepository, Exit::WrongKey, Exit::Denied, Exit::NotFound, Exit::InUse,
        Exit::NeedsConfirmation,
    ]
))]
pub(crate) struct Args {
    /// The key's id, as repo key list shows it
    #[arg(value_name = "KEY")]
    id: String,
}

#[derive(Serialize)]
struct Document {
    removed: String,
}

pub(crate) fn run(ctx: &Ctx, args: Args) -> Result<Exit, CliError> {
    let repository = ctx.open()?;
    let question = format!("whoever holds only key {} can no longer open the repository", args.id);
    ctx.confirm(&question, &args.id)?;
    repository.remove_key(&args.id).map_err(|error| {
        CliError::from(error)
            .what(args.id.clone())
            .hint("backstay repo key list      shows the keys")
    })?;
    let document = Document { removed: args.id };
    ctx.out.summary(Stream::Stdout, &document, |to| {
        to.push_str(&format!("removed key {}\n", document.removed));
    })?;
    Ok(Exit::Done)
}
