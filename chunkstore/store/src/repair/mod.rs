//! Repairing: storing again what was lost, from whoever still has it.
//!
//! A repair deletes and overwrites nothing. What it finds bad goes to quarantine; what it heals
//! goes into new packs; and at its end it looks at everything once more and says what is left.

mod derive;
mod heal;
mod image;
mod rebuilt;
mod sink;
mod source;
mod wanted;
mod writer;

use backstay_format::PointId;
use backstay_format::limits::POINT_PAYLOAD_MAX;
use backstay_format::magic;
use backstay_format::point::RecoveryPoint;
use backstay_format::verified::Level;

use crate::check_index::Footers;
use crate::error::{Error, ErrorKind, Result};
use crate::key::ObjectKey;
use crate::parity;
use crate::progress::Progress;
use crate::record;
use crate::repository::{Inner, PointList, Repository};
use crate::seal::Decoder;
use crate::verify::{
    self, BadCopies, Damage, DamageKind, Findings, Verdict, VerifyOptions, VerifyReport,
    check_objects, check_pack, walk_all,
};

pub use image::{ImageBytes, ImageSource};
pub use source::{ChunkSource, DiskPlace, RepositorySource, WantedChunk};

use heal::Healer;

/// How a repair goes about its work.
#[derive(Debug)]
pub struct RepairOptions {
    /// Where to look for what the repository has lost, in this order.
    pub sources: Vec<Box<dyn ChunkSource>>,
    /// Only tell what could be healed; write nothing.
    pub dry_run: bool,
    /// Read every pack first, to find all that is bad. Without, only what is known already and
    /// what is missing is repaired.
    pub read_data: bool,
}

impl Default for RepairOptions {
    fn default() -> Self {
        Self { sources: Vec::new(), dry_run: false, read_data: true }
    }
}

/// What one source healed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HealedBy {
    /// The source.
    pub by: String,
    /// Chunks and tree nodes.
    pub chunks: u64,
    /// Their bytes, decoded.
    pub bytes: u64,
}

/// The outcome of a repair. The repository is whole again, as far as was looked, when `left` is
/// empty and `left_out` is zero.
#[derive(Clone, Debug, Default)]
pub struct RepairReport {
    /// What reading the packs found.
    pub found: VerifyReport,
    /// Chunks and tree nodes that no whole copy was left of.
    pub wanted: u64,
    /// What was healed, by source.
    pub healed: Vec<HealedBy>,
    /// Parity objects that were damaged and made anew of packs that are whole.
    pub parity_renewed: u64,
    /// Bytes of new packs.
    pub stored_bytes: u64,
    /// The session that wrote the new packs.
    pub session: Option<PointId>,
    /// What is still damaged.
    pub left: Vec<Damage>,
    /// Findings beyond the most that a report lists.
    pub left_out: u64,
    /// Whether nothing was written.
    pub dry_run: bool,
}

/// Repairs.
pub(crate) fn repair(
    repo: &Repository,
    inner: &Inner,
    options: &mut RepairOptions,
    progress: &dyn Progress,
) -> Result<RepairReport> {
    let mut report = RepairReport { dry_run: options.dry_run, ..RepairReport::default() };
    let mut bad = BadCopies::default();
    if options.read_data {
        let how = VerifyOptions { record: !options.dry_run, ..VerifyOptions::default() };
        (report.found, bad) = verify::find(repo, inner, &how, progress)?;
        if let Some(reason) = &report.found.unsaved {
            let text = format!("what was found bad cannot be written down: {reason}");
            return Err(Error::new(ErrorKind::Io, text));
        }
    } else {
        inner.synchronise()?;
    }
    let list = repo.points_afresh()?;
    inner.synchronise()?;
    let mut findings = Findings::default();
    let points = points(inner, list, &mut options.sources, &mut findings)?;
    let mut healer = Healer::new(inner, &bad, &mut options.sources, !options.dry_run, progress);
    healer.run(&points)?;
    let healed = healer.finish(&mut report)?;
    // What was found bad is in quarantine by now, and the index knows the new packs.
    inner.synchronise()?;
    check_objects(inner, &mut findings, progress)?;
    Footers::default().compare_objects(inner, &mut findings)?;
    // A pack that was found bad is superseded where all that is needed is whole elsewhere. One that
    // only a newer program can read is not.
    for damage in &report.found.damage {
        if let DamageKind::Pack(pack) = damage.kind
            && !bad.has_pack(pack)
        {
            findings.add_text(damage.kind.clone(), damage.reason.clone());
        }
    }
    renew_parity(inner, &bad, &mut report, &mut findings)?;
    check_new_packs(inner, &report, &mut bad, &mut findings)?;
    walk_all(inner, &points, &bad, &healed, &mut findings, progress)?;
    report.left = findings.damage;
    report.left_out = findings.left_out;
    Ok(report)
}

/// The points that can be read. Those that cannot are findings, with who has them whole: an object
/// is never written over, so a person must put it back.
fn points(
    inner: &Inner,
    mut list: PointList,
    sources: &mut [Box<dyn ChunkSource>],
    findings: &mut Findings,
) -> Result<Vec<std::sync::Arc<RecoveryPoint>>> {
    for (id, e) in std::mem::take(&mut list.damaged) {
        let mut reason = e.whole_story();
        for source in &mut *sources {
            let Some(bytes) = source.point_object(id)? else { continue };
            if decode_point(inner, id, &bytes).is_ok() {
                reason = format!(
                    "{reason}; {} has it whole: put its file points/{id} in place of the damaged \
                     one, which is never written over",
                    source.name()
                );
                break;
            }
        }
        findings.add_text(DamageKind::Point(id), reason);
    }
    Ok(verify::readable_points(list, findings))
}

/// Whether bytes are the record of a point of this repository: sealed with its key, and bound to
/// the point's name.
fn decode_point(inner: &Inner, id: PointId, bytes: &[u8]) -> Result<RecoveryPoint> {
    let key = ObjectKey::Point(id);
    let payload = record::open(inner, key, magic::POINT, POINT_PAYLOAD_MAX, bytes)?;
    RecoveryPoint::decode(&payload, id, inner.config().chunk_size)
        .map_err(|e| Error::format(format!("recovery point {id} is damaged"), e))
}

/// Makes damaged parity anew where the pack is whole.
fn renew_parity(
    inner: &Inner,
    bad: &BadCopies,
    report: &mut RepairReport,
    findings: &mut Findings,
) -> Result<()> {
    for &pack in &bad.parity {
        if bad.has_pack(pack) {
            continue;
        }
        if !report.dry_run
            && let Err(e) = parity::renew(inner, pack)
        {
            findings.add(DamageKind::Object(ObjectKey::Parity(pack).path()), &e);
            continue;
        }
        report.parity_renewed += 1;
    }
    Ok(())
}

/// Reads back what the repair stored.
fn check_new_packs(
    inner: &Inner,
    report: &RepairReport,
    bad: &mut BadCopies,
    findings: &mut Findings,
) -> Result<()> {
    let Some(session) = report.session else { return Ok(()) };
    let mut decoder = Decoder::new()?;
    for (pack, info) in inner.index()?.packs() {
        if info.session != session {
            continue;
        }
        if let Verdict::Bad { chunks, reason, .. } =
            check_pack(inner, pack, Level::Full, &mut decoder)?.verdict
        {
            for (id, why) in chunks.unwrap_or_default() {
                bad.add(pack, id, &why);
            }
            findings.add_text(DamageKind::Pack(pack), reason);
        }
    }
    Ok(())
}
