//! What Backstay's processes say to each other.
//!
//! - [`mountd`]: requests to the mount daemon and what it answers.
//! - [`frame`]: one JSON document a line, bounded.
//! - [`MountdClient`]: asks the mount daemon over its socket.
//! - [`Refusal`]: how a request fails, in the same words whoever is asked.
//!
//! Fields are added, never changed: an unknown one is an error, so that nothing asked for is left out in silence.

#![forbid(unsafe_code)]

mod client;
pub mod frame;
pub mod mountd;
mod refusal;

pub use client::{ClientError, MountdClient};
pub use refusal::{Refusal, RefusalKind};
