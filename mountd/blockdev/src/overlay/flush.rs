//! Making it durable, and keeping the journal short.

use std::io;
use std::sync::atomic::Ordering;

use super::journal::Journal;
use super::{Overlay, Settled, journal_name, map_name, snapshot};
use crate::error::Error;

/// A journal longer than this is replaced by a map.
const MAX_JOURNAL_BYTES: u64 = 32 << 20;

impl Overlay {
    /// `BlockDevice::flush`. Several at once share one sync.
    pub(super) fn settle(&self) -> Result<(), Error> {
        self.check_alive()?;
        let wanted = self.last.load(Ordering::Acquire);
        let mut settled = self.settled.lock();
        // Who waited for the lock may find that the one before had done it.
        if settled.through >= wanted {
            return self.check_alive();
        }
        self.check_alive()?;
        let long = self.journal.lock().bytes() > MAX_JOURNAL_BYTES;
        let result = if long { self.compact(&mut settled) } else { self.note(&mut settled) };
        result.map_err(|e| self.poison(e))
    }

    /// Flushes and replaces the journal by a map, so that the next opening is quick. Meant for the end.
    ///
    /// # Errors
    /// As [`crate::BlockDevice::flush`].
    pub fn tidy(&self) -> Result<(), Error> {
        self.check_alive()?;
        let mut settled = self.settled.lock();
        if self.journal.lock().bytes() == 0 {
            return Ok(());
        }
        self.compact(&mut settled).map_err(|e| self.poison(e))
    }

    fn poison(&self, e: io::Error) -> Error {
        // The kernel may have dropped what it could not write, and would say "done" the next time.
        self.failed.store(true, Ordering::Release);
        Error::os(self.context("flush failed"), e)
    }

    /// Waits until every change that is announced is done; answers the last one's number.
    fn barrier(&self) -> u64 {
        let _alone = self.gate.write();
        self.loose_blocks.store(0, Ordering::Relaxed);
        self.last.load(Ordering::Acquire)
    }

    /// Content first, then the note that it holds, then that.
    fn note(&self, settled: &mut Settled) -> io::Result<()> {
        let through = self.barrier();
        self.data.sync()?;
        let file = {
            let mut journal = self.journal.lock();
            journal.settled(through, settled.through)?;
            journal.file()
        };
        file.sync()?;
        settled.through = through;
        Ok(())
    }

    /// Goes on in a new journal, and writes a map of all before it. If the map cannot be written, the
    /// journals stay, and nothing is lost.
    fn compact(&self, settled: &mut Settled) -> io::Result<()> {
        let generation = settled.generation + 1;
        let mut fresh = match self.new_journal(generation) {
            Ok(fresh) => fresh,
            // No space for a second journal: the first goes on.
            Err(error) => {
                tracing::warn!(overlay = %self.directory.name(), %error, "the journal stays long");
                self.give_up_file(&journal_name(generation));
                return self.note(settled);
            }
        };
        let (map, old, through) = {
            let _alone = self.gate.write();
            let mut journal = self.journal.lock();
            let next = journal.next();
            fresh.number_from(next);
            let old = std::mem::replace(&mut *journal, fresh);
            self.loose_blocks.store(0, Ordering::Relaxed);
            (self.map.read().clone(), old, next - 1)
        };
        settled.generation = generation;
        self.data.sync()?;
        old.file().sync()?;
        // From here on everything up to `through` can be had: from the old journal, whose sums agree with
        // the content, or from the map.
        match self.write_map(generation, &map, through + 1) {
            Ok(()) => {
                settled.through = through;
                self.remove_older(settled);
                Ok(())
            }
            Err(error) => {
                tracing::warn!(overlay = %self.directory.name(), %error, "the old journal stays");
                self.note(settled)
            }
        }
    }

    /// An empty journal, whose name is durable.
    fn new_journal(&self, generation: u64) -> io::Result<Journal> {
        let file = self.directory.create(&journal_name(generation))?;
        let journal = Journal::start(file, self.header.seed(generation), 0)?;
        self.directory.sync()?;
        Ok(journal)
    }

    fn write_map(&self, generation: u64, map: &super::Map, next: u64) -> io::Result<()> {
        write_map(&*self.directory, generation, map, self.header.seed(generation), next)
    }

    fn give_up_file(&self, name: &str) {
        if let Err(error) = self.directory.remove(name) {
            tracing::debug!(overlay = %self.directory.name(), %error, name, "cannot remove a file");
        }
    }

    fn remove_older(&self, settled: &mut Settled) {
        for generation in settled.oldest..settled.generation {
            self.give_up_file(&map_name(generation));
            self.give_up_file(&journal_name(generation));
        }
        settled.oldest = settled.generation;
    }
}

/// Writes the map of a generation; it is durable, name and all, when this returns.
pub(super) fn write_map(
    directory: &dyn super::Directory,
    generation: u64,
    map: &super::Map,
    seed: u64,
    next: u64,
) -> io::Result<()> {
    let new = format!("{}.new", map_name(generation));
    match directory.remove(&new) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let file = directory.create(&new)?;
    let written = snapshot::write(&*file, map, seed, next)
        .and_then(|()| directory.rename(&new, &map_name(generation)))
        .and_then(|()| directory.sync());
    if written.is_err() {
        // What is half there takes space that is missing elsewhere.
        let _ = directory.remove(&new);
    }
    written
}
