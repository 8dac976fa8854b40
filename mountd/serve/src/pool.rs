//! Threads for what may block.

use std::collections::VecDeque;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use crate::error::Error;

type Job = Box<dyn FnOnce() + Send>;

struct Queued(Job);

impl fmt::Debug for Queued {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("job")
    }
}

/// A fixed number of threads and one queue. The queue needs no bound of its own: each connection
/// bounds what it has under way, and connections are bounded.
#[derive(Debug)]
pub struct Pool {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    jobs: VecDeque<Queued>,
    idle: usize,
    threads: usize,
    open: bool,
}

impl Pool {
    /// Starts `threads` threads (at least one) named after `name`.
    pub fn start(name: &'static str, threads: usize) -> Result<Arc<Self>, Error> {
        let threads = threads.max(1);
        let state = State { jobs: VecDeque::new(), idle: 0, threads, open: true };
        let pool = Arc::new(Self { state: Mutex::new(state), changed: Condvar::new() });
        for i in 0..threads {
            let own = pool.clone();
            let result =
                thread::Builder::new().name(format!("{name}-work-{i}")).spawn(move || own.work());
            if let Err(error) = result {
                let mut state = pool.lock();
                state.threads = i;
                state.open = false;
                drop(state);
                pool.changed.notify_all();
                return Err(Error::io("cannot start a worker thread", error));
            }
        }
        Ok(pool)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Jobs run outside the lock, so a panic of one leaves the state whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn work(&self) {
        let mut state = self.lock();
        loop {
            if let Some(Queued(job)) = state.jobs.pop_front() {
                drop(state);
                // A device must not panic; if one does, its job's reply is an error (sent when the
                // job is dropped) and the thread stays for the others.
                if catch_unwind(AssertUnwindSafe(job)).is_err() {
                    tracing::error!("a device panicked; its request was answered with an error");
                }
                state = self.lock();
            } else if state.open {
                state.idle += 1;
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                state.idle -= 1;
            } else {
                state.threads -= 1;
                self.changed.notify_all();
                return;
            }
        }
    }

    /// Queues a job; after `stop` it is dropped instead.
    pub fn spawn(&self, job: impl FnOnce() + Send + 'static) {
        let mut state = self.lock();
        if !state.open {
            return;
        }
        state.jobs.push_back(Queued(Box::new(job)));
        let wake = state.idle > 0;
        drop(state);
        if wake {
            self.changed.notify_one();
        }
    }

    /// Runs a job and waits for its result; `None` if it panicked or the pool has stopped.
    pub async fn run<T: Send + 'static>(
        &self,
        job: impl FnOnce() -> T + Send + 'static,
    ) -> Option<T> {
        let (sender, receiver) = oneshot::channel();
        self.spawn(move || {
            // The receiver is gone when the client left meanwhile.
            let _ = sender.send(job());
        });
        receiver.await.ok()
    }

    /// Drops what is queued and waits for the threads, at most for `grace`: one may hang in a device.
    pub fn stop(&self, grace: Duration) {
        let deadline = Instant::now() + grace;
        let mut state = self.lock();
        state.open = false;
        let dropped = std::mem::take(&mut state.jobs);
        drop(state);
        drop(dropped);
        self.changed.notify_all();
        let mut state = self.lock();
        while state.threads > 0 {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                tracing::warn!(threads = state.threads, "worker threads are still in a device");
                return;
            }
            state =
                self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}
