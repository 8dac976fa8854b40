//! A directory for one run, and signals caught so that it is always removed.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, bail};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use crate::proc;

/// Remembers that somebody asked this program to end. Programs it started end by themselves (the
/// terminal's Ctrl-C reaches them too), so the running step fails and what was made is taken away.
#[derive(Debug, Clone)]
pub(crate) struct Stop(Arc<AtomicBool>);

impl Stop {
    /// From here on the usual signals no longer end this program in the middle.
    pub(crate) fn catch() -> Result<Stop> {
        let flag = Arc::new(AtomicBool::new(false));
        for signal in [SIGINT, SIGTERM, SIGHUP] {
            signal_hook::flag::register(signal, Arc::clone(&flag))
                .with_context(|| format!("cannot catch signal {signal}"))?;
        }
        Ok(Stop(flag))
    }

    /// An error once a signal has come.
    pub(crate) fn check(&self) -> Result<()> {
        if self.0.load(Ordering::Relaxed) {
            bail!("interrupted");
        }
        Ok(())
    }
}

/// A directory for one run, removed with all that is in it.
#[derive(Debug)]
pub(crate) struct WorkDir(PathBuf);

impl WorkDir {
    /// Makes a directory for this process below `parent`, and removes those that killed runs left.
    pub(crate) fn new(parent: &Path) -> Result<WorkDir> {
        fs::create_dir_all(parent)?;
        sweep(parent)?;
        let dir = parent.join(std::process::id().to_string());
        fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        Ok(WorkDir(dir))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for WorkDir {
    fn drop(&mut self) {
        // Unmounted first: removing must never reach through a mount.
        unmount_below(&self.0);
        if mounts_below(&self.0).is_empty()
            && let Err(error) = fs::remove_dir_all(&self.0)
        {
            eprintln!("cannot remove {}: {error}", self.0.display());
        }
        // Goes when no other run has a directory in it, and stays otherwise.
        if let Some(parent) = self.0.parent() {
            let _ = fs::remove_dir(parent);
        }
    }
}

/// Removes the directories of runs whose process is gone.
fn sweep(parent: &Path) -> Result<()> {
    for entry in fs::read_dir(parent)?.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let is_pid = name.parse::<u32>().is_ok();
        if is_pid && !Path::new("/proc").join(&name).exists() {
            drop(WorkDir(entry.path()));
        }
    }
    Ok(())
}

/// Mount points below a directory, innermost first.
pub(crate) fn mounts_below(dir: &Path) -> Vec<String> {
    sources_below(dir).into_iter().map(|(point, _)| point).collect()
}

/// Mount points below a directory with what is mounted there, innermost first.
fn sources_below(dir: &Path) -> Vec<(String, String)> {
    let text = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let mut found: Vec<(String, String)> = text
        .lines()
        .filter_map(|line| {
            // Fields before " - " are the mount's, those after are the file system's (proc(5)).
            let (mount, system) = line.split_once(" - ")?;
            Some((mount.split(' ').nth(4)?.to_owned(), system.split(' ').nth(1)?.to_owned()))
        })
        .filter(|(point, _)| Path::new(point).starts_with(dir))
        .collect();
    found.sort_by_key(|(point, _)| std::cmp::Reverse(point.len()));
    found
}

/// Loop devices over files below a directory.
pub(crate) fn loops_below(dir: &Path) -> Vec<String> {
    let mut losetup = proc::command("losetup");
    let list = proc::capture(losetup.args(["--list", "--noheadings", "-O", "NAME,BACK-FILE"]));
    let list = list.unwrap_or_default();
    let named = list.lines().filter_map(|line| line.trim().split_once(' '));
    named
        .filter(|(_, file)| Path::new(file.trim()).starts_with(dir))
        .map(|(device, _)| device.to_owned())
        .collect()
}

fn unmount_below(dir: &Path) {
    let mut loops = loops_below(dir);
    for (point, source) in sources_below(dir) {
        let fuse = proc::output(proc::command("fusermount3").args(["-u", "-z", &point]));
        if fuse.is_err()
            && let Err(error) = proc::output(proc::command("umount").args(["-l", &point]))
        {
            eprintln!("cannot unmount {point}: {error:#}");
        }
        if source.starts_with("/dev/loop") && !loops.contains(&source) {
            loops.push(source);
        }
    }
    for device in loops {
        if let Err(error) = proc::output(proc::command("losetup").args(["--detach", &device])) {
            eprintln!("cannot detach {device}: {error:#}");
        }
    }
}
