//! LVM2: labels, the metadata of volume groups, and their logical volumes. Nothing of the host's LVM takes part.

mod build;
mod cow;
pub(super) mod fuzzing;
mod label;
mod meta;
mod raid;
mod text;
mod thin;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use self::build::{Builder, Built};
use self::meta::{Kind, Lv, Vg};
use super::{Content, Mapped};
use crate::Error;

pub(super) use label::{Label, read};

/// Groups with one UUID, as clones of a disk make them.
const CLONES_MAX: usize = 64;
/// How much of a UUID tells groups of one name apart.
const SHORT_UUID: usize = 6;

/// A physical volume that was found.
#[derive(Debug)]
pub(super) struct Pv {
    /// Its index among the volumes.
    pub(super) volume: usize,
    pub(super) label: Label,
    pub(super) mapped: Arc<Mapped>,
}

/// A volume group that was put together.
#[derive(Debug)]
pub(super) struct Group {
    /// Its name for the user, unique among all.
    pub(super) name: String,
    /// What its physical volumes are to be told: which volume, and a note if there is one.
    pub(super) members: Vec<usize>,
    pub(super) volumes: Vec<Logical>,
    pub(super) notes: Vec<String>,
}

/// A logical volume to show.
#[derive(Debug)]
pub(super) struct Logical {
    pub(super) name: String,
    pub(super) parents: Vec<usize>,
    pub(super) mapped: Option<Mapped>,
    pub(super) content: Content,
    pub(super) size: u64,
    pub(super) error: Option<String>,
    pub(super) notes: Vec<String>,
}

/// A group as one set of physical volumes tells it.
struct Draft {
    vg: Arc<Vg>,
    /// Indices into the list of physical volumes.
    pvs: Vec<usize>,
    notes: Vec<String>,
}

/// Which groups are known, over several rounds.
#[derive(Debug, Default)]
pub(super) struct Groups {
    done: HashSet<usize>,
    names: HashSet<String>,
    /// What texts say: each group has as many copies of its own as physical volumes, and is looked at in several rounds. One that cannot
    /// be read is told by [`orphan`].
    read: HashMap<Arc<str>, Option<Arc<Vg>>>,
}

impl Groups {
    /// Which physical volumes belong to a group: indices into the list given.
    pub(super) fn known(&self) -> &HashSet<usize> {
        &self.done
    }

    /// Puts together the groups that have new physical volumes. If `all` is not set those that miss some wait: more
    /// may be found in volumes of the others.
    pub(super) fn assemble(&mut self, pvs: &[Pv], all: bool) -> Vec<Group> {
        let new: Vec<usize> = (0..pvs.len()).filter(|n| !self.done.contains(n)).collect();
        let mut groups = Vec::new();
        for draft in self.drafts(pvs, &new) {
            let there: HashSet<&str> =
                draft.pvs.iter().map(|n| pvs[*n].label.uuid.as_str()).collect();
            let complete = draft.vg.pvs.values().all(|pv| there.contains(pv.id.as_str()));
            if complete || all {
                self.done.extend(&draft.pvs);
                groups.push(self.group(pvs, draft));
            }
        }
        groups
    }

    fn group(&mut self, pvs: &[Pv], draft: Draft) -> Group {
        let Draft { vg, pvs: members, mut notes } = draft;
        let mut name = vg.name.clone();
        if self.names.contains(&name) {
            let short: String = vg.id.chars().take(SHORT_UUID).collect();
            name = format!("{}~{short}", vg.name);
            notes.push(format!(
                "Two volume groups are called {}; this one is {name} here (UUID {}).",
                vg.name, vg.id
            ));
        }
        // Clones have one UUID as well.
        let mut unique = name.clone();
        for n in 2.. {
            if self.names.insert(unique.clone()) {
                break;
            }
            unique = format!("{name}~{n}");
        }
        if vg.exported {
            notes.push(format!("The volume group {} is marked as exported.", vg.name));
        }
        let there: HashMap<String, (usize, Arc<Mapped>)> = members
            .iter()
            .map(|n| {
                let pv = &pvs[*n];
                (pv.label.uuid.clone(), (pv.volume, Arc::clone(&pv.mapped)))
            })
            .collect();
        let volumes = match members.first() {
            Some(first) => logical(&vg, &unique, &there, &pvs[*first].mapped),
            None => Vec::new(),
        };
        let members = members.iter().map(|n| pvs[*n].volume).collect();
        Group { name: unique, members, volumes, notes }
    }

    /// Sorts physical volumes into groups: by the UUID of the group, and clones of one group apart.
    fn drafts(&mut self, pvs: &[Pv], new: &[usize]) -> Vec<Draft> {
        let mut texts: Vec<(usize, Arc<Vg>)> = Vec::new();
        for n in new {
            for text in &pvs[*n].label.texts {
                let vg = self.read.entry(Arc::clone(text));
                let vg = vg.or_insert_with(|| meta::read(text).ok().map(Arc::new));
                texts.extend(vg.iter().map(|vg| (*n, Arc::clone(vg))));
            }
        }
        let mut ids: Vec<String> = Vec::new();
        for (_, vg) in &texts {
            if !ids.contains(&vg.id) {
                ids.push(vg.id.clone());
            }
        }
        let mut used: HashSet<usize> = HashSet::new();
        let mut out = Vec::new();
        for id in ids {
            for _ in 0..CLONES_MAX {
                let own = |(n, vg): &&(usize, Arc<Vg>)| vg.id == id && !used.contains(n);
                let Some(draft) = draft(pvs, new, &used, texts.iter().filter(own)) else { break };
                used.extend(&draft.pvs);
                out.push(draft);
            }
        }
        out
    }
}

/// One group: the newest text, and for each physical volume it names the first one that is there.
fn draft<'a>(
    pvs: &[Pv],
    new: &[usize],
    used: &HashSet<usize>,
    texts: impl Iterator<Item = &'a (usize, Arc<Vg>)>,
) -> Option<Draft> {
    let texts: Vec<_> = texts.collect();
    // Of clones the first of each physical volume make the first group.
    let mut seen: HashMap<&str, usize> = HashMap::new();
    for n in new.iter().filter(|n| !used.contains(n)) {
        seen.entry(pvs[*n].label.uuid.as_str()).or_insert(*n);
    }
    let first = |n: &usize| seen.get(pvs[*n].label.uuid.as_str()) == Some(n);
    let newest =
        texts.iter().filter(|(n, _)| first(n)).max_by_key(|(n, vg)| (vg.seqno, usize::MAX - n))?;
    let vg = Arc::clone(&newest.1);
    let mut notes = Vec::new();
    if let Some(old) = texts.iter().find(|(n, vg)| first(n) && vg.seqno < newest.1.seqno) {
        notes.push(format!(
            "A physical volume has metadata of {} that are older (number {} and not {}).",
            vg.name, old.1.seqno, vg.seqno
        ));
    }
    let named: HashSet<&str> = vg.pvs.values().map(|pv| pv.id.as_str()).collect();
    let mut members: BTreeSet<usize> =
        seen.iter().filter(|(uuid, _)| named.contains(*uuid)).map(|(_, n)| *n).collect();
    // Those that were removed while they were away still tell of the group.
    members.extend(texts.iter().map(|(n, _)| *n).filter(|n| first(n)));
    members.insert(newest.0);
    Some(Draft { vg, pvs: members.into_iter().collect(), notes })
}

fn logical(
    vg: &Vg,
    name: &str,
    there: &HashMap<String, (usize, Arc<Mapped>)>,
    disks: &Mapped,
) -> Vec<Logical> {
    let mut builder = Builder::new(vg, there, disks);
    // LVM hides the store of a snapshot and shows the snapshot by its name.
    let shown = |lv: &Lv| lv.visible || vg.stores.contains_key(&lv.name);
    let visible = vg.lvs.iter().enumerate().filter(|(_, lv)| shown(lv));
    let mut out = Vec::new();
    for (index, lv) in visible {
        let extents = lv.segments.iter().fold(0_u64, |sum, seg| sum.saturating_add(seg.extents));
        let size = extents.saturating_mul(vg.extent_bytes);
        let label = format!("{name}/{}", lv.name);
        if let Some(content) = pool(lv) {
            out.push(Logical {
                name: label,
                parents: Vec::new(),
                mapped: None,
                content: Content::Other(content.into()),
                size,
                error: None,
                notes: vec!["Its volumes are shown by themselves.".to_owned()],
            });
            continue;
        }
        let built = builder.build(index);
        let Built { map, on, notes } = built.as_ref();
        let mut notes = notes.clone();
        if let Some((origin, _)) = vg.stores.get(&lv.name) {
            notes.push(format!("It is a snapshot of {origin}."));
        }
        let (mapped, error) = match map {
            Ok(map) => (Some(disks.with_map(Arc::clone(map))), None),
            Err(failure) => (None, Some(failure.text.clone())),
        };
        out.push(Logical {
            name: label,
            parents: on.iter().copied().collect(),
            size: mapped.as_ref().map_or(size, Mapped::size_bytes),
            mapped,
            content: Content::LvmLv,
            error,
            notes,
        });
    }
    out
}

/// What a visible volume is if it is there for others alone.
fn pool(lv: &Lv) -> Option<&'static str> {
    match &lv.segments.first()?.kind {
        Kind::ThinPool { .. } => Some("thin pool"),
        Kind::CachePool { .. } => Some("cache pool"),
        Kind::Other(kind) if kind == "vdo-pool" => Some("vdo pool"),
        _ => None,
    }
}

/// Why a physical volume belongs to no group.
pub(super) fn orphan(label: &Label) -> Result<&'static str, Error> {
    for text in &label.texts {
        meta::read(text)?;
    }
    Ok("It belongs to no volume group that is known.")
}
