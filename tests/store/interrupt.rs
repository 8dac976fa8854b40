//! A storage before whose calls a test does something else, as another node would at that moment:
//! an interleaving written down.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;

use backstay_store::{Error, ErrorKind, Folder, ObjectKey, Storage};
use parking_lot::Mutex;

use crate::sim::Call;

type Result<T> = std::result::Result<T, Error>;
type Event = Box<dyn FnOnce() + Send>;

/// What is waited for, and what then happens before the call goes on.
struct Step {
    wanted: Box<dyn FnMut(&Call) -> bool + Send>,
    event: Event,
}

/// Another storage, with events before some of its calls.
pub(crate) struct Interrupt {
    inner: Arc<dyn Storage>,
    steps: Mutex<VecDeque<Step>>,
    dead: Mutex<bool>,
}

impl fmt::Debug for Interrupt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Interrupt")
    }
}

impl Interrupt {
    pub(crate) fn new(inner: Arc<dyn Storage>) -> Arc<Self> {
        Arc::new(Self { inner, steps: Mutex::default(), dead: Mutex::new(false) })
    }

    /// Before the next call that is `wanted`, after all events told before: `event`.
    pub(crate) fn before(
        &self,
        wanted: impl FnMut(&Call) -> bool + Send + 'static,
        event: impl FnOnce() + Send + 'static,
    ) {
        let (wanted, event) = (Box::new(wanted), Box::new(event));
        self.steps.lock().push_back(Step { wanted, event });
    }

    /// From the next call on that is `wanted`, the process behind this storage is dead.
    pub(crate) fn die_before(self: &Arc<Self>, wanted: impl FnMut(&Call) -> bool + Send + 'static) {
        let me = self.clone();
        self.before(wanted, move || *me.dead.lock() = true);
    }

    /// Whether all events happened.
    pub(crate) fn is_done(&self) -> bool {
        self.steps.lock().is_empty()
    }

    /// All events happened.
    pub(crate) fn assert_done(&self) {
        assert!(self.steps.lock().is_empty(), "an event of the test never came");
    }

    fn call(&self, call: &Call) -> Result<()> {
        let step = {
            let mut steps = self.steps.lock();
            if steps.front_mut().is_some_and(|s| (s.wanted)(call)) {
                steps.pop_front()
            } else {
                None
            }
        };
        if let Some(step) = step {
            (step.event)();
        }
        if *self.dead.lock() {
            return Err(Error::new(ErrorKind::Aborted, "this process is dead"));
        }
        Ok(())
    }
}

impl Storage for Interrupt {
    fn put(&self, key: ObjectKey, parts: &[&[u8]]) -> Result<()> {
        self.call(&Call::Put(key))?;
        self.inner.put(key, parts)
    }

    fn get(&self, key: ObjectKey, max: u64) -> Result<Vec<u8>> {
        self.call(&Call::Get(key))?;
        self.inner.get(key, max)
    }

    fn read_at(&self, key: ObjectKey, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.call(&Call::Read(key))?;
        self.inner.read_at(key, offset, buf)
    }

    fn size(&self, key: ObjectKey) -> Result<u64> {
        self.call(&Call::Size(key))?;
        self.inner.size(key)
    }

    fn list(&self, folder: Folder) -> Result<Vec<ObjectKey>> {
        self.call(&Call::List(folder))?;
        self.inner.list(folder)
    }

    fn delete(&self, key: ObjectKey) -> Result<()> {
        self.call(&Call::Delete(key))?;
        self.inner.delete(key)
    }

    fn tidy(&self) -> Result<()> {
        self.call(&Call::Tidy)?;
        self.inner.tidy()
    }
}
