//! Remembers which sources a target ran well with, so that unchanged ones need not run again.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::CORPUS;
use crate::env::House;

/// The targets of the format are named in this file, those of the store are not.
const FORMAT_TARGETS: &str = "chunkstore/format/src/fuzz/mod.rs";
/// What every target depends on.
const COMMON: &[&str] = &[
    "chunkstore/format/src",
    "chunkstore/format/Cargo.toml",
    "tests/fuzz/src",
    "tests/fuzz/Cargo.toml",
];
/// What the store's targets depend on besides.
const STORE: &[&str] = &[
    "chunkstore/store/src/keys.rs",
    "chunkstore/store/src/pack",
    "chunkstore/store/src/seal.rs",
    "chunkstore/store/src/storage/memory.rs",
    "chunkstore/store/src/testkit/fuzz.rs",
];
/// What the targets of the doors depend on besides, by the start of their names.
const DOORS: &[(&str, &[&str])] = &[
    ("nbd_", &["mountd/nbd/src", "mountd/nbd/Cargo.toml"]),
    ("iscsi_", &["mountd/iscsi/src", "mountd/iscsi/Cargo.toml", "mountd/blockdev/src/mem.rs"]),
    ("guest_btrfs", &["mountd/guestfs/src/fs/btrfs"]),
    ("guest_ext", &["mountd/guestfs/src/fs/ext", "mountd/guestfs/src/fs/acl.rs"]),
    ("guest_exfat", &["mountd/guestfs/src/fs/exfat", "mountd/guestfs/src/fs/utf16.rs"]),
    ("guest_fat", &["mountd/guestfs/src/fs/fat", "mountd/guestfs/src/fs/utf16.rs"]),
    ("guest_iso9660", &["mountd/guestfs/src/fs/iso9660", "mountd/guestfs/src/fs/utf16.rs"]),
    ("guest_ntfs", &["mountd/guestfs/src/fs/ntfs", "mountd/guestfs/src/fs/utf16.rs"]),
    ("guest_xfs", &["mountd/guestfs/src/fs/xfs", "mountd/guestfs/src/fs/acl.rs"]),
    ("guest_", &["mountd/guestfs/src/volumes"]),
];
/// What the targets that read guests' disks share.
const GUEST: &[&str] = &[
    "mountd/guestfs/Cargo.toml",
    "mountd/guestfs/src/fields.rs",
    "mountd/guestfs/src/fs/content.rs",
    "mountd/guestfs/src/fs/mod.rs",
    "mountd/guestfs/src/fuzz.rs",
    "mountd/guestfs/src/fuzz",
    "mountd/guestfs/src/media.rs",
    "mountd/blockdev/src/layer/cache.rs",
    "mountd/blockdev/src/mem.rs",
];
/// Packages that do parsers' work.
const PACKAGES: &[&str] = &[
    "aws-lc-rs",
    "aws-lc-sys",
    "blake3",
    "data-encoding",
    "jiff",
    "serde",
    "serde_core",
    "serde_json",
    "zstd",
    "zstd-safe",
    "zstd-sys",
];

/// A number that changes when anything changes that `target` depends on.
pub(super) fn hash(house: &House, target: &str) -> Result<u64> {
    let format = fs::read_to_string(house.path(FORMAT_TARGETS))
        .with_context(|| format!("cannot read {FORMAT_TARGETS}"))?;
    let mut roots: Vec<PathBuf> = COMMON.iter().map(|path| house.path(path)).collect();
    roots.push(house.path(CORPUS).join(target));
    let door = DOORS.iter().find(|(prefix, _)| target.starts_with(prefix));
    if let Some((_, sources)) = door {
        roots.extend(sources.iter().map(|path| house.path(path)));
    } else if !format.contains(&format!("\"{target}\"")) {
        roots.extend(STORE.iter().map(|path| house.path(path)));
    }
    if target.starts_with("guest_") {
        roots.extend(GUEST.iter().map(|path| house.path(path)));
    }
    let mut text = Vec::new();
    for root in roots {
        collect(&house.root, &root, &mut text)?;
    }
    let lock = fs::read_to_string(house.path("Cargo.lock")).context("cannot read Cargo.lock")?;
    for package in packages(&lock) {
        text.extend_from_slice(package.as_bytes());
    }
    Ok(fnv(&text))
}

/// FNV-1a, which stays the same for ever.
fn fnv(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

/// Appends the names and contents of all files below `path`, in a fixed order.
fn collect(root: &Path, path: &Path, text: &mut Vec<u8>) -> Result<()> {
    if path.is_dir() {
        let entries = fs::read_dir(path)?.map(|entry| Ok(entry?.path()));
        let mut entries: Vec<PathBuf> = entries.collect::<Result<_>>()?;
        entries.sort();
        return entries.iter().try_for_each(|entry| collect(root, entry, text));
    }
    let bytes = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    let name = path.strip_prefix(root).unwrap_or(path).to_string_lossy();
    // With its length, so that bytes cannot move from one file to the next unseen.
    text.extend_from_slice(format!("\n{name} {}\n", bytes.len()).as_bytes());
    text.extend_from_slice(&bytes);
    Ok(())
}

/// The parts of a lock file that describe [`PACKAGES`].
fn packages(lock: &str) -> Vec<&str> {
    let is_ours = |part: &&str| {
        let name = part.lines().find_map(|line| line.strip_prefix("name = \"")?.strip_suffix('"'));
        name.is_some_and(|name| PACKAGES.contains(&name))
    };
    lock.split("\n\n").filter(is_ours).collect()
}

fn record(house: &House, target: &str) -> PathBuf {
    house.cache.join("fuzz/green").join(target)
}

/// Remembers a good run of so many seconds.
pub(super) fn remember(house: &House, target: &str, hash: u64, seconds: u64) -> Result<()> {
    let path = record(house, target);
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir)?;
    }
    // A short run does not take the place of a long one.
    let seconds = seconds.max(remembered(house, target, hash).unwrap_or(0));
    fs::write(&path, format!("{hash:016x} {seconds}\n"))
        .with_context(|| format!("cannot write {}", path.display()))
}

/// Whether a run of these sources ended well after `due` seconds or more.
pub(super) fn is_remembered(house: &House, target: &str, hash: u64, due: u64) -> bool {
    remembered(house, target, hash).is_some_and(|seconds| seconds >= due)
}

fn remembered(house: &House, target: &str, hash: u64) -> Option<u64> {
    let text = fs::read_to_string(record(house, target)).ok()?;
    let (of, seconds) = text.trim().split_once(' ')?;
    (of == format!("{hash:016x}")).then(|| seconds.parse().ok())?
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    const LOCK: &str = "[[package]]\nname = \"zstd\"\nversion = \"1\"\n\n\
                        [[package]]\nname = \"other\"\nversion = \"1\"\n";

    /// A clone with the files that hashes are made of.
    fn house(dir: &Path) -> House {
        let house =
            House { root: dir.join("clone"), cache: dir.join("cache"), target: dir.join("target") };
        let files = COMMON.iter().chain(STORE).filter(|path| path.contains('.'));
        for path in files {
            write(&house, path, "x");
        }
        for path in ["tests/fuzz/src/main.rs", "chunkstore/store/src/pack/footer.rs"] {
            write(&house, path, "x");
        }
        write(&house, FORMAT_TARGETS, "target(\"node\", node)");
        write(&house, "tests/fuzz/corpus/node/seed", "n");
        write(&house, "tests/fuzz/corpus/footer/seed", "f");
        write(&house, "Cargo.lock", LOCK);
        house
    }

    fn write(house: &House, path: &str, text: &str) {
        let path = house.path(path);
        fs::create_dir_all(path.parent().expect("a folder")).expect("made");
        fs::write(path, text).expect("written");
    }

    #[test]
    fn a_target_changes_with_what_it_depends_on_and_with_nothing_else() {
        let dir = tempfile::tempdir().expect("a directory");
        let house = house(dir.path());
        let now = || {
            let of = |target| hash(&house, target).expect("a hash");
            (of("node"), of("footer"))
        };
        let first = now();
        assert_eq!(first, now());
        write(&house, "chunkstore/store/src/check.rs", "new");
        assert_eq!(first, now(), "a file nobody reads");
        write(&house, "chunkstore/store/src/pack/footer.rs", "new");
        let second = now();
        assert_eq!(first.0, second.0, "the store is above the format");
        assert_ne!(first.1, second.1);
        write(&house, "chunkstore/format/src/node.rs", "new");
        let third = now();
        assert!(third.0 != second.0 && third.1 != second.1, "all read the format");
        write(&house, "tests/fuzz/corpus/node/crash", "new");
        let fourth = now();
        assert!(fourth.0 != third.0 && fourth.1 == third.1, "a corpus of its own");
        let others = LOCK.replace("\"other\"\nversion = \"1\"", "\"other\"\nversion = \"2\"");
        write(&house, "Cargo.lock", &others);
        assert_eq!(fourth, now(), "a package that parses nothing");
        write(&house, "Cargo.lock", &LOCK.replacen("version = \"1\"", "version = \"2\"", 1));
        assert!(now().0 != fourth.0 && now().1 != fourth.1);
    }

    #[test]
    fn only_a_long_enough_run_of_the_same_sources_counts() {
        let dir = tempfile::tempdir().expect("a directory");
        let house = house(dir.path());
        assert!(!is_remembered(&house, "node", 7, 1));
        remember(&house, "node", 7, 30).expect("remembered");
        assert!(is_remembered(&house, "node", 7, 30));
        assert!(!is_remembered(&house, "node", 7, 31));
        assert!(!is_remembered(&house, "node", 8, 1));
        remember(&house, "node", 7, 5).expect("remembered");
        assert!(is_remembered(&house, "node", 7, 30), "a short run after a long one");
        remember(&house, "node", 8, 5).expect("remembered");
        assert!(!is_remembered(&house, "node", 7, 1) && is_remembered(&house, "node", 8, 5));
        fs::write(record(&house, "node"), "garbage").expect("written");
        assert!(!is_remembered(&house, "node", 8, 1));
    }
}
