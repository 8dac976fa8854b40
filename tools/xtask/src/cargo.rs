//! Cargo, called so that every chore builds with the same settings into the same target directory.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Result, bail};

use crate::env::House;
use crate::proc;

/// How cargo is called.
#[derive(Debug, Clone)]
pub(crate) struct Cargo {
    root: PathBuf,
    target: PathBuf,
    rocksdb: Option<PathBuf>,
}

impl Cargo {
    /// Cargo for this clone; `rocksdb` is the directory that holds a built `librocksdb.a`.
    pub(crate) fn new(house: &House, rocksdb: Option<PathBuf>) -> Cargo {
        Cargo { root: house.root.clone(), target: house.target.clone(), rocksdb }
    }

    /// `cargo` with the arguments given, its output going to the terminal.
    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = plain();
        command.current_dir(&self.root).env("CARGO_TARGET_DIR", &self.target).args(args);
        if let Some(dir) = &self.rocksdb {
            command.env("ROCKSDB_LIB_DIR", dir).env("ROCKSDB_STATIC", "1");
        }
        command
    }

    /// Runs `cargo` to the end; anything but success is an error.
    pub(crate) fn run(&self, args: &[&str]) -> Result<()> {
        proc::run(&mut self.command(args))
    }

    /// Builds one binary in release and returns where it is.
    pub(crate) fn release_binary(&self, package: &str, binary: &str) -> Result<PathBuf> {
        self.run(&["build", "--release", "--package", package, "--bin", binary])?;
        let path = self.target.join("release").join(binary);
        if !path.is_file() {
            bail!("cargo built {binary} and it is not at {}", path.display());
        }
        Ok(path)
    }
}

/// The cargo that started this program, without the variables that describe this program's own
/// package: a build script that watches one of them would run again for nothing.
pub(crate) fn plain() -> Command {
    let mut command = proc::command(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("CARGO_PKG_") || text.starts_with("CARGO_MANIFEST_") {
            command.env_remove(&name);
        }
    }
    command
}
