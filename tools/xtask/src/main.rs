//! Every chore of the project, one sub-command each: `cargo xtask demo`, `cargo xtask test`,
//! `cargo xtask check`, `cargo xtask fuzz`, `cargo xtask bench store`.
//!
//! No crate of the workspace is a dependency of this one, so that the chores build and can say what
//! is wrong when nothing else builds.
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "talking to the person at the terminal is what a chore does"
)]

mod bench;
mod bootstrap;
mod cargo;
mod check;
mod debian;
mod demo;
mod env;
mod fuzz;
mod guest;
mod levels;
mod licences;
mod proc;
mod rocksdb;
mod s3_servers;
mod steps;
mod test;
mod tidy;
mod workdir;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

use crate::env::House;

#[derive(Parser, Debug)]
#[command(name = "cargo xtask", about = "The chores of the project", version)]
struct Args {
    #[command(subcommand)]
    chore: Chore,
}

#[derive(Subcommand, Debug)]
enum Chore {
    /// Install what builds and tests need, and build the RocksDB library (every other chore calls this)
    Bootstrap,
    /// Formatting, lints, levels, ratchets, documentation, tests
    Check(check::Args),
    /// Only the ratchets and the level table: quick, builds nothing
    Tidy,
    /// Everything a change must pass: the checks, all tests, the demo. CI runs exactly this
    Test(test::Args),
    /// Back up, mount and restore a real guest disk on this machine, checked with others' tools
    Demo(demo::Args),
    /// Feed every parser of stored bytes with made-up ones; crashes, hangs and memory are failures
    Fuzz(fuzz::Args),
    /// Measure against limits and peers
    Bench(bench::Args),
}

fn main() -> ExitCode {
    match run(Args::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: Args) -> Result<ExitCode> {
    let house = House::find()?;
    match args.chore {
        Chore::Bootstrap => bootstrap::run(&house),
        Chore::Check(args) => check::run(&house, &args),
        Chore::Tidy => check::run_tidy(&house),
        Chore::Test(args) => test::run(&house, &args),
        Chore::Demo(args) => demo::run(&house, &args),
        Chore::Fuzz(args) => fuzz::run(&house, &args),
        Chore::Bench(args) => bench::run(&house, args),
    }
}
