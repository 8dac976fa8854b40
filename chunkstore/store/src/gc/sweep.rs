use std::collections::{BTreeMap, HashSet};

use backstay_format::PackId;
use backstay_format::gc::{End, Generation, Plan, Verdict};
use backstay_format::pack::PackKind;
use backstay_format::session::SessionKind;

use crate::error::{ErrorKind, Result};
use crate::index::{ChunkLocation, PackInfo, PackSet};
use crate::key::{Folder, ObjectKey};
use crate::pack::read_footer;
use crate::planted::{Fault, planted};
use crate::progress::Progress;
use crate::quarantine;
use crate::record;
use crate::repository::Inner;
use crate::session::{self, Newest, SessionInfo};

use super::mark::{Marks, mark};
use super::roots::Roots;
use super::{
    Amount, CollectOptions, CollectReport, check_newest, cleared_away, is_missing, overtaken_or,
    roots, summaries,
};

/// Ends of past collections that are kept: a node that comes back learns from them that packs were
/// collected and not lost.
const ENDS_KEPT: u64 = 8;

/// Takes a planned collection to its end, if no writer stands in its way. Tells whether it did.
pub(super) fn sweep(
    repo: &Inner,
    generation: Generation,
    options: &CollectOptions,
    report: &mut CollectReport,
    progress: &dyn Progress,
) -> Result<bool> {
    report.generation = generation;
    let plan: Plan = record::get(repo, ObjectKey::GcPlan(generation)).map_err(cleared_away)?;
    // A node that is new here does not know the packs yet that it is to tell the sizes of.
    repo.synchronise()?;
    let packs = quarantine::with_bad_packs(repo, repo.index()?.packs())?;
    let packs: BTreeMap<PackId, PackInfo> = packs.into_iter().collect();
    let verdict = match record::get::<Verdict>(repo, ObjectKey::GcVerdict(generation)) {
        Ok(verdict) => verdict,
        Err(e) if e.kind() == ErrorKind::NotFound => {
            let early = planted(Fault::RootsBeforeWriters) || planted(Fault::ProxmoxCollector);
            let early = early.then(|| roots::gather(repo));
            report.waiting_for = older_writers(repo, &plan, options, report)?;
            if !report.waiting_for.is_empty() {
                report.later = amount(&plan.condemned, &packs);
                return Ok(false);
            }
            judge(repo, &plan, early.transpose()?, report, progress)?
        }
        Err(e) => return Err(e),
    };
    // Ours or another's: where the first verdict was cleared away long ago, this is not it.
    check_newest(repo, generation, ObjectKey::GcVerdict(generation))?;
    report.later = Amount::default();
    if planted(Fault::EndBeforeDeletes) {
        let deleted = verdict.doomed.clone();
        let (kept, locked, time) = (Vec::new(), Vec::new(), repo.entropy().now());
        let end = End { generation, deleted, kept, locked, time };
        put_first(repo, ObjectKey::GcEnd(generation), &end)?;
    }
    let (deleted, locked) = delete(repo, &verdict, &packs, report)?;
    let doomed: HashSet<&PackId> = verdict.doomed.iter().collect();
    let kept: Vec<PackId> =
        plan.condemned.iter().filter(|p| !doomed.contains(p)).copied().collect();
    report.kept += amount(&kept, &packs);
    let end = End { generation, deleted, kept, locked, time: repo.entropy().now() };
    // The packs are gone: only now may writers stop to avoid those that stay.
    put_first(repo, ObjectKey::GcEnd(generation), &end)?;
    repo.index()?.collected(&end.deleted)?;
    forget_old(repo, generation)?;
    Ok(true)
}

fn amount(ids: &[PackId], packs: &BTreeMap<PackId, PackInfo>) -> Amount {
    let mut amount = Amount::default();
    for info in ids.iter().filter_map(|id| packs.get(id)) {
        amount.add(info.len);
    }
    amount
}

/// Writers that registered before the plan. Those that are dead are fenced; the others are waited
/// for. A session that only seems dead loses its commit, never data of others.
fn older_writers(
    repo: &Inner,
    plan: &Plan,
    options: &CollectOptions,
    report: &mut CollectReport,
) -> Result<Vec<SessionInfo>> {
    let mut waiting = Vec::new();
    if planted(Fault::NoWaitForWriters) || planted(Fault::ProxmoxCollector) {
        return Ok(waiting);
    }
    for s in session::open_sessions(repo)? {
        if s.kind != SessionKind::Writer || s.epoch >= plan.generation {
            continue;
        }
        let silent = plan.sessions.iter().any(|seen| seen.id == s.id && seen.beat == s.beat);
        let age = repo.entropy().now().duration_since(plan.time);
        if s.dead || (silent && age >= options.stale_after) {
            let why = if s.dead { "its process is gone" } else { "it gave no sign of life" };
            session::fence(repo, s.id, &options.by, why)?;
            report.fenced.push(s);
        } else {
            waiting.push(s);
        }
    }
    Ok(waiting)
}

/// Marks once more and writes the verdict (FORMAT.md, rule O11). From here on nothing can refer to
/// a doomed pack: who could have is over, and who registered since the plan takes it for absent.
fn judge(
    repo: &Inner,
    plan: &Plan,
    early: Option<Roots>,
    report: &mut CollectReport,
    progress: &dyn Progress,
) -> Result<Verdict> {
    let key = ObjectKey::GcVerdict(plan.generation);
    match doomed(repo, plan, early, report, progress) {
        Ok(doomed) => {
            let time = repo.entropy().now();
            put_first(repo, key, &Verdict { generation: plan.generation, doomed, time })
        }
        // A point may have been removed since, and another collector have judged after that.
        Err(e) if is_missing(&e) => {
            let known = Newest { generation: plan.generation, ended: false };
            record::get(repo, key).map_err(|_| overtaken_or(repo, known, e))
        }
        Err(e) => Err(e),
    }
}

/// The condemned packs that nothing needs.
fn doomed(
    repo: &Inner,
    plan: &Plan,
    early: Option<Roots>,
    report: &mut CollectReport,
    progress: &dyn Progress,
) -> Result<Vec<PackId>> {
    if planted(Fault::NoSecondMark) {
        return Ok(plan.condemned.clone());
    }
    let condemned: PackSet = plan.condemned.iter().copied().collect();
    let roots = early.map_or_else(|| roots::gather(repo), Ok)?;
    // After the points: each was committed when its packs were there.
    repo.synchronise()?;
    let known = summaries(repo)?;
    let marks = mark(repo, &roots, &condemned, &*known, progress)?;
    report.references += marks.references();
    let mut doomed = Vec::new();
    let sure = marks.gone().is_empty() || planted(Fault::GoneByIndexAlone);
    if !sure && !truly_gone(repo, &marks)? {
        return Ok(doomed);
    }
    let mut relied_on = HashSet::new();
    for &pack in &plan.condemned {
        if marks.pack(pack).is_none() && agrees(repo, pack, &marks, &mut relied_on)? {
            doomed.push(pack);
        }
    }
    Ok(doomed)
}

/// Whether the nodes that the index has in no pack are in none by what the packs say themselves: what
/// hangs below such a node was not marked. Only packs of nodes can have them, and those are few.
fn truly_gone(repo: &Inner, marks: &Marks) -> Result<bool> {
    for (pack, _) in repo.index()?.packs().into_iter().filter(|(_, i)| i.kind == PackKind::Tree) {
        let footer = match read_footer(repo.storage(), repo.config().id, repo.keys(), pack) {
            Ok(footer) => footer,
            Err(e) if e.kind() == ErrorKind::NotFound => continue,
            Err(error) => {
                tracing::warn!(%pack, %error, "a pack cannot be read, so all packs stay");
                return Ok(false);
            }
        };
        if let Some(e) = footer.entries.iter().find(|e| marks.gone().contains(&e.id)) {
            tracing::warn!(%pack, node = %e.id, "the index lacks a node, so all packs stay");
            return Ok(false);
        }
    }
    Ok(true)
}

/// Whether a pack may go by what it says itself: every entry stands in the index where the pack has
/// it, so that the marks speak of this pack, or is known to be bad; none is missing elsewhere; and
/// each pack that holds the copy that is needed answers. The index alone is never enough to delete
/// anything. A pack in quarantine that does not even say what it holds goes only if no chunk that
/// is needed is missing at all.
fn agrees(
    repo: &Inner,
    pack: PackId,
    marks: &Marks,
    relied_on: &mut HashSet<PackId>,
) -> Result<bool> {
    if planted(Fault::FootersNotCompared) {
        return Ok(true);
    }
    let footer = match read_footer(repo.storage(), repo.config().id, repo.keys(), pack) {
        Ok(footer) => footer,
        // Gone already: by a collector that died before it wrote the end.
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(true),
        Err(e)
            if (e.kind() == ErrorKind::Damaged || e.is_media_error())
                && repo.quarantine().has(pack)
                && marks.missing().is_empty() =>
        {
            return Ok(true);
        }
        Err(error) => {
            tracing::warn!(%pack, %error, "a condemned pack cannot be read and stays");
            return Ok(false);
        }
    };
    let index = repo.index()?;
    for (n, e) in footer.entries.iter().enumerate() {
        let here = ChunkLocation::new(pack, footer.header.kind, n, e);
        let copies = index.copies(e.id)?;
        let known = copies.contains(&here) || repo.quarantine().covers(pack, e.id);
        let only_here = marks.missing().contains(&e.id) && !planted(Fault::BadPackDeleted);
        if !known || only_here {
            tracing::warn!(%pack, chunk = %e.id, "the index and a condemned pack differ; it stays");
            return Ok(false);
        }
        let Some(needed) = copies.iter().find(|l| marks.has(l)) else { continue };
        if relied_on.insert(needed.pack) {
            repo.storage().size(ObjectKey::Pack(needed.pack))?;
        }
    }
    Ok(true)
}

/// Creates an object that several collectors may try to create: the first stands for all.
fn put_first<R: backstay_format::record::Record + Clone>(
    repo: &Inner,
    key: ObjectKey,
    record: &R,
) -> Result<R> {
    match record::put(repo, key, record) {
        Ok(()) => Ok(record.clone()),
        Err(e) if e.kind() == ErrorKind::Exists && planted(Fault::SecondJudge) => {
            Ok(record.clone())
        }
        Err(e) if e.kind() == ErrorKind::Exists => record::get(repo, key).map_err(cleared_away),
        Err(e) => Err(e),
    }
}

/// Deletes the doomed packs; tells which are gone, and which a retention lock keeps.
fn delete(
    repo: &Inner,
    verdict: &Verdict,
    packs: &BTreeMap<PackId, PackInfo>,
    report: &mut CollectReport,
) -> Result<(Vec<PackId>, Vec<PackId>)> {
    let (mut deleted, mut locked) = (Vec::new(), Vec::new());
    for &pack in &verdict.doomed {
        let len = packs.get(&pack).map_or(0, |i| i.len);
        match repo.storage().delete(ObjectKey::Pack(pack)) {
            Ok(()) => report.freed.add(len),
            Err(e) if e.kind() == ErrorKind::NotFound => {}
            // A retention lock: a later collection tries again.
            Err(e) if matches!(e.kind(), ErrorKind::Locked | ErrorKind::Denied) => {
                report.locked.add(len);
                locked.push(pack);
                continue;
            }
            Err(e) => return Err(e),
        }
        deleted.push(pack);
        match repo.storage().delete(ObjectKey::Parity(pack)) {
            Err(e)
                if !matches!(
                    e.kind(),
                    ErrorKind::NotFound | ErrorKind::Locked | ErrorKind::Denied
                ) =>
            {
                return Err(e);
            }
            _ => {}
        }
    }
    Ok((deleted, locked))
}

/// Deletes what past collections left, but the last ends.
fn forget_old(repo: &Inner, generation: Generation) -> Result<()> {
    for key in repo.storage().list(Folder::Gc)? {
        let old = match key {
            ObjectKey::GcPlan(n) | ObjectKey::GcVerdict(n) => n < generation,
            ObjectKey::GcEnd(n) => n.0 + ENDS_KEPT < generation.0,
            _ => false,
        };
        if !old {
            continue;
        }
        match repo.storage().delete(key) {
            Err(e)
                if !matches!(
                    e.kind(),
                    ErrorKind::NotFound | ErrorKind::Locked | ErrorKind::Denied
                ) =>
            {
                return Err(e);
            }
            _ => {}
        }
    }
    Ok(())
}
