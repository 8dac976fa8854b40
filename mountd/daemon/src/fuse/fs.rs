//! The file system: requests of the kernel answered from the listing.
//!
//! One thread takes all requests. What it can answer without blocking it answers at once (fuser
//! with several threads costs a single reader two thirds of its requests per second); the rest
//! goes to the pool with its reply.

use std::cell::RefCell;
use std::ffi::OsStr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use backstay_blockdev::ExtentKind;
use crossbeam_channel::{RecvTimeoutError, Sender};
use fuser::{
    Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, InitFlags,
    IoctlFlags, KernelConfig, LockOwner, OpenAccMode, OpenFlags, ReplyAttr, ReplyData,
    ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLseek, ReplyOpen,
    ReplyStatfs, ReplyXattr, Request,
};

use super::errno::Refusal;
use super::inside::{self, GuestNode, Inside, is_guest};
use super::listing::{Handle, Listing, seek};
use super::pool::Pool;
use super::reading::list;
use super::tree::{Node, Point, View};

/// What the kernel may read ahead of a sequential reader.
pub(super) const READAHEAD_BYTES: u32 = 1 << 20;
/// Longest read answered. The kernel asks for at most 1 MiB (256 pages); a longer one cannot be
/// answered short, because the kernel would fill it up with zeros.
const READ_MAX: u32 = 16 << 20;
/// Reads the kernel may have in flight for its own account (readahead, asynchronous direct reads).
const BACKGROUND_MAX: u16 = 64;
/// How long the kernel may believe what never changes: below a point everything.
pub(super) const FOREVER: Duration = Duration::from_secs(3600);
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
    pub(super) pool: Pool,
    _resting: Resting,
}

/// How often it is looked whether a reader is still wanted.
const REST_PERIOD: Duration = Duration::from_secs(15);

/// A thread that ends readers nobody asks, until this is dropped.
#[derive(Debug)]
struct Resting {
    _end: Sender<()>,
}

impl Resting {
    fn start(shared: &Arc<Shared>) -> std::io::Result<Self> {
        let (end, ended) = crossbeam_channel::bounded(0);
        let shared = Arc::downgrade(shared);
        std::thread::Builder::new().name("mount-rest".into()).spawn(move || {
            while ended.recv_timeout(REST_PERIOD) == Err(RecvTimeoutError::Timeout) {
                let Some(shared) = shared.upgrade() else { return };
                if let Some(inside) = &shared.inside {
                    inside.rest();
                }
            }
        })?;
        Ok(Self { _end: end })
    }
}

/// What the requests in the pool need too.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) listing: Listing,
    pub(super) inside: Option<Inside>,
    uid: u32,
    gid: u32,
    mounted: SystemTime,
}

thread_local! {
    /// Where reads of this thread are put together; grows to the longest read (`READ_MAX`).
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

pub(super) fn with_buffer<R>(len: usize, work: impl FnOnce(&mut [u8]) -> R) -> R {
    BUFFER.with_borrow_mut(|buffer| {
        if buffer.len() < len {
            buffer.resize(len, 0);
        }
        work(&mut buffer[..len])
    })
}

impl MountFs {
    pub(super) fn new(
        listing: Listing,
        inside: Option<Inside>,
        workers: usize,
    ) -> std::io::Result<Self> {
        let shared = Shared {
            listing,
            inside,
            uid: rustix::process::getuid().as_raw(),
            gid: rustix::process::getgid().as_raw(),
            mounted: SystemTime::now(),
        };
        let shared = Arc::new(shared);
        let resting = Resting::start(&shared)?;
        Ok(Self { shared, pool: Pool::start(workers)?, _resting: resting })
    }

    /// Runs `work` in the pool.
    fn later(&self, work: impl FnOnce(&Shared) + Send + 'static) {
        let shared = Arc::clone(&self.shared);
        self.pool.submit(move || work(&shared));
    }

    /// Whether it is at hand that a node of a guest has no extended attributes: `ls -l` asks twice for each file.
    fn lacks_xattrs_now(&self, ino: INodeNo) -> bool {
        self.shared.guest(ino).is_ok_and(|(inside, node, _)| inside.lacks_xattrs_now(node))
    }

    /// Runs `work` on a guest's node in the pool.
    fn in_guest<R: Refuse>(
        &self,
        ino: INodeNo,
        reply: R,
        work: impl FnOnce(&Shared, &Inside, GuestNode, &Point, R) + Send + 'static,
    ) {
        self.later(move |shared| match shared.guest(ino) {
            Ok((inside, node, point)) => work(shared, inside, node, &point, reply),
            Err(why) => reply.refuse(why),
        });
    }
}

/// A reply that can say no.
trait Refuse: Send + 'static {
    fn refuse(self, why: Refusal);
}

macro_rules! refuses {
    ($($reply:ty),*) => {
        $(impl Refuse for $reply {
            fn refuse(self, why: Refusal) {
                self.error(why.into());
            }
        })*
    };
}

refuses!(ReplyEntry, ReplyAttr, ReplyData, ReplyOpen, ReplyXattr);

impl Shared {
    /// A guest's node by its number, and the point it is of.
    fn guest(&self, ino: INodeNo) -> Result<(&Inside, GuestNode, Arc<Point>), Refusal> {
        let inside = self.inside.as_ref().ok_or(Refusal::Stale)?;
        let node = inside.node(ino.0).ok_or(Refusal::Stale)?;
        let view = self.listing.view();
        let point = view.point(node.slot).ok_or(Refusal::Stale)?;
        Ok((inside, node, Arc::clone(point)))
    }

    /// The text about a point's volumes. Blocks.
    fn about(&self, point: &Point) -> Result<Arc<str>, Refusal> {
        let inside = self.inside.as_ref().ok_or(Refusal::Stale)?;
        Ok(inside.tree(point)?.text()?)
    }

    /// The attributes of that text. Blocks.
    fn about_attr(&self, node: &Node, point: &Point) -> Result<FileAttr, Refusal> {
        let size = self.about(point)?.len() as u64;
        let attr = self.attr(node).ok_or(Refusal::Stale)?;
        Ok(FileAttr { size, blocks: size.div_ceil(STAT_BLOCK_BYTES), ..attr })
    }

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
            Node::Point(p) | Node::Disks(p) | Node::Files(p) => {
                (FileType::Directory, 0o555, 0, 0, time(p))
            }
            Node::About(p) => (FileType::RegularFile, 0o444, 0, 0, time(p)),
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
    pub(super) fn counted_attr(&self, node: &Node) -> Result<FileAttr, Refusal> {
        match node {
            Node::Disk(point, index) => self.listing.count_data(point, *index)?,
            Node::About(point) => return self.about_attr(node, point),
            _ => {}
        }
        self.attr(node).ok_or(Refusal::Stale)
    }

    /// How long the kernel may believe that a name leads to a node, and the node's attributes.
    pub(super) fn ttls(&self, node: &Node) -> (Duration, Duration) {
        let short = self.listing.refresh_period();
        match node {
            Node::Root | Node::Machine(_) | Node::Latest(_) => (short, short),
            Node::Point(_) => (short, FOREVER),
            Node::Disks(_) | Node::Disk(..) | Node::Files(_) | Node::About(_) => (FOREVER, FOREVER),
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
        Node::About(_) => false,
        _ => true,
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
            // Always, not by the kernel's guess: who reads a whole directory before it looks at the entries (`find`) would
            // ask for each of them, and their metadata is at hand when they are listed.
            InitFlags::FUSE_DO_READDIRPLUS,
        ] {
            // An older kernel lacks some; it is slower then, no more.
            let _ = config.add_capabilities(wanted);
        }
        Ok(())
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        if is_guest(parent.0) {
            let name = name.to_owned();
            return self.in_guest(parent, reply, move |_, inside, node, point, reply| {
                inside.reply_found(inside.child(node, point, &name), reply);
            });
        }
        // All our names are UTF-8.
        let Some(name) = name.to_str() else { return reply.error(Errno::ENOENT) };
        if let Some((view, node)) = self.shared.node_now(parent) {
            if let Node::Files(point) = node {
                let name = OsStr::new(name).to_owned();
                return self.later(move |shared| match &shared.inside {
                    Some(inside) => inside.reply_found(inside.directory(&point, &name), reply),
                    None => reply.error(Refusal::Stale.into()),
                });
            }
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
        if is_guest(ino.0) {
            if let Ok((inside, node, _)) = self.shared.guest(ino)
                && let Some(stat) = inside.stat_now(node)
            {
                return inside.reply_stat(node, Ok(stat), reply);
            }
            return self.in_guest(ino, reply, |_, inside, node, point, reply| {
                inside.reply_stat(node, inside.stat(node, point), reply);
            });
        }
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
        if is_guest(ino.0) {
            return self.in_guest(ino, reply, |_, inside, node, point, reply| {
                inside.reply_link(node, point, reply);
            });
        }
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
        if is_guest(ino.0) {
            if let Ok((inside, node, _)) = self.shared.guest(ino)
                && let Some(file) = inside.open_now(node)
            {
                let early = Arc::clone(&file);
                self.later(move |_| early.content.locate(READAHEAD_BYTES.into()));
                let opened = self.shared.listing.insert(Handle::GuestFile(file));
                return inside::reply_opened(opened.map(|handle| (handle, false)), reply);
            }
            return self.in_guest(ino, reply, |shared, inside, node, point, reply| {
                let open = inside.open(node, point, false);
                let opened = open.and_then(|open| shared.listing.insert(open));
                inside::reply_opened(opened.map(|handle| (handle, false)), reply);
            });
        }
        let (point, index) = match self.shared.listing.view().node(ino.0) {
            Some(Node::About(point)) => {
                return self.later(move |shared| {
                    let text = shared.about(&point);
                    let opened = text.and_then(|text| shared.listing.insert(Handle::Text(text)));
                    inside::reply_opened(opened.map(|handle| (handle, false)), reply);
                });
            }
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
        if size > READ_MAX {
            return reply.error(Refusal::Invalid.into());
        }
        match self.shared.listing.handle(handle.0) {
            Ok(Handle::File(file)) => self.read_disk(file, offset, size, reply),
            Ok(Handle::GuestFile(file)) => self.read_guest(file, offset, size, reply),
            Ok(Handle::Text(text)) => {
                let from = usize::try_from(offset).unwrap_or(usize::MAX).min(text.len());
                let to = from.saturating_add(size as usize).min(text.len());
                reply.data(&text.as_bytes()[from..to]);
            }
            Ok(_) => reply.error(Refusal::BadHandle.into()),
            Err(why) => reply.error(why.into()),
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
        let handle = self.shared.listing.handle(handle.0);
        let Ok(offset) = u64::try_from(offset) else {
            return reply.error(Refusal::NoSuchOffset.into());
        };
        let found = move || match handle? {
            Handle::File(file) => seek(&*file.disk, offset, wanted),
            Handle::GuestFile(file) => {
                let found = file.content.seek(offset, wanted == ExtentKind::Hole)?;
                found.ok_or(Refusal::NoSuchOffset)
            }
            _ => Err(Refusal::Invalid),
        };
        self.pool.submit(move || match found() {
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
        if is_guest(ino.0) {
            return self.in_guest(ino, reply, |shared, inside, node, point, reply| {
                let open = inside.open(node, point, true);
                let opened = open.and_then(|open| shared.listing.insert(open));
                inside::reply_opened(opened.map(|handle| (handle, true)), reply);
            });
        }
        fn answer(shared: &Shared, view: Arc<View>, node: Node, reply: ReplyOpen) {
            if matches!(node, Node::Latest(_) | Node::Disk(..) | Node::About(_)) {
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
        reply: ReplyDirectory,
    ) {
        match self.shared.listing.handle(handle.0) {
            Ok(Handle::Dir(dir)) if matches!(dir.node, Node::Files(_)) => {
                self.later(move |shared| shared.list_files(&dir, ino, offset, reply));
            }
            Ok(Handle::Dir(dir)) => list(&dir, ino, offset, reply),
            Ok(Handle::GuestDir(dir)) => self.later(move |shared| match &shared.inside {
                Some(inside) => dir.reply(inside, dir.piece(offset), offset, reply),
                None => reply.error(Refusal::Stale.into()),
            }),
            Ok(_) => reply.error(Refusal::NotDirectory.into()),
            Err(why) => reply.error(why.into()),
        }
    }

    fn readdirplus(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        offset: u64,
        reply: ReplyDirectoryPlus,
    ) {
        match self.shared.listing.handle(handle.0) {
            Ok(Handle::Dir(dir)) if matches!(dir.node, Node::Files(_)) => {
                self.later(move |shared| shared.list_files_plus(&dir, offset, reply));
            }
            Ok(Handle::Dir(dir)) => self.later(move |shared| shared.list_plus(&dir, offset, reply)),
            Ok(Handle::GuestDir(dir)) => {
                // What was fetched for the kernel's last question mostly answers this one.
                if let (Some(inside), Some(entries)) = (&self.shared.inside, dir.piece_now(offset))
                {
                    return dir.reply_plus(inside, Ok(entries), offset, reply);
                }
                self.later(move |shared| match &shared.inside {
                    Some(inside) => dir.reply_plus(inside, dir.piece(offset), offset, reply),
                    None => reply.error(Refusal::Stale.into()),
                });
            }
            Ok(_) => reply.error(Refusal::NotDirectory.into()),
            Err(why) => reply.error(why.into()),
        }
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

    fn getxattr(&self, _: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        if self.shared.inside.is_none() {
            // The kernel remembers this answer and asks no more.
            return reply.error(Errno::ENOSYS);
        }
        if !is_guest(ino.0) || self.lacks_xattrs_now(ino) {
            return reply.error(Refusal::NoAttribute.into());
        }
        let name = name.to_owned();
        self.in_guest(ino, reply, move |_, inside, node, point, reply| {
            inside.reply_xattr(node, point, Some(&name), size, reply);
        });
    }

    fn listxattr(&self, _: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        if self.shared.inside.is_none() {
            return reply.error(Errno::ENOSYS);
        }
        if !is_guest(ino.0) || self.lacks_xattrs_now(ino) {
            return if size == 0 { reply.size(0) } else { reply.data(&[]) };
        }
        self.in_guest(ino, reply, move |_, inside, node, point, reply| {
            inside.reply_xattr(node, point, None, size, reply);
        });
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
