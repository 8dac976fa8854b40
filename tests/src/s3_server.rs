//! S3 servers of others, started and ended by whoever needs one: moto (every detail of the
//! protocol, in memory) and SeaweedFS (a server that people run).

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// How long a server may take until it answers: a loaded machine is slow.
const START: Duration = Duration::from_secs(40);
/// SeaweedFS listens so far above each of its ports as well.
const GRPC_ABOVE: u16 = 10_000;

/// Which server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A simulation in memory.
    Moto,
    /// A server that keeps its data in files.
    Seaweed,
}

/// A running server; ended when dropped.
#[derive(Debug)]
pub struct Server {
    child: Child,
    address: SocketAddr,
}

/// What a bucket does with versions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bucket {
    /// It keeps one.
    Plain,
    /// It keeps all, and locks each for a day.
    Locked,
}

impl Kind {
    /// The program, if `cargo xtask bootstrap` has installed it.
    pub fn program(self) -> Option<PathBuf> {
        let name = match self {
            Kind::Moto => "moto_server",
            Kind::Seaweed => "weed",
        };
        let path = cache_dir()?.join("s3-servers/bin").join(name);
        path.is_file().then_some(path)
    }

    /// Starts it with its data in `dir`; it answers when this returns.
    pub fn start(self, dir: &Path) -> Result<Server> {
        let program = self.program().context("the server is not installed")?;
        let mut last = None;
        // A port that was free may be taken by the time the server opens it.
        for _ in 0..5 {
            match self.try_start(&program, dir) {
                Ok(server) => return Ok(server),
                Err(error) => last = Some(error),
            }
        }
        Err(last.unwrap_or_else(|| anyhow::anyhow!("not tried")))
    }

    fn try_start(self, program: &Path, dir: &Path) -> Result<Server> {
        let mut command = guarded(program);
        let port = match self {
            Kind::Moto => {
                let port = free_ports(1, 0)?[0];
                command.args(["-H", "127.0.0.1", "-p", &port.to_string()]);
                // Short pages, so that small tests see several.
                command.env("MOTO_S3_DEFAULT_MAX_KEYS", "40");
                port
            }
            Kind::Seaweed => {
                let ports = free_ports(5, GRPC_ABOVE)?;
                command.args(["server", "-s3", "-ip=127.0.0.1", "-ip.bind=127.0.0.1"]);
                command.args(["-volume.max=64", "-master.volumeSizeLimitMB=256"]);
                command.arg(format!("-dir={}", dir.display()));
                let names = ["master.port", "volume.port", "filer.port", "s3.port"];
                for (name, port) in names.iter().zip(&ports) {
                    command.arg(format!("-{name}={port}"));
                }
                command.arg(format!("-volume.port.public={}", ports[4]));
                // These have fixed ports, so that two servers at once would be one too many.
                command.args(["-s3.port.iceberg=0", "-s3.port.lance=0"]);
                ports[3]
            }
        };
        let log = std::fs::File::create(dir.join("server.log"))?;
        command.current_dir(dir).stdin(Stdio::null());
        command.stdout(log.try_clone()?).stderr(log);
        // Nothing of this machine's own accounts shall be used.
        command.env("HOME", dir).env_remove("AWS_PROFILE");
        let child = command.spawn().with_context(|| format!("cannot run {}", program.display()))?;
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let mut server = Server { child, address };
        let start = Instant::now();
        loop {
            if let Some(status) = server.child.try_wait()? {
                let said = std::fs::read_to_string(dir.join("server.log")).unwrap_or_default();
                bail!("the server ended with {status}: {said}");
            }
            // SeaweedFS answers before it has volumes to write to.
            if server.make_bucket("are-you-there", Bucket::Plain).is_ok()
                && server.ask("PUT", "/are-you-there/x", "", b"x").is_ok()
            {
                return Ok(server);
            }
            if start.elapsed() > START {
                bail!("the server did not answer within {START:?}");
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

impl Server {
    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Makes a bucket.
    pub fn make_bucket(&self, name: &str, bucket: Bucket) -> Result<()> {
        let header = match bucket {
            Bucket::Plain => "",
            Bucket::Locked => "x-amz-bucket-object-lock-enabled: true\r\n",
        };
        self.ask("PUT", &format!("/{name}"), header, b"")?;
        if bucket == Bucket::Locked {
            let rule = b"<ObjectLockConfiguration><ObjectLockEnabled>Enabled</ObjectLockEnabled>\
                <Rule><DefaultRetention><Mode>COMPLIANCE</Mode><Days>1</Days></DefaultRetention>\
                </Rule></ObjectLockConfiguration>";
            self.ask("PUT", &format!("/{name}?object-lock"), "", rule)?;
        }
        Ok(())
    }

    /// One request without a signature, which must succeed.
    pub fn ask(&self, method: &str, target: &str, headers: &str, body: &[u8]) -> Result<String> {
        ask(self.address, method, target, headers, body)
    }
}

/// One request without a signature to a server of this machine, which must succeed.
pub fn ask(
    address: SocketAddr,
    method: &str,
    target: &str,
    headers: &str,
    body: &[u8],
) -> Result<String> {
    let (status, text) = request(address, method, target, headers, body)?;
    if !(200..300).contains(&status) {
        bail!("{method} {target} was answered {status}: {text}");
    }
    Ok(text)
}

fn request(
    address: SocketAddr,
    method: &str,
    target: &str,
    headers: &str,
    body: &[u8],
) -> Result<(u16, String)> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(START))?;
    let len = body.len();
    let head = format!(
        "{method} {target} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\
         content-length: {len}\r\n{headers}\r\n"
    );
    stream.write_all(head.as_bytes())?;
    stream.write_all(body)?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let answer = String::from_utf8_lossy(&answer);
    let (head, text) = answer.split_once("\r\n\r\n").context("no answer")?;
    let status = head.split(' ').nth(1).and_then(|s| s.parse().ok()).context("no status")?;
    Ok((status, text.to_owned()))
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The program, ended with the thread that starts it: a test that is killed leaves nothing behind.
fn guarded(program: &Path) -> Command {
    let guard = Path::new("/usr/bin/setpriv");
    if !guard.exists() {
        return Command::new(program);
    }
    let mut command = Command::new(guard);
    command.args(["--pdeathsig", "KILL", "--"]).arg(program);
    command
}

/// Where `cargo xtask` keeps what outlives a clone.
fn cache_dir() -> Option<PathBuf> {
    let named = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    named("BACKSTAY_BUILD_CACHE")
        .or_else(|| named("XDG_CACHE_HOME").map(|dir| dir.join("backstay")))
        .or_else(|| named("HOME").map(|home| home.join(".cache/backstay")))
}

/// Free ports of the loopback, each with the one `above` it free as well.
fn free_ports(count: usize, above: u16) -> Result<Vec<u16>> {
    let mut held = Vec::new();
    let mut ports = Vec::new();
    for _ in 0..1000 {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let port = listener.local_addr()?.port();
        let other = port.checked_add(above).filter(|_| above > 0);
        let second = other.map(|p| TcpListener::bind((Ipv4Addr::LOCALHOST, p)));
        let fits = above == 0 || matches!(second, Some(Ok(_)));
        held.push(listener);
        if fits {
            held.extend(second.and_then(Result::ok));
            ports.push(port);
        }
        if ports.len() == count {
            return Ok(ports);
        }
    }
    bail!("no free ports")
}
