//! Integration tests of the NBD server and client: against raw sockets, against hostile peers, and
//! against the programs of others.

#![allow(clippy::unwrap_used, reason = "tests say what they expect")]

#[path = "it/client.rs"]
mod client;
#[path = "it/client_resilient.rs"]
mod client_resilient;
#[path = "it/client_tls.rs"]
mod client_tls;
#[path = "it/conformance.rs"]
mod conformance;
#[path = "it/crowd.rs"]
mod crowd;
#[path = "it/extended.rs"]
mod extended;
#[path = "it/handshake.rs"]
mod handshake;
#[path = "it/hostile.rs"]
mod hostile;
#[path = "it/hostile_server.rs"]
mod hostile_server;
#[path = "it/lifecycle.rs"]
mod lifecycle;
#[path = "it/model.rs"]
mod model;
#[path = "it/nbd_crate.rs"]
mod nbd_crate;
#[path = "it/nbdsh.rs"]
mod nbdsh;
#[path = "it/support.rs"]
mod support;
#[path = "it/table.rs"]
mod table;
#[path = "it/tls.rs"]
mod tls;
#[path = "it/tools.rs"]
mod tools;
#[path = "it/transmission.rs"]
mod transmission;
