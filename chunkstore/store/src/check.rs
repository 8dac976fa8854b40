//! Checking: that every recovery point can be restored, and what is lost where one cannot.

use std::collections::{HashMap, HashSet};

use backstay_format::limits::{NODE_FANOUT, PACK_MAX};
use backstay_format::node::chunks_below;
use backstay_format::pack::PackKind;
use backstay_format::point::{DiskRecord, RecoveryPoint};
use backstay_format::{ChunkId, ChunkIndex, IndexId, PackId, PointId, RepoId};

use crate::check_index::Footers;
use crate::error::{Error, ErrorKind, Result};
use crate::index::PackSet;
use crate::key::{Folder, ObjectKey};
use crate::pack::{read_footer, verify_pack_bytes};
use crate::progress::Progress;
use crate::read::{ReadScratch, Wanted, fetch, node, node_afresh};
use crate::repository::{Inner, Repository};
use crate::seal::Decoder;
use crate::storage::Storage;

/// What to check.
#[derive(Clone, Copy, Debug, Default)]
pub struct CheckOptions {
    /// Read every stored byte, not only records, footers and trees.
    pub read_data: bool,
}

/// What is damaged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DamageKind {
    /// A recovery point's record.
    Point(PointId),
    /// A pack, or a chunk in it.
    Pack(PackId),
    /// An index object. No data is lost with it.
    Index(IndexId),
    /// A range of a disk that cannot be restored.
    Disk {
        /// The machine.
        machine: String,
        /// The recovery point.
        point: PointId,
        /// The disk.
        disk: String,
        /// Where the range starts.
        offset_bytes: u64,
        /// Its length.
        len_bytes: u64,
    },
}

/// One finding.
#[derive(Clone, Debug)]
pub struct Damage {
    /// What is damaged.
    pub kind: DamageKind,
    /// How it was noticed.
    pub reason: String,
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

/// The outcome of a check without a key.
#[derive(Clone, Debug, Default)]
pub struct PackCheckReport {
    /// Packs checked.
    pub packs: u64,
    /// Bytes read.
    pub read_bytes: u64,
    /// Damaged packs.
    pub damage: Vec<Damage>,
}

/// Most findings a report lists.
const DAMAGE_MAX: usize = 10_000;

impl CheckReport {
    pub(crate) fn add(&mut self, kind: DamageKind, reason: &Error) {
        self.add_text(kind, reason.whole_story());
    }

    fn add_text(&mut self, kind: DamageKind, reason: String) {
        if let (
            Some(Damage {
                kind: DamageKind::Disk { point, disk, offset_bytes, len_bytes, .. },
                reason: r,
            }),
            DamageKind::Disk { point: p, disk: d, offset_bytes: o, len_bytes: l, .. },
        ) = (self.damage.last_mut(), &kind)
            && point == p
            && disk == d
            && *r == reason
            && *offset_bytes + *len_bytes == *o
        {
            *len_bytes += l;
            return;
        }
        if self.damage.len() < DAMAGE_MAX {
            self.damage.push(Damage { kind, reason });
        } else {
            self.damage_left_out += 1;
        }
    }
}

fn stopped(progress: &dyn Progress) -> Result<()> {
    if progress.cancelled() {
        return Err(Error::new(ErrorKind::Aborted, "the check was stopped"));
    }
    Ok(())
}

/// Checks packs against their own checksums.
pub(crate) fn check_packs(
    storage: &dyn Storage,
    repo: RepoId,
    progress: &dyn Progress,
) -> Result<PackCheckReport> {
    let mut report = PackCheckReport::default();
    let packs = storage.list(Folder::Packs)?;
    progress.total("packs", packs.len() as u64);
    for key in packs {
        stopped(progress)?;
        let ObjectKey::Pack(id) = key else { continue };
        let checked = storage.get(key, PACK_MAX).and_then(|bytes| {
            report.read_bytes += bytes.len() as u64;
            verify_pack_bytes(&bytes, repo, id)
        });
        report.packs += 1;
        progress.add("packs", 1);
        if let Err(e) = checked {
            report.damage.push(Damage { kind: DamageKind::Pack(id), reason: e.whole_story() });
        }
    }
    Ok(report)
}

/// What the packs' own bytes say.
#[derive(Default)]
struct Bad {
    /// Chunks of which a copy is bad, with the reason.
    chunks: HashMap<ChunkId, String>,
    /// Packs whose footers cannot be read.
    packs: HashSet<PackId>,
}

pub(crate) fn check(
    repo: &Repository,
    inner: &Inner,
    options: &CheckOptions,
    progress: &dyn Progress,
) -> Result<CheckReport> {
    let mut report = CheckReport::default();
    // Points first: all packs that a visible point needs are there (rule O2), so the listing of
    // packs that follows has them, also while backups go on.
    let list = repo.points_afresh()?;
    inner.synchronise()?;
    let bad = check_all_packs(inner, options, &mut report, progress)?;
    for (id, e) in &list.damaged {
        report.add(DamageKind::Point(*id), e);
    }
    let disks: u64 = list.points.iter().map(|p| p.disks.len() as u64).sum();
    progress.total("disks", disks);
    let mut seen = HashSet::new();
    for point in &list.points {
        for disk in &point.disks {
            stopped(progress)?;
            let mut walk =
                DiskWalk { inner, point, disk, bad: &bad, seen: &mut seen, report: &mut report };
            let clean = walk.subtree(disk.root, disk.levels, 0)?;
            debug_assert!(clean || !walk.report.damage.is_empty());
            progress.add("disks", 1);
        }
        report.points += 1;
    }
    report.points += list.damaged.len() as u64;
    Ok(report)
}

/// Checks footers, and with `read_data` every chunk of every pack.
fn check_all_packs(
    inner: &Inner,
    options: &CheckOptions,
    report: &mut CheckReport,
    progress: &dyn Progress,
) -> Result<Bad> {
    let mut bad = Bad::default();
    let packs = inner.storage().list(Folder::Packs)?;
    progress.total("packs", packs.len() as u64);
    let mut decoder = Decoder::new()?;
    let mut footers = Footers::default();
    for key in packs {
        stopped(progress)?;
        let ObjectKey::Pack(id) = key else { continue };
        let footer = read_footer(inner.storage(), inner.config().id, inner.keys(), id);
        report.packs += 1;
        progress.add("packs", 1);
        let footer = match footer {
            Ok(footer) => footer,
            Err(e) => {
                report.add(DamageKind::Pack(id), &e);
                bad.packs.insert(id);
                continue;
            }
        };
        let (kind, entries) = (footer.header.kind, footer.entries.clone());
        report.index_corrected += u64::from(footers.compare(inner, footer.into_table())?);
        if !options.read_data {
            continue;
        }
        let bytes = match inner.storage().get(key, PACK_MAX) {
            Ok(bytes) => bytes,
            Err(e) => {
                let reason = e.whole_story();
                bad.chunks.extend(entries.iter().map(|c| (c.id, reason.clone())));
                report.add(DamageKind::Pack(id), &e);
                continue;
            }
        };
        report.read_bytes += bytes.len() as u64;
        if let Err(e) = verify_pack_bytes(&bytes, inner.config().id, id) {
            report.add(DamageKind::Pack(id), &e);
        }
        let found = bad_chunks(inner, id, kind, &entries, &bytes, &mut decoder);
        bad.chunks.extend(found);
    }
    footers.compare_objects(inner, report)?;
    Ok(bad)
}

fn bad_chunks(
    inner: &Inner,
    pack: PackId,
    kind: PackKind,
    entries: &[backstay_format::pack::PackEntry],
    bytes: &[u8],
    decoder: &mut Decoder,
) -> Vec<(ChunkId, String)> {
    let key = inner.keys().pack_key(pack);
    let mut raw = Vec::new();
    let mut bad = Vec::new();
    for e in entries {
        raw.resize(e.raw_len as usize, 0);
        let start = e.offset as usize;
        let decoded = match bytes.get(start..start + e.stored_len as usize) {
            Some(stored) => decoder.decode(key.as_ref(), kind, e, stored, &mut raw),
            None => Err(Error::new(ErrorKind::Damaged, "the pack is cut short")),
        };
        let reason = match decoded {
            Ok(()) if inner.keys().chunk_id(kind, &raw) == e.id => continue,
            Ok(()) => "the decoded bytes are not the chunk's".to_owned(),
            Err(e) => e.whole_story(),
        };
        bad.push((e.id, format!("pack {pack}: {reason}")));
    }
    bad
}

struct DiskWalk<'a> {
    inner: &'a Inner,
    point: &'a RecoveryPoint,
    disk: &'a DiskRecord,
    bad: &'a Bad,
    /// Subtrees without damage, by root: equal subtrees are walked once.
    seen: &'a mut HashSet<ChunkId>,
    report: &'a mut CheckReport,
}

impl DiskWalk<'_> {
    /// Walks a subtree of `levels` levels from chunk `first` on; tells whether it is whole.
    fn subtree(&mut self, root: Option<ChunkId>, levels: u8, first: u64) -> Result<bool> {
        let Some(id) = root else { return Ok(true) };
        if self.seen.contains(&id) {
            return Ok(true);
        }
        let here = match self.bad.chunks.get(&id) {
            // One copy is bad; what is in the cache may be from before it was.
            Some(reason) => node_afresh(self.inner, id, levels - 1).map_err(|e| {
                if e.kind() == ErrorKind::Damaged { e.context(reason.as_str()) } else { e }
            }),
            None => node(self.inner, id, levels - 1),
        };
        let here = match here {
            Ok(here) => here,
            Err(e) if e.kind() == ErrorKind::Damaged => {
                self.lost(first, chunks_below(levels), &e.whole_story());
                return Ok(false);
            }
            Err(e) => return Err(e),
        };
        let whole = if levels == 1 {
            self.leaf(here.slots(), first)?
        } else {
            let span = chunks_below(levels - 1);
            let mut whole = true;
            for (i, slot) in (0u64..).zip(here.slots()) {
                whole &= self.subtree(*slot, levels - 1, first + i * span)?;
            }
            whole
        };
        if whole {
            self.seen.insert(id);
        }
        Ok(whole)
    }

    fn leaf(&mut self, slots: &[Option<ChunkId>; NODE_FANOUT], first: u64) -> Result<bool> {
        let present: Vec<(u64, ChunkId)> =
            (first..).zip(slots).filter_map(|(i, id)| Some((i, (*id)?))).collect();
        let ids: Vec<ChunkId> = present.iter().map(|(_, id)| *id).collect();
        let mut found = Vec::new();
        self.inner.index()?.get_many(&ids, &PackSet::new(), &mut found)?;
        self.report.chunks += ids.len() as u64;
        let mut whole = true;
        for ((index, id), location) in present.into_iter().zip(found) {
            let len =
                self.inner.config().chunk_size.chunk_len(self.disk.size_bytes, ChunkIndex(index));
            let reason = match location {
                None => "its chunk is in no pack of this repository".to_owned(),
                Some(l) if l.raw_len == len && !self.is_doubtful(id, l.pack) => continue,
                Some(_) => match self.read(id, len) {
                    Ok(()) => continue,
                    Err(e) if e.kind() == ErrorKind::Damaged => e.whole_story(),
                    Err(e) => return Err(e),
                },
            };
            whole = false;
            self.lost(index, 1, &reason);
        }
        Ok(whole)
    }

    /// Whether only reading a chunk tells if it can be restored: of several copies one may serve.
    fn is_doubtful(&self, id: ChunkId, pack: PackId) -> bool {
        self.bad.chunks.contains_key(&id) || self.bad.packs.contains(&pack)
    }

    fn read(&self, id: ChunkId, len: u32) -> Result<()> {
        let mut bytes = vec![0u8; len as usize];
        let mut wanted = [Wanted { id, out: &mut bytes }];
        fetch(self.inner, PackKind::Data, &mut wanted, &mut ReadScratch::new()?)
    }

    fn lost(&mut self, first: u64, chunks: u64, reason: &str) {
        let size = self.inner.config().chunk_size;
        let offset_bytes = ChunkIndex(first).offset(size);
        let end = ChunkIndex(first.saturating_add(chunks)).offset(size).min(self.disk.size_bytes);
        let kind = DamageKind::Disk {
            machine: self.point.machine.clone(),
            point: self.point.id,
            disk: self.disk.name.clone(),
            offset_bytes,
            len_bytes: end.saturating_sub(offset_bytes),
        };
        self.report.add_text(kind, reason.to_owned());
    }
}
