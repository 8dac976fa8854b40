//! Mounts begin and end, orderly or not, and leave nothing behind.

use std::fs::File;
use std::os::unix::fs::{FileExt, OpenOptionsExt, PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use backstay_daemon::ErrorKind;
use backstay_daemon::fuse::{GuardianCommand, ImageMount, Unmount};
use rustix::io::Errno;

use crate::helper::{Server, guardian};
use crate::support::{Fixture, Mountpoint, disk_image, eventually, have_fuse, quick};

const DISK: &str = "m/latest/disks/disk0.raw";

fn with_one_point() -> (Fixture, Vec<u8>) {
    let fixture = Fixture::new();
    let image = disk_image(1, 30);
    fixture.backup("m", "2026-11-22T03:00:00Z", &[("disk0", &image)]);
    (fixture, image)
}

/// Ends of guardians of this mountpoint that still run.
fn guardians(at: &Mountpoint) -> usize {
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    let wanted = at.path().to_str().unwrap();
    let is_guardian = |dir: &Path| {
        let line = std::fs::read(dir.join("cmdline")).unwrap_or_default();
        let args: Vec<&[u8]> = line.split(|b| *b == 0).collect();
        args.contains(&b"helper::guard".as_slice()) && args.contains(&wanted.as_bytes())
    };
    processes.filter(|p| is_guardian(&p.path())).count()
}

#[test]
fn an_orderly_end_names_who_is_in_the_way() {
    if !have_fuse() {
        return;
    }
    let (fixture, image) = with_one_point();
    let at = fixture.mountpoint("mnt");
    let mut options = quick(at.path());
    options.guardian = Some(guardian());
    let mount = ImageMount::start(fixture.open(), options).unwrap();
    eventually("the guardian starts", || guardians(&at) == 1);
    let file = File::open(at.path().join(DISK)).unwrap();
    let error = mount.end(Unmount::Orderly).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Busy);
    let me = format!("process {}", std::process::id());
    assert!(error.to_string().contains("busy") && error.to_string().contains(&me), "{error}");

    // The mount goes on as before.
    assert!(!mount.has_ended());
    assert_eq!(guardians(&at), 1);
    let mut some = [0; 1000];
    file.read_exact_at(&mut some, 70_000).unwrap();
    assert!(some == image[70_000..71_000]);
    assert!(std::fs::read(at.path().join(DISK)).unwrap() == image);

    drop(file);
    mount.end(Unmount::Orderly).unwrap();
    assert!(mount.has_ended());
    assert_eq!((at.mounted(), guardians(&at)), (None, 0));
    mount.end(Unmount::Orderly).unwrap();
    mount.end(Unmount::Detach).unwrap();
    mount.wait_until_ended();
}

#[test]
fn a_detached_mount_serves_who_has_files_open() {
    if !have_fuse() {
        return;
    }
    let (fixture, image) = with_one_point();
    let at = fixture.mountpoint("mnt");
    let mount = at.mount(fixture.open());
    let file = File::open(at.path().join(DISK)).unwrap();
    mount.end(Unmount::Detach).unwrap();
    assert_eq!(at.mounted(), None);
    assert!(!mount.has_ended(), "a file is open");
    let mut all = vec![0; image.len()];
    file.read_exact_at(&mut all, 0).unwrap();
    assert!(all == image);
    assert_eq!(mount.end(Unmount::Orderly).unwrap_err().kind(), ErrorKind::Busy);
    // The name is free for another.
    let second = at.mount(fixture.open());
    drop(file);
    mount.wait_until_ended();
    assert!(std::fs::read(at.path().join(DISK)).unwrap() == image, "the second one is untouched");
    second.end(Unmount::Orderly).unwrap();
}

#[test]
fn unmounted_by_somebody_else() {
    if !have_fuse() {
        return;
    }
    let (fixture, _) = with_one_point();
    let at = fixture.mountpoint("mnt");
    let mut options = quick(at.path());
    options.guardian = Some(guardian());
    let mount = ImageMount::start(fixture.open(), options).unwrap();
    std::thread::scope(|scope| {
        let waiter = scope.spawn(|| mount.wait_until_ended());
        assert!(Command::new("umount").arg(at.path()).status().unwrap().success());
        waiter.join().unwrap();
    });
    assert!(mount.has_ended());
    assert_eq!(guardians(&at), 0);
    mount.end(Unmount::Orderly).unwrap();
}

#[test]
fn ended_from_another_thread_and_by_drop() {
    if !have_fuse() {
        return;
    }
    let (fixture, _) = with_one_point();
    let at = fixture.mountpoint("mnt");
    let mount = at.mount(fixture.open());
    std::thread::scope(|scope| {
        let waiter = scope.spawn(|| mount.wait_until_ended());
        mount.end(Unmount::Orderly).unwrap();
        waiter.join().unwrap();
    });
    let mount = at.mount(fixture.open());
    assert!(at.mounted().is_some());
    drop(mount);
    assert_eq!(at.mounted(), None);
}

#[test]
fn places_that_cannot_be_mounted_on() {
    if !have_fuse() {
        return;
    }
    let (fixture, _) = with_one_point();
    let kind = |path: &Path| {
        let error = ImageMount::start(fixture.open(), quick(path)).unwrap_err();
        let text = error.to_string();
        assert!(text.contains(path.to_str().unwrap()), "{text}");
        error.kind()
    };
    let file = fixture.dir.path().join("file");
    std::fs::write(&file, b"").unwrap();
    assert_eq!(kind(&file), ErrorKind::Mountpoint);
    assert_eq!(kind(&fixture.dir.path().join("missing")), ErrorKind::Mountpoint);
    assert_eq!(kind(&file.join("below")), ErrorKind::Mountpoint);

    let at = fixture.mountpoint("mnt");
    let mount = at.mount(fixture.open());
    assert_eq!(kind(at.path()), ErrorKind::Busy, "a live mount of ours");
    assert!(at.path().join(DISK).exists(), "it is untouched");
    mount.end(Unmount::Orderly).unwrap();

    let flags = rustix::mount::MountFlags::empty();
    match rustix::mount::mount("none", at.path(), "tmpfs", flags, None) {
        Ok(()) => assert_eq!(kind(at.path()), ErrorKind::Busy, "a file system of others"),
        Err(e) => eprintln!("SKIPPED: cannot mount a tmpfs ({e}); foreign mounts are not tested"),
    }
}

#[test]
fn a_killed_process_with_a_guardian_leaves_nothing() {
    if !have_fuse() {
        return;
    }
    let (fixture, image) = with_one_point();
    let at = fixture.mountpoint("mnt");
    for open_file in [false, true] {
        let mut server = Server::start(&fixture, &at, true);
        assert!(std::fs::read(at.path().join(DISK)).unwrap() == image);
        // Not through the kernel's cache, which would go on answering.
        let mut uncached = File::options();
        uncached.read(true).custom_flags(libc::O_DIRECT);
        let file = open_file.then(|| uncached.open(at.path().join(DISK)).unwrap());
        server.kill();
        eventually("the mount goes", || at.mounted().is_none());
        eventually("the guardian goes", || guardians(&at) == 0);
        assert_eq!(std::fs::read_dir(at.path()).unwrap().count(), 0, "the directory is usable");
        if let Some(file) = file {
            let mut some = [0; 4096];
            assert!(file.read_exact_at(&mut some, 20 << 16).is_err(), "nobody can answer");
        }
    }
}

#[test]
fn a_killed_process_without_a_guardian_is_cleaned_up_by_the_next() {
    if !have_fuse() {
        return;
    }
    let (fixture, image) = with_one_point();
    let at = fixture.mountpoint("mnt");
    let mut server = Server::start(&fixture, &at, false);
    assert!(std::fs::read(at.path().join(DISK)).unwrap() == image);
    server.kill();
    assert!(at.mounted().is_some(), "the kernel keeps a dead mount");
    let dead = std::fs::read_dir(at.path()).unwrap_err();
    assert_eq!(dead.raw_os_error(), Some(Errno::NOTCONN.raw_os_error()));

    let mount = at.mount(fixture.open());
    assert!(std::fs::read(at.path().join(DISK)).unwrap() == image);
    mount.end(Unmount::Orderly).unwrap();
    assert_eq!(at.mounted(), None, "nothing lies below");
}

#[test]
fn a_guardian_that_cannot_start_leaves_no_mount() {
    if !have_fuse() {
        return;
    }
    let (fixture, _) = with_one_point();
    let at = fixture.mountpoint("mnt");
    let mut options = quick(at.path());
    options.guardian =
        Some(GuardianCommand { program: fixture.dir.path().join("missing"), args: Vec::new() });
    let error = ImageMount::start(fixture.open(), options).unwrap_err();
    assert!(error.to_string().contains("missing"), "{error}");
    assert_eq!(at.mounted(), None);
}

/// Gives a directory and all below it to a user.
fn give_to(dir: &Path, user: u32) {
    chown(dir, Some(user), Some(user)).unwrap();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            give_to(&path, user)
        } else {
            chown(path, Some(user), Some(user)).unwrap()
        }
    }
}

/// Set for the same test, started again in a mount namespace of its own.
const IN_NAMESPACE: &str = "BACKSTAY_TEST_IN_NAMESPACE";

/// A `/dev/fuse` that everybody may open, as udev makes it, whatever this machine's is. Only in
/// this mount namespace.
fn open_the_device_to_all(dir: &Path) {
    use rustix::fs::{CWD, FileType, Mode, makedev, mknodat};
    let device = dir.join("fuse");
    let everybody = Mode::from_raw_mode(0o666);
    mknodat(CWD, &device, FileType::CharacterDevice, everybody, makedev(10, 229)).unwrap();
    std::fs::set_permissions(&device, std::fs::Permissions::from_mode(0o666)).unwrap();
    rustix::mount::mount_bind(&device, "/dev/fuse").unwrap();
}

#[test]
fn a_user_without_rights_mounts_through_fusermount() {
    if !have_fuse() {
        return;
    }
    if !rustix::process::getuid().is_root() {
        eprintln!("SKIPPED: only root can become another user");
        return;
    }
    for (program, package) in [("fusermount3", "fuse3"), ("unshare", "util-linux")] {
        if Command::new(program).arg("--version").output().is_err() {
            eprintln!("SKIPPED: no {program} (Debian package {package}); nothing was tested");
            return;
        }
    }
    if std::env::var_os(IN_NAMESPACE).is_none() {
        let again = Command::new("unshare")
            .args(["--mount", "--propagation", "private"])
            .arg(std::env::current_exe().unwrap())
            .args(["--exact", "--nocapture"])
            .arg("lifecycle::a_user_without_rights_mounts_through_fusermount")
            .env(IN_NAMESPACE, "1")
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&again.stdout);
        let errors = String::from_utf8_lossy(&again.stderr);
        assert!(again.status.success() && said.contains("1 passed"), "{said}{errors}");
        return;
    }
    let (fixture, image) = with_one_point();
    let at = fixture.mountpoint("mnt");
    let source = fixture.dir.path().join("source.img");
    std::fs::write(&source, &image).unwrap();
    // The user cannot reach this program where it was built.
    let program = fixture.dir.path().join("program");
    std::fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
    let nobody = 65534;
    give_to(fixture.dir.path(), nobody);
    open_the_device_to_all(fixture.dir.path());

    let mut server = Server::start_as(&fixture, &at, true, &program, Some(nobody));
    let (fs_type, options) = at.mounted().unwrap();
    assert_eq!(fs_type, "fuse.backstay");
    for always in ["ro", "nosuid", "nodev", "noexec", "default_permissions", "user_id=65534"] {
        assert!(options.split(',').any(|o| o == always), "{always}: {options}");
    }
    let mut cmp = Command::new("cmp");
    cmp.arg(&source).arg(at.path().join(DISK)).uid(nobody).gid(nobody);
    assert!(cmp.status().unwrap().success());
    server.kill();
    eventually("the user's guardian takes the mount away", || at.mounted().is_none());
}

#[test]
fn a_guardian_leaves_the_mounts_of_others_alone() {
    if !have_fuse() {
        return;
    }
    let (fixture, image) = with_one_point();
    let at = fixture.mountpoint("mnt");
    // A guardian whose mount has been replaced by a live one: its input ends at once.
    let mount = at.mount(fixture.open());
    for identity in [mount.identity().to_string(), "1-0:1".to_owned()] {
        let command = guardian();
        let mut child = Command::new(&command.program)
            .args(&command.args)
            .arg(at.path())
            .arg(identity)
            .stdin(std::process::Stdio::null())
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(std::time::Duration::from_millis(300));
        assert!(std::fs::read(at.path().join(DISK)).unwrap() == image);
        let _ = child.kill();
        child.wait().unwrap();
    }
    mount.end(Unmount::Orderly).unwrap();
}

#[test]
fn options_in_the_kernels_table() {
    if !have_fuse() {
        return;
    }
    let (fixture, _) = with_one_point();
    for allow_other in [false, true] {
        let at = fixture.mountpoint(if allow_other { "others" } else { "alone" });
        let mut options = quick(at.path());
        options.allow_other = allow_other;
        let mount = ImageMount::start(fixture.open(), options).unwrap();
        let (fs_type, options) = at.mounted().unwrap();
        assert_eq!(fs_type, "fuse.backstay");
        let has = |option: &str| options.split(',').any(|o| o == option);
        for always in ["ro", "nosuid", "nodev", "noexec", "default_permissions"] {
            assert!(has(always), "{always}: {options}");
        }
        assert_eq!(has("allow_other"), allow_other, "{options}");
        if rustix::process::getuid().is_root() {
            let identity = mount.identity().to_string();
            let (_, device) = identity.split_once('-').unwrap();
            let readahead = format!("/sys/class/bdi/{device}/read_ahead_kb");
            assert_eq!(std::fs::read_to_string(readahead).unwrap().trim(), "1024");
        }
    }
}

#[test]
fn other_users_come_in_only_when_asked() {
    if !have_fuse() {
        return;
    }
    if !rustix::process::getuid().is_root() {
        eprintln!("SKIPPED: only root can try as another user");
        return;
    }
    let (fixture, image) = with_one_point();
    let open_dir = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(fixture.dir.path(), open_dir).unwrap();
    for allow_other in [false, true] {
        let at = fixture.mountpoint(if allow_other { "others" } else { "alone" });
        let mut options = quick(at.path());
        options.allow_other = allow_other;
        let _mount = ImageMount::start(fixture.open(), options).unwrap();
        let nobody = 65534;
        let read = Command::new("cat").arg(at.path().join(DISK)).uid(nobody).gid(nobody).output();
        let read = read.unwrap();
        assert_eq!(read.status.success(), allow_other);
        assert_eq!(read.stdout == image, allow_other);
    }
}
