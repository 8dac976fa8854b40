//! Checking: that every recovery point can be restored, and what is lost where one cannot. Keeps no
//! state and writes nothing; [`crate::verify`] is the check for every day.

use backstay_format::PackId;
use backstay_format::verified::Level;

use crate::check_index::Footers;
use crate::error::Result;
use crate::key::{Folder, ObjectKey};
use crate::pack::{PackFooter, read_footer};
use crate::parity;
use crate::progress::Progress;
use crate::quarantine::lost;
use crate::repository::{Inner, Repository};
use crate::seal::Decoder;
use crate::verify::{
    BadCopies, Damage, DamageKind, Findings, Healed, Verdict, check_objects, check_with_parity,
    readable_points, stopped, walk_all,
};

/// What to check.
#[derive(Clone, Copy, Debug, Default)]
pub struct CheckOptions {
    /// Read every stored byte, not only records, footers and trees.
    pub read_data: bool,
}

/// The outcome of a check. Clean when `damage` is empty and `damage_left_out` is zero.
#[derive(Clone, Debug, Default)]
pub struct CheckReport {
    /// Recovery points checked.
    pub points: u64,
    /// Packs checked.
    pub packs: u64,
    /// Chunks checked: found in a present pack, and with `read_data` decoded.
    pub chunks: u64,
    /// Bytes of packs read.
    pub read_bytes: u64,
    /// Packs of which this host's index disagreed with the footer. It was put right.
    pub index_corrected: u64,
    /// What was found.
    pub damage: Vec<Damage>,
    /// Findings beyond the most that a report lists.
    pub damage_left_out: u64,
}

pub(crate) fn check(
    repo: &Repository,
    inner: &Inner,
    options: &CheckOptions,
    progress: &dyn Progress,
) -> Result<CheckReport> {
    let mut report = CheckReport::default();
    let mut findings = Findings::default();
    // Points first: all packs that a visible point needs are there (rule O2), so the listing of
    // packs that follows has them, also while backups go on.
    let list = repo.points_afresh()?;
    inner.synchronise()?;
    check_objects(inner, &mut findings, progress)?;
    let bad = check_all_packs(inner, options, &mut report, &mut findings, progress)?;
    report.points = list.damaged.len() as u64;
    let points = readable_points(list, &mut findings);
    report.points += points.len() as u64;
    report.chunks = walk_all(inner, &points, &bad, &Healed::new(), &mut findings, progress)?;
    report.damage = findings.damage;
    report.damage_left_out = findings.left_out;
    Ok(report)
}

/// Checks footers, and with `read_data` every chunk of every pack. What is in quarantine is known
/// already: it counts only where something is lost with it.
fn check_all_packs(
    inner: &Inner,
    options: &CheckOptions,
    report: &mut CheckReport,
    findings: &mut Findings,
    progress: &dyn Progress,
) -> Result<BadCopies> {
    let mut bad = BadCopies::default();
    let packs = inner.storage().list(Folder::Packs)?;
    progress.total("packs", packs.len() as u64);
    let mut decoder = Decoder::new()?;
    let mut footers = Footers::default();
    let parity = if options.read_data { parity::present(inner)? } else { Default::default() };
    for key in packs {
        stopped(progress)?;
        let ObjectKey::Pack(id) = key else { continue };
        report.packs += 1;
        progress.add("packs", 1);
        if inner.quarantine().is_whole(id) {
            continue;
        }
        let footer = footer_only(inner, id)?;
        let verdict = if options.read_data {
            let has = parity.contains(&id);
            let checked = check_with_parity(inner, id, Level::Full, has, &mut decoder)?;
            report.read_bytes += checked.read_bytes;
            if let Some(e) = checked.parity.filter(|_| !inner.quarantine().has(id)) {
                findings.add(DamageKind::Object(ObjectKey::Parity(id).path()), &e);
            }
            checked.verdict
        } else {
            footer.verdict
        };
        if let Some(footer) = footer.footer {
            report.index_corrected += u64::from(footers.compare(inner, footer.into_table())?);
        }
        match verdict {
            Verdict::Gone | Verdict::Whole => {}
            Verdict::Bad { chunks: None, .. } if all_in_quarantine(inner, id)? => {}
            Verdict::Unsupported { reason } | Verdict::Bad { chunks: None, reason, .. } => {
                // What this host's index says of it may serve all the same: reading will tell.
                bad.add_whole(id);
                findings.add_text(DamageKind::Pack(id), reason);
            }
            Verdict::Bad { chunks: Some(chunks), at_risk, reason } => {
                let mut fresh = at_risk.iter().any(|c| !inner.quarantine().covers(id, *c));
                for (chunk, why) in chunks {
                    if !inner.quarantine().covers(id, chunk) {
                        fresh = true;
                        bad.add(id, chunk, &why);
                    }
                }
                if fresh {
                    findings.add_text(DamageKind::Pack(id), reason);
                }
            }
        }
    }
    footers.compare_objects(inner, findings)?;
    Ok(bad)
}

/// Whether everything in a pack that does not say what it holds is known to count as absent.
fn all_in_quarantine(inner: &Inner, pack: PackId) -> Result<bool> {
    let known = inner.quarantine();
    let table = if known.has(pack) { inner.table_of(pack)? } else { None };
    Ok(table.is_some_and(|t| t.entries.iter().all(|e| known.covers(pack, e.id))))
}

/// A pack's footer, and what becomes of the pack by it alone.
struct Foot {
    verdict: Verdict,
    footer: Option<PackFooter>,
}

fn footer_only(inner: &Inner, pack: PackId) -> Result<Foot> {
    let none = |verdict| Ok(Foot { verdict, footer: None });
    match read_footer(inner.storage(), inner.config().id, inner.keys(), pack) {
        Ok(footer) => Ok(Foot { verdict: Verdict::Whole, footer: Some(footer) }),
        Err(e) if e.kind() == crate::ErrorKind::NotFound => none(Verdict::Gone),
        Err(e) if lost(&e) || e.is_media_error() => {
            let reason = e.whole_story();
            none(Verdict::Bad { chunks: None, at_risk: Vec::new(), reason })
        }
        Err(e) => Err(e),
    }
}
