//! Who waits for which adoption.

use std::thread::JoinHandle;

use parking_lot::{Condvar, Mutex};

use crate::error::{Error, ErrorKind, Result};

/// Rounds of adoption: one at a time. Whoever needs to know all packs that were there when they
/// asked waits for the end of a round that began after that; whoever looks for a chunk looks again
/// whenever something was adopted.
#[derive(Debug, Default)]
pub(super) struct Rounds {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    started: u64,
    ended: u64,
    /// Packs adopted.
    adopted: u64,
    /// How the last round failed.
    failed: Option<(ErrorKind, String)>,
    thread: Option<JoinHandle<()>>,
}

/// How far one who looks for something has come.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Search {
    /// The round after which there is nothing more to learn.
    last: u64,
    /// Packs adopted when the search began.
    from: u64,
    /// Packs adopted since at which to look again.
    look_at: u64,
    over: bool,
}

/// What to do next.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// Look again: something was adopted, or a round has ended.
    Look,
    /// Nothing more can be learned.
    Over,
    /// Run a round, then ask again. It counts as started.
    Run,
}

impl Rounds {
    /// Begins a search. To be called before the first look.
    pub(super) fn search(&self) -> Search {
        let state = self.state.lock();
        // The round under way may have listed the packs before what is looked for was there.
        Search { last: state.started + 1, from: state.adopted, look_at: 1, over: false }
    }

    /// Waits until there is something to do.
    pub(super) fn next(&self, search: &mut Search) -> Result<Next> {
        let mut state = self.state.lock();
        loop {
            if search.over {
                return Ok(Next::Over);
            }
            if state.ended >= search.last {
                search.over = true;
                return state.outcome().map(|()| Next::Look);
            }
            let adopted = state.adopted - search.from;
            if adopted >= search.look_at {
                // Ever more packs between two looks: looking must not cost more than adopting.
                search.look_at = (adopted + adopted / 8).max(adopted + 1);
                return Ok(Next::Look);
            }
            if state.started == state.ended {
                state.started += 1;
                return Ok(Next::Run);
            }
            self.changed.wait(&mut state);
        }
    }

    /// Waits for the end of a round that begins from now on. `true`: the caller must run it.
    pub(super) fn complete(&self, from: &Search) -> Result<bool> {
        let mut state = self.state.lock();
        loop {
            if state.ended >= from.last {
                return state.outcome().map(|()| false);
            }
            if state.started == state.ended {
                state.started += 1;
                return Ok(true);
            }
            self.changed.wait(&mut state);
        }
    }

    /// Something was adopted.
    pub(super) fn progress(&self) {
        self.state.lock().adopted += 1;
        self.changed.notify_all();
    }

    /// Runs the round that was started.
    pub(super) fn run(&self, round: impl FnOnce() -> Result<()>) {
        /// Whoever waits must not wait for ever if the round panics.
        struct Ending<'a>(&'a Rounds, Option<Result<()>>);
        impl Drop for Ending<'_> {
            fn drop(&mut self) {
                let panicked =
                    || Err(Error::new(ErrorKind::Aborted, "looking through the packs failed"));
                self.0.end(self.1.take().unwrap_or_else(panicked));
            }
        }
        let mut ending = Ending(self, None);
        ending.1 = Some(round());
    }

    fn end(&self, result: Result<()>) {
        let mut state = self.state.lock();
        state.ended = state.started;
        state.failed = result.err().map(|e| (e.kind(), e.whole_story()));
        self.changed.notify_all();
    }

    /// Keeps the thread of the round under way, for [`Rounds::join`].
    pub(super) fn set_thread(&self, thread: JoinHandle<()>) {
        let before = self.state.lock().thread.replace(thread);
        // It has ended its round, so it is about to end.
        before.map(JoinHandle::join);
    }

    /// Waits for the background thread, which was told to stop.
    pub(super) fn join(&self) {
        let thread = self.state.lock().thread.take();
        thread.map(JoinHandle::join);
    }
}

impl State {
    fn outcome(&self) -> Result<()> {
        match &self.failed {
            None => Ok(()),
            Some((kind, text)) => Err(Error::new(*kind, text.clone())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_round_under_way_is_not_enough() {
        let rounds = Rounds::default();
        let mut first = rounds.search();
        assert_eq!(rounds.next(&mut first).unwrap(), Next::Run);
        // One who comes now looks when something is adopted, and needs the round after this.
        let mut late = rounds.search();
        rounds.progress();
        assert_eq!(rounds.next(&mut late).unwrap(), Next::Look);
        rounds.end(Ok(()));
        assert_eq!(rounds.next(&mut first).unwrap(), Next::Look);
        assert_eq!(rounds.next(&mut first).unwrap(), Next::Over);
        assert_eq!(rounds.next(&mut late).unwrap(), Next::Run);
        rounds.end(Ok(()));
        assert_eq!(rounds.next(&mut late).unwrap(), Next::Look);
        assert_eq!(rounds.next(&mut late).unwrap(), Next::Over);
    }

    #[test]
    fn a_failed_round_is_told_and_the_next_tries_again() {
        let rounds = Rounds::default();
        let search = rounds.search();
        assert!(rounds.complete(&search).unwrap());
        rounds.end(Err(Error::new(ErrorKind::Io, "the storage is away")));
        assert_eq!(rounds.complete(&search).unwrap_err().kind(), ErrorKind::Io);
        let search = rounds.search();
        assert!(rounds.complete(&search).unwrap());
        rounds.end(Ok(()));
        assert!(!rounds.complete(&search).unwrap());
    }
}
