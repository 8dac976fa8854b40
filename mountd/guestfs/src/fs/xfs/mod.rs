//! XFS, version 4 and 5. Source: "XFS Filesystem Structure" (documentation of SGI and Red Hat); Linux `Documentation/filesystems/xfs`.
//!
//! Of version 5 every block of metadata is proved: checksum, place, file system, owner. A log that was not written back is told and not
//! replayed.

mod attr;
mod bmap;
mod dir;
mod index;
mod inode;
mod log;
mod sums;
mod superblock;

use std::sync::Arc;

use backstay_blockdev::BlockDevice;

use self::inode::{Form, Inode};
use self::superblock::Superblock;
use super::{
    DirCookie, DirEntry, FileExtent, FileSystem, FsInfo, FsKind, NodeId, NodeKind, Place, Stat,
    Xattr, content,
};
use crate::fields::Fields;
use crate::{Error, ErrorKind, Media};

/// The longest target of a symbolic link (XFS_SYMLINK_MAXLEN).
const LINK_MAX: u64 = 1024;
/// The head of each piece of a target.
const LINK_HEAD: usize = 56;
/// Extents found at once for reading.
const EXTENTS_AT_ONCE: usize = 64;
/// Runs looked at for one call: neighbours in one place are one extent.
const RUNS_AT_ONCE: usize = 4096;

/// An XFS file system.
#[derive(Debug)]
pub struct Xfs {
    media: Media,
    sb: Superblock,
    info: FsInfo,
}

/// The hash of a name in a directory's index.
pub(crate) use index::hash as name_hash;

/// Whether a superblock is at the start. Reads no more than that.
pub fn is_here(media: &Media) -> bool {
    superblock::is_here(media)
}

impl Xfs {
    /// Opens the file system on `device`.
    ///
    /// # Errors
    /// [`ErrorKind::Damaged`] if neither the superblock nor a copy can be right; [`ErrorKind::Unsupported`] naming features that
    /// cannot be read.
    pub fn open(device: Arc<dyn BlockDevice>) -> Result<Self, Error> {
        let media = Media::new(device)?;
        let (sb, note) = Superblock::read(&media)?;
        let mut notes: Vec<String> = note.into_iter().collect();
        notes.extend(told(&media, &sb));
        let this = Self { info: info(&sb, notes), media, sb };
        // What cannot show its root is not open.
        this.inode(this.sb.root)?.directory()?;
        Ok(this)
    }

    fn inode(&self, number: u64) -> Result<Inode, Error> {
        let place = self.sb.inode_place(number)?;
        let mut bytes = vec![0; self.sb.inode_bytes.into()];
        self.media.read(place, &mut bytes, "an inode")?;
        Inode::parse(&self.sb, number, &bytes)
    }

    fn node(&self, node: NodeId) -> Result<Inode, Error> {
        match node.part {
            0 => self.inode(node.inode),
            _ => Err(Error::not_found(format!("there is no {node}"))),
        }
    }

    /// Where the bytes of a file in this range are; `max` extents at most.
    fn places(
        &self,
        inode: &Inode,
        (from, end): (u64, u64),
        max: usize,
    ) -> Result<Vec<FileExtent>, Error> {
        let block_bytes = u64::from(self.sb.block_bytes);
        let mut list: Vec<FileExtent> = Vec::new();
        let mut at = from;
        for _ in 0..RUNS_AT_ONCE {
            if at >= end {
                break;
            }
            let number = at / block_bytes;
            let run = bmap::run(self, inode.number, &inode.data, number)?;
            let place = match run.place {
                bmap::Place::Hole => Place::Hole,
                bmap::Place::Unwritten => Place::Unwritten,
                bmap::Place::At(place) => {
                    Place::Device { device: 0, offset_bytes: place + at % block_bytes }
                }
            };
            let behind = number.saturating_add(run.len).saturating_mul(block_bytes).min(end);
            let extent = FileExtent { offset_bytes: at, len_bytes: behind - at, place };
            let full = list.len() >= max;
            match list.last_mut() {
                Some(last) if last.joins(&extent) => last.len_bytes += extent.len_bytes,
                _ if full => break,
                _ => list.push(extent),
            }
            at = behind;
        }
        Ok(list)
    }

    /// The target of a link in blocks of its own.
    fn remote_link(&self, inode: &Inode, len: usize) -> Result<Vec<u8>, Error> {
        let block_bytes = self.sb.block_bytes as usize;
        let what = format!("the target of link {}", inode.number);
        let mut target = Vec::with_capacity(len);
        let mut number = 0;
        while target.len() < len {
            let run = bmap::run(self, inode.number, &inode.data, number)?;
            let bmap::Place::At(place) = run.place else {
                return Err(Error::damaged(format!("{what} is not there")));
            };
            let pieces = len.div_ceil(block_bytes - LINK_HEAD) as u64;
            let blocks = run.len.min(pieces) as usize;
            let bytes = self.media.bytes(place, blocks * block_bytes, &what)?;
            number += blocks as u64;
            if !self.sb.has_checksums() {
                target.extend(bytes.iter().take(len - target.len()));
                continue;
            }
            sums::check(&self.sb, &bytes, sums::REMOTE, (place, inode.number), &what)?;
            let f = Fields::new(&bytes, &what);
            let (offset, used) = (f.be32(4)? as usize, f.be32(8)? as usize);
            if f.array::<4>(0)? != *b"XSLM" || offset != target.len() || used == 0 {
                return Err(Error::damaged(format!("{what} is not whole")));
            }
            target.extend(f.slice(LINK_HEAD, used)?.iter().take(len - target.len()));
        }
        Ok(target)
    }
}

/// What a user should know.
fn told(media: &Media, sb: &Superblock) -> Vec<String> {
    let mut notes = Vec::new();
    if sb.needs_repair {
        notes.push("The file system is marked as one that needs repair.".to_owned());
    }
    if sb.has_realtime {
        notes.push("Files on the realtime device cannot be read.".to_owned());
    }
    match sb.log_start {
        0 => notes.push(
            "The log is on another device: what the guest changed last may not be shown.".to_owned(),
        ),
        _ => match log::is_clean(media, sb) {
            Ok(true) => {}
            Ok(false) => notes.push(
                "The log was not written back and is not replayed: what the guest changed last may not be shown, or shown in \
                 part. A mount of the disk (mount nbd --writable, mount iscsi --writable) replays it."
                    .to_owned(),
            ),
            Err(error) => notes.push(format!("The log cannot be read ({error}).")),
        },
    }
    let end = sb.blocks.saturating_mul(sb.block_bytes.into());
    if end > media.size_bytes() {
        notes.push(format!(
            "The device ends at byte {}, and the file system at {end}: what lies beyond cannot be read.",
            media.size_bytes()
        ));
    }
    notes
}

fn info(sb: &Superblock, notes: Vec<String>) -> FsInfo {
    let hex: String = sb.uuid.iter().map(|byte| format!("{byte:02x}")).collect();
    let label = sb.label.split(|byte| *byte == 0).next().unwrap_or_default();
    let block = u64::from(sb.block_bytes);
    FsInfo {
        kind: FsKind::Xfs,
        label: String::from_utf8_lossy(label).into_owned(),
        uuid: Some(format!(
            "{}-{}-{}-{}-{}",
            &hex[..8],
            &hex[8..12],
            &hex[12..16],
            &hex[16..20],
            &hex[20..]
        )),
        block_bytes: sb.block_bytes,
        size_bytes: sb.blocks.saturating_mul(block),
        used_bytes: Some(sb.blocks.saturating_sub(sb.free_blocks).saturating_mul(block)),
        notes,
    }
}

impl FileSystem for Xfs {
    fn info(&self) -> &FsInfo {
        &self.info
    }

    fn root(&self) -> NodeId {
        NodeId::inode(self.sb.root)
    }

    fn lookup(&self, dir: NodeId, name: &[u8]) -> Result<NodeId, Error> {
        let inode = self.node(dir)?;
        inode.directory()?;
        let by_index = inode.data.form != Form::Local && !self.sb.ascii_ci;
        let looked = if by_index { index::look(self, &inode, name)? } else { None };
        let found = match looked {
            Some(found) => found,
            None => dir::scan(self, &inode, name)?,
        };
        found.map(NodeId::inode).ok_or_else(|| {
            Error::not_found(format!("there is no {} in {dir}", name.escape_ascii()))
        })
    }

    fn read_dir(&self, dir: NodeId, from: DirCookie, max: usize) -> Result<Vec<DirEntry>, Error> {
        let inode = self.node(dir)?;
        dir::list(self, inode.directory()?, from, max.max(1))
    }

    fn stat(&self, node: NodeId) -> Result<Stat, Error> {
        Ok(self.node(node)?.stat(&self.sb))
    }

    fn read(&self, node: NodeId, offset_bytes: u64, buf: &mut [u8]) -> Result<usize, Error> {
        let inode = self.node(node)?;
        let left = inode.file()?.size.saturating_sub(offset_bytes);
        let len = usize::try_from(left).map_or(buf.len(), |left| left.min(buf.len()));
        let (media, buf) = (std::slice::from_ref(&self.media), &mut buf[..len]);
        let mut done = 0;
        while done < len {
            let at = offset_bytes + done as u64;
            let extents = self.places(&inode, (at, offset_bytes + len as u64), EXTENTS_AT_ONCE)?;
            let none = |_: u64, _: &mut [u8]| Err(Error::damaged("no content is inside metadata"));
            let read = content::fill(media, &extents, at, &mut buf[done..], none)?;
            if read == 0 {
                return Err(Error::damaged(format!("{node} ends early")));
            }
            done += read;
        }
        Ok(len)
    }

    fn read_link(&self, node: NodeId) -> Result<Vec<u8>, Error> {
        let inode = self.node(node)?;
        if inode.kind != NodeKind::Symlink {
            return Err(Error::new(ErrorKind::Invalid, format!("{node} is no symbolic link")));
        }
        let len = inode.size;
        if len == 0 || len > LINK_MAX {
            let text = format!("the target of the symbolic link {node} is {len} bytes long");
            return Err(Error::damaged(text));
        }
        let what = format!("the target of link {}", inode.number);
        let target = match inode.data.form {
            Form::Local => Fields::new(&inode.data.bytes, &what).slice(0, len as usize)?.to_vec(),
            _ => self.remote_link(&inode, len as usize)?,
        };
        match target.contains(&0) {
            true => {
                Err(Error::damaged(format!("the target of the symbolic link {node} has a NUL")))
            }
            false => Ok(target),
        }
    }

    fn xattrs(&self, node: NodeId) -> Result<Vec<Xattr>, Error> {
        attr::all(self, &self.node(node)?)
    }

    fn extents(
        &self,
        node: NodeId,
        offset_bytes: u64,
        len_bytes: u64,
        max: usize,
    ) -> Result<Vec<FileExtent>, Error> {
        let inode = self.node(node)?;
        let end = offset_bytes.saturating_add(len_bytes).min(inode.file()?.size);
        if offset_bytes >= end {
            return Ok(Vec::new());
        }
        self.places(&inode, (offset_bytes, end), max.max(1))
    }
}
