//! The overlay at every moment at which it can end: killed, without power, or with a call that fails.
//!
//! `BACKSTAY_SEED` repeats a run; `BACKSTAY_RELEASE_SIZE` looks at many more states.

use std::io;
use std::sync::Arc;

use backstay_blockdev::overlay::sim::{End, SimDirectory};
use backstay_blockdev::overlay::{Overlay, OverlayOptions};
use backstay_blockdev::{BlockDevice, Error, MemDevice, WriteFlags};

const SECTOR: usize = 512;
/// 23 blocks and a bit.
const SIZE: usize = 23 * 4096 + 700;
const STEPS: usize = 50;

struct Numbers(u64);

impl Numbers {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 16) % bound.max(1)
    }
}

/// What each sector may hold.
#[derive(Clone)]
struct Oracle {
    sectors: Vec<Sector>,
}

#[derive(Clone)]
struct Sector {
    /// As it reads.
    now: Vec<u8>,
    /// What an operation under way, or one that failed, may have made of it.
    coming: Vec<Vec<u8>>,
    /// What it was since the last flush, that included.
    since: Vec<Vec<u8>>,
}

impl Oracle {
    fn new(bytes: &[u8]) -> Self {
        let sector = |part: &[u8]| Sector {
            now: part.to_vec(),
            coming: Vec::new(),
            since: vec![part.to_vec()],
        };
        Self { sectors: bytes.chunks(SECTOR).map(sector).collect() }
    }

    fn bytes(&self) -> Vec<u8> {
        self.sectors.iter().flat_map(|s| s.now.iter().copied()).collect()
    }

    /// An operation is about to write `data` at `offset`.
    fn begin(&mut self, offset: usize, data: &[u8]) {
        let mut bytes = self.bytes();
        bytes[offset..offset + data.len()].copy_from_slice(data);
        for (sector, new) in self.sectors.iter_mut().zip(bytes.chunks(SECTOR)) {
            if sector.now != new {
                sector.coming.push(new.to_vec());
            }
        }
    }

    /// It succeeded.
    fn done(&mut self) {
        for sector in &mut self.sectors {
            if let Some(last) = sector.coming.pop() {
                sector.since.append(&mut sector.coming);
                sector.since.push(last.clone());
                sector.now = last;
            }
        }
    }

    /// It failed: `bytes` is what the disk reads as since.
    fn failed(&mut self, bytes: &[u8]) -> Result<(), String> {
        self.check(bytes, End::Killed)?;
        for (sector, now) in self.sectors.iter_mut().zip(bytes.chunks(SECTOR)) {
            sector.since.append(&mut sector.coming);
            sector.since.push(now.to_vec());
            sector.now = now.to_vec();
        }
        Ok(())
    }

    fn flushed(&mut self) {
        for sector in &mut self.sectors {
            sector.since = vec![sector.now.clone()];
        }
    }

    /// Whether `bytes` may be what is found after the end.
    fn check(&self, bytes: &[u8], end: End) -> Result<(), String> {
        for (i, (sector, found)) in self.sectors.iter().zip(bytes.chunks(SECTOR)).enumerate() {
            let mut known = sector.coming.iter().chain([&sector.now]);
            let fine = match end {
                End::Killed => known.any(|may| may == found),
                End::PowerCut(_) => known.chain(&sector.since).any(|may| may == found),
            };
            if !fine {
                let old = sector.since.iter().position(|may| may == found);
                return Err(format!("sector {i} holds {:?}.., once {old:?}", &found[..4]));
            }
        }
        Ok(())
    }
}

fn below() -> Vec<u8> {
    (0..SIZE).map(|i| (i / SECTOR) as u8 | 0x80).collect()
}

fn options() -> OverlayOptions {
    OverlayOptions::default()
}

fn base() -> Arc<dyn BlockDevice> {
    Arc::new(MemDevice::read_only(below()))
}

/// Makes an overlay and works with it as far as it goes. Answers the error that ended it, and whether the
/// overlay had been made.
fn work(directory: &SimDirectory, seed: u64, oracle: &mut Oracle) -> (bool, Option<Error>) {
    let made = Overlay::create(Arc::new(directory.clone()), base(), [1; 32], seed, options());
    let overlay = match made {
        Ok(overlay) => overlay,
        Err(error) => return (false, Some(error)),
    };
    let mut numbers = Numbers(seed | 1);
    for step in 0..STEPS {
        if let Err(error) = one(&overlay, &mut numbers, step, oracle) {
            return (true, Some(error));
        }
    }
    (true, None)
}

/// One operation of the script.
fn one(
    overlay: &Overlay,
    numbers: &mut Numbers,
    step: usize,
    oracle: &mut Oracle,
) -> Result<(), Error> {
    let block = numbers.below(24) as usize * 4096;
    let (offset, len) = match numbers.below(4) {
        // Whole blocks, sectors, and anything.
        0 => (block, 4096 * (1 + numbers.below(3) as usize)),
        1 => (block + 512 * numbers.below(8) as usize, 512),
        2 => (numbers.below(SIZE as u64) as usize, 1 + numbers.below(9000) as usize),
        _ => (block, 4096),
    };
    let offset = offset.min(SIZE - 1);
    let len = len.min(SIZE - offset);
    let (at, long) = (offset as u64, len as u64);
    let flags = WriteFlags { fua: numbers.below(8) == 0, ..WriteFlags::default() };
    match numbers.below(10) {
        0 | 1 => {
            overlay.flush()?;
            oracle.flushed();
            return Ok(());
        }
        2 => {
            oracle.begin(offset, &vec![0; len]);
            let no_hole = numbers.below(2) == 0;
            overlay.write_zeroes(at, long, WriteFlags { no_hole, ..flags })?;
        }
        3 => {
            // Whole blocks read as zeros after a trim, the others stay.
            let from = offset.next_multiple_of(4096).min(SIZE);
            let end = offset + len;
            let to = if end == SIZE { SIZE } else { end / 4096 * 4096 };
            if from < to {
                oracle.begin(from, &vec![0; to - from]);
            }
            overlay.trim(at, long, flags)?;
        }
        4 if step.is_multiple_of(7) => {
            overlay.tidy()?;
            oracle.flushed();
            return Ok(());
        }
        _ => {
            let stamp = (numbers.below(1 << 32) as u32).to_le_bytes();
            let data: Vec<u8> = (0..len).map(|i| stamp[i % 4] ^ (i / 97) as u8).collect();
            oracle.begin(offset, &data);
            overlay.write_at(at, &data, flags)?;
        }
    }
    oracle.done();
    if flags.fua {
        oracle.flushed();
    }
    Ok(())
}

fn read_all(overlay: &Overlay) -> Vec<u8> {
    let mut bytes = vec![0; SIZE];
    overlay.read_at(0, &mut bytes).expect("reading");
    bytes
}

fn reopen(directory: &SimDirectory) -> Result<Overlay, String> {
    Overlay::open(Arc::new(directory.clone()), base(), [1; 32], options())
        .map_err(|e| format!("it does not open: {e}"))
}

/// What is wrong after an end; nothing if all is well.
fn inspect(found: &SimDirectory, end: End, made: bool, oracle: &Oracle) -> Result<(), String> {
    // Opening may be interrupted, too, at any moment.
    let mut numbers = Numbers(found.changes() ^ 0x5bd1_e995 | 1);
    let mut directory = found.clone();
    if let End::PowerCut(seed) = end {
        numbers.0 = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    }
    if numbers.below(2) == 0 {
        directory.stop_at(numbers.below(12));
        let _ = Overlay::open(Arc::new(directory.clone()), base(), [1; 32], options());
        directory = directory.after(match end {
            End::Killed => End::Killed,
            End::PowerCut(seed) => End::PowerCut(seed ^ 0xffff),
        });
    }
    let overlay = match reopen(&directory) {
        Ok(overlay) => overlay,
        Err(_) if !made => return Ok(()),
        Err(why) => return Err(why),
    };
    let bytes = read_all(&overlay);
    oracle.check(&bytes, end)?;
    // What it shows once it shows for ever, also if the power goes again at once.
    let again = directory.after(End::PowerCut(numbers.below(u64::MAX)));
    let second = read_all(&reopen(&again)?);
    if second != bytes {
        return Err("it shows other bytes after a second power cut".to_owned());
    }
    // And work goes on.
    overlay.write_at(700, &[0xee; 6000], WriteFlags::default()).map_err(|e| e.to_string())?;
    overlay.flush().map_err(|e| e.to_string())?;
    let mut wanted = bytes;
    wanted[700..6700].fill(0xee);
    let later = directory.after(End::PowerCut(numbers.below(u64::MAX)));
    match read_all(&reopen(&later)?) == wanted {
        true => Ok(()),
        false => Err("what was written and flushed after the end is not there".to_owned()),
    }
}

fn seed() -> u64 {
    let seed =
        std::env::var("BACKSTAY_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or_else(|| {
            let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
            now.unwrap().as_nanos() as u64 % 1_000_000
        });
    println!("BACKSTAY_SEED={seed}");
    seed
}

fn changes(seed: u64) -> u64 {
    let directory = SimDirectory::new();
    let mut oracle = Oracle::new(&below());
    let (made, error) = work(&directory, seed, &mut oracle);
    assert!(made && error.is_none(), "{error:?}");
    directory.changes()
}

/// Ends at every change; `states` ways for the power to go at each, and a kill.
fn every_end(seed: u64, states: u64, lying: bool) -> (u64, Vec<String>) {
    let mut count = 0;
    let mut failures = Vec::new();
    for at in 0..=changes(seed) {
        let directory = SimDirectory::new();
        directory.set_lying_sync(lying);
        directory.stop_at(at);
        let mut oracle = Oracle::new(&below());
        let (made, _) = work(&directory, seed, &mut oracle);
        let cuts = (0..states).map(|n| End::PowerCut(seed ^ (at << 20) ^ n));
        for end in cuts.chain([End::Killed]) {
            count += 1;
            if let Err(why) = inspect(&directory.after(end), end, made, &oracle) {
                failures.push(format!("seed {seed}, end at change {at}, {end:?}: {why}"));
            }
        }
    }
    (count, failures)
}

#[test]
fn no_end_loses_what_was_flushed_or_mixes_what_was_not() {
    let release = std::env::var_os("BACKSTAY_RELEASE_SIZE").is_some();
    let (scripts, states) = if release { (20, 20) } else { (4, 4) };
    let first = seed();
    let mut count = 0;
    for seed in first..first + scripts {
        let (states, failures) = every_end(seed, states, false);
        assert!(failures.is_empty(), "{} failures, first: {}", failures.len(), failures[0]);
        count += states;
    }
    println!("{count} ends");
    assert!(count >= 2000, "only {count} ends");
}

/// The control: where syncs do nothing, the same test must find losses.
#[test]
fn the_test_notices_syncs_that_do_nothing() {
    let (count, failures) = every_end(5, 4, true);
    assert!(failures.len() > 20, "only {} of {count} were noticed", failures.len());
}

/// Every call fails once, as on a bad or full disk; nothing that succeeded is lost.
#[test]
fn no_failing_call_loses_anything() {
    let seed = seed();
    for kind in [io::ErrorKind::Other, io::ErrorKind::StorageFull] {
        for at in 0..changes(seed) {
            let directory = SimDirectory::new();
            directory.fail_at(at, kind);
            if let Err(why) = survive(&directory, seed) {
                panic!("seed {seed}, change {at} fails with {kind:?}: {why}");
            }
        }
    }
}

/// Works on over failures; opens anew where a flush had failed.
fn survive(directory: &SimDirectory, seed: u64) -> Result<(), String> {
    let shared = || Arc::new(directory.clone());
    let mut oracle = Oracle::new(&below());
    let overlay = match Overlay::create(shared(), base(), [1; 32], seed, options()) {
        Ok(overlay) => overlay,
        // Not made: nothing to lose.
        Err(_) => return Ok(()),
    };
    let mut overlay = Some(overlay);
    let mut numbers = Numbers(seed | 1);
    for step in 0..STEPS {
        let Some(live) = &overlay else { return Err("gone".to_owned()) };
        if one(live, &mut numbers, step, &mut oracle).is_err() {
            oracle.failed(&read_all(live))?;
            // A flush that failed once goes on failing, and so do writes.
            if live.flush().is_err() {
                live.write_at(0, &[1], WriteFlags::default())
                    .expect_err("a write after a failed flush");
                live.flush().expect_err("a flush after a failed one");
                drop(overlay.take());
                overlay = Some(reopen(directory)?);
            }
            let Some(live) = &overlay else { return Err("gone".to_owned()) };
            if read_all(live) != oracle.bytes() {
                return Err("reopening lost something".to_owned());
            }
        }
    }
    let Some(live) = overlay else { return Err("gone".to_owned()) };
    live.flush().map_err(|e| e.to_string())?;
    oracle.flushed();
    let found = directory.after(End::PowerCut(seed));
    oracle.check(&read_all(&reopen(&found)?), End::PowerCut(seed))
}
