//! The repository as a whole: making, opening, listing.

mod adopt;
mod consolidate;
mod damage;
mod derived;
mod exchange;
mod gate;
#[cfg(test)]
mod index_tests;
mod inner;
mod parallel;
mod removal;
mod rounds;
mod slots;
mod source;
mod tables;

use std::path::PathBuf;
use std::sync::Arc;

use backstay_format::config::{Encryption, FEATURE_PARITY, RepoConfig};
use backstay_format::limits::POINT_PAYLOAD_MAX;
use backstay_format::limits::SMALL_PAYLOAD_MAX;
use backstay_format::point::{DiskRecord, RecoveryPoint};
use backstay_format::session::{Fence, Owner};
use backstay_format::verified::Level;
use backstay_format::{ChunkId, ChunkSize, PackId, PointId, RepoId, SlotId, magic};
use jiff::Timestamp;

use crate::check::{self, CheckOptions, CheckReport};
use crate::diff::{self, DiffExtent};
use crate::entropy::{Entropy, SystemEntropy, array};
use crate::error::{Error, ErrorKind, Result};
use crate::gc::{self, CollectOptions, CollectReport, LastCollection};
use crate::index::IndexChoice;
use crate::key::{Folder, ObjectKey};
use crate::keys::Keys;
use crate::location::Location;
use crate::parity::{self, ParityReport};
use crate::planted::{Fault, planted};
use crate::progress::Progress;
use crate::read::ImageReader;
use crate::record;
use crate::repair::{self, RepairOptions, RepairReport};
use crate::secret::{RecoveryKey, Unlock};
use crate::session::{self, SessionInfo, WriteSession};
use crate::storage::{self, Advice, Storage};
use crate::verify::{
    self, KeylessOptions, PackCheckReport, VerifyOptions, VerifyReport, VerifyStatus,
};

pub(crate) use adopt::Excluded;
pub(crate) use consolidate::consolidate;
pub(crate) use inner::Inner;
pub use removal::{Cause, Hold, Keeper, PinInfo, RemovalReport};
pub(crate) use removal::{check_present, pins, removals};
pub use slots::{KeyRotation, KeySlotInfo};
pub(crate) use source::Source;

/// Bytes a small object has besides its payload.
const ENVELOPE_OVERHEAD: u64 = 64;

/// The label of the slot of a recovery key.
const RECOVERY_LABEL: &str = "recovery key";

/// What is chosen when a repository is made.
#[derive(Clone, Debug)]
pub struct InitOptions {
    /// Size of disk-image chunks.
    pub chunk_size: ChunkSize,
    /// How stored bytes are sealed.
    pub encryption: Encryption,
    /// When it is made.
    pub time: Timestamp,
    /// Whether every pack gets parity, from which some of it can be rebuilt: 3.5 % more bytes.
    pub parity: bool,
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
    /// Whether the repository may work in threads of its own: fetch ahead, write packs, learn of
    /// packs while reads go on, give signs of life. Without, every call does all of its work
    /// itself: for tests that hold the order.
    pub background: bool,
    /// Who stands behind the sessions; this process when nothing is given.
    pub owner: Option<Owner>,
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
            background: true,
            owner: None,
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
    /// Where [`Repository::keep_derived`] keeps.
    derived: PathBuf,
}

impl Repository {
    /// Makes a repository at `location`, which must be missing or empty. Durable when this
    /// returns. `first_key` is not needed (and not used) without encryption.
    pub fn init(
        location: &Location,
        options: &InitOptions,
        first_key: &Unlock,
    ) -> Result<RepoConfig> {
        Self::init_with_recovery(location, options, first_key, None)
    }

    /// [`Repository::init`] with a recovery key beside the first key, from the first moment on.
    pub fn init_with_recovery(
        location: &Location,
        options: &InitOptions,
        first_key: &Unlock,
        recovery: Option<&RecoveryKey>,
    ) -> Result<RepoConfig> {
        if options.encryption == Encryption::Aes256Gcm {
            check_key_given(first_key)?;
        }
        let storage = storage::create(location)?;
        Self::init_on_with_recovery(&*storage, options, first_key, recovery, &SystemEntropy)
    }

    /// [`Repository::init`] on any storage.
    pub fn init_on(
        storage: &dyn Storage,
        options: &InitOptions,
        first_key: &Unlock,
        entropy: &dyn Entropy,
    ) -> Result<RepoConfig> {
        Self::init_on_with_recovery(storage, options, first_key, None, entropy)
    }

    /// [`Repository::init_with_recovery`] on any storage.
    pub fn init_on_with_recovery(
        storage: &dyn Storage,
        options: &InitOptions,
        first_key: &Unlock,
        recovery: Option<&RecoveryKey>,
        entropy: &dyn Entropy,
    ) -> Result<RepoConfig> {
        let id = RepoId::from_bytes(array(entropy));
        let master = match options.encryption {
            Encryption::Aes256Gcm => Keys::generate(entropy),
            Encryption::None => Keys::public_master(id),
        };
        let keys = Keys::new(master, options.encryption);
        if options.encryption == Encryption::Aes256Gcm {
            let recovery = recovery.map(|key| Unlock::RecoveryKey(key.clone()));
            let recovery = recovery.as_ref().map(|key| (key, RECOVERY_LABEL));
            for (key, label) in [(first_key, "first key")].into_iter().chain(recovery) {
                let slot = keys.wrap(id, key, label, options.time, entropy)?;
                let bytes =
                    slot.encode(id).map_err(|e| Error::format("cannot write the key slot", e))?;
                storage.put(ObjectKey::Slot(slot.id), &[&bytes])?;
            }
        }
        let mut config = RepoConfig {
            id,
            chunk_size: options.chunk_size,
            encryption: options.encryption,
            created: options.time,
            features: options.parity.then(|| FEATURE_PARITY.to_owned()).into_iter().collect(),
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
        let index = IndexChoice::Directory(dir.join(format!("index-3-{place}")));
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
        let folder = format!("derived-1-{}", place_name(&location));
        let derived = options.cache_dir.join(config.id.to_string()).join(folder);
        let inner = Inner::new(storage, config, keys, index, entropy, options);
        Ok(Repository { inner, location, derived })
    }

    /// What anybody may know: id, chunk size, encryption. Needs no key, so it is not verified.
    pub fn read_config(location: &Location) -> Result<RepoConfig> {
        load_config(&*storage::open(location)?)
    }

    /// What the parts of this crate share; of another repository, for a repair.
    pub(crate) fn inner(&self) -> &Inner {
        &self.inner
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
        self.list_points(|id| load_point_cached(&self.inner, id))
    }

    /// The same, from the storage.
    pub(crate) fn points_afresh(&self) -> Result<PointList> {
        self.list_points(|id| load_point(&self.inner, id))
    }

    fn list_points(
        &self,
        read: impl Fn(PointId) -> Result<Option<Arc<RecoveryPoint>>> + Sync,
    ) -> Result<PointList> {
        let mut list = PointList { points: Vec::new(), damaged: Vec::new() };
        // The removals last: a point that was listed may be removed and gone a moment later.
        let keys = self.inner.storage().list(Folder::Points)?;
        let removed = removals(&self.inner)?;
        let shown = |id: &PointId| !removed.contains(id) || planted(Fault::RemovalsNotAsked);
        let of_point = |key| if let ObjectKey::Point(id) = key { Some(id) } else { None };
        let ids: Vec<PointId> = keys.into_iter().filter_map(of_point).filter(shown).collect();
        for (id, point) in parallel::map(self.advice().reads, &ids, |id| (*id, read(*id))) {
            match point {
                Ok(Some(point)) => list.points.push((*point).clone()),
                // A fence in a point's place.
                Ok(None) => {}
                // Removed between listing and reading.
                Err(e) if e.kind() == ErrorKind::NotFound => {}
                Err(e) => list.damaged.push((id, e)),
            }
        }
        list.points.sort_by_key(|p| (p.time, p.id));
        Ok(list)
    }

    /// One recovery point. `NotFound` if there is none, or if it was removed.
    pub fn point(&self, id: PointId) -> Result<RecoveryPoint> {
        check_present(&self.inner, id)?;
        match load_point_cached(&self.inner, id)? {
            Some(point) => Ok((*point).clone()),
            None => Err(Error::new(
                ErrorKind::NotFound,
                format!("{} is no recovery point: its backup was given up", id.short()),
            )),
        }
    }

    /// Opens a disk for reading.
    pub fn image(&self, disk: &DiskRecord) -> Result<ImageReader> {
        ImageReader::new(self.inner.clone(), disk)
    }

    /// Starts a backup. `base` is the point before it, if there is one: what did not change since
    /// is then recognised without asking the index.
    ///
    /// The session is registered in the repository: a collection waits for it, or fences it when
    /// it gives no signs of life for long; its commit then fails with `Fenced`.
    pub fn begin(&self, base: Option<&RecoveryPoint>) -> Result<WriteSession> {
        let machine = base.map_or(String::new(), |p| format!(" of {}", p.machine));
        self.begin_for(base, &format!("backup{machine}"))
    }

    /// [`Repository::begin`], with what others read of what it is for.
    pub fn begin_for(&self, base: Option<&RecoveryPoint>, purpose: &str) -> Result<WriteSession> {
        self.inner.storage().tidy()?;
        self.inner.storage().refill_reserve();
        WriteSession::begin(self.inner.clone(), base, purpose)
    }

    /// The open sessions, oldest first.
    pub fn sessions(&self) -> Result<Vec<SessionInfo>> {
        session::open_sessions(&self.inner)
    }

    /// Gives a session up for dead: it cannot commit any more, and collections do not wait for it.
    /// Tells whether it had committed already; then its point stays.
    pub fn fence_session(&self, id: PointId, cause: &Cause) -> Result<bool> {
        session::fence(&self.inner, id, &cause.by, &cause.reason)
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
        Self::verify_without_key(location, &KeylessOptions::default(), progress)
    }

    /// Checks the checksums of as many packs as the budget allows, without any key.
    pub fn verify_without_key(
        location: &Location,
        options: &KeylessOptions,
        progress: &dyn Progress,
    ) -> Result<PackCheckReport> {
        let storage = storage::open(location)?;
        let config = load_config(&*storage)?;
        verify::check_packs(&*storage, config.id, options, progress)
    }

    /// Reads packs again, those never read or longest unread first, within a budget; puts what is
    /// bad into quarantine and names what is lost. Goes on where the last run stopped, also on
    /// another node. May run beside everything else; whatever it finds, it returns `Ok` with a
    /// report. `Aborted`: the caller wanted it to stop; what was verified is written down.
    pub fn verify(&self, options: &VerifyOptions, progress: &dyn Progress) -> Result<VerifyReport> {
        verify::verify(self, &self.inner, options, progress)
    }

    /// Stores again, in new packs, what no whole copy is left of and what some source still has:
    /// a quarantined copy, parity, or one of `options.sources`. Deletes and overwrites nothing;
    /// killed at any point, it can be run again. Afterwards it checks once more:
    /// [`RepairReport::left`] tells what is still damaged.
    pub fn repair(
        &self,
        options: &mut RepairOptions,
        progress: &dyn Progress,
    ) -> Result<RepairReport> {
        repair::repair(self, &self.inner, options, progress)
    }

    /// Gives parity to every pack that has none: for repositories that were made without, and for
    /// packs whose writer could not.
    pub fn add_parity(&self, progress: &dyn Progress) -> Result<ParityReport> {
        parity::add(&self.inner, progress)
    }

    /// How long ago each pack was verified, at `level` or more thoroughly.
    pub fn verify_status(&self, level: Level) -> Result<VerifyStatus> {
        verify::status(&self.inner, level)
    }

    /// The copies of chunks that reads through this repository found damaged: pack, chunk and
    /// reason, by pack, at most 10,000. Where another copy served, the read went well all the same.
    pub fn noted_damage(&self) -> Vec<(PackId, ChunkId, String)> {
        self.inner.noted_damage()
    }

    /// Takes back the space of what no recovery point needs. Runs beside everything else; goes on
    /// where one that was killed stopped. `Busy`: another collection began at the same time.
    pub fn collect(
        &self,
        options: &CollectOptions,
        progress: &dyn Progress,
    ) -> Result<CollectReport> {
        gc::collect(&self.inner, options, progress)
    }

    /// The newest collection; nothing if there was none. Reads one listing and one record.
    pub fn last_collection(&self) -> Result<Option<LastCollection>> {
        gc::last_collection(&self.inner)
    }

    /// Learns of packs that others wrote.
    pub fn refresh(&self) -> Result<()> {
        self.inner.synchronise()
    }

    /// Counts packs, chunks and points; of the points those that are not removed, damaged ones too.
    pub fn stats(&self) -> Result<RepoStats> {
        self.inner.synchronise()?;
        let list = self.points()?;
        let points = (list.points.len() + list.damaged.len()) as u64;
        let mut stats = RepoStats { points, ..RepoStats::default() };
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

    /// The key slots, oldest first. Those that are damaged are left out.
    pub fn keys(&self) -> Result<Vec<KeySlotInfo>> {
        slots::list(self.inner.storage(), self.inner.config())
    }

    /// Adds a key. Durable when this returns.
    pub fn add_key(&self, new: &Unlock, label: &str, time: Timestamp) -> Result<KeySlotInfo> {
        check_key_given(new)?;
        slots::add(&self.inner, new, label, None, time)
    }

    /// Adds a recovery key that is to take the place of the slot `old`, which stays until
    /// [`Repository::remove_key`]: the caller shows the new key first. Durable when this returns.
    pub fn add_recovery_key(
        &self,
        new: &RecoveryKey,
        old: Option<SlotId>,
        time: Timestamp,
    ) -> Result<KeySlotInfo> {
        slots::add(&self.inner, &Unlock::RecoveryKey(new.clone()), RECOVERY_LABEL, old, time)
    }

    /// Removes the key slot `id`, written whole. The last one is never removed (`Invalid`), also
    /// when several are removed at once.
    pub fn remove_key(&self, id: &str) -> Result<()> {
        slots::remove(&self.inner, id)
    }

    /// The key slot with the id `which` or, if there is none, the only one with that label.
    /// `NotFound` if there is none, `Invalid` if several have the label.
    pub fn find_key(&self, which: &str) -> Result<KeySlotInfo> {
        slots::find(self.inner.storage(), self.inner.config(), which)
    }

    /// Puts `new` in the place of the key slot `which` (see [`Repository::find_key`]), with the old
    /// label unless another is given. The new key is durable before the old one is removed; killed
    /// in between, both open, and [`KeySlotInfo::replaces`] of the new one names the old.
    pub fn rotate_key(
        &self,
        which: &str,
        new: &Unlock,
        label: Option<&str>,
        time: Timestamp,
    ) -> Result<KeyRotation> {
        check_key_given(new)?;
        slots::rotate(&self.inner, which, new, label, time)
    }
}

/// A point's record, kept in memory: records never change. Nothing for a fence.
pub(crate) fn load_point_cached(inner: &Inner, id: PointId) -> Result<Option<Arc<RecoveryPoint>>> {
    if let Some(point) = inner.points().get(&id) {
        return Ok(Some(point));
    }
    let point = load_point(inner, id)?;
    if let Some(point) = &point {
        inner.points().insert(id, point.clone());
    }
    Ok(point)
}

/// Whether a recovery point that was known is not there any more.
pub(crate) fn is_gone(inner: &Inner, id: PointId) -> Result<bool> {
    match load_point(inner, id) {
        Ok(Some(_)) => return Ok(false),
        Ok(None) => {}
        Err(e) if e.kind() == ErrorKind::NotFound => {}
        Err(e) => return Err(e),
    }
    inner.points().remove(&id);
    Ok(true)
}

/// A point's record from the storage; nothing for a fence.
fn load_point(inner: &Inner, id: PointId) -> Result<Option<Arc<RecoveryPoint>>> {
    let max = u64::from(POINT_PAYLOAD_MAX) + ENVELOPE_OVERHEAD;
    let key = ObjectKey::Point(id);
    let bytes = inner.storage().get(key, max)?;
    if bytes.starts_with(&magic::FENCE) && record::decode::<Fence>(inner, key, &bytes).is_ok() {
        return Ok(None);
    }
    let payload = record::open(inner, key, magic::POINT, POINT_PAYLOAD_MAX, &bytes)?;
    RecoveryPoint::decode(&payload, id, inner.config().chunk_size)
        .map(|p| Some(Arc::new(p)))
        .map_err(|e| Error::format(format!("recovery point {id} is damaged"), e))
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
