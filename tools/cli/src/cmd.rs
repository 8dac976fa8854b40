//! The commands: one file each, with its arguments and what it does.

pub(crate) mod backup;
pub(crate) mod cat;
pub(crate) mod completion;
pub(crate) mod copy;
pub(crate) mod diff;
pub(crate) mod find;
pub(crate) mod gc;
pub(crate) mod get;
pub(crate) mod guard;
mod keepers;
pub(crate) mod list;
pub(crate) mod ls;
pub(crate) mod man;
pub(crate) mod mount;
pub(crate) mod mountd;
pub(crate) mod point;
pub(crate) mod read_guest;
mod removing;
pub(crate) mod repo;
pub(crate) mod restore;
pub(crate) mod retention;
pub(crate) mod session;
pub(crate) mod show;
pub(crate) mod version;
mod view;

use crate::cli::Command;
use crate::context::Ctx;
use crate::exit::{CliError, Exit};
use crate::signals::Signals;

/// Runs the command the user gave.
pub(crate) fn run(ctx: &Ctx, command: Command) -> Result<Exit, CliError> {
    match command {
        Command::Repo(args) => repo::run(ctx, args),
        Command::Backup(args) => backup::run(ctx, args),
        Command::Copy(args) => copy::run(ctx, args),
        Command::List(args) => list::run(ctx, args),
        Command::Show(args) => show::run(ctx, args),
        Command::Ls(args) => ls::run(ctx, args),
        Command::Cat(args) => cat::run(ctx, args),
        Command::Get(args) => get::run(ctx, args),
        Command::Find(args) => find::run(ctx, args),
        Command::Restore(args) => restore::run(ctx, args),
        Command::Mount(args) => mount::run(ctx, args),
        Command::Mountd(args) => mountd::run(ctx, args),
        Command::Point(args) => point::run(ctx, args),
        Command::Retention(args) => retention::run(ctx, args),
        Command::Gc(args) => gc::run(ctx, args),
        Command::Session(args) => session::run(ctx, args),
        Command::Diff(args) => diff::run(ctx, args),
        Command::Completion(args) => completion::run(ctx, args),
        Command::Man(args) => man::run(ctx, args),
        Command::Version(args) => version::run(ctx, args),
        Command::Guard(args) => guard::run(ctx, args),
        Command::ReadGuest(_) => read_guest::run(),
    }
}

/// An engine error as the user sees it: when work was cancelled, by the signal that asked for it.
fn stopped(error: backstay_core::Error, signals: &Signals) -> CliError {
    let cancelled = error.kind() == backstay_core::ErrorKind::Cancelled;
    match signals.caught() {
        Some(exit) if cancelled => {
            CliError::new(exit, "stopped as asked; nothing half done is left behind")
        }
        _ => CliError::from(error),
    }
}
