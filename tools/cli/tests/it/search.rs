//! Files inside guest disks, over several recovery points: searched, compared, put into archives.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;

use super::guest_disk::{self, DATA, Mounted, ROOT};
use super::mountd::text;
use super::support::Place;

/// Changes what is on a partition of a disk, by this machine's kernel.
fn change(place: &Place, disk: &Path, (start, len): (u64, u64), how: impl FnOnce(&Path)) {
    let options = format!("offset={},sizelimit={}", start << 20, len << 20);
    how(Mounted::new(disk, place.path("changing"), &options).path());
}

/// A repository with three backups of `web01`, and what was done to its files between them.
fn with_history() -> (Place, PathBuf) {
    let place = Place::with_repository();
    let disk = guest_disk::make(&place, "web01.raw");
    let back_up = || {
        place.run(&["backup", disk.to_str().expect("plain"), "-m", "web01"]).code(0);
    };
    back_up();
    change(&place, &disk, ROOT, |root| {
        fs::write(root.join("etc/hostname"), "web01 of old\n").expect("a file");
        fs::write(root.join("etc/Report 2.odt"), vec![7; 5000]).expect("a file");
        fs::remove_file(root.join("etc/secret")).expect("it goes");
        fs::remove_file(root.join("etc/round")).expect("it goes");
        fs::write(root.join("etc/round"), "no link any more").expect("a file");
    });
    change(&place, &disk, DATA, |data| {
        rustix::fs::chown(data.join("again"), Some(rustix::fs::Uid::from_raw(5)), None)
            .expect("root");
    });
    back_up();
    back_up();
    (place, disk)
}

fn found(place: &Place, args: &[&str]) -> Value {
    place.run(&[&["find", "--json"], args].concat()).code(3).json()
}

fn names(found: &Value) -> Vec<String> {
    let all = found["matches"].as_array().expect("matches").iter();
    let mut names: Vec<String> = all.map(|m| text(m, "path")).collect();
    names.sort();
    names
}

#[test]
fn files_are_found_in_one_point_and_in_all() {
    if guest_disk::cannot("files_are_found_in_one_point_and_in_all") {
        return;
    }
    let (place, _disk) = with_history();
    // The guest mounts what is on none of its disks: that is told, and the end is "in part".
    let all = found(&place, &["host*"]);
    assert_eq!(names(&all), ["/etc/hostname"]);
    assert_eq!(all["problems"][0]["path"], "/lost");
    let name = text(&all["matches"][0], "name");
    assert_eq!(place.run(&["cat", &name]).code(0).stdout, "web01 of old\n");
    let path = text(&found(&place, &["entry-2999"])["matches"][0], "path");
    assert_eq!(path, "/srv/data/deep/entry-2999");
    assert_eq!(names(&found(&place, &["covered"])), [""; 0]);
    assert_eq!(names(&found(&place, &["etc/*"])).len(), 6);
    assert_eq!(names(&found(&place, &["**/entry-29?9"])).len(), 10);
    assert_eq!(names(&found(&place, &["report*"])), [""; 0]);
    assert_eq!(names(&found(&place, &["-i", "report*"])), ["/etc/Report 2.odt"]);
    assert_eq!(
        names(&found(&place, &["*", "--size", "+4K", "--size", "-5K"])),
        ["/etc/Report 2.odt"]
    );
    assert_eq!(names(&found(&place, &["et*", "--kind", "directory"])), ["/etc"]);
    assert_eq!(names(&found(&place, &["host*", "--newer", "1h"])), ["/etc/hostname"]);
    assert_eq!(names(&found(&place, &["host*", "--older", "1h"])), [""; 0]);
    assert_eq!(names(&found(&place, &["secret", "--in", "web01@-2"])), ["/etc/secret"]);
    // What a volume has is found there, covered or not; below a path nothing is missing.
    let below = |place_name: &str, pattern: &str| {
        let done = place.run(&["find", "--json", pattern, "--in", place_name]);
        names(&done.code(0).json())
    };
    assert_eq!(below("web01:disk0p1", "covered"), ["/srv/data/covered"]);
    assert_eq!(below("web01//etc", "*name"), ["/etc/hostname"]);
    assert_eq!(below("web01//etc/down", "file"), ["/srv/data/deep/er/file"]);

    let versions = |pattern: &str| -> Vec<(u64, u64)> {
        let found = found(&place, &[pattern, "--in", "web01", "--history"]);
        let files = found["files"].as_array().expect("files");
        assert_eq!(files.len(), 1, "{found}");
        let all = files[0]["versions"].as_array().expect("versions").iter();
        all.map(|v| {
            (v["size_bytes"].as_u64().expect("a size"), v["points"].as_u64().expect("points"))
        })
        .collect()
    };
    assert_eq!(versions("hostname"), [(6, 1), (13, 2)]);
    assert_eq!(versions("secret"), [(12, 1)]);
    assert_eq!(versions("Report*"), [(5000, 2)]);
    let shown = place.run(&["find", "hostname", "--in", "web01", "--history"]).code(3).stdout;
    assert!(shown.contains("web01//etc/hostname") && shown.contains("in 2 points"), "{shown}");

    for (args, code) in [
        (&["[", "--in", "web01"][..], 2),
        (&["x", "--size", "5"], 2),
        (&["x", "--newer", "soon"], 2),
        (&["x", "--in", "web02"], 16),
        (&["x", "--in", "web01@-1", "--history"], 2),
        (&["x", "--in", "web01//no/such"], 16),
    ] {
        place.run(&[&["find"], args].concat()).code(code);
    }
}

#[test]
fn two_points_are_compared_by_their_files() {
    if guest_disk::cannot("two_points_are_compared_by_their_files") {
        return;
    }
    let (place, _disk) = with_history();
    let diff = place.run(&["diff", "web01@-2//etc", "web01", "--json"]).code(0).json();
    let changes = |diff: &Value| -> Vec<(String, String)> {
        let all = diff["changes"].as_array().expect("changes").iter();
        all.map(|c| (text(c, "path"), text(c, "change"))).collect()
    };
    let expected = [
        (".", "metadata"),
        ("Report 2.odt", "added"),
        ("hostname", "content"),
        ("round", "kind"),
        ("secret", "removed"),
    ];
    let expected: Vec<(String, String)> =
        expected.iter().map(|(path, change)| (path.to_string(), change.to_string())).collect();
    assert_eq!(changes(&diff), expected);
    // The whole guest: across its volumes, and what it mounts from elsewhere is told.
    let whole = place.run(&["diff", "web01@-2//", "web01//", "--json"]).code(3).json();
    let whole = changes(&whole);
    assert!(whole.contains(&("srv/data/again".into(), "metadata".into())), "{whole:?}");
    assert!(whole.contains(&("etc/hostname".into(), "content".into())), "{whole:?}");
    assert!(!whole.iter().any(|(path, _)| path.contains("entry-")), "{whole:?}");
    let same = place.run(&["diff", "web01@-1//etc", "web01", "--exit-code"]).code(0).stdout;
    assert!(same.contains("no difference"), "{same}");
    let shown = place.run(&["diff", "web01@-2//etc", "web01", "--exit-code"]).code(5).stdout;
    for line in ["+ Report 2.odt", "- secret", "M hostname  (6 B -> 13 B)", "T round"] {
        assert!(shown.contains(line), "{line}: {shown}");
    }
    assert_eq!(
        place.run(&["diff", "web01@-2//etc/hostname", "web01", "--read", "all"]).code(0).stdout,
        place.run(&["diff", "web01@-2//etc/hostname", "web01"]).code(0).stdout,
    );
    place.run(&["diff", "web01", "web01//etc"]).code(2);
    place.run(&["diff", "web01//etc", "web02"]).code(16);
    place.run(&["diff", "web01//nothing", "web01"]).code(16);
}

#[test]
fn files_go_into_archives() {
    if guest_disk::cannot("files_go_into_archives") {
        return;
    }
    let (place, _disk) = with_history();
    place.run(&["get", "web01//etc", "--tar", "etc.tar"]).code(0);
    let plain = |path: &str| place.path(path).to_str().expect("plain").to_owned();
    fs::create_dir(place.path("out")).expect("a directory");
    guest_disk::run("tar", &["--numeric-owner", "-xpf", &plain("etc.tar"), "-C", &plain("out")]);
    assert_eq!(fs::read(place.path("out/etc/hostname")).expect("it is there"), b"web01 of old\n");
    let target = fs::read_link(place.path("out/etc/link")).expect("a link");
    assert_eq!(target.to_str(), Some("/etc/hostname"));
    // A name that is taken stays as it is.
    place.run(&["get", "web01@-2//etc", "--tar", "etc.tar"]).code(17);
    place.run(&["get", "web01@-2//etc", "--tar", "etc.tar", "--overwrite"]).code(0);
    let listed = guest_disk::run("tar", &["-tf", &plain("etc.tar")]);
    assert!(listed.contains("etc/secret"), "{listed}");

    // Through a pipe; what is told goes to the other output.
    let mut get = place.command(&["get", "web01//srv/data/deep", "--tar", "-"]);
    let mut get = get.stdout(Stdio::piped()).spawn().expect("it runs");
    let listed = Command::new("tar").arg("-t").stdin(get.stdout.take().expect("a pipe")).output();
    assert!(get.wait().expect("it ends").success());
    let listed = String::from_utf8(listed.expect("tar runs").stdout).expect("text");
    assert!(listed.contains("deep/entry-2999"));

    let told = place.run(&["get", "web01//etc", "--zip", "etc.zip", "--json"]).code(0).json();
    assert!(told["notes_total"].as_u64().expect("a number") > 0, "the loss is told: {told}");
    let listed = guest_disk::run("unzip", &["-l", &plain("etc.zip")]);
    assert!(listed.contains("etc/Report 2.odt"), "{listed}");
    place.run(&["get", "web01//etc", "--tar", "x.tar", "--zip", "x.zip"]).code(2);
    place.run(&["get", "web01//etc", "--tar", "no/such/x.tar"]).code(16);
    assert!(!place.path("x.tar").exists());
    // The whole system, over its volumes.
    place.run(&["get", "web01//", "--tar", "all.tar"]).code(3);
    let listed = guest_disk::run("tar", &["-tf", &plain("all.tar")]);
    for name in ["srv/data/deep/entry-0", "etc/hostname"] {
        assert!(listed.lines().any(|line| line.trim_start_matches("./") == name), "{name}");
    }
    assert!(!listed.contains("covered"));
}
