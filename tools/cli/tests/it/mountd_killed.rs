//! The mount daemon killed, or found half done: what was answered is there, and nothing else is.

use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal};
use serde_json::Value;

use super::mountd::{contents, daemon, list, mount, pins, text, with_backup};
use super::support::{Place, noise, wait_until};

/// The seed of a run, from BACKSTAY_SEED or new; printed.
#[allow(clippy::print_stdout, reason = "so that a run can be repeated")]
fn seed() -> u64 {
    let given = std::env::var("BACKSTAY_SEED").ok().and_then(|s| s.parse().ok());
    let time = std::time::UNIX_EPOCH.elapsed().map_or(1, |d| u64::from(d.subsec_nanos()));
    let seed = given.unwrap_or(time);
    println!("seed {seed} (repeat with BACKSTAY_SEED={seed})");
    seed
}

fn overlays(place: &Place) -> usize {
    std::fs::read_dir(place.path("state/overlays")).expect("the directory").count()
}

/// Changes the record of a mount as if the daemon had ended at another moment.
fn rewrite(place: &Place, id: &str, change: impl FnOnce(&mut Value)) {
    let path = place.path(&format!("state/mounts/{id}.json"));
    let text = std::fs::read(&path).expect("the record");
    let mut record: Value = serde_json::from_slice(&text).expect("a record");
    change(&mut record);
    std::fs::write(&path, serde_json::to_vec(&record).expect("JSON")).expect("written");
}

#[test]
fn what_is_half_done_is_undone_or_finished() {
    let place = with_backup(&noise(11, 1 << 20));
    let running = daemon(&place);
    // Being made, without the pin being noted; being made; being thrown away.
    let ids: Vec<String> =
        (0..3).map(|_| text(&mount(&place, &["web01", "--writable"]), "id")).collect();
    let stays = mount(&place, &["web01", "--writable"]);
    assert_eq!((pins(&place), overlays(&place)), (4, 4));
    running.signal(Signal::KILL);
    running.end();
    rewrite(&place, &ids[0], |record| {
        record["intent"] = "starting".into();
        record["pin"] = Value::Null;
    });
    rewrite(&place, &ids[1], |record| record["intent"] = "starting".into());
    rewrite(&place, &ids[2], |record| record["intent"] = "discard".into());
    let half = place.path("state/mounts/m-zzzzzz.json.new");
    std::fs::write(&half, "{\"version\":").expect("written");
    let strange = place.path("state/mounts/m-yyyyyy.json");
    std::fs::write(&strange, "{\"version\":99}").expect("written");
    let running = daemon(&place);
    assert_eq!(list(&place).len(), 1);
    assert_eq!((pins(&place), overlays(&place)), (1, 1));
    assert!(!half.exists(), "a record that was never whole");
    assert!(strange.exists(), "what another version wrote is left alone");
    assert_eq!(contents(&place, &text(&stays, "uri")).len(), 1 << 20);
    running.signal(Signal::TERM);
    running.end().code(0);
}

/// Kills the daemon that a command has started, if one has: its pid stands in the lock file.
fn kill_the_one_on_demand(place: &Place) {
    let lock = std::fs::read_to_string(place.path("state/lock")).expect("the lock file");
    let pid = Pid::from_raw(lock.trim().parse().expect("a pid")).expect("a pid");
    let name = std::fs::read_to_string(format!("/proc/{}/comm", pid.as_raw_nonzero()));
    if name.is_ok_and(|name| name.trim() == "backstay") {
        let _ = rustix::process::kill_process(pid, Signal::KILL);
        wait_until("it is gone", || rustix::process::test_kill_process(pid).is_err());
    }
}

/// The daemon is killed while mounts are made and ended. Every mount that was answered is there
/// afterwards; every other one is wholly there or wholly gone.
#[test]
fn killed_while_mounts_are_made_and_ended() {
    let place = with_backup(&noise(12, 256 << 10));
    let mut state = seed();
    let mut random = || {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        state >> 33
    };
    let mut running = daemon(&place);
    let mut there: Vec<String> = Vec::new();
    for _ in 0..12 {
        let made = place.start(&["mount", "nbd", "web01", "--writable", "--json"]);
        let ended = there.pop();
        let end = ended.as_ref().map(|id| place.start(&["mount", "end", id, "--json"]));
        std::thread::sleep(Duration::from_millis(random() % 120));
        running.signal(Signal::KILL);
        running.end();
        // The commands may have come too late for this one, and started another.
        let made = made.end();
        let ended = ended.zip(end.map(super::support::Running::end));
        kill_the_one_on_demand(&place);
        running = daemon(&place);
        let now: Vec<String> = list(&place).iter().map(|view| text(view, "id")).collect();
        if made.code == 0 {
            assert!(now.contains(&text(&made.json(), "id")), "answered, and not there");
        }
        if let Some((id, ran)) = &ended {
            assert!(ran.code != 0 || !now.contains(id), "ended, and still there");
        }
        assert!(there.iter().all(|id| now.contains(id)), "{there:?}, and there are {now:?}");
        assert_eq!((pins(&place), overlays(&place)), (now.len(), now.len()));
        there = now;
    }
    for id in there {
        place.run(&["mount", "end", &id]).code(0);
    }
    assert_eq!((pins(&place), overlays(&place)), (0, 0));
    running.signal(Signal::TERM);
    running.end().code(0);
}

/// A program of others that is ended with the test.
struct Other(std::process::Child);

impl Drop for Other {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// fio writes with a sum in every block and reads all of it back, through a client that connects anew,
/// while the daemon is killed and started again: whatever was acknowledged is there.
#[test]
fn killed_under_fio_with_sums_in_every_block() {
    let content = noise(13, 32 << 20);
    let place = with_backup(&content);
    let mut running = daemon(&place);
    let uri = text(&mount(&place, &["web01", "--writable"]), "uri");
    let socket = place.path("retry.sock");
    let mut retry = Command::new("nbdkit");
    retry.args(["-f", "--exit-with-parent", "--filter=retry", "-U"]).arg(&socket);
    retry.args(["nbd", &format!("uri={uri}"), "retry=30"]);
    retry.args(["retries=30", "retry-delay=1", "retry-exponential=no"]);
    let retry = retry.stderr(Stdio::null()).spawn().expect("nbdkit (package nbdkit) is installed");
    let _retry = Other(retry);
    wait_until("nbdkit listens", || socket.exists());
    let mut fio = Command::new("fio");
    fio.args(["--name=sums", "--ioengine=nbd", "--rw=randwrite", "--bs=4k", "--iodepth=16"]);
    fio.args(["--size=32m", "--io_size=32m", "--rate_iops=1600", "--verify=crc32c"]);
    fio.args(["--do_verify=1", "--verify_fatal=1", "--norandommap", "--verify_backlog=0"]);
    fio.arg(format!("--uri=nbd+unix:///?socket={}", socket.display()));
    fio.arg(format!("--randseed={}", seed())).current_dir(place.path("."));
    let fio = fio.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let fio = fio.expect("fio (package fio) is installed");
    for _ in 0..3 {
        std::thread::sleep(Duration::from_millis(900));
        running.signal(Signal::KILL);
        running.end();
        running = daemon(&place);
    }
    let done = fio.wait_with_output().expect("its end");
    let said = String::from_utf8_lossy(&done.stdout).into_owned();
    let errors = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{said}{errors}");
    assert!(said.contains("err= 0") && said.contains("READ:"), "{said}");
    // The point is what it was.
    assert!(super::mountd::restored(&place, "web01") == content);
    running.signal(Signal::TERM);
    running.end().code(0);
}
