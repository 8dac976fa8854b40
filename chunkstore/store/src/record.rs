//! Small sealed objects: written once, read whole (FORMAT.md, Records).

use backstay_format::RepoId;
use backstay_format::envelope::{CHECKSUM_LEN, Envelope, HEAD_LEN};
use backstay_format::record::Record;

use crate::error::{Error, ErrorKind, Result};
use crate::key::ObjectKey;
use crate::keys::Keys;
use crate::repository::Inner;

/// Writes a record; durable when this returns. `Exists` if the name is taken (rule O4).
pub(crate) fn put<R: Record>(repo: &Inner, key: ObjectKey, record: &R) -> Result<()> {
    repo.storage().put(key, &[&encode(repo, key, record)?])
}

/// The bytes of the object `key` that holds `record`. Sealing draws a new nonce each time.
pub(crate) fn encode<R: Record>(repo: &Inner, key: ObjectKey, record: &R) -> Result<Vec<u8>> {
    let invalid = |e| Error::format(format!("the {} cannot be written", R::WHAT), e);
    let payload = record.encode().map_err(invalid)?;
    if payload.len() as u64 > u64::from(R::PAYLOAD_MAX) {
        // Whoever reads would refuse it.
        let text = format!("{key} would be {} bytes, and may be {}", payload.len(), R::PAYLOAD_MAX);
        return Err(Error::new(ErrorKind::Invalid, text));
    }
    seal(repo, key, R::MAGIC, payload).map_err(|e| e.context(format!("cannot write {key}")))
}

/// Seals a payload and frames it.
pub(crate) fn seal(
    repo: &Inner,
    key: ObjectKey,
    magic: [u8; 8],
    payload: Vec<u8>,
) -> Result<Vec<u8>> {
    let (keys, repo_id) = (repo.keys(), repo.config().id);
    let payload = keys.seal_object(magic, repo_id, key.path().as_bytes(), payload, repo.entropy());
    let envelope = Envelope { repo_id, sealed: keys.sealed(), payload };
    envelope.encode(magic).map_err(|e| Error::format(format!("{key} cannot be written"), e))
}

/// Reads a record. `NotFound` if there is none; anything odd about it is `Damaged`.
pub(crate) fn get<R: Record>(repo: &Inner, key: ObjectKey) -> Result<R> {
    let max = u64::from(R::PAYLOAD_MAX) + (HEAD_LEN + CHECKSUM_LEN) as u64;
    let bytes = repo.storage().get(key, max)?;
    decode(repo, key, &bytes)
}

/// Takes a record's object apart.
pub(crate) fn decode<R: Record>(repo: &Inner, key: ObjectKey, bytes: &[u8]) -> Result<R> {
    let payload = open(repo, key, R::MAGIC, R::PAYLOAD_MAX, bytes)?;
    R::decode(&payload).map_err(|e| Error::format(format!("{key} is damaged"), e))
}

/// Opens what [`seal`] made.
pub(crate) fn open(
    repo: &Inner,
    key: ObjectKey,
    magic: [u8; 8],
    payload_max: u32,
    bytes: &[u8],
) -> Result<Vec<u8>> {
    open_with(repo.keys(), repo.config().id, key, magic, payload_max, bytes)
}

/// The same for who has no more of the repository than its keys.
pub(crate) fn open_with(
    keys: &Keys,
    repo_id: RepoId,
    key: ObjectKey,
    magic: [u8; 8],
    payload_max: u32,
    bytes: &[u8],
) -> Result<Vec<u8>> {
    let damaged = |e| Error::format(format!("{key} is damaged"), e);
    let envelope = Envelope::decode(bytes, magic, payload_max).map_err(damaged)?;
    if envelope.repo_id != repo_id || envelope.sealed != keys.sealed() {
        let text = format!("{key} belongs to another repository");
        return Err(Error::new(ErrorKind::Damaged, text));
    }
    keys.open_object(magic, repo_id, key.path().as_bytes(), &envelope.payload).ok_or_else(|| {
        let text = format!("{key} was not written with this repository's key");
        Error::new(ErrorKind::Damaged, text)
    })
}
