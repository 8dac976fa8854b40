//! Integration tests of the iSCSI target: against raw sockets, against hostile initiators, and against the
//! programs of others.

#![allow(clippy::unwrap_used, reason = "tests say what they expect")]
#![allow(clippy::print_stdout, reason = "what was skipped, and how much passed, is said aloud")]

#[path = "it/crowd.rs"]
mod crowd;
#[path = "it/data.rs"]
mod data;
#[path = "it/hostile.rs"]
mod hostile;
#[path = "it/libiscsi.rs"]
mod libiscsi;
#[path = "it/logins.rs"]
mod logins;
#[path = "it/sessions.rs"]
mod sessions;
#[path = "it/support.rs"]
mod support;
#[path = "it/units.rs"]
mod units;
