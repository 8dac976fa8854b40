//! `backstay point`.

mod pin;
mod pins;
mod remove;
mod unpin;

use crate::context::Ctx;
use crate::exit::{CliError, Exit};

/// Remove recovery points, and pin those that must stay
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    Remove(remove::Args),
    Pin(pin::Args),
    Unpin(unpin::Args),
    Pins(pins::Args),
}

pub(crate) fn run(ctx: &Ctx, args: Args) -> Result<Exit, CliError> {
    match args.what {
        What::Remove(args) => remove::run(ctx, args),
        What::Pin(args) => pin::run(ctx, args),
        What::Unpin(args) => unpin::run(ctx, args),
        What::Pins(args) => pins::run(ctx, args),
    }
}
