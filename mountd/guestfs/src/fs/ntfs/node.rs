//! Nodes as the trait has them: entries, metadata, extended attributes.

use super::file::{Attribute, File};
use super::index::{DOS, Key, Node};
use super::record::kind;
use super::special::{Linux, Special, dos};
use super::stream::{self, Kept};
use super::volume::Volume;
use super::{COOKIE_BITS, FIRST_USER};
use crate::fs::{Attributes, DirCookie, DirEntry, NodeId, NodeKind, Stat, Xattr, utf16};
use crate::{Error, ErrorKind};

/// The longest stream that is an extended attribute: what Linux takes as one.
const XATTR_MAX: u64 = 64 << 10;
/// What the trait allows for all of a node together.
const XATTRS_MAX: usize = 16 << 20;

/// Adds the entries of `node` from byte `skip` of it on, until there are `max`. `place` is what a cookie calls the node.
pub(super) fn list(
    node: &Node,
    (place, skip): (u64, usize),
    max: usize,
    list: &mut Vec<DirEntry>,
) -> Result<(), Error> {
    let mut start = 0;
    for entry in node.entries() {
        if list.len() >= max.max(1) {
            break;
        }
        let entry = entry?;
        let here = std::mem::replace(&mut start, entry.end);
        let Some(key) = entry.key else { break };
        // The format's own files, the root's own entry among them, and the second names of others.
        if here < skip || entry.record < FIRST_USER || key.namespace == DOS {
            continue;
        }
        let name = utf16::to_wtf8(key.units());
        if !utf16::is_name(&name) {
            let text = format!("{} has an entry named \"{}\"", node.what(), name.escape_ascii());
            return Err(Error::damaged(text));
        }
        list.push(DirEntry {
            name,
            node: NodeId::inode(entry.record),
            kind: kind_of(&key),
            next: DirCookie(place << COOKIE_BITS | entry.end as u64),
        });
    }
    Ok(())
}

/// What an entry tells of the kind of what it names: nothing if its content must be asked.
fn kind_of(key: &Key<'_>) -> Option<NodeKind> {
    let directory = key.flags & dos::DIRECTORY != 0;
    match key.flags {
        flags if flags & dos::REPARSE != 0 => None,
        flags if flags & dos::SYSTEM != 0 && !directory => None,
        _ if directory => Some(NodeKind::Directory),
        _ => Some(NodeKind::File),
    }
}

/// The metadata of a file that is what `special` says. Of a link all but its length.
pub(super) fn stat_of(
    node: NodeId,
    file: &File,
    linux: &Linux,
    special: &Special,
) -> Result<Stat, Error> {
    let (kind, device) = match special {
        Special::Plain | Special::Elsewhere(_) if file.directory => (NodeKind::Directory, None),
        Special::Plain | Special::Elsewhere(_) => (NodeKind::File, None),
        Special::Link(_) => (NodeKind::Symlink, None),
        Special::CharDevice(major, minor) => (NodeKind::CharDevice, Some((*major, *minor))),
        Special::BlockDevice(major, minor) => (NodeKind::BlockDevice, Some((*major, *minor))),
        Special::Fifo => (NodeKind::Fifo, None),
        Special::Socket => (NodeKind::Socket, None),
    };
    let content = match file.directory {
        true => file.attribute(kind::INDEX_ALLOCATION, "$I30"),
        false => file.stream(0),
    };
    let mut stat = base(node, file, linux, kind);
    stat.device = device;
    if let Some(content) = content {
        sizes(&mut stat, content);
    } else if kind == NodeKind::File {
        let text = format!("MFT record {} is a file without a stream", file.number);
        return Err(Error::damaged(text));
    }
    if !matches!(kind, NodeKind::File | NodeKind::Directory) {
        stat.size_bytes = 0;
    }
    Ok(stat)
}

/// The metadata of a stream of a file.
pub(super) fn stat(
    node: NodeId,
    file: &File,
    linux: &Linux,
    kind: NodeKind,
    stream: &Attribute,
) -> Stat {
    let mut stat = base(node, file, linux, kind);
    stat.links = 1;
    sizes(&mut stat, stream);
    stat
}

fn sizes(stat: &mut Stat, content: &Attribute) {
    stat.size_bytes = content.size_bytes();
    stat.allocated_bytes = content.allocated_bytes();
    stat.attributes.encrypted |= content.is_encrypted();
}

fn base(node: NodeId, file: &File, linux: &Linux, kind: NodeKind) -> Stat {
    let flags = file.standard.flags;
    let has = |flag: u32| flags & flag != 0;
    // "Read-only" of a directory says that it has a picture of its own, not that nothing may be made in it.
    let mode = match kind {
        NodeKind::Directory => 0o755,
        NodeKind::Symlink => 0o777,
        _ if has(dos::READ_ONLY) => 0o444,
        _ => 0o644,
    };
    let names = file.attributes.iter().filter(|a| a.kind == kind::FILE_NAME);
    // A file has no fewer names than one; what cannot be parsed counts as a name.
    let is_dos = |a: &&Attribute| {
        let key = a.resident("a name").and_then(|bytes| Key::parse(bytes, "a name"));
        key.is_ok_and(|key| key.namespace == DOS)
    };
    let links = names.filter(|a| !is_dos(a)).count().max(1);
    Stat {
        node,
        kind,
        mode: linux.mode.map_or(mode, |mode| (mode & 0o7777) as u16),
        uid: linux.uid.unwrap_or(0),
        gid: linux.gid.unwrap_or(0),
        links: links as u32,
        size_bytes: 0,
        allocated_bytes: 0,
        accessed: file.standard.accessed,
        modified: file.standard.modified,
        changed: file.standard.changed,
        created: Some(file.standard.created),
        device: None,
        attributes: Attributes {
            compressed: has(dos::COMPRESSED),
            encrypted: has(dos::ENCRYPTED),
            hidden: has(dos::HIDDEN),
            system: has(dos::SYSTEM),
            read_only: has(dos::READ_ONLY),
            ..Attributes::default()
        },
    }
}

/// The streams of a file that are short enough, as extended attributes.
pub(super) fn xattrs(volume: &Volume, kept: &Kept, file: &File) -> Result<Vec<Xattr>, Error> {
    let mut all: Vec<Xattr> = Vec::new();
    let mut bytes = 0;
    for stream in file.streams().filter(|stream| stream.size_bytes() <= XATTR_MAX) {
        let mut name = b"user.".to_vec();
        name.extend(utf16::to_wtf8(utf16::le_units(&stream.name)));
        let what = format!("a stream of MFT record {}", file.number);
        if name.contains(&0) || all.iter().any(|other| other.name == name) {
            return Err(Error::damaged(format!("{what} has a name twice, or one with a NUL")));
        }
        let mut value = vec![0; stream.size_bytes() as usize];
        let read = stream::read(volume, kept, stream, 0, &mut value, &what)?;
        value.truncate(read);
        bytes += name.len() + value.len();
        if bytes > XATTRS_MAX {
            let text = format!("streams of MFT record {} have more than 16 MiB", file.number);
            return Err(Error::new(ErrorKind::Limit, text));
        }
        all.push(Xattr { name, value });
    }
    Ok(all)
}
