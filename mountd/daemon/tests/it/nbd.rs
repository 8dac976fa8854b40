//! The network door, tried with clients of others.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use backstay_daemon::ErrorKind;
use backstay_daemon::nbd::PointExports;
use backstay_nbd::server::{Listen, ServerConfig, ServerHandle};

use crate::support::{Fixture, disk_image};

fn run(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output().unwrap_or_else(|e| {
        panic!("{program} is needed for this test (Debian: libnbd-bin, qemu-utils): {e}")
    });
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {args:?}: {text}{errors}");
    text
}

fn serve(exports: PointExports, socket: &Path) -> ServerHandle {
    let listen = vec![Listen::Unix(socket.to_owned())];
    ServerHandle::start(listen, Arc::new(exports), ServerConfig::default()).unwrap()
}

#[test]
fn the_disks_of_a_point_over_nbd() {
    let fixture = Fixture::encrypted();
    let (one, two) = (disk_image(1, 60), disk_image(2, 20));
    let disks: [(&str, &[u8]); 2] = [("disk0", &one), ("data", &two)];
    let point = fixture.backup("web01", "2026-11-22T03:00:00Z", &disks);
    let socket = fixture.dir.path().join("nbd.sock");
    let exports = PointExports::new(&fixture.open(), &point, None).unwrap();
    assert_eq!(exports.names().collect::<Vec<_>>(), ["disk0", "data"]);
    let server = serve(exports, &socket);
    let uri = |export: &str| format!("nbd+unix:///{export}?socket={}", socket.display());

    let list = run("nbdinfo", &["--list", &uri("")]);
    assert!(list.contains("web01 2026-11-22 03:00:00Z disk0"), "{list}");
    assert!(list.contains("web01 2026-11-22 03:00:00Z data"), "{list}");
    let info = run("nbdinfo", &[&uri("data")]);
    assert!(info.contains("is_read_only: true"), "{info}");
    assert!(info.contains("can_multi_conn: true"), "{info}");
    let map = run("nbdinfo", &["--map", &uri("disk0")]);
    assert!(map.contains("hole,zero") && map.contains("data"), "{map}");

    for (export, image) in [("disk0", &one), ("data", &two), ("", &one)] {
        let copy = fixture.dir.path().join("copy.raw");
        run("nbdcopy", &[&uri(export), copy.to_str().unwrap()]);
        assert!(std::fs::read(&copy).unwrap() == *image, "{export}");
        std::fs::remove_file(&copy).unwrap();
    }

    // qemu-img compares whole sectors: the image needs the zeros of the last one.
    let mut sectors = one.clone();
    sectors.resize(one.len().next_multiple_of(512), 0);
    let source = fixture.dir.path().join("source.raw");
    std::fs::write(&source, &sectors).unwrap();
    run(
        "qemu-img",
        &["compare", "-f", "raw", "-F", "raw", source.to_str().unwrap(), &uri("disk0")],
    );
    server.stop().unwrap();
}

#[test]
fn one_disk_alone_and_disks_that_are_not_there() {
    let fixture = Fixture::new();
    let image = disk_image(1, 4);
    let disks: [(&str, &[u8]); 2] = [("disk0", &image), ("data", &image[..CHUNK_AND_A_BIT])];
    let point = fixture.backup("web01", "2026-11-22T03:00:00Z", &disks);
    let repository = fixture.open();
    let only = PointExports::new(&repository, &point, Some("data")).unwrap();
    assert_eq!(only.names().collect::<Vec<_>>(), ["data"]);
    let socket = fixture.dir.path().join("nbd.sock");
    let server = serve(only, &socket);
    let uri = |export: &str| format!("nbd+unix:///{export}?socket={}", socket.display());
    let size = run("nbdinfo", &["--size", &uri("")]);
    assert_eq!(size.trim(), CHUNK_AND_A_BIT.to_string());
    let hidden = Command::new("nbdinfo").arg(uri("disk0")).output().unwrap();
    assert!(!hidden.status.success(), "a disk that was not asked for");
    server.stop().unwrap();

    let missing = PointExports::new(&repository, &point, Some("disk9")).unwrap_err();
    assert_eq!(missing.kind(), ErrorKind::NotFound);
    assert!(missing.to_string().contains("disk0, data"), "{missing}");
}

const CHUNK_AND_A_BIT: usize = crate::support::CHUNK + 100;
