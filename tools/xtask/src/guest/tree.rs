//! Unpacked packages, whose programs run and are copied with the libraries they were built for.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::copy;
use crate::proc;

/// Where Debian keeps libraries.
pub(super) const LIBRARIES: &str = "usr/lib/x86_64-linux-gnu";
/// Where else: what programs name as theirs, and what multipath has of its own.
const PRIVATE: &[&str] = &["usr/lib/x86_64-linux-gnu/ceph", "usr/lib"];
const LOADER: &str = "ld-linux-x86-64.so.2";

/// The unpacked packages.
pub(super) struct Tree {
    pub(super) root: PathBuf,
}

impl Tree {
    /// Where a program lies. What is only a link is none: it would lead out of the tree.
    pub(super) fn program(&self, name: &str) -> Result<PathBuf> {
        let dirs = ["usr/bin", "usr/sbin"];
        let mut found = dirs.iter().map(|dir| self.root.join(dir).join(name));
        let there = |path: &PathBuf| path.symlink_metadata().is_ok_and(|meta| meta.is_file());
        found.find(there).with_context(|| format!("no package has brought {name}"))
    }

    /// Runs a program of the tree with the tree's own libraries; the arguments are the loader's.
    pub(super) fn run(&self, loader: &[&str], program: &Path) -> std::process::Command {
        let libraries = self.root.join(LIBRARIES);
        let mut path = libraries.clone().into_os_string();
        for dir in PRIVATE {
            path.push(":");
            path.push(self.root.join(dir));
        }
        let mut command = proc::command(libraries.join(LOADER));
        command.arg("--inhibit-cache").arg("--library-path").arg(path);
        command.args(loader).arg(program);
        command
    }

    /// Copies what a program is linked with, the loader among it.
    pub(super) fn copy_libraries(&self, program: &Path, to: &Path) -> Result<()> {
        let list = proc::capture(&mut self.run(&["--list"], program))?;
        // `libc.so.6 => /tree/usr/lib/libc.so.6 (0x7f..)`; the kernel's own has no path.
        for line in list.lines() {
            let Some((name, rest)) = line.split_once(" => ") else { continue };
            let path = Path::new(rest.split(" (").next().unwrap_or_default());
            if !path.starts_with(&self.root) {
                bail!("{} needs {}, which no package has brought", program.display(), name.trim());
            }
            let file = path.file_name().context("a library has a name")?;
            copy(path, &to.join(file))?;
        }
        copy(&self.root.join(LIBRARIES).join(LOADER), &to.join(LOADER))
    }

    /// The version of the one kernel, as its files are named.
    pub(super) fn kernel_release(&self) -> Result<String> {
        let dir = self.root.join("usr/lib/modules");
        let mut names = fs::read_dir(&dir)
            .with_context(|| format!("cannot list {}", dir.display()))?
            .flatten()
            .map(|entry| entry.file_name().to_string_lossy().into_owned());
        match (names.next(), names.next()) {
            (Some(name), None) => Ok(name),
            _ => bail!("not one kernel in {}", dir.display()),
        }
    }

    /// Writes the tables that `modprobe` reads, as an installation would.
    pub(super) fn index_modules(&self, release: &str) -> Result<()> {
        let kmod = self.program("kmod")?;
        let mut depmod = self.run(&["--argv0", "depmod"], &kmod);
        proc::output(depmod.arg("-b").arg(&self.root).arg(release)).map(drop)
    }

    /// Copies the tables that [`Tree::index_modules`] has written, in the form that is read: of a
    /// whole kernel's modules they are large.
    pub(super) fn copy_module_tables(&self, release: &str, to: &Path) -> Result<()> {
        let dir = Path::new("usr/lib/modules").join(release);
        fs::create_dir_all(to.join(&dir))?;
        for entry in fs::read_dir(self.root.join(&dir))?.flatten() {
            let name = entry.file_name();
            if name.to_string_lossy().ends_with(".bin") || name == "modules.softdep" {
                copy(&entry.path(), &to.join(&dir).join(name))?;
            }
        }
        Ok(())
    }

    /// Copies modules with those they need. One that is built into the kernel is there already.
    pub(super) fn copy_modules(&self, release: &str, modules: &[&str], to: &Path) -> Result<()> {
        let dir = Path::new("usr/lib/modules").join(release);
        let table = fs::read_to_string(self.root.join(&dir).join("modules.dep"))?;
        let built_in = fs::read_to_string(self.root.join(&dir).join("modules.builtin"))?;
        for module in modules {
            // `kernel/drivers/block/nbd.ko.xz: kernel/...`
            let named = |line: &&str| {
                let file = line.split(':').next().and_then(|path| path.rsplit('/').next());
                file.and_then(|file| file.split('.').next()) == Some(module)
            };
            let Some(line) = table.lines().find(named) else {
                if built_in.lines().any(|line| named(&line)) {
                    continue;
                }
                bail!("the kernel {release} has no module {module}");
            };
            for path in line.split_whitespace() {
                let path = dir.join(path.trim_end_matches(':'));
                let target = to.join(&path);
                fs::create_dir_all(target.parent().context("a module has a directory")?)?;
                copy(&self.root.join(&path), &target)?;
            }
        }
        Ok(())
    }

    /// Makes an ext4 file system of `mib` MiB that holds the files below `from`.
    pub(super) fn file_system(&self, from: &Path, image: &Path, mib: u64) -> Result<()> {
        let mut mke2fs = self.run(&[], &self.program("mke2fs")?);
        mke2fs.args(["-q", "-F", "-t", "ext4", "-b", "4096", "-m", "0", "-O", "^has_journal"]);
        mke2fs.args(["-E", "root_owner=0:0,lazy_itable_init=0", "-d"]).arg(from).arg(image);
        proc::output(mke2fs.arg(format!("{mib}M"))).map(drop)
    }
}

/// What the files below a directory take, in MiB, and a reserve for what is written around them.
pub(super) fn room_mib(dir: &Path) -> Result<u64> {
    let mut open = vec![dir.to_path_buf()];
    let mut bytes = 0;
    while let Some(dir) = open.pop() {
        for entry in fs::read_dir(&dir)?.flatten() {
            let meta = entry.metadata()?;
            if meta.is_dir() {
                open.push(entry.path());
            }
            bytes += meta.len().next_multiple_of(4096) + 1024;
        }
    }
    Ok(((bytes + bytes / 16) >> 20) + 8)
}
