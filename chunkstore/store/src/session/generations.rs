//! Which collection is the newest, and what it condemned.

use std::sync::Arc;

use backstay_format::gc::{Generation, Plan};

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

/// The packs that whoever registers now must take for absent.
pub(crate) fn condemned(repo: &Inner, newest: Newest) -> Result<Arc<PackSet>> {
    if newest.ended {
        return Ok(Arc::default());
    }
    let plan: Plan = record::get(repo, ObjectKey::GcPlan(newest.generation))?;
    if plan.generation != newest.generation {
        let text = format!("plan {} says it is plan {}", newest.generation, plan.generation);
        return Err(Error::new(ErrorKind::Damaged, text));
    }
    Ok(Arc::new(plan.condemned.into_iter().collect()))
}
