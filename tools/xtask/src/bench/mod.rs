//! `cargo xtask bench`: measured beside limits and peers, in one run, never from memory.

mod browse;
mod changes;
mod gc;
mod image;
mod iscsi;
mod measure;
mod memory;
mod nbd;
mod process;
mod report;
mod s3;
mod size;
mod store;
mod tools;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::Subcommand;

use crate::env::House;

#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand, Debug)]
enum What {
    /// First backup, unchanged backup and restore of a mixed image, beside the limits of this
    /// machine and beside restic, borg and rustic; then `changes`, `s3`, `gc`, `size` and `memory`
    Store(store::Args),
    /// Backups of sparse disks of 1 and 10 TiB that are told what changed
    Changes(changes::Args),
    /// Backup and restore of a mixed image through a distance, on a repository in a bucket, beside
    /// plain requests for the same bytes; and how many requests that takes
    S3(s3::Args),
    /// How fast a collection marks, whether its cost follows the change and not the history, and
    /// what backups beside it feel
    Gc(gc::Args),
    /// How large a repository is after ten daily backups of a guest's disk, beside restic, borg and
    /// rustic
    Size(size::Args),
    /// The chunk index under a memory limit, and what it would take with 100 million chunks
    Memory(memory::Args),
    /// The NBD server, read-only and with an overlay, beside qemu-nbd and nbdkit
    Nbd(nbd::Args),
    /// The iSCSI target beside tgt
    Iscsi(iscsi::Args),
    /// Files inside guest disks beside the kernel's mounts, and a disk's image through FUSE beside other servers
    Browse(browse::Args),
    /// Only write the mixed image
    Image {
        /// The file to write; what is there is replaced
        out: PathBuf,
        /// Size of the image
        #[arg(long, default_value_t = image::DEFAULT_MIB)]
        size_mib: u64,
        /// The same seed makes the same image
        #[arg(long, default_value_t = image::DEFAULT_SEED)]
        seed: u64,
    },
}

/// The chore `cargo xtask bench`.
pub(crate) fn run(house: &House, args: Args) -> Result<ExitCode> {
    match args.what {
        What::Store(args) => {
            store::run(house, &args)?;
            let dir = args.dir;
            s3::run(house, &s3::Args::beside_store(dir.clone()))?;
            gc::run(house, &gc::Args::beside_store(dir.clone()))?;
            size::run(house, &size::Args::beside_store(dir.clone()))?;
            memory::run(house, &memory::Args::beside_store(dir))
        }
        What::Changes(args) => changes::run(house, &args),
        What::Gc(args) => gc::run(house, &args),
        What::Size(args) => size::run(house, &args),
        What::Memory(args) => memory::run(house, &args),
        What::S3(args) => s3::run(house, &args),
        What::Nbd(args) => nbd::run(house, &args),
        What::Iscsi(args) => iscsi::run(house, &args),
        What::Browse(args) => browse::run(house, &args),
        What::Image { out, size_mib, seed } => {
            image::write(&out, size_mib, seed)?;
            Ok(ExitCode::SUCCESS)
        }
    }
}
