//! Devices over devices.

mod delay;
mod fault;
mod readonly;

pub use delay::Delay;
pub use fault::{Fault, Operation, Rule};
pub use readonly::ReadOnly;
