use std::sync::Arc;

use backstay_format::envelope::{CHECKSUM_LEN, HEAD_LEN};
use backstay_format::limits::INDEX_PAYLOAD_MAX;
use backstay_format::record::Record;
use backstay_format::{IndexId, RepoId, magic};

use crate::error::{Error, ErrorKind, Result};
use crate::key::ObjectKey;
use crate::keys::Keys;
use crate::record;
use crate::storage::Storage;

/// What reading index objects, footers and records of damage needs of a repository.
#[derive(Clone, Debug)]
pub(crate) struct Source {
    pub(crate) storage: Arc<dyn Storage>,
    pub(crate) keys: Arc<Keys>,
    pub(crate) repo_id: RepoId,
}

/// What the envelope and the sealing add to a payload.
const OVERHEAD: u64 = (HEAD_LEN + CHECKSUM_LEN + 64) as u64;

impl Source {
    /// The payload of an index object of at most `len` bytes. `Damaged`: it is damaged, or was not
    /// written with this repository's key.
    pub(super) fn index_object(&self, id: IndexId, len: u64) -> Result<Vec<u8>> {
        let key = ObjectKey::Index(id);
        if len > u64::from(INDEX_PAYLOAD_MAX) + OVERHEAD {
            let text = format!("{key} is {len} bytes long, which is too much");
            return Err(Error::new(ErrorKind::Damaged, text));
        }
        let bytes = self.storage.get(key, len)?;
        record::open_with(&self.keys, self.repo_id, key, magic::INDEX, INDEX_PAYLOAD_MAX, &bytes)
    }

    /// A record. `NotFound` if there is none; anything odd about it is `Damaged`.
    pub(crate) fn record<R: Record>(&self, key: ObjectKey) -> Result<R> {
        let max = u64::from(R::PAYLOAD_MAX) + (HEAD_LEN + CHECKSUM_LEN) as u64;
        let bytes = self.storage.get(key, max)?;
        let payload =
            record::open_with(&self.keys, self.repo_id, key, R::MAGIC, R::PAYLOAD_MAX, &bytes)?;
        R::decode(&payload).map_err(|e| Error::format(format!("{key} is damaged"), e))
    }
}
