//! The programs of others against our server.

use std::os::unix::fs::MetadataExt;

use backstay_blockdev::FileDevice;

use crate::support::{Server, disk, run, run_ok, sparse, tool};

const SIZE: usize = 16 << 20;

/// A server over a sparse file; answers it and the file's content.
fn serve_file() -> (Server, Vec<u8>, std::path::PathBuf, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk.raw");
    let bytes = disk(SIZE);
    sparse(&path, &bytes);
    let server = Server::start(FileDevice::open(&path, true).unwrap());
    (server, bytes, path, dir)
}

#[test]
fn nbdinfo_sees_the_export() {
    let (server, _, _, _dir) = serve_file();
    let mut nbdinfo = tool("nbdinfo", "libnbd-bin");
    let text = run_ok(nbdinfo.arg(server.uri_text("disk")));
    for line in [
        "newstyle-fixed without TLS, using structured packets",
        "description: the first disk",
        "export-size: 16777216 (16M)",
        "base:allocation",
        "is_read_only: true",
        "can_cache: true",
        "can_df: true",
        "can_flush: true",
        "can_multi_conn: true",
        "block_size_preferred: 4096",
        "block_size_maximum: 33554432",
    ] {
        assert!(text.contains(line), "{line:?} is missing in:\n{text}");
    }
    let list = run_ok(tool("nbdinfo", "libnbd-bin").args(["--size", &server.uri_text("")]));
    assert_eq!(list.trim(), SIZE.to_string());
    let unknown = run(tool("nbdinfo", "libnbd-bin").arg(server.uri_text("nope")));
    assert!(!unknown.status.success());
}

#[test]
fn nbdinfo_maps_the_holes() {
    let (server, bytes, _, _dir) = serve_file();
    let text = run_ok(tool("nbdinfo", "libnbd-bin").args(["--map", &server.uri_text("disk")]));
    let (mut at, mut holes) = (0, 0);
    for line in text.lines() {
        let numbers: Vec<usize> =
            line.split_whitespace().take(3).map(|n| n.parse().unwrap()).collect();
        assert_eq!(numbers[0], at, "{text}");
        at += numbers[1];
        if numbers[2] == 3 {
            assert!(bytes[numbers[0]..at].iter().all(|b| *b == 0));
            holes += numbers[1];
        }
    }
    assert_eq!(at, SIZE);
    assert!(holes >= 4 << 20, "{holes} bytes of holes");
}

#[test]
fn nbdcopy_copies_bit_for_bit() {
    let (server, bytes, _, dir) = serve_file();
    let copy = dir.path().join("copy");
    for extra in
        [&["--connections=4"][..], &["--connections=1", "--no-extents"], &["--synchronous"]]
    {
        let mut nbdcopy = tool("nbdcopy", "libnbd-bin");
        run_ok(nbdcopy.args(extra).arg(server.uri_text("disk")).arg(&copy));
        assert!(std::fs::read(&copy).unwrap() == bytes, "{extra:?}");
        std::fs::remove_file(&copy).unwrap();
    }
}

#[test]
fn qemu_img_compares_converts_and_maps() {
    let (server, bytes, path, dir) = serve_file();
    let uri = server.uri_text("disk");
    let mut compare = tool("qemu-img", "qemu-utils");
    let text = run_ok(compare.args(["compare", "-f", "raw", "-F", "raw"]).arg(&path).arg(&uri));
    assert!(text.contains("identical"), "{text}");
    let copy = dir.path().join("copy.raw");
    let mut convert = tool("qemu-img", "qemu-utils");
    run_ok(convert.args(["convert", "-f", "raw", "-O", "raw", &uri]).arg(&copy));
    assert!(std::fs::read(&copy).unwrap() == bytes);
    let stored = std::fs::metadata(&copy).unwrap().blocks() * 512;
    assert!(stored < (SIZE - (3 << 20)) as u64, "holes were copied: {stored} bytes");
    let mut map = tool("qemu-img", "qemu-utils");
    let text = run_ok(map.args(["map", "-f", "raw", "--output=json", &uri]));
    assert!(text.contains("\"zero\": true"), "{text}");
    let mut bench = tool("qemu-img", "qemu-utils");
    run_ok(bench.args(["bench", "-f", "raw", "-c", "2000", "-d", "32", "-s", "4096", &uri]));
}

#[test]
fn qemu_io_writes_to_a_writable_export() {
    let server = Server::start(backstay_blockdev::MemDevice::new(disk(SIZE)));
    let uri = server.uri_text("disk");
    for commands in [
        &["write -P 0x41 0 64k", "read -P 0x41 0 64k", "flush"][..],
        &["write -f -P 0x42 100k 3k", "read -P 0x42 100k 3k"],
        &["write -z 1M 1M", "read -P 0 1M 1M"],
        &["write -z -u 4M 1M", "discard 5M 64k", "read -P 0 4M 1M"],
    ] {
        let mut io = tool("qemu-io", "qemu-utils");
        io.args(["-f", "raw", &uri]);
        for command in commands {
            io.args(["-c", command]);
        }
        let text = run_ok(&mut io);
        assert!(!text.contains("failed"), "{commands:?}: {text}");
    }
}

#[test]
fn a_failing_device_fails_the_copy() {
    let fault = backstay_blockdev::layer::Fault::new(std::sync::Arc::new(
        backstay_blockdev::MemDevice::read_only(disk(SIZE)),
    ));
    fault.fail_reads(5_000_000..5_000_001);
    let server = Server::start(fault);
    let mut nbdcopy = tool("nbdcopy", "libnbd-bin");
    let output = run(nbdcopy.args([&server.uri_text("disk"), "null:"]));
    assert!(!output.status.success(), "nbdcopy believes a failed read");
    let mut convert = tool("qemu-img", "qemu-utils");
    let copy = server.dir.path().join("copy");
    convert.args(["convert", "-f", "raw", "-O", "raw", &server.uri_text("disk")]).arg(&copy);
    assert!(!run(&mut convert).status.success());
}
