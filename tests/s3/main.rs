//! Repositories on S3-compatible storage: real servers of others, and a proxy that makes faults.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "tests say what they expect, and what they could not run"
)]

mod cycle;
mod faults;
mod lock;
mod opened;
mod protocol;
mod support;
