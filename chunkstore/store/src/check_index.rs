//! Checking what is derived: the index of this host, and the index objects of the repository,
//! against the packs' own footers.

use std::collections::HashMap;

use backstay_format::index_object::PackTable;
use backstay_format::{ChunkId, PackId};

use crate::check::{CheckReport, DamageKind};
use crate::error::{Error, ErrorKind, Result};
use crate::index::{ChunkLocation, PackSet};
use crate::key::{Folder, ObjectKey};
use crate::repository::Inner;

/// Chunks looked up at once.
const BATCH: usize = 1024;

/// What footers said, to compare index objects with: 32 bytes a pack.
#[derive(Debug, Default)]
pub(crate) struct Footers(HashMap<PackId, [u8; 16]>);

impl Footers {
    /// Takes a footer in, and puts right what this host's index says of the pack. `true`: something
    /// had to be put right.
    pub(crate) fn compare(&mut self, inner: &Inner, table: PackTable) -> Result<bool> {
        self.0.insert(table.pack, digest(&table));
        let index = inner.index()?;
        let mut found = Vec::new();
        for (first, entries) in (0..).step_by(BATCH).zip(table.entries.chunks(BATCH)) {
            let ids: Vec<ChunkId> = entries.iter().map(|e| e.id).collect();
            index.get_many(&ids, &PackSet::new(), &mut found)?;
            for ((n, e), location) in (first..).zip(entries).zip(&found) {
                let right = ChunkLocation::new(table.pack, table.kind, n, e);
                let fits = match location {
                    None => inner.excludes(table.pack, &e.id),
                    // A copy elsewhere hides what is said of this one, and serves in its place.
                    Some(l) => l.pack != table.pack || *l == right || has_twin(&table, e.id, *l),
                };
                if !fits {
                    tracing::warn!(pack = %table.pack, chunk = %e.id, "the index of this host disagrees with a footer; the pack is read in anew");
                    index.drop_packs(&[table.pack])?;
                    inner.adopt_table(table)?;
                    index.publish()?;
                    return Ok(true);
                }
            }
        }
        Ok(false)
    }

    /// Compares the index objects with the footers. They are derived, so nothing is lost with one;
    /// but a wrong one would mislead whoever comes new.
    pub(crate) fn compare_objects(&self, inner: &Inner, report: &mut CheckReport) -> Result<()> {
        for key in inner.storage().list(Folder::Index)? {
            let ObjectKey::Index(id) = key else { continue };
            let result = inner.each_table(id, &mut |table| {
                // One that is not listed is gone, or newer than the listing.
                match self.0.get(&table.pack) {
                    Some(right) if *right != digest(&table) => Err(Error::new(
                        ErrorKind::Damaged,
                        format!("{key} disagrees with the footer of pack {}", table.pack),
                    )),
                    _ => Ok(()),
                }
            });
            match result {
                Ok(()) => {}
                Err(e) if e.kind() == ErrorKind::NotFound => {}
                Err(e) if matches!(e.kind(), ErrorKind::Damaged | ErrorKind::Unsupported) => {
                    let e = e.context("no data is lost: the object is derived, and may be deleted");
                    report.add(DamageKind::Index(id), &e);
                }
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }
}

/// Whether the pack has the chunk there too: a table may name one twice.
fn has_twin(table: &PackTable, id: ChunkId, l: ChunkLocation) -> bool {
    let twin = table.entries.get(l.number as usize);
    twin.is_some_and(|e| {
        e.id == id && ChunkLocation::new(l.pack, table.kind, l.number as usize, e) == l
    })
}

fn digest(table: &PackTable) -> [u8; 16] {
    let mut bytes = Vec::new();
    table.encode(&mut bytes);
    let mut out = [0u8; 16];
    out.copy_from_slice(&blake3::hash(&bytes).as_bytes()[..16]);
    out
}
