//! A file system in memory that says whatever a test wants, lies included.

use std::collections::HashMap;

use backstay_guestfs::fs::{
    Attributes, DirCookie, DirEntry, FileExtent, FileSystem, FsInfo, FsKind, NodeId, NodeKind,
    Place, Stat, Time, Xattr,
};
use backstay_guestfs::{Error, ErrorKind};

/// A node and what is in it.
#[derive(Debug, Clone)]
pub(crate) struct Node {
    pub(crate) stat: Stat,
    /// Names in the order they come.
    pub(crate) entries: Vec<(Vec<u8>, u64)>,
    /// Data with their offsets; holes between.
    pub(crate) data: Vec<(u64, Vec<u8>)>,
    pub(crate) target: Vec<u8>,
    pub(crate) xattrs: Vec<Xattr>,
    /// Reading it fails from here on.
    pub(crate) broken_from: Option<u64>,
}

#[derive(Debug)]
pub(crate) struct MemoryFs {
    info: FsInfo,
    pub(crate) nodes: HashMap<u64, Node>,
    next: u64,
}

pub(crate) const ROOT: u64 = 1;
pub(crate) const WHEN: Time = Time { seconds: 1_234_567_890, nanos: 123_456_789 };

impl MemoryFs {
    pub(crate) fn new() -> Self {
        let info = FsInfo {
            kind: FsKind::Ext4,
            label: String::new(),
            uuid: None,
            block_bytes: 4096,
            size_bytes: 0,
            used_bytes: None,
            notes: Vec::new(),
        };
        let mut fs = MemoryFs { info, nodes: HashMap::new(), next: ROOT };
        assert_eq!(fs.node(NodeKind::Directory, 0o755), ROOT);
        fs
    }

    /// A node nothing leads to yet.
    pub(crate) fn node(&mut self, kind: NodeKind, mode: u16) -> u64 {
        let id = self.next;
        self.next += 1;
        let stat = Stat {
            node: NodeId::inode(id),
            kind,
            mode,
            uid: 0,
            gid: 0,
            links: 1,
            size_bytes: 0,
            allocated_bytes: 0,
            accessed: WHEN,
            modified: WHEN,
            changed: WHEN,
            created: None,
            device: None,
            attributes: Attributes::default(),
        };
        let node = Node {
            stat,
            entries: vec![],
            data: vec![],
            target: vec![],
            xattrs: vec![],
            broken_from: None,
        };
        self.nodes.insert(id, node);
        id
    }

    pub(crate) fn get(&mut self, id: u64) -> &mut Node {
        self.nodes.get_mut(&id).unwrap()
    }

    /// A further name; names are not checked.
    pub(crate) fn name(&mut self, dir: u64, name: impl AsRef<[u8]>, id: u64) {
        self.get(dir).entries.push((name.as_ref().to_vec(), id));
    }

    pub(crate) fn dir(&mut self, dir: u64, name: impl AsRef<[u8]>) -> u64 {
        let id = self.node(NodeKind::Directory, 0o755);
        self.name(dir, name, id);
        id
    }

    pub(crate) fn file(&mut self, dir: u64, name: impl AsRef<[u8]>, bytes: &[u8]) -> u64 {
        let id = self.node(NodeKind::File, 0o644);
        self.name(dir, name, id);
        let node = self.get(id);
        node.stat.size_bytes = bytes.len() as u64;
        node.stat.allocated_bytes = bytes.len() as u64;
        if !bytes.is_empty() {
            node.data = vec![(0, bytes.to_vec())];
        }
        id
    }

    pub(crate) fn symlink(&mut self, dir: u64, name: impl AsRef<[u8]>, target: &[u8]) -> u64 {
        let id = self.node(NodeKind::Symlink, 0o777);
        self.name(dir, name, id);
        let node = self.get(id);
        node.stat.size_bytes = target.len() as u64;
        node.target = target.to_vec();
        id
    }

    pub(crate) fn special(&mut self, dir: u64, name: impl AsRef<[u8]>, kind: NodeKind) -> u64 {
        let id = self.node(kind, 0o644);
        self.name(dir, name, id);
        self.get(id).stat.device = Some((1, 3));
        id
    }

    fn at(&self, node: NodeId) -> Result<&Node, Error> {
        self.nodes.get(&node.inode).ok_or_else(|| Error::damaged("no such node"))
    }
}

impl FileSystem for MemoryFs {
    fn info(&self) -> &FsInfo {
        &self.info
    }

    fn root(&self) -> NodeId {
        NodeId::inode(ROOT)
    }

    fn lookup(&self, dir: NodeId, name: &[u8]) -> Result<NodeId, Error> {
        let entries = &self.at(dir)?.entries;
        let found = entries.iter().find(|(have, _)| have == name);
        found.map(|(_, id)| NodeId::inode(*id)).ok_or_else(|| Error::not_found("no such name"))
    }

    fn read_dir(&self, dir: NodeId, from: DirCookie, max: usize) -> Result<Vec<DirEntry>, Error> {
        let node = self.at(dir)?;
        let start = from.0 as usize;
        if node.broken_from.is_some_and(|broken| from.0 >= broken) {
            return Err(Error::damaged("a broken directory"));
        }
        let entries = node.entries.iter().enumerate().skip(start).take(max.min(7));
        Ok(entries
            .map(|(at, (name, id))| DirEntry {
                name: name.clone(),
                node: NodeId::inode(*id),
                kind: None,
                next: DirCookie(at as u64 + 1),
            })
            .collect())
    }

    fn stat(&self, node: NodeId) -> Result<Stat, Error> {
        Ok(self.at(node)?.stat)
    }

    fn read(&self, node: NodeId, offset: u64, buf: &mut [u8]) -> Result<usize, Error> {
        let node = self.at(node)?;
        let len = node.stat.size_bytes.saturating_sub(offset).min(buf.len() as u64) as usize;
        if node.broken_from.is_some_and(|broken| offset + len as u64 > broken) {
            return Err(Error::new(ErrorKind::Damaged, "a checksum that does not fit"));
        }
        buf[..len].fill(0);
        let end = offset + len as u64;
        for (at, bytes) in &node.data {
            let (from, to) = (offset.max(*at), end.min(at + bytes.len() as u64));
            if from < to {
                let part = &bytes[(from - at) as usize..(to - at) as usize];
                buf[(from - offset) as usize..(to - offset) as usize].copy_from_slice(part);
            }
        }
        Ok(len)
    }

    fn read_link(&self, node: NodeId) -> Result<Vec<u8>, Error> {
        Ok(self.at(node)?.target.clone())
    }

    fn xattrs(&self, node: NodeId) -> Result<Vec<Xattr>, Error> {
        Ok(self.at(node)?.xattrs.clone())
    }

    fn extents(
        &self,
        node: NodeId,
        offset: u64,
        len: u64,
        max: usize,
    ) -> Result<Vec<FileExtent>, Error> {
        let node = self.at(node)?;
        let end = node.stat.size_bytes.min(offset.saturating_add(len));
        let mut list = vec![];
        let mut at = offset;
        while at < end && list.len() < max.min(3) {
            let inside =
                node.data.iter().find(|(from, b)| *from <= at && at < from + b.len() as u64);
            let (stop, place) = match inside {
                Some((from, bytes)) => (from + bytes.len() as u64, Place::Inside),
                None => {
                    let next = node.data.iter().map(|(from, _)| *from).filter(|from| *from > at);
                    (next.min().unwrap_or(end), Place::Hole)
                }
            };
            let stop = stop.min(end);
            list.push(FileExtent { offset_bytes: at, len_bytes: stop - at, place });
            at = stop;
        }
        Ok(list)
    }
}
