//! The two doors, opened and closed by the command line.

use std::path::Path;
use std::process::Command;

use rustix::process::Signal;
use serde_json::Value;

use super::support::{Place, Running, has_fuse, sample, wait_until};

fn document(running: &mut Running) -> Value {
    serde_json::from_str(&running.first_line()).expect("a JSON document")
}

fn is_mounted(path: &Path) -> bool {
    let table = std::fs::read_to_string("/proc/self/mounts").expect("the mount table");
    table.lines().any(|line| line.split(' ').nth(1) == path.to_str())
}

/// A repository with one backup of `web01`.
fn with_backup(content: &[u8]) -> Place {
    let place = Place::with_repository();
    let image = place.image("web01.raw", content);
    place.run(&["backup", &image, "-m", "web01"]).code(0);
    place
}

/// Takes a mount away when a test fails half way.
struct Unmounted<'a>(&'a Path);

impl Drop for Unmounted<'_> {
    fn drop(&mut self) {
        if is_mounted(self.0) {
            let _ = Command::new("umount").arg("-l").arg(self.0).status();
        }
    }
}

#[test]
fn mount_image_shows_points_as_files_until_interrupted() {
    if !has_fuse("mount_image_shows_points_as_files_until_interrupted") {
        return;
    }
    let content = sample(1);
    let place = with_backup(&content);
    let dir = place.path("mnt");
    std::fs::create_dir(&dir).expect("made");
    let _cleanup = Unmounted(&dir);
    let mut running = place.start(&["mount", "image", "mnt", "--json"]);
    let told = document(&mut running);
    assert_eq!(told["mountpoint"].as_str(), dir.to_str());

    let file = dir.join("web01/latest/disks/disk0.raw");
    assert!(std::fs::read(&file).expect("the disk") == content, "the bytes differ");
    assert!(std::fs::write(&file, "x").is_err(), "it is read-only");
    // A recovery point made meanwhile appears, and files already open stay what they are.
    let mut newer = content.clone();
    newer[0] ^= 1;
    let image = place.image("web01.raw", &newer);
    place.run(&["backup", &image, "-m", "web01"]).code(0);
    wait_until("the new point appears", || std::fs::read(&file).is_ok_and(|read| read == newer));
    // A second mount in the same place is refused and harms nothing.
    place.run(&["mount", "image", "mnt"]).code(17);
    assert!(std::fs::metadata(&file).is_ok());

    running.signal(Signal::INT);
    running.end().code(0);
    assert!(!is_mounted(&dir), "nothing is left");
}

#[test]
fn a_killed_mount_leaves_nothing_stale() {
    if !has_fuse("a_killed_mount_leaves_nothing_stale") {
        return;
    }
    let place = with_backup(&sample(2));
    let dir = place.path("mnt");
    std::fs::create_dir(&dir).expect("made");
    let _cleanup = Unmounted(&dir);
    let mut running = place.start(&["mount", "image", "mnt", "--json"]);
    document(&mut running);
    assert!(is_mounted(&dir));
    running.signal(Signal::KILL);
    running.end();
    wait_until("the guardian takes the mount away", || !is_mounted(&dir));

    // And unmounted from outside, the command ends by itself.
    let mut running = place.start(&["mount", "image", "mnt", "--json"]);
    document(&mut running);
    assert!(Command::new("umount").arg(&dir).status().expect("umount runs").success());
    running.end().code(0);
}

#[test]
fn mount_nbd_in_the_foreground_serves_one_disk_to_other_tools() {
    let content = sample(3);
    let place = with_backup(&content);
    let args = ["mount", "nbd", "web01", "--foreground", "--socket", "s.sock", "--json"];
    let mut running = place.start(&args);
    let told = document(&mut running);
    let uri = told["uri"].as_str().expect("a uri").to_owned();
    assert_eq!(told["size_bytes"], content.len());
    let commands = told["client_commands"].as_array().expect("commands");
    assert!(commands.iter().any(|c| c["tool"] == "nbd-client"), "{told}");

    let info = Command::new("nbdinfo").args(["--json", &uri]).output();
    let info = info.expect("nbdinfo (package libnbd-bin) is installed");
    let info: Value = serde_json::from_slice(&info.stdout).expect("JSON");
    assert_eq!(info["exports"][0]["export-size"], content.len());
    assert_eq!(info["exports"][0]["is_read_only"], true);
    let copy = place.path("copy.raw");
    let copied = Command::new("nbdcopy").arg(&uri).arg(&copy).status();
    assert!(copied.expect("nbdcopy runs").success());
    assert!(std::fs::read(&copy).expect("the copy") == content, "the bytes differ");

    running.signal(Signal::TERM);
    running.end().code(0);
    assert!(!place.path("s.sock").exists(), "the socket is gone");
}

#[test]
fn mount_nbd_listens_on_loopback_and_prints_what_to_type() {
    let content = sample(4);
    let place = with_backup(&content);
    let what = ["mount", "nbd", "web01@latest:disk0", "--foreground"];
    let mut running = place.start(&[&what[..], &["--listen", "127.0.0.1:0", "--json"]].concat());
    let told = document(&mut running);
    let uri = told["uri"].as_str().expect("a uri");
    assert!(uri.starts_with("nbd://127.0.0.1:") && !uri.contains(":0/"), "{uri}");
    let size = Command::new("nbdinfo").args(["--size", uri]).output().expect("nbdinfo runs");
    let size = String::from_utf8_lossy(&size.stdout).trim().to_owned();
    assert_eq!(size, content.len().to_string());
    // The port is taken now, and the error says so.
    let address = told["address"].as_str().expect("an address");
    let again = ["mount", "nbd", "web01", "--foreground", "--listen", address];
    let second = place.run(&again).code(17);
    assert!(second.stderr.contains(address), "{}", second.stderr);
    running.signal(Signal::INT);
    running.end().code(0);
}
