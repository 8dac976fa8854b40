//! A private, writable layer over a device that never changes.
//!
//! What is written goes into local files (mountd/docs/OVERLAY.md has their layout); everything else is
//! read from the base, of which not a bit changes. What a flush covered survives the end of the process
//! and of the power; of what it did not cover, an ended process loses nothing that was acknowledged, and a
//! power cut may lose any part, 512 bytes at a time. A block never shows a mixture of itself and of
//! what was never written.
//!
//! How: content lies in a sparse file at the place it has on the disk. Before a block changes, its number and
//! the sum of its new content go into the journal. A flush syncs the content, then notes in the journal
//! how far it holds, then syncs that. After a crash what was noted is trusted; each block that changed later
//! counts as written only if its content has one of the sums announced for it.

mod changes;
mod device;
mod files;
mod flush;
mod header;
mod journal;
mod locks;
mod map;
mod recover;
#[cfg(feature = "conformance")]
pub mod sim;
mod snapshot;
mod sum;
mod write;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::{Mutex, RwLock};

use crate::device::BlockDevice;
use crate::error::{Error, ErrorKind};
pub use files::{Directory, Guard, RandomFile, RealDirectory};
pub use header::Header;
use journal::Journal;
use locks::Stripes;
use map::Map;

/// What is kept is kept in blocks of this size: what most guests write at once.
pub const BLOCK_BYTES: u64 = 4096;

/// The file with the content.
const DATA: &str = "data";

/// What a write gets when an overlay is as large as it may be, or the disk under it is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum WhenFull {
    /// [`ErrorKind::NoSpace`]: the client decides (QEMU pauses a guest with `werror=enospc`, its
    /// default).
    #[default]
    Fail,
    /// [`ErrorKind::Paused`]: the write waits until there is space.
    Pause,
}

/// How an overlay behaves; none of it is stored.
#[derive(Clone, Copy, Debug, Default)]
pub struct OverlayOptions {
    /// Bytes of content it may hold; `None` for as many as there are. Blocks that read as zeros take none.
    pub limit_bytes: Option<u64>,
    /// What happens at the limit.
    pub when_full: WhenFull,
}

/// How large an overlay is, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// Content of its own.
    pub data_bytes: u64,
    /// Ranges that read as zeros because somebody said so.
    pub zero_bytes: u64,
    /// What the content may grow to.
    pub limit_bytes: Option<u64>,
}

/// A writable device over a read-only one; see the module's words.
///
/// Any number of threads may use it. A flush covers the writes of all of them, so it may be served over many
/// connections.
pub struct Overlay {
    base: Arc<dyn BlockDevice>,
    directory: Arc<dyn Directory>,
    header: Header,
    data: Arc<dyn RandomFile>,
    map: RwLock<Map>,
    stripes: Stripes,
    /// Changes go through it shared: from their record in the journal until map and content agree with it. A
    /// flush takes it alone for a moment, and so sees none of them half done.
    gate: RwLock<()>,
    journal: Mutex<Journal>,
    /// The number of the last change in the journal, readable without waiting for it.
    last: AtomicU64,
    settled: Mutex<Settled>,
    /// Blocks that are about to get their first content; those in the map are counted there. Changed with
    /// the map locked.
    reserved_blocks: AtomicU64,
    limit_blocks: AtomicU64,
    /// Blocks named by records that no flush covers.
    loose_blocks: AtomicU64,
    when_full: WhenFull,
    /// A sync failed: nothing written since the last good one can be trusted to be there.
    failed: AtomicBool,
    _lock: Box<dyn Guard>,
}

/// How far everything is on the disk.
#[derive(Debug)]
struct Settled {
    /// The number of the last record that holds.
    through: u64,
    /// The map in use and the journals after it.
    generation: u64,
    /// The oldest map or journal still needed.
    oldest: u64,
}

impl std::fmt::Debug for Overlay {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Overlay({} over {:?})", self.directory.name(), self.base)
    }
}

fn map_name(generation: u64) -> String {
    format!("map-{generation}")
}

fn journal_name(generation: u64) -> String {
    format!("journal-{generation}")
}

impl Overlay {
    /// Makes an overlay in an empty directory and opens it. It is durable when this returns.
    ///
    /// `identity` names the base: [`Overlay::open`] wants the same again. `nonce` is a random number.
    ///
    /// # Errors
    /// [`ErrorKind::NoSpace`], or [`ErrorKind::Io`] with what failed; a directory with other things in it is
    /// refused. What was made by then can be removed; without the file `overlay` it is none.
    pub fn create(
        directory: Arc<dyn Directory>,
        base: Arc<dyn BlockDevice>,
        identity: [u8; 32],
        nonce: u64,
        options: OverlayOptions,
    ) -> Result<Self, Error> {
        let failed = |e: io::Error| {
            Error::os(format!("{}: the overlay cannot be made", directory.name()), e)
        };
        let lock = lock(&*directory)?;
        if !directory.list().map_err(failed)?.is_empty() {
            let text = format!("{}: the directory is not empty", directory.name());
            return Err(Error::new(ErrorKind::Io, text));
        }
        let size_bytes = base.geometry().size_bytes;
        let header = Header { size_bytes, base: identity, nonce };
        let make = || -> io::Result<()> {
            let data = directory.create(DATA)?;
            data.set_size(size_bytes)?;
            data.sync()?;
            let map = directory.create(&map_name(0))?;
            snapshot::write(&*map, &Map::new(header.blocks()), header.seed(0), 1)?;
            let file = directory.create(&journal_name(0))?;
            Journal::start(file.clone(), header.seed(0), 1)?;
            file.sync()?;
            let file = directory.create("overlay.new")?;
            file.write_at(&header.encode(), 0)?;
            file.sync()?;
            // Before the header, so that an overlay that has one has all.
            directory.sync()?;
            directory.rename("overlay.new", header::NAME)?;
            directory.sync()
        };
        make().map_err(failed)?;
        drop(lock);
        Self::open(directory, base, identity, options)
    }

    /// Opens an overlay, after whatever end: what was flushed is there, and what its blocks show from now on
    /// they show after the next crash, too.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] if there is no overlay, one of a newer version, one of another base, or if
    /// another process has it open; [`ErrorKind::Damaged`] if its files are not what was written;
    /// [`ErrorKind::NoSpace`] and [`ErrorKind::Io`] as they come.
    pub fn open(
        directory: Arc<dyn Directory>,
        base: Arc<dyn BlockDevice>,
        identity: [u8; 32],
        options: OverlayOptions,
    ) -> Result<Self, Error> {
        let guard = lock(&*directory)?;
        let header = Self::look(&*directory)?;
        let refuse = |why: &str| {
            let text = format!("{}: {why}", directory.name());
            Err(Error::new(ErrorKind::Unsupported, text))
        };
        if header.base != identity {
            return refuse("the overlay belongs to another recovery point");
        }
        if header.size_bytes != base.geometry().size_bytes {
            return refuse("the overlay belongs to a disk of another size");
        }
        let found = recover::recover(&*directory, &header)?;
        let overlay = Self {
            base,
            header,
            data: found.data,
            map: RwLock::new(found.map),
            stripes: Stripes::new(),
            gate: RwLock::new(()),
            last: AtomicU64::new(found.journal.next() - 1),
            settled: Mutex::new(Settled {
                through: found.journal.next() - 1,
                generation: found.generation,
                oldest: found.generation,
            }),
            journal: Mutex::new(found.journal),
            reserved_blocks: AtomicU64::new(0),
            limit_blocks: AtomicU64::new(u64::MAX),
            loose_blocks: AtomicU64::new(0),
            when_full: options.when_full,
            failed: AtomicBool::new(false),
            _lock: guard,
            directory,
        };
        overlay.set_limit(options.limit_bytes);
        Ok(overlay)
    }

    /// What an overlay says of itself, without opening it.
    ///
    /// # Errors
    /// As [`Overlay::open`].
    pub fn look(directory: &dyn Directory) -> Result<Header, Error> {
        let context = |why: &str| format!("{}: {why}", directory.name());
        let read = || -> io::Result<[u8; header::BYTES]> {
            let mut bytes = [0; header::BYTES];
            directory.open(header::NAME)?.read_at(&mut bytes, 0)?;
            Ok(bytes)
        };
        let bytes = read().map_err(|e| match e.kind() {
            io::ErrorKind::NotFound => {
                Error::new(ErrorKind::Unsupported, context("there is no overlay here"))
            }
            io::ErrorKind::UnexpectedEof => {
                Error::new(ErrorKind::Damaged, context("the overlay's header is cut short"))
            }
            _ => Error::os(context("the overlay's header cannot be read"), e),
        })?;
        Header::decode(&bytes).map_err(|why| {
            let kind =
                if why.contains("damaged") { ErrorKind::Damaged } else { ErrorKind::Unsupported };
            Error::new(kind, context(why))
        })
    }

    /// What the overlay lies over.
    pub fn base(&self) -> &Arc<dyn BlockDevice> {
        &self.base
    }

    /// How large it is.
    pub fn usage(&self) -> Usage {
        let map = self.map.read();
        let limit = self.limit_blocks.load(Ordering::Relaxed);
        Usage {
            data_bytes: map.data_blocks() * BLOCK_BYTES,
            zero_bytes: map.zero_blocks() * BLOCK_BYTES,
            limit_bytes: (limit != u64::MAX).then_some(limit.saturating_mul(BLOCK_BYTES)),
        }
    }

    /// Changes how much content it may hold; writes that wait for space go on when they next ask. A limit
    /// below what is there lets nothing new in.
    pub fn set_limit(&self, bytes: Option<u64>) {
        let blocks = bytes.map_or(u64::MAX, |bytes| bytes / BLOCK_BYTES);
        self.limit_blocks.store(blocks, Ordering::Relaxed);
    }

    fn context(&self, what: &str) -> String {
        format!("{}: {what}", self.directory.name())
    }

    fn check_alive(&self) -> Result<(), Error> {
        if !self.failed.load(Ordering::Acquire) {
            return Ok(());
        }
        let why = "an earlier flush failed, so what was written since the one before may not be on \
                   the disk; the overlay takes no more writes until it is opened anew";
        Err(Error::new(ErrorKind::Io, self.context(why)))
    }
}

fn lock(directory: &dyn Directory) -> Result<Box<dyn Guard>, Error> {
    directory.lock().map_err(|e| match e.kind() {
        io::ErrorKind::ResourceBusy => Error::new(
            ErrorKind::Unsupported,
            format!("{}: another process has the overlay open", directory.name()),
        ),
        _ => Error::os(format!("{}: the overlay cannot be locked", directory.name()), e),
    })
}
