//! ISO 9660 (ECMA-119), with the names, modes and links of Rock Ridge, or the names of Joliet where there is no Rock Ridge.
//!
//! What a computer starts from on a disc (El Torito) is no file, and not shown. No crate reads all of this.

mod dirs;
mod record;
mod rock;
mod volume;

use std::hash::RandomState;
use std::sync::Arc;

use backstay_blockdev::BlockDevice;
use quick_cache::Weighter;
use quick_cache::sync::Cache;

use self::record::Record;
use self::rock::Rock;
use self::volume::Tree;
use super::{
    Attributes, DirCookie, DirEntry, FileExtent, FileSystem, FsInfo, FsKind, NodeId, NodeKind,
    Place, Stat, Xattr, content, utf16,
};
use crate::{Error, ErrorKind, Media};

/// What is kept of the names of directories, in bytes.
const NAMES_KEPT_BYTES: u64 = 8 << 20;
const NAMES_KEPT: usize = 64;
/// Extents found at once for reading.
const EXTENTS_AT_ONCE: usize = 64;

/// Hashes of names and the places of their records, ascending.
type Names = Arc<[(u32, u32)]>;

/// A file system of a disc.
#[derive(Debug)]
pub struct Iso9660 {
    media: Media,
    tree: Tree,
    /// Bytes before the fields of Rock Ridge; `None` for a disc without them.
    rock: Option<u8>,
    info: FsInfo,
    hasher: RandomState,
    names: Cache<u64, Names, ByWeight>,
}

/// Weighs what is kept by its bytes.
#[derive(Debug, Clone)]
struct ByWeight;

impl Weighter<u64, Names> for ByWeight {
    fn weight(&self, _: &u64, names: &Names) -> u64 {
        64 + names.len() as u64 * 8
    }
}

/// Whether a volume descriptor is where it must be. Reads some bytes only.
pub fn is_here(media: &Media) -> bool {
    volume::is_here(media)
}

/// A file with all its pieces.
#[derive(Debug)]
struct Node {
    record: Record,
    rock: Rock,
    /// First block and length of each piece.
    pieces: Vec<(u64, u64)>,
}

impl Node {
    fn size_bytes(&self) -> u64 {
        self.pieces.iter().map(|(_, len)| len).sum()
    }

    /// Where a symbolic link leads.
    fn target(&self) -> Result<&[u8], Error> {
        match &self.rock.target[..] {
            target if !target.is_empty() && !self.rock.broken_target => Ok(target),
            _ => {
                let text = "is a symbolic link without a target, or with one that is cut off";
                Err(Error::damaged(format!("the record at byte {} {text}", self.record.at)))
            }
        }
    }

    fn kind(&self) -> NodeKind {
        match self.rock.posix.map(|[mode, ..]| mode & 0o17_0000) {
            _ if self.record.directory => NodeKind::Directory,
            Some(0o12_0000) => NodeKind::Symlink,
            Some(0o02_0000) => NodeKind::CharDevice,
            Some(0o06_0000) => NodeKind::BlockDevice,
            Some(0o01_0000) => NodeKind::Fifo,
            Some(0o14_0000) => NodeKind::Socket,
            _ => NodeKind::File,
        }
    }
}

impl Iso9660 {
    /// Opens the disc on `device`.
    ///
    /// A node's number is the place of its record on the device; so hard links are files of their own.
    ///
    /// # Errors
    /// [`ErrorKind::Damaged`] if there is no primary volume descriptor, or no root.
    pub fn open(device: Arc<dyn BlockDevice>) -> Result<Self, Error> {
        let media = Media::new(device)?;
        let (primary, joliet) = volume::trees(&media)?;
        let mut iso = Self {
            media,
            tree: primary,
            rock: None,
            info: FsInfo {
                kind: FsKind::Iso9660,
                label: String::from_utf8_lossy(&primary.label).trim_end_matches([' ', '\0']).into(),
                uuid: None,
                block_bytes: primary.block_bytes as u32,
                size_bytes: primary.blocks * primary.block_bytes,
                used_bytes: Some(primary.blocks * primary.block_bytes),
                notes: Vec::new(),
            },
            hasher: RandomState::new(),
            names: Cache::with_weighter(NAMES_KEPT, NAMES_KEPT_BYTES, ByWeight),
        };
        iso.rock = iso.rock_ridge()?;
        if let (None, Some(joliet)) = (iso.rock, joliet) {
            iso.tree = joliet;
        }
        if iso.info.size_bytes > iso.media.size_bytes() {
            iso.info.notes.push(format!(
                "The device ends before the file system: it has {} bytes of {}.",
                iso.media.size_bytes(),
                iso.info.size_bytes
            ));
        }
        Ok(iso)
    }

    /// The bytes before the fields of Rock Ridge, if the root's own entry says that there are any.
    fn rock_ridge(&self) -> Result<Option<u8>, Error> {
        let root = self.record(self.tree.root)?;
        let Some(own) = Record::read(&self.media, root.block * self.tree.block_bytes)? else {
            return Err(Error::damaged("the root directory is empty"));
        };
        let rock = rock::read(&self.media, self.tree.block_bytes, &own.system_use, own.at)?;
        Ok(rock.skip.filter(|_| rock.posix.is_some()))
    }

    fn record(&self, at: u64) -> Result<Record, Error> {
        Record::read(&self.media, at)?
            .ok_or_else(|| Error::not_found(format!("there is no directory record at byte {at}")))
    }

    fn rock_of(&self, record: &Record) -> Result<Rock, Error> {
        let Some(skip) = self.rock else { return Ok(Rock::default()) };
        // The root's own fields stand in the entry it has for itself.
        let (skip, own) = match record.at == self.tree.root {
            true => (0, self.record(record.block * self.tree.block_bytes)?),
            false if record.is_dots() => (0, record.clone()),
            false => (usize::from(skip), record.clone()),
        };
        let area = own.system_use.get(skip..).unwrap_or_default();
        rock::read(&self.media, self.tree.block_bytes, area, own.at)
    }

    fn node(&self, node: NodeId) -> Result<Node, Error> {
        let missing = || Error::not_found(format!("there is no {node}"));
        if node.part != 0 || node.inode < self.tree.root.min(1 << 15) {
            return Err(missing());
        }
        let record = self.record(node.inode)?;
        let rock = self.rock_of(&record)?;
        let pieces = self.pieces(&record)?.0;
        Ok(Node { record, rock, pieces })
    }

    fn file(&self, node: NodeId) -> Result<Node, Error> {
        let found = self.node(node)?;
        match found.kind() {
            NodeKind::Directory => {
                Err(Error::new(ErrorKind::IsADirectory, format!("{node} is a directory")))
            }
            NodeKind::File if found.record.interleaved => {
                Err(Error::unsupported(format!("{node} lies in turns with other files")))
            }
            NodeKind::File if found.rock.packed => {
                Err(Error::unsupported(format!("{node} is compressed (zisofs)")))
            }
            NodeKind::File => Ok(found),
            _ => Err(Error::new(ErrorKind::Invalid, format!("{node} is no file with content"))),
        }
    }
}

impl FileSystem for Iso9660 {
    fn info(&self) -> &FsInfo {
        &self.info
    }

    fn root(&self) -> NodeId {
        NodeId::inode(self.tree.root)
    }

    fn lookup(&self, dir: NodeId, name: &[u8]) -> Result<NodeId, Error> {
        self.find(dir, name)?.ok_or_else(|| {
            let name = String::from_utf8_lossy(name);
            Error::not_found(format!("nothing is named {name:?} in {dir}"))
        })
    }

    fn read_dir(&self, dir: NodeId, from: DirCookie, max: usize) -> Result<Vec<DirEntry>, Error> {
        let mut list = Vec::new();
        self.each_name(dir, from.0, |named| {
            list.push(DirEntry {
                name: named.name,
                node: named.node,
                kind: named.kind,
                next: DirCookie(named.next),
            });
            list.len() < max.max(1)
        })?;
        Ok(list)
    }

    fn stat(&self, node: NodeId) -> Result<Stat, Error> {
        let found = self.node(node)?;
        let (kind, rock) = (found.kind(), &found.rock);
        let [mode, links, uid, gid] = rock.posix.unwrap_or_else(|| {
            let mode = if kind == NodeKind::Directory { 0o555 } else { 0o444 };
            [mode, 1, 0, 0]
        });
        let size_bytes = match kind {
            NodeKind::File | NodeKind::Directory => found.size_bytes(),
            NodeKind::Symlink => found.target()?.len() as u64,
            _ => 0,
        };
        let blocks = found.pieces.iter().map(|(_, len)| len.div_ceil(self.tree.block_bytes));
        let [made, modified, accessed, changed] = rock.times;
        let modified = modified.unwrap_or(found.record.modified);
        let is_device = matches!(kind, NodeKind::CharDevice | NodeKind::BlockDevice);
        Ok(Stat {
            node,
            kind,
            mode: (mode & 0o7777) as u16,
            uid,
            gid,
            links,
            size_bytes,
            allocated_bytes: blocks.sum::<u64>() * self.tree.block_bytes,
            accessed: accessed.unwrap_or(modified),
            modified,
            changed: changed.unwrap_or(modified),
            created: made,
            device: rock.device.filter(|_| is_device),
            attributes: Attributes {
                compressed: rock.packed,
                no_xattrs: true,
                ..Attributes::default()
            },
        })
    }

    fn read(&self, node: NodeId, offset_bytes: u64, buf: &mut [u8]) -> Result<usize, Error> {
        let media = std::slice::from_ref(&self.media);
        let mut done = 0;
        while done < buf.len() {
            let at = offset_bytes.saturating_add(done as u64);
            let rest = &mut buf[done..];
            let extents = self.extents(node, at, rest.len() as u64, EXTENTS_AT_ONCE)?;
            if extents.is_empty() {
                break;
            }
            done += content::fill(media, &extents, at, rest, |_, _| {
                Err(Error::damaged(format!("{node} has content that is nowhere")))
            })?;
        }
        Ok(done)
    }

    fn read_link(&self, node: NodeId) -> Result<Vec<u8>, Error> {
        let found = self.node(node)?;
        match found.kind() {
            NodeKind::Symlink => found.target().map(<[u8]>::to_vec),
            _ => Err(Error::new(ErrorKind::Invalid, format!("{node} is no symbolic link"))),
        }
    }

    fn xattrs(&self, node: NodeId) -> Result<Vec<Xattr>, Error> {
        self.node(node).map(|_| Vec::new())
    }

    fn extents(
        &self,
        node: NodeId,
        offset_bytes: u64,
        len_bytes: u64,
        max: usize,
    ) -> Result<Vec<FileExtent>, Error> {
        let found = self.file(node)?;
        let end = offset_bytes.saturating_add(len_bytes).min(found.size_bytes());
        let (mut all, mut start) = (Vec::new(), 0);
        for (block, len) in &found.pieces {
            let (from, to) = (start.max(offset_bytes), (start + len).min(end));
            if from < to && all.len() < max.max(1) {
                let place = block * self.tree.block_bytes + (from - start);
                all.push(FileExtent {
                    offset_bytes: from,
                    len_bytes: to - from,
                    place: Place::Device { device: 0, offset_bytes: place },
                });
            }
            start += len;
        }
        Ok(all)
    }
}

/// The name of a record as it is shown without Rock Ridge.
fn plain_name(name: &[u8], joliet: bool) -> Vec<u8> {
    let text = if joliet {
        utf16::to_wtf8(name.chunks_exact(2).map(|pair| u16::from_be_bytes([pair[0], pair[1]])))
    } else {
        name.to_ascii_lowercase()
    };
    // Versions of files stand behind a semicolon; nobody makes more than the first.
    let end = text.iter().rposition(|b| *b == b';').unwrap_or(text.len());
    let version = text.get(end + 1..).unwrap_or_default();
    let text = match !version.is_empty() && version.iter().all(u8::is_ascii_digit) {
        true => &text[..end],
        false => &text[..],
    };
    match text.strip_suffix(b".") {
        Some(rest) if !joliet && !rest.is_empty() => rest.to_vec(),
        _ => text.to_vec(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_without_rock_ridge() {
        assert_eq!(plain_name(b"README.TXT;1", false), b"readme.txt");
        assert_eq!(plain_name(b"README.;1", false), b"readme");
        assert_eq!(plain_name(b"a;b", false), b"a;b");
        assert_eq!(plain_name(b"\0A\0.\0;\x001", true), b"A.");
    }
}
