//! Listening sockets, on TCP and in the file system.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener as StdUnixListener, UnixStream as StdUnixStream};
use std::path::{Path, PathBuf};

use rustix::fs::Mode;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, sockopt};
use tokio::net::{TcpListener, UnixListener};

use crate::error::{Error, ErrorKind};
use crate::peer::Peer;

/// Connections the kernel keeps for us until they are accepted. What comes when there are as many is
/// dropped over TCP, and tried again by the client a second later; the kernel has a bound of its own.
const BACKLOG: i32 = 4096;

/// Where to listen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Listen {
    /// A TCP address; port 0 takes a free one.
    Tcp(SocketAddr),
    /// A socket in the file system, for its owner alone (mode 0600). A socket left behind by a
    /// process that is gone is replaced; anything else of that name is an error.
    Unix(PathBuf),
}

/// Where a server listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BoundAddress {
    /// A TCP address with its real port.
    Tcp(SocketAddr),
    /// A socket in the file system.
    Unix(PathBuf),
}

impl fmt::Display for BoundAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => write!(f, "{address}"),
            Self::Unix(path) => write!(f, "{}", path.display()),
        }
    }
}

/// A listening socket. Dropping it closes it, and removes its name from the file system.
#[derive(Debug)]
pub struct Listener {
    socket: Socket,
    address: BoundAddress,
}

#[derive(Debug)]
enum Socket {
    Tcp(std::net::TcpListener),
    /// With its name in the file system, if that is ours to remove.
    Unix(StdUnixListener, Option<Name>),
}

impl Listener {
    /// Starts to listen; clients that connect wait until the listener is served.
    pub fn bind(listen: &Listen) -> Result<Self, Error> {
        match listen {
            Listen::Tcp(address) => {
                let failed = |e| Error::io(format!("cannot listen on {address}"), e);
                let socket = std::net::TcpListener::bind(address).map_err(failed)?;
                // The standard library has a shorter queue.
                rustix::net::listen(&socket, BACKLOG).map_err(|e| failed(e.into()))?;
                let address = BoundAddress::Tcp(socket.local_addr().map_err(failed)?);
                Ok(Self { socket: Socket::Tcp(socket), address })
            }
            Listen::Unix(path) => {
                let (socket, name) = bind_unix(path)?;
                let address = BoundAddress::Unix(path.clone());
                Ok(Self { socket: Socket::Unix(socket, Some(name)), address })
            }
        }
    }

    /// Takes a socket that somebody else has bound and listens on, as systemd does for a service that
    /// it starts with the first connection: TCP, or Unix with a name in the file system, which is left
    /// to its owner.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] for anything else; the descriptor is closed then.
    pub fn inherited(socket: OwnedFd) -> Result<Self, Error> {
        let bad = |why: &str| {
            Error::new(ErrorKind::Invalid, format!("cannot serve an inherited descriptor: {why}"))
        };
        let fd = socket.as_fd();
        let kind = sockopt::socket_type(fd).map_err(|e| bad(&e.to_string()))?;
        if kind != SocketType::STREAM || !matches!(sockopt::socket_acceptconn(fd), Ok(true)) {
            return Err(bad("it is no stream socket that listens"));
        }
        // A program we start must not inherit it in turn.
        rustix::io::fcntl_setfd(fd, rustix::io::FdFlags::CLOEXEC)
            .map_err(|e| bad(&e.to_string()))?;
        match sockopt::socket_domain(fd) {
            Ok(AddressFamily::INET | AddressFamily::INET6) => {
                let socket = std::net::TcpListener::from(socket);
                let address = socket.local_addr().map_err(|e| bad(&e.to_string()))?;
                Ok(Self { socket: Socket::Tcp(socket), address: BoundAddress::Tcp(address) })
            }
            Ok(AddressFamily::UNIX) => {
                let socket = StdUnixListener::from(socket);
                let address = socket.local_addr().map_err(|e| bad(&e.to_string()))?;
                let path = address.as_pathname().ok_or_else(|| bad("it has no name"))?;
                let address = BoundAddress::Unix(path.to_owned());
                Ok(Self { socket: Socket::Unix(socket, None), address })
            }
            _ => Err(bad("it is neither TCP nor Unix")),
        }
    }

    /// Where it listens.
    pub fn address(&self) -> &BoundAddress {
        &self.address
    }

    /// Takes the socket into the runtime of the calling task.
    pub(crate) fn accepting(self) -> Result<Accepting, Error> {
        let address = self.address;
        let failed = |e| Error::io(format!("cannot serve {address}"), e);
        match self.socket {
            Socket::Tcp(socket) => {
                socket.set_nonblocking(true).map_err(failed)?;
                TcpListener::from_std(socket).map(Accepting::Tcp).map_err(failed)
            }
            Socket::Unix(socket, name) => {
                socket.set_nonblocking(true).map_err(failed)?;
                UnixListener::from_std(socket)
                    .map(|socket| Accepting::Unix { socket, _name: name })
                    .map_err(failed)
            }
        }
    }
}

fn bind_unix(path: &Path) -> Result<(StdUnixListener, Name), Error> {
    let failed = |e: io::Error| Error::io(format!("cannot listen on {}", path.display()), e);
    if let Ok(meta) = std::fs::symlink_metadata(path) {
        let stale = meta.file_type().is_socket()
            && StdUnixStream::connect(path)
                .is_err_and(|e| e.kind() == io::ErrorKind::ConnectionRefused);
        if !stale {
            return Err(Error::new(
                ErrorKind::Invalid,
                format!("cannot listen on {}: it exists and is in use", path.display()),
            ));
        }
        std::fs::remove_file(path).map_err(failed)?;
    }
    let address = SocketAddrUnix::new(path).map_err(|e| failed(e.into()))?;
    let socket = rustix::net::socket_with(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        None,
    )
    .map_err(|e| failed(e.into()))?;
    rustix::net::bind(&socket, &address).map_err(|e| failed(e.into()))?;
    let meta = std::fs::symlink_metadata(path).map_err(failed)?;
    let name = Name { path: path.to_owned(), device: meta.dev(), inode: meta.ino() };
    // Between bind and listen nobody can connect, so the rights are right from the first client on.
    rustix::fs::chmod(path, Mode::RUSR | Mode::WUSR).map_err(|e| failed(e.into()))?;
    rustix::net::listen(&socket, BACKLOG).map_err(|e| failed(e.into()))?;
    Ok((StdUnixListener::from(socket), name))
}

/// The name of our socket; removed at the end, unless somebody has put another file there.
#[derive(Debug)]
pub(crate) struct Name {
    path: PathBuf,
    device: u64,
    inode: u64,
}

impl Drop for Name {
    fn drop(&mut self) {
        let ours = std::fs::symlink_metadata(&self.path)
            .is_ok_and(|meta| (meta.dev(), meta.ino()) == (self.device, self.inode));
        if ours && let Err(error) = std::fs::remove_file(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "cannot remove the socket");
        }
    }
}

/// A listening socket in a runtime.
#[derive(Debug)]
pub(crate) enum Accepting {
    /// TCP.
    Tcp(TcpListener),
    /// In the file system. The name is kept as long as the socket.
    Unix {
        /// The socket.
        socket: UnixListener,
        /// Removes it from the file system.
        _name: Option<Name>,
    },
}

/// An accepted socket, not yet in any runtime.
#[derive(Debug)]
pub enum Accepted {
    /// TCP.
    Tcp(std::net::TcpStream),
    /// In the file system.
    Unix(StdUnixStream),
}

impl Accepted {
    /// The address and port it arrived at; `None` for a Unix socket.
    pub fn local_addr(&self) -> Option<SocketAddr> {
        match self {
            Self::Tcp(stream) => stream.local_addr().ok(),
            Self::Unix(_) => None,
        }
    }
}

impl Accepting {
    /// Waits for the next connection.
    pub(crate) async fn accept(&self) -> io::Result<(Accepted, Peer)> {
        match self {
            Self::Tcp(socket) => {
                let (stream, address) = socket.accept().await?;
                // An IPv4 client of a dual-stack socket is the same client.
                let address = SocketAddr::new(address.ip().to_canonical(), address.port());
                Ok((Accepted::Tcp(stream.into_std()?), Peer::Tcp(address)))
            }
            Self::Unix { socket, .. } => {
                let (stream, _) = socket.accept().await?;
                let cred = stream.peer_cred()?;
                let peer = Peer::Unix { uid: cred.uid(), gid: cred.gid(), pid: cred.pid() };
                Ok((Accepted::Unix(stream.into_std()?), peer))
            }
        }
    }
}
