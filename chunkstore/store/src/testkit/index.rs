use backstay_format::ChunkId;

use crate::error::Result;
use crate::index::PackSet;
use crate::repository::Repository;

/// Looks chunks up in a repository's index as it is, without waiting for packs to become known.
/// Tells how many are there.
pub fn lookup(repo: &Repository, ids: &[ChunkId]) -> Result<usize> {
    let mut found = Vec::new();
    repo.inner().index()?.get_many(ids, &PackSet::new(), &mut found)?;
    Ok(found.iter().flatten().count())
}
