//! `MACHINE/POINT/files`: the files inside guest disks, as part of the mount.
//!
//! Nothing here parses what a guest wrote: [`PointFiles`](crate::PointFiles) asks its reader. Inode numbers are made of a node's own
//! number and of where it belongs, so the kernel may keep them as long as it likes and nothing has to be remembered for each.

mod answer;
mod numbers;
mod tree;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use backstay_guestfs::apart::{GuestFs, OpenContent, ReaderCommand};
use backstay_guestfs::fs::{DirEntry, NodeId, Stat, Xattr};
use backstay_store::Repository;
use parking_lot::Mutex;
use quick_cache::sync::Cache;

pub(super) use answer::reply_opened;
pub(super) use numbers::{GuestNode, is_guest};
pub(super) use tree::PointTree;

use super::errno::Refusal;
use super::tree::Point;
use crate::PointFiles;
use crate::point_disk::chain;
use numbers::Numbers;

/// Recovery points whose volumes are kept at hand. Each that was asked lately has a reader process; of more, the one longest not
/// asked is opened anew when somebody looks again.
const POINTS_OPEN: usize = 8;
/// A reader nobody asked anything for so long is ended.
const READER_IDLE: Duration = Duration::from_secs(60);
/// Nodes whose extended attributes are kept: programs ask for their length, then for them.
const XATTRS_KEPT: usize = 256;

/// Whose files they are shown as.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Owners {
    /// The guest's numbers.
    #[default]
    Guest,
    /// All of one user and group; what the owner may, that user may.
    As {
        /// User.
        uid: u32,
        /// Group.
        gid: u32,
    },
    /// The guest's numbers, some of them changed.
    Map {
        /// Users.
        users: Vec<IdRange>,
        /// Groups.
        groups: Vec<IdRange>,
    },
}

/// So many numbers from one on become those from another on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IdRange {
    /// The first in the guest.
    pub from: u32,
    /// The first here.
    pub to: u32,
    /// How many.
    pub count: u32,
}

impl Owners {
    fn of(&self, uid: u32, gid: u32) -> (u32, u32) {
        match self {
            Self::Guest => (uid, gid),
            Self::As { uid, gid } => (*uid, *gid),
            Self::Map { users, groups } => (mapped(users, uid), mapped(groups, gid)),
        }
    }
}

fn mapped(ranges: &[IdRange], id: u32) -> u32 {
    let range = ranges.iter().find(|r| id >= r.from && id - r.from < r.count);
    range.map_or(id, |r| r.to.saturating_add(id - r.from))
}

/// The files of guests in one mount.
#[derive(Debug)]
pub(super) struct Inside {
    repository: Repository,
    reader: ReaderCommand,
    pub(super) owners: Owners,
    numbers: Numbers,
    /// By the point's slot; the one asked last comes last.
    open: Mutex<VecDeque<(u64, Arc<PointTree>)>>,
    xattrs: Cache<GuestNode, Arc<[Xattr]>>,
}

/// An open file of a guest.
#[derive(Debug)]
pub(super) struct GuestFile {
    pub(super) content: OpenContent,
    pub(super) readahead: Mutex<backstay_blockdev::Readahead>,
}

/// An open directory of a guest: a piece of it, so that the kernel can fetch it in its own smaller pieces.
#[derive(Debug)]
pub(super) struct GuestDir {
    pub(super) node: GuestNode,
    pub(super) fs: Arc<GuestFs>,
    pub(super) tree: Arc<PointTree>,
    pub(super) piece: Mutex<Piece>,
}

/// Entries from a place on; empty behind the end.
#[derive(Debug, Default)]
pub(super) struct Piece {
    pub(super) from: Option<u64>,
    pub(super) entries: Arc<Vec<(DirEntry, Option<Stat>)>>,
}

impl Inside {
    pub(super) fn new(repository: Repository, reader: ReaderCommand, owners: Owners) -> Self {
        Self {
            repository,
            reader,
            owners,
            numbers: Numbers::default(),
            open: Mutex::default(),
            xattrs: Cache::new(XATTRS_KEPT),
        }
    }

    /// The volumes of a point. Blocks.
    pub(super) fn tree(&self, point: &Point) -> Result<Arc<PointTree>, Refusal> {
        let slot = point.slot();
        let mut open = self.open.lock();
        if let Some(at) = open.iter().position(|(s, _)| *s == slot)
            && let Some(found) = open.remove(at)
        {
            let tree = Arc::clone(&found.1);
            open.push_back(found);
            return Ok(tree);
        }
        let files = PointFiles::open(&self.repository, &point.record, self.reader.clone());
        let files = files.map_err(|e| {
            tracing::error!(
                machine = %point.record.machine, point = %point.record.id, error = %chain(&e),
                "cannot open the disks"
            );
            Refusal::Unreadable
        })?;
        let tree = Arc::new(PointTree::new(files));
        if open.len() >= POINTS_OPEN {
            open.pop_front();
        }
        open.push_back((slot, Arc::clone(&tree)));
        Ok(tree)
    }

    /// The volumes of a point that was asked before. Does not block.
    pub(super) fn tree_now(&self, slot: u64) -> Option<Arc<PointTree>> {
        let open = self.open.try_lock()?;
        open.iter().find(|(s, _)| *s == slot).map(|(_, tree)| Arc::clone(tree))
    }

    /// Ends readers that nobody asks. To be called now and then.
    pub(super) fn rest(&self) {
        let trees: Vec<Arc<PointTree>> =
            self.open.lock().iter().map(|(_, tree)| Arc::clone(tree)).collect();
        for tree in trees {
            tree.files().rest(READER_IDLE);
        }
    }

    /// The number of a node in this mount.
    pub(super) fn number(&self, node: GuestNode) -> Result<u64, Refusal> {
        self.numbers.number(node)
    }

    /// The node of a number.
    pub(super) fn node(&self, ino: u64) -> Option<GuestNode> {
        self.numbers.node(ino)
    }

    /// All extended attributes of a node. Blocks.
    pub(super) fn xattrs(&self, node: GuestNode, fs: &GuestFs) -> Result<Arc<[Xattr]>, Refusal> {
        use backstay_guestfs::fs::FileSystem as _;
        if let Some(known) = self.xattrs.get(&node) {
            return Ok(known);
        }
        let all: Arc<[Xattr]> = fs.xattrs(node.id).map_err(Refusal::from)?.into();
        self.xattrs.insert(node, Arc::clone(&all));
        Ok(all)
    }
}

/// The root of a volume as a node.
pub(super) fn root_of(slot: u64, system: u16, volume: usize, id: NodeId) -> GuestNode {
    GuestNode { slot, system, volume: volume as u32, id }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn owners_are_mapped() {
        assert_eq!(Owners::Guest.of(5, 6), (5, 6));
        assert_eq!(Owners::As { uid: 1000, gid: 100 }.of(0, 0), (1000, 100));
        let range = |from, to, count| IdRange { from, to, count };
        let map = Owners::Map {
            users: vec![range(0, 100_000, 65_536), range(u32::MAX, 7, 1)],
            groups: vec![range(10, u32::MAX, 5)],
        };
        assert_eq!(map.of(0, 9), (100_000, 9));
        assert_eq!(map.of(65_535, 10), (165_535, u32::MAX));
        assert_eq!(map.of(65_536, 12), (65_536, u32::MAX));
        assert_eq!(map.of(u32::MAX, 15), (7, 15));
    }
}
