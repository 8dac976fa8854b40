//! Merging index objects: many small ones into few, without packs that are gone.

use std::collections::HashSet;

use backstay_format::index_object::{PackTable, object_millis};
use backstay_format::limits::INDEX_PAYLOAD_TARGET;
use backstay_format::pack::PackKind;
use backstay_format::{IndexId, PackId};
use parking_lot::Mutex;

use crate::error::{ErrorKind, Result};
use crate::key::{Folder, ObjectKey};

use super::Inner;
use super::adopt::is_odd;
use super::exchange::put_object;

/// An object shorter than this is merged with others.
const SMALL: u64 = INDEX_PAYLOAD_TARGET as u64 / 2;

/// What [`consolidate`] did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Consolidated {
    /// Objects written.
    pub(crate) written: u64,
    /// Objects deleted: their tables are in others, or of packs that are gone.
    pub(crate) deleted: u64,
    /// Packs that were in no object, and are in one now.
    pub(crate) packs_added: u64,
}

/// Merges index objects, and adds packs that are in none. Several at once, readers beside it, and a
/// crash at any time do no harm: new objects are written before old ones are deleted, and whoever
/// misses an object reads the footers. An object that cannot be read is left to the check.
pub(crate) fn consolidate(inner: &Inner) -> Result<Consolidated> {
    let objects = list_objects(inner)?;
    // After the objects: what they name was durable before, so this listing has what still is.
    let mut merge = Merge::new(inner)?;
    let mut old = merge.choose(&objects)?;
    let missing = merge.missing(&objects)?;
    // One small object of its sort, and nothing to merge it with.
    let sort = |id: &IndexId| id.as_bytes()[0];
    let counts = [0, 1].map(|s| old.iter().filter(|(id, _)| sort(id) == s).count());
    let lone = |(id, gone): &(IndexId, Gone)| {
        *gone == Gone::None && counts.get(usize::from(sort(id))) == Some(&1)
    };
    for (id, _) in old.extract_if(.., |o| lone(o)) {
        merge.keep(id)?;
    }
    for (id, _) in &old {
        merge.take_in(*id)?;
    }
    merge.add(&missing)?;
    for kind in [PackKind::Tree, PackKind::Data] {
        merge.write(kind)?;
    }
    merge.delete(&old.into_iter().map(|(id, _)| id).collect::<Vec<_>>())?;
    Ok(merge.done)
}

/// The index objects with their lengths, large ones first: what stands in one of them is not taken
/// from a small one.
fn list_objects(inner: &Inner) -> Result<Vec<(IndexId, u64)>> {
    let mut objects = Vec::new();
    for key in inner.storage().list(Folder::Index)? {
        let ObjectKey::Index(id) = key else { continue };
        match inner.storage().size(key) {
            Ok(len) => objects.push((id, len)),
            // Another consolidation was faster.
            Err(e) if e.kind() == ErrorKind::NotFound => {}
            Err(e) => return Err(e),
        }
    }
    objects.sort_by_key(|(_, len)| std::cmp::Reverse(*len));
    Ok(objects)
}

/// Whether an object names packs that are gone, or that stand in a larger object.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Gone {
    None,
    Some,
}

/// An object that is gone was merged by another consolidation meanwhile.
fn unless_gone(result: Result<()>) -> Result<()> {
    result.or_else(|e| if e.kind() == ErrorKind::NotFound { Ok(()) } else { Err(e) })
}

struct Merge<'a> {
    inner: &'a Inner,
    /// The packs there are.
    packs: HashSet<PackId>,
    /// Packs in objects that stay, or that were written or are being made.
    seen: HashSet<PackId>,
    trees: Vec<u8>,
    data: Vec<u8>,
    /// The time of the newest object merged.
    millis: u64,
    done: Consolidated,
}

impl<'a> Merge<'a> {
    fn new(inner: &'a Inner) -> Result<Self> {
        let packs = inner.storage().list(Folder::Packs)?.into_iter();
        let id = |k| if let ObjectKey::Pack(id) = k { Some(id) } else { None };
        Ok(Self {
            inner,
            packs: packs.filter_map(id).collect(),
            seen: HashSet::new(),
            trees: Vec::new(),
            data: Vec::new(),
            millis: 0,
            done: Consolidated::default(),
        })
    }

    /// The objects to be merged: those that are small, or of which a quarter is of no use.
    fn choose(&mut self, objects: &[(IndexId, u64)]) -> Result<Vec<(IndexId, Gone)>> {
        let mut old = Vec::new();
        for &(id, len) in objects {
            let (mut live, mut all) = (Vec::new(), 0usize);
            let read = self.inner.each_table(id, &mut |table| {
                all += 1;
                if self.packs.contains(&table.pack) && !self.seen.contains(&table.pack) {
                    live.push(table.pack);
                }
                Ok(())
            });
            match read {
                Ok(()) if len >= SMALL && live.len() * 4 >= all * 3 => self.seen.extend(live),
                Ok(()) => old.push((id, if live.len() == all { Gone::None } else { Gone::Some })),
                Err(e) if is_odd(&e) || e.kind() == ErrorKind::NotFound => {
                    tracing::warn!(%id, error = %e.whole_story(), "an index object was left aside");
                }
                Err(e) => return Err(e),
            }
        }
        Ok(old)
    }

    /// The packs that are in no object.
    fn missing(&self, objects: &[(IndexId, u64)]) -> Result<Vec<PackId>> {
        let mut missing: HashSet<PackId> = self.packs.difference(&self.seen).copied().collect();
        for (id, _) in objects {
            if missing.is_empty() {
                break;
            }
            let read = self.inner.each_table(*id, &mut |table| {
                missing.remove(&table.pack);
                Ok(())
            });
            match read {
                Err(e) if !is_odd(&e) && e.kind() != ErrorKind::NotFound => return Err(e),
                _ => {}
            }
        }
        // In order, so that the same happens each time.
        let mut missing: Vec<PackId> = missing.into_iter().collect();
        missing.sort();
        Ok(missing)
    }

    /// An object stays: its packs need not stand in another.
    fn keep(&mut self, id: IndexId) -> Result<()> {
        let inner = self.inner;
        unless_gone(inner.each_table(id, &mut |table| {
            self.seen.insert(table.pack);
            Ok(())
        }))
    }

    fn take_in(&mut self, id: IndexId) -> Result<()> {
        self.millis = self.millis.max(object_millis(id));
        let inner = self.inner;
        unless_gone(inner.each_table(id, &mut |table| {
            if self.packs.contains(&table.pack) && self.seen.insert(table.pack) {
                self.append(&table)?;
            }
            Ok(())
        }))
    }

    fn append(&mut self, table: &PackTable) -> Result<()> {
        let more = PackTable::encoded_max(table.entries.len());
        if self.payload(table.kind).len() + more > INDEX_PAYLOAD_TARGET as usize {
            self.write(table.kind)?;
        }
        table.encode(self.payload(table.kind));
        Ok(())
    }

    /// Reads the footers of packs that are in no object.
    fn add(&mut self, missing: &[PackId]) -> Result<()> {
        let inner = self.inner;
        let shared = Mutex::new(self);
        inner.each_footer(missing, &|table| {
            let mut merge = shared.lock();
            if merge.seen.insert(table.pack) {
                merge.append(&table)?;
                merge.done.packs_added += 1;
            }
            Ok(())
        })
    }

    fn payload(&mut self, kind: PackKind) -> &mut Vec<u8> {
        match kind {
            PackKind::Tree => &mut self.trees,
            PackKind::Data => &mut self.data,
        }
    }

    fn write(&mut self, kind: PackKind) -> Result<()> {
        let payload = std::mem::take(self.payload(kind));
        if !payload.is_empty() {
            put_object(self.inner, kind, self.millis, payload)?;
            self.done.written += 1;
        }
        Ok(())
    }

    fn delete(&mut self, old: &[IndexId]) -> Result<()> {
        for id in old {
            match self.inner.storage().delete(ObjectKey::Index(*id)) {
                Ok(()) => self.done.deleted += 1,
                Err(e) if e.kind() == ErrorKind::NotFound => {}
                // Held by a lock, say. It says nothing wrong, so it may stay.
                Err(e) if e.kind() == ErrorKind::Denied => {
                    tracing::warn!(%id, error = %e, "an index object cannot be deleted");
                }
                Err(e) => return Err(e),
            }
        }
        self.inner.index()?.set_objects(&[], old)
    }
}
