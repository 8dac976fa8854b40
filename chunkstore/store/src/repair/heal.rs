//! One round after the other: what is lost is looked for in every source.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use backstay_format::ChunkId;
use backstay_format::pack::PackKind;
use backstay_format::point::RecoveryPoint;

use crate::error::{Error, ErrorKind, Result};
use crate::progress::Progress;
use crate::repository::Inner;
use crate::verify::{BadCopies, Healed};

use super::RepairReport;
use super::derive::derive;
use super::rebuilt::FromParity;
use super::sink::Sink;
use super::source::{ChunkSource, WantedChunk, any_copy};
use super::wanted::{Places, collect};

/// Chunks that no source has that are remembered; beyond, a repair ends and says what is left.
const HOPELESS_MAX: usize = 1 << 22;

/// What healed a chunk, where it was none of the sources given.
const FROM_COPY: &str = "a copy in quarantine";
const FROM_PARITY: &str = "parity";

pub(super) struct Healer<'a> {
    inner: &'a Inner,
    bad: &'a BadCopies,
    sources: &'a mut [Box<dyn ChunkSource>],
    progress: &'a dyn Progress,
    sink: Sink<'a>,
    /// Asked for everywhere, in vain.
    tried: HashSet<ChunkId>,
    parity: FromParity,
    wanted: u64,
}

impl<'a> Healer<'a> {
    /// With `write` healed chunks are stored; without, they only count as healed.
    pub(super) fn new(
        inner: &'a Inner,
        bad: &'a BadCopies,
        sources: &'a mut [Box<dyn ChunkSource>],
        write: bool,
        progress: &'a dyn Progress,
    ) -> Self {
        Self {
            inner,
            bad,
            sources,
            progress,
            sink: Sink::new(inner, write),
            tried: HashSet::new(),
            parity: FromParity::default(),
            wanted: 0,
        }
    }

    /// Heals what can be healed. A node that is healed shows what is lost below it, so it goes on
    /// until nothing new is found.
    pub(super) fn run(&mut self, points: &[Arc<RecoveryPoint>]) -> Result<()> {
        loop {
            let wanted = self.collect(points, &self.tried)?;
            self.wanted += wanted.len() as u64;
            if wanted.is_empty() || self.tried.len() > HOPELESS_MAX {
                break;
            }
            self.progress.total("lost chunks", wanted.len() as u64);
            self.round(wanted)?;
        }
        self.scan(points)
    }

    fn collect(
        &self,
        points: &[Arc<RecoveryPoint>],
        without: &HashSet<ChunkId>,
    ) -> Result<HashMap<ChunkId, Places>> {
        collect(self.inner, points, self.bad, self.sink.healed(), without, self.progress)
    }

    fn round(&mut self, mut wanted: HashMap<ChunkId, Places>) -> Result<()> {
        self.rebuild(&wanted)?;
        let mut order: Vec<ChunkId> = wanted.keys().copied().collect();
        order.sort();
        for id in order {
            self.check_cancelled()?;
            let Some(places) = wanted.remove(&id) else { continue };
            if !self.heal(id, &places)? {
                self.tried.insert(id);
            }
            self.progress.add("lost chunks", 1);
        }
        Ok(())
    }

    /// Rebuilds the packs that may hold what is wanted, one after the other.
    fn rebuild(&mut self, wanted: &HashMap<ChunkId, Places>) -> Result<()> {
        for pack in self.parity.candidates(self.inner, self.bad, wanted)? {
            self.check_cancelled()?;
            let Some(rebuilt) = self.parity.rebuild(self.inner, pack)? else { continue };
            for (id, bytes) in rebuilt.chunks(self.inner, wanted)? {
                if !self.sink.has(id) {
                    let level = wanted[&id][0].node_level;
                    self.sink.accept(id, level, bytes, FROM_PARITY)?;
                }
            }
        }
        Ok(())
    }

    fn heal(&mut self, id: ChunkId, places: &Places) -> Result<bool> {
        if self.sink.has(id) {
            return Ok(true);
        }
        let level = places[0].node_level;
        if let Some(bytes) = any_copy(self.inner, id)?
            && self.sink.accept(id, level, bytes, FROM_COPY)?
        {
            return Ok(true);
        }
        for source in &mut *self.sources {
            for wanted in places {
                if let Some(bytes) = source.offer(wanted)?
                    && self.sink.accept(id, level, bytes, &source.name())?
                {
                    return Ok(true);
                }
            }
        }
        let Some(level) = level else { return Ok(false) };
        self.derive(id, level, places)
    }

    /// Tries to build a lost node of what the sources have below it.
    fn derive(&mut self, id: ChunkId, level: u8, places: &[WantedChunk]) -> Result<bool> {
        for source in &mut *self.sources {
            for wanted in places {
                let bytes = derive(self.inner, &mut **source, wanted, level, self.progress)?;
                if let Some(bytes) = bytes
                    && self.sink.accept(id, Some(level), bytes, &source.name())?
                {
                    return Ok(true);
                }
            }
        }
        Ok(false)
    }

    /// Looks for what is left among everything the sources have, wherever it stands there.
    fn scan(&mut self, points: &[Arc<RecoveryPoint>]) -> Result<()> {
        if self.tried.is_empty() || self.sources.is_empty() {
            return Ok(());
        }
        let mut left: HashSet<ChunkId> = self
            .collect(points, &HashSet::new())?
            .into_iter()
            .filter(|(_, places)| places[0].node_level.is_none())
            .map(|(id, _)| id)
            .collect();
        let (inner, progress, sink) = (self.inner, self.progress, &mut self.sink);
        for source in &mut *self.sources {
            if left.is_empty() {
                break;
            }
            let name = source.name();
            let mut failed = None;
            source.scan(inner.config().chunk_size.bytes(), &mut |block| {
                let id = inner.keys().chunk_id(PackKind::Data, block);
                if left.remove(&id)
                    && let Err(e) = sink.accept(id, None, block.to_vec(), &name)
                {
                    failed = Some(e);
                }
                failed.is_none() && !left.is_empty() && !progress.cancelled()
            })?;
            if let Some(e) = failed {
                return Err(e);
            }
        }
        self.check_cancelled()
    }

    fn check_cancelled(&self) -> Result<()> {
        if self.progress.cancelled() {
            return Err(Error::new(ErrorKind::Aborted, "the repair was stopped; run it again"));
        }
        Ok(())
    }

    /// Makes what was healed durable. Returns what counts as healed though nothing was stored.
    pub(super) fn finish(self, report: &mut RepairReport) -> Result<Healed> {
        report.wanted = self.wanted;
        self.sink.finish(report)
    }
}
