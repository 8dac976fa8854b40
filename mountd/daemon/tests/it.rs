//! Recovery points opened for real: a repository on disk, the kernel's FUSE, an NBD client.

// Helpers of tests say what they expect, as tests do; clippy knows only functions marked `#[test]`.
#![allow(clippy::unwrap_used, clippy::print_stdout, clippy::print_stderr)]

#[path = "it/conformance.rs"]
mod conformance;
#[path = "it/content.rs"]
mod content;
#[path = "it/damage.rs"]
mod damage;
#[path = "it/helper.rs"]
mod helper;
#[path = "it/lifecycle.rs"]
mod lifecycle;
#[path = "it/nbd.rs"]
mod nbd;
#[path = "it/points.rs"]
mod points;
#[path = "it/support.rs"]
mod support;
