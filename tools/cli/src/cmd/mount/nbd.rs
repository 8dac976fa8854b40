//! `backstay mount nbd`.

use std::net::SocketAddr;
use std::path::PathBuf;

use backstay_api::mountd::{Listen, MountRequest, Request};
use backstay_core::retention::Length;

use super::{foreground, shown};
use crate::cmd::view;
use crate::context::Ctx;
use crate::exit::{CliError, Exit, help_tail};
use crate::mountd;

/// A mount that nobody uses ends after so long, unless something else is said.
const IDLE_SECONDS: u64 = 24 * 3600;

/// Serve one disk of a recovery point as a network block device
///
/// The mount daemon serves it; it is started if there is none, and the command returns at once. The mount
/// stays until it is ended, its time is over, or nobody was attached for a day; a restart of the daemon does
/// not end it. With --writable what is written goes to an overlay on this host: the recovery point never
/// changes, and at the end the overlay is kept, thrown away, or saved as a new recovery point.
///
/// Root and the user who mounts may attach over the daemon's own socket. Others need --allow, and other hosts
/// an address to reach: --listen. Over a network, give the daemon certificates
/// (`backstay mountd --tls-certificates`): without, what is read and written goes over it in the clear.
#[derive(Debug, clap::Args)]
#[command(after_help = help_tail(
    "  backstay mount nbd web01@latest:disk0
  backstay mount nbd web01 --writable --for 2h --reason 'look at the database'
  backstay mount nbd @b7f3k2 --listen 10.0.0.1:10809 --allow 10.0.0.7=ro
  backstay mount nbd web01 --socket /run/web01.sock --allow uid:64055 --writable",
    &[
        Exit::NoRepository, Exit::WrongKey, Exit::Damaged, Exit::Denied, Exit::NotFound,
        Exit::InUse, Exit::Refused,
    ]
))]
pub(crate) struct Args {
    /// The disk: MACHINE:DISK, MACHINE@POINT:DISK or @ID:DISK; without :DISK the only one
    pub(super) what: String,

    /// Let it be written to; the writes go to an overlay
    #[arg(long, conflicts_with = "foreground")]
    writable: bool,

    /// Most that may be written
    #[arg(long, value_name = "SIZE", requires = "writable", value_parser = crate::units::parse_size)]
    limit: Option<u64>,

    /// At the limit, let writes wait until it is raised or something is trimmed, instead of failing
    #[arg(long, requires = "writable")]
    pause_when_full: bool,

    /// End it after this time, when the clients that are attached then have left
    #[arg(long = "for", value_name = "LENGTH", conflicts_with = "foreground")]
    for_length: Option<Length>,

    /// End it then though clients are attached
    #[arg(long, requires = "for_length")]
    hard_end: bool,

    /// End it when nobody was attached for this time [default: 1d]
    #[arg(long, value_name = "LENGTH", conflicts_with = "foreground")]
    idle: Option<Length>,

    /// Serve it at this address and port, too; port 0 takes a free one
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub(super) listen: Vec<SocketAddr>,

    /// Serve it on a unix socket of its own, too
    #[arg(long, value_name = "PATH")]
    pub(super) socket: Vec<PathBuf>,

    /// Let this one attach: an address (10.0.0.7, 10.0.0.0/24), a user of this host (uid:64055), a client
    /// certificate (cert:SHA256, dns:NAME); with =ro for reading only
    #[arg(long, value_name = "WHO", conflicts_with = "foreground")]
    allow: Vec<String>,

    /// What it is for; shown wherever mounts are listed
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    reason: String,

    /// Serve it by this command itself, read-only, until it is interrupted: no daemon, nothing noted.
    /// Without --listen and --socket at 127.0.0.1:10809
    #[arg(long)]
    foreground: bool,

    /// With --foreground: allow an address that is not loopback; whoever reaches it can read the disk
    #[arg(long, requires = "foreground")]
    pub(super) allow_remote: bool,
}

pub(crate) fn run(ctx: &Ctx, args: Args) -> Result<Exit, CliError> {
    if args.foreground {
        return foreground::run(ctx, &args);
    }
    if let Some(address) =
        args.listen.iter().find(|a| !a.ip().is_loopback() && args.allow.is_empty())
    {
        return Err(CliError::usage(
            "other hosts can reach this address, and nobody is named that may",
        )
        .what(address.to_string())
        .hint("--allow 10.0.0.7=ro, or an address of this host alone: 127.0.0.1:10809"));
    }
    let (repository, location, key) = ctx.open_for_daemon()?;
    let (point, disk) = view::find_disk(&repository.points()?, &args.what)?;
    let mut listen: Vec<Listen> =
        args.listen.iter().map(|address| Listen::Tcp(address.to_string())).collect();
    for path in &args.socket {
        // Absolute, because daemon and clients may be somewhere else.
        let path = std::path::absolute(path)
            .map_err(|error| CliError::io("cannot name the socket", &error))?;
        listen.push(Listen::Unix(path.display().to_string()));
    }
    let request = MountRequest {
        repository: absolute(&location.to_string()),
        key,
        machine: point.machine.clone(),
        point: point.id.to_string(),
        disks: vec![disk.name],
        iscsi: None,
        files: None,
        writable: args.writable,
        limit_bytes: args.limit,
        pause_when_full: args.pause_when_full,
        for_seconds: for_seconds(args.for_length.as_ref())?,
        hard_end: args.hard_end,
        idle_seconds: idle_seconds(args.idle.as_ref(), args.for_length.as_ref())?,
        listen,
        allow: args.allow,
        reason: args.reason,
    };
    // The daemon holds the point by itself from here on.
    drop(repository);
    let view = mountd::ask_or_start(ctx, &Request::Mount(Box::new(request)))?;
    shown::mounted(ctx, &view)?;
    Ok(Exit::Done)
}

/// A length of time as the daemon counts it.
pub(super) fn seconds(length: &Length, option: &str) -> Result<u64, CliError> {
    let exact = length.exact().and_then(|exact| u64::try_from(exact.as_secs()).ok());
    exact.ok_or_else(|| {
        CliError::usage("months and years have no fixed length here").what(option).hint("30d, 36h")
    })
}

/// When a mount ends, as `--for` says.
pub(super) fn for_seconds(length: Option<&Length>) -> Result<Option<u64>, CliError> {
    length.map(|length| seconds(length, "--for")).transpose()
}

/// After what time without clients a mount ends, as `--idle` says; one with an end of its own needs no other.
pub(super) fn idle_seconds(
    idle: Option<&Length>,
    end: Option<&Length>,
) -> Result<Option<u64>, CliError> {
    match (idle, end) {
        (Some(length), _) => seconds(length, "--idle").map(Some),
        (None, Some(_)) => Ok(None),
        (None, None) => Ok(Some(IDLE_SECONDS)),
    }
}

/// A location as another process finds it.
pub(super) fn absolute(location: &str) -> String {
    if location.contains("://") {
        return location.to_owned();
    }
    std::path::absolute(location).map_or_else(|_| location.to_owned(), |p| p.display().to_string())
}
