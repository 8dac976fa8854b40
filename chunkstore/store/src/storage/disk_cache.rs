use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use backstay_format::PackId;
use parking_lot::Mutex;

use super::{Advice, Keep, Part, RangeRead, Storage};
use crate::entropy::{SystemEntropy, array};
use crate::error::{Error, ErrorKind, Result};
use crate::key::{Folder, ObjectKey};

/// Bytes of a block of a data pack: some eight chunks, little to fetch for one of them.
const DATA_BLOCK: u64 = 256 << 10;
/// Bytes of a block of a tree pack: 512 nodes, which are mostly needed together.
const TREE_BLOCK: u64 = 1 << 20;
/// Missing neighbours are fetched together, up to so many bytes.
const SPAN_MAX: u64 = 4 << 20;
const MAGIC: &[u8; 8] = b"BKSTBLK1";
const HEAD: usize = 8 + 32;
/// A block counts as just used if it was within this time; noting each use would be a write each.
const USED_STEP: Duration = Duration::from_secs(60);
/// After a write failed nothing is written for so long.
const BROKEN: Duration = Duration::from_secs(60);
/// A temporary file older than this was left by a process that died.
const TEMP_AGE: Duration = Duration::from_secs(3600);

/// Blocks of packs of a distant storage, kept in a directory and bounded in bytes; least recently
/// used go first.
///
/// Several processes may share the directory. A block is checked against its checksum before any
/// byte of it is used, so a torn or foreign file is as good as none. Where nothing can be written
/// everything still works, only without. Packs never change, so a block never is out of date.
#[derive(Debug)]
pub(crate) struct DiskCache {
    inner: Arc<dyn Storage>,
    dir: PathBuf,
    max_bytes: u64,
    state: Mutex<State>,
    next_temp: AtomicU64,
    /// Distinguishes this process's temporary files.
    tag: u64,
}

#[derive(Debug, Default)]
struct State {
    /// Bytes written since the directory was last looked through; nothing: never.
    written: Option<u64>,
    broken_until: Option<Instant>,
}

/// Which block of which pack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Block {
    pack: PackId,
    size: u64,
    number: u64,
}

impl Block {
    fn start(self) -> u64 {
        self.number * self.size
    }

    fn path(self, dir: &Path) -> PathBuf {
        let name = self.pack.to_string();
        let kind = if self.size == TREE_BLOCK { 't' } else { 'd' };
        dir.join(&name[..1]).join(format!("{name}-{kind}{}", self.number))
    }

    fn checksum(self, data: &[u8]) -> blake3::Hash {
        let mut hasher = blake3::Hasher::new();
        hasher.update(self.pack.as_bytes());
        hasher.update(&self.size.to_le_bytes()).update(&self.number.to_le_bytes());
        hasher.update(data).finalize()
    }
}

/// What a read lacks: blocks next to each other.
struct Span {
    first: Block,
    blocks: u64,
}

impl DiskCache {
    /// `inner` with a cache of at most about `max_bytes` in `dir`, which is made when it is needed.
    pub(crate) fn new(inner: Arc<dyn Storage>, dir: PathBuf, max_bytes: u64) -> Self {
        let tag = u64::from_le_bytes(array(&SystemEntropy));
        let (state, next_temp) = (Mutex::default(), AtomicU64::new(0));
        Self { inner, dir, max_bytes, state, next_temp, tag }
    }

    /// The block's bytes, if they are here and whole.
    fn load(&self, block: Block) -> Option<Vec<u8>> {
        let path = block.path(&self.dir);
        let mut file = File::open(&path).ok()?;
        let mut bytes = Vec::new();
        let most = HEAD as u64 + block.size + 1;
        (&mut file).take(most).read_to_end(&mut bytes).ok()?;
        let whole = bytes.len() > HEAD
            && (bytes.len() as u64) < most
            && bytes[..8] == *MAGIC
            && block.checksum(&bytes[HEAD..]) == bytes[8..HEAD];
        if !whole {
            let _ = fs::remove_file(&path);
            return None;
        }
        let used = file.metadata().and_then(|m| m.modified()).ok();
        if used.and_then(|t| t.elapsed().ok()).is_some_and(|age| age > USED_STEP) {
            // Owners of other processes' files may forbid it; then the block goes a little early.
            let _ = file.set_modified(SystemTime::now());
        }
        bytes.drain(..HEAD);
        Some(bytes)
    }

    /// Keeps a block; whatever fails, the reader has its bytes.
    fn keep(&self, block: Block, data: &[u8]) {
        {
            let state = self.state.lock();
            if state.broken_until.is_some_and(|until| Instant::now() < until) || data.is_empty() {
                return;
            }
        }
        let result = self.write(block, data).and_then(|()| self.bound(data.len() as u64));
        if let Err(error) = result {
            tracing::debug!(%error, dir = %self.dir.display(), "the cache on disk cannot be written");
            self.state.lock().broken_until = Some(Instant::now() + BROKEN);
        }
    }

    #[expect(
        clippy::disallowed_methods,
        reason = "not durable on purpose: what a power cut leaves is told by the checksum"
    )]
    fn write(&self, block: Block, data: &[u8]) -> io::Result<()> {
        let path = block.path(&self.dir);
        let Some(folder) = path.parent() else { return Ok(()) };
        fs::create_dir_all(folder)?;
        let n = self.next_temp.fetch_add(1, Ordering::Relaxed);
        let temp = folder.join(format!(".{:016x}-{n}", self.tag));
        let write = || {
            let mut file = File::create_new(&temp)?;
            file.write_all(MAGIC)?;
            file.write_all(block.checksum(data).as_bytes())?;
            file.write_all(data)?;
            fs::rename(&temp, &path)
        };
        write().inspect_err(|_| {
            let _ = fs::remove_file(&temp);
        })
    }

    /// Looks through the directory now and then, and removes what is beyond the bound.
    fn bound(&self, more: u64) -> io::Result<()> {
        {
            let mut state = self.state.lock();
            let written = state.written.map(|w| w + more);
            // Others write too, and are not seen until the next look.
            if written.is_some_and(|w| w < self.max_bytes / 16) {
                state.written = written;
                return Ok(());
            }
            state.written = Some(0);
        }
        let mut files = Vec::new();
        for folder in fs::read_dir(&self.dir)?.flatten() {
            for file in fs::read_dir(folder.path()).into_iter().flatten().flatten() {
                let Ok(meta) = file.metadata() else { continue };
                let used = meta.modified().unwrap_or(SystemTime::UNIX_EPOCH);
                let unfinished = file.file_name().as_encoded_bytes().starts_with(b".");
                match used.elapsed() {
                    Ok(age) if unfinished && age > TEMP_AGE => drop(fs::remove_file(file.path())),
                    _ if unfinished => {}
                    _ => files.push((used, meta.len(), file.path())),
                }
            }
        }
        let mut total: u64 = files.iter().map(|(_, len, _)| len).sum();
        if total <= self.max_bytes {
            return Ok(());
        }
        files.sort();
        // A little more than needed, or the next block would bring us here again.
        let target = self.max_bytes / 10 * 9;
        for (_, len, path) in files {
            if total <= target {
                break;
            }
            // Another process may have been quicker.
            let _ = fs::remove_file(path);
            total -= len;
        }
        Ok(())
    }

    /// Serves what is here and lists what is not.
    fn serve(&self, pack: PackId, read: &mut RangeRead<'_>, size: u64) -> Vec<Span> {
        let end = read.offset + read.buf.len() as u64;
        let mut spans: Vec<Span> = Vec::new();
        for number in read.offset / size..end.div_ceil(size) {
            let block = Block { pack, size, number };
            let here = self.load(block);
            if here.is_some_and(|data| copy_part(block.start(), size, &data, read).is_ok()) {
                continue;
            }
            match spans.last_mut() {
                Some(span)
                    if span.first.number + span.blocks == number
                        && (span.blocks + 1) * size <= SPAN_MAX =>
                {
                    span.blocks += 1;
                }
                _ => spans.push(Span { first: block, blocks: 1 }),
            }
        }
        spans
    }

    fn fetch(&self, reads: &mut [RangeRead<'_>], missing: &[(usize, Span)]) -> Result<()> {
        let wanted: Vec<Part> = missing
            .iter()
            .map(|(_, span)| Part {
                key: ObjectKey::Pack(span.first.pack),
                offset: span.first.start(),
                len: span.blocks * span.first.size,
            })
            .collect();
        let parts = self.inner.read_parts(&wanted)?;
        for ((i, span), data) in missing.iter().zip(parts) {
            let len = span.blocks * span.first.size;
            copy_part(span.first.start(), len, &data, &mut reads[*i])?;
            let size = usize::try_from(span.first.size).unwrap_or(usize::MAX);
            for (number, data) in (span.first.number..).zip(data.chunks(size)) {
                self.keep(Block { number, ..span.first }, data);
            }
        }
        Ok(())
    }
}

/// Copies what `data` has for `read`. The data is of the `len` bytes at `start` of the object;
/// `Damaged` if it ends before the read does within them: then the object does.
fn copy_part(start: u64, len: u64, data: &[u8], read: &mut RangeRead<'_>) -> Result<()> {
    let from = read.offset.max(start);
    let to = (read.offset + read.buf.len() as u64).min(start + len);
    let place = |at: u64, base: u64| usize::try_from(at - base).unwrap_or(usize::MAX);
    let Some(bytes) = data.get(place(from, start)..place(to, start)) else {
        let text =
            format!("{} is cut short: it ends at byte {}", read.key, start + data.len() as u64);
        return Err(Error::new(ErrorKind::Damaged, text));
    };
    read.buf[place(from, read.offset)..place(to, read.offset)].copy_from_slice(bytes);
    Ok(())
}

impl Storage for DiskCache {
    fn put(&self, key: ObjectKey, parts: &[&[u8]]) -> Result<()> {
        self.inner.put(key, parts)
    }

    fn get(&self, key: ObjectKey, max: u64) -> Result<Vec<u8>> {
        self.inner.get(key, max)
    }

    fn read_at(&self, key: ObjectKey, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.inner.read_at(key, offset, buf)
    }

    fn read_many(&self, reads: &mut [RangeRead<'_>]) -> Result<()> {
        let mut missing: Vec<(usize, Span)> = Vec::new();
        let mut past = Vec::new();
        for (i, read) in reads.iter_mut().enumerate() {
            let size = match read.keep {
                Keep::No => 0,
                Keep::Data => DATA_BLOCK,
                Keep::Tree => TREE_BLOCK,
            };
            let fits = read.offset.checked_add(read.buf.len() as u64).is_some();
            match read.key {
                ObjectKey::Pack(pack) if size > 0 && fits => {
                    missing.extend(self.serve(pack, read, size).into_iter().map(|s| (i, s)));
                }
                _ => past.push(i),
            }
        }
        if !missing.is_empty() {
            self.fetch(reads, &missing)?;
        }
        if past.len() == reads.len() {
            return self.inner.read_many(reads);
        }
        past.into_iter().try_for_each(|i| {
            let read = &mut reads[i];
            self.inner.read_at(read.key, read.offset, read.buf)
        })
    }

    fn read_parts(&self, parts: &[Part]) -> Result<Vec<Vec<u8>>> {
        self.inner.read_parts(parts)
    }

    fn advice(&self) -> Advice {
        self.inner.advice()
    }

    fn size(&self, key: ObjectKey) -> Result<u64> {
        self.inner.size(key)
    }

    fn list(&self, folder: Folder) -> Result<Vec<ObjectKey>> {
        self.inner.list(folder)
    }

    fn delete(&self, key: ObjectKey) -> Result<()> {
        self.inner.delete(key)
    }

    fn tidy(&self) -> Result<()> {
        self.inner.tidy()
    }

    fn put_vital(&self, key: ObjectKey, parts: &[&[u8]]) -> Result<()> {
        self.inner.put_vital(key, parts)
    }

    fn refill_reserve(&self) {
        self.inner.refill_reserve();
    }

    fn claim(&self, what: &str) -> Result<Box<dyn Send>> {
        self.inner.claim(what)
    }
}

#[cfg(test)]
#[path = "disk_cache_tests.rs"]
mod tests;
