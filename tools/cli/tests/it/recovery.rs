//! Recovery keys and rotations, as a person meets them.

use std::os::unix::fs::PermissionsExt;
use std::process::Stdio;

use serde_json::Value;

use super::support::{Place, Ran, command, sample};

/// The binary with this place's repository and no key.
fn keyless(place: &Place, args: &[&str]) -> std::process::Command {
    let mut command = command(&place.path(""));
    command.env("BACKSTAY_REPO", place.path("repo")).current_dir(place.path("")).args(args);
    command
}

/// The same with the recovery key in the environment.
fn by_recovery(place: &Place, key: &str, args: &[&str]) -> Ran {
    let mut command = keyless(place, args);
    Ran::of(command.env("BACKSTAY_RECOVERY_KEY", key).output().expect("the binary runs"))
}

/// A place with a repository, a key file, and the recovery key as it was printed.
fn place_with_recovery() -> (Place, String) {
    let place = Place::new();
    let ran = place.run(&["repo", "init", "--new-key-file", &place.text("key")]).code(0);
    let text = ran.stdout.lines().skip_while(|l| *l != "recovery key:").nth(1);
    (place, text.expect("a recovery key").to_owned())
}

fn keys(place: &Place) -> Vec<Value> {
    let listed = place.run(&["repo", "key", "list", "--json"]).code(0).json();
    listed["keys"].as_array().expect("keys").clone()
}

fn id_of(keys: &[Value], kind: &str) -> String {
    let key = keys.iter().find(|key| key["kind"] == kind).expect("a key of the kind");
    key["id"].as_str().expect("an id").to_owned()
}

#[test]
fn the_sheet_alone_restores() {
    let (place, sheet) = place_with_recovery();
    let image = sample(1);
    place.run(&["backup", &place.image("a.raw", &image), "-m", "a"]).code(0);
    // The machine burned down: neither key file nor cache are left.
    std::fs::remove_file(place.path("key")).expect("removed");
    std::fs::remove_dir_all(place.path("cache")).expect("removed");
    let typed = sheet.to_lowercase().replace('-', " ");
    by_recovery(&place, &typed, &["restore", "disk", "a", "--to", "out.raw"]).code(0);
    assert!(std::fs::read(place.path("out.raw")).expect("restored") == image);
    std::fs::write(place.path("sheet"), &sheet).expect("written");
    Ran::of(keyless(&place, &["list", "--recovery-key-file", "sheet"]).output().expect("it runs"))
        .code(0);
    // And it makes a new key, so that work goes on as before.
    by_recovery(&place, &sheet, &["repo", "key", "rotate", "first key", "--new-key-file", "key"])
        .code(0);
    place.run(&["list"]).code(0);
}

#[test]
fn a_typing_error_is_told_at_once_and_where_and_a_wrong_sheet_is_a_wrong_key() {
    let (place, sheet) = place_with_recovery();
    let mut groups: Vec<String> = sheet.split('-').map(str::to_owned).collect();
    let other = if groups[4].starts_with('7') { "8" } else { "7" };
    groups[4].replace_range(0..1, other);
    let wrong = by_recovery(&place, &groups.join("-"), &["list"]).code(2);
    assert!(wrong.stderr.contains("group 5 of 13"), "{}", wrong.stderr);
    let short = by_recovery(&place, &sheet[..70], &["list"]).code(2);
    assert!(short.stderr.contains("letters"), "{}", short.stderr);
    // Before any repository is looked at.
    let nowhere = by_recovery(&place, "1", &["list", "--repo", "nowhere"]);
    assert_ne!(nowhere.code, 13, "{}", nowhere.stderr);

    let (_other, other_sheet) = place_with_recovery();
    let refused = by_recovery(&place, &other_sheet, &["-vv", "list"]).code(12);
    for ran in [&wrong, &short, &refused] {
        let said = format!("{}{}", ran.stdout, ran.stderr);
        for sheet in [&sheet, &other_sheet] {
            assert!(sheet.split('-').all(|group| !said.contains(group)), "{said}");
        }
        assert!(!said.contains("damage"), "a wrong key is no damage: {said}");
    }
    let place = Place::new();
    place.run(&["repo", "init", "--new-key-file", &place.text("key"), "--no-recovery-key"]).code(0);
    let refused = by_recovery(&place, &sheet, &["list"]).code(12);
    assert!(refused.stderr.contains("takes such a key"), "{}", refused.stderr);
}

#[test]
fn the_recovery_key_is_given_out_once_in_the_form_asked_for() {
    let place = Place::new();
    let made = place.run(&["repo", "init", "--new-key-file", &place.text("key"), "--json"]).code(0);
    let made = made.json();
    let sheet = made["recovery_key"].as_str().expect("in the document").to_owned();
    assert_eq!(sheet.split('-').count(), 13);
    assert_eq!(made["recovery_key_file"], Value::Null);
    by_recovery(&place, &sheet, &["list"]).code(0);

    let init = |repo: &str, more: &[&str]| {
        let args: Vec<&str> =
            ["--repo", repo, "repo", "init"].iter().chain(more).copied().collect();
        place.run(&args)
    };
    let quiet = init("quiet", &["-q", "--key-file", "key"]).code(0);
    assert_eq!((quiet.stdout.lines().count(), quiet.stdout.trim().len()), (1, 77));
    let file = init("file", &["--key-file", "key", "--new-recovery-key-file", "sheet"]).code(0);
    let meta = std::fs::metadata(place.path("sheet")).expect("the sheet");
    assert_eq!(meta.permissions().mode() & 0o777, 0o600);
    let text = std::fs::read_to_string(place.path("sheet")).expect("the sheet");
    assert!(!file.stdout.contains(text.trim()) && file.stdout.contains("sheet"));
    by_recovery(&place, &text, &["list", "--repo", "file"]).code(0);

    // Never over another file, and then nothing is made.
    init("again", &["--new-key-file", "key2", "--new-recovery-key-file", "sheet"]).code(17);
    assert!(!place.path("again").exists() && !place.path("key2").exists());
    // A repository that cannot be made leaves no sheet behind.
    std::fs::write(place.path("blocked"), "in the way").expect("written");
    let ran = init("blocked", &["--new-key-file", "key2", "--new-recovery-key-file", "sheet2"]);
    assert_ne!(ran.code, 0);
    assert!(!place.path("key2").exists() && !place.path("sheet2").exists());

    let none = init("none", &["--key-file", "key", "--no-recovery-key"]).code(0);
    assert!(!none.stdout.contains("recovery key:"), "{}", none.stdout);
    let open = init("open", &["--unencrypted", "--json"]).code(0).json();
    assert_eq!(open["recovery_key"], Value::Null);
    let first = init("first", &["--recovery-key-file", "sheet"]).code(2);
    assert!(first.stderr.contains("--new-recovery-key-file"), "{}", first.stderr);
}

/// Whoever reads the output went away: the repository is there, and the remedy is named.
#[test]
fn a_recovery_key_that_nobody_could_read_is_told() {
    let place = Place::new();
    let mut command = place.command(&["repo", "init", "--new-key-file", &place.text("key")]);
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").expect("/dev/full");
    let ran = Ran::of(command.stdout(Stdio::from(full)).output().expect("it runs")).code(1);
    assert!(ran.stderr.contains("repo key recovery --replace"), "{}", ran.stderr);
    place.run(&["repo", "key", "recovery"]).code(17);
    // The old one stays if the new one cannot be shown.
    let before = keys(&place);
    let mut command = place.command(&["repo", "key", "recovery", "--replace"]);
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").expect("/dev/full");
    Ran::of(command.stdout(Stdio::from(full)).output().expect("it runs")).code(1);
    let after = keys(&place);
    assert!(before.iter().all(|old| after.iter().any(|key| key["id"] == old["id"])));
    // Shown at last, all that were there before are gone.
    let shown = place.run(&["repo", "key", "recovery", "--replace", "--json"]).code(0).json();
    assert_eq!(shown["replaced"].as_array().map(Vec::len), Some(2));
    assert_eq!(keys(&place).len(), 2);
    let sheet = shown["recovery_key"].as_str().expect("the key");
    by_recovery(&place, sheet, &["list"]).code(0);
}

#[test]
fn a_recovery_key_is_replaced_only_when_asked_and_given_up_only_when_said() {
    let (place, old) = place_with_recovery();
    let refused = place.run(&["repo", "key", "recovery"]).code(17);
    assert!(refused.stderr.contains("--replace"), "{}", refused.stderr);
    by_recovery(&place, &old, &["list"]).code(0);
    let new = place
        .run(&["repo", "key", "recovery", "--replace", "--new-recovery-key-file", "sheet"])
        .code(0);
    assert!(new.stdout.contains("sheet"), "{}", new.stdout);
    by_recovery(&place, &old, &["list"]).code(12);
    let sheet = std::fs::read_to_string(place.path("sheet")).expect("the sheet");
    by_recovery(&place, &sheet, &["list"]).code(0);

    let id = id_of(&keys(&place), "recovery_key");
    let asked = place.run(&["repo", "key", "remove", &id, "--yes"]).code(19);
    assert!(asked.stderr.contains("--give-up-recovery-key"), "{}", asked.stderr);
    place.run(&["repo", "key", "remove", &id, "--give-up-recovery-key"]).code(19);
    by_recovery(&place, &sheet, &["list"]).code(0);
    let rotated = place.run(&["repo", "key", "rotate", &id, "--new-key-file", "k2"]).code(2);
    assert!(rotated.stderr.contains("repo key recovery --replace"), "{}", rotated.stderr);
    assert!(!place.path("k2").exists());
    place.run(&["repo", "key", "remove", &id, "--give-up-recovery-key", "--yes"]).code(0);
    by_recovery(&place, &sheet, &["list"]).code(12);
    place.run(&["repo", "key", "recovery", "--json"]).code(0);
    // It is a key like others: the last that is left is not removed.
    let all = keys(&place);
    let [first, last] = [id_of(&all, "key_file"), id_of(&all, "recovery_key")];
    place.run(&["repo", "key", "remove", &last, "--give-up-recovery-key", "--yes"]).code(0);
    let refused = place.run(&["repo", "key", "remove", &first, "--yes"]);
    assert!(refused.code != 0 && refused.stderr.contains("last"), "{}", refused.stderr);
}

#[test]
fn a_rotation_ends_with_the_new_key_alone() {
    let (place, sheet) = place_with_recovery();
    let done = place
        .run(&["repo", "key", "rotate", "first key", "--new-key-file", "new", "--json"])
        .code(0)
        .json();
    assert_eq!(done["key"]["label"], "first key");
    place.run(&["list"]).code(12);
    place.run(&["list", "--key-file", "new"]).code(0);
    by_recovery(&place, &sheet, &["list"]).code(0);
    // A key that is no key of it makes nothing, nor does a name that is none.
    let wrong = place.run(&["repo", "key", "rotate", "first key", "--new-key-file", "newer"]);
    wrong.code(12);
    let missing = ["repo", "key", "rotate", "nobody", "--new-key-file", "newer"];
    let missing = by_recovery(&place, &sheet, &missing).code(16);
    assert!(missing.stderr.contains("repo key list"), "{}", missing.stderr);
    assert!(!place.path("newer").exists());
    let unnamed = by_recovery(&place, &sheet, &["repo", "key", "rotate", "first key"]).code(2);
    assert!(unnamed.stderr.contains("--new-key-file"), "{}", unnamed.stderr);
}

/// The old slot cannot be removed: both keys open, the list says so, and says what to do.
#[test]
fn a_rotation_that_was_cut_off_shows_in_the_list() {
    let (place, _) = place_with_recovery();
    let old = id_of(&keys(&place), "key_file");
    let slot = place.path(&format!("repo/keys/{old}"));
    let bytes = std::fs::read(&slot).expect("the slot");
    place.run(&["repo", "key", "rotate", &old, "--new-key-file", "new"]).code(0);
    // As if the power had gone before the removal.
    std::fs::write(&slot, bytes).expect("written");
    place.run(&["list"]).code(0);
    place.run(&["list", "--key-file", "new"]).code(0);
    let listed = place.run(&["repo", "key", "list"]).code(0);
    let remedy = format!("backstay repo key remove {old} --yes");
    assert!(listed.stdout.contains("interrupted") && listed.stdout.contains(&remedy));
    assert_eq!(keys(&place).iter().filter(|key| key["replaces"] == old.as_str()).count(), 1);
    place.run(&["repo", "key", "remove", &old, "--yes", "--key-file", "new"]).code(0);
    assert!(!place.run(&["repo", "key", "list"]).stdout.contains("interrupted"));
    place.run(&["list"]).code(12);
}
