//! A proxy between an S3 client and its server that makes distance and faults: delay, bandwidth,
//! refusals, lost answers, cut bodies, resets. Loopback only; one thread a connection.

mod http;

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use http::{Length, Message};

/// Bytes passed on at once.
const PIECE: usize = 32 * 1024;
/// Most connections at once; beyond it new ones wait to be accepted.
const CONNECTIONS_MAX: usize = 512;
/// Silence after which a connection is given up.
const IDLE: Duration = Duration::from_secs(60);

/// What happens to one request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It passes.
    None,
    /// It is answered with this status and S3 error code, and the server never sees it.
    Refuse(u16, &'static str),
    /// The server does what it is asked; its answer never arrives.
    LoseAnswer,
    /// Neither server nor answer: the connection stays open and silent.
    Hang,
    /// The connection is reset before the server sees the request.
    Reset,
    /// The connection is reset after the server has answered.
    ResetAfter,
    /// The answer's body breaks off after so many bytes.
    Truncate(usize),
    /// The answer's body comes one byte at a time, with this pause.
    Trickle(Duration),
    /// One bit of the answer's body is another.
    Flip(usize),
    /// The request passes without this header (lower case).
    Strip(&'static str),
}

/// A request as a plan sees it.
#[derive(Clone, Debug)]
pub struct Seen {
    /// Counted from 0 over all connections since the plan was set.
    pub number: u64,
    /// `GET`, `PUT`, ...
    pub method: String,
    /// Path and query.
    pub target: String,
}

/// What a link does to everything that passes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Link {
    /// From here to the server; the same back. A new connection costs one round trip more.
    pub delay: Duration,
    /// Bytes a second in each direction, over all connections together; 0: no limit.
    pub rate: u64,
}

/// Requests so far, by method.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// GET and HEAD.
    pub reads: u64,
    /// PUT and POST.
    pub writes: u64,
    /// All others.
    pub others: u64,
    /// Bytes of request bodies.
    pub sent: u64,
    /// Bytes of answers' bodies.
    pub received: u64,
}

type Plan = Box<dyn Fn(&Seen) -> Fault + Send + Sync>;

/// A running proxy; ends when dropped.
pub struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl std::fmt::Debug for Proxy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Proxy({})", self.address)
    }
}

struct Shared {
    upstream: SocketAddr,
    link: Mutex<Link>,
    up: Mutex<Instant>,
    down: Mutex<Instant>,
    plan: Mutex<(Arc<Plan>, u64)>,
    counts: Mutex<Counts>,
    open: Mutex<usize>,
    stop: AtomicBool,
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Proxy {
    /// A proxy on a free port of the loopback before `upstream`, without faults.
    pub fn start(upstream: SocketAddr, link: Link) -> Result<Proxy> {
        if !upstream.ip().is_loopback() {
            bail!("{upstream} is not on this machine");
        }
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("cannot listen")?;
        let address = listener.local_addr()?;
        let now = Instant::now();
        let shared = Arc::new(Shared {
            upstream,
            link: Mutex::new(link),
            up: Mutex::new(now),
            down: Mutex::new(now),
            plan: Mutex::new((Arc::new(Box::new(|_: &Seen| Fault::None)), 0)),
            counts: Mutex::default(),
            open: Mutex::new(0),
            stop: AtomicBool::new(false),
        });
        let theirs = shared.clone();
        let thread = std::thread::Builder::new()
            .name("s3-proxy".into())
            .spawn(move || accept(&listener, &theirs))?;
        Ok(Proxy { address, shared, thread: Some(thread) })
    }

    /// Where clients connect.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Sets what happens to requests from now on, and starts counting them anew.
    pub fn plan(&self, plan: impl Fn(&Seen) -> Fault + Send + Sync + 'static) {
        *lock(&self.shared.plan) = (Arc::new(Box::new(plan)), 0);
    }

    /// Sets distance and bandwidth from now on.
    pub fn link(&self, link: Link) {
        *lock(&self.shared.link) = link;
    }

    /// Requests since the plan was last set.
    pub fn requests(&self) -> u64 {
        lock(&self.shared.plan).1
    }

    /// Counts since the start.
    pub fn counts(&self) -> Counts {
        *lock(&self.shared.counts)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        // Wakes the thread that waits for connections; those that are open end by themselves.
        let _ = TcpStream::connect(self.address);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn accept(listener: &TcpListener, shared: &Arc<Shared>) {
    for stream in listener.incoming() {
        if shared.stop.load(Ordering::SeqCst) {
            return;
        }
        let Ok(stream) = stream else { continue };
        while *lock(&shared.open) >= CONNECTIONS_MAX {
            std::thread::sleep(Duration::from_millis(5));
        }
        *lock(&shared.open) += 1;
        let theirs = shared.clone();
        let serve = move || {
            // A connection that ends in an error has been told so by its end.
            let _ = connection(stream, &theirs);
            *lock(&theirs.open) -= 1;
        };
        if std::thread::Builder::new().spawn(serve).is_err() {
            *lock(&shared.open) -= 1;
        }
    }
}

fn connection(client: TcpStream, shared: &Shared) -> Result<()> {
    client.set_nodelay(true)?;
    client.set_read_timeout(Some(IDLE))?;
    client.set_write_timeout(Some(IDLE))?;
    let mut client = std::io::BufReader::with_capacity(PIECE, client);
    // The handshake of a distant connection takes a round trip before the first request.
    std::thread::sleep(lock(&shared.link).delay * 2);
    while let Some(request) = Message::read(&mut client)? {
        if !exchange(request, &mut client, shared)? {
            return Ok(());
        }
    }
    Ok(())
}

type Client = std::io::BufReader<TcpStream>;

/// One request and its answer. `false`: the connection ends with it.
fn exchange(mut request: Message, client: &mut Client, shared: &Shared) -> Result<bool> {
    let fault = shared.judge(&request);
    let link = *lock(&shared.link);
    let Length::Known(len) = request.body_of_request() else { bail!("a body without length") };
    let body_goes_nowhere = matches!(fault, Fault::Refuse(..) | Fault::Reset | Fault::Hang);
    let mut server = None;
    if !body_goes_nowhere {
        let stream = TcpStream::connect(shared.upstream)?;
        stream.set_read_timeout(Some(IDLE))?;
        server = Some(stream);
    }
    let head_only = request.method() == "HEAD";
    request.set("connection", "close");
    if let Fault::Strip(name) = fault {
        request.remove(name);
    }
    // The server may be asked whether it wants the body; it is on this machine and does.
    if request.remove("expect") {
        client.get_mut().write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
    }
    std::thread::sleep(link.delay);
    if let Some(server) = &mut server {
        server.write_all(&request.head())?;
    }
    pass(client, len, link.rate, &shared.up, |piece| match &mut server {
        Some(server) => server.write_all(piece),
        None => Ok(()),
    })?;
    lock(&shared.counts).sent += len;
    match fault {
        Fault::Refuse(status, code) => {
            std::thread::sleep(link.delay);
            client.get_mut().write_all(&refusal(status, code, head_only))?;
            return Ok(true);
        }
        Fault::Hang => return hang(client, shared),
        Fault::Reset => return reset(client),
        _ => {}
    }
    let Some(server) = server else { return Ok(false) };
    let mut server = std::io::BufReader::with_capacity(PIECE, server);
    let Some(answer) = Message::read(&mut server)? else { return Ok(false) };
    match fault {
        Fault::LoseAnswer => hang(client, shared),
        Fault::ResetAfter => reset(client),
        fault => respond(answer, head_only, &mut server, client, &fault, link, shared),
    }
}

fn respond(
    mut answer: Message,
    head_only: bool,
    server: &mut Client,
    client: &mut Client,
    fault: &Fault,
    link: Link,
    shared: &Shared,
) -> Result<bool> {
    let body = answer.body_of_answer(head_only);
    answer.remove("connection");
    let stays = !matches!(body, Length::UntilEnd);
    answer.set("connection", if stays { "keep-alive" } else { "close" });
    std::thread::sleep(link.delay);
    let out = client.get_mut();
    out.write_all(&answer.head())?;
    let len = match body {
        Length::Known(len) => len,
        // Passed on as it is: the server ends the connection after it.
        Length::Chunked | Length::UntilEnd => u64::MAX,
    };
    let mut passed = 0usize;
    let cut = if let Fault::Truncate(at) = fault { *at } else { usize::MAX };
    let outcome = pass(server, len, link.rate, &shared.down, |piece| {
        let piece = &piece[..piece.len().min(cut - passed)];
        match fault {
            Fault::Trickle(pause) => {
                for byte in piece {
                    out.write_all(std::slice::from_ref(byte))?;
                    std::thread::sleep(*pause);
                }
            }
            Fault::Flip(at) if (passed..passed + piece.len()).contains(at) => {
                let mut changed = piece.to_vec();
                changed[at - passed] ^= 1;
                out.write_all(&changed)?;
            }
            _ => out.write_all(piece)?,
        }
        passed += piece.len();
        if passed >= cut {
            return Err(std::io::Error::other("cut"));
        }
        Ok(())
    });
    lock(&shared.counts).received += passed as u64;
    outcome?;
    Ok(stays)
}

/// Passes `len` bytes (or all there are) on, at the link's speed.
fn pass(
    from: &mut impl Read,
    len: u64,
    rate: u64,
    turn: &Mutex<Instant>,
    mut to: impl FnMut(&[u8]) -> std::io::Result<()>,
) -> Result<()> {
    let mut piece = [0u8; PIECE];
    let mut left = len;
    while left > 0 {
        let most = usize::try_from(left).unwrap_or(PIECE).min(PIECE);
        let n = from.read(&mut piece[..most])?;
        if n == 0 {
            if len == u64::MAX {
                return Ok(());
            }
            bail!("a body ended {left} bytes early");
        }
        if rate > 0 {
            wait_turn(turn, n as u64, rate);
        }
        to(&piece[..n])?;
        if len != u64::MAX {
            left -= n as u64;
        }
    }
    Ok(())
}

/// Takes the next place on a link that carries `rate` bytes a second, and waits for it.
fn wait_turn(turn: &Mutex<Instant>, bytes: u64, rate: u64) {
    let until = {
        let mut next = lock(turn);
        *next = (*next).max(Instant::now()) + Duration::from_secs_f64(bytes as f64 / rate as f64);
        *next
    };
    std::thread::sleep(until.saturating_duration_since(Instant::now()));
}

/// Keeps the connection open and silent until the client leaves or the proxy ends.
fn hang(client: &mut Client, shared: &Shared) -> Result<bool> {
    client.get_ref().set_read_timeout(Some(Duration::from_millis(50)))?;
    let start = Instant::now();
    let mut byte = [0u8; 1];
    while start.elapsed() < IDLE && !shared.stop.load(Ordering::SeqCst) {
        match client.read(&mut byte) {
            Ok(0) => break,
            Err(e) if matches!(e.kind(), std::io::ErrorKind::ConnectionReset) => break,
            _ => {}
        }
    }
    Ok(false)
}

/// Ends the connection the hard way.
fn reset(client: &mut Client) -> Result<bool> {
    rustix::net::sockopt::set_socket_linger(client.get_ref(), Some(Duration::ZERO))?;
    Ok(false)
}

fn refusal(status: u16, code: &str, head_only: bool) -> Vec<u8> {
    let body = format!("<Error><Code>{code}</Code><Message>by the proxy</Message></Error>");
    let shown = if head_only { "" } else { body.as_str() };
    let len = body.len();
    format!("HTTP/1.1 {status} Refused\r\ncontent-length: {len}\r\n\r\n{shown}").into_bytes()
}

impl Shared {
    fn judge(&self, request: &Message) -> Fault {
        let method = request.method().to_owned();
        {
            let mut counts = lock(&self.counts);
            match method.as_str() {
                "GET" | "HEAD" => counts.reads += 1,
                "PUT" | "POST" => counts.writes += 1,
                _ => counts.others += 1,
            }
        }
        let (plan, number) = {
            let mut plan = lock(&self.plan);
            plan.1 += 1;
            (plan.0.clone(), plan.1 - 1)
        };
        plan(&Seen { number, method, target: request.target().to_owned() })
    }
}
