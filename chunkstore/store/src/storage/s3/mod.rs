//! Objects in a bucket of S3-compatible storage.

mod client;
mod credentials;
mod flight;
mod list;
mod location;
mod probe;
mod retry;
mod wire;

use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::try_join_all;
use parking_lot::Mutex;

use super::{Advice, Keep, Part, RangeRead, Storage};
use crate::error::{Error, ErrorKind, Result};
use crate::key::{Folder, ObjectKey};

use client::{Client, wait};
use retry::Failure;

pub use location::S3Location;
pub use retry::S3Options;

/// Largest object: it is stored with one request, because only one request can be made to fail if
/// the name is taken. Packs are an eighth of it.
const OBJECT_MAX: u64 = 256 << 20;

/// Readers that together keep a distant link busy; the bytes in flight have a bound of their own.
const READS: usize = 12;
/// Packs being sent at once: each is in memory twice while it is.
const WRITES: usize = 3;
/// Most sizes kept from a listing: some 5 MiB.
const SIZES_MAX: usize = 100_000;
/// Bytes fetched for one reader at once.
const BATCH_BYTES: u32 = 16 << 20;

/// A prefix of a bucket.
///
/// An object is created by one request that the server refuses if the name is taken, with a
/// checksum that it verifies (FORMAT.md, rules O1 and O4). Requests are repeated within a budget of
/// tries and time; each has a deadline. A creation whose answer was lost is settled by reading what
/// is there.
///
/// In a bucket that keeps versions, removing an object removes its bytes, not only its name; one
/// that a retention lock keeps is [`ErrorKind::Locked`] and stays.
pub struct S3Storage {
    client: Arc<Client>,
    location: S3Location,
    /// Whether the server is known to refuse overwriting.
    probed: Mutex<bool>,
    /// Sizes of packs that the last listing told and nobody has asked for: whoever learns of a pack
    /// by a listing reads its footer next, and must know where it is.
    sizes: Mutex<HashMap<ObjectKey, u64>>,
}

impl fmt::Debug for S3Storage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "S3Storage({})", self.location)
    }
}

impl S3Storage {
    /// The place `location`, whatever is there. Asks the server nothing yet.
    pub fn new(location: &S3Location, options: S3Options) -> Result<Self> {
        Ok(Self {
            client: Arc::new(Client::new(location, options)?),
            location: location.clone(),
            probed: Mutex::new(false),
            sizes: Mutex::default(),
        })
    }

    /// Makes sure that a repository can be made at `location`. `Exists`: there is one already.
    /// `Unsupported`: the server lacks what the store needs.
    pub fn create(location: &S3Location, options: S3Options) -> Result<Self> {
        let storage = Self::new(location, options)?;
        match storage.size(ObjectKey::Config) {
            Err(e) if e.kind() == ErrorKind::NotFound => {}
            Err(e) => return Err(e.context(format!("cannot use {location}"))),
            Ok(_) => {
                let text = format!("there is a repository at {location} already");
                return Err(Error::new(ErrorKind::Exists, text));
            }
        }
        let client = storage.client.clone();
        wait(async move { probe::everything(&client).await })?;
        *storage.probed.lock() = true;
        Ok(storage)
    }

    /// Runs `work` to its end; `text` says what it was in an error.
    fn call<T, F>(&self, work: impl FnOnce(Arc<Client>) -> F, text: String) -> Result<T>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, Failure>> + Send + 'static,
    {
        let work = work(self.client.clone());
        wait(async move { work.await.map_err(|failure| failure.into_error(text)) })
    }

    /// Reads ranges (number, object, offset, length), all at once: how many really are under way is
    /// decided where the link is known. Results have the order of what was asked for.
    fn ranges(
        &self,
        wanted: Vec<(usize, ObjectKey, u64, u64)>,
        whole: bool,
    ) -> Result<Vec<(usize, Vec<Bytes>)>> {
        let client = self.client.clone();
        wait(async move {
            let ranges = wanted.into_iter().map(|(i, key, at, len)| {
                let client = &client;
                async move {
                    let text = format!("cannot read {key}, {len} bytes at {at}");
                    let Some(end) = at.checked_add(len) else {
                        return Err(Error::new(ErrorKind::Damaged, text));
                    };
                    let parts = client.range(&key.path(), at..end, whole).await;
                    parts.map(|parts| (i, parts)).map_err(|failure| failure.into_error(text))
                }
            });
            try_join_all(ranges).await
        })
    }

    /// Before the first object is written: nobody writes to a server that overwrites.
    fn check_server(&self) -> Result<()> {
        let mut probed = self.probed.lock();
        if !*probed {
            let client = self.client.clone();
            wait(async move { probe::overwriting(&client).await })?;
            *probed = true;
        }
        Ok(())
    }
}

impl Storage for S3Storage {
    fn put(&self, key: ObjectKey, parts: &[&[u8]]) -> Result<()> {
        let len: u64 = parts.iter().map(|p| p.len() as u64).sum();
        if len > OBJECT_MAX {
            let text = format!("{key} is {len} bytes long; at most {OBJECT_MAX} can be stored");
            return Err(Error::new(ErrorKind::Invalid, text));
        }
        self.check_server()?;
        let body = Bytes::from(parts.concat());
        let name = key.path();
        self.call(
            |client| async move { client.create(&name, body).await },
            format!("cannot write {key}"),
        )
    }

    fn get(&self, key: ObjectKey, max: u64) -> Result<Vec<u8>> {
        let name = key.path();
        let parts = self.call(
            move |client| async move { client.get(&name, max).await },
            format!("cannot read {key}"),
        );
        match parts {
            Ok(parts) => Ok(parts.concat()),
            // Whoever opens a repository asks for this first; asking twice would cost a round trip.
            Err(e) if e.kind() == ErrorKind::NotFound && key == ObjectKey::Config => {
                Err(e.context(format!("there is no repository at {}", self.location)))
            }
            Err(e) => Err(e),
        }
    }

    fn read_at(&self, key: ObjectKey, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.read_many(&mut [RangeRead { key, offset, buf, keep: Keep::No }])
    }

    fn read_many(&self, reads: &mut [RangeRead<'_>]) -> Result<()> {
        let wanted = reads.iter().enumerate().filter(|(_, read)| !read.buf.is_empty());
        let wanted = wanted.map(|(i, read)| (i, read.key, read.offset, read.buf.len() as u64));
        let parts = self.ranges(wanted.collect(), true)?;
        for (i, parts) in parts {
            let mut rest = &mut *reads[i].buf;
            for part in parts {
                let (now, later) = rest.split_at_mut(part.len());
                now.copy_from_slice(&part);
                rest = later;
            }
            debug_assert!(rest.is_empty(), "a range has the length that was asked for");
        }
        Ok(())
    }

    fn read_parts(&self, parts: &[Part]) -> Result<Vec<Vec<u8>>> {
        let wanted = parts.iter().enumerate().map(|(i, p)| (i, p.key, p.offset, p.len));
        let parts = self.ranges(wanted.collect(), false)?;
        Ok(parts.into_iter().map(|(_, parts)| parts.concat()).collect())
    }

    fn advice(&self) -> Advice {
        Advice { reads: READS, writes: WRITES, batch_bytes: BATCH_BYTES }
    }

    fn size(&self, key: ObjectKey) -> Result<u64> {
        if let Some(size) = self.sizes.lock().remove(&key) {
            return Ok(size);
        }
        let name = key.path();
        let head = self.call(
            move |client| async move { client.head(&name).await },
            format!("cannot read {key}"),
        )?;
        Ok(head.size)
    }

    fn list(&self, folder: Folder) -> Result<Vec<ObjectKey>> {
        let work = move |client: Arc<Client>| client.list(folder);
        let found = self.call(work, format!("cannot list {folder:?}"))?;
        if folder == Folder::Packs {
            *self.sizes.lock() = found.iter().take(SIZES_MAX).copied().collect();
        }
        let mut keys: Vec<ObjectKey> = found.into_iter().map(|(key, _)| key).collect();
        keys.sort();
        keys.dedup();
        Ok(keys)
    }

    fn delete(&self, key: ObjectKey) -> Result<()> {
        self.sizes.lock().remove(&key);
        let name = key.path();
        self.call(
            move |client| async move { client.delete(&name).await },
            format!("cannot remove {key}"),
        )
    }
}
