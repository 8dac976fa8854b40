//! A guest's disk, made on the spot from Debian packages: nothing is mounted, no root is needed.
//!
//! The packages are the closure that apt computes for an empty machine, unpacked into one tree
//! with a kernel in it, and written into the first partition of a GPT disk. Packages and the
//! finished disk are kept in the build cache.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::bootstrap;
use crate::env::House;
use crate::proc;

/// What the guest has installed, besides everything these need.
const PACKAGES: &[&str] =
    &["linux-image-cloud-amd64", "systemd", "coreutils", "bash", "perl", "python3", "openssl"];
/// The same on the other architecture that Debian offers such a kernel for.
const PACKAGES_ARM: &[&str] =
    &["linux-image-cloud-arm64", "systemd", "coreutils", "bash", "perl", "python3", "openssl"];

/// Raise it when this file makes a different disk from the same packages.
const RECIPE: &str = "1";

/// Where the root partition starts, in bytes.
pub(super) const ROOT_START_BYTES: u64 = 1 << 20;
/// Size of the root partition, in MiB.
pub(super) const ROOT_MIB: u64 = 720;
/// Size of the swap partition after it, in MiB: a hole, as in many a guest.
const SWAP_MIB: u64 = 63;
/// Fewest files a tree may have to count as real.
const MIN_FILES: usize = 3000;

/// A disk that is ready to be backed up.
#[derive(Debug, Clone)]
pub(super) struct Guest {
    /// The raw disk.
    pub(super) image: PathBuf,
    /// `sha256sum` lines of every regular file of the root file system.
    pub(super) manifest: PathBuf,
    /// Number of lines of the manifest.
    pub(super) files: usize,
}

/// The guest's disk from the cache, made first if it is not there.
pub(super) fn ready(house: &House) -> Result<Guest> {
    let cache = house.cache.join("guest");
    let dir = cache.join(format!("disk-{RECIPE}"));
    if !dir.is_dir() {
        let temp = cache.join(format!(".disk.{}", std::process::id()));
        let _ = fs::remove_dir_all(&temp);
        fs::create_dir_all(&temp)?;
        let made = make(&cache, &temp).and_then(|()| publish(&temp, &dir));
        let _ = fs::remove_dir_all(&temp);
        made?;
    }
    let manifest = dir.join("manifest");
    let files = BufReader::new(fs::File::open(&manifest)?).lines().count();
    if files < MIN_FILES {
        bail!("only {files} files in {}: remove that folder and try again", dir.display());
    }
    Ok(Guest { image: dir.join("guest.raw"), manifest, files })
}

#[allow(clippy::disallowed_methods, reason = "a cache entry, not stored data: lost is made again")]
fn publish(temp: &Path, dir: &Path) -> Result<()> {
    let _ = fs::remove_dir_all(temp.join("root"));
    fs::rename(temp, dir).with_context(|| format!("cannot name the disk {}", dir.display()))
}

fn make(cache: &Path, temp: &Path) -> Result<()> {
    let packages = download(cache)?;
    eprintln!("    unpacking {} packages", packages.len());
    let root = temp.join("root");
    unpack(&packages, &root)?;
    furnish(&root)?;
    eprintln!("    writing the manifest and the disk");
    write_manifest(&root, &temp.join("manifest"))?;
    write_disk(&root, &temp.join("guest.raw"))
}

/// Downloads the packages and all they depend on, as for a machine that has nothing yet.
fn download(cache: &Path) -> Result<Vec<PathBuf>> {
    if proc::find("apt-get").is_none() || proc::find("dpkg-deb").is_none() {
        bail!("the guest's disk is made from Debian packages, and this machine has no apt-get");
    }
    let archives = cache.join("packages");
    fs::create_dir_all(archives.join("partial"))?;
    let empty = cache.join("no-packages-installed");
    fs::write(&empty, "")?;
    let wanted = if cfg!(target_arch = "aarch64") { PACKAGES_ARM } else { PACKAGES };
    let apt = || {
        let mut apt = proc::command("apt-get");
        apt.args(["-qq", "-y", "--no-install-recommends", "--download-only"])
            .args(["-o", "Debug::NoLocking=1", "-o", "APT::Sandbox::User=root"])
            .args(["-o", "pkgCacheFile=", "-o", "Dir::Cache::pkgcache="])
            .arg("-o")
            .arg(format!("Dir::State::status={}", empty.display()))
            .arg("-o")
            .arg(format!("Dir::Cache::archives={}", archives.display()));
        apt.arg("install").args(wanted);
        apt
    };
    eprintln!("    downloading {} and what they need", wanted.join(", "));
    let first = if bootstrap::lists_present() { proc::output(&mut apt()) } else { missing_lists() };
    if let Err(error) = first {
        // Old lists name packages that are gone from the mirror.
        if !proc::is_root() {
            return Err(error.context("run `sudo apt-get update`, then this command again"));
        }
        bootstrap::update_lists()?;
        proc::output(&mut apt())?;
    }
    let mut packages: Vec<PathBuf> = fs::read_dir(&archives)?
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|e| e == "deb"))
        .collect();
    packages.sort();
    Ok(packages)
}

fn missing_lists() -> Result<std::process::Output> {
    bail!("apt has no package lists")
}

fn unpack(packages: &[PathBuf], root: &Path) -> Result<()> {
    // Debian's merged /usr: the links come first and must survive the packages' own directories.
    for name in ["bin", "sbin", "lib", "lib64"] {
        fs::create_dir_all(root.join("usr").join(name))?;
        std::os::unix::fs::symlink(format!("usr/{name}"), root.join(name))?;
    }
    for package in packages {
        let mut from = proc::command("dpkg-deb");
        from.arg("--fsys-tarfile").arg(package);
        let mut to = proc::command("tar");
        to.args(["--extract", "--keep-directory-symlink", "--directory"]).arg(root);
        pipe(from, to).with_context(|| format!("cannot unpack {}", package.display()))?;
    }
    Ok(())
}

/// Runs `from | to`; both must succeed. Returns what `to` printed.
pub(super) fn pipe(mut from: Command, mut to: Command) -> Result<String> {
    let mut first = from
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot run `{}`", proc::shown(&from)))?;
    let output = first.stdout.take().context("no pipe")?;
    let text = proc::capture(to.stdin(output));
    let status = first.wait()?;
    let text = text?;
    if !status.success() {
        bail!("`{}` ended with {status}", proc::shown(&from));
    }
    Ok(text)
}

/// What an installer would have written.
fn furnish(root: &Path) -> Result<()> {
    for dir in ["etc", "proc", "sys", "dev", "run", "tmp", "root", "var/log", "srv/data"] {
        fs::create_dir_all(root.join(dir))?;
    }
    fs::write(root.join("etc/hostname"), "web01\n")?;
    fs::write(
        root.join("etc/fstab"),
        "/dev/vda1 / ext4 defaults 0 1\n/dev/vda2 none swap sw 0 0\n",
    )?;
    fs::write(root.join("etc/motd"), "This machine is backed up.\n")?;
    let log: String = (0..20_000)
        .map(|i| format!("{i:08} web01 service[{}]: request served\n", i % 97))
        .collect();
    fs::write(root.join("var/log/service.log"), log)?;
    Ok(())
}

fn write_manifest(root: &Path, manifest: &Path) -> Result<()> {
    let mut list = proc::command("find");
    list.current_dir(root).args([".", "-xdev", "-type", "f", "-print0"]);
    let mut sums = proc::command("xargs");
    sums.current_dir(root).args(["-0", "sha256sum", "--"]);
    fs::write(manifest, pipe(list, sums)?)?;
    Ok(())
}

fn write_disk(root: &Path, image: &Path) -> Result<()> {
    let disk = fs::File::create(image)?;
    disk.set_len((1 + ROOT_MIB + SWAP_MIB + 1) << 20)?;
    proc::output(
        proc::command("sgdisk")
            .arg(format!("--new=1:1M:+{ROOT_MIB}M"))
            .args(["--typecode=1:8300", "--change-name=1:root"])
            .arg(format!("--new=2:0:+{SWAP_MIB}M"))
            .args(["--typecode=2:8200", "--change-name=2:swap"])
            .arg(image),
    )?;
    let mut mke2fs = proc::command("mke2fs");
    mke2fs
        .args(["-q", "-F", "-t", "ext4", "-b", "4096", "-L", "root", "-m", "0"])
        .args(["-E", &format!("offset={ROOT_START_BYTES},lazy_itable_init=0,lazy_journal_init=0")]);
    mke2fs.arg("-d").arg(root).arg(image).arg(format!("{ROOT_MIB}M"));
    proc::output(&mut mke2fs)?;
    file_system_is_sound(image)
}

/// The partition as the ext4 tools name it: a file and where in it.
pub(super) fn partition_name(image: &Path) -> String {
    format!("{}?offset={ROOT_START_BYTES}", image.display())
}

/// `e2fsck` finds nothing to say about the root partition.
pub(super) fn file_system_is_sound(image: &Path) -> Result<()> {
    proc::output(proc::command("e2fsck").args(["-f", "-n"]).arg(partition_name(image))).map(drop)
}
