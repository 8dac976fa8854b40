//! Files taken out of trees in memory, many of them hostile.

mod directory;
mod hostile;
mod memory;
mod snapshot;
mod streams;
mod trees;

use std::path::Path;

use backstay_core::files::directory::{Options, write};
use backstay_core::files::{Report, Tree};
use backstay_core::monitor::Silent;
use backstay_guestfs::fs::FileSystem;

/// The whole of a file system.
fn whole(fs: &dyn FileSystem) -> Tree<'_> {
    Tree { fs, node: fs.root() }
}

/// Writes all of it, with `change` made to the options.
fn restore(fs: &dyn FileSystem, target: &Path, change: impl FnOnce(&mut Options)) -> Report {
    let mut options = Options::default();
    change(&mut options);
    write(whole(fs), target, &options, &Silent).expect("a restore")
}

/// Names in a directory, sorted.
fn names(dir: &Path) -> Vec<String> {
    let list = std::fs::read_dir(dir).unwrap();
    let mut names: Vec<_> =
        list.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

fn root() -> bool {
    rustix::process::geteuid().is_root()
}

/// The seed of this run, printed.
fn seed() -> u64 {
    let seed = std::env::var("BACKSTAY_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(1);
    println!("BACKSTAY_SEED={seed}");
    seed
}
