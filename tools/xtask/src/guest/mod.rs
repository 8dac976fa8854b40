//! A small Linux machine for tests that need a kernel of their own: Debian's kernel, an initramfs
//! with busybox, nbd-client and the ext4 tools, an image with the tools for iSCSI, and the QEMU that
//! runs them. Beside it a disk that boots by itself.
//!
//! QEMU comes from packages unpacked into the build cache, with its libraries, rather than
//! installed: its package excludes other versions of `qemu-utils` than its own, and a machine may
//! well have a newer one. `<cache>/linux-guest` then holds `kernel`, `initramfs`, `storage.raw`, `boot.raw` and three
//! scripts: `qemu` and `qemu-img` take QEMU's arguments, `relay PORT` joins a connection that QEMU's network made to a
//! port of the loopback.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;

use anyhow::{Context, Result, bail};

use self::tree::{LIBRARIES, Tree};
use crate::env::House;
use crate::{debian, proc};

mod boot_disk;
mod storage;
mod tree;

/// Raise it when this file makes something else from the same packages.
const RECIPE: &str = "2";
/// What the guest runs first.
const INIT: &str = include_str!("init.sh");

const PACKAGES: &[&str] = &[
    // Not the kernel for clouds: that one knows nothing of ALUA.
    "linux-image-amd64",
    "qemu-system-x86",
    "qemu-block-extra",
    "qemu-utils",
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
const MODULES: &[&str] =
    &["virtio_pci", "virtio_net", "virtio_blk", "crc32c_generic", "ext4", "nbd"];
/// What QEMU reads at run time to start a PC with a kernel in it.
const FIRMWARE: &[&str] = &["seabios/bios-256k.bin", "qemu/kvmvapic.bin", "qemu/linuxboot_dma.bin"];
/// The parts of QEMU that emulate a processor and that attach iSCSI disks; it loads them by itself.
const PARTS: &[&str] = &["accel-tcg-x86_64.so", "block-iscsi.so"];

/// Runs the unpacked QEMU with the libraries it was built for.
const QEMU: &str = r#"#!/bin/sh
here=$(dirname "$(readlink -f "$0")")
export QEMU_MODULE_DIR="$here/modules"
exec "$here/lib/ld-linux-x86-64.so.2" --inhibit-cache --library-path "$here/lib" \
    "$here/qemu-system-x86_64" -L "$here/firmware" "$@"
"#;
/// Its qemu-img, which knows iSCSI.
const QEMU_IMG: &str = r#"#!/bin/sh
here=$(dirname "$(readlink -f "$0")")
export QEMU_MODULE_DIR="$here/modules"
exec "$here/lib/ld-linux-x86-64.so.2" --inhibit-cache --library-path "$here/lib" "$here/lib/qemu-img" "$@"
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
    let wanted = recipe();
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

/// What decides how a guest is: one that was made by another is made anew.
fn recipe() -> String {
    let lists = [PACKAGES, PROGRAMS, MODULES, PARTS, storage::PACKAGES, storage::PROGRAMS];
    let lists = lists.iter().chain(&[storage::MODULES, boot_disk::PACKAGES]);
    let lists: Vec<String> = lists.map(|list| list.join(" ")).collect();
    let scripts = [QEMU, QEMU_IMG, RELAY, INIT, storage::START, boot_disk::GRUB].concat();
    format!("{RECIPE}\n{}\n{scripts}{}", lists.join("\n"), boot_disk::INITS.concat())
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
    let wanted = [PACKAGES, storage::PACKAGES, boot_disk::PACKAGES].concat();
    let packages = debian::download(temp, &wanted)?;
    eprintln!("    unpacking {} packages", packages.len());
    let tree = Tree { root: temp.join("root") };
    debian::unpack(&packages, &tree.root)?;
    fs::create_dir(to)?;
    put_emulator(&tree, to)?;
    let release = tree.kernel_release()?;
    copy(&tree.root.join(format!("boot/vmlinuz-{release}")), &to.join("kernel"))?;
    let busybox = tree.program("busybox")?;
    let files = temp.join("initramfs");
    tree.index_modules(&release)?;
    furnish(&tree, &release, &busybox, &files)?;
    pack(&busybox, &files, &to.join("initramfs"))?;
    storage::make(&tree, &release, &files, temp, &to.join("storage.raw"))?;
    boot_disk::make(&tree, &release, &busybox, temp, &to.join("boot.raw"))
}

/// QEMU, what it loads, the relay, and the scripts that start them.
fn put_emulator(tree: &Tree, to: &Path) -> Result<()> {
    for dir in ["lib", "modules", "firmware"] {
        fs::create_dir(to.join(dir))?;
    }
    let mut programs = vec![
        (tree.program("qemu-system-x86_64")?, to.to_path_buf()),
        (tree.program("qemu-img")?, to.join("lib")),
        (tree.program("socat")?, to.to_path_buf()),
    ];
    for part in PARTS {
        programs.push((tree.root.join(LIBRARIES).join("qemu").join(part), to.join("modules")));
    }
    for (program, dir) in programs {
        tree.copy_libraries(&program, &to.join("lib"))?;
        copy(&program, &dir.join(program.file_name().context("a program has a name")?))?;
    }
    for file in FIRMWARE {
        let from = tree.root.join("usr/share").join(file);
        copy(&from, &to.join("firmware").join(from.file_name().context("a file has a name")?))?;
    }
    write_program(&to.join("qemu"), QEMU)?;
    write_program(&to.join("qemu-img"), QEMU_IMG)?;
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
    tree.copy_module_tables(release, to)?;
    tree.copy_modules(release, MODULES, to)?;
    write_program(&to.join("init"), INIT)
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
