//! Threads with an event loop each, for callers that are not asynchronous.

use std::future::Future;
use std::sync::mpsc;
use std::thread::{self, JoinHandle};

use tokio::runtime::{Builder, Handle, Runtime};
use tokio::sync::{oneshot, watch};

use crate::error::{Error, ErrorKind};

/// A server on threads of its own. Each runs its own connections, so a request never changes threads unless it must
/// wait for a device. Dropping it stops the server and waits for it.
#[derive(Debug)]
pub struct Threads {
    name: &'static str,
    shutdown: watch::Sender<bool>,
    threads: Vec<JoinHandle<Result<(), Error>>>,
}

impl Threads {
    /// Starts `count` threads named after `name`. On the first of them runs what `main` makes of the word to stop and
    /// the event loops of all; the others end when it has ended. Returns once it runs.
    pub fn start<F>(
        name: &'static str,
        count: usize,
        main: impl FnOnce(watch::Receiver<bool>, Vec<Handle>) -> F + Send + 'static,
    ) -> Result<Self, Error>
    where
        F: Future<Output = Result<(), Error>>,
    {
        let (shutdown, stopped) = watch::channel(false);
        let mut all = Self { name, shutdown, threads: Vec::new() };
        // From here on an error drops `all`, which ends the threads that have started.
        let first = runtime()?;
        let mut runtimes = vec![first.handle().clone()];
        let mut ends = Vec::new();
        for i in 1..count.max(1) {
            let runtime = runtime()?;
            runtimes.push(runtime.handle().clone());
            let (end, ended) = oneshot::channel::<()>();
            all.spawn(i, move || {
                // Ends when the first thread is done and drops the other half.
                let _ = runtime.block_on(ended);
                Ok(())
            })?;
            ends.push(end);
        }
        let (ready, is_ready) = mpsc::channel();
        all.spawn(0, move || {
            let result = first.block_on(async move {
                // The receiver waits for this word.
                let _ = ready.send(());
                main(stopped, runtimes).await
            });
            drop(ends);
            result
        })?;
        is_ready
            .recv()
            .map_err(|_| Error::new(ErrorKind::Io, "the server's thread ended at once"))?;
        Ok(all)
    }

    fn spawn(
        &mut self,
        i: usize,
        run: impl FnOnce() -> Result<(), Error> + Send + 'static,
    ) -> Result<(), Error> {
        let thread = thread::Builder::new()
            .name(format!("{}-io-{i}", self.name))
            .spawn(run)
            .map_err(|e| Error::io("cannot start a server thread", e))?;
        self.threads.push(thread);
        Ok(())
    }

    /// Asks the server to stop, and waits until it has.
    pub fn stop(mut self) -> Result<(), Error> {
        self.end()
    }

    fn end(&mut self) -> Result<(), Error> {
        self.shutdown.send_replace(true);
        let mut result = Ok(());
        // The first thread was started last, and lets the others go.
        for thread in self.threads.drain(..).rev() {
            let ended = thread
                .join()
                .unwrap_or_else(|_| Err(Error::new(ErrorKind::Io, "a server thread panicked")));
            result = result.and(ended);
        }
        result
    }
}

impl Drop for Threads {
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
