//! `backstay retention`.

mod apply;
mod plan;
mod rule;

use crate::context::Ctx;
use crate::exit::{CliError, Exit};

/// Decide which recovery points to keep, and remove the others
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    Plan(plan::Args),
    Apply(apply::Args),
}

pub(crate) fn run(ctx: &Ctx, args: Args) -> Result<Exit, CliError> {
    match args.what {
        What::Plan(args) => plan::run(ctx, args),
        What::Apply(args) => apply::run(ctx, args),
    }
}
