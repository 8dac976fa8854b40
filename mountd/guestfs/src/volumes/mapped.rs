//! A volume as a device.

use std::fmt;
use std::sync::Arc;

use backstay_blockdev::{
    BlockDevice, Caps, Error as DeviceError, ErrorKind as DeviceKind, Extent, ExtentKind, Geometry,
    push_extent,
};

use super::map::{Map, Place, Step};
use crate::{Error, ErrorKind};

/// The longest request a volume takes at once, as geometries say it.
const MAX_REQUEST_BYTES: u32 = 32 << 20;
/// Steps of one `locate` or `extents`, whatever is asked for: a volume with stripes of 512 bytes has many.
const STEPS_MAX: usize = 65536;

/// Where bytes of a volume are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PieceAt {
    /// Nowhere: they read as zeros.
    Zeros,
    /// On a disk of the machine.
    Disk {
        /// Which: its index in the list that was scanned.
        disk: usize,
        /// In bytes from the start of that disk.
        offset_bytes: u64,
    },
}

/// A range of a volume that is in one place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    /// Its length in bytes, never 0.
    pub len_bytes: u64,
    /// Where it is.
    pub at: PieceAt,
}

/// A volume as a device that can be read. It knows where each byte lies on the disks of the machine; what is missing is an
/// error where it is read, and never zeros.
#[derive(Clone)]
pub struct Mapped {
    disks: Arc<[Arc<dyn BlockDevice>]>,
    map: Arc<dyn Map>,
}

// The layers of a volume with a thin pool in them fill pages.
impl fmt::Debug for Mapped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mapped").field("size_bytes", &self.size_bytes()).finish_non_exhaustive()
    }
}

impl Mapped {
    pub(crate) fn new(disks: Arc<[Arc<dyn BlockDevice>]>, map: Arc<dyn Map>) -> Self {
        Self { disks, map }
    }

    pub(crate) fn map(&self) -> &Arc<dyn Map> {
        &self.map
    }

    /// The same disks with another map.
    pub(crate) fn with_map(&self, map: Arc<dyn Map>) -> Self {
        Self { disks: Arc::clone(&self.disks), map }
    }

    /// Its size in bytes.
    pub fn size_bytes(&self) -> u64 {
        self.map.size()
    }

    /// Where the bytes from `offset_bytes` on are: pieces in order and without gaps, neighbours that lie side by side merged,
    /// `len_bytes` together or less: at most `max` (at least 1 comes back if the range is not empty), and it may stop early;
    /// then the caller asks again from where the list ends.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] for a range that goes beyond the volume; [`ErrorKind::Damaged`] where the first byte of the range
    /// lies on something that is missing or cannot be followed.
    pub fn locate(
        &self,
        offset_bytes: u64,
        len_bytes: u64,
        max: usize,
    ) -> Result<Vec<Piece>, Error> {
        let end = offset_bytes.checked_add(len_bytes).filter(|end| *end <= self.map.size());
        let Some(end) = end else {
            let text = format!(
                "{len_bytes} bytes at byte {offset_bytes} go beyond the volume ({} bytes)",
                self.map.size()
            );
            return Err(Error::new(ErrorKind::Invalid, text));
        };
        let mut list: Vec<Piece> = Vec::new();
        let mut at = offset_bytes;
        for _ in 0..STEPS_MAX {
            if at >= end {
                break;
            }
            let step = match self.step(at, end - at) {
                Ok(step) => step,
                // What was found so far is good; the error comes when it is first in the range.
                Err(_) if !list.is_empty() => break,
                Err(e) => return Err(e),
            };
            if !grow(&mut list, step, max) {
                break;
            }
            at += step.len;
        }
        Ok(list)
    }

    /// One step, held to the bounds of the range and of the disks.
    fn step(&self, offset: u64, len: u64) -> Result<Step, Error> {
        let step = self.map.step(offset, len)?;
        if step.len == 0 || step.len > len {
            return Err(Error::damaged(format!("the map of the volume ends at byte {offset}")));
        }
        let Place::Disk { disk, offset: at } = step.place else { return Ok(step) };
        let size = self.disks.get(disk).map_or(0, |disk| disk.geometry().size_bytes);
        if at >= size {
            let text =
                format!("byte {offset} of the volume would lie at byte {at} of a disk of {size}");
            return Err(Error::damaged(text));
        }
        Ok(Step { len: step.len.min(size - at), ..step })
    }
}

/// Adds a step to a list; `false` if there is no more room for it.
fn grow(list: &mut Vec<Piece>, step: Step, max: usize) -> bool {
    let at = match step.place {
        Place::Zeros => PieceAt::Zeros,
        Place::Disk { disk, offset } => PieceAt::Disk { disk, offset_bytes: offset },
    };
    if let Some(last) = list.last_mut() {
        let follows = match (last.at, at) {
            (PieceAt::Zeros, PieceAt::Zeros) => true,
            (
                PieceAt::Disk { disk: a, offset_bytes: from },
                PieceAt::Disk { disk: b, offset_bytes: to },
            ) => a == b && from.checked_add(last.len_bytes) == Some(to),
            _ => false,
        };
        if follows {
            last.len_bytes += step.len;
            return true;
        }
        if list.len() >= max {
            return false;
        }
    }
    list.push(Piece { len_bytes: step.len, at });
    true
}

impl BlockDevice for Mapped {
    fn geometry(&self) -> Geometry {
        Geometry {
            size_bytes: self.map.size(),
            min_block_bytes: 1,
            preferred_block_bytes: 4096,
            max_request_bytes: MAX_REQUEST_BYTES,
        }
    }

    fn caps(&self) -> Caps {
        Caps { multi_conn: true, ..Caps::default() }
    }

    fn read_at(&self, offset_bytes: u64, buf: &mut [u8]) -> Result<(), DeviceError> {
        self.geometry().check(offset_bytes, buf.len() as u64)?;
        let mut done = 0;
        while done < buf.len() {
            let left = (buf.len() - done) as u64;
            let step = self.step(offset_bytes + done as u64, left).map_err(lower)?;
            // At most what is left of the buffer, so it fits.
            let part = &mut buf[done..done + step.len as usize];
            match step.place {
                Place::Zeros => part.fill(0),
                Place::Disk { disk, offset } => self.disks[disk].read_at(offset, part)?,
            }
            done += part.len();
        }
        Ok(())
    }

    fn extents(
        &self,
        offset_bytes: u64,
        len_bytes: u64,
        max: usize,
    ) -> Result<Vec<Extent>, DeviceError> {
        self.geometry().check(offset_bytes, len_bytes)?;
        let mut list: Vec<Extent> = Vec::new();
        let (mut at, end) = (offset_bytes, offset_bytes + len_bytes);
        for _ in 0..STEPS_MAX {
            if at >= end {
                break;
            }
            // What cannot be read is data: reading it tells.
            let step = self.step(at, end - at).unwrap_or(Step {
                len: (end - at).min(4096 - at % 4096),
                place: Place::Disk { disk: usize::MAX, offset: 0 },
            });
            let all = Extent { offset_bytes: 0, len_bytes: step.len, kind: ExtentKind::Hole };
            let found = match step.place {
                Place::Zeros => vec![all],
                Place::Disk { disk, offset } => match self.disks.get(disk) {
                    Some(disk) => disk.extents(offset, step.len, max.max(1))?,
                    None => vec![Extent { kind: ExtentKind::Data, ..all }],
                },
            };
            for extent in found {
                let same = list.last().is_some_and(|last| last.kind == extent.kind);
                if !list.is_empty() && list.len() >= max && !same {
                    return Ok(list);
                }
                push_extent(&mut list, Extent { offset_bytes: at, ..extent });
                at += extent.len_bytes;
            }
        }
        Ok(list)
    }

    fn prefetch(&self, offset_bytes: u64, len_bytes: u64) {
        let size = self.map.size();
        let len = len_bytes.min(size.saturating_sub(offset_bytes));
        if len == 0 {
            return;
        }
        if let Ok(Step { len, place: Place::Disk { disk, offset } }) = self.step(offset_bytes, len)
        {
            self.disks[disk].prefetch(offset, len);
        }
    }
}

/// An error of the map as devices tell it.
fn lower(e: Error) -> DeviceError {
    let kind = match e.kind() {
        ErrorKind::Io => DeviceKind::Io,
        _ => DeviceKind::Damaged,
    };
    DeviceError::new(kind, "the volume cannot be read there").with_source(e)
}
