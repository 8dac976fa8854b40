//! A small Linux machine for tests that need a kernel of their own: Debian's kernel, an initramfs
//! with busybox, nbd-client and the ext4 tools, and the QEMU that runs them.
//!
//! QEMU comes from packages unpacked into the build cache, with its libraries, rather than
//! installed: its package excludes other versions of `qemu-utils` than its own, and a machine may
//! well have a newer one. `<cache>/linux-guest` then holds `kernel`, `initramfs` and two scripts:
//! `qemu` takes QEMU's arguments, `relay PORT` joins a connection that QEMU's network made to a
//! port of the loopback.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::env::House;
use crate::{debian, proc};

/// Raise it when this file makes something else from the same packages.
const RECIPE: &str = "1";
/// What the guest runs first.
const INIT: &str = include_str!("init.sh");

const PACKAGES: &[&str] = &[
    "linux-image-cloud-amd64",
    "qemu-system-x86",
    "busybox-static",
    "coreutils",
    "e2fsprogs",
    "kmod",
    "nbd-client",
    "socat",
    "util-linux",
];
/// Programs of the guest that are not busybox's; each goes to `/usr/sbin`, ahead of busybox.
const PROGRAMS: &[&str] =
    &["blkdiscard", "blockdev", "dd", "e2fsck", "fstrim", "kmod", "mke2fs", "nbd-client", "sync"];
/// The guest's modules, besides what these need.
const MODULES: &[&str] = &["virtio_pci", "virtio_net", "nbd"];
/// What QEMU reads at run time to start a PC with a kernel in it.
const FIRMWARE: &[&str] = &["seabios/bios-256k.bin", "qemu/kvmvapic.bin", "qemu/linuxboot_dma.bin"];
/// The part of QEMU that emulates a processor, which it loads by itself.
const EMULATOR: &str = "accel-tcg-x86_64.so";
const LIBRARIES: &str = "usr/lib/x86_64-linux-gnu";
const LOADER: &str = "ld-linux-x86-64.so.2";

/// Runs the unpacked QEMU with the libraries it was built for.
const QEMU: &str = r#"#!/bin/sh
here=$(dirname "$(readlink -f "$0")")
export QEMU_MODULE_DIR="$here/modules"
exec "$here/lib/ld-linux-x86-64.so.2" --inhibit-cache --library-path "$here/lib" \
    "$here/qemu-system-x86_64" -L "$here/firmware" "$@"
"#;
/// QEMU's end of the connection is a TCP socket, too: without `nodelay` every answer of more than
/// one piece waits 40 ms for an acknowledgement. It is the error output as well, where a message
/// would be taken for an answer.
const RELAY: &str = r#"#!/bin/sh
here=$(dirname "$(readlink -f "$0")")
exec "$here/lib/ld-linux-x86-64.so.2" --inhibit-cache --library-path "$here/lib" \
    "$here/socat" -b 262144 FD:0,nodelay "TCP4:127.0.0.1:$1,nodelay" 2>/dev/null
"#;

/// Makes the guest if it is missing or of another recipe. Where that fails, its tests skip
/// themselves and say so.
pub(crate) fn ready(house: &House) {
    if let Err(error) = install(house) {
        eprintln!("linux guest: {error:#}");
        eprintln!("linux guest: going on without; the tests that need it will be SKIPPED");
    }
}

fn install(house: &House) -> Result<()> {
    if !cfg!(target_arch = "x86_64") {
        bail!("it is an x86-64 machine, and its programs cannot be unpacked for it here");
    }
    let lock = fs::File::create(house.cache.join("linux-guest.lock"))?;
    lock.lock().context("cannot lock the build cache")?;
    let dir = house.cache.join("linux-guest");
    let lists = [PACKAGES, PROGRAMS, MODULES].map(|list| list.join(" ")).join("\n");
    let wanted = format!("{RECIPE}\n{lists}\n{QEMU}{RELAY}{INIT}");
    if fs::read_to_string(dir.join("recipe")).is_ok_and(|there| there == wanted) {
        return Ok(());
    }
    eprintln!("making a Linux guest for tests in {}", dir.display());
    let temp = house.cache.join(".linux-guest");
    remove(&temp)?;
    fs::create_dir(&temp)?;
    let made = make(&temp, &temp.join("guest")).and_then(|()| {
        fs::write(temp.join("guest/recipe"), &wanted)?;
        remove(&dir)?;
        publish(&temp.join("guest"), &dir)
    });
    let removed = remove(&temp);
    made.and(removed)
}

fn remove(dir: &Path) -> Result<()> {
    if dir.exists() {
        fs::remove_dir_all(dir).with_context(|| format!("cannot remove {}", dir.display()))?;
    }
    Ok(())
}

#[allow(clippy::disallowed_methods, reason = "a cache entry, not stored data: lost is made again")]
fn publish(made: &Path, dir: &Path) -> Result<()> {
    fs::rename(made, dir).with_context(|| format!("cannot name the guest {}", dir.display()))
}

fn make(temp: &Path, to: &Path) -> Result<()> {
    let packages = debian::download(temp, PACKAGES)?;
    eprintln!("    unpacking {} packages", packages.len());
    let tree = Tree { root: temp.join("root") };
    debian::unpack(&packages, &tree.root)?;
    fs::create_dir(to)?;
    put_emulator(&tree, to)?;
    let release = tree.kernel_release()?;
    copy(&tree.root.join(format!("boot/vmlinuz-{release}")), &to.join("kernel"))?;
    let busybox = tree.program("busybox")?;
    let files = temp.join("initramfs");
    furnish(&tree, &release, &busybox, &files)?;
    pack(&busybox, &files, &to.join("initramfs"))
}

/// QEMU, what it loads, the relay, and the scripts that start them.
fn put_emulator(tree: &Tree, to: &Path) -> Result<()> {
    for dir in ["lib", "modules", "firmware"] {
        fs::create_dir(to.join(dir))?;
    }
    let emulator = tree.root.join(LIBRARIES).join("qemu").join(EMULATOR);
    for (program, dir) in [
        (tree.program("qemu-system-x86_64")?, to.to_path_buf()),
        (tree.program("socat")?, to.to_path_buf()),
        (emulator, to.join("modules")),
    ] {
        tree.copy_libraries(&program, &to.join("lib"))?;
        copy(&program, &dir.join(program.file_name().context("a program has a name")?))?;
    }
    for file in FIRMWARE {
        let from = tree.root.join("usr/share").join(file);
        copy(&from, &to.join("firmware").join(from.file_name().context("a file has a name")?))?;
    }
    write_program(&to.join("qemu"), QEMU)?;
    write_program(&to.join("relay"), RELAY)
}

/// The files of the initramfs.
fn furnish(tree: &Tree, release: &str, busybox: &Path, to: &Path) -> Result<()> {
    for dir in ["dev", "proc", "sys", "run", "tmp", "mnt", "usr/bin", "usr/sbin", "usr/lib"] {
        fs::create_dir_all(to.join(dir))?;
    }
    for (link, target) in
        [("bin", "usr/bin"), ("sbin", "usr/sbin"), ("lib", "usr/lib"), ("lib64", "usr/lib")]
    {
        symlink(target, to.join(link))?;
    }
    copy(busybox, &to.join("usr/bin/busybox"))?;
    for name in PROGRAMS {
        let program = tree.program(name)?;
        copy(&program, &to.join("usr/sbin").join(name))?;
        tree.copy_libraries(&program, &to.join("usr/lib"))?;
    }
    symlink("kmod", to.join("usr/sbin/modprobe"))?;
    put_modules(tree, release, to)?;
    write_program(&to.join("init"), INIT)
}

/// The modules with those they need, and the tables `modprobe` reads.
fn put_modules(tree: &Tree, release: &str, to: &Path) -> Result<()> {
    let kmod = tree.program("kmod")?;
    proc::output(tree.run(&["--argv0", "depmod"], &kmod).arg("-b").arg(&tree.root).arg(release))?;
    let from = tree.root.join("usr/lib/modules").join(release);
    let to = to.join("usr/lib/modules").join(release);
    fs::create_dir_all(&to)?;
    for entry in fs::read_dir(&from)?.flatten() {
        if entry.file_type()?.is_file() {
            copy(&entry.path(), &to.join(entry.file_name()))?;
        }
    }
    let table = fs::read_to_string(from.join("modules.dep"))?;
    for module in MODULES {
        // `kernel/drivers/block/nbd.ko.xz: kernel/...`; a name that is not there is built in.
        let line = table.lines().find(|line| {
            let file = line.split(':').next().and_then(|path| path.rsplit('/').next());
            file.and_then(|file| file.split('.').next()) == Some(module)
        });
        for path in line.unwrap_or_default().split_whitespace() {
            let path = path.trim_end_matches(':');
            let target = to.join(path);
            fs::create_dir_all(target.parent().context("a module has a directory")?)?;
            copy(&from.join(path), &target)?;
        }
    }
    Ok(())
}

/// Packs the files as the kernel unpacks them.
fn pack(busybox: &Path, files: &Path, to: &Path) -> Result<()> {
    let mut list = proc::command("find");
    list.current_dir(files).arg(".");
    let mut cpio = proc::command(busybox);
    cpio.current_dir(files).args(["cpio", "-o", "-H", "newc", "-R", "0:0", "-F"]).arg(to);
    proc::pipe(list, cpio).map(drop)
}

fn write_program(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755))?;
    Ok(())
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::copy(from, to)
        .with_context(|| format!("cannot copy {} to {}", from.display(), to.display()))?;
    Ok(())
}

/// The unpacked packages.
struct Tree {
    root: PathBuf,
}

impl Tree {
    fn program(&self, name: &str) -> Result<PathBuf> {
        let dirs = ["usr/bin", "usr/sbin"];
        let found = dirs.iter().map(|dir| self.root.join(dir).join(name)).find(|p| p.exists());
        found.with_context(|| format!("no package has brought {name}"))
    }

    /// Runs a program of the tree with the tree's own libraries; the arguments are the loader's.
    fn run(&self, loader: &[&str], program: &Path) -> std::process::Command {
        let libraries = self.root.join(LIBRARIES);
        let mut command = proc::command(libraries.join(LOADER));
        command.arg("--inhibit-cache").arg("--library-path").arg(&libraries);
        command.args(loader).arg(program);
        command
    }

    /// Copies what a program is linked with, the loader among it.
    fn copy_libraries(&self, program: &Path, to: &Path) -> Result<()> {
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
    fn kernel_release(&self) -> Result<String> {
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
}
