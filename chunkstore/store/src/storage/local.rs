use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use quick_cache::sync::Cache;

use super::Storage;
use super::reserve::Reserve;
use crate::error::{Error, ErrorKind, Result};
use crate::key::{Folder, ObjectKey};
use crate::planted::{Fault, planted};
use crate::vfs::{RealFs, Vfs, VfsRead, VfsWrite};

/// A directory of the local (or a mounted) file system.
///
/// An object is written to a temporary file, synced, renamed without overwriting, and its directory
/// is synced (FORMAT.md, rules O1 and O4). A writer that dies leaves at most a temporary file,
/// which the next writer removes.
///
/// A file named `reserve` keeps some space back for a full disk: objects other than packs, and
/// packs stored by [`Storage::put_vital`], may use it.
#[derive(Debug)]
pub struct LocalStorage {
    root: PathBuf,
    fs: Arc<dyn Vfs>,
    reserve: Reserve,
    open_files: Cache<ObjectKey, Arc<dyn VfsRead>>,
    next_temp: AtomicU64,
    /// Distinguishes the temporary files of this storage from those of others.
    temp_tag: String,
}

/// Open pack files kept for reading: enough for the packs a busy mount touches, far below the
/// usual limit of 1,024 descriptors.
const OPEN_FILES_MAX: usize = 256;

const TEMP_DIR: &str = "tmp";

/// How often, and how far apart, a claim that another holds is asked for: five seconds in all.
const CLAIM_TRIES: u32 = 250;
const CLAIM_PAUSE: Duration = Duration::from_millis(20);

impl LocalStorage {
    /// Makes the directories of a new repository in `root`, which must be missing or empty.
    pub fn create(root: &Path, fs: Arc<dyn Vfs>, temp_tag: &str) -> Result<Self> {
        let what = || format!("cannot create a repository in {}", root.display());
        match fs.create_dir(root) {
            Ok(()) => sync_parent(&*fs, root).map_err(|e| Error::io(what(), e))?,
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
                let names = fs.list(root).map_err(|e| Error::io(what(), e))?;
                check_empty(root, &names)?;
            }
            Err(e) => return Err(Error::io(what(), e)),
        }
        let mut dirs = vec![TEMP_DIR.to_owned()];
        let spread = [Folder::Packs.name(), Folder::Parity.name()];
        dirs.extend(spread.map(str::to_owned));
        dirs.extend(Folder::ALL.iter().flat_map(|f| f.directories()));
        for dir in &dirs {
            match fs.create_dir(&root.join(dir)) {
                Ok(()) => {}
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
                Err(e) => return Err(Error::io(what(), e)),
            }
        }
        for dir in [root.to_path_buf(), root.join(spread[0]), root.join(spread[1])] {
            fs.sync_dir(&dir).map_err(|e| Error::io(what(), e))?;
        }
        Ok(Self::new(root, fs, temp_tag))
    }

    /// Opens the repository in `root`. `NotFound` if there is none.
    pub fn open(root: &Path, fs: Arc<dyn Vfs>, temp_tag: &str) -> Result<Self> {
        let storage = Self::new(root, fs, temp_tag);
        match storage.size(ObjectKey::Config) {
            Ok(_) => Ok(storage),
            Err(e) if e.kind() == ErrorKind::NotFound => Err(Error::new(
                ErrorKind::NotFound,
                format!("there is no repository in {}", root.display()),
            )),
            Err(e) => Err(e),
        }
    }

    /// [`LocalStorage::open`] on the operating system's files.
    pub fn open_real(root: &Path) -> Result<Self> {
        Self::open(root, Arc::new(RealFs), &process_tag())
    }

    /// [`LocalStorage::create`] on the operating system's files.
    pub fn create_real(root: &Path) -> Result<Self> {
        Self::create(root, Arc::new(RealFs), &process_tag())
    }

    fn new(root: &Path, fs: Arc<dyn Vfs>, temp_tag: &str) -> Self {
        Self {
            root: root.to_path_buf(),
            reserve: Reserve::new(fs.clone(), root),
            fs,
            open_files: Cache::new(OPEN_FILES_MAX),
            next_temp: AtomicU64::new(0),
            temp_tag: temp_tag.to_owned(),
        }
    }

    fn path(&self, key: ObjectKey) -> PathBuf {
        self.root.join(key.path())
    }

    fn file(&self, key: ObjectKey) -> Result<Arc<dyn VfsRead>> {
        let open = || {
            self.fs.open(&self.path(key)).map_err(|e| Error::io(format!("cannot open {key}"), e))
        };
        match key {
            ObjectKey::Pack(_) => self.open_files.get_or_insert_with(&key, open),
            _ => open(),
        }
    }

    fn new_temp(&self) -> PathBuf {
        let n = self.next_temp.fetch_add(1, Ordering::Relaxed);
        self.root.join(TEMP_DIR).join(format!("{}-{n}", self.temp_tag))
    }

    /// Each try has a temporary file of its own: after a failed write or sync nothing is known of
    /// the old one (FORMAT.md, rule O6).
    fn try_put(&self, key: ObjectKey, parts: &[&[u8]]) -> io::Result<()> {
        let temp = self.new_temp();
        self.write(&temp, key, parts).inspect_err(|_| {
            // Frees the space on a full disk; the name is ours alone.
            let _ = self.fs.remove(&temp);
        })
    }

    fn write(&self, temp: &Path, key: ObjectKey, parts: &[&[u8]]) -> io::Result<()> {
        let path = self.path(key);
        let dir = path.parent().unwrap_or(&self.root);
        let mut file = self.fs.create_new(temp)?;
        for part in parts {
            file.write_all(part)?;
        }
        let early = planted(Fault::RenamedBeforeSync);
        if early {
            self.fs.rename_new(temp, &path)?;
        }
        let synced = if planted(Fault::FileNotSynced) { Ok(()) } else { file.sync() };
        match synced {
            Err(_) if planted(Fault::SyncTriedAgain) => file.sync()?,
            synced => synced?,
        }
        // The file stays ours until it has its name, or a clean-up would take it for a dead one.
        if !early {
            self.name(temp, &path)?;
        }
        drop(file);
        if planted(Fault::DirectoryNotSynced) { Ok(()) } else { self.fs.sync_dir(dir) }
    }

    /// Gives a finished file its name, which must be free.
    fn name(&self, temp: &Path, path: &Path) -> io::Result<()> {
        match self.fs.rename_new(temp, path) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists && planted(Fault::PutReplaces) => {
                self.fs.remove(path)?;
                self.fs.rename_new(temp, path)
            }
            named => named,
        }
    }
}

/// A claim: an owned file in `tmp`, which a clean-up takes away when its process has died.
#[derive(Debug)]
struct Claim {
    fs: Arc<dyn Vfs>,
    path: PathBuf,
    file: Option<Box<dyn VfsWrite>>,
}

impl Drop for Claim {
    fn drop(&mut self) {
        // Removed while it is still owned, so that it cannot be the next holder's file. If it
        // stays, it has no owner any more and the next one to ask takes it away.
        let _ = self.fs.remove(&self.path);
        self.file = None;
    }
}

/// What makes temporary names of this process unlike those of others on the same directory.
fn process_tag() -> String {
    let mut random = [0u8; 8];
    crate::entropy::Entropy::fill(&crate::entropy::SystemEntropy, &mut random);
    format!("{:016x}", u64::from_le_bytes(random))
}

fn sync_parent(fs: &dyn Vfs, path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(parent) => fs.sync_dir(parent),
        None => Ok(()),
    }
}

fn check_empty(root: &Path, names: &[String]) -> Result<()> {
    if names.iter().any(|n| n == "config") {
        return Err(Error::new(
            ErrorKind::Exists,
            format!("there is a repository in {} already", root.display()),
        ));
    }
    // An init that was interrupted before its configuration was written left only our own folders.
    let ours = |n: &String| *n == TEMP_DIR || Folder::ALL.iter().any(|f| f.name() == n);
    if !names.iter().all(|n| ours(n) || n == "lost+found") {
        return Err(Error::new(
            ErrorKind::Exists,
            format!("{} is not empty and holds no repository", root.display()),
        ));
    }
    Ok(())
}

impl Storage for LocalStorage {
    /// Packs leave the reserve alone; all other objects are small, and are what a full disk needs.
    fn put(&self, key: ObjectKey, parts: &[&[u8]]) -> Result<()> {
        if !matches!(key, ObjectKey::Pack(_)) {
            return self.put_vital(key, parts);
        }
        let bytes = parts.iter().map(|p| p.len() as u64).sum();
        self.reserve
            .leave(bytes)
            .and_then(|()| self.try_put(key, parts))
            .map_err(|e| Error::io(format!("cannot write {key}"), e))
    }

    fn put_vital(&self, key: ObjectKey, parts: &[&[u8]]) -> Result<()> {
        self.reserve
            .vital(|| self.try_put(key, parts))
            .map_err(|e| Error::io(format!("cannot write {key}"), e))
    }

    fn refill_reserve(&self) {
        if let Err(error) = self.reserve.refill(&self.new_temp()) {
            tracing::debug!(%error, "no space could be reserved");
        }
    }

    fn get(&self, key: ObjectKey, max: u64) -> Result<Vec<u8>> {
        let file = self.file(key)?;
        let len = file.size().map_err(|e| Error::io(format!("cannot read {key}"), e))?;
        if len > max {
            return Err(Error::new(
                ErrorKind::Damaged,
                format!("{key} is {len} bytes long; at most {max} are possible"),
            ));
        }
        let mut data = vec![0u8; usize::try_from(len).unwrap_or(usize::MAX)];
        self.read_at(key, 0, &mut data)?;
        Ok(data)
    }

    fn read_at(&self, key: ObjectKey, offset: u64, buf: &mut [u8]) -> Result<()> {
        let read = self.file(key)?.read_exact_at(buf, offset);
        if planted(Fault::ShortReadAccepted) {
            return Ok(());
        }
        read.map_err(|e| {
            if e.kind() == io::ErrorKind::UnexpectedEof {
                return Error::new(
                    ErrorKind::Damaged,
                    format!("{key} is cut short: {} bytes at {offset} are missing", buf.len()),
                );
            }
            Error::io(format!("cannot read {key}, {} bytes at {offset}", buf.len()), e)
        })
    }

    fn size(&self, key: ObjectKey) -> Result<u64> {
        self.file(key)?.size().map_err(|e| Error::io(format!("cannot read {key}"), e))
    }

    fn list(&self, folder: Folder) -> Result<Vec<ObjectKey>> {
        let mut keys = Vec::new();
        for dir in folder.directories() {
            let names = match self.fs.list(&self.root.join(&dir)) {
                Ok(names) => names,
                Err(e) if e.kind() == io::ErrorKind::NotFound => {
                    return Err(Error::because(
                        ErrorKind::Damaged,
                        format!("the folder {dir} of the repository is missing"),
                        e,
                    ));
                }
                Err(e) => return Err(Error::io(format!("cannot list {dir}"), e)),
            };
            let found = names.iter().filter_map(|n| ObjectKey::from_name(folder, n));
            keys.extend(found.filter(|k| k.path().starts_with(&dir)));
        }
        keys.sort();
        Ok(keys)
    }

    fn delete(&self, key: ObjectKey) -> Result<()> {
        let path = self.path(key);
        let cannot = |e| Error::io(format!("cannot remove {key}"), e);
        // Some file systems need space even for removing.
        self.reserve.vital(|| self.fs.remove(&path)).map_err(cannot)?;
        self.open_files.remove(&key);
        let dir = path.parent().unwrap_or(&self.root);
        self.fs.sync_dir(dir).map_err(cannot)
    }

    fn claim(&self, what: &str) -> Result<Box<dyn Send>> {
        let path = self.root.join(TEMP_DIR).join(format!("claim-{what}"));
        for _ in 0..CLAIM_TRIES {
            match self.reserve.vital(|| self.fs.create_new(&path)) {
                Ok(file) => {
                    let file = Some(file);
                    return Ok(Box::new(Claim { fs: self.fs.clone(), path, file }));
                }
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
                Err(e) => return Err(Error::io(format!("cannot claim {what}"), e)),
            }
            // A holder that died left it; it may also vanish right now. Then ask again at once.
            if !matches!(self.fs.remove_if_unowned(&path), Ok(false)) {
                continue;
            }
            std::thread::sleep(CLAIM_PAUSE);
        }
        let text = format!("another process holds the claim of {what} for too long");
        Err(Error::new(ErrorKind::Busy, text))
    }

    /// Temporary files whose writer is gone.
    fn tidy(&self) -> Result<()> {
        let dir = self.root.join(TEMP_DIR);
        let names = self.fs.list(&dir).map_err(|e| Error::io("cannot list tmp", e))?;
        for name in names {
            // A file that vanished meanwhile was its writer's or another clean-up's business.
            let _ = self.fs.remove_if_unowned(&dir.join(name));
        }
        Ok(())
    }
}
