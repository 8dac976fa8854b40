//! Parity objects: Reed-Solomon over a pack's bytes (FORMAT.md, Parity).
//!
//! Written right after its pack by the thread that wrote the pack. A pack is durable without it:
//! where writing it fails the backup goes on, and `backstay repo parity` makes up for it.

mod code;

use std::collections::BTreeSet;

use backstay_format::PackId;
use backstay_format::limits::{PACK_MAX, PARITY_MAX};

use crate::error::{ErrorKind, Result};
use crate::key::{Folder, ObjectKey};
use crate::pack::verify_pack_bytes;
use crate::progress::Progress;
use crate::quarantine::lost;
use crate::repository::Inner;
use crate::verify::stopped;

pub(crate) use code::{check, encode, rebuild};

/// What adding parity did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ParityReport {
    /// Packs there are.
    pub packs: u64,
    /// Packs that had none and have it now.
    pub added: u64,
    /// Bytes written for them.
    pub stored_bytes: u64,
    /// Packs that are damaged, or vanished meanwhile, and got none.
    pub left_out: u64,
}

/// The packs that have parity.
pub(crate) fn present(repo: &Inner) -> Result<BTreeSet<PackId>> {
    let pack = |k: ObjectKey| if let ObjectKey::Parity(id) = k { Some(id) } else { None };
    Ok(repo.storage().list(Folder::Parity)?.into_iter().filter_map(pack).collect())
}

/// Writes the parity of a pack, given its bytes; returns how many bytes it took. `Exists` if there
/// is one.
pub(crate) fn write(repo: &Inner, pack: PackId, parts: &[&[u8]]) -> Result<u64> {
    let object = encode(repo.config().id, pack, parts)?;
    repo.storage().put(ObjectKey::Parity(pack), &[&object])?;
    Ok(object.len() as u64)
}

/// Rebuilds a damaged or lost pack from what is left of it and its parity; the bytes are proven to
/// be those that were written. `Damaged` if too much is gone; `NotFound` if there is no parity.
pub(crate) fn rebuild_pack(repo: &Inner, pack: PackId) -> Result<Vec<u8>> {
    let object = repo.storage().get(ObjectKey::Parity(pack), PARITY_MAX)?;
    let left = match repo.storage().get(ObjectKey::Pack(pack), PACK_MAX) {
        Ok(bytes) => bytes,
        Err(e) if lost(&e) || e.is_media_error() => read_what_can_be(repo, pack),
        Err(e) => return Err(e),
    };
    let bytes = rebuild(repo.config().id, pack, &object, &left)?;
    verify_pack_bytes(&bytes, repo.config().id, pack)?;
    Ok(bytes)
}

/// Bytes read at once from a pack with bad sectors.
const PIECE: usize = 4096;

/// What can be read of a pack that cannot be read whole, zeros elsewhere: each shard has a hash.
fn read_what_can_be(repo: &Inner, pack: PackId) -> Vec<u8> {
    let key = ObjectKey::Pack(pack);
    let len = repo.storage().size(key).unwrap_or(0).min(PACK_MAX);
    let mut bytes = vec![0u8; usize::try_from(len).unwrap_or(0)];
    for (n, piece) in bytes.chunks_mut(PIECE).enumerate() {
        if repo.storage().read_at(key, (n * PIECE) as u64, piece).is_err() {
            piece.fill(0);
        }
    }
    bytes
}

/// Gives parity to the packs that have none.
pub(crate) fn add(repo: &Inner, progress: &dyn Progress) -> Result<ParityReport> {
    let have = present(repo)?;
    let mut report = ParityReport::default();
    let packs = repo.storage().list(Folder::Packs)?;
    progress.total("packs", packs.len() as u64);
    for key in packs {
        stopped(progress)?;
        let ObjectKey::Pack(pack) = key else { continue };
        progress.add("packs", 1);
        report.packs += 1;
        if have.contains(&pack) {
            continue;
        }
        match add_one(repo, pack) {
            Ok(bytes) => {
                report.added += 1;
                report.stored_bytes += bytes;
            }
            // Its writer was quicker.
            Err(e) if e.kind() == ErrorKind::Exists => {}
            Err(e) if lost(&e) || e.is_media_error() => {
                tracing::warn!(%pack, error = %e, "a pack gets no parity; a repair comes first");
                report.left_out += 1;
            }
            Err(e) => return Err(e),
        }
    }
    Ok(report)
}

fn add_one(repo: &Inner, pack: PackId) -> Result<u64> {
    let bytes = repo.storage().get(ObjectKey::Pack(pack), PACK_MAX)?;
    // Parity of damaged bytes would make the damage last.
    verify_pack_bytes(&bytes, repo.config().id, pack)?;
    let len = write(repo, pack, &[&bytes])?;
    // A collection may have taken the pack meanwhile, and looked for its parity too early.
    if let Err(e) = repo.storage().size(ObjectKey::Pack(pack)) {
        if e.kind() == ErrorKind::NotFound {
            let _ = repo.storage().delete(ObjectKey::Parity(pack));
        }
        return Err(e);
    }
    Ok(len)
}

/// Makes a damaged parity object anew, of a pack that is whole: the one object that is ever
/// replaced (FORMAT.md, rule O4), since all it holds follows from the pack.
pub(crate) fn renew(repo: &Inner, pack: PackId) -> Result<u64> {
    let bytes = repo.storage().get(ObjectKey::Pack(pack), PACK_MAX)?;
    verify_pack_bytes(&bytes, repo.config().id, pack)?;
    let object = encode(repo.config().id, pack, &[&bytes])?;
    match repo.storage().delete(ObjectKey::Parity(pack)) {
        Err(e) if e.kind() != ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    repo.storage().put(ObjectKey::Parity(pack), &[&object])?;
    Ok(object.len() as u64)
}
