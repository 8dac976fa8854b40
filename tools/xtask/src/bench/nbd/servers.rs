//! The servers that are measured, ours and others', each a process of its own on loopback.

use std::fs::{self, File};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::proc;

/// How long a server may take until it listens.
const START_TIMEOUT: Duration = Duration::from_secs(60);

/// Which server, over what.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    /// A recovery point, read-only.
    Ours,
    /// A recovery point with an overlay.
    OursWritable,
    /// qemu-nbd over the raw image.
    QemuRaw,
    /// qemu-nbd over the image as qcow2, compressed with zstd in clusters of 64 KiB.
    QemuZstd,
    /// qemu-nbd over a qcow2 overlay of that, flushes honoured.
    QemuOverlay,
    /// nbdkit's file plugin over the raw image.
    Nbdkit,
}

impl Kind {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Ours => "backstay",
            Self::OursWritable => "backstay overlay",
            Self::QemuRaw => "qemu-nbd raw",
            Self::QemuZstd => "qemu-nbd zstd qcow2",
            Self::QemuOverlay => "qemu-nbd qcow2 overlay",
            Self::Nbdkit => "nbdkit file",
        }
    }
}

/// What the servers serve.
#[derive(Debug)]
pub(super) struct Images {
    pub(super) work: PathBuf,
    pub(super) raw: PathBuf,
    pub(super) qcow2: PathBuf,
    /// The product, and the environment of its repository.
    pub(super) ours: PathBuf,
}

impl Images {
    /// The product with its repository.
    pub(super) fn command(&self, args: &[&str]) -> Command {
        let mut command = proc::command(&self.ours);
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("BACKSTAY_") {
                command.env_remove(&name);
            }
        }
        command
            .env("BACKSTAY_REPO", self.work.join("repo"))
            .env("BACKSTAY_KEY_FILE", self.work.join("key"))
            .env("BACKSTAY_CACHE_DIR", self.work.join("cache"))
            .env("BACKSTAY_STATE_DIR", self.work.join("state"))
            .current_dir(&self.work)
            .args(args);
        command
    }
}

/// A server that runs; ended when dropped.
#[derive(Debug)]
pub(super) struct Server {
    child: Child,
    /// The process whose time counts.
    pid: u32,
    pub(super) uri: String,
    /// From its start until it listened.
    pub(super) ready: Duration,
}

impl Server {
    /// Starts a server with nothing in its own caches.
    pub(super) fn start(kind: Kind, images: &Images, port: u16) -> Result<Self> {
        let log = File::create(images.work.join("server.log"))?;
        let mut uri = format!("nbd://127.0.0.1:{port}");
        let mut command = match kind {
            Kind::Ours | Kind::OursWritable => {
                uri.push_str("/disk0");
                return Self::ours(kind, images, port, log);
            }
            Kind::QemuRaw => qemu_nbd(port, &["-r", "-f", "raw"], &images.raw),
            Kind::QemuZstd => qemu_nbd(port, &["-r", "-f", "qcow2"], &images.qcow2),
            Kind::QemuOverlay => {
                let overlay = images.work.join("overlay.qcow2");
                let _ = fs::remove_file(&overlay);
                let mut create = proc::command("qemu-img");
                create.args(["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b"]);
                proc::output(create.arg(&images.qcow2).arg(&overlay))?;
                qemu_nbd(port, &["-f", "qcow2"], &overlay)
            }
            Kind::Nbdkit => {
                let mut command = proc::command("nbdkit");
                let port = port.to_string();
                command.args(["-f", "-r", "-t", "16", "-i", "127.0.0.1", "-p", &port, "file"]);
                command.arg(&images.raw);
                command
            }
        };
        let start = Instant::now();
        let child = command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).spawn();
        let child = child.with_context(|| format!("cannot run `{}`", proc::shown(&command)))?;
        let mut server = Self { pid: child.id(), child, uri, ready: Duration::ZERO };
        server.wait(port, start, images)?;
        Ok(server)
    }

    /// The product: read-only by the command itself, writable by its daemon.
    fn ours(kind: Kind, images: &Images, port: u16, log: File) -> Result<Self> {
        let listen = format!("127.0.0.1:{port}");
        let start = Instant::now();
        if kind == Kind::Ours {
            let args = ["mount", "nbd", "bench@latest:disk0", "--foreground", "--listen", &listen];
            let mut command = images.command(&args);
            command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
            let child = command.spawn()?;
            let uri = format!("nbd://{listen}/disk0");
            let mut server = Self { pid: child.id(), child, uri, ready: Duration::ZERO };
            server.wait(port, start, images)?;
            return Ok(server);
        }
        let _ = fs::remove_dir_all(images.work.join("state"));
        let mut daemon = images.command(&["mountd"]);
        daemon.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let child = daemon.spawn()?;
        let mut server = Self { pid: child.id(), child, uri: String::new(), ready: Duration::ZERO };
        let socket = images.work.join("state/run/mountd.sock");
        while !socket.exists() {
            server.check_alive(start, images)?;
        }
        let args = ["mount", "nbd", "bench@latest:disk0", "--writable", "--listen", &listen];
        let said = proc::capture(images.command(&args).arg("--json"))?;
        let said: serde_json::Value = serde_json::from_str(&said)?;
        server.uri = said["uri"].as_str().context("the mount has no address")?.to_owned();
        server.ready = start.elapsed();
        Ok(server)
    }

    fn wait(&mut self, port: u16, start: Instant, images: &Images) -> Result<()> {
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            self.check_alive(start, images)?;
        }
        self.ready = start.elapsed();
        Ok(())
    }

    fn check_alive(&mut self, start: Instant, images: &Images) -> Result<()> {
        std::thread::sleep(Duration::from_millis(2));
        if self.child.try_wait()?.is_none() && start.elapsed() < START_TIMEOUT {
            return Ok(());
        }
        let said = fs::read_to_string(images.work.join("server.log")).unwrap_or_default();
        bail!("the server did not start: {}", said.trim())
    }

    /// Processor time it has used so far, all threads, user and system.
    pub(super) fn cpu(&self) -> Result<Duration> {
        let text = fs::read_to_string(format!("/proc/{}/stat", self.pid))?;
        // The name in parentheses may hold anything.
        let after = text.rsplit_once(')').context("no process state")?.1;
        let ticks: u64 =
            after.split_whitespace().skip(11).take(2).flat_map(str::parse::<u64>).sum();
        let per_second = rustix::param::clock_ticks_per_second();
        Ok(Duration::from_secs_f64(ticks as f64 / per_second as f64))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(pid) = rustix::process::Pid::from_raw(self.child.id() as i32) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
        let end = Instant::now() + Duration::from_secs(10);
        while Instant::now() < end {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn qemu_nbd(port: u16, args: &[&str], image: &Path) -> Command {
    let mut command = proc::command("qemu-nbd");
    let port = port.to_string();
    // -t: stays when a client leaves; writeback is what "flushed means durable" needs and no more.
    command.args(["-t", "-e", "64", "-b", "127.0.0.1", "-p", &port, "--cache=writeback"]);
    command.args(args).arg(image);
    command
}
