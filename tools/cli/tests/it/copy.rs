//! `backstay copy`: two repositories with keys of their own, and everything that can get between.

use rustix::process::Signal;
use serde_json::Value;

use super::support::{Place, Ran, noise, sample};

/// Two repositories: `repo` with the key `key`, and `other` with the key `other-key`.
fn two(chunk_size: &str) -> Place {
    let place = Place::with_repository();
    let init = [
        "repo",
        "init",
        "--new-key-file",
        "other-key",
        "--chunk-size",
        chunk_size,
        "--repo",
        "other",
    ];
    let mut command = place.command(&init);
    command.env_remove("BACKSTAY_KEY_FILE");
    Ran::of(command.output().expect("the binary runs")).code(0);
    place
}

const TO: [&str; 4] = ["--to", "other", "--to-key-file", "other-key"];

fn copy(place: &Place, args: &[&str]) -> Ran {
    place.run(&[&["copy"][..], &TO, args].concat())
}

/// The binary with the other repository.
fn other(place: &Place, args: &[&str]) -> Ran {
    let mut command = place.command(args);
    command.env("BACKSTAY_REPO", "other").env("BACKSTAY_KEY_FILE", "other-key");
    Ran::of(command.output().expect("the binary runs"))
}

fn outcomes(document: &Value) -> Vec<String> {
    let points = document["points"].as_array().expect("points");
    points.iter().map(|p| p["outcome"].as_str().expect("an outcome").to_owned()).collect()
}

fn restored(place: &Place, name: &str) -> Vec<u8> {
    let mut command = place.command(&["restore", "disk", name, "--to", "-"]);
    command.env("BACKSTAY_REPO", "other").env("BACKSTAY_KEY_FILE", "other-key");
    let output = command.output().expect("the binary runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

#[test]
fn points_are_copied_once_and_can_be_restored_from_the_copy() {
    let place = two("4K");
    let mut content = sample(1);
    let image = place.image("web01.raw", &content);
    place.run(&["backup", &image, "-m", "web01", "--note", "the first"]).code(0);
    let before = content.clone();
    content[100] ^= 1;
    place.image("web01.raw", &content);
    let last = place.run(&["backup", &image, "-m", "web01", "--json"]).code(0).json();
    place.run(&["backup", &image, "-m", "db1"]).code(0);

    let planned = copy(&place, &["--all", "--dry-run", "--json"]).code(0).json();
    assert_eq!(outcomes(&planned), ["planned"; 3]);
    let nothing = other(&place, &["list", "--json"]).code(0).json();
    assert_eq!(nothing["points"].as_array().map(Vec::len), Some(0));

    let one = copy(&place, &["web01@latest", "--json"]).code(0).json();
    assert_eq!(outcomes(&one), ["copied"]);
    assert_eq!(one["points"][0]["id"], last["point"]["id"]);
    let web = copy(&place, &["--machine", "web01", "--verify", "full", "--json"]).code(0).json();
    assert_eq!(outcomes(&web), ["copied", "present"]);
    // The two differ in one chunk: 64 KiB are read, and less is stored.
    assert_eq!(web["points"][0]["read_bytes"], 65536);
    assert!(web["points"][0]["verified_bytes"].as_u64() > Some(1 << 20));
    let people = copy(&place, &["--all"]).code(0).stdout;
    assert!(people.contains("copied 1") && people.contains("there already 2"), "{people}");
    let again = copy(&place, &["--all", "--json"]).code(0).json();
    assert_eq!((outcomes(&again), &again["complete"]), (vec!["present".into(); 3], &true.into()));

    assert!(restored(&place, "web01@-1") == before && restored(&place, "web01") == content);
    let shown = other(&place, &["show", "web01", "--json"]).code(0).json();
    assert_eq!(shown["copied_from"]["point"], last["point"]["id"]);
    assert_eq!(shown["time"], last["point"]["time"]);
    let people = other(&place, &["show", "web01@-1"]).code(0).stdout;
    assert!(people.contains("copy of") && people.contains("the first"), "{people}");
    let check = other(&place, &["repo", "check", "--read-data", "--json"]).code(0).json();
    assert_eq!(check["verdict"], "pass");
}

#[test]
fn each_side_has_its_own_key() {
    let place = two("64K");
    let image = place.image("a.raw", &noise(1, 100_000));
    place.run(&["backup", &image, "-m", "a"]).code(0);
    // Without a key of its own the other side gets the one of the environment, which is wrong.
    place.run(&["copy", "--to", "other", "--all"]).code(12);
    let both = [
        "copy",
        "--from",
        "repo",
        "--from-key-file",
        "key",
        "--to",
        "other",
        "--to-key-file",
        "other-key",
        "--all",
    ];
    let run = |args: &[&str]| {
        let mut command = place.command(args);
        command.env_remove("BACKSTAY_KEY_FILE").env_remove("BACKSTAY_REPO");
        Ran::of(command.output().expect("the binary runs"))
    };
    run(&both).code(0);
    run(&both[..both.len() - 3]).code(2);
    let error = run(&["copy", "--from", "repo", "--to", "other", "--all", "--json"]).code(2);
    assert!(error.json_error()["try"].to_string().contains("--key-file"), "{}", error.stderr);
    run(&["copy", "--to", "other", "--all"]).code(2);
    // A passphrase beside a key file.
    std::fs::write(place.path("phrase"), "correct horse\n").expect("written");
    let mut init =
        place.command(&["repo", "init", "--repo", "third", "--passphrase-file", "phrase"]);
    Ran::of(init.env_remove("BACKSTAY_KEY_FILE").output().expect("the binary runs")).code(0);
    let copied = place.run(&[
        "copy",
        "--to",
        "third",
        "--to-passphrase-command",
        "cat phrase",
        "--all",
        "--json",
    ]);
    assert_eq!(outcomes(&copied.code(0).json()), ["copied"]);
}

#[test]
fn wrong_usage_is_told() {
    let place = two("64K");
    copy(&place, &[]).code(2);
    copy(&place, &["--all", "--machine", "x"]).code(2);
    copy(&place, &["--machine", "x"]).code(16);
    copy(&place, &["x@latest"]).code(16);
    place.run(&["copy", "--to", "repo", "--all"]).code(2);
    let nowhere = place.run(&["copy", "--to", "nowhere", "--all"]).code(10);
    assert!(nowhere.stderr.contains("repo init --repo"), "{}", nowhere.stderr);
}

#[test]
fn a_damaged_point_is_named_and_the_others_arrive() {
    let place = two("64K");
    for (machine, seed) in [("small", 1), ("large", 2), ("late", 3)] {
        let len = if machine == "large" { 3 << 20 } else { 100_000 };
        let image = place.image("a.raw", &noise(seed, len));
        place.run(&["backup", &image, "-m", machine]).code(0);
    }
    let pack = place.largest_file("repo/packs");
    let mut bytes = std::fs::read(&pack).expect("a pack");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&pack, bytes).expect("written");
    let ran = copy(&place, &["--all", "--json"]).code(3);
    let document = ran.json();
    assert_eq!(outcomes(&document), ["copied", "failed", "copied"]);
    assert_eq!((&document["failed"], &document["complete"]), (&1.into(), &false.into()));
    let error = document["points"][1]["error"].as_str().expect("an error");
    assert!(error.contains("disk0") && error.contains("byte "), "{error}");
    let quiet = copy(&place, &["--all", "--quiet"]).code(3);
    assert!(
        quiet.stdout.is_empty() && quiet.stderr.contains("not copied: large@"),
        "{}",
        quiet.stderr
    );
    assert!(restored(&place, "late") == noise(3, 100_000));
}

#[test]
fn a_copy_that_is_killed_goes_on_where_it_was() {
    let place = two("64K");
    let mut content = noise(5, 96 << 20);
    let image = place.image("a.raw", &content);
    place.run(&["backup", &image, "-m", "a"]).code(0);
    for at in 1..4 {
        content[at << 20] ^= 1;
        place.image("a.raw", &content);
        place.run(&["backup", &image, "-m", "a"]).code(0);
    }
    let args = [&["copy"][..], &TO, &["--all", "--workers", "1", "--progress", "json"]].concat();
    let kills = [
        (Signal::KILL, "\"phase\":\"copy 1/4\""),
        (Signal::KILL, "\"phase\":\"verify 1/4\""),
        (Signal::INT, "\"phase\":\"copy 1/4\""),
        (Signal::KILL, "\"phase\":\"copy 3/4\""),
    ];
    for (nth, (signal, phase)) in kills.into_iter().enumerate() {
        let present = outcomes(&copy(&place, &["--all", "--dry-run", "--json"]).code(0).json());
        let label = phase.rsplit(' ').next().and_then(|l| l.get(..1)).and_then(|l| l.parse().ok());
        let done = present.iter().take_while(|o| *o == "present").count();
        if label.is_none_or(|label: usize| label <= done) {
            continue; // The one before was quick, and this phase will not come.
        }
        let mut running = place.start(&args);
        running.wait_for_stderr(phase);
        running.signal(signal);
        let code = running.end().code;
        let stopped = if signal == Signal::INT { 130 } else { -1 };
        // The first has much to do; the others may be done by the time the signal comes.
        let quick = nth > 0 && code == 0;
        assert!(code == stopped || quick, "{phase}: {code}");
        other(&place, &["repo", "check"]).code(0);
    }
    let rest = copy(&place, &["--all", "--json"]).code(0).json();
    assert!(outcomes(&rest).contains(&"present".to_owned()), "{rest}");
    let list = other(&place, &["list", "--json"]).code(0).json();
    assert_eq!(list["points"].as_array().map(Vec::len), Some(4));
    assert!(restored(&place, "a") == content);
    other(&place, &["repo", "check", "--read-data"]).code(0);
}
