//! A repository with known disks, mountpoints that are always cleaned up, and waiting.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use backstay_daemon::fuse::{ImageMount, ImageMountOptions};
use backstay_store::{
    ChunkIndex, ChunkSize, Consistency, Encryption, InitOptions, Location, NewPoint, OpenOptions,
    Origin, RecoveryPoint, Repository, Secret, Unlock, WriteScratch,
};
use rustix::mount::UnmountFlags;
use tempfile::TempDir;

/// The chunk size of the test repositories.
pub(crate) const CHUNK: usize = 64 << 10;

/// Whether FUSE works here; says so loudly if not.
pub(crate) fn have_fuse() -> bool {
    let there = std::fs::File::options().read(true).write(true).open("/dev/fuse");
    if let Err(e) = &there {
        eprintln!("SKIPPED: no FUSE on this machine (/dev/fuse: {e}); this test proved nothing");
    }
    there.is_ok()
}

/// A repository in a directory of its own.
pub(crate) struct Fixture {
    pub(crate) dir: TempDir,
    key: Option<Vec<u8>>,
}

impl Fixture {
    pub(crate) fn new() -> Self {
        Self::with(Encryption::None)
    }

    pub(crate) fn encrypted() -> Self {
        Self::with(Encryption::Aes256Gcm)
    }

    fn with(encryption: Encryption) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let key = (encryption == Encryption::Aes256Gcm).then(|| vec![7; 64]);
        let fixture = Fixture { dir, key };
        let options = InitOptions {
            chunk_size: ChunkSize::new(CHUNK as u32).unwrap(),
            encryption,
            time: "2026-11-01T00:00:00Z".parse().unwrap(),
        };
        Repository::init(&fixture.location(), &options, &fixture.unlock()).unwrap();
        fixture
    }

    pub(crate) fn repository_dir(&self) -> PathBuf {
        self.dir.path().join("repository")
    }

    fn location(&self) -> Location {
        Location::from_path(&self.repository_dir())
    }

    fn unlock(&self) -> Unlock {
        match &self.key {
            Some(key) => Unlock::KeyFile(Secret::new(key.clone())),
            None => Unlock::None,
        }
    }

    /// Opened afresh, with nothing in memory.
    pub(crate) fn open(&self) -> Repository {
        open_with(self.dir.path(), &self.unlock())
    }

    /// A recovery point with these disks.
    pub(crate) fn backup(
        &self,
        machine: &str,
        time: &str,
        disks: &[(&str, &[u8])],
    ) -> RecoveryPoint {
        let repository = self.open();
        let session = repository.begin(None).unwrap();
        let mut records = Vec::new();
        for (name, bytes) in disks {
            let image = session.image(name, &format!("{name}.img"), bytes.len() as u64);
            let mut scratch = WriteScratch::new().unwrap();
            for (i, piece) in bytes.chunks(CHUNK * 8).enumerate() {
                let first = ChunkIndex(i as u64 * 8);
                image.write_chunks(first, piece, &mut scratch).unwrap();
            }
            records.push(image.finish().unwrap());
        }
        let new = NewPoint {
            machine: machine.into(),
            time: time.parse().unwrap(),
            consistency: Consistency::Offline,
            origin: Origin { host: "test".into(), tool: "it".into() },
            note: None,
            parent: None,
            read_bytes: 0,
            hole_bytes: 0,
            copied_from: None,
        };
        session.commit(new, records).unwrap()
    }

    /// An empty directory to mount at.
    pub(crate) fn mountpoint(&self, name: &str) -> Mountpoint {
        let path = self.dir.path().join(name);
        std::fs::create_dir(&path).unwrap();
        Mountpoint(path)
    }
}

/// Opens the unencrypted repository of a fixture in `dir`, as another process does.
pub(crate) fn open_at(dir: &Path) -> Repository {
    open_with(dir, &Unlock::None)
}

fn open_with(dir: &Path, unlock: &Unlock) -> Repository {
    let location = Location::from_path(&dir.join("repository"));
    Repository::open(&location, unlock, &OpenOptions::new(dir.join("cache"))).unwrap()
}

/// A directory that has no mount any more when this is dropped, whatever happened to the test.
pub(crate) struct Mountpoint(PathBuf);

impl Mountpoint {
    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    /// What the mount table says is mounted here: file system type and options.
    pub(crate) fn mounted(&self) -> Option<(String, String)> {
        let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        let line = table.lines().find(|l| l.split(' ').nth(4) == self.0.to_str())?;
        let (mine, rest) = line.split_once(" - ").unwrap();
        let mut rest = rest.split(' ');
        let fs_type = rest.next().unwrap().to_owned();
        let options = format!("{},{}", mine.split(' ').nth(5).unwrap(), rest.nth(1).unwrap());
        Some((fs_type, options))
    }

    pub(crate) fn mount(&self, repository: Repository) -> ImageMount {
        ImageMount::start(repository, quick(self.path())).unwrap()
    }
}

impl Drop for Mountpoint {
    fn drop(&mut self) {
        for _ in 0..8 {
            if rustix::mount::unmount(&self.0, UnmountFlags::DETACH).is_err() {
                return;
            }
        }
    }
}

/// Options with a list that is never old for long.
pub(crate) fn quick(mountpoint: &Path) -> ImageMountOptions {
    let mut options = ImageMountOptions::new(mountpoint);
    options.point_refresh = Duration::from_millis(50);
    options
}

/// Waits until `done`; fails with `what` after a while.
pub(crate) fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < Duration::from_secs(20), "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Numbers that look random and are the same in every run.
pub(crate) struct Numbers(u64);

impl Numbers {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    pub(crate) fn fill(&mut self, bytes: &mut [u8]) {
        for b in bytes {
            *b = (self.next() >> 24) as u8;
        }
    }
}

/// A disk of holes, noise, text and zeros, `chunks` chunks long and an odd piece more.
pub(crate) fn disk_image(seed: u64, chunks: usize) -> Vec<u8> {
    let mut numbers = Numbers::new(seed);
    let mut image = vec![0u8; chunks * CHUNK + 1234];
    for chunk in image.chunks_mut(CHUNK) {
        match numbers.below(4) {
            0 => {}
            1 => numbers.fill(chunk),
            2 => {
                let text = format!("line of {seed} and {}\n", numbers.next());
                let source = text.bytes().cycle();
                chunk.iter_mut().zip(source).for_each(|(to, from)| *to = from);
            }
            _ => {
                let half = chunk.len() / 2;
                numbers.fill(&mut chunk[half..]);
            }
        }
    }
    image
}

/// Which chunks of an image hold anything.
pub(crate) fn data_map(image: &[u8]) -> Vec<bool> {
    image.chunks(CHUNK).map(|c| c.iter().any(|b| *b != 0)).collect()
}
