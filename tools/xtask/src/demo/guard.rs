//! Things that must not stay behind: each is taken away when its guard goes, however that happens.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

use crate::proc;

/// Longest wait for a server to say that it is ready.
const READY_WITHIN: Duration = Duration::from_secs(30);
/// Longest wait for a server to end after it was asked to; then it is killed.
const END_WITHIN: Duration = Duration::from_secs(15);

/// A loop device over a part of a file.
#[derive(Debug)]
pub(super) struct Loop {
    device: String,
    held: bool,
}

impl Loop {
    pub(super) fn new(file: &Path, start: u64, len: u64, read_only: bool) -> Result<Loop> {
        let mut losetup = proc::command("losetup");
        losetup.args(["--find", "--show", "--offset"]).arg(start.to_string());
        losetup.arg("--sizelimit").arg(len.to_string());
        if read_only {
            losetup.arg("--read-only");
        }
        let device = proc::capture(losetup.arg(file))?.trim().to_owned();
        Ok(Loop { device, held: true })
    }

    pub(super) fn device(&self) -> &str {
        &self.device
    }

    /// Lets the device go; an error if the kernel keeps it.
    pub(super) fn detach(mut self) -> Result<()> {
        self.held = false;
        proc::output(proc::command("losetup").args(["--detach", &self.device])).map(drop)
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        if self.held {
            let _ = proc::output(proc::command("losetup").args(["--detach", &self.device]));
        }
    }
}

/// A kernel mount.
#[derive(Debug)]
pub(super) struct Mounted {
    point: PathBuf,
    held: bool,
}

impl Mounted {
    pub(super) fn new(device: &str, point: &Path, options: &str) -> Result<Mounted> {
        fs::create_dir_all(point)?;
        proc::output(
            proc::command("mount").args(["-t", "ext4", "-o", options, device]).arg(point),
        )?;
        Ok(Mounted { point: point.to_path_buf(), held: true })
    }

    /// Unmounts; an error if something still uses it.
    pub(super) fn unmount(mut self) -> Result<()> {
        proc::output(proc::command("umount").arg(&self.point))?;
        self.held = false;
        Ok(())
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if self.held {
            let _ = proc::output(proc::command("umount").arg("-l").arg(&self.point));
        }
    }
}

/// A program that serves until it is told to end.
#[derive(Debug)]
pub(super) struct Served {
    child: Child,
    line: String,
    shown: String,
}

impl Served {
    /// Starts the program and waits for its first line on standard output, which says it is ready.
    pub(super) fn start(command: &Command) -> Result<Served> {
        let shown = proc::shown(command);
        // Ends with this program, even if this one is killed; and not by the terminal's Ctrl-C,
        // because what is mounted on it has to go first.
        let mut inner = proc::command("setpriv");
        inner.args(["--pdeathsig", "TERM", "--"]).arg(command.get_program());
        inner.args(command.get_args());
        for (name, value) in command.get_envs() {
            if let Some(value) = value {
                inner.env(name, value);
            }
        }
        inner.process_group(0).stdout(Stdio::piped());
        let mut child = inner.spawn().with_context(|| format!("cannot run `{shown}`"))?;
        let stdout = child.stdout.take().context("no pipe")?;
        let mut served = Served { child, line: String::new(), shown };
        let (tx, rx) = mpsc::sync_channel(1);
        std::thread::spawn(move || {
            let mut lines = BufReader::new(stdout).lines();
            let _ = tx.send(lines.next());
            // The rest is read so that the program never waits for a reader.
            lines.for_each(drop);
        });
        match rx.recv_timeout(READY_WITHIN) {
            Ok(Some(Ok(line))) => served.line = line,
            Ok(_) => bail!("`{}` ended before it was ready", served.shown),
            Err(_) => bail!("`{}` was not ready within {READY_WITHIN:?}", served.shown),
        }
        Ok(served)
    }

    /// The line it said when it was ready.
    pub(super) fn line(&self) -> &str {
        &self.line
    }

    /// Asks it to end and waits; ending otherwise than well is an error.
    pub(super) fn end(mut self) -> Result<()> {
        self.ask_to_end()?;
        let start = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait()? {
                // 143 is the usual way of saying "ended by SIGTERM, orderly".
                if status.success() || status.code() == Some(143) {
                    return Ok(());
                }
                bail!("`{}` ended with {status}", self.shown);
            }
            if start.elapsed() > END_WITHIN {
                bail!("`{}` did not end within {END_WITHIN:?}", self.shown);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn ask_to_end(&self) -> Result<()> {
        let pid = Pid::from_child(&self.child);
        kill_process(pid, Signal::TERM).with_context(|| format!("cannot end `{}`", self.shown))
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            let _ = self.ask_to_end();
            let start = Instant::now();
            while matches!(self.child.try_wait(), Ok(None)) && start.elapsed() < END_WITHIN {
                std::thread::sleep(Duration::from_millis(10));
            }
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}
