use std::collections::{BTreeMap, HashMap, HashSet};

use backstay_format::pack::{PackEntry, PackKind};
use backstay_format::{ChunkId, PackId, PointId};
use parking_lot::RwLock;

use super::{ChunkIndex, ChunkLocation, PackInfo};
use crate::error::Result;

/// An index in memory. Its size is that of the repository: for tests, and for reading where no
/// cache directory can be written.
#[derive(Debug, Default)]
pub(crate) struct MemoryIndex {
    state: RwLock<State>,
}

#[derive(Debug, Default)]
struct State {
    chunks: HashMap<ChunkId, ChunkLocation>,
    packs: BTreeMap<PackId, PackInfo>,
    complete: HashSet<PointId>,
}

impl ChunkIndex for MemoryIndex {
    fn get_many(&self, ids: &[ChunkId], out: &mut Vec<Option<ChunkLocation>>) -> Result<()> {
        let state = self.state.read();
        out.clear();
        out.extend(
            ids.iter().map(|id| {
                state.chunks.get(id).filter(|l| state.packs.contains_key(&l.pack)).copied()
            }),
        );
        Ok(())
    }

    fn add_pack(
        &self,
        pack: PackId,
        kind: PackKind,
        len: u64,
        entries: &[PackEntry],
    ) -> Result<()> {
        let mut state = self.state.write();
        for e in entries {
            state.chunks.insert(e.id, ChunkLocation::new(pack, kind, e));
        }
        state.packs.insert(pack, PackInfo { chunks: entries.len() as u32, len });
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
        for pack in packs {
            state.packs.remove(pack);
        }
        state.chunks.retain(|_, l| !packs.contains(&l.pack));
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
