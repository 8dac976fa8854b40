//! Where the mount daemon is, and how to reach it.

use std::fs::OpenOptions;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use backstay_api::mountd::{Answer, MountView, Request};
use backstay_api::{ClientError, MountdClient};

use crate::context::Ctx;
use crate::exit::{CliError, Exit};

/// How long a daemon may take until it answers.
const START_TIMEOUT: Duration = Duration::from_secs(30);
/// How often it is tried meanwhile.
const TRY_EVERY: Duration = Duration::from_millis(20);
/// So much of a daemon's log is shown when it does not start.
const LOG_LINES: usize = 5;

/// Where a daemon keeps and listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Places {
    /// Its ledger and overlays.
    pub(crate) state_dir: PathBuf,
    /// Its control socket.
    pub(crate) control: PathBuf,
    /// The socket over which it serves all mounts to this host.
    pub(crate) nbd: PathBuf,
}

impl Places {
    /// As the options and the environment say, else the usual places of the user.
    pub(crate) fn of(ctx: &Ctx) -> Result<Self, CliError> {
        let absolute = |name: &str| {
            std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute())
        };
        let root = rustix::process::geteuid().is_root();
        let home = || absolute("HOME").map(|home| home.join(".local/state"));
        let usual = || match root {
            true => Some(PathBuf::from("/var/lib/backstay")),
            false => absolute("XDG_STATE_HOME").or_else(home).map(|base| base.join("backstay")),
        };
        let chosen = ctx.global.state_dir.clone();
        let run_dir = match (&chosen, root) {
            // Everything of a daemon that was put somewhere is there.
            (Some(chosen), _) => chosen.join("run"),
            (None, true) => PathBuf::from("/run/backstay"),
            (None, false) => match absolute("XDG_RUNTIME_DIR") {
                Some(runtime) => runtime.join("backstay"),
                None => usual().map(|state| state.join("run")).unwrap_or_default(),
            },
        };
        let state_dir = chosen.or_else(usual).ok_or_else(|| {
            CliError::usage("there is no place for the mounts: HOME is not set")
                .hint("--state-dir DIR or BACKSTAY_STATE_DIR")
        })?;
        let path = |path: PathBuf| {
            std::path::absolute(path)
                .map_err(|error| CliError::io("cannot name the daemon's directory", &error))
        };
        Ok(Self {
            state_dir: path(state_dir)?,
            control: path(run_dir.join("mountd.sock"))?,
            nbd: path(run_dir.join("nbd.sock"))?,
        })
    }

    /// Makes the directories of the sockets; `nbd`'s can be entered by all, since the daemon asks who they are.
    pub(crate) fn make_dirs(&self) -> Result<(), CliError> {
        let mut builder = std::fs::DirBuilder::new();
        builder.recursive(true);
        for (mode, path) in [(0o700, Some(self.state_dir.as_path())), (0o755, self.nbd.parent())] {
            let Some(path) = path else { continue };
            builder.mode(mode).create(path).map_err(|error| {
                CliError::io("cannot make the directory", &error).what(path.display().to_string())
            })?;
        }
        Ok(())
    }

    fn log(&self) -> PathBuf {
        self.state_dir.join("mountd.log")
    }
}

/// Asks the daemon that is there; nobody there is an error.
pub(crate) fn ask(ctx: &Ctx, request: &Request) -> Result<Answer, CliError> {
    let places = Places::of(ctx)?;
    let mut client = MountdClient::connect(&places.control).map_err(|error| {
        CliError::new(Exit::NotFound, error.to_string())
            .because(&error)
            .hint("backstay mountd               serves what was mounted before")
            .hint("backstay mount nbd POINT      starts it by itself")
    })?;
    Ok(client.ask(request)?)
}

/// Asks for one mount.
pub(crate) fn ask_mount(ctx: &Ctx, request: &Request) -> Result<MountView, CliError> {
    one(ask(ctx, request)?)
}

/// Asks the daemon, and starts one first if there is none.
pub(crate) fn ask_or_start(ctx: &Ctx, request: &Request) -> Result<MountView, CliError> {
    Ok(try_or_start(ctx, request)??)
}

/// The same; what the daemon refuses is left to the caller.
pub(crate) fn try_or_start(
    ctx: &Ctx,
    request: &Request,
) -> Result<Result<MountView, ClientError>, CliError> {
    let places = Places::of(ctx)?;
    let mut client = match MountdClient::connect(&places.control) {
        Ok(client) => client,
        Err(ClientError::NoDaemon { .. }) => start(ctx, &places)?,
        Err(error) => return Err(error.into()),
    };
    match client.ask(request) {
        Ok(answer) => one(answer).map(Ok),
        Err(error) => Ok(Err(error)),
    }
}

fn one(answer: Answer) -> Result<MountView, CliError> {
    match answer {
        Answer::Mount(view) => Ok(*view),
        other => Err(unexpected(&other)),
    }
}

/// An answer to another question.
pub(crate) fn unexpected(answer: &Answer) -> CliError {
    CliError::new(Exit::Failed, "the mount daemon answered something else")
        .what(format!("{answer:?}").chars().take(200).collect::<String>())
}

/// Starts a daemon that ends by itself when it serves nothing any more.
fn start(ctx: &Ctx, places: &Places) -> Result<MountdClient, CliError> {
    places.make_dirs()?;
    let log_path = places.log();
    let failed = |error: std::io::Error| CliError::io("cannot start the mount daemon", &error);
    let log =
        OpenOptions::new().create(true).append(true).mode(0o600).open(&log_path).map_err(failed)?;
    let mut command = Command::new(std::env::current_exe().map_err(failed)?);
    command.arg("mountd").arg("--on-demand").arg("--state-dir").arg(&places.state_dir);
    command.arg("--socket").arg(&places.control).arg("--nbd-socket").arg(&places.nbd);
    command.arg("--cache-dir").arg(ctx.cache_dir()?).current_dir("/");
    if let Some(bytes) = ctx.global.disk_cache {
        command.arg("--disk-cache").arg(bytes.to_string());
    }
    let errors = log.try_clone().map_err(failed)?;
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::from(log))
        .stderr(Stdio::from(errors))
        .spawn()
        .map_err(failed)?;
    wait_for(places, &mut child, &log_path)
}

fn wait_for(places: &Places, child: &mut Child, log: &Path) -> Result<MountdClient, CliError> {
    let started = Instant::now();
    loop {
        match MountdClient::connect(&places.control) {
            Ok(client) => return Ok(client),
            Err(ClientError::NoDaemon { .. }) => {}
            Err(error) => return Err(error.into()),
        }
        // One that finds another at work ends; then the other answers soon.
        let ended = child.try_wait().ok().flatten().filter(|status| !status.success());
        if ended.is_some() || started.elapsed() > START_TIMEOUT {
            let text = std::fs::read_to_string(log).unwrap_or_default();
            let lines: Vec<&str> = text.lines().collect();
            let mut error = CliError::new(Exit::Failed, "the mount daemon did not start")
                .what(log.display().to_string());
            let last = lines.len().saturating_sub(LOG_LINES);
            error.causes.extend(lines[last..].iter().map(|line| (*line).to_owned()));
            return Err(error);
        }
        std::thread::sleep(TRY_EVERY);
    }
}
