//! Restoring to a pipe: workers read ahead of the writer, and take turns by their runs' numbers.

use std::io::Write;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use backstay_store::ImageReader;

use super::copy::{Copied, Sink, copy};
use super::runs::Run;
use crate::error::{Error, ErrorKind, Result, kind_of_io};
use crate::monitor::Monitor;

/// Zeros for holes are written in pieces of this.
static ZEROS: [u8; 64 * 1024] = [0; 64 * 1024];

struct Stream<'a> {
    turn: Mutex<Turn<'a>>,
    moved: Condvar,
}

struct Turn<'a> {
    next: u64,
    aborted: bool,
    out: &'a mut (dyn Write + Send),
}

impl<'a> Stream<'a> {
    /// Waits until run `number` is the next. Runs are handed out in order, so the one all others
    /// wait for is always in somebody's hands.
    fn wait(&self, number: u64) -> Result<MutexGuard<'_, Turn<'a>>> {
        let mut turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        while turn.next != number && !turn.aborted {
            turn = self.moved.wait(turn).unwrap_or_else(PoisonError::into_inner);
        }
        if turn.aborted {
            return Err(Error::new(ErrorKind::Cancelled, "another part of the restore failed"));
        }
        Ok(turn)
    }

    fn write(&self, run: Run, write: impl Fn(&mut dyn Write) -> std::io::Result<()>) -> Result<()> {
        let mut turn = self.wait(run.number)?;
        write(turn.out).map_err(write_error)?;
        turn.next += 1;
        drop(turn);
        self.moved.notify_all();
        Ok(())
    }
}

fn write_error(e: std::io::Error) -> Error {
    Error::new(kind_of_io(&e), "cannot write to the output").caused_by(e)
}

impl Sink for Stream<'_> {
    fn data(&self, run: Run, bytes: &[u8]) -> Result<()> {
        self.write(run, |out| out.write_all(bytes))
    }

    fn hole(&self, run: Run) -> Result<()> {
        self.write(run, |out| {
            let mut left = run.len;
            while left > 0 {
                let len = usize::try_from(left).unwrap_or(usize::MAX).min(ZEROS.len());
                out.write_all(ZEROS.get(..len).unwrap_or_default())?;
                left -= u64::try_from(len).unwrap_or(left);
            }
            Ok(())
        })
    }

    fn abort(&self) {
        self.turn.lock().unwrap_or_else(PoisonError::into_inner).aborted = true;
        self.moved.notify_all();
    }
}

pub(super) fn restore(
    disk: &str,
    reader: &ImageReader,
    out: &mut (dyn Write + Send),
    workers: usize,
    monitor: &dyn Monitor,
) -> Result<Copied> {
    let stream =
        Stream { turn: Mutex::new(Turn { next: 0, aborted: false, out }), moved: Condvar::new() };
    let copied = copy(disk, reader, &stream, workers, monitor)?;
    let turn = stream.turn.into_inner().unwrap_or_else(PoisonError::into_inner);
    turn.out.flush().map_err(write_error)?;
    Ok(copied)
}
