//! Volume groups of one name: of two machines, and of this one, at once.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::process::Signal;

use super::guest_disk::{self, run};
use super::mountd::{daemon, text};
use super::support::{Place, has_fuse, skipped};

const MIB: u64 = 1 << 20;
/// What LVM is told: to see one device, and to leave udev and its caches alone.
const CONFIG: &str = "devices { dir=\"/dev\" scan=[\"/dev\"] use_devicesfile=0 obtain_device_list_from_udev=0 \
    external_device_info_source=\"none\" multipath_component_detection=0 md_component_detection=0 \
    global_filter=[\"a|^DEVICE$|\",\"r|.*|\"] }\n\
    global { use_lvmpolld=0 event_activation=0 use_lvmlockd=0 locking_dir=\"ETC/locks\" }\n\
    activation { udev_sync=0 udev_rules=0 monitoring=0 }\nbackup { backup=0 archive=0 }\n";

/// A loop device that goes when this is dropped.
struct Loop(String);

impl Loop {
    fn over(path: &Path) -> Self {
        let path = path.to_str().expect("plain");
        Self(run("losetup", &["-f", "--show", path]).trim().to_owned())
    }

    /// Runs a program of LVM that sees this device alone.
    fn lvm(&self, place: &Place, program: &str, args: &[&str]) -> String {
        let etc = place.path("lvm");
        fs::create_dir_all(etc.join("locks")).expect("a directory");
        let config = CONFIG.replace("DEVICE", &self.0).replace("ETC", etc.to_str().expect("plain"));
        fs::write(etc.join("lvm.conf"), config).expect("the configuration");
        let path = std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/sbin";
        let done = Command::new(program)
            .args(args)
            .env("PATH", path)
            .env("LVM_SYSTEM_DIR", &etc)
            .env("LVM_SUPPRESS_FD_WARNINGS", "1")
            .output()
            .expect("it starts");
        let errors = String::from_utf8_lossy(&done.stderr);
        assert!(done.status.success(), "{program} {args:?}: {errors}");
        String::from_utf8_lossy(&done.stdout).into_owned()
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").args(["-d", &self.0]).status();
    }
}

/// A disk with the volume group `vg0` and in it the volume `root` with a file that says whose it is.
fn disk(place: &Place, name: &str) -> PathBuf {
    let disk = place.path(&format!("{name}.raw"));
    File::create(&disk).and_then(|f| f.set_len(48 * MIB)).expect("a sparse file");
    {
        let device = Loop::over(&disk);
        device.lvm(place, "pvcreate", &["-q", "--dataalignment", "1m", &device.0]);
        device.lvm(place, "vgcreate", &["-q", "-s", "1m", "vg0", &device.0]);
        let plan =
            ["--driverloaded", "n", "-an", "-Zn", "-Wn", "-q", "-l", "40", "-n", "root", "vg0"];
        device.lvm(place, "lvcreate", &plan);
    }
    let tree = place.path(&format!("{name}.tree"));
    fs::create_dir(&tree).expect("a directory");
    fs::write(tree.join("whose"), name).expect("a file");
    let (tree, path) = (tree.to_str().expect("plain"), disk.to_str().expect("plain"));
    // The volume begins with the first extent.
    run("mke2fs", &["-q", "-F", "-t", "ext4", "-E", "offset=1048576", "-d", tree, path, "40960k"]);
    disk
}

#[test]
fn groups_of_one_name_side_by_side() {
    let test = "groups_of_one_name_side_by_side";
    if guest_disk::cannot(test) || !has_fuse(test) {
        return;
    }
    if !Path::new("/usr/sbin/pvcreate").exists() && !Path::new("/sbin/pvcreate").exists() {
        skipped(&format!("{test}: this machine has no LVM"));
        return;
    }
    let place = Place::with_repository();
    // This machine has such a group too, on a device that is there all the time.
    let own = disk(&place, "host");
    let attached = Loop::over(&own);
    let before = fs::read(&own).expect("the disk");
    for machine in ["web01", "web02"] {
        let disk = disk(&place, machine);
        place.run(&["backup", disk.to_str().expect("plain"), "-m", machine]).code(0);
    }
    let running = daemon(&place);
    let mut mounts = Vec::new();
    for machine in ["web01", "web02"] {
        fs::create_dir(place.path(machine)).expect("a directory");
        let view = place.run(&["mount", "files", machine, machine, "--json"]).code(0).json();
        mounts.push(text(&view, "id"));
    }
    for machine in ["web01", "web02"] {
        let listed = place.run(&["ls", machine, "--json"]).code(0).json();
        let volumes = listed["volumes"].as_array().expect("volumes");
        let root = volumes.iter().find(|v| v["name"] == "vg0/root").expect("the volume");
        assert!(root["used_bytes"].as_u64().expect("it is known") > 0, "{root}");
        let named = format!("{machine}:vg0/root//whose");
        assert_eq!(place.run(&["cat", &named]).code(0).stdout, machine);
        let path = place.path(machine).join("files/vg0-root/whose");
        assert_eq!(fs::read_to_string(path).expect("it is there"), machine);
    }
    // Nobody touched the one of this machine, and LVM sees that one alone.
    let seen = attached.lvm(&place, "vgs", &["--noheadings", "-o", "vg_name,lv_count"]);
    assert_eq!(seen.split_whitespace().collect::<Vec<_>>(), ["vg0", "1"]);
    for id in mounts {
        place.run(&["mount", "end", &id]).code(0);
    }
    drop(attached);
    assert!(fs::read(&own).expect("the disk") == before, "the disk of this machine was written to");
    running.signal(Signal::TERM);
    running.end().code(0);
}
