//! The guardian: a small process that outlives a killed mount process and takes its mount away.
//!
//! A FUSE mount whose process was killed stays in the mount table, and every access to it fails with
//! "Transport endpoint is not connected" until somebody unmounts it. Nothing inside the killed
//! process can help; so a child waits for the end of a pipe that only the parent holds.

use std::ffi::OsString;
use std::io::Read;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::table::{self, MountIdentity, Pulse, Unmount};
use crate::Error;

/// How long the guardian waits for the kernel to notice that the mount's process is gone. The pipe
/// and the FUSE device of a dying process are closed in any order.
const PATIENCE: Duration = Duration::from_secs(30);
/// How often it looks meanwhile.
const INTERVAL: Duration = Duration::from_millis(20);

/// How to start a guardian: the program is run with these arguments, then the mountpoint, then the
/// text of its [`MountIdentity`], and must call [`guardian_main`] with the two.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuardianCommand {
    /// The program, as an absolute path: the guardian runs in `/`.
    pub program: PathBuf,
    /// What comes before mountpoint and identity, such as `guard`.
    pub args: Vec<OsString>,
}

/// A running guardian. Dropping it, after the mount has gone, ends it.
#[derive(Debug)]
pub(super) struct Guardian {
    child: Child,
}

impl Guardian {
    pub(super) fn spawn(
        command: &GuardianCommand,
        mountpoint: &Path,
        identity: MountIdentity,
    ) -> Result<Self, Error> {
        let child = Command::new(&command.program)
            .args(&command.args)
            .arg(mountpoint)
            .arg(identity.to_string())
            // Its working directory must hold no file system, least of all the mount itself.
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            // Ctrl-C at a terminal goes to the whole process group; it must not end the guardian.
            .process_group(0)
            .spawn()
            .map_err(|e| {
                Error::os(format!("cannot start the guardian {}", command.program.display()), e)
            })?;
        Ok(Self { child })
    }
}

impl Drop for Guardian {
    fn drop(&mut self) {
        // Closing the pipe is the sign; the mount is gone, so it ends at once.
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}

/// The guardian's whole life: waits until standard input ends, then detaches the mount `expected` at
/// `mountpoint` if it is still there and its process is dead. A mount that is gone, alive again or
/// another one is left alone.
///
/// # Errors
/// If the mount is dead and cannot be detached.
pub fn guardian_main(mountpoint: &Path, expected: MountIdentity) -> Result<(), Error> {
    wait_for_end_of_input();
    let start = Instant::now();
    loop {
        match table::mounted_at(mountpoint)? {
            Some(mounted) if mounted.identity == expected => {}
            _ => return Ok(()),
        }
        if table::pulse(mountpoint) == Pulse::Dead {
            return table::unmount(mountpoint, expected, Unmount::Detach).map(|_| ());
        }
        if start.elapsed() > PATIENCE {
            return Ok(());
        }
        std::thread::sleep(INTERVAL);
    }
}

fn wait_for_end_of_input() {
    let mut scrap = [0u8; 64];
    let mut input = std::io::stdin().lock();
    loop {
        match input.read(&mut scrap) {
            Ok(0) => return,
            Ok(_) => {}
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            // Without a readable input nobody can tell when the parent ends: look now.
            Err(_) => return,
        }
    }
}
