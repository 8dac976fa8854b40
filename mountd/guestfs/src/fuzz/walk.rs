//! Going through a file system of any bytes, and holding it to the promises of the trait.

use crate::fs::{DirCookie, FileSystem, NodeId, NodeKind, Place};

/// Bounds of a walk.
const NODES_MAX: usize = 100;
const LISTS_MAX: usize = 20;
const READ_BYTES: usize = 64 << 10;

/// Lists, stats and reads what is in `fs`, which lies on `disk` alone. Errors are answers like others.
///
/// # Panics
/// When a promise is broken.
pub fn walk(fs: &dyn FileSystem, disk: &[u8]) {
    let mut waiting = vec![fs.root()];
    let mut nodes = 0;
    while let Some(node) = waiting.pop() {
        nodes += 1;
        if nodes > NODES_MAX {
            break;
        }
        let Ok(stat) = fs.stat(node) else { continue };
        assert_eq!(stat.node, node);
        if let Ok(all) = fs.xattrs(node) {
            assert!(all.is_empty() || !stat.attributes.no_xattrs, "attributes that are none");
            let mut names: Vec<_> = all.iter().map(|x| &x.name).collect();
            names.sort();
            names.dedup();
            assert_eq!(names.len(), all.len(), "an attribute comes twice");
        }
        match stat.kind {
            NodeKind::Directory => waiting.extend(list(fs, node)),
            NodeKind::File => {
                for offset in [0, 5000, stat.size_bytes.saturating_sub(9000)] {
                    content(fs, disk, node, stat.size_bytes, offset);
                }
            }
            NodeKind::Symlink => {
                if let Ok(target) = fs.read_link(node) {
                    assert_eq!(target.len() as u64, stat.size_bytes);
                }
            }
            _ => {}
        }
    }
}

/// The nodes a directory leads to.
fn list(fs: &dyn FileSystem, dir: NodeId) -> Vec<NodeId> {
    let (mut nodes, mut from) = (Vec::new(), DirCookie::START);
    for max in 1..LISTS_MAX {
        let Ok(part) = fs.read_dir(dir, from, max) else { break };
        assert!(part.len() <= max);
        for entry in part {
            let name = &entry.name[..];
            assert!(!name.is_empty() && name.len() <= 1024 && name != b"." && name != b"..");
            assert!(!name.iter().any(|b| matches!(b, 0 | b'/')));
            assert!(entry.next > from, "the list does not go on");
            from = entry.next;
            let _ = fs.lookup(dir, name);
            let _ = fs.lookup(dir, &[name, b":stream"].concat());
            nodes.push(entry.node);
        }
    }
    nodes
}

/// Extents are without gaps, and what they say is what is read.
fn content(fs: &dyn FileSystem, disk: &[u8], node: NodeId, size: u64, offset: u64) {
    let left = usize::try_from(size.saturating_sub(offset)).unwrap_or(usize::MAX);
    let mut buf = vec![0xaa; READ_BYTES];
    let read = fs.read(node, offset, &mut buf);
    if let Ok(read) = read {
        assert_eq!(read, left.min(READ_BYTES));
    }
    let Ok(extents) = fs.extents(node, offset, READ_BYTES as u64, 8) else { return };
    assert!(extents.len() <= 8);
    assert_eq!(extents.is_empty(), left == 0);
    let mut at = 0;
    for extent in extents {
        assert_eq!(extent.offset_bytes, offset + at as u64);
        assert!(extent.len_bytes > 0);
        let len = extent.len_bytes as usize;
        assert!(len <= left.min(READ_BYTES) - at, "an extent is longer than asked for");
        if read.is_ok() {
            let bytes = &buf[at..at + len];
            match extent.place {
                Place::Hole | Place::Unwritten => assert!(bytes.iter().all(|b| *b == 0)),
                Place::Device { device, offset_bytes } => {
                    assert_eq!(device, 0);
                    let start = offset_bytes as usize;
                    assert_eq!(Some(bytes), disk.get(start..start + len));
                }
                Place::Inside => {}
            }
        }
        at += len;
    }
}
