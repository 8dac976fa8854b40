//! Packs rebuilt from their parity, in memory, for the chunks that are wanted of them.

use std::collections::{BTreeSet, HashMap, HashSet};

use backstay_format::{ChunkId, PackId};

use crate::error::Result;
use crate::key::{Folder, ObjectKey};
use crate::pack::{PackFooter, footer_of};
use crate::parity;
use crate::quarantine::lost;
use crate::repository::Inner;
use crate::seal::Decoder;
use crate::verify::BadCopies;

use super::wanted::Places;

/// What is known of packs that can be rebuilt.
#[derive(Debug, Default)]
pub(super) struct FromParity {
    /// Packs that have parity; nothing until somebody asks.
    present: Option<BTreeSet<PackId>>,
    /// Packs that do not say themselves what they hold, and were not rebuilt yet.
    unknown: BTreeSet<PackId>,
    /// What such packs turned out to hold.
    holds: HashMap<PackId, HashSet<ChunkId>>,
    /// Packs that cannot be rebuilt.
    hopeless: HashSet<PackId>,
}

/// A pack in memory as it was written.
pub(super) struct Rebuilt {
    bytes: Vec<u8>,
    footer: PackFooter,
}

impl FromParity {
    /// The packs with parity that may hold some of what is wanted: those where a copy is known to
    /// be bad, and those that are lost or do not say what they hold.
    pub(super) fn candidates(
        &mut self,
        inner: &Inner,
        bad: &BadCopies,
        wanted: &HashMap<ChunkId, Places>,
    ) -> Result<BTreeSet<PackId>> {
        if self.present.is_none() {
            let present = parity::present(inner)?;
            let pack = |k: ObjectKey| if let ObjectKey::Pack(id) = k { Some(id) } else { None };
            let stored: BTreeSet<PackId> =
                inner.storage().list(Folder::Packs)?.into_iter().filter_map(pack).collect();
            let whole = inner.quarantine().whole_packs().into_iter().chain(bad.whole_packs());
            self.unknown = whole.filter(|id| present.contains(id)).collect();
            self.unknown.extend(present.difference(&stored));
            self.present = Some(present);
        }
        let present = self.present.iter().flatten();
        let present: BTreeSet<PackId> = present.copied().collect();
        let mut packs = self.unknown.clone();
        for id in wanted.keys() {
            packs.extend(inner.quarantine().packs_of(*id));
            packs.extend(bad.packs_of(*id));
        }
        let holds = self.holds.iter().filter(|(_, ids)| ids.iter().any(|i| wanted.contains_key(i)));
        packs.extend(holds.map(|(pack, _)| *pack));
        packs.retain(|id| present.contains(id) && !self.hopeless.contains(id));
        Ok(packs)
    }

    /// The pack as it was written; nothing if too much of it is damaged.
    pub(super) fn rebuild(&mut self, inner: &Inner, pack: PackId) -> Result<Option<Rebuilt>> {
        let unknown = self.unknown.remove(&pack);
        let rebuilt = parity::rebuild_pack(inner, pack).and_then(|bytes| {
            let footer = footer_of(&bytes, inner.config().id, inner.keys(), pack)?;
            Ok(Rebuilt { bytes, footer })
        });
        match rebuilt {
            Ok(rebuilt) => {
                if unknown {
                    let ids = rebuilt.footer.entries.iter().map(|e| e.id).collect();
                    self.holds.insert(pack, ids);
                }
                Ok(Some(rebuilt))
            }
            Err(e) if lost(&e) || e.is_media_error() => {
                tracing::warn!(%pack, error = %e, "a pack cannot be rebuilt from its parity");
                self.hopeless.insert(pack);
                Ok(None)
            }
            Err(e) => Err(e),
        }
    }
}

impl Rebuilt {
    /// The decoded bytes of the chunks that are wanted; the caller compares them with their ids.
    pub(super) fn chunks(
        &self,
        inner: &Inner,
        wanted: &HashMap<ChunkId, Places>,
    ) -> Result<Vec<(ChunkId, Vec<u8>)>> {
        let header = &self.footer.header;
        let key = inner.keys().pack_key(header.pack_id);
        let mut decoder = Decoder::new()?;
        let mut out = Vec::new();
        for e in self.footer.entries.iter().filter(|e| wanted.contains_key(&e.id)) {
            let start = e.offset as usize;
            let Some(stored) = self.bytes.get(start..start + e.stored_len as usize) else {
                continue;
            };
            let mut raw = vec![0u8; e.raw_len as usize];
            if decoder.decode(key.as_ref(), header.kind, e, stored, &mut raw).is_ok() {
                out.push((e.id, raw));
            }
        }
        Ok(out)
    }
}
