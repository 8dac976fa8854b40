//! `cargo xtask fuzz`: feeds every parser with bytes that libFuzzer makes.
//!
//! The targets are functions of `chunkstore/format` and `chunkstore/store`; each has a folder in
//! `tests/fuzz/corpus`, by which this chore knows it. One program, `tests/fuzz`, holds them all. It
//! is built with the project's own toolchain: what libFuzzer needs of the compiler is stable, and
//! our parsers have no unsafe code for an address sanitizer to look at (`--address-sanitizer` takes
//! the nightly toolchain and looks all the same).

mod build;
mod green;
mod launch;

use std::fs;
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};

use crate::bootstrap::{self, Purpose};
use crate::cargo::Cargo;
use crate::env::House;
use crate::steps::{Outcome, Steps};

/// Where the corpus is, a folder a target.
const CORPUS: &str = "tests/fuzz/corpus";
/// Seconds a target runs unless told otherwise.
const SECONDS: u64 = 60;
/// Seconds a target runs in a test of release size.
const RELEASE_SECONDS: u64 = 600;
/// Seconds that all targets together may run in `cargo xtask test`, by the wall clock.
const TEST_SECONDS: u64 = 330;

#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// The targets to run, by the names of the folders in tests/fuzz/corpus; all unless given
    targets: Vec<String>,
    /// Seconds for each target
    #[arg(long, default_value_t = SECONDS)]
    seconds: u64,
    /// Only targets whose sources have changed since their last good run on this machine
    #[arg(long)]
    changed: bool,
    /// Seed, to repeat a run as far as its corpus is the same [default: BACKSTAY_SEED, or the time]
    #[arg(long)]
    seed: Option<u32>,
    /// Run one target on this file alone: to see a crash again
    #[arg(long, value_name = "PATH", conflicts_with_all = ["changed", "seconds", "seed"])]
    file: Option<std::path::PathBuf>,
    /// Build with the nightly toolchain and its address sanitizer
    #[arg(long)]
    address_sanitizer: bool,
}

/// The chore `cargo xtask fuzz`.
pub(crate) fn run(house: &House, args: &Args) -> Result<ExitCode> {
    let all = targets(house)?;
    for name in &args.targets {
        if !all.contains(name) {
            bail!("there is no target {name}; there are: {}", all.join(", "));
        }
    }
    let chosen = if args.targets.is_empty() { all } else { args.targets.clone() };
    if let (Some(_), [_, _, ..]) = (&args.file, chosen.as_slice()) {
        bail!("--file is for one target: name it");
    }
    let mut steps = Steps::default();
    let chosen = if args.changed { changed(house, chosen, 1)? } else { chosen };
    if chosen.is_empty() {
        let why = "nothing changed since the last good run";
        steps.run("fuzz", || Ok(Outcome::Pass(why.into())));
        return Ok(steps.finish());
    }
    let cargo = bootstrap::ready(house, Purpose::Build)?;
    let program = match build::program(house, &cargo, args.address_sanitizer)? {
        build::Built::Program(program) => program,
        build::Built::NoNightly => {
            let why = "rustup has no nightly toolchain, which the address sanitizer needs";
            steps.run("fuzz", || Ok(Outcome::Skip(why.into())));
            return Ok(steps.finish());
        }
    };
    if let (Some(file), [target]) = (&args.file, chosen.as_slice()) {
        return launch::one_file(&program, target, file);
    }
    let plan = launch::Plan { program, seconds: args.seconds, seed: seed(args.seed) };
    steps.run("fuzz", || fuzz(house, &plan, &chosen));
    Ok(steps.finish())
}

/// The step of `cargo xtask test`: targets that changed since their last good run, together for
/// [`TEST_SECONDS`] at most. With `release_size` all targets, each for [`RELEASE_SECONDS`].
pub(crate) fn step(
    house: &House,
    cargo: &Cargo,
    release_size: bool,
    seed: Option<u64>,
) -> Result<Outcome> {
    let all = targets(house)?;
    let count = all.len();
    let (chosen, seconds) = if release_size {
        (all, RELEASE_SECONDS)
    } else {
        let due = share(count);
        let chosen = changed(house, all, due)?;
        let seconds = share(chosen.len());
        (chosen, seconds)
    };
    if chosen.is_empty() {
        return Ok(Outcome::Pass(format!("{count} targets, unchanged since their last good run")));
    }
    let build::Built::Program(program) = build::program(house, cargo, false)? else {
        bail!("a build without sanitizer wants no nightly toolchain");
    };
    let seed = self::seed(seed.map(|seed| seed as u32));
    fuzz(house, &launch::Plan { program, seconds, seed }, &chosen)
}

/// Seconds for each of so many targets within the time of `cargo xtask test`.
fn share(targets: usize) -> u64 {
    let rounds = targets.div_ceil(launch::AT_ONCE).max(1) as u64;
    (TEST_SECONDS / rounds).min(SECONDS)
}

fn fuzz(house: &House, plan: &launch::Plan, targets: &[String]) -> Result<Outcome> {
    eprintln!("seed {} (repeat with BACKSTAY_SEED={0})", plan.seed);
    // Taken before the run: what is changed meanwhile was not run.
    let hashes: Vec<u64> =
        targets.iter().map(|target| green::hash(house, target)).collect::<Result<_>>()?;
    let ends = launch::all(house, plan, targets)?;
    let mut failed = Vec::new();
    for ((target, hash), end) in targets.iter().zip(hashes).zip(ends) {
        match end {
            launch::End::Good => green::remember(house, target, hash, plan.seconds)?,
            launch::End::Bad(why) => failed.push(format!("{target}: {why}")),
        }
    }
    if !failed.is_empty() {
        bail!("{}", failed.join("\n"));
    }
    Ok(Outcome::Pass(format!("{} targets, {} s each", targets.len(), plan.seconds)))
}

/// Those without a good run of their present sources that took `due` seconds.
fn changed(house: &House, targets: Vec<String>, due: u64) -> Result<Vec<String>> {
    let mut changed = Vec::new();
    for target in targets {
        if !green::is_remembered(house, &target, green::hash(house, &target)?, due) {
            changed.push(target);
        }
    }
    Ok(changed)
}

/// The targets, by the folders of the corpus.
fn targets(house: &House) -> Result<Vec<String>> {
    let dir = house.path(CORPUS);
    let entries = fs::read_dir(&dir).with_context(|| format!("cannot list {}", dir.display()))?;
    let mut targets = Vec::new();
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            targets.push(entry.file_name().to_string_lossy().into_owned());
        }
    }
    targets.sort();
    if targets.is_empty() {
        bail!("there is no folder in {}", dir.display());
    }
    Ok(targets)
}

/// The seed of this run; never 0, which libFuzzer takes for "choose one yourself".
fn seed(given: Option<u32>) -> u32 {
    let named = || std::env::var("BACKSTAY_SEED").ok()?.parse::<u64>().ok().map(|seed| seed as u32);
    let clock =
        || SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |time| time.subsec_nanos());
    given.or_else(named).unwrap_or_else(clock).max(1)
}

#[cfg(test)]
mod tests {
    use super::{SECONDS, TEST_SECONDS, share};
    use crate::fuzz::launch::AT_ONCE;

    #[test]
    fn however_many_targets_there_are_the_test_keeps_to_its_time() {
        for targets in 1..200usize {
            let rounds = targets.div_ceil(AT_ONCE) as u64;
            assert!(share(targets) * rounds <= TEST_SECONDS, "{targets}");
            assert!((1..=SECONDS).contains(&share(targets)), "{targets}");
        }
        assert_eq!(share(2), SECONDS);
    }
}
