//! Objects in a bucket of S3-compatible storage.

mod client;
mod credentials;
mod list;
mod location;
mod probe;
mod retry;
mod wire;

use std::fmt;
use std::future::Future;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;

use super::Storage;
use crate::error::{Error, ErrorKind, Result};
use crate::key::{Folder, ObjectKey};

use client::{Client, wait};
use retry::Failure;

pub use location::S3Location;
pub use retry::S3Options;

/// Largest object: it is stored with one request, because only one request can be made to fail if
/// the name is taken. Packs are an eighth of it.
const OBJECT_MAX: u64 = 256 << 20;

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

    /// Opens the repository at `location`. `NotFound` if there is none.
    pub fn open(location: &S3Location, options: S3Options) -> Result<Self> {
        let storage = Self::new(location, options)?;
        match storage.size(ObjectKey::Config) {
            Ok(_) => Ok(storage),
            Err(e) if e.kind() == ErrorKind::NotFound => {
                let text = format!("there is no repository at {location}");
                Err(Error::because(ErrorKind::NotFound, text, e))
            }
            Err(e) => Err(e.context(format!("cannot open {location}"))),
        }
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
        )?;
        Ok(parts.concat())
    }

    fn read_at(&self, key: ObjectKey, offset: u64, buf: &mut [u8]) -> Result<()> {
        let len = buf.len() as u64;
        let Some(end) = offset.checked_add(len) else {
            let text = format!("{key} is cut short: {len} bytes at {offset} are missing");
            return Err(Error::new(ErrorKind::Damaged, text));
        };
        if len == 0 {
            return Ok(());
        }
        let name = key.path();
        let parts = self.call(
            move |client| async move { client.range(&name, offset..end).await },
            format!("cannot read {key}, {len} bytes at {offset}"),
        )?;
        let mut rest = buf;
        for part in parts {
            let (now, later) = rest.split_at_mut(part.len());
            now.copy_from_slice(&part);
            rest = later;
        }
        debug_assert!(rest.is_empty(), "a range has the length that was asked for");
        Ok(())
    }

    fn size(&self, key: ObjectKey) -> Result<u64> {
        let name = key.path();
        let head = self.call(
            move |client| async move { client.head(&name).await },
            format!("cannot read {key}"),
        )?;
        Ok(head.size)
    }

    fn list(&self, folder: Folder) -> Result<Vec<ObjectKey>> {
        let work = move |client: Arc<Client>| client.list(folder);
        let mut keys = self.call(work, format!("cannot list {folder:?}"))?;
        keys.sort();
        keys.dedup();
        Ok(keys)
    }

    fn delete(&self, key: ObjectKey) -> Result<()> {
        let name = key.path();
        self.call(
            move |client| async move { client.delete(&name).await },
            format!("cannot remove {key}"),
        )
    }
}
