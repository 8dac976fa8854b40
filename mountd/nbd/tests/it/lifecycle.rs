//! Starting, stopping, and who may connect.

use std::io::Read;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use backstay_blockdev::layer::Delay;
use backstay_blockdev::{BlockDevice, MemDevice};
use backstay_nbd::client::{Client, NbdUri};
use backstay_nbd::proto::transmission::{command, command_flag};
use backstay_nbd::server::{
    BoundAddress, Listen, Listener, ServerConfig, ServerHandle, export_uri, serve,
};

use crate::support::{OneExport, Raw, Server, disk, eventually};

#[test]
fn stop_answers_what_is_under_way_and_nothing_else() {
    let slow =
        Delay::new(Arc::new(MemDevice::read_only(disk(1 << 20))), Duration::from_millis(300));
    let mut server = Server::start(slow);
    let mut raw = Raw::ready(&server.socket);
    let cookie = raw.request(command::READ, command_flag::DF, 0, 4096);
    std::thread::sleep(Duration::from_millis(100));
    let handle = server.handle.take().unwrap();
    let stopped = std::thread::spawn(move || handle.stop());
    assert!(raw.data(cookie, 0, 4096).0 == disk(4096));
    raw.expect_end();
    stopped.join().unwrap().unwrap();
    assert!(!server.socket.exists(), "the socket stays behind");
    let device = &server.exports.device;
    assert_eq!(Arc::strong_count(device), 1, "somebody still has the device");
}

#[test]
fn stop_does_not_wait_for_a_client_that_takes_nothing() {
    let config = ServerConfig { stop_grace: Duration::from_millis(300), ..ServerConfig::default() };
    let bytes: Vec<u8> = disk(1 << 20).iter().map(|b| b | 1).collect();
    let mut server = Server::with(MemDevice::read_only(bytes), config);
    let mut raw = Raw::ready(&server.socket);
    for _ in 0..64 {
        raw.request(command::READ, 0, 0, 1 << 20);
    }
    std::thread::sleep(Duration::from_millis(100));
    let start = Instant::now();
    server.handle.take().unwrap().stop().unwrap();
    assert!(start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());
}

#[test]
fn dropping_the_handle_stops() {
    let mut server = Server::start(MemDevice::read_only(disk(4096)));
    let mut raw = Raw::ready(&server.socket);
    drop(server.handle.take());
    raw.expect_end();
    assert!(!server.socket.exists());
}

#[test]
fn idle_clients_may_be_sent_away() {
    let config =
        ServerConfig { idle_timeout: Some(Duration::from_millis(200)), ..ServerConfig::default() };
    let server = Server::with(MemDevice::read_only(disk(1 << 20)), config);
    let mut raw = Raw::ready(&server.socket);
    for _ in 0..4 {
        std::thread::sleep(Duration::from_millis(100));
        assert!(raw.read_at(0, 512) == disk(512), "a client at work is not idle");
    }
    raw.expect_end();
}

#[test]
fn a_socket_is_for_its_owner_and_a_stale_one_is_replaced() {
    let mut server = Server::start(MemDevice::read_only(disk(4096)));
    let mode = std::fs::metadata(&server.socket).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let listen = Listen::Unix(server.socket.clone());
    let error = Listener::bind(&listen).unwrap_err();
    assert!(error.to_string().contains("in use"), "{error}");
    drop(server.handle.take());
    // What a killed process leaves behind.
    drop(std::os::unix::net::UnixListener::bind(&server.socket).unwrap());
    assert!(server.socket.exists());
    let listener = Listener::bind(&listen).unwrap();
    assert_eq!(*listener.address(), BoundAddress::Unix(server.socket.clone()));
    drop(listener);
    assert!(!server.socket.exists());
    let file = server.dir.path().join("file");
    std::fs::write(&file, "precious").unwrap();
    assert!(Listener::bind(&Listen::Unix(file.clone())).is_err());
    assert_eq!(std::fs::read(&file).unwrap(), b"precious");
}

fn tcp_server(config: ServerConfig) -> (ServerHandle, SocketAddr) {
    let listen = vec![Listen::Tcp((Ipv4Addr::LOCALHOST, 0).into())];
    let exports = OneExport::new(MemDevice::read_only(disk(1 << 20)));
    let handle = ServerHandle::start(listen, exports, config).unwrap();
    let BoundAddress::Tcp(address) = handle.addresses()[0] else { panic!() };
    assert_ne!(address.port(), 0);
    (handle, address)
}

#[test]
fn tcp_and_uris() {
    let (handle, address) = tcp_server(ServerConfig::default());
    let uri = export_uri(&handle.addresses()[0], "disk", false);
    assert_eq!(uri, format!("nbd://{address}/disk"));
    let remote = Client::connect(&NbdUri::parse(&uri).unwrap()).unwrap();
    let mut buf = vec![0; 100_000];
    remote.read_at(5, &mut buf).unwrap();
    assert!(buf == disk(1 << 20)[5..100_005]);
    // The port is taken while it runs.
    assert!(Listener::bind(&Listen::Tcp(address)).is_err());
    handle.stop().unwrap();
}

/// Whether a server greets a new connection.
fn greeted(address: SocketAddr, from: Ipv4Addr) -> Option<TcpStream> {
    use rustix::net::{AddressFamily, SocketAddrV4, SocketType, bind, connect, socket};
    let own = socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
    bind(&own, &SocketAddrV4::new(from, 0)).unwrap();
    connect(&own, &address).unwrap();
    let mut stream = TcpStream::from(own);
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let mut greeting = [0; 18];
    stream.read_exact(&mut greeting).is_ok().then_some(stream)
}

#[test]
fn one_address_cannot_take_every_place() {
    let config = ServerConfig {
        max_connections: 8,
        reserved_connections: 2,
        max_per_address: 5,
        ..ServerConfig::default()
    };
    let (_handle, address) = tcp_server(config);
    let greedy = Ipv4Addr::new(127, 0, 0, 2);
    let mut held: Vec<_> = (0..10).filter_map(|_| greeted(address, greedy)).collect();
    assert_eq!(held.len(), 5);
    let second = Ipv4Addr::new(127, 0, 0, 3);
    let more: Vec<_> = (0..10).filter_map(|_| greeted(address, second)).collect();
    assert_eq!(more.len(), 1, "two places are kept for others");
    for last in [4, 5] {
        let newcomer = greeted(address, Ipv4Addr::new(127, 0, 0, last));
        held.push(newcomer.expect("a place was kept"));
    }
    assert!(greeted(address, Ipv4Addr::new(127, 0, 0, 6)).is_none(), "eight are all");
    held.clear();
    eventually("places come back", || greeted(address, second).is_some());
}

#[test]
fn two_listeners_and_an_asynchronous_caller() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("a");
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let (stop, stopped) = tokio::sync::watch::channel(false);
    let tcp = Listener::bind(&Listen::Tcp((Ipv4Addr::LOCALHOST, 0).into())).unwrap();
    let uri = export_uri(tcp.address(), "", false);
    let listeners = vec![tcp, Listener::bind(&Listen::Unix(socket.clone())).unwrap()];
    let exports = OneExport::new(MemDevice::read_only(disk(4096)));
    let server = runtime.spawn(serve(listeners, exports, ServerConfig::default(), stopped));
    for uri in [NbdUri::parse(&uri).unwrap(), NbdUri::unix(&socket, "disk")] {
        let remote = Client::connect(&uri).unwrap();
        let mut buf = [0; 4096];
        remote.read_at(0, &mut buf).unwrap();
        assert!(buf[..] == disk(4096));
    }
    stop.send(true).unwrap();
    runtime.block_on(server).unwrap().unwrap();
    assert!(!socket.exists());
}

/// Sockets of a service manager: served, and left to it at the end.
#[test]
fn inherited_sockets_are_served_and_left() {
    use std::os::fd::OwnedFd;
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("s");
    let tcp = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = tcp.local_addr().unwrap();
    let unix = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let listeners: Vec<Listener> = [OwnedFd::from(tcp), unix.try_clone().unwrap().into()]
        .into_iter()
        .map(|fd| Listener::inherited(fd).unwrap())
        .collect();
    assert_eq!(*listeners[0].address(), BoundAddress::Tcp(address));
    assert_eq!(*listeners[1].address(), BoundAddress::Unix(socket.clone()));
    let exports = OneExport::new(MemDevice::read_only(disk(4096)));
    let server = ServerHandle::start_on(listeners, exports, ServerConfig::default()).unwrap();
    for bound in server.addresses() {
        let uri = NbdUri::parse(&export_uri(bound, "disk", false)).unwrap();
        let mut buf = [0; 4096];
        Client::connect(&uri).unwrap().read_at(0, &mut buf).unwrap();
        assert!(buf[..] == disk(4096));
    }
    server.stop().unwrap();
    assert!(socket.exists(), "it is not ours to remove");
    // What does not listen, and what is no socket.
    let (one, _other) = std::os::unix::net::UnixStream::pair().unwrap();
    let file = std::fs::File::open("/dev/null").unwrap();
    let datagram = std::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    for bad in [OwnedFd::from(one), file.into(), datagram.into()] {
        let error = Listener::inherited(bad).unwrap_err();
        assert!(error.to_string().contains("inherited"), "{error}");
    }
}
