//! Backups and restores of real images, made and read by QEMU's own tools.
// Helpers of tests may fail like tests, and tell aloud what is skipped.
#![allow(clippy::unwrap_used, clippy::print_stdout, clippy::print_stderr)]

#[path = "it/backup.rs"]
mod backup;
#[path = "it/bench.rs"]
mod bench;
#[path = "it/changes.rs"]
mod changes;
#[path = "it/changing.rs"]
mod changing;
#[path = "it/compare.rs"]
mod compare;
#[path = "it/copy.rs"]
mod copy;
#[path = "it/files/mod.rs"]
mod files;
#[path = "it/formats.rs"]
mod formats;
#[path = "it/hostile.rs"]
mod hostile;
#[path = "it/killed.rs"]
mod killed;
#[path = "it/restore_device.rs"]
mod restore_device;
#[path = "it/restore_file.rs"]
mod restore_file;
#[path = "it/restore_qcow2.rs"]
mod restore_qcow2;
