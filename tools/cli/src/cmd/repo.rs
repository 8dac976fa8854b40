//! `backstay repo`.

mod check;
mod finding;
mod init;
mod key;
mod list;
mod parity;
mod repair;
mod show;
mod verify;

use crate::context::Ctx;
use crate::exit::{CliError, Exit};

/// Make, show, check, verify and repair repositories, and manage their keys
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
    Verify(verify::Args),
    Repair(repair::Args),
    Parity(parity::Args),
    Key(key::Args),
}

pub(crate) fn run(ctx: &Ctx, args: Args) -> Result<Exit, CliError> {
    match args.what {
        What::Init(args) => init::run(ctx, args),
        What::List(args) => list::run(ctx, args),
        What::Show(args) => show::run(ctx, args),
        What::Check(args) => check::run(ctx, args),
        What::Verify(args) => verify::run(ctx, args),
        What::Repair(args) => repair::run(ctx, args),
        What::Parity(args) => parity::run(ctx, args),
        What::Key(args) => key::run(ctx, args),
    }
}
