//! `cargo xtask test`: the checks, every test, the fuzzer, the demo; ends with a table and the true counts.

use std::fs;
use std::process::ExitCode;

use anyhow::{Context, Result};

use crate::bootstrap::{self, Purpose};
use crate::cargo::Cargo;
use crate::env::House;
use crate::proc::{self, Stream};
use crate::steps::{Counts, Outcome, Steps};
use crate::{check, demo, fuzz};

#[derive(clap::Args, Debug, Default)]
pub(crate) struct Args {
    /// Run the long sizes of the tests that have them, for hours rather than minutes (sets
    /// BACKSTAY_RELEASE_SIZE=1)
    #[arg(long)]
    release_size: bool,
    /// Seed of the randomised tests, to repeat a run (sets BACKSTAY_SEED and PROPTEST_RNG_SEED)
    #[arg(long)]
    seed: Option<u64>,
    /// Leave the demo out
    #[arg(long)]
    no_demo: bool,
}

/// Cases of a randomised test in release size, where the test itself does not say.
const RELEASE_CASES: &str = "4096";

/// What a test writes at the start of a line when something it needs is not on this machine.
const SKIP_WORD: &str = "SKIPPED";

/// The chore `cargo xtask test`.
pub(crate) fn run(house: &House, args: &Args) -> Result<ExitCode> {
    let mut steps = Steps::default();
    let mut cargo = None;
    steps.run("bootstrap", || {
        cargo = Some(bootstrap::ready(house, Purpose::Run)?);
        Ok(Outcome::Pass(String::new()))
    });
    // Without it nothing below can run; its error was printed with the step.
    let Some(cargo) = cargo else { return Ok(steps.finish()) };
    check::run_static(house, &cargo, &mut steps);
    run_tests(house, &cargo, args, &mut steps);
    steps.run("fuzz", || fuzz::step(house, &cargo, args.release_size, args.seed));
    if !args.no_demo {
        steps.absorb(demo::steps(house, &cargo, &demo::Args::default()));
    }
    Ok(steps.finish())
}

/// Every test of the workspace, with nextest where it is installed.
pub(crate) fn run_tests(house: &House, cargo: &Cargo, args: &Args, steps: &mut Steps) {
    if check::in_cargo_home("cargo-nextest") {
        steps.run_counted("tests", || nextest(house, cargo, args));
        steps.run_counted("examples in documentation", || {
            cargo_test(cargo, args, &["test", "--workspace", "--doc"])
        });
    } else {
        eprintln!("cargo-nextest is not installed: running `cargo test` instead, without its");
        eprintln!("time limits, and without counting tests that skip themselves");
        steps.run_counted("tests", || {
            cargo_test(cargo, args, &["test", "--workspace", "--no-fail-fast"])
        });
    }
}

fn with_size(mut command: std::process::Command, args: &Args) -> std::process::Command {
    if args.release_size {
        command.env("BACKSTAY_RELEASE_SIZE", "1").env("PROPTEST_CASES", RELEASE_CASES);
    }
    if let Some(seed) = args.seed {
        command.env("PROPTEST_RNG_SEED", seed.to_string()).env("BACKSTAY_SEED", seed.to_string());
    }
    command
}

fn nextest(house: &House, cargo: &Cargo, args: &Args) -> Result<(Outcome, Counts)> {
    let profile = if args.release_size { "release-size" } else { "default" };
    // Where nextest puts it, whatever cargo's target directory is.
    let junit = house.path("target/nextest").join(profile).join("junit.xml");
    let _ = fs::remove_file(&junit);
    let command = cargo.command(&["nextest", "run", "--workspace", "--no-fail-fast"]);
    let mut command = with_size(command, args);
    command.args(["--profile", profile, "--color", "never", "--status-level", "slow"]);
    let mut summary = None;
    let fine = proc::watch(&mut command, Stream::Stderr, |line| {
        summary = parse_summary(line).or(summary);
    })?;
    let mut counts = summary.context("nextest gave no summary: the tests did not build or run")?;
    let report = fs::read_to_string(&junit)
        .with_context(|| format!("nextest left no report at {}", junit.display()))?;
    let skipped = skipped_inside(&report);
    for (name, line) in &skipped {
        eprintln!("{name}: {line}");
    }
    let inside = (skipped.len() as u64).min(counts.passed);
    counts.passed -= inside;
    counts.skipped += inside;
    Ok(judged(fine, counts))
}

fn cargo_test(cargo: &Cargo, args: &Args, line: &[&str]) -> Result<(Outcome, Counts)> {
    let mut command = with_size(cargo.command(line), args);
    let mut counts = Counts::default();
    let fine = proc::watch(&mut command, Stream::Stdout, |line| {
        if let Some(more) = parse_result(line) {
            counts.add(more);
        }
    })?;
    Ok(judged(fine, counts))
}

/// A run that failed without a failed test (it did not build, it was killed) is one failure.
fn judged(fine: bool, mut counts: Counts) -> (Outcome, Counts) {
    if !fine && counts.failed == 0 {
        counts.failed = 1;
    }
    let line = counts.line();
    if counts.failed == 0 { (Outcome::Pass(line), counts) } else { (Outcome::Fail(line), counts) }
}

/// `Summary [  12.3s] 9 tests run: 7 passed (1 slow), 1 failed, 1 timed out, 2 skipped`
fn parse_summary(line: &str) -> Option<Counts> {
    let rest = line.trim().strip_prefix("Summary [")?;
    let (_, list) = rest.split_once(':')?;
    let mut counts = Counts::default();
    for part in list.split(',') {
        let mut words = part.split_whitespace();
        let number: u64 = words.next()?.parse().ok()?;
        match words.next()? {
            "passed" => counts.passed += number,
            "skipped" => counts.skipped += number,
            // failed, timed out, exec failed, and whatever a later version adds.
            _ => counts.failed += number,
        }
    }
    Some(counts)
}

/// `test result: ok. 5 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.1s`
fn parse_result(line: &str) -> Option<Counts> {
    let rest = line.trim().strip_prefix("test result: ")?;
    let (_, list) = rest.split_once(". ")?;
    let mut counts = Counts::default();
    for part in list.split(';') {
        let mut words = part.split_whitespace();
        let number: Option<u64> = words.next().and_then(|n| n.parse().ok());
        match (number, words.next()) {
            (Some(n), Some("passed")) => counts.passed = n,
            (Some(n), Some("failed")) => counts.failed = n,
            (Some(n), Some("ignored")) => counts.skipped = n,
            _ => {}
        }
    }
    Some(counts)
}

/// Tests that passed because they left early, saying so: name and the line they wrote.
fn skipped_inside(junit: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    for case in junit.split("<testcase ").skip(1) {
        let failed = case.contains("<failure") || case.contains("<error");
        let said = case
            .split_once("<system-out>")
            .map(|(_, rest)| rest.split_once("</system-out>").map_or(rest, |(out, _)| out));
        let errors = case
            .split_once("<system-err>")
            .map(|(_, rest)| rest.split_once("</system-err>").map_or(rest, |(out, _)| out));
        let line = [said, errors]
            .into_iter()
            .flatten()
            .flat_map(str::lines)
            .find(|line| line.trim_start_matches("<![CDATA[").starts_with(SKIP_WORD));
        if let (false, Some(line)) = (failed, line) {
            let name = case.split_once("name=\"").map_or("", |(_, rest)| rest);
            let name = name.split('"').next().unwrap_or("");
            found.push((name.to_owned(), line.trim().to_owned()));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::{judged, parse_result, parse_summary, skipped_inside};
    use crate::steps::{Counts, Outcome};

    #[test]
    fn the_summary_of_nextest_is_read() {
        let line = "     Summary [   0.012s] 12 tests run: 12 passed (1 slow), 3 skipped";
        assert_eq!(parse_summary(line), Some(Counts { passed: 12, failed: 0, skipped: 3 }));
        let line = "Summary [ 9s] 9 tests run: 6 passed, 1 failed, 2 timed out, 0 skipped";
        assert_eq!(parse_summary(line), Some(Counts { passed: 6, failed: 3, skipped: 0 }));
        assert_eq!(parse_summary("PASS [ 0.1s] crate a::test: 3 passed"), None);
    }

    #[test]
    fn the_result_line_of_cargo_test_is_read() {
        let line = "test result: FAILED. 5 passed; 2 failed; 1 ignored; 0 measured; 0 filtered out";
        assert_eq!(parse_result(line), Some(Counts { passed: 5, failed: 2, skipped: 1 }));
        assert_eq!(parse_result("running 5 tests"), None);
    }

    #[test]
    fn a_run_that_fails_without_a_failed_test_is_a_failure() {
        let (outcome, counts) = judged(false, Counts { passed: 3, ..Counts::default() });
        assert_eq!(counts.failed, 1);
        assert!(matches!(outcome, Outcome::Fail(_)));
    }

    #[test]
    fn tests_that_left_early_are_skipped_and_not_passed() {
        let report = concat!(
            "<testsuite><testcase name=\"a\"><system-out>one\nSKIPPED: no fuse\n</system-out>",
            "</testcase><testcase name=\"b\"><system-out>not SKIPPED</system-out></testcase>",
            "<testcase name=\"c\"><failure/><system-err>SKIPPED</system-err></testcase></testsuite>",
        );
        let found = skipped_inside(report);
        assert_eq!(found, [("a".to_owned(), "SKIPPED: no fuse".to_owned())]);
    }
}
