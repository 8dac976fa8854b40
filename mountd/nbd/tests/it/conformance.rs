//! The block device suite over a remote device: server and client together are a device too.

use std::sync::Arc;
use std::time::Duration;

use backstay_blockdev::layer::{Delay, ReadOnly};
use backstay_blockdev::{BlockDevice, MemDevice, conformance};
use backstay_nbd::client::Client;

use crate::support::{Server, disk};

#[test]
fn a_remote_device_keeps_the_contract() {
    for (seed, size) in (1..).zip([1, 4096, 1_000_001, 3 << 20]) {
        let (server, bytes) = Server::disk(size);
        for connections in [1, 4] {
            let client = Client { connections, ..Client::default() };
            let remote = client.attach(&server.uri("disk")).unwrap();
            assert!(remote.knows_holes());
            conformance::check(&remote, &bytes, seed);
        }
    }
}

#[test]
fn an_empty_remote_device_keeps_the_contract() {
    let (server, bytes) = Server::disk(0);
    conformance::check(&Client::connect(&server.uri("disk")).unwrap(), &bytes, 9);
}

#[test]
fn a_writable_remote_device_keeps_the_contract() {
    for (seed, size) in (1..).zip([4096, 1_000_001]) {
        let mut bytes = disk(size);
        let server = Server::start(MemDevice::new(bytes.clone()));
        let remote = Client::connect(&server.uri("disk")).unwrap();
        conformance::check_writes(&remote, &mut bytes, seed);
    }
}

#[test]
fn through_the_pool_and_through_two_servers() {
    let bytes = disk(1 << 20);
    let mem: Arc<dyn BlockDevice> = Arc::new(MemDevice::new(bytes.clone()));
    let slow = Delay::new(Arc::new(ReadOnly::new(mem)), Duration::from_micros(50));
    let far = Server::start(slow);
    let near = Server::start(Client::connect(&far.uri("disk")).unwrap());
    conformance::check(&Client::connect(&near.uri("disk")).unwrap(), &bytes, 4);
}
