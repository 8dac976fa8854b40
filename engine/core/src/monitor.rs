//! How a long run tells its caller where it is, and learns that it should stop.

/// Watches a run. Called from several threads at once; every method should return at once.
pub trait Monitor: Send + Sync {
    /// A new phase has begun: `open`, `base`, `read`, `commit`, `write`, `sync`, `convert`,
    /// and those of a copy (`copy 2/7`, `verify 2/7`).
    fn phase(&self, name: &str) {
        let _ = name;
    }
    /// Bytes of all disks together, holes included: the end of the bar.
    fn total_bytes(&self, total: u64) {
        let _ = total;
    }
    /// So many more bytes of them are done; a hole counts when it is passed over.
    fn add_bytes(&self, bytes: u64) {
        let _ = bytes;
    }
    /// Something the user should know that does not end the run.
    fn problem(&self, message: &str) {
        let _ = message;
    }
    /// True once the run should end; asked between segments of about a MiB.
    fn cancelled(&self) -> bool {
        false
    }
}

/// A monitor that watches nothing.
#[derive(Debug, Default, Clone, Copy)]
pub struct Silent;

impl Monitor for Silent {}
