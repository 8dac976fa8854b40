//! Copying recovery points from one repository to another.
//!
//! The two may have other keys and other sizes of chunks, so data is read, named, cut and sealed
//! anew. What did not change since the point before is neither read nor written, as far as the
//! destination has that point too.

mod disk;
mod point;
#[cfg(test)]
mod tests;
mod verify;

use std::collections::HashMap;
use std::num::NonZeroUsize;

use backstay_store::{PointId, RecoveryPoint, RepoId, Repository};

use crate::backup::worker_count;
use crate::error::{Error, ErrorKind, Result};
use crate::monitor::Monitor;
use disk::StoredDisk;
use point::{Arrived, Twins, Way};

/// Which points of the source are wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Select {
    /// All.
    All,
    /// Those of one machine.
    Machine(String),
    /// These.
    Points(Vec<PointId>),
}

/// What of a copy is read back from the destination's storage and compared with its source, before
/// the copy becomes visible.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Verify {
    /// Nothing.
    None,
    /// What was not taken over from a point that the destination had.
    #[default]
    Written,
    /// Every disk as a whole.
    Full,
}

/// What is to be copied, and how.
#[derive(Debug, Clone)]
pub struct CopyPlan {
    /// Which points.
    pub select: Select,
    /// What is read back.
    pub verify: Verify,
    /// Copy nothing; tell what would be copied.
    pub dry_run: bool,
    /// Threads. `None`: one for each processor. Never more than [`crate::backup::WORKERS_MAX`].
    pub workers: Option<NonZeroUsize>,
}

impl CopyPlan {
    /// A plan with nothing special: what is written is read back.
    pub fn new(select: Select) -> Self {
        Self { select, verify: Verify::default(), dry_run: false, workers: None }
    }
}

/// What became of one point.
#[derive(Debug)]
pub enum Outcome {
    /// The destination had it already, as this point.
    Present(PointId),
    /// It would be copied.
    Planned {
        /// Bytes of its disks that would be read, at most.
        read_bytes: u64,
    },
    /// It was copied; durable.
    Copied {
        /// The copy. Its stats tell what was read and stored.
        point: Box<RecoveryPoint>,
        /// Bytes taken over from the point before, unread.
        kept_bytes: u64,
        /// Bytes read back and compared.
        verified_bytes: u64,
    },
    /// It was not copied, for this reason; the destination has no such point.
    Failed(Error),
}

/// A wanted point and what became of it.
#[derive(Debug)]
pub struct PointCopy {
    /// The point, as it is in the source.
    pub source: RecoveryPoint,
    /// What became of it.
    pub outcome: Outcome,
}

/// What a copy did.
#[derive(Debug, Default)]
pub struct CopyReport {
    /// The wanted points, oldest first, up to where the copy ended.
    pub points: Vec<PointCopy>,
    /// Points of the source whose records cannot be read, with the reason; they may have been
    /// wanted.
    pub unreadable: Vec<(PointId, Error)>,
    /// What ended the copy before all wanted points had their turn: the destination failed, or the
    /// monitor asked for the end.
    pub stopped: Option<Error>,
}

impl CopyReport {
    /// Whether every wanted point is in the destination now, or would be.
    pub fn is_complete(&self) -> bool {
        let failed = |p: &PointCopy| matches!(p.outcome, Outcome::Failed(_));
        self.stopped.is_none() && self.unreadable.is_empty() && !self.points.iter().any(failed)
    }
}

/// Who a point is, wherever it is: where it was first made, and its id there.
type Identity = (RepoId, PointId);

fn identity(repo: &Repository, point: &RecoveryPoint) -> Identity {
    match point.copied_from {
        Some(from) => (from.repository, from.point),
        None => (repo.config().id, point.id),
    }
}

/// Copies points that the destination lacks, oldest first, each whole or not at all: killed at any
/// moment, the next run goes on. A point that cannot be read does not stop the others.
///
/// `NotFound`: a point or machine that was named is not there. `Invalid`: both are one repository.
/// What goes wrong later is told in the report.
pub fn run(
    from: &Repository,
    to: &Repository,
    plan: &CopyPlan,
    monitor: &dyn Monitor,
) -> Result<CopyReport> {
    if same_place(from, to) {
        let text = format!("{} cannot be copied to itself", from.location());
        return Err(Error::new(ErrorKind::Invalid, text));
    }
    let mut job = Job::new(from, to)?;
    let wanted = job.wanted(&plan.select)?;
    let workers = worker_count(plan.workers);
    let way = Way { from, to, verify: plan.verify, workers, monitor };
    for (number, &at) in wanted.iter().enumerate() {
        let outcome = match job.copies.get(&identity(from, &job.points[at])) {
            Some(copy) => Outcome::Present(copy.id),
            None if monitor.cancelled() => {
                job.report.stopped =
                    Some(Error::new(ErrorKind::Cancelled, "the copy was cancelled"));
                break;
            }
            None if plan.dry_run => job.estimate(at)?,
            None => match job.copy(&way, at, &format!("{}/{}", number + 1, wanted.len())) {
                Ok(outcome) => outcome,
                Err(stopped) => {
                    job.report.stopped = Some(stopped);
                    break;
                }
            },
        };
        job.report.points.push(PointCopy { source: job.points[at].clone(), outcome });
    }
    Ok(job.report)
}

/// Whether both are the same directory; a copy of one made by other means has the same id and is
/// another repository all the same.
fn same_place(a: &Repository, b: &Repository) -> bool {
    let place = |r: &Repository| {
        let path = r.location().directory()?;
        Some(path.canonicalize().unwrap_or_else(|_| path.to_path_buf()))
    };
    let same = a.location() == b.location() || (place(a).is_some() && place(a) == place(b));
    a.config().id == b.config().id && same
}

/// The points of both sides.
struct Job<'a> {
    from: &'a Repository,
    to: &'a Repository,
    /// The source's, oldest first.
    points: Vec<RecoveryPoint>,
    /// The destination's, by who they are.
    copies: HashMap<Identity, RecoveryPoint>,
    /// In a dry run: points of the source that would have been copied by now.
    planned: Vec<PointId>,
    report: CopyReport,
}

impl<'a> Job<'a> {
    fn new(from: &'a Repository, to: &'a Repository) -> Result<Self> {
        let list = from.points()?;
        let copies = to.points()?.points.into_iter().map(|p| (identity(to, &p), p)).collect();
        let unreadable = list.damaged.into_iter().map(|(id, e)| (id, e.into())).collect();
        let report = CopyReport { unreadable, ..CopyReport::default() };
        Ok(Job { from, to, points: list.points, copies, planned: Vec::new(), report })
    }

    /// The positions of the wanted points, oldest first.
    fn wanted(&mut self, select: &Select) -> Result<Vec<usize>> {
        let of = |fits: &dyn Fn(&RecoveryPoint) -> bool| -> Vec<usize> {
            (0..self.points.len()).filter(|i| fits(&self.points[*i])).collect()
        };
        let not_found = |what: String| Err(Error::new(ErrorKind::NotFound, what));
        match select {
            Select::All => Ok(of(&|_| true)),
            Select::Machine(name) => match of(&|p| p.machine == *name) {
                none if none.is_empty() => {
                    not_found(format!("the source has no points of machine {name}"))
                }
                some => Ok(some),
            },
            Select::Points(ids) => {
                let there = |id: &PointId| {
                    self.points.iter().any(|p| p.id == *id)
                        || self.report.unreadable.iter().any(|(bad, _)| bad == id)
                };
                if let Some(id) = ids.iter().find(|id| !there(id)) {
                    return not_found(format!("the source has no point {id}"));
                }
                let wanted = of(&|p| ids.contains(&p.id));
                self.report.unreadable.retain(|(id, _)| ids.contains(id));
                Ok(wanted)
            }
        }
    }

    /// The point of the same machine nearest before this one, or else after it, that both sides
    /// have.
    fn base(&self, at: usize) -> Option<Twins<'_>> {
        let machine = &self.points[at].machine;
        let twins = |source: &'_ usize| {
            let source = &self.points[*source];
            let copy = self.copies.get(&identity(self.from, source))?;
            (source.machine == *machine).then_some((source.id, copy))
        };
        let found = (0..at).rev().find_map(|i| Some((i, twins(&i)?)));
        let found =
            found.or_else(|| (at + 1..self.points.len()).find_map(|i| Some((i, twins(&i)?))));
        found.map(|(i, (_, copy))| Twins { source: &self.points[i], copy })
    }

    /// Copies one point. An error ends the whole copy.
    fn copy(&mut self, way: &Way<'_>, at: usize, label: &str) -> Result<Outcome> {
        let source = &self.points[at];
        let parent = source.parent.and_then(|id| self.points.iter().find(|p| p.id == id));
        let parent = parent.and_then(|p| self.copies.get(&identity(self.from, p)));
        match way.point(source, self.base(at), parent, label) {
            Ok(Arrived::Before(copy)) => {
                let id = copy.id;
                self.copies.insert(identity(self.from, source), copy);
                Ok(Outcome::Present(id))
            }
            Ok(Arrived::Copied { point, done, verified_bytes }) => {
                self.copies.insert(identity(self.from, source), point.clone());
                let kept_bytes = done.kept_bytes;
                Ok(Outcome::Copied { point: Box::new(point), kept_bytes, verified_bytes })
            }
            Err(f) if f.error.kind() == ErrorKind::Cancelled => Err(f.error),
            // Damage is of one point; whatever else the destination says, it says of the next too.
            Err(f) if f.of_source || f.error.kind() == ErrorKind::Damaged => {
                Ok(Outcome::Failed(f.error))
            }
            Err(f) => Err(f.error),
        }
    }

    /// What copying would read, at most. Reads image trees only.
    fn estimate(&mut self, at: usize) -> Result<Outcome> {
        let source = &self.points[at];
        let there = |p: &RecoveryPoint| {
            p.machine == source.machine
                && (self.planned.contains(&p.id)
                    || self.copies.contains_key(&identity(self.from, p)))
        };
        let before = self.points[..at].iter().rev().find(|p| there(p));
        let before = before.or_else(|| self.points[at + 1..].iter().find(|p| there(p)));
        let mut read_bytes = 0;
        for disk in &source.disks {
            let changed = before
                .and_then(|b| b.disk(&disk.name))
                .and_then(|b| point::difference(self.from, b, disk).ok());
            let bytes = match changed {
                Some(changed) => {
                    let chunk = self.to.config().chunk_size.bytes().into();
                    Ok(changed.aligned(chunk, disk.size_bytes).total_bytes())
                }
                None => self
                    .from
                    .image(disk)
                    .map_err(Error::from)
                    .and_then(|image| Ok(StoredDisk::new(image).data_bytes()?)),
            };
            match bytes {
                Ok(bytes) => read_bytes += bytes,
                Err(e) => return Ok(Outcome::Failed(e)),
            }
        }
        let id = source.id;
        self.planned.push(id);
        Ok(Outcome::Planned { read_bytes })
    }
}
