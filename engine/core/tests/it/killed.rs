//! Processes that are killed leave nothing behind: no qemu-nbd, no half file.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use backstay_core::restore::{self, RestorePlan, Target};
use backstay_core::source::{self, SourceSpec};

use crate::bench::{Bench, MIB, Watch, open_repo, qemu_img};

/// Tells the child what to work on.
const CHILD_ENV: &str = "BACKSTAY_TEST_CHILD";

/// Command lines of running qemu-nbd processes that name `image`.
fn servers_of(image: &Path) -> usize {
    let image = image.to_str().unwrap();
    let processes = fs::read_dir("/proc").unwrap().flatten();
    let lines = processes.filter_map(|p| fs::read(p.path().join("cmdline")).ok());
    lines
        .map(|line| String::from_utf8_lossy(&line).into_owned())
        .filter(|line| line.starts_with("qemu-nbd") && line.contains(image))
        .count()
}

/// Waits until no server of `image` runs; the kernel ends it a moment after its parent.
fn wait_for_none(image: &Path) {
    let started = Instant::now();
    while servers_of(image) > 0 {
        assert!(started.elapsed() < Duration::from_secs(10), "qemu-nbd outlives its owner");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Runs a test of this file as a process of its own until it says it is ready, and kills it.
fn kill_when_ready(test: &str, subject: &Path, check: impl FnOnce()) {
    // Its sockets' directory outlives it, until the next run of anything sweeps: not in /tmp here.
    let temp = tempfile::tempdir().unwrap();
    let mut child = Command::new(std::env::current_exe().unwrap())
        .env("TMPDIR", temp.path())
        .args(["--exact", "--nocapture", test])
        .env(CHILD_ENV, subject)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let ready = lines.map_while(Result::ok).any(|line| line.contains("READY"));
    if ready {
        check();
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(ready, "the child ended before it was ready");
}

#[test]
fn a_dropped_source_leaves_no_server() {
    let bench = Bench::new();
    let image = bench.at("x.qcow2");
    qemu_img("create -q -f qcow2", &[&image, Path::new("16M")]);
    let open = source::open(&SourceSpec::new(&image)).unwrap();
    let device = std::sync::Arc::clone(&open.device);
    drop(open);
    assert_eq!(servers_of(&image), 1, "a clone of the device keeps it");
    let mut buf = [1u8; 512];
    device.read_at(0, &mut buf).unwrap();
    assert_eq!(buf, [0; 512]);
    drop(device);
    assert_eq!(servers_of(&image), 0);
}

#[test]
fn the_thread_that_opens_may_end() {
    // The kernel kills a child with the thread that made it; the reader must not notice.
    let bench = Bench::new();
    let image = bench.at("x.qcow2");
    qemu_img("create -q -f qcow2", &[&image, Path::new("16M")]);
    let spec = SourceSpec::new(&image);
    let open = std::thread::spawn(move || source::open(&spec)).join().unwrap().unwrap();
    std::thread::sleep(Duration::from_millis(100));
    let mut buf = [1u8; 512];
    open.device.read_at(0, &mut buf).unwrap();
}

#[test]
fn a_killed_reader_leaves_no_server() {
    let bench = Bench::new();
    let image = bench.at("x.qcow2");
    qemu_img("create -q -f qcow2", &[&image, Path::new("16M")]);
    kill_when_ready("killed::child_holds_a_source", &image, || assert_eq!(servers_of(&image), 1));
    wait_for_none(&image);
}

#[test]
fn a_killed_restore_leaves_no_file() {
    let bench = Bench::new();
    let image = bench.image("a.img", 32 * MIB, &[(0, 32 * MIB)]);
    bench.backup(&[&image]).unwrap();
    let nothing = || assert_eq!(bench.names(), ["a.img"]);
    kill_when_ready("killed::child_restores", bench.dir.path(), nothing);
    nothing();
}

/// What the child process works on. The two `#[test]`s below are no tests: they do nothing unless
/// the tests of this file start them as processes, to kill them.
fn subject() -> Option<PathBuf> {
    std::env::var_os(CHILD_ENV).map(PathBuf::from)
}

fn ready_and_wait() -> ! {
    println!("READY");
    loop {
        std::thread::sleep(Duration::from_secs(1));
    }
}

#[test]
fn child_holds_a_source() {
    let Some(subject) = subject() else { return };
    let _open = source::open(&SourceSpec::new(subject)).unwrap();
    ready_and_wait();
}

#[test]
fn child_restores() {
    let Some(subject) = subject() else { return };
    let repo = open_repo(&subject);
    let point = repo.points().unwrap().points.pop().unwrap();
    let watch = Watch::then(|| {
        ready_and_wait();
    });
    let plan = RestorePlan::new(Target::RawFile(subject.join("out.raw")));
    restore::disk(&repo, &point, &point.disks[0], &plan, &watch).unwrap();
}
