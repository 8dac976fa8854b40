//! Running QEMU's tools: found, bounded in what they may say, and never outliving us.

use std::io::Read;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::JoinHandle;

use crate::error::{Error, ErrorKind, Result};

/// Kept of what a tool says on its standard error; a damaged image can make it say any amount.
const WORDS_MAX_BYTES: usize = 4096;

/// The programs by name; tests point them elsewhere.
#[derive(Debug, Clone)]
pub(crate) struct Tools {
    pub(crate) qemu_img: PathBuf,
    pub(crate) qemu_nbd: PathBuf,
}

impl Default for Tools {
    fn default() -> Self {
        Tools { qemu_img: "qemu-img".into(), qemu_nbd: "qemu-nbd".into() }
    }
}

/// A command for `program` that the kernel kills when the thread that starts it ends, however that
/// happens. `setpriv` (util-linux, on every Debian system) sets this up, since doing it here
/// would need code between fork and exec. The starting thread must wait for the child.
pub(crate) fn command(program: &std::path::Path) -> Result<Command> {
    let missing = |package: &str, e: std::io::Error| {
        let context =
            format!("{} is needed and missing: install the package {package}", program.display());
        Error::new(ErrorKind::Unsupported, context).caused_by(e)
    };
    let quiet = |command: &mut Command| {
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status()
    };
    // Asked first, because behind setpriv a missing program looks like a failing one.
    match quiet(Command::new(program).arg("--version")) {
        Ok(_) => {}
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            return Err(missing("qemu-utils", e));
        }
        Err(e) => return Err(Error::io("run", program, e)),
    }
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--"]).arg(program);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    // Messages are read by people and by `kind_of_words`.
    command.env("LC_ALL", "C");
    Ok(command)
}

/// A running tool whose standard error is being collected.
#[derive(Debug)]
pub(crate) struct Running {
    child: Child,
    words: Option<JoinHandle<String>>,
}

impl Running {
    /// Starts a command made by [`command`].
    pub(crate) fn start(mut command: Command) -> Result<Running> {
        let mut child = command
            .spawn()
            .map_err(|e| Error::new(ErrorKind::Tool, "cannot run setpriv").caused_by(e))?;
        let words = child.stderr.take().map(|err| std::thread::spawn(move || collect(err)));
        Ok(Running { child, words })
    }

    /// The exit status if the tool has ended.
    pub(crate) fn poll(&mut self) -> Result<Option<ExitStatus>> {
        self.child
            .try_wait()
            .map_err(|e| Error::new(ErrorKind::Tool, "cannot wait for a tool").caused_by(e))
    }

    /// Waits for the end; returns the status and the beginning of what was said.
    pub(crate) fn finish(mut self) -> Result<(ExitStatus, String)> {
        let status = self
            .child
            .wait()
            .map_err(|e| Error::new(ErrorKind::Tool, "cannot wait for a tool").caused_by(e))?;
        let words = self.words.take().and_then(|w| w.join().ok()).unwrap_or_default();
        Ok((status, words))
    }
}

impl Drop for Running {
    /// Kills and reaps. Both calls fail only where the tool has been waited for already.
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if let Some(words) = self.words.take() {
            let _ = words.join();
        }
    }
}

/// The first bytes of `from`; the rest is read too, so that the tool never blocks on it.
fn collect(mut from: impl Read) -> String {
    let mut kept = Vec::new();
    let mut buf = [0u8; 1024];
    loop {
        match from.read(&mut buf) {
            Ok(0) => break,
            Ok(n) => {
                let room = WORDS_MAX_BYTES.saturating_sub(kept.len());
                kept.extend_from_slice(buf.get(..n.min(room)).unwrap_or_default());
            }
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(_) => break,
        }
    }
    // Names in it come from images: no terminal escapes, no lines of their own.
    let text = String::from_utf8_lossy(&kept);
    let lines: Vec<_> = text.lines().map(str::trim).filter(|l| !l.is_empty()).take(3).collect();
    lines.join("; ").chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

/// The error for a tool that ended badly with `words`.
pub(crate) fn failed(what: &str, otherwise: ErrorKind, words: &str) -> Error {
    let kind = if words.contains("Is another process using the image") || words.contains(" lock") {
        ErrorKind::InUse
    } else if words.contains("No space left on device") {
        ErrorKind::NoSpace
    } else if words.contains("Permission denied") {
        ErrorKind::Denied
    } else {
        otherwise
    };
    let words = if words.is_empty() { "it gave no reason" } else { words };
    Error::new(kind, format!("{what}: {words}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_tool_names_the_package() {
        let error = command(std::path::Path::new("/nonexistent/qemu-nbd")).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert!(error.to_string().contains("qemu-utils"), "{error}");
    }

    #[test]
    fn words_are_bounded_and_harmless() {
        let said = format!("one\x1b[31m\n\n{}\nthree\nfour", "x".repeat(WORDS_MAX_BYTES));
        let kept = collect(said.as_bytes());
        assert!(kept.len() <= WORDS_MAX_BYTES && kept.starts_with("one?[31m; xxx"), "{kept}");
        assert_eq!(collect(&b"a\nb\nc\nd"[..]), "a; b; c");
    }

    #[test]
    fn a_dropped_tool_is_gone() {
        let mut sleep = Command::new("sleep");
        sleep.arg("1000").stderr(Stdio::piped());
        let running = Running::start(sleep).unwrap();
        let proc = format!("/proc/{}", running.child.id());
        assert!(std::path::Path::new(&proc).exists());
        drop(running);
        assert!(!std::path::Path::new(&proc).exists());
    }
}
