//! Named steps with times, and the table that a chore ends with.

use std::time::{Duration, Instant};

use anyhow::Result;

/// How a step ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// It held. The note says what was seen.
    Pass(String),
    /// It cannot run on this machine, for the reason given. Never counted as passed.
    Skip(String),
    /// It did not hold.
    Fail(String),
}

/// Passed, failed and skipped things.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) passed: u64,
    pub(crate) failed: u64,
    pub(crate) skipped: u64,
}

impl Counts {
    /// Adds another count to this one.
    pub(crate) fn add(&mut self, other: Counts) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }

    /// The closing line.
    pub(crate) fn line(self) -> String {
        format!("{} passed, {} failed, {} skipped", self.passed, self.failed, self.skipped)
    }
}

#[derive(Debug)]
struct Done {
    name: String,
    outcome: Outcome,
    took: Duration,
    counts: Counts,
}

/// The steps of one chore, in the order they ran.
#[derive(Debug, Default)]
pub(crate) struct Steps {
    done: Vec<Done>,
}

impl Steps {
    /// Runs one step, says its name before and its result after, and goes on whatever it was.
    /// Returns whether it did not fail. A step counts as one thing passed, failed or skipped.
    pub(crate) fn run(&mut self, name: &str, work: impl FnOnce() -> Result<Outcome>) -> bool {
        self.run_counted(name, || {
            let outcome = work()?;
            let counts = count_of(&outcome);
            Ok((outcome, counts))
        })
    }

    /// As [`Steps::run`], for a step that counts the things inside it (a test run).
    pub(crate) fn run_counted(
        &mut self,
        name: &str,
        work: impl FnOnce() -> Result<(Outcome, Counts)>,
    ) -> bool {
        eprintln!("==> {name}");
        let start = Instant::now();
        let (outcome, counts) = work().unwrap_or_else(|error| {
            (Outcome::Fail(format!("{error:#}")), Counts { failed: 1, ..Counts::default() })
        });
        let took = start.elapsed();
        let fine = !matches!(outcome, Outcome::Fail(_));
        match &outcome {
            Outcome::Pass(note) => eprintln!("    ok, {} {note}", seconds(took)),
            Outcome::Skip(why) => eprintln!("    SKIPPED: {why}"),
            Outcome::Fail(why) => eprintln!("    FAILED after {}: {why}", seconds(took)),
        }
        self.done.push(Done { name: name.to_owned(), outcome, took, counts });
        fine
    }

    /// Takes the results of a chore that ran as part of this one.
    pub(crate) fn absorb(&mut self, other: Steps) {
        self.done.extend(other.done);
    }

    /// What passed, failed and was skipped so far.
    pub(crate) fn counts(&self) -> Counts {
        let mut all = Counts::default();
        for done in &self.done {
            all.add(done.counts);
        }
        all
    }

    /// The table: one line a step with its result, its time and what was seen.
    pub(crate) fn table(&self) -> String {
        let width = self.done.iter().map(|d| d.name.chars().count()).max().unwrap_or(0);
        let mut out = String::new();
        for done in &self.done {
            let (word, note) = match &done.outcome {
                Outcome::Pass(note) => ("PASS", note.as_str()),
                Outcome::Skip(why) => ("SKIPPED", why.as_str()),
                Outcome::Fail(why) => ("FAILED", why.lines().next().unwrap_or("")),
            };
            let (name, took) = (&done.name, seconds(done.took));
            out.push_str(format!("{name:width$}  {word:7} {took:>9}  {note}").trim_end());
            out.push('\n');
        }
        out
    }

    /// Prints the table and the closing line; the exit code is a failure when anything failed.
    pub(crate) fn finish(&self) -> std::process::ExitCode {
        let counts = self.counts();
        println!("\n{}", self.table());
        println!("{}", counts.line());
        if counts.failed == 0 {
            std::process::ExitCode::SUCCESS
        } else {
            std::process::ExitCode::FAILURE
        }
    }
}

fn count_of(outcome: &Outcome) -> Counts {
    match outcome {
        Outcome::Pass(_) => Counts { passed: 1, ..Counts::default() },
        Outcome::Skip(_) => Counts { skipped: 1, ..Counts::default() },
        Outcome::Fail(_) => Counts { failed: 1, ..Counts::default() },
    }
}

/// A time as the tables show it.
pub(crate) fn seconds(time: Duration) -> String {
    format!("{:.1} s", time.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::{Counts, Outcome, Steps};

    #[test]
    fn a_failed_step_is_counted_and_does_not_stop_the_others() {
        let mut steps = Steps::default();
        assert!(steps.run("first", || Ok(Outcome::Pass("seen".into()))));
        assert!(!steps.run("second", || anyhow::bail!("broken")));
        assert!(steps.run("third", || Ok(Outcome::Skip("no such device".into()))));
        assert_eq!(steps.counts().line(), "1 passed, 1 failed, 1 skipped");
        let table = steps.table();
        assert!(table.contains("second  FAILED"), "{table}");
        assert!(table.contains("no such device"), "{table}");
    }

    #[test]
    fn a_test_run_counts_what_is_inside_it() {
        let mut steps = Steps::default();
        let inside = Counts { passed: 40, failed: 0, skipped: 2 };
        steps.run_counted("tests", || Ok((Outcome::Pass(String::new()), inside)));
        steps.run("other", || Ok(Outcome::Pass(String::new())));
        assert_eq!(steps.counts(), Counts { passed: 41, failed: 0, skipped: 2 });
    }
}
