use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use quick_cache::sync::Cache;

use super::Storage;
use crate::error::{Error, ErrorKind, Result};
use crate::key::{Folder, ObjectKey};
use crate::planted::{Fault, planted};
use crate::vfs::{RealFs, Vfs, VfsRead};

/// A directory of the local (or a mounted) file system.
///
/// An object is written to a temporary file, synced, renamed without overwriting, and its directory
/// is synced (FORMAT.md, rules O1 and O4). A writer that dies leaves at most a temporary file,
/// which the next writer removes.
#[derive(Debug)]
pub struct LocalStorage {
    root: PathBuf,
    fs: Arc<dyn Vfs>,
    open_files: Cache<ObjectKey, Arc<dyn VfsRead>>,
    next_temp: AtomicU64,
    /// Distinguishes the temporary files of this storage from those of others.
    temp_tag: String,
}

/// Open pack files kept for reading: enough for the packs a busy mount touches, far below the
/// usual limit of 1,024 descriptors.
const OPEN_FILES_MAX: usize = 256;

const TEMP_DIR: &str = "tmp";

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

    fn try_put(&self, temp: &Path, key: ObjectKey, parts: &[&[u8]]) -> io::Result<()> {
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
    fn put(&self, key: ObjectKey, parts: &[&[u8]]) -> Result<()> {
        let n = self.next_temp.fetch_add(1, Ordering::Relaxed);
        let temp = self.root.join(TEMP_DIR).join(format!("{}-{n}", self.temp_tag));
        self.try_put(&temp, key, parts).map_err(|e| {
            // Frees the space on a full disk; the name is ours alone.
            let _ = self.fs.remove(&temp);
            Error::io(format!("cannot write {key}"), e)
        })
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
        self.fs.remove(&path).map_err(|e| Error::io(format!("cannot remove {key}"), e))?;
        self.open_files.remove(&key);
        let dir = path.parent().unwrap_or(&self.root);
        self.fs.sync_dir(dir).map_err(|e| Error::io(format!("cannot remove {key}"), e))
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
