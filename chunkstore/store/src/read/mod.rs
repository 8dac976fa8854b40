//! Reading: chunks out of packs, and disks out of chunks.

mod cache;
mod fetch;
mod image;
mod tree;

pub use fetch::ReadScratch;
pub use image::{ImageReader, InPlace};

pub(crate) use cache::ChunkCache;
pub(crate) use tree::{NodeCache, node, node_afresh, nodes_afresh};
