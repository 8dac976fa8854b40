//! How fast a collection marks, whether its cost follows the change, and what a backup beside it
//! feels, for `cargo xtask bench gc`.
//!
//! Usage: `collect [--chunks N] [--points N] [--changed N] [--seed N] [--dir DIR]`. Writes a
//! repository of one machine whose disk has N chunks of 4 KiB, with so many recovery points of which
//! each changes so many chunks, and prints one JSON object.
#![allow(clippy::print_stdout, reason = "printing is what this program does")]

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use backstay_store::{
    Cause, ChunkIndex, ChunkSize, CollectOptions, CollectReport, Consistency, Encryption,
    InitOptions, Location, NewPoint, NoProgress, OpenOptions, Origin, RecoveryPoint, Repository,
    Secret, Unlock, WriteScratch,
};

const CHUNK: usize = 4096;
/// Chunks handed to the writer at once.
const RUN: usize = 64;

struct Args {
    chunks: u64,
    points: u64,
    changed: u64,
    seed: u64,
    dir: PathBuf,
}

impl Args {
    fn parse() -> Result<Self> {
        let mut args =
            Self { chunks: 500_000, points: 10, changed: 500, seed: 1, dir: std::env::temp_dir() };
        let mut words = std::env::args().skip(1);
        while let Some(word) = words.next() {
            let value = words.next().with_context(|| format!("{word} wants a value"))?;
            match word.as_str() {
                "--chunks" => args.chunks = value.parse()?,
                "--points" => args.points = value.parse()?,
                "--changed" => args.changed = value.parse()?,
                "--seed" => args.seed = value.parse()?,
                "--dir" => args.dir = value.into(),
                other => bail!("{other} is no option"),
            }
        }
        ensure!(args.chunks >= 64 && args.points >= 2, "at least 64 chunks and 2 points");
        Ok(args)
    }
}

fn key() -> Unlock {
    Unlock::KeyFile(Secret::new(b"a key file of the collection bench!".to_vec()))
}

/// A disk as the generation of each chunk: content is made when it is asked for.
struct Disk {
    seed: u64,
    chunks: Vec<u32>,
}

impl Disk {
    fn fill(&self, index: usize, out: &mut [u8]) {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&self.seed.to_le_bytes());
        hasher.update(&(index as u64).to_le_bytes());
        hasher.update(&self.chunks[index].to_le_bytes());
        hasher.finalize_xof().fill(out);
    }

    /// Changes `count` chunks spread over the disk.
    fn change(&mut self, round: u64, count: u64) {
        let len = self.chunks.len() as u64;
        for i in 0..count {
            let mut hasher = blake3::Hasher::new();
            hasher.update(&[self.seed, round, i].map(u64::to_le_bytes).concat());
            let mut at = [0u8; 8];
            hasher.finalize_xof().fill(&mut at);
            self.chunks[(u64::from_le_bytes(at) % len) as usize] = round as u32;
        }
    }

    fn back_up(&self, repo: &Repository, machine: &str) -> Result<RecoveryPoint> {
        let base = repo.points()?.points.into_iter().rfind(|p| p.machine == machine);
        let session = repo.begin(base.as_ref())?;
        let image = session.image("disk0", "made", (self.chunks.len() * CHUNK) as u64);
        let mut scratch = WriteScratch::new()?;
        let mut data = vec![0u8; RUN * CHUNK];
        for first in (0..self.chunks.len()).step_by(RUN) {
            let count = RUN.min(self.chunks.len() - first);
            for i in 0..count {
                self.fill(first + i, &mut data[i * CHUNK..][..CHUNK]);
            }
            let run = &data[..count * CHUNK];
            image.write_chunks(ChunkIndex(first as u64), run, &mut scratch)?;
        }
        let disk = image.finish()?;
        let point = NewPoint {
            machine: machine.into(),
            time: jiff::Timestamp::now(),
            consistency: Consistency::Offline,
            origin: Origin { host: "bench".into(), tool: "collect".into() },
            note: None,
            parent: None,
            read_bytes: 0,
            hole_bytes: 0,
            copied_from: None,
        };
        Ok(session.commit(point, vec![disk])?)
    }
}

fn timed<T>(run: impl FnOnce() -> Result<T>) -> Result<(T, f64)> {
    let start = Instant::now();
    let out = run()?;
    Ok((out, start.elapsed().as_secs_f64()))
}

fn collect(repo: &Repository, dry_run: bool) -> Result<(CollectReport, f64)> {
    let options = CollectOptions { dry_run, by: "bench".into(), ..CollectOptions::default() };
    timed(|| Ok(repo.collect(&options, &NoProgress)?))
}

/// Small backups one after the other; the slowest and the median, in seconds.
fn small_backups(repo: &Repository, seed: u64, stop: &AtomicBool) -> Result<(f64, f64, usize)> {
    let mut disk = Disk { seed, chunks: vec![0; 256] };
    let mut times = Vec::new();
    for round in 1.. {
        disk.change(round, 16);
        times.push(timed(|| disk.back_up(repo, "beside"))?.1);
        if stop.load(Ordering::Relaxed) {
            break;
        }
    }
    times.sort_by(f64::total_cmp);
    let count = times.len();
    Ok((times[count - 1], times[count / 2], count))
}

fn init(location: &Location) -> Result<()> {
    let options = InitOptions {
        chunk_size: ChunkSize::new(CHUNK as u32)?,
        encryption: Encryption::Aes256Gcm,
        time: jiff::Timestamp::now(),
        parity: false,
    };
    Repository::init(location, &options, &key())?;
    Ok(())
}

fn main() -> Result<()> {
    let args = Args::parse()?;
    eprintln_seed(args.seed);
    let work = tempfile::Builder::new().prefix("backstay-collect-").tempdir_in(&args.dir)?;
    let location = Location::from_path(&work.path().join("repo"));
    init(&location)?;
    let options = OpenOptions::new(work.path().join("cache"));
    let repo = Repository::open(&location, &key(), &options)?;

    let mut disk = Disk { seed: args.seed, chunks: vec![0; args.chunks as usize] };
    let mut points = Vec::new();
    for round in 0..args.points {
        if round > 0 {
            disk.change(round, args.changed);
        }
        points.push(disk.back_up(&repo, "web01")?);
    }
    // Opened anew: nothing is left in the caches of this process.
    drop(repo);
    let repo = Repository::open(&location, &key(), &options)?;
    let (first, first_s) = collect(&repo, true)?;
    let (_, again_s) = collect(&repo, true)?;
    disk.change(args.points, args.changed);
    points.push(disk.back_up(&repo, "web01")?);
    let (_, change_s) = collect(&repo, true)?;
    // What the points refer to, shared or not: what a mark without shared trees would follow.
    let covered = args.chunks * args.points;

    let beside = Repository::open(&location, &key(), &OpenOptions::new(work.path().join("other")))?;
    let stop = AtomicBool::new(false);
    let (quiet_max, quiet_median, _) = {
        std::thread::scope(|s| {
            let small = s.spawn(|| small_backups(&beside, 7, &stop));
            std::thread::sleep(Duration::from_secs(3));
            stop.store(true, Ordering::Relaxed);
            small.join().map_err(|_| anyhow::anyhow!("a backup panicked"))?
        })?
    };
    stop.store(false, Ordering::Relaxed);
    let old: Vec<_> = points[..points.len() / 2].iter().map(|p| p.id).collect();
    let cause = Cause { by: "bench".into(), reason: "bench".into() };
    repo.remove_points(&old, &cause)?;
    let ((collected, collect_s), (busy_max, busy_median, busy_count)) =
        std::thread::scope(|s| -> Result<_> {
            let small = s.spawn(|| small_backups(&beside, 8, &stop));
            std::thread::sleep(Duration::from_millis(300));
            let collected = collect(&repo, false);
            stop.store(true, Ordering::Relaxed);
            let small = small.join().map_err(|_| anyhow::anyhow!("a backup panicked"))?;
            Ok((collected?, small?))
        })?;
    println!(
        "{{\"chunks\":{},\"points\":{},\"changed\":{},\"seed\":{},\"references\":{},\
         \"covered\":{covered},\"first_s\":{first_s:.3},\"again_s\":{again_s:.3},\
         \"after_change_s\":{change_s:.3},\"collect_s\":{collect_s:.3},\"freed_bytes\":{},\
         \"later_bytes\":{},\"quiet_max_s\":{quiet_max:.3},\"quiet_median_s\":{quiet_median:.3},\
         \"beside_max_s\":{busy_max:.3},\"beside_median_s\":{busy_median:.3},\
         \"beside_count\":{busy_count}}}",
        args.chunks,
        args.points,
        args.changed,
        args.seed,
        first.references,
        collected.freed.bytes,
        collected.later.bytes,
    );
    Ok(())
}

#[allow(clippy::print_stderr, reason = "beside the figures")]
fn eprintln_seed(seed: u64) {
    eprintln!("seed {seed} (repeat with --seed {seed})");
}
