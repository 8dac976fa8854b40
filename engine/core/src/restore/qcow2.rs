//! Restoring to qcow2: `qemu-img convert` reads the disk from an NBD server of our own, on a socket
//! in a private directory, and writes the format it knows best.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use backstay_blockdev::{BlockDevice, Caps, Extent, ExtentKind, Geometry};
use backstay_daemon::PointDisk;
use backstay_nbd::server::{
    ClientInfo, ExportInfo, Exports, Listen, OpenError, Opened, ServerConfig, ServerHandle,
    export_uri,
};

use super::copy::Copied;
use crate::error::{Error, ErrorKind, Result};
use crate::landing::Landing;
use crate::monitor::Monitor;
use crate::private_dir::PrivateDir;
use crate::tool::{self, Running, Tools};

/// How often progress is passed on and cancelling is noticed.
const POLL: Duration = Duration::from_millis(50);

/// The disk, with what is read of it counted, and the first error kept: the server's client sees
/// no more than an I/O error.
#[derive(Debug)]
struct Counted {
    disk: PointDisk,
    read_bytes: AtomicU64,
    failure: Mutex<Option<Error>>,
}

impl Counted {
    fn count<T>(
        &self,
        offset: u64,
        result: Result<T, backstay_blockdev::Error>,
    ) -> Result<T, backstay_blockdev::Error> {
        result.map_err(|error| {
            let text = error.to_string();
            let kind = error.kind();
            let mut failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
            failure.get_or_insert_with(|| {
                Error::from(error).within(format!("the disk cannot be read near byte {offset}"))
            });
            backstay_blockdev::Error::new(kind, text)
        })
    }
}

impl BlockDevice for Counted {
    fn geometry(&self) -> Geometry {
        self.disk.geometry()
    }

    fn caps(&self) -> Caps {
        self.disk.caps()
    }

    fn read_at(&self, offset_bytes: u64, buf: &mut [u8]) -> Result<(), backstay_blockdev::Error> {
        self.count(offset_bytes, self.disk.read_at(offset_bytes, buf))?;
        self.read_bytes.fetch_add(buf.len().try_into().unwrap_or_default(), Ordering::Relaxed);
        Ok(())
    }

    fn try_read_at(
        &self,
        offset_bytes: u64,
        buf: &mut [u8],
    ) -> Result<bool, backstay_blockdev::Error> {
        let done = self.count(offset_bytes, self.disk.try_read_at(offset_bytes, buf))?;
        if done {
            self.read_bytes.fetch_add(buf.len().try_into().unwrap_or_default(), Ordering::Relaxed);
        }
        Ok(done)
    }

    fn extents(
        &self,
        offset_bytes: u64,
        len_bytes: u64,
        max: usize,
    ) -> Result<Vec<Extent>, backstay_blockdev::Error> {
        self.count(offset_bytes, self.disk.extents(offset_bytes, len_bytes, max))
    }

    fn prefetch(&self, offset_bytes: u64, len_bytes: u64) {
        self.disk.prefetch(offset_bytes, len_bytes);
    }
}

/// The one, unnamed export.
struct One(Arc<Counted>);

impl Exports for One {
    fn list(&self, _client: &ClientInfo) -> Vec<ExportInfo> {
        vec![ExportInfo { name: String::new(), description: String::new() }]
    }

    fn open(&self, name: &str, _client: &ClientInfo) -> Result<Opened, OpenError> {
        match name {
            "" => Ok(Opened::new(self.0.clone())),
            _ => Err(OpenError::Unknown),
        }
    }
}

/// Converts `disk` into a qcow2 file at `target`. QEMU counts in sectors: a disk whose size is no
/// multiple of 512 bytes ends in zeros up to the next.
pub(super) fn restore(
    disk: PointDisk,
    target: &Path,
    overwrite: bool,
    monitor: &dyn Monitor,
) -> Result<Copied> {
    let landing = Landing::new(target, overwrite)?;
    let size = disk.geometry().size_bytes;
    let data_bytes = data_bytes(&disk)?;
    let counted =
        Arc::new(Counted { disk, read_bytes: AtomicU64::new(0), failure: Mutex::new(None) });
    let dir = PrivateDir::new()?;
    let socket = dir.path().join("s");
    let exports: Arc<dyn Exports> = Arc::new(One(Arc::clone(&counted)));
    let server = ServerHandle::start(vec![Listen::Unix(socket)], exports, ServerConfig::default())?;
    let uri =
        server.addresses().first().map(|address| export_uri(address, "", false)).ok_or_else(
            || Error::new(ErrorKind::Io, "the NBD server for qemu-img has no address"),
        )?;

    monitor.phase("convert");
    let mut command = tool::command(&Tools::default().qemu_img)?;
    command.args(["convert", "-f", "raw", "-O", "qcow2", "-W"]).arg(uri);
    command.arg(landing.path_for_child());
    let converted = convert(command, &counted, data_bytes, monitor);
    // qemu-img has ended; how the server ends changes nothing about the file.
    if let Err(error) = server.stop() {
        tracing::warn!(%error, "the NBD server for qemu-img did not end cleanly");
    }
    if let Err(error) = converted {
        let failure = counted.failure.lock().unwrap_or_else(PoisonError::into_inner).take();
        return Err(match failure {
            Some(failure) if error.kind() != ErrorKind::Cancelled => failure,
            _ => error,
        });
    }
    monitor.add_bytes(size.saturating_sub(data_bytes));
    monitor.phase("sync");
    landing.finish()?;
    Ok(Copied { data_bytes, hole_bytes: size.saturating_sub(data_bytes) })
}

/// Runs qemu-img to its end, or until the monitor cancels.
fn convert(
    command: std::process::Command,
    counted: &Counted,
    data_bytes: u64,
    monitor: &dyn Monitor,
) -> Result<()> {
    let mut running = Running::start(command)?;
    let mut told = 0;
    loop {
        let ended = running.poll()?.is_some();
        // A sector may be read twice (the format's own probing); the bar must not overshoot.
        let read = counted.read_bytes.load(Ordering::Relaxed).min(data_bytes);
        let read = if ended { data_bytes } else { read };
        monitor.add_bytes(read.saturating_sub(told));
        told = read;
        if ended {
            break;
        }
        if monitor.cancelled() {
            return Err(Error::new(ErrorKind::Cancelled, "the restore was cancelled"));
        }
        std::thread::sleep(POLL);
    }
    let (status, words) = running.finish()?;
    if status.success() {
        return Ok(());
    }
    Err(tool::failed("qemu-img cannot write the qcow2 file", ErrorKind::Tool, &words))
}

fn data_bytes(disk: &PointDisk) -> Result<u64> {
    /// Asked for in pieces; bounds what one call walks.
    const WINDOW_BYTES: u64 = 1 << 30;
    let size = disk.geometry().size_bytes;
    let mut at = 0;
    let mut data = 0;
    while at < size {
        let list = disk.extents(at, (size - at).min(WINDOW_BYTES), 256)?;
        let before = at;
        for extent in list {
            if extent.kind == ExtentKind::Data {
                data += extent.len_bytes;
            }
            at = extent.offset_bytes.saturating_add(extent.len_bytes);
        }
        if at <= before {
            return Err(Error::new(ErrorKind::Io, "the disk's map of holes is empty"));
        }
    }
    Ok(data)
}
