//! `backstay mount nbd`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use backstay_daemon::nbd::PointExports;
use backstay_nbd::server::{BoundAddress, Listen, ServerConfig, ServerHandle};
use backstay_store::{DiskRecord, RecoveryPoint};
use serde::Serialize;

use crate::cmd::view;
use crate::context::Ctx;
use crate::exit::{CliError, Exit, help_tail};
use crate::output::{Stream, field};
use crate::signals::Signals;
use crate::units::{self, shell_word};

/// Serve one disk of a recovery point as a network block device, read-only
///
/// Without --listen and --socket it listens on 127.0.0.1, port 10809. The command stays until it
/// is interrupted. There is no encryption and no password on the wire yet, so other addresses
/// than loopback need --allow-remote.
#[derive(Debug, clap::Args)]
#[command(after_help = help_tail(
    "  backstay mount nbd web01@latest:disk0
  backstay mount nbd @b7f3k2 --socket /run/web01.sock",
    &[
        Exit::NoRepository, Exit::WrongKey, Exit::Damaged, Exit::Denied, Exit::NotFound,
        Exit::InUse,
    ]
))]
pub(crate) struct Args {
    /// The disk: MACHINE:DISK, MACHINE@POINT:DISK or @ID:DISK; without :DISK the only one
    what: String,

    /// The address and port to listen on; port 0 takes a free one
    #[arg(long, value_name = "ADDRESS:PORT", conflicts_with = "socket")]
    listen: Option<SocketAddr>,

    /// Listen on a unix socket instead
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,

    /// Allow an address that is not loopback: whoever reaches it can read the disk
    #[arg(long)]
    allow_remote: bool,
}

#[derive(Serialize)]
struct Document {
    kind: &'static str,
    machine: String,
    point: String,
    disk: String,
    size_bytes: u64,
    export: String,
    address: String,
    uri: String,
    pid: u32,
    client_commands: Vec<ClientCommand>,
}

#[derive(Serialize)]
struct ClientCommand {
    tool: &'static str,
    command: String,
}

pub(crate) fn run(ctx: &Ctx, args: Args) -> Result<Exit, CliError> {
    let listen = listen(&args)?;
    let repository = ctx.open()?;
    let (point, disk) = view::find_disk(&repository.points()?, &args.what)?;
    let exports = PointExports::new(&repository, &point, Some(&disk.name))?;
    let signals = Signals::listen()?;
    let server = ServerHandle::start(vec![listen], Arc::new(exports), ServerConfig::default())
        .map_err(cannot_listen)?;
    let Some(address) = server.addresses().first() else {
        return Err(CliError::new(Exit::Failed, "the server listens nowhere"));
    };
    let document = Document::new(&point, &disk, address);
    let told = ctx.out.summary(Stream::Stdout, &document, |to| show(to, &document));
    // Nobody reading our words is no reason to cut off those who read the disk.
    if let Err(error) = told
        && !error.quiet
    {
        return Err(error);
    }
    signals.wait(|| false);
    server
        .stop()
        .map_err(|error| CliError::new(Exit::Failed, error.to_string()).because(&error))?;
    Ok(Exit::Done)
}

impl Document {
    fn new(point: &RecoveryPoint, disk: &DiskRecord, address: &BoundAddress) -> Self {
        let uri = address.uri(&disk.name);
        Self {
            kind: "nbd",
            machine: point.machine.clone(),
            point: point.id.to_string(),
            disk: disk.name.clone(),
            size_bytes: disk.size_bytes,
            export: disk.name.clone(),
            address: address.to_string(),
            client_commands: client_commands(&uri, &disk.name, address),
            uri,
            pid: std::process::id(),
        }
    }
}

/// What to type next, for the tools people have.
fn client_commands(uri: &str, disk: &str, address: &BoundAddress) -> Vec<ClientCommand> {
    let uri = shell_word(uri);
    let name = shell_word(disk);
    let to = match address {
        BoundAddress::Unix(path) => format!("-unix {}", shell_word(&path.display().to_string())),
        BoundAddress::Tcp(address) => format!("{} {}", address.ip(), address.port()),
    };
    let command = |tool, command| ClientCommand { tool, command };
    vec![
        command("nbdinfo", format!("nbdinfo --map --totals {uri}")),
        command("nbdcopy", format!("nbdcopy {uri} {}", shell_word(&format!("{disk}.raw")))),
        command("qemu", format!("qemu-system-x86_64 -snapshot -drive file={uri},format=raw")),
        command("nbd-client", format!("nbd-client {to} /dev/nbd0 -name {name} -readonly")),
    ]
}

/// A server that does not start: most often somebody else listens there.
fn cannot_listen(error: backstay_nbd::Error) -> CliError {
    use backstay_nbd::ErrorKind;
    let source = std::error::Error::source(&error);
    let os = source.and_then(|source| source.downcast_ref::<std::io::Error>());
    let mut told = match os {
        Some(os) => CliError::io(error.to_string(), os),
        None => CliError::new(Exit::Failed, error.to_string()).because(&error),
    };
    if error.kind() == ErrorKind::Invalid {
        // The name of the socket is taken by something that is alive, or is no socket.
        told.exit = Exit::InUse;
    }
    if told.exit == Exit::InUse {
        told = told.hint("--listen 127.0.0.1:0      takes a free port");
    }
    told
}

fn show(to: &mut String, document: &Document) {
    let short: String = document.point.chars().take(6).collect();
    let what = format!("{}@{short}:{}", document.machine, document.disk);
    field(to, "serving", &format!("{what}  {}  read-only", units::size(document.size_bytes)));
    field(to, "address", &document.uri);
    for client in &document.client_commands {
        field(to, client.tool, &client.command);
    }
    field(to, "end it", "Ctrl-C here");
}

/// Where to listen, once it is clear that strangers cannot come in by accident.
fn listen(args: &Args) -> Result<Listen, CliError> {
    if let Some(path) = &args.socket {
        // Absolute, because clients may be somewhere else.
        let path = std::path::absolute(path)
            .map_err(|error| CliError::io("cannot name the socket", &error))?;
        return Ok(Listen::Unix(path));
    }
    let address = args.listen.unwrap_or_else(|| SocketAddr::from(([127, 0, 0, 1], 10809)));
    if !address.ip().is_loopback() && !args.allow_remote {
        return Err(CliError::usage("this address can be reached by other hosts")
            .what(address.to_string())
            .hint("--listen 127.0.0.1:10809      and an ssh tunnel")
            .hint("--allow-remote                if everybody on that network may read the disk"));
    }
    Ok(Listen::Tcp(address))
}
