//! Our client against the servers of others.

use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use backstay_blockdev::{BlockDevice, ErrorKind, ExtentKind, conformance};
use backstay_nbd::ErrorKind as NbdErrorKind;
use backstay_nbd::client::{Client, NbdUri, Remote};

use crate::support::{Running, disk, run_ok, sparse, start_server, tool};

const SIZE: usize = 8 << 20;

struct Peer {
    _server: Running,
    uri: NbdUri,
    bytes: Vec<u8>,
    dir: tempfile::TempDir,
}

fn image(dir: &Path) -> Vec<u8> {
    let bytes = disk(SIZE);
    sparse(&dir.join("disk.raw"), &bytes);
    bytes
}

/// nbdkit's file plugin with filters before it and parameters behind.
fn nbdkit(filters: &[&str], parameters: &[&str]) -> Peer {
    let dir = tempfile::tempdir().unwrap();
    let bytes = image(dir.path());
    let socket = dir.path().join("s");
    let mut command = tool("nbdkit", "nbdkit");
    command.args(["-f", "--exit-with-parent", "-U"]).arg(&socket);
    command.args(filters.iter().map(|filter| format!("--filter={filter}")));
    command.args(["-r", "file"]).arg(dir.path().join("disk.raw")).args(parameters);
    let server = start_server(command.stderr(Stdio::null()), &socket);
    Peer { _server: server, uri: NbdUri::unix(&socket, ""), bytes, dir }
}

fn qemu_nbd(format: &str, arguments: &[&str]) -> Peer {
    let dir = tempfile::tempdir().unwrap();
    let bytes = image(dir.path());
    let raw = dir.path().join("disk.raw");
    let mut file = raw.clone();
    if format != "raw" {
        file = dir.path().join("disk");
        let mut convert = tool("qemu-img", "qemu-utils");
        run_ok(convert.args(["convert", "-f", "raw", "-O", format]).arg(&raw).arg(&file));
    }
    let socket = dir.path().join("s");
    let mut command = tool("qemu-nbd", "qemu-utils");
    command.args(["-t", "-f", format, "-x", "disk", "-k"]).arg(&socket).args(arguments).arg(&file);
    let server = start_server(&mut command, &socket);
    Peer { _server: server, uri: NbdUri::unix(&socket, "disk"), bytes, dir }
}

fn attach(peer: &Peer) -> Remote {
    Client::connect(&peer.uri).unwrap()
}

fn holes(remote: &Remote) -> u64 {
    let (mut at, mut holes) = (0, 0);
    while at < SIZE as u64 {
        for extent in remote.extents(at, SIZE as u64 - at, 64).unwrap() {
            at += extent.len_bytes;
            holes += if extent.kind == ExtentKind::Hole { extent.len_bytes } else { 0 };
        }
    }
    holes
}

#[test]
fn nbdkit_serves_us() {
    let peer = nbdkit(&[], &[]);
    let remote = attach(&peer);
    conformance::check(&remote, &peer.bytes, 1);
    assert!(holes(&remote) >= 2 << 20);
    assert!(!remote.caps().writable && remote.caps().multi_conn);
}

#[test]
fn nbdkit_without_extents_structured_replies_or_parallel_requests() {
    let peer = nbdkit(&["noextents"], &[]);
    let remote = attach(&peer);
    conformance::check(&remote, &peer.bytes, 2);
    assert_eq!(holes(&remote), 0);
    let peer = nbdkit(&["noparallel", "multi-conn"], &["multi-conn-mode=disable"]);
    let remote = attach(&peer);
    assert!(!remote.caps().multi_conn);
    conformance::check(&remote, &peer.bytes, 3);
}

#[test]
fn nbdkit_with_blocks_of_4096() {
    let peer = nbdkit(
        &["blocksize-policy"],
        &[
            "blocksize-minimum=4096",
            "blocksize-preferred=65536",
            "blocksize-maximum=131072",
            "blocksize-error-policy=error",
        ],
    );
    conformance::check(&attach(&peer), &peer.bytes, 4);
}

/// libnbd CVE-2022-0485 (nbdcopy ignored read errors): an error of the server is an error here, at
/// the right place, and never data.
#[test]
fn cve_2022_0485_server_errors_are_errors() {
    let dir = tempfile::tempdir().unwrap();
    let trigger = dir.path().join("trigger");
    let parameters = [
        "error-pread=EIO".to_owned(),
        "error-pread-rate=100%".to_owned(),
        format!("error-pread-file={}", trigger.display()),
    ];
    let parameters: Vec<_> = parameters.iter().map(String::as_str).collect();
    let peer = nbdkit(&["error"], &parameters);
    let remote = attach(&peer);
    let mut buf = vec![0; 100_000];
    remote.read_at(0, &mut buf).unwrap();
    std::fs::write(&trigger, "").unwrap();
    for _ in 0..10 {
        let error = remote.read_at(0, &mut buf).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Io);
        assert!(error.to_string().contains("EIO"), "{error}");
    }
    std::fs::remove_file(&trigger).unwrap();
    remote.read_at(0, &mut buf).unwrap();
    assert!(buf == peer.bytes[..100_000], "the connection is as good as before");
}

/// The same, with errors strewn in: what succeeds is right, byte for byte.
#[test]
fn strewn_errors_never_become_data() {
    let peer = nbdkit(&["error"], &["error-pread=EIO", "error-pread-rate=20%"]);
    let remote = attach(&peer);
    let (mut failed, mut good) = (0, 0);
    for i in 0..400usize {
        let at = i * 40_961 % (SIZE - 30_000);
        let mut buf = vec![0xa5; 30_000];
        match remote.read_at(at as u64, &mut buf) {
            Ok(()) => {
                assert!(buf == peer.bytes[at..at + 30_000]);
                good += 1;
            }
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::Io);
                failed += 1;
            }
        }
    }
    assert!(failed > 20 && good > 200, "{failed} failed, {good} good");
}

#[test]
fn errors_of_block_status_are_errors() {
    let peer = nbdkit(&["error"], &["error-extents=EIO", "error-extents-rate=100%"]);
    let error = attach(&peer).extents(0, 4096, 8).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Io);
}

#[test]
fn a_silent_server_is_a_timeout() {
    let peer = nbdkit(&["delay"], &["delay-read=30"]);
    let client = Client { reply_timeout: Duration::from_millis(300), ..Client::default() };
    let remote = client.attach(&peer.uri).unwrap();
    let start = Instant::now();
    let error = remote.read_at(0, &mut [0; 512]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Io);
    assert!(start.elapsed() < Duration::from_secs(5), "{error}");
}

#[test]
fn qemu_nbd_serves_us_raw_and_qcow2() {
    for format in ["raw", "qcow2", "vmdk"] {
        let peer = qemu_nbd(format, &["-r", "-e", "8"]);
        let remote = attach(&peer);
        conformance::check(&remote, &peer.bytes, 5);
        assert!(holes(&remote) >= 2 << 20, "{format}");
    }
}

#[test]
fn qemu_nbd_with_room_for_one_client() {
    let peer = qemu_nbd("raw", &["-r", "-e", "1"]);
    let start = Instant::now();
    conformance::check(&attach(&peer), &peer.bytes, 6);
    assert!(start.elapsed() < Duration::from_secs(20), "waiting for places it does not have");
}

#[test]
fn qemu_nbd_takes_our_writes() {
    let mut peer = qemu_nbd("qcow2", &["-e", "4", "--discard=unmap"]);
    let remote = attach(&peer);
    conformance::check_writes(&remote, &mut peer.bytes, 7);
}

#[test]
fn unknown_exports_are_refused_clearly() {
    let peer = qemu_nbd("raw", &["-r", "-e", "2"]);
    let mut uri = peer.uri.clone();
    uri.export = "nope".to_owned();
    let error = Client::connect(&uri).unwrap_err();
    assert_eq!(error.kind(), NbdErrorKind::Refused);
    assert!(error.to_string().contains("no export \"nope\""), "{error}");
    let error = Client::connect(&NbdUri::unix(peer.dir.path().join("none"), "")).unwrap_err();
    assert_eq!(error.kind(), NbdErrorKind::Io);
}

#[test]
fn a_dead_server_is_an_error_and_a_new_one_is_found() {
    let dir = tempfile::tempdir().unwrap();
    let bytes = image(dir.path());
    let socket = dir.path().join("s");
    let start = || {
        let mut command = tool("nbdkit", "nbdkit");
        command.args(["-f", "--exit-with-parent", "-U"]).arg(&socket);
        command.args(["-r", "file"]).arg(dir.path().join("disk.raw"));
        start_server(&mut command, &socket)
    };
    let server = start();
    let remote = Client::connect(&NbdUri::unix(&socket, "")).unwrap();
    let mut buf = vec![0; 4096];
    remote.read_at(0, &mut buf).unwrap();
    drop(server);
    std::fs::remove_file(&socket).unwrap();
    assert_eq!(remote.read_at(0, &mut buf).unwrap_err().kind(), ErrorKind::Io);
    assert_eq!(remote.read_at(0, &mut buf).unwrap_err().kind(), ErrorKind::Io);
    let _server = start();
    remote.read_at(4096, &mut buf).unwrap();
    assert!(buf == bytes[4096..8192]);
}
