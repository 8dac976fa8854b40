//! What these tests share: small repositories, known images, and comparing.

use std::path::Path;
use std::sync::Arc;

use backstay_store::testkit::SeededEntropy;
use backstay_store::{
    ChunkIndex, ChunkSize, Consistency, DiskRecord, Encryption, Entropy, Error, IndexChoice,
    InitOptions, Location, NewPoint, OpenOptions, Origin, RecoveryPoint, Repository, Secret,
    Storage, Unlock, WriteScratch,
};

/// Small chunks, so that small images have trees.
pub(crate) const CHUNK: usize = 4096;

/// The seed of this run: BACKSTAY_SEED, or one of the run's own. Printed, so a failure can be
/// repeated.
pub(crate) fn seed() -> u64 {
    let seed =
        std::env::var("BACKSTAY_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or_else(|| {
            let mut bytes = [0u8; 4];
            backstay_store::SystemEntropy.fill(&mut bytes);
            u64::from(u32::from_le_bytes(bytes))
        });
    println!("seed {seed} (repeat with BACKSTAY_SEED={seed})");
    seed
}

pub(crate) fn key() -> Unlock {
    Unlock::KeyFile(Secret::new(b"a key file for tests, 32 bytes or more".to_vec()))
}

pub(crate) fn init_options(encryption: Encryption) -> InitOptions {
    InitOptions {
        chunk_size: ChunkSize::new(CHUNK as u32).unwrap(),
        encryption,
        time: "2026-11-22T03:00:00Z".parse().unwrap(),
    }
}

/// Makes a repository on `storage`.
pub(crate) fn init(storage: &dyn Storage, entropy: &SeededEntropy) -> Result<(), Error> {
    let options = init_options(Encryption::Aes256Gcm);
    Repository::init_on(storage, &options, &key(), entropy).map(|_| ())
}

/// Opens it with an index in memory.
pub(crate) fn open(
    storage: Arc<dyn Storage>,
    entropy: &Arc<SeededEntropy>,
) -> Result<Repository, Error> {
    Repository::open_on(
        storage,
        Location::parse("/test").unwrap(),
        &key(),
        &OpenOptions { cache_bytes: 1 << 20, ..OpenOptions::new("/nonexistent") },
        IndexChoice::Memory,
        entropy.clone(),
    )
}

/// A repository in a directory, with its cache beside it.
pub(crate) fn real(dir: &Path) -> (Location, OpenOptions) {
    let location = Location::from_path(&dir.join("repo"));
    (location, OpenOptions::new(dir.join("cache")))
}

pub(crate) fn init_real(dir: &Path, encryption: Encryption) -> Repository {
    let (location, options) = real(dir);
    Repository::init(&location, &init_options(encryption), &key()).unwrap();
    Repository::open(&location, &key(), &options).unwrap()
}

/// Backs up one image as the disk `disk0` of `machine`.
pub(crate) fn back_up(
    repo: &Repository,
    machine: &str,
    image: &[u8],
) -> Result<RecoveryPoint, Error> {
    let list = repo.points()?;
    let parent = list.points.into_iter().rfind(|p| p.machine == machine);
    let session = repo.begin(parent.as_ref())?;
    let writer = session.image("disk0", "image.raw", image.len() as u64);
    let mut scratch = WriteScratch::new()?;
    // A few chunks a call, so that packs and trees see several runs.
    let step = 3 * CHUNK;
    for (i, data) in image.chunks(step).enumerate() {
        writer.write_chunks(ChunkIndex((i * 3) as u64), data, &mut scratch)?;
    }
    let disk = writer.finish()?;
    session.commit(new_point(machine, parent.map(|p| p.id)), vec![disk])
}

pub(crate) fn new_point(machine: &str, parent: Option<backstay_store::PointId>) -> NewPoint {
    NewPoint {
        machine: machine.into(),
        time: jiff::Timestamp::now(),
        consistency: Consistency::Offline,
        origin: Origin { host: "test".into(), tool: "test".into() },
        note: None,
        parent,
        read_bytes: 0,
        hole_bytes: 0,
        copied_from: None,
    }
}

/// The whole disk, read through the cache.
pub(crate) fn read(repo: &Repository, disk: &DiskRecord) -> Result<Vec<u8>, Error> {
    let image = repo.image(disk)?;
    let mut out = vec![0xee; image.size_bytes() as usize];
    image.read_at(0, &mut out)?;
    Ok(out)
}

/// Bytes that look like a disk: noise, text, zeros, and repeated blocks.
pub(crate) fn image(seed: u64, len: usize) -> Vec<u8> {
    let random = SeededEntropy::new(seed);
    let mut out = Vec::with_capacity(len + CHUNK);
    while out.len() < len {
        let n = CHUNK * (1 + random.below(4) as usize);
        match random.below(4) {
            0 => out.resize(out.len() + n, 0),
            1 => out.extend(std::iter::repeat_n(random.below(3) as u8 + 1, n)),
            2 => {
                let mut noise = vec![0; n];
                random.fill(&mut noise);
                out.extend(noise);
            }
            _ => {
                let text = format!("line {} of a log file\n", random.below(1000));
                out.extend(text.bytes().cycle().take(n));
            }
        }
    }
    out.truncate(len);
    out
}
