//! Devices over devices. What a layer does not change it passes on.

mod cache;
mod compare;
mod delay;
mod fault;
mod log;
mod range;
mod rate;
mod readonly;
mod stripes;
mod verify;

pub use cache::{Cache, CacheCounts, CachePool};
pub use compare::Compare;
pub use delay::Delay;
pub use fault::{Fault, Operation, Rule};
pub use log::{Call, Count, Entry, Log, Sink};
pub use range::Range;
pub use rate::{Clock, Limits, Rate, SystemClock};
pub use readonly::ReadOnly;
pub use verify::Verify;
