//! The servers that are measured, ours and others', each a process of its own on loopback.

use std::fs;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use super::super::process::{Process, Product};
use crate::proc;

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
    /// The product, with its repository.
    pub(super) product: Product,
}

/// A server that runs; ended when dropped.
#[derive(Debug)]
pub(super) struct Server {
    process: Process,
    pub(super) uri: String,
}

impl Server {
    /// Starts a server with nothing in its own caches.
    pub(super) fn start(kind: Kind, images: &Images, port: u16) -> Result<Self> {
        let listen = format!("127.0.0.1:{port}");
        let product = &images.product;
        let (mut command, export) = match kind {
            Kind::OursWritable => return Self::writable(product, &listen),
            Kind::Ours => {
                let args =
                    ["mount", "nbd", "bench@latest:disk0", "--foreground", "--listen", &listen];
                (product.command(&args), "/disk0")
            }
            Kind::QemuRaw => (qemu_nbd(port, &["-r", "-f", "raw"], &images.raw), ""),
            Kind::QemuZstd => (qemu_nbd(port, &["-r", "-f", "qcow2"], &images.qcow2), ""),
            Kind::QemuOverlay => {
                let overlay = images.work.join("overlay.qcow2");
                let _ = fs::remove_file(&overlay);
                let mut create = proc::command("qemu-img");
                create.args(["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b"]);
                proc::output(create.arg(&images.qcow2).arg(&overlay))?;
                (qemu_nbd(port, &["-f", "qcow2"], &overlay), "")
            }
            Kind::Nbdkit => {
                let mut command = proc::command("nbdkit");
                let port = port.to_string();
                command.args(["-f", "-r", "-t", "16", "-i", "127.0.0.1", "-p", &port, "file"]);
                command.arg(&images.raw);
                (command, "")
            }
        };
        let log = images.work.join("server.log");
        let mut process = Process::start(&mut command, &log)?;
        process.wait(&log, || TcpStream::connect(("127.0.0.1", port)).is_ok())?;
        Ok(Self { process, uri: format!("nbd://{listen}{export}") })
    }

    /// The product's daemon, with a mount that can be written.
    fn writable(product: &Product, listen: &str) -> Result<Self> {
        let process = product.daemon(&[])?;
        let args = ["mount", "nbd", "bench@latest:disk0", "--writable", "--listen", listen];
        let said = proc::capture(product.command(&args).arg("--json"))?;
        let said: serde_json::Value = serde_json::from_str(&said)?;
        let uri = said["uri"].as_str().context("the mount has no address")?.to_owned();
        Ok(Self { process, uri })
    }

    /// Processor time it has used so far.
    pub(super) fn cpu(&self) -> Result<Duration> {
        self.process.cpu()
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
