//! What the mount knows of the repository, kept fresh: the current tree and what is open.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use backstay_blockdev::{BlockDevice, ExtentKind, Readahead};
use backstay_store::{PointId, Repository};
use parking_lot::{Mutex, RwLock};

use super::errno::Refusal;
use super::inside::{GuestDir, GuestFile};
use super::tree::{Builder, Node, Point, View};
use crate::PointDisk;
use crate::point_disk::chain;

/// Open files and directories of one mount. More is a program gone wild; it gets ENFILE.
const HANDLES_MAX: usize = 1 << 16;
/// How long a request waits for the listing somebody else is reading. Then it fails rather than
/// hold one more thread against a storage that hangs.
const REFRESH_PATIENCE: Duration = Duration::from_secs(10);
/// A list that takes long to read (hundreds of thousands of points) is read less often: reading may
/// take one part in so many of the time.
const REFRESH_SHARE: u32 = 10;
/// How long counting a disk's stored bytes for `st_blocks` may take; of what is not counted by
/// then, the same share is taken to be stored.
const COUNT_PATIENCE: Duration = Duration::from_millis(200);
/// Extents asked for at once while counting or seeking.
pub(super) const EXTENTS_AT_ONCE: usize = 1024;

/// What a mount shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Only {
    /// All machines and points.
    All,
    /// The points of this machine.
    Machine(String),
    /// One point, as the mount's root.
    Point(PointId),
}

/// An open file.
#[derive(Debug)]
pub(super) struct OpenFile {
    pub(super) disk: Arc<PointDisk>,
    pub(super) size_bytes: u64,
    readahead: Mutex<Readahead>,
}

impl OpenFile {
    /// Tells the readahead policy of a read, and the store what it makes of it.
    pub(super) fn note_read(&self, offset_bytes: u64, len_bytes: u64) {
        let ahead = self.readahead.lock().on_read(offset_bytes, len_bytes);
        if let Some((offset_bytes, len_bytes)) = ahead {
            self.disk.prefetch(offset_bytes, len_bytes);
        }
    }
}

/// An open directory: it shows what there was when it was opened.
#[derive(Debug)]
pub(super) struct OpenDir {
    pub(super) view: Arc<View>,
    pub(super) node: Node,
}

/// What somebody has open.
#[derive(Debug, Clone)]
pub(super) enum Handle {
    File(Arc<OpenFile>),
    Dir(Arc<OpenDir>),
    GuestFile(Arc<GuestFile>),
    GuestDir(Arc<GuestDir>),
    Text(Arc<str>),
}

#[derive(Debug, Default)]
struct Handles {
    next: u64,
    open: HashMap<u64, Handle>,
}

#[derive(Debug)]
struct Current {
    view: Arc<View>,
    read_at: Instant,
    /// How long reading it took.
    took: Duration,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Listing {
    repository: Repository,
    only: Only,
    refresh: Duration,
    current: RwLock<Current>,
    builder: Mutex<Builder>,
    handles: RwLock<Handles>,
    /// How many handles there are, for those who only ask that.
    used: Arc<AtomicUsize>,
}

impl Listing {
    /// Reads the list of points for the first time.
    pub(super) fn read(
        repository: Repository,
        only: Only,
        refresh: Duration,
        with_files: bool,
    ) -> Result<Self, backstay_store::Error> {
        let listing = Listing {
            builder: Mutex::new(Builder::new(with_files, matches!(only, Only::Point(_)))),
            repository,
            only,
            refresh,
            current: RwLock::new(Current {
                view: Arc::new(View::default()),
                read_at: Instant::now(),
                took: Duration::ZERO,
            }),
            handles: RwLock::new(Handles::default()),
            used: Arc::default(),
        };
        listing.reread(&mut listing.builder.lock())?;
        Ok(listing)
    }

    /// The tree as it was last read.
    pub(super) fn view(&self) -> Arc<View> {
        Arc::clone(&self.current.read().view)
    }

    /// How long the tree may be believed.
    pub(super) fn refresh_period(&self) -> Duration {
        self.refresh
    }

    /// Whether the tree is older than that.
    pub(super) fn is_stale(&self) -> bool {
        let current = self.current.read();
        let period = self.refresh.max(current.took * REFRESH_SHARE);
        current.read_at.elapsed() >= period
    }

    /// The tree, read again if it is stale. Blocks.
    pub(super) fn fresh_view(&self) -> Result<Arc<View>, Refusal> {
        if !self.is_stale() {
            return Ok(self.view());
        }
        let Some(mut builder) = self.builder.try_lock_for(REFRESH_PATIENCE) else {
            tracing::error!("the list of recovery points is not read in time");
            return Err(Refusal::Unreadable);
        };
        if self.is_stale() {
            self.reread(&mut builder).map_err(|e| {
                tracing::error!(error = %chain(&e), "cannot read the list of recovery points");
                Refusal::Unreadable
            })?;
        }
        Ok(self.view())
    }

    fn reread(&self, builder: &mut Builder) -> Result<(), backstay_store::Error> {
        // Taken before reading, so that a point committed meanwhile is not missed for longer.
        let read_at = Instant::now();
        let list = self.repository.points()?;
        let mut points = list.points;
        match &self.only {
            Only::All => {}
            Only::Machine(machine) => points.retain(|p| p.machine == *machine),
            Only::Point(id) => points.retain(|p| p.id == *id),
        }
        let old = self.view();
        let updated = builder.update(&old, points);
        if updated.is_some() {
            for (id, error) in &list.damaged {
                tracing::warn!(point = %id, error = %chain(error), "a damaged recovery point is not shown");
            }
            // Its packs were written before the point was: learn of them before showing it.
            self.repository.refresh()?;
        }
        let mut current = self.current.write();
        current.read_at = read_at;
        current.took = read_at.elapsed();
        if let Some(view) = updated {
            current.view = Arc::new(view);
        }
        Ok(())
    }

    /// The device of a point's disk, opened if it is not yet. Blocks.
    pub(super) fn device(&self, point: &Point, index: usize) -> Result<Arc<PointDisk>, Refusal> {
        let (disk, record) =
            point.disks.get(index).zip(point.disk_record(index)).ok_or(Refusal::Stale)?;
        let mut device = disk.device.lock();
        if let Some(open) = device.upgrade() {
            return Ok(open);
        }
        let opened = PointDisk::open(&self.repository, &point.record, record).map_err(|e| {
            tracing::error!(
                machine = %point.record.machine, point = %point.record.id, disk = %record.name,
                error = %chain(&e), "cannot open the disk"
            );
            Refusal::Unreadable
        })?;
        let opened = Arc::new(opened);
        *device = Arc::downgrade(&opened);
        Ok(opened)
    }

    /// Counts the bytes stored for a disk, once. Blocks. A disk whose map cannot be read counts as
    /// full: that is no reason to refuse its name and size.
    pub(super) fn count_data(&self, point: &Point, index: usize) -> Result<(), Refusal> {
        let disk = point.disks.get(index).ok_or(Refusal::Stale)?;
        if disk.data_bytes.get().is_none() {
            let device = self.device(point, index)?;
            let size = device.geometry().size_bytes;
            let counted = count_data(&*device, COUNT_PATIENCE).unwrap_or(size);
            disk.data_bytes.get_or_init(|| counted);
        }
        Ok(())
    }

    pub(super) fn open_file(&self, point: &Point, index: usize) -> Result<u64, Refusal> {
        let disk = self.device(point, index)?;
        let size_bytes = disk.geometry().size_bytes;
        let readahead = Mutex::new(Readahead::new(size_bytes));
        self.insert(Handle::File(Arc::new(OpenFile { disk, size_bytes, readahead })))
    }

    pub(super) fn open_dir(&self, view: Arc<View>, node: Node) -> Result<u64, Refusal> {
        self.insert(Handle::Dir(Arc::new(OpenDir { view, node })))
    }

    pub(super) fn insert(&self, handle: Handle) -> Result<u64, Refusal> {
        let mut handles = self.handles.write();
        if handles.open.len() >= HANDLES_MAX {
            return Err(Refusal::TooManyOpen);
        }
        handles.next += 1;
        let number = handles.next;
        handles.open.insert(number, handle);
        self.used.store(handles.open.len(), Ordering::Relaxed);
        Ok(number)
    }

    /// How many handles there are, also later.
    pub(super) fn used(&self) -> Arc<AtomicUsize> {
        Arc::clone(&self.used)
    }

    pub(super) fn handle(&self, handle: u64) -> Result<Handle, Refusal> {
        self.handles.read().open.get(&handle).cloned().ok_or(Refusal::BadHandle)
    }

    pub(super) fn close(&self, handle: u64) {
        let mut handles = self.handles.write();
        let closed = handles.open.remove(&handle);
        self.used.store(handles.open.len(), Ordering::Relaxed);
        drop(handles);
        // Dropped after the lock is given back.
        drop(closed);
    }
}

/// The bytes of `device` that are not holes; an estimate once `patience` is over.
fn count_data(
    device: &dyn BlockDevice,
    patience: Duration,
) -> Result<u64, backstay_blockdev::Error> {
    let size = device.geometry().size_bytes;
    let start = Instant::now();
    let (mut at, mut data) = (0, 0);
    while at < size {
        for extent in device.extents(at, size - at, EXTENTS_AT_ONCE)? {
            at = extent.offset_bytes + extent.len_bytes;
            if extent.kind == ExtentKind::Data {
                data += extent.len_bytes;
            }
        }
        if start.elapsed() > patience && at < size {
            let share = u128::from(data) * u128::from(size) / u128::from(at.max(1));
            return Ok(u64::try_from(share).unwrap_or(size).min(size));
        }
    }
    Ok(data)
}

/// The first offset from `offset_bytes` on with data (or, for a hole, without); the end of the disk
/// counts as a hole. See lseek(2), `SEEK_DATA` and `SEEK_HOLE`.
pub(super) fn seek(
    device: &dyn BlockDevice,
    offset_bytes: u64,
    wanted: ExtentKind,
) -> Result<u64, Refusal> {
    let size = device.geometry().size_bytes;
    if offset_bytes >= size {
        return Err(Refusal::NoSuchOffset);
    }
    let mut at = offset_bytes;
    while at < size {
        for extent in device.extents(at, size - at, EXTENTS_AT_ONCE)? {
            if extent.kind.is_zero() == wanted.is_zero() {
                return Ok(extent.offset_bytes.max(offset_bytes));
            }
            at = extent.offset_bytes + extent.len_bytes;
        }
    }
    match wanted {
        ExtentKind::Hole | ExtentKind::Zero => Ok(size),
        ExtentKind::Data => Err(Refusal::NoSuchOffset),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use backstay_blockdev::{Caps, Error, Extent, Geometry};

    /// 4 KiB blocks, each data or hole; answers few extents at a time.
    #[derive(Debug)]
    struct Map(Vec<bool>);

    impl BlockDevice for Map {
        fn geometry(&self) -> Geometry {
            Geometry {
                size_bytes: self.0.len() as u64 * 4096,
                min_block_bytes: 1,
                preferred_block_bytes: 4096,
                max_request_bytes: 1 << 20,
            }
        }

        fn caps(&self) -> Caps {
            Caps::default()
        }

        fn read_at(&self, _: u64, _: &mut [u8]) -> Result<(), Error> {
            unreachable!("only the map is asked for")
        }

        fn extents(&self, offset: u64, len: u64, _: usize) -> Result<Vec<Extent>, Error> {
            let data = self.0[(offset / 4096) as usize];
            let kind = if data { ExtentKind::Data } else { ExtentKind::Hole };
            let len_bytes = (4096 - offset % 4096).min(len);
            Ok(vec![Extent { offset_bytes: offset, len_bytes, kind }])
        }
    }

    #[test]
    fn counting_and_guessing() {
        let map = Map((0..1000).map(|i| i % 4 == 0).collect());
        assert_eq!(count_data(&map, Duration::from_secs(60)).unwrap(), 250 * 4096);
        let guess = count_data(&Map(vec![true; 10]), Duration::ZERO).unwrap();
        assert_eq!(guess, 10 * 4096, "one block seen, all of it data");
        assert_eq!(count_data(&Map(vec![]), Duration::ZERO).unwrap(), 0);
    }

    #[test]
    fn seeking() {
        let map = Map(vec![false, true, true, false]);
        let cases = [
            (0, ExtentKind::Hole, Ok(0)),
            (0, ExtentKind::Data, Ok(4096)),
            (5000, ExtentKind::Data, Ok(5000)),
            (5000, ExtentKind::Hole, Ok(3 * 4096)),
            (3 * 4096, ExtentKind::Data, Err(Refusal::NoSuchOffset)),
            (4 * 4096, ExtentKind::Hole, Err(Refusal::NoSuchOffset)),
        ];
        for (offset, kind, want) in cases {
            assert_eq!(seek(&map, offset, kind), want, "{offset} {kind:?}");
        }
        assert_eq!(seek(&Map(vec![true]), 0, ExtentKind::Hole), Ok(4096));
    }
}
