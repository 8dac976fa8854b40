//! Keys and passphrases: where they may come from, and where they must never appear.

use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};

use super::support::{BIN, Place, Ran, command, sample};

const CANARY: &str = "correct-horse-battery-canary";

fn passphrase_file(place: &Place) -> String {
    let path = place.path("passphrase");
    std::fs::write(&path, format!("{CANARY}\n")).expect("written");
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).expect("private");
    place.text("passphrase")
}

#[test]
fn a_passphrase_is_one_and_the_same_from_file_command_and_environment() {
    let place = Place::new();
    let file = passphrase_file(&place);
    let mut said = String::new();
    let mut keep = |ran: Ran| {
        said.push_str(&ran.stdout);
        said.push_str(&ran.stderr);
    };
    keep(place.run(&["-vv", "repo", "init", "--passphrase-file", &file]).code(0));
    let cat = format!("cat {file}");
    keep(place.run(&["-vv", "list", "--passphrase-command", &cat]).code(0));
    let by_environment =
        place.command(&["-vv", "list", "--json"]).env("BACKSTAY_PASSPHRASE", CANARY).output();
    keep(Ran::of(by_environment.expect("the binary runs")).code(0));
    // A wrong one, in all its glory, is not told either.
    let wrong = place.command(&["-vv", "list"]).env("BACKSTAY_PASSPHRASE", "wrong-canary").output();
    let wrong = Ran::of(wrong.expect("the binary runs")).code(12);
    assert!(wrong.stderr.contains("repo key list"), "{}", wrong.stderr);
    keep(wrong);
    let failing = format!("echo {CANARY}; exit 3");
    keep(place.run(&["-vv", "list", "--passphrase-command", &failing]).code(2));
    assert!(!said.contains("canary"), "a secret was printed: {said}");
}

#[test]
fn empty_missing_and_huge_secrets_are_refused_by_name() {
    let place = Place::new();
    std::fs::write(place.path("empty"), "\n").expect("written");
    std::fs::write(place.path("huge"), vec![b'x'; 100_000]).expect("written");
    for (args, text) in [
        (["--passphrase-file", "empty"], "the passphrase is empty"),
        (["--passphrase-command", "true"], "the passphrase is empty"),
        (["--passphrase-command", "yes"], "more than 4096 bytes"),
        (["--passphrase-file", "huge"], "larger than 4096 bytes"),
        (["--key-file", "huge"], "larger than 65536 bytes"),
        (["--key-file", "nowhere"], "cannot read the key file"),
        (["--key-file", "/dev/null"], "the key file is empty"),
    ] {
        let ran = place.run(&["repo", "init", args[0], args[1]]).code(2);
        assert!(ran.stderr.contains(text), "{args:?}: {}", ran.stderr);
        assert!(!place.path("repo").exists(), "{args:?}: nothing is made");
    }
    let both = place
        .command(&["repo", "init"])
        .env("BACKSTAY_PASSPHRASE", "a")
        .env("BACKSTAY_KEY_FILE", "b")
        .output();
    let both = Ran::of(both.expect("the binary runs")).code(2);
    assert!(both.stderr.contains("BACKSTAY_KEY_FILE, BACKSTAY_PASSPHRASE"), "{}", both.stderr);
    place.run(&["repo", "init", "--key-file", "a", "--passphrase-file", "b"]).code(2);
}

#[test]
fn a_new_key_file_is_private_and_never_overwritten() {
    let place = Place::with_repository();
    let meta = std::fs::metadata(place.path("key")).expect("the key");
    assert_eq!((meta.len(), meta.permissions().mode() & 0o777), (32, 0o600));
    let before = std::fs::read(place.path("key")).expect("the key");
    let key = place.text("key");
    let again = place.run(&["--repo", "other", "repo", "init", "--new-key-file", &key]).code(17);
    assert!(again.stderr.contains("--key-file"), "{}", again.stderr);
    assert_eq!(std::fs::read(place.path("key")).expect("the key"), before);
    // A repository that cannot be made leaves no key behind.
    std::fs::write(place.path("file"), "in the way").expect("written");
    let ran = place.run(&["--repo", "file", "repo", "init", "--new-key-file", "unused"]);
    assert_ne!(ran.code, 0);
    assert!(!place.path("unused").exists(), "{}", ran.stderr);
}

#[test]
fn keys_are_added_listed_and_removed_but_not_the_last() {
    let place = Place::new();
    let key = place.text("key");
    place.run(&["repo", "init", "--new-key-file", &key, "--no-recovery-key"]).code(0);
    let added = place
        .run(&["repo", "key", "add", "--new-key-file", "second", "--label", "node2", "--json"])
        .code(0)
        .json();
    let id = added["key"]["id"].as_str().expect("an id").to_owned();
    place.run(&["list", "--key-file", "second"]).code(0);

    let listed = place.run(&["repo", "key", "list", "--json"]).code(0).json();
    assert_eq!(listed["keys"].as_array().map(Vec::len), Some(2));
    let mut keyless = command(&place.path(""));
    let keyless = keyless.args(["repo", "key", "list", "--repo", &place.text("repo")]).output();
    let keyless = Ran::of(keyless.expect("the binary runs")).code(0);
    assert!(keyless.stdout.contains("node2") && keyless.stdout.contains("key_file"));

    let asked = place.run(&["repo", "key", "remove", &id]).code(19);
    assert!(asked.stderr.contains("--yes"), "{}", asked.stderr);
    place.run(&["list", "--key-file", "second"]).code(0);
    place.run(&["repo", "key", "remove", &id, "--yes"]).code(0);
    place.run(&["list", "--key-file", "second"]).code(12);
    place.run(&["repo", "key", "remove", &id, "--yes"]).code(16);

    let first = listed["keys"].as_array().into_iter().flatten();
    let first = first.map(|key| key["id"].as_str().unwrap_or_default()).find(|key| *key != id);
    let last = place.run(&["repo", "key", "remove", first.expect("a first key"), "--yes"]);
    assert_ne!(last.code, 0, "the last key stays");
    place.run(&["list"]).code(0);
}

#[test]
fn without_a_terminal_nothing_is_asked() {
    let place = Place::new();
    let ran = place.run(&["repo", "init"]).code(2);
    for option in ["--key-file", "--passphrase-file", "--new-key-file", "--unencrypted"] {
        assert!(ran.stderr.contains(option), "{}", ran.stderr);
    }
    assert!(!place.path("repo").exists());
    place.run(&["repo", "init", "--passphrase-file", &passphrase_file(&place)]).code(0);
    let ran = place.run(&["list"]).code(2);
    assert!(ran.stderr.contains("--passphrase-file"), "{}", ran.stderr);
}

#[test]
fn on_a_terminal_a_new_passphrase_is_asked_for_twice() {
    let place = Place::new();
    let on_terminal = |line: &str, typed: &str| {
        // script(1) of bsdutils, which Debian calls essential, gives the command a terminal.
        let mut script = Command::new("script");
        script.args(["-qec", line, "/dev/null"]).env_remove("BACKSTAY_PASSPHRASE");
        script.env("HOME", place.path("")).env("BACKSTAY_CACHE_DIR", place.path("cache"));
        script.env("BACKSTAY_REPO", place.path("repo")).env_remove("BACKSTAY_KEY_FILE");
        let child = script.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = child.spawn().expect("script (package bsdutils) is installed");
        let mut stdin = child.stdin.take().expect("a pipe");
        // A terminal is emptied when echo is turned off, so each line waits for its question.
        for line in typed.split_inclusive('\n') {
            std::thread::sleep(std::time::Duration::from_millis(700));
            std::io::Write::write_all(&mut stdin, line.as_bytes()).expect("typed");
        }
        let output = child.wait_with_output().expect("its end");
        Ran::of(output)
    };
    let differ = on_terminal(&format!("{BIN} repo init"), "one canary\nother canary\n").code(2);
    assert!(differ.stdout.contains("differ"), "{}", differ.stdout);
    let sheet = place.path("sheet");
    let init = format!("{BIN} repo init --new-recovery-key-file {}", sheet.display());
    let made = on_terminal(&init, "one canary\none canary\n").code(0);
    assert!(!made.stdout.contains("canary"), "what is typed is not shown: {}", made.stdout);
    on_terminal(&format!("{BIN} list"), "one canary\n").code(0);
    // The recovery key answers the same question, and its typing errors are told.
    let sheet = std::fs::read_to_string(sheet).expect("the recovery key");
    on_terminal(&format!("{BIN} list"), &sheet).code(0);
    let wrong = format!("{}{}", if sheet.starts_with('7') { "8" } else { "7" }, &sheet[1..]);
    let wrong = on_terminal(&format!("{BIN} list"), &wrong).code(2);
    assert!(wrong.stdout.contains("group 1 of 13"), "{}", wrong.stdout);
    let refused = on_terminal(&format!("{BIN} list --no-input"), "").code(2);
    assert!(refused.stdout.contains("--passphrase-file"), "{}", refused.stdout);
}

#[test]
fn unencrypted_is_possible_but_only_when_said() {
    let place = Place::new();
    place.run(&["repo", "init", "--unencrypted"]).code(0);
    let image = place.image("a.raw", &sample(2));
    place.run(&["backup", &image, "-m", "a"]).code(0);
    let shown = place.run(&["repo", "show", "--json"]).code(0).json();
    assert_eq!(shown["encryption"], "none");
    place.run(&["--repo", "b", "repo", "init", "--unencrypted", "--key-file", "x"]).code(2);
}
