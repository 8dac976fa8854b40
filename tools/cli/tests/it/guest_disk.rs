//! A disk as a guest has one: partitions with file systems, filled by this machine's kernel.

use std::fs::{self, File, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use super::support::{Place, is_root, noise, skipped};

/// Where the two partitions start and how long they are, in MiB.
pub(super) const ROOT: (u64, u64) = (1, 200);
pub(super) const DATA: (u64, u64) = (201, 150);
/// Sectors of 512 bytes in a MiB.
const MIB_SECTORS: u64 = 2048;

/// Whether this machine's kernel cannot make such a disk; says so aloud.
pub(super) fn cannot(test: &str) -> bool {
    let known = fs::read_to_string("/proc/filesystems").unwrap_or_default();
    let btrfs = known.lines().any(|line| line.trim() == "btrfs");
    if !is_root() || !btrfs || !Path::new("/dev/loop-control").exists() {
        skipped(&format!("{test}: needs root, loop devices and a kernel with btrfs"));
        return true;
    }
    false
}

pub(super) fn run(program: &str, args: &[&str]) -> String {
    let path = std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/sbin";
    let done = Command::new(program).args(args).env("PATH", path).output();
    let done = done.unwrap_or_else(|e| panic!("{program} is installed: {e}"));
    let said = String::from_utf8_lossy(&done.stdout).into_owned();
    assert!(done.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&done.stderr));
    said
}

/// A mount by the kernel that goes when this is dropped.
pub(super) struct Mounted(PathBuf);

impl Mounted {
    pub(super) fn new(image: &Path, at: PathBuf, options: &str) -> Self {
        fs::create_dir_all(&at).expect("a directory");
        let (image, dir) = (image.to_str().expect("plain"), at.to_str().expect("plain"));
        run("mount", &["-t", "btrfs", "-o", &format!("loop,{options}"), image, dir]);
        Self(at)
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        for _ in 0..50 {
            if Command::new("umount").arg(&self.0).output().is_ok_and(|d| d.status.success()) {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

/// Makes a disk `name` with a root and a data partition; answers its path.
pub(super) fn make(place: &Place, name: &str) -> PathBuf {
    let disk = place.path(name);
    File::create(&disk).and_then(|f| f.set_len(352 << 20)).expect("a sparse file");
    let text = disk.to_str().expect("plain");
    let part = |number: u64, (start, len): (u64, u64), label: &str| {
        let (from, to) = (start * MIB_SECTORS, (start + len) * MIB_SECTORS - 1);
        let new = format!("--new={number}:{from}:{to}");
        run("sgdisk", &[&new, &format!("--change-name={number}:{label}"), text]);
    };
    part(1, ROOT, "system");
    part(2, DATA, "data");
    let data = file_system(place, &disk, DATA, "data", fill_data);
    file_system(place, &disk, ROOT, "system", |at| fill_root(at, &data));
    disk
}

/// Makes and fills a file system in a partition; answers its UUID.
fn file_system(
    place: &Place,
    disk: &Path,
    (start, len): (u64, u64),
    label: &str,
    fill: impl FnOnce(&Path),
) -> String {
    let part = place.path(&format!("{label}.part"));
    File::create(&part).and_then(|f| f.set_len(len << 20)).expect("a sparse file");
    let text = part.to_str().expect("plain").to_owned();
    run("mkfs.btrfs", &["-q", "-L", label, &text]);
    fill(Mounted::new(&part, place.path("filling"), "").path());
    let to = format!("of={}", disk.display());
    let seek = format!("seek={start}");
    run("dd", &[&format!("if={text}"), &to, "bs=1M", &seek, "conv=notrunc,sparse", "status=none"]);
    let uuid = run("blkid", &["-o", "value", "-s", "UUID", &text]).trim().to_owned();
    fs::remove_file(part).expect("it goes");
    uuid
}

fn fill_root(at: &Path, data: &str) {
    let write = |path: &str, content: &[u8]| {
        let path = at.join(path);
        fs::create_dir_all(path.parent().expect("a directory")).expect("directories");
        fs::write(path, content).expect("a file");
    };
    write("etc/hostname", b"web01\n");
    let table = format!(
        "# made for a test\nLABEL=system / btrfs defaults 0 0\nUUID={data} /srv/data btrfs defaults 0 0\n\
         UUID=00000000-1111-2222-3333-444444444444 /lost btrfs defaults 0 0\nproc /proc proc defaults 0 0\n"
    );
    write("etc/fstab", table.as_bytes());
    write("etc/secret", b"nobody else\n");
    fs::set_permissions(at.join("etc/secret"), Permissions::from_mode(0o600)).expect("a mode");
    write("var/log/large", &noise(7, 3_000_001));
    write("srv/data/covered", b"nobody sees this\n");
    symlink("/etc/hostname", at.join("etc/link")).expect("a link");
    symlink("../../srv/data/deep", at.join("etc/down")).expect("a link");
    symlink("round", at.join("etc/round")).expect("a link");
    fs::create_dir(at.join("bin")).expect("a directory");
    write("bin/tool", b"#!/bin/sh\n");
    fs::set_permissions(at.join("bin/tool"), Permissions::from_mode(0o4755)).expect("a mode");
    rustix::fs::chown(
        at.join("etc/secret"),
        Some(rustix::fs::Uid::from_raw(1234)),
        Some(rustix::fs::Gid::from_raw(77)),
    )
    .expect("an owner");
    rustix::fs::setxattr(
        at.join("etc/hostname"),
        "user.mark",
        b"x1",
        rustix::fs::XattrFlags::empty(),
    )
    .expect("an attribute");
    let node = |name: &str, kind, dev| {
        let mode = rustix::fs::Mode::from_raw_mode(0o600);
        rustix::fs::mknodat(rustix::fs::CWD, at.join(name), kind, mode, dev).expect("a node");
    };
    node("null", rustix::fs::FileType::CharacterDevice, rustix::fs::makedev(1, 3));
    node("pipe", rustix::fs::FileType::Fifo, 0);
}

fn fill_data(at: &Path) {
    use std::os::unix::ffi::OsStrExt;
    fs::create_dir_all(at.join("deep/er")).expect("directories");
    fs::write(at.join("deep/er/file"), "found\n").expect("a file");
    for i in 0..3000 {
        fs::write(at.join(format!("deep/entry-{i}")), i.to_string()).expect("a file");
    }
    let raw = std::ffi::OsStr::from_bytes(b"latin-\xe4");
    fs::write(at.join(raw), "no text\n").expect("a file");
    fs::hard_link(at.join("deep/er/file"), at.join("again")).expect("a link");
    let sparse = File::create(at.join("sparse")).expect("a file");
    sparse.set_len(5 << 30).expect("a length");
    std::os::unix::fs::FileExt::write_all_at(&sparse, b"far away", 3 << 30).expect("some data");
}
