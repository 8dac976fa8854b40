//! Other processes: this test program started again as a mount process or as a guardian.
//!
//! The two `#[test]`s here are not tests; they are what such a process runs, and do nothing otherwise.

use std::ffi::OsString;
use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use backstay_daemon::fuse::{GuardianCommand, ImageMount, guardian_main};

use crate::support::{Fixture, Mountpoint, open_at, quick};

const SERVE_DIR: &str = "BACKSTAY_TEST_SERVE_DIR";
const SERVE_AT: &str = "BACKSTAY_TEST_SERVE_AT";
const SERVE_GUARDED: &str = "BACKSTAY_TEST_SERVE_GUARDED";

/// A process that serves a mount. Killed and reaped when dropped.
pub(crate) struct Server(Child);

impl Server {
    /// Returns when the mount is there.
    pub(crate) fn start(fixture: &Fixture, at: &Mountpoint, guarded: bool) -> Self {
        Self::start_as(fixture, at, guarded, &std::env::current_exe().unwrap(), None)
    }

    /// The same by a copy of this program, as another user.
    pub(crate) fn start_as(
        fixture: &Fixture,
        at: &Mountpoint,
        guarded: bool,
        program: &Path,
        user: Option<u32>,
    ) -> Self {
        let mut command = Command::new(program);
        if let Some(user) = user {
            command.uid(user).gid(user);
        }
        command
            .args(["--exact", "helper::serve", "--nocapture"])
            .env(SERVE_DIR, fixture.dir.path())
            .env(SERVE_AT, at.path())
            .current_dir("/")
            .stdout(Stdio::piped());
        if guarded {
            command.env(SERVE_GUARDED, "1");
        }
        let mut child = command.spawn().unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        let server = Server(child);
        assert!(output.lines().any(|l| l.unwrap().contains("READY")), "the helper did not mount");
        server
    }

    /// SIGKILL, and wait until it is gone.
    pub(crate) fn kill(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// How this program is started as a guardian.
pub(crate) fn guardian() -> GuardianCommand {
    let args = ["--exact", "helper::guard"].map(OsString::from);
    GuardianCommand { program: std::env::current_exe().unwrap(), args: args.into() }
}

#[test]
fn serve() {
    let Some(dir) = std::env::var_os(SERVE_DIR) else { return };
    let mut options = quick(Path::new(&std::env::var_os(SERVE_AT).unwrap()));
    options.guardian = std::env::var_os(SERVE_GUARDED).map(|_| guardian());
    let mount = ImageMount::start(open_at(Path::new(&dir)), options).unwrap();
    println!("READY");
    mount.wait_until_ended();
}

#[test]
fn guard() {
    // The mountpoint and its identity come last; the test harness takes them for names of tests.
    let args: Vec<String> = std::env::args().collect();
    let [.., mountpoint, identity] = args.as_slice() else { return };
    if let Ok(identity) = identity.parse() {
        guardian_main(Path::new(mountpoint), identity).unwrap();
    }
}
