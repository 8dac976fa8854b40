//! Commands that go to the pool, and the duty to say what became of them.

use std::sync::Arc;

use backstay_blockdev::BlockDevice;
use tokio::sync::mpsc;

use super::frame::{Cut, Digests};
use crate::proto::pdu::{FunctionResponse, Residual};
use crate::scsi::{Outcome, Ran, Task, TaskSet, Work};

/// What comes back to a session.
#[derive(Debug)]
pub(super) enum Done {
    /// A read went well; its data lies in `pdus` as [`Cut`] says, without headers.
    Read { tag: u32, cut: Cut, residual: Residual, pdus: Vec<u8> },
    /// A command is over. `data` is the buffer of what was sent for it, if there was any.
    Over { tag: u32, outcome: Outcome, data: Vec<u8> },
    /// The device will take it later.
    Later { tag: u32, work: Work, data: Vec<u8>, len: usize },
    /// It was aborted, and nobody is told.
    Aborted { tag: u32, data: Vec<u8> },
    /// Task management is over.
    Managed { tag: u32, response: FunctionResponse },
}

/// The duty to say what became of one command. Dropped without a word (a panic, a stopped pool) it tells of an internal
/// failure, so that no initiator waits for ever.
#[derive(Debug)]
pub(super) struct Ticket {
    pub(super) sender: mpsc::UnboundedSender<Done>,
    pub(super) tag: u32,
    pub(super) nexus: u64,
    pub(super) task: Arc<Task>,
    /// The set that the task is in.
    pub(super) set: Arc<TaskSet>,
    pub(super) told: bool,
}

impl Ticket {
    fn tell(&mut self, done: Done) {
        self.told = true;
        // The receiver is gone when the session is; then nobody waits.
        let _ = self.sender.send(done);
    }

    /// The command is over, whoever wants to know.
    fn over(&mut self, outcome: Outcome, data: Vec<u8>) {
        let tag = self.tag;
        let wanted = self.task.end();
        self.set.remove(self.nexus, tag);
        self.tell(if wanted {
            Done::Over { tag, outcome, data }
        } else {
            Done::Aborted { tag, data }
        });
    }

    fn aborted(&mut self, data: Vec<u8>) {
        let tag = self.tag;
        self.task.end();
        self.set.remove(self.nexus, tag);
        self.tell(Done::Aborted { tag, data });
    }

    /// Does the work with the first `len` bytes of `data`.
    pub(super) fn work(mut self, mut work: Work, data: Vec<u8>, len: usize) {
        if !self.task.begin() {
            return self.aborted(data);
        }
        match work.run(&data[..len]) {
            Ran::Done(outcome) => self.over(outcome, data),
            Ran::Later if self.task.put_back() => {
                let tag = self.tag;
                self.tell(Done::Later { tag, work, data, len });
            }
            Ran::Later => self.aborted(data),
        }
    }

    /// Reads from the device, into `pdus` as `cut` says.
    pub(super) fn read(
        mut self,
        device: &dyn BlockDevice,
        offset: u64,
        (cut, residual): (Cut, Residual),
        digests: Digests,
        mut pdus: Vec<u8>,
    ) {
        if !self.task.begin() {
            return self.aborted(pdus);
        }
        for piece in cut.pieces(digests) {
            let pdu = &mut pdus[piece.at..];
            let head = digests.head_bytes();
            let at = offset + piece.offset as u64;
            if let Err(error) = device.read_at(at, &mut pdu[head..head + piece.len]) {
                tracing::warn!(offset = at, len = piece.len, %error, "a read failed");
                return self.over(Outcome::of_error(&error), pdus);
            }
            digests.seal_data(pdu, piece.len);
        }
        let tag = self.tag;
        let wanted = self.task.end();
        self.set.remove(self.nexus, tag);
        self.tell(match wanted {
            true => Done::Read { tag, cut, residual, pdus },
            false => Done::Aborted { tag, data: pdus },
        });
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if !self.told {
            self.over(Outcome::internal_failure(), Vec::new());
        }
    }
}
