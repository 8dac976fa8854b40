//! Backups with change maps, as a hypervisor's dirty bitmap gives them.

use std::process::{Child, Command, Stdio};

use super::support::{Place, noise};

fn tool(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output();
    let output = output.unwrap_or_else(|e| panic!("{program} is needed by this test: {e}"));
    assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// A server that is ended with the test.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What the bitmap `b0` of an image holds, asked of a real NBD server.
fn dirty_map(place: &Place, image: &str) -> String {
    let socket = place.text("socket");
    let args = ["-r", "-t", "-f", "qcow2", "-B", "b0", "-k", &socket, image];
    let child = Command::new("qemu-nbd").args(args).stdin(Stdio::null()).spawn();
    let _server = Server(child.expect("qemu-nbd is installed"));
    let started = std::time::Instant::now();
    while std::os::unix::net::UnixStream::connect(&socket).is_err() {
        assert!(started.elapsed().as_secs() < 20, "qemu-nbd does not listen");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    let uri = format!("nbd+unix:///?socket={socket}");
    let map = tool("nbdinfo", &["--json", "--map=qemu:dirty-bitmap:b0", &uri]);
    std::fs::remove_file(socket).expect("the socket goes");
    map
}

#[test]
fn a_dirty_bitmap_tells_what_to_read() {
    let place = Place::with_repository();
    let (raw, image) = (place.image("a.raw", &noise(1, 8 << 20)), place.text("a.qcow2"));
    tool("qemu-img", &["convert", "-f", "raw", "-O", "qcow2", &raw, &image]);
    tool("qemu-img", &["bitmap", "--add", &image, "b0"]);
    let first = place.run(&["backup", &image, "-m", "vm", "--json"]).code(0).json();
    let write = ["-f", "qcow2", "-c", "write -P 7 1M 4k", "-c", "write -P 8 5000k 300k", &image];
    tool("qemu-io", &write);
    std::fs::write(place.path("map.json"), dirty_map(&place, &image)).expect("written");

    let since = format!("@{}", first["point"]["short_id"].as_str().expect("an id"));
    let backup =
        ["backup", &image, "-m", "vm", "--changed-since", &since, "--change-map", "map.json"];
    let second = place.run(&[&backup[..], &["--json"]].concat()).code(0).json();
    assert_eq!(second["change_maps"][0]["used"], true, "{second}");
    // One chunk for the first write, and up to six for the second.
    let read = second["point"]["read_bytes"].as_u64().expect("a number");
    assert!((2 * 65536..=8 * 65536).contains(&read), "{read}");
    assert_eq!(second["kept_bytes"].as_u64().map(|kept| kept + read), Some(8 << 20));
    // A plain backup after it finds nothing new: the map left nothing out.
    let plain = place.run(&["backup", &image, "-m", "vm", "--json"]).code(0).json();
    assert_eq!(plain["point"]["new_bytes"], 0);
    place.run(&["diff", "vm@-1", "vm", "--exit-code"]).code(0);
    let people = place.run(&backup).code(0).stdout;
    assert!(people.contains("unchanged, not read"), "{people}");
}

#[test]
fn a_map_that_cannot_be_used_is_told_and_the_disk_is_read() {
    let place = Place::with_repository();
    let image = place.image("a.raw", &noise(1, 2 << 20));
    place.run(&["backup", &image, "-m", "one"]).code(0);
    place.image("map.json", b"[]");
    place.image("a.raw", &noise(2, 2 << 20));
    let args = |machine, json| {
        let mut args = vec![
            "backup",
            &image,
            "-m",
            machine,
            "--changed-since",
            "one",
            "--change-map",
            "map.json",
        ];
        args.extend(json);
        args
    };
    let ran = place.run(&args("two", Some("--json"))).code(0);
    let document = ran.json();
    assert_eq!(document["change_maps"][0]["used"], false);
    let why = document["change_maps"][0]["reason"].as_str().expect("a reason");
    assert!(why.contains("point"), "{why}");
    assert_eq!(document["point"]["read_bytes"], 2 << 20);
    let people = place.run(&args("two", None)).code(0);
    assert!(people.stderr.contains("read as a whole"), "{}", people.stderr);
}

#[test]
fn wrong_maps_are_refused() {
    let place = Place::with_repository();
    let image = place.image("a.raw", &noise(1, 100_000));
    place.run(&["backup", &image, "-m", "a"]).code(0);
    let run = |more: &[&str]| place.run(&[&["backup", &image, "-m", "a"][..], more].concat());
    let with = |map: &str| run(&["--changed-since", "a", "--change-map", map]);
    run(&["--changed-since", "a"]).code(2);
    run(&["--change-map", "map.json"]).code(2);
    with("missing.json").code(16);
    place.image("holes.json", br#"[{"offset":0,"length":9,"type":0,"description":"data"}]"#);
    assert!(with("holes.json").code(2).stderr.contains("neither dirty nor clean"));
    place.image("map.json", b"[]");
    with("disk7=map.json").code(2);
    run(&["--changed-since", "x", "--change-map", "map.json"]).code(16);
    let twice = ["--changed-since", "a", "--change-map", "map.json", "--change-map", "map.json"];
    run(&twice).code(2);
    with("disk0=map.json").code(0);
    let list = place.run(&["list", "--json"]).code(0).json();
    assert_eq!(list["points"].as_array().map(Vec::len), Some(2));
}
