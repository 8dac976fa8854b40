//! Restoring to a raw file: sparse, because a new file is all hole and holes are not written.

use std::path::Path;

use backstay_store::ImageReader;

use super::copy::{Copied, Sink, copy};
use super::direct::Writer;
use super::runs::Run;
use crate::error::{Error, Result};
use crate::landing::Landing;
use crate::monitor::Monitor;

struct RawFile<'a> {
    writer: Writer<'a>,
    target: &'a Path,
}

impl Sink for RawFile<'_> {
    fn data(&self, run: Run, bytes: &[u8]) -> Result<()> {
        self.writer.write_all_at(bytes, run.offset).map_err(|e| Error::io("write", self.target, e))
    }

    fn hole(&self, _run: Run) -> Result<()> {
        Ok(())
    }
}

pub(super) fn restore(
    disk: &str,
    reader: &ImageReader,
    target: &Path,
    overwrite: bool,
    workers: usize,
    monitor: &dyn Monitor,
) -> Result<Copied> {
    let landing = Landing::new(target, overwrite)?;
    let file = landing.file();
    file.set_len(reader.size_bytes()).map_err(|e| Error::io("make", target, e))?;
    let sink = RawFile { writer: Writer::new(file), target };
    let copied = copy(disk, reader, &sink, workers, monitor)?;
    drop(sink);
    monitor.phase("sync");
    landing.finish()?;
    Ok(copied)
}
