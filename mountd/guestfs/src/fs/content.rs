//! Reading the content of files by their extents.

use super::{FileExtent, Place};
use crate::{Error, Media};

/// Fills `buf`, which starts at `offset_bytes` of a file, from extents that cover it without gaps; answers how much they
/// covered. `inside` reads what is [`Place::Inside`]: from an offset of the file into a part of `buf`.
pub(crate) fn fill(
    media: &[Media],
    extents: &[FileExtent],
    offset_bytes: u64,
    buf: &mut [u8],
    mut inside: impl FnMut(u64, &mut [u8]) -> Result<(), Error>,
) -> Result<usize, Error> {
    let mut done = 0;
    for extent in extents {
        let at = offset_bytes + done as u64;
        let end = extent.offset_bytes + extent.len_bytes;
        if end <= at {
            continue;
        }
        let skip = at - extent.offset_bytes;
        let left = buf.len() - done;
        let len = usize::try_from(end - at).map_or(left, |len| len.min(left));
        let part = &mut buf[done..done + len];
        match extent.place {
            Place::Hole | Place::Unwritten => part.fill(0),
            Place::Inside => inside(at, part)?,
            Place::Device { device, offset_bytes } => {
                let Some(media) = media.get(usize::from(device)) else {
                    let text = format!("the content lies on device {device}, which is not there");
                    return Err(Error::damaged(text));
                };
                media.read_content(offset_bytes.saturating_add(skip), part, "the content")?;
            }
        }
        done += len;
        if done == buf.len() {
            break;
        }
    }
    Ok(done)
}
