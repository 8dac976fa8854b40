//! Replies on their way out, and the buffers they live in.

use std::collections::VecDeque;
use std::io::{self, IoSlice};

use crate::wire::{Stream, retry};

/// Small replies are gathered in buffers of this size.
const SLAB_BYTES: usize = 256 << 10;
/// Replies up to this size are small.
pub const SMALL_BYTES: usize = 64 << 10;
/// Buffers handed to the kernel with one call.
const SLICES: usize = 16;
/// Bytes of buffers kept for the next replies; what is beyond goes back to the system.
const KEEP_BYTES: usize = 8 << 20;

/// A buffer, of which `start..end` is to be sent.
#[derive(Debug)]
pub struct Segment {
    /// The buffer.
    pub buf: Vec<u8>,
    /// Where what is to be sent starts.
    pub start: usize,
    /// Where it ends.
    pub end: usize,
}

impl Segment {
    /// All of `buf` is to be sent.
    pub fn whole(buf: Vec<u8>) -> Self {
        Self { start: 0, end: buf.len(), buf }
    }

    fn len(&self) -> usize {
        self.end - self.start
    }
}

/// The queue of replies, in the order they are sent.
#[derive(Debug, Default)]
pub struct Out {
    queue: VecDeque<Segment>,
    /// Whether the last segment is a slab that takes more.
    open: bool,
    bytes: usize,
    free: Vec<Vec<u8>>,
    free_bytes: usize,
}

impl Out {
    /// Bytes not yet taken by the kernel.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// A buffer of at least `len` bytes. What is in it is of earlier replies: callers overwrite it
    /// before they send it.
    pub fn buffer(&mut self, len: usize) -> Vec<u8> {
        let fit = self.free.iter().position(|buf| buf.len() >= len && buf.len() / 4 <= len);
        match fit {
            Some(at) => {
                let buf = self.free.swap_remove(at);
                self.free_bytes -= buf.len();
                buf
            }
            None => vec![0; len],
        }
    }

    /// Gives a buffer back.
    pub fn recycle(&mut self, buf: Vec<u8>) {
        if buf.len() >= SMALL_BYTES && self.free_bytes + buf.len() <= KEEP_BYTES {
            self.free_bytes += buf.len();
            self.free.push(buf);
        }
    }

    /// Queues a reply that has a buffer of its own.
    pub fn push(&mut self, segment: Segment) {
        if segment.len() <= 256 {
            // Headers alone are not worth a slice.
            self.small(segment.len(), |space| {
                space.copy_from_slice(&segment.buf[segment.start..segment.end]);
                segment.len()
            });
            return;
        }
        self.bytes += segment.len();
        self.queue.push_back(segment);
        self.open = false;
    }

    /// Queues a small reply: `write` gets `len` bytes of space (at most [`SMALL_BYTES`]) and answers
    /// how many of them are the reply; with 0 nothing is queued.
    pub fn small(&mut self, len: usize, write: impl FnOnce(&mut [u8]) -> usize) {
        let room = match self.queue.back() {
            Some(slab) if self.open => slab.buf.len() - slab.end,
            _ => 0,
        };
        if room < len {
            let buf = self.buffer(SLAB_BYTES.max(len));
            self.queue.push_back(Segment { buf, start: 0, end: 0 });
            self.open = true;
        }
        if let Some(slab) = self.queue.back_mut() {
            let used = write(&mut slab.buf[slab.end..slab.end + len]);
            slab.end += used;
            self.bytes += used;
        }
    }

    /// Hands as much as possible to the kernel, without waiting. `Ok(false)` when it takes no more.
    pub fn write(&mut self, stream: &mut impl Stream) -> io::Result<bool> {
        while self.bytes > 0 {
            let mut slices = [IoSlice::new(&[]); SLICES];
            let mut n = 0;
            for segment in self.queue.iter().filter(|s| s.len() > 0).take(SLICES) {
                slices[n] = IoSlice::new(&segment.buf[segment.start..segment.end]);
                n += 1;
            }
            match stream.try_write(&slices[..n]) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => self.advance(written),
                Err(e) if retry(&e) => return Ok(false),
                Err(e) => return Err(e),
            }
        }
        self.advance(0);
        match stream.try_flush() {
            Ok(()) => Ok(true),
            Err(e) if retry(&e) => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// `n` bytes are gone: drops the segments that are done.
    fn advance(&mut self, mut n: usize) {
        self.bytes -= n;
        while let Some(first) = self.queue.front_mut() {
            let part = n.min(first.len());
            first.start += part;
            n -= part;
            if first.len() > 0 {
                return;
            }
            if let Some(done) = self.queue.pop_front() {
                self.recycle(done.buf);
            }
        }
        self.open = false;
    }
}
