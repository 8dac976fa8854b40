//! The threads that may block: they answer what the event loop cannot answer at once.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread::JoinHandle;

use crossbeam_channel::{Receiver, Sender, bounded};

/// Requests waiting for a thread. When it is full the event loop waits, and the kernel queues; more
/// would only hold replies in memory.
const QUEUE_MAX: usize = 128;

type Job = Box<dyn FnOnce() + Send>;

/// A fixed set of threads working off one bounded queue. Dropping it lets the threads finish what is
/// queued and joins them.
#[derive(Debug)]
pub(super) struct Pool {
    jobs: Option<Sender<Job>>,
    threads: Vec<JoinHandle<()>>,
}

impl Pool {
    pub(super) fn start(threads: usize) -> std::io::Result<Self> {
        let (sender, receiver) = bounded(QUEUE_MAX);
        let mut pool = Pool { jobs: Some(sender), threads: Vec::with_capacity(threads) };
        for i in 0..threads {
            let receiver = receiver.clone();
            let builder = std::thread::Builder::new().name(format!("mount-read-{i}"));
            pool.threads.push(builder.spawn(move || work(&receiver))?);
        }
        Ok(pool)
    }

    /// Hands a job over; waits while the queue is full.
    pub(super) fn submit(&self, job: impl FnOnce() + Send + 'static) {
        // The sender is only taken in drop, and the threads outlive it: sending cannot fail. If it
        // did, the job would be dropped and its reply with it, which fuser answers with EIO.
        if let Some(jobs) = &self.jobs {
            let _ = jobs.send(Box::new(job));
        }
    }
}

fn work(jobs: &Receiver<Job>) {
    while let Ok(job) = jobs.recv() {
        // A panic costs its own request (the reply's drop answers EIO), not the mount a thread.
        if catch_unwind(AssertUnwindSafe(job)).is_err() {
            tracing::error!("a request of the mount panicked; its reader got an I/O error");
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.jobs = None;
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[test]
    fn every_job_is_done_and_a_panic_costs_only_itself() {
        let done = Arc::new(AtomicUsize::new(0));
        let pool = Pool::start(2).unwrap();
        for i in 0..1000 {
            let done = Arc::clone(&done);
            pool.submit(move || {
                assert!(i % 100 != 7, "on purpose");
                done.fetch_add(1, Ordering::SeqCst);
            });
        }
        drop(pool);
        assert_eq!(done.load(Ordering::SeqCst), 990);
    }
}
