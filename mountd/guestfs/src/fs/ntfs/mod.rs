//! NTFS, as Windows 2000 and later write it.
//!
//! Sources: the headers of [MS-FSCC] and [MS-XCA], the kernel's `Documentation/filesystems/ntfs3.rst`, and the descriptions of the
//! on-disk format of the Linux-NTFS project; structures are named as there.
//!
//! The crate `ntfs` is not used here: it gives no places of content on the device, no place to resume a directory at, and reads no
//! compressed streams. ntfs-3g is what the tests compare with.

mod boot;
mod collate;
mod file;
mod index;
mod info;
mod links;
mod list;
mod lznt1;
mod node;
mod record;
mod runs;
mod special;
mod stream;
mod volume;

use std::sync::Arc;

use backstay_blockdev::BlockDevice;
use quick_cache::Weighter;
use quick_cache::sync::Cache;

use self::boot::Boot;
use self::collate::UpCase;
use self::file::{Attribute, File};
use self::index::Index;
use self::special::Special;
use self::stream::Kept;
use self::volume::Volume;
use super::{
    DirCookie, DirEntry, FileExtent, FileSystem, FsInfo, FsKind, NodeId, NodeKind, Stat, Xattr,
    utf16,
};
use crate::{Error, ErrorKind, Media};

/// A reference to a file: its record number, and in the upper 16 bits its sequence number.
const REFERENCE_MASK: u64 = (1 << 48) - 1;
const ROOT: u64 = 5;
const UPCASE: u64 = 10;
/// Records below this are the format's own files.
const FIRST_USER: u64 = 24;
/// What is kept of parsed files, and of the shapes of directories, in bytes.
const FILES_KEPT_BYTES: u64 = 4 << 20;
const SHAPES_KEPT_BYTES: u64 = 4 << 20;
/// About how many there are of them.
const FILES_KEPT: usize = 4096;
const SHAPES_KEPT: usize = 64;
/// In a cookie, the bits below the number of the block are a place in it.
const COOKIE_BITS: u32 = 24;

/// An NTFS volume.
#[derive(Debug)]
pub struct Ntfs {
    volume: Volume,
    kept: Kept,
    files: Cache<u64, Arc<File>, ByWeight>,
    shapes: Cache<u64, Arc<[u32]>, ByWeight>,
    /// Without it names are found by going through a directory.
    upcase: Option<UpCase>,
    info: FsInfo,
}

/// Weighs what is kept by its bytes.
#[derive(Debug, Clone)]
struct ByWeight;

impl Weighter<u64, Arc<File>> for ByWeight {
    fn weight(&self, _: &u64, file: &Arc<File>) -> u64 {
        file.weight()
    }
}

impl Weighter<u64, Arc<[u32]>> for ByWeight {
    fn weight(&self, _: &u64, blocks: &Arc<[u32]>) -> u64 {
        64 + blocks.len() as u64 * 4
    }
}

/// Whether the boot sector says that NTFS is on it. Reads some bytes only.
pub fn is_here(media: &Media) -> bool {
    boot::is_here(media)
}

impl Ntfs {
    /// Opens the volume on `device`.
    ///
    /// Its times are UTC with 100 ns; owners and modes are given only where WSL wrote them down. Streams beside the content of a
    /// file are extended attributes `user.NAME` up to 64 KiB, and files of the name `FILE:NAME`.
    ///
    /// # Errors
    /// [`ErrorKind::Damaged`] if the boot sector and its copy, or the MFT's own record and its copy, do not lead to the root.
    pub fn open(device: Arc<dyn BlockDevice>) -> Result<Self, Error> {
        let media = Media::new(device)?;
        let (boot, from_copy) = Boot::read(&media)?;
        let volume = Volume::open(media, boot)?;
        let mut ntfs = Self {
            volume,
            kept: Kept::new(),
            files: Cache::with_weighter(FILES_KEPT, FILES_KEPT_BYTES, ByWeight),
            shapes: Cache::with_weighter(SHAPES_KEPT, SHAPES_KEPT_BYTES, ByWeight),
            upcase: None,
            info: FsInfo {
                kind: FsKind::Ntfs,
                label: String::new(),
                uuid: None,
                block_bytes: 0,
                size_bytes: 0,
                used_bytes: None,
                notes: Vec::new(),
            },
        };
        let mut notes = Vec::new();
        if from_copy {
            notes.push("The boot sector was read from its copy.".to_owned());
        }
        match ntfs.read_upcase() {
            Ok(upcase) => ntfs.upcase = Some(upcase),
            Err(e) => notes.push(format!("Names are found slowly: {e}.")),
        }
        if !ntfs.file(ROOT)?.directory {
            return Err(Error::damaged("MFT record 5 is no directory: there is no root"));
        }
        ntfs.info = info::info(&ntfs, notes);
        Ok(ntfs)
    }

    fn read_upcase(&self) -> Result<UpCase, Error> {
        let file = self.file(UPCASE)?;
        let what = "the table of capital letters";
        let data = file.stream(0).filter(|data| data.size_bytes() == collate::TABLE_BYTES as u64);
        let Some(data) = data else {
            return Err(Error::damaged(format!("{what} is missing, or has another size")));
        };
        let bytes = stream::whole(&self.volume, &self.kept, data, collate::TABLE_BYTES, what)?;
        Ok(UpCase::new(&bytes))
    }

    /// The file with base record `number`.
    fn file(&self, number: u64) -> Result<Arc<File>, Error> {
        if let Some(file) = self.files.get(&number) {
            return Ok(file);
        }
        let file = Arc::new(File::load(&self.volume, number)?);
        self.files.insert(number, Arc::clone(&file));
        Ok(file)
    }

    fn directory(&self, node: NodeId) -> Result<Arc<File>, Error> {
        let file = self.file(node.inode)?;
        if node.part != 0 || !file.directory {
            let text = format!("{node} is no directory");
            return Err(Error::new(ErrorKind::NotADirectory, text));
        }
        Ok(file)
    }

    fn index<'a>(&'a self, directory: &'a File) -> Result<Index<'a>, Error> {
        Index::new(&self.volume, &self.kept, directory)
    }

    /// The record number of what `name` leads to.
    fn child(&self, directory: u64, name: &[u16]) -> Result<u64, Error> {
        let directory = self.directory(NodeId::inode(directory))?;
        let index = self.index(&directory)?;
        let found = match &self.upcase {
            Some(upcase) => index.find(upcase, name)?,
            None => self.search(&index, &directory, name)?,
        };
        let Some((number, sequence)) = found else {
            let name = String::from_utf16_lossy(name);
            let text = format!("nothing is named {name:?} in MFT record {}", directory.number);
            return Err(Error::not_found(text));
        };
        if number != ROOT && self.file(number)?.sequence != sequence {
            let text = format!("a name in MFT record {} leads to what was", directory.number);
            return Err(Error::damaged(format!("{text} MFT record {number} before")));
        }
        Ok(number)
    }

    /// Looks for a name without the order of the index: the exact one only.
    fn search(
        &self,
        index: &Index<'_>,
        directory: &File,
        name: &[u16],
    ) -> Result<Option<(u64, u16)>, Error> {
        let blocks = self.shape(directory, index)?;
        for number in std::iter::once(None).chain(blocks.iter().map(Some)) {
            let node = number.map_or_else(|| index.root(), |number| index.block(*number))?;
            for entry in node.entries() {
                let entry = entry?;
                if entry.key.is_some_and(|key| key.units().eq(name.iter().copied())) {
                    return Ok(Some((entry.record, entry.sequence)));
                }
            }
        }
        Ok(None)
    }

    /// The blocks of a directory's index.
    fn shape(&self, directory: &File, index: &Index<'_>) -> Result<Arc<[u32]>, Error> {
        if let Some(blocks) = self.shapes.get(&directory.number) {
            return Ok(blocks);
        }
        let blocks = index.all_blocks()?;
        self.shapes.insert(directory.number, Arc::clone(&blocks));
        Ok(blocks)
    }

    /// What is read of a node: an attribute of a file.
    fn content<T>(
        &self,
        node: NodeId,
        then: impl FnOnce(&Attribute, &str) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let file = self.file(node.inode)?;
        let what = format!("the content of {node}");
        if node.part == 0 {
            if file.directory {
                return Err(Error::new(ErrorKind::IsADirectory, format!("{node} is a directory")));
            }
            match self.special(&file)? {
                Special::Plain => {}
                Special::Elsewhere(text) => {
                    return Err(Error::unsupported(format!("{what} is behind a {text}")));
                }
                _ => {
                    let text = format!("{node} is no file with content");
                    return Err(Error::new(ErrorKind::Invalid, text));
                }
            }
        }
        let stream = file.stream(node.part);
        let missing = || Error::not_found(format!("{what} is missing: it has no such stream"));
        then(stream.ok_or_else(missing)?, &what)
    }

    fn special(&self, file: &File) -> Result<Special, Error> {
        let linux = special::linux(&self.volume, &self.kept, file)?;
        special::special(&self.volume, &self.kept, file, &linux)
    }

    /// A stream of a file by its name: exact, or in other letters' case.
    fn stream_of(&self, number: u64, name: &[u16]) -> Result<Option<NodeId>, Error> {
        let file = self.file(number)?;
        let exact = |a: &Attribute| utf16::le_units(&a.name).eq(name.iter().copied());
        let same = |a: &Attribute| {
            self.upcase.as_ref().is_some_and(|upcase| {
                upcase.compare(utf16::le_units(&a.name), name.iter().copied()).is_eq()
            })
        };
        let found = file.streams().position(exact).or_else(|| file.streams().position(same));
        Ok(found.map(|i| NodeId { inode: number, part: i as u64 + 1 }))
    }
}

impl FileSystem for Ntfs {
    fn info(&self) -> &FsInfo {
        &self.info
    }

    fn root(&self) -> NodeId {
        NodeId::inode(ROOT)
    }

    fn lookup(&self, dir: NodeId, name: &[u8]) -> Result<NodeId, Error> {
        let text = || format!("nothing is named {:?} in {dir}", String::from_utf8_lossy(name));
        self.directory(dir)?;
        let Some(units) = utf16::from_wtf8(name).filter(|_| utf16::is_name(name)) else {
            return Err(Error::not_found(text()));
        };
        let missing = match self.child(dir.inode, &units) {
            Err(e) if e.kind() == ErrorKind::NotFound => e,
            found => return found.map(NodeId::inode),
        };
        // A name of POSIX may have a colon in it: only then is it a stream.
        let Some(colon) = units.iter().position(|unit| *unit == u16::from(b':')) else {
            return Err(missing);
        };
        let file = match &units[..colon] {
            [] => dir.inode,
            file => self.child(dir.inode, file)?,
        };
        self.stream_of(file, &units[colon + 1..])?.ok_or_else(|| Error::not_found(text()))
    }

    fn read_dir(&self, dir: NodeId, from: DirCookie, max: usize) -> Result<Vec<DirEntry>, Error> {
        let file = self.directory(dir)?;
        let index = self.index(&file)?;
        let blocks = self.shape(&file, &index)?;
        let (start, skip) = (from.0 >> COOKIE_BITS, (from.0 & ((1 << COOKIE_BITS) - 1)) as usize);
        let mut list = Vec::new();
        if start == 0 {
            node::list(&index.root()?, (0, skip), max, &mut list)?;
        }
        let next = blocks.partition_point(|block| u64::from(*block) + 1 < start);
        for block in blocks.iter().skip(next) {
            if list.len() >= max.max(1) {
                break;
            }
            let place = u64::from(*block) + 1;
            let skip = if place == start { skip } else { 0 };
            node::list(&index.block(*block)?, (place, skip), max, &mut list)?;
        }
        Ok(list)
    }

    fn stat(&self, node: NodeId) -> Result<Stat, Error> {
        let file = self.file(node.inode)?;
        let linux = special::linux(&self.volume, &self.kept, &file)?;
        if node.part != 0 {
            let missing = || Error::not_found(format!("{node} has no such stream"));
            let stream = file.stream(node.part).ok_or_else(missing)?;
            return Ok(node::stat(node, &file, &linux, NodeKind::File, stream));
        }
        let special = special::special(&self.volume, &self.kept, &file, &linux)?;
        let mut stat = node::stat_of(node, &file, &linux, &special)?;
        if let Special::Link(target) = &special {
            stat.size_bytes = self.target(&file, target)?.len() as u64;
        }
        Ok(stat)
    }

    fn read(&self, node: NodeId, offset_bytes: u64, buf: &mut [u8]) -> Result<usize, Error> {
        self.content(node, |attribute, what| {
            stream::read(&self.volume, &self.kept, attribute, offset_bytes, buf, what)
        })
    }

    fn read_link(&self, node: NodeId) -> Result<Vec<u8>, Error> {
        let file = self.file(node.inode)?;
        match self.special(&file)? {
            Special::Link(target) if node.part == 0 => self.target(&file, &target),
            _ => Err(Error::new(ErrorKind::Invalid, format!("{node} is no symbolic link"))),
        }
    }

    fn xattrs(&self, node: NodeId) -> Result<Vec<Xattr>, Error> {
        let file = self.file(node.inode)?;
        if node.part != 0 {
            return Ok(Vec::new());
        }
        node::xattrs(&self.volume, &self.kept, &file)
    }

    fn extents(
        &self,
        node: NodeId,
        offset_bytes: u64,
        len_bytes: u64,
        max: usize,
    ) -> Result<Vec<FileExtent>, Error> {
        self.content(node, |attribute, what| {
            let range = (offset_bytes, len_bytes, max);
            stream::extents(&self.volume, &self.kept, attribute, range, what)
        })
    }
}
