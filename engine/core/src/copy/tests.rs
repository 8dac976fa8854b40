//! What the two sides of a copy are read with, without a copy between them.

use std::sync::Arc;

use backstay_blockdev::{BlockDevice, ExtentKind};
use backstay_store::{
    ChunkIndex, ChunkSize, DiskRecord, Encryption, IndexChoice, InitOptions, Location,
    MemoryStorage, OpenOptions, Repository, SystemEntropy, Unlock, WriteScratch,
};

use super::disk::StoredDisk;
use super::verify::{self, Pair};
use crate::ErrorKind;
use crate::monitor::Silent;
use crate::ranges::Ranges;

const CHUNK: usize = 65_536;

fn repository(chunk: u32) -> Repository {
    let storage = Arc::new(MemoryStorage::default());
    let options = InitOptions {
        chunk_size: ChunkSize::new(chunk).unwrap(),
        encryption: Encryption::None,
        time: jiff::Timestamp::UNIX_EPOCH,
    };
    Repository::init_on(&*storage, &options, &Unlock::None, &SystemEntropy).unwrap();
    Repository::open_on(
        storage,
        Location::parse("/memory").unwrap(),
        &Unlock::None,
        &OpenOptions { cache_bytes: 1 << 20, ..OpenOptions::new("/nonexistent") },
        IndexChoice::Memory,
        Arc::new(SystemEntropy),
    )
    .unwrap()
}

fn store(repo: &Repository, bytes: &[u8]) -> DiskRecord {
    let session = repo.begin(None).unwrap();
    let writer = session.image("disk0", "x", bytes.len() as u64);
    let mut scratch = WriteScratch::new().unwrap();
    writer.write_chunks(ChunkIndex(0), bytes, &mut scratch).unwrap();
    let record = writer.finish().unwrap();
    session.flush().unwrap();
    record
}

fn open(repo: &Repository, record: &DiskRecord) -> StoredDisk {
    StoredDisk::new(repo.image(record).unwrap())
}

/// Three chunks and a bit of data, with a hole over the second.
fn content() -> Vec<u8> {
    let mut bytes: Vec<u8> = (0..3 * CHUNK + 100).map(|i| (i / 256 + i % 251) as u8 | 1).collect();
    bytes[CHUNK..2 * CHUNK].fill(0);
    bytes
}

#[test]
fn a_copy_that_differs_anywhere_is_not_good() {
    let (from, to) = (repository(CHUNK as u32), repository(4096));
    let bytes = content();
    let source = store(&from, &bytes);
    let compare = |copy: &[u8], written: Option<Ranges>| {
        let copy = open(&to, &store(&to, copy));
        let pair = Pair { name: "disk0", source: Arc::new(open(&from, &source)), copy, written };
        verify::all(&[pair], 4096, 2, &Silent)
    };
    assert_eq!(compare(&bytes, None).unwrap(), (2 * CHUNK + 100) as u64);
    for at in [0, 5000, CHUNK - 1, CHUNK, 2 * CHUNK - 1, 2 * CHUNK, bytes.len() - 1] {
        let mut other = bytes.clone();
        other[at] ^= 0x80;
        let error = compare(&other, None).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Damaged, "{at}: {error}");
        let written = |start: usize, len: usize| {
            Some(Ranges::from_any([(start as u64, len as u64)]).unwrap())
        };
        let chunk = at - at % 4096;
        let here = written(chunk, 4096.min(bytes.len() - chunk));
        assert_eq!(compare(&other, here).unwrap_err().kind(), ErrorKind::Damaged, "{at}");
        // What was kept is not looked at.
        let elsewhere = if at < CHUNK { written(2 * CHUNK, 4096) } else { written(0, 4096) };
        assert_eq!(compare(&other, elsewhere).unwrap(), 4096, "{at}");
    }
    // A hole where there was data is as wrong as any other byte.
    let mut other = bytes.clone();
    other[..4096].fill(0);
    assert_eq!(compare(&other, None).unwrap_err().kind(), ErrorKind::Damaged);
}

#[test]
fn any_range_of_a_stored_disk_can_be_read() {
    let repo = repository(CHUNK as u32);
    let bytes = content();
    let disk = open(&repo, &store(&repo, &bytes));
    let size = bytes.len();
    for (start, end) in
        [(0, size), (0, 1), (1, 2), (4096, CHUNK + 4096), (CHUNK, size), (size - 1, size), (7, 7)]
    {
        let mut buf = vec![0xee; end - start];
        disk.read_at(start as u64, &mut buf).unwrap();
        assert!(buf == bytes[start..end], "{start}..{end}");
    }
    assert!(disk.read_at(size as u64, &mut [0]).is_err());
    assert_eq!(disk.data_bytes().unwrap(), (2 * CHUNK + 100) as u64);
    let kinds: Vec<_> =
        disk.extents(0, size as u64, 9).unwrap().into_iter().map(|e| e.kind).collect();
    assert_eq!(kinds, [ExtentKind::Data, ExtentKind::Hole, ExtentKind::Data]);
    assert!(!disk.has_failed());
}
