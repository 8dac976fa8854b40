//! What two trees differ in: first by their metadata, by content on request.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, HashSet};

use backstay_guestfs::fs::{DirCookie, NodeId, NodeKind, Stat};

use super::content::PIECE_BYTES;
use super::walk::{Limits, is_name};
use super::{Report, Tree, What, guest_error, stopped};
use crate::error::{Error, ErrorKind, Result};
use crate::monitor::Monitor;

/// Entries asked for at once.
const PAGE_ENTRIES: usize = 512;

/// How content is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Compare {
    /// Not: equal size and equal time of change count as equal content.
    #[default]
    Metadata,
    /// Files of equal size whose times of change differ are read: a file that was only touched is no change
    /// of content.
    Doubtful,
    /// All files of equal size are read: a change that hides its time is found too.
    All,
}

/// How a comparison is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Options {
    /// How content is compared.
    pub compare: Compare,
    /// Bounds; each tree by itself. A directory is held in memory while it is compared.
    pub limits: Limits,
}

/// What happened to a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// Only the second tree has it.
    Added(Stat),
    /// Only the first tree has it.
    Removed(Stat),
    /// It is something else now. What was below is not listed.
    Kind(Stat, Stat),
    /// Both have it.
    Changed {
        /// In the first tree.
        before: Stat,
        /// In the second.
        after: Stat,
        /// The bytes of a file, the target of a link, the number of a device differ; by [`Compare`], or seem to.
        content: bool,
        /// Mode, owner, times of change, or marks differ.
        metadata: bool,
    },
}

/// A directory in both trees.
struct Pair {
    path: Vec<u8>,
    depth: usize,
    before: NodeId,
    after: NodeId,
}

/// Tells `each` what the second tree has otherwise than the first, directories before what is in them, names
/// in the order of their bytes, each path once. All below a directory that came or went is told by
/// the directory alone. A file that was renamed is removed and added.
///
/// What cannot be read in either tree is in the report, and not compared. Reading times, and the sizes of
/// directories, are not looked at.
pub fn diff(
    before: Tree<'_>,
    after: Tree<'_>,
    options: Options,
    monitor: &dyn Monitor,
    each: &mut dyn FnMut(&[u8], Change) -> Result<()>,
) -> Result<Report> {
    let mut diff = Diff {
        before,
        after,
        options,
        monitor,
        report: Report::default(),
        entries: 0,
        met: HashSet::new(),
    };
    let first = before.fs.stat(before.node).map_err(|e| guest_error(b"", e))?;
    let second = after.fs.stat(after.node).map_err(|e| guest_error(b"", e))?;
    let mut left = Vec::new();
    if let Some(change) = diff.node(b"", &first, &second)? {
        each(b"", change)?;
    }
    if both_directories(&first, &second) {
        left.push(Pair { path: vec![], depth: 0, before: first.node, after: second.node });
    }
    while let Some(pair) = left.pop() {
        let mut inner = diff.directory(&pair, each)?;
        // The stack gives back the last one first.
        inner.reverse();
        left.append(&mut inner);
    }
    Ok(diff.report)
}

fn both_directories(a: &Stat, b: &Stat) -> bool {
    a.kind == NodeKind::Directory && b.kind == NodeKind::Directory
}

struct Diff<'a> {
    before: Tree<'a>,
    after: Tree<'a>,
    options: Options,
    monitor: &'a dyn Monitor,
    report: Report,
    entries: u64,
    met: HashSet<(NodeId, NodeId)>,
}

impl Diff<'_> {
    /// Compares the entries of a directory; gives those directories that both have.
    fn directory(
        &mut self,
        pair: &Pair,
        each: &mut dyn FnMut(&[u8], Change) -> Result<()>,
    ) -> Result<Vec<Pair>> {
        let mut inner = Vec::new();
        if !self.met.insert((pair.before, pair.after)) {
            self.report.note(&pair.path, What::Loop, "these directories were met before");
            return Ok(inner);
        }
        if pair.depth > self.options.limits.depth {
            self.report.note(&pair.path, What::TooDeep, "deeper than the limit");
            return Ok(inner);
        }
        let first = self.list(self.before, pair.before, &pair.path)?;
        let second = self.list(self.after, pair.after, &pair.path)?;
        let (Some(mut first), Some(second)) = (first, second) else { return Ok(inner) };
        let mut names: BTreeMap<Vec<u8>, (Option<NodeId>, Option<NodeId>)> = BTreeMap::new();
        for (name, node) in second {
            let old = first.remove(&name);
            names.insert(name, (old, Some(node)));
        }
        names.extend(first.into_iter().map(|(name, node)| (name, (Some(node), None))));
        for (name, (old, new)) in names {
            stopped(self.monitor)?;
            let mut path = pair.path.clone();
            if !path.is_empty() {
                path.push(b'/');
            }
            path.extend_from_slice(&name);
            let old = self.stat(self.before, old, &path);
            let new = self.stat(self.after, new, &path);
            let (Some(old), Some(new)) = (old, new) else { continue };
            let change = match (old, new) {
                (Some(old), Some(new)) => {
                    if both_directories(&old, &new) {
                        let (depth, path) = (pair.depth + 1, path.clone());
                        inner.push(Pair { path, depth, before: old.node, after: new.node });
                    }
                    self.node(&path, &old, &new)?
                }
                (Some(old), None) => Some(Change::Removed(old)),
                (None, Some(new)) => Some(Change::Added(new)),
                (None, None) => None,
            };
            if let Some(change) = change {
                each(&path, change)?;
            }
        }
        Ok(inner)
    }

    /// The metadata of a node there may be; nothing at all if it cannot be read, which is told.
    fn stat(&mut self, tree: Tree<'_>, node: Option<NodeId>, path: &[u8]) -> Option<Option<Stat>> {
        match node.map(|node| tree.fs.stat(node)).transpose() {
            Ok(stat) => Some(stat),
            Err(error) => {
                self.report.note(path, What::Unreadable, error);
                None
            }
        }
    }

    /// All entries of a directory; nothing if it cannot be read wholly, as what lacks would seem removed.
    fn list(
        &mut self,
        tree: Tree<'_>,
        node: NodeId,
        path: &[u8],
    ) -> Result<Option<BTreeMap<Vec<u8>, NodeId>>> {
        let mut all = BTreeMap::new();
        let mut from = DirCookie::START;
        loop {
            stopped(self.monitor)?;
            let page = match tree.fs.read_dir(node, from, PAGE_ENTRIES) {
                Ok(page) => page,
                Err(error) => {
                    self.report.note(path, What::Unreadable, error);
                    return Ok(None);
                }
            };
            let Some(last) = page.last() else { return Ok(Some(all)) };
            from = last.next;
            for entry in page {
                self.entries += 1;
                if self.entries > self.options.limits.entries.saturating_mul(2) {
                    let text = format!("more than {} entries", self.options.limits.entries);
                    return Err(Error::new(ErrorKind::Unsupported, text));
                }
                if !is_name(&entry.name) {
                    self.report.note(path, What::BadName, "an entry no file can have");
                    continue;
                }
                match all.entry(entry.name) {
                    Entry::Vacant(place) => {
                        place.insert(entry.node);
                    }
                    Entry::Occupied(_) => {
                        self.report.note(path, What::DuplicateName, "has a name twice");
                    }
                }
            }
        }
    }

    /// What is different in a node that both have.
    fn node(&mut self, path: &[u8], old: &Stat, new: &Stat) -> Result<Option<Change>> {
        if old.kind != new.kind {
            return Ok(Some(Change::Kind(*old, *new)));
        }
        let content = match old.kind {
            NodeKind::File => self.file(path, old, new)?,
            NodeKind::Symlink => self.link(path, old, new),
            NodeKind::CharDevice | NodeKind::BlockDevice => old.device != new.device,
            NodeKind::Directory | NodeKind::Fifo | NodeKind::Socket => false,
        };
        let of = |stat: &Stat| {
            (stat.mode, stat.uid, stat.gid, stat.modified, stat.changed, stat.attributes)
        };
        let metadata = of(old) != of(new);
        let change = Change::Changed { before: *old, after: *new, content, metadata };
        Ok((content || metadata).then_some(change))
    }

    fn link(&mut self, path: &[u8], old: &Stat, new: &Stat) -> bool {
        match (self.before.fs.read_link(old.node), self.after.fs.read_link(new.node)) {
            (Ok(old), Ok(new)) => old != new,
            (Err(error), _) | (_, Err(error)) => {
                self.report.note(path, What::Unreadable, error);
                false
            }
        }
    }

    fn file(&mut self, path: &[u8], old: &Stat, new: &Stat) -> Result<bool> {
        if old.size_bytes != new.size_bytes {
            return Ok(true);
        }
        let touched = old.modified != new.modified;
        let read = match self.options.compare {
            Compare::Metadata => return Ok(touched),
            Compare::Doubtful => touched,
            Compare::All => true,
        };
        if !read {
            return Ok(false);
        }
        match self.bytes_differ(old, new) {
            Err(error) if error.kind() == ErrorKind::Cancelled => Err(error),
            Err(error) => {
                self.report.note(path, What::Unreadable, error);
                Ok(touched)
            }
            Ok(differ) => Ok(differ),
        }
    }

    fn bytes_differ(&self, old: &Stat, new: &Stat) -> Result<bool> {
        let (mut a, mut b) = (vec![0; PIECE_BYTES], vec![0; PIECE_BYTES]);
        let mut at = 0;
        while at < old.size_bytes {
            stopped(self.monitor)?;
            let piece = super::content::piece_len(old.size_bytes - at);
            let (a, b) = (a.get_mut(..piece), b.get_mut(..piece));
            let (Some(a), Some(b)) = (a, b) else { break };
            super::content::full(self.before.fs, old.node, at, a, b"")?;
            super::content::full(self.after.fs, new.node, at, b, b"")?;
            if a != b {
                return Ok(true);
            }
            at += piece as u64;
        }
        Ok(false)
    }
}
