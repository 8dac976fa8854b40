use parking_lot::{Condvar, Mutex};

/// Bounds the bytes that several threads hold at once.
#[derive(Debug)]
pub(super) struct Gate {
    free: Mutex<u64>,
    freed: Condvar,
    all: u64,
}

/// Bytes held; given back when dropped.
#[derive(Debug)]
pub(super) struct Held<'a> {
    gate: &'a Gate,
    bytes: u64,
}

impl Gate {
    pub(super) fn new(bytes: u64) -> Self {
        Self { free: Mutex::new(bytes), freed: Condvar::new(), all: bytes }
    }

    /// Waits until there is room. More than all there is means: alone.
    pub(super) fn enter(&self, bytes: u64) -> Held<'_> {
        let bytes = bytes.min(self.all);
        let mut free = self.free.lock();
        while *free < bytes {
            self.freed.wait(&mut free);
        }
        *free -= bytes;
        Held { gate: self, bytes }
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        *self.gate.free.lock() += self.bytes;
        self.gate.freed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU64, Ordering};

    #[test]
    fn never_more_than_there_is_and_the_large_alone() {
        let gate = Gate::new(10);
        let (held, most) = (AtomicU64::new(0), AtomicU64::new(0));
        std::thread::scope(|s| {
            for n in 0..8u64 {
                let (gate, held, most) = (&gate, &held, &most);
                s.spawn(move || {
                    for i in 0..200 {
                        let bytes = [3, 5, 10, 1000][((n + i) % 4) as usize];
                        let _room = gate.enter(bytes);
                        let now = held.fetch_add(bytes.min(10), Ordering::SeqCst) + bytes.min(10);
                        most.fetch_max(now, Ordering::SeqCst);
                        held.fetch_sub(bytes.min(10), Ordering::SeqCst);
                    }
                });
            }
        });
        assert!(most.into_inner() <= 10);
        assert_eq!(*gate.free.lock(), 10);
    }
}
