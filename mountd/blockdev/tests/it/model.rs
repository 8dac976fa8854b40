//! Random operations on every device and on every stack of two layers, and on devices with planted
//! mistakes.

use std::sync::Arc;
use std::time::Duration;

use backstay_blockdev::layer::{
    Cache, Compare, Delay, Entry, Fault, Limits, Log, Range, Rate, ReadOnly, Sink, Verify,
};
use backstay_blockdev::model::{self, Config, Reopens, Subject};
use backstay_blockdev::overlay::sim::{End, SimDirectory};
use backstay_blockdev::overlay::{Overlay, OverlayOptions, RealDirectory};
use backstay_blockdev::{BlockDevice, Error, FileDevice, MemDevice};

use crate::disk;
use crate::planted::{Mistake, Planted};

/// No multiple of a block or sector.
const SIZE: usize = 200_001;

/// The seed of this run, printed so that a failure can be repeated.
fn seed() -> u64 {
    let seed =
        std::env::var("BACKSTAY_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or_else(|| {
            let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
            now.unwrap().as_nanos() as u64 & 0xffff_ffff
        });
    println!("seed {seed} (repeat with BACKSTAY_SEED={seed})");
    seed
}

fn config(seed: u64) -> Config {
    let release = std::env::var_os("BACKSTAY_RELEASE_SIZE").is_some();
    Config { seed, operations: if release { 1_000_000 } else { 20_000 }, ..Config::default() }
}

#[track_caller]
fn passes(name: &str, subject: &dyn Subject, config: Config) {
    if let Err(failure) = model::run(subject, config) {
        panic!("{name}: {failure}");
    }
}

#[test]
fn memory() {
    let mem: Arc<dyn BlockDevice> = Arc::new(MemDevice::new(disk(SIZE)));
    passes("memory", &|| Ok(mem.clone()), config(seed()));
}

#[test]
fn sizes_at_the_edge() {
    let seed = seed();
    for size in [0, 1, 511, 4096] {
        let mem: Arc<dyn BlockDevice> = Arc::new(MemDevice::new(disk(size)));
        passes("memory", &|| Ok(mem.clone()), Config { operations: 2000, ..config(seed) });
    }
}

struct File(std::path::PathBuf);

impl Subject for File {
    fn open(&self) -> Result<Arc<dyn BlockDevice>, Error> {
        Ok(Arc::new(FileDevice::open(&self.0, false)?))
    }
    fn content(&self) -> Option<Vec<u8>> {
        Some(disk(SIZE))
    }
    fn reopens(&self) -> Reopens {
        Reopens::Clean
    }
}

#[test]
fn file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk.raw");
    std::fs::write(&path, disk(SIZE)).unwrap();
    passes("file", &File(path), config(seed()));
}

#[test]
fn a_disk_that_loses_its_power() {
    passes("disk", &Planted::new(Mistake::Nothing, disk(SIZE)), config(seed()));
}

#[derive(Debug)]
struct Nowhere;

impl Sink for Nowhere {
    fn entry(&self, _: &Entry) {}
}

type Make = fn(Arc<dyn BlockDevice>) -> Arc<dyn BlockDevice>;

/// Every layer. What `Compare` compares with is the device itself.
const LAYERS: [(&str, Make); 9] = [
    ("ReadOnly", |d| Arc::new(ReadOnly::new(d))),
    ("Delay", |d| Arc::new(Delay::new(d, Duration::ZERO))),
    ("Fault", |d| Arc::new(Fault::new(d))),
    ("Range", |d| {
        let size = d.geometry().size_bytes;
        Arc::new(Range::new(d, 777, size - 1000).unwrap())
    }),
    // Small, so that blocks come and go.
    ("Cache", |d| Arc::new(Cache::new(d, 4096, 40 << 10).unwrap())),
    ("Rate", |d| Arc::new(Rate::new(d, Limits::default()))),
    ("Log", |d| Arc::new(Log::new(d, Arc::new(Nowhere)))),
    ("Verify", |d| Arc::new(Verify::new(d, 20))),
    ("Compare", |d| Arc::new(Compare::new(d.clone(), d).unwrap())),
];

/// Every stack with the layer at the bottom.
fn stacks_over(bottom: &str) {
    let seed = seed();
    let (_, below) = LAYERS.iter().find(|(name, _)| *name == bottom).unwrap();
    for (top, above) in LAYERS {
        let stack = above(below(Arc::new(MemDevice::new(disk(SIZE)))));
        passes(&format!("{top} over {bottom}"), &|| Ok(stack.clone()), config(seed));
    }
}

macro_rules! stacks {
    ($($test:ident $name:literal),*) => {$(
        #[test]
        fn $test() {
            stacks_over($name);
        }
    )*};
}

stacks! {
    layers_over_read_only "ReadOnly",
    layers_over_delay "Delay",
    layers_over_fault "Fault",
    layers_over_range "Range",
    layers_over_cache "Cache",
    layers_over_rate "Rate",
    layers_over_log "Log",
    layers_over_verify "Verify",
    layers_over_compare "Compare"
}

/// A layer over a disk that loses its power: the layer must not lose a flush.
#[test]
fn layers_over_a_disk_that_loses_its_power() {
    struct Over(Planted, Make);
    impl Subject for Over {
        fn open(&self) -> Result<Arc<dyn BlockDevice>, Error> {
            Ok((self.1)(self.0.open()?))
        }
        fn reopens(&self) -> Reopens {
            Reopens::PowerCut
        }
        fn cut(&self) {
            self.0.cut();
        }
    }
    let seed = seed();
    for (name, make) in LAYERS {
        let over = Over(Planted::new(Mistake::Nothing, disk(SIZE)), make);
        passes(name, &over, config(seed));
    }
}

#[test]
fn every_planted_mistake_is_found() {
    let seed = seed();
    for mistake in [
        Mistake::ForgetsFlush,
        Mistake::ForgetsFua,
        Mistake::OffByOneAtTheEnd,
        Mistake::TrimShowsForeignBytes,
        Mistake::LosesWritesOnSharedBlocks,
        Mistake::HoleOverData,
        Mistake::ZeroesTooMuch,
        Mistake::LosesAWrite,
        Mistake::StaleTryRead,
    ] {
        let config = Config { operations: 20_000, ..config(seed) };
        let failure = model::run(&Planted::new(mistake, disk(SIZE)), config)
            .expect_err(&format!("{mistake:?} was not found"));
        println!("{mistake:?}: {failure}");
        let (at, told) = (failure.at.expect("a byte"), failure.to_string());
        assert!(told.contains(&format!("seed {seed}")) && told.contains("step"), "{told}");
        assert!(!failure.history.is_empty(), "{mistake:?} at {at}: {told}");
    }
}

/// An overlay whose directory may lose its power.
struct Over {
    base: Arc<dyn BlockDevice>,
    directory: std::sync::Mutex<SimDirectory>,
    cuts: std::sync::atomic::AtomicU64,
    above: Make,
}

impl Over {
    fn new(above: Make) -> Self {
        let base: Arc<dyn BlockDevice> = Arc::new(MemDevice::read_only(disk(SIZE)));
        let directory = SimDirectory::new();
        let options = OverlayOptions::default();
        let made = Overlay::create(Arc::new(directory.clone()), base.clone(), [3; 32], 77, options);
        drop(made.unwrap());
        let directory = std::sync::Mutex::new(directory);
        Self { base, directory, cuts: std::sync::atomic::AtomicU64::new(1), above }
    }
}

impl Subject for Over {
    fn open(&self) -> Result<Arc<dyn BlockDevice>, Error> {
        let directory = Arc::new(self.directory.lock().unwrap().clone());
        let options = OverlayOptions::default();
        let overlay = Overlay::open(directory, self.base.clone(), [3; 32], options)?;
        Ok((self.above)(Arc::new(overlay)))
    }
    fn reopens(&self) -> Reopens {
        Reopens::PowerCut
    }
    fn cut(&self) {
        let seed = self.cuts.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let mut directory = self.directory.lock().unwrap();
        let after = directory.after(End::PowerCut(seed));
        *directory = after;
    }
}

#[test]
fn an_overlay_that_loses_its_power() {
    passes("overlay", &Over::new(|d| d), config(seed()));
}

#[test]
fn layers_over_an_overlay_that_loses_its_power() {
    let seed = seed();
    for (top, above) in LAYERS {
        let config = Config { operations: config(seed).operations / 4, ..config(seed) };
        passes(&format!("{top} over an overlay"), &Over::new(above), config);
    }
}

/// An overlay in a directory of the machine, over every layer.
#[test]
fn overlays_over_layers() {
    struct Real(Arc<dyn BlockDevice>, tempfile::TempDir);
    impl Subject for Real {
        fn open(&self) -> Result<Arc<dyn BlockDevice>, Error> {
            let directory = Arc::new(RealDirectory::new(self.1.path()));
            let options = OverlayOptions::default();
            Ok(Arc::new(Overlay::open(directory, self.0.clone(), [3; 32], options)?))
        }
        fn reopens(&self) -> Reopens {
            Reopens::Clean
        }
    }
    let seed = seed();
    for (bottom, below) in LAYERS {
        let base = below(Arc::new(MemDevice::read_only(disk(SIZE))));
        let place = tempfile::tempdir().unwrap();
        let directory = Arc::new(RealDirectory::new(place.path()));
        let options = OverlayOptions::default();
        drop(Overlay::create(directory, base.clone(), [3; 32], 77, options).unwrap());
        // Its syncs are real, and take their time.
        let config = Config { operations: config(seed).operations / 10, ..config(seed) };
        passes(&format!("an overlay over {bottom}"), &Real(base, place), config);
    }
}
