//! Going over a tree: every node once, in the order of the directories, ending whatever the tree is.

use std::collections::HashSet;
use std::hash::{BuildHasher, RandomState};

use backstay_guestfs::fs::{DirCookie, DirEntry, NodeId, NodeKind, Stat};

use super::report::What;
use super::{Tree, guest_error};
use crate::error::{Error, ErrorKind, Result};

/// Entries asked for at once.
const PAGE_ENTRIES: usize = 512;

/// What bounds a walk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Levels of directories below the start; deeper ones are told as [`What::TooDeep`]. A run that
    /// writes keeps a descriptor open for each.
    pub depth: usize,
    /// Entries in all; one more is the end of the walk, with an error.
    pub entries: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Limits { depth: 512, entries: 50_000_000 }
    }
}

/// A node that was met.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Visit {
    /// From the start, names with `/` between them; empty at the start itself.
    pub path: Vec<u8>,
    /// Levels below the start.
    pub depth: usize,
    /// Its metadata.
    pub stat: Stat,
}

impl Visit {
    /// The last name of the path; empty at the start.
    pub fn name(&self) -> &[u8] {
        self.path.rsplit(|byte| *byte == b'/').next().unwrap_or_default()
    }
}

/// What a walk comes to.
#[derive(Debug)]
pub enum Step {
    /// A node. What is in a directory follows it.
    Node(Visit),
    /// The directory that was entered last and not left yet has no more.
    Leave,
    /// Something is passed over.
    Problem {
        /// Where.
        path: Vec<u8>,
        /// Why.
        what: What,
        /// In words.
        text: String,
    },
}

/// A directory being read.
#[derive(Debug)]
struct Level {
    node: NodeId,
    /// Length of the path of the directory itself.
    path_len: usize,
    page: std::vec::IntoIter<DirEntry>,
    next: DirCookie,
    ended: bool,
    names: HashSet<(u64, u64)>,
}

/// Goes over a tree. A directory comes before what is in it, and is left after it. Names that cannot be,
/// second entries of one name, directories met twice, and nodes that cannot be read are told and
/// passed over.
#[derive(Debug)]
pub struct Walk<'a> {
    tree: Tree<'a>,
    limits: Limits,
    started: bool,
    path: Vec<u8>,
    levels: Vec<Level>,
    /// Directories met: there is one way to each, so a second one is damage, and may be a loop.
    met: HashSet<NodeId>,
    entries: u64,
    /// Names are kept as two hashes with keys nobody knows; equal hashes are equal names.
    hashers: (RandomState, RandomState),
}

impl<'a> Walk<'a> {
    /// A walk from the start of `tree`.
    pub fn new(tree: Tree<'a>, limits: Limits) -> Self {
        Walk {
            tree,
            limits,
            started: false,
            path: Vec::new(),
            levels: Vec::new(),
            met: HashSet::new(),
            entries: 0,
            hashers: (RandomState::new(), RandomState::new()),
        }
    }

    /// Does not go into the directory that the last step was.
    pub fn skip(&mut self) {
        self.levels.pop();
    }

    /// The next step; none at the end. Errors end the walk: the start cannot be read
    /// ([`ErrorKind::Damaged`] and others), more entries than the limit ([`ErrorKind::Unsupported`]).
    pub fn step(&mut self) -> Result<Option<Step>> {
        if !self.started {
            self.started = true;
            let stat = self.tree.fs.stat(self.tree.node).map_err(|e| guest_error(b"", e))?;
            self.enter(&stat);
            return Ok(Some(Step::Node(Visit { path: Vec::new(), depth: 0, stat })));
        }
        let Some(level) = self.levels.last_mut() else { return Ok(None) };
        self.path.truncate(level.path_len);
        if let Some(entry) = level.page.next() {
            return self.entry(entry).map(Some);
        }
        if !level.ended {
            match self.tree.fs.read_dir(level.node, level.next, PAGE_ENTRIES) {
                Ok(page) => {
                    match page.last() {
                        Some(last) => level.next = last.next,
                        None => level.ended = true,
                    }
                    level.page = page.into_iter();
                    return self.step();
                }
                Err(error) => {
                    level.ended = true;
                    let path = self.path.clone();
                    return Ok(Some(unreadable(path, error)));
                }
            }
        }
        self.levels.pop();
        Ok(Some(Step::Leave))
    }

    /// What an entry of the innermost directory is.
    fn entry(&mut self, entry: DirEntry) -> Result<Step> {
        self.entries += 1;
        if self.entries > self.limits.entries {
            let text = format!("the tree has more than {} entries", self.limits.entries);
            return Err(Error::new(ErrorKind::Unsupported, text));
        }
        if !self.path.is_empty() {
            self.path.push(b'/');
        }
        self.path.extend_from_slice(&entry.name);
        let path = self.path.clone();
        let problem =
            |what, text: &str| Step::Problem { path: path.clone(), what, text: text.into() };
        if !is_name(&entry.name) {
            return Ok(problem(What::BadName, "no file can have this name"));
        }
        let hash = (self.hashers.0.hash_one(&entry.name), self.hashers.1.hash_one(&entry.name));
        if self.levels.last_mut().is_some_and(|level| !level.names.insert(hash)) {
            return Ok(problem(What::DuplicateName, "the directory has this name twice"));
        }
        let stat = match self.tree.fs.stat(entry.node) {
            Ok(stat) => stat,
            Err(error) => return Ok(unreadable(path, error)),
        };
        let depth = self.levels.len();
        if stat.kind == NodeKind::Directory {
            if self.met.contains(&stat.node) {
                return Ok(problem(What::Loop, "this directory was met before at another place"));
            }
            if depth > self.limits.depth {
                let text = format!("more than {} levels deep", self.limits.depth);
                return Ok(problem(What::TooDeep, &text));
            }
        }
        self.enter(&stat);
        Ok(Step::Node(Visit { path, depth, stat }))
    }

    fn enter(&mut self, stat: &Stat) {
        if stat.kind == NodeKind::Directory {
            self.met.insert(stat.node);
            self.levels.push(Level {
                node: stat.node,
                path_len: self.path.len(),
                page: Vec::new().into_iter(),
                next: DirCookie::START,
                ended: false,
                names: HashSet::new(),
            });
        }
    }
}

fn unreadable(path: Vec<u8>, error: backstay_guestfs::Error) -> Step {
    Step::Problem { path, what: What::Unreadable, text: error.to_string() }
}

/// Whether a file can have this name, anywhere.
pub(crate) fn is_name(name: &[u8]) -> bool {
    !name.is_empty() && name != b"." && name != b".." && !name.iter().any(|b| matches!(b, 0 | b'/'))
}

/// How much a tree is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Size {
    /// Nodes, the start among them.
    pub nodes: u64,
    /// Lengths of all files, each node counted once per name.
    pub logical_bytes: u64,
    /// What the files take without their holes, as far as the metadata tells; a file of many names
    /// counts once.
    pub data_bytes: u64,
}

/// Adds up a tree by its metadata; reads no content. `go_on` is asked at each node.
pub fn measure(tree: Tree<'_>, limits: Limits, go_on: &dyn Fn() -> Result<()>) -> Result<Size> {
    /// Most files of several names that are told apart; further ones count per name.
    const LINKED_MAX: usize = 1 << 20;
    let mut size = Size::default();
    let mut linked = HashSet::new();
    let mut walk = Walk::new(tree, limits);
    while let Some(step) = walk.step()? {
        go_on()?;
        let Step::Node(visit) = step else { continue };
        let stat = visit.stat;
        size.nodes += 1;
        if stat.kind != NodeKind::File {
            continue;
        }
        size.logical_bytes = size.logical_bytes.saturating_add(stat.size_bytes);
        if stat.links > 1 && linked.contains(&stat.node) {
            continue;
        }
        if stat.links > 1 && linked.len() < LINKED_MAX {
            linked.insert(stat.node);
        }
        // What is compressed takes less there than here.
        let taken = match stat.attributes.compressed {
            true => stat.size_bytes,
            false => stat.allocated_bytes.min(stat.size_bytes),
        };
        size.data_bytes = size.data_bytes.saturating_add(taken);
    }
    Ok(size)
}
