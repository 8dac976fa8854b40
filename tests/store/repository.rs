//! Making and opening repositories, keys, and what backups promise.

use backstay_store::{
    ChunkIndex, Encryption, ErrorKind, Location, OpenOptions, Repository, Secret, Unlock,
    WriteScratch,
};

use crate::support::{CHUNK, back_up, image, init_options, init_real, key, new_point, read, real};

fn kind<T: std::fmt::Debug>(r: Result<T, backstay_store::Error>) -> ErrorKind {
    r.unwrap_err().kind()
}

#[test]
fn a_wrong_key_a_missing_key_and_a_missing_repository_are_told_apart() {
    let dir = tempfile::tempdir().unwrap();
    drop(init_real(dir.path(), Encryption::Aes256Gcm));
    let (location, options) = real(dir.path());
    let wrong = Unlock::KeyFile(Secret::new(vec![9; 32]));
    assert_eq!(kind(Repository::open(&location, &wrong, &options)), ErrorKind::WrongKey);
    let wrong = Unlock::Passphrase(Secret::new(b"guess".to_vec()));
    assert_eq!(kind(Repository::open(&location, &wrong, &options)), ErrorKind::WrongKey);
    assert_eq!(kind(Repository::open(&location, &Unlock::None, &options)), ErrorKind::NeedsKey);
    let nowhere = Location::from_path(&dir.path().join("nowhere"));
    assert_eq!(kind(Repository::open(&nowhere, &key(), &options)), ErrorKind::NotFound);
    assert_eq!(
        kind(Repository::open(&Location::from_path(dir.path()), &key(), &options)),
        ErrorKind::NotFound
    );
}

#[test]
fn init_never_touches_what_is_there() {
    let dir = tempfile::tempdir().unwrap();
    let options = init_options(Encryption::None);
    let location = Location::from_path(&dir.path().join("repo"));
    Repository::init(&location, &options, &Unlock::None).unwrap();
    assert_eq!(kind(Repository::init(&location, &options, &Unlock::None)), ErrorKind::Exists);
    let used = dir.path().join("used");
    std::fs::create_dir(&used).unwrap();
    std::fs::write(used.join("letter.txt"), b"dear").unwrap();
    let location = Location::from_path(&used);
    assert_eq!(kind(Repository::init(&location, &options, &Unlock::None)), ErrorKind::Exists);
    assert_eq!(std::fs::read_dir(&used).unwrap().count(), 1);
    let encrypted = init_options(Encryption::Aes256Gcm);
    let fresh = Location::from_path(&dir.path().join("fresh"));
    assert_eq!(kind(Repository::init(&fresh, &encrypted, &Unlock::None)), ErrorKind::NeedsKey);
    assert!(!fresh.directory().unwrap().exists());
}

#[test]
fn keys_are_added_and_removed_but_never_the_last() {
    let dir = tempfile::tempdir().unwrap();
    let repo = init_real(dir.path(), Encryption::Aes256Gcm);
    let (location, options) = real(dir.path());
    let first = Repository::key_slots(&location).unwrap();
    assert_eq!(first.len(), 1);
    assert_eq!(kind(repo.remove_key(&first[0].id.to_string())), ErrorKind::Invalid);
    let pass = Unlock::Passphrase(Secret::new(b"correct horse".to_vec()));
    let added = repo.add_key(&pass, "recovery", jiff::Timestamp::now()).unwrap();
    assert_eq!(added.kind, backstay_store::SlotKind::Passphrase);
    let disk = image(1, 10 * CHUNK);
    let point = back_up(&repo, "web01", &disk).unwrap();
    repo.remove_key(&first[0].id.to_string()).unwrap();
    assert_eq!(kind(repo.remove_key("nonsense")), ErrorKind::NotFound);
    assert_eq!(kind(Repository::open(&location, &key(), &options)), ErrorKind::WrongKey);
    let repo = Repository::open(&location, &pass, &options).unwrap();
    assert!(read(&repo, &point.disks[0]).unwrap() == disk);
}

#[test]
fn a_configuration_changed_without_the_key_is_noticed() {
    let dir = tempfile::tempdir().unwrap();
    drop(init_real(dir.path(), Encryption::Aes256Gcm));
    let (location, options) = real(dir.path());
    let path = dir.path().join("repo/config");
    let mut config = Repository::read_config(&location).unwrap();
    config.chunk_size = backstay_store::ChunkSize::DEFAULT;
    std::fs::write(&path, config.encode().unwrap()).unwrap();
    let e = Repository::open(&location, &key(), &options).unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Damaged);
    for bytes in [&b""[..], b"rubbish", &[0; 5000]] {
        std::fs::write(&path, bytes).unwrap();
        assert_eq!(kind(Repository::open(&location, &key(), &options)), ErrorKind::Damaged);
    }
}

#[test]
fn an_unchanged_backup_stores_a_few_kib_and_a_changed_one_the_change() {
    for encryption in [Encryption::None, Encryption::Aes256Gcm] {
        let dir = tempfile::tempdir().unwrap();
        let repo = init_real(dir.path(), encryption);
        let mut disk = image(1, 5000 * CHUNK + 1);
        let first = back_up(&repo, "web01", &disk).unwrap();
        let second = back_up(&repo, "web01", &disk).unwrap();
        assert_eq!(second.stats.new_chunks, 0);
        assert_eq!(second.stats.stored_bytes, 0, "not even a pack");
        assert_eq!(second.disks[0].root, first.disks[0].root);
        disk[2000 * CHUNK..2001 * CHUNK].copy_from_slice(&image(77, CHUNK));
        disk[2000 * CHUNK] = 0xaa;
        let third = back_up(&repo, "web01", &disk).unwrap();
        let nodes = u64::from(third.disks[0].levels);
        assert_eq!(third.stats.new_chunks, 1 + nodes);
        assert!(third.stats.stored_bytes < (CHUNK as u64) + nodes * 2100 + 2000);
        for (point, changed) in [(&first, false), (&third, true)] {
            let bytes = read(&repo, &point.disks[0]).unwrap();
            assert_eq!(bytes == disk, changed);
        }
    }
}

#[test]
fn sizes_at_the_edges() {
    let dir = tempfile::tempdir().unwrap();
    let repo = init_real(dir.path(), Encryption::Aes256Gcm);
    for len in [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 64 * CHUNK, 64 * CHUNK + 1, 4096 * CHUNK + 5] {
        let disk = image(len as u64, len);
        let point = back_up(&repo, "m", &disk).unwrap();
        assert!(read(&repo, &point.disks[0]).unwrap() == disk, "{len} bytes");
    }
    let zeros = vec![0u8; 100 * CHUNK];
    let point = back_up(&repo, "zero", &zeros).unwrap();
    assert_eq!(point.disks[0].root, None);
    assert!(read(&repo, &point.disks[0]).unwrap() == zeros);
}

#[test]
fn a_huge_sparse_disk_costs_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let repo = init_real(dir.path(), Encryption::Aes256Gcm);
    let session = repo.begin(None).unwrap();
    let size = 1u64 << 50;
    let writer = session.image("disk0", "huge.raw", size);
    let mut scratch = WriteScratch::new().unwrap();
    let last = size / CHUNK as u64 - 1;
    writer.write_chunks(ChunkIndex(last), &[7; CHUNK], &mut scratch).unwrap();
    writer.write_holes(ChunkIndex(0), last).unwrap();
    let disk = writer.finish().unwrap();
    let point = session.commit(new_point("huge", None), vec![disk]).unwrap();
    assert!(point.stats.stored_bytes < 20_000, "{}", point.stats.stored_bytes);
    let reader = repo.image(&point.disks[0]).unwrap();
    let extents = reader.extents(0, size, 10).unwrap();
    let edge = last * CHUNK as u64;
    assert_eq!(extents, vec![(0, edge, false), (edge, CHUNK as u64, true)]);
    let mut buf = [0u8; 10];
    reader.read_at(size - 10, &mut buf).unwrap();
    assert_eq!(buf, [7; 10]);
}

#[test]
fn wrong_ranges_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let repo = init_real(dir.path(), Encryption::None);
    let session = repo.begin(None).unwrap();
    let writer = session.image("disk0", "x", 10 * CHUNK as u64 + 5);
    let mut scratch = WriteScratch::new().unwrap();
    let mut put = |first, len: usize| {
        writer.write_chunks(ChunkIndex(first), &vec![1; len], &mut scratch).map(|_| ())
    };
    assert_eq!(kind(put(0, 100)), ErrorKind::Invalid, "half a chunk in the middle");
    assert_eq!(kind(put(10, CHUNK)), ErrorKind::Invalid, "beyond the end");
    assert_eq!(kind(put(u64::MAX, CHUNK)), ErrorKind::Invalid, "far beyond the end");
    put(10, 5).unwrap();
}

#[test]
fn bad_names_are_refused_at_commit() {
    let dir = tempfile::tempdir().unwrap();
    let repo = init_real(dir.path(), Encryption::None);
    for machine in ["", "../x", "a@b"] {
        assert_eq!(kind(back_up(&repo, machine, b"data")), ErrorKind::Invalid, "{machine}");
    }
    assert!(repo.points().unwrap().points.is_empty());
}

#[test]
fn nothing_of_the_data_or_the_names_is_readable_without_the_key() {
    let dir = tempfile::tempdir().unwrap();
    let repo = init_real(dir.path(), Encryption::Aes256Gcm);
    let canary = b"CANARY-4711-CANARY-4711";
    let disk: Vec<u8> = canary.iter().copied().cycle().take(50 * CHUNK).collect();
    back_up(&repo, "secret-machine-name", &disk).unwrap();
    drop(repo);
    let mut files = 0;
    let mut stack = vec![dir.path().join("repo")];
    while let Some(path) = stack.pop() {
        if path.is_dir() {
            stack.extend(std::fs::read_dir(&path).unwrap().map(|e| e.unwrap().path()));
            continue;
        }
        if path.ends_with("repo/reserve") {
            // Large, of zeros, and never written.
            continue;
        }
        files += 1;
        let bytes = std::fs::read(&path).unwrap();
        for word in [&canary[..], b"secret-machine-name", b"image.raw"] {
            assert!(!bytes.windows(word.len()).any(|w| w == word), "{}", path.display());
        }
    }
    assert!(files >= 4);
}

#[test]
fn a_keyless_check_finds_a_flipped_bit() {
    let dir = tempfile::tempdir().unwrap();
    let repo = init_real(dir.path(), Encryption::Aes256Gcm);
    back_up(&repo, "web01", &image(1, 300 * CHUNK)).unwrap();
    let (location, _) = real(dir.path());
    let progress = backstay_store::NoProgress;
    let clean = Repository::check_without_key(&location, &progress).unwrap();
    assert!(clean.damage.is_empty() && clean.packs == 2);
    let packs = dir.path().join("repo/packs");
    let pack = std::fs::read_dir(packs)
        .unwrap()
        .flat_map(|d| std::fs::read_dir(d.unwrap().path()).unwrap())
        .next()
        .unwrap()
        .unwrap()
        .path();
    let mut bytes = std::fs::read(&pack).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 4;
    std::fs::write(&pack, bytes).unwrap();
    let report = Repository::check_without_key(&location, &progress).unwrap();
    assert_eq!(report.damage.len(), 1);
}

#[test]
fn one_chunk_is_fetched_once_for_many_readers() {
    use backstay_store::testkit::SeededEntropy;
    use backstay_store::{FaultPlan, FaultStorage, IndexChoice, MemoryStorage};
    use std::sync::Arc;
    use std::time::Duration;
    let inner = Arc::new(MemoryStorage::default());
    let entropy = Arc::new(SeededEntropy::new(1));
    crate::support::init(&*inner, &entropy).unwrap();
    let disk = image(1, 64 * CHUNK);
    let repo = crate::support::open(inner.clone(), &entropy).unwrap();
    let point = back_up(&repo, "m", &disk).unwrap();
    let storage = Arc::new(FaultStorage::new(inner, FaultPlan::default()));
    let repo = Repository::open_on(
        storage.clone(),
        Location::parse("/test").unwrap(),
        &key(),
        &OpenOptions::new("/nonexistent"),
        IndexChoice::Memory,
        entropy,
    )
    .unwrap();
    let reader = repo.image(&point.disks[0]).unwrap();
    let at = disk.chunks(CHUNK).position(|c| c.iter().any(|&b| b != 0)).unwrap() * CHUNK;
    // Opens the index and brings the tree nodes in, so that only the chunk is left to fetch.
    reader.extents(at as u64, 1, 1).unwrap();
    storage.set_plan(FaultPlan { delay: Duration::from_millis(50), ..FaultPlan::default() });
    std::thread::scope(|s| {
        for i in 0..8u64 {
            let (reader, disk) = (reader.clone(), &disk);
            s.spawn(move || {
                let mut buf = [0u8; 100];
                reader.read_at(at as u64 + i, &mut buf).unwrap();
                assert_eq!(buf, disk[at + i as usize..][..100]);
            });
        }
    });
    assert_eq!(storage.calls(), 1, "eight readers, one fetch");
}

/// Who reads whole chunks, once, costs the others no cache; pieces, and what is read again, stay.
#[test]
fn what_is_streamed_goes_past_the_cache() {
    let dir = tempfile::tempdir().unwrap();
    let repo = init_real(dir.path(), Encryption::Aes256Gcm);
    let disk: Vec<u8> = (0..8 * CHUNK).map(|i| (i / CHUNK * 7 + i % 251 + 1) as u8).collect();
    let point = back_up(&repo, "m", &disk).unwrap();
    let reader = repo.image(&point.disks[0]).unwrap();
    let mut buf = vec![0u8; 4 * CHUNK];
    let kept = |at: usize| {
        let mut byte = [0u8];
        reader.try_read_at(at as u64, &mut byte).unwrap() && byte[0] == disk[at]
    };
    // From the middle of a chunk to the middle of another.
    let from = CHUNK / 2;
    reader.read_at(from as u64, &mut buf).unwrap();
    assert!(buf == disk[from..from + buf.len()]);
    assert!(kept(0) && kept(4 * CHUNK), "the ends");
    assert!(!kept(CHUNK) && !kept(2 * CHUNK) && !kept(3 * CHUNK), "what lies between");
    // Again, and the whole disk, which has what was not read before, too.
    reader.read_at(from as u64, &mut buf).unwrap();
    assert!(buf == disk[from..from + buf.len()]);
    assert!((0..=4).all(|i| kept(i * CHUNK)), "read twice");
    let mut all = vec![0u8; disk.len()];
    reader.read_at(0, &mut all).unwrap();
    assert!(all == disk && !kept(6 * CHUNK));
}

/// Equal chunks in one read, and several readers of whole chunks at once.
#[test]
fn equal_chunks_and_many_readers_of_whole_chunks() {
    let dir = tempfile::tempdir().unwrap();
    let repo = init_real(dir.path(), Encryption::Aes256Gcm);
    let disk: Vec<u8> = (0..32 * CHUNK).map(|i| (i / CHUNK % 3 * 7 + i % 251 + 1) as u8).collect();
    let point = back_up(&repo, "m", &disk).unwrap();
    let reader = repo.image(&point.disks[0]).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..6 {
            scope.spawn(|| {
                for _ in 0..20 {
                    let mut all = vec![0u8; disk.len()];
                    reader.read_at(0, &mut all).unwrap();
                    assert!(all == disk);
                }
            });
        }
    });
}
