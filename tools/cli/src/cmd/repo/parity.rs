//! `backstay repo parity`.

mod add;

use crate::context::Ctx;
use crate::exit::{CliError, Exit};

/// Parity: what damaged packs can be rebuilt from
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    Add(add::Args),
}

pub(crate) fn run(ctx: &Ctx, args: Args) -> Result<Exit, CliError> {
    match args.what {
        What::Add(args) => add::run(ctx, args),
    }
}
