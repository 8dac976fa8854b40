//! `backstay repo`.

mod check;
mod init;
mod key;
mod list;
mod show;

use crate::context::Ctx;
use crate::exit::{CliError, Exit};

/// Make, show and check repositories, and manage their keys
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    Init(init::Args),
    List(list::Args),
    Show(show::Args),
    Check(check::Args),
    Key(key::Args),
}

pub(crate) fn run(ctx: &Ctx, args: Args) -> Result<Exit, CliError> {
    match args.what {
        What::Init(args) => init::run(ctx, args),
        What::List(args) => list::run(ctx, args),
        What::Show(args) => show::run(ctx, args),
        What::Check(args) => check::run(ctx, args),
        What::Key(args) => key::run(ctx, args),
    }
}
