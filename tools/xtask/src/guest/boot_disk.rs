//! A disk that a PC boots from: GRUB in front, then one ext4 partition with a kernel and a small
//! system, which reads every file of its own, says what it found, and ends.
//!
//! GRUB is put in place by hand, as its own installer would do it, which wants a device and root.

use std::fs;
use std::io::{Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::symlink;
use std::path::Path;

use anyhow::{Context, Result, bail};

use super::tree::{Tree, room_mib};
use super::{copy, pack, write_program};
use crate::proc;

/// What the disk is made of, besides what the guest has anyway.
pub(super) const PACKAGES: &[&str] = &["grub-common", "grub-pc-bin"];
/// What the disk's initramfs needs to reach its root.
const MODULES: &[&str] = &["virtio_pci", "virtio_blk", "crc32c_generic", "ext4"];
/// The first process of the initramfs, and that of the disk.
pub(super) const INITS: [&str; 2] = [include_str!("boot-initrd.sh"), include_str!("boot-init.sh")];
/// What GRUB does, without a menu. Where the host is busy the emulated timer may look broken to the
/// kernel, which then stops: hence no check of it.
pub(super) const GRUB: &str = "linux (hd0,gpt2)/boot/vmlinuz console=ttyS0 quiet loglevel=4 panic=-1 no_timer_check\n\
                               initrd (hd0,gpt2)/boot/initrd\nboot\n";
const SECTOR: u64 = 512;
/// The sector that GRUB's core starts at: the first behind the partition table.
const CORE: u64 = 34;
/// The sector that the root partition starts at.
const ROOT: u64 = 2048;
/// How many small files the disk has.
const FILES: u32 = 300;

/// Makes the disk `image`.
pub(super) fn make(
    tree: &Tree,
    release: &str,
    busybox: &Path,
    temp: &Path,
    image: &Path,
) -> Result<()> {
    let root = temp.join("boot-root");
    for dir in ["bin", "sbin", "dev", "proc", "sys", "boot", "files"] {
        fs::create_dir_all(root.join(dir))?;
    }
    copy(busybox, &root.join("bin/busybox"))?;
    copy(&tree.root.join(format!("boot/vmlinuz-{release}")), &root.join("boot/vmlinuz"))?;
    make_initrd(tree, release, busybox, &temp.join("boot-initrd"), &root.join("boot/initrd"))?;
    write_program(&root.join("sbin/init"), INITS[1])?;
    let lines = |i: u32| (0..i * 3).map(|n| format!("file {i}, line {n}\n")).collect::<String>();
    for i in 1..=FILES {
        fs::write(root.join(format!("files/{i}")), lines(i))?;
    }
    let program = tree.program("kmod")?;
    tree.copy_libraries(&program, &root.join("files"))?;
    let mut list = proc::command("find");
    list.current_dir(&root).args(["bin", "sbin", "boot", "files", "-type", "f", "-print0"]);
    let mut sums = proc::command("xargs");
    sums.current_dir(&root).args(["-0", "sha256sum", "--"]);
    fs::write(root.join("sums"), proc::pipe(list, sums)?)?;

    let (system, mib) = (temp.join("boot-root.raw"), room_mib(&root)? + 16);
    tree.file_system(&root, &system, mib)?;
    let disk = fs::File::create(image)?;
    disk.set_len(ROOT * SECTOR + ((mib + 1) << 20))?;
    let mut sgdisk = proc::command("sgdisk");
    sgdisk.args(["--set-alignment=1", &format!("--new=1:{CORE}:{}", ROOT - 1)]);
    sgdisk.args(["--typecode=1:EF02", &format!("--new=2:{ROOT}:+{mib}M")]);
    proc::output(sgdisk.args(["--typecode=2:8300", "--change-name=2:root"]).arg(image))?;
    let mut dd = proc::command("dd");
    dd.arg(format!("if={}", system.display())).arg(format!("of={}", image.display()));
    dd.args(["bs=1M", "conv=notrunc,sparse", "status=none"]);
    proc::output(dd.arg(format!("seek={}", (ROOT * SECTOR) >> 20)))?;
    put_grub(tree, temp, image)
}

fn make_initrd(tree: &Tree, release: &str, busybox: &Path, files: &Path, to: &Path) -> Result<()> {
    for dir in ["bin", "dev", "proc", "sys", "root", "usr/lib"] {
        fs::create_dir_all(files.join(dir))?;
    }
    for (link, target) in [("sbin", "bin"), ("lib", "usr/lib"), ("lib64", "usr/lib")] {
        symlink(target, files.join(link))?;
    }
    copy(busybox, &files.join("bin/busybox"))?;
    let kmod = tree.program("kmod")?;
    copy(&kmod, &files.join("bin/kmod"))?;
    symlink("kmod", files.join("bin/modprobe"))?;
    tree.copy_libraries(&kmod, &files.join("usr/lib"))?;
    tree.copy_module_tables(release, files)?;
    tree.copy_modules(release, MODULES, files)?;
    write_program(&files.join("init"), INITS[0])?;
    pack(busybox, files, to)
}

/// Writes GRUB's first sector and its core, and tells each where the next is.
fn put_grub(tree: &Tree, temp: &Path, image: &Path) -> Result<()> {
    let modules = tree.root.join("usr/lib/grub/i386-pc");
    let (config, core) = (temp.join("grub.cfg"), temp.join("grub-core"));
    fs::write(&config, GRUB)?;
    let mut mkimage = tree.run(&[], &tree.program("grub-mkimage")?);
    mkimage.args(["-O", "i386-pc", "-p", "(hd0,gpt2)/boot/grub", "-d"]).arg(&modules);
    mkimage.arg("-c").arg(&config).arg("-o").arg(&core);
    proc::output(mkimage.args(["biosdisk", "part_gpt", "ext2", "linux"]))?;
    let mut core = fs::read(&core)?;
    if core.len() as u64 > (ROOT - CORE) * SECTOR {
        bail!("GRUB's core of {} bytes has no room before the first partition", core.len());
    }
    // The list of blocks at the end of its first sector: from where the rest is read.
    let at = SECTOR as usize - 12;
    core[at..at + 8].copy_from_slice(&(CORE + 1).to_le_bytes());
    let mut first = fs::read(modules.join("boot.img"))?;
    first[0x5c..0x5c + 8].copy_from_slice(&CORE.to_le_bytes());
    let mut disk = fs::OpenOptions::new().write(true).open(image)?;
    // Behind it the sector has the old partition table, which stays.
    disk.write_all(first.get(..440).context("GRUB's boot sector is too short")?)?;
    disk.seek(SeekFrom::Start(CORE * SECTOR))?;
    disk.write_all(&core)?;
    Ok(())
}
