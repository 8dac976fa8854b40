//! A tree of this machine in full: what is compared before and after an attack.

use std::collections::BTreeMap;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Everything of a node but its last reading: mode, owner, names, size, times, content.
pub(crate) type Seen = (u32, (u32, u32), u64, u64, (i64, i64), (i64, i64), Vec<u8>);

/// All nodes below `top`, itself among them.
pub(crate) fn snapshot(top: &Path) -> BTreeMap<PathBuf, Seen> {
    let mut seen = BTreeMap::new();
    let mut left = vec![top.to_path_buf()];
    while let Some(path) = left.pop() {
        let meta = std::fs::symlink_metadata(&path).unwrap();
        let content = if meta.is_symlink() {
            std::fs::read_link(&path).unwrap().as_os_str().as_bytes().to_vec()
        } else if meta.is_file() {
            std::fs::read(&path).unwrap()
        } else {
            Vec::new()
        };
        if meta.is_dir() {
            left.extend(std::fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        }
        let one = (
            meta.mode(),
            (meta.uid(), meta.gid()),
            meta.nlink(),
            meta.size(),
            (meta.mtime(), meta.mtime_nsec()),
            (meta.ctime(), meta.ctime_nsec()),
            content,
        );
        seen.insert(path, one);
    }
    seen
}

/// A directory beside a target that nobody may touch, with the nodes attacks would like to reach.
pub(crate) fn canary(beside: &Path) -> PathBuf {
    let canary = beside.join("canary");
    std::fs::create_dir_all(canary.join("deep/er")).unwrap();
    std::fs::write(canary.join("passwd"), "root:x:0:0").unwrap();
    std::fs::write(canary.join("deep/er/key"), "secret").unwrap();
    std::os::unix::fs::symlink("passwd", canary.join("link")).unwrap();
    canary
}
