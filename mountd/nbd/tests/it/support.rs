//! Servers, raw clients and programs, all bounded in time and cleaned up.

use std::fmt::Debug;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use backstay_blockdev::{BlockDevice, MemDevice};
use backstay_nbd::client::NbdUri;
use backstay_nbd::proto::handshake::{
    GREETING_BYTES, Info, InfoRequest, MetaContextRequest, OPTION_REPLY_HEADER_BYTES,
    OptionReplyHeader, decode_greeting, encode_option, option, reply,
};
use backstay_nbd::proto::transmission::{ReplyStart, Request, chunk, command};
use backstay_nbd::server::{
    ClientInfo, ExportInfo, Exports, Listen, OpenError, Opened, ServerConfig, ServerHandle,
};

/// Nothing in these tests may take longer.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// A disk of `len` bytes: data, holes of several sizes, odd borders.
pub(crate) fn disk(len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    for (i, block) in bytes.chunks_mut(4096).enumerate() {
        // A quarter of the megabytes, and some single blocks, stay zeros.
        if (i / 256) % 4 == 1 || i % 37 == 5 {
            continue;
        }
        for byte in block {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            *byte = (state >> 33) as u8;
        }
    }
    bytes
}

/// One export "disk" (also the default), and a count of how often it was opened.
pub(crate) struct OneExport {
    pub(crate) device: Arc<dyn BlockDevice>,
    pub(crate) opened: AtomicUsize,
}

impl OneExport {
    pub(crate) fn new(device: impl BlockDevice + 'static) -> Arc<Self> {
        Arc::new(Self { device: Arc::new(device), opened: AtomicUsize::new(0) })
    }
}

impl Exports for OneExport {
    fn list(&self, _client: &ClientInfo) -> Vec<ExportInfo> {
        let info = |name: &str, text: &str| ExportInfo {
            name: name.to_owned(),
            description: text.to_owned(),
        };
        vec![info("disk", "the first disk"), info("broken", "cannot be opened")]
    }

    fn open(&self, name: &str, _client: &ClientInfo) -> Result<Opened, OpenError> {
        self.opened.fetch_add(1, Ordering::SeqCst);
        match name {
            "" | "disk" => Ok(Opened::new(self.device.clone())),
            "broken" => Err(OpenError::Failed("the secret path /srv/x is gone".into())),
            _ => Err(OpenError::Unknown),
        }
    }

    fn has_presence(&self, name: &str, _client: &ClientInfo) -> bool {
        name != "broken" && self.device.caps().presence
    }
}

/// A server on a Unix socket in a directory of its own.
pub(crate) struct Server<E = OneExport> {
    pub(crate) handle: Option<ServerHandle>,
    pub(crate) exports: Arc<E>,
    pub(crate) socket: PathBuf,
    pub(crate) dir: tempfile::TempDir,
}

impl Server {
    pub(crate) fn start(device: impl BlockDevice + 'static) -> Self {
        Self::with(device, ServerConfig::default())
    }

    pub(crate) fn with(device: impl BlockDevice + 'static, config: ServerConfig) -> Self {
        Self::of(OneExport::new(device), config)
    }

    /// A server of exports that the caller keeps.
    pub(crate) fn of<E: Exports + 'static>(exports: Arc<E>, config: ServerConfig) -> Server<E> {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("nbd.sock");
        let listen = vec![Listen::Unix(socket.clone())];
        let handle = ServerHandle::start(listen, exports.clone(), config).unwrap();
        Server { handle: Some(handle), exports, socket, dir }
    }

    /// A read-only disk and what is on it.
    pub(crate) fn disk(len: usize) -> (Self, Vec<u8>) {
        let bytes = disk(len);
        (Self::start(MemDevice::read_only(bytes.clone())), bytes)
    }
}

impl<E> Server<E> {
    pub(crate) fn uri(&self, export: &str) -> NbdUri {
        NbdUri::unix(&self.socket, export)
    }

    /// The URI as the programs of others take it.
    pub(crate) fn uri_text(&self, export: &str) -> String {
        self.uri(export).to_string()
    }

    pub(crate) fn raw(&self) -> Raw {
        Raw::connect(&self.socket)
    }
}

/// A client that says what it is told to.
pub(crate) struct Raw {
    pub(crate) stream: UnixStream,
    cookie: u64,
}

/// One reply as it came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Chunk {
    pub(crate) kind: u16,
    pub(crate) done: bool,
    pub(crate) cookie: u64,
    pub(crate) payload: Vec<u8>,
}

impl Raw {
    /// Connects without a word.
    pub(crate) fn silent(socket: &Path) -> Self {
        let stream = UnixStream::connect(socket).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        Self { stream, cookie: 100 }
    }

    /// Connects and exchanges greetings.
    pub(crate) fn connect(socket: &Path) -> Self {
        let mut raw = Self::silent(socket);
        let greeting: [u8; GREETING_BYTES] = raw.read();
        assert_eq!(decode_greeting(&greeting).unwrap(), 3, "fixed newstyle, no zeroes");
        raw.write(&3u32.to_be_bytes());
        raw
    }

    pub(crate) fn write(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    pub(crate) fn read<const N: usize>(&mut self) -> [u8; N] {
        let mut buf = [0; N];
        self.stream.read_exact(&mut buf).unwrap();
        buf
    }

    pub(crate) fn read_vec(&mut self, n: usize) -> Vec<u8> {
        let mut buf = vec![0; n];
        self.stream.read_exact(&mut buf).unwrap();
        buf
    }

    /// The server must end the connection, without another word, within a few seconds.
    #[track_caller]
    pub(crate) fn expect_end(&mut self) {
        let rest = self.drain();
        assert!(rest.is_empty(), "the server says {rest:?} instead of hanging up");
    }

    /// What the server still says until it ends the connection.
    #[track_caller]
    pub(crate) fn drain(&mut self) -> Vec<u8> {
        let mut rest = Vec::new();
        match self.stream.read_to_end(&mut rest) {
            Ok(_) => rest,
            Err(e) if e.kind() == ErrorKind::ConnectionReset => rest,
            Err(e) => panic!("the server does not hang up: {e}"),
        }
    }

    /// One reply to an option: its type and payload.
    #[track_caller]
    pub(crate) fn option_reply(&mut self, option: u32) -> (u32, Vec<u8>) {
        let head: [u8; OPTION_REPLY_HEADER_BYTES] = self.read();
        let head = OptionReplyHeader::decode(&head).unwrap();
        assert_eq!(head.option, option);
        assert!(head.len <= 1 << 16);
        (head.reply, self.read_vec(head.len as usize))
    }

    /// Sends an option and reads until ACK or an error; the last reply's type is the second value.
    #[track_caller]
    pub(crate) fn option(&mut self, option: u32, payload: &[u8]) -> (Vec<(u32, Vec<u8>)>, u32) {
        self.write(&encode_option(option, payload));
        let mut items = Vec::new();
        loop {
            let (kind, payload) = self.option_reply(option);
            if kind == reply::ACK || kind & reply::ERROR_BIT != 0 {
                return (items, kind);
            }
            items.push((kind, payload));
        }
    }

    pub(crate) fn structured(&mut self) {
        assert_eq!(self.option(option::STRUCTURED_REPLY, &[]).1, reply::ACK);
    }

    pub(crate) fn allocation(&mut self, export: &str) {
        let queries = vec!["base:allocation".to_owned()];
        let request = MetaContextRequest { export: export.to_owned(), queries };
        let (items, end) = self.option(option::SET_META_CONTEXT, &request.encode());
        assert_eq!((items.len(), end), (1, reply::ACK));
    }

    /// Chooses an export; answers its information.
    #[track_caller]
    pub(crate) fn go(&mut self, export: &str, wants: &[u16]) -> Vec<Info> {
        let request = InfoRequest { export: export.to_owned(), wants: wants.to_vec() };
        let (items, end) = self.option(option::GO, &request.encode());
        assert_eq!(end, reply::ACK);
        items.iter().map(|(_, payload)| Info::decode(payload).unwrap()).collect()
    }

    /// A client ready to read, with structured replies and base:allocation.
    pub(crate) fn ready(socket: &Path) -> Self {
        let mut raw = Self::connect(socket);
        raw.structured();
        raw.allocation("disk");
        raw.go("disk", &[]);
        raw
    }

    /// Sends a request; answers its cookie.
    pub(crate) fn request(&mut self, command: u16, flags: u16, offset: u64, len: u32) -> u64 {
        self.cookie += 1;
        let request = Request { flags, command, cookie: self.cookie, offset, len };
        self.write(&request.encode());
        self.cookie
    }

    /// Reads a simple reply's error number and cookie; data of READ is left.
    #[track_caller]
    pub(crate) fn simple(&mut self) -> (u32, u64) {
        match ReplyStart::decode(&self.read()).unwrap() {
            ReplyStart::Simple { errno, cookie } => (errno, cookie),
            other => panic!("{other:?}"),
        }
    }

    /// Reads one chunk.
    #[track_caller]
    pub(crate) fn chunk(&mut self) -> Chunk {
        match ReplyStart::decode(&self.read()).unwrap() {
            ReplyStart::Chunk { flags, kind, cookie } => {
                let len = u32::from_be_bytes(self.read());
                assert!(len <= 33 << 20, "a chunk of {len} bytes");
                let payload = self.read_vec(len as usize);
                Chunk { kind, done: flags & chunk::FLAG_DONE != 0, cookie, payload }
            }
            other => panic!("{other:?}"),
        }
    }

    /// The error number of an error chunk, which must be the whole reply.
    #[track_caller]
    pub(crate) fn error(&mut self, cookie: u64) -> u32 {
        let chunk = self.chunk();
        assert!(chunk.done && chunk.cookie == cookie && chunk.kind & chunk::ERROR_BIT != 0);
        u32::from_be_bytes(chunk.payload[..4].try_into().unwrap())
    }

    /// A whole structured READ reply, put together; and its number of chunks.
    #[track_caller]
    pub(crate) fn data(&mut self, cookie: u64, offset: u64, len: usize) -> (Vec<u8>, usize) {
        let mut out = vec![0xa5; len];
        let (mut covered, mut chunks) = (0, 0);
        loop {
            let chunk = self.chunk();
            assert_eq!(chunk.cookie, cookie);
            chunks += 1;
            if chunk.kind != chunk::NONE {
                let at = u64::from_be_bytes(chunk.payload[..8].try_into().unwrap()) - offset;
                let at = at as usize;
                match chunk.kind {
                    chunk::OFFSET_DATA => {
                        out[at..at + chunk.payload.len() - 8].copy_from_slice(&chunk.payload[8..]);
                        covered += chunk.payload.len() - 8;
                    }
                    chunk::OFFSET_HOLE => {
                        let hole = u32::from_be_bytes(chunk.payload[8..].try_into().unwrap());
                        out[at..at + hole as usize].fill(0);
                        covered += hole as usize;
                    }
                    other => panic!("chunk type {other}"),
                }
            }
            if chunk.done {
                assert_eq!(covered, len);
                return (out, chunks);
            }
        }
    }

    /// Reads, and wants it to work.
    #[track_caller]
    pub(crate) fn read_at(&mut self, offset: u64, len: u32) -> Vec<u8> {
        let cookie = self.request(command::READ, 0, offset, len);
        self.data(cookie, offset, len as usize).0
    }
}

/// A client over TCP, with simple replies only.
pub(crate) struct TcpRaw(pub(crate) std::net::TcpStream);

impl TcpRaw {
    /// Connects from an address of the loopback.
    pub(crate) fn connect(address: std::net::SocketAddr, from: std::net::Ipv4Addr) -> Self {
        use rustix::net::{AddressFamily, SocketAddrV4, SocketType, bind, connect, socket};
        let own = socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
        bind(&own, &SocketAddrV4::new(from, 0)).unwrap();
        connect(&own, &address).unwrap();
        let mut stream = std::net::TcpStream::from(own);
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.read_exact(&mut [0; GREETING_BYTES]).unwrap();
        stream.write_all(&3u32.to_be_bytes()).unwrap();
        Self(stream)
    }

    /// Chooses an export; answers its size and flags.
    #[track_caller]
    pub(crate) fn go(&mut self, export: &str) -> Info {
        let request = InfoRequest { export: export.to_owned(), wants: vec![] };
        self.0.write_all(&encode_option(option::GO, &request.encode())).unwrap();
        let mut info = None;
        loop {
            let mut head = [0; OPTION_REPLY_HEADER_BYTES];
            self.0.read_exact(&mut head).unwrap();
            let head = OptionReplyHeader::decode(&head).unwrap();
            let mut payload = vec![0; head.len as usize];
            self.0.read_exact(&mut payload).unwrap();
            match head.reply {
                reply::INFO => info = Some(Info::decode(&payload).unwrap()),
                reply::ACK => return info.unwrap(),
                other => panic!("{other:#x}"),
            }
        }
    }

    /// Writes zeros at the start; answers the error number.
    pub(crate) fn write_zeros(&mut self, len: u32) -> u32 {
        let request = Request { flags: 0, command: command::WRITE, cookie: 1, offset: 0, len };
        self.0.write_all(&request.encode()).unwrap();
        self.0.write_all(&vec![0; len as usize]).unwrap();
        let mut head = [0; 16];
        self.0.read_exact(&mut head).unwrap();
        match ReplyStart::decode(&head).unwrap() {
            ReplyStart::Simple { errno, .. } => errno,
            other => panic!("{other:?}"),
        }
    }
}

/// Waits until something is so.
#[track_caller]
pub(crate) fn eventually(what: &str, mut so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !so() {
        assert!(start.elapsed() < PATIENCE, "not within {PATIENCE:?}: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A program of a Debian package. A missing one is a failure, with the package's name.
pub(crate) fn tool(name: &str, package: &str) -> Command {
    let found = std::env::var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|dir| dir.join(name).is_file()));
    assert!(found, "{name} is missing: apt-get install {package}");
    Command::new(name)
}

/// A running program, killed when dropped.
pub(crate) struct Running(pub(crate) Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs a program to its end, for at most a minute.
#[track_caller]
pub(crate) fn run(command: &mut Command) -> Output {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = Running(command.spawn().unwrap());
    let reader = |pipe: Option<Box<dyn Read + Send>>| {
        std::thread::spawn(move || {
            let mut all = Vec::new();
            pipe.unwrap().read_to_end(&mut all).unwrap();
            all
        })
    };
    let stdout = reader(child.0.stdout.take().map(|p| Box::new(p) as _));
    let stderr = reader(child.0.stderr.take().map(|p| Box::new(p) as _));
    let start = Instant::now();
    let status = loop {
        if let Some(status) = child.0.try_wait().unwrap() {
            break status;
        }
        assert!(start.elapsed() < Duration::from_secs(60), "{command:?} hangs");
        std::thread::sleep(Duration::from_millis(5));
    };
    Output { status, stdout: stdout.join().unwrap(), stderr: stderr.join().unwrap() }
}

/// Runs a program that must succeed; answers its standard output.
#[track_caller]
pub(crate) fn run_ok(command: &mut Command) -> String {
    let output = run(command);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {}\n{stderr}", output.status);
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Starts a server of others on a socket, and waits until it listens.
#[track_caller]
pub(crate) fn start_server(command: &mut Command, socket: &Path) -> Running {
    let mut child = Running(command.stdin(Stdio::null()).spawn().unwrap());
    eventually("the server listens", || {
        if let Some(status) = child.0.try_wait().unwrap() {
            panic!("{command:?} ended at once: {status}");
        }
        listens(socket)
    });
    child
}

/// Whether somebody listens on a socket. Its file is there a moment earlier, and trying a
/// connection would take the place of a client where there is only one.
fn listens(socket: &Path) -> bool {
    const ACCEPTS: &str = "00010000";
    let table = std::fs::read_to_string("/proc/net/unix").unwrap();
    table.lines().any(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        fields.get(3) == Some(&ACCEPTS) && fields.get(7).map(Path::new) == Some(socket)
    })
}

/// Writes a sparse file.
pub(crate) fn sparse(path: &Path, bytes: &[u8]) {
    use std::os::unix::fs::FileExt;
    let file = std::fs::File::create(path).unwrap();
    file.set_len(bytes.len() as u64).unwrap();
    for (i, block) in bytes.chunks(4096).enumerate() {
        if block.iter().any(|b| *b != 0) {
            file.write_all_at(block, i as u64 * 4096).unwrap();
        }
    }
}
