//! Volume groups made by the real LVM, apart from the host's own. There is no device-mapper here, so volumes that LVM would have to
//! start come from a text that it takes back by `vgcfgrestore`, which checks it and writes it as its own.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::Command;

use tempfile::TempDir;

use super::hold::{Loops, MIB, put};
use crate::support::image::{Image, no_kernel_mount, skipped};

/// The extents of all groups here, and where the first one is on each physical volume.
pub(crate) const EXTENT: u64 = MIB;
pub(crate) const PE_START: u64 = MIB;

const CONFIG: &str = "devices { dir=\"/dev\" scan=[\"/dev\"] use_devicesfile=0 obtain_device_list_from_udev=0 \
    external_device_info_source=\"none\" multipath_component_detection=0 md_component_detection=0 \
    global_filter=[FILTER,\"r|.*|\"] }\n\
    global { use_lvmpolld=0 event_activation=0 use_lvmlockd=0 locking_dir=\"LOCKS\" }\n\
    activation { udev_sync=0 udev_rules=0 monitoring=0 }\nbackup { backup=0 archive=0 }\n";

/// A machine with a volume group over whole disks.
pub(crate) struct Group {
    pub(crate) images: Vec<Image>,
    name: String,
    dir: TempDir,
    /// Text of volumes to come, and how many extents of each disk are taken.
    text: String,
    taken: Vec<u64>,
    volumes: u32,
}

/// Whether this machine lacks something; says so aloud.
pub(crate) fn no_lvm(test: &str) -> bool {
    no_kernel_mount(test, "ext4") || skipped(test, &["pvcreate", "losetup"])
}

impl Group {
    /// `count` disks of 64 MiB in one group.
    pub(crate) fn new(name: &str, count: usize) -> Self {
        Self::sized(name, count, 64 * MIB)
    }

    /// The same with disks of that size.
    pub(crate) fn sized(name: &str, count: usize, size: u64) -> Self {
        let images = (0..count).map(|_| Image::new(size)).collect();
        let dir = tempfile::tempdir().expect("a directory");
        let taken = vec![0; count];
        let group =
            Self { images, name: name.to_owned(), dir, text: String::new(), taken, volumes: 0 };
        group.with_loops(|group, loops| {
            let devices: Vec<&str> = loops.iter().map(String::as_str).collect();
            group.lvm(
                "pvcreate",
                &[&["-q", "--dataalignment", "1m"][..], &devices].concat(),
                loops,
            );
            group.lvm("vgcreate", &[&["-q", "-s", "1m", name][..], &devices].concat(), loops);
        });
        group
    }

    fn with_loops<T>(&self, work: impl FnOnce(&Self, &[String]) -> T) -> T {
        let images: Vec<&Image> = self.images.iter().collect();
        let loops = Loops::over(&images);
        work(self, &loops.0)
    }

    /// Runs a program of LVM that sees these loop devices and no other device.
    #[track_caller]
    fn lvm(&self, program: &str, args: &[&str], loops: &[String]) -> String {
        let etc = self.dir.path();
        let filter: Vec<String> = loops.iter().map(|dev| format!("\"a|^{dev}$|\"")).collect();
        let config = CONFIG.replace("FILTER", &filter.join(","));
        let config = config.replace("LOCKS", &etc.join("locks").to_string_lossy());
        std::fs::write(etc.join("lvm.conf"), config).expect("the configuration");
        let path = std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/sbin";
        let mut command = Command::new(program);
        command.args(args).env("PATH", path).env("LVM_SYSTEM_DIR", etc);
        command.env("LVM_SUPPRESS_FD_WARNINGS", "1").env("LC_ALL", "C");
        let output = command.output().expect("it starts");
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{program} {args:?}: {said}\n{errors}");
        said
    }

    /// Makes a volume by `lvcreate`, without starting it.
    #[track_caller]
    pub(crate) fn create(&self, args: &[&str]) {
        let all = [&["--driverloaded", "n", "-an", "-Zn", "-Wn", "-q"][..], args, &[&self.name]];
        self.with_loops(|group, loops| group.lvm("lvcreate", &all.concat(), loops));
    }

    /// Runs a program of LVM with these arguments and what it sees; answers what it says, with `disk0` and so on in the place
    /// of the loop devices, which are any.
    #[track_caller]
    pub(crate) fn tool(&self, program: &str, args: &[&str]) -> String {
        self.with_loops(|group, loops| {
            let mut said = group.lvm(program, args, loops);
            for (n, device) in loops.iter().enumerate() {
                said = said.replace(&format!("{device}("), &format!("disk{n}("));
            }
            said
        })
    }

    /// Sets space of a disk aside as a hidden volume; answers where it starts on that disk.
    pub(crate) fn sub(&mut self, name: &str, disk: usize, extents: u64) -> u64 {
        let at = self.taken[disk];
        self.taken[disk] += extents;
        let segment = format!(
            "start_extent=0\nextent_count={extents}\ntype=\"striped\"\nstripe_count=1\nstripes=[\"@{disk}@\",{at}]\n"
        );
        self.volume(name, false, &segment);
        PE_START + at * EXTENT
    }

    /// A volume with one segment.
    pub(crate) fn volume(&mut self, name: &str, visible: bool, segment: &str) {
        self.volumes += 1;
        let status = if visible { "\"READ\",\"WRITE\",\"VISIBLE\"" } else { "\"READ\",\"WRITE\"" };
        let n = self.volumes;
        let id = format!("{n:06}-aaaa-bbbb-cccc-dddd-eeee-{n:06}");
        write!(
            self.text,
            "{name} {{\nid=\"{id}\"\nstatus=[{status}]\nflags=[]\nsegment_count=1\nsegment1 {{\n{segment}\n}}\n}}\n"
        )
        .expect("text");
    }

    /// Has LVM take the group with the volumes that were added. In their text `@0@` is the physical volume on the first disk.
    #[track_caller]
    pub(crate) fn restore(&self) {
        let (before, after) = (self.file("backup"), self.file("changed"));
        let (from, to) = (before.to_str().expect("plain"), after.to_str().expect("plain"));
        self.with_loops(|group, loops| {
            group.lvm("vgcfgbackup", &["-q", "-f", from, &group.name], loops);
            let backup = std::fs::read_to_string(&before).expect("the backup");
            let mut volumes = group.text.clone();
            for (n, device) in loops.iter().enumerate() {
                // The name is that of the section in which the device stands.
                let at = backup.find(&format!("\"{device}\"")).expect("it is in the text");
                let head = &backup[..backup[..at].rfind('{').expect("a section")];
                let pv = head.split_whitespace().last().expect("a name");
                volumes = volumes.replace(&format!("@{n}@"), pv);
            }
            // The text ends with the group's brace.
            let end = backup.rfind('}').expect("a group");
            let (head, tail) = backup.split_at(end);
            let text = format!("{head}logical_volumes {{\n{volumes}}}\n{tail}");
            std::fs::write(&after, text).expect("the text");
            group.lvm("vgcfgrestore", &["-q", "--force", "-y", "-f", to, &group.name], loops);
        });
    }

    fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Writes onto a disk.
    pub(crate) fn put(&self, disk: usize, offset: u64, bytes: &[u8]) {
        put(self.images[disk].path(), offset, bytes);
    }

    pub(crate) fn images(&self) -> Vec<&Image> {
        self.images.iter().collect()
    }
}
