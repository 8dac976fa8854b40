//! Running other programs: what was run is always part of the error.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use anyhow::{Context, Result, bail};

/// Longest piece of a failed program's output that is repeated in an error.
const MAX_ERROR_TAIL_BYTES: usize = 4096;

/// A command with the administrator's directories on its path: sgdisk, mke2fs and losetup live in
/// `/usr/sbin`, which an ordinary user's path lacks on Debian. Output is in the C locale, because
/// some of it is parsed.
pub(crate) fn command(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    command.env("PATH", search_path()).env("LC_ALL", "C.UTF-8").stdin(Stdio::null());
    command
}

fn search_path() -> String {
    let path = std::env::var("PATH").unwrap_or_default();
    format!("{path}:/usr/local/sbin:/usr/sbin:/sbin")
}

/// The file that a program's name stands for, or `None` when it is not installed.
pub(crate) fn find(program: &str) -> Option<PathBuf> {
    search_path()
        .split(':')
        .filter(|dir| !dir.is_empty())
        .map(|dir| Path::new(dir).join(program))
        .find(|path| path.is_file())
}

/// The command as a person would type it.
pub(crate) fn shown(command: &Command) -> String {
    let mut line = command.get_program().to_string_lossy().into_owned();
    for arg in command.get_args() {
        let arg = arg.to_string_lossy();
        line.push(' ');
        if arg.is_empty() || arg.contains([' ', '"', '\'', '$', '*']) {
            line.push_str(&format!("'{arg}'"));
        } else {
            line.push_str(&arg);
        }
    }
    line
}

/// Runs to the end, output to the terminal; an exit status other than 0 is an error.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("cannot run `{}`", shown(command)))?;
    if !status.success() {
        bail!("`{}` ended with {status}", shown(command));
    }
    Ok(())
}

/// Runs to the end and returns what was written to standard output as text.
pub(crate) fn capture(command: &mut Command) -> Result<String> {
    let output = output(command)?;
    String::from_utf8(output.stdout)
        .with_context(|| format!("`{}` wrote something that is not text", shown(command)))
}

/// Runs to the end; an exit status other than 0 is an error that quotes the end of what was said.
pub(crate) fn output(command: &mut Command) -> Result<Output> {
    let output = command.output().with_context(|| format!("cannot run `{}`", shown(command)))?;
    if !output.status.success() {
        let said = [output.stdout.as_slice(), output.stderr.as_slice()].concat();
        bail!("`{}` ended with {}: {}", shown(command), output.status, tail(&said));
    }
    Ok(output)
}

/// Runs `from | to`; both must succeed. Returns what `to` printed.
pub(crate) fn pipe(mut from: Command, mut to: Command) -> Result<String> {
    let mut first = from
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot run `{}`", shown(&from)))?;
    let output = first.stdout.take().context("no pipe")?;
    let text = capture(to.stdin(output));
    let status = first.wait()?;
    let text = text?;
    if !status.success() {
        bail!("`{}` ended with {status}", shown(&from));
    }
    Ok(text)
}

/// Runs to the end, passing every line of the given stream on to the terminal and to `on_line`.
/// Returns whether the program succeeded.
pub(crate) fn watch(
    command: &mut Command,
    stream: Stream,
    mut on_line: impl FnMut(&str),
) -> Result<bool> {
    match stream {
        Stream::Stdout => command.stdout(Stdio::piped()),
        Stream::Stderr => command.stderr(Stdio::piped()),
    };
    let mut child = command.spawn().with_context(|| format!("cannot run `{}`", shown(command)))?;
    let pipe: Box<dyn Read> = match stream {
        Stream::Stdout => Box::new(child.stdout.take().context("no pipe")?),
        Stream::Stderr => Box::new(child.stderr.take().context("no pipe")?),
    };
    let mut reader = BufReader::new(pipe);
    let mut line = Vec::new();
    while reader.read_until(b'\n', &mut line)? > 0 {
        let text = String::from_utf8_lossy(&line);
        let text = text.trim_end_matches('\n');
        match stream {
            Stream::Stdout => println!("{text}"),
            Stream::Stderr => eprintln!("{text}"),
        }
        on_line(text);
        line.clear();
    }
    Ok(child.wait()?.success())
}

/// Which of a program's outputs is watched.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Stream {
    Stdout,
    Stderr,
}

fn tail(said: &[u8]) -> String {
    let from = said.len().saturating_sub(MAX_ERROR_TAIL_BYTES);
    String::from_utf8_lossy(&said[from..]).trim().to_owned()
}

/// True when this process may do what only the administrator may.
pub(crate) fn is_root() -> bool {
    // Effective user id, fourth field of "Uid:", so that no unsafe call is needed.
    std::fs::read_to_string("/proc/self/status")
        .ok()
        .and_then(|status| {
            let line = status.lines().find_map(|l| l.strip_prefix("Uid:"))?.to_owned();
            line.split_whitespace().nth(1).map(|uid| uid == "0")
        })
        .unwrap_or(false)
}
