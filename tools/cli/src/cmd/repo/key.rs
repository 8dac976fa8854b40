//! `backstay repo key`.

pub(super) mod add;
pub(super) mod list;
pub(super) mod remove;

use backstay_store::KeySlotInfo;

use crate::context::Ctx;
use crate::exit::{CliError, Exit};

/// List, add and remove the keys that open a repository
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    List(list::Args),
    Add(add::Args),
    Remove(remove::Args),
}

pub(crate) fn run(ctx: &Ctx, args: Args) -> Result<Exit, CliError> {
    match args.what {
        What::List(args) => list::run(ctx, args),
        What::Add(args) => add::run(ctx, args),
        What::Remove(args) => remove::run(ctx, args),
    }
}

/// The kind of a key as it is shown.
fn kind(slot: &KeySlotInfo) -> &'static str {
    if slot.passphrase { "passphrase" } else { "key_file" }
}
