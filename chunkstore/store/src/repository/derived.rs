//! What programs work out from a repository and keep beside its index in the user's cache directory: sealed as the repository's own
//! records are, so that a cache tells no more than the repository does.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use backstay_format::envelope::{CHECKSUM_LEN, Envelope, HEAD_LEN};

use crate::error::{Error, ErrorKind, Result};

use super::Repository;

/// What the files begin with; nothing in a repository does.
const MAGIC: [u8; 8] = *b"BKSTDRVD";
/// The longest payload.
const PAYLOAD_MAX: u32 = 256 << 20;
/// The longest name.
const NAME_MAX: usize = 100;

/// Tells the temporary names of one process apart.
static NEXT: AtomicU64 = AtomicU64::new(0);

impl Repository {
    /// Keeps `payload`, up to 256 MiB, under `name`: letters, digits, `-` and `.`, up to 100. What had the name is replaced.
    ///
    /// Only a help: it may be gone at any time, and is not durable. Another process sees it wholly or not at all.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] for such a name or length; `Io` where the cache directory cannot be written.
    pub fn keep_derived(&self, name: &str, payload: Vec<u8>) -> Result<()> {
        let path = self.derived_path(name)?;
        if payload.len() > PAYLOAD_MAX as usize {
            let text =
                format!("{name} would have {} bytes, and may have {PAYLOAD_MAX}", payload.len());
            return Err(Error::new(ErrorKind::Invalid, text));
        }
        let inner = &self.inner;
        let (keys, repo_id) = (inner.keys(), inner.config().id);
        let payload = keys.seal_object(MAGIC, repo_id, name.as_bytes(), payload, inner.entropy());
        let envelope = Envelope { repo_id, sealed: keys.sealed(), payload };
        let bytes = envelope
            .encode(MAGIC)
            .map_err(|e| Error::format(format!("{name} cannot be written"), e))?;
        write(&path, &bytes).map_err(|e| Error::io(format!("cannot write {}", path.display()), e))
    }

    /// What was kept under `name`; nothing if it is not there, or cannot be read, or was made with another key.
    pub fn derived(&self, name: &str) -> Option<Vec<u8>> {
        let mut file = File::open(self.derived_path(name).ok()?).ok()?;
        let max = u64::from(PAYLOAD_MAX) + 64 + (HEAD_LEN + CHECKSUM_LEN) as u64;
        if file.metadata().ok()?.len() > max {
            return None;
        }
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).ok()?;
        let envelope = Envelope::decode(&bytes, MAGIC, PAYLOAD_MAX + 64).ok()?;
        let inner = &self.inner;
        let (keys, repo_id) = (inner.keys(), inner.config().id);
        if envelope.repo_id != repo_id || envelope.sealed != keys.sealed() {
            return None;
        }
        keys.open_object(MAGIC, repo_id, name.as_bytes(), &envelope.payload)
    }

    /// Removes all that is kept under names that begin with `prefix` and that `wanted` does not want. What cannot be removed stays.
    pub fn forget_derived(&self, prefix: &str, wanted: &dyn Fn(&str) -> bool) {
        let Ok(names) = std::fs::read_dir(&self.derived) else { return };
        for entry in names.flatten() {
            if let Some(name) = entry.file_name().to_str()
                && name.starts_with(prefix)
                && !wanted(name)
            {
                let _ = std::fs::remove_file(entry.path());
            }
        }
    }

    fn derived_path(&self, name: &str) -> Result<PathBuf> {
        let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '.';
        if name.is_empty()
            || name.len() > NAME_MAX
            || name.starts_with('.')
            || !name.chars().all(plain)
        {
            let text = format!("{} is no name for what is kept", name.escape_debug());
            return Err(Error::new(ErrorKind::Invalid, text));
        }
        Ok(self.derived.join(name))
    }
}

/// Writes a file that is there wholly or not at all.
fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let temporary = folder.join(format!(".new-{}-{number}", std::process::id()));
    // One that a process of the same number left.
    let _ = std::fs::remove_file(&temporary);
    let made = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary);
    let done = made
        .and_then(|mut file| file.write_all(bytes))
        .and_then(|()| rustix::fs::rename(&temporary, path).map_err(io::Error::from));
    if done.is_err() {
        let _ = std::fs::remove_file(&temporary);
    }
    done
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use backstay_format::config::Encryption;

    use super::*;
    use crate::{ChunkSize, InitOptions, Location, OpenOptions, Secret, Unlock};

    fn repository(dir: &Path, unlock: &Unlock, encryption: Encryption) -> Repository {
        let location = Location::from_path(&dir.join("repo"));
        let options = InitOptions {
            chunk_size: ChunkSize::DEFAULT,
            encryption,
            time: "2026-11-22T03:00:00Z".parse().unwrap(),
            parity: false,
        };
        Repository::init(&location, &options, unlock).unwrap();
        Repository::open(&location, unlock, &OpenOptions::new(dir.join("cache"))).unwrap()
    }

    fn files(dir: &Path) -> Vec<PathBuf> {
        let mut found = Vec::new();
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => found.extend(files(&path)),
                false => found.push(path),
            }
        }
        found
    }

    #[test]
    fn kept_replaced_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let repo = repository(dir.path(), &Unlock::None, Encryption::None);
        assert_eq!(repo.derived("list-1"), None);
        repo.keep_derived("list-1", b"one".to_vec()).unwrap();
        repo.keep_derived("list-1", b"two".to_vec()).unwrap();
        repo.keep_derived("list-2", vec![]).unwrap();
        assert_eq!(repo.derived("list-1").unwrap(), b"two");
        repo.forget_derived("list-", &|name| name == "list-2");
        assert_eq!((repo.derived("list-1"), repo.derived("list-2")), (None, Some(vec![])));
        for name in ["", ".x", "a/b", "..", "a b"] {
            assert_eq!(repo.keep_derived(name, vec![]).unwrap_err().kind(), ErrorKind::Invalid);
        }
    }

    #[test]
    fn sealed_and_only_whole() {
        let dir = tempfile::tempdir().unwrap();
        let unlock = Unlock::KeyFile(Secret::new(vec![7; 32]));
        let repo = repository(dir.path(), &unlock, Encryption::Aes256Gcm);
        repo.keep_derived("list", b"name of a file".to_vec()).unwrap();
        repo.keep_derived("other", b"name of a file".to_vec()).unwrap();
        let path = repo.derived_path("list").unwrap();
        let whole = fs::read(&path).unwrap();
        assert!(!whole.windows(4).any(|w| w == b"file"));
        assert_eq!(files(path.parent().unwrap()).len(), 2);
        for at in 0..whole.len() {
            let mut bytes = whole.clone();
            bytes[at] ^= 1;
            fs::write(&path, &bytes).unwrap();
            assert_eq!(repo.derived("list"), None, "byte {at}");
        }
        // Under another name it is nothing either.
        fs::write(&path, fs::read(repo.derived_path("other").unwrap()).unwrap()).unwrap();
        assert_eq!(repo.derived("list"), None);
        fs::write(&path, &whole).unwrap();
        assert_eq!(repo.derived("list").unwrap(), b"name of a file");
    }
}
