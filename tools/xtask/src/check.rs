//! `cargo xtask check`: formatting, lints, levels, ratchets, documentation, tests.

use std::process::ExitCode;

use anyhow::{Result, bail};

use crate::bootstrap::{self, Purpose};
use crate::cargo::{self, Cargo};
use crate::env::House;
use crate::steps::{Outcome, Steps};
use crate::{levels, licences, proc, test, tidy};

/// Most findings printed; the rest is counted.
const MAX_SHOWN: usize = 100;

#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// Leave the tests out
    #[arg(long)]
    no_tests: bool,
}

/// The chore `cargo xtask check`.
pub(crate) fn run(house: &House, args: &Args) -> Result<ExitCode> {
    let cargo = bootstrap::ready(house, Purpose::Run)?;
    let mut steps = Steps::default();
    run_static(house, &cargo, &mut steps);
    if !args.no_tests {
        test::run_tests(house, &cargo, &test::Args::default(), &mut steps);
    }
    Ok(steps.finish())
}

/// The chore `cargo xtask tidy`.
pub(crate) fn run_tidy(house: &House) -> Result<ExitCode> {
    let mut steps = Steps::default();
    steps.run("levels", || run_levels(house));
    steps.run("ratchets", || run_ratchets(house));
    Ok(steps.finish())
}

/// Everything that is checked without running the project's code. The quick ones come first.
pub(crate) fn run_static(house: &House, cargo: &Cargo, steps: &mut Steps) {
    steps.run("levels", || run_levels(house));
    steps.run("ratchets", || run_ratchets(house));
    steps.run("format", || {
        cargo.run(&["fmt", "--all", "--", "--check"])?;
        // The fuzzer is a workspace of its own.
        cargo.run(&["fmt", "--manifest-path", "tests/fuzz/Cargo.toml", "--", "--check"])?;
        Ok(Outcome::Pass(String::new()))
    });
    steps.run("licences", || run_licences(house, cargo));
    steps.run("lints", || {
        cargo.run(&["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"])?;
        Ok(Outcome::Pass("clippy, warnings denied".into()))
    });
    steps.run("documentation", || {
        let mut command = cargo.command(&["doc", "--workspace", "--no-deps"]);
        proc::run(command.env("RUSTDOCFLAGS", "-D warnings"))?;
        Ok(Outcome::Pass("warnings denied".into()))
    });
}

fn run_levels(house: &House) -> Result<Outcome> {
    let metadata = levels::metadata(house, false)?;
    let architecture = std::fs::read_to_string(house.path("ARCHITECTURE.md")).unwrap_or_default();
    let broken = levels::check(&metadata, &architecture);
    show(&broken)?;
    Ok(Outcome::Pass(format!("{} crates", metadata.workspace_packages().len())))
}

fn run_ratchets(house: &House) -> Result<Outcome> {
    let metadata = levels::metadata(house, false)?;
    let (findings, files) = tidy::check(house, &metadata)?;
    let findings: Vec<String> = findings.iter().map(ToString::to_string).collect();
    show(&findings)?;
    Ok(Outcome::Pass(format!("{files} files")))
}

fn show(findings: &[String]) -> Result<()> {
    for finding in findings.iter().take(MAX_SHOWN) {
        eprintln!("{finding}");
    }
    match findings.len() {
        0 => Ok(()),
        n => bail!("{n} findings"),
    }
}

fn run_licences(house: &House, cargo: &Cargo) -> Result<Outcome> {
    let allowed = licences::allowed(&std::fs::read_to_string(house.path("deny.toml"))?)?;
    let metadata = levels::metadata(house, true)?;
    show(&licences::check(&metadata, &allowed))?;
    let note = format!("{} packages", metadata.packages.len());
    if !in_cargo_home("cargo-deny") {
        return Ok(Outcome::Pass(format!(
            "{note}; cargo-deny is not here, only licences looked at"
        )));
    }
    // Advisories change from day to day: they are looked at by hand and not a reason to fail.
    cargo.run(&["deny", "check", "licenses", "bans", "sources"])?;
    Ok(Outcome::Pass(format!("{note}; cargo deny")))
}

/// True when cargo itself would find this sub-command.
pub(crate) fn in_cargo_home(program: &str) -> bool {
    let listed = proc::capture(cargo::plain().arg("--list")).unwrap_or_default();
    let name = program.trim_start_matches("cargo-");
    listed.lines().any(|line| line.split_whitespace().next() == Some(name))
}
