//! `backstay session`.

mod fence;
mod list;
mod view;

use crate::context::Ctx;
use crate::exit::{CliError, Exit};

pub(crate) use view::{SessionView, table};

/// Show who works with a repository now, and give up what is dead
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    List(list::Args),
    Fence(fence::Args),
}

pub(crate) fn run(ctx: &Ctx, args: Args) -> Result<Exit, CliError> {
    match args.what {
        What::List(args) => list::run(ctx, args),
        What::Fence(args) => fence::run(ctx, args),
    }
}
