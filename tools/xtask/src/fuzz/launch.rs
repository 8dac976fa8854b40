//! Running the fuzzer: some targets at once, each with its own log.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context, Result};

use super::CORPUS;
use crate::env::House;
use crate::proc;

/// Targets that run at once.
pub(super) const AT_ONCE: usize = 2;
/// Names the target to the program.
const VARIABLE: &str = "BACKSTAY_FUZZ_TARGET";
/// A run of one input that takes longer is a hang.
const TIMEOUT_SECONDS: u64 = 10;
/// The program's memory, with the corpus; each run's own is bounded by the program itself.
const MEMORY_MIB: u64 = 1024;
/// Inputs kept between runs; more, and the collection starts again from the repository's.
const KEPT_MAX: usize = 20_000;
/// Lines of a log that are shown when its target failed.
const SHOWN_LINES: usize = 30;

/// How targets are run.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) program: PathBuf,
    pub(super) seconds: u64,
    pub(super) seed: u32,
}

/// How a target's run ended.
#[derive(Debug)]
pub(super) enum End {
    Good,
    /// What happened, and how to see it again.
    Bad(String),
}

/// Runs all targets, [`AT_ONCE`] at a time; the ends are in their order.
pub(super) fn all(house: &House, plan: &Plan, targets: &[String]) -> Result<Vec<End>> {
    let next = AtomicUsize::new(0);
    let ends = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE.min(targets.len()) {
            scope.spawn(|| {
                loop {
                    let place = next.fetch_add(1, Ordering::Relaxed);
                    let Some(target) = targets.get(place) else { return };
                    let end = one(house, plan, target);
                    if let Ok(mut ends) = ends.lock() {
                        ends.push((place, end));
                    }
                }
            });
        }
    });
    let mut ends = ends.into_inner().unwrap_or_default();
    ends.sort_by_key(|(place, _)| *place);
    ends.into_iter().map(|(_, end)| end).collect()
}

fn one(house: &House, plan: &Plan, target: &str) -> Result<End> {
    // Beside the program: two clones that share a cache do not share logs.
    let base = house.target.join("fuzz");
    let (kept, crashes) = (base.join("corpus").join(target), base.join("crashes"));
    if fs::read_dir(&kept).is_ok_and(|entries| entries.count() > KEPT_MAX) {
        fs::remove_dir_all(&kept).with_context(|| format!("cannot remove {}", kept.display()))?;
    }
    let log = base.join("logs").join(format!("{target}.txt"));
    for dir in [&kept, &crashes, &base.join("logs")] {
        fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    }
    let prefix = crashes.join(format!("{target}-"));
    let output =
        fs::File::create(&log).with_context(|| format!("cannot make {}", log.display()))?;
    let mut command = program(&plan.program, target);
    command
        .arg(&kept)
        .arg(house.path(CORPUS).join(target))
        .arg(format!("-max_total_time={}", plan.seconds))
        .arg(format!("-seed={}", plan.seed))
        .arg(format!("-artifact_prefix={}", prefix.display()))
        .args(limits())
        .args(["-print_final_stats=1", "-verbosity=1"])
        .stdout(output.try_clone()?)
        .stderr(output);
    let status =
        command.status().with_context(|| format!("cannot run `{}`", proc::shown(&command)))?;
    let text = String::from_utf8_lossy(&fs::read(&log)?).into_owned();
    if status.success() {
        eprintln!("    {target}: {}", summary(&text));
        return Ok(End::Good);
    }
    let lines: Vec<&str> = text.lines().collect();
    for line in &lines[lines.len().saturating_sub(SHOWN_LINES)..] {
        eprintln!("    {target}| {line}");
    }
    let again = match artifact(&text) {
        Some(file) => format!("see it again: cargo xtask fuzz {target} --file {file}"),
        None => format!("no input was kept; the log is {}", log.display()),
    };
    Ok(End::Bad(format!("ended with {status}, seed {}; {again}", plan.seed)))
}

/// Runs one target on one file; the output goes to the terminal.
pub(super) fn one_file(program: &Path, target: &str, file: &Path) -> Result<ExitCode> {
    let mut command = self::program(program, target);
    command.env("RUST_BACKTRACE", "1").args(limits()).arg(file);
    let status =
        command.status().with_context(|| format!("cannot run `{}`", proc::shown(&command)))?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn program(program: &Path, target: &str) -> Command {
    let mut command = proc::command(program);
    // Without the trace, the panic's own words are among the last lines of a log.
    command.env(VARIABLE, target).env("RUST_BACKTRACE", "0");
    command
}

fn limits() -> [String; 2] {
    [format!("-timeout={TIMEOUT_SECONDS}"), format!("-rss_limit_mb={MEMORY_MIB}")]
}

/// The file that libFuzzer says it wrote the input to.
fn artifact(log: &str) -> Option<&str> {
    log.lines()
        .find_map(|line| line.split_once("Test unit written to ").map(|(_, file)| file.trim()))
}

/// Runs, edges and features found, and the size of the collection, from libFuzzer's last words.
fn summary(log: &str) -> String {
    let done = log.lines().rev().find(|line| line.starts_with('#') && line.contains("DONE"));
    let words: Vec<&str> = done.unwrap_or_default().split_whitespace().collect();
    let after = |name: &str| {
        let place = words.iter().position(|word| *word == name);
        place.and_then(|place| words.get(place + 1)).copied().unwrap_or("?")
    };
    let runs = words.first().map_or("?", |word| word.trim_start_matches('#'));
    format!("{runs} runs, {} edges, {} inputs kept", after("cov:"), after("corp:"))
}

#[cfg(test)]
mod tests {
    use super::{artifact, summary};

    #[test]
    fn the_last_words_of_a_run_are_read() {
        let log = "#5 INITED cov: 1 ft: 1\n#618321\tDONE   cov: 178 ft: 231 corp: 15/167b lim: 4096 \
                   exec/s: 47563 rss: 38Mb\nDone 618321 runs in 13 second(s)\n";
        assert_eq!(summary(log), "618321 runs, 178 edges, 15/167b inputs kept");
        assert_eq!(summary(""), "? runs, ? edges, ? inputs kept");
    }

    #[test]
    fn the_file_of_a_crash_is_found() {
        let log = "x\nartifact_prefix='/c/node-'; Test unit written to /c/node-crash-00ff\nBase64: AA==\n";
        assert_eq!(artifact(log), Some("/c/node-crash-00ff"));
        assert_eq!(artifact("nothing"), None);
    }
}
