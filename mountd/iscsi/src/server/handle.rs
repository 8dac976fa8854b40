//! A server on threads of its own.

use std::net::SocketAddr;
use std::sync::Arc;

use backstay_serve::{BoundAddress, Listen, Listener, Threads};

use super::{ServerConfig, TargetTable, serve_on};
use crate::error::{Error, ErrorKind};

/// A server. Dropping it stops it orderly, as [`ServerHandle::stop`] does.
#[derive(Debug)]
pub struct ServerHandle {
    addresses: Vec<SocketAddr>,
    threads: Threads,
}

impl ServerHandle {
    /// Binds all of `listen` and starts to serve; when it returns, initiators can connect.
    pub fn start(
        listen: &[SocketAddr],
        targets: Arc<TargetTable>,
        config: ServerConfig,
    ) -> Result<Self, Error> {
        let bind = |address: &SocketAddr| Listener::bind(&Listen::Tcp(*address));
        let listeners = listen.iter().map(bind).collect::<Result<Vec<_>, _>>()?;
        Self::start_on(listeners, targets, config)
    }

    /// Starts to serve on sockets that listen already.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] for sockets that are not TCP.
    pub fn start_on(
        listeners: Vec<Listener>,
        targets: Arc<TargetTable>,
        config: ServerConfig,
    ) -> Result<Self, Error> {
        let mut addresses = Vec::new();
        for listener in &listeners {
            match listener.address() {
                BoundAddress::Tcp(address) => addresses.push(*address),
                BoundAddress::Unix(path) => {
                    let why =
                        format!("iSCSI goes over TCP, and {} is no TCP socket", path.display());
                    return Err(Error::new(ErrorKind::Invalid, why));
                }
            }
        }
        let portals: Arc<[SocketAddr]> = addresses.clone().into();
        let threads = Threads::start("iscsi", config.io_threads, move |stopped, runtimes| {
            serve_on(listeners, targets, portals, config, stopped, runtimes)
        })?;
        Ok(Self { addresses, threads })
    }

    /// Where it listens, in the order of `listen`, with real ports.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// Stops orderly: commands under way are answered within [`ServerConfig::stop_grace`]. When it returns no initiator
    /// is connected and no device is in use (except by a thread that hangs in it beyond the grace).
    pub fn stop(self) -> Result<(), Error> {
        Ok(self.threads.stop()?)
    }
}
