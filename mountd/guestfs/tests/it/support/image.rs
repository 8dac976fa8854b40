//! Images in sparse files, made and filled by the real tools.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use backstay_blockdev::{BlockDevice, FileDevice};
use backstay_guestfs::Media;
use tempfile::TempDir;

/// Whether something a test needs is missing; says so aloud. `programs` are looked for in `PATH`, and a `/` at the
/// start means a file that must be there.
pub(crate) fn skipped(test: &str, programs: &[&str]) -> bool {
    for program in programs {
        let there = if program.starts_with('/') {
            Path::new(program).exists()
        } else {
            let path = std::env::var_os("PATH").unwrap_or_default();
            std::env::split_paths(&path)
                .chain(["/sbin".into(), "/usr/sbin".into()])
                .any(|dir| dir.join(program).exists())
        };
        if !there {
            eprintln!("SKIPPED {test}: this machine has no {program}");
            return true;
        }
    }
    false
}

/// Whether the running kernel cannot mount `fs_type` from a loop device; says so aloud.
pub(crate) fn no_kernel_mount(test: &str, fs_type: &str) -> bool {
    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED {test}: mounting needs root");
        return true;
    }
    let known = std::fs::read_to_string("/proc/filesystems").unwrap_or_default();
    if !known.lines().any(|line| line.trim() == fs_type) {
        eprintln!("SKIPPED {test}: this kernel knows no {fs_type}");
        return true;
    }
    if !Path::new("/dev/loop-control").exists() {
        eprintln!("SKIPPED {test}: this kernel has no loop devices");
        return true;
    }
    false
}

/// Whether programs cannot mount by FUSE here; says so aloud.
pub(crate) fn no_fuse(test: &str) -> bool {
    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED {test}: mounting needs root");
        return true;
    }
    skipped(test, &["/dev/fuse"])
}

/// Runs a program; what it says is shown if it fails.
#[track_caller]
pub(crate) fn run(program: &str, args: &[&str]) -> String {
    run_with_input(program, args, &[])
}

/// The same with something to read.
#[track_caller]
pub(crate) fn run_with_input(program: &str, args: &[&str], input: &[u8]) -> String {
    use std::io::Write as _;
    let mut command = Command::new(program);
    let path = std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/sbin";
    command.args(args).env("PATH", path).env("LC_ALL", "C.UTF-8");
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap_or_else(|e| panic!("cannot start {program}: {e}"));
    child.stdin.take().expect("a pipe").write_all(input).expect("it takes its input");
    let output = child.wait_with_output().expect("it ends");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success(),
        "{program} {args:?}: {}\n{said}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    said
}

/// A disk image in a directory of its own.
#[derive(Debug)]
pub(crate) struct Image {
    dir: TempDir,
    path: PathBuf,
}

impl Image {
    /// Of `size_bytes`, all of it a hole.
    pub(crate) fn new(size_bytes: u64) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("disk.raw");
        File::create(&path).and_then(|f| f.set_len(size_bytes)).expect("a sparse file");
        Self { dir, path }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// A directory that goes with the image.
    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Runs a program with the image's path as last argument.
    #[track_caller]
    pub(crate) fn with(self, program: &str, args: &[&str]) -> Self {
        let path = self.path.to_str().expect("a plain path");
        run(program, &[args, &[path]].concat());
        self
    }

    /// A second image with the same bytes, at this moment.
    pub(crate) fn copy(&self) -> Self {
        let copy = Self::new(0);
        let (from, to) = (self.path.to_str().expect("plain"), copy.path.to_str().expect("plain"));
        run("cp", &["--sparse=always", from, to]);
        copy
    }

    /// Mounts it by the kernel (or a helper for the type) over a loop device; `options` as for `mount -o`, "loop" is added.
    #[track_caller]
    pub(crate) fn mount(&self, fs_type: &str, options: &str) -> Mounted {
        let options = format!("loop,{options}");
        self.mount_with("mount", &["-t", fs_type, "-o", options.trim_end_matches(',')])
    }

    /// Mounts it by another program: `PROGRAM ARGS IMAGE DIR`.
    #[track_caller]
    pub(crate) fn mount_with(&self, program: &str, args: &[&str]) -> Mounted {
        let mounted = Mounted { dir: Some(tempfile::tempdir().expect("a directory")) };
        let dir = mounted.path().to_str().expect("a plain path").to_owned();
        let path = self.path.to_str().expect("a plain path");
        run(program, &[args, &[path, &dir]].concat());
        mounted
    }

    /// The image as a device that can only be read.
    pub(crate) fn device(&self) -> Arc<dyn BlockDevice> {
        Arc::new(FileDevice::open(&self.path, false).expect("the image opens"))
    }

    pub(crate) fn media(&self) -> Media {
        Media::new(self.device()).expect("it has a cache")
    }
}

/// A mount that goes when this is dropped.
#[derive(Debug)]
pub(crate) struct Mounted {
    dir: Option<TempDir>,
}

impl Mounted {
    pub(crate) fn path(&self) -> &Path {
        self.dir.as_ref().expect("it is mounted").path()
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let Some(dir) = self.dir.take() else { return };
        // Something may still look at it for a moment.
        for attempt in 0..50 {
            let how: &[&str] = if attempt < 40 { &[] } else { &["-l"] };
            let done = Command::new("umount").args(how).arg(dir.path()).output();
            if done.is_ok_and(|d| d.status.success()) {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
        // Removing a directory that is still mounted would remove what is mounted there.
        eprintln!("cannot unmount {}", dir.path().display());
        let _ = dir.keep();
    }
}
