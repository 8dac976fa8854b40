//! Readers of guest file systems beside the real tools and kernels.

#![allow(clippy::print_stderr, reason = "what was skipped, and the seed, are said aloud")]

#[path = "it/btrfs.rs"]
mod btrfs;
#[path = "it/btrfs_damage.rs"]
mod btrfs_damage;
#[path = "it/btrfs_devices.rs"]
mod btrfs_devices;
#[path = "it/comparer.rs"]
mod comparer;
#[path = "it/dos_damage.rs"]
mod dos_damage;
#[path = "it/exfat.rs"]
mod exfat;
#[path = "it/ext.rs"]
mod ext;
#[path = "it/fat.rs"]
mod fat;
#[path = "it/iso9660.rs"]
mod iso9660;
#[path = "it/ntfs.rs"]
mod ntfs;
#[path = "it/ntfs_kinds.rs"]
mod ntfs_kinds;
#[path = "it/support/mod.rs"]
mod support;
#[path = "it/unix_damage.rs"]
mod unix_damage;
#[path = "it/volumes/mod.rs"]
mod volumes;
#[path = "it/xfs.rs"]
mod xfs;
