use std::collections::{BTreeMap, HashMap, HashSet};

use backstay_format::pack::PackEntry;
use backstay_format::{ChunkId, IndexId, PackId, PointId};
use parking_lot::RwLock;

use super::{COPIES_MAX, ChunkIndex, ChunkLocation, PackInfo, PackSet};
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
    /// The copies of each chunk, newest last. Nearly all have one.
    chunks: HashMap<ChunkId, Vec<ChunkLocation>>,
    packs: BTreeMap<PackId, PackInfo>,
    complete: HashSet<PointId>,
    objects: HashSet<IndexId>,
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
            copies.iter().rev().find(|l| !avoid.contains(&l.pack)).copied()
        }));
        Ok(())
    }

    fn copies(&self, id: ChunkId) -> Result<Vec<ChunkLocation>> {
        let state = self.state.read();
        let copies = state.chunks.get(&id).into_iter().flatten();
        Ok(copies.rev().take(COPIES_MAX).copied().collect())
    }

    fn add_pack_without(
        &self,
        pack: PackId,
        info: PackInfo,
        entries: &[PackEntry],
        bad: &HashSet<ChunkId>,
    ) -> Result<()> {
        let mut state = self.state.write();
        if state.packs.contains_key(&pack) {
            return Ok(());
        }
        state.packs.insert(pack, info);
        for (n, e) in entries.iter().enumerate().filter(|(_, e)| !bad.contains(&e.id)) {
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

    fn expect(&self, _: usize) -> Result<()> {
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

    fn pack_ids(&self) -> Vec<PackId> {
        self.state.read().packs.keys().copied().collect()
    }

    fn has_pack(&self, pack: &PackId) -> bool {
        self.state.read().packs.contains_key(pack)
    }

    fn drop_packs(&self, packs: &[PackId]) -> Result<()> {
        let mut state = self.state.write();
        state.forget(packs);
        if !planted(Fault::VanishedBaseTrusted) {
            state.complete.clear();
        }
        state.objects.clear();
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

    fn objects(&self) -> Result<HashSet<IndexId>> {
        Ok(self.state.read().objects.clone())
    }

    fn set_objects(&self, taken_in: &[IndexId], gone: &[IndexId]) -> Result<()> {
        let objects = &mut self.state.write().objects;
        objects.extend(taken_in);
        gone.iter().for_each(|id| {
            objects.remove(id);
        });
        Ok(())
    }
}
