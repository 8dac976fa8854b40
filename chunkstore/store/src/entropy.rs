use std::fmt::Debug;

use jiff::Timestamp;

/// Where random bytes and the time come from. One source is given to a repository, so tests can
/// replay a run.
pub trait Entropy: Send + Sync + Debug {
    /// Fills `buf` with bytes nobody can predict.
    fn fill(&self, buf: &mut [u8]);

    /// The time by this host's clock: for records that people read. Whether anything is deleted
    /// never depends on it.
    fn now(&self) -> Timestamp {
        Timestamp::now()
    }
}

/// The operating system's random numbers.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemEntropy;

impl Entropy for SystemEntropy {
    fn fill(&self, buf: &mut [u8]) {
        // Without random numbers no key or id can be made; going on would be worse than stopping.
        getrandom::fill(buf).expect("the operating system gives random numbers");
    }
}

pub(crate) fn array<const N: usize>(source: &dyn Entropy) -> [u8; N] {
    let mut out = [0u8; N];
    source.fill(&mut out);
    out
}
