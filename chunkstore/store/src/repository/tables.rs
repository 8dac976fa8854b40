//! What a pack holds, when the pack itself cannot say so any more: from the index objects.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use backstay_format::index_object::PackTable;
use backstay_format::{IndexId, PackId};
use parking_lot::Mutex;

use crate::error::{ErrorKind, Result};
use crate::key::{Folder, ObjectKey};
use crate::quarantine::lost;

use super::Inner;

/// Tables kept: each has some 500 entries at the default chunk size, or 25 KiB.
const TABLES_MAX: usize = 1024;

/// Which index objects name which packs. Empty until a pack is asked for: few are ever damaged.
#[derive(Debug, Default)]
pub(crate) struct Tables {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    seen: HashSet<IndexId>,
    objects: HashMap<PackId, Vec<IndexId>>,
    /// Those that were asked for, and that no index object has.
    tables: HashMap<PackId, Option<Arc<PackTable>>>,
}

impl Inner {
    /// The table of a pack as an index object has it; nothing if none has. It is derived data: each
    /// chunk that is read by it is compared with its id.
    pub(crate) fn table_of(&self, pack: PackId) -> Result<Option<Arc<PackTable>>> {
        let mut state = self.tables().state.lock();
        if let Some(known) = state.tables.get(&pack) {
            return Ok(known.clone());
        }
        self.look_through(&mut state)?;
        let objects = state.objects.get(&pack).cloned().unwrap_or_default();
        let mut table = None;
        for id in objects {
            let found = self.each_table(id, &mut |t| {
                if t.pack == pack {
                    table = Some(Arc::new(t));
                }
                Ok(())
            });
            match found {
                Ok(()) if table.is_some() => break,
                Ok(()) => {}
                Err(e) if lost(&e) || e.is_media_error() => table = None,
                Err(e) => return Err(e),
            }
        }
        if state.tables.len() >= TABLES_MAX {
            state.tables.clear();
        }
        state.tables.insert(pack, table.clone());
        Ok(table)
    }

    /// Notes which packs the index objects name that were not looked at before.
    fn look_through(&self, state: &mut State) -> Result<()> {
        for key in self.storage().list(Folder::Index)? {
            let ObjectKey::Index(id) = key else { continue };
            if !state.seen.insert(id) {
                continue;
            }
            let mut named = Vec::new();
            match self.each_table(id, &mut |t| {
                named.push(t.pack);
                Ok(())
            }) {
                Ok(()) => {}
                // Merged into another meanwhile, or damaged: what it names others may name too.
                Err(e) if e.kind() == ErrorKind::NotFound || lost(&e) || e.is_media_error() => {
                    continue;
                }
                Err(e) => return Err(e),
            }
            for pack in named {
                state.objects.entry(pack).or_default().push(id);
            }
        }
        Ok(())
    }
}
