//! Requests of the kernel about guests' files, answered.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use backstay_blockdev::Readahead;
use backstay_guestfs::fs::{DirCookie, FileSystem, NodeKind, Stat, Time};
use fuser::{
    FileAttr, FileHandle, FileType, FopenFlags, Generation, INodeNo, ReplyAttr, ReplyData,
    ReplyDirectory, ReplyDirectoryPlus, ReplyEntry, ReplyOpen, ReplyXattr,
};
use parking_lot::Mutex;

use super::super::errno::Refusal;
use super::super::listing::Handle;
use super::super::tree::Point;
use super::tree::{Directory, PointTree};
use super::{GuestDir, GuestFile, GuestNode, Inside, Piece, root_of};

/// What a recovery point holds never changes, so the kernel may believe it for long.
const FOREVER: Duration = Duration::from_secs(3600);
/// Entries asked of a reader at once.
const PIECE_ENTRIES: usize = 1024;
/// Offsets in directories that are `.` and `..`; cookies come behind them.
const DOTS: u64 = 2;
/// The unit of `st_blocks`.
const STAT_BLOCK_BYTES: u64 = 512;
/// `st_blksize`: what programs should read at once.
const PREFERRED_READ_BYTES: u32 = 128 << 10;

/// A node, what it is, and where it belongs.
pub(in super::super) struct Found {
    pub(in super::super) node: GuestNode,
    pub(in super::super) stat: Stat,
}

impl Inside {
    /// Attributes as the kernel takes them.
    pub(in super::super) fn attr(&self, node: GuestNode, stat: &Stat) -> Result<FileAttr, Refusal> {
        let (uid, gid) = self.owners.of(stat.uid, stat.gid);
        let modified = at(stat.modified);
        Ok(FileAttr {
            ino: INodeNo(self.number(node)?),
            size: stat.size_bytes,
            blocks: stat.allocated_bytes.div_ceil(STAT_BLOCK_BYTES),
            atime: at(stat.accessed),
            mtime: modified,
            ctime: at(stat.changed),
            crtime: stat.created.map_or(modified, at),
            kind: kind(stat.kind),
            perm: stat.mode & 0o7777,
            nlink: stat.links.max(1),
            uid,
            gid,
            rdev: stat.device.map_or(0, device_number),
            blksize: PREFERRED_READ_BYTES,
            flags: 0,
        })
    }

    /// What is seen where this node is: itself, or the root of the volume that is mounted upon it.
    fn seen(&self, tree: &PointTree, node: GuestNode, stat: Stat) -> Result<Found, Refusal> {
        let covered = match stat.kind {
            NodeKind::Directory => tree.covered(node.system, node.volume, node.id),
            _ => None,
        };
        let Some((volume, id)) = covered else { return Ok(Found { node, stat }) };
        let stat = tree.fs(volume)?.stat(id)?;
        Ok(Found { node: GuestNode { volume, id, ..node }, stat })
    }

    /// A child of a guest's directory. Blocks.
    pub(in super::super) fn child(
        &self,
        parent: GuestNode,
        point: &Point,
        name: &OsStr,
    ) -> Result<Found, Refusal> {
        let tree = self.tree(point)?;
        let stat = tree.fs(parent.volume)?.lookup_stat(parent.id, name.as_bytes())?;
        self.seen(&tree, GuestNode { id: stat.node, ..parent }, stat)
    }

    /// A directory in `files`. Blocks.
    pub(in super::super) fn directory(
        &self,
        point: &Point,
        name: &OsStr,
    ) -> Result<Found, Refusal> {
        let tree = self.tree(point)?;
        let all = tree.directories()?;
        let found = all.iter().find(|d| d.name.as_bytes() == name.as_bytes());
        self.top(point, &tree, found.ok_or(Refusal::NoEntry)?)
    }

    /// All of `files`, with their names. Blocks.
    pub(in super::super) fn top_level(
        &self,
        point: &Point,
    ) -> Result<Vec<(String, Found)>, Refusal> {
        let tree = self.tree(point)?;
        let all = tree.directories()?.iter();
        all.map(|d| Ok((d.name.clone(), self.top(point, &tree, d)?))).collect()
    }

    fn top(&self, point: &Point, tree: &PointTree, d: &Directory) -> Result<Found, Refusal> {
        let stat = tree.fs(d.volume)?.stat(d.root)?;
        let node = root_of(point.slot(), d.system, d.volume as usize, d.root);
        Ok(Found { node, stat })
    }

    /// The metadata of a node if it is at hand. Does not block.
    pub(in super::super) fn stat_now(&self, node: GuestNode) -> Option<Stat> {
        let tree = self.tree_now(node.slot)?;
        tree.files().fs_now(node.volume as usize)?.known_stat(node.id)
    }

    /// Whether it is at hand that a node has no extended attributes. Does not block.
    pub(in super::super) fn lacks_xattrs_now(&self, node: GuestNode) -> bool {
        self.stat_now(node).is_some_and(|stat| stat.attributes.no_xattrs)
    }

    /// The metadata of a node. Blocks.
    pub(in super::super) fn stat(&self, node: GuestNode, point: &Point) -> Result<Stat, Refusal> {
        let tree = self.tree(point)?;
        Ok(tree.fs(node.volume)?.stat(node.id)?)
    }

    pub(in super::super) fn reply_found(&self, found: Result<Found, Refusal>, reply: ReplyEntry) {
        match found.and_then(|f| self.attr(f.node, &f.stat)) {
            Ok(attr) => reply.entry_with_ttls(&FOREVER, &FOREVER, &attr, Generation(0)),
            Err(why) => reply.error(why.into()),
        }
    }

    pub(in super::super) fn reply_stat(
        &self,
        node: GuestNode,
        stat: Result<Stat, Refusal>,
        reply: ReplyAttr,
    ) {
        match stat.and_then(|stat| self.attr(node, &stat)) {
            Ok(attr) => reply.attr(&FOREVER, &attr),
            Err(why) => reply.error(why.into()),
        }
    }

    pub(in super::super) fn reply_link(&self, node: GuestNode, point: &Point, reply: ReplyData) {
        let target = || -> Result<Vec<u8>, Refusal> {
            Ok(self.tree(point)?.fs(node.volume)?.read_link(node.id)?)
        };
        match target() {
            Ok(target) => reply.data(&target),
            Err(why) => reply.error(why.into()),
        }
    }

    /// What an open file or directory of a guest is. Blocks.
    pub(in super::super) fn open(
        &self,
        node: GuestNode,
        point: &Point,
        directory: bool,
    ) -> Result<Handle, Refusal> {
        let tree = self.tree(point)?;
        let fs = tree.fs(node.volume)?;
        let is_directory = fs.stat(node.id)?.kind == NodeKind::Directory;
        if is_directory != directory {
            return Err(if directory { Refusal::NotDirectory } else { Refusal::IsDirectory });
        }
        if directory {
            let piece = Mutex::new(Piece::default());
            return Ok(Handle::GuestDir(Arc::new(GuestDir { node, fs, tree, piece })));
        }
        let content = fs.open_content(node.id)?;
        let readahead = Mutex::new(Readahead::new(content.size_bytes()));
        Ok(Handle::GuestFile(Arc::new(GuestFile { content, readahead })))
    }

    /// Opens a file whose metadata is at hand. Does not block; `None` where it would have to.
    pub(in super::super) fn open_now(&self, node: GuestNode) -> Option<Arc<GuestFile>> {
        let tree = self.tree_now(node.slot)?;
        let fs = tree.files().fs_now(node.volume as usize)?;
        fs.known_stat(node.id).filter(|stat| stat.kind == NodeKind::File)?;
        let content = fs.open_content(node.id).ok()?;
        let readahead = Mutex::new(Readahead::new(content.size_bytes()));
        Some(Arc::new(GuestFile { content, readahead }))
    }

    pub(in super::super) fn reply_xattr(
        &self,
        node: GuestNode,
        point: &Point,
        name: Option<&OsStr>,
        size: u32,
        reply: ReplyXattr,
    ) {
        let value = || -> Result<Vec<u8>, Refusal> {
            let fs = self.tree(point)?.fs(node.volume)?;
            let all = self.xattrs(node, &fs)?;
            let Some(name) = name else {
                return Ok(all.iter().flat_map(|x| [&x.name[..], b"\0"].concat()).collect());
            };
            let found = all.iter().find(|x| x.name == name.as_bytes());
            Ok(found.ok_or(Refusal::NoAttribute)?.value.clone())
        };
        match value() {
            Err(why) => reply.error(why.into()),
            Ok(value) if size == 0 => reply.size(value.len() as u32),
            Ok(value) if value.len() > size as usize => reply.error(Refusal::TooSmall.into()),
            Ok(value) => reply.data(&value),
        }
    }
}

impl GuestDir {
    /// Entries from an offset on, as far as they are at hand. Does not block.
    pub(in super::super) fn piece_now(&self, offset: u64) -> Option<Arc<Entries>> {
        let piece = self.piece.try_lock()?;
        let place = offset.saturating_sub(DOTS);
        if piece.from == Some(place) {
            return Some(Arc::new(Entries { all: Arc::clone(&piece.entries), first: 0 }));
        }
        // Somewhere within what was fetched: behind the entry that ends there.
        let first = piece.entries.iter().position(|(e, _)| e.next.0 == place)? + 1;
        let there = first < piece.entries.len();
        there.then(|| Arc::new(Entries { all: Arc::clone(&piece.entries), first }))
    }

    /// Entries from an offset on. Blocks.
    pub(in super::super) fn piece(&self, offset: u64) -> Result<Arc<Entries>, Refusal> {
        if let Some(entries) = self.piece_now(offset) {
            return Ok(entries);
        }
        let place = offset.saturating_sub(DOTS);
        let entries =
            Arc::new(self.fs.read_dir_stat(self.node.id, DirCookie(place), PIECE_ENTRIES)?);
        *self.piece.lock() = Piece { from: Some(place), entries: Arc::clone(&entries) };
        Ok(Arc::new(Entries { all: entries, first: 0 }))
    }

    pub(in super::super) fn reply(
        &self,
        inside: &Inside,
        entries: Result<Arc<Entries>, Refusal>,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let done = entries.and_then(|entries| {
            let me = INodeNo(inside.number(self.node)?);
            for (at, name) in [(1, "."), (2, "..")].into_iter().filter(|(at, _)| *at > offset) {
                // The kernel finds the parent by itself.
                if reply.add(me, at, FileType::Directory, name) {
                    return Ok(());
                }
            }
            for (entry, stat) in entries.all.iter().skip(entries.first) {
                let node = GuestNode { id: entry.node, ..self.node };
                let kind = stat.map(|s| s.kind).or(entry.kind).map_or(FileType::RegularFile, kind);
                let name = OsStr::from_bytes(&entry.name);
                let next = entry.next.0.saturating_add(DOTS);
                if reply.add(INodeNo(inside.number(node)?), next, kind, name) {
                    break;
                }
            }
            Ok(())
        });
        match done {
            Ok(()) => reply.ok(),
            Err(why) => reply.error(why.into()),
        }
    }

    pub(in super::super) fn reply_plus(
        &self,
        inside: &Inside,
        entries: Result<Arc<Entries>, Refusal>,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        let done = entries.and_then(|entries| self.add_plus(inside, &entries, offset, &mut reply));
        match done {
            Ok(()) => reply.ok(),
            Err(why) => reply.error(why.into()),
        }
    }

    fn add_plus(
        &self,
        inside: &Inside,
        entries: &Entries,
        offset: u64,
        reply: &mut ReplyDirectoryPlus,
    ) -> Result<(), Refusal> {
        let mine = self.fs.stat(self.node.id)?;
        let me = inside.attr(self.node, &mine)?;
        for (at, name) in [(1, "."), (2, "..")].into_iter().filter(|(at, _)| *at > offset) {
            if reply.add(me.ino, at, name, &FOREVER, &me, Generation(0)) {
                return Ok(());
            }
        }
        for (entry, stat) in entries.all.iter().skip(entries.first) {
            let node = GuestNode { id: entry.node, ..self.node };
            let next = entry.next.0.saturating_add(DOTS);
            let name = OsStr::from_bytes(&entry.name);
            let found = match stat {
                Some(stat) => inside.seen(&self.tree, node, *stat)?,
                // A node that cannot be read is listed all the same; whoever asks for it gets the error.
                None => {
                    let unknown = FileAttr { ino: INodeNo(inside.number(node)?), ..unknown() };
                    let soon = Duration::ZERO;
                    if reply.add(unknown.ino, next, name, &soon, &unknown, Generation(0)) {
                        break;
                    }
                    continue;
                }
            };
            let attr = inside.attr(found.node, &found.stat)?;
            if reply.add(attr.ino, next, name, &FOREVER, &attr, Generation(0)) {
                break;
            }
        }
        Ok(())
    }
}

/// Entries of a directory from one of them on.
#[derive(Debug)]
pub(in super::super) struct Entries {
    all: Arc<Vec<(backstay_guestfs::fs::DirEntry, Option<Stat>)>>,
    first: usize,
}

/// Hands out a handle for something opened.
pub(in super::super) fn reply_opened(opened: Result<(u64, bool), Refusal>, reply: ReplyOpen) {
    match opened {
        // The bytes never change: what the kernel has cached stays good from open to open.
        Ok((handle, false)) => reply
            .opened(FileHandle(handle), FopenFlags::FOPEN_KEEP_CACHE | FopenFlags::FOPEN_NOFLUSH),
        Ok((handle, true)) => reply
            .opened(FileHandle(handle), FopenFlags::FOPEN_KEEP_CACHE | FopenFlags::FOPEN_CACHE_DIR),
        Err(why) => reply.error(why.into()),
    }
}

/// What stands for a node whose metadata cannot be read.
fn unknown() -> FileAttr {
    FileAttr {
        ino: INodeNo(0),
        size: 0,
        blocks: 0,
        atime: UNIX_EPOCH,
        mtime: UNIX_EPOCH,
        ctime: UNIX_EPOCH,
        crtime: UNIX_EPOCH,
        kind: FileType::RegularFile,
        perm: 0,
        nlink: 1,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: PREFERRED_READ_BYTES,
        flags: 0,
    }
}

fn kind(kind: NodeKind) -> FileType {
    match kind {
        NodeKind::File => FileType::RegularFile,
        NodeKind::Directory => FileType::Directory,
        NodeKind::Symlink => FileType::Symlink,
        NodeKind::CharDevice => FileType::CharDevice,
        NodeKind::BlockDevice => FileType::BlockDevice,
        NodeKind::Fifo => FileType::NamedPipe,
        NodeKind::Socket => FileType::Socket,
    }
}

/// A device number as FUSE carries it: the kernel's `new_encode_dev`.
fn device_number((major, minor): (u32, u32)) -> u32 {
    (minor & 0xff) | (major & 0xfff) << 8 | (minor & 0xf_ff00) << 12
}

/// Times that a `SystemTime` cannot hold come as the nearest that it can.
fn at(time: Time) -> SystemTime {
    let whole = Duration::from_secs(time.seconds.unsigned_abs());
    let found = if time.seconds < 0 {
        UNIX_EPOCH.checked_sub(whole)
    } else {
        UNIX_EPOCH.checked_add(whole)
    };
    let nanos = Duration::from_nanos(u64::from(time.nanos.min(999_999_999)));
    found.and_then(|at| at.checked_add(nanos)).unwrap_or(UNIX_EPOCH)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_numbers_and_times() {
        assert_eq!(device_number((1, 3)), 0x103);
        assert_eq!(device_number((259, 12)), 259 << 8 | 12);
        assert_eq!(
            device_number((300, 70_000)),
            (70_000 & 0xff) | 300 << 8 | (70_000 & !0xff) << 12
        );
        let before = at(Time { seconds: -2, nanos: 500_000_000 });
        let earlier = UNIX_EPOCH.duration_since(before).expect("it is earlier");
        assert_eq!(earlier, Duration::from_millis(1500));
        // Whatever a guest writes, no time is out of reach.
        let _ = [i64::MIN, i64::MAX].map(|seconds| at(Time { seconds, nanos: u32::MAX }));
    }
}
