//! The repository as a whole: making, opening, listing.

mod inner;
mod parallel;
mod slots;

use std::path::PathBuf;
use std::sync::Arc;

use backstay_format::config::{Encryption, RepoConfig};
use backstay_format::envelope::Envelope;
use backstay_format::limits::POINT_PAYLOAD_MAX;
use backstay_format::limits::SMALL_PAYLOAD_MAX;
use backstay_format::point::{DiskRecord, RecoveryPoint};
use backstay_format::{ChunkSize, PointId, RepoId, magic};
use jiff::Timestamp;

use crate::check::{self, CheckOptions, CheckReport, PackCheckReport};
use crate::diff::{self, DiffExtent};
use crate::entropy::{Entropy, SystemEntropy, array};
use crate::error::{Error, ErrorKind, Result};
use crate::index::IndexChoice;
use crate::key::{Folder, ObjectKey};
use crate::keys::Keys;
use crate::location::Location;
use crate::progress::Progress;
use crate::read::ImageReader;
use crate::secret::Unlock;
use crate::session::WriteSession;
use crate::storage::{self, Advice, Storage};

pub(crate) use inner::Inner;
pub use slots::KeySlotInfo;

/// Bytes a small object has besides its payload.
const ENVELOPE_OVERHEAD: u64 = 64;

/// What is chosen when a repository is made.
#[derive(Clone, Debug)]
pub struct InitOptions {
    /// Size of disk-image chunks.
    pub chunk_size: ChunkSize,
    /// How stored bytes are sealed.
    pub encryption: Encryption,
    /// When it is made.
    pub time: Timestamp,
}

/// How a repository is opened.
#[derive(Clone, Debug)]
pub struct OpenOptions {
    /// The user's cache directory; each repository has its own folder in it. May be deleted at
    /// any time.
    pub cache_dir: PathBuf,
    /// Memory for decoded chunks.
    pub cache_bytes: u64,
    /// Threads that fetch ahead of readers.
    pub fetch_threads: usize,
    /// Most bytes of packs kept in the cache directory, for storage far away; 0: none.
    pub disk_cache_bytes: u64,
}

impl OpenOptions {
    /// 256 MiB of decoded chunks, two threads that fetch ahead, and 4 GiB of a distant storage's
    /// packs on disk.
    pub fn new(cache_dir: impl Into<PathBuf>) -> Self {
        Self {
            cache_dir: cache_dir.into(),
            cache_bytes: 256 << 20,
            fetch_threads: 2,
            disk_cache_bytes: 4 << 30,
        }
    }
}

/// The recovery points of a repository.
#[derive(Debug)]
pub struct PointList {
    /// Oldest first.
    pub points: Vec<RecoveryPoint>,
    /// Records that could not be read, each with the reason.
    pub damaged: Vec<(PointId, Error)>,
}

/// Counts of a repository.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RepoStats {
    /// Packs.
    pub packs: u64,
    /// Their bytes.
    pub stored_bytes: u64,
    /// Chunks in them, data and tree nodes.
    pub chunks: u64,
    /// Recovery points.
    pub points: u64,
}

/// An opened repository. Cheap to clone, may be used from many threads; several processes may have
/// the same one open.
#[derive(Clone, Debug)]
pub struct Repository {
    inner: Arc<Inner>,
    location: Location,
}

impl Repository {
    /// Makes a repository at `location`, which must be missing or empty. Durable when this
    /// returns. `first_key` is not needed (and not used) without encryption.
    pub fn init(
        location: &Location,
        options: &InitOptions,
        first_key: &Unlock,
    ) -> Result<RepoConfig> {
        if options.encryption == Encryption::Aes256Gcm {
            check_key_given(first_key)?;
        }
        let storage = storage::create(location)?;
        Self::init_on(&*storage, options, first_key, &SystemEntropy)
    }

    /// [`Repository::init`] on any storage.
    pub fn init_on(
        storage: &dyn Storage,
        options: &InitOptions,
        first_key: &Unlock,
        entropy: &dyn Entropy,
    ) -> Result<RepoConfig> {
        let id = RepoId::from_bytes(array(entropy));
        let master = match options.encryption {
            Encryption::Aes256Gcm => Keys::generate(entropy),
            Encryption::None => Keys::public_master(id),
        };
        let keys = Keys::new(master, options.encryption);
        if options.encryption == Encryption::Aes256Gcm {
            let slot = keys.wrap(id, first_key, "first key", options.time, entropy)?;
            let bytes =
                slot.encode(id).map_err(|e| Error::format("cannot write the key slot", e))?;
            storage.put(ObjectKey::Slot(slot.id), &[&bytes])?;
        }
        let mut config = RepoConfig {
            id,
            chunk_size: options.chunk_size,
            encryption: options.encryption,
            created: options.time,
            features: Vec::new(),
            mac: String::new(),
        };
        config.mac = keys.config_mac(&config);
        let bytes = config.encode().map_err(|e| Error::format("cannot write config", e))?;
        // O7: the configuration comes last; before it there is no repository.
        storage.put(ObjectKey::Config, &[&bytes])?;
        Ok(config)
    }

    /// Opens the repository at `location`.
    ///
    /// `NotFound`: there is none. `NeedsKey`: it is encrypted and `unlock` is nothing. `WrongKey`:
    /// `unlock` opens no key slot. `Damaged`: the configuration is. `Unsupported`: it was made by a
    /// newer program.
    pub fn open(location: &Location, unlock: &Unlock, options: &OpenOptions) -> Result<Repository> {
        let storage = storage::open(location)?;
        let config = load_config(&*storage)?;
        let dir = options.cache_dir.join(config.id.to_string());
        let place = place_name(location);
        let blocks = dir.join(format!("packs-1-{place}"));
        let storage = storage::with_disk_cache(storage, blocks, options.disk_cache_bytes);
        let index = IndexChoice::Directory(dir.join(format!("index-1-{place}")));
        let entropy = Arc::new(SystemEntropy);
        Self::open_with(storage, config, location.clone(), unlock, options, index, entropy)
    }

    /// [`Repository::open`] on any storage.
    pub fn open_on(
        storage: Arc<dyn Storage>,
        location: Location,
        unlock: &Unlock,
        options: &OpenOptions,
        index: IndexChoice,
        entropy: Arc<dyn Entropy>,
    ) -> Result<Repository> {
        let config = load_config(&*storage)?;
        Self::open_with(storage, config, location, unlock, options, index, entropy)
    }

    fn open_with(
        storage: Arc<dyn Storage>,
        config: RepoConfig,
        location: Location,
        unlock: &Unlock,
        options: &OpenOptions,
        index: IndexChoice,
        entropy: Arc<dyn Entropy>,
    ) -> Result<Repository> {
        let keys = slots::open_keys(&*storage, &config, unlock)?;
        if keys.config_mac(&config) != config.mac {
            return Err(Error::new(
                ErrorKind::Damaged,
                format!("the configuration of {location} was changed without its key"),
            ));
        }
        let inner = Inner::new(storage, config, keys, index, entropy, options);
        Ok(Repository { inner: Arc::new(inner), location })
    }

    /// What anybody may know: id, chunk size, encryption. Needs no key, so it is not verified.
    pub fn read_config(location: &Location) -> Result<RepoConfig> {
        load_config(&*storage::open(location)?)
    }

    /// What was chosen when the repository was made.
    pub fn config(&self) -> &RepoConfig {
        self.inner.config()
    }

    /// Where it is.
    pub fn location(&self) -> &Location {
        &self.location
    }

    /// How its storage wants to be used.
    pub fn advice(&self) -> Advice {
        self.inner.storage().advice()
    }

    /// All recovery points. A damaged record does not hide the others. Records never change, so
    /// those read before are not read again.
    pub fn points(&self) -> Result<PointList> {
        self.list_points(|id| self.point(id))
    }

    /// The same, from the storage.
    pub(crate) fn points_afresh(&self) -> Result<PointList> {
        self.list_points(|id| self.load_point(id))
    }

    fn list_points(
        &self,
        read: impl Fn(PointId) -> Result<RecoveryPoint> + Sync,
    ) -> Result<PointList> {
        let mut list = PointList { points: Vec::new(), damaged: Vec::new() };
        let keys = self.inner.storage().list(Folder::Points)?;
        let of_point = |key| if let ObjectKey::Point(id) = key { Some(id) } else { None };
        let ids: Vec<PointId> = keys.into_iter().filter_map(of_point).collect();
        for (id, point) in parallel::map(self.advice().reads, &ids, |id| (*id, read(*id))) {
            match point {
                Ok(point) => list.points.push(point),
                // Removed between listing and reading.
                Err(e) if e.kind() == ErrorKind::NotFound => {}
                Err(e) => list.damaged.push((id, e)),
            }
        }
        list.points.sort_by_key(|p| (p.time, p.id));
        Ok(list)
    }

    /// One recovery point.
    pub fn point(&self, id: PointId) -> Result<RecoveryPoint> {
        let load = || self.load_point(id).map(Arc::new);
        let point = self.inner.points().get_or_insert_with(&id, load)?;
        Ok((*point).clone())
    }

    fn load_point(&self, id: PointId) -> Result<RecoveryPoint> {
        let max = u64::from(POINT_PAYLOAD_MAX) + ENVELOPE_OVERHEAD;
        let bytes = self.inner.storage().get(ObjectKey::Point(id), max)?;
        let damaged = |e| Error::format(format!("recovery point {id} is damaged"), e);
        let envelope =
            Envelope::decode(&bytes, magic::POINT, POINT_PAYLOAD_MAX).map_err(damaged)?;
        let (keys, config) = (self.inner.keys(), self.inner.config());
        if envelope.repo_id != config.id || envelope.sealed != keys.sealed() {
            return Err(Error::new(
                ErrorKind::Damaged,
                format!("recovery point {id} belongs to another repository"),
            ));
        }
        let payload = keys.open_point(config.id, id, &envelope.payload)?;
        RecoveryPoint::decode(&payload, id, config.chunk_size).map_err(damaged)
    }

    /// Opens a disk for reading.
    pub fn image(&self, disk: &DiskRecord) -> Result<ImageReader> {
        ImageReader::new(self.inner.clone(), disk)
    }

    /// Starts a backup. `base` is the point before it, if there is one: what did not change since
    /// is then recognised without asking the index.
    pub fn begin(&self, base: Option<&RecoveryPoint>) -> Result<WriteSession> {
        self.inner.storage().tidy()?;
        WriteSession::begin(self.inner.clone(), base)
    }

    /// Tells what differs between two disks, in order of offset, reading tree nodes only.
    pub fn diff_images(
        &self,
        a: &DiskRecord,
        b: &DiskRecord,
        on_extent: &mut dyn FnMut(DiffExtent),
    ) -> Result<()> {
        diff::diff(&self.inner, a, b, on_extent)
    }

    /// Checks everything a restore needs; with `read_data` every stored byte.
    pub fn check(&self, options: &CheckOptions, progress: &dyn Progress) -> Result<CheckReport> {
        check::check(self, &self.inner, options, progress)
    }

    /// Checks the packs' checksums without any key.
    pub fn check_without_key(
        location: &Location,
        progress: &dyn Progress,
    ) -> Result<PackCheckReport> {
        let storage = storage::open(location)?;
        let config = load_config(&*storage)?;
        check::check_packs(&*storage, config.id, progress)
    }

    /// Learns of packs that others wrote.
    pub fn refresh(&self) -> Result<()> {
        self.inner.synchronise()
    }

    /// Counts packs, chunks and points.
    pub fn stats(&self) -> Result<RepoStats> {
        self.inner.synchronise()?;
        let mut stats = RepoStats {
            points: self.inner.storage().list(Folder::Points)?.len() as u64,
            ..RepoStats::default()
        };
        for (_, info) in self.inner.index()?.packs() {
            stats.packs += 1;
            stats.chunks += u64::from(info.chunks);
            stats.stored_bytes += info.len;
        }
        Ok(stats)
    }

    /// The key slots of the repository at `location`. Needs no key.
    pub fn key_slots(location: &Location) -> Result<Vec<KeySlotInfo>> {
        let storage = storage::open(location)?;
        let config = load_config(&*storage)?;
        slots::list(&*storage, &config)
    }

    /// Adds a key. Durable when this returns.
    pub fn add_key(&self, new: &Unlock, label: &str, time: Timestamp) -> Result<KeySlotInfo> {
        check_key_given(new)?;
        slots::add(&self.inner, new, label, time)
    }

    /// Removes the key slot `id`, written whole. The last one is never removed.
    pub fn remove_key(&self, id: &str) -> Result<()> {
        slots::remove(&self.inner, id)
    }
}

fn check_key_given(unlock: &Unlock) -> Result<()> {
    match unlock {
        Unlock::None => Err(Error::new(
            ErrorKind::NeedsKey,
            "an encrypted repository needs a passphrase or a key file",
        )),
        Unlock::Passphrase(p) if p.expose().is_empty() => {
            Err(Error::new(ErrorKind::Invalid, "the passphrase is empty"))
        }
        Unlock::KeyFile(k) if k.expose().len() < 32 => {
            Err(Error::new(ErrorKind::Invalid, "a key file must hold at least 32 bytes"))
        }
        _ => Ok(()),
    }
}

/// What tells places apart: a copy of a repository has the same id and soon other packs, so each
/// place has an index and a cache of its own.
fn place_name(location: &Location) -> String {
    use std::os::unix::ffi::OsStrExt;
    let hash = match location.directory() {
        Some(directory) => {
            let path = std::fs::canonicalize(directory).unwrap_or_else(|_| directory.to_path_buf());
            blake3::hash(path.as_os_str().as_bytes())
        }
        None => blake3::hash(location.to_string().as_bytes()),
    };
    hash.to_hex()[..16].to_owned()
}

fn load_config(storage: &dyn Storage) -> Result<RepoConfig> {
    let max = u64::from(SMALL_PAYLOAD_MAX) + ENVELOPE_OVERHEAD;
    let bytes = storage.get(ObjectKey::Config, max)?;
    RepoConfig::decode(&bytes)
        .map_err(|e| Error::format("the configuration of the repository cannot be read", e))
}
