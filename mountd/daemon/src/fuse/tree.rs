//! The tree of a mount: which machines and points there are, under which names and inode numbers.
//!
//! Pure: it is told the list of points and knows no kernel and no repository.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, OnceLock, Weak};

use backstay_store::{DiskRecord, PointId, RecoveryPoint};
use parking_lot::Mutex;

use super::names;
use crate::PointDisk;

/// Points a mount shows; of more, the newest are shown and a warning is logged. Half a million
/// points (5,000 machines with 100 each) are some hundred MiB of names and records.
const POINTS_MAX: usize = 1 << 19;
/// Inode numbers are `slot << SUB_BITS | place`: a machine or point has a slot for the time it is
/// shown, its children have places. A point has at most 1,024 disks (format `DISKS_MAX`).
const SUB_BITS: u32 = 16;
const PLACE_SELF: u64 = 0;
const PLACE_LATEST: u64 = 1;
const PLACE_DISKS: u64 = 1;
const PLACE_FILES: u64 = 2;
const PLACE_ABOUT: u64 = 3;
const PLACE_FIRST_DISK: u64 = 4;
/// The root's number is given by the protocol; slot 0 is no machine or point.
pub(super) const ROOT_INO: u64 = 1;

/// What an inode number stands for.
#[derive(Clone, Debug)]
pub(super) enum Node {
    Root,
    Machine(Arc<Machine>),
    Latest(Arc<Machine>),
    Point(Arc<Point>),
    Disks(Arc<Point>),
    Disk(Arc<Point>, usize),
    /// The volumes of a point; what lies below is not part of this tree.
    Files(Arc<Point>),
    /// The text about them.
    About(Arc<Point>),
}

/// A machine that has points.
#[derive(Debug)]
pub(super) struct Machine {
    slot: u64,
    /// Its name as a path component.
    pub(super) dir_name: String,
    /// Oldest first, never empty.
    pub(super) points: Vec<Arc<Point>>,
    by_name: HashMap<String, usize>,
}

/// A recovery point.
#[derive(Debug)]
pub(super) struct Point {
    slot: u64,
    pub(super) dir_name: String,
    /// The inode number of its machine's directory.
    pub(super) machine_ino: u64,
    pub(super) record: RecoveryPoint,
    /// Beside each disk of the record.
    pub(super) disks: Vec<Disk>,
}

/// What a mount knows of a disk beyond its record.
#[derive(Debug)]
pub(super) struct Disk {
    pub(super) file_name: String,
    /// The device while somebody has it open: a reader keeps megabytes of its map at hand, and a
    /// mount may show a hundred thousand disks.
    pub(super) device: Mutex<Weak<PointDisk>>,
    /// Bytes stored for it (not holes), once somebody looked.
    pub(super) data_bytes: OnceLock<u64>,
}

impl Node {
    pub(super) fn ino(&self) -> u64 {
        let at = |slot: u64, place: u64| slot << SUB_BITS | place;
        match self {
            Node::Root => ROOT_INO,
            Node::Machine(m) => at(m.slot, PLACE_SELF),
            Node::Latest(m) => at(m.slot, PLACE_LATEST),
            Node::Point(p) => at(p.slot, PLACE_SELF),
            Node::Disks(p) => at(p.slot, PLACE_DISKS),
            Node::Disk(p, i) => at(p.slot, PLACE_FIRST_DISK + *i as u64),
            Node::Files(p) => at(p.slot, PLACE_FILES),
            Node::About(p) => at(p.slot, PLACE_ABOUT),
        }
    }
}

impl Machine {
    /// The newest point.
    pub(super) fn latest(&self) -> Option<&Arc<Point>> {
        self.points.last()
    }

    fn find(&self, name: &str) -> Option<&Arc<Point>> {
        self.by_name.get(name).and_then(|i| self.points.get(*i))
    }
}

impl Point {
    /// Its number as long as it is shown.
    pub(super) fn slot(&self) -> u64 {
        self.slot
    }

    pub(super) fn disk_record(&self, index: usize) -> Option<&DiskRecord> {
        self.record.disks.get(index)
    }
}

/// The tree at one moment. Never changes; a newer one takes its place.
#[derive(Debug, Default)]
pub(super) struct View {
    /// By name as a path component.
    pub(super) machines: Vec<Arc<Machine>>,
    machine_slots: HashMap<u64, usize>,
    point_slots: HashMap<u64, Arc<Point>>,
    /// The ids shown, in the order given; the same list again is the same view.
    ids: Vec<PointId>,
    /// The sizes of all disks together.
    pub(super) total_bytes: u64,
    /// Points have their guests' files beside their disks.
    pub(super) with_files: bool,
    /// The only point, whose directory is the root.
    single: Option<Arc<Point>>,
}

impl View {
    /// The point of that number.
    pub(super) fn point(&self, slot: u64) -> Option<&Arc<Point>> {
        self.point_slots.get(&slot)
    }

    /// What the number stands for; none if that has ended.
    pub(super) fn node(&self, ino: u64) -> Option<Node> {
        if ino == ROOT_INO {
            return Some(Node::Root);
        }
        let (slot, place) = (ino >> SUB_BITS, ino & ((1 << SUB_BITS) - 1));
        if let Some(machine) = self.machine_slots.get(&slot).and_then(|i| self.machines.get(*i)) {
            return match place {
                PLACE_SELF => Some(Node::Machine(Arc::clone(machine))),
                PLACE_LATEST => Some(Node::Latest(Arc::clone(machine))),
                _ => None,
            };
        }
        let point = Arc::clone(self.point_slots.get(&slot)?);
        match place {
            PLACE_SELF => Some(Node::Point(point)),
            PLACE_DISKS => Some(Node::Disks(point)),
            PLACE_FILES => Some(Node::Files(point)),
            PLACE_ABOUT => Some(Node::About(point)),
            _ => {
                let index = usize::try_from(place - PLACE_FIRST_DISK).ok()?;
                (index < point.disks.len()).then_some(Node::Disk(point, index))
            }
        }
    }

    /// The child of this name.
    pub(super) fn child(&self, parent: &Node, name: &str) -> Option<Node> {
        match parent {
            Node::Root if self.single.is_some() => {
                self.child(&Node::Point(Arc::clone(self.single.as_ref()?)), name)
            }
            Node::Root => {
                let found = self.machines.binary_search_by(|m| m.dir_name.as_str().cmp(name));
                Some(Node::Machine(Arc::clone(self.machines.get(found.ok()?)?)))
            }
            Node::Machine(m) if name == names::LATEST => Some(Node::Latest(Arc::clone(m))),
            Node::Machine(m) => Some(Node::Point(Arc::clone(m.find(name)?))),
            Node::Point(p) => match name {
                names::DISKS => Some(Node::Disks(Arc::clone(p))),
                names::FILES if self.with_files => Some(Node::Files(Arc::clone(p))),
                names::ABOUT if self.with_files => Some(Node::About(Arc::clone(p))),
                _ => None,
            },
            Node::Disks(p) => {
                let index = p.disks.iter().position(|d| d.file_name == name)?;
                Some(Node::Disk(Arc::clone(p), index))
            }
            Node::Latest(_) | Node::Disk(..) | Node::Files(_) | Node::About(_) => None,
        }
    }

    /// The `index`th child and its name, in a fixed order.
    pub(super) fn nth_child<'a>(
        &'a self,
        parent: &'a Node,
        index: usize,
    ) -> Option<(&'a str, Node)> {
        match parent {
            Node::Root if self.single.is_some() => self.nth_of_point(self.single.as_ref()?, index),
            Node::Root => {
                let machine = self.machines.get(index)?;
                Some((&machine.dir_name, Node::Machine(Arc::clone(machine))))
            }
            Node::Machine(m) => match m.points.get(index) {
                Some(point) => Some((&point.dir_name, Node::Point(Arc::clone(point)))),
                None if index == m.points.len() => {
                    Some((names::LATEST, Node::Latest(Arc::clone(m))))
                }
                None => None,
            },
            Node::Point(p) => self.nth_of_point(p, index),
            Node::Disks(p) => {
                let disk = p.disks.get(index)?;
                Some((&disk.file_name, Node::Disk(Arc::clone(p), index)))
            }
            Node::Latest(_) | Node::Disk(..) | Node::Files(_) | Node::About(_) => None,
        }
    }

    fn nth_of_point(&self, p: &Arc<Point>, index: usize) -> Option<(&'static str, Node)> {
        match index {
            0 => Some((names::DISKS, Node::Disks(Arc::clone(p)))),
            1 if self.with_files => Some((names::FILES, Node::Files(Arc::clone(p)))),
            2 if self.with_files => Some((names::ABOUT, Node::About(Arc::clone(p)))),
            _ => None,
        }
    }

    /// The parent's inode number, for `..`.
    pub(super) fn parent_ino(&self, node: &Node) -> u64 {
        match node {
            Node::Root | Node::Machine(_) => ROOT_INO,
            Node::Latest(m) => m.slot << SUB_BITS,
            Node::Point(p) => p.machine_ino,
            Node::Disks(_) | Node::Files(_) | Node::About(_) if self.single.is_some() => ROOT_INO,
            Node::Disks(p) | Node::Files(p) | Node::About(p) => p.slot << SUB_BITS,
            Node::Disk(p, _) => p.slot << SUB_BITS | PLACE_DISKS,
        }
    }

    /// How many inodes there are.
    pub(super) fn inodes(&self) -> u64 {
        let disks: usize = self.point_slots.values().map(|p| p.disks.len()).sum();
        (1 + 2 * self.machines.len() + 2 * self.point_slots.len() + disks) as u64
    }
}

/// Makes views. Numbers and names of what stays are kept from one view to the next.
#[derive(Debug, Default)]
pub(super) struct Builder {
    next_slot: u64,
    warned: bool,
    with_files: bool,
    single: bool,
}

impl Builder {
    /// One whose views show guests' files, too, if `with_files` says so; of a `single` point, whose directory is the root.
    pub(super) fn new(with_files: bool, single: bool) -> Self {
        Self { with_files, single, ..Self::default() }
    }

    /// The view of these points (oldest first), after `old`; none if nothing has changed.
    pub(super) fn update(&mut self, old: &View, points: Vec<RecoveryPoint>) -> Option<View> {
        let mut points = points;
        self.bound(&mut points);
        if points.len() == old.ids.len() && points.iter().map(|p| p.id).eq(old.ids.iter().copied())
        {
            return None;
        }
        let mut view = View {
            ids: points.iter().map(|p| p.id).collect(),
            with_files: self.with_files,
            ..View::default()
        };
        let mut by_machine: BTreeMap<String, Vec<RecoveryPoint>> = BTreeMap::new();
        for point in points {
            by_machine.entry(names::safe(&point.machine)).or_default().push(point);
        }
        let known: HashMap<PointId, &Arc<Point>> =
            old.point_slots.values().map(|p| (p.record.id, p)).collect();
        for (dir_name, points) in by_machine {
            let machine = self.machine(old, &known, dir_name, points);
            for point in &machine.points {
                let size: u64 = point.record.disks.iter().map(|d| d.size_bytes).sum();
                view.total_bytes = view.total_bytes.saturating_add(size);
                view.point_slots.insert(point.slot, Arc::clone(point));
            }
            view.machine_slots.insert(machine.slot, view.machines.len());
            view.machines.push(Arc::new(machine));
        }
        if self.single {
            view.single = view.point_slots.values().next().map(Arc::clone);
        }
        Some(view)
    }

    fn bound(&mut self, points: &mut Vec<RecoveryPoint>) {
        let over = points.len().saturating_sub(POINTS_MAX);
        if over > 0 {
            points.drain(..over);
            if !std::mem::replace(&mut self.warned, true) {
                tracing::warn!(
                    hidden = over,
                    "too many recovery points: the mount hides the oldest"
                );
            }
        }
    }

    fn slot(&mut self) -> u64 {
        self.next_slot += 1;
        self.next_slot
    }

    fn machine(
        &mut self,
        old: &View,
        known: &HashMap<PointId, &Arc<Point>>,
        dir_name: String,
        mut records: Vec<RecoveryPoint>,
    ) -> Machine {
        let slot = match old.machines.binary_search_by(|m| m.dir_name.cmp(&dir_name)) {
            Ok(i) => old.machines[i].slot,
            Err(_) => self.slot(),
        };
        records.sort_by_key(|r| (r.time, r.id));
        // Names given stay given; a newcomer of the same second takes the longer name.
        let mut taken: HashSet<String> =
            records.iter().filter_map(|r| Some(known.get(&r.id)?.dir_name.clone())).collect();
        let mut points = Vec::with_capacity(records.len());
        for record in records {
            let point = match known.get(&record.id) {
                Some(point) => Arc::clone(point),
                None => Arc::new(self.point(slot << SUB_BITS, &mut taken, record)),
            };
            points.push(point);
        }
        let by_name = points.iter().enumerate().map(|(i, p)| (p.dir_name.clone(), i)).collect();
        Machine { slot, dir_name, points, by_name }
    }

    fn point(
        &mut self,
        machine_ino: u64,
        taken: &mut HashSet<String>,
        record: RecoveryPoint,
    ) -> Point {
        let time = names::point_time(record.time);
        let id = record.id.to_string();
        let dir_name = [time.clone(), format!("{time}-{}", record.id.short())]
            .into_iter()
            .find(|name| !taken.contains(name))
            .unwrap_or_else(|| format!("{time}-{id}"));
        taken.insert(dir_name.clone());
        let disk = |d: &DiskRecord| Disk {
            file_name: names::safe(&d.name) + names::DISK_SUFFIX,
            device: Mutex::new(Weak::new()),
            data_bytes: OnceLock::new(),
        };
        let disks = record.disks.iter().map(disk).collect();
        Point { slot: self.slot(), dir_name, machine_ino, record, disks }
    }
}

#[cfg(test)]
mod tests;
