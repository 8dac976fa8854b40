//! Reading packs one after the other, within a budget, and writing down what was seen.

use std::collections::{BTreeSet, VecDeque};
use std::time::Instant;

use backstay_format::verified::VerifiedPack;
use backstay_format::{ChunkId, PackId};
use parking_lot::Mutex;

use crate::error::{Error, ErrorKind, Result};
use crate::key::ObjectKey;
use crate::progress::Progress;
use crate::quarantine::{self, NewBad};
use crate::repository::Inner;
use crate::seal::Decoder;

use super::damage::{DamageKind, Findings};
use super::facts::Facts;
use super::pack::{Checked, Verdict, check_with_parity};
use super::walk::BadCopies;
use super::{VerifyOptions, VerifyReport};

/// Bad chunks that one run remembers: when there are more, it ends, and the next goes on.
const BAD_MAX: usize = 1 << 20;
/// Threads that read packs at most: each holds one pack in memory.
const THREADS_MAX: usize = 8;

/// One run over some packs.
pub(super) struct Run<'a> {
    inner: &'a Inner,
    options: &'a VerifyOptions,
    progress: &'a dyn Progress,
    /// Packs that have parity.
    parity: BTreeSet<PackId>,
    started: Instant,
    state: Mutex<State>,
}

/// What a run found.
#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) queue: VecDeque<(PackId, u64)>,
    taken_bytes: u64,
    over_budget: bool,
    failed: Option<Error>,
    pub(super) facts: Facts,
    /// Findings to be written down.
    new: Vec<NewBad>,
    pub(super) bad: BadCopies,
    pub(super) findings: Findings,
    pub(super) report: VerifyReport,
}

impl<'a> Run<'a> {
    pub(super) fn new(
        inner: &'a Inner,
        options: &'a VerifyOptions,
        progress: &'a dyn Progress,
        facts: Facts,
        queue: VecDeque<(PackId, u64)>,
        parity: BTreeSet<PackId>,
    ) -> Self {
        let state = State { queue, facts, ..State::default() };
        Self { inner, options, progress, parity, started: Instant::now(), state: Mutex::new(state) }
    }

    /// Works until the queue is empty, the budget is spent, or the caller wants it to stop. What
    /// was found so far is written down in any case.
    pub(super) fn go(self) -> Result<State> {
        let wanted = self.options.threads.clamp(1, THREADS_MAX);
        if self.inner.background() && wanted > 1 {
            std::thread::scope(|s| {
                let threads: Vec<_> = (0..wanted).map(|_| s.spawn(|| self.work())).collect();
                for thread in threads {
                    if let Err(panic) = thread.join() {
                        std::panic::resume_unwind(panic);
                    }
                }
            });
        } else {
            self.work();
        }
        let mut state = self.state.into_inner();
        write(self.inner, self.options, &mut state);
        match state.failed.take() {
            Some(e) => Err(e),
            None => Ok(state),
        }
    }

    fn work(&self) {
        let done = Decoder::new().and_then(|mut decoder| {
            while let Some((pack, _)) = self.next()? {
                let (level, parity) = (self.options.level, self.parity.contains(&pack));
                let checked = check_with_parity(self.inner, pack, level, parity, &mut decoder)?;
                self.note(pack, checked);
            }
            Ok(())
        });
        if let Err(e) = done {
            let mut state = self.state.lock();
            state.over_budget = true;
            state.failed.get_or_insert(e);
        }
    }

    fn next(&self) -> Result<Option<(PackId, u64)>> {
        if self.progress.cancelled() {
            return Err(Error::new(
                ErrorKind::Aborted,
                "the verification was stopped; the next goes on where it was",
            ));
        }
        let mut state = self.state.lock();
        let Some((_, len)) = state.queue.front() else { return Ok(None) };
        // The first pack is always read: so even the smallest budget comes to an end some day.
        let spent = state.taken_bytes > 0;
        let too_much = |max: u64| state.taken_bytes.saturating_add(*len) > max;
        let bytes = self.options.max_bytes.is_some_and(too_much);
        let time = self.options.max_time.is_some_and(|max| self.started.elapsed() >= max);
        if state.over_budget || (spent && (bytes || time)) {
            state.over_budget = true;
            return Ok(None);
        }
        let next = state.queue.pop_front();
        state.taken_bytes += next.map_or(0, |(_, len)| len.max(1));
        Ok(next)
    }

    fn note(&self, pack: PackId, checked: Checked) {
        let mut state = self.state.lock();
        let state = &mut *state;
        self.progress.add("packs", 1);
        state.report.read_bytes += checked.read_bytes;
        state.report.chunks += checked.chunks;
        if let Some(e) = checked.parity
            && !self.inner.quarantine().has(pack)
        {
            state.bad.parity.insert(pack);
            state.findings.add(DamageKind::Object(ObjectKey::Parity(pack).path()), &e);
        }
        if state.bad.len() > BAD_MAX {
            state.over_budget = true;
        }
        let whole = match checked.verdict {
            Verdict::Gone => {
                state.report.gone += 1;
                return;
            }
            Verdict::Whole => true,
            Verdict::Unsupported { reason } => {
                state.findings.add_text(DamageKind::Pack(pack), reason);
                false
            }
            Verdict::Bad { chunks, at_risk, reason } => {
                self.note_bad(state, pack, chunks, at_risk, reason)
            }
        };
        state.report.packs += 1;
        let (time, level) = (self.inner.entropy().now(), self.options.level);
        let fact = VerifiedPack { pack, time, level, whole };
        if state.facts.note(fact) {
            write(self.inner, self.options, state);
        }
    }

    /// Takes in what is bad beyond what is in quarantine; tells whether there is nothing new.
    fn note_bad(
        &self,
        state: &mut State,
        pack: PackId,
        chunks: Option<Vec<(ChunkId, String)>>,
        at_risk: Vec<ChunkId>,
        reason: String,
    ) -> bool {
        let known = self.inner.quarantine();
        let Some(chunks) = chunks else {
            state.bad.add_whole(pack);
            state.findings.add_text(DamageKind::Pack(pack), reason.clone());
            state.new.push(NewBad { pack, chunks: None, reason });
            return false;
        };
        let mut fresh = Vec::new();
        for (id, why) in chunks {
            if !known.covers(pack, id) {
                state.bad.add(pack, id, &why);
                fresh.push(id);
            }
        }
        // They are no loss, only to be stored anew.
        fresh.extend(at_risk.into_iter().filter(|id| !known.covers(pack, *id)));
        if fresh.is_empty() {
            return true;
        }
        state.bad.add_at_risk(pack);
        state.findings.add_text(DamageKind::Pack(pack), reason.clone());
        state.new.push(NewBad { pack, chunks: Some(fresh), reason });
        false
    }
}

/// Writes down what was found: damage first, so that no pack counts as looked at whose damage is
/// forgotten. Where nothing can be written the run goes on, and its report says so.
fn write(inner: &Inner, options: &VerifyOptions, state: &mut State) {
    if !options.record || state.report.unsaved.is_some() {
        return;
    }
    let new = std::mem::take(&mut state.new);
    let mut written = Ok(());
    if !new.is_empty() {
        written = quarantine::write(inner, &new).map(|_| {
            state.report.quarantined_packs += new.len() as u64;
            let chunks = |b: &NewBad| b.chunks.as_ref().map_or(0, Vec::len) as u64;
            state.report.quarantined_chunks += new.iter().map(chunks).sum::<u64>();
        });
    }
    if let Err(e) = written.and_then(|()| state.facts.write(inner)) {
        tracing::warn!(error = %e, "what was verified cannot be written down");
        state.report.unsaved = Some(e.whole_story());
    }
}
