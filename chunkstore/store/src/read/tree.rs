use std::sync::Arc;

use backstay_format::ChunkId;
use backstay_format::node::{HEAD_LEN, NODE_LEN_MAX, Node};
use backstay_format::pack::PackKind;
use quick_cache::sync::Cache;

use crate::error::{Error, ErrorKind, Result};
use crate::index::ChunkLocation;
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

    /// Whether the node is at hand.
    pub(crate) fn holds(&self, id: &ChunkId) -> bool {
        self.0.peek(id).is_some()
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

/// Where the storage is far away: brings those of `ids`, all at `level`, that are not at hand, with
/// as few requests as their places allow. Errors are left for whoever needs the node.
pub(crate) fn bring_nodes(repo: &Inner, ids: &[ChunkId], level: u8) {
    if !repo.storage().advice().is_distant() {
        return;
    }
    let missing: Vec<ChunkId> = ids.iter().filter(|id| !repo.nodes().holds(id)).copied().collect();
    if missing.len() < 2 {
        return;
    }
    if let Err(error) = load_many(repo, &missing, level) {
        tracing::debug!(%error, "nodes could not be fetched together");
    }
}

fn load_many(repo: &Inner, ids: &[ChunkId], level: u8) -> Result<()> {
    let mut found = Vec::new();
    repo.index()?.get_many(ids, &mut found)?;
    let len_of = |l: ChunkLocation| l.raw_len as usize;
    let mut nodes: Vec<(ChunkId, Vec<u8>)> = ids
        .iter()
        .zip(&found)
        .filter_map(|(id, l)| Some((*id, l.map(len_of)?)))
        .filter(|(_, len)| (HEAD_LEN..=NODE_LEN_MAX).contains(len))
        .map(|(id, len)| (id, vec![0u8; len]))
        .collect();
    let mut wanted: Vec<Wanted<'_>> =
        nodes.iter_mut().map(|(id, out)| Wanted { id: *id, out }).collect();
    fetch(repo, PackKind::Tree, &mut wanted, &mut ReadScratch::new()?)?;
    for (id, bytes) in nodes {
        let node = Node::decode(&bytes, level);
        let node = node.map_err(|e| Error::format(format!("image-tree node {id}"), e))?;
        repo.nodes().0.insert(id, Arc::new(node));
    }
    Ok(())
}

fn load(repo: &Inner, id: ChunkId, level: u8) -> Result<Node> {
    let mut found = Vec::new();
    let index = repo.index()?;
    index.get_many(&[id], &mut found)?;
    if found[0].is_none() {
        repo.synchronise()?;
        index.get_many(&[id], &mut found)?;
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
