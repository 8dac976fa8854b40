use std::collections::{BTreeMap, HashMap, HashSet};

use backstay_format::pack::PackEntry;
use backstay_format::{ChunkId, PackId, PointId};
use parking_lot::RwLock;

use super::{ChunkIndex, ChunkLocation, PackInfo, PackSet};
use crate::error::Result;
use crate::planted::{Fault, planted};

/// An index in memory. Its size is that of the repository: for tests, and for reading where no
/// cache directory can be written.
#[derive(Debug, Default)]
pub(crate) struct MemoryIndex {
    state: RwLock<State>,
}

#[derive(Debug, Default)]
struct State {
    /// The copies of each chunk. Nearly all have one.
    chunks: HashMap<ChunkId, Vec<ChunkLocation>>,
    packs: BTreeMap<PackId, PackInfo>,
    complete: HashSet<PointId>,
}

impl State {
    fn forget(&mut self, packs: &[PackId]) {
        for pack in packs {
            self.packs.remove(pack);
        }
        let gone: HashSet<&PackId> = packs.iter().collect();
        self.chunks.retain(|_, copies| {
            copies.retain(|l| !gone.contains(&l.pack));
            !copies.is_empty()
        });
    }
}

impl ChunkIndex for MemoryIndex {
    fn get_many(
        &self,
        ids: &[ChunkId],
        avoid: &PackSet,
        out: &mut Vec<Option<ChunkLocation>>,
    ) -> Result<()> {
        let state = self.state.read();
        out.clear();
        out.extend(ids.iter().map(|id| {
            let copies = state.chunks.get(id)?;
            copies.iter().find(|l| !avoid.contains(&l.pack)).copied()
        }));
        Ok(())
    }

    fn copies(&self, id: ChunkId) -> Result<Vec<ChunkLocation>> {
        Ok(self.state.read().chunks.get(&id).cloned().unwrap_or_default())
    }

    fn add_pack(&self, pack: PackId, info: PackInfo, entries: &[PackEntry]) -> Result<()> {
        let mut state = self.state.write();
        if state.packs.insert(pack, info).is_some() {
            return Ok(());
        }
        for (n, e) in entries.iter().enumerate() {
            let location = ChunkLocation::new(pack, info.kind, n, e);
            let copies = state.chunks.entry(e.id).or_default();
            if planted(Fault::TwinsCountAsNone) && copies.iter().any(|l| l.pack == pack) {
                copies.retain(|l| l.pack != pack);
                continue;
            }
            copies.push(location);
        }
        Ok(())
    }

    fn publish(&self) -> Result<()> {
        Ok(())
    }

    fn catch_up(&self) -> Result<()> {
        Ok(())
    }

    fn packs(&self) -> Vec<(PackId, PackInfo)> {
        self.state.read().packs.iter().map(|(k, v)| (*k, *v)).collect()
    }

    fn drop_packs(&self, packs: &[PackId]) -> Result<()> {
        let mut state = self.state.write();
        state.forget(packs);
        if !planted(Fault::VanishedBaseTrusted) {
            state.complete.clear();
        }
        Ok(())
    }

    fn collected(&self, packs: &[PackId]) -> Result<()> {
        self.state.write().forget(packs);
        Ok(())
    }

    fn drop_copies(&self, pack: PackId, ids: &[ChunkId]) -> Result<()> {
        let mut state = self.state.write();
        for id in ids {
            if let Some(copies) = state.chunks.get_mut(id) {
                copies.retain(|l| l.pack != pack);
            }
        }
        state.chunks.retain(|_, copies| !copies.is_empty());
        state.complete.clear();
        Ok(())
    }

    fn set_complete(&self, point: PointId) -> Result<()> {
        self.state.write().complete.insert(point);
        Ok(())
    }

    fn is_complete(&self, point: PointId) -> bool {
        self.state.read().complete.contains(&point)
    }
}
