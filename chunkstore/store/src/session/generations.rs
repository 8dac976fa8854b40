//! Which collection is the newest, and what it condemned.

use std::sync::Arc;

use backstay_format::gc::{End, Generation, Plan};

use crate::error::{Error, ErrorKind, Result};
use crate::index::PackSet;
use crate::key::{Folder, ObjectKey};
use crate::record;
use crate::repository::Inner;

/// The newest collection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Newest {
    /// Its number; zero when there was none.
    pub(crate) generation: Generation,
    /// Whether it is over.
    pub(crate) ended: bool,
}

/// Reads which collection is the newest.
pub(crate) fn newest(repo: &Inner) -> Result<Newest> {
    let keys = repo.storage().list(Folder::Gc)?;
    let plans = keys.iter().filter_map(|k| match k {
        ObjectKey::GcPlan(n) | ObjectKey::GcVerdict(n) | ObjectKey::GcEnd(n) => Some(*n),
        _ => None,
    });
    let generation = plans.max().unwrap_or_default();
    let ended = generation == Generation::default() || keys.contains(&ObjectKey::GcEnd(generation));
    Ok(Newest { generation, ended })
}

/// The packs that whoever registers now must take for absent: what the newest plan condemned, or,
/// when that collection is over, what it could not delete yet.
pub(crate) fn condemned(repo: &Inner, newest: Newest) -> Result<Arc<PackSet>> {
    let generation = newest.generation;
    let (packs, named) = if generation == Generation::default() {
        return Ok(Arc::default());
    } else if newest.ended {
        let end: End = record::get(repo, ObjectKey::GcEnd(generation))?;
        (end.locked, end.generation)
    } else {
        let plan: Plan = record::get(repo, ObjectKey::GcPlan(generation))?;
        (plan.condemned, plan.generation)
    };
    if named != generation {
        let text = format!("collection {generation} says it is collection {named}");
        return Err(Error::new(ErrorKind::Damaged, text));
    }
    Ok(Arc::new(packs.into_iter().collect()))
}
