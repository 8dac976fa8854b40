//! One pack, read whole and taken apart.

use std::collections::HashSet;

use backstay_format::limits::{PACK_MAX, PARITY_MAX};
use backstay_format::pack::{PackEntry, PackKind};
use backstay_format::verified::Level;
use backstay_format::{ChunkId, PackId};

use crate::error::{Error, ErrorKind, Result};
use crate::key::ObjectKey;
use crate::pack::{footer_of, read_footer, verify_pack_bytes};
use crate::parity;
use crate::quarantine::lost;
use crate::repository::Inner;
use crate::seal::Decoder;

/// What was seen of a pack.
#[derive(Debug, Default)]
pub(crate) struct Checked {
    pub(crate) verdict: Verdict,
    pub(crate) read_bytes: u64,
    /// Chunks decoded.
    pub(crate) chunks: u64,
    /// What is wrong with its parity, where that was looked at.
    pub(crate) parity: Option<Error>,
}

/// What became of a pack.
#[derive(Debug, Default)]
pub(crate) enum Verdict {
    /// It is not there (any more).
    #[default]
    Gone,
    /// Every byte is as it was written.
    Whole,
    /// It was written by a newer program.
    Unsupported {
        /// What is not known here.
        reason: String,
    },
    /// Some of it is bad.
    Bad {
        /// The bad chunks with the reason of each; nothing when the pack does not even say what it
        /// holds.
        chunks: Option<Vec<(ChunkId, String)>>,
        /// Chunks that can be read only because an index object says where they are: they are to
        /// be stored anew, and count as absent until they are.
        at_risk: Vec<ChunkId>,
        /// How it was noticed.
        reason: String,
    },
}

/// [`check_pack`], and the pack's parity too if `parity` says that it has one.
pub(crate) fn check_with_parity(
    inner: &Inner,
    pack: PackId,
    level: Level,
    parity: bool,
    decoder: &mut Decoder,
) -> Result<Checked> {
    let (mut checked, bytes) = read_and_check(inner, pack, level, decoder)?;
    if parity && !matches!(checked.verdict, Verdict::Gone) {
        // Of a pack that is whole it must also be the right parity.
        let bytes = bytes.filter(|_| matches!(checked.verdict, Verdict::Whole));
        checked.parity = check_parity(inner, pack, bytes.as_deref())?;
    }
    Ok(checked)
}

/// What is wrong with a pack's parity.
fn check_parity(inner: &Inner, pack: PackId, bytes: Option<&[u8]>) -> Result<Option<Error>> {
    let object = inner.storage().get(ObjectKey::Parity(pack), PARITY_MAX);
    match object.and_then(|o| parity::check(&o, inner.config().id, pack, bytes)) {
        Ok(()) => Ok(None),
        // A collection deleted it meanwhile.
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
        Err(e) if lost(&e) || e.is_media_error() => Ok(Some(e)),
        Err(e) => Err(e),
    }
}

/// Reads a pack and compares it with its checksum. With [`Level::Full`], or where the checksum does
/// not match, every chunk is authenticated, decoded and compared with its id.
///
/// An error means that the storage cannot be reached; a bad sector is a verdict.
pub(crate) fn check_pack(
    inner: &Inner,
    pack: PackId,
    level: Level,
    decoder: &mut Decoder,
) -> Result<Checked> {
    read_and_check(inner, pack, level, decoder).map(|(checked, _)| checked)
}

/// The verdict, and the pack's bytes where it could be read whole.
fn read_and_check(
    inner: &Inner,
    pack: PackId,
    level: Level,
    decoder: &mut Decoder,
) -> Result<(Checked, Option<Vec<u8>>)> {
    let bytes = match inner.storage().get(ObjectKey::Pack(pack), PACK_MAX) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok((Checked::default(), None)),
        Err(e) if lost(&e) => return Ok((unreadable(0, &e), None)),
        Err(e) if e.is_media_error() => {
            return check_in_pieces(inner, pack, decoder).map(|checked| (checked, None));
        }
        Err(e) => return Err(e),
    };
    let checked = check_bytes(inner, pack, &bytes, level, decoder)?;
    Ok((checked, Some(bytes)))
}

fn check_bytes(
    inner: &Inner,
    pack: PackId,
    bytes: &[u8],
    level: Level,
    decoder: &mut Decoder,
) -> Result<Checked> {
    let read_bytes = bytes.len() as u64;
    let sum = verify_pack_bytes(bytes, inner.config().id, pack);
    let footer = match footer_of(bytes, inner.config().id, inner.keys(), pack) {
        Ok(footer) => footer,
        Err(e) if e.kind() == ErrorKind::Unsupported => {
            let verdict = Verdict::Unsupported { reason: e.whole_story() };
            return Ok(Checked { verdict, read_bytes, ..Checked::default() });
        }
        Err(e) => {
            let stored = |e: &PackEntry, out: &mut Vec<u8>| take_from(bytes, e, out);
            return check_by_table(inner, pack, &e, read_bytes, &stored, decoder);
        }
    };
    if sum.is_ok() && level == Level::Checksums {
        return Ok(Checked { verdict: Verdict::Whole, read_bytes, ..Checked::default() });
    }
    let stored = |e: &PackEntry, out: &mut Vec<u8>| take_from(bytes, e, out);
    let kind = footer.header.kind;
    let mut found = bad_chunks(inner, pack, kind, &footer.entries, &stored, decoder)?;
    let chunks = footer.entries.len() as u64;
    let reason = match (&sum, found.first()) {
        (Ok(()), None) => {
            return Ok(Checked { verdict: Verdict::Whole, read_bytes, chunks, parity: None });
        }
        (Err(e), None) => {
            // Every chunk decodes, and yet a byte is not as written: none of them is relied on.
            let reason = e.whole_story();
            found = footer.entries.iter().map(|c| (c.id, reason.clone())).collect();
            reason
        }
        (_, Some((_, first))) => first.clone(),
    };
    let verdict = Verdict::Bad { chunks: Some(found), at_risk: Vec::new(), reason };
    Ok(Checked { verdict, read_bytes, chunks, parity: None })
}

/// A pack that does not say any more what it holds, for the reason `why`: an index object may.
fn check_by_table(
    inner: &Inner,
    pack: PackId,
    why: &Error,
    read_bytes: u64,
    stored: Stored<'_>,
    decoder: &mut Decoder,
) -> Result<Checked> {
    let Some(table) = inner.table_of(pack)? else { return Ok(unreadable(read_bytes, why)) };
    let found = bad_chunks(inner, pack, table.kind, &table.entries, stored, decoder)?;
    let bad: HashSet<ChunkId> = found.iter().map(|(id, _)| *id).collect();
    let at_risk = table.entries.iter().map(|e| e.id).filter(|id| !bad.contains(id)).collect();
    let reason = format!("{}; an index object still says what it holds", why.whole_story());
    let verdict = Verdict::Bad { chunks: Some(found), at_risk, reason };
    Ok(Checked { verdict, read_bytes, chunks: table.entries.len() as u64, parity: None })
}

fn unreadable(read_bytes: u64, e: &Error) -> Checked {
    let verdict = Verdict::Bad { chunks: None, at_risk: Vec::new(), reason: e.whole_story() };
    Checked { verdict, read_bytes, ..Checked::default() }
}

fn take_from(bytes: &[u8], e: &PackEntry, out: &mut Vec<u8>) -> Result<()> {
    let start = e.offset as usize;
    let stored = bytes.get(start..start + e.stored_len as usize);
    let cut = || Error::new(ErrorKind::Damaged, "the pack is cut short");
    out.extend_from_slice(stored.ok_or_else(cut)?);
    Ok(())
}

/// A pack on a medium that cannot read some of it: chunk by chunk, so that the rest is not lost
/// with it.
fn check_in_pieces(inner: &Inner, pack: PackId, decoder: &mut Decoder) -> Result<Checked> {
    let stored = |e: &PackEntry, out: &mut Vec<u8>| {
        out.resize(e.stored_len as usize, 0);
        inner.storage().read_at(ObjectKey::Pack(pack), u64::from(e.offset), out)
    };
    let footer = match read_footer(inner.storage(), inner.config().id, inner.keys(), pack) {
        Ok(footer) => footer,
        Err(e) if lost(&e) || e.is_media_error() => {
            return check_by_table(inner, pack, &e, 0, &stored, decoder);
        }
        Err(e) => return Err(e),
    };
    let kind = footer.header.kind;
    let found = bad_chunks(inner, pack, kind, &footer.entries, &stored, decoder)?;
    let read_bytes = footer.len;
    let chunks = footer.entries.len() as u64;
    let reason = found.first().map_or("a part of it cannot be read", |(_, r)| r).to_owned();
    Ok(Checked {
        verdict: Verdict::Bad { chunks: Some(found), at_risk: Vec::new(), reason },
        read_bytes,
        chunks,
        parity: None,
    })
}

/// Gives the stored bytes of an entry.
type Stored<'a> = &'a dyn Fn(&PackEntry, &mut Vec<u8>) -> Result<()>;

fn bad_chunks(
    inner: &Inner,
    pack: PackId,
    kind: PackKind,
    entries: &[PackEntry],
    stored: Stored<'_>,
    decoder: &mut Decoder,
) -> Result<Vec<(ChunkId, String)>> {
    let key = inner.keys().pack_key(pack);
    let (mut bytes, mut raw) = (Vec::new(), Vec::new());
    let mut found = Vec::new();
    for e in entries {
        bytes.clear();
        raw.resize(e.raw_len as usize, 0);
        let decoded = stored(e, &mut bytes)
            .and_then(|()| decoder.decode(key.as_ref(), kind, e, &bytes, &mut raw));
        let reason = match decoded {
            Ok(()) if inner.keys().chunk_id(kind, &raw) == e.id => continue,
            Ok(()) => "the decoded bytes are not the chunk's".to_owned(),
            Err(e) if lost(&e) || e.is_media_error() => e.whole_story(),
            Err(e) => return Err(e),
        };
        found.push((e.id, reason));
    }
    Ok(found)
}
