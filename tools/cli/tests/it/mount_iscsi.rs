//! `mount iscsi`, with libiscsi as the initiator: targets that outlive commands, kills and restarts.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};

use rustix::process::Signal;
use serde_json::Value;

use super::mountd::{daemon, list, pins, restored, text};
use super::support::{Place, is_root, noise, skipped, wait_until};

/// See there.
const INITIATOR: &str = include_str!("initiator.py");

/// A repository with one backup of `web01`, whose disks hold `contents`.
fn with_disks(contents: &[&[u8]]) -> Place {
    let place = Place::with_repository();
    let images: Vec<String> = (0..)
        .zip(contents)
        .map(|(n, content)| place.image(&format!("disk{n}.raw"), content))
        .collect();
    let mut args = vec!["backup"];
    args.extend(images.iter().map(String::as_str));
    place.run(&[&args[..], &["-m", "web01"]].concat()).code(0);
    // The portal of before, as it were: a port that no other test takes while the daemon is down.
    let portal = format!("127.0.0.1:{}\n", 14_000 + std::process::id() % 10_000);
    std::fs::create_dir_all(place.path("state")).expect("made");
    let private = std::os::unix::fs::PermissionsExt::from_mode(0o700);
    std::fs::set_permissions(place.path("state"), private).expect("private");
    std::fs::write(place.path("state/iscsi-portal"), portal).expect("written");
    place
}

fn mount(place: &Place, args: &[&str]) -> Value {
    place.run(&[&["mount", "iscsi"], args, &["--json"]].concat()).code(0).json()
}

/// The URI of a unit at the first portal, with the initiator's secret if there is one.
fn uri(view: &Value, lun: usize) -> String {
    let uri = view["uris"][lun].as_str().expect("a URI");
    match view["iscsi"]["chap"]["secret"].as_str() {
        Some(secret) => {
            let name = text(&view["iscsi"]["chap"], "name");
            uri.replacen("iscsi://", &format!("iscsi://{name}%{secret}@"), 1)
        }
        None => uri.to_owned(),
    }
}

fn initiator(uri: &str, what: &[&str]) -> Command {
    let mut command = Command::new("python3");
    command.args(["-c", INITIATOR, uri, "", ""]).args(what);
    command
}

/// Does it; what went wrong otherwise.
fn tried(mut command: Command) -> Result<(), String> {
    let done = command.output().expect("python3 is installed, and libiscsi with libiscsi-bin");
    let said = String::from_utf8_lossy(&done.stderr).into_owned();
    assert!(!said.contains("Traceback"), "{said}");
    if done.status.success() { Ok(()) } else { Err(said) }
}

fn write(uri: &str, offset: usize, len: usize, byte: u8) {
    let words = [offset.to_string(), len.to_string(), byte.to_string()];
    let what: Vec<&str> = ["write"].into_iter().chain(words.iter().map(String::as_str)).collect();
    tried(initiator(uri, &what)).expect("written");
}

fn contents(place: &Place, uri: &str, size: usize) -> Vec<u8> {
    let to = place.text("contents.raw");
    let _ = std::fs::remove_file(&to);
    tried(initiator(uri, &["read", &size.to_string(), &to])).expect("read");
    std::fs::read(to).expect("the contents")
}

/// Somebody who is logged in until dropped.
struct Holder(Child);

impl Drop for Holder {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn hold(uri: &str) -> Holder {
    let mut command = initiator(uri, &["hold"]);
    let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
    let mut child = child.expect("python3 is installed");
    let out = child.stdout.take().expect("a pipe");
    let holder = Holder(child);
    let mut line = String::new();
    BufReader::new(out).read_line(&mut line).expect("a line");
    assert_eq!(line.trim(), "here");
    holder
}

fn listed(portal: &str) -> String {
    let done = Command::new("iscsi-ls").args(["-s", &format!("iscsi://{portal}")]).output();
    let done = done.expect("iscsi-ls (package libiscsi-bin) is installed");
    String::from_utf8_lossy(&done.stdout).into_owned()
}

/// What a unit calls itself in vital product data (the serial number, the designators).
fn names(uri: &str) -> String {
    let page = |code: &str| {
        let done = Command::new("iscsi-inq").args(["-e", "1", "-c", code, uri]).output();
        let done = done.expect("iscsi-inq (package libiscsi-bin) is installed");
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        String::from_utf8_lossy(&done.stdout).into_owned()
    };
    page("128") + &page("131")
}

#[test]
fn the_disks_of_a_point_are_the_units_of_a_target() {
    let (first, second) = (noise(51, 3 << 20), noise(52, (1 << 20) + 700));
    let place = with_disks(&[&first, &second]);
    let running = daemon(&place);
    let view = mount(&place, &["web01", "--reason", "look inside"]);
    let (id, target) = (text(&view, "id"), text(&view["iscsi"], "target"));
    assert_eq!(target, format!("iqn.2026-11.internal.backstay:web01.{id}"));
    assert_eq!(view["kind"], "iscsi");
    let portal = view["iscsi"]["portals"][0].as_str().expect("a portal").to_owned();
    let seen = listed(&portal);
    assert!(seen.contains(&target) && seen.contains("Lun:0") && seen.contains("Lun:1"), "{seen}");
    assert!(contents(&place, &uri(&view, 0), first.len()) == first);
    assert!(contents(&place, &uri(&view, 1), second.len()) == second);
    assert!(tried(initiator(&uri(&view, 0), &["write", "0", "512", "1"])).is_err(), "read-only");
    assert_ne!(names(&uri(&view, 0)), names(&uri(&view, 1)));

    // One disk alone, at a portal of its own that knows no other target.
    let one = mount(&place, &["web01:disk1", "--listen", "127.0.0.1:0"]);
    assert_eq!(one["disks"].as_array().map(Vec::len), Some(1));
    assert_eq!(one["disks"][0]["lun"], 0);
    assert!(contents(&place, &uri(&one, 0), second.len()) == second);
    let seen = listed(one["iscsi"]["portals"][0].as_str().expect("a portal"));
    assert!(seen.contains(&text(&one, "id")) && !seen.contains(&target), "{seen}");
    let shown = place.run(&["mount", "show", &id]).code(0).stdout;
    for words in [&target, &portal, "iscsiadm -m discovery", "Connect-IscsiTarget", "esxcli iscsi"]
    {
        assert!(shown.contains(words), "{words}: {shown}");
    }
    place.run(&["mount", "end", &id]).code(0);
    assert!(!listed(&portal).contains(&target), "it is still there");
    place.run(&["mount", "end", &text(&one, "id")]).code(0);
    assert!(list(&place).is_empty());
    running.signal(Signal::TERM);
    running.end().code(0);
}

#[test]
fn all_that_was_written_is_saved_as_one_point() {
    let disks: Vec<Vec<u8>> = (0..3).map(|n| noise(60 + n, 1 << 20)).collect();
    let place = with_disks(&[&disks[0], &disks[1], &disks[2]]);
    let running = daemon(&place);
    let view = mount(&place, &["web01", "--writable", "--limit", "512k"]);
    let id = text(&view, "id");
    assert_eq!(pins(&place), 1);
    let mut written = disks.clone();
    for (lun, byte) in [(0, 0x11), (2, 0x33)] {
        write(&uri(&view, lun), 4096, 300 << 10, byte);
        written[lun][4096..4096 + (300 << 10)].fill(byte);
    }
    // The limit is each disk's own.
    let more = [&["write", "524288", "400000", "1"][..], &["flush"]].concat();
    assert!(tried(initiator(&uri(&view, 0), &more)).is_err(), "beyond the limit");
    place.run(&["mount", "end", &id]).code(19);
    place.run(&["mount", "end", &id, "--keep"]).code(0);
    assert_eq!(list(&place)[0]["state"], "kept");
    let again = place.run(&["mount", "resume", &id, "--json"]).code(0).json();
    assert_eq!(again["uris"], view["uris"]);
    assert!(contents(&place, &uri(&view, 2), 1 << 20) == written[2]);

    let saved = place.run(&["mount", "end", &id, "--save", "--json"]).code(0).json();
    assert!(saved["saved"]["read_bytes"].as_u64().expect("a number") < 2 << 20, "{saved}");
    let points = place.run(&["list", "--json"]).code(0).json();
    assert_eq!(points["points"].as_array().map(Vec::len), Some(2));
    for (lun, disk) in written.iter().enumerate().skip(1) {
        let now = restored(&place, &format!("web01@latest:disk{lun}"));
        assert!(now == *disk, "disk {lun}");
    }
    let now = restored(&place, "web01@latest:disk0");
    assert!(now[..512 << 10] == written[0][..512 << 10]);
    assert_eq!(pins(&place), 0);

    // Of a disk that is mounted alone, the others are taken over.
    let one = mount(&place, &["web01:disk1", "--writable"]);
    write(&uri(&one, 0), 0, 4096, 0x77);
    place.run(&["mount", "end", &text(&one, "id"), "--save"]).code(0);
    written[1][..4096].fill(0x77);
    assert!(restored(&place, "web01@latest:disk1") == written[1]);
    assert!(restored(&place, "web01@latest:disk2") == written[2]);
    let overlays = std::fs::read_dir(place.path("state/overlays")).expect("the directory");
    assert_eq!(overlays.count(), 0, "an overlay is left");
    drop(running);
}

#[test]
fn a_killed_daemon_comes_back_with_names_portals_secrets_and_data() {
    let disks: Vec<Vec<u8>> = (0..2).map(|n| noise(70 + n, 1 << 20)).collect();
    let place = with_disks(&[&disks[0], &disks[1]]);
    let mut running = daemon(&place);
    let view = mount(&place, &["web01", "--writable", "--chap"]);
    let mut expected = disks.clone();
    let before = names(&uri(&view, 1));
    for round in 0..3u8 {
        for (lun, disk) in expected.iter_mut().enumerate() {
            let at = usize::from(round) * (128 << 10);
            write(&uri(&view, lun), at, 64 << 10, 0x40 + round);
            disk[at..at + (64 << 10)].fill(0x40 + round);
        }
        running.signal(Signal::KILL);
        running.end();
        running = daemon(&place);
        for (lun, disk) in expected.iter().enumerate() {
            let now = contents(&place, &uri(&view, lun), 1 << 20);
            assert!(now == *disk, "disk {lun}, round {round}");
        }
    }
    assert_eq!(names(&uri(&view, 1)), before);
    let id = text(&view, "id");
    let shown = place.run(&["mount", "show", &id, "--secrets", "--json"]).code(0).json();
    assert_eq!(shown["iscsi"], view["iscsi"]);
    running.signal(Signal::TERM);
    running.end().code(0);
}

#[test]
fn reservations_outlive_the_daemon_and_end_with_the_mount() {
    let place = with_disks(&[&noise(75, 256 << 10), &noise(76, 256 << 10)]);
    let mut running = daemon(&place);
    let view = mount(&place, &["web01", "--writable"]);
    let id = text(&view, "id");
    let write_as = |name: &str, lun: usize| {
        let mut command = initiator(&uri(&view, lun), &["write", "0", "4096", "9"]);
        command.env("INITIATOR", name);
        tried(command)
    };
    let other = "iqn.2001-04.com.example:other";
    write_as(other, 0).expect("nobody has reserved it");
    tried(initiator(&uri(&view, 0), &["reserve"])).expect("reserved");
    let conflict = write_as(other, 0).expect_err("it is another's");
    assert!(conflict.contains("RESERVATION_CONFLICT"), "{conflict}");
    write_as(other, 1).expect("the other unit is free");
    running.signal(Signal::KILL);
    running.end();
    running = daemon(&place);
    let conflict = write_as(other, 0).expect_err("it still is");
    assert!(conflict.contains("RESERVATION_CONFLICT"), "{conflict}");
    tried(initiator(&uri(&view, 0), &["write", "0", "4096", "9"])).expect("it is its own");
    assert!(place.path(&format!("state/reservations/{id}/0")).exists());
    place.run(&["mount", "end", &id, "--discard"]).code(0);
    let left = std::fs::read_dir(place.path("state/reservations")).expect("the directory");
    assert_eq!(left.count(), 0, "a reservation is left");
    running.signal(Signal::TERM);
    running.end().code(0);
}

#[test]
fn who_knows_no_secret_does_not_get_in() {
    let content = noise(80, 1 << 20);
    let place = with_disks(&[&content]);
    let running = daemon(&place);
    let short = ["mount", "iscsi", "web01", "--chap", "--chap-short", "--json"];
    let short = place.run(&short).code(0).json();
    assert_eq!(text(&short["iscsi"]["chap"], "secret").len(), 16, "for Windows");
    place.run(&["mount", "iscsi", "web01", "--chap-short"]).code(2);
    let made = place.run(&["mount", "iscsi", "web01", "--chap-mutual", "--json"]).code(0);
    let view = made.json();
    let (id, iscsi) = (text(&view, "id"), &view["iscsi"]);
    let (secret, other) = (text(&iscsi["chap"], "secret"), text(&iscsi["chap_target"], "secret"));
    assert_ne!(secret, other);
    assert!([&secret, &other].iter().all(|s| s.len() * 6 >= 128), "as long as a key");
    assert!(contents(&place, &uri(&view, 0), content.len()) == content);
    let plain = text(&view, "uri");
    assert!(tried(initiator(&plain, &[])).expect_err("no secret").contains("login"));
    let wrong = uri(&view, 0).replace(&secret, "0123456789abcdef");
    assert!(tried(initiator(&wrong, &[])).expect_err("another").contains("login"));
    // The target proves itself, and one that cannot is not trusted.
    let with_target = |secret: &str| {
        let mut command = Command::new("python3");
        command.args(["-c", INITIATOR, &uri(&view, 0)]);
        command.args([&text(&iscsi["chap_target"], "name"), secret]);
        tried(command)
    };
    with_target(&other).expect("both are who they say");
    assert!(with_target("0123456789abcdef").is_err());

    // The secrets are nowhere but where they were asked for.
    for args in [&["mount", "list"][..], &["mount", "show", &id], &["mount", "list", "--json"]] {
        let said = place.run(args).code(0).stdout;
        assert!(!said.contains(&secret) && !said.contains(&other), "{args:?}: {said}");
    }
    use std::os::unix::fs::MetadataExt as _;
    let mode = |name: &str| std::fs::metadata(place.path(name)).expect(name).mode() & 0o777;
    assert_eq!(mode(&format!("state/mounts/{id}.json")), 0o600);
    assert_eq!(mode("state"), 0o700);
    let told = place.run(&["mount", "show", &id, "--secrets"]).code(0).stdout;
    assert!(told.contains(&secret) && told.contains(&other));
    drop(running);
}

#[test]
fn sessions_are_seen_kicked_and_kept_out() {
    let place = with_disks(&[&noise(81, 1 << 20)]);
    let running = daemon(&place);
    let view = mount(&place, &["web01", "--for", "1h"]);
    let id = text(&view, "id");
    let first = hold(&text(&view, "uri"));
    let clients = list(&place)[0]["clients"].as_array().expect("clients").clone();
    assert_eq!(clients.len(), 1, "{clients:?}");
    assert_eq!(clients[0]["initiator"], "iqn.2001-04.com.example:tester");
    let session = clients[0]["session"].as_u64().expect("a number").to_string();
    let refused = place.run(&["mount", "end", &id]).code(17);
    assert!(refused.stderr.contains("--force"), "{}", refused.stderr);
    place.run(&["mount", "kick", &id, "65000"]).code(16);
    place.run(&["mount", "kick", &id, "nobody"]).code(2);
    let shown = place.run(&["mount", "kick", &id, &session, "--json"]).code(0).json();
    assert_eq!(shown["clients"].as_array().map(Vec::len), Some(0), "{shown}");
    drop(first);
    let _second = hold(&text(&view, "uri"));
    place.run(&["mount", "kick", &id, "all"]).code(0);
    assert!(list(&place)[0]["clients"].as_array().is_some_and(Vec::is_empty));
    // An export has none.
    let nbd = place.run(&["mount", "nbd", "web01", "--json"]).code(0).json();
    place.run(&["mount", "kick", &text(&nbd, "id"), "all"]).code(2);
    // Names that are not allowed are not even shown.
    let others = mount(&place, &["web01", "--allow-initiator", "iqn.2001-04.com.example:other"]);
    assert!(tried(initiator(&text(&others, "uri"), &[])).is_err());
    let named = ["web01", "--allow-initiator", "iqn.2001-04.com.example:tester=ro", "--writable"];
    let named = mount(&place, &[&named[..], &["--allow", "127.0.0.0/8"]].concat());
    tried(initiator(&text(&named, "uri"), &[])).expect("it is named, and comes from there");
    let writes = initiator(&text(&named, "uri"), &["write", "0", "512", "1"]);
    assert!(tried(writes).is_err(), "it may read only");

    let third = hold(&text(&view, "uri"));
    place.run(&["mount", "end", &id, "--force"]).code(0);
    assert!(!list(&place).iter().any(|mount| mount["id"] == *id));
    drop(third);
    drop(running);
}

#[test]
fn other_hosts_come_in_only_where_they_are_allowed() {
    let place = with_disks(&[&noise(82, 64 << 10)]);
    let running = daemon(&place);
    let open = ["mount", "iscsi", "web01", "--listen", "0.0.0.0:0"];
    let refused = place.run(&open).code(2);
    assert!(refused.stderr.contains("--allow"), "{}", refused.stderr);
    let warned = place.run(&[&open[..], &["--allow", "192.0.2.1"]].concat()).code(0).stderr;
    assert!(warned.contains("in the clear") && warned.contains("without --chap"), "{warned}");
    let args = [&open[..], &["--allow", "192.0.2.1", "--chap"]].concat();
    let warned = place.run(&args).code(0).stderr;
    assert!(warned.contains("in the clear") && !warned.contains("without --chap"), "{warned}");
    // This host is not 192.0.2.1, and is not let in for being this host.
    let views = list(&place);
    let uri = views[0]["uris"][0].as_str().expect("a URI").replace("0.0.0.0", "127.0.0.1");
    assert!(tried(initiator(&uri, &[])).expect_err("not allowed").contains("login"));
    place.run(&["mount", "iscsi", "web01", "--allow", "uid:0"]).code(2);
    drop(running);
}

/// Two overlays, of which one is damaged, or was never made: none is served without the other, nothing is lost, and it is said which.
#[test]
fn one_of_two_overlays_damaged_costs_nothing_of_the_other() {
    let disks: Vec<Vec<u8>> = (0..2).map(|n| noise(90 + n, 256 << 10)).collect();
    let place = with_disks(&[&disks[0], &disks[1]]);
    let mut running = daemon(&place);
    let view = mount(&place, &["web01", "--writable"]);
    let id = text(&view, "id");
    let mut written = disks.clone();
    for (lun, disk) in written.iter_mut().enumerate() {
        write(&uri(&view, lun), 0, 8192, 0x55);
        disk[..8192].fill(0x55);
    }
    running.signal(Signal::KILL);
    running.end();
    let header = place.path(&format!("state/overlays/{id}/1/overlay"));
    let good = std::fs::read(&header).expect("the header");
    let mut bad = good.clone();
    bad[30] ^= 0xff;
    std::fs::write(&header, &bad).expect("damaged");
    running = daemon(&place);
    let shown = place.run(&["mount", "show", &id, "--json"]).code(0).json();
    assert_eq!(shown["state"], "failed", "{shown}");
    assert!(tried(initiator(&uri(&view, 0), &[])).is_err(), "half a machine is served");
    let refused = place.run(&["mount", "resume", &id]);
    assert!(refused.code != 0 && refused.stderr.contains("disk1"), "{}", refused.stderr);
    let refused = place.run(&["mount", "end", &id, "--save"]);
    assert!(refused.code != 0 && refused.stderr.contains("disk1"), "{}", refused.stderr);
    let points = place.run(&["list", "--json"]).code(0).json();
    assert_eq!(points["points"].as_array().map(Vec::len), Some(1), "half of it was saved");
    std::fs::write(&header, &good).expect("mended");
    place.run(&["mount", "resume", &id]).code(0);
    for (lun, disk) in written.iter().enumerate() {
        assert!(contents(&place, &uri(&view, lun), 256 << 10) == *disk, "disk {lun}");
    }

    // Killed between the two, when it was being made and when it was being thrown away.
    for intent in ["starting", "discard"] {
        let view = mount(&place, &["web01", "--writable"]);
        let half = text(&view, "id");
        running.signal(Signal::KILL);
        running.end();
        std::fs::remove_dir_all(place.path(&format!("state/overlays/{half}/1"))).expect("removed");
        let path = place.path(&format!("state/mounts/{half}.json"));
        let mut record: Value =
            serde_json::from_slice(&std::fs::read(&path).expect("the record")).expect("JSON");
        record["intent"] = intent.into();
        std::fs::write(&path, serde_json::to_vec(&record).expect("JSON")).expect("written");
        running = daemon(&place);
        let now = list(&place);
        assert!(now.len() == 1 && now[0]["id"] == *id, "{intent}: {now:?}");
        assert!(!place.path(&format!("state/overlays/{half}")).exists(), "{intent}");
        assert_eq!(pins(&place), 1, "{intent}");
    }
    running.signal(Signal::TERM);
    running.end().code(0);
}

/// A file system that is unmounted with the test.
struct Mounted(std::path::PathBuf);

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

/// The disk of the overlays is full, at every file of two overlays: either both are there or nothing is.
#[test]
fn a_disk_that_is_full_at_any_of_two_overlays_leaves_nothing() {
    let test = "a_disk_that_is_full_at_any_of_two_overlays_leaves_nothing";
    if !is_root() {
        skipped(&format!("{test}: needs root to mount a small file system"));
        return;
    }
    let place = with_disks(&[&noise(95, 64 << 10), &noise(96, 64 << 10)]);
    let overlays = place.path("state/overlays");
    std::fs::create_dir_all(&overlays).expect("made");
    let small = Command::new("mount")
        .args(["-t", "tmpfs", "-o", "nr_inodes=64,size=16m", "none"])
        .arg(&overlays)
        .status();
    if !small.expect("mount (package mount) is installed").success() {
        skipped(&format!("{test}: no tmpfs can be mounted here"));
        return;
    }
    let small = Mounted(overlays.clone());
    let running = daemon(&place);
    // All inodes but so many are taken by files of others.
    let free = |count: usize| {
        let mut taken: Vec<_> =
            (0..).map(|n| overlays.join(format!(".taken{n}"))).take(80).collect();
        taken.retain(|path| std::fs::write(path, []).is_ok());
        for path in taken.iter().take(count) {
            std::fs::remove_file(path).expect("removed");
        }
    };
    let mut refused = 0;
    loop {
        free(refused);
        let made = place.run(&["mount", "iscsi", "web01", "--writable", "--json"]);
        for entry in std::fs::read_dir(&overlays).expect("a directory").flatten() {
            if entry.file_name().to_string_lossy().starts_with(".taken") {
                std::fs::remove_file(entry.path()).expect("removed");
            }
        }
        if made.code == 0 {
            place.run(&["mount", "end", &text(&made.json(), "id")]).code(0);
            break;
        }
        assert_eq!(made.code, 18, "{}", made.stderr);
        assert!(list(&place).is_empty(), "with {refused} inodes");
        assert_eq!(pins(&place), 0, "with {refused} inodes");
        let left = std::fs::read_dir(&overlays).expect("a directory").count();
        assert_eq!(left, 0, "with {refused} inodes");
        refused += 1;
    }
    assert!(refused > 6, "only {refused} places where it can be full");
    running.signal(Signal::TERM);
    running.end().code(0);
    drop(small);
}

#[test]
fn the_portal_is_where_the_daemon_is_told_to_listen() {
    let place = with_disks(&[&noise(97, 64 << 10)]);
    let mut running = place.start(&["mountd", "--iscsi-listen", "127.0.0.1:0", "--json"]);
    let told: Value = serde_json::from_str(&running.first_line()).expect("a JSON document");
    let portal = told["iscsi"][0].as_str().expect("a portal").to_owned();
    let view = mount(&place, &["web01"]);
    assert_eq!(view["iscsi"]["portals"][0], *portal);
    let seen = listed(&portal);
    assert!(seen.contains(&text(&view["iscsi"], "target")), "{seen}");
    running.signal(Signal::TERM);
    running.end().code(0);
    wait_until("it is gone", || listed(&portal).is_empty());
}
