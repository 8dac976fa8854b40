//! Every failure users meet: its exit code, its object, its remedy, and that nothing is lost.

use std::io::{Seek as _, SeekFrom, Write as _};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use super::support::{Place, Ran, is_root, noise, sample, skipped};

#[test]
fn no_repository() {
    let place = Place::new();
    let args = ["list", "--key-file", "nowhere"];
    let ran = place.run(&args).code(10);
    assert!(ran.stderr.starts_with("error: "), "{}", ran.stderr);
    assert!(ran.stderr.contains("  what   file://"), "{}", ran.stderr);
    assert!(ran.stderr.contains("backstay repo init"), "{}", ran.stderr);
    let error = place.run(&["list", "--json"]).code(10).json_error();
    assert_eq!(error["kind"], "no_repository");
    assert!(error["try"][0].as_str().is_some_and(|next| next.contains("repo init")));
    // A directory with other things in it is no repository either, and stays as it is.
    std::fs::create_dir(place.path("repo")).expect("made");
    std::fs::write(place.path("repo/letter"), "dear").expect("written");
    place.run(&["list"]).code(10);
    let refused = place.run(&["repo", "init", "--unencrypted"]);
    assert_ne!(refused.code, 0);
    assert_eq!(std::fs::read_dir(place.path("repo")).expect("there").count(), 1);
}

#[test]
fn wrong_usage() {
    let place = Place::with_repository();
    for args in [
        &["list", "--bogus"][..],
        &["frobnicate"],
        &["restore"],
        &["backup", "x.raw"],
        &["backup", "x.raw", "--machine", "a/b"],
        &["--repo", "s3://user:canary@bucket", "list"],
        &["--repo", "gopher://x", "list"],
        &["--repo", "other", "repo", "init", "--unencrypted", "--chunk-size", "5K"],
        &["mount", "nbd", "x", "--listen", "0.0.0.0:0"],
        &["show", "@@"],
    ] {
        let ran = place.run(args).code(2);
        assert!(!ran.stderr.is_empty() && ran.stdout.is_empty(), "{args:?}");
        assert!(!ran.stderr.contains("canary"), "{}", ran.stderr);
    }
    let none = Ran::of(place.command(&["list"]).env("BACKSTAY_REPO", "").output().expect("runs"));
    assert!(none.code(2).stderr.contains("--repo"));
    let error = place.run(&["list", "--bogus", "--json"]).code(2).json_error();
    assert_eq!(error["kind"], "usage");
}

#[test]
fn a_second_init_changes_nothing() {
    let place = Place::with_repository();
    let before = std::fs::read(place.path("key")).expect("the key");
    let ran = place.run(&["repo", "init", "--new-key-file", "other"]).code(17);
    assert!(ran.stderr.contains("repo show"), "{}", ran.stderr);
    assert!(!place.path("other").exists());
    assert_eq!(std::fs::read(place.path("key")).expect("the key"), before);
    place.run(&["list"]).code(0);
}

#[test]
fn names_that_are_not_there() {
    let place = Place::with_repository();
    let image = place.image("a.raw", &sample(3));
    place.run(&["backup", &image, "-m", "web01"]).code(0);
    for args in [
        &["show", "web02"][..],
        &["show", "web01@2001-01-01"],
        &["show", "@zzzzzz"],
        &["list", "web02"],
        &["restore", "disk", "web01:disk9", "--to", "x.raw"],
        &["diff", "web01", "web02"],
        &["mount", "nbd", "web02", "--socket", "s"],
        &["mount", "image", "no-such-directory"],
        &["backup", "no-such-image.raw", "-m", "web01"],
    ] {
        let ran = place.run(args).code(16);
        assert!(ran.stderr.contains("error: "), "{args:?}: {}", ran.stderr);
    }
    assert!(place.run(&["show", "web02"]).stderr.contains("web01"), "what is there is named");
    assert!(!place.path("x.raw").exists());
}

#[test]
fn an_existing_target_stays_unless_it_may_go() {
    let place = Place::with_repository();
    let content = sample(4);
    let image = place.image("a.raw", &content);
    place.run(&["backup", &image, "-m", "a"]).code(0);
    place.image("there.raw", b"precious");
    let ran = place.run(&["restore", "disk", "a", "--to", "there.raw"]).code(17);
    assert!(ran.stderr.contains("--overwrite"), "{}", ran.stderr);
    assert_eq!(std::fs::read(place.path("there.raw")).expect("there"), b"precious");
    place.run(&["restore", "disk", "a", "--to", "there.raw", "--overwrite"]).code(0);
    assert!(std::fs::read(place.path("there.raw")).expect("there") == content);
}

#[test]
fn damage_is_found_named_and_never_restored() {
    let place = Place::with_repository();
    let image = place.image("a.raw", &noise(7, 4 << 20));
    place.run(&["backup", &image, "-m", "web01"]).code(0);
    let pack = place.largest_file("repo/packs");
    let was = std::fs::read(&pack).expect("the pack");
    let mut bytes = was.clone();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x10;
    // Packs may be read-only files; writing one is not what users do.
    std::fs::remove_file(&pack).expect("removed");
    std::fs::write(&pack, &bytes).expect("written");

    let ran = place.run(&["restore", "disk", "web01", "--to", "out.raw"]).code(13);
    assert!(ran.stderr.contains("repo check"), "{}", ran.stderr);
    assert!(!place.path("out.raw").exists(), "no half file");
    let left: Vec<_> = std::fs::read_dir(place.path(""))
        .expect("the place")
        .map(|entry| entry.expect("an entry").file_name())
        .filter(|name| name.to_string_lossy().contains("out"))
        .collect();
    assert!(left.is_empty(), "left behind: {left:?}");

    let check = place.run(&["repo", "check", "--read-data", "--json"]).code(13);
    let document = check.json();
    assert_eq!(document["verdict"], "fail");
    assert!(document["damage"].as_array().is_some_and(|damage| !damage.is_empty()), "{document}");
    let people = place.run(&["repo", "check", "--read-data"]).code(13).stdout;
    assert!(people.contains("fail") && people.contains("web01"), "{people}");
    let keyless = place.run(&["repo", "check", "--without-key", "--json"]).code(13).json();
    assert_eq!(keyless["verdict"], "fail");

    std::fs::write(&pack, &was).expect("written");
    place.run(&["repo", "check", "--read-data"]).code(0);
}

#[test]
fn an_image_that_changes_while_it_is_read_makes_no_point() {
    let place = Place::with_repository();
    let image = place.image("busy.raw", &noise(8, 64 << 20));
    let stop = AtomicBool::new(false);
    let ran = std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut file = std::fs::OpenOptions::new().write(true).open(&image).expect("the image");
            let mut at = 0u64;
            while !stop.load(Ordering::Relaxed) {
                at = (at + 7_919_000) % (64 << 20);
                file.seek(SeekFrom::Start(at)).expect("a place");
                file.write_all(b"changed").expect("written");
            }
        });
        let ran = place.run(&["backup", &image, "-m", "busy", "--workers", "1", "--json"]);
        stop.store(true, Ordering::Relaxed);
        ran
    });
    let error = ran.code(17).json_error();
    assert!(error["message"].as_str().is_some_and(|text| text.contains("busy.raw")), "{error}");
    let list = place.run(&["list", "--json"]).code(0).json();
    assert_eq!(list["points"].as_array().map(Vec::len), Some(0));
    place.run(&["backup", &image, "-m", "busy"]).code(0);
}

/// A small file system of its own, so that full is full.
struct Tmpfs<'a>(&'a str);

impl<'a> Tmpfs<'a> {
    fn mount(path: &'a str, size: &str) -> Self {
        std::fs::create_dir(path).expect("made");
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={size}"), "backstay-test", path])
            .status();
        assert!(mounted.expect("mount runs").success(), "root can mount a tmpfs");
        Self(path)
    }
}

impl Drop for Tmpfs<'_> {
    fn drop(&mut self) {
        let _ = Command::new("umount").args(["-l", self.0]).status();
    }
}

#[test]
fn a_full_disk_is_told_and_loses_nothing() {
    if !is_root() {
        skipped("a_full_disk_is_told_and_loses_nothing: mounting a tmpfs needs root");
        return;
    }
    let place = Place::new();
    let small = place.text("small");
    let tmpfs = Tmpfs::mount(&small, "24m");
    let repo = format!("{small}/repo");
    let run = |args: &[&str]| {
        let mut command = place.command(args);
        Ran::of(command.env("BACKSTAY_REPO", &repo).output().expect("the binary runs"))
    };
    run(&["repo", "init", "--unencrypted"]).code(0);
    let fits = place.image("fits.raw", &noise(1, 2 << 20));
    run(&["backup", &fits, "-m", "fits"]).code(0);
    let large = place.image("large.raw", &noise(2, 48 << 20));
    let error = run(&["backup", &large, "-m", "large", "--json"]).code(18).json_error();
    assert_eq!(error["kind"], "refused");
    assert!(error["try"].to_string().contains("remove recovery points"), "{error}");

    let list = run(&["list", "--json"]).code(0).json();
    assert_eq!(list["points"].as_array().map(Vec::len), Some(1));
    run(&["repo", "check", "--read-data"]).code(0);

    // The same for a restore: no half file under the final name, and the space is free again.
    let target = format!("{small}/out.raw");
    place.run(&["repo", "init", "--unencrypted"]).code(0);
    place.run(&["backup", &large, "-m", "large"]).code(0);
    place.run(&["restore", "disk", "large", "--to", &target]).code(18);
    let left: Vec<_> = std::fs::read_dir(&small).expect("there").collect();
    assert_eq!(left.len(), 1, "only the repository is there: {left:?}");
    drop(tmpfs);
}
