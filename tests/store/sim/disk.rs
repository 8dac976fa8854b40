//! The shared storage of a run, and each actor's own way to it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use backstay_store::{Error, ErrorKind, Folder, ObjectKey, Storage};
use parking_lot::Mutex;

use super::schedule::{Call, Killed, Schedule};

/// Objects in memory that remember what changed, so that a listing can be as careless as the
/// listing of a directory is.
#[derive(Debug, Default)]
pub(crate) struct Disk {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    objects: BTreeMap<ObjectKey, Arc<Vec<u8>>>,
    /// Every name that was created or deleted, in order.
    changes: Vec<ObjectKey>,
}

type Result<T> = std::result::Result<T, Error>;

fn not_found(key: ObjectKey) -> Error {
    Error::new(ErrorKind::NotFound, format!("there is no object {key}"))
}

impl Disk {
    fn object(&self, key: ObjectKey) -> Result<Arc<Vec<u8>>> {
        self.state.lock().objects.get(&key).cloned().ok_or_else(|| not_found(key))
    }

    /// How many changes there were.
    fn now(&self) -> usize {
        self.state.lock().changes.len()
    }

    /// The names in `folder` by a listing that began after change `since`: what came or went
    /// meanwhile is there or not, as `toss` says.
    fn list_since(
        &self,
        folder: Folder,
        since: usize,
        seen: Vec<ObjectKey>,
        toss: &dyn Fn() -> bool,
    ) -> Vec<ObjectKey> {
        let state = self.state.lock();
        let of_folder = |k: &&ObjectKey| k.folder() == Some(folder);
        let touched: BTreeSet<ObjectKey> =
            state.changes[since..].iter().filter(of_folder).copied().collect();
        let mut names: BTreeSet<ObjectKey> =
            seen.into_iter().filter(|k| !touched.contains(k)).collect();
        names.extend(touched.into_iter().filter(|_| toss()));
        names.into_iter().collect()
    }

    /// Whether the object exists.
    pub(crate) fn has(&self, key: ObjectKey) -> bool {
        self.state.lock().objects.contains_key(&key)
    }
}

impl Storage for Disk {
    fn put(&self, key: ObjectKey, parts: &[&[u8]]) -> Result<()> {
        let mut state = self.state.lock();
        if state.objects.contains_key(&key) {
            return Err(Error::new(ErrorKind::Exists, format!("{key} exists already")));
        }
        state.objects.insert(key, Arc::new(parts.concat()));
        state.changes.push(key);
        Ok(())
    }

    fn get(&self, key: ObjectKey, max: u64) -> Result<Vec<u8>> {
        let object = self.object(key)?;
        if object.len() as u64 > max {
            return Err(Error::new(ErrorKind::Damaged, format!("{key} is longer than {max}")));
        }
        Ok(object.to_vec())
    }

    fn read_at(&self, key: ObjectKey, offset: u64, buf: &mut [u8]) -> Result<()> {
        let object = self.object(key)?;
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        let bytes = object.get(start..).and_then(|rest| rest.get(..buf.len()));
        let cut = || Error::new(ErrorKind::Damaged, format!("{key} is cut short"));
        buf.copy_from_slice(bytes.ok_or_else(cut)?);
        Ok(())
    }

    fn size(&self, key: ObjectKey) -> Result<u64> {
        Ok(self.object(key)?.len() as u64)
    }

    fn list(&self, folder: Folder) -> Result<Vec<ObjectKey>> {
        let of_folder = |k: &&ObjectKey| k.folder() == Some(folder);
        Ok(self.state.lock().objects.keys().filter(of_folder).copied().collect())
    }

    fn delete(&self, key: ObjectKey) -> Result<()> {
        let mut state = self.state.lock();
        state.objects.remove(&key).ok_or_else(|| not_found(key))?;
        state.changes.push(key);
        Ok(())
    }
}

/// One actor's way to the disk: every call waits for the actor's turn.
#[derive(Debug)]
pub(crate) struct StepStorage {
    disk: Arc<Disk>,
    schedule: Arc<Schedule>,
    actor: usize,
}

impl StepStorage {
    pub(crate) fn new(disk: Arc<Disk>, schedule: Arc<Schedule>, actor: usize) -> Self {
        Self { disk, schedule, actor }
    }

    fn turn(&self, call: Call) -> Result<()> {
        let killed = |Killed| Error::new(ErrorKind::Aborted, "this actor was killed");
        self.schedule.step(self.actor, call).map_err(killed)
    }

    /// A call that changes something: its answer or the request itself may be lost.
    fn change(&self, run: impl FnOnce() -> Result<()>) -> Result<()> {
        let lost = || Err(Error::new(ErrorKind::Io, "the connection broke"));
        match self.schedule.lie(self.actor) {
            None => run(),
            Some(true) => run().and_then(|()| lost()),
            Some(false) => lost(),
        }
    }
}

impl Storage for StepStorage {
    fn put(&self, key: ObjectKey, parts: &[&[u8]]) -> Result<()> {
        self.turn(Call::Put(key))?;
        self.change(|| self.disk.put(key, parts))
    }

    fn get(&self, key: ObjectKey, max: u64) -> Result<Vec<u8>> {
        self.turn(Call::Get(key))?;
        self.disk.get(key, max)
    }

    fn read_at(&self, key: ObjectKey, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.turn(Call::Read(key))?;
        self.disk.read_at(key, offset, buf)
    }

    fn size(&self, key: ObjectKey) -> Result<u64> {
        self.turn(Call::Size(key))?;
        self.disk.size(key)
    }

    fn list(&self, folder: Folder) -> Result<Vec<ObjectKey>> {
        self.turn(Call::List(folder))?;
        let (since, seen) = (self.disk.now(), self.disk.list(folder)?);
        self.turn(Call::ListEnds(folder))?;
        Ok(self.disk.list_since(folder, since, seen, &|| self.schedule.toss()))
    }

    fn delete(&self, key: ObjectKey) -> Result<()> {
        self.turn(Call::Delete(key))?;
        self.change(|| self.disk.delete(key))
    }

    fn tidy(&self) -> Result<()> {
        self.turn(Call::Tidy)
    }
}
