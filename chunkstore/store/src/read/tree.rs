use std::sync::Arc;

use backstay_format::ChunkId;
use backstay_format::node::{HEAD_LEN, NODE_LEN_MAX, Node};
use backstay_format::pack::PackKind;
use quick_cache::sync::Cache;

use crate::error::{Error, ErrorKind, Result};
use crate::index::PackSet;
use crate::repository::Inner;

use super::fetch::{ReadScratch, Wanted, fetch};

/// Nodes kept decoded: 16,384 of about 2 KiB cover 64 GiB of disk at the default chunk size.
const NODES_MAX: usize = 16 * 1024;

/// Decoded image-tree nodes, shared by all readers of a repository.
#[derive(Debug)]
pub(crate) struct NodeCache(Cache<ChunkId, Arc<Node>>);

impl NodeCache {
    pub(crate) fn new() -> Self {
        Self(Cache::new(NODES_MAX))
    }
}

/// The node `id`, which must stand at `level`.
pub(crate) fn node(repo: &Inner, id: ChunkId, level: u8) -> Result<Arc<Node>> {
    let node = repo.nodes().0.get_or_insert_with(&id, || load(repo, id, level).map(Arc::new))?;
    if node.level() != level {
        return Err(Error::new(
            ErrorKind::Damaged,
            format!("image-tree node {id} stands at level {level} and is of {}", node.level()),
        ));
    }
    Ok(node)
}

fn load(repo: &Inner, id: ChunkId, level: u8) -> Result<Node> {
    let mut found = Vec::new();
    let index = repo.index()?;
    index.get_many(&[id], &PackSet::new(), &mut found)?;
    if found[0].is_none() {
        repo.synchronise()?;
        index.get_many(&[id], &PackSet::new(), &mut found)?;
        if found[0].is_none() {
            found[0] = Some(repo.quarantine().last_resort(repo, id)?);
        }
    }
    let len = found[0].map_or(0, |l| l.raw_len as usize);
    if !(HEAD_LEN..=NODE_LEN_MAX).contains(&len) {
        return Err(Error::new(
            ErrorKind::Damaged,
            format!("image-tree node {id} is in no pack of this repository"),
        ));
    }
    let mut bytes = vec![0u8; len];
    let mut scratch = ReadScratch::new()?;
    fetch(repo, PackKind::Tree, &mut [Wanted { id, out: &mut bytes }], &mut scratch)?;
    Node::decode(&bytes, level).map_err(|e| Error::format(format!("image-tree node {id}"), e))
}
