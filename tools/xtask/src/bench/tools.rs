//! Backstay and its peers, called as their users call them: defaults, encrypted, on a local
//! directory, each with its own cache below the work directory.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::cargo;
use crate::env::House;
use crate::proc;

/// Which program.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Peer {
    Restic,
    Borg,
    Rustic,
}

/// A program that is measured.
#[derive(Debug, Clone)]
pub(super) struct Tool {
    pub(super) name: String,
    /// What it says of its version.
    pub(super) version: String,
    program: PathBuf,
    kind: Option<Peer>,
    /// Size of the chunks of its repositories; nothing: as its users get it.
    chunks: Option<String>,
}

impl Tool {
    fn new(name: &str, program: PathBuf, kind: Option<Peer>) -> Tool {
        Tool { name: name.to_owned(), version: String::new(), program, kind, chunks: None }
    }

    /// The product, built in release.
    pub(super) fn ours(program: PathBuf) -> Result<Tool> {
        Tool::new("backstay", program, None).with_version()
    }

    /// The product with another size of chunks.
    pub(super) fn with_chunks(&self, size: &str) -> Tool {
        let name = format!("{} {size}", self.name);
        Tool { name, chunks: Some(size.to_owned()), ..self.clone() }
    }

    /// One that only has a name.
    #[cfg(test)]
    pub(super) fn named(name: &str, ours: bool) -> Tool {
        Tool::new(name, PathBuf::new(), (!ours).then_some(Peer::Restic))
    }

    /// A peer: installed as a Debian package, or built from the Rust registry into the cache.
    pub(super) fn peer(house: &House, peer: Peer) -> Result<Tool> {
        let installed =
            |name: &str| proc::find(name).with_context(|| format!("{name} is not installed"));
        let (name, program) = match peer {
            Peer::Restic => ("restic", installed("restic")?),
            Peer::Borg => ("borg", installed("borg")?),
            Peer::Rustic => ("rustic", rustic(house)?),
        };
        Tool::new(name, program, Some(peer)).with_version()
    }

    fn with_version(mut self) -> Result<Tool> {
        let flag = if self.kind == Some(Peer::Restic) { "version" } else { "--version" };
        let said = proc::capture(proc::command(&self.program).arg(flag))?;
        self.version = said.lines().next().unwrap_or_default().trim().to_owned();
        Ok(self)
    }

    pub(super) fn is_ours(&self) -> bool {
        self.kind.is_none()
    }

    fn command(&self, dir: &Path, args: &[&str]) -> Command {
        let mut command = proc::command(&self.program);
        for (name, _) in std::env::vars_os() {
            let text = name.to_string_lossy();
            if ["BACKSTAY_", "RESTIC_", "RUSTIC_", "BORG_"].iter().any(|p| text.starts_with(p)) {
                command.env_remove(&name);
            }
        }
        let (repo, password, cache) = (dir.join("repo"), dir.join("password"), dir.join("cache"));
        match self.kind {
            None => command
                .env("BACKSTAY_REPO", repo)
                .env("BACKSTAY_KEY_FILE", dir.join("key"))
                .env("BACKSTAY_CACHE_DIR", cache),
            Some(Peer::Restic) => command
                .env("RESTIC_REPOSITORY", repo)
                .env("RESTIC_PASSWORD_FILE", password)
                .env("RESTIC_CACHE_DIR", cache),
            Some(Peer::Rustic) => command
                .env("RUSTIC_REPOSITORY", repo)
                .env("RUSTIC_PASSWORD_FILE", password)
                .env("RUSTIC_CACHE_DIR", cache)
                // No configuration of whoever runs this.
                .env("XDG_CONFIG_HOME", dir.join("config")),
            Some(Peer::Borg) => command
                .env("BORG_REPO", repo)
                .env("BORG_PASSCOMMAND", format!("cat {}", password.display()))
                .env("BORG_BASE_DIR", cache),
        };
        command.current_dir(dir).args(args);
        command
    }

    /// Makes an empty repository in `dir`, which must be empty.
    pub(super) fn init(&self, dir: &Path) -> Result<()> {
        let password = dir.join("password");
        fs::write(&password, "correct horse battery staple\n")?;
        fs::set_permissions(&password, fs::Permissions::from_mode(0o600))?;
        let args: &[&str] = match self.kind {
            None => &["repo", "init", "--new-key-file", "key"],
            Some(Peer::Restic | Peer::Rustic) => &["init"],
            Some(Peer::Borg) => &["init", "--encryption", "repokey"],
        };
        let mut command = self.command(dir, args);
        if let Some(size) = &self.chunks {
            command.args(["--chunk-size", size]);
        }
        proc::output(&mut command).map(drop)
    }

    /// Backs the image up.
    pub(super) fn backup(&self, dir: &Path, image: &Path, number: usize) -> Command {
        let image = image.display().to_string();
        let archive = format!("::backup-{number}");
        match self.kind {
            None => self.command(dir, &["backup", &image, "--machine", "bench"]),
            Some(Peer::Restic | Peer::Rustic) => self.command(dir, &["backup", &image]),
            Some(Peer::Borg) => self.command(dir, &["create", &archive, &image]),
        }
    }

    /// Restores the newest backup, which has this number, into `out`, an empty directory.
    pub(super) fn restore(&self, dir: &Path, out: &Path, number: usize) -> Command {
        let target = out.display().to_string();
        let file = out.join("image.raw").display().to_string();
        match self.kind {
            None => self.command(dir, &["restore", "disk", "bench@latest:disk0", "--to", &file]),
            Some(Peer::Restic) => self.command(dir, &["restore", "latest", "--target", &target]),
            Some(Peer::Rustic) => self.command(dir, &["restore", "latest", &target]),
            Some(Peer::Borg) => {
                let mut command = self.command(dir, &["extract", &format!("::backup-{number}")]);
                command.current_dir(out);
                command
            }
        }
    }
}

/// rustic, built once into the cache.
fn rustic(house: &House) -> Result<PathBuf> {
    let root = house.cache.join("rustic");
    let program = root.join("bin/rustic");
    if !program.is_file() {
        eprintln!("building rustic from the Rust registry (ten minutes or more, once)");
        let mut install = cargo::plain();
        install.args(["install", "--locked", "rustic-rs", "--no-default-features", "--root"]);
        install.arg(&root).env("CARGO_TARGET_DIR", house.cache.join("rustic-build"));
        // Outside the clone: its pinned toolchain and settings are not rustic's.
        proc::run(install.current_dir(&house.cache))?;
        let _ = fs::remove_dir_all(house.cache.join("rustic-build"));
    }
    Ok(program)
}
