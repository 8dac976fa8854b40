//! A mount, two backups, a check and a restore on one repository at once: each is a process of its
//! own, and none has to wait for, or give way to, another.

use std::path::Path;

use rustix::process::Signal;

use super::support::{Place, Running, is_root, sample, skipped};

fn start_all(place: &Place, round: u8) -> Vec<(&'static str, Running)> {
    for machine in ["web01", "db01"] {
        let mut content = sample(3);
        content.extend(sample(u64::from(round) + 10));
        content[usize::from(round)] ^= 0x55;
        place.image(&format!("{machine}.raw"), &content);
    }
    let target = place.text(&format!("restored-{round}.raw"));
    vec![
        ("backup of web01", place.start(&["backup", "web01.raw", "-m", "web01"])),
        ("backup of db01", place.start(&["backup", "db01.raw", "-m", "db01"])),
        ("check", place.start(&["repo", "check", "--read-data"])),
        ("restore", place.start(&["restore", "disk", "old:disk0", "--to", &target])),
        ("list", place.start(&["list", "--json"])),
    ]
}

#[test]
fn a_mount_two_backups_a_check_and_a_restore() {
    let place = Place::with_repository();
    let content = sample(1);
    let image = place.image("old.raw", &content);
    place.run(&["backup", &image, "-m", "old"]).code(0);

    let mut mount = None;
    if Path::new("/dev/fuse").exists() && is_root() {
        std::fs::create_dir(place.path("mnt")).expect("made");
        let mut running = place.start(&["mount", "image", "mnt", "--json"]);
        running.first_line();
        mount = Some(running);
    } else {
        skipped("the mount of a_mount_two_backups_a_check_and_a_restore: needs root and /dev/fuse");
    }
    let mut nbd = place.start(&["mount", "nbd", "old:disk0", "--socket", "s", "--json"]);
    nbd.first_line();

    for round in 0..3 {
        for (what, running) in start_all(&place, round) {
            let ran = running.end();
            assert_eq!(ran.code, 0, "{what}, round {round}: {}", ran.stderr);
        }
        let restored = std::fs::read(place.path(&format!("restored-{round}.raw"))).expect("it");
        assert!(restored == content, "round {round}");
        if mount.is_some() {
            let file = place.path("mnt/old/latest/disks/disk0.raw");
            assert!(std::fs::read(file).expect("the disk") == content, "round {round}");
        }
    }
    let points = place.run(&["list", "--json"]).code(0).json();
    assert_eq!(points["points"].as_array().map(Vec::len), Some(7), "{points}");
    place.run(&["repo", "check", "--read-data"]).code(0);
    for running in [Some(nbd), mount].into_iter().flatten() {
        running.signal(Signal::INT);
        running.end().code(0);
    }
}
