//! Means that several tests and benches share.

pub mod s3_proxy;
pub mod s3_server;
