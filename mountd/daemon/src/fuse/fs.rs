//! The file system: requests of the kernel answered from the listing.
//!
//! One thread takes all requests. What it can answer without blocking it answers at once (fuser
//! with several threads costs a single reader two thirds of its requests per second); the rest
//! goes to the pool with its reply.

use std::cell::RefCell;
use std::ffi::OsStr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use backstay_blockdev::{BlockDevice, ExtentKind};
use fuser::{
    Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, InitFlags,
    IoctlFlags, KernelConfig, LockOwner, OpenAccMode, OpenFlags, ReplyAttr, ReplyData,
    ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLseek, ReplyOpen,
    ReplyStatfs, ReplyXattr, Request,
};

use super::errno::Refusal;
use super::listing::{Listing, OpenDir, OpenFile, seek};
use super::pool::Pool;
use super::tree::{Node, Point, View};

/// What the kernel may read ahead of a sequential reader.
pub(super) const READAHEAD_BYTES: u32 = 1 << 20;
/// Longest read answered. The kernel asks for at most 1 MiB (256 pages); a longer one cannot be
/// answered short, because the kernel would fill it up with zeros.
const READ_MAX: u32 = 16 << 20;
/// Reads the kernel may have in flight for its own account (readahead, asynchronous direct reads).
const BACKGROUND_MAX: u16 = 64;
/// How long the kernel may believe what never changes: below a point everything.
const FOREVER: Duration = Duration::from_secs(3600);
/// The unit of `st_blocks`, whatever `st_blksize` says.
const STAT_BLOCK_BYTES: u64 = 512;
/// `st_blksize`: what programs should read at once; one default chunk.
const PREFERRED_READ_BYTES: u32 = 64 << 10;
/// The unit of `statfs`.
const STATFS_BLOCK_BYTES: u32 = 4096;
/// Longest name, as statfs tells it: a machine or disk name of 200 bytes, each written as `%XX`,
/// and a suffix (format `NAME_MAX`).
const NAME_BYTES_MAX: u32 = 604;

/// The file system of one mount.
#[derive(Debug)]
pub(super) struct MountFs {
    shared: Arc<Shared>,
    pool: Pool,
}

/// What the requests in the pool need too.
#[derive(Debug)]
struct Shared {
    listing: Listing,
    uid: u32,
    gid: u32,
    mounted: SystemTime,
}

thread_local! {
    /// Where reads of this thread are put together; grows to the longest read (`READ_MAX`).
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

fn with_buffer<R>(len: usize, work: impl FnOnce(&mut [u8]) -> R) -> R {
    BUFFER.with_borrow_mut(|buffer| {
        if buffer.len() < len {
            buffer.resize(len, 0);
        }
        work(&mut buffer[..len])
    })
}

impl MountFs {
    pub(super) fn new(listing: Listing, workers: usize) -> std::io::Result<Self> {
        let shared = Shared {
            listing,
            uid: rustix::process::getuid().as_raw(),
            gid: rustix::process::getgid().as_raw(),
            mounted: SystemTime::now(),
        };
        Ok(Self { shared: Arc::new(shared), pool: Pool::start(workers)? })
    }

    /// Runs `work` in the pool.
    fn later(&self, work: impl FnOnce(&Shared) + Send + 'static) {
        let shared = Arc::clone(&self.shared);
        self.pool.submit(move || work(&shared));
    }
}

impl Shared {
    /// The node of a number, in a tree read again if the node's children may have changed. Blocks.
    fn fresh_node(&self, ino: INodeNo) -> Result<(Arc<View>, Node), Refusal> {
        let view = self.listing.fresh_view()?;
        let node = view.node(ino.0).ok_or(Refusal::Stale)?;
        Ok((view, node))
    }

    /// A child by name. Blocks. When the list cannot be read again, names known before still lead
    /// to their points; only an unknown one fails, because nobody can say that it is not there.
    fn child(&self, parent: INodeNo, name: &str) -> Result<Node, Refusal> {
        match self.fresh_node(parent) {
            Ok((view, node)) => view.child(&node, name).ok_or(Refusal::NoEntry),
            Err(why) => {
                let view = self.listing.view();
                view.node(parent.0).and_then(|node| view.child(&node, name)).ok_or(why)
            }
        }
    }

    /// A node's attributes, or none if they have to be counted first.
    fn attr(&self, node: &Node) -> Option<FileAttr> {
        let time = |p: &Arc<Point>| SystemTime::from(p.record.time);
        let newest = |m: &super::tree::Machine| m.latest().map_or(self.mounted, time);
        let (kind, perm, size, blocks, mtime) = match node {
            Node::Root => (FileType::Directory, 0o555, 0, 0, self.mounted),
            Node::Machine(m) => (FileType::Directory, 0o555, 0, 0, newest(m)),
            Node::Point(p) | Node::Disks(p) => (FileType::Directory, 0o555, 0, 0, time(p)),
            Node::Latest(m) => {
                let len = m.latest().map_or(0, |p| p.dir_name.len() as u64);
                (FileType::Symlink, 0o777, len, 0, newest(m))
            }
            Node::Disk(p, i) => {
                let size = p.disk_record(*i)?.size_bytes;
                let blocks = p.disks.get(*i)?.data_bytes.get()?.div_ceil(STAT_BLOCK_BYTES);
                (FileType::RegularFile, 0o444, size, blocks, time(p))
            }
        };
        Some(FileAttr {
            ino: INodeNo(node.ino()),
            size,
            blocks,
            atime: mtime,
            mtime,
            ctime: mtime,
            crtime: mtime,
            kind,
            perm,
            // 1 says "not counted" to programs that guess the number of subdirectories from it.
            nlink: 1,
            uid: self.uid,
            gid: self.gid,
            rdev: 0,
            blksize: PREFERRED_READ_BYTES,
            flags: 0,
        })
    }

    /// A node's attributes, counted if need be. Blocks.
    fn counted_attr(&self, node: &Node) -> Result<FileAttr, Refusal> {
        if let Node::Disk(point, index) = node {
            self.listing.count_data(point, *index)?;
        }
        self.attr(node).ok_or(Refusal::Stale)
    }

    /// How long the kernel may believe that a name leads to a node, and the node's attributes.
    fn ttls(&self, node: &Node) -> (Duration, Duration) {
        let short = self.listing.refresh_period();
        match node {
            Node::Root | Node::Machine(_) | Node::Latest(_) => (short, short),
            Node::Point(_) => (short, FOREVER),
            Node::Disks(_) | Node::Disk(..) => (FOREVER, FOREVER),
        }
    }

    fn reply_entry(&self, node: &Node, reply: ReplyEntry) {
        match self.counted_attr(node) {
            Ok(attr) => {
                let (entry_ttl, attr_ttl) = self.ttls(node);
                reply.entry_with_ttls(&attr_ttl, &entry_ttl, &attr, Generation(0));
            }
            Err(why) => reply.error(why.into()),
        }
    }

    fn reply_attr(&self, node: &Node, reply: ReplyAttr) {
        match self.counted_attr(node) {
            Ok(attr) => reply.attr(&self.ttls(node).1, &attr),
            Err(why) => reply.error(why.into()),
        }
    }

    /// The node of a number if nothing has to be read for it.
    fn node_now(&self, ino: INodeNo) -> Option<(Arc<View>, Node)> {
        let view = self.listing.view();
        let node = view.node(ino.0)?;
        let may_change = matches!(node, Node::Root | Node::Machine(_) | Node::Latest(_));
        (!may_change || !self.listing.is_stale()).then_some((view, node))
    }
}

/// Whether the attributes are at hand.
fn is_counted(node: &Node) -> bool {
    match node {
        Node::Disk(p, i) => p.disks.get(*i).is_some_and(|d| d.data_bytes.get().is_some()),
        _ => true,
    }
}

fn read_blocking(file: &OpenFile, offset: u64, len: usize, reply: ReplyData) {
    with_buffer(len, |buffer| match file.disk.read_at(offset, buffer) {
        Ok(()) => reply.data(buffer),
        Err(e) => reply.error(Refusal::from(e).into()),
    });
}

/// Entries from `offset` on: `.`, `..` and the children; `add` says whether the reply is full.
fn each_entry(dir: &OpenDir, offset: u64, mut add: impl FnMut(u64, &str, Option<&Node>) -> bool) {
    let Ok(mut at) = usize::try_from(offset) else { return };
    loop {
        let next = at as u64 + 1;
        let full = match at {
            0 => add(next, ".", None),
            1 => add(next, "..", None),
            _ => match dir.view.nth_child(&dir.node, at - 2) {
                Some((name, node)) => add(next, name, Some(&node)),
                None => return,
            },
        };
        if full {
            return;
        }
        at += 1;
    }
}

impl Filesystem for MountFs {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        if let Err(most) = config.set_max_readahead(READAHEAD_BYTES) {
            let _ = config.set_max_readahead(most);
        }
        // Nothing is written; the number also bounds the pages of one read.
        let _ = config.set_max_write(1 << 20);
        let _ = config.set_max_background(BACKGROUND_MAX);
        for wanted in [
            InitFlags::FUSE_ASYNC_DIO,
            InitFlags::FUSE_PARALLEL_DIROPS,
            InitFlags::FUSE_MAX_PAGES,
            InitFlags::FUSE_DO_READDIRPLUS | InitFlags::FUSE_READDIRPLUS_AUTO,
        ] {
            // An older kernel lacks some; it is slower then, no more.
            let _ = config.add_capabilities(wanted);
        }
        Ok(())
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        // All our names are UTF-8.
        let Some(name) = name.to_str() else { return reply.error(Errno::ENOENT) };
        if let Some((view, node)) = self.shared.node_now(parent) {
            match view.child(&node, name) {
                None => return reply.error(Refusal::NoEntry.into()),
                Some(child) if is_counted(&child) => return self.shared.reply_entry(&child, reply),
                Some(_) => {}
            }
        }
        let name = name.to_owned();
        self.later(move |shared| match shared.child(parent, &name) {
            Ok(child) => shared.reply_entry(&child, reply),
            Err(why) => reply.error(why.into()),
        });
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        // Attributes of what is known are answered even if the list is old.
        let Some(node) = self.shared.listing.view().node(ino.0) else {
            return reply.error(Refusal::Stale.into());
        };
        if is_counted(&node) {
            return self.shared.reply_attr(&node, reply);
        }
        self.later(move |shared| shared.reply_attr(&node, reply));
    }

    fn readlink(&self, _: &Request, ino: INodeNo, reply: ReplyData) {
        fn answer(node: &Node, reply: ReplyData) {
            match node {
                Node::Latest(m) => match m.latest() {
                    Some(point) => reply.data(point.dir_name.as_bytes()),
                    None => reply.error(Refusal::Stale.into()),
                },
                _ => reply.error(Refusal::Invalid.into()),
            }
        }
        match self.shared.node_now(ino) {
            Some((_, node)) => answer(&node, reply),
            None => self.later(move |shared| match shared.fresh_node(ino) {
                Ok((_, node)) => answer(&node, reply),
                Err(why) => reply.error(why.into()),
            }),
        }
    }

    fn open(&self, _: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        if flags.acc_mode() != OpenAccMode::O_RDONLY {
            return reply.error(Refusal::ReadOnly.into());
        }
        let (point, index) = match self.shared.listing.view().node(ino.0) {
            Some(Node::Disk(point, index)) => (point, index),
            Some(_) => return reply.error(Refusal::IsDirectory.into()),
            None => return reply.error(Refusal::Stale.into()),
        };
        let answer = move |shared: &Shared| match shared.listing.open_file(&point, index) {
            // The bytes never change: what the kernel has cached stays good from open to open.
            Ok(handle) => reply.opened(
                FileHandle(handle),
                FopenFlags::FOPEN_KEEP_CACHE | FopenFlags::FOPEN_NOFLUSH,
            ),
            Err(why) => reply.error(why.into()),
        };
        self.later(answer);
    }

    fn read(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let file = match self.shared.listing.file(handle.0) {
            Ok(file) => file,
            Err(why) => return reply.error(why.into()),
        };
        if size > READ_MAX {
            return reply.error(Refusal::Invalid.into());
        }
        // The kernel expects less than it asked for at the end of the file, and only there.
        let len = u64::from(size).min(file.size_bytes.saturating_sub(offset)) as usize;
        if len == 0 {
            return reply.data(&[]);
        }
        let unanswered = with_buffer(len, |buffer| match file.disk.try_read_at(offset, buffer) {
            Ok(true) => {
                reply.data(buffer);
                None
            }
            Ok(false) => Some(reply),
            Err(e) => {
                reply.error(Refusal::from(e).into());
                None
            }
        });
        file.note_read(offset, len as u64);
        if let Some(reply) = unanswered {
            self.pool.submit(move || read_blocking(&file, offset, len, reply));
        }
    }

    fn lseek(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        let wanted = match whence {
            libc::SEEK_DATA => ExtentKind::Data,
            libc::SEEK_HOLE => ExtentKind::Hole,
            _ => return reply.error(Refusal::Invalid.into()),
        };
        let file = match self.shared.listing.file(handle.0) {
            Ok(file) => file,
            Err(why) => return reply.error(why.into()),
        };
        let Ok(offset) = u64::try_from(offset) else {
            return reply.error(Refusal::NoSuchOffset.into());
        };
        self.pool.submit(move || match seek(&*file.disk, offset, wanted) {
            // Disks are at most 2^60 bytes (format `DISK_SIZE_MAX`).
            Ok(found) => reply.offset(i64::try_from(found).unwrap_or(i64::MAX)),
            Err(why) => reply.error(why.into()),
        });
    }

    fn release(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        self.shared.listing.close(handle.0);
        reply.ok();
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }

    fn fsync(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        reply.ok();
    }

    fn opendir(&self, _: &Request, ino: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        fn answer(shared: &Shared, view: Arc<View>, node: Node, reply: ReplyOpen) {
            if matches!(node, Node::Latest(_) | Node::Disk(..)) {
                return reply.error(Refusal::NotDirectory.into());
            }
            match shared.listing.open_dir(view, node) {
                Ok(handle) => reply.opened(FileHandle(handle), FopenFlags::empty()),
                Err(why) => reply.error(why.into()),
            }
        }
        match self.shared.node_now(ino) {
            Some((view, node)) => answer(&self.shared, view, node, reply),
            None => self.later(move |shared| match shared.fresh_node(ino) {
                Ok((view, node)) => answer(shared, view, node, reply),
                Err(why) => reply.error(why.into()),
            }),
        }
    }

    fn readdir(
        &self,
        _: &Request,
        ino: INodeNo,
        handle: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let dir = match self.shared.listing.dir(handle.0) {
            Ok(dir) => dir,
            Err(why) => return reply.error(why.into()),
        };
        let parent = INodeNo(dir.view.parent_ino(&dir.node));
        each_entry(&dir, offset, |next, name, node| match node {
            None if name == "." => reply.add(ino, next, FileType::Directory, name),
            None => reply.add(parent, next, FileType::Directory, name),
            Some(node) => {
                let kind = match node {
                    Node::Latest(_) => FileType::Symlink,
                    Node::Disk(..) => FileType::RegularFile,
                    _ => FileType::Directory,
                };
                reply.add(INodeNo(node.ino()), next, kind, name)
            }
        });
        reply.ok();
    }

    fn readdirplus(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        let dir = match self.shared.listing.dir(handle.0) {
            Ok(dir) => dir,
            Err(why) => return reply.error(why.into()),
        };
        self.later(move |shared| {
            let mut failed = None;
            let parent = dir.view.node(dir.view.parent_ino(&dir.node)).unwrap_or(Node::Root);
            each_entry(&dir, offset, |next, name, node| {
                let node = match node {
                    Some(node) => node,
                    None if name == "." => &dir.node,
                    None => &parent,
                };
                match shared.counted_attr(node) {
                    Ok(attr) => {
                        let ttl = shared.ttls(node).0;
                        reply.add(INodeNo(node.ino()), next, name, &ttl, &attr, Generation(0))
                    }
                    Err(why) => {
                        failed = Some(why);
                        true
                    }
                }
            });
            match failed {
                Some(why) => reply.error(why.into()),
                None => reply.ok(),
            }
        });
    }

    fn releasedir(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        _: OpenFlags,
        reply: ReplyEmpty,
    ) {
        self.shared.listing.close(handle.0);
        reply.ok();
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        let view = self.shared.listing.view();
        let block = STATFS_BLOCK_BYTES;
        let blocks = view.total_bytes.div_ceil(u64::from(block));
        reply.statfs(blocks, 0, 0, view.inodes(), 0, block, NAME_BYTES_MAX, block);
    }

    fn getxattr(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, reply: ReplyXattr) {
        // The kernel remembers this answer and asks no more.
        reply.error(Errno::ENOSYS);
    }

    fn listxattr(&self, _: &Request, _: INodeNo, _: u32, reply: ReplyXattr) {
        reply.error(Errno::ENOSYS);
    }

    fn ioctl(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: IoctlFlags,
        _: u32,
        _: &[u8],
        _: u32,
        reply: ReplyIoctl,
    ) {
        reply.error(Errno::ENOTTY);
    }
}
