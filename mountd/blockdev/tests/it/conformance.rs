//! One suite over every device and layer.

use std::io::{Seek, SeekFrom, Write};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use backstay_blockdev::layer::{
    Cache, Compare, Delay, Fault, Limits, Range, Rate, ReadOnly, Verify,
};
use backstay_blockdev::{BlockDevice, FileDevice, MemDevice, conformance};

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
    use backstay_blockdev::{BlockDevice, Caps, Error, Extent, ExtentKind, Geometry, MemDevice};

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
