//! A memory limit that the kernel enforces.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// A control group, of version 1 or 2. Removed when dropped; its processes must be over by then.
pub(crate) struct Cgroup {
    path: PathBuf,
}

impl Cgroup {
    /// A group below this process's own, with a limit. An error where the kernel or its owner do
    /// not allow one.
    pub(crate) fn new(bytes: u64) -> Result<Self> {
        let own = fs::read_to_string("/proc/self/cgroup").context("no control groups")?;
        let name = format!("backstay-{}", std::process::id());
        let root = Path::new("/sys/fs/cgroup");
        let place = own.lines().find_map(|line| {
            let mut parts = line.splitn(3, ':').skip(1);
            let (controllers, path) = (parts.next()?, parts.next()?.trim_start_matches('/'));
            if controllers.split(',').any(|c| c == "memory") {
                return Some((root.join("memory").join(path), "memory.limit_in_bytes"));
            }
            let v2 = controllers.is_empty() && root.join("cgroup.controllers").exists();
            v2.then(|| (root.join(path), "memory.max"))
        });
        let (parent, limit) = place.context("no memory controller")?;
        let path = parent.join(name);
        fs::create_dir(&path).with_context(|| format!("cannot make {}", path.display()))?;
        let group = Self { path };
        fs::write(group.path.join(limit), bytes.to_string()).context("cannot set the limit")?;
        Ok(group)
    }

    /// Puts a process under the limit.
    pub(crate) fn add(&self, pid: u32) -> Result<()> {
        fs::write(self.path.join("cgroup.procs"), pid.to_string()).context("cannot join")
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // The kernel takes a moment to notice that the last process is gone.
        for _ in 0..50 {
            if fs::remove_dir(&self.path).is_ok() {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        eprintln!("the control group {} was left", self.path.display());
    }
}
