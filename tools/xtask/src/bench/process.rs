//! The product with a repository of its own, and servers that are measured: processes whose time counts.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::proc;

/// How long a server may take until it listens.
const START_TIMEOUT: Duration = Duration::from_secs(60);

/// The product, with a repository and directories below `work`.
#[derive(Debug)]
pub(super) struct Product {
    pub(super) work: PathBuf,
    /// The program.
    pub(super) program: PathBuf,
}

impl Product {
    /// A command of the product.
    pub(super) fn command(&self, args: &[&str]) -> Command {
        let mut command = proc::command(&self.program);
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("BACKSTAY_") {
                command.env_remove(&name);
            }
        }
        command
            .env("BACKSTAY_REPO", self.work.join("repo"))
            .env("BACKSTAY_KEY_FILE", self.work.join("key"))
            .env("BACKSTAY_CACHE_DIR", self.work.join("cache"))
            .env("BACKSTAY_STATE_DIR", self.work.join("state"))
            .current_dir(&self.work)
            .args(args);
        command
    }

    /// Makes the repository, with a backup of `image` as machine `bench`.
    pub(super) fn back_up(&self, image: &Path) -> Result<()> {
        proc::output(&mut self.command(&["repo", "init", "--new-key-file", "key"]))?;
        let image = image.display().to_string();
        proc::output(&mut self.command(&["backup", &image, "--machine", "bench", "-q"]))?;
        Ok(())
    }

    /// The mount daemon, without mounts of earlier ones.
    pub(super) fn daemon(&self, args: &[&str]) -> Result<Process> {
        let _ = fs::remove_dir_all(self.work.join("state"));
        let log = self.work.join("server.log");
        let args = [&["mountd"][..], args].concat();
        let mut daemon = Process::start(&mut self.command(&args), &log)?;
        let socket = self.work.join("state/run/mountd.sock");
        daemon.wait(&log, || socket.exists())?;
        Ok(daemon)
    }
}

/// The middle one of some figures.
pub(super) fn middle(values: impl Iterator<Item = f64>) -> f64 {
    let mut all: Vec<f64> = values.collect();
    all.sort_by(f64::total_cmp);
    all.get(all.len() / 2).copied().unwrap_or_default()
}

/// A process that runs; ended when dropped.
#[derive(Debug)]
pub(super) struct Process {
    child: Child,
    start: Instant,
}

impl Process {
    /// Starts it; what it says goes to `log`.
    pub(super) fn start(command: &mut Command, log: &Path) -> Result<Self> {
        let log = fs::File::create(log)?;
        let start = Instant::now();
        let child = command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).spawn();
        let child = child.with_context(|| format!("cannot run `{}`", proc::shown(command)))?;
        Ok(Self { child, start })
    }

    /// Waits until `ready` says so; answers how long that took from the start.
    pub(super) fn wait(&mut self, log: &Path, ready: impl Fn() -> bool) -> Result<Duration> {
        while !ready() {
            std::thread::sleep(Duration::from_millis(2));
            if self.child.try_wait()?.is_some() || self.start.elapsed() > START_TIMEOUT {
                let said = fs::read_to_string(log).unwrap_or_default();
                bail!("the server did not start: {}", said.trim());
            }
        }
        Ok(self.start.elapsed())
    }

    /// Processor time it has used so far, all threads, user and system.
    pub(super) fn cpu(&self) -> Result<Duration> {
        let text = fs::read_to_string(format!("/proc/{}/stat", self.child.id()))?;
        // The name in parentheses may hold anything.
        let after = text.rsplit_once(')').context("no process state")?.1;
        let ticks: u64 =
            after.split_whitespace().skip(11).take(2).flat_map(str::parse::<u64>).sum();
        let per_second = rustix::param::clock_ticks_per_second();
        Ok(Duration::from_secs_f64(ticks as f64 / per_second as f64))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Some(pid) = rustix::process::Pid::from_raw(self.child.id() as i32) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
        let end = Instant::now() + Duration::from_secs(10);
        while Instant::now() < end {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
