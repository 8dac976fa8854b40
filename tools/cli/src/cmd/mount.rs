//! `backstay mount`.

mod clients;
mod end;
mod extend;
mod foreground;
mod image;
mod list;
mod nbd;
mod prune;
mod resume;
mod show;
mod shown;

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
    List(list::Args),
    Show(show::Args),
    Extend(extend::Args),
    End(end::Args),
    Resume(resume::Args),
    Prune(prune::Args),
}

pub(crate) fn run(ctx: &Ctx, args: Args) -> Result<Exit, CliError> {
    match args.how {
        How::Image(args) => image::run(ctx, args),
        How::Nbd(args) => nbd::run(ctx, args),
        How::List(args) => list::run(ctx, args),
        How::Show(args) => show::run(ctx, args),
        How::Extend(args) => extend::run(ctx, args),
        How::End(args) => end::run(ctx, args),
        How::Resume(args) => resume::run(ctx, args),
        How::Prune(args) => prune::run(ctx, args),
    }
}
