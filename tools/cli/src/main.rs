//! The backstay command: backup and instant restore of virtual machine disks.
//!
//! This crate is the only one that knows arguments, environment, terminal and JSON output.
//! `cli` defines the arguments, `cmd` has one file per command, `exit` maps every failure to its
//! exit code, and the libraries below never print.

mod browse;
mod change_map;
mod cli;
mod cmd;
mod context;
mod exit;
mod mountd;
mod output;
mod progress;
mod registry;
mod secret;
mod signals;
mod units;

use std::process::ExitCode;

fn main() -> ExitCode {
    let parsed = match cli::parse() {
        Ok(parsed) => parsed,
        Err(code) => return code,
    };
    let ctx = context::Ctx::new(parsed.global);
    match cmd::run(&ctx, parsed.command) {
        Ok(exit) => exit.into(),
        Err(error) => ctx.fail(&error),
    }
}
