//! Servers, proxies and small repositories for these tests.

use std::sync::Arc;
use std::time::Duration;

use backstay_store::testkit::SeededEntropy;
use backstay_store::{
    ChunkIndex, ChunkSize, Consistency, Encryption, Entropy, Error, IndexChoice, InitOptions,
    Location, NewPoint, OpenOptions, Origin, RecoveryPoint, Repository, S3Options, S3Storage,
    Secret, Storage, Unlock, WriteScratch,
};
use backstay_tests::s3_proxy::{Link, Proxy};
use backstay_tests::s3_server::{Bucket, Kind, Server};

pub(crate) const BUCKET: &str = "backups";
/// Small chunks, so that small images have trees.
pub(crate) const CHUNK: usize = 4096;

/// A server with a bucket, behind a proxy.
pub(crate) struct Rig {
    pub(crate) server: Server,
    pub(crate) proxy: Proxy,
    _dir: tempfile::TempDir,
}

/// Tests hurry: a fault is tried again at once, and given up soon.
pub(crate) fn hasty() -> S3Options {
    S3Options {
        // Any key will do: neither server has users here.
        keys: Some(("test".into(), Secret::new(b"test".to_vec()))),
        tries: 4,
        first_tries: 3,
        pause: Duration::from_millis(5),
        pause_max: Duration::from_millis(50),
        request: Duration::from_secs(20),
        silence: Duration::from_secs(10),
        patience: Duration::from_secs(60),
        ..S3Options::default()
    }
}

/// The server with an empty bucket; nothing where it is not installed, which is said.
pub(crate) fn rig(kind: Kind, bucket: Bucket) -> Option<Rig> {
    if kind.program().is_none() {
        println!("SKIPPED {kind:?} is not installed: run `cargo xtask bootstrap`");
        return None;
    }
    let dir = tempfile::tempdir().unwrap();
    let server = kind.start(dir.path()).unwrap();
    server.make_bucket(BUCKET, bucket).unwrap();
    let proxy = Proxy::start(server.address(), Link::default()).unwrap();
    Some(Rig { server, proxy, _dir: dir })
}

impl Rig {
    /// The repository's place, through the proxy.
    pub(crate) fn location(&self, prefix: &str) -> Location {
        let address = self.proxy.address();
        Location::parse(&format!("s3://{BUCKET}/{prefix}?endpoint=http://{address}")).unwrap()
    }

    /// A storage at `prefix`, with nothing probed yet.
    pub(crate) fn storage(&self, prefix: &str) -> S3Storage {
        S3Storage::new(self.location(prefix).s3().unwrap(), hasty()).unwrap()
    }
}

/// Makes a repository on `storage`.
pub(crate) fn init(storage: &dyn Storage, entropy: &SeededEntropy) -> Result<(), Error> {
    let options = InitOptions {
        chunk_size: ChunkSize::new(CHUNK as u32).unwrap(),
        encryption: Encryption::Aes256Gcm,
        time: "2026-11-22T03:00:00Z".parse().unwrap(),
        parity: false,
    };
    Repository::init_on(storage, &options, &key(), entropy).map(|_| ())
}

pub(crate) fn key() -> Unlock {
    Unlock::KeyFile(Secret::new(b"a key file for tests, 32 bytes or more".to_vec()))
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
        &OpenOptions { cache_bytes: 64 << 20, ..OpenOptions::new("/nonexistent") },
        IndexChoice::Memory,
        entropy.clone(),
    )
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
    let step = 64 * CHUNK;
    for (i, data) in image.chunks(step).enumerate() {
        writer.write_chunks(ChunkIndex((i * 64) as u64), data, &mut scratch)?;
    }
    let disk = writer.finish()?;
    let new = NewPoint {
        machine: machine.into(),
        time: jiff::Timestamp::now(),
        consistency: Consistency::Offline,
        origin: Origin { host: "test".into(), tool: "test".into() },
        note: None,
        parent: parent.map(|p| p.id),
        read_bytes: 0,
        hole_bytes: 0,
        copied_from: None,
    };
    session.commit(new, vec![disk])
}

/// The whole first disk of a point.
pub(crate) fn read(repo: &Repository, point: &RecoveryPoint) -> Result<Vec<u8>, Error> {
    let image = repo.image(&point.disks[0])?;
    let mut out = vec![0xee; image.size_bytes() as usize];
    image.read_at(0, &mut out)?;
    Ok(out)
}

/// Noise with holes and repetitions.
pub(crate) fn image(seed: u64, len: usize) -> Vec<u8> {
    let random = SeededEntropy::new(seed);
    let mut out = Vec::with_capacity(len + 8 * CHUNK);
    while out.len() < len {
        let n = CHUNK * (1 + random.below(8) as usize);
        match random.below(4) {
            0 => out.resize(out.len() + n, 0),
            1 => out.extend(std::iter::repeat_n(random.below(3) as u8 + 1, n)),
            _ => {
                let mut noise = vec![0; n];
                random.fill(&mut noise);
                out.extend(noise);
            }
        }
    }
    out.truncate(len);
    out
}
