//! The overlay: what it promises over crashes, faults, full disks and many threads.

#[path = "overlay_crash.rs"]
mod crash;

use std::sync::Arc;

use backstay_blockdev::overlay::sim::SimDirectory;
use backstay_blockdev::overlay::{Directory, Overlay, OverlayOptions, RealDirectory, WhenFull};
use backstay_blockdev::{
    BlockDevice, Caps, Error, ErrorKind, Extent, ExtentKind, Geometry, MemDevice, WriteFlags,
    conformance,
};

use crate::disk;

const IDENTITY: [u8; 32] = [7; 32];

fn base(bytes: &[u8]) -> Arc<dyn BlockDevice> {
    Arc::new(MemDevice::read_only(bytes.to_vec()))
}

fn create(directory: impl Directory + 'static, base: &Arc<dyn BlockDevice>) -> Overlay {
    let options = OverlayOptions::default();
    Overlay::create(Arc::new(directory), base.clone(), IDENTITY, 42, options).unwrap()
}

fn open(directory: impl Directory + 'static, base: &Arc<dyn BlockDevice>) -> Overlay {
    let options = OverlayOptions::default();
    Overlay::open(Arc::new(directory), base.clone(), IDENTITY, options).unwrap()
}

fn read_all(device: &dyn BlockDevice) -> Vec<u8> {
    let mut bytes = vec![0; device.geometry().size_bytes as usize];
    device.read_at(0, &mut bytes).unwrap();
    bytes
}

#[test]
fn it_is_a_block_device() {
    for (seed, size) in (1..).zip([0, 1, 4096, 100_001, 1 << 20]) {
        let below = disk(size);
        let mut bytes = below.clone();
        let base = base(&below);
        let place = tempfile::tempdir().unwrap();
        let overlay = create(RealDirectory::new(place.path()), &base);
        conformance::check(&overlay, &bytes, seed);
        conformance::check_writes(&overlay, &mut bytes, seed);
        drop(overlay);
        // Not flushed at the end: an ended process loses nothing all the same.
        let overlay = open(RealDirectory::new(place.path()), &base);
        assert!(read_all(&overlay) == bytes, "size {size}: other bytes after reopening");
        conformance::check(&overlay, &bytes, seed);
        overlay.tidy().unwrap();
        drop(overlay);
        assert!(read_all(&open(RealDirectory::new(place.path()), &base)) == bytes);
        assert!(read_all(&*base) == below, "the base changed");
    }
}

#[test]
fn only_what_was_written_counts_as_changed() {
    let below = disk(1 << 20);
    let base = base(&below);
    let overlay = create(SimDirectory::new(), &base);
    assert!(overlay.changed(0, 10).is_empty());
    overlay.write_at(5000, &[1; 100], WriteFlags::default()).unwrap();
    overlay.trim(0x4_0000, 0x1_0000, WriteFlags::default()).unwrap();
    overlay.write_at(0x5_0000, &[2; 4096], WriteFlags::default()).unwrap();
    assert_eq!(overlay.changed(0, 10), [(4096, 4096), (0x4_0000, 0x1_1000)]);
    assert_eq!(overlay.changed(0, 1), [(4096, 4096)]);
    assert_eq!(overlay.changed(0x4_8000, 10), [(0x4_8000, 0x9000)]);
    let usage = overlay.usage();
    assert_eq!((usage.data_bytes, usage.zero_bytes), (2 * 4096, 0x1_0000));
    let kinds: Vec<_> = overlay
        .extents(0x4_0000, 0x1_1000, 10)
        .unwrap()
        .into_iter()
        .map(|e| (e.offset_bytes, e.kind))
        .collect();
    assert_eq!(kinds, [(0x4_0000, ExtentKind::Hole), (0x5_0000, ExtentKind::Data)]);
    let own = overlay.presence(0, 8192, 10).unwrap();
    let overlaid: Vec<_> = own.iter().map(|e| (e.offset_bytes, e.presence.overlaid)).collect();
    assert_eq!(overlaid, [(0, false), (4096, true)]);
}

#[test]
fn the_limit_is_kept_and_can_be_raised() {
    let base = base(&disk(1 << 20));
    for (when_full, kind) in
        [(WhenFull::Fail, ErrorKind::NoSpace), (WhenFull::Pause, ErrorKind::Paused)]
    {
        let options = OverlayOptions { limit_bytes: Some(3 * 4096), when_full };
        let directory = Arc::new(SimDirectory::new());
        let overlay =
            Overlay::create(directory.clone(), base.clone(), IDENTITY, 1, options).unwrap();
        let plain = WriteFlags::default();
        overlay.write_at(0, &[1; 3 * 4096], plain).unwrap();
        let before = read_all(&overlay);
        for (offset, len) in [(12288, 4096), (8192, 4097), (1 << 19, 1)] {
            let error = overlay.write_at(offset, &vec![9; len], plain).unwrap_err();
            assert_eq!(error.kind(), kind, "{error}");
            assert!(error.to_string().contains("limit of 12288 bytes"), "{error}");
        }
        assert!(read_all(&overlay) == before, "a refused write left traces");
        // What has its space can be written again, zeros need none, and a trim gives some back.
        overlay.write_at(100, &[2; 5000], plain).unwrap();
        overlay.write_zeroes(1 << 19, 1 << 18, plain).unwrap();
        overlay.trim(4096, 4096, plain).unwrap();
        overlay.write_at(1 << 18, &[3; 10], plain).unwrap();
        overlay.flush().unwrap();
        overlay.set_limit(Some(4 * 4096));
        overlay.write_at(12288, &[4; 4096], plain).unwrap();
        assert_eq!(overlay.usage().data_bytes, 4 * 4096);
        let all = read_all(&overlay);
        drop(overlay);
        assert!(read_all(&open((*directory).clone(), &base)) == all);
    }
}

#[test]
fn a_full_disk_loses_nothing() {
    let below = disk(1 << 20);
    let base = base(&below);
    let directory = SimDirectory::new();
    let overlay = create(directory.clone(), &base);
    let plain = WriteFlags::default();
    overlay.write_at(0, &[1; 40_960], plain).unwrap();
    overlay.flush().unwrap();
    directory.set_capacity(Some(directory.used_bytes() + 8192));
    let mut full = 0;
    for block in 20..60u64 {
        match overlay.write_at(block * 4096, &[2; 4096], plain) {
            Ok(()) => assert_eq!(full, 0, "a write after the disk was full"),
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::NoSpace, "{error}");
                full += 1;
            }
        }
        // What is there stays writable, and can be made durable.
        overlay.write_at(8192, &[block as u8; 4096], plain).unwrap();
        overlay.flush().unwrap();
    }
    assert_eq!(full, 38);
    let all = read_all(&overlay);
    drop(overlay);
    directory.set_capacity(None);
    assert!(read_all(&open(directory, &base)) == all);
}

#[test]
fn an_overlay_opens_over_its_own_base_only_and_once() {
    let base_bytes = disk(1 << 16);
    let below = base(&base_bytes);
    let place = tempfile::tempdir().unwrap();
    let options = OverlayOptions::default();
    let at = || Arc::new(RealDirectory::new(place.path()));
    let refused = |result: Result<Overlay, Error>, words: &str| {
        let error = result.expect_err(words);
        assert!(error.to_string().contains(words), "{error}");
    };
    refused(Overlay::open(at(), below.clone(), IDENTITY, options), "no overlay here");
    let overlay = create(RealDirectory::new(place.path()), &below);
    refused(Overlay::open(at(), below.clone(), IDENTITY, options), "another process");
    drop(overlay);
    refused(Overlay::create(at(), below.clone(), IDENTITY, 1, options), "not empty");
    refused(Overlay::open(at(), below.clone(), [8; 32], options), "another recovery point");
    let other = base(&base_bytes[1..]);
    refused(Overlay::open(at(), other, IDENTITY, options), "another size");
    open(RealDirectory::new(place.path()), &below);
}

#[test]
fn damage_is_told_and_nothing_older_is_shown() {
    let below = base(&disk(1 << 18));
    let place = tempfile::tempdir().unwrap();
    let path = place.path();
    let overlay = create(RealDirectory::new(path), &below);
    for i in 0..50 {
        overlay.write_at(i * 4096, &[i as u8; 4096], WriteFlags::default()).unwrap();
        overlay.flush().unwrap();
    }
    drop(overlay);
    let named = |prefix: &str| {
        let names = std::fs::read_dir(path).unwrap().map(|e| e.unwrap().path());
        names
            .filter(|p| p.file_name().unwrap().to_string_lossy().starts_with(prefix))
            .max()
            .unwrap()
    };
    for (file, at) in [("journal-", 500), ("map-", 20), ("overlay", 30), ("overlay", 5)] {
        let file = named(file);
        let good = std::fs::read(&file).unwrap();
        let mut bad = good.clone();
        bad[at] ^= 0x10;
        std::fs::write(&file, &bad).unwrap();
        let options = OverlayOptions::default();
        let directory = Arc::new(RealDirectory::new(path));
        let error = Overlay::open(directory, below.clone(), IDENTITY, options).unwrap_err();
        let wanted = if at == 5 { ErrorKind::Unsupported } else { ErrorKind::Damaged };
        assert_eq!(error.kind(), wanted, "{}: {error}", file.display());
        std::fs::write(&file, &good).unwrap();
    }
    open(RealDirectory::new(path), &below);
}

#[test]
fn threads_that_share_blocks_lose_no_write() {
    const THREADS: usize = 4;
    let below = disk(1 << 20);
    let base = base(&below);
    let place = tempfile::tempdir().unwrap();
    let overlay = create(RealDirectory::new(place.path()), &base);
    let mut expected = below.clone();
    let parts: Vec<Vec<(u64, u8)>> = std::thread::scope(|scope| {
        let run = |thread: usize| {
            let overlay = &overlay;
            move || {
                let mut numbers = 0x1234_5678_9abc_def1_u64 + thread as u64;
                let mut last = std::collections::BTreeMap::new();
                for step in 0..4000u64 {
                    numbers ^= numbers << 13;
                    numbers ^= numbers >> 7;
                    numbers ^= numbers << 17;
                    // Each thread has bytes of its own in every block, of odd sizes.
                    let block = numbers % 64;
                    let at = block * 4096 + thread as u64 * 1000;
                    let value = (step % 251) as u8;
                    let flags = WriteFlags { fua: step % 97 == 0, ..WriteFlags::default() };
                    overlay.write_at(at, &[value; 1000], flags).unwrap();
                    last.insert(at, value);
                    if step % 111 == 0 {
                        overlay.flush().unwrap();
                    }
                    let mut seen = [0; 1000];
                    overlay.read_at(at, &mut seen).unwrap();
                    assert!(seen == [value; 1000], "thread {thread} does not see its write");
                }
                last.into_iter().collect()
            }
        };
        let threads: Vec<_> = (0..THREADS).map(|t| scope.spawn(run(t))).collect();
        threads.into_iter().map(|t| t.join().unwrap()).collect()
    });
    for (at, value) in parts.into_iter().flatten() {
        expected[at as usize..at as usize + 1000].fill(value);
    }
    assert!(read_all(&overlay) == expected);
    drop(overlay);
    assert!(read_all(&open(RealDirectory::new(place.path()), &base)) == expected);
}

#[test]
fn a_long_journal_becomes_a_map() {
    let below = base(&vec![0; 64 << 20]);
    let place = tempfile::tempdir().unwrap();
    let overlay = create(RealDirectory::new(place.path()), &below);
    let journal_bytes = || -> u64 {
        std::fs::read_dir(place.path())
            .unwrap()
            .map(|e| e.unwrap())
            .filter(|e| e.file_name().to_string_lossy().starts_with("journal-"))
            .map(|e| e.metadata().unwrap().len())
            .sum()
    };
    // Each round adds 16,384 records to the journal.
    for round in 0..50u64 {
        let plain = WriteFlags::default();
        for block in 0..16_384u64 {
            overlay.write_at(block * 4096, &[round as u8; 512], plain).unwrap();
        }
        overlay.flush().unwrap();
        assert!(journal_bytes() < 40 << 20, "{} bytes of journal", journal_bytes());
    }
    drop(overlay);
    let overlay = open(RealDirectory::new(place.path()), &below);
    let bytes = read_all(&overlay);
    assert!(bytes.chunks(4096).all(|b| b[..512] == [49; 512] && b[512..] == [0; 3584]));
}

/// A disk that is all zeros, of any size.
#[derive(Debug)]
struct Nothing(u64);

impl BlockDevice for Nothing {
    fn geometry(&self) -> Geometry {
        let (min, preferred, max) = (1, 4096, 32 << 20);
        Geometry {
            size_bytes: self.0,
            min_block_bytes: min,
            preferred_block_bytes: preferred,
            max_request_bytes: max,
        }
    }

    fn caps(&self) -> Caps {
        Caps { multi_conn: true, ..Caps::default() }
    }

    fn read_at(&self, offset_bytes: u64, buf: &mut [u8]) -> Result<(), Error> {
        self.geometry().check(offset_bytes, buf.len() as u64)?;
        buf.fill(0);
        Ok(())
    }

    fn extents(&self, offset_bytes: u64, len_bytes: u64, _: usize) -> Result<Vec<Extent>, Error> {
        self.geometry().check(offset_bytes, len_bytes)?;
        let hole = Extent { offset_bytes, len_bytes, kind: ExtentKind::Hole };
        Ok(if len_bytes == 0 { Vec::new() } else { vec![hole] })
    }
}

/// A guest that makes a file system discards the whole disk first, and then writes here and there.
#[test]
fn a_disk_of_ten_terabytes_costs_what_is_written_to_it() {
    const SIZE: u64 = 10 << 40;
    let base: Arc<dyn BlockDevice> = Arc::new(Nothing(SIZE));
    let place = tempfile::tempdir().unwrap();
    let start = std::time::Instant::now();
    let overlay = create(RealDirectory::new(place.path()), &base);
    overlay.trim(0, SIZE, WriteFlags::default()).unwrap();
    for group in (0..SIZE).step_by(1 << 30) {
        overlay.write_at(group, &[1; 4096], WriteFlags::default()).unwrap();
    }
    overlay.write_zeroes(1 << 40, SIZE / 2, WriteFlags::default()).unwrap();
    overlay.flush().unwrap();
    let usage = overlay.usage();
    drop(overlay);
    let overlay = open(RealDirectory::new(place.path()), &base);
    assert_eq!(overlay.usage(), usage);
    assert_eq!(overlay.changed(0, 10), [(0, SIZE)]);
    assert!(start.elapsed().as_secs() < 20, "{:?}", start.elapsed());
}
