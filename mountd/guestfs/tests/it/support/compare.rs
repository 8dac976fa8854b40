//! A file system of ours beside a directory of the kernel's: every name, every byte, every piece of metadata.

use std::collections::{BTreeMap, HashMap};
use std::ffi::CString;
use std::fs::{File, Metadata};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use backstay_guestfs::fs::{DirCookie, FileSystem, NodeId, NodeKind, Place, Stat, Time};

/// What is compared. [`Compare::ALL`] is everything; a test that leaves something out says why.
#[derive(Debug, Clone)]
pub(crate) struct Compare {
    pub(crate) accessed: bool,
    pub(crate) modified: bool,
    pub(crate) changed: bool,
    pub(crate) created: bool,
    pub(crate) owners: bool,
    pub(crate) modes: bool,
    pub(crate) file_links: bool,
    pub(crate) directory_links: bool,
    pub(crate) inode_numbers: bool,
    pub(crate) allocated: bool,
    pub(crate) directory_sizes: bool,
    pub(crate) xattrs: bool,
    /// Attributes that the kernel shows and a reader need not.
    pub(crate) xattrs_passed_over: &'static [&'static str],
    /// Names in the root that the kernel or a reader may show, and the other need not.
    pub(crate) passed_over: &'static [&'static str],
    /// Times may differ by so much, for file systems that keep less than nanoseconds.
    pub(crate) time_slack_nanos: i128,
}

impl Compare {
    pub(crate) const ALL: Self = Self {
        accessed: true,
        modified: true,
        changed: true,
        created: true,
        owners: true,
        modes: true,
        file_links: true,
        directory_links: true,
        inode_numbers: true,
        allocated: true,
        directory_sizes: true,
        xattrs: true,
        xattrs_passed_over: &[],
        passed_over: &[],
        time_slack_nanos: 0,
    };
}

/// What was seen.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) nodes: u64,
    pub(crate) files: u64,
    pub(crate) directories: u64,
    pub(crate) content_bytes: u64,
    pub(crate) xattrs: u64,
}

/// Differences listed before a comparison gives up.
const LISTED_MAX: usize = 20;
/// Content is compared in pieces of this size.
const PIECE_BYTES: usize = 1 << 20;

struct Comparison<'a> {
    fs: &'a dyn FileSystem,
    how: &'a Compare,
    differences: Vec<String>,
    seen: Seen,
    /// Which node each inode number of the kernel is: hard links meet again.
    nodes: HashMap<(u64, u64), NodeId>,
}

/// Compares all of `fs` with the directory `mounted`.
///
/// # Panics
/// With the list of differences, if there are any.
#[track_caller]
pub(crate) fn compare(fs: &dyn FileSystem, mounted: &Path, how: &Compare) -> Seen {
    compare_from(fs, fs.root(), mounted, how)
}

/// The same from another directory of `fs` on.
#[track_caller]
pub(crate) fn compare_from(
    fs: &dyn FileSystem,
    root: NodeId,
    mounted: &Path,
    how: &Compare,
) -> Seen {
    let mut comparison = Comparison {
        fs,
        how,
        differences: Vec::new(),
        seen: Seen::default(),
        nodes: HashMap::new(),
    };
    let mut waiting = vec![(root, mounted.to_owned(), true)];
    while let Some((node, path, is_root)) = waiting.pop() {
        comparison.node(node, &path);
        if comparison.differences.len() >= LISTED_MAX {
            break;
        }
        if std::fs::symlink_metadata(&path).is_ok_and(|m| m.is_dir()) {
            waiting.extend(comparison.directory(node, &path, is_root));
        }
    }
    let (differences, seen) = (comparison.differences, comparison.seen);
    assert!(differences.is_empty(), "differences to the kernel's:\n{}", differences.join("\n"));
    eprintln!("compared: {seen:?}");
    seen
}

/// Every entry of a directory, asked for in pieces of changing length.
pub(crate) fn list(fs: &dyn FileSystem, dir: NodeId) -> Vec<(Vec<u8>, NodeId, Option<NodeKind>)> {
    let (mut all, mut from, mut max) = (Vec::new(), DirCookie::START, 1);
    loop {
        let part = fs.read_dir(dir, from, max).unwrap_or_else(|e| panic!("list {dir}: {e}"));
        assert!(part.len() <= max, "{} entries where {max} were asked for", part.len());
        let Some(last) = part.last() else { return all };
        from = last.next;
        all.extend(part.into_iter().map(|e| (e.name, e.node, e.kind)));
        max = (max * 3) % 4099 + 1;
    }
}

/// All bytes of a file.
pub(crate) fn content(fs: &dyn FileSystem, node: NodeId) -> Vec<u8> {
    let size = fs.stat(node).expect("metadata").size_bytes;
    let mut bytes = vec![0; usize::try_from(size).expect("a small file")];
    let read = fs.read(node, 0, &mut bytes).unwrap_or_else(|e| panic!("read {node}: {e}"));
    assert_eq!(read as u64, size);
    bytes
}

/// The node a path of plain components leads to.
pub(crate) fn find(fs: &dyn FileSystem, path: &str) -> NodeId {
    path.split('/').filter(|name| !name.is_empty()).fold(fs.root(), |dir, name| {
        fs.lookup(dir, name.as_bytes()).unwrap_or_else(|e| panic!("{path}, at {name}: {e}"))
    })
}

impl Comparison<'_> {
    fn differs(
        &mut self,
        path: &Path,
        what: &str,
        ours: impl std::fmt::Debug,
        theirs: impl std::fmt::Debug,
    ) {
        self.differences.push(format!("{path:?}: {what}: ours {ours:?}, kernel's {theirs:?}"));
    }

    fn directory(
        &mut self,
        dir: NodeId,
        path: &Path,
        is_root: bool,
    ) -> Vec<(NodeId, PathBuf, bool)> {
        let mut ours = BTreeMap::new();
        for (name, node, kind) in list(self.fs, dir) {
            if ours.insert(name.clone(), (node, kind)).is_some() {
                self.differs(path, "a name comes twice", String::from_utf8_lossy(&name), "");
            }
        }
        let mut next = Vec::new();
        for entry in std::fs::read_dir(path).expect("the kernel lists") {
            let entry = entry.expect("an entry");
            let name = entry.file_name().into_vec();
            if is_root && self.how.passed_over.iter().any(|n| n.as_bytes() == name) {
                ours.remove(&name);
                continue;
            }
            let Some((node, kind)) = ours.remove(&name) else {
                self.differs(&entry.path(), "not listed", "", "listed");
                continue;
            };
            match self.fs.lookup(dir, &name) {
                Ok(found) if found == node => {}
                other => self.differs(&entry.path(), "lookup", other, node),
            }
            let theirs = entry.file_type().expect("a type");
            if let Some(kind) = kind
                && kind != kind_of(&theirs)
            {
                self.differs(&entry.path(), "kind in the directory", kind, theirs);
            }
            next.push((node, entry.path(), false));
        }
        for name in ours.keys() {
            if is_root && self.how.passed_over.iter().any(|n| n.as_bytes() == *name) {
                continue;
            }
            self.differs(path, "listed", String::from_utf8_lossy(name), "not listed");
        }
        let missing = self.fs.lookup(dir, b"no such name \xff");
        if !missing.is_err_and(|e| e.kind() == backstay_guestfs::ErrorKind::NotFound) {
            self.differs(path, "lookup of a name that is not there", "not NotFound", "NotFound");
        }
        next
    }

    fn node(&mut self, node: NodeId, path: &Path) {
        let theirs = std::fs::symlink_metadata(path).expect("the kernel's metadata");
        let ours = match self.fs.stat(node) {
            Ok(stat) => stat,
            Err(e) => return self.differs(path, "stat", e.to_string(), "works"),
        };
        self.seen.nodes += 1;
        if ours.node != node {
            self.differs(path, "node in stat", ours.node, node);
        }
        if ours.kind != kind_of(&theirs.file_type()) {
            return self.differs(path, "kind", ours.kind, theirs.file_type());
        }
        if let Some(before) = self.nodes.insert((theirs.dev(), theirs.ino()), node)
            && before != node
            && self.how.file_links
        {
            self.differs(path, "names of one inode lead to", node, before);
        }
        self.metadata(path, &ours, &theirs);
        self.times(path, &ours, &theirs);
        if self.how.xattrs {
            self.xattrs(node, path);
        }
        match ours.kind {
            NodeKind::File => {
                self.seen.files += 1;
                self.content(node, path, theirs.len());
            }
            NodeKind::Directory => self.seen.directories += 1,
            NodeKind::Symlink => {
                let target = std::fs::read_link(path).expect("a target").into_os_string();
                match self.fs.read_link(node) {
                    Ok(link) if link == target.as_bytes() => {}
                    other => self.differs(path, "target", other, target),
                }
            }
            _ => {}
        }
    }

    fn metadata(&mut self, path: &Path, ours: &Stat, theirs: &Metadata) {
        let is_dir = theirs.is_dir();
        let mut same = |compared: bool, what: &str, ours: u64, theirs: u64| {
            if compared && ours != theirs {
                self.differences.push(format!("{path:?}: {what}: ours {ours}, kernel's {theirs}"));
            }
        };
        let how = self.how;
        same(how.modes, "mode", ours.mode.into(), u64::from(theirs.mode() & 0o7777));
        same(how.owners, "owner", ours.uid.into(), theirs.uid().into());
        same(how.owners, "group", ours.gid.into(), theirs.gid().into());
        let links = if is_dir { how.directory_links } else { how.file_links };
        same(links, "links", ours.links.into(), theirs.nlink());
        same(!is_dir || how.directory_sizes, "size", ours.size_bytes, theirs.len());
        same(how.inode_numbers, "inode number", ours.node.inode, theirs.ino());
        same(how.allocated, "allocated", ours.allocated_bytes, theirs.blocks() * 512);
        let is_device = theirs.file_type().is_char_device() || theirs.file_type().is_block_device();
        let rdev =
            is_device.then(|| (rustix::fs::major(theirs.rdev()), rustix::fs::minor(theirs.rdev())));
        if ours.device != rdev {
            self.differs(path, "device", ours.device, rdev);
        }
    }

    fn times(&mut self, path: &Path, ours: &Stat, theirs: &Metadata) {
        let how = self.how;
        let theirs_at = |seconds, nanos: i64| Time { seconds, nanos: nanos as u32 };
        let created = created(path);
        let all = [
            (
                how.modified,
                "modified",
                ours.modified,
                theirs_at(theirs.mtime(), theirs.mtime_nsec()),
            ),
            (how.changed, "changed", ours.changed, theirs_at(theirs.ctime(), theirs.ctime_nsec())),
            (
                how.accessed,
                "accessed",
                ours.accessed,
                theirs_at(theirs.atime(), theirs.atime_nsec()),
            ),
            (
                how.created && created.is_some(),
                "created",
                ours.created.unwrap_or_default(),
                created.unwrap_or_default(),
            ),
        ];
        for (compared, what, ours, theirs) in all {
            let nanos = |t: Time| i128::from(t.seconds) * 1_000_000_000 + i128::from(t.nanos);
            if compared && (nanos(ours) - nanos(theirs)).abs() > how.time_slack_nanos {
                self.differs(path, what, ours, theirs);
            }
        }
    }

    fn xattrs(&mut self, node: NodeId, path: &Path) {
        let mut theirs = kernel_xattrs(path);
        for name in self.how.xattrs_passed_over {
            theirs.remove(name.as_bytes());
        }
        let ours: BTreeMap<_, _> = match self.fs.xattrs(node) {
            Ok(all) => all.into_iter().map(|x| (x.name, x.value)).collect(),
            Err(e) => return self.differs(path, "xattrs", e.to_string(), "work"),
        };
        self.seen.xattrs += theirs.len() as u64;
        let hint = self.fs.stat(node).is_ok_and(|stat| stat.attributes.no_xattrs);
        if hint && !ours.is_empty() {
            self.differs(path, "the hint that there are no xattrs", true, ours.len());
        }
        if ours != theirs {
            let names = |m: &BTreeMap<Vec<u8>, Vec<u8>>| -> Vec<String> {
                m.iter()
                    .map(|(k, v)| {
                        format!(
                            "{}={} bytes {:x?}",
                            String::from_utf8_lossy(k),
                            v.len(),
                            &v[..v.len().min(48)]
                        )
                    })
                    .collect()
            };
            self.differs(path, "xattrs", names(&ours), names(&theirs));
        }
    }

    /// Content, by what both call data; holes must read as zeros on both sides.
    fn content(&mut self, node: NodeId, path: &Path, size: u64) {
        let file = match File::open(path) {
            Ok(file) => file,
            Err(e) => return self.differs(path, "open", "", e),
        };
        let mut offset = 0;
        let (mut ours, mut theirs) = (vec![0; PIECE_BYTES], vec![0; PIECE_BYTES]);
        while offset < size {
            let extents = match self.fs.extents(node, offset, size - offset, 64) {
                Ok(extents) if !extents.is_empty() => extents,
                other => return self.differs(path, &format!("extents at {offset}"), other, "some"),
            };
            for extent in extents {
                if extent.offset_bytes != offset || extent.len_bytes == 0 {
                    return self.differs(path, "extents", extent, offset);
                }
                let end = offset + extent.len_bytes;
                if end > size {
                    return self.differs(path, "extents go beyond the end", extent, size);
                }
                let zeros = matches!(extent.place, Place::Hole | Place::Unwritten);
                while offset < end {
                    // What both know to be empty need not be read: files may be terabytes of nothing.
                    if zeros
                        && let Some(data) = next_data(&file, offset, size)
                        && data > offset
                    {
                        offset = data.min(end);
                        continue;
                    }
                    let len =
                        usize::try_from(end - offset).map_or(PIECE_BYTES, |l| l.min(PIECE_BYTES));
                    match self.fs.read(node, offset, &mut ours[..len]) {
                        Ok(read) if read == len => {}
                        other => {
                            return self.differs(
                                path,
                                &format!("read at {offset}"),
                                other.map_err(|e| e.to_string()),
                                len,
                            );
                        }
                    }
                    file.read_exact_at(&mut theirs[..len], offset).expect("the kernel reads");
                    if ours[..len] != theirs[..len] {
                        let at = (0..len).find(|i| ours[*i] != theirs[*i]).unwrap_or(0);
                        return self.differs(
                            path,
                            &format!("content at {}", offset + at as u64),
                            ours[at],
                            theirs[at],
                        );
                    }
                    if zeros && ours[..len].iter().any(|b| *b != 0) {
                        return self.differs(path, "a hole does not read as zeros", offset, len);
                    }
                    self.seen.content_bytes += len as u64;
                    offset += len as u64;
                }
            }
        }
        let mut behind = [1; 16];
        match self.fs.read(node, size, &mut behind) {
            Ok(0) => {}
            other => self.differs(path, "read at the end", other, 0),
        }
    }
}

/// The next data of a file from `offset` on; the size if there is none.
fn next_data(file: &File, offset: u64, size: u64) -> Option<u64> {
    match rustix::fs::seek(file, rustix::fs::SeekFrom::Data(offset)) {
        Ok(found) => Some(found),
        Err(rustix::io::Errno::NXIO) => Some(size),
        Err(_) => None,
    }
}

fn kind_of(theirs: &std::fs::FileType) -> NodeKind {
    if theirs.is_dir() {
        NodeKind::Directory
    } else if theirs.is_symlink() {
        NodeKind::Symlink
    } else if theirs.is_char_device() {
        NodeKind::CharDevice
    } else if theirs.is_block_device() {
        NodeKind::BlockDevice
    } else if theirs.is_fifo() {
        NodeKind::Fifo
    } else if theirs.is_socket() {
        NodeKind::Socket
    } else {
        NodeKind::File
    }
}

fn created(path: &Path) -> Option<Time> {
    use rustix::fs::{AtFlags, CWD, StatxFlags, statx};
    let found = statx(CWD, path, AtFlags::SYMLINK_NOFOLLOW, StatxFlags::BTIME).ok()?;
    let has = found.stx_mask & StatxFlags::BTIME.bits() != 0;
    has.then_some(Time { seconds: found.stx_btime.tv_sec, nanos: found.stx_btime.tv_nsec })
}

/// The extended attributes the kernel shows, without those of security modules it makes up itself.
pub(crate) fn kernel_xattrs(path: &Path) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let mut names = vec![0; 1 << 16];
    let len = match rustix::fs::llistxattr(path, &mut names[..]) {
        Ok(len) => len,
        Err(rustix::io::Errno::OPNOTSUPP) => return BTreeMap::new(),
        Err(e) => panic!("names of xattrs of {path:?}: {e}"),
    };
    let names = names[..len].split(|b| *b == 0).filter(|n| !n.is_empty());
    names
        .map(|name| {
            let mut value = vec![0; 1 << 16];
            let text = CString::new(name).expect("no NUL");
            let len = rustix::fs::lgetxattr(path, text.as_c_str(), &mut value[..])
                .unwrap_or_else(|e| panic!("xattr {text:?} of {path:?}: {e}"));
            value.truncate(len);
            (name.to_vec(), value)
        })
        .collect()
}
