use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::RwLock;

use super::Storage;
use crate::error::{Error, ErrorKind, Result};
use crate::key::{Folder, ObjectKey};

/// Objects in memory, gone with the last clone: for tests and throw-away repositories.
#[derive(Clone, Debug, Default)]
pub struct MemoryStorage {
    objects: Arc<RwLock<BTreeMap<ObjectKey, Arc<Vec<u8>>>>>,
}

impl MemoryStorage {
    fn object(&self, key: ObjectKey) -> Result<Arc<Vec<u8>>> {
        self.objects
            .read()
            .get(&key)
            .cloned()
            .ok_or_else(|| Error::new(ErrorKind::NotFound, format!("there is no object {key}")))
    }

    /// Changes an object behind the store's back, as failing hardware does; for damage tests.
    pub fn tamper(&self, key: ObjectKey, change: impl FnOnce(&mut Vec<u8>)) {
        if let Some(object) = self.objects.write().get_mut(&key) {
            change(Arc::make_mut(object));
        }
    }
}

impl Storage for MemoryStorage {
    fn put(&self, key: ObjectKey, parts: &[&[u8]]) -> Result<()> {
        let mut objects = self.objects.write();
        if objects.contains_key(&key) {
            return Err(Error::new(ErrorKind::Exists, format!("{key} exists already")));
        }
        objects.insert(key, Arc::new(parts.concat()));
        Ok(())
    }

    fn get(&self, key: ObjectKey, max: u64) -> Result<Vec<u8>> {
        let object = self.object(key)?;
        if object.len() as u64 > max {
            return Err(Error::new(ErrorKind::Damaged, format!("{key} is longer than {max}")));
        }
        Ok(object.to_vec())
    }

    fn read_at(&self, key: ObjectKey, offset: u64, buf: &mut [u8]) -> Result<()> {
        let object = self.object(key)?;
        let start = usize::try_from(offset).ok();
        let range = start.and_then(|s| Some(s..s.checked_add(buf.len())?));
        match range.and_then(|r| object.get(r)) {
            Some(bytes) => {
                buf.copy_from_slice(bytes);
                Ok(())
            }
            None => Err(Error::new(ErrorKind::Damaged, format!("{key} is cut short"))),
        }
    }

    fn size(&self, key: ObjectKey) -> Result<u64> {
        Ok(self.object(key)?.len() as u64)
    }

    fn list(&self, folder: Folder) -> Result<Vec<ObjectKey>> {
        let of_folder = |k: &&ObjectKey| k.folder() == Some(folder);
        Ok(self.objects.read().keys().filter(of_folder).copied().collect())
    }

    fn delete(&self, key: ObjectKey) -> Result<()> {
        match self.objects.write().remove(&key) {
            Some(_) => Ok(()),
            None => Err(Error::new(ErrorKind::NotFound, format!("there is no object {key}"))),
        }
    }
}
