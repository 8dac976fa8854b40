//! Archives as files of this machine.

use std::io::{BufWriter, Write as _};
use std::path::Path;

use super::archive::Options;
use super::{Report, Tree, tar, zip};
use crate::error::{Error, Result};
use crate::landing::Landing;
use crate::monitor::Monitor;

/// Bytes gathered before they are written.
const BUFFER_BYTES: usize = 1 << 20;

/// How an archive is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// POSIX tar with extended headers: all metadata ([`tar::write`]).
    Tar,
    /// zip: names, content, modes, times to two seconds; the report tells the loss ([`zip::write`]).
    Zip,
}

/// Writes `tree` as an archive to any writer.
///
/// # Errors
/// As [`tar::write`] and [`zip::write`].
pub fn write(
    tree: Tree<'_>,
    format: Format,
    out: &mut dyn std::io::Write,
    options: &Options,
    monitor: &dyn Monitor,
) -> Result<Report> {
    match format {
        Format::Tar => tar::write(tree, out, options, monitor),
        Format::Zip => zip::write(tree, out, options, monitor),
    }
}

/// Writes `tree` as an archive into a new file for its owner alone, mode 0600, which has its name when it is whole and durable,
/// and not before. With `overwrite` a file that is there is replaced.
///
/// # Errors
/// As [`write()`]; [`ErrorKind::Exists`](crate::ErrorKind::Exists).
pub fn write_file(
    tree: Tree<'_>,
    format: Format,
    (path, overwrite): (&Path, bool),
    options: &Options,
    monitor: &dyn Monitor,
) -> Result<Report> {
    let landing = Landing::new(path, overwrite)?;
    let mut out = BufWriter::with_capacity(BUFFER_BYTES, landing.file());
    let report = write(tree, format, &mut out, options, monitor)?;
    out.flush().map_err(|e| Error::io("write", path, e))?;
    drop(out);
    landing.finish()?;
    Ok(report)
}
