//! The mount daemon, run and used as users do: mounts that outlive commands, kills and restarts.

use std::process::Command;
use std::time::Duration;

use rustix::process::{Pid, Signal};
use serde_json::Value;

use super::support::{Place, Running, is_root, noise, sample, skipped, wait_until};

/// A repository with one backup of `web01`.
pub(super) fn with_backup(content: &[u8]) -> Place {
    let place = Place::with_repository();
    let image = place.image("web01.raw", content);
    place.run(&["backup", &image, "-m", "web01"]).code(0);
    place
}

/// A daemon that answers.
pub(super) fn daemon(place: &Place) -> Running {
    let mut running = place.start(&["mountd", "--json"]);
    let told: Value = serde_json::from_str(&running.first_line()).expect("a JSON document");
    assert_eq!(told["pid"], running.pid());
    running
}

pub(super) fn mount(place: &Place, args: &[&str]) -> Value {
    place.run(&[&["mount", "nbd"], args, &["--json"]].concat()).code(0).json()
}

pub(super) fn text(value: &Value, name: &str) -> String {
    value[name].as_str().unwrap_or_else(|| panic!("no {name} in {value}")).to_owned()
}

/// What an export holds, read by `nbdcopy`.
pub(super) fn contents(place: &Place, uri: &str) -> Vec<u8> {
    let copy = place.path("contents.raw");
    let _ = std::fs::remove_file(&copy);
    let done = Command::new("nbdcopy").arg(uri).arg(&copy).output();
    let done = done.expect("nbdcopy (package libnbd-bin) is installed");
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    std::fs::read(copy).expect("the copy")
}

fn can_attach(uri: &str) -> bool {
    let done = Command::new("nbdinfo").args(["--size", uri]).output();
    done.expect("nbdinfo (package libnbd-bin) is installed").status.success()
}

fn qemu_io(uri: &str, commands: &[&str]) -> String {
    let mut command = Command::new("qemu-io");
    command.args(["-f", "raw"]);
    for line in commands {
        command.args(["-c", line]);
    }
    let done = command.arg(uri).output().expect("qemu-io (package qemu-utils) is installed");
    let said = String::from_utf8_lossy(&done.stdout).into_owned();
    let errors = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success() && !said.contains("failed"), "{said}{errors}");
    said
}

pub(super) fn list(place: &Place) -> Vec<Value> {
    place.run(&["mount", "list", "--json"]).code(0).json()["mounts"]
        .as_array()
        .expect("mounts")
        .clone()
}

pub(super) fn restored(place: &Place, name: &str) -> Vec<u8> {
    let to = place.text("restored.raw");
    let _ = std::fs::remove_file(&to);
    place.run(&["restore", "disk", name, "--to", &to]).code(0);
    std::fs::read(to).expect("the restored disk")
}

pub(super) fn pins(place: &Place) -> usize {
    place.run(&["point", "pins", "--json"]).code(0).json()["pins"].as_array().expect("pins").len()
}

#[test]
fn a_mount_outlives_its_command_and_ends_once() {
    let content = sample(1);
    let place = with_backup(&content);
    let daemon = daemon(&place);
    let view = mount(&place, &["web01", "--reason", "look inside"]);
    let (id, uri) = (text(&view, "id"), text(&view, "uri"));
    assert!(contents(&place, &uri) == content);
    assert_eq!(view["writable"], false);
    let commands = view["client_commands"].as_array().expect("commands");
    assert!(commands.iter().any(|c| c["tool"] == "nbd-client"), "{view}");

    // Where its bytes are, for who asks.
    let map = Command::new("nbdinfo").args(["--map=backstay:presence", "--json", &uri]).output();
    let map = map.expect("nbdinfo (package libnbd-bin) is installed");
    let map: Value = serde_json::from_slice(&map.stdout).expect("a map");
    let stored = map.as_array().expect("extents").iter().filter(|e| e["type"] != 2);
    assert!(stored.clone().count() > 0 && stored.clone().all(|e| e["type"] == 1 || e["type"] == 3));

    // A second mount of the same disk is another one, on addresses of its own.
    let socket = place.text("s.sock");
    let args = ["web01", "--listen", "127.0.0.1:0", "--socket", &socket];
    let other = mount(&place, &args);
    assert_ne!(other["id"], view["id"]);
    let uris: Vec<&str> =
        other["uris"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
    assert_eq!(uris.len(), 3, "{uris:?}");
    for uri in uris {
        assert!(contents(&place, uri) == content, "{uri}");
    }
    let all = list(&place);
    assert_eq!(all.len(), 2);
    assert_eq!(all[0]["reason"], "look inside");
    assert!(place.run(&["mount", "list"]).code(0).stdout.contains(&id));
    assert!(place.run(&["mount", "show", &id]).code(0).stdout.contains(&uri));

    place.run(&["mount", "end", &id]).code(0);
    assert!(!can_attach(&uri), "it is still served");
    assert!(can_attach(&text(&other, "uri")), "another mount went with it");
    // Gone is gone: the wish is fulfilled. What never was is an error.
    place.run(&["mount", "end", &id]).code(0);
    place.run(&["mount", "show", &id]).code(16);
    let never = place.run(&["mount", "end", "m-nothing", "--json"]).code(16).json_error();
    assert_eq!(never["what"], "m-nothing");
    place.run(&["mount", "end", &text(&other, "id")]).code(0);
    assert!(!place.path("s.sock").exists(), "a socket is left");
    assert!(list(&place).is_empty());
    daemon.signal(Signal::TERM);
    daemon.end().code(0);
    assert!(!place.path("state/run/mountd.sock").exists());
    place.run(&["mount", "list"]).code(16);
}

#[test]
fn what_is_written_is_kept_resumed_saved_or_thrown_away() {
    let content = sample(2);
    let place = with_backup(&content);
    let daemon = daemon(&place);
    let view = mount(&place, &["web01", "--writable", "--limit", "8M"]);
    let (id, uri) = (text(&view, "id"), text(&view, "uri"));
    assert_eq!(pins(&place), 1, "the point is pinned while there is an overlay");
    qemu_io(&uri, &["write -P 0x5a 100k 300k", "write -z 2M 128k", "discard 0 64k", "flush"]);
    let mut written = content.clone();
    written[100 << 10..400 << 10].fill(0x5a);
    written[2 << 20..(2 << 20) + (128 << 10)].fill(0);
    written[..64 << 10].fill(0);
    assert!(contents(&place, &uri) == written, "reading back");
    assert!(restored(&place, "web01") == content, "the recovery point changed");

    // Nothing is thrown away unasked.
    let refused = place.run(&["mount", "end", &id]).code(19);
    assert!(refused.stderr.contains("--save") && refused.stderr.contains("--discard"));
    place.run(&["mount", "end", &id, "--keep"]).code(0);
    assert!(!can_attach(&uri));
    assert_eq!(list(&place)[0]["state"], "kept");
    place.run(&["mount", "resume", &id]).code(0);
    assert!(contents(&place, &uri) == written, "resumed");

    let saved = place.run(&["mount", "end", &id, "--save", "--note", "repaired", "--json"]).code(0);
    let point = &saved.json()["saved"];
    // 300 KiB of one byte: what is new is little, and no more than the changed chunks were read.
    let read = point["read_bytes"].as_u64().expect("a number");
    assert!(read < 1 << 20, "{read} bytes were read: {point}");
    assert!(restored(&place, "web01@latest") == written, "the saved point");
    let first = place.run(&["list", "--json"]).code(0).json();
    let points = first["points"].as_array().expect("points");
    assert_eq!(points.len(), 2, "{first}");
    let old = points.iter().map(|p| text(p, "id")).find(|id| *id != text(point, "id"));
    assert!(restored(&place, &format!("@{}", old.expect("the old one"))) == content);
    assert_eq!(pins(&place), 0, "the pin went with the overlay");
    assert!(list(&place).is_empty());

    let view = mount(&place, &["web01", "--writable"]);
    qemu_io(&text(&view, "uri"), &["write -P 1 0 64k"]);
    place.run(&["mount", "end", &text(&view, "id"), "--discard"]).code(0);
    let overlays = std::fs::read_dir(place.path("state/overlays")).expect("the directory");
    assert_eq!(overlays.count(), 0, "an overlay is left");
    assert_eq!(pins(&place), 0);
    drop(daemon);
}

#[test]
fn a_killed_daemon_loses_nothing_and_comes_back_under_the_same_names() {
    let content = noise(3, 6 << 20);
    let place = with_backup(&content);
    let mut running = daemon(&place);
    let plain = mount(&place, &["web01", "--listen", "127.0.0.1:0"]);
    let written = mount(&place, &["web01", "--writable"]);
    let (plain_uri, uri) = (text(&plain, "uri"), text(&written, "uri"));
    let mut expected = content.clone();
    for round in 0..5u8 {
        // Not flushed by us; qemu-io flushes when it closes, so the last write of a round is made by a
        // client that is still there when the daemon is killed.
        let place_of = usize::from(round) * (1 << 20);
        qemu_io(&uri, &[&format!("write -P {} {place_of} 256k", round + 1)]);
        expected[place_of..place_of + (256 << 10)].fill(round + 1);
        running.signal(Signal::KILL);
        running.end();
        running = daemon(&place);
        assert!(contents(&place, &uri) == expected, "round {round}");
        assert!(contents(&place, &plain_uri) == content, "round {round}");
    }
    // A mount that was ended does not come back.
    place.run(&["mount", "end", &text(&plain, "id")]).code(0);
    running.signal(Signal::KILL);
    running.end();
    running = daemon(&place);
    assert!(!can_attach(&plain_uri));
    assert_eq!(list(&place).len(), 1);
    running.signal(Signal::TERM);
    running.end().code(0);
}

/// Ends a daemon that the test did not start itself.
struct Ended(u32);

impl Drop for Ended {
    fn drop(&mut self) {
        let pid = Pid::from_raw(self.0 as i32).expect("a pid");
        let _ = rustix::process::kill_process(pid, Signal::TERM);
        wait_until("the daemon ends", || rustix::process::test_kill_process(pid).is_err());
    }
}

/// The daemon a command has started: its pid stands in the lock file.
fn started(place: &Place) -> Ended {
    let pid = std::fs::read_to_string(place.path("state/lock")).expect("the lock file");
    Ended(pid.trim().parse().expect("a pid"))
}

#[test]
fn the_daemon_starts_by_itself_and_asks_for_keys_it_must_not_keep() {
    let place = Place::new();
    let command = |args: &[&str]| {
        let mut command = place.command(args);
        command.env("BACKSTAY_PASSPHRASE", "correct horse battery");
        super::support::Ran::of(command.output().expect("the binary runs"))
    };
    command(&["repo", "init"]).code(0);
    let content = sample(4);
    let image = place.image("web01.raw", &content);
    command(&["backup", &image, "-m", "web01"]).code(0);
    let view = command(&["mount", "nbd", "web01", "--json"]).code(0).json();
    let (id, uri) = (text(&view, "id"), text(&view, "uri"));
    let ended = started(&place);
    assert!(contents(&place, &uri) == content);
    let secret = "correct horse battery";
    for name in [format!("state/mounts/{id}.json"), "state/mountd.log".to_owned()] {
        let file = std::fs::read_to_string(place.path(&name)).expect("a file");
        assert!(!file.contains(secret), "{name} holds the passphrase");
    }
    drop(ended);

    // The next daemon has no key for it.
    let daemon = daemon(&place);
    let all = list(&place);
    assert_eq!(all[0]["state"], "locked", "{all:?}");
    assert!(!can_attach(&uri));
    place.run(&["mount", "resume", &id]).code(2);
    let mut wrong = place.command(&["mount", "resume", &id]);
    wrong.env("BACKSTAY_PASSPHRASE", "wrong");
    super::support::Ran::of(wrong.output().expect("the binary runs")).code(12);
    command(&["mount", "resume", &id]).code(0);
    assert!(contents(&place, &uri) == content);
    drop(daemon);
}

#[test]
fn mounts_end_by_themselves_and_throw_nothing_away() {
    let content = sample(5);
    let place = with_backup(&content);
    let daemon = daemon(&place);
    let short = mount(&place, &["web01", "--for", "1s"]);
    let written = mount(&place, &["web01", "--writable", "--idle", "1s"]);
    let long = mount(&place, &["web01", "--for", "1s"]);
    place.run(&["mount", "extend", &text(&long, "id"), "--for", "1h"]).code(0);
    qemu_io(&text(&written, "uri"), &["write -P 7 0 4k"]);
    wait_until("the short one ends", || !can_attach(&text(&short, "uri")));
    wait_until("the written one is kept", || {
        list(&place).iter().any(|m| m["id"] == written["id"] && m["state"] == "kept")
    });
    assert!(can_attach(&text(&long, "uri")), "it was given more time");
    // Kept for good, until somebody says otherwise.
    let none = place.run(&["mount", "prune", "--yes", "--json"]).code(0).json();
    assert_eq!(none["removed"].as_array().map(Vec::len), Some(0), "{none}");
    std::thread::sleep(Duration::from_millis(1100));
    let gone = place.run(&["mount", "prune", "--kept-older-than", "1s", "--yes", "--json"]);
    assert_eq!(gone.code(0).json()["removed"][0], written["id"]);
    assert_eq!(pins(&place), 0);
    drop(daemon);
}

/// A program of the test's own.
struct Killed(std::process::Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn clients_are_not_cut_off_by_accident() {
    let content = noise(6, 3 << 20);
    let place = with_backup(&content);
    let daemon = daemon(&place);
    let view = mount(&place, &["web01", "--for", "2s"]);
    let (id, uri) = (text(&view, "id"), text(&view, "uri"));
    // A client that stays: qemu-nbd serves what it has attached.
    let socket = place.text("hold.sock");
    let image = format!(
        "driver=raw,file.driver=nbd,file.server.type=unix,file.server.path={},file.export={id}",
        place.text("state/run/nbd.sock")
    );
    let client =
        Command::new("qemu-nbd").args(["-r", "-t", "-k", &socket, "--image-opts", &image]).spawn();
    let client = Killed(client.expect("qemu-nbd (package qemu-utils) is installed"));
    wait_until("the client is attached", || {
        list(&place)[0]["clients"].as_array().is_some_and(|c| !c.is_empty())
    });
    let refused = place.run(&["mount", "end", &id]).code(17);
    assert!(refused.stderr.contains("--force"), "{}", refused.stderr);
    wait_until("its time is over", || list(&place)[0]["state"] == "ending");
    assert!(!can_attach(&uri), "a new client came in");
    let through = format!("nbd+unix:///?socket={socket}");
    assert!(contents(&place, &through) == content, "the old one was cut off");
    drop(client);
    wait_until("it ends when its client has left", || list(&place).is_empty());
    drop(daemon);
}

#[test]
fn others_come_in_only_where_they_are_allowed() {
    if !is_root() {
        skipped("others_come_in_only_where_they_are_allowed: needs root to become another user");
        return;
    }
    let place = with_backup(&sample(7));
    // The other user must reach the socket.
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(place.path(""), open).expect("opened");
    let daemon = daemon(&place);
    std::fs::set_permissions(
        place.path("state"),
        std::os::unix::fs::PermissionsExt::from_mode(0o711),
    )
    .expect("opened");
    let closed = mount(&place, &["web01"]);
    let opened = mount(&place, &["web01", "--writable", "--allow", "uid:65534=ro"]);
    let as_nobody = |uri: &str| {
        let mut command = Command::new("nbdinfo");
        std::os::unix::process::CommandExt::uid(&mut command, 65534);
        command.args(["--json", uri]).output().expect("nbdinfo is installed")
    };
    assert!(!as_nobody(&text(&closed, "uri")).status.success());
    let seen = as_nobody(&text(&opened, "uri"));
    assert!(seen.status.success(), "{}", String::from_utf8_lossy(&seen.stderr));
    let seen: Value = serde_json::from_slice(&seen.stdout).expect("JSON");
    assert_eq!(seen["exports"][0]["is_read_only"], true);
    // Only what one may open is listed.
    let mut command = Command::new("nbdinfo");
    std::os::unix::process::CommandExt::uid(&mut command, 65534);
    let socket = format!("nbd+unix:///?socket={}", place.text("state/run/nbd.sock"));
    let all = command.args(["--list", "--json", &socket]).output().expect("nbdinfo runs");
    let all = String::from_utf8_lossy(&all.stdout).into_owned();
    assert!(all.contains(&text(&opened, "id")) && !all.contains(&text(&closed, "id")), "{all}");
    drop(daemon);
}

#[test]
fn two_daemons_do_not_share_a_directory_and_leftovers_are_named() {
    let place = with_backup(&sample(8));
    let first = daemon(&place);
    let told = place.run(&["mountd"]).code(17);
    assert!(told.stderr.contains("another mount daemon"), "{}", told.stderr);
    // What belongs to no mount is listed and goes only when asked.
    let stray = place.path("state/overlays/m-stray");
    std::fs::create_dir(&stray).expect("made");
    std::fs::write(stray.join("data"), "x").expect("written");
    let listed = place.run(&["mount", "list"]).code(0);
    assert!(listed.stdout.contains("m-stray"), "{}", listed.stdout);
    place.run(&["mount", "prune", "--dry-run"]).code(0);
    assert!(stray.exists());
    place.run(&["mount", "prune", "--no-input"]).code(19);
    place.run(&["mount", "prune", "--yes"]).code(0);
    assert!(!stray.exists());
    drop(first);
}

/// At its limit a mount lets writes wait, or refuses them, as it was told; nothing is lost either way.
#[test]
fn full_overlays_wait_or_refuse() {
    let content = noise(9, 4 << 20);
    let place = with_backup(&content);
    let running = daemon(&place);
    let waits = mount(&place, &["web01", "--writable", "--limit", "1M", "--pause-when-full"]);
    let (id, uri) = (text(&waits, "id"), text(&waits, "uri"));
    let mut writer = Command::new("qemu-io");
    writer.args(["-f", "raw", "-c", "write -P 7 0 2M", "-c", "flush", &uri]);
    let writer = writer.stdout(std::process::Stdio::piped()).spawn();
    let mut writer = writer.expect("qemu-io (package qemu-utils) is installed");
    std::thread::sleep(Duration::from_millis(1500));
    assert!(writer.try_wait().expect("its state").is_none(), "it did not wait");
    // Whoever reads is served meanwhile.
    assert_eq!(contents(&place, &uri)[2 << 20..], content[2 << 20..]);
    place.run(&["mount", "extend", &id, "--limit", "3M"]).code(0);
    let done = writer.wait_with_output().expect("its end");
    let said = String::from_utf8_lossy(&done.stdout).into_owned();
    assert!(done.status.success() && !said.contains("failed"), "{said}");
    let mut expected = content.clone();
    expected[..2 << 20].fill(7);
    assert!(contents(&place, &uri) == expected);

    let refuses = mount(&place, &["web01", "--writable", "--limit", "1M"]);
    let uri = text(&refuses, "uri");
    let mut writer = Command::new("qemu-io");
    writer.args(["-f", "raw", "-c", "write -P 8 0 512k", "-c", "write -P 9 1M 2M", &uri]);
    let done = writer.output().expect("qemu-io (package qemu-utils) is installed");
    let said = String::from_utf8_lossy(&done.stdout).into_owned();
    assert!(said.contains("No space left"), "{said}");
    let now = contents(&place, &uri);
    assert!(now[..512 << 10].iter().all(|&byte| byte == 8) && now[3 << 20..] == content[3 << 20..]);
    running.signal(Signal::TERM);
    running.end().code(0);
}

/// A hypervisor's export is a source, and so is a mount; one that others may write to is in use.
#[test]
fn exports_are_sources() {
    let content = noise(10, 3 << 20);
    let place = with_backup(&content);
    let running = daemon(&place);
    let (uri, written) = (mount(&place, &["web01"]), mount(&place, &["web01", "--writable"]));
    let (uri, written) = (text(&uri, "uri"), text(&written, "uri"));
    place.run(&["backup", &format!("root={uri}"), "-m", "copy"]).code(0);
    assert!(restored(&place, "copy") == content);
    let refused = place.run(&["backup", &written, "-m", "other"]);
    assert_ne!(refused.code, 0);
    assert!(refused.stderr.contains("in use"), "{}", refused.stderr);
    let nowhere = format!("nbd+unix:///x?socket={}", place.text("nowhere"));
    let refused = place.run(&["backup", &nowhere, "-m", "other"]);
    assert!(refused.code != 0 && refused.stderr.contains("nowhere"), "{}", refused.stderr);
    running.signal(Signal::TERM);
    running.end().code(0);

    // QEMU's own server, with an image of another format behind it.
    let (image, socket) = (place.text("served.qcow2"), place.text("served.sock"));
    let made = Command::new("qemu-img")
        .args(["convert", "-O", "qcow2", &place.text("web01.raw"), &image])
        .status();
    assert!(made.expect("qemu-img (package qemu-utils) is installed").success());
    let server = Command::new("qemu-nbd").args(["-r", "-e", "8", "-k", &socket, &image]).spawn();
    let mut server = server.expect("qemu-nbd (package qemu-utils) is installed");
    wait_until("it listens", || std::path::Path::new(&socket).exists());
    let ran = place.run(&["backup", &format!("nbd+unix:///?socket={socket}"), "-m", "qemu"]);
    let _ = server.kill();
    let _ = server.wait();
    ran.code(0);
    assert!(restored(&place, "qemu") == content);
}
