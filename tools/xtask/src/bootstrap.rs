//! What a machine needs before anything builds or runs: Debian packages and the RocksDB library.

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Result, bail};

use crate::cargo::Cargo;
use crate::env::House;
use crate::{guest, proc, rocksdb, s3_servers};

/// What a chore is about to do, which decides what it needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// Compile.
    Build,
    /// Compile, then run tests and the demo.
    Run,
    /// Compile, then measure beside the peers named (`restic`, `borg`, `tgt`).
    Measure { restic: bool, borg: bool, tgt: bool },
}

/// A thing that must be on the machine, and the Debian package that brings it.
struct Need {
    package: &'static str,
    there: fn() -> bool,
}

const BUILD: &[Need] = &[
    Need { package: "g++", there: || has("g++") },
    Need { package: "libc6-dev", there: || Path::new("/usr/include/stdlib.h").exists() },
    Need { package: "binutils", there: || has("ar") },
    // bindgen opens libclang while RocksDB's bindings are made.
    Need { package: "libclang-dev", there: has_libclang },
];

const RUN: &[Need] = &[
    Need { package: "fuse3", there: || has("fusermount3") },
    Need { package: "qemu-utils", there: || has("qemu-img") && has("qemu-nbd") },
    Need { package: "libnbd-bin", there: || has("nbdinfo") && has("nbdcopy") },
    Need { package: "python3-libnbd", there: || has("nbdsh") },
    Need { package: "nbdkit", there: || has("nbdkit") },
    Need { package: "libiscsi-bin", there: || has("iscsi-test-cu") && has("iscsi-ls") },
    Need { package: "fio", there: || has("fio") },
    Need { package: "gdisk", there: || has("sgdisk") },
    Need { package: "btrfs-progs", there: || has("mkfs.btrfs") && has("btrfstune") },
    Need { package: "e2fsprogs", there: || has("mke2fs") && has("debugfs") },
    Need { package: "xfsprogs", there: || has("mkfs.xfs") && has("xfs_io") },
    Need { package: "ntfs-3g", there: || has("mkntfs") && has("ntfs-3g") },
    Need { package: "mtools", there: || has("mcopy") && has("mattrib") },
    Need { package: "exfatprogs", there: || has("mkfs.exfat") },
    Need { package: "exfat-fuse", there: || has("mount.exfat-fuse") },
    Need { package: "genisoimage", there: || has("genisoimage") },
    Need { package: "xorriso", there: || has("xorriso") },
    // Archives of files out of guests, read by others than ourselves.
    Need { package: "libarchive-tools", there: || has("bsdtar") },
    Need { package: "unzip", there: || has("unzip") },
    Need { package: "mount", there: || has("losetup") && has("mount") },
    Need { package: "fdisk", there: || has("sfdisk") },
    Need { package: "dosfstools", there: || has("mkfs.vfat") },
    Need { package: "cryptsetup-bin", there: || has("cryptsetup") },
    Need { package: "lvm2", there: || has("pvcreate") && has("vgcfgrestore") },
    Need { package: "thin-provisioning-tools", there: || has("thin_restore") },
    Need { package: "mdadm", there: || has("mdadm") },
    Need { package: "python3-venv", there: has_python_venv },
];

const RESTIC: Need = Need { package: "restic", there: || has("restic") };
const TGT: Need = Need { package: "tgt", there: || has("tgtd") && has("tgtadm") };
const BORG: Need = Need { package: "borgbackup", there: || has("borg") };

fn has(program: &str) -> bool {
    proc::find(program).is_some()
}

fn has_python_venv() -> bool {
    proc::output(proc::command("python3").args(["-c", "import ensurepip, venv"])).is_ok()
}

fn has_libclang() -> bool {
    if std::env::var_os("LIBCLANG_PATH").is_some() {
        return true;
    }
    let is_lib = |dir: &Path| {
        std::fs::read_dir(dir).is_ok_and(|entries| {
            entries.flatten().any(|e| {
                let name = e.file_name();
                let name = name.to_string_lossy();
                name.starts_with("libclang.so") || name.starts_with("libclang-")
            })
        })
    };
    let mut dirs: Vec<_> = ["/usr/lib", "/usr/lib64", "/usr/local/lib"].map(Into::into).into();
    dirs.push(format!("/usr/lib/{}-linux-gnu", std::env::consts::ARCH).into());
    dirs.extend((11..=30).map(|n| format!("/usr/lib/llvm-{n}/lib").into()));
    dirs.iter().any(|dir: &std::path::PathBuf| is_lib(dir))
}

/// The chore `cargo xtask bootstrap`.
pub(crate) fn run(house: &House) -> Result<ExitCode> {
    ready(house, Purpose::Run)?;
    println!("ready");
    Ok(ExitCode::SUCCESS)
}

/// Makes the machine ready for `purpose` and returns the cargo that everything is built with.
pub(crate) fn ready(house: &House, purpose: Purpose) -> Result<Cargo> {
    packages(purpose)?;
    if purpose == Purpose::Run {
        s3_servers::ready(house);
        guest::ready(house);
    }
    // The dependencies' sources are fetched first: the library is built from one of them.
    let lib = match rocksdb::library(house) {
        Ok(dir) => Some(dir),
        Err(error) => {
            eprintln!("rocksdb: the quick build failed: {error:#}");
            eprintln!("rocksdb: going on without; cargo compiles it file by file (20 minutes)");
            None
        }
    };
    Ok(Cargo::new(house, lib))
}

/// Installs the packages that `purpose` needs and this machine lacks.
pub(crate) fn packages(purpose: Purpose) -> Result<()> {
    let mut needs: Vec<&Need> = BUILD.iter().collect();
    if purpose != Purpose::Build {
        needs.extend(RUN);
    }
    if let Purpose::Measure { restic, borg, tgt } = purpose {
        needs.extend(restic.then_some(&RESTIC));
        needs.extend(borg.then_some(&BORG));
        needs.extend(tgt.then_some(&TGT));
    }
    let missing: Vec<&str> = needs.iter().filter(|n| !(n.there)()).map(|n| n.package).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let list = missing.join(" ");
    if !has("apt-get") {
        bail!("these are missing (named as Debian names their packages): {list}");
    }
    if !proc::is_root() {
        bail!(
            "some packages are missing; run this line, then this command again:\n\n    \
             sudo apt-get update && sudo apt-get install -y --no-install-recommends {list}\n"
        );
    }
    eprintln!("installing Debian packages: {list}");
    install(&missing)?;
    let still: Vec<&str> = needs.iter().filter(|n| !(n.there)()).map(|n| n.package).collect();
    if !still.is_empty() {
        bail!("installed, and yet not found: {}", still.join(" "));
    }
    Ok(())
}

fn install(packages: &[&str]) -> Result<()> {
    let attempt = || {
        proc::run(
            proc::command("apt-get")
                .env("DEBIAN_FRONTEND", "noninteractive")
                .args(["-qq", "-y", "--no-install-recommends", "-o", "Dpkg::Use-Pty=0", "install"])
                .args(packages)
                .stdout(std::process::Stdio::null()),
        )
    };
    // Package lists may be absent (a fresh container) or too old to download by: then, and only
    // then, they are renewed.
    if lists_present() && attempt().is_ok() {
        return Ok(());
    }
    update_lists()?;
    attempt()
}

/// Renews apt's package lists.
pub(crate) fn update_lists() -> Result<()> {
    proc::run(proc::command("apt-get").args(["-qq", "update"]))
}

/// True when apt knows any package to install.
pub(crate) fn lists_present() -> bool {
    std::fs::read_dir("/var/lib/apt/lists").is_ok_and(|entries| {
        entries.flatten().any(|e| e.file_name().to_string_lossy().contains("_Packages"))
    })
}
