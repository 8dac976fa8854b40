//! Removing recovery points and pinning them: what goes, what stays, who is asked, what is told.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use rustix::process::Signal;
use serde_json::Value;

use super::support::{Place, Ran, has_fuse, noise, wait_until};

/// A repository with so many points of each machine, each with data of its own.
fn place(machines: &[(&str, u64)]) -> Place {
    let place = Place::with_repository();
    for (machine, points) in machines {
        for number in 0..*points {
            let seed = machine.bytes().map(u64::from).sum::<u64>() * 100 + number;
            let image = place.image("disk.raw", &noise(seed, 200_000));
            place.run(&["backup", &image, "-m", machine]).code(0);
        }
    }
    place
}

fn points(place: &Place) -> usize {
    let list = place.run(&["list", "--json"]).code(0).json();
    list["points"].as_array().map_or(0, Vec::len)
}

fn pin(place: &Place, point: &str, reason: &str) -> String {
    let args = ["point", "pin", point, "--reason", reason, "--json"];
    place.run(&args).code(0).json()["pin"]["id"].as_str().expect("an id").to_owned()
}

/// Runs the binary on a terminal of its own, and types.
fn typed(place: &Place, args: &[&str], answer: &str) -> Ran {
    let inner = place.command(args);
    let words: Vec<_> = [inner.get_program()].into_iter().chain(inner.get_args()).collect();
    let line: Vec<_> = words.iter().map(|word| word.to_string_lossy()).collect();
    // script(1) is in bsdutils, which every Debian machine has.
    let mut script = Command::new("script");
    script.args(["-qec", &line.join(" "), "/dev/null"]).current_dir(place.path(""));
    for (name, value) in inner.get_envs() {
        match value {
            Some(value) => script.env(name, value),
            None => script.env_remove(name),
        };
    }
    script.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = script.spawn().expect("script (package bsdutils) runs");
    let mut stdin = child.stdin.take().expect("a pipe");
    stdin.write_all(answer.as_bytes()).expect("typed");
    drop(stdin);
    Ran::of(child.wait_with_output().expect("its end"))
}

#[test]
fn a_removal_is_asked_for_and_told() {
    let place = place(&[("web01", 6), ("db1", 4)]);
    let told = place.run(&["point", "remove", "web01@-5"]).code(19);
    assert!(told.stderr.contains("--yes") && told.stderr.contains("web01@"), "{}", told.stderr);
    let error = place.run(&["point", "remove", "web01@-5", "--json"]).code(19).json_error();
    assert_eq!(error["kind"], "needs_confirmation");
    assert_eq!(points(&place), 10);

    let dry = place.run(&["point", "remove", "web01@-5", "--dry-run", "--json"]).code(0).json();
    assert_eq!((&dry["dry_run"], dry["removed"].as_array().map(Vec::len)), (&true.into(), Some(1)));
    assert_eq!(points(&place), 10, "a dry run removes nothing");

    let args = ["point", "remove", "web01@-5", "web01@-5", "--yes", "--json"];
    let done = place.run(&args).code(0).json();
    assert_eq!(done["removed"].as_array().map(Vec::len), Some(1), "named twice, removed once");
    let gone = &done["removed"][0];
    assert_eq!((&gone["machine"], &gone["id"]), (&"web01".into(), &dry["removed"][0]["id"]));
    assert_eq!(points(&place), 9);
    let again = format!("@{}", gone["id"].as_str().expect("an id"));
    place.run(&["point", "remove", &again, "--yes"]).code(16);
    place.run(&["show", &again]).code(16);
    let told = place.run(&["point", "remove", "db1@-3", "--yes"]).code(0).stdout;
    assert!(told.contains("removed  db1@") && told.contains("backstay gc"), "{told}");
    place.run(&["point", "remove", "db1:disk0", "--yes"]).code(2);
    place.run(&["repo", "check"]).code(0);
}

#[test]
fn at_a_terminal_the_name_is_typed() {
    let place = place(&[("web01", 2)]);
    let ran = typed(&place, &["point", "remove", "web01@-1"], "yes\n").code(19);
    assert!(ran.stdout.contains("type web01 to go on"), "{}", ran.stdout);
    assert_eq!(points(&place), 2);
    let ran = typed(&place, &["point", "remove", "web01@-1"], "web01\n").code(0);
    assert!(ran.stdout.contains("removed  web01@"), "{}", ran.stdout);
    assert_eq!(points(&place), 1);
    typed(&place, &["point", "remove", "web01", "--no-input"], "web01\n").code(19);
}

#[test]
fn what_loses_much_needs_its_own_flag() {
    let place = place(&[("web01", 6), ("db1", 1)]);
    // The last point of a machine.
    let told = place.run(&["point", "remove", "db1", "--yes"]).code(19);
    assert!(told.stderr.contains("db1 would lose its last 1 point"), "{}", told.stderr);
    assert!(told.stderr.contains("--allow-mass-removal"), "{}", told.stderr);
    // More than a fifth of a machine, and of all.
    let args = ["point", "remove", "web01@-4", "web01@-5", "--yes"];
    let error = place.run(&[&args[..], &["--json"]].concat()).code(19).json_error();
    let causes = error["causes"].as_array().expect("causes");
    assert_eq!(causes.len(), 2, "{error}");
    assert!(causes[0].as_str().is_some_and(|c| c.contains("2 of its 6 points")), "{error}");
    assert_eq!(points(&place), 7);
    let dry = place.run(&["point", "remove", "db1", "--dry-run", "--json"]).code(0).json();
    assert_eq!(dry["risks"][0]["kind"], "empties_machine");
    // The flag alone is no confirmation.
    let flag = "--allow-mass-removal";
    place.run(&["point", "remove", "db1", flag]).code(19);
    place.run(&["point", "remove", "db1", flag, "--yes"]).code(0);
    place.run(&[&args[..], &[flag]].concat()).code(0);
    assert_eq!(points(&place), 4);
    // Pinned points are no loss: what stays is not counted as going.
    for point in ["web01", "web01@-1", "web01@-2"] {
        pin(&place, point, "kept");
    }
    place.run(&["point", "remove", "web01", "web01@-1", "web01@-2", "web01@-3", "--yes"]).code(3);
    assert_eq!(points(&place), 3);
}

#[test]
fn pins_keep_and_say_who_and_why() {
    let place = place(&[("web01", 3)]);
    place.run(&["point", "pin", "web01@-2"]).code(2);
    place.run(&["point", "pin", "web01@-2", "--reason", " "]).code(2);
    place.run(&["point", "pin", "web02", "--reason", "x"]).code(16);
    let long = "x".repeat(100_000);
    place.run(&["point", "pin", "web01", "--reason", &long]).code(2);
    let first = pin(&place, "web01@-2", "audit of November");
    let second = pin(&place, "web01@-2", "the lawyers");

    let list = place.run(&["point", "pins", "--json"]).code(0).json();
    assert_eq!(list["pins"].as_array().map(Vec::len), Some(2));
    assert_eq!(list["pins"][0]["id"], first.as_str());
    assert_eq!(list["pins"][1]["reason"], "the lawyers");
    assert!(list["pins"][0]["by"].as_str().is_some_and(|by| by.contains('@')), "{list}");
    let table = place.run(&["point", "pins"]).code(0).stdout;
    assert!(table.starts_with("PIN ") && table.contains("audit of November"), "{table}");
    let listed = place.run(&["list", "--json"]).code(0).json();
    assert_eq!(listed["points"][0]["kept_by"][1]["reason"], "the lawyers");
    assert_eq!(listed["points"][1]["kept_by"].as_array().map(Vec::len), Some(0));
    let shown = place.run(&["show", "web01@-2"]).code(0).stdout;
    assert!(shown.contains("kept         pinned by "), "{shown}");

    let ran = place.run(&["point", "remove", "web01@-2", "--yes", "--quiet"]).code(17);
    for part in ["audit of November", "pinned by", "since 20", "backstay point unpin "] {
        assert!(ran.stderr.contains(part), "{part}: {}", ran.stderr);
    }
    let ran = place.run(&["point", "remove", "web01@-2", "web01@-1", "--yes", "--json"]).code(3);
    let document = ran.json();
    assert_eq!(document["removed"].as_array().map(Vec::len), Some(1));
    let keeper = &document["kept"][0]["kept_by"][0];
    assert_eq!((&keeper["kind"], &keeper["id"]), (&"pin".into(), &first.as_str().into()));

    place.run(&["point", "unpin", "zzzzzz"]).code(16);
    place.run(&["point", "unpin", &first[..5]]).code(2);
    place.run(&["point", "unpin", &first[..12]]).code(0);
    place.run(&["point", "remove", "web01@-1", "--yes"]).code(17);
    place.run(&["point", "unpin", &second]).code(0);
    place.run(&["point", "remove", "web01@-1", "--yes"]).code(0);
    assert_eq!(points(&place), 1);
    assert_eq!(place.run(&["point", "pins"]).code(0).stdout, "no recovery point is pinned\n");
}

fn scribble(path: PathBuf) {
    std::fs::remove_file(&path).expect("removed");
    std::fs::write(path, b"scribble").expect("written");
}

#[test]
fn what_cannot_be_read_can_be_given_up_by_its_id() {
    let place = place(&[("web01", 7)]);
    let listed = place.run(&["list", "--json"]).code(0).json();
    let ids: Vec<&str> = (0..2).filter_map(|n| listed["points"][n]["id"].as_str()).collect();
    let pinned = pin(&place, "web01", "kept");
    scribble(place.path(&format!("repo/pins/{pinned}")));
    // It is not known what it keeps: nothing is removed or collected, and everything is listed.
    let list = place.run(&["list", "--json"]).code(3).json();
    assert_eq!(list["points"].as_array().map(Vec::len), Some(7));
    assert_eq!(list["points"][0]["kept_by"], Value::Null);
    let told = place.run(&["list"]).code(3);
    assert!(told.stderr.contains("not known what pins"), "{}", told.stderr);
    place.run(&["show", "web01"]).code(3);
    let refused = place.run(&["point", "remove", "web01@-6", "--yes"]).code(13);
    assert!(refused.stderr.contains("point unpin"), "{}", refused.stderr);
    place.run(&["gc"]).code(13);
    place.run(&["point", "unpin", &pinned[..8]]).code(13);
    place.run(&["point", "unpin", &pinned]).code(0);
    place.run(&["gc"]).code(0);

    // A point's record that cannot be read stands in the way of collections until it is removed.
    scribble(place.path(&format!("repo/points/{}", ids[0])));
    place.run(&["gc"]).code(13);
    let name = format!("@{}", &ids[0][..10]);
    let told = place.run(&["point", "remove", &name]).code(19);
    assert!(told.stderr.contains("its record cannot be read"), "{}", told.stderr);
    place.run(&["point", "remove", &name, "--yes"]).code(0);
    let freed = place.run(&["gc", "--json"]).code(0).json();
    assert!(freed["freed"]["bytes"].as_u64() > Some(200_000), "{freed}");
    place.run(&["repo", "check", "--read-data"]).code(0);
}

#[test]
fn a_mounted_point_stays_while_it_is_read() {
    if !has_fuse("a_mounted_point_stays_while_it_is_read") {
        return;
    }
    let place = Place::with_repository();
    let content = noise(77, 8 << 20);
    for content in [&noise(76, 1 << 20), &content] {
        let image = place.image("web01.raw", content);
        place.run(&["backup", &image, "-m", "web01"]).code(0);
    }
    std::fs::create_dir(place.path("mnt")).expect("made");
    let mut mount = place.start(&["mount", "image", "mnt", "--json"]);
    mount.first_line();
    let mut file = File::open(place.path("mnt/web01/latest/disks/disk0.raw")).expect("opened");
    let mut read = vec![0; 1 << 16];
    file.read_exact(&mut read).expect("read");

    let remove = ["point", "remove", "web01@latest", "--yes", "--json"];
    let kept = place.run(&remove).code(17).json();
    let keeper = &kept["kept"][0]["kept_by"][0];
    assert_eq!((&keeper["kind"], &keeper["process"]), (&"session".into(), &mount.pid().into()));
    assert!(keeper["reason"].as_str().is_some_and(|r| r.starts_with("reading web01@")), "{kept}");
    let told = place.run(&["point", "remove", "web01@latest", "--yes"]).code(17);
    for part in ["in use since", "reading web01@", &format!("end process {}", mount.pid())] {
        assert!(told.stderr.contains(part), "{part}: {}", told.stderr);
    }
    let listed = place.run(&["list"]).code(0).stdout;
    assert!(listed.contains("in use"), "{listed}");

    // Somebody removes it who looked before the mount had registered.
    let (sessions, aside) = (place.path("repo/sessions"), place.path("aside"));
    rustix::fs::rename(&sessions, &aside).expect("moved");
    std::fs::create_dir(place.path("repo/sessions")).expect("made");
    place.run(&remove).code(0);
    std::fs::remove_dir(place.path("repo/sessions")).expect("empty");
    rustix::fs::rename(&aside, &sessions).expect("moved back");
    let shown = place.run(&["repo", "show", "--json"]).code(0).json();
    assert_eq!(shown["contents"]["removed_points"], 1);
    assert_eq!(shown["contents"]["points"], 1);
    assert_eq!(shown["contents"]["sessions"][0]["kind"], "reader");

    let before = place.usage("repo/packs");
    let collected = place.run(&["gc", "--json"]).code(0).json();
    assert_eq!(collected["freed"]["packs"], 0, "{collected}");
    file.read_to_end(&mut read).expect("it is read on");
    assert!(read == content, "the bytes differ");
    assert_eq!(place.usage("repo/packs"), before);

    drop(file);
    wait_until("the hold goes with the last reader", || {
        let list = place.run(&["session", "list", "--json"]).code(0).json();
        list["sessions"].as_array().is_some_and(Vec::is_empty)
    });
    let collected = place.run(&["gc", "--json"]).code(0).json();
    assert!(collected["freed"]["bytes"].as_u64() >= Some(8 << 20), "{collected}");
    assert!(place.usage("repo/packs") + (7 << 20) < before);
    mount.signal(Signal::INT);
    mount.end().code(0);
    place.run(&["repo", "check", "--read-data"]).code(0);
}
