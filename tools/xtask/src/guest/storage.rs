//! What the guest has for iSCSI: the initiator, multipath, udev, the tools that look at SCSI
//! devices, and fio. It is an image of its own that only the tests which want it attach: fio alone
//! brings 85 MB of libraries, which every guest would have to unpack.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use anyhow::{Context, Result};

use super::tree::{LIBRARIES, Tree, room_mib};
use super::{copy, write_program};

/// What the image is made of, besides what the guest has anyway.
pub(super) const PACKAGES: &[&str] =
    &["dmsetup", "fio", "multipath-tools", "open-iscsi", "sg3-utils", "udev"];
/// Each goes where its package has it: udev's rules name some by their paths.
pub(super) const PROGRAMS: &[&str] = &[
    "dmsetup",
    "fio",
    "iscsiadm",
    "iscsid",
    "kpartx",
    "lsblk",
    "multipath",
    "multipathd",
    "sg_get_lba_status",
    "sg_inq",
    "sg_persist",
    "sg_raw",
    "sg_readcap",
    "sg_rtpg",
    "sg_vpd",
    "udevadm",
];
pub(super) const MODULES: &[&str] = &[
    "iscsi_tcp",
    "sd_mod",
    "sg",
    "dm-multipath",
    "dm-round-robin",
    "dm-service-time",
    "scsi_dh_alua",
];
/// Of udev's rules those that name disks and tell multipathd of them.
const RULES: &[&str] = &[
    "50-udev-default.rules",
    "55-dm.rules",
    "55-scsi-sg3_id.rules",
    "56-dm-mpath.rules",
    "58-scsi-sg3_symlink.rules",
    "60-block.rules",
    "60-multipath.rules",
    "60-persistent-storage-dm.rules",
    "60-persistent-storage.rules",
    "95-dm-notify.rules",
];
/// Other files, where they are in the packages.
const FILES: &[&str] = &["etc/iscsi/iscsid.conf", "usr/lib/udev/scsi_id"];
/// Directories of what multipathd loads by itself.
const PLUGINS: &str = "usr/lib/multipath";
/// Started by the guest when it has such an image.
pub(super) const START: &str = include_str!("storage.sh");

/// Makes the image. What is in the guest's own files, at `base`, it leaves out: the guest lays
/// links to everything in the image among them.
pub(super) fn make(
    tree: &Tree,
    release: &str,
    base: &Path,
    temp: &Path,
    image: &Path,
) -> Result<()> {
    let files = temp.join("storage");
    for dir in
        ["usr/lib/udev/rules.d", "usr/lib/systemd", "usr/bin", "usr/sbin", "etc/iscsi", PLUGINS]
    {
        fs::create_dir_all(files.join(dir))?;
    }
    let libraries = files.join("usr/lib");
    for name in PROGRAMS {
        let program = tree.program(name)?;
        copy(&program, &files.join(program.strip_prefix(&tree.root)?))?;
        tree.copy_libraries(&program, &libraries)?;
    }
    for file in FILES {
        copy(&tree.root.join(file), &files.join(file))?;
    }
    for rule in RULES {
        let rule = Path::new("usr/lib/udev/rules.d").join(rule);
        copy(&tree.root.join(&rule), &files.join(&rule))?;
    }
    // Debian 13 has them with the other libraries.
    let plugins = [PLUGINS.to_owned(), format!("{LIBRARIES}/multipath")];
    let plugins = plugins.iter().map(|dir| tree.root.join(dir)).find(|dir| dir.is_dir());
    for plugin in fs::read_dir(plugins.context("no package has brought multipath's parts")?)? {
        let plugin = plugin?;
        copy(&plugin.path(), &files.join(PLUGINS).join(plugin.file_name()))?;
    }
    symlink("/usr/bin/udevadm", files.join("usr/lib/systemd/systemd-udevd"))?;
    tree.copy_modules(release, MODULES, &files)?;
    write_program(&files.join("etc/storage.sh"), START)?;
    without_twins(&files, base)?;
    tree.file_system(&files, image, room_mib(&files)?)
}

/// Removes the files that the other directory has, too.
fn without_twins(files: &Path, base: &Path) -> Result<()> {
    for entry in fs::read_dir(files)? {
        let entry = entry?;
        let twin = base.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            without_twins(&entry.path(), &twin)?;
        } else if twin.symlink_metadata().is_ok() {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}
