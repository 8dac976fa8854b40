//! The `nbd` crate as an independent peer: its client against our server, its server against our
//! client. It is small and of another hand, which is what a peer should be.

use std::io::{Cursor, Read, Seek, SeekFrom, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Duration;

use backstay_blockdev::{BlockDevice, MemDevice, conformance};
use backstay_nbd::client::{Client, NbdUri};

use crate::support::{PATIENCE, Server, disk};

fn connect(server: &Server) -> UnixStream {
    let stream = UnixStream::connect(&server.socket).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

#[test]
fn its_client_reads_from_our_server() {
    let (server, bytes) = Server::disk(1 << 20);
    let mut stream = connect(&server);
    let export = nbd::client::handshake(&mut stream, b"disk").unwrap();
    assert_eq!(export.size, 1 << 20);
    assert!(export.readonly && export.send_flush);
    let mut client = nbd::client::NbdClient::new(&mut stream, &export);
    let mut all = Vec::new();
    client.read_to_end(&mut all).unwrap();
    assert!(all == bytes);
    client.seek(SeekFrom::Start(12_345)).unwrap();
    let mut part = vec![0; 70_000];
    client.read_exact(&mut part).unwrap();
    assert!(part == bytes[12_345..82_345]);
    let error = client.write(&[1; 512]).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::PermissionDenied);
    client.flush().unwrap();
}

#[test]
fn its_client_writes_to_our_server() {
    let server = Server::start(MemDevice::new(vec![0; 1 << 20]));
    let mut stream = connect(&server);
    let export = nbd::client::handshake(&mut stream, b"").unwrap();
    let mut client = nbd::client::NbdClient::new(&mut stream, &export);
    client.seek(SeekFrom::Start(4096)).unwrap();
    client.write_all(&disk(100_000)).unwrap();
    client.flush().unwrap();
    client.seek(SeekFrom::Start(4096)).unwrap();
    let mut back = vec![0; 100_000];
    client.read_exact(&mut back).unwrap();
    assert!(back == disk(100_000));
}

#[test]
fn its_client_is_refused_an_unknown_export() {
    let (server, _) = Server::disk(4096);
    assert!(nbd::client::handshake(connect(&server), b"nope").is_err());
}

#[test]
fn our_client_reads_from_its_server() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("s");
    let listener = UnixListener::bind(&socket).unwrap();
    let bytes = disk(1 << 20);
    let data = bytes.clone();
    let server = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        nbd::server::handshake(&mut stream, |name| {
            assert_eq!(name, "theirs");
            Ok(nbd::Export::<()> { size: 1 << 20, readonly: true, ..nbd::Export::default() })
        })
        .unwrap();
        nbd::server::transmission(&mut stream, Cursor::new(data)).unwrap();
    });
    // It has neither GO nor structured replies nor a map of holes.
    let remote = Client::connect(&NbdUri::unix(&socket, "theirs")).unwrap();
    assert!(!remote.knows_holes() && !remote.caps().multi_conn && !remote.caps().writable);
    conformance::check(&remote, &bytes, 11);
    drop(remote);
    server.join().unwrap();
}
