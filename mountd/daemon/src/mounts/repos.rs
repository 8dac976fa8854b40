//! The repositories a daemon has open: each once, whatever number of mounts read it.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read as _;
use std::path::PathBuf;
use std::sync::Arc;

use backstay_api::mountd::Key;
use backstay_api::{Refusal, RefusalKind};
use backstay_store::{
    ErrorKind as StoreErrorKind, Location, OpenOptions, RecoveryKey, Repository, Secret, Unlock,
};
use parking_lot::Mutex;
use zeroize::Zeroizing;

/// The longest key file or passphrase file read.
const MAX_KEY_BYTES: u64 = 64 << 10;

/// Opens repositories and keeps them.
#[derive(Debug)]
pub(super) struct Repositories {
    cache_dir: PathBuf,
    disk_cache_bytes: Option<u64>,
    /// Seeds the marks of keys, so that they say nothing to whoever reads our memory later.
    salt: [u8; 32],
    open: Mutex<BTreeMap<String, Arc<Slot>>>,
}

#[derive(Debug, Default)]
struct Slot {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    repository: Option<Repository>,
    /// Marks of the keys that opened it.
    keys: BTreeSet<[u8; 32]>,
}

impl Repositories {
    pub(super) fn new(cache_dir: PathBuf, disk_cache_bytes: Option<u64>, salt: [u8; 32]) -> Self {
        Self { cache_dir, disk_cache_bytes, salt, open: Mutex::new(BTreeMap::new()) }
    }

    /// The repository at `location`. A key that is not known to open it is tried, also if it is open
    /// already: nobody gets in by the key of another.
    pub(super) fn open(&self, location: &str, key: &Key) -> Result<Repository, Refusal> {
        let material = Material::of(key)?;
        let mark = self.mark(&material);
        let slot = self.open.lock().entry(location.to_owned()).or_default().clone();
        let mut state = slot.state.lock();
        if let Some(repository) = state.repository.as_ref().filter(|_| state.keys.contains(&mark)) {
            return Ok(repository.clone());
        }
        let parsed = Location::parse(location)
            .map_err(|e| Refusal::new(RefusalKind::Usage, e.to_string()).what(location))?;
        let mut options = OpenOptions::new(&self.cache_dir);
        options.cache_bytes = crate::memory::cache_bytes();
        options.disk_cache_bytes = self.disk_cache_bytes.unwrap_or(options.disk_cache_bytes);
        let opened = Repository::open(&parsed, &material.unlock()?, &options)
            .map_err(|e| refusal(&e).what(location))?;
        state.keys.insert(mark);
        Ok(state.repository.get_or_insert(opened).clone())
    }

    /// A repository that is open already.
    pub(super) fn already_open(&self, location: &str) -> Option<Repository> {
        let slot = self.open.lock().get(location)?.clone();
        slot.state.lock().repository.clone()
    }

    /// Lets go of repositories that no mount uses.
    pub(super) fn forget_unused(&self, used: &dyn Fn(&str) -> bool) {
        self.open.lock().retain(|location, _| used(location));
    }

    fn mark(&self, material: &Material) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new_keyed(&self.salt);
        *hasher.update(&[material.sort]).update(&material.bytes).finalize().as_bytes()
    }
}

/// What a key consists of.
struct Material {
    sort: u8,
    bytes: Zeroizing<Vec<u8>>,
}

impl Material {
    fn of(key: &Key) -> Result<Self, Refusal> {
        let (sort, bytes) = match key {
            Key::None => (0, Zeroizing::default()),
            Key::Passphrase(bytes) => (1, Zeroizing::new(bytes.clone())),
            Key::PassphraseFile(path) => {
                let bytes = read(path)?;
                let end = bytes.strip_suffix(b"\n").unwrap_or(&bytes);
                let end = end.strip_suffix(b"\r").unwrap_or(end);
                (1, Zeroizing::new(end.to_vec()))
            }
            Key::File(path) => (2, read(path)?),
            Key::Recovery(text) => (3, Zeroizing::new(text.clone().into_bytes())),
        };
        Ok(Self { sort, bytes })
    }

    /// The store's words for it.
    fn unlock(&self) -> Result<Unlock, Refusal> {
        let secret = || Secret::new(self.bytes.to_vec());
        Ok(match self.sort {
            0 => Unlock::None,
            1 => Unlock::Passphrase(secret()),
            2 => Unlock::KeyFile(secret()),
            _ => {
                let text = std::str::from_utf8(&self.bytes).unwrap_or_default();
                let key = RecoveryKey::parse(text).map_err(|e| {
                    Refusal::new(RefusalKind::Usage, "this is no recovery key").because(&e)
                })?;
                Unlock::RecoveryKey(key)
            }
        })
    }
}

fn read(path: &str) -> Result<Zeroizing<Vec<u8>>, Refusal> {
    let failed = |e: std::io::Error| {
        let kind = match e.kind() {
            std::io::ErrorKind::NotFound => RefusalKind::NotFound,
            std::io::ErrorKind::PermissionDenied => RefusalKind::Denied,
            _ => RefusalKind::Failed,
        };
        Refusal::new(kind, "the mount daemon cannot read the key").what(path).because(&e)
    };
    let mut bytes = Zeroizing::new(Vec::new());
    let file = std::fs::File::open(path).map_err(failed)?;
    file.take(MAX_KEY_BYTES + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > MAX_KEY_BYTES {
        return Err(Refusal::new(RefusalKind::Usage, "the file is too long for a key").what(path));
    }
    Ok(bytes)
}

/// A store error as the control API tells it. The one place of this mapping.
pub(super) fn refusal(error: &backstay_store::Error) -> Refusal {
    let kind = match error.kind() {
        StoreErrorKind::NotFound => RefusalKind::NotFound,
        StoreErrorKind::Exists | StoreErrorKind::Busy => RefusalKind::InUse,
        StoreErrorKind::WrongKey => RefusalKind::WrongKey,
        StoreErrorKind::NeedsKey => RefusalKind::NeedsKey,
        StoreErrorKind::Invalid => RefusalKind::Usage,
        StoreErrorKind::Damaged => RefusalKind::Damaged,
        StoreErrorKind::NoSpace | StoreErrorKind::Unsupported | StoreErrorKind::Locked => {
            RefusalKind::Refused
        }
        StoreErrorKind::Denied => RefusalKind::Denied,
        _ => RefusalKind::Failed,
    };
    Refusal::new(kind, error.to_string()).because(error)
}
