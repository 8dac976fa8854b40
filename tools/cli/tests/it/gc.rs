//! Collections beside backups that run, hang and die, and the sessions they wait for.

use std::process::{Child, Command, Stdio};

use rustix::process::Signal;
use serde_json::Value;

use super::support::{Place, Running, has_fuse, noise, wait_until};

const MIB: usize = 1 << 20;

/// A repository with a point of db1, and what a removed point of it leaves to be collected.
fn place_with_waste() -> Place {
    let place = Place::with_repository();
    for seed in [1, 2] {
        let image = place.image("db1.raw", &noise(seed, 4 * MIB));
        place.run(&["backup", &image, "-m", "db1"]).code(0);
    }
    place.run(&["point", "remove", "db1@-1", "--yes"]).code(0);
    place
}

fn sessions(place: &Place) -> Vec<Value> {
    let list = place.run(&["session", "list", "--json"]).code(0).json();
    list["sessions"].as_array().cloned().unwrap_or_default()
}

fn check(place: &Place) {
    place.run(&["repo", "check", "--read-data"]).code(0);
}

/// A backup of `web01` that was stopped in the middle, as on a host that was suspended. It has a
/// cache of its own, as on another host: what it has locked there is its own business.
fn frozen_backup(place: &Place) -> Running {
    for seed in 100..110 {
        let image = place.image("web01.raw", &noise(seed, 128 * MIB));
        let args = ["backup", &image, "-m", "web01", "--cache-dir", "other"];
        let more = ["--workers", "1", "--progress", "json"];
        let mut running = place.start(&[&args[..], &more].concat());
        running.wait_for_stderr("\"phase\":\"read\"");
        running.signal(Signal::STOP);
        if sessions(place).len() == 1 {
            return running;
        }
        // It was done before it was stopped.
        running.signal(Signal::CONT);
        running.end().code(0);
    }
    panic!("every backup was over before it could be stopped");
}

/// A disk image whose second half cannot be read before the file `go` exists: a slow source.
struct SlowDisk<'a> {
    place: &'a Place,
    server: Child,
}

impl<'a> SlowDisk<'a> {
    fn new(place: &'a Place, content: &[u8]) -> Self {
        place.image("content", content);
        place.image("slow.raw", b"");
        let (go, content_path) = (place.text("go"), place.text("content"));
        let half = content.len() / 2;
        let read = format!(
            "pread=if [ $4 -ge {half} ]; then while [ ! -e {go} ]; do sleep 0.05; done; fi; \
             dd if={content_path} iflag=skip_bytes,count_bytes skip=$4 count=$3 bs=1M status=none"
        );
        let mut server = Command::new("nbdfuse");
        server.arg(place.path("slow.raw")).args(["--command", "nbdkit", "-s", "eval"]);
        server.arg(format!("get_size=echo {}", content.len())).arg(read);
        let server = server.stdin(Stdio::null()).spawn();
        let server = server.expect("nbdfuse (package libnbd-bin) and nbdkit are installed");
        let disk = Self { place, server };
        wait_until("the slow disk is there", || {
            std::fs::metadata(place.path("slow.raw")).is_ok_and(|m| m.len() > 0)
        });
        disk
    }

    fn go(&self) {
        std::fs::write(self.place.path("go"), b"").expect("written");
    }
}

impl Drop for SlowDisk<'_> {
    fn drop(&mut self) {
        let _ = std::fs::write(self.place.path("go"), b"");
        let _ = Command::new("umount").arg("-l").arg(self.place.path("slow.raw")).status();
        let _ = self.server.wait();
    }
}

#[test]
fn a_removed_point_gives_its_space_back() {
    let place = place_with_waste();
    let shown = place.run(&["repo", "show", "--json"]).code(0).json();
    assert_eq!(shown["contents"]["removed_points"], 1);
    assert_eq!(shown["contents"]["last_collection"], Value::Null);
    let before = place.usage("repo");
    let foretold = place.run(&["gc", "--dry-run", "--json"]).code(0).json();
    assert_eq!(place.usage("repo"), before, "a dry run changes nothing");
    assert_eq!((&foretold["dry_run"], &foretold["complete"]), (&true.into(), &true.into()));
    let people = place.run(&["gc", "--dry-run"]).code(0).stdout;
    assert!(people.starts_with("would free 4.0 MiB in "), "{people}");

    let done = place.run(&["gc", "--json"]).code(0).json();
    assert_eq!(done["freed"], foretold["freed"]);
    assert_eq!((&done["collection"], &done["forgotten_points"]), (&1.into(), &1.into()));
    let freed = done["freed"]["bytes"].as_u64().expect("bytes");
    assert!(freed >= 4 << 20, "{done}");
    let back = before - place.usage("repo");
    // Blocks of the file system, and the collection's own small records.
    assert!(back.abs_diff(freed) < 256 << 10, "{back} came back, {freed} were told");
    let shown = place.run(&["repo", "show", "--json"]).code(0).json();
    assert_eq!(shown["contents"]["removed_points"], 0);
    assert_eq!(shown["contents"]["last_collection"]["collection"], 1);
    assert_eq!(shown["contents"]["last_collection"]["packs"], done["freed"]["packs"]);

    let again = place.run(&["gc", "--json"]).code(0).json();
    assert_eq!((&again["freed"]["packs"], &again["complete"]), (&0.into(), &true.into()));
    check(&place);
}

#[test]
fn thin_packs_are_copied_only_where_that_is_wanted() {
    let place = Place::with_repository();
    // One pack holds the data of both points: the second adds to what the first has.
    let both = noise(5, 8 * MIB);
    let image = place.image("a.raw", &both);
    place.run(&["backup", &image, "-m", "a"]).code(0);
    let image = place.image("a.raw", &both[..3 * MIB]);
    place.run(&["backup", &image, "-m", "a"]).code(0);
    place.run(&["point", "remove", "a@-1", "--yes"]).code(0);
    for nothing in [&["gc", "--no-repack", "--json"][..], &["gc", "--max-repack", "1M", "--json"]] {
        let done = place.run(nothing).code(0).json();
        assert_eq!(done["copied_bytes"], 0, "{done}");
    }
    place.run(&["gc", "--no-repack", "--max-repack", "1M"]).code(2);
    let foretold = place.run(&["gc", "--dry-run", "--json"]).code(0).json();
    assert!(foretold["repacked"]["packs"].as_u64() > Some(0), "{foretold}");
    let before = place.usage("repo/packs");
    let done = place.run(&["gc", "--json"]).code(0).json();
    assert!(done["copied_bytes"].as_u64() >= Some(3 << 20), "{done}");
    assert!(place.usage("repo/packs") + (4 << 20) < before, "{done}");
    check(&place);
}

#[test]
fn a_collection_waits_for_a_slow_backup() {
    if !has_fuse("a_collection_waits_for_a_slow_backup") {
        return;
    }
    let place = place_with_waste();
    let content = noise(40, 8 * MIB);
    let disk = SlowDisk::new(&place, &content);
    let slow = place.text("slow.raw");
    let backup = place.start(&["backup", &slow, "-m", "web01", "--allow-changed"]);
    wait_until("the backup has registered", || !sessions(&place).is_empty());
    let open = sessions(&place);
    assert_eq!(
        (&open[0]["kind"], &open[0]["purpose"]),
        (&"writer".into(), &"backup of web01".into())
    );
    assert_eq!((&open[0]["process"], &open[0]["dead"]), (&backup.pid().into(), &false.into()));
    let table = place.run(&["session", "list"]).code(0).stdout;
    assert!(table.starts_with("SESSION ") && table.contains("backup of web01"), "{table}");

    let foretold = place.run(&["gc", "--dry-run", "--json"]).code(3).json();
    assert_eq!(foretold["waiting_for"][0]["purpose"], "backup of web01");
    let told = place.run(&["gc"]).code(3).stdout;
    assert!(told.starts_with("freed 0 B") && told.contains("later 4.0 MiB in"), "{told}");
    assert!(told.contains("backup of web01") && told.contains("gc --wait"), "{told}");
    let foretold = place.run(&["gc", "--dry-run", "--json"]).code(3).json();
    assert!(foretold["later"]["bytes"].as_u64() >= Some(4 << 20), "condemned: {foretold}");
    let waited = place.run(&["gc", "--wait=1s", "--json"]).code(3).json();
    assert_eq!((&waited["complete"], &waited["freed"]["packs"]), (&false.into(), &0.into()));
    assert_eq!(waited["waiting_for"][0]["id"], open[0]["id"]);

    let mut collecting = place.start(&["gc", "--wait", "--json", "--progress", "plain"]);
    collecting.wait_for_stderr("waiting for ");
    disk.go();
    backup.end().code(0);
    let done = collecting.end().code(0).json();
    assert_eq!((&done["complete"], &done["collection"]), (&true.into(), &1.into()));
    assert!(done["freed"]["bytes"].as_u64() >= Some(4 << 20), "{done}");
    place.run(&["restore", "disk", "web01", "--to", "out.raw"]).code(0);
    assert!(std::fs::read(place.path("out.raw")).expect("restored") == content);
    check(&place);
}

#[test]
fn waiting_ends_with_ctrl_c_and_says_what_is_left() {
    let place = place_with_waste();
    let backup = frozen_backup(&place);
    let mut collecting = place.start(&["gc", "--wait", "--progress", "plain"]);
    collecting.wait_for_stderr("waiting for ");
    collecting.signal(Signal::INT);
    let ran = collecting.end().code(130);
    assert!(ran.stdout.contains("later 4.0 MiB"), "{}", ran.stdout);
    assert!(ran.stdout.contains("backup of web01"), "{}", ran.stdout);
    backup.signal(Signal::CONT);
    backup.end().code(0);
    let done = place.run(&["gc", "--json"]).code(0).json();
    assert!(done["freed"]["bytes"].as_u64() >= Some(4 << 20), "{done}");
    check(&place);
}

#[test]
fn a_fenced_backup_fails_alone() {
    let place = place_with_waste();
    let backup = frozen_backup(&place);
    let id = sessions(&place)[0]["short_id"].as_str().expect("an id").to_owned();
    place.run(&["gc"]).code(3);
    let asked = place.run(&["session", "fence", &id]).code(19);
    for part in ["lose its own work only", "backup of web01", "--yes"] {
        assert!(asked.stderr.contains(part), "{part}: {}", asked.stderr);
    }
    place.run(&["session", "fence", "zzzzzz", "--yes"]).code(16);
    let args = ["session", "fence", &id, "--reason", "the host burned down", "--yes", "--json"];
    let fenced = place.run(&args).code(0).json();
    assert_eq!(
        (&fenced["committed"], &fenced["session"]["purpose"]),
        (&false.into(), &"backup of web01".into())
    );
    place.run(&args).code(16);
    let done = place.run(&["gc", "--json"]).code(0).json();
    assert!(done["freed"]["bytes"].as_u64() >= Some(4 << 20), "{done}");

    backup.signal(Signal::CONT);
    let ran = backup.end().code(1);
    for part in ["may not commit any more", "run it again", "the host burned down"] {
        assert!(ran.stderr.contains(part), "{part}: {}", ran.stderr);
    }
    let list = place.run(&["list", "--json"]).code(0).json();
    assert_eq!(list["points"].as_array().map(Vec::len), Some(1), "{list}");
    check(&place);
    place.run(&["backup", "web01.raw", "-m", "web01"]).code(0);
    place.run(&["gc"]).code(0);
    check(&place);
}

#[test]
fn a_killed_backup_is_fenced_by_the_collection() {
    let place = place_with_waste();
    let backup = frozen_backup(&place);
    backup.signal(Signal::KILL);
    backup.end();
    let open = sessions(&place);
    assert_eq!((open.len(), &open[0]["dead"]), (1, &true.into()));
    let foretold = place.run(&["gc", "--dry-run", "--json"]).code(0).json();
    assert_eq!(foretold["fenced"][0]["id"], open[0]["id"]);
    let done = place.run(&["gc", "--json"]).code(0).json();
    assert_eq!(done["fenced"][0]["purpose"], "backup of web01");
    assert!(done["freed"]["bytes"].as_u64() >= Some(4 << 20), "{done}");
    assert!(sessions(&place).is_empty());
    check(&place);
}

#[test]
fn a_session_that_cannot_be_read_is_given_up_by_its_id() {
    let place = place_with_waste();
    let backup = frozen_backup(&place);
    let id = sessions(&place)[0]["id"].as_str().expect("an id").to_owned();
    backup.signal(Signal::KILL);
    backup.end();
    for entry in std::fs::read_dir(place.path("repo/sessions")).expect("the sessions") {
        std::fs::write(entry.expect("an entry").path(), b"scribble").expect("written");
    }
    let told = place.run(&["session", "list"]).code(13);
    assert!(told.stderr.contains(&format!("session fence {id}")), "{}", told.stderr);
    place.run(&["gc"]).code(13);
    place.run(&["session", "fence", &id[..8], "--yes"]).code(13);
    let fenced = place.run(&["session", "fence", &id, "--yes", "--json"]).code(0).json();
    assert_eq!(fenced["session"], Value::Null);
    assert!(sessions(&place).is_empty());
    place.run(&["gc"]).code(0);
    check(&place);
}

#[test]
fn the_base_of_a_running_backup_stays() {
    let place = Place::with_repository();
    for seed in [1, 2] {
        let image = place.image("web01.raw", &noise(seed, MIB));
        place.run(&["backup", &image, "-m", "web01"]).code(0);
    }
    let backup = frozen_backup(&place);
    let told = place.run(&["point", "remove", "web01", "--yes"]).code(17);
    for part in ["in use since", "backup of web01", "wait for it", "session fence"] {
        assert!(told.stderr.contains(part), "{part}: {}", told.stderr);
    }
    backup.signal(Signal::CONT);
    backup.end().code(0);
    place.run(&["point", "remove", "web01@-1", "--yes"]).code(0);
}
