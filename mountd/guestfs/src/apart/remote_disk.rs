//! A disk of the machine, as the child sees it: blocks that the parent reads.

use std::cell::RefCell;

use backstay_blockdev::{BlockDevice, Caps, Error, ErrorKind, Extent, ExtentKind, Geometry};

use super::wire::{self, Failure, Lane, PIECE_MAX, Want};

thread_local! {
    /// The lane whose request this thread works on.
    static LANE: RefCell<Option<Lane>> = const { RefCell::new(None) };
}

/// Makes `lane` the one this thread talks on.
pub(super) fn use_lane(lane: Lane) {
    LANE.set(Some(lane));
}

/// Says something on this thread's lane, or hears it.
pub(super) fn with_lane<T>(
    work: impl FnOnce(&mut Lane) -> std::io::Result<T>,
) -> std::io::Result<T> {
    LANE.with_borrow_mut(|lane| match lane {
        Some(lane) => work(lane),
        None => Err(wire::invalid("this thread has no lane".into())),
    })
}

/// Reads by asking the parent, on the lane of the thread that reads.
#[derive(Debug)]
pub(super) struct RemoteDisk {
    disk: u16,
    size_bytes: u64,
}

impl RemoteDisk {
    pub(super) fn new(disk: u16, size_bytes: u64) -> Self {
        Self { disk, size_bytes }
    }

    fn piece(&self, offset_bytes: u64, buf: &mut [u8]) -> std::io::Result<Result<(), Failure>> {
        with_lane(|lane| {
            let want = Want { disk: self.disk, offset_bytes, len_bytes: buf.len() as u32 };
            lane.send(wire::WANT, &want)?;
            match lane.receive()? {
                (wire::BLOCK, bytes) if bytes.len() == buf.len() => {
                    buf.copy_from_slice(bytes);
                    Ok(Ok(()))
                }
                (wire::NO_BLOCK, body) => Ok(Err(wire::decode(body)?)),
                (tag, _) => Err(wire::invalid(format!("a block was wanted, and {tag} came"))),
            }
        })
    }
}

impl BlockDevice for RemoteDisk {
    fn geometry(&self) -> Geometry {
        Geometry {
            size_bytes: self.size_bytes,
            min_block_bytes: 1,
            preferred_block_bytes: 64 << 10,
            max_request_bytes: PIECE_MAX as u32,
        }
    }

    fn caps(&self) -> Caps {
        Caps { multi_conn: true, ..Caps::default() }
    }

    fn read_at(&self, offset_bytes: u64, buf: &mut [u8]) -> Result<(), Error> {
        self.geometry().check(offset_bytes, buf.len() as u64)?;
        for (i, piece) in buf.chunks_mut(PIECE_MAX).enumerate() {
            let at = offset_bytes + (i * PIECE_MAX) as u64;
            match self.piece(at, piece) {
                Ok(Ok(())) => {}
                Ok(Err(failure)) => {
                    let error = crate::Error::from(failure);
                    let kind = match error.kind() {
                        crate::ErrorKind::Damaged => ErrorKind::Damaged,
                        _ => ErrorKind::Io,
                    };
                    return Err(Error::new(kind, error.to_string()));
                }
                // Without its parent a reader is of no use to anybody.
                Err(_) => std::process::exit(0),
            }
        }
        Ok(())
    }

    fn extents(&self, offset_bytes: u64, len_bytes: u64, max: usize) -> Result<Vec<Extent>, Error> {
        self.geometry().check(offset_bytes, len_bytes)?;
        let all = Extent { offset_bytes, len_bytes, kind: ExtentKind::Data };
        Ok(if len_bytes == 0 || max == 0 { Vec::new() } else { vec![all] })
    }

    fn prefetch(&self, offset_bytes: u64, len_bytes: u64) {
        let len_bytes = u32::try_from(len_bytes).unwrap_or(u32::MAX);
        let want = Want { disk: self.disk, offset_bytes, len_bytes };
        // Only a hint: if it cannot be said, the next read will find out why.
        let _ = with_lane(|lane| lane.send(wire::HINT, &want));
    }
}
