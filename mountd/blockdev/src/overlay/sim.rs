//! A directory in memory that can lose power, for tests.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::files::{Directory, Guard, RandomFile};

/// Bytes that reach the disk whole or not at all.
const SECTOR_BYTES: usize = 512;

/// Bytes that the kernel takes from a process whole or not at all.
const PAGE_BYTES: usize = 4096;

/// A directory that promises what [`Directory`] promises and not a bit more: of what was not synced, each
/// sector is kept, lost, or kept as it was at any moment in between, and each change of a name is kept or lost.
#[derive(Clone, Debug)]
pub struct SimDirectory {
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    files: Vec<Contents>,
    names: BTreeMap<String, usize>,
    durable: BTreeMap<String, usize>,
    pending: Vec<(String, Option<usize>)>,
    changes: u64,
    cut_at: Option<u64>,
    stopped: bool,
    fail_at: Option<(u64, io::ErrorKind)>,
    lying_sync: bool,
    capacity_bytes: Option<u64>,
    locked: bool,
}

#[derive(Clone, Debug, Default)]
struct Contents {
    bytes: Vec<u8>,
    durable: Vec<u8>,
    pending: Vec<Pending>,
    /// Sectors that take space.
    used: BTreeSet<usize>,
}

#[derive(Clone, Debug)]
enum Pending {
    Bytes(usize, Vec<u8>),
    Size(usize),
}

impl Pending {
    fn apply(&self, bytes: &mut Vec<u8>) {
        match self {
            Self::Size(size) => bytes.resize(*size, 0),
            Self::Bytes(at, data) => {
                if bytes.len() < at + data.len() {
                    bytes.resize(at + data.len(), 0);
                }
                bytes[*at..at + data.len()].copy_from_slice(data);
            }
        }
    }
}

/// What is left when everything stops.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The process was killed: the kernel keeps all it was given.
    Killed,
    /// The power went; the number is the seed of what was lost.
    PowerCut(u64),
}

struct Numbers(u64);

impl Numbers {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 16) % bound.max(1)
    }
}

impl Default for SimDirectory {
    fn default() -> Self {
        Self::new()
    }
}

impl SimDirectory {
    /// An empty directory.
    pub fn new() -> Self {
        Self { state: Arc::new(Mutex::new(State::default())) }
    }

    fn lock_state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Calls that changed something, so far.
    pub fn changes(&self) -> u64 {
        self.lock_state().changes
    }

    /// Everything stops at change number `at`, which does not happen any more.
    pub fn stop_at(&self, at: u64) {
        self.lock_state().cut_at = Some(at);
    }

    /// Change number `at` fails with `kind`, and only that one. A failed sync drops what it should have saved,
    /// and later syncs succeed without it, as on Linux.
    pub fn fail_at(&self, at: u64, kind: io::ErrorKind) {
        self.lock_state().fail_at = Some((at, kind));
    }

    /// Makes every sync do nothing, for the control run of a test.
    pub fn set_lying_sync(&self, lying: bool) {
        self.lock_state().lying_sync = lying;
    }

    /// Bounds what all files take together.
    pub fn set_capacity(&self, bytes: Option<u64>) {
        self.lock_state().capacity_bytes = bytes;
    }

    /// Bytes that files take; holes take none.
    pub fn used_bytes(&self) -> u64 {
        self.lock_state().used()
    }

    /// What is found afterwards: another directory; this one stays as it is.
    pub fn after(&self, end: End) -> Self {
        let state = self.lock_state();
        let mut next = State { capacity_bytes: state.capacity_bytes, ..State::default() };
        match end {
            End::Killed => {
                next.files = state.files.clone();
                next.names = state.names.clone();
                next.durable = state.durable.clone();
                next.pending = state.pending.clone();
            }
            End::PowerCut(seed) => {
                let mut numbers = Numbers(seed.wrapping_mul(2) | 1);
                next.files = state.files.iter().map(|f| f.lose_power(&mut numbers)).collect();
                next.durable = state.durable.clone();
                for (name, file) in &state.pending {
                    if numbers.below(2) == 0 {
                        continue;
                    }
                    match file {
                        Some(file) => next.durable.insert(name.clone(), *file),
                        None => next.durable.remove(name),
                    };
                }
                next.names = next.durable.clone();
            }
        }
        Self { state: Arc::new(Mutex::new(next)) }
    }
}

impl State {
    /// Counts a change; an error if it does not happen.
    fn change(&mut self) -> io::Result<()> {
        if let Err(error) = self.alive() {
            self.stopped = true;
            return Err(error);
        }
        self.changes += 1;
        match self.fail_at {
            Some((at, kind)) if at + 1 == self.changes => Err(kind.into()),
            _ => Ok(()),
        }
    }

    fn alive(&self) -> io::Result<()> {
        match self.cut_at {
            Some(at) if self.changes >= at => Err(io::Error::other("simulated end")),
            _ => Ok(()),
        }
    }

    fn used(&self) -> u64 {
        let named: BTreeSet<usize> = self.names.values().copied().collect();
        named.iter().map(|file| (self.files[*file].used.len() * SECTOR_BYTES) as u64).sum()
    }

    fn set_name(&mut self, name: &str, file: Option<usize>) {
        match file {
            Some(file) => self.names.insert(name.to_owned(), file),
            None => self.names.remove(name),
        };
        self.pending.push((name.to_owned(), file));
    }
}

impl Contents {
    fn lose_power(&self, numbers: &mut Numbers) -> Self {
        let mut bytes = self.durable.clone();
        for pending in &self.pending {
            match pending {
                Pending::Size(size) => {
                    // The length may not have made it; then later writes make it anew.
                    if numbers.below(2) == 0 {
                        bytes.resize(*size, 0);
                    }
                }
                Pending::Bytes(at, data) => {
                    let how = numbers.below(3);
                    let mut done = 0;
                    while done < data.len() {
                        let from = at + done;
                        let n = (SECTOR_BYTES - from % SECTOR_BYTES).min(data.len() - done);
                        if how == 1 || (how == 2 && numbers.below(2) == 0) {
                            if bytes.len() < from + n {
                                bytes.resize(from + n, 0);
                            }
                            bytes[from..from + n].copy_from_slice(&data[done..done + n]);
                        }
                        done += n;
                    }
                }
            }
        }
        let mut next = Self { durable: bytes.clone(), bytes, ..Self::default() };
        next.used = self.used.clone();
        next
    }
}

impl Directory for SimDirectory {
    fn create(&self, name: &str) -> io::Result<Arc<dyn RandomFile>> {
        let mut state = self.lock_state();
        state.change()?;
        if state.names.contains_key(name) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let file = state.files.len();
        state.files.push(Contents::default());
        state.set_name(name, Some(file));
        Ok(Arc::new(SimFile { directory: self.clone(), file }))
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn RandomFile>> {
        let state = self.lock_state();
        state.alive()?;
        let file = *state.names.get(name).ok_or(io::ErrorKind::NotFound)?;
        Ok(Arc::new(SimFile { directory: self.clone(), file }))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut state = self.lock_state();
        state.change()?;
        let file = *state.names.get(from).ok_or(io::ErrorKind::NotFound)?;
        state.set_name(to, Some(file));
        state.set_name(from, None);
        Ok(())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let mut state = self.lock_state();
        if !state.names.contains_key(name) {
            state.alive()?;
            return Err(io::ErrorKind::NotFound.into());
        }
        state.change()?;
        state.set_name(name, None);
        Ok(())
    }

    fn list(&self) -> io::Result<Vec<String>> {
        let state = self.lock_state();
        state.alive()?;
        Ok(state.names.keys().cloned().collect())
    }

    fn sync(&self) -> io::Result<()> {
        let mut state = self.lock_state();
        state.change()?;
        if !state.lying_sync {
            state.durable = state.names.clone();
            state.pending.clear();
        }
        Ok(())
    }

    fn lock(&self) -> io::Result<Box<dyn Guard>> {
        let mut state = self.lock_state();
        if std::mem::replace(&mut state.locked, true) {
            return Err(io::ErrorKind::ResourceBusy.into());
        }
        Ok(Box::new(SimGuard(self.clone())))
    }

    fn name(&self) -> String {
        "simulated".to_owned()
    }
}

#[derive(Debug)]
struct SimGuard(SimDirectory);

impl Guard for SimGuard {}

impl Drop for SimGuard {
    fn drop(&mut self) {
        self.0.lock_state().locked = false;
    }
}

#[derive(Debug)]
struct SimFile {
    directory: SimDirectory,
    file: usize,
}

impl SimFile {
    fn put(&self, state: &mut State, at: usize, data: &[u8]) {
        let contents = &mut state.files[self.file];
        if contents.bytes.len() < at + data.len() {
            contents.bytes.resize(at + data.len(), 0);
        }
        contents.bytes[at..at + data.len()].copy_from_slice(data);
        contents.pending.push(Pending::Bytes(at, data.to_vec()));
    }
}

fn sectors(at: usize, len: usize) -> std::ops::Range<usize> {
    at / SECTOR_BYTES..(at + len).div_ceil(SECTOR_BYTES)
}

impl RandomFile for SimFile {
    fn size(&self) -> io::Result<u64> {
        let state = self.directory.lock_state();
        state.alive()?;
        Ok(state.files[self.file].bytes.len() as u64)
    }

    fn set_size(&self, bytes: u64) -> io::Result<()> {
        let mut state = self.directory.lock_state();
        state.change()?;
        let contents = &mut state.files[self.file];
        contents.bytes.resize(bytes as usize, 0);
        contents.pending.push(Pending::Size(bytes as usize));
        Ok(())
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let state = self.directory.lock_state();
        state.alive()?;
        let from = offset as usize;
        let bytes = state.files[self.file].bytes.get(from..from + buf.len());
        buf.copy_from_slice(bytes.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn try_read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<bool> {
        self.read_at(buf, offset).map(|()| true)
    }

    fn write_at(&self, data: &[u8], offset: u64) -> io::Result<()> {
        let mut state = self.directory.lock_state();
        let before = state.stopped;
        let happens = state.change();
        let at = offset as usize;
        // What stops in the middle of a write has done the first half of it, in whole pages: so much the kernel
        // takes at once. (A power cut tears it further.)
        let half = ((at + data.len() / 2) / PAGE_BYTES * PAGE_BYTES).saturating_sub(at);
        if let Err(error) = happens {
            if !before {
                self.put(&mut state, at, &data[..half]);
            }
            return Err(error);
        }
        let new = sectors(at, data.len())
            .filter(|sector| !state.files[self.file].used.contains(sector))
            .count();
        let needed = state.used() + (new * SECTOR_BYTES) as u64;
        if state.capacity_bytes.is_some_and(|capacity| needed > capacity) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        state.files[self.file].used.extend(sectors(at, data.len()));
        self.put(&mut state, at, data);
        Ok(())
    }

    fn punch(&self, offset: u64, len: u64) -> io::Result<()> {
        let mut state = self.directory.lock_state();
        state.change()?;
        let at = offset as usize;
        self.put(&mut state, at, &vec![0; len as usize]);
        for sector in sectors(at, len as usize) {
            state.files[self.file].used.remove(&sector);
        }
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        let mut state = self.directory.lock_state();
        let happens = state.change();
        if state.stopped {
            return happens;
        }
        let lying = state.lying_sync;
        let contents = &mut state.files[self.file];
        // What a failed sync did not save is forgotten: nothing will write it later.
        let pending = if lying { Vec::new() } else { std::mem::take(&mut contents.pending) };
        if happens.is_ok() {
            for pending in pending {
                pending.apply(&mut contents.durable);
            }
        }
        happens
    }
}
