//! ext2, ext3 and ext4. Source: Linux `Documentation/filesystems/ext4`, "Data Structures and Algorithms".
//!
//! A journal that was not replayed is: what it holds newer is read from it (`journal`), so that what is seen is what the guest's own
//! kernel would show after mounting. Every checksum that a file system has is compared.
//!
//! The crate `ext4-view` is not used here: it goes by paths, and knows no numbers of inodes, links, attributes and places.

mod blocks;
mod dir;
mod groups;
mod htree;
mod inode;
mod journal;
mod map;
mod names;
mod sums;
mod superblock;
mod xattr;

use std::sync::Arc;

use backstay_blockdev::BlockDevice;
use quick_cache::sync::Cache;

use self::blocks::Blocks;
use self::htree::Looked;
use self::inode::{BLOCK_AREA, Inode, flag};
use self::journal::{Journal, JournalRun};
use self::superblock::{Superblock, feature};
use super::{
    DirCookie, DirEntry, FileExtent, FileSystem, FsInfo, NodeId, NodeKind, Place, Stat, Xattr,
    content,
};
use crate::{Error, ErrorKind, Media};

/// The number of the root directory.
const ROOT: u32 = 2;
/// The longest target of a symbolic link.
const LINK_MAX: u64 = 65_535;
/// Extents found at once for reading.
const EXTENTS_AT_ONCE: usize = 64;
/// Runs looked at for one call: neighbours in one place are one extent.
const RUNS_AT_ONCE: usize = 4096;
/// Tables of inodes remembered by their group.
const TABLES_KEPT: usize = 4096;

/// An ext2, ext3 or ext4 file system.
#[derive(Debug)]
pub struct Ext {
    blocks: Blocks,
    sb: Superblock,
    info: FsInfo,
    tables: Cache<u32, u64>,
}

/// Whether a superblock is at its place. Reads no more than that.
pub fn is_here(media: &Media) -> bool {
    superblock::is_here(media)
}

impl Ext {
    /// Opens the file system on `device`.
    ///
    /// # Errors
    /// [`ErrorKind::Damaged`] if neither the superblock nor a copy can be right; [`ErrorKind::Unsupported`] naming features that
    /// cannot be read.
    pub fn open(device: Arc<dyn BlockDevice>) -> Result<Self, Error> {
        let media = Media::new(device)?;
        let (sb, note) = Superblock::read(&media)?;
        let blocks = Blocks {
            media,
            block_bytes: sb.block_bytes,
            count: sb.blocks,
            journal: Journal::default(),
        };
        let mut this = Self {
            info: info(&sb, note.into_iter().collect()),
            blocks,
            sb,
            tables: Cache::new(TABLES_KEPT),
        };
        this.recover();
        this.note_rest();
        // What cannot show its root is not open.
        this.inode(ROOT.into())?.directory()?;
        Ok(this)
    }

    /// Takes what the journal holds newer, where the guest did not unmount.
    fn recover(&mut self) {
        if !self.sb.needs_recovery() {
            return;
        }
        if self.sb.journal_inode == 0 {
            self.info.notes.push(
                "The journal is on another device: what the guest changed last is not shown."
                    .into(),
            );
            return;
        }
        let journal = self
            .journal_runs()
            .and_then(|runs| journal::load(&self.blocks.media, &runs, self.sb.block_bytes));
        match journal {
            Ok(mut journal) => {
                self.info.notes.append(&mut journal.notes);
                self.blocks.journal = journal;
                self.reread();
            }
            Err(error) => self.info.notes.push(format!(
                "The journal cannot be replayed ({error}): what the guest changed last is not shown, or shown in part."
            )),
        }
    }

    /// The superblock itself may be newer in the journal.
    fn reread(&mut self) {
        let place = if self.sb.block_bytes == 1024 { (1, 0) } else { (0, 1024) };
        if self.blocks.journal.is_empty() || !self.blocks.journal.holds(place.0) {
            return;
        }
        let mut bytes = vec![0; 1024];
        let size = self.blocks.media.size_bytes();
        let newer = self
            .blocks
            .read(place.0, place.1, &mut bytes, "the superblock")
            .and_then(|()| Superblock::parse(&bytes, 1024, size));
        match newer {
            Ok(newer) if newer.block_bytes == self.sb.block_bytes => {
                self.info = info(&newer, std::mem::take(&mut self.info.notes));
                self.blocks.count = newer.blocks;
                self.sb = newer;
            }
            Ok(_) => {}
            Err(error) => {
                self.info
                    .notes
                    .push(format!("The superblock in the journal is not used: {error}."));
            }
        }
    }

    /// Where the journal lies: by its inode, or by the superblock's copy of that.
    fn journal_runs(&self) -> Result<Vec<JournalRun>, Error> {
        match self.inode(self.sb.journal_inode.into()).and_then(|inode| self.runs(&inode)) {
            Ok(runs) => Ok(runs),
            Err(error) => {
                let backup = &self.sb.journal_backup;
                let mut area = [0; BLOCK_AREA];
                for (to, word) in area.chunks_exact_mut(4).zip(backup) {
                    to.copy_from_slice(&word.to_le_bytes());
                }
                let extents = area.first_chunk() == Some(&[0x0a, 0xf3]);
                let size = u64::from(backup[15]) << 32 | u64::from(backup[16]);
                if size == 0 {
                    return Err(error);
                }
                let inode = Inode::of_area(self.sb.journal_inode, area, size, extents);
                self.runs(&inode)
            }
        }
    }

    fn runs(&self, inode: &Inode) -> Result<Vec<JournalRun>, Error> {
        let blocks = inode.size / u64::from(self.sb.block_bytes);
        let (mut runs, mut at) = (Vec::new(), 0);
        while at < blocks {
            let run = map::run(&self.blocks, inode, at, self.sb.has_checksums())?;
            let map::Place::At(device_block) = run.place else {
                return Err(Error::damaged(format!("block {at} of the journal has no place")));
            };
            if runs.len() > RUNS_AT_ONCE * 16 {
                let text = "the journal is in too many pieces";
                return Err(Error::new(ErrorKind::Limit, text));
            }
            let len = run.len.min(blocks - at);
            runs.push(JournalRun { first: at, device_block, len });
            at += len;
        }
        Ok(runs)
    }

    fn note_rest(&mut self) {
        if self.sb.has_errors {
            self.info.notes.push("The guest's kernel found errors in this file system.".into());
        }
        let end = self.sb.blocks.saturating_mul(self.sb.block_bytes.into());
        if end > self.blocks.media.size_bytes() {
            self.info.notes.push(format!(
                "The device ends at byte {}, and the file system at {end}: what lies beyond cannot be read.",
                self.blocks.media.size_bytes()
            ));
        }
        if self.sb.incompat & feature::ENCRYPT != 0 {
            self.info.notes.push(
                "Directories may be encrypted: names in them are shown as Linux shows them without the key, their files cannot be read."
                    .into(),
            );
        }
    }

    fn inode(&self, number: u64) -> Result<Inode, Error> {
        let missing = || Error::not_found(format!("there is no inode {number}"));
        let number = u32::try_from(number).map_err(|_| missing())?;
        if number == 0 || number > self.sb.inodes {
            return Err(missing());
        }
        let (group, index) =
            ((number - 1) / self.sb.inodes_per_group, (number - 1) % self.sb.inodes_per_group);
        if u64::from(group) >= self.sb.groups() {
            return Err(missing());
        }
        let table = match self.tables.get(&group) {
            Some(table) => table,
            None => {
                let table = groups::inode_table(&self.blocks, &self.sb, group)?;
                self.tables.insert(group, table);
                table
            }
        };
        let per_block = self.sb.block_bytes / u32::from(self.sb.inode_bytes);
        let mut bytes = vec![0; self.sb.inode_bytes.into()];
        let within = index % per_block * u32::from(self.sb.inode_bytes);
        let block = table + u64::from(index / per_block);
        self.blocks.read(block, within, &mut bytes, "the table of inodes")?;
        Inode::parse(&self.sb, number, &bytes)
    }

    fn node(&self, node: NodeId) -> Result<Inode, Error> {
        match node.part {
            0 => self.inode(node.inode),
            _ => Err(Error::not_found(format!("there is no {node}"))),
        }
    }

    /// All bytes of a small file that stand in its inode.
    fn inline(&self, inode: &Inode) -> Result<Vec<u8>, Error> {
        let mut bytes = inode.area.to_vec();
        bytes.extend(xattr::inline_rest(self, inode)?);
        let len = usize::try_from(inode.size).unwrap_or(usize::MAX);
        if len > bytes.len() {
            let text = format!(
                "inode {} holds {} bytes of its own, and should hold {len}",
                inode.number,
                bytes.len()
            );
            return Err(Error::damaged(text));
        }
        bytes.truncate(len);
        Ok(bytes)
    }

    /// Fills `buf` from the bytes of any inode that has some; they are there to the end.
    fn fill(&self, inode: &Inode, offset_bytes: u64, buf: &mut [u8]) -> Result<(), Error> {
        if inode.has(flag::INLINE_DATA) {
            let all = self.inline(inode)?;
            let start = usize::try_from(offset_bytes).unwrap_or(usize::MAX);
            let part = all.get(start..start.saturating_add(buf.len()));
            buf.copy_from_slice(
                part.ok_or_else(|| Error::damaged(format!("inode {} ends early", inode.number)))?,
            );
            return Ok(());
        }
        let media = std::slice::from_ref(&self.blocks.media);
        let mut done = 0;
        while done < buf.len() {
            let (at, left) = (offset_bytes + done as u64, (buf.len() - done) as u64);
            let extents = self.places(inode, (at, at + left), EXTENTS_AT_ONCE)?;
            let read = content::fill(media, &extents, at, &mut buf[done..], |from, part| {
                self.newer(inode, from, part)
            })?;
            if read == 0 {
                return Err(Error::damaged(format!("inode {} ends early", inode.number)));
            }
            done += read;
        }
        Ok(())
    }

    /// Fills `part` from blocks that the journal holds.
    fn newer(&self, inode: &Inode, offset_bytes: u64, part: &mut [u8]) -> Result<(), Error> {
        let block_bytes = u64::from(self.sb.block_bytes);
        let mut done = 0;
        while done < part.len() {
            let at = offset_bytes + done as u64;
            let (number, within) = (at / block_bytes, at % block_bytes);
            let len = (part.len() - done).min((block_bytes - within) as usize);
            let run = map::run(&self.blocks, inode, number, self.sb.has_checksums())?;
            let map::Place::At(block) = run.place else {
                return Err(Error::damaged(format!(
                    "inode {} has no block {number}",
                    inode.number
                )));
            };
            let piece = &mut part[done..done + len];
            self.blocks.read(block, within as u32, piece, "the content in the journal")?;
            done += len;
        }
        Ok(())
    }

    /// Where the bytes of an inode in this range are; `max` extents at most.
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
            let mut run = map::run(&self.blocks, inode, number, self.sb.has_checksums())?;
            let place = match run.place {
                map::Place::Hole => Place::Hole,
                map::Place::Unwritten => Place::Unwritten,
                map::Place::At(block) => {
                    match self.blocks.journal.next_held(block, block + run.len) {
                        Some(held) if held == block => {
                            run.len = 1;
                            Place::Inside
                        }
                        held => {
                            run.len = held.map_or(run.len, |held| held - block);
                            let offset_bytes = block * block_bytes + at % block_bytes;
                            Place::Device { device: 0, offset_bytes }
                        }
                    }
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
}

fn info(sb: &Superblock, notes: Vec<String>) -> FsInfo {
    let hex: String = sb.uuid.iter().map(|byte| format!("{byte:02x}")).collect();
    let uuid = sb.uuid.iter().any(|byte| *byte != 0).then(|| {
        format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
    });
    let label = sb.label.split(|byte| *byte == 0).next().unwrap_or_default();
    let block = u64::from(sb.block_bytes);
    FsInfo {
        kind: sb.kind(),
        label: String::from_utf8_lossy(label).into_owned(),
        uuid,
        block_bytes: sb.block_bytes.saturating_mul(sb.cluster_blocks),
        size_bytes: sb.blocks.saturating_mul(block),
        used_bytes: Some(sb.blocks.saturating_sub(sb.free_blocks).saturating_mul(block)),
        notes,
    }
}

impl FileSystem for Ext {
    fn info(&self) -> &FsInfo {
        &self.info
    }

    fn root(&self) -> NodeId {
        NodeId::inode(ROOT.into())
    }

    fn lookup(&self, dir: NodeId, name: &[u8]) -> Result<NodeId, Error> {
        let inode = self.node(dir)?;
        inode.directory()?;
        let plain = !inode.has(flag::CASEFOLD) && !inode.has(flag::ENCRYPTED);
        let looked = match inode.has(flag::INDEX) && !inode.has(flag::INLINE_DATA) && plain {
            true => htree::look(self, &inode, name)?,
            false => Looked::Unknown,
        };
        let found = match looked {
            Looked::Found(number) => Some(number),
            Looked::Nothing => None,
            Looked::Unknown => dir::scan(self, &inode, name)?,
        };
        found.map(|number| NodeId::inode(number.into())).ok_or_else(|| {
            Error::not_found(format!("there is no {} in {dir}", name.escape_ascii()))
        })
    }

    fn read_dir(&self, dir: NodeId, from: DirCookie, max: usize) -> Result<Vec<DirEntry>, Error> {
        let inode = self.node(dir)?;
        dir::list(self, inode.directory()?, from, max.max(1))
    }

    fn stat(&self, node: NodeId) -> Result<Stat, Error> {
        Ok(self.node(node)?.stat())
    }

    fn read(&self, node: NodeId, offset_bytes: u64, buf: &mut [u8]) -> Result<usize, Error> {
        let inode = self.node(node)?;
        let left = inode.file()?.size.saturating_sub(offset_bytes);
        let len = usize::try_from(left).map_or(buf.len(), |left| left.min(buf.len()));
        self.fill(&inode, offset_bytes, &mut buf[..len])?;
        Ok(len)
    }

    fn read_link(&self, node: NodeId) -> Result<Vec<u8>, Error> {
        let inode = self.node(node)?;
        if inode.kind != NodeKind::Symlink {
            return Err(Error::new(ErrorKind::Invalid, format!("{node} is no symbolic link")));
        }
        if inode.has(flag::ENCRYPTED) {
            let text = format!("the target of {node} is encrypted by the guest's file system");
            return Err(Error::new(ErrorKind::Encrypted, text));
        }
        let bad = || {
            let text =
                format!("the target of the symbolic link {node} is {} bytes long", inode.size);
            Error::damaged(text)
        };
        if inode.size == 0 || inode.size > LINK_MAX {
            return Err(bad());
        }
        let mut target = vec![0; inode.size as usize];
        match inode.is_fast_link(&self.sb) {
            true => {
                let own = inode.area.get(..target.len()).ok_or_else(bad)?;
                target.copy_from_slice(own);
            }
            false => self.fill(&inode, 0, &mut target)?,
        }
        match target.contains(&0) {
            true => {
                Err(Error::damaged(format!("the target of the symbolic link {node} has a NUL")))
            }
            false => Ok(target),
        }
    }

    fn xattrs(&self, node: NodeId) -> Result<Vec<Xattr>, Error> {
        xattr::all(self, &self.node(node)?)
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
        if inode.has(flag::INLINE_DATA) {
            let len_bytes = end - offset_bytes;
            return Ok(vec![FileExtent { offset_bytes, len_bytes, place: Place::Inside }]);
        }
        self.places(&inode, (offset_bytes, end), max.max(1))
    }
}
