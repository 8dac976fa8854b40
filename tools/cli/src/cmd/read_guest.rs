//! `backstay read-guest`, hidden: reads file systems of guests in a process apart.

use std::process::ExitCode;

use crate::exit::{CliError, Exit, help_tail};

/// Read the file systems of guests for the process at standard input (started by ls, cat, get and mount files)
#[derive(Debug, clap::Args)]
#[command(after_help = help_tail("  (other commands start it; nobody else needs to)", &[]))]
pub(crate) struct Args {}

pub(crate) fn run() -> Result<Exit, CliError> {
    if backstay_guestfs::apart::reader_main() == ExitCode::SUCCESS {
        return Ok(Exit::Done);
    }
    Err(CliError::usage("nobody is at standard input who wants something read"))
}
