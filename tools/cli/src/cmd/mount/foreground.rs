//! `backstay mount nbd --foreground`: served by this process, for as long as it runs.

use std::net::SocketAddr;
use std::sync::Arc;

use backstay_daemon::nbd::PointExports;
use backstay_nbd::server::{BoundAddress, Listen, ServerConfig, ServerHandle, export_uri};
use backstay_store::{DiskRecord, RecoveryPoint};
use serde::Serialize;

use super::clients::{self, ClientCommand};
use super::nbd::Args;
use crate::cmd::view;
use crate::context::Ctx;
use crate::exit::{CliError, Exit};
use crate::output::{Stream, field};
use crate::signals::Signals;
use crate::units;

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

/// Serves one disk, read-only, until interrupted.
pub(super) fn run(ctx: &Ctx, args: &Args) -> Result<Exit, CliError> {
    let listen = listen(args)?;
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
        let uri = export_uri(address, &disk.name, false);
        Self {
            kind: "nbd",
            machine: point.machine.clone(),
            point: point.id.to_string(),
            disk: disk.name.clone(),
            size_bytes: disk.size_bytes,
            export: disk.name.clone(),
            address: address.to_string(),
            client_commands: clients::commands(&uri, &disk.name, &disk.name, true),
            uri,
            pid: std::process::id(),
        }
    }
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
    if let Some(path) = args.socket.first() {
        // Absolute, because clients may be somewhere else.
        let path = std::path::absolute(path)
            .map_err(|error| CliError::io("cannot name the socket", &error))?;
        return Ok(Listen::Unix(path));
    }
    let address =
        args.listen.first().copied().unwrap_or_else(|| SocketAddr::from(([127, 0, 0, 1], 10809)));
    if !address.ip().is_loopback() && !args.allow_remote {
        return Err(CliError::usage("this address can be reached by other hosts")
            .what(address.to_string())
            .hint("--listen 127.0.0.1:10809      and an ssh tunnel")
            .hint("--allow-remote                if everybody on that network may read the disk"));
    }
    Ok(Listen::Tcp(address))
}
