//! Formats other than raw are read by QEMU's own code: a `qemu-nbd` of ours serves the image
//! read-only on a socket in a private directory, and it is killed with its owner.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use backstay_blockdev::{BlockDevice, Caps, Extent, Geometry};
use backstay_nbd::client::{Client, NbdUri, Remote};
use serde_json::{Value, json};

use super::format::ImageFormat;
use crate::error::{Error, ErrorKind, Result};
use crate::private_dir::PrivateDir;
use crate::tool::{self, Running, Tools};

/// How long qemu-nbd may take to open an image and listen.
const START_DEADLINE: Duration = Duration::from_secs(60);
/// Connections qemu-nbd accepts at once; the client's pool is not larger.
const SHARED: &str = "8";
/// `qemu-img check`: clean, only leaked clusters, this format has no check.
const CHECK_FINE: [i32; 3] = [0, 3, 63];

/// One image of a chain, and what lies below it.
#[derive(Debug)]
pub(crate) struct Layer {
    pub(crate) path: PathBuf,
    pub(crate) format: ImageFormat,
    pub(crate) block_device: bool,
    pub(crate) below: Option<Box<Layer>>,
}

impl Layer {
    /// QEMU's block options. The driver and the layer below are always said, also when there is
    /// none, so nothing in the image decides what is opened.
    fn options(&self, with_below: bool) -> Result<Value> {
        let name = self.path.to_str().ok_or_else(|| {
            Error::new(
                ErrorKind::Unsupported,
                format!("{}: the name is not UTF-8, which QEMU needs", self.path.display()),
            )
        })?;
        let driver = if self.block_device { "host_device" } else { "file" };
        let mut options = json!({
            "driver": self.format.name(),
            "file": { "driver": driver, "filename": name },
        });
        if matches!(self.format, ImageFormat::Qcow2 | ImageFormat::Vmdk) {
            options["backing"] = match &self.below {
                Some(below) if with_below => below.options(true)?,
                _ => Value::Null,
            };
        }
        Ok(options)
    }

    fn json(&self, with_below: bool) -> Result<String> {
        Ok(format!("json:{}", self.options(with_below)?))
    }
}

/// Has QEMU check the metadata of every layer. It reads zeros where an image was cut short, so this
/// is what keeps a damaged image from being stored as a good one.
pub(crate) fn check(tools: &Tools, top: &Layer) -> Result<()> {
    let mut next = Some(top);
    while let Some(layer) = next {
        next = layer.below.as_deref();
        if layer.format == ImageFormat::Raw {
            continue;
        }
        let mut command = tool::command(&tools.qemu_img)?;
        command.arg("check").arg(layer.json(false)?);
        let (status, words) = Running::start(command)?.finish()?;
        if !status.code().is_some_and(|code| CHECK_FINE.contains(&code)) {
            let what = format!("{} does not pass qemu-img check", layer.path.display());
            return Err(tool::failed(&what, ErrorKind::Damaged, &words));
        }
    }
    Ok(())
}

/// Starts serving `top` and returns it as a device. The server lives as long as the device.
pub(crate) fn open(tools: &Tools, top: &Layer) -> Result<Arc<dyn BlockDevice>> {
    let dir = PrivateDir::new()?;
    let socket = dir.path().join("s");
    let mut command = tool::command(&tools.qemu_nbd)?;
    command.args(["--read-only", "--persistent", "--shared", SHARED, "--socket"]).arg(&socket);
    command.arg(top.json(true)?);
    let server = Server::start(command, &socket, &top.path)?;
    let remote = connect(&socket).map_err(|e| {
        Error::new(ErrorKind::Tool, format!("cannot read {} by qemu-nbd", top.path.display()))
            .caused_by(e)
    })?;
    Ok(Arc::new(QemuDevice { remote, _server: server, _dir: dir }))
}

/// The socket exists a moment before it is listened on.
fn connect(socket: &Path) -> Result<Remote, backstay_nbd::Error> {
    const TRIES: u32 = 20;
    let mut tried = 0;
    loop {
        match Client::connect(&NbdUri::unix(socket, "")) {
            Err(_) if tried < TRIES => std::thread::sleep(Duration::from_millis(20)),
            result => return result,
        }
        tried += 1;
    }
}

/// A running qemu-nbd. The thread that started it must outlive it, because the kernel kills the
/// child when that thread ends; so a thread of its own starts it, waits, and ends it.
#[derive(Debug)]
struct Server {
    stop: Option<mpsc::Sender<()>>,
    keeper: Option<JoinHandle<()>>,
}

impl Server {
    fn start(command: std::process::Command, socket: &Path, image: &Path) -> Result<Server> {
        let (stop, stopped) = mpsc::channel::<()>();
        let (tell, told) = mpsc::channel();
        let (socket, image) = (socket.to_owned(), image.to_owned());
        let keeper = std::thread::Builder::new()
            .name("qemu-nbd".into())
            .spawn(move || {
                match listening(command, &socket, &image) {
                    Ok(running) => {
                        if tell.send(Ok(())).is_ok() {
                            // Ends when the owner drops its end.
                            let _ = stopped.recv();
                        }
                        drop(running);
                    }
                    // Nobody listens only if the owner is gone already.
                    Err(error) => drop(tell.send(Err(error))),
                }
            })
            .map_err(|e| Error::new(ErrorKind::Io, "cannot start a thread").caused_by(e))?;
        let server = Server { stop: Some(stop), keeper: Some(keeper) };
        told.recv()
            .map_err(|e| Error::new(ErrorKind::Tool, "qemu-nbd's keeper ended").caused_by(e))??;
        Ok(server)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(keeper) = self.keeper.take() {
            let _ = keeper.join();
        }
    }
}

/// Starts the command and waits until its socket is there.
fn listening(command: std::process::Command, socket: &Path, image: &Path) -> Result<Running> {
    let mut running = Running::start(command)?;
    let deadline = Instant::now() + START_DEADLINE;
    let what = format!("qemu-nbd cannot open {}", image.display());
    while !socket.exists() {
        if running.poll()?.is_some() {
            let (_, words) = running.finish()?;
            return Err(tool::failed(&what, ErrorKind::Tool, &words));
        }
        if Instant::now() > deadline {
            return Err(Error::new(
                ErrorKind::Tool,
                format!("{what}: it does not start listening"),
            ));
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(running)
}

/// The remote device; fields are dropped in this order: connections, server, directory.
#[derive(Debug)]
struct QemuDevice {
    remote: Remote,
    _server: Server,
    _dir: PrivateDir,
}

impl BlockDevice for QemuDevice {
    fn geometry(&self) -> Geometry {
        self.remote.geometry()
    }

    fn caps(&self) -> Caps {
        self.remote.caps()
    }

    fn read_at(&self, offset_bytes: u64, buf: &mut [u8]) -> Result<(), backstay_blockdev::Error> {
        self.remote.read_at(offset_bytes, buf)
    }

    fn extents(
        &self,
        offset_bytes: u64,
        len_bytes: u64,
        max: usize,
    ) -> Result<Vec<Extent>, backstay_blockdev::Error> {
        self.remote.extents(offset_bytes, len_bytes, max)
    }
}
