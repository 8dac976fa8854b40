//! Building the fuzzer.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::cargo::Cargo;
use crate::env::House;
use crate::proc;

const MANIFEST: &str = "tests/fuzz/Cargo.toml";
const LOCK: &str = "tests/fuzz/Cargo.lock";

/// What libFuzzer needs of the compiler: a counter at every edge, and every comparison told.
const FLAGS: &[&str] = &[
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
    "-Cllvm-args=-simplifycfg-branch-fold-threshold=0",
];

/// What became of a build.
pub(super) enum Built {
    /// It is here.
    Program(PathBuf),
    /// The sanitizer was asked for, and there is no nightly toolchain.
    NoNightly,
}

/// Builds the fuzzer, into a directory of its own beside the other builds.
pub(super) fn program(house: &House, cargo: &Cargo, sanitizer: bool) -> Result<Built> {
    let target_dir = house.target.join(if sanitizer { "fuzz-asan" } else { "fuzz" });
    fs::create_dir_all(&target_dir)?;
    lock(house, &target_dir)?;
    // Named, so that build scripts and macros are built without the flags.
    let triple = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let manifest = house.path(MANIFEST);
    let mut command = cargo.command(&["build", "--release", "--target", &triple]);
    command.arg("--manifest-path").arg(&manifest).env("CARGO_TARGET_DIR", &target_dir);
    let mut flags = FLAGS.join(" ");
    if sanitizer {
        let Some(rustc) = nightly() else { return Ok(Built::NoNightly) };
        flags.push_str(" -Zsanitizer=address");
        command.env("RUSTC", rustc);
    }
    command.env_remove("CARGO_ENCODED_RUSTFLAGS").env("RUSTFLAGS", flags);
    proc::run(&mut command)?;
    let program = target_dir.join(&triple).join("release/backstay-fuzz");
    if !program.is_file() {
        bail!("cargo built the fuzzer and it is not at {}", program.display());
    }
    Ok(Built::Program(program))
}

/// The compiler of the nightly toolchain.
fn nightly() -> Option<PathBuf> {
    let mut rustup = proc::command("rustup");
    let found = proc::capture(rustup.args(["which", "--toolchain", "nightly", "rustc"])).ok()?;
    Some(PathBuf::from(found.trim())).filter(|path| path.is_file())
}

/// The fuzzer is another workspace; its lock file starts as the main one, so that it is built of the
/// versions that are shipped, and is made again when that one changes.
fn lock(house: &House, target_dir: &Path) -> Result<()> {
    let main = fs::read(house.path("Cargo.lock")).context("cannot read Cargo.lock")?;
    let (ours, made_from) = (house.path(LOCK), target_dir.join("lock-made-from"));
    if ours.is_file() && fs::read(&made_from).is_ok_and(|from| from == main) {
        return Ok(());
    }
    fs::write(&ours, &main).with_context(|| format!("cannot write {}", ours.display()))?;
    fs::write(&made_from, &main)
        .with_context(|| format!("cannot write {}", made_from.display()))?;
    Ok(())
}
