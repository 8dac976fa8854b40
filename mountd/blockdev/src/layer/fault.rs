//! Makes chosen operations fail, the way bad disks and networks do.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use crate::device::{BlockDevice, Caps, Extent, Geometry, PresenceExtent, WriteFlags};
use crate::error::{Error, ErrorKind};

/// The operations a [`Rule`] can hit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Operation {
    /// `read_at` and `try_read_at`.
    Read,
    /// `extents`.
    Extents,
    /// `write_at`.
    Write,
    /// `flush`; it has no range, so the rule's range does not matter.
    Flush,
    /// `trim`.
    Trim,
    /// `write_zeroes`.
    WriteZeroes,
}

/// One fault: operations of a sort that touch a range fail.
#[derive(Debug, Clone)]
pub struct Rule {
    /// Which operations.
    pub operation: Operation,
    /// Which bytes.
    pub range: Range<u64>,
    /// How they fail.
    pub kind: ErrorKind,
    /// How many of them fail before the fault is gone; `None` for ever.
    pub times: Option<u32>,
}

/// A device that fails by the rules given to it; without rules it is the inner device. A flush that
/// works again after it failed breaks the contract of devices: on purpose, for what must notice.
#[derive(Debug)]
pub struct Fault {
    inner: Arc<dyn BlockDevice>,
    rules: Mutex<Vec<Rule>>,
}

impl Fault {
    /// `inner` with no faults yet.
    pub fn new(inner: Arc<dyn BlockDevice>) -> Self {
        Self { inner, rules: Mutex::new(Vec::new()) }
    }

    /// Adds a fault; it applies from the next operation on.
    pub fn add(&self, rule: Rule) {
        self.rules.lock().unwrap_or_else(PoisonError::into_inner).push(rule);
    }

    /// Reads that touch `range` fail with [`ErrorKind::Io`] for ever.
    pub fn fail_reads(&self, range: Range<u64>) {
        self.add(Rule { operation: Operation::Read, range, kind: ErrorKind::Io, times: None });
    }

    /// Takes all faults away.
    pub fn clear(&self) {
        self.rules.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    fn pass(&self, operation: Operation, offset_bytes: u64, len_bytes: u64) -> Result<(), Error> {
        let end = offset_bytes.saturating_add(len_bytes);
        let mut rules = self.rules.lock().unwrap_or_else(PoisonError::into_inner);
        for rule in rules.iter_mut().filter(|rule| rule.operation == operation) {
            let touches = operation == Operation::Flush
                || (offset_bytes < rule.range.end && rule.range.start < end);
            if !touches || rule.times == Some(0) {
                continue;
            }
            if let Some(times) = &mut rule.times {
                *times -= 1;
            }
            return Err(Error::new(
                rule.kind,
                format!(
                    "injected fault: {operation:?} of {len_bytes} bytes at offset {offset_bytes}"
                ),
            ));
        }
        Ok(())
    }
}

impl BlockDevice for Fault {
    fn geometry(&self) -> Geometry {
        self.inner.geometry()
    }

    fn caps(&self) -> Caps {
        self.inner.caps()
    }

    fn read_at(&self, offset_bytes: u64, buf: &mut [u8]) -> Result<(), Error> {
        self.pass(Operation::Read, offset_bytes, buf.len() as u64)?;
        self.inner.read_at(offset_bytes, buf)
    }

    fn try_read_at(&self, offset_bytes: u64, buf: &mut [u8]) -> Result<bool, Error> {
        self.pass(Operation::Read, offset_bytes, buf.len() as u64)?;
        self.inner.try_read_at(offset_bytes, buf)
    }

    fn extents(&self, offset_bytes: u64, len_bytes: u64, max: usize) -> Result<Vec<Extent>, Error> {
        self.pass(Operation::Extents, offset_bytes, len_bytes)?;
        self.inner.extents(offset_bytes, len_bytes, max)
    }

    fn presence(
        &self,
        offset_bytes: u64,
        len_bytes: u64,
        max: usize,
    ) -> Result<Vec<PresenceExtent>, Error> {
        self.pass(Operation::Extents, offset_bytes, len_bytes)?;
        self.inner.presence(offset_bytes, len_bytes, max)
    }

    fn prefetch(&self, offset_bytes: u64, len_bytes: u64) {
        self.inner.prefetch(offset_bytes, len_bytes);
    }

    fn write_at(&self, offset_bytes: u64, data: &[u8], flags: WriteFlags) -> Result<(), Error> {
        self.pass(Operation::Write, offset_bytes, data.len() as u64)?;
        self.inner.write_at(offset_bytes, data, flags)
    }

    fn flush(&self) -> Result<(), Error> {
        self.pass(Operation::Flush, 0, 0)?;
        self.inner.flush()
    }

    fn trim(&self, offset_bytes: u64, len_bytes: u64, flags: WriteFlags) -> Result<(), Error> {
        self.pass(Operation::Trim, offset_bytes, len_bytes)?;
        self.inner.trim(offset_bytes, len_bytes, flags)
    }

    fn write_zeroes(
        &self,
        offset_bytes: u64,
        len_bytes: u64,
        flags: WriteFlags,
    ) -> Result<(), Error> {
        self.pass(Operation::WriteZeroes, offset_bytes, len_bytes)?;
        self.inner.write_zeroes(offset_bytes, len_bytes, flags)
    }
}
