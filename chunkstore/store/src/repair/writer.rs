use std::sync::Arc;

use backstay_format::pack::PackKind;
use backstay_format::session::SessionKind;
use backstay_format::{ChunkId, PointId};

use crate::entropy::array;
use crate::error::Result;
use crate::repository::Inner;
use crate::session::{Candidate, Codec, Lease, LeaseRequest, Packer};

/// Chunks sealed at once.
const GROUP: usize = 16;

/// Stores healed chunks in new packs, as a registered writer: no collection takes them before the
/// points that need them are seen to have them. Without commit there is no new point; the packs
/// are needed by those there are.
pub(super) struct Writer {
    repo: Arc<Inner>,
    lease: Arc<Lease>,
    packer: Arc<Packer>,
    codec: Codec,
    data: Vec<(ChunkId, Vec<u8>)>,
    tree: Vec<(ChunkId, Vec<u8>)>,
}

impl Writer {
    pub(super) fn begin(repo: &Inner) -> Result<Self> {
        let repo = repo.share();
        let request = LeaseRequest {
            id: PointId::from_bytes(array(repo.entropy())),
            kind: SessionKind::Writer,
            holds: Vec::new(),
            purpose: "repair".into(),
        };
        let (lease, condemned) = Lease::register(&repo, request)?;
        let packer = Packer::start_vital(repo.clone(), lease.id(), condemned)?;
        let codec = Codec::new()?;
        Ok(Self { repo, lease, packer, codec, data: Vec::new(), tree: Vec::new() })
    }

    pub(super) fn store(&mut self, kind: PackKind, id: ChunkId, bytes: Vec<u8>) -> Result<()> {
        let waiting = match kind {
            PackKind::Data => &mut self.data,
            PackKind::Tree => &mut self.tree,
        };
        waiting.push((id, bytes));
        if waiting.len() >= GROUP { self.flush(kind) } else { Ok(()) }
    }

    fn flush(&mut self, kind: PackKind) -> Result<()> {
        let waiting = match kind {
            PackKind::Data => std::mem::take(&mut self.data),
            PackKind::Tree => std::mem::take(&mut self.tree),
        };
        let mut some: Vec<Candidate<'_>> =
            waiting.iter().map(|(id, raw)| Candidate { id: *id, raw }).collect();
        self.packer.store(kind, &mut some, &mut self.codec).map(drop)
    }

    /// Makes everything durable; returns the session, which the new packs name, and their bytes.
    pub(super) fn finish(mut self) -> Result<(PointId, u64)> {
        self.flush(PackKind::Data)?;
        self.flush(PackKind::Tree)?;
        let stored = self.packer.barrier()?;
        self.repo.index_exchange().flush();
        self.lease.check_ours()?;
        self.repo.index()?.publish()?;
        Ok((self.lease.id(), stored))
    }
}
