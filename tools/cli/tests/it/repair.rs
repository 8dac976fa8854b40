//! Verifying, repairing, parity: as an administrator does it.

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::support::{Place, noise};

/// A repository with two points of one machine, which are alike.
fn place(init: &[&str]) -> (Place, Vec<u8>) {
    let place = Place::new();
    let key = place.text("key");
    place.run(&[&["repo", "init", "--new-key-file", &key], init].concat()).code(0);
    let mut content = noise(1, 3 << 20);
    content.extend(b"the quick brown fox\n".repeat(20_000));
    let image = place.image("web01.raw", &content);
    place.run(&["backup", &image, "--machine", "web01"]).code(0);
    place.run(&["backup", &image, "--machine", "web01"]).code(0);
    (place, content)
}

fn flip(file: &Path, at: usize) {
    let mut bytes = std::fs::read(file).expect("the pack");
    bytes[at] ^= 0x10;
    std::fs::write(file, bytes).expect("the pack is written");
}

fn copy_tree(from: &Path, to: &Path) {
    std::fs::create_dir(to).expect("a directory");
    for entry in std::fs::read_dir(from).expect("a directory").map(|e| e.expect("an entry")) {
        let target: PathBuf = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy_tree(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).expect("a copy");
        }
    }
}

fn ranges(damage: &Value) -> Vec<(u64, u64)> {
    let disks = damage.as_array().expect("a list").iter().filter(|f| f["kind"] == "disk");
    let number = |v: &Value| v.as_u64().expect("a number");
    disks.map(|f| (number(&f["offset_bytes"]), number(&f["len_bytes"]))).collect()
}

#[test]
fn verify_names_what_is_lost_and_repair_heals_it_from_a_copy() {
    let (place, content) = place(&[]);
    let whole = place.run(&["repo", "verify", "--json"]).code(0).json();
    assert_eq!((&whole["verdict"], &whole["left_packs"]), (&"pass".into(), &0.into()));
    assert_eq!(whole["status"]["never_packs"], 0);
    copy_tree(&place.path("repo"), &place.path("copy"));
    // The first chunk's stored bytes begin after the header.
    flip(&place.largest_file("repo/packs"), 64 + 1000);

    let found = place.run(&["repo", "verify", "--json"]).code(13).json();
    assert_eq!(found["quarantined_chunks"], 1);
    let lost = ranges(&found["damage"]);
    assert_eq!(lost.len(), 2, "both points: {found}");
    assert!(lost[0] == lost[1] && lost[0].1 == 65536, "{found}");
    let people = place.run(&["repo", "verify"]).code(13).stdout;
    assert!(people.contains("damaged  web01@") && people.contains("repo repair"), "{people}");
    let to = place.text("back.raw");
    place.run(&["restore", "disk", "web01", "--to", &to]).code(13);

    let left = place.run(&["repo", "repair", "--json"]).code(13).json();
    assert_eq!((&left["wanted_chunks"], &left["verdict"]), (&1.into(), &"fail".into()));
    assert_eq!(ranges(&left["left"]).len(), 2);
    let copy = place.text("copy");
    let told =
        place.run(&["repo", "repair", "--from", &copy, "--dry-run", "--json"]).code(0).json();
    assert_eq!((&told["verdict"], &told["stored_bytes"]), (&"pass".into(), &0.into()));
    let done = place.run(&["repo", "repair", "--from", &copy]).code(0).stdout;
    assert!(done.contains("healed") && done.contains("verdict: pass"), "{done}");
    place.run(&["repo", "verify"]).code(0);
    place.run(&["repo", "check", "--read-data"]).code(0);
    std::fs::remove_file(&to).unwrap_or(());
    place.run(&["restore", "disk", "web01", "--to", &to]).code(0);
    assert!(std::fs::read(&to).expect("the file") == content, "the restored bytes differ");
}

#[test]
fn an_image_of_today_heals_too() {
    let (place, content) = place(&[]);
    flip(&place.largest_file("repo/packs"), 64 + 1000);
    let found = place.run(&["repo", "verify", "--json"]).code(13).json();
    let mut today = content;
    // Another chunk has changed since.
    let other = (ranges(&found["damage"])[0].0 as usize + (1 << 20)) % today.len();
    today[other] ^= 1;
    let today = place.image("today.raw", &today);
    let named = format!("web01:disk0={today}");
    let done = place.run(&["repo", "repair", "--from-image", &named, "--json"]).code(0).json();
    assert_eq!(done["healed"][0]["by"], "the image of web01:disk0");
    assert_eq!(done["healed"][0]["chunks"], 1);
    place.run(&["repo", "check", "--read-data"]).code(0);
    let wrong = place.run(&["repo", "repair", "--from-image", "web01=x"]).code(2);
    assert!(wrong.stderr.contains("MACHINE:DISK=FILE"), "{}", wrong.stderr);
    place.run(&["repo", "repair", "--from-image", "web01:disk0=/nonexistent"]).code(16);
}

#[test]
fn parity_from_the_start_or_added_later() {
    for init in [&["--parity"][..], &[]] {
        let (place, _) = place(init);
        let shown = place.run(&["repo", "show", "--json"]).code(0).json();
        assert_eq!(shown["parity"], !init.is_empty());
        let added = place.run(&["repo", "parity", "add", "--json"]).code(0).json();
        assert_eq!(added["added"] == 0, !init.is_empty(), "{added}");
        let pack = place.largest_file("repo/packs");
        for block in [0, 100, 300, 500] {
            flip(&pack, block * 4096 + 70);
        }
        place.run(&["repo", "check", "--read-data"]).code(13);
        let done = place.run(&["repo", "repair", "--json"]).code(0).json();
        assert_eq!(done["healed"][0]["by"], "parity");
        place.run(&["repo", "check", "--read-data"]).code(0);
    }
}

#[test]
fn a_verification_in_parts_and_its_status() {
    let (place, _) = place(&[]);
    let before = place.run(&["repo", "verify", "--status", "--json"]).code(0).json();
    let packs = before["packs"].as_u64().expect("a number");
    assert_eq!(before["never_packs"], packs);
    for n in 1..=packs {
        let part = place.run(&["repo", "verify", "--max-bytes", "1", "--json"]).code(0).json();
        assert_eq!((&part["packs"], &part["left_packs"]), (&1.into(), &(packs - 1).into()));
        assert_eq!(part["status"]["never_packs"], packs - n);
    }
    let none = place.run(&["repo", "verify", "--older-than", "1h", "--json"]).code(0).json();
    assert_eq!((&none["packs"], &none["recent_packs"]), (&0.into(), &packs.into()));
    let people = place.run(&["repo", "verify", "--status"]).code(0).stdout;
    assert!(people.contains("never") && people.contains("1 days"), "{people}");
    let keyless = ["repo", "verify", "--without-key", "--max-bytes", "1", "--json"];
    let part = place.run(&keyless).code(0).json();
    let after = part["stopped_after"].as_str().expect("where to go on").to_owned();
    let rest = place.run(&["repo", "verify", "--without-key", "--resume-after", &after, "--json"]);
    assert_eq!(rest.code(0).json()["packs"], packs - 1);
}
