use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use super::{Advice, Storage};
use crate::error::{Error, ErrorKind, Result};
use crate::key::{Folder, ObjectKey};

/// Which calls fail, and how. Calls are counted over all methods, from 0.
#[derive(Clone, Debug, Default)]
pub struct FaultPlan {
    /// The first call that fails.
    pub fail_at: Option<u64>,
    /// Whether all later calls fail too.
    pub sticky: bool,
    /// The kind of the failure.
    pub kind: Option<ErrorKind>,
    /// A failing `put` stores the object all the same: the answer was lost, not the request.
    pub after_the_fact: bool,
    /// Every call takes at least this long.
    pub delay: Duration,
}

/// Another storage with faults: the same layer serves tests and people who want to see what a bad
/// storage does to them.
#[derive(Debug)]
pub struct FaultStorage {
    inner: Arc<dyn Storage>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    plan: FaultPlan,
    calls: u64,
}

impl FaultStorage {
    /// `inner`, with the faults of `plan`.
    pub fn new(inner: Arc<dyn Storage>, plan: FaultPlan) -> Self {
        Self { inner, state: Mutex::new(State { plan, calls: 0 }) }
    }

    /// Changes the plan and starts counting anew.
    pub fn set_plan(&self, plan: FaultPlan) {
        *self.state.lock() = State { plan, calls: 0 };
    }

    /// Calls so far.
    pub fn calls(&self) -> u64 {
        self.state.lock().calls
    }

    /// The error this call must answer with, and whether it takes effect all the same.
    fn next(&self, what: &str) -> (Option<Error>, bool) {
        let (n, plan) = {
            let mut s = self.state.lock();
            let n = s.calls;
            s.calls += 1;
            (n, s.plan.clone())
        };
        if !plan.delay.is_zero() {
            std::thread::sleep(plan.delay);
        }
        let hit = plan.fail_at.is_some_and(|at| n == at || (plan.sticky && n > at));
        if !hit {
            return (None, true);
        }
        let kind = plan.kind.unwrap_or(ErrorKind::Io);
        (Some(Error::new(kind, format!("injected fault at call {n}: {what}"))), plan.after_the_fact)
    }

    fn call<T>(&self, what: &str, run: impl FnOnce() -> Result<T>) -> Result<T> {
        match self.next(what) {
            (None, _) => run(),
            (Some(e), true) => run().and(Err(e)),
            (Some(e), false) => Err(e),
        }
    }
}

impl Storage for FaultStorage {
    fn put(&self, key: ObjectKey, parts: &[&[u8]]) -> Result<()> {
        self.call("put", || self.inner.put(key, parts))
    }

    fn put_vital(&self, key: ObjectKey, parts: &[&[u8]]) -> Result<()> {
        self.call("put_vital", || self.inner.put_vital(key, parts))
    }

    fn refill_reserve(&self) {
        self.inner.refill_reserve();
    }

    fn get(&self, key: ObjectKey, max: u64) -> Result<Vec<u8>> {
        self.call("get", || self.inner.get(key, max))
    }

    fn read_at(&self, key: ObjectKey, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.call("read_at", || self.inner.read_at(key, offset, buf))
    }

    fn advice(&self) -> Advice {
        self.inner.advice()
    }

    fn size(&self, key: ObjectKey) -> Result<u64> {
        self.call("size", || self.inner.size(key))
    }

    fn list(&self, folder: Folder) -> Result<Vec<ObjectKey>> {
        self.call("list", || self.inner.list(folder))
    }

    fn delete(&self, key: ObjectKey) -> Result<()> {
        self.call("delete", || self.inner.delete(key))
    }

    fn claim(&self, what: &str) -> Result<Box<dyn Send>> {
        self.call("claim", || self.inner.claim(what))
    }

    fn tidy(&self) -> Result<()> {
        self.call("tidy", || self.inner.tidy())
    }
}
