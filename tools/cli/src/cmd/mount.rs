//! `backstay mount`.

mod clients;
mod end;
mod extend;
mod files;
mod foreground;
mod image;
mod initiators;
mod iscsi;
mod kick;
mod list;
mod nbd;
mod prune;
mod resume;
mod show;
mod shown;

pub(crate) use files::{ids, range};
pub(crate) use image::guardian;

use crate::context::Ctx;
use crate::exit::{CliError, Exit};

/// Open recovery points: as files, as a network block device, or as an iSCSI target
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    how: How,
}

#[derive(Debug, clap::Subcommand)]
enum How {
    Image(image::Args),
    Files(files::Args),
    Nbd(nbd::Args),
    Iscsi(iscsi::Args),
    List(list::Args),
    Show(show::Args),
    Extend(extend::Args),
    End(end::Args),
    Kick(kick::Args),
    Resume(resume::Args),
    Prune(prune::Args),
}

pub(crate) fn run(ctx: &Ctx, args: Args) -> Result<Exit, CliError> {
    match args.how {
        How::Image(args) => image::run(ctx, args),
        How::Files(args) => files::run(ctx, args),
        How::Nbd(args) => nbd::run(ctx, args),
        How::Iscsi(args) => iscsi::run(ctx, args),
        How::List(args) => list::run(ctx, args),
        How::Show(args) => show::run(ctx, args),
        How::Extend(args) => extend::run(ctx, args),
        How::End(args) => end::run(ctx, args),
        How::Kick(args) => kick::run(ctx, args),
        How::Resume(args) => resume::run(ctx, args),
        How::Prune(args) => prune::run(ctx, args),
    }
}
