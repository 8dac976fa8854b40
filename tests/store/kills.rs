//! Processes killed at any instant, hundreds of times, half of them at a call to the storage that
//! the test names: no acknowledged point is lost, no removed one comes back, and nobody has to clear
//! anything up. What must hold is kept by the parent, from what the child said before it died.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use backstay_store::{
    Cause, CheckOptions, CollectOptions, Encryption, Error, Folder, IndexChoice, LocalStorage,
    NoProgress, ObjectKey, PointId, Repository, Storage, SystemEntropy,
};
use parking_lot::Mutex;

use crate::nodes::write;
use crate::support::{CHUNK, image, init_options, key, read, real, seed};

const DIR: &str = "BACKSTAY_TEST_KILL_DIR";
const SEED: &str = "BACKSTAY_TEST_KILL_SEED";
/// The call to the storage at which the child kills itself; whether calls are counted from the first
/// session on, and not from the opening; and whether it dies after the call.
const AT: &str = "BACKSTAY_TEST_KILL_AT";
const AT_WORK: &str = "BACKSTAY_TEST_KILL_AT_WORK";
const AFTER: &str = "BACKSTAY_TEST_KILL_AFTER";

/// Points that the child lets grow before it removes the oldest.
const POINTS: usize = 3;
/// Calls to the storage of a round of the child's work, or more: named kills are spread over these.
const CALLS: u64 = 220;

/// A storage that kills its process at one of its calls.
#[derive(Debug)]
struct Deadly {
    inner: LocalStorage,
    calls: AtomicU64,
    at: Option<u64>,
    after: bool,
    /// Whether calls count by now.
    counts: AtomicBool,
}

impl Deadly {
    fn call<T>(&self, run: impl FnOnce() -> Result<T, Error>) -> Result<T, Error> {
        let counts = self.counts.load(Ordering::SeqCst);
        let mine = counts && Some(self.calls.fetch_add(1, Ordering::SeqCst)) == self.at;
        if mine && !self.after {
            die();
        }
        let result = run();
        if mine {
            die();
        }
        result
    }
}

fn die() {
    let me = rustix::process::getpid();
    rustix::process::kill_process(me, rustix::process::Signal::KILL).unwrap();
    // The signal may take a moment; nothing may happen in it.
    std::thread::sleep(Duration::from_secs(60));
}

impl Storage for Deadly {
    fn put(&self, key: ObjectKey, parts: &[&[u8]]) -> Result<(), Error> {
        if matches!(key, ObjectKey::Session(..)) {
            self.counts.store(true, Ordering::SeqCst);
        }
        self.call(|| self.inner.put(key, parts))
    }
    fn get(&self, key: ObjectKey, max: u64) -> Result<Vec<u8>, Error> {
        self.call(|| self.inner.get(key, max))
    }
    fn read_at(&self, key: ObjectKey, offset: u64, buf: &mut [u8]) -> Result<(), Error> {
        self.call(|| self.inner.read_at(key, offset, buf))
    }
    fn size(&self, key: ObjectKey) -> Result<u64, Error> {
        self.call(|| self.inner.size(key))
    }
    fn list(&self, folder: Folder) -> Result<Vec<ObjectKey>, Error> {
        self.call(|| self.inner.list(folder))
    }
    fn delete(&self, key: ObjectKey) -> Result<(), Error> {
        self.call(|| self.inner.delete(key))
    }
    fn tidy(&self) -> Result<(), Error> {
        self.call(|| self.inner.tidy())
    }
}

fn open(dir: &Path, at: Option<u64>, after: bool) -> Repository {
    let (location, options) = real(dir);
    let inner = LocalStorage::open_real(location.directory().unwrap()).unwrap();
    let counts = AtomicBool::new(std::env::var_os(AT_WORK).is_none());
    let storage = Arc::new(Deadly { inner, calls: AtomicU64::new(0), at, after, counts });
    let index = IndexChoice::Directory(dir.join("cache").join("index"));
    Repository::open_on(storage, location, &key(), &options, index, Arc::new(SystemEntropy))
        .unwrap()
}

fn bytes(seed: u64) -> Vec<u8> {
    // Neighbours share their first half.
    let mut bytes = image(seed / 4, 24 * CHUNK);
    bytes.extend(image(seed ^ 0xabcd, 24 * CHUNK));
    bytes
}

fn say(text: &str) {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{text}").unwrap();
    out.flush().unwrap();
}

fn collecting() -> CollectOptions {
    CollectOptions { waste_percent: 0, by: "kills".into(), ..CollectOptions::default() }
}

/// Does nothing by itself; the work of the processes that the test below starts: until they die.
#[test]
fn child() {
    let Ok(dir) = std::env::var(DIR) else { return };
    let number = |name: &str| std::env::var(name).ok().and_then(|n| n.parse::<u64>().ok());
    let node = open(&PathBuf::from(dir), number(AT), number(AFTER).is_some());
    // On a line of its own, whatever the harness has begun to print.
    say("");
    for seed in number(SEED).unwrap().. {
        round(&node, seed);
    }
}

fn round(node: &Repository, seed: u64) {
    let cause = Cause { by: "kills".into(), reason: "the test".into() };
    let base = node.points().unwrap().points.pop();
    let session = node.begin(base.as_ref()).unwrap();
    let id = session.id();
    say(&format!("commits {id} {seed}"));
    write(session, &bytes(seed)).unwrap();
    say(&format!("committed {id}"));
    let pin = node.pin(id, &cause).unwrap();
    let points = node.points().unwrap().points;
    // What earlier children left behind, too.
    for oldest in points.iter().rev().skip(POINTS).map(|p| p.id) {
        say(&format!("removes {oldest}"));
        let report = node.remove_points(&[oldest], &cause).unwrap();
        if report.removed.contains(&oldest) {
            say(&format!("removed {oldest}"));
        }
    }
    let hold = node.hold(&[id], "a look").unwrap();
    node.collect(&collecting(), &NoProgress).unwrap();
    read(node, &node.point(id).unwrap().disks[0]).unwrap();
    drop(hold);
    node.unpin(pin.id).unwrap();
}

/// What the parent knows.
#[derive(Default)]
struct Expected {
    /// By point: the seed of its bytes, and whether it was acknowledged.
    points: BTreeMap<PointId, (u64, bool)>,
    /// By point: whether its removal was acknowledged.
    removals: BTreeMap<PointId, bool>,
    landed: u64,
    kills: u64,
}

impl Expected {
    fn hear(&mut self, line: &str) {
        let words: Vec<&str> = line.split(' ').collect();
        match words[..] {
            ["commits", id, seed] => {
                self.points.insert(id.parse().unwrap(), (seed.parse().unwrap(), false));
            }
            ["committed", id] => self.points.get_mut(&id.parse().unwrap()).unwrap().1 = true,
            ["removes", id] => _ = self.removals.insert(id.parse().unwrap(), false),
            ["removed", id] => _ = self.removals.insert(id.parse().unwrap(), true),
            _ => {}
        }
    }

    /// Looks at what is there by a node that was never there before.
    fn check(&self, dir: &Path) {
        let (location, options) = real(dir);
        let node = Repository::open(&location, &key(), &options).unwrap();
        let list = node.points().unwrap();
        assert!(list.damaged.is_empty(), "{:?}", list.damaged);
        for point in &list.points {
            let (seed, _) = self.points[&point.id];
            assert!(read(&node, &point.disks[0]).unwrap() == bytes(seed), "{}", point.id);
            assert_ne!(self.removals.get(&point.id), Some(&true), "{} came back", point.id);
        }
        for (id, (_, acknowledged)) in &self.points {
            let there = list.points.iter().any(|p| p.id == *id);
            let removed = self.removals.contains_key(id);
            assert!(there || !acknowledged || removed, "{id} was acknowledged and is lost");
        }
    }
}

/// When to kill.
#[derive(Clone, Copy)]
enum When {
    /// So many milliseconds after the first backup began: opening takes as long as the machine is
    /// busy.
    Later(u64),
    /// At this call, before or after it takes effect; counted from the opening, or from the
    /// first session on.
    Call { at: u64, after: bool, work: bool },
}

fn kill_one(dir: &Path, when: When, seed: u64, expected: &mut Expected) {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["kills::child", "--exact", "--nocapture"]).env(DIR, dir);
    command.env(SEED, seed.to_string()).stdin(Stdio::null()).stdout(Stdio::piped());
    if let When::Call { at, after, work } = when {
        if work {
            command.env(AT_WORK, "1");
        }
        command.env(AT, at.to_string());
        if after {
            command.env(AFTER, "1");
        }
    }
    let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut heard: Vec<String> = Vec::new();
    // Kills at the first calls land while the repository is being opened.
    for line in lines.by_ref().map_while(Result::ok) {
        heard.push(line);
        if heard.last().is_some_and(|l| l.starts_with("commits ")) {
            break;
        }
    }
    if let When::Later(ms) = when {
        std::thread::sleep(Duration::from_millis(ms));
        child.kill().unwrap();
    }
    heard.extend(lines.map_while(Result::ok));
    let output = child.wait_with_output().unwrap();
    use std::os::unix::process::ExitStatusExt;
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.signal(), Some(9), "it came to an end by itself:\n{text}");
    expected.kills += 1;
    expected.landed += u64::from(heard.iter().any(|l| l.starts_with("commits ")));
    heard.iter().for_each(|line| expected.hear(line));
    expected.check(dir);
}

/// When all is over: all space comes back, and nothing of the dead is left.
fn finish(dir: &Path, expected: &Expected) {
    let (location, options) = real(dir);
    let node = Repository::open(&location, &key(), &options).unwrap();
    for _ in 0..2 {
        node.collect(&collecting(), &NoProgress).unwrap();
    }
    expected.check(dir);
    let report = node.check(&CheckOptions { read_data: true }, &NoProgress).unwrap();
    assert!(report.damage.is_empty(), "{:?}", report.damage);
    assert!(node.sessions().unwrap().is_empty(), "sessions of the dead");
    for pin in node.pins().unwrap() {
        node.unpin(pin.id).unwrap();
    }
    let cause = Cause { by: "kills".into(), reason: "over".into() };
    let all: Vec<PointId> = node.points().unwrap().points.iter().map(|p| p.id).collect();
    node.remove_points(&all, &cause).unwrap();
    for _ in 0..2 {
        node.collect(&collecting(), &NoProgress).unwrap();
    }
    let storage = LocalStorage::open_real(location.directory().unwrap()).unwrap();
    crate::sim::nothing_left(&storage).unwrap();
    let temporary = std::fs::read_dir(dir.join("repo/tmp")).unwrap().count();
    assert_eq!(temporary, 0, "temporary files of the dead");
}

#[test]
fn kills_at_any_instant_lose_nothing() {
    let seed = seed();
    let release = std::env::var_os("BACKSTAY_RELEASE_SIZE").is_some();
    let kills: u64 = if release { 10_000 } else { 300 };
    let began = Instant::now();
    let counts = Mutex::new((0, 0, 0));
    std::thread::scope(|scope| {
        for stream in 0..2u64 {
            let counts = &counts;
            scope.spawn(move || {
                let dir = tempfile::tempdir().unwrap();
                let options = init_options(Encryption::Aes256Gcm);
                Repository::init(&real(dir.path()).0, &options, &key()).unwrap();
                let mut expected = Expected::default();
                let chance = backstay_store::testkit::SeededEntropy::new(seed ^ stream);
                for n in 0..kills / 2 {
                    // Every second kill is at a named call; those are spread over all calls.
                    let named = n / 2 * 2 + stream;
                    let when = match n % 2 {
                        0 => When::Later(chance.below(80)),
                        _ => When::Call {
                            at: named * 7 % CALLS,
                            after: named % 4 < 2,
                            work: named % 8 > 0,
                        },
                    };
                    kill_one(dir.path(), when, n * 1000, &mut expected);
                }
                finish(dir.path(), &expected);
                let removed = expected.removals.values().filter(|r| **r).count();
                let mut counts = counts.lock();
                counts.0 += expected.kills;
                counts.1 += expected.landed;
                counts.2 += removed;
            });
        }
    });
    let (kills, landed, removed) = counts.into_inner();
    println!(
        "{kills} kills in {:.0} s, {landed} while work was under way; {removed} points removed",
        began.elapsed().as_secs_f64()
    );
    assert!(landed * 10 >= kills * 9, "only {landed} of {kills} kills met work");
}
