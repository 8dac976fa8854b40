//! The content of one file, piece by piece.

use std::io::Write;
use std::sync::mpsc::sync_channel;

use backstay_guestfs::fs::{FileSystem, NodeId, Place};

use super::{Tree, guest_error, stopped};
use crate::error::{Error, ErrorKind, Result};
use crate::monitor::Monitor;

/// Bytes read at once.
pub(crate) const PIECE_BYTES: usize = 1 << 20;
/// Extents asked for at once.
const EXTENTS: usize = 512;

/// How much of what is left is read at once.
pub(crate) fn piece_len(left: u64) -> usize {
    usize::try_from(left).map_or(PIECE_BYTES, |left| left.min(PIECE_BYTES))
}

/// A range of a file that is not a hole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Data {
    pub(crate) offset: u64,
    pub(crate) len: u64,
}

/// Calls `each` with the ranges of a file that hold data, in order, neighbours joined within a call to
/// the reader; what is between them reads as zeros.
pub(crate) fn data_ranges(
    fs: &dyn FileSystem,
    node: NodeId,
    range: Data,
    path: &[u8],
    mut each: impl FnMut(Data) -> Result<()>,
) -> Result<()> {
    let end = range.offset.saturating_add(range.len);
    let mut at = range.offset;
    let mut open: Option<Data> = None;
    while at < end {
        let list = fs.extents(node, at, end - at, EXTENTS).map_err(|e| guest_error(path, e))?;
        let before = at;
        for extent in list {
            let stop = extent.offset_bytes.checked_add(extent.len_bytes);
            let stop = stop.filter(|stop| extent.offset_bytes == at && *stop > at && *stop <= end);
            // The reader runs in a process that a guest's bytes may have taken over.
            let Some(stop) = stop else { return Err(odd(path, "extents that do not follow")) };
            if !matches!(extent.place, Place::Hole | Place::Unwritten) {
                match &mut open {
                    Some(open) => open.len += stop - at,
                    None => open = Some(Data { offset: at, len: stop - at }),
                }
            } else if let Some(data) = open.take() {
                each(data)?;
            }
            at = stop;
        }
        if at == before {
            return Err(odd(path, "an end before its size"));
        }
    }
    open.map_or(Ok(()), each)
}

fn odd(path: &[u8], what: &str) -> Error {
    Error::new(ErrorKind::Damaged, format!("cannot read {}: it has {what}", super::shown(path)))
}

/// Reads `data` of a file and gives it to `sink` in order, a piece of a MiB at most at once. The next piece
/// is read on a second thread while the sink has one, if there is more than one.
pub(crate) fn read_data(
    fs: &dyn FileSystem,
    node: NodeId,
    data: Data,
    path: &[u8],
    mut sink: impl FnMut(u64, &[u8]) -> Result<()>,
) -> Result<()> {
    let piece = PIECE_BYTES as u64;
    if data.len <= piece {
        let mut buf = vec![0; piece_len(data.len)];
        full(fs, node, data.offset, &mut buf, path)?;
        return sink(data.offset, &buf);
    }
    let (sender, receiver) = sync_channel::<Result<(u64, Vec<u8>)>>(0);
    let (back, spare) = sync_channel::<Vec<u8>>(2);
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let mut at = 0;
            while at < data.len {
                let len = piece_len(data.len - at);
                let mut buf = spare.try_recv().unwrap_or_default();
                buf.resize(len, 0);
                let result = full(fs, node, data.offset + at, &mut buf, path);
                let failed = result.is_err();
                // The other side has gone: its error is the one that counts.
                if sender.send(result.map(|()| (data.offset + at, buf))).is_err() || failed {
                    return;
                }
                at += len as u64;
            }
        });
        for piece in receiver {
            let (offset, buf) = piece?;
            sink(offset, &buf)?;
            // A full channel only means that the buffer is dropped.
            let _ = back.try_send(buf);
        }
        Ok(())
    })
}

/// Fills `buf`; a file that ends before its size is an error, never zeros.
pub(crate) fn full(
    fs: &dyn FileSystem,
    node: NodeId,
    offset: u64,
    buf: &mut [u8],
    path: &[u8],
) -> Result<()> {
    let mut done = 0;
    while done < buf.len() {
        let part = buf.get_mut(done..).unwrap_or_default();
        let len = fs.read(node, offset + done as u64, part).map_err(|e| guest_error(path, e))?;
        if len == 0 || len > buf.len() - done {
            return Err(odd(path, "an end before its size"));
        }
        done += len;
    }
    Ok(())
}

/// Writes `len` bytes of a file from `offset` on (to its end if there is no `len`, and never beyond it) to
/// `out`, holes as zeros; answers how many. Errors of the reader and of `out` end it; what was written
/// until then is right.
pub fn cat(
    tree: Tree<'_>,
    offset: u64,
    len: Option<u64>,
    out: &mut dyn Write,
    monitor: &dyn Monitor,
) -> Result<u64> {
    let stat = tree.fs.stat(tree.node).map_err(|e| guest_error(b"", e))?;
    if stat.kind != backstay_guestfs::fs::NodeKind::File {
        return Err(Error::new(ErrorKind::Invalid, "only a regular file has content"));
    }
    let left = stat.size_bytes.saturating_sub(offset);
    let range = Data { offset, len: len.map_or(left, |len| len.min(left)) };
    if range.len == 0 {
        return Ok(0);
    }
    monitor.total_bytes(range.len);
    let mut at = offset;
    let failed = |error| Error::new(ErrorKind::Io, "cannot write the content").caused_by(error);
    data_ranges(tree.fs, tree.node, range, b"", |data| {
        zeros(out, data.offset - at, monitor)?;
        read_data(tree.fs, tree.node, data, b"", |_, buf| {
            stopped(monitor)?;
            out.write_all(buf).map_err(failed)?;
            monitor.add_bytes(buf.len() as u64);
            Ok(())
        })?;
        at = data.offset + data.len;
        Ok(())
    })?;
    zeros(out, offset + range.len - at, monitor)?;
    Ok(range.len)
}

/// Writes a hole.
pub(crate) fn zeros(out: &mut dyn Write, mut len: u64, monitor: &dyn Monitor) -> Result<()> {
    let buf = [0; 64 << 10];
    while len > 0 {
        stopped(monitor)?;
        let part = usize::try_from(len).map_or(buf.len(), |len| len.min(buf.len()));
        out.write_all(buf.get(..part).unwrap_or(&buf)).map_err(|e| {
            Error::new(super::super::error::kind_of_io(&e), "cannot write the content").caused_by(e)
        })?;
        monitor.add_bytes(part as u64);
        len -= part as u64;
    }
    Ok(())
}
