//! `backstay restore`.

mod disk;

use crate::context::Ctx;
use crate::exit::{CliError, Exit};

/// Write disks of a recovery point back
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    Disk(disk::Args),
}

pub(crate) fn run(ctx: &Ctx, args: Args) -> Result<Exit, CliError> {
    match args.what {
        What::Disk(args) => disk::run(ctx, args),
    }
}
