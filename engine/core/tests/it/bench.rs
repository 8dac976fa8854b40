//! What the tests stand on: a repository in a directory of its own, images, and QEMU's tools.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use backstay_core::backup::{self, BackupPlan, BackupReport};
use backstay_core::monitor::Monitor;
use backstay_core::restore::{self, RestorePlan, Target};
use backstay_core::source::SourceSpec;
use backstay_core::{Error, Result};
use backstay_store::{
    ChunkSize, Encryption, InitOptions, Location, OpenOptions, RecoveryPoint, Repository, Unlock,
};
use jiff::Timestamp;

pub(crate) const MIB: u64 = 1 << 20;

/// A directory with a repository in it; gone with everything at the end.
pub(crate) struct Bench {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) repo: Repository,
}

impl Bench {
    pub(crate) fn new() -> Bench {
        Bench::with_chunks(ChunkSize::DEFAULT)
    }

    pub(crate) fn with_chunks(chunk_size: ChunkSize) -> Bench {
        let dir = tempfile::tempdir().unwrap();
        let options =
            InitOptions { chunk_size, encryption: Encryption::None, time: Timestamp::UNIX_EPOCH };
        let location = Location::from_path(&dir.path().join("repo"));
        Repository::init(&location, &options, &Unlock::None).unwrap();
        let repo = open_repo(dir.path());
        Bench { dir, repo }
    }

    pub(crate) fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// An image file of `size` bytes with random bytes in `data` ranges and holes elsewhere.
    pub(crate) fn image(&self, name: &str, size: u64, data: &[(u64, u64)]) -> PathBuf {
        let path = self.at(name);
        let file = File::create(&path).unwrap();
        file.set_len(size).unwrap();
        for (i, (offset, len)) in data.iter().enumerate() {
            file.write_all_at(&random(*offset ^ (i as u64 + 1), *len), *offset).unwrap();
        }
        path
    }

    pub(crate) fn backup(&self, paths: &[&Path]) -> Result<BackupReport> {
        self.backup_specs(paths.iter().map(SourceSpec::new).collect())
    }

    pub(crate) fn backup_specs(&self, sources: Vec<SourceSpec>) -> Result<BackupReport> {
        backup::run(&self.repo, &self.plan(sources), &Watch::default())
    }

    /// A plan for machine `m`, each a second after the one before.
    pub(crate) fn plan(&self, sources: Vec<SourceSpec>) -> BackupPlan {
        static SECONDS: AtomicU64 = AtomicU64::new(1);
        let second = SECONDS.fetch_add(1, Ordering::Relaxed);
        let time = Timestamp::from_second(i64::try_from(second).unwrap()).unwrap();
        BackupPlan::new("m", sources, time)
    }

    /// The bytes of a disk, restored to a file which is removed again.
    pub(crate) fn bytes(&self, point: &RecoveryPoint, disk: usize) -> Vec<u8> {
        let path = self.at("bytes-of-a-disk.raw");
        self.restore(point, disk, Target::RawFile(path.clone())).unwrap();
        let bytes = fs::read(&path).unwrap();
        fs::remove_file(&path).unwrap();
        bytes
    }

    pub(crate) fn restore(
        &self,
        point: &RecoveryPoint,
        disk: usize,
        target: Target,
    ) -> Result<restore::RestoreReport> {
        let plan = RestorePlan::new(target);
        restore::disk(&self.repo, point, &point.disks[disk], &plan, &Watch::default())
    }

    pub(crate) fn point_count(&self) -> usize {
        self.repo.points().unwrap().points.len()
    }

    /// Flips bytes in the middle of the largest pack, behind the store's back, and opens it afresh.
    pub(crate) fn damage(&mut self) {
        let largest = self.largest_pack();
        let file = File::options().read(true).write(true).open(&largest).unwrap();
        let middle = file.metadata().unwrap().len() / 2;
        let mut bytes = [0u8; 16];
        file.read_exact_at(&mut bytes, middle).unwrap();
        file.write_all_at(&bytes.map(|b| !b), middle).unwrap();
        self.repo = open_repo(self.dir.path());
    }

    pub(crate) fn largest_pack(&self) -> PathBuf {
        let folders = fs::read_dir(self.at("repo/packs")).unwrap().map(|f| f.unwrap().path());
        let packs = folders.flat_map(|f| fs::read_dir(f).unwrap()).map(|p| p.unwrap().path());
        packs.max_by_key(|p| fs::metadata(p).unwrap().len()).unwrap()
    }

    /// Names in the bench's directory, without the repository and its cache.
    pub(crate) fn names(&self) -> Vec<String> {
        names_in(self.dir.path()).into_iter().filter(|n| n != "repo" && n != "cache").collect()
    }
}

/// Opens the repository of the bench in `dir`, as another process may.
pub(crate) fn open_repo(dir: &Path) -> Repository {
    let options = OpenOptions { cache_bytes: 16 * MIB, ..OpenOptions::new(dir.join("cache")) };
    Repository::open(&Location::from_path(&dir.join("repo")), &Unlock::None, &options).unwrap()
}

/// Sorted names in a directory.
pub(crate) fn names_in(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).unwrap();
    let mut names: Vec<_> =
        entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Bytes that do not compress, the same for the same seed.
pub(crate) fn random(seed: u64, len: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(usize::try_from(len).unwrap() + 8);
    while (bytes.len() as u64) < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.wrapping_mul(0x2545_f491_4f6c_dd1d).to_le_bytes());
    }
    bytes.truncate(usize::try_from(len).unwrap());
    bytes
}

/// Runs a tool that must be there and must succeed.
pub(crate) fn run<S: AsRef<OsStr>>(program: &str, args: impl IntoIterator<Item = S>) -> Output {
    let output = Command::new(program).args(args).output();
    let output = output.unwrap_or_else(|e| panic!("{program} is needed by this test: {e}"));
    assert!(
        output.status.success(),
        "{program} failed: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    output
}

/// `qemu-img` with words and paths as one list.
pub(crate) fn qemu_img(words: &str, paths: &[&Path]) {
    let words = words.split_whitespace().map(OsStr::new);
    run("qemu-img", words.chain(paths.iter().map(|p| p.as_os_str())));
}

/// What `qemu-img` itself reads from an image.
pub(crate) fn guest_bytes(format: &str, path: &Path) -> Vec<u8> {
    let out = path.with_extension("guest-visible");
    qemu_img(&format!("convert -f {format} -O raw"), &[path, &out]);
    let bytes = fs::read(&out).unwrap();
    fs::remove_file(out).unwrap();
    bytes
}

pub(crate) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Fails with the first place where two disks differ, instead of printing them.
pub(crate) fn assert_same(what: &str, got: &[u8], want: &[u8]) {
    assert_eq!(got.len(), want.len(), "{what}: sizes");
    let differ = got.iter().zip(want).position(|(a, b)| a != b);
    assert_eq!(differ, None, "{what}: first byte that differs");
}

/// A monitor that keeps what it hears, and can do something at the first progress.
#[derive(Default)]
pub(crate) struct Watch {
    pub(crate) total: AtomicU64,
    pub(crate) added: AtomicU64,
    pub(crate) phases: Mutex<Vec<String>>,
    pub(crate) problems: Mutex<Vec<String>>,
    pub(crate) cancel: AtomicBool,
    pub(crate) at_first_bytes: Mutex<Option<Box<dyn FnOnce() + Send>>>,
}

impl Watch {
    pub(crate) fn then(act: impl FnOnce() + Send + 'static) -> Watch {
        Watch { at_first_bytes: Mutex::new(Some(Box::new(act))), ..Watch::default() }
    }
}

impl Monitor for Watch {
    fn phase(&self, name: &str) {
        self.phases.lock().unwrap().push(name.to_owned());
    }
    fn total_bytes(&self, total: u64) {
        self.total.store(total, Ordering::Relaxed);
    }
    fn add_bytes(&self, bytes: u64) {
        self.added.fetch_add(bytes, Ordering::Relaxed);
        let act = self.at_first_bytes.lock().unwrap().take();
        if let Some(act) = act {
            act();
        }
    }
    fn problem(&self, message: &str) {
        self.problems.lock().unwrap().push(message.to_owned());
    }
    fn cancelled(&self) -> bool {
        self.cancel.load(Ordering::Relaxed)
    }
}

/// The error of a result whose value cannot be shown.
pub(crate) fn error_of<T>(result: Result<T>) -> Error {
    match result {
        Ok(_) => panic!("this should have failed"),
        Err(error) => error,
    }
}
