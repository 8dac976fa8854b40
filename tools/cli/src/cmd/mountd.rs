//! `backstay mountd`.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use backstay_daemon::mounts::control::Control;
use backstay_daemon::mounts::{Helpers, Mountd, MountdOptions};
use backstay_nbd::server::{ClientCertificates, Listen, ServerConfig, Tls, TlsConfig, TlsFiles};
use serde::Serialize;

use crate::browse;
use crate::context::Ctx;
use crate::exit::{CliError, Exit, help_tail};
use crate::mountd::Places;
use crate::output::{Stream, field};
use crate::signals::Signals;

/// How long a daemon that was started on demand stays without a mount.
const ON_DEMAND_STAYS: Duration = Duration::from_secs(30);

/// Serve mounts until interrupted: the daemon behind `mount nbd` and `mount iscsi`
///
/// It serves again whatever was mounted when it ended, under the same names. `mount nbd` starts one by
/// itself; a service manager can do it as well, and may hand over the control socket
/// (LISTEN_FDS). Keys that were given by file are read again, others are asked for with `mount resume`.
#[derive(Debug, clap::Args)]
#[command(after_help = help_tail(
    "  backstay mountd
  backstay mountd --listen 10.0.0.1:10809 --tls-certificates /etc/pki/backstay",
    &[Exit::Denied, Exit::InUse]
))]
pub(crate) struct Args {
    /// The control socket [default: mountd.sock in /run/backstay for root, else in the user's
    /// runtime directory]
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,

    /// The socket over which all mounts are served to this host [default: nbd.sock beside the control
    /// socket]
    #[arg(long, value_name = "PATH")]
    nbd_socket: Option<PathBuf>,

    /// Serve all mounts here, too; each lets in whom it allows
    #[arg(long, value_name = "ADDRESS:PORT")]
    listen: Vec<SocketAddr>,

    /// Serve all iSCSI mounts here, each to whom it allows [default: 127.0.0.1:3260, or a free port where that is
    /// taken, from the first iSCSI mount on]
    #[arg(long, value_name = "ADDRESS:PORT")]
    iscsi_listen: Vec<SocketAddr>,

    /// Encrypt what goes over TCP by NBD, with the certificates in this directory: server-cert.pem,
    /// server-key.pem, and ca-cert.pem if clients must show one, too. They are read again every minute
    #[arg(
        long,
        value_name = "DIRECTORY",
        env = "BACKSTAY_TLS_CERTIFICATES",
        hide_env_values = true
    )]
    tls_certificates: Option<PathBuf>,

    /// End when nothing is mounted any more
    #[arg(long, hide = true)]
    on_demand: bool,
}

#[derive(Serialize)]
struct Document {
    pid: u32,
    state_dir: String,
    control: String,
    nbd: String,
    iscsi: Vec<String>,
}

pub(crate) fn run(ctx: &Ctx, args: Args) -> Result<Exit, CliError> {
    let mut places = Places::of(ctx)?;
    places.control = args.socket.unwrap_or(places.control);
    places.nbd = args.nbd_socket.unwrap_or(places.nbd);
    places.make_dirs()?;
    if args.on_demand {
        // Whoever started us may log out. It fails where we lead a session already, which is as good.
        let _ = rustix::process::setsid();
    }
    let tls = args.tls_certificates.as_deref().map_or(Ok(Tls::Off), tls)?;
    let signals = Signals::listen()?;
    let daemon = Mountd::start(MountdOptions {
        state_dir: places.state_dir.clone(),
        cache_dir: ctx.cache_dir()?,
        disk_cache_bytes: ctx.global.disk_cache,
        nbd_socket: places.nbd.clone(),
        listen: args.listen.iter().copied().map(Listen::Tcp).collect(),
        nbd: ServerConfig { tls, ..ServerConfig::default() },
        iscsi_listen: args.iscsi_listen,
        helpers: Some(Helpers { reader: browse::reader()?, guardian: super::mount::guardian()? }),
    })?;
    let control = match inherited()? {
        Some(socket) => Control::inherit(daemon.clone(), socket)?,
        None => Control::listen(daemon.clone(), &places.control)?,
    };
    tell_ready();
    let document = Document {
        pid: std::process::id(),
        state_dir: places.state_dir.display().to_string(),
        control: places.control.display().to_string(),
        nbd: places.nbd.display().to_string(),
        iscsi: daemon.iscsi_portals().iter().map(ToString::to_string).collect(),
    };
    if !args.on_demand {
        let told = ctx.out.summary(Stream::Stdout, &document, |to| {
            field(to, "mounts", &format!("{} served", daemon.active()));
            field(to, "state", &document.state_dir);
            field(to, "control", &document.control);
            field(to, "nbd", &document.nbd);
            for portal in &document.iscsi {
                field(to, "iscsi", portal);
            }
        });
        // Nobody reading our words is no reason to stop serving.
        told.or_else(|error| if error.quiet { Ok(()) } else { Err(error) })?;
    }
    let mut used = Instant::now();
    signals.wait(|| {
        if daemon.active() > 0 || !args.on_demand {
            used = Instant::now();
        }
        used.elapsed() >= ON_DEMAND_STAYS
    });
    // Nobody new gets in while the mounts are taken down.
    drop(control);
    daemon.stop();
    Ok(Exit::Done)
}

/// The certificates in a directory, named as libnbd, nbdkit and QEMU name them.
fn tls(directory: &Path) -> Result<Tls, CliError> {
    let authority = directory.join("ca-cert.pem");
    let clients = match authority.exists() {
        true => ClientCertificates::Required(authority),
        false => ClientCertificates::Ignored,
    };
    let (certificate, key) = (directory.join("server-cert.pem"), directory.join("server-key.pem"));
    let config = TlsConfig::from_pem(TlsFiles { certificate, key, clients }).map_err(|error| {
        CliError::usage(error.to_string()).what(directory.display().to_string())
    })?;
    Ok(Tls::Required(config))
}

/// The control socket, where a service manager has opened it.
fn inherited() -> Result<Option<std::os::fd::OwnedFd>, CliError> {
    let mut sockets = listenfd::ListenFd::from_env();
    let socket = sockets
        .take_unix_listener(0)
        .map_err(|error| CliError::io("the socket handed over is no unix socket", &error))?;
    Ok(socket.map(Into::into))
}

/// Tells a service manager that asks for it that we are ready (sd_notify).
fn tell_ready() {
    let Some(path) = std::env::var_os("NOTIFY_SOCKET") else { return };
    let tell = || -> std::io::Result<()> {
        use std::os::linux::net::SocketAddrExt as _;
        use std::os::unix::ffi::OsStrExt as _;
        use std::os::unix::net::{SocketAddr, UnixDatagram};
        let address = match path.as_bytes() {
            [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
            _ => SocketAddr::from_pathname(&path)?,
        };
        UnixDatagram::unbound()?.send_to_addr(b"READY=1", &address).map(drop)
    };
    if let Err(error) = tell() {
        tracing::warn!(%error, "cannot tell the service manager that we are ready");
    }
}
