//! A guest's disk, made on the spot from Debian packages: nothing is mounted, no root is needed.
//!
//! The packages are the closure that apt computes for an empty machine, unpacked into one tree
//! with a kernel in it, and written into the first partition of a GPT disk. Packages and the
//! finished disk are kept in the build cache.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::debian;
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
    let wanted = if cfg!(target_arch = "aarch64") { PACKAGES_ARM } else { PACKAGES };
    let packages = debian::download(cache, wanted)?;
    eprintln!("    unpacking {} packages", packages.len());
    let root = temp.join("root");
    debian::unpack(&packages, &root)?;
    furnish(&root)?;
    eprintln!("    writing the manifest and the disk");
    write_manifest(&root, &temp.join("manifest"))?;
    write_disk(&root, &temp.join("guest.raw"))
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
    fs::write(manifest, proc::pipe(list, sums)?)?;
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
