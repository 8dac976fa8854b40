use std::sync::Arc;

use backstay_format::limits::PACK_MAX;
use backstay_format::session::SessionKind;
use backstay_format::{PackId, PointId};

use crate::entropy::array;
use crate::error::{Error, ErrorKind, Result};
use crate::key::ObjectKey;
use crate::pack::read_footer;
use crate::progress::Progress;
use crate::repository::Inner;
use crate::session::{Candidate, Codec, Lease, LeaseRequest, Packer};

use super::CollectReport;
use super::decide::Decision;
use super::mark::Marks;

/// Copies the live chunks of thin packs into new packs, which are durable when this returns. The
/// collector is a writer like any other meanwhile: registered, and fenced if it dies.
///
/// A pack whose chunks cannot be read stays as it is: nothing but a check and a repair may judge
/// it.
pub(super) fn repack(
    repo: &Inner,
    decision: &mut Decision,
    marks: &Marks,
    report: &mut CollectReport,
    progress: &dyn Progress,
) -> Result<()> {
    let repo = &repo.share();
    let request = LeaseRequest {
        id: PointId::from_bytes(array(repo.entropy())),
        kind: SessionKind::Writer,
        holds: Vec::new(),
        purpose: "collection".into(),
    };
    let (lease, condemned) = Lease::register(repo, request)?;
    let packer = Packer::start_vital(repo.clone(), lease.id(), condemned)?;
    let mut codec = Codec::new()?;
    progress.total("repacked bytes", decision.live_bytes);
    for pack in decision.thin.clone() {
        if progress.cancelled() {
            return Err(Error::new(ErrorKind::Aborted, "the collection was stopped"));
        }
        match copy_live(repo, &packer, pack, marks, &mut codec) {
            Ok(bytes) => {
                report.copied_bytes += bytes;
                progress.add("repacked bytes", bytes);
            }
            Err(e) if matches!(e.kind(), ErrorKind::Damaged | ErrorKind::NotFound) => {
                tracing::warn!(%pack, error = %e, "a thin pack cannot be repacked and stays");
                decision.spare(pack);
            }
            Err(e) => return Err(e),
        }
    }
    packer.barrier()?;
    repo.index_exchange().flush();
    lease.check_ours()?;
    repo.index()?.publish()
}

/// Reads a pack whole, decodes its live chunks, and stores each again. Every chunk is verified
/// before any is stored, so that a damaged pack leaves nothing behind.
fn copy_live(
    repo: &Arc<Inner>,
    packer: &Packer,
    pack: PackId,
    marks: &Marks,
    codec: &mut Codec,
) -> Result<u64> {
    let footer = read_footer(repo.storage(), repo.config().id, repo.keys(), pack)?;
    let bytes = repo.storage().get(ObjectKey::Pack(pack), PACK_MAX)?;
    let key = repo.keys().pack_key(pack);
    let kind = footer.header.kind;
    let live = |n: usize| marks.pack(pack).is_some_and(|m| m.has(n as u32));
    let mut chunks = Vec::new();
    let mut copied = 0;
    for (_, e) in footer.entries.iter().enumerate().filter(|(n, _)| live(*n)) {
        let start = e.offset as usize;
        let stored = bytes
            .get(start..start + e.stored_len as usize)
            .ok_or_else(|| Error::new(ErrorKind::Damaged, format!("pack {pack} is cut short")))?;
        let mut raw = vec![0u8; e.raw_len as usize];
        codec.decode(key.as_ref(), kind, e, stored, &mut raw)?;
        if repo.keys().chunk_id(kind, &raw) != e.id {
            let text = format!("chunk {} in pack {pack} is not what its name says", e.id);
            return Err(Error::new(ErrorKind::Damaged, text));
        }
        copied += u64::from(e.stored_len);
        chunks.push((e.id, raw));
    }
    for group in chunks.chunks(GROUP) {
        let mut some: Vec<Candidate<'_>> =
            group.iter().map(|(id, raw)| Candidate { id: *id, raw }).collect();
        packer.store(kind, &mut some, codec)?;
    }
    Ok(copied)
}

/// Chunks sealed at once.
const GROUP: usize = 16;
