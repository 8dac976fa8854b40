//! Ctrl-C and SIGTERM in the middle of work.

use rustix::process::Signal;

use super::support::{Place, noise};

const LARGE: usize = 192 << 20;

#[test]
fn a_backup_that_is_interrupted_leaves_a_healthy_repository() {
    let place = Place::with_repository();
    let image = place.image("large.raw", &noise(1, LARGE));
    for (signal, code) in [(Signal::INT, 130), (Signal::TERM, 143)] {
        let mut running =
            place.start(&["backup", &image, "-m", "web01", "--workers", "1", "--progress", "json"]);
        running.wait_for_stderr("\"phase\":\"read\"");
        running.signal(signal);
        running.end().code(code);
        let list = place.run(&["list", "--json"]).code(0).json();
        assert_eq!(list["points"].as_array().map(Vec::len), Some(0), "nothing half is listed");
        place.run(&["repo", "check", "--read-data"]).code(0);
    }
    place.run(&["backup", &image, "-m", "web01"]).code(0);
    interrupted_restore(&place);
}

/// Shares the backup of the test above, which took a while to make.
fn interrupted_restore(place: &Place) {
    let mut running =
        place.start(&["restore", "disk", "web01", "--to", "out.raw", "--progress", "json"]);
    running.wait_for_stderr("\"phase\":\"write\"");
    running.signal(Signal::INT);
    running.end().code(130);
    let left: Vec<_> = std::fs::read_dir(place.path(""))
        .expect("the place")
        .map(|entry| entry.expect("an entry").file_name())
        .filter(|name| name.to_string_lossy().contains("out"))
        .collect();
    assert!(left.is_empty(), "left behind: {left:?}");
}

#[test]
fn killing_a_backup_outright_loses_no_point() {
    let place = Place::with_repository();
    let small = place.image("small.raw", &noise(3, 1 << 20));
    place.run(&["backup", &small, "-m", "web01"]).code(0);
    let image = place.image("large.raw", &noise(2, LARGE));
    let mut running =
        place.start(&["backup", &image, "-m", "web01", "--workers", "1", "--progress", "json"]);
    running.wait_for_stderr("\"phase\":\"read\"");
    running.signal(Signal::KILL);
    running.end();
    let list = place.run(&["list", "--json"]).code(0).json();
    assert_eq!(list["points"].as_array().map(Vec::len), Some(1));
    place.run(&["repo", "check", "--read-data"]).code(0);
    place.run(&["backup", &image, "-m", "web01"]).code(0);
}
