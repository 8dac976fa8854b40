//! Verifying: reading packs again, a part each time, the longest unread first; and naming what is
//! lost where something is bad.
//!
//! What was found bad goes to quarantine (FORMAT.md): it counts as absent from then on. What was
//! verified when is kept in the repository, so that any node goes on where another stopped.

mod damage;
mod facts;
mod keyless;
mod objects;
mod pack;
mod run;
mod status;
mod walk;

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use backstay_format::PackId;
use backstay_format::point::RecoveryPoint;
use backstay_format::verified::Level;
use jiff::{SignedDuration, Timestamp};

use crate::check_index::Footers;
use crate::error::{Error, ErrorKind, Result};
use crate::gc::Amount;
use crate::key::ObjectKey;
use crate::parity;
use crate::progress::Progress;
use crate::repository::{Inner, PointList, Repository};

pub use damage::{Damage, DamageKind};
pub use keyless::{KeylessOptions, PackCheckReport};
pub use status::{AGE_DAYS, VerifyStatus};

pub(crate) use damage::Findings;
pub(crate) use facts::Facts;
pub(crate) use keyless::check_packs;
pub(crate) use objects::check_objects;
pub(crate) use pack::{Verdict, check_pack, check_with_parity};
pub(crate) use status::stored_packs;
pub(crate) use walk::{BadCopies, Healed, Lost, Walker, stopped, walk_all};

use run::{Run, State};

/// What to verify, and how much of it now.
#[derive(Clone, Debug)]
pub struct VerifyOptions {
    /// How thoroughly.
    pub level: Level,
    /// Read about this many bytes of packs, but at least one pack.
    pub max_bytes: Option<u64>,
    /// Begin no other pack after this time, but read at least one.
    pub max_time: Option<Duration>,
    /// Leave out packs that were verified at this level within this time.
    pub older_than: Option<SignedDuration>,
    /// Only these packs; all when empty.
    pub packs: Vec<PackId>,
    /// Threads that read, each with one pack in memory.
    pub threads: usize,
    /// Write down what was read, and put what is found bad into quarantine.
    pub record: bool,
}

impl Default for VerifyOptions {
    fn default() -> Self {
        Self {
            level: Level::Full,
            max_bytes: None,
            max_time: None,
            older_than: None,
            packs: Vec::new(),
            threads: 2,
            record: true,
        }
    }
}

/// The outcome of a verification. Nothing is damaged, as far as was looked, when `damage` is empty
/// and `damage_left_out` is zero.
#[derive(Clone, Debug, Default)]
pub struct VerifyReport {
    /// Packs read.
    pub packs: u64,
    /// Their bytes.
    pub read_bytes: u64,
    /// Chunks decoded and compared with their ids.
    pub chunks: u64,
    /// Packs that a collection deleted meanwhile.
    pub gone: u64,
    /// Packs left out because they were verified not long ago.
    pub recent: Amount,
    /// Packs left for the next time because the budget was spent.
    pub left: Amount,
    /// Recovery points whose trees were followed; nothing where the budget was spent before and no
    /// damage is known.
    pub points: Option<u64>,
    /// Packs in which something new was found bad, and that was written down.
    pub quarantined_packs: u64,
    /// Chunks in them that count as absent from now on; a pack that does not say what it holds
    /// adds none.
    pub quarantined_chunks: u64,
    /// Packs without parity, in a repository whose packs should have it.
    pub without_parity: u64,
    /// What was found: packs and other objects first, then the ranges of disks that are lost, each
    /// once.
    pub damage: Vec<Damage>,
    /// Findings beyond the most that a report lists.
    pub damage_left_out: u64,
    /// Why findings could not be written down, where they could not.
    pub unsaved: Option<String>,
    /// How old the last verification of each pack is now.
    pub status: Option<VerifyStatus>,
}

/// The recovery points with records that can be read, and findings about those that cannot.
pub(crate) fn readable_points(list: PointList, findings: &mut Findings) -> Vec<Arc<RecoveryPoint>> {
    for (id, e) in &list.damaged {
        findings.add(DamageKind::Point(*id), e);
    }
    list.points.into_iter().map(Arc::new).collect()
}

/// Verifies.
pub(crate) fn verify(
    repo: &Repository,
    inner: &Inner,
    options: &VerifyOptions,
    progress: &dyn Progress,
) -> Result<VerifyReport> {
    find(repo, inner, options, progress).map(|(report, _)| report)
}

/// [`verify`], with the copies that were found bad just now.
pub(crate) fn find(
    repo: &Repository,
    inner: &Inner,
    options: &VerifyOptions,
    progress: &dyn Progress,
) -> Result<(VerifyReport, BadCopies)> {
    // Points first: all packs that a visible point needs are there (rule O2), so the listing of
    // packs that follows has them, also while backups go on.
    let list = repo.points_afresh()?;
    inner.synchronise()?;
    let facts = Facts::load(inner)?;
    let mut report = VerifyReport::default();
    let stored = stored_packs(inner)?;
    let queue = choose(inner, options, &facts, &stored, &mut report)?;
    let parity = parity::present(inner)?;
    if inner.config().has_parity() {
        report.without_parity = stored.iter().filter(|(id, _)| !parity.contains(id)).count() as u64;
    }
    progress.total("packs", queue.len() as u64);
    let State { queue, mut facts, bad, findings: packs, report: done, .. } =
        Run::new(inner, options, progress, facts, queue, parity).go()?;
    report = VerifyReport { recent: report.recent, without_parity: report.without_parity, ..done };
    for (_, len) in &queue {
        status::add(&mut report.left, *len);
    }
    inner.follow_quarantine()?;
    let mut findings = Findings::default();
    check_objects(inner, &mut findings, progress)?;
    Footers::default().compare_objects(inner, &mut findings)?;
    let points = readable_points(list, &mut findings);
    findings.damage.extend(packs.damage);
    findings.left_out += packs.left_out;
    let known = !bad.is_empty() || !inner.quarantine().is_empty() || !findings.is_empty();
    if queue.is_empty() || known {
        walk_all(inner, &points, &bad, &Healed::new(), &mut findings, progress)?;
        report.points = Some(points.len() as u64);
    }
    let everything = queue.is_empty() && report.recent.packs == 0 && options.packs.is_empty();
    if everything && options.level == Level::Full && options.record {
        supersede_unreadable(inner, &facts, &report)?;
    }
    report.damage = findings.damage;
    report.damage_left_out = findings.left_out;
    let present: HashSet<PackId> = stored.iter().map(|(id, _)| *id).collect();
    if options.record
        && report.unsaved.is_none()
        && let Err(e) = facts.merge(inner, &present)
    {
        tracing::warn!(error = %e, "records of verified packs cannot be merged");
    }
    report.status = Some(status::status(inner, &facts, &stored_packs(inner)?, options.level));
    Ok((report, bad))
}

/// How old the last verification of each pack is.
pub(crate) fn status(inner: &Inner, level: Level) -> Result<VerifyStatus> {
    inner.synchronise()?;
    Ok(status::status(inner, &Facts::load(inner)?, &stored_packs(inner)?, level))
}

/// The packs to read, those never verified first, then by age.
fn choose(
    inner: &Inner,
    options: &VerifyOptions,
    facts: &Facts,
    stored: &[(PackId, u64)],
    report: &mut VerifyReport,
) -> Result<VecDeque<(PackId, u64)>> {
    let now = inner.entropy().now();
    let mut chosen: Vec<(Option<Timestamp>, PackId, u64)> = Vec::new();
    let wanted: HashSet<PackId> = options.packs.iter().copied().collect();
    for &(id, len) in stored {
        if !wanted.is_empty() && !wanted.contains(&id) {
            continue;
        }
        let last = facts.newest(id, options.level, now).map(|f| f.time);
        let recent = |t: Timestamp| options.older_than.is_some_and(|a| now.duration_since(t) < a);
        if last.is_some_and(recent) {
            status::add(&mut report.recent, len);
            continue;
        }
        chosen.push((last, id, len));
    }
    if let Some(id) = wanted.iter().find(|id| !stored.iter().any(|(s, _)| s == *id)) {
        return Err(Error::new(ErrorKind::NotFound, format!("there is no pack {id}")));
    }
    chosen.sort();
    Ok(chosen.into_iter().map(|(_, id, len)| (id, len)).collect())
}

/// Takes away records of damage and of verified packs that cannot be read: every pack was read just
/// now, so all that they may have said is known again and written down.
fn supersede_unreadable(inner: &Inner, facts: &Facts, report: &VerifyReport) -> Result<()> {
    if report.unsaved.is_some() {
        return Ok(());
    }
    let damage = inner.quarantine().unreadable().into_iter().map(ObjectKey::Quarantine);
    let verified = facts.unreadable().iter().map(|id| ObjectKey::Verified(*id));
    for key in damage.chain(verified) {
        match inner.storage().delete(key) {
            Ok(()) => {}
            Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::Denied) => {}
            Err(e) => return Err(e),
        }
    }
    inner.learn_quarantine()
}
