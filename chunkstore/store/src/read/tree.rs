use std::sync::Arc;

use backstay_format::ChunkId;
use backstay_format::node::{HEAD_LEN, NODE_LEN_MAX, Node};
use backstay_format::pack::PackKind;
use quick_cache::sync::Cache;

use crate::error::{Error, ErrorKind, Result};
use crate::index::{ChunkLocation, PackSet};
use crate::repository::Inner;

use super::fetch::{ReadScratch, Wanted, fetch, locate};

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

/// The same, past the cache.
pub(crate) fn node_afresh(repo: &Inner, id: ChunkId, level: u8) -> Result<Arc<Node>> {
    load(repo, id, level).map(Arc::new)
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
    for (id, node) in fetch_nodes(repo, ids, level)? {
        repo.nodes().0.insert(id, Arc::new(node));
    }
    Ok(())
}

/// The nodes `ids`, which must stand at `level`, in the order asked and past the cache, with as few
/// requests as their places allow. Any that cannot be had is an error.
pub(crate) fn nodes_afresh(repo: &Inner, ids: &[ChunkId], level: u8) -> Result<Vec<Node>> {
    let nodes = fetch_nodes(repo, ids, level)?;
    if nodes.len() != ids.len() {
        return Err(Error::new(ErrorKind::Damaged, "a node is missing, or has no possible length"));
    }
    Ok(nodes.into_iter().map(|(_, node)| node).collect())
}

/// Those of the nodes that the index knows with a possible length, in the order asked.
fn fetch_nodes(repo: &Inner, ids: &[ChunkId], level: u8) -> Result<Vec<(ChunkId, Node)>> {
    let mut found = Vec::new();
    repo.index()?.get_many(ids, &PackSet::new(), &mut found)?;
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
    let decode = |(id, bytes): (ChunkId, Vec<u8>)| {
        let node = Node::decode(&bytes, level);
        Ok((id, node.map_err(|e| Error::format(format!("image-tree node {id}"), e))?))
    };
    nodes.into_iter().map(decode).collect()
}

fn load(repo: &Inner, id: ChunkId, level: u8) -> Result<Node> {
    let bytes = read(repo, id)?;
    Node::decode(&bytes, level).map_err(|e| Error::format(format!("image-tree node {id}"), e))
}

fn read(repo: &Inner, id: ChunkId) -> Result<Vec<u8>> {
    let mut found = Vec::new();
    locate(repo, &[id], &mut found)
        .map_err(|e| e.context(format!("image-tree node {id} cannot be found")))?;
    let mut tried = Vec::new();
    let mut first_error = None;
    // Only the index tells a node's length, and where it errs about one copy another may serve.
    let copies = repo.index()?.copies(id)?;
    for len in found.iter().flatten().chain(&copies).map(|l| l.raw_len as usize) {
        if !(HEAD_LEN..=NODE_LEN_MAX).contains(&len) || tried.contains(&len) {
            continue;
        }
        tried.push(len);
        let mut bytes = vec![0u8; len];
        let mut scratch = ReadScratch::new()?;
        match fetch(repo, PackKind::Tree, &mut [Wanted { id, out: &mut bytes }], &mut scratch) {
            Ok(()) => return Ok(bytes),
            Err(e) if e.kind() == ErrorKind::Damaged => first_error = first_error.or(Some(e)),
            Err(e) => return Err(e),
        }
    }
    let no_length = || {
        let text = format!("image-tree node {id} has no possible length");
        Error::new(ErrorKind::Damaged, text)
    };
    Err(first_error.unwrap_or_else(no_length))
}
