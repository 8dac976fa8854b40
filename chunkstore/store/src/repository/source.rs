use std::sync::Arc;

use backstay_format::envelope::{CHECKSUM_LEN, Envelope, HEAD_LEN};
use backstay_format::limits::INDEX_PAYLOAD_MAX;
use backstay_format::{IndexId, RepoId, magic};

use crate::error::{Error, ErrorKind, Result};
use crate::key::ObjectKey;
use crate::keys::Keys;
use crate::storage::Storage;

/// What reading index objects and footers needs of a repository.
#[derive(Clone, Debug)]
pub(super) struct Source {
    pub(super) storage: Arc<dyn Storage>,
    pub(super) keys: Arc<Keys>,
    pub(super) repo_id: RepoId,
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
        let envelope = Envelope::decode(&bytes, magic::INDEX, INDEX_PAYLOAD_MAX)
            .map_err(|e| Error::format(format!("{key} is damaged"), e))?;
        drop(bytes);
        if envelope.repo_id != self.repo_id || envelope.sealed != self.keys.sealed() {
            let text = format!("{key} belongs to another repository");
            return Err(Error::new(ErrorKind::Damaged, text));
        }
        let name = key.path();
        let payload = envelope.payload;
        self.keys.open_object(magic::INDEX, self.repo_id, name.as_bytes(), &payload).ok_or_else(
            || {
                let text = format!("{key} was not written with this repository's key");
                Error::new(ErrorKind::Damaged, text)
            },
        )
    }
}
