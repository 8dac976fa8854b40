//! Two thousand clients that want nothing, and one that does; the server in a process of its own, so
//! that its memory can be measured.

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::net::{
    AddressFamily, SocketAddrV4, SocketFlags, SocketType, bind, connect, socket_with,
};

use crate::support::{NAME, Raw};

/// A process, ended when it is dropped.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Set in the process that serves.
const SERVE: &str = "BACKSTAY_ISCSI_TEST_SERVE";
const MIB: u64 = 1 << 20;

/// Not a test by itself: the server of the test below, until its standard input ends.
#[test]
fn serve_in_a_process() {
    if std::env::var_os(SERVE).is_none() {
        return;
    }
    let server = crate::support::Server::restricted(&["127.0.0.0/8"], None);
    let address = server.address();
    std::io::stderr().write_all(format!("\nlistening {address}\n").as_bytes()).unwrap();
    std::io::stdin().read_to_end(&mut Vec::new()).unwrap();
    drop(server);
}

fn serve() -> (Running, SocketAddr) {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "crowd::serve_in_a_process", "--nocapture"]).env(SERVE, "1");
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = Running(command.spawn().unwrap());
    let stderr = BufReader::new(child.0.stderr.take().unwrap());
    let line = stderr.lines().map(Result::unwrap).find(|line| line.starts_with("listening "));
    let address = line.unwrap()["listening ".len()..].parse().unwrap();
    (child, address)
}

/// Memory of a process that is in use, in bytes.
fn resident_bytes(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
}

/// Starts to connect and does not wait for it: who is refused is refused.
fn intrude(to: SocketAddr, from: Ipv4Addr) -> Option<TcpStream> {
    let own =
        socket_with(AddressFamily::INET, SocketType::STREAM, SocketFlags::NONBLOCK, None).ok()?;
    bind(&own, &SocketAddrV4::new(from, 0)).ok()?;
    match connect(&own, &to) {
        Ok(()) | Err(rustix::io::Errno::INPROGRESS) => Some(TcpStream::from(own)),
        Err(_) => None,
    }
}

/// Raises the limit of open files as far as may be; whether so many can be opened.
fn may_open(files: u64) -> bool {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    let raised = setrlimit(Resource::Nofile, limit).is_ok();
    raised && limit.maximum.is_none_or(|most| most >= files)
}

/// A client that wants to read: how long until it may. In a crowd of many addresses it may be sent away
/// in its handshake, and comes again at once, as clients do.
fn login(to: SocketAddr, from: Ipv4Addr) -> Duration {
    let start = Instant::now();
    loop {
        let stream = intrude(to, from).unwrap();
        stream.set_nonblocking(false).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
        let may = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let mut raw = Raw::over(stream.try_clone().unwrap());
            assert_eq!(raw.log_in_as(NAME, &[]).0.status, 0);
            raw.ready();
        }));
        match may {
            Ok(()) => return start.elapsed(),
            Err(_) => assert!(start.elapsed() < Duration::from_secs(1), "sent away for a second"),
        }
    }
}

/// A thousand clients without a word, and a thousand with a byte now and then, of one
/// address and of many.
#[test]
fn two_thousand_idle_initiators() {
    if !may_open(2500) {
        println!("SKIPPED two thousand initiators: the limit of open files is too low");
        return;
    }
    let (mut server, address) = serve();
    let newcomer = Ipv4Addr::new(127, 9, 9, 9);
    let first = login(address, newcomer);
    let before = resident_bytes(server.0.id());
    let many = |i: u32| Ipv4Addr::from_bits(Ipv4Addr::new(127, 1, 0, 1).to_bits() + i % 100);
    let one = |_: u32| Ipv4Addr::new(127, 2, 0, 1);
    let sources: [&dyn Fn(u32) -> Ipv4Addr; 2] = [&one, &many];
    for (round, from) in sources.into_iter().enumerate() {
        let mut crowd: Vec<TcpStream> =
            (0..2000).filter_map(|i| intrude(address, from(i))).collect();
        assert!(crowd.len() > 1900, "only {} came", crowd.len());
        let (mut worst, mut peak) = (Duration::ZERO, 0);
        for i in 0..2000 {
            if i % 10 == 0 {
                // Half of them trickle; those that were sent away come again.
                for slow in crowd.iter_mut().step_by(2) {
                    match slow.write(&[0]) {
                        Err(e) if e.kind() == ErrorKind::WouldBlock => {}
                        Ok(_) => {}
                        Err(_) => *slow = intrude(address, from(i)).unwrap(),
                    }
                }
            }
            if i % 200 == 199 {
                worst = worst.max(login(address, newcomer));
                peak = peak.max(resident_bytes(server.0.id()));
            }
        }
        println!("round {round}: first login {first:?}, worst {worst:?}, {before} to {peak} bytes");
        assert!(worst < Duration::from_secs(1), "a login took {worst:?}");
        assert!(peak < before + 64 * MIB, "grew from {before} to {peak} bytes");
    }
    drop(server.0.stdin.take());
    assert!(server.0.wait().unwrap().success(), "it did not stop in good order");
}
