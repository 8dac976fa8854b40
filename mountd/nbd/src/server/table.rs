//! A table of exports that come and go while clients are connected.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant, SystemTime};

use backstay_blockdev::BlockDevice;
use backstay_blockdev::layer::ReadOnly;

use super::access::{Access, Permission};
use super::opened::{End, Opened, Usage};
use super::peer::ClientInfo;
use super::{ExportInfo, Exports, OpenError};
use crate::error::{Error, ErrorKind};
use crate::proto::{MAX_STRING_BYTES, is_text};

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// What opens a device when the first client asks for it. May block.
pub type Opener = Box<dyn Fn() -> Result<Arc<dyn BlockDevice>, BoxError> + Send + Sync>;

/// Where an export's device comes from.
pub enum Source {
    /// It is open.
    Device(Arc<dyn BlockDevice>),
    /// It is opened when the first client names it, once for all clients, and kept until the export is
    /// removed. An opener that fails is asked again by the next client.
    Lazy {
        /// Opens it.
        open: Opener,
        /// Whether the device will tell its presence; asked before it is open.
        presence: bool,
    },
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Device(device) => f.debug_tuple("Device").field(device).finish(),
            Self::Lazy { presence, .. } => {
                f.debug_struct("Lazy").field("presence", presence).finish_non_exhaustive()
            }
        }
    }
}

/// An export to be added to a table.
#[derive(Debug)]
pub struct ExportSpec {
    /// Its name: 1 to 4096 bytes of UTF-8 without NUL.
    pub name: String,
    /// A line for people.
    pub description: String,
    /// Its device.
    pub source: Source,
    /// Who may use it.
    pub access: Access,
}

/// A client that has an export open.
#[derive(Debug, Clone)]
pub struct Attached {
    /// Who it is.
    pub client: ClientInfo,
    /// Since when, by the wall clock.
    pub since: SystemTime,
    /// Requests it has made.
    pub requests: u64,
    /// Bytes it has asked for.
    pub read_bytes: u64,
    /// Bytes it has sent to be written.
    pub written_bytes: u64,
}

#[derive(Debug)]
struct Attachment {
    client: ClientInfo,
    since: SystemTime,
    usage: Weak<Usage>,
}

/// The clients of one export; those that left are found by their dead references.
#[derive(Debug, Default)]
struct Clients(Mutex<Vec<Attachment>>);

impl Clients {
    fn add(&self, client: &ClientInfo, usage: &Arc<Usage>) {
        let mut list = lock(&self.0);
        // Bounded by the connections of the servers that use the table.
        list.retain(|one| one.usage.strong_count() > 0);
        let usage = Arc::downgrade(usage);
        list.push(Attachment { client: client.clone(), since: SystemTime::now(), usage });
    }

    fn list(&self) -> Vec<Attached> {
        let attached = |one: &Attachment| {
            let usage = one.usage.upgrade()?;
            Some(Attached {
                client: one.client.clone(),
                since: one.since,
                requests: usage.requests(),
                read_bytes: usage.read_bytes(),
                written_bytes: usage.written_bytes(),
            })
        };
        lock(&self.0).iter().filter_map(attached).collect()
    }
}

struct Entry {
    description: String,
    source: Source,
    access: Mutex<Access>,
    /// The device of a lazy source; the lock is held while it is being opened.
    lazily: Mutex<Option<Arc<dyn BlockDevice>>>,
    end: End,
    clients: Arc<Clients>,
}

impl Entry {
    fn device(&self) -> Result<Arc<dyn BlockDevice>, BoxError> {
        match &self.source {
            Source::Device(device) => Ok(Arc::clone(device)),
            Source::Lazy { open, .. } => {
                let mut lazily = lock(&self.lazily);
                if let Some(device) = &*lazily {
                    return Ok(Arc::clone(device));
                }
                let device = open()?;
                *lazily = Some(Arc::clone(&device));
                Ok(device)
            }
        }
    }

    fn presence(&self) -> bool {
        match &self.source {
            Source::Device(device) => device.caps().presence,
            Source::Lazy { presence, .. } => *presence,
        }
    }
}

#[derive(Default)]
struct State {
    exports: BTreeMap<String, Arc<Entry>>,
    default: Option<String>,
}

/// Exports by name, added and removed while clients are connected; usable from any thread.
#[derive(Default)]
pub struct ExportTable {
    state: Mutex<State>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Each change is one insertion or removal, so a panic elsewhere leaves the state whole.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl ExportTable {
    /// A table without exports.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds an export; clients see it at once.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] if the name is taken, or cannot be one.
    pub fn add(&self, spec: ExportSpec) -> Result<(), Error> {
        let ExportSpec { name, description, source, access } = spec;
        if name.is_empty() || name.len() > MAX_STRING_BYTES || !is_text(name.as_bytes()) {
            let why = "an export's name has 1 to 4096 bytes, none of them NUL";
            return Err(Error::new(ErrorKind::Invalid, why));
        }
        let (end, _) = End::new();
        let (lazily, clients) = (Mutex::default(), Arc::default());
        let access = Mutex::new(access);
        let entry = Entry { description, source, access, lazily, end, clients };
        let mut state = lock(&self.state);
        if state.exports.contains_key(&name) {
            let why = format!("there is an export '{name}' already");
            return Err(Error::new(ErrorKind::Invalid, why));
        }
        state.exports.insert(name, Arc::new(entry));
        Ok(())
    }

    /// Which export the empty name stands for; `None` for none, as in a new table. It need not be
    /// there yet.
    pub fn set_default(&self, name: Option<&str>) {
        lock(&self.state).default = name.map(str::to_owned);
    }

    /// Removes an export and ends its clients (see [`End::end`]); clients of others notice nothing. Its
    /// name is free at once. `None` if there is none of that name.
    pub fn remove(&self, name: &str) -> Option<Removed> {
        let entry = lock(&self.state).exports.remove(name)?;
        entry.end.end();
        Some(Removed { clients: Arc::clone(&entry.clients) })
    }

    /// Changes who may use an export from now on. Clients that have it keep it as they have it. `false` if there is
    /// none of that name.
    pub fn set_access(&self, name: &str, access: Access) -> bool {
        let entry = lock(&self.state).exports.get(name).cloned();
        entry.map(|entry| *lock(&entry.access) = access).is_some()
    }

    /// All names and descriptions, in the order of names.
    pub fn list(&self) -> Vec<ExportInfo> {
        self.visible(|_| true)
    }

    /// The clients that have the export, also those still in their handshake, oldest first; empty if
    /// there is no such export.
    pub fn attached(&self, name: &str) -> Vec<Attached> {
        let entry = lock(&self.state).exports.get(name).cloned();
        entry.map(|entry| entry.clients.list()).unwrap_or_default()
    }

    fn visible(&self, may: impl Fn(&Access) -> bool) -> Vec<ExportInfo> {
        let info = |(name, entry): (&String, &Arc<Entry>)| {
            let (name, description) = (name.clone(), entry.description.clone());
            may(&lock(&entry.access)).then_some(ExportInfo { name, description })
        };
        lock(&self.state).exports.iter().filter_map(info).collect()
    }

    /// The export, and what the client may do with it.
    fn find(&self, name: &str, client: &ClientInfo) -> Option<(Arc<Entry>, Permission)> {
        let state = lock(&self.state);
        let name = if name.is_empty() { state.default.as_deref()? } else { name };
        let entry = state.exports.get(name)?;
        let permission = lock(&entry.access).of(client)?;
        Some((Arc::clone(entry), permission))
    }
}

/// An export that was removed and may still have clients for a moment.
#[derive(Debug)]
pub struct Removed {
    clients: Arc<Clients>,
}

impl Removed {
    /// The clients that still have it.
    pub fn attached(&self) -> Vec<Attached> {
        self.clients.list()
    }

    /// Waits until no client has it any more, at most for `patience`; whether it is so. Blocks.
    pub fn wait(&self, patience: Duration) -> bool {
        let start = Instant::now();
        loop {
            if self.clients.list().is_empty() {
                return true;
            }
            if start.elapsed() >= patience {
                return false;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl fmt::Debug for ExportTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(lock(&self.state).exports.keys()).finish()
    }
}

impl Exports for ExportTable {
    fn list(&self, client: &ClientInfo) -> Vec<ExportInfo> {
        self.visible(|access| access.of(client).is_some())
    }

    fn open(&self, name: &str, client: &ClientInfo) -> Result<Opened, OpenError> {
        let (entry, permission) = self.find(name, client).ok_or(OpenError::Unknown)?;
        let device = entry.device().map_err(OpenError::Failed)?;
        let device = match permission {
            Permission::ReadOnly if device.caps().writable => Arc::new(ReadOnly::new(device)),
            _ => device,
        };
        let opened = Opened { device, ended: entry.end.watch(), usage: Arc::default() };
        entry.clients.add(client, &opened.usage);
        // Asked after the client is on the list: an export that was removed meanwhile is refused here,
        // or its remover sees the client.
        if opened.ended.is_ended() { Err(OpenError::Unknown) } else { Ok(opened) }
    }

    fn is_known(&self, name: &str, client: &ClientInfo) -> bool {
        self.find(name, client).is_some()
    }

    fn has_presence(&self, name: &str, client: &ClientInfo) -> bool {
        self.find(name, client).is_some_and(|(entry, _)| entry.presence())
    }
}
