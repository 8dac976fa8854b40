//! Threads that share one job: the first error ends all of them.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::error::Result;

/// Set when a worker failed: the others stop at the next piece of work.
#[derive(Debug, Default)]
pub(crate) struct Stop(AtomicBool);

impl Stop {
    pub(crate) fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// Runs `work` on `count` threads and adds up what each did. The first error is returned; `failed`
/// is called when it comes, for threads that wait for something that will not come any more.
pub(crate) fn run<T: Default + Send>(
    count: usize,
    work: impl Fn(&Stop) -> Result<T> + Sync,
    add: impl Fn(&mut T, T) + Sync,
    failed: impl Fn() + Sync,
) -> Result<T> {
    let stop = Stop::default();
    let outcome = Mutex::new(Ok(T::default()));
    let one = || {
        let result = work(&stop);
        let mut outcome = outcome.lock().unwrap_or_else(PoisonError::into_inner);
        match (result, &mut *outcome) {
            (Ok(done), Ok(all)) => add(all, done),
            (Err(error), Ok(_)) => {
                *outcome = Err(error);
                stop.0.store(true, Ordering::Relaxed);
                failed();
            }
            // The first error is the cause of whatever happened here.
            (_, Err(_)) => {}
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..count {
            scope.spawn(one);
        }
    });
    outcome.into_inner().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::{Error, ErrorKind};
    use std::sync::atomic::AtomicUsize;

    #[test]
    fn sums_add_up_and_the_first_error_wins() {
        let sum = run(4, |_| Ok(10u64), |all, n| *all += n, || ()).unwrap();
        assert_eq!(sum, 40);
        let (turn, told) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let error = run(
            3,
            |stop| {
                if turn.fetch_add(1, Ordering::SeqCst) == 0 {
                    return Err(Error::new(ErrorKind::Damaged, "first"));
                }
                while !stop.is_set() {
                    std::thread::yield_now();
                }
                Err::<u64, _>(Error::new(ErrorKind::Cancelled, "later"))
            },
            |all, n| *all += n,
            || {
                told.fetch_add(1, Ordering::SeqCst);
            },
        )
        .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Damaged);
        assert_eq!(told.load(Ordering::SeqCst), 1);
    }
}
