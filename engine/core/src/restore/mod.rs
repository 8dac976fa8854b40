//! Restoring one disk of one recovery point, to a file, a block device or a pipe.
//!
//! Files get their final name when they are complete and durable, not before.

mod block_device;
mod copy;
mod direct;
mod qcow2;
mod raw;
mod runs;
mod stream;

use std::io::Write;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use backstay_daemon::PointDisk;
use backstay_store::{DiskRecord, RecoveryPoint, Repository};

use crate::error::{Error, ErrorKind, Result};
use crate::monitor::Monitor;
use copy::Copied;

/// Where a disk goes.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Target {
    /// A new sparse file, mode 0600, of exactly the disk's bytes.
    RawFile(PathBuf),
    /// A new qcow2 file, mode 0600. Needs `qemu-img`.
    Qcow2File(PathBuf),
    /// A block device that nobody uses and that is large enough. Not undone on failure.
    BlockDevice(PathBuf),
    /// Standard output, from first to last byte, zeros for holes.
    Stdout,
}

/// How a disk is restored.
#[derive(Debug, Clone)]
pub struct RestorePlan {
    /// Where to.
    pub target: Target,
    /// Replace a file of that name, at the end and at once. Says nothing about block devices.
    pub overwrite: bool,
    /// Threads. `None`: two for each processor, or more where the repository is far away. Never
    /// more than 16, each with some 8 MiB.
    pub workers: Option<NonZeroUsize>,
}

impl RestorePlan {
    /// To `target`, which must not exist if it is a file.
    pub fn new(target: Target) -> RestorePlan {
        RestorePlan { target, overwrite: false, workers: None }
    }
}

/// What a restore did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RestoreReport {
    /// The disk's size in bytes.
    pub size_bytes: u64,
    /// Bytes read from the repository and written.
    pub data_bytes: u64,
    /// Bytes that were holes.
    pub hole_bytes: u64,
    /// From the start until everything was durable.
    pub duration: Duration,
}

/// Restores `disk` of `point`. When this returns `Ok`, a file or device is complete and durable,
/// every byte verified against its chunk's id. On an error no file has the final name that had not
/// before. `Damaged` names the disk, the byte and, from the store, the pack.
pub fn disk(
    repo: &Repository,
    point: &RecoveryPoint,
    disk: &DiskRecord,
    plan: &RestorePlan,
    monitor: &dyn Monitor,
) -> Result<RestoreReport> {
    // Removed meanwhile, the point stays until the restore is done.
    let purpose = format!("restore of {}@{}", point.machine, point.id.short());
    let _hold = repo.hold_shared(point.id, &purpose)?;
    let overwrite = plan.overwrite;
    let restore = |workers| match &plan.target {
        Target::RawFile(path) => {
            raw::restore(&disk.name, &repo.image(disk)?, path, overwrite, workers, monitor)
        }
        Target::BlockDevice(path) => {
            block_device::restore(&disk.name, &repo.image(disk)?, path, workers, monitor)
        }
        Target::Qcow2File(path) => {
            qcow2::restore(PointDisk::open(repo, point, disk)?, path, overwrite, monitor)
        }
        Target::Stdout => {
            // A duplicate of the descriptor, because std's own handle looks for line ends in
            // everything that passes.
            let out = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdout(), 3)
                .map_err(|e| Error::new(ErrorKind::Io, "cannot use the output").caused_by(e))?;
            let mut out = std::fs::File::from(out);
            stream::restore(&disk.name, &repo.image(disk)?, &mut out, workers, monitor)
        }
    };
    timed(disk, worker_count(repo, plan.workers), monitor, restore)
}

/// Writes `disk` to `out` from first to last byte, zeros for holes, and flushes it. On an error
/// some bytes may have been written.
pub fn to_writer(
    repo: &Repository,
    disk: &DiskRecord,
    out: &mut (dyn Write + Send),
    workers: Option<NonZeroUsize>,
    monitor: &dyn Monitor,
) -> Result<RestoreReport> {
    let image = repo.image(disk)?;
    let restore = |workers| stream::restore(&disk.name, &image, out, workers, monitor);
    timed(disk, worker_count(repo, workers), monitor, restore)
}

/// Most threads: each holds a run and what it is unpacked from.
const WORKERS_MAX: usize = 16;

/// How many threads to use when `wanted` were asked for. Twice the processors otherwise: each
/// thread waits for its reads and writes in turn, while another unpacks; and as many as a distant
/// storage wants.
fn worker_count(repo: &Repository, wanted: Option<NonZeroUsize>) -> usize {
    let usual = || {
        let processors = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
        (2 * processors).max(repo.advice().reads)
    };
    wanted.map_or_else(usual, NonZeroUsize::get).min(WORKERS_MAX)
}

fn timed(
    disk: &DiskRecord,
    workers: usize,
    monitor: &dyn Monitor,
    restore: impl FnOnce(usize) -> Result<Copied>,
) -> Result<RestoreReport> {
    let started = Instant::now();
    monitor.phase("write");
    monitor.total_bytes(disk.size_bytes);
    let copied = restore(workers)?;
    Ok(RestoreReport {
        size_bytes: disk.size_bytes,
        data_bytes: copied.data_bytes,
        hole_bytes: copied.hole_bytes,
        duration: started.elapsed(),
    })
}
