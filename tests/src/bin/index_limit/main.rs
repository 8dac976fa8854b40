//! Memory and speed of the chunk index at sizes that no test can store.
//!
//! Usage: `index_limit [--chunks N] [--limit-mib N] [--delay-ms N] [--dir DIR]`. Opens a repository
//! of N chunks (packs and index objects are made when they are asked for; each call to the storage
//! takes so long) with an empty index, in a process under a memory limit of the kernel (cgroup).
//! Reads a recovery point while the index is being built, then looks chunks up, adds packs, and
//! opens the index again. Does so at a quarter and at half of the size too, and prints for each a
//! JSON object, at last one with what the peak would be at 100 million chunks.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "printing is what this program does")]

mod cgroup;
mod synthetic;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use backstay_store::testkit::{SeededEntropy, lookup};
use backstay_store::{
    ChunkIndex, ChunkSize, Consistency, Encryption, IndexChoice, InitOptions, Location,
    MemoryStorage, NewPoint, OpenOptions, Origin, RecoveryPoint, Repository, Unlock, WriteScratch,
};
use cgroup::Cgroup;
use synthetic::{Synthetic, chunk_id};

const GOAL_CHUNKS: f64 = 100e6;
const GOAL_MIB: f64 = 512.0;
const MIB: f64 = (1 << 20) as f64;
/// Chunks looked up at once: a reader's batch at the default chunk size.
const BATCH: u64 = 64;

#[derive(Clone)]
struct Args {
    chunks: u64,
    limit_mib: u64,
    delay: Duration,
    dir: PathBuf,
    role: Role,
}

#[derive(Clone, Copy)]
enum Role {
    Parent,
    Build,
    Reopen,
}

impl Args {
    fn parse() -> Result<Self> {
        let mut args = Self {
            chunks: 4_000_000,
            limit_mib: 512,
            delay: Duration::ZERO,
            dir: std::env::temp_dir(),
            role: Role::Parent,
        };
        let mut words = std::env::args().skip(1);
        while let Some(word) = words.next() {
            match word.as_str() {
                "--build" => args.role = Role::Build,
                "--reopen" => args.role = Role::Reopen,
                _ => {}
            }
            if word == "--build" || word == "--reopen" {
                continue;
            }
            let value = words.next().with_context(|| format!("{word} wants a value"))?;
            match word.as_str() {
                "--chunks" => args.chunks = value.parse()?,
                "--limit-mib" => args.limit_mib = value.parse()?,
                "--delay-ms" => args.delay = Duration::from_millis(value.parse()?),
                "--dir" => args.dir = value.into(),
                other => bail!("{other} is no option"),
            }
        }
        ensure!(args.chunks >= 100_000, "at least 100,000 chunks");
        Ok(args)
    }
}

fn main() -> Result<()> {
    let args = Args::parse()?;
    match args.role {
        Role::Parent => run(&args),
        Role::Build => build(&args),
        Role::Reopen => reopen(&args),
    }
}

fn run(args: &Args) -> Result<()> {
    let (mut peak, mut resident) = (0f64, Vec::new());
    for part in [4, 2, 1] {
        let args = Args { chunks: args.chunks / part, ..args.clone() };
        let dir = tempfile::tempdir_in(&args.dir)?;
        peak = peak.max(run_child(&args, dir.path(), "--build", "peak_mib")?);
        let left = run_child(&args, dir.path(), "--reopen", "resident_mib")?;
        resident.push((args.chunks as f64, left));
    }
    // What grows with the chunks is what an index just opened takes: it has little in its caches,
    // which are bounded, and full at the largest size.
    let [(n0, r0), _, (n2, r2)] = resident.as_slice() else { bail!("three sizes") };
    let slope = ((r2 - r0) / (n2 - n0)).max(0.0);
    let at_goal = peak + slope * (GOAL_CHUNKS - n2).max(0.0);
    println!(
        "{{\"bytes_per_chunk\":{:.3},\"peak_mib_at_100_million\":{at_goal:.1},\"goal_mib\":{GOAL_MIB}}}",
        slope * MIB
    );
    ensure!(at_goal <= GOAL_MIB, "the index would need {at_goal:.0} MiB at 100 million chunks");
    Ok(())
}

/// Measures one size in a process of its own; returns one of the values it tells.
fn run_child(args: &Args, dir: &Path, role: &str, value: &str) -> Result<f64> {
    let cgroup = Cgroup::new(args.limit_mib << 20);
    if let Err(e) = &cgroup {
        println!("SKIPPED the memory limit: {e:#}");
    }
    let mut child = Command::new(std::env::current_exe()?)
        .args([role, "--chunks", &args.chunks.to_string()])
        .args(["--limit-mib", &args.limit_mib.to_string()])
        .args(["--delay-ms", &args.delay.as_millis().to_string(), "--dir"])
        .arg(dir)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    if let Ok(cgroup) = &cgroup {
        cgroup.add(child.id()).inspect_err(|_| drop(child.kill()))?;
    }
    // It waits for the end of its input before it begins.
    drop(child.stdin.take());
    let out = child.wait_with_output()?;
    let text = String::from_utf8(out.stdout)?;
    print!("{text}");
    let size = format!("{} chunks in {} MiB", args.chunks, args.limit_mib);
    ensure!(out.status.success(), "{size}: {}", out.status);
    let told = text.split(&format!("\"{value}\":")).nth(1);
    let number = told.and_then(|t| t.split([',', '}']).next()).context("a value is missing")?;
    Ok(number.parse()?)
}

/// The repository that is measured, with one real recovery point.
fn rig(args: &Args) -> Result<(Arc<Synthetic>, RecoveryPoint, Vec<u8>)> {
    std::io::copy(&mut std::io::stdin(), &mut std::io::sink())?;
    let real = Arc::new(MemoryStorage::default());
    let options = InitOptions {
        chunk_size: ChunkSize::new(4096).context("a chunk size")?,
        encryption: Encryption::None,
        time: jiff::Timestamp::UNIX_EPOCH,
        parity: false,
    };
    let entropy = SeededEntropy::new(1);
    let repo_id = Repository::init_on(&*real, &options, &Unlock::None, &entropy)?.id;
    let disk: Vec<u8> = (0..256 * 1024u32).flat_map(|n| (n / 1024).to_le_bytes()).collect();
    let point = store(&open(real.clone(), IndexChoice::Memory)?, &disk)?;
    Ok((Arc::new(Synthetic::new(real, repo_id, args.chunks, args.delay)), point, disk))
}

/// What an index takes that was just opened, by a process that did nothing else.
fn reopen(args: &Args) -> Result<()> {
    let (storage, ..) = rig(args)?;
    let repo = open(storage, IndexChoice::Directory(args.dir.join("index")))?;
    for n in (0..args.chunks).step_by(usize::try_from(args.chunks / 100)?) {
        ensure!(lookup(&repo, &[chunk_id(n)])? == 1, "chunk {n} is there");
    }
    let resident = memory_mib("VmRSS:")?;
    println!("{{\"chunks\":{},\"resident_mib\":{resident:.2}}}", args.chunks);
    Ok(())
}

fn build(args: &Args) -> Result<()> {
    let (storage, point, disk) = rig(args)?;
    let index = || IndexChoice::Directory(args.dir.join("index"));
    let base = peak_mib()?;
    let start = Instant::now();
    let repo = open(storage.clone(), index())?;
    let mut out = vec![0; disk.len()];
    repo.image(&point.disks[0])?.read_at(0, &mut out)?;
    ensure!(out == disk, "the point reads as it was stored");
    let first_read = start.elapsed();
    repo.refresh()?;
    let complete = start.elapsed();
    let stats = repo.stats()?;
    ensure!(stats.chunks >= args.chunks, "only {} chunks are known", stats.chunks);
    let built = peak_mib()?;
    let (hits, misses) = (rate(&repo, args.chunks, true)?, rate(&repo, args.chunks, false)?);
    let looked_up = peak_mib()?;
    let start = Instant::now();
    let mut chunks = args.chunks;
    for _ in 0..3 {
        chunks = storage.grow();
        repo.refresh()?;
    }
    let grown = start.elapsed().as_secs_f64() / 3.0;
    drop(repo);
    let start = Instant::now();
    let repo = open(storage, index())?;
    ensure!(lookup(&repo, &[chunk_id(chunks - 1)])? == 1, "what was added is there");
    let reopened = start.elapsed();
    println!(
        "{{\"chunks\":{},\"packs\":{},\"limit_mib\":{},\"peak_mib\":{:.1},\"peak_before_mib\":{base:.1},\
         \"peak_built_mib\":{built:.1},\"peak_looked_up_mib\":{looked_up:.1},\"disk_bytes_per_chunk\":{:.1},\"first_read_s\":{:.2},\
         \"complete_s\":{:.1},\"built_chunks_s\":{:.0},\"hits_s\":{hits:.0},\"misses_s\":{misses:.0},\
         \"add_220160_s\":{grown:.2},\"reopen_s\":{:.3}}}",
        stats.chunks,
        stats.packs,
        args.limit_mib,
        peak_mib()?,
        bytes_in(&args.dir)? as f64 / chunks as f64,
        first_read.as_secs_f64(),
        complete.as_secs_f64(),
        args.chunks as f64 / complete.as_secs_f64(),
        reopened.as_secs_f64(),
    );
    Ok(())
}

fn open(storage: Arc<dyn backstay_store::Storage>, index: IndexChoice) -> Result<Repository> {
    let location = Location::parse("/synthetic")?;
    let options = OpenOptions { cache_bytes: 8 << 20, ..OpenOptions::new("/nonexistent") };
    let entropy = Arc::new(SeededEntropy::new(2));
    Ok(Repository::open_on(storage, location, &Unlock::None, &options, index, entropy)?)
}

fn store(repo: &Repository, disk: &[u8]) -> Result<RecoveryPoint> {
    let session = repo.begin(None)?;
    let writer = session.image("disk0", "image.raw", disk.len() as u64);
    writer.write_chunks(ChunkIndex(0), disk, &mut WriteScratch::new()?)?;
    let record = writer.finish()?;
    let new = NewPoint {
        machine: "web01".into(),
        time: jiff::Timestamp::UNIX_EPOCH,
        consistency: Consistency::Offline,
        origin: Origin { host: "test".into(), tool: "test".into() },
        note: None,
        parent: None,
        read_bytes: 0,
        hole_bytes: 0,
        copied_from: None,
    };
    Ok(session.commit(new, vec![record])?)
}

/// Lookups a second, of chunks that are there or are not, in random order.
fn rate(repo: &Repository, chunks: u64, hits: bool) -> Result<f64> {
    let random = SeededEntropy::new(3);
    let start = Instant::now();
    let (mut asked, mut spent) = (0u64, Duration::ZERO);
    while start.elapsed() < Duration::from_secs(3) {
        let beyond = if hits { 0 } else { 1 << 40 };
        let ids: Vec<_> = (0..BATCH).map(|_| chunk_id(random.below(chunks) + beyond)).collect();
        let from = Instant::now();
        let found = lookup(repo, &ids)? as u64;
        spent += from.elapsed();
        ensure!(found == if hits { BATCH } else { 0 }, "{found} of {BATCH} found, hits {hits}");
        asked += BATCH;
    }
    Ok(asked as f64 / spent.as_secs_f64())
}

/// The most memory this process had at once, without files in the page cache.
fn peak_mib() -> Result<f64> {
    memory_mib("VmHWM:")
}

fn memory_mib(what: &str) -> Result<f64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|l| l.strip_prefix(what)).context("no such line")?;
    let kib: f64 = line.trim().trim_end_matches(" kB").parse()?;
    Ok(kib / 1024.0)
}

fn bytes_in(dir: &Path) -> Result<u64> {
    let mut bytes = 0;
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        let meta = entry.metadata()?;
        bytes += if meta.is_dir() { bytes_in(&entry.path())? } else { meta.len() };
    }
    Ok(bytes)
}
