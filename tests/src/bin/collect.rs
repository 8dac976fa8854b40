//! How fast a collection marks, whether its cost follows the change, and what a backup beside it
//! feels, for `cargo xtask bench gc`.
//!
//! Usage: `collect [--chunks N] [--points N,N] [--changed N] [--runs N] [--seed N] [--dir DIR]`.
//! Writes a repository of one machine whose disk has N chunks of 4 KiB, so many recovery points of
//! which each changes so many chunks, and prints one JSON object. All collections but the last are
//! dry runs: they mark as others do, and leave everything for the next.
#![allow(clippy::print_stdout, reason = "printing is what this program does")]

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use backstay_store::{
    Cause, ChunkIndex, ChunkSize, CollectOptions, CollectReport, Consistency, Encryption,
    ErrorKind, InitOptions, Location, NewPoint, NoProgress, OpenOptions, Origin, RecoveryPoint,
    Repository, Secret, Unlock, WriteScratch,
};

const CHUNK: usize = 4096;
/// Chunks handed to the writer at once.
const RUN: usize = 64;
/// How long backups with nobody beside them are measured.
const QUIET: Duration = Duration::from_secs(4);
/// Backups before those that count.
const WARM_UP: usize = 3;

struct Args {
    chunks: u64,
    points: Vec<u64>,
    changed: u64,
    runs: u64,
    seed: u64,
    dir: PathBuf,
}

impl Args {
    fn parse() -> Result<Self> {
        let mut args = Self {
            chunks: 500_000,
            points: vec![10, 100],
            changed: 500,
            runs: 3,
            seed: 1,
            dir: std::env::temp_dir(),
        };
        let mut words = std::env::args().skip(1);
        while let Some(word) = words.next() {
            let value = words.next().with_context(|| format!("{word} wants a value"))?;
            match word.as_str() {
                "--chunks" => args.chunks = value.parse()?,
                "--points" => {
                    args.points = value.split(',').map(str::parse).collect::<Result<_, _>>()?;
                }
                "--changed" => args.changed = value.parse()?,
                "--runs" => args.runs = value.parse()?,
                "--seed" => args.seed = value.parse()?,
                "--dir" => args.dir = value.into(),
                other => bail!("{other} is no option"),
            }
        }
        ensure!(args.chunks >= 64 && args.runs >= 1, "at least 64 chunks and one run");
        let grows = args.points.is_sorted() && args.points.first().is_some_and(|n| *n >= 2);
        ensure!(grows, "at least 2 points, and more each time");
        Ok(args)
    }
}

fn key() -> Unlock {
    Unlock::KeyFile(Secret::new(b"a key file of the collection bench!".to_vec()))
}

/// A disk as the generation of each chunk: content is made when it is asked for.
struct Disk {
    seed: u64,
    machine: &'static str,
    chunks: Vec<u32>,
    /// Chunks that differ from the newest point, in ascending order.
    changed: Vec<usize>,
    round: u64,
    base: Option<RecoveryPoint>,
    /// Points that could not build upon the one before.
    distrusted: u64,
}

impl Disk {
    fn new(seed: u64, machine: &'static str, chunks: u64) -> Self {
        let chunks = vec![0; chunks as usize];
        Self { seed, machine, chunks, changed: Vec::new(), round: 0, base: None, distrusted: 0 }
    }

    fn fill(&self, index: usize, out: &mut [u8]) {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&self.seed.to_le_bytes());
        hasher.update(&(index as u64).to_le_bytes());
        hasher.update(&self.chunks[index].to_le_bytes());
        hasher.finalize_xof().fill(out);
    }

    /// Changes `count` chunks spread over the disk.
    fn change(&mut self, count: u64) {
        self.round += 1;
        let len = self.chunks.len() as u64;
        for i in 0..count {
            let mut hasher = blake3::Hasher::new();
            hasher.update(&[self.seed, self.round, i].map(u64::to_le_bytes).concat());
            let mut at = [0u8; 8];
            hasher.finalize_xof().fill(&mut at);
            let at = (u64::from_le_bytes(at) % len) as usize;
            self.chunks[at] = self.round as u32;
            self.changed.push(at);
        }
        self.changed.sort_unstable();
        self.changed.dedup();
    }

    /// A point of the disk: all of it the first time, and then what changed.
    fn back_up(&mut self, repo: &Repository) -> Result<RecoveryPoint> {
        let mut session = repo.begin(self.base.as_ref())?;
        let trusted = match &self.base {
            None => false,
            Some(base) => match session.trust_base(base, &NoProgress) {
                Ok(()) => true,
                // What a collection deletes meanwhile is in doubt until it has ended; then all is
                // written, as `backstay backup` does it.
                Err(e) if e.kind() == ErrorKind::Damaged => false,
                Err(e) => return Err(e.into()),
            },
        };
        self.distrusted += u64::from(self.base.is_some() && !trusted);
        let image = session.image("disk0", "made", (self.chunks.len() * CHUNK) as u64);
        let mut scratch = WriteScratch::new()?;
        let mut data = vec![0u8; RUN * CHUNK];
        if trusted {
            let mut next = 0;
            for &at in &self.changed {
                self.fill(at, &mut data[..CHUNK]);
                image.write_chunks(ChunkIndex(at as u64), &data[..CHUNK], &mut scratch)?;
                if at > next {
                    image.keep(ChunkIndex(next as u64), (at - next) as u64)?;
                }
                next = at + 1;
            }
            if self.chunks.len() > next {
                image.keep(ChunkIndex(next as u64), (self.chunks.len() - next) as u64)?;
            }
        } else {
            for first in (0..self.chunks.len()).step_by(RUN) {
                let count = RUN.min(self.chunks.len() - first);
                for i in 0..count {
                    self.fill(first + i, &mut data[i * CHUNK..][..CHUNK]);
                }
                let run = &data[..count * CHUNK];
                image.write_chunks(ChunkIndex(first as u64), run, &mut scratch)?;
            }
        }
        let disk = image.finish()?;
        let point = NewPoint {
            machine: self.machine.into(),
            time: jiff::Timestamp::now(),
            consistency: Consistency::Offline,
            origin: Origin { host: "bench".into(), tool: "collect".into() },
            note: None,
            parent: None,
            read_bytes: 0,
            hole_bytes: 0,
            copied_from: None,
        };
        let point = session.commit(point, vec![disk])?;
        self.changed.clear();
        self.base = Some(point.clone());
        Ok(point)
    }
}

/// What one collection took.
#[derive(Clone, Copy, Default)]
struct Cost {
    wall_s: f64,
    /// Of all threads of this process, which does nothing else.
    cpu_s: f64,
    /// Bytes read with system calls, from the repository and from what is remembered of it.
    read: u64,
    /// The calls.
    reads: u64,
    references: u64,
}

/// Processor time of this process in seconds, bytes read and calls, as the kernel counts them.
fn used() -> Result<(f64, u64, u64)> {
    let cpu = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    let io = std::fs::read_to_string("/proc/self/io")?;
    let field = |name: &str| {
        let line = io.lines().find_map(|line| line.strip_prefix(name));
        line.and_then(|n| n.trim().parse().ok()).with_context(|| format!("no {name} in {io}"))
    };
    Ok((cpu.tv_sec as f64 + cpu.tv_nsec as f64 / 1e9, field("rchar:")?, field("syscr:")?))
}

fn collect(repo: &Repository, dry_run: bool) -> Result<(CollectReport, Cost)> {
    let options = CollectOptions { dry_run, by: "bench".into(), ..CollectOptions::default() };
    let (start, before) = (Instant::now(), used()?);
    let report = repo.collect(&options, &NoProgress)?;
    let (wall_s, after) = (start.elapsed().as_secs_f64(), used()?);
    let cost = Cost {
        wall_s,
        cpu_s: after.0 - before.0,
        read: after.1 - before.1,
        reads: after.2 - before.2,
        references: report.references,
    };
    Ok((report, cost))
}

/// The median of each figure by itself.
fn median(costs: &[Cost]) -> Cost {
    fn middle<T: PartialOrd + Copy + Default>(costs: &[Cost], of: impl Fn(&Cost) -> T) -> T {
        let mut all: Vec<T> = costs.iter().map(of).collect();
        all.sort_by(|a, b| a.partial_cmp(b).unwrap_or(std::cmp::Ordering::Equal));
        all.get(all.len() / 2).copied().unwrap_or_default()
    }
    Cost {
        wall_s: middle(costs, |c| c.wall_s),
        cpu_s: middle(costs, |c| c.cpu_s),
        read: middle(costs, |c| c.read),
        reads: middle(costs, |c| c.reads),
        references: middle(costs, |c| c.references),
    }
}

fn json(cost: &Cost) -> String {
    let Cost { wall_s, cpu_s, read, reads, references } = cost;
    format!(
        "{{\"wall_s\":{wall_s:.4},\"cpu_s\":{cpu_s:.4},\"read_bytes\":{read},\"reads\":{reads},\
         \"references\":{references}}}"
    )
}

/// One small backup after the other, as long as `go_on` says; when each began, and how long it took.
fn small_backups(
    repo: &Repository,
    disk: &mut Disk,
    go_on: impl Fn(usize) -> bool,
) -> Result<Vec<(Instant, Duration)>> {
    let mut times = Vec::new();
    while go_on(times.len()) {
        disk.change(16);
        let start = Instant::now();
        disk.back_up(repo)?;
        times.push((start, start.elapsed()));
    }
    Ok(times)
}

/// Seconds of the longest and of the median one.
fn longest_and_median(times: &[(Instant, Duration)]) -> Result<(f64, f64)> {
    let mut times: Vec<f64> = times.iter().map(|(_, time)| time.as_secs_f64()).collect();
    times.sort_by(f64::total_cmp);
    let longest = times.last().context("no backup was made meanwhile")?;
    Ok((*longest, times[times.len() / 2]))
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

fn open(location: &Location, cache: &Path) -> Result<Repository> {
    let repo = Repository::open(location, &key(), &OpenOptions::new(cache.to_owned()))?;
    repo.refresh()?;
    Ok(repo)
}

fn main() -> Result<()> {
    let args = Args::parse()?;
    eprintln_seed(args.seed);
    let work = tempfile::Builder::new().prefix("backstay-collect-").tempdir_in(&args.dir)?;
    let location = Location::from_path(&work.path().join("repo"));
    init(&location)?;
    let cache = work.path().join("cache");
    let mut disk = Disk::new(args.seed, "web01", args.chunks);
    let mut points = vec![disk.back_up(&open(&location, &cache)?)?];
    let mut out = format!(
        "{{\"chunks\":{},\"changed\":{},\"runs\":{},\"seed\":{}",
        args.chunks, args.changed, args.runs, args.seed
    );
    let cold = cold(&args, &location, work.path())?;
    let _ = write!(out, ",\"cold\":{},\"later\":[", json(&cold));
    for (i, count) in args.points.iter().enumerate() {
        let cost = later(&args, *count, &location, &cache, &mut disk, &mut points)?;
        let comma = if i == 0 { "" } else { "," };
        let _ = write!(out, "{comma}{{\"points\":{},\"cost\":{}}}", points.len(), json(&cost));
    }
    let beside = beside(&location, work.path(), &points)?;
    println!("{out}],\"beside\":{beside}}}");
    Ok(())
}

/// The first collection of a node that has the index and remembers nothing else: every reference
/// of the one point is followed.
fn cold(args: &Args, location: &Location, work: &Path) -> Result<Cost> {
    let mut costs = Vec::new();
    for run in 0..args.runs {
        let cache = work.join(format!("cold-{run}"));
        // Opened twice: what it takes to build the index is not part of it.
        drop(open(location, &cache)?);
        costs.push(collect(&open(location, &cache)?, true)?.1);
        std::fs::remove_dir_all(&cache)?;
    }
    Ok(median(&costs))
}

/// Collections that remember the one before, one change later, with so many points in all.
fn later(
    args: &Args,
    count: u64,
    location: &Location,
    cache: &Path,
    disk: &mut Disk,
    points: &mut Vec<RecoveryPoint>,
) -> Result<Cost> {
    let mut back_up = |repo: &Repository| -> Result<()> {
        disk.change(args.changed);
        points.push(disk.back_up(repo)?);
        Ok(())
    };
    let repo = open(location, cache)?;
    let made = disk_points(&repo)?;
    for _ in made..count.saturating_sub(args.runs) {
        back_up(&repo)?;
    }
    collect(&repo, true)?;
    drop(repo);
    let mut costs = Vec::new();
    for _ in 0..args.runs {
        back_up(&open(location, cache)?)?;
        // Opened anew: nothing is left in the memory of this process.
        costs.push(collect(&open(location, cache)?, true)?.1);
    }
    Ok(median(&costs))
}

fn disk_points(repo: &Repository) -> Result<u64> {
    Ok(repo.points()?.points.len() as u64)
}

/// Small backups with nobody beside them, and beside a collection that frees half of the points.
fn beside(location: &Location, work: &Path, points: &[RecoveryPoint]) -> Result<String> {
    let backups = open(location, &work.join("other"))?;
    let mut small = Disk::new(7, "beside", 256);
    small_backups(&backups, &mut small, |made| made < WARM_UP)?;
    let end = Instant::now() + QUIET;
    let quiet = small_backups(&backups, &mut small, |_| Instant::now() < end)?;
    let old: Vec<_> = points[..points.len() / 2].iter().map(|p| p.id).collect();
    // A cache of its own: it remembers nothing, and so has all there is to do.
    let repo = open(location, &work.join("collector"))?;
    let cause = Cause { by: "bench".into(), reason: "bench".into() };
    repo.remove_points(&old, &cause)?;
    let stop = AtomicBool::new(false);
    let (start, collected, end, mut times) = std::thread::scope(|scope| -> Result<_> {
        let backups =
            scope.spawn(|| small_backups(&backups, &mut small, |_| !stop.load(Ordering::Relaxed)));
        std::thread::sleep(Duration::from_millis(300));
        let start = Instant::now();
        let collected = collect(&repo, false);
        let end = Instant::now();
        stop.store(true, Ordering::Relaxed);
        let times = backups.join().map_err(|_| anyhow::anyhow!("a backup panicked"))??;
        Ok((start, collected?, end, times))
    })?;
    times.retain(|(began, time)| *began < end && *began + *time > start);
    let (quiet_max, quiet_median) = longest_and_median(&quiet)?;
    let (max, median) = longest_and_median(&times)?;
    let (report, cost) = collected;
    // What waited for the backups beside it to end goes now.
    let freed = report.freed.bytes + collect(&repo, false)?.0.freed.bytes;
    Ok(format!(
        "{{\"collect_s\":{:.3},\"stored_bytes\":{},\"freed_bytes\":{},\"later_bytes\":{},\
         \"copied_bytes\":{},\"quiet_max_s\":{quiet_max:.4},\"quiet_median_s\":{quiet_median:.4},\
         \"quiet_count\":{},\"max_s\":{max:.4},\"median_s\":{median:.4},\"count\":{},\"whole\":{}}}",
        cost.wall_s,
        report.stored.bytes,
        freed,
        report.later.bytes,
        report.copied_bytes,
        quiet.len(),
        times.len(),
        small.distrusted
    ))
}

#[allow(clippy::print_stderr, reason = "beside the figures")]
fn eprintln_seed(seed: u64) {
    eprintln!("seed {seed} (repeat with --seed {seed})");
}
