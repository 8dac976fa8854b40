//! What the first day with backstay looks like.

use serde_json::Value;

use super::support::{Place, noise, sample};

fn short_id(document: &Value) -> String {
    document["point"]["short_id"].as_str().expect("a short id").to_owned()
}

#[test]
fn back_up_list_show_compare_and_restore() {
    let place = Place::new();
    let made =
        place.run(&["repo", "init", "--new-key-file", &place.text("key"), "--json"]).code(0).json();
    assert_eq!(made["encryption"], "aes-256-gcm");
    assert_eq!(made["chunk_size_bytes"], 65536);

    assert!(place.run(&["list"]).code(0).stdout.contains("no recovery points yet"));

    let mut content = sample(1);
    let image = place.image("web01.raw", &content);
    let first = place.run(&["backup", &image, "--machine", "web01", "--json"]).code(0).json();
    assert_eq!(first["point"]["size_bytes"], content.len());
    assert!(first["point"]["new_bytes"].as_u64() > Some(1 << 20));

    let at = 2 << 20;
    content[at..at + 4].copy_from_slice(b"new!");
    place.image("web01.raw", &content);
    let note = ["backup", &image, "-m", "web01", "--note", "after the change", "--json"];
    let second = place.run(&note).code(0).json();
    assert!(second["point"]["new_bytes"].as_u64() < Some(200_000), "{second}");
    assert_eq!(second["point"]["parent"], first["point"]["id"]);

    let list = place.run(&["list", "--json"]).code(0).json();
    assert_eq!(list["points"].as_array().map(Vec::len), Some(2));
    assert_eq!(list["points"][1]["note"], "after the change");
    let people = place.run(&["list", "web01"]).code(0).stdout;
    assert!(people.contains("MACHINE") && people.contains("after the change"), "{people}");
    assert!(people.contains("+00:00"), "times have an offset: {people}");

    let shown = place.run(&["show", "web01@latest"]).code(0).stdout;
    assert!(shown.contains("after the change") && shown.contains("disk0"), "{shown}");
    let by_id = place.run(&["show", &format!("@{}", short_id(&first)), "--json"]).code(0).json();
    assert_eq!(by_id["id"], first["point"]["id"]);

    compare_the_two(&place, &short_id(&first), at);
    restore_every_way(&place, &content);

    let check = place.run(&["repo", "check", "--read-data", "--json"]).code(0).json();
    assert_eq!(check["verdict"], "pass");
    let people = place.run(&["repo", "check"]).code(0).stdout;
    assert!(people.contains("pass") && people.contains(" of "), "{people}");
    let keyless = place.run(&["repo", "check", "--without-key", "--json"]).code(0).json();
    assert_eq!(keyless["verdict"], "pass");

    let shown = place.run(&["repo", "show", "--json"]).code(0).json();
    assert_eq!(shown["contents"]["points"], 2);
    let known = place.run(&["repo", "list", "--json"]).code(0).json();
    assert_eq!(known["repositories"][0]["id"], made["id"]);
}

fn compare_the_two(place: &Place, first: &str, at: usize) {
    let first = format!("@{first}");
    let diff = place.run(&["diff", &first, "web01", "--json"]).code(0).json();
    assert_eq!(diff["identical"], false);
    assert_eq!(diff["differing_bytes"], 65536);
    assert_eq!(diff["disks"][0]["extents"][0]["offset_bytes"], at);
    place.run(&["diff", &first, "web01", "--exit-code"]).code(5);
    let same = place.run(&["diff", "web01:disk0", "web01", "--exit-code"]).code(0);
    assert!(same.stdout.contains("no differences"), "{}", same.stdout);
    let people = place.run(&["diff", &first, "web01", "--extents"]).code(0).stdout;
    assert!(people.contains(&at.to_string()) && people.contains("64.0 KiB"), "{people}");
}

fn restore_every_way(place: &Place, content: &[u8]) {
    let to = place.text("back.raw");
    let people = place.run(&["restore", "disk", "web01", "--to", &to]).code(0).stdout;
    assert!(people.contains("restored web01@"), "{people}");
    assert!(std::fs::read(&to).expect("the file") == content, "the restored bytes differ");

    let output = place
        .command(&["restore", "disk", "web01@latest:disk0", "--to", "-", "--json"])
        .output()
        .expect("the binary runs");
    assert!(output.status.success() && output.stdout == content, "stdout has the disk alone");

    let qcow2 = place.text("back.qcow2");
    let made = place.run(&["restore", "disk", "web01", "--to", &qcow2, "--json"]).code(0).json();
    assert_eq!(made["format"], "qcow2");
    let compared = std::process::Command::new("qemu-img")
        .args(["compare", "-f", "qcow2", "-F", "raw", &qcow2, &to])
        .output()
        .expect("qemu-img is installed");
    // An image is as long as its sectors; the odd end of ours is filled with zeros.
    assert!(compared.status.success(), "{}", String::from_utf8_lossy(&compared.stdout));
}

#[test]
fn a_machine_with_several_disks_is_one_point() {
    let place = Place::with_repository();
    let system = place.image("system=1.raw", &sample(5));
    let data = noise(9, 300_000);
    let named = format!("data={}", place.image("data.raw", &data));
    let made = place.run(&["backup", &system, &named, "-m", "db1", "--json"]).code(0).json();
    let names: Vec<_> = made["point"]["disks"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|d| d["name"].clone())
        .collect();
    assert_eq!(names, ["disk0", "data"]);

    let refused = place.run(&["restore", "disk", "db1", "--to", "x.raw", "--json"]).code(16);
    let error = refused.json_error();
    assert_eq!(error["kind"], "not_found");
    assert!(refused.stderr.contains("data"), "the candidates are named: {}", refused.stderr);
    assert!(!place.path("x.raw").exists());

    place.run(&["restore", "disk", "db1:data", "--to", "x.raw"]).code(0);
    assert!(std::fs::read(place.path("x.raw")).expect("the file") == data);
}

#[test]
fn output_that_nobody_reads_is_no_failure() {
    let place = Place::with_repository();
    for args in [&["completion", "bash"][..], &["list"], &["repo", "show", "--json"]] {
        let mut running = place.start(args);
        running.close_stdout();
        let ran = running.end();
        assert_eq!((ran.code, ran.stderr.as_str()), (0, ""), "{args:?}");
    }
    // Only a disk that was not taken whole is one, though nobody has to be told.
    let image = place.image("a.raw", &sample(6));
    place.run(&["backup", &image, "-m", "a"]).code(0);
    let mut running = place.start(&["restore", "disk", "a", "--to", "-"]);
    running.close_stdout();
    let ran = running.end();
    assert_eq!((ran.code, ran.stderr.as_str()), (1, ""));
}
