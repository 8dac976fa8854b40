use std::fmt::Debug;
use std::fs::File;
use std::os::unix::fs::FileExt;

use crate::error::Result;

use super::source::{ChunkSource, DiskPlace, WantedChunk};

/// The bytes of a disk as it is now.
pub trait ImageBytes: Send + Debug {
    /// The disk's size.
    fn size_bytes(&self) -> u64;

    /// Fills all of `buf` from `offset`, which lies within the disk with all of `buf`.
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> std::io::Result<()>;
}

/// A raw image file of a size that does not change.
impl ImageBytes for File {
    fn size_bytes(&self) -> u64 {
        self.metadata().map_or(0, |m| m.len())
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> std::io::Result<()> {
        self.read_exact_at(buf, offset)
    }
}

/// An image of a machine's disk, as of now or of any other day: much of it is as it was when the
/// backups were made. It is asked for a lost chunk at the place where it stood; and at the end all
/// of it is compared with what is still wanted.
#[derive(Debug)]
pub struct ImageSource {
    machine: String,
    disk: String,
    bytes: Box<dyn ImageBytes>,
}

/// Bytes read at once from an image.
const STEP: usize = 4 << 20;

impl ImageSource {
    /// The disk `disk` of `machine`, read from `bytes`.
    pub fn new(machine: &str, disk: &str, bytes: Box<dyn ImageBytes>) -> Self {
        Self { machine: machine.to_owned(), disk: disk.to_owned(), bytes }
    }

    /// Fills `buf`; `false` where the image ends before or cannot be read.
    fn fill(&self, offset: u64, buf: &mut [u8]) -> bool {
        let end = offset.checked_add(buf.len() as u64);
        if end.is_none_or(|end| end > self.bytes.size_bytes()) {
            return false;
        }
        match self.bytes.read_at(offset, buf) {
            Ok(()) => true,
            // The image may have bad sectors too; the rest of it can still help.
            Err(error) => {
                tracing::warn!(%error, offset, "a part of the image cannot be read");
                false
            }
        }
    }

    fn is_of(&self, place: &DiskPlace) -> bool {
        place.machine == self.machine && place.disk == self.disk
    }
}

impl ChunkSource for ImageSource {
    fn name(&self) -> String {
        format!("the image of {}:{}", self.machine, self.disk)
    }

    fn offer(&mut self, wanted: &WantedChunk) -> Result<Option<Vec<u8>>> {
        if wanted.node_level.is_some() || !self.is_of(&wanted.place) {
            return Ok(None);
        }
        let len = usize::try_from(wanted.place.len_bytes).unwrap_or(0);
        let mut bytes = vec![0u8; len];
        Ok(self.fill(wanted.place.offset_bytes, &mut bytes).then_some(bytes))
    }

    fn read(&mut self, place: &DiskPlace, offset_bytes: u64, buf: &mut [u8]) -> Result<bool> {
        Ok(self.is_of(place) && self.fill(offset_bytes, buf))
    }

    fn scan(&mut self, block_bytes: u32, take: &mut dyn FnMut(&[u8]) -> bool) -> Result<()> {
        let block = block_bytes as usize;
        let step = STEP.next_multiple_of(block);
        let mut buf = vec![0u8; step];
        let size = self.bytes.size_bytes();
        let mut at = 0u64;
        while at < size {
            let len = usize::try_from((size - at).min(step as u64)).unwrap_or(step);
            let now = &mut buf[..len];
            let whole = self.fill(at, now);
            for (n, piece) in now.chunks_mut(block).enumerate() {
                // A bad sector costs its own block only.
                let there = whole || self.fill(at + (n * block) as u64, piece);
                // Holes are no chunks, so nobody wants zeros.
                if there && piece.iter().any(|b| *b != 0) && !take(piece) {
                    return Ok(());
                }
            }
            at += len as u64;
        }
        Ok(())
    }
}
