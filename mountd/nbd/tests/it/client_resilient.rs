//! Our client when servers go and come back, and with many requests at once.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use backstay_blockdev::layer::{Fault, Operation, Rule};
use backstay_blockdev::model::{self, Config};
use backstay_blockdev::{BlockDevice, ErrorKind, MemDevice, WriteFlags, conformance};
use backstay_nbd::ErrorKind as NbdErrorKind;
use backstay_nbd::client::{Client, NbdUri, Remote};

use crate::support::{Running, Server, disk, run_ok, sparse, start_server, tool};

const SIZE: usize = 8 << 20;

/// An nbdkit that can be killed and started again.
struct Restarted {
    dir: tempfile::TempDir,
    socket: PathBuf,
    arguments: Vec<String>,
    running: Option<Running>,
}

impl Restarted {
    /// nbdkit over a file of `bytes`, with these filters and parameters.
    fn new(bytes: &[u8], before: &[&str], after: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        sparse(&dir.path().join("disk.raw"), bytes);
        let file = dir.path().join("disk.raw").display().to_string();
        let mut arguments: Vec<String> = before.iter().map(|s| (*s).to_owned()).collect();
        arguments.extend(["file".to_owned(), file]);
        arguments.extend(after.iter().map(|s| (*s).to_owned()));
        let socket = dir.path().join("s");
        let mut this = Self { dir, socket, arguments, running: None };
        this.start();
        this
    }

    fn start(&mut self) {
        let _ = std::fs::remove_file(&self.socket);
        let mut command = tool("nbdkit", "nbdkit");
        command.args(["-f", "--exit-with-parent", "-U"]).arg(&self.socket).args(&self.arguments);
        self.running = Some(start_server(command.stderr(Stdio::null()), &self.socket));
    }

    fn kill(&mut self) {
        self.running = None;
    }

    fn uri(&self) -> NbdUri {
        NbdUri::unix(&self.socket, "")
    }

    fn file(&self) -> Vec<u8> {
        std::fs::read(self.dir.path().join("disk.raw")).unwrap()
    }
}

fn patient() -> Client {
    Client { reconnect_timeout: Duration::from_secs(15), ..Client::default() }
}

/// Sixteen readers on one connection take about as long as one.
#[test]
fn one_connection_carries_many_requests_at_once() {
    let bytes = disk(SIZE);
    let server = Restarted::new(&bytes, &["-r", "--filter=delay"], &["delay-read=200ms"]);
    let client = Client { connections: 1, ..Client::default() };
    let remote = client.attach(&server.uri()).unwrap();
    let start = Instant::now();
    std::thread::scope(|scope| {
        for i in 0..16usize {
            let (remote, bytes) = (&remote, &bytes);
            scope.spawn(move || {
                let at = i * 300_001;
                let mut buf = vec![0; 200_000];
                remote.read_at(at as u64, &mut buf).unwrap();
                assert!(buf == bytes[at..at + 200_000]);
            });
        }
    });
    let took = start.elapsed();
    assert!(took < Duration::from_millis(16 * 200 / 2), "one after the other: {took:?}");
}

/// More threads than places on the connections: the rest wait, and none is forgotten.
#[test]
fn places_are_bounded() {
    let (server, bytes) = Server::disk(SIZE);
    let client = Client { connections: 1, in_flight: 2, ..Client::default() };
    let remote = client.attach(&server.uri("disk")).unwrap();
    std::thread::scope(|scope| {
        for i in 0..12usize {
            let (remote, bytes) = (&remote, &bytes);
            scope.spawn(move || {
                for round in 0..50usize {
                    let at = (i * 50 + round) * 7919 % (SIZE - 70_000);
                    let mut buf = vec![0; 70_000];
                    remote.read_at(at as u64, &mut buf).unwrap();
                    assert!(buf == bytes[at..at + 70_000], "thread {i} round {round}");
                    remote.extents(at as u64, 70_000, 5).unwrap();
                }
            });
        }
    });
}

/// The model, over our client over our server.
#[test]
fn the_model_over_client_and_server() {
    let seed = std::env::var("BACKSTAY_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or(7);
    let release = std::env::var_os("BACKSTAY_RELEASE_SIZE").is_some();
    println!("seed {seed} (repeat with BACKSTAY_SEED={seed})");
    for connections in [1, 4] {
        let server = Server::start(MemDevice::new(disk(300_000)));
        let client = Client { connections, ..Client::default() };
        let remote: Arc<dyn BlockDevice> = Arc::new(client.attach(&server.uri("disk")).unwrap());
        let operations = if release { 1_000_000 } else { 20_000 };
        let config = Config { seed, operations, ..Config::default() };
        if let Err(failure) = model::run(&|| Ok(remote.clone()), config) {
            panic!("{connections} connections: {failure}");
        }
    }
}

#[test]
fn a_failed_flush_fails_all_later_ones() {
    let fault = Arc::new(Fault::new(Arc::new(MemDevice::new(disk(1 << 20)))));
    let server = Server::start(Shared(fault.clone()));
    let remote = Client::connect(&server.uri("disk")).unwrap();
    conformance::check_failed_flush(&remote, || {
        let (operation, kind) = (Operation::Flush, ErrorKind::Io);
        fault.add(Rule { operation, range: 0..1, kind, times: Some(1) });
    });
}

/// A device that is looked at from outside too.
#[derive(Debug)]
struct Shared(Arc<Fault>);

impl BlockDevice for Shared {
    fn geometry(&self) -> backstay_blockdev::Geometry {
        self.0.geometry()
    }
    fn caps(&self) -> backstay_blockdev::Caps {
        self.0.caps()
    }
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), backstay_blockdev::Error> {
        self.0.read_at(offset, buf)
    }
    fn extents(
        &self,
        offset: u64,
        len: u64,
        max: usize,
    ) -> Result<Vec<backstay_blockdev::Extent>, backstay_blockdev::Error> {
        self.0.extents(offset, len, max)
    }
    fn write_at(
        &self,
        offset: u64,
        data: &[u8],
        flags: WriteFlags,
    ) -> Result<(), backstay_blockdev::Error> {
        self.0.write_at(offset, data, flags)
    }
    fn flush(&self) -> Result<(), backstay_blockdev::Error> {
        self.0.flush()
    }
}

/// Readers and writers go on over kills of the server as if nothing had been. The file keeps what
/// nbdkit wrote when nbdkit is killed, so nothing acknowledged is lost.
#[test]
fn kills_under_load_are_not_noticed() {
    let mut server =
        Restarted::new(&disk(SIZE), &["--filter=delay"], &["delay-read=1ms", "delay-write=1ms"]);
    let client = Client { server_keeps_writes: true, ..patient() };
    let remote = client.attach(&server.uri()).unwrap();
    let (stop, done) = (AtomicBool::new(false), AtomicU64::new(0));
    let part = SIZE / 4;
    let contents: Vec<Vec<u8>> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4usize)
            .map(|thread| {
                let (remote, stop, done) = (&remote, &stop, &done);
                scope.spawn(move || load(remote, thread * part, part, stop, done))
            })
            .collect();
        for _ in 0..4 {
            let before = done.load(Ordering::SeqCst);
            crate::support::eventually("the load goes on", || {
                done.load(Ordering::SeqCst) > before + 40
            });
            server.kill();
            std::thread::sleep(Duration::from_millis(150));
            server.start();
        }
        stop.store(true, Ordering::SeqCst);
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    remote.flush().unwrap();
    assert!(server.file() == contents.concat(), "the file is not what was written");
}

/// Writes, reads back, zeroes and flushes a part of a disk until told to stop; answers what it holds.
fn load(remote: &Remote, start: usize, len: usize, stop: &AtomicBool, done: &AtomicU64) -> Vec<u8> {
    let mut content = vec![0; len];
    remote.read_at(start as u64, &mut content).unwrap();
    let none = WriteFlags::default();
    for i in 0.. {
        if stop.load(Ordering::SeqCst) {
            break;
        }
        let at = i * 77_773 % (len - 50_000);
        let size = 1 + i * 4099 % 50_000;
        let place = (start + at) as u64;
        let range = at..at + size;
        match i % 5 {
            0 | 1 => {
                let data: Vec<u8> = (0..size).map(|j| (i * 31 + j % 97) as u8).collect();
                remote.write_at(place, &data, none).unwrap();
                content[range].copy_from_slice(&data);
            }
            2 => {
                remote.write_zeroes(place, size as u64, none).unwrap();
                content[range].fill(0);
            }
            3 => {
                let mut seen = vec![0; size];
                remote.read_at(place, &mut seen).unwrap();
                assert!(seen == content[range], "{size} bytes at {place}");
            }
            _ => remote.flush().unwrap(),
        }
        done.fetch_add(1, Ordering::SeqCst);
    }
    content
}

/// What was acknowledged and not flushed may be gone with the server: a flush says so, for ever.
#[test]
fn a_flush_does_not_cover_what_a_killed_server_may_have_lost() {
    let mut server = Restarted::new(&disk(SIZE), &[], &[]);
    let none = WriteFlags::default();
    let fua = WriteFlags { fua: true, ..none };
    for (first, flushed, lost) in [(none, false, true), (none, true, false), (fua, false, false)] {
        let remote = patient().attach(&server.uri()).unwrap();
        remote.write_at(0, &[1; 4096], first).unwrap();
        if flushed {
            remote.flush().unwrap();
        }
        server.kill();
        server.start();
        // Reading and writing go on.
        let mut buf = [0; 4096];
        remote.read_at(0, &mut buf).unwrap();
        assert_eq!(buf, [1; 4096]);
        remote.write_at(4096, &[2; 4096], none).unwrap();
        for _ in 0..2 {
            let result = remote.flush();
            assert_eq!(result.is_err(), lost, "{first:?} {flushed}: {result:?}");
            if let Err(error) = result {
                assert_eq!(error.kind(), ErrorKind::Io);
                assert!(error.to_string().contains("not flushed"), "{error}");
            }
        }
    }
    // The same, noticed by nobody but the flush.
    let remote = patient().attach(&server.uri()).unwrap();
    remote.write_at(0, &[3; 512], none).unwrap();
    server.kill();
    server.start();
    assert_eq!(remote.flush().unwrap_err().kind(), ErrorKind::Io);
    assert!(remote.flush().is_err());
}

/// A server that is not there in time is an error in time.
#[test]
fn the_deadline_for_a_new_connection_is_kept() {
    let mut server = Restarted::new(&disk(SIZE), &["-r"], &[]);
    let client = Client { reconnect_timeout: Duration::from_millis(700), ..Client::default() };
    let remote = client.attach(&server.uri()).unwrap();
    server.kill();
    let start = Instant::now();
    let error = remote.read_at(0, &mut [0; 512]).unwrap_err();
    let took = start.elapsed();
    assert_eq!(error.kind(), ErrorKind::Io);
    assert!(took >= Duration::from_millis(300) && took < Duration::from_secs(5), "{took:?}");
    server.start();
    remote.read_at(0, &mut [0; 512]).unwrap();
}

/// Another disk behind the same address is never taken for the one before.
#[test]
fn another_export_after_reconnecting_is_an_error() {
    let mut server = Restarted::new(&disk(SIZE), &["-r"], &[]);
    let remote = patient().attach(&server.uri()).unwrap();
    server.kill();
    let file = server.dir.path().join("disk.raw");
    std::fs::OpenOptions::new().write(true).open(&file).unwrap().set_len(1 << 20).unwrap();
    server.start();
    let error = remote.read_at(0, &mut [0; 512]).unwrap_err();
    assert!(error.to_string().contains("has changed"), "{error}");
    assert!(remote.read_at(0, &mut [0; 512]).is_err());
}

/// A server that stops politely serves those it has, and takes no new ones.
#[test]
fn a_server_that_is_stopping() {
    let dir = tempfile::tempdir().unwrap();
    let gone = dir.path().join("stop");
    let parameter = format!("exit-when-file-created={}", gone.display());
    let bytes = disk(SIZE);
    let server =
        Restarted::new(&bytes, &["-r", "--filter=exitwhen"], &[&parameter, "exit-when-poll=1"]);
    let client = Client { connections: 1, ..Client::default() };
    let remote = client.attach(&server.uri()).unwrap();
    let mut buf = vec![0; 4096];
    remote.read_at(0, &mut buf).unwrap();
    std::fs::write(&gone, "").unwrap();
    crate::support::eventually("nobody new is let in", || Client::connect(&server.uri()).is_err());
    remote.read_at(4096, &mut buf).unwrap();
    assert!(buf == bytes[4096..8192]);
    let error = Client::connect(&server.uri()).unwrap_err();
    assert!(matches!(error.kind(), NbdErrorKind::Io | NbdErrorKind::Refused), "{error}");
}

/// Errors of writes are errors, and the connection is as good as before.
#[test]
fn errors_of_writes_are_errors() {
    let server = Restarted::new(
        &disk(SIZE),
        &["--filter=error"],
        &["error-pwrite=ENOSPC", "error-pwrite-rate=50%", "error-zero=EIO", "error-zero-rate=50%"],
    );
    let remote = Client::connect(&server.uri()).unwrap();
    let (mut failed, mut good) = (0, 0);
    for i in 0..200u64 {
        match remote.write_at(i * 4096, &[7; 4096], WriteFlags::default()) {
            Ok(()) => {
                let mut seen = [0; 4096];
                remote.read_at(i * 4096, &mut seen).unwrap();
                assert_eq!(seen, [7; 4096]);
                good += 1;
            }
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::NoSpace, "{error}");
                failed += 1;
            }
        }
    }
    assert!(failed > 20 && good > 20, "{failed} failed, {good} good");
    remote.flush().unwrap();
}

fn qcow2_with_bitmap(dir: &Path) -> PathBuf {
    let image = dir.join("disk.qcow2");
    let qemu_img = || tool("qemu-img", "qemu-utils");
    run_ok(qemu_img().args(["create", "-q", "-f", "qcow2"]).arg(&image).arg("8M"));
    let write = |command: &str| {
        let mut qemu_io = tool("qemu-io", "qemu-utils");
        run_ok(qemu_io.args(["-f", "qcow2", "-c", command]).arg(&image));
    };
    write("write -P 1 0 8M");
    run_ok(qemu_img().args(["bitmap", "--add"]).arg(&image).arg("b0"));
    write("write -P 2 1M 128k");
    write("write -P 3 5M 64k");
    image
}

/// Changed blocks, as QEMU keeps them: what a backup of what changed reads by.
#[test]
fn a_dirty_bitmap_of_qemu() {
    let dir = tempfile::tempdir().unwrap();
    let image = qcow2_with_bitmap(dir.path());
    let socket = dir.path().join("s");
    let mut command = tool("qemu-nbd", "qemu-utils");
    command.args(["-t", "-r", "-e", "8", "-f", "qcow2", "-x", "disk", "-B", "b0", "-k"]);
    let _server = start_server(command.arg(&socket).arg(&image), &socket);
    let uri = NbdUri::unix(&socket, "disk");
    let context = "qemu:dirty-bitmap:b0";
    let exports = Client::default().list_exports(&uri).unwrap();
    assert_eq!(exports.iter().map(|e| e.name.as_str()).collect::<Vec<_>>(), ["disk"]);
    let contexts = Client::default().list_contexts(&uri).unwrap();
    assert!(contexts.contains(&"base:allocation".to_owned()), "{contexts:?}");
    assert!(contexts.contains(&context.to_owned()), "{contexts:?}");
    let wishes = vec![context.to_owned(), "qemu:dirty-bitmap:none".to_owned()];
    let remote = Client { contexts: wishes, ..Client::default() }.attach(&uri).unwrap();
    assert!(remote.has_context(context) && remote.knows_holes());
    let mut dirty = Vec::new();
    let mut at = 0;
    while at < 8 << 20 {
        for (len, flags) in remote.status(context, at, (8 << 20) - at).unwrap() {
            if flags & 1 != 0 {
                dirty.push((at, len));
            }
            at += len;
        }
    }
    assert_eq!(dirty, [(1 << 20, 128 << 10), (5 << 20, 64 << 10)]);
    // Cut to what was asked for.
    assert_eq!(remote.status(context, (1 << 20) + 512, 1024).unwrap(), [(1024, 1)]);
    assert!(remote.status(context, 0, 0).unwrap().is_empty());
    for name in ["qemu:dirty-bitmap:none", "qemu:dirty-bitmap:b1"] {
        let error = remote.status(name, 0, 512).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
    }
    assert!(!remote.extents(0, 8 << 20, 10).unwrap().is_empty());
}

#[test]
fn our_own_server_is_listed() {
    let (server, _) = Server::disk(4096);
    let list = Client::default().list_exports(&server.uri("")).unwrap();
    assert_eq!(list.len(), 2);
    assert_eq!((list[0].name.as_str(), list[0].description.as_str()), ("disk", "the first disk"));
    let contexts = Client::default().list_contexts(&server.uri("disk")).unwrap();
    assert!(contexts.contains(&"base:allocation".to_owned()), "{contexts:?}");
    let error = Client::default().list_contexts(&server.uri("nope")).unwrap_err();
    assert_eq!(error.kind(), NbdErrorKind::Refused);
}
