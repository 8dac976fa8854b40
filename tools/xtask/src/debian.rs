//! Debian packages taken from apt and unpacked beside the system: nothing is installed, no root is
//! needed.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::{bootstrap, proc};

/// Downloads the packages and all they depend on, as for a machine that has nothing yet. They are
/// kept in `packages` below `dir`; what is there already is not downloaded again.
///
/// Returns every package of that directory, in the order of their names.
pub(crate) fn download(dir: &Path, wanted: &[&str]) -> Result<Vec<PathBuf>> {
    if proc::find("apt-get").is_none() || proc::find("dpkg-deb").is_none() {
        bail!("it is made from Debian packages, and this machine has no apt-get");
    }
    let archives = dir.join("packages");
    fs::create_dir_all(archives.join("partial"))?;
    let empty = dir.join("no-packages-installed");
    fs::write(&empty, "")?;
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

/// Unpacks packages into one tree, as an installer would lay it out; no script of theirs is run.
pub(crate) fn unpack(packages: &[PathBuf], root: &Path) -> Result<()> {
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
        proc::pipe(from, to).with_context(|| format!("cannot unpack {}", package.display()))?;
    }
    Ok(())
}
