//! Unit attentions: what a nexus has to be told before its next command (SAM-5, 5.14).

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

use super::sense::{Code, Key, Sense};

/// Conditions that one nexus is told of one unit; older ones give way to a reset.
const MAX_PENDING: usize = 8;

pub(super) const RESET: Code = (0x29, 0x00);
pub(super) const UNIT_RESET: Code = (0x29, 0x03);
pub(super) const MODE_CHANGED: Code = (0x2a, 0x01);
pub(super) const RESERVATIONS_PREEMPTED: Code = (0x2a, 0x03);
pub(super) const RESERVATIONS_RELEASED: Code = (0x2a, 0x04);
pub(super) const REGISTRATIONS_PREEMPTED: Code = (0x2a, 0x05);
pub(super) const COMMANDS_CLEARED: Code = (0x2f, 0x00);

/// What one nexus has to be told of one unit.
#[derive(Debug, Default)]
pub(super) struct Attention {
    /// Whether there is anything; asked for every command.
    any: AtomicBool,
    pending: Mutex<VecDeque<Code>>,
}

impl Attention {
    pub(super) fn raise(&self, code: Code) {
        let mut pending = self.pending.lock();
        // A reset tells all that was to be told before (SAM-5, 5.14.5).
        if code.0 == 0x29 {
            pending.clear();
        }
        if !pending.contains(&code) {
            if pending.len() == MAX_PENDING {
                pending.pop_front();
            }
            pending.push_back(code);
        }
        self.any.store(true, Ordering::Release);
    }

    /// The next condition, which is told with this.
    pub(super) fn take(&self) -> Option<Sense> {
        if !self.any.load(Ordering::Acquire) {
            return None;
        }
        let mut pending = self.pending.lock();
        let code = pending.pop_front();
        if pending.is_empty() {
            self.any.store(false, Ordering::Release);
        }
        code.map(|code| Sense::new(Key::UnitAttention, code))
    }
}
