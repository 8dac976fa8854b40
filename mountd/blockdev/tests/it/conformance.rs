//! One suite over every device and layer.

use std::io::{Seek, SeekFrom, Write};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use backstay_blockdev::layer::{
    Cache, Compare, Delay, Fault, Limits, Operation, Range, Rate, ReadOnly, Rule, Verify,
};
use backstay_blockdev::{BlockDevice, ErrorKind, FileDevice, MemDevice, conformance};

use crate::disk;

/// Sizes that are no multiple of anything, of a block, of nothing at all.
const SIZES: [usize; 5] = [0, 1, 4096, 100_001, 1 << 20];

fn sparse(path: &Path, bytes: &[u8]) {
    let mut file = std::fs::File::create(path).unwrap();
    for (i, block) in bytes.chunks(4096).enumerate() {
        if block.iter().any(|b| *b != 0) {
            file.seek(SeekFrom::Start(i as u64 * 4096)).unwrap();
            file.write_all(block).unwrap();
        }
    }
    file.set_len(bytes.len() as u64).unwrap();
}

#[test]
fn memory() {
    for (seed, size) in (1..).zip(SIZES) {
        let mut bytes = disk(size);
        conformance::check(&MemDevice::read_only(bytes.clone()), &bytes, seed);
        let dev = MemDevice::new(bytes.clone());
        conformance::check_writes(&dev, &mut bytes, seed);
        assert!(dev.to_vec() == bytes);
    }
}

#[test]
fn file() {
    let dir = tempfile::tempdir().unwrap();
    for (seed, size) in (1..).zip(SIZES) {
        let mut bytes = disk(size);
        let path = dir.path().join(format!("{size}.raw"));
        sparse(&path, &bytes);
        conformance::check(&FileDevice::open(&path, true).unwrap(), &bytes, seed);
        let dev = FileDevice::open(&path, false).unwrap();
        conformance::check_writes(&dev, &mut bytes, seed);
        drop(dev);
        assert!(std::fs::read(&path).unwrap() == bytes, "the file differs from what was written");
    }
}

#[test]
fn layers() {
    for (seed, size) in (1..).zip([1, 100_001]) {
        let mut bytes = disk(size);
        let mem: Arc<dyn BlockDevice> = Arc::new(MemDevice::new(bytes.clone()));
        conformance::check(&ReadOnly::new(mem.clone()), &bytes, seed);
        let slow = Delay::new(mem.clone(), Duration::from_micros(20));
        conformance::check(&slow, &bytes, seed);
        conformance::check_writes(&slow, &mut bytes, seed);
        let fault = Fault::new(mem);
        conformance::check_writes(&fault, &mut bytes, seed + 1);
        let fault: Arc<dyn BlockDevice> = Arc::new(fault);
        conformance::check(&ReadOnly::new(fault.clone()), &bytes, seed);
        let cache = Cache::new(fault.clone(), 4096, 64 << 10).unwrap();
        conformance::check_writes(&cache, &mut bytes, seed + 2);
        conformance::check_writes(
            &Rate::new(fault.clone(), Limits::default()),
            &mut bytes,
            seed + 3,
        );
        conformance::check_writes(&Verify::new(fault.clone(), 64), &mut bytes, seed + 4);
        let same = Arc::new(MemDevice::new(bytes.clone()));
        conformance::check(&Compare::new(fault.clone(), same).unwrap(), &bytes, seed);
        let part = size as u64 / 3;
        let range = Range::new(fault, part, size as u64 - part).unwrap();
        conformance::check_writes(&range, &mut bytes[part as usize..], seed + 5);
    }
}

/// Layers keep the promise about failed flushes of the device below them.
#[test]
fn failed_flushes() {
    let latch = || Arc::new(liar::Latch::new(disk(100_000)));
    type Layer = fn(Arc<dyn BlockDevice>) -> Arc<dyn BlockDevice>;
    let layers: [Layer; 6] = [
        |d| Arc::new(Delay::new(d, Duration::ZERO)),
        |d| Arc::new(Fault::new(d)),
        |d| Arc::new(Range::new(d, 10, 1000).unwrap()),
        |d| Arc::new(Cache::new(d, 4096, 1 << 20).unwrap()),
        |d| Arc::new(Rate::new(d, Limits::default())),
        |d| Arc::new(Verify::new(d, 64)),
    ];
    for layer in layers {
        let below = latch();
        conformance::check_failed_flush(&*layer(below.clone()), || below.fail());
    }
}

#[test]
#[should_panic(expected = "a flush after one that failed")]
fn the_suite_finds_a_flush_that_forgives() {
    let fault = Fault::new(Arc::new(MemDevice::new(disk(100_000))));
    conformance::check_failed_flush(&fault, || {
        let (operation, kind) = (Operation::Flush, ErrorKind::Io);
        fault.add(Rule { operation, range: 0..1, kind, times: Some(1) });
    });
}

#[test]
#[should_panic(expected = "does not hold zeros")]
fn the_suite_finds_a_false_hole() {
    let bytes = disk(100_000);
    conformance::check(&liar::FalseHole(MemDevice::new(bytes.clone())), &bytes, 3);
}

#[test]
#[should_panic(expected = "is wrong")]
fn the_suite_finds_a_wrong_byte() {
    let mut bytes = disk(100_000);
    let dev = MemDevice::new(bytes.clone());
    bytes[99] ^= 1;
    conformance::check(&dev, &bytes, 3);
}

mod liar {
    use std::sync::atomic::{AtomicBool, Ordering};

    use backstay_blockdev::{
        BlockDevice, Caps, Error, ErrorKind, Extent, ExtentKind, Geometry, MemDevice, WriteFlags,
    };

    /// A disk whose flushes fail for ever from some moment on.
    #[derive(Debug)]
    pub(super) struct Latch(MemDevice, AtomicBool);

    impl Latch {
        pub(super) fn new(bytes: Vec<u8>) -> Self {
            Self(MemDevice::new(bytes), AtomicBool::new(false))
        }
        pub(super) fn fail(&self) {
            self.1.store(true, Ordering::SeqCst);
        }
    }

    impl BlockDevice for Latch {
        fn geometry(&self) -> Geometry {
            self.0.geometry()
        }
        fn caps(&self) -> Caps {
            self.0.caps()
        }
        fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), Error> {
            self.0.read_at(offset, buf)
        }
        fn extents(&self, offset: u64, len: u64, max: usize) -> Result<Vec<Extent>, Error> {
            self.0.extents(offset, len, max)
        }
        fn write_at(&self, offset: u64, data: &[u8], flags: WriteFlags) -> Result<(), Error> {
            self.0.write_at(offset, data, flags)
        }
        fn flush(&self) -> Result<(), Error> {
            match self.1.load(Ordering::SeqCst) {
                true => Err(Error::new(ErrorKind::Io, "the cache is lost")),
                false => Ok(()),
            }
        }
    }

    /// Says that everything is a hole.
    #[derive(Debug)]
    pub(super) struct FalseHole(pub(super) MemDevice);

    impl BlockDevice for FalseHole {
        fn geometry(&self) -> Geometry {
            self.0.geometry()
        }
        fn caps(&self) -> Caps {
            Caps::default()
        }
        fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), Error> {
            self.0.read_at(offset, buf)
        }
        fn extents(
            &self,
            offset_bytes: u64,
            len_bytes: u64,
            max: usize,
        ) -> Result<Vec<Extent>, Error> {
            let true_list = self.0.extents(offset_bytes, len_bytes, max)?;
            if true_list.is_empty() {
                return Ok(true_list);
            }
            Ok(vec![Extent { offset_bytes, len_bytes, kind: ExtentKind::Hole }])
        }
    }
}
