//! What the runs really did: a harness that never deletes, fences or repacks proves nothing.

use std::collections::BTreeMap;

/// Something that happened in a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Event {
    Backup,
    BaseUsed,
    BaseTrusted,
    Kept,
    GivenUp,
    FencedCommit,
    UnknownCommit,
    Removal,
    RemovalRefused,
    Pin,
    Unpin,
    Hold,
    ReadWhileRemoved,
    Restore,
    Copy,
    Copied,
    Collection,
    DryRun,
    Freed,
    Repacked,
    Resurrected,
    Waited,
    Busy,
    WriterFenced,
    Fence,
    Check,
    CheckOvertaken,
    Verify,
    Quarantine,
    Repair,
    Healed,
    Reopen,
    ClockJump,
    LookAround,
    Sleep,
    Death,
}

/// How often each happened, and in how many runs.
#[derive(Clone, Debug, Default)]
pub(crate) struct Counts {
    times: BTreeMap<Event, u64>,
    runs: BTreeMap<Event, u64>,
    pub(crate) steps: u64,
    pub(crate) steps_most: u64,
}

impl Counts {
    pub(crate) fn add(&mut self, event: Event) {
        *self.times.entry(event).or_default() += 1;
    }

    pub(crate) fn add_many(&mut self, event: Event, n: u64) {
        if n > 0 {
            *self.times.entry(event).or_default() += n;
        }
    }

    /// Takes the counts of one run in.
    pub(crate) fn take(&mut self, run: &Counts) {
        for (event, n) in &run.times {
            *self.times.entry(*event).or_default() += n;
            *self.runs.entry(*event).or_default() += 1;
        }
        self.steps += run.steps;
        self.steps_most = self.steps_most.max(run.steps);
    }

    /// The same for the counts of many runs.
    pub(crate) fn merge(&mut self, other: &Counts) {
        for (event, n) in &other.times {
            *self.times.entry(*event).or_default() += n;
        }
        for (event, n) in &other.runs {
            *self.runs.entry(*event).or_default() += n;
        }
        self.steps += other.steps;
        self.steps_most = self.steps_most.max(other.steps_most);
    }

    /// In how many runs it happened.
    pub(crate) fn runs_with(&self, event: Event) -> u64 {
        self.runs.get(&event).copied().unwrap_or(0)
    }

    pub(crate) fn print(&self, runs: u64) {
        println!("{} steps, at most {} in a run", self.steps, self.steps_most);
        for (event, times) in &self.times {
            println!("{event:?}: {times}, in {} of {runs} runs", self.runs_with(*event));
        }
    }
}
