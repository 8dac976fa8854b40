use backstay_format::pack::{Encoding, PackKind};

use super::database::SMALL_FILES_MAX;
use super::*;

fn info(chunks: u8) -> PackInfo {
    PackInfo { kind: PackKind::Data, chunks: chunks.into(), len: 99, session: PointId::NONE }
}

fn entries(n: u8) -> Vec<PackEntry> {
    let one = |i| PackEntry {
        id: ChunkId::from_bytes([i; 32]),
        offset: 64 + u32::from(i) * 10,
        stored_len: 10,
        raw_len: 10,
        encoding: Encoding::Raw,
    };
    (0..n).map(one).collect()
}

fn pack(n: u8) -> PackId {
    PackId::from_bytes([n; 16])
}

fn find(index: &RocksIndex, n: u8) -> Option<ChunkLocation> {
    let mut out = Vec::new();
    index.get_many(&[ChunkId::from_bytes([n; 32])], &PackSet::new(), &mut out).unwrap();
    out[0]
}

#[test]
fn two_at_once_learn_from_each_other() {
    let dir = tempfile::tempdir().unwrap();
    let a = RocksIndex::open(dir.path()).unwrap();
    let b = RocksIndex::open(dir.path()).unwrap();
    a.add_pack(pack(1), info(3), &entries(3)).unwrap();
    assert!(find(&a, 2).is_some());
    assert!(find(&b, 2).is_none());
    a.publish().unwrap();
    assert!(find(&a, 2).is_some());
    b.catch_up().unwrap();
    assert_eq!(find(&b, 2), find(&a, 2));
    b.add_pack(pack(2), info(1), &entries(1)).unwrap();
    b.publish().unwrap();
    a.catch_up().unwrap();
    assert!(a.packs().iter().any(|(id, _)| *id == pack(2)));
    assert_eq!(a.packs().len(), 2);
}

#[test]
fn a_dropped_pack_takes_its_chunks_and_marks_along() {
    let dir = tempfile::tempdir().unwrap();
    let a = RocksIndex::open(dir.path()).unwrap();
    let point = PointId::from_bytes([7; 16]);
    a.add_pack(pack(1), info(3), &entries(3)).unwrap();
    a.set_complete(point).unwrap();
    a.publish().unwrap();
    assert!(a.is_complete(point));
    a.drop_packs(&[pack(1)]).unwrap();
    assert!(find(&a, 1).is_none());
    assert!(!a.is_complete(point));
    let b = RocksIndex::open(dir.path()).unwrap();
    assert!(find(&b, 1).is_none() && !b.is_complete(point));
}

#[test]
fn many_publishings_do_not_leave_many_files() {
    let dir = tempfile::tempdir().unwrap();
    let a = RocksIndex::open(dir.path()).unwrap();
    for n in 0..40 {
        a.add_pack(pack(n), info(n + 1), &entries(n + 1)).unwrap();
        a.publish().unwrap();
    }
    assert_eq!(a.packs().len(), 40);
    let files = std::fs::read_dir(dir.path().join("db")).unwrap().flatten();
    let tables = files.filter(|f| f.path().extension().is_some_and(|e| e == "sst")).count() as u64;
    assert!(tables <= SMALL_FILES_MAX + 4, "{tables} table files");
}

#[test]
fn a_broken_database_is_made_anew() {
    let dir = tempfile::tempdir().unwrap();
    let a = RocksIndex::open(dir.path()).unwrap();
    a.add_pack(pack(1), info(3), &entries(3)).unwrap();
    a.publish().unwrap();
    drop(a);
    for entry in std::fs::read_dir(dir.path().join("db")).unwrap().flatten() {
        let name = entry.file_name();
        if name.to_string_lossy().starts_with("MANIFEST") {
            std::fs::write(entry.path(), b"rubbish").unwrap();
        }
    }
    let b = RocksIndex::open(dir.path()).unwrap();
    assert!(b.packs().is_empty());
    b.add_pack(pack(1), info(3), &entries(3)).unwrap();
    b.publish().unwrap();
    assert!(find(&b, 1).is_some());
}

#[test]
fn dead_readers_leave_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let readers = dir.path().join("readers");
    std::fs::create_dir_all(readers.join("dead")).unwrap();
    std::fs::write(readers.join("dead.lock"), b"").unwrap();
    drop(RocksIndex::open(dir.path()).unwrap());
    assert_eq!(std::fs::read_dir(&readers).unwrap().count(), 0);
}

/// A pack of chunks with ids that are spread like those of real chunks.
fn spread(seed: u32, chunks: u32) -> Vec<PackEntry> {
    let one = |i: u32| {
        let hash = blake3::hash(&[seed.to_le_bytes(), i.to_le_bytes()].concat());
        PackEntry {
            id: ChunkId::from_bytes(*hash.as_bytes()),
            offset: 64 + i * 10,
            stored_len: 10,
            raw_len: 65_536,
            encoding: Encoding::Zstd,
        }
    };
    (0..chunks).map(one).collect()
}

fn wide(seed: u32) -> PackId {
    let mut bytes = [1; 16];
    bytes[..4].copy_from_slice(&seed.to_be_bytes());
    PackId::from_bytes(bytes)
}

#[test]
fn rows_of_packs_that_are_gone_disappear_in_time() {
    const CHUNKS: u32 = 2000;
    let dir = tempfile::tempdir().unwrap();
    let a = RocksIndex::open(dir.path()).unwrap();
    let other = RocksIndex::open(dir.path()).unwrap();
    let info = PackInfo { chunks: CHUNKS, ..info(0) };
    for round in 0..12u32 {
        let packs: Vec<u32> = (round * 10..round * 10 + 10).collect();
        for &n in &packs {
            a.add_pack(wide(n), info, &spread(n, CHUNKS)).unwrap();
        }
        a.publish().unwrap();
        if round > 0 {
            let old: Vec<PackId> = (round * 10 - 10..round * 10).map(wide).collect();
            a.collected(&old).unwrap();
        }
        other.catch_up().unwrap();
        let ids: Vec<ChunkId> = packs.iter().flat_map(|&n| spread(n, 3)).map(|e| e.id).collect();
        for index in [&a, &other] {
            let mut found = Vec::new();
            index.get_many(&ids, &PackSet::new(), &mut found).unwrap();
            assert!(found.iter().all(Option::is_some), "round {round}");
            assert_eq!(index.packs().len(), 10);
        }
    }
    let rows = rows_of(&a);
    assert!(rows < 10 * u64::from(CHUNKS) * 2, "{rows} rows for {} chunks", 10 * CHUNKS);
}

/// All rows of copies, of present packs or not.
fn rows_of(index: &RocksIndex) -> u64 {
    let view = index.view.read();
    let mut rows = view.db.raw_iterator_cf(&super::database::chunks(&view.db).unwrap());
    let mut count = 0;
    rows.seek_to_first();
    while rows.valid() {
        count += 1;
        rows.next();
    }
    count
}

#[test]
fn a_pack_that_comes_back_is_not_served_by_rows_from_before() {
    let dir = tempfile::tempdir().unwrap();
    let a = RocksIndex::open(dir.path()).unwrap();
    a.add_pack(pack(1), info(3), &entries(3)).unwrap();
    a.publish().unwrap();
    a.drop_packs(&[pack(1)]).unwrap();
    a.add_pack(pack(1), info(2), &entries(2)).unwrap();
    a.publish().unwrap();
    assert!(find(&a, 1).is_some());
    assert!(find(&a, 2).is_none(), "it has no third chunk any more");
}

#[test]
fn copies_in_several_packs_outlive_each_other() {
    let dir = tempfile::tempdir().unwrap();
    let a = RocksIndex::open(dir.path()).unwrap();
    let b = RocksIndex::open(dir.path()).unwrap();
    // One handle learns the newer pack first, the other the older one.
    a.add_pack(pack(2), info(3), &entries(3)).unwrap();
    b.add_pack(pack(1), info(3), &entries(3)).unwrap();
    a.publish().unwrap();
    b.publish().unwrap();
    a.catch_up().unwrap();
    for index in [&a, &b] {
        assert_eq!(index.copies(ChunkId::from_bytes([1; 32])).unwrap().len(), 2);
        let mut out = Vec::new();
        index.get_many(&[ChunkId::from_bytes([1; 32])], &[pack(1)].into(), &mut out).unwrap();
        assert_eq!(out[0].map(|l| l.pack), Some(pack(2)));
    }
    a.drop_copies(pack(2), &[ChunkId::from_bytes([1; 32])]).unwrap();
    a.collected(&[pack(1)]).unwrap();
    assert!(find(&a, 1).is_none());
    assert_eq!(find(&a, 2).map(|l| l.pack), Some(pack(2)));
    b.catch_up().unwrap();
    assert!(find(&b, 1).is_none());
    assert_eq!(find(&b, 2), find(&a, 2));
}

#[test]
fn many_copies_and_none_forgotten() {
    let dir = tempfile::tempdir().unwrap();
    let a = RocksIndex::open(dir.path()).unwrap();
    let count = COPIES_MAX as u8 + 5;
    for n in 0..count {
        a.add_pack(pack(n), info(1), &entries(1)).unwrap();
    }
    a.publish().unwrap();
    let id = ChunkId::from_bytes([0; 32]);
    let newest: Vec<PackId> = (0..count).rev().take(COPIES_MAX).map(pack).collect();
    let told: Vec<PackId> = a.copies(id).unwrap().iter().map(|l| l.pack).collect();
    assert_eq!(told, newest);
    a.drop_packs(&newest).unwrap();
    assert_eq!(a.copies(id).unwrap().len(), 5);
}

#[test]
fn a_mark_noted_before_a_pack_vanished_does_not_come_after() {
    let dir = tempfile::tempdir().unwrap();
    let a = RocksIndex::open(dir.path()).unwrap();
    let b = RocksIndex::open(dir.path()).unwrap();
    let point = PointId::from_bytes([7; 16]);
    a.add_pack(pack(1), info(3), &entries(3)).unwrap();
    a.publish().unwrap();
    b.set_complete(point).unwrap();
    a.drop_packs(&[pack(1)]).unwrap();
    b.publish().unwrap();
    a.catch_up().unwrap();
    assert!(!a.is_complete(point) && !b.is_complete(point));
}

#[test]
fn a_directory_made_anew_under_a_reader_is_noticed() {
    let dir = tempfile::tempdir().unwrap();
    let a = RocksIndex::open(dir.path()).unwrap();
    let b = RocksIndex::open(dir.path()).unwrap();
    a.add_pack(pack(1), info(3), &entries(3)).unwrap();
    a.publish().unwrap();
    b.catch_up().unwrap();
    rustix::fs::rename(dir.path().join("db"), dir.path().join("old")).unwrap();
    a.add_pack(pack(2), info(5), &entries(5)).unwrap();
    a.publish().unwrap();
    assert_eq!(find(&a, 4).map(|l| l.pack), Some(pack(2)));
    b.catch_up().unwrap();
    assert_eq!(b.packs().len(), 1);
    assert_eq!(find(&b, 1).map(|l| l.pack), Some(pack(2)));
}

#[test]
fn a_large_delta_is_taken_in_whole() {
    let dir = tempfile::tempdir().unwrap();
    let a = RocksIndex::open(dir.path()).unwrap();
    let b = RocksIndex::open(dir.path()).unwrap();
    for n in 0..5 {
        let info = PackInfo { chunks: 8000, ..info(0) };
        a.add_pack(wide(n), info, &spread(n, 8000)).unwrap();
        b.add_pack(wide(n + 3), info, &spread(n + 3, 8000)).unwrap();
    }
    a.publish().unwrap();
    b.publish().unwrap();
    a.catch_up().unwrap();
    for index in [&a, &b] {
        assert_eq!(index.packs().len(), 8);
        for n in 0..8 {
            let last = spread(n, 8000)[7999];
            let copies = index.copies(last.id).unwrap();
            assert_eq!(copies.len(), 1);
            assert_eq!((copies[0].pack, copies[0].entry(last.id)), (wide(n), last));
        }
    }
    assert_eq!(rows_of(&a), 8 * 8000, "packs known to both are written once");
}

/// As whoever comes new does it, with packs enough for a build in parts.
fn build(index: &RocksIndex, packs: std::ops::Range<u32>) {
    index.expect(packs.len()).unwrap();
    for n in packs {
        let kind = if n % 10 == 0 { PackKind::Tree } else { PackKind::Data };
        let info = PackInfo { chunks: 700, kind, ..info(0) };
        index.add_pack(wide(n), info, &spread(n, 700)).unwrap();
    }
}

fn assert_has(index: &RocksIndex, packs: std::ops::Range<u32>) {
    let known = index.packs();
    for n in packs {
        let kind = if n % 10 == 0 { PackKind::Tree } else { PackKind::Data };
        let info = PackInfo { chunks: 700, kind, ..info(0) };
        assert!(known.contains(&(wide(n), info)), "pack {n}");
        for (i, e) in spread(n, 700).iter().enumerate().step_by(233) {
            let right = ChunkLocation::new(wide(n), kind, i, e);
            assert_eq!(index.copies(e.id).unwrap(), [right], "chunk {i} of pack {n}");
        }
    }
}

#[test]
fn a_large_index_is_built_in_parts() {
    let dir = tempfile::tempdir().unwrap();
    let a = RocksIndex::open(dir.path()).unwrap();
    let b = RocksIndex::open(dir.path()).unwrap();
    a.expect(4).unwrap();
    build(&a, 0..60);
    let mut out = Vec::new();
    let tree = spread(50, 700)[3].id;
    a.get_many(&[tree], &PackSet::new(), &mut out).unwrap();
    assert!(out[0].is_some(), "tree nodes are seen at once");
    // The other has begun as well, and knows some that this one does not.
    build(&b, 40..80);
    a.publish().unwrap();
    assert_has(&a, 0..60);
    b.publish().unwrap();
    assert_has(&b, 0..80);
    a.catch_up().unwrap();
    assert_has(&a, 0..80);
    assert_eq!(a.packs().len(), 80);
    // A few more, as usual.
    a.add_pack(wide(99), PackInfo { chunks: 700, ..info(0) }, &spread(99, 700)).unwrap();
    a.publish().unwrap();
    b.catch_up().unwrap();
    assert_has(&b, 99..100);
    let left = std::fs::read_dir(dir.path().join("readers")).unwrap().count();
    assert_eq!(left, 4, "two readers and their locks");
    assert!(!a.reader.path.join("bulk").exists());
}

#[test]
fn a_build_that_is_killed_is_begun_anew() {
    let dir = tempfile::tempdir().unwrap();
    let a = RocksIndex::open(dir.path()).unwrap();
    build(&a, 0..70);
    drop(a);
    let b = RocksIndex::open(dir.path()).unwrap();
    // Whole segments were taken in, and of what was not nothing is known.
    let known = b.packs().len();
    assert!(known < 70, "{known} packs");
    for (id, _) in b.packs() {
        let n = (0..70).find(|&n| wide(n) == id).unwrap();
        assert_has(&b, n..n + 1);
    }
    build(&b, 0..70);
    b.publish().unwrap();
    assert_has(&b, 0..70);
}
