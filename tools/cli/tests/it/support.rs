//! A throwaway directory with a repository in it, and ways to run the binary.

use std::io::{BufRead as _, BufReader, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

pub(crate) const BIN: &str = env!("CARGO_BIN_EXE_backstay");

/// The binary in an environment that holds nothing of the person who runs the tests.
pub(crate) fn command(home: &Path) -> Command {
    let mut command = Command::new(BIN);
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("BACKSTAY_") {
            command.env_remove(name);
        }
    }
    command
        .env("HOME", home)
        .env("BACKSTAY_CACHE_DIR", home.join("cache"))
        .env("BACKSTAY_STATE_DIR", home.join("state"))
        .env("TZ", "UTC")
        .env("COLUMNS", "100")
        .env("NO_COLOR", "1")
        .stdin(Stdio::null());
    command
}

/// What a run said.
pub(crate) struct Ran {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Ran {
    pub(crate) fn of(output: Output) -> Self {
        Self {
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// The run must have ended with this code.
    #[track_caller]
    pub(crate) fn code(self, code: i32) -> Self {
        assert_eq!(self.code, code, "stdout: {}\nstderr: {}", self.stdout, self.stderr);
        self
    }

    /// Stdout must be one JSON document of our schema.
    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        assert_eq!(self.stdout.lines().count(), 1, "one document: {}", self.stdout);
        let document: Value = serde_json::from_str(&self.stdout)
            .unwrap_or_else(|error| panic!("{error}: {}", self.stdout));
        assert_eq!(document["schema_version"], 1);
        document
    }

    /// The last line of stderr must be a JSON error.
    #[track_caller]
    pub(crate) fn json_error(&self) -> Value {
        let line = self.stderr.lines().last().unwrap_or_default();
        let document: Value =
            serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {}", self.stderr));
        assert_eq!(document["error"]["code"], self.code);
        document["error"].clone()
    }
}

/// A directory of a test's own.
pub(crate) struct Place {
    dir: TempDir,
}

/// Ends a daemon that a command has started on demand, also when a test failed: its pid stands in the
/// lock file.
impl Drop for Place {
    fn drop(&mut self) {
        let Ok(lock) = std::fs::read_to_string(self.path("state/lock")) else { return };
        let Some(pid) = lock.trim().parse().ok().and_then(rustix::process::Pid::from_raw) else {
            return;
        };
        let command = std::fs::read(format!("/proc/{}/cmdline", pid.as_raw_nonzero()));
        let ours = self.text("state");
        if command.is_ok_and(|line| String::from_utf8_lossy(&line).contains(&ours)) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
    }
}

impl Place {
    pub(crate) fn new() -> Self {
        Self { dir: tempfile::tempdir().expect("a temporary directory") }
    }

    /// With a repository under a key file, which is quicker to open than a passphrase.
    pub(crate) fn with_repository() -> Self {
        let place = Self::new();
        place.run(&["repo", "init", "--new-key-file", &place.text("key")]).code(0);
        place
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn text(&self, name: &str) -> String {
        self.path(name).to_str().expect("a readable path").to_owned()
    }

    /// The binary with this place's repository, and its key if there is one by now.
    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = command(self.dir.path());
        command.env("BACKSTAY_REPO", self.path("repo")).current_dir(self.dir.path()).args(args);
        if self.path("key").exists() {
            command.env("BACKSTAY_KEY_FILE", self.path("key"));
        }
        command
    }

    pub(crate) fn run(&self, args: &[&str]) -> Ran {
        Ran::of(self.command(args).output().expect("the binary runs"))
    }

    /// Starts the binary with pipes for stdout and stderr.
    pub(crate) fn start(&self, args: &[&str]) -> Running {
        let child = self.command(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
        Running { child: Some(child.expect("the binary starts")), stderr: None }
    }

    /// Writes an image file.
    pub(crate) fn image(&self, name: &str, content: &[u8]) -> String {
        std::fs::write(self.path(name), content).expect("the image is written");
        self.text(name)
    }

    /// What everything below a directory takes on the disk, in bytes.
    pub(crate) fn usage(&self, below: &str) -> u64 {
        let mut open = vec![self.path(below)];
        let mut total = 0;
        while let Some(dir) = open.pop() {
            for entry in std::fs::read_dir(dir).expect("a directory").map(|e| e.expect("an entry"))
            {
                let meta = entry.metadata().expect("its metadata");
                if meta.is_dir() {
                    open.push(entry.path());
                } else {
                    total += meta.blocks() * 512;
                }
            }
        }
        total
    }

    /// The largest file below a directory: in a repository that holds data, a pack.
    pub(crate) fn largest_file(&self, below: &str) -> PathBuf {
        let mut open = vec![self.path(below)];
        let mut found = (0, PathBuf::new());
        while let Some(dir) = open.pop() {
            for entry in std::fs::read_dir(dir).expect("a directory").map(|e| e.expect("an entry"))
            {
                let meta = entry.metadata().expect("its metadata");
                if meta.is_dir() {
                    open.push(entry.path());
                } else if meta.len() > found.0 {
                    found = (meta.len(), entry.path());
                }
            }
        }
        found.1
    }
}

/// A started binary; killed when the test fails before it has ended.
pub(crate) struct Running {
    child: Option<Child>,
    /// Collects stderr, once somebody waited for something in it.
    stderr: Option<JoinHandle<String>>,
}

impl Running {
    fn child(&mut self) -> &mut Child {
        self.child.as_mut().expect("still there")
    }

    /// The first line of stdout; the rest stays with the caller's reader.
    #[track_caller]
    pub(crate) fn first_line(&mut self) -> String {
        let stdout = self.child().stdout.take().expect("a pipe");
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line).expect("a line");
        if line.is_empty() {
            let child = self.child.take().expect("still there");
            panic!("it ended: {}", Ran::of(child.wait_with_output().expect("its end")).stderr);
        }
        line
    }

    /// Reads stderr until a line holds `text`. What is said before and after is in the end.
    #[track_caller]
    pub(crate) fn wait_for_stderr(&mut self, text: &str) {
        let stderr = self.child().stderr.take().expect("a pipe");
        let mut reader = BufReader::new(stderr);
        let mut said = String::new();
        loop {
            let before = said.len();
            let read = reader.read_line(&mut said).expect("a line");
            assert!(read > 0, "it ended without {text}: {said}");
            if said[before..].contains(text) {
                break;
            }
        }
        // Read on, so that the process never waits for us.
        self.stderr = Some(std::thread::spawn(move || {
            let _ = reader.read_to_string(&mut said);
            said
        }));
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.as_ref().expect("still there").id()
    }

    pub(crate) fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_child(self.child.as_ref().expect("still there"));
        rustix::process::kill_process(pid, signal).expect("the signal is sent");
    }

    pub(crate) fn close_stdout(&mut self) {
        drop(self.child().stdout.take());
    }

    pub(crate) fn end(mut self) -> Ran {
        let child = self.child.take().expect("still there");
        let mut ran = Ran::of(child.wait_with_output().expect("its end"));
        if let Some(said) = self.stderr.take() {
            ran.stderr = said.join().expect("stderr was read");
        }
        ran
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Bytes that do not compress, always the same for a seed.
pub(crate) fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        // xorshift64
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

/// An image with data, zeros and text, and an odd end.
pub(crate) fn sample(seed: u64) -> Vec<u8> {
    let mut bytes = noise(seed, 1 << 20);
    bytes.resize(3 << 20, 0);
    bytes.extend(b"the quick brown fox\n".repeat(50_000));
    bytes.extend(noise(seed + 1, 700_001));
    bytes
}

pub(crate) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Says aloud that a test could not run here.
pub(crate) fn skipped(why: &str) {
    use std::io::Write as _;
    let _ = writeln!(std::io::stderr(), "SKIPPED {why}");
}

/// Whether FUSE can be used here; a test that cannot run says so.
pub(crate) fn has_fuse(test: &str) -> bool {
    let fuse = Path::new("/dev/fuse").exists();
    if !fuse || !is_root() {
        skipped(&format!("{test}: needs root and /dev/fuse"));
        return false;
    }
    true
}

/// Looks again and again until it is so; a test that waits in vain fails.
#[track_caller]
pub(crate) fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < Duration::from_secs(30), "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}
