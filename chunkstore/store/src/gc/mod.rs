//! Garbage collection: taking back the space of what no recovery point needs, while backups,
//! restores and removals go on. `chunkstore/docs/LOCKS.md` says why it is safe.
//!
//! A collection has three steps, each an object that only one collector can create: the *plan*
//! condemns packs that nothing refers to, and thin ones whose live chunks were copied elsewhere;
//! from then on writers see them as absent. When every writer that registered before the plan is
//! over, roots are read and marked once more, and the *verdict* names the packs that are still not
//! needed. They are deleted; the *end* says so. A collector that dies is continued by the next.

mod decide;
mod follow;
mod mark;
mod repack;
mod roots;
mod summary;
mod sweep;

use std::ops::AddAssign;
use std::sync::Arc;

use backstay_format::PackId;
use backstay_format::gc::{End, Generation, Plan, SeenSession};
use jiff::{SignedDuration, Timestamp};

use crate::error::{Error, ErrorKind, Result};
use crate::index::PackSet;
use crate::key::ObjectKey;
use crate::planted::{Fault, planted};
use crate::progress::Progress;
use crate::quarantine;
use crate::record;
use crate::repository::{Inner, consolidate, load_point_cached};
use crate::session::{self, Newest, SessionInfo};

use decide::Decision;
use mark::mark;
use roots::Roots;
pub(crate) use summary::MemorySummaries;
use summary::{RocksSummaries, Summaries};

/// How a collection goes about its work.
#[derive(Clone, Debug)]
pub struct CollectOptions {
    /// Only tell what would be done; write nothing.
    pub dry_run: bool,
    /// Copy live chunks out of thinly filled packs.
    pub repack: bool,
    /// Repack until at most this share of the stored bytes is waste.
    pub waste_percent: u8,
    /// Most bytes of live chunks to copy in one collection.
    pub repack_bytes: u64,
    /// How long a writer on another host must have been silent before it is fenced.
    pub stale_after: SignedDuration,
    /// Who collects, for the record.
    pub by: String,
}

impl Default for CollectOptions {
    fn default() -> Self {
        Self {
            dry_run: false,
            repack: true,
            waste_percent: 5,
            repack_bytes: 64 << 30,
            stale_after: SignedDuration::from_mins(30),
            by: String::new(),
        }
    }
}

/// Packs and their bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Amount {
    /// How many packs.
    pub packs: u64,
    /// Their bytes.
    pub bytes: u64,
}

impl Amount {
    fn add(&mut self, bytes: u64) {
        self.packs += 1;
        self.bytes += bytes;
    }
}

impl AddAssign for Amount {
    fn add_assign(&mut self, other: Self) {
        self.packs += other.packs;
        self.bytes += other.bytes;
    }
}

/// The newest collection, as far as its records tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LastCollection {
    /// Its number.
    pub generation: Generation,
    /// When it ended, by its collector's clock; nothing while it waits for sessions, or while its
    /// collector is at work or has died.
    pub ended: Option<Timestamp>,
    /// When it was planned; nothing once it has ended.
    pub planned: Option<Timestamp>,
    /// Packs that it deleted, or that it has condemned when it has not ended.
    pub packs: u64,
}

/// Reads what the newest collection left. Nothing if there was none.
pub(crate) fn last_collection(repo: &Inner) -> Result<Option<LastCollection>> {
    let newest = session::newest(repo)?;
    let generation = newest.generation;
    if generation == Generation::default() {
        return Ok(None);
    }
    if newest.ended {
        let end: End = record::get(repo, ObjectKey::GcEnd(generation))?;
        let packs = end.deleted.len() as u64;
        return Ok(Some(LastCollection {
            generation,
            ended: Some(end.time),
            planned: None,
            packs,
        }));
    }
    let plan: Plan = record::get(repo, ObjectKey::GcPlan(generation))?;
    let packs = plan.condemned.len() as u64;
    Ok(Some(LastCollection { generation, ended: None, planned: Some(plan.time), packs }))
}

/// What a collection did, or would do.
#[derive(Clone, Debug, Default)]
pub struct CollectReport {
    /// The collection's number; zero when there was nothing to plan.
    pub generation: Generation,
    /// Recovery points whose chunks were marked.
    pub points: u64,
    /// References followed while marking.
    pub references: u64,
    /// All packs.
    pub stored: Amount,
    /// Packs that nothing refers to.
    pub dead: Amount,
    /// Thinly filled packs whose live chunks are copied elsewhere.
    pub repacked: Amount,
    /// Bytes copied out of them.
    pub copied_bytes: u64,
    /// Deleted now.
    pub freed: Amount,
    /// Condemned, and deleted when the sessions in `waiting_for` are over.
    pub later: Amount,
    /// Condemned packs that stay: used again meanwhile, or not as the index says.
    pub kept: Amount,
    /// Packs under a retention lock: their turn comes in a later collection.
    pub locked: Amount,
    /// Writers that registered before the plan and may refer to condemned packs.
    pub waiting_for: Vec<SessionInfo>,
    /// Writers that were taken for dead and may not commit any more.
    pub fenced: Vec<SessionInfo>,
    /// Records of removed points that were deleted.
    pub buried: u64,
    /// Chunks that points refer to and no pack has: a check names what is damaged.
    pub missing_chunks: u64,
}

/// Collects.
pub(crate) fn collect(
    repo: &Inner,
    options: &CollectOptions,
    progress: &dyn Progress,
) -> Result<CollectReport> {
    let mut report = CollectReport::default();
    if !options.dry_run {
        repo.storage().tidy()?;
        session::clear(repo)?;
        report.fenced = session::retire_dead(repo, &options.by)?;
    }
    let newest = session::newest(repo)?;
    if !newest.ended && !options.dry_run {
        report.generation = newest.generation;
        // A collection before this one: it goes first.
        let done = sweep::sweep(repo, newest.generation, options, &mut report, progress)?;
        if !done {
            return Ok(report);
        }
    }
    let Some(plan) = make_plan(repo, options, &mut report, progress)? else {
        if !options.dry_run {
            // What a collector left that died after its deletions.
            quarantine::forget_gone(repo)?;
        }
        return Ok(report);
    };
    let done = sweep::sweep(repo, plan, options, &mut report, progress)?;
    repo.storage().refill_reserve();
    quarantine::forget_gone(repo)?;
    if done && let Err(error) = consolidate(repo) {
        // The collection is over. What index objects say is derived, and the next one tries again.
        tracing::warn!(%error, "the index objects were not merged");
    }
    Ok(report)
}

/// Decides what to condemn, copies what must be saved, and writes the plan. Nothing if there is
/// nothing to condemn, or on a dry run.
fn make_plan(
    repo: &Inner,
    options: &CollectOptions,
    report: &mut CollectReport,
    progress: &dyn Progress,
) -> Result<Option<Generation>> {
    let newest = session::newest(repo)?;
    // Never beside one that goes on: its verdict stands, and what it deletes may be what this one
    // would rely on.
    if !newest.ended && !options.dry_run && !planted(Fault::PlansBesideAnother) {
        return Err(overtaken());
    }
    // Spoken for already: what the last collection could not delete yet, or on a dry run what one
    // that waits has condemned.
    let condemned = session::condemned(repo, newest).map_err(cleared_away)?;
    repo.synchronise()?;
    // The packs first: whoever wrote one of these is either among the sessions that are listed
    // next, or over, and then its point is among the points listed after them.
    let mut candidates = quarantine::with_bad_packs(repo, repo.index()?.packs())?;
    let mut spoken_for = Amount::default();
    candidates.retain(|(id, info)| {
        let free = !condemned.contains(id);
        if !free {
            spoken_for.add(info.len);
        }
        free
    });
    let roots = roots::gather(repo)?;
    if !options.dry_run {
        report.buried += bury(repo, &roots)?;
    }
    // Once more: of the points just listed some were not there yet when the packs were listed.
    repo.synchronise()?;
    let known = summaries(repo)?;
    let marks = mark(repo, &roots, &PackSet::new(), &*known, progress)
        .map_err(|e| overtaken_or(repo, newest, e))?;
    if !marks.missing().is_empty() && session::newest(repo)? != newest {
        return Err(overtaken());
    }
    report.points = (roots.points.len() + roots.held.len()) as u64;
    report.references += marks.references();
    report.missing_chunks = marks.missing().len() as u64;
    let mut decision = decide::decide(repo, &candidates, &marks, &roots, options);
    decision.tell(report);
    if options.dry_run {
        // What an earlier collection condemned would go first, or is under a retention lock.
        *(if newest.ended { &mut report.locked } else { &mut report.later }) += spoken_for;
    }
    // Packs of a writer that seems to be dead: the plan notes its last sign of life, and a later
    // collection fences it if there was none since.
    let suspects = decision.undecided && roots.any_writer_older_than(repo, options.stale_after);
    if options.dry_run || (decision.is_empty() && !suspects) {
        return Ok(None);
    }
    if !decision.thin.is_empty() {
        repack::repack(repo, &mut decision, &marks, report, progress)?;
    }
    let Decision { mut dead, thin, .. } = decision;
    dead.extend(thin);
    dead.extend(condemned.iter().copied());
    write_plan(repo, newest.generation.next(), dead, &roots, options).map(Some)
}

fn write_plan(
    repo: &Inner,
    generation: Generation,
    mut condemned: Vec<PackId>,
    roots: &Roots,
    options: &CollectOptions,
) -> Result<Generation> {
    condemned.sort();
    condemned.dedup();
    let seen = |s: &SessionInfo| SeenSession { id: s.id, beat: s.beat };
    let plan = Plan {
        generation,
        condemned,
        sessions: roots.sessions.iter().map(seen).collect(),
        by: options.by.clone(),
        time: repo.entropy().now(),
    };
    let key = ObjectKey::GcPlan(generation);
    match record::put(repo, key, &plan) {
        Ok(()) => {}
        Err(e) if e.kind() == ErrorKind::Exists => return Err(overtaken()),
        Err(e) => return Err(e),
    }
    check_newest(repo, generation, key)?;
    Ok(generation)
}

/// Whether collection `generation` is still the newest and goes on. A collector that slept may have
/// created `key` in the place of one that was cleared away long ago: nobody heeds it, and it goes.
fn check_newest(repo: &Inner, generation: Generation, key: ObjectKey) -> Result<()> {
    let newest = session::newest(repo)?;
    let as_known = newest.generation == generation && !newest.ended;
    if as_known || planted(Fault::StaleVerdictHeeded) {
        return Ok(());
    }
    match repo.storage().delete(key) {
        Err(e) if e.kind() != ErrorKind::NotFound => Err(e),
        _ => Err(overtaken()),
    }
}

/// What cannot be followed may have been removed, and taken by another collection, meanwhile: then
/// nothing is damaged.
fn overtaken_or(repo: &Inner, known: Newest, e: Error) -> Error {
    match session::newest(repo) {
        Ok(newest) if is_missing(&e) && newest != known => overtaken(),
        _ => e,
    }
}

/// The objects of a collection go when a later one is over.
fn cleared_away(e: Error) -> Error {
    if e.kind() == ErrorKind::NotFound { overtaken() } else { e }
}

/// Whether the error says that something needed is not there.
fn is_missing(e: &Error) -> bool {
    matches!(e.kind(), ErrorKind::Damaged | ErrorKind::NotFound)
}

fn overtaken() -> Error {
    let text = "another collection runs at the same time; this one leaves the work to it";
    Error::new(ErrorKind::Busy, text)
}

/// What earlier collections of this host remember. Damage that was found since may mean that other
/// copies count now: then nothing is remembered. An error if it is not known what is damaged.
fn summaries(repo: &Inner) -> Result<Arc<dyn Summaries>> {
    let known: Arc<dyn Summaries> = match repo.marks_dir() {
        None => repo.summaries().clone(),
        Some(dir) => match RocksSummaries::open(&dir) {
            Ok(known) => Arc::new(known),
            Err(error) => {
                tracing::warn!(%error, "all references are followed");
                Arc::new(MemorySummaries::default())
            }
        },
    };
    // The records that the index follows by now, not those that are listed: a summary made while
    // one of them was unknown here must not outlive it.
    repo.follow_quarantine()?;
    repo.quarantine().check_readable()?;
    let mut hasher = blake3::Hasher::new();
    hasher.update(b"1");
    for id in repo.quarantine().records() {
        hasher.update(ObjectKey::Quarantine(id).path().as_bytes());
    }
    known.stamp(hasher.finalize().as_bytes());
    Ok(known)
}

/// Deletes the records of removed points that nothing holds: first the point, then its removal, so
/// that it never shows again.
fn bury(repo: &Inner, roots: &Roots) -> Result<u64> {
    let mut buried = 0;
    for &id in &roots.removed {
        let mut keys = match load_point_cached(repo, id) {
            Ok(Some(_)) => vec![ObjectKey::Point(id), ObjectKey::Removal(id)],
            // Gone already; or a fence came in its place, which must stay and is no point.
            Ok(None) => vec![ObjectKey::Removal(id)],
            Err(e) if e.kind() == ErrorKind::NotFound => vec![ObjectKey::Removal(id)],
            // What cannot be read may be a fence; it stays hidden.
            Err(_) => continue,
        };
        if planted(Fault::RemovalDeletedFirst) {
            keys.reverse();
        }
        for key in keys {
            match repo.storage().delete(key) {
                Ok(()) => {}
                Err(e) if e.kind() == ErrorKind::NotFound => {}
                // Under a retention lock; it stays hidden.
                Err(e) if matches!(e.kind(), ErrorKind::Locked | ErrorKind::Denied) => break,
                Err(e) => return Err(e),
            }
        }
        repo.points().remove(&id);
        buried += 1;
    }
    Ok(buried)
}
