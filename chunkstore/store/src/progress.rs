/// Where long work tells how far it is. Called from several threads.
pub trait Progress: Send + Sync {
    /// How many units of `what` there will be.
    fn total(&self, what: &'static str, count: u64) {
        let _ = (what, count);
    }

    /// `count` more units of `what` are done.
    fn add(&self, what: &'static str, count: u64) {
        let _ = (what, count);
    }

    /// Whether the caller wants the work to stop; it then ends with [`crate::ErrorKind::Aborted`].
    fn cancelled(&self) -> bool {
        false
    }
}

/// Tells nobody.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoProgress;

impl Progress for NoProgress {}
