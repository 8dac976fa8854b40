//! What an overlay is after it ended, in whatever way (mountd/docs/OVERLAY.md, "Opening").

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;

use super::files::{Directory, RandomFile};
use super::flush::write_map;
use super::header::Header;
use super::journal::{Change, Journal, Scan};
use super::map::{Map, State};
use super::sum::sum;
use super::{BLOCK_BYTES, DATA, journal_name, map_name, snapshot};
use crate::error::{Error, ErrorKind};

/// An overlay ready for use, with an empty journal.
pub(super) struct Found {
    pub(super) data: Arc<dyn RandomFile>,
    pub(super) map: Map,
    pub(super) journal: Journal,
    pub(super) generation: u64,
}

/// What the records say that no flush covers.
struct Loose {
    /// Blocks with a record of zeros.
    zeroed: Map,
    /// Sums announced for a block.
    announced: BTreeMap<u64, Announced>,
}

#[derive(Default)]
struct Announced {
    sums: Vec<u64>,
    /// At least one of the changes did not fail.
    valid: bool,
}

struct Recovery<'a> {
    directory: &'a dyn Directory,
    header: &'a Header,
    names: Vec<String>,
}

/// Reads what is there, takes what can be trusted, and writes that down as a new generation, so that the
/// next crash finds the same.
pub(super) fn recover(directory: &dyn Directory, header: &Header) -> Result<Found, Error> {
    let failed =
        |e: io::Error| Error::os(format!("{}: the overlay cannot be read", directory.name()), e);
    let names = directory.list().map_err(failed)?;
    let recovery = Recovery { directory, header, names };
    let data = directory.open(DATA).map_err(failed)?;
    if data.size().map_err(failed)? < header.size_bytes {
        return Err(recovery.damaged("its content is cut short"));
    }
    let (generation, mut map, next) = recovery.newest_map()?;
    let (loose, last_generation, next) = recovery.replay(generation, &mut map, next)?;
    recovery.judge(&*data, &mut map, loose).map_err(failed)?;
    let found = recovery.start_anew(data, map, last_generation + 1, next).map_err(|e| {
        let what = "the overlay cannot be opened, because what was found cannot be written down";
        Error::os(format!("{}: {what}", directory.name()), e)
    })?;
    Ok(found)
}

impl Recovery<'_> {
    fn damaged(&self, what: &str) -> Error {
        Error::new(ErrorKind::Damaged, format!("{}: {what}", self.directory.name()))
    }

    fn generations(&self, prefix: &str) -> Vec<u64> {
        let number = |name: &String| name.strip_prefix(prefix)?.parse().ok();
        let mut list: Vec<u64> = self.names.iter().filter_map(number).collect();
        list.sort_unstable();
        list
    }

    /// The newest map, its generation, and the number of the first record after it. A map gets its name when
    /// it is whole; one that is not was damaged later, and an older one would show what is no more.
    fn newest_map(&self) -> Result<(u64, Map, u64), Error> {
        let Some(generation) = self.generations("map-").pop() else {
            return Err(self.damaged("its map is missing"));
        };
        let name = map_name(generation);
        let seed = self.header.seed(generation);
        let file = self.directory.open(&name);
        match file.and_then(|file| snapshot::read(file, self.header.blocks(), seed)) {
            Ok(snapshot::Read::Whole(map, next)) => Ok((generation, map, next)),
            Ok(snapshot::Read::Bad(what)) => Err(self.damaged(&format!("{name}: {what}"))),
            Err(e) => {
                let text = format!("{}: {name} cannot be read", self.directory.name());
                Err(Error::os(text, e))
            }
        }
    }

    /// Reads the journals. Settled records go into the map; the others, the last journal's generation and the
    /// next number are the answer.
    fn replay(
        &self,
        generation: u64,
        map: &mut Map,
        next: u64,
    ) -> Result<(Loose, u64, u64), Error> {
        let failed = |e: io::Error| {
            Error::os(format!("{}: the journal cannot be read", self.directory.name()), e)
        };
        let mut open: Vec<(u64, Change)> = Vec::new();
        let mut next = next;
        let mut last = generation;
        let journals = self.generations("journal-");
        for generation in journals.into_iter().filter(|found| *found >= generation) {
            let file = self.directory.open(&journal_name(generation)).map_err(failed)?;
            let mut scan = Scan::new(file, self.header.seed(generation), next).map_err(failed)?;
            // Numbers go on from one journal to the next. Where some are missing, the power went before they
            // were on the disk, and what comes later counts for nothing.
            while let Some((seq, change)) = scan.next().map_err(failed)? {
                if !self.fits(&change) {
                    return Err(self.damaged("a record of the journal names no block of the disk"));
                }
                match change {
                    Change::Settled { through, .. } => {
                        let loose = open.partition_point(|(seq, _)| *seq <= through);
                        settle(map, open.drain(..loose).collect());
                    }
                    change => open.push((seq, change)),
                }
            }
            if let Some(lost) = scan.lost().map_err(failed)? {
                let what = format!("record {lost} of the journal is missing, though it was there");
                return Err(self.damaged(&what));
            }
            next = scan.next_number();
            last = generation;
        }
        let mut loose = Loose { zeroed: Map::new(map.blocks()), announced: BTreeMap::new() };
        let void = void_records(&open);
        for (record, change) in open {
            match change {
                Change::Zero { first, blocks } => {
                    loose.zeroed.set(first..first + blocks, State::Zero);
                }
                Change::Data { first, sums } => {
                    for (block, sum) in (first..).zip(sums) {
                        let announced = loose.announced.entry(block).or_default();
                        announced.sums.push(sum);
                        announced.valid |= !void.contains(&record);
                    }
                }
                Change::Void { .. } | Change::Settled { .. } => {}
            }
        }
        Ok((loose, last, next))
    }

    fn fits(&self, change: &Change) -> bool {
        let (first, blocks) = match change {
            Change::Data { first, sums } => (*first, sums.len() as u64),
            Change::Zero { first, blocks } => (*first, *blocks),
            Change::Settled { .. } | Change::Void { .. } => (0, 0),
        };
        first.checked_add(blocks).is_some_and(|end| end <= self.header.blocks())
    }

    /// Looks at every block that a loose record names. Content that has one of its sums is there; other content is
    /// of a write that was cut short, and nobody was told that it is safe.
    fn judge(&self, data: &dyn RandomFile, map: &mut Map, loose: Loose) -> io::Result<()> {
        let mut content = vec![0; BLOCK_BYTES as usize];
        let mut written = Vec::new();
        let mut dropped = Vec::new();
        for (&block, announced) in &loose.announced {
            let at = block * BLOCK_BYTES;
            let len = BLOCK_BYTES.min(self.header.size_bytes - at) as usize;
            data.read_at(&mut content[..len], at)?;
            let known = announced.sums.contains(&sum(self.header.nonce, &content[..len]));
            // A change that failed may have happened all the same, over one that had not failed. Alone it
            // was never seen.
            if known && announced.valid {
                // Written once more: the kernel may take for written what an earlier, failed sync lost.
                data.write_at(&content[..len], at)?;
                written.push(block);
            } else if map.run(block, block + 1).state != State::Data {
                dropped.push((at, len as u64));
            }
        }
        for run in loose.zeroed.runs(0..map.blocks()).filter(|run| run.state == State::Zero) {
            map.set(run.first..run.end(), State::Zero);
            let at = run.first * BLOCK_BYTES;
            dropped.push((at, run.blocks * BLOCK_BYTES));
        }
        for block in &written {
            map.set(*block..block + 1, State::Data);
        }
        for (at, len) in dropped {
            self.free(data, map, at, len);
        }
        data.sync()
    }

    /// Frees the space of content that does not count. What cannot be freed only takes space.
    fn free(&self, data: &dyn RandomFile, map: &Map, at: u64, len: u64) {
        let blocks = at / BLOCK_BYTES..(at + len).div_ceil(BLOCK_BYTES);
        for run in map.runs(blocks).filter(|run| run.state != State::Data) {
            let at = run.first * BLOCK_BYTES;
            let end = (run.end() * BLOCK_BYTES).min(self.header.size_bytes);
            if let Err(error) = data.punch(at, end - at) {
                tracing::debug!(overlay = %self.directory.name(), %error, "cannot free space");
            }
        }
    }

    /// A new generation with nothing in its journal; then the older ones can go.
    fn start_anew(
        &self,
        data: Arc<dyn RandomFile>,
        map: Map,
        generation: u64,
        next: u64,
    ) -> io::Result<Found> {
        let seed = self.header.seed(generation);
        let file = self.directory.create(&journal_name(generation))?;
        let journal = Journal::start(file.clone(), seed, next)?;
        file.sync()?;
        // Syncs the directory, so the journal's name is durable with the map's.
        write_map(self.directory, generation, &map, seed, next)?;
        for name in &self.names {
            let keep = [DATA, super::header::NAME].contains(&name.as_str());
            let ours = ["map-", "journal-", "overlay."].iter().any(|p| name.starts_with(p));
            if ours && !keep {
                // What stays is older than the newest map, and is not read again.
                let _ = self.directory.remove(name);
            }
        }
        Ok(Found { data, map, journal, generation })
    }
}

/// The records whose change failed.
fn void_records(records: &[(u64, Change)]) -> BTreeSet<u64> {
    let void = |(_, change): &(u64, Change)| match change {
        Change::Void { record } => Some(*record),
        _ => None,
    };
    records.iter().filter_map(void).collect()
}

/// Takes records over that a flush has covered.
fn settle(map: &mut Map, records: Vec<(u64, Change)>) {
    let void = void_records(&records);
    for (record, change) in records {
        match change {
            _ if void.contains(&record) => {}
            Change::Data { first, sums } => {
                map.set(first..first + sums.len() as u64, State::Data);
            }
            Change::Zero { first, blocks } => map.set(first..first + blocks, State::Zero),
            Change::Settled { .. } | Change::Void { .. } => {}
        }
    }
}
