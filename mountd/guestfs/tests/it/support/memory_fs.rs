//! A directory of this machine as a [`FileSystem`]: to see that the comparison itself finds what differs.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::path::PathBuf;

use backstay_guestfs::fs::{
    Attributes, DirCookie, DirEntry, FileExtent, FileSystem, FsInfo, FsKind, NodeId, NodeKind,
    Place, Stat, Time, Xattr,
};
use backstay_guestfs::{Error, ErrorKind};

use super::compare::kernel_xattrs;

/// Shows a directory; nodes are the places in a list of paths.
#[derive(Debug)]
pub(crate) struct DirFs {
    info: FsInfo,
    paths: Vec<PathBuf>,
    /// Changes what `stat` says, to plant a mistake.
    pub(crate) twist: fn(&mut Stat),
    /// Changes what `read` gives.
    pub(crate) bytes: fn(&mut [u8]),
    /// Changes what `read_dir` gives.
    pub(crate) names: fn(&mut Vec<DirEntry>),
}

impl DirFs {
    pub(crate) fn new(root: PathBuf) -> Self {
        let mut paths = vec![root];
        let mut at = 0;
        let mut seen = std::collections::HashMap::new();
        while at < paths.len() {
            if fs::symlink_metadata(&paths[at]).expect("metadata").is_dir() {
                for entry in fs::read_dir(&paths[at]).expect("a list") {
                    let path = entry.expect("an entry").path();
                    let ino = fs::symlink_metadata(&path).expect("metadata").ino();
                    seen.entry(ino).or_insert(path.clone());
                    paths.push(path);
                }
            }
            at += 1;
        }
        let info = FsInfo {
            kind: FsKind::Ext4,
            label: String::new(),
            uuid: None,
            block_bytes: 4096,
            size_bytes: 0,
            used_bytes: None,
            notes: Vec::new(),
        };
        Self { info, paths, twist: |_| {}, bytes: |_| {}, names: |_| {} }
    }

    fn path(&self, node: NodeId) -> Result<&PathBuf, Error> {
        let found = self
            .paths
            .iter()
            .find(|p| fs::symlink_metadata(p).is_ok_and(|m| m.ino() == node.inode));
        found.ok_or_else(|| Error::not_found(node.to_string()))
    }

    fn node(path: &std::path::Path) -> NodeId {
        NodeId::inode(fs::symlink_metadata(path).expect("metadata").ino())
    }
}

impl FileSystem for DirFs {
    fn info(&self) -> &FsInfo {
        &self.info
    }

    fn root(&self) -> NodeId {
        Self::node(&self.paths[0])
    }

    fn lookup(&self, dir: NodeId, name: &[u8]) -> Result<NodeId, Error> {
        let path = self.path(dir)?.join(OsStr::from_bytes(name));
        match fs::symlink_metadata(&path) {
            Ok(m) => Ok(NodeId::inode(m.ino())),
            Err(_) => Err(Error::not_found("no such name")),
        }
    }

    fn read_dir(&self, dir: NodeId, from: DirCookie, max: usize) -> Result<Vec<DirEntry>, Error> {
        let mut names: Vec<_> =
            fs::read_dir(self.path(dir)?).expect("a list").map(|e| e.expect("an entry")).collect();
        names.sort_by_key(|e| e.file_name());
        let mut entries: Vec<_> = names
            .into_iter()
            .enumerate()
            .skip(from.0 as usize)
            .take(max)
            .map(|(i, e)| DirEntry {
                node: Self::node(&e.path()),
                name: e.file_name().into_vec(),
                kind: None,
                next: DirCookie(i as u64 + 1),
            })
            .collect();
        (self.names)(&mut entries);
        Ok(entries)
    }

    fn stat(&self, node: NodeId) -> Result<Stat, Error> {
        let m = fs::symlink_metadata(self.path(node)?).expect("metadata");
        let t = m.file_type();
        let kind = if t.is_dir() {
            NodeKind::Directory
        } else if t.is_symlink() {
            NodeKind::Symlink
        } else if t.is_fifo() {
            NodeKind::Fifo
        } else {
            NodeKind::File
        };
        let at = |seconds, nanos: i64| Time { seconds, nanos: nanos as u32 };
        let created = m.created().ok().and_then(|c| c.duration_since(std::time::UNIX_EPOCH).ok());
        let mut stat = Stat {
            node,
            kind,
            mode: (m.mode() & 0o7777) as u16,
            uid: m.uid(),
            gid: m.gid(),
            links: m.nlink() as u32,
            size_bytes: m.len(),
            allocated_bytes: m.blocks() * 512,
            accessed: at(m.atime(), m.atime_nsec()),
            modified: at(m.mtime(), m.mtime_nsec()),
            changed: at(m.ctime(), m.ctime_nsec()),
            created: created.map(|c| Time { seconds: c.as_secs() as i64, nanos: c.subsec_nanos() }),
            device: None,
            attributes: Attributes::default(),
        };
        (self.twist)(&mut stat);
        Ok(stat)
    }

    fn read(&self, node: NodeId, offset: u64, buf: &mut [u8]) -> Result<usize, Error> {
        let file = fs::File::open(self.path(node)?).expect("it opens");
        let mut done = 0;
        while done < buf.len() {
            match file.read_at(&mut buf[done..], offset + done as u64).expect("it reads") {
                0 => break,
                n => done += n,
            }
        }
        (self.bytes)(&mut buf[..done]);
        Ok(done)
    }

    fn read_link(&self, node: NodeId) -> Result<Vec<u8>, Error> {
        match fs::read_link(self.path(node)?) {
            Ok(target) => Ok(target.into_os_string().into_vec()),
            Err(e) => Err(Error::new(ErrorKind::Invalid, e.to_string())),
        }
    }

    fn xattrs(&self, node: NodeId) -> Result<Vec<Xattr>, Error> {
        let all = kernel_xattrs(self.path(node)?);
        Ok(all.into_iter().map(|(name, value)| Xattr { name, value }).collect())
    }

    fn extents(
        &self,
        node: NodeId,
        offset: u64,
        len: u64,
        _: usize,
    ) -> Result<Vec<FileExtent>, Error> {
        let size = fs::symlink_metadata(self.path(node)?).expect("metadata").len();
        let len_bytes = len.min(size.saturating_sub(offset));
        let extent = FileExtent { offset_bytes: offset, len_bytes, place: Place::Inside };
        Ok(if len_bytes == 0 { Vec::new() } else { vec![extent] })
    }
}
