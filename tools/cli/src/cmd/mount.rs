//! `backstay mount`.

mod image;
mod nbd;

use crate::context::Ctx;
use crate::exit::{CliError, Exit};

/// Open recovery points: as files, or as a network block device
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    how: How,
}

#[derive(Debug, clap::Subcommand)]
enum How {
    Image(image::Args),
    Nbd(nbd::Args),
}

pub(crate) fn run(ctx: &Ctx, args: Args) -> Result<Exit, CliError> {
    match args.how {
        How::Image(args) => image::run(ctx, args),
        How::Nbd(args) => nbd::run(ctx, args),
    }
}
