//! One round after the other: what is lost is looked for in every source.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use backstay_format::ChunkId;
use backstay_format::node::Node;
use backstay_format::pack::PackKind;
use backstay_format::point::RecoveryPoint;

use crate::error::{Error, ErrorKind, Result};
use crate::progress::Progress;
use crate::repository::Inner;
use crate::verify::{BadCopies, Healed};

use super::derive::derive;
use super::rebuilt::FromParity;
use super::source::{ChunkSource, WantedChunk, any_copy};
use super::wanted::{Places, collect};
use super::writer::Writer;
use super::{HealedBy, RepairReport};

/// Chunks that no source has that are remembered; beyond, a repair ends and says what is left.
const HOPELESS_MAX: usize = 1 << 22;

/// What healed a chunk, where it was none of the sources given.
const FROM_COPY: &str = "a copy in quarantine";

pub(super) struct Healer<'a> {
    inner: &'a Inner,
    bad: &'a BadCopies,
    sources: &'a mut [Box<dyn ChunkSource>],
    progress: &'a dyn Progress,
    /// Whether healed chunks are stored.
    write: bool,
    writer: Option<Writer>,
    pub(super) healed: Healed,
    /// Asked for everywhere, in vain.
    tried: HashSet<ChunkId>,
    parity: FromParity,
    by: BTreeMap<String, (u64, u64)>,
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
            write,
            writer: None,
            healed: Healed::new(),
            tried: HashSet::new(),
            parity: FromParity::default(),
            by: BTreeMap::new(),
            wanted: 0,
        }
    }

    /// Heals what can be healed. A node that is healed shows what is lost below it, so it goes on
    /// until nothing new is found.
    pub(super) fn run(&mut self, points: &[Arc<RecoveryPoint>]) -> Result<()> {
        loop {
            let wanted =
                collect(self.inner, points, self.bad, &self.healed, &self.tried, self.progress)?;
            self.wanted += wanted.len() as u64;
            if wanted.is_empty() || self.tried.len() > HOPELESS_MAX {
                break;
            }
            self.progress.total("lost chunks", wanted.len() as u64);
            self.round(wanted)?;
        }
        self.scan(points)
    }

    fn round(&mut self, mut wanted: HashMap<ChunkId, Places>) -> Result<()> {
        self.from_parity(&wanted)?;
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
    fn from_parity(&mut self, wanted: &HashMap<ChunkId, Places>) -> Result<()> {
        for pack in self.parity.candidates(self.inner, self.bad, wanted)? {
            self.check_cancelled()?;
            let Some(rebuilt) = self.parity.rebuild(self.inner, pack)? else { continue };
            for (id, bytes) in rebuilt.chunks(self.inner, wanted)? {
                if !self.healed.contains_key(&id) {
                    let level = wanted[&id][0].node_level;
                    self.accept(id, level, bytes, "parity")?;
                }
            }
        }
        Ok(())
    }

    fn heal(&mut self, id: ChunkId, places: &Places) -> Result<bool> {
        if self.healed.contains_key(&id) {
            return Ok(true);
        }
        let level = places[0].node_level;
        if let Some(bytes) = any_copy(self.inner, id)?
            && self.accept(id, level, bytes, FROM_COPY)?
        {
            return Ok(true);
        }
        for n in 0..self.sources.len() {
            for wanted in places {
                let name = self.sources[n].name();
                if let Some(bytes) = self.sources[n].offer(wanted)?
                    && self.accept(id, level, bytes, &name)?
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
        for n in 0..self.sources.len() {
            for wanted in places {
                let source = &mut *self.sources[n];
                let name = source.name();
                let bytes = derive(self.inner, source, wanted, level, self.progress)?;
                if let Some(bytes) = bytes
                    && self.accept(id, Some(level), bytes, &name)?
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
        let none = HashSet::new();
        let left = collect(self.inner, points, self.bad, &self.healed, &none, self.progress)?;
        let mut left: HashSet<ChunkId> = left
            .into_iter()
            .filter(|(_, places)| places[0].node_level.is_none())
            .map(|(id, _)| id)
            .collect();
        for n in 0..self.sources.len() {
            if left.is_empty() {
                break;
            }
            let name = self.sources[n].name();
            let (inner, progress) = (self.inner, self.progress);
            let mut found: Vec<(ChunkId, Vec<u8>)> = Vec::new();
            self.sources[n].scan(inner.config().chunk_size.bytes(), &mut |block| {
                let id = inner.keys().chunk_id(PackKind::Data, block);
                if left.remove(&id) {
                    found.push((id, block.to_vec()));
                }
                !left.is_empty() && found.len() < FOUND_MAX && !progress.cancelled()
            })?;
            self.check_cancelled()?;
            for (id, bytes) in found {
                self.accept(id, None, bytes, &name)?;
            }
        }
        Ok(())
    }

    /// Takes bytes in if they are what the id says.
    fn accept(&mut self, id: ChunkId, level: Option<u8>, bytes: Vec<u8>, by: &str) -> Result<bool> {
        let kind = if level.is_some() { PackKind::Tree } else { PackKind::Data };
        if self.inner.keys().chunk_id(kind, &bytes) != id {
            return Ok(false);
        }
        let node = match level {
            None => None,
            Some(level) => match Node::decode(&bytes, level) {
                Ok(node) => Some(Arc::new(node)),
                Err(_) => return Ok(false),
            },
        };
        let count = self.by.entry(by.to_owned()).or_default();
        count.0 += 1;
        count.1 += bytes.len() as u64;
        self.healed.insert(id, node);
        if self.write {
            let writer = match &mut self.writer {
                Some(writer) => writer,
                None => self.writer.insert(Writer::begin(self.inner)?),
            };
            writer.store(kind, id, bytes)?;
        }
        Ok(true)
    }

    fn check_cancelled(&self) -> Result<()> {
        if self.progress.cancelled() {
            return Err(Error::new(ErrorKind::Aborted, "the repair was stopped; run it again"));
        }
        Ok(())
    }

    /// Makes what was healed durable. Returns what counts as healed though nothing was stored.
    pub(super) fn finish(mut self, report: &mut RepairReport) -> Result<Healed> {
        report.wanted = self.wanted;
        report.healed = std::mem::take(&mut self.by)
            .into_iter()
            .map(|(by, (chunks, bytes))| HealedBy { by, chunks, bytes })
            .collect();
        if !self.write {
            return Ok(self.healed);
        }
        let Some(writer) = self.writer else { return Ok(Healed::new()) };
        let (session, stored) = writer.finish()?;
        report.session = Some(session);
        report.stored_bytes = stored;
        Ok(Healed::new())
    }
}

/// Blocks taken from one scan of a source, which are held in memory.
const FOUND_MAX: usize = 16 * 1024;
