//! An open export: its device, the word that it has ended, and what was done with it.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use backstay_blockdev::BlockDevice;
use tokio::sync::watch;

/// The owner's half of an export's life. Dropping it ends the export too: an export whose owner is
/// gone must not be served for ever.
#[derive(Debug)]
pub struct End(watch::Sender<bool>);

/// The server's half: tells whether the export has ended. Cheap to clone and to ask.
#[derive(Debug, Clone)]
pub struct Ended(Option<watch::Receiver<bool>>);

impl End {
    /// A life that has begun.
    pub fn new() -> (Self, Ended) {
        let (sender, receiver) = watch::channel(false);
        (Self(sender), Ended(Some(receiver)))
    }

    /// Ends the export: requests under way are answered, later ones get `ESHUTDOWN`, and after
    /// [`super::ServerConfig::end_grace`] its connections are closed. Ending twice is ending once.
    pub fn end(&self) {
        self.0.send_replace(true);
    }

    /// Another watcher of the same life.
    pub fn watch(&self) -> Ended {
        Ended(Some(self.0.subscribe()))
    }
}

impl Ended {
    /// Of an export that lasts as long as its server.
    pub fn never() -> Self {
        Self(None)
    }

    /// Of whatever ends when `life` becomes true or its sender is gone.
    pub(super) fn of(life: watch::Receiver<bool>) -> Self {
        Self(Some(life))
    }

    /// Whether the export has ended.
    pub fn is_ended(&self) -> bool {
        // `has_changed` fails when the owner is gone.
        self.0.as_ref().is_some_and(|life| *life.borrow() || life.has_changed().is_err())
    }

    /// Returns when the export ends.
    pub async fn ended(&mut self) {
        match &mut self.0 {
            // An error is the owner's end.
            Some(life) => drop(life.wait_for(|ended| *ended).await.map(|_| ())),
            None => std::future::pending().await,
        }
    }
}

/// What one connection has done with an export. Counts only grow.
#[derive(Debug, Default)]
pub struct Usage {
    requests: AtomicU64,
    read_bytes: AtomicU64,
    written_bytes: AtomicU64,
}

impl Usage {
    /// Requests taken, also those that failed.
    pub fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }

    /// Bytes asked for by READ requests that were allowed.
    pub fn read_bytes(&self) -> u64 {
        self.read_bytes.load(Ordering::Relaxed)
    }

    /// Bytes of WRITE payloads that reached the device, whether it took them or not.
    pub fn written_bytes(&self) -> u64 {
        self.written_bytes.load(Ordering::Relaxed)
    }

    pub(super) fn add_request(&self) {
        self.requests.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn add_read(&self, bytes: u64) {
        self.read_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn add_written(&self, bytes: u64) {
        self.written_bytes.fetch_add(bytes, Ordering::Relaxed);
    }
}

/// An open export, held by one connection until it ends.
#[derive(Clone)]
pub struct Opened {
    /// The disk, as this client may use it.
    pub device: Arc<dyn BlockDevice>,
    /// Whether the export has ended.
    pub ended: Ended,
    /// Where the connection counts; whoever opened the export may keep a weak reference to it, which
    /// is alive as long as the connection has the export.
    pub usage: Arc<Usage>,
}

impl Opened {
    /// An export that lasts as long as its server.
    pub fn new(device: Arc<dyn BlockDevice>) -> Self {
        Self { device, ended: Ended::never(), usage: Arc::default() }
    }
}

impl fmt::Debug for Opened {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Opened").field("device", &self.device).finish_non_exhaustive()
    }
}
