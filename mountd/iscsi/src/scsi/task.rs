//! Tasks that are under way, so that they can be aborted (SAM-5, clause 5 and 7).
//!
//! A command that is answered on the spot is never a task here. One that waits for data or for a thread is:
//! it is *waiting*, then *running* once a thread has taken it to the device, then *over*. An abort ends a waiting
//! task at once, and marks a running one: it goes on in the device, and nobody is told its outcome.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use parking_lot::Mutex;
use tokio::sync::Notify;

const WAITING: u8 = 0;
const RUNNING: u8 = 1;
/// Aborted before a thread took it.
const DROPPED: u8 = 2;
/// Aborted while a thread had it.
const DOOMED: u8 = 3;
const OVER: u8 = 4;

/// One task.
#[derive(Debug)]
pub struct Task {
    state: AtomicU8,
    over: Notify,
}

impl Task {
    /// A task that waits.
    pub fn new() -> Arc<Self> {
        Arc::new(Self { state: AtomicU8::new(WAITING), over: Notify::new() })
    }

    /// A thread takes it to the device. `false` if it was aborted: then nothing is to be done, and nobody told.
    pub fn begin(&self) -> bool {
        self.step(WAITING, RUNNING)
    }

    /// The device is done with it for now, and it is to be tried again later. `false` if it was aborted meanwhile.
    pub fn put_back(&self) -> bool {
        self.step(RUNNING, WAITING)
    }

    /// Nothing of it is under way any more. `true` if its outcome is to be told.
    pub fn end(&self) -> bool {
        let before = self.state.swap(OVER, Ordering::AcqRel);
        self.over.notify_waiters();
        matches!(before, WAITING | RUNNING)
    }

    /// Whether it was aborted.
    pub fn is_aborted(&self) -> bool {
        matches!(self.state.load(Ordering::Acquire), DROPPED | DOOMED)
    }

    /// Whether nothing of it is under way.
    pub fn is_over(&self) -> bool {
        self.state.load(Ordering::Acquire) == OVER
    }

    /// Aborts it. `true` if a thread still has it: wait for [`Task::ended`] before telling that it is gone.
    pub fn abort(&self) -> bool {
        if self.step(WAITING, DROPPED) {
            return false;
        }
        self.step(RUNNING, DOOMED);
        self.state.load(Ordering::Acquire) == DOOMED
    }

    /// Returns when no thread has it any more.
    pub async fn ended(&self) {
        loop {
            let notified = self.over.notified();
            if !matches!(self.state.load(Ordering::Acquire), RUNNING | DOOMED) {
                return;
            }
            notified.await;
        }
    }

    fn step(&self, from: u8, to: u8) -> bool {
        self.state.compare_exchange(from, to, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }
}

/// The tasks of one logical unit, of all nexuses. Bounded by the command windows of the sessions.
#[derive(Debug, Default)]
pub struct TaskSet {
    tasks: Mutex<HashMap<(u64, u32), Arc<Task>>>,
}

impl TaskSet {
    /// Adds a task of nexus `nexus` with the tag `tag`; one of the same tag is replaced.
    pub fn add(&self, nexus: u64, tag: u32, task: Arc<Task>) {
        self.tasks.lock().insert((nexus, tag), task);
    }

    /// Removes a task that is over.
    pub fn remove(&self, nexus: u64, tag: u32) {
        self.tasks.lock().remove(&(nexus, tag));
    }

    /// Aborts the tasks that `which` picks by nexus and tag; answers those that a thread still has. They stay in the
    /// set until they are over.
    pub fn abort(&self, which: impl Fn(u64, u32) -> bool) -> Aborted {
        let mut aborted = Aborted::default();
        for ((nexus, tag), task) in self.tasks.lock().iter() {
            if which(*nexus, *tag) && !task.is_aborted() {
                aborted.nexuses.push(*nexus);
                if task.abort() {
                    aborted.running.push(task.clone());
                }
            }
        }
        aborted
    }

    /// Whether there is a task of this tag that is not over.
    pub fn contains(&self, nexus: u64, tag: u32) -> bool {
        self.tasks.lock().contains_key(&(nexus, tag))
    }
}

/// What an abort met.
#[derive(Debug, Default)]
pub struct Aborted {
    /// The nexuses whose tasks were aborted, one entry a task.
    pub nexuses: Vec<u64>,
    /// Tasks that a thread still has.
    pub running: Vec<Arc<Task>>,
}
