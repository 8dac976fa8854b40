//! `cargo xtask bench memory`: the chunk index at sizes that no disk here could hold the chunks of,
//! under a memory limit of the kernel (B15).

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;

use crate::bootstrap::{self, Purpose};
use crate::env::House;
use crate::proc;
use crate::workdir::{Stop, WorkDir};

#[derive(clap::Args, Debug)]
pub(super) struct Args {
    /// Chunks in the index at most; a quarter and a half of them are measured too [default:
    /// 4000000; with --release-size 100000000, which takes some 15 GiB and half an hour]
    #[arg(long)]
    chunks: Option<u64>,
    /// The size that the goal speaks of
    #[arg(long)]
    release_size: bool,
    /// Memory that the kernel allows, MiB
    #[arg(long, default_value_t = 512)]
    limit_mib: u64,
    /// Directory for the index [default: the system's temporary directory]
    #[arg(long)]
    dir: Option<PathBuf>,
}

impl Args {
    /// As `bench store` runs it.
    pub(super) fn beside_store(dir: Option<PathBuf>) -> Self {
        Self { chunks: None, release_size: false, limit_mib: 512, dir }
    }
}

/// The chore. An error if the index does not stay within the limit, or would not at 100 million.
pub(super) fn run(house: &House, args: &Args) -> Result<ExitCode> {
    let cargo = bootstrap::ready(house, Purpose::Build)?;
    let program = cargo.release_binary("backstay-tests", "index_limit")?;
    let parent = args.dir.clone().unwrap_or_else(std::env::temp_dir).join("backstay-bench");
    let _stop = Stop::catch()?;
    let work = WorkDir::new(&parent)?;
    let usual = if args.release_size { 100_000_000 } else { 4_000_000 };
    let chunks = args.chunks.unwrap_or(usual);
    println!("\nB15: an index of up to {chunks} chunks within {} MiB", args.limit_mib);
    let mut command = proc::command(program);
    command.args(["--chunks", &chunks.to_string()]);
    command.args(["--limit-mib", &args.limit_mib.to_string()]);
    command.arg("--dir").arg(work.path());
    proc::run(&mut command)?;
    let how = if chunks < 100_000_000 { "as it grew up to here" } else { "measured" };
    println!("B15 within 512 MiB with 100 million chunks, {how}: reached");
    Ok(ExitCode::SUCCESS)
}
