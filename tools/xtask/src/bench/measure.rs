//! One run of one program: wall time, processor time, peak memory.

use std::fs::File;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use wait4::Wait4;

use crate::proc;

/// What one run took.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Sample {
    pub(super) wall: Duration,
    /// The same until all it wrote is on the disk, which some programs leave to later.
    pub(super) durable: Duration,
    /// User and system time of the program and of all it started and waited for.
    pub(super) cpu: Duration,
    /// Peak resident memory, as the kernel counted it.
    pub(super) peak_bytes: u64,
}

/// Runs the program to its end. What it says goes to `log`, which an error quotes.
pub(super) fn run(command: &mut Command, log: &Path) -> Result<Sample> {
    // What the program before wrote must not be written to disk on this one's time.
    proc::run(&mut proc::command("sync"))?;
    let out = File::create(log)?;
    command.stdout(out.try_clone()?).stderr(out);
    let start = Instant::now();
    let mut child =
        command.spawn().with_context(|| format!("cannot run `{}`", proc::shown(command)))?;
    let used = child.wait4()?;
    let wall = start.elapsed();
    proc::run(proc::command("sync").arg("-f").arg(log))?;
    let durable = start.elapsed();
    if !used.status.success() {
        let said = std::fs::read_to_string(log).unwrap_or_default();
        bail!("`{}` ended with {}: {}", proc::shown(command), used.status, said.trim());
    }
    let cpu = used.rusage.utime + used.rusage.stime;
    Ok(Sample { wall, durable, cpu, peak_bytes: used.rusage.maxrss })
}

/// The medians of several runs, each figure by itself, but for memory, where the most counts.
pub(super) fn median(samples: &[Sample]) -> Sample {
    let middle = |mut times: Vec<Duration>| {
        times.sort();
        times.get(times.len() / 2).copied().unwrap_or_default()
    };
    Sample {
        wall: middle(samples.iter().map(|s| s.wall).collect()),
        durable: middle(samples.iter().map(|s| s.durable).collect()),
        cpu: middle(samples.iter().map(|s| s.cpu).collect()),
        peak_bytes: samples.iter().map(|s| s.peak_bytes).max().unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{Sample, median, run};
    use crate::proc;

    #[test]
    fn a_program_is_measured_and_its_failure_quoted() {
        let dir = tempfile::tempdir().expect("a directory");
        let log = dir.path().join("log");
        let busy = "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done";
        let sample = run(proc::command("sh").args(["-c", busy]), &log).expect("runs");
        assert!(sample.cpu > Duration::ZERO && sample.wall > Duration::ZERO);
        // A shell needs more than a hundred KiB and less than a GiB: the unit is bytes.
        assert!((100 << 10..1 << 30).contains(&sample.peak_bytes), "{}", sample.peak_bytes);
        let error = run(proc::command("sh").args(["-c", "echo broken; exit 3"]), &log);
        assert!(error.expect_err("fails").to_string().contains("broken"));
    }

    #[test]
    fn medians_are_of_each_figure_and_the_most_of_memory() {
        let sample = |wall, peak_bytes| Sample {
            wall: Duration::from_secs(wall),
            durable: Duration::from_secs(wall + 1),
            cpu: Duration::from_secs(10 - wall),
            peak_bytes,
        };
        let got = median(&[sample(3, 1), sample(1, 9), sample(2, 2)]);
        assert_eq!((got.wall.as_secs(), got.cpu.as_secs(), got.peak_bytes), (2, 8, 9));
        assert_eq!(got.durable.as_secs(), 3);
    }
}
