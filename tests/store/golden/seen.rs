//! What can be seen of a repository, as text: the same for its writer then and its readers now.
//! Field by field: a field that a later program adds must not change the text.

use std::fmt::Write as _;

use backstay_store::{RecoveryPoint, Repository};

use crate::support::read;

/// A line for each disk of each point: point, disk, size, digest of its bytes.
pub(super) fn disks(repo: &Repository) -> Vec<String> {
    let list = repo.points().unwrap();
    assert!(list.damaged.is_empty(), "{:?}", list.damaged);
    let mut lines = Vec::new();
    for point in &list.points {
        lines.extend(point_disks(repo, point));
    }
    lines
}

fn point_disks(repo: &Repository, point: &RecoveryPoint) -> Vec<String> {
    let line = |disk: &backstay_store::DiskRecord| {
        let digest = blake3::hash(&read(repo, disk).unwrap());
        format!("disk {} {} {} {digest}", point.id, disk.name, disk.size_bytes)
    };
    point.disks.iter().map(line).collect()
}

/// Everything that a reader is told.
pub(super) fn describe(repo: &Repository) -> String {
    let mut out = String::new();
    let config = repo.config();
    let size = config.chunk_size.bytes();
    writeln!(out, "repository {} {size} {:?}", config.id, config.encryption).unwrap();
    writeln!(out, "created {}", config.created).unwrap();
    for slot in repo.keys().unwrap() {
        writeln!(out, "slot {} {:?} '{}' {}", slot.id, slot.kind, slot.label, slot.created)
            .unwrap();
    }
    for point in repo.points().unwrap().points {
        describe_point(repo, &point, &mut out);
    }
    for id in repo.removed_points().unwrap() {
        writeln!(out, "removed {id}").unwrap();
        assert!(repo.point(id).is_err(), "{id} is removed");
    }
    for pin in repo.pins().unwrap() {
        let (by, why) = (&pin.cause.by, &pin.cause.reason);
        writeln!(out, "pin {} {} {} '{by}' '{why}'", pin.id, pin.point, pin.time).unwrap();
    }
    for s in repo.sessions().unwrap() {
        let holds: Vec<String> = s.holds.iter().map(ToString::to_string).collect();
        let (o, holds) = (&s.owner, holds.join(" "));
        writeln!(out, "session {} {:?} epoch {} beat {}", s.id, s.kind, s.epoch, s.beat).unwrap();
        writeln!(out, "  '{}' {} holds {holds}", s.purpose, s.created).unwrap();
        writeln!(out, "  {} '{}' {} {} {}", o.host, o.boot, o.pid, o.namespace, o.started).unwrap();
    }
    if let Some(last) = repo.last_collection().unwrap() {
        let time = |t: Option<jiff::Timestamp>| t.map_or("no".into(), |t| t.to_string());
        let (planned, ended) = (time(last.planned), time(last.ended));
        let (number, packs) = (last.generation, last.packs);
        writeln!(out, "collection {number} planned {planned} ended {ended} packs {packs}").unwrap();
    }
    let stats = repo.stats().unwrap();
    writeln!(out, "packs {} bytes {}", stats.packs, stats.stored_bytes).unwrap();
    out
}

fn describe_point(repo: &Repository, point: &RecoveryPoint, out: &mut String) {
    let parent = point.parent.map_or("none".into(), |id| id.to_string());
    writeln!(out, "point {} {} {} after {parent}", point.id, point.machine, point.time).unwrap();
    let (o, s) = (&point.origin, &point.stats);
    writeln!(out, "  {:?} by {} {}", point.consistency, o.host, o.tool).unwrap();
    writeln!(out, "  note {:?}", point.note.as_deref().unwrap_or_default()).unwrap();
    writeln!(out, "  read {} holes {}", s.read_bytes, s.hole_bytes).unwrap();
    writeln!(out, "  new {} {} stored {}", s.new_chunks, s.new_bytes, s.stored_bytes).unwrap();
    if let Some(first) = point.copied_from {
        writeln!(out, "  copy of {} in {}", first.point, first.repository).unwrap();
    }
    for (disk, line) in point.disks.iter().zip(point_disks(repo, point)) {
        writeln!(out, "  {line}").unwrap();
        let root = disk.root.map_or("none".into(), |id| id.to_string());
        writeln!(out, "    '{}' levels {} root {root}", disk.source, disk.levels).unwrap();
    }
}
