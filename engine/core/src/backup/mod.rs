//! Backing up: the disks of one machine, read side by side, become one recovery point.

pub(crate) mod changes;
pub(crate) mod feed;
pub(crate) mod read;

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::{Duration, Instant};

use backstay_store::{
    ChunkSize, Consistency, ImageWriter, NewPoint, Origin, PointId, RecoveryPoint, Repository,
};
use jiff::Timestamp;

use crate::error::{Error, ErrorKind, Result};
use crate::monitor::Monitor;
use crate::ranges::Ranges;
use crate::source::{self, OpenSource, SourceSpec, check_disk_name};
use changes::Case;
use feed::FeedDisk;
use read::{Done, Target};

pub use changes::{ChangeMap, MapUse};

/// Most worker threads; beyond this the packer is the limit, not the readers.
pub const WORKERS_MAX: usize = 8;

/// What is to be backed up, and as what.
#[derive(Debug, Clone)]
pub struct BackupPlan {
    /// The machine the recovery point belongs to.
    pub machine: String,
    /// Its disks, in order; at least one.
    pub sources: Vec<SourceSpec>,
    /// A note kept with the point.
    pub note: Option<String>,
    /// The time the point bears.
    pub time: Timestamp,
    /// Reading threads. `None`: one for each processor. Never more than [`WORKERS_MAX`].
    pub workers: Option<NonZeroUsize>,
    /// Keep the point even if an image changed while it was read, or may change unnoticed (a
    /// mounted device); it is then marked [`Consistency::Changing`].
    pub allow_changed: bool,
    /// Where the point comes from.
    pub origin: Origin,
}

impl BackupPlan {
    /// A plan with nothing special: this host, no note, changes refused.
    pub fn new(machine: impl Into<String>, sources: Vec<SourceSpec>, time: Timestamp) -> Self {
        let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
        let tool = concat!("backstay ", env!("CARGO_PKG_VERSION")).to_owned();
        BackupPlan {
            machine: machine.into(),
            sources,
            note: None,
            time,
            workers: None,
            allow_changed: false,
            origin: Origin { host, tool },
        }
    }

    /// The names the disks will have: as given, else `disk0`, `disk1`, ... by position. `Invalid`
    /// if they, or the machine's, cannot be names.
    pub fn disk_names(&self) -> Result<Vec<String>> {
        disk_names(self)
    }
}

/// What a backup did. The point's own `stats` have bytes read, holes, and what was stored.
#[derive(Debug, Clone)]
pub struct BackupReport {
    /// The new point; durable.
    pub point: RecoveryPoint,
    /// Chunks of the disks that the repository lacked. The point's stats count the nodes of the
    /// image trees too.
    pub new_chunks: u64,
    /// Chunks the repository had already.
    pub known_chunks: u64,
    /// Chunks that were read and found to be all zeros.
    pub zero_chunks: u64,
    /// Bytes taken over from an earlier point unread, on the word of change maps.
    pub kept_bytes: u64,
    /// What became of the change map of each disk, in the order of the point's disks.
    pub maps: Vec<MapUse>,
    /// From the opening of the images to the commit.
    pub duration: Duration,
}

/// Reads every disk and stores what the repository lacks. When this returns `Ok` the recovery
/// point is durable; on any error there is none, and the sources are as they were.
///
/// Of a disk with a change map only what may have changed is read. Where the map cannot be relied
/// upon the whole disk is read instead; the report and [`Monitor::problem`] tell why.
pub fn run(repo: &Repository, plan: &BackupPlan, monitor: &dyn Monitor) -> Result<BackupReport> {
    monitor.phase("open");
    disk_names(plan)?;
    run_open(repo, plan, &open_all(plan, monitor)?, monitor)
}

/// The same of sources that are open already, one for each of the plan's.
pub(crate) fn run_open(
    repo: &Repository,
    plan: &BackupPlan,
    sources: &[OpenSource],
    monitor: &dyn Monitor,
) -> Result<BackupReport> {
    let started = Instant::now();
    let names = disk_names(plan)?;
    let parent = newest_point(repo, &plan.machine)?;
    let base = changes::base(repo, &plan.machine, &plan.sources, parent.as_ref())?;
    let mut session = repo.begin_for(base.as_ref(), &format!("backup of {}", plan.machine))?;
    let distrust = changes::prepare(&mut session, base.as_ref(), &plan.sources, monitor)?;
    let writers: Vec<_> = names
        .iter()
        .zip(plan.sources.iter().zip(sources))
        .map(|(name, (spec, open))| {
            session.image(name, &spec.path.display().to_string(), open.size_bytes)
        })
        .collect();
    let job = Job { plan, names: &names, sources, writers: &writers, monitor };
    let (reads, maps) = job.settle_maps(base.as_ref(), distrust.as_deref());
    let (done, changing) = job.read(reads, repo.config().chunk_size)?;

    monitor.phase("commit");
    let disks = writers.into_iter().map(|w| w.finish()).collect::<Result<Vec<_>, _>>()?;
    let live = changing || sources.iter().any(|s| s.in_use);
    let point = session.commit(
        NewPoint {
            machine: plan.machine.clone(),
            time: plan.time,
            consistency: if live { Consistency::Changing } else { Consistency::Offline },
            origin: plan.origin.clone(),
            note: plan.note.clone(),
            parent: parent.map(|p: RecoveryPoint| -> PointId { p.id }),
            read_bytes: done.read_bytes,
            hole_bytes: done.hole_bytes,
            copied_from: None,
        },
        disks,
    )?;
    Ok(BackupReport {
        point,
        new_chunks: done.new_chunks,
        known_chunks: done.known_chunks,
        zero_chunks: done.zero_chunks,
        kept_bytes: done.kept_bytes,
        maps,
        duration: started.elapsed(),
    })
}

/// A backup whose images are open.
struct Job<'a> {
    plan: &'a BackupPlan,
    names: &'a [String],
    sources: &'a [OpenSource],
    writers: &'a [ImageWriter],
    monitor: &'a dyn Monitor,
}

impl Job<'_> {
    /// What must be read of each disk (`None`: all of it), and what became of its change map.
    fn settle_maps(
        &self,
        base: Option<&RecoveryPoint>,
        distrust: Option<&str>,
    ) -> (Vec<Option<Ranges>>, Vec<MapUse>) {
        let specs = self.plan.sources.iter().zip(self.sources);
        let disks = self.names.iter().zip(self.writers).zip(specs);
        let one = |((disk, writer), (spec, open)): (
            (&String, &ImageWriter),
            (&SourceSpec, &OpenSource),
        )| {
            let machine = &self.plan.machine;
            let case = Case { machine, disk, size_bytes: open.size_bytes, base, distrust };
            let settled = case.settle(spec.changes.as_ref(), writer);
            if let MapUse::Refused(why) = &settled.1 {
                self.monitor.problem(&format!("disk {disk} is read as a whole: {why}"));
            }
            settled
        };
        disks.map(one).unzip()
    }

    /// Reads the disks, and tells whether one changed meanwhile.
    fn read(&self, reads: Vec<Option<Ranges>>, chunk_size: ChunkSize) -> Result<(Done, bool)> {
        let Job { plan, names, sources, writers, monitor } = *self;
        monitor.phase("read");
        monitor.total_bytes(sources.iter().map(|s| s.size_bytes).sum());
        let targets: Vec<_> =
            names.iter().zip(writers).map(|(name, writer)| Target { name, writer }).collect();
        let disks = sources.iter().zip(reads);
        let disks = disks.map(|(s, read)| FeedDisk { device: Arc::clone(&s.device), read });
        let workers = worker_count(plan.workers);
        let read = read::all(&targets, disks.collect(), chunk_size, workers, monitor);
        // An image that shrinks makes reads fail: the change is then the thing to tell.
        let change = first_change(sources)?;
        match (read, &change) {
            (Err(error), Some(change)) if error.kind() != ErrorKind::Cancelled => {
                Err(changed(change).caused_by(error))
            }
            (Err(error), _) => Err(error),
            (Ok(_), Some(change)) if !plan.allow_changed => Err(changed(change)),
            (Ok(done), change) => {
                if let Some(change) = change {
                    monitor.problem(&format!("{change} while it was read"));
                }
                Ok((done, change.is_some()))
            }
        }
    }
}

/// How many threads to use when `wanted` were asked for.
pub(crate) fn worker_count(wanted: Option<NonZeroUsize>) -> usize {
    let wanted = wanted.or_else(|| std::thread::available_parallelism().ok());
    wanted.map_or(1, NonZeroUsize::get).min(WORKERS_MAX)
}

fn changed(change: &str) -> Error {
    Error::new(
        ErrorKind::SourceChanged,
        format!(
            "{change} while it was read; no recovery point was made: stop the writer or back up a \
             snapshot, or allow changes to keep it all the same"
        ),
    )
}

fn first_change(sources: &[OpenSource]) -> Result<Option<String>> {
    for source in sources {
        if let Some(change) = source.change()? {
            return Ok(Some(change));
        }
    }
    Ok(None)
}

fn open_all(plan: &BackupPlan, monitor: &dyn Monitor) -> Result<Vec<OpenSource>> {
    let mut sources = Vec::with_capacity(plan.sources.len());
    for spec in &plan.sources {
        if monitor.cancelled() {
            return Err(Error::new(ErrorKind::Cancelled, "the backup was cancelled"));
        }
        let open = source::open(spec)?;
        open.warnings.iter().for_each(|warning| monitor.problem(warning));
        if open.in_use {
            let what = format!("{} is mounted or otherwise in use", spec.path.display());
            if !plan.allow_changed {
                return Err(Error::new(
                    ErrorKind::InUse,
                    format!("{what}: back up a snapshot of it, or allow changes"),
                ));
            }
            monitor.problem(&what);
        }
        sources.push(open);
    }
    Ok(sources)
}

/// The names of the disks: as given, else `disk0`, `disk1`, ... by position, skipping names that
/// were given to others.
fn disk_names(plan: &BackupPlan) -> Result<Vec<String>> {
    use backstay_format::limits::DISKS_MAX;
    let invalid = |what: String| Err(Error::new(ErrorKind::Invalid, what));
    backstay_format::point::check_name("machine", &plan.machine)
        .map_err(|e| Error::new(ErrorKind::Invalid, e.to_string()))?;
    if plan.sources.is_empty() || plan.sources.len() > DISKS_MAX {
        return invalid(format!(
            "{} images were named; a machine has 1 to {DISKS_MAX} disks",
            plan.sources.len()
        ));
    }
    let mut taken: Vec<&str> = Vec::new();
    for name in plan.sources.iter().filter_map(|s| s.name.as_deref()) {
        check_disk_name(name)?;
        if taken.contains(&name) {
            return invalid(format!("two disks are named `{name}`"));
        }
        taken.push(name);
    }
    let mut numbers = (0u32..).map(|n| format!("disk{n}")).filter(|n| !taken.contains(&n.as_str()));
    let names = plan.sources.iter().map(|s| s.name.clone().or_else(|| numbers.next()));
    Ok(names.map(Option::unwrap_or_default).collect())
}

/// The newest readable point of `machine`, to recognise unchanged chunks by.
fn newest_point(repo: &Repository, machine: &str) -> Result<Option<RecoveryPoint>> {
    let points = repo.points()?.points;
    Ok(points.into_iter().filter(|p| p.machine == machine).max_by_key(|p| (p.time, p.id)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(given: &[Option<&str>]) -> Result<Vec<String>> {
        let sources = given
            .iter()
            .map(|name| SourceSpec { name: name.map(str::to_owned), ..SourceSpec::new("x.img") });
        disk_names(&BackupPlan::new("m", sources.collect(), Timestamp::UNIX_EPOCH))
    }

    #[test]
    fn disks_are_numbered_around_given_names() {
        assert_eq!(names(&[None, None]).unwrap(), ["disk0", "disk1"]);
        assert_eq!(names(&[Some("root"), None, None]).unwrap(), ["root", "disk0", "disk1"]);
        assert_eq!(names(&[None, Some("disk0")]).unwrap(), ["disk1", "disk0"]);
        for bad in [vec![], vec![Some("a"), Some("a")], vec![Some("a/b")], vec![None; 1025]] {
            assert_eq!(names(&bad).unwrap_err().kind(), ErrorKind::Invalid);
        }
    }

    #[test]
    fn workers_are_capped() {
        assert_eq!(worker_count(NonZeroUsize::new(1000)), WORKERS_MAX);
        assert_eq!(worker_count(NonZeroUsize::new(1)), 1);
        assert!(worker_count(None) >= 1);
    }
}
