//! A server for callers that are not asynchronous.

use std::sync::{Arc, mpsc};
use std::thread::{self, JoinHandle};

use tokio::runtime::{Builder, Runtime};
use tokio::sync::watch;

use super::{BoundAddress, Exports, Listen, Listener, ServerConfig, serve_on};
use crate::error::{Error, ErrorKind};

/// A server on threads of its own. Dropping it stops it orderly, as [`ServerHandle::stop`] does.
#[derive(Debug)]
pub struct ServerHandle {
    addresses: Vec<BoundAddress>,
    shutdown: watch::Sender<bool>,
    threads: Vec<JoinHandle<Result<(), Error>>>,
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
        let (shutdown, stopped) = watch::channel(false);
        let mut server = Self { addresses, shutdown, threads: Vec::new() };
        let mut runtimes = Vec::new();
        // From here on an error drops `server`, which ends the threads that have started.
        let first = runtime()?;
        runtimes.push(first.handle().clone());
        let mut ends = Vec::new();
        for i in 1..config.io_threads.max(1) {
            let runtime = runtime()?;
            runtimes.push(runtime.handle().clone());
            let (end, ended) = tokio::sync::oneshot::channel::<()>();
            server.spawn(i, move || {
                // Ends when the first thread is done and drops the other half.
                let _ = runtime.block_on(ended);
                Ok(())
            })?;
            ends.push(end);
        }
        let (ready, is_ready) = mpsc::channel();
        server.spawn(0, move || {
            let result = first.block_on(async move {
                // The receiver waits for this word.
                let _ = ready.send(());
                serve_on(listeners, exports, config, stopped, runtimes).await
            });
            drop(ends);
            result
        })?;
        is_ready
            .recv()
            .map_err(|_| Error::new(ErrorKind::Io, "the server's thread ended at once"))?;
        Ok(server)
    }

    fn spawn(
        &mut self,
        i: usize,
        run: impl FnOnce() -> Result<(), Error> + Send + 'static,
    ) -> Result<(), Error> {
        let thread = thread::Builder::new()
            .name(format!("nbd-io-{i}"))
            .spawn(run)
            .map_err(|e| Error::io("cannot start a server thread", e))?;
        self.threads.push(thread);
        Ok(())
    }

    /// Where it listens, in the order of `listen`.
    pub fn addresses(&self) -> &[BoundAddress] {
        &self.addresses
    }

    /// Stops orderly: requests under way are answered within [`ServerConfig::stop_grace`], sockets
    /// are removed. When it returns no client is connected and no device is in use (except by a
    /// worker that hangs in it beyond the grace).
    pub fn stop(mut self) -> Result<(), Error> {
        self.end()
    }

    fn end(&mut self) -> Result<(), Error> {
        self.shutdown.send_replace(true);
        let mut result = Ok(());
        // The first thread was started last, and lets the others go.
        for thread in self.threads.drain(..).rev() {
            match thread.join() {
                Ok(ended) => result = result.and(ended),
                Err(_) => {
                    result = result.and(Err(Error::new(ErrorKind::Io, "a server thread panicked")));
                }
            }
        }
        result
    }
}

impl Drop for ServerHandle {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            tracing::warn!(%error, "the server did not end well");
        }
    }
}

fn runtime() -> Result<Runtime, Error> {
    Builder::new_current_thread()
        .enable_io()
        .enable_time()
        .build()
        .map_err(|e| Error::io("cannot start an event loop", e))
}
