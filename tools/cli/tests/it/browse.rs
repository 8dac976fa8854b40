//! Files inside guest disks: listed, read and mounted, beside what this machine's kernel shows of the same disk.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read as _, Seek as _, SeekFrom};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::process::{Pid, Signal};
use serde_json::Value;

use super::guest_disk::{self, DATA, Mounted, ROOT};
use super::mountd::{daemon, list, text};
use super::support::{Place, has_fuse, wait_until};

/// A repository with a backup of `web01`, whose disk is a guest's.
fn with_guest() -> (Place, PathBuf) {
    let place = Place::with_repository();
    let disk = guest_disk::make(&place, "web01.raw");
    place.run(&["backup", disk.to_str().expect("plain"), "-m", "web01"]).code(0);
    (place, disk)
}

/// Takes mounts away when a test fails half way.
struct Unmounted(PathBuf);

impl Drop for Unmounted {
    fn drop(&mut self) {
        if is_mounted(&self.0) {
            let _ = Command::new("umount").arg("-l").arg(&self.0).status();
        }
    }
}

fn is_mounted(path: &Path) -> bool {
    let table = fs::read_to_string("/proc/self/mounts").expect("the mount table");
    table.lines().any(|line| line.split(' ').nth(1) == path.to_str())
}

fn names(entries: &Value) -> Vec<String> {
    entries["entries"].as_array().expect("entries").iter().map(|e| text(e, "name")).collect()
}

#[test]
fn files_inside_disks_are_listed_and_read() {
    if guest_disk::cannot("files_inside_disks_are_listed_and_read") {
        return;
    }
    let (place, disk) = with_guest();
    let ls = |what: &str| place.run(&["ls", what, "--json"]).code(0).json();
    let volumes = ls("web01");
    let all = volumes["volumes"].as_array().expect("volumes");
    let named = |name: &str| all.iter().find(|v| v["name"] == name).expect("a volume");
    assert!(text(named("disk0"), "content").contains("GPT"));
    assert_eq!(text(named("disk0p1"), "content"), "btrfs");
    assert_eq!(named("disk0p1")["mounted_at"][0], "/");
    assert_eq!(named("disk0p2")["mounted_at"][0], "/srv/data");
    assert!(volumes["systems"][0]["missing"][0].as_str().expect("a line").contains("/lost"));

    assert_eq!(names(&ls("web01//")), ["bin", "etc", "null", "pipe", "srv", "var"]);
    assert_eq!(names(&ls("web01:disk0p2//")), ["again", "deep", "latin-\\xe4", "sparse"]);
    // The guest's own tree: what a volume covers is not seen, what lies on it is; a single volume is what it is.
    assert_eq!(names(&ls("web01//srv/data")), ["again", "deep", "latin-\\xe4", "sparse"]);
    assert_eq!(names(&ls("web01:disk0p1//srv/data")), ["covered"]);
    let long = place.run(&["ls", "-l", "web01//etc"]).code(0).stdout;
    assert!(long.contains("link -> /etc/hostname"), "{long}");
    assert!(long.contains("-rw-------   1234     77"), "{long}");

    let cat = |what: &str| place.run(&["cat", what]).code(0).stdout;
    assert_eq!(cat("web01//etc/hostname"), "web01\n");
    assert_eq!(cat("web01//etc/link"), "web01\n");
    assert_eq!(cat("web01//etc/down/er/file"), "found\n");
    assert_eq!(cat("web01//srv/data/deep/../again"), "found\n");
    assert_eq!(cat("web01:disk0p2//deep/entry-2999"), "2999");
    let part =
        place.run(&["cat", "web01//srv/data/sparse", "--offset", "3221225472", "--length", "8"]);
    assert_eq!(part.code(0).stdout, "far away");
    let raw = std::ffi::OsStr::from_bytes(b"web01:disk0p2//latin-\xe4");
    let done = place.command(&["cat"]).arg(raw).output().expect("it runs");
    assert_eq!(done.stdout, b"no text\n");

    for (what, code) in [
        ("web01//etc/nothing", 16),
        ("web01//etc/hostname/below", 2),
        ("web01//etc", 2),
        ("web01//etc/round", 13),
        ("web01//null", 2),
        ("web01:disk0p9//etc", 16),
        ("web01:disk0//etc", 16),
        ("web01/etc", 2),
        ("web01", 2),
        ("web02//etc", 16),
    ] {
        let error = place.run(&["cat", what, "--json"]).code(code).json_error();
        assert!(!text(&error, "message").is_empty(), "{what}: {error}");
    }
    let several = place.run(&["ls", "web01:disk0//", "--json"]).code(16).json_error();
    assert!(text(&several, "message").contains("disk0p1, disk0p2"), "{several}");
    drop(disk);
}

/// Everything a tree shows, by path: metadata, content, targets, attributes.
fn tree(root: &Path) -> BTreeMap<PathBuf, String> {
    let mut all = BTreeMap::new();
    let mut waiting = vec![root.to_owned()];
    while let Some(path) = waiting.pop() {
        let meta = fs::symlink_metadata(&path).unwrap_or_else(|e| panic!("{path:?}: {e}"));
        let kind = meta.file_type();
        let mut shown = format!(
            "{:o} {} {} links {} size {} {}.{} {}.{} {}.{} rdev {}",
            meta.mode(),
            meta.uid(),
            meta.gid(),
            meta.nlink(),
            meta.len(),
            meta.mtime(),
            meta.mtime_nsec(),
            meta.ctime(),
            meta.ctime_nsec(),
            meta.atime(),
            meta.atime_nsec(),
            meta.rdev(),
        );
        if kind.is_dir() {
            let entries = fs::read_dir(&path).expect("a list");
            waiting.extend(entries.map(|e| e.expect("an entry").path()));
        } else if kind.is_symlink() {
            shown += &format!(" to {:?}", fs::read_link(&path).expect("a target"));
        } else if kind.is_file() {
            shown += &format!(" holds {}", content(&path, meta.len()));
        }
        let mut names = vec![0; 4096];
        let len = rustix::fs::llistxattr(&path, &mut names[..]).expect("attributes");
        for name in names[..len].split(|b| *b == 0).filter(|n| !n.is_empty()) {
            let mut value = vec![0; 4096];
            let name = std::ffi::CString::new(name).expect("a name");
            let len =
                rustix::fs::lgetxattr(&path, name.as_c_str(), &mut value[..]).expect("a value");
            shown += &format!(" {name:?}={:?}", &value[..len]);
        }
        all.insert(path.strip_prefix(root).expect("below").to_owned(), shown);
    }
    all
}

/// A sum over the content; holes are passed over, and where they are is part of it.
fn content(path: &Path, size: u64) -> String {
    let mut file = File::open(path).expect("it opens");
    let (mut sum, mut at, mut data) = (0u64, 0, Vec::new());
    while let Ok(start) = rustix::fs::seek(&file, rustix::fs::SeekFrom::Data(at)) {
        let end = rustix::fs::seek(&file, rustix::fs::SeekFrom::Hole(start)).unwrap_or(size);
        file.seek(SeekFrom::Start(start)).expect("it seeks");
        data.clear();
        (&mut file).take(end - start).read_to_end(&mut data).expect("it reads");
        assert_eq!(data.len() as u64, end - start, "{path:?}");
        // Trailing zeros of what one calls data may be a hole to the other.
        let len = data.iter().rposition(|b| *b != 0).map_or(0, |i| i + 1);
        for (i, byte) in data[..len].iter().enumerate().filter(|(_, b)| **b != 0) {
            sum = sum
                .wrapping_add((start + i as u64).wrapping_mul(u64::from(*byte) | 1 << 32))
                .rotate_left(1);
        }
        at = end;
    }
    format!("{sum:x}")
}

fn same(ours: &Path, theirs: &Path) {
    let (ours, theirs) = (tree(ours), tree(theirs));
    assert!(ours.len() > 3, "an empty tree proves nothing");
    for (path, shown) in &theirs {
        assert_eq!(ours.get(path), Some(shown), "{path:?}");
    }
    assert_eq!(ours.len(), theirs.len(), "names that the kernel does not show");
}

#[test]
fn a_mount_of_files_is_what_the_kernel_shows() {
    let test = "a_mount_of_files_is_what_the_kernel_shows";
    if guest_disk::cannot(test) || !has_fuse(test) {
        return;
    }
    let (place, disk) = with_guest();
    let dir = place.path("mnt");
    fs::create_dir(&dir).expect("a directory");
    let _cleanup = Unmounted(dir.clone());
    let running = daemon(&place);
    let view = place.run(&["mount", "files", "web01", "mnt", "--json"]).code(0).json();
    assert_eq!(view["kind"], "files");
    assert_eq!(view["directory"].as_str(), dir.to_str());
    let kernel = |(start, len): (u64, u64), name: &str| {
        let options = format!("ro,offset={},sizelimit={}", start << 20, len << 20);
        Mounted::new(&disk, place.path(name), &options)
    };
    let (root, data) = (kernel(ROOT, "root"), kernel(DATA, "data"));
    same(&dir.join("files/disk0p1"), root.path());
    same(&dir.join("files/disk0p2"), data.path());
    // The guest's own tree: the data lies over what the root has there.
    let mounted = dir.join("files/mounted");
    same(&mounted.join("srv/data"), data.path());
    same(&mounted.join("etc"), &root.path().join("etc"));
    assert!(!mounted.join("srv/data/covered").exists());
    // Files are as they are: nothing runs as another user, devices are none.
    let options = fs::read_to_string("/proc/self/mounts").expect("the mount table");
    let line = options.lines().find(|l| l.split(' ').nth(1) == dir.to_str()).expect("the mount");
    for option in ["ro", "nosuid", "nodev", "noexec"] {
        assert!(line.split([' ', ',']).any(|word| word == option), "{option}: {line}");
    }
    assert!(File::open(dir.join("files/disk0p1/null")).is_err(), "a device of the guest opens");
    assert!(fs::write(dir.join("files/disk0p1/etc/hostname"), "x").is_err());
    let about = fs::read_to_string(dir.join("volumes.txt")).expect("the text");
    assert!(about.contains("disk0p1") && about.contains("/lost"), "{about}");
    // The disks themselves are beside.
    assert_eq!(fs::metadata(dir.join("disks/disk0.raw")).expect("the disk").len(), 352 << 20);
    drop((root, data));
    readers_are_confined(&running);
    place.run(&["mount", "end", &text(&view, "id")]).code(0);
    assert!(!is_mounted(&dir));
    running.signal(Signal::TERM);
    running.end().code(0);
}

/// Processes of `parent` that read guests' file systems.
fn readers(parent: u32) -> Vec<u32> {
    let all = fs::read_dir("/proc").expect("processes").flatten();
    let pids = all.filter_map(|e| e.file_name().to_str()?.parse::<u32>().ok());
    pids.filter(|pid| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let of = stat.rsplit(") ").next().and_then(|rest| rest.split(' ').nth(1));
        line.windows(10).any(|w| w == b"read-guest") && of == Some(&parent.to_string())
    })
    .collect()
}

/// What the kernel says of the reader: it may do nothing but talk.
fn readers_are_confined(daemon: &super::support::Running) {
    let found = readers(daemon.pid());
    assert_eq!(found.len(), 1, "one reader for one point");
    let proc = |file: &str| fs::read_to_string(format!("/proc/{}/{file}", found[0])).expect("proc");
    let status = proc("status");
    for line in ["Seccomp:\t2", "NoNewPrivs:\t1"] {
        assert!(status.contains(line), "{line}\n{status}");
    }
    // All its threads, not only the first.
    for thread in fs::read_dir(format!("/proc/{}/task", found[0])).expect("threads").flatten() {
        let status = fs::read_to_string(thread.path().join("status")).expect("a status");
        assert!(status.contains("Seccomp:\t2"), "{status}");
    }
    let limits = proc("limits");
    let limit = |name: &str| {
        let line = limits.lines().find(|l| l.starts_with(name)).expect("a limit");
        line[name.len()..].split_whitespace().next().expect("a number").to_owned()
    };
    let space: u64 = limit("Max address space").parse().expect("a bound on memory");
    assert!(space < 2 << 30, "{space}");
    for name in ["Max file size", "Max processes", "Max open files", "Max core file size"] {
        assert_eq!(limit(name), "0", "{name}");
    }
    for fd in fs::read_dir(format!("/proc/{}/fd", found[0])).expect("descriptors").flatten() {
        let target = fs::read_link(fd.path()).expect("a target");
        let target = target.to_string_lossy();
        // A pipe of whoever runs the tests comes through us all; the filter lets it use its sockets alone.
        let harmless =
            ["socket:", "pipe:", "/dev/null"].iter().any(|kind| target.starts_with(kind));
        assert!(harmless, "{target}");
    }
}

#[test]
fn a_mount_of_files_in_the_ledger() {
    let test = "a_mount_of_files_in_the_ledger";
    if guest_disk::cannot(test) || !has_fuse(test) {
        return;
    }
    let (place, _disk) = with_guest();
    let dir = place.path("mnt");
    fs::create_dir(&dir).expect("a directory");
    let _cleanup = Unmounted(dir.clone());
    let hostname = dir.join("files/mounted/etc/hostname");
    let read = || fs::read_to_string(&hostname);
    let mut running = daemon(&place);
    let made = place.run(&["mount", "files", "web01", "mnt", "--reason", "a look", "--json"]);
    let id = text(&made.code(0).json(), "id");
    assert_eq!(read().expect("it reads"), "web01\n");
    let shown = place.run(&["mount", "show", &id]).code(0).stdout;
    assert!(shown.contains(dir.to_str().expect("plain")) && shown.contains("a look"), "{shown}");
    // The same directory twice is one too many.
    place.run(&["mount", "files", "web01", "mnt"]).code(17);
    assert_eq!(list(&place).len(), 1);

    // A reader that dies costs nobody the mount.
    for pid in readers(running.pid()) {
        let pid = Pid::from_raw(pid as i32).expect("a process");
        rustix::process::kill_process(pid, Signal::KILL).expect("it is killed");
    }
    wait_until("it reads again", || {
        fs::read_to_string(dir.join("files/disk0p2/deep/entry-77")).is_ok_and(|t| t == "77")
    });

    // Killed: the next daemon shows it again, at the same place under the same name.
    running.signal(Signal::KILL);
    running.end();
    running = daemon(&place);
    wait_until("it is there again", || read().is_ok_and(|text| text == "web01\n"));
    assert_eq!(text(&list(&place)[0], "id"), id);
    // Stopped in good order: gone, and there again.
    running.signal(Signal::TERM);
    running.end().code(0);
    wait_until("it is gone", || !is_mounted(&dir));
    running = daemon(&place);
    assert_eq!(read().expect("it reads"), "web01\n");

    // In use it stays, unless somebody insists.
    let open = File::open(&hostname).expect("it opens");
    let busy = place.run(&["mount", "end", &id, "--json"]).code(17).json_error();
    assert!(!text(&busy, "message").is_empty());
    assert_eq!(read().expect("it reads"), "web01\n");
    place.run(&["mount", "end", &id, "--force"]).code(0);
    assert!(!is_mounted(&dir));
    drop(open);

    // Unmounted by somebody: the ledger learns of it.
    place.run(&["mount", "files", "web01", "mnt"]).code(0);
    guest_disk::run("umount", &[dir.to_str().expect("plain")]);
    wait_until("the ledger knows", || list(&place).is_empty());
    // Its time is over.
    place.run(&["mount", "files", "web01", "mnt", "--for", "1s"]).code(0);
    wait_until("it ends by itself", || !is_mounted(&dir) && list(&place).is_empty());
    // What cannot be.
    place.run(&["mount", "files", "web01", "nowhere"]).code(16);
    place.run(&["mount", "files", "web01", "mnt", "--as", "1:x"]).code(2);
    running.signal(Signal::TERM);
    running.end().code(0);
}

#[test]
fn owners_are_who_the_mount_says() {
    let test = "owners_are_who_the_mount_says";
    if guest_disk::cannot(test) || !has_fuse(test) {
        return;
    }
    let (place, _disk) = with_guest();
    let dir = place.path("mnt");
    fs::create_dir(&dir).expect("a directory");
    let _cleanup = Unmounted(dir.clone());
    let running = daemon(&place);
    let owner = |args: &[&str]| {
        let made = place.run(&[&["mount", "files", "web01", "mnt", "--json"], args].concat());
        let id = text(&made.code(0).json(), "id");
        let meta = fs::metadata(dir.join("files/disk0p1/etc/secret")).expect("metadata");
        place.run(&["mount", "end", &id]).code(0);
        (meta.uid(), meta.gid())
    };
    assert_eq!(owner(&[]), (1234, 77));
    assert_eq!(owner(&["--as", "5:6"]), (5, 6));
    assert_eq!(owner(&["--map", "1000:101000:1000", "--map", "77:7:1"]), (101_234, 7));
    running.signal(Signal::TERM);
    running.end().code(0);
}

#[test]
fn files_are_taken_out_with_their_metadata() {
    if guest_disk::cannot("files_are_taken_out_with_their_metadata") {
        return;
    }
    let (place, disk) = with_guest();
    let told = place.run(&["get", "web01:disk0p2//", "--to", "out", "--json"]).code(0).json();
    assert_eq!(told["complete"], true, "{told}");
    {
        let (start, len) = DATA;
        let options = format!("ro,offset={},sizelimit={}", start << 20, len << 20);
        let kernel = Mounted::new(&disk, place.path("kernel"), &options);
        let without_changes = |root: &Path| -> BTreeMap<PathBuf, String> {
            // When metadata changed last, and was read last, is of this machine.
            let shorter = |shown: String| -> String {
                let words: Vec<&str> = shown.split(' ').collect();
                let kept = words.iter().enumerate().filter(|(i, _)| ![8, 9].contains(i));
                kept.map(|(_, word)| *word).collect::<Vec<_>>().join(" ")
            };
            let all = tree(root).into_iter().map(|(path, shown)| (path, shorter(shown)));
            // The sizes of directories are the file system's own.
            all.filter(|(path, _)| !root.join(path).is_dir()).collect()
        };
        let (ours, theirs) = (without_changes(&place.path("out")), without_changes(kernel.path()));
        for (path, shown) in &theirs {
            assert_eq!(ours.get(path), Some(shown), "{path:?}");
        }
        assert_eq!(ours.len(), theirs.len());
    }
    // One file, by the guest's own path; what gives rights only when asked for.
    place.run(&["get", "web01//bin/tool"]).code(0);
    let mode = |name: &str| fs::metadata(place.path(name)).expect("it is there").mode() & 0o7777;
    assert_eq!(mode("tool"), 0o755);
    place.run(&["get", "web01//bin/tool"]).code(3);
    place.run(&["get", "web01//bin/tool", "--overwrite", "--privileged-metadata"]).code(0);
    assert_eq!(mode("tool"), 0o4755);
    place.run(&["get", "web01//etc/link"]).code(0);
    assert_eq!(fs::read_link(place.path("link")).expect("a link").to_str(), Some("/etc/hostname"));
    place.run(&["get", "web01//no/such/file"]).code(16);
    place.run(&["get", "web01//var/log/large", "--max-size", "1M"]).code(18);
    assert!(!place.path("large").exists());
}
