//! A server for callers that are not asynchronous.

use std::sync::Arc;

use backstay_serve::{BoundAddress, Listen, Listener, Threads};

use super::{Exports, ServerConfig, serve_on};
use crate::error::Error;

/// A server on threads of its own. Dropping it stops it orderly, as [`ServerHandle::stop`] does.
#[derive(Debug)]
pub struct ServerHandle {
    addresses: Vec<BoundAddress>,
    threads: Threads,
}

impl ServerHandle {
    /// Binds all of `listen` and starts to serve; when it returns, clients can connect.
    ///
    /// Each I/O thread runs its own connections, so a request never changes threads unless it must
    /// wait for the device.
    pub fn start(
        listen: Vec<Listen>,
        exports: Arc<dyn Exports>,
        config: ServerConfig,
    ) -> Result<Self, Error> {
        let listeners = listen.iter().map(Listener::bind).collect::<Result<Vec<_>, _>>()?;
        Self::start_on(listeners, exports, config)
    }

    /// Starts to serve on sockets that listen already; see [`ServerHandle::start`].
    pub fn start_on(
        listeners: Vec<Listener>,
        exports: Arc<dyn Exports>,
        config: ServerConfig,
    ) -> Result<Self, Error> {
        let addresses = listeners.iter().map(|l| l.address().clone()).collect();
        let threads = Threads::start("nbd", config.io_threads, move |stopped, runtimes| {
            serve_on(listeners, exports, config, stopped, runtimes)
        })?;
        Ok(Self { addresses, threads })
    }

    /// Where it listens, in the order of `listen`.
    pub fn addresses(&self) -> &[BoundAddress] {
        &self.addresses
    }

    /// Stops orderly: requests under way are answered within [`ServerConfig::stop_grace`], sockets
    /// are removed. When it returns no client is connected and no device is in use (except by a
    /// worker that hangs in it beyond the grace).
    pub fn stop(self) -> Result<(), Error> {
        Ok(self.threads.stop()?)
    }
}
