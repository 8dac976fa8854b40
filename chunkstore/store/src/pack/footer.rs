use aws_lc_rs::aead::{Aad, Nonce};
use backstay_format::index_object::PackTable;
use backstay_format::limits::PACK_MAX;
use backstay_format::pack::{
    PackEntry, PackHeader, PackTrailer, TABLE_NONCE_OFFSET, chunk_nonce, decode_table, header,
    trailer,
};
use backstay_format::{FormatError, PackId, RepoId};

use crate::error::{Error, ErrorKind, Result};
use crate::key::ObjectKey;
use crate::keys::Keys;
use crate::storage::{Keep, RangeRead, Storage};

/// What a pack says of itself.
#[derive(Debug)]
pub(crate) struct PackFooter {
    pub(crate) header: PackHeader,
    pub(crate) entries: Vec<PackEntry>,
    pub(crate) len: u64,
    /// BLAKE3 of the table as stored.
    pub(crate) table_hash: [u8; 32],
}

impl PackFooter {
    /// The same as an index object has it.
    pub(crate) fn into_table(self) -> PackTable {
        PackTable {
            pack: self.header.pack_id,
            session: self.header.session,
            kind: self.header.kind,
            len: self.len,
            table_hash: self.table_hash,
            entries: self.entries,
        }
    }
}

/// Most bytes read in one go for a footer: the trailer, and the table of a usual pack with it.
const FOOTER_READ: u64 = 64 * 1024;

/// Reads header, table and trailer of a pack, and no chunk (FORMAT.md, rule O5).
pub(crate) fn read_footer(
    storage: &dyn Storage,
    repo: RepoId,
    keys: &Keys,
    pack: PackId,
) -> Result<PackFooter> {
    let key = ObjectKey::Pack(pack);
    let len = storage.size(key)?;
    let read = |parts: &mut [Wanted<'_>]| {
        let part = |(offset, buf)| RangeRead { key, offset, buf, keep: Keep::No };
        let mut parts: Vec<_> = parts.iter_mut().map(|(at, buf)| part((*at, &mut **buf))).collect();
        storage.read_many(&mut parts)
    };
    footer_with(len, &read, repo, keys, pack)
}

/// The same of a pack whose bytes are at hand.
pub(crate) fn footer_of(
    bytes: &[u8],
    repo: RepoId,
    keys: &Keys,
    pack: PackId,
) -> Result<PackFooter> {
    let read = |parts: &mut [Wanted<'_>]| {
        for (offset, buf) in parts {
            let start = usize::try_from(*offset).unwrap_or(usize::MAX);
            let part = start.checked_add(buf.len()).and_then(|end| bytes.get(start..end));
            let cut = || Error::new(ErrorKind::Damaged, format!("pack {pack} is cut short"));
            buf.copy_from_slice(part.ok_or_else(cut)?);
        }
        Ok(())
    };
    footer_with(bytes.len() as u64, &read, repo, keys, pack)
}

/// An offset in a pack, and a buffer to fill from there.
type Wanted<'a> = (u64, &'a mut [u8]);

/// Fills buffers from a pack, all in one request where the storage can.
type ReadParts<'a> = &'a dyn Fn(&mut [Wanted<'_>]) -> Result<()>;

fn footer_with(
    len: u64,
    read: ReadParts<'_>,
    repo: RepoId,
    keys: &Keys,
    pack: PackId,
) -> Result<PackFooter> {
    let damaged = |e: FormatError| Error::format(format!("pack {pack} is damaged"), e);
    if len < (header::LEN + trailer::LEN) as u64 || len > PACK_MAX {
        return Err(damaged(FormatError::damaged("length", format!("{len} bytes is no pack"))));
    }
    let mut head = [0u8; header::LEN];
    let tail_len = FOOTER_READ.min(len);
    let mut tail = vec![0u8; usize::try_from(tail_len).unwrap_or(0)];
    read(&mut [(0, &mut head), (len - tail_len, &mut tail)])?;
    let (rest, end) = tail.split_at(tail.len() - trailer::LEN);
    let t = PackTrailer::decode(end, len).map_err(damaged)?;
    // The trailer vouches for the version, so whatever is odd about the header is damage.
    let header = check_header(&head, repo, pack, keys)
        .map_err(|e| damaged(FormatError::damaged("header", e.to_string())))?;
    check_trailer(&t, &header).map_err(damaged)?;
    let table_len = t.table_len as usize;
    let mut table = match rest.len().checked_sub(table_len) {
        Some(start) => rest[start..].to_vec(),
        None => {
            let mut table = vec![0u8; table_len];
            read(&mut [(t.table_offset, &mut table)])?;
            table
        }
    };
    if blake3::hash(&table).as_bytes() != &t.table_hash {
        return Err(damaged(FormatError::damaged("table_hash", "the checksum does not match")));
    }
    let entries = open_table(&mut table, &head, &t, keys, pack).map_err(damaged)?;
    Ok(PackFooter { header, entries, len, table_hash: t.table_hash })
}

fn check_header(
    head: &[u8],
    repo: RepoId,
    pack: PackId,
    keys: &Keys,
) -> Result<PackHeader, FormatError> {
    let header = PackHeader::decode(head)?;
    if header.pack_id != pack {
        return Err(FormatError::damaged("pack_id", format!("it is pack {}", header.pack_id)));
    }
    if header.repo_id != repo {
        return Err(FormatError::damaged(
            "repo_id",
            format!("it belongs to repository {}", header.repo_id),
        ));
    }
    if header.sealed != keys.sealed() {
        return Err(FormatError::damaged("flags", "sealed and unsealed packs do not mix"));
    }
    Ok(header)
}

fn check_trailer(t: &PackTrailer, header: &PackHeader) -> Result<(), FormatError> {
    if t.pack_id != header.pack_id || t.sealed != header.sealed {
        return Err(FormatError::damaged("trailer", "header and trailer are of two packs"));
    }
    Ok(())
}

fn open_table(
    table: &mut [u8],
    head: &[u8; header::LEN],
    t: &PackTrailer,
    keys: &Keys,
    pack: PackId,
) -> Result<Vec<PackEntry>, FormatError> {
    match keys.pack_key(pack) {
        None => decode_table(table, false, t),
        Some(key) => {
            let nonce = Nonce::assume_unique_for_key(chunk_nonce(TABLE_NONCE_OFFSET));
            let open = key.open_in_place(nonce, Aad::from(*head), table).map_err(|_| {
                FormatError::damaged("table", "it was not written with this repository's key")
            })?;
            decode_table(open, true, t)
        }
    }
}

/// Verifies a whole pack without a key: header, trailer, and BLAKE3 over every byte.
pub(crate) fn verify_pack_bytes(bytes: &[u8], repo: RepoId, pack: PackId) -> Result<()> {
    check_pack_bytes(bytes, repo, pack)
        .map_err(|e| Error::because(ErrorKind::Damaged, format!("pack {pack} is damaged"), e))
}

fn check_pack_bytes(bytes: &[u8], repo: RepoId, pack: PackId) -> Result<(), FormatError> {
    let header = PackHeader::decode(bytes)?;
    if header.pack_id != pack || header.repo_id != repo {
        return Err(FormatError::damaged("pack_id", "it is another pack"));
    }
    let end = bytes
        .len()
        .checked_sub(trailer::LEN)
        .ok_or_else(|| FormatError::damaged("length", "the pack is cut short"))?;
    let t = PackTrailer::decode(&bytes[end..], bytes.len() as u64)?;
    check_trailer(&t, &header)?;
    if blake3::hash(&bytes[..end]).as_bytes() != &t.content_hash {
        return Err(FormatError::damaged("content_hash", "the checksum does not match"));
    }
    Ok(())
}
