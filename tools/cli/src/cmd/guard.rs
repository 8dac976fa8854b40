//! `backstay guard`, hidden: stays beside a FUSE mount and takes it away if its server dies.

use std::path::PathBuf;

use backstay_daemon::fuse::{MountIdentity, guardian_main};

use crate::context::Ctx;
use crate::exit::{CliError, Exit, help_tail};

/// Wait for the end of standard input, then take a dead mount away (started by mount image)
#[derive(Debug, clap::Args)]
#[command(after_help = help_tail("  (mount image starts it; nobody else needs to)", &[]))]
pub(crate) struct Args {
    /// The directory the mount is on
    mountpoint: PathBuf,

    /// Which mount it is in the kernel's table
    identity: String,
}

pub(crate) fn run(_ctx: &Ctx, args: Args) -> Result<Exit, CliError> {
    let identity: MountIdentity = args
        .identity
        .parse()
        .map_err(|error| CliError::usage("not the identity of a mount").because(&error))?;
    guardian_main(&args.mountpoint, identity)?;
    Ok(Exit::Done)
}
